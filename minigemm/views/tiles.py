"""Who computes what: tiles of d over CTAs, and the elements of a matrix that a kernel's warps really touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..emulator.report import Request
from .style import BLUE, GREEN, GREY, ORANGE, PALE, Picture, drawn, figure, lane_colour

__all__ = ["footprint", "tiles"]


@drawn
def tiles(m: int, n: int, k: int, block_m: int, block_n: int, block_k: int, cta: tuple[int, int] = (0, 0)) -> Picture:
    """d over a grid of CTAs, with what one of them reads: rows of a to the left, rows of b (columns of b.T) above."""
    down, across, steps = -(-m // block_m), -(-n // block_n), -(-k // block_k)
    made, axes = figure(6.4, 6.4 * (m + k + 40) / (n + k + 40) if (m + k) < 1.3 * (n + k) else 7)
    gap = 0.06 * max(m, n, k)

    def box(x: float, y: float, w: float, h: float, **style: Any) -> None:
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle((x, y), w, h, **style))

    row, column = cta
    box(-gap - k, 0, k, m, facecolor=PALE, edgecolor=GREY)
    box(0, -gap - k, n, k, facecolor=PALE, edgecolor=GREY)
    box(0, 0, n, m, facecolor=PALE, edgecolor=GREY, linewidth=1.2)
    for step in range(steps):
        width = min(block_k, k - step * block_k)
        shade = 0.85 if step == 0 else 0.35
        box(-gap - k + step * block_k, row * block_m, width, min(block_m, m - row * block_m), facecolor=BLUE, alpha=shade, edgecolor="white")
        box(column * block_n, -gap - k + step * block_k, min(block_n, n - column * block_n), width, facecolor=ORANGE, alpha=shade, edgecolor="white")
    for i in range(down):
        for j in range(across):
            mine = (i, j) == cta
            style = {"facecolor": GREEN, "alpha": 0.8} if mine else {"fill": False, "linestyle": "--"}
            box(j * block_n, i * block_m, block_n, block_m, edgecolor=GREY, linewidth=0.8, **style)
            if down * across <= 64:
                axes.text((j + 0.5) * block_n, (i + 0.5) * block_m, f"{i},{j}", ha="center", va="center", fontsize=8)
    for x, y, name in ((-gap - k / 2, m, f"a ({m}, {k})"), (n / 2, -gap - k, f"b.T ({k}, {n})"), (n / 2, max(m, down * block_m), f"d ({m}, {n})")):
        above = name.startswith("b")
        axes.annotate(name, (x, y), xytext=(0, 4 if above else -4), textcoords="offset points", ha="center", va="bottom" if above else "top")
    axes.set(xlim=(-gap - k - 4, across * block_n + 4), ylim=(max(m, down * block_m) + 0.07 * (m + k), -gap - k - 0.06 * (m + k)), aspect="equal")
    axes.axis("off")
    text = (
        f"d ({m}, {n}) is {down} x {across} tiles of {block_m} x {block_n}; CTA {row},{column} reads {block_m} rows of a and {block_n} rows of b "
        f"in {steps} steps of {block_k}"
    )
    axes.set_title(f"{down} x {across} CTAs; CTA {row},{column} walks along k in {steps} steps")
    return Picture(made, text)


@drawn
def footprint(requests: Sequence[Request], tensor: torch.Tensor, title: str, by: str = "lane") -> Picture:
    """The elements of a matrix that these requests touched, coloured by "lane" or by "warp"; grey is untouched.

    `tensor`: the matrix that the kernel was given, on the CPU: its address tells which element an address means.
    """
    rows, columns = tensor.shape
    width, pitch, base = tensor.element_size(), tensor.stride(0) * tensor.element_size(), tensor.data_ptr()
    image = torch.ones(rows, columns, 3) * 0.93
    touched = torch.zeros(rows, columns, dtype=torch.bool)
    for request in requests:
        for thread, address in zip(request.threads, request.addresses, strict=True):
            row, byte = divmod(address - base, pitch)
            if 0 <= row < rows and byte // width < columns:
                first, count = byte // width, max(1, request.bytes // width)
                index = thread % 32 if by == "lane" else thread // 32 * 5
                image[row, first : first + count] = torch.tensor(lane_colour(index)[:3])
                touched[row, first : first + count] = True
    made, axes = figure(6.5, min(6.0, max(2.2, 6.5 * rows / columns + 0.6)))
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto")
    axes.set(xlabel="column (bytes lie next to each other this way)", ylabel="row", title=title)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
    used_rows = int(touched.any(1).sum())
    return Picture(made, f"{title}: {int(touched.sum())} of {rows * columns} elements in {used_rows} rows, coloured by {by}")
