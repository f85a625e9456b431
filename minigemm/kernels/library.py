"""The library's kernels: s11_overlapped for many rows, s12_swapped for few.

Both have the same parameters, layouts and bits, so a call may run either; their configs say which.
"""

from __future__ import annotations

from typing import Any

from ..types import Legality, Product
from . import s11_overlapped, s12_swapped
from .grouped import LibraryConfig
from .stage import Stage

__all__ = ["CONFIGS", "Config", "is_legal", "stage_of", "stages_by_name"]

Config = LibraryConfig
CONFIGS: tuple[type[Config], ...] = (s11_overlapped.Config, s12_swapped.Config)

_STAGES: dict[type[Config], Stage[Any]] = {
    s11_overlapped.Config: s11_overlapped.stage,
    s12_swapped.Config: s12_swapped.stage,
}


def stage_of(config: Config) -> Stage[Any]:
    """Return the stage that this config is of."""
    return _STAGES[type(config)]


def stages_by_name() -> dict[str, Stage[Any]]:
    """Return the library's stages by their names."""
    return {stage.name: stage for stage in _STAGES.values()}


def is_legal(config: Config, product: Product) -> Legality:
    """Return whether this config can run this product, and if not, why. m counts the rows of all groups."""
    return stage_of(config).is_legal(config, product)
