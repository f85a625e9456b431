"""The time of a product under a config, predicted from what was measured once on a chip.

`python -m minigemm tune` times every tile of the library's kernels over a grid of products and fits the few
numbers of `Paces`. The model has one idea: CTAs take tiles in waves, and a wave lasts as long as its products
or its bytes, whichever is longer, with a share of the shorter.

- A tile takes `steps * pace + tile` nanoseconds, both measured per tile size; `steps` are k-blocks of 128.
  Rows of its boxes that lie outside a or b take `outside` each in a step: TMA is slower there than inside.
- Full waves move their share of the product's bytes at the chip's rate. The last wave has fewer tiles: it
  moves fewer bytes, and its tiles run a little faster (`alone`).
- Two that overlap take `longer + mixing * shorter ** 2 / longer`.
- A launch takes `start` nanoseconds more, another number for each kernel.

The numbers are floats, but a prediction uses only +, -, * and /, so that every machine ranks alike.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .. import hopper, store
from ..hopper import SMS
from ..kernels.library import Config, stage_of, stages_by_name
from ..layout import ceil_div
from ..types import Layout, Product

__all__ = [
    "Cost",
    "Machine",
    "Paces",
    "cost",
    "emulated",
    "expected_rows",
    "keep",
    "outside_of",
    "paces_of",
    "tile_name",
    "tiles_of",
    "wrong_raster",
]

STEP = 128  # columns of a and b in a k-block
SPREAD = 6  # half of a masked layout's groups have about a sixth more rows than expected
WRONG_RASTER = 1.05  # a dense product whose tiles are numbered along the other side takes so much longer
#: Up to so many rows of a dense product, tiles that read the same weights are numbered one after the other.
ROWS_FIRST = 512

PACES = Path(__file__).parent / "paces"  # a file for each chip that was measured
FORMAT = 2  # of a file in the cache; another one is made anew

_log = logging.getLogger("minigemm")


@dataclass(frozen=True, eq=False)
class Paces:
    """What was measured of a chip.

    Attributes:
        chip: the word by which the driver's name is recognized.
        measured_on: where the numbers are from, in words.
        rate: bytes per nanosecond of device memory, as the kernels reach it.
        alone: the share of its time that a tile saves where most SMs are idle.
        mixing: the share of the shorter of two overlapping times; see the module.
        outside: nanoseconds that a row of a box outside its tensor takes.
        again: the share of a group's weights that comes from memory once more for each further tile below.
        start: nanoseconds of a launch, by the kernel's name.
        pace, tile: nanoseconds of a k-block, and of a tile besides, by `tile_name`.
    """

    chip: str
    measured_on: str
    rate: float
    alone: float
    mixing: float
    outside: float
    again: float
    start: Mapping[str, float]
    pace: Mapping[str, float]
    tile: Mapping[str, float]

    @classmethod
    def read(cls, path: Path) -> Paces:
        """Return the paces in this file, as `bench.tune` wrote it."""
        return cls.of(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def of(cls, held: Mapping[str, Any]) -> Paces:
        """Return the paces that a JSON object holds. ValueError or KeyError where it holds none."""
        paces = cls(**{name: held[name] for name in cls.__dataclass_fields__})
        numbers = [paces.rate, paces.alone, paces.mixing, paces.outside, paces.again]
        for each in (paces.start, paces.pace, paces.tile):
            numbers += each.values()
        if not all(isinstance(number, (int, float)) and 0 <= number < 1e9 for number in numbers):
            raise ValueError("expected numbers from 0 to 1e9")
        if not paces.rate or set(paces.pace) != set(paces.tile) or set(paces.start) != set(stages_by_name()):
            raise ValueError("expected a rate, and numbers for the same tiles and for both kernels")
        return paces


class Machine(NamedTuple):
    """A chip, and how many of its SMs are used."""

    paces: Paces
    sms: int = SMS


class Cost(NamedTuple):
    """The model's answer; a comparison ranks by time first. All zero where there is nothing to compute.

    Attributes:
        ns: nanoseconds of the launch.
        tiles, waves: how many there are.
        computing, moving: nanoseconds of the products alone, and of the bytes alone.
    """

    ns: float
    tiles: int
    waves: int
    computing: float
    moving: float


def tile_name(config: Config) -> str:
    """Return the name under which a config's tile was measured, "s11_overlapped 64x128"."""
    return f"{stage_of(config).name} {config.block_m}x{config.block_n}"


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


def cost(product: Product, config: Config, machine: Machine) -> Cost:
    """Return the model's figures for the whole product."""
    tiles = tiles_of(product, config)
    if tiles <= 0 or product.k <= 0:
        return Cost(0, 0, 0, 0, 0)
    (paces, sms), name = machine, tile_name(config)
    full = (tiles - 1) // sms
    last = tiles - full * sms

    # The products of a tile, and the bytes of them all.
    steps = ceil_div(product.k, STEP)
    below, beside = outside_of(product, config)
    tile = steps * (paces.pace[name] + paces.outside * below) + paces.tile[name]
    moving = _bytes(product, config, tiles, paces.again) / paces.rate
    in_last = tile * (1 - paces.alone * (sms - last) / sms) + steps * paces.outside * beside

    # Wave after wave.
    ns = paces.start[stage_of(config).name] + _overlapped(in_last, moving * last / tiles, paces.mixing)
    if full:
        ns += _overlapped(full * tile, moving * full * sms / tiles, paces.mixing)
    if product.layout == Layout.DENSE and product.m > config.block_m and wrong_raster(product, config):
        ns *= WRONG_RASTER
    return Cost(ns, tiles, full + 1, full * tile + in_last, moving)


def outside_of(product: Product, config: Config) -> tuple[int, int]:
    """Return how many rows of a box lie outside a in all tiles, and outside b in those of the last columns.

    A dense product's last tiles begin early enough to end at m, unless m is less than a tile.
    """
    below = max(config.block_m - product.m, 0) if product.layout == Layout.DENSE else 0
    return below, ceil_div(product.n, config.block_n) * config.block_n - product.n


def wrong_raster(product: Product, config: Config) -> bool:
    """Return whether tiles are numbered along the side that takes longer.

    Rows come first in a dense product of few rows, and columns in all others.
    """
    return config.raster_m != (product.layout == Layout.DENSE and product.m <= ROWS_FIRST)


def _bytes(product: Product, config: Config, tiles: int, again: float) -> float:
    """Return the bytes of a, the weights that rows meet, what is read of them once more, and d."""
    rows = expected_rows(product) * (product.groups if product.layout == Layout.MASKED else 1)
    groups = 1 if product.layout == Layout.DENSE else min(product.groups, max(rows, 1))
    weights = groups * product.n * product.k
    once_more = 0.0
    if product.layout == Layout.MASKED:
        below = tiles / (groups * ceil_div(product.n, config.block_n)) - 1
        once_more = again * weights * max(below, 0.0)
    return rows * product.k + weights + once_more + rows * product.n * (4 if product.out_fp32 else 2)


def _overlapped(one: float, other: float, mixing: float) -> float:
    longer, shorter = max(one, other), min(one, other)
    return longer + mixing * shorter * shorter / longer


# --- chips


@functools.cache
def _measured() -> tuple[Paces, ...]:
    """Return the paces of all chips that were measured."""
    return tuple(Paces.read(path) for path in sorted(PACES.glob("*.json")))


@functools.cache
def paces_of(gpu: str) -> Paces:
    """Return the paces of a GPU by its driver's name.

    Those that `python -m minigemm tune` measured on this GPU come first, then the shipped ones. A chip that
    was not measured gets those of the H200 with its own memory's rate, by the datasheets. The log says so
    once.
    """
    if (own := _kept(gpu)) is not None:
        return own
    measured = {paces.chip: paces for paces in _measured()}
    chip = hopper.chip_of(gpu)
    if (word := chip.name.split()[0]) in measured and word in gpu:
        return measured[word]
    nearest = measured["H200"]
    told = (
        f"no paces were measured on {gpu}: those of {nearest.measured_on}, with the memory of {chip.source}"
    )
    _log.info("%s; `python -m minigemm tune` measures them", told)
    rate = nearest.rate * chip.bandwidth / hopper.H200.bandwidth
    return replace(nearest, chip=word, measured_on=told, rate=rate)


def keep(results: Mapping[str, Any]) -> None:
    """Keep the paces that were measured on a GPU in the cache, and use them from now on."""
    fields = {key: value for key, value in results.items() if key != "rows"}
    data = json.dumps({"format": FORMAT, **fields}).encode()
    store.update(_entry(results["machine"]["gpu"]), lambda earlier: data)
    paces_of.cache_clear()


def _entry(gpu: str) -> str:
    """Return the name of the cache entry of a GPU's paces."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', gpu)}.paces"


def _kept(gpu: str) -> Paces | None:
    """Return the paces that `keep` kept of this GPU. An entry of no use is passed over with a warning."""
    if (data := store.read(_entry(gpu))) is None:
        return None
    try:
        held = json.loads(data)
        if held["format"] != FORMAT:
            raise ValueError(f"format {held['format']}, expected {FORMAT}")
        if held["machine"]["gpu"] != gpu:
            raise ValueError(f"made on {held['machine']['gpu']}")
        return Paces.of(held)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the cache entry {_entry(gpu)} is passed over: {error!r}; tune makes it anew"
        warnings.warn(f"minigemm: {what}", stacklevel=2)
        return None


def emulated() -> Machine:
    """Return the machine that the emulator stands for: an H100 SXM."""
    return Machine(paces_of("NVIDIA H100 SXM (emulated)"))
