"""The stages: from a naive kernel to the library's own, each a `.cu` file beside the `.py` that launches it.

    from minigemm.kernels import s03_tma
    d = s03_tma.gemm(a, b)          # two tensors from minigemm.quantize.quantize(x, "tensor"), on a CPU or a Hopper GPU

Up to s06_warp_specialized a tensor has one scale; from s07_promoted on, a has "1x128" scales and b "128x128".
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType

__all__ = ["stage_named", "stages"]

_NAME = re.compile(r"s\d\d_\w+")


@cache
def stages() -> tuple[ModuleType, ...]:
    """Every stage's module, in the order of the course: those whose two files lie in this folder."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("s*.cu") if _NAME.fullmatch(path.stem))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def stage_named(name: str) -> ModuleType:
    """The module of one stage, by its full name ("s03_tma") or its number ("s03", "3"). ValueError when there is none."""
    for module in stages():
        own = module.__name__.rpartition(".")[2]
        if name in (own, own[:3], str(int(own[1:3]))):
            return module
    known = ", ".join(module.__name__.rpartition(".")[2] for module in stages())
    raise ValueError(f"stage: expected one of {known}, got {name!r}")
