"""A kernel in Triton, written for this comparison."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from ..cases import Case
from .peer import ALL_LAYOUTS, Peer, installed

__all__ = ["Triton"]


class Triton(Peer):
    """The kernel in triton_kernel.py."""

    name = "triton"
    what = "a Triton kernel of sixty lines, autotuned (minigemm/bench/peers/triton_kernel.py)"
    layouts = ALL_LAYOUTS

    def version(self) -> str:
        importlib.import_module(".triton_kernel", __package__)
        return installed("triton")

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        from . import triton_kernel

        d, layout = case.empty(), case.workload.product.layout
        return lambda: triton_kernel.gemm(case.a, case.sfa, case.b, case.sfb, d, layout, case.index)
