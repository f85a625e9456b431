"""The picture of the whole field: every point of a wide comparison as a cell, coloured by who is faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..views.style import BLUE, GREY, RED, Picture, drawn, figure, ink_on
from .report import plot
from .summary import OWN, name_of, opponents, ratio, summarize
from .timing import FLUSHES

__all__ = ["field", "picture"]

MANY = 60  # shapes, from which on their picture is a field of cells
FARTHEST = 1.4  # the ratio, or its inverse, at which a colour is at its darkest
CELL = 0.36, 0.2  # inches
WORDS = 2.7  # inches, of a row's words
LEAST_WIDTH = 8  # inches, so that the words of the bar of colours do not meet
Row = Mapping[str, Any]


def picture(results: Mapping[str, Any]) -> Picture:
    """Draw a comparison: many shapes as a field, few by their distances from the floor (`report.plot`)."""
    return (field if len(results["rows"]) >= MANY and opponents(results["rows"]) else plot)(results)


@drawn
def field(results: Mapping[str, Any], against: str | None = None) -> Picture:
    """Draw someone's time over minigemm's at every point: blue where minigemm is faster, red where not.

    Dense products are a panel for each flush, m along x and the layers along y. Each grouped layout is a
    panel with a column for each flush.

    Args:
        results: the results of `compare`.
        against: whose time; by default the best DeepGEMM's, or where there is none the first other's.

    Raises:
        ValueError: no row has times of both.
    """
    name = against or next(iter(opponents(results["rows"])), "")
    rows = [row for row in results["rows"] if ratio(row, name) is not None]
    if not rows:
        whose = f"times of {OWN} and {name or 'somebody else'}"
        raise ValueError(f"field: expected results with {whose}, got none")
    columns = _columns(rows, name)
    down = max(map(len, columns))

    # All cells have the same size in every panel, so each is as high as the highest.
    width, height = CELL
    widths = [width * len(column[0].columns) for column in columns]
    tallest = max(len(panel.rows) for column in columns for panel in column)
    size = max(LEAST_WIDTH, sum(widths) + WORDS * len(columns)), (height * tallest + 0.5) * down + 1
    made, axes = figure(*size, down, len(columns), width_ratios=widths, squeeze=False)
    colours = _colours()
    for x, column in enumerate(columns):
        for panel, its in zip(column, axes[:, x], strict=False):
            _draw(its, panel, tallest, colours)
        for its in axes[len(column) :, x]:
            its.set_axis_off()

    # One bar of colours for all, and whose run it was.
    bar = made.colorbar(colours, ax=axes, location="bottom", shrink=0.4, aspect=50, pad=0.02)
    ticks = (1 / FARTHEST, 0.8, 0.9, 1.0, 1.1, 1.25, FARTHEST)
    bar.set_ticks([math.log(tick) for tick in ticks], labels=[f"{tick:.2f}" for tick in ticks], fontsize=7)
    bar.ax.minorticks_off()
    bar.set_label(f"time of {name} over minigemm's: above 1 minigemm is faster", fontsize=8)
    machine, date = results["machine"], results["date"]
    title = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {date}"
    made.suptitle(title, fontsize=8, color=GREY, x=0.01, ha="left")
    return Picture(made, f"{name} over {OWN} on {machine['gpu']}, {date}. {_said(rows, name)}")


class _Panel(NamedTuple):
    """Cells in rows and columns, and their words; `cells` has the ratios by row and column."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[int, int], float]


def _columns(rows: Sequence[Row], name: str) -> list[list[_Panel]]:
    """Return the panels: dense ones at the left, one below the other, and those of groups at the right."""
    flushes = [flush for flush in FLUSHES if any(ratio(row, name, flush) is not None for row in rows)]
    layouts: dict[str, list[Row]] = {}
    for row in rows:
        layouts.setdefault(row["layout"], []).append(row)
    dense = layouts.pop("dense", [])
    left = [_dense_panel(dense, name, flush) for flush in flushes if dense]
    right = [_grouped_panel(grouped, name, flushes) for grouped in layouts.values()]
    return [column for column in (left, right) if column]


def _dense_panel(rows: Sequence[Row], name: str, flush: str) -> _Panel:
    """Return a panel with a row of cells for each (n, k) and a column for each m."""
    layers = {(row["n"], row["k"]): row.get("layer", "") for row in rows}
    sizes, ms = list(layers), sorted({row["m"] for row in rows})
    words = [f"{layer}  {n} x {k}".strip() for (n, k), layer in layers.items()]
    cells = {
        (sizes.index((row["n"], row["k"])), ms.index(row["m"])): found
        for row in rows
        if (found := ratio(row, name, flush)) is not None
    }
    return _Panel(f"dense, by m, after a {flush}", words, [str(m) for m in ms], cells)


def _grouped_panel(rows: Sequence[Row], name: str, flushes: Sequence[str]) -> _Panel:
    """Return a panel with a row of cells for each grouped workload, and a column for each flush."""
    cells = {
        (y, x): found
        for y, row in enumerate(rows)
        for x, flush in enumerate(flushes)
        if (found := ratio(row, name, flush)) is not None
    }
    return _Panel(rows[0]["layout"], [name_of(row) for row in rows], list(flushes), cells)


def _colours() -> Any:
    """Return the colours of log ratios: white at 1, red below and blue above."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    colours = LinearSegmentedColormap.from_list("slower_faster", [RED, "white", BLUE])
    return ScalarMappable(Normalize(-math.log(FARTHEST), math.log(FARTHEST)), colours)


def _draw(axes: Any, panel: _Panel, tallest: int, colours: Any) -> None:
    """Draw a panel's cells, each with its ratio, in axes that are `tallest` rows high."""
    from matplotlib.patches import Rectangle

    title, rows, columns, cells = panel
    for (y, x), found in cells.items():
        colour = colours.to_rgba(math.log(found))
        place = (x - 0.5, y - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.5))
        axes.text(x, y, f"{found:.2f}", ha="center", va="center", fontsize=6, color=ink_on(colour))
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(tallest - 0.5, -0.5))
    axes.set_title(title, fontsize=9)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)


def _said(rows: Sequence[Row], name: str) -> str:
    """Return the field in words: mean, worst point and share won, by layout and flush."""
    said = []
    for flush, by_name in summarize(rows).items():
        for layout, found in by_name.get(name, {}).items():
            worst = f"worst {found['worst']:.2f} at {found['worst_at']}"
            won = f"{found['won']:.0%} of {found['points']} points at 1 or above"
            said.append(f"{layout} after a {flush}: mean {found['mean']:.3f}, {worst}, {won}")
    return "; ".join(said)
