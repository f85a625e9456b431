"""Checks of accesses that native code leaves to Python: TMA, WGMMA, cp.async, ldmatrix and stmatrix.

Each check looks at the shadow of the words, asks whether the clocks of the thread cover what was there,
keeps a finding where they do not, and stamps the words with the new access. An asynchronous access is
stamped when it is issued, with a clock that its thread reaches when it knows the access to be complete.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import context as c
from ..clusters import Cluster
from ..errors import Location
from ..translate.shadow import MARK_KINDS, READER_ATOMIC, READER_COLUMN, READER_KINDS, READER_LANE
from . import findings
from .cells import SEVERAL_LANES, column_of, generic, lane_of, late_writes, unwritten, write_cell, writers
from .clocks import STEP, VectorClocks
from .findings import Findings, Scene
from .report import Hazard

__all__ = ["AccessChecks"]

NEVER = 0xFFFFFFFF  # a clock that no thread reaches
VERBS = {
    c.LOAD_AFTER_WRITE: "reads",
    c.STORE_AFTER_WRITE: "writes",
    c.ATOMIC_AFTER_ACCESS: "updates atomically",
}


def _first(mask: np.ndarray) -> int:
    return int(np.argmax(mask))


def _words(address: int, nbytes: int) -> slice:
    return slice(address >> 2, (address + nbytes + 3) >> 2)


def _words_of_rows(rows: np.ndarray, nbytes: int) -> np.ndarray:
    """Return the words of rows of memory: (warps, rows) addresses to (warps, rows * nbytes / 4)."""
    return (rows[..., None] + np.arange(0, nbytes, 4)).reshape(len(rows), -1) >> 2


def _word(words: np.ndarray | slice, k: int) -> int:
    return words.start + k if isinstance(words, slice) else int(words[k])


class AccessChecks(VectorClocks):
    """Vector clocks, and the accesses of one CTA, or of the CTAs of a cluster, checked against them.

    Addresses are places in the cluster's shared memory, in bytes; a site is the index of an instruction.
    """

    def __init__(
        self, cluster: Cluster, asynchronous: bool, source_of: Callable[[int], tuple[Location | None, int]]
    ) -> None:
        """`source_of(site)` gives the source location and PTX line of an instruction index."""
        self.findings = Findings(cluster, source_of)
        super().__init__(cluster, asynchronous)
        # Where native code finds the shadow.
        self.cells, self.sites, self.reads = self.shadow.cells, self.shadow.sites, self.shadow.reads

    def reset(self) -> None:
        super().reset()
        self.findings.unwritten.clear()
        # By the site of a copy: its name, if not TMA load or store; the swizzle of its last box in bytes.
        self.called: dict[int, str] = {}
        self.swizzles: dict[int, int] = {}

    # --- TMA

    def asynchronous_write(
        self, thread: int, address: int, nbytes: int, column: int, clock: int, site: int, swizzle: int = 0
    ) -> None:
        """Check a TMA load, or a bulk copy, that `thread` issues.

        Its bytes may be read by a thread that knows of `clock` in `column`.
        """
        self.swizzles[site] = swizzle
        words, row = _words(address, nbytes), self.order[thread]
        late = late_writes(self.cells[words], row) & (self.cells[words] != 0)
        reads = self.shadow.late_reads(words, row)
        if late.any():
            self._load_over_write(thread, words.start + _first(late), site)
        elif reads.any():
            offset, reader = divmod(_first(reads), self.read_columns)
            word = words.start + offset
            early = self.findings.unwritten.get(self.findings.line_of(int(self.sites[word, 1])))
            if early is not None:
                # Nobody had written what that read saw: it should have waited for this load.
                self._load_not_complete(early[0], word * 4, early[2], "reads", column, site)
            else:
                self._load_over_read(thread, word, reader, site)
        self.shadow.wrote(words, write_cell(clock, column, flags=0), site)

    def asynchronous_read(
        self, thread: int, address: int, nbytes: int, clock: int, site: int, column: int | None = None
    ) -> None:
        """Check a TMA store that `thread` issues, or a copy to another CTA, which has a column of its own."""
        words = _words(address, nbytes)
        cells = self.cells[words]
        self._check_written(words, cells, site, thread)
        if late := self._late_write(words, cells, self.order[thread]):
            self._store_too_early(thread, *late, site=site)
        elif unfenced := self._unfenced_write(words, cells, self.proxy[thread]):
            word, cell, other = unfenced
            at = self.findings.scene(site, word * 4, other)
            me, store = self.cluster.thread(thread), self._store(site)
            self._keep(at, findings.store_without_fence(at, me, store, self._who(cell)))
        self.shadow.read(words, self.reader_column(thread) if column is None else column, clock, site)

    # --- WGMMA

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
        """Check a WGMMA that reads these words: all of its 128 threads must know of their writes.

        Args:
            ids: int (128), the threads of the warpgroup.
            words: int, the words of the operand's tile.
            clock: the warpgroup's reading column reaches it when the product has retired.
            operand: "a" or "b".
            swizzle: the span in bytes that the matrix descriptor names.
        """
        column, thread, leaders = self.tensor_core_column(warpgroup), int(ids[0]), ids[::32]
        wgmma, cells = f"the WGMMA of {self.cluster.warpgroup(warpgroup)}", self.cells[words]
        if self._check_written(words, cells, site, thread):
            pass
        elif late := self._late_write(words, cells, self.order[leaders].min(0)):
            word, cell, other = late
            if column_of(cell) >= self.read_columns:
                verb = f"issues a WGMMA whose operand {operand} reads"
                self._load_not_complete(site, word * 4, thread, verb, column_of(cell), other)
            else:
                at = self.findings.scene(site, word * 4, other)
                self._keep(at, findings.operand_race(at, wgmma, operand, self._who(cell)))
        elif unfenced := self._unfenced_write(words, cells, self.proxy[leaders].min(0)):
            word, cell, other = unfenced
            at = self.findings.scene(site, word * 4, other)
            self._keep(at, findings.operand_without_fence(at, wgmma, operand, self._who(cell)))
        self._check_swizzle(words, cells, site, operand, swizzle, wgmma)
        self.shadow.read(words, column, clock, site)
        first, issued = self.products[column]
        issued[clock] = int(self.clock[first])

    def _check_swizzle(
        self, words: np.ndarray, cells: np.ndarray, site: int, operand: str, swizzle: int, wgmma: str
    ) -> None:
        """Check that the matrix descriptor names the swizzle with which TMA wrote the tile."""
        loads = np.unique(self.sites[words, 0][~generic(cells)])
        for load in loads.tolist():
            written = self.swizzles.get(load, swizzle)
            if written != swizzle:
                at = self.findings.scene(site, int(words[0]) * 4, load)
                self._keep(at, findings.swizzle_mismatch(at, wgmma, operand, swizzle, written))

    def tensor_core_done(self, ids: np.ndarray, warpgroup: int, clock: int) -> None:
        """Let these threads know that all products up to this clock have read their operands."""
        self.order[ids, self.tensor_core_column(warpgroup)] = clock

    # --- cp.async

    def stamp(self, thread: int) -> int:
        """Return the cell of an ordinary write of all four bytes by this thread, now."""
        return write_cell(int(self.clock[thread >> 5]), thread >> 5, thread & 31)

    def copying(self, thread: int, words: slice, site: int) -> np.uint64:
        """Check a cp.async that is going to write these words.

        Until it has, nobody is ordered after it. Returns the cell that says so.
        """
        self._check_write(thread, words, site)
        cell = np.uint64(self.stamp(thread) | NEVER)
        self.shadow.wrote(words, int(cell), site)
        return cell

    def copied(self, words: slice, cell: np.uint64, now: int) -> None:
        """Complete a cp.async: an ordinary write, where no other has taken its place."""
        self.cells[words][self.cells[words] == cell] = np.uint64(now)

    # --- whole warps

    def warp_write(self, rows: np.ndarray, nbytes: int, warps: np.ndarray, site: int) -> None:
        """Check a warp-wide store (stmatrix). One lane stands for its warp.

        Args:
            rows: int (warps, rows), addresses of rows of `nbytes` bytes each.
        """
        for w, words in zip(warps.tolist(), _words_of_rows(rows, nbytes), strict=True):
            self._check_write(32 * w, words, site)
            self.shadow.wrote(words, write_cell(int(self.clock[w]), w), site)

    def warp_read(self, rows: np.ndarray, nbytes: int, warps: np.ndarray, site: int) -> None:
        """Check a warp-wide load (ldmatrix); arguments as for `warp_write`."""
        for w, words in zip(warps.tolist(), _words_of_rows(rows, nbytes), strict=True):
            cells = self.cells[words]
            column, clock = writers(cells)
            by_other_lanes = (column == w) & (clock == self.clock[w])  # in this interval
            if self._check_written(words, cells, site, 32 * w):
                pass
            elif late := self._late_write(words, cells, self.order[32 * w], by_other_lanes):
                word, cell, other = late
                self._after_write("reads", site, word * 4, 32 * w, cell, other)
            self.shadow.read(words, w, int(self.clock[w]), site, lane=SEVERAL_LANES)

    # --- what is checked

    def _check_written(self, words: np.ndarray | slice, cells: np.ndarray, site: int, thread: int) -> bool:
        """Remember a read of a word that nobody has written; returns whether it is one."""
        empty = unwritten(cells)
        if not empty.any():
            return False
        self.findings.read_unwritten(site, _word(words, _first(empty)) * 4, thread)
        return True

    def _check_write(self, thread: int, words: np.ndarray | slice, site: int) -> None:
        """Check an ordinary write of these words."""
        row = self.order[thread]
        late, reads = late_writes(self.cells[words], row), self.shadow.late_reads(words, row)
        if late.any():
            word = _word(words, _first(late))
            cell, other = int(self.cells[word]), int(self.sites[word, 0])
            self._after_write("writes", site, word * 4, thread, cell, other)
        elif reads.any():
            k, reader = divmod(_first(reads), self.read_columns)
            word = _word(words, k)
            mark = reader | (int(self.reads[word, reader]) & SEVERAL_LANES) << READER_LANE.shift
            self._after_read(site, word * 4, thread, mark, int(self.sites[word, 1]))

    def _late_write(
        self,
        words: np.ndarray | slice,
        cells: np.ndarray,
        row: np.ndarray,
        more: np.ndarray | None = None,
    ) -> tuple[int, int, int] | None:
        """Return (word, cell, site) of the first write that this row of clocks does not cover.

        `more` is a mask of writes that count besides. Strong writes count where no other is late.
        """
        late = late_writes(cells, row)
        if more is not None:
            late |= more
        if late.any():
            word = _word(words, _first(late))
            return word, int(self.cells[word]), int(self.sites[word, 0])
        strong = self.shadow.late_strong_writes(words, cells, row)
        if strong is None or (strong < 0).all():
            return None
        word, column = _word(words, _first(strong >= 0)), int(strong[_first(strong >= 0)])
        return word, self.shadow.strong_write(word, column), int(self.sites[word, 1])

    def _unfenced_write(
        self, words: np.ndarray | slice, cells: np.ndarray, proxy: np.ndarray
    ) -> tuple[int, int, int] | None:
        """Return (word, cell, site) of the first write that no proxy fence covers. TMA's own need none."""
        unfenced = generic(cells)
        if unfenced.any():
            unfenced &= late_writes(cells, proxy)
        strong = self.shadow.late_strong_writes(words, cells, proxy)
        if strong is not None:
            unfenced |= strong >= 0
        if not unfenced.any():
            return None
        word = _word(words, _first(unfenced))
        return word, int(self.cells[word]), int(self.sites[word, 0])

    # --- which finding it is

    def _after_write(self, verb: str, site: int, address: int, thread: int, cell: int, other: int) -> None:
        """Keep the finding of an access ("reads", ...) that is not ordered after the write in `cell`."""
        at, me = self.findings.scene(site, address, other), self.cluster.lane(thread)
        column = column_of(cell)
        plain = "reads" if verb == "reads" else "writes"
        if cell & c.CELL_BARRIER:
            self._keep(at, findings.mbarrier_access(at, me))
        elif cell & NEVER == NEVER:
            owner = self.cluster.thread((column << 5) + lane_of(cell))
            self._keep(at, findings.copy_not_complete(at, me, plain, owner))
        elif column >= self.warps:
            self._load_not_complete(site, address, thread, plain, column, other)
        else:
            fix = self._barrier_between("the two", column, thread)
            self._keep(at, findings.race(at, me, verb, self._who(cell), "wrote", fix))

    def _after_read(self, site: int, address: int, thread: int, reader: int, other: int) -> None:
        """Keep the finding of a write that is not ordered after a read (or a strong write) at `other`.

        `reader` describes the mark in the read cell, by the READER fields of translate/shadow.py.
        """
        column, lane = READER_COLUMN.of(reader), READER_LANE.of(reader)
        at, me = self.findings.scene(site, address, other), self.cluster.lane(thread)
        early = self.findings.unwritten.get(at.other) if column >= self.warps else None
        if early is not None:
            # Nobody had written what the TMA store read: it should have waited for this write.
            self._store_too_early(early[2], address >> 2, self.stamp(thread), site, site=other)
        elif column in self.products:
            self._keep(at, findings.operand_overwritten(at, me, self.names[column]))
        elif column >= self.warps:
            self._keep(at, findings.store_overwritten(at, me, self._reader(column, "a TMA store")))
        else:
            them = self.cluster.warp(column) + (f" (lane {lane})" if lane < 32 else "")
            verb = "updates atomically" if READER_ATOMIC.of(reader) else "writes"
            kinds = READER_KINDS.of(reader) << MARK_KINDS.shift
            strong = kinds == c.MARK_WRITE  # a strong write, and no ordinary read besides
            if strong:
                theirs, accesses, between = "writes (atomically, or as a flag)", "the two", " the two"
            else:
                theirs, accesses, between = "reads", "the read and the write", " the read and this write"
            fix = self._barrier_between(accesses, column, thread)
            self._keep(at, findings.race(at, me, verb, them, theirs, fix, between))

    def _load_not_complete(
        self, site: int, address: int, thread: int, verb: str, column: int, load: int
    ) -> None:
        at, barrier = self.findings.scene(site, address, load), self.names.get(column, "an mbarrier")
        me, name = self.cluster.lane(thread), self._load(load)
        self._keep(at, findings.load_not_complete(at, me, verb, name, barrier))

    def _load_over_write(self, thread: int, word: int, site: int) -> None:
        cell, me, load = int(self.cells[word]), self.cluster.thread(thread), self._load(site)
        at = self.findings.scene(site, word * 4, int(self.sites[word, 0]))
        if column_of(cell) >= self.read_columns:
            remote = self._remote(thread, word)
            self._keep(at, findings.load_fills_again(at, me, load, self._who(cell), remote))
        else:
            self._keep(at, findings.load_overwrites(at, me, load, self._who(cell)))

    def _load_over_read(self, thread: int, word: int, reader: int, site: int) -> None:
        at = self.findings.scene(site, word * 4, int(self.sites[word, 1]))
        me, load, who = self.cluster.thread(thread), self._load(site), self._reader(reader)
        remote = self._remote(thread, word)
        if reader in self.products:
            # The warpgroup has arrived somewhere since it issued the product, if the thread knows of its
            # issue.
            first, issued = self.products[reader]
            at_issue = issued.get(int(self.reads[word, reader]) & -STEP, 0)
            released = at_issue <= int(self.order[thread, first])
            self._keep(at, findings.product_overwritten(at, me, load, who, released, remote))
        else:
            self._keep(at, findings.tile_overwritten(at, me, load, who, remote))

    def _store_too_early(self, thread: int, word: int, cell: int, other: int, site: int) -> None:
        at = self.findings.scene(site, word * 4, other)
        me, store = self.cluster.thread(thread), self._store(site)
        self._keep(at, findings.store_too_early(at, me, store, self._who(cell)))

    def _keep(self, at: Scene, hazard: Hazard) -> None:
        self.findings.keep(at, hazard)

    # --- who, in words

    def _who(self, cell: int) -> str:
        """Return who wrote a cell."""
        column = column_of(cell)
        if column < self.warps:
            return f"{self.cluster.warp(column)} (lane {lane_of(cell)})"
        return self.names.get(column, f"column {column}")

    def _reader(self, column: int, otherwise: str = "an asynchronous reader") -> str:
        return self.cluster.warp(column) if column < self.warps else self.names.get(column, otherwise)

    def _load(self, site: int) -> str:
        return self.called.get(site, "TMA load")

    def _store(self, site: int) -> str:
        return self.called.get(site, "TMA store")

    def _remote(self, thread: int, word: int) -> str:
        """Return a warning where a thread copies into another CTA, "" elsewhere."""
        rank = self.cluster.rank_at(word * 4)
        return "" if rank == self.cluster.rank_of(thread) else findings.slot_of_another_cta(rank)

    def _apart(self, warp: int, thread: int) -> bool:
        """Return whether they are of different CTAs."""
        return self.cluster.ranks > 1 and warp // self.cluster.warps != self.cluster.rank_of(thread)

    def _barrier_between(self, accesses: str, warp: int, thread: int) -> str:
        return findings.barrier_between(accesses, self._apart(warp, thread), warp == thread >> 5)
