"""A box that TMA loads: the part outside of the tensor, and where each 16-byte chunk of a row goes in shared
memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..emulator.machine.tma import TensorMap, swizzle_offsets
from .shapes import label, rectangle
from .style import BLUE, GREY, INK, ORANGE, PALE, RED, SERIES, YELLOW, Picture, drawn, figure, ink_on

__all__ = ["bank_groups", "box", "swizzles"]

CHUNK, LINE = 16, 128  # bytes: what a swizzle moves, and what the 32 banks hold side by side
SPANS = (32, 64, 128)  # bytes
_COLOURS = (*SERIES, YELLOW, "#999999")  # one for each chunk of a row


def _check(name: str, span: int, chunk: int) -> None:
    if span not in SPANS:
        raise ValueError(f"{name}: expected rows of 32, 64 or 128 bytes, got {span}")
    if not 0 <= chunk < span // CHUNK:
        raise ValueError(f"chunk: expected 0 to {span // CHUNK - 1} in rows of {span} bytes, got {chunk}")


def bank_groups(span: int, swizzled: bool = True, rows: int = 8, chunk: int = 0) -> list[int]:
    """Find the group of four banks (0 to 7) in which the same chunk of each of some rows of `span` bytes
    lies."""
    _check("span", span, chunk)
    offsets = swizzle_offsets(0, rows * span, span if swizzled else 0)
    return [int(offsets[row * span + chunk * CHUNK]) % LINE // CHUNK for row in range(rows)]


@drawn
def swizzles(
    cases: Sequence[tuple[int, bool]] = ((128, False), (32, True), (64, True), (128, True)), chunk: int = 0
) -> Picture:
    """Draw eight lines of shared memory for each case (bytes a row, swizzled); a cell says row.chunk, and one
    chunk of rows 0 to 7 is framed.

    A reader of one column of a tile wants the framed cells: those in one column of the picture share their
    banks, and come one after the other.
    """
    if not cases:
        raise ValueError("cases: expected pairs (bytes a row, swizzled), got none")
    for span, _ in cases:
        _check("cases", span, chunk)
    made, every = figure(max(2.75 * len(cases), 4), 3.4, 1, len(cases), squeeze=False)
    said = []
    for axes, (span, swizzled) in zip(every[0], cases, strict=True):
        _draw_lines(axes, span, swizzled, chunk)
        groups = bank_groups(span, swizzled, 8, chunk)
        ways = max(groups.count(group) for group in groups)
        name = f"{span}-byte swizzle" if swizzled else f"no swizzle, rows of {span}"
        verdict = f"{ways}-way conflict" if ways > 1 else "no conflict"
        axes.set_title(f"{name}:\n{verdict}")
        said.append(f"{name}: {verdict}, rows 0 to 7 in bank groups {groups}")
    every[0][0].set_ylabel("128 bytes a line", fontsize=8)
    return Picture(made, "; ".join(said))


def _draw_lines(axes: Any, span: int, swizzled: bool, chunk: int) -> None:
    """Draw one panel of `swizzles`."""
    offsets = swizzle_offsets(0, 8 * LINE, span if swizzled else 0)
    for start in range(0, 8 * LINE, CHUNK):
        row, logical = start // span, start % span // CHUNK
        y, x = int(offsets[start]) // LINE, int(offsets[start]) % LINE // CHUNK
        framed = logical == chunk and row < 8
        face = _COLOURS[logical]
        alpha = 1.0 if framed else 0.32
        rectangle(axes, x, y, 1, 1, facecolor=face, edgecolor="white", alpha=alpha, linewidth=0.8)
        ink = ink_on(face) if framed else INK
        label(axes, x + 0.5, y + 0.5, f"{row}.{logical}", size=6.5, color=ink)
        if framed:
            rectangle(axes, x + 0.06, y + 0.06, 0.88, 0.88, fill=False, edgecolor=RED, linewidth=1.6)
    axes.set(xlim=(0, 8), ylim=(8, 0), aspect="equal", yticks=[])
    axes.set_xticks([i + 0.5 for i in range(8)], [str(4 * i) for i in range(8)])
    axes.tick_params(length=0)
    axes.set_xlabel("first bank of the chunk", fontsize=8)


@drawn
def box(tensor_map: TensorMap, at: tuple[int, int], title: str = "") -> Picture:
    """Draw a box of a matrix's tensor map: where it lies in the matrix, and which part of it a load fills
    with zeros.

    Args:
        tensor_map: the emulator's, of a matrix.
        at: the box's coordinates as in the instruction, the innermost (column) first.

    Raises ValueError for a tensor map of more dimensions, and for coordinates that are not two.
    """
    descriptor = tensor_map.descriptor
    if len(descriptor.dims) != 2:
        raise ValueError(f"tensor_map: expected one of a matrix, got {len(descriptor.dims)} dimensions")
    if len(at) != 2:
        raise ValueError(f"at: expected (column, row), got {at!r}")
    (columns, rows), (wide, high), (x, y) = descriptor.dims, descriptor.extents, at
    inside_x = max(0, min(x + wide, columns) - max(x, 0))
    inside_y = max(0, min(y + high, rows) - max(y, 0))
    inside = inside_x * inside_y
    filled = wide * high - inside
    width, height = max(x + wide, columns) - min(x, 0), max(y + high, rows) - min(y, 0)

    made, axes = figure(8, min(5.0, max(2.0, 6.6 * height / width + 0.9)))
    rectangle(axes, 0, 0, columns, rows, facecolor=PALE, edgecolor=GREY)
    dotted = {"facecolor": ORANGE, "alpha": 0.35, "hatch": "...", "edgecolor": ORANGE, "linewidth": 0}
    rectangle(axes, x, y, wide, high, **dotted)
    if inside:
        left, top = max(x, 0), max(y, 0)
        rectangle(axes, left, top, inside_x, inside_y, facecolor=BLUE, edgecolor="none")
        middle, look = top + inside_y / 2, {"color": "white"}
        if inside_y < 0.1 * height:  # too thin for a word, which then stands above
            middle, look = top, {"color": BLUE, "va": "bottom"}
        label(axes, left + inside_x / 2, middle, "copied", **look)
    if filled:
        # The word stands in the larger of the two parts outside: beside the matrix, or below it.
        over_x, over_y = wide - inside_x, high - inside_y
        beyond = f"filled with {'zeros' if descriptor.fill == 'zero' else 'NaN'}"
        if over_x * high >= over_y * wide:
            label(axes, x + wide - over_x / 2, y + high / 2, beyond)
        else:
            label(axes, x + wide / 2, y + high - over_y / 2, beyond)
    rectangle(axes, x, y, wide, high, fill=False, edgecolor=INK, linewidth=1.4)

    right, bottom = max(x + wide, columns), max(y + high, rows)
    axes.set_xlim(min(x, 0) - 0.01 * width, right + 0.01 * width)
    axes.set_ylim(bottom * 1.02, min(y, 0) - 0.02 * height)
    axes.set(xlabel="column (coordinate 0, innermost)", ylabel="row (coordinate 1)", aspect="equal")
    axes.set_xticks(sorted({0, x, columns, x + wide}))
    axes.set_yticks(sorted({0, y, rows, y + high}))
    axes.spines[["left", "bottom"]].set_visible(False)
    text = (
        f"box of {high} x {wide} at row {y}, column {x} of ({rows}, {columns}): {inside:,} elements inside, "
        f"{filled:,} filled; {descriptor.box_bytes:,} bytes on the mbarrier"
    )
    counts = f"{inside:,} elements copied, {filled:,} filled, {descriptor.box_bytes:,} bytes counted"
    axes.set_title(title or f"box at ({x}, {y}): {counts}")
    return Picture(made, text)
