"""A block: the threads of a cluster's CTAs, their shared memory, and the queues in which they stand.

The CTAs of a cluster run side by side as one `Block` (clusters.py); mostly it is one CTA. Its threads are
rows of a byte matrix of contexts. Each of them is in one of three places: in `ready`, among those that wait
(`waiting`, under a ticket), or gone (`alive` is False). Asynchronous work stands in `flight` until it
completes.

A `Unit` serves the instructions at which threads stop. A unit has a block, the state that these instructions
need, and the units that it works with. It never sees the loop that runs the threads: running.py, which lists
all units.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .. import context as c
from ..clusters import OFFSETS, RANK_SHIFT
from ..errors import Fault
from ..ptx.module import Instruction
from ..translate.lower import Site
from ..watch.order import warps_of
from ..watch.report import Event
from ..watch.timeline import Model
from .launch import LaunchState
from .pool import Pool

EVENTS = 4096  # that a report keeps

Handler = Callable[[Site, np.ndarray], None]


def line_of(instruction: Instruction) -> str:
    """Name the source line of an instruction, or its PTX line if it has none."""
    return str(instruction.location or f"PTX line {instruction.line}")


def distinct(values: np.ndarray) -> list[int]:
    """Return the distinct values of a small array of integers, ascending. Quicker than `np.unique`."""
    return sorted(set(values.tolist()))


def signed(bits: int) -> int:
    """Return a 32-bit register as a signed number."""
    return (bits & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


@dataclass
class Waiting:
    """Threads that wait at an instruction; `why` says what for, in the words of a deadlock message."""

    ids: np.ndarray
    site: Site
    why: Callable[[], str]


class Block:
    """All CTAs of one cluster while they run, not a CUDA thread block; mostly the cluster is one CTA.

    `index` is the index of the cluster in the grid of clusters, `linear` its number there. Numbers of threads
    and places in shared memory are those of clusters.py. `ids` are always thread numbers, ascending.
    """

    def __init__(self, launch: LaunchState, index: tuple[int, int, int], linear: int, pool: Pool) -> None:
        self.launch, self.index, self.linear, self.pool = launch, index, linear, pool
        cluster = self.cluster = pool.cluster
        self.contexts, self.shared, self.order = pool.contexts, pool.shared, pool.order
        self._reset_contexts()

        # The block records, one for each CTA.
        self.ctas = [self._cta(rank) for rank in range(cluster.ranks)]  # their indices in the grid
        gx, gy, _ = launch.grid
        self.numbers = [x + gx * (y + gy * z) for x, y, z in self.ctas]  # and their linear ones
        self.fields = pool.fields.copy()
        self.fields[:, c.CLUSTERID : c.CLUSTERID + 3] = index
        self.fields[:, c.CTAID : c.CTAID + 3] = self.ctas
        self.fields[:, c.GRID_CTA] = self.numbers

        # Threads, and where they stand.
        self.alive = pool.alive.copy()
        self.gone: set[int] = set()  # ranks of CTAs that have exited, in a cluster of several
        self.ready: list[np.ndarray] = [pool.ids]
        self.waiting: dict[int, Waiting] = {}  # by ticket
        self._ticket = 0
        self.steps = 0  # rounds so far
        self.polls = 0  # threads that asked for something in this round and were told "not yet"

        # Asynchronous work, and the time that a cycle model gives it.
        seed = launch.schedule
        self.random = random.Random(seed * 1000003 + linear) if isinstance(seed, int) else None
        self.flight: deque[Callable[[], None]] = deque()
        self.landing: list[tuple[float, int, Callable[[], None]]] = []  # under a model: a heap, by time
        self.clock_reads = 0  # reads of %clock so far; the cycle model sets the clock itself
        self.model: Model | None = None
        if launch.rates and linear == 0:
            self.model = Model(-(-cluster.threads // 32), launch.rates, cluster.ranks, cluster.warps)
            launch.timeline = self.model.timeline

    def _reset_contexts(self) -> None:
        """Let every thread begin at the first instruction, with nothing known of others."""
        program, contexts = self.launch.program, self.contexts
        self.c32, self.c64 = contexts.view(np.int32), contexts.view(np.int64)
        self.arguments = self.c64[:, c.ARGUMENTS // 8 : c.RESULTS // 8]
        self.results = self.c64[:, c.RESULTS // 8 : c.TOUCHED // 8]
        self.c32[:, c.PC // 4] = 0
        if program.local_bytes:
            contexts[:, program.local_offset : program.local_offset + program.local_bytes] = 0
        if self.order:
            self.order.reset()
            self.pool.unwritten[:] = 0
            self.c64[:, c.SYNC_SEEN // 8] = self.c64[:, c.SYNC_WROTE // 8] = 0

    def _cta(self, rank: int) -> tuple[int, int, int]:
        x, y, _ = self.launch.cluster
        inside = rank % x, rank // x % y, rank // (x * y)
        i, j, k = (
            index * n + at for index, n, at in zip(self.index, self.launch.cluster, inside, strict=True)
        )
        return i, j, k

    # --- threads

    def go(self, ids: np.ndarray) -> None:
        """Make threads ready."""
        if len(ids):
            self.ready.append(ids)

    def poll(self, ids: np.ndarray) -> None:
        """Make threads ready that were only told "not yet".

        They may wait for what is in flight, or loop forever.
        """
        self.polls += len(ids)
        self.go(ids)

    def wait(self, ids: np.ndarray, site: Site, why: Callable[[], str]) -> int:
        """Let threads wait. Returns a ticket, for `wake` (makes them ready) or `take` (takes them out)."""
        self._ticket += 1
        self.waiting[self._ticket] = Waiting(ids, site, why)
        return self._ticket

    def take(self, ticket: int) -> np.ndarray:
        """Take the threads of a ticket out of those that wait."""
        return self.waiting.pop(ticket).ids

    def wake(self, ticket: int) -> None:
        """Make the threads of a ticket ready."""
        self.go(self.take(ticket))

    def threads_left(self, rank: int) -> int:
        """Return the number of threads of a CTA that have not exited."""
        return int(self.alive[self.cluster.threads_of(rank)].sum())

    # --- time

    def launch_async(self, complete: Callable[[], None], at: float = 0.0) -> None:
        """Start asynchronous work.

        The schedule says when `complete` runs: at once, late, at a random moment, or at the time `at` of the
        cycle model.
        """
        if self.model:
            heapq.heappush(self.landing, (at, len(self.landing) + self.steps * 4096, complete))
        elif self.launch.schedule == "early":
            complete()
        else:
            self.flight.append(complete)

    def deliver(self) -> bool:
        """Complete one piece of asynchronous work, if there is any."""
        if self.landing:
            heapq.heappop(self.landing)[2]()
            return True
        if not self.flight:
            return False
        if self.random is not None:
            k = self.random.randrange(len(self.flight))
            self.flight.rotate(-k)
            complete = self.flight.popleft()
            self.flight.rotate(k)
        else:
            complete = self.flight.popleft()
        complete()
        return True

    def until(self, ids: np.ndarray, time: float, what: str, site: Site) -> None:
        """Under a cycle model: threads go on no earlier than at this time."""
        if self.model:
            self.model.until(warps_of(ids).tolist(), time, what, line_of(site.instruction))

    def now(self, ids: np.ndarray) -> float:
        """Under a cycle model: the time at which the last of these threads came to where it is."""
        return self.model.at(warps_of(ids).tolist()) if self.model else 0.0

    # --- memory

    def place(self, address: int, site: Site, thread: int, own: bool = True) -> int:
        """Return the place of a shared address, which is a 32-bit register or a generic address.

        `own`: the instruction reaches only the shared memory of the thread's own CTA. Raises Fault for an
        address that it does not reach.
        """
        address &= 0xFFFFFFFF
        cluster = self.cluster
        if cluster.ranks == 1:
            return address
        rank, offset = address >> RANK_SHIFT, address & OFFSETS
        if rank >= cluster.ranks or offset >= cluster.window:
            message = (
                f"shared address {address:#x} lies in no CTA of the cluster: it names CTA rank {rank} of "
                f"{cluster.ranks}, and {offset:#x} of [{c.SHARED_FIRST:#x}, {cluster.size:#x})"
            )
            raise self.fault(message, site, np.array([thread]))
        if own and rank != cluster.rank_of(thread):
            message = (
                f"shared address {address:#x} is in CTA rank {rank}, and this instruction reaches only the "
                "shared memory of its own CTA"
            )
            raise self.fault(message, site, np.array([thread]))
        return rank * cluster.window + offset

    def places(self, addresses: np.ndarray, site: Site, ids: np.ndarray, own: bool = True) -> np.ndarray:
        """Return the places of shared addresses, as `place` does. Thread `ids[i]` has `addresses[i]`."""
        addresses = addresses & 0xFFFFFFFF
        cluster = self.cluster
        if cluster.ranks == 1:
            return addresses
        rank, offset = addresses >> RANK_SHIFT, addresses & OFFSETS
        wrong = (rank >= cluster.ranks) | (offset >= cluster.window)
        if own:
            wrong |= rank != ids // cluster.stride
        if wrong.any():
            self.place(int(addresses[wrong][0]), site, int(ids[wrong][0]), own)  # raises
        return rank * cluster.window + offset

    def shared_bytes(self, place: int, n: int, site: Site, what: str) -> np.ndarray:
        """Return the `n` bytes of shared memory at a place, as a view.

        Raises Fault unless they lie in one CTA's memory.
        """
        cluster = self.cluster
        offset = place % cluster.window if cluster.ranks > 1 else place
        if not c.SHARED_FIRST <= offset <= cluster.size - n:
            raise self.fault(
                f"{what}: {n} bytes at shared address {cluster.spot(place)} lie outside the CTA's shared memory "
                f"[{c.SHARED_FIRST:#x}, {cluster.size:#x})",
                site,
            )
        return self.shared[place : place + n]

    # --- the report

    @property
    def watched(self) -> bool:
        """Whether events are still kept: those of the first cluster are, up to EVENTS."""
        return self.linear == 0 and len(self.launch.events) < EVENTS

    def event(self, kind: str, agent: str, detail: str, site: Site | None = None) -> None:
        """Add an event to the report, if this block is watched."""
        if self.watched:
            location = site.instruction.location if site else None
            self.launch.events.append(Event(self.steps, kind, agent, detail, location))

    def hazard(
        self, kind: str, site: Site, place: int, thread: int, message: str, parties: tuple[str, ...], fix: str
    ) -> None:
        """Report a hazard, if the launch looks for them. `place`: in shared memory, or 0."""
        if self.order:
            self.order.add(kind, site.index, place, thread, message, parties, fix)

    def fault(self, message: str, site: Site, ids: np.ndarray | None = None) -> Fault:
        """Return a fault at an instruction, for the caller to raise; it names the first of the threads."""
        if ids is not None and len(ids):
            thread = int(ids[0])
            who = f"thread {thread % self.cluster.stride} of {self.cta_name(thread)}"
        else:
            who = self.name
        ins = site.instruction
        return Fault(f"{message} ({ins.name}, PTX line {ins.line}, {who})", ins.location)

    @contextmanager
    def blamed(self, site: Site, thread: int) -> Iterator[None]:
        """Let a Fault that is raised inside name the instruction and the thread."""
        try:
            yield
        except Fault as error:
            raise self.fault(error.message, site, np.array([thread])) from None

    def cta_name(self, thread: int) -> str:
        """Name the CTA of a thread."""
        rank = self.cluster.rank_of(thread)
        return f"CTA {self.ctas[rank]}" + (f", rank {rank} of its cluster" if self.cluster.ranks > 1 else "")

    @property
    def name(self) -> str:
        """Name the CTA, or the CTAs of the cluster."""
        if self.cluster.ranks == 1:
            return f"CTA {self.ctas[0]}"
        return f"the cluster of CTAs {self.ctas[0]} to {self.ctas[-1]}"


class Unit:
    """A part of a block: it serves some of the instructions, and has the state that they need."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def serves(self) -> dict[str, Handler]:
        """Return how the names of the unit's instructions begin, and the methods that serve them.

        A handler gets all threads that stopped at one instruction in this round. It makes each of them ready
        (`block.go`, `block.poll`) or lets it wait (`block.wait`), and writes what the instruction returns to
        `block.results`.
        """
        raise NotImplementedError
