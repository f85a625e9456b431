"""minigemm beside its peers: workloads, who is missing and why, results, tables, pictures.

Timings are made up where there is no GPU.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

import minigemm
from minigemm import bench, cli, hopper, quantize, views
from minigemm.bench import (
    cases,
    choice,
    comparison,
    dependent,
    host_overhead,
    ideas,
    multicast,
    peers,
    quantizing,
    report,
    timing,
    tune,
    workloads,
)
from minigemm.bench.failures import Lost
from minigemm.bench.peers import PEERS, MiniGemm, Missing, Peer
from minigemm.bench.peers.cublas import CublasLtBlocks
from minigemm.bench.peers.cutlass import Cutlass
from minigemm.bench.peers.deep_gemm import DeepGemm
from minigemm.bench.peers.minigemm import BatchInvariant
from minigemm.bench.workloads import Workload, contiguous, dense, masked
from minigemm.plan import choose
from minigemm.types import Layout, Product

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
CPU = torch.device("cpu")
CHIP = replace(hopper.H100, bandwidth=3e12)
MACHINE = {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.1", "cuda": "13.0", "torch": "2.11", "sms": 132}
TINY = (dense(40, 24, 64), contiguous(2, 20, 24, 64), masked(2, 20, 24, 64))


class Stand(Peer):
    """A peer that a test makes: it computes what minigemm does, unless it does something else."""

    name, what, layouts = "stand", "a stand-in", tuple(workloads.LAYOUTS.values())

    def __init__(self, name="stand", does=None, **fields):
        self.name, self.does = name, does
        vars(self).update(fields)

    def version(self):
        return "1"

    def prepare(self, case):
        return self.does or MiniGemm().prepare(case)


@pytest.fixture
def on_cpu(monkeypatch):
    """Let compare() run on the emulator, with made-up times: a call's number in microseconds."""

    def seconds(calls, device, rounds):
        for call in calls.values():
            call()
        filled = {
            name: [(number + 1) * 1e-6 * (1 + 0.1 * turn) for turn in range(rounds)]
            for number, name in enumerate(calls)
        }
        return {"fill": filled, "read": {name: [t / 2 for t in times] for name, times in filled.items()}}

    monkeypatch.setattr(comparison, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(comparison, "identity", lambda device: MACHINE)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(comparison, "copy_bandwidth", lambda device: CHIP.bandwidth)
    monkeypatch.setattr(comparison, "seconds_by_flush", seconds)
    monkeypatch.setattr(comparison, "check_alive", lambda *arguments: None)
    monkeypatch.setattr(cases, "Cases", lambda shapes, device, made=cases.Cases: made(shapes, CPU))
    monkeypatch.setattr(
        MiniGemm, "config", lambda self, shape, device, config=MiniGemm.config: config(self, shape, CPU)
    )


# --- shapes


def test_the_quick_set():
    """18 layers, and groups of rows as other libraries were timed with."""
    assert len(workloads.QUICK) == len(set(workloads.QUICK)) == 28
    by_layout = {
        layout: [each for each in workloads.QUICK if each.product.layout is layout]
        for layout in workloads.LAYOUTS.values()
    }
    assert [len(found) for found in by_layout.values()] == [18, 4, 6]
    first = by_layout[Layout.DENSE][0]
    assert first == dense(64, 2112, 7168) and first.product == Product(64, 2112, 7168)

    grouped = [each for each in workloads.QUICK if each.product.layout is not Layout.DENSE]
    counts = {(each.product.layout, each.product.groups, each.expected_m): each.counts for each in grouped}
    assert counts == {
        (Layout.CONTIGUOUS, 4, 8192): (8205, 10639, 6017, 9416),
        (Layout.CONTIGUOUS, 8, 4096): (4102, 5319, 3008, 4708, 4549, 4372, 4015, 4439),
        (Layout.MASKED, 1, 1024): (1206,),
        (Layout.MASKED, 2, 512): (603, 506),
        (Layout.MASKED, 4, 256): (301, 253, 239, 306),
    }
    assert [each.rows for each in by_layout[Layout.CONTIGUOUS]] == [34688, 34688, 35072, 35072]
    assert {each.rows for each in by_layout[Layout.MASKED]} == {4096, 8192, 16384}


def test_the_product_is_the_one_of_the_call():
    """m counts all rows of contiguous groups, padding included, or the rows of a masked group's buffer."""
    assert contiguous(2, 20, 24, 64).product == Product(256, 24, 64, Layout.CONTIGUOUS, 2)
    assert masked(2, 20, 24, 64).product == Product(4096, 24, 64, Layout.MASKED, 2, expected_m=20)
    assert masked(1, 5000, 24, 64).product.m == 6016  # 5,890 rows, padded to 128
    assert Workload.of(Layout.DENSE, 40, 24, 64, [40]) == dense(40, 24, 64)
    assert masked(2, 20, 24, 64).sizes() == {"layout": "masked", "groups": 2, "m": 20, "n": 24, "k": 64}


def test_parsing():
    assert (
        workloads.parse("64x2112x7168") == workloads.parse("64x2112x7168", "dense") == dense(64, 2112, 7168)
    )
    assert workloads.parse("4x8192x4096x7168", "contiguous") == contiguous(4, 8192, 4096, 7168)
    assert workloads.parse("1x1x16x16", "masked") == masked(1, 1, 16, 16)
    assert [str(shape) for shape in TINY] == ["40x24x64", "2x20x24x64", "2x20x24x64"]


@pytest.mark.parametrize("text, layout, words", [
    ("64x2112", None, "shape: expected MxNxK .* got '64x2112'"),
    ("4x64x2112x7168", None, "GROUPSxMxNxK with --layout .* got '4x64x2112x7168'"),
    ("64x2112x7168", "masked", "expected GROUPSxMxNxK for the layout masked, got '64x2112x7168'"),
    ("0x2112x7168", None, "sizes of at least 1 and a K that is a multiple of 16, got '0x2112x7168'"),
    ("64x2112x7160", None, "a multiple of 16, got '64x2112x7160'"),
    ("-1x2112x7168", None, "got '-1x2112x7168'"),
    ("axbxc", None, "got 'axbxc'"),
    ("1x1x16", "sparse", "layout: expected one of dense, contiguous, masked, got 'sparse'"),
])  # fmt: skip
def test_bad_shapes(text, layout, words, capsys):
    with pytest.raises(ValueError, match=words):
        workloads.parse(text, layout)
    if layout is None:
        assert cli.main(["bench", f"--shape={text}"]) == 2
        assert repr(text) in capsys.readouterr().err


def test_the_floor_counts_what_must_move():
    shape = dense(64, 2112, 7168)
    moved = 64 * (7168 + 4 * 56) + 2112 * 7168 + 4 * 17 * 56 + 2 * 64 * 2112
    assert shape.bytes == moved and shape.operations == 2 * 64 * 2112 * 7168
    assert shape.floor(3e12, 2e15) == moved / 3e12 and shape.floor(3e15, 2e12) == shape.operations / 2e12
    group = masked(1, 1024, 4096, 7168)
    assert group.operations == 2 * 1206 * 4096 * 7168 and group.bytes < contiguous(1, 1206, 4096, 7168).bytes
    row = comparison.row_of(shape, {"fill": {"minigemm": [2e-5, 1e-5, 3e-5]}}, CHIP)
    assert row["floor_by"] == "bytes" and row["timed"]["minigemm"]["median_us"] == pytest.approx(20)
    assert row["timed"]["minigemm"]["floor_share"] == pytest.approx(moved / 3e12 / 2e-5)
    assert comparison.row_of(dense(4096, 4096, 7168), {}, CHIP)["floor_by"] == "operations"


# --- operands


@pytest.mark.parametrize("shape", TINY, ids=lambda shape: str(shape.product.layout))
def test_a_case_knows_right_from_wrong(shape):
    case = cases.make(shape, CPU)
    d = MiniGemm().prepare(case)()
    assert case.error(d) < 3e-3
    assert math.isnan(case.error(case.empty())) and not case.error(case.empty()) <= 1
    assert case.error(d * 1.02) > 5e-3
    assert torch.equal(case.a.view(torch.uint8), cases.make(shape, CPU).a.view(torch.uint8))
    if shape.product.layout is Layout.DENSE:
        a, b = case.tensor_scaled
        assert case.error(quantize.reference(a, b), "tensor") == 0
    else:
        with pytest.raises(ValueError, match="no product with one scale"):
            case.error(d, "tensor")


# --- peers


def test_peers_say_what_they_cannot_do():
    by_name = {kind.name: kind() for kind in PEERS}
    assert next(iter(by_name)) == "minigemm" and len(by_name) == len(PEERS) == 9
    for name, peer in by_name.items():
        assert peer.what and not peer.refuses(dense(64, 2048, 1024)), name
    assert by_name["torchao"].refuses(TINY[1]) == "no contiguous layout"
    assert (
        by_name["deep_gemm"].refuses(dense(64, 100, 1040))
        == "needs n a multiple of 64 and k a multiple of 128"
    )
    assert by_name["cublaslt_blocks"].refuses(dense(63, 2048, 1024)) == "needs m a multiple of 4"
    with pytest.raises(ValueError, match="peer: expected one of minigemm, batch_invariant, .* got 'cublas'"):
        peers.named(["cublas"])
    assert [peer.name for peer in peers.named(["triton", "cutlass"])] == ["minigemm", "triton", "cutlass"]


def test_batch_invariance_is_a_peer_whose_setting_ends_with_its_call(monkeypatch):
    case = cases.make(TINY[0], torch.device("cpu"))
    seen = []
    monkeypatch.setattr(
        peers.MiniGemm,
        "prepare",
        lambda self, case: lambda: seen.append(minigemm.get_batch_invariant()) or case.empty(),
    )
    call = BatchInvariant().prepare(case)
    call()
    assert seen == [True] and minigemm.get_batch_invariant() is False


def test_minigemms_own_deep_gemm_is_none(monkeypatch):
    from minigemm.compat import deep_gemm

    monkeypatch.setitem(sys.modules, "deep_gemm", deep_gemm)
    with pytest.raises(Missing, match="is minigemm.compat.deep_gemm"):
        DeepGemm().version()


@pytest.mark.parametrize("names", [
    ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous", "m_grouped_fp8_gemm_nt_masked"),
    ("gemm_fp8_fp8_bf16_nt", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_masked"),
], ids=["second", "first"])  # fmt: skip
def test_either_generation_of_deep_gemm(monkeypatch, names):
    """A stand-in that has its names, its argument order, and minigemm's results."""
    from minigemm import api

    module = ModuleType("deep_gemm")
    module.__version__ = "9.9"
    for name, call in zip(
        names,
        (api.fp8_gemm_nt, api.m_grouped_fp8_gemm_nt_contiguous, api.m_grouped_fp8_gemm_nt_masked),
        strict=True,
    ):
        setattr(module, name, call)
    monkeypatch.setitem(sys.modules, "deep_gemm", module)
    peer = DeepGemm()
    assert peer.version() == "9.9, fp8_gemm_nt"
    for shape in TINY:
        case = cases.make(shape, CPU)
        assert case.error(peer.prepare(case)()) < 3e-3
    monkeypatch.setitem(sys.modules, "deep_gemm", ModuleType("deep_gemm"))
    with pytest.raises(Missing, match="neither"):
        DeepGemm().version()


def test_scales_as_cublaslt_wants_them(monkeypatch):
    """float32, a column at a time, padded: checked against a product made from what the call gets."""
    got = {}

    def scaled_mm(a, b, sfa, kind_a, sfb, kind_b, output_dtype):
        got.update(sfa=sfa, sfb=sfb, b=b)
        return torch.zeros(a.shape[0], b.shape[1], dtype=output_dtype)

    monkeypatch.setattr(torch.nn.functional, "scaled_mm", scaled_mm, raising=False)
    monkeypatch.setattr(
        torch.nn.functional,
        "ScalingType",
        SimpleNamespace(BlockWise1x128=4, BlockWise128x128=5),
        raising=False,
    )
    case = cases.make(dense(64, 256, 640), CPU)
    assert CublasLtBlocks().prepare(case)().shape == (64, 256)
    assert got["sfa"].shape == (64, 5) and got["sfa"].stride() == (1, 64) and got["b"].stride() == (1, 640)
    assert got["sfb"].shape == (8, 2)
    assert got["sfb"].stride() == (1, 8)
    assert torch.equal(got["sfb"][:5], case.sfb.T)


def test_cutlass_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(Missing, match="needs nvcc"):
        Cutlass().version()
    fake = tmp_path / "nvcc"
    fake.write_text("#!/bin/sh\necho 'cutlass_gemm.cu(3): error: no such thing' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("CUTLASS_PATH", raising=False)
    with pytest.raises(Missing, match="needs CUTLASS's headers"):
        Cutlass().version()
    (tmp_path / "include" / "cutlass").mkdir(parents=True)
    (tmp_path / "include" / "cutlass" / "cutlass.h").touch()
    monkeypatch.setenv("CUTLASS_PATH", str(tmp_path))
    with pytest.raises(Missing, match="nvcc could not compile it: cutlass_gemm.cu.3.: error: no such thing"):
        Cutlass().version()


# --- timing


def test_kernels_are_shared_out_by_flushes():
    """A call may have any number of kernels; small fills, memsets and copies inside it are not counted."""
    flush = (
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<unsigned char>>",
        9e-5,
    )
    one, two = ("gemm", 5e-6), ("reduce", 1e-6)
    a_round = [flush, ("Memset (Device)", 2e-6), one, two, flush, one]
    work = [("gemm", 1.0)] + a_round * (3 + timing.WARM_UP)  # what ran before the first flush is nobody's
    found = timing.shared_out(work, ["first", "second"], 3)
    assert found == {"first": [pytest.approx(6e-6)] * 3, "second": [5e-6] * 3}
    with pytest.raises(RuntimeError, match="saw 10 flushes of 6 x 2"):
        timing.shared_out(work, ["first", "second"], 4)
    with pytest.raises(RuntimeError, match="saw no kernel of first"):
        timing.shared_out([flush] * 3, ["first"], 1)


def test_a_read_is_a_flush_too():
    """It is known by its name; a call's own reductions belong to the call, however long they take."""
    fill, read = ("Memset (Device)", 8e-5), (timing.READER, 7e-5)
    reduction = ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<int>>", 9e-5)
    a_round = [fill, ("gemm", 5e-6), reduction, read, ("gemm", 4e-6), ("Memcpy DtoD", 1e-3), reduction]
    found = timing.shared_out(a_round * (2 + timing.WARM_UP), ["after a fill", "after a read"], 2)
    assert found == {"after a fill": [pytest.approx(95e-6)] * 2, "after a read": [pytest.approx(94e-6)] * 2}
    with pytest.raises(RuntimeError, match="saw no kernel of gemm after a read"):
        timing.shared_out([fill, ("gemm", 5e-6), read] * 3, ["gemm after a fill", "gemm after a read"], 1)


def test_the_reader_reads_everything(monkeypatch):
    """Zeros leave no trace, and a single bit anywhere leaves one: so every vector is read."""
    monkeypatch.setattr(timing, "READER_CTAS", 2)
    buffer, seen = torch.zeros(3000 * 16, dtype=torch.uint8), torch.zeros(1, dtype=torch.int32)
    read = timing.reader(buffer, seen)
    read()
    assert seen.item() == 0
    for byte in (0, 16 * 511 + 5, 16 * 2999 + 15):
        buffer.zero_()[byte] = 1
        seen.zero_()
        read()
        assert seen.item() == 1 << 8 * (byte % 4), byte


# --- results


def test_a_comparison(on_cpu, capsys, tmp_path):
    """All layouts by the emulator: everything is checked, what is wrong or fails is named and not timed."""

    def fail():
        raise RuntimeError("no kernel image\nis available")

    wrong = Stand("wrong", lambda: torch.zeros(40, 24), layouts=(Layout.DENSE,))
    lacking = Stand("lacking")
    lacking.version = lambda: (_ for _ in ()).throw(Missing("needs a licence"))
    absent = Stand("absent")
    absent.version = lambda: __import__("nothing_of_that_name")
    stored = []
    dense_only = Stand("dense_only", layouts=(Layout.DENSE,))
    stands = [MiniGemm(), Stand(), wrong, Stand("failing", fail), lacking, absent, dense_only]
    results = comparison.compare(
        TINY, stands, rounds=3, store=lambda found: stored.append(len(found["rows"]))
    )
    assert stored == [1, 2, 3]
    assert results["skipped"] == {
        "lacking": "needs a licence",
        "absent": "nothing_of_that_name is not installed",
    }
    assert list(results["peers"]) == ["minigemm", "stand", "wrong", "failing", "dense_only"]
    assert [row["layout"] for row in results["rows"]] == ["dense", "contiguous", "masked"]
    first, second, _ = results["rows"]
    assert list(first["timed"]) == ["minigemm", "stand", "dense_only"]
    assert first["skipped"]["wrong"].startswith("wrong: relative error 1.0e+00")
    assert first["skipped"]["failing"] == "failed: RuntimeError: no kernel image"
    assert second["skipped"]["dense_only"] == "no contiguous layout"
    for row in results["rows"]:
        assert {"BLOCK_M", "BLOCK_N", "STAGES"} <= row["config"].keys()
        assert row["config"]["STAGE"] in ("s11_overlapped", "s12_swapped")
        for number, timed in enumerate(row["timed"].values()):
            assert timed["median_us"] == pytest.approx(1.1 * (number + 1))
            assert timed["fastest_us"] == pytest.approx(number + 1)
            assert timed["rel_err"] < 3e-3
            assert timed["tflops"] == pytest.approx(row["operations"] / timed["median_us"] / 1e6)
        assert timed["read"]["median_us"] == pytest.approx(timed["median_us"] / 2)
        assert row["rounds"] == 3 and row["checked_columns"] == row["n"] and row["took_s"] >= 0
    for flush in ("fill", "read"):
        means = {name: found["dense"]["mean"] for name, found in results["summary"][flush].items()}
        assert means == {"stand": pytest.approx(2), "dense_only": pytest.approx(3)}
    json.dumps(results, allow_nan=False)
    report.show(results)
    printed = capsys.readouterr().out
    for words in (
        "40x24x64",
        "2x20x24x64 masked",
        "not timed: lacking: needs a licence",
        "wrong",
        "no kernel image",
        "1.10 / 0.55",
        "time of stand over minigemm's after a read, mean: dense 2.000",
    ):
        assert words in printed
    picture = report.plot(results)
    picture.save(tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    assert "40x24x64: minigemm" in picture.text
    with pytest.raises(ValueError, match="at least one timed shape"):
        report.plot({**results, "rows": []})


def test_times_that_cannot_be_had_together(on_cpu, monkeypatch):
    """Each is timed alone then, and whoever cannot be timed at all is named."""

    def seconds(calls, device, rounds):
        if "odd" in calls:
            raise RuntimeError("the profiler saw no kernel")
        return {flush: {name: [1e-6] * rounds for name in calls} for flush in timing.FLUSHES}

    monkeypatch.setattr(comparison, "seconds_by_flush", seconds)
    (row,) = comparison.compare(TINY[:1], [MiniGemm(), Stand("odd")], rounds=2)["rows"]
    assert row["alone"] and row["timed"]["minigemm"]["read"]["median_us"] == pytest.approx(1)
    assert list(row["timed"]) == ["minigemm"]
    assert row["skipped"] == {"odd": "could not be timed: RuntimeError: the profiler saw no kernel"}


def test_a_lost_gpu_ends_the_run_and_keeps_what_there_is(on_cpu, monkeypatch, capsys):
    def gone(device, what, error):
        raise Lost(f"{what} left the GPU unusable")

    calls = iter([None, RuntimeError("illegal memory access")])

    def sometimes(case):
        if error := next(calls):
            raise error
        return MiniGemm().prepare(case)

    breaking = Stand("breaking")
    breaking.prepare = sometimes
    monkeypatch.setattr(comparison, "check_alive", gone)
    results = comparison.compare(TINY, [MiniGemm(), breaking], rounds=1)
    assert len(results["rows"]) == 1 and results["lost"] == "breaking at 2x20x24x64 left the GPU unusable"
    report.show(results)
    assert "stopped: breaking at 2x20x24x64" in capsys.readouterr().out


# --- commands


@NO_GPU
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--peers"],
        ["--host"],
        ["--shape", "64x64x64", "--rounds", "3"],
        ["--layout", "masked"],
        ["--ladder"],
        ["--multicast"],
        ["--pdl"],
        ["--choice"],
        ["--ideas"],
        ["--quantize"],
    ],
)
def test_without_a_gpu(arguments, capsys):
    assert cli.main(["bench", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("minigemm: bench") and "needs a Hopper GPU" in line


@pytest.mark.parametrize("arguments, words", [
    (["--peer", "cublas"], "got 'cublas'"),
    (["--rounds", "0"], "rounds: expected at least 1, got 0"),
    (["--results", "/nowhere.json"], "results: expected the JSON of a comparison, got /nowhere.json"),
    (["--part", "3/2"], "part: expected I/P with 1 <= I <= P, such as 1/3, got '3/2'"),
    (["--part", "0/2"], "got '0/2'"),
    (["--part", "half"], "got 'half'"),
    (["--resume"], "resume: expected --json FILE, the file to resume, got none"),
    (["--resume", "--json"], "resume: expected --json FILE, the file to resume, got none"),
    (["--deep-gemm", "/nowhere"], "expected a folder that holds the package deep_gemm, got '/nowhere'"),
    (["--json", "/nowhere/here.json"], "no folder /nowhere for here.json"),
    (["--plot", "/nowhere/here.png"], "no folder /nowhere for here.png"),
])  # fmt: skip
def test_bad_options(arguments, words, capsys):
    assert cli.main(["bench", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_command(on_cpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "PEERS", (MiniGemm, Stand))
    monkeypatch.setattr(
        host_overhead,
        "host_time",
        lambda device: {"m": 64, "n": 128, "k": 256, "calls": 100, "same_us": 3.25},
    )
    file, picture = tmp_path / "all.json", tmp_path / "all.png"
    arguments = [
        "bench",
        "--peers",
        "--host",
        "--shape",
        "40x24x64",
        "--shape",
        "16x32x64",
        "--rounds",
        "2",
        "--json",
        str(file),
        "--plot",
        str(picture),
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "40x24x64" in printed and "the same tensors" in printed and "3.250 us" in printed
    results = json.loads(file.read_text())
    assert [row["m"] for row in results["rows"]] == [40, 16]
    assert results["host"]["same_us"] == 3.25
    assert picture.stat().st_size > 1000
    assert results["machine"]["gpu"] == MACHINE["gpu"]
    assert results["date"]
    assert "median of 2 rounds" in results["protocol"]
    assert cli.main(["bench", "--host", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []
    monkeypatch.setattr(MiniGemm, "tolerance", -1.0)
    assert cli.main(["bench", "--shape", "40x24x64"]) == 1
    assert "minigemm: wrong" in capsys.readouterr().out


def test_host_time_as_text():
    found = {
        "m": 64,
        "n": 128,
        "k": 256,
        "calls": 10000,
        "same_us": 2.5,
        "rotating_us": 3,
        "new_m_us": 40,
        "first_call_cold_s": 1.5,
        "error": "no second",
    }
    text = host_overhead.as_text(found)
    assert "10,000 calls of 64 x 128 x 256" in text
    assert "1.500 s" in text
    assert text.endswith("no second")
    assert len(text.splitlines()) == 6


def test_the_ladder_still_says_what_it_needs():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs a Hopper GPU"):
            bench.ladder()


def test_multicast_beside_s08(monkeypatch, tmp_path, capsys):
    """Every tile runs without clusters and with both kinds, on the emulator; times are made up.

    A gain is against the same tile.
    """
    monkeypatch.setattr(multicast, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(multicast, "identity", lambda device: MACHINE)
    on_the_cpu = SimpleNamespace(
        quantize=quantize.quantize,
        activations=lambda m, k, device: quantize.activations(m, k),
        weights=lambda n, k, device: quantize.weights(n, k),
    )
    monkeypatch.setattr(multicast, "quantize", on_the_cpu)
    monkeypatch.setattr(
        multicast,
        "gpu_seconds",
        lambda calls, device, rounds: {key: [1e-3 if key[0] == "none" else 8e-4] * rounds for key in calls},
    )
    monkeypatch.setattr(multicast, "PRODUCTS", (Product(70, 72, 144),))
    monkeypatch.setattr(multicast, "TILES", ({"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1},))
    file = tmp_path / "multicast.json"
    assert cli.main(["bench", "--multicast", "--json", str(file)]) == 0
    assert "70x72x144" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert [(row["stage"], row["cluster"], round(row["gain"], 6)) for row in found["rows"]] == [
        ("s08_persistent", "none", 0),
        ("s09_multicast", "along m", 0.25),
        ("s09_multicast", "along n", 0.25),
    ]
    assert found["machine"]["gpu"] == MACHINE["gpu"]
    assert [row["config"].get("CLUSTER_N") for row in found["rows"]] == [None, 1, 2]
    assert "980" not in views.recorded_multicast(file).text
    assert "(+25.0%)" in views.recorded_multicast(file).text


def test_chains_of_dependent_products(monkeypatch, tmp_path, capsys):
    """Each setting computes every product of the chain, on the emulator; times are made up."""
    monkeypatch.setattr(dependent, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(dependent, "identity", lambda device: MACHINE)
    row = dependent._row
    monkeypatch.setattr(
        dependent, "_row", lambda m, layers, device, rounds: row(m, layers, torch.device("cpu"), rounds)
    )
    monkeypatch.setattr(dependent, "ROWS", (3,))
    monkeypatch.setattr(dependent, "LAYERS", (((24, 128), (128, 32)),))
    monkeypatch.setattr(dependent, "WEIGHTS", 2 * (24 * 128 + 128 * 32))
    held = []

    def captured(chain, device):
        held.append(choose.settings()[3:5])
        return lambda: [minigemm.fp8_gemm_nt(*each) for each in chain]

    made_up = {"off": 2e-6, "on": 1e-6, "early weights": 5e-7}
    monkeypatch.setattr(dependent, "_captured", captured)
    monkeypatch.setattr(
        dependent, "_timed", lambda replays, *about: {name: [made_up[name]] for name in replays}
    )
    file = tmp_path / "pdl.json"
    assert cli.main(["bench", "--pdl", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "3x24x128 -> 3x128x32" in said and "on 1.00 us (+100.0%)  early weights 0.50 us (+300.0%)" in said
    (found,) = json.loads(file.read_text())["rows"]
    assert found["products"] == 4 and found["run_s"]["off"] == 2e-6
    assert held == [*dependent.SETTINGS.values()] and not minigemm.get_pdl()

    # A setting that changes a bit is no result, and does not stay.
    computed = []

    def wrong(chain, device):
        computed.append(chain)
        return captured(chain, device) if len(computed) == 1 else lambda: None

    monkeypatch.setattr(dependent, "_captured", wrong)
    with pytest.raises(RuntimeError, match=r"set_pdl\(True, False\), m = 3, .*: not the bits"):
        dependent.pdl_gain()
    assert not minigemm.get_pdl()


def test_quantizing_beside_a_copy(monkeypatch, tmp_path, capsys):
    """Every kernel runs, on the emulator, and is compared with torch's operations; times are made up."""
    monkeypatch.setattr(quantizing, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(quantizing, "identity", lambda device: MACHINE)
    row = quantizing._row
    monkeypatch.setattr(quantizing, "_row", lambda kind, m, k, device, repeats: row(kind, m, k, CPU, repeats))
    monkeypatch.setattr(quantizing, "SHAPES", ((24, 256),))
    times = itertools.cycle([2e-6, 1e-6, 9e-6])

    def timed(call, device, repeats):
        call()
        return next(times)

    monkeypatch.setattr(quantizing, "time_on_gpu", timed)
    file = tmp_path / "quantize.json"
    assert cli.main(["bench", "--quantize", "--json", str(file)]) == 0
    assert capsys.readouterr().out.count("50.0% of the copy's bandwidth") == len(quantizing.KINDS)
    rows = json.loads(file.read_text())["rows"]
    assert [each["kind"] for each in rows] == [*quantizing.KINDS]
    assert rows[0]["bytes"] == 24 * 256 * 3 + 24 * 2 * 4

    # A kernel with other bits is not timed.
    call = quantizing.KINDS["1x128"][0]
    monkeypatch.setitem(quantizing.KINDS, "1x128", (call, lambda x: quantize.quantize(-x, "1x128")))
    with pytest.raises(RuntimeError, match="1x128, 24 x 256: not the bits of quantize.quantize"):
        quantizing.quantize_speed()


# --- on a
# GPU


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_peers_on_a_gpu(tmp_path, capsys):
    """Two small shapes and the grouped layouts: whoever is there is right and timed, others are named."""
    file = tmp_path / "peers.json"
    assert (
        cli.main(
            [
                "bench",
                "--shape",
                "64x256x512",
                "--shape",
                "256x384x1024",
                "--rounds",
                "5",
                "--json",
                str(file),
                "--plot",
                str(tmp_path / "x.png"),
            ]
        )
        == 0
    )
    with capsys.disabled():
        print(capsys.readouterr().out)
    results = json.loads(file.read_text())
    assert set(results["peers"]) | set(results["skipped"]) == {kind.name for kind in PEERS}
    assert results["machine"]["copy_bytes_per_s"] > 1e12 and not results["lost"]
    for row in results["rows"]:
        assert {"minigemm", "cublaslt"} <= row["timed"].keys()
        for name, timed in row["timed"].items():
            assert 1 < timed["median_us"] < 1000 and timed["rel_err"] < 5e-2, name
            assert 1 < timed["read"]["median_us"] < 1000, name
        assert not [reason for reason in row["skipped"].values() if reason.startswith("wrong")]
    for layout, shape in (("contiguous", "2x200x256x512"), ("masked", "2x200x256x512")):
        assert (
            cli.main(["bench", "--layout", layout, "--shape", shape, "--rounds", "5", "--json", str(file)])
            == 0
        )
        (row,) = json.loads(file.read_text())["rows"]
        assert row["layout"] == layout and 1 < row["timed"]["minigemm"]["median_us"] < 1000


def test_fresh_processes(monkeypatch):
    """Times are medians over processes. Each pair has a cache of its own, empty for the first of them."""
    folders: dict[str, int] = {}

    def run(command, env, **_):
        kept = folders[env["MINIGEMM_CACHE_DIR"]] = folders.get(env["MINIGEMM_CACHE_DIR"], 0) + 1
        assert env["CUDA_CACHE_PATH"] != os.environ.get("CUDA_CACHE_PATH")
        return subprocess.CompletedProcess(
            command, 0, f"a line of torch\n[3.0, {len(folders) / kept}, {10 * len(folders) / kept}]\n", ""
        )

    monkeypatch.setattr(host_overhead.subprocess, "run", run)
    found = host_overhead._fresh(torch.device("cpu"))
    assert list(folders.values()) == [2] * host_overhead.PROCESSES == [2, 2, 2]
    assert (
        found["first_call_cold_s"],
        found["new_shape_cold_s"],
        found["first_call_s"],
        found["new_shape_s"],
        found["import_s"],
    ) == (2, 20, 1, 10, 3)
    assert "first call of a process, empty cache           2.000 s" in host_overhead.as_text(
        found | {"calls": 1, "m": 1, "n": 1, "k": 1}
    )

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command, "", "Traceback\nRuntimeError: no room\n")

    monkeypatch.setattr(host_overhead.subprocess, "run", fail)
    assert host_overhead._fresh(torch.device("cpu")) == {
        "error": "a fresh process failed: RuntimeError: no room"
    }


@pytest.mark.gpu
def test_host_time_with_fresh_processes():
    found = host_overhead.host_time(torch.device("cuda", torch.cuda.current_device()), calls=1000)
    assert "error" not in found, found["error"]
    assert found["first_call_s"] < found["first_call_cold_s"] < 60


# --- choice


def test_the_shapes_of_choice_are_not_those_of_tune():
    found = choice.shapes()
    assert found == choice.shapes() and len(found) == 40
    assert not {(work.product.n, work.product.k) for work in found} & {*tune.LAYERS, *tune.EXPERTS}
    assert [str(work.product.layout) for work in found].count("dense") == 30


def test_the_choice_is_compared_with_the_least_time(monkeypatch, tmp_path, capsys):
    """With made-up times: the chosen config takes twice the least, autotune finds the best that it tries."""
    monkeypatch.setattr(choice, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(choice, "identity", lambda device: {"gpu": "Chip"})
    monkeypatch.setattr(choice, "shapes", lambda: [workloads.dense(200, 512, 1024)])
    monkeypatch.setattr(choice.ahead, "compile_all", lambda *about: None)
    cpu, real = torch.device("cpu"), choice._able
    monkeypatch.setattr(choice, "_able", lambda product, device: real(product, cpu))
    row = choice._row
    monkeypatch.setattr(choice, "_row", lambda work, plan, device, rounds: row(work, plan, cpu, rounds))

    def made_up(configs, *about):
        times = {config: 20.0 + place for place, config in enumerate(configs)}
        return times | {configs[-1]: 10.0}

    monkeypatch.setattr(choice.autotune, "timed_alike", made_up)
    file = tmp_path / "choice.json"
    assert cli.main(["bench", "--choice", "--json", str(file)]) == 0
    assert "chosen: 2.000 of the least time on average" in capsys.readouterr().out
    (found,) = json.loads(file.read_text())["rows"]
    assert found["best"]["us"] == 10 and found["chosen"]["ratio"] == 2 and found["configs"] > 10
    assert 1 < found["autotuned"]["ratio"] <= 2


# --- ideas


@pytest.mark.parametrize("idea", ideas.IDEAS, ids=lambda idea: idea.text)
def test_a_kernel_without_an_idea_gives_the_same_bits(idea, tmp_path):
    """On the emulator: an m that no tile divides, several tiles for a CTA, a k longer than the ring."""
    rings = [replace(each, stages=2, ctas=2) if each else None for each in (idea.config, idea.without)]
    small = replace(idea, config=rings[0], without=rings[1])
    case = cases.make(workloads.dense(min(idea.shape[0], 140), 144, 640), "cpu")
    ideas.compared(small, case, tmp_path)


def test_an_idea_that_cannot_be_taken_out_is_no_measurement(tmp_path):
    idea = replace(ideas.IDEAS[0], changes=(("tile.cuh", "no such text", ""),))
    with pytest.raises(ValueError, match="'no such text' is not in tile.cuh any more"):
        ideas.undone(idea, tmp_path)


def test_what_ideas_gain_is_a_table_of_the_lesson(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ideas, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(ideas, "identity", lambda device: MACHINE)
    monkeypatch.setattr(ideas, "IDEAS", ideas.IDEAS[:1])
    monkeypatch.setattr(ideas.cases, "make", lambda *about: None)
    monkeypatch.setattr(ideas, "compared", lambda *about: {"without_us": None, "with_us": None})
    monkeypatch.setattr(ideas, "gpu_seconds", lambda *about: {"without_us": [2e-5], "with_us": [1.5e-5]})
    file = tmp_path / "h200_ideas.json"
    assert cli.main(["bench", "--ideas", "--json", str(file)]) == 0
    assert "-25.0%  the loader's state" in capsys.readouterr().out
    assert "-25.0%" in views.recorded_ideas("s11_overlapped", file=file).text
