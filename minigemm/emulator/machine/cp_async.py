"""`cp.async`, the asynchronous copies of single threads that came before Hopper's.

A copy is an ordinary write of its thread that happens later. Until it completes, its destination is nobody's
to touch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..translate.lower import Site
from ..watch.order import Clocks
from .barriers import Barrier, Barriers
from .block import Block, Handler, Unit
from .copies import U64
from .mbarrier import BarrierMisuse


@dataclass
class Copy:
    """One cp.async of a thread."""

    move: Callable[[], None] | None  # None once the bytes are there
    words: slice  # of shared memory
    cell: np.uint64  # marks the destination in the shadow of shared memory


class CpAsync(Unit):
    """The cp.async of a block's threads."""

    def __init__(self, block: Block, barriers: Barriers) -> None:
        super().__init__(block)
        self.barriers = barriers
        self._in_flight: dict[int, list[list[Copy]]] = {}  # thread -> its groups; the last one is open

    def serves(self) -> dict[str, Handler]:
        return {
            "cp.async.ca": self.copy,
            "cp.async.cg": self.copy,
            "cp.async.commit_group": self.commit_group,
            "cp.async.wait_group": self.wait_group,
            "cp.async.wait_all": self.wait_group,
            "cp.async.mbarrier.arrive": self.arrive,
        }

    def copy(self, site: Site, ids: np.ndarray) -> None:
        """`[dst], [src], size{, bytes to take}`: the rest of `size` is zero-filled."""
        block = self.block
        early = block.launch.schedule == "early"
        for t in ids.tolist():
            target, source, size, *taken = (int(v) for v in block.arguments[t, : len(site.arguments)])
            place, source = block.place(target, site, t), source & U64
            take = min(size, taken[0]) if taken else size
            destination = block.shared_bytes(place, size, site, "cp.async")
            if place % size or source % size:
                raise block.fault(f"misaligned cp.async of {size} bytes", site, np.array([t]))

            move = partial(self._move, site, t, destination, source, take)
            words = slice(place >> 2, (place + size + 3) >> 2)
            cell = block.order.copying(t, words, site.index) if block.order else np.uint64(0)
            if early:
                move()
            self._groups(t)[-1].append(Copy(None if early else move, words, cell))
        block.go(ids)

    def _move(self, site: Site, thread: int, destination: np.ndarray, source: int, take: int) -> None:
        """Copy `take` bytes, and fill the rest of the destination with zeros."""
        destination[take:] = 0
        if take:
            with self.block.blamed(site, thread):
                destination[:take] = self.block.launch.memory.bytes(source, take)

    def _groups(self, thread: int) -> list[list[Copy]]:
        return self._in_flight.setdefault(thread, [[]])

    def _complete(self, thread: int, copies: list[Copy], cell: int | None = None) -> None:
        """From here on the copies are ordinary writes of the thread: of now, or as `cell` says."""
        order = self.block.order
        if order and cell is None:
            cell = order.stamp(thread)
        for copy in copies:
            if copy.move:
                copy.move()
            if order:
                order.copied(copy.words, copy.cell, cell or 0)

    def commit_group(self, site: Site, ids: np.ndarray) -> None:
        """`cp.async.commit_group`."""
        for t in ids.tolist():
            self._groups(t).append([])
        self.block.go(ids)

    def wait_group(self, site: Site, ids: np.ndarray) -> None:
        """`cp.async.wait_group n`: all but the last n groups are there; `wait_all`: open copies too."""
        everything = "wait_all" in site.instruction.modifiers
        for t in ids.tolist():
            groups = self._groups(t)
            keep = 0 if everything else int(self.block.arguments[t, 0])
            while len(groups) > keep + 1:
                self._complete(t, groups.pop(0))
            if everything:
                self._complete(t, groups[0])
                groups[0] = []
        self.block.go(ids)

    def arrive(self, site: Site, ids: np.ndarray) -> None:
        """`cp.async.mbarrier.arrive [mbar]`: arrive when all copies of the thread so far have completed.

        Without `.noinc` the phase expects one more arrival for it.
        """
        block = self.block
        for t in ids.tolist():
            place, one = block.place(int(block.arguments[t, 0]), site, t), np.array([t])
            barrier = self.barriers.at(place, site, one)
            groups = self._groups(t)
            copies = [copy for group in groups for copy in group]
            groups[:] = [[] for _ in groups]
            cell = block.order.stamp(t) if block.order else None
            clocks = block.order.release(one) if block.order else None
            if "noinc" not in site.instruction.modifiers:
                barrier.state.pending += 1
            block.launch_async(partial(self._arrived, site, t, barrier, copies, cell, clocks), block.now(one))
        block.go(ids)

    def _arrived(
        self,
        site: Site,
        thread: int,
        barrier: Barrier,
        copies: list[Copy],
        cell: int | None,
        clocks: Clocks | None,
    ) -> None:
        """Arrive for a `cp.async.mbarrier.arrive` whose earlier copies have completed."""
        self._complete(thread, copies, cell)
        if self.block.order and clocks:
            self.barriers.collect(barrier, self.block.order.fit(clocks))
        try:
            barrier.state.arrive()
        except BarrierMisuse as misuse:
            self.barriers.misused(site, barrier.place, thread, misuse)
        self.barriers.advance(barrier, site)
