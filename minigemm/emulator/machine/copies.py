"""What runs beside the threads: mbarriers, TMA copies, bulk groups, cp.async."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..errors import Fault, Unsupported
from ..translate.lower import CACHE_POLICY, Site
from ..watch.order import STAY, STEP, Clocks, warps_of
from . import tma
from .block import CTA_HOOKS, END_HOOKS, IDLE_HOOKS, Block, serves
from .mbarrier import BarrierMisuse, MBarrier, never_initialised
from .warps import cluster_barrier

U32, U64 = 0xFFFFFFFF, 2**64 - 1

# ---------------------------------------------------------------------------------------------------- mbarriers


@dataclass
class Barrier:
    """An mbarrier in shared memory: its state, who waits, and the order that it carries."""

    address: int  # its place (clusters.py)
    state: MBarrier
    waiters: list[tuple[np.ndarray, int, Site, int]] = field(
        default_factory=list
    )  # threads, phase waited for, site, ticket
    arrived: Clocks | None = None
    published: Clocks | None = None
    issued: int = 0  # asynchronous copies so far
    in_flight: set[int] = field(default_factory=set)
    phase: int = 0  # the last one that was published
    latest: float = 0.0  # under a cycle model: the last arrival or landing of this phase
    completed: float = 0.0  # and when the phase before completed
    awaited: int = 0  # how many phases somebody has seen complete
    last_load: tuple[int, Site, int] | None = (
        None  # phase, place and thread of the last copy that completes on it
    )
    left: bool = False  # its CTA exited before it was done with, and that has been told
    remote: dict[int, tuple[int, int, Site]] = field(
        default_factory=dict
    )  # warp of another CTA -> its clock at its last arrival, thread, place


def barrier_at(block: Block, address: int, site: Site, ids: np.ndarray) -> Barrier:
    barrier = block.barriers.get(address)
    if barrier is None:
        error = never_initialised(_operation(site))
        raise block.fault(f"{error.message} (shared address {block.cluster.spot(address)})", site, ids)
    if block.order:
        block.order.check_barrier_visible(ids, address, site.index)
    return barrier


def _reaches(site: Site) -> bool:
    """May the address be in another CTA? Only without a result, by `.shared::cluster` or as a generic one."""
    return "shared::cluster" in site.instruction.modifiers or not any(
        m.startswith("shared") for m in site.instruction.modifiers
    )


def _operation(site: Site) -> str:
    return ".".join((site.instruction.opcode, *site.instruction.modifiers[:1]))


@serves("mbarrier.init")
def init(block: Block, site: Site, ids: np.ndarray) -> None:
    for t in ids.tolist():
        address, count = block.place(int(block.arguments[t, 0]), site, t), int(block.arguments[t, 1] & U32)
        memory = block.shared_bytes(address, 8, site, "mbarrier.init")
        if address % 8:
            raise block.fault(
                f"mbarrier.init at shared address {block.cluster.spot(address)}: an mbarrier is 8-byte aligned",
                site,
                ids,
            )
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
        address = block.place(int(block.arguments[t, 0]), site, t)
        barrier_at(block, address, site, np.array([t])).state.invalidate()
        if block.order:
            block.order.clear_barrier(t, address)
    block.go(ids)


def _misuse(block: Block, site: Site, address: int, thread: int, misuse: BarrierMisuse) -> None:
    name = f"mbarrier at shared address {block.cluster.spot(address)}"
    block.hazard(
        "mbarrier",
        site,
        address,
        thread,
        misuse.message + (f" (the {name})" if block.cluster.ranks > 1 else ""),
        (block.cluster.thread(thread), name),
        "",
    )


@serves("mbarrier.arrive", "mbarrier.arrive_drop", "mbarrier.expect_tx", "mbarrier.complete_tx")
def arrive(block: Block, site: Site, ids: np.ndarray) -> None:
    places = block.places(block.arguments[ids, 0], site, ids, own=not _reaches(site))
    for address in np.unique(places).tolist():
        group = ids[places == address]
        if _gone(
            block,
            address,
            site,
            group,
            "arrives at the mbarrier at" if "arrive" in site.instruction.name else "changes the mbarrier at",
        ):
            continue
        barrier = barrier_at(block, address, site, group)
        if block.cluster.ranks > 1:
            _remember(block, barrier, site, group)
        if block.order:
            relaxed = "relaxed" in site.instruction.modifiers
            _collect(
                block,
                barrier,
                block.order.covered_by_fences(group) if relaxed else block.order.release(group),
            )
        barrier.latest = max(barrier.latest, block.now(group))
        before = barrier.state.phase
        for t in group.tolist():
            try:
                state = _apply(
                    barrier.state, site, [int(v) & U32 for v in block.arguments[t, 1 : len(site.arguments)]]
                )
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


def _gone(block: Block, address: int, site: Site, ids: np.ndarray, what: str) -> bool:
    """Is that in a CTA that has exited? Then nothing happens, but that it is told."""
    if not block.gone or block.cluster.rank_at(address) not in block.gone:
        return False
    if block.order:
        block.order.touched_after_exit(site.index, address, int(ids[0]), what)
    return True


def _remember(block: Block, barrier: Barrier, site: Site, ids: np.ndarray) -> None:
    """Arrivals from other CTAs, until the barrier's own knows of them."""
    if block.order:
        rank = block.cluster.rank_at(barrier.address)
        for w in warps_of(ids).tolist():
            if w // block.cluster.warps != rank:
                barrier.remote[w] = int(block.order.clock[w]), int(ids[ids >> 5 == w][0]), site


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


def _named(block: Block, address: int) -> str:
    """An mbarrier among the events."""
    return block.cluster.spot(address) if block.cluster.ranks > 1 else str(address)


def _advance(block: Block, barrier: Barrier, site: Site | None) -> None:
    """After a change: did a phase complete? Then publish its order and wake those who waited for it."""
    known = barrier.phase
    if barrier.state.phase == known:
        return
    barrier.phase = barrier.state.phase
    barrier.completed, barrier.latest = barrier.latest, 0.0
    if block.watched:
        block.event(
            "phase",
            f"mbarrier {_named(block, barrier.address)}",
            f"phase {known} complete, parity is now {barrier.state.phase & 1}",
            site,
        )
    if block.order:
        if barrier.arrived is None:
            barrier.arrived = block.order.nothing()
        barrier.arrived = block.order.fit(barrier.arrived)
        landed = min(barrier.in_flight) if barrier.in_flight else barrier.issued
        column = block.order.barrier_column(barrier.address)
        barrier.arrived = block.order.fit(barrier.arrived)
        barrier.arrived.order[column] = max(
            int(barrier.arrived.order[column]), landed * STEP
        )  # barriers may share a column, when there are many
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
        block.until(
            ids,
            barrier.completed + block.model.rates.barrier_latency,
            f"mbarrier {block.cluster.spot(barrier.address)}",
            site,
        )
    if block.order and barrier.published is not None:
        take = block.order.note if "relaxed" in site.instruction.modifiers else block.order.acquire
        take(ids, block.order.fit(barrier.published))


@serves("mbarrier.try_wait", "mbarrier.test_wait")
def wait(block: Block, site: Site, ids: np.ndarray) -> None:
    """``try_wait`` blocks until the phase completes; ``test_wait`` answers at once."""
    modifiers = site.instruction.modifiers
    blocking = modifiers[0] == "try_wait"
    keys = block.places(block.arguments[ids, 0], site, ids)
    values = block.arguments[ids, 1] & U32 if "parity" in modifiers else block.arguments[ids, 1]
    for address, value in sorted(set(zip(keys.tolist(), values.tolist(), strict=True))):
        group = ids[(keys == address) & (values == value)]
        barrier = barrier_at(block, address, site, group)
        try:
            done = (
                barrier.state.test_wait_parity(value)
                if "parity" in modifiers
                else barrier.state.test_wait(value)
            )
        except BarrierMisuse as misuse:
            _misuse(block, site, address, int(group[0]), misuse)
            done = barrier.state.phase & 1 != value & 1
        if done:
            _passed(block, barrier, group, site)
            block.go(group)
        elif blocking:
            ticket = block.wait(group, site, partial(_why_waiting, block, barrier, value))
            barrier.waiters.append((group, barrier.state.phase, site, ticket))
        else:
            block.results[group, 0] = 0
            block.poll(group)


def _why_waiting(block: Block, barrier: Barrier, value: int) -> str:
    state = barrier.state
    return f"the mbarrier at shared address {block.cluster.spot(barrier.address)}, parity {value & 1}; it is in {state.describe()}. {state.diagnose()}"


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
    groups: deque[tuple[list[Callable[[], None]], int]] = field(
        default_factory=deque
    )  # copies, clock of the last
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
    """Loads ``[dst], [map, {coordinates}], [mbar]{, mask}{, policy}``, stores ``[map, {coordinates}], [src]{, policy}``."""
    modifiers = site.instruction.modifiers
    tma.require_tile_mode(modifiers)
    rank = next(int(m[0]) for m in modifiers if len(m) == 2 and m[1] == "d" and m[0].isdigit())
    load = modifiers[modifiers.index(f"{rank}d") + 1].startswith("shared")
    for t in ids.tolist():
        arguments = [int(v) for v in block.arguments[t, : len(site.arguments)]]
        one = np.array([t])
        if load:
            destination, where, coordinates, mbar = (
                arguments[0],
                arguments[1],
                arguments[2 : 2 + rank],
                arguments[2 + rank],
            )
        else:
            where, coordinates, destination, mbar = (
                arguments[0],
                arguments[1 : 1 + rank],
                arguments[1 + rank],
                0,
            )
        descriptor = descriptor_at(block, where & U64, site, one)
        if len(descriptor.dims) != rank:
            raise block.fault(
                f"a {rank}-dimensional copy with a tensor map of {len(descriptor.dims)} dimensions", site, one
            )
        if "L2::cache_hint" in modifiers and arguments[-1] >> 60 & 15 != CACHE_POLICY >> 60:
            raise block.fault(
                f"the cache policy {arguments[-1] & U64:#x} was not made by createpolicy", site, one
            )
        signed = [v - (1 << 32) if v >> 31 & 1 else v for v in (v & U32 for v in coordinates)]
        address = block.place(destination, site, t, own=not load)
        block.shared_bytes(address, descriptor.smem_bytes, site, "TMA copy")
        _check_box(block, site, t, address, descriptor, signed, load)
        if load:
            mask = arguments[3 + rank] if "multicast::cluster" in modifiers else None
            _load_box(block, site, t, descriptor, signed, _destinations(block, site, t, address, mbar, mask))
        else:
            _store_box(block, site, t, descriptor, signed, address)
    block.go(ids)


def _destinations(
    block: Block, site: Site, thread: int, address: int, mbar: int, mask: int | None
) -> list[tuple[int, int]]:
    """Where a copy goes: the address and its mbarrier, of one CTA or at the same offsets of each CTA in the mask."""
    cluster, one = block.cluster, np.array([thread])
    mbar = block.place(mbar, site, thread, own=False)
    if mask is None:
        if cluster.rank_at(mbar) != cluster.rank_at(address):
            raise block.fault(f"the copy goes to CTA rank {cluster.rank_at(address)} and its mbarrier is in CTA rank {cluster.rank_at(mbar)}: both must be in one "
                              "CTA", site, one)  # fmt: skip
        return [(address, mbar)]
    mask &= 0xFFFF
    if not mask:
        raise block.fault(
            "a multicast with the mask 0 names no CTA: bit i of the mask stands for the CTA with %cluster_ctarank i",
            site,
            one,
        )
    if mask >> cluster.ranks:
        has = (
            f"has {cluster.ranks} CTAs, ranks 0 to {cluster.ranks - 1}"
            if cluster.ranks > 1
            else "is this one CTA, rank 0"
        )
        raise block.fault(
            f"a multicast with the mask {mask:#06x} names CTA rank {mask.bit_length() - 1}: the cluster {has}",
            site,
            one,
        )
    if cluster.ranks == 1:
        return [(address, mbar)]
    window = cluster.window
    return [
        (r * window + address % window, r * window + mbar % window)
        for r in range(cluster.ranks)
        if mask >> r & 1
    ]


def _check_box(
    block: Block,
    site: Site,
    thread: int,
    address: int,
    descriptor: tma.Descriptor,
    coordinates: list[int],
    load: bool,
) -> None:
    """What a GPU faults on at once, and what it does but nobody means."""
    try:
        warnings = (
            tma.shared_alignment(address, descriptor.swizzle),
            tma.check_box(descriptor, coordinates, store=not load),
        )
    except Fault as error:
        raise block.fault(error.message, site, np.array([thread])) from None
    for kind, warning in zip(("swizzle-alignment", "ragged-store"), warnings, strict=True):
        if warning:
            message, _, fix = warning.rpartition(". ")
            block.hazard(
                kind,
                site,
                address,
                thread,
                message or warning,
                (block.cluster.thread(thread), "TMA"),
                fix if message else "",
            )


def _load_box(
    block: Block,
    site: Site,
    thread: int,
    descriptor: tma.Descriptor,
    coordinates: list[int],
    destinations: list[tuple[int, int]],
) -> None:
    def move(address: int) -> None:
        with _blamed(block, site, thread):
            block.shared[descriptor.offsets(address)] = tma.gather(
                descriptor, coordinates, block.kernel.memory
            )

    block.kernel.add_traffic("tma_load_bytes", descriptor.box_bytes)
    copy = Load(
        site,
        thread,
        descriptor.smem_bytes,
        descriptor.box_bytes,
        f"box at {tuple(coordinates)}",
        move,
        descriptor.swizzle,
    )
    _load(block, copy, destinations)


@dataclass(frozen=True)
class Load:
    """An asynchronous write of shared memory that completes on an mbarrier; a multicast writes that of several CTAs."""

    site: Site
    thread: int
    span: int  # bytes of shared memory from its first to its last
    nbytes: int
    what: str
    move: Callable[[int], None]  # to a place
    swizzle: int = 0
    name: str = "TMA load"
    read: Callable[[Barrier], None] | None = (
        None  # its source has been read, as the phase of this barrier tells
    )


def _load(block: Block, copy: Load, destinations: list[tuple[int, int]]) -> None:
    """A copy to each of these (place, mbarrier)."""
    site, thread = copy.site, copy.thread
    block.kernel.add_traffic("tma_transactions", 1)
    block.kernel.add_traffic("tma_delivered_bytes", copy.nbytes * len(destinations))
    at = 0.0
    if block.model:
        what = f"load {copy.nbytes} bytes to {block.cluster.spot(destinations[0][0])}"
        at = block.model.copy(thread >> 5, copy.nbytes, what, str(site.instruction.location))
    for address, mbar in destinations:
        if _gone(block, address, site, np.array([thread]), "starts a copy to"):
            continue
        barrier = barrier_at(block, mbar, site, np.array([thread]))
        number = barrier.issued
        barrier.issued += 1
        barrier.in_flight.add(number)
        barrier.last_load = barrier.state.phase, site, thread
        if block.order:
            column = block.order.barrier_column(mbar)
            if copy.name != "TMA load":
                block.order.called[site.index] = copy.name
            block.order.asynchronous_write(
                thread, address, copy.span, column, (number + 1) * STEP, site.index, copy.swizzle
            )
        if block.watched:
            block.event(
                "tma load issued", block.cluster.thread(thread), _told(block, copy, address, mbar), site
            )
        block.launch_async(partial(_landed, block, copy, address, barrier, number, at), at)


def _told(block: Block, copy: Load, address: int, mbar: int) -> str:
    return f"{copy.what} -> shared {block.cluster.spot(address)}, {copy.nbytes} bytes on mbarrier {_named(block, mbar)}"


def _landed(block: Block, copy: Load, address: int, barrier: Barrier, number: int, at: float) -> None:
    if (
        block.cluster.rank_at(address) in block.gone
    ):  # its CTA left without a wait for it, and that was told then
        return
    copy.move(address)
    barrier.latest = max(barrier.latest, at)
    barrier.in_flight.discard(number)
    if block.watched:
        block.event("tma load landed", "tma", _told(block, copy, address, barrier.address), copy.site)
    if copy.read:
        copy.read(barrier)
    try:
        barrier.state.complete_tx(copy.nbytes)
    except BarrierMisuse as misuse:
        _misuse(block, copy.site, barrier.address, copy.thread, misuse)
    _advance(block, barrier, copy.site)


def _store_box(
    block: Block, site: Site, thread: int, descriptor: tma.Descriptor, coordinates: list[int], address: int
) -> None:
    operation = _reduction(site)

    def move() -> None:
        data = block.shared[descriptor.offsets(address)]
        with _blamed(block, site, thread):
            if operation:
                tma.reduce(descriptor, coordinates, data, block.kernel.memory, operation)
            else:
                tma.scatter(descriptor, coordinates, data, block.kernel.memory)

    _store(
        block,
        site,
        thread,
        address,
        descriptor.smem_bytes,
        descriptor.box_bytes,
        move,
        f"shared {block.cluster.spot(address)} -> box at {tuple(coordinates)}",
    )


def _reduction(site: Site) -> str:
    if site.instruction.modifiers[0] != "reduce":
        return ""
    return next(
        m for m in site.instruction.modifiers if m in ("add", "min", "max", "inc", "dec", "and", "or", "xor")
    )


def _store(
    block: Block,
    site: Site,
    thread: int,
    address: int,
    span: int,
    nbytes: int,
    move: Callable[[], None],
    what: str,
) -> None:
    """An asynchronous read of shared memory that completes with the thread's bulk group."""
    bulk = block.bulk.setdefault(thread, BulkGroups())
    bulk.site = site
    bulk.clock += STEP
    if block.order:
        block.order.asynchronous_read(thread, address, span, bulk.clock, site.index)
    block.kernel.add_traffic("tma_store_bytes", nbytes)
    block.kernel.add_traffic("tma_transactions", 1)
    block.event("tma store issued", block.cluster.thread(thread), f"{what}, {nbytes} bytes", site)
    if block.kernel.schedule == "early":
        move()
        move = _nothing
    if block.model:
        bulk.read = block.model.copy(
            thread >> 5,
            nbytes,
            f"store {nbytes} bytes from {block.cluster.spot(address)}",
            str(site.instruction.location),
        )
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
            block.event("tma store done", block.cluster.thread(t), "shared memory may be used again", site)
    block.go(ids)


@serves("cp.async.bulk.prefetch")
def prefetch(block: Block, site: Site, ids: np.ndarray) -> None:
    block.go(ids)


@serves("cp.async.bulk", "cp.reduce.async.bulk")
def bulk_copy(block: Block, site: Site, ids: np.ndarray) -> None:
    """Copies without a tensor map: ``[dst], [src], size, [mbar]{, mask}`` to shared memory, from global or from shared memory; ``[dst], [src], size`` from
    it."""
    modifiers = site.instruction.modifiers
    spaces = [m for m in modifiers if m.startswith(("shared", "global"))]
    memory = block.kernel.memory
    for t in ids.tolist():
        first, second, size = (int(v) for v in block.arguments[t, :3])
        size &= U32
        if spaces[0].startswith("shared") and spaces[1] == "global":
            address = block.place(first, site, t, own=False)
            block.shared_bytes(address, size, site, "bulk copy")
            mask = int(block.arguments[t, 4]) if "multicast::cluster" in modifiers else None

            def move(address: int, source: int = second & U64, size: int = size, t: int = t) -> None:
                with _blamed(block, site, t):
                    block.shared[address : address + size] = tma.bulk_load(source, address, size, memory)

            block.kernel.add_traffic("tma_load_bytes", size)
            _load(
                block,
                Load(site, t, size, size, f"{size} bytes", move),
                _destinations(block, site, t, address, int(block.arguments[t, 3]), mask),
            )
        elif spaces[0] == "global":
            address = block.place(second, site, t)
            source = block.shared_bytes(address, size, site, "bulk copy")
            operation, kind = _reduction(site), modifiers[-1]

            def push(
                source: np.ndarray = source,
                target: int = first & U64,
                address: int = address,
                operation: str = operation,
                kind: str = kind,
                t: int = t,
            ) -> None:
                with _blamed(block, site, t):
                    if operation:
                        tma.bulk_reduce(target, address, source.copy(), memory, operation, kind)
                    else:
                        tma.bulk_store(target, address, source.copy(), memory)

            _store(
                block,
                site,
                t,
                address,
                size,
                size,
                push,
                f"shared {block.cluster.spot(address)} -> {size} bytes",
            )
        elif spaces[0] == "shared::cluster" and "reduce" not in modifiers:
            _copy_between(block, site, t, first, second, size, int(block.arguments[t, 3]))
        else:
            raise Unsupported(
                f"{site.instruction.name} (PTX line {site.instruction.line}) is not emulated",
                site.instruction.location,
            )
    block.go(ids)


def _copy_between(
    block: Block, site: Site, thread: int, target: int, source: int, size: int, mbar: int
) -> None:
    """From the own shared memory to that of a CTA of the cluster."""
    to, origin = block.place(target, site, thread, own=False), block.place(source, site, thread)
    block.shared_bytes(to, size, site, "bulk copy")
    data = block.shared_bytes(origin, size, site, "bulk copy")
    if size % 16 or to % 16 or origin % 16:
        raise block.fault(f"misaligned bulk copy: {size} bytes from shared address {block.cluster.spot(origin)} to {block.cluster.spot(to)}, and addresses "
                          "and sizes are multiples of 16", site, np.array([thread]))  # fmt: skip
    read = None
    if block.order:
        block.order.called[site.index] = "bulk copy"
        column = block.order.copy_column(thread)
        clock = block.named["copies of", thread] = block.named.get(("copies of", thread), 0) + STEP
        block.order.asynchronous_read(thread, origin, size, clock, site.index, column)

        def read(barrier: Barrier) -> None:
            assert block.order
            barrier.arrived = block.order.join(barrier.arrived, block.order.nothing())
            barrier.arrived.order[column] = max(int(barrier.arrived.order[column]), clock)

    def move(place: int) -> None:
        block.shared[place : place + size] = data

    _load(block, Load(site, thread, size, size, f"shared {block.cluster.spot(origin)}", move, name="bulk copy", read=read),
          _destinations(block, site, thread, to, mbar, None))  # fmt: skip


@serves("st.async")
def store_async(block: Block, site: Site, ids: np.ndarray) -> None:
    """``[dst], values, [mbar]``: a store to a CTA of the cluster that completes on an mbarrier there."""
    width = int(site.instruction.modifiers[-1][1:]) // 8
    for t in ids.tolist():
        first, *values, mbar = (int(v) for v in block.arguments[t, : len(site.arguments)])
        data = np.frombuffer(
            b"".join((v & (1 << 8 * width) - 1).to_bytes(width, "little") for v in values), np.uint8
        )
        address = block.place(first, site, t, own=False)
        block.shared_bytes(address, len(data), site, "st.async")
        if address % len(data):
            raise block.fault(
                f"misaligned st.async of {len(data)} bytes at shared address {block.cluster.spot(address)}",
                site,
                np.array([t]),
            )

        def move(place: int, data: np.ndarray = data) -> None:
            block.shared[place : place + len(data)] = data

        _load(
            block,
            Load(site, t, len(data), len(data), "values", move, name="remote store"),
            _destinations(block, site, t, address, mbar, None),
        )
    block.go(ids)


def _ends(block: Block) -> None:
    """At the end of a CTA: stores that nobody waited for, bytes that nobody expected."""
    for thread, bulk in block.bulk.items():
        if bulk.site and (bulk.open or bulk.groups):
            block.hazard(
                "tma-store-not-awaited", bulk.site, 0, thread,
                f"{block.cluster.thread(thread)} exits with TMA stores that it never waited for: shared memory may be gone before they have read it",
                (block.cluster.thread(thread), "TMA store"), "cp.async.bulk.commit_group and cp.async.bulk.wait_group.read 0 before the thread exits",
            )  # fmt: skip
        for copy in [copy for copies, _ in bulk.groups for copy in copies] + bulk.open:
            copy()
    for barrier in block.barriers.values():
        problem = barrier.state.leftover()
        if _unawaited(barrier) and barrier.last_load and not barrier.left and not problem:
            _, place, thread = barrier.last_load
            name = block.cluster.thread(thread)
            block.hazard(
                "tma-load-not-awaited", place, barrier.address, thread, f"the CTA exits with a TMA load of {name} that nobody waited for: it may "
                "land when the shared memory belongs to the next CTA", (name, "TMA load"),
                "issue no load that is not used, or wait on its mbarrier before the CTA exits",
            )  # fmt: skip
        if problem and not barrier.left and block.kernel.program.sites:
            site = next((s for s in block.kernel.program.sites if s.instruction.name.startswith("mbarrier") and "expect_tx" in s.instruction.name),
                        block.kernel.program.sites[0])  # fmt: skip
            spot = block.cluster.spot(barrier.address)
            block.hazard("mbarrier-bytes", site, barrier.address, 0, f"mbarrier at shared address {spot}: {problem}",
                         (f"mbarrier at {spot}", "TMA"), "let expect_tx name exactly the bytes of the copies of that phase")  # fmt: skip


END_HOOKS.append(_ends)


def _unawaited(barrier: Barrier) -> bool:
    return barrier.last_load is not None and barrier.last_load[0] >= barrier.awaited


def _leaves(block: Block, rank: int) -> None:
    """At the end of a CTA of a cluster: copies of others that are still to land in it, arrivals and accesses of others that it does not know of."""
    if not block.order:
        return
    known = block.order.knowledge(rank, cluster_barrier(block).passed.get(rank))
    for barrier in block.barriers.values():
        if block.cluster.rank_at(barrier.address) != rank:
            continue
        if _unawaited(barrier) and barrier.last_load and block.cluster.rank_of(barrier.last_load[2]) != rank:
            _, site, thread = barrier.last_load
            name, barrier.left = block.cluster.thread(thread), True
            block.hazard("cta-exited", site, barrier.address, thread, f"CTA rank {rank} exits, and nobody in it has waited for a copy that {name} issued to its "
                         f"shared memory (mbarrier at {block.cluster.spot(barrier.address)}): it may land when that belongs to another", (name, f"CTA rank {rank}"),
                         "wait on the mbarrier in each CTA that the copy goes to, or end the kernel with a cluster barrier after such a wait")  # fmt: skip
        for warp, (clock, thread, site) in barrier.remote.items():
            if clock > known[warp]:
                name = block.cluster.thread(thread)
                block.hazard("cta-exited", site, barrier.address, thread, f"CTA rank {rank} exits while {name} may still arrive at its mbarrier at shared "
                             f"address {block.cluster.spot(barrier.address)}: nothing orders that before the exit", (name, f"CTA rank {rank}"), STAY)  # fmt: skip
    block.order.leave(rank, known)


CTA_HOOKS.append(_leaves)


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
        address, source, size = block.place(values[0], site, t), values[1] & U64, values[2]
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
        address, one = block.place(int(block.arguments[t, 0]), site, t), np.array([t])
        barrier = barrier_at(block, address, site, one)
        groups = _copies(block, t)
        copies = [copy for group in groups for copy in group]
        groups[:] = [[] for _ in groups]
        cell = block.order.stamp(t) if block.order else None
        clocks = block.order.release(one) if block.order else None
        if "noinc" not in site.instruction.modifiers:
            barrier.state.pending += 1

        def complete(
            t: int = t,
            barrier: Barrier = barrier,
            copies: list[Copy] = copies,
            cell: int | None = cell,
            clocks: Clocks | None = clocks,
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
