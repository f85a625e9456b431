"""The stages: from a naive kernel to the library's own, each a `.cu` beside the `.py` that launches it.

    from minigemm.kernels import s03_tma
    d = s03_tma.gemm(a, b)  # a, b: quantize.quantize(x, "tensor"), on a CPU or a Hopper GPU

Up to s06_warp_specialized a tensor has one scale; from s07_promoted on, a has "1x128" scales and b "128x128".
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType

from ..compiler.inspection import Inspection, take_apart
from ..types import Config, Product

__all__ = ["inspect", "stage_named", "stages"]

_NAME = re.compile(r"s\d\d_\w+")
_INSPECTED = Product(4096, 4096, 4096)  # its default config is inspected when none is given


@cache
def stages() -> tuple[ModuleType, ...]:
    """Return the module of each stage whose two files lie in this folder, in the order of the course."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("s*.cu") if _NAME.fullmatch(path.stem))
    return tuple(importlib.import_module(f"{__name__}.{name}") for name in names)


def stage_named(name: str) -> ModuleType:
    """Return the module of one stage, by its full name ("s03_tma") or its number ("s03", "3").

    Raises ValueError when there is no such stage.
    """
    return _named(name, "")


def _named(name: str, others: str) -> ModuleType:
    """Return the stage's module. `others` says in the error what could have come instead of its name."""
    modules = {module.__name__.rpartition(".")[2]: module for module in stages()}
    for own, module in modules.items():
        if name in (own, own[:3], str(int(own[1:3]))):
            return module
    raise ValueError(f"stage: expected one of {', '.join(modules)}{others}, got {name!r}")


def inspect(
    stage: ModuleType | str | Path,
    config: Config | None = None,
    *,
    source: str | Path | None = None,
    kernel: str | None = None,
) -> Inspection:
    """Compile a stage and take the result apart. Needs no GPU.

    Args:
        stage: a stage's module (`from minigemm.kernels import s01_naive`), its name or number ("s01_naive",
            "1"), or the path of any .cu file.
        config: by default the stage's own for a 4096 x 4096 x 4096 product. A bare file gets no constants.
        source: your own version of a stage's file, as in the stage's `gemm`.
        kernel: the `extern "C"` symbol; by default the stage's, or for a bare file the file's own name.

    Raises:
        TypeError: `stage` is neither a module nor a name nor a path.
        ValueError: there is no such stage or file.
        CompileError: (a ValueError) it does not compile.
    """
    if isinstance(stage, Path) or (isinstance(stage, str) and stage.endswith(".cu")):
        path, name, config = Path(stage), Path(stage).stem, config or Config()
    else:
        module = _named(stage, " or the path of a .cu file") if isinstance(stage, str) else stage
        if not isinstance(module, ModuleType) or module.__file__ is None:
            raise TypeError(
                f"stage: expected a stage's module, its name or a path, got {type(stage).__name__}"
            )
        path, name = Path(module.__file__).with_suffix(".cu"), module.__name__.rpartition(".")[2]
        kernel = kernel or getattr(getattr(module, "stage", None), "symbol", name)
        config = config or module.default_config(_INSPECTED)
    path = Path(source) if source is not None else path
    return take_apart(path, config, name=name, symbol=kernel or name)
