"""s07: promoted sums: every 128 along k the tensor core's partial sums are scaled and added in FP32.

Idea: the accumulator of the tensor core is short, and sums of thousands of products in it lose bits. So it
sums 128 products at a time, and the threads add these partial sums to FP32 registers. The same addition
brings fine-grained scales for free: acc = fma(rn(sfa * sfb), partial, acc). It costs FP32 instructions, a
quarter of the time of the products, which the other consumer's products hide. The scales of a come by TMA
with their tile, the scales of b into the lanes of each warp, 32 steps at once.

Shapes: a (m, k) e4m3 with 1x128 scales (m, ceil(k / 128)), M-major as `minigemm.quantize` makes them; other
orders are laid out first. b (n, k) e4m3 with 128x128 scales (ceil(n / 128), ceil(k / 128)), row-major. d (m,
n) BF16 or FP32. Any m and n, k a multiple of 16. Threads store FP32, and BF16 whose rows are no multiple of
16 bytes.
Legal configs: as s06; block_n at most 128, or 144, 160 or 192 (block_n - 128 = gcd(block_n, 128)), so that a
tile never needs three scales of b; registers for the accumulators and block_n / 2 partial sums more.
Errors: see `Stage.gemm`.
Sources: DeepSeek-V3 Technical Report (arXiv 2412.19437), section 3.3.2; PTX ISA, "wgmma.mma_async".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from ..checks import OUT_DTYPES
from ..layout import ceil_div, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_grid, check_promoted, check_roles
from .stage import DEEPSEEK_LAYER, TILES, Stage, quickest, rows
from .tile import PromotedConfig, d_map

TITLE = "promoted"
IDEA = "FP32 promotion every 128 along K, fine-grained scales"


@dataclass(frozen=True)
class Config(PromotedConfig):
    """The tile of a CTA in elements, 128 along k; `stages` of them make the ring.

    Each of the `consumers` computes its share of the rows. `out_fp32` says what d is.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    return Legality(
        check_roles(config)
        or check_promoted(config, config.registers[1])
        or check_grid(product.m, product.n, config.block_m, config.block_n)
    )


def default_config(product: Product) -> Config:
    """Return the quickest of a few on 132 SMs: 256 x 128 for a large d, down to 64 x 64 for a small one."""
    return quickest([Config(*tile) for tile in TILES], product)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with one CTA for each block_m x block_n outputs."""
    m, n, k = product.m, product.n, product.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    map_sfa = TensorMap(to_m_major(a.scale).T, (1, config.block_m))
    map_d = d_map(d, config.rows, config.block_n)
    ld_sfb, ldd, by_tma = c_int64(b.scale.stride(0)), c_int64(d.stride(0)), map_d is not None
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_sfa, map_d or map_a, d, b.scale, m, n, k, ld_sfb, ldd, int(by_tma)),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s07_promoted", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=OUT_DTYPES, problem=DEEPSEEK_LAYER, sums="promoted",
)  # fmt: skip
gemm = stage.gemm
