"""From a product to a config: the settings, the candidates, and a short menu for each n and k.

Three steps lead to a config, and each remembers its answers:

1. `candidates` are the tiles that the kernel can have at all, each with as many stages as fit: some 80
   configs.
2. `menu` keeps at most 12 of them for one n and k: the cheapest for some representative m. So one n and k
   cost at most 12 compilations whatever m comes, other n and k meet many of the same kernels, and choosing
   takes microseconds.
3. `config_for` takes the cheapest of the menu for this m. All m with the same ceil(m / 64) get the same
   config, because every tile has a multiple of 64 rows.

A product that `minigemm.autotune` has measured on this GPU gets its winner instead (`tuned`).

The settings are those that the library's setters change. They hold for all threads, from the next call on.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from .. import checks, hopper
from ..kernels import s10_grouped
from ..kernels.s10_grouped import Config
from ..layout import round_up
from ..types import Layout, Product
from . import tuned
from .cost import H100_RATES, Machine, cost, expected_rows

__all__ = [
    "M_STEP",
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
    "machine_of",
    "menu",
    "ranked",
    "settings",
    "sms_of",
    "source_of",
    "suited",
    "winner_for",
]

M_STEP = 64  # rows; every tile has a multiple of it
BLOCKS_M = (64, 128, 192, 256)
BLOCKS_N = (16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 192)
WARPGROUPS = ((1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 4))  # consumers, splits
MOST_STAGES = 16  # of a ring; beyond, more in flight brings nothing
MENU_LIMIT = 12  # configs for one n and k, whatever m comes
# in order of importance: a menu keeps the first MENU_LIMIT different winners
REPRESENTATIVE_M = (64, 8192, 128, 4096, 256, 2048, 512, 1024, 16384, 192, 384, 768, 1536, 3072, 6144)


# --- settings


class Settings(NamedTuple):
    """The library's settings.

    Attributes:
        num_sms: SMs to use, None for all of the device.
        batch_invariant: only configs that sum k in one order.
        alignment: groups of a contiguous layout begin at multiples of this number of rows.
        tuned: another number after each new winner of autotune, so that earlier choices do not stay.
    """

    num_sms: int | None = None
    batch_invariant: bool = False
    alignment: int = 128
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
    """Return the rates of a GPU; for the CPU those of an H100, which the emulator stands for."""
    if device.type != "cuda":
        return H100_RATES
    properties = torch.cuda.get_device_properties(device)
    # a copy reaches 90 % of the datasheet's bytes per second
    copied = hopper.chip_of(properties.name).bandwidth * 0.9
    return Machine(properties.multi_processor_count, memory_rate=int(copied / hopper.CLOCK_HZ))


def sms_of(device: torch.device) -> int:
    """Return how many SMs calls on this device use: as set, but no more than it has."""
    return _usable(device, _settings).sms


def _usable(device: torch.device, under: Settings) -> Machine:
    whole = machine_of(device)
    return whole if under.num_sms is None else replace(whole, sms=min(under.num_sms, whole.sms))


# --- choosing


@functools.cache
def candidates() -> tuple[Config, ...]:
    """Return a config for every tile that the kernel can have, with as many stages as fit."""

    anything = Product(1, 1, 16)

    def found() -> Iterator[Config]:
        for block_m in BLOCKS_M:
            for block_n in BLOCKS_N:
                for consumers, splits in WARPGROUPS:
                    counts = range(max(splits, 2), MOST_STAGES + 1, splits)
                    configs = (Config(block_m, block_n, stages, consumers, splits) for stages in counts)
                    # where some number of stages does not fit, no larger one does
                    fitting = takewhile(lambda config: s10_grouped.is_legal(config, anything), configs)
                    yield from [*fitting][-1:]

    return tuple(found())


def cheapest(configs: Iterable[Config], product: Product, machine: Machine = H100_RATES) -> Config:
    """Return the config that costs least, the first of equals. ValueError where there is none."""
    found = min(configs, key=lambda config: cost(product, config, machine), default=None)
    if found is None:
        raise ValueError(f"configs: expected at least one legal config for {product}, got none")
    return found


@functools.lru_cache(maxsize=1024)
def menu(
    product: Product, machine: Machine = H100_RATES, batch_invariant: bool = False
) -> tuple[Config, ...]:
    """Return at most MENU_LIMIT configs, among which every m finds a good one.

    Args:
        product: its own m is not looked at.
        machine: the rates of the GPU.
        batch_invariant: only configs that sum k in one order, those with one split. The bits of a row then do
            not depend on m.
    """
    legal = [config for config in candidates() if config.splits == 1 or not batch_invariant]
    best = (cheapest(legal, product._replace(m=m, expected_m=0), machine) for m in REPRESENTATIVE_M)
    return tuple(dict.fromkeys(best))[:MENU_LIMIT]


def _menu(product: Product, machine: Machine, under: Settings) -> tuple[Config, ...]:
    return menu(product._replace(m=0, expected_m=0), machine, under.batch_invariant)


@functools.lru_cache(maxsize=4096)
def _config_for(product: Product, device: torch.device, under: Settings) -> Config:
    won = _legal(product, tuned.winner(device, _key(product, device, under)))
    if won is not None:
        return won.config
    machine = _usable(device, under)
    chosen = cheapest(_menu(product, machine, under), product, machine)
    return suited(product, replace(chosen, ctas=machine.sms))


def config_for(product: Product, device: torch.device) -> Config:
    """Return the config of a product on this device under the present settings.

    It is the same for all m with the same ceil(m / 64).
    """
    return _config_for(_rounded(product), device, _settings)


def configs_for(product: Product, device: torch.device) -> list[Config]:
    """Return the configs that a product may get on this device under the present settings, whatever its m."""
    machine = _usable(device, _settings)
    menu = [suited(product, replace(each, ctas=machine.sms)) for each in _menu(product, machine, _settings)]
    winners = (_legal(product, won) for won in tuned.winners(device, _key(product, device, _settings)))
    return list(dict.fromkeys([*menu, *(won.config for won in winners if won is not None)]))


def _rounded(product: Product) -> Product:
    return product._replace(m=round_up(product.m, M_STEP), expected_m=round_up(product.expected_m, M_STEP))


def suited(product: Product, config: Config) -> Config:
    """Return the config with the fields that the product decides.

    TypeError or ValueError where the config cannot run the product.
    """
    checks.check_config(config, Config, s10_grouped.stage.name)
    out_fp32, accumulate, layout = product.out_fp32, product.accumulate, product.layout
    config = replace(config, out_fp32=out_fp32, accumulate=accumulate, layout=layout)
    if not (legal := s10_grouped.is_legal(config, Product(product.rows, product.n, product.k))):
        raise ValueError(f"config: {legal.reason}")
    return config


# --- what is predicted, and what was measured


def ranked(product: Product, device: torch.device) -> list[tuple[Config, float]]:
    """Return the configs of the menu, each with its predicted microseconds, the cheapest first."""
    machine, whole = _usable(device, _settings), _rounded(product)
    costs = [(each, cost(whole, each, machine)) for each in _menu(whole, machine, _settings)]
    costs.sort(key=lambda pair: pair[1])
    return [
        (suited(product, replace(each, ctas=machine.sms)), found.cycles / hopper.CLOCK_HZ * 1e6)
        for each, found in costs
    ]


def floor(product: Product, device: torch.device) -> float:
    """Return the least microseconds by the datasheet: for the bytes moved once, or for the operations."""
    return max(_floors(product, device))


def bound(product: Product, device: torch.device) -> str:
    """Return what the floor counts, "bytes" or "operations"."""
    moving, computing = _floors(product, device)
    return "bytes" if moving > computing else "operations"


def _floors(product: Product, device: torch.device) -> tuple[float, float]:
    """Return the least microseconds for the bytes, and for the operations."""
    chip, masked = _chip_of(device), product.layout == Layout.MASKED
    rows = expected_rows(product) * (product.groups if masked else 1)
    written = rows * product.n * (4 if product.out_fp32 else 2) * (2 if product.accumulate else 1)
    moved = product.k * (rows + product.groups * product.n) + written  # bytes
    return 1e6 * moved / chip.bandwidth, 1e6 * 2 * rows * product.n * product.k / chip.fp8


def source_of(device: torch.device) -> str:
    """Return the words for what predictions on this device come from."""
    return f"the cost model, with the memory of an {_chip_of(device).name}"


def _chip_of(device: torch.device) -> hopper.Chip:
    return hopper.chip_of(torch.cuda.get_device_name(device) if device.type == "cuda" else "")


def winner_for(product: Product, device: torch.device) -> tuned.Winner | None:
    """Return the winner that the product gets on this device under the present settings, if there is one."""
    whole = _rounded(product)
    return _legal(whole, tuned.winner(device, _key(whole, device, _settings)))


def key_of(product: Product, device: torch.device) -> tuned.Key:
    """Return the key of the product's winner on this device under the present settings."""
    return _key(_rounded(product), device, _settings)


def _key(product: Product, device: torch.device, under: Settings) -> tuned.Key:
    """Return the key of a product whose rows are rounded. It leaves out what does not change the time."""
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
        under.batch_invariant,
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
