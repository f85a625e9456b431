"""Control flow of a function, and the registers that are live at each instruction.

A register is live where some path on reads it before writing it. Only live registers are saved when a thread
stops. The analysis goes backward over the basic blocks until nothing changes; a set of registers is the bits
of an integer.
"""

from __future__ import annotations

import bisect

from ..ptx.module import Function, Instruction, Label, Symbol, registers
from .sites import IGNORED, results_of_stop

__all__ = ["Liveness", "block_starts", "successors"]

_NO_RESULT = ("st", "bra", "brx", "ret", "exit", "trap", "red")


def successors(function: Function) -> list[list[int]]:
    """Return, for each instruction, those that may come next, the target of a branch first.

    The length of the code stands for the end.
    """
    return [_successors(function, i, ins) for i, ins in enumerate(function.code)]


def _successors(function: Function, i: int, ins: Instruction) -> list[int]:
    onward = [i + 1]
    if ins.opcode == "bra":
        target = ins.operands[0]
        assert isinstance(target, Label)
        return [function.labels[target.name]] + (onward if ins.guard else [])
    if ins.opcode == "brx":
        table = ins.operands[1]
        assert isinstance(table, (Label, Symbol))
        return [function.labels[t] for t in function.branch_targets[table.name]]
    if ins.opcode in ("ret", "exit", "trap"):
        return onward if ins.guard else []
    return onward


def block_starts(function: Function) -> list[int]:
    """Return the first instruction of each basic block, in order; maybe the length of the code too."""
    starts = {0, *function.labels.values()}
    for i, ins in enumerate(function.code):
        if ins.opcode in ("bra", "brx", "ret", "exit", "trap"):
            starts.add(i + 1)
    return sorted(starts)


class Liveness:
    """The live registers of a function, by name."""

    def __init__(self, function: Function, next_of: list[list[int]], starts: list[int]) -> None:
        self.names = list(function.registers)
        self.next_of, self.starts = next_of, starts
        count = len(function.code)

        # What each instruction reads and writes.
        number = {name: i for i, name in enumerate(self.names)}
        self.read, self.written = [0] * count, [0] * count
        for i, ins in enumerate(function.code):
            written, read = _written_and_read(ins)
            if ins.guard is not None:
                read |= {ins.guard.name} | written  # a guarded write may keep the old value
            for name in read:
                self.read[i] |= 1 << number[name]
            for name in written:
                self.written[i] |= 1 << number[name]

        # Backward over the blocks, until nothing changes.
        ends = [*starts[1:], count]
        self.end_of = {first: end for first, end in zip(starts, ends, strict=True) if first < count}
        self.live = dict.fromkeys((*self.end_of, count), 0)
        changed = True
        while changed:
            changed = False
            for first, end in reversed(self.end_of.items()):
                live = self._flow_back(first, end)
                changed |= live != self.live[first]
                self.live[first] = live

    def at_start(self, first: int) -> list[str]:
        """Return the registers that are live before the first instruction of a block."""
        return self._named(self.live[first])

    def after(self, i: int) -> list[str]:
        """Return the registers that are live behind instruction i."""
        first = self.starts[bisect.bisect_right(self.starts, i) - 1]
        return self._named(self._flow_back(i + 1, self.end_of[first]))

    def read_by(self, i: int) -> list[str]:
        """Return the registers that instruction i reads."""
        return self._named(self.read[i])

    def _flow_back(self, first: int, end: int) -> int:
        """From the end of a block back to its instruction `first`."""
        live = 0
        for successor in self.next_of[end - 1]:
            live |= self.live[successor]
        for i in range(end - 1, first - 1, -1):
            live = self.read[i] | (live & ~self.written[i])
        return live

    def _named(self, live: int) -> list[str]:
        found = []
        while live:
            low = live & -live
            found.append(self.names[low.bit_length() - 1])
            live ^= low
        return found


def _written_and_read(ins: Instruction) -> tuple[set[str], set[str]]:
    results = results_of_stop(ins)
    if results is None:
        results = 0 if ins.opcode in _NO_RESULT or IGNORED.match(ins.name) else 1
    written: set[str] = set().union(*map(registers, ins.operands[:results]))
    read: set[str] = set().union(*map(registers, ins.operands[results:]))
    return written, read
