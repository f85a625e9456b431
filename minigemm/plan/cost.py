"""The cost model: how many cycles a product takes under a config. Integers only.

The model counts cycles of one SM. A *step* is 128 columns of k. The slowest of four things sets its pace:

1. The tensor core computes 4096 products a cycle.
2. The port of shared memory: TMA writes both tiles once; a WGMMA reads its 64 rows of a, and b anew for each
   64 rows.
3. L2 serves both tiles to every SM that works, and delivers to all of them together no more than the machine
   says.
4. One consumer waits, multiplies its rows and promotes them, one after the other. The more `splits` take
   turns along k, the less that counts.

Promotion adds a part that nothing hides where a tile has two scales of b. A tile costs its steps and its
epilogue. In the epilogue splits add up their sums; more consumers share it, so it takes less. The number of
waves is ceil(tiles / SMs). Reading and writing device memory overlaps with computing, but not fully.

The constants are fitted to 44 products (dense, contiguous, masked) with up to 60 tiles each, timed on an
H100. The tile that the model chooses there takes 0.6 % more time than the best, on average. The constants
rank tiles: they do not predict times to the per cent.

FP32 sums run along k in one order whatever the tile is, so of a config's fields only `splits` can change the
bits of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..hopper import PRODUCTS_PER_CYCLE, SMS
from ..kernels.s10_grouped import Config
from ..layout import ceil_div
from ..types import Layout, Product

__all__ = ["H100_RATES", "Cost", "Machine", "cost", "tiles_of"]

STEP = 128  # columns of k
MMA_RATE = PRODUCTS_PER_CYCLE  # FP8 products per cycle and SM
SHARED_RATE = 113  # bytes per cycle and SM, as measured
L2_RATE = 57  # bytes per cycle and SM, as long as the whole chip has them
#: Cycles before the first product and behind the last: launch, barriers, the first bytes from memory, the
#: last store.
LAUNCH = 6700
#: Cycles of a consumer's step besides its products: barriers, descriptors, waiting for products.
STEP_LATENCY = 358
#: A tile with two scales of b spends one cycle per step on selecting for so many of its outputs.
TWO_SCALES = 470
REACHED = 91  # per cent of a copy's rate at which a, b and d move
REREAD = 14  # per cent of b that comes from memory once more where two tiles read it
#: Per cent that fewer than three consumers lose in a contiguous layout. Measured; the cause is not
#: established.
CONTIGUOUS_PAIR = 8
SPREAD = 6  # half of a masked layout's groups have about a sixth more rows than expected


@dataclass(frozen=True)
class Machine:
    """A GPU's SMs in use, and bytes per cycle of L2 (all SMs together) and of device memory.

    The defaults are those of an H100 SXM.
    """

    sms: int = SMS
    l2_rate: int = 9100
    memory_rate: int = 1720


H100_RATES = Machine()


class Cost(NamedTuple):
    """The model's answer; a comparison ranks by cycles first.

    Cycles, bytes from L2, waves, bytes through shared memory.
    """

    cycles: int
    l2_bytes: int
    waves: int
    shared_bytes: int


def expected_rows(product: Product) -> int:
    """Return the rows to plan for: of each group in a MASKED layout, of all groups together in the others."""
    masked = product.layout == Layout.MASKED
    return min(product.expected_m, product.m) if masked and product.expected_m else product.m


def tiles_of(product: Product, config: Config) -> int:
    """Count the tiles of d that have rows in them."""
    m, groups = expected_rows(product), product.groups
    rows_of_tiles = ceil_div(m, config.block_m)
    if product.layout == Layout.MASKED:
        fuller = ceil_div(m + m // SPREAD, config.block_m)
        rows_of_tiles = (groups - groups // 2) * fuller + groups // 2 * rows_of_tiles
    elif product.layout != Layout.DENSE and product.alignment % config.block_m:
        rows_of_tiles += min(groups, m) - 1  # a tile that meets two groups is computed for each
    return rows_of_tiles * ceil_div(product.n, config.block_n)


def cost(product: Product, config: Config, machine: Machine = H100_RATES) -> Cost:
    """Return the model's figures for the whole product; all zero where there is nothing to compute."""
    tiles = tiles_of(product, config)
    if tiles <= 0 or product.k <= 0:
        return Cost(0, 0, 0, 0)
    m, n, consumers, splits = config.block_m, config.block_n, config.consumers, config.splits
    out_bytes = 4 if product.out_fp32 else 2
    waves, steps = ceil_div(tiles, machine.sms), ceil_div(product.k, STEP)

    # A step: the slowest of tensor core, shared memory, L2 and a consumer.
    loaded = STEP * (m + n) + 4 * m  # bytes: both tiles, and the scales of a
    shared = loaded + 4 * (m // 64) * (64 * 32 + n * 32)  # bytes
    share = max(1, min(L2_RATE, machine.l2_rate // min(tiles, machine.sms)))
    consumer = m // 64 // consumers * (2 * n + n // 8) + STEP_LATENCY
    pace = max(m * n * STEP // MMA_RATE, shared // SHARED_RATE, loaded // share, consumer // splits)
    two_scales = STEP % n > 0 and n % STEP > 0
    pace += two_scales * m * n // TWO_SCALES

    # The epilogue. Its last term: rows of panels, as the kernel stores them.
    stored = m * n * (4 + 2 * (out_bytes == 4) + 9 * (splits - 1))
    epilogue = (3 * stored // consumers + stored) // 128 + 4 * m * n // min(n & -n, 64) // 5
    per_tile = steps * pace + epilogue

    # Device memory: a, the weights that rows meet, what is read of them once more, and d.
    rows = expected_rows(product) * (product.groups if product.layout == Layout.MASKED else 1)
    groups = 1 if product.layout == Layout.DENSE else min(product.groups, max(rows, 1))
    weights = groups * product.n * product.k
    again = weights * REREAD // 100 if tiles > groups * ceil_div(product.n, n) else 0
    moved = rows * product.k + weights + again + rows * product.n * out_bytes  # bytes

    # Computing and moving overlap, but not quite.
    computing, moving = waves * per_tile, 100 * moved // (REACHED * machine.memory_rate)
    cycles = LAUNCH + max(computing + moving // 20, moving + per_tile // 6 + computing // 5)
    if product.layout in (Layout.CONTIGUOUS, Layout.PREFIX_SUMS) and consumers < 3:
        cycles += cycles * CONTIGUOUS_PAIR // 100
    from_l2 = tiles * (steps * loaded + m * n * out_bytes)
    return Cost(cycles, from_l2, waves, tiles * (steps * shared + stored))
