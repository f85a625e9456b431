"""A lab, its points, and the grading of one file in this process. For the files of others see `contained`."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..kernels import stage_named
from . import marks, skeleton
from .skeleton import Task

__all__ = [
    "Criterion", "Grade", "Lab", "Outcome", "StillToDo", "check", "gathered", "require", "solve", "start", "untouched",
]  # fmt: skip

SIZE_LIMIT = 256 * 1024  # bytes of a submission; the largest stage has a twentieth


class StillToDo(NotImplementedError):
    """The learner's file has places that are still to be filled in; the message lists them."""


@dataclass(frozen=True)
class Criterion:
    """`points` for one property of a kernel; all of them or none."""

    name: str
    points: int
    asks: str  # what a kernel must do for them


@dataclass(frozen=True)
class Outcome:
    """Whether a criterion is met, and if not, what to do next."""

    criterion: str
    met: bool
    message: str = ""


@dataclass(frozen=True)
class Lab:
    """A lab that leads from the stage `before` to the stage `after`."""

    name: str
    title: str
    before: str
    after: str
    tasks: tuple[Task, ...]
    given: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    judge: Callable[[Path], Iterator[Outcome]]  # yields an outcome for each criterion, as soon as it is known
    # Make what all submissions need and one process can make for them.
    prepare: Callable[[], object] = field(default=lambda: None)

    @cached_property
    def marked(self) -> str:
        """The lab's file with its solutions between marks, from the two stages."""
        sources = (stage_named(name).stage.source for name in (self.before, self.after))
        before, after = (source.read_text(encoding="utf-8") for source in sources)
        return skeleton.marked(before, after, self.tasks, self.given)

    @property
    def student(self) -> str:
        """The file that the learner starts from."""
        return marks.student(self.marked)

    @property
    def solution(self) -> str:
        """The stage after."""
        return marks.solution(self.marked)

    @property
    def points(self) -> int:
        """The points of a kernel that meets every criterion."""
        return sum(criterion.points for criterion in self.criteria)


@dataclass(frozen=True)
class Grade:
    """The points of one submission, and what to do next."""

    name: str
    lab: str
    points: dict[str, int]  # by criterion
    possible: dict[str, int]  # by criterion
    messages: dict[str, str]  # by criterion that is not met: what to do next; "" says what holds for all
    seconds: float

    @property
    def total(self) -> int:
        """The sum of the points."""
        return sum(self.points.values())

    def to_dict(self) -> dict[str, Any]:
        """Return what `json.dumps` takes, the total included."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        width = max(map(len, self.possible))
        out = [f"{self.name}: {self.total} of {sum(self.possible.values())} points"]
        for name, possible in self.possible.items():
            out.append(f"  {name:<{width}}  {self.points[name]:>3} / {possible}")
            out += [f"      {line}" for line in self.messages.get(name, "").splitlines()]
        return "\n".join(out + self.messages.get("", "").splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left;vertical-align:top;padding:.1em .8em'
        rows = ""
        for name, possible in self.possible.items():
            message = html.escape(self.messages.get(name, ""))
            rows += (
                f'<tr>{cell}">{"✓" if self.points[name] else "✗"} {html.escape(name)}</td>'
                f'{cell};text-align:right">{self.points[name]} / {possible}</td>'
                f'{cell}"><pre style="white-space:pre-wrap;margin:0">{message}</pre></td></tr>'
            )
        head = f"<b>{html.escape(self.name)}: {self.total} of {sum(self.possible.values())} points</b>"
        foot = f"<pre>{html.escape(self.messages[''])}</pre>" if "" in self.messages else ""
        return f'<div style="max-width:70em">{head}<table>{rows}</table>{foot}</div>'


# --- the learner's side


def start(path: str | os.PathLike[str], lab: Lab) -> Path:
    """Write the file that the learner starts from, unless there is one already. Prints which it was."""
    path = Path(path)
    if path.exists():
        print(
            f"{path} is here already, and stays as it is. To begin again, rename it and run this once more."
        )
    else:
        path.write_text(lab.student, encoding="utf-8")
        places = f"{len(skeleton.todos(lab.student))} places marked TODO"
        print(f"Wrote {path}: {lab.before}, with {places}. Open it beside this notebook.")
    return path


def solve(path: str | os.PathLike[str], lab: Lab) -> Path:
    """Write the solution over the file."""
    path = Path(path)
    path.write_text(lab.solution, encoding="utf-8")
    return path


def require(path: str | os.PathLike[str]) -> Path:
    """Return the path. Raises StillToDo, which lists the places, while anything in the file is marked
    TODO."""
    if left := skeleton.todos(Path(path).read_text(encoding="utf-8")):
        raise StillToDo(f"Still to do in {path}:\n" + "\n".join(f"  {todo}" for todo in left))
    return Path(path)


def check(path: str | os.PathLike[str], lab: Lab) -> Grade:
    """Grade the learner's own file here, without limits. The result draws itself in Jupyter."""
    path = Path(path)
    started = time.perf_counter()
    outcomes = untouched(lab, path.read_text(encoding="utf-8")) or list(lab.judge(path))
    seconds = time.perf_counter() - started
    left = skeleton.todos(path.read_text(encoding="utf-8"))
    return gathered(lab, path.name, outcomes, seconds, left)


def untouched(lab: Lab, text: str) -> list[Outcome]:
    """Give no points for the file that the learner started from. Returns no outcomes when the code is
    another."""
    if skeleton.code_of(text) not in (skeleton.code_of(lab.student), ""):
        return []
    return [Outcome(criterion.name, False) for criterion in lab.criteria]


def gathered(
    lab: Lab, name: str, outcomes: list[Outcome], seconds: float, left: list[str], stopped: str = ""
) -> Grade:
    """Make the grade of these outcomes. `left` are the TODOs in the file; `stopped` says why there are no
    more outcomes."""
    possible = {criterion.name: criterion.points for criterion in lab.criteria}
    met = {outcome.criterion: outcome.met for outcome in outcomes}
    points = {criterion: number if met.get(criterion) else 0 for criterion, number in possible.items()}
    messages = {outcome.criterion: outcome.message for outcome in outcomes if outcome.message}
    if stopped:
        messages.update({criterion: stopped for criterion in possible if criterion not in met})
    if left:
        messages[""] = "Still to do:\n" + "\n".join(f"  {todo}" for todo in left)
    elif outcomes and not any(points.values()) and not messages:
        lost = f"it has lost its {len(skeleton.todos(lab.student))} TODOs"
        messages[""] = (
            f"This is the file that the lab starts from; {lost}. Begin again with the lab's first cell."
        )
    return Grade(name, lab.name, points, possible, messages, round(seconds, 2))
