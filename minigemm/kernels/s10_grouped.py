"""s10: grouped: products that have each their own rows of a and their own b, in one launch.

Idea: the experts of a layer are such products, and how many rows each has is known on the device alone. A
warp of the producer works ahead: it finds the CTA's next tile by counting the tiles of 32 groups at once, and
tells the thread that loads and the warps that compute which part of d comes next. Where all rows of a
consumer are the group's, TMA stores them; where the group ends among them, threads do. A consumer that has
none of the group's rows multiplies nothing.

Layouts: see kernels/grouped.py, whose functions describe the launches; `stage.run` runs them. `gemm` is the
stage as a function, for one dense product, like those before it.
Shapes, scales and bits: as s07, for each group. d is BF16 or FP32.
Legal configs: as s08; `layout` of 0 to 3, which the call decides. It is compiled in, because a kernel that
knows it starts sooner. m, n, k, the number of groups and `ctas` compile nothing anew.
Errors: see `Stage.gemm`.
Sources: DeepSeek-V3 Technical Report (arXiv 2412.19437), section 3; PTX ISA, "shfl.sync", "vote.sync".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import OUT_DTYPES
from ..types import Legality, Product
from .grouped import GroupedConfig, launch
from .legality import check_layout, check_persistent
from .stage import DEEPSEEK_LAYER, TILES, Stage, quickest

TITLE = "grouped"
IDEA = "dense, contiguous and masked groups under one scheduler"


@dataclass(frozen=True)
class Config(GroupedConfig):
    """The tile of a CTA in elements, 128 along k, as in s08; and the layout of the groups.

    Each of the `consumers` computes its share of the rows. `out_fp32` says what d is. There are `ctas` CTAs,
    0 for one per SM. They compute `raster` columns of tiles (rows, with `raster_m`) before the next ones.
    `layout` is one of `types.Layout`.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why. m counts the rows of all groups."""
    return Legality(check_persistent(config, product) or check_layout(config.layout))


def default_config(product: Product) -> Config:
    """Return the quickest of a few on 132 SMs: 256 x 128 for a large d, down to 64 x 64 for a small one."""
    return quickest([Config(*tile) for tile in TILES], product)


stage = Stage(
    "s10_grouped", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=OUT_DTYPES, problem=DEEPSEEK_LAYER, sums="promoted",
)  # fmt: skip
gemm = stage.gemm
