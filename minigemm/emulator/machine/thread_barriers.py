"""Barriers at which threads meet: the 16 of a CTA (`bar.sync`), and the barrier of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..translate.lower import Site
from ..watch.order import Clocks, warps_of
from .block import Block, Handler, Unit, distinct

NUMBERS = 16  # barriers of a CTA
ONE_COUNT = "give every bar.sync and bar.arrive of one barrier the same thread count"
EXACT_COUNT = "let exactly the threads that the count names use this barrier number"


@dataclass
class NamedBarrier:
    """One of a CTA's 16 barriers, at which threads have arrived."""

    rank: int  # of the CTA
    number: int
    expected: int | None  # threads; None: all of the CTA that have not exited
    arrivals: list[tuple[np.ndarray, Site, int]] = field(default_factory=list)
    """Threads, site, ticket; 0 for threads that only arrive and do not wait."""

    def arrived(self) -> int:
        return sum(len(ids) for ids, _, _ in self.arrivals)


class ThreadBarriers(Unit):
    """The barriers of the CTAs of a block."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._open: dict[tuple[int, int], NamedBarrier] = {}  # by rank of the CTA and number

    def serves(self) -> dict[str, Handler]:
        names = [f"{opcode}.{verb}" for opcode in ("bar", "barrier") for verb in ("sync", "arrive", "red")]
        return dict.fromkeys([*names, "barrier.cta"], self.meet)

    def exited(self) -> None:
        """Complete barriers that expect all threads that are left, after some have exited."""
        for barrier in [barrier for barrier in self._open.values() if barrier.expected is None]:
            self._complete(barrier)

    def meet(self, site: Site, ids: np.ndarray) -> None:
        """`bar.sync a{, b}`, `bar.arrive a, b`, `bar.red.op d, a{, b}, p`: b threads meet at barrier a.

        Without b all threads of the CTA do.
        """
        block, modifiers = self.block, site.instruction.modifiers
        counted = len(site.arguments) == (3 if "red" in modifiers else 2)
        groups = [
            (rank, number, mine[block.arguments[mine, 0] == number])
            for rank, mine in block.cluster.split(ids)
            for number in distinct(block.arguments[mine, 0])
        ]
        for rank, number, group in groups:
            expected = int(block.arguments[group[0], 1]) if counted else None
            barrier = self._barrier(rank, number, expected, site, group)
            waits = "arrive" not in modifiers
            ticket = block.wait(group, site, partial(self._why, barrier)) if waits else 0
            barrier.arrivals.append((group, site, ticket))
            self._complete(barrier)
            if not waits:
                block.go(group)

    def _barrier(
        self, rank: int, number: int, expected: int | None, site: Site, ids: np.ndarray
    ) -> NamedBarrier:
        """Return the barrier with this number in the CTA of this rank."""
        block = self.block
        if not 0 <= number < NUMBERS:
            raise block.fault(f"barrier {number} does not exist: a CTA has {NUMBERS}", site, ids)
        if expected is not None and expected % 32:
            message = f"barrier {number} expects {expected} threads, which is no multiple of 32"
            raise block.fault(message, site, ids)
        barrier = self._open.setdefault((rank, number), NamedBarrier(rank, number, expected))
        if barrier.expected != expected:
            message = (
                f"barrier {number} is used at once with {barrier.expected or 'all'} and with {expected or 'all'} "
                "threads"
            )
            block.hazard("barrier-count", site, 0, int(ids[0]), message, (f"barrier {number}",), ONE_COUNT)
            barrier.expected = max(barrier.expected or 0, expected or 0) or None
        return barrier

    def _expected(self, barrier: NamedBarrier) -> int:
        return self.block.threads_left(barrier.rank) if barrier.expected is None else barrier.expected

    def _why(self, barrier: NamedBarrier) -> str:
        expected = self._expected(barrier)
        return f"barrier {barrier.number}, {barrier.arrived()} of {expected} threads have arrived"

    def _complete(self, barrier: NamedBarrier) -> None:
        """Open the barrier if all expected threads have arrived."""
        block = self.block
        expected, arrived = self._expected(barrier), barrier.arrived()
        if arrived < expected or not barrier.arrivals:
            return
        del self._open[barrier.rank, barrier.number]
        name, arrivals = f"barrier {barrier.number}", barrier.arrivals
        site, every = arrivals[-1][1], np.concatenate([ids for ids, _, _ in arrivals])

        # Did the right threads come, and from the right places?
        if arrived > expected:
            message = f"{arrived} threads arrived at {name}, which expects {expected}"
            block.hazard("barrier-count", site, 0, int(arrivals[-1][0][0]), message, (name,), EXACT_COUNT)
        whole = barrier.expected in (None, len(block.alive[block.cluster.threads_of(barrier.rank)]))
        check_aligned(block, [(ids, site) for ids, site, _ in arrivals], name, "__syncthreads()", whole)

        # Under a cycle model each waits at its own place.
        if block.model:
            over = block.now(every) + block.model.rates.barrier_latency
            for ids, where, ticket in arrivals:
                if ticket:
                    block.until(ids, over, name, where)
        if block.order:
            block.order.meet(every)
        if "red" in site.instruction.modifiers:
            self._reduce(site, every)

        block.launch.add_traffic("barriers", 1)
        detail = f"{name}: {len(every)} threads met"
        block.event("barrier", f"cta{block.cluster.of(barrier.rank)}", detail, site)
        for _, _, ticket in arrivals:
            if ticket:
                block.wake(ticket)

    def _reduce(self, site: Site, ids: np.ndarray) -> None:
        """`bar.red`: count the predicates of all threads that met, or combine them."""
        block, modifiers = self.block, site.instruction.modifiers
        predicates = block.arguments[ids, len(site.arguments) - 1] != 0
        if "popc" in modifiers:
            result = int(predicates.sum())
        else:
            result = int(predicates.all() if "and" in modifiers else predicates.any())
        block.results[ids, 0] = result


class ClusterBarrier(Unit):
    """The barrier of a cluster.

    A phase is over when all threads that have not exited have arrived. Each thread waits once before it
    arrives again.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        rows = block.cluster.rows
        self.arrivals = np.zeros(rows, np.int64)  # of each thread, so far
        self.waits = np.zeros(rows, np.int64)
        self.phase = 0  # how many phases are over
        self.groups: list[tuple[np.ndarray, Site]] = []  # the arrivals of this phase
        self.waiters: list[int] = []  # tickets

        # Order. A CTA that has waited may exit: all that its peers did before they arrived is over.
        self._collected: Clocks | None = None  # what those who have arrived publish
        self._published: Clocks | None = None  # what the phase before published
        self._came: np.ndarray | None = None  # what those who have arrived know, published or not
        self._over: np.ndarray | None = None  # the same of the phase before
        self.passed: dict[int, np.ndarray] = {}  # and of the last phase that a CTA has waited for, by rank

    def serves(self) -> dict[str, Handler]:
        return {"barrier.cluster.arrive": self.arrive, "barrier.cluster.wait": self.wait}

    def exited(self) -> None:
        """Complete the phase if all threads that are left have arrived, after some have exited."""
        self._complete()

    def arrive(self, site: Site, ids: np.ndarray) -> None:
        """`barrier.cluster.arrive{.release, .relaxed}{.aligned}`."""
        # A second arrival without a wait is reported, and the kernel goes on as if the thread had waited.
        block = self.block
        again = ids[self.arrivals[ids] > self.waits[ids]]
        if len(again):
            who = block.cluster.thread(int(again[0]))
            message = (
                f"{who} arrives at the cluster barrier again, and has not waited at it since it arrived the time "
                "before: PTX leaves that undefined"
            )
            fix = "barrier.cluster.wait between two barrier.cluster.arrive of a thread"
            block.hazard("cluster-barrier", site, 0, int(again[0]), message, (who,), fix)
            self.waits[again] = self.arrivals[again]

        # A thread that has already arrived in this phase is no new arrival of it.
        self.groups.append((ids[self.arrivals[ids] == self.phase], site))
        self.arrivals[ids] += 1

        # A release publishes all that the threads know, a relaxed arrival only what their fences covered.
        if order := block.order:
            covered, clocks = order.covered_by_fences(ids), order.release(ids)
            came = clocks.order
            self._came = came if self._came is None else np.maximum(order.fit_row(self._came), came)
            relaxed = "relaxed" in site.instruction.modifiers
            self._collected = order.join(self._collected, covered if relaxed else clocks)

        # These may have been the last threads that the phase lacked.
        block.go(ids)
        self._complete()

    def wait(self, site: Site, ids: np.ndarray) -> None:
        """`barrier.cluster.wait{.acquire}{.aligned}`."""
        over = (self.arrivals[ids] <= self.phase) & (self.arrivals[ids] > self.waits[ids])
        self.waits[ids] += 1
        self._pass(ids[over])
        if not over.all():
            self._keep_waiting(ids[~over], site)

    def _keep_waiting(self, ids: np.ndarray, site: Site) -> None:
        self.waiters.append(self.block.wait(ids, site, partial(self._why, ids)))

    def _missing(self) -> np.ndarray:
        """Return which threads have neither arrived in this phase nor exited (bool)."""
        return self.block.alive & (self.arrivals <= self.phase)

    def _why(self, ids: np.ndarray) -> str:
        missing = np.flatnonzero(self._missing())
        left = int(self.block.alive.sum())
        own = ""
        if np.isin(ids, missing).any():
            own = " (they have not arrived themselves: barrier.cluster.arrive comes before barrier.cluster.wait)"
        return (
            f"the cluster barrier, {left - len(missing)} of {left} threads have arrived{own}; missing: "
            f"{self.block.cluster.names(missing)}"
        )

    def _complete(self) -> None:
        """End the phase if all threads that have not exited have arrived."""
        block = self.block
        if not self.groups or not block.alive.any() or self._missing().any():
            return
        self.phase += 1
        groups, self.groups = self.groups, []
        check_aligned(block, groups, "the cluster barrier", "barrier.cluster.arrive")
        self._published, self._collected = self._collected, None
        self._over, self._came = self._came, None
        site, every = groups[-1][1], np.concatenate([ids for ids, _ in groups])
        block.launch.add_traffic("barriers", 1)
        block.event("barrier", "cluster", f"cluster barrier: {len(every)} threads met", site)

        waiters, self.waiters = self.waiters, []
        if waiters and len(every) and block.model:
            waiting = np.concatenate([block.waiting[ticket].ids for ticket in waiters])
            over = block.now(every) + block.model.rates.barrier_latency
            block.until(waiting, over, "the cluster barrier", site)

        # Who waits without an arrival of its own goes on waiting.
        for ticket in waiters:
            where = block.waiting[ticket].site
            ids = block.take(ticket)
            here = (self.arrivals[ids] <= self.phase) & (self.arrivals[ids] >= self.waits[ids])
            self._pass(ids[here])
            if not here.all():
                self._keep_waiting(ids[~here], where)

    def _pass(self, ids: np.ndarray) -> None:
        """Let the wait of these threads succeed."""
        order = self.block.order
        if len(ids) and order and self._published is not None and self._over is not None:
            order.acquire(ids, order.fit(self._published))
            order.started(ids)
            self.passed |= {rank: self._over for rank, _ in self.block.cluster.split(ids)}
        self.block.go(ids)


def check_aligned(
    block: Block, groups: list[tuple[np.ndarray, Site]], name: str, call: str, whole: bool = False
) -> None:
    """Report lanes of a warp that came to an aligned barrier from different instructions.

    `whole`: the barrier is for the whole CTA. There CUDA C++ wants all warps at the same place of the source
    too: the hardware counts warps, compute-sanitizer looks.
    """

    def aligned(site: Site) -> bool:
        return site.instruction.opcode == "bar" or "aligned" in site.instruction.modifiers

    def report(who: str, what: str, first: Site, site: Site, ids: np.ndarray, fix: str) -> None:
        places = f"{first.instruction.location} and {site.instruction.location}"
        message = f"{what} arrived at {name} from different instructions ({places}): {call} in divergent code"
        block.hazard("barrier-divergence", site, 0, int(ids[0]), message, (who,), fix)

    # The lanes of each warp.
    seen: dict[int, Site] = {}
    for ids, site in groups:
        for w in warps_of(ids).tolist():
            first = seen.setdefault(w, site)
            if first.index != site.index and aligned(site):
                warp = block.cluster.warp(w)
                fix = f"move {call} out of the branch, so that all lanes of a warp reach the same one"
                report(warp, f"lanes of {warp}", first, site, ids, fix)
    if not whole:
        return

    # The warps of the CTA: the first of them that came from elsewhere.
    first = groups[0][1]
    fix = "let all warps reach the same one, or meet at barrier.sync, which lets them come from anywhere"
    for ids, site in groups:
        elsewhere = (first.instruction.location or first.index) != (site.instruction.location or site.index)
        if elsewhere and (aligned(first) or aligned(site)):
            report(name, "warps", first, site, ids, fix)
            return
