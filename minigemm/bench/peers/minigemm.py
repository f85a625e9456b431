"""minigemm's own calls, as anybody makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ... import api
from ...kernels.library import stage_of
from ...plan import choose
from ...types import Layout
from ..cases import Case
from ..workloads import Workload
from .peer import ALL_LAYOUTS, Peer

__all__ = ["BatchInvariant", "MiniGemm", "call"]


def call(case: Case, d: torch.Tensor, index: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Make the call of the case's layout, and return d.

    Args:
        d: what it writes.
        index: instead of the case's own.
        options: more of the call's keywords, such as `c` and `config`.
    """
    a, b, index = (case.a, case.sfa), (case.b, case.sfb), case.index if index is None else index
    layout = case.workload.product.layout
    if layout is Layout.DENSE:
        return api.fp8_gemm_nt(a, b, d, **options)
    if layout is Layout.CONTIGUOUS:
        return api.m_grouped_fp8_gemm_nt_contiguous(a, b, d, index, **options)
    return api.m_grouped_fp8_gemm_nt_masked(a, b, d, index, case.workload.expected_m, **options)


class MiniGemm(Peer):
    """The public calls of `minigemm.api`."""

    name, what, layouts = "minigemm", "this library's public calls", ALL_LAYOUTS

    def version(self) -> str:
        from ... import __version__

        return __version__

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        d = case.empty()
        return lambda: call(case, d)

    def config(self, workload: Workload, device: torch.device) -> dict[str, Any]:
        """Return the constants of the config that the call chooses, and under "STAGE" the stage's name."""
        product = workload.product._replace(alignment=choose.settings().alignment)
        config = choose.config_for(product, device)
        return {"STAGE": stage_of(config).name, **config.constants()}


class BatchInvariant(Peer):
    """minigemm under `set_batch_invariant(True)`: the price of bits that depend on nothing but their row."""

    name = "batch_invariant"
    what = "this library's public calls under set_batch_invariant(True)"
    layouts = ALL_LAYOUTS

    def version(self) -> str:
        return MiniGemm().version()

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        call = MiniGemm().prepare(case)

        def invariant() -> torch.Tensor:
            before = api.get_batch_invariant()
            api.set_batch_invariant(True)
            try:
                return call()
            finally:
                api.set_batch_invariant(before)

        return invariant
