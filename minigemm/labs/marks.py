"""One text for the student's copy and the solution: solutions stand between marks, in CUDA C++ (`//`) and in
Python (`#`).

    // BEGIN SOLUTION what is to be done
    the lines of the solution
    // INSTEAD
    the lines that the student's copy has there, below its TODO; may be left out with the mark above
    // END SOLUTION

The student's copy has `// TODO (roughly N lines): what is to be done` in their place. In Python, where no
other lines stand instead, it raises NotImplementedError with the same words: a notebook that is run stops at
what is still to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

__all__ = ["code_lines", "marked", "solution", "student"]

_MARK = re.compile(
    r"(?P<indent>\s*)(?P<sign>//|#) (?P<mark>BEGIN SOLUTION|INSTEAD|END SOLUTION)\b ?(?P<title>.*)"
)
_MARKS = "the marks are BEGIN SOLUTION, perhaps INSTEAD, and END SOLUTION"


def student(text: str) -> str:
    """Make the student's copy: no line of a solution is left."""
    return _rendered(text, _todo)


def solution(text: str) -> str:
    """Make the solution, without the marks."""
    return _rendered(text, lambda indent, sign, title, lines, instead: lines)


def marked(title: str, solution: Iterable[str], instead: Iterable[str], sign: str = "//") -> list[str]:
    """Mark one part; returns its lines, indented like the solution."""
    lines = list(solution)
    indent = next((line[: len(line) - len(line.lstrip())] for line in lines if line.strip()), "")
    return [
        f"{indent}{sign} BEGIN SOLUTION {title}",
        *lines,
        f"{indent}{sign} INSTEAD",
        *instead,
        f"{indent}{sign} END SOLUTION",
    ]


def code_lines(lines: Iterable[str], sign: str) -> int:
    """Count the lines that are neither empty nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith(sign) for line in lines)


def _todo(indent: str, sign: str, title: str, lines: list[str], instead: list[str] | None) -> list[str]:
    count = code_lines(lines, sign)
    todo = f"{indent}{sign} TODO (roughly {count} line{'s' * (count != 1)}): {title}"
    if instead is None:
        instead = [f'{indent}raise NotImplementedError("Still to do: {title}")'] if sign == "#" else []
    return [todo, *instead]


def _rendered(text: str, render: Callable[[str, str, str, list[str], list[str] | None], list[str]]) -> str:
    """Replace every marked part by what `render` makes of it. Raises ValueError where the marks do not fit
    together."""
    # `begun` is the mark that opened a part; `lines` and `instead` are the two halves of that part.
    out: list[str] = []
    begun: re.Match[str] | None = None
    lines: list[str] = []
    instead: list[str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        match = _MARK.fullmatch(line)
        mark = match["mark"] if match else ""

        # A mark out of place would drop lines silently, so it is an error.
        if match:
            out_of_place = (mark == "BEGIN SOLUTION") != (begun is None)
            repeated = mark == "INSTEAD" and instead is not None
            another_language = begun is not None and begun["sign"] != match["sign"]
            if out_of_place or repeated or another_language:
                raise ValueError(f"line {number}: {line.strip()!r} does not belong here: {_MARKS}")

        # The marks go; every other line is kept in the text or in the open half of a part.
        if mark == "BEGIN SOLUTION":
            begun, lines, instead = match, [], None
        elif mark == "INSTEAD":
            instead = []
        elif mark == "END SOLUTION" and begun is not None:
            out += render(begun["indent"], begun["sign"], begun["title"], lines, instead)
            begun = None
        else:
            (out if begun is None else lines if instead is None else instead).append(line)

    # The lines of a part that never ends would be lost, too.
    if begun is not None:
        raise ValueError(f"{begun[0].strip()!r} has no END SOLUTION")
    return "\n".join(out)
