"""The products that are timed, with the rows that a router gives to each group, and the quick set of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..layout import ceil_div, round_up
from ..plan.ahead import LAYOUTS
from ..quantize import BLOCK
from ..types import Layout, Product

__all__ = ["EVEN", "LAYOUTS", "QUICK", "SKEWED", "Workload", "contiguous", "dense", "masked", "parse"]

MASKED_ROWS = 4096  # of a masked group's buffer, unless a group has more
#: Each group's rows over the rows that it is meant to have: uneven, as routers are, and the same in every
#: run.
SPREAD = {
    Layout.CONTIGUOUS: (1.0016, 1.29875, 0.7345, 1.1495, 1.1107, 1.0675, 0.9803, 1.0838),
    Layout.MASKED: (1.178, 0.989, 0.935, 1.197, 1.1107, 1.0675, 0.9803, 1.0838),
}
EVEN, SKEWED = "even", "skewed"  # the spreads of rows in the wide set


@dataclass(frozen=True)
class Workload:
    """A product to time, and how many rows each of its groups really has.

    Attributes:
        product: the product as the library's call sees it. The m of a CONTIGUOUS one counts all rows, each
            group padded to 128; the m of a MASKED one is the length of a group's buffer.
        expected_m: the rows that a group is meant to have; m of a DENSE product.
        counts: the rows that each group really has; (m,) for a DENSE product.
        spread: EVEN or SKEWED in the wide set, and "" elsewhere.
    """

    product: Product
    expected_m: int
    counts: tuple[int, ...] = field(repr=False)
    spread: str = ""

    @classmethod
    def of(
        cls, layout: Layout, expected_m: int, n: int, k: int, counts: Sequence[int], spread: str = ""
    ) -> Workload:
        """Return the workload of groups with these counts of rows."""
        groups = len(counts)
        if layout is Layout.DENSE:
            product = Product(expected_m, n, k)
        elif layout is Layout.CONTIGUOUS:
            product = Product(sum(round_up(count, BLOCK) for count in counts), n, k, layout, groups)
        else:
            buffer = max(MASKED_ROWS, round_up(max(counts), BLOCK))
            product = Product(buffer, n, k, layout, groups, expected_m)
        return cls(product, expected_m, tuple(counts), spread)

    @property
    def rows(self) -> int:
        """The rows of a and d in all."""
        buffers = self.product.groups if self.product.layout is Layout.MASKED else 1
        return buffers * self.product.m

    @property
    def operations(self) -> int:
        """One multiplication and one addition for each row that counts, each column of d and each k."""
        return 2 * sum(self.counts) * self.product.n * self.product.k

    @property
    def bytes(self) -> int:
        """The bytes that must be read or written once.

        They are a's rows that count with their scales, b with its scales, and d in BF16 with the zeros of
        contiguous padding.
        """
        _, n, k, layout, groups, *_ = self.product
        blocks, read = ceil_div(k, BLOCK), sum(self.counts)
        weights = groups * (n * k + 4 * ceil_div(n, BLOCK) * blocks)
        written = self.rows if layout is Layout.CONTIGUOUS else read
        return read * (k + 4 * blocks) + weights + 2 * written * n

    def floor(self, bandwidth: float, rate: float) -> float:
        """Return the least seconds at this bandwidth in bytes/s and this rate in operations/s."""
        return max(self.bytes / bandwidth, self.operations / rate)

    def sizes(self) -> dict[str, Any]:
        """Return the sizes under the keys that a row of results has; "m" is `expected_m`."""
        _, n, k, layout, groups, *_ = self.product
        return {"layout": str(layout), "groups": groups, "m": self.expected_m, "n": n, "k": k}

    def __str__(self) -> str:
        _, n, k, layout, groups, *_ = self.product
        sizes = (self.expected_m, n, k) if layout is Layout.DENSE else (groups, self.expected_m, n, k)
        return f"{'x'.join(map(str, sizes))} {self.spread}".rstrip()


def dense(m: int, n: int, k: int) -> Workload:
    """d (m, n) = a (m, k) @ b (n, k).T"""
    return Workload.of(Layout.DENSE, m, n, k, (m,))


def contiguous(groups: int, m: int, n: int, k: int, spread: str = "") -> Workload:
    """Return a workload of groups with about m rows each, one group behind the other."""
    return Workload.of(Layout.CONTIGUOUS, m, n, k, _counts(Layout.CONTIGUOUS, groups, m, spread), spread)


def masked(groups: int, m: int, n: int, k: int, spread: str = "") -> Workload:
    """Return a workload of groups with about m rows each, every group in a buffer of its own."""
    return Workload.of(Layout.MASKED, m, n, k, _counts(Layout.MASKED, groups, m, spread), spread)


def _counts(layout: Layout, groups: int, m: int, spread: str) -> list[int]:
    """Return each group's rows, by SPREAD where there is no other spread."""
    if spread == EVEN:
        return [m] * groups
    if spread == SKEWED:
        return _skewed(groups, m)
    shares = SPREAD[layout]
    return [max(1, int(m * shares[group % len(shares)])) for group in range(groups)]


def _skewed(groups: int, m: int) -> list[int]:
    """Return groups x m rows, shared out as 1, 1/2, 1/3, ... (Zipf's law), in integers and at least 1 each.

    The large groups do not lie together: a group's rank is 5 x group + 3, modulo the groups.
    """
    shares = [5040 // (1 + (5 * group + 3) % groups) for group in range(groups)]
    return [max(1, groups * m * share // sum(shares)) for share in shares]


_DENSE_LAYERS = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
_EXPERTS = ((4096, 7168), (7168, 2048))
#: Layers of DeepSeek-V3 by (n, k): the dense ones for a few tokens and for many, the experts with the 4 or 8
#: groups that a GPU holds in prefill, and with the few that it holds in decoding.
QUICK = (
    *(dense(m, *layer) for m in (64, 128, 4096) for layer in _DENSE_LAYERS),
    *(contiguous(*groups, *layer) for groups in ((4, 8192), (8, 4096)) for layer in _EXPERTS),
    *(masked(*groups, *layer) for groups in ((1, 1024), (2, 512), (4, 256)) for layer in _EXPERTS),
)


def parse(text: str, layout: str | None = None) -> Workload:
    """Return the workload that the command line names: MxNxK, or GROUPSxMxNxK with a grouped layout.

    Args:
        text: the sizes.
        layout: "dense", "contiguous" or "masked"; None is dense.

    Raises:
        ValueError: the sizes or the layout are none; the message says which.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
    grouped = layout in ("contiguous", "masked")
    if not re.fullmatch(r"\d+(x\d+){3}" if grouped else r"\d+(x\d+){2}", text):
        form = "MxNxK (GROUPSxMxNxK with --layout contiguous or masked)"
        if grouped:
            form = f"GROUPSxMxNxK for the layout {layout}"
        raise ValueError(f"shape: expected {form}, got {text!r}")
    sizes = [int(size) for size in text.split("x")]
    if min(sizes) < 1 or sizes[-1] % 16:
        wanted = "sizes of at least 1 and a K that is a multiple of 16"
        raise ValueError(f"shape: expected {wanted}, got {text!r}")
    if not grouped:
        return dense(*sizes)
    groups, m, n, k = sizes
    return contiguous(groups, m, n, k) if layout == "contiguous" else masked(groups, m, n, k)
