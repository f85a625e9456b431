"""What a lab is, what its points are, and how one file is graded in this process. Files of others: see `contained`."""

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
    "Criterion",
    "Grade",
    "Lab",
    "Outcome",
    "StillToDo",
    "check",
    "gathered",
    "require",
    "solve",
    "start",
    "untouched",
]

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
    """A lab: from the stage `before` to the stage `after`. `judge(path)` yields an outcome for each criterion, as soon as it is known."""

    name: str
    title: str
    before: str
    after: str
    tasks: tuple[Task, ...]
    given: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    judge: Callable[[Path], Iterator[Outcome]]
    prepare: Callable[[], object] = field(
        default=lambda: None
    )  # what all submissions need and one process can make for them

    @cached_property
    def marked(self) -> str:
        """The lab's file with its solutions between marks, from the two stages."""
        before, after = (
            stage_named(name).stage.source.read_text(encoding="utf-8") for name in (self.before, self.after)
        )
        return skeleton.marked(before, after, self.tasks, self.given)

    @property
    def student(self) -> str:
        """What the learner starts from."""
        return marks.student(self.marked)

    @property
    def solution(self) -> str:
        """The stage after."""
        return marks.solution(self.marked)

    @property
    def points(self) -> int:
        """Of a kernel that meets every criterion."""
        return sum(criterion.points for criterion in self.criteria)


@dataclass(frozen=True)
class Grade:
    """What one submission got. `points` by criterion; `messages` by criterion, what to do next, where one is not met; "" says what holds for all."""

    name: str
    lab: str
    points: dict[str, int]
    possible: dict[str, int]
    messages: dict[str, str]
    seconds: float

    @property
    def total(self) -> int:
        """The sum of the points."""
        return sum(self.points.values())

    def to_dict(self) -> dict[str, Any]:
        """As `json.dumps` takes it, the total included."""
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
        rows = "".join(
            f'<tr>{cell}">{"✓" if self.points[name] else "✗"} {html.escape(name)}</td>{cell};text-align:right">{self.points[name]} / {possible}</td>'
            f'{cell}"><pre style="white-space:pre-wrap;margin:0">{html.escape(self.messages.get(name, ""))}</pre></td></tr>'
            for name, possible in self.possible.items()
        )
        head = f"<b>{html.escape(self.name)}: {self.total} of {sum(self.possible.values())} points</b>"
        foot = f"<pre>{html.escape(self.messages[''])}</pre>" if "" in self.messages else ""
        return f'<div style="max-width:70em">{head}<table>{rows}</table>{foot}</div>'


# ---------------------------------------------------------------------------------------------------- the learner's side


def start(path: str | os.PathLike[str], lab: Lab) -> Path:
    """Writes the file that the learner starts from; a file that is there already is kept. Prints which it was."""
    path = Path(path)
    if path.exists():
        print(
            f"{path} is here already, and stays as it is. To begin again, rename it and run this once more."
        )
    else:
        path.write_text(lab.student, encoding="utf-8")
        print(
            f"Wrote {path}: {lab.before}, with {len(skeleton.todos(lab.student))} places marked TODO. Open it beside this notebook."
        )
    return path


def solve(path: str | os.PathLike[str], lab: Lab) -> Path:
    """Writes the solution over the file."""
    path = Path(path)
    path.write_text(lab.solution, encoding="utf-8")
    return path


def require(path: str | os.PathLike[str]) -> Path:
    """The path, when nothing in the file is marked TODO any more; otherwise StillToDo, which lists what is."""
    if left := skeleton.todos(Path(path).read_text(encoding="utf-8")):
        raise StillToDo(f"Still to do in {path}:\n" + "\n".join(f"  {todo}" for todo in left))
    return Path(path)


def check(path: str | os.PathLike[str], lab: Lab) -> Grade:
    """Grades the learner's own file here, without limits. The result draws itself in Jupyter."""
    path = Path(path)
    started = time.perf_counter()
    outcomes = untouched(lab, path.read_text(encoding="utf-8")) or list(lab.judge(path))
    return gathered(
        lab,
        path.name,
        outcomes,
        time.perf_counter() - started,
        skeleton.todos(path.read_text(encoding="utf-8")),
    )


def untouched(lab: Lab, text: str) -> list[Outcome]:
    """What the file that the learner started from gets: nothing. Empty when the code is another."""
    if skeleton.code_of(text) not in (skeleton.code_of(lab.student), ""):
        return []
    return [Outcome(criterion.name, False) for criterion in lab.criteria]


def gathered(
    lab: Lab, name: str, outcomes: list[Outcome], seconds: float, left: list[str], stopped: str = ""
) -> Grade:
    """The grade that these outcomes make. `left` are the TODOs in the file; `stopped` says why there are no more outcomes."""
    met = {outcome.criterion: outcome.met for outcome in outcomes}
    points = {
        criterion.name: criterion.points if met.get(criterion.name) else 0 for criterion in lab.criteria
    }
    messages = {outcome.criterion: outcome.message for outcome in outcomes if outcome.message}
    if stopped:
        messages.update({criterion.name: stopped for criterion in lab.criteria if criterion.name not in met})
    if left:
        messages[""] = "Still to do:\n" + "\n".join(f"  {todo}" for todo in left)
    elif outcomes and not any(points.values()) and not messages:
        messages[""] = (
            f"This is the file that the lab starts from; it has lost its {len(skeleton.todos(lab.student))} TODOs. Begin again with the lab's first cell."
        )
    return Grade(
        name,
        lab.name,
        points,
        {criterion.name: criterion.points for criterion in lab.criteria},
        messages,
        round(seconds, 2),
    )
