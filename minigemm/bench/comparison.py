"""minigemm's calls beside every peer that can be had: the same tensors, checked, in turn, by one clock.

    results = compare([shapes.dense(64, 2112, 7168)])

Protocol: GPU time of all kernels of a call by torch.profiler, without memsets and the flush; L2 flushed before each call; BF16 normal random numbers,
quantized and laid out beforehand; in each round everybody is called once; the median over the rounds. A result that is wrong against the float64 product
is said to be wrong, and not timed.

A reference is a file with times that other libraries had on another machine, under the same protocol: one JSON list, with an object for each shape (`kind`
"dense": m, n, k; "contiguous" and "masked": groups, m_per_group, n, k) that holds `deep_gemm_us` and, of dense shapes, `cublaslt_unscaled_us`. Machines
of one kind still differ in clock and cooling, so the file's times are scaled: by this run's time of cuBLASLt with one scale a tensor at 4096 x 4096 x 7168,
over the file's. DG(shape) is `deep_gemm_us` times that factor, and DG / minigemm says how many times faster minigemm's call is; of each layout, the
geometric mean over its shapes.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import hopper
from ..hopper import Chip
from ..machine import best_device, identity
from . import cases, host
from .peers import CublasLt, MiniGemm, Missing, Peer, named
from .shapes import CALIBRATION, DEFAULT, Shape
from .timing import FLUSHED, copy_bandwidth, gpu_seconds

__all__ = ["ROUNDS", "Reference", "compare", "means", "reason", "row_of"]

ROUNDS = 30
OWN = MiniGemm.name
NO_GPU = "bench needs a Hopper GPU (compute capability 9.0), and torch sees none"


class Lost(Exception):
    """The GPU answers this process no more: a kernel went wrong in a way that CUDA does not recover from."""


@dataclass(frozen=True)
class Reference:
    """Other libraries' times on another machine, in microseconds, by (layout, groups, m, n, k)."""

    name: str
    gpu: str
    times: Mapping[tuple[str, int, int, int, int], Mapping[str, float]]

    @staticmethod
    def read(path: str | Path) -> Reference:
        """The file. ValueError where it is none."""
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            times, gpu = {}, ""
            for entry in entries:
                if entry["kind"] == "machine":
                    gpu = entry.get("gpu", "")
                elif entry["kind"] in ("dense", "contiguous", "masked"):
                    m = entry["m"] if entry["kind"] == "dense" else entry["m_per_group"]
                    key = (entry["kind"], entry.get("groups", 1), m, entry["n"], entry["k"])
                    times[key] = {
                        name: float(value)
                        for name, value in entry.items()
                        if name.endswith("_us") and value is not None
                    }
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"reference: expected a JSON list of timed shapes, got {path} ({type(error).__name__}: {error})"
            ) from error
        found = Reference(Path(path).name, gpu, times)
        if found.us(CALIBRATION, "cublaslt_unscaled_us") is None:
            raise ValueError(
                f"reference: expected cublaslt_unscaled_us of {CALIBRATION}, by which machines are compared, and {path} has none"
            )
        return found

    def us(self, shape: Shape, name: str = "deep_gemm_us") -> float | None:
        """That time of that shape, if the file has it."""
        return self.times.get((shape.layout, shape.groups, shape.m, shape.n, shape.k), {}).get(name)


def compare(
    shapes: Iterable[Shape] = DEFAULT,
    peers: Sequence[Peer] | None = None,
    rounds: int = ROUNDS,
    reference: Reference | None = None,
    *,
    with_host: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    store: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Time these shapes on the Hopper GPU at hand; what comes back is what JSON holds.

    Args:
        shapes: none leaves `rows` empty.
        peers: by default all of PEERS; those that are missing are named in `skipped`, with the reason.
        rounds: calls of each that count.
        reference: times to compare with, see above.
        with_host: measure the host's time a call too (`host.host_time`).
        progress: hears what is going on.
        store: gets the results, unfinished, after each shape.

    Raises:
        ValueError: there is no Hopper GPU. Nothing that a peer does raises; after a fault that ends the GPU's work, `lost` says whose, and the rest is left out.
    """
    import torch

    device = best_device()
    if device.type != "cuda":
        raise ValueError(NO_GPU)
    torch.cuda.set_device(device)
    machine = identity(device)
    progress("bandwidth")
    chip = replace(hopper.of(machine["gpu"]), bandwidth=copy_bandwidth(device))
    results = _started(machine, chip, rounds)
    shapes = list(shapes)
    try:
        if with_host:
            progress("host time")
            try:
                results["host"] = host.host_time(device)
            except Exception as error:
                results["host"] = {"error": reason(error)}
                _alive(device, f"{OWN}'s host time", error)
            store(results)
        if shapes:
            _timed_rows(
                results, shapes, named() if peers is None else peers, device, rounds, chip, progress, store
            )
        if shapes and reference is not None:
            progress("comparing with the reference")
            results["reference"] = _refer(results["rows"], reference, device, rounds)
    except Lost as lost:
        results["lost"] = str(lost)
    results["means"] = means(results["rows"])
    return results


def _started(machine: dict[str, Any], chip: Chip, rounds: int) -> dict[str, Any]:
    """Results without a row."""
    return {
        "what": "minigemm beside its peers, python -m minigemm bench",
        "date": datetime.date.today().isoformat(),
        "machine": {**machine, "copy_bytes_per_s": chip.bandwidth},
        "protocol": f"GPU time of all kernels of a call by torch.profiler, memsets and the flush left out; median of {rounds} rounds in which each is called "
        f"once; {FLUSHED}; BF16 normal random numbers, quantized and laid out beforehand; each result checked against float64. Floor: bytes moved once at the "
        f"bandwidth of a copy in this run, or operations at the {chip.source}'s FP8 rate",
        "peers": {}, "skipped": {}, "rows": [], "lost": "", "reference": None, "host": None, "means": {},
    }  # fmt: skip


def _timed_rows(
    results: dict[str, Any],
    shapes: Sequence[Shape],
    peers: Iterable[Peer],
    device: Any,
    rounds: int,
    chip: Chip,
    progress: Callable[[str], None],
    store: Callable[[dict[str, Any]], None],
) -> None:
    """Fill in who is there, who is not, and a row for each shape. What is done stays there when the GPU is lost."""
    import torch

    present = _present(peers, results, progress)
    for number, shape in enumerate(shapes):
        progress(f"{shape} ({number + 1} of {len(shapes)})")
        results["rows"].append(_row(shape, present, device, rounds, chip))
        store(results)
        torch.cuda.empty_cache()


def _present(peers: Iterable[Peer], results: dict[str, Any], progress: Callable[[str], None]) -> list[Peer]:
    """The peers that can be had; what they are, and why others are not, goes into the results."""
    found = []
    for peer in peers:
        progress(f"looking for {peer.name}")
        try:
            results["peers"][peer.name] = {"what": peer.what, "version": str(peer.version())}
            found.append(peer)
        except Exception as error:  # whatever an import raises
            results["skipped"][peer.name] = reason(error)
    return found


def reason(error: BaseException) -> str:
    """One line of at most 300 characters."""
    if isinstance(error, Missing):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def _row(shape: Shape, peers: Iterable[Peer], device: Any, rounds: int, chip: Chip) -> dict[str, Any]:
    peers = list(peers)
    try:
        case = cases.make(shape, device)
    except RuntimeError as error:  # no memory for it
        _alive(device, f"the tensors of {shape}", error)
        return row_of(
            shape, {}, chip, skipped={peer.name: f"failed: no tensors: {reason(error)}" for peer in peers}
        )
    calls: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    skipped: dict[str, str] = {}
    config: dict[str, int] = {}
    for peer in peers:
        if why := peer.refuses(shape):
            skipped[peer.name] = why
            continue
        try:
            if isinstance(peer, MiniGemm):
                config = peer.config(shape, device)
            call = peer.prepare(case)
            errors[peer.name] = case.error(call(), peer.scales)
        except Exception as error:  # a peer's failure is a word in the table, not the end of it
            skipped[peer.name] = f"failed: {reason(error)}"
            _alive(device, f"{peer.name} at {shape}", error)
            continue
        if errors[peer.name] <= peer.tolerance:
            calls[peer.name] = call
        else:
            skipped[peer.name] = f"wrong: relative error {errors[peer.name]:.1e}, above {peer.tolerance:.0e}"
    seconds, alone = _timed(calls, device, rounds, shape, skipped)
    return row_of(shape, seconds, chip, errors, skipped, config) | ({"alone": True} if alone else {})


def _timed(
    calls: Mapping[str, Callable[[], Any]], device: Any, rounds: int, shape: Shape, skipped: dict[str, str]
) -> tuple[dict[str, list[float]], bool]:
    """Seconds of each call, and whether each had to be timed alone, because together they could not be."""
    if not calls:
        return {}, False
    try:
        return gpu_seconds(calls, device, rounds), False
    except Exception as error:
        _alive(device, f"one of {', '.join(calls)} at {shape}", error)
    seconds: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            seconds.update(gpu_seconds({name: call}, device, rounds))
        except Exception as error:
            skipped[name] = f"could not be timed: {reason(error)}"
            _alive(device, f"{name} at {shape}", error)
    return seconds, True


def _alive(device: Any, what: str, error: BaseException) -> None:
    """Lost, if the GPU does not answer after that error."""
    import torch

    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except Exception as fault:
        raise Lost(
            f"{what} left the GPU unusable for this process: {reason(error)}; --peer leaves others out"
        ) from fault


def row_of(
    shape: Shape,
    seconds: Mapping[str, Sequence[float]],
    chip: Chip,
    errors: Mapping[str, float] | None = None,
    skipped: Mapping[str, str] | None = None,
    config: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """One shape's row of the results, from the seconds that each had. chip: its rates are the floor's."""
    floor = shape.floor(chip.bandwidth, chip.fp8)
    timed = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        timed[name] = {
            "median_us": median * 1e6, "fastest_us": min(times) * 1e6, "slowest_us": max(times) * 1e6, "tflops": shape.operations / median / 1e12,
            "gb_per_s": shape.bytes / median / 1e9, "floor_share": floor / median, "rel_err": (errors or {}).get(name),
        }  # fmt: skip
    return {
        "layout": shape.layout, "groups": shape.groups, "m": shape.m, "n": shape.n, "k": shape.k, "counts": list(shape.counts), "rows": shape.rows,
        "operations": shape.operations, "bytes": shape.bytes, "floor_us": floor * 1e6,
        "floor_by": "bytes" if shape.bytes / chip.bandwidth >= shape.operations / chip.fp8 else "operations",
        "config": dict(config or {}), "timed": timed, "skipped": dict(skipped or {}),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- who is faster


def means(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each layout, the geometric mean of each one's time over minigemm's: above 1 minigemm is faster. "reference": of the reference's times."""
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


def _refer(rows: Sequence[dict[str, Any]], reference: Reference, device: Any, rounds: int) -> dict[str, Any]:
    """Add to each row that the reference knows what DeepGEMM would take here, and that over minigemm's time. What the results say of the reference."""
    said: dict[str, Any] = {"file": reference.name, "gpu": reference.gpu, "factor": None, "error": ""}
    try:
        factor = said["factor"] = _factor(reference, rows, device, rounds)
    except ValueError as error:
        return {**said, "error": str(error)}
    for row in rows:
        us, own = reference.us(_shape(row)), row["timed"].get(OWN)
        if us is not None and own is not None:
            row["reference"] = {"deep_gemm_us": us * factor, "ratio": us * factor / own["median_us"]}
    return said


def _shape(row: Mapping[str, Any]) -> Shape:
    return Shape(row["layout"], row["m"], row["n"], row["k"], tuple(row["counts"]))


def _factor(reference: Reference, rows: Iterable[Mapping[str, Any]], device: Any, rounds: int) -> float:
    """This machine's time over the reference's: cuBLASLt's at CALIBRATION, measured here unless it is among the rows."""
    there = reference.us(CALIBRATION, "cublaslt_unscaled_us")
    if there is None:
        raise ValueError(f"reference: {reference.name} has no cublaslt_unscaled_us of {CALIBRATION}")
    for row in rows:
        if _shape(row) == CALIBRATION and CublasLt.name in row["timed"]:
            return row["timed"][CublasLt.name]["median_us"] / there
    try:
        call = CublasLt().prepare(cases.make(CALIBRATION, device))
        return (
            statistics.median(gpu_seconds({CublasLt.name: call}, device, rounds)[CublasLt.name]) * 1e6 / there
        )
    except Exception as error:
        _alive(device, f"{CublasLt.name} at {CALIBRATION}", error)
        raise ValueError(
            f"reference: cuBLASLt could not be timed at {CALIBRATION}: {reason(error)}"
        ) from error
