"""Asynchronous copies: TMA loads and stores, bulk copies, and stores to other CTAs.

What a copy moves, and where a GPU refuses it, is in tma.py. Here is when it lands, and who may see it: a
*load* writes shared memory and completes on an mbarrier; a *store* reads shared memory and completes with its
thread's bulk group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..errors import Unsupported
from ..translate.lower import CACHE_POLICY, Site
from ..watch.order import STEP
from . import tma
from .barriers import U32, Barrier, Barriers
from .block import Block, Handler, Unit, signed

U64 = 2**64 - 1
REDUCTIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")
AWAIT_STORES = "cp.async.bulk.commit_group and cp.async.bulk.wait_group.read 0 before the thread exits"


@dataclass(frozen=True)
class Load:
    """An asynchronous write of shared memory. A multicast writes the shared memory of several CTAs."""

    site: Site
    thread: int
    span: int  # bytes of shared memory from its first to its last
    nbytes: int
    what: str  # is copied, for the events
    move: Callable[[int], None]  # copies to a place
    swizzle: int = 0  # bytes
    name: str = "TMA load"
    read: Callable[[Barrier], None] | None = (
        None  # its source has been read, as this mbarrier's phase will tell
    )


@dataclass(frozen=True)
class Store:
    """An asynchronous read of shared memory."""

    site: Site
    thread: int
    place: int
    span: int  # bytes of shared memory from its first to its last
    nbytes: int
    target: str  # of the copy, for the events
    move: Callable[[], None]


@dataclass
class BulkGroups:
    """The stores of one thread: open ones, and committed groups in order."""

    open: list[Callable[[], None]] = field(default_factory=list)
    groups: deque[tuple[list[Callable[[], None]], int]] = field(default_factory=deque)
    """Copies, clock of the last one."""
    clock: int = 0
    site: Site | None = None  # of the last store
    read: float = 0.0  # under a cycle model: when the last one has read its source


class Copies(Unit):
    """The asynchronous copies of a block."""

    def __init__(self, block: Block, barriers: Barriers) -> None:
        super().__init__(block)
        self.barriers = barriers
        self.bulk: dict[int, BulkGroups] = {}  # by thread
        self._clocks: dict[int, int] = {}  # thread -> clock of its last copy out of its own shared memory

    def serves(self) -> dict[str, Handler]:
        return {
            "cp.async.bulk.tensor": self.copy_tensor,
            "cp.reduce.async.bulk.tensor": self.copy_tensor,
            "cp.async.bulk": self.copy_bytes,
            "cp.reduce.async.bulk": self.copy_bytes,
            "cp.async.bulk.commit_group": self.commit_group,
            "cp.async.bulk.wait_group": self.wait_group,
            "cp.async.bulk.prefetch": self.prefetch,
            "st.async": self.store_remote,
        }

    # --- TMA

    def copy_tensor(self, site: Site, ids: np.ndarray) -> None:
        """TMA copies.

        Loads: `[dst], [map, {coordinates}], [mbar]{, mask}{, policy}`.
        Stores and reductions: `[map, {coordinates}], [src]{, policy}`.
        """
        block, modifiers = self.block, site.instruction.modifiers
        tma.require_tile_mode(modifiers)
        rank = next(int(m[0]) for m in modifiers if len(m) == 2 and m[1] == "d" and m[0].isdigit())
        load = modifiers[modifiers.index(f"{rank}d") + 1].startswith("shared")
        for t in ids.tolist():
            arguments = [int(v) for v in block.arguments[t, : len(site.arguments)]]
            if load:
                shared, where, *rest = arguments
            else:
                where, *rest = arguments
                shared = rest[rank]
            coordinates = [signed(v) for v in rest[:rank]]

            # The tensor map, the box and the cache policy must be good.
            descriptor = self._descriptor(where & U64, rank, site, t)
            if "L2::cache_hint" in modifiers and arguments[-1] >> 60 & 15 != CACHE_POLICY >> 60:
                policy = f"the cache policy {arguments[-1] & U64:#x} was not made by createpolicy"
                raise block.fault(policy, site, np.array([t]))
            place = block.place(shared, site, t, own=not load)
            block.shared_bytes(place, descriptor.smem_bytes, site, "TMA copy")
            self._check_box(site, t, place, descriptor, coordinates, load)

            if load:
                mask = rest[rank + 1] if "multicast::cluster" in modifiers else None
                destinations = self._destinations(site, t, place, rest[rank], mask)
                self._load_box(site, t, descriptor, coordinates, destinations)
            else:
                self._store_box(site, t, descriptor, coordinates, place)
        block.go(ids)

    def _descriptor(self, address: int, rank: int, site: Site, thread: int) -> tma.Descriptor:
        """Return the tensor map at a global address, for a copy of this rank."""
        block, one = self.block, np.array([thread])
        if address % 64:
            raise block.fault(f"the tensor map at {address:#x} is not 64-byte aligned", site, one)
        with block.blamed(site, thread):
            descriptor = tma.decode(block.launch.memory.bytes(address, 128).tobytes())
        if len(descriptor.dims) != rank:
            message = f"a {rank}-dimensional copy with a tensor map of {len(descriptor.dims)} dimensions"
            raise block.fault(message, site, one)
        return descriptor

    def _check_box(
        self,
        site: Site,
        thread: int,
        place: int,
        descriptor: tma.Descriptor,
        coordinates: list[int],
        load: bool,
    ) -> None:
        """Raise what a GPU faults on at once, and report what it does but nobody means."""
        with self.block.blamed(site, thread):
            alignment = tma.shared_alignment(place, descriptor.swizzle)
            ragged = tma.check_box(descriptor, coordinates, store=not load)
        parties = (self.block.cluster.thread(thread), "TMA")
        for kind, warning in (("swizzle-alignment", alignment), ("ragged-store", ragged)):
            if warning:
                message, _, fix = warning.rpartition(". ")
                self.block.hazard(
                    kind, site, place, thread, message or warning, parties, fix if message else ""
                )

    def _load_box(
        self,
        site: Site,
        thread: int,
        descriptor: tma.Descriptor,
        coordinates: list[int],
        destinations: list[tuple[int, int]],
    ) -> None:
        """Start a load of one box."""
        block = self.block

        def move(place: int) -> None:
            with block.blamed(site, thread):
                box = tma.gather(descriptor, coordinates, block.launch.memory)
                block.shared[descriptor.offsets(place)] = box

        block.launch.add_traffic("tma_load_bytes", descriptor.box_bytes)
        span, nbytes = descriptor.smem_bytes, descriptor.box_bytes
        what = f"box at {tuple(coordinates)}"
        self._load(Load(site, thread, span, nbytes, what, move, descriptor.swizzle), destinations)

    def _store_box(
        self, site: Site, thread: int, descriptor: tma.Descriptor, coordinates: list[int], place: int
    ) -> None:
        """Start a store, or a reduction, of one box."""
        block, operation = self.block, _reduction(site)

        def move() -> None:
            data = block.shared[descriptor.offsets(place)]
            with block.blamed(site, thread):
                if operation:
                    tma.reduce(descriptor, coordinates, data, block.launch.memory, operation)
                else:
                    tma.scatter(descriptor, coordinates, data, block.launch.memory)

        span, nbytes = descriptor.smem_bytes, descriptor.box_bytes
        self._store(Store(site, thread, place, span, nbytes, f"box at {tuple(coordinates)}", move))

    # --- without a tensor map

    def copy_bytes(self, site: Site, ids: np.ndarray) -> None:
        """Bulk copies without a tensor map.

        To shared memory, from global or shared memory: `[dst], [src], size, [mbar]{, mask}`.
        From shared to global memory: `[dst], [src], size`.
        """
        ins = site.instruction
        spaces = [m for m in ins.modifiers if m.startswith(("shared", "global"))]
        for t in ids.tolist():
            target, source, size, *rest = (int(v) for v in self.block.arguments[t, : len(site.arguments)])
            size &= U32
            if spaces[0].startswith("shared") and spaces[1] == "global":
                mask = rest[1] if "multicast::cluster" in ins.modifiers else None
                self._load_bytes(site, t, target, source & U64, size, rest[0], mask)
            elif spaces[0] == "global":
                self._store_bytes(site, t, target & U64, source, size)
            elif spaces[0] == "shared::cluster" and "reduce" not in ins.modifiers:
                self._copy_between(site, t, target, source, size, rest[0])
            else:
                raise Unsupported(f"{ins.name} (PTX line {ins.line}) is not emulated", ins.location)
        self.block.go(ids)

    def _load_bytes(
        self, site: Site, thread: int, target: int, source: int, size: int, mbar: int, mask: int | None
    ) -> None:
        """Start a copy from global to shared memory."""
        block = self.block
        place = block.place(target, site, thread, own=False)
        block.shared_bytes(place, size, site, "bulk copy")

        def move(to: int) -> None:
            with block.blamed(site, thread):
                block.shared[to : to + size] = tma.bulk_load(source, to, size, block.launch.memory)

        block.launch.add_traffic("tma_load_bytes", size)
        destinations = self._destinations(site, thread, place, mbar, mask)
        self._load(Load(site, thread, size, size, f"{size} bytes", move), destinations)

    def _store_bytes(self, site: Site, thread: int, target: int, source: int, size: int) -> None:
        """Start a copy, or a reduction, from shared to global memory."""
        block = self.block
        memory, operation, kind = block.launch.memory, _reduction(site), site.instruction.modifiers[-1]
        place = block.place(source, site, thread)
        data = block.shared_bytes(place, size, site, "bulk copy")

        def move() -> None:
            with block.blamed(site, thread):
                if operation:
                    tma.bulk_reduce(target, place, data.copy(), memory, operation, kind)
                else:
                    tma.bulk_store(target, place, data.copy(), memory)

        self._store(Store(site, thread, place, size, size, f"{size} bytes", move))

    def _copy_between(self, site: Site, thread: int, target: int, source: int, size: int, mbar: int) -> None:
        """Start a copy from the own shared memory to the shared memory of a CTA of the cluster."""
        block = self.block
        to, origin = block.place(target, site, thread, own=False), block.place(source, site, thread)
        block.shared_bytes(to, size, site, "bulk copy")
        data = block.shared_bytes(origin, size, site, "bulk copy")
        if size % 16 or to % 16 or origin % 16:
            message = (
                f"misaligned bulk copy: {size} bytes from shared address {block.cluster.spot(origin)} to "
                f"{block.cluster.spot(to)}, and addresses and sizes are multiples of 16"
            )
            raise block.fault(message, site, np.array([thread]))
        read = self._watch_source(site, thread, origin, size) if block.order else None

        def move(place: int) -> None:
            block.shared[place : place + size] = data

        what = f"shared {block.cluster.spot(origin)}"
        load = Load(site, thread, size, size, what, move, name="bulk copy", read=read)
        self._load(load, self._destinations(site, thread, to, mbar, None))

    def _watch_source(self, site: Site, thread: int, place: int, size: int) -> Callable[[Barrier], None]:
        """Note that a copy reads shared memory.

        Returns what to call when it has: then the phase of its mbarrier tells those who wait for it.
        """
        order = self.block.order
        assert order
        order.called[site.index] = "bulk copy"
        column = order.copy_column(thread)
        clock = self._clocks[thread] = self._clocks.get(thread, 0) + STEP
        order.asynchronous_read(thread, place, size, clock, site.index, column)

        def read(barrier: Barrier) -> None:
            barrier.arrived = order.join(barrier.arrived, order.nothing())
            barrier.arrived.order[column] = max(int(barrier.arrived.order[column]), clock)

        return read

    def store_remote(self, site: Site, ids: np.ndarray) -> None:
        """`st.async [dst], values, [mbar]`: store to a CTA of the cluster; completes on an mbarrier there."""
        block = self.block
        width = int(site.instruction.modifiers[-1][1:]) // 8  # bytes a value
        for t in ids.tolist():
            target, *values, mbar = (int(v) for v in block.arguments[t, : len(site.arguments)])
            raw = b"".join((v & (1 << 8 * width) - 1).to_bytes(width, "little") for v in values)
            data = np.frombuffer(raw, np.uint8)
            place = block.place(target, site, t, own=False)
            block.shared_bytes(place, len(data), site, "st.async")
            if place % len(data):
                spot = block.cluster.spot(place)
                message = f"misaligned st.async of {len(data)} bytes at shared address {spot}"
                raise block.fault(message, site, np.array([t]))

            def move(to: int, data: np.ndarray = data) -> None:
                block.shared[to : to + len(data)] = data

            load = Load(site, t, len(data), len(data), "values", move, name="remote store")
            self._load(load, self._destinations(site, t, place, mbar, None))
        block.go(ids)

    # --- loads

    def _destinations(
        self, site: Site, thread: int, place: int, mbar: int, mask: int | None
    ) -> list[tuple[int, int]]:
        """Return the places, and the mbarriers there, that a load goes to.

        It is one of each, in one CTA; with a mask it is the same offsets in each CTA of the mask.
        """
        # Without a multicast the data and its mbarrier must be in the same CTA.
        block, cluster = self.block, self.block.cluster
        mbar = block.place(mbar, site, thread, own=False)
        if mask is None:
            rank, other = cluster.rank_at(place), cluster.rank_at(mbar)
            if rank != other:
                message = (
                    f"the copy goes to CTA rank {rank} and its mbarrier is in CTA rank {other}: both must be in "
                    "one CTA"
                )
                raise block.fault(message, site, np.array([thread]))
            return [(place, mbar)]

        # A mask must name CTAs of this cluster, and at least one.
        mask &= 0xFFFF
        message = ""
        if not mask:
            message = (
                "a multicast with the mask 0 names no CTA: bit i of the mask stands for the CTA with "
                "%cluster_ctarank i"
            )
        elif mask >> cluster.ranks:
            several = f"has {cluster.ranks} CTAs, ranks 0 to {cluster.ranks - 1}"
            has = several if cluster.ranks > 1 else "is this one CTA, rank 0"
            highest = mask.bit_length() - 1
            message = f"a multicast with the mask {mask:#06x} names CTA rank {highest}: the cluster {has}"
        if message:
            raise block.fault(message, site, np.array([thread]))

        # Every CTA of the mask gets the data at the same offset, and counts it on its own mbarrier.
        if cluster.ranks == 1:
            return [(place, mbar)]
        window = cluster.window
        ranks = [rank for rank in range(cluster.ranks) if mask >> rank & 1]
        return [(rank * window + place % window, rank * window + mbar % window) for rank in ranks]

    def _load(self, load: Load, destinations: list[tuple[int, int]]) -> None:
        """Start a load to each of these (place, mbarrier)."""
        # A multicast is one transaction, however many CTAs get its bytes.
        block, site, thread = self.block, load.site, load.thread
        one = np.array([thread])
        block.launch.add_traffic("tma_transactions", 1)
        block.launch.add_traffic("tma_delivered_bytes", load.nbytes * len(destinations))
        at = 0.0
        if block.model:
            what = f"load {load.nbytes} bytes to {block.cluster.spot(destinations[0][0])}"
            at = block.model.copy(thread >> 5, load.nbytes, what, str(site.instruction.location))

        for place, mbar in destinations:
            # A CTA that has exited gets nothing.
            if self.barriers.report_if_gone(place, site, one, "starts a copy to"):
                continue

            # Loads are numbered on their mbarrier, whose phase publishes up to which number all have landed.
            barrier = self.barriers.at(mbar, site, one)
            number = barrier.issued
            barrier.issued += 1
            barrier.in_flight.add(number)
            barrier.last_load = barrier.state.phase, site, thread

            # Whoever reads these bytes must have waited on the mbarrier: it publishes this clock, or a later
            # one, when the load has landed.
            if block.order:
                column = block.order.barrier_column(mbar)
                if load.name != "TMA load":
                    block.order.called[site.index] = load.name
                clock = (number + 1) * STEP
                block.order.asynchronous_write(
                    thread, place, load.span, column, clock, site.index, load.swizzle
                )

            # The schedule chooses when the load lands.
            if block.watched:
                detail = self._described(load, place, mbar)
                block.event("tma load issued", block.cluster.thread(thread), detail, site)
            block.launch_async(partial(self._landed, load, place, barrier, number, at), at)

    def _landed(self, load: Load, place: int, barrier: Barrier, number: int, at: float) -> None:
        """Pass on that a load has landed."""
        block = self.block
        if block.cluster.rank_at(place) in block.gone:  # that CTA exited without a wait, as was reported then
            return
        load.move(place)
        if block.watched:
            block.event("tma load landed", "tma", self._described(load, place, barrier.place), load.site)
        if load.read:
            load.read(barrier)
        self.barriers.landed(barrier, number, load.nbytes, at, load.site, load.thread)

    def _described(self, load: Load, place: int, mbar: int) -> str:
        target, name = self.block.cluster.spot(place), self.barriers.short_name(mbar)
        return f"{load.what} -> shared {target}, {load.nbytes} bytes on mbarrier {name}"

    # --- stores

    def _store(self, store: Store) -> None:
        """Start a store."""
        block, site, thread = self.block, store.site, store.thread
        bulk = self._groups(thread)
        bulk.site = site
        bulk.clock += STEP
        if block.order:
            block.order.asynchronous_read(thread, store.place, store.span, bulk.clock, site.index)
        block.launch.add_traffic("tma_store_bytes", store.nbytes)
        block.launch.add_traffic("tma_transactions", 1)

        spot = block.cluster.spot(store.place)
        detail = f"shared {spot} -> {store.target}, {store.nbytes} bytes"
        block.event("tma store issued", block.cluster.thread(thread), detail, site)
        if block.model:
            what = f"store {store.nbytes} bytes from {spot}"
            bulk.read = block.model.copy(thread >> 5, store.nbytes, what, str(site.instruction.location))

        if block.launch.schedule == "early":
            store.move()
        bulk.open.append(_nothing if block.launch.schedule == "early" else store.move)

    def _groups(self, thread: int) -> BulkGroups:
        return self.bulk.setdefault(thread, BulkGroups())

    def commit_group(self, site: Site, ids: np.ndarray) -> None:
        """`cp.async.bulk.commit_group`."""
        for t in ids.tolist():
            bulk = self._groups(t)
            bulk.groups.append((bulk.open, bulk.clock))
            bulk.open = []
        self.block.go(ids)

    def wait_group(self, site: Site, ids: np.ndarray) -> None:
        """`cp.async.bulk.wait_group{.read} n`: all but the last n groups have read their source."""
        block = self.block
        for t in ids.tolist():
            bulk = self._groups(t)
            keep = int(block.arguments[t, 0])
            while len(bulk.groups) > keep:
                copies, clock = bulk.groups.popleft()
                for copy in copies:
                    copy()
                if block.order and clock:
                    block.order.order[t, block.order.reader_column(t)] = clock
                block.until(np.array([t]), bulk.read, "TMA store", site)
                block.event(
                    "tma store done", block.cluster.thread(t), "shared memory may be used again", site
                )
        block.go(ids)

    def prefetch(self, site: Site, ids: np.ndarray) -> None:
        """`cp.async.bulk.prefetch`: there is no cache to fetch into."""
        self.block.go(ids)

    def end(self) -> None:
        """Report stores that nobody waited for, and complete them: all threads have exited."""
        block = self.block
        for thread, bulk in self.bulk.items():
            if bulk.site and (bulk.open or bulk.groups):
                name = block.cluster.thread(thread)
                message = (
                    f"{name} exits with TMA stores that it never waited for: shared memory may be gone before "
                    "they have read it"
                )
                parties = (name, "TMA store")
                block.hazard("tma-store-not-awaited", bulk.site, 0, thread, message, parties, AWAIT_STORES)
            for copies, _ in bulk.groups:
                for copy in copies:
                    copy()
            for copy in bulk.open:
                copy()


def _reduction(site: Site) -> str:
    """Return the operation of a `cp.reduce`; "" for a copy."""
    modifiers = site.instruction.modifiers
    return next(m for m in modifiers if m in REDUCTIONS) if modifiers[0] == "reduce" else ""


def _nothing() -> None:
    """Stand for a copy that has been made already."""
