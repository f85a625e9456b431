"""The sentences of the findings that order.py and checks.py make, and the findings of a launch.

There is one function per kind. Each takes a `Scene` (where the finding shows) and the parties in words, and
returns a `Hazard`: cause, parties and fix. Nothing here looks at clocks; checks.py and order.py decide which
finding it is. The misuse of tensor-core registers, which the translator finds, has its sentences here too.
Units of the machine word what they find themselves.

A new hazard: its check in checks.py (ranges, warps) or order.py (records of native code), its sentence here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..clusters import Cluster
from ..errors import Location
from .report import Hazard, location_in_words

__all__ = ["INIT", "INIT_IN_CLUSTERS", "STAY", "Findings", "Scene"]

INIT = (
    "after mbarrier.init, fence (fence.mbarrier_init or fence.proxy.async) and __syncthreads() before any thread uses "
    "it"
)
INIT_IN_CLUSTERS = (
    "after mbarrier.init, fence.mbarrier_init.release.cluster and a cluster barrier (barrier.cluster.arrive, then "
    "barrier.cluster.wait) before another CTA uses it; an .arrive.relaxed publishes only what a fence before it covers"
)
STAY = (
    "end the kernel with a cluster barrier (barrier.cluster.arrive, then barrier.cluster.wait, by all threads of every "
    "CTA), so that none exits before the others have done with its shared memory and its mbarriers"
)
PROXY_FENCE = "fence.proxy.async.shared::cta in every writing thread after its stores and before the barrier"


class Scene(NamedTuple):
    """The access at which a finding shows, and the earlier access that it is in conflict with.

    Attributes:
        location, ptx_line, address: as in `Hazard`.
        spot: the shared address in words.
        here: the source line of the access in words.
        other: the source line of the earlier access in words, "" where there is none.
    """

    location: Location | None
    ptx_line: int
    address: int
    spot: str
    here: str
    other: str

    def hazard(self, kind: str, message: str, parties: tuple[str, ...], fix: str) -> Hazard:
        return Hazard(kind, message, self.location, self.ptx_line, self.address, parties, fix)


class Findings:
    """The hazards of a launch, one for each (kind, line, other line); more of the same are counted."""

    def __init__(self, cluster: Cluster, source_of: Callable[[int], tuple[Location | None, int]]) -> None:
        """`source_of(site)` gives the source location and PTX line of an instruction index."""
        self.cluster, self.source_of = cluster, source_of
        self.found: dict[tuple[str, str, str], Hazard] = {}
        self.lines: dict[int, str] = {}  # site -> its source line in words
        self.racing: set[str] = set()  # source lines that some finding names
        # Reads of words that nobody had written, one for each source line: (site, address, thread).
        self.unwritten: dict[str, tuple[int, int, int]] = {}

    def line_of(self, site: int) -> str:
        """Return the source line of an instruction in words."""
        text = self.lines.get(site)  # a race on a tile asks for the same few sites thousands of times
        if text is None:
            text = self.lines[site] = location_in_words(*self.source_of(site))
        return text

    def scene(self, site: int, address: int, other: int = -1) -> Scene:
        """Return the scene of an access at `site` to a shared address, in conflict with one at `other`."""
        location, line = self.source_of(site)
        here, earlier = location_in_words(location, line), self.line_of(other) if other >= 0 else ""
        return Scene(location, line, address, self.cluster.spot(address), here, earlier)

    def keep(self, scene: Scene, hazard: Hazard) -> None:
        """Add a finding, or count it with an earlier one that is like it."""
        self.racing |= {scene.here, scene.other} - {""}
        key = (hazard.kind, scene.here, scene.other)
        if key in self.found:
            self.found[key].count += 1
        else:
            self.found[key] = hazard

    def read_unwritten(self, site: int, address: int, thread: int) -> None:
        """Remember the first read of unwritten memory at this source line."""
        self.unwritten.setdefault(self.line_of(site), (site, address, thread))

    def unexplained(self) -> tuple[int, int, int] | None:
        """Return (site, address, thread) of a read of unwritten memory that no finding explains, or None.

        A finding explains a read if it names the read's source line.
        """
        return next((read for line, read in self.unwritten.items() if line not in self.racing), None)


# --- between threads


def race(at: Scene, me: str, verb: str, them: str, theirs: str, fix: str, between: str = "") -> Hazard:
    """Two threads access a word, one of them writes, and no barrier orders them."""
    message = (
        f"data race on shared memory: {me} {verb} address {at.spot} that {them} {theirs} at {at.other}, with no "
        f"barrier between{between}"
    )
    return at.hazard("race", message, (them, me), fix)


def barrier_between(accesses: str, apart: bool, same_warp: bool) -> str:
    """Return the fix of a race. `apart`: the threads belong to different CTAs."""
    if apart:
        return (
            f"put a cluster barrier between {accesses} (barrier.cluster.arrive.release, then "
            "barrier.cluster.wait.acquire, by all threads of both CTAs), or a remote arrival on an mbarrier that the "
            "other CTA waits on"
        )
    only_warp = " (__syncwarp() where only this warp shares the data)" if same_warp else ""
    return f"put __syncthreads() between {accesses}, reached by all threads{only_warp}"


def mbarrier_access(at: Scene, me: str) -> Hazard:
    """An ordinary access goes to a word of an mbarrier."""
    message = (
        f"{me} reads or writes shared address {at.spot}, which is a live mbarrier, with an ordinary access"
    )
    fix = "use mbarrier instructions only, or mbarrier.inval before the memory is used again"
    return at.hazard("mbarrier-access", message, (me, f"mbarrier at {at.spot}"), fix)


def mbarrier_init(at: Scene, me: str, them: str, where: str, apart: bool) -> Hazard:
    """A thread uses an mbarrier and is not ordered after its initialisation. `apart`: by another CTA."""
    message = (
        f"{me} uses the mbarrier at shared address {at.spot} that {them} initialised at {where}, but no "
        f"{'cluster ' if apart else ''}barrier stands between"
    )
    return at.hazard("mbarrier-init", message, (them, me), INIT_IN_CLUSTERS if apart else INIT)


# --- asynchronous writes


def copy_not_complete(at: Scene, me: str, verb: str, owner: str) -> Hazard:
    """A thread accesses the destination of a cp.async that has not completed."""
    message = (
        f"{me} {verb} shared address {at.spot}, the destination of a cp.async that {owner} issued at {at.other}, "
        f"before that copy has completed: {owner} has not waited for its group"
    )
    fix = "cp.async.wait_group (or wait_all) in the thread that copies, then __syncthreads() for the others"
    return at.hazard("copy-not-complete", message, (f"cp.async of {owner}", me), fix)


def load_not_complete(at: Scene, me: str, verb: str, load: str, barrier: str) -> Hazard:
    """A thread accesses the destination of a TMA load or bulk copy, and has not waited for its phase."""
    message = (
        f"{me} {verb} shared address {at.spot}, the destination of a {load} issued at {at.other}, before that "
        f"{load.split()[-1]} has completed on the {barrier}: the thread does not wait for this phase, or waits with "
        "the wrong parity"
    )
    fix = (
        "let every thread that reads the tile wait on the mbarrier (mbarrier.try_wait.parity), with the parity of the "
        "phase that the load completes: 0 for the first, then flipped each time"
    )
    return at.hazard("tma-not-complete", message, (f"{load} on the {barrier}", me), fix)


def load_fills_again(at: Scene, me: str, load: str, barrier: str, remote: str) -> Hazard:
    """A load fills a slot again, and its thread does not know that the tile there has come and been read."""
    message = (
        f"the {load} that {me} issues fills shared address {at.spot} again, and nothing has told that thread that "
        f"the tile loaded there at {at.other} has been read: it does not wait until the slot is free, or waits with "
        f"the wrong parity{remote}"
    )
    fix = (
        "before the load, wait for the slot's empty barrier (parity 1 in the first round, flipped each time around the "
        "ring) or at a barrier that all readers reach after their last read"
    )
    return at.hazard("slot-overwritten", message, (barrier, f"{load} of {me}"), fix)


def load_overwrites(at: Scene, me: str, load: str, them: str) -> Hazard:
    """A load writes a word that a thread wrote, with no order between them."""
    message = (
        f"the {load} that {me} issues writes shared address {at.spot} that {them} wrote at {at.other}, with no order "
        "between"
    )
    fix = "issue the load only after a barrier, or after the mbarrier of the earlier load"
    return at.hazard("tma-load-overwrites", message, (them, f"{load} of {me}"), fix)


def tile_overwritten(at: Scene, me: str, load: str, who: str, remote: str) -> Hazard:
    """A load overwrites a tile that a thread may still read."""
    message = (
        f"the {load} that {me} issues overwrites shared address {at.spot} while {who} may still read it (at "
        f"{at.other}){remote}"
    )
    fix = "let all readers meet at a barrier after their last read, and issue the next load behind it"
    return at.hazard("tile-overwritten", message, (who, f"{load} of {me}"), fix)


def product_overwritten(at: Scene, me: str, load: str, who: str, released: bool, remote: str) -> Hazard:
    """A load overwrites a slot that a WGMMA reads: released before the wait, or not waited for at all."""
    if released:
        cause = "the warpgroup released the slot before a wgmma.wait_group had retired that WGMMA"
        fix = "wgmma.wait_group first, then arrive on the slot's empty barrier (or at the barrier of the CTA)"
    else:
        cause = (
            f"the loading thread does not wait until the slot is free, or waits with the wrong parity{remote}"
        )
        fix = (
            "before the load, wait for the slot's empty barrier: parity 1 in the first round, flipped each time around "
            "the ring"
        )
    message = (
        f"the {load} that {me} issues overwrites shared address {at.spot} while {who} (issued at {at.other}) may "
        f"still read it: {cause}"
    )
    return at.hazard("slot-overwritten", message, (who, f"{load} of {me}"), fix)


def slot_of_another_cta(rank: int) -> str:
    """Return what a multicast is apt to forget, as the end of a cause."""
    return (
        f". The slot is in CTA rank {rank}: whoever copies into it must wait for the readers there too, on an empty "
        "barrier at which they arrive remotely (mapa, mbarrier.arrive.shared::cluster)"
    )


# --- asynchronous reads


def store_too_early(at: Scene, me: str, store: str, them: str) -> Hazard:
    """A TMA store reads a word, and a thread's write of it is not ordered before."""
    message = (
        f"the {store} that {me} issues reads shared address {at.spot} that {them} writes at {at.other}, with no "
        "barrier between"
    )
    fix = f"fence.proxy.async in every writing thread, then __syncthreads(), then the {store.split()[-1]}"
    return at.hazard("tma-store-too-early", message, (them, f"{store} of {me}"), fix)


def store_without_fence(at: Scene, me: str, store: str, them: str) -> Hazard:
    """A TMA store reads an ordinary write, and no proxy fence stands between them."""
    message = (
        f"missing fence.proxy.async: the {store} that {me} issues reads shared address {at.spot} through the async "
        f"proxy, and {them} wrote it by an ordinary store at {at.other} without a proxy fence after it"
    )
    return at.hazard("proxy-fence", message, (them, f"{store} of {me}"), PROXY_FENCE)


def store_overwritten(at: Scene, me: str, store: str) -> Hazard:
    """A thread writes what a TMA store may still read."""
    message = f"{me} writes shared address {at.spot} while {store} (issued at {at.other}) may still read it"
    fix = "wait for the store to have read its source: cp.async.bulk.wait_group.read 0 by its thread, then a barrier"
    return at.hazard("tma-store-overwritten", message, (store, me), fix)


# --- WGMMA


def operand_race(at: Scene, wgmma: str, operand: str, them: str) -> Hazard:
    """A WGMMA reads a word, and a thread's write of it is not ordered before."""
    message = (
        f"{wgmma} reads shared address {at.spot} (operand {operand}) that {them} wrote at {at.other}, with no barrier "
        "between"
    )
    fix = "fence.proxy.async in every writing thread, then a barrier that the warpgroup waits at, then the WGMMA"
    return at.hazard("race", message, (them, wgmma), fix)


def operand_without_fence(at: Scene, wgmma: str, operand: str, them: str) -> Hazard:
    """A WGMMA reads an ordinary write, and no proxy fence stands between them."""
    message = (
        f"missing fence.proxy.async: {wgmma} reads shared address {at.spot} (operand {operand}) through the async "
        f"proxy, and {them} wrote it by an ordinary store at {at.other} without a proxy fence after it"
    )
    return at.hazard("proxy-fence", message, (them, wgmma), PROXY_FENCE)


def operand_overwritten(at: Scene, me: str, wgmma: str) -> Hazard:
    """A thread writes what a WGMMA may still read."""
    message = f"{me} writes shared address {at.spot} while {wgmma} (issued at {at.other}) may still read it"
    fix = "wgmma.wait_group in the warpgroup, then a barrier, then the write"
    return at.hazard("slot-overwritten", message, (wgmma, me), fix)


def swizzle_mismatch(at: Scene, wgmma: str, operand: str, named: int, written: int) -> Hazard:
    """The matrix descriptor names another swizzle, in bytes, than the one that TMA wrote the tile with."""
    name, actual = (f"the {span}-byte swizzle" if span else "no swizzle" for span in (named, written))
    message = (
        f"the descriptor of operand {operand} of {wgmma} names {name}, and the TMA load at {at.other} wrote the tile "
        f"with {actual}"
    )
    fix = "give the tensor map and the matrix descriptor the same swizzle"
    return at.hazard("swizzle-mismatch", message, (wgmma, "TMA load"), fix)


def registers_without_fence(at: Scene) -> Hazard:
    """A WGMMA follows an ordinary access of its registers, or the kernel's start, without a wgmma.fence."""
    before = "it is the first of the kernel"
    if at.other:
        before = f"an ordinary instruction touched its registers at {at.other}"
    message = f"missing wgmma.fence: {before}, and no wgmma.fence stands between that and this WGMMA"
    fix = "wgmma.fence.sync.aligned before the first WGMMA of each batch"
    return at.hazard("wgmma-fence", message, ("ordinary instructions", "WGMMA"), fix)


def accumulator_in_flight(at: Scene, writes: bool) -> Hazard:
    """An ordinary instruction touches an accumulator of a WGMMA that may not have been retired."""
    message = (
        f"this {'writes' if writes else 'reads'} an accumulator register of the WGMMA at {at.other} while that WGMMA "
        "may still be in flight: no wgmma.wait_group has retired it on the way here"
    )
    fix = "wgmma.commit_group and wgmma.wait_group before the accumulators are used"
    return at.hazard("accumulator-in-flight", message, ("ordinary instruction", "WGMMA"), fix)


# --- clusters


def exits_too_early(at: Scene, rank: int, who: str, verb: str) -> Hazard:
    """A CTA exits, and an access to its shared memory is not ordered before."""
    message = (
        f"CTA rank {rank} exits while {who} may still {verb} its shared memory (address {at.spot}): nothing orders "
        "that before the exit"
    )
    return at.hazard("cta-exited", message, (who, f"CTA rank {rank}"), STAY)


def exited(at: Scene, rank: int, me: str, thread: str, what: str) -> Hazard:
    """A thread, or what it started, goes to the shared memory of a CTA that has exited."""
    message = (
        f"{me} {what} shared address {at.spot}, and that CTA has exited: its shared memory may belong to another "
        "by now"
    )
    return at.hazard("cta-exited", message, (thread, f"CTA rank {rank}"), STAY)


def not_started(at: Scene, rank: int, me: str, thread: str) -> Hazard:
    """A thread goes to the shared memory of a CTA that may not have begun."""
    message = (
        f"{me} accesses shared address {at.spot}, and nothing has told it that this CTA has begun: its shared memory "
        "may still be another's"
    )
    fix = (
        "begin the kernel with a cluster barrier (barrier.cluster.arrive, then barrier.cluster.wait, by all threads of "
        "every CTA)"
    )
    return at.hazard("cta-not-started", message, (thread, f"CTA rank {rank}"), fix)
