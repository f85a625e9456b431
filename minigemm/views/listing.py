"""Kernel text, always from the file itself: a stage, a part of it by name, the changes between two, and the
code that the compiler made of it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from html import escape
from itertools import zip_longest
from pathlib import Path

from ..compiler import diagnostics
from ..compiler.inspection import Inspection, Instruction
from ..kernels import stage_named
from .shapes import amount, label
from .style import BLUE, GREEN, GREY, ORANGE, Html, Picture, drawn, figure

__all__ = ["code", "diff", "loop", "loop_mix", "lowered"]

_CELL = "padding:0 .7em;white-space:pre;border:none;text-align:left;background:none;max-width:none"
_TABLE = "border-collapse:collapse;font:12px/1.4 monospace;border:none;margin:0"
_NUMBER = f"{_CELL};opacity:.5;text-align:right"
_MARKED = "background:rgba(230,159,0,.2)"

_ROLES = {"arithmetic": GREEN, "conversion": ORANGE, "memory": BLUE, "address and control": GREY}
_OPCODES = {
    "arithmetic": "FFMA FADD FMUL QGMMA",
    "conversion": "F2FP HADD2",
    "memory": "LDG LDS STG STS STSM UTMALDG UTMASTG",
}
_ROLE_OF = {opcode: role for role, opcodes in _OPCODES.items() for opcode in opcodes.split()}
_NO_HEAD = ("#", "constexpr", "typedef", "static_assert", "extern __shared__")  # begin no function or struct


def _file(stage: str | Path, argument: str = "stage") -> Path:
    """Find a stage by its name, a header that stands beside the stages, or any file."""
    if not str(stage).endswith((".cu", ".cuh")):
        try:
            return Path(stage_named(str(stage)).stage.source)
        except ValueError as error:
            raise ValueError(f"{argument}: {str(error).partition(': ')[2]}") from None
    path = Path(stage)
    beside = Path(stage_named("1").stage.source).parent / path.name
    path = beside if not path.is_file() and path.name == str(stage) else path
    if not path.is_file():
        got = f"{str(stage)!r}, which is not a file"
        raise ValueError(f"{argument}: expected the name of a stage or a CUDA file, got {got}")
    return path


def _region(lines: list[str], name: str) -> range:
    """Find the lines of a function or struct, with the comment above it. ValueError when there is none of
    this name."""
    head = re.compile(rf"^(?!//|\s).*\b{re.escape(name)}\b.*[({{;]")
    for i, line in enumerate(lines):
        if head.match(line) and not line.startswith(_NO_HEAD):
            first = i
            while first and lines[first - 1].startswith(("//", "template")):
                first -= 1
            last = i
            while lines[last].rstrip() not in ("}", "};") and not (last == i and line.rstrip().endswith("}")):
                last += 1
            return range(first, last + 1)
    raise ValueError(f"part: no function or struct {name!r} begins a line of this file")


def _ink(line: str) -> str:
    """Turn a line into HTML; its comment stands back."""
    text, slashes, comment = line.partition("//")
    if not slashes:
        return escape(text)
    return f'{escape(text)}<span style="opacity:.6;font-style:italic">{escape(slashes + comment)}</span>'


def code(stage: str | Path, part: str = "", mark: str = "") -> Html:
    """Show a stage's file, or one function or struct of it, with its line numbers.

    Args:
        stage: the stage's name, a header ("ptx.cuh"), or the path of a file.
        part: the name of a function or struct; "" is the whole file.
        mark: lines that read so are highlighted; "" marks none.

    Raises ValueError for a stage or part that is not there, and for a mark that no shown line has.
    """
    path = _file(stage)
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = _region(lines, part) if part else range(len(lines))
    marked = {i for i in shown if mark and mark in lines[i]}
    if mark and not marked:
        raise ValueError(f"mark: no line of what is shown reads {mark!r}")
    rows = "".join(
        f'<tr style="{_MARKED if i in marked else "background:none"}"><td style="{_NUMBER}">{i + 1}</td>'
        f'<td style="{_CELL}">{_ink(lines[i]) or " "}</td></tr>'
        for i in shown
    )
    title = path.name + (f": {part}" if part else "")
    html = f'<div style="overflow-x:auto">{_heading(title)}<table style="{_TABLE}">{rows}</table></div>'
    text = [f"{'>' if i in marked else ' '}{i + 1:3}  {lines[i]}" for i in shown]
    return Html(html, "\n".join([title, *text]))


def diff(old: str | Path, new: str | Path, context: int = 3) -> Html:
    """Show the changes from one stage, or file, to another: removed lines with -, added with +, and `context`
    equal lines around them."""
    # Lines that occur often, such as a lone brace, are compared like all others.
    before, after = _file(old, "old"), _file(new, "new")
    left = before.read_text(encoding="utf-8").splitlines()
    right = after.read_text(encoding="utf-8").splitlines()
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)

    # Every row is made twice, as HTML and as plain text.
    rows, text, added, removed = [], [], 0, 0
    for number, group in enumerate(matcher.get_grouped_opcodes(context)):
        if number:
            rows.append(_row("", "", "...", "opacity:.5"))
            text.append("...")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                for i, j in zip(range(i1, i2), range(j1, j2), strict=True):
                    rows.append(_row(str(j + 1), "", right[j], ""))
                    text.append(f"  {left[i]}")
                continue
            removed, added = removed + i2 - i1, added + j2 - j1
            rows += [_row("", "-", line, "background:rgba(213,94,0,.16)") for line in left[i1:i2]]
            rows += [_row(str(j + 1), "+", right[j], "background:rgba(0,114,178,.14)") for j in range(j1, j2)]
            text += [f"- {line}" for line in left[i1:i2]] + [f"+ {line}" for line in right[j1:j2]]

    # A file and its edited copy share a name, so the heading tells them from two stages.
    names = f"{before.name}, edited" if before.name == after.name else f"{before.name} -> {after.name}"
    changes = f"{amount(added, 'line')} added, {removed} removed" if rows else "no line differs"
    title = f"{names}: {changes}"
    html = (
        f'<div style="overflow:auto;max-height:36em">{_heading(title)}'
        f'<table style="{_TABLE}">{"".join(rows)}</table></div>'
    )
    return Html(html, "\n".join([title, *text]))


def lowered(inspection: Inspection, line: str) -> Html:
    """Show the PTX and, beside it, the SASS of the source lines that contain `line` ("" is every line):
    opcodes counted, then in full.

    PTX belongs to the line of the stage's file that called a wrapper, not to the wrapper. The two columns are
    in the order of their own programs: the assembler reorders, so rows do not match. ValueError when no line
    of the source contains `line`.
    """
    source = inspection.source.splitlines()
    wanted = {number for number, text in enumerate(source, 1) if line in text}
    if not wanted:
        raise ValueError(f"line: {inspection.path.name} has no line that reads {line!r}")
    ptx = [
        " ".join(text.split())
        for number, text in enumerate(inspection.ptx.splitlines(), 1)
        if re.match(r"\s*(@!?%p\d+\s+)?[a-z]\w*[. ;].*;|\s*ret;", text)
        and diagnostics.locate(inspection.ptx, number, inspection.path.name)[1] in wanted
    ]
    sass = [f"{each.text};" for each in inspection.instructions if each.line in wanted]
    title = f"{inspection.path.name}, {amount(len(wanted), 'line')}"
    if len(wanted) == 1:
        title = f"{inspection.path.name}: {source[min(wanted) - 1].strip()}"

    # Two columns: the opcodes, most frequent first (equals in the order in which they came), then every
    # instruction.
    heads = [f"PTX, {len(ptx)} instructions", f"SASS, {len(sass)} instructions"]
    counts = []
    for part in (ptx, sass):
        # behind a predicate, the opcode is the second word
        opcodes = Counter(text.split(maxsplit=2)[text.startswith("@")].rstrip(";") for text in part)
        counts.append([f"{n:>3}  {opcode}" for opcode, n in opcodes.most_common()])
    pairs = list(zip_longest(ptx, sass, fillvalue=""))

    def cells(pair: Iterable[str], style: str = "") -> str:
        each = (f'<td style="{_CELL};vertical-align:top;{style}">{escape(x)}</td>' for x in pair)
        return f"<tr style='background:none'>{''.join(each)}</tr>"

    body = cells(heads, "font-weight:bold") + cells("\n".join(count) for count in counts)
    html = (
        f'<div style="overflow-x:auto">{_heading(title)}<table style="{_TABLE}">{body}</table>'
        f"<details><summary>every instruction, in program order</summary>"
        f'<div style="overflow:auto;max-height:30em"><table style="{_TABLE}">{"".join(map(cells, pairs))}</table></div>'
        "</details></div>"
    )
    width = max(len(text) for text in [heads[0], *ptx]) + 2
    told = [f"{left:{width}}{right}" for left, right in zip_longest(*counts, fillvalue="")]
    full = [f"{left:{width}}{right}".rstrip() for left, right in pairs]
    return Html(html, "\n".join([title, f"{heads[0]:{width}}{heads[1]}", *told, *full]))


def loop(inspection: Inspection) -> tuple[Instruction, ...]:
    """Find the loop in the SASS that holds the most FFMA, among those without a loop of FFMA inside: from its
    label to the branch back.

    ValueError when no loop has any.
    """
    loops: list[range] = []
    places: dict[str, int] = {}  # of labels
    for i, each in enumerate(inspection.instructions):
        if each.label:
            places[each.label] = i
        back = re.search(r"BRA(?:\.\w+)*\s.*`\((.+?)\)", each.text)
        if back and back[1] in places:
            loops.append(range(places[back[1]], i + 1))

    # Slow paths stand behind the last loop and jump back into it: they begin inside a loop and end outside.
    computing = {found: _ffma(inspection.instructions[found.start : found.stop]) for found in loops}
    computing = {
        found: count
        for found, count in computing.items()
        if count and not any(other.start < found.start < other.stop < found.stop for other in loops)
    }
    innermost = [
        found
        for found in computing
        if not any(found.start <= other.start and other.stop < found.stop for other in computing)
    ]
    if not innermost:
        raise ValueError(f"inspection: no loop of {inspection.kernel.name} computes with FFMA")
    best = max(innermost, key=computing.__getitem__)
    return tuple(inspection.instructions[best.start : best.stop])


@drawn
def loop_mix(inspection: Inspection) -> Picture:
    """Draw the SASS instructions that one pass of the inner loop issues, by opcode, coloured by what they are
    for."""
    # An opcode with no role of its own counts as address and control.
    body = loop(inspection)
    roles: dict[str, Counter[str]] = {role: Counter() for role in _ROLES}
    for each in body:
        roles[_ROLE_OF.get(each.opcode, "address and control")][each.opcode] += 1

    # The opcodes of a role stand together, the most frequent first.
    rows = sum(map(len, roles.values()))
    made, axes = figure(8, 0.95 + 0.26 * rows)
    opcodes: list[str] = []
    for role, found in roles.items():
        if found:
            names, counts = zip(*found.most_common(), strict=True)
            ys = range(len(opcodes), len(opcodes) + len(names))
            total = f"{role}: {sum(counts)}"
            axes.barh(ys, counts, color=_ROLES[role], height=0.72, label=total)
            for y, n in zip(ys, counts, strict=True):
                label(axes, n + 0.3, y, str(n), ha="left")
            opcodes += names

    # The first role is at the top.
    axes.set(ylim=(rows - 0.4, -0.6), xlabel="instructions a thread in one pass of the loop")
    axes.set_yticks(range(rows), opcodes, family="monospace", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right")

    # The picture's text also has the counts by role.
    said = f"{inspection.kernel.name}: {len(body)} instructions a pass, {_ffma(body)} of them FFMA"
    axes.set_title(said)
    by_role = ", ".join(f"{role} {sum(found.values())}" for role, found in roles.items() if found)
    return Picture(made, f"{said}; {by_role}")


def _ffma(body: Iterable[Instruction]) -> int:
    return sum(each.opcode == "FFMA" for each in body)


def _heading(title: str) -> str:
    return f'<b style="font-family:monospace">{escape(title)}</b>'


def _row(number: str, sign: str, line: str, style: str) -> str:
    return (
        f'<tr style="{style or "background:none"}"><td style="{_NUMBER}">{number}</td>'
        f'<td style="{_CELL}">{sign}</td><td style="{_CELL}">{_ink(line) or " "}</td></tr>'
    )
