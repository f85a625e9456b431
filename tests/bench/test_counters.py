"""Hardware counters by Nsight Compute: what ncu is asked, what it prints, what follows. A script stands in for ncu, the emulator for the GPU."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minigemm
from minigemm import cli, quantize
from minigemm.bench import counters, multicast
from minigemm.bench.multicast import CLUSTERS, staged
from minigemm.types import Problem

MACHINE = {"gpu": "NVIDIA H100 80GB HBM3", "driver": "580.1", "cuda": "13.0", "torch": "2.11", "sms": 132}
RANGE = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
COLUMNS = [
    "ID",
    "Process ID",
    "Process Name",
    "Host Name",
    RANGE,
    "Kernel Name",
    "Context",
    "Stream",
    "Block Size",
    "Grid Size",
    "Device",
    "CC",
]
TIME, CYCLES, CLOCK, PIPE = (
    counters.METRICS[key] for key in ("time_s", "cycles_elapsed", "sm_clock_hz", "tensor_percent")
)
SECTORS, TO_SMS, READ, WRITTEN = (
    counters.METRICS[key] for key in ("l2_sectors", "sm_read_bytes", "dram_read_bytes", "dram_written_bytes")
)
IN = [f'"7 ""<default domain>:minigemm-call-{number}:none:none:none:none"""' for number in (0, 1)]
#: As ncu prints it: lines of its own, names, units, a line a kernel. Call 0 has two kernels, call 1 has one, of which not everything could be counted.
PRINTED = f"""==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "s10_grouped": 0%....50%....100% - 7 passes
==PROF== Disconnected from process 4711
"ID","Process ID","Process Name","Host Name","{RANGE}","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"{READ}","{WRITTEN}","{TIME}","{TO_SMS}","{SECTORS}","{CLOCK}","{CYCLES}","{PIPE}"
"","","","","","","","","","","","","byte","Kbyte","ns","byte","sector","cycle/nsecond","cycle","%"
"0","4711","python3.12","host",{IN[0]},"s10_grouped","1","7","(384, 1, 1)","(132, 1, 1)","0","9.0",\
"1,000,000","500","30,000","4,000,000","200,000","1.50","45,000","80.00"
"1","4711","python3.12","host",{IN[0]},"reduce(float, int)","1","7","(128, 1, 1)","(9, 1, 1)","0","9.0",\
"200,000","100","10,000","1,000,000","50,000","1.90","19,000","0"
"2","4711","python3.12","host",{IN[1]},"nvjet_qqtst","1","7","(384, 1, 1)","(132, 1, 1)","0","9.0",\
"1,000,000","n/a","20,000","4,000,000","200,000","1.75","35,000","90.5"
"""


def call(number, who="minigemm", m=64, **fields):
    return {
        "number": number, "who": who, "layout": "dense", "groups": 1, "m": m, "n": 2112, "k": 7168, "operations": 2 * m * 2112 * 7168, "least_bytes": 10**7,
        "config": {}, **fields,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- what ncu printed


def test_parsing():
    """Base units, whichever ncu chose; thousands' commas; "n/a" is no value; whose kernel it is."""
    first, second, third = counters.parse(PRINTED)
    assert (first.name, first.grid, first.block, first.call) == (
        "s10_grouped",
        "(132, 1, 1)",
        "(384, 1, 1)",
        0,
    )
    assert (second.name, second.call, third.call) == ("reduce(float, int)", 0, 1)
    assert first.values == pytest.approx(
        {
            READ: 1e6,
            WRITTEN: 5e5,
            TIME: 3e-5,
            TO_SMS: 4e6,
            SECTORS: 2e5,
            CLOCK: 1.5e9,
            CYCLES: 45000,
            PIPE: 80,
        }
    )
    assert WRITTEN not in third.values and third.values[PIPE] == 90.5
    assert counters.parse("") == counters.parse("==ERROR== ERR_NVGPUCTRPERM - no permission\n") == []
    assert (
        len(counters.parse(PRINTED + PRINTED[PRINTED.index('"ID"') :])) == 6
    )  # another table begins with names of its own


@pytest.mark.parametrize("unit, factor", [
    ("", 1), ("%", 1), ("inst", 1), ("ns", 1e-9), ("nsecond", 1e-9), ("usecond", 1e-6), ("us", 1e-6), ("msecond", 1e-3), ("second", 1), ("byte", 1),
    ("Kbyte", 1e3), ("Mbyte", 1e6), ("Gbyte", 1e9), ("cycle/nsecond", 1e9), ("cycle/second", 1), ("Ghz", 1e9), ("hz", 1), ("Mbyte/second", 1e6),
])  # fmt: skip
def test_units(unit, factor):
    assert counters._factor(unit) == pytest.approx(factor)


def test_rows():
    """Counts of a call's kernels are summed up, shares and rates are means over their time."""
    (own, other), skipped = counters.rows_of(
        [call(0), call(1, "cublaslt"), call(2)], counters.parse(PRINTED), 132
    )
    assert (
        own["time_s"] == pytest.approx(4e-5)
        and own["cycles_elapsed"] == 64000
        and own["kernels"][0]["name"] == "s10_grouped"
    )
    assert own["tensor_percent"] == pytest.approx(60) and own["sm_clock_hz"] == pytest.approx(1.6e9)
    assert own["tensor_share"] == pytest.approx(2 * 64 * 2112 * 7168 / (132 * 8192 * 64000)) and own[
        "tflops"
    ] == pytest.approx(48.44, rel=1e-3)
    assert own["l2_bytes"] == 8_000_000 and own["l2_over_least"] == pytest.approx(0.8)
    assert own["dram_bytes_per_s"] == pytest.approx(1.8e6 / 4e-5)
    assert own["kernels"][1][TIME] == pytest.approx(1e-5) and own["bank_reads_percent"] is None
    assert (
        other["dram_written_bytes"] is None
        and other["dram_bytes_per_s"] is None
        and other["dram_read_bytes"] == 1e6
    )
    assert [(left["number"], left["reason"]) for left in skipped] == [(2, "ncu saw no kernel of it")]


def test_without_nvtx():
    """A kernel for each call can be told by the order; else nothing can."""
    kernels = counters.parse(PRINTED.replace("minigemm-call-", ""))
    rows, skipped = counters.rows_of([call(0), call(1), call(5)], kernels, 132)
    assert [row["number"] for row in rows] == [0, 1, 5] and not skipped
    with pytest.raises(ValueError, match="no NVTX ranges, and 3 kernels of 2 calls"):
        counters.rows_of([call(0), call(1)], kernels, 132)


# ---------------------------------------------------------------------------------------------------- what ncu is asked


def test_the_command():
    command = counters.ncu_command(
        "/opt/ncu", [TIME, CYCLES], Path("/tmp/calls.json"), ["dense:64x2112x7168", "multicast"]
    )
    assert command[0] == "/opt/ncu" and command[-6:] == [
        sys.executable,
        "-m",
        "minigemm.bench.counters",
        "/tmp/calls.json",
        "dense:64x2112x7168",
        "multicast",
    ]
    options = dict(itertools.pairwise(command[1:-6]))
    assert (
        options["--metrics"] == f"{TIME},{CYCLES}"
        and options["--page"] == "raw"
        and options["--print-units"] == "base"
    )
    assert (options["--cache-control"], options["--clock-control"], options["--profile-from-start"]) == (
        "all",
        "none",
        "off",
    )
    assert (
        {"--csv", "--nvtx"} <= set(command)
        and options["--target-processes"] == "all"
        and "--kernel-name" not in command
    )


def test_shapes():
    assert [str(counters.shape_of(text)) for text in counters.DEFAULT if text != "multicast"] == [
        text.rpartition(":")[2] for text in counters.DEFAULT[:-1]
    ]
    assert (
        counters.shape_of("masked:4x256x7168x2048").layout == "masked"
        and counters.shape_of("dense:64x32x64").layout == "dense"
    )
    for wrong in ("64x2112", "masked:64x2112x7168", "ragged:4x64x32x64", "4x256x7168x2048"):
        with pytest.raises(ValueError, match=r"expected .* got"):
            counters.shape_of(wrong)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is said to be there."""
    monkeypatch.setattr(counters, "best_device", lambda: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(counters, "identity", lambda device: MACHINE)


@pytest.fixture
def ncu(gpu, monkeypatch, tmp_path):
    """A script of that name on the PATH: it knows all metrics but one, and prints what stands in `printed`. Its last command is in `asked`."""
    known = "\n".join(
        f"{name.partition('.')[0]:60} Counter  what it is"
        for name in counters.METRICS.values()
        if "gmma_cycles" not in name
    )
    (tmp_path / "known").write_text(f"Device NVIDIA H100 (gh100)\n-----\n{known}\n")
    (tmp_path / "printed").write_text(PRINTED)
    said = {
        "calls": [call(0), call(1, "cublaslt")],
        "skipped": [{**call(2, m=128), "reason": "ValueError: wrong"}],
    }
    (tmp_path / "said").write_text(json.dumps(said))
    script = tmp_path / "ncu"
    script.write_text(f"""#!{sys.executable}
import pathlib, shutil, sys
here = pathlib.Path({str(tmp_path)!r})
if "--query-metrics" in sys.argv:
    print((here / "known").read_text())
elif "--version" in sys.argv:
    print("NVIDIA (R) Nsight Compute Command Line Profiler\\nVersion 2025.3.1.0 (build 1) (public-release)")
else:
    (here / "asked").write_text("\\n".join(sys.argv[1:]))
    if (here / "said").exists():
        shutil.copy(here / "said", sys.argv[sys.argv.index("minigemm.bench.counters") + 1])
    print((here / "printed").read_text())
    sys.exit(0 if (here / "said").exists() else 1)
""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_bench_ncu(ncu, tmp_path, capsys):
    file = tmp_path / "counters.json"
    assert (
        cli.main(["bench", "--ncu", "64x2112x7168", "multicast", "--json", str(file)]) == 1
    )  # one was wrong
    asked = (ncu / "asked").read_text().splitlines()
    assert (
        asked[-2:] == ["dense:64x2112x7168", "multicast"]
        and "gmma_cycles" not in asked[asked.index("--metrics") + 1]
    )
    results = json.loads(file.read_text())
    assert [row["who"] for row in results["rows"]] == ["minigemm", "cublaslt"] and results["machine"] == {
        **MACHINE,
        "ncu": "2025.3.1.0",
    }
    assert (
        results["missing"] == [counters.METRICS["tensor_gmma_percent"]]
        and "tensor_gmma_percent" not in results["metrics"]
    )
    assert results["protocol"] and results["date"] and results["lost"] == ""
    printed = capsys.readouterr().out
    assert (
        "64x2112x7168" in printed
        and "40.00" in printed
        and "not counted: minigemm at 128x2112x7168: ValueError: wrong" in printed
    )
    assert cli.main(["bench", "--ncu", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert (ncu / "asked").read_text().splitlines()[-2:] == ["masked:4x256x7168x2048", "multicast"]


def test_ncu_that_counts_nothing(ncu, capsys):
    (ncu / "said").unlink()
    (ncu / "printed").write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")
    assert cli.main(["bench", "--ncu"]) == 2
    assert "ncu counted nothing (status 1): ==ERROR== ERR_NVGPUCTRPERM" in capsys.readouterr().err
    (ncu / "known").write_text("some other form\n")  # then nothing is left out
    assert counters.known_metrics(str(ncu / "ncu")) == (list(counters.METRICS.values()), [])


def test_without_ncu(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(counters, "NSIGHT", tmp_path / "nsight")
    assert cli.main(["bench", "--ncu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert (
        line.startswith("minigemm: bench --ncu needs ncu")
        and str(tmp_path / "cuda" / "bin") in line
        and str(tmp_path / "nsight") in line
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu(capsys):
    assert cli.main(["bench", "--ncu"]) == 2
    assert "bench --ncu needs a Hopper GPU" in capsys.readouterr().err
    assert cli.main(["bench", "--ncu", "64x2112"]) == 2
    assert "expected MxNxK" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- the child


def test_the_child(monkeypatch, tmp_path):
    """What it calls, and when ncu may look: once a call, with the call's number. The emulator in the GPU's place."""
    log = []
    monkeypatch.setattr(counters, "best_device", lambda: torch.device("cpu"))
    for name in ("set_device", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: log.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: log.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", log.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: log.append("pop"))
    monkeypatch.setattr(counters, "PROBLEMS", (Problem(70, 72, 144),))
    monkeypatch.setattr(counters, "TILES", ({"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1},))
    file = tmp_path / "calls.json"
    counters._child(file, ["dense:40x24x64", "masked:2x20x24x64", "multicast"])
    said = json.loads(file.read_text())
    assert not said["skipped"]
    assert [about["who"] for about in said["calls"]] == [
        "minigemm",
        "minigemm",
        "s08_persistent",
        "s09_multicast",
        "s09_multicast",
    ]
    assert [about.get("cluster") for about in said["calls"]] == [None, None, *CLUSTERS]
    assert log == [
        word for number in range(5) for word in ("start", f"minigemm-call-{number}", "pop", "stop")
    ]
    monkeypatch.setattr(counters.MiniGemm, "tolerance", -1.0)
    counters._child(file, ["dense:40x24x64"])
    (skipped,) = json.loads(file.read_text())["skipped"]
    assert skipped["reason"].startswith("ValueError: wrong: relative error") and skipped["m"] == 40


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_asked_bytes(cluster):
    """What arithmetic says is what the emulator counts; half the bytes of b, or of a and its scales, with clusters of two."""
    problem = Problem(256, 128, 256)
    stage, config = staged(cluster, {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1})
    a = quantize.quantize(quantize.activations(problem.m, problem.k), "1x128")
    b = quantize.quantize(quantize.weights(problem.n, problem.k), "128x128")
    with minigemm.observe() as seen:
        stage.gemm(a, b, config)
    of_a, of_b = 4 * 256 * (256 + 8), 4 * 128 * 256
    expected = {"none": of_a + of_b, "along m": of_a + of_b // 2, "along n": of_a // 2 + of_b}[cluster]
    assert counters.asked_bytes(problem, config) == seen[0].counters["tma_load_bytes"] == expected


def test_the_table_of_clusters():
    """Shares are of the same tile without clusters."""
    rows = [
        call(number, f"s0{8 + (cluster != 'none')}", cluster=cluster, asked_bytes=asked, config={"BLOCK_M": block, "BLOCK_N": 128, "STAGES": 3},
             time_s=1e-5, tensor_share=0.5, l2_read_sectors=None, sm_read_bytes=2 * asked, sm_tma_read_bytes=asked)
        for number, (block, cluster, asked) in enumerate([(256, "none", 1e9), (256, "along m", 7.5e8), (128, "along n", 5e8)])
    ]  # fmt: skip
    made = counters.multicast_table({"rows": rows})
    asked, share, sectors, sms = ([*made.columns[column].cells] for column in (6, 7, 8, 11))
    assert (
        asked == ["1000.0", "750.0", "500.0"]
        and share == ["100.0%", "75.0%", "-"]
        and sectors == ["-"] * 3
        and sms == ["100.0%", "75.0%", "-"]
    )
    assert multicast.TILES and counters.table({"rows": rows}).row_count == 0


# ---------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_gpu(tmp_path, capsys):
    """A small shape: minigemm and cuBLASLt are counted, where ncu is."""
    try:
        counters.find_ncu()
    except ValueError as missing:
        pytest.skip(str(missing))
    file = tmp_path / "counters.json"
    assert cli.main(["bench", "--ncu", "256x384x1024", "--json", str(file)]) == 0
    with capsys.disabled():
        print(capsys.readouterr().out)
    rows = json.loads(file.read_text())["rows"]
    assert [row["who"] for row in rows] == ["minigemm", "cublaslt"] and all(
        row["time_s"] > 0 and 0 < row["tensor_share"] < 1 for row in rows
    )
