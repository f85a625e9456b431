"""How scales lie in memory: M-major with rows padded for TMA, or row-major as other libraries make them.

A TMA descriptor wants every stride but the innermost to be a multiple of 16 bytes. A 1x128 activation scale is read by columns of M (all rows of
a tile, one block of K), so it is stored M-major: shape (M, K blocks), strides (1, M rounded up to 4 floats). Where groups have scales of their own,
(G, M, K blocks), each group lies so, one behind the other.
"""

from __future__ import annotations

import torch

__all__ = ["ceil_div", "empty_m_major", "is_m_major", "round_up", "tma_aligned_size", "to_m_major"]

TMA_ALIGNMENT = 16  # bytes


def ceil_div(value: int, divisor: int) -> int:
    """`value / divisor`, rounded up."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return ceil_div(value, multiple) * multiple


def tma_aligned_size(size: int, element_bytes: int) -> int:
    """`size` elements of `element_bytes` bytes each, rounded up so that the next column starts at a multiple of 16 bytes."""
    if element_bytes < 1 or TMA_ALIGNMENT % element_bytes:
        raise ValueError(f"element_bytes: expected a divisor of {TMA_ALIGNMENT}, got {element_bytes}")
    return round_up(size, TMA_ALIGNMENT // element_bytes)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of float32 scales (m, k) or (g, m, k) that lie M-major."""
    pitch = max(round_up(shape[-2], 4), 4)
    return (1, pitch) if len(shape) == 2 else (pitch * shape[2], 1, pitch)


def empty_m_major(
    m: int, k: int, device: torch.device | str = "cpu", groups: int | None = None
) -> torch.Tensor:
    """Uninitialised float32 (m, k) with strides (1, m rounded up to 4); with `groups`, (groups, m, k) of such."""
    shape = (m, k) if groups is None else (groups, m, k)
    return torch.empty_strided(shape, _strides(shape), dtype=torch.float32, device=device)


def is_m_major(scale: torch.Tensor) -> bool:
    """Whether float32 scales (m, k) or (g, m, k) lie as `empty_m_major` lays them out, from an address that TMA can start at."""
    return scale.stride() == _strides(scale.shape) and scale.data_ptr() % TMA_ALIGNMENT == 0


def to_m_major(scale: torch.Tensor) -> torch.Tensor:
    """The same float32 (m, k) or (g, m, k) values, M-major. Scales that lie so already are returned as they are, not copied."""
    if scale.dtype != torch.float32 or scale.dim() not in (2, 3):
        raise ValueError(f"scale: expected a 2-D or 3-D float32 tensor, got {scale.dim()}-D {scale.dtype}")
    if is_m_major(scale):
        return scale
    return empty_m_major(
        scale.shape[-2], scale.shape[-1], scale.device, scale.shape[0] if scale.dim() == 3 else None
    ).copy_(scale)
