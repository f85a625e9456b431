"""Hardware counters of a call, by NVIDIA's Nsight Compute: `python -m minigemm bench --ncu` on a Hopper GPU with ncu.

ncu runs this module again, once for all calls. That child makes the tensors, calls once, which compiles, checks the result, and then calls a second
time between cudaProfilerStart and cudaProfilerStop, which is all that ncu looks at: no kernel has to be known by name. An NVTX range around each such call
says which kernels are whose. A call's kernels run one after the other: counts and times are summed up, shares are averaged over their time.
"""

from __future__ import annotations

import csv
import datetime
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import quantize
from ..hopper import PRODUCTS_PER_CYCLE
from ..layout import ceil_div
from ..machine import best_device, identity
from ..quantize import BLOCK
from ..types import Problem
from . import cases, shapes
from .comparison import reason
from .multicast import CLUSTERS, PROBLEMS, TILES, staged
from .peers import CublasLt, MiniGemm, Peer
from .processes import environment
from .report import empty_table, size_of, tile_of, wide_console
from .shapes import Shape

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "DEFAULT",
    "METRICS",
    "asked_bytes",
    "count",
    "multicast_table",
    "ncu_command",
    "parse",
    "show",
    "table",
]

MULTICAST = "multicast"  # instead of a shape: s08_persistent beside s09_multicast
DEFAULT = (
    "4096x4096x7168", "4096x2112x7168", "64x2112x7168", "64x7168x2048", "128x2112x7168", "contiguous:4x8192x7168x2048", "masked:4x256x7168x2048", MULTICAST,
)  # fmt: skip
#: What is counted, by the key that rows have it under. Times in seconds, clocks in Hz, sectors of 32 bytes, shares in per cent of the most that is possible.
METRICS = {
    "time_s": "gpu__time_duration.sum",
    "cycles_elapsed": "sm__cycles_elapsed.max",
    "cycles_active": "sm__cycles_active.avg",
    "sm_clock_hz": "sm__cycles_elapsed.avg.per_second",
    "wgmma_instructions": "sm__inst_executed_pipe_tensor_op_gmma.sum",
    "tensor_percent": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tensor_gmma_percent": "sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tensor_hmma_percent": "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_elapsed",  # where some versions count WGMMA
    "tma_percent": "sm__pipe_tma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "l2_sectors": "lts__t_sectors_srcunit_tex.sum",  # for the SMs, read and written
    "l2_read_sectors": "lts__t_sectors_srcunit_tex_op_read.sum",
    "l2_all_bytes": "lts__t_bytes.sum",  # from one half of L2 to the other and to DRAM too
    "sm_read_bytes": "l1tex__m_xbar2l1tex_read_bytes.sum",  # what came to the SMs
    "sm_tma_read_bytes": "l1tex__m_xbar2l1tex_read_bytes_mem_global_op_tma_ld.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_written_bytes": "dram__bytes_write.sum",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "bank_reads_percent": "l1tex__data_bank_reads.avg.pct_of_peak_sustained_elapsed",
    "bank_writes_percent": "l1tex__data_bank_writes.avg.pct_of_peak_sustained_elapsed",
}
NSIGHT = Path("/opt/nvidia/nsight-compute")  # where the toolkit puts it, a folder for each version
SURE = "gpu__time_duration"  # a list of metrics that lacks it is not understood
OPERATIONS = 2 * PRODUCTS_PER_CYCLE  # of FP8 a cycle and SM: products, and as many sums
SECTOR = 32  # bytes
PATIENCE = 540  # seconds for ncu and all calls
LABEL = "minigemm-call-"  # of the NVTX ranges; a number follows
BASES = ("second", "s", "byte", "hz", "cycle", "inst", "sector", "request")
PREFIXES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS = {prefix + base: factor for prefix, factor in PREFIXES.items() for base in BASES}


# ---------------------------------------------------------------------------------------------------- ncu


def count(wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Counters of minigemm's and cuBLASLt's calls at these shapes, and of clusters; what comes back is what JSON holds.

    Args:
        wanted: "MxNxK", "contiguous:GROUPSxMxNxK", "masked:GROUPSxMxNxK", or "multicast" for s08_persistent beside s09_multicast; by default DEFAULT.

    Raises:
        ValueError: a shape is none, there is no Hopper GPU, no ncu, or ncu counted nothing; it says what ncu said. A call that fails ends nothing: it is
            in `skipped`, with the reason. Where all ended early, `lost` says how.
    """
    wanted = [MULTICAST if text == MULTICAST else _with_layout(shape_of(text)) for text in wanted or DEFAULT]
    device = best_device()
    if device.type != "cuda":
        raise ValueError("bench --ncu needs a Hopper GPU (compute capability 9.0), and torch sees none")
    ncu = find_ncu()
    machine = {**identity(device), "ncu": _version(ncu)}
    metrics, missing = known_metrics(ncu)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "calls.json"
        command = ncu_command(ncu, metrics, file, wanted)
        try:
            answer = subprocess.run(
                command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired as late:
            raise ValueError(f"ncu was not ready after {PATIENCE} s: {' '.join(command)}") from late
        kernels = parse(answer.stdout)
        if not kernels or not file.exists():
            raise ValueError(
                f"ncu counted nothing (status {answer.returncode}): {_said(answer.stdout, answer.stderr)}"
            )
        child = json.loads(file.read_text(encoding="utf-8"))
    rows, skipped = rows_of(child["calls"], kernels, machine["sms"])
    return {
        "what": "minigemm, cuBLASLt and multicast by Nsight Compute's counters, python -m minigemm bench --ncu",
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "protocol": "one call after one that compiles and is checked, each kernel replayed until all is counted; ncu --cache-control all (nothing is in L2 "
        "before each replay) --clock-control none; kernels of a call summed up, shares averaged over their time. tensor_share: operations over what the "
        f"tensor cores of all SMs can do in the cycles elapsed, {OPERATIONS} a cycle and SM; l2_bytes: sectors for the SMs, read and written; least_bytes: "
        "operands and result moved once; asked_bytes: what TMA asks L2 for, by arithmetic, as the emulator counts it",
        "metrics": {key: name for key, name in METRICS.items() if name in metrics},
        "missing": missing,
        "rows": rows,
        "skipped": [*child["skipped"], *skipped],
        "lost": _said("", answer.stderr) if answer.returncode else "",
    }


def shape_of(text: str) -> Shape:
    """A shape as `--ncu` has it: MxNxK, or LAYOUT:GROUPSxMxNxK. ValueError names what is wrong."""
    layout, _, sizes = text.rpartition(":")
    return shapes.parse(sizes, layout or None)


def _with_layout(shape: Shape) -> str:
    return f"{shape.layout}:{shape}"


def find_ncu() -> str:
    """Where ncu is. ValueError where it is not, with the places that were looked at."""
    folders = [
        f"{os.environ.get('CUDA_HOME') or '/usr/local/cuda'}/bin",
        *map(str, sorted(NSIGHT.glob("*"), reverse=True)),
    ]
    found = shutil.which("ncu") or shutil.which("ncu", path=os.pathsep.join(folders))
    if found is None:
        places = f"the PATH, {folders[0]} and {NSIGHT}/*"
        raise ValueError(
            f"bench --ncu needs ncu, the command of NVIDIA Nsight Compute; it is not in {places}"
        )
    return found


def known_metrics(ncu: str) -> tuple[list[str], list[str]]:
    """Those of METRICS that this ncu has for Hopper, and those that it has not: one that it does not know would end it. All, where it does not tell."""
    names = list(METRICS.values())
    try:
        answer = subprocess.run(
            [ncu, "--query-metrics", "--chips", "gh100"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return names, []
    known = set(re.findall(r'^\s*"?(\w+__\w+)', answer.stdout, re.MULTILINE))
    if SURE not in known:
        return names, []
    return [name for name in names if name.partition(".")[0] in known], [
        name for name in names if name.partition(".")[0] not in known
    ]


def ncu_command(ncu: str, metrics: Iterable[str], file: Path, wanted: Iterable[str]) -> list[str]:
    """ncu over this module, which calls what is wanted and leaves what it called in `file`."""
    return [
        ncu, "--csv", "--page", "raw", "--print-units", "base", "--metrics", ",".join(metrics), "--cache-control", "all", "--clock-control", "none",
        "--target-processes", "all", "--profile-from-start", "off", "--nvtx", sys.executable, "-m", __name__, str(file), *wanted,
    ]  # fmt: skip


def _version(ncu: str) -> str:
    answer = subprocess.run([ncu, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"Version (\S+)", answer.stdout)
    return found[1] if found else "unknown"


def _said(output: str, errors: str) -> str:
    """The end of what ncu and the child printed, in one line."""
    return " | ".join(
        line.strip() for line in f"{output[-1000:]}\n{errors[-1500:]}".splitlines() if line.strip()
    )


# ---------------------------------------------------------------------------------------------------- what it printed


@dataclass(frozen=True)
class Kernel:
    """A kernel that was counted.

    call: the number of the call that launched it, None where ncu shows no NVTX ranges.
    values: by ncu's names; seconds, bytes, Hz, per cent.
    """

    name: str
    grid: str
    block: str
    call: int | None
    values: dict[str, float] = field(default_factory=dict)


def parse(text: str) -> list[Kernel]:
    """The kernels in what `ncu --csv --page raw` printed, in order. What stands before the CSV, and what is no number ("n/a"), is left out."""
    start = text.find('"ID"')
    header: list[str] = []
    units: list[str] = []
    found = []
    for row in csv.reader(io.StringIO(text[start:] if start >= 0 else "")):
        if row[:1] == ["ID"]:
            header, units = row, [""] * len(row)
        elif len(row) != len(header):
            continue  # a line of ncu's own
        elif row[0] == "":
            units = row
        else:
            cells = dict(zip(header, row, strict=True))
            values = {name: number * _factor(unit) for name, cell, unit in zip(header, row, units, strict=True)
                      if "__" in name and (number := _number(cell)) is not None}  # fmt: skip
            label = next((hit for cell in row if (hit := re.search(rf"{LABEL}(\d+)", cell))), None)
            name, grid, block = (
                cells.get(column, "") for column in ("Kernel Name", "Grid Size", "Block Size")
            )
            found.append(Kernel(name, grid, block, int(label[1]) if label else None, values))
    return found


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None


def _factor(unit: str) -> float:
    """What a value in this unit is to be multiplied by for seconds, bytes, Hz: 1e-9 for ns, 1e9 for cycle/ns. 1 for what is counted and for per cent."""
    top, _, bottom = unit.partition("/")
    return UNITS.get(top, 1.0) / UNITS.get(bottom, 1.0)


def rows_of(
    calls: Sequence[Mapping[str, Any]], kernels: Sequence[Kernel], sms: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each call, with its kernels, and the calls that have none, with the reason. ValueError where nothing says which kernels are whose."""
    if not any(
        kernel.call is not None for kernel in kernels
    ):  # then only a kernel for each call leaves no doubt
        if len(kernels) != len(calls):
            raise ValueError(
                f"ncu shows no NVTX ranges, and {len(kernels)} kernels of {len(calls)} calls: {sorted({kernel.name for kernel in kernels})}"
            )
        shares = [[kernel] for kernel in kernels]
    else:
        shares = [[kernel for kernel in kernels if kernel.call == call["number"]] for call in calls]
    rows = [row_of(call, own, sms) for call, own in zip(calls, shares, strict=True) if own]
    return rows, [
        {**call, "reason": "ncu saw no kernel of it"}
        for call, own in zip(calls, shares, strict=True)
        if not own
    ]


def row_of(call: Mapping[str, Any], kernels: Sequence[Kernel], sms: int) -> dict[str, Any]:
    """A call's counters by the keys of METRICS, None for those that were not counted, and what follows from them."""
    counts = {key: _total(name, kernels) for key, name in METRICS.items()}
    time_s, cycles, sectors = counts["time_s"], counts["cycles_elapsed"], counts["l2_sectors"]
    read, written = counts["dram_read_bytes"], counts["dram_written_bytes"]
    l2_bytes = None if sectors is None else sectors * SECTOR
    return {
        **call,
        **counts,
        "tflops": call["operations"] / time_s / 1e12 if time_s else None,
        "tensor_share": call["operations"] / (sms * OPERATIONS * cycles) if cycles else None,
        "l2_bytes": l2_bytes,
        "l2_over_least": None if l2_bytes is None else l2_bytes / call["least_bytes"],
        "dram_bytes_per_s": (read + written) / time_s
        if time_s and read is not None and written is not None
        else None,
        "kernels": [
            {"name": kernel.name, "grid": kernel.grid, "block": kernel.block, **kernel.values}
            for kernel in kernels
        ],
    }


def _total(metric: str, kernels: Sequence[Kernel]) -> float | None:
    """Of all kernels: the sum, or the mean over their time of what is a share or a rate. None where one has none."""
    values = [kernel.values[metric] for kernel in kernels if metric in kernel.values]
    if len(values) < len(kernels):
        return None
    if ".pct_of_peak" not in metric and ".per_second" not in metric:
        return sum(values)
    weights = [kernel.values.get(METRICS["time_s"], 1.0) for kernel in kernels]
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


# ---------------------------------------------------------------------------------------------------- the child


def _child(file: Path, wanted: Iterable[str]) -> None:
    """Call what is wanted, each once under ncu's eyes; `file` says after each what there is so far."""
    import torch

    device = best_device()
    torch.cuda.set_device(device)
    done: dict[str, Any] = {"calls": [], "skipped": []}
    number = 0
    for text in wanted:
        for about, prepare in (
            _stage_calls(device) if text == MULTICAST else _library_calls(shape_of(text), device)
        ):
            about["number"] = number
            number += 1
            try:
                _profile(about["number"], prepare(), device)
                done["calls"].append(about)
            except Exception as error:  # one that fails is a line in the results, not the end of them
                done["skipped"].append({**about, "reason": reason(error)})
            file.write_text(json.dumps(done), encoding="utf-8")


def _profile(number: int, call: Callable[[], Any], device: torch.device) -> None:
    """The call, with all that it launches, between ncu's start and stop."""
    import torch

    torch.cuda.empty_cache()  # what is allocated, ncu may save before it replays
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    torch.cuda.nvtx.range_push(f"{LABEL}{number}")
    try:
        call()
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.nvtx.range_pop()
        torch.cuda.profiler.stop()


Prepared = tuple[
    dict[str, Any], Callable[[], Callable[[], Any]]
]  # what a call is; compiles it, checks it and gives it back


def _library_calls(shape: Shape, device: torch.device) -> Iterator[Prepared]:
    """minigemm's call and, of a dense shape, cuBLASLt's."""
    case = cases.make(shape, device)
    for peer in (MiniGemm(), CublasLt()):
        if not peer.refuses(shape):
            config = peer.config(shape, device) if isinstance(peer, MiniGemm) else {}
            yield _about(peer.name, shape, config), functools.partial(_checked, peer, case)


def _checked(peer: Peer, case: cases.Case) -> Callable[[], Any]:
    call = peer.prepare(case)
    error = case.error(call(), peer.scales)
    if not error <= peer.tolerance:  # NaN too
        raise ValueError(f"wrong: relative error {error:.1e}, above {peer.tolerance:.0e}")
    return call


def _stage_calls(device: torch.device) -> Iterator[Prepared]:
    """s08_persistent, and s09_multicast with clusters along m and along n, at every tile of `bench --multicast` and the first of its problems."""
    import torch

    problem = PROBLEMS[0]
    a = quantize.quantize(quantize.activations(problem.m, problem.k, device=device), "1x128")
    b = quantize.quantize(quantize.weights(problem.n, problem.k, device=device), "128x128")

    def prepared(stage: Any, config: Any, expected: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        call = functools.partial(stage.gemm, a, b, config)
        if not torch.equal(call(), expected()):
            raise ValueError("not the bits of s08_persistent")
        return call

    for tile in TILES:
        plain, plain_config = staged("none", tile)
        for cluster in CLUSTERS:
            stage, config = staged(cluster, tile)
            about = _about(stage.name, shapes.dense(problem.m, problem.n, problem.k), config.constants())
            about.update(cluster=cluster, asked_bytes=asked_bytes(problem, config))
            yield (
                about,
                functools.partial(prepared, stage, config, functools.partial(plain.gemm, a, b, plain_config)),
            )


def _about(who: str, shape: Shape, config: Mapping[str, int]) -> dict[str, Any]:
    return {
        "who": who, "layout": shape.layout, "groups": shape.groups, "m": shape.m, "n": shape.n, "k": shape.k, "operations": shape.operations,
        "least_bytes": shape.bytes, "config": dict(config),
    }  # fmt: skip


def asked_bytes(problem: Problem, config: Any) -> int:
    """Bytes that TMA reads of a, its scales and b with a config of s08_persistent or s09_multicast: `tma_load_bytes` of the emulator.

    Every column of tiles reads all of a, and every row of tiles all of b; a cluster's CTAs side by side read a once, those below each other b.
    """
    columns = ceil_div(problem.n, config.block_n * getattr(config, "cluster_n", 1))
    rows = ceil_div(problem.m, config.block_m * getattr(config, "cluster_m", 1))
    return columns * problem.m * (problem.k + 4 * ceil_div(problem.k, BLOCK)) + rows * problem.n * problem.k


# ---------------------------------------------------------------------------------------------------- tables


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print all of it; to no terminal as wide as the tables are."""
    console = console or wide_console()
    machine = results["machine"]
    console.print(
        f"[bold]{machine['gpu']}[/bold], driver {machine['driver']}, CUDA {machine['cuda']}, ncu {machine['ncu']}, {results['date']}"
    )
    for made in (table(results), multicast_table(results)):
        if made.row_count:
            console.print(made)
    for name in results["missing"]:
        console.print(f"not counted: this ncu has no {name}", highlight=False, markup=False)
    for call in results["skipped"]:
        cluster = f", {call['cluster']}" if "cluster" in call else ""
        console.print(
            f"not counted: {call['who']} at {size_of(call)}{cluster}: {call['reason']}",
            highlight=False,
            markup=False,
        )
    if results["lost"]:
        console.print(f"stopped: {results['lost']}", highlight=False, markup=False)


def table(results: Mapping[str, Any]) -> Table:
    """A row for each call of the library and of cuBLASLt: where its time and its bytes went. Bytes in MB of 10**6."""
    made = empty_table(("shape", "who", "tile"), (
        "us", "TFLOPS", "SM GHz", "tensor\ncores", "tensor\npipe", "L2 to SMs\nMB", "L2 over\nleast", "DRAM MB\nread", "DRAM MB\nwritten", "DRAM\nGB/s",
        "banks\nread", "banks\nwritten", "kernels",
    ))  # fmt: skip
    for row in results["rows"]:
        if "cluster" not in row:
            made.add_row(
                size_of(row), row["who"], tile_of(row["config"]), _shown(row["time_s"], 1e6, ".2f"), _shown(row["tflops"], 1, ".0f"),
                _shown(row["sm_clock_hz"], 1e-9, ".3f"), _shown(row["tensor_share"], 1, ".1%"), _shown(row["tensor_percent"], 0.01, ".1%"),
                _shown(row["sm_read_bytes"], 1e-6, ".1f"),
                _shown(row["l2_over_least"], 1, ".2f"), _shown(row["dram_read_bytes"], 1e-6, ".1f"), _shown(row["dram_written_bytes"], 1e-6, ".1f"),
                _shown(row["dram_bytes_per_s"], 1e-9, ".0f"), _shown(row["bank_reads_percent"], 0.01, ".1%"), _shown(row["bank_writes_percent"], 0.01, ".1%"),
                str(len(row["kernels"])),
            )  # fmt: skip
    return made


def multicast_table(results: Mapping[str, Any]) -> Table:
    """A row for each tile and kind of cluster. Bytes in MB of 10**6, and beside them their share of those that the same tile has without clusters."""
    numbers = (
        "us",
        "tensor\ncores",
        "asked\nMB",
        "",
        "L2 read\nMB",
        "",
        "to SMs\nMB",
        "",
        "to SMs by\nTMA, MB",
        "",
    )
    made = empty_table(("shape", "who", "cluster", "tile"), numbers)
    without: Mapping[str, Any] = {}
    for row in results["rows"]:
        if "cluster" not in row:
            continue
        if row["cluster"] == "none":
            without = row
        same = without if without and tile_of(without["config"]) == tile_of(row["config"]) else {}
        cells = []
        for key, factor in (
            ("asked_bytes", 1e-6),
            ("l2_read_sectors", SECTOR * 1e-6),
            ("sm_read_bytes", 1e-6),
            ("sm_tma_read_bytes", 1e-6),
        ):
            share = row[key] / same[key] if row[key] is not None and same.get(key) else None
            cells += [_shown(row[key], factor, ".1f"), _shown(share, 1, ".1%")]
        words = size_of(row), row["who"], row["cluster"], tile_of(row["config"])
        made.add_row(*words, _shown(row["time_s"], 1e6, ".2f"), _shown(row["tensor_share"], 1, ".1%"), *cells)
    return made


def _shown(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2:])
