"""Calls are spliced into the kernel, so that the rest of the emulator sees one function without a stack.

Source: PTX ISA, section "Abstracting the ABI".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import EmulatorError, Location, Unsupported
from .module import (
    Address,
    Function,
    Instruction,
    Label,
    Module,
    Negated,
    Operand,
    Pair,
    Parameter,
    Part,
    Register,
    Symbol,
    Variable,
    Vector,
)

__all__ = ["inline_calls"]


def inline_calls(module: Module, entry_name: str) -> Function:
    """Return the kernel `entry_name` with every call spliced in; the kernel itself if it calls nothing.

    Each call is an instance of its own: its registers, labels and local variables get names such as `%r1#2`.
    Shared, global and constant variables stay one for all instances. The variables that pass arguments become
    local ones. Functions without a body (`vprintf`, `malloc`) stay calls. An instruction's location leads
    through the calls up to the kernel.

    Raises ValueError for a name that is no kernel, Unsupported for recursion and for calls through a pointer.
    """
    entry = module.functions.get(entry_name)
    if entry is None or not entry.entry or not entry.defined:
        kernels = [name for name, function in module.functions.items() if function.entry]
        raise ValueError(f"kernel: expected one of {kernels}, got {entry_name!r}")
    if not any(instruction.opcode == "call" for instruction in entry.code):
        return entry
    return _Inliner(module, entry).result


@dataclass(slots=True)
class _Instance:
    """One call of a function, or the kernel itself with an empty `tag`.

    `symbols` maps the function's parameters and variables to their names in the kernel. `at` is the place of
    the call, `chain` the functions that led to it.
    """

    function: Function
    tag: str
    symbols: dict[str, str]
    at: Location | None
    chain: tuple[str, ...]
    operands: dict[int, Operand] = field(default_factory=dict)
    locations: dict[int, Location] = field(default_factory=dict)

    def copy(self, instruction: Instruction) -> Instruction:
        """Return the instruction as it is in the kernel.

        There a `.param` variable that passes an argument is a local one.
        """
        modifiers = instruction.modifiers
        of_parameter = any(modifier.startswith("param") for modifier in modifiers)
        if of_parameter and not self.reads_parameter(instruction):
            modifiers = tuple("local" if modifier.startswith("param") else modifier for modifier in modifiers)
        return Instruction(
            instruction.opcode,
            modifiers,
            tuple([self.operand(operand) for operand in instruction.operands]),
            instruction.guard and Register(instruction.guard.name + self.tag),
            instruction.negated,
            instruction.line,
            self.location(instruction.location),
        )

    def reads_parameter(self, instruction: Instruction) -> bool:
        """Return whether it is about a parameter of the kernel, not a variable that passes an argument."""
        bases = [operand.base for operand in instruction.operands if isinstance(operand, Address)]
        return not self.tag and not any(
            isinstance(base, Symbol) and base.name in self.symbols for base in bases
        )

    def operand(self, operand: Operand) -> Operand:
        """Return an operand as it is in the kernel."""
        found = self.operands.get(id(operand))
        if found is None:
            found = self.operands[id(operand)] = self.renamed(operand)
        return found

    def renamed(self, operand: Operand) -> Any:
        """Return an operand of the same kind with the names of the kernel."""
        match operand:
            case Register(name) | Label(name):
                return type(operand)(name + self.tag)
            case Symbol(name, offset):
                return Symbol(self.symbols.get(name, name), offset)
            case Address(base, offset, coordinates):
                return Address(
                    self.renamed(base), offset, coordinates and tuple(map(self.renamed, coordinates))
                )
            case Vector(items):
                return Vector(tuple(map(self.renamed, items)))
            case Negated(register):
                return Negated(self.renamed(register))
            case Pair(first, second):
                return Pair(self.renamed(first), self.renamed(second))
            case Part(register, selector):
                return Part(self.renamed(register), selector)
        return operand

    def location(self, location: Location | None) -> Location | None:
        """Return a location with the place of the call at its outer end."""
        if location is None or self.at is None:
            return location or self.at
        found = self.locations.get(id(location))
        if found is None:
            if location.inlined_at:
                found = replace(location, inlined_at=self.location(location.inlined_at))
            else:
                found = replace(location, inlined_at=self.at, function=self.function.name)
            self.locations[id(location)] = found
        return found


class _Inliner:
    """The kernel under construction."""

    #: Instructions; beyond it the native code would never be ready.
    LIMIT = 1_000_000

    def __init__(self, module: Module, entry: Function):
        self.module = module
        self.result = replace(entry, registers={}, code=[], labels={}, branch_targets={}, variables=[])
        self.owners = {variable.name: "" for variable in module.variables}
        self.count = 0
        self.splice(_Instance(entry, "", {}, None, (entry.name,)))

    def splice(self, instance: _Instance) -> None:
        """Append the instance's code. A return branches to its end."""
        function, tag, result = instance.function, instance.tag, self.result
        for variable in function.variables:
            self.variable(variable, instance)
        result.registers.update((name + tag, kind) for name, kind in function.registers.items())
        for table, targets in function.branch_targets.items():
            result.branch_targets[table + tag] = tuple(target + tag for target in targets)

        # places[i] is where instruction i of the function has come to.
        places = []
        for instruction in function.code:
            places.append(len(result.code))
            copy = instance.copy(instruction)
            if copy.opcode == "call":
                self.call(copy, instance)
            elif copy.opcode == "ret" and tag:
                result.code.append(replace(copy, opcode="bra", operands=(Label("return" + tag),)))
            else:
                result.code.append(copy)
        places.append(len(result.code))
        result.labels.update((label + tag, places[index]) for label, index in function.labels.items())
        if tag:
            result.labels["return" + tag] = len(result.code)
        if len(result.code) > self.LIMIT:
            raise Unsupported(
                f"the calls of {result.name} unfold to more than {self.LIMIT:,} instructions", instance.at
            )

    def variable(self, variable: Variable, instance: _Instance) -> None:
        """Declare a variable in the kernel: for each instance anew, or once if it outlives the call."""
        if variable.space in ("local", "param"):
            name = variable.name + instance.tag
            self.result.variables.append(replace(variable, name=name, space="local"))
        else:
            owner = self.owners.setdefault(variable.name, instance.function.name)
            own = owner == instance.function.name
            name = variable.name if own else f"{variable.name}#{instance.function.name}"
            if all(known.name != name for known in self.result.variables):
                self.result.variables.append(replace(variable, name=name))
        instance.symbols[variable.name] = name

    def call(self, call: Instruction, caller: _Instance) -> None:
        """Splice in a call: arguments, code, results; all of it behind a branch if the call has a guard."""
        # Only the body of a function known by name can be spliced in; functions without one stay calls.
        returns, function, arguments, *_ = call.operands
        if not isinstance(function, Symbol):
            raise Unsupported(
                "a call through a pointer: only functions called by their name are known", call.location
            )
        callee = self.module.functions[function.name]
        if not callee.defined:
            self.result.code.append(call)
            return

        # A function that calls itself would be spliced in without end.
        if callee.name in caller.chain:
            circle = (*caller.chain[caller.chain.index(callee.name) :], callee.name)
            raise Unsupported(f"recursion: {' calls '.join(circle)}", call.location)

        # The number keeps the names of this instance apart from those of all others.
        self.count += 1
        instance = _Instance(callee, f"#{self.count}", {}, call.location, (*caller.chain, callee.name))
        skip = "skip" + instance.tag

        # A branch around the whole call replaces its guard.
        if call.guard:
            self.result.code.append(
                replace(call, opcode="bra", operands=(Label(skip),), negated=not call.negated)
            )

        # Matching comes first: the callee's code needs the names that its parameters get.
        passed = self.passed(callee.parameters, arguments, instance, call)
        returned = self.passed(callee.returns, returns, instance, call)
        self.result.code += [_move(call, inner, outer, kind) for inner, outer, kind in passed]
        self.splice(instance)
        self.result.code += [_move(call, outer, inner, kind) for inner, outer, kind in returned]

        # The branch leads to the instruction after the call.
        if call.guard:
            self.result.labels[skip] = len(self.result.code)

    def passed(
        self, parameters: list[Parameter], arguments: Operand, instance: _Instance, call: Instruction
    ) -> list[tuple[Operand, Operand, str]]:
        """Match parameters with arguments. Returns each (inner, outer, type) to copy.

        A `.param` variable of the caller becomes the callee's own and needs no copy.
        """
        items = arguments.items if isinstance(arguments, Vector) else ()
        if len(items) != len(parameters):
            message = f"{instance.function.name} takes or returns {len(parameters)} values, not {len(items)}"
            raise EmulatorError(f"PTX line {call.line}: {message}", call.location)
        copies: list[tuple[Operand, Operand, str]] = []
        for parameter, item in zip(parameters, items, strict=True):
            if parameter.register:
                copies.append((Register(parameter.name + instance.tag), item, parameter.register))
            elif isinstance(item, Symbol):
                instance.symbols[parameter.name] = item.name
            else:
                self.variable(Variable(parameter.name, "param", parameter.align, parameter.size), instance)
                copies.append((Symbol(parameter.name + instance.tag), item, f"b{8 * parameter.size}"))
        return copies


def _move(call: Instruction, target: Operand, source: Operand, kind: str) -> Instruction:
    """Return the instruction that copies an argument or a result. One side may be a local variable."""

    def instruction(opcode: str, modifiers: tuple[str, ...], *operands: Operand) -> Instruction:
        return Instruction(opcode, modifiers, operands, line=call.line, location=call.location)

    if isinstance(target, Symbol):
        return instruction("st", ("local", kind), Address(target), source)
    if isinstance(source, Symbol):
        return instruction("ld", ("local", kind), target, Address(source))
    return instruction("mov", (kind,), target, source)
