"""Order: which accesses to shared memory happen before which, and what is found where two are in no order.

How it works:

1. Each thread has a vector clock, which says what happened before it. Barriers, mbarriers, fences and flags
   pass clocks on (clocks.py).
2. Each word of shared memory has cells that say who wrote it and who read it last, and at which clock
   (cells.py). An access is ordered after another one if the thread's vector clock covers the clock in the
   cell.
3. Native code checks the accesses of threads inline (translate/shadow.py), and leaves a record where it is
   not sure. `Order.drain` looks at these records. Ranges that TMA, WGMMA or a whole warp touches are
   checked in checks.py.
4. Each kind of finding has its sentences in findings.py.

`Order` is the face of all four to the machine, which tells it of every event.

Sources: Lamport, "Time, Clocks" (1978); Flanagan and Freund, "FastTrack" (PLDI 2009); PTX ISA, "Memory
Consistency Model" and "Proxies".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import context as c
from ..translate.shadow import CELL_LANE, READER_COLUMN, READER_INTERVAL, READER_LANE
from . import findings
from .cells import column_of, write_cell, writers
from .checks import NEVER, VERBS, AccessChecks
from .clocks import STEP, Clocks, warps_of
from .findings import STAY
from .report import Hazard

__all__ = ["STAY", "STEP", "Clocks", "Order", "warps_of"]

MANY_FLAGS = 4096  # strong accesses in one round that are followed one by one
GLOBAL_FLAG = -4  # the address in the record of a flag in global memory
CELL_MASK = 2**64 - 1  # records are signed


class Record(NamedTuple):
    """An access that native code leaves to Python (context.py, RECORD_WORDS).

    Attributes:
        kind: a hazard, or a flag that was read or written.
        cell: the write cell of the word; for a flag, whether the access is an atomic.
        reader: the mark in the read cell, by the READER fields of translate/shadow.py; -1: none.
        sites: the instructions that wrote (low half) and read (high half) the word last.
    """

    kind: int
    site: int
    address: int
    thread: int
    cell: int
    reader: int
    sites: int

    @property
    def written_by(self) -> int:
        return self.sites & 0xFFFFFFFF

    @property
    def read_by(self) -> int:
        return self.sites >> 32 & 0xFFFFFFFF


class Order(AccessChecks):
    """The order of accesses in one CTA, or in the CTAs of a cluster side by side (clusters.py).

    Attributes:
        found: all findings so far.
        lost: records of hazards were lost. A read of unwritten memory may then have an unknown cause.
        seen: (mbarrier, warp, lanes) of users that are ordered after the initialisation.
        placed: mbarrier address -> (warp, clock, lane) of its initialisation.
    """

    @property
    def found(self) -> dict[tuple[str, str, str], Hazard]:
        return self.findings.found

    def reset(self) -> None:
        super().reset()
        self.lost = False
        self.seen: set[tuple[int, int, int]] = set()
        self.placed: dict[int, tuple[int, int, int]] = {}

    # --- findings

    def add(
        self,
        kind: str,
        site: int,
        address: int,
        thread: int,
        message: str,
        parties: tuple[str, ...],
        fix: str,
    ) -> None:
        """Keep a finding of the machine's own."""
        at = self.findings.scene(site, address)
        self._keep(at, at.hazard(kind, message, parties, fix))

    def unexplained(self) -> tuple[int, int, int] | None:
        """Return (site, address, thread) of a read of unwritten memory that no finding explains, or None."""
        return None if self.lost else self.findings.unexplained()

    def drain(self, records: np.ndarray, rank: int = 0) -> None:
        """Look at records of native code: accesses by threads of one CTA, in the order in which they came.

        Args:
            records: int64 (records, 7), the fields of `Record`. Addresses count from the CTA's own shared
                memory on, and become places in the cluster's here.
            rank: the rank of the CTA.
        """
        if rank:
            records[records[:, 2] != GLOBAL_FLAG, 2] += rank * self.cluster.window

        # Threads whose atomics in this batch gave them order that native code had not seen. Their records are
        # checked again.
        holders: set[int] = set()
        if (records[:, 0] >= c.FLAG_READ).sum() > MANY_FLAGS:
            self.lose_flags()
            records = records[records[:, 0] < c.FLAG_READ]
            holders.update(range(self.threads))

        for record in map(Record._make, records.tolist()):
            access = record.site, record.address, record.thread
            if record.kind >= c.FLAG_READ:
                atomic = bool(record.cell)
                self._flag(record.kind, record.address >> 2, record.thread, atomic)
                if atomic:
                    holders.add(record.thread)
            elif record.thread in holders and self._known(record.thread, record.cell, record.reader):
                continue
            elif record.kind == c.CTA_GONE:
                self.touched_after_exit(*access, "accesses")
            elif record.kind == c.CTA_NOT_STARTED:
                self._touched_before_start(*access)
            elif record.kind == c.LOAD_UNWRITTEN:
                self.findings.read_unwritten(*access)
            else:
                self._unordered(record)

    def _unordered(self, record: Record) -> None:
        """Keep the finding of an access that native code found in no order with an earlier one."""
        kind, reader = record.kind, record.reader
        access = record.site, record.address, record.thread
        if kind == c.STORE_AFTER_READ:
            self._after_read(*access, reader, record.read_by)
        elif kind == c.LOAD_AFTER_WRITE and reader >= 0:
            # After a strong write. The record's cell is that of an ordinary write before it.
            lane = READER_LANE.of(reader) & CELL_LANE.low
            cell = write_cell(0, READER_COLUMN.of(reader), lane, c.CELL_ATOMIC)
            self._after_write(VERBS[kind], *access, cell, record.read_by)
        else:
            self._after_write(VERBS[kind], *access, record.cell & CELL_MASK, record.written_by)

    def _flag(self, kind: int, word: int, thread: int, atomic: bool) -> None:
        if kind == c.FLAG_WRITTEN:
            self.flag_written(thread, word)
        else:
            self.flag_read(thread, word, atomic)

    def _known(self, thread: int, cell: int, reader: int) -> bool:
        """Return whether the thread knows of this access of another warp by now."""
        column, clock = READER_COLUMN.of(reader), READER_INTERVAL.of(reader) * STEP
        if reader < 0:
            column, clock = column_of(cell), cell & NEVER
        return column != thread >> 5 and int(self.order[thread, column]) >= clock

    # --- the CTAs of a cluster

    def touched_after_exit(self, site: int, address: int, thread: int, what: str) -> None:
        """Keep the finding that a thread, or its copy, goes to the shared memory of a CTA that has exited."""
        at, rank = self.findings.scene(site, address), self.cluster.rank_at(address)
        me, name = self.cluster.lane(thread), self.cluster.thread(thread)
        self._keep(at, findings.exited(at, rank, me, name, what))

    def _touched_before_start(self, site: int, address: int, thread: int) -> None:
        at, rank = self.findings.scene(site, address), self.cluster.rank_at(address)
        self._keep(at, findings.not_started(at, rank, self.cluster.lane(thread), self.cluster.thread(thread)))

    def leave(self, rank: int, known: np.ndarray) -> None:
        """Check the exit of a CTA.

        Accesses by other CTAs to its shared memory must be over, and `known` must cover them.
        """
        first, n = rank * self.cluster.window // 4, self.cluster.window // 4
        words = slice(first, first + n)
        own = slice(rank * self.cluster.warps, min((rank + 1) * self.cluster.warps, self.warps))
        foreign = np.zeros(self.read_columns, bool)
        foreign[: self.warps] = True
        foreign[own] = False

        # Writes by warps of other CTAs, live mbarriers apart.
        column, clock = writers(self.cells[words])
        by_others = (column < self.warps) & foreign[np.minimum(column, self.read_columns - 1)]
        late = by_others & (clock > known[column]) & (clock != NEVER)
        for k in self._places(late, words, 0):
            self._exits_too_early(rank, first + k, int(column[k]), "write", int(self.sites[first + k, 0]))

        # Reads by warps of other CTAs, and by copies from here to there.
        foreign[[*self.copies]] = True
        columns = np.flatnonzero(foreign)
        reads = self.reads[words][:, columns] > (known[columns] | (STEP - 1))
        for k in self._places(reads.any(1), words, 1):
            reader = int(columns[np.argmax(reads[k])])
            self._exits_too_early(rank, first + k, reader, "read", int(self.sites[first + k, 1]))

    def _places(self, late: Any, words: slice, which: int) -> list[int]:
        """Return the offset of one late word for each instruction that touched them last."""
        found = np.flatnonzero(late)
        if not len(found):
            return []
        places: list[int] = found[np.unique(self.sites[words][found, which], return_index=True)[1]].tolist()
        return places

    def _exits_too_early(self, rank: int, word: int, column: int, verb: str, site: int) -> None:
        at = self.findings.scene(site, word * 4)
        self._keep(at, findings.exits_too_early(at, rank, self._reader(column), verb))

    # --- mbarrier objects

    def place_barrier(self, thread: int, address: int, site: int) -> None:
        """Mark the words of an mbarrier.

        The cell's clock is NEVER, so every ordinary access takes the slow path and is reported.
        """
        words, warp = slice(address >> 2, (address >> 2) + 2), thread >> 5
        self.seen = {key for key in self.seen if key[0] != address}
        self.placed[address] = (warp, int(self.clock[warp]), thread & 31)
        self.shadow.wrote(words, write_cell(NEVER, warp, flags=c.CELL_BARRIER | c.CELL_GENERIC), site)

    def clear_barrier(self, thread: int, address: int) -> None:
        """Make the words of an mbarrier ordinary memory again (mbarrier.inval)."""
        words, warp = slice(address >> 2, (address >> 2) + 2), thread >> 5
        self.placed.pop(address, None)
        self.cells[words] = np.uint64(write_cell(int(self.clock[warp]), warp, thread & 31, flags=0))

    def check_barrier_visible(self, ids: np.ndarray, address: int, site: int) -> None:
        """Check that these users of an mbarrier are ordered after its initialisation."""
        key = (address, int(ids[0]) >> 5, len(ids))
        if key in self.seen and len(ids) in (1, 32):  # once ordered, always ordered
            return
        column, clock, lane = self.placed.get(address, (0, 0, 0))
        early = self.order[ids, column] < clock
        same_interval = (ids >> 5 == column) & (self.clock[ids >> 5] == clock) & ((ids & 31) != lane)
        bad = early | same_interval
        if not bad.any():
            self.seen.add(key)
            return
        thread = int(ids[np.argmax(bad)])
        at, where = (
            self.findings.scene(site, address),
            self.findings.line_of(int(self.sites[address >> 2, 0])),
        )
        me, them, apart = self.cluster.thread(thread), self.cluster.warp(column), self._apart(column, thread)
        self._keep(at, findings.mbarrier_init(at, me, them, where, apart))
