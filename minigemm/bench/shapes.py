"""The problems that are timed: what each is, what it must move and compute, and the default set."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..layout import ceil_div, round_up
from ..plan.ahead import LAYOUTS
from ..quantize import BLOCK

__all__ = ["CALIBRATION", "DEFAULT", "Shape", "contiguous", "dense", "masked", "parse"]

MASKED_ROWS = 4096  # of the buffer of a masked group, where that is enough
#: Rows of the groups over those that each is meant to have: uneven, as routers are, and the same in every run.
SPREAD = {
    "contiguous": (1.0016, 1.29875, 0.7345, 1.1495, 1.1107, 1.0675, 0.9803, 1.0838),
    "masked": (1.178, 0.989, 0.935, 1.197, 1.1107, 1.0675, 0.9803, 1.0838),
}


@dataclass(frozen=True)
class Shape:
    """One product, or the products of several groups in one call; sizes in elements.

    layout: "dense", "contiguous" or "masked".
    m: rows of a (dense), or about so many a group (the others): `expected_m` of masked calls.
    counts: rows that each group really has; (m,) for a dense product.
    """

    layout: str
    m: int
    n: int
    k: int
    counts: tuple[int, ...] = field(default=(), repr=False)

    @property
    def groups(self) -> int:
        """How many there are; 1 for a dense product."""
        return len(self.counts)

    @property
    def rows_per_group(self) -> int:
        """Rows of a masked group's buffer."""
        return max(MASKED_ROWS, round_up(max(self.counts), BLOCK))

    @property
    def rows(self) -> int:
        """Rows of a and d in all. Those of a contiguous group are padded to 128."""
        if self.layout == "masked":
            return self.groups * self.rows_per_group
        return sum(round_up(count, BLOCK) for count in self.counts) if self.layout == "contiguous" else self.m

    @property
    def operations(self) -> int:
        """A multiplication and an addition for each row that counts, column and k."""
        return 2 * sum(self.counts) * self.n * self.k

    @property
    def bytes(self) -> int:
        """What must be read or written once: rows of a that count, their scales, b and its scales, and d in BF16 with the zeros of contiguous padding."""
        blocks, read = ceil_div(self.k, BLOCK), sum(self.counts)
        weights = self.groups * (self.n * self.k + 4 * ceil_div(self.n, BLOCK) * blocks)
        written = self.rows if self.layout == "contiguous" else read
        return read * (self.k + 4 * blocks) + weights + 2 * written * self.n

    def floor(self, bandwidth: float, rate: float) -> float:
        """Seconds that it takes at least, at so many bytes and operations a second."""
        return max(self.bytes / bandwidth, self.operations / rate)

    def __str__(self) -> str:
        sizes = (self.m, self.n, self.k) if self.layout == "dense" else (self.groups, self.m, self.n, self.k)
        return "x".join(map(str, sizes))


def dense(m: int, n: int, k: int) -> Shape:
    """d (m, n) = a (m, k) @ b (n, k).T"""
    return Shape("dense", m, n, k, (m,))


def contiguous(groups: int, m: int, n: int, k: int) -> Shape:
    """About m rows for each group, one behind the other."""
    return Shape("contiguous", m, n, k, _counts("contiguous", groups, m))


def masked(groups: int, m: int, n: int, k: int) -> Shape:
    """About m rows for each group, in a buffer of its own."""
    return Shape("masked", m, n, k, _counts("masked", groups, m))


def _counts(layout: str, groups: int, m: int) -> tuple[int, ...]:
    return tuple(max(1, int(m * SPREAD[layout][group % len(SPREAD[layout])])) for group in range(groups))


#: Layers of DeepSeek-V3 by (n, k), for a few tokens and for many; its experts, of which a GPU holds 4 or 8 in prefill and a few in decoding.
DEFAULT = (
    *(dense(m, n, k) for m in (64, 128, 4096)
      for n, k in ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))),
    *(contiguous(groups, m, n, k) for groups, m in ((4, 8192), (8, 4096)) for n, k in ((4096, 7168), (7168, 2048))),
    *(masked(groups, m, n, k) for groups, m in ((1, 1024), (2, 512), (4, 256)) for n, k in ((4096, 7168), (7168, 2048))),
)  # fmt: skip
CALIBRATION = dense(4096, 4096, 7168)  # at which one machine is compared with another


def parse(text: str, layout: str | None = None) -> Shape:
    """A shape as the command line has it: MxNxK, or GROUPSxMxNxK with the layout "contiguous" or "masked". ValueError names what is wrong."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    grouped = layout in ("contiguous", "masked")
    form = (
        f"GROUPSxMxNxK for the layout {layout}"
        if grouped
        else "MxNxK (GROUPSxMxNxK with --layout contiguous or masked)"
    )
    if not re.fullmatch(r"\d+(x\d+){3}" if grouped else r"\d+(x\d+){2}", text):
        raise ValueError(f"shape: expected {form}, got {text!r}")
    sizes = [int(size) for size in text.split("x")]
    if min(sizes) < 1 or sizes[-1] % 16:
        raise ValueError(
            f"shape: expected sizes of at least 1 and a K that is a multiple of 16, got {text!r}"
        )
    return {"contiguous": contiguous, "masked": masked}.get(layout or "", dense)(*sizes)
