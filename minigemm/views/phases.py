"""What an mbarrier went through: copies asked for, bytes that landed, phases that completed. From a report's events."""

from __future__ import annotations

import re
from typing import Any

from ..emulator.report import Event, Report
from .style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, Picture, drawn, figure

__all__ = ["copies", "phases"]

_ROWS = ("thread 0 asks", "TMA copies", "mbarrier", "all threads meet")


def copies(report: Report) -> list[tuple[Event, Event]]:
    """The TMA loads of CTA 0: where each was issued, and where it landed."""
    waiting: dict[str, list[Event]] = {}
    found = []
    for event in report.events:
        if event.kind == "tma load issued":
            waiting.setdefault(event.detail, []).append(event)
        elif event.kind == "tma load landed" and waiting.get(event.detail):
            found.append((waiting[event.detail].pop(0), event))
    return found


@drawn
def phases(report: Report, title: str = "") -> Picture:
    """The order of things in CTA 0, from left to right. Steps are the scheduler's: an order, not a time."""
    order = sorted({event.step for event in report.events})
    place = {step: x for x, step in enumerate(order)}
    made, axes = figure(10, 3.1)
    complete = [event for event in report.events if event.kind == "phase"]
    landed = copies(report)
    for issued, arrived in landed:
        x0, x1 = place[issued.step], place[arrived.step]
        offset = 0.18 if any(i.step < issued.step and a.step == arrived.step for i, a in landed) else -0.18
        axes.plot([x0], [0], "o", color=BLUE, markersize=7)
        axes.plot([x0, x1], [1 + offset] * 2, color=BLUE, linewidth=7, solid_capstyle="butt", alpha=0.8)
        box = re.search(r"\([^)]*\)", issued.detail)
        axes.annotate("k = " + box[0].strip("()").split(",")[0] if box else "", (x0, 0), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=7)
    start = 0
    for number, event in enumerate(complete):
        _span(axes, start, place[event.step], 2, SKY if number % 2 == 0 else ORANGE, f"phase {number} (parity {number % 2})")
        axes.plot([place[event.step]] * 2, [1.7, 2.3], color=INK, linewidth=2)
        start = place[event.step]
    for event in report.events:
        if event.kind == "barrier":
            axes.plot([place[event.step]] * 2, [2.75, 3.25], color=GREEN, linewidth=4)
        if event.kind == "tma store issued":
            axes.plot([place[event.step]], [0], "D", color=PURPLE, markersize=7)
            axes.annotate("store d", (place[event.step], 0), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=7)
    axes.set(yticks=range(4), ylim=(3.5, -0.6), xlim=(-0.5, len(order) - 0.4), xticks=range(len(order)))
    axes.set_yticklabels(_ROWS)
    axes.set_xticklabels([str(step) for step in order], fontsize=7)
    axes.set_xlabel("step of the scheduler: an order, not a time")
    axes.grid(axis="x", color=GREY, alpha=0.2)
    axes.set_title(title or f"{len(landed)} copies, {len(complete)} phases")
    return Picture(made, f"{len(landed)} copies landed, {len(complete)} phases completed: " + "; ".join(event.detail for event in complete))


def _span(axes: Any, start: float, end: float, y: float, colour: str, label: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((start, y - 0.26), end - start, 0.52, facecolor=colour, alpha=0.6, edgecolor="white"))
    axes.text((start + end) / 2, y, label, ha="center", va="center", fontsize=7)
