"""s03: TMA and mbarriers; the math of s02.

Idea: the copy engine moves tiles. One thread names a box of a tensor map. TMA fetches the box, fills what
lies outside the matrix with zeros, swizzles 16-byte chunks so that rows spread over the banks without
padding, and completes an mbarrier with the bytes it brought. The result leaves the same way, from shared
memory, after a proxy fence: ordinary stores and TMA reach shared memory by different paths.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16. Sums are
FP32, in order of k, so the result has the bits of s01 and s02. Threads store d where its rows are no multiple
of 16 bytes (n % 8 != 0).
Legal configs: block_k of 32, 64 or 128 (the swizzle's span in bytes); block_m and block_n multiples of 8 up
to 256 (a TMA box), block_m a multiple of 4 * thread_m and block_n of 8 * thread_n (a warp is 4x8 threads); at
most 1024 threads, 227 KiB and 255 registers. The tile of d is swizzled too where its rows, 2 * block_n bytes,
are such a span; wider ones cost a few bank conflicts.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "cp.async.bulk.tensor", "mbarrier", "Shared memory layout: swizzle modes"; CUDA Driver API,
"Tensor Map Object Management".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from .. import types
from ..hopper import SMS
from ..layout import ceil_div, round_up
from ..quantize import Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_grid, check_tiles
from .stage import Stage, rows

TITLE = "TMA"
IDEA = "tensor maps, mbarriers, swizzle"
SWIZZLES = (32, 64, 128)  # bytes that one can span


@dataclass(frozen=True)
class Config(types.Config):
    """The tile of a CTA, and of a thread, in elements. Without `swizzle` rows of a tile lie as they come."""

    block_m: int = 128
    block_n: int = 128
    block_k: int = 128
    thread_m: int = 8
    thread_n: int = 8
    swizzle: bool = True

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return (self.block_m // self.thread_m) * (self.block_n // self.thread_n)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the tiles of a, b and d and of the barrier, each at a multiple of 1024 bytes."""
        sizes = (self.block_m * self.block_k, self.block_n * self.block_k, self.block_m * self.block_n * 2, 8)
        return sum(round_up(size, 1024) for size in sizes)

    @property
    def swizzles(self) -> tuple[int, int]:
        """Spans in bytes for a and b, and for d: the width of a row, or 0 where no swizzle has that span."""
        widths = (self.block_k, 2 * self.block_n)
        a_b, d = (width if self.swizzle and width in SWIZZLES else 0 for width in widths)
        return a_b, d

    def constants(self) -> dict[str, int]:
        """Return the fields, and SHARED_BYTES, which the kernel asserts."""
        return {**super().constants(), "SHARED_BYTES": self.shared_bytes}


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    if config.block_k not in SWIZZLES:
        return Legality(f"block_k must be 32, 64 or 128 (the spans of the swizzle), got {config.block_k}")
    for name, value in (("block_m", config.block_m), ("block_n", config.block_n)):
        if value > 256 or value % 8:
            return Legality(f"{name} must be a multiple of 8 up to 256 (the side of a TMA box), got {value}")
    registers = config.thread_m * config.thread_n + 4 * (config.thread_m + config.thread_n) + 40
    tiles = check_tiles(
        (config.block_m, config.block_n), (config.thread_m, config.thread_n), config.shared_bytes, registers
    )
    return Legality(tiles or check_grid(product.m, product.n, config.block_m, config.block_n))


def default_config(product: Product) -> Config:
    """Return 128x128 where the tiles fill the GPU, 64x64 where the product is small."""
    if ceil_div(product.m, 128) * ceil_div(product.n, 128) >= SMS:
        return Config()
    return Config(block_m=64, block_n=64, thread_m=4, thread_n=4)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with one CTA for each block_m x block_n outputs."""
    m, n, k = product.m, product.n, product.k
    swizzle, swizzle_d = config.swizzles
    map_a = TensorMap(rows(a), (config.block_m, config.block_k), swizzle=swizzle)
    map_b = TensorMap(rows(b), (config.block_n, config.block_k), swizzle=swizzle)
    tma_store = d.stride(0) * d.element_size() % 16 == 0
    # Without a map of d, the kernel stores by threads and never looks at the third map.
    map_d = TensorMap(d, (config.block_m, config.block_n), swizzle=swizzle_d) if tma_store else map_a
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_d, d, a.scale, b.scale, m, n, k, c_int64(d.stride(0)), int(tma_store)),
        shared=config.shared_bytes,
    )


stage = Stage("s03_tma", TITLE, IDEA, Config, is_legal, default_config, launch)
gemm = stage.gemm
