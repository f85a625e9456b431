"""The CTAs of a cluster side by side: the CTA of each thread and byte, and their names in messages.

The machine runs a cluster as one. The threads of its CTAs are rows of one matrix, and their shared memories
are parts of one array, the *windows*. Thread t of rank r is number ``r * stride + t``, and byte a of its
shared memory is at *place* ``r * window + a``. So barriers between threads, races and copies work between
CTAs as they do within one. A cluster of one CTA counts as its CTA does.

The kernel sees shared addresses ``rank << 24 | a``, as on a Hopper GPU, in its own CTA too. Such an address
means the same in every CTA of the cluster, and `.shared::cta` memory lies in `.shared::cluster`. A matrix
descriptor takes 18 bits of an address, so it never sees the rank.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

RANK_SHIFT = 24  # of a shared address
OFFSETS = (1 << RANK_SHIFT) - 1
PORTABLE = 8  # CTAs in a cluster that every GPU with clusters can run


class Cluster:
    """The layout of ``ranks`` CTAs of ``threads`` threads and ``size`` bytes of shared memory each."""

    def __init__(self, ranks: int, threads: int, size: int) -> None:
        self.ranks, self.threads, self.size = ranks, threads, size

        # No warp and no warpgroup has threads of two CTAs; rows between two CTAs belong to none.
        self.stride = -(-threads // 128) * 128
        self.warps = self.stride // 32  # from one CTA to the next
        self.rows = (ranks - 1) * self.stride + threads

        # No word belongs to two CTAs, and none that lies before a window is used.
        self.window = size if ranks == 1 else -(-(size + 4) // 1024) * 1024
        self.bytes = ranks * self.window

    def split(self, ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Sort threads, ascending, by the rank of their CTA."""
        if self.ranks == 1:
            return [(0, ids)]
        first, last = int(ids[0]) // self.stride, int(ids[-1]) // self.stride
        if first == last:
            return [(first, ids)]
        cuts = np.searchsorted(ids, np.arange(first, last + 2) * self.stride).tolist()
        return [(first + k, ids[a:b]) for k, (a, b) in enumerate(pairwise(cuts)) if a < b]

    def rank_of(self, thread: int) -> int:
        """Return the rank of a thread's CTA."""
        return thread // self.stride

    def rank_at(self, place: int) -> int:
        """Return the rank of the CTA whose shared memory a place is in."""
        return place // self.window if self.ranks > 1 else 0

    def threads_of(self, rank: int) -> slice:
        """Return the rows of a CTA's threads."""
        return slice(rank * self.stride, rank * self.stride + self.threads)

    # --- names

    def of(self, rank: int) -> str:
        """Return words that add the CTA to a name; "" in a cluster of one."""
        return f" of CTA rank {rank}" if self.ranks > 1 else ""

    def thread(self, thread: int) -> str:
        return f"thread {thread % self.stride}{self.of(thread // self.stride)}"

    def lane(self, thread: int) -> str:
        """Name a thread with its warp and lane."""
        return f"{self.thread(thread)} (warp {thread % self.stride >> 5}, lane {thread & 31})"

    def warp(self, warp: int) -> str:
        return f"warp {warp % self.warps}{self.of(warp // self.warps)}"

    def warpgroup(self, number: int) -> str:
        return f"warpgroup {number % (self.warps // 4)}{self.of(number // (self.warps // 4))}"

    def spot(self, place: int) -> str:
        """Name the shared address of a place in its CTA, and the CTA."""
        return f"{place % self.window:#x}{self.of(place // self.window)}" if self.ranks > 1 else f"{place:#x}"

    def names(self, ids: np.ndarray) -> str:
        """Name threads: a warp if all of its 32 lanes are among them, else the lanes."""
        whole: list[int] = []
        parts = []
        for w in np.unique(ids >> 5).tolist():
            lanes = np.sort(ids[ids >> 5 == w] & 31)
            if len(lanes) == 32:
                whole.append(w)
            else:
                parts.append(f"{self.warp(w)} (lane{'s' if len(lanes) > 1 else ''} {_spans(lanes)})")

        # Whole warps come first, in a cluster sorted by CTA.
        if self.ranks == 1:
            return ", ".join([self.warp(w) for w in whole] + parts)
        for rank in sorted({w // self.warps for w in whole}, reverse=True):
            numbers = [w % self.warps for w in whole if w // self.warps == rank]
            plural = "s" if len(numbers) > 1 else ""
            parts.insert(0, f"warp{plural} {_spans(np.array(numbers))}{self.of(rank)}")
        return ", ".join(parts)


def _spans(numbers: np.ndarray) -> str:
    """Write ascending numbers as "0-3, 7"."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
