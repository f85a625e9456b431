"""Which tile suits a product: candidates, what each would cost by a model of the machine, and the cheapest. Integers only.

The model counts cycles of one SM. A *step* is 128 columns of k. Its pace is set by the slowest of

- the tensor core: 4096 products a cycle;
- the port of shared memory: TMA writes both tiles once, a WGMMA reads its 64 rows of a, and b for each 64 rows anew;
- L2, which serves both tiles to every SM that works, and has no more in all than the machine says;
- one consumer, which waits, multiplies its rows and promotes them, one after the other: the more `splits` take turns along k, the less that counts;

and adds what of the promotion stays exposed where a tile has two scales of b. A tile costs its steps and the epilogue, in which splits add up their
sums, and which takes less the more consumers share it; all tiles take as many waves as there are tiles for each SM. Device memory delivers a, b and d
meanwhile, and neither hides the other quite. The constants are fitted to 44 products (dense, contiguous, masked) with up to 60 tiles each, timed on an
H100: the tile that the model chooses there takes 0.6 % more time than the best, on average. They rank tiles: they do not predict times to the per cent.

Sums in FP32 run along k in one order whatever the tile is, so the choice does not change a single bit of the result; only `splits` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

__all__ = [
    "LAYOUTS", "MENU_LIMIT", "Cost", "Machine", "Tile", "Work", "candidates", "choose", "choose_config", "cost", "menu",
]  # fmt: skip

LAYOUTS = ("dense", "contiguous", "masked")
STEP = 128  # columns of k
MMA_RATE = 4096  # FP8 products a cycle and SM
SHARED_RATE = 113  # bytes a cycle and SM, as they come out
L2_RATE = 57  # bytes a cycle and SM, as long as the whole chip has them
LAUNCH = 6700  # cycles before the first and behind the last product: launch, barriers, the first bytes from memory, the last store
STEP_LATENCY = (
    358  # cycles of a consumer's step besides its products: barriers, descriptors, waiting for products
)
TWO_SCALES = (
    470  # outputs of a tile for which a cycle a step goes into selecting, where a tile has two scales of b
)
REACHED = 91  # per cent of the rate of a copy at which a, b and d move
REREAD = 14  # per cent of b that comes from memory once more where two tiles read it
CONTIGUOUS_PAIR = 8  # per cent that two consumers lose against three in a contiguous layout, measured; why is not established
SPREAD = 6  # half of a masked layout's groups have about a sixth more rows than expected
MENU_LIMIT = 12  # kernels for one n and k, whatever m comes
REPRESENTATIVE_M = (64, 8192, 128, 4096, 256, 2048, 512, 1024, 16384, 192, 384, 768, 1536, 3072, 6144)
BLOCKS_M = (64, 128, 192, 256)
WARPGROUPS = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 4))  # consumers, splits
BLOCKS_N = (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 256)

C = TypeVar("C")


@dataclass(frozen=True)
class Machine:
    """What a GPU offers: SMs to use, bytes a cycle of L2 (all SMs together) and of device memory. The defaults are an H100 SXM's."""

    sms: int = 132
    l2_rate: int = 9100
    memory_rate: int = 1720


@dataclass(frozen=True)
class Work:
    """A product to plan for, in elements.

    layout: "dense"; "contiguous": m rows in all, that belong to `groups` weights; "masked": about m rows in each of `groups` buffers.
    alignment: of the rows at which groups begin (contiguous); 1 where they may begin anywhere.
    out_bytes: 2 or 4, of an element of d.
    """

    m: int
    n: int
    k: int
    layout: str = "dense"
    groups: int = 1
    alignment: int = 128
    out_bytes: int = 2


@dataclass(frozen=True)
class Tile:
    """What a config says about the work of a CTA: the tile of d, the warpgroups that share its rows, and the parts that k is cut into."""

    block_m: int
    block_n: int
    consumers: int
    splits: int = 1


@dataclass(frozen=True, order=True)
class Cost:
    """What the model says, cheapest first when compared. Cycles; bytes from L2; waves; bytes through the ports of shared memory."""

    cycles: int
    l2_bytes: int
    waves: int
    shared_bytes: int


def ceil_div(value: int, divisor: int) -> int:
    """`value / divisor`, rounded up."""
    return -(-value // divisor)


def tiles_of(work: Work, tile: Tile) -> int:
    """Tiles of d that have rows in them."""
    if work.layout == "masked":
        fuller = work.groups - work.groups // 2
        down = fuller * ceil_div(work.m + work.m // SPREAD, tile.block_m) + work.groups // 2 * ceil_div(
            work.m, tile.block_m
        )
    else:
        down = ceil_div(work.m, tile.block_m)
        if (
            work.layout == "contiguous" and work.alignment % tile.block_m
        ):  # a tile that meets two groups is computed for each
            down += min(work.groups, work.m) - 1
    return down * ceil_div(work.n, tile.block_n)


def cost(work: Work, tile: Tile, machine: Machine = Machine()) -> Cost:
    """The model's answer. All figures are for the whole product."""
    tiles = tiles_of(work, tile)
    if tiles <= 0 or work.k <= 0:
        return Cost(0, 0, 0, 0)
    m, n = tile.block_m, tile.block_n
    waves = ceil_div(tiles, machine.sms)
    steps = ceil_div(work.k, STEP)
    loaded = STEP * (m + n) + 4 * m  # bytes of a step: both tiles, and the scales of a
    shared = loaded + 4 * (m // 64) * (64 * 32 + n * 32)
    two_scales = STEP % n > 0 and n % STEP > 0
    share = max(1, min(L2_RATE, machine.l2_rate // min(tiles, machine.sms)))
    consumer = m // 64 // tile.consumers * (2 * n + n // 8) + STEP_LATENCY
    pace = max(m * n * STEP // MMA_RATE, shared // SHARED_RATE, loaded // share, consumer // tile.splits)
    pace += two_scales * m * n // TWO_SCALES
    stored = m * n * (4 + 2 * (work.out_bytes == 4) + 9 * (tile.splits - 1))
    epilogue = (3 * stored // tile.consumers + stored) // 128 + 4 * m * n // min(
        n & -n, 64
    ) // 5  # the last: rows of panels, as the kernel stores them
    per_tile = steps * pace + epilogue
    rows = work.m * (work.groups if work.layout == "masked" else 1)
    groups = 1 if work.layout == "dense" else min(work.groups, max(rows, 1))
    weights = groups * work.n * work.k
    again = weights * REREAD // 100 if tiles > groups * ceil_div(work.n, n) else 0
    computing, moving = (
        waves * per_tile,
        100
        * (rows * work.k + weights + again + rows * work.n * work.out_bytes)
        // (REACHED * machine.memory_rate),
    )
    cycles = LAUNCH + max(computing + moving // 20, moving + per_tile // 6 + computing // 5)
    if work.layout == "contiguous" and tile.consumers < 3:
        cycles += cycles * CONTIGUOUS_PAIR // 100
    return Cost(
        cycles, tiles * (steps * loaded + m * n * work.out_bytes), waves, tiles * (steps * shared + stored)
    )


def candidates(fit: Callable[[Tile], C | None]) -> Iterator[tuple[Tile, C]]:
    """Every tile for which `fit` has a config (None: there is no legal one)."""
    for block_m in BLOCKS_M:
        for block_n in BLOCKS_N:
            for consumers, splits in WARPGROUPS:
                if block_m % (64 * consumers) == 0:
                    tile = Tile(block_m, block_n, consumers, splits)
                    config = fit(tile)
                    if config is not None:
                        yield tile, config


def choose(choices: Iterable[tuple[Tile, C]], work: Work, machine: Machine = Machine()) -> tuple[Tile, C]:
    """The cheapest of these, the first of equals. ValueError when there are none."""
    best: tuple[tuple[Cost, Tile], Tile, C] | None = None
    for tile, config in choices:
        rank = cost(work, tile, machine)
        if best is None or rank < best[0][0]:
            best = (rank, tile), tile, config
    if best is None:
        raise ValueError(f"choices: expected at least one legal config for {work}, got none")
    return best[1], best[2]


def choose_config(
    work: Work,
    num_sms: int,
    fit: Callable[[Tile], C | None],
    machine: Machine = Machine(),
    batch_invariant: bool = False,
) -> C:
    """The config whose tiles take `num_sms` SMs the least time, of all that are legal.

    Args:
        work: the product.
        num_sms: SMs to use; `machine` says the rest.
        fit: a Tile to a legal config of the kernel, or None where there is none.
        batch_invariant: only configs that sum k in one order, so that a row's bits do not depend on m. Those with one split are.

    The same arguments give the same config. ValueError when nothing is legal.
    """
    legal = candidates(fit)
    kept = (choice for choice in legal if not batch_invariant or choice[0].splits == 1)
    return choose(kept, work, replace(machine, sms=num_sms))[1]


def menu(
    fit: Callable[[Tile], C | None],
    work: Work,
    machine: Machine = Machine(),
    batch_invariant: bool = False,
    limit: int = MENU_LIMIT,
) -> Sequence[tuple[Tile, C]]:
    """At most `limit` configs, among which every m finds a good one: the best for some representative m. `work.m` is not looked at.

    So one n and k cost at most so many compilations, whatever m comes, and other n and k meet many of the same kernels; choosing takes microseconds.
    """
    legal = [choice for choice in candidates(fit) if not batch_invariant or choice[0].splits == 1]
    chosen: dict[Tile, C] = {}
    for m in REPRESENTATIVE_M:
        tile, config = choose(legal, replace(work, m=m), machine)
        chosen[tile] = config
        if len(chosen) == limit:
            break
    return tuple(chosen.items())
