"""The wide set, what a comparison says in all, its picture, stored results, and several DeepGEMMs at once."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minigemm import bench, cli, hopper
from minigemm.bench import cases, comparison, peers, report, stored, summary, wide, workloads
from minigemm.bench.peers import Missing
from minigemm.bench.peers.deep_gemm import DeepGemm, packages
from minigemm.bench.peers.minigemm import MiniGemm
from minigemm.bench.wide import LAYERS, ROWS, WIDE, band_of
from minigemm.bench.workloads import EVEN, SKEWED, contiguous, dense, masked
from minigemm.types import Layout

CPU = torch.device("cpu")
CHIP = replace(hopper.H200, bandwidth=4e12)
MACHINE = {"gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "torch": "2.11", "copy_bytes_per_s": 4e12}
RECORDED = Path(__file__).parents[2] / "docs" / "results" / "h100_bench.json"

#: By the published configs: hidden size, heads, key and value heads, head dimension, intermediate size.
MODELS = {
    "Qwen3-30B-A3B": (2048, 32, 4, 128, None),
    "Qwen3-235B-A22B": (4096, 64, 4, 128, None),
    "Qwen3-Coder-480B-A35B": (6144, 96, 8, 128, None),
    "GLM-4.5": (5120, 96, 8, 128, 12288),
    "Llama 3 70B": (8192, 64, 8, 128, 28672),
    "Llama 3 405B": (16384, 128, 8, 128, 53248),
}
LATENT = {"DeepSeek-V3": (7168, 128, 18432), "Kimi-K2": (7168, 64, 18432)}


# --- the set


def shape_of(model, name, tp):
    """(n, k) of a layer by its model's config."""
    if model in LATENT:
        hidden, heads, intermediate = LATENT[model]
        attention = {
            "qkv_a": (1536 + 512 + 64, hidden),
            "q_b": (heads * (128 + 64) // tp, 1536),
            "o": (hidden, heads * 128 // tp),
        }
    else:
        hidden, heads, kv, width, intermediate = MODELS[model]
        columns = (heads // tp + 2 * max(kv // tp, 1)) * width
        attention = {"qkv": (columns, hidden), "o": (hidden, heads * width // tp)}
    if name in attention:
        return attention[name]
    return {"gate_up": (2 * intermediate // tp, hidden), "down": (hidden, intermediate // tp)}[name]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_follow_from_the_models_configs(layer):
    assert (layer.n, layer.k) == shape_of(layer.model, layer.name, layer.tp)
    assert layer.n % 64 == 0 and layer.k % 128 == 0  # what DeepGEMM needs


def test_the_wide_set():
    assert len(WIDE) == len(set(WIDE)) == 28 * 19 + 24
    assert len({(layer.n, layer.k) for layer in LAYERS}) == len(LAYERS) >= 24
    assert {layer.model for layer in LAYERS} == MODELS.keys() | LATENT.keys()
    assert {layer.tp for layer in LAYERS} == {1, 8}
    assert set(ROWS) >= {2**power for power in range(14)} | {3, 100, 300, 1500, 3000}
    grouped = [each for each in WIDE if each.product.layout is not Layout.DENSE]
    kinds = {(each.product.layout, each.product.groups, each.spread) for each in grouped}
    layouts = (Layout.CONTIGUOUS, Layout.MASKED)
    assert kinds == {
        (x, groups, spread) for x in layouts for groups in (8, 32, 64) for spread in (EVEN, SKEWED)
    }
    for each in WIDE:
        assert wide.layer_of(each.product.layout, each.product.n, each.product.k), each
    assert wide.layer_of(Layout.DENSE, 768, 2048) == "Qwen3-30B-A3B qkv, TP 8"
    assert wide.layer_of(Layout.DENSE, 48, 64) == ""


@pytest.mark.parametrize("groups, m", [(8, 1024), (32, 64), (64, 16)])
def test_skewed_groups(groups, m):
    """The shares are 1, 1/2, 1/3, ...: nobody is left out, and the largest group is far above the mean."""
    even, skewed = contiguous(groups, m, 64, 128, EVEN), masked(groups, m, 64, 128, SKEWED)
    assert even.counts == (m,) * groups
    largest = sorted(skewed.counts, reverse=True)
    harmonic = sum(1 / (1 + rank) for rank in range(groups))
    assert min(largest) >= 1 and groups * m * 0.95 < sum(largest) <= groups * m
    assert largest[0] == pytest.approx(groups * m / harmonic, rel=0.02)
    assert largest[0] / largest[1] == pytest.approx(2, rel=0.02)
    assert skewed.counts[0] < largest[0] and str(skewed).endswith("x64x128 skewed")
    assert skewed.product.m >= largest[0]


def test_bands():
    assert [band_of(m) for m in (1, 8, 9, 32, 33, 512, 513, 8192, 8193)] == [
        "1-8", "1-8", "9-32", "9-32", "33-128", "129-512", "513-2048", "2049-8192", "from 8193"
    ]  # fmt: skip
    assert len({band_of(m) for m in ROWS}) == len(wide.BANDS)


def test_parts_are_whole_layers():
    """Every workload is in one part, and all m of an n and k are in the same one."""
    parts = [wide.part(WIDE, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(str(each) for its in parts for each in its) == sorted(map(str, WIDE))
    layers = [{each.product[1:3] for each in part if each.product.layout is Layout.DENSE} for part in parts]
    assert sum(map(len, layers)) == 28 and not layers[0] & layers[1]
    assert wide.part(WIDE, "1/1") == list(WIDE)
    with pytest.raises(ValueError, match="got '4/3'"):
        wide.part(WIDE, "4/3")


def test_rounds_by_the_length_of_a_call():
    assert comparison.rounds_of(dense(1, 768, 2048), CHIP) == 30
    assert 8 < comparison.rounds_of(dense(8192, 24576, 5120), CHIP) < 30
    assert comparison.rounds_of(dense(8192, 57344, 16384), CHIP) == 8


# --- operands


def test_all_m_share_their_tensors():
    """Each m has the first rows, its own M-major scales, and a right product."""
    shapes = [dense(m, 96, 256) for m in (3, 70)]
    made = cases.Cases(shapes, CPU)
    small, large = map(made.make, shapes)
    assert small.b.data_ptr() == large.b.data_ptr() and small.a.data_ptr() == large.a.data_ptr()
    assert small.a.shape == (3, 256) and small.sfa.stride() == (1, 4) and large.sfa.stride() == (1, 72)
    assert torch.equal(small.sfa, large.sfa[:3])
    for case in (small, large):
        assert case.error(MiniGemm().prepare(case)()) < 3e-3
    other = made.make(dense(3, 96, 256))
    assert other.b.data_ptr() == small.b.data_ptr()


@pytest.mark.parametrize("shape", [
    dense(5, 1000, 256), contiguous(2, 20, 1000, 256, SKEWED), masked(2, 20, 1000, 256)
], ids=lambda shape: str(shape.product.layout))  # fmt: skip
def test_some_columns_are_checked(shape, monkeypatch):
    """A large product is right or wrong by some columns: a wrong tile of 128 columns is still seen."""
    monkeypatch.setattr(cases, "CHECKED_WHOLE", 1000)
    case = cases.make(shape, CPU)
    assert case.columns.tolist() == sorted(set(case.columns.tolist())) and len(case.columns) == 256
    d = MiniGemm().prepare(case)()
    assert case.error(d) < 3e-3
    d[..., 384:512] = 0
    assert case.error(d) > 0.1
    assert math.isnan(case.error(case.empty()))
    if shape.product.layout is Layout.DENSE:
        monkeypatch.setattr(cases, "CHECKED_WHOLE", 1e15)
        whole = cases.make(shape, CPU)
        assert whole.columns is None
        d = whole.tensor_scaled[0].data.float() @ whole.tensor_scaled[1].data.float().T
        d *= whole.tensor_scaled[0].scale * whole.tensor_scaled[1].scale
        assert whole.error(d, "tensor") < 1e-5 and case.error(d, "tensor") < 1e-5


def test_every_128_columns_are_checked(monkeypatch):
    monkeypatch.setattr(cases, "CHECKED_WHOLE", 0)
    for n in (57344, 24576 + 64, 2112):
        columns = cases._checked_columns(dense(1, n, 128), CPU, 0)
        assert {int(column) // 128 for column in columns} == set(range(-(-n // 128)))


# --- the summary


def row(m, times, layout="dense", n=512, k=256, **fields):
    """A row by hand: times are name -> (after a fill, after a read), or one number for both."""
    groups = 1 if layout == "dense" else 8
    timed = {}
    for name, found in times.items():
        fill, read = found if isinstance(found, tuple) else (found, found)
        timed[name] = {"median_us": fill, "tflops": 1.0, "floor_share": 1 / fill, "rel_err": 1e-3}
        if read is not None:
            timed[name]["read"] = {"median_us": read}
    sizes = {"layout": layout, "groups": groups, "m": m, "n": n, "k": k, "counts": [m] * groups}
    return {**sizes, "config": {}, "floor_us": 1.0, "timed": timed, "skipped": {}, **fields}


def test_the_better_deep_gemm_is_chosen_at_each_point():
    both = row(1, {"minigemm": (2, 4), "deep_gemm": (3, 5), "deep_gemm@old": (4, 2), "cublaslt": 1})
    assert summary.median_us(both, summary.BEST) == 3 and summary.median_us(both, summary.BEST, "read") == 2
    assert summary.ratio(both, summary.BEST) == 1.5 and summary.ratio(both, summary.BEST, "read") == 0.5
    assert summary.opponents([both]) == ["best_deep_gemm", "deep_gemm", "deep_gemm@old", "cublaslt"]
    alone = row(1, {"minigemm": 2, "cublaslt": (1, None)})
    assert summary.ratio(alone, summary.BEST) is None and summary.ratio(alone, "cublaslt", "read") is None
    assert summary.opponents([alone]) == ["cublaslt"]


def test_bands_weigh_the_same():
    """Three points of m 1 to 8 at 1/2 and one of m 64 at 2 make 1, since each band counts once."""
    rows = [row(m, {"minigemm": 2, "cublaslt": 1}) for m in (1, 2, 8)]
    rows.append(row(64, {"minigemm": 1, "cublaslt": 2}))
    found = summary.summarize(rows)["fill"]["cublaslt"]["dense"]
    assert found["mean"] == pytest.approx(1)
    assert {band: its["mean"] for band, its in found["bands"].items()} == {
        "1-8": pytest.approx(0.5), "33-128": pytest.approx(2)
    }  # fmt: skip
    assert (found["worst"], found["won"], found["points"], found["missing"]) == (0.5, 0.25, 4, 0)
    assert found["worst_at"] == "1x512x256"


def test_layouts_and_flushes_have_their_own_figures():
    rows = [
        row(4, {"minigemm": (10, 8), "deep_gemm@new": (10, 4)}),
        row(4, {"deep_gemm@new": 5}, n=640),  # minigemm is wrong or fails there: it is missing
        row(4, {"minigemm": 5}, n=768),  # and here DeepGEMM refuses
        row(16, {"minigemm": 1, "deep_gemm@new": (4, None)}, "masked", spread="skewed"),
        row(16, {"minigemm": 1, "deep_gemm@new": (1, None)}, "masked"),
    ]
    found = summary.summarize(rows)
    assert found["fill"]["best_deep_gemm"] == found["fill"]["deep_gemm@new"]
    filled, read = found["fill"]["best_deep_gemm"], found["read"]["best_deep_gemm"]
    assert filled.keys() == {"dense", "masked"} and read.keys() == {"dense"}
    assert (filled["dense"]["mean"], read["dense"]["mean"]) == (pytest.approx(1), pytest.approx(0.5))
    assert (filled["dense"]["won"], filled["dense"]["points"], filled["dense"]["missing"]) == (1, 1, 1)
    assert filled["masked"]["mean"] == pytest.approx(2) and "bands" not in filled["masked"]
    assert filled["masked"]["worst_at"] == "8x16x512x256 masked"
    assert summary.size_of(rows[3]) == "8x16x512x256 skewed masked"
    assert summary.summarize([]) == {} and summary.summarize([row(1, {"minigemm": 1})]) == {}


# --- a whole run, made up


def results_of(workloads, date="2026-12-01"):
    """Results with made-up times: cuBLASLt gets slower with m and DeepGEMM faster, by k a little."""
    rows = []
    for each in workloads:
        m, slow = each.expected_m, 1 + (each.product.k % 1000) / 4000
        own = each.floor(4e12, 1.5e15) * 1.2 + 4e-6
        times = {
            "minigemm": own,
            "deep_gemm@new": own * slow * (1.25 - 0.03 * math.log2(m)),
            "deep_gemm@old": own * slow * (1.1 - 0.01 * math.log2(m)),
            "cublaslt": own * (0.8 + 0.02 * math.log2(m)),
        }
        if each.product.layout is not Layout.DENSE:
            del times["cublaslt"]
        seconds = {"fill": {name: [t] for name, t in times.items()}}
        seconds["read"] = {name: [t * (0.8 if name == "cublaslt" else 0.9)] for name, t in times.items()}
        rows.append(comparison.row_of(each, seconds, CHIP))
    known = {name: {"what": "made up", "version": "1"} for name in ("minigemm", "deep_gemm@new", "cublaslt")}
    return {
        "what": "minigemm beside its peers", "date": date, "machine": MACHINE, "protocol": "made up",
        "peers": known, "skipped": {"triton": "triton is not installed"}, "rows": rows, "lost": "", "host": None,
        "summary": summary.summarize(rows),
    }  # fmt: skip


def test_the_summary_is_printed(capsys):
    report.show(results_of([*WIDE[:19], *WIDE[-2:]]))
    printed = capsys.readouterr().out
    for words in ("dense, m 1-8", "dense, m 2049-8192", "masked", "worst against best_deep_gemm after a read:",
                  "time of deep_gemm@old over minigemm's after a fill", "64x16x7168x2048 skewed masked"):  # fmt: skip
        assert words in printed
    lines = [line for line in printed.splitlines() if line.strip().startswith("dense  ")]
    assert len(lines) == 1 and lines[0].count("%") == 4  # two judges, two flushes


def test_the_field(tmp_path):
    """Both flushes beside each other, and groups; in words the picture says what its cells say."""
    results = results_of(WIDE)
    picture = bench.picture(results)
    assert picture.text.startswith("best_deep_gemm over minigemm on NVIDIA H200")
    for layout in ("dense", "contiguous", "masked"):
        assert f"{layout} after a fill: mean" in picture.text and f"{layout} after a read" in picture.text
    picture.save(tmp_path / "field.png")
    assert (tmp_path / "field.png").stat().st_size > 100_000
    words = {text.get_text() for axes in picture.figure.axes for text in axes.get_yticklabels()}
    assert "Llama 3 405B down, TP 8  16384 x 6656" in words
    assert len(picture.figure.axes) == 5  # four panels and the bar
    assert bench.picture({**results, "rows": results["rows"][:5]}).text.startswith("Times over the floor")
    assert "cublaslt over minigemm" in bench.field(results, "cublaslt").text
    with pytest.raises(ValueError, match="expected results with times of minigemm and triton, got none"):
        bench.field(results, "triton")


def test_results_are_joined_and_resumed(tmp_path, capsys, monkeypatch):
    """Parts make one comparison; a resumed run measures only what is not there."""
    parts = [results_of(wide.part(WIDE, f"{number}/2"), f"2026-12-0{number}") for number in (1, 2)]
    files = [tmp_path / f"{number}.json" for number in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        stored.write(file, part)
    joined = stored.read(files)
    assert len(joined["rows"]) == len(WIDE) and [run["date"] for run in joined["runs"]] == [
        "2026-12-01",
        "2026-12-02",
    ]
    assert joined["summary"] == summary.summarize(joined["rows"]) != parts[0]["summary"]
    assert [(row["m"], row["n"], row["k"]) for row in joined["rows"][:2]] == [
        (1, 2112, 7168),
        (2, 2112, 7168),
    ]
    assert [summary.name_of(row) for row in joined["rows"]] == [*map(str, WIDE)]
    assert not stored.remaining(WIDE, joined) and not [*tmp_path.glob("*.part")]
    assert set(stored.remaining(WIDE, parts[0])) == set(wide.part(WIDE, "2/2"))

    # The later of two rows counts.
    newer = {**parts[0], "rows": [{**parts[0]["rows"][0], "floor_us": 7.0}]}
    assert stored.join([parts[0], newer])["rows"][0]["floor_us"] == 7

    # The commands: one shows both files, the other one goes on with the first.
    together = tmp_path / "all.json"
    assert cli.main(["bench", "--results", *map(str, files), "--json", str(together)]) == 0
    assert "dense, m 9-32" in capsys.readouterr().out and len(
        json.loads(together.read_text())["rows"]
    ) == len(WIDE)
    asked = []

    def compare(chosen, *arguments, store, **options):
        asked.extend(chosen)
        store(results_of(chosen[:19]))
        return results_of(chosen)

    monkeypatch.setattr(bench, "compare", compare)
    assert cli.main(["bench", "--resume", "--json", str(files[0])]) == 0
    assert set(asked) == set(wide.part(WIDE, "2/2"))
    assert len(json.loads(files[0].read_text())["rows"]) == len(WIDE)


@pytest.mark.parametrize("options, expected", [
    ([], WIDE),
    (["--wide", "--layout", "masked"], WIDE[-12:]),
    (["--quick"], workloads.QUICK),
    (["--quick", "--host"], workloads.QUICK),
    (["--host"], ()),
    (["--part", "2/4"], tuple(wide.part(WIDE, "2/4"))),
    (["--shape", "1x64x128"], (dense(1, 64, 128),)),
])  # fmt: skip
def test_which_shapes(options, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "compare", lambda chosen, *_, **__: asked.extend(chosen) or results_of(chosen))
    assert cli.main(["bench", *options]) == 0
    assert tuple(asked) == tuple(expected)


@pytest.mark.parametrize(
    "options", [["--quick", "--wide"], ["--quick", "--shape", "1x64x128"], ["--results"]]
)
def test_options_that_do_not_go_together(options, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", *options])
    assert "usage:" in capsys.readouterr().err


def test_results_that_are_none(tmp_path):
    file = tmp_path / "it.json"
    for wrong in ("{", "[1]", "[]", '{"rows": []}', "3"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="results: expected the JSON of a comparison"):
            stored.read([file])
    with pytest.raises(ValueError, match="at least one comparison"):
        stored.join([])
    one = results_of(WIDE[:1])
    for change, words in (
        ({"machine": {**MACHINE, "gpu": "NVIDIA H100"}}, "parts of one GPU"),
        ({"protocol": "another"}, "parts of one protocol"),
    ):
        with pytest.raises(ValueError, match=words):
            stored.join([one, {**one, **change}])


def test_recorded_results_stay_readable(capsys):
    """They have one flush and fields that are written no more."""
    assert "reference" in json.loads(RECORDED.read_text())
    assert cli.main(["bench", "--results", str(RECORDED)]) == 0
    printed = capsys.readouterr().out
    assert "64x2112x7168" in printed and "worst against cublaslt after a fill" in printed
    assert "after a read:" not in printed
    assert stored.read([RECORDED])["rows"][0]["timed"]["minigemm"]["median_us"] > 0


# --- several DeepGEMMs


def package(folder, name, **files):
    """Write a deep_gemm whose dense call imports a module of its own, and fills d with its number."""
    (folder / "deep_gemm").mkdir(parents=True)
    for module, text in {
        "__init__": f"from .parts import *\n__version__ = '{name}'\n",
        "parts": "def fp8_gemm_nt(a, b, d):\n    from deep_gemm.late import NUMBER\n    d.fill_(NUMBER)\n",
        "late": f"NUMBER = {len(name)}\n",
        **files,
    }.items():
        (folder / "deep_gemm" / f"{module}.py").write_text(text)
    return folder


@pytest.fixture
def no_deep_gemm(monkeypatch):
    """Leave sys.modules as it was, and find no DeepGEMM by the environment."""
    monkeypatch.delenv("MINIGEMM_DEEP_GEMM", raising=False)
    before = {name for name in sys.modules if name.startswith("deep_gemm")}
    yield
    for name in [name for name in sys.modules if name.startswith("deep_gemm") and name not in before]:
        del sys.modules[name]


def test_generations_beside_each_other(tmp_path, monkeypatch, no_deep_gemm):
    """Each package gets its own modules, also those that a call imports, and the installed one stays."""
    monkeypatch.syspath_prepend(str(package(tmp_path / "site", "installed")))
    old, new = package(tmp_path / "old", "v1"), package(tmp_path / "b", "v2.1")
    monkeypatch.setenv("MINIGEMM_DEEP_GEMM", str(old))
    found = peers.named(["cublaslt", "deep_gemm"], [f"new={new}"])
    assert [peer.name for peer in found] == [
        "minigemm",
        "deep_gemm",
        "deep_gemm@new",
        "deep_gemm@old",
        "cublaslt",
    ]
    path = list(sys.path)
    versions = [peer.version() for peer in found[1:4]]
    assert versions == ["installed, fp8_gemm_nt", "v2.1, fp8_gemm_nt", "v1, fp8_gemm_nt"]
    case = cases.make(dense(2, 64, 128), CPU)
    calls = [peer.prepare(case) for peer in found[1:4]]
    for _ in range(2):
        assert [call()[0, 0].item() for call in calls] == [9, 4, 2]
    assert sys.path == path and "site" in sys.modules["deep_gemm"].__file__
    assert [peer.name for peer in peers.named(["cublaslt"])] == ["minigemm", "deep_gemm@old", "cublaslt"]


def test_the_version_of_a_package(tmp_path, no_deep_gemm):
    """It is the package's own, else that of the metadata beside it, and never another package's."""
    folder = package(tmp_path / "it", "x", __init__="from .parts import *\n")
    assert DeepGemm(packages([str(folder)])[0]).version() == "unknown, fp8_gemm_nt"
    (folder / "deep_gemm-1.0.0+old.dist-info").mkdir()
    (folder / "deep_gemm-1.0.0+old.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: deep_gemm\nVersion: 1.0.0+old\n"
    )
    assert DeepGemm(packages([str(folder)])[0]).version() == "1.0.0+old, fp8_gemm_nt"


def test_a_package_that_fails_leaves_the_others(tmp_path, no_deep_gemm):
    broken = package(tmp_path / "broken", "x", parts="import no_such_extension\n")
    with pytest.raises(ModuleNotFoundError):
        DeepGemm(packages([str(broken)])[0]).version()
    assert "deep_gemm" not in sys.modules and str(broken) not in sys.path
    empty = package(tmp_path / "empty", "x", parts="")
    with pytest.raises(Missing, match="neither fp8_gemm_nt"):
        DeepGemm(packages([str(empty)])[0]).version()


def test_folders_that_hold_no_deep_gemm(tmp_path, monkeypatch, no_deep_gemm):
    one, two = package(tmp_path / "one" / "same", "x"), package(tmp_path / "two" / "same", "x")
    with pytest.raises(ValueError, match="expected labels that differ .LABEL=FOLDER., got 'same' twice"):
        packages([str(one), str(two)])
    assert [each.label for each in packages([str(one), f"two={two}"])] == ["same", "two"]
    monkeypatch.setenv("MINIGEMM_DEEP_GEMM", os.pathsep.join([str(one), str(tmp_path)]))
    with pytest.raises(ValueError, match="expected a folder that holds the package deep_gemm"):
        packages()
