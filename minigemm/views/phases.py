"""The life of an mbarrier: copies asked for, bytes that landed, phases that completed. From a report's
events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..emulator.watch.report import Event, Report
from .shapes import beside, centred, label, rectangle
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, SKY, Picture, drawn, figure

__all__ = ["Copy", "copies", "phases"]

_LOAD = re.compile(
    r"box at \((?P<at>[^)]*)\) -> shared (?P<to>0x[0-9a-f]+), (?P<bytes>\d+) bytes on mbarrier (?P<barrier>\d+)"
)


@dataclass(frozen=True)
class Copy:
    """A TMA load of CTA 0: a box of a tensor map, from its issue to its landing (`None`: it never landed)."""

    at: tuple[int, ...]  # the box's coordinates, innermost first
    to: int  # shared address
    bytes: int
    barrier: int  # shared address of the mbarrier that it completes on
    issued: Event
    landed: Event | None


def copies(report: Report) -> list[Copy]:
    """List the TMA loads of CTA 0 in the order of their issue."""
    landings: dict[str, list[Event]] = {}
    for event in report.events:
        if event.kind == "tma load landed":
            landings.setdefault(event.detail, []).append(event)
    found = []
    for event in report.events:
        match = _LOAD.match(event.detail) if event.kind == "tma load issued" else None
        if match:
            at = tuple(int(part) for part in match["at"].split(",") if part.strip())
            same = landings.get(event.detail)
            landed = same.pop(0) if same else None
            found.append(
                Copy(at, int(match["to"], 16), int(match["bytes"]), int(match["barrier"]), event, landed)
            )
    return found


@dataclass
class _Phase:
    """A phase of the mbarrier."""

    start: int  # step
    end: int | None  # step
    landed: list[tuple[int, int]]  # (step, bytes so far)

    @property
    def bytes(self) -> int:
        return self.landed[-1][1] if self.landed else 0


def _history(report: Report, barrier: int) -> list[_Phase]:
    """The phases of one mbarrier, the open one last."""
    found = [_Phase(report.events[0].step, None, [])]
    for event in report.events:
        now = found[-1]
        match = _LOAD.match(event.detail) if event.kind == "tma load landed" else None
        if match and int(match["barrier"]) == barrier:
            now.landed.append((event.step, now.bytes + int(match["bytes"])))
        elif event.kind == "phase" and event.agent == f"mbarrier {barrier}":
            now.end = event.step
            found.append(_Phase(event.step, None, []))
    return found


@drawn
def phases(report: Report, title: str = "", names: Mapping[int, str] | None = None) -> Picture:
    """Draw the order of things in CTA 0, from left to right. Steps are the scheduler's: an order, not a time.

    Args:
        report: a launch whose loads all complete on one mbarrier.
        names: what to call the shared addresses that the loads write, such as `{0x400: "a"}`.

    The mbarrier's row fills up with the bytes that landed in each phase. Raises ValueError when CTA 0 loaded
    nothing by TMA.
    """
    loads = copies(report)
    if not loads:
        raise ValueError(
            "report: expected one of a kernel whose CTA 0 loads by TMA, got one without such events"
        )
    barriers = sorted({load.barrier for load in loads})
    if len(barriers) > 1:
        raise ValueError(
            f"report: expected loads that complete on one mbarrier, got {len(barriers)} mbarriers"
        )
    history = _history(report, barriers[0])
    targets = sorted({load.to for load in loads})
    order = sorted({event.step for event in report.events})
    place = {step: x for x, step in enumerate(order)}

    # Rows from above: who asks, a row for each target, the mbarrier, and where threads meet.
    copied = [f"TMA copies to {(names or {}).get(to, f'shared {to:#x}')}" for to in targets]
    rows = ["thread 0 asks", *copied, "mbarrier: bytes landed", "all threads meet"]
    barrier, meet = len(rows) - 2, len(rows) - 1
    made, axes = figure(10, 1.3 + 0.56 * len(rows))
    _draw_loads(axes, loads, targets, place)
    _draw_history(axes, history, barrier, place)
    for event in report.events:
        x = place[event.step]
        if event.kind == "barrier":
            axes.plot([x] * 2, [meet - 0.25, meet + 0.25], color=GREEN, linewidth=4)
        if event.kind == "tma store issued":
            axes.plot([x], [0], "D", color=PURPLE, markersize=7)
            beside(axes, x, 0, "store", (0, 8), ha="center", va="baseline", size=7)

    axes.set(ylim=(len(rows) - 0.5, -0.6), xlim=(-0.5, len(order) - 0.4))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(order)), [str(step) for step in order], fontsize=7)
    axes.set_xlabel("step of the scheduler: an order, not a time")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GREY, alpha=0.2)
    complete = [phase for phase in history if phase.end is not None]
    axes.set_title(title or f"{len(loads)} loads by TMA, {len(complete)} phases completed")
    return Picture(made, _in_words(loads, complete, history[-1]))


def _draw_loads(axes: Any, loads: list[Copy], targets: list[int], place: Mapping[int, int]) -> None:
    """Draw a mark where thread 0 asks for a box, and a bar from there to its landing; dashed, it never
    lands."""
    last = None
    for load in loads:
        x = place[load.issued.step]
        axes.plot([x], [0], "o", color=BLUE, markersize=7)
        if load.at != last:  # a box for a and one for b begin at the same place often: say it once
            beside(axes, x, 0, f"({', '.join(map(str, load.at))})", (-4, 8), va="baseline", size=7)
        last = load.at
        end = place[load.landed.step] if load.landed else len(place) - 0.5
        in_flight = {"facecolor": PALE, "edgecolor": BLUE, "linestyle": "--"}
        style = {"facecolor": BLUE, "alpha": 0.8} if load.landed else in_flight
        centred(axes, x, 1 + targets.index(load.to), max(end - x, 0.16), 0.36, **style)


def _draw_history(axes: Any, history: list[_Phase], middle: int, place: Mapping[int, int]) -> None:
    """Draw the mbarrier's row: a field for each phase that fills up with bytes, and a line where it
    completes."""
    most = max(max(phase.bytes for phase in history), 1)
    for number, phase in enumerate(history):
        start, end = place[phase.start], place[phase.end] if phase.end is not None else len(place) - 0.5
        colour = SKY if number % 2 == 0 else ORANGE
        centred(axes, start, middle, end - start, 0.76, facecolor=PALE, edgecolor="white")
        for i, (step, total) in enumerate(phase.landed):
            x0 = min(place[step], end - 0.16)
            x1 = place[phase.landed[i + 1][0]] if i + 1 < len(phase.landed) else end
            height = 0.76 * total / most
            top = middle + 0.38 - height
            rectangle(axes, x0, top, max(x1 - x0, 0.16), height, facecolor=colour, alpha=0.9)
        if phase.end is not None:
            axes.plot([end] * 2, [middle - 0.44, middle + 0.44], color=INK, linewidth=2)
        last_line = f"{phase.bytes:,} B" if phase.end is not None else "open"
        text = f"phase {number}\nparity {number % 2}\n{last_line}" if end - start > 0.9 else str(number)
        label(axes, start + 0.08, middle, text, ha="left", size=7, linespacing=1.0)


def _in_words(loads: list[Copy], complete: list[_Phase], last: _Phase) -> str:
    landed = sum(load.landed is not None for load in loads)
    text = f"{len(loads)} loads, {landed} landed, {len(complete)} phases completed"
    each = [
        f"phase {i} (parity {i % 2}) completed at step {phase.end} with {phase.bytes:,} bytes"
        for i, phase in enumerate(complete)
    ]
    if each:
        text += f": {'; '.join(each)}"
    if last.bytes:
        text += f"; phase {len(complete)} is still open with {last.bytes:,} bytes"
    return text
