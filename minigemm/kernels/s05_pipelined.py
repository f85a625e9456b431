"""s05: a ring of stages; loads run ahead and products stay in flight.

Idea: shared memory holds `stages` tiles of a and b. Thread 0 asks for the tile that will be needed stages - 1
steps later, so that memory has that long to answer. Every slot has its own mbarrier. It completes a phase
each time round the ring, so the parity that a thread waits for flips when the thread comes back to slot 0.
`wgmma.wait_group 1` leaves the newest group of products in flight: the tensor core has work while threads
wait for the next tile. A slot may be filled again when every warpgroup has done with it, which one barrier of
the CTA in each step sees to.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16. The result
has the bits of s04.
Legal configs: as s04, and stages of at least 2; all stages and the tile of d in 227 KiB.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "mbarrier", "wgmma.wait_group"; CUTLASS documentation, "Efficient GEMM in CUDA",
"Pipelining".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from ..layout import ceil_div
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_grid, check_registers, check_shared, check_tensor_core_tile
from .stage import Stage, quickest, rows
from .tile import TileConfig, d_map

TITLE = "pipelined"
IDEA = "a ring of stages, phase bits"


@dataclass(frozen=True)
class Config(TileConfig):
    """The tile of a CTA in elements, 128 along k, the span of the swizzle; `stages` of them make the ring.

    A warpgroup computes 64 rows.
    """

    block_m: int = 128
    block_n: int = 256
    stages: int = 3

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a and b, of the tile of d, and of a barrier for each slot of the ring."""
        a, b = self.stages * self.block_m * BLOCK, self.stages * self.block_n * BLOCK
        return (a, b, self.block_m * self.block_n * 2, 8 * self.stages)


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    if config.stages < 2:
        return Legality(
            f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
        )
    return Legality(
        check_tensor_core_tile(config.block_m, config.block_n, 8)
        or check_shared(config.shared_bytes, "fewer stages or smaller blocks")
        or check_registers(config.block_n // 2 + 32, config.threads)
        or check_grid(product.m, product.n, config.block_m, config.block_n)
    )


def default_config(product: Product) -> Config:
    """Return the quickest of a few on 132 SMs: 128 x 256 for a large d, down to 64 x 64 for a small one."""
    return quickest((Config(), Config(128, 128, 4), Config(64, 64, 4)), product)


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


stage = Stage("s05_pipelined", TITLE, IDEA, Config, is_legal, default_config, launch, sums="tensor core")
gemm = stage.gemm
