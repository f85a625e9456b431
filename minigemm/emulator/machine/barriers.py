"""The mbarriers in a block's shared memory: who arrives, who waits, and the order that they carry.

The state of an mbarrier, and what its misuse means, is in mbarrier.py. Here are the instructions, the threads
that wait, and the vector clocks: an mbarrier collects the clocks of those who arrive, and publishes them when
its phase completes, together with the number of copies that had landed by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..translate.lower import Site
from ..watch.order import STAY, STEP, Clocks, warps_of
from .block import Block, Handler, Unit, distinct
from .mbarrier import COUNT_MAX, BarrierMisuse, MBarrier, never_initialised

U32 = 0xFFFFFFFF
UNUSED = "issue no load that is not used, or wait on its mbarrier before the CTA exits"
UNAWAITED = (
    "wait on the mbarrier in each CTA that the copy goes to, or end the kernel with a cluster barrier after "
    "such a wait"
)


@dataclass
class Barrier:
    """An mbarrier in shared memory."""

    place: int  # clusters.py
    state: MBarrier
    waiters: list[Waiter] = field(default_factory=list)
    phase: int = 0  # the last one that was published
    awaited: int = 0  # how many phases somebody has seen complete
    left: bool = False  # its CTA exited before it was done with, and that has been reported

    # Copies that complete on it.
    issued: int = 0  # so far
    in_flight: set[int] = field(default_factory=set)  # their numbers
    last_load: tuple[int, Site, int] | None = None  # phase, site and thread of the last one

    # The order that it carries.
    arrived: Clocks | None = None  # what those who arrived in this phase know
    published: Clocks | None = None  # what the phase before published
    remote: dict[int, tuple[int, int, Site]] = field(default_factory=dict)
    """Warp of another CTA -> its clock at its last arrival, the thread, the site."""

    # Time, under a cycle model.
    latest: float = 0.0  # the last arrival or landing of this phase
    completed: float = 0.0  # when the phase before completed

    @property
    def unawaited(self) -> bool:
        """Whether nobody has waited for the phase of the last copy."""
        return self.last_load is not None and self.last_load[0] >= self.awaited


@dataclass
class Waiter:
    """Threads that wait for the end of a phase."""

    ids: np.ndarray
    phase: int
    site: Site
    ticket: int


class Barriers(Unit):
    """The mbarriers of a block."""

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self.at_place: dict[int, Barrier] = {}
        self._peeked: tuple | None = None  # the state in which waiters last got the answer "not yet"

    def serves(self) -> dict[str, Handler]:
        arrivals = ("arrive", "arrive_drop", "expect_tx", "complete_tx")
        return {
            "mbarrier.init": self.init,
            "mbarrier.inval": self.invalidate,
            **{f"mbarrier.{operation}": self.arrive for operation in arrivals},
            "mbarrier.try_wait": self.wait,
            "mbarrier.test_wait": self.wait,
            "mbarrier.pending_count": self.pending_count,
        }

    def at(self, place: int, site: Site, ids: np.ndarray) -> Barrier:
        """Return the mbarrier at a place, and report threads that may not know of it.

        Raises Fault if there is none.
        """
        block = self.block
        barrier = self.at_place.get(place)
        if barrier is None:
            error = never_initialised(_operation(site))
            raise block.fault(f"{error.message} (shared address {block.cluster.spot(place)})", site, ids)
        if block.order:
            block.order.check_barrier_visible(ids, place, site.index)
        return barrier

    # --- instructions

    def init(self, site: Site, ids: np.ndarray) -> None:
        """`mbarrier.init [mbar], count`."""
        block = self.block
        for t in ids.tolist():
            # An mbarrier is 8 bytes of shared memory, aligned to 8.
            place, count = block.place(int(block.arguments[t, 0]), site, t), int(block.arguments[t, 1] & U32)
            memory = block.shared_bytes(place, 8, site, "mbarrier.init")
            if place % 8:
                spot = block.cluster.spot(place)
                raise block.fault(
                    f"mbarrier.init at shared address {spot}: an mbarrier is 8-byte aligned", site, ids
                )

            # Its state is kept beside the memory. After a misuse it has a count that is allowed, so that the
            # kernel goes on.
            memory[:] = 0
            old = self.at_place.get(place)
            try:
                if old is None:
                    self.at_place[place] = Barrier(place, MBarrier(count))
                else:
                    old.state.reinitialise(count)
            except BarrierMisuse as misuse:
                self.misused(site, place, t, misuse)
                self.at_place[place] = Barrier(place, MBarrier(max(1, min(count, COUNT_MAX))))

            # From here on, ordinary accesses to these bytes are reported.
            if block.order:
                block.order.place_barrier(t, place, site.index)
                block.order.barrier_column(place)
        block.go(ids)

    def invalidate(self, site: Site, ids: np.ndarray) -> None:
        """`mbarrier.inval [mbar]`."""
        block = self.block
        for t in ids.tolist():
            place = block.place(int(block.arguments[t, 0]), site, t)
            self.at(place, site, np.array([t])).state.invalidate()
            if block.order:
                block.order.clear_barrier(t, place)
        block.go(ids)

    def arrive(self, site: Site, ids: np.ndarray) -> None:
        """`mbarrier.arrive` and `.arrive_drop {state, }[mbar]{, count}`, `.expect_tx` and `.complete_tx`."""
        block = self.block
        places = block.places(block.arguments[ids, 0], site, ids, own=not _reaches_other_ctas(site))
        does = "arrives at" if "arrive" in site.instruction.name else "changes"
        for place in distinct(places):
            group = ids[places == place]
            if self.report_if_gone(place, site, group, f"{does} the mbarrier at"):
                continue
            barrier = self.at(place, site, group)
            self._arrive(barrier, site, group)
            self.advance(barrier, site)
        block.go(ids)

    def _arrive(self, barrier: Barrier, site: Site, ids: np.ndarray) -> None:
        """Let threads arrive at one mbarrier: what they know, when, and what it does to the state."""
        # A release publishes all that the threads know, a relaxed arrival only what their fences covered.
        block, state = self.block, barrier.state
        if block.cluster.ranks > 1:
            self._remember(barrier, site, ids)
        if block.order:
            relaxed = "relaxed" in site.instruction.modifiers
            self.collect(barrier, block.order.covered_by_fences(ids) if relaxed else block.order.release(ids))
        barrier.latest = max(barrier.latest, block.now(ids))

        # Threads that execute together arrive one after the other; each gets the state before its own
        # arrival.
        before = state.phase
        for t in ids.tolist():
            operands = [int(v) & U32 for v in block.arguments[t, 1 : len(site.arguments)]]
            try:
                token = _apply(state, site, operands)
                if site.results:
                    block.results[t, 0] = token
            except BarrierMisuse as misuse:
                self.misused(site, barrier.place, t, misuse)

        # One group of threads that completes several phases is the sign of a count that is too small.
        if state.phase - before > 1:
            message = (
                f"{len(ids)} threads arrive at once and complete {state.phase - before} phases: the count given "
                f"to mbarrier.init, {state.expected}, is smaller than the number of threads that arrive. Give it "
                "their number, or let one elected thread of each warp arrive"
            )
            self.misused(site, barrier.place, int(ids[0]), BarrierMisuse(message))

    def _remember(self, barrier: Barrier, site: Site, ids: np.ndarray) -> None:
        """Note arrivals from other CTAs, until the mbarrier's own CTA knows of them."""
        block = self.block
        if block.order:
            rank = block.cluster.rank_at(barrier.place)
            for w in warps_of(ids).tolist():
                if w // block.cluster.warps != rank:
                    barrier.remote[w] = int(block.order.clock[w]), int(ids[ids >> 5 == w][0]), site

    def wait(self, site: Site, ids: np.ndarray) -> None:
        """`mbarrier.try_wait done, [mbar], state` waits for the end of a phase, `.test_wait` does not."""
        # The threads of one warp may wait on different mbarriers, or for different phases.
        block, modifiers = self.block, site.instruction.modifiers
        blocks, by_parity = modifiers[0] == "try_wait", "parity" in modifiers
        places = block.places(block.arguments[ids, 0], site, ids)
        values = block.arguments[ids, 1]
        if by_parity:
            values = values & U32
        for place, value in sorted(set(zip(places.tolist(), values.tolist(), strict=True))):
            group = ids[(places == place) & (values == value)]

            # After a misuse the parity alone decides, so that the kernel goes on.
            barrier = self.at(place, site, group)
            state = barrier.state
            try:
                done = state.test_wait_parity(value) if by_parity else state.test_wait(value)
            except BarrierMisuse as misuse:
                self.misused(site, place, int(group[0]), misuse)
                done = state.phase & 1 != value & 1

            # Only try_wait puts threads to sleep; test_wait answers "not yet", and the kernel asks again.
            if done:
                self._pass(barrier, group, site)
                block.go(group)
            elif blocks:
                ticket = block.wait(group, site, partial(self._why_waiting, barrier, value))
                barrier.waiters.append(Waiter(group, state.phase, site, ticket))
            else:
                block.results[group, 0] = 0
                block.poll(group)

    def _why_waiting(self, barrier: Barrier, value: int) -> str:
        state = barrier.state
        return (
            f"the mbarrier at shared address {self.block.cluster.spot(barrier.place)}, parity {value & 1}; "
            f"it is in {state.describe()}. {state.diagnose()}"
        )

    def pending_count(self, site: Site, ids: np.ndarray) -> None:
        """`mbarrier.pending_count count, state`."""
        for t in ids.tolist():
            self.block.results[t, 0] = MBarrier.pending_count(int(self.block.arguments[t, 0]))
        self.block.go(ids)

    # --- phases

    def collect(self, barrier: Barrier, clocks: Clocks) -> None:
        """Add the clocks of an arrival to what the current phase will publish."""
        order = self.block.order
        assert order
        arrived = barrier.arrived = order.nothing() if barrier.arrived is None else order.fit(barrier.arrived)
        np.maximum(arrived.order, clocks.order, out=arrived.order)
        np.maximum(arrived.proxy, clocks.proxy, out=arrived.proxy)

    def landed(self, barrier: Barrier, number: int, nbytes: int, at: float, site: Site, thread: int) -> None:
        """Count a copy that has landed: number `number` on this mbarrier, at time `at` of a cycle model."""
        barrier.latest = max(barrier.latest, at)
        barrier.in_flight.discard(number)
        try:
            barrier.state.complete_tx(nbytes)
        except BarrierMisuse as misuse:
            self.misused(site, barrier.place, thread, misuse)
        self.advance(barrier, site)

    def advance(self, barrier: Barrier, site: Site) -> None:
        """After a change: if a phase has completed, publish its order, and wake those who waited for it."""
        block, state, known = self.block, barrier.state, barrier.phase
        if state.phase == known:
            return
        barrier.phase = state.phase
        barrier.completed, barrier.latest = barrier.latest, 0.0
        if block.watched:
            detail = f"phase {known} complete, parity is now {state.phase & 1}"
            block.event("phase", f"mbarrier {self.short_name(barrier.place)}", detail, site)
        if block.order:
            self._publish(barrier)

        waiters, barrier.waiters = barrier.waiters, []
        for waiter in waiters:
            if state.phase > waiter.phase:
                block.take(waiter.ticket)
                self._pass(barrier, waiter.ids, waiter.site)
                block.go(waiter.ids)
            else:
                barrier.waiters.append(waiter)

    def _publish(self, barrier: Barrier) -> None:
        """Publish what those who arrived know, and up to which copy everything has landed."""
        order = self.block.order
        assert order
        column = order.barrier_column(barrier.place)
        arrived = barrier.arrived = order.nothing() if barrier.arrived is None else order.fit(barrier.arrived)
        landed = min(barrier.in_flight) if barrier.in_flight else barrier.issued
        # Several mbarriers may share a column, so its clock must never decrease.
        arrived.order[column] = max(int(arrived.order[column]), landed * STEP)
        barrier.published = Clocks(arrived.order.copy(), arrived.proxy.copy())

    def _pass(self, barrier: Barrier, ids: np.ndarray, site: Site) -> None:
        """Let a wait succeed: the threads know from here on what the phase published."""
        block = self.block
        block.results[ids, 0] = 1
        barrier.awaited = max(barrier.awaited, barrier.state.phase)
        if block.model:
            time = barrier.completed + block.model.rates.barrier_latency
            block.until(ids, time, f"mbarrier {block.cluster.spot(barrier.place)}", site)
        if block.order and barrier.published is not None:
            take = block.order.note if "relaxed" in site.instruction.modifiers else block.order.acquire
            take(ids, block.order.fit(barrier.published))

    # --- events from the loop

    def idle(self) -> bool:
        """Nothing else can go on. Returns whether waiters go on with the answer "not yet".

        A try_wait may give up and return false. Each waiter gets that answer once between two events: code
        that only peeks goes on; code that loops comes back, and then it is a deadlock.
        """
        block = self.block
        state = (self.marks(), int(block.alive.sum()), len(block.waiting))
        waiting = [barrier for barrier in self.at_place.values() if barrier.waiters]
        if not waiting or self._peeked == state:
            return False
        self._peeked = state
        for barrier in waiting:
            for waiter in barrier.waiters:
                block.results[waiter.ids, 0] = 0
                block.wake(waiter.ticket)
            barrier.waiters = []
        return True

    def cta_left(self, rank: int, passed: np.ndarray | None) -> None:
        """Report copies still to land in a CTA that exits, and arrivals that it does not know of.

        `passed` is what it knows from the last cluster barrier at which it waited.
        """
        # Only a kernel whose order is watched can tell what the CTA knows.
        block = self.block
        order, cluster = block.order, block.cluster
        if not order:
            return
        known = order.knowledge(rank, passed)
        for barrier in self.at_place.values():
            # The mbarriers of the other CTAs stay in use.
            if cluster.rank_at(barrier.place) != rank:
                continue
            spot = cluster.spot(barrier.place)

            # A copy that another CTA issued may land after the exit, unless this CTA has waited for it.
            if barrier.unawaited and barrier.last_load and cluster.rank_of(barrier.last_load[2]) != rank:
                _, site, thread = barrier.last_load
                name, barrier.left = cluster.thread(thread), True
                message = (
                    f"CTA rank {rank} exits, and nobody in it has waited for a copy that {name} issued to its "
                    f"shared memory (mbarrier at {spot}): it may land when that belongs to another"
                )
                parties = (name, f"CTA rank {rank}")
                block.hazard("cta-exited", site, barrier.place, thread, message, parties, UNAWAITED)

            # An arrival from another CTA may come after the exit, unless it is ordered before it.
            for warp, (clock, thread, site) in barrier.remote.items():
                if clock > known[warp]:
                    name = cluster.thread(thread)
                    message = (
                        f"CTA rank {rank} exits while {name} may still arrive at its mbarrier at shared address "
                        f"{spot}: nothing orders that before the exit"
                    )
                    parties = (name, f"CTA rank {rank}")
                    block.hazard("cta-exited", site, barrier.place, thread, message, parties, STAY)

        # The same question for ordinary accesses to the CTA's shared memory.
        order.leave(rank, known)

    def end(self) -> None:
        """Report loads that nobody waited for, and bytes that nobody expected: all threads have exited."""
        block = self.block
        for barrier in self.at_place.values():
            # The exit of its CTA has been reported already.
            problem = barrier.state.leftover()
            if barrier.left:
                continue

            # The bytes are right, but nobody made sure that the last copy had landed.
            if not problem and barrier.unawaited and barrier.last_load:
                _, site, thread = barrier.last_load
                name = block.cluster.thread(thread)
                message = (
                    f"the CTA exits with a TMA load of {name} that nobody waited for: it may land when the shared "
                    "memory belongs to the next CTA"
                )
                parties = (name, "TMA load")
                block.hazard("tma-load-not-awaited", site, barrier.place, thread, message, parties, UNUSED)

            # No one instruction is at fault for wrong bytes: blame the first that announces any.
            sites = block.launch.program.sites
            if problem and sites:
                site = next((site for site in sites if _announces_bytes(site)), sites[0])
                spot = block.cluster.spot(barrier.place)
                message = f"mbarrier at shared address {spot}: {problem}"
                parties = (f"mbarrier at {spot}", "TMA")
                fix = "let expect_tx name exactly the bytes of the copies of that phase"
                block.hazard("mbarrier-bytes", site, barrier.place, 0, message, parties, fix)

    # --- queries by other units

    def marks(self) -> tuple:
        """Return the state of all mbarriers, to compare with an earlier one."""
        return tuple(
            sorted((place, b.state.phase, b.state.pending, b.state.tx) for place, b in self.at_place.items())
        )

    def report_if_gone(self, place: int, site: Site, ids: np.ndarray, what: str) -> bool:
        """Report an access to a place in a CTA that has exited.

        Returns whether it is one; then nothing else happens.
        """
        block = self.block
        if not block.gone or block.cluster.rank_at(place) not in block.gone:
            return False
        if block.order:
            block.order.touched_after_exit(site.index, place, int(ids[0]), what)
        return True

    def misused(self, site: Site, place: int, thread: int, misuse: BarrierMisuse) -> None:
        """Report a misuse of the mbarrier at a place."""
        block = self.block
        name = f"mbarrier at shared address {block.cluster.spot(place)}"
        message = misuse.message + (f" (the {name})" if block.cluster.ranks > 1 else "")
        block.hazard("mbarrier", site, place, thread, message, (block.cluster.thread(thread), name), "")

    def short_name(self, place: int) -> str:
        """Return what events call the mbarrier at a place."""
        return self.block.cluster.spot(place) if self.block.cluster.ranks > 1 else str(place)


def _apply(state: MBarrier, site: Site, operands: list[int]) -> int:
    """Execute one thread's operation. Returns the state that an arrival gives, 0 for the others."""
    modifiers = site.instruction.modifiers
    operation = modifiers[0]
    if operation == "expect_tx":
        state.expect_tx(operands[0])
        return 0
    if operation == "complete_tx":
        state.complete_tx(operands[0])
        return 0
    if "expect_tx" in modifiers:
        return state.arrive_expect_tx(operands[0])
    count = operands[0] if operands else 1
    if operation == "arrive_drop":
        return state.arrive_drop(count)
    return state.arrive(count, no_complete="noComplete" in modifiers)


def _reaches_other_ctas(site: Site) -> bool:
    """Return whether the address may be in another CTA: by `.shared::cluster`, or as a generic address."""
    modifiers = site.instruction.modifiers
    return "shared::cluster" in modifiers or not any(m.startswith("shared") for m in modifiers)


def _announces_bytes(site: Site) -> bool:
    return site.instruction.opcode == "mbarrier" and "expect_tx" in site.instruction.name


def _operation(site: Site) -> str:
    return ".".join((site.instruction.opcode, *site.instruction.modifiers[:1]))
