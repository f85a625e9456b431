"""Casts, scales, tails, NaN; the layouts of scales."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm import quantize
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
    x = (
        torch.randn(rows, k, generator=generator)
        * torch.exp2(torch.randint(-6, 6, (rows, 1), generator=generator).float())
    ).to(dtype)
    q = quantize.quantize(x, granularity)
    back = quantize.dequantize(q)
    scale = quantize.expanded_scale(q)
    # half a step of e4m3 (2**-4 relative), and half of its smallest subnormal
    bound = x.float().abs() * 2**-4 * 1.001 + scale * 2**-10 * 1.001
    assert ((back - x.float()).abs() <= bound).all()


@given(st.integers(0, 2**31))
def test_every_cast_is_the_nearest(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 64, generator=generator) * torch.exp2(
        torch.randint(-12, 3, (1, 64), generator=generator).float()
    )
    q = quantize.quantize(x, "tensor")
    assert np.array_equal(
        q.data.float().numpy()[0], nearest_e4m3((x / q.scale).numpy()[0].astype(np.float64))
    )


@pytest.mark.parametrize("device", DEVICES)
def test_every_code_every_tie_and_its_neighbours(device):
    values = torch.tensor(e4m3_values()[:127], dtype=torch.float32)
    ties = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, ties, torch.nextafter(ties, values[1:]), torch.nextafter(ties, values[:-1])])
    x = torch.cat([x, -x])[None]
    q = quantize.quantize(x.to(device), "tensor")
    assert q.scale == 1  # the largest is 448
    expected = nearest_e4m3(x.numpy()[0].astype(np.float64))
    got = q.data.float().cpu().numpy()[0]
    assert np.array_equal(got, expected) and np.array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zeros_are_safe(granularity):
    x = torch.zeros(130, 260)
    x[129, 259] = 2.0
    q = quantize.quantize(x, granularity)
    assert torch.equal(quantize.dequantize(q), x)
    assert (q.scale > 0).all() and q.scale.isfinite().all()
    assert torch.equal(
        quantize.dequantize(quantize.quantize(torch.zeros(5, 7), granularity)), torch.zeros(5, 7)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nan_and_infinities_become_nan_and_leave_the_rest_alone(granularity, device):
    x = torch.randn(130, 300, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 5.0  # the largest is elsewhere
    loud = x.clone()
    loud[1, 200], loud[2, 3], loud[129, 299] = float("nan"), float("inf"), -float("inf")
    plain = x.masked_fill(~loud.isfinite(), 0)
    q = quantize.quantize(loud.to(device), granularity)
    quiet = quantize.quantize(plain.to(device), granularity)
    assert torch.equal(q.data.float().isnan().cpu(), ~loud.isfinite())
    assert torch.equal(q.scale, quiet.scale)
    assert torch.equal(quantize.dequantize(q).nan_to_num(0), quantize.dequantize(quiet))
    none = quantize.quantize(torch.full((2, 2), float("inf"), device=device), granularity)
    assert none.data.float().isnan().all() and (none.scale == 1).all()


@pytest.mark.gpu
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**31), st.sampled_from(GRANULARITIES))
def test_a_gpu_casts_to_the_same_bits(rows, k, seed, granularity):
    x = quantize.activations(rows, k, seed)
    here, there = quantize.quantize(x, granularity), quantize.quantize(x.cuda(), granularity)
    assert torch.equal(here.scale, there.scale.cpu()) and torch.equal(
        here.data.view(torch.uint8), there.data.cpu().view(torch.uint8)
    )


def test_nothing_overflows():
    x = torch.tensor([[1e38, -3e38, 1.0, 448.0]])
    q = quantize.quantize(x, "tensor")
    assert q.data.float().abs().max() == 448 and q.data.float().isfinite().all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("size", [1e-44, 3e-39, 1e-36, 1e-35])
def test_tiny_values_do_not_divide_by_a_subnormal(granularity, size):
    tiny = torch.finfo(torch.float32).tiny
    x = torch.linspace(-size, size, 300).reshape(3, 100)
    q = quantize.quantize(x, granularity)
    assert (q.scale >= tiny).all()
    assert ((quantize.dequantize(q) - x).abs() <= x.abs() * 2**-4 * 1.001 + tiny * 2**-10 * 1.001).all()


def test_float64_is_rounded_to_float32_first():
    x = torch.tensor([[1e300, -1e39, 3e38, 1.0]], dtype=torch.float64)
    q = quantize.quantize(x, "tensor")
    assert q.data.float().isnan().tolist() == [[True, True, False, False]]
    assert torch.isclose(quantize.dequantize(q)[0, 2], torch.tensor(3e38))


def test_no_gradient_is_kept():
    q = quantize.quantize(torch.ones(4, 16, requires_grad=True), "1x128")
    assert not q.data.requires_grad and not q.scale.requires_grad


def test_to_keeps_the_layout():
    q = quantize.quantize(torch.ones(5, 200), "1x128").to("cpu")
    assert q.scale.stride() == (1, 8) and q.granularity == "1x128"


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
        assert torch.equal(
            quantize.quantize(x.T.contiguous().T, granularity).data.view(torch.uint8),
            quantize.quantize(x, granularity).data.view(torch.uint8),
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_dimension_is_contiguous(dtype, granularity):
    for x in (
        torch.randn(64, 32, dtype=dtype).t(),
        torch.randn(16, 64, dtype=dtype)[:, ::2],
        torch.randn(1, 48, dtype=dtype).expand(16, 48),
    ):
        assert quantize.quantize(x, granularity).data.stride() == (x.shape[1], 1)


def test_what_is_not_quantized_is_named():
    a = quantize.quantize(torch.ones(4, 16))
    with pytest.raises(
        TypeError, match="q: expected a minigemm.quantize.Quantized, as quantize.x. gives, got Tensor"
    ):
        quantize.dequantize(torch.ones(4, 4))
    with pytest.raises(TypeError, match="b: expected a minigemm.quantize.Quantized"):
        quantize.reference(a, torch.ones(4, 16))
    with pytest.raises(ValueError, match=r"b: expected as many columns as a has, 16 .*, got shape \(4, 5\)"):
        quantize.reference(a, quantize.quantize(torch.ones(4, 5)))


@pytest.mark.parametrize("x, granularity, error, words", [
    ([1.0], "tensor", TypeError, "x: expected a torch.Tensor, got list"),
    (torch.ones(2, 2, dtype=torch.int32), "tensor", TypeError,
     "x: expected float16, bfloat16, float32 or float64, got torch.int32"),
    (torch.ones(4), "tensor", ValueError, r"x: expected a matrix \(rows, k\), got shape \(4,\)"),
    (torch.ones(4, 4).to_sparse(), "tensor", TypeError,
     r"x: expected a dense \(strided\) tensor, got layout torch.sparse_coo"),
    (torch.ones(4, 4), "64x64", ValueError, "granularity: expected one of .* got '64x64'"),
])  # fmt: skip
def test_bad_input(x, granularity, error, words):
    with pytest.raises(error, match=words):
        quantize.quantize(x, granularity)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scales_become_powers_of_two(granularity, device):
    """Each is the least power of two that is not below the scale, exactly, also where a logarithm rounds."""
    amax = 448 * torch.tensor([1.0, 1 + 2**-23, 2 - 2**-23, 2.0, 1.5 * 2**-100, 1e-45, 0.0])
    for value in amax.tolist():
        x = torch.full((3, 100), value, device=device)
        exact = quantize.quantize(x, granularity).scale
        q = quantize.quantize(x, granularity, ue8m0=True)
        mantissa, _ = torch.frexp(q.scale)
        assert (mantissa == 0.5).all() and (q.scale >= exact).all() and (q.scale < 2 * exact).all()
        assert (q.data.float().abs() <= 448).all() and torch.allclose(quantize.dequantize(q), x, rtol=2**-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_floor_for_amax(granularity, device):
    x = torch.cat([torch.zeros(1, 4), torch.full((1, 4), 1e-6)]).to(device)
    q = quantize.quantize(x, granularity, floor=1e-4)
    assert (q.scale == torch.tensor(1e-4) / torch.tensor(448.0)).all()
    loud = torch.ones(2, 4, device=device)
    assert torch.equal(
        quantize.quantize(loud, granularity, floor=1e-4).scale, quantize.quantize(loud, granularity).scale
    )


@pytest.mark.parametrize("device", DEVICES)
def test_every_nan_has_one_code(device):
    x = torch.tensor([[float("nan"), -float("nan"), float("inf"), -float("inf"), 1.0]]).to(device)
    x = torch.cat([x, torch.tensor([[-1]], dtype=torch.int32).view(torch.float32).to(device)], 1)
    codes = quantize.quantize(x, "1x128").data.view(torch.uint8).tolist()[0]
    assert codes == [0x7F, 0x7F, 0x7F, 0x7F, 0x7E, 0x7F]


@pytest.mark.parametrize("options, error, words", [
    ({"ue8m0": None}, TypeError, "ue8m0: expected True or False, got None"),
    ({"floor": True}, TypeError, "floor: expected a number, the least amax of a block, got True"),
    ({"floor": 1e39}, ValueError, r"floor: expected a finite float32 number from 0 on, got 1e\+39"),
])  # fmt: skip
def test_bad_scaling(options, error, words):
    with pytest.raises(error, match=words):
        quantize.quantize(torch.ones(2, 2), "1x128", **options)


def test_a_fused_multiply_add_is_rounded_once():
    generator = torch.Generator().manual_seed(2)
    x, y, noise = torch.randn(3, 2000, generator=generator)
    z = torch.where(torch.arange(2000) % 2 == 0, -x * y * (1 + noise * 2**-20), noise * 2.0**-20)
    results = quantize._fma(x, y, z)
    around = (results, torch.nextafter(results, results - 1), torch.nextafter(results, results + 1))
    for p, q, r, got, *others in zip(*(t.tolist() for t in (x, y, z, *around)), strict=True):
        exact = Fraction(p) * Fraction(q) + Fraction(r)
        assert all(abs(exact - Fraction(got)) <= abs(exact - Fraction(other)) for other in others)


def test_swiglu_is_near_the_function():
    gate = torch.cat([torch.linspace(-88, 88, 40_001), torch.tensor([1e-30, -1e-40, 0.0])])
    found = quantize.swiglu(torch.stack([gate, torch.ones_like(gate)], 1))[:, 0].double()
    exact = gate.double() / (1 + torch.exp(-gate.double()))
    assert ((found - exact).abs() <= exact.abs() * 3 * 2**-24 + 2**-149).all()
    loud = torch.tensor([[-89.0, 2.0], [3e38, 1.0], [-3e38, 1.0], [float("nan"), 1.0], [-float("inf"), 1.0]])
    silu = quantize.swiglu(loud)[:, 0]
    assert silu[0] == 0 and silu[0].signbit() and silu[1] == 3e38 and silu[2] == 0 and silu[3:].isnan().all()


def test_activations_look_like_a_language_model_s():
    x = quantize.activations(512, 1000)
    channel = x.abs().mean(0)
    assert (channel > 10 * channel.median()).sum() == 10
    ordinary = x[:, channel < 10 * channel.median()]
    assert (ordinary / ordinary.std()).pow(4).mean() > 4  # heavier tails than a normal's 3
    assert torch.equal(x, quantize.activations(512, 1000))
