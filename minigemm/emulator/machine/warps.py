"""What threads do together: barriers of the CTA and of the cluster, collectives of a warp, fences."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..errors import Unsupported
from ..translate.lower import Site
from ..watch.order import Clocks, warps_of
from . import collectives
from .block import EXIT_HOOKS, Block, serves

FULL = 0xFFFFFFFF

# ---------------------------------------------------------------------------------------------------- barriers


@dataclass
class NamedBarrier:
    """One of a CTA's 16 barriers. ``expected`` is a number of threads, or None: every thread that has not exited."""

    rank: int  # of the CTA
    number: int
    expected: int | None
    groups: list[tuple[np.ndarray, Site, int]] = field(
        default_factory=list
    )  # threads, site, ticket (0: only arrived)

    def arrived(self) -> int:
        return sum(len(ids) for ids, _, _ in self.groups)


@serves("bar.sync", "bar.arrive", "bar.red", "barrier.sync", "barrier.arrive", "barrier.red", "barrier.cta")
def bar(block: Block, site: Site, ids: np.ndarray) -> None:
    """``bar.sync a{, b}``, ``bar.arrive a, b``, ``bar.red.op d, a{, b}, p``: b threads meet at barrier a (default: all of the CTA)."""
    reduction = "red" in site.instruction.modifiers
    counted = len(site.arguments) == (3 if reduction else 2)
    for rank, number, group in [
        (rank, number, mine[block.arguments[mine, 0] == number])
        for rank, mine in block.cluster.split(ids) for number in np.unique(block.arguments[mine, 0]).tolist()
    ]:  # fmt: skip
        expected = int(block.arguments[group[0], 1]) if counted else None
        if not 0 <= number < 16:
            raise block.fault(f"barrier {number} does not exist: a CTA has 16", site, group)
        if expected is not None and expected % 32:
            raise block.fault(
                f"barrier {number} expects {expected} threads, which is no multiple of 32", site, group
            )
        barrier = block.named.get((rank, number))
        if barrier is None:
            barrier = block.named[rank, number] = NamedBarrier(rank, number, expected)
        elif barrier.expected != expected:
            block.hazard(
                "barrier-count", site, 0, int(group[0]),
                f"barrier {number} is used at once with {barrier.expected or 'all'} and with {expected or 'all'} threads",
                (f"barrier {number}",), "give every bar.sync and bar.arrive of one barrier the same thread count",
            )  # fmt: skip
            barrier.expected = max(barrier.expected or 0, expected or 0) or None
        ticket = 0
        if "arrive" not in site.instruction.modifiers:
            ticket = block.wait(group, site, partial(_barrier_state, block, barrier))
        barrier.groups.append((group, site, ticket))
        _complete(block, barrier)
        if "arrive" in site.instruction.modifiers:
            block.go(group)


def _barrier_state(block: Block, barrier: NamedBarrier) -> str:
    expected = barrier.expected if barrier.expected is not None else block.threads_left(barrier.rank)
    return f"barrier {barrier.number}, {barrier.arrived()} of {expected} threads have arrived"


def _complete(block: Block, barrier: NamedBarrier) -> None:
    expected = barrier.expected if barrier.expected is not None else block.threads_left(barrier.rank)
    arrived = barrier.arrived()
    if arrived < expected or not barrier.groups:
        return
    site = barrier.groups[-1][1]
    if arrived > expected:
        block.hazard(
            "barrier-count", site, 0, int(barrier.groups[-1][0][0]), f"{arrived} threads arrived at barrier {barrier.number}, which expects {expected}",
            (f"barrier {barrier.number}",), "let exactly the threads that the count names use this barrier number",
        )  # fmt: skip
    del block.named[barrier.rank, barrier.number]
    whole = barrier.expected in (None, len(block.alive[block.cluster.threads_of(barrier.rank)]))
    _check_aligned(
        block,
        [(ids, site) for ids, site, _ in barrier.groups],
        f"barrier {barrier.number}",
        "__syncthreads()",
        whole,
    )
    every = np.concatenate([ids for ids, _, _ in barrier.groups])
    if block.model:
        over = block.now(every) + block.model.rates.barrier_latency
        for ids, where, ticket in barrier.groups:  # each waits at its own place
            if ticket:
                block.until(ids, over, f"barrier {barrier.number}", where)
    if block.order:
        block.order.meet(every)
    if "red" in site.instruction.modifiers:
        at = len(site.arguments) - 1
        values = np.concatenate([block.arguments[ids, at] for ids, _, _ in barrier.groups]) != 0
        modifiers = site.instruction.modifiers
        block.results[every, 0] = (
            int(values.sum())
            if "popc" in modifiers
            else int(values.all() if "and" in modifiers else values.any())
        )
    block.kernel.add_traffic("barriers", 1)
    block.event(
        "barrier",
        f"cta{block.cluster.of(barrier.rank)}",
        f"barrier {barrier.number}: {len(every)} threads met",
        site,
    )
    for _, _, ticket in barrier.groups:
        if ticket:
            block.wake(ticket)


def _check_aligned(
    block: Block, groups: list[tuple[np.ndarray, Site]], name: str, call: str, whole: bool = False
) -> None:
    """The aligned forms want all lanes of a warp at the same instruction. Where they are for the ``whole`` CTA, CUDA C++ wants all warps at the same place
    of the source too: the hardware counts warps, compute-sanitizer looks."""

    def aligned(site: Site) -> bool:
        return site.instruction.opcode == "bar" or "aligned" in site.instruction.modifiers

    def report(who: str, what: str, first: Site, site: Site, ids: np.ndarray, fix: str) -> None:
        places = f"{first.instruction.location} and {site.instruction.location}"
        message = f"{what} arrived at {name} from different instructions ({places}): {call} in divergent code"
        block.hazard("barrier-divergence", site, 0, int(ids[0]), message, (who,), fix)

    seen: dict[int, Site] = {}
    for ids, site in groups:
        for w in warps_of(ids).tolist():
            first = seen.setdefault(w, site)
            if first.index != site.index and aligned(site):
                warp = block.cluster.warp(w)
                report(
                    warp,
                    f"lanes of {warp}",
                    first,
                    site,
                    ids,
                    f"move {call} out of the branch, so that all lanes of a warp reach the same one",
                )
    first = groups[0][1]
    for ids, site in groups if whole else ():
        if (first.instruction.location or first.index) != (site.instruction.location or site.index) and (
            aligned(first) or aligned(site)
        ):
            report(
                name,
                "warps",
                first,
                site,
                ids,
                "let all warps reach the same one, or meet at barrier.sync, which lets them come from anywhere",
            )
            return


@dataclass
class ClusterBarrier:
    """The barrier of a cluster: a phase is over when all threads that have not exited have arrived. Each waits once before it arrives again."""

    arrivals: np.ndarray  # of each thread, so far
    waits: np.ndarray
    phase: int = 0  # how many are over
    groups: list[tuple[np.ndarray, Site]] = field(default_factory=list)  # the arrivals of this phase
    waiters: list[int] = field(default_factory=list)  # tickets
    collected: Clocks | None = None  # what those who have arrived publish
    published: Clocks | None = None  # and what those of the phase before did
    came: np.ndarray | None = (
        None  # what they knew, published or not: a CTA that has waited may exit after all that
    )
    over: np.ndarray | None = None  # the same of the phase before
    passed: dict[int, np.ndarray] = field(
        default_factory=dict
    )  # and as of the last phase that each CTA has waited for, by rank


def cluster_barrier(block: Block) -> ClusterBarrier:
    found = block.named.get("cluster")
    if found is None:
        found = block.named["cluster"] = ClusterBarrier(
            np.zeros(block.cluster.rows, np.int64), np.zeros(block.cluster.rows, np.int64)
        )
    return found


@serves("barrier.cluster.arrive")
def cluster_arrive(block: Block, site: Site, ids: np.ndarray) -> None:
    barrier = cluster_barrier(block)
    again = ids[barrier.arrivals[ids] > barrier.waits[ids]]
    if len(again):
        who = block.cluster.thread(int(again[0]))
        block.hazard("cluster-barrier", site, 0, int(again[0]), f"{who} arrives at the cluster barrier again, and has not waited at it since it arrived the time "
                     "before: PTX leaves that undefined", (who,), "barrier.cluster.wait between two barrier.cluster.arrive of a thread")  # fmt: skip
        barrier.waits[again] = barrier.arrivals[again]
    barrier.groups.append((ids[barrier.arrivals[ids] == barrier.phase], site))
    barrier.arrivals[ids] += 1
    if block.order:
        relaxed = "relaxed" in site.instruction.modifiers
        covered = block.order.covered_by_fences(ids)
        clocks = block.order.release(ids)
        came = clocks.order
        if barrier.came is not None:
            came = np.maximum(block.order.fit_row(barrier.came), came)
        barrier.came = came
        barrier.collected = block.order.join(barrier.collected, covered if relaxed else clocks)
    block.go(ids)
    _cluster_complete(block)


@serves("barrier.cluster.wait")
def cluster_wait(block: Block, site: Site, ids: np.ndarray) -> None:
    barrier = cluster_barrier(block)
    over = (barrier.arrivals[ids] <= barrier.phase) & (barrier.arrivals[ids] > barrier.waits[ids])
    barrier.waits[ids] += 1
    _cluster_pass(block, barrier, ids[over])
    if not over.all():
        rest = ids[~over]
        barrier.waiters.append(block.wait(rest, site, partial(_why_cluster, block, barrier, rest)))


def _why_cluster(block: Block, barrier: ClusterBarrier, ids: np.ndarray) -> str:
    missing = np.flatnonzero(block.alive & (barrier.arrivals <= barrier.phase))
    left = int(block.alive.sum())
    own = (
        " (they have not arrived themselves: barrier.cluster.arrive comes before barrier.cluster.wait)"
        if np.isin(ids, missing).any()
        else ""
    )
    return f"the cluster barrier, {left - len(missing)} of {left} threads have arrived{own}; missing: {block.cluster.names(missing)}"


def _cluster_complete(block: Block) -> None:
    barrier = block.named.get("cluster")
    if (
        barrier is None
        or not barrier.groups
        or not block.alive.any()
        or (block.alive & (barrier.arrivals <= barrier.phase)).any()
    ):
        return
    barrier.phase += 1
    groups, barrier.groups = barrier.groups, []
    _check_aligned(block, groups, "the cluster barrier", "barrier.cluster.arrive")
    barrier.published, barrier.collected = barrier.collected, None
    barrier.over, barrier.came = barrier.came, None
    site, every = groups[-1][1], np.concatenate([ids for ids, _ in groups])
    block.kernel.add_traffic("barriers", 1)
    block.event("barrier", "cluster", f"cluster barrier: {len(every)} threads met", site)
    waiters, barrier.waiters = barrier.waiters, []
    if waiters and len(every) and block.model:
        waiting = np.concatenate([block.waiting[ticket].ids for ticket in waiters])
        block.until(
            waiting, block.now(every) + block.model.rates.barrier_latency, "the cluster barrier", site
        )
    for ticket in waiters:
        waiting_site = block.waiting[ticket].site
        ids = block.waiting.pop(ticket).ids
        here = barrier.arrivals[ids] <= barrier.phase
        here &= barrier.arrivals[ids] >= barrier.waits[ids]  # who never arrived goes on waiting
        _cluster_pass(block, barrier, ids[here])
        if not here.all():
            barrier.waiters.append(
                block.wait(ids[~here], waiting_site, partial(_why_cluster, block, barrier, ids[~here]))
            )


def _cluster_pass(block: Block, barrier: ClusterBarrier, ids: np.ndarray) -> None:
    if len(ids) and block.order and barrier.published is not None and barrier.over is not None:
        block.order.acquire(ids, block.order.fit(barrier.published))
        block.order.started(ids)
        barrier.passed |= {rank: barrier.over for rank, _ in block.cluster.split(ids)}
    block.go(ids)


# ---------------------------------------------------------------------------------------------------- warps


@dataclass
class Gathering:
    """Lanes of one warp that have come to a collective with this member mask."""

    mask: int
    groups: list[tuple[np.ndarray, Site, int]] = field(default_factory=list)


def _gather(
    block: Block, site: Site, ids: np.ndarray, masks: np.ndarray
) -> list[tuple[int, np.ndarray, int]]:
    """Collect lanes until all members came. The (warp, thread ids, mask) that are complete; the others wait."""
    ready = []
    name = (
        site.instruction.name
    )  # with its qualifiers: lanes at a ballot and at a shuffle wait for each other in vain
    if len(ids) == 32 * len(warps := warps_of(ids)) and (masks == FULL).all():  # whole warps
        return [(w, ids[32 * i : 32 * i + 32], FULL) for i, w in enumerate(warps.tolist())]
    warp_of = ids >> 5
    for w in warps_of(ids).tolist():
        mine = ids[warp_of == w]
        for mask in np.unique(masks[warp_of == w]).tolist():
            group = mine[masks[warp_of == w] == mask]
            outside = [int(t) for t in group if not mask >> (int(t) & 31) & 1]
            if outside:
                raise block.fault(f"lane {outside[0] & 31} executes {name} with member mask {mask:#010x}, which does not hold it", site,
                                  np.array(outside[:1]))  # fmt: skip
            if len(group) == 32 or _members(block, w, mask) == len(group):
                ready.append((w, group, mask))
                continue
            key = ("warp", w, name, mask)
            gathering = block.named.setdefault(key, Gathering(mask))
            gathering.groups.append(
                (group, site, block.wait(group, site, partial(_gathering_state, block, w, name, gathering)))
            )
            done = _take(block, key, w)
            if done is not None:
                ready.append((w, done, mask))
    return ready


def _gathering_state(block: Block, warp: int, name: str, gathering: Gathering) -> str:
    come = sum(len(ids) for ids, _, _ in gathering.groups)
    return f"{name} with member mask {gathering.mask:#010x}, {come} of {_members(block, warp, gathering.mask)} lanes have come"


def _members(block: Block, warp: int, mask: int) -> int:
    lanes = np.flatnonzero(block.alive[32 * warp : 32 * warp + 32])
    return int((mask >> lanes & 1).sum())


def _take(block: Block, key: tuple, warp: int) -> np.ndarray | None:
    gathering = block.named[key]
    if sum(len(ids) for ids, _, _ in gathering.groups) < _members(block, warp, gathering.mask):
        return None
    del block.named[key]
    return np.sort(np.concatenate([block.waiting.pop(ticket).ids for _, _, ticket in gathering.groups]))


def _exited(block: Block, ids: np.ndarray) -> None:
    """Threads that have exited do not count any more."""
    for barrier in [b for b in block.named.values() if isinstance(b, NamedBarrier) and b.expected is None]:
        _complete(block, barrier)
    _cluster_complete(block)
    for key in [k for k, v in block.named.items() if isinstance(v, Gathering)]:
        site = block.named[key].groups[0][1]
        done = _take(block, key, key[1])
        if done is not None:
            _serve(block, site, [(key[1], done, key[3])])


EXIT_HOOKS.append(_exited)

#: Where the member mask stands among the arguments.
MASK = {"shfl": 3, "vote": 1, "match": 1, "redux": 1, "elect": 0, "bar": 0}


@serves("shfl", "vote", "match", "redux", "elect", "bar.warp", "ldmatrix", "stmatrix", "movmatrix")
def collective(block: Block, site: Site, ids: np.ndarray) -> None:
    opcode = site.instruction.opcode
    if opcode in MASK:
        masks = block.arguments[ids, MASK[opcode]] & FULL
    else:
        masks = np.full(len(ids), FULL, np.int64)
    _serve(block, site, _gather(block, site, ids, masks))


@serves("activemask")
def activemask(block: Block, site: Site, ids: np.ndarray) -> None:
    for w in warps_of(ids).tolist():
        group = ids[ids >> 5 == w]
        block.results[group, 0] = int(sum(1 << (int(t) & 31) for t in group))
    block.go(ids)


def _serve(block: Block, site: Site, ready: list[tuple[int, np.ndarray, int]]) -> None:
    """Serve the complete warps of one site, all at once."""
    if not ready:
        return
    every = np.concatenate([ids for _, ids, _ in ready])
    opcode = site.instruction.opcode
    if opcode == "bar":  # the others exchange registers, and order no memory
        if block.order:
            for _, ids, _ in ready:
                block.order.meet(ids)
    else:
        if opcode not in COLLECTIVES:
            raise Unsupported(f"unknown PTX instruction {site.instruction.name}", site.instruction.location)
        block.warp_ids = np.array([w for w, _, _ in ready])
        arguments = np.zeros((len(ready), 32, len(site.arguments)), np.int64)
        active = np.zeros((len(ready), 32), bool)
        for k, (_, ids, _) in enumerate(ready):
            arguments[k, ids & 31] = block.arguments[ids, : len(site.arguments)]
            active[k, ids & 31] = True
        results = COLLECTIVES[opcode](block, site, arguments, active)
        for k, (_, ids, _) in enumerate(ready):
            for slot, values in enumerate(results):
                block.results[ids, slot] = values[k, ids & 31]
    block.go(every)


Results = list[np.ndarray]


def _each(values: np.ndarray) -> np.ndarray:
    """One value a warp, for each of its lanes."""
    return np.broadcast_to(np.asarray(values, np.int64)[:, None], (len(values), 32))


def _shuffle(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    mode = site.instruction.modifiers[1]
    found = collectives.shuffle(mode, arguments[..., 0] & FULL, arguments[..., 1], arguments[..., 2], active)
    if (found.undefined & active).any() and block.order:
        lane = int(np.nonzero(found.undefined & active)[1][0])
        block.hazard(
            "shuffle-source", site, 0, lane, f"lane {lane} reads by shfl.sync from a lane that has exited or is not in the member mask: the value is undefined",
            (f"lane {lane}",), "let every lane that is read from execute the shuffle and stand in the mask",
        )  # fmt: skip
    return [found.value.astype(np.int64), found.predicate.astype(np.int64)]


def _vote(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    mode = site.instruction.modifiers[1]
    predicate = arguments[..., 0] != 0
    return [
        _each(
            collectives.ballot(predicate, active)
            if mode == "ballot"
            else collectives.vote(mode, predicate, active)
        )
    ]


def _match(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    values = arguments[..., 0] if "b64" in site.instruction.modifiers else arguments[..., 0] & FULL
    if "any" in site.instruction.modifiers:
        return [collectives.match_any(values, active).astype(np.int64)]
    mask, alike = collectives.match_all(values, active)
    return [_each(mask), _each(alike)]


def _redux(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    _, operation, *rest = site.instruction.modifiers
    return [_each(collectives.reduce(operation, rest[-1], arguments[..., 0], active))]


def _elect(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    leader = collectives.elect(active)
    return [_each(leader), (np.arange(32) == leader[:, None]).astype(np.int64)]


def _matrix_rows(block: Block, site: Site, addresses: np.ndarray, count: int) -> np.ndarray:
    rows = addresses[:, : 8 * count] & FULL
    if block.cluster.ranks > 1:
        rows = block.places(rows, site, 32 * block.warp_ids[:, None] + np.arange(8 * count))
        addresses = np.pad(rows, ((0, 0), (0, 32 - 8 * count)))
        ends = np.concatenate([rows.min(1), rows.max(1)])
    else:
        ends = np.array([rows.min(), rows.max()])
    for place in ends.tolist():
        block.shared_bytes(place, 16, site, site.instruction.opcode)
    if (rows & 15).any():
        raise block.fault(
            f"misaligned row address {block.cluster.spot(int(rows[rows & 15 != 0][0]))}: rows are 16-byte aligned",
            site,
        )
    return addresses & FULL


def _ldmatrix(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    count = len(site.results)
    addresses = _matrix_rows(block, site, arguments[..., 0], count)
    if block.order:
        block.order.warp_read(addresses[:, : 8 * count], 16, block.warp_ids, site.index)
    block.kernel.add_traffic("shared_load_bytes", len(addresses) * 8 * count * 16)
    values = collectives.load_matrix(block.shared, addresses, count, "trans" in site.instruction.modifiers)
    return [values[..., k].astype(np.int64) for k in range(count)]


def _stmatrix(block: Block, site: Site, arguments: np.ndarray, active: np.ndarray) -> Results:
    registers = (arguments[..., 1:] & FULL).astype(np.uint32)
    addresses = _matrix_rows(block, site, arguments[..., 0], registers.shape[-1])
    if block.order:
        block.order.warp_write(addresses[:, : 8 * registers.shape[-1]], 16, block.warp_ids, site.index)
    block.kernel.add_traffic("shared_store_bytes", len(addresses) * 8 * registers.shape[-1] * 16)
    collectives.store_matrix(block.shared, addresses, registers, "trans" in site.instruction.modifiers)
    return []


COLLECTIVES = {
    "shfl": _shuffle, "vote": _vote, "match": _match, "redux": _redux, "elect": _elect, "ldmatrix": _ldmatrix, "stmatrix": _stmatrix,
}  # fmt: skip


@serves("fence", "membar")
def fence(block: Block, site: Site, ids: np.ndarray) -> None:
    if block.order:
        modifiers = site.instruction.modifiers
        if "proxy" in modifiers:
            block.order.proxy_fence(ids)
        elif "mbarrier_init" in modifiers:
            block.order.fence_inits(ids)
        else:
            block.order.fence(ids)
    block.go(ids)


@serves("order.acquire")
def acquire(block: Block, site: Site, ids: np.ndarray) -> None:
    """After a load or an atomic with acquire. Where it loads a flag in a loop, the next round may be the same."""
    if block.order:
        for word, group in _by_word(block, site, ids):
            block.order.see(group, word)
    block.poll(ids)


@serves("order.release")
def release(block: Block, site: Site, ids: np.ndarray) -> None:
    """Before a store or an atomic with release."""
    if block.order:
        for word, group in _by_word(block, site, ids):
            block.order.publish(word, block.order.release(group))
    block.go(ids)


def _by_word(block: Block, site: Site, ids: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The threads by the word of shared memory that they go to; -1 is all of global memory."""
    addresses = block.arguments[ids, 0]
    space = site.instruction.modifiers[1]
    inside = np.full(len(ids), space == "shared") if space != "generic" else addresses >> 56 == 1
    words = np.full(len(ids), -1, np.int64)
    words[inside] = block.places(addresses[inside], site, ids[inside], own=False) >> 2
    return [(word, ids[words == word]) for word in np.unique(words).tolist()]


@serves("nanosleep")
def sleep(block: Block, site: Site, ids: np.ndarray) -> None:
    block.poll(ids)


@serves("griddepcontrol")
def nothing(block: Block, site: Site, ids: np.ndarray) -> None:
    """A launch begins when the one before has ended: there is nothing to wait for."""
    block.go(ids)
