"""Turn PTX text into a :class:`Module`: all that NVRTC and nvcc emit for ordinary CUDA C++ and for Hopper
kernels.

Every name is resolved here. A register, label or variable declared in an inner `{ }` scope (an asm block, the
sequence of a call) gets a name of its own, `p@3` for the `p` of the third scope. So a function is one list of
instructions in one name space, however often the compiler repeats an asm block.

Source: PTX ISA, chapters "Syntax", "State Spaces, Types, and Variables", "Instruction Operands",
"Directives".
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ..errors import EmulatorError, Location
from .constants import evaluate, floating
from .module import (
    Address,
    Function,
    Immediate,
    Instruction,
    Label,
    Module,
    Negated,
    Operand,
    Pair,
    Parameter,
    Part,
    Register,
    Sink,
    Special,
    Symbol,
    Variable,
    Vector,
)

__all__ = ["parse"]

#: Bytes of each type that a variable can have; the handles of textures, surfaces and samplers are 64 bits
#: wide.
SIZES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)},
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f16x2": 4, "bf16x2": 4, "b128": 16,
    "texref": 8, "surfref": 8, "samplerref": 8,
}  # fmt: skip
SPACES = ("shared", "global", "const", "local", "param")

_COMMENT = re.compile(r'"[^"\n]*"|//[^\n]*|/\*.*?\*/', re.S)
_TOP = re.compile(
    r"""\s*(?: \.version\s+(?P<version>[\d.]+)
      | \.target\s+(?P<target>\w+)(?:\s*,\s*\w+)*
      | \.address_size\s+\d+
      | \.file\s+\d+\s+"[^"]*"(?:\s*,\s*\d+)*
      | \.section\s+[^{]*\{[^}]*\}
      | (?P<header>(?:\.\w+\s+)*\.(?:entry|func)\b[^{;"]*(?:"[^"]*"\s*;?[^{;"]*)*)(?P<body>[{;])
      | \.alias\s+(?P<alias>[%$\w]+)\s*,\s*(?P<aliasee>[%$\w]+)\s*;
      | \.pragma[^;]*;
      | (?P<variable>\.[^;"]*(?:"[^"]*"[^;"]*)*);
      | ; )""",
    re.X,
)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_DEBUG_STRING = re.compile(r"([%$\w]+):\s*((?:\.b8[\s\d,]+)+)")
_HEADER = re.compile(r"[^(]*?\.(entry|func)\s*(?:\(([^)]*)\)\s*)?([%$\w]+)\s*(?:\(([^)]*)\))?(.*)", re.S)
_LIMIT = re.compile(r"\.(\w+)\s*(\d+(?:\s*,\s*\d+)*)?")
# The parts of a body: a label (group 1); an instruction (2 to 5); a place in the source (6); a declaration
# (7, 8); a scope (9). The label comes first, since `done: ret;` looks like an instruction, too.
_STATEMENT = re.compile(
    r"""\s*(?: ([%$\w]+)\s*:(?!:)
      | (?:@\s*(!?)\s*([%$\w]+)\s*)? ([a-z]\w*(?:\.[\w:]+)*) \s*([^;]*);
      | \.loc\b([^\n]*)
      | \.(\w+)([^;]*);
      | ([{};]) )""",
    re.X,
)
_LOC = re.compile(
    r"\s*(\d+)\s+(\d+)(?:\s+(\d+))?(?:\s*,\s*function_name\s+([$\w]+)[^,]*,\s*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?"
)
_CALL = re.compile(r"\s*(?:\(([^)]*)\)\s*,\s*)?([%$\w]+)\s*(?:,\s*\(([^)]*)\)\s*)?(?:,\s*([%$\w]+)\s*)?")
_ATTRIBUTES = re.compile(r"(?:\s*\.\w+(?:\s*\([^)]*\)|\s*\[[^\]]*\]|\s+\d+)?)+\s*")
_DECLARATOR = re.compile(r"\s*([%$\w]+)\s*((?:\[[^\]]*\]\s*)*)(?:=\s*(.*?))?\s*", re.S)
_REGISTER_TYPE = re.compile(r"\s*(?:\.v([248])\s*)?\.(\w+)\s+")
_REGISTERS = re.compile(r"\s*([%$\w]+)\s*(?:<\s*(\d+)\s*>)?\s*")
# The items of a list: commas inside brackets, braces, parentheses and quotes do not count. A bracket that is
# never closed is part of its item, which is then no operand.
_ITEM = re.compile(
    r"""(?:[^,\[{("]+|\[[^\]]*\]|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|"[^"]*"
      |\([^()]*(?:\((?:[^()]|\([^()]*\))*\)[^()]*)*\)|[\[{("])+""",
    re.X,
)
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)")
_PLAIN_ADDRESS = re.compile(r"\[([%$A-Za-z_][$\w]*)(?:\+(-?[1-9]\d*|0))?\]")
_ADDRESS = re.compile(r"\[\s*([^,{]*?)\s*(?:,\s*(\{.*\})\s*)?\]", re.S)
_NAME = re.compile(r"[%$A-Za-z_][$\w]*(?:\.\w+)?")
_PAIR = re.compile(r"([%$A-Za-z_][$\w]*)\s*\|\s*([%$A-Za-z_][$\w]*)")
_MASK = re.compile(r"(0[xX][fF][fF](?:00)*)\s*\((.*)\)", re.S)
_BYTES = re.compile(r"\{(?:\s*(?:0|[1-9]\d*)\s*,)*\s*(?:0|[1-9]\d*)\s*\}")
_SPECIAL = re.compile(
    r"%(?:(?:n?tid|n?ctaid|n?clusterid|cluster_n?ctaid)(?:\.[xyzw])?|cluster_n?ctarank|is_explicit_cluster|laneid"
    r"|n?warpid|n?smid|gridid|lanemask_(?:eq|le|lt|ge|gt)|clock(?:_hi|64)?|globaltimer(?:_lo|_hi)?|pm\d(?:_64)?"
    r"|envreg\d+|reserved_smem_offset_\w+|(?:total|aggr|dynamic)_smem_size|current_graph_exec)"
)


def parse(text: str) -> Module:
    """Parse a module. Raises EmulatorError, which names the PTX line and shows it."""
    return _Parser(text).parse()


class _Parser:
    """The module level: directives, variables, headers of functions."""

    def __init__(self, text: str):
        self.original = text
        self.text = _COMMENT.sub(_blank, text)
        self.module = Module(files={int(number): path for number, path in _FILE.findall(self.text)})
        # The section of debug strings comes last, if there is one.
        strings = _DEBUG_STRING.findall(self.text[self.text.find(".debug_str") :])
        self.debug_strings = {label: _debug_string(data) for label, data in strings}
        self.symbols: dict[str, Symbol] = {}
        self.opcodes: dict[str, tuple[str, tuple[str, ...]]] = {}

    def parse(self) -> Module:
        # Match one directive of the top level at a time.
        position = 0
        end = len(self.text.rstrip())
        while position < end:
            found = _TOP.match(self.text, position)
            if found is None:
                raise self.error(position, "this is no PTX directive")
            position = found.end()

            # A directive that is not named here, such as .pragma, needs nothing. An error gets the place of
            # its directive.
            try:
                if found["header"]:
                    position = self.function(found["header"], found["body"] == "{", position)
                elif found["variable"]:
                    self.variables(found["variable"])
                elif found["alias"]:
                    self.module.functions[found["alias"]] = self.module.functions[found["aliasee"]]
                elif found["version"]:
                    self.module.version = found["version"]
                elif found["target"]:
                    self.module.target = found["target"]
            except (ValueError, KeyError) as error:
                raise self.error(found.start(), str(error)) from error
        return self.module

    def error(self, position: int, message: str, location: Location | None = None) -> EmulatorError:
        """Return an error at the first character from `position` on that is no white space."""
        position += len(self.text[position:]) - len(self.text[position:].lstrip())
        line = self.text.count("\n", 0, position) + 1
        return EmulatorError(
            f"PTX line {line}: {message}: {self.original.splitlines()[line - 1].strip()}", location
        )

    def variables(self, text: str) -> None:
        """Take in a declaration of module variables."""
        for variable in declared(text, self.symbol):
            self.symbols[variable.name] = Symbol(variable.name)
            self.module.variables.append(variable)

    def symbol(self, name: str) -> str:
        """Return the name, if it is declared."""
        if name not in self.symbols:
            raise ValueError(f"'{name}' is not declared")
        return name

    def function(self, header: str, defined: bool, position: int) -> int:
        """Take in a prototype, or a function with its body from `position` on. Returns where it ends."""
        found = _HEADER.fullmatch(header)
        if found is None:
            raise ValueError("this is no function header")
        kind, returns, name, parameters, rest = found.groups("")
        directives = {
            key: tuple(int(n) for n in numbers.split(",") if n) for key, numbers in _LIMIT.findall(rest)
        }
        directives.pop("pragma", None)
        function = Function(
            name=name,
            entry=kind == "entry",
            parameters=_parameters(parameters),
            returns=_parameters(returns),
            directives=directives,
            defined=defined,
        )
        if defined or name not in self.module.functions:
            self.module.functions[name] = function
        self.symbols[name] = Symbol(name)
        return _Body(self, function).parse(position) if defined else position


@dataclass(slots=True)
class _Scope:
    """One `{ }`: the registers declared in it, and what was read in it so far."""

    number: int
    names: dict[str, Operand] = field(default_factory=dict)  # read so far, by name
    kinds: dict[str, str] = field(default_factory=dict)  # type of each register declared by itself
    ranges: dict[str, tuple[str, int]] = field(default_factory=dict)  # `%r<9>` is {"%r": ("b32", 9)}
    operands: dict[str, Operand] = field(default_factory=dict)  # read so far, by text

    def unique(self, name: str) -> str:
        """Return the name by which a declaration of this scope is known in the function."""
        return f"{name}@{self.number}" if self.number else name


@dataclass(slots=True)
class _Jump:
    """A branch, or the name of a table of labels. Its labels are found once the whole function is read."""

    source: Instruction | str
    names: list[str]
    scopes: list[_Scope]
    position: int
    location: Location | None


class _Body:
    """The statements of one function."""

    def __init__(self, parser: _Parser, function: Function):
        self.parser = parser
        self.function = function
        self.scopes = [_Scope(0)]
        self.count = 0
        self.jumps: list[_Jump] = []
        self.locations: dict[tuple[str, ...], Location] = {}
        self.location: Location | None = None
        for parameter in (*function.parameters, *function.returns):
            if parameter.register:
                self.scopes[0].kinds[parameter.name] = parameter.register
            else:
                self.scopes[0].names[parameter.name] = Symbol(parameter.name)

    def parse(self, position: int) -> int:
        """Read up to the closing brace. Returns where it ends."""
        # Every kernel goes through this loop, so what it looks up each time is a local variable.
        text = self.parser.text
        opcodes = self.parser.opcodes
        code = self.function.code
        match = _STATEMENT.match
        line = text.count("\n", 0, position) + 1
        counted = start = position
        label = ""
        try:
            while True:
                found = match(text, start)
                if found is None:
                    raise ValueError(
                        "this is no PTX statement" if text[start:].strip() else "a closing brace is missing"
                    )

                # The last group that matched tells the kind of the statement.
                group = found.lastindex
                if group == 5:
                    # Count lines from the instruction before, not from the beginning of the text.
                    _, sign, guard, name, rest = found.group(1, 2, 3, 4, 5)
                    begin = found.start(4)
                    line += text.count("\n", counted, begin)
                    counted = begin
                    opcode, modifiers = opcodes.get(name) or self.opcode(name)

                    # The operands of branches and calls have a syntax of their own, and are filled in below.
                    if opcode in ("bra", "brx", "call"):
                        operands: tuple[Operand, ...] = ()
                    else:
                        operands = self.operands(rest) if rest else ()
                    condition = self.guard(guard) if guard else None
                    instruction = Instruction(
                        opcode, modifiers, operands, condition, sign == "!", line, self.location
                    )
                    code.append(instruction)

                    # The label that a branch names may come later.
                    if opcode == "call":
                        instruction.operands = self.call(rest)
                    elif opcode in ("bra", "brx"):
                        self.jump(instruction, rest, start)
                elif group == 1:
                    # A label stands for the next instruction.
                    label = self.scopes[-1].unique(found[1])
                    if label in self.function.labels:
                        raise ValueError(f"label '{found[1]}' is declared twice")
                    self.function.labels[label] = len(code)
                elif group == 6:
                    self.locate(found[6])
                elif group == 8:
                    self.directive(found[7], found[8], label, start)
                elif found[9] == "{":
                    # Names declared between these braces get the number of the scope. The outermost brace
                    # ends the body.
                    self.count += 1
                    self.scopes.append(_Scope(self.count))
                elif found[9] == "}":
                    self.scopes.pop()
                    if not self.scopes:
                        break
                start = found.end()
        except ValueError as error:
            raise self.parser.error(start, str(error), self.location) from error

        # Now all labels are known.
        self.resolve_jumps()
        return found.end()

    def opcode(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Split an instruction's name into the opcode and its modifiers, once for each name."""
        opcode, *modifiers = name.split(".")
        self.parser.opcodes[name] = opcode, tuple(modifiers)
        return self.parser.opcodes[name]

    def guard(self, text: str) -> Register:
        operand = self.name(text)
        if not isinstance(operand, Register):
            raise ValueError(f"the guard '{text}' is no register")
        return operand

    # --- operands

    def operands(self, text: str) -> tuple[Operand, ...]:
        """Return the operands of a list."""
        known = self.scopes[-1].operands
        items = _ITEM.findall(text) if "[" in text or "{" in text or "(" in text else text.split(",")
        return tuple([known.get(item) or self.operand(item) for item in map(str.strip, items)])

    def operand(self, text: str) -> Operand:
        """Return the operand that `text` spells, and keep it for the next time."""
        operand = self.declared(text) or self.spelled(text)
        self.scopes[-1].operands[text] = operand
        return operand

    def declared(self, text: str) -> Operand | None:
        """Return what a name is declared to be, in the innermost scope that knows it; None if none does."""
        for scope in reversed(self.scopes):
            operand = scope.names.get(text)
            if operand is not None:
                return operand
            kind = scope.kinds.get(text)
            if kind is None and scope.ranges:
                stem = text.rstrip("0123456789")
                kind, count = scope.ranges.get(stem, (None, 0))
                if stem == text or int(text[len(stem) :]) >= count:
                    continue
            if kind:
                register = scope.names[text] = Register(scope.unique(text))
                self.function.registers[register.name] = kind
                return register
        return self.parser.symbols.get(text)

    def spelled(self, text: str) -> Operand:
        """Return an operand by its form. The frequent forms come first."""
        # The first characters, or the whole pattern, tell these forms apart.
        if _DECIMAL.fullmatch(text):
            return Immediate(int(text))
        if text.startswith("["):
            return self.address(text)
        if _NAME.fullmatch(text):
            return self.name(text)
        if text.startswith("{"):
            return Vector(self.operands(text[1:-1]))
        if text.startswith("!") and _NAME.fullmatch(text[1:].lstrip()):
            return Negated(self.guard(text[1:].lstrip()))
        if (decimal := floating(text)) is not None:
            return Immediate(*decimal)
        if pair := _PAIR.fullmatch(text):
            return Pair(self.operand(pair[1]), self.operand(pair[2]))

        # All else is a constant expression: a number, or a variable's address plus an offset.
        symbol, value = evaluate(text, self.base)
        if not symbol:
            return Immediate(value)
        operand = self.name(symbol)
        if not isinstance(operand, Symbol):
            raise ValueError(f"'{text}' is no operand")
        return Symbol(operand.name, value)

    def address(self, text: str) -> Address:
        base: Operand
        if plain := _PLAIN_ADDRESS.fullmatch(text):
            base, offset, coordinates = self.name(plain[1]), int(plain[2] or 0), None
        elif found := _ADDRESS.fullmatch(text):
            symbol, offset = evaluate(found[1], self.base)
            base, offset = (self.name(symbol), offset) if symbol else (Immediate(offset), 0)
            coordinates = self.operands(found[2][1:-1]) if found[2] else None
        else:
            raise ValueError(f"'{text}' is no address")
        if not isinstance(base, Register | Symbol | Immediate):
            raise ValueError(f"'{text}' is no address")
        return Address(base, offset, coordinates)

    def base(self, name: str) -> int | str:
        return 32 if name == "WARP_SZ" else name

    def name(self, text: str) -> Operand:
        """Return what a name stands for: a declaration, or one of PTX's own names."""
        if operand := self.declared(text):
            return operand
        if text == "_":
            return Sink()
        if text == "WARP_SZ":
            return Immediate(32)
        if _SPECIAL.fullmatch(text):
            return Special(text)
        stem, _, selector = text.partition(".")
        if selector in ("b0", "b1", "b2", "b3", "h0", "h1"):
            return Part(self.guard(stem), selector)
        raise ValueError(f"'{text}' is not declared")

    # --- control flow

    def call(self, text: str) -> tuple[Operand, ...]:
        """Return the operands of a call, as :class:`Instruction` describes them."""
        found = _CALL.fullmatch(text)
        if found is None:
            raise ValueError("this is no call")
        returns, name, arguments, prototype = found.groups("")
        function = self.name(name)
        lists = [Vector(self.operands(text) if text.strip() else ()) for text in (returns, arguments)]
        operands = (lists[0], function, lists[1])
        return (*operands, Label(prototype)) if prototype else operands

    def jump(self, instruction: Instruction, text: str, start: int) -> None:
        """Give a branch its operands but for the label, which may come later."""
        *operands, target = [item.strip() for item in text.split(",")]
        instruction.operands = tuple(self.operand(item) for item in operands)
        self.jumps.append(_Jump(instruction, [target], [*self.scopes], start, self.location))

    def resolve_jumps(self) -> None:
        """Give each jump its label, the innermost of that name, and drop the labels that no jump names."""
        labels = self.function.labels
        targets: dict[str, int] = {}
        for jump in self.jumps:
            found = []
            for name in jump.names:
                candidates = (scope.unique(name) for scope in reversed(jump.scopes))
                label = next((candidate for candidate in candidates if candidate in labels), None)
                if label is None:
                    raise self.parser.error(jump.position, f"there is no label '{name}'", jump.location)
                found.append(label)
            if isinstance(jump.source, str):
                self.function.branch_targets[jump.source] = tuple(found)
            else:
                jump.source.operands += (Label(found[0]),)
            if isinstance(jump.source, str) or jump.source.opcode == "bra":
                targets.update((label, labels[label]) for label in found)
        self.function.labels = targets

    # --- declarations

    def directive(self, word: str, text: str, label: str, start: int) -> None:
        """Take in a directive among the instructions; `label` is the last label before it."""
        scope = self.scopes[-1]
        scope.operands.clear()  # a name may now stand for something else
        if word == "reg":
            self.registers(text)
        elif word == "branchtargets":
            names = [name.strip() for name in text.split(",")]
            self.jumps.append(_Jump(label, names, [*self.scopes], start, self.location))
        elif word not in ("pragma", "calltargets", "callprototype"):
            for variable in declared(f".{word}{text}", self.parser.symbol):
                unique = scope.unique(variable.name)
                scope.names[variable.name] = Symbol(unique)
                self.function.variables.append(replace(variable, name=unique))

    def registers(self, text: str) -> None:
        """Declare registers: `.b32 %r<9>`, `.pred p, q`, or `.v4 .f32 v` with elements `v.x` to `v.w`."""
        found = _REGISTER_TYPE.match(text)
        if found is None:
            raise ValueError("this is no declaration of registers")
        scope = self.scopes[-1]
        for item in text[found.end() :].split(","):
            declaration = _REGISTERS.fullmatch(item)
            if declaration is None:
                raise ValueError(f"'{item.strip()}' is no register")
            name, count = declaration.groups()
            if count:
                scope.ranges[name] = (found[2], int(count))
                continue
            if found[1]:
                elements = [f"{name}.{letter}" for letter in "xyzw"[: int(found[1])]]
                scope.kinds.update(dict.fromkeys(elements, found[2]))
                scope.names[name] = Vector(tuple(self.operand(element) for element in elements))
            else:
                scope.kinds[name] = found[2]

    def locate(self, text: str) -> None:
        """Take in a `.loc`, the source line of the next instructions.

        Where they were inlined, an earlier `.loc` has named the line of the call.
        """
        found = _LOC.match(text)
        if found is None:
            raise ValueError("this is no place in a source")
        file, line, column, function, *call = found.groups("0")
        if int(line) == 0 and self.location is not None:
            return  # the compiler's own code: it belongs to the line before
        caller, name = None, ""
        if function != "0":
            caller = self.locations.get(tuple(call)) or Location(
                self.file(call[0]), int(call[1]), int(call[2])
            )
            name = self.parser.debug_strings.get(function, function)
        self.location = Location(self.file(file), int(line), int(column), caller, name)
        self.locations[file, line, column] = self.location

    def file(self, number: str) -> str:
        return self.parser.module.files.get(int(number), "")


def _blank(comment: re.Match[str]) -> str:
    """Replace a comment by its line ends. A string stays."""
    text = comment[0]
    return text if text.startswith('"') else "\n" * text.count("\n")


def _debug_string(data: str) -> str:
    """Decode the bytes of a string in the debug section."""
    values = bytes(int(value) for value in data.replace(".b8", ",").split(",") if value.strip())
    return values.rstrip(b"\0").decode(errors="replace")


def _parameters(text: str) -> list[Parameter]:
    """Return the parameters in a header, one after the other in a block, as the launch lays them out."""
    parameters: list[Parameter] = []
    offset = 0
    for item in _ITEM.findall(text) if text.strip() else ():
        register = re.match(r"\s*\.reg\s+\.(\w+)\s+([%$\w]+)\s*$", item)
        if register:
            size = SIZES.get(register[1], 4)
            parameters.append(Parameter(register[2], 0, size, size, register[1]))
            continue
        words = () if "[" in item else re.findall(r"\.(\w+)", item)
        kind = next((word for word in words if word in SIZES), "")
        for variable in declared(item, str):
            offset = -(-offset // variable.align) * variable.align
            parameters.append(Parameter(variable.name, offset, variable.size, variable.align, kind=kind))
            offset += variable.size
    return parameters


def declared(text: str, resolve: Callable[[str], str]) -> Iterator[Variable]:
    """Yield the variables of one declaration: `.const .align 4 .b8 table[8] = {1, 2}, more[2]`.

    `resolve` checks a name in an initialiser and returns it.
    """
    head = _ATTRIBUTES.match(text)
    # The words after `.ptr` describe the memory that the parameter points to.
    words = dict(re.findall(r"\.(\w+)(?:\s+(\d+))?", head[0].split(".ptr")[0])) if head else {}
    space = next((word for word in words if word in SPACES), None)
    kind = next((word for word in words if word in SIZES), None)
    if head is None or space is None or kind is None:
        raise ValueError("this is no declaration of a variable")
    lanes = next((int(word[1]) for word in words if word in ("v2", "v4", "v8")), 1)
    align = int(words.get("align") or lanes * SIZES[kind])
    for item in _ITEM.findall(text[head.end() :]):
        found = _DECLARATOR.fullmatch(item)
        if found is None:
            raise ValueError(f"'{item.strip()}' declares nothing")
        name, brackets, value = found.groups()
        lengths = re.findall(r"\[([^\]]*)\]", brackets)
        shape = [evaluate(length, resolve)[1] if length.strip() else 0 for length in lengths]
        if lanes > 1:
            shape.append(lanes)
        if shape[:1] == [0] and value:
            shape[0] = len(value) - 1 if value.startswith('"') else len(_ITEM.findall(value[1:-1]))
        size = SIZES[kind] * math.prod(shape)
        variable = Variable(name, space, align, size, extern="extern" in words)
        if value:
            _initialize(variable, kind, shape, value, resolve)
        yield variable


def _initialize(
    variable: Variable, kind: str, shape: list[int], text: str, resolve: Callable[[str], str]
) -> None:
    """Fill in `init` and `relocations`. Values that are not given are zero, in each row."""
    width = SIZES[kind]
    data = bytearray(variable.size)
    # Offset -> (byte of the address, symbol, addend).
    address_bytes: dict[int, tuple[int, str, int]] = {}

    def fill(text: str, offset: int, shape: list[int]) -> None:
        if text.startswith("{"):
            step = width * math.prod(shape[1:])
            for index, item in enumerate(_ITEM.findall(text[1:-1])):
                fill(item.strip(), offset + index * step, shape[1:])
        elif text.startswith('"'):
            data[offset : offset + len(text) - 2] = text[1:-1].encode()
        elif offset + width > len(data):
            raise ValueError(f"'{variable.name}' has fewer elements than initial values")
        else:
            data[offset : offset + width] = value(text, offset).to_bytes(width, "little")

    def value(text: str, offset: int) -> int:
        if (constant := floating(text)) is not None:
            return _float_bits(*constant, width)
        if mask := _MASK.fullmatch(text):
            number = int(mask[1], 0)
            symbol, addend = evaluate(mask[2], resolve)
            address_bytes[offset] = (number.bit_length() // 8 - 1, symbol, addend)
            return 0
        symbol, number = evaluate(text, resolve)
        if symbol:
            address_bytes.update((offset + byte, (byte, symbol, number)) for byte in range(width))
            return 0
        return number & ((1 << 8 * width) - 1)

    # A list of plain bytes is the common case, and the long one.
    if width == 1 and _BYTES.fullmatch(text):
        values = bytes(map(int, text[1:-1].split(",")))
        data[: len(values)] = values
    else:
        fill(text, 0, shape or [1])
    if len(data) > variable.size:
        raise ValueError(f"'{variable.name}' has fewer elements than initial values")

    # The bytes of addresses, gathered into whole ones.
    starts = [offset for offset, (byte, _, _) in address_bytes.items() if byte == 0]
    variable.relocations = tuple((offset, *address_bytes[offset][1:]) for offset in starts)
    whole = {offset + byte: (byte, *address_bytes[offset][1:]) for offset in starts for byte in range(8)}
    if whole != address_bytes:
        raise ValueError("an initial value holds a part of an address")
    variable.init = bytes(data)


def _float_bits(bits: int, kind: str, width: int) -> int:
    """Return the pattern of a float constant in a variable of `width` bytes."""
    code = {4: "<f", 8: "<d"}[width]
    source = "<f" if kind == "f32" else "<d"
    number = struct.unpack(source, bits.to_bytes(struct.calcsize(source), "little"))[0]
    return int.from_bytes(struct.pack(code, number), "little")
