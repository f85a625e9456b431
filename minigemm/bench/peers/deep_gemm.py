"""DeepGEMM of either generation, and both beside each other.

Both generations are packages of the same name, and Python keeps one module under a name. So a package that is
named by its folder is imported while everybody else's `deep_gemm` modules are put aside, and afterwards it is
put aside itself. It comes back for each of its calls, since it may still import something then.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...types import Layout
from ..cases import Case
from .peer import ALL_LAYOUTS, Missing, Peer, installed, returning

__all__ = ["DeepGemm", "Package", "packages"]

NAME = "deep_gemm"
FOLDERS = "MINIGEMM_DEEP_GEMM"  # the environment variable with folders, as PATH has them

#: The names of each layout's call, those of the newer generation first.
SPELLINGS = {
    Layout.DENSE: ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt"),
    Layout.CONTIGUOUS: ("m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous"),
    Layout.MASKED: (
        "m_grouped_fp8_gemm_nt_masked",
        "fp8_m_grouped_gemm_nt_masked",
        "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
    ),
}


@dataclass(frozen=True, eq=False)
class Package:
    """A `deep_gemm` that lies in a folder.

    Attributes:
        label: what tells it from the others.
        folder: the folder that holds the package.
    """

    label: str
    folder: Path
    _modules: dict[str, ModuleType] = field(default_factory=dict, repr=False)

    def load(self) -> ModuleType:
        """Import the package and return it. Missing if another one is found instead."""
        with self.entered():
            importlib.invalidate_caches()
            module = importlib.import_module(NAME)
        if not Path(module.__file__ or "").resolve().is_relative_to(self.folder.resolve()):
            raise Missing(f"the deep_gemm of {self.folder} is hidden by {module.__file__}")
        return module

    def version(self) -> str:
        """Return the version by the metadata that lies beside the package, or "unknown"."""
        found = metadata.distributions(name="deep-gemm", path=[str(self.folder)])
        return next((distribution.version for distribution in found), "unknown")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this the process's `deep_gemm`, for a while."""
        others = _taken_out()
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            self._modules.update(_taken_out())
            sys.modules.update(others)


def _taken_out() -> dict[str, ModuleType]:
    """Take all modules of any `deep_gemm` out of sys.modules, its extension `deep_gemm_cpp` too."""
    return {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith(NAME)}


def packages(named: Iterable[str] = ()) -> list[Package]:
    """Return the packages that are named, and those of the environment variable MINIGEMM_DEEP_GEMM.

    Args:
        named: FOLDER, or LABEL=FOLDER; the folder's own name is the label otherwise.

    Raises:
        ValueError: a folder holds no `deep_gemm`, or two have one label.
    """
    found: dict[str, Package] = {}
    for text in [*named, *filter(None, os.environ.get(FOLDERS, "").split(os.pathsep))]:
        label, _, path = text.rpartition("=")
        folder = Path(path).absolute()
        label = label or folder.name
        if not (folder / NAME / "__init__.py").is_file():
            raise ValueError(f"deep-gemm: expected a folder that holds the package deep_gemm, got {path!r}")
        if label in found:
            raise ValueError(f"deep-gemm: expected labels that differ (LABEL=FOLDER), got {label!r} twice")
        found[label] = Package(label, folder)
    return [*found.values()]


class DeepGemm(Peer):
    """The installed `deep_gemm`, or the one of a Package; never minigemm's own module of that name."""

    name, what, layouts, multiples = NAME, "DeepGEMM", ALL_LAYOUTS, {"n": 64, "k": 128}

    def __init__(self, package: Package | None = None) -> None:
        self._calls: dict[Layout, Any] = {}
        self._package = package
        if package is not None:
            self.name = f"{NAME}@{package.label}"

    def version(self) -> str:
        package = self._package
        module = package.load() if package is not None else importlib.import_module(NAME)
        parts = Path(getattr(module, "__file__", None) or "").parts
        if module.__name__.startswith("minigemm") or "minigemm" in parts:
            raise Missing("the deep_gemm that is imported is minigemm.compat.deep_gemm")
        calls = {layout: _first(module, names) for layout, names in SPELLINGS.items()}
        self._calls = {layout: call for layout, call in calls.items() if call is not None}
        if Layout.DENSE not in self._calls:
            raise Missing("this deep_gemm has neither fp8_gemm_nt nor gemm_fp8_fp8_bf16_nt")
        known = package.version() if package is not None else installed("deep-gemm", NAME)
        return f"{getattr(module, '__version__', known)}, {self._calls[Layout.DENSE].__name__}"

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        layout = case.workload.product.layout
        call = self._calls.get(layout)
        if call is None:
            raise Missing(f"this deep_gemm has no call for the {layout} layout")
        grouping: tuple[Any, ...] = () if layout is Layout.DENSE else (case.index,)
        if layout is Layout.MASKED:
            grouping = (case.index, case.workload.expected_m)
        d, package = case.empty(), self._package

        def run() -> None:
            call((case.a, case.sfa), (case.b, case.sfb), d, *grouping)

        def run_entered() -> None:
            with package.entered():  # type: ignore[union-attr]
                run()

        return returning(d, run if package is None else run_entered)


def _first(module: ModuleType, names: tuple[str, ...]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)
