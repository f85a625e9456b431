"""s04: the tensor core, by WGMMA on one buffer.

Idea: 128 threads issue one instruction for 64 x block_n x 32 products. It reads a and b from shared memory
where TMA put them, through descriptors (address, distance between groups of 8 rows, swizzle), and adds to
FP32 accumulators that the threads hold in registers. It runs beside the threads: `wgmma.fence` orders what
they did to the accumulators before it, `wgmma.commit_group` and `wgmma.wait_group` say when its results are
there.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16: TMA fills
what lies beyond k with zeros. Threads store d where its rows are no multiple of 16 bytes (n % 8 != 0).
Sums: the accumulator is shorter than FP32. Each 32 products and the sum so far are aligned to the largest of
them and cut off below its 14th bit, so the error grows with k and with sums of one sign.
Legal configs: block_m a multiple of 64 up to 256, a warpgroup for each 64 rows; block_n a multiple of 8 up to
256; at most 227 KiB, and registers for block_n / 2 accumulators per thread.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "wgmma.mma_async";
`minigemm.emulator.tensor_core` for the arithmetic.
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from ..hopper import SMS
from ..layout import ceil_div
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_grid, check_registers, check_shared, check_tensor_core_tile
from .stage import Stage, rows
from .tile import TileConfig, d_map

TITLE = "WGMMA"
IDEA = "descriptors and the tensor core, a single buffer"


@dataclass(frozen=True)
class Config(TileConfig):
    """The tile of a CTA in elements, 128 along k, the span of the swizzle. A warpgroup computes 64 rows."""

    block_m: int = 128
    block_n: int = 128

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a, b and d, and of the barrier."""
        return (self.block_m * BLOCK, self.block_n * BLOCK, self.block_m * self.block_n * 2, 8)


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    return Legality(
        check_tensor_core_tile(config.block_m, config.block_n, 8)
        or check_shared(config.shared_bytes, "smaller blocks")
        or check_registers(config.block_n // 2 + 32, config.threads)
        or check_grid(product.m, product.n, config.block_m, config.block_n)
    )


def default_config(product: Product) -> Config:
    """Return 128x128 where the tiles fill the GPU, 64x64 where the product is small."""
    if ceil_div(product.m, 128) * ceil_div(product.n, 128) >= SMS:
        return Config()
    return Config(block_m=64, block_n=64)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with one CTA for each block_m x block_n outputs."""
    m, n, k = product.m, product.n, product.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    map_d = d_map(d, config.block_m, config.block_n)
    ldd, by_tma = c_int64(d.stride(0)), map_d is not None
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_d or map_a, d, a.scale, b.scale, m, n, k, ldd, int(by_tma)),
        shared=config.shared_bytes,
    )


stage = Stage("s04_wgmma", TITLE, IDEA, Config, is_legal, default_config, launch, sums="tensor core")
gemm = stage.gemm
