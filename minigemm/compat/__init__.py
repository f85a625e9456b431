"""Other libraries' names for minigemm's calls, for code written against them: `minigemm.compat.deep_gemm`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigemm.compat import deep_gemm

__all__ = ["deep_gemm"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
