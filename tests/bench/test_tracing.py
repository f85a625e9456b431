"""The trace build: the same bits, the model's waits found by the clock, a timeline in the model's schema."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from minigemm import cli, emulator, observe, quantize, views
from minigemm.bench import trace_build, trace_records, tracing
from minigemm.bench.trace_records import Record
from minigemm.compiler import jit
from minigemm.emulator import Timeline
from minigemm.emulator.watch.timeline import Interval
from minigemm.kernels import (
    s01_naive,
    s03_tma,
    s04_wgmma,
    s05_pipelined,
    s06_warp_specialized,
    s07_promoted,
    s08_persistent,
    s10_grouped,
    s11_overlapped,
    s12_swapped,
    stage_named,
)
from minigemm.layout import ceil_div

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
# Two consumers, which drift apart; more steps along k than slots; from s08 on more than one tile a CTA.
CASES = {
    "s04_wgmma": (128, 64, 384, s04_wgmma.Config(128, 64)),
    "s05_pipelined": (64, 64, 640, s05_pipelined.Config(64, 64, 3)),
    "s06_warp_specialized": (128, 64, 640, s06_warp_specialized.Config(128, 64, 3, 2)),
    "s08_persistent": (256, 64, 384, s08_persistent.Config(128, 64, 3, 2, ctas=1)),
    "s10_grouped": (256, 64, 384, s10_grouped.Config(128, 64, 3, 2, ctas=1)),
    "s11_overlapped": (256, 64, 384, s11_overlapped.Config(128, 64, 3, 2, ctas=1)),
    "s12_swapped": (32, 128, 640, s12_swapped.Config(16, 128, 2, 2, blocks=2, ctas=1)),
}


OTHERS = {
    "s03_tma": (64, 64, 384, s03_tma.Config()),
    "s07_promoted": (128, 64, 640, s07_promoted.Config(128, 64, 3, 2)),
}


def operands(name, m, n, k, device="cpu"):
    stage = stage_named(name).stage
    a = quantize.quantize(quantize.activations(m, k, device=device), stage.granularities[0])
    return stage, a, quantize.quantize(quantize.weights(n, k, device=device), stage.granularities[1])


@pytest.fixture(scope="module")
def traced():
    """Each case once: the stage, its operands, its config and the trace."""
    made = {}

    def of(name):
        if name not in made:
            m, n, k, config = {**CASES, **OTHERS}[name]
            stage, a, b = operands(name, m, n, k)
            made[name] = stage, a, b, config, tracing.run(stage, a, b, config)
        return made[name]

    return of


def kinds(line, *agents):
    """How often each thing is waited for, or done, by these agents."""
    return Counter(
        i.what.split(" ")[0] for i in line.intervals if i.agent in agents and i.what != "instructions"
    )


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_the_same_bits(traced, name):
    stage, a, b, config, found = traced(name)
    with observe(hazards=False):
        assert torch.equal(found.d, stage.gemm(a, b, config))


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_each_wait_of_the_model_is_a_wait_of_the_trace(traced, name):
    *_, found = traced(name)
    model, line = found.report.timeline, found.timeline
    assert line.agents == model.agents
    assert line.unit == model.unit == "cycles"
    assert line.source == "model"
    assert line.rates == model.rates
    assert line.about["lost"] == 0
    # the trace's time begins with its first record, a few instructions into the kernel
    shift = min(i.end for i in model.intervals if i.what == "barrier 0") - min(
        i.end for i in line.intervals if i.what == "barrier 0"
    )
    assert 0 < shift < 60
    for agent in line.agents[:-2]:
        spans = [i for i in line.intervals if i.agent == agent and i.state == "waiting"]
        waits = [
            i
            for i in model.intervals
            if i.agent == agent and i.state == "waiting" and not i.what.startswith("the other")
        ]
        assert waits or (name, agent) == ("s11_overlapped", "warp 11")  # which has no role
        for wait in waits:
            same = [i for i in spans if i.what == wait.what]
            around = [
                i for i in same if i.start + shift <= wait.start + 12 and wait.end <= i.end + shift + 12
            ]
            assert len(around) == 1, (wait, around)
            assert wait.line.endswith(around[0].line) or f"{around[0].line}, called at" in wait.line


@pytest.mark.parametrize("name", CASES)
def test_what_is_counted(traced, name):
    *_, config, found = traced(name)
    model, line = found.report.timeline, found.timeline
    assert kinds(line, "TMA") == kinds(model, "TMA") and kinds(line, "TMA")["store"] > 0
    of_model, of_trace = (sorted(i.what for i in one.intervals if i.agent == "TMA") for one in (model, line))
    assert of_model == of_trace  # bytes and places too
    (m, _, k, _), blocks = CASES[name], getattr(config, "blocks", 1)
    steps, tiles = k // 128, m // config.block_m
    rows = config.block_n if name == "s12_swapped" else config.block_m  # of the instruction
    groups = rows // 64 * steps * tiles
    assert line.about["events"]["product groups"] == groups
    assert kinds(line, "tensor core") == {"warpgroup": groups}
    if name >= "s06":
        # A warp of s10 and s11 tells the others of each part, and of the end. The loader of s11 and all roles
        # of s12 count the tiles of a dense product.
        slots = ceil_div(steps, blocks) * tiles
        told = (name in ("s10_grouped", "s11_overlapped")) * (tiles + 1)
        for warp in range(8):
            assert kinds(line, f"warp {warp}")["mbarrier"] == slots + told
            assert kinds(line, f"warp {warp}")["WGMMA"] == steps * tiles + (name == "s06_warp_specialized")
        assert kinds(line, "warp 8")["mbarrier"] == slots + (name == "s10_grouped") * told
        assert line.about["events"]["arrivals"] >= 8 * (slots - 1) + (1 + 9) * told
        others = [{"barrier": 1, "mbarrier": told}, {"barrier": 1}, {"barrier": 1}]
        if name >= "s11":  # warp 10 brings the scales of b, and warp 11 has no role
            others = [{"barrier": 1, "mbarrier": told}, {"barrier": 1, "mbarrier": slots + told}, {}]
        own = Counter(setmaxnreg=name != "s12_swapped")
        for warp, what in zip((9, 10, 11), others, strict=True):
            assert kinds(line, f"warp {warp}") == own + Counter(what)
        assert len(line.about["filled"]) == config.stages


@pytest.mark.parametrize("name", CASES)
def test_spans_are_in_order(traced, name):
    *_, found = traced(name)
    line = found.timeline
    for agent in line.agents[:-1]:
        mine = [i for i in line.intervals if i.agent == agent]
        assert mine and all(i.start < i.end for i in mine if i.state == "busy")
        assert all(x.end <= y.start + 1e-6 for x, y in pairwise(mine)), agent
        if agent.startswith("warp"):  # without a gap from its begin to its end
            assert all(x.end == y.start for x, y in pairwise(mine)), agent
    assert min(i.start for i in line.intervals) == 0
    assert line.share("busy", "tensor core") == pytest.approx(
        found.report.timeline.share("busy", "tensor core"), abs=0.1
    )


def test_it_is_data_and_a_picture(traced):
    *_, found = traced("s06_warp_specialized")
    line = found.timeline
    assert Timeline.from_dict(json.loads(json.dumps(line.to_dict()))).to_dict() == line.to_dict()
    own, model = views.timeline(line), views.timeline(found.report)
    rows = [
        [label.get_text() for label in picture.figure.axes[0].get_yticklabels()] for picture in (own, model)
    ]
    assert rows[0] == rows[1]
    assert "a tile that TMA brings" in own.text and "an arrival on an mbarrier" in own.text
    assert "not a measurement" in own.figure.axes[0].get_xlabel()


def test_overhead(traced):
    stage, a, b, config, _ = traced("s06_warp_specialized")
    cost = tracing.overhead(stage, a, b, config)
    assert cost.same_bits and cost.unit == "cycles" and 1 < cost.slowdown < 1.3


def test_a_reader_s_own_version(traced, tmp_path):
    stage, a, b, config, _ = traced("s06_warp_specialized")
    mine = tmp_path / "mine.cu"
    mine.write_text(stage.source.read_text().replace("wgmma_wait_group<1>();", "wgmma_wait_group<0>();"))
    line = tracing.trace(stage, a, b, config, source=mine)
    assert {i.line.split(":")[0] for i in line.intervals if i.state == "waiting"} == {"mine.cu"}
    waits = next(
        n for n, text in enumerate(mine.read_text().splitlines(), 1) if "wgmma_wait_group<0>" in text
    )
    assert f"mine.cu:{waits}" in {i.line for i in line.intervals if i.what == "WGMMA"}
    other = tmp_path / "other.cu"
    other.write_text('extern "C" __global__ void s06_warp_specialized() {}')
    with pytest.raises(ValueError, match="expected a kernel that includes ptx.cuh"):
        tracing.trace(stage, a, b, config, source=other)
    other.write_text(
        '#include "ptx.cuh"\n// void s06_warp_specialized(int) {\nextern "C" __global__ void another() {}'
    )
    with pytest.raises(ValueError, match="expected extern"):
        tracing.trace(stage, a, b, config, source=other)


def test_a_kernel_s_first_brace():
    head = 'extern "C" __global__ void __launch_bounds__(128, 1) k(int a /* ) { */, // (m, k) {'
    text = head + "\n  int b) {\n  return;\n}\n"
    assert trace_build._guarded(text, "k", jit.HEADERS).split("\n")[1] == "  int b) { TraceWarp trace_warp;"


@pytest.mark.parametrize("changes, message", [
    ({"cta": 1}, "cta: expected 0, whose clocks the emulator's model has, got 1"),
    ({"records": 4}, "records: expected room for at least 8"),
    ({"config": s06_warp_specialized.Config(64, 144, 8, 1)}, "config: a trace needs 64 bytes .* take fewer stages"),
])  # fmt: skip
def test_bad_input(changes, message):
    stage, a, b = operands("s06_warp_specialized", 64, 64, 128)
    with pytest.raises(ValueError, match=message):
        tracing.run(stage, a, b, **changes)


def test_stages_that_have_nothing_to_trace():
    stage, a, b = operands("s01_naive", 16, 16, 16)
    assert stage is s01_naive.stage
    with pytest.raises(
        ValueError, match="stage: expected one whose warps wait for each other, from s03_tma on"
    ):
        tracing.trace(stage, a, b)
    stage, a, b = operands("s06_warp_specialized", 0, 16, 16)
    with pytest.raises(ValueError, match="expected a product with elements to trace, got m=0"):
        tracing.trace(stage, a, b)


def test_a_cluster_is_not_traced():
    stage, a, b = operands("s06_warp_specialized", 128, 64, 128)
    both = replace(stage, launch=lambda *given: replace(stage.launch(*given), cluster=(2, 1, 1)))
    with pytest.raises(
        ValueError,
        match="stage: expected one without clusters, whose CTAs copy for each other, got s06_warp_specialized",
    ):
        tracing.trace(both, a, b)


def test_what_finds_no_room_is_counted():
    stage, a, b = operands("s06_warp_specialized", 64, 64, 640)
    whole = tracing.run(stage, a, b, s06_warp_specialized.Config(64, 64, 2, 1))
    short = tracing.run(stage, a, b, s06_warp_specialized.Config(64, 64, 2, 1), records=16)
    assert whole.timeline.about["lost"] == 0 < short.timeline.about["lost"]
    assert short.timeline.end == pytest.approx(whole.timeline.end, rel=0.01) and torch.equal(whole.d, short.d)


def rows(room, *records):
    """One warp's records: kind, begin, second, argument, line."""
    made = np.zeros((room, 4), np.uint32)
    for at, (kind, begin, second, argument, line) in enumerate(records):
        made[room - 1 if kind == Record.END else at] = (
            begin % 2**32,
            second % 2**32,
            kind | line << 8,
            argument,
        )
    return made


def test_records_by_hand():
    """The clock passes 2**32 in the middle; a load is seen late; one group is done before it is asked for."""
    t, zero = Record, 2**32 - 50
    first = rows(
        16,
        (t.START, zero, 7, 0, 0),
        (t.MBARRIER, zero + 10, zero + 60, 0x8400, 11),
        (t.ISSUE, zero + 62, 0, 0, 12),
        (t.COMMIT, zero + 64, 0, 0, 13),
        (t.PRODUCTS, zero + 64, zero + 164, 0, 14),
        (t.STORE, zero + 170, 0, 0x400, 15),
        (t.STORE_COMMIT, zero + 171, 0, 0, 16),
        (t.STORES, zero + 180, zero + 190, 0, 17),
        (t.END, zero + 200, 0, 8, 0),
    )
    second = rows(
        16,
        (t.START, zero - 2, 7, 0, 0),
        (t.EXPECT, zero, 4096, 0x8400, 20),
        (t.LOAD, zero + 2, 4096, 0x400 >> 4 | 0x8400 >> 3 << 16, 21),
        (t.ISSUE, zero + 10, 0, 0, 22),
        (t.COMMIT, zero + 12, 0, 0, 23),
        (t.PRODUCTS, zero + 120, zero + 121, 0, 24),
        (t.END, zero + 130, 0, 6, 0),
    )
    nothing = rows(16, (t.START, zero, 7, 0, 0), (t.END, zero + 5, 0, 1, 0))
    line = trace_records.decode(
        np.stack([first, nothing, nothing, nothing, second]),
        ["k.cu"],
        store_bytes=64,
        scale=0.5,
        products=2 * 4096 * 40,
    )
    units = [i for i in line.intervals if i.agent in ("tensor core", "TMA")]
    assert [(i.agent, i.start, i.end, i.what, i.line) for i in units] == [
        ("TMA", 2, 31, "load 4096 bytes to 0x400", "k.cu:21"),
        # 40 cycles are enough for this group, and it is asked for 100 later.
        ("tensor core", 6, 26, "warpgroup 1", "k.cu:22"),
        ("tensor core", 32, 83, "warpgroup 0", "k.cu:12"),
        ("TMA", 86, 96, "store 64 bytes from 0x400", "k.cu:15"),
    ]
    assert [(i.start, i.end, i.what) for i in line.intervals if i.agent == "warp 0"] == [
        (1, 6, "instructions"),
        (6, 31, "mbarrier 0x8400"),
        (31, 33, "instructions"),
        (33, 83, "WGMMA"),
        (83, 91, "instructions"),
        (91, 96, "TMA store"),
        (96, 101, "instructions"),
    ]
    assert line.about["sm"] == 7 and line.about["filled"] == ["mbarrier 0x8400"]
    with pytest.raises(ValueError, match="the traced CTA did not run"):
        trace_records.decode(np.zeros((4, 16, 4), np.uint32), ["k.cu"])


def test_the_length_of_a_cycle():
    times = np.array([[1000, 0, 11000, 17000], [1000, 50, 21000, 34050], [0, 0, 0, 0]])
    assert tracing._ns_a_cycle(times, None) == pytest.approx(30000 / 51000)
    assert tracing._ns_a_cycle(times[2:], None) == pytest.approx(1 / 1.755)


def test_variables_of_a_module(tmp_path):
    source = tmp_path / "v.cu"
    source.write_text(
        "__constant__ int* to; __device__ int number = 3;\n"
        'extern "C" __global__ void k(int* also) { *to = number; *also = 1; }'
    )
    ptx = jit.build(source, s04_wgmma.Config(), name="k", symbol="k").ptx
    to, also = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    emulator.launch(ptx, 1, 1, (also,), variables={"to": to})
    assert to.item() == 3 and also.item() == 1
    emulator.launch(ptx, 1, 1, (also,), variables={"to": to, "number": 5})
    assert to.item() == 5
    with pytest.raises(ValueError, match="variables: the module has .*number, to, got other"):
        emulator.launch(ptx, 1, 1, (also,), variables={"other": 1})
    with pytest.raises(TypeError, match=r"variables\['number'\]: the variable has 4 bytes, got Tensor of 8"):
        emulator.launch(ptx, 1, 1, (also,), variables={"to": to, "number": to})


def measured(stage="s06_warp_specialized"):
    wait = Interval("warp 0", 0, 10, "waiting", "mbarrier 0x8400", "x.cu:1")
    what = {"stage": stage, "m": 1, "n": 2, "k": 16, "cta": 0, "filled": ["mbarrier 0x8400"]}
    where = {"gpu": "NVIDIA H100", "date": "2030-01-01"}
    return Timeline("ns", "measured", ["warp 0", "tensor core", "TMA"], [wait], about={**what, **where})


def test_recorded_ones_are_drawn(tmp_path):
    assert (
        views.recorded_timeline("s06_warp_specialized", folder=tmp_path).text
        == "No measured timeline is recorded for s06_warp_specialized yet."
    )
    tmp_path.joinpath("h100_timeline_s06.json").write_text(json.dumps(measured().to_dict()))
    picture = views.recorded_timeline("s06_warp_specialized", folder=tmp_path)
    assert "s06_warp_specialized, 1 x 2 x 16, CTA 0: 10 ns" in picture.text
    assert "a tile that TMA brings 100%" in picture.text
    assert picture.figure.axes[0].get_xlabel() == "ns, measured on NVIDIA H100, 2030-01-01"
    assert "No measured" in views.recorded_timeline("s08_persistent", folder=tmp_path).text


@NO_GPU
def test_the_command(capsys, tmp_path):
    file, picture = tmp_path / "t.json", tmp_path / "t.png"
    assert (
        cli.main(
            [
                "trace",
                "s06_warp_specialized",
                "--problem",
                "64x64x256",
                "--json",
                str(file),
                "--plot",
                str(picture),
                "--overhead",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert re.search(
        r"s06_warp_specialized, 64 x 64 x 256, CTA 0: [\d,]+ cycles, by the emulator's model, not a measurement",
        said,
    )
    assert "loads 4" in said and "gives the same bits" in said
    line = Timeline.from_dict(json.loads(file.read_text()))
    assert line.source == "model"
    assert line.about["overhead"]["same_bits"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["trace", "6", "--problem", "64x64x128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["about"]["k"] == 128


@pytest.mark.parametrize("arguments, words", [
    (["s99"], "stage: expected one of"),
    (["1", "--problem", "16x16x16"], "from s03_tma on, got s01_naive"),
    (["6", "--problem", "64x64"], "problem: expected MxNxK, .* got '64x64'"),
    (["6", "--problem", "64x64x0"], "problem: expected MxNxK"),
    (["6", "--problem", "64x64x24"], "multiple of 16, got 24"),
    (["6", "--problem", "64x64x64", "--cta", "-1"], "cta: expected 0"),
    (["6", "--json", "/no/such/folder/x.json"], "there is no folder /no/such/folder for x.json"),
])  # fmt: skip
def test_a_bad_command(arguments, words, capsys):
    assert cli.main(["trace", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_measured_on_a_gpu(name):
    """Of several CTAs, the traced one has the same events as on the emulator; only times differ."""
    m, n, k = 256, 256, 1024
    stage, a, b = operands(name, m, n, k, "cuda")
    found = tracing.run(stage, a, b)
    line = found.timeline
    assert torch.equal(found.d, stage.gemm(a, b))
    assert line.unit == "ns"
    assert line.source == "measured"
    assert "H" in line.about["gpu"]
    assert line.about["lost"] == 0
    assert 0.3 < line.about["clock_ghz"] < 2.2 and line.about["start_ns"] >= 0 and 500 < line.end < 1e6
    for agent in line.agents[:-1]:
        mine = [i for i in line.intervals if i.agent == agent]
        assert all(x.end <= y.start + 1e-6 for x, y in pairwise(mine)), agent
    assert all(i.start <= i.end for i in line.intervals)
    config = stage.default_config(stage.check(a, b))
    cpu = tracing.run(*operands(name, m, n, k), config)
    assert line.about["events"] == cpu.timeline.about["events"]
    assert sorted(i.what for i in line.intervals if i.agent == "TMA") == sorted(
        i.what for i in cpu.timeline.intervals if i.agent == "TMA"
    )
    assert line.about["filled"] == cpu.timeline.about["filled"]
    waits = [
        [
            [i.what for i in one.intervals if i.agent == agent and i.state == "waiting"]
            for agent in line.agents[:-2]
        ]
        for one in (line, cpu.timeline)
    ]
    assert waits[0] == waits[1]
    last = tracing.trace(stage, a, b, cta=line.about["ctas"] - 1)
    assert last.about["cta"] == line.about["ctas"] - 1 and last.intervals
    with pytest.raises(ValueError, match=f"cta: expected 0 to {line.about['ctas'] - 1}, got 9999"):
        tracing.trace(stage, a, b, cta=9999)


@pytest.mark.gpu
def test_overhead_on_a_gpu():
    stage, a, b = operands("s08_persistent", 4096, 4096, 2048, "cuda")
    cost = tracing.overhead(stage, a, b)
    assert cost.same_bits and cost.unit == "s" and 1 < cost.slowdown < 3
