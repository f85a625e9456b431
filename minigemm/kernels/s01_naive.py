"""s01: one thread per output.

Idea: the product as the formula says it. Each thread takes one element of d and walks along k, 16 bytes (16
elements) of a and of b at a time. Nothing is shared: every element of a is read n times and every element of
b m times, from whatever cache holds it.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16. Sums are
FP32, in order of k.
Legal configs: block_m x block_n threads per CTA, at most 1024.
Errors: see `Stage.gemm`.
Source: CUDA C++ Programming Guide, "Programming Model".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from .. import types
from ..layout import ceil_div
from ..quantize import Quantized
from ..types import Launch, Legality, Product
from .legality import check_grid, check_tiles
from .stage import Stage, rows

TITLE = "naive"
IDEA = "a thread an output"


@dataclass(frozen=True)
class Config(types.Config):
    """The outputs (threads) of a CTA: block_m rows by block_n columns."""

    block_m: int = 8
    block_n: int = 32


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    tiles = check_tiles((config.block_m, config.block_n), (1, 1), 0, 40)
    return Legality(tiles or check_grid(product.m, product.n, config.block_m, config.block_n))


def default_config(product: Product) -> Config:
    """Return a tile whose warps lie along n, so that the stores of a warp are one run of memory."""
    return Config()


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with one CTA for each block_m x block_n outputs."""
    m, n, k = product.m, product.n, product.k
    lda, ldb, ldd = (c_int64(matrix.stride(0)) for matrix in (rows(a), rows(b), d))
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.block_m * config.block_n, 1, 1),
        args=(a.data, b.data, d, a.scale, b.scale, m, n, k, lda, ldb, ldd),
    )


stage = Stage("s01_naive", TITLE, IDEA, Config, is_legal, default_config, launch)
gemm = stage.gemm
