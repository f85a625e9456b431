"""How scales are laid out.

A tensor that lies as it should is returned itself, never an alias and never a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from minigemm.api import (
    get_mk_alignment_for_contiguous_layout,
    get_tma_aligned_size,
    set_mk_alignment_for_contiguous_layout,
)
from minigemm.checks import check_int
from minigemm.layout import ceil_div, to_m_major

__all__ = [
    "get_col_major_tma_aligned_tensor",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_tensor",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "set_mk_alignment_for_contiguous_layout",
    "transform_sf_into_required_layout",
]


def get_mn_major_tma_aligned_tensor(sf: torch.Tensor) -> torch.Tensor:
    """Float32 scales (mn, k) or (groups, mn, k), with strides (1, mn rounded up to 4) in each group."""
    if not isinstance(sf, torch.Tensor):
        raise TypeError(f"sf: expected a torch.Tensor, got {type(sf).__name__}")
    if sf.dtype != torch.float32 or sf.dim() not in (2, 3):
        raise ValueError(f"sf: expected 2-D or 3-D float32 scales, got {sf.dim()}-D {sf.dtype}")
    return to_m_major(sf)


get_col_major_tma_aligned_tensor = get_mn_major_tma_aligned_tensor  # the first generation's name


def get_mn_major_tma_aligned_packed_ue8m0_tensor(sf: torch.Tensor) -> NoReturn:
    """Not implemented: scales that are packed exponents, which Hopper's kernels do not take."""
    raise NotImplementedError("packed UE8M0 scales are for GPUs after Hopper; here scales are float32")


def transform_sf_into_required_layout(
    sf: torch.Tensor,
    mn: int,
    k: int,
    recipe: Sequence[int] | None = None,
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
    recipe_ab: Sequence[int] | None = None,
) -> torch.Tensor:
    """Scales as the products want them: 1x128 ones M-major, 128x128 ones as they are.

    Args:
        sf: float32 (mn / granularity, k / 128), rounded up, with the groups in front where `num_groups` is
            given.
        mn, k: of the matrix that they are the scales of.
        recipe: (rows of a block of a, rows of a block of b, columns of both), of which `is_sfa` says which
            counts; or (rows, columns) of this one. By default (1, 128, 128).
        disable_ue8m0_cast: nothing is cast here anyway.
    """
    if not isinstance(sf, torch.Tensor):
        raise TypeError(f"sf: expected a torch.Tensor, got {type(sf).__name__}")
    if sf.dtype != torch.float32:
        raise ValueError(f"sf: expected float32, got {sf.dtype}")
    check_int("mn", mn, 0)
    check_int("k", k, 0)
    chosen = tuple(recipe_ab or recipe or (1, 128, 128))
    if len(chosen) == 3:
        if is_sfa is None:
            raise ValueError(
                "is_sfa: expected True or False, which says whose scales of the recipe these are, got None"
            )
        chosen = (chosen[0] if is_sfa else chosen[1], chosen[2])
    if chosen not in ((1, 128), (128, 128)):
        raise ValueError(f"recipe: expected blocks of (1, 128) or (128, 128), got {chosen}")
    shape = (*(() if num_groups is None else (num_groups,)), ceil_div(mn, chosen[0]), ceil_div(k, chosen[1]))
    if tuple(sf.shape) != shape:
        raise ValueError(f"sf: expected shape {shape}, got {tuple(sf.shape)}")
    return to_m_major(sf) if chosen[0] == 1 else sf


def get_theoretical_mk_alignment_for_contiguous_layout(
    expected_m: int | None = None, num_groups: int | None = None
) -> int:
    """Rows to which groups are best padded: 64 where they have no more than that on average, else 128.

    Args:
        expected_m: rows in all, or of a group where `num_groups` is not given. num_groups: among which they
            are spread.
    """
    if expected_m is None:
        return 128
    rows = check_int("expected_m", expected_m, 0)
    if num_groups is not None:
        rows = ceil_div(rows, check_int("num_groups", num_groups, 1))
    return 64 if rows <= 64 else 128
