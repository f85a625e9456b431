"""Warpgroups, whose four warps execute some instructions together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..translate.lower import Site
from .block import Block
from .wgmma import WARPGROUP


@dataclass
class Meeting:
    """Warps of a warpgroup that have come to an instruction."""

    site: Site
    groups: list[tuple[np.ndarray, int]] = field(default_factory=list)  # threads, ticket

    def come(self) -> int:
        return sum(len(ids) for ids, _ in self.groups)


class Warpgroups:
    """The warpgroups of a block. Warpgroup `n` has the threads from `n * WARPGROUP` on."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self._meetings: dict[tuple[int, int], Meeting] = {}  # by warpgroup and site

    def meet(self, site: Site, ids: np.ndarray) -> list[np.ndarray]:
        """Collect warps until all four of a warpgroup are at this instruction.

        Returns the threads (ascending, 128 each) of the warpgroups that are complete; other threads wait.
        """
        if len(ids) == WARPGROUP and ids[0] % WARPGROUP == 0 and ids[-1] == ids[0] + WARPGROUP - 1:
            return [ids]
        complete = []
        for number in np.unique(ids // WARPGROUP).tolist():
            mine = ids[ids // WARPGROUP == number]
            self._check_whole(site, mine)
            if len(mine) == WARPGROUP:
                complete.append(mine)
                continue
            meeting = self._meetings.setdefault((number, site.index), Meeting(site))
            ticket = self.block.wait(mine, site, partial(self._why, number, meeting))
            meeting.groups.append((mine, ticket))
            if meeting.come() == WARPGROUP:
                del self._meetings[number, site.index]
                threads = [self.block.take(ticket) for _, ticket in meeting.groups]
                complete.append(np.sort(np.concatenate(threads)))
        return complete

    def _check_whole(self, site: Site, ids: np.ndarray) -> None:
        """Raise Fault for warps at the end of a CTA that make no whole warpgroup."""
        cluster, thread = self.block.cluster, int(ids[0])
        if thread % cluster.stride // WARPGROUP * WARPGROUP + WARPGROUP > cluster.threads:
            message = (
                f"{_name(site)} needs a warpgroup, four warps from a multiple of 4 on: "
                f"{cluster.warp(thread >> 5)} is in none, the CTA has {cluster.threads} threads"
            )
            raise self.block.fault(message, site, ids)

    def _why(self, number: int, meeting: Meeting) -> str:
        alive = self.block.alive[WARPGROUP * number : WARPGROUP * (number + 1)]
        gone = WARPGROUP - int(alive.sum())
        exited = f", {gone} have exited" if gone else ""
        return (
            f"{_name(meeting.site)} of {self.block.cluster.warpgroup(number)}, {meeting.come()} of its 128 threads "
            f"have come{exited}. All four warps of a warpgroup must execute it, with all their lanes"
        )


def _name(site: Site) -> str:
    return ".".join((site.instruction.opcode, *site.instruction.modifiers[:1]))
