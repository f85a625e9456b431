"""s09: multicast: clusters of two CTAs, which load what both need once.

Idea: the CTAs of two neighbouring tiles need the same b (one below the other, `cluster_m` = 2) or the same a (side by side, `cluster_n` = 2). As a cluster
they run at once and reach each other's shared memory: each loads half of the shared tile, and TMA multicasts it to both. The L2 cache is asked for
less; the price is that the two go in step: a slot is filled again only when the consumers of both CTAs have done with it, which they tell both
producers by arriving at both barriers, and neither may begin before the other's barriers are there, nor end while the other may still arrive at its.

Shapes, scales and bits: as s07.
Legal configs: as s08; `cluster_m` and `cluster_n` 1 or 2, and not both 2; `ctas` a multiple of the cluster's CTAs. With 1 and 1 it is s08. Neighbours are
paired from the first tile on: the CTA that has none, where their number is odd, computes zeros that are not stored.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "cp.async.bulk.tensor" (.multicast::cluster), "mbarrier.arrive", "mapa", "barrier.cluster"; CUDA C++ Programming Guide, "Thread Block Clusters".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass, replace

import torch

from .. import types
from ..layout import ceil_div, round_up, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Problem, TensorMap
from .instructions import wgmma
from .stage import Stage, check_promoted, check_schedule, ctas, panel, quickest, rows

TITLE = "multicast"
IDEA = "clusters of two CTAs, TMA multicast"
REGISTERS = {
    1: (40, 248),
    2: (40, 232),
    3: (32, 160),
}  # of a thread of the producer and of a consumer, by the number of consumers


@dataclass(frozen=True)
class Config(types.Config):
    """Tile of a CTA in elements, 128 along k; `stages` of them make the ring. Each of the `consumers` computes its share of the rows. `out_fp32`: what d is.

    `ctas`: how many there are, 0 for one an SM. `raster`: columns of pairs of tiles that are computed before the next ones; rows with `raster_m`.
    `cluster_m`, `cluster_n`: how many CTAs a cluster has below each other, and side by side.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False
    ctas: int = 0
    raster: int = 16
    raster_m: bool = False
    cluster_m: int = 2
    cluster_n: int = 1

    @property
    def cluster(self) -> int:
        """CTAs of a cluster."""
        return self.cluster_m * self.cluster_n

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
        or check_cluster(config)
    )


def check_cluster(config: Config) -> str:
    """Why there are no such clusters; "" where there are."""
    for name in ("cluster_m", "cluster_n"):
        if (value := getattr(config, name)) not in (1, 2):
            return f"{name} must be 1 or 2, got {value}"
    if config.cluster > 2:
        return "cluster_m and cluster_n must not both be 2: the CTAs of a cluster share one of a and b"
    return (
        f"ctas must be a multiple of a cluster's {config.cluster}, got {config.ctas}"
        if config.ctas % config.cluster
        else ""
    )


def default_config(problem: Problem) -> Config:
    """The tile as in s08; two CTAs one below the other, or side by side where that leaves fewer of them without a tile."""
    choices = (
        Config(),
        Config(192, 128, 4, 3),
        Config(128, 128, 5),
        Config(64, 128, 6, 1),
        Config(64, 64, 8, 1),
    )
    config = quickest(choices, problem)
    down, across = ceil_div(problem.m, config.block_m), ceil_div(problem.n, config.block_n)
    return replace(config, cluster_m=1, cluster_n=2) if down % 2 * across > across % 2 * down else config


def launch(a: Quantized, b: Quantized, d: torch.Tensor, problem: Problem, config: Config) -> Launch:
    """As many clusters as SMs hold, or fewer where there are fewer pairs of tiles. Cluster x of the grid is its CTAs (x, 0) and (x, 1)."""
    m, n, k = problem.m, problem.n, problem.k
    map_a = TensorMap(rows(a), (config.block_m // config.cluster_n, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n // config.cluster_m, BLOCK), swizzle=128)
    map_sfa = TensorMap(to_m_major(a.scale).T, (1, config.block_m // config.cluster_n))
    tma_store = not config.out_fp32 and d.stride(0) * d.element_size() % 16 == 0
    width = panel(config.block_n)
    # FP32, or a row pitch that no tensor map can describe: the kernel stores by threads and never looks at the third map
    map_d = TensorMap(d, (config.rows, width), swizzle=2 * width) if tma_store else map_a
    pairs = ceil_div(m, config.block_m * config.cluster_m) * ceil_div(n, config.block_n * config.cluster_n)
    return Launch(
        grid=(min(ctas(config.ctas, d.device) // config.cluster, pairs), config.cluster, 1),
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
        cluster=(1, config.cluster, 1),
    )


stage = Stage(
    "s09_multicast", TITLE, IDEA, Config, is_legal, default_config, launch,  # type: ignore[arg-type]
    granularities=("1x128", "128x128"), out_dtypes=(torch.bfloat16, torch.float32), sums="promoted",
    problem=Problem(64, 2112, 7168),  # a layer of DeepSeek-V3: the latent projections of attention, for 64 tokens
)  # fmt: skip
gemm = stage.gemm
