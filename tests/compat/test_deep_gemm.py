"""Code written for DeepGEMM, either generation, unmodified: the `deep_gemm` imported here is minigemm's."""

from __future__ import annotations

import importlib
import inspect
import sys

import numpy as np
import pytest
import torch

import minigemm
from minigemm import quantize

E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def deep_gemm(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "deep_gemm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deep_gemm", minigemm.compat.deep_gemm)
    yield importlib.import_module("deep_gemm")
    for name in [name for name in sys.modules if name.startswith("deep_gemm.")]:
        del sys.modules[name]


def product(x, w):
    return x.float() @ w.float().T


# --- the first generation


def test_dense_of_the_first_generation():
    import deep_gemm
    from deep_gemm import calc_diff, ceil_div, get_col_major_tma_aligned_tensor

    def per_token_cast_to_fp8(x):
        m, n = x.shape
        view = x.view(m, -1, 128)
        amax = view.abs().float().amax(dim=2).view(m, -1).clamp(1e-4)
        return (view * (448.0 / amax.unsqueeze(2))).to(E4M3).view(m, n), (amax / 448.0).view(m, -1)

    def per_block_cast_to_fp8(x):
        m, n = x.shape
        padded = torch.zeros((ceil_div(m, 128) * 128, ceil_div(n, 128) * 128), dtype=x.dtype)
        padded[:m, :n] = x
        view = padded.view(-1, 128, padded.size(1) // 128, 128)
        amax = view.abs().float().amax(dim=(1, 3), keepdim=True).clamp(1e-4)
        scaled = (view * (448.0 / amax)).to(E4M3)
        return scaled.view_as(padded)[:m, :n].contiguous(), (amax / 448.0).view(view.size(0), view.size(2))

    torch.manual_seed(0)
    m, k, n = 70, 256, 192
    x, y = torch.randn((m, k), dtype=torch.bfloat16), torch.randn((n, k), dtype=torch.bfloat16)
    out = torch.empty((m, n), dtype=torch.bfloat16)
    x_fp8, y_fp8 = per_token_cast_to_fp8(x), per_block_cast_to_fp8(y)
    x_fp8 = (x_fp8[0], get_col_major_tma_aligned_tensor(x_fp8[1]))
    assert x_fp8[1].stride() == (1, 72)
    deep_gemm.gemm_fp8_fp8_bf16_nt(x_fp8, y_fp8, out)
    assert calc_diff(out, product(x, y)) < 0.001
    other = torch.empty_like(out)
    deep_gemm.gemm_fp8_fp8_bf16_nt((x_fp8[0], x_fp8[1].contiguous()), y_fp8, other)
    assert torch.equal(out, other)


def test_groups_of_the_first_generation():
    import deep_gemm
    from deep_gemm import calc_diff, get_col_major_tma_aligned_tensor, get_m_alignment_for_contiguous_layout
    from deep_gemm.utils import per_block_cast_to_fp8, per_token_cast_to_fp8

    torch.manual_seed(0)
    groups, k, n = 2, 128, 64
    alignment = get_m_alignment_for_contiguous_layout()
    m = groups * alignment
    x = torch.randn((m, k), dtype=torch.bfloat16)
    y = torch.randn((groups, n, k), dtype=torch.bfloat16)
    indices = torch.arange(groups, dtype=torch.int32).repeat_interleave(alignment)
    indices[alignment - 10 : alignment] = -1
    reference = torch.stack([product(x[i], y[max(int(g), 0)]) for i, g in enumerate(indices)])
    reference[indices < 0] = 0
    x_fp8 = per_token_cast_to_fp8(x)
    y_fp8 = (torch.empty_like(y, dtype=E4M3), torch.empty((groups, (n + 127) // 128, k // 128)))
    for i in range(groups):
        y_fp8[0][i], y_fp8[1][i] = per_block_cast_to_fp8(y[i])
    out = torch.empty((m, n), dtype=torch.bfloat16)
    laid = (x_fp8[0], get_col_major_tma_aligned_tensor(x_fp8[1]))
    deep_gemm.m_grouped_gemm_fp8_fp8_bf16_nt_contiguous(laid, y_fp8, out, indices)
    assert calc_diff(out, reference) < 0.001  # all of it: padding is zeros

    masked_m = torch.tensor([3, 100], dtype=torch.int32)
    by_group = (
        x_fp8[0].view(groups, alignment, k),
        get_col_major_tma_aligned_tensor(x_fp8[1].view(groups, alignment, -1)),
    )
    out = torch.empty((groups, alignment, n), dtype=torch.bfloat16)
    deep_gemm.m_grouped_gemm_fp8_fp8_bf16_nt_masked(by_group, y_fp8, out, masked_m, 64)
    for i in range(groups):
        rows = int(masked_m[i])
        assert calc_diff(out[i, :rows], product(x.view(groups, alignment, k)[i, :rows], y[i])) < 0.001


def test_small_names_of_the_first_generation():
    from deep_gemm import bench_kineto, cell_div, get_num_sms, set_num_sms

    assert cell_div(7, 2) == 4
    set_num_sms(100)
    assert get_num_sms() == 100
    minigemm.set_num_sms(None)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA device, and there is none"):
            bench_kineto(lambda: None, "fp8_gemm", suppress_kineto_output=True)


# --- the second


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("use_ue8m0", [False, True])
def test_dense_of_the_second_generation(accumulate, use_ue8m0):
    import deep_gemm
    from deep_gemm.testing import calc_diff, get_arch_major
    from deep_gemm.utils import per_block_cast_to_fp8, per_token_cast_to_fp8

    assert get_arch_major() == 9 or torch.cuda.is_available()
    torch.manual_seed(0)
    m, n, k = 33, 576, 256
    a, b = torch.randn((m, k), dtype=torch.bfloat16), torch.randn((n, k), dtype=torch.bfloat16)
    c = torch.randn((m, n)) * 32 if accumulate else None
    d = c if accumulate else torch.empty((m, n), dtype=torch.bfloat16)
    reference = product(a, b) + (c if accumulate else 0)
    qa, qb = per_token_cast_to_fp8(a, use_ue8m0=use_ue8m0), per_block_cast_to_fp8(b, use_ue8m0=use_ue8m0)
    deep_gemm.fp8_gemm_nt(qa, qb, d, c=c, disable_ue8m0_cast=not use_ue8m0)
    assert calc_diff(d, reference) < 0.001
    if use_ue8m0:
        assert (torch.frexp(qa[1])[0] == 0.5).all() and (torch.frexp(qb[1])[0] == 0.5).all()


def test_what_serving_engines_do():
    """Weights are transformed once, activations have strides (1, m rounded up to 4), options come by name."""
    import deep_gemm
    from deep_gemm.utils.layout import get_mn_major_tma_aligned_tensor, get_tma_aligned_size

    torch.manual_seed(0)
    n, k, m = 192, 256, 6
    w, ws = deep_gemm.per_block_cast_to_fp8(torch.randn(n, k))
    transformed = deep_gemm.transform_sf_into_required_layout(
        sf=ws.unsqueeze(0),
        mn=n,
        k=k,
        recipe=(1, 128, 128),
        num_groups=1,
        is_sfa=False,
        disable_ue8m0_cast=True,
    )
    assert transformed.data_ptr() == ws.data_ptr() and torch.equal(transformed[0], ws)
    assert deep_gemm.transform_sf_into_required_layout(ws, n, k, (1, 128, 128), None, False) is ws
    x = torch.randn(m, k)
    q, s = deep_gemm.per_token_cast_to_fp8(x, use_ue8m0=False, gran_k=128)
    laid = get_mn_major_tma_aligned_tensor(s)
    assert laid.stride() == (1, get_tma_aligned_size(m, 4)) and get_mn_major_tma_aligned_tensor(laid) is laid
    assert deep_gemm.transform_sf_into_required_layout(
        sf=s, mn=m, k=k, recipe=(1, 128, 128), is_sfa=True
    ).stride() == (1, 8)
    assert deep_gemm.transform_sf_into_required_layout(s, m, k, (1, 128)).stride() == (1, 8)
    out, other, third = (torch.empty(m, n, dtype=torch.bfloat16) for _ in range(3))
    deep_gemm.fp8_gemm_nt((q, laid), (w, ws), out, disable_ue8m0_cast=True)
    deep_gemm.fp8_fp4_gemm_nt((q, s), (w, ws), other, recipe=None)
    deep_gemm.fp8_gemm_nt((q, s), (w, ws), third, recipe_a=(1, 128), recipe_b=(128, 128), compiled_dims="")
    assert torch.equal(out, other) and torch.equal(out, third)
    assert (
        deep_gemm.testing.calc_diff(out, x @ quantize.dequantize(quantize.Quantized(w, ws, "128x128")).T)
        < 0.001
    )


def experts(groups, n, k):
    import deep_gemm

    weights = torch.randn(groups, n, k)
    cast = [deep_gemm.per_block_cast_to_fp8(w) for w in weights]
    return weights, (
        torch.stack([q.view(torch.uint8) for q, _ in cast]).view(E4M3),
        torch.stack([s for _, s in cast]),
    )


@pytest.mark.parametrize("psum", [False, True])
def test_contiguous_experts(psum):
    import deep_gemm

    torch.manual_seed(0)
    counts, alignment, n, k = [5, 0, 130], deep_gemm.get_mk_alignment_for_contiguous_layout(), 64, 256
    weights, b = experts(3, n, k)
    ids, ends = [], []
    for group, count in enumerate(counts):
        ends.append(len(ids) + count)
        ids += [group] * count
        ids += [-1] * (-len(ids) % alignment)
    ids = torch.tensor(ids, dtype=torch.int32)
    x = torch.randn(len(ids), k)
    d = torch.full((len(ids), n), 7.0, dtype=torch.bfloat16)
    layout = torch.tensor(ends, dtype=torch.int32) if psum else ids
    options = {"use_psum_layout": True, "expected_m_for_psum_layout": 64} if psum else {}
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
        deep_gemm.per_token_cast_to_fp8(x),
        b,
        d,
        layout,
        recipe_a=(1, 128),
        recipe_b=(128, 128),
        disable_ue8m0_cast=True,
        **options,
    )
    reference = torch.zeros(len(ids), n)
    for group in range(3):
        reference[ids == group] = product(x[ids == group], weights[group])
    assert (d[ids < 0] == 0).all() and deep_gemm.testing.calc_diff(d, reference) < 0.001


def test_experts_whose_rows_are_no_multiple_of_anything():
    import deep_gemm

    torch.manual_seed(0)
    weights, b = experts(2, 64, 128)
    ids = torch.tensor([1] * 37 + [-1] * 3, dtype=torch.int32)
    x = torch.randn(40, 128)
    d = torch.empty(40, 64, dtype=torch.bfloat16)
    deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(deep_gemm.per_token_cast_to_fp8(x), b, d, ids)
    assert deep_gemm.calc_diff(d[:37], product(x[:37], weights[1])) < 0.001 and (d[37:] == 0).all()


@pytest.mark.parametrize(
    "name",
    ["m_grouped_fp8_gemm_nt_masked", "fp8_m_grouped_gemm_nt_masked", "m_grouped_fp8_fp4_gemm_nt_masked"],
)
def test_masked_experts(name):
    """Scales with strides (rows * blocks, 1, rows), where rows is no multiple of 4."""
    import deep_gemm

    torch.manual_seed(0)
    groups, rows, n, k = 3, 10, 64, 256
    weights, b = experts(groups, n, k)
    x = torch.randn(groups, rows, k)
    q, s = deep_gemm.per_token_cast_to_fp8(x.view(-1, k))
    scales = torch.empty_strided((groups, rows, 2), (2 * rows, 1, rows)).copy_(s.view(groups, rows, 2))
    counts = torch.tensor([0, 10, 4], dtype=torch.int32)
    d = torch.full((groups, rows, n), 7.0, dtype=torch.bfloat16)
    getattr(deep_gemm, name)((q.view(groups, rows, k), scales), b, d, counts, 5)
    for group, count in enumerate(counts.tolist()):
        assert (d[group, count:] == 7).all()
        if count:
            assert (
                deep_gemm.testing.calc_diff(d[group, :count], product(x[group, :count], weights[group]))
                < 0.001
            )


# --- the rest


def test_casts():
    import deep_gemm
    from deep_gemm.utils.math import align, ceil_div, per_channel_cast_to_fp8

    x = torch.randn(200, 300)
    for cast, rows, columns in (
        (deep_gemm.per_token_cast_to_fp8, 1, 128),
        (deep_gemm.per_block_cast_to_fp8, 128, 128),
        (per_channel_cast_to_fp8, 128, 1),
    ):
        q, s = cast(x, use_ue8m0=False)
        assert (
            q.shape == x.shape
            and s.shape == (ceil_div(200, rows), ceil_div(300, columns))
            and s.is_contiguous()
        )
        full = s.repeat_interleave(rows, 0)[:200].repeat_interleave(columns, 1)[:, :300]
        assert ((q.float() * full - x).abs() <= x.abs() / 16 + full * 2**-9).all()
    q, s = deep_gemm.per_token_cast_to_fp8(torch.zeros(4, 128))
    assert (q.float() == 0).all() and (s > 0).all()
    assert deep_gemm.per_token_cast_to_fp8(x, gran_k=64)[1].shape == (200, 5)
    assert align(5, 4) == 8 and deep_gemm.ceil_div(5, 4) == 2


def test_differences_and_bytes():
    from deep_gemm.testing import calc_diff, count_bytes

    x = torch.randn(50)
    assert calc_diff(x, x) < 1e-12 and calc_diff(x, -x) == pytest.approx(2) and calc_diff(x * 0, x * 0) == 0
    assert count_bytes(x, (x.bfloat16(), None, [x.to(E4M3)])) == 200 + 100 + 50


def test_settings(deep_gemm):
    assert deep_gemm.get_pdl() is False
    deep_gemm.set_pdl(True)
    assert deep_gemm.get_pdl() is minigemm.get_pdl() is True
    deep_gemm.set_pdl(False)
    assert deep_gemm.get_pdl() is minigemm.get_pdl() is False
    with pytest.raises(TypeError, match="enable: expected True or False, got 1"):
        deep_gemm.set_pdl(1)
    deep_gemm.set_mk_alignment_for_contiguous_layout(64)
    assert (
        deep_gemm.get_mk_alignment_for_contiguous_layout()
        == 64
        == minigemm.get_mk_alignment_for_contiguous_layout()
    )
    deep_gemm.set_mk_alignment_for_contiguous_layout(128)
    theoretical = deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout
    assert (
        theoretical() == 128
        and theoretical(40) == 64
        and theoretical(4096, 8) == 128
        and theoretical(4096, 64) == 64
    )


@pytest.mark.parametrize("expected_m", [np.int64(3), np.int32(3), torch.tensor(3)])
def test_integers_of_other_kinds(deep_gemm, expected_m):
    q, w = quantize.quantize(torch.ones(4, 128), "1x128"), quantize.quantize(torch.ones(8, 128), "128x128")
    a, b = (q.data[None], q.scale[None].contiguous()), (w.data[None], w.scale[None])
    d, counts = torch.zeros(1, 4, 8, dtype=torch.bfloat16), torch.tensor([3], dtype=torch.int32)
    deep_gemm.m_grouped_fp8_gemm_nt_masked(a, b, d, counts, expected_m)
    assert torch.equal(d[0, :, 0], torch.tensor([128.0, 128, 128, 0], dtype=torch.bfloat16))
    if not isinstance(expected_m, torch.Tensor):
        deep_gemm.set_num_sms(expected_m)
        assert type(deep_gemm.get_num_sms()) is int
        minigemm.set_num_sms(None)


@pytest.mark.parametrize("name", ["bf16_gemm_nt", "fp8_gemm_nn", "fp8_gemm_tt", "einsum", "fp8_mqa_logits"])
def test_names_that_are_left_out_say_so(deep_gemm, name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}': minigemm covers"):
        getattr(deep_gemm, name)
    assert not hasattr(deep_gemm, name)


def test_what_is_not_here(deep_gemm):
    a, b = (
        deep_gemm.per_token_cast_to_fp8(torch.randn(8, 128)),
        deep_gemm.per_block_cast_to_fp8(torch.randn(16, 128)),
    )
    d = torch.empty(8, 16, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="grouped along k"):
        deep_gemm.k_grouped_fp8_gemm_nt_contiguous(a, b, d, [128], torch.tensor([128], dtype=torch.int32), d)
    with pytest.raises(NotImplementedError, match="b: FP4 is not implemented here"):
        deep_gemm.fp8_fp4_gemm_nt(a, (b[0].view(torch.int8), b[1]), d)
    with pytest.raises(NotImplementedError, match="after Hopper"):
        deep_gemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(a[1])
    with pytest.raises(ValueError, match=r"recipe: expected \(1, 128, 128\) .* got \(1, 1, 128\)"):
        deep_gemm.fp8_gemm_nt(a, b, d, recipe=(1, 1, 128))
    with pytest.raises(ValueError, match=r"recipe_b: expected \(128, 128\) .* got \(1, 128\)"):
        deep_gemm.fp8_gemm_nt(a, b, d, recipe_b=(1, 128))
    with pytest.raises(ValueError, match="compiled_dims: expected some of the letters"):
        deep_gemm.fp8_gemm_nt(a, b, d, compiled_dims="xyz")
    with pytest.raises(TypeError, match="d: expected a torch.Tensor, got NoneType"):
        deep_gemm.fp8_gemm_nt(a, b, None)
    with pytest.raises(
        ValueError, match="d: expected bfloat16 or float32, got torch.float16"
    ):  # clients catch ValueError, not TypeError
        deep_gemm.fp8_gemm_nt(a, b, d.half())
    with pytest.raises(TypeError, match="out: expected bfloat16, got torch.float32"):
        deep_gemm.gemm_fp8_fp8_bf16_nt(a, b, d.float())
    with pytest.raises(ValueError, match="is_sfa: expected True or False"):
        deep_gemm.transform_sf_into_required_layout(a[1], 8, 128, (1, 128, 128))
    with pytest.raises(ValueError, match=r"sf: expected shape \(9, 1\), got \(8, 1\)"):
        deep_gemm.transform_sf_into_required_layout(a[1], 9, 128, (1, 128))
    with pytest.raises(ValueError, match="sf: expected float32, got torch.int32"):
        deep_gemm.transform_sf_into_required_layout(a[1].int(), 8, 128, (1, 128))
    with pytest.raises(ValueError, match="sf: expected 2-D or 3-D float32 scales, got 1-D"):
        deep_gemm.get_mn_major_tma_aligned_tensor(torch.ones(3))
    with pytest.raises(ValueError, match=r"x: expected a matrix, got shape \(3,\)"):
        deep_gemm.per_token_cast_to_fp8(torch.ones(3))


SIGNATURES = {
    "fp8_gemm_nt": "a b d c recipe recipe_a recipe_b compiled_dims disable_ue8m0_cast",
    "m_grouped_fp8_gemm_nt_contiguous": "a b d grouped_layout recipe recipe_a recipe_b "
    "compiled_dims disable_ue8m0_cast use_psum_layout ensure_zero_padding expected_m_for_psum_layout",
    "m_grouped_fp8_gemm_nt_masked": "a b d masked_m expected_m recipe recipe_a recipe_b "
    "compiled_dims disable_ue8m0_cast",
    "gemm_fp8_fp8_bf16_nt": "lhs rhs out",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous": "lhs rhs out m_indices",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked": "lhs rhs out masked_m expected_m",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(deep_gemm, name):
    assert " ".join(inspect.signature(getattr(deep_gemm, name)).parameters) == SIGNATURES[name]


@pytest.mark.parametrize("name", ["utils", "utils.layout", "utils.math", "testing"])
def test_submodules(name):
    module = importlib.import_module(f"deep_gemm.{name}")
    assert all(getattr(module, each, None) is not None for each in module.__all__)


def test_every_public_name_is_there(deep_gemm):
    assert all(getattr(deep_gemm, name, None) is not None for name in deep_gemm.__all__)
