"""Hardware counters of a call, by NVIDIA's Nsight Compute: `python -m minigemm bench --ncu`.

ncu runs the module `_counted`, once for all calls. That child makes the tensors, calls once, which compiles,
checks the result, and calls a second time between cudaProfilerStart and cudaProfilerStop. ncu looks at
nothing else, so no kernel has to be known by its name. An NVTX range around each such call says which kernels
are whose. The kernels of a call run one after the other: counts and times are summed up, shares are averaged
over their time.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import hopper
from ..machine import hopper_gpu, identity
from . import workloads
from .ncu import Kernel, command_of, find_ncu, known_metrics, parse, said, version_of
from .programs import environment
from .report import empty_table, say, size_of, tile_of, wide_console
from .workloads import Workload

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "DEFAULT",
    "METRICS",
    "MULTICAST",
    "STAGES",
    "count",
    "multicast_table",
    "show",
    "table",
    "workload_of",
]

MULTICAST = "multicast"  # instead of a shape: s08_persistent beside s09_multicast
STAGES = "stages"  # instead of a shape: every stage at 4096 x 4096 x 4096
DEFAULT = (
    "4096x4096x7168",
    "4096x2112x7168",
    "64x2112x7168",
    "64x7168x2048",
    "128x2112x7168",
    "contiguous:4x8192x7168x2048",
    "masked:4x256x7168x2048",
    MULTICAST,
)
#: The metrics by their key in a row. Times in seconds, clocks in Hz, sectors of 32 bytes, shares in per
#: cent of the most that is possible.
METRICS = {
    "time_s": "gpu__time_duration.sum",
    "cycles_elapsed": "sm__cycles_elapsed.max",
    "cycles_active": "sm__cycles_active.avg",
    "sm_clock_hz": "sm__cycles_elapsed.avg.per_second",
    "issue_active_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "wgmma_instructions": "sm__inst_executed_pipe_tensor_op_gmma.sum",
    "tensor_percent": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tensor_gmma_percent": "sm__pipe_tensor_op_gmma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    # Some versions count WGMMA here.
    "tensor_hmma_percent": "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "tma_percent": "sm__pipe_tma_cycles_active.avg.pct_of_peak_sustained_elapsed",
    # L2's traffic for the SMs, read and written; then its bytes to its other half and to DRAM too.
    "l2_sectors": "lts__t_sectors_srcunit_tex.sum",
    "l2_read_sectors": "lts__t_sectors_srcunit_tex_op_read.sum",
    "l2_all_bytes": "lts__t_bytes.sum",
    # The bytes that came to the SMs.
    "sm_read_bytes": "l1tex__m_xbar2l1tex_read_bytes.sum",
    "sm_tma_read_bytes": "l1tex__m_xbar2l1tex_read_bytes_mem_global_op_tma_ld.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_written_bytes": "dram__bytes_write.sum",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "bank_reads_percent": "l1tex__data_bank_reads.avg.pct_of_peak_sustained_elapsed",
    "bank_writes_percent": "l1tex__data_bank_writes.avg.pct_of_peak_sustained_elapsed",
}
OPERATIONS = 2 * hopper.PRODUCTS_PER_CYCLE  # of FP8 per cycle and SM: products, and as many sums
SECTOR = 32  # bytes
PATIENCE = 540  # seconds for ncu and all calls
CHILD = f"{__package__}._counted"


def count(wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Count what minigemm's and cuBLASLt's calls do at these shapes. Returns what JSON holds.

    Args:
        wanted: "MxNxK", "contiguous:GROUPSxMxNxK", "masked:GROUPSxMxNxK", "multicast" for s08_persistent
            beside s09_multicast, or "stages" for every stage; by default DEFAULT.

    Raises:
        ValueError: a shape is none, there is no Hopper GPU, no ncu, or ncu counted nothing; then the message
            holds what ncu said. A call that fails ends nothing: it is in `skipped`, with the reason. If all
            ended early, `lost` says how.
    """
    # A missing GPU or ncu is reported before anything is counted.
    wanted = [text if text in (MULTICAST, STAGES) else _with_layout(text) for text in wanted or DEFAULT]
    device = hopper_gpu("bench --ncu")
    ncu = find_ncu()
    machine = {**identity(device), "ncu": version_of(ncu)}
    metrics, missing = known_metrics(ncu, METRICS.values())

    # A child makes the calls under ncu, and its kernels are then assigned to the calls.
    calls, kernels, lost = _counted(ncu, metrics, wanted)
    rows, skipped = rows_of(calls["calls"], kernels, machine["sms"])
    return {
        "what": "minigemm, cuBLASLt and multicast by Nsight Compute's counters, python -m minigemm bench --ncu",
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "protocol": "one call after one that compiles and is checked, each kernel replayed until all is counted; ncu "
        "--cache-control all (nothing is in L2 before each replay) --clock-control none; kernels of a call summed up, "
        "shares averaged over their time. tensor_share: operations over what the tensor cores of all SMs can do in the "
        f"cycles elapsed, {OPERATIONS} a cycle and SM; l2_bytes: sectors for the SMs, read and written; least_bytes: "
        "operands and result moved once; asked_bytes: what TMA asks L2 for, by arithmetic, as the emulator counts it",
        "metrics": {key: name for key, name in METRICS.items() if name in metrics},
        "missing": missing,
        "rows": rows,
        "skipped": [*calls["skipped"], *skipped],
        "lost": lost,
    }


def _counted(
    ncu: str, metrics: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, Any], list[Kernel], str]:
    """Run the child under ncu. Return its calls, the counted kernels, and how it ended early, or ""."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "calls.json"
        command = command_of(ncu, metrics, CHILD, [str(file), *wanted])
        try:
            answer = subprocess.run(
                command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired as late:
            raise ValueError(f"ncu was not ready after {PATIENCE} s: {' '.join(command)}") from late
        status, output, errors = answer.returncode, answer.stdout, answer.stderr
        kernels = parse(output)
        if not kernels or not file.exists():
            raise ValueError(f"ncu counted nothing (status {status}): {said(output, errors)}")
        calls = json.loads(file.read_text(encoding="utf-8"))
    return calls, kernels, said("", errors) if status else ""


def workload_of(text: str) -> Workload:
    """Return the workload that `--ncu` names, MxNxK or LAYOUT:GROUPSxMxNxK. ValueError says what is wrong."""
    layout, _, sizes = text.rpartition(":")
    return workloads.parse(sizes, layout or None)


def _with_layout(text: str) -> str:
    workload = workload_of(text)
    return f"{workload.product.layout}:{workload}"


# --- rows


def rows_of(
    calls: Sequence[Mapping[str, Any]], kernels: Sequence[Kernel], sms: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each call with its kernels, and the calls without kernels, with the reason.

    Raises:
        ValueError: nothing says which kernels are whose.
    """
    if any(kernel.call is not None for kernel in kernels):
        shares = [[kernel for kernel in kernels if kernel.call == call["number"]] for call in calls]
    elif len(kernels) == len(calls):  # one kernel per call: their order tells
        shares = [[kernel] for kernel in kernels]
    else:
        names = sorted({kernel.name for kernel in kernels})
        kernels_of_calls = f"{len(kernels)} kernels of {len(calls)} calls"
        raise ValueError(f"ncu shows no NVTX ranges, and {kernels_of_calls}: {names}")
    pairs = list(zip(calls, shares, strict=True))
    rows = [row_of(call, own, sms) for call, own in pairs if own]
    return rows, [{**call, "reason": "ncu saw no kernel of it"} for call, own in pairs if not own]


def row_of(call: Mapping[str, Any], kernels: Sequence[Kernel], sms: int) -> dict[str, Any]:
    """Return a call's counters by the keys of METRICS, None if not counted, and what follows from them."""
    counts = {key: _total(name, kernels) for key, name in METRICS.items()}
    time_s, cycles, sectors = counts["time_s"], counts["cycles_elapsed"], counts["l2_sectors"]
    read, written = counts["dram_read_bytes"], counts["dram_written_bytes"]
    l2_bytes = None if sectors is None else sectors * SECTOR
    moved = None if read is None or written is None else read + written
    return {
        **call,
        **counts,
        "tflops": call["operations"] / time_s / 1e12 if time_s else None,
        "tensor_share": call["operations"] / (sms * OPERATIONS * cycles) if cycles else None,
        "l2_bytes": l2_bytes,
        "l2_over_least": None if l2_bytes is None else l2_bytes / call["least_bytes"],
        "dram_bytes_per_s": moved / time_s if time_s and moved is not None else None,
        "kernels": [{"name": k.name, "grid": k.grid, "block": k.block, **k.values} for k in kernels],
    }


def _total(metric: str, kernels: Sequence[Kernel]) -> float | None:
    """Return a metric of all kernels: a count's sum, or the mean over their time of a share or a rate.

    None if a kernel has no value.
    """
    values = [kernel.values[metric] for kernel in kernels if metric in kernel.values]
    if len(values) < len(kernels):
        return None
    if ".pct_of_peak" not in metric and ".per_second" not in metric:
        return sum(values)
    weights = [kernel.values.get(METRICS["time_s"], 1.0) for kernel in kernels]
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


# --- tables


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print all of the results, as wide as the tables where there is no terminal."""
    console = console or wide_console()
    machine, date = results["machine"], results["date"]
    versions = f"driver {machine['driver']}, CUDA {machine['cuda']}, ncu {machine['ncu']}"
    console.print(f"[bold]{machine['gpu']}[/bold], {versions}, {date}")
    for made in (table(results), multicast_table(results)):
        if made.row_count:
            console.print(made)
    for name in results["missing"]:
        say(console, f"not counted: this ncu has no {name}")
    for call in results["skipped"]:
        cluster = f", {call['cluster']}" if "cluster" in call else ""
        say(console, f"not counted: {call['who']} at {size_of(call)}{cluster}: {call['reason']}")
    if results["lost"]:
        say(console, f"stopped: {results['lost']}")


#: The columns of the table of calls: heading, key in the row, factor and format of the cell.
_COLUMNS = (
    ("us", "time_s", 1e6, ".2f"),
    ("TFLOPS", "tflops", 1, ".0f"),
    ("SM GHz", "sm_clock_hz", 1e-9, ".3f"),
    ("issue\nslots", "issue_active_percent", 0.01, ".1%"),
    ("tensor\ncores", "tensor_share", 1, ".1%"),
    ("tensor\npipe", "tensor_percent", 0.01, ".1%"),
    ("L2 to SMs\nMB", "sm_read_bytes", 1e-6, ".1f"),
    ("L2 over\nleast", "l2_over_least", 1, ".2f"),
    ("DRAM MB\nread", "dram_read_bytes", 1e-6, ".1f"),
    ("DRAM MB\nwritten", "dram_written_bytes", 1e-6, ".1f"),
    ("DRAM\nGB/s", "dram_bytes_per_s", 1e-9, ".0f"),
    ("banks\nread", "bank_reads_percent", 0.01, ".1%"),
    ("banks\nwritten", "bank_writes_percent", 0.01, ".1%"),
)


def table(results: Mapping[str, Any]) -> Table:
    """Return a table of each call's time and bytes, in MB of 10**6. Calls of clusters have another table."""
    made = empty_table(("shape", "who", "tile"), [*(heading for heading, *_ in _COLUMNS), "kernels"])
    for row in results["rows"]:
        if "cluster" not in row:
            cells = [_shown(row[key], factor, form) for _, key, factor, form in _COLUMNS]
            words = size_of(row), row["who"], tile_of(row["config"])
            made.add_row(*words, *cells, str(len(row["kernels"])))
    return made


#: The bytes in the table of clusters: heading, key in the row, factor to MB.
_CLUSTER_BYTES = (
    ("asked\nMB", "asked_bytes", 1e-6),
    ("L2 read\nMB", "l2_read_sectors", SECTOR * 1e-6),
    ("to SMs\nMB", "sm_read_bytes", 1e-6),
    ("to SMs by\nTMA, MB", "sm_tma_read_bytes", 1e-6),
)


def multicast_table(results: Mapping[str, Any]) -> Table:
    """Return a table with a row for each tile and kind of cluster.

    Bytes are in MB of 10**6. Beside them stands their share of the bytes of the same tile without clusters.
    """
    headings = [word for heading, *_ in _CLUSTER_BYTES for word in (heading, "")]
    made = empty_table(("shape", "who", "cluster", "tile"), ("us", "tensor\ncores", *headings))
    without: Mapping[str, Any] = {}
    for row in results["rows"]:
        if "cluster" not in row:
            continue
        if row["cluster"] == "none":
            without = row
        same = without if without and tile_of(without["config"]) == tile_of(row["config"]) else {}
        cells = [_shown(row["time_s"], 1e6, ".2f"), _shown(row["tensor_share"], 1, ".1%")]
        for _, key, factor in _CLUSTER_BYTES:
            share = row[key] / same[key] if row[key] is not None and same.get(key) else None
            cells += [_shown(row[key], factor, ".1f"), _shown(share, 1, ".1%")]
        made.add_row(size_of(row), row["who"], row["cluster"], tile_of(row["config"]), *cells)
    return made


def _shown(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)
