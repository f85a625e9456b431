"""torchao's blockwise product."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..cases import Case
from .peer import Missing, Peer, installed

__all__ = ["TorchAo"]

#: The modules that have had the call, one after the other.
HOMES = (
    "torchao.kernel.blockwise_quantization",
    "torchao.prototype.blockwise_fp8_inference.blockwise_quantization",
    "torchao.prototype.blockwise_fp8.blockwise_quantization",
)


class TorchAo(Peer):
    """torchao's Triton kernel.

    Its tuner compiles 48 kernels for each n, k and power of two of m, which takes about a minute per shape.
    """

    name, what, multiples = "torchao", "torchao's blockwise_fp8_gemm", {"n": 1, "k": 128}

    def __init__(self) -> None:
        self._call: Any = None

    def version(self) -> str:
        importlib.import_module("torchao")
        for home in HOMES:
            try:
                module = importlib.import_module(home)
            except ImportError:
                continue
            if hasattr(module, "blockwise_fp8_gemm"):
                self._call = module.blockwise_fp8_gemm
                return installed("torchao")
        raise Missing(f"torchao {installed('torchao')} has no blockwise_fp8_gemm in {', '.join(HOMES)}")

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        # This kernel reads scales row-major.
        a, sfa, b, sfb = (x.contiguous() for x in (case.a, case.sfa, case.b, case.sfb))
        return lambda: self._call(a, sfa, b, sfb)
