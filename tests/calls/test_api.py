"""The library's calls on CPU tensors: the emulator runs the kernel that a GPU runs."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import minigemm
from minigemm import api, quantize, runtime
from minigemm.kernels import s07_promoted, s11_overlapped, s12_swapped
from minigemm.kernels.grouped import EARLY
from minigemm.layout import is_m_major
from minigemm.plan import choose
from minigemm.quantize import Quantized
from minigemm.types import Product

SMALL = s11_overlapped.Config(64, 32, 3, 1)
POISON = 3.0


@pytest.fixture(autouse=True)
def settings():
    yield
    minigemm.set_num_sms(None)
    minigemm.set_batch_invariant(False)
    minigemm.set_pdl(False)
    minigemm.set_mk_alignment_for_contiguous_layout(128)


@pytest.fixture
def executed(monkeypatch):
    """The launches of the calls inside the test."""
    launches = []

    def launch(kernel, described):
        launches.append(described)
        real(kernel, described)

    real = runtime.of(torch.device("cpu")).launch
    monkeypatch.setattr(runtime.of(torch.device("cpu")), "launch", launch)
    return launches


def operands(m, n, k, seed=0):
    return quantize.quantize(quantize.activations(m, k, seed=seed), "1x128"), quantize.quantize(
        quantize.weights(n, k, seed=seed + 1), "128x128"
    )


def stacked(parts):
    data = torch.stack([part.data.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
    return data, torch.stack([part.scale for part in parts])


def experts(groups, n, k, seed=0):
    return [
        quantize.quantize(quantize.weights(n, k, seed=seed + 10 + group), "128x128")
        for group in range(groups)
    ]


def grouped_rows(a, weights, ids, dtype=torch.bfloat16):
    """Row by row of s07's products, zeros where the id is none."""
    d = torch.zeros(a.data.shape[0], weights[0].data.shape[0], dtype=dtype)
    for group, b in enumerate(weights):
        if (ids == group).any():
            d[ids == group] = s07_promoted.gemm(a, b, out_dtype=dtype)[ids == group]
    return d


def bits(x):
    return x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)


# --- dense


@pytest.mark.parametrize(
    "m, n, k", [(1, 1, 16), (5, 77, 144), (100, 200, 384), (130, 72, 256), (65, 24, 1040)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dense_has_the_bits_of_s07(m, n, k, dtype):
    a, b = operands(m, n, k)
    d = minigemm.fp8_gemm_nt(a, b, out_dtype=dtype)
    assert d.dtype == dtype and torch.equal(bits(d), bits(s07_promoted.gemm(a, b, out_dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_rows_have_the_bits_of_many(dtype):
    """Row i is the same whichever kernel runs, for any number of rows beside it."""
    a, b = operands(130, 136, 640)
    whole = minigemm.fp8_gemm_nt(a, b, out_dtype=dtype)
    for m in (1, 8, 40, 64, 100, 130):
        few = (a.data[:m], a.scale[:m].contiguous())
        for config in (
            None,
            SMALL,
            s12_swapped.Config(16, 64, 2),
            s12_swapped.Config(64, 128, 2, 2, blocks=2),
        ):
            d = minigemm.fp8_gemm_nt(few, b, out_dtype=dtype, config=config)
            assert torch.equal(bits(d), bits(whole[:m])), (m, config)


def test_every_form_of_an_operand():
    a, b = operands(20, 40, 256)
    d = minigemm.fp8_gemm_nt(a, b)
    row_major = a.scale.contiguous()
    tight = torch.empty_strided((20, 2), (1, 20)).copy_(a.scale)[:19]  # strides (1, 20) for 19 rows
    for scale in (a.scale, row_major, torch.ones(20, 4)[:, ::2].copy_(a.scale)):
        for operand in ((a.data, scale), [a.data, scale], Quantized(a.data, scale, "1x128")):
            assert torch.equal(minigemm.fp8_gemm_nt(operand, (b.data, b.scale)), d)
    assert torch.equal(minigemm.fp8_gemm_nt((a.data[:19], tight), b), d[:19])


def test_scales_with_a_pitch_that_tma_cannot_take():
    """What a compiler's pass may make of M-major scales: strides (1, m) for an m that is no multiple of 4."""
    a, b = operands(6, 16, 384)
    scale = torch.empty_strided((6, 3), (1, 6)).copy_(a.scale)
    assert not is_m_major(scale)
    assert torch.equal(minigemm.fp8_gemm_nt((a.data, scale), b), minigemm.fp8_gemm_nt(a, b))


def test_laid_out_scales_are_not_copied(executed):
    a, b = operands(20, 40, 256)
    minigemm.fp8_gemm_nt(a, b)
    read = {
        getattr(arg, "tensor", arg).data_ptr()
        for arg in executed[0].args
        if hasattr(arg, "tensor") or isinstance(arg, torch.Tensor)
    }
    assert {a.data.data_ptr(), a.scale.data_ptr(), b.data.data_ptr(), b.scale.data_ptr()} <= read


def test_one_launch_a_call(executed):
    a, b = operands(20, 40, 256)
    for _ in range(3):
        minigemm.fp8_gemm_nt(a, b, torch.empty(20, 40, dtype=torch.bfloat16))
    assert len(executed) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pitch, first", [(40, 0), (48, 0), (41, 0), (43, 1), (56, 3)])
def test_d_inside_other_memory(dtype, pitch, first):
    """Any row stride and any start; nothing beside d is written."""
    a, b = operands(70, 40, 256)
    memory = torch.full((72, pitch), POISON, dtype=dtype).view(-1)
    d = memory[first : first + 70 * pitch].view(70, pitch)[:, :40]
    assert minigemm.fp8_gemm_nt(a, b, d) is d
    assert torch.equal(d, minigemm.fp8_gemm_nt(a, b, out_dtype=dtype))
    d.fill_(POISON)
    assert (memory == POISON).all()


def test_a_single_row_with_an_odd_stride():
    a, b = operands(1, 16, 32)
    wide = torch.zeros(1, 72, dtype=torch.uint8).view(torch.float8_e4m3fn)[:, :32]
    wide.view(torch.uint8).copy_(a.data.view(torch.uint8))
    assert wide.stride(0) == 72
    assert torch.equal(minigemm.fp8_gemm_nt((wide, a.scale), b), minigemm.fp8_gemm_nt(a, b))


@pytest.mark.parametrize("m, n, k", [(0, 8, 32), (8, 0, 32), (0, 0, 0)])
def test_empty(m, n, k, executed):
    a, b = operands(m, n, k)
    d = minigemm.fp8_gemm_nt(a, b)
    assert d.shape == (m, n) and not executed


def test_k_of_zero(executed):
    a, b = operands(8, 16, 0)
    assert (minigemm.fp8_gemm_nt(a, b) == 0).all()
    c = torch.randn(8, 16).bfloat16()
    assert torch.equal(minigemm.fp8_gemm_nt(a, b, None, c), c)
    d = torch.full((8, 16), POISON, dtype=torch.bfloat16)
    assert (minigemm.fp8_gemm_nt(a, b, d) == 0).all() and not executed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_accumulation(dtype):
    a, b = operands(30, 24, 256)
    exact = minigemm.fp8_gemm_nt(a, b, out_dtype=torch.float32)
    c = torch.randn(30, 24).to(dtype)
    expected = (c.float() + exact).to(dtype)
    kept = c.clone()
    apart = minigemm.fp8_gemm_nt(a, b, None, c, out_dtype=dtype)
    assert torch.equal(apart, expected) and torch.equal(c, kept)
    d = torch.full_like(c, POISON)
    assert torch.equal(minigemm.fp8_gemm_nt(a, b, d, c), expected) and torch.equal(c, kept)
    assert minigemm.fp8_gemm_nt(a, b, c, c) is c and torch.equal(c, expected)


def test_nan_and_infinity_stay_in_their_rows_and_columns():
    a, b = operands(20, 24, 256)
    a.scale[3, 1], b.data.view(torch.uint8)[5, 7] = float("inf"), 0x7F
    d = minigemm.fp8_gemm_nt(a, b)
    assert d[:, 5].isnan().all() and not d[3].isfinite().any()
    rest = d[torch.arange(20) != 3][:, torch.arange(24) != 5]
    assert rest.isfinite().all()


def test_a_config_of_ones_own():
    a, b = operands(70, 40, 256)
    d = minigemm.fp8_gemm_nt(a, b, config=SMALL, out_dtype=torch.float32)
    assert torch.equal(d, minigemm.fp8_gemm_nt(a, b, out_dtype=torch.float32))


def test_threads():
    a, b = operands(33, 40, 256)
    expected, got = minigemm.fp8_gemm_nt(a, b), {}

    def call(number):
        got[number] = minigemm.fp8_gemm_nt(a, b)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and all(torch.equal(d, expected) for d in got.values())


# --- contiguous


def test_contiguous_with_ids():
    """Out of order, one repeated, one empty, padding behind and between; m no multiple of anything."""
    weights = experts(4, 72, 256)
    ids = torch.tensor([2] * 128 + [0] * 50 + [-1] * 78 + [2] * 20, dtype=torch.int32)
    a = quantize.quantize(quantize.activations(len(ids), 256), "1x128")
    d = torch.full((len(ids), 72), POISON, dtype=torch.bfloat16)
    assert minigemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked(weights), d, ids) is d
    assert torch.equal(bits(d), bits(grouped_rows(a, weights, ids)))
    assert (d[ids < 0] == 0).all()
    row_major = (a.data, a.scale.contiguous())
    assert torch.equal(minigemm.m_grouped_fp8_gemm_nt_contiguous(row_major, stacked(weights), None, ids), d)


def test_padding_may_stay():
    weights, ids = experts(2, 16, 128), torch.tensor([1] * 5 + [-1] * 4, dtype=torch.int32)
    a = quantize.quantize(quantize.activations(9, 128), "1x128")
    d = torch.full((9, 16), POISON, dtype=torch.bfloat16)
    minigemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked(weights), d, ids, ensure_zero_padding=False)
    assert (d[5:] == POISON).all() and torch.equal(d[:5], grouped_rows(a, weights, ids)[:5])


@pytest.mark.parametrize("alignment", [128, 16, 1])
def test_contiguous_with_prefix_sums(alignment):
    minigemm.set_mk_alignment_for_contiguous_layout(alignment)
    counts, ends, ids, start = [40, 0, 70, 3], [], [], 0
    for group, count in enumerate(counts):
        start = -(-start // alignment) * alignment
        ids += [-1] * (start - len(ids)) + [group] * count
        start += count
        ends.append(start)
    ids += [-1] * 7
    weights = experts(4, 40, 144)
    a = quantize.quantize(quantize.activations(len(ids), 144), "1x128")
    d = torch.full((len(ids), 40), POISON, dtype=torch.bfloat16)
    minigemm.m_grouped_fp8_gemm_nt_contiguous(
        a, stacked(weights), d, torch.tensor(ends, dtype=torch.int32), use_psum_layout=True
    )
    expected = grouped_rows(a, weights, torch.tensor(ids))
    assert torch.equal(bits(d), bits(expected))


def test_contiguous_accumulates():
    weights, ids = experts(2, 16, 128), torch.tensor([1] * 6 + [-1] * 3, dtype=torch.int32)
    a = quantize.quantize(quantize.activations(9, 128), "1x128")
    c = torch.randn(9, 16)
    d = minigemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked(weights), None, ids, c, out_dtype=torch.float32)
    assert torch.equal(d, c + grouped_rows(a, weights, ids, torch.float32))


@given(st.integers(0, 2**32 - 1))
@hypothesis_settings(max_examples=8)
def test_groups_that_begin_anywhere(seed):
    source = random.Random(seed)
    minigemm.set_mk_alignment_for_contiguous_layout(1)
    ids = []
    while len(ids) < 150:
        ids += [source.randint(-1, 2)] * source.choice((1, 2, 30, 64, 100))
    ids = torch.tensor(ids, dtype=torch.int32)
    n = source.choice((8, 24, 77))
    weights = experts(3, n, 144, seed % 1000)
    a = quantize.quantize(quantize.activations(len(ids), 144, seed=seed % 1000), "1x128")
    d = torch.full((len(ids), n), POISON, dtype=torch.bfloat16)
    minigemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked(weights), d, ids)
    assert torch.equal(bits(d), bits(grouped_rows(a, weights, ids)))


# --- masked


@pytest.mark.parametrize("counts", [[0, 37, 70], [70, 70, 70], [0, 0, 0], [1, 0, 65]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_masked(counts, dtype):
    weights, rows = experts(3, 40, 256), 70
    each = [quantize.quantize(quantize.activations(rows, 256, seed=group), "1x128") for group in range(3)]
    data, scale = stacked(each)
    d = torch.full((3, rows, 40), POISON, dtype=dtype)
    masked_m = torch.tensor(counts, dtype=torch.int32)
    assert (
        minigemm.m_grouped_fp8_gemm_nt_masked((data, scale), stacked(weights), d, masked_m, expected_m=30)
        is d
    )
    for group, count in enumerate(counts):
        expected = s07_promoted.gemm(each[group], weights[group], out_dtype=dtype)
        assert torch.equal(bits(d[group, :count]), bits(expected[:count]))
        assert (d[group, count:] == POISON).all()


def test_masked_scales_in_any_order(executed):
    """M-major with a pitch of rows works where TMA takes it, and is laid out where it does not."""
    weights = stacked(experts(2, 16, 256))
    for rows in (8, 6):
        each = [quantize.quantize(quantize.activations(rows, 256, seed=group), "1x128") for group in range(2)]
        data, scale = stacked(each)
        pitched = torch.empty_strided((2, rows, 2), (2 * rows, 1, rows)).copy_(scale)
        counts = torch.tensor([rows, rows - 1], dtype=torch.int32)
        results = []
        for each_scale in (scale, pitched):
            d = torch.zeros(2, rows, 16, dtype=torch.bfloat16)
            results.append(minigemm.m_grouped_fp8_gemm_nt_masked((data, each_scale), weights, d, counts))
        assert torch.equal(*results)
        read = {arg.tensor.data_ptr() for arg in executed[-1].args if hasattr(arg, "tensor")}
        assert (pitched.data_ptr() in read) == (rows == 8)


def test_masked_accumulates():
    weights, each = experts(2, 16, 128), quantize.quantize(quantize.activations(5, 128), "1x128")
    c = torch.randn(2, 5, 16)
    counts = torch.tensor([2, 5], dtype=torch.int32)
    d = minigemm.m_grouped_fp8_gemm_nt_masked(
        stacked([each, each]), stacked(weights), None, counts, None, c, out_dtype=torch.float32
    )
    for group, count in enumerate([2, 5]):
        expected = c[group] + s07_promoted.gemm(each, weights[group], out_dtype=torch.float32)
        assert torch.equal(d[group, :count], expected[:count])


def test_groups_of_nothing(executed):
    """No columns, or no weights: zeros where a product would be written, and nowhere else."""
    data, scale = stacked([quantize.quantize(torch.ones(5, 0), "1x128")] * 2)
    empty = stacked([quantize.quantize(torch.ones(8, 0), "128x128")] * 2)
    d = torch.full((2, 5, 8), POISON)
    minigemm.m_grouped_fp8_gemm_nt_masked((data, scale), empty, d, torch.tensor([2, 5], dtype=torch.int32))
    assert (d[0, :2] == 0).all() and (d[0, 2:] == POISON).all() and (d[1] == 0).all()
    ids, d = torch.tensor([1, -1, 0, -1, 1], dtype=torch.int32), torch.full((5, 8), POISON)
    minigemm.m_grouped_fp8_gemm_nt_contiguous((data[0], scale[0]), empty, d, torch.full_like(ids, -1))
    assert (d == 0).all()
    minigemm.set_mk_alignment_for_contiguous_layout(1)
    d.fill_(POISON)
    minigemm.m_grouped_fp8_gemm_nt_contiguous((data[0], scale[0]), empty, d, ids, ensure_zero_padding=False)
    assert (d[ids < 0] == POISON).all() and (d[ids >= 0] == 0).all()
    a, none = quantize.quantize(torch.ones(5, 128), "1x128"), torch.ones(0, 8, 128).to(torch.float8_e4m3fn)
    d.fill_(POISON)
    minigemm.m_grouped_fp8_gemm_nt_contiguous(
        a, (none, torch.ones(0, 1, 1)), d, torch.full((5,), -1, dtype=torch.int32)
    )
    assert (d == 0).all()
    no_rows = quantize.quantize(torch.ones(0, 128), "1x128")
    weights, none = stacked(experts(2, 8, 128)), torch.zeros(0, dtype=torch.int32)
    d = minigemm.m_grouped_fp8_gemm_nt_contiguous(no_rows, weights, None, none)
    assert d.shape == (0, 8) and not executed


# --- settings


def test_num_sms(executed):
    a, b = operands(130, 200, 128)
    d = minigemm.fp8_gemm_nt(a, b)
    assert minigemm.get_num_sms() == 132
    minigemm.set_num_sms(3)
    assert minigemm.get_num_sms() == 3
    assert torch.equal(minigemm.fp8_gemm_nt(a, b), d)
    assert executed[0].grid[0] > 3 and executed[1].grid[0] <= 3
    minigemm.set_num_sms(None)
    assert minigemm.get_num_sms() == 132


def test_the_bits_of_a_row_do_not_depend_on_the_others():
    minigemm.set_batch_invariant(True)
    assert minigemm.get_batch_invariant()
    a, b = operands(200, 64, 384)
    d = minigemm.fp8_gemm_nt(a, b)
    for m in (1, 2, 63, 64, 65, 129):
        part = (a.data[:m], a.scale[:m].contiguous())
        assert torch.equal(bits(minigemm.fp8_gemm_nt(part, b)), bits(d[:m])), m


def test_alignment_and_aligned_sizes():
    assert minigemm.get_mk_alignment_for_contiguous_layout() == 128
    minigemm.set_mk_alignment_for_contiguous_layout(64)
    assert minigemm.get_mk_alignment_for_contiguous_layout() == 64
    assert minigemm.get_tma_aligned_size(5, 4) == 8 and minigemm.get_tma_aligned_size(5, 1) == 16


def test_dependent_launches(executed):
    """Off unless set; a wrong argument changes nothing; the bits stay, in every layout."""
    a, b = operands(20, 40, 384)
    grouped = (b.data[None], b.scale[None])
    ids = torch.tensor([0] * 9 + [-1] * 11, dtype=torch.int32)
    counts, rows = torch.tensor([9], dtype=torch.int32), (a.data[None], a.scale[None])
    results = []
    for enabled, early in ((False, False), (True, False), (True, True), (False, False)):
        minigemm.set_pdl(enabled, early)
        assert minigemm.get_pdl() is enabled
        with pytest.raises(ValueError, match="early_weights"):
            minigemm.set_pdl(False, True)
        dense = minigemm.fp8_gemm_nt(a, b)
        contiguous = minigemm.m_grouped_fp8_gemm_nt_contiguous(a, grouped, None, ids)
        masked = minigemm.m_grouped_fp8_gemm_nt_masked(rows, grouped, None, counts)[0, :9]
        results.append((dense, contiguous, masked))
        assert [launch.dependent for launch in executed] == [enabled] * 3
        assert [launch.args[EARLY] for launch in executed] == [int(early)] * 3
        executed.clear()
    for each in results[1:]:
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(each, results[0], strict=True))


def test_settings_are_for_the_next_call_on():
    product, device = Product(4096, 4096, 4096), torch.device("cpu")
    assert choose.config_for(product, device).ctas == 132
    minigemm.set_num_sms(100)
    assert choose.config_for(product, device).ctas == 100
    minigemm.set_num_sms(1000)  # more than there are
    assert choose.config_for(product, device).ctas == 132


@pytest.mark.parametrize("name", api.__all__)
def test_the_calls_are_the_librarys_own(name):
    assert getattr(minigemm, name) is getattr(api, name) and getattr(api, name).__doc__
