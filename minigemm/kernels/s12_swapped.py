"""s12: swapped: the weights are the 64-row side of the product; the library's kernel for few rows.

Idea: WGMMA always computes 64 rows, and its other side is as narrow as 8. For a few tokens it is the weights
that fill 64 rows. A tile of d is transposed: 64 rows of b for each consumer times `block_m` rows of a. Few
rows are computed or promoted in vain, and what is left to do is to keep memory busy. A slot of the ring holds
`blocks` k-blocks, so that roles wait at barriers less often and `blocks` products are under way at once.

Shapes, scales, layouts and bits: as s11. Both multiply the same numbers, which the tensor core adds up in the
same way whichever operand is whose.
Legal configs: block_m a multiple of 8 up to 64; block_n = 64 * consumers, with 1 or 2 consumers; `blocks` 1,
2 or 4, so that block_m * blocks is a multiple of 32, as the scales' copy needs; 1 where k is no multiple of
128, because a copy of several k-blocks cannot end within one.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "wgmma.mma_async", "stmatrix".
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import OUT_DTYPES
from ..layout import ceil_div, round_up
from ..quantize import BLOCK
from ..types import Legality, Product
from .grouped import PARTS_BYTES, LibraryConfig, launch
from .legality import check_layout, check_registers, check_schedule, check_shared
from .stage import DEEPSEEK_LAYER, Stage
from .tile import wgmma

TITLE = "swapped"
IDEA = "for few rows: weights are the 64-row side of the product"
MOST_ROWS = 64  # of a tile
OTHER_REGISTERS = 40  # of a consumer's thread: addresses, counters


@dataclass(frozen=True)
class Config(LibraryConfig):
    """The tile of a CTA in elements, 128 along k, and how warpgroups share it.

    Attributes:
        block_m: rows of a and d in a tile: the columns of the instruction.
        block_n: rows of b, 64 for each consumer.
        blocks: k-blocks of 128 in a slot of the ring.
        stages: slots of the ring.
        consumers: warpgroups.
        out_fp32: d is float32.
        ctas: CTAs of a launch, 0 for one on each SM.
        raster: columns of tiles that are computed before the next ones; with `raster_m` rows of tiles.
        accumulate: d += the product.
        layout: DENSE, CONTIGUOUS, PREFIX_SUMS or MASKED.
    """

    block_m: int = 16
    block_n: int = 64
    stages: int = 5
    consumers: int = 1
    blocks: int = 4

    @property
    def threads(self) -> int:
        """Threads of a CTA: the consumers' warpgroups, and the producer's three warps."""
        return self.consumers * 128 + 96

    @property
    def rows(self) -> int:
        """Rows of d that one consumer stores: all of the tile's."""
        return self.block_m

    @property
    def copied_blocks(self) -> int:
        """How many k-blocks of 128 one copy of a or b brings; 0: one, which may be shorter."""
        return self.blocks if self.blocks > 1 else 0

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a and b, the scales of a, the tile of d, and the rest.

        The rest are barriers, parts, and the scales of b.
        """
        tiles = self.stages * self.blocks
        rest = 16 * self.stages + PARTS_BYTES + 4 * tiles
        return (
            tiles * self.block_m * BLOCK,
            tiles * self.block_n * BLOCK,
            tiles * self.block_m * 4,
            self.block_m * self.block_n * 2,
            rest,
        )

    def constants(self) -> dict[str, int]:
        """Return the tile's constants, without registers: no role gives any back."""
        return {name: value for name, value in super().constants().items() if not name.endswith("_REGISTERS")}

    def declarations(self) -> str:
        """Return the CUDA C++ of the tile's instruction."""
        return wgmma(self.block_m)


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why. m counts the rows of all groups."""
    return Legality(
        _check_tile(config, product.k)
        or check_layout(config.layout)
        or check_shared(config.shared_bytes, "fewer stages or smaller blocks")
        or check_registers((config.blocks + 2) * config.block_m // 2 + OTHER_REGISTERS, config.threads)
        or check_schedule(product.m, product.n, config.block_m, config.block_n, config.ctas, config.raster)
    )


def _check_tile(config: Config, k: int) -> str:
    if not 0 < config.block_m <= MOST_ROWS or config.block_m % 8:
        return f"block_m must be a multiple of 8 up to {MOST_ROWS}, got {config.block_m}"
    if config.consumers not in (1, 2):
        return f"consumers must be 1 or 2, got {config.consumers}"
    if config.block_n != 64 * config.consumers:
        return f"block_n must be 64 * consumers = {64 * config.consumers}, got {config.block_n}"
    if config.blocks not in (1, 2, 4):
        return f"blocks must be 1, 2 or 4, got {config.blocks}"
    if k % BLOCK and config.blocks > 1:
        return f"blocks must be 1 where k is no multiple of {BLOCK}, as k = {k}, got {config.blocks}"
    if config.blocks * config.block_m % 32:
        return (
            f"blocks * block_m must be a multiple of 32, where a slot's scales of a begin, "
            f"got {config.blocks} * {config.block_m}"
        )
    if config.stages < 2:
        return f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
    return ""


def default_config(product: Product) -> Config:
    """Return a tile as high as the product, up to 64 rows, with as many slots as fit."""
    blocks, step = (1, 32) if product.k % BLOCK else (4, 8)
    tiles = ceil_div(product.m, MOST_ROWS)
    block_m = max(step, round_up(ceil_div(product.m, tiles or 1), step))
    configs = (Config(block_m, stages=stages, blocks=blocks) for stages in range(8, 1, -1))
    return next(config for config in configs if is_legal(config, product._replace(m=1, n=1)))


stage = Stage(
    "s12_swapped", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=OUT_DTYPES, problem=DEEPSEEK_LAYER, sums="promoted",
    symbol="s12_swapped_fp8_gemm_nt",  # profilers and benchmarks look for "fp8_gemm"
)  # fmt: skip
gemm = stage.gemm
