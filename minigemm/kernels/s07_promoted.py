"""s07: promoted sums: every 128 along k the tensor core's partial sums are scaled and added in FP32.

Idea: the accumulator of the tensor core is short, and sums of thousands of products in it lose bits; so it sums 128 products at a time, and the threads
add that to FP32 registers. The same addition brings fine-grained scales for free: acc = fma(rn(sfa * sfb), partial, acc). It costs FP32 instructions,
a quarter of the time of the products, which the other consumer's products hide. The scales of a come by TMA with their tile, those of b into the lanes
of each warp, 32 steps at once.

Shapes: a (m, k) e4m3 with 1x128 scales: (m, ceil(k / 128)), M-major as `minigemm.quantize` makes them; row-major ones are laid out first. b (n, k) e4m3
with 128x128 scales (ceil(n / 128), ceil(k / 128)), row-major. d (m, n) BF16 or FP32. Any m and n, k a multiple of 16. FP32, and BF16 whose rows are no
multiple of 16 bytes, are stored by threads.
Legal configs: as s06; block_n at most 128, or 144, 160 or 192 (block_n - 128 = gcd(block_n, 128)), so that a tile never needs three scales of b;
registers for the accumulators and block_n / 2 partial sums more.
Errors: see `Stage.gemm`.
Sources: DeepSeek-V3 Technical Report (arXiv 2412.19437), section 3.3.2; PTX ISA, "wgmma.mma_async".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from .. import types
from ..layout import ceil_div, round_up, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Problem, TensorMap
from .instructions import wgmma
from .stage import Stage, check_grid, check_promoted, panel, quickest, rows

TITLE = "promoted"
IDEA = "FP32 promotion every 128 along K, fine-grained scales"
REGISTERS = {
    1: (40, 248),
    2: (40, 232),
    3: (32, 160),
}  # of a thread of the producer and of a consumer, by the number of consumers


@dataclass(frozen=True)
class Config(types.Config):
    """Tile of a CTA in elements, 128 along k; `stages` of them make the ring. Each of the `consumers` computes its share of the rows. `out_fp32`: what d is."""

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return (self.consumers + 1) * 128

    @property
    def rows(self) -> int:
        """Rows that one consumer computes."""
        return self.block_m // self.consumers

    @property
    def accumulators(self) -> int:
        """Registers for sums of a consumer's thread, the partial ones of 64 rows too."""
        return (self.rows // 64 + 1) * self.block_n // 2

    @property
    def shared_bytes(self) -> int:
        """The tiles of a and b, the scales of a, the tile of d, and the barriers, each at a multiple of 1024 bytes."""
        a, b, sfa = (
            self.stages * size for size in (self.block_m * BLOCK, self.block_n * BLOCK, self.block_m * 4)
        )
        sizes = (a, b, sfa, self.block_m * self.block_n * 2, 16 * self.stages)
        return sum(round_up(size, 1024) for size in sizes)

    def constants(self) -> dict[str, int]:
        """The fields; BLOCK_K; PANEL, the columns of d that are stored at once; the registers of both roles; SHARED_BYTES, which the kernel asserts."""
        producer, consumer = REGISTERS[self.consumers]
        return {
            **super().constants(), "BLOCK_K": BLOCK, "PANEL": panel(self.block_n), "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
            "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip

    def declarations(self) -> str:
        """The instruction."""
        return wgmma(self.block_n)


def is_legal(config: Config, problem: Problem) -> Legality:
    """Whether this config can run this problem, and if not, why."""
    if config.consumers not in REGISTERS:
        return Legality(f"consumers must be 1, 2 or 3, got {config.consumers}")
    if config.stages < 2:
        return Legality(
            f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
        )
    return Legality(
        check_promoted(config, REGISTERS[config.consumers][1])
        or check_grid(problem.m, problem.n, config.block_m, config.block_n)
    )


def default_config(problem: Problem) -> Config:
    """What takes 132 SMs the least time, of a few: 256 x 128 outputs where there are many, 64 x 64 where there are few."""
    choices = (
        Config(),
        Config(192, 128, 4, 3),
        Config(128, 128, 5),
        Config(64, 128, 6, 1),
        Config(64, 64, 8, 1),
    )
    return quickest(choices, problem)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, problem: Problem, config: Config) -> Launch:
    """One CTA for each block_m x block_n outputs."""
    m, n, k = problem.m, problem.n, problem.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    map_sfa = TensorMap(to_m_major(a.scale).T, (1, config.block_m))
    tma_store = not config.out_fp32 and d.stride(0) * d.element_size() % 16 == 0
    width = panel(config.block_n)
    # FP32, or a row pitch that no tensor map can describe: the kernel stores by threads and never looks at the third map
    map_d = TensorMap(d, (config.rows, width), swizzle=2 * width) if tma_store else map_a
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(
            map_a,
            map_b,
            map_sfa,
            map_d,
            d,
            b.scale,
            m,
            n,
            k,
            c_int64(b.scale.stride(0)),
            c_int64(d.stride(0)),
            int(tma_store),
        ),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s07_promoted", TITLE, IDEA, Config, is_legal, default_config, launch,  # type: ignore[arg-type]
    granularities=("1x128", "128x128"), out_dtypes=(torch.bfloat16, torch.float32), sums="promoted",
    problem=Problem(64, 2112, 7168),  # a layer of DeepSeek-V3: the latent projections of attention, for 64 tokens
)  # fmt: skip
gemm = stage.gemm
