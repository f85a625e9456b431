"""Which configs can run which products: the limits of tiles, registers, shared memory and grids.

Each check returns one sentence that says why a config cannot run, or "" when it can; `Legality` holds the
first sentence of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from itertools import combinations
from itertools import product as cartesian
from math import gcd
from typing import Any, TypeVar

from ..hopper import GRID_LIMIT, REGISTER_LIMIT, SHARED_LIMIT, SM_REGISTERS, THREAD_LIMIT
from ..layout import ceil_div, round_up
from ..quantize import BLOCK
from ..types import Config, Layout, Legality, Product
from .tile import PromotedConfig, RingConfig

__all__ = [
    "check_grid",
    "check_layout",
    "check_persistent",
    "check_promoted",
    "check_registers",
    "check_ring",
    "check_roles",
    "check_schedule",
    "check_shared",
    "check_tensor_core_tile",
    "check_tiles",
    "nearest_legal",
]

C = TypeVar("C", bound=Config)
TILE_LIMIT = 1 << 30  # tiles of a persistent kernel: the number after a CTA's last tile stays below 2**31 too


# --- tiles


def check_tiles(block: tuple[int, int], thread: tuple[int, int], shared: int, registers: int) -> str:
    """Check a tile of `block` (m, n) outputs; a thread computes `thread` (m, n) of them in `registers`."""
    for sizes, name in ((block, "block"), (thread, "thread")):
        for size, axis in zip(sizes, "mn", strict=True):
            if size < 1:
                return f"{name}_{axis} must be at least 1, got {size}"
    for size, part, axis in zip(block, thread, "mn", strict=True):
        if size % part:
            return f"block_{axis} = {size} must be a multiple of thread_{axis} = {part}"

    across, down = block[1] // thread[1], block[0] // thread[0]
    if thread != (1, 1) and (down % 4 or across % 8):
        return (
            f"{down} x {across} threads do not make whole warps of 4 x 8: "
            "block_m must be a multiple of 4 * thread_m, block_n of 8 * thread_n"
        )
    threads = across * down
    if threads > THREAD_LIMIT:
        return (
            f"{threads} threads exceed the {THREAD_LIMIT} of a CTA: "
            "take larger thread_m or thread_n, or smaller blocks"
        )
    if too_much := check_shared(shared, "smaller blocks"):
        return too_much

    # Warps get their registers four warps at a time.
    limit = min(REGISTER_LIMIT, SM_REGISTERS // round_up(threads, 128))
    if registers > limit:
        return (
            f"about {registers} registers a thread exceed the {limit} that {threads} threads can have: "
            "take a smaller thread_m or thread_n"
        )
    return ""


def check_tensor_core_tile(block_m: int, block_n: int, step_n: int, step_m: int = 64) -> str:
    """Check a tile for instructions of 64 rows: its sides are multiples of step_m and step_n up to 256."""
    if not (0 < block_m <= 256) or block_m % step_m:
        return f"block_m must be a multiple of {step_m} up to 256 (the side of a TMA box), got {block_m}"
    if not (0 < block_n <= 256) or block_n % step_n:
        return f"block_n must be a multiple of {step_n} from {step_n} to 256, got {block_n}"
    return ""


def check_roles(config: RingConfig) -> str:
    """Check that a ring has two slots, and that its consumers are as many as there are registers for."""
    if config.consumers not in config.REGISTERS:
        return f"consumers must be 1, 2 or 3, got {config.consumers}"
    if config.stages < 2:
        return f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
    return ""


def check_layout(layout: int) -> str:
    """Check the layout of a grouped kernel."""
    if layout not in tuple(Layout):
        return f"layout must be one of 0 to 3, DENSE to MASKED, got {layout}"
    return ""


def check_ring(config: RingConfig, registers: int) -> str:
    """Check the tile, the shared memory, and the accumulators of consumers with `registers` per thread."""
    return _check_consumer_tile(config) or _check_resources(config, registers)


def check_promoted(config: PromotedConfig, registers: int) -> str:
    """Check what `check_ring` does, and that no tile needs three scales of b along n."""
    if tile := _check_consumer_tile(config):
        return tile
    if config.block_n > BLOCK + gcd(config.block_n, BLOCK):
        return (
            "block_n must be at most 128, or 144, 160 or 192, so that no tile needs three scales of b, "
            f"got {config.block_n}"
        )
    return _check_resources(config, registers)


def _check_consumer_tile(config: RingConfig) -> str:
    tile = check_tensor_core_tile(config.block_m, config.block_n, 16, 64 * config.consumers)
    if not tile and config.rows > 128:
        return f"a consumer can have 64 or 128 rows, got block_m / consumers = {config.rows}"
    return tile


def _check_resources(config: RingConfig, registers: int) -> str:
    return (
        check_shared(config.shared_bytes, "fewer stages or smaller blocks")
        or check_registers(config.accumulators + 32, config.threads, registers)
        # The registers that one instruction names must be there at launch, before setmaxnreg brings more.
        or check_registers(config.block_n // 2 + 28, config.threads)
    )


def check_persistent(config: Any, product: Product) -> str:
    """Check a kernel whose CTAs walk over many tiles: its roles, its tile, and the walk."""
    return (
        check_roles(config)
        or check_promoted(config, config.registers[1])
        or check_schedule(product.m, product.n, config.block_m, config.block_n, config.ctas, config.raster)
    )


# --- resources


def check_registers(registers: int, threads: int, limit: int | None = None) -> str:
    """Check the registers of a thread against `limit`.

    Without a limit, it is the thread's equal share where a CTA of `threads` has all registers of an SM.
    """
    limit = limit or min(REGISTER_LIMIT, SM_REGISTERS // threads // 8 * 8)
    if registers > limit:
        return (
            f"about {registers} registers a thread exceed the {limit} that they can have: "
            "take smaller blocks, or more warpgroups"
        )
    return ""


def check_shared(shared: int, advice: str) -> str:
    """Check the bytes of shared memory of a CTA; `advice` says what to take instead."""
    if shared > SHARED_LIMIT:
        return f"{shared} bytes of shared memory exceed the {SHARED_LIMIT} of a CTA: take {advice}"
    return ""


def check_grid(m: int, n: int, block_m: int, block_n: int) -> str:
    """Check a grid with a CTA for each tile: rows of tiles along x, columns along y."""
    if (columns := ceil_div(n, block_n)) > GRID_LIMIT:
        return f"n = {n} needs {columns} columns of tiles, more than the {GRID_LIMIT} of a grid: take a larger block_n"
    return ""


def check_schedule(m: int, n: int, block_m: int, block_n: int, ctas: int, raster: int) -> str:
    """Check the walk of a persistent kernel over the tiles of d (m, n)."""
    if ctas < 0:
        return f"ctas must be at least 0, which is one for each SM, got {ctas}"
    if raster < 1:
        return f"raster must be at least 1, got {raster}"
    if (tiles := ceil_div(m, block_m) * ceil_div(n, block_n)) > TILE_LIMIT:
        return f"m = {m} and n = {n} make {tiles} tiles, more than 2**30: take larger blocks"
    return ""


# --- the nearest legal config


def nearest_legal(is_legal: Callable[[C, Product], Legality], config: C, product: Product) -> C | None:
    """Return the legal config that differs from this one in the fewest fields, and in these least.

    Returns None where a change of two fields is not enough.
    """
    names = [field.name for field in fields(config)]
    for count in (1, 2):
        near = []
        for chosen in combinations(names, count):
            own = [getattr(config, name) for name in chosen]
            for values in cartesian(*(_neighbours(value) for value in own)):
                candidate = replace(config, **dict(zip(chosen, values, strict=True)))
                if is_legal(candidate, product):
                    apart = sum(_distance(*pair) for pair in zip(own, values, strict=True))
                    near.append((apart, candidate))
        if near:
            return min(near, key=lambda pair: pair[0])[1]
    return None


def _neighbours(value: int) -> Iterator[int]:
    """Yield other values that a field could have."""
    if isinstance(value, bool):
        return iter((not value,))
    return (other for other in (*range(1, 8), *range(8, 257, 8)) if other != value)


def _distance(value: int, other: int) -> float:
    """Return how far apart two values are, as a share of the larger one."""
    return abs(value - other) / max(abs(value), abs(other), 1)
