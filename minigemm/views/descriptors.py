"""The way of the tensor core to its operands: the 64 bits of a matrix descriptor, the bytes of shared memory
that they lead to, and what a width costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..emulator.machine.tma import swizzle_offsets
from ..emulator.machine.wgmma import Descriptor
from ..emulator.watch.timeline import Rates
from .shapes import beside, label, rectangle, unframed
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, SKY, Picture, drawn, figure, ink_on

__all__ = ["descriptor", "operand_reads", "wgmma_widths"]

CHUNK, LINE = 16, 128  # bytes: what a swizzle moves, and a line of the picture

# field, first bit, bits, colour
_FIELDS = (
    ("start address / 16", 0, 14, BLUE),
    ("leading offset / 16", 16, 14, GREY),
    ("stride offset / 16", 32, 14, GREEN),
    ("base offset", 49, 3, ORANGE),
    ("swizzle", 62, 2, PURPLE),
)


def _pattern(name: str, bits: int) -> int:
    """Check a descriptor, and turn the negative number of a signed tensor into its 64 bits."""
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not -(1 << 63) <= bits < 1 << 64:
        raise ValueError(f"{name}: expected the 64 bits of a descriptor as an int, got {bits!r}")
    return int(bits) & (1 << 64) - 1


@drawn
def descriptor(bits: int, title: str = "") -> Picture:
    """Draw the 64 bits of a matrix descriptor of `wgmma`, the highest first, with its fields and their
    meaning.

    Raises ValueError for a number that has no 64 bits.
    """
    pattern = _pattern("bits", bits)
    found = Descriptor.decode(pattern)
    meaning = {
        "start address / 16": f"shared address {found.start:#x}",
        "leading offset / 16": "not used here" if found.swizzle else f"{found.leading} bytes",
        "stride offset / 16": f"8 rows are {found.stride} bytes",
        "base offset": f"{found.base_offset} lines on" if found.base_offset else "aligned",
        "swizzle": "no swizzle" if not found.swizzle else f"{found.swizzle}-byte swizzle",
    }

    # The bits, pale where they are 0, grey where they belong to no field.
    made, axes = figure(10, 1.95)
    for bit in range(64):
        colour = next((c for _, first, count, c in _FIELDS if first <= bit < first + count), None)
        one = pattern >> bit & 1
        style = {"facecolor": colour or PALE, "alpha": 0.3 if colour and not one else 1.0}
        rectangle(axes, 63 - bit, 0, 1, 1, edgecolor="white", linewidth=1, **style)
        ink = GREY if colour is None else ink_on(colour) if one else INK
        label(axes, 63.5 - bit, 0.5, str(one), family="monospace", color=ink)

    # Above them the fields' names, below them their values; a narrow field's words begin at its left edge.
    said = []
    for name, first, count, colour in _FIELDS:
        left, right = 64 - first - count, 64 - first
        value = pattern >> first & (1 << count) - 1
        value_text = f"{value:#x}" if count > 3 else str(value)
        middle, align = ((left + right) / 2, "center") if count > 3 else (left, "left")
        axes.plot([left + 0.1, right - 0.1], [-0.14] * 2, color=colour, linewidth=2.5, solid_capstyle="butt")
        label(axes, middle, -0.28, name, ha=align, va="bottom", size=8.5, fontweight="bold")
        label(axes, middle, 1.5, f"{value_text}: {meaning[name]}", ha=align, va="top", size=8.5)
        label(axes, left + 0.5, 1.1, str(first + count - 1), va="top", size=6, color=GREY)
        label(axes, right - 0.5, 1.1, str(first), va="top", size=6, color=GREY)
        said.append(f"{name} (bits {first} to {first + count - 1}) {value_text}: {meaning[name]}")
    axes.set(xlim=(0, 64), ylim=(2.1, -0.95), xticks=[], yticks=[])
    axes.set_title(title or f"matrix descriptor {pattern:#018x}")
    unframed(axes)
    return Picture(made, f"descriptor {pattern:#018x}: " + "; ".join(said))


@drawn
def operand_reads(
    descriptors: Mapping[str, int],
    rows: int = 8,
    written: int = 128,
    tile: int | None = None,
    meant: Mapping[str, int] | None = None,
) -> Picture:
    """Draw which 16-byte chunks of shared memory the tensor core reads for the first rows of an operand, a
    panel for each descriptor.

    Args:
        descriptors: 64 bits each, by name.
        rows: how many rows of the operand, a multiple of 8 up to 32.
        written: the swizzle with which TMA wrote the tile, whose rows are as wide as it spans: 32, 64 or 128
            bytes.
        tile: the shared address where the tile begins; by default the multiple of 1024 at or below the first
            descriptor's start.
        meant: for some of the names, the byte of a row at which the 32 bytes were meant to begin; by default
            what the start address says.

    A cell says row.chunk of the tile, as TMA put it there. The chunks that are read are coloured: red where
    the tensor core takes one for another row or chunk than it is. Raises ValueError for any other argument.
    """
    if not descriptors:
        raise ValueError("descriptors: expected at least one by name, got none")
    if rows not in (8, 16, 24, 32):
        raise ValueError(f"rows: expected 8, 16, 24 or 32, got {rows}")
    if written not in (32, 64, 128):
        raise ValueError(f"written: expected a swizzle of 32, 64 or 128 bytes, got {written}")
    if unknown := (meant or {}).keys() - descriptors.keys():
        raise ValueError(f"meant: expected names among those of the descriptors, got {min(unknown)!r}")
    if odd := [first for first in (meant or {}).values() if first not in range(0, written, 32)]:
        raise ValueError(f"meant: expected multiples of 32 below {written}, got {odd[0]}")
    patterns = {name: _pattern(f"descriptors[{name!r}]", bits) for name, bits in descriptors.items()}

    # Where TMA put each chunk, turned round: which (row, byte of the row) lies at a place.
    base = Descriptor.decode(next(iter(patterns.values()))).start // 1024 * 1024 if tile is None else tile
    size = rows * LINE
    offsets = swizzle_offsets(base, size, written)
    lies = {int(offsets[at]) - base: divmod(at, written) for at in range(0, size, CHUNK)}

    across = min(4.0, 11 / len(patterns))  # inches
    width, height = across * len(patterns), 0.95 + (0.1 if rows == 8 else 0.075) * across * rows
    made, every = figure(width, height, 1, len(patterns), squeeze=False)
    said = []
    for axes, (name, pattern) in zip(every[0], patterns.items(), strict=True):
        found = Descriptor.decode(pattern)
        first = (meant or {}).get(name, (found.start - base) % LINE)
        wanted = {}  # place in the tile -> (row, byte of the row) that the tensor core takes it for
        for row, pair in enumerate((found.chunks(rows) - base).tolist()):
            for chunk, place in enumerate(pair):
                wanted[place] = (row, first + chunk * CHUNK)
        wrong = _draw_reads(axes, lies, wanted, across)
        verdict = f"{wrong} chunks taken for others" if wrong else "every chunk is what it is taken for"
        if beyond := sum(not 0 <= place < size for place in wanted):
            verdict += f", {beyond} outside of what is shown"
        axes.set(xlim=(0, LINE), ylim=(rows, 0), yticks=[])
        axes.set_xticks(
            [i + CHUNK / 2 for i in range(0, LINE, CHUNK)],
            [str(i) for i in range(0, LINE, CHUNK)],
            fontsize=7,
        )
        axes.set_title(name)
        axes.tick_params(length=0)
        axes.set_xlabel("byte of the line", fontsize=8)
        places = "; ".join(
            f"row {row} at " + ", ".join(f"{int(at):#x}" for at in pair)
            for row, pair in enumerate(found.chunks(rows))
        )
        said.append(f"{name}: {verdict}; {places}")
    lines = [f"{base + row * LINE:#x}" for row in range(rows)]
    every[0][0].set_yticks([row + 0.5 for row in range(rows)], lines, fontsize=7, family="monospace")
    return Picture(made, "\n".join(said))


def _draw_reads(
    axes: Any, lies: Mapping[int, tuple[int, int]], wanted: Mapping[int, tuple[int, int]], across: float
) -> int:
    """Draw every chunk of a tile, those read in colour. Returns how many the tensor core takes for others."""
    wrong = 0
    for place, (row, byte) in sorted(lies.items()):
        y, x = divmod(place, LINE)
        taken = wanted.get(place)
        colour, text, size = PALE, f"{row}.{byte // CHUNK}", 6.5
        if taken is not None and taken != (row, byte):
            wrong += 1
            colour, text, size = RED, f"{text}\nas {taken[0]}.{taken[1] // CHUNK}", 1.55 * across
        elif taken is not None:
            colour = BLUE if byte % 32 == 0 else SKY
        rectangle(axes, x, y, CHUNK, 1, facecolor=colour, edgecolor="white", linewidth=0.8)
        ink = ink_on(colour) if taken is not None else GREY
        label(axes, x + CHUNK / 2, y + 0.5, text, size=size, color=ink, linespacing=1.05)
    return wrong


@drawn
def wgmma_widths(marked: Sequence[int] = (8, 64, 128, 256), rates: Rates | None = None) -> Picture:
    """Plot what the width n of `wgmma.m64nNk32` costs: shared-memory bytes for each product, and cycles by
    the stated rates of the emulator's model.

    Figures are written at the `marked` widths. Raises ValueError when one is no multiple of 8 from 8 to 256.
    """
    for n in marked:
        if n not in range(8, 257, 8):
            raise ValueError(f"marked: expected multiples of 8 from 8 to 256, got {n}")
    rates = rates or Rates()
    every = list(range(8, 257, 8))
    each = [_operand_bytes(n) / _products(n) for n in every]
    computing = [_products(n) / rates.products for n in every]
    reading = [_operand_bytes(n) / rates.shared_bandwidth for n in every]
    longer = [max(pair) for pair in zip(computing, reading, strict=True)]

    # Left the bytes for each product, right the cycles of the two things that take time.
    made, (left, right) = figure(10, 3.1, 1, 2)
    left.plot(every, each, color=BLUE, linewidth=2)
    right.plot(every, computing, color=GREEN, linewidth=2, label=f"products, {rates.products:,} a cycle")
    both = f"reading both operands, {rates.shared_bandwidth} bytes a cycle"
    right.plot(every, reading, color=BLUE, linewidth=2, label=both)
    right.fill_between(every, longer, color=GREY, alpha=0.15, label="the longer of the two")
    said = []
    for n in marked:
        value = _operand_bytes(n) / _products(n)
        left.plot([n], [value], "o", color=BLUE)
        away, align = ((-4, 6), "right") if n > 224 else ((8, 6), "left")
        beside(left, n, value, f"n = {n}: {value:.3f}", away, ha=align, va="baseline")
        said.append(
            f"n = {n}: {_products(n):,} products, {_operand_bytes(n):,} bytes, {value:.4f} bytes a product; "
            f"{_products(n) / rates.products:g} cycles of products, "
            f"{_operand_bytes(n) / rates.shared_bandwidth:g} of reading"
        )
    left.set(xlabel="n", ylim=(0, 1.15 * max(each)), title="shared-memory bytes read, a product")
    right.set(xlabel="n", ylim=(0, None), title="cycles of one instruction (a model)")
    for axes in (left, right):
        axes.set_xticks([8, *range(32, 257, 32)])
        axes.grid(color=GREY, alpha=0.2)
    right.legend(loc="upper left", fontsize=8)
    return Picture(made, "; ".join(said))


def _operand_bytes(n: int) -> int:
    """The bytes of both operands of an m64nNk32."""
    return (64 + n) * 32


def _products(n: int) -> int:
    return 64 * n * 32
