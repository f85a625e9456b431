"""Order: which accesses to shared memory happen before which, and what to say when one does not.

Every thread has a *vector clock*, one entry for each column. A column stands for a warp, for an asynchronous reader (the TMA stores of one thread)
or for an mbarrier (the TMA loads that complete on it). A thread's entry says up to which clock of that column everything is ordered before the
thread. Barriers join the clocks of those who meet; an mbarrier collects the clocks of those who arrive and gives them to those whose wait succeeds.
A second clock for each thread follows the *proxy fences*: what the thread may hand to asynchronous hardware.

Accesses by threads are checked inline by native code against the shadow of shared memory (shadow.py); ranges touched by asynchronous copies are
checked here.

*Flags* carry order as well: a thread that executes a fence and then writes a word by a strong access (an atomic, a volatile or relaxed store) publishes
what it knew at the fence; who reads the word by a strong access and then executes a fence knows it too. Release and acquire do both at once. A fence
alone orders nothing between threads. All of global memory counts as one flag.

Sources: Lamport, "Time, Clocks" (1978); Flanagan and Freund, "FastTrack" (PLDI 2009); PTX ISA, "Memory Consistency Model" and "Proxies".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import context as c
from ..clusters import Cluster
from ..errors import Location
from .report import Hazard

STEP = c.CLOCK_STEP
WHOLE = 15 << 6 | c.MARK_READ  # of a read cell: an ordinary read of all four bytes
COLUMNS = 64  # to begin with; grows
READERS = 240  # columns of those that read; a column is a byte, and mbarriers have some too
MANY_FLAGS = 4096  # strong accesses in one round that are followed one by one


def _join(known: np.ndarray, clocks: np.ndarray) -> None:
    np.maximum(known, clocks, out=known)


def warps_of(ids: np.ndarray) -> np.ndarray:
    """The warps of some threads, ascending; the threads mostly are too, without a gap."""
    if len(ids) and int(ids[-1]) - int(ids[0]) == len(ids) - 1:
        return np.arange(int(ids[0]) >> 5, (int(ids[-1]) >> 5) + 1)
    return np.unique(ids >> 5)


INIT = "after mbarrier.init, fence (fence.mbarrier_init or fence.proxy.async) and __syncthreads() before any thread uses it"
INIT_IN_CLUSTERS = ("after mbarrier.init, fence.mbarrier_init.release.cluster and a cluster barrier (barrier.cluster.arrive, then barrier.cluster.wait) "
                    "before another CTA uses it; an .arrive.relaxed publishes only what a fence before it covers")  # fmt: skip
STAY = ("end the kernel with a cluster barrier (barrier.cluster.arrive, then barrier.cluster.wait, by all threads of every CTA), so that none exits before the "
        "others have done with its shared memory and its mbarriers")  # fmt: skip


@dataclass(frozen=True)
class Clocks:
    """What a release publishes: the order known to the releasing threads, and the part of it that a proxy fence covers."""

    order: np.ndarray
    proxy: np.ndarray


class Order:
    """Vector clocks and the shadow of shared memory, of one CTA or of those of a cluster side by side (clusters.py)."""

    def __init__(
        self, cluster: Cluster, asynchronous: bool, place: Callable[[int], tuple[Location | None, int]]
    ) -> None:
        """``place(site)`` gives the source location and PTX line of an instruction index."""
        self.cluster, self.threads, self.warps = cluster, cluster.rows, -(-cluster.rows // 32)
        threads = self.threads
        self.place = place
        self.lines: dict[int, str] = {}  # what `_at` said of a site
        self.store_columns = 4 * cluster.ranks if asynchronous else 0  # the TMA stores of some threads
        readers = (
            self.warps + self.store_columns + (self.warps // 4 if asynchronous else 0)
        )  # and the tensor core of each warpgroup
        self.read_columns = -(-readers // 8) * 8
        if self.read_columns > READERS:
            raise ValueError(f"hazards: the race detector follows at most {READERS} warps and asynchronous readers, and {cluster.ranks} CTAs of "
                             f"{cluster.threads} threads have {self.read_columns}. Launch with hazards=False, or a smaller cluster")  # fmt: skip
        self.words = -(-cluster.bytes // 4) + 1
        self.capacity = max(COLUMNS, self.read_columns + 16)
        self.cells = np.zeros(self.words, np.uint64)
        self.sites = np.zeros((self.words, 2), np.uint32)
        self.reads = np.zeros((self.words, self.read_columns), np.uint32)
        self.warp_of = np.arange(threads) >> 5
        self.touched = np.zeros(
            threads, np.int64
        )  # the stamp of each thread at its last access: the machine gives its own
        self.fenced = np.zeros(threads, np.int64)  # has it executed a fence? The machine's too
        self.fixed = self.warp_of << 32 | (np.arange(threads, dtype=np.int64) & 31) << 40  # of its stamps
        self.found: dict[tuple, Hazard] = {}
        self.racing: set[str] = set()  # lines that some report names
        self.unwritten: dict[
            str, tuple[int, int, int]
        ] = {}  # reads of words that nobody had written, by line: site, address, thread
        self.stale = self.moved = True  # stamps, rows of clocks: the threads' contexts must hear of it
        self.used = False  # the arrays are zeros, and untouched: with many CTAs they are large
        self.reset()
        self.used = False

    def reset(self) -> None:
        """A new CTA, or a new cluster."""
        if self.used:
            self.cells[:] = 0
            self.reads[:] = 0
        self.used = True
        self.unwritten.clear()
        self.lost = False  # records of hazards: a read of unwritten memory may have a cause that is not known
        self.fenced[:] = 0
        self.flags: dict[int, Clocks] = {}  # word (-1: all of global memory) -> what its writers published
        self.covered: Clocks | None = None  # for each thread: what it knew at its last fence
        self.pending: Clocks | None = (
            None  # for each thread: what the flags that it has read say, from its next fence on
        )
        self.seen: set[tuple[int, int, int]] = (
            set()
        )  # (mbarrier, warp, lanes): its users that are ordered after its initialisation
        self.placed: dict[
            int, tuple[int, int, int]
        ] = {}  # mbarrier address -> warp, clock and lane of its initialisation
        self.moved = True
        self.order = np.zeros((self.threads, self.capacity), np.uint32)
        self.proxy = np.zeros((self.threads, self.capacity), np.uint32)
        self.clock = np.zeros(self.warps, np.uint32)
        self.readers: dict[int, int] = {}  # thread -> column
        self.copies: set[int] = set()  # columns of copies to other CTAs
        self.barriers: dict[int, int] = {}  # mbarrier address -> column
        self.next_reader, self.next_column = self.warps, self.read_columns
        self.names: dict[int, str] = {}
        self.products: dict[
            int, tuple[int, dict[int, int]]
        ] = {}  # tensor core's column -> first warp, {clock of a product: the warp's at its issue}
        self.called: dict[
            int, str
        ] = {}  # site of an asynchronous copy -> what it is, where it is no TMA load or store
        self.swizzles: dict[int, int] = {}  # site of a TMA load -> swizzle of its last box
        self.tick(np.arange(self.warps))

    def tick(self, warps: np.ndarray) -> None:
        """A new interval: what these warps do from now on is not covered by what they released before."""
        self.clock[warps] += STEP
        for w in warps:
            rows = slice(32 * w, 32 * w + 32)
            self.order[rows, w] = self.clock[w]
        self.stale = True

    @property
    def exhausted(self) -> bool:
        """Do the clocks come near their end?"""
        return int(self.clock.max()) > 0xF0000000

    def stamps(self) -> np.ndarray:
        """clock | column << 32 | lane << 40 of each thread."""
        return self.clock[self.warp_of] + self.fixed

    # ------------------------------------------------------------------------------------------- synchronisation

    def meet(self, ids: np.ndarray) -> None:
        """A barrier among these threads: each knows what any of them knew."""
        self._take_pending(ids)
        self.order[ids] = self.order[ids].max(0)
        self.proxy[ids] = self.proxy[ids].max(0)
        self.tick(warps_of(ids))

    def release(self, ids: np.ndarray) -> Clocks:
        clocks = Clocks(self.order[ids].max(0), self.proxy[ids].max(0))
        warps = warps_of(ids)
        self.tick(warps)
        if len(ids) < 32 * len(warps):
            for w in warps.tolist():
                self._keep_back(w, ids[ids >> 5 == w] & 31)
        return clocks

    def _keep_back(self, warp: int, lanes: np.ndarray) -> None:
        """Lanes speak for themselves: what other lanes of the warp did in the interval that has just ended is not released with it."""
        new, old = int(self.clock[warp]), int(self.clock[warp]) - STEP
        silent = self.touched[32 * warp : 32 * warp + 32].astype(np.uint32) != old
        silent[lanes] = True
        if silent.all():
            return
        read = self.reads[:, warp]
        recent = np.flatnonzero(read >= old)
        others = recent[~np.isin(read[recent] & 63, lanes)]
        self.reads[others, warp] += np.uint32(new - old)
        written = np.flatnonzero(
            (self.cells.astype(np.uint32) == old) & (self.cells >> np.uint64(32) & np.uint64(255) == warp)
        )
        others = written[~np.isin(self.cells[written] >> np.uint64(40) & np.uint64(31), lanes)]
        self.cells[others] += np.uint64(new - old)

    def acquire(self, ids: np.ndarray, clocks: Clocks) -> None:
        self.order[ids] = np.maximum(self.order[ids], clocks.order)
        self.proxy[ids] = np.maximum(self.proxy[ids], clocks.proxy)

    def nothing(self) -> Clocks:
        return Clocks(np.zeros(self.capacity, np.uint32), np.zeros(self.capacity, np.uint32))

    def fence(self, ids: np.ndarray) -> None:
        """A memory fence: flags read before it say what they know from here on, flags written after it publish what the thread knows here."""
        self._take_pending(ids)
        if self.covered is None:
            self.covered = Clocks(np.zeros_like(self.order), np.zeros_like(self.proxy))
        self.covered.order[ids], self.covered.proxy[ids] = self.order[ids], self.proxy[ids]
        self.fenced[ids] = 1
        self.release(ids)

    def fence_inits(self, ids: np.ndarray) -> None:
        """fence.mbarrier_init: what a relaxed arrival at the cluster barrier publishes, of the initialisations that it is for (and, here, of the rest)."""
        if self.covered is None:
            self.covered = Clocks(np.zeros_like(self.order), np.zeros_like(self.proxy))
        self.covered.order[ids], self.covered.proxy[ids] = self.order[ids], self.proxy[ids]
        self.release(ids)

    def covered_by_fences(self, ids: np.ndarray) -> Clocks:
        """What a relaxed arrival of these threads publishes."""
        return (
            self.nothing()
            if self.covered is None
            else Clocks(self.covered.order[ids].max(0), self.covered.proxy[ids].max(0))
        )

    def note(self, ids: np.ndarray, clocks: Clocks) -> None:
        """These threads know that from their next fence on: a relaxed wait."""
        if self.pending is None:
            self.pending = Clocks(np.zeros_like(self.order), np.zeros_like(self.proxy))
        self.pending.order[ids] = np.maximum(self.pending.order[ids], clocks.order)
        self.pending.proxy[ids] = np.maximum(self.pending.proxy[ids], clocks.proxy)

    def join(self, collected: Clocks | None, clocks: Clocks) -> Clocks:
        """Clocks of several releases."""
        before, clocks = self.nothing() if collected is None else self.fit(collected), self.fit(clocks)
        return Clocks(np.maximum(before.order, clocks.order), np.maximum(before.proxy, clocks.proxy))

    def _take_pending(self, ids: np.ndarray) -> None:
        if self.pending is not None:
            self.order[ids] = np.maximum(self.order[ids], self.pending.order[ids])
            self.proxy[ids] = np.maximum(self.proxy[ids], self.pending.proxy[ids])

    def publish(self, word: int, clocks: Clocks) -> None:
        """Who reads this flag knows that."""
        known = self.flags[word] = self.fit(self.flags[word]) if word in self.flags else self.nothing()
        _join(known.order, clocks.order)
        _join(known.proxy, clocks.proxy)

    def see(self, ids: np.ndarray, word: int) -> None:
        """These threads have read the flag with acquire."""
        if word in self.flags:
            self.acquire(ids, self.fit(self.flags[word]))

    def _flag(self, kind: int, word: int, thread: int, atomic: bool) -> None:
        """A record of native code: a strong access that may carry order. Who takes a lock by an atomic needs no fence to go on."""
        if kind == c.FLAG_WRITTEN:
            if self.covered is not None:
                self.publish(word, Clocks(self.covered.order[thread], self.covered.proxy[thread]))
        elif word in self.flags:
            if self.pending is None:
                self.pending = Clocks(np.zeros_like(self.order), np.zeros_like(self.proxy))
            clocks = self.fit(self.flags[word])
            _join(self.pending.order[thread], clocks.order)
            _join(self.pending.proxy[thread], clocks.proxy)
            if atomic:
                _join(self.order[thread], clocks.order)
                _join(self.proxy[thread], clocks.proxy)

    def lose_flags(self) -> None:
        """There are too many flags to follow: whoever has executed a fence has published to everybody."""
        if self.covered is not None:
            self.pending = Clocks(np.broadcast_to(self.covered.order.max(0), self.order.shape).copy(),
                                  np.broadcast_to(self.covered.proxy.max(0), self.proxy.shape).copy())  # fmt: skip
            self._take_pending(np.arange(self.threads))

    def proxy_fence(self, ids: np.ndarray) -> None:
        self.proxy[ids] = np.maximum(self.proxy[ids], self.order[ids])

    # ------------------------------------------------------------------------------------------- columns

    def barrier_column(self, address: int) -> int:
        if address not in self.barriers:
            if self.next_column == min(self.capacity, 255):
                if self.capacity >= 255:  # columns are a byte: the last is shared from here on
                    self.barriers[address] = self.next_column - 1
                    return self.next_column - 1
                self._grow()
            self.barriers[address] = self.next_column
            self.names[self.next_column] = f"mbarrier at shared address {self.cluster.spot(address)}"
            self.next_column += 1
        return self.barriers[address]

    def reader_column(self, thread: int) -> int:
        if thread not in self.readers:
            column = min(self.next_reader, self.warps + self.store_columns - 1)  # the last of them is shared
            self.next_reader += 1
            self.readers[thread] = column
            self.names[column] = f"the TMA stores of {self.cluster.thread(thread)}"
        return self.readers[thread]

    def copy_column(self, thread: int) -> int:
        """The reading column of a thread's copies to other CTAs: who waits for them on an mbarrier there knows that they have read their source."""
        key = self.threads + thread
        if key not in self.readers:
            self.reader_column(key)
            self.copies.add(self.readers[key])
            self.names[self.readers[key]] = f"the bulk copies of {self.cluster.thread(thread)}"
        return self.readers[key]

    def tensor_core_column(self, warpgroup: int) -> int:
        """The reading column of a warpgroup's WGMMAs."""
        key = -1 - warpgroup  # threads have the others
        if key not in self.readers:
            column = self.read_columns - 1 - warpgroup
            self.readers[key] = column
            self.names[column] = f"a WGMMA of {self.cluster.warpgroup(warpgroup)}"
            self.products[column] = (4 * warpgroup, {})
        return self.readers[key]

    def _grow(self) -> None:
        extra = self.capacity
        self.capacity += extra
        self.order = np.pad(self.order, ((0, 0), (0, extra)))
        self.proxy = np.pad(self.proxy, ((0, 0), (0, extra)))
        self.covered, self.pending = (
            rows and Clocks(*(np.pad(part, ((0, 0), (0, extra))) for part in (rows.order, rows.proxy)))
            for rows in (self.covered, self.pending)
        )
        self.stale = self.moved = True

    def fit(self, clocks: Clocks) -> Clocks:
        """Clocks taken before the columns grew."""
        short = self.capacity - len(clocks.order)
        return Clocks(np.pad(clocks.order, (0, short)), np.pad(clocks.proxy, (0, short))) if short else clocks

    def fit_row(self, row: np.ndarray) -> np.ndarray:
        return np.pad(row, (0, self.capacity - len(row)))

    # ------------------------------------------------------------------------------------------- asynchronous accesses

    def asynchronous_write(
        self, thread: int, address: int, nbytes: int, column: int, clock: int, site: int, swizzle: int = 0
    ) -> None:
        """A TMA load of ``thread`` is going to write this range; column and clock say when its bytes may be read."""
        self.swizzles[site] = swizzle
        words = slice(address >> 2, (address + nbytes + 3) >> 2)
        cells, row = self.cells[words], self.order[thread]
        at, when = self._parts(cells)
        late = (when > row[at]) & (cells != 0)
        if late.any():
            k = int(np.argmax(late))
            self._report_async_overwrite(thread, words.start + k, int(cells[k]), site)
        else:
            reads = self.reads[words]
            unordered = reads > (row[: self.read_columns] | (STEP - 1))
            if unordered.any():
                k, j = (int(v[0]) for v in np.nonzero(unordered))
                early = self.unwritten.get(self._at(int(self.sites[words.start + k, 1])))
                if early is not None:
                    self._report_not_complete(
                        early[0], (words.start + k) * 4, early[2], "reads", column, site
                    )
                else:
                    self._report_slot_overwritten(thread, words.start + k, j, site)
        self.cells[words] = np.uint64(clock | column << 32 | 0xFF << 48)
        self.sites[words, 0] = site

    def stamp(self, thread: int) -> int:
        """The cell of an ordinary write of all four bytes by this thread, now."""
        return (
            int(self.clock[thread >> 5])
            | (thread >> 5) << 32
            | (thread & 31) << 40
            | c.CELL_GENERIC
            | 0xFF << 48
        )

    def copying(self, thread: int, words: slice, site: int) -> np.uint64:
        """A cp.async of this thread is going to write these words: until it has, nobody is ordered after it. The cell that says so."""
        cells, row = self.cells[words], self.order[thread]
        at, when = self._parts(cells)
        late, reads = when > row[at], self.reads[words] > (row[: self.read_columns] | (STEP - 1))
        if late.any():
            k = int(np.argmax(late))
            self._explain(c.STORE_AFTER_WRITE, site, (words.start + k) * 4, thread, int(cells[k]), -1)
        elif reads.any():
            k, j = (int(v[0]) for v in np.nonzero(reads))
            self._explain(
                c.STORE_AFTER_READ,
                site,
                (words.start + k) * 4,
                thread,
                0,
                j | (int(self.reads[words.start + k, j]) & 63) << 8,
            )
        cell = np.uint64(self.stamp(thread) | 0xFFFFFFFF)
        self.cells[words] = cell
        self.sites[words, 0] = site
        return cell

    def copied(self, words: slice, cell: np.uint64, now: int) -> None:
        """The cp.async has completed: an ordinary write, where no other has taken its place."""
        self.cells[words][self.cells[words] == cell] = np.uint64(now)

    def asynchronous_read(
        self, thread: int, address: int, nbytes: int, clock: int, site: int, column: int | None = None
    ) -> None:
        """A TMA store of ``thread`` reads this range, or a copy to another CTA, which has a column of its own."""
        words = slice(address >> 2, (address + nbytes + 3) >> 2)
        cells, row = self.cells[words], self.order[thread]
        at, when = self._parts(cells)
        empty = (cells >> np.uint64(48)) & np.uint64(15) != 15
        if empty.any():
            self.unwritten.setdefault(
                self._at(site), (site, (words.start + int(np.argmax(empty))) * 4, thread)
            )
        late = when > row[at]
        generic = (cells & np.uint64(c.CELL_GENERIC)) != 0
        proxy = self.proxy[thread]
        unfenced = generic & (when > proxy[at])
        strong = self._strong_writes(words, cells, row)
        if strong is not None:
            unfenced |= self._strong_writes(words, cells, proxy) >= 0
        if late.any():
            k = int(np.argmax(late))
            self._report_async_read(thread, words.start + k, int(cells[k]), site)
        elif strong is not None and (strong >= 0).any():
            k = int(np.argmax(strong >= 0))
            self._report_async_read(
                thread,
                words.start + k,
                self._cell_of(words.start + k, int(strong[k])),
                site,
                int(self.sites[words.start + k, 1]),
            )
        elif unfenced.any():
            k = int(np.argmax(unfenced))
            self._report_no_proxy_fence(thread, words.start + k, int(cells[k]), site)
        self.reads[words, self.reader_column(thread) if column is None else column] = clock | WHOLE
        self.sites[words, 1] = site

    def tensor_core_read(
        self,
        ids: np.ndarray,
        words: np.ndarray,
        warpgroup: int,
        clock: int,
        site: int,
        operand: str,
        swizzle: int,
    ) -> None:
        """A WGMMA of these 128 threads reads these words; it is ordered after what all of the threads know."""
        column = self.tensor_core_column(warpgroup)
        first = self.products[column][0]
        leaders = ids[::32]
        cells, row = self.cells[words], self.order[leaders].min(0)
        at, when = self._parts(cells)
        thread = int(ids[0])
        empty = (cells >> np.uint64(48)) & np.uint64(15) != 15
        late = when > row[at]
        proxy = self.proxy[leaders].min(0)
        unfenced = ((cells & np.uint64(c.CELL_GENERIC)) != 0) & (when > proxy[at])
        strong = self._strong_writes(words, cells, row)
        if strong is not None:
            unfenced |= self._strong_writes(words, cells, proxy) >= 0
            if (strong >= 0).any() and not late.any():
                k = int(np.argmax(strong >= 0))
                late, cells = strong >= 0, cells.copy()
                cells[k] = self._cell_of(int(words[k]), int(strong[k]))
        who = f"the WGMMA of {self.cluster.warpgroup(warpgroup)}"
        if empty.any():
            self.unwritten.setdefault(self._at(site), (site, int(words[np.argmax(empty)]) * 4, thread))
        elif late.any():
            k = int(np.argmax(late))
            word, cell, other = int(words[k]), int(cells[k]), int(self.sites[words[k], 0])
            if cell >> 32 & 255 >= self.read_columns:
                self._report_not_complete(
                    site, word * 4, thread, f"issues a WGMMA whose operand {operand} reads", int(at[k]), other
                )
            else:
                spot = self.cluster.spot(word * 4)
                self.add("race", site, word * 4, thread, f"{who} reads shared address {spot} (operand {operand}) that {self._who(cell)} wrote at "
                         f"{self._at(other)}, with no barrier between", (self._who(cell), who),
                         "fence.proxy.async in every writing thread, then a barrier that the warpgroup waits at, then the WGMMA", other)  # fmt: skip
        elif unfenced.any():
            k = int(np.argmax(unfenced))
            word, cell, other = int(words[k]), int(cells[k]), int(self.sites[words[k], 0])
            spot = self.cluster.spot(word * 4)
            self.add("proxy-fence", site, word * 4, thread, f"missing fence.proxy.async: {who} reads shared address {spot} (operand {operand}) through the "
                     f"async proxy, and {self._who(cell)} wrote it by an ordinary store at {self._at(other)} without a proxy fence after it",
                     (self._who(cell), who), "fence.proxy.async.shared::cta in every writing thread after its stores and before the barrier", other)  # fmt: skip
        self._check_swizzle(words, cells, site, thread, operand, swizzle, who)
        self.reads[words, column] = clock | WHOLE
        self.sites[words, 1] = site
        self.products[column][1][clock] = int(self.clock[first])

    def _strong_writes(self, words: np.ndarray | slice, cells: np.ndarray, row: np.ndarray) -> Any:
        """For each word: a column of a strong write that this row of clocks does not cover, or -1. None where there are no strong writes at all."""
        if not (cells & np.uint64(c.CELL_ATOMIC)).any():
            return None
        marks = self.reads[words]
        found = ((marks & c.MARK_WRITE) != 0) & (marks > (row[: self.read_columns] | (STEP - 1)))
        return np.where(found.any(1), found.argmax(1), -1)

    def _cell_of(self, word: int, column: int) -> int:
        """The strong write of a column as the cell of an ordinary write."""
        mark = int(self.reads[word, column])
        return mark & -STEP | column << 32 | (mark & 31) << 40 | c.CELL_GENERIC | c.CELL_ATOMIC

    def _check_swizzle(
        self,
        words: np.ndarray,
        cells: np.ndarray,
        site: int,
        thread: int,
        operand: str,
        swizzle: int,
        who: str,
    ) -> None:
        """The descriptor must name the swizzle with which TMA wrote the tile."""
        loads = np.unique(self.sites[words, 0][(cells & np.uint64(c.CELL_GENERIC)) == 0]).tolist()
        for load in loads:
            written = self.swizzles.get(load, swizzle)
            if written != swizzle:
                names = [f"the {span}-byte swizzle" if span else "no swizzle" for span in (swizzle, written)]
                self.add("swizzle-mismatch", site, int(words[0]) * 4, thread, f"the descriptor of operand {operand} of {who} names {names[0]}, and the TMA load at "
                         f"{self._at(load)} wrote the tile with {names[1]}", (who, "TMA load"),
                         "give the tensor map and the matrix descriptor the same swizzle", load)  # fmt: skip

    def tensor_core_done(self, ids: np.ndarray, warpgroup: int, clock: int) -> None:
        """These threads know that the product of that clock, and those before it, have read their operands."""
        self.order[ids, self.tensor_core_column(warpgroup)] = clock

    def warp_write(self, rows: np.ndarray, nbytes: int, warps: np.ndarray, site: int) -> None:
        """A warp-wide store (stmatrix): row addresses (warps, rows), ``nbytes`` each. One lane stands for its warp."""
        words = (rows[..., None] + np.arange(0, nbytes, 4)).reshape(len(warps), -1) >> 2
        for w, at in zip(warps.tolist(), words, strict=True):
            thread, row = 32 * w, self.order[32 * w]
            column, when = self._parts(self.cells[at])
            late = when > row[column]
            reads = self.reads[at] > (row[: self.read_columns] | (STEP - 1))
            if late.any():
                k = int(np.argmax(late))
                self._explain(c.STORE_AFTER_WRITE, site, int(at[k]) * 4, thread, int(self.cells[at[k]]), -1)
            elif reads.any():
                k, j = (int(v[0]) for v in np.nonzero(reads))
                self._explain(
                    c.STORE_AFTER_READ,
                    site,
                    int(at[k]) * 4,
                    thread,
                    int(self.cells[at[k]]),
                    j | int(self.reads[at[k], j] & 63) << 8,
                )
            self.cells[at] = np.uint64(int(self.clock[w]) | w << 32 | c.CELL_GENERIC | 0xFF << 48)
            self.sites[at, 0] = site

    def warp_read(self, rows: np.ndarray, nbytes: int, warps: np.ndarray, site: int) -> None:
        """A warp-wide load (ldmatrix)."""
        words = (rows[..., None] + np.arange(0, nbytes, 4)).reshape(len(warps), -1) >> 2
        for w, at in zip(warps.tolist(), words, strict=True):
            thread, row = 32 * w, self.order[32 * w]
            column, when = self._parts(self.cells[at])
            empty = (self.cells[at] >> np.uint64(48)) & np.uint64(15) != 15
            late = when > row[column]
            late |= (column == w) & (
                when == self.clock[w]
            )  # other lanes of the warp wrote it, in this interval
            strong = self._strong_writes(at, self.cells[at], row)
            if empty.any():
                self.unwritten.setdefault(self._at(site), (site, int(at[np.argmax(empty)]) * 4, thread))
            elif strong is not None and (strong >= 0).any() and not late.any():
                k = int(np.argmax(strong >= 0))
                self._explain(
                    c.LOAD_AFTER_WRITE,
                    site,
                    int(at[k]) * 4,
                    thread,
                    0,
                    int(strong[k]) | (int(self.reads[at[k], strong[k]]) & 63) << 8,
                )
            elif late.any():
                k = int(np.argmax(late))
                self._explain(c.LOAD_AFTER_WRITE, site, int(at[k]) * 4, thread, int(self.cells[at[k]]), -1)
            self.reads[at, w] = np.uint32(int(self.clock[w]) | WHOLE | 63)
            self.sites[at, 1] = site

    @staticmethod
    def _parts(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ((cells >> np.uint64(32)) & np.uint64(255)).astype(np.int64), cells.astype(np.uint32)

    # ------------------------------------------------------------------------------------------- the end of a CTA

    def knowledge(self, rank: int, passed: np.ndarray | None) -> np.ndarray:
        """What a CTA that exits is ordered after. ``passed``: what all threads had done when they came to the last cluster barrier that it waited at."""
        known = self.order[self.cluster.threads_of(rank)].max(0)
        return known if passed is None else np.maximum(known, self.fit_row(passed))

    def leave(self, rank: int, known: np.ndarray) -> None:
        """A CTA of a cluster exits: what others do with its shared memory must be over, and known to be."""
        first, n = rank * self.cluster.window // 4, self.cluster.window // 4
        words = slice(first, first + n)
        own = range(rank * self.cluster.warps, min((rank + 1) * self.cluster.warps, self.warps))
        foreign = np.ones(self.read_columns, bool)
        foreign[own.start : own.stop] = False
        foreign[self.warps :] = False
        cells = self.cells[words]
        at, when = self._parts(cells)
        late: np.ndarray = (
            (at < self.warps)
            & foreign[np.minimum(at, self.read_columns - 1)]
            & (when > known[at])
            & (when != 0xFFFFFFFF)
        )
        for k in self._places(late, words, 0):
            self._report_exit(rank, first + k, int(at[k]), "write", int(self.sites[first + k, 0]))
        foreign[[*self.copies]] = True
        columns = np.flatnonzero(foreign)
        reads = self.reads[words][:, columns] > (known[columns] | (STEP - 1))
        for k in self._places(reads.any(1), words, 1):
            self._report_exit(
                rank, first + k, int(columns[np.argmax(reads[k])]), "read", int(self.sites[first + k, 1])
            )

    def _places(self, late: Any, words: slice, which: int) -> list[int]:
        """One of these words for each instruction that touched them last."""
        found = np.flatnonzero(late)
        return (
            found[np.unique(self.sites[words][found, which], return_index=True)[1]].tolist()
            if len(found)
            else []
        )

    def _report_exit(self, rank: int, word: int, column: int, verb: str, site: int) -> None:
        who = (
            self.cluster.warp(column)
            if column < self.warps
            else self.names.get(column, "an asynchronous reader")
        )
        self.add("cta-exited", site, word * 4, 0, f"CTA rank {rank} exits while {who} may still {verb} its shared memory (address {self.cluster.spot(word * 4)}): "
                 "nothing orders that before the exit", (who, f"CTA rank {rank}"), STAY)  # fmt: skip

    def touched_after_exit(self, site: int, address: int, thread: int, what: str) -> None:
        """A thread, or what it started, goes to the shared memory of a CTA that is no more."""
        rank = self.cluster.rank_at(address)
        self.add("cta-exited", site, address, thread, f"{self.cluster.lane(thread)} {what} shared address {self.cluster.spot(address)}, and that CTA has exited: "
                 "its shared memory may belong to another by now", (self.cluster.thread(thread), f"CTA rank {rank}"), STAY)  # fmt: skip

    def started(self, ids: np.ndarray) -> None:
        """These threads know that every CTA of the cluster has begun, and may know no more: the clock of the first interval is STEP."""
        self.order[ids, : self.warps] = np.maximum(self.order[ids, : self.warps], 1)

    def _report_not_started(self, site: int, address: int, thread: int) -> None:
        me, rank = self.cluster.lane(thread), self.cluster.rank_at(address)
        self.add("cta-not-started", site, address, thread, f"{me} accesses shared address {self.cluster.spot(address)}, and nothing has told it that this CTA has "
                 "begun: its shared memory may still be another's", (self.cluster.thread(thread), f"CTA rank {rank}"),
                 "begin the kernel with a cluster barrier (barrier.cluster.arrive, then barrier.cluster.wait, by all threads of every CTA)")  # fmt: skip

    # ------------------------------------------------------------------------------------------- mbarrier objects

    def place_barrier(self, thread: int, address: int, site: int) -> None:
        """Mark the words of an mbarrier: its clock is never reached, so that every ordinary access looks twice."""
        word = address >> 2
        self.seen = {key for key in self.seen if key[0] != address}
        self.placed[address] = (thread >> 5, int(self.clock[thread >> 5]), thread & 31)
        self.cells[word : word + 2] = np.uint64(
            0xFFFFFFFF | (thread >> 5) << 32 | c.CELL_BARRIER | c.CELL_GENERIC | 0xFF << 48
        )
        self.sites[word : word + 2, 0] = site

    def clear_barrier(self, thread: int, address: int) -> None:
        """mbarrier.inval: ordinary memory again."""
        word = address >> 2
        self.placed.pop(address, None)
        self.cells[word : word + 2] = np.uint64(
            int(self.clock[thread >> 5]) | (thread >> 5) << 32 | (thread & 31) << 40 | 0xFF << 48
        )

    def check_barrier_visible(self, ids: np.ndarray, address: int, site: int) -> None:
        """Every user of an mbarrier must be ordered after its initialisation."""
        key = (address, int(ids[0]) >> 5, len(ids))
        if key in self.seen and len(ids) in (1, 32):  # once ordered, always ordered
            return
        column, clock, lane = self.placed.get(address, (0, 0, 0))
        bad = self.order[ids, column] < clock
        own = (ids >> 5 == column) & (self.clock[ids >> 5] == clock) & ((ids & 31) != lane)
        if (bad | own).any():
            thread = int(ids[np.argmax(bad | own)])
            me, them = self.cluster.thread(thread), self.cluster.warp(column)
            apart = self._apart(column, thread)
            self.add(
                "mbarrier-init", site, address, thread,
                f"{me} uses the mbarrier at shared address {self.cluster.spot(address)} that {them} initialised at {self._at(int(self.sites[address >> 2, 0]))}, "
                f"but no {'cluster ' if apart else ''}barrier stands between",
                (them, me), INIT_IN_CLUSTERS if apart else INIT,
            )  # fmt: skip
        else:
            self.seen.add(key)

    # ------------------------------------------------------------------------------------------- words

    def add(
        self,
        kind: str,
        site: int,
        address: int,
        thread: int,
        message: str,
        parties: tuple[str, ...],
        fix: str,
        other: int = -1,
    ) -> None:
        """One finding for each (kind, place, other place); more of the same are counted."""
        self.racing |= {self._at(site)} | ({self._at(other)} if other >= 0 else set())
        key = (kind, self._at(site), self._at(other) if other >= 0 else "")
        if key in self.found:
            self.found[key].count += 1
            return
        location, line = self.place(site)
        self.found[key] = Hazard(kind, message, location, line, address, parties, fix)

    def drain(self, records: np.ndarray, rank: int = 0) -> None:
        """Records of native code: accesses by threads of one CTA, in the order in which they came. It counts from its own shared memory on."""
        if rank:
            records[records[:, 2] != -4, 2] += (
                rank * self.cluster.window
            )  # -4: the flag that global memory is
        holders: set[int] = (
            set()
        )  # threads that an atomic has told something, which native code did not know yet
        if (records[:, 0] >= c.FLAG_READ).sum() > MANY_FLAGS:
            self.lose_flags()
            records = records[records[:, 0] < c.FLAG_READ]
            holders.update(range(self.threads))
        for kind, site, address, thread, cell, reader, others in records.tolist():
            if kind >= c.FLAG_READ:
                self._flag(kind, address >> 2, thread, bool(cell))
                if cell:
                    holders.add(thread)
            elif thread in holders and self._known(thread, cell, reader):
                continue
            elif kind == c.CTA_GONE:
                self.touched_after_exit(site, address, thread, "accesses")
            elif kind == c.CTA_NOT_STARTED:
                self._report_not_started(site, address, thread)
            elif kind == c.LOAD_UNWRITTEN:
                self.unwritten.setdefault(self._at(site), (site, address, thread))
            else:
                self._explain(
                    kind,
                    site,
                    address,
                    thread,
                    cell & (2**64 - 1),
                    reader,
                    (others & 0xFFFFFFFF, others >> 32 & 0xFFFFFFFF),
                )

    def _known(self, thread: int, cell: int, reader: int) -> bool:
        """Does the thread know of this access of another warp by now?"""
        column, clock = (
            (reader & 255, (reader >> 20) * STEP) if reader >= 0 else (cell >> 32 & 255, cell & 0xFFFFFFFF)
        )
        return column != thread >> 5 and int(self.order[thread, column]) >= clock

    def unexplained(self) -> tuple[int, int, int] | None:
        """A read of shared memory that nobody had written, and that no race explains: (site, address, thread)."""
        if self.lost:
            return None
        return next((read for line, read in self.unwritten.items() if line not in self.racing), None)

    def _at(self, site: int) -> str:
        text = self.lines.get(site)  # a race on a tile asks for the same few sites thousands of times
        if text is None:
            location, line = self.place(site)
            text = self.lines[site] = str(location) if location else f"PTX line {line}"
        return text

    def _who(self, cell: int) -> str:
        column = cell >> 32 & 255
        return (
            f"{self.cluster.warp(column)} (lane {cell >> 40 & 31})"
            if column < self.warps
            else self.names.get(column, f"column {column}")
        )

    def _explain(
        self,
        kind: int,
        site: int,
        address: int,
        thread: int,
        cell: int,
        reader: int,
        others: tuple[int, int] | None = None,
    ) -> None:
        """``reader``: of the mark that is in conflict, as shadow.py gives it; ``others``: the sites that wrote and read the word last."""
        me, spot = self.cluster.lane(thread), self.cluster.spot(address)
        word = address >> 2
        wrote, read = others or (int(self.sites[word, 0]), int(self.sites[word, 1]))
        other = wrote
        if (
            kind == c.LOAD_AFTER_WRITE and reader >= 0
        ):  # a strong write: the cell is that of an ordinary one before
            cell, other = (reader & 255) << 32 | (reader >> 8 & 31) << 40 | c.CELL_ATOMIC, read
        column = cell >> 32 & 255
        if cell & c.CELL_BARRIER and kind != c.STORE_AFTER_READ:
            self.add("mbarrier-access", site, address, thread, f"{me} reads or writes shared address {spot}, which is a live mbarrier, "
                     "with an ordinary access", (me, f"mbarrier at {spot}"),
                     "use mbarrier instructions only, or mbarrier.inval before the memory is used again", other)  # fmt: skip
        elif kind == c.STORE_AFTER_READ:
            j = reader & 255
            lane = reader >> 8 & 63
            other = read
            if j >= self.warps and (early := self.unwritten.get(self._at(other))):
                self._report_async_read(
                    early[2],
                    word,
                    int(self.clock[thread >> 5]) | (thread >> 5) << 32 | (thread & 31) << 40,
                    other,
                    site,
                )
                return
            if j in self.products:
                who = self.names[j]
                self.add("slot-overwritten", site, address, thread, f"{me} writes shared address {spot} while {who} (issued at {self._at(other)}) may still "
                         "read it", (who, me), "wgmma.wait_group in the warpgroup, then a barrier, then the write", other)  # fmt: skip
                return
            if j >= self.warps:
                self.add("tma-store-overwritten", site, address, thread, f"{me} writes shared address {spot} while {self.names.get(j, 'a TMA store')} "
                         f"(issued at {self._at(other)}) may still read it", (self.names.get(j, "TMA store"), me),
                         "wait for the store to have read its source: cp.async.bulk.wait_group.read 0 by its thread, then a barrier", other)  # fmt: skip
                return
            them = self.cluster.warp(j) + (f" (lane {lane})" if lane < 32 else "")
            verb = "updates atomically" if reader >> 18 & 1 else "writes"
            strong = reader >> 16 & 3 == 2  # a strong write, and no ordinary read besides
            theirs, between = (
                ("writes (atomically, or as a flag)", "the two")
                if strong
                else ("reads", "the read and the write")
            )
            self.add("race", site, address, thread, f"data race on shared memory: {me} {verb} address {spot} that {them} {theirs} at "
                     f"{self._at(other)}, with no barrier between {between.replace('the write', 'this write')}", (them, me),
                     self._fix(j, thread, between), other)  # fmt: skip
        elif cell & 0xFFFFFFFF == 0xFFFFFFFF:
            verb = "reads" if kind == c.LOAD_AFTER_WRITE else "writes"
            owner = self.cluster.thread((column << 5) + (cell >> 40 & 31))
            self.add("copy-not-complete", site, address, thread, f"{me} {verb} shared address {spot}, the destination of a cp.async that {owner} issued at "
                     f"{self._at(other)}, before that copy has completed: {owner} has not waited for its group", (f"cp.async of {owner}", me),
                     "cp.async.wait_group (or wait_all) in the thread that copies, then __syncthreads() for the others", other)  # fmt: skip
        elif column >= self.warps:
            self._report_not_complete(
                site, address, thread, "reads" if kind == c.LOAD_AFTER_WRITE else "writes", column, other
            )
        else:
            verb = {
                c.LOAD_AFTER_WRITE: "reads",
                c.STORE_AFTER_WRITE: "writes",
                c.ATOMIC_AFTER_ACCESS: "updates atomically",
            }[kind]
            self.add("race", site, address, thread, f"data race on shared memory: {me} {verb} address {spot} that {self._who(cell)} wrote at "
                     f"{self._at(other)}, with no barrier between", (self._who(cell), me),
                     self._fix(column, thread, "the two"), other)  # fmt: skip

    def _apart(self, warp: int, thread: int) -> bool:
        """Are they of different CTAs?"""
        return self.cluster.ranks > 1 and warp // self.cluster.warps != self.cluster.rank_of(thread)

    def _fix(self, column: int, thread: int, between: str) -> str:
        if self._apart(column, thread):
            return (f"put a cluster barrier between {between} (barrier.cluster.arrive.release, then barrier.cluster.wait.acquire, by all threads of both CTAs), "
                    "or a remote arrival on an mbarrier that the other CTA waits on")  # fmt: skip
        if column == thread >> 5:
            return f"put __syncthreads() between {between}, reached by all threads (__syncwarp() where only this warp shares the data)"
        return f"put __syncthreads() between {between}, reached by all threads"

    def _load(self, site: int) -> str:
        return self.called.get(site, "TMA load")

    def _store(self, site: int) -> str:
        return self.called.get(site, "TMA store")

    def _report_not_complete(
        self, site: int, address: int, thread: int, verb: str, column: int, load: int
    ) -> None:
        me, barrier, copy = self.cluster.lane(thread), self.names.get(column, "an mbarrier"), self._load(load)
        self.add("tma-not-complete", site, address, thread, f"{me} {verb} shared address {self.cluster.spot(address)}, the destination of a {copy} issued at "
                 f"{self._at(load)}, before that {copy.split()[-1]} has completed on the {barrier}: the thread does not wait for this phase, or waits with the "
                 "wrong parity", (f"{copy} on the {barrier}", me), "let every thread that reads the tile wait on the mbarrier (mbarrier.try_wait.parity), with the "
                 "parity of the phase that the load completes: 0 for the first, then flipped each time", load)  # fmt: skip

    def _report_async_overwrite(self, thread: int, word: int, cell: int, site: int) -> None:
        other, me, spot = int(self.sites[word, 0]), self.cluster.thread(thread), self.cluster.spot(word * 4)
        if cell >> 32 & 255 >= self.read_columns:
            self.add("slot-overwritten", site, word * 4, thread, f"the {self._load(site)} that {me} issues fills shared address {spot} again, and "
                     f"nothing has told that thread that the tile loaded there at {self._at(other)} has been read: it does not wait until the slot is free, "
                     f"or waits with the wrong parity{self._of_every_cta(thread, word)}", (self._who(cell), f"{self._load(site)} of {me}"),
                     "before the load, wait for the slot's empty barrier (parity 1 in the first round, flipped each time around the ring) or at a barrier that all "
                     "readers reach after their last read", other)  # fmt: skip
            return
        self.add("tma-load-overwrites", site, word * 4, thread, f"the {self._load(site)} that {me} issues writes shared address {spot} that "
                 f"{self._who(cell)} wrote at {self._at(other)}, with no order between", (self._who(cell), f"{self._load(site)} of {me}"),
                 "issue the load only after a barrier, or after the mbarrier of the earlier load", other)  # fmt: skip

    def _report_slot_overwritten(self, thread: int, word: int, column: int, site: int) -> None:
        other, me, spot = int(self.sites[word, 1]), self.cluster.thread(thread), self.cluster.spot(word * 4)
        who = (
            self.cluster.warp(column)
            if column < self.warps
            else self.names.get(column, "an asynchronous reader")
        )
        if column in self.products:
            self._report_product_overwritten(thread, word, column, site, other, who)
            return
        self.add("tile-overwritten", site, word * 4, thread, f"the {self._load(site)} that {me} issues overwrites shared address {spot} while {who} "
                 f"may still read it (at {self._at(other)}){self._of_every_cta(thread, word)}", (who, f"{self._load(site)} of {me}"),
                 "let all readers meet at a barrier after their last read, and issue the next load behind it", other)  # fmt: skip

    def _of_every_cta(self, thread: int, word: int) -> str:
        """What a multicast is apt to forget."""
        rank = self.cluster.rank_at(word * 4)
        if rank == self.cluster.rank_of(thread):
            return ""
        return (f". The slot is in CTA rank {rank}: whoever copies into it must wait for the readers there too, on an empty barrier at which they arrive "
                "remotely (mapa, mbarrier.arrive.shared::cluster)")  # fmt: skip

    def _report_product_overwritten(
        self, thread: int, word: int, column: int, site: int, other: int, who: str
    ) -> None:
        """A slot filled again while a WGMMA reads it: released before the wait, or not waited for at all."""
        me, spot = self.cluster.thread(thread), self.cluster.spot(word * 4)
        first, issued = self.products[column]
        released = issued.get(int(self.reads[word, column]) & -STEP, 0) <= int(
            self.order[thread, first]
        )  # the issuing warp arrived somewhere since
        if released:
            cause = "the warpgroup released the slot before a wgmma.wait_group had retired that WGMMA"
            fix = "wgmma.wait_group first, then arrive on the slot's empty barrier (or at the barrier of the CTA)"
        else:
            cause = (
                "the loading thread does not wait until the slot is free, or waits with the wrong parity"
                + self._of_every_cta(thread, word)
            )
            fix = "before the load, wait for the slot's empty barrier: parity 1 in the first round, flipped each time around the ring"
        self.add("slot-overwritten", site, word * 4, thread, f"the {self._load(site)} that {me} issues overwrites shared address {spot} while {who} "
                 f"(issued at {self._at(other)}) may still read it: {cause}", (who, f"{self._load(site)} of {me}"), fix, other)  # fmt: skip

    def _report_async_read(self, thread: int, word: int, cell: int, site: int, other: int = -1) -> None:
        other, me = int(self.sites[word, 0]) if other < 0 else other, self.cluster.thread(thread)
        self.add("tma-store-too-early", site, word * 4, thread, f"the {self._store(site)} that {me} issues reads shared address {self.cluster.spot(word * 4)} that "
                 f"{self._who(cell)} writes at {self._at(other)}, with no barrier between", (self._who(cell), f"{self._store(site)} of {me}"),
                 f"fence.proxy.async in every writing thread, then __syncthreads(), then the {self._store(site).split()[-1]}", other)  # fmt: skip

    def _report_no_proxy_fence(self, thread: int, word: int, cell: int, site: int) -> None:
        other, me = int(self.sites[word, 0]), self.cluster.thread(thread)
        self.add("proxy-fence", site, word * 4, thread, f"missing fence.proxy.async: the {self._store(site)} that {me} issues reads shared address "
                 f"{self.cluster.spot(word * 4)} through the async proxy, and {self._who(cell)} wrote it by an ordinary store at {self._at(other)} without a proxy "
                 "fence after it", (self._who(cell), f"{self._store(site)} of {me}"),
                 "fence.proxy.async.shared::cta in every writing thread after its stores and before the barrier", other)  # fmt: skip
