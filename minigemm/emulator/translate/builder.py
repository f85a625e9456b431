"""The LLVM IR of one thread's function while it is written: temporaries, blocks, operands, faults.

A PTX register is a stack slot, which LLVM promotes to a value. An instruction therefore loads its operands,
computes and stores its results, and no other one needs to know how. Registers hold plain bits: an ``f32``
lives in an ``i32``.

The function's parameters are ``%ctx``, the thread's context, and ``%rt``, the block record (context.py).
"""

from __future__ import annotations

from .. import context as c
from ..errors import Unsupported
from ..ptx.module import (
    Address,
    Function,
    Immediate,
    Instruction,
    Module,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
)
from .program import Program

__all__ = ["BITS", "EXPECTED", "UNEXPECTED", "Builder"]

#: Bits of each PTX type.
BITS = {
    "pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16,
    "b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "u16x2": 32, "s16x2": 32, "tf32": 32,
    "b64": 64, "u64": 64, "s64": 64, "f64": 64, "f32x2": 64, "e4m3x2": 16, "e5m2x2": 16,
}  # fmt: skip

# Special registers: byte offsets in the context, indices in the block record, constants, masks of lanes.
_OF_THREAD = {
    "%tid.x": c.TID,
    "%tid.y": c.TID + 4,
    "%tid.z": c.TID + 8,
    "%laneid": c.LANE,
    "%warpid": c.WARP,
}
_OF_BLOCK = {
    f"%{name}.{axis}": first + k
    for name, first in (
        ("ctaid", c.CTAID),
        ("nctaid", c.NCTAID),
        ("ntid", c.NTID),
        ("clusterid", c.CLUSTERID),
        ("nclusterid", c.NCLUSTERID),
        ("cluster_ctaid", c.CLUSTER_CTAID),
        ("cluster_nctaid", c.CLUSTER_NCTAID),
    )
    for k, axis in enumerate("xyz")
} | {
    "%dynamic_smem_size": c.DYNAMIC_SHARED,
    "%cluster_ctarank": c.CTARANK,
    "%cluster_nctarank": c.NCTARANK,
    "%is_explicit_cluster": c.EXPLICIT_CLUSTER,
}
FIXED = {"%smid": 0, "%nsmid": 132, "%gridid": 1, "%nwarpid": 64, "WARP_SZ": 32}
_LANE_MASKS = {f"%lanemask_{order}": order for order in ("eq", "lt", "le", "gt", "ge")}

#: Weights of a branch whose condition nearly always holds, or nearly never.
EXPECTED, UNEXPECTED = ", !prof !0", ", !prof !1"


class Builder:
    """Writes one function, line by line."""

    def __init__(self, module: Module, function: Function, program: Program, clusters: bool) -> None:
        self.module, self.function, self.program, self.clusters = module, function, program, clusters
        self.lines: list[str] = []
        self.count = 0  # of temporaries and labels
        self.open = False  # does the current IR block still want a terminator?
        self.parameters = {p.name: p.offset for p in function.parameters}
        self.variables: dict[str, Variable] = {
            v.name: v for v in (*module.variables, *function.variables) if v.space in ("global", "const")
        }
        self.symbols: dict[str, int] = {}  # variables that the code uses -> place in the table of addresses

    # --- lines and blocks

    def number(self) -> int:
        """Return a number that no temporary and no label has yet."""
        self.count += 1
        return self.count

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def let(self, expression: str) -> str:
        """Give an expression a name of its own."""
        name = f"%t{self.number()}"
        self.emit(f"{name} = {expression}")
        return name

    def label(self, name: str) -> None:
        """Begin a block. The one before falls through to it, unless it has jumped."""
        if self.open:
            self.emit(f"br label %{name}")
        self.lines.append(f"{name}:")
        self.open = True

    def jump(self, line: str) -> None:
        """End the block with this terminator."""
        self.emit(line)
        self.open = False

    def branch(self, condition: str, yes: str, no: str, weights: str = "") -> None:
        self.jump(f"br i1 {condition}, label %{yes}, label %{no}{weights}")

    def branch_on_guard(self, ins: Instruction, on: str, off: str) -> None:
        """Go to `on` where the guard lets the instruction happen, else to `off`."""
        assert ins.guard is not None
        guard = self.read(ins.guard, 1)
        self.branch(guard, *((off, on) if ins.negated else (on, off)))

    def finish(self, code: int) -> None:
        """Leave the function; `code` says why."""
        self.emit(f"store i32 {code}, ptr %code")
        self.jump("br label %leave")

    def fault_if(self, condition: str, kind: int | str, address: str, size: int, i: int) -> None:
        """Leave with a fault where `condition` (an i1) holds."""
        tag = self.number()
        bad, good = f"bad{tag}", f"good{tag}"
        self.branch(condition, bad, good, UNEXPECTED)
        self.label(bad)
        for field, value in (
            (c.FAULT_KIND, kind),
            (c.FAULT_SITE, i),
            (c.FAULT_ADDRESS, address),
            (c.FAULT_SIZE, size),
        ):
            self.emit(f"store i64 {value}, ptr {self.in_record(field)}")
        self.finish(c.FAULT)
        self.label(good)

    def unsupported(self, ins: Instruction, why: str) -> Unsupported:
        return Unsupported(f"{ins.name} (PTX line {ins.line}): {why} is not emulated", ins.location)

    # --- memory of the emulator

    def in_context(self, offset: int) -> str:
        """Return a pointer into the thread's context, `offset` in bytes."""
        return self.let(f"getelementptr i8, ptr %ctx, i64 {offset}")

    def in_record(self, index: int) -> str:
        """Return a pointer to a field of the block record."""
        return self.let(f"getelementptr i64, ptr %rt, i64 {index}")

    def field(self, index: int, kind: str = "i64") -> str:
        """Return a field of the block record that does not change while the thread runs."""
        return self.let(f"load {kind}, ptr {self.in_record(index)}, !invariant.load !2")

    # --- registers
    # and operands

    def bits_of(self, register: str) -> int:
        return BITS[self.function.registers[register]]

    def is_predicate(self, operand: Operand) -> bool:
        if isinstance(operand, Register):
            return self.function.registers[operand.name] == "pred"
        return isinstance(operand, Negated)

    @staticmethod
    def slot(register: str) -> str:
        """Return the name of a register's stack slot."""
        return '%"' + register.replace("%", "r.") + '"'

    def cast(self, value: str, have: int, want: int) -> str:
        """Cut bits off, or add zeros."""
        if have == want:
            return value
        return self.let(f"{'trunc' if have > want else 'zext'} i{have} {value} to i{want}")

    def read(self, operand: Operand, bits: int) -> str:
        """Return the value of an operand in that many bits."""
        match operand:
            case Register(name):
                have = self.bits_of(name)
                return self.cast(self.let(f"load i{have}, ptr {self.slot(name)}"), have, bits)
            case Immediate(value, kind):
                if kind == "f64" and bits == 32:
                    raise Unsupported("a double constant where a 32-bit value is expected")
                if bits == 1:
                    return "true" if value else "false"
                return str(value & ((1 << bits) - 1))
            case Negated(register):
                return self.let(f"xor i1 {self.read(register, 1)}, true")
            case Special(name):
                return self.special(name, bits)
            case Symbol(name, offset):
                place = self.symbol(name, bits)
                return self.let(f"add i{bits} {place}, {offset}") if offset else place
            case Address(base, offset):
                place = self.read(base, 64)
                return self.cast(self.let(f"add i64 {place}, {offset}") if offset else place, 64, bits)
        raise Unsupported(f"operand {operand!r}")

    def write(self, operand: Operand, value: str, bits: int) -> None:
        """Store a value of that many bits in a register; the first one of a pair."""
        if isinstance(operand, Sink):
            return
        if isinstance(operand, Pair):
            operand = operand.first
        assert isinstance(operand, Register), operand
        have = self.bits_of(operand.name)
        self.emit(f"store i{have} {self.cast(value, bits, have)}, ptr {self.slot(operand.name)}")

    def special(self, name: str, bits: int) -> str:
        """Return the value of a special register."""
        if name in _OF_THREAD:
            return self.cast(self.let(f"load i32, ptr {self.in_context(_OF_THREAD[name])}"), 32, bits)
        if name in _OF_BLOCK:
            return self.cast(self.field(_OF_BLOCK[name]), 64, bits)
        if name in FIXED:
            return str(FIXED[name])
        if name == "%total_smem_size":
            return self.cast(self.let(f"sub i64 %shared_end, {c.SHARED_FIRST}"), 64, bits)
        if name in _LANE_MASKS:
            return self.cast(self.lane_mask(_LANE_MASKS[name]), 32, bits)
        if name.startswith(("%clock", "%globaltimer")):
            return self.cast(self.clock(high=name.endswith("_hi")), 64, bits)
        raise Unsupported(f"special register {name} is not emulated")

    def lane_mask(self, order: str) -> str:
        """Return the lanes that are equal to, below or above the thread's own."""
        one = self.let(f"shl i32 1, {self.special('%laneid', 32)}")
        below = self.let(f"sub i32 {one}, 1")
        upto = self.let(f"or i32 {one}, {below}")
        if order in ("gt", "ge"):
            return self.let(f"xor i32 {upto if order == 'gt' else below}, -1")
        return {"eq": one, "lt": below, "le": upto}[order]

    def clock(self, high: bool) -> str:
        """Return the block's clock, which every look moves on; its high 32 bits where `high`."""
        place = self.in_record(c.CLOCK)
        now = self.let(f"load i64, ptr {place}")
        self.emit(f"store i64 {self.let(f'add i64 {now}, 1')}, ptr {place}")
        return self.let(f"lshr i64 {now}, 32") if high else now

    def symbol(self, name: str, bits: int) -> str:
        """Return the address of a variable in its own state space."""
        if name in self.program.shared_offsets:
            offset = self.program.shared_offsets[name]
            if not self.clusters:
                return str(offset)
            return self.cast(self.let(f"add i64 %shared_base, {offset}"), 64, bits)
        if name in self.program.local_places:
            return self.cast(self.let(f"add i64 %context, {self.program.local_places[name]}"), 64, bits)
        if name in self.parameters:
            return self.cast(self.let(f"add i64 %params, {self.parameters[name]}"), 64, bits)
        if name in self.variables:
            index = self.symbols.setdefault(name, len(self.symbols))
            table = self.field(c.SYMBOLS, "ptr")
            place = self.let(f"getelementptr i64, ptr {table}, i64 {index}")
            return self.cast(self.let(f"load i64, ptr {place}"), 64, bits)
        if name in self.module.functions:
            raise Unsupported(f"the address of function {name} (indirect calls are not emulated)")
        if name in FIXED:
            return str(FIXED[name])
        raise Unsupported(f"unknown symbol {name}")
