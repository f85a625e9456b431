"""Every bad call of the library, and what it must say. Nothing is compiled or launched for any of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

import minigemm
from minigemm import checks, quantize, runtime
from minigemm.compiler import jit
from minigemm.kernels import s07_promoted, s10_grouped
from minigemm.layout import ceil_div, empty_m_major
from minigemm.plan import prepared
from minigemm.plan.ahead import precompile
from minigemm.quantize import Quantized

M, N, K, G, T = 16, 160, 272, 3, 24
E4M3 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled or launched")

    monkeypatch.setattr(jit, "build", refuse)
    monkeypatch.setattr(runtime.of(torch.device("cpu")), "launch", refuse)
    yield
    minigemm.set_mk_alignment_for_contiguous_layout(128)


def fp8(*shape, device="cpu"):
    return (
        torch.empty(shape, dtype=E4M3, device=device)
        if device == "meta"
        else torch.zeros(shape, dtype=torch.uint8).view(E4M3)
    )


def scale(*shape):
    """Of 1x128 blocks where the first size is one of rows; the caller gives the shape of the scales."""
    return torch.ones(shape)


def a_of(data=None, scales=None):
    return (fp8(M, K) if data is None else data, scale(M, 3) if scales is None else scales)


def b_of(data=None, scales=None):
    return (fp8(N, K) if data is None else data, scale(2, 3) if scales is None else scales)


def pitched(rows, k, pitch, start=0):
    memory = torch.zeros(rows * pitch + start + 16, dtype=torch.uint8)
    return memory[start : start + rows * pitch].view(rows, pitch)[:, :k].view(E4M3)


def out(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape or (M, N), dtype=dtype)


A, B = a_of(), b_of()
CLASH_B = torch.zeros(N * K, dtype=torch.uint8)  # the memory of a b, of an a, and of a d
CLASH = CLASH_B[: 2 * M * N].view(torch.bfloat16).view(M, N)
WIDE = torch.zeros(M, 2 * N)
META_A = (fp8(M, K, device="meta"), torch.ones(M, 3, device="meta"))
META_B = (fp8(N, K, device="meta"), torch.ones(2, 3, device="meta"))
META_D = torch.empty(M, N, dtype=torch.bfloat16, device="meta")

# a, b, keywords; the error, its words
DENSE = {
    "a is a tensor": (A[0], B, {}, TypeError, r"a: expected \(data, scales\) or a Quantized, got Tensor"),
    "a is None": (None, B, {}, TypeError, r"a: expected \(data, scales\) or a Quantized, got NoneType"),
    "b has three": (A, (*B, 1), {}, TypeError, r"b: expected \(data, scales\) or a Quantized, got tuple of 3"),
    "b is a list of one": (A, [B[0]], {}, TypeError, r"b: expected \(data, scales\) or a Quantized, got list of 1"),
    "data is an array": ((np.zeros((M, K)), A[1]), B, {}, TypeError, r"a\[0\]: expected a torch.Tensor, got ndarray"),
    "scales are a number": (A, (B[0], 1.0), {}, TypeError, r"b\[1\]: expected a torch.Tensor, got float"),
    "scales are None": ((A[0], None), B, {}, TypeError, r"a\[1\]: expected a torch.Tensor, got NoneType"),
    "data of a Quantized": (Quantized(1, A[1], "1x128"), B, {}, TypeError, "a.data: expected a torch.Tensor, got int"),
    "sparse": ((A[0], torch.eye(3).to_sparse()), B, {}, TypeError, r"a\[1\]: expected a dense tensor, got torch.sparse_coo"),
    "granularity of a": (Quantized(*A, "128x128"), B, {}, ValueError, "a.granularity: expected '1x128', got '128x128'"),
    "granularity of b": (A, Quantized(*B, "tensor"), {}, ValueError, "b.granularity: expected '128x128', got 'tensor'"),
    "swapped": (quantize.quantize(torch.ones(2, 128), "128x128"), B, {}, ValueError, "a.granularity: expected '1x128', got '128x128'"),
    "bf16": ((torch.ones(M, K).bfloat16(), A[1]), B, {}, TypeError, r"a\[0\]: expected float8_e4m3fn, got torch.bfloat16"),
    "e5m2": (A, (B[0].view(torch.uint8).view(torch.float8_e5m2), B[1]), {}, TypeError, r"b\[0\]: expected float8_e4m3fn, got torch.float8_e5m2"),
    "e4m3fnuz": (A, (B[0].view(torch.uint8).view(torch.float8_e4m3fnuz), B[1]), {}, TypeError, r"b\[0\]: expected float8_e4m3fn, got torch.float8_e4m3fnuz"),
    "bytes": (A, (B[0].view(torch.uint8), B[1]), {}, TypeError, r"b\[0\]: expected float8_e4m3fn, got torch.uint8"),
    "one dimension": ((A[0][0], A[1]), B, {}, ValueError, r"a\[0\]: expected \(rows, k\), got shape \(272,\)"),
    "three dimensions": (A, (B[0][None], B[1]), {}, ValueError, r"b\[0\]: expected \(rows, k\), got shape \(1, 160, 272\)"),
    "k mismatch": (A, (fp8(N, 256), scale(2, 2)), {}, ValueError, r"b: expected \(n, 272\), as many columns as a has, got \(160, 256\)"),
    "transposed b": (A, (fp8(K, N), scale(3, 2)), {}, ValueError, r"b: expected \(n, 272\), as many columns as a has, got \(272, 160\)"),
    "k not 16": ((pitched(M, 24, 32), scale(M, 1)), (pitched(N, 24, 32), scale(2, 1)), {}, ValueError, r"a\[0\]: expected a k .* multiple of 16, got 24"),
    "column-major": ((fp8(K, M).T, A[1]), B, {}, ValueError, r"a\[0\]: expected a contiguous last dimension, got strides \(1, 16\)"),
    "row stride": (A, (pitched(N, K, 280), B[1]), {}, ValueError, r"b\[0\]: expected a row stride that is a multiple of 16 bytes .* got 280"),
    "expanded": ((fp8(1, K).expand(M, K), A[1]), B, {}, ValueError, r"a\[0\]: expected a row stride .* at least k = 272, got 0"),
    "rows overlap": ((torch.zeros(9999, dtype=torch.uint8).as_strided((M, K), (16, 1)).view(E4M3), A[1]), B, {}, ValueError, r"a\[0\]: .* got 16"),
    "start": (A, (pitched(N, K, K, start=8), B[1]), {}, ValueError, r"b\[0\]: expected a 16-byte aligned start, .* 8 bytes past one"),
    "too many rows": ((fp8(2**30 + 1, K, device="meta"), META_A[1]), META_B, {}, ValueError, r"a\[0\]: expected at most 2\*\*30 rows and columns"),
    "scale dtype": ((A[0], A[1].double()), B, {}, TypeError, r"a\[1\]: expected float32, got torch.float64"),
    "scale of b dtype": (A, (B[0], B[1].bfloat16()), {}, TypeError, r"b\[1\]: expected float32, got torch.bfloat16"),
    "packed exponents": ((A[0], torch.ones(M, 1, dtype=torch.int32)), B, {}, TypeError, r"a\[1\]: expected float32, got torch.int32"),
    "too few scales": ((A[0], scale(M, 2)), B, {}, ValueError, r"a\[1\]: expected shape \(16, 3\), one scale for each 1x128 block, got \(16, 2\)"),
    "scales transposed": ((A[0], scale(3, M)), B, {}, ValueError, r"a\[1\]: expected shape \(16, 3\), .* got \(3, 16\)"),
    "scales flat": ((A[0], scale(48)), B, {}, ValueError, r"a\[1\]: expected shape \(16, 3\), .* got \(48,\)"),
    "one scale": ((A[0], torch.tensor(1.0)), B, {}, ValueError, r"a\[1\]: expected shape \(16, 3\), .* got \(\)"),
    "scales of b per row": (A, (B[0], scale(N, 3)), {}, ValueError, r"b\[1\]: expected shape \(2, 3\), one scale for each 128x128 block, got \(160, 3\)"),
    "scales of b floor": (A, (B[0], scale(1, 2)), {}, ValueError, r"b\[1\]: expected shape \(2, 3\), .* got \(1, 2\)"),
    "scales expanded": ((A[0], scale(M, 1).expand(M, 3)), B, {}, ValueError, r"a\[1\]: expected scales that do not overlap, got strides \(1, 0\)"),
    "scales overlap": ((A[0], torch.ones(99).as_strided((M, 3), (1, 5))), B, {}, ValueError, r"a\[1\]: expected scales that do not overlap, got .*\(1, 5\)"),
    "scales of b column-major": (A, (B[0], scale(3, 2).T), {}, ValueError, r"b\[1\]: expected row-major scales that do not overlap, got strides \(1, 2\)"),
    "scales of b expanded": (A, (B[0], scale(1, 3).expand(2, 3)), {}, ValueError, r"b\[1\]: expected row-major scales .* got strides \(0, 1\)"),
    "scale device": ((A[0], META_A[1]), B, {}, ValueError, r"a\[1\]: expected the data's device, cpu, got meta"),
    "device of b": (A, META_B, {}, ValueError, r"b\[0\]: expected the device of a, cpu, got meta"),
    "device": (META_A, META_B, {}, ValueError, "device: expected tensors on a CPU .* got meta"),
    "d is an array": (A, B, {"d": np.zeros((M, N))}, TypeError, "d: expected a torch.Tensor, got ndarray"),
    "d dtype": (A, B, {"d": out(dtype=torch.float16)}, TypeError, "d: expected bfloat16 or float32, got torch.float16"),
    "d shape": (A, B, {"d": out(N, M)}, ValueError, r"d: expected shape \(16, 160\), got \(160, 16\)"),
    "d flat": (A, B, {"d": out(M * N)}, ValueError, r"d: expected shape \(16, 160\), got \(2560,\)"),
    "d device": (A, B, {"d": META_D}, ValueError, "d: expected the device of a, cpu, got meta"),
    "d column-major": (A, B, {"d": out(N, M).T}, ValueError, r"d: expected a contiguous last dimension, got strides \(1, 16\)"),
    "d expanded": (A, B, {"d": out(1, N).expand(M, N)}, ValueError, "d: expected rows that do not overlap, a row stride of at least n = 160, got 0"),
    "d overlaps itself": (A, B, {"d": out(M * N).as_strided((M, N), (80, 1))}, ValueError, "d: expected rows that do not overlap, .* got 80"),
    "d needs a gradient": (A, B, {"d": out(dtype=torch.float32).requires_grad_()}, ValueError, "d: expected a tensor that needs no gradient"),
    "d overlaps a": ((CLASH_B[: M * K].view(M, K).view(E4M3), A[1]), B, {"d": CLASH}, ValueError, "d: expected memory of its own, .* overlaps a$"),
    "d overlaps b": (A, (CLASH_B.view(N, K).view(E4M3), B[1]), {"d": CLASH}, ValueError, "d: expected memory of its own, .* overlaps b$"),
    "d overlaps the scales": ((A[0], WIDE.view(-1)[: 3 * M].view(M, 3)), B, {"d": WIDE[:, :N]}, ValueError, "overlaps the scales of a"),
    "d overlaps those of b": (A, (B[0], WIDE.view(-1)[6:12].view(2, 3)), {"d": WIDE[:, :N]}, ValueError, "overlaps the scales of b"),
    "out_dtype": (A, B, {"out_dtype": torch.float16}, TypeError, "out_dtype: expected torch.bfloat16 or torch.float32, got torch.float16"),
    "out_dtype is a word": (A, B, {"out_dtype": "float32"}, TypeError, "out_dtype: expected torch.bfloat16 or torch.float32, got 'float32'"),
    "out_dtype of another d": (A, B, {"d": out(), "out_dtype": torch.float32}, ValueError, "out_dtype: expected the dtype of d, torch.bfloat16, got"),
    "c is a number": (A, B, {"c": 0.0}, TypeError, "c: expected a torch.Tensor, got float"),
    "c dtype": (A, B, {"c": out(dtype=torch.float32)}, TypeError, "c: expected the dtype of d, torch.bfloat16, got torch.float32"),
    "c shape": (A, B, {"c": out(1, N)}, ValueError, r"c: expected shape \(16, 160\), got \(1, 160\)"),
    "c device": (A, B, {"c": META_D}, ValueError, "c: expected the device of a, cpu, got meta"),
    "c overlaps d": (A, B, {"c": WIDE.view(-1)[8 : M * N + 8].view(M, N), "d": WIDE.view(-1)[: M * N].view(M, N)}, ValueError, "overlaps c"),
    "config is a dict": (A, B, {"config": {"block_m": 64}}, TypeError, "config: expected a s10_grouped.Config, got builtins.dict"),
    "config of another stage": (A, B, {"config": s07_promoted.Config()}, TypeError, "config: expected a s10_grouped.Config, got s07_promoted.Config"),
    "config field": (A, B, {"config": s10_grouped.Config(64.0)}, TypeError, "config.block_m: expected an int, got 64.0"),
    "config tile": (A, B, {"config": s10_grouped.Config(96)}, ValueError, "config: block_m must be a multiple of 128"),
    "config stages": (A, B, {"config": s10_grouped.Config(stages=9)}, ValueError, "config: .* bytes of shared memory exceed"),
    "config consumers": (A, B, {"config": s10_grouped.Config(consumers=4)}, ValueError, "config: consumers must be 1, 2 or 3, got 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", DENSE)
def test_dense(case):
    a, b, keywords, error, words = DENSE[case]
    with pytest.raises(error, match=words):
        minigemm.fp8_gemm_nt(a, b, **keywords)


def grouped_b(*shape, scales=None):
    groups, n, k = shape or (G, N, K)
    return fp8(groups, n, k), torch.ones(
        groups, ceil_div(n, 128), ceil_div(k, 128)
    ) if scales is None else scales


def ids(*values, dtype=torch.int32):
    return torch.tensor(values or [0] * M, dtype=dtype)


GB, OK = grouped_b(), ids()
# those of a and b are checked as in a dense call; what is new here
CONTIGUOUS = {
    "a is a tensor": (A[0], GB, OK, {}, TypeError, r"a: expected \(data, scales\) or a Quantized, got Tensor"),
    "a in groups": ((fp8(G, M, K), torch.ones(G, M, 3)), GB, OK, {}, ValueError, r"a\[0\]: expected \(rows, k\), got shape \(3, 16, 272\)"),
    "b without groups": (A, B, OK, {}, ValueError, r"b\[0\]: expected \(groups, rows, k\), got shape \(160, 272\)"),
    "k mismatch": (A, grouped_b(G, N, 256), OK, {}, ValueError, r"b: expected \(groups, n, 272\), as many columns as a has, got \(3, 160, 256\)"),
    "b apart": (A, (fp8(2 * G, N, K)[::2], GB[1]), OK, {}, ValueError, r"b\[0\]: expected groups that lie one behind the other"),
    "b permuted": (A, (fp8(N, G, K).transpose(0, 1), GB[1]), OK, {}, ValueError, r"b\[0\]: expected groups that lie one behind the other"),
    "one scale for all groups": (A, (GB[0], scale(2, 3)), OK, {}, ValueError, r"b\[1\]: expected shape \(3, 2, 3\), .* got \(2, 3\)"),
    "scales expanded": (A, (GB[0], scale(1, 2, 3).expand(G, 2, 3)), OK, {}, ValueError, r"b\[1\]: expected contiguous scales, got strides \(0, 3, 1\)"),
    "scales transposed": (A, (GB[0], scale(G, 3, 2).transpose(1, 2)), OK, {}, ValueError, r"b\[1\]: expected contiguous scales, got .*\(6, 1, 2\)"),
    "no ids": (A, GB, None, {}, TypeError, "grouped_layout: expected a torch.Tensor, got NoneType"),
    "ids in a list": (A, GB, [0] * M, {}, TypeError, "grouped_layout: expected a torch.Tensor, got list"),
    "int64": (A, GB, ids(dtype=torch.int64), {}, TypeError, "grouped_layout: expected int32, got torch.int64"),
    "float": (A, GB, torch.zeros(M), {}, TypeError, "grouped_layout: expected int32, got torch.float32"),
    "too short": (A, GB, OK[:-1], {}, ValueError, r"grouped_layout: expected shape \(16,\), a group for each row of a, got \(15,\)"),
    "too long": (A, GB, ids(*[0] * 17), {}, ValueError, r"grouped_layout: expected shape \(16,\), .* got \(17,\)"),
    "a column": (A, GB, OK[:, None], {}, ValueError, r"grouped_layout: expected shape \(16,\), .* got \(16, 1\)"),
    "every second": (A, GB, ids(*[0] * 32)[::2], {}, ValueError, r"grouped_layout: expected a contiguous tensor, got strides \(2,\)"),
    "one for all": (A, GB, ids(0).expand(M), {}, ValueError, r"grouped_layout: expected a contiguous tensor, got strides \(0,\)"),
    "ids elsewhere": (A, GB, OK.to("meta"), {}, ValueError, "grouped_layout: expected the device of a, cpu, got meta"),
    "prefix sums for ids": (A, GB, ids(*[16] * G), {}, ValueError, r"grouped_layout: expected shape \(16,\)"),
    "ids for prefix sums": (A, GB, OK, {"use_psum_layout": True}, ValueError, r"grouped_layout: expected shape \(3,\), where each group of b ends, got \(16,\)"),
    "flag": (A, GB, OK, {"use_psum_layout": 1}, TypeError, "use_psum_layout: expected True or False, got 1"),
    "padding": (A, GB, OK, {"ensure_zero_padding": None}, TypeError, "ensure_zero_padding: expected True or False, got None"),
    "d shape": (A, GB, OK, {"d": out(G, M, N)}, ValueError, r"d: expected shape \(16, 160\), got \(3, 16, 160\)"),
    "d is the ids": (A, GB, (wide := torch.zeros(M, N, dtype=torch.int32)).view(-1)[:M], {"d": wide.view(torch.float32)}, ValueError, "grouped_layout$"),
    "id too high": (A, GB, ids(*[3] * M), {}, ValueError, "grouped_layout: expected ids from -1 to 2, got 3 for row 0"),
    "id too low": (A, GB, ids(*[0] * 15, -2), {}, ValueError, "grouped_layout: expected ids from -1 to 2, got -2 for row 15"),
    "alignment": (A, GB, ids(*[0] * 8, *[1] * 8), {}, ValueError, "groups that begin at multiples of 128 rows, got groups 0 and 1 among rows 0 to 15; .*layout.1."),
    "sum too high": (A, GB, ids(4, 128 + 4, 300), {"use_psum_layout": True}, ValueError, "group 1 to end between its start, row 128, and the 16 rows of a, got 132"),
    "sums fall": (A, GB, ids(8, 4, 4), {"use_psum_layout": True}, ValueError, "group 1 to end between its start, row 128, .* got 4"),
    "sum below zero": (A, GB, ids(-1, 0, 0), {"use_psum_layout": True}, ValueError, "group 0 to end between its start, row 0, .* got -1"),
    "config": (A, GB, OK, {"config": s10_grouped.Config(stages=1)}, ValueError, "config: stages must be at least 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTIGUOUS)
def test_contiguous(case):
    a, b, layout, keywords, error, words = CONTIGUOUS[case]
    with pytest.raises(error, match=words):
        minigemm.m_grouped_fp8_gemm_nt_contiguous(a, b, grouped_layout=layout, **keywords)


GA = (fp8(G, T, K), torch.ones(G, T, 3))
COUNTS = torch.tensor([0, 5, T], dtype=torch.int32)
MASKED = {
    "a without groups": (A, GB, COUNTS, {}, ValueError, r"a\[0\]: expected \(groups, rows, k\), got shape \(16, 272\)"),
    "b without groups": (GA, B, COUNTS, {}, ValueError, r"b\[0\]: expected \(groups, rows, k\), got shape \(160, 272\)"),
    "groups of b": (GA, grouped_b(2, N, K), COUNTS, {}, ValueError, r"b: expected \(3, n, 272\), as many groups as a has, got \(2, 160, 272\)"),
    "k mismatch": (GA, grouped_b(G, N, 256), COUNTS, {}, ValueError, r"b: expected \(groups, n, 272\), as many columns as a has"),
    "a apart": ((fp8(G, 2 * T, K)[:, :T], GA[1]), GB, COUNTS, {}, ValueError, r"a\[0\]: expected groups that lie one behind the other"),
    "scales": ((GA[0], torch.ones(G * T, 3)), GB, COUNTS, {}, ValueError, r"a\[1\]: expected shape \(3, 24, 3\), .* got \(72, 3\)"),
    "scales shared": ((GA[0], torch.ones(1, T, 3).expand(G, T, 3)), GB, COUNTS, {}, ValueError, r"a\[1\]: expected scales that do not overlap, .*\(0, 3, 1\)"),
    "no counts": (GA, GB, None, {}, TypeError, "masked_m: expected a torch.Tensor, got NoneType"),
    "a list": (GA, GB, [1, 2, 3], {}, TypeError, "masked_m: expected a torch.Tensor, got list"),
    "int64": (GA, GB, COUNTS.long(), {}, TypeError, "masked_m: expected int32, got torch.int64"),
    "too few": (GA, GB, COUNTS[:2], {}, ValueError, r"masked_m: expected shape \(3,\), a count for each group, got \(2,\)"),
    "one for all": (GA, GB, COUNTS[:1].expand(G), {}, ValueError, r"masked_m: expected a contiguous tensor, got strides \(0,\)"),
    "a number": (GA, GB, torch.tensor(3, dtype=torch.int32), {}, ValueError, r"masked_m: expected shape \(3,\), .* got \(\)"),
    "elsewhere": (GA, GB, COUNTS.to("meta"), {}, ValueError, "masked_m: expected the device of a, cpu, got meta"),
    "expected_m": (GA, GB, COUNTS, {"expected_m": -1}, ValueError, "expected_m: expected at least 0, got -1"),
    "expected_m is a float": (GA, GB, COUNTS, {"expected_m": 4.0}, TypeError, "expected_m: expected an int, got 4.0"),
    "expected_m is a tensor": (GA, GB, COUNTS, {"expected_m": COUNTS[0]}, TypeError, "expected_m: expected an int, got tensor"),
    "d shape": (GA, GB, COUNTS, {"d": out(G * T, N)}, ValueError, r"d: expected shape \(3, 24, 160\), got \(72, 160\)"),
    "d apart": (GA, GB, COUNTS, {"d": out(G, T, 2 * N)[..., :N]}, ValueError, "d: expected groups that lie one behind the other"),
    "c shape": (GA, GB, COUNTS, {"c": out(T, N)}, ValueError, r"c: expected shape \(3, 24, 160\), got \(24, 160\)"),
    "over the buffer": (GA, GB, COUNTS + 1, {}, ValueError, "masked_m: expected 0 to 24 rows, what the buffer holds, got 25 for group 2"),
    "below zero": (GA, GB, COUNTS - 1, {}, ValueError, "masked_m: expected 0 to 24 rows, what the buffer holds, got -1 for group 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", MASKED)
def test_masked(case):
    a, b, counts, keywords, error, words = MASKED[case]
    with pytest.raises(error, match=words):
        minigemm.m_grouped_fp8_gemm_nt_masked(a, b, masked_m=counts, **keywords)


SETTINGS = [
    (minigemm.set_num_sms, (0,), ValueError, "num_sms: expected at least 1, got 0"),
    (minigemm.set_num_sms, (1.5,), TypeError, "num_sms: expected an int, got 1.5"),
    (minigemm.set_num_sms, (True,), TypeError, "num_sms: expected an int, got True"),
    (minigemm.set_batch_invariant, (1,), TypeError, "invariant: expected True or False, got 1"),
    (
        minigemm.set_mk_alignment_for_contiguous_layout,
        (0,),
        ValueError,
        "alignment: expected 1 to 1048576, got 0",
    ),
    (
        minigemm.set_mk_alignment_for_contiguous_layout,
        ("128",),
        TypeError,
        "alignment: expected an int, got '128'",
    ),
    (minigemm.get_tma_aligned_size, (-1, 4), ValueError, "size: expected at least 0, got -1"),
    (minigemm.get_tma_aligned_size, (4, 3), ValueError, "element_bytes: expected a divisor of 16, got 3"),
    (minigemm.get_tma_aligned_size, (4, 0), ValueError, "element_bytes: expected at least 1, got 0"),
    (
        minigemm.to_m_major,
        (torch.ones(3),),
        ValueError,
        "scale: expected a 2-D or 3-D float32 tensor, got 1-D torch.float32",
    ),
    (precompile, ([(128,)],), TypeError, r"shapes: expected \(n, k\) or \(m, n, k\) of ints, got \(128,\)"),
    (precompile, ([(128, 128.0)],), TypeError, r"shapes: expected \(n, k\) or \(m, n, k\) of ints"),
    (
        precompile,
        ([(128, 24)],),
        ValueError,
        "shapes: expected sizes of at least 1 and a k that is a multiple of 16",
    ),
    (precompile, ([(0, 128, 128)],), ValueError, "shapes: expected sizes of at least 1"),
]


@pytest.mark.parametrize("call, arguments, error, words", SETTINGS)
def test_settings(call, arguments, error, words):
    with pytest.raises(error, match=words):
        call(*arguments)


PRECOMPILE = [
    ({"layout": "rows"}, ValueError, "layout: expected one of 'dense', 'contiguous', 'masked', got 'rows'"),
    ({"groups": 0}, ValueError, "groups: expected an int of at least 1, got 0"),
    ({"use_psum_layout": 1}, TypeError, "use_psum_layout: expected True or False, got 1"),
    (
        {"use_psum_layout": True},
        ValueError,
        "use_psum_layout: expected the contiguous layout with it, got 'dense'",
    ),
    (
        {"out_dtype": torch.float16},
        TypeError,
        "out_dtype: expected torch.bfloat16 or torch.float32, got torch.float16",
    ),
    ({"device": "meta"}, ValueError, "device: expected tensors on a CPU .* got meta"),
    ({"processes": 0}, ValueError, "processes: expected an int of at least 1, got 0"),
]


@pytest.mark.parametrize("keywords, error, words", PRECOMPILE)
def test_precompile(keywords, error, words):
    with pytest.raises(error, match=words):
        precompile([(128, 128)], **{"device": "cpu", "progress": False, **keywords})


def test_the_device_is_checked_first(monkeypatch):
    """Whether it is a Hopper GPU is known before anything is compiled for it."""
    seen = []
    monkeypatch.setattr(runtime.of(torch.device("cpu")), "check_device", seen.append)
    with pytest.raises(AssertionError, match="compiled or launched"):
        minigemm.fp8_gemm_nt(A, B)
    assert seen == [torch.device("cpu")]


def test_ids_may_be_anything_where_only_the_kernel_reads_them(monkeypatch):
    """On a GPU, without MINIGEMM_DEBUG, no call looks at them."""
    read = []
    monkeypatch.setattr(checks, "check_ids", lambda *arguments: read.append(arguments))
    with pytest.raises(AssertionError, match="compiled or launched"):
        minigemm.m_grouped_fp8_gemm_nt_contiguous(A, GB, None, OK)
    assert len(read) == 1  # these are CPU tensors
    monkeypatch.setenv("MINIGEMM_DEBUG", "1")
    assert prepared.debugging()
    monkeypatch.setenv("MINIGEMM_DEBUG", "0")
    assert not prepared.debugging()


def test_what_is_no_mistake():
    """Groups in any order, repeated, empty, ended by padding; sums of empty groups; scales of one column with any stride."""
    checks.check_ids(ids(*[1] * 128, *[0] * 100, *[-1] * 28, *[1] * 7), 3, 128)
    checks.check_ids(ids(2, -1, 0, 0, 2), 3, 1)
    checks.check_ids(ids(-1, 2, 2, -1, 2), 3, 128)
    checks.check_prefix_sums(ids(0, 0, 0), 0, 128)
    checks.check_prefix_sums(ids(100, 128, 228, 228), 228, 128)
    checks.check_prefix_sums(ids(228, 256), 228, 128)  # an empty group, by its aligned start
    checks.check_counts(ids(0, 24), 24)
    checks.check_scale(("a[1]", torch.ones(16, 2)[:, :1]), fp8(16, 64), "1x128")
    checks.check_scale(("a[1]", empty_m_major(6, 3, groups=2)), fp8(2, 6, 272), "1x128")
    memory = torch.zeros(8, 64)
    checks.check_overlap(memory[:, :32], {"c": memory[:, 32:], "other": torch.zeros(3)})
    with pytest.raises(ValueError, match="overlaps c"):
        checks.check_overlap(memory[:, :33], {"c": memory[:, 32:]})


def test_debugging_is_read_from_the_environment():
    code = """if True:
        import importlib, os
        from minigemm import api
        for value in ("1", "0", ""):
            os.environ["MINIGEMM_DEBUG"] = value
            print(importlib.reload(api)._debug)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False", "False"]
