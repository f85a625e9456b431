"""A ring of slots: which tile lies where, who owns each slot, and the phases of its mbarrier. From a report's events, an order and not a time."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby, pairwise
from typing import Any

from ..emulator import Rates
from ..emulator.watch.report import Event, Report
from ..hopper import SHARED_LIMIT
from ..quantize import BLOCK
from .phases import Copy, copies
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, SKY, Picture, drawn, figure, ink_on

__all__ = ["Film", "Moment", "Slot", "moments", "ring", "ring_budget", "ring_film"]

FREE, FILLING, FULL, READ, BOTH = (
    "free",
    "TMA fills it",
    "full",
    "WGMMA in flight reads it",
    "filled and read at once",
)
_COLOURS = {FREE: PALE, FILLING: SKY, FULL: ORANGE, READ: GREEN, BOTH: RED}
_WAVE, _DEPTH = 64, 32  # rows and columns of one WGMMA


@dataclass(frozen=True)
class Slot:
    """A slot at one moment. `tiles` are those that it holds, or that TMA and the tensor core quarrel over; `full` and `empty` the phase, counted from 0,
    in which its mbarriers are (None: it has no such barrier)."""

    state: str
    tiles: tuple[int, ...]
    full: int
    empty: int | None


@dataclass(frozen=True)
class Moment:
    """Something that happened in CTA 0, and how every slot is after it."""

    step: int
    what: str
    slots: tuple[Slot, ...]
    meet: bool = False


class _Ring:
    """The slots while the events go by. A slot is what TMA fills under one mbarrier; a tile, the boxes that it takes to fill it once."""

    def __init__(self, report: Report, products: int) -> None:
        loads = copies(report)
        issued = Counter(event.agent for event in report.events if event.kind == "wgmma issued")
        if not loads or not issued:
            raise ValueError(
                "report: expected one of a kernel whose CTA 0 loads by TMA and multiplies by WGMMA, got one without such events"
            )
        self.barriers = list(dict.fromkeys(load.barrier for load in loads))
        self.slot_of = self._tiles(loads)
        self.lands_in = {id(load.landed): self.barriers.index(load.barrier) for load in loads if load.landed}
        self.groups = len(issued)
        self.products = products or _products(report, max(issued.values()), len(self.slot_of))
        if self.products < 1:
            raise ValueError(
                f"products: expected the number of WGMMAs of a warpgroup for each tile, got {products}; the run itself does not tell"
            )
        phased = {_barrier(event) for event in report.events if event.kind == "phase"}
        others = sorted(phased - set(self.barriers))
        self.empties = others if len(others) == len(self.barriers) else []
        self.phases: Counter[int] = Counter()
        self.flying: Counter[int] = Counter()  # boxes on their way, by slot
        self.last: list[int | None] = [None] * len(self.barriers)  # the tile that TMA was asked for last
        self.complete: set[int] = set()
        self.done: set[int] = set()
        self.issues: Counter[str] = Counter()
        self.retirements: Counter[int] = Counter()  # by tile
        self.reading: list[int] = []

    def _tiles(self, loads: Sequence[Copy]) -> list[int]:
        """The slot of each tile, in the order of their loads; `self.tile_of` is the tile of each load."""
        slots: list[int] = []
        now: dict[int, tuple[int, set[int]]] = {}  # by barrier: its last tile and where that tile's boxes go
        self.tile_of: list[int] = []
        for load in loads:
            tile, targets = now.get(load.barrier, (-1, {load.to}))
            if load.to in targets:
                tile, targets = len(slots), set()
                slots.append(self.barriers.index(load.barrier))
            targets.add(load.to)
            now[load.barrier] = tile, targets
            self.tile_of.append(tile)
        return slots

    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slot(number) for number in range(len(self.barriers)))

    def _slot(self, number: int) -> Slot:
        last = self.last[number]
        reading = [tile for tile in self.reading if self.slot_of[tile] == number]
        tiles = tuple(dict.fromkeys([*reading, *([] if last is None else [last])]))
        if reading:
            state = READ if tiles == (last,) and not self.flying[number] else BOTH
        elif last is None or (last in self.done and not self.flying[number]):
            state, tiles = FREE, ()
        else:
            state = FULL if last in self.complete and not self.flying[number] else FILLING
        empty = self.phases[self.empties[number]] if self.empties else None
        return Slot(state, tiles, self.phases[self.barriers[number]], empty)


def _products(report: Report, issued: int, tiles: int) -> int:
    """WGMMAs of a warpgroup for each tile; 0 where the run does not tell.

    Each of its waits retires whole groups, one for each tile. A single wait for everything tells nothing: then it is the count of the whole run.
    """
    retired = Counter((event.agent, event.step) for event in report.events if event.kind == "wgmma retired")
    if not retired:
        return 0
    if max(retired.values()) < issued:
        return math.gcd(*retired.values())
    return issued // tiles if issued % tiles == 0 else issued


def _barrier(event: Event) -> int:
    return int(event.agent.removeprefix("mbarrier "))


def moments(report: Report, products: int = 0) -> list[Moment]:
    """What happened to the ring of CTA 0, one thing after the other.

    Args:
        report: of a kernel that loads tiles by TMA, each slot on an mbarrier of its own, and multiplies them in the order of their loads by WGMMA.
        products: WGMMAs that a warpgroup issues for each tile; 0 is what the run itself tells, where every tile is a group of products.

    Raises ValueError for a report without loads and products, and where `products` is needed or wrong.
    """
    ring = _Ring(report, products)
    found: list[Moment] = []
    asked = 0  # loads so far
    met = stored = False

    def say(event: Event, what: str, meet: bool = False) -> None:
        found.append(Moment(event.step, what, ring.slots(), meet))

    for event in report.events:
        if event.kind == "tma load issued":
            tile = ring.tile_of[asked]
            slot = ring.slot_of[tile]
            asked += 1
            ring.flying[slot] += 1
            if ring.last[slot] != tile:
                ring.last[slot] = tile
                say(event, f"{event.agent} asks TMA for tile {tile}, into slot {slot}")
        elif event.kind == "tma load landed":
            slot = ring.lands_in[id(event)]
            ring.flying[slot] -= 1
            if (last := ring.last[slot]) in ring.complete and not ring.flying[slot]:
                say(event, f"the rest of tile {last} lands in slot {slot}, after its phase")
        elif event.kind == "phase":
            address = _barrier(event)
            ring.phases[address] += 1
            phase = ring.phases[address] - 1
            if address in ring.barriers:
                slot = ring.barriers.index(address)
                if (last := ring.last[slot]) is not None:
                    ring.complete.add(last)
                say(
                    event,
                    f"tile {last} is in slot {slot}: its full barrier completes phase {phase} (parity {phase % 2})",
                )
            elif address in ring.empties:
                slot = ring.empties.index(address)
                say(
                    event,
                    f"slot {slot} is handed back: its empty barrier completes phase {phase} (parity {phase % 2})",
                )
        elif event.kind == "wgmma issued":
            tile = min(ring.issues[event.agent] // ring.products, len(ring.slot_of) - 1)
            ring.issues[event.agent] += 1
            if tile not in ring.reading and tile not in ring.done:
                ring.reading.append(tile)
                say(event, f"products of tile {tile} are issued; they read slot {ring.slot_of[tile]}")
        elif event.kind == "wgmma retired" and ring.reading:
            ring.retirements[tile := _next_retired(ring, event.agent)] += 1
            if ring.retirements[tile] == ring.products * ring.groups and tile in ring.reading:
                ring.reading.remove(tile)
                ring.done.add(tile)
                say(event, f"the products of tile {tile} are done: they have read slot {ring.slot_of[tile]}")
        elif event.kind == "barrier":
            say(event, f"{event.detail.partition(': ')[2].removesuffix(' met')} meet", meet=True)
            met = True
        elif event.kind == "tma store issued" and met and not stored:
            stored = True
            say(event, f"{event.agent} asks TMA to store the result")
    return found


def _next_retired(ring: _Ring, group: str) -> int:
    """The tile whose product this warpgroup retires: in order."""
    ring.issues[f"retired {group}"] += 1
    return min((ring.issues[f"retired {group}"] - 1) // ring.products, len(ring.slot_of) - 1)


# ---------------------------------------------------------------------------------------------------- the strip


@drawn
def ring(report: Report, title: str = "", products: int = 0) -> Picture:
    """The slots of CTA 0's ring, from left to right as things happened: a bar a slot, the tiles' numbers in it, and the parity of its barriers below.

    Arguments and errors are those of `moments`. Red is where TMA writes a slot that the tensor core reads.
    """
    film = moments(report, products)
    count = len(film[0].slots)
    made, axes = figure(10, 1.5 + (0.62 if film[0].slots[0].empty is None else 0.85) * count)
    for number in range(count):
        _bar(axes, film, number)
    for x, moment in enumerate(film):
        if moment.meet:
            axes.plot(
                [x] * 2, [-0.62, count - 0.36], color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.5
            )
    axes.set(
        yticks=range(count),
        ylim=(count - 0.32, -0.72),
        xlim=(-0.3, len(film) + 0.2),
        xticks=range(0, len(film), 5),
    )
    axes.set_yticklabels([f"slot {number}" for number in range(count)])
    axes.set_xlabel("what happened, in order: not a time")
    axes.set_title(title or _summary(film), pad=22)
    _legend(axes, film)
    return Picture(
        made, "\n".join([_summary(film), *(_slot_in_words(film, number) for number in range(count))])
    )


def _bar(axes: Any, film: Sequence[Moment], number: int) -> None:
    """One slot: its states, and the parities of its barriers."""
    from matplotlib.patches import Rectangle

    for (state, tiles), start, end in _runs([(m.slots[number].state, m.slots[number].tiles) for m in film]):
        colour = _COLOURS[state]
        axes.add_patch(
            Rectangle(
                (start, number - 0.42), end - start, 0.5, facecolor=colour, edgecolor="white", linewidth=0.8
            )
        )
        if tiles and end - start >= 0.8 * len(tiles):
            axes.text(
                (start + end) / 2,
                number - 0.17,
                "+".join(map(str, tiles)),
                ha="center",
                va="center",
                fontsize=8,
                color=ink_on(colour),
            )
    empty = film[0].slots[number].empty is not None
    height = 0.17 if empty else 0.2
    for row, name in enumerate(("full", "empty") if empty else ("full",)):
        for phase, start, end in _runs([getattr(m.slots[number], name) for m in film]):
            middle = number + 0.12 + height / 2 + row * (height + 0.02)
            face, ink = (INK, "white") if phase % 2 else ("white", INK)
            axes.add_patch(
                Rectangle(
                    (start, middle - height / 2),
                    end - start,
                    height,
                    facecolor=face,
                    edgecolor=INK,
                    linewidth=0.6,
                )
            )
            label = (
                f"phase {phase}, parity {phase % 2}"
                if end - start >= 5
                else str(phase % 2)
                if end - start >= 0.8
                else ""
            )
            axes.text((start + end) / 2, middle - 0.008, ("empty: " if row else "full: ") * (empty and end - start >= 7) + label, ha="center",
                      va="center", fontsize=6.5, color=ink)  # fmt: skip


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
    from matplotlib.patches import Patch

    seen = {slot.state for moment in film for slot in moment.slots}
    handles: list[Any] = [
        Patch(color=colour, label=state) for state, colour in _COLOURS.items() if state in seen
    ]
    handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (2, 2)), label="threads meet"))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), fontsize=8, handlelength=1.2, columnspacing=1.4,
                borderaxespad=0.1)  # fmt: skip


def _summary(film: Sequence[Moment]) -> str:
    count = len(film[0].slots)
    tiles = {tile for moment in film for slot in moment.slots for tile in slot.tiles}
    at_once = max(sum(slot.state in (READ, BOTH) for slot in moment.slots) for moment in film)
    clash = sum(slot.state == BOTH for slot in film[0].slots) + sum(
        now.state == BOTH and before.state != BOTH
        for first, second in pairwise(film)
        for before, now in zip(first.slots, second.slots, strict=True)
    )
    clashes = f"; {clash} time{'' if clash == 1 else 's'} a slot is {BOTH}" if clash else ""
    return (
        f"{_many(len(tiles), 'tile')} through {_many(count, 'slot')}, at most {at_once} read at once{clashes}"
    )


def _slot_in_words(film: Sequence[Moment], number: int) -> str:
    slots = [moment.slots[number] for moment in film]
    tiles = dict.fromkeys(tile for slot in slots for tile in slot.tiles)
    last = slots[-1]
    text = f"slot {number}: {'tile' if len(tiles) == 1 else 'tiles'} {', '.join(map(str, tiles))}; {_many(last.full, 'phase')} of its full barrier completed"
    return text + ("" if last.empty is None else f", {last.empty} of its empty barrier")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


# ---------------------------------------------------------------------------------------------------- the film


@dataclass(frozen=True, eq=False, repr=False)
class Film:
    """The strip, and where ipywidgets is there a slider under it that shows the ring at each moment. `frames` are SVG, one for each moment.

    The slider works in the browser alone: a notebook that keeps its widgets' state shows the film without a kernel, any other reader the strip.
    """

    strip: Picture
    moments: list[Moment]
    frames: list[str]

    @property
    def text(self) -> str:
        """The strip in words, then every moment."""
        return "\n".join(
            [self.strip.text, *(f"{i:>3}  {moment.what}" for i, moment in enumerate(self.moments))]
        )

    def __repr__(self) -> str:
        return self.strip.text

    def _repr_png_(self) -> bytes:
        return self.strip._repr_png_()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        widget = self.widget()
        bundle: dict[str, Any] = {} if widget is None else dict(widget._repr_mimebundle_())
        return {**bundle, "text/plain": repr(self)}

    def widget(self) -> Any:
        """The slider with its frames; None without ipywidgets 8."""
        try:
            widgets = importlib.import_module("ipywidgets")
        except ImportError:
            return None
        if not hasattr(widgets, "Stack"):
            return None
        first = widgets.HTML(self.frames[0])
        looks = {
            "layout": first.layout,
            "style": first.style,
        }  # one for all frames: less for a notebook to keep
        frames = widgets.Stack(
            [first, *(widgets.HTML(frame, **looks) for frame in self.frames[1:])], selected_index=0
        )
        slider = widgets.IntSlider(
            0, 0, len(self.frames) - 1, description="moment", layout={"width": "620px"}
        )
        play = widgets.Play(value=0, min=0, max=len(self.frames) - 1, interval=700)
        widgets.jslink((slider, "value"), (frames, "selected_index"))
        widgets.jslink((play, "value"), (slider, "value"))
        return widgets.VBox([widgets.Image(value=self._repr_png_(), format="png", layout={"max_width": "100%", "object_fit": "contain"}),
                             widgets.HBox([play, slider]), frames])  # fmt: skip


def ring_film(report: Report, title: str = "", products: int = 0) -> Film:
    """The strip of `ring` with a slider that steps through its moments: who owns which slot, and the phases of the barriers.

    Arguments and errors are those of `moments`.
    """
    film = moments(report, products)
    return Film(
        ring(report, title, products), film, [_frame(number, moment) for number, moment in enumerate(film)]
    )


def _frame(number: int, moment: Moment) -> str:
    """The ring at one moment, as SVG: a sector a slot, clockwise from the top."""
    count = len(moment.slots)
    height = max(230, 56 + 26 * count)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" width="880" font-family="sans-serif" font-size="13" fill="{INK}">'
             f'<rect width="880" height="{height}" fill="white"/>']  # fmt: skip
    for i, slot in enumerate(moment.slots):
        colour = _COLOURS[slot.state]
        parts.append(
            f'<path d="{_sector(i, count, height / 2)}" fill="{colour}" stroke="white" stroke-width="3" fill-rule="evenodd"/>'
        )
        angle = 2 * math.pi * (i + 0.5) / count
        x, y = 115 + 76 * math.sin(angle), height / 2 - 76 * math.cos(angle)
        tile = "+".join(map(str, slot.tiles)) or "-"
        parts.append(
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" font-weight="bold" fill="{ink_on(colour)}">{tile}</text>'
        )
        y = 58 + 26 * i
        empty = "" if slot.empty is None else f"; empty: phase {slot.empty}, parity {slot.empty % 2}"
        parts.append(f'<rect x="240" y="{y - 11}" width="13" height="13" fill="{colour}"/><text x="262" y="{y}">slot {i}: '
                     + (f"{_named(slot.tiles)}, " if slot.tiles else "") + f"{slot.state}</text>"
                     f'<text x="520" y="{y}" font-size="12">full: phase {slot.full}, parity {slot.full % 2}{empty}</text>')  # fmt: skip
    parts.append(f'<text x="240" y="24" font-weight="bold">{number}. {escape(moment.what)}</text>'
                 f'<text x="115" y="{height / 2 + 5:.0f}" text-anchor="middle" fill="{GREY}">tile</text></svg>')  # fmt: skip
    return "".join(parts)


def _named(tiles: Sequence[int]) -> str:
    return f"tile {tiles[0]}" if len(tiles) == 1 else f"tiles {' and '.join(map(str, tiles))}"


def _sector(number: int, count: int, middle: float, outer: float = 100, inner: float = 52) -> str:
    """The path of one of `count` sectors of a ring."""
    if count == 1:
        return " ".join(
            f"M115 {middle - r:.1f} A{r} {r} 0 1 1 114.9 {middle - r:.1f} Z" for r in (outer, inner)
        )
    angles = [2 * math.pi * (number + i) / count for i in (0, 1)]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = (
        (115 + r * math.sin(angle), middle - r * math.cos(angle))
        for r, angle in zip((outer, outer, inner, inner), (*angles, *angles[::-1]), strict=True)
    )
    return f"M{x0:.1f} {y0:.1f} A{outer} {outer} 0 0 1 {x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f} A{inner} {inner} 0 0 0 {x3:.1f} {y3:.1f} Z"


# ---------------------------------------------------------------------------------------------------- how many slots


@dataclass(frozen=True)
class _Need:
    """A tile's figures: bytes of a slot and of the rest, slots that fit and that the model needs, cycles of a load, of a step's products and bytes."""

    slot: int
    rest: int
    fit: int
    need: int
    load: float
    products: float
    copy: float


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
    """How many slots fit into shared memory for each tile, and how many a model needs, so that neither TMA nor the tensor core waits for a slot.

    By Little's law: a load takes latency + bytes / bandwidth, a step the longer of its copy and its products. As many loads must
    be in flight as steps go into a load, and one slot more is being read.

    Args:
        configs: of a stage with a ring (fields block_m, block_n, stages).
        rates: of the model, by default `emulator.Rates()`.

    Raises ValueError when there is no config, or one without stages.
    """
    if not configs:
        raise ValueError("configs: expected at least one, got none")
    for config in configs:
        if not hasattr(config, "stages"):
            raise ValueError(
                f"configs: expected those of a stage with a ring, which have `stages`, got {config!r}"
            )
    from matplotlib.patches import Rectangle

    kib = 1024
    made, axes = figure(10, 1.25 + 0.5 * len(configs))
    said = []
    for y, config in enumerate(configs):
        need = _need(config, rates or Rates())
        axes.add_patch(Rectangle((0, y - 0.32), need.rest / kib, 0.64, facecolor=PURPLE, edgecolor="white"))
        for i in range(max(need.fit, need.need)):
            x, width = (need.rest + i * need.slot) / kib, need.slot / kib
            fits = i < need.fit
            colour = (BLUE if i < need.need else SKY) if fits else "white"
            axes.add_patch(
                Rectangle(
                    (x, y - 0.32),
                    width,
                    0.64,
                    facecolor=colour,
                    edgecolor="white" if fits else RED,
                    linestyle="-" if fits else "--",
                )
            )
            axes.text(x + width / 2, y, str(i), ha="center", va="center", fontsize=8, color=ink_on(colour))
        said.append(
            f"{config.block_m} x {config.block_n}: {_many(need.fit, 'slot')} of {need.slot / kib:.0f} KiB fit, the model needs {need.need}: "
            f"a load takes {need.load:,.0f} cycles, a step {max(need.copy, need.products):,.0f} (copy {need.copy:,.0f}, products {need.products:,.0f})"
        )
    axes.axvline(SHARED_LIMIT / kib, color=INK, linewidth=1.5)
    axes.text(SHARED_LIMIT / kib, -0.62, f"{SHARED_LIMIT // kib} KiB", ha="right", va="bottom", fontsize=8)
    axes.set(
        yticks=range(len(configs)),
        ylim=(len(configs) - 0.45, -0.6),
        xlim=(0, SHARED_LIMIT / kib * 1.01),
        xlabel="KiB of shared memory",
    )
    axes.set_yticklabels([f"{config.block_m} x {config.block_n}" for config in configs])
    patches = [Rectangle((0, 0), 1, 1, facecolor=c) for c in (PURPLE, BLUE, SKY)]
    axes.legend(patches, ["tile of d, barriers", "slots that the model needs", "more that fit"], loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8,
                handlelength=1.2)  # fmt: skip
    axes.set_title("How many slots fit, and how many are needed", pad=24)
    return Picture(made, "\n".join(said))
