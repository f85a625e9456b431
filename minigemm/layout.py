"""How scales lie in memory: M-major with rows padded for TMA, or row-major as other libraries make them.

A TMA descriptor wants every stride but the innermost to be a multiple of 16 bytes. A 1x128 activation scale is read by columns of M (all rows of
a tile, one block of K), so it is stored M-major: shape (M, K blocks), strides (1, M rounded up to 4 floats).
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
    if TMA_ALIGNMENT % element_bytes:
        raise ValueError(f"element_bytes: expected a divisor of {TMA_ALIGNMENT}, got {element_bytes}")
    return round_up(size, TMA_ALIGNMENT // element_bytes)


def empty_m_major(m: int, k: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Uninitialised float32 (m, k) with strides (1, m rounded up to 4)."""
    pitch = max(tma_aligned_size(m, 4), 4)
    return torch.empty_strided((m, k), (1, pitch), dtype=torch.float32, device=device)


def is_m_major(scale: torch.Tensor) -> bool:
    """Whether a float32 (m, k) scale lies as `empty_m_major` lays it out, from an address that TMA can start at."""
    pitch = max(tma_aligned_size(scale.shape[0], 4), 4)
    return scale.stride() == (1, pitch) and scale.data_ptr() % TMA_ALIGNMENT == 0


def to_m_major(scale: torch.Tensor) -> torch.Tensor:
    """The same (m, k) float32 values, M-major. A scale that lies so already is returned as it is, not copied."""
    if scale.dtype != torch.float32 or scale.dim() != 2:
        raise ValueError(f"scale: expected a 2-D float32 tensor, got {scale.dim()}-D {scale.dtype}")
    if is_m_major(scale):
        return scale
    return empty_m_major(scale.shape[0], scale.shape[1], scale.device).copy_(scale)
