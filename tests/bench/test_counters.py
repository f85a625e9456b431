"""Hardware counters: what ncu is asked, what it prints, what follows.

A script stands in for ncu, the emulator for the GPU.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch

import minigemm
from minigemm import cli, quantize
from minigemm.bench import _counted, counters, multicast, ncu
from minigemm.bench.multicast import CLUSTERS, staged
from minigemm.kernels import s01_naive, s04_wgmma
from minigemm.types import Layout, Product

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
#: What ncu prints: lines of its own, names, units, a line for each kernel. Call 0 has two kernels. Call 1 has
#: one, of which not everything could be counted.
PRINTED = f"""==PROF== Connected to process 4711 (/usr/bin/python3.12)
==PROF== Profiling "s11_overlapped_fp8_gemm_nt": 0%....50%....100% - 7 passes
==PROF== Disconnected from process 4711
"ID","Process ID","Process Name","Host Name","{RANGE}","Kernel Name","Context","Stream",\
"Block Size","Grid Size","Device","CC",\
"{READ}","{WRITTEN}","{TIME}","{TO_SMS}","{SECTORS}","{CLOCK}","{CYCLES}","{PIPE}"
"","","","","","","","","","","","","byte","Kbyte","ns","byte","sector","cycle/nsecond","cycle","%"
"0","4711","python3.12","host",{IN[0]},"s11_overlapped_fp8_gemm_nt","1","7","(384, 1, 1)","(132, 1, 1)","0","9.0",\
"1,000,000","500","30,000","4,000,000","200,000","1.50","45,000","80.00"
"1","4711","python3.12","host",{IN[0]},"reduce(float, int)","1","7","(128, 1, 1)","(9, 1, 1)","0","9.0",\
"200,000","100","10,000","1,000,000","50,000","1.90","19,000","0"
"2","4711","python3.12","host",{IN[1]},"nvjet_qqtst","1","7","(384, 1, 1)","(132, 1, 1)","0","9.0",\
"1,000,000","n/a","20,000","4,000,000","200,000","1.75","35,000","90.5"
"""


def call(number, who="minigemm", m=64, **fields):
    sizes = {"layout": "dense", "groups": 1, "m": m, "n": 2112, "k": 7168}
    work = {"operations": 2 * m * 2112 * 7168, "least_bytes": 10**7}
    return {"number": number, "who": who, **sizes, **work, "config": {}, **fields}


# --- what ncu printed


def test_parsing():
    """Base units, whichever ncu chose; thousands' commas; "n/a" is no value; whose kernel it is."""
    first, second, third = ncu.parse(PRINTED)
    assert (first.name, first.grid, first.block, first.call) == (
        "s11_overlapped_fp8_gemm_nt",
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
    assert ncu.parse("") == ncu.parse("==ERROR== ERR_NVGPUCTRPERM - no permission\n") == []
    assert (
        len(ncu.parse(PRINTED + PRINTED[PRINTED.index('"ID"') :])) == 6
    )  # another table begins with names of its own


@pytest.mark.parametrize("unit, factor", [
    ("", 1), ("%", 1), ("inst", 1),
    ("ns", 1e-9), ("nsecond", 1e-9), ("usecond", 1e-6), ("us", 1e-6), ("msecond", 1e-3), ("second", 1),
    ("byte", 1), ("Kbyte", 1e3), ("Mbyte", 1e6), ("Gbyte", 1e9), ("Mbyte/second", 1e6),
    ("cycle/nsecond", 1e9), ("cycle/second", 1), ("Ghz", 1e9), ("hz", 1),
])  # fmt: skip
def test_units(unit, factor):
    assert ncu._factor(unit) == pytest.approx(factor)


def test_rows():
    """Counts of a call's kernels are summed up, shares and rates are means over their time."""
    (own, other), skipped = counters.rows_of([call(0), call(1, "cublaslt"), call(2)], ncu.parse(PRINTED), 132)
    assert own["time_s"] == pytest.approx(4e-5)
    assert own["cycles_elapsed"] == 64000
    assert own["kernels"][0]["name"] == "s11_overlapped_fp8_gemm_nt"
    assert own["tensor_percent"] == pytest.approx(60) and own["sm_clock_hz"] == pytest.approx(1.6e9)
    assert own["tensor_share"] == pytest.approx(2 * 64 * 2112 * 7168 / (132 * 8192 * 64000))
    assert own["tflops"] == pytest.approx(48.44, rel=1e-3)
    assert own["l2_bytes"] == 8_000_000 and own["l2_over_least"] == pytest.approx(0.8)
    assert own["dram_bytes_per_s"] == pytest.approx(1.8e6 / 4e-5)
    assert own["kernels"][1][TIME] == pytest.approx(1e-5) and own["bank_reads_percent"] is None
    assert other["dram_written_bytes"] is None
    assert other["dram_bytes_per_s"] is None
    assert other["dram_read_bytes"] == 1e6
    assert [(left["number"], left["reason"]) for left in skipped] == [(2, "ncu saw no kernel of it")]


def test_without_nvtx():
    """A kernel for each call can be told by the order; else nothing can."""
    kernels = ncu.parse(PRINTED.replace("minigemm-call-", ""))
    rows, skipped = counters.rows_of([call(0), call(1), call(5)], kernels, 132)
    assert [row["number"] for row in rows] == [0, 1, 5] and not skipped
    with pytest.raises(ValueError, match="no NVTX ranges, and 3 kernels of 2 calls"):
        counters.rows_of([call(0), call(1)], kernels, 132)


# --- what ncu is asked


def test_the_command():
    arguments = ["/tmp/calls.json", "dense:64x2112x7168", "multicast"]
    command = ncu.command_of("/opt/ncu", [TIME, CYCLES], counters.CHILD, arguments)
    assert command[0] == "/opt/ncu"
    assert command[-6:] == [sys.executable, "-m", "minigemm.bench._counted", *arguments]
    assert importlib.util.find_spec(counters.CHILD)
    options = dict(itertools.pairwise(command[1:-6]))
    assert options["--metrics"] == f"{TIME},{CYCLES}"
    assert (options["--page"], options["--print-units"]) == ("raw", "base")
    assert (options["--cache-control"], options["--clock-control"]) == ("all", "none")
    assert (options["--profile-from-start"], options["--target-processes"]) == ("off", "all")
    assert {"--csv", "--nvtx"} <= set(command) and "--kernel-name" not in command


def test_shapes():
    assert [str(counters.workload_of(text)) for text in counters.DEFAULT if text != "multicast"] == [
        text.rpartition(":")[2] for text in counters.DEFAULT[:-1]
    ]
    assert counters.workload_of("masked:4x256x7168x2048").product.layout is Layout.MASKED
    assert counters.workload_of("dense:64x32x64").product.layout is Layout.DENSE
    for wrong in ("64x2112", "masked:64x2112x7168", "ragged:4x64x32x64", "4x256x7168x2048"):
        with pytest.raises(ValueError, match=r"expected .* got"):
            counters.workload_of(wrong)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is said to be there."""
    monkeypatch.setattr(counters, "hopper_gpu", lambda what: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(counters, "identity", lambda device: MACHINE)


@pytest.fixture
def fake_ncu(gpu, monkeypatch, tmp_path):
    """Put a script named ncu on the PATH. It knows all metrics but one and prints the file `printed`.

    Its last command is in the file `asked`.
    """
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
        shutil.copy(here / "said", sys.argv[sys.argv.index("minigemm.bench._counted") + 1])
    print((here / "printed").read_text())
    sys.exit(0 if (here / "said").exists() else 1)
""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_bench_ncu(fake_ncu, tmp_path, capsys):
    file = tmp_path / "counters.json"
    assert (
        cli.main(["bench", "--ncu", "64x2112x7168", "multicast", "--json", str(file)]) == 1
    )  # one was wrong
    asked = (fake_ncu / "asked").read_text().splitlines()
    assert asked[-2:] == ["dense:64x2112x7168", "multicast"]
    assert "gmma_cycles" not in asked[asked.index("--metrics") + 1]
    results = json.loads(file.read_text())
    assert [row["who"] for row in results["rows"]] == ["minigemm", "cublaslt"]
    assert results["machine"] == {
        **MACHINE,
        "ncu": "2025.3.1.0",
    }
    assert results["missing"] == [counters.METRICS["tensor_gmma_percent"]]
    assert "tensor_gmma_percent" not in results["metrics"]
    assert results["protocol"] and results["date"] and results["lost"] == ""
    printed = capsys.readouterr().out
    assert "64x2112x7168" in printed
    assert "40.00" in printed
    assert "not counted: minigemm at 128x2112x7168: ValueError: wrong" in printed
    assert cli.main(["bench", "--ncu", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    assert (fake_ncu / "asked").read_text().splitlines()[-2:] == ["masked:4x256x7168x2048", "multicast"]


def test_ncu_that_counts_nothing(fake_ncu, capsys):
    (fake_ncu / "said").unlink()
    (fake_ncu / "printed").write_text("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")
    assert cli.main(["bench", "--ncu"]) == 2
    assert "ncu counted nothing (status 1): ==ERROR== ERR_NVGPUCTRPERM" in capsys.readouterr().err
    (fake_ncu / "known").write_text("some other form\n")  # then nothing is left out
    names = list(counters.METRICS.values())
    assert ncu.known_metrics(str(fake_ncu / "ncu"), counters.METRICS.values()) == (names, [])


def test_without_ncu(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(ncu, "NSIGHT", tmp_path / "nsight")
    assert cli.main(["bench", "--ncu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("minigemm: bench --ncu needs ncu")
    assert str(tmp_path / "cuda" / "bin") in line
    assert str(tmp_path / "nsight") in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu(capsys):
    assert cli.main(["bench", "--ncu"]) == 2
    assert "bench --ncu needs a Hopper GPU" in capsys.readouterr().err
    assert cli.main(["bench", "--ncu", "64x2112"]) == 2
    assert "expected MxNxK" in capsys.readouterr().err


# --- the child


def test_the_child(monkeypatch, tmp_path):
    """It runs each wanted call, and lets ncu look once per call, under the call's number."""
    log = []
    monkeypatch.setattr(_counted, "best_device", lambda: torch.device("cpu"))
    for name in ("set_device", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: log.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: log.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", log.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: log.append("pop"))
    monkeypatch.setattr(_counted, "PRODUCTS", (Product(70, 72, 144),))
    monkeypatch.setattr(_counted, "TILES", ({"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1},))
    monkeypatch.setattr(_counted, "LADDER", Product(64, 64, 128))
    monkeypatch.setattr(_counted, "stages", lambda: [s01_naive, s04_wgmma])

    file = tmp_path / "calls.json"
    _counted.main(file, ["dense:40x24x64", "masked:2x20x24x64", "multicast", "stages"])
    said = json.loads(file.read_text())
    assert not said["skipped"]
    clusters = ["s08_persistent", "s09_multicast", "s09_multicast"]
    calls = said["calls"]
    assert [call["who"] for call in calls] == ["minigemm"] * 2 + clusters + ["s01_naive", "s04_wgmma"]
    assert [call.get("cluster") for call in calls] == [None, None, *CLUSTERS, None, None]
    assert calls[-1]["operations"] == 2 * 64 * 64 * 128 and calls[-1]["config"]["BLOCK_M"]
    assert log == [
        word for number in range(7) for word in ("start", f"minigemm-call-{number}", "pop", "stop")
    ]

    monkeypatch.setattr(_counted.MiniGemm, "tolerance", -1.0)
    _counted.main(file, ["dense:40x24x64"])
    (skipped,) = json.loads(file.read_text())["skipped"]
    assert skipped["reason"].startswith("ValueError: wrong: relative error") and skipped["m"] == 40


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_asked_bytes(cluster):
    """The emulator counts the same bytes: with clusters of two half of b's, or of a's and its scales'."""
    product = Product(256, 128, 256)
    stage, config = staged(cluster, {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1})
    a = quantize.quantize(quantize.activations(product.m, product.k), "1x128")
    b = quantize.quantize(quantize.weights(product.n, product.k), "128x128")
    with minigemm.observe() as seen:
        stage.gemm(a, b, config)
    of_a, of_b = 4 * 256 * (256 + 8), 4 * 128 * 256
    expected = {"none": of_a + of_b, "along m": of_a + of_b // 2, "along n": of_a // 2 + of_b}[cluster]
    assert _counted.asked_bytes(product, config) == seen[0].counters["tma_load_bytes"] == expected


def test_the_table_of_clusters():
    """Shares are of the same tile without clusters."""
    cases = [(256, "none", 1e9), (256, "along m", 7.5e8), (128, "along n", 5e8)]
    rows = [
        call(
            number,
            f"s0{8 + (cluster != 'none')}",
            cluster=cluster,
            config={"BLOCK_M": block, "BLOCK_N": 128, "STAGES": 3},
            time_s=1e-5,
            tensor_share=0.5,
            asked_bytes=asked,
            l2_read_sectors=None,
            sm_read_bytes=2 * asked,
            sm_tma_read_bytes=asked,
        )
        for number, (block, cluster, asked) in enumerate(cases)
    ]
    made = counters.multicast_table({"rows": rows})
    asked, share, sectors, sms = ([*made.columns[column].cells] for column in (6, 7, 8, 11))
    assert asked == ["1000.0", "750.0", "500.0"]
    assert share == ["100.0%", "75.0%", "-"]
    assert sectors == ["-"] * 3
    assert sms == ["100.0%", "75.0%", "-"]
    assert multicast.TILES and counters.table({"rows": rows}).row_count == 0


# --- on a
# GPU


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_a_gpu(tmp_path, capsys):
    """A small shape: minigemm and cuBLASLt are counted, where ncu is."""
    try:
        ncu.find_ncu()
    except ValueError as missing:
        pytest.skip(str(missing))
    file = tmp_path / "counters.json"
    assert cli.main(["bench", "--ncu", "256x384x1024", "--json", str(file)]) == 0
    with capsys.disabled():
        print(capsys.readouterr().out)
    rows = json.loads(file.read_text())["rows"]
    assert [row["who"] for row in rows] == ["minigemm", "cublaslt"]
    assert all(row["time_s"] > 0 and 0 < row["tensor_share"] < 1 for row in rows)
