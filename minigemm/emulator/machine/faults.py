"""The messages of faults that native code finds, and the hazard that is likely behind a failure."""

from __future__ import annotations

from .. import context as c
from ..clusters import OFFSETS, RANK_SHIFT
from ..errors import Fault
from .block import Block


def native_fault(block: Block, thread: int) -> Fault:
    """Return the fault that native code left in the block record of this thread's CTA."""
    cluster, program = block.cluster, block.launch.program
    rank = cluster.rank_of(thread)
    fields = c.FAULT_KIND, c.FAULT_SITE, c.FAULT_ADDRESS, c.FAULT_SIZE
    kind, site, address, size = (int(block.fields[rank][field]) for field in fields)
    access = program.accesses.get(site)
    verb = "write" if access and access.store else "read"

    # What the address could have been.
    other = address >> RANK_SHIFT
    end = f"[{c.SHARED_FIRST:#x}, {cluster.size:#x})"
    if other != rank and other < cluster.ranks and address & OFFSETS < cluster.size:
        end += (
            f", and the address is in that of CTA rank {other}, which only .shared::cluster and generic "
            "addresses reach"
        )
    if cluster.ranks > 1:
        ranks = f"the cluster has ranks 0 to {cluster.ranks - 1}"
    else:
        ranks = "the cluster is this one CTA, rank 0"

    message = {
        c.SHARED_BOUNDS: f"out-of-bounds {verb} of {size} bytes at shared address {address:#x}; the CTA's shared "
        f"memory is {end}",
        c.GLOBAL_BOUNDS: f"out-of-bounds {verb} of {size} bytes at global address {address:#x}: "
        f"{block.launch.memory.nearest(address)}",
        c.MISALIGNED: f"misaligned {verb}: {size} bytes at address {address:#x}, which is no multiple of {size}",
        c.READ_ONLY: f"write of {size} bytes at {address:#x}, which is read-only memory",
        c.TRAP: "the kernel executed trap",
        c.LOCAL_BOUNDS: f"out-of-bounds access to local memory: {size} bytes at offset {address} of "
        f"{program.local_bytes}",
        c.BAD_INDEX: f"branch table index {address} is out of range",
        c.BAD_RANK: f"{verb} of {size} bytes at shared address {address:#x}, in CTA rank {other}: {ranks}",
        c.MAPA_RANK: f"mapa names CTA rank {address}: {ranks}",
    }[kind]
    return _fault(block, message, site, thread, suspect(block))


def never_written(block: Block) -> Fault | None:
    """Return the fault for a read of shared memory that nobody had written, unless a hazard explains it."""
    found = block.order.unexplained() if block.order else None
    if found is None:
        return None
    site, place, thread = found
    spot = block.cluster.spot(place)
    return _fault(block, f"read of shared address {spot}, which was never written", site, thread)


def suspect(block: Block) -> str:
    """Return the first hazard of the block, as a line to add to a message; "" if there is none."""
    hazard = next(iter(block.order.found.values()), None) if block.order else None
    if hazard is None:
        return ""
    return f"\n  a likely cause, at {hazard.location or f'PTX line {hazard.ptx_line}'}: {hazard.message}"


def _fault(block: Block, message: str, site: int, thread: int, more: str = "") -> Fault:
    """Return a fault at the instruction with index `site`, in a thread that is named by its (x, y, z)."""
    ins = block.launch.program.function.code[site]
    bx, by, _ = block.launch.block
    t = thread % block.cluster.stride
    tid = t % bx, t // bx % by, t // (bx * by)
    where = f"{ins.name}, PTX line {ins.line}, thread {tid} of {block.cta_name(thread)}"
    return Fault(f"{message} ({where}){more}", ins.location)
