"""The roofline of Hopper: what its datasheet allows, by how much work a byte brings. Nothing here was
measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..hopper import H100, H200, Chip
from .shapes import label, rectangle, short
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, SERIES, Picture, drawn, figure

__all__ = ["H100", "H200", "Chip", "gemm_intensity", "product", "roofline"]


def gemm_intensity(m: int, n: int, k: int) -> float:
    """Operations a byte of an FP8 product with BF16 output when every byte moves once."""
    _check_sizes(m, n, k)
    return 2 * m * n * k / _traffic(m, n, k)


def _check_sizes(m: int, n: int, k: int) -> None:
    for name, size in (("m", m), ("n", n), ("k", k)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")


def _traffic(m: int, n: int, k: int) -> int:
    """The bytes of a, b and d: 1 for an element of a and b, 2 for one of d."""
    return k * (m + n) + 2 * m * n


@drawn
def product(m: int, n: int, k: int) -> Picture:
    """Draw d = a @ b.T to scale: what one element of d needs, how many operations the whole takes, and how
    many bytes it cannot do without."""
    _check_sizes(m, n, k)
    gap = 0.05 * max(k + n, k + m)
    wide = 5.2
    to_scale = (wide - 0.2) * (k + gap + m) / (k + gap + n)
    made, axes = figure(wide, min(8.0, max(1.6, to_scale) + 0.9))  # 0.9 inches for the labels

    parts = ((-gap - k, 0, k, m), (0, -gap - k, n, k), (0, 0, n, m))  # a, b.T, d
    for x, y, width, height in parts:
        rectangle(axes, x, y, width, height, facecolor=PALE, edgecolor=GREY, clip_on=False)
    # An element of a large matrix is thinner than a line can be.
    least = 0.006 * (k + n)
    down, across = max(1.0, min(least, m / 3)), max(1.0, min(least, n / 3))
    top, left = min(m // 3, m - down), min(3 * n // 5, n - across)
    rectangle(axes, -gap - k, top, k, down, color=BLUE, linewidth=0)
    rectangle(axes, left, -gap - k, across, k, color=ORANGE, linewidth=0)
    rectangle(axes, left, top, across, down, color=GREEN, linewidth=0)
    if max(m, n, k) <= 32:
        for x, y, width, height in parts:
            axes.vlines([x + i for i in range(1, width)], y, y + height, color="white", linewidth=0.8)
            axes.hlines([y + i for i in range(1, height)], x, x + width, color="white", linewidth=0.8)

    operations, traffic = 2 * m * n * k, _traffic(m, n, k)
    label(axes, -gap - k / 2, m + 0.3 * gap, f"a ({m:,}, {k:,})\n{_bytes(m * k)}", va="top", size=9)
    label(axes, n / 2, m + 0.3 * gap, f"d ({m:,}, {n:,})\n{_bytes(2 * m * n)}", va="top", size=9)
    label(axes, n / 2, -1.2 * gap - k, f"b.T ({k:,}, {n:,})\n{_bytes(n * k)}", va="bottom", size=9)
    said = (
        f"{_count(operations)} operations\n{_bytes(traffic)} in and out\n"
        f"{short(operations / traffic)} operations a byte"
    )
    label(axes, -gap - k / 2, -gap - k / 2, said, size=11)
    axes.set(xlim=(-gap - k, n), ylim=(m, -gap - k), aspect="equal")
    axes.axis("off")
    return Picture(made, f"({m}, {k}) times ({k}, {n}): {said.replace(chr(10), ', ')}")


@drawn
def roofline(points: Mapping[str, float] | None = None, chip: Chip = H200) -> Picture:
    """Draw the roof, and where some products or kernels stand under it.

    `points` are operations a byte, by name. They are drawn on the roof: the most that the datasheet allows
    there.
    """
    points = dict(points or {})
    for name, intensity in points.items():
        if not 0 < intensity < math.inf:
            raise ValueError(f"points: expected positive operations a byte, got {intensity!r} for {name!r}")
    low = min(0.5, *points.values(), 1) / 2
    high = max(8192.0, 2 * max(points.values(), default=0))
    floor = 0.5  # TFLOPS
    ridge = chip.fp8 / chip.bandwidth

    # The roof: device memory up to the ridge, then the tensor cores, and lower the ordinary cores.
    made, axes = figure(8.5, 4.4)
    axes.axvspan(low, ridge, color=PALE, linewidth=0, alpha=0.55, zorder=0)
    corners = [low, ridge, high]
    axes.plot(corners, [chip.allowed(x) / 1e12 for x in corners], color=BLUE, linewidth=2)
    fp32 = {"color": ORANGE, "linewidth": 1.5, "linestyle": "--"}
    axes.hlines(chip.fp32 / 1e12, chip.fp32 / chip.bandwidth, high, **fp32)
    for rate, name in ((chip.fp8, "FP8 tensor cores"), (chip.fp32, "FP32 on the ordinary cores")):
        text = f"{name}: {rate / 1e12:,.0f} TFLOPS"
        label(axes, high, rate / 1e12 * 1.15, text, ha="right", va="bottom", color=INK)
    x, memory = ridge / 30, chip.bandwidth / 1e12
    label(axes, x, 0.6 * memory * x, f"device memory: {memory:g} TB/s", ha="left", va="top")
    bound = {"va": "baseline", "color": GREY}
    text = f"memory-bound, up to the ridge at {ridge:.0f}"
    label(axes, ridge / 1.1, floor * 1.25, text, ha="right", **bound)
    label(axes, ridge * 1.1, floor * 1.25, "compute-bound", ha="left", **bound)

    said = [f"{chip.name}: ridge at {ridge:.0f} operations a byte"]
    looks = zip((SERIES * 3)[2:], "osD^vPXo" * 2, strict=False)
    for (name, intensity), (colour, mark) in zip(points.items(), looks, strict=False):
        allowed = chip.allowed(intensity) / 1e12
        text = f"{name}: {short(intensity)} operations a byte, at most {short(allowed)} TFLOPS"
        axes.vlines(intensity, floor, allowed, color=colour, linewidth=0.8, linestyle=":")
        axes.plot(intensity, allowed, mark, color=colour, markersize=7, label=text, zorder=3)
        said.append(text)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(floor, 6000))
    axes.set(xlabel="operations a byte from device memory", ylabel="TFLOPS allowed")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    axes.set_title(f"What the datasheet of the {chip.name} allows")
    if points:
        axes.legend(loc="upper left", fontsize=8)
    return Picture(made, "; ".join(said))


def _count(value: float) -> str:
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{short(value / size)} {word}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for size, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{short(value / size)} {word}"
    return f"{value:,.0f} bytes"
