"""s06: warps with roles: a producer that loads, consumers that compute.

Idea: each role waits for one thing. One thread of the producer waits for empty slots and asks TMA for tiles.
Each consumer, a warpgroup, waits for full slots, multiplies, and hands slots back by arriving on their empty
barrier. No barrier of the CTA stands in the loop, so consumers drift apart and one's epilogue of a step hides
behind the other's products. `setmaxnreg` moves registers from the producer to the consumers. The tile of d
leaves through `stmatrix`, which writes accumulators to shared memory a matrix at a time, and TMA, each
consumer for itself.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16 or FP32. Any m and n, k a multiple of 16. The
result has the bits of s04: with FP32 output and a long k the tensor core's short accumulator shows. Threads
store FP32, and BF16 whose rows are no multiple of 16 bytes.
Legal configs: consumers 1 to 3, the rows of each 64 or 128 (block_m = 64 or 128 times consumers, up to 256);
block_n a multiple of 16 up to 256; stages of at least 2; all stages and the tile of d in 227 KiB; the
accumulators of a consumer's thread, block_m / consumers / 64 * block_n / 2, in the registers that it gets.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "setmaxnreg", "elect.sync", "stmatrix"; CUTLASS documentation, "Efficient GEMM in CUDA",
"Warp Specialization".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from ..checks import OUT_DTYPES
from ..layout import ceil_div
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_grid, check_ring, check_roles
from .stage import Stage, quickest, rows
from .tile import RingConfig, d_map

TITLE = "warp-specialized"
IDEA = "producer and consumer warpgroups, setmaxnreg"


@dataclass(frozen=True)
class Config(RingConfig):
    """The tile of a CTA in elements, 128 along k; `stages` of them make the ring.

    Each of the `consumers` computes its share of the rows. `out_fp32` says what d is.
    """

    block_m: int = 128
    block_n: int = 256
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    return Legality(
        check_roles(config)
        or check_ring(config, config.registers[1])
        or check_grid(product.m, product.n, config.block_m, config.block_n)
    )


def default_config(product: Product) -> Config:
    """Return the quickest of a few on 132 SMs: 128 x 256 for a large d, down to 64 x 64 for a small one."""
    choices = (Config(), Config(128, 128, 5), Config(64, 128, 6, 1), Config(64, 64, 8, 1))
    return quickest(choices, product)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with one CTA for each block_m x block_n outputs."""
    m, n, k = product.m, product.n, product.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    map_d = d_map(d, config.rows, config.block_n)
    ldd, by_tma = c_int64(d.stride(0)), map_d is not None
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_d or map_a, d, a.scale, b.scale, m, n, k, ldd, int(by_tma)),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s06_warp_specialized", TITLE, IDEA, Config, is_legal, default_config, launch,
    out_dtypes=OUT_DTYPES, sums="tensor core",
)  # fmt: skip
gemm = stage.gemm
