"""Sizes, and casts to FP8 that return (data, scales)."""

from __future__ import annotations

import torch

from minigemm.layout import ceil_div, round_up
from minigemm.quantize import E4M3_MAX

__all__ = ["align", "ceil_div", "per_block_cast_to_fp8", "per_channel_cast_to_fp8", "per_token_cast_to_fp8"]

SMALLEST = 1e-4  # magnitude of a block that is scaled at all


def align(x: int, y: int) -> int:
    """The smallest multiple of y that is not below x."""
    return round_up(x, y)


def _cast(x: torch.Tensor, rows: int, columns: int, use_ue8m0: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast x (m, n) in blocks of (rows, columns).

    Returns e4m3 (m, n), and float32 row-major scales (m / rows, n / columns), rounded up.
    """
    # Wrong arguments get messages of our own instead of torch's.
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dim() != 2:
        raise ValueError(f"x: expected a matrix, got shape {tuple(x.shape)}")

    # Zeros fill the matrix up to whole blocks, and change no block's maximum.
    m, n = x.shape
    down, across = ceil_div(m, rows), ceil_div(n, columns)
    padded = torch.zeros(down * rows, across * columns, dtype=torch.float32, device=x.device)
    padded[:m, :n] = x
    tiles = padded.view(down, rows, across, columns)

    # A block's largest magnitude becomes e4m3's largest number. The lower bound keeps zeros from scale 0.
    amax = tiles.abs().amax((1, 3)) if tiles.numel() else padded.new_zeros((down, across))
    scales = amax.clamp_min(SMALLEST) / E4M3_MAX
    if use_ue8m0:
        scales = torch.exp2(torch.log2(scales).ceil())

    # The padding is cut off again once the elements are cast.
    data = (
        (tiles / scales[:, None, :, None])
        .clamp(-E4M3_MAX, E4M3_MAX)
        .to(torch.float8_e4m3fn)
        .view(torch.uint8)
    )
    data = data.view(down * rows, across * columns)[:m, :n].contiguous().view(torch.float8_e4m3fn)
    return data, scales


def per_token_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast x (m, k) with a scale for each `gran_k` columns of a row.

    The scales are (m, ceil(k / gran_k)), row-major. use_ue8m0: powers of two.
    """
    return _cast(x, 1, gran_k, use_ue8m0)


def per_channel_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast x (k, n) with a scale for each `gran_k` rows of a column.

    The scales are (ceil(k / gran_k), n), row-major. use_ue8m0: powers of two.
    """
    return _cast(x, gran_k, 1, use_ue8m0)


def per_block_cast_to_fp8(
    x: torch.Tensor, use_ue8m0: bool = False, gran_k: int = 128
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast x (n, k) with a scale for each block of `gran_k` x `gran_k`.

    The scales are (ceil(n / gran_k), ceil(k / gran_k)), row-major. use_ue8m0: powers of two.
    """
    return _cast(x, gran_k, gran_k, use_ue8m0)
