"""DeepGEMM of either generation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ...types import Layout
from ..cases import Case
from .peer import ALL_LAYOUTS, Missing, Peer, installed, returning

__all__ = ["DeepGemm"]

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


class DeepGemm(Peer):
    """The installed `deep_gemm`; never minigemm's own module of that name."""

    name, what, layouts, multiples = "deep_gemm", "DeepGEMM", ALL_LAYOUTS, {"n": 64, "k": 128}

    def __init__(self) -> None:
        self._calls: dict[Layout, Any] = {}

    def version(self) -> str:
        module = importlib.import_module("deep_gemm")
        parts = Path(getattr(module, "__file__", None) or "").parts
        if module.__name__.startswith("minigemm") or "minigemm" in parts:
            raise Missing("the deep_gemm that is imported is minigemm.compat.deep_gemm")
        calls = {layout: _first(module, names) for layout, names in SPELLINGS.items()}
        self._calls = {layout: call for layout, call in calls.items() if call is not None}
        if Layout.DENSE not in self._calls:
            raise Missing("this deep_gemm has neither fp8_gemm_nt nor gemm_fp8_fp8_bf16_nt")
        version = getattr(module, "__version__", installed("deep-gemm", "deep_gemm"))
        return f"{version}, {self._calls[Layout.DENSE].__name__}"

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        layout = case.workload.product.layout
        call = self._calls.get(layout)
        if call is None:
            raise Missing(f"this deep_gemm has no call for the {layout} layout")
        grouping: tuple[Any, ...] = () if layout is Layout.DENSE else (case.index,)
        if layout is Layout.MASKED:
            grouping = (case.index, case.workload.expected_m)
        d = case.empty()
        return returning(d, lambda: call((case.a, case.sfa), (case.b, case.sfb), d, *grouping))


def _first(module: ModuleType, names: tuple[str, ...]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)
