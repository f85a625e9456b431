"""python -m minigemm.labs grade FOLDER [--lab pipeline] [--json]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from . import LABS
from .contained import Limits, grade, submissions
from .grading import Grade, Lab

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is 0 when everything was graded, whatever the points."""
    # Options that make no sense are refused before any submission is graded.
    options = _parser().parse_args(arguments)
    if not options.folder.is_dir():
        return _fail(f"expected a folder with .cu files, got {str(options.folder)!r}, which is no folder")
    if options.seconds <= 0 or options.memory <= 0 or options.jobs <= 0:
        got = f"{options.seconds:g}, {options.memory} and {options.jobs}"
        return _fail(f"expected positive --seconds, --memory and --jobs, got {got}")
    paths = submissions(options.folder)
    if not paths:
        return _fail(f"there is no .cu file in {options.folder}")

    # Grading takes a while, so a line on stderr counts what is done.
    lab, limits = LABS[options.lab], Limits(seconds=options.seconds, memory=options.memory << 20)
    console = Console(stderr=True)
    with console.status(f"0 of {len(paths)} graded") as status:
        done: list[Grade] = []

        def heard(grade: Grade) -> None:
            done.append(grade)
            status.update(f"{len(done)} of {len(paths)} graded")

        grades = grade(paths, lab, limits, options.jobs, heard)

    # The output is for a program with --json, and for a person without.
    if options.json:
        points = {criterion.name: criterion.points for criterion in lab.criteria}
        found = [each.to_dict() for each in grades]
        print(json.dumps({"lab": lab.name, "points": points, "submissions": found}))
    else:
        _show(grades, lab)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minigemm.labs", description="Graded labs, without a GPU."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    grading = commands.add_parser(
        "grade", help="grade every .cu file of a folder, each one a student's submission"
    )
    add = grading.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--lab", choices=tuple(LABS), default="pipeline")
    add("--json", action="store_true", help="one JSON object instead of the table")
    seconds, mebibytes = Limits.seconds, Limits.memory >> 20
    add("--seconds", type=float, default=seconds, help="for one submission; default %(default)g")
    add("--memory", type=int, default=mebibytes, help="MiB for one submission; default %(default)d")
    add("--jobs", type=int, default=2, help="submissions at a time; default %(default)d")
    return parser


def _fail(message: str) -> int:
    print(f"minigemm.labs: {message}", file=sys.stderr)
    return 2


def _show(grades: list[Grade], lab: Lab) -> None:
    """Print a row for each submission, then what each should do next."""
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = f"{lab.name}: {lab.title}", "left"
    table.add_column("submission", overflow="fold")
    figures = [f"{criterion.name}\n({criterion.points})" for criterion in lab.criteria]
    for name in (*figures, f"total\n({lab.points})", "time\ns"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in grades:
        name = escape(each.name.removesuffix(".cu"))
        points = [f"[green]{points}[/green]" if points else "[red]0[/red]" for points in each.points.values()]
        table.add_row(name, *points, f"[bold]{each.total}[/bold]", f"{each.seconds:.1f}")
    console.print(table)

    for each in grades:
        if each.messages:
            console.print(f"[bold]{escape(each.name)}[/bold]")
        for name, message in _together(each.messages):
            if name:
                console.print(f"  [yellow]{escape(name)}[/yellow]")
            # Where a line is too long for the terminal, its rest is indented like its beginning.
            for line in message.splitlines():
                indent = len(line) - len(line.lstrip())
                console.print(Padding(Text(line.lstrip()), (0, 0, 0, 4 + indent)))


def _together(messages: dict[str, str]) -> list[tuple[str, str]]:
    """Tell a message that several criteria share once, as (the criteria, the message)."""
    names: dict[str, list[str]] = {}
    for name, message in messages.items():
        names.setdefault(message, []).append(name)
    return [(", ".join(filter(None, each)), message) for message, each in names.items()]
