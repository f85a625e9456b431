"""s08: persistent: as many CTAs as the GPU has SMs, each computing one tile after the other.

Idea: between two tiles of a stage before this, an SM starts a CTA, sets up barriers and waits for the first bytes, and at the end the tensor core idles
while d is stored. Here a CTA lives as long as the kernel. Its producer runs ahead into the next tile, so the ring never runs empty; TMA stores a tile of
d while the next is computed; and the order of the tiles is the kernel's own choice: `raster` columns of tiles (rows, with `raster_m`) at a time, so that
the CTAs at work share rows of a and b in the L2 cache. The order is in scheduler.cuh.

Shapes, scales and bits: as s07.
Legal configs: as s07; `ctas` of at least 0, `raster` of at least 1. Both change no bit. The launch has `ctas` CTAs, or as many as the GPU has SMs for 0,
and never more than tiles; on the emulator 0 is 132. `ctas` compiles nothing anew.
Errors: see `Stage.gemm`.
Sources: CUTLASS documentation, "Efficient GEMM in CUDA", "Persistent kernels" and "Threadblock rasterization"; PTX ISA, "cp.async.bulk.wait_group".
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
from .stage import Stage, check_promoted, check_schedule, ctas, panel, quickest, rows

TITLE = "persistent"
IDEA = "one CTA an SM, raster order, the store behind the next tile"
REGISTERS = {
    1: (40, 248),
    2: (40, 232),
    3: (32, 160),
}  # of a thread of the producer and of a consumer, by the number of consumers


@dataclass(frozen=True)
class Config(types.Config):
    """Tile of a CTA in elements, 128 along k; `stages` of them make the ring. Each of the `consumers` computes its share of the rows. `out_fp32`: what d is.

    `ctas`: how many there are, 0 for one an SM. `raster`: columns of tiles that are computed before the next ones; rows of tiles with `raster_m`.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False
    ctas: int = 0
    raster: int = 16
    raster_m: bool = False

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
        """The fields but for `ctas`, which the launch decides; BLOCK_K; PANEL, the columns of d that are stored at once; the registers of both roles;
        SHARED_BYTES, which the kernel asserts."""
        producer, consumer = REGISTERS[self.consumers]
        fields = {name: value for name, value in super().constants().items() if name != "CTAS"}
        return {
            **fields, "BLOCK_K": BLOCK, "PANEL": panel(self.block_n), "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
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
        or check_schedule(problem.m, problem.n, config.block_m, config.block_n, config.ctas, config.raster)
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
    """One CTA for each SM, or fewer where there are fewer tiles."""
    m, n, k = problem.m, problem.n, problem.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    map_sfa = TensorMap(to_m_major(a.scale).T, (1, config.block_m))
    tma_store = not config.out_fp32 and d.stride(0) * d.element_size() % 16 == 0
    width = panel(config.block_n)
    # FP32, or a row pitch that no tensor map can describe: the kernel stores by threads and never looks at the third map
    map_d = TensorMap(d, (config.rows, width), swizzle=2 * width) if tma_store else map_a
    return Launch(
        grid=(
            min(ctas(config.ctas, d.device), ceil_div(m, config.block_m) * ceil_div(n, config.block_n)),
            1,
            1,
        ),
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
    "s08_persistent", TITLE, IDEA, Config, is_legal, default_config, launch,  # type: ignore[arg-type]
    granularities=("1x128", "128x128"), out_dtypes=(torch.bfloat16, torch.float32), sums="promoted",
    problem=Problem(64, 2112, 7168),  # a layer of DeepSeek-V3: the latent projections of attention, for 64 tokens
)  # fmt: skip
gemm = stage.gemm
