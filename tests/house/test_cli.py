"""The commands: what they print, and how they end."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minigemm import bench, cli, hopper, kernels, machine
from minigemm.compiler import jit
from minigemm.kernels import stages
from minigemm.verify import on_gpu

NAMES = [module.stage.name for module in stages()]
SMALL = ["--m", "40", "--n", "24", "--k", "64"]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")


def tour_json(capsys, *arguments: str) -> tuple[int, dict]:
    status = cli.main(["tour", "--json", *SMALL, *arguments])

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return status, json.loads(capsys.readouterr().out, parse_constant=refuse)


def broken(monkeypatch, **changes):
    """The first stage, changed, takes part in the tour as the only one."""
    stage = replace(stages()[0].stage, **changes)
    monkeypatch.setattr(kernels, "stage_named", lambda name: SimpleNamespace(stage=stage))


def test_tour_json(capsys):
    status, told = tour_json(capsys)
    assert status == 0
    assert {"runtime", "python", "torch", "nvrtc", "cores"} <= told["machine"].keys()
    assert [row["stage"] for row in told["stages"]] == NAMES
    for row in told["stages"]:
        assert (row["m"], row["n"], row["k"]) == (40, 24, 64)
        assert row["runtime"] == told["machine"]["runtime"] in ("emulated", "cuda")
        assert 0 < row["rel_err"] < 3e-3
        assert min(row["compile_s"], row["warm_s"], row["run_s"]) > 0
        assert row["config"] and row["idea"] and not row["error"] and not row["hazards"]


@NO_GPU
def test_tour_tells_what_the_kernel_did(capsys):
    _, told = tour_json(capsys)
    for row in told["stages"]:
        counters = row["counters"]
        # From s04 on, one instruction of the tensor core is 64 * 24 * 32 products.
        assert counters["instructions"] > (40 * 24 * 64 if row["stage"] < "s04" else 1000)
        assert counters["global_load_bytes"] + counters["tma_load_bytes"] >= (40 + 24) * 64
        assert counters["global_store_bytes"] + counters["tma_store_bytes"] >= 40 * 24 * 2
        assert counters["bank_conflicts"] >= 0
    assert [row["counters"]["tma_transactions"] > 0 for row in told["stages"]][:3] == [False, False, True]


def test_tour_takes_stages_and_a_seed(capsys):
    _, first = tour_json(capsys, "--stage", "3", "--stage", "s01_naive", "--seed", "1")
    _, again = tour_json(capsys, "--stage", "1", "--seed", "1")
    _, other = tour_json(capsys, "--stage", "1", "--seed", "2")
    assert [row["stage"] for row in first["stages"]] == ["s03_tma", "s01_naive"]
    assert first["stages"][1]["rel_err"] == again["stages"][0]["rel_err"] != other["stages"][0]["rel_err"]


def test_tour_table(capsys):
    assert cli.main(["tour", *SMALL]) == 0
    printed = capsys.readouterr().out
    for name in NAMES:
        assert name in printed
    assert "Every stage is right" in printed and max(map(len, printed.splitlines())) <= 80


def test_a_wrong_stage_ends_non_zero(capsys, monkeypatch):
    right = stages()[0].stage

    def one_tile(a, b, d, problem, config):
        d.zero_()
        return replace(right.launch(a, b, d, problem, config), grid=(1, 1, 1))

    broken(monkeypatch, launch=one_tile)
    status, told = tour_json(capsys, "--stage", "1")
    assert status == 1 and "relative error" in told["stages"][0]["error"]
    assert cli.main(["tour", *SMALL, "--stage", "1"]) == 1
    assert "s01_naive is wrong: relative error" in capsys.readouterr().out


def test_a_failing_stage_is_a_row_and_ends_non_zero(capsys, monkeypatch):
    def launch(*arguments):
        raise RuntimeError("no launch")

    broken(monkeypatch, launch=launch)
    status, told = tour_json(capsys, "--stage", "1")
    row = told["stages"][0]
    assert status == 1 and row["error"] == "RuntimeError: no launch" and row["rel_err"] is None


@pytest.mark.parametrize("arguments, words", [
    (["--k", "24"], "k a multiple of 16, got m=256 n=256 k=24"),
    (["--m", "0"], "at least 1"),
    (["--n", "-3"], "at least 1"),
    (["--stage", "s99"], "stage: expected one of s01_naive, .* got 's99'"),
])  # fmt: skip
def test_a_bad_tour(arguments, words, capsys):
    assert cli.main(["tour", *arguments]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["dance"], ["tour", "--m", "many"]])
def test_bad_commands(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: minigemm" in capsys.readouterr().err


def test_the_floor_is_the_larger_of_both():
    assert hopper.chip_of("NVIDIA H200") is hopper.H200
    for others in ("NVIDIA H100 80GB HBM3", "NVIDIA H20", "NVIDIA GH200 480GB"):
        assert hopper.chip_of(others) is hopper.H100
    assert hopper.H200.floor(4096, 4096, 4096) == pytest.approx(2 * 4096**3 / 1979e12)
    assert hopper.H200.floor(1, 4096, 4096) == pytest.approx((4096 * 4097 + 2 * 4096) / 4.8e12)
    assert hopper.H100.floor(1, 4096, 4096) == pytest.approx((4096 * 4097 + 2 * 4096) / 3.35e12)


def test_doctor(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"Python", "torch", "NVRTC", "emulator", "cache", "GPU"} <= found.keys()
    assert "compiles in" in found["NVRTC"]["found"]
    assert cli.main(["doctor"]) == 0
    assert "NVRTC" in capsys.readouterr().out


def test_doctor_without_a_cache(monkeypatch):
    monkeypatch.setattr("minigemm.store.folder", lambda: None)
    found = machine._nvrtc().found
    assert "in every process anew, since there is no cache" in found and "comes from the cache" not in found


def test_doctor_without_a_compiler(monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise jit.CompileError("there is no NVRTC: install it")

    monkeypatch.setattr(jit, "measure", fail)
    assert cli.main(["doctor"]) == 1
    assert "there is no NVRTC: install it" in capsys.readouterr().out


@NO_GPU
def test_doctor_where_torch_cannot_use_the_gpu(monkeypatch):
    monkeypatch.setattr(machine, "driver_version", lambda: "580.1")
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = machine._gpu()
    assert not finding.ok and not finding.needed
    assert "driver 580.1 is here, but this torch cannot use it (it is a CPU-only build)" in finding.advice


@pytest.mark.parametrize(
    "show, words",
    [("source", 'extern "C"'), ("ptx", ".entry s01_naive"), ("sass", "LDG"), ("summary", "registers")],
)
def test_inspect(show, words, capsys):
    assert cli.main(["inspect", "1", "--show", show]) == 0
    assert words in capsys.readouterr().out


def test_inspect_of_nothing(capsys):
    assert cli.main(["inspect", "s99"]) == 2
    assert "stage: expected one of" in capsys.readouterr().err


def test_bench_emulator(monkeypatch, capsys):
    speed = importlib.import_module(
        "minigemm.bench.emulator_speed"
    )  # the package has the function of that name
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(speed, "stages", lambda: stages()[:1])
    assert cli.main(["bench", "--emulator", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["processor"] and told["date"]
    for row in told["stages"]:
        for mode in ("plain", "hazards", "observed"):
            assert row[mode]["lane_instructions"] > 128 * 128 * 256
            for name in ("run_s", "lane_instructions_per_s", "translate_cold_s", "translate_stored_s"):
                assert row[mode][name] > 0
    assert "M lane-instructions/s" in bench.as_text(told)


@pytest.mark.parametrize("options", [
    [], ["--layout", "contiguous", "--groups", "4", "--psum"], ["--fp32", "--accumulate"],
    ["--layout", "masked", "--groups", "4", "--expected-m", "20"],
])  # fmt: skip
def test_explain(options, capsys):
    assert cli.main(["explain", "64x2112x7168", *options]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("64 x 2112 x 7168 ") and "of floor" in printed
    for word in ("gets", "because", "predicted", "floor", "tiles", "kernels"):
        assert re.search(rf"^  {word} ", printed, re.MULTILINE), word
    told = {
        "--fp32": "FP32, added to d",
        "--psum": "prefix sums, 4 groups",
        "--expected-m": "20 rows expected",
    }
    assert all(words in printed for option, words in told.items() if option in options)


@pytest.mark.parametrize("arguments, words", [
    (["64x2112"], "explain: expected MxNxK, such as 64x2112x7168, got '64x2112'"),
    (["manyx1x16"], "explain: expected MxNxK"),
    (["64x2112x24"], "k: expected a multiple of 16, got 24"),
    (["0x2112x16"], "m: expected at least 1, got 0"),
    (["64x2112x16", "--layout", "rows"], "layout: expected one of 'dense', 'contiguous', 'masked', got 'rows'"),
    (["64x2112x16", "--groups", "2"], "groups: expected 1 in the dense layout, got 2"),
    (["64x2112x16", "--expected-m", "2"], "expected_m: expected the masked layout with it"),
])  # fmt: skip
def test_a_bad_explain(arguments, words, capsys):
    assert cli.main(["explain", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_grade_is_the_labs_command(capsys, tmp_path):
    assert cli.main(["grade", str(tmp_path)]) == 2
    assert f"there is no .cu file in {tmp_path}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["grade", "--help"])
    assert ended.value.code == 0 and "usage: python -m minigemm.labs grade" in capsys.readouterr().out


@NO_GPU
def test_test_gpu_without_one(capsys):
    assert cli.main(["test-gpu"]) == 2
    assert "needs a Hopper GPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_under_the_sanitizer(name):
    assert on_gpu.exercise(name)["rel_err"] < 3e-3


def test_the_module_runs():
    answer = subprocess.run(
        [sys.executable, "-m", "minigemm", "--help"], capture_output=True, text=True, check=True
    )
    for command in (
        "tour",
        "doctor",
        "inspect",
        "trace",
        "bench",
        "explain",
        "precompile",
        "test-gpu",
        "grade",
    ):
        assert command in answer.stdout
