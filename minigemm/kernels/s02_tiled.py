"""s02: shared-memory tiles and register tiles.

Idea: bytes that many threads need are fetched once. The CTA copies a (block_m, block_k) tile of a and a
(block_n, block_k) tile of b to shared memory. Each thread keeps a (thread_m, thread_n) tile of sums in
registers, so that one value read from shared memory serves thread_m or thread_n products. A row of a tile is
padded by 16 bytes: without it, 8 rows that are read at once would lie in the same banks.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16. Sums are
FP32, in order of k, so the result has the bits of s01.
Legal configs: block_k and padding multiples of 16; block_m a multiple of 4 * thread_m and block_n of 8 *
thread_n (a warp is 4x8 threads); at most 1024 threads, 227 KiB and 255 registers.
Errors: see `Stage.gemm`.
Source: CUDA C++ Programming Guide, "Shared Memory".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from .. import types
from ..hopper import SMS
from ..layout import ceil_div
from ..quantize import Quantized
from ..types import Launch, Legality, Product
from .legality import check_grid, check_tiles
from .stage import Stage, rows

TITLE = "tiled"
IDEA = "shared-memory tiles, register tiles"


@dataclass(frozen=True)
class Config(types.Config):
    """The tile of a CTA, and of a thread, in elements; `padding` bytes lie behind each row of a tile."""

    block_m: int = 128
    block_n: int = 128
    block_k: int = 128
    thread_m: int = 8
    thread_n: int = 8
    padding: int = 16

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return (self.block_m // self.thread_m) * (self.block_n // self.thread_n)

    @property
    def shared_bytes(self) -> int:
        """Bytes of both tiles, with their padding."""
        return (self.block_m + self.block_n) * (self.block_k + self.padding)

    def constants(self) -> dict[str, int]:
        """Return the fields, and SHARED_BYTES, which the kernel asserts."""
        return {**super().constants(), "SHARED_BYTES": self.shared_bytes}


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    if config.block_k < 16 or config.block_k % 16:
        return Legality(
            f"block_k must be a multiple of 16 (threads load 16 bytes at once), got {config.block_k}"
        )
    if config.padding < 0 or config.padding % 16:
        return Legality(
            f"padding must be a multiple of 16 bytes, so that rows stay aligned, got {config.padding}"
        )
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
    lda, ldb, ldd = (c_int64(matrix.stride(0)) for matrix in (rows(a), rows(b), d))
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(a.data, b.data, d, a.scale, b.scale, m, n, k, lda, ldb, ldd),
        shared=config.shared_bytes,
    )


stage = Stage("s02_tiled", TITLE, IDEA, Config, is_legal, default_config, launch)
gemm = stage.gemm
