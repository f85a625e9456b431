"""Misuse of the registers that the tensor core works on, found in the PTX without running it.

`wgmma.mma_async` reads and writes registers while the thread goes on. So an accumulator must not be touched
before a `wgmma.wait_group` has retired the WGMMA, and a `wgmma.fence` must stand between an ordinary access
of such a register and the WGMMA. Both are questions about paths through the program. A forward data-flow
analysis over the instructions answers them by following every path at once.

Source: PTX ISA, "Asynchronous wgmma Instructions", "wgmma.fence".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ptx.module import Immediate, Instruction, Vector, registers

__all__ = ["RegisterMisuse", "find_misuse"]

_OPEN = -1  # not committed yet; else how many groups have been committed since
_OLDEST = 64


@dataclass(frozen=True)
class RegisterMisuse:
    """One misuse; `kind` says which.

    "accumulator-in-flight": instruction `index` touches a register of the WGMMA at `other` before it is
    retired. "wgmma-fence": the WGMMA at `index` follows an access of its registers at `other` (-1: the
    kernel's beginning) without a fence between.
    """

    kind: str
    index: int
    other: int
    register: str
    writes: bool = False


@dataclass(frozen=True)
class _State:
    """What is known before an instruction, over all paths that lead there."""

    #: (index of a WGMMA, age): the WGMMAs in flight, each with its youngest age.
    flight: frozenset[tuple[int, int]]
    #: (set of registers, index of the access): accesses since the last fence; index -1 is the kernel's
    #: beginning.
    touched: frozenset[tuple[int, int]]


def find_misuse(code: list[Instruction], successors: list[list[int]]) -> tuple[RegisterMisuse, ...]:
    """Return what goes wrong on some path. `successors[i]` are the instructions that may come after i."""
    products = [i for i, ins in enumerate(code) if ins.opcode == "wgmma" and ins.modifiers[0] == "mma_async"]
    if not products:
        return ()

    # The sets of registers that WGMMAs use, numbered: accumulators, and registers of A where there are any.
    sets: dict[frozenset[str], int] = {}
    uses: dict[int, tuple[int, ...]] = {}
    for i in products:
        uses[i] = tuple(
            sets.setdefault(frozenset(registers(o)), len(sets))
            for o in code[i].operands[:2]
            if isinstance(o, Vector)
        )
    of_register: dict[str, list[int]] = {}
    for group, number in sets.items():
        for name in group:
            of_register.setdefault(name, []).append(number)

    # Follow all paths until no state changes.
    begin = _State(frozenset(), frozenset((number, -1) for number in sets.values()))
    states: dict[int, _State] = {0: begin}
    found: dict[tuple[str, int, int], RegisterMisuse] = {}
    pending = [0]
    while pending:
        i = pending.pop()
        after = _step(i, code[i], states[i], uses, of_register, found)
        for j in successors[i]:
            if j >= len(code):
                continue
            known = states.get(j)
            joined = after if known is None else _join(known, after)
            if joined != known:
                states[j] = joined
                pending.append(j)
    return tuple(found.values())


def _join(a: _State, b: _State) -> _State:
    ages: dict[int, int] = {}
    for index, age in a.flight | b.flight:
        ages[index] = min(age, ages.get(index, age))
    return _State(frozenset(ages.items()), a.touched | b.touched)


def _step(
    i: int,
    ins: Instruction,
    state: _State,
    uses: dict[int, tuple[int, ...]],
    of_register: dict[str, list[int]],
    found: dict[tuple[str, int, int], RegisterMisuse],
) -> _State:
    """Return the state behind instruction i, and enter in `found` what it does wrong."""
    flight, touched = state.flight, state.touched
    if ins.opcode == "wgmma":
        what = ins.modifiers[0]
        if what == "fence":
            return _State(flight, frozenset())
        if what == "commit_group":
            older = ((index, 0 if age == _OPEN else min(age + 1, _OLDEST)) for index, age in flight)
            return _State(frozenset(older), touched)
        if what == "wait_group":
            pending = ins.operands[0]
            keep = pending.value if isinstance(pending, Immediate) else 0
            return _State(frozenset((index, age) for index, age in flight if age < keep), touched)
        for number, access in touched:
            if number in uses[i]:
                found.setdefault(("wgmma-fence", i, access), RegisterMisuse("wgmma-fence", i, access, ""))
        others = {(index, age) for index, age in flight if index != i}
        return _State(frozenset(others | {(i, _OPEN)}), touched)

    # An ordinary instruction: which of the sets does it touch?
    numbers: dict[int, str] = {}
    writes = False
    for position, operand in enumerate(ins.operands):
        for name in registers(operand):
            for number in of_register.get(name, ()):
                numbers[number] = name
                writes |= position == 0 and ins.opcode not in ("st", "stmatrix", "red")
    if not numbers:
        return state
    for index, _ in flight:
        for number in uses[index]:
            # The registers of A may be read while the WGMMA is in flight, not written.
            if number in numbers and (writes or number == uses[index][0]):
                found.setdefault(
                    ("accumulator-in-flight", i, index),
                    RegisterMisuse("accumulator-in-flight", i, index, numbers[number], writes),
                )
    kept = {(number, access) for number, access in touched if number not in numbers}
    return _State(flight, frozenset(kept | {(number, i) for number in numbers}))
