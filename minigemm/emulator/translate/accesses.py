"""Instructions that load, store, and compute with addresses.

Threads run one at a time, so an atomic is a load, an operation and a store. A release, and the end of an
acquire, are stops: there the machine publishes what the thread knows, or tells it what the word's writers
knew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .. import context as c
from ..clusters import OFFSETS, RANK_SHIFT
from ..ptx.module import Address, Instruction, Operand, Register, Sink, Vector
from .arithmetic import OPERATIONS, type_of
from .builder import BITS, Builder
from .memory import SHARED_ADDRESS, Memory, Request
from .sites import Strength, space_of
from .yields import Yields

__all__ = ["CACHE_POLICY", "Accesses"]

#: The result of every createpolicy. The four highest bits are those of all policies.
CACHE_POLICY = 1 << 60

_ATOMICS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
_RANKS = 0xFF  # the bits of a shared address in which the rank stands, shifted down


class Accesses:
    """Writes these instructions. `handlers` has a method for each opcode."""

    def __init__(self, builder: Builder, memory: Memory, yields: Yields) -> None:
        self.b, self.memory, self.yields = builder, memory, yields
        self.handlers: dict[str, Callable[[int, Instruction], None]] = {
            "ld": self.load,
            "ldu": self.load,
            "st": self.store,
            "red": self.reduction,
            "atom": self.atomic,
            "cvta": self.convert_address,
            "isspacep": self.is_in_space,
            "mapa": self.map_address,
            "getctarank": self.rank_of_address,
            "createpolicy": self.create_policy,
        }

    # --- loads and stores

    def load(self, i: int, ins: Instruction) -> None:
        b, kind = self.b, type_of(ins)
        n = BITS[kind]
        destination, address = ins.operands[:2]
        items = _items(destination)
        assert isinstance(address, Address)
        pointer = self.memory.locate(Request(i, ins, n // 8 * len(items), False), address)
        values = [b.let(f"load i{n}, ptr {self._element(pointer, k, n)}, align 1") for k in range(len(items))]

        # A register wider than the type holds the value extended by its sign.
        for item, value in zip(items, values, strict=True):
            if isinstance(item, Register) and kind[0] == "s" and b.bits_of(item.name) > n:
                wide = b.bits_of(item.name)
                b.write(item, b.let(f"sext i{n} {value} to i{wide}"), wide)
            else:
                b.write(item, value, n)
        if Strength.of(ins).acquire:
            self._order_point(i, ins, address, "acquire")

    def store(self, i: int, ins: Instruction) -> None:
        if ins.modifiers[0] == "async":
            self.yields.stop(i, ins, 0)
            return
        b, n = self.b, BITS[type_of(ins)]
        address, source = ins.operands[:2]
        items = _items(source)
        assert isinstance(address, Address)
        if Strength.of(ins).release:
            self._order_point(i, ins, address, "release")
        values = [b.read(item, n) for item in items]
        words = self._words(values, n) if self.memory.hazards else ()
        pointer = self.memory.locate(Request(i, ins, n // 8 * len(items), True, words), address)
        for k, value in enumerate(values):
            b.emit(f"store i{n} {value}, ptr {self._element(pointer, k, n)}, align 1")

    def _element(self, pointer: str, k: int, n: int) -> str:
        """Return a pointer to element k of n bits."""
        return self.b.let(f"getelementptr i8, ptr {pointer}, i64 {k * n // 8}") if k else pointer

    def _words(self, values: list[str], n: int) -> tuple[str, ...]:
        """Return the values of a store, of n bits each, as 32-bit words; a narrow scalar in the low bits."""
        b = self.b
        if n == 64:
            high = [b.let(f"trunc i64 {b.let(f'lshr i64 {v}, 32')} to i32") for v in values]
            low = [b.let(f"trunc i64 {v} to i32") for v in values]
            return tuple(word for pair in zip(low, high, strict=True) for word in pair)
        if n == 32:
            return tuple(values)
        packed, each = [], 32 // n
        for k in range(0, len(values), each):
            word = "0"
            for j, value in enumerate(values[k : k + each]):
                inner = b.let(f"zext i{n} {value} to i32")
                word = b.let(f"or i32 {word}, {b.let(f'shl i32 {inner}, {j * n}')}")
            packed.append(word)
        return tuple(packed)

    def _order_point(self, i: int, ins: Instruction, address: Address, what: str) -> None:
        """Stop where the machine publishes ("release") or hands on ("acquire") what threads know."""
        space = space_of(ins)
        if self.memory.hazards and space in ("shared", "global", "generic"):
            operands = (Address(address.base, address.offset),)
            point = Instruction("order", (what, space), operands, line=ins.line, location=ins.location)
            self.yields.stop(i, point, 0, before=what == "release")

    # --- atomics

    def reduction(self, i: int, ins: Instruction) -> None:
        """Write an atomic whose result nobody wants."""
        if ins.modifiers[0] == "async":
            raise self.b.unsupported(ins, "it")
        self.atomic(i, replace(ins, opcode="atom", operands=(Sink(), *ins.operands)))

    def atomic(self, i: int, ins: Instruction) -> None:
        b, n = self.b, BITS[type_of(ins)]
        destination, address, *operands = ins.operands
        assert isinstance(address, Address)
        items = _items(operands[0])
        outputs = destination.items if isinstance(destination, Vector) else (destination,) * len(items)
        strength = Strength.of(ins)
        if strength.release:
            self._order_point(i, ins, address, "release")
        words = ("0",) * max(1, n * len(items) // 32)
        pointer = self.memory.locate(Request(i, ins, n // 8 * len(items), True, words), address)
        for k, (item, output) in enumerate(zip(items, outputs, strict=True)):
            place = self._element(pointer, k, n)
            old = b.let(f"load i{n}, ptr {place}, align 1")
            new = self._combined(ins, old, b.read(item, n), operands)
            b.emit(f"store i{n} {new}, ptr {place}, align 1")
            b.write(output, old, n)
        if strength.acquire:
            self._order_point(i, ins, address, "acquire")

    def _combined(self, ins: Instruction, old: str, value: str, operands: list[Operand]) -> str:
        """Return the new value of the word."""
        b, kind = self.b, type_of(ins)
        name, n = next(m for m in ins.modifiers if m in _ATOMICS), BITS[kind]
        if name == "exch":
            return value
        if name == "cas":
            same = b.let(f"icmp eq i{n} {old}, {value}")
            return b.let(f"select i1 {same}, i{n} {b.read(operands[1], n)}, i{n} {old}")
        if name == "inc":
            wrap = b.let(f"icmp uge i{n} {old}, {value}")
            return b.let(f"select i1 {wrap}, i{n} 0, i{n} {b.let(f'add i{n} {old}, 1')}")
        if name == "dec":
            zero = b.let(f"icmp eq i{n} {old}, 0")
            wrap = b.let(f"or i1 {zero}, {b.let(f'icmp ugt i{n} {old}, {value}')}")
            return b.let(f"select i1 {wrap}, i{n} {value}, i{n} {b.let(f'sub i{n} {old}, 1')}")

        # The rest are instructions of the arithmetic table: run them on scratch registers.
        scratch = [Register(f"%atomic.{part}.{n}") for part in ("old", "value", "new")]
        b.function.registers.update((register.name, f"b{n}") for register in scratch)
        b.write(scratch[0], old, n)
        b.write(scratch[1], value, n)
        rounded = name == "add" and kind in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
        modifiers = ("rn", kind) if rounded else (kind,)
        operation = Instruction(
            name, modifiers, (scratch[2], *scratch[:2]), line=ins.line, location=ins.location
        )
        OPERATIONS[name](b, operation)
        return b.read(scratch[2], n)

    # --- addresses

    def convert_address(self, i: int, ins: Instruction) -> None:
        """Only the shared window moves; every other generic address is a host address already."""
        b, n = self.b, BITS[type_of(ins)]
        destination, source = ins.operands
        value = b.read(source, 64)
        if space_of(ins) == "shared":
            value = b.let(f"and i64 {value}, {SHARED_ADDRESS}")
            if "to" not in ins.modifiers:
                value = b.let(f"add i64 {value}, {c.GENERIC_SHARED}")
        b.write(destination, b.cast(value, 64, n), n)

    def is_in_space(self, i: int, ins: Instruction) -> None:
        b, space = self.b, space_of(ins)
        value = b.read(ins.operands[1], 64)
        in_shared, own = self.memory.in_shared_window(value), self.memory.in_own_context(value)
        if space == "shared":
            result = in_shared
            if b.clusters and "shared::cluster" not in ins.modifiers:
                low = b.let(f"and i64 {b.let(f'sub i64 {value}, %shared_base')}, {SHARED_ADDRESS}")
                result = b.let(f"and i1 {in_shared}, {b.let(f'icmp ule i64 {low}, {OFFSETS}')}")
        elif space == "local":
            result = own
        elif space == "global":
            result = b.let(f"xor i1 {b.let(f'or i1 {in_shared}, {own}')}, true")
        else:
            result = "false"
        b.write(ins.operands[0], result, 1)

    def map_address(self, i: int, ins: Instruction) -> None:
        """Write the same address in another CTA, from a shared variable or a shared or generic address."""
        b, n = self.b, BITS[type_of(ins)]
        destination, source, target = ins.operands
        value, rank = b.read(source, 64), b.read(target, 64)
        rank = b.let(f"and i64 {rank}, {0xFFFF_FFFF}")
        b.fault_if(b.let(f"icmp uge i64 {rank}, {b.field(c.NCTARANK)}"), c.MAPA_RANK, rank, 0, i)
        value = b.let(f"and i64 {value}, {~(_RANKS << RANK_SHIFT)}")
        value = b.let(f"or i64 {value}, {b.let(f'shl i64 {rank}, {RANK_SHIFT}')}")
        b.write(destination, b.cast(value, 64, n), n)

    def rank_of_address(self, i: int, ins: Instruction) -> None:
        b = self.b
        destination, source = ins.operands
        rank = b.let(f"and i64 {b.let(f'lshr i64 {b.read(source, 64)}, {RANK_SHIFT}')}, {_RANKS}")
        b.write(destination, b.cast(rank, 64, 32), 32)

    def create_policy(self, i: int, ins: Instruction) -> None:
        """Write a word for `cache_hint`. It changes no result: the lines in a cache are not modelled."""
        self.b.write(ins.operands[0], str(CACHE_POLICY), 64)


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)
