"""A ring of slots as a strip, and how many slots a tile needs. The strip is an order of things and not a
time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

from ..emulator import Rates
from ..emulator.watch.report import Report
from ..hopper import SHARED_LIMIT
from ..quantize import BLOCK
from .moments import BOTH, FILLING, FREE, FULL, READ, Moment, Slot, moments
from .shapes import amount, centred, label, legend, rectangle
from .style import BLUE, GREEN, INK, ORANGE, PALE, PURPLE, RED, SKY, Picture, drawn, figure, ink_on

__all__ = ["COLOURS", "ring", "ring_budget"]

COLOURS = {FREE: PALE, FILLING: SKY, FULL: ORANGE, READ: GREEN, BOTH: RED}
_MEET: dict[str, Any] = {"color": INK, "linewidth": 0.9, "linestyle": (0, (2, 2))}
_WAVE, _DEPTH = 64, 32  # rows and columns of one WGMMA
_KIB = 1024


@drawn
def ring(report: Report, title: str = "", products: int = 0) -> Picture:
    """Draw the slots of CTA 0's ring, from left to right as things happened: a bar for each slot with its
    tiles' numbers, and the parity of its barriers below.

    Arguments and errors are those of `moments`. Red is where TMA writes a slot that the tensor core reads.
    """
    film = moments(report, products)
    count = len(film[0].slots)
    made, axes = figure(10, 1.5 + (0.62 if film[0].slots[0].empty is None else 0.85) * count)
    for number in range(count):
        _draw_slot(axes, [moment.slots[number] for moment in film], number)
    for x, moment in enumerate(film):
        if moment.meet:
            axes.plot([x] * 2, [-0.62, count - 0.36], zorder=0.5, **_MEET)
    axes.set(ylim=(count - 0.32, -0.72), xlim=(-0.3, len(film) + 0.2), xticks=range(0, len(film), 5))
    axes.set_yticks(range(count), [f"slot {number}" for number in range(count)])
    axes.set_xlabel("what happened, in order: not a time")
    summary = _summary(film)
    axes.set_title(title or summary, pad=22)
    _legend(axes, film)
    slots = [_in_words([moment.slots[number] for moment in film], number) for number in range(count)]
    return Picture(made, "\n".join([summary, *slots]))


def _draw_slot(axes: Any, slots: Sequence[Slot], number: int) -> None:
    """Draw one slot: its states, and below them the phases of its barriers."""
    for (state, tiles), start, end in _runs([(slot.state, slot.tiles) for slot in slots]):
        colour = COLOURS[state]
        style = {"facecolor": colour, "edgecolor": "white", "linewidth": 0.8}
        rectangle(axes, start, number - 0.42, end - start, 0.5, **style)
        if tiles and end - start >= 0.8 * len(tiles):
            label(axes, (start + end) / 2, number - 0.17, "+".join(map(str, tiles)), color=ink_on(colour))

    barriers = {"full": [slot.full for slot in slots]}
    if slots[0].empty is not None:
        barriers["empty"] = [slot.empty or 0 for slot in slots]
    height = 0.2 if len(barriers) == 1 else 0.17
    for row, (name, phases) in enumerate(barriers.items()):
        middle = number + 0.12 + height / 2 + row * (height + 0.02)
        for phase, start, end in _runs(phases):
            face, ink = (INK, "white") if phase % 2 else ("white", INK)
            centred(axes, start, middle, end - start, height, facecolor=face, edgecolor=INK, linewidth=0.6)
            # a short bar has room for its parity alone, or for nothing
            width = end - start
            text = str(phase % 2) if width >= 0.8 else ""
            if width >= 5:
                text = f"phase {phase}, parity {phase % 2}"
            if width >= 7 and len(barriers) > 1:
                text = f"{name}: {text}"
            label(axes, (start + end) / 2, middle - 0.008, text, size=6.5, color=ink)


def _runs(values: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """Equal neighbours as one: (value, start, end)."""
    found, at = [], 0
    for value, same in groupby(values):
        length = len(list(same))
        found.append((value, at, at + length))
        at += length
    return found


def _legend(axes: Any, film: Sequence[Moment]) -> None:
    from matplotlib.lines import Line2D

    seen = {slot.state for moment in film for slot in moment.slots}
    states = {state: {"color": colour} for state, colour in COLOURS.items() if state in seen}
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.1, "columnspacing": 1.4}
    legend(axes, states, [Line2D([], [], label="threads meet", **_MEET)], **place)


def _summary(film: Sequence[Moment]) -> str:
    count = len(film[0].slots)
    tiles = {tile for moment in film for slot in moment.slots for tile in slot.tiles}
    at_once = max(sum(slot.state in (READ, BOTH) for slot in moment.slots) for moment in film)
    clash = sum(slot.state == BOTH for slot in film[0].slots)
    for first, second in pairwise(film):
        both = zip(first.slots, second.slots, strict=True)
        clash += sum(now.state == BOTH and before.state != BOTH for before, now in both)
    clashes = f"; {amount(clash, 'time')} a slot is {BOTH}" if clash else ""
    return f"{amount(len(tiles), 'tile')} through {amount(count, 'slot')}, at most {at_once} read at once{clashes}"


def _in_words(slots: Sequence[Slot], number: int) -> str:
    tiles = dict.fromkeys(tile for slot in slots for tile in slot.tiles)
    last = slots[-1]
    which = f"{'tile' if len(tiles) == 1 else 'tiles'} {', '.join(map(str, tiles))}"
    text = f"slot {number}: {which}; {amount(last.full, 'phase')} of its full barrier completed"
    return text + ("" if last.empty is None else f", {last.empty} of its empty barrier")


# --- how many slots


@dataclass(frozen=True)
class _Need:
    """The needs of a tile: bytes, slots, and cycles of the model."""

    slot: int  # bytes of a slot
    rest: int  # bytes of shared memory beside the slots
    fit: int  # slots that fit
    need: int  # slots that the model needs
    load: float  # cycles of a load
    products: float  # cycles of a step's products
    copy: float  # cycles of a step's bytes


def _need(config: Any, rates: Rates) -> _Need:
    slot = (config.block_m + config.block_n) * BLOCK
    rest = config.shared_bytes - config.stages * slot
    fit = max((n for n in range(1, 64) if replace(config, stages=n).shared_bytes <= SHARED_LIMIT), default=0)
    copy = slot / rates.tma_bandwidth
    products = config.block_m / _WAVE * BLOCK / _DEPTH * rates.wgmma(config.block_n)
    load = rates.tma_latency + copy
    return _Need(slot, rest, fit, 1 + math.ceil(load / max(copy, products)), load, products, copy)


@drawn
def ring_budget(configs: Sequence[Any], rates: Rates | None = None) -> Picture:
    """Draw how many slots fit into shared memory for each tile, and how many a model needs so that neither
    TMA nor the tensor core waits for a slot.

    By Little's law: a load takes latency + bytes / bandwidth, a step the longer of its copy and its products.
    As many loads must be in flight as steps go into a load, and one slot more is being read.

    Args:
        configs: configs of a stage with a ring (fields block_m, block_n, stages).
        rates: the model's rates, by default `emulator.Rates()`.

    Raises ValueError when there is no config, or one without stages.
    """
    if not configs:
        raise ValueError("configs: expected at least one, got none")
    for config in configs:
        if not hasattr(config, "stages"):
            raise ValueError(
                f"configs: expected those of a stage with a ring, which have `stages`, got {config!r}"
            )

    # A row for each tile: first what is no slot, then the slots that fit; dashed ones are needed and do not.
    made, axes = figure(10, 1.25 + 0.5 * len(configs))
    tiles = [f"{config.block_m} x {config.block_n}" for config in configs]
    said = []
    for y, (config, tile) in enumerate(zip(configs, tiles, strict=True)):
        need = _need(config, rates or Rates())
        centred(axes, 0, y, need.rest / _KIB, 0.64, facecolor=PURPLE, edgecolor="white")
        for i in range(max(need.fit, need.need)):
            x, width = (need.rest + i * need.slot) / _KIB, need.slot / _KIB
            colour = "white" if i >= need.fit else BLUE if i < need.need else SKY
            edge = {"edgecolor": "white"} if i < need.fit else {"edgecolor": RED, "linestyle": "--"}
            centred(axes, x, y, width, 0.64, facecolor=colour, **edge)
            label(axes, x + width / 2, y, str(i), color=ink_on(colour))
        step = max(need.copy, need.products)
        said.append(
            f"{tile}: {amount(need.fit, 'slot')} of {need.slot / _KIB:.0f} KiB fit, the model needs {need.need}: "
            f"a load takes {need.load:,.0f} cycles, a step {step:,.0f} "
            f"(copy {need.copy:,.0f}, products {need.products:,.0f})"
        )
    limit = SHARED_LIMIT / _KIB
    axes.axvline(limit, color=INK, linewidth=1.5)
    label(axes, limit, -0.62, f"{limit:.0f} KiB", ha="right", va="bottom")
    axes.set(ylim=(len(configs) - 0.45, -0.6), xlim=(0, limit * 1.01), xlabel="KiB of shared memory")
    axes.set_yticks(range(len(configs)), tiles)
    entries = {"tile of d, barriers": PURPLE, "slots that the model needs": BLUE, "more that fit": SKY}
    legend(axes, entries, loc="lower left", bbox_to_anchor=(0, 1))
    axes.set_title("How many slots fit, and how many are needed", pad=24)
    return Picture(made, "\n".join(said))
