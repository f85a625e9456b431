"""Constant expressions of PTX: `-4`, `0x1fU`, `(1 << 5) | 3`, `table+16`, `generic(table)+16`.

Source: PTX ISA, section "Constants".
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable

__all__ = ["evaluate", "floating"]

_TOKEN = re.compile(
    r"\s*(?:(?P<integer>0[xX][\da-fA-F]+|0[bB][01]+|\d+)U?(?!\w)|(?P<name>[%$A-Za-z_][$\w]*)"
    r"|(?P<sign>\(\s*\.[us]64\s*\)|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%()<>&|^~!?:]))\s*"
)
_FLOAT = re.compile(
    r"(?:0[fF](?P<f32>[\da-fA-F]{8})|0[dD](?P<f64>[\da-fA-F]{16})"
    r"|(?P<decimal>[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)))"
)
_QUESTION = 0
_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<", "<=", ">", ">="),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_LEVEL = {sign: level for level, signs in enumerate(_LEVELS, 1) for sign in signs} | {"?": _QUESTION}


def _quotient(a: int, b: int) -> int:
    """Divide and round toward zero, as C does."""
    if b == 0:
        raise ValueError("division by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_BINARY: dict[str, Callable[[int, int], int]] = {
    "||": lambda a, b: bool(a or b), "&&": lambda a, b: bool(a and b),
    "|": operator.or_, "^": operator.xor, "&": operator.and_, "<<": operator.lshift, ">>": operator.rshift,
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "+": operator.add, "-": operator.sub, "*": operator.mul,
    "/": _quotient, "%": lambda a, b: a - b * _quotient(a, b),
}  # fmt: skip
_UNARY: dict[str, Callable[[int], int]] = {
    "-": operator.neg,
    "+": operator.pos,
    "~": operator.invert,
    "!": operator.not_,
}


def floating(text: str) -> tuple[int, str] | None:
    """Return (bit pattern, "f32" or "f64") of a float constant, None if `text` is none.

    A decimal constant is a double, whatever uses it.
    """
    found = _FLOAT.fullmatch(text)
    if found is None:
        return None
    if found["decimal"]:
        return int.from_bytes(struct.pack("<d", float(text)), "little"), "f64"
    kind = found.lastgroup or ""
    return int(found[kind], 16), kind


def evaluate(text: str, resolve: Callable[[str], int | str]) -> tuple[str, int]:
    """Return the (symbol, value) of an expression.

    The symbol is empty if the expression is a plain number; otherwise the value is an offset from it.
    `resolve` turns a name into the number or the symbol that it stands for. Raises ValueError.
    """
    tokens = _tokens(text)
    symbol, value = _expression(tokens, _QUESTION, resolve)
    if tokens:
        raise ValueError(f"'{tokens[-1]}' is not expected in '{text.strip()}'")
    return symbol, value


def _tokens(text: str) -> list[str]:
    """Split an expression. The first token comes last."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"'{' '.join(text.split())}' is no operand")
        tokens.append(found[found.lastgroup or 0])
        position = found.end()
    return tokens[::-1]


def _expression(tokens: list[str], level: int, resolve: Callable[[str], int | str]) -> tuple[str, int]:
    """Take an expression whose operators bind at least as tightly as `level`, and evaluate it."""
    symbol, value = _unary(tokens, resolve)
    while tokens and _LEVEL.get(tokens[-1], -1) >= level:
        sign = tokens.pop()
        if sign == "?":
            yes = _expression(tokens, _QUESTION, resolve)
            _take(tokens, ":")
            no = _expression(tokens, _QUESTION, resolve)
            symbol, value = yes if value else no
            continue
        other, right = _expression(tokens, _LEVEL[sign] + 1, resolve)
        if (symbol or other) and (sign not in "+-" or (other and (symbol or sign == "-"))):
            raise ValueError(f"an address takes only an offset, not '{sign}'")
        symbol, value = symbol or other, int(_BINARY[sign](value, right))
    return symbol, value


def _unary(tokens: list[str], resolve: Callable[[str], int | str]) -> tuple[str, int]:
    """Take a number, a name, an expression in parentheses or a unary operator with its operand."""
    # A leading zero makes a number octal, as in C.
    if not tokens:
        raise ValueError("an operand is missing")
    token = tokens.pop()
    if token[0].isdigit():
        octal = len(token) > 1 and token.isdigit() and token[0] == "0"
        return "", int(token, 8 if octal else 0)

    # `generic(x)` names the generic address of x, and is treated as x in parentheses.
    if token == "(" or (token == "generic" and tokens and tokens[-1] == "("):
        if token == "generic":
            tokens.pop()
        inside = _expression(tokens, _QUESTION, resolve)
        _take(tokens, ")")
        return inside

    # Values are Python integers of any size, so a cast cuts them to 64 bits.
    if token[0] == "(":  # a cast
        symbol, value = _unary(tokens, resolve)
        value &= 0xFFFF_FFFF_FFFF_FFFF
        return symbol, value - (1 << 64) if ".s64" in token and value >> 63 else value

    # An operator may have another one as its operand.
    if token in _UNARY:
        symbol, value = _unary(tokens, resolve)
        if symbol:
            raise ValueError(f"an address takes only an offset, not '{token}'")
        return "", int(_UNARY[token](value))

    # What is left is a name: the resolver gives a constant's value, or a variable's own name.
    if token in _LEVEL or token in ")?:":
        raise ValueError(f"'{token}' is not expected here")
    name = resolve(token)
    return (name, 0) if isinstance(name, str) else ("", name)


def _take(tokens: list[str], expected: str) -> None:
    if not tokens or tokens.pop() != expected:
        raise ValueError(f"'{expected}' is missing")
