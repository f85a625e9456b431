"""Warpgroup matrix products in flight: when each is computed, and when its accumulators may be read.

The four warps of a warpgroup come to `wgmma.mma_async` together. It reads its operands from shared memory
through the async proxy at some time between its issue and the `wgmma.wait_group` that retires it: at once
under the schedule "early", at the wait under "late", in between under a seed. Until it is retired, the
accumulators of a late product hold a NaN, so that a kernel which looks too early computes one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from .. import context as c
from ..errors import Unsupported
from ..translate.lower import Site
from ..watch.order import STEP, warps_of
from . import tensor_core
from .block import Block, Handler, Unit, signed
from .registers import Registers
from .warpgroups import Warpgroups
from .wgmma import (
    WARPGROUP,
    Descriptor,
    Shape,
    a_from_registers,
    fragments_of,
    matrix_of,
    shape_of,
)

POISON = np.uint32(0x7FFFDEAD)  # a NaN that no arithmetic gives: an accumulator that is still being computed
SIGN = np.uint8(0x80)  # of an FP8 number
ROWS = 64  # of A


@dataclass(frozen=True, eq=False)
class Operand:
    """An operand in shared memory: the places (rows, 2) of its 16-byte chunks, and its swizzle in bytes."""

    name: str
    chunks: np.ndarray
    swizzle: int

    @property
    def words(self) -> np.ndarray:
        """The 4-byte words of shared memory that it consists of."""
        return (self.chunks[..., None] // 4 + np.arange(4)).reshape(-1)


@dataclass
class Mma:
    """One `wgmma.mma_async` of a warpgroup."""

    site: Site
    compute: Callable[[], None] | None  # None once it has been computed
    clock: int
    done: float  # under a cycle model: when it may be retired


@dataclass
class Accumulator:
    """The registers of an accumulator while products on it are in flight."""

    sums: np.ndarray  # so far: bits of float32 (64, n)
    pending: int = 0  # products in flight


@dataclass
class Issued:
    """What a warpgroup has issued: products that are not committed yet, and groups of them in order."""

    number: int  # of the warpgroup
    open: list[Mma] = field(default_factory=list)
    groups: deque[list[Mma]] = field(default_factory=deque)
    accumulators: dict[tuple[int, ...], Accumulator] = field(default_factory=dict)
    """By the columns of the contexts in which their registers are."""
    clock: int = 0

    def compute(self, last: Mma) -> None:
        """Compute a product and, since they are computed in order, those before it."""
        for mma in [mma for group in self.groups for mma in group] + self.open:
            if mma.compute is not None:
                mma.compute()
                mma.compute = None
            if mma is last:
                break


class TensorCores(Unit):
    """The products of a block's warpgroups."""

    def __init__(self, block: Block, warpgroups: Warpgroups, registers: Registers) -> None:
        super().__init__(block)
        self.warpgroups, self.registers = warpgroups, registers
        self._issued: dict[int, Issued] = {}  # by warpgroup

    def serves(self) -> dict[str, Handler]:
        return {
            "wgmma.fence": self.fence,
            "wgmma.mma_async": self.multiply,
            "wgmma.commit_group": self.commit_group,
            "wgmma.wait_group": self.wait_group,
        }

    def fence(self, site: Site, ids: np.ndarray) -> None:
        """`wgmma.fence`. Whether one is missing is found when the kernel is translated (accumulators.py)."""
        for threads in self.warpgroups.meet(site, ids):
            self.block.go(threads)

    def multiply(self, site: Site, ids: np.ndarray) -> None:
        """`wgmma.mma_async d, a, b, scale-d, imm-scale-a, imm-scale-b`."""
        for threads in self.warpgroups.meet(site, ids):
            self._issue(site, threads)
            self.block.go(threads)

    def commit_group(self, site: Site, ids: np.ndarray) -> None:
        """`wgmma.commit_group`."""
        for threads in self.warpgroups.meet(site, ids):
            issued = self._of(threads)
            issued.groups.append(issued.open)
            issued.open = []
            self.block.go(threads)

    def wait_group(self, site: Site, ids: np.ndarray) -> None:
        """`wgmma.wait_group n`: all but the last n groups are retired."""
        for threads in self.warpgroups.meet(site, ids):
            issued = self._of(threads)
            keep = int(self.block.arguments[threads[0], 0])
            while len(issued.groups) > keep:
                for mma in issued.groups[0]:
                    if mma.compute is not None:
                        issued.compute(mma)
                for mma in issued.groups.popleft():
                    self._retire(issued, mma, threads, site)
            self.block.go(threads)

    # --- one product

    def _of(self, ids: np.ndarray) -> Issued:
        number = int(ids[0]) // WARPGROUP
        return self._issued.setdefault(number, Issued(number))

    def _issue(self, site: Site, ids: np.ndarray) -> None:
        """Start one product of a warpgroup."""
        block, issued, shape = self.block, self._of(ids), _shape(site)
        compute, operands = self._decoded(site, ids, shape)

        # The registers of the accumulator belong to the tensor core from here on.
        columns = tuple(offset // 4 for offset in site.accumulators)
        accumulator = issued.accumulators.get(columns)
        if accumulator is None:
            registers = np.ascontiguousarray(block.c32[ids[:, None], columns]).view(np.uint32)
            accumulator = issued.accumulators[columns] = Accumulator(matrix_of(registers))
        accumulator.pending += 1
        issued.clock += STEP
        if block.order:
            for operand in operands:
                block.order.tensor_core_read(
                    ids, operand.words, issued.number, issued.clock, site.index, operand.name, operand.swizzle
                )
        self.registers.check_pressure(site, ids)
        block.launch.add_traffic("wgmma", 1)

        done = 0.0
        if block.model:
            line = str(site.instruction.location)
            block.model.product(issued.number, warps_of(ids).tolist(), shape.n, line)
            done = block.model.products[issued.number]
        mma = Mma(site, partial(compute, accumulator.sums), issued.clock, done)
        issued.open.append(mma)
        if block.watched:
            name = block.cluster.warpgroup(issued.number)
            block.event("wgmma issued", name, f"m64n{shape.n}k32", site)

        if block.launch.schedule == "early":
            issued.compute(mma)
            block.c32[ids[:, None], columns] = fragments_of(accumulator.sums).view(np.int32)
        else:
            block.c32[ids[:, None], columns] = POISON.view(np.int32)
            if block.random is not None:
                block.flight.append(partial(issued.compute, mma))

    def _decoded(
        self, site: Site, ids: np.ndarray, shape: Shape
    ) -> tuple[Callable[[np.ndarray], None], list[Operand]]:
        """Return the product as a function that adds it to sums, and its operands in shared memory.

        Arguments are A (a descriptor, or four registers), the descriptor of B, scale-d, imm-scale-a,
        imm-scale-b.
        """
        # The first thread's scalars stand for the whole warpgroup, so its descriptors must be the same in all
        # threads. A scale of -1 flips the signs of an operand.
        block = self.block
        arguments = block.arguments[ids, : len(site.arguments)]
        at_b = 4 if shape.from_registers else 1
        descriptor_b, scale_d, *signs = arguments[0, at_b:].tolist()
        self._check_uniform(site, ids, arguments[:, at_b], "the descriptor of B")
        flip_a, flip_b = (SIGN if signed(sign) < 0 else np.uint8(0) for sign in (signs + [1, 1])[:2])

        # Registers are read now; what lies in shared memory is read when the product is computed.
        registers, in_memory = None, []
        if shape.from_registers:
            registers = (arguments[:, :4] & 0xFFFFFFFF).astype(np.uint32)
        else:
            self._check_uniform(site, ids, arguments[:, 0], "the descriptor of A")
            in_memory.append(self._operand(site, ids, int(arguments[0, 0]), ROWS, "A"))
        in_memory.append(self._operand(site, ids, descriptor_b, shape.n, "B"))
        accumulate = tensor_core.accumulate_fast if block.launch.fast else tensor_core.accumulate

        def compute(sums: np.ndarray) -> None:
            left = self._fetch(in_memory[0]) if registers is None else a_from_registers(registers)
            right = self._fetch(in_memory[-1])
            if not scale_d:
                sums[:] = 0
            accumulate(left ^ flip_a, right ^ flip_b, sums, shape.a, shape.b)

        return compute, in_memory

    def _check_uniform(self, site: Site, ids: np.ndarray, values: np.ndarray, what: str) -> None:
        """Raise Fault unless all threads of the warpgroup give the same value."""
        differ = values != values[0]
        if differ.any():
            other = int(np.argmax(differ))
            message = (
                f"{what} differs between the threads of a warpgroup: {int(values[0]):#x} in thread "
                f"{int(ids[0])}, {int(values[other]):#x} in thread {int(ids[other])}"
            )
            raise self.block.fault(message, site, ids)

    def _operand(self, site: Site, ids: np.ndarray, bits: int, rows: int, name: str) -> Operand:
        """Return the operand of a descriptor. Raises Fault unless it lies inside the CTA's shared memory."""
        cluster, descriptor = self.block.cluster, Descriptor.decode(bits)
        chunks = descriptor.chunks(rows)
        low, high = int(chunks.min()), int(chunks.max()) + 16
        if low < c.SHARED_FIRST or high > cluster.size:
            message = (
                f"the descriptor of {name} ({bits:#x}: start {descriptor.start:#x}, stride {descriptor.stride} "
                f"bytes, leading {descriptor.leading}, {descriptor.swizzle or 'no'} swizzle) leads to shared "
                f"addresses [{low:#x}, {high:#x}) outside the CTA's [{c.SHARED_FIRST:#x}, {cluster.size:#x})"
            )
            raise self.block.fault(message, site, ids)
        if rank := cluster.rank_of(int(ids[0])):
            chunks = chunks + rank * cluster.window
        return Operand(name, chunks, descriptor.swizzle)

    def _fetch(self, operand: Operand) -> np.ndarray:
        """Return the bytes (rows, 32) of an operand, as they lie in shared memory now."""
        memory: np.ndarray = self.block.shared.view(np.uint64)
        words = operand.chunks[..., None] // 8 + np.arange(2)
        return memory[words].view(np.uint8).reshape(len(operand.chunks), 32)

    def _retire(self, issued: Issued, mma: Mma, ids: np.ndarray, site: Site) -> None:
        """Retire a product. After the last one on its accumulator the threads have the registers back."""
        block = self.block
        columns = tuple(offset // 4 for offset in mma.site.accumulators)
        accumulator = issued.accumulators[columns]
        accumulator.pending -= 1
        if not accumulator.pending:
            del issued.accumulators[columns]
            if block.launch.schedule != "early":
                block.c32[ids[:, None], columns] = fragments_of(accumulator.sums).view(np.int32)
        block.until(ids, mma.done, "WGMMA", site)
        if block.order:
            block.order.tensor_core_done(ids, issued.number, mma.clock)
        if block.watched:
            block.event("wgmma retired", block.cluster.warpgroup(issued.number), "", mma.site)


def _shape(site: Site) -> Shape:
    ins = site.instruction
    shape = shape_of(ins.modifiers, len(site.arguments))
    if shape is None:
        raise Unsupported(
            f"{ins.name} (PTX line {ins.line}): only FP8 operands with FP32 accumulators are emulated",
            ins.location,
        )
    return shape
