"""A ring of slots, one event after the other: which tile lies where, who owns each slot, and the phases of
its mbarriers.

The moments come from a report's events: they are an order and not a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..emulator.watch.report import Event, Report
from .phases import Copy, copies

__all__ = ["BOTH", "FILLING", "FREE", "FULL", "READ", "Moment", "Slot", "moments"]

FREE, FILLING, FULL, READ = "free", "TMA fills it", "full", "WGMMA in flight reads it"
BOTH = "filled and read at once"


@dataclass(frozen=True)
class Slot:
    """A slot at one moment."""

    state: str  # FREE, FILLING, FULL, READ or BOTH
    tiles: tuple[int, ...]  # the tiles that it holds, or that TMA and the tensor core quarrel over
    full: int  # the phase of its full barrier, counted from 0
    empty: int | None  # the phase of its empty barrier; None: it has none


@dataclass(frozen=True)
class Moment:
    """Something that happened in CTA 0, and how every slot is after it."""

    step: int
    what: str
    slots: tuple[Slot, ...]
    meet: bool = False


def moments(report: Report, products: int = 0) -> list[Moment]:
    """Tell what happened to the ring of CTA 0, one thing after the other.

    Args:
        report: a run of a kernel that loads tiles by TMA, each slot on an mbarrier of its own, and multiplies
            them in the order of their loads by WGMMA.
        products: WGMMAs that a warpgroup issues for each tile. With 0, the number comes from the run itself,
            which tells it where every tile is a group of products.

    Raises ValueError for a report without loads and products, and where `products` is needed or wrong.
    """
    ring = _Ring(report, products)
    for event in report.events:
        ring.see(event)
    return ring.found


class _Ring:
    """The slots while the events go by. A slot is what TMA fills under one mbarrier; a tile is what fills it
    once."""

    def __init__(self, report: Report, products: int) -> None:
        loads = copies(report)
        issued = Counter(event.agent for event in report.events if event.kind == "wgmma issued")
        if not loads or not issued:
            raise ValueError(
                "report: expected one of a kernel whose CTA 0 loads by TMA and multiplies by WGMMA, "
                "got one without such events"
            )

        # What the whole run says: barriers, the slot of each tile, WGMMAs for each tile.
        self.barriers = list(dict.fromkeys(load.barrier for load in loads))
        self.slot_of = self._tiles(loads)
        self.lands_in = {id(load.landed): self.barriers.index(load.barrier) for load in loads if load.landed}
        self.groups = len(issued)
        self.products = products or _products(report, max(issued.values()), len(self.slot_of))
        if self.products < 1:
            raise ValueError(
                "products: expected the number of WGMMAs of a warpgroup for each tile, "
                f"got {products}; the run itself does not tell"
            )
        phased = {_barrier(event) for event in report.events if event.kind == "phase"}
        others = sorted(phased - set(self.barriers))
        self.empties = others if len(others) == len(self.barriers) else []

        # What changes from event to event.
        self.found: list[Moment] = []
        self.asked = 0  # loads so far
        self.phases: Counter[int] = Counter()  # by barrier
        self.flying: Counter[int] = Counter()  # boxes on their way, by slot
        self.last: list[int | None] = [None] * len(
            self.barriers
        )  # by slot: the tile that TMA was asked for last
        self.reading: list[int] = []  # tiles of products in flight
        self.complete: set[int] = set()
        self.done: set[int] = set()
        self.issues: Counter[str] = Counter()  # WGMMAs issued, by warpgroup
        self.retired: Counter[str] = Counter()  # WGMMAs retired, by warpgroup
        self.retirements: Counter[int] = Counter()  # WGMMAs retired, by tile
        self.met = self.stored = False

    def _tiles(self, loads: Sequence[Copy]) -> list[int]:
        """The slot of each tile, in the order of their loads; `self.tile_of` becomes the tile of each
        load."""
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

    def see(self, event: Event) -> None:
        """Take one event in, and add a moment if it changes a slot or if threads meet."""
        kind = event.kind
        # TMA fills slots ...
        if kind == "tma load issued":
            tile = self.tile_of[self.asked]
            slot = self.slot_of[tile]
            self.asked += 1
            self.flying[slot] += 1
            if self.last[slot] != tile:
                self.last[slot] = tile
                self._say(event, f"{event.agent} asks TMA for tile {tile}, into slot {slot}")
        elif kind == "tma load landed":
            slot = self.lands_in[id(event)]
            self.flying[slot] -= 1
            if (last := self.last[slot]) in self.complete and not self.flying[slot]:
                self._say(event, f"the rest of tile {last} lands in slot {slot}, after its phase")
        # ... their barriers say when they are full, or free again ...
        elif kind == "phase":
            self._phase(event)
        # ... and the tensor core reads them, until all warpgroups' products of a tile are retired.
        elif kind == "wgmma issued":
            tile = self._tile(self.issues, event.agent)
            if tile not in self.reading and tile not in self.done:
                self.reading.append(tile)
                self._say(event, f"products of tile {tile} are issued; they read slot {self.slot_of[tile]}")
        elif kind == "wgmma retired" and self.reading:
            tile = self._tile(self.retired, event.agent)
            self.retirements[tile] += 1
            if self.retirements[tile] == self.products * self.groups and tile in self.reading:
                self.reading.remove(tile)
                self.done.add(tile)
                slot = self.slot_of[tile]
                self._say(event, f"the products of tile {tile} are done: they have read slot {slot}")
        elif kind == "barrier":
            self.met = True
            self._say(event, f"{event.detail.partition(': ')[2].removesuffix(' met')} meet", meet=True)
        elif kind == "tma store issued" and self.met and not self.stored:
            self.stored = True
            self._say(event, f"{event.agent} asks TMA to store the result")

    def _phase(self, event: Event) -> None:
        address = _barrier(event)
        phase = self.phases[address]
        self.phases[address] += 1
        which = f"completes phase {phase} (parity {phase % 2})"
        if address in self.barriers:
            slot = self.barriers.index(address)
            if (last := self.last[slot]) is not None:
                self.complete.add(last)
            self._say(event, f"tile {last} is in slot {slot}: its full barrier {which}")
        elif address in self.empties:
            slot = self.empties.index(address)
            self._say(event, f"slot {slot} is handed back: its empty barrier {which}")

    def _tile(self, so_far: Counter[str], group: str) -> int:
        """The tile of a warpgroup's next WGMMA, which it issues and retires in the order of the tiles."""
        tile = min(so_far[group] // self.products, len(self.slot_of) - 1)
        so_far[group] += 1
        return tile

    def _say(self, event: Event, what: str, meet: bool = False) -> None:
        slots = tuple(self._slot(number) for number in range(len(self.barriers)))
        self.found.append(Moment(event.step, what, slots, meet))

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

    Each of a warpgroup's waits retires whole groups, one for each tile. A single wait for everything tells
    nothing: then the count of the whole run decides.
    """
    retired = Counter((event.agent, event.step) for event in report.events if event.kind == "wgmma retired")
    if not retired:
        return 0
    if max(retired.values()) < issued:
        return math.gcd(*retired.values())
    return issued // tiles if issued % tiles == 0 else issued


def _barrier(event: Event) -> int:
    return int(event.agent.removeprefix("mbarrier "))
