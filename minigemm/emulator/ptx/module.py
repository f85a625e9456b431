"""A PTX program as data: modules, functions, variables, instructions and their operands.

Source: PTX ISA, chapters "State Spaces, Types, and Variables", "Instruction Operands", "Directives".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import Location

__all__ = [
    "Address",
    "Function",
    "Immediate",
    "Instruction",
    "Label",
    "Module",
    "Negated",
    "Operand",
    "Pair",
    "Parameter",
    "Part",
    "Register",
    "Sink",
    "Special",
    "Symbol",
    "Variable",
    "Vector",
    "registers",
    "symbols",
]


@dataclass(frozen=True, slots=True)
class Register:
    """A register by its resolved name: `%r12`, or `p@3` where it is declared in scope 3."""

    name: str


@dataclass(frozen=True, slots=True)
class Special:
    """A predefined register: `%tid.x`, `%laneid`, `%clock64`."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """A constant. `kind` is "int", "f32" or "f64".

    A float's `value` is its bits, an integer's may be negative. A decimal float (`1.5`) is "f64" whatever the
    instruction's type, as PTX defines it.
    """

    value: int
    kind: str = "int"


@dataclass(frozen=True, slots=True)
class Symbol:
    """The address of a variable or function plus `offset` bytes (`mov.u64 %rd1, table+16`)."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """`[base+offset]`, or `[base+offset, {c0, c1}]` with the coordinates of a tensor."""

    base: Register | Symbol | Immediate
    offset: int = 0
    coordinates: tuple[Operand, ...] | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """Several operands in braces: `{%r1, %r2}`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Label:
    """A branch target, or the name of a list of them, by its resolved name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sink:
    """A result that is not wanted: `_`."""


@dataclass(frozen=True, slots=True)
class Negated:
    """A negated predicate: `!%p1`."""

    operand: Register


@dataclass(frozen=True, slots=True)
class Pair:
    """Two results: `%r1|%p1`."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Part:
    """A byte or half of a register, in the video instructions: `%r1.b0`.

    `selector` is "b0" to "b3", "h0" or "h1".
    """

    operand: Register
    selector: str


Operand = Register | Special | Immediate | Symbol | Address | Vector | Label | Sink | Negated | Pair | Part


def registers(operand: Operand) -> set[str]:
    """Return the names of the registers in an operand."""
    return {part.name for part in _parts(operand) if isinstance(part, Register)}


def symbols(operand: Operand) -> set[str]:
    """Return the names of the variables and functions in an operand."""
    return {part.name for part in _parts(operand) if isinstance(part, Symbol)}


def _parts(operand: Operand) -> Iterator[Operand]:
    """Yield the operand and every operand inside it."""
    inside: tuple[Operand, ...] = ()
    match operand:
        case Vector(items):
            inside = items
        case Pair(first, second):
            inside = (first, second)
        case Negated(register) | Part(register):
            inside = (register,)
        case Address(base, _, coordinates):
            inside = (base, *(coordinates or ()))
    yield operand
    for part in inside:
        yield from _parts(part)


@dataclass(slots=True)
class Instruction:
    """One instruction. `line` is the line of the PTX text, from 1; `location` the line of the CUDA source.

    The operands of a `call` are always (Vector of return values, Symbol or Register of the function, Vector
    of arguments), and a Label of the prototype when the call is indirect.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None = None
    negated: bool = False
    line: int = 0
    location: Location | None = None

    @property
    def name(self) -> str:
        """The opcode with its modifiers: `ld.global.nc.v4.u32`."""
        return ".".join((self.opcode, *self.modifiers))


@dataclass(slots=True)
class Variable:
    """A variable with its `size` and `align` in bytes.

    `space` is "shared", "global", "const", "local" or "param". `init` holds the initial bytes; None means
    zeros, or nothing at all in shared and local memory. `relocations` holds (offset, symbol, addend) for
    every 8 bytes of it that are to become the address of `symbol` plus `addend`. The dynamic shared memory is
    `extern` with size 0.
    """

    name: str
    space: str
    align: int
    size: int
    init: bytes | None = None
    relocations: tuple[tuple[int, str, int], ...] = ()
    extern: bool = False


@dataclass(slots=True)
class Parameter:
    """A parameter or result: `size` bytes at `offset` of the block.

    `register` is the type of a `.reg` parameter. `kind` is the type of a `.param` one ("u64", "f32"), empty
    for an array; a structure is an array.
    """

    name: str
    offset: int
    size: int
    align: int
    register: str = ""
    kind: str = ""


@dataclass(slots=True)
class Function:
    """A kernel (`entry`) or device function.

    `registers` maps each register that is used to its type ("b32", "f32", "pred"). `labels` maps each label
    that some branch goes to to an index into `code`; the length of `code` may be one. `branch_targets` maps
    the name of a `.branchtargets` list to its labels. `variables` are declared inside the function.
    `directives` holds `.maxntid` and its like: `{"maxntid": (128, 1, 1)}`. `defined` is false for a prototype
    without a body.
    """

    name: str
    entry: bool
    parameters: list[Parameter] = field(default_factory=list)
    returns: list[Parameter] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    defined: bool = False


@dataclass(slots=True)
class Module:
    """A PTX module; `files` maps the numbers of `.file` to names."""

    version: str = ""
    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    files: dict[int, str] = field(default_factory=dict)
