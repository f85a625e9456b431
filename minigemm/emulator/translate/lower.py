"""PTX to LLVM IR: one resumable function that runs *one thread*.

Registers become stack slots that LLVM promotes. A thread runs until it meets an instruction that needs other threads, time or the host: a barrier,
a wait, an asynchronous copy, a warp-wide collective, a fence, a call into the host. There it *yields*: it saves the live registers in its context,
leaves the operands in argument slots, and returns the number of the site; the machine serves the instruction for all threads that came, writes the
results, and runs the threads on. So there are no lane masks and no reconvergence code: divergence is just threads at different sites.

A loop that never yields gives way too, after a budget of iterations, so that spinning threads cannot stop the others.

Every access is checked: bounds, alignment, and on shared memory initialisation and order (shadow.py). Accesses are logged for the counters (profile.py).
"""

from __future__ import annotations

import bisect
import re
import struct
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from .. import context as c
from ..clusters import OFFSETS, RANK_SHIFT
from ..errors import Unsupported
from ..ptx.parse import (
    Address,
    Function,
    Immediate,
    Instruction,
    Label,
    Module,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
)
from . import arithmetic, shadow
from .accumulators import RegisterMisuse, find_misuse
from .arithmetic import BITS, OPERATIONS, type_of

#: Instructions at which a thread yields, with the number of leading operands that are results.
YIELDS = (
    (re.compile(r"(bar|barrier)(\.cta)?\.red\b"), 1),
    (re.compile(r"bar\.|barrier\."), 0),
    (re.compile(r"(shfl|vote|match|redux|elect|activemask|ldmatrix|movmatrix)\b"), 1),
    (re.compile(r"mbarrier\.(arrive|arrive_drop|test_wait|try_wait|pending_count)\b"), 1),
    (
        re.compile(
            r"(mbarrier|cp\.async|cp\.reduce|st\.async|red\.async|wgmma|stmatrix|fence|membar|nanosleep|call|setmaxnreg|griddepcontrol)\b"
        ),
        0,
    ),
)
#: What createpolicy gives, whatever it is asked for: the four highest bits are those of every policy.
CACHE_POLICY = 1 << 60
#: Instructions without effect on results here.
IGNORED = re.compile(r"(prefetch|prefetchu|discard|applypriority|pragma|wgmma\.fence_nothing)\b")

TID = {"%tid.x": c.TID, "%tid.y": c.TID + 4, "%tid.z": c.TID + 8, "%laneid": c.LANE, "%warpid": c.WARP}
GRID = {
    "%ctaid.x": c.CTAID, "%ctaid.y": c.CTAID + 1, "%ctaid.z": c.CTAID + 2, "%nctaid.x": c.NCTAID, "%nctaid.y": c.NCTAID + 1,
    "%nctaid.z": c.NCTAID + 2, "%ntid.x": c.NTID, "%ntid.y": c.NTID + 1, "%ntid.z": c.NTID + 2, "%dynamic_smem_size": c.DYNAMIC_SHARED,
    "%clusterid.x": c.CLUSTERID, "%clusterid.y": c.CLUSTERID + 1, "%clusterid.z": c.CLUSTERID + 2,
    "%nclusterid.x": c.NCLUSTERID, "%nclusterid.y": c.NCLUSTERID + 1, "%nclusterid.z": c.NCLUSTERID + 2,
    "%cluster_ctaid.x": c.CLUSTER_CTAID, "%cluster_ctaid.y": c.CLUSTER_CTAID + 1, "%cluster_ctaid.z": c.CLUSTER_CTAID + 2,
    "%cluster_nctaid.x": c.CLUSTER_NCTAID, "%cluster_nctaid.y": c.CLUSTER_NCTAID + 1, "%cluster_nctaid.z": c.CLUSTER_NCTAID + 2,
    "%cluster_ctarank": c.CTARANK, "%cluster_nctarank": c.NCTARANK, "%is_explicit_cluster": c.EXPLICIT_CLUSTER,
}  # fmt: skip
FIXED = {"%smid": 0, "%nsmid": 132, "%gridid": 1, "%nwarpid": 64, "WARP_SZ": 32}
RANKS = 0xFF  # the bits of a shared address in which the rank stands, shifted
LANE_MASKS = {
    "%lanemask_eq": "eq",
    "%lanemask_lt": "lt",
    "%lanemask_le": "le",
    "%lanemask_gt": "gt",
    "%lanemask_ge": "ge",
}

SPACES = {"shared": "shared", "shared::cta": "shared", "shared::cluster": "shared", "global": "global", "const": "const", "local": "local",
          "param": "param", "param::entry": "param", "param::func": "param"}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """An instruction at which threads stop. ``results`` are written to the result slots before they go on."""

    index: int  # in the function's code
    instruction: Instruction
    arguments: tuple[Operand, ...]  # what the argument slots hold, in order
    results: tuple[Operand, ...]
    accumulators: tuple[
        int, ...
    ] = ()  # of wgmma: where in the context each accumulator register is kept, in bytes
    pressure: int = 0  # of wgmma: FP32 registers that are live there


@dataclass(frozen=True)
class Access:
    """A memory access site: for the logs and the messages."""

    space: str  # "global", "shared" or "generic"
    bytes: int
    store: bool


@dataclass(frozen=True)
class Strength:
    """What a memory access promises to other threads."""

    volatile: bool = False
    strong: bool = False  # atomics; relaxed, acquire, release
    atomic: bool = False
    acquire: bool = False
    release: bool = False

    @property
    def any(self) -> bool:
        return self.volatile or self.strong

    @classmethod
    def of(cls, ins: Instruction) -> Strength:
        if ins.opcode not in ("ld", "ldu", "st", "atom", "red"):
            return cls()
        atomic = ins.opcode in ("atom", "red")
        has = {
            m for m in ins.modifiers if m in ("volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
        }
        both = "acq_rel" in has
        return cls(
            "volatile" in has,
            atomic or bool(has - {"volatile"}),
            atomic,
            both or "acquire" in has,
            both or "release" in has,
        )


@dataclass
class Program:
    """A translated kernel, ready to be compiled."""

    function: Function
    ir: str = ""
    context_bytes: int = 0
    local_offset: int = 0
    local_bytes: int = 0
    sites: list[Site] = field(default_factory=list)
    accesses: dict[int, Access] = field(default_factory=dict)
    blocks: list[tuple[int, int]] = field(default_factory=list)  # (first instruction, how many)
    shared_offsets: dict[str, int] = field(default_factory=dict)
    static_shared: int = 0
    dynamic_base: int = 0
    symbols: list[str] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    local_places: dict[str, int] = field(default_factory=dict)  # context offset of each local variable
    loops: dict[int, int] = field(
        default_factory=dict
    )  # resume number of a loop that gave way -> instruction at its head
    register_misuse: tuple[RegisterMisuse, ...] = ()


def translate(
    module: Module, function: Function, *, hazards: bool = True, profile: bool = True, clusters: bool = False
) -> Program:
    """Translate one kernel whose calls have been spliced in already (``ptx.inline_calls``). ``clusters``: for clusters of more than one CTA, where
    a shared address holds a rank, and not every one is of the own CTA; without, no instruction is spent on that."""
    return _Lowering(module, function, hazards, profile, clusters).run()


def yields(ins: Instruction) -> int | None:
    """None for an instruction that a thread does on its own, otherwise how many leading operands are results."""
    name = ins.name
    for pattern, results in YIELDS:
        if pattern.match(name):
            if name.startswith("call"):
                return 1 if len(ins.operands) > 1 and isinstance(ins.operands[0], Vector) else 0
            return results
    return None


class _Lowering:
    def __init__(
        self, module: Module, function: Function, hazards: bool, profile: bool, clusters: bool
    ) -> None:
        self.module, self.f, self.hazards, self.profile, self.clusters = (
            module,
            function,
            hazards,
            profile,
            clusters,
        )
        self.out: list[str] = []
        self.n = 0
        self.open = False  # does the current IR block still want a terminator?
        self.p = Program(function)
        self.resume: list[str] = []  # labels, in the order of their numbers
        self.parameters = {p.name: p.offset for p in function.parameters}
        self.symbols: dict[str, int] = {}
        #: May a thread publish its order through memory? Without fence or release nothing has to be kept for it.
        self.publishes = hazards and any(
            ins.opcode in ("fence", "membar") or Strength.of(ins).release for ins in function.code
        )
        self._place_variables()

    # ------------------------------------------------------------------------------------------- builder

    def temp(self) -> str:
        self.n += 1
        return f"%t{self.n}"

    def emit(self, line: str) -> None:
        self.out.append("  " + line)

    def let(self, expression: str) -> str:
        name = self.temp()
        self.out.append(f"  {name} = {expression}")
        return name

    def label(self, name: str) -> None:
        if self.open:
            self.emit(f"br label %{name}")
        self.out.append(f"{name}:")
        self.open = True

    def jump(self, line: str) -> None:
        self.emit(line)
        self.open = False

    def unsupported(self, ins: Instruction, why: str) -> Unsupported:
        return Unsupported(f"{ins.name} (PTX line {ins.line}): {why} is not emulated", ins.location)

    def bits_of(self, register: str) -> int:
        return BITS[self.f.registers[register]]

    @staticmethod
    def slot(register: str) -> str:
        return '%"' + register.replace("%", "r.") + '"'

    def cast(self, value: str, have: int, want: int) -> str:
        if have == want:
            return value
        return self.let(f"{'trunc' if have > want else 'zext'} i{have} {value} to i{want}")

    def read(self, operand: Operand, bits: int) -> str:
        if isinstance(operand, Register):
            have = self.bits_of(operand.name)
            return self.cast(self.let(f"load i{have}, ptr {self.slot(operand.name)}"), have, bits)
        if isinstance(operand, Immediate):
            value = operand.value
            if operand.kind == "f64" and bits == 32:
                raise Unsupported("a double constant where a 32-bit value is expected")
            if bits == 1:
                return "true" if value else "false"
            return str(value & ((1 << bits) - 1))
        if isinstance(operand, Negated):
            return self.let(f"xor i1 {self.read(operand.operand, 1)}, true")
        if isinstance(operand, Special):
            return self.special(operand.name, bits)
        if isinstance(operand, Symbol):
            place = self.symbol(operand.name, bits)
            return self.let(f"add i{bits} {place}, {operand.offset}") if operand.offset else place
        if isinstance(operand, Address):
            base = self.read(operand.base, 64)
            return self.cast(
                self.let(f"add i64 {base}, {operand.offset}") if operand.offset else base, 64, bits
            )
        raise Unsupported(f"operand {operand!r}")

    def write(self, operand: Operand, value: str, bits: int) -> None:
        if isinstance(operand, Sink):
            return
        if isinstance(operand, Pair):
            operand = operand.first
        assert isinstance(operand, Register), operand
        have = self.bits_of(operand.name)
        self.emit(f"store i{have} {self.cast(value, bits, have)}, ptr {self.slot(operand.name)}")

    def special(self, name: str, bits: int) -> str:
        if name in TID:
            return self.cast(
                self.let(f"load i32, ptr {self.let(f'getelementptr i8, ptr %ctx, i64 {TID[name]}')}"),
                32,
                bits,
            )
        if name in GRID:
            return self.cast(self.field(GRID[name], "i64"), 64, bits)
        if name in FIXED:
            return str(FIXED[name])
        if name == "%total_smem_size":
            return self.cast(self.let(f"sub i64 %shared_end, {c.SHARED_FIRST}"), 64, bits)
        if name in LANE_MASKS:
            lane = self.special("%laneid", 32)
            one = self.let(f"shl i32 1, {lane}")
            below = self.let(f"sub i32 {one}, 1")
            upto = self.let(f"or i32 {one}, {below}")
            value = {"eq": one, "lt": below, "le": upto}.get(LANE_MASKS[name])
            if value is None:
                value = self.let(f"xor i32 {upto if LANE_MASKS[name] == 'gt' else below}, -1")
            return self.cast(value, 32, bits)
        if name.startswith(("%clock", "%globaltimer")):
            p = self.let(f"getelementptr i64, ptr %rt, i64 {c.CLOCK}")
            now = self.let(f"load i64, ptr {p}")
            self.emit(f"store i64 {self.let(f'add i64 {now}, 1')}, ptr {p}")
            if name.endswith("_hi"):
                now = self.let(f"lshr i64 {now}, 32")
            return self.cast(now, 64, bits)
        raise Unsupported(f"special register {name} is not emulated")

    def field(self, index: int, kind: str) -> str:
        return self.let(
            f"load {kind}, ptr {self.let(f'getelementptr i64, ptr %rt, i64 {index}')}, !invariant.load !2"
        )

    def symbol(self, name: str, bits: int) -> str:
        """The address of a variable in its own state space."""
        if name in self.p.shared_offsets:
            offset = self.p.shared_offsets[name]
            return (
                self.cast(self.let(f"add i64 %shared_base, {offset}"), 64, bits)
                if self.clusters
                else str(offset)
            )
        if name in self.local_offsets:
            return self.cast(self.let(f"add i64 %context, {self.local_offsets[name]}"), 64, bits)
        if name in self.parameters:
            return self.cast(self.let(f"add i64 %params, {self.parameters[name]}"), 64, bits)
        if name in self.variables:
            index = self.symbols.setdefault(name, len(self.symbols))
            table = self.field(c.SYMBOLS, "ptr")
            return self.cast(
                self.let(f"load i64, ptr {self.let(f'getelementptr i64, ptr {table}, i64 {index}')}"),
                64,
                bits,
            )
        if name in self.module.functions:
            raise Unsupported(f"the address of function {name} (indirect calls are not emulated)")
        if name in FIXED:
            return str(FIXED[name])
        raise Unsupported(f"unknown symbol {name}")

    # ------------------------------------------------------------------------------------------- variables

    def _place_variables(self) -> None:
        """Shared variables get offsets (static ones first, dynamic ones share the end), local ones a place in the context."""
        every = list(self.module.variables) + list(self.f.variables)
        self.variables: dict[str, Variable] = {v.name: v for v in every if v.space in ("global", "const")}
        used = {o.name for ins in self.f.code for o in _symbols(ins)}
        at = c.SHARED_FIRST
        dynamic = [v for v in every if v.space == "shared" and v.extern]
        for v in every:
            if v.space == "shared" and not v.extern and v.name in used:
                at = -(-at // v.align) * v.align
                self.p.shared_offsets[v.name] = at
                at += v.size
        self.p.static_shared = at - c.SHARED_FIRST
        base = -(-at // 16) * 16
        for v in dynamic:
            base = -(-base // v.align) * v.align
        for v in dynamic:
            self.p.shared_offsets[v.name] = base
        self.p.dynamic_base = base
        self.local_offsets: dict[str, int] = {}
        at = 0
        for v in every:
            if v.space in ("local", "param"):
                at = -(-at // max(v.align, 8)) * max(v.align, 8)
                self.local_offsets[v.name] = at
                at += v.size
        self.p.local_bytes = at
        # saved registers lie below local memory: both sizes are known before code is generated
        names = sorted(self.f.registers)
        self.p.slots = {name: c.REGISTERS + 8 * i for i, name in enumerate(names)}
        self.p.local_offset = -(-(c.REGISTERS + 8 * len(names)) // 64) * 64
        self.p.context_bytes = -(-(self.p.local_offset + at) // 64) * 64
        self.local_offsets = self.p.local_places = {
            name: at + self.p.local_offset for name, at in self.local_offsets.items()
        }

    # ------------------------------------------------------------------------------------------- control flow

    def run(self) -> Program:
        code, count = self.f.code, len(self.f.code)
        self.successors = [self._successors(i) for i in range(count)]
        leaders = {0, *self.f.labels.values()}
        for i, ins in enumerate(code):
            if ins.opcode in ("bra", "brx", "ret", "exit", "trap"):
                leaders.add(i + 1)
        leaders = {i for i in leaders if i <= count}
        self._liveness(sorted(leaders))
        self.p.register_misuse = find_misuse(code, self.successors)
        block_of = {first: number for number, first in enumerate(sorted(x for x in leaders if x < count))}
        order = sorted(block_of)
        self.p.blocks = [
            (first, (order[i + 1] if i + 1 < len(order) else count) - first) for i, first in enumerate(order)
        ]
        for i, ins in enumerate(code):
            if i in block_of:
                self.label(f"L{i}")
                self._count(block_of[i])
            self.guarded(i, ins)
        self.label(f"L{count}")
        self.finish(c.DONE)
        self.p.symbols = sorted(self.symbols, key=self.symbols.__getitem__)
        self.p.ir = self._assemble()
        return self.p

    def _successors(self, i: int) -> list[int]:
        ins = self.f.code[i]
        onward = [i + 1]
        if ins.opcode == "bra":
            target = ins.operands[0]
            assert isinstance(target, Label)
            return [self.f.labels[target.name]] + (onward if ins.guard else [])
        if ins.opcode == "brx":
            table = ins.operands[1]
            assert isinstance(table, (Label, Symbol))
            return [self.f.labels[t] for t in self.f.branch_targets[table.name]]
        if ins.opcode in ("ret", "exit", "trap"):
            return onward if ins.guard else []
        return onward

    def _liveness(self, leaders: list[int]) -> None:
        """Registers that are live before each leader, as bit sets; ``live_after`` finishes the job inside a block."""
        code, count = self.f.code, len(self.f.code)
        number = {name: i for i, name in enumerate(self.f.registers)}
        self.names = list(self.f.registers)
        self.used, self.defined = [0] * count, [0] * count
        for i, ins in enumerate(code):
            defined, used = _defined_and_used(ins)
            if ins.guard is not None:
                used |= {ins.guard.name} | defined  # a guarded definition may keep the old value
            for name in used:
                self.used[i] |= 1 << number[name]
            for name in defined:
                self.defined[i] |= 1 << number[name]
        ends = [*leaders[1:], count]
        blocks = [(first, last) for first, last in zip(leaders, ends, strict=True) if first < count]
        self.live = {first: 0 for first, _ in blocks}
        self.live[count] = 0
        self.block_end = dict(blocks)
        changed = True
        while changed:
            changed = False
            for first, last in reversed(blocks):
                live = self._flow_back(first, last)
                if live != self.live[first]:
                    self.live[first] = live
                    changed = True
        self.leaders = leaders

    def _flow_back(self, first: int, last: int) -> int:
        live = 0
        for successor in self.successors[last - 1]:
            live |= self.live[successor]
        for i in range(last - 1, first - 1, -1):
            live = self.used[i] | (live & ~self.defined[i])
        return live

    def live_after(self, i: int) -> list[str]:
        first = self.leaders[bisect.bisect_right(self.leaders, i) - 1]
        last = self.block_end[first]
        live = self._flow_back(i + 1, last) if i + 1 < last else self._out_of(last)
        return self._named(live)

    def _out_of(self, last: int) -> int:
        live = 0
        for successor in self.successors[last - 1]:
            live |= self.live[successor]
        return live

    def _named(self, live: int) -> list[str]:
        found = []
        while live:
            low = live & -live
            found.append(self.names[low.bit_length() - 1])
            live ^= low
        return found

    def _count(self, block: int) -> None:
        p = self.let(f"getelementptr i64, ptr %counts, i64 {block}")
        count = self.let(f"load i64, ptr {p}")
        self.emit(f"store i64 {self.let(f'add i64 {count}, 1')}, ptr {p}")

    def guarded(self, i: int, ins: Instruction) -> None:
        if ins.guard is None or ins.opcode in ("bra", "ret", "exit"):
            self.instruction(i, ins)
            return
        guard = self.read(ins.guard, 1)
        self.n += 1
        do, skip = f"do{self.n}", f"skip{self.n}"
        self.jump(
            f"br i1 {guard}, label %{skip}, label %{do}"
            if ins.negated
            else f"br i1 {guard}, label %{do}, label %{skip}"
        )
        self.label(do)
        self.instruction(i, ins)
        self.label(skip)

    def instruction(self, i: int, ins: Instruction) -> None:
        handler = getattr(self, "do_" + ins.opcode, None)
        if handler is not None:
            handler(i, ins)
        elif (results := yields(ins)) is not None:
            self.yield_at(i, ins, results)
        elif ins.opcode in OPERATIONS:
            OPERATIONS[ins.opcode](self, ins)
        elif not IGNORED.match(ins.name):
            raise Unsupported(f"unknown PTX instruction {ins.name} (PTX line {ins.line})", ins.location)

    def finish(self, code: int) -> None:
        self.emit(f"store i32 {code}, ptr %code")
        self.jump("br label %leave")

    def do_ret(self, i: int, ins: Instruction) -> None:
        if ins.guard is None:
            return self.finish(c.DONE)
        guard = self.read(ins.guard, 1)
        self.n += 1
        stop, on = (f"stop{self.n}", f"L{i + 1}")
        self.jump(
            f"br i1 {guard}, label %{on}, label %{stop}"
            if ins.negated
            else f"br i1 {guard}, label %{stop}, label %{on}"
        )
        self.label(stop)
        return self.finish(c.DONE)

    do_exit = do_ret

    def do_trap(self, i: int, ins: Instruction) -> None:
        self.fault_if("true", c.TRAP, "0", 0, i)

    def do_brkpt(self, i: int, ins: Instruction) -> None:
        pass

    def do_bra(self, i: int, ins: Instruction) -> None:
        target = self.successors[i][0]
        goal = f"L{target}"
        if target <= i:  # a loop: give way when the budget is used up
            self.n += 1
            goal = f"back{self.n}"
        if ins.guard is None:
            self.jump(f"br label %{goal}")
        else:
            guard = self.read(ins.guard, 1)
            yes, no = (f"L{i + 1}", goal) if ins.negated else (goal, f"L{i + 1}")
            self.jump(f"br i1 {guard}, label %{yes}, label %{no}")
        if target <= i:
            self.back_edge(goal, target)

    def back_edge(self, name: str, target: int) -> None:
        self.label(name)
        left = self.let(f"sub i64 {self.let('load i64, ptr %budget')}, 1")
        self.emit(f"store i64 {left}, ptr %budget")
        over = self.let(f"icmp slt i64 {left}, 0")
        if self.profile:
            full = self.let(f"icmp ugt i64 {self.let('load i64, ptr %logged')}, %log_limit")
            over = self.let(f"or i1 {over}, {full}")
        self.jump(f"br i1 {over}, label %{name}.stop, label %L{target}, !prof !1")
        self.label(f"{name}.stop")
        live = self._named(self.live[target])
        self.save(live)
        number = self.next_resume(f"{name}.go")
        self.p.loops[number] = target
        self.emit(f"store i32 {number}, ptr %ctx")
        self.finish(c.BUDGET)
        self.label(f"{name}.go")
        self.restore(live)
        self.jump(f"br label %L{target}")

    def do_brx(self, i: int, ins: Instruction) -> None:
        """A switch by table."""
        index = self.read(ins.operands[0], 32)
        cases = " ".join(f"i32 {n}, label %L{t}" for n, t in enumerate(self.successors[i]))
        self.n += 1
        bad = f"bad{self.n}"
        self.jump(f"switch i32 {index}, label %{bad} [ {cases} ]")
        self.label(bad)
        self.fault_if("true", c.BAD_INDEX, self.let(f"zext i32 {index} to i64"), 0, i)
        self.jump("unreachable")

    # ------------------------------------------------------------------------------------------- yields

    def next_resume(self, label: str) -> int:
        self.resume.append(label)
        return len(self.resume)

    def save(self, registers: list[str]) -> None:
        for name in registers:
            n = self.bits_of(name)
            value = self.let(f"load i{n}, ptr {self.slot(name)}")
            if n == 1:
                value, n = self.let(f"zext i1 {value} to i8"), 8
            self.emit(
                f"store i{n} {value}, ptr {self.let(f'getelementptr i8, ptr %ctx, i64 {self.p.slots[name]}')}"
            )

    def restore(self, registers: list[str]) -> None:
        for name in registers:
            n = self.bits_of(name)
            p = self.let(f"getelementptr i8, ptr %ctx, i64 {self.p.slots[name]}")
            value = self.let(f"load i{max(n, 8)}, ptr {p}")
            if n == 1:
                value = self.let(f"trunc i8 {value} to i1")
            self.emit(f"store i{n} {value}, ptr {self.slot(name)}")

    def yield_at(self, i: int, ins: Instruction, results: int, before: bool = False) -> None:
        """Stop at instruction i, which the machine executes; or ``before`` it, which the thread then executes itself."""
        outputs = _flatten(ins.operands[:results])
        accumulators = _accumulators(ins)
        arguments = _flatten(ins.operands[1 if accumulators else results :])
        if len(arguments) > c.ARGUMENT_SLOTS or len(outputs) > c.RESULT_SLOTS:
            raise self.unsupported(ins, f"this form ({len(arguments)} operands)")
        written = {o.name for o in outputs if isinstance(o, Register)}
        live = [name for name in self.live_after(i) if name not in written or ins.guard is not None]
        if before:
            live += [name for name in self._named(self.used[i]) if name not in live]
        if accumulators:  # the machine reads and writes them in the context
            live += [name for name in accumulators if name not in live]
        self.save(live)
        for k, operand in enumerate(arguments):
            if ins.opcode == "call":
                continue  # names only: the values lie in local variables
            value = (
                self.read(operand, 64)
                if not _is_predicate(self, operand)
                else self.let(f"zext i1 {self.read(operand, 1)} to i64")
            )
            self.emit(
                f"store i64 {value}, ptr {self.let(f'getelementptr i8, ptr %ctx, i64 {c.ARGUMENTS + 8 * k}')}"
            )
        self.n += 1
        resume = f"resume{self.n}"
        number = self.next_resume(resume)
        pressure = sum(self.f.registers[name] == "f32" for name in live) if accumulators else 0
        self.p.sites.append(
            Site(
                i,
                ins,
                tuple(arguments),
                tuple(outputs),
                tuple(self.p.slots[name] for name in accumulators),
                pressure,
            )
        )
        self.emit(f"store i32 {number}, ptr %ctx")
        self.finish(len(self.p.sites))
        self.label(resume)
        self.restore(live)
        for k, operand in enumerate(outputs):
            if isinstance(operand, Register):
                n = self.bits_of(operand.name)
                value = self.let(
                    f"load i64, ptr {self.let(f'getelementptr i8, ptr %ctx, i64 {c.RESULTS + 8 * k}')}"
                )
                self.write(operand, self.cast(value, 64, n), n)

    # ------------------------------------------------------------------------------------------- faults

    def fault_if(self, condition: str, kind: int | str, address: str, size: int, i: int) -> None:
        """Leave with a fault where ``condition`` (an i1) holds."""
        self.n += 1
        bad, good = f"bad{self.n}", f"good{self.n}"
        self.jump(f"br i1 {condition}, label %{bad}, label %{good}, !prof !1")
        self.label(bad)
        for at, value in (
            (c.FAULT_KIND, kind),
            (c.FAULT_SITE, i),
            (c.FAULT_ADDRESS, address),
            (c.FAULT_SIZE, size),
        ):
            self.emit(f"store i64 {value}, ptr {self.let(f'getelementptr i64, ptr %rt, i64 {at}')}")
        self.finish(c.FAULT)
        self.label(good)

    # ------------------------------------------------------------------------------------------- memory

    def space(self, ins: Instruction) -> str:
        return next((SPACES[m] for m in ins.modifiers if m in SPACES), "generic")

    def log(self, i: int, address: str) -> None:
        if not self.profile:
            return
        count = self.let("load i64, ptr %logged")
        entry = self.let(f"or i64 {self.let(f'and i64 {address}, {(1 << 48) - 1}')}, {i << 48}")
        self.emit(f"store i64 {entry}, ptr {self.let(f'getelementptr i64, ptr %log, i64 {count}')}")
        self.emit(f"store i64 {self.let(f'add i64 {count}, 1')}, ptr %logged")

    def locate(
        self, i: int, ins: Instruction, address: Address, size: int, store: bool, parts: list[str] | None
    ) -> str:
        """Check one access and give its host pointer. ``parts``: the words that a store to shared memory is about to write."""
        space = self.space(ins)
        base = address.base
        if isinstance(base, Symbol) and base.name in self.local_offsets:
            space = "local"
        elif space == "param":
            return self.let(f"inttoptr i64 {self.read(address, 64)} to ptr")
        strength = Strength.of(ins)
        if (
            space == "shared" and isinstance(base, Symbol) and base.name in self.p.shared_offsets
        ):  # in the own CTA, without a look at its rank
            own = str(self.p.shared_offsets[base.name] + base.offset + address.offset)
            return self.own_pointer(i, own, own, size, store, strength, parts)
        where = self.read(address, 64)
        if space == "shared":
            where = self.let(f"and i64 {where}, 4294967295")
            if self.clusters and "shared::cluster" in ins.modifiers:
                return self.cluster_pointer(i, where, size, store, strength, parts)
            return self.shared_pointer(i, where, size, store, strength, parts)
        if space == "local":
            return self.local_pointer(i, where, size)
        if space in ("global", "const"):
            return self.global_pointer(i, where, size, store, strength)
        self.n += 1
        tag = self.n
        self.p.accesses[i] = Access("generic", size, store)
        result = f"%generic{tag}"
        in_shared = self.let(f"icmp eq i64 {self.let(f'lshr i64 {where}, 56')}, 1")
        self.jump(f"br i1 {in_shared}, label %gs{tag}, label %gl{tag}")
        self.label(f"gs{tag}")
        offset = self.let(f"and i64 {where}, 4294967295")
        pointer = (self.cluster_pointer if self.clusters else self.shared_pointer)(
            i, offset, size, store, strength, parts
        )
        self.emit(f"store ptr {pointer}, ptr %generic")
        self.jump(f"br label %gd{tag}")
        self.label(f"gl{tag}")
        own = self.let(f"sub i64 {where}, %context")
        local = self.let(f"icmp ult i64 {own}, {self.p.context_bytes}")
        self.jump(f"br i1 {local}, label %go{tag}, label %gg{tag}")
        self.label(f"go{tag}")
        self.emit(f"store ptr {self.local_pointer(i, where, size)}, ptr %generic")
        self.jump(f"br label %gd{tag}")
        self.label(f"gg{tag}")
        self.emit(f"store ptr {self.global_pointer(i, where, size, store, strength)}, ptr %generic")
        self.jump(f"br label %gd{tag}")
        self.label(f"gd{tag}")
        self.emit(f"{result} = load ptr, ptr %generic")
        self.p.accesses[i] = Access("generic", size, store)
        return result

    def aligned(self, i: int, where: str, size: int) -> None:
        if size > 1:
            low = self.let(f"and i64 {where}, {size - 1}")
            self.fault_if(self.let(f"icmp ne i64 {low}, 0"), c.MISALIGNED, where, size, i)

    def local_pointer(self, i: int, where: str, size: int) -> str:
        start = self.let(f"add i64 %context, {self.p.local_offset}")
        offset = self.let(f"sub i64 {where}, {start}")
        outside = (
            self.let(f"icmp ugt i64 {offset}, {self.p.local_bytes - size}")
            if self.p.local_bytes >= size
            else "true"
        )
        self.fault_if(outside, c.LOCAL_BOUNDS, offset, size, i)
        self.aligned(i, where, size)
        return self.let(f"inttoptr i64 {where} to ptr")

    def global_pointer(self, i: int, where: str, size: int, store: bool, strength: Strength) -> str:
        self.p.accesses[i] = Access("global", size, store)
        table = self.field(c.SITE_RANGES, "ptr")
        entry = self.let(f"getelementptr i64, ptr {table}, i64 {2 * i}")
        low = self.let(f"load i64, ptr {entry}")
        high = self.let(f"load i64, ptr {self.let(f'getelementptr i64, ptr {entry}, i64 1')}")
        last = self.let(
            f"sub i64 {high}, {size}"
        )  # no buffer is smaller than 0 bytes, and this cannot wrap as an address plus a size can
        inside = self.let(
            f"and i1 {self.let(f'icmp uge i64 {where}, {low}')}, {self.let(f'icmp ule i64 {where}, {last}')}"
        )
        self.n += 1
        miss, hit = f"miss{self.n}", f"hit{self.n}"
        self.jump(f"br i1 {inside}, label %{hit}, label %{miss}, !prof !0")
        self.label(miss)
        kind = self.let(
            f"call i64 @find_range(ptr %rt, ptr {entry}, i64 {where}, i64 {size}, i1 {'true' if store else 'false'})"
        )
        self.fault_if(self.let(f"icmp ne i64 {kind}, 0"), kind, where, size, i)
        self.label(hit)
        self.aligned(i, where, size)
        self.log(i, where)
        if strength.any and self.publishes:
            flags = ", ".join(
                f"i1 {str(flag).lower()}" for flag in (not store or strength.atomic, store, strength.release)
            )
            self.emit(f"call void @global_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 {i}, {flags})")
        return self.let(f"inttoptr i64 {where} to ptr")

    def shared_pointer(
        self, i: int, where: str, size: int, store: bool, strength: Strength, parts: list[str] | None
    ) -> str:
        """Shared memory of the own CTA."""
        offset = self.let(f"sub i64 {where}, %shared_base") if self.clusters else where
        return self.own_pointer(i, offset, where, size, store, strength, parts)

    def own_pointer(
        self,
        i: int,
        where: str,
        address: str,
        size: int,
        store: bool,
        strength: Strength,
        parts: list[str] | None,
    ) -> str:
        """``where`` counts from the CTA's shared memory on; ``address`` is what the kernel calls it."""
        self.p.accesses[i] = Access("shared", size, store)
        self.inside(i, where, address, size)
        self.aligned(i, where, size)
        self.log(i, where)
        if self.hazards:
            self.check_order(i, where, size, store, strength, parts)
        return self.let(f"getelementptr i8, ptr %shared, i64 {where}")

    def inside(self, i: int, where: str, address: str, size: int) -> None:
        """Bounds of one CTA's shared memory."""
        offset = self.let(f"sub i64 {where}, {c.SHARED_FIRST}")
        room = self.let(f"sub i64 %shared_end, {c.SHARED_FIRST + size - 1}")
        outside = self.let(f"icmp sge i64 {offset}, {room}")
        negative = self.let(f"icmp slt i64 {offset}, 0")
        self.fault_if(self.let(f"or i1 {outside}, {negative}"), c.SHARED_BOUNDS, address, size, i)

    def cluster_pointer(
        self, i: int, where: str, size: int, store: bool, strength: Strength, parts: list[str] | None
    ) -> str:
        """Shared memory of any CTA of the cluster, which is the own one's at another distance."""
        self.p.accesses[i] = Access("shared", size, store)
        rank, offset = self.let(f"lshr i64 {where}, {RANK_SHIFT}"), self.let(f"and i64 {where}, {OFFSETS}")
        self.fault_if(
            self.let(f"icmp uge i64 {rank}, {self.field(c.NCTARANK, 'i64')}"), c.BAD_RANK, where, size, i
        )
        self.inside(i, offset, where, size)
        self.aligned(i, where, size)
        self.log(i, where)
        window = self.field(c.WINDOW, "i64")
        apart = self.let(f"sub i64 {rank}, {self.field(c.CTARANK, 'i64')}")
        at = self.let(f"add i64 {offset}, {self.let(f'mul i64 {apart}, {window}')}")
        if self.hazards:
            self.emit(
                f"call void @check_remote(ptr %ctx, ptr %rt, ptr %row, i64 {rank}, i64 {self.let(f'ashr i64 {at}, 2')}, i64 {i})"
            )
            self.check_order(i, at, size, store, strength, parts)
        return self.let(f"getelementptr i8, ptr %shared, i64 {at}")

    def check_order(
        self, i: int, where: str, size: int, store: bool, strength: Strength, parts: list[str] | None
    ) -> None:
        word = self.let(f"ashr i64 {where}, 2")  # before the own CTA's shared memory lies that of lower ranks
        common = "ptr %ctx, ptr %rt, ptr %shared, ptr %cells, ptr %reads, i64 %columns, ptr %row, i64 %stamp"
        if size < 4:
            byte = self.let(f"trunc i64 {self.let(f'and i64 {where}, 3')} to i32")
            mask = self.let(f"shl i32 {(1 << size) - 1}, {byte}")
            value = self.let(f"shl i32 {parts[0]}, {self.let(f'shl i32 {byte}, 3')}") if parts else "0"
            pieces = [(word, mask, value)]
        else:
            pieces = []
            for k in range(size // 4):
                pieces.append(
                    (self.let(f"add i64 {word}, {k}") if k else word, "15", parts[k] if parts else "0")
                )
        arguments = [(f"{common}, i64 {at}, i32 {mask}, i64 {i}", value) for at, mask, value in pieces]
        if not store:
            for at, _ in arguments:
                self.emit(f"call void @load_{'strong' if strength.any else 'word'}({at})")
        elif strength.strong:
            self.store_strong(arguments, strength)
        elif not strength.volatile or not self.publishes:
            self.store_word(arguments)
        else:  # a flag, or data that was not meant for another thread: it depends on whether there was a fence before
            self.n += 1
            flag, data, done = (f"{name}{self.n}" for name in ("flag", "data", "stored"))
            fenced = self.let(f"load i64, ptr {self.let(f'getelementptr i8, ptr %ctx, i64 {c.FENCED}')}")
            self.jump(f"br i1 {self.let(f'icmp ne i64 {fenced}, 0')}, label %{flag}, label %{data}")
            self.label(flag)
            self.store_strong(arguments, strength)
            self.jump(f"br label %{done}")
            self.label(data)
            self.store_word(arguments)
            self.label(done)

    def store_word(self, arguments: list[tuple[str, str]]) -> None:
        for at, value in arguments:
            self.emit(f"call void @store_word({at}, i32 {value})")

    def store_strong(self, arguments: list[tuple[str, str]], strength: Strength) -> None:
        for at, _ in arguments:
            self.emit(
                f"call void @store_strong({at}, i1 {str(strength.atomic).lower()}, i1 {str(strength.release).lower()})"
            )

    def order_point(self, i: int, ins: Instruction, address: Address, what: str) -> None:
        """A stop at which the machine publishes what the thread knows ("release"), or tells it what the word's writers knew ("acquire")."""
        space = self.space(ins)
        if self.hazards and space in ("shared", "global", "generic"):
            point = Instruction(
                "order",
                (what, space),
                (Address(address.base, address.offset, None),),
                None,
                False,
                ins.line,
                ins.location,
            )
            self.yield_at(i, point, 0, before=what == "release")

    def do_ld(self, i: int, ins: Instruction) -> None:
        kind = type_of(ins)
        n = BITS[kind]
        destination, address = ins.operands[:2]
        items = destination.items if isinstance(destination, Vector) else (destination,)
        assert isinstance(address, Address)
        pointer = self.locate(i, ins, address, n // 8 * len(items), False, None)
        values = []
        for k in range(len(items)):
            p = self.let(f"getelementptr i8, ptr {pointer}, i64 {k * n // 8}") if k else pointer
            values.append(self.let(f"load i{n}, ptr {p}, align 1"))
        for item, value in zip(items, values, strict=True):
            if isinstance(item, Register) and kind[0] == "s" and self.bits_of(item.name) > n:
                wide = self.bits_of(item.name)
                self.write(item, self.let(f"sext i{n} {value} to i{wide}"), wide)
            else:
                self.write(item, value, n)
        if Strength.of(ins).acquire:
            self.order_point(i, ins, address, "acquire")

    do_ldu = do_ld

    def do_st(self, i: int, ins: Instruction) -> None:
        if ins.modifiers[0] == "async":
            return self.yield_at(i, ins, 0)
        n = BITS[type_of(ins)]
        address, source = ins.operands[:2]
        items = source.items if isinstance(source, Vector) else (source,)
        assert isinstance(address, Address)
        if Strength.of(ins).release:
            self.order_point(i, ins, address, "release")
        values = [self.read(item, n) for item in items]
        pointer = self.locate(i, ins, address, n // 8 * len(items), True, self.words(values, n))
        for k, value in enumerate(values):
            p = self.let(f"getelementptr i8, ptr {pointer}, i64 {k * n // 8}") if k else pointer
            self.emit(f"store i{n} {value}, ptr {p}, align 1")
        return None

    def words(self, values: list[str], n: int) -> list[str]:
        """The values of a store as 32-bit words (a narrow scalar in the low bits)."""
        if not self.hazards:
            return []
        if n == 64:
            high = [self.let(f"trunc i64 {self.let(f'lshr i64 {v}, 32')} to i32") for v in values]
            low = [self.let(f"trunc i64 {v} to i32") for v in values]
            return [w for pair in zip(low, high, strict=True) for w in pair]
        if n == 32:
            return values
        packed, per = [], 32 // n
        for k in range(0, len(values), per):
            word = "0"
            for j, v in enumerate(values[k : k + per]):
                inner = self.let(f"zext i{n} {v} to i32")
                word = self.let(f"or i32 {word}, {self.let(f'shl i32 {inner}, {j * n}')}")
            packed.append(word)
        return packed

    def do_red(self, i: int, ins: Instruction) -> None:
        if ins.modifiers[0] == "async":
            raise self.unsupported(ins, "it")
        self.do_atom(
            i,
            Instruction(
                "atom", ins.modifiers, (Sink(), *ins.operands), ins.guard, ins.negated, ins.line, ins.location
            ),
        )

    def do_atom(self, i: int, ins: Instruction) -> None:
        """Threads run one at a time, so an atomic is a load, an operation and a store."""
        kind = type_of(ins)
        n = BITS[kind]
        destination, address, *operands = ins.operands
        assert isinstance(address, Address)
        name = next(m for m in ins.modifiers if m in ATOMICS)
        items = operands[0].items if isinstance(operands[0], Vector) else (operands[0],)
        outputs = destination.items if isinstance(destination, Vector) else (destination,) * len(items)
        strength = Strength.of(ins)
        if strength.release:
            self.order_point(i, ins, address, "release")
        pointer = self.locate(
            i, ins, address, n // 8 * len(items), True, ["0"] * max(1, n * len(items) // 32)
        )
        for k, (item, output) in enumerate(zip(items, outputs, strict=True)):
            p = self.let(f"getelementptr i8, ptr {pointer}, i64 {k * n // 8}") if k else pointer
            old = self.let(f"load i{n}, ptr {p}, align 1")
            new = self.atomic(ins, name, kind, old, self.read(item, n), operands)
            self.emit(f"store i{n} {new}, ptr {p}, align 1")
            self.write(output, old, n)
        if strength.acquire:
            self.order_point(i, ins, address, "acquire")

    def atomic(
        self, ins: Instruction, name: str, kind: str, old: str, value: str, operands: list[Operand]
    ) -> str:
        n = BITS[kind]
        if name == "exch":
            return value
        if name == "cas":
            return self.let(
                f"select i1 {self.let(f'icmp eq i{n} {old}, {value}')}, i{n} {self.read(operands[1], n)}, i{n} {old}"
            )
        if name in ("inc", "dec"):
            if name == "inc":
                wrap = self.let(f"icmp uge i{n} {old}, {value}")
                return self.let(f"select i1 {wrap}, i{n} 0, i{n} {self.let(f'add i{n} {old}, 1')}")
            zero = self.let(f"icmp eq i{n} {old}, 0")
            wrap = self.let(f"or i1 {zero}, {self.let(f'icmp ugt i{n} {old}, {value}')}")
            return self.let(f"select i1 {wrap}, i{n} {value}, i{n} {self.let(f'sub i{n} {old}, 1')}")
        # the rest are instructions of the arithmetic table: run them on two scratch registers
        scratch = [Register(f"%atomic.{part}.{n}") for part in ("old", "value", "new")]
        for register in scratch:
            self.f.registers[register.name] = f"b{n}"
        self.write(scratch[0], old, n)
        self.write(scratch[1], value, n)
        modifiers = (
            ("rn", kind)
            if name == "add" and kind in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
            else (kind,)
        )
        OPERATIONS[name](
            self,
            Instruction(name, modifiers, (scratch[2], *scratch[:2]), None, False, ins.line, ins.location),
        )
        return self.read(scratch[2], n)

    def do_cvta(self, i: int, ins: Instruction) -> None:
        """Only the shared window moves; every other generic address is a host address already."""
        n = BITS[type_of(ins)]
        destination, source = ins.operands
        value = self.read(source, 64)
        if self.space(ins) == "shared":
            if "to" in ins.modifiers:
                value = self.let(f"and i64 {value}, 4294967295")
            else:
                value = self.let(f"add i64 {self.let(f'and i64 {value}, 4294967295')}, {c.GENERIC_SHARED}")
        self.write(destination, self.cast(value, 64, n), n)

    def do_isspacep(self, i: int, ins: Instruction) -> None:
        value = self.read(ins.operands[1], 64)
        space = self.space(ins)
        in_shared = self.let(f"icmp eq i64 {self.let(f'lshr i64 {value}, 56')}, 1")
        own = self.let(f"icmp ult i64 {self.let(f'sub i64 {value}, %context')}, {self.p.context_bytes}")
        if space == "shared":
            result = in_shared
            if self.clusters and "shared::cluster" not in ins.modifiers:
                low = self.let(f"and i64 {self.let(f'sub i64 {value}, %shared_base')}, 4294967295")
                result = self.let(f"and i1 {in_shared}, {self.let(f'icmp ule i64 {low}, {OFFSETS}')}")
        elif space == "local":
            result = own
        elif space == "global":
            result = self.let(f"xor i1 {self.let(f'or i1 {in_shared}, {own}')}, true")
        else:
            result = "false"
        self.write(ins.operands[0], result, 1)

    def do_createpolicy(self, i: int, ins: Instruction) -> None:
        """A word that `cache_hint` takes. It changes no result, and which lines a cache keeps is not modelled."""
        self.write(ins.operands[0], str(CACHE_POLICY), 64)

    def do_mapa(self, i: int, ins: Instruction) -> None:
        """The same address in the shared memory of another CTA; of a shared variable, a shared address or a generic one."""
        n = BITS[type_of(ins)]
        destination, source, target = ins.operands
        value, rank = self.read(source, 64), self.read(target, 64)
        rank = self.let(f"and i64 {rank}, 4294967295")
        self.fault_if(
            self.let(f"icmp uge i64 {rank}, {self.field(c.NCTARANK, 'i64')}"), c.MAPA_RANK, rank, 0, i
        )
        value = self.let(f"and i64 {value}, {~(RANKS << RANK_SHIFT)}")
        value = self.let(f"or i64 {value}, {self.let(f'shl i64 {rank}, {RANK_SHIFT}')}")
        self.write(destination, self.cast(value, 64, n), n)

    def do_getctarank(self, i: int, ins: Instruction) -> None:
        destination, source = ins.operands
        rank = self.let(f"and i64 {self.let(f'lshr i64 {self.read(source, 64)}, {RANK_SHIFT}')}, {RANKS}")
        self.write(destination, self.cast(rank, 64, 32), 32)

    # ------------------------------------------------------------------------------------------- the whole function

    def _assemble(self) -> str:
        body = self.out
        head = ["define internal void @thread(ptr noalias %ctx, ptr noalias %rt) {", "entry:"]
        for name in self.f.registers:
            head.append(f"  {self.slot(name)} = alloca i{self.bits_of(name)}")
        head += [
            "  %code = alloca i32",
            "  %cc = alloca i1",
            "  %generic = alloca ptr",
            "  %budget = alloca i64",
            "  %logged = alloca i64",
        ]
        self.out = head
        for name, index, kind in (
            ("shared", c.SHARED, "ptr"),
            ("shared_end", c.SHARED_END, "i64"),
            ("cells", c.CELLS, "ptr"),
            ("reads", c.READS, "ptr"),
            ("columns", c.READ_COLUMNS, "i64"),
            ("params", c.PARAMETERS, "i64"),
            ("counts", c.COUNTS, "ptr"),
            ("limit", c.BUDGET_LIMIT, "i64"),
            ("log_limit", c.LOG_LIMIT, "i64"),
        ):
            self.emit(f"%{name}.p = getelementptr i64, ptr %rt, i64 {index}")
            self.emit(f"%{name} = load {kind}, ptr %{name}.p, !invariant.load !2")
        if self.clusters:
            self.out.append(f"  %shared_base = add i64 {self.field(c.SHARED_BASE, 'i64')}, 0")
        for name, offset, kind in (("row", c.ROW, "ptr"), ("stamp", c.STAMP, "i64"), ("log", c.LOG, "ptr")):
            self.emit(f"%{name}.p = getelementptr i8, ptr %ctx, i64 {offset}")
            self.emit(f"%{name} = load {kind}, ptr %{name}.p")
        self.emit("%context = ptrtoint ptr %ctx to i64")
        self.emit(f"%logged.p = getelementptr i8, ptr %ctx, i64 {c.LOGGED}")
        self.emit(f"store i64 {self.let('load i64, ptr %logged.p')}, ptr %logged")
        self.emit("store i64 %limit, ptr %budget")
        self.emit(f"store i32 {c.DONE}, ptr %code")
        cases = " ".join(f"i32 {n + 1}, label %{label}" for n, label in enumerate(self.resume))
        self.emit("%pc = load i32, ptr %ctx")
        self.emit(f"switch i32 %pc, label %L0 [ {cases} ]")
        tail = [
            "leave:",
            "  %final = load i64, ptr %logged",
            "  store i64 %final, ptr %logged.p",
            "  %why = load i32, ptr %code",
            f"  %why.p = getelementptr i8, ptr %ctx, i64 {c.CODE}",
            "  store i32 %why, ptr %why.p",
            "  ret void",
            "}",
        ]
        return "\n".join(
            [*head, *body, *tail, _STEP, _FIND_RANGE, _runtime(), shadow.IR, _e4m3_table(), _METADATA]
        )


ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")

_METADATA = (
    '!0 = !{!"branch_weights", i32 10000, i32 1}\n!1 = !{!"branch_weights", i32 1, i32 10000}\n!2 = !{}'
)

#: Runs n threads, given by their indices, each until it stops. Their log positions start at zero.
_STEP = f"""
define void @step(ptr %contexts, i64 %stride, i64 %n, ptr %ids, ptr %rt) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %done ]
  %ip = getelementptr i32, ptr %ids, i64 %i
  %id = load i32, ptr %ip
  %wide = zext i32 %id to i64
  %offset = mul i64 %wide, %stride
  %ctx = getelementptr i8, ptr %contexts, i64 %offset
  %lp = getelementptr i8, ptr %ctx, i64 {c.LOGGED}
  store i64 0, ptr %lp
  call void @thread(ptr %ctx, ptr %rt)
  %cp = getelementptr i8, ptr %ctx, i64 {c.CODE}
  %code = load i32, ptr %cp
  %bad = icmp eq i32 %code, {c.FAULT}
  br i1 %bad, label %fault, label %done
done:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %out
fault:
  %tp = getelementptr i64, ptr %rt, i64 {c.FAULT_THREAD}
  store i64 %wide, ptr %tp
  br label %out
out:
  ret void
}}
"""

#: Looks an address up in the table of buffers; remembers the hit for the site. 0, or the kind of fault.
_FIND_RANGE = f"""
define internal i64 @find_range(ptr %rt, ptr %entry, i64 %where, i64 %size, i1 %store) noinline cold {{
  %tp = getelementptr i64, ptr %rt, i64 {c.RANGES}
  %table = load ptr, ptr %tp
  %np = getelementptr i64, ptr %rt, i64 {c.RANGE_COUNT}
  %n = load i64, ptr %np
  br label %loop
loop:
  %i = phi i64 [ 0, %0 ], [ %i1, %next ]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %look, label %none
look:
  %at = mul i64 %i, 3
  %p0 = getelementptr i64, ptr %table, i64 %at
  %low = load i64, ptr %p0
  %p1 = getelementptr i64, ptr %p0, i64 1
  %high = load i64, ptr %p1
  %a = icmp uge i64 %where, %low
  %last = sub i64 %high, %size
  %b = icmp ule i64 %where, %last
  %in = and i1 %a, %b
  br i1 %in, label %found, label %next
next:
  %i1 = add i64 %i, 1
  br label %loop
found:
  %p2 = getelementptr i64, ptr %p0, i64 2
  %w = load i64, ptr %p2
  %fixed = icmp eq i64 %w, 0
  %bad = and i1 %fixed, %store
  br i1 %bad, label %readonly, label %keep
keep:
  store i64 %low, ptr %entry
  %ep = getelementptr i64, ptr %entry, i64 1
  store i64 %high, ptr %ep
  ret i64 0
readonly:
  ret i64 {c.READ_ONLY}
none:
  ret i64 {c.GLOBAL_BOUNDS}
}}
"""


@cache
def _runtime() -> str:
    declared = "\n".join(_DECLARATIONS)
    return files(__package__).joinpath("runtime.ll").read_text() + "\n" + declared


_DECLARATIONS = [
    *(
        f"declare {t} @llvm.{name}.f{n}({t})"
        for name in ("roundeven", "trunc", "floor", "ceil")
        for t, n in (("float", 32), ("double", 64))
    ),
    *(
        f"declare i{n} @llvm.fpto{s}i.sat.i{n}.f{m}({t})"
        for s in "su"
        for n in (8, 16, 32, 64)
        for t, m in (("float", 32), ("double", 64))
    ),
    *(f"declare i{n} @llvm.{name}.i{n}(i{n})" for name in ("bitreverse", "ctpop") for n in (32, 64)),
    *(f"declare i{n} @llvm.ctlz.i{n}(i{n}, i1)" for n in (32, 64)),
    *(f"declare i{n} @llvm.{name}.sat.i{n}(i{n}, i{n})" for name in ("sadd", "ssub") for n in (16, 32, 64)),
    *(f"declare i1 @llvm.is.fpclass.f{n}({t}, i32)" for t, n in (("float", 32), ("double", 64))),
]


@cache
def _e4m3_table() -> str:
    """Every e4m3 pattern as an f16 pattern."""
    values = []
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        if code & 127 == 127:
            values.append(0x7FFF)
            continue
        magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        half = struct.unpack("<H", struct.pack("<e", magnitude))[0]
        values.append(half | (0x8000 if code & 128 else 0))
    return "@e4m3_table = internal constant [256 x i16] [" + ", ".join(f"i16 {v}" for v in values) + "]"


def _flatten(operands: tuple[Operand, ...]) -> list[Operand]:
    """Operands as slots: vectors opened, an address with coordinates followed by them, a pair as two."""
    found: list[Operand] = []
    for operand in operands:
        if isinstance(operand, Vector):
            found += operand.items
        elif isinstance(operand, Pair):
            found += [operand.first, operand.second]
        elif isinstance(operand, Address) and operand.coordinates:
            found += [Address(operand.base, operand.offset, None), *operand.coordinates]
        else:
            found.append(operand)
    return found


def _accumulators(ins: Instruction) -> tuple[str, ...]:
    """The registers that `wgmma.mma_async` adds to; there may be more than the argument slots hold."""
    if ins.opcode != "wgmma" or ins.modifiers[0] != "mma_async":
        return ()
    vector = ins.operands[0]
    assert isinstance(vector, Vector)
    return tuple(item.name for item in vector.items if isinstance(item, Register))


def _is_predicate(lowering: _Lowering, operand: Operand) -> bool:
    if isinstance(operand, Negated):
        return True
    return isinstance(operand, Register) and lowering.f.registers[operand.name] == "pred"


def _symbols(ins: Instruction) -> list[Symbol]:
    found = []
    for operand in _flatten(ins.operands):
        if isinstance(operand, Address):
            operand = operand.base
        if isinstance(operand, Symbol):
            found.append(operand)
    return found


def _defined_and_used(ins: Instruction) -> tuple[set[str], set[str]]:
    results = yields(ins)
    if results is None:
        results = (
            0
            if ins.opcode in ("st", "bra", "brx", "ret", "exit", "trap", "red") or IGNORED.match(ins.name)
            else 1
        )
    defined: set[str] = set().union(*(arithmetic.registers(o) for o in ins.operands[:results]))
    used: set[str] = set().union(*(arithmetic.registers(o) for o in ins.operands[results:]))
    return defined, used
