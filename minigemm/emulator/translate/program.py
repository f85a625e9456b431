"""A translated kernel: its LLVM IR, and what the machine must know beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .. import context as c
from ..ptx.module import Function, Module, symbols
from .accumulators import RegisterMisuse
from .sites import Access, Site

__all__ = ["Program", "lay_out"]


@dataclass
class Program:
    """A translated kernel, ready to be compiled. Offsets and sizes are in bytes."""

    function: Function
    ir: str = ""

    # A thread's context: saved registers, then local memory.
    context_bytes: int = 0
    local_offset: int = 0
    local_bytes: int = 0
    slots: dict[str, int] = field(default_factory=dict)  # context offset of each saved register
    local_places: dict[str, int] = field(default_factory=dict)  # context offset of each local variable

    # Shared memory: static variables, then the dynamic ones, which share one address.
    shared_offsets: dict[str, int] = field(default_factory=dict)
    static_shared: int = 0
    dynamic_base: int = 0

    # Places in the code.
    sites: list[Site] = field(default_factory=list)
    accesses: dict[int, Access] = field(default_factory=dict)
    blocks: list[tuple[int, int]] = field(default_factory=list)  # (first instruction, number of them)
    #: Resume number of a loop that gave way -> instruction at its head.
    loops: dict[int, int] = field(default_factory=dict)
    #: Variables of the module, in the order of the table of their addresses.
    symbols: list[str] = field(default_factory=list)
    register_misuse: tuple[RegisterMisuse, ...] = ()


def lay_out(module: Module, function: Function) -> Program:
    """Give shared variables their addresses, registers and local variables their places in the context."""
    program = Program(function)
    variables = [*module.variables, *function.variables]

    # Static shared variables that the kernel uses follow one another.
    used = {name for ins in function.code for operand in ins.operands for name in symbols(operand)}
    end = c.SHARED_FIRST
    for v in variables:
        if v.space == "shared" and not v.extern and v.name in used:
            program.shared_offsets[v.name] = _aligned(end, v.align)
            end = program.shared_offsets[v.name] + v.size
    program.static_shared = end - c.SHARED_FIRST

    # Dynamic ones begin behind them, where the strictest alignment allows.
    dynamic = [v for v in variables if v.space == "shared" and v.extern]
    base = _aligned(end, 16)
    for v in dynamic:
        base = _aligned(base, v.align)
    program.shared_offsets.update((v.name, base) for v in dynamic)
    program.dynamic_base = base

    # Saved registers lie below local memory: both sizes are known before code is generated.
    names = sorted(function.registers)
    program.slots = {name: c.REGISTERS + 8 * i for i, name in enumerate(names)}
    program.local_offset = _aligned(c.REGISTERS + 8 * len(names), 64)
    end = 0
    for v in variables:
        if v.space in ("local", "param"):
            end = _aligned(end, max(v.align, 8))
            program.local_places[v.name] = program.local_offset + end
            end += v.size
    program.local_bytes = end
    program.context_bytes = _aligned(program.local_offset + end, 64)
    return program


def _aligned(offset: int, alignment: int) -> int:
    """Round up to a multiple of `alignment`."""
    return -(-offset // alignment) * alignment
