"""The records of a trace, read back as a timeline: whom each warp waited for, and what it started."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from .. import hopper
from ..emulator.watch.timeline import Interval, Timeline

__all__ = ["Record", "decode"]


class Record(IntEnum):
    """The kinds of records. The trace build gets them as constants, `kTraceStart` and so on."""

    START = 1
    END = 2
    MBARRIER = 3
    ISSUE = 4
    COMMIT = 5
    PRODUCTS = 6
    LOAD = 7
    STORE = 8
    STORE_COMMIT = 9
    STORES = 10
    BARRIER = 11
    REGISTERS = 12
    ARRIVE = 13
    EXPECT = 14


#: How a timeline names the events that it counts.
_NAMES = {
    Record.MBARRIER: "mbarrier waits",
    Record.COMMIT: "product groups",
    Record.PRODUCTS: "product waits",
    Record.LOAD: "loads",
    Record.STORE: "stores",
    Record.STORES: "store waits",
    Record.BARRIER: "barriers",
    Record.REGISTERS: "setmaxnreg",
    Record.ARRIVE: "arrivals",
    Record.EXPECT: "expect_tx",
}
#: The names of the things that a warp waits for, by kind of record; {} is the record's argument.
_WAITS = {
    Record.MBARRIER: "mbarrier {:#x}",
    Record.PRODUCTS: "WGMMA",
    Record.STORES: "TMA store",
    Record.BARRIER: "barrier {}",
    Record.REGISTERS: "setmaxnreg",
}


class _Event(NamedTuple):
    """An event of a warp. Times are cycles from the CTA's first record on."""

    kind: int
    line: str  # "file.cu:12"
    begin: float
    end: float
    value: int  # the second word as a number, of a record that has no end
    argument: int


class _Warp(NamedTuple):
    """A warp's events in its order, and its end, if it wrote one."""

    events: list[_Event]
    end: _Event | None


def decode(
    records: np.ndarray, files: Sequence[str], store_bytes: int = 0, scale: float = 1.0, products: int = 0
) -> Timeline:
    """Return the timeline of one CTA's records.

    Args:
        records: uint32 (warps, room, 4); the last record of a warp is its end.
        files: the files of the code by their number, the stage first.
        store_bytes: the bytes of a TMA store.
        scale: the timeline's time unit in cycles; times are cycles times `scale`.
        products: the products of a slot of the ring, for which the producer arrives once. Without it the time
            that a group takes is unknown.

    Raises:
        ValueError: there is no record: the kernel did not run, or it ran another CTA.
    """
    first = int(records[0, 0, 0])
    if records[0, 0, 2] & 0xFF != Record.START:
        raise ValueError("records: expected the begin of warp 0 first; the traced CTA did not run")

    # Time 0 is the begin of the earliest warp.
    starts = [begin for begin, _, word, _ in records[:, 0].tolist() if word & 0xFF == Record.START]
    base = first + min((_signed(begin - first) for begin in starts), default=0)
    warps = [_warp(rows, base, files) for rows in records]

    # The CTA is over when its last warp has ended, or at the last event of a warp that wrote no end.
    ends = [warp.end for warp in warps if warp.end]
    events = [event for warp in warps for event in warp.events]
    over = max([end.begin for end in ends] + [e.end if e.kind in _WAITS else e.begin for e in events])

    # The fewest cycles of a group of products, by the datasheet's rate.
    counts = Counter(_NAMES[Record(event.kind)] for event in events if event.kind in _NAMES)
    groups = counts[_NAMES[Record.COMMIT]]
    least = math.inf
    if groups and products:
        least = products * counts[_NAMES[Record.EXPECT]] / groups / hopper.PRODUCTS_PER_CYCLE

    intervals: list[Interval] = []
    for number, warp in enumerate(warps):
        intervals += _waits(number, warp.events, warp.end.begin if warp.end else over)
    intervals += _copies(warps, over, store_bytes)
    intervals += _products(warps, over, least)
    intervals.sort(key=lambda i: (i.start, i.agent))

    filled = sorted({_place(event)[1] for event in events if event.kind == Record.LOAD})
    return Timeline(
        agents=[f"warp {number}" for number in range(len(warps))] + ["tensor core", "TMA"],
        intervals=[
            replace(i, start=round(i.start * scale, 1), end=round(i.end * scale, 1)) for i in intervals
        ],
        about={
            "sm": warps[0].events[0].value,
            "events": dict(sorted(counts.items())),
            "filled": [f"mbarrier {at:#x}" for at in filled],
            "lost": sum(max(0, end.argument - (records.shape[1] - 1)) for end in ends),
        },
    )


def _warp(rows: np.ndarray, base: int, files: Sequence[str]) -> _Warp:
    """Return a warp from its records (n, 4) uint32."""
    found = []
    for begin, second, word, argument in rows[:-1].tolist():
        if word & 0xFF == 0:
            break
        found.append(_event(begin, second, word, argument, base, files))
    begin, second, word, argument = rows[-1].tolist()
    ended = word & 0xFF == Record.END
    return _Warp(found, _event(begin, second, word, argument, base, files) if ended else None)


def _event(begin: int, second: int, word: int, argument: int, base: int, files: Sequence[str]) -> _Event:
    """Return the event of a record: its kind, line and file are the bytes of `word`, from the lowest on."""
    start = _signed(begin - base)
    line = f"{files[word >> 24]}:{word >> 8 & 0xFFFF}"
    return _Event(word & 0xFF, line, start, start + _signed(second - begin), second, argument)


def _signed(cycles: int) -> int:
    """Return a difference of clocks. They are lower halves, so that differences count modulo 2**32."""
    return (cycles + (1 << 31)) % (1 << 32) - (1 << 31)


def _waits(warp: int, events: list[_Event], over: float) -> Iterator[Interval]:
    """Yield a warp's time: waiting where it waited, busy between."""
    agent, at = f"warp {warp}", events[0].begin if events else 0.0
    for event in events:
        if event.kind in _WAITS:
            if event.begin > at:
                yield Interval(agent, at, event.begin, "busy", "instructions", event.line)
            what = _WAITS[Record(event.kind)].format(event.argument)
            yield Interval(agent, event.begin, event.end, "waiting", what, event.line)
            at = event.end
    if events and over > at:
        yield Interval(agent, at, over, "busy", "instructions", "")


class _Group(NamedTuple):
    """A group of products that has retired, in the order in which groups are sorted."""

    retired: float
    begun: float
    warpgroup: int
    line: str
    asked: float  # when a warp began to wait for it


def _products(warps: Sequence[_Warp], over: float, least: float) -> Iterator[Interval]:
    """Yield the tensor core's time: groups of products in the order of their retirement, one at a time.

    least: the fewest cycles of a group.
    """
    # A group begins with its first issue, and has retired when a wait lets fewer groups stay in flight.
    groups: list[_Group] = []
    for number, (events, end) in enumerate(warps):
        issued: _Event | None = None
        flight: deque[_Event] = deque()
        for event in events:
            if event.kind == Record.ISSUE:
                issued = issued or event
            elif event.kind == Record.COMMIT and issued:
                flight.append(issued)
                issued = None
            while event.kind == Record.PRODUCTS and len(flight) > event.argument:
                begun = flight.popleft()
                groups.append(_Group(event.end, begun.begin, number // 4, begun.line, event.begin))
        last = end.begin if end else over
        groups += [_Group(last, begun.begin, number // 4, begun.line, last) for begun in flight]

    # A group that must have been done before anyone asked ends when the datasheet's rate has it done.
    free = -math.inf
    for group in sorted(groups):
        start = max(group.begun, free)
        done = start + least if start + least < group.asked else group.retired
        if done > start:
            yield Interval("tensor core", start, done, "busy", f"warpgroup {group.warpgroup}", group.line)
        free = max(free, done)


def _place(load: _Event) -> tuple[int, int]:
    """Return where in shared memory a load goes, and its mbarrier: the two halves of its argument."""
    return (load.argument & 0xFFFF) << 4, load.argument >> 16 << 3


def _copies(warps: Sequence[_Warp], over: float, store_bytes: int) -> Iterator[Interval]:
    """Yield TMA's time: a load until a warp passed its mbarrier, a store until its thread has seen it read.

    Whoever passes the mbarrier once the load is issued has waited for that phase: the phase before was over
    when the slot was given back.
    """
    # When warps passed each mbarrier, in order.
    passed: dict[int, list[float]] = {}
    for events, _ in warps:
        for event in events:
            if event.kind == Record.MBARRIER:
                passed.setdefault(event.argument, []).append(event.end)
    for ends in passed.values():
        ends.sort()

    for events, _ in warps:
        joined: list[_Event] = []  # stores since the last commit
        flight: deque[list[_Event]] = deque()
        for event in events:
            if event.kind == Record.LOAD:
                to, barrier = _place(event)
                ends = passed.get(barrier, [])
                at = bisect_right(ends, event.begin)
                end = ends[at] if at < len(ends) else over
                size = f" {event.value} bytes" if event.value else ""
                yield Interval("TMA", event.begin, end, "busy", f"load{size} to {to:#x}", event.line)
            elif event.kind == Record.STORE:
                joined.append(event)
            elif event.kind == Record.STORE_COMMIT:
                flight.append(joined)
                joined = []
            while event.kind == Record.STORES and len(flight) > event.argument:
                yield from (_store(store, event.end, store_bytes) for store in flight.popleft())
        yield from (_store(store, over, store_bytes) for group in flight for store in group)


def _store(store: _Event, end: float, nbytes: int) -> Interval:
    size = f" {nbytes} bytes" if nbytes else ""
    return Interval("TMA", store.begin, end, "busy", f"store{size} from {store.argument:#x}", store.line)
