"""How a thread yields: what it saves, what it leaves for the machine, and where it goes on.

A thread that yields stores its live registers in its context and the number of the place where it goes on,
and returns a code: the number of a :class:`Site`, or BUDGET. At a site it also fills the argument slots, and
finds the results of the instruction in the result slots when it goes on.
"""

from __future__ import annotations

from .. import context as c
from ..ptx.module import Address, Instruction, Operand, Pair, Register, Vector
from .builder import UNEXPECTED, Builder
from .liveness import Liveness
from .sites import Site

__all__ = ["Yields"]


class Yields:
    """Writes the places where threads yield, and numbers them."""

    def __init__(self, builder: Builder, liveness: Liveness, profile: bool) -> None:
        self.b, self.liveness, self.profile = builder, liveness, profile
        self.resume: list[str] = []  # labels where threads go on, in the order of their numbers

    def stop(self, i: int, ins: Instruction, results: int, before: bool = False) -> None:
        """Yield at instruction i, which the machine executes.

        With `before`, yield ahead of it; the thread then executes it itself.
        """
        b = self.b
        accumulators = _accumulators(ins)
        outputs = _flat(ins.operands[:results])
        arguments = _flat(ins.operands[1 if accumulators else results :])
        if len(arguments) > c.ARGUMENT_SLOTS or len(outputs) > c.RESULT_SLOTS:
            raise b.unsupported(ins, f"this form ({len(arguments)} operands)")

        # Save what is live on the other side. The machine reads and writes accumulators in the context.
        written = {o.name for o in outputs if isinstance(o, Register)}
        live = [name for name in self.liveness.after(i) if name not in written or ins.guard is not None]
        if before:
            live += [name for name in self.liveness.read_by(i) if name not in live]
        live += [name for name in accumulators if name not in live]
        self.save(live)

        # A call's operands are only names: their values lie in local variables.
        for k, operand in enumerate(arguments if ins.opcode != "call" else ()):
            if b.is_predicate(operand):
                value = b.let(f"zext i1 {b.read(operand, 1)} to i64")
            else:
                value = b.read(operand, 64)
            b.emit(f"store i64 {value}, ptr {b.in_context(c.ARGUMENTS + 8 * k)}")

        # Stop, and go on from here.
        label = f"resume{b.number()}"
        number = self.resume_at(label)
        places = tuple(b.program.slots[name] for name in accumulators)
        pressure = sum(b.function.registers[name] == "f32" for name in live) if accumulators else 0
        b.program.sites.append(Site(i, ins, tuple(arguments), tuple(outputs), places, pressure))
        b.emit(f"store i32 {number}, ptr %ctx")
        b.finish(len(b.program.sites))
        b.label(label)
        self.restore(live)
        for k, operand in enumerate(outputs):
            if isinstance(operand, Register):
                n = b.bits_of(operand.name)
                value = b.let(f"load i64, ptr {b.in_context(c.RESULTS + 8 * k)}")
                b.write(operand, b.cast(value, 64, n), n)

    def give_way(self, label: str, target: int) -> None:
        """Write the back edge of a loop: yield when the budget of iterations or the log is used up."""
        b = self.b
        b.label(label)
        left = b.let(f"sub i64 {b.let('load i64, ptr %budget')}, 1")
        b.emit(f"store i64 {left}, ptr %budget")
        over = b.let(f"icmp slt i64 {left}, 0")
        if self.profile:
            full = b.let(f"icmp ugt i64 {b.let('load i64, ptr %logged')}, %log_limit")
            over = b.let(f"or i1 {over}, {full}")
        b.branch(over, f"{label}.stop", f"L{target}", UNEXPECTED)

        b.label(f"{label}.stop")
        live = self.liveness.at_start(target)
        self.save(live)
        number = self.resume_at(f"{label}.go")
        b.program.loops[number] = target
        b.emit(f"store i32 {number}, ptr %ctx")
        b.finish(c.BUDGET)
        b.label(f"{label}.go")
        self.restore(live)
        b.jump(f"br label %L{target}")

    def resume_at(self, label: str) -> int:
        """Number a place where threads go on."""
        self.resume.append(label)
        return len(self.resume)

    def save(self, names: list[str]) -> None:
        """Store registers in the context, predicates as bytes."""
        b = self.b
        for name in names:
            n = b.bits_of(name)
            value = b.let(f"load i{n}, ptr {b.slot(name)}")
            if n == 1:
                value, n = b.let(f"zext i1 {value} to i8"), 8
            b.emit(f"store i{n} {value}, ptr {b.in_context(b.program.slots[name])}")

    def restore(self, names: list[str]) -> None:
        """Load registers from the context."""
        b = self.b
        for name in names:
            n = b.bits_of(name)
            place = b.in_context(b.program.slots[name])
            value = b.let(f"load i{max(n, 8)}, ptr {place}")
            if n == 1:
                value = b.let(f"trunc i8 {value} to i1")
            b.emit(f"store i{n} {value}, ptr {b.slot(name)}")


def _flat(operands: tuple[Operand, ...]) -> list[Operand]:
    """Operands as slots: the items of a vector, an address and then its coordinates, the two of a pair."""
    found: list[Operand] = []
    for operand in operands:
        if isinstance(operand, Vector):
            found += operand.items
        elif isinstance(operand, Pair):
            found += [operand.first, operand.second]
        elif isinstance(operand, Address) and operand.coordinates:
            found += [Address(operand.base, operand.offset), *operand.coordinates]
        else:
            found.append(operand)
    return found


def _accumulators(ins: Instruction) -> tuple[str, ...]:
    """Return the registers that `wgmma.mma_async` adds to; there may be more than the argument slots hold."""
    if ins.opcode != "wgmma" or ins.modifiers[0] != "mma_async":
        return ()
    vector = ins.operands[0]
    assert isinstance(vector, Vector)
    return tuple(item.name for item in vector.items if isinstance(item, Register))
