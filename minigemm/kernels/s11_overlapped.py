"""s11: overlapped: no role waits where it could work; the library's kernel for many rows.

Idea: the tensor core idles while a consumer does anything but issue products. Four changes to s10 keep it
busy, and each has its own measured gain in the lesson:
- The scales of b come through the ring. A warp of the producer writes them into the slot of their k-block, so
  that a consumer reads them as it reads those of a.
- A consumer of 64 rows that has registers for two partial sums issues the next product before it promotes the
  last one.
- The loader initialises the barriers and begins at once, without a prefetch of the tensor maps. In a dense
  product it counts its tiles itself, so that its first load waits for no warp that finds them. What it tells
  TMA stays in uniform registers.
- Weights that few tiles read, all at the same time, leave L2 first. They would push out what others need.

Shapes, scales, layouts and bits: as s10. With `accumulate` the product is added to what d holds, in FP32, and
rounded once.
Legal configs: as s10. Errors: see `Stage.gemm`.
Sources: PTX ISA, "wgmma.wait_group", "elect.sync", "createpolicy".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import OUT_DTYPES
from ..types import Legality, Product
from .grouped import LibraryConfig, launch
from .legality import check_layout, check_persistent
from .stage import DEEPSEEK_LAYER, TILES, Stage, quickest

TITLE = "overlapped"
IDEA = "scales through the ring, two partial sums, a loader that begins at once"
SCALE_BYTES = 8  # of b, in a slot of the ring
OTHER_REGISTERS = 36  # of a consumer's thread: addresses, scales, counters


@dataclass(frozen=True)
class Config(LibraryConfig):
    """The tile of a CTA in elements, 128 along k, and how warpgroups share it.

    Attributes:
        block_m, block_n: rows and columns of d's tile.
        stages: slots of the ring; each holds a tile of a and of b.
        consumers: warpgroups that each compute their share of the rows.
        out_fp32: d is float32.
        ctas: CTAs of a launch, 0 for one on each SM.
        raster: columns of tiles that are computed before the next ones; with `raster_m` rows of tiles.
        accumulate: d += the product.
        layout: DENSE, CONTIGUOUS, PREFIX_SUMS or MASKED.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2

    @property
    def partials(self) -> int:
        """Partial sums of a consumer: two where it has registers for them, which takes 64 rows."""
        room = 3 * self.block_n // 2 + OTHER_REGISTERS <= self.registers[1]
        return 2 if self.rows == 64 and room else 1

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a and b, the scales of a, the tile of d, and the rest.

        The rest are barriers, parts, and the scales of b.
        """
        *tiles, rest = super().buffers
        return (*tiles, rest + SCALE_BYTES * self.stages)

    def constants(self) -> dict[str, int]:
        """Return the tile's constants, both roles' registers, and PARTIALS."""
        return {**super().constants(), "PARTIALS": self.partials}


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why. m counts the rows of all groups."""
    return Legality(check_persistent(config, product) or check_layout(config.layout))


def default_config(product: Product) -> Config:
    """Return the quickest of five on 132 SMs: from 256 x 128 outputs for many down to 64 x 64 for few."""
    return quickest([Config(*tile) for tile in TILES], product)


stage = Stage(
    "s11_overlapped", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=OUT_DTYPES, problem=DEEPSEEK_LAYER, sums="promoted",
    symbol="s11_overlapped_fp8_gemm_nt",  # profilers and benchmarks look for "fp8_gemm"
)  # fmt: skip
gemm = stage.gemm
