"""Casts, scales, tails, NaN; the layouts of scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm import layout, quantize
from minigemm.quantize import Quantized

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
GRANULARITIES = ("tensor", "1x128", "128x128")


def e4m3_values() -> np.ndarray:
    """What each of the 256 patterns stands for, written from the format's definition."""
    values = []
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
        values.append(float("nan") if code & 127 == 127 else -magnitude if code & 128 else magnitude)
    return np.array(values)


def nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest finite e4m3 value, ties to the even pattern, by search."""
    values = e4m3_values()
    codes = np.arange(127)
    grid = values[codes]
    distance = np.abs(np.abs(x)[:, None] - grid[None])
    best = distance.min(1)
    candidates = np.where(distance == best[:, None], codes[None], 999)
    even = np.where(candidates % 2 == 0, candidates, 999).min(1)
    code = np.where(even < 999, even, candidates.min(1))
    return np.copysign(values[code], x)


def block_amax(x: torch.Tensor, height: int) -> torch.Tensor:
    rows, k = x.shape
    out = torch.zeros(-(-rows // height), -(-k // 128))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = x[i * height : (i + 1) * height, j * 128 : (j + 1) * 128].abs().max()
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, k", [(1, 1), (3, 128), (130, 300), (257, 16), (128, 129)])
def test_scales_and_shapes(rows, k, device):
    x = quantize.activations(rows, k, seed=3, device=device)
    tensor, rowwise, blockwise = (quantize.quantize(x, g) for g in GRANULARITIES)
    for q in (tensor, rowwise, blockwise):
        assert q.data.dtype == torch.float8_e4m3fn and q.data.shape == x.shape and q.data.is_contiguous()
        assert q.scale.dtype == torch.float32 and q.scale.device == x.device
    assert tensor.scale.shape == () and torch.isclose(tensor.scale, x.abs().max() / 448, rtol=1e-6)
    blocks = -(-k // 128)
    assert rowwise.scale.shape == (rows, blocks) and rowwise.scale.stride() == (1, -(-rows // 4) * 4)
    assert torch.allclose(rowwise.scale.cpu(), block_amax(x.cpu(), 1) / 448, rtol=1e-6)
    assert blockwise.scale.shape == (-(-rows // 128), blocks) and blockwise.scale.is_contiguous()
    assert torch.allclose(blockwise.scale.cpu(), block_amax(x.cpu(), 128) / 448, rtol=1e-6)


@given(
    st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**31), st.sampled_from(GRANULARITIES),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)  # fmt: skip
def test_round_trip(rows, k, seed, granularity, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, k, generator=generator) * torch.exp2(torch.randint(-6, 6, (rows, 1), generator=generator).float())).to(dtype)
    q = quantize.quantize(x, granularity)
    back = quantize.dequantize(q)
    scale = quantize.expanded_scale(q)
    # half a step of e4m3 (2**-4 relative), and half of its smallest subnormal
    bound = x.float().abs() * 2**-4 * 1.001 + scale * 2**-10 * 1.001
    assert ((back - x.float()).abs() <= bound).all()


@given(st.integers(0, 2**31))
def test_every_cast_is_the_nearest(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 64, generator=generator) * torch.exp2(torch.randint(-12, 3, (1, 64), generator=generator).float())
    q = quantize.quantize(x, "tensor")
    assert np.array_equal(q.data.float().numpy()[0], nearest_e4m3((x / q.scale).numpy()[0].astype(np.float64)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zeros_are_safe(granularity):
    x = torch.zeros(130, 260)
    x[129, 259] = 2.0
    q = quantize.quantize(x, granularity)
    assert torch.equal(quantize.dequantize(q), x)
    assert (q.scale > 0).all() and q.scale.isfinite().all()
    assert torch.equal(quantize.dequantize(quantize.quantize(torch.zeros(5, 7), granularity)), torch.zeros(5, 7))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nan_is_kept_in_its_block(granularity):
    x = torch.ones(3, 256)
    x[1, 200] = float("nan")
    back = quantize.dequantize(quantize.quantize(x, granularity))
    assert back[1, 200].isnan()
    if granularity == "1x128":
        assert torch.equal(back[0], x[0]) and torch.equal(back[1, :128], x[1, :128])


def test_nothing_overflows():
    x = torch.tensor([[1e38, -3e38, 1.0, 448.0]])
    q = quantize.quantize(x, "tensor")
    assert q.data.float().abs().max() == 448 and q.data.float().isfinite().all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_tiny_values_do_not_divide_by_a_subnormal(granularity):
    x = torch.full((2, 4), 1e-44)
    assert quantize.dequantize(quantize.quantize(x, granularity)).isfinite().all()


def test_empty():
    for granularity in GRANULARITIES:
        for shape in ((0, 16), (4, 0), (0, 0)):
            q = quantize.quantize(torch.zeros(shape), granularity)
            assert q.data.shape == shape and quantize.dequantize(q).shape == shape


def test_reference_is_the_float64_product():
    a, b = quantize.quantize(torch.randn(5, 300), "1x128"), quantize.quantize(torch.randn(7, 300), "128x128")
    expected = np.zeros((5, 7))
    left, right = a.data.float().numpy().astype(np.float64), b.data.float().numpy().astype(np.float64)
    for i in range(5):
        for j in range(7):
            for k0 in range(0, 300, 128):
                part = (left[i, k0 : k0 + 128] * right[j, k0 : k0 + 128]).sum()
                expected[i, j] += part * float(a.scale[i, k0 // 128]) * float(b.scale[0, k0 // 128])
    assert np.allclose(quantize.reference(a, b).numpy(), expected, rtol=1e-12)


def test_row_major_scales_are_taken():
    q = quantize.quantize(torch.randn(6, 256), "1x128")
    row_major = Quantized(q.data, q.scale.contiguous(), "1x128")
    assert torch.equal(quantize.dequantize(row_major), quantize.dequantize(q))


def test_strided_input():
    x = torch.randn(40, 300)
    for granularity in GRANULARITIES:
        assert torch.equal(quantize.quantize(x.T.contiguous().T, granularity).data.view(torch.uint8), quantize.quantize(x, granularity).data.view(torch.uint8))


@pytest.mark.parametrize("x, granularity, error, words", [
    ([1.0], "tensor", TypeError, "x: expected a torch.Tensor, got list"),
    (torch.ones(2, 2, dtype=torch.int32), "tensor", TypeError, "x: expected float16, bfloat16, float32 or float64, got torch.int32"),
    (torch.ones(4), "tensor", ValueError, r"x: expected a matrix \(rows, k\), got shape \(4,\)"),
    (torch.ones(4, 4), "64x64", ValueError, "granularity: expected one of .* got '64x64'"),
])  # fmt: skip
def test_bad_input(x, granularity, error, words):
    with pytest.raises(error, match=words):
        quantize.quantize(x, granularity)


def test_activations_look_like_a_language_model_s():
    x = quantize.activations(512, 1000)
    channel = x.abs().mean(0)
    assert (channel > 10 * channel.median()).sum() == 10
    ordinary = x[:, channel < 10 * channel.median()]
    assert (ordinary / ordinary.std()).pow(4).mean() > 4  # heavier tails than a normal's 3
    assert torch.equal(x, quantize.activations(512, 1000))


@given(st.integers(0, 70), st.integers(0, 9))
def test_m_major(m, k):
    scale = torch.rand(m, k)
    laid = layout.to_m_major(scale)
    assert torch.equal(laid, scale) and laid.stride() == (1, max(4, -(-m // 4) * 4))
    assert layout.to_m_major(laid) is laid


def test_layout_bad_input():
    with pytest.raises(ValueError, match="scale: expected a 2-D float32 tensor"):
        layout.to_m_major(torch.ones(3))
    with pytest.raises(ValueError, match="element_bytes"):
        layout.tma_aligned_size(3, 5)
    assert layout.tma_aligned_size(5, 4) == 8 and layout.tma_aligned_size(16, 1) == 16 and layout.ceil_div(5, 4) == 2
