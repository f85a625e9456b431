"""Casts to FP8 (e4m3) and back, the float64 reference product, and realistic inputs.

There is one scale per tensor, per 1x128 row block, or per 128x128 block. A scale is amax / 448, so that the
largest magnitude of its block becomes e4m3's largest finite value. An element stands for the number
`data * scale`. Source of the fine-grained scheme: DeepSeek-V3 Technical Report (arXiv 2412.19437), section
3.3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layout import ceil_div, check_memory, empty_m_major

__all__ = [
    "BLOCK",
    "E4M3_MAX",
    "GRANULARITIES",
    "Quantized",
    "activations",
    "dequantize",
    "quantize",
    "reference",
    "weights",
]

E4M3_MAX = 448.0
BLOCK = 128
GRANULARITIES = ("tensor", "1x128", "128x128")
_INPUTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Quantized:
    """An FP8 matrix and its scales.

    Attributes:
        data: float8_e4m3fn (rows, k), last dimension contiguous.
        scale: float32 on the data's device.
            "tensor": 0-d.
            "1x128": (rows, ceil(k / 128)), M-major with strides (1, rows rounded up to 4). Row-major scales,
            as other libraries make them, are taken too.
            "128x128": (ceil(rows / 128), ceil(k / 128)), row-major.
        granularity: "tensor", "1x128" or "128x128".
    """

    data: torch.Tensor
    scale: torch.Tensor
    granularity: str

    def to(self, device: torch.device | str) -> Quantized:
        """Return a copy on another device, with the same strides."""
        return Quantized(self.data.to(device), self.scale.to(device), self.granularity)


def quantize(x: torch.Tensor, granularity: str = "tensor") -> Quantized:
    """Cast a matrix to e4m3.

    Args:
        x: (rows, k) float16, bfloat16, float32 or float64 (rounded to float32 first), on any device, any
            strides. Rows and k need not be multiples of 128. NaN stays NaN, and an infinity, for which e4m3
            has no code, becomes NaN: both spoil their row of a product and no other, so neither counts for
            the scale.
        granularity: "tensor" (one scale), "1x128" (activations) or "128x128" (weights).

    Returns:
        Quantized with `x ~= data * scale`. Blocks of zeros get the scale 1, so that nothing is divided by
        zero.

    Raises:
        TypeError: x is no dense floating-point tensor of these dtypes.
        ValueError: x is not 2-D, its memory is freed, or the granularity is unknown.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x: expected a dense (strided) tensor, got layout {x.layout}")
    if x.dtype not in _INPUTS:
        raise TypeError(f"x: expected float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"x: expected a matrix (rows, k), got shape {tuple(x.shape)}")
    if granularity not in GRANULARITIES:
        raise ValueError(f'granularity: expected one of "tensor", "1x128", "128x128", got {granularity!r}')
    check_memory("x", x)
    rows, k = x.shape
    x = x.detach().to(torch.float32).contiguous()
    if granularity == "tensor":
        scale = _scale(_magnitude(x).amax() if x.numel() else x.new_zeros(()))
        return Quantized(_cast(x / scale), scale, granularity)

    # Pad to whole blocks of (height, 128), and give each block its scale.
    height = 1 if granularity == "1x128" else BLOCK
    blocks_m, blocks_k = ceil_div(rows, height), ceil_div(k, BLOCK)
    padded = torch.nn.functional.pad(x, (0, blocks_k * BLOCK - k, 0, blocks_m * height - rows))
    tiles = padded.reshape(blocks_m, height, blocks_k, BLOCK)
    amax = _magnitude(tiles).amax((1, 3)) if tiles.numel() else x.new_zeros((blocks_m, blocks_k))
    scale = _scale(amax)

    # Cut the padding off, and lay the scales of activations out as the kernels read them.
    cast = _cast(tiles / scale[:, None, :, None]).view(torch.uint8)
    data = cast.reshape(blocks_m * height, blocks_k * BLOCK)[:rows, :k]
    if granularity == "1x128":
        scale = empty_m_major(rows, blocks_k, x.device).copy_(scale)
    return Quantized(data.contiguous().view(torch.float8_e4m3fn), scale, granularity)


def _scale(amax: torch.Tensor) -> torch.Tensor:
    """Return amax / 448, or 1 for blocks of zeros; never a subnormal, which has too few bits to divide by."""
    # The divisor is a tensor. By a Python number, CUDA would multiply with the reciprocal, and its bits would
    # not be the CPU's.
    scale = (amax / torch.full_like(amax, E4M3_MAX)).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(amax == 0, torch.ones_like(scale), scale)


def _magnitude(x: torch.Tensor) -> torch.Tensor:
    """Return |x|, with 0 instead of NaN and infinities."""
    return torch.where(x.isfinite(), x.abs(), torch.zeros_like(x))


def _cast(x: torch.Tensor) -> torch.Tensor:
    """Return x in e4m3, saturating, since torch versions differ on numbers above 448.

    Clamp and cast keep NaN; infinities become NaN.
    """
    saturated = x.clamp(-E4M3_MAX, E4M3_MAX)
    return torch.where(x.isinf(), torch.full_like(x, float("nan")), saturated).to(torch.float8_e4m3fn)


def dequantize(q: Quantized) -> torch.Tensor:
    """Return the float32 (rows, k) that q stands for: each element times its block's scale, rounded once."""
    _check("q", q)
    return q.data.to(torch.float32) * expanded_scale(q)


def _check(name: str, value: object) -> None:
    if not isinstance(value, Quantized):
        expected = "a minigemm.quantize.Quantized, as quantize(x) gives"
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    check_memory(f"{name}.data", value.data)
    check_memory(f"{name}.scale", value.scale)


def expanded_scale(q: Quantized) -> torch.Tensor:
    """Return the scale of every element: float32, 0-d or (rows, k)."""
    if q.granularity == "tensor":
        return q.scale
    rows, k = q.data.shape
    scale = q.scale.repeat_interleave(BLOCK, 1)[:, :k]
    return scale if q.granularity == "1x128" else scale.repeat_interleave(BLOCK, 0)[:rows]


def reference(a: Quantized, b: Quantized) -> torch.Tensor:
    """Return the exact product to measure against: float64 (m, n), from a of (m, k) and b of (n, k).

    Both are dequantized in float64, so the scales enter unrounded. Raises TypeError for a or b that is no
    `Quantized`, and ValueError if their k differ.
    """
    _check("a", a)
    _check("b", b)
    if a.data.shape[1] != b.data.shape[1]:
        raise ValueError(
            f"b: expected as many columns as a has, {a.data.shape[1]} (k is the last dimension of both), got shape "
            f"{tuple(b.data.shape)}"
        )
    left = a.data.to(torch.float32).double() * expanded_scale(a).double()
    right = b.data.to(torch.float32).double() * expanded_scale(b).double()
    return left @ right.T


def activations(m: int, k: int, seed: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return random float32 (m, k) like the activations of a language model.

    They are heavy-tailed (Student t, 4 degrees of freedom), and one channel in 100 is thirty times larger.
    The same seed gives the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn((m, k), generator=generator)
    chi = torch.randn((4, m, k), generator=generator).square().sum(0) / 4
    x = normal / chi.sqrt().clamp_min(1e-3)
    outliers = torch.randperm(k, generator=generator)[: max(1, k // 100)]
    x[:, outliers] *= 30
    return x.to(device)


def weights(n: int, k: int, seed: int = 1, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return random float32 (n, k) like a trained linear layer's weights.

    They are normal, with standard deviation k ** -0.5.
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((n, k), generator=generator) * max(k, 1) ** -0.5).to(device)
