"""Calls that leave the GPU: printf and failed assertions."""

from __future__ import annotations

import ctypes
import re

import numpy as np

from ..ptx.module import Symbol
from ..translate.lower import Site
from .block import Block, Handler, Unit

_FORMAT = re.compile(r"%([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?(hh|h|ll|l|z|j|t)?([diouxXeEfFgGaAcsp%])")


class HostCalls(Unit):
    """The calls of external functions. `vprintf` and `__assertfail` are served, others are faults."""

    def serves(self) -> dict[str, Handler]:
        return {"call": self.call}

    def call(self, site: Site, ids: np.ndarray) -> None:
        """`call (result), name, (arguments)`; threads have stored the arguments in their local memory."""
        block = self.block
        name = _symbol(site.instruction.operands[1])
        arguments = [_symbol(a) for a in site.arguments[1:]]
        if name == "vprintf":
            for t in ids.tolist():
                form, data = (self._slot(t, a) for a in arguments)
                print(_format(block, _string(block, form), data), end="")
                self._return(site, t, 0)
            block.go(ids)
        elif name == "__assertfail":
            message, file, line, function = (self._slot(int(ids[0]), a) for a in arguments[:4])
            where = f"{_string(block, file)}:{line & 0xFFFFFFFF}, {_string(block, function)}"
            raise block.fault(f"assertion failed: {_string(block, message)} ({where})", site, ids)
        else:
            raise block.fault(f"call of the external function {name}, which is not emulated", site, ids)

    def _slot(self, thread: int, symbol: str) -> int:
        """Return the 8 bytes that the thread stored for a parameter of the call."""
        offset = self.block.launch.program.local_places[symbol]
        return int(self.block.contexts[thread, offset : offset + 8].view(np.int64)[0])

    def _return(self, site: Site, thread: int, value: int) -> None:
        """Store the call's result where the thread will look for it."""
        for operand in site.results:
            place = self.block.launch.program.local_places.get(_symbol(operand))
            if place is not None:
                self.block.contexts[thread, place : place + 4].view(np.int32)[0] = value


def _symbol(operand: object) -> str:
    """Return the name of an operand that is a symbol, else ""."""
    return operand.name if isinstance(operand, Symbol) else ""


def _string(block: Block, address: int) -> str:
    """Return the C string at a global address."""
    if not address:
        return "(null)"
    for base, size, _, _ in block.launch.memory.ranges:
        if base <= address < base + size:
            return ctypes.string_at(address, base + size - address).split(b"\0")[0].decode(errors="replace")
    return f"<{address:#x}>"


def _format(block: Block, text: str, data: int) -> str:
    """C's printf over CUDA's argument buffer: each argument at its natural alignment, floats as doubles."""
    at = data

    def take(size: int) -> bytes:
        nonlocal at
        at = -(-at // size) * size
        raw = ctypes.string_at(at, size)
        at += size
        return raw

    def one(match: re.Match[str]) -> str:
        flags, width, precision, length, kind = match.groups()
        if kind == "%":
            return "%"

        # Width and precision may be arguments too.
        width = str(int.from_bytes(take(4), "little", signed=True)) if width == "*" else width or ""
        precision = str(int.from_bytes(take(4), "little", signed=True)) if precision == "*" else precision
        spec = f"%{flags}{width}" + (f".{precision}" if precision is not None else "")

        if kind in "eEfFgGaA":
            value = float(np.frombuffer(take(8), np.float64)[0])
            return value.hex() if kind in "aA" else (spec + kind) % value
        if kind == "s":
            return (spec + "s") % _string(block, int.from_bytes(take(8), "little"))
        if kind == "p":
            return f"{int.from_bytes(take(8), 'little'):#x}"
        size = 8 if length in ("l", "ll", "z", "j", "t") else 4
        number = int.from_bytes(take(size), "little", signed=kind in "di")
        return chr(number & 255) if kind == "c" else (spec + {"u": "d", "i": "d"}.get(kind, kind)) % number

    return _FORMAT.sub(one, text)
