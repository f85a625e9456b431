"""The time of one CTA: when warps, the tensor core and TMA are busy and when they wait, by the emulator's
cycle model or as measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..emulator.watch.report import Report
from ..emulator.watch.timeline import Interval, Timeline
from ..verify import results
from .shapes import at_right, legend
from .style import BLUE, GREEN, GREY, INK, PURPLE, RED, SKY, THOUSANDS, Html, Picture, drawn, figure

__all__ = ["recorded_timeline", "timeline", "waiting_for"]

_WARP = re.compile(r"warp (\d+)")
_BARRIER = re.compile(r"mbarrier (0x[0-9a-f]+)")
_ON_BARRIER = re.compile(r"on mbarrier (\d+)")

_STORE = "#8C6D46"
TILE, SLOT, PRODUCT = "a tile that TMA brings", "an arrival on an mbarrier", "the tensor core"
THREADS, STORE = "other threads at a barrier", "a TMA store"
# The causes of waiting, each in the colour of whoever keeps the warp waiting.
_CAUSES = {TILE: "#EBCB1D", SLOT: PURPLE, PRODUCT: GREEN, THREADS: RED, STORE: _STORE}
_PRODUCTS = (GREEN, "#5CC7A2", "#00563F", "#A8E0CD")  # by warpgroup
_OTHERS = (INK, "#5B4B8A", "#A0522D", GREY)


@dataclass(frozen=True)
class _Segment:
    start: float
    end: float
    state: str
    what: str


@dataclass(frozen=True)
class _Row:
    """A row of the picture: an agent, or several that act as one. Overlapping intervals have lanes of their
    own."""

    label: str
    lanes: tuple[tuple[_Segment, ...], ...]
    engine: bool = False

    def spent(self, state: str, what: str | None = None) -> float:
        """The time in a state, overlaps counted once."""
        total, last = 0.0, float("-inf")
        counted = (s for lane in self.lanes for s in lane if s.state == state and what in (None, s.what))
        for s in sorted(counted, key=lambda s: s.start):
            total += max(0.0, s.end - max(s.start, last))
            last = max(last, s.end)
        return total


def waiting_for(run: Report | Timeline, *agents: str) -> dict[str, float]:
    """Compute the share of the whole time that these agents, on average, waited for each thing; all warps
    unless named.

    Raises ValueError for a report without a timeline and for an agent that it does not have.
    """
    line, names = _line(run), _names(run)
    unknown = [agent for agent in agents if agent not in line.agents]
    if unknown:
        raise ValueError(f"agents: expected some of {', '.join(line.agents)}, got {unknown[0]!r}")
    chosen = set(agents or (agent for agent in line.agents if _WARP.fullmatch(agent)))
    spent: Counter[str] = Counter()
    for interval in line.intervals:
        if interval.agent in chosen and interval.state == "waiting":
            spent[_word(interval.what, names)] += interval.end - interval.start  # type: ignore[assignment]
    return {what: time / (line.end * len(chosen)) for what, time in spent.most_common()}


@drawn
def timeline(
    run: Report | Timeline | Mapping[str, Report | Timeline],
    start: float = 0,
    end: float | None = None,
    rows: str = "roles",
    names: Mapping[str, str] | None = None,
    title: str = "",
) -> Picture:
    """Draw the agents of one CTA from left to right: tall bars where one is busy, low pale ones where it
    waits.

    Args:
        run: a report of `minigemm.observe(timeline=True)`, or a `Timeline`, modelled or measured; or several
            by name, drawn above one another on one scale.
        start, end: what is shown, in the timeline's unit; by default all of it.
        rows: "roles", a row for each warpgroup (busy where one of its warps is), or "warps". The tensor core
            and TMA have a row each.
        names: what to call a cause of waiting, such as `{"mbarrier 0x8400": "an empty slot"}`. A report knows
            by itself which mbarriers TMA fills.

    A waiting bar has the colour of what it waits for. At the right stands a share of what is shown, up to the
    end of the timeline: waiting of warps, busy of the tensor core, copies in flight of TMA. Raises ValueError
    when there is no timeline, nothing between start and end, or when timelines have different units.
    """
    runs = dict(run) if isinstance(run, Mapping) else {"": run}
    if not runs:
        raise ValueError("run: expected at least one report or timeline, got none")
    if rows not in ("roles", "warps"):
        raise ValueError(f'rows: expected "roles" or "warps", got {rows!r}')
    lines = {name: _line(one) for name, one in runs.items()}
    if len({(line.unit, line.source) for line in lines.values()}) > 1:
        units = ", ".join(f"{line.unit} ({line.source})" for line in lines.values())
        raise ValueError(f"run: expected timelines of one unit and source, got {units}")
    last = max(line.end for line in lines.values()) if end is None else end
    if not 0 <= start < last:
        raise ValueError(f"end: expected more than start, which is 0 or more, got {start} to {last}")

    # All panels have one scale and one set of colours.
    panels = {}
    for name, line in lines.items():
        panels[name] = _rows(line, {**_names(runs[name]), **(names or {})}, rows, start, last)
    heights = [sum(_height(row) for row in found) for found in panels.values()]
    height = 1.1 + 0.3 * sum(heights) + 0.25 * len(heights)
    made, axes = figure(10, height, len(panels), squeeze=False, sharex=True, height_ratios=heights)
    colours = _colours(panels.values())
    said = []
    for panel, (name, found) in zip(axes[:, 0], panels.items(), strict=True):
        line = lines[name]
        heading = f"{name or title or 'Who is busy, who waits'}: {line.end:,.0f} {line.unit}"
        length = min(last, line.end) - start
        _draw(panel, found, colours, length)
        panel.set(xlim=(start, last))
        panel.set_title(heading)
        said += [heading, *(f"  {_in_words(row, length)}" for row in found)]
    axes[-1, 0].set_xlabel(_unit(list(lines.values())))
    axes[-1, 0].xaxis.set_major_formatter(THOUSANDS)
    if title and "" not in runs:
        made.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    _explain(made, colours)
    return Picture(made, "\n".join(said))


def recorded_timeline(
    stage: str, start: float = 0, end: float | None = None, rows: str = "roles", folder: Path = results.FOLDER
) -> Picture | Html:
    """Draw a stage's timeline as a GPU gave it, from the recorded results; say so if there is none.

    A result is a file of `python -m minigemm trace STAGE --json docs/results/GPU_timeline_sNN.json`. Of
    several the last by name is drawn. start, end and rows as for `timeline`, in ns.
    """
    files = results.files("*_timeline_*.json", folder)
    lines = [Timeline.from_dict(results.load(file.absolute())) for file in files]
    found = [one for one in lines if one.source == "measured" and one.about.get("stage") == stage]
    if not found:
        text = f"No measured timeline is recorded for {stage} yet."
        return Html(f"<p>{text}</p>", text)
    about = found[-1].about
    title = f"{stage}, {about['m']} x {about['n']} x {about['k']}, CTA {about['cta']}"
    return timeline(found[-1], start, end, rows, title=title)


def _unit(lines: Sequence[Timeline]) -> str:
    """The words below the axis: the unit, and who gave the figures."""
    if lines[0].source == "model":
        return f"{lines[0].unit}, of a model: not a measurement"
    each = [
        ", ".join(str(line.about[key]) for key in ("gpu", "date") if line.about.get(key)) for line in lines
    ]
    on = "; ".join(filter(None, dict.fromkeys(each)))
    return f"{lines[0].unit}, measured" + (f" on {on}" if on else "")


# --- rows


def _line(run: Report | Timeline) -> Timeline:
    found = run.timeline if isinstance(run, Report) else run
    if not isinstance(found, Timeline):
        got = "a report without a timeline" if isinstance(run, Report) else type(run).__name__
        raise ValueError(
            f"run: expected a report of minigemm.observe(timeline=True) or a Timeline, got {got}"
        )
    if not found.intervals:
        raise ValueError("run: expected a timeline with intervals, got an empty one")
    return found


def _names(run: Report | Timeline) -> dict[str, str]:
    """Name the mbarriers that are waited for: those that TMA's loads complete on, and the others.

    A report's events tell which is which, or a trace's `filled`.
    """
    line = run if isinstance(run, Timeline) else run.timeline
    if line is None or (isinstance(run, Timeline) and "filled" not in run.about):
        return {}
    if isinstance(run, Timeline):
        filled = set(run.about["filled"])
    else:
        loads = [event.detail for event in run.events if event.kind.startswith("tma load")]
        filled = {f"mbarrier {int(match[1]):#x}" for load in loads if (match := _ON_BARRIER.search(load))}
    waited = {i.what for i in line.intervals if _BARRIER.fullmatch(i.what)}
    return {what: TILE if what in filled else SLOT for what in waited}


def _word(what: str, names: Mapping[str, str]) -> str:
    """The legend's word for a cause of waiting."""
    if what in names:
        return names[what]
    if what == "WGMMA":
        return PRODUCT
    if what == "TMA store":
        return STORE
    if what.startswith("barrier "):
        return THREADS
    return "an mbarrier" if _BARRIER.fullmatch(what) else what


def _rows(line: Timeline, names: Mapping[str, str], rows: str, start: float, end: float) -> list[_Row]:
    """The rows of the picture: warps or warpgroups, then the other agents."""
    # What of each interval lies between start and end, by agent.
    by_agent: dict[str, list[_Segment]] = {agent: [] for agent in line.agents}
    for i in sorted(line.intervals, key=lambda i: i.start):
        a, b = max(i.start, start), min(i.end, end)
        if a < b:
            what = _word(i.what, names) if i.state == "waiting" else _work(i)
            by_agent.setdefault(i.agent, []).append(_Segment(a, b, i.state, what))
    if not any(by_agent.values()):
        ends = f"the timeline ends at {line.end:,.0f}"
        raise ValueError(f"start: nothing happens from {start:g} to {end:g}, {ends}")

    warps = [agent for agent in by_agent if _WARP.fullmatch(agent)]
    groups = {warp: [warp] for warp in warps} if rows == "warps" else _roles(line, warps)
    found = []
    for name, group in groups.items():
        lane = tuple(by_agent[name]) if rows == "warps" else _together([by_agent[warp] for warp in group])
        found.append(_Row(name, (lane,)))
    for agent, segments in by_agent.items():
        if agent not in warps:
            engine = agent in ("tensor core", "TMA")
            found.append(_Row(agent, _apart(segments) or ((),), engine))
    return found


def _work(interval: Interval) -> str:
    """The legend's word for what a busy agent does."""
    if interval.agent == "tensor core":
        return f"products of {interval.what}"
    return interval.what.partition(" ")[0] if interval.agent == "TMA" else "instructions"


def _roles(line: Timeline, warps: Sequence[str]) -> dict[str, list[str]]:
    """Warpgroups by name. Where some multiply and others do not, the others are producers."""
    groups: dict[int, list[str]] = {}
    for warp in warps:
        groups.setdefault(int(warp.split()[1]) // 4, []).append(warp)
    products = [i.what for i in line.intervals if i.agent == "tensor core"]
    multiply = {int(what.split()[1]) for what in products if re.fullmatch(r"warpgroup \d+", what)}
    split = bool(multiply & groups.keys()) and bool(groups.keys() - multiply)
    producers = sorted(groups.keys() - multiply)
    labels = {}
    for number, group in groups.items():
        name = f"warpgroup {number}"
        if split:
            alike = sorted(multiply) if number in multiply else producers
            name = "consumer" if number in multiply else "producer"
            name += f" {alike.index(number)}" if len(alike) > 1 else ""
        first, last = group[0].split()[1], group[-1].split()[1]
        labels[f"{name}\nwarps {first} to {last}" if len(group) > 1 else f"{name}\nwarp {first}"] = group
    return labels


def _together(agents: list[list[_Segment]]) -> tuple[_Segment, ...]:
    """Merge several agents into one: busy where one is, else waiting for what most of them wait for."""
    edges = sorted({edge for segments in agents for s in segments for edge in (s.start, s.end)})
    at = [0] * len(agents)
    merged: list[_Segment] = []
    for start, end in pairwise(edges):
        now = []
        for i, segments in enumerate(agents):
            while at[i] < len(segments) and segments[at[i]].end <= start:
                at[i] += 1
            if at[i] < len(segments) and segments[at[i]].start <= start:
                now.append(segments[at[i]])
        if not now:
            continue
        state = "busy" if any(s.state == "busy" for s in now) else "waiting"
        what = Counter(s.what for s in now if s.state == state).most_common(1)[0][0]
        if merged and (merged[-1].end, merged[-1].state, merged[-1].what) == (start, state, what):
            merged[-1] = _Segment(merged[-1].start, end, state, what)
        else:
            merged.append(_Segment(start, end, state, what))
    return tuple(merged)


def _apart(segments: list[_Segment]) -> tuple[tuple[_Segment, ...], ...]:
    """Put overlapping intervals on as few lanes as they need."""
    lanes: list[list[_Segment]] = []
    for segment in segments:
        lane = next((lane for lane in lanes if lane[-1].end <= segment.start), None)
        if lane is None:
            lanes.append([segment])
        else:
            lane.append(segment)
    return tuple(tuple(lane) for lane in lanes)


def _in_words(row: _Row, length: float) -> str:
    causes = {s.what for lane in row.lanes for s in lane if s.state == "waiting"}
    ranked = sorted(causes, key=lambda what: (-row.spent("waiting", what), what))
    waits = ", ".join(f"{what} {row.spent('waiting', what) / length:.0%}" for what in ranked)
    text = f"{row.label.replace(chr(10), ', ')}: busy {row.spent('busy') / length:.0%}"
    return text + (f", waiting {row.spent('waiting') / length:.0%} (for {waits})" if waits else "")


# --- drawing


def _height(row: _Row) -> float:
    return 1.0 if len(row.lanes) == 1 else max(1.0, 0.34 * len(row.lanes))


def _colours(panels: Iterable[list[_Row]]) -> dict[tuple[str, str], str]:
    """Choose a colour for each (state, what), the busy ones first."""
    found = {(s.state, s.what) for rows in panels for row in rows for lane in row.lanes for s in lane}
    chosen: dict[tuple[str, str], str] = {}
    for state, what in sorted(found):
        if state == "waiting":
            others = sum(colour in _OTHERS for colour in chosen.values())
            chosen[state, what] = _CAUSES.get(what) or _OTHERS[others % len(_OTHERS)]
        elif what.startswith("products"):
            number = what.rpartition(" ")[2]
            chosen[state, what] = _PRODUCTS[int(number) % len(_PRODUCTS) if number.isdigit() else 0]
        else:
            chosen[state, what] = {"load": SKY, "store": _STORE}.get(what, BLUE)
    return chosen


def _draw(axes: Any, rows: list[_Row], colours: Mapping[tuple[str, str], str], length: float) -> None:
    """Draw one timeline, a row under the other, and say at the right how much of `length` each was busy or
    waited."""
    top, middles = 0.0, []
    for row in rows:
        # The lanes of a row share its height equally.
        height = _height(row)
        middles.append(top + height / 2)
        share = height / len(row.lanes)
        for number, lane in enumerate(row.lanes):
            _draw_lane(axes, row, lane, colours, top + share * (number + 0.5), share)

        # Engines are judged by how long they work, agents by how long they wait.
        if not any(row.lanes):
            said = "idle" if row.engine else "ended"
        elif row.engine:
            word = "in flight" if row.label == "TMA" else "busy"
            said = f"{word} {row.spent('busy') / length:.0%}"
        else:
            said = f"waits {row.spent('waiting') / length:.0%}"
        at_right(axes, middles[-1], said, x=1.008)
        axes.axhline(top + height, color=GREY, linewidth=0.4, alpha=0.4)
        top += height

    # The first row is at the top.
    axes.set_yticks(middles, [row.label for row in rows], fontsize=8)
    axes.set_ylim(top, 0)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GREY, alpha=0.2)


def _draw_lane(
    axes: Any,
    row: _Row,
    lane: tuple[_Segment, ...],
    colours: Mapping[tuple[str, str], str],
    middle: float,
    share: float,
) -> None:
    for state, what in dict.fromkeys((s.state, s.what) for s in lane):
        bars = [(s.start, s.end - s.start) for s in lane if (s.state, s.what) == (state, what)]
        size = share * (0.8 if state == "busy" else 0.42)
        style: dict[str, Any] = {"alpha": 0.45} if state == "waiting" else {"zorder": 3}
        if row.engine:  # one bar ends where the next begins
            style |= {"edgecolor": "white", "linewidth": 0.4}
        axes.broken_barh(bars, (middle - size / 2, size), facecolor=colours[state, what], **style)


def _explain(made: Any, colours: Mapping[tuple[str, str], str]) -> None:
    """Add the legend: work first, then waits."""
    busy: dict[str, Any] = {}
    waiting: dict[str, Any] = {}
    for (state, what), colour in colours.items():
        if state == "waiting":
            waiting[f"waits for {what}"] = {"facecolor": colour, "alpha": 0.45}
        else:
            busy[f"TMA {what}" if what in ("load", "store") else what] = colour
    legend(made, busy | waiting, ncols=4, handlelength=1.4, columnspacing=1.4)
