"""Casts to FP8 (e4m3) and back, the float64 reference product, and realistic inputs.

There is one scale per tensor, per 1x128 row block, or per 128x128 block. A scale is amax / 448, so that the
largest magnitude of its block becomes e4m3's largest finite value. An element stands for the number
`data * scale`. This is the definition, in operations of torch; `kernels.quantizers` does the same in one
kernel, bit for bit. Source of the fine-grained scheme: DeepSeek-V3 Technical Report (arXiv 2412.19437),
section 3.3.2.
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
    "swiglu",
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


def quantize(
    x: torch.Tensor, granularity: str = "tensor", *, ue8m0: bool = False, floor: float = 0.0
) -> Quantized:
    """Cast a matrix to e4m3.

    Args:
        x: (rows, k) float16, bfloat16, float32 or float64 (rounded to float32 first), on any device, any
            strides. Rows and k need not be multiples of 128. NaN stays NaN, and an infinity, for which e4m3
            has no code, becomes NaN: both spoil their row of a product and no other, so neither counts for
            the scale.
        granularity: "tensor" (one scale), "1x128" (activations) or "128x128" (weights).
        ue8m0: whether each scale is rounded up to a power of two, as an exponent alone can store it.
        floor: the least amax of a block, from 0 on and finite, rounded to float32. DeepSeek's is 1e-4.

    Returns:
        Quantized with `x ~= data * scale`. Blocks of zeros get the scale 1, so that nothing is divided by
        zero; above a floor of 0 they get the floor's scale.

    Raises:
        TypeError: x is no dense floating-point tensor of these dtypes, ue8m0 no bool or floor no number.
        ValueError: x is not 2-D, its memory is freed, the granularity is unknown, or floor is negative or not
            finite.
    """
    check_dense(x)
    if x.dtype not in _INPUTS:
        raise TypeError(f"x: expected float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() != 2:
        raise ValueError(f"x: expected a matrix (rows, k), got shape {tuple(x.shape)}")
    if granularity not in GRANULARITIES:
        raise ValueError(f'granularity: expected one of "tensor", "1x128", "128x128", got {granularity!r}')
    check_scaling(ue8m0, floor)
    check_memory("x", x)
    rows, k = x.shape
    x = x.detach().to(torch.float32).contiguous()
    if granularity == "tensor":
        scale = _scale(_magnitude(x).amax() if x.numel() else x.new_zeros(()), ue8m0, floor)
        return Quantized(_cast(x / scale), scale, granularity)

    # Pad to whole blocks of (height, 128), and give each block its scale.
    height = 1 if granularity == "1x128" else BLOCK
    blocks_m, blocks_k = ceil_div(rows, height), ceil_div(k, BLOCK)
    padded = torch.nn.functional.pad(x, (0, blocks_k * BLOCK - k, 0, blocks_m * height - rows))
    tiles = padded.reshape(blocks_m, height, blocks_k, BLOCK)
    amax = _magnitude(tiles).amax((1, 3)) if tiles.numel() else x.new_zeros((blocks_m, blocks_k))
    scale = _scale(amax, ue8m0, floor)

    # Cut the padding off, and lay the scales of activations out as the kernels read them.
    cast = _cast(tiles / scale[:, None, :, None]).view(torch.uint8)
    data = cast.reshape(blocks_m * height, blocks_k * BLOCK)[:rows, :k]
    if granularity == "1x128":
        scale = empty_m_major(rows, blocks_k, x.device).copy_(scale)
    return Quantized(data.contiguous().view(torch.float8_e4m3fn), scale, granularity)


def check_dense(x: object) -> torch.Tensor:
    """Check that x, which is to be quantized, is a dense tensor; return it."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"x: expected a dense (strided) tensor, got layout {x.layout}")
    return x


def check_scaling(ue8m0: object, floor: object) -> None:
    """Check the two arguments that say how a scale is made."""
    if not isinstance(ue8m0, bool):
        raise TypeError(f"ue8m0: expected True or False, got {ue8m0!r}")
    if isinstance(floor, bool) or not isinstance(floor, (int, float)):
        raise TypeError(f"floor: expected a number, the least amax of a block, got {floor!r}")
    if not 0 <= floor <= torch.finfo(torch.float32).max:
        raise ValueError(f"floor: expected a finite float32 number from 0 on, got {floor!r}")


def _scale(amax: torch.Tensor, ue8m0: bool, floor: float) -> torch.Tensor:
    """Return amax / 448, or 1 for blocks of zeros; never a subnormal, which has too few bits to divide by."""
    if floor:
        amax = amax.clamp_min(floor)

    # The divisor is a tensor. By a Python number, CUDA would multiply with the reciprocal, and its bits would
    # not be the CPU's.
    scale = (amax / torch.full_like(amax, E4M3_MAX)).clamp_min(torch.finfo(torch.float32).tiny)
    if ue8m0:
        # The bits of a mantissa that is not zero carry into the exponent. A logarithm would round.
        scale = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    return torch.where(amax == 0, torch.ones_like(scale), scale)


def _magnitude(x: torch.Tensor) -> torch.Tensor:
    """Return |x|, with 0 instead of NaN and infinities."""
    return torch.where(x.isfinite(), x.abs(), torch.zeros_like(x))


def _cast(x: torch.Tensor) -> torch.Tensor:
    """Return x in e4m3, saturating, since torch versions differ on numbers above 448.

    NaN and infinities become the NaN of positive sign, since devices differ on the sign of a NaN.
    """
    saturated = x.clamp(-E4M3_MAX, E4M3_MAX)
    return torch.where(x.isfinite(), saturated, torch.full_like(x, float("nan"))).to(torch.float8_e4m3fn)


# --- SwiGLU: what a layer quantizes before its second product


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up in float32, with silu(g) = g / (1 + exp(-g)); `kernels.quantizers` has its bits.

    Args:
        x: (..., 2 * h) float16, bfloat16 or float32: the gate's h columns, then those of up.

    Returns:
        (..., h). Every operation is rounded to float32 once. The exponential's relative error is below 1.3 *
        2**-24, that of silu below 3 * 2**-24 for |g| < 88; from g = -89 on silu is -0. The silu of minus
        infinity is NaN.
    """
    gate, up = x.detach().to(torch.float32).chunk(2, -1)
    return gate / _one_plus_exp(-gate) * up


#: Float32 numbers of the exponential: 1 / ln(2); ln(2) in two parts; and of e**r = 1 + r + r**2 * (...) for
#: |r| <= ln(2) / 2 the coefficients, highest power first, fitted for the least relative error.
_PER_LN2, _LN2, _LN2_REST, *_POLYNOMIAL = map(
    float.fromhex,
    ("0x1.715476p0", "0x1.62e43p-1", "-0x1.05c61p-29")
    + ("0x1.6a2434p-10", "0x1.1239e2p-7", "0x1.5558f2p-5", "0x1.555492p-3", "0x1.fffffcp-2", "1", "1"),
)


def _one_plus_exp(t: torch.Tensor) -> torch.Tensor:
    """Return 1 + exp(t), with exp(t) = 2**n * e**r. Hardware's own exp2 has other bits on each machine."""
    # Beyond these limits the sum is 1, or infinite.
    t = t.clamp(-60, 89)

    # Adding 1.5 * 2**23 rounds to an integer. ln(2) has two parts, so that r keeps its bits.
    magic = 1.5 * 2**23
    n = _fma(t, _PER_LN2, magic) - magic
    r = _fma(n, -_LN2_REST, _fma(n, -_LN2, t))
    p = torch.full_like(t, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = _fma(p, r, coefficient)

    # Half the power is finite where the power is not.
    half = p * torch.exp2(n.double() - 1).to(torch.float32)
    return _fma(half, 2.0, 1.0)


def _fma(x: torch.Tensor, y: torch.Tensor | float, z: torch.Tensor | float) -> torch.Tensor:
    """Return x * y + z for float32 numbers, rounded to float32 once."""
    # The product is exact in float64. The sum's error, exact too, makes its last bit odd where it is not
    # zero, so that the second rounding sees on which side of a tie the sum lies.
    product = x.double() * y
    z = torch.as_tensor(z, dtype=torch.float64, device=x.device)
    total = product + z
    part = total - product
    error = (product - (total - part)) + (z - part)
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    odd = torch.where((error != 0) & (bits % 2 == 0) & error.isfinite(), bits + step, bits)
    return odd.view(torch.float64).to(torch.float32)


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
