"""Warpgroup matrix products: descriptors, fragments, asynchronous groups, and the registers that `setmaxnreg` moves about.

The four warps of a warpgroup come to `wgmma.mma_async` together. It reads its operands from shared memory through the async proxy at some time
between its issue and the `wgmma.wait_group` that retires it: at once under the schedule "early", at the wait under "late", in between under a seed.
Until it is retired the accumulators of a late product hold a NaN, so that a kernel which looks too early computes one.

Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" (fragments, matrix descriptor, core matrices, swizzle), "setmaxnreg".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np

from ..errors import Unsupported
from ..translate.lower import Site
from ..watch.order import STEP, warps_of
from . import tensor_core
from .block import Block, serves

WARPGROUP = 128  # threads
POISON = np.uint32(0x7FFFDEAD)  # a NaN that no arithmetic gives: an accumulator that is still being computed
SWIZZLES = {0: 0, 1: 128, 2: 64, 3: 32}  # the descriptor's layout type -> span in bytes
REGISTER_FILE = 65536  # of an SM; one CTA that has it all


# ---------------------------------------------------------------------------------------------------- descriptors and fragments


@dataclass(frozen=True)
class Descriptor:
    """A matrix descriptor: `start`, `leading` and `stride` in bytes, `swizzle` the span in bytes (0: none), `base_offset` 0 to 7."""

    start: int
    leading: int
    stride: int
    base_offset: int
    swizzle: int

    @classmethod
    def decode(cls, bits: int) -> Descriptor:
        """From the 64 bits that `wgmma.mma_async` takes."""
        return cls(
            (bits & 0x3FFF) << 4,
            (bits >> 16 & 0x3FFF) << 4,
            (bits >> 32 & 0x3FFF) << 4,
            bits >> 49 & 7,
            SWIZZLES[bits >> 62 & 3],
        )

    def chunks(self, rows: int) -> np.ndarray:
        """Shared addresses (rows, 2) of the two 16-byte chunks that the 32 bytes of each row consist of. K-major, as FP8 always is."""
        return _chunks(self, rows)


@lru_cache(maxsize=4096)
def _chunks(descriptor: Descriptor, rows: int) -> np.ndarray:
    row = np.arange(rows)[:, None]
    chunk = np.arange(2)[None, :]
    if not descriptor.swizzle:  # core matrices: 8 rows of 16 bytes that lie one after the other
        return descriptor.start + row // 8 * descriptor.stride + row % 8 * 16 + chunk * descriptor.leading
    address = descriptor.start + row // 8 * descriptor.stride + row % 8 * descriptor.swizzle + chunk * 16
    phase = (
        address >> 7
    ) - descriptor.base_offset  # where the pattern starts anew, if not at a multiple of its period
    return address ^ (phase & (descriptor.swizzle // 16 - 1)) << 4


def matrix_of(fragments: np.ndarray) -> np.ndarray:
    """Accumulators (128 threads, n / 2 registers) as a matrix (64, n): register 4j + 2h + i of lane l of warp w holds the element in row
    16w + l / 4 + 8h and column 8j + 2(l % 4) + i."""
    n = fragments.shape[1] * 2
    return np.ascontiguousarray(fragments.reshape(4, 8, 4, n // 8, 2, 2).transpose(0, 4, 1, 3, 2, 5)).reshape(
        64, n
    )


def fragments_of(matrix: np.ndarray) -> np.ndarray:
    """The inverse of `matrix_of`."""
    n = matrix.shape[1]
    return np.ascontiguousarray(matrix.reshape(4, 2, 8, n // 8, 4, 2).transpose(0, 2, 4, 3, 1, 5)).reshape(
        WARPGROUP, n // 2
    )


def a_from_registers(registers: np.ndarray) -> np.ndarray:
    """A (64, 32) uint8 from (128 threads, 4 registers) uint32: register 2c + h of lane l of warp w holds row 16w + l / 4 + 8h, bytes 16c + 4(l % 4) on."""
    words = (
        np.ascontiguousarray(registers).view(np.uint8).reshape(4, 8, 4, 2, 2, 4)
    )  # warp, l / 4, l % 4, c, h, byte
    return np.ascontiguousarray(words.transpose(0, 4, 1, 3, 2, 5)).reshape(64, 32)


# ---------------------------------------------------------------------------------------------------- asynchronous products


@dataclass
class Product:
    """One `wgmma.mma_async` of a warpgroup."""

    site: Site
    compute: Callable[[], None] | None  # None once it has been computed
    clock: int
    done: float = 0.0  # under a cycle model: when it may be retired


@dataclass
class Accumulator:
    """A set of registers while products on it are in flight: its sum so far, and how many products are."""

    sums: np.ndarray  # bits of float32 (64, n)
    pending: int = 0


@dataclass
class Warpgroup:
    """What a warpgroup has issued: products not committed yet, and groups of them in order."""

    number: int
    open: list[Product] = field(default_factory=list)
    groups: deque[list[Product]] = field(default_factory=deque)
    accumulators: dict[tuple[int, ...], Accumulator] = field(default_factory=dict)
    clock: int = 0

    @property
    def flight(self) -> list[Product]:
        return [product for group in self.groups for product in group] + self.open


def _warpgroup(block: Block, number: int) -> Warpgroup:
    return block.named.setdefault(("warpgroup", number), Warpgroup(number))


@dataclass
class Meeting:
    """Warps of a warpgroup that have come to an instruction."""

    site: Site
    groups: list[tuple[np.ndarray, int]] = field(default_factory=list)  # threads, ticket


def _meet(block: Block, site: Site, ids: np.ndarray) -> list[np.ndarray]:
    """The threads (ascending, 128 each) of the warpgroups whose four warps are all at this instruction; the others wait."""
    if len(ids) == WARPGROUP and ids[0] % WARPGROUP == 0 and ids[-1] == ids[0] + WARPGROUP - 1:
        return [ids]
    ready = []
    for number in np.unique(ids // WARPGROUP).tolist():
        mine = ids[ids // WARPGROUP == number]
        if int(mine[0]) % block.cluster.stride // WARPGROUP * WARPGROUP + WARPGROUP > block.cluster.threads:
            warp = block.cluster.warp(int(mine[0]) >> 5)
            raise block.fault(f"{_name(site)} needs a warpgroup, four warps from a multiple of 4 on: {warp} is in none, "
                              f"the CTA has {block.cluster.threads} threads", site, mine)  # fmt: skip
        if len(mine) == WARPGROUP:
            ready.append(mine)
            continue
        key = ("warpgroup at", number, site.index)
        meeting = block.named.setdefault(key, Meeting(site))
        meeting.groups.append((mine, block.wait(mine, site, partial(_why_meeting, block, number, meeting))))
        if sum(len(group) for group, _ in meeting.groups) == WARPGROUP:
            del block.named[key]
            for _, ticket in meeting.groups:
                block.waiting.pop(ticket)
            ready.append(np.sort(np.concatenate([group for group, _ in meeting.groups])))
    return ready


def _name(site: Site) -> str:
    return ".".join((site.instruction.opcode, *site.instruction.modifiers[:1]))


def _why_meeting(block: Block, number: int, meeting: Meeting) -> str:
    come = sum(len(group) for group, _ in meeting.groups)
    gone = WARPGROUP - int(block.alive[WARPGROUP * number : WARPGROUP * (number + 1)].sum())
    exited = f", {gone} have exited" if gone else ""
    return (f"{_name(meeting.site)} of {block.cluster.warpgroup(number)}, {come} of its 128 threads have come{exited}. All four warps of a warpgroup must "
            "execute it, with all their lanes")  # fmt: skip


@serves("wgmma.fence")
def fence(block: Block, site: Site, ids: np.ndarray) -> None:
    for group in _meet(block, site, ids):
        block.go(group)


@serves("wgmma.mma_async")
def mma_async(block: Block, site: Site, ids: np.ndarray) -> None:
    for group in _meet(block, site, ids):
        _issue(block, site, group)
        block.go(group)


def _issue(block: Block, site: Site, ids: np.ndarray) -> None:
    shape = _shape(site)
    arguments = block.arguments[ids, : len(site.arguments)]
    number = int(ids[0]) // WARPGROUP
    group = _warpgroup(block, number)
    # A (a descriptor, or four registers), the descriptor of B, scale-d, imm-scale-a, imm-scale-b
    at_b = 4 if shape.from_registers else 1
    a_registers = (arguments[:, :4] & 0xFFFFFFFF).astype(np.uint32)
    descriptor_b, scale_d, *signs = arguments[0, at_b:].tolist()
    _uniform(block, site, ids, arguments[:, at_b], "the descriptor of B")
    flip_a, flip_b = (
        np.uint8(0x80 if _signed(sign) < 0 else 0) for sign in (signs + [1, 1])[:2]
    )  # -1 negates an operand
    a = None
    if not shape.from_registers:
        _uniform(block, site, ids, arguments[:, 0], "the descriptor of A")
        a = _operand(block, site, ids, int(arguments[0, 0]), 64, "A")
    b = _operand(block, site, ids, descriptor_b, shape.n, "B")
    columns = tuple(offset // 4 for offset in site.accumulators)
    accumulator = group.accumulators.get(columns)
    if accumulator is None:
        sums = matrix_of(np.ascontiguousarray(block.c32[ids[:, None], columns]).view(np.uint32))
        accumulator = group.accumulators[columns] = Accumulator(sums)
    accumulator.pending += 1
    group.clock += STEP
    if block.order:
        _check_operands(block, site, ids, group, [x for x in (a, b) if x is not None])
    _check_registers(block, site, ids)
    block.kernel.add_traffic("wgmma", 1)

    def compute() -> None:
        left = a_from_registers(a_registers) if a is None else _fetch(block, a)
        right = _fetch(block, b)
        if not scale_d:
            accumulator.sums[:] = 0
        left, right = left ^ flip_a, right ^ flip_b
        (tensor_core.accumulate_fast if block.kernel.fast else tensor_core.accumulate)(
            left, right, accumulator.sums, shape.a, shape.b
        )

    if block.model:
        block.model.product(number, warps_of(ids).tolist(), shape.n, str(site.instruction.location))
    done = block.model.products[number] if block.model else 0.0
    product = Product(site, compute, group.clock, done)
    group.open.append(product)
    if block.watched:
        block.event("wgmma issued", block.cluster.warpgroup(number), f"m64n{shape.n}k32", site)
    if block.kernel.schedule == "early":
        _compute(group, product)
        block.c32[ids[:, None], columns] = fragments_of(accumulator.sums).view(np.int32)
    else:
        block.c32[ids[:, None], columns] = POISON.view(np.int32)
        if block.random is not None:
            block.flight.append(partial(_compute, group, product))


def _compute(group: Warpgroup, product: Product) -> None:
    """This product and, since they are computed in order, those before it."""
    for earlier in group.flight:
        if earlier.compute is not None:
            earlier.compute()
            earlier.compute = None
        if earlier is product:
            break


@dataclass(frozen=True)
class Shape:
    """m64nNk32 of FP8 types, and whether A comes from registers."""

    n: int
    a: str
    b: str
    from_registers: bool


@lru_cache(maxsize=256)
def _parse_shape(modifiers: tuple[str, ...], operands: int) -> Shape | None:
    types = [
        m for m in modifiers if m in ("f32", "f16", "bf16", "tf32", "e4m3", "e5m2", "s32", "s8", "u8", "b1")
    ]
    shape = next((m for m in modifiers if m.startswith("m64n")), "")
    if (
        "sp" in modifiers
        or len(types) != 3
        or types[0] != "f32"
        or not {*types[1:]} <= {"e4m3", "e5m2"}
        or not shape.endswith("k32")
    ):
        return None
    return Shape(int(shape[4:-3]), types[1], types[2], operands > 5)


def _shape(site: Site) -> Shape:
    shape = _parse_shape(site.instruction.modifiers, len(site.arguments))
    if shape is None:
        raise Unsupported(f"{site.instruction.name} (PTX line {site.instruction.line}): only FP8 operands with FP32 accumulators are emulated",
                          site.instruction.location)  # fmt: skip
    return shape


def _uniform(block: Block, site: Site, ids: np.ndarray, values: np.ndarray, what: str) -> None:
    if (values != values[0]).any():
        other = int(np.argmax(values != values[0]))
        raise block.fault(f"{what} differs between the threads of a warpgroup: {int(values[0]):#x} in thread {int(ids[0])}, "
                          f"{int(values[other]):#x} in thread {int(ids[other])}", site, ids)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operand:
    """Where an operand lies: the places (rows, 2) of its 16-byte chunks, and the swizzle that its descriptor names."""

    name: str
    chunks: np.ndarray
    swizzle: int

    @property
    def words(self) -> np.ndarray:
        """The 4-byte words of shared memory that it is."""
        return (self.chunks[..., None] // 4 + np.arange(4)).reshape(-1)


def _signed(bits: int) -> int:
    return (bits & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def _operand(block: Block, site: Site, ids: np.ndarray, bits: int, rows: int, name: str) -> Operand:
    descriptor = Descriptor.decode(bits)
    chunks = descriptor.chunks(rows)
    low, high = int(chunks.min()), int(chunks.max()) + 16
    if low < 1024 or high > block.cluster.size:
        raise block.fault(f"the descriptor of {name} ({bits:#x}: start {descriptor.start:#x}, stride {descriptor.stride} bytes, leading {descriptor.leading}, "
                          f"{descriptor.swizzle or 'no'} swizzle) leads to shared addresses [{low:#x}, {high:#x}) outside the CTA's [0x400, "
                          f"{block.cluster.size:#x})", site, ids)  # fmt: skip
    if rank := block.cluster.rank_of(int(ids[0])):
        chunks = chunks + rank * block.cluster.window
    return Operand(name, chunks, descriptor.swizzle)


def _fetch(block: Block, operand: Operand) -> np.ndarray:
    """The operand's bytes, (rows, 32), as they lie in shared memory now."""
    pool: np.ndarray = block.shared.view(np.uint64)
    words = operand.chunks[..., None] // 8 + np.arange(2)
    return pool[words].view(np.uint8).reshape(len(operand.chunks), 32)


def _check_operands(
    block: Block, site: Site, ids: np.ndarray, group: Warpgroup, operands: list[Operand]
) -> None:
    assert block.order
    for operand in operands:
        block.order.tensor_core_read(
            ids, operand.words, group.number, group.clock, site.index, operand.name, operand.swizzle
        )


# ---------------------------------------------------------------------------------------------------- groups


@serves("wgmma.commit_group")
def commit_group(block: Block, site: Site, ids: np.ndarray) -> None:
    for threads in _meet(block, site, ids):
        group = _warpgroup(block, int(threads[0]) // WARPGROUP)
        group.groups.append(group.open)
        group.open = []
        block.go(threads)


@serves("wgmma.wait_group")
def wait_group(block: Block, site: Site, ids: np.ndarray) -> None:
    for threads in _meet(block, site, ids):
        group = _warpgroup(block, int(threads[0]) // WARPGROUP)
        keep = int(block.arguments[threads[0], 0])
        while len(group.groups) > keep:
            for product in group.groups[0]:
                if product.compute is not None:
                    _compute(group, product)
            for product in group.groups.popleft():
                _retire(block, group, product, threads, site)
        block.go(threads)


def _retire(block: Block, group: Warpgroup, product: Product, ids: np.ndarray, site: Site) -> None:
    columns = tuple(offset // 4 for offset in product.site.accumulators)
    accumulator = group.accumulators[columns]
    accumulator.pending -= 1
    if not accumulator.pending:  # a later product on the same registers keeps them poisoned
        del group.accumulators[columns]
        if block.kernel.schedule != "early":
            block.c32[ids[:, None], columns] = fragments_of(accumulator.sums).view(np.int32)
    block.until(ids, product.done, "WGMMA", site)
    if block.order:
        block.order.tensor_core_done(ids, group.number, product.clock)
    if block.watched:
        block.event("wgmma retired", block.cluster.warpgroup(group.number), "", product.site)


# ---------------------------------------------------------------------------------------------------- registers


@dataclass
class Registers:
    """The registers of a CTA: what each warp may use, and what lies free."""

    limits: np.ndarray  # a thread, for each warp
    free: int
    waiters: list[tuple[np.ndarray, int, int, Site]] = field(
        default_factory=list
    )  # threads, ticket, count, site


def _registers(block: Block, thread: int) -> Registers:
    """Those of the CTA of this thread. At the start every warp has the same: all that the CTA can get beside as many others on its SM as it is compiled for
    (`.minnctapersm`)."""
    rank = block.cluster.rank_of(thread)
    found = block.named.get(("registers", rank))
    if found is None:
        warps = -(-block.cluster.threads // 32)
        (ctas,) = block.kernel.program.function.directives.get("minnctapersm", (1,))
        share = min(255, REGISTER_FILE // (-(-warps // 4) * 128 * max(ctas, 1))) // 8 * 8
        found = block.named["registers", rank] = Registers(np.full(warps, share), 0)
    return found


def _warps_in_cta(block: Block, ids: np.ndarray) -> np.ndarray:
    return warps_of(ids) % block.cluster.warps


@serves("setmaxnreg")
def setmaxnreg(block: Block, site: Site, ids: np.ndarray) -> None:
    """`.dec` gives registers back to the CTA's pool, `.inc` waits until the pool has enough. A warp that exits gives nothing back: PTX does not promise it."""
    raises = "inc" in site.instruction.modifiers
    for group in _meet(block, site, ids):
        registers, warps = _registers(block, int(group[0])), _warps_in_cta(block, group)
        count = int(block.arguments[group[0], 0])
        name = block.cluster.warpgroup(int(group[0]) // WARPGROUP)
        have = int(registers.limits[warps[0]])
        if count % 8 or not 24 <= count <= 256:
            raise block.fault(f"setmaxnreg {count}: expected a multiple of 8 from 24 to 256", site, group)
        if (raises and count < have) or (not raises and count > have):
            verb, other = ("inc", "dec") if raises else ("dec", "inc")
            block.hazard("setmaxnreg", site, 0, int(group[0]), f"setmaxnreg.{verb} to {count} registers in {name}, "
                         f"which has {have}", (name,), f"use setmaxnreg.{other}, or another count")  # fmt: skip
            block.go(group)
            continue
        if raises:
            ticket = block.wait(group, site, partial(_why_registers, block, registers, count, len(group)))
            registers.waiters.append((group, ticket, count, site))
        else:
            registers.free += (have - count) * len(group)
            registers.limits[warps] = count
            block.go(group)
        _hand_out(block, registers)


def _why_registers(block: Block, registers: Registers, count: int, threads: int) -> str:
    return (f"setmaxnreg.inc to {count} registers for {threads} threads: the CTA's pool has {registers.free} left. Let the producers give back more "
            f"(setmaxnreg.dec), or ask for less: all warps together can have {REGISTER_FILE}")  # fmt: skip


def _hand_out(block: Block, registers: Registers) -> None:
    still = []
    for group, ticket, count, site in registers.waiters:
        warps = _warps_in_cta(block, group)
        need = (count - int(registers.limits[warps[0]])) * len(group)
        if need <= registers.free:
            registers.free -= need
            registers.limits[warps] = count
            block.wake(ticket)
        else:
            still.append((group, ticket, count, site))
    registers.waiters = still


def _check_registers(block: Block, site: Site, ids: np.ndarray) -> None:
    thread = int(ids[0])
    limit = int(_registers(block, thread).limits[thread % block.cluster.stride >> 5])
    if site.pressure > limit:
        name = block.cluster.warpgroup(int(ids[0]) // WARPGROUP)
        block.hazard("setmaxnreg", site, 0, int(ids[0]), f"{name} holds {site.pressure} FP32 values in registers at this WGMMA, "
                     f"and setmaxnreg left it {limit} registers a thread", (name,),
                     "raise the count of setmaxnreg.inc in the consumers, or take a smaller tile")  # fmt: skip
