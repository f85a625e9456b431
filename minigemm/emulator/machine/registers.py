"""The registers of a CTA, which `setmaxnreg` moves from one warpgroup to another.

Source: PTX ISA, "setmaxnreg".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..translate.lower import Site
from ..watch.order import warps_of
from .block import Block, Handler, Unit
from .warpgroups import Warpgroups
from .wgmma import WARPGROUP

REGISTER_FILE = 65536  # of an SM; one CTA that has it all
FEWEST, MOST, STEP = 24, 256, 8  # registers a thread that setmaxnreg takes
MORE = "raise the count of setmaxnreg.inc in the consumers, or take a smaller tile"


@dataclass
class RegisterWaiter:
    """A warpgroup that waits until the pool has enough registers."""

    ids: np.ndarray
    ticket: int
    count: int  # a thread, that it asks for


@dataclass
class RegisterFile:
    """The registers of a CTA: how many each warp may use, and how many are free."""

    limits: np.ndarray  # a thread, for each warp
    free: int = 0
    waiters: list[RegisterWaiter] = field(default_factory=list)


class Registers(Unit):
    """The register pools of a block's CTAs."""

    def __init__(self, block: Block, warpgroups: Warpgroups) -> None:
        super().__init__(block)
        self.warpgroups = warpgroups
        self._files: dict[int, RegisterFile] = {}  # by rank

    def serves(self) -> dict[str, Handler]:
        return {"setmaxnreg": self.set_limit}

    def set_limit(self, site: Site, ids: np.ndarray) -> None:
        """`setmaxnreg.dec` gives registers back to the CTA's pool, `.inc` waits until the pool has enough.

        A warp that exits gives nothing back: PTX does not promise it.
        """
        block, raises = self.block, "inc" in site.instruction.modifiers
        for group in self.warpgroups.meet(site, ids):
            # A count that the instruction cannot encode ends the launch.
            file, warps = self._file(group), self._warps(group)
            count, have = int(block.arguments[group[0], 0]), int(file.limits[warps[0]])
            if count % STEP or not FEWEST <= count <= MOST:
                message = f"setmaxnreg {count}: expected a multiple of {STEP} from {FEWEST} to {MOST}"
                raise block.fault(message, site, group)

            # PTX lets .inc only raise the limit and .dec only lower it. Anything else is reported and changes
            # nothing.
            if (raises and count < have) or (not raises and count > have):
                name = block.cluster.warpgroup(int(group[0]) // WARPGROUP)
                verb, other = ("inc", "dec") if raises else ("dec", "inc")
                message = f"setmaxnreg.{verb} to {count} registers in {name}, which has {have}"
                fix = f"use setmaxnreg.{other}, or another count"
                block.hazard("setmaxnreg", site, 0, int(group[0]), message, (name,), fix)
                block.go(group)
                continue

            # Every .inc joins the queue; if the pool has enough, it is served at once.
            if raises:
                ticket = block.wait(group, site, partial(self._why, file, count, len(group)))
                file.waiters.append(RegisterWaiter(group, ticket, count))
            else:
                file.free += (have - count) * len(group)
                file.limits[warps] = count
                block.go(group)
            self._hand_out(file)

    def check_pressure(self, site: Site, ids: np.ndarray) -> None:
        """Report a WGMMA at which more FP32 values are live than setmaxnreg left registers."""
        limit = int(self._file(ids).limits[self._warps(ids)[0]])
        if site.pressure > limit:
            name = self.block.cluster.warpgroup(int(ids[0]) // WARPGROUP)
            message = (
                f"{name} holds {site.pressure} FP32 values in registers at this WGMMA, and setmaxnreg left it "
                f"{limit} registers a thread"
            )
            self.block.hazard("setmaxnreg", site, 0, int(ids[0]), message, (name,), MORE)

    def _file(self, ids: np.ndarray) -> RegisterFile:
        """Return the register pool of the threads' CTA.

        At launch it is the SM's file divided by `.minnctapersm`, split evenly over the warps.
        """
        cluster = self.block.cluster
        rank = cluster.rank_of(int(ids[0]))
        if rank not in self._files:
            warps = -(-cluster.threads // 32)
            (ctas,) = self.block.launch.program.function.directives.get("minnctapersm", (1,))
            threads = -(-warps // 4) * WARPGROUP * max(ctas, 1)  # whole warpgroups have registers
            share = min(255, REGISTER_FILE // threads) // STEP * STEP
            self._files[rank] = RegisterFile(np.full(warps, share))
        return self._files[rank]

    def _warps(self, ids: np.ndarray) -> np.ndarray:
        """Return the numbers of the threads' warps in their CTA."""
        return warps_of(ids) % self.block.cluster.warps

    def _hand_out(self, file: RegisterFile) -> None:
        """Give registers to those who wait for them, as far as the pool goes."""
        waiters, file.waiters = file.waiters, []
        for waiter in waiters:
            warps = self._warps(waiter.ids)
            need = (waiter.count - int(file.limits[warps[0]])) * len(waiter.ids)
            if need <= file.free:
                file.free -= need
                file.limits[warps] = waiter.count
                self.block.wake(waiter.ticket)
            else:
                file.waiters.append(waiter)

    def _why(self, file: RegisterFile, count: int, threads: int) -> str:
        return (
            f"setmaxnreg.inc to {count} registers for {threads} threads: the CTA's pool has {file.free} left. Let "
            "the producers give back more (setmaxnreg.dec), or ask for less: all warps together can have "
            f"{REGISTER_FILE}"
        )
