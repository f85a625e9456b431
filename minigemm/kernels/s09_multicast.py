"""s09: multicast: clusters of two CTAs, which load once what both need.

Idea: the CTAs of two neighbouring tiles need the same b (one below the other, `cluster_m` = 2) or the same a
(side by side, `cluster_n` = 2). As a cluster they run at once and reach each other's shared memory: each
loads half of the shared tile, and TMA multicasts it to both. The L2 cache is asked for less. The price is
that the two go in step. A slot is filled again only when the consumers of both CTAs have done with it, which
they tell both producers by arriving at both barriers. Neither CTA may begin before the other's barriers are
there, nor end while the other may still arrive at its barriers.

Shapes, scales and bits: as s07.
Legal configs: as s08; `cluster_m` and `cluster_n` 1 or 2, and not both 2; `ctas` a multiple of the cluster's
CTAs. With 1 and 1 it is s08. Neighbours are paired from the first tile on. Where the number of tiles is odd,
the CTA without a neighbour's tile computes zeros that are not stored.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "cp.async.bulk.tensor" (.multicast::cluster), "mbarrier.arrive", "mapa", "barrier.cluster";
CUDA C++ Programming Guide, "Thread Block Clusters".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass, replace

import torch

from ..checks import OUT_DTYPES
from ..layout import ceil_div, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Product, TensorMap
from .legality import check_persistent
from .stage import DEEPSEEK_LAYER, TILES, Stage, ctas, quickest, rows
from .tile import PromotedConfig, d_map

TITLE = "multicast"
IDEA = "clusters of two CTAs, TMA multicast"


@dataclass(frozen=True)
class Config(PromotedConfig):
    """The tile of a CTA in elements, 128 along k; `stages` of them make the ring.

    Each of the `consumers` computes its share of the rows. `out_fp32` says what d is. There are `ctas` CTAs,
    0 for one per SM. They compute `raster` columns of pairs of tiles (rows, with `raster_m`) before the next
    ones. A cluster has `cluster_m` CTAs below each other and `cluster_n` side by side.
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


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why."""
    return Legality(check_persistent(config, product) or check_cluster(config))


def check_cluster(config: Config) -> str:
    """Check the shape of a cluster, and that `ctas` makes whole ones."""
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


def default_config(product: Product) -> Config:
    """Return the tile as in s08, and the cluster.

    Its two CTAs lie one below the other, or side by side where that leaves fewer of them without a tile.
    """
    config = quickest([Config(*tile) for tile in TILES], product)
    down, across = ceil_div(product.m, config.block_m), ceil_div(product.n, config.block_n)
    return replace(config, cluster_m=1, cluster_n=2) if down % 2 * across > across % 2 * down else config


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: Config) -> Launch:
    """Describe a launch with as many clusters as the SMs hold, or fewer where there are fewer pairs of tiles.

    Cluster x of the grid is its CTAs (x, 0) and (x, 1).
    """
    m, n, k = product.m, product.n, product.k
    map_a = TensorMap(rows(a), (config.block_m // config.cluster_n, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n // config.cluster_m, BLOCK), swizzle=128)
    map_sfa = TensorMap(to_m_major(a.scale).T, (1, config.block_m // config.cluster_n))
    map_d = d_map(d, config.rows, config.block_n)
    pairs = ceil_div(m, config.block_m * config.cluster_m) * ceil_div(n, config.block_n * config.cluster_n)
    ld_sfb, ldd, by_tma = c_int64(b.scale.stride(0)), c_int64(d.stride(0)), map_d is not None
    return Launch(
        grid=(min(ctas(config.ctas, d.device) // config.cluster, pairs), config.cluster, 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_sfa, map_d or map_a, d, b.scale, m, n, k, ld_sfb, ldd, int(by_tma)),
        shared=config.shared_bytes,
        cluster=(1, config.cluster, 1),
    )


stage = Stage(
    "s09_multicast", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=OUT_DTYPES, problem=DEEPSEEK_LAYER, sums="promoted",
)  # fmt: skip
gemm = stage.gemm
