"""The roofline of Hopper: what its datasheet allows, by how much work a byte brings. Nothing here was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..hopper import H100, H200, Chip
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, SERIES, Picture, drawn, figure

__all__ = ["H100", "H200", "Chip", "gemm_intensity", "product", "roofline"]


def gemm_intensity(m: int, n: int, k: int) -> float:
    """Operations a byte of an FP8 product with BF16 output when every byte moves once."""
    _check_sizes(m, n, k)
    return 2 * m * n * k / (k * (m + n) + 2 * m * n)


def _check_sizes(m: int, n: int, k: int) -> None:
    for name, size in (("m", m), ("n", n), ("k", k)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")


@drawn
def product(m: int, n: int, k: int) -> Picture:
    """d = a @ b.T to scale: what one element of d needs, how many operations the whole takes and how many bytes it cannot do without."""
    _check_sizes(m, n, k)
    from matplotlib.patches import Rectangle

    gap = 0.05 * max(k + n, k + m)
    wide = 5.2
    made, axes = figure(
        wide, min(8.0, max(1.6, (wide - 0.2) * (k + gap + m) / (k + gap + n)) + 0.9)
    )  # the labels' inches
    row, column = m // 3, 3 * n // 5
    parts = (("a", -gap - k, 0, k, m), ("b.T", 0, -gap - k, n, k), ("d", 0, 0, n, m))
    for _, x, y, width, height in parts:
        axes.add_patch(Rectangle((x, y), width, height, facecolor=PALE, edgecolor=GREY, clip_on=False))
    # An element of a large matrix is thinner than a line can be.
    least = 0.006 * (k + n)
    down, across = max(1.0, min(least, m / 3)), max(1.0, min(least, n / 3))
    top, left = min(row, m - down), min(column, n - across)
    axes.add_patch(Rectangle((-gap - k, top), k, down, color=BLUE, linewidth=0))
    axes.add_patch(Rectangle((left, -gap - k), across, k, color=ORANGE, linewidth=0))
    axes.add_patch(Rectangle((left, top), across, down, color=GREEN, linewidth=0))
    if max(m, n, k) <= 32:
        for _, x, y, width, height in parts:
            axes.vlines([x + i for i in range(1, width)], y, y + height, color="white", linewidth=0.8)
            axes.hlines([y + i for i in range(1, height)], x, x + width, color="white", linewidth=0.8)
    operations, traffic = 2 * m * n * k, k * (m + n) + 2 * m * n
    axes.text(-gap - k / 2, m + 0.3 * gap, f"a ({m:,}, {k:,})\n{_bytes(m * k)}", ha="center", va="top")
    axes.text(n / 2, m + 0.3 * gap, f"d ({m:,}, {n:,})\n{_bytes(2 * m * n)}", ha="center", va="top")
    axes.text(n / 2, -1.2 * gap - k, f"b.T ({k:,}, {n:,})\n{_bytes(n * k)}", ha="center", va="bottom")
    said = f"{_count(operations)} operations\n{_bytes(traffic)} in and out\n{_short(operations / traffic)} operations a byte"
    axes.text(-gap - k / 2, -gap - k / 2, said, ha="center", va="center", fontsize=11)
    axes.set(xlim=(-gap - k, n), ylim=(m, -gap - k), aspect="equal")
    axes.axis("off")
    return Picture(made, f"({m}, {k}) times ({k}, {n}): {said.replace(chr(10), ', ')}")


@drawn
def roofline(points: Mapping[str, float] | None = None, chip: Chip = H200) -> Picture:
    """The roof, and where some problems or kernels stand under it.

    `points`: operations a byte by name. They are drawn on the roof: the most that the datasheet allows there.
    """
    points = dict(points or {})
    for name, intensity in points.items():
        if not 0 < intensity < math.inf:
            raise ValueError(f"points: expected positive operations a byte, got {intensity!r} for {name!r}")
    made, axes = figure(8.5, 4.4)
    low, high, floor = (
        min(0.5, *points.values(), 1) / 2,
        max(8192.0, 2 * max(points.values(), default=0)),
        0.5,
    )
    ridge = chip.fp8 / chip.bandwidth
    axes.axvspan(low, ridge, color=PALE, linewidth=0, alpha=0.55, zorder=0)
    axes.plot(
        [low, ridge, high], [chip.allowed(x) / 1e12 for x in (low, ridge, high)], color=BLUE, linewidth=2
    )
    axes.hlines(
        chip.fp32 / 1e12, chip.fp32 / chip.bandwidth, high, color=ORANGE, linewidth=1.5, linestyle="--"
    )
    for rate, name in ((chip.fp8, "FP8 tensor cores"), (chip.fp32, "FP32 on the ordinary cores")):
        axes.text(
            high,
            rate / 1e12 * 1.15,
            f"{name}: {rate / 1e12:,.0f} TFLOPS",
            ha="right",
            va="bottom",
            color=INK,
            fontsize=8,
        )
    axes.text(
        ridge / 30,
        0.6 * chip.bandwidth / 1e12 * ridge / 30,
        f"device memory: {chip.bandwidth / 1e12:g} TB/s",
        va="top",
        fontsize=8,
    )
    axes.text(
        ridge / 1.1,
        floor * 1.25,
        f"memory-bound, up to the ridge at {ridge:.0f}",
        color=GREY,
        fontsize=8,
        ha="right",
    )
    axes.text(ridge * 1.1, floor * 1.25, "compute-bound", color=GREY, fontsize=8)
    said = [f"{chip.name}: ridge at {ridge:.0f} operations a byte"]
    for (name, intensity), colour, mark in zip(
        points.items(), (SERIES * 3)[2:], "osD^vPXo" * 2, strict=False
    ):
        allowed = chip.allowed(intensity) / 1e12
        label = f"{name}: {_short(intensity)} operations a byte, at most {_short(allowed)} TFLOPS"
        axes.vlines(intensity, floor, allowed, color=colour, linewidth=0.8, linestyle=":")
        axes.plot(intensity, allowed, mark, color=colour, markersize=7, label=label, zorder=3)
        said.append(label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte from device memory",
        ylabel="TFLOPS allowed",
        xlim=(low, high),
        ylim=(floor, 6000),
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_title(f"What the datasheet of the {chip.name} allows")
    if points:
        axes.legend(loc="upper left", fontsize=8)
    return Picture(made, "; ".join(said))


def _count(value: float) -> str:
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{_short(value / size)} {word}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for size, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{_short(value / size)} {word}"
    return f"{value:,.0f} bytes"


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
