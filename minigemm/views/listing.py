"""Kernel text, always from the file itself: a stage, a part of it by name, and what changed between two of them."""

from __future__ import annotations

import difflib
import re
from html import escape
from pathlib import Path

from ..kernels import stage_named
from .style import Html

__all__ = ["code", "diff"]

_CELL = "padding:0 .7em;white-space:pre;border:none;text-align:left;background:none;max-width:none"
_TABLE = "border-collapse:collapse;font:12px/1.4 monospace;border:none;margin:0"


def _file(stage: str | Path) -> Path:
    """A stage by its name, or any file."""
    return Path(stage) if str(stage).endswith((".cu", ".cuh")) else Path(stage_named(str(stage)).stage.source)


def _region(lines: list[str], name: str) -> range:
    """The lines of a function or struct, with the comment above it. ValueError when there is none of that name."""
    head = re.compile(rf"^(?!//|\s).*\b{re.escape(name)}\b.*[({{;]")
    for i, line in enumerate(lines):
        if head.match(line) and not line.startswith(("#", "constexpr", "typedef", "static_assert", "extern __shared__")):
            first = i
            while first and lines[first - 1].startswith(("//", "template")):
                first -= 1
            last = i
            while lines[last].rstrip() not in ("}", "};") and not (last == i and line.rstrip().endswith("}")):
                last += 1
            return range(first, last + 1)
    raise ValueError(f"part: no function or struct {name!r} begins a line of this file")


def code(stage: str | Path, part: str = "") -> Html:
    """A stage's file, or one function or struct of it, with its line numbers."""
    path = _file(stage)
    lines = path.read_text(encoding="utf-8").splitlines()
    shown = _region(lines, part) if part else range(len(lines))
    rows = "".join(
        f'<tr style="background:none"><td style="{_CELL};opacity:.5;text-align:right">{i + 1}</td><td style="{_CELL}">{escape(lines[i]) or " "}</td></tr>'
        for i in shown
    )
    title = f"{path.name}" + (f": {part}" if part else "")
    html = f'<div style="overflow-x:auto"><b style="font-family:monospace">{escape(title)}</b><table style="{_TABLE}">{rows}</table></div>'
    return Html(html, "\n".join([title, *(f"{i + 1:4}  {lines[i]}" for i in shown)]))


def diff(old: str | Path, new: str | Path, context: int = 3) -> Html:
    """What changed from one stage, or file, to another: removed lines with -, added with +, the same with their surroundings."""
    before, after = _file(old), _file(new)
    left, right = before.read_text(encoding="utf-8").splitlines(), after.read_text(encoding="utf-8").splitlines()
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
    title = f"{before.name} -> {after.name}: {added} lines added, {removed} removed"
    if not rows:
        title = f"{before.name} -> {after.name}: no line differs"
    html = (
        f'<div style="overflow:auto;max-height:36em"><b style="font-family:monospace">{escape(title)}</b>'
        f'<table style="{_TABLE}">{"".join(rows)}</table></div>'
    )
    return Html(html, "\n".join([title, *text]))


def _row(number: str, sign: str, line: str, style: str) -> str:
    return (
        f'<tr style="{style or "background:none"}"><td style="{_CELL};opacity:.5;text-align:right">{number}</td>'
        f'<td style="{_CELL}">{sign}</td><td style="{_CELL}">{escape(line) or " "}</td></tr>'
    )
