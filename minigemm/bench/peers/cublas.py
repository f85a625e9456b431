"""NVIDIA's cuBLASLt, through torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...layout import round_up
from ..cases import Case
from .peer import Missing, Peer, torch_version

__all__ = ["CublasLt", "CublasLtBlocks"]


class CublasLt(Peer):
    """cuBLASLt with one scale per tensor: the most that the hardware does.

    That is less work than block scales are, and it sums in the tensor core's short accumulator.
    """

    name = "cublaslt"
    what = "cuBLASLt by torch._scaled_mm, one scale a tensor, fast accumulation"
    scales = "tensor"
    multiples = {"n": 16, "k": 16}  # noqa: RUF012
    tolerance = 5e-2  # the short accumulator loses what FP32 sums keep

    def version(self) -> str:
        if not hasattr(torch, "_scaled_mm"):
            raise Missing("this torch has no _scaled_mm")
        return torch_version()

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        if case.tensor_scaled is None:
            raise Missing("no product with one scale a tensor")
        a, b = case.tensor_scaled
        options = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        return lambda: torch._scaled_mm(a.data, b.data.T, scale_a=a.scale, scale_b=b.scale, **options)


class CublasLtBlocks(Peer):
    """cuBLASLt with block scales."""

    name = "cublaslt_blocks"
    what = "cuBLASLt by torch.nn.functional.scaled_mm, 1x128 and 128x128 scales"
    multiples = {"m": 4, "n": 16, "k": 128}  # noqa: RUF012

    def version(self) -> str:
        if not hasattr(torch.nn.functional, "scaled_mm"):
            raise Missing("torch.nn.functional.scaled_mm comes with torch 2.10")
        if torch.version.cuda is None or tuple(map(int, torch.version.cuda.split(".")[:2])) < (12, 9):
            raise Missing(f"block scales come with CUDA 12.9, and torch has {torch.version.cuda or 'none'}")
        return torch_version()

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        scaled_mm, kinds = torch.nn.functional.scaled_mm, torch.nn.functional.ScalingType

        # Each column's scales of b must begin at a multiple of 16 bytes.
        blocks_n, blocks_k = case.sfb.shape
        padded = case.sfb.new_ones((blocks_n, round_up(blocks_k, 4)))
        padded[:, :blocks_k] = case.sfb

        one, block = kinds.BlockWise1x128, kinds.BlockWise128x128
        a, sfa, b, sfb = case.a, case.sfa, case.b.T, padded.T
        return lambda: scaled_mm(a, b, sfa, one, sfb, block, output_dtype=torch.bfloat16)
