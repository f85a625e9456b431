"""The findings of NVRTC and ptxas, as a kernel's author wants to read them: file, line, code and a caret.

NVRTC names lines of the source. ptxas names lines of the PTX, which are taken back to the source by the PTX's
own line table, to the author's line that called a wrapper rather than to the wrapper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

__all__ = ["Diagnostic", "locate", "parse", "render"]

_NVRTC = re.compile(
    r"(?:(?P<file>[^\s(][^(]*)\((?P<line>\d+)\)|At end of source)"
    r": (?P<severity>catastrophic error|error|warning|note|remark)(?: #[\w-]+)?: (?P<text>.+)"
)
_CARET = re.compile(r"\s*\^\s*")
_PTXAS = re.compile(
    r"ptxas (?:application ptx input, line (?P<line>\d+); )?\s*(?P<severity>error|fatal|warning|info)\s*: (?P<text>.+)"
)
_ADVICE = re.compile(r"\(C\d+\) ")  # marks an info of ptxas that should be read, such as serialised wgmma
_WITHIN = re.compile(r" in (?:around )?line (\d+)")
_LOC = re.compile(r"\s*\.loc\s+(\d+) (\d+) (\d+)(?:.*\binlined_at (\d+) (\d+) (\d+))?")
_FILE = re.compile(r'\s*\.file\s+(\d+) "(.*)"')


@dataclass(frozen=True)
class Diagnostic:
    """One finding. `line` and `column` count from 1, the column in bytes; 0 where the compiler named none."""

    severity: str  # "error", "warning", or "note", which belongs to the finding before it
    text: str
    file: str = ""
    line: int = 0
    column: int = 0
    details: tuple[str, ...] = ()


def parse(log: str, ptx: str = "", home: str = "") -> list[Diagnostic]:
    """Return the findings in a program log, each once, in the log's order.

    `ptx` is the text that ptxas read, `home` the file in which its findings are looked for first.
    """
    found: list[Diagnostic] = []
    for line in log.replace("\0", "\n").splitlines():
        if match := _NVRTC.fullmatch(line):
            severity, text = match["severity"].removeprefix("catastrophic "), match["text"].strip()
            found.append(Diagnostic(severity, text, match["file"] or "", int(match["line"] or 0)))
        elif match := _PTXAS.fullmatch(line):
            found += _from_ptxas(match, ptx, home)
        elif found and _CARET.fullmatch(line):
            column = line.index("^") - 1  # the log indents what it quotes by two
            found[-1] = replace(found[-1], column=column)
        elif (
            found and line.startswith(" " * 10) and ("detected during" in line or "instantiation of" in line)
        ):
            found[-1] = replace(found[-1], details=(*found[-1].details, line.strip()))
    once: dict[tuple[object, ...], Diagnostic] = {}
    for each in found:
        once.setdefault((each.severity, each.text, each.file, each.line), each)
    return list(once.values())


def _from_ptxas(match: re.Match[str], ptx: str, home: str) -> list[Diagnostic]:
    severity = {"fatal": "error", "info": "warning"}.get(match["severity"], match["severity"])
    text = match["text"].strip()
    chatter = match["severity"] == "info" and not _ADVICE.match(text)
    if chatter or text == "Ptx assembly aborted due to errors":
        return []
    within = _WITHIN.search(text)
    number = int(match["line"] or (within[1] if within else 0))
    file, line, column = locate(ptx, number, home)
    if not line:
        return [Diagnostic(severity, f"ptxas: {text}")]
    if within:
        text = _WITHIN.sub("", text, count=1)
    quoted = ptx.splitlines()[number - 1].strip()
    return [Diagnostic(severity, f"ptxas: {text}", file, line, column, (f"PTX: {quoted}",))]


def locate(ptx: str, number: int, home: str = "") -> tuple[str, int, int]:
    """Return the file, line and column behind line `number` of the PTX; ("", 0, 0) when it names none.

    In a chain of inlined calls, the innermost call in the file `home` counts, otherwise the outermost one.
    """
    lines = ptx.splitlines()
    files = {int(match[1]): match[2] for line in lines if (match := _FILE.match(line))}
    entries = [match for line in lines[:number] if (match := _LOC.match(line))]
    if not entries:
        return "", 0, 0
    chain = [entries[-1]]
    while chain[-1][4]:  # the call's own entry stands further up
        call = chain[-1].group(4, 5, 6)
        above = [entry for entry in entries[: entries.index(chain[-1])] if entry.group(1, 2, 3) == call]
        if not above:
            break
        chain.append(above[-1])
    frames = [(files.get(int(entry[1]), ""), int(entry[2]), int(entry[3])) for entry in chain]
    return next((frame for frame in frames if frame[0] == home), frames[-1])


def render(found: Iterable[Diagnostic], sources: Mapping[str, str], limit: int = 5) -> str:
    """Return the findings at the first `limit` places as text, with the source lines at fault.

    `sources` maps file names to their text.
    """
    places = [list(group) for _, group in groupby(found, lambda each: (each.file, each.line, each.column))]
    parts = [_render(place, sources.get(place[0].file, "")) for place in places[:limit]]
    if len(places) > limit:
        parts.append(f"... and {len(places) - limit} more")
    return "\n\n".join(parts)


def _render(place: list[Diagnostic], source: str) -> str:
    """Return the findings at one place, then its line below the line before it."""
    file, line, column = place[0].file, place[0].line, place[0].column
    prefix = f"{file}:{line}: " if line else ""
    out = list(dict.fromkeys(f"{prefix}{each.severity}: {each.text}" for each in place))
    lines = source.splitlines()
    if 0 < line <= len(lines):
        gutter = len(str(line))
        out += [f"  {number:>{gutter}} | {lines[number - 1]}" for number in range(max(1, line - 1), line + 1)]
        if column:
            before = lines[line - 1].encode()[: column - 1].decode(errors="ignore")
            out.append(f"  {'':>{gutter}} | {''.join(sign if sign == chr(9) else ' ' for sign in before)}^")
    return "\n".join([*out, *dict.fromkeys(f"    {detail}" for each in place for detail in each.details)])
