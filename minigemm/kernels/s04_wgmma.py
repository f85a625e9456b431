"""s04: the tensor core, by WGMMA on one buffer.

Idea: 128 threads issue one instruction for 64 x block_n x 32 products. It reads a and b from shared memory where TMA put them, through descriptors
(address, distance between groups of 8 rows, swizzle), and adds to FP32 accumulators that the threads hold in registers. It runs beside the threads:
`wgmma.fence` orders what they did to the accumulators before it, `wgmma.commit_group` and `wgmma.wait_group` say when its results are there.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16: TMA fills what lies beyond k with zeros. The
accumulator is shorter than FP32: each 32 products and the sum so far are aligned to the largest of them and cut off below its 14th bit, so the error
grows with k and with sums of one sign. Rows of d that are no multiple of 16 bytes (n % 8 != 0) are stored by threads.
Legal configs: block_m a multiple of 64 up to 256, a warpgroup for each 64 rows; block_n a multiple of 8 up to 256; at most 227 KiB, and registers for
block_n / 2 accumulators a thread.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "wgmma.mma_async"; `minigemm.emulator.tensor_core` for the arithmetic.
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from .. import types
from ..layout import ceil_div, round_up
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Problem, TensorMap
from .instructions import wgmma
from .stage import Stage, check_grid, check_registers, check_shared, check_tensor_core_tile, panel, rows

TITLE = "WGMMA"
IDEA = "descriptors and the tensor core, a single buffer"


@dataclass(frozen=True)
class Config(types.Config):
    """Tile of a CTA in elements; a warpgroup computes 64 rows of it. Along k a tile has 128, what the swizzle spans."""

    block_m: int = 128
    block_n: int = 128

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.block_m // 64 * 128

    @property
    def shared_bytes(self) -> int:
        """The tiles of a, b and d and the barrier, each at a multiple of 1024 bytes."""
        sizes = (self.block_m * BLOCK, self.block_n * BLOCK, self.block_m * self.block_n * 2, 8)
        return sum(round_up(size, 1024) for size in sizes)

    def constants(self) -> dict[str, int]:
        """The fields, BLOCK_K, PANEL (the columns of d that are stored at once), and SHARED_BYTES, which the kernel asserts."""
        return {
            **super().constants(),
            "BLOCK_K": BLOCK,
            "PANEL": panel(self.block_n),
            "SHARED_BYTES": self.shared_bytes,
        }

    def declarations(self) -> str:
        """The instruction."""
        return wgmma(self.block_n)


def is_legal(config: Config, problem: Problem) -> Legality:
    """Whether this config can run this problem, and if not, why."""
    return Legality(
        check_tensor_core_tile(config.block_m, config.block_n, 8)
        or check_shared(config.shared_bytes, "smaller blocks")
        or check_registers(config.block_n // 2 + 32, config.threads)
        or check_grid(problem.m, problem.n, config.block_m, config.block_n)
    )


def default_config(problem: Problem) -> Config:
    """128x128 where it fills the GPU (132 SMs), 64x64 where the problem is small."""
    if ceil_div(problem.m, 128) * ceil_div(problem.n, 128) >= 132:
        return Config()
    return Config(block_m=64, block_n=64)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, problem: Problem, config: Config) -> Launch:
    """One CTA for each block_m x block_n outputs."""
    m, n, k = problem.m, problem.n, problem.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    tma_store = d.stride(0) * d.element_size() % 16 == 0
    width = panel(config.block_n)
    # a row pitch that no tensor map can describe: the kernel stores by threads and never looks at the third map
    map_d = (
        TensorMap(d, (config.block_m, width), swizzle=2 * width if width > 8 else 0) if tma_store else map_a
    )
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_d, d, a.scale, b.scale, m, n, k, c_int64(d.stride(0)), int(tma_store)),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s04_wgmma", TITLE, IDEA, Config, is_legal, default_config, launch, sums="tensor core",  # type: ignore[arg-type]
)  # fmt: skip
gemm = stage.gemm
