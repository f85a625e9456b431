"""PTX to LLVM IR: one resumable function that runs *one thread*.

A GPU runs 32 threads in step. Here a thread is a function call, and the threads of a block take turns:

1. A thread runs by itself as long as it can. Its PTX instructions become LLVM IR one by one
   (arithmetic.py; accesses.py for loads, stores and addresses); branches stay branches.
2. At an instruction that needs other threads, time or the host (a barrier, a wait, an asynchronous copy, a
   warp-wide collective, a fence, a call into the host) the thread *yields*. It saves its live registers in
   its context, leaves the operands in argument slots, and returns the number of the site (yields.py).
3. The machine serves the instruction for all threads that came, writes the results to their contexts, and
   runs the threads on. The function begins with a switch to the place where the thread yielded.
4. A loop that never yields gives way too, after a budget of iterations, so that spinning threads cannot stop
   the others.

So there are no lane masks and no reconvergence code: divergence is just threads at different sites. The price
is that a warp-wide instruction is a stop of 32 threads, and that no CPU vector unit works for several of
them.

Every access is checked: bounds, alignment, and on shared memory initialisation and order (memory.py,
shadow.py). Accesses are logged for the counters (watch/profile.py).

A new instruction goes to arithmetic.py, to accesses.py, or, if a thread stops at it, to `STOPS` in sites.py
and to a unit of the machine.
"""

from __future__ import annotations

from collections.abc import Callable

from .. import context as c
from ..errors import Unsupported
from ..ptx.module import Function, Instruction, Module
from .accesses import CACHE_POLICY, Accesses
from .accumulators import find_misuse
from .arithmetic import OPERATIONS
from .assemble import module_text
from .builder import Builder
from .liveness import Liveness, block_starts, successors
from .memory import Memory
from .program import Program, lay_out
from .sites import IGNORED, Access, Site, Strength, results_of_stop
from .yields import Yields

__all__ = ["CACHE_POLICY", "Access", "Program", "Site", "translate"]  # all that the other rooms need


def translate(
    module: Module, function: Function, *, hazards: bool = True, profile: bool = True, clusters: bool = False
) -> Program:
    """Translate one kernel, whose calls have been spliced in already (``inline_calls``).

    Args:
        module: has the variables that the kernel uses.
        function: the kernel.
        hazards: write the checks of order on shared memory.
        profile: write the log of accesses.
        clusters: translate for clusters of more than one CTA. There a shared address holds a rank, and
            may be one of another CTA; without, no instruction is spent on that.

    Raises:
        Unsupported: an instruction, or a form of it, that is not emulated.
    """
    return _Lowering(module, function, hazards, profile, clusters).run()


class _Lowering:
    """The walk over the instructions, and control flow."""

    def __init__(
        self, module: Module, function: Function, hazards: bool, profile: bool, clusters: bool
    ) -> None:
        self.function, self.program = function, lay_out(module, function)
        self.successors, self.starts = successors(function), block_starts(function)
        publishes = hazards and any(
            ins.opcode in ("fence", "membar") or Strength.of(ins).release for ins in function.code
        )
        self.b = Builder(module, function, self.program, clusters)
        self.yields = Yields(self.b, Liveness(function, self.successors, self.starts), profile)
        memory = Memory(self.b, hazards, profile, publishes)
        self.handlers: dict[str, Callable[[int, Instruction], None]] = {
            **Accesses(self.b, memory, self.yields).handlers,
            "bra": self.branch,
            "brx": self.branch_by_table,
            "ret": self.leave,
            "exit": self.leave,
            "trap": self.trap,
            "brkpt": self.nothing,
        }

    def run(self) -> Program:
        code, count = self.function.code, len(self.function.code)
        first_of = [first for first in self.starts if first < count]
        number_of = {first: number for number, first in enumerate(first_of)}
        ends = [*first_of[1:], count]
        self.program.blocks = [(first, end - first) for first, end in zip(first_of, ends, strict=False)]
        self.program.register_misuse = find_misuse(code, self.successors)

        # Write the instructions, then the way out.
        for i, ins in enumerate(code):
            if i in number_of:
                self.b.label(f"L{i}")
                self.count(number_of[i])
            self.guarded(i, ins)
        self.b.label(f"L{count}")
        self.b.finish(c.DONE)

        table = self.b.symbols
        self.program.symbols = sorted(table, key=table.__getitem__)
        self.program.ir = module_text(self.b, self.yields.resume)
        return self.program

    def count(self, block: int) -> None:
        """Count the execution of a basic block."""
        b = self.b
        place = b.let(f"getelementptr i64, ptr %counts, i64 {block}")
        count = b.let(f"load i64, ptr {place}")
        b.emit(f"store i64 {b.let(f'add i64 {count}, 1')}, ptr {place}")

    def guarded(self, i: int, ins: Instruction) -> None:
        """Write an instruction, and a jump around it if it has a guard. Branches do without the jump."""
        if ins.guard is None or ins.opcode in ("bra", "ret", "exit"):
            self.instruction(i, ins)
            return
        tag = self.b.number()
        do, skip = f"do{tag}", f"skip{tag}"
        self.b.branch_on_guard(ins, do, skip)
        self.b.label(do)
        self.instruction(i, ins)
        self.b.label(skip)

    def instruction(self, i: int, ins: Instruction) -> None:
        if ins.opcode in self.handlers:
            self.handlers[ins.opcode](i, ins)
        elif (results := results_of_stop(ins)) is not None:
            self.yields.stop(i, ins, results)
        elif ins.opcode in OPERATIONS:
            OPERATIONS[ins.opcode](self.b, ins)
        elif not IGNORED.match(ins.name):
            raise Unsupported(f"unknown PTX instruction {ins.name} (PTX line {ins.line})", ins.location)

    # --- control flow

    def branch(self, i: int, ins: Instruction) -> None:
        """Write a jump, back through a check of the budget where it closes a loop."""
        target = self.successors[i][0]
        back = target <= i
        goal = f"back{self.b.number()}" if back else f"L{target}"
        if ins.guard is None:
            self.b.jump(f"br label %{goal}")
        else:
            self.b.branch_on_guard(ins, goal, f"L{i + 1}")
        if back:
            self.yields.give_way(goal, target)

    def branch_by_table(self, i: int, ins: Instruction) -> None:
        b = self.b
        index = b.read(ins.operands[0], 32)
        cases = " ".join(f"i32 {n}, label %L{target}" for n, target in enumerate(self.successors[i]))
        outside = f"bad{b.number()}"
        b.jump(f"switch i32 {index}, label %{outside} [ {cases} ]")
        b.label(outside)
        b.fault_if("true", c.BAD_INDEX, b.let(f"zext i32 {index} to i64"), 0, i)
        b.jump("unreachable")

    def leave(self, i: int, ins: Instruction) -> None:
        if ins.guard is not None:
            stop = f"stop{self.b.number()}"
            self.b.branch_on_guard(ins, stop, f"L{i + 1}")
            self.b.label(stop)
        self.b.finish(c.DONE)

    def trap(self, i: int, ins: Instruction) -> None:
        self.b.fault_if("true", c.TRAP, "0", 0, i)

    def nothing(self, i: int, ins: Instruction) -> None:
        """Write nothing for a breakpoint, which means something to a debugger only."""
