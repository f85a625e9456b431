"""Times that other libraries had on another machine, and an estimate of their times on this one.

A reference is a file with such times, taken under the protocol of `comparison`. It is one JSON list with an
object for each shape (`kind` "dense": m, n, k; "contiguous" and "masked": groups, m_per_group, n, k). The
object holds `deep_gemm_us` and, of a dense shape, `cublaslt_unscaled_us`.

Machines of one kind still differ in clock and cooling, so the file's times are scaled by a factor: this run's
time of cuBLASLt with one scale per tensor at 4096 x 4096 x 7168, over the file's. DG(shape) is `deep_gemm_us`
times that factor. DG / minigemm says how many times faster minigemm's call is, and for each layout there is
the geometric mean over its shapes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cases
from .failures import check_alive, reason
from .peers import CublasLt, MiniGemm
from .timing import gpu_seconds
from .workloads import CALIBRATION, LAYOUTS, Workload

__all__ = ["Reference", "refer"]


@dataclass(frozen=True)
class Reference:
    """The times of other libraries on another machine, in microseconds, by (layout, groups, m, n, k)."""

    name: str
    gpu: str
    times: Mapping[tuple[str, int, int, int, int], Mapping[str, float]]

    @staticmethod
    def read(path: str | Path) -> Reference:
        """Return the reference in this file. ValueError if the file holds none."""
        # Entries of other kinds are passed over: the file may hold more than minigemm compares with.
        try:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            times, gpu = {}, ""
            for entry in entries:
                kind = entry["kind"]
                if kind == "machine":
                    gpu = entry.get("gpu", "")
                elif kind in LAYOUTS:
                    m = entry["m" if kind == "dense" else "m_per_group"]
                    key = (kind, entry.get("groups", 1), m, entry["n"], entry["k"])
                    timed = {
                        name: us for name, us in entry.items() if name.endswith("_us") and us is not None
                    }
                    times[key] = {name: float(us) for name, us in timed.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            got = f"{path} ({type(error).__name__}: {error})"
            raise ValueError(f"reference: expected a JSON list of timed shapes, got {got}") from error

        # Without the calibration product the times of two machines cannot be compared.
        found = Reference(Path(path).name, gpu, times)
        if found.us(CALIBRATION, "cublaslt_unscaled_us") is None:
            wanted = f"cublaslt_unscaled_us of {CALIBRATION}, by which machines are compared"
            raise ValueError(f"reference: expected {wanted}, and {path} has none")
        return found

    def us(self, workload: Workload, name: str = "deep_gemm_us") -> float | None:
        """Return this library's time of the workload, or None if the file has none."""
        sizes = workload.sizes()
        key = sizes["layout"], sizes["groups"], sizes["m"], sizes["n"], sizes["k"]
        return self.times.get(key, {}).get(name)


def refer(rows: Sequence[dict[str, Any]], reference: Reference, device: Any, rounds: int) -> dict[str, Any]:
    """Add DeepGEMM's time on this machine to each row that the reference knows. Return the results' entry."""
    said: dict[str, Any] = {"file": reference.name, "gpu": reference.gpu, "factor": None, "error": ""}
    try:
        factor = said["factor"] = _factor(reference, rows, device, rounds)
    except ValueError as error:
        return {**said, "error": str(error)}
    for row in rows:
        us, own = reference.us(_workload(row)), row["timed"].get(MiniGemm.name)
        if us is not None and own is not None:
            row["reference"] = {"deep_gemm_us": us * factor, "ratio": us * factor / own["median_us"]}
    return said


def _workload(row: Mapping[str, Any]) -> Workload:
    return Workload.of(LAYOUTS[row["layout"]], row["m"], row["n"], row["k"], row["counts"])


def _factor(reference: Reference, rows: Iterable[Mapping[str, Any]], device: Any, rounds: int) -> float:
    """Return cuBLASLt's time at CALIBRATION, from the rows or measured, over the reference's."""
    there = reference.us(CALIBRATION, "cublaslt_unscaled_us")
    if there is None:
        raise ValueError(f"reference: {reference.name} has no cublaslt_unscaled_us of {CALIBRATION}")
    name = CublasLt.name
    for row in rows:
        if _workload(row) == CALIBRATION and name in row["timed"]:
            return row["timed"][name]["median_us"] / there
    try:
        call = CublasLt().prepare(cases.make(CALIBRATION, device))
        return statistics.median(gpu_seconds({name: call}, device, rounds)[name]) * 1e6 / there
    except Exception as error:
        check_alive(device, f"{name} at {CALIBRATION}", error)
        why = f"cuBLASLt could not be timed at {CALIBRATION}: {reason(error)}"
        raise ValueError(f"reference: {why}") from error
