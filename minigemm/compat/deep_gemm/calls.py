"""The products, under the names and with the arguments of both generations.

All write to `d` (or `out`) and return nothing.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec

import torch

from minigemm import api
from minigemm.checks import check_flag
from minigemm.layout import ceil_div

__all__ = [
    "cell_div",
    "fp8_fp4_gemm_nt",
    "fp8_gemm_nt",
    "fp8_m_grouped_gemm_nt_masked",
    "gemm_fp8_fp8_bf16_nt",
    "get_m_alignment_for_contiguous_layout",
    "get_pdl",
    "k_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
    "set_pdl",
]

P = ParamSpec("P")
Pair = tuple[torch.Tensor, torch.Tensor]
Recipe = Sequence[int] | None


class ArgumentError(TypeError, ValueError):
    """A wrong type, which callers that know the original expect as a ValueError."""


def _value_errors(call: Callable[P, None]) -> Callable[P, None]:
    """The call, whose TypeErrors are ValueErrors too."""

    @functools.wraps(call)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        try:
            call(*args, **options)
        except TypeError as error:
            raise ArgumentError(str(error)) from error

    return checked


def _check_options(recipe: Recipe, recipe_a: Recipe, recipe_b: Recipe, compiled_dims: str) -> None:
    """Which scales the operands have: what is here has one kind for a, and one for b."""
    if recipe is recipe_a is recipe_b is None and compiled_dims == "nk":
        return
    for name, given, expected in (
        ("recipe", recipe, (1, 128, 128)),
        ("recipe_a", recipe_a, (1, 128)),
        ("recipe_b", recipe_b, (128, 128)),
    ):
        if given is not None and tuple(given) != expected:
            raise ValueError(
                f"{name}: expected {expected} (1x128 scales for a, 128x128 for b) or None, got {tuple(given)}"
            )
    if not isinstance(compiled_dims, str) or set(compiled_dims) - set("mnk"):
        raise ValueError(f"compiled_dims: expected some of the letters m, n and k, got {compiled_dims!r}")


def _check_given(**tensors: Any) -> None:
    """These calls make no outputs."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")


@_value_errors
def fp8_gemm_nt(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """Compute `d = a @ b.T`, or `c + a @ b.T`.

    a (m, k) with (m, ceil(k / 128)) scales in any order, b (n, k) with (ceil(n / 128), ceil(k / 128)) scales;
    d BF16 or FP32, c of its dtype. `compiled_dims` and `disable_ue8m0_cast` have nothing to decide: m is
    never compiled in, and no scale is cast.
    """
    _check_options(recipe, recipe_a, recipe_b, compiled_dims)
    _check_given(d=d)
    api.fp8_gemm_nt(a, b, d, c)


@_value_errors
def m_grouped_fp8_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """Each row of a times the weights of its group.

    `grouped_layout`: a group for each row, or with `use_psum_layout` where each group ends.
    """
    _check_options(recipe, recipe_a, recipe_b, compiled_dims)
    _check_given(d=d, grouped_layout=grouped_layout)
    api.m_grouped_fp8_gemm_nt_contiguous(
        a, b, d, grouped_layout, use_psum_layout=use_psum_layout, ensure_zero_padding=ensure_zero_padding
    )


@_value_errors
def m_grouped_fp8_gemm_nt_masked(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    masked_m: torch.Tensor,
    expected_m: int,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """The first `masked_m[g]` rows of each group's buffer times the weights of the group."""
    _check_options(recipe, recipe_a, recipe_b, compiled_dims)
    _check_given(d=d, masked_m=masked_m)
    if isinstance(expected_m, torch.Tensor):  # the original takes one, and waits for it
        expected_m = operator.index(expected_m)
    api.m_grouped_fp8_gemm_nt_masked(a, b, d, masked_m, expected_m)


fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked


def _only_fp8(a: Any, b: Any) -> None:
    for name, operand in (("a", a), ("b", b)):
        if (
            isinstance(operand, (tuple, list))
            and operand
            and isinstance(operand[0], torch.Tensor)
            and operand[0].dtype in (torch.int8, torch.uint8)
        ):
            raise NotImplementedError(
                f"{name}: FP4 is not implemented here; expected float8_e4m3fn, got {operand[0].dtype}"
            )


def fp8_fp4_gemm_nt(a: Pair, b: Pair, d: torch.Tensor, *args: Any, **options: Any) -> None:
    """`fp8_gemm_nt`: both operands are FP8 here. NotImplementedError for packed FP4."""
    _only_fp8(a, b)
    fp8_gemm_nt(a, b, d, *args, **options)


def m_grouped_fp8_fp4_gemm_nt_contiguous(
    a: Pair, b: Pair, d: torch.Tensor, grouped_layout: torch.Tensor, *args: Any, **options: Any
) -> None:
    """`m_grouped_fp8_gemm_nt_contiguous`: both operands are FP8 here. NotImplementedError for packed FP4."""
    _only_fp8(a, b)
    m_grouped_fp8_gemm_nt_contiguous(a, b, d, grouped_layout, *args, **options)


def m_grouped_fp8_fp4_gemm_nt_masked(
    a: Pair, b: Pair, d: torch.Tensor, masked_m: torch.Tensor, expected_m: int, *args: Any, **options: Any
) -> None:
    """`m_grouped_fp8_gemm_nt_masked`: both operands are FP8 here. NotImplementedError for packed FP4."""
    _only_fp8(a, b)
    m_grouped_fp8_gemm_nt_masked(a, b, d, masked_m, expected_m, *args, **options)


def k_grouped_fp8_gemm_nt_contiguous(
    a: Pair,
    b: Pair,
    d: torch.Tensor,
    ks_cpu: Sequence[int],
    ks: torch.Tensor,
    c: torch.Tensor | None = None,
    recipe: Recipe = (1, 1, 128),
    compiled_dims: str = "mn",
    use_psum_layout: bool = False,
) -> NoReturn:
    """Not implemented: the weight gradient, grouped along k."""
    raise NotImplementedError(
        "k_grouped_fp8_gemm_nt_contiguous: minigemm has no products grouped along k yet"
    )


# --- the first generation


@_value_errors
def gemm_fp8_fp8_bf16_nt(lhs: Pair, rhs: Pair, out: torch.Tensor) -> None:
    """Compute `out = lhs @ rhs.T` in BF16.

    lhs (m, k) with 1x128 scales in any order, rhs (n, k) with 128x128 scales.
    """
    _check_bf16(out)
    api.fp8_gemm_nt(lhs, rhs, out)


@_value_errors
def m_grouped_gemm_fp8_fp8_bf16_nt_contiguous(
    lhs: Pair, rhs: Pair, out: torch.Tensor, m_indices: torch.Tensor
) -> None:
    """Each row of lhs times the weights of its group; `m_indices` int32 (m,), -1 for padding."""
    _check_bf16(out)
    _check_given(m_indices=m_indices)
    api.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, out, m_indices)


@_value_errors
def m_grouped_gemm_fp8_fp8_bf16_nt_masked(
    lhs: Pair, rhs: Pair, out: torch.Tensor, masked_m: torch.Tensor, expected_m: int
) -> None:
    """The first `masked_m[g]` rows of each group's buffer times the weights of the group."""
    _check_bf16(out)
    _check_given(masked_m=masked_m)
    api.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, masked_m, expected_m)


def _check_bf16(out: Any) -> None:
    _check_given(out=out)
    if out.dtype != torch.bfloat16:
        raise TypeError(f"out: expected bfloat16, got {out.dtype}")


def get_m_alignment_for_contiguous_layout() -> int:
    """Rows at whose multiples groups begin."""
    return api.get_mk_alignment_for_contiguous_layout()


def cell_div(x: int, y: int) -> int:
    """`x / y`, rounded up, by the name that it had for a while."""
    return ceil_div(x, y)


# --- settings


def set_pdl(enable: bool) -> None:
    """Let later kernels begin before the one before them has ended; see `minigemm.set_pdl`."""
    check_flag("enable", enable)
    api.set_pdl(enable)


def get_pdl() -> bool:
    """Whether they may."""
    return api.get_pdl()
