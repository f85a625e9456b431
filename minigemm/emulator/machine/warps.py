"""What the lanes of a warp do together: shuffles, votes, `bar.warp`, and loads and stores of 8x8 matrices.

The arithmetic is in collectives.py. Here lanes gather until all that the member mask names have come, or have
exited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np

from ..errors import Unsupported
from ..translate.lower import Site
from ..watch.order import warps_of
from . import collectives
from .block import Block, Handler, Unit, distinct

FULL = 0xFFFFFFFF
MASK = {
    "shfl": 3,
    "vote": 1,
    "match": 1,
    "redux": 1,
    "elect": 0,
    "bar": 0,
}  # the argument that is the member mask
ROW = 16  # bytes of a row of an 8x8 matrix

Results = list[np.ndarray]
Collective = Callable[
    [Site, np.ndarray, np.ndarray, np.ndarray], Results
]  # site, warps, arguments, active lanes


@dataclass
class Gathering:
    """Lanes of one warp that have come to a collective with the same member mask."""

    warp: int
    name: str  # with qualifiers: lanes at a ballot and lanes at a shuffle wait for each other in vain
    mask: int
    groups: list[tuple[np.ndarray, Site, int]] = field(default_factory=list)  # threads, site, ticket

    @property
    def key(self) -> tuple[int, str, int]:
        return self.warp, self.name, self.mask

    def come(self) -> int:
        return sum(len(ids) for ids, _, _ in self.groups)


@dataclass
class Complete:
    """A warp of which all members have come to a collective."""

    warp: int
    ids: np.ndarray


class Warps(Unit):
    """The collectives of a block's warps."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._gatherings: dict[tuple[int, str, int], Gathering] = {}

    def serves(self) -> dict[str, Handler]:
        opcodes = ("shfl", "vote", "match", "redux", "elect", "bar.warp", "ldmatrix", "stmatrix", "movmatrix")
        return {**dict.fromkeys(opcodes, self.collective), "activemask": self.active_mask}

    def exited(self) -> None:
        """Serve gatherings to which all members that are left have come, after threads have exited."""
        for gathering in list(self._gatherings.values()):
            if (ids := self._take(gathering)) is not None:
                self._serve(gathering.groups[0][1], [Complete(gathering.warp, ids)])

    def active_mask(self, site: Site, ids: np.ndarray) -> None:
        """`activemask`: the lanes of the warp that are at this instruction."""
        for w in warps_of(ids).tolist():
            group = ids[ids >> 5 == w]
            self.block.results[group, 0] = int(sum(1 << (int(t) & 31) for t in group))
        self.block.go(ids)

    def collective(self, site: Site, ids: np.ndarray) -> None:
        """Gather the lanes of each warp, and serve the warps that are complete."""
        argument = MASK.get(site.instruction.opcode)
        if argument is None:
            masks = np.full(len(ids), FULL, np.int64)
        else:
            masks = self.block.arguments[ids, argument] & FULL
        self._serve(site, self._gather(site, ids, masks))

    # --- gathering

    def _gather(self, site: Site, ids: np.ndarray, masks: np.ndarray) -> list[Complete]:
        """Collect lanes until all members have come. Returns the complete warps; other lanes wait."""
        # The common case needs neither masks nor waiting.
        warps = warps_of(ids)
        if len(ids) == 32 * len(warps) and (masks == FULL).all():  # mostly: whole warps
            return [Complete(w, ids[32 * i : 32 * i + 32]) for i, w in enumerate(warps.tolist())]

        block, name = self.block, site.instruction.name
        complete = []
        for w in warps.tolist():
            # Lanes of one warp may come with different member masks, each a gathering of its own.
            here = ids >> 5 == w
            mine, named = ids[here], masks[here]
            for mask in distinct(named):
                group = mine[named == mask]

                # PTX leaves it undefined to execute the instruction with a mask that lacks the own lane.
                outside = group[np.int64(mask) >> (group & 31) & 1 == 0]
                if len(outside):
                    message = (
                        f"lane {int(outside[0]) & 31} executes {name} with member mask {mask:#010x}, which does not "
                        "hold it"
                    )
                    raise block.fault(message, site, outside)

                # All members have come at once, so none has to wait.
                if len(group) == 32 or self._members(w, mask) == len(group):
                    complete.append(Complete(w, group))
                    continue

                # The other members are elsewhere in the code, or wait already and lacked only these lanes.
                gathering = self._gatherings.setdefault((w, name, mask), Gathering(w, name, mask))
                ticket = block.wait(group, site, partial(self._why, gathering))
                gathering.groups.append((group, site, ticket))
                if (all_of_them := self._take(gathering)) is not None:
                    complete.append(Complete(w, all_of_them))
        return complete

    def _members(self, warp: int, mask: int) -> int:
        """Return the number of lanes in a member mask that have not exited."""
        lanes = np.flatnonzero(self.block.alive[32 * warp : 32 * warp + 32])
        return int((mask >> lanes & 1).sum())

    def _why(self, gathering: Gathering) -> str:
        members = self._members(gathering.warp, gathering.mask)
        return (
            f"{gathering.name} with member mask {gathering.mask:#010x}, {gathering.come()} of {members} lanes "
            "have come"
        )

    def _take(self, gathering: Gathering) -> np.ndarray | None:
        """Return the threads of a gathering, no longer waiting, if all members have come; else None."""
        if gathering.come() < self._members(gathering.warp, gathering.mask):
            return None
        del self._gatherings[gathering.key]
        return np.sort(np.concatenate([self.block.take(ticket) for _, _, ticket in gathering.groups]))

    # --- serving

    def _serve(self, site: Site, complete: list[Complete]) -> None:
        """Serve the complete warps of one site, all at once."""
        if not complete:
            return
        block, opcode = self.block, site.instruction.opcode
        if opcode == "bar":  # the others exchange registers, and order no memory
            if block.order:
                for warp in complete:
                    block.order.meet(warp.ids)
        else:
            self._compute(site, complete)
        block.go(np.concatenate([warp.ids for warp in complete]))

    def _compute(self, site: Site, complete: list[Complete]) -> None:
        """Execute a collective. Arrays are (warps, 32); lanes that take no part are not `active`."""
        block = self.block
        execute = self._COLLECTIVES.get(site.instruction.opcode)
        if execute is None:
            raise Unsupported(f"unknown PTX instruction {site.instruction.name}", site.instruction.location)
        count = len(site.arguments)
        warps, ids = [warp.warp for warp in complete], np.concatenate([warp.ids for warp in complete])
        rows, lanes = np.repeat(np.arange(len(complete)), [len(warp.ids) for warp in complete]), ids & 31
        arguments = np.zeros((len(complete), 32, count), np.int64)
        active = np.zeros((len(complete), 32), bool)
        arguments[rows, lanes] = block.arguments[ids, :count]
        active[rows, lanes] = True
        for slot, values in enumerate(execute(self, site, np.array(warps), arguments, active)):
            block.results[ids, slot] = values[rows, lanes]

    def _shuffle(self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray) -> Results:
        values, lanes, clamp = arguments[..., 0] & FULL, arguments[..., 1], arguments[..., 2]
        found = collectives.shuffle(site.instruction.modifiers[1], values, lanes, clamp, active)
        undefined = found.undefined & active
        if undefined.any() and self.block.order:
            lane = int(np.nonzero(undefined)[1][0])
            message = (
                f"lane {lane} reads by shfl.sync from a lane that has exited or is not in the member mask: the "
                "value is undefined"
            )
            fix = "let every lane that is read from execute the shuffle and stand in the mask"
            self.block.hazard("shuffle-source", site, 0, lane, message, (f"lane {lane}",), fix)
        return [found.value.astype(np.int64), found.predicate.astype(np.int64)]

    def _vote(self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray) -> Results:
        mode, predicate = site.instruction.modifiers[1], arguments[..., 0] != 0
        if mode == "ballot":
            return [_each(collectives.ballot(predicate, active))]
        return [_each(collectives.vote(mode, predicate, active))]

    def _match(self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray) -> Results:
        modifiers = site.instruction.modifiers
        values = arguments[..., 0] if "b64" in modifiers else arguments[..., 0] & FULL
        if "any" in modifiers:
            return [collectives.match_any(values, active).astype(np.int64)]
        mask, alike = collectives.match_all(values, active)
        return [_each(mask), _each(alike)]

    def _redux(self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray) -> Results:
        _, operation, *rest = site.instruction.modifiers
        return [_each(collectives.reduce(operation, rest[-1], arguments[..., 0], active))]

    def _elect(self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray) -> Results:
        leader = collectives.elect(active)
        return [_each(leader), (np.arange(32) == leader[:, None]).astype(np.int64)]

    def _load_matrix(
        self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray
    ) -> Results:
        block, count = self.block, len(site.results)
        places = self._row_places(site, warps, arguments[..., 0], count)
        if block.order:
            block.order.warp_read(places[:, : 8 * count], ROW, warps, site.index)
        block.launch.add_traffic("shared_load_bytes", len(places) * 8 * count * ROW)
        transposed = "trans" in site.instruction.modifiers
        values = collectives.load_matrix(block.shared, places, count, transposed)
        return [values[..., k].astype(np.int64) for k in range(count)]

    def _store_matrix(
        self, site: Site, warps: np.ndarray, arguments: np.ndarray, active: np.ndarray
    ) -> Results:
        block = self.block
        registers = (arguments[..., 1:] & FULL).astype(np.uint32)
        count = registers.shape[-1]
        places = self._row_places(site, warps, arguments[..., 0], count)
        if block.order:
            block.order.warp_write(places[:, : 8 * count], ROW, warps, site.index)
        block.launch.add_traffic("shared_store_bytes", len(places) * 8 * count * ROW)
        collectives.store_matrix(block.shared, places, registers, "trans" in site.instruction.modifiers)
        return []

    def _row_places(self, site: Site, warps: np.ndarray, addresses: np.ndarray, count: int) -> np.ndarray:
        """Return the places (warps, 32) of the rows of `count` matrices; only the first 8 * count are used.

        Raises Fault for a row that is misaligned or not inside the shared memory of its CTA.
        """
        block = self.block
        rows = addresses[:, : 8 * count] & FULL
        if block.cluster.ranks > 1:
            rows = block.places(rows, site, 32 * warps[:, None] + np.arange(8 * count))
            addresses = np.pad(rows, ((0, 0), (0, 32 - 8 * count)))
            ends = np.concatenate([rows.min(1), rows.max(1)])
        else:
            ends = np.array([rows.min(), rows.max()])
        for place in ends.tolist():
            block.shared_bytes(place, ROW, site, site.instruction.opcode)
        misaligned = rows % ROW != 0
        if misaligned.any():
            spot = block.cluster.spot(int(rows[misaligned][0]))
            raise block.fault(f"misaligned row address {spot}: rows are 16-byte aligned", site)
        return addresses & FULL

    _COLLECTIVES: ClassVar[
        dict[str, Callable[[Warps, Site, np.ndarray, np.ndarray, np.ndarray], Results]]
    ] = {
        "shfl": _shuffle,
        "vote": _vote,
        "match": _match,
        "redux": _redux,
        "elect": _elect,
        "ldmatrix": _load_matrix,
        "stmatrix": _store_matrix,
    }


def _each(values: np.ndarray) -> np.ndarray:
    """Repeat one value a warp, for each of its lanes: (warps) -> (warps, 32)."""
    return np.broadcast_to(np.asarray(values, np.int64)[:, None], (len(values), 32))
