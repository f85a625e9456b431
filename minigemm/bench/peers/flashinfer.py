"""flashinfer's product for Hopper."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..cases import Case
from .peer import Missing, Peer, installed, returning

__all__ = ["FlashInfer"]


class FlashInfer(Peer):
    """`fp8_blockscale_gemm_sm90`. Its gemm_fp8_nt_groupwise and its grouped products are for Blackwell."""

    name, what, multiples = "flashinfer", "flashinfer.gemm.fp8_blockscale_gemm_sm90", {"n": 64, "k": 128}

    def __init__(self) -> None:
        self._call: Any = None

    def version(self) -> str:
        importlib.import_module("flashinfer")
        self._call = getattr(importlib.import_module("flashinfer.gemm"), "fp8_blockscale_gemm_sm90", None)
        version = installed("flashinfer-python")
        if self._call is None:
            others = "and its gemm_fp8_nt_groupwise is for Blackwell"
            raise Missing(f"flashinfer {version} has no fp8_blockscale_gemm_sm90, {others}")
        return version

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        d = case.empty()
        return returning(d, lambda: self._call(case.a, case.b, case.sfa, case.sfb, out=d))
