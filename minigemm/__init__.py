"""FP8 GEMMs for Hopper GPUs, built stage by stage, and an emulator that runs the same kernels without one.

Importing minigemm costs next to nothing: the public names below arrive when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import emulator, kernels, quantize
    from .inspection import inspect
    from .runtime.emulated import observe

__version__ = "0.1.0"
__all__ = ["__version__", "emulator", "inspect", "kernels", "observe", "quantize"]

_SUBMODULES = {"emulator", "kernels", "quantize"}
_HOMES = {"inspect": "minigemm.inspection", "observe": "minigemm.runtime.emulated"}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
