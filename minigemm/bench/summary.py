"""What a comparison's rows say in all: who is how many times faster, in the mean, at worst, and how often.

Everything here is a pure function of rows as the results' JSON holds them. A ratio is another's time over
minigemm's at one point: above 1 minigemm is faster.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .timing import FILL, FLUSHES
from .wide import band_of

__all__ = [
    "BEST",
    "OWN",
    "is_deep_gemm",
    "median_us",
    "name_of",
    "opponents",
    "ratio",
    "size_of",
    "summarize",
]

OWN = "minigemm"
BEST = "best_deep_gemm"  # stands for the fastest generation of DeepGEMM at each point
Row = Mapping[str, Any]


def is_deep_gemm(name: str) -> bool:
    """Return whether a peer of this name is a generation of DeepGEMM."""
    return name.partition("@")[0] == "deep_gemm"


def median_us(row: Row, name: str, flush: str = FILL) -> float | None:
    """Return someone's median microseconds after this flush, or None where the row has none.

    BEST is the fastest generation of DeepGEMM. Rows of runs with one flush have times after a fill alone.
    """
    if name == BEST:
        times = [median_us(row, each, flush) for each in row["timed"] if is_deep_gemm(each)]
        return min((us for us in times if us is not None), default=None)
    timed = row["timed"].get(name, {})
    found: float | None = (timed if flush == FILL else timed.get(flush, {})).get("median_us")
    return found


def ratio(row: Row, name: str, flush: str = FILL) -> float | None:
    """Return someone's time over minigemm's, or None where one of the two has none."""
    theirs, own = median_us(row, name, flush), median_us(row, OWN, flush)
    return None if theirs is None or own is None else theirs / own


def opponents(rows: Iterable[Row]) -> list[str]:
    """Return everyone but minigemm who was timed in some row, the best DeepGEMM first."""
    names = list(dict.fromkeys(name for row in rows for name in row["timed"] if name != OWN))
    return [BEST, *names] if any(map(is_deep_gemm, names)) else names


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return figures by flush, opponent and layout.

    Each has `mean`, the geometric mean of the ratios; `worst`, the least ratio, and `worst_at`, its shape;
    `won`, the share of ratios of at least 1; `points`, their number; and `missing`, how many points the
    opponent has a time of and minigemm has none. Dense figures have the same by band of m, as `bands`, and
    their mean is the mean over the bands, in which each weighs the same. Where there are no points there are
    no figures.
    """
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    for flush in FLUSHES:
        for name in opponents(rows):
            for layout in layouts:
                of_layout = [row for row in rows if row["layout"] == layout]
                if figures := _figures(of_layout, name, flush):
                    if layout == "dense":
                        figures = _by_band(figures, of_layout, name, flush)
                    found.setdefault(flush, {}).setdefault(name, {})[layout] = figures
    return found


def _figures(rows: Iterable[Row], name: str, flush: str) -> dict[str, Any]:
    """Return the figures of these rows without bands; nothing if there are no points."""
    rows = list(rows)
    ratios = [(found, row) for row in rows if (found := ratio(row, name, flush)) is not None]
    if not ratios:
        return {}
    worst, where = min(ratios, key=lambda each: each[0])
    theirs = sum(median_us(row, name, flush) is not None for row in rows)
    return {
        "mean": math.exp(statistics.fmean(math.log(found) for found, _ in ratios)),
        "worst": worst,
        "worst_at": size_of(where),
        "won": sum(found >= 1 for found, _ in ratios) / len(ratios),
        "points": len(ratios),
        "missing": theirs - len(ratios),
    }


def _by_band(figures: dict[str, Any], rows: Sequence[Row], name: str, flush: str) -> dict[str, Any]:
    """Return the figures with those of each band, and with a mean in which all bands weigh the same."""
    bands: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["m"]):
        bands.setdefault(band_of(row["m"]), []).append(row)
    of_bands = {band: found for band, its in bands.items() if (found := _figures(its, name, flush))}
    logs = [math.log(found["mean"]) for found in of_bands.values()]
    return {**figures, "mean": math.exp(statistics.fmean(logs)), "bands": of_bands}


# --- names of rows


def name_of(row: Row) -> str:
    """Return a row's sizes, "64x2112x7168", or "8x1024x4096x7168 skewed" of groups."""
    sizes = [row["m"], row["n"], row["k"]]
    words = "x".join(map(str, sizes if row["layout"] == "dense" else [row["groups"], *sizes]))
    return f"{words} {row.get('spread', '')}".rstrip()


def size_of(row: Row) -> str:
    """Return a row's sizes, with its layout unless that is dense."""
    return name_of(row) if row["layout"] == "dense" else f"{name_of(row)} {row['layout']}"
