"""The machine: CTAs, their threads, and who runs when.

The CTAs of a cluster run as one ``Block``, side by side (clusters.py); mostly it is one CTA. Its threads are rows of a byte matrix of contexts. ``run``
takes threads that are ready, lets native code run each of them until it stops, and serves what they stopped at; a handler either makes threads ready
again or keeps them waiting. When nobody is ready, asynchronous work in flight completes; when there is none, the block is done, or it is a deadlock and
the message names every waiter.

Schedules: under ``"late"`` asynchronous work completes only when no thread can go on, under ``"early"`` at once, and under an integer seed at random
moments, with warps in random order. A kernel that waits as it must gives the same result under each.
"""

from __future__ import annotations

import ctypes
import heapq
import math
import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import context as c
from ..clusters import OFFSETS, RANK_SHIFT, Cluster
from ..errors import Deadlock, EmulatorError, Fault, Location, Unsupported
from ..ptx.program import Symbol
from ..translate.lower import Program, Site
from ..translate.native import Native
from ..watch.order import Order, warps_of
from ..watch.report import Event
from ..watch.timeline import Model, Rates, Timeline

if TYPE_CHECKING:
    from ..watch.profile import Profile

ITERATIONS = 1024  # of a loop, before a thread gives way
PATIENCE = 512  # rounds in which nobody's state changes, before it is a deadlock
GIVE_WAY = 32  # such rounds, before other CTAs have a turn
CHECK = 512  # ordinary rounds between two looks at the state; a round that is suspected of spinning counts for several
MANY_ROUNDS, ROUND_COST = (
    1 << 16,
    4096,
)  # from then on a round counts for so many basic blocks at the instruction limit: it takes its time too
LOG_ENTRIES = 512

Handler = Callable[["Block", Site, np.ndarray], None]
HANDLERS: dict[str, Handler] = {}


def serves(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for instructions whose name starts with one of ``names`` (the longest match counts)."""

    def register(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return register


def handler_for(site: Site) -> Handler:
    parts = site.instruction.name.split(".")
    for n in range(len(parts), 0, -1):
        found = HANDLERS.get(".".join(parts[:n]))
        if found:
            return found
    ins = site.instruction
    raise Unsupported(f"unknown PTX instruction {ins.name} (PTX line {ins.line})", ins.location)


@dataclass
class Waiting:
    """Threads that wait, and what for: the raw material of a deadlock message."""

    ids: np.ndarray
    site: Site
    why: Callable[[], str]


@dataclass
class Memory:
    """Every buffer that a kernel may touch through global addresses."""

    ranges: list[tuple[int, int, bool, Any]] = field(default_factory=list)  # base, bytes, writable, owner

    def add(self, base: int, nbytes: int, writable: bool, owner: object) -> None:
        if nbytes:
            self.ranges.append((base, nbytes, writable, owner))

    def table(self) -> np.ndarray:
        return np.array([(b, b + n, int(w)) for b, n, w, _ in self.ranges] or [(0, 0, 0)], np.int64).reshape(
            -1
        )

    def bytes(self, address: int, n: int) -> np.ndarray:
        """A writable uint8 view of ``n`` bytes. Raises Fault where they are not all inside one buffer."""
        for base, size, _, _ in self.ranges:
            if base <= address and address + n <= base + size:
                return np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(address))
        raise Fault(
            f"{n} bytes at global address {address:#x} lie outside every buffer of this launch; {self.nearest(address)}"
        )

    def nearest(self, address: int) -> str:
        """Where an address lies beside the nearest buffer, in words."""
        if not self.ranges:
            return "the launch has no buffers"
        base, size, _, owner = min(self.ranges, key=lambda r: max(r[0] - address, address - (r[0] + r[1]), 0))
        if address < base:
            return f"it is {base - address} bytes before {owner}"
        if address >= base + size:
            return f"it is {address - base - size} bytes past the end of {owner} ({size} bytes)"
        return f"it begins inside {owner} ({size} bytes) at byte {address - base}"


@dataclass
class Kernel:
    """What the CTAs of one launch share."""

    program: Program
    native: Native
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    parameters: np.ndarray
    symbols: np.ndarray
    memory: Memory
    schedule: str | int
    hazards: bool
    profile: Profile | None
    counts: np.ndarray
    instruction_limit: float
    cluster: tuple[int, int, int] = (1, 1, 1)
    explicit_cluster: bool = False
    fast: bool = False
    rates: Rates | None = None  # the cycle model, where a timeline is wanted
    timeline: Timeline | None = None  # of CTA 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0))  # instructions of each basic block
    events: list[Event] = field(default_factory=list)
    hazard_list: list = field(default_factory=list)
    traffic: dict[str, int] = field(default_factory=dict)
    handlers: list[Handler] = field(default_factory=list)

    @property
    def clusters(self) -> tuple[int, int, int]:
        """The grid, in clusters."""
        x, y, z = (n // m for n, m in zip(self.grid, self.cluster, strict=True))
        return x, y, z

    def place(self, site: int) -> tuple[Location | None, int]:
        code = self.program.function.code
        if site >= len(code):
            return None, 0
        return code[site].location, code[site].line

    def add_traffic(self, key: str, amount: int) -> None:
        self.traffic[key] = self.traffic.get(key, 0) + amount


class Block:
    """The CTAs of a cluster, mostly one. ``index`` is that of the cluster in the grid of clusters; numbers of threads and places in shared memory are
    those of clusters.py."""

    def __init__(self, kernel: Kernel, index: tuple[int, int, int], linear: int, pool: Pool) -> None:
        self.kernel, self.index, self.linear, self.pool, self.cluster = (
            kernel,
            index,
            linear,
            pool,
            pool.cluster,
        )
        p = kernel.program
        ranks, threads = self.cluster.ranks, self.cluster.threads
        self.contexts, self.shared, self.order = pool.contexts, pool.shared, pool.order
        self.c32 = self.contexts.view(np.int32)
        self.c64 = self.contexts.view(np.int64)
        self.arguments = self.c64[:, c.ARGUMENTS // 8 : c.RESULTS // 8]
        self.results = self.c64[:, c.RESULTS // 8 : c.TOUCHED // 8]
        self.c32[:, c.PC // 4] = 0
        if p.local_bytes:
            self.contexts[:, p.local_offset : p.local_offset + p.local_bytes] = 0
        if self.order:
            self.order.reset()
            pool.unwritten[:] = 0
            self.c64[:, c.SYNC_SEEN // 8] = self.c64[:, c.SYNC_WROTE // 8] = 0
        self.fields = pool.fields.copy()  # the block records, a row for each CTA
        self.fields[:, c.CLUSTERID : c.CLUSTERID + 3] = index
        self.addresses = (
            self.contexts.ctypes.data,
            self.contexts.strides[0],
            self.fields.ctypes.data,
        )  # for native code
        self.ctas = (
            [index] if ranks == 1 else [self._cta(rank) for rank in range(ranks)]
        )  # their indices in the grid
        self.fields[:, c.CTAID : c.CTAID + 3] = self.ctas
        gx, gy, _ = kernel.grid
        self.numbers = [x + gx * (y + gy * z) for x, y, z in self.ctas]  # and, one after the other
        self.fields[:, c.GRID_CTA] = self.numbers
        self.random = (
            random.Random(kernel.schedule * 1000003 + linear) if isinstance(kernel.schedule, int) else None
        )
        self.alive = pool.alive.copy()
        self.gone: set[int] = set()  # ranks of CTAs that have exited, in a cluster of several
        self.ready: list[np.ndarray] = [pool.ids]
        self.flight: deque[Callable[[], None]] = deque()
        self.named: dict[Any, Any] = {}  # barriers and gatherings: the handlers' own state
        self.barriers: dict[int, Any] = {}
        self.bulk: dict[int, Any] = {}
        self.warp_ids = np.zeros(0, np.int64)  # the warps that a collective serves
        self.waiting: dict[int, Waiting] = {}
        self.ticket = 0
        self.steps = 0
        self.idle_rounds = 0  # in which nobody's state has changed
        self.polls = 0  # threads of this round that asked for something and were told "not yet"
        self.unchecked = 0  # rounds since the last look at the state, in the units of CHECK
        self.changed_at = 0  # the round that last saw a change
        self.fingerprint: int | None = None
        self.memory_mark: int | None = None
        self.patience = PATIENCE
        self.stuck = False
        self.model = (
            Model(-(-threads // 32), kernel.rates, ranks, self.cluster.warps)
            if kernel.rates and linear == 0
            else None
        )
        if self.model:
            kernel.timeline = self.model.timeline
        self.landing: list[
            tuple[float, int, Callable[[], None]]
        ] = []  # under a model: what is in flight, by its time
        self.clock_reads = 0  # under a model, where the clock says more than how often it was read

    def _cta(self, rank: int) -> tuple[int, int, int]:
        x, y, _ = self.kernel.cluster
        inside = rank % x, rank // x % y, rank // (x * y)
        i, j, k = (
            index * n + at for index, n, at in zip(self.index, self.kernel.cluster, inside, strict=True)
        )
        return i, j, k

    # ------------------------------------------------------------------------------------------- what handlers use

    def go(self, ids: np.ndarray) -> None:
        """These threads are ready."""
        if len(ids):
            self.ready.append(ids)

    def wait(self, ids: np.ndarray, site: Site, why: Callable[[], str]) -> int:
        """These threads wait; the ticket takes them out again with ``wake``."""
        self.ticket += 1
        self.waiting[self.ticket] = Waiting(ids, site, why)
        return self.ticket

    def wake(self, ticket: int) -> np.ndarray:
        ids = self.waiting.pop(ticket).ids
        self.go(ids)
        return ids

    def launch_async(self, complete: Callable[[], None], at: float = 0.0) -> None:
        """Asynchronous work: ``complete`` runs now, late, at a random moment, or at that time of the model."""
        if self.model:
            heapq.heappush(self.landing, (at, len(self.landing) + self.steps * 4096, complete))
        elif self.kernel.schedule == "early":
            complete()
        else:
            self.flight.append(complete)

    def poll(self, ids: np.ndarray) -> None:
        """These threads go on with nothing but the answer "not yet": such a round may be one of an endless loop, or wait for what is in flight."""
        self.polls += len(ids)
        self.go(ids)

    def until(self, ids: np.ndarray, time: float, what: str, site: Site) -> None:
        """Under a model: these threads go on no earlier than that."""
        if self.model:
            self.model.until(warps_of(ids).tolist(), time, what, _line(site))

    def now(self, ids: np.ndarray) -> float:
        """Under a model: when the last of these threads came to where it is."""
        return self.model.at(warps_of(ids).tolist()) if self.model else 0.0

    @property
    def watched(self) -> bool:
        """Are its events kept? Those of the first one are, to a point."""
        return self.linear == 0 and len(self.kernel.events) < 4096

    def event(self, kind: str, agent: str, detail: str, site: Site | None = None) -> None:
        if self.watched:
            self.kernel.events.append(
                Event(self.steps, kind, agent, detail, site.instruction.location if site else None)
            )

    def fault(self, message: str, site: Site, ids: np.ndarray | None = None) -> Fault:
        who = (
            f", thread {int(ids[0]) % self.cluster.stride} of {self.cta(int(ids[0]))}"
            if ids is not None and len(ids)
            else f", {self.name}"
        )
        return Fault(
            f"{message} ({site.instruction.name}, PTX line {site.instruction.line}{who})",
            site.instruction.location,
        )

    def cta(self, thread: int) -> str:
        """The CTA of a thread."""
        rank = self.cluster.rank_of(thread)
        return f"CTA {self.ctas[rank]}" + (f", rank {rank} of its cluster" if self.cluster.ranks > 1 else "")

    @property
    def name(self) -> str:
        return (
            f"CTA {self.ctas[0]}"
            if self.cluster.ranks == 1
            else f"the cluster of CTAs {self.ctas[0]} to {self.ctas[-1]}"
        )

    def threads_left(self, rank: int) -> int:
        """Threads of a CTA that have not exited."""
        return int(self.alive[self.cluster.threads_of(rank)].sum())

    def place(self, address: int, site: Site, thread: int, own: bool = True) -> int:
        """Where a shared address lies, from a 32-bit register or a generic address. ``own``: the instruction takes those of its own CTA only."""
        address &= 0xFFFFFFFF
        if self.cluster.ranks == 1:
            return address
        rank, offset = address >> RANK_SHIFT, address & OFFSETS
        if rank >= self.cluster.ranks or offset >= self.cluster.window:
            raise self.fault(f"shared address {address:#x} lies in no CTA of the cluster: it names CTA rank {rank} of {self.cluster.ranks}, and "
                             f"{offset:#x} of [{c.SHARED_FIRST:#x}, {self.cluster.size:#x})", site, np.array([thread]))  # fmt: skip
        if own and rank != self.cluster.rank_of(thread):
            raise self.fault(f"shared address {address:#x} is in CTA rank {rank}, and this instruction reaches only the shared memory of its own CTA", site,
                             np.array([thread]))  # fmt: skip
        return rank * self.cluster.window + offset

    def places(self, addresses: np.ndarray, site: Site, ids: np.ndarray, own: bool = True) -> np.ndarray:
        """The places of shared addresses, each of the thread in ``ids``."""
        addresses = addresses & 0xFFFFFFFF
        if self.cluster.ranks == 1:
            return addresses
        cluster, rank, offset = self.cluster, addresses >> RANK_SHIFT, addresses & OFFSETS
        wrong = (rank >= cluster.ranks) | (offset >= cluster.window)
        if own:
            wrong |= rank != ids // cluster.stride
        if wrong.any():
            self.place(int(addresses[wrong][0]), site, int(ids[wrong][0]), own)  # says why
        return rank * cluster.window + offset

    def hazard(
        self,
        kind: str,
        site: Site,
        address: int,
        thread: int,
        message: str,
        parties: tuple[str, ...],
        fix: str,
    ) -> None:
        if self.order:
            self.order.add(kind, site.index, address, thread, message, parties, fix)

    def shared_bytes(self, place: int, n: int, site: Site, what: str) -> np.ndarray:
        offset = place % self.cluster.window if self.cluster.ranks > 1 else place
        if not c.SHARED_FIRST <= offset <= self.cluster.size - n:
            raise self.fault(f"{what}: {n} bytes at shared address {self.cluster.spot(place)} lie outside the CTA's shared memory "
                             f"[{c.SHARED_FIRST:#x}, {self.cluster.size:#x})", site)  # fmt: skip
        return self.shared[place : place + n]

    # ------------------------------------------------------------------------------------------- running

    def run(self) -> bool:
        """Run until the block is done (True) or only spins (False)."""
        while True:
            ids = self._next()
            if ids is None:
                if self._deliver():
                    continue
                if not self.alive.any():
                    self._finish()
                    return True
                if self._nudge():
                    continue
                raise self._deadlock()
            if not self._step(ids):
                return False

    def _next(self) -> np.ndarray | None:
        if not self.ready:
            return None
        if self.model:
            return self._earliest(self.model)
        if self.random is None:
            ids = np.concatenate(self.ready) if len(self.ready) > 1 else self.ready[0]
            self.ready = []
            return np.sort(ids)
        if self.flight and self.random.random() < 0.25:
            self._deliver()
        ids = np.sort(np.concatenate(self.ready))
        warps = warps_of(ids)
        chosen = warps[self.random.randrange(len(warps))]
        self.ready = [ids[ids >> 5 != chosen]] if len(warps) > 1 else []
        return ids[ids >> 5 == chosen]

    def _earliest(self, model: Model) -> np.ndarray:
        """The ready warp whose clock is behind, after what has landed before that."""
        while True:
            ids = np.sort(np.concatenate(self.ready))
            warps = warps_of(ids).tolist()
            chosen = min(warps, key=model.now.__getitem__)
            if not self.landing or self.landing[0][0] > model.now[chosen]:
                self.ready = [ids[ids >> 5 != chosen]] if len(warps) > 1 else []
                return ids[ids >> 5 == chosen]
            heapq.heappop(self.landing)[2]()

    def _deliver(self) -> bool:
        if self.landing:
            heapq.heappop(self.landing)[2]()
            return True
        if not self.flight:
            return False
        if self.random is None:
            self.flight.popleft()()
        else:
            k = self.random.randrange(len(self.flight))
            self.flight.rotate(-k)
            complete = self.flight.popleft()
            self.flight.rotate(k)
            complete()
        return True

    def _step(self, ids: np.ndarray) -> bool:
        kernel = self.kernel
        self.steps += 1
        self.polls = 0
        if self.order and self.order.stale:
            if self.order.moved:
                rows = self.order.order
                self.c64[:, c.ROW // 8] = rows.ctypes.data + np.arange(len(rows)) * rows.strides[0]
                self.order.moved = False
            self.c64[:, c.STAMP // 8] = self.order.stamps()
            self.order.stale = False
        ids = np.ascontiguousarray(ids, np.int32)
        before, now = kernel.counts @ kernel.lengths if self.model else 0.0, 0
        if self.model:  # %clock is the warp's own; a clock that is read goes on by one
            now = int(self.model.now[int(ids[0]) >> 5])
            self.fields[:, c.CLOCK] = now
        if self.cluster.ranks == 1:
            self._execute(0, ids)
        else:
            for rank, group in self.cluster.split(ids):
                self._execute(rank, group)
        codes = self.c32[ids, c.CODE // 4]
        if self.model:
            self.clock_reads += int(self.fields[:, c.CLOCK].max()) - now
            code = int(codes[0])
            line = _line(kernel.program.sites[code - 1]) if code > 0 else ""
            self.model.executed(
                int(ids[0]) >> 5, float(kernel.counts @ kernel.lengths - before) / len(ids), line
            )
        if (codes == c.FAULT).any():
            raise self._fault(int(ids[np.argmax(codes == c.FAULT)]))
        first = int(codes[0])
        if (codes == first).all():
            groups = [(first, ids)]
        else:
            groups = [(int(code), ids[codes == code]) for code in np.unique(codes)]
        for code, group in groups:
            if code == c.DONE:
                self.alive[group] = False
                self.exited(group)
            elif code == c.BUDGET:
                self.poll(group)
            else:
                kernel.handlers[code - 1](self, kernel.program.sites[code - 1], group)
        return self._patience(groups)

    def _execute(self, rank: int, ids: np.ndarray) -> None:
        """Native code runs these threads of one CTA until they stop."""
        kernel, pool, record = self.kernel, self.pool, self.fields[rank]
        contexts, stride, records = self.addresses
        kernel.native.step(contexts, stride, len(ids), ids.ctypes.data, records + rank * 8 * c.BLOCK_FIELDS)  # type: ignore[operator]
        if self.order and record[c.RECORD_COUNT]:
            self.order.drain(pool.records[: int(record[c.RECORD_COUNT])], rank)
            record[c.RECORD_COUNT] = 0
            if lost := int(record[c.RECORDS_LOST]):
                record[c.RECORDS_LOST] = 0
                self.order.lost |= bool(lost & 1)
                if lost & 2:
                    self.order.lose_flags()
        if kernel.profile is not None:
            first = self.cluster.stride * rank
            kernel.profile.take(
                pool.log[first:],
                self.c64[first:, c.LOGGED // 8],
                ids - first if rank else ids,
                self.numbers[rank],
            )
        if self.cluster.ranks > 1:  # what the CTAs have in common
            for field in (c.CLOCK, c.GLOBAL_FLAG):
                self.fields[:, field] = record[field]

    def exited(self, ids: np.ndarray) -> None:
        """Threads that are gone no longer count at barriers: see warps.py. With its last thread a CTA of a cluster goes, and its shared memory."""
        for notify in EXIT_HOOKS:
            notify(self, ids)
        if self.cluster.ranks > 1:
            for rank, _ in self.cluster.split(ids):
                if not self.threads_left(rank):
                    for last in CTA_HOOKS:
                        last(self, rank)
                    self.gone.add(rank)
                    self.fields[:, c.GONE] |= 1 << rank

    def _patience(self, groups: list[tuple[int, np.ndarray]]) -> bool:
        """False when the CTA has spun for a while: let others run. What is in flight lands when the threads do nothing but ask for it.

        Whether a loop makes progress is seen by what it changes: the contexts of the threads, the mbarriers, the clock; at last, memory. That is looked at
        every few rounds where threads only poll, and rarely where they do something that a spinning loop may do too (a fence, a vote, a barrier).
        """
        if self.steps % 64 == 0 and self._spent() > self.kernel.instruction_limit:
            raise EmulatorError(f"no end after {self.kernel.instruction_limit:.0e} basic blocks: an endless loop? Thread {int(groups[0][1][0])} is at "
                                f"{self._loop(groups[0][1])}")  # fmt: skip
        if self.steps % 64 == 0 and self.order and self.order.exhausted:
            raise EmulatorError(
                f"{self.name} has synchronised a million times: more than the race detector can count. Launch with hazards=False"
            )
        if self.polls and self.polls == sum(len(ids) for _, ids in groups):
            self.unchecked += CHECK // 8 if groups[0][0] == c.BUDGET else CHECK // 2
        else:
            self.unchecked += 8 if self.idle_rounds else 1
        if self.unchecked < CHECK:
            return True
        self.unchecked = 0
        state = self._state()
        if state != self.fingerprint:
            self.fingerprint, self.memory_mark, self.changed_at = state, None, self.steps
            self.idle_rounds, self.stuck, self.patience = 0, False, PATIENCE
            return True
        if self.landing or (self.flight and self._deliver()):  # a model lets its clocks run
            return True
        self.idle_rounds = self.steps - self.changed_at
        if self.idle_rounds >= self.patience:
            self._look_at_memory()
        return self.idle_rounds < GIVE_WAY

    def _spent(self) -> float:
        return float(self.kernel.counts.sum()) + ROUND_COST * max(0, self.steps - MANY_ROUNDS)

    def _state(self) -> int:
        """What threads and mbarriers would have changed if there were progress; the clocks of the race detector do not count."""
        contexts = self.contexts.copy()
        contexts[:, c.ROW : c.ARGUMENTS] = 0
        contexts[:, c.TOUCHED : c.REGISTERS] = 0
        marks = sorted(
            (address, b.state.phase, b.state.pending, b.state.tx) for address, b in self.barriers.items()
        )
        return hash(
            (
                zlib.crc32(contexts.data),
                tuple(marks),
                self.clock_reads if self.model else int(self.fields[0, c.CLOCK]),
                len(self.waiting),
            )
        )

    def _look_at_memory(self) -> None:
        """A loop may make progress in memory alone (a work queue). Twice the same: nothing can change any more."""
        mark = zlib.crc32(self.shared.data)
        for base, size, writable, _ in self.kernel.memory.ranges:
            if writable:
                mark = zlib.crc32((ctypes.c_uint8 * size).from_address(base), mark)
        self.stuck = mark == self.memory_mark
        if not self.stuck:
            if self.memory_mark is not None:
                self.patience *= 2  # large buffers take long to look at
            self.memory_mark, self.changed_at = mark, self.steps

    def _loop(self, ids: np.ndarray) -> str:
        """The line at which a spinning thread gave way."""
        program = self.kernel.program
        code, number = int(self.c32[ids[0], c.CODE // 4]), int(self.c32[ids[0], c.PC // 4])
        ins = (
            program.sites[code - 1].instruction
            if code > 0
            else program.function.code[program.loops.get(number, 0)]
        )
        return str(ins.location or f"PTX line {ins.line}")

    def spinning(self) -> bool:
        return self.stuck

    def spin_deadlock(self) -> Deadlock:
        ids = np.concatenate(self.ready) if self.ready else next(iter(self.waiting.values())).ids
        self._finish_order()
        more = f" and {len(ids) - 1} more spin" if len(ids) > 1 else " spins"
        return Deadlock(f"{self.name}: {self.cluster.thread(int(ids[0]))}{more} at {self._loop(ids)}; nothing can change what "
                        f"{'they wait' if len(ids) > 1 else 'it waits'} for" + self._waiters() + self._suspects())  # fmt: skip

    def _nudge(self) -> bool:
        """A try_wait may return false: threads that peek at an mbarrier get that answer before it is called a deadlock."""
        return any(hook(self) for hook in IDLE_HOOKS)

    def _waiters(self) -> str:
        """One line for each place at which threads wait, and for each reason."""
        lines: dict[tuple[str, str], list[np.ndarray]] = {}
        for waiting in self.waiting.values():
            ins = waiting.site.instruction
            where = str(ins.location or f"PTX line {ins.line}")
            lines.setdefault((where, waiting.why()), []).append(waiting.ids)
        return "".join(
            f"\n  {self.cluster.names(np.concatenate(ids))} at {where}: {why}"
            for (where, why), ids in lines.items()
        )

    def _deadlock(self) -> Deadlock:
        waiting = list(self.waiting.values())
        location = waiting[0].site.instruction.location if waiting else None
        self._finish_order()
        threads = self.cluster.ranks * self.cluster.threads
        return Deadlock(f"deadlock in {self.name}: no thread can go on, {int(self.alive.sum())} of {threads} have not finished"
                        + self._waiters() + self._suspects(), location)  # fmt: skip

    def _suspects(self) -> str:
        found = list(self.order.found.values()) if self.order else []
        return (
            f"\n  a likely cause, at {found[0].location or f'PTX line {found[0].ptx_line}'}: {found[0].message}"
            if found
            else ""
        )

    def _fault(self, thread: int) -> EmulatorError:
        rank = self.cluster.rank_of(thread)
        record = self.fields[rank]
        kind, site, address, size = (
            int(record[k]) for k in (c.FAULT_KIND, c.FAULT_SITE, c.FAULT_ADDRESS, c.FAULT_SIZE)
        )
        ins = self.kernel.program.function.code[site]
        access = self.kernel.program.accesses.get(site)
        verb = "write" if access and access.store else "read"
        end = f"[{c.SHARED_FIRST:#x}, {self.cluster.size:#x})"
        ranks = (
            f"the cluster has ranks 0 to {self.cluster.ranks - 1}"
            if self.cluster.ranks > 1
            else "the cluster is this one CTA, rank 0"
        )
        if (
            kind == c.SHARED_BOUNDS
            and (other := address >> RANK_SHIFT) != rank
            and other < self.cluster.ranks
            and address & OFFSETS < self.cluster.size
        ):
            end += f", and the address is in that of CTA rank {other}, which only .shared::cluster and generic addresses reach"
        what = {
            c.SHARED_BOUNDS: f"out-of-bounds {verb} of {size} bytes at shared address {address:#x}; the CTA's shared memory is {end}",
            c.GLOBAL_BOUNDS: f"out-of-bounds {verb} of {size} bytes at global address {address:#x}: {self.kernel.memory.nearest(address)}",
            c.MISALIGNED: f"misaligned {verb}: {size} bytes at address {address:#x}, which is no multiple of {size}",
            c.READ_ONLY: f"write of {size} bytes at {address:#x}, which is read-only memory",
            c.TRAP: "the kernel executed trap",
            c.LOCAL_BOUNDS: f"out-of-bounds access to local memory: {size} bytes at offset {address} of {self.kernel.program.local_bytes}",
            c.BAD_INDEX: f"branch table index {address} is out of range",
            c.BAD_RANK: f"{verb} of {size} bytes at shared address {address:#x}, in CTA rank {address >> RANK_SHIFT}: {ranks}",
            c.MAPA_RANK: f"mapa names CTA rank {address}: {ranks}",
        }[kind]
        self._finish_order()
        return Fault(
            f"{what} ({ins.name}, PTX line {ins.line}, thread {self._tid(thread)} of {self.cta(thread)}){self._suspects()}",
            ins.location,
        )

    def _tid(self, thread: int) -> tuple[int, int, int]:
        bx, by, _ = self.kernel.block
        thread %= self.cluster.stride
        return thread % bx, thread // bx % by, thread // (bx * by)

    def _finish(self) -> None:
        for hook in END_HOOKS:
            hook(self)
        self._finish_order()

        if self.order and (unwritten := self.order.unexplained()):
            site, address, thread = unwritten
            ins = self.kernel.program.function.code[site]
            raise Fault(f"read of shared address {self.cluster.spot(address)}, which was never written ({ins.name}, PTX line {ins.line}, "
                        f"thread {self._tid(thread)} of {self.cta(thread)})", ins.location)  # fmt: skip

    def _finish_order(self) -> None:
        if self.order:
            self.kernel.hazard_list += [
                h for h in self.order.found.values() if h not in self.kernel.hazard_list
            ]


def _line(site: Site) -> str:
    return str(site.instruction.location or f"PTX line {site.instruction.line}")


EXIT_HOOKS: list[Callable[[Block, np.ndarray], None]] = []
CTA_HOOKS: list[Callable[[Block, int], None]] = []
IDLE_HOOKS: list[Callable[[Block], bool]] = []
END_HOOKS: list[Callable[[Block], None]] = []


class Pool:
    """The arrays of one resident cluster, used again by the next."""

    def __init__(self, kernel: Kernel) -> None:
        p = kernel.program
        bx, by, bz = kernel.block
        threads, ranks = bx * by * bz, math.prod(kernel.cluster)
        stride = p.context_bytes
        dynamic = kernel.shared
        size = max(p.dynamic_base + dynamic, c.SHARED_FIRST + p.static_shared)
        cluster = self.cluster = Cluster(ranks, threads, size)
        self.contexts = np.zeros((cluster.rows, stride), np.uint8)
        self.alive = np.arange(cluster.rows) % cluster.stride < threads  # the rows that are threads
        self.ids = np.flatnonzero(self.alive).astype(np.int32)
        raw = np.zeros(cluster.bytes + 2048, np.uint8)
        skip = -raw.ctypes.data % 1024
        self.shared = raw[skip : skip + cluster.bytes]
        asynchronous = any(s.instruction.opcode in ("cp", "wgmma") for s in p.sites)
        self.order = Order(cluster, asynchronous, kernel.place) if kernel.hazards else None
        c32, c64 = self.contexts.view(np.int32), self.contexts.view(np.int64)
        if self.order:
            self.order.touched, self.order.fenced = c64[:, c.TOUCHED // 8], c64[:, c.FENCED // 8]
        rows = np.arange(cluster.rows)
        t = rows % cluster.stride
        for offset, values in (
            (c.TID, t % bx),
            (c.TID + 4, t // bx % by),
            (c.TID + 8, t // (bx * by)),
            (c.LANE, t % 32),
            (c.WARP, t // 32),
            (c.THREAD, rows),
        ):
            c32[:, offset // 4] = values
        if kernel.profile is not None:
            self.log = np.zeros((cluster.rows, LOG_ENTRIES + len(p.accesses) + 8), np.uint64)
            c64[:, c.LOG // 8] = self.log.ctypes.data + rows * self.log.strides[0]
        self.records = np.zeros((c.RECORD_ROOM, c.RECORD_WORDS), np.int64)
        self.unwritten = np.zeros(len(p.function.code) + 1, np.uint8)
        self.ranges = kernel.memory.table()
        self.site_ranges = np.full(
            2 * len(p.function.code) + 2, 1 << 62, np.int64
        )  # an empty range that no access is in
        self.fields = np.zeros((ranks, c.BLOCK_FIELDS), np.int64)
        for rank, r in enumerate(self.fields):
            r[c.RANGES], r[c.RANGE_COUNT] = self.ranges.ctypes.data, len(kernel.memory.ranges)
            r[c.SHARED], r[c.SHARED_END] = self.shared.ctypes.data + rank * cluster.window, size
            if self.order:
                first = rank * cluster.window // 4
                r[c.CELLS], r[c.ACCESS_SITES] = (
                    self.order.cells[first:].ctypes.data,
                    self.order.sites[first:].ctypes.data,
                )
                r[c.READS], r[c.READ_COLUMNS] = self.order.reads[first:].ctypes.data, self.order.read_columns
            r[c.PARAMETERS], r[c.SYMBOLS] = kernel.parameters.ctypes.data, kernel.symbols.ctypes.data
            r[c.COUNTS] = kernel.counts.ctypes.data
            r[c.NCTAID : c.NCTAID + 3], r[c.NTID : c.NTID + 3] = kernel.grid, kernel.block
            r[c.BUDGET_LIMIT], r[c.LOG_LIMIT] = ITERATIONS, LOG_ENTRIES
            r[c.RECORDS], r[c.UNWRITTEN] = self.records.ctypes.data, self.unwritten.ctypes.data
            r[c.SITE_RANGES] = self.site_ranges.ctypes.data
            r[c.DYNAMIC_SHARED] = dynamic
            x, y, _ = kernel.cluster
            r[c.CLUSTER_CTAID : c.CLUSTER_CTAID + 3] = rank % x, rank // x % y, rank // (x * y)
            r[c.CLUSTER_NCTAID : c.CLUSTER_NCTAID + 3], r[c.NCLUSTERID : c.NCLUSTERID + 3] = (
                kernel.cluster,
                kernel.clusters,
            )
            r[c.CTARANK], r[c.NCTARANK], r[c.EXPLICIT_CLUSTER] = rank, ranks, kernel.explicit_cluster
            r[c.SHARED_BASE], r[c.WINDOW], r[c.CTA_WARPS] = rank << RANK_SHIFT, cluster.window, cluster.warps


def run(kernel: Kernel) -> None:
    """Run every CTA of the grid. Clusters run one after another, except that one which only spins lets the next start beside it."""
    kernel.handlers = [handler_for(site) for site in kernel.program.sites]
    gx, gy, gz = kernel.clusters
    free: list[Pool] = []
    resident: deque[Block] = deque()
    order = range(gx * gy * gz)
    pending = deque(order)
    while pending or resident:
        if pending and all(b.idle_rounds for b in resident):
            n = pending.popleft()
            block = Block(
                kernel, (n % gx, n // gx % gy, n // (gx * gy)), n, free.pop() if free else Pool(kernel)
            )
        else:
            block = resident.popleft()
        if block.run():
            free.append(block.pool)
        else:
            resident.append(block)
            if not pending and all(b.spinning() for b in resident):
                raise block.spin_deadlock()


def symbol_name(operand: object) -> str:
    return operand.name if isinstance(operand, Symbol) else ""
