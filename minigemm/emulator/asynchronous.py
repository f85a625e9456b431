"""What runs beside the threads: mbarriers, TMA copies, bulk groups, cp.async."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from . import tma
from .errors import Fault
from .hazards import STEP, Clocks
from .lower import Site
from .machine import END_HOOKS, IDLE_HOOKS, Block, serves
from .mbarrier import BarrierMisuse, MBarrier, never_initialised

U32, U64 = 0xFFFFFFFF, 2**64 - 1


def shared_address(value: int) -> int:
    """A shared address from a 32-bit register or from a generic address."""
    return value & U32


# ---------------------------------------------------------------------------------------------------- mbarriers


@dataclass
class Barrier:
    """An mbarrier in shared memory: its state, who waits, and the order that it carries."""

    address: int
    state: MBarrier
    waiters: list[tuple[np.ndarray, int, Site, int]] = field(default_factory=list)  # threads, phase waited for, site, ticket
    arrived: Clocks | None = None
    published: Clocks | None = None
    issued: int = 0  # asynchronous copies so far
    in_flight: set[int] = field(default_factory=set)
    phase: int = 0  # the last one that was published
    latest: float = 0.0  # under a cycle model: the last arrival or landing of this phase
    completed: float = 0.0  # and when the phase before completed
    awaited: int = 0  # how many phases somebody has seen complete
    last_load: tuple[int, Site, int] | None = None  # phase, place and thread of the last copy that completes on it


def barrier_at(block: Block, address: int, site: Site, ids: np.ndarray) -> Barrier:
    barrier = block.barriers.get(address)
    if barrier is None:
        error = never_initialised(_operation(site))
        raise block.fault(f"{error.message} (shared address {address:#x})", site, ids)
    if block.order:
        block.order.check_barrier_visible(ids, address, site.index)
    return barrier


def _operation(site: Site) -> str:
    return ".".join((site.instruction.opcode, *site.instruction.modifiers[:1]))


@serves("mbarrier.init")
def init(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        address, count = shared_address(int(block.arguments[t, 0])), int(block.arguments[t, 1] & U32)
        memory = block.shared_bytes(address, 8, site, "mbarrier.init")
        if address % 8:
            raise block.fault(f"mbarrier.init at shared address {address:#x}: an mbarrier is 8-byte aligned", site, ids)
        memory[:] = 0
        old = block.barriers.get(address)
        try:
            if old is None:
                block.barriers[address] = Barrier(address, MBarrier(count))
            else:
                old.state.reinitialise(count)
        except BarrierMisuse as misuse:
            _misuse(block, site, address, t, misuse)
            block.barriers[address] = Barrier(address, MBarrier(max(1, min(count, 2**20 - 1))))
        if block.order:
            block.order.place_barrier(t, address, site.index)
            block.order.barrier_column(address)
    block.go(ids)


@serves("mbarrier.inval")
def inval(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        address = shared_address(int(block.arguments[t, 0]))
        barrier_at(block, address, site, np.array([t])).state.invalidate()
        if block.order:
            block.order.clear_barrier(t, address)
    block.go(ids)


def _misuse(block: Block, site: Site, address: int, thread: int, misuse: BarrierMisuse) -> None:
    block.hazard("mbarrier", site, address, thread, misuse.message, (f"thread {thread}", f"mbarrier at shared address {address:#x}"), "")


@serves("mbarrier.arrive", "mbarrier.arrive_drop", "mbarrier.expect_tx", "mbarrier.complete_tx")
def arrive(block: Block, site: Site, ids: np.ndarray) -> None:
    for address in np.unique(block.arguments[ids, 0] & U32).tolist():
        group = ids[(block.arguments[ids, 0] & U32) == address]
        barrier = barrier_at(block, address, site, group)
        if block.order:
            _collect(block, barrier, block.order.release(group))
        barrier.latest = max(barrier.latest, block.now(group))
        before = barrier.state.phase
        for t in group.tolist():
            try:
                state = _apply(barrier.state, site, [int(v) & U32 for v in block.arguments[t, 1 : len(site.arguments)]])
                if site.results:
                    block.results[t, 0] = state
            except BarrierMisuse as misuse:
                _misuse(block, site, address, t, misuse)
        if barrier.state.phase - before > 1:
            _misuse(block, site, address, int(group[0]), BarrierMisuse(
                f"{len(group)} threads arrive at once and complete {barrier.state.phase - before} phases: the count given to mbarrier.init, "
                f"{barrier.state.expected}, is smaller than the number of threads that arrive. Give it their number, or let one elected thread of each warp arrive"
            ))  # fmt: skip
        _advance(block, barrier, site)
    block.go(ids)


def _apply(state: MBarrier, site: Site, operands: list[int]) -> int:
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


def _collect(block: Block, barrier: Barrier, clocks: Clocks) -> None:
    assert block.order
    if barrier.arrived is None:
        barrier.arrived = block.order.nothing()
    barrier.arrived = block.order.fit(barrier.arrived)
    np.maximum(barrier.arrived.order, clocks.order, out=barrier.arrived.order)
    np.maximum(barrier.arrived.proxy, clocks.proxy, out=barrier.arrived.proxy)


def _advance(block: Block, barrier: Barrier, site: Site | None) -> None:
    """After a change: did a phase complete? Then publish its order and wake those who waited for it."""
    known = barrier.phase
    if barrier.state.phase == known:
        return
    barrier.phase = barrier.state.phase
    barrier.completed, barrier.latest = barrier.latest, 0.0
    block.event("phase", f"mbarrier {barrier.address}", f"phase {known} complete, parity is now {barrier.state.phase & 1}", site)
    if block.order:
        if barrier.arrived is None:
            barrier.arrived = block.order.nothing()
        barrier.arrived = block.order.fit(barrier.arrived)
        landed = min(barrier.in_flight) if barrier.in_flight else barrier.issued
        column = block.order.barrier_column(barrier.address)
        barrier.arrived = block.order.fit(barrier.arrived)
        barrier.arrived.order[column] = landed * STEP
        barrier.published = Clocks(barrier.arrived.order.copy(), barrier.arrived.proxy.copy())
    still = []
    for ids, phase, waiting_site, ticket in barrier.waiters:
        if barrier.state.phase > phase:
            block.waiting.pop(ticket)
            _passed(block, barrier, ids, waiting_site)
            block.go(ids)
        else:
            still.append((ids, phase, waiting_site, ticket))
    barrier.waiters = still


def _passed(block: Block, barrier: Barrier, ids: np.ndarray, site: Site) -> None:
    block.results[ids, 0] = 1
    barrier.awaited = max(barrier.awaited, barrier.state.phase)
    if block.model:
        block.until(ids, barrier.completed + block.model.rates.barrier_latency, f"mbarrier {barrier.address:#x}", site)
    if block.order and barrier.published is not None:
        block.order.acquire(ids, block.order.fit(barrier.published))


@serves("mbarrier.try_wait", "mbarrier.test_wait")
def wait(block: Block, site: Site, ids: np.ndarray) -> None:
    """``try_wait`` blocks until the phase completes; ``test_wait`` answers at once."""
    modifiers = site.instruction.modifiers
    blocking = modifiers[0] == "try_wait"
    keys = block.arguments[ids, 0] & U32
    values = block.arguments[ids, 1] & U32 if "parity" in modifiers else block.arguments[ids, 1]
    for address, value in sorted(set(zip(keys.tolist(), values.tolist(), strict=True))):
        group = ids[(keys == address) & (values == value)]
        barrier = barrier_at(block, address, site, group)
        try:
            done = barrier.state.test_wait_parity(value) if "parity" in modifiers else barrier.state.test_wait(value)
        except BarrierMisuse as misuse:
            _misuse(block, site, address, int(group[0]), misuse)
            done = barrier.state.phase & 1 != value & 1
        if done:
            _passed(block, barrier, group, site)
            block.go(group)
        elif blocking:
            ticket = block.wait(group, site, partial(_why_waiting, barrier, value))
            barrier.waiters.append((group, barrier.state.phase, site, ticket))
        else:
            block.results[group, 0] = 0
            block.poll(group)


def _why_waiting(barrier: Barrier, value: int) -> str:
    state = barrier.state
    return f"the mbarrier at shared address {barrier.address:#x}, parity {value & 1}; it is in {state.describe()}. {state.diagnose()}"


@serves("mbarrier.pending_count")
def pending_count(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        block.results[t, 0] = MBarrier.pending_count(int(block.arguments[t, 0]))
    block.go(ids)


def _peek(block: Block) -> bool:
    """try_wait may give up and return false. When nothing else can go on, let each waiter have that answer once between two events:
    code that only peeks goes on, code that loops comes back, and then it is a deadlock."""
    marks = {address: (b.state.phase, b.state.pending, b.state.tx) for address, b in block.barriers.items()}
    state = (tuple(sorted(marks.items())), int(block.alive.sum()), len(block.waiting))
    waiters = [(b, w) for b in block.barriers.values() for w in b.waiters]
    if not waiters or block.named.get("peeked") == state:
        return False
    block.named["peeked"] = state
    for barrier, (ids, _, _, ticket) in waiters:
        block.waiting.pop(ticket)
        block.results[ids, 0] = 0
        block.go(ids)
        barrier.waiters = []
    return True


IDLE_HOOKS.append(_peek)


# ---------------------------------------------------------------------------------------------------- TMA


@dataclass
class BulkGroups:
    """The bulk copies of one thread that read shared memory: open, and committed in order."""

    open: list[Callable[[], None]] = field(default_factory=list)
    groups: deque[tuple[list[Callable[[], None]], int]] = field(default_factory=deque)  # copies, clock of the last
    clock: int = 0
    site: Site | None = None
    read: float = 0.0  # under a cycle model: when the last has read its source


def descriptor_at(block: Block, address: int, site: Site, ids: np.ndarray) -> tma.Descriptor:
    if address % 64:
        raise block.fault(f"the tensor map at {address:#x} is not 64-byte aligned", site, ids)
    with _blamed(block, site, int(ids[0])):
        return tma.decode(block.kernel.memory.bytes(address, 128).tobytes())


@contextmanager
def _blamed(block: Block, site: Site, thread: int) -> Iterator[None]:
    """A fault of a copy names the instruction and the thread that issued it."""
    try:
        yield
    except Fault as error:
        raise block.fault(error.message, site, np.array([thread])) from None


@serves("cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor")
def tensor_copy(block: Block, site: Site, ids: np.ndarray) -> None:
    modifiers = site.instruction.modifiers
    tma.require_tile_mode(modifiers)
    rank = next(int(m[0]) for m in modifiers if len(m) == 2 and m[1] == "d" and m[0].isdigit())
    load = modifiers[modifiers.index(f"{rank}d") + 1].startswith("shared")
    for t in ids.tolist():
        arguments = [int(v) for v in block.arguments[t, : len(site.arguments)]]
        one = np.array([t])
        if load:
            destination, where, coordinates, mbar = arguments[0], arguments[1], arguments[2 : 2 + rank], arguments[2 + rank]
        else:
            where, coordinates, destination, mbar = arguments[0], arguments[1 : 1 + rank], arguments[1 + rank], 0
        descriptor = descriptor_at(block, where & U64, site, one)
        if len(descriptor.dims) != rank:
            raise block.fault(f"a {rank}-dimensional copy with a tensor map of {len(descriptor.dims)} dimensions", site, one)
        signed = [v - (1 << 32) if v >> 31 & 1 else v for v in (v & U32 for v in coordinates)]
        address = shared_address(destination)
        block.shared_bytes(address, descriptor.smem_bytes, site, "TMA copy")
        _check_box(block, site, t, address, descriptor, signed, load)
        if load:
            _load_box(block, site, t, descriptor, signed, address, shared_address(mbar))
        else:
            _store_box(block, site, t, descriptor, signed, address)
    block.go(ids)


def _check_box(block: Block, site: Site, thread: int, address: int, descriptor: tma.Descriptor, coordinates: list[int], load: bool) -> None:
    """What a GPU faults on at once, and what it does but nobody means."""
    try:
        warnings = (tma.shared_alignment(address, descriptor.swizzle), tma.check_box(descriptor, coordinates, store=not load))
    except Fault as error:
        raise block.fault(error.message, site, np.array([thread])) from None
    for kind, warning in zip(("swizzle-alignment", "ragged-store"), warnings, strict=True):
        if warning:
            message, _, fix = warning.rpartition(". ")
            block.hazard(kind, site, address, thread, message or warning, (f"thread {thread}", "TMA"), fix if message else "")


def _load_box(block: Block, site: Site, thread: int, descriptor: tma.Descriptor, coordinates: list[int], address: int, mbar: int) -> None:
    def move() -> None:
        with _blamed(block, site, thread):
            block.shared[descriptor.offsets(address)] = tma.gather(descriptor, coordinates, block.kernel.memory)

    block.kernel.add_traffic("tma_load_bytes", descriptor.box_bytes)
    what = f"box at {tuple(coordinates)} -> shared {address:#x}"
    _load(block, site, thread, address, descriptor.smem_bytes, descriptor.box_bytes, mbar, move, what, descriptor.swizzle)


def _load(
    block: Block, site: Site, thread: int, address: int, span: int, nbytes: int, mbar: int, move: Callable[[], None], what: str, swizzle: int = 0
) -> None:
    """An asynchronous write of shared memory that completes on an mbarrier."""
    barrier = barrier_at(block, mbar, site, np.array([thread]))
    number = barrier.issued
    barrier.issued += 1
    barrier.in_flight.add(number)
    barrier.last_load = barrier.state.phase, site, thread
    if block.order:
        column = block.order.barrier_column(mbar)
        block.order.asynchronous_write(thread, address, span, column, (number + 1) * STEP, site.index, swizzle)
    block.kernel.add_traffic("tma_transactions", 1)
    block.event("tma load issued", f"thread {thread}", f"{what}, {nbytes} bytes on mbarrier {mbar}", site)

    at = block.model.copy(thread >> 5, nbytes, f"load {nbytes} bytes to {address:#x}", str(site.instruction.location)) if block.model else 0.0

    def land() -> None:
        move()
        barrier.latest = max(barrier.latest, at)
        barrier.in_flight.discard(number)
        block.event("tma load landed", "tma", f"{what}, {nbytes} bytes on mbarrier {mbar}", site)
        try:
            barrier.state.complete_tx(nbytes)
        except BarrierMisuse as misuse:
            _misuse(block, site, mbar, thread, misuse)
        _advance(block, barrier, site)

    block.launch_async(land, at)


def _store_box(block: Block, site: Site, thread: int, descriptor: tma.Descriptor, coordinates: list[int], address: int) -> None:
    operation = _reduction(site)

    def move() -> None:
        data = block.shared[descriptor.offsets(address)]
        with _blamed(block, site, thread):
            if operation:
                tma.reduce(descriptor, coordinates, data, block.kernel.memory, operation)
            else:
                tma.scatter(descriptor, coordinates, data, block.kernel.memory)

    _store(block, site, thread, address, descriptor.smem_bytes, descriptor.box_bytes, move, f"shared {address:#x} -> box at {tuple(coordinates)}")


def _reduction(site: Site) -> str:
    if site.instruction.modifiers[0] != "reduce":
        return ""
    return next(m for m in site.instruction.modifiers if m in ("add", "min", "max", "inc", "dec", "and", "or", "xor"))


def _store(block: Block, site: Site, thread: int, address: int, span: int, nbytes: int, move: Callable[[], None], what: str) -> None:
    """An asynchronous read of shared memory that completes with the thread's bulk group."""
    bulk = block.bulk.setdefault(thread, BulkGroups())
    bulk.site = site
    bulk.clock += STEP
    if block.order:
        block.order.asynchronous_read(thread, address, span, bulk.clock, site.index)
    block.kernel.add_traffic("tma_store_bytes", nbytes)
    block.kernel.add_traffic("tma_transactions", 1)
    block.event("tma store issued", f"thread {thread}", f"{what}, {nbytes} bytes", site)
    if block.kernel.schedule == "early":
        move()
        move = _nothing
    if block.model:
        bulk.read = block.model.copy(thread >> 5, nbytes, f"store {nbytes} bytes from {address:#x}", str(site.instruction.location))
    bulk.open.append(move)


def _nothing() -> None:
    """A copy that has been made already."""


@serves("cp.async.bulk.commit_group")
def commit_group(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        bulk = block.bulk.setdefault(t, BulkGroups())
        bulk.groups.append((bulk.open, bulk.clock))
        bulk.open = []
    block.go(ids)


@serves("cp.async.bulk.wait_group")
def wait_group(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        bulk = block.bulk.setdefault(t, BulkGroups())
        keep = int(block.arguments[t, 0])
        while len(bulk.groups) > keep:
            copies, clock = bulk.groups.popleft()
            for copy in copies:
                copy()
            if block.order and clock:
                block.order.order[t, block.order.reader_column(t)] = clock
            block.until(np.array([t]), bulk.read, "TMA store", site)
            block.event("tma store done", f"thread {t}", "shared memory may be used again", site)
    block.go(ids)


@serves("cp.async.bulk.prefetch")
def prefetch(block: Block, site: Site, ids: np.ndarray) -> None:
    block.go(ids)


@serves("cp.async.bulk", "cp.reduce.async.bulk")
def bulk_copy(block: Block, site: Site, ids: np.ndarray) -> None:
    """Copies without a tensor map: ``[dst], [src], size, [mbar]`` to shared memory, ``[dst], [src], size`` from it."""
    modifiers = site.instruction.modifiers
    spaces = [m for m in modifiers if m.startswith(("shared", "global"))]
    memory = block.kernel.memory
    for t in ids.tolist():
        first, second, size = (int(v) for v in block.arguments[t, :3])
        size &= U32
        if spaces[0].startswith("shared") and spaces[1] == "global":
            address = shared_address(first)
            target = block.shared_bytes(address, size, site, "bulk copy")

            def move(target: np.ndarray = target, source: int = second & U64, address: int = address, size: int = size, t: int = t) -> None:
                with _blamed(block, site, t):
                    target[:] = tma.bulk_load(source, address, size, memory)

            block.kernel.add_traffic("tma_load_bytes", size)
            _load(block, site, t, address, size, size, shared_address(int(block.arguments[t, 3])), move, f"{size} bytes -> shared {address:#x}")
        elif spaces[0] == "global":
            address = shared_address(second)
            source = block.shared_bytes(address, size, site, "bulk copy")
            operation, kind = _reduction(site), modifiers[-1]

            def push(
                source: np.ndarray = source, target: int = first & U64, address: int = address, operation: str = operation, kind: str = kind, t: int = t
            ) -> None:
                with _blamed(block, site, t):
                    if operation:
                        tma.bulk_reduce(target, address, source.copy(), memory, operation, kind)
                    else:
                        tma.bulk_store(target, address, source.copy(), memory)

            _store(block, site, t, address, size, size, push, f"shared {address:#x} -> {size} bytes")
        else:
            raise block.fault("bulk copies between the CTAs of a cluster are not emulated yet", site, ids)
    block.go(ids)


def _ends(block: Block) -> None:
    """At the end of a CTA: stores that nobody waited for, bytes that nobody expected."""
    for thread, bulk in block.bulk.items():
        if bulk.site and (bulk.open or bulk.groups):
            block.hazard(
                "tma-store-not-awaited", bulk.site, 0, thread,
                f"thread {thread} exits with TMA stores that it never waited for: shared memory may be gone before they have read it",
                (f"thread {thread}", "TMA store"), "cp.async.bulk.commit_group and cp.async.bulk.wait_group.read 0 before the thread exits",
            )  # fmt: skip
        for copy in [copy for copies, _ in bulk.groups for copy in copies] + bulk.open:
            copy()
    for barrier in block.barriers.values():
        problem = barrier.state.leftover()
        if barrier.last_load is not None and barrier.last_load[0] >= barrier.awaited and not problem:
            _, place, thread = barrier.last_load
            block.hazard(
                "tma-load-not-awaited", place, barrier.address, thread, f"the CTA exits with a TMA load of thread {thread} that nobody waited for: it may "
                "land when the shared memory belongs to the next CTA", (f"thread {thread}", "TMA load"),
                "issue no load that is not used, or wait on its mbarrier before the CTA exits",
            )  # fmt: skip
        if problem and block.kernel.program.sites:
            site = next((s for s in block.kernel.program.sites if s.instruction.name.startswith("mbarrier") and "expect_tx" in s.instruction.name),
                        block.kernel.program.sites[0])  # fmt: skip
            block.hazard("mbarrier-bytes", site, barrier.address, 0, f"mbarrier at shared address {barrier.address:#x}: {problem}",
                         (f"mbarrier at {barrier.address:#x}", "TMA"), "let expect_tx name exactly the bytes of the copies of that phase")  # fmt: skip


END_HOOKS.append(_ends)


# ---------------------------------------------------------------------------------------------------- cp.async (before Hopper)


@dataclass
class Copy:
    """One cp.async of a thread. Until it completes, its destination is nobody's to touch."""

    move: Callable[[], None]
    words: slice
    cell: np.uint64  # that marks the destination


def _copies(block: Block, thread: int) -> list[list[Copy]]:
    """A thread's groups of copies in flight, the last of them open."""
    return block.named.setdefault(("cp.async", thread), [[]])


def _land(block: Block, thread: int, copies: list[Copy], cell: int | None = None) -> None:
    """From here on the copies are ordinary writes of the thread, of now or as that cell says."""
    if block.order and cell is None:
        cell = block.order.stamp(thread)
    for copy in copies:
        copy.move()
        if block.order:
            block.order.copied(copy.words, copy.cell, cell or 0)


@serves("cp.async.ca", "cp.async.cg")
def cp_async(block: Block, site: Site, ids: np.ndarray) -> None:
    """``[dst], [src], size{, bytes to take}``: the rest of ``size`` is zero-filled."""
    for t in ids.tolist():
        values = [int(v) for v in block.arguments[t, : len(site.arguments)]]
        address, source, size = shared_address(values[0]), values[1] & U64, values[2]
        take = min(size, values[3]) if len(values) > 3 else size
        target = block.shared_bytes(address, size, site, "cp.async")
        if address % size or source % size:
            raise block.fault(f"misaligned cp.async of {size} bytes", site, np.array([t]))

        def move(target: np.ndarray = target, source: int = source, take: int = take, t: int = t) -> None:
            target[take:] = 0
            if take:
                with _blamed(block, site, t):
                    target[:take] = block.kernel.memory.bytes(source, take)

        words = slice(address >> 2, (address + size + 3) >> 2)
        cell = block.order.copying(t, words, site.index) if block.order else np.uint64(0)
        early = block.kernel.schedule == "early"
        if early:
            move()
        _copies(block, t)[-1].append(Copy(_nothing if early else move, words, cell))
    block.go(ids)


@serves("cp.async.commit_group")
def cp_async_commit(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        _copies(block, t).append([])
    block.go(ids)


@serves("cp.async.wait_group", "cp.async.wait_all")
def cp_async_wait(block: Block, site: Site, ids: np.ndarray) -> None:
    everything = "wait_all" in site.instruction.modifiers
    for t in ids.tolist():
        groups = _copies(block, t)
        keep = 0 if everything else int(block.arguments[t, 0])
        while len(groups) > keep + 1:
            _land(block, t, groups.pop(0))
        if everything:
            _land(block, t, groups[0])
            groups[0] = []
    block.go(ids)


@serves("cp.async.mbarrier.arrive")
def cp_async_arrive(block: Block, site: Site, ids: np.ndarray) -> None:
    """The mbarrier gets an arrival when all copies of the thread so far have completed. Without ``.noinc`` the phase expects one more for it."""
    for t in ids.tolist():
        address, one = shared_address(int(block.arguments[t, 0])), np.array([t])
        barrier = barrier_at(block, address, site, one)
        groups = _copies(block, t)
        copies = [copy for group in groups for copy in group]
        groups[:] = [[] for _ in groups]
        cell = block.order.stamp(t) if block.order else None
        clocks = block.order.release(one) if block.order else None
        if "noinc" not in site.instruction.modifiers:
            barrier.state.pending += 1

        def complete(
            t: int = t, barrier: Barrier = barrier, copies: list[Copy] = copies, cell: int | None = cell, clocks: Clocks | None = clocks
        ) -> None:
            _land(block, t, copies, cell)
            if block.order and clocks:
                _collect(block, barrier, block.order.fit(clocks))
            try:
                barrier.state.arrive()
            except BarrierMisuse as misuse:
                _misuse(block, site, barrier.address, t, misuse)
            _advance(block, barrier, site)

        block.launch_async(complete, block.now(one))
    block.go(ids)
