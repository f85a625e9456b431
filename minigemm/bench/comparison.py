"""minigemm's calls beside every peer that can be had: the same tensors, checked, in turn, by one clock.

    results = compare([workloads.dense(64, 2112, 7168)])

Protocol. A time is the GPU time of all kernels of a call by torch.profiler, without memsets and the flush. L2
is flushed before each call. Operands are normal random numbers in BF16, quantized and laid out beforehand. In
each round everybody is called once; a figure is the median over the rounds. A result that is wrong against
the float64 product is called wrong and not timed.
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import hopper
from ..hopper import Chip
from ..machine import best_device, identity
from . import cases, host_overhead
from .failures import Lost, check_alive, reason
from .peers import MiniGemm, Peer, named
from .reference import Reference, refer
from .timing import FLUSHED, copy_bandwidth, gpu_seconds
from .workloads import DEFAULT, Workload

__all__ = ["ROUNDS", "compare", "means", "row_of"]

ROUNDS = 30
OWN = MiniGemm.name
NO_GPU = "bench needs a Hopper GPU (compute capability 9.0), and torch sees none"


def compare(
    workloads: Iterable[Workload] = DEFAULT,
    peers: Sequence[Peer] | None = None,
    rounds: int = ROUNDS,
    reference: Reference | None = None,
    *,
    with_host: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    store: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Time these workloads on the Hopper GPU at hand and return the results, as JSON holds them.

    Args:
        workloads: the products to time; without any, `rows` stays empty.
        peers: by default all of PEERS. Peers that are missing are named in `skipped`, with the reason.
        rounds: how many calls of each count.
        reference: times to compare with; see `reference`.
        with_host: whether to measure the host's time per call too (`host_overhead.host_time`).
        progress: is told what is going on.
        store: is given the results, unfinished, after each workload.

    Raises:
        ValueError: there is no Hopper GPU. Nothing that a peer does raises. After a fault that ends the GPU's
            work, `lost` says whose it was, and the rest is left out.
    """
    import torch

    # The kernels need Hopper, so a machine without such a GPU is refused at once.
    device = best_device()
    if device.type != "cuda":
        raise ValueError(NO_GPU)
    torch.cuda.set_device(device)

    # The least time of a workload depends on the bandwidth, so it is measured on this very GPU.
    machine = identity(device)
    progress("bandwidth")
    chip = replace(hopper.chip_of(machine["gpu"]), bandwidth=copy_bandwidth(device))
    run = _Comparison(device, chip, rounds, _started(machine, chip, rounds), progress, store)

    # A fault that ends the GPU's work must not cost the results so far.
    results, workloads = run.results, list(workloads)
    try:
        if with_host:
            run.time_host()
        if workloads:
            run.time_rows(workloads, named() if peers is None else peers)
        if workloads and reference is not None:
            progress("comparing with the reference")
            results["reference"] = refer(results["rows"], reference, device, rounds)
    except Lost as lost:
        results["lost"] = str(lost)

    # The means cover whatever rows there are, even after an early end.
    results["means"] = means(results["rows"])
    return results


def _started(machine: dict[str, Any], chip: Chip, rounds: int) -> dict[str, Any]:
    """Return results without a row."""
    return {
        "what": "minigemm beside its peers, python -m minigemm bench",
        "date": datetime.date.today().isoformat(),
        "machine": {**machine, "copy_bytes_per_s": chip.bandwidth},
        "protocol": "GPU time of all kernels of a call by torch.profiler, memsets and the flush left out; median of "
        f"{rounds} rounds in which each is called once; {FLUSHED}; BF16 normal random numbers, quantized and laid out "
        "beforehand; each result checked against float64. Floor: bytes moved once at the bandwidth of a copy in this "
        f"run, or operations at the {chip.source}'s FP8 rate",
        "peers": {},
        "skipped": {},
        "rows": [],
        "lost": "",
        "reference": None,
        "host": None,
        "means": {},
    }


@dataclass
class _Comparison:
    """A comparison under way. Finished rows stay in `results` when the GPU is lost."""

    device: Any
    chip: Chip
    rounds: int
    results: dict[str, Any]
    progress: Callable[[str], None]
    store: Callable[[dict[str, Any]], None]

    def time_host(self) -> None:
        """Measure the host's time per call."""
        self.progress("host time")
        try:
            self.results["host"] = host_overhead.host_time(self.device)
        except Exception as error:
            self.results["host"] = {"error": reason(error)}
            check_alive(self.device, f"{OWN}'s host time", error)
        self.store(self.results)

    def time_rows(self, workloads: Sequence[Workload], peers: Iterable[Peer]) -> None:
        """Fill in who is there and who is not, and a row for each workload."""
        import torch

        present = _present(peers, self.results, self.progress)
        for number, workload in enumerate(workloads, 1):
            self.progress(f"{workload} ({number} of {len(workloads)})")
            self.results["rows"].append(_row(workload, present, self.device, self.rounds, self.chip))
            self.store(self.results)
            torch.cuda.empty_cache()


def _present(peers: Iterable[Peer], results: dict[str, Any], progress: Callable[[str], None]) -> list[Peer]:
    """Return the peers that can be had. The results get their versions, and why the others are missing."""
    found = []
    for peer in peers:
        progress(f"looking for {peer.name}")
        try:
            results["peers"][peer.name] = {"what": peer.what, "version": str(peer.version())}
            found.append(peer)
        except Exception as error:  # an import may raise anything
            results["skipped"][peer.name] = reason(error)
    return found


def _row(workload: Workload, peers: Iterable[Peer], device: Any, rounds: int, chip: Chip) -> dict[str, Any]:
    """Let each peer compute the workload, check the results, and time whoever is right."""
    # Without tensors nobody can compute, so every peer is skipped for the same reason.
    peers = list(peers)
    try:
        case = cases.make(workload, device)
    except RuntimeError as error:  # there is no memory for them
        check_alive(device, f"the tensors of {workload}", error)
        why = f"failed: no tensors: {reason(error)}"
        return row_of(workload, {}, chip, skipped={peer.name: why for peer in peers})

    # Only peers with right results are timed; any other gets its reason in `skipped`.
    calls: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    skipped: dict[str, str] = {}
    config: dict[str, int] = {}
    for peer in peers:
        name = peer.name
        if why := peer.refuses(workload):
            skipped[name] = why
            continue
        try:
            if isinstance(peer, MiniGemm):
                config = peer.config(workload, device)
            call = peer.prepare(case)
            errors[name] = case.error(call(), peer.scales)
        except Exception as error:  # a peer's failure is a word in the table and does not end the run
            skipped[name] = f"failed: {reason(error)}"
            check_alive(device, f"{name} at {workload}", error)
            continue
        if errors[name] <= peer.tolerance:
            calls[name] = call
        else:
            skipped[name] = f"wrong: relative error {errors[name]:.1e}, above {peer.tolerance:.0e}"

    # The timing may still add to `skipped`, so the row is made after it.
    seconds, alone = _timed(calls, device, rounds, workload, skipped)
    row = row_of(workload, seconds, chip, errors, skipped, config)
    return row | ({"alone": True} if alone else {})


def _timed(
    calls: Mapping[str, Callable[[], Any]],
    device: Any,
    rounds: int,
    workload: Workload,
    skipped: dict[str, str],
) -> tuple[dict[str, list[float]], bool]:
    """Return each call's seconds, and whether each had to be timed alone since they could not be together."""
    if not calls:
        return {}, False
    try:
        return gpu_seconds(calls, device, rounds), False
    except Exception as error:
        check_alive(device, f"one of {', '.join(calls)} at {workload}", error)
    seconds: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            seconds.update(gpu_seconds({name: call}, device, rounds))
        except Exception as error:
            skipped[name] = f"could not be timed: {reason(error)}"
            check_alive(device, f"{name} at {workload}", error)
    return seconds, True


def row_of(
    workload: Workload,
    seconds: Mapping[str, Sequence[float]],
    chip: Chip,
    errors: Mapping[str, float] | None = None,
    skipped: Mapping[str, str] | None = None,
    config: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return a workload's row of the results, from everybody's seconds. The chip's rates make the floor."""
    # A peer is judged by its median call, with the extremes beside it.
    floor = workload.floor(chip.bandwidth, chip.fp8)
    timed = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        timed[name] = {
            "median_us": median * 1e6,
            "fastest_us": min(times) * 1e6,
            "slowest_us": max(times) * 1e6,
            "tflops": workload.operations / median / 1e12,
            "gb_per_s": workload.bytes / median / 1e9,
            "floor_share": floor / median,
            "rel_err": (errors or {}).get(name),
        }

    # The row says which of the two bounds made the floor.
    moving, computing = workload.bytes / chip.bandwidth, workload.operations / chip.fp8
    return {
        **workload.sizes(),
        "counts": list(workload.counts),
        "rows": workload.rows,
        "operations": workload.operations,
        "bytes": workload.bytes,
        "floor_us": floor * 1e6,
        "floor_by": "bytes" if moving >= computing else "operations",
        "config": dict(config or {}),
        "timed": timed,
        "skipped": dict(skipped or {}),
    }


# --- who is faster


def means(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return for each layout the geometric mean of everybody's time over minigemm's.

    Above 1 minigemm is faster. The name "reference" stands for the reference's times.
    """
    logs: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        own = row["timed"].get(OWN)
        if own is None:
            continue
        of_layout = logs.setdefault(row["layout"], {})
        for name, timed in row["timed"].items():
            if name != OWN:
                of_layout.setdefault(name, []).append(math.log(timed["median_us"] / own["median_us"]))
        if row.get("reference"):
            of_layout.setdefault("reference", []).append(math.log(row["reference"]["ratio"]))
    return {
        layout: {name: math.exp(statistics.fmean(found)) for name, found in of_layout.items()}
        for layout, of_layout in logs.items()
    }
