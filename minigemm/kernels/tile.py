"""The tile of the tensor-core stages, s04 to s12, on the host: its config, its instruction, the map of d.

The three configs follow the course: `TileConfig` has the tile (s04, s05), `RingConfig` adds consumers, which
a producer feeds (s06), `PromotedConfig` adds the scales of a and the FP32 sums (from s07 on).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .. import types
from ..layout import round_up
from ..quantize import BLOCK
from ..types import TensorMap

__all__ = ["PromotedConfig", "RingConfig", "TileConfig", "d_map", "panel", "wgmma"]

SWIZZLE_START = (
    1024  # bytes: every buffer begins at a multiple of it, where the pattern of any swizzle begins
)


@dataclass(frozen=True)
class TileConfig(types.Config):
    """The tile of a CTA in elements, block_m x block_n. Along k it has 128, the span of the swizzle in bytes.

    A subclass gives the fields their defaults, and says what its shared memory holds: `buffers`.
    """

    block_m: int
    block_n: int

    @property
    def threads(self) -> int:
        """Threads of a CTA: a warpgroup for each 64 rows."""
        return self.block_m // 64 * 128

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of each buffer in the kernel's `Shared`, in that order; the barriers are the last one."""
        raise NotImplementedError

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory: the buffers, each at a multiple of 1024 bytes."""
        return sum(round_up(size, SWIZZLE_START) for size in self.buffers)

    def constants(self) -> dict[str, int]:
        """Return the fields, BLOCK_K, PANEL and SHARED_BYTES.

        PANEL counts the columns of d that are stored at once. The kernel asserts SHARED_BYTES.
        """
        derived = {"BLOCK_K": BLOCK, "PANEL": panel(self.block_n)}
        return {**super().constants(), **derived, "SHARED_BYTES": self.shared_bytes}

    def declarations(self) -> str:
        """Return the CUDA C++ of the tile's instruction."""
        return wgmma(self.block_n)


@dataclass(frozen=True)
class RingConfig(TileConfig):
    """A ring of `stages` tiles, of which each of the `consumers` computes its share of the rows."""

    stages: int = 3
    consumers: int = 2

    #: The registers of a thread of the producer and of a consumer, by the number of consumers.
    REGISTERS: ClassVar[dict[int, tuple[int, int]]] = {1: (40, 248), 2: (40, 232), 3: (32, 160)}

    @property
    def threads(self) -> int:
        """Threads of a CTA: the consumers' warpgroups, and the producer's."""
        return (self.consumers + 1) * 128

    @property
    def rows(self) -> int:
        """Rows that one consumer computes."""
        return self.block_m // self.consumers

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a thread of the producer, and of a consumer."""
        return self.REGISTERS[self.consumers]

    @property
    def accumulators(self) -> int:
        """Registers for the sums of a consumer's thread."""
        return self.rows // 64 * self.block_n // 2

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a and b, of the tile of d, and of two barriers per slot of the ring."""
        a, b = self.stages * self.block_m * BLOCK, self.stages * self.block_n * BLOCK
        return (a, b, self.block_m * self.block_n * 2, 16 * self.stages)

    def constants(self) -> dict[str, int]:
        """Return the tile's constants and both roles' registers; not `ctas`, which the launch decides."""
        producer, consumer = self.registers
        constants = {name: value for name, value in super().constants().items() if name != "CTAS"}
        return {**constants, "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer}


@dataclass(frozen=True)
class PromotedConfig(RingConfig):
    """A ring whose slots hold the scales of a too.

    Consumers keep FP32 sums beside the partial sums of the tensor core.
    """

    @property
    def accumulators(self) -> int:
        """Registers for the sums of a consumer's thread, and for the partial sums of 64 rows."""
        return (self.rows // 64 + 1) * self.block_n // 2

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a and b, the scales of a, the tile of d, and the barriers."""
        a, b, d, barriers = super().buffers
        return (a, b, self.stages * self.block_m * 4, d, barriers)


def panel(block_n: int) -> int:
    """Return how many columns of a BF16 tile of d lie side by side: as many as a swizzle spans.

    64, 32 or 16 columns are 128, 64 or 32 bytes; where block_n is an odd multiple of 8 it is 8 columns, which
    need no swizzle.
    """
    return next(width for width in (64, 32, 16, 8) if block_n % width == 0)


def d_map(d: torch.Tensor, rows: int, block_n: int) -> TensorMap | None:
    """Return the map by which TMA stores (rows, panel) boxes of d, or None where threads have to store.

    They have to where d is FP32, which does not fit into the tile of d in shared memory, and where the rows
    of d are no multiple of 16 bytes apart, which no tensor map can describe. The kernel gets another map then
    and never looks at it.
    """
    if d.dtype == torch.float32 or d.stride(0) * d.element_size() % 16:
        return None
    width = panel(block_n)
    return TensorMap(d, (rows, width), swizzle=2 * width if width > 8 else 0)


def wgmma(n: int) -> str:
    """Return the CUDA C++ of `wgmma_mma_async(d, a, b, accumulate)`.

    d (64, n) = a (64, 32) b (n, 32)^T, plus d if `accumulate`. a and b are e4m3 tiles in shared memory, named
    by descriptors; d is FP32, and each thread of the warpgroup holds n / 2 of its elements. n is a multiple
    of 8 up to 256. The instruction lists every one of these registers, so that its text depends on n: the
    prelude holds the one shape that a kernel needs.
    Source:
    https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma
    """
    count = n // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    a, b, accumulate = count, count + 1, count + 2
    return f"""\
inline void wgmma_mma_async(float (&d)[{count}], unsigned long long a, unsigned long long b, bool accumulate) {{
  asm volatile("{{\\n"
               ".reg .pred p;\\n"
               "setp.ne.b32 p, %{accumulate}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {{{registers}}}, %{a}, %{b}, p, 1, 1;\\n"
               "}}"
               : {operands}
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}}
"""
