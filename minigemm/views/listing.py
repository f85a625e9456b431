"""Kernel text, always from the file itself: a stage, a part of it by name, what changed between two, and what the compiler made of it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path

from ..compiler import diagnostics
from ..compiler.inspection import Inspection, Instruction
from ..kernels import stage_named
from .style import BLUE, GREEN, GREY, ORANGE, Html, Picture, drawn, figure

__all__ = ["code", "diff", "loop", "loop_mix", "lowered"]

_CELL = "padding:0 .7em;white-space:pre;border:none;text-align:left;background:none;max-width:none"
_TABLE = "border-collapse:collapse;font:12px/1.4 monospace;border:none;margin:0"
_NUMBER = f"{_CELL};opacity:.5;text-align:right"
_MARKED = "background:rgba(230,159,0,.2)"

_ROLES = {"arithmetic": GREEN, "conversion": ORANGE, "memory": BLUE, "address and control": GREY}
_ROLE_OF = {
    "FFMA": "arithmetic", "FADD": "arithmetic", "FMUL": "arithmetic", "QGMMA": "arithmetic", "F2FP": "conversion", "HADD2": "conversion",
    "LDG": "memory", "LDS": "memory", "STG": "memory", "STS": "memory", "STSM": "memory", "UTMALDG": "memory", "UTMASTG": "memory",
}  # fmt: skip


def _file(stage: str | Path, argument: str = "stage") -> Path:
    """A stage by its name, a header that stands beside the stages, or any file."""
    if not str(stage).endswith((".cu", ".cuh")):
        try:
            return Path(stage_named(str(stage)).stage.source)
        except ValueError as error:
            raise ValueError(f"{argument}: {str(error).partition(': ')[2]}") from None
    path = Path(stage)
    beside = Path(stage_named("1").stage.source).parent / path.name
    path = beside if not path.is_file() and path.name == str(stage) else path
    if not path.is_file():
        raise ValueError(
            f"{argument}: expected the name of a stage or a CUDA file, got {str(stage)!r}, which is not a file"
        )
    return path


def _region(lines: list[str], name: str) -> range:
    """The lines of a function or struct, with the comment above it. ValueError when there is none of that name."""
    head = re.compile(rf"^(?!//|\s).*\b{re.escape(name)}\b.*[({{;]")
    for i, line in enumerate(lines):
        if head.match(line) and not line.startswith(
            ("#", "constexpr", "typedef", "static_assert", "extern __shared__")
        ):
            first = i
            while first and lines[first - 1].startswith(("//", "template")):
                first -= 1
            last = i
            while lines[last].rstrip() not in ("}", "};") and not (last == i and line.rstrip().endswith("}")):
                last += 1
            return range(first, last + 1)
    raise ValueError(f"part: no function or struct {name!r} begins a line of this file")


def _ink(line: str) -> str:
    """The line as HTML; its comment stands back."""
    text, slashes, comment = line.partition("//")
    return escape(text) + (
        f'<span style="opacity:.6;font-style:italic">{escape(slashes + comment)}</span>' if slashes else ""
    )


def code(stage: str | Path, part: str = "", mark: str = "") -> Html:
    """A stage's file, or one function or struct of it, with its line numbers.

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
    title = f"{path.name}" + (f": {part}" if part else "")
    html = f'<div style="overflow-x:auto"><b style="font-family:monospace">{escape(title)}</b><table style="{_TABLE}">{rows}</table></div>'
    return Html(
        html, "\n".join([title, *(f"{'>' if i in marked else ' '}{i + 1:3}  {lines[i]}" for i in shown)])
    )


def diff(old: str | Path, new: str | Path, context: int = 3) -> Html:
    """What changed from one stage, or file, to another: removed lines with -, added with +, the same with their surroundings."""
    before, after = _file(old, "old"), _file(new, "new")
    left, right = (
        before.read_text(encoding="utf-8").splitlines(),
        after.read_text(encoding="utf-8").splitlines(),
    )
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
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
    names = f"{before.name}, edited" if before.name == after.name else f"{before.name} -> {after.name}"
    title = f"{names}: {_lines(added)} added, {removed} removed" if rows else f"{names}: no line differs"
    html = (
        f'<div style="overflow:auto;max-height:36em"><b style="font-family:monospace">{escape(title)}</b>'
        f'<table style="{_TABLE}">{"".join(rows)}</table></div>'
    )
    return Html(html, "\n".join([title, *text]))


def lowered(inspection: Inspection, line: str) -> Html:
    """The PTX and, beside it, the SASS of the source lines that read `line` ("" is every line): opcodes counted, then in full.

    PTX belongs to the line of the stage's file that called a wrapper, not to the wrapper. The two columns are in the order of their own programs:
    the assembler reorders, so rows do not match. ValueError when no line of the source reads so.
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
    counts = [
        _tally(text.split(maxsplit=2)[text.startswith("@")].rstrip(";") for text in part)
        for part in (ptx, sass)
    ]
    title = (
        f"{inspection.path.name}: {source[min(wanted) - 1].strip()}"
        if len(wanted) == 1
        else f"{inspection.path.name}, {_lines(len(wanted))}"
    )
    heads = [f"PTX, {len(ptx)} instructions", f"SASS, {len(sass)} instructions"]

    def cells(pair: Iterable[str], style: str = "") -> str:
        return (
            "<tr style='background:none'>"
            + "".join(f'<td style="{_CELL};vertical-align:top;{style}">{escape(x)}</td>' for x in pair)
            + "</tr>"
        )

    pairs = list(zip_longest(ptx, sass, fillvalue=""))
    body = cells(heads, "font-weight:bold") + cells(
        "\n".join(f"{n:>3}  {op}" for op, n in count) for count in counts
    )
    html = (
        f'<div style="overflow-x:auto"><b style="font-family:monospace">{escape(title)}</b><table style="{_TABLE}">{body}</table>'
        f"<details><summary>every instruction, in program order</summary>"
        f'<div style="overflow:auto;max-height:30em"><table style="{_TABLE}">{"".join(map(cells, pairs))}</table></div></details></div>'
    )
    width = max(len(text) for text in [heads[0], *ptx]) + 2
    told = [
        f"{count[0]:{width}}{count[1]}"
        for count in zip_longest(*([f"{n:>3}  {op}" for op, n in c] for c in counts), fillvalue="")
    ]
    return Html(
        html,
        "\n".join(
            [title, f"{heads[0]:{width}}{heads[1]}", *told, *(f"{a:{width}}{b}".rstrip() for a, b in pairs)]
        ),
    )


def loop(inspection: Inspection) -> tuple[Instruction, ...]:
    """The loop in the SASS that holds the most FFMA (of several, the innermost), from its label to the branch back. ValueError when no loop has any."""
    best: Sequence[Instruction] = ()
    places: dict[str, int] = {}
    for i, each in enumerate(inspection.instructions):
        if each.label:
            places[each.label] = i
        back = re.search(r"BRA(?:\.\w+)*\s.*`\((.+?)\)", each.text)
        if back and back[1] in places:
            body = inspection.instructions[places[back[1]] : i + 1]
            if (_ffma(body), -len(body)) > (_ffma(best), -len(best)):
                best = body
    if not _ffma(best):
        raise ValueError(f"inspection: no loop of {inspection.kernel.name} computes with FFMA")
    return tuple(best)


@drawn
def loop_mix(inspection: Inspection) -> Picture:
    """What one pass of the inner loop issues: its SASS instructions by opcode, coloured by what they are for."""
    body = loop(inspection)
    roles = {
        role: Counter(
            each.opcode for each in body if _ROLE_OF.get(each.opcode, "address and control") == role
        )
        for role in _ROLES
    }
    bars = [(opcode, n, role) for role, found in roles.items() for opcode, n in found.most_common()]
    made, axes = figure(8, 0.95 + 0.26 * len(bars))
    for role, colour in _ROLES.items():
        mine = [(y, n) for y, (_, n, r) in enumerate(bars) if r == role]
        if mine:
            axes.barh(
                [y for y, _ in mine],
                [n for _, n in mine],
                color=colour,
                height=0.72,
                label=f"{role}: {sum(n for _, n in mine)}",
            )
    for y, (_, n, _) in enumerate(bars):
        axes.text(n + 0.3, y, str(n), va="center", fontsize=8)
    axes.set(
        yticks=range(len(bars)),
        ylim=(len(bars) - 0.4, -0.6),
        xlabel="instructions a thread in one pass of the loop",
    )
    axes.set_yticklabels([opcode for opcode, _, _ in bars], family="monospace", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower right")
    said = f"{inspection.kernel.name}: {len(body)} instructions a pass, {_ffma(body)} of them FFMA"
    axes.set_title(said)
    return Picture(
        made,
        said + "; " + ", ".join(f"{role} {sum(found.values())}" for role, found in roles.items() if found),
    )


def _ffma(body: Iterable[Instruction]) -> int:
    return sum(each.opcode == "FFMA" for each in body)


def _tally(names: Iterable[str]) -> list[tuple[str, int]]:
    """Most frequent first; equals in the order in which they came."""
    return Counter(names).most_common()


def _lines(n: int) -> str:
    return f"{n} line" if n == 1 else f"{n} lines"


def _row(number: str, sign: str, line: str, style: str) -> str:
    return (
        f'<tr style="{style or "background:none"}"><td style="{_NUMBER}">{number}</td>'
        f'<td style="{_CELL}">{sign}</td><td style="{_CELL}">{_ink(line) or " "}</td></tr>'
    )
