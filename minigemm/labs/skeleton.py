"""A lab's file, made from the two stages between which the lab lies: the stage before, with a TODO wherever
the stage after differs.

Nothing of a kernel is kept here. The tasks are the difference between the two files as they are today. Every
piece of the difference must belong to exactly one task, or to what is given: when a stage changes in a way
that the lab does not know, there is a ValueError and no lab.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import marks

__all__ = ["Task", "code_of", "marked", "todos"]

_TODO = re.compile(r"//\s*(TODO\b.*)")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """One TODO of a lab."""

    title: str  # what is to be done
    anchor: str  # a text that the stage after has in these lines, and nowhere else in the difference


def marked(before: str, after: str, tasks: Sequence[Task], given: Sequence[str]) -> str:
    """Mark the stage after, so that `marks` renders it: its solution is `after`, the student's copy is
    `before` with TODOs.

    `given` are texts like a task's anchor, of pieces that the student need not write. Raises ValueError for a
    piece of the difference that not exactly one task or given text knows, and for a task or given text
    without a piece.
    """
    # Equal lines need no marks; every other piece must be known as a task or as given.
    old, new = before.split("\n"), after.split("\n")
    out: list[str] = []
    found: list[str] = []
    for tag, i, j, k, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            out += old[i:j]
            continue

        # A piece that no text knows, or two do, shows that the tasks do not fit the stages.
        piece = "\n".join(new[k:end])
        named = [task for task in tasks if task.anchor in piece]
        free = [text for text in given if text in piece]
        if len(named) + len(free) != 1:
            count, went = len(named) + len(free), "(lines that went)"
            raise ValueError(
                f"{count} tasks know this piece of the difference between the stages, and one should:\n{piece or went}"
            )

        # The student writes the tasks; given pieces stay in the copy.
        found += [task.anchor for task in named] + free
        if named:
            title = f"{tasks.index(named[0]) + 1}. {named[0].title}"
            out += marks.marked(title, new[k:end], old[i:j])
        else:
            out += new[k:end]

    # A text that was found twice or never is an error, too: its anchor is wrong.
    missing = [text for text in (*(task.anchor for task in tasks), *given) if found.count(text) != 1]
    if missing:
        pieces = f"{found.count(missing[0])} pieces with {missing[0]!r}"
        raise ValueError(f"the difference between the stages has {pieces}, and one was expected")
    return "\n".join(out)


def todos(text: str) -> list[str]:
    """List the TODOs left in a file, each with its line: "line 18: TODO (roughly 3 lines): ..."."""
    return [
        f"line {number}: {match[1]}"
        for number, line in enumerate(text.splitlines(), 1)
        if (match := _TODO.search(line))
    ]


def code_of(text: str) -> str:
    """Return the code alone, without comments and layout: it says whether two files are the same kernel."""
    return " ".join(_COMMENT.sub(" ", text).split())
