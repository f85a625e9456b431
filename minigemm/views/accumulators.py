"""The accumulators of a warpgroup: which thread holds which element, and how few bits one of them keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from ..emulator.machine import tensor_core
from ..emulator.machine.wgmma import WARPGROUP, matrix_of
from .shapes import label, rectangle, unframed
from .style import BLUE, GREEN, GREY, INK, PALE, RED, Picture, drawn, figure, ink_on, lane_colour

__all__ = ["accumulators", "alignment", "held_by"]

ROWS = 64
_KEPT = 14  # bits


def held_by(thread: int, n: int) -> list[tuple[int, int]]:
    """List the (row, column) of each accumulator register of a thread, in the order of the registers.

    Raises ValueError for a thread outside 0 to 127, and an n that is no multiple of 8 from 8 to 256.
    """
    _check(thread, n)
    owner, register = _owners(n)
    places = [(int(row), int(column)) for row, column in np.argwhere(owner == thread)]
    return sorted(places, key=lambda place: register[place])


def _check(thread: int, n: int) -> None:
    if n not in range(8, 257, 8):
        raise ValueError(f"n: expected a multiple of 8 from 8 to 256, got {n}")
    if thread not in range(WARPGROUP):
        raise ValueError(f"thread: expected one of a warpgroup, 0 to {WARPGROUP - 1}, got {thread}")


def _owners(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Thread and register of each element of d: two arrays (64, n)."""
    count = n // 2
    number = matrix_of(np.arange(WARPGROUP * count).reshape(WARPGROUP, count))
    return number // count, number % count


@drawn
def accumulators(n: int = 32, thread: int = 37) -> Picture:
    """Draw the (64, n) result of `wgmma` over the threads of a warpgroup: on the left coloured by lane, on
    the right the 16 rows of one warp with lanes and registers.

    The elements of `thread` are framed. Raises ValueError for a thread outside 0 to 127, and an n that is no
    multiple of 8 from 8 to 256.
    """
    places = held_by(thread, n)
    owner, register = _owners(n)
    warp, lane = divmod(thread, 32)
    shown = min(n, 16)
    made, (left, right) = figure(10, 5.2, 1, 2, width_ratios=(1, 1.9))

    # All of d, a frame around what the right panel shows.
    colours = np.array([lane_colour(i)[:3] for i in range(32)])
    left.imshow(colours[owner % 32], interpolation="nearest", aspect="auto", extent=(0, n, ROWS, 0))
    for number in range(4):
        left.axhline(16 * number, color="white", linewidth=2.5)
        weight = "bold" if number == warp else "normal"
        label(left, -0.02 * n, 16 * number + 8, f"warp {number}", ha="right", size=8.5, fontweight=weight)
    for row, column in places[::2]:
        rectangle(left, column, row, 2, 1, fill=False, edgecolor=RED, linewidth=1.6)
    frame = {"fill": False, "edgecolor": INK, "linewidth": 1.8, "clip_on": False, "zorder": 5}
    rectangle(left, 0, 16 * warp, shown, 16, **frame)
    left.set(xlim=(0, n), ylim=(ROWS, 0), yticks=[], xticks=range(0, n + 1, 8), xlabel="column")
    left.set_title(f"d (64, {n}), coloured by lane")
    left.spines[:].set_visible(False)

    # One warp's rows, element by element.
    for i, j in np.ndindex(16, shown):
        holder, number = owner[16 * warp + i, j], register[16 * warp + i, j]
        face = lane_colour(int(holder))
        rectangle(right, j, i, 1, 1, facecolor=face, edgecolor=face if j % 2 else "white", linewidth=0.6)
        ink, weight = ink_on(face[:3]), "bold" if holder == thread else "normal"
        label(right, j + 0.5, i + 0.36, f"{holder % 32}", color=ink, fontweight=weight)
        label(right, j + 0.5, i + 0.76, f"r{number}", size=5.8, color=ink)
    for row, column in places[::2]:
        if column < shown:
            frame = {"fill": False, "edgecolor": RED, "linewidth": 2.2}
            rectangle(right, column + 0.05, row - 16 * warp + 0.05, 1.9, 0.9, **frame)
    right.axhline(8, color="white", linewidth=2.5)
    right.axvline(8, color="white", linewidth=2.5)
    right.set(xlim=(0, shown), ylim=(16, 0), xlabel="column", ylabel="row")
    right.set_xticks([i + 0.5 for i in range(shown)], [str(i) for i in range(shown)], fontsize=7.5)
    right.set_yticks([i + 0.5 for i in range(16)], [str(16 * warp + i) for i in range(16)], fontsize=7.5)
    unframed(right)
    right.set_title(f"warp {warp}: lane, and below it the register; thread {thread} is lane {lane}, in red")

    first = ", ".join(f"r{i} {place}" for i, place in enumerate(places[:8]))
    text = (
        f"d (64, {n}) over 128 threads, {n // 2} registers each; thread {thread} (warp {warp}, lane {lane}) holds "
        f"(row, column) in {first}"
    )
    return Picture(made, text + (", ..." if len(places) > 8 else ""))


# --- arithmetic


def _operand(name: str, values: Sequence[float]) -> torch.Tensor:
    """Make 32 e4m3 numbers: the given ones, and zeros behind them."""
    given = torch.tensor(list(values), dtype=torch.float64)
    if not 1 <= len(given) <= tensor_core.STEP:
        raise ValueError(f"{name}: expected 1 to {tensor_core.STEP} numbers, got {len(given)}")
    exact = given.float().to(torch.float8_e4m3fn)
    if (exact.double() != given).any():
        odd = given[exact.double() != given][0].item()
        raise ValueError(f"{name}: expected finite numbers that e4m3 can hold, got {odd:g}")
    return torch.nn.functional.pad(exact.float(), (0, tensor_core.STEP - len(given))).to(torch.float8_e4m3fn)


def _exponent(x: float, least: int) -> int:
    return max(math.frexp(x)[1] - 1, least)


@drawn
def alignment(a: Sequence[float], b: Sequence[float], c: float = 0.0, title: str = "") -> Picture:
    """Draw how the tensor core adds one step of one element: every product, and the sum so far, as bits under
    one another. The bits that are cut off are red.

    Args:
        a, b: up to 32 numbers each, all of which e4m3 can hold; equal products share a row.
        c: the accumulator before the step, a float32.

    Raises ValueError for other numbers, for more than eight different products, and when all is zero.
    """
    left, right = _operand("a", a), _operand("b", b)
    if len(a) != len(b):
        raise ValueError(f"b: expected as many numbers as a has, {len(a)}, got {len(b)}")
    if not math.isfinite(c) or float(np.float32(c)) != c:
        raise ValueError(f"c: expected a finite float32, got {c!r}")
    pairs = [(x, y) for x, y in zip(left.tolist(), right.tolist(), strict=True) if x * y]
    if not pairs and not c:
        raise ValueError("a: expected a product or a c that is not zero")
    counts = Counter(x * y for x, y in pairs)
    if len(counts) > 8:
        raise ValueError(f"a: expected at most 8 different products, got {len(counts)}")

    # All terms are cut off at one place: 14 bits from the largest exponent on.
    exponents = [_exponent(x, -6) + _exponent(y, -6) for x, y in pairs] + ([_exponent(c, -126)] if c else [])
    largest = max(exponents)
    unit = Fraction(2) ** (largest - _KEPT + 1)

    def kept(x: float) -> Fraction:
        whole = abs(Fraction(x)) // unit * unit
        return whole if x > 0 else -whole

    terms = [(f"c = {c:g}", c, 1)] if c else []
    for value, count in sorted(counts.items(), key=lambda item: -abs(item[0])):
        terms.append((f"{count} x {value:g}" if count > 1 else f"{value:g}", value, count))
    aligned = sum((kept(value) * count for _, value, count in terms), Fraction(0))
    exact = sum((Fraction(value) * count for _, value, count in terms), Fraction(0))
    got = _element(left, right, c)

    # A row for each term and one for the sum: name, value, the lowest bit kept, and what is said of it.
    top = max([largest, *(math.frexp(float(abs(x)))[1] - 1 for x in (aligned, exact) if x)])
    lowest = min(_lowest(value) for _, value, _ in terms)
    bottom = max(min(largest - _KEPT, lowest), largest - _KEPT - 9)
    cut = largest - _KEPT + 1
    rows = []
    for name, value, count in terms:
        rows.append(
            (name, Fraction(value), cut, f"{'each ' if count > 1 else ''}kept as {float(kept(value)):g}")
        )
    sum_cut = math.frexp(float(abs(aligned)))[1] - _KEPT if aligned else cut
    rows.append(("sum", aligned, max(sum_cut, cut), f"kept as {got:g}"))

    made, axes = figure(10, 1.15 + 0.34 * (len(rows) + 1))
    _draw(axes, rows, top, bottom, largest, title or f"exact {float(exact):g}, the tensor core gives {got:g}")
    said = "; ".join(f"{name} {note}" for name, _, _, note in rows[:-1])
    text = (
        f"largest exponent {largest}, so that bits below 2^{cut} are cut off; {said}; sum {got:g}, "
        f"exact {float(exact):g}"
    )
    return Picture(made, text)


def _element(left: torch.Tensor, right: torch.Tensor, c: float) -> float:
    """Let the tensor core add 32 products to c, as one element of a product that is zero elsewhere."""
    start, rows, columns = (
        torch.zeros(ROWS, 8),
        torch.zeros(ROWS, tensor_core.STEP),
        torch.zeros(8, tensor_core.STEP),
    )
    start[0, 0] = c
    rows[0], columns[0] = left.float(), right.float()
    e4m3 = torch.float8_e4m3fn
    return tensor_core.wgmma(rows.to(e4m3), columns.to(e4m3), start)[0, 0].item()


def _lowest(x: float) -> int:
    """The exponent of the lowest bit that is set."""
    numerator, denominator = x.as_integer_ratio()
    return (numerator & -numerator).bit_length() - denominator.bit_length()


def _draw(
    axes: Any, rows: list[tuple[str, Fraction, int, str]], top: int, bottom: int, largest: int, title: str
) -> None:
    """Draw rows of (name, value, exponent of the lowest bit that is kept, note), the sum last."""
    # The sum stands a little apart from its terms.
    count = top - bottom + 1
    for number, (name, value, cut, note) in enumerate(rows):
        y = number + (0.35 if name == "sum" else 0)
        magnitude = abs(value)
        highest = math.frexp(float(magnitude))[1] - 1 if magnitude else bottom - 1

        # Red bits are lost. Zeros are written only between the highest one and the last bit that is kept.
        for x, exponent in enumerate(range(top, bottom - 1, -1)):
            one = int(magnitude // Fraction(2) ** exponent) & 1
            inside = exponent >= cut
            colour = (GREEN if name == "sum" else BLUE) if inside else RED
            face = colour if one else PALE
            rectangle(axes, x, y, 1, 0.9, facecolor=face, edgecolor="white", linewidth=1)
            if one or (exponent <= highest and inside):
                ink = ink_on(face) if one else GREY
                label(axes, x + 0.5, y + 0.45, str(one), family="monospace", color=ink)

        # The bits show a magnitude, so the sum's sign is told in words.
        shown = f"{name} (negative)" if value < 0 and name == "sum" else name
        label(axes, -0.3, y + 0.45, shown, ha="right", size=9)
        label(axes, count + 0.3, y + 0.45, note, ha="left", size=9)

    # The dashed lines enclose the bits that are kept, from the exponent `largest` down.
    for edge in (top - largest, top - largest + _KEPT):
        axes.plot([edge] * 2, [-0.15, len(rows) + 0.3], color=INK, linewidth=1.2, linestyle="--")
    label(axes, top - largest + _KEPT / 2, -0.3, f"the {_KEPT} bits that are kept", va="bottom", size=8.5)

    # Each column has its power of two below it.
    axes.set(xlim=(-3.2, count + 5), ylim=(len(rows) + 0.35, -1.1), yticks=[], title=title)
    powers = [f"$2^{{{exponent}}}$" for exponent in range(top, bottom - 1, -1)]
    axes.set_xticks([x + 0.5 for x in range(count)], powers, fontsize=7)
    unframed(axes)
