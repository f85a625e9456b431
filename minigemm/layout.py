"""How scales lie in memory (not `types.Layout`, which is how rows belong to groups).

They lie M-major with rows padded for TMA, or row-major as other libraries make them.

A TMA descriptor wants every stride but the innermost to be a multiple of 16 bytes. A kernel reads 1x128
activation scales by columns of M (all rows of a tile, one block of K), so they are stored M-major: shape
(M, K blocks), strides (1, M rounded up to 4 floats). If groups have scales of their own, shape (G, M, K
blocks), each group lies in this way, one behind the other.
"""

from __future__ import annotations

import torch

from .torch_ops import dynamo_traces, modes

__all__ = [
    "ceil_div",
    "check_memory",
    "empty_m_major",
    "is_m_major",
    "is_wrapped",
    "round_up",
    "tma_aligned_size",
    "to_m_major",
]

TMA_ALIGNMENT = 16  # bytes


def ceil_div(value: int, divisor: int) -> int:
    """Return `value / divisor`, rounded up."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return ceil_div(value, multiple) * multiple


def tma_aligned_size(size: int, element_bytes: int) -> int:
    """Round up a number of elements, so that the next column starts at a multiple of 16 bytes.

    Args:
        size: how many elements a column has.
        element_bytes: the size of an element, a divisor of 16; ValueError otherwise.
    """
    if element_bytes < 1 or TMA_ALIGNMENT % element_bytes:
        raise ValueError(f"element_bytes: expected a divisor of {TMA_ALIGNMENT}, got {element_bytes}")
    return round_up(size, TMA_ALIGNMENT // element_bytes)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of M-major float32 scales of shape (m, k) or (g, m, k)."""
    pitch = max(round_up(shape[-2], 4), 4)
    return (1, pitch) if len(shape) == 2 else (pitch * shape[2], 1, pitch)


def empty_m_major(
    m: int, k: int, device: torch.device | str = "cpu", groups: int | None = None
) -> torch.Tensor:
    """Return uninitialised float32 (m, k) with strides (1, m rounded up to 4).

    With `groups`, return (groups, m, k), where each group lies in this way.
    """
    shape = (m, k) if groups is None else (groups, m, k)
    return torch.empty_strided(shape, _strides(shape), dtype=torch.float32, device=device)


def is_m_major(scale: torch.Tensor) -> bool:
    """Return whether float32 scales, (m, k) or (g, m, k), have the strides of `empty_m_major`.

    Their address must suit TMA, too. Where torch traces there is no address; the call that runs looks again.
    """
    if scale.stride() != _strides(scale.shape):
        return False
    return dynamo_traces() or modes() > 0 or scale.data_ptr() % TMA_ALIGNMENT == 0


def to_m_major(scale: torch.Tensor) -> torch.Tensor:
    """Return the same float32 (m, k) or (g, m, k) values, M-major.

    Scales that are M-major already are returned as they are, not copied.
    """
    if scale.dtype != torch.float32 or scale.dim() not in (2, 3):
        raise ValueError(f"scale: expected a 2-D or 3-D float32 tensor, got {scale.dim()}-D {scale.dtype}")
    check_memory("scale", scale)
    if is_m_major(scale):
        return scale
    groups = scale.shape[0] if scale.dim() == 3 else None
    return empty_m_major(scale.shape[-2], scale.shape[-1], scale.device, groups).copy_(scale)


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Return whether the tensor belongs to torch.vmap, torch.func or functionalize, and has no memory."""
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or torch._is_functional_tensor(tensor)


def check_memory(name: str, tensor: torch.Tensor) -> None:
    """Check that the storage holds all elements: `resize_` may have freed it, or cut it short.

    torch itself reads such memory, and the process ends. Tensors that stand for others, or for none, pass.
    """
    if dynamo_traces() or type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return
    if tensor.is_meta or is_wrapped(tensor) or not tensor.numel():
        return
    storage = tensor.untyped_storage()
    held = storage.nbytes() if storage.data_ptr() else 0
    if tensor.is_contiguous():
        last = tensor.numel() - 1
    else:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    if held < needed:
        raise ValueError(f"{name}: expected memory for all elements, {needed} bytes, got {held}")
