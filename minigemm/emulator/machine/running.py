"""The machine: the units, their notifications, and the scheduling of threads.

A cluster of CTAs that runs is a `Resident`: its block of threads, the units that serve them, and its
progress. `run` takes threads that are ready, lets native code run each of them until it stops, and has the
stopped ones served by the unit whose instruction it is; the unit makes them ready again or keeps them
waiting. When no thread is ready, asynchronous work in flight completes. When there is none, the cluster is
done, or it is a deadlock and the message names every waiter.

Schedules: under "late" asynchronous work completes only when no thread can go on, under "early" at once, and
under an integer seed at random moments, with warps in random order. A kernel that waits as it must gives the
same result under each. A cycle model runs the warp with the earliest clock, and lets work land at its time.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np

from .. import context as c
from ..errors import Unsupported
from ..translate.lower import Site
from ..watch.order import warps_of
from ..watch.timeline import Model
from .barriers import Barriers
from .block import Block, Handler, Unit, distinct, line_of
from .copies import Copies
from .cp_async import CpAsync
from .faults import native_fault, never_written
from .fences import Fences
from .host_calls import HostCalls
from .launch import LaunchState
from .pool import Pool
from .products import TensorCores
from .progress import Progress
from .registers import Registers
from .thread_barriers import ClusterBarrier, ThreadBarriers
from .warpgroups import Warpgroups
from .warps import Warps

EAGER = 0.25  # under a seed: the share of rounds before which something in flight completes


def run(launch: LaunchState) -> None:
    """Run every CTA of the grid.

    Clusters run one after another. A cluster whose threads only poll lets the next one start beside it.
    """
    gx, gy, gz = launch.clusters
    free: list[Pool] = []
    residents: deque[Resident] = deque()
    pending = deque(range(gx * gy * gz))
    while pending or residents:
        # The next to run: a new cluster where all others spin (or there is none), else the next in turn.
        if pending and all(resident.progress.idle_rounds for resident in residents):
            n = pending.popleft()
            index = n % gx, n // gx % gy, n // (gx * gy)
            resident = Resident(launch, index, n, free.pop() if free else Pool(launch))
        else:
            resident = residents.popleft()

        if resident.run():
            free.append(resident.block.pool)
            continue
        residents.append(resident)
        if not pending and all(resident.progress.stuck for resident in residents):
            resident.report_hazards()
            raise resident.progress.livelock()


class Resident:
    """A cluster of CTAs that runs: its block, the units that serve it, and its progress."""

    def __init__(self, launch: LaunchState, index: tuple[int, int, int], linear: int, pool: Pool) -> None:
        block = self.block = Block(launch, index, linear, pool)

        # Each unit, with the units that it works with.
        self.thread_barriers = ThreadBarriers(block)
        self.cluster_barrier = ClusterBarrier(block)
        self.fences = Fences(block)
        self.warps = Warps(block)
        self.warpgroups = Warpgroups(block)
        self.registers = Registers(block, self.warpgroups)
        self.tensor_cores = TensorCores(block, self.warpgroups, self.registers)
        self.barriers = Barriers(block)
        self.copies = Copies(block, self.barriers)
        self.cp_async = CpAsync(block, self.barriers)
        self.host_calls = HostCalls(block)
        self.progress = Progress(block, self.barriers)

        # The addresses that native code takes.
        self._contexts, self._stride = block.contexts.ctypes.data, block.contexts.strides[0]
        self._records = block.fields.ctypes.data

        threads = self.thread_barriers, self.cluster_barrier, self.fences, self.warps
        asynchronous = self.barriers, self.copies, self.cp_async, self.tensor_cores, self.registers
        self.handlers = self._handlers(*threads, *asynchronous, self.host_calls)

    def _handlers(self, *units: Unit) -> list[Handler]:
        """Return the handler of each site of the kernel."""
        launch = self.block.launch
        served = {name: handler for unit in units for name, handler in unit.serves().items()}
        if not launch.served:
            launch.served = [_served_as(site, served) for site in launch.program.sites]
        return [served[name] for name in launch.served]

    # --- notifications

    def _exited(self, ids: np.ndarray) -> None:
        """Tell the units that threads have exited: nobody waits for them any longer."""
        block = self.block
        block.alive[ids] = False
        self.thread_barriers.exited()
        self.cluster_barrier.exited()
        self.warps.exited()
        if block.cluster.ranks > 1:
            for rank, _ in block.cluster.split(ids):
                if not block.threads_left(rank):
                    self._cta_left(rank)

    def _cta_left(self, rank: int) -> None:
        """Tell the units that a CTA in a cluster of several has exited; its shared memory is gone with it."""
        self.barriers.cta_left(rank, self.cluster_barrier.passed.get(rank))
        self.block.gone.add(rank)
        self.block.fields[:, c.GONE] |= 1 << rank

    def _idle(self) -> bool:
        """No thread is ready, and nothing is in flight. Returns whether a thread can go on all the same."""
        return self.barriers.idle()

    def _end(self) -> None:
        """Finish a cluster whose threads have all exited."""
        self.copies.end()
        self.barriers.end()
        self.report_hazards()
        if fault := never_written(self.block):
            raise fault

    def report_hazards(self) -> None:
        """Add the hazards of this block to those of the launch."""
        found, reported = self.block.order, self.block.launch.hazard_list
        if found:
            reported += [hazard for hazard in found.found.values() if hazard not in reported]

    # --- scheduling

    def run(self) -> bool:
        """Run until the cluster is done (True), or only spins (False)."""
        while True:
            ids = self._next()
            if ids is not None:
                if not self._step(ids):
                    return False
            elif self.block.deliver():
                continue
            elif not self.block.alive.any():
                self._end()
                return True
            elif not self._idle():
                self.report_hazards()
                raise self.progress.deadlock()

    def _next(self) -> np.ndarray | None:
        """Take the threads of the next round out of those that are ready; None if there are none."""
        block = self.block
        if not block.ready:
            return None
        if block.model:
            return self._earliest(block.model)
        if block.random is None:
            ids = np.concatenate(block.ready) if len(block.ready) > 1 else block.ready[0]
            block.ready = []
            return np.sort(ids)
        if block.flight and block.random.random() < EAGER:
            block.deliver()
        ids = np.sort(np.concatenate(block.ready))
        warps = warps_of(ids)
        return self._only(ids, int(warps[block.random.randrange(len(warps))]))

    def _earliest(self, model: Model) -> np.ndarray:
        """Take the ready warp with the earliest clock.

        Asynchronous work that lands by then completes first.
        """
        block = self.block
        while True:
            ids = np.sort(np.concatenate(block.ready))
            chosen = min(warps_of(ids).tolist(), key=model.now.__getitem__)
            if not block.landing or block.landing[0][0] > model.now[chosen]:
                return self._only(ids, chosen)
            heapq.heappop(block.landing)[2]()

    def _only(self, ids: np.ndarray, warp: int) -> np.ndarray:
        """Take the threads of one warp out of all that are ready."""
        mine = ids >> 5 == warp
        rest = ids[~mine]
        self.block.ready = [rest] if len(rest) else []
        return ids[mine]

    def _step(self, ids: np.ndarray) -> bool:
        """Run threads for one round, until each stops, then serve them.

        Return False when this cluster should give way to others.
        """
        block = self.block
        block.steps += 1
        block.polls = 0
        if block.order and block.order.stale:
            self._hand_out_stamps()

        ids = np.ascontiguousarray(ids, np.int32)
        if block.model:
            codes = self._execute_timed(ids, block.model)
        else:
            codes = self._execute(ids)
        faults = codes == c.FAULT
        if faults.any():
            self.report_hazards()
            raise native_fault(block, int(ids[np.argmax(faults)]))

        # Threads that stopped at the same place are served together.
        first = int(codes[0])
        if (codes == first).all():
            groups = [(first, ids)]
        else:
            groups = [(code, ids[codes == code]) for code in distinct(codes)]
        for code, group in groups:
            if code > 0:
                self.handlers[code - 1](block.launch.program.sites[code - 1], group)
            elif code == c.DONE:
                self._exited(group)
            else:  # BUDGET: a loop gives way
                block.poll(group)
        return self.progress.goes_on(groups)

    def _hand_out_stamps(self) -> None:
        """Write into the contexts what native code needs of the clocks, which have changed."""
        block, order = self.block, self.block.order
        assert order
        if order.moved:
            rows = order.order
            block.c64[:, c.ROW // 8] = rows.ctypes.data + np.arange(len(rows)) * rows.strides[0]
            order.moved = False
        block.c64[:, c.STAMP // 8] = order.stamps()
        order.stale = False

    def _execute(self, ids: np.ndarray) -> np.ndarray:
        """Run threads until they stop. Returns the codes with which they did."""
        block = self.block
        if block.cluster.ranks == 1:
            self._execute_cta(0, ids)
        else:
            for rank, group in block.cluster.split(ids):
                self._execute_cta(rank, group)
                for field in (c.CLOCK, c.GLOBAL_FLAG):  # the CTAs have these in common
                    block.fields[:, field] = block.fields[rank, field]
        return block.c32[ids, c.CODE // 4]

    def _execute_timed(self, ids: np.ndarray, model: Model) -> np.ndarray:
        """Under a cycle model: run the threads of one warp, and advance its clock by what they executed."""
        block, launch = self.block, self.block.launch
        warp, before = int(ids[0]) >> 5, launch.counts @ launch.lengths

        # %clock is the warp's own. Each read advances it by one, so the reads are counted.
        now = int(model.now[warp])
        block.fields[:, c.CLOCK] = now
        codes = self._execute(ids)
        block.clock_reads += int(block.fields[:, c.CLOCK].max()) - now

        code = int(codes[0])
        line = line_of(launch.program.sites[code - 1].instruction) if code > 0 else ""
        model.executed(warp, float(launch.counts @ launch.lengths - before) / len(ids), line)
        return codes

    def _execute_cta(self, rank: int, ids: np.ndarray) -> None:
        """Run threads of one CTA until they stop, and take what native code recorded meanwhile."""
        block = self.block
        launch, pool, order, record = block.launch, block.pool, block.order, block.fields[rank]
        address = self._records + rank * 8 * c.BLOCK_FIELDS
        launch.native.step(self._contexts, self._stride, len(ids), ids.ctypes.data, address)  # type: ignore[operator]

        # Hazards and flags.
        if order and record[c.RECORD_COUNT]:
            order.drain(pool.records[: int(record[c.RECORD_COUNT])], rank)
            record[c.RECORD_COUNT] = 0
            if lost := int(record[c.RECORDS_LOST]):
                record[c.RECORDS_LOST] = 0
                order.lost |= bool(lost & 1)
                if lost & 2:
                    order.lose_flags()

        # Memory requests.
        if launch.profile is not None:
            first = block.cluster.stride * rank
            logged = block.c64[first:, c.LOGGED // 8]
            launch.profile.take(pool.log[first:], logged, ids - first if rank else ids, block.numbers[rank])


def _served_as(site: Site, served: dict[str, Handler]) -> str:
    """Return the longest of the served names with which the name of a site's instruction begins."""
    ins = site.instruction
    parts = ins.name.split(".")
    for n in range(len(parts), 0, -1):
        name = ".".join(parts[:n])
        if name in served:
            return name
    raise Unsupported(f"unknown PTX instruction {ins.name} (PTX line {ins.line})", ins.location)
