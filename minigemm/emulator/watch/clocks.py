"""Vector clocks: what each thread knows to have happened before it.

Every thread has a row of clocks, with one entry for each *column*. A column stands for a warp, for an
asynchronous reader (the TMA stores of a thread, the WGMMAs of a warpgroup), or for an mbarrier (the TMA
loads that complete on it). An entry says up to which clock of that column everything is ordered before the
thread.

The verbs: `meet` joins the rows of all threads at a barrier; `release` takes the clocks of threads that
arrive somewhere; `acquire` gives clocks to threads whose wait succeeds. A second row for each thread,
`proxy`, follows the *proxy fences*: it says what the thread may hand to asynchronous hardware.

*Flags* carry order as well. A thread that executes a fence and then writes a word by a strong access (an
atomic, a volatile or relaxed store) publishes what it knew at the fence. A thread that reads the word by a
strong access and then executes a fence knows it too. Release and acquire do both at once. A fence alone
orders nothing between threads. All of global memory counts as one flag.

Sources: Lamport, "Time, Clocks" (1978); PTX ISA, "Memory Consistency Model" and "Proxies".
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from .. import context as c
from ..clusters import Cluster
from ..translate.shadow import CELL_COLUMN, CELL_LANE
from .cells import Shadow

__all__ = ["STEP", "Clocks", "VectorClocks", "warps_of"]

STEP = c.CLOCK_STEP
COLUMNS = 64  # to begin with; the rows grow
READERS = 240  # most columns that read: a column number is a byte, and mbarriers need some too
LAST_COLUMN = 255
LAST_CLOCK = 0xF0000000


def warps_of(ids: np.ndarray) -> np.ndarray:
    """Return the warps of some threads, ascending. `ids` ascend too, and mostly without a gap."""
    if len(ids) and int(ids[-1]) - int(ids[0]) == len(ids) - 1:
        return np.arange(int(ids[0]) >> 5, (int(ids[-1]) >> 5) + 1)
    return np.unique(ids >> 5)


@dataclass(frozen=True)
class Clocks:
    """One row of clocks, uint32 (columns), or a row for each thread, uint32 (threads, columns).

    Attributes:
        order: the clocks up to which everything is known.
        proxy: the part of `order` that a proxy fence covers.
    """

    order: np.ndarray
    proxy: np.ndarray

    @classmethod
    def zeros(cls, *shape: int) -> Clocks:
        """Return clocks that know nothing."""
        return cls(np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))

    def of(self, thread: int) -> Clocks:
        """Return one thread's row."""
        return Clocks(self.order[thread], self.proxy[thread])

    def of_all(self, ids: np.ndarray) -> Clocks:
        """Return one row: everything that any of these threads knows."""
        return Clocks(self.order[ids].max(0), self.proxy[ids].max(0))

    def add(self, clocks: Clocks, ids: np.ndarray | int | EllipsisType = ...) -> None:
        """Let these rows (by default all) know what `clocks` say, besides what they know already."""
        self.order[ids] = np.maximum(self.order[ids], clocks.order)
        self.proxy[ids] = np.maximum(self.proxy[ids], clocks.proxy)

    def copy_rows(self, clocks: Clocks, ids: np.ndarray) -> None:
        """Set the rows of these threads to their rows in `clocks`."""
        self.order[ids], self.proxy[ids] = clocks.order[ids], clocks.proxy[ids]

    def widened(self, columns: int) -> Clocks:
        """Return the same with columns of zeros behind; itself where it has as many already."""
        extra = columns - self.order.shape[-1]
        if not extra:
            return self
        width = ((0, 0),) * (self.order.ndim - 1) + ((0, extra),)
        return Clocks(np.pad(self.order, width), np.pad(self.proxy, width))


class VectorClocks:
    """The clocks of all threads of one CTA, or of the CTAs of a cluster side by side (clusters.py).

    The columns of a row, in this order: warps; TMA stores and bulk copies, by thread; free ones; the tensor
    core of each warpgroup, from the end; all of these read shared memory. Then mbarriers, in the order of
    their first use.

    Attributes:
        order, proxy: uint32 (threads, columns), the rows of the threads.
        clock: uint32 (warps), the current interval of each warp.
        touched: int64 (threads), the stamp of each thread at its last access. The machine puts its own array
            here.
        fenced: int64 (threads), 1 where a thread has executed a fence. This becomes the machine's array too.
        stale, moved: the threads' contexts must hear of new stamps, or of rows at another address.
    """

    def __init__(self, cluster: Cluster, asynchronous: bool) -> None:
        """`asynchronous`: the kernel uses TMA or WGMMA, and its reads need columns."""
        self.cluster, self.threads, self.warps = cluster, cluster.rows, -(-cluster.rows // 32)
        self.store_columns = 4 * cluster.ranks if asynchronous else 0
        tensor_cores = self.warps // 4 if asynchronous else 0
        self.read_columns = -(-(self.warps + self.store_columns + tensor_cores) // 8) * 8
        if self.read_columns > READERS:
            raise ValueError(
                f"hazards: the race detector follows at most {READERS} warps and asynchronous readers, and "
                f"{cluster.ranks} CTAs of {cluster.threads} threads have {self.read_columns}. Launch with "
                "hazards=False, or a smaller cluster"
            )
        self.capacity = max(COLUMNS, self.read_columns + 16)
        self.shadow = Shadow(-(-cluster.bytes // 4) + 1, self.read_columns)
        self.warp_of = np.arange(self.threads) >> 5
        self.touched = np.zeros(self.threads, np.int64)
        self.fenced = np.zeros(self.threads, np.int64)
        lanes = np.arange(self.threads, dtype=np.int64) & 31
        self._column_and_lane = self.warp_of << CELL_COLUMN.shift | lanes << CELL_LANE.shift
        self.reset()
        self.shadow.used = False

    def reset(self) -> None:
        """Begin a new CTA, or a new cluster."""
        self.shadow.clear()
        self.fenced[:] = 0
        self.clock = np.zeros(self.warps, np.uint32)
        self.known = Clocks.zeros(self.threads, self.capacity)
        self.moved = True

        # Flags: what the writers of a word published (word -1: all of global memory), what each thread knew
        # at its last fence, and what the flags that it has read will tell it at its next fence.
        self.flags: dict[int, Clocks] = {}
        self.covered: Clocks | None = None
        self.pending: Clocks | None = None

        # Columns: thread (or a key beside the threads' numbers) -> reading column, mbarrier address ->
        # column.
        self.readers: dict[int, int] = {}
        self.barriers: dict[int, int] = {}
        self.copies: set[int] = set()  # the columns of copies to other CTAs
        self.next_reader, self.next_column = self.warps, self.read_columns
        self.names: dict[int, str] = {}
        # The column of a tensor core -> its first warp, and {clock of a product: that warp's clock at its
        # issue}.
        self.products: dict[int, tuple[int, dict[int, int]]] = {}
        self.tick(np.arange(self.warps))

    @property
    def order(self) -> np.ndarray:
        return self.known.order

    @property
    def proxy(self) -> np.ndarray:
        return self.known.proxy

    @property
    def exhausted(self) -> bool:
        """Do the clocks come near their end?"""
        return int(self.clock.max()) > LAST_CLOCK

    def stamps(self) -> np.ndarray:
        """Return the stamp of each thread, its clock, column and lane: int64 (threads)."""
        return self.clock[self.warp_of] + self._column_and_lane

    # --- barriers

    def tick(self, warps: np.ndarray) -> None:
        """Begin a new interval of these warps. Nothing that they released before covers it."""
        self.clock[warps] += STEP
        for w in warps:
            self.order[32 * w : 32 * w + 32, w] = self.clock[w]
        self.stale = True

    def meet(self, ids: np.ndarray) -> None:
        """Let all of these threads know what any of them knows: a barrier among them."""
        self._take_pending(ids)
        self.order[ids] = self.order[ids].max(0)
        self.proxy[ids] = self.proxy[ids].max(0)
        self.tick(warps_of(ids))

    def release(self, ids: np.ndarray) -> Clocks:
        """Return what these threads know together, and begin a new interval of their warps."""
        clocks = self.known.of_all(ids)
        warps = warps_of(ids)
        self.tick(warps)
        if len(ids) < 32 * len(warps):
            for w in warps.tolist():
                self._keep_back(w, ids[ids >> 5 == w] & 31)
        return clocks

    def _keep_back(self, warp: int, lanes: np.ndarray) -> None:
        """Move what other lanes did in the interval that has just ended to the new one.

        Lanes speak for themselves: the accesses of other lanes of their warp are not released with theirs.
        """
        new, old = int(self.clock[warp]), int(self.clock[warp]) - STEP
        silent = self.touched[32 * warp : 32 * warp + 32].astype(np.uint32) != old
        silent[lanes] = True
        if not silent.all():
            self.shadow.postpone(warp, old, new, lanes)

    def acquire(self, ids: np.ndarray, clocks: Clocks) -> None:
        """Let these threads know what was released."""
        self.known.add(clocks, ids)

    def started(self, ids: np.ndarray) -> None:
        """Let these threads know that every CTA of the cluster has begun; clocks begin at STEP."""
        self.order[ids, : self.warps] = np.maximum(self.order[ids, : self.warps], 1)

    def knowledge(self, rank: int, passed: np.ndarray | None) -> np.ndarray:
        """Return the clocks that are ordered before the exit of a CTA.

        `passed` is what all threads had done when they came to the last cluster barrier that the CTA waited
        at.
        """
        known = self.order[self.cluster.threads_of(rank)].max(0)
        return known if passed is None else np.maximum(known, self.fit_row(passed))

    # --- fences and flags

    def proxy_fence(self, ids: np.ndarray) -> None:
        """Let these threads hand all that they know to asynchronous hardware."""
        self.proxy[ids] = np.maximum(self.proxy[ids], self.order[ids])

    def fence(self, ids: np.ndarray) -> None:
        """Execute a memory fence.

        Flags read before it say from here on what they know. Flags written after it publish what is known
        here.
        """
        self._take_pending(ids)
        self.fence_inits(ids)
        self.fenced[ids] = 1

    def fence_inits(self, ids: np.ndarray) -> None:
        """Execute fence.mbarrier_init: a relaxed arrival at the cluster barrier publishes what is known here.

        The instruction covers initialisations only; here it covers the rest too.
        """
        if self.covered is None:
            self.covered = Clocks.zeros(*self.order.shape)
        self.covered.copy_rows(self.known, ids)
        self.release(ids)

    def covered_by_fences(self, ids: np.ndarray) -> Clocks:
        """Return what a relaxed arrival of these threads publishes."""
        return self.nothing() if self.covered is None else self.covered.of_all(ids)

    def note(self, ids: np.ndarray | int, clocks: Clocks) -> None:
        """Let these threads know this from their next fence on: a relaxed wait, or a flag that was read."""
        if self.pending is None:
            self.pending = Clocks.zeros(*self.order.shape)
        self.pending.add(clocks, ids)

    def _take_pending(self, ids: np.ndarray) -> None:
        if self.pending is not None:
            self.order[ids] = np.maximum(self.order[ids], self.pending.order[ids])
            self.proxy[ids] = np.maximum(self.proxy[ids], self.pending.proxy[ids])

    def publish(self, word: int, clocks: Clocks) -> None:
        """Write a flag: its readers will know this."""
        known = self.flags[word] = self.fit(self.flags[word]) if word in self.flags else self.nothing()
        known.add(clocks)

    def see(self, ids: np.ndarray, word: int) -> None:
        """Read a flag with acquire."""
        if word in self.flags:
            self.acquire(ids, self.fit(self.flags[word]))

    def flag_written(self, thread: int, word: int) -> None:
        """Publish what the thread knew at its last fence: it wrote a word by a strong access."""
        if self.covered is not None:
            self.publish(word, self.covered.of(thread))

    def flag_read(self, thread: int, word: int, atomic: bool) -> None:
        """Note what the word publishes. A thread that takes a lock by an atomic needs no fence to go on."""
        if word in self.flags:
            clocks = self.fit(self.flags[word])
            self.note(thread, clocks)
            if atomic:
                self.known.add(clocks, thread)

    def lose_flags(self) -> None:
        """Follow no flags, there are too many: every thread knows what any thread knew at its last fence."""
        if self.covered is not None:
            every = np.arange(self.threads)
            self.pending = Clocks.zeros(*self.order.shape)
            self.pending.add(self.covered.of_all(every))
            self._take_pending(every)

    # --- clocks kept elsewhere

    def nothing(self) -> Clocks:
        """Return a row that knows nothing."""
        return Clocks.zeros(self.capacity)

    def join(self, collected: Clocks | None, clocks: Clocks) -> Clocks:
        """Return the clocks of several releases as one."""
        before, clocks = self.nothing() if collected is None else self.fit(collected), self.fit(clocks)
        return Clocks(np.maximum(before.order, clocks.order), np.maximum(before.proxy, clocks.proxy))

    def fit(self, clocks: Clocks) -> Clocks:
        """Return clocks that were taken before the rows grew, at today's width."""
        return clocks.widened(self.capacity)

    def fit_row(self, row: np.ndarray) -> np.ndarray:
        return np.pad(row, (0, self.capacity - len(row)))

    # --- columns

    def barrier_column(self, address: int) -> int:
        """Return the column of an mbarrier's loads. Mbarriers that find no free column share the last one."""
        if address in self.barriers:
            return self.barriers[address]
        if self.next_column == LAST_COLUMN:
            self.barriers[address] = LAST_COLUMN - 1
            return LAST_COLUMN - 1
        if self.next_column == self.capacity:
            self._grow()
        column = self.barriers[address] = self.next_column
        self.names[column] = f"mbarrier at shared address {self.cluster.spot(address)}"
        self.next_column += 1
        return column

    def reader_column(self, thread: int) -> int:
        """Return the reading column of a thread's TMA stores; the last one is shared."""
        if thread not in self.readers:
            column = min(self.next_reader, self.warps + self.store_columns - 1)
            self.next_reader += 1
            self.readers[thread] = column
            self.names[column] = f"the TMA stores of {self.cluster.thread(thread)}"
        return self.readers[thread]

    def copy_column(self, thread: int) -> int:
        """Return the reading column of a thread's copies to other CTAs.

        A thread that waits for them on an mbarrier there knows that they have read their source.
        """
        key = self.threads + thread
        if key not in self.readers:
            column = self.reader_column(key)
            self.copies.add(column)
            self.names[column] = f"the bulk copies of {self.cluster.thread(thread)}"
        return self.readers[key]

    def tensor_core_column(self, warpgroup: int) -> int:
        """Return the reading column of a warpgroup's WGMMAs."""
        key = -1 - warpgroup  # threads have the others
        if key not in self.readers:
            column = self.readers[key] = self.read_columns - 1 - warpgroup
            self.names[column] = f"a WGMMA of {self.cluster.warpgroup(warpgroup)}"
            self.products[column] = (4 * warpgroup, {})
        return self.readers[key]

    def _grow(self) -> None:
        """Double the columns."""
        self.capacity *= 2
        self.known = self.known.widened(self.capacity)
        self.covered = self.covered and self.covered.widened(self.capacity)
        self.pending = self.pending and self.pending.widened(self.capacity)
        self.stale = self.moved = True
