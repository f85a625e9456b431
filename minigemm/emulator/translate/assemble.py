"""The LLVM module of a kernel, put together from templates.

The files *.ll of this folder are LLVM IR in which ``$NAME`` stands for a number that Python knows: an offset
of context.py, a field of shadow.py. `thread.ll` takes in the code of the kernel, `shadow.ll` holds the checks
of shared memory, `runtime.ll` the arithmetic that LLVM has no instruction for. LLVM drops what a kernel does
not call.
"""

from __future__ import annotations

import re
import string
import struct
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from .. import context
from . import shadow
from .builder import BITS, Builder

__all__ = ["module_text"]


def module_text(builder: Builder, resume: list[str]) -> str:
    """Return the module of the kernel that `builder` has written.

    `resume` are the labels where threads go on, in the order of their numbers, from 1.
    """
    kernel = {
        "REGISTERS": "\n".join(
            f"  {builder.slot(name)} = alloca i{BITS[kind]}"
            for name, kind in builder.function.registers.items()
        ),
        "PLACES": " ".join(f"i32 {n}, label %{label}" for n, label in enumerate(resume, 1)),
        "BODY": "\n".join(builder.lines),
    }
    return _filled("thread.ll", kernel) + _library()


@cache
def _library() -> str:
    """Return the part that is the same for every kernel."""
    return "\n".join([_filled("shadow.ll"), _filled("runtime.ll"), *_intrinsics(), _e4m3_table()])


class _Template(string.Template):
    idpattern = "[A-Z][A-Z0-9_]*"
    flags = re.RegexFlag(0)  # and no small letters


def _filled(name: str, more: Mapping[str, str] | None = None) -> str:
    """Return a template of this folder with its names replaced."""
    offsets = {name: value for name, value in vars(context).items() if isinstance(value, int)}
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    return _Template(text).substitute(offsets, **shadow.NAMES, **(more or {}))


def _intrinsics() -> list[str]:
    """Declare the intrinsics that arithmetic.py calls, with all their types."""
    floats = (("float", 32), ("double", 64))
    return [
        *(
            f"declare {t} @llvm.{name}.f{n}({t})"
            for name in ("roundeven", "trunc", "floor", "ceil")
            for t, n in floats
        ),
        *(
            f"declare i{n} @llvm.fpto{s}i.sat.i{n}.f{m}({t})"
            for s in "su"
            for n in (8, 16, 32, 64)
            for t, m in floats
        ),
        *(f"declare i{n} @llvm.{name}.i{n}(i{n})" for name in ("bitreverse", "ctpop") for n in (32, 64)),
        *(f"declare i{n} @llvm.ctlz.i{n}(i{n}, i1)" for n in (32, 64)),
        *(
            f"declare i{n} @llvm.{name}.sat.i{n}(i{n}, i{n})"
            for name in ("sadd", "ssub")
            for n in (16, 32, 64)
        ),
        *(f"declare i1 @llvm.is.fpclass.f{n}({t}, i32)" for t, n in floats),
    ]


def _e4m3_table() -> str:
    """Define a table of every e4m3 pattern as an f16 pattern."""
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
