"""From a product to a config: the settings, the candidates, and a short menu for each n and k.

Three steps lead to a config, and each remembers its answers:

1. `candidates` are the tiles of both kernels that were measured, each with as many stages as fit: some 50
   configs.
2. `menu` keeps at most 12 of them for one n and k: those that together lose least over representative m. So
   one n and k cost at most 12 compilations whatever m comes, other n and k meet many of the same kernels, and
   choosing takes microseconds.
3. `config_for` takes the quickest of the menu for this m, by the prediction of `cost`. All m of one step
   (`m_step`) get the same config.

A product that `minigemm.autotune` has measured on this GPU gets its winner instead (`tuned`).

The settings are those that the library's setters change. They hold for all threads, from the next call on.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .. import checks, hopper
from ..kernels import s11_overlapped, s12_swapped
from ..kernels.library import CONFIGS, Config, is_legal
from ..layout import round_up
from ..types import Layout, Product
from . import tuned
from .cost import Cost, Machine, cost, emulated, expected_rows, paces_of, tile_name

__all__ = [
    "Settings",
    "bound",
    "candidates",
    "change",
    "cheapest",
    "clear",
    "config_for",
    "configs_for",
    "floor",
    "key_of",
    "m_step",
    "machine_of",
    "menu",
    "predicted",
    "ranked",
    "settings",
    "sms_of",
    "suited",
    "winner_for",
]

#: Columns of the tiles of s11, by their rows; a tile of 128 and of 256 rows has 2 consumers, of 192 rows 3.
OVERLAPPED = {
    64: (16, 32, 48, 64, 80, 96, 112, 128),
    128: (64, 96, 128, 160, 192),
    192: (64, 96, 128),
    256: (64, 96, 128),
}
#: Rows of the tiles of s12, by their columns.
SWAPPED = {64: (8, 16, 24, 32, 40, 48, 56, 64), 128: (8, 16, 32)}
BLOCKS = 4  # k-blocks in a slot of s12
MOST_STAGES = 16  # of a ring; beyond, more in flight brings nothing
MENU_LIMIT = 12  # configs for one n and k, whatever m comes
REPRESENTATIVE_M = (
    1, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192,
)  # fmt: skip


# --- settings


class Settings(NamedTuple):
    """The library's settings.

    Attributes:
        num_sms: SMs to use, None for all of the device.
        batch_invariant: remembered for `get_batch_invariant`: every config sums k in one order.
        alignment: groups of a contiguous layout begin at multiples of this number of rows.
        pdl: launches may begin while the kernel before still runs.
        early_weights: such a launch loads weights before that kernel has ended.
        tuned: another number after each new winner of autotune, so that earlier choices do not stay.
    """

    num_sms: int | None = None
    batch_invariant: bool = False
    alignment: int = 128
    pdl: bool = False
    early_weights: bool = False
    tuned: int = 0


_settings = Settings()
_lock = threading.Lock()


def settings() -> Settings:
    """Return the present settings."""
    return _settings


def change(**values: Any) -> None:
    """Change some settings, from the next choice on.

    `prepared.change` also forgets launches made under the old ones.
    """
    global _settings
    with _lock:
        _settings = _settings._replace(**values)


@functools.cache
def machine_of(device: torch.device) -> Machine:
    """Return what was measured of a GPU, or for the CPU of the chip that the emulator stands for."""
    if device.type != "cuda":
        return emulated()
    properties = torch.cuda.get_device_properties(device)
    return Machine(paces_of(properties.name), properties.multi_processor_count)


def sms_of(device: torch.device) -> int:
    """Return how many SMs calls on this device use: as set, but no more than it has."""
    return _usable(device, _settings).sms


def _usable(device: torch.device, under: Settings) -> Machine:
    whole = machine_of(device)
    return whole if under.num_sms is None else whole._replace(sms=min(under.num_sms, whole.sms))


def m_step(m: int) -> int:
    """Return the rows in whose multiples m is counted: some tiles of few rows have 8, all others have 64."""
    return 8 if m <= s12_swapped.MOST_ROWS else 64


# --- choosing


@functools.cache
def candidates() -> tuple[Config, ...]:
    """Return a config for every tile that was measured, with as many stages as fit.

    The tiles of s11 come twice: with columns of tiles numbered first, and with rows.
    """
    anything = Product(1, 1, 128)

    def deepest(config: Config) -> Config:
        deeper = (replace(config, stages=stages) for stages in range(MOST_STAGES, 1, -1))
        return next(config for config in deeper if is_legal(config, anything))

    def found() -> Iterator[Config]:
        for rows, sides in OVERLAPPED.items():
            for columns in sides:
                consumers = {64: 1, 192: 3}.get(rows, 2)
                config = deepest(s11_overlapped.Config(rows, columns, 2, consumers))
                yield from (config, replace(config, raster=8, raster_m=True))
        for columns, heights in SWAPPED.items():
            for rows in heights:
                yield deepest(s12_swapped.Config(rows, columns, 2, columns // 64, blocks=BLOCKS))

    return tuple(found())


def predicted(product: Product, config: Config, machine: Machine) -> Cost:
    """Return the model's figures. A config that the product never gets takes for ever.

    That is s12_swapped for more than 64 rows of a DENSE product: its launches are refitted to any m of a step
    (`m_step`), and the number of tiles must stay.
    """
    found = cost(product, config, machine)
    many = product.layout == Layout.DENSE and product.m > s12_swapped.MOST_ROWS
    return found._replace(ns=math.inf) if many and isinstance(config, s12_swapped.Config) else found


def cheapest(configs: Iterable[Config], product: Product, machine: Machine) -> Config:
    """Return the config that takes least time, the first of equals. ValueError where there is none."""
    found = min(configs, key=lambda config: predicted(product, config, machine), default=None)
    if found is None:
        raise ValueError(f"configs: expected at least one legal config for {product}, got none")
    return found


@functools.lru_cache(maxsize=1024)
def menu(product: Product, machine: Machine) -> tuple[Config, ...]:
    """Return at most MENU_LIMIT configs, among which every m finds a good one.

    Each config that is taken is the one that lowers the sum of what is lost most: over all representative m,
    the time with the menu over the time with any config.

    Args:
        product: its own m is not looked at.
        machine: the chip, and its SMs in use.
    """
    products = [product._replace(m=m, expected_m=0) for m in REPRESENTATIVE_M]
    timed = [config for config in candidates() if tile_name(config) in machine.paces.pace]
    able = [config for config in timed if is_legal(config, product._replace(m=1))]
    # a grouped layout numbers columns of tiles first
    if product.layout != Layout.DENSE:
        able = [config for config in able if not config.raster_m]
    times = [[predicted(each, config, machine).ns for each in products] for config in able]
    best = [max(min(column), 1e-9) for column in zip(*times, strict=True)]
    lost = [[time / least for time, least in zip(row, best, strict=True)] for row in times]

    chosen: list[int] = []
    held = [float("inf")] * len(products)
    while len(chosen) < MENU_LIMIT:
        sums = [sum(map(min, row, held)) for row in lost]
        number = min(range(len(able)), key=sums.__getitem__)
        if chosen and sums[number] >= sum(held):
            break
        chosen.append(number)
        held = list(map(min, lost[number], held))
    return tuple(able[number] for number in chosen)


def _menu(product: Product, machine: Machine) -> tuple[Config, ...]:
    return menu(product._replace(m=0, expected_m=0, zero_padding=True), machine)


@functools.lru_cache(maxsize=4096)
def _config_for(product: Product, device: torch.device, under: Settings) -> Config:
    won = _legal(product, tuned.winner(device, _key(product, device, under)))
    if won is not None:
        return won.config
    machine = _usable(device, under)
    chosen = cheapest(_menu(product, machine), product, machine)
    return suited(product, replace(chosen, ctas=machine.sms))


def _whole(product: Product) -> Product:
    """Return the product with its rows rounded up to whole steps."""
    m, expected = product.m, product.expected_m
    return product._replace(m=round_up(m, m_step(m)), expected_m=round_up(expected, m_step(expected)))


def config_for(product: Product, device: torch.device) -> Config:
    """Return the config of a product on this device under the present settings, the same for a step of m."""
    return _config_for(_whole(product), device, _settings)


def configs_for(product: Product, device: torch.device) -> list[Config]:
    """Return the configs that a product may get on this device under the present settings, whatever its m."""
    winners = (_legal(product, won) for won in tuned.winners(device, _key(product, device, _settings)))
    won = [each.config for each in winners if each is not None]
    return list(dict.fromkeys([*_on_menu(product, _usable(device, _settings)), *won]))


def _on_menu(product: Product, machine: Machine) -> list[Config]:
    return [suited(product, replace(each, ctas=machine.sms)) for each in _menu(product, machine)]


def ranked(product: Product, device: torch.device) -> list[tuple[Config, float]]:
    """Return the configs of the menu with the predicted microseconds of each, cheapest first."""
    machine, whole = _usable(device, _settings), _whole(product)
    costs = [(config, predicted(whole, config, machine)) for config in _on_menu(product, machine)]
    able = [(config, found.ns / 1e3) for config, found in costs if found.ns < math.inf]
    return sorted(able, key=lambda pair: pair[1])


def floor(product: Product, device: torch.device) -> float:
    """Return the least microseconds by the datasheet: for the bytes moved once, or for the operations."""
    return max(_floors(product, device))


def bound(product: Product, device: torch.device) -> str:
    """Return what the floor counts, "bytes" or "operations"."""
    moving, computing = _floors(product, device)
    return "bytes" if moving > computing else "operations"


def _floors(product: Product, device: torch.device) -> tuple[float, float]:
    """Return the least microseconds for the bytes, and for the operations."""
    chip = hopper.chip_of(torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    rows = expected_rows(product) * (product.groups if product.layout == Layout.MASKED else 1)
    written = rows * product.n * (4 if product.out_fp32 else 2) * (2 if product.accumulate else 1)
    moved = product.k * (rows + product.groups * product.n) + written  # bytes
    return 1e6 * moved / chip.bandwidth, 1e6 * 2 * rows * product.n * product.k / chip.fp8


def suited(product: Product, config: Config) -> Config:
    """Return the config with the fields that the product decides.

    TypeError or ValueError where the config cannot run the product.
    """
    checks.check_config(config, CONFIGS, "s11_overlapped or s12_swapped")
    out_fp32, accumulate, layout = product.out_fp32, product.accumulate, int(product.layout)
    config = replace(config, out_fp32=out_fp32, accumulate=accumulate, layout=layout)
    if not (legal := is_legal(config, Product(product.rows, product.n, product.k))):
        raise ValueError(f"config: {legal.reason}")
    return config


# --- winners


def winner_for(product: Product, device: torch.device) -> tuned.Winner | None:
    """Return the winner that the product gets on this device under the present settings, if there is one."""
    whole = _whole(product)
    return _legal(whole, tuned.winner(device, _key(whole, device, _settings)))


def key_of(product: Product, device: torch.device) -> tuned.Key:
    """Return the key of the product's winner on this device under the present settings."""
    return _key(_whole(product), device, _settings)


def _key(product: Product, device: torch.device, under: Settings) -> tuned.Key:
    """Return the key of a product whose rows are whole steps. It leaves out what does not change the time."""
    aligned = product.layout in (Layout.CONTIGUOUS, Layout.PREFIX_SUMS)
    return tuned.Key(
        int(product.layout),
        product.groups,
        expected_rows(product),
        product.n,
        product.k,
        product.alignment if aligned else 0,
        product.out_fp32,
        product.accumulate,
        _usable(device, under).sms,
    )


def _legal(product: Product, won: tuned.Winner | None) -> tuned.Winner | None:
    """Return the winner with the fields that the product decides; None, and a warning, if it cannot run."""
    if won is None:
        return None
    try:
        return won._replace(config=suited(product, won.config))
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        warnings.warn(f"minigemm: a winner of autotune is left out: {error}", stacklevel=2)
        return None


def clear() -> None:
    """Forget all choices."""
    tuned.clear()
    for remembered in (machine_of, candidates, menu, _config_for):
        remembered.cache_clear()
