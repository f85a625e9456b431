"""s08: persistent: as many CTAs as the GPU has SMs, each computing one tile after the other.

Idea: between two tiles of s07, an SM starts a CTA, sets up barriers and waits for the first bytes, and at the
end the tensor core idles while d is stored. Here a CTA lives as long as the kernel. Its producer runs ahead
into the next tile, so the ring never runs empty; TMA stores a tile of d while the next is computed. The order
of the tiles is the kernel's own choice: `raster` columns of tiles (rows, with `raster_m`) at a time, so that
the CTAs at work share rows of a and b in the L2 cache. The order is in scheduler.cuh.

Shapes, scales and bits: as s07.
Legal configs: as s07; `ctas` of at least 0, `raster` of at least 1. Both change no bit. The launch has `ctas`
CTAs, or as many as the GPU has SMs for 0, and never more than tiles; on the emulator 0 is 132. `ctas`
compiles nothing anew.
Errors: see `Stage.gemm`.
Sources: CUTLASS documentation, "Efficient GEMM in CUDA", "Persistent kernels" and "Threadblock
rasterization"; PTX ISA, "cp.async.bulk.wait_group".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from ..checks import OUT_DTYPES
from ..layout import ceil_div, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_persistent
from .stage import DEEPSEEK_LAYER, TILES, Stage, ctas, quickest, rows
from .tile import PromotedConfig, d_map

TITLE = "persistent"
IDEA = "one CTA an SM, raster order, the store behind the next tile"


@dataclass(frozen=True)
class Config(PromotedConfig):
    """The tile of a CTA in elements, 128 along k; `stages` of them make the ring.

    Each of the `consumers` computes its share of the rows. `out_fp32` says what d is. There are `ctas` CTAs,
    0 for one per SM. They compute `raster` columns of tiles (rows, with `raster_m`) before the next ones.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False
    ctas: int = 0
    raster: int = 16
    raster_m: bool = False


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    return Legality(check_persistent(config, product))


def default_config(product: Product) -> Config:
    """Return the quickest of a few on 132 SMs: 256 x 128 for a large d, down to 64 x 64 for a small one."""
    return quickest([Config(*tile) for tile in TILES], product)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with one CTA for each SM, or fewer where there are fewer tiles."""
    m, n, k = product.m, product.n, product.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    map_sfa = TensorMap(to_m_major(a.scale).T, (1, config.block_m))
    map_d = d_map(d, config.rows, config.block_n)
    ld_sfb, ldd, by_tma = c_int64(b.scale.stride(0)), c_int64(d.stride(0)), map_d is not None
    return Launch(
        grid=(
            min(ctas(config.ctas, d.device), ceil_div(m, config.block_m) * ceil_div(n, config.block_n)),
            1,
            1,
        ),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_sfa, map_d or map_a, d, b.scale, m, n, k, ld_sfb, ldd, int(by_tma)),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s08_persistent", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=OUT_DTYPES, problem=DEEPSEEK_LAYER, sums="promoted",
)  # fmt: skip
gemm = stage.gemm
