"""minigemm's calls beside every peer that can be had: the same tensors, checked, in turn, by one clock.

    results = compare([workloads.dense(64, 2112, 7168)])

Protocol. A time is the GPU time of all kernels of a call by torch.profiler, without memsets and the flush. L2
is flushed before each call, in the two ways of `timing`. Operands are normal random numbers in BF16,
quantized and laid out beforehand. In each round everybody is called once after each flush; a figure is the
median over the rounds. A result that is wrong against the float64 product is called wrong and not timed.

Results. A row's `timed` has an entry for everybody. Its figures are those after a fill, and under "read" it
has those after a read (`timing`).
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import hopper
from ..hopper import Chip
from ..machine import hopper_gpu, identity
from . import cases, host_overhead
from .failures import Lost, check_alive, reason
from .peers import MiniGemm, Peer, named
from .summary import OWN, summarize
from .timing import FILL, FLUSHED_BOTH, FLUSHES, READ, copy_bandwidth, seconds_by_flush
from .wide import WIDE, layer_of, units
from .workloads import Workload

__all__ = ["compare", "rounds_of", "row_of"]

MOST_ROUNDS, LEAST_ROUNDS = 30, 8
PATIENCE_S = 0.02  # for everybody's counted calls of one workload after one flush
FLUSH_S = 70e-6  # that a flush takes, about
Seconds = Mapping[str, Mapping[str, Sequence[float]]]  # by flush, then by peer


def compare(
    workloads: Iterable[Workload] = WIDE,
    peers: Sequence[Peer] | None = None,
    rounds: int | None = None,
    *,
    with_host: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    store: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Time these workloads on the Hopper GPU at hand and return the results, as JSON holds them.

    Args:
        workloads: the products to time; without any, `rows` stays empty.
        peers: by default all of PEERS. Peers that are missing are named in `skipped`, with the reason.
        rounds: how many calls of each count, after each flush; by default `rounds_of` each workload.
        with_host: whether to measure the host's time per call too (`host_overhead.host_time`).
        progress: is told what is going on.
        store: is given the results, unfinished, after all m of an n and k.

    Raises:
        ValueError: there is no Hopper GPU. Nothing that a peer does raises. After a fault that ends the GPU's
            work, `lost` says whose it was, and the rest is left out.
    """
    import torch

    # The kernels need Hopper, so a machine without such a GPU is refused at once.
    device = hopper_gpu("bench")
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
    except Lost as lost:
        results["lost"] = str(lost)

    # The summary covers whatever rows there are, even after an early end.
    results["summary"] = summarize(results["rows"])
    return results


def rounds_of(workload: Workload, chip: Chip) -> int:
    """Return how many rounds count: 30, or fewer where a call takes long, but at least 8."""
    seconds = workload.floor(chip.bandwidth, chip.fp8) + FLUSH_S
    return max(LEAST_ROUNDS, min(MOST_ROUNDS, int(PATIENCE_S / seconds)))


def _started(machine: dict[str, Any], chip: Chip, rounds: int | None) -> dict[str, Any]:
    """Return results without a row."""
    return {
        "what": "minigemm beside its peers, python -m minigemm bench",
        "date": datetime.date.today().isoformat(),
        "machine": {**machine, "copy_bytes_per_s": chip.bandwidth},
        "protocol": "GPU time of all kernels of a call by torch.profiler, memsets and the flush left out; median of "
        f"{rounds or f'{LEAST_ROUNDS} to {MOST_ROUNDS}'} rounds in which each is called once after each flush; "
        f"{FLUSHED_BOTH}; BF16 normal random numbers, quantized and laid out beforehand; {cases.CHECKED}. Floor: bytes "
        f"moved once at the bandwidth of a copy in this run, or operations at the {chip.source}'s FP8 rate",
        "peers": {},
        "skipped": {},
        "rows": [],
        "lost": "",
        "host": None,
        "summary": {},
    }


@dataclass
class _Comparison:
    """A comparison under way. Finished rows stay in `results` when the GPU is lost."""

    device: Any
    chip: Chip
    rounds: int | None
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
        made, rows = cases.Cases(workloads, self.device), self.results["rows"]
        for unit in units(workloads):
            for workload in unit:
                self.progress(f"{workload} ({len(rows) + 1} of {len(workloads)})")
                rows.append(self._row(workload, made, present))

            # What is stored is whole, but for the workloads that are still to come.
            self.results["summary"] = summarize(rows)
            self.store(self.results)
            made.forget()
            torch.cuda.empty_cache()

    def _row(self, workload: Workload, made: cases.Cases, peers: Iterable[Peer]) -> dict[str, Any]:
        start = time.perf_counter()
        rounds = self.rounds or rounds_of(workload, self.chip)
        row = _row(workload, made, peers, self.device, rounds, self.chip)
        return {**row, "rounds": rounds, "took_s": round(time.perf_counter() - start, 3)}


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


def _row(
    workload: Workload, made: cases.Cases, peers: Iterable[Peer], device: Any, rounds: int, chip: Chip
) -> dict[str, Any]:
    """Let each peer compute the workload, check the results, and time whoever is right."""
    # Without tensors nobody can compute, so every peer is skipped for the same reason.
    peers = list(peers)
    try:
        case = made.make(workload)
    except RuntimeError as error:  # there is no memory for them
        check_alive(device, f"the tensors of {workload}", error)
        why = f"failed: no tensors: {reason(error)}"
        return row_of(workload, {}, chip, skipped={peer.name: why for peer in peers})

    # Only peers with right results are timed; any other gets its reason in `skipped`.
    calls: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    skipped: dict[str, str] = {}
    config: dict[str, Any] = {}
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
    checked = workload.product.n if case.columns is None else len(case.columns)
    return {**row, "checked_columns": checked, **({"alone": True} if alone else {})}


def _timed(
    calls: Mapping[str, Callable[[], Any]],
    device: Any,
    rounds: int,
    workload: Workload,
    skipped: dict[str, str],
) -> tuple[Seconds, bool]:
    """Return each call's seconds, and whether each had to be timed alone since they could not be together."""
    if not calls:
        return {}, False
    try:
        return seconds_by_flush(calls, device, rounds), False
    except Exception as error:
        check_alive(device, f"one of {', '.join(calls)} at {workload}", error)
    seconds: dict[str, dict[str, list[float]]] = {flush: {} for flush in FLUSHES}
    for name, call in calls.items():
        try:
            for flush, times in seconds_by_flush({name: call}, device, rounds).items():
                seconds[flush].update(times)
        except Exception as error:
            skipped[name] = f"could not be timed: {reason(error)}"
            check_alive(device, f"{name} at {workload}", error)
    return seconds, True


def row_of(
    workload: Workload,
    seconds: Seconds,
    chip: Chip,
    errors: Mapping[str, float] | None = None,
    skipped: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a workload's row of the results, from everybody's seconds by flush.

    The chip's rates make the floor. Who has no time after a fill is left out.
    """
    # A peer is judged by its median call, with the extremes beside it.
    floor = workload.floor(chip.bandwidth, chip.fp8)
    timed: dict[str, dict[str, Any]] = {}
    for name, times in seconds.get(FILL, {}).items():
        median = statistics.median(times)
        timed[name] = {
            **_microseconds(times),
            "tflops": workload.operations / median / 1e12,
            "gb_per_s": workload.bytes / median / 1e9,
            "floor_share": floor / median,
            "rel_err": (errors or {}).get(name),
        }
        if times := seconds.get(READ, {}).get(name, ()):
            timed[name][READ] = {**_microseconds(times), "floor_share": floor / statistics.median(times)}

    # The row says which of the two bounds made the floor.
    moving, computing = workload.bytes / chip.bandwidth, workload.operations / chip.fp8
    return {
        **workload.sizes(),
        "spread": workload.spread,
        "layer": layer_of(workload.product.layout, workload.product.n, workload.product.k),
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


def _microseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, the fastest and the slowest in microseconds."""
    return {
        "median_us": statistics.median(seconds) * 1e6,
        "fastest_us": min(seconds) * 1e6,
        "slowest_us": max(seconds) * 1e6,
    }
