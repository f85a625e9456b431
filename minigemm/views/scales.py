"""Fine-grained scales: how they lie, which a tile needs, which element they serve; and errors by their
causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import gcd
from typing import Any

import torch

from ..layout import ceil_div
from ..quantize import BLOCK, Quantized
from .shapes import at_right, beside, label, legend, rectangle
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, SERIES, Picture, drawn, figure, ink_on

__all__ = ["error_curves", "scale_columns", "scale_layout", "scale_map"]

_BLOCKS = (BLUE, ORANGE, GREEN, PURPLE)  # of 128 along k or n: neighbours differ
_LINE = 32  # floats of memory that a row of the picture shows: 128 bytes
_MARKS = "os^Dv*"


@drawn
def scale_layout(scales: Mapping[str, torch.Tensor], rows: tuple[int, int], block: int = 0) -> Picture:
    """Draw where 1x128 scales lie in memory, 128 bytes a row of the picture, and which a tile needs at one
    step along k.

    Args:
        scales: by name, float32 (m, blocks of k) tensors of any strides, such as `Quantized.scale` or a
            row-major copy of it.
        rows: the tile's rows of a, from and up to (excluded).
        block: the step along k, which is the column of the scales.

    Raises ValueError when there is nothing to draw, or rows or block lie outside a scale tensor.
    """
    if not scales:
        raise ValueError("scales: expected at least one tensor by name, got none")
    for name, scale in scales.items():
        if scale.dim() != 2 or not scale.numel():
            shape = tuple(scale.shape)
            raise ValueError(f"scales: expected matrices (m, blocks of k), got shape {shape} for {name!r}")
        if not 0 <= rows[0] < rows[1] <= scale.shape[0]:
            raise ValueError(f"rows: expected some of the {scale.shape[0]} rows of {name!r}, got {rows}")
        if not 0 <= block < scale.shape[1]:
            raise ValueError(f"block: expected one of the {scale.shape[1]} columns of {name!r}, got {block}")

    # A panel for each tensor; needed scales that follow each other in memory are one piece.
    lines = [ceil_div(_span(scale), _LINE) for scale in scales.values()]
    height = 1.0 + sum(0.27 * count + 0.42 for count in lines)
    made, panels = figure(9.5, height, len(scales), squeeze=False, height_ratios=lines)
    made.get_layout_engine().set(h_pad=0.08)
    needed = rows[1] - rows[0]
    said = []
    for axes, (name, scale), count in zip(panels[:, 0], scales.items(), lines, strict=True):
        down, across = scale.stride()
        owner = {i * down + j * across: (i, j) for i in range(scale.shape[0]) for j in range(scale.shape[1])}
        wanted = sorted(i * down + block * across for i in range(*rows))
        _memory(axes, owner, set(wanted), count)
        runs = 1 + sum(after != before + 1 for before, after in pairwise(wanted))
        way = (
            f"{needed * 4} bytes in one piece"
            if runs == 1
            else f"{runs} pieces of {needed * 4 // runs} bytes"
        )
        strides = f"strides {(down, across)}"
        axes.set_title(f"{name}, {strides}: the tile's {needed} scales are {way}")
        which = f"the {needed} scales of rows {rows[0]} to {rows[1] - 1} at step {block}"
        said.append(f"{name}: {strides}, {which} are {way}")
    panels[-1, 0].set_xlabel("place of a float in its 128 bytes; a cell names the row of a that it is for")
    blocks = min(len(_BLOCKS), max(scale.shape[1] for scale in scales.values()))
    entries: dict[str, Any] = {f"block {j} of k": _BLOCKS[j] for j in range(blocks)}
    legend(made, {**entries, "framed: needed; white: padding": {"facecolor": PALE, "edgecolor": INK}})
    return Picture(made, "\n".join(said))


def _span(scale: torch.Tensor) -> int:
    """Count the floats of memory from a tensor's first element to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(scale.shape, scale.stride(), strict=True))


def _memory(axes: Any, owner: Mapping[int, tuple[int, int]], wanted: set[int], lines: int) -> None:
    """Draw cells in the order of their addresses; a cell reads row of a, and has the colour of its block of
    k."""
    for address in range(lines * _LINE):
        line, place = divmod(address, _LINE)
        found = owner.get(address)
        colour = _block_colour(found[1]) if found else "white"
        style = {"facecolor": colour, "alpha": 1 if address in wanted else 0.4}
        rectangle(axes, place, line, 1, 1, edgecolor="white", linewidth=0.6, **style)
        if found:
            ink = ink_on(colour) if address in wanted else INK
            label(axes, place + 0.5, line + 0.52, str(found[0]), size=6.5, color=ink)
    for address in wanted:
        line, place = divmod(address, _LINE)
        rectangle(axes, place, line, 1, 1, fill=False, edgecolor=INK, linewidth=1.1, zorder=3)
    axes.set(xlim=(-0.1, _LINE + 0.1), ylim=(lines + 0.05, -0.05), xticks=range(0, _LINE + 1, 4))
    axes.set_yticks(
        [i + 0.5 for i in range(lines)], [f"byte {i * _LINE * 4}" for i in range(lines)], fontsize=7
    )
    axes.tick_params(length=0, labelsize=7)
    axes.spines[["left", "bottom"]].set_visible(False)


@drawn
def scale_columns(n: int, block_ns: Sequence[int]) -> Picture:
    """Draw the columns of d over blocks of 128, each with a scale of b, and over tiles of several widths.

    Each tile has its scales' colours, and says how many they are where there is more than one. Raises
    ValueError for sizes below 1.
    """
    for name, size in (("n", n), *(("block_ns", block_n) for block_n in block_ns)):
        if size < 1:
            raise ValueError(f"{name}: expected positive sizes, got {size}")
    if not block_ns:
        raise ValueError("block_ns: expected at least one width of a tile, got none")

    # Above the blocks of b's scales, below them a row of tiles for each width.
    made, axes = figure(9.5, 1.3 + 0.5 * len(block_ns))
    made.get_layout_engine().set(h_pad=0.08)
    for block in range(ceil_div(n, BLOCK)):
        width, colour = min(BLOCK, n - block * BLOCK), _block_colour(block)
        rectangle(axes, block * BLOCK, 0.1, width, 0.62, facecolor=colour, edgecolor="white")
        if width > n / 40:
            label(axes, block * BLOCK + width / 2, 0.41, f"sfb[{block}]", color=ink_on(colour))

    said = []
    for row, block_n in enumerate(block_ns, 1):
        scales = [_draw_columns(axes, row, start, min(start + block_n, n)) for start in range(0, n, block_n)]
        crossing = sum(count > 1 for count in scales)
        most, where = f"{len(scales)} tiles, one scale each", ""
        if crossing:
            most = f"{crossing} of {len(scales)} tiles cross, at most {max(scales)} scales"
            where = f"; they cross at multiples of {gcd(block_n, BLOCK)} columns"
        at_right(axes, row + 0.45, most, color=RED if max(scales) > 2 else INK)
        said.append(f"block_n = {block_n}: {most}{where}")
    axes.set(xlim=(-4, n + 4), ylim=(len(block_ns) + 0.9, 0), xticks=range(0, n + 1, BLOCK))
    names = ["scales of b", *(f"block_n = {block_n}" for block_n in block_ns)]
    axes.set_yticks([0.41, *(row + 0.45 for row in range(1, len(names)))], names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="column of d", title="How many scales of b a tile needs at each step along k")
    axes.spines["left"].set_visible(False)
    return Picture(made, "\n".join(said))


def _draw_columns(axes: Any, row: int, start: int, end: int) -> int:
    """Draw a tile's columns in the colours of their scales. Returns how many scales they have."""
    first, last = start // BLOCK, (end - 1) // BLOCK
    for block in range(first, last + 1):
        left, right = max(start, block * BLOCK), min(end, (block + 1) * BLOCK)
        style = {"facecolor": _block_colour(block), "alpha": 0.45, "linewidth": 0}
        rectangle(axes, left, row + 0.14, right - left, 0.6, **style)
    count = last - first + 1
    many = count > 2
    frame = {"edgecolor": RED if many else INK, "linewidth": 1.6 if many else 0.9, "zorder": 3 + many}
    rectangle(axes, start, row + 0.14, end - start, 0.6, fill=False, **frame)
    if count > 1:
        weight = {"color": RED, "fontweight": "bold"} if many else {"color": INK}
        label(axes, (start + end) / 2, row + 0.45, str(count), size=9, zorder=4, **weight)
    return count


@drawn
def scale_map(
    a: Quantized, b: Quantized, block_m: int, block_n: int, tile: tuple[int, int] = (0, 0), step: int = 0
) -> Picture:
    """Draw the factor with which each element of a tile of d is promoted at a step along k: its sfa times its
    sfb.

    Args:
        a, b: with 1x128 and with 128x128 scales.
        block_m, block_n: the tile's size.
        tile: which tile, down and across.
        step: the block of 128 along k.

    The strips beside the map are the scales themselves. Raises ValueError for other granularities, sizes
    below 1, and a tile or step outside.
    """
    for name, q, granularity in (("a", a, "1x128"), ("b", b, "128x128")):
        if q.granularity != granularity:
            raise ValueError(f"{name}: expected granularity {granularity!r}, got {q.granularity!r}")
    for name, size in (("block_m", block_m), ("block_n", block_n)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")
    down, across = ceil_div(a.data.shape[0], block_m), ceil_div(b.data.shape[0], block_n)
    if not (0 <= tile[0] < down and 0 <= tile[1] < across):
        raise ValueError(f"tile: expected one of the {down} x {across} of this product, got {tile}")
    if not 0 <= step < a.scale.shape[1]:
        raise ValueError(f"step: expected one of the {a.scale.shape[1]} blocks of 128 along k, got {step}")

    # The scales of the tile's rows and columns; their product is drawn by its power of two.
    row0, column0 = tile[0] * block_m, tile[1] * block_n
    rows, columns = min(block_m, a.data.shape[0] - row0), min(block_n, b.data.shape[0] - column0)
    sfa = a.scale[row0 : row0 + rows, step].float().cpu()
    blocks = list(range(column0 // BLOCK, (column0 + columns - 1) // BLOCK + 1))
    sfb = b.scale[[(column0 + c) // BLOCK for c in range(columns)], step].float().cpu()
    factor = (sfa[:, None] * sfb[None, :]).log2()

    # The map, left of it the scales of a, above it those of b.
    made, panels = figure(8.6, 4.6, 2, 2, width_ratios=(1, 14), height_ratios=(1, 7))
    made.get_layout_engine().set(h_pad=0.08)
    panels[0, 0].axis("off")
    top, left, body = panels[0, 1], panels[1, 0], panels[1, 1]
    image: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    left.imshow(sfa[:, None].log2().numpy(), cmap="cividis", extent=(0, 1, row0 + rows, row0), **image)
    edges = (column0, column0 + columns, row0 + rows, row0)
    shown = body.imshow(factor.numpy(), cmap="viridis", extent=edges, **image)
    from matplotlib.ticker import MaxNLocator

    bar = made.colorbar(shown, ax=body, label="sfa * sfb", pad=0.01, ticks=MaxNLocator(8, integer=True))
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"$2^{{{value:.0f}}}$")

    for block in blocks:
        start, end = max(column0, block * BLOCK), min(column0 + columns, (block + 1) * BLOCK)
        colour = _block_colour(block)
        rectangle(top, start, 0, end - start, 1, facecolor=colour, edgecolor="white")
        value = f"{float(b.scale[block, step]):.2e}"
        wide = end - start > 0.35 * columns
        text = f"sfb[{block}, {step}] = {value}" if wide else f"[{block}, {step}]\n{value}"
        label(top, (start + end) / 2, 0.5, text, color=ink_on(colour))
        if block > blocks[0]:
            body.axvline(start, color="white", linewidth=1.6, linestyle="--")
    top.set(xlim=(column0, column0 + columns), ylim=(0, 1))
    top.axis("off")
    left.set(xticks=[], ylabel=f"row of d; its scale sfa[row, {step}] on the left")
    body.set(xlabel="column of d", yticks=[])
    if blocks[1:]:
        body.set_xticks([column0, *(block * BLOCK for block in blocks[1:]), column0 + columns])
    need = f"{rows} x {columns} elements, {rows} scales of a, {len(blocks)} of b"
    top.set_title(f"Tile {tile[0]},{tile[1]}, step {step}: {need}")
    borders = "".join(f"; columns from {block * BLOCK} on have sfb[{block}]" for block in blocks[1:])
    spread = f"factors from {float(factor.min().exp2()):.3g} to {float(factor.max().exp2()):.3g}"
    return Picture(made, f"tile {tile[0]},{tile[1]} at step {step}: {need}{borders}; {spread}")


@drawn
def error_curves(
    x: Sequence[float],
    errors: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str = "",
    percent: bool = False,
    base: int = 10,
) -> Picture:
    """Plot relative errors against their cause, a line by name, both axes logarithmic (`base` is that of the
    axis of x).

    The last number of each line stands at its end. Raises ValueError when there are fewer than two x, no
    lines, a line of another length, or numbers that are not positive.
    """
    if len(x) < 2 or not all(0 < value < float("inf") for value in x):
        raise ValueError(f"x: expected at least two positive numbers, got {tuple(x)}")
    if not errors:
        raise ValueError("errors: expected at least one line by name, got none")
    for name, line in errors.items():
        if len(line) != len(x) or not all(0 < error < float("inf") for error in line):
            raise ValueError(
                f"errors: expected {len(x)} positive numbers a line, got {tuple(line)} for {name!r}"
            )

    def said(error: float) -> str:
        return f"{error:.3g}" if not percent else f"{error:.1%}"

    # Ticks stand at the given x, and with `percent` at round shares.
    made, axes = figure(8.6, 3.8)
    made.get_layout_engine().set(h_pad=0.08)
    for i, (name, line) in enumerate(errors.items()):
        style = {"color": SERIES[i % len(SERIES)], "marker": _MARKS[i % len(_MARKS)]}
        axes.plot(x, line, markersize=5, linewidth=1.6, label=name, **style)
    _ends(axes, x[-1], [(line[-1], said(line[-1])) for line in errors.values()])
    axes.set(yscale="log", xlabel=xlabel, ylabel="relative error", title=title)
    axes.set_xscale("log", base=base)
    axes.set_xticks(list(x), [f"{value:,.0f}" if value >= 1 else f"{value:g}" for value in x], fontsize=8)
    low, high = min(map(min, errors.values())), max(map(max, errors.values()))
    axes.set_ylim(low / 2, high * 2)
    axes.minorticks_off()
    if percent:
        ticks = [tick for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1) if low / 2 <= tick <= high * 2]
        axes.set_yticks(ticks, [f"{100 * tick:g}%" for tick in ticks])
    axes.grid(color=GREY, alpha=0.2)
    if len(errors) > 1:
        made.legend(loc="outside right upper", fontsize=8)
    told = []
    for name, line in errors.items():
        told.append(f"{name}: " + ", ".join(f"{said(e)} at {v:g}" for v, e in zip(x, line, strict=True)))
    return Picture(made, "\n".join(told))


def _ends(axes: Any, x: float, ends: list[tuple[float, str]]) -> None:
    """Write numbers at the ends of lines; those that would lie on one another are written once, or moved
    apart."""
    last = 0.0
    for value, text in sorted(dict.fromkeys(ends)):
        place = max(value, 1.35 * last)
        beside(axes, x, place, text, (8, 0), color=INK)
        last = place


def _block_colour(block: int) -> str:
    return _BLOCKS[block % len(_BLOCKS)]
