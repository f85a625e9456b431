"""Is anybody getting anywhere? When a block gives way to others, and when it is a deadlock or livelock.

A loop that polls looks the same in each round, whether it will end or not. What tells is that something
changes: a context, an mbarrier, a clock, at last memory. So every few rounds a fingerprint of these is taken,
more often where threads only poll, and rarely where they do something that a spinning loop may do too (a
fence, a vote, a barrier).

- The fingerprint changed: there is progress.
- It did not, and something is in flight: that lands.
- It did not for GIVE_WAY rounds: other CTAs get a turn.
- It did not for `patience` rounds: memory is looked at, where a loop may make progress alone (a work queue).
  When that too is the same as at the last look, the block is stuck. When all resident blocks are stuck, it is
  a deadlock.
"""

from __future__ import annotations

import ctypes
import zlib

import numpy as np

from .. import context as c
from ..errors import Deadlock, EmulatorError
from .barriers import Barriers
from .block import Block, line_of
from .faults import suspect

PATIENCE = 512  # rounds without a change before memory is looked at
GIVE_WAY = 32  # rounds without a change before other CTAs have a turn
CHECK = 512  # ordinary rounds between two fingerprints; a round that looks like spinning counts for several
LIMIT_ROUNDS = 64  # rounds between two looks at the limits of a launch
MANY_ROUNDS = 1 << 16  # from then on each round counts at the instruction limit: it takes its time too
ROUND_COST = 4096  # for this many basic blocks


class Progress:
    """Watches whether a block makes progress."""

    def __init__(self, block: Block, barriers: Barriers) -> None:
        self.block, self.barriers = block, barriers
        self.idle_rounds = 0  # rounds without a change, at the last fingerprint
        self.stuck = False  # contexts, mbarriers and memory are what they were, and nothing is in flight
        self._unchecked = 0  # rounds since the last fingerprint, in the units of CHECK
        self._fingerprint: int | None = None
        self._memory: int | None = None  # checksum of memory at the last look
        self._changed_at = 0  # the round that last saw a change
        self._patience = PATIENCE

    def goes_on(self, groups: list[tuple[int, np.ndarray]]) -> bool:
        """Look at the block after a round. Returns False when it has spun for a while, and others shall run.

        `groups` are the threads that ran, by the code with which they stopped.
        """
        block = self.block
        if block.steps % LIMIT_ROUNDS == 0:
            self._check_limits(groups[0][1])

        # Is it time for a fingerprint?
        if block.polls and block.polls == sum(len(ids) for _, ids in groups):
            self._unchecked += CHECK // 8 if groups[0][0] == c.BUDGET else CHECK // 2
        else:
            self._unchecked += 8 if self.idle_rounds else 1
        if self._unchecked < CHECK:
            return True
        self._unchecked = 0

        state = self._state()
        if state != self._fingerprint:
            self._fingerprint, self._memory, self._changed_at = state, None, block.steps
            self.idle_rounds, self.stuck, self._patience = 0, False, PATIENCE
            return True
        if block.landing:  # a cycle model lets its clocks run until the work in flight lands
            return True
        if block.deliver():
            return True

        self.idle_rounds = block.steps - self._changed_at
        if self.idle_rounds >= self._patience:
            self._look_at_memory()
        return self.idle_rounds < GIVE_WAY

    def _check_limits(self, ids: np.ndarray) -> None:
        """Raise EmulatorError at the instruction limit, or where the race detector cannot count further."""
        block = self.block
        limit = block.launch.instruction_limit
        spent = float(block.launch.counts.sum()) + ROUND_COST * max(0, block.steps - MANY_ROUNDS)
        if spent > limit:
            raise EmulatorError(
                f"no end after {limit:.0e} basic blocks: an endless loop? Thread {int(ids[0])} is at "
                f"{self._loop(ids)}"
            )
        if block.order and block.order.exhausted:
            raise EmulatorError(
                f"{block.name} has synchronised a million times: more than the race detector can count. Launch "
                "with hazards=False"
            )

    def _state(self) -> int:
        """Return a fingerprint of contexts and mbarriers, without the race detector's part of a context."""
        block = self.block
        contexts = block.contexts.copy()
        contexts[:, c.ROW : c.ARGUMENTS] = 0
        contexts[:, c.TOUCHED : c.REGISTERS] = 0
        clock = block.clock_reads if block.model else int(block.fields[0, c.CLOCK])
        return hash((zlib.crc32(contexts.data), self.barriers.marks(), clock, len(block.waiting)))

    def _look_at_memory(self) -> None:
        """Compare memory with the last look: if it is the same, nothing can change any more."""
        mark = zlib.crc32(self.block.shared.data)
        for base, size, writable, _ in self.block.launch.memory.ranges:
            if writable:
                mark = zlib.crc32((ctypes.c_uint8 * size).from_address(base), mark)
        self.stuck = mark == self._memory
        if not self.stuck:
            if self._memory is not None:
                self._patience *= 2  # large buffers take long to look at
            self._memory, self._changed_at = mark, self.block.steps

    # --- messages

    def livelock(self) -> Deadlock:
        """Return the error for a block that is stuck: its threads spin."""
        block = self.block
        ids = np.concatenate(block.ready) if block.ready else next(iter(block.waiting.values())).ids
        first = f"{block.name}: {block.cluster.thread(int(ids[0]))}"
        if len(ids) > 1:
            more, they_wait = f" and {len(ids) - 1} more spin", "they wait"
        else:
            more, they_wait = " spins", "it waits"
        return Deadlock(
            f"{first}{more} at {self._loop(ids)}; nothing can change what {they_wait} for"
            f"{self._waiters()}{suspect(block)}"
        )

    def deadlock(self) -> Deadlock:
        """Return the error for a block in which no thread is ready and nothing is in flight."""
        block = self.block
        threads = block.cluster.ranks * block.cluster.threads
        waiting = next(iter(block.waiting.values()), None)
        return Deadlock(
            f"deadlock in {block.name}: no thread can go on, {int(block.alive.sum())} of {threads} have not finished"
            f"{self._waiters()}{suspect(block)}",
            waiting.site.instruction.location if waiting else None,
        )

    def _loop(self, ids: np.ndarray) -> str:
        """Return the line at which the first of these threads gave way."""
        c32, program = self.block.c32, self.block.launch.program
        code, number = int(c32[ids[0], c.CODE // 4]), int(c32[ids[0], c.PC // 4])
        if code > 0:
            return line_of(program.sites[code - 1].instruction)
        return line_of(program.function.code[program.loops.get(number, 0)])

    def _waiters(self) -> str:
        """Return one line for each place at which threads wait, and for each reason."""
        lines: dict[tuple[str, str], list[np.ndarray]] = {}
        for waiting in self.block.waiting.values():
            key = line_of(waiting.site.instruction), waiting.why()
            lines.setdefault(key, []).append(waiting.ids)
        return "".join(
            f"\n  {self.block.cluster.names(np.concatenate(ids))} at {where}: {why}"
            for (where, why), ids in lines.items()
        )
