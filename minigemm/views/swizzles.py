"""Where TMA puts the 16-byte chunks of a tile's rows, for each swizzle."""

from __future__ import annotations

from collections.abc import Sequence

from ..emulator.tma import swizzle_offsets
from .style import INK, RED, SERIES, Picture, drawn, figure, ink_on

__all__ = ["bank_groups", "swizzles"]

CHUNK, LINE = 16, 128  # bytes: what a swizzle moves, and what the 32 banks hold side by side


def bank_groups(span: int, swizzled: bool = True, rows: int = 8, chunk: int = 0) -> list[int]:
    """For the same chunk of successive rows of `span` bytes: which group of four banks (0 to 7) each lies in."""
    offsets = swizzle_offsets(0, rows * span, span if swizzled else 0)
    return [int(offsets[row * span + chunk * CHUNK]) % LINE // CHUNK for row in range(rows)]


@drawn
def swizzles(cases: Sequence[tuple[int, bool]] = ((128, False), (32, True), (64, True), (128, True)), chunk: int = 0) -> Picture:
    """Eight lines of shared memory for each case (bytes a row, swizzled); a cell says row.chunk, and one chunk of each row is framed.

    A reader of one column of a tile wants the framed cells of eight successive rows: side by side they come at once, one above the other in turn.
    """
    from matplotlib.patches import Rectangle

    made, every = figure(11, 3.5, 1, len(cases))
    said = []
    for axes, (span, swizzled) in zip(every, cases, strict=True):
        offsets = swizzle_offsets(0, 8 * LINE, span if swizzled else 0)
        for start in range(0, 8 * LINE, CHUNK):
            row, logical = divmod(start, span)
            y, x = divmod(int(offsets[start]), LINE)
            x, logical = x // CHUNK, logical // CHUNK
            colour = SERIES[logical % len(SERIES)] if logical < len(SERIES) else ("#F0E442", "#999999")[logical - len(SERIES)]
            framed = logical == chunk and row < 8
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", alpha=1.0 if framed else 0.32, linewidth=0.8))
            axes.text(x + 0.5, y + 0.5, f"{row}.{logical}", ha="center", va="center", fontsize=6.5, color=ink_on(colour) if framed else INK)
            if framed:
                axes.add_patch(Rectangle((x + 0.06, y + 0.06), 0.88, 0.88, fill=False, edgecolor=RED, linewidth=1.6))
        groups = bank_groups(span, swizzled, 8, chunk)
        ways = max(groups.count(g) for g in groups)
        name = f"{span}-byte swizzle" if swizzled else f"none, rows of {span}"
        axes.set(xlim=(0, 8), ylim=(8, 0), aspect="equal", xticks=[i + 0.5 for i in range(8)], yticks=[], title=f"{name}: {ways}-way")
        axes.set_xticklabels([str(4 * i) for i in range(8)])
        axes.tick_params(length=0)
        said.append(f"{name}: rows 0 to 7 in bank groups {groups}, {ways}-way")
    every[0].set_ylabel("128 bytes of shared memory a line")
    made.supxlabel("first bank of the chunk", fontsize=9)
    return Picture(made, "; ".join(said))
