"""Every bad call of the stages and of the library, and its message. None compiles or launches anything.

`TABLE` has a row for each; its column `where` says who must refuse: each "stage", those with "one scale", the
dense "call", "both" (each stage and the dense call), or the "contiguous" or "masked" call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minigemm
from minigemm import api, checks, observe, quantize, runtime
from minigemm.compiler import jit
from minigemm.kernels import s07_promoted, s11_overlapped, s12_swapped
from minigemm.kernels.legality import nearest_legal
from minigemm.layout import ceil_div, empty_m_major
from minigemm.plan.ahead import precompile
from minigemm.quantize import Quantized
from minigemm.runtime import cuda as cuda_runtime
from minigemm.types import CompileError, Config, Product
from tests.products import STAGES

M, N, K, G, T = 16, 160, 272, 3, 24
E4M3 = torch.float8_e4m3fn
ONE = torch.tensor(1.0)


@pytest.fixture
def nothing_compiles(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled or launched")

    monkeypatch.setattr(jit, "build", refuse)
    monkeypatch.setattr(runtime.of(torch.device("cpu")), "launch", refuse)
    yield
    minigemm.set_mk_alignment_for_contiguous_layout(128)


# --- operands


@dataclass(frozen=True)
class Pair:
    """Data and scales: a Quantized for a stage, a tuple for a call. Without scales, good ones are made."""

    data: object
    scale: object = ...

    def quantized(self, granularity: str) -> Quantized:
        """The pair as a stage takes it."""
        return Quantized(self.data, self.scales(granularity), granularity)

    def scales(self, granularity: str) -> object:
        if self.scale is not ...:
            return self.scale
        tensor = isinstance(self.data, torch.Tensor)
        rows, k = self.data.shape if tensor and self.data.dim() == 2 else (1, 1)
        shape = {
            "tensor": (),
            "1x128": (rows, ceil_div(k, 128)),
            "128x128": (ceil_div(rows, 128), ceil_div(k, 128)),
        }
        return torch.ones(shape[granularity], device=self.data.device if tensor else "cpu")


def fp8(*shape, device="cpu"):
    return (
        torch.empty(shape, dtype=E4M3, device=device)
        if device == "meta"
        else torch.zeros(shape, dtype=torch.uint8).view(E4M3)
    )


def scale(*shape):
    return torch.ones(shape)


def pitched(rows, k, pitch, start=0):
    memory = torch.zeros(rows * pitch + start + 16, dtype=torch.uint8)
    return memory[start : start + rows * pitch].view(rows, pitch)[:, :k].view(E4M3)


def out(*shape, dtype=torch.bfloat16):
    return torch.zeros(shape or (M, N), dtype=dtype)


def grouped_b(*shape, scales=None):
    groups, n, k = shape or (G, N, K)
    return fp8(groups, n, k), torch.ones(
        groups, ceil_div(n, 128), ceil_div(k, 128)
    ) if scales is None else scales


def ids(*values, dtype=torch.int32):
    return torch.tensor(values or [0] * M, dtype=dtype)


A, B = (fp8(M, K), scale(M, 3)), (fp8(N, K), scale(2, 3))
GOOD = Pair(...)  # a's or b's data and scales
FLOAT = object()  # the stage's own Config, with a float for block_m
CLASH_B = torch.zeros(N * K, dtype=torch.uint8)  # the memory of a b, of an a, and of a d
CLASH = CLASH_B[: 2 * M * N].view(torch.bfloat16).view(M, N)
WIDE = torch.zeros(M, 2 * N)
META_A = (fp8(M, K, device="meta"), torch.ones(M, 3, device="meta"))
META_B = (fp8(N, K, device="meta"), torch.ones(2, 3, device="meta"))
INTS = torch.zeros(M, N, dtype=torch.int32)
META_D = torch.empty(M, N, dtype=torch.bfloat16, device="meta")
GB, OK = grouped_b(), ids()
GA = (fp8(G, T, K), torch.ones(G, T, 3))
COUNTS = torch.tensor([0, 5, T], dtype=torch.int32)

# case: where, a, b, keywords, the error, its words. "both" has the words of a stage: a call says a[0] and
# a[1] instead.
TABLE = {
    "a is a tensor": ("call", A[0], B, {},
        TypeError, r"a: expected \(data, scales\) or a Quantized, got Tensor"),
    "a is None": ("call", None, B, {},
        TypeError, r"a: expected \(data, scales\) or a Quantized, got NoneType"),
    "b has three": ("call", A, (*B, 1), {},
        TypeError, r"b: expected \(data, scales\) or a Quantized, got tuple of 3"),
    "b is a list of one": ("call", A, [B[0]], {},
        TypeError, r"b: expected \(data, scales\) or a Quantized, got list of 1"),
    "data is an array": ("both", Pair(np.zeros((M, K))), GOOD, {},
        TypeError, "a.data: expected a torch.Tensor, got ndarray"),
    "scales are a number": ("both", GOOD, Pair(B[0], 1.0), {},
        TypeError, "b.scale: expected a torch.Tensor, got float"),
    "scales are None": ("both", Pair(A[0], None), GOOD, {},
        TypeError, "a.scale: expected a torch.Tensor, got NoneType"),
    "a tensor for a stage": ("stage", A[0], GOOD, {},
        TypeError, r"a: expected a Quantized \(from minigemm.quantize.quantize\), got Tensor"),
    "a tuple for a stage": ("stage", GOOD, (1, 2), {}, TypeError, "b: expected a Quantized .* got tuple"),
    "data of a Quantized": ("call", Quantized(1, A[1], "1x128"), B, {},
        TypeError, "a.data: expected a torch.Tensor, got int"),
    "sparse": ("both", Pair(A[0], torch.eye(3).to_sparse()), GOOD, {},
        TypeError, "a.scale: expected a dense tensor, got torch.sparse_coo"),
    "granularity of a": ("both", Quantized(*A, "128x128"), GOOD, {},
        ValueError, "a.granularity: expected '1x128', got '128x128'"),
    "granularity of b": ("both", GOOD, Quantized(*B, "tensor"), {},
        ValueError, "b.granularity: expected '128x128', got 'tensor'"),
    "swapped": ("both", quantize.quantize(torch.ones(2, 128), "128x128"), GOOD, {},
        ValueError, "a.granularity: expected '1x128', got '128x128'"),
    "no granularity of a": ("both", Quantized(A[0], ONE, "tensor"), GOOD, {},
        ValueError, "a.granularity: expected '1x128', got 'tensor'"),
    "rows for blocks of b": ("both", GOOD, Quantized(B[0], torch.ones(N, 3), "1x128"), {},
        ValueError, "b.granularity: expected '128x128', got '1x128'"),
    "granularity for one scale": ("one scale", quantize.quantize(torch.ones(16, 128), "1x128"), GOOD, {},
        ValueError, "a.granularity: expected 'tensor', got '1x128'"),
    "float32": ("both", Pair(torch.ones(M, K)), GOOD, {},
        TypeError, "a.data: expected float8_e4m3fn, got torch.float32"),
    "bf16": ("both", Pair(torch.ones(M, K).bfloat16()), GOOD, {},
        TypeError, "a.data: expected float8_e4m3fn, got torch.bfloat16"),
    "e5m2": ("both", GOOD, Pair(B[0].view(torch.uint8).view(torch.float8_e5m2)), {},
        TypeError, "b.data: expected float8_e4m3fn, got torch.float8_e5m2"),
    "e4m3fnuz": ("both", GOOD, Pair(B[0].view(torch.uint8).view(torch.float8_e4m3fnuz)), {},
        TypeError, "b.data: expected float8_e4m3fn, got torch.float8_e4m3fnuz"),
    "bytes": ("both", GOOD, Pair(B[0].view(torch.uint8)), {},
        TypeError, "b.data: expected float8_e4m3fn, got torch.uint8"),
    "one dimension": ("both", Pair(A[0][0]), GOOD, {},
        ValueError, r"a.data: expected \(rows, k\), got shape \(272,\)"),
    "three dimensions": ("both", GOOD, Pair(B[0][None]), {},
        ValueError, r"b.data: expected \(rows, k\), got shape \(1, 160, 272\)"),
    "k mismatch": ("both", GOOD, Pair(fp8(N, 256)), {},
        ValueError, r"b: expected \(n, 272\), as many columns as a has, got \(160, 256\)"),
    "transposed b": ("both", GOOD, Pair(fp8(K, N)), {},
        ValueError, r"b: expected \(n, 272\), as many columns as a has, got \(272, 160\)"),
    "k not 16": ("both", Pair(pitched(M, 24, 32)), Pair(pitched(N, 24, 32)), {},
        ValueError, "a.data: expected a k .* multiple of 16, got 24"),
    "column-major": ("both", Pair(fp8(K, M).T), GOOD, {},
        ValueError, r"a.data: expected a contiguous last dimension, got strides \(1, 16\)"),
    "row stride": ("both", GOOD, Pair(pitched(N, K, 280)), {},
        ValueError, "b.data: expected a row stride that is a multiple of 16 bytes .* got 280"),
    "expanded": ("both", Pair(fp8(1, K).expand(M, K)), GOOD, {},
        ValueError, "a.data: expected a row stride .* at least k = 272, got 0"),
    "rows overlap": ("both", Pair(fp8(9999).as_strided((M, K), (16, 1))), GOOD, {},
        ValueError, "a.data: .* got 16"),
    "start": ("both", GOOD, Pair(pitched(N, K, K, start=8)), {},
        ValueError, "b.data: expected a 16-byte aligned start, .* 8 bytes past one"),
    "too many rows": ("both", Pair(fp8(2**30 + 1, K, device="meta")), Pair(META_B[0]), {},
        ValueError, r"a.data: expected at most 2\*\*30 rows and columns"),
    "scale dtype": ("both", Pair(A[0], A[1].double()), GOOD, {},
        TypeError, "a.scale: expected float32, got torch.float64"),
    "one scale is a number": ("one scale", GOOD, Pair(B[0], 1.0), {},
        TypeError, "b.scale: expected a torch.Tensor, got float"),
    "one scale dtype": ("one scale", Pair(A[0], ONE.double()), GOOD, {},
        TypeError, "a.scale: expected float32, got torch.float64"),
    "one scale shape": ("one scale", GOOD, Pair(B[0], torch.ones(1)), {},
        ValueError, r"b.scale: expected one number \(0-d\), got shape \(1,\)"),
    "one scale device": ("one scale", Pair(A[0], torch.empty((), device="meta")), GOOD, {},
        ValueError, "a.scale: expected the data's device, cpu, got meta"),
    "scale is a number": ("both", Pair(A[0], 1.0), GOOD, {},
        TypeError, "a.scale: expected a torch.Tensor, got float"),
    "scale of b dtype": ("both", GOOD, Pair(B[0], B[1].bfloat16()), {},
        TypeError, "b.scale: expected float32, got torch.bfloat16"),
    "packed exponents": ("both", Pair(A[0], torch.ones(M, 1, dtype=torch.int32)), GOOD, {},
        TypeError, "a.scale: expected float32, got torch.int32"),
    "too few scales": ("both", Pair(A[0], scale(M, 2)), GOOD, {},
        ValueError, r"a.scale: expected shape \(16, 3\), one scale for each 1x128 block, got \(16, 2\)"),
    "scales transposed": ("both", Pair(A[0], scale(3, M)), GOOD, {},
        ValueError, r"a.scale: expected shape \(16, 3\), .* got \(3, 16\)"),
    "scales flat": ("both", Pair(A[0], scale(48)), GOOD, {},
        ValueError, r"a.scale: expected shape \(16, 3\), .* got \(48,\)"),
    "one scale": ("both", Pair(A[0], torch.tensor(1.0)), GOOD, {},
        ValueError, r"a.scale: expected shape \(16, 3\), .* got \(\)"),
    "scales of b per row": ("both", GOOD, Pair(B[0], scale(N, 3)), {},
        ValueError, r"b.scale: expected shape \(2, 3\), one scale for each 128x128 block, got \(160, 3\)"),
    "scales of b floor": ("both", GOOD, Pair(B[0], scale(1, 2)), {},
        ValueError, r"b.scale: expected shape \(2, 3\), .* got \(1, 2\)"),
    "scales expanded": ("both", Pair(A[0], scale(M, 1).expand(M, 3)), GOOD, {},
        ValueError, r"a.scale: expected scales that do not overlap, got strides \(1, 0\)"),
    "scales overlap": ("both", Pair(A[0], torch.ones(99).as_strided((M, 3), (1, 5))), GOOD, {},
        ValueError, r"a.scale: expected scales that do not overlap, got .*\(1, 5\)"),
    "scales of b column-major": ("both", GOOD, Pair(B[0], scale(3, 2).T), {},
        ValueError, r"b.scale: expected row-major scales that do not overlap, got strides \(1, 2\)"),
    "scales of b expanded": ("both", GOOD, Pair(B[0], scale(1, 3).expand(2, 3)), {},
        ValueError, r"b.scale: expected row-major scales .* got strides \(0, 1\)"),
    "scale device": ("both", Pair(A[0], torch.ones(M, 3, device="meta")), GOOD, {},
        ValueError, "a.scale: expected the data's device, cpu, got meta"),
    "device of b": ("both", GOOD, Pair(META_B[0]), {},
        ValueError, "b.data: expected the device of a, cpu, got meta"),
    "device": ("both", Pair(META_A[0]), Pair(META_B[0]), {},
        ValueError, "device: expected tensors on a CPU .* got meta"),
    "d is an array": ("call", A, B, {"d": np.zeros((M, N))},
        TypeError, "d: expected a torch.Tensor, got ndarray"),
    "d dtype": ("call", A, B, {"d": out(dtype=torch.float16)},
        TypeError, "d: expected bfloat16 or float32, got torch.float16"),
    "d shape": ("call", A, B, {"d": out(N, M)},
        ValueError, r"d: expected shape \(16, 160\), got \(160, 16\)"),
    "d flat": ("call", A, B, {"d": out(M * N)}, ValueError, r"d: expected shape \(16, 160\), got \(2560,\)"),
    "d device": ("call", A, B, {"d": META_D}, ValueError, "d: expected the device of a, cpu, got meta"),
    "d column-major": ("call", A, B, {"d": out(N, M).T},
        ValueError, r"d: expected a contiguous last dimension, got strides \(1, 16\)"),
    "d expanded": ("call", A, B, {"d": out(1, N).expand(M, N)},
        ValueError, "d: expected rows that do not overlap, a row stride of at least n = 160, got 0"),
    "d overlaps itself": ("call", A, B, {"d": out(M * N).as_strided((M, N), (80, 1))},
        ValueError, "d: expected rows that do not overlap, .* got 80"),
    "d needs a gradient": ("call", A, B, {"d": out(dtype=torch.float32).requires_grad_()},
        ValueError, "d: expected a tensor that needs no gradient"),
    "d overlaps a": ("call", (CLASH_B[: M * K].view(M, K).view(E4M3), A[1]), B, {"d": CLASH},
        ValueError, "d: expected memory of its own, .* overlaps a$"),
    "d overlaps b": ("call", A, (CLASH_B.view(N, K).view(E4M3), B[1]), {"d": CLASH},
        ValueError, "d: expected memory of its own, .* overlaps b$"),
    "d overlaps the scales": ("call", (A[0], WIDE.view(-1)[: 3 * M].view(M, 3)), B, {"d": WIDE[:, :N]},
        ValueError, "overlaps the scales of a"),
    "d overlaps those of b": ("call", A, (B[0], WIDE.view(-1)[6:12].view(2, 3)), {"d": WIDE[:, :N]},
        ValueError, "overlaps the scales of b"),
    "out_dtype": ("both", GOOD, GOOD, {"out_dtype": torch.float16},
        TypeError, "out_dtype: expected torch.bfloat16( or torch.float32)?, got torch.float16"),
    "out_dtype is a word": ("both", GOOD, GOOD, {"out_dtype": "float32"},
        TypeError, "out_dtype: expected torch.bfloat16( or torch.float32)?, got 'float32'"),
    "out_dtype of another d": ("call", A, B, {"d": out(), "out_dtype": torch.float32},
        ValueError, "out_dtype: expected the dtype of d, torch.bfloat16, got"),
    "c is a number": ("call", A, B, {"c": 0.0}, TypeError, "c: expected a torch.Tensor, got float"),
    "c dtype": ("call", A, B, {"c": out(dtype=torch.float32)},
        TypeError, "c: expected the dtype of d, torch.bfloat16, got torch.float32"),
    "c shape": ("call", A, B, {"c": out(1, N)}, ValueError, r"c: expected shape \(16, 160\), got \(1, 160\)"),
    "c device": ("call", A, B, {"c": META_D}, ValueError, "c: expected the device of a, cpu, got meta"),
    "c overlaps d": ("call", A, B,
        {"c": WIDE.view(-1)[8 : M * N + 8].view(M, N), "d": WIDE.view(-1)[: M * N].view(M, N)},
        ValueError, "overlaps c"),
    "config is a dict": ("both", GOOD, GOOD, {"config": {"block_m": 64}},
        TypeError, r"config: expected a s\d\d_\w+.*.Config, got builtins.dict"),
    "config of nobody": ("both", GOOD, GOOD, {"config": Config()},
        TypeError, r"config: expected a s\d\d_\w+.*.Config, got types.Config"),
    "config of another stage": ("call", A, B, {"config": s07_promoted.Config()},
        TypeError, "config: expected a s11_overlapped or s12_swapped.Config, got s07_promoted.Config"),
    "config field": ("both", GOOD, GOOD, {"config": FLOAT},
        TypeError, "config.block_m: expected an int, got 64.0"),
    "too many columns of tiles": ("stage", Pair(fp8(M, 16, device="meta")),
        Pair(fp8(2**30, 16, device="meta")), {},
        ValueError, "config: n = 1073741824 needs .* more than the 65535 of a grid"),
    "source type": ("stage", GOOD, GOOD, {"source": 3},
        TypeError, "source: expected the path of a CUDA file, got int"),
    "source": ("stage", GOOD, GOOD, {"source": "/nowhere/mine.cu"},
        ValueError, "source: expected the path of a CUDA file, got '/nowhere/mine.cu'"),
    "source is a folder": ("stage", GOOD, GOOD, {"source": Path(__file__).parent},
        ValueError, "source: expected the path of a CUDA file"),
    "config tile": ("call", A, B, {"config": s11_overlapped.Config(96)},
        ValueError, "config: block_m must be a multiple of 128"),
    "config stages": ("call", A, B, {"config": s11_overlapped.Config(stages=9)},
        ValueError, "config: .* bytes of shared memory exceed"),
    "config consumers": ("call", A, B, {"config": s11_overlapped.Config(consumers=4)},
        ValueError, "config: consumers must be 1, 2 or 3, got 4"),
    "config of few rows, k": ("call", A, B, {"config": s12_swapped.Config()},
        ValueError, "config: blocks must be 1 where k is no multiple of 128, as k = 272, got 4"),
    "config of few rows, tile": ("call", (fp8(M, 256), scale(M, 2)), (fp8(N, 256), scale(2, 2)),
        {"config": s12_swapped.Config(72)},
        ValueError, "config: block_m must be a multiple of 8 up to 64, got 72"),
    # --- contiguous
    "contiguous: a is a tensor": ("contiguous", A[0], GB, {"grouped_layout": OK},
        TypeError, r"a: expected \(data, scales\) or a Quantized, got Tensor"),
    "contiguous: a in groups": ("contiguous", (fp8(G, M, K), torch.ones(G, M, 3)), GB, {"grouped_layout": OK},
        ValueError, r"a\[0\]: expected \(rows, k\), got shape \(3, 16, 272\)"),
    "contiguous: b without groups": ("contiguous", A, B, {"grouped_layout": OK},
        ValueError, r"b\[0\]: expected \(groups, rows, k\), got shape \(160, 272\)"),
    "contiguous: k mismatch": ("contiguous", A, grouped_b(G, N, 256), {"grouped_layout": OK},
        ValueError, r"b: expected \(groups, n, 272\), as many columns as a has, got \(3, 160, 256\)"),
    "contiguous: b apart": ("contiguous", A, (fp8(2 * G, N, K)[::2], GB[1]), {"grouped_layout": OK},
        ValueError, r"b\[0\]: expected groups that lie one behind the other"),
    "contiguous: b permuted": ("contiguous", A, (fp8(N, G, K).transpose(0, 1), GB[1]), {"grouped_layout": OK},
        ValueError, r"b\[0\]: expected groups that lie one behind the other"),
    "contiguous: one scale for all groups": ("contiguous", A, (GB[0], scale(2, 3)), {"grouped_layout": OK},
        ValueError, r"b\[1\]: expected shape \(3, 2, 3\), .* got \(2, 3\)"),
    "contiguous: scales expanded": ("contiguous", A, (GB[0], scale(1, 2, 3).expand(G, 2, 3)),
        {"grouped_layout": OK},
        ValueError, r"b\[1\]: expected contiguous scales, got strides \(0, 3, 1\)"),
    "contiguous: scales transposed": ("contiguous", A, (GB[0], scale(G, 3, 2).transpose(1, 2)),
        {"grouped_layout": OK},
        ValueError, r"b\[1\]: expected contiguous scales, got .*\(6, 1, 2\)"),
    "contiguous: no ids": ("contiguous", A, GB, {"grouped_layout": None},
        TypeError, "grouped_layout: expected a torch.Tensor, got NoneType"),
    "contiguous: ids in a list": ("contiguous", A, GB, {"grouped_layout": [0] * M},
        TypeError, "grouped_layout: expected a torch.Tensor, got list"),
    "contiguous: int64": ("contiguous", A, GB, {"grouped_layout": ids(dtype=torch.int64)},
        TypeError, "grouped_layout: expected int32, got torch.int64"),
    "contiguous: float": ("contiguous", A, GB, {"grouped_layout": torch.zeros(M)},
        TypeError, "grouped_layout: expected int32, got torch.float32"),
    "contiguous: too short": ("contiguous", A, GB, {"grouped_layout": OK[:-1]},
        ValueError, r"grouped_layout: expected shape \(16,\), a group for each row of a, got \(15,\)"),
    "contiguous: too long": ("contiguous", A, GB, {"grouped_layout": ids(*[0] * 17)},
        ValueError, r"grouped_layout: expected shape \(16,\), .* got \(17,\)"),
    "contiguous: a column": ("contiguous", A, GB, {"grouped_layout": OK[:, None]},
        ValueError, r"grouped_layout: expected shape \(16,\), .* got \(16, 1\)"),
    "contiguous: every second": ("contiguous", A, GB, {"grouped_layout": ids(*[0] * 32)[::2]},
        ValueError, r"grouped_layout: expected a contiguous tensor, got strides \(2,\)"),
    "contiguous: one for all": ("contiguous", A, GB, {"grouped_layout": ids(0).expand(M)},
        ValueError, r"grouped_layout: expected a contiguous tensor, got strides \(0,\)"),
    "contiguous: ids elsewhere": ("contiguous", A, GB, {"grouped_layout": OK.to("meta")},
        ValueError, "grouped_layout: expected the device of a, cpu, got meta"),
    "contiguous: prefix sums for ids": ("contiguous", A, GB, {"grouped_layout": ids(*[16] * G)},
        ValueError, r"grouped_layout: expected shape \(16,\)"),
    "contiguous: ids for prefix sums": ("contiguous", A, GB, {"grouped_layout": OK, "use_psum_layout": True},
        ValueError, r"grouped_layout: expected shape \(3,\), where each group of b ends, got \(16,\)"),
    "contiguous: flag": ("contiguous", A, GB, {"grouped_layout": OK, "use_psum_layout": 1},
        TypeError, "use_psum_layout: expected True or False, got 1"),
    "contiguous: padding": ("contiguous", A, GB, {"grouped_layout": OK, "ensure_zero_padding": None},
        TypeError, "ensure_zero_padding: expected True or False, got None"),
    "contiguous: d shape": ("contiguous", A, GB, {"grouped_layout": OK, "d": out(G, M, N)},
        ValueError, r"d: expected shape \(16, 160\), got \(3, 16, 160\)"),
    "contiguous: d is the ids": ("contiguous", A, GB,
        {"grouped_layout": INTS.view(-1)[:M], "d": INTS.view(torch.float32)},
        ValueError, "grouped_layout$"),
    "contiguous: id too high": ("contiguous", A, GB, {"grouped_layout": ids(*[3] * M)},
        ValueError, "grouped_layout: expected ids from -1 to 2, got 3 for row 0"),
    "contiguous: id too low": ("contiguous", A, GB, {"grouped_layout": ids(*[0] * 15, -2)},
        ValueError, "grouped_layout: expected ids from -1 to 2, got -2 for row 15"),
    "contiguous: alignment": ("contiguous", A, GB, {"grouped_layout": ids(*[0] * 8, *[1] * 8)},
        ValueError, "multiples of 128 rows, got groups 0 and 1 among rows 0 to 15; .*layout.1."),
    "contiguous: sum too high": ("contiguous", A, GB,
        {"grouped_layout": ids(4, 128 + 4, 300), "use_psum_layout": True},
        ValueError, "group 1 to end between its start, row 128, and the 16 rows of a, got 132"),
    "contiguous: sums fall": ("contiguous", A, GB, {"grouped_layout": ids(8, 4, 4), "use_psum_layout": True},
        ValueError, "group 1 to end between its start, row 128, .* got 4"),
    "contiguous: sum below zero": ("contiguous", A, GB,
        {"grouped_layout": ids(-1, 0, 0), "use_psum_layout": True},
        ValueError, "group 0 to end between its start, row 0, .* got -1"),
    "contiguous: config": ("contiguous", A, GB,
        {"grouped_layout": OK, "config": s11_overlapped.Config(stages=1)},
        ValueError, "config: stages must be at least 2"),
    # --- masked
    "masked: a without groups": ("masked", A, GB, {"masked_m": COUNTS},
        ValueError, r"a\[0\]: expected \(groups, rows, k\), got shape \(16, 272\)"),
    "masked: b without groups": ("masked", GA, B, {"masked_m": COUNTS},
        ValueError, r"b\[0\]: expected \(groups, rows, k\), got shape \(160, 272\)"),
    "masked: groups of b": ("masked", GA, grouped_b(2, N, K), {"masked_m": COUNTS},
        ValueError, r"b: expected \(3, n, 272\), as many groups as a has, got \(2, 160, 272\)"),
    "masked: k mismatch": ("masked", GA, grouped_b(G, N, 256), {"masked_m": COUNTS},
        ValueError, r"b: expected \(groups, n, 272\), as many columns as a has"),
    "masked: a apart": ("masked", (fp8(G, 2 * T, K)[:, :T], GA[1]), GB, {"masked_m": COUNTS},
        ValueError, r"a\[0\]: expected groups that lie one behind the other"),
    "masked: scales": ("masked", (GA[0], torch.ones(G * T, 3)), GB, {"masked_m": COUNTS},
        ValueError, r"a\[1\]: expected shape \(3, 24, 3\), .* got \(72, 3\)"),
    "masked: scales shared": ("masked", (GA[0], torch.ones(1, T, 3).expand(G, T, 3)), GB,
        {"masked_m": COUNTS},
        ValueError, r"a\[1\]: expected scales that do not overlap, .*\(0, 3, 1\)"),
    "masked: no counts": ("masked", GA, GB, {"masked_m": None},
        TypeError, "masked_m: expected a torch.Tensor, got NoneType"),
    "masked: a list": ("masked", GA, GB, {"masked_m": [1, 2, 3]},
        TypeError, "masked_m: expected a torch.Tensor, got list"),
    "masked: int64": ("masked", GA, GB, {"masked_m": COUNTS.long()},
        TypeError, "masked_m: expected int32, got torch.int64"),
    "masked: too few": ("masked", GA, GB, {"masked_m": COUNTS[:2]},
        ValueError, r"masked_m: expected shape \(3,\), a count for each group, got \(2,\)"),
    "masked: one for all": ("masked", GA, GB, {"masked_m": COUNTS[:1].expand(G)},
        ValueError, r"masked_m: expected a contiguous tensor, got strides \(0,\)"),
    "masked: a number": ("masked", GA, GB, {"masked_m": torch.tensor(3, dtype=torch.int32)},
        ValueError, r"masked_m: expected shape \(3,\), .* got \(\)"),
    "masked: elsewhere": ("masked", GA, GB, {"masked_m": COUNTS.to("meta")},
        ValueError, "masked_m: expected the device of a, cpu, got meta"),
    "masked: expected_m": ("masked", GA, GB, {"masked_m": COUNTS, "expected_m": -1},
        ValueError, "expected_m: expected at least 0, got -1"),
    "masked: expected_m is a float": ("masked", GA, GB, {"masked_m": COUNTS, "expected_m": 4.0},
        TypeError, "expected_m: expected an int, got 4.0"),
    "masked: expected_m is a tensor": ("masked", GA, GB, {"masked_m": COUNTS, "expected_m": COUNTS[0]},
        TypeError, "expected_m: expected an int, got tensor"),
    "masked: d shape": ("masked", GA, GB, {"masked_m": COUNTS, "d": out(G * T, N)},
        ValueError, r"d: expected shape \(3, 24, 160\), got \(72, 160\)"),
    "masked: d apart": ("masked", GA, GB, {"masked_m": COUNTS, "d": out(G, T, 2 * N)[..., :N]},
        ValueError, "d: expected groups that lie one behind the other"),
    "masked: too many blocks": ("masked", (fp8(2**20, 1, 2**18, device="meta"), ONE), GB,
        {"masked_m": COUNTS, "c": out(T, N)}, ValueError, r"a\[0\]: expected at most 2\*\*30 blocks"),
    "masked: c shape": ("masked", GA, GB, {"masked_m": COUNTS, "c": out(T, N)},
        ValueError, r"c: expected shape \(3, 24, 160\), got \(24, 160\)"),
    "masked: over the buffer": ("masked", GA, GB, {"masked_m": COUNTS + 1},
        ValueError, "masked_m: expected 0 to 24 rows, what the buffer holds, got 25 for group 2"),
    "masked: below zero": ("masked", GA, GB, {"masked_m": COUNTS - 1},
        ValueError, "masked_m: expected 0 to 24 rows, what the buffer holds, got -1 for group 0"),
}  # fmt: skip

CALLS = {
    "call": minigemm.fp8_gemm_nt,
    "contiguous": minigemm.m_grouped_fp8_gemm_nt_contiguous,
    "masked": minigemm.m_grouped_fp8_gemm_nt_masked,
}


def cases(*wheres):
    return [case for case, row in TABLE.items() if row[0] in wheres]


def block_scaled(stage: str) -> bool:
    return STAGES[stage].stage.granularities != ("tensor", "tensor")


def persistent(stage: str) -> bool:
    """Whether a CTA computes more tiles than one, so that the grid does not limit their number."""
    return hasattr(STAGES[stage].Config(), "ctas")


def concerns(case: str, stage: str) -> bool:
    """Whether the stage must refuse: scales that are bad for blocks may be good alone."""
    where, *operands = TABLE[case][:3]
    if where == "one scale":
        return not block_scaled(stage)
    if case == "too many columns of tiles":
        return not persistent(stage)
    about_scales = any(
        isinstance(each, Quantized) or (isinstance(each, Pair) and each.scale is not ...) for each in operands
    )
    return block_scaled(stage) or where == "stage" or not about_scales


@pytest.mark.parametrize(
    "case, stage",
    [
        (case, stage)
        for case in cases("stage", "one scale", "both")
        for stage in STAGES
        if concerns(case, stage)
    ],
)
def test_stages(case, stage, nothing_compiles):
    _, *operands, keywords, error, words = TABLE[case]
    good = Pair(A[0]), Pair(B[0])
    for i, granularity in enumerate(STAGES[stage].stage.granularities):
        operand = good[i] if operands[i] is GOOD else operands[i]
        operands[i] = operand.quantized(granularity) if isinstance(operand, Pair) else operand
    if keywords.get("config") is FLOAT:
        keywords = {"config": STAGES[stage].Config(block_m=64.0)}
    with pytest.raises(error, match=words):
        STAGES[stage].gemm(*operands, **keywords)


@pytest.mark.parametrize("case", cases("call", "both", "contiguous", "masked"))
def test_calls(case, nothing_compiles):
    where, *operands, keywords, error, words = TABLE[case]
    if where == "both":
        good = A, B
        for i, granularity in enumerate(("1x128", "128x128")):
            if operands[i] is GOOD:
                operands[i] = good[i]
            elif isinstance(operands[i], Pair):
                operands[i] = operands[i].data, operands[i].scales(granularity)
        words = re.sub(r"^([ab])\.data", r"\1\\[0\\]", words)
        words = re.sub(r"^([ab])\.scale", r"\1\\[1\\]", words)
    if keywords.get("config") is FLOAT:
        keywords = {"config": s11_overlapped.Config(64.0)}
    with pytest.raises(error, match=words):
        CALLS.get(where, minigemm.fp8_gemm_nt)(*operands, **keywords)


@pytest.mark.parametrize("stage", sorted(STAGES)[:5])
def test_fp32_output_of_the_first_stages(stage, nothing_compiles):
    with pytest.raises(TypeError, match=r"out_dtype: expected torch.bfloat16, got torch.float32"):
        STAGES[stage].gemm(
            Pair(A[0]).quantized("tensor"), Pair(B[0]).quantized("tensor"), out_dtype=torch.float32
        )


FEW_ROWS = {"block_m": 32, "blocks": 1}  # of s12_swapped, legal for any k
ILLEGAL = {
    "s01_naive": [
        ({"block_m": 64, "block_n": 32}, "2048 threads exceed the 1024"),
        ({"block_m": 0}, "block_m must be at least 1, got 0"),
    ],
    "s02_tiled": [
        ({"block_k": 24}, "block_k must be a multiple of 16"),
        ({"padding": 8}, "padding must be a multiple of 16"),
        ({"block_m": 100}, "block_m = 100 must be a multiple of thread_m = 8"),
        ({"block_m": 256, "block_n": 256, "thread_m": 4, "thread_n": 4}, "4096 threads exceed the 1024"),
        ({"block_k": 1024}, "bytes of shared memory exceed the 232448"),
        ({"thread_m": 16, "thread_n": 16}, "registers a thread exceed the 255"),
        ({"block_m": 16, "block_n": 16}, "do not make whole warps"),
    ],
    "s03_tma": [
        ({"block_k": 16}, "block_k must be 32, 64 or 128"),
        ({"block_m": 512}, "block_m must be a multiple of 8 up to 256"),
        ({"block_n": 60, "thread_n": 4}, "block_n must be a multiple of 8 up to 256"),
        ({"block_m": 256, "block_n": 256, "block_k": 128, "thread_m": 8, "thread_n": 16}, "exceed"),
    ],
    "s04_wgmma": [
        ({"block_m": 96}, "block_m must be a multiple of 64 up to 256"),
        ({"block_m": 320}, "block_m must be a multiple of 64 up to 256"),
        ({"block_n": 20}, "block_n must be a multiple of 8 from 8 to 256, got 20"),
        ({"block_n": 0}, "block_n must be a multiple of 8 from 8 to 256, got 0"),
        ({"block_m": 256, "block_n": 256}, "registers a thread exceed the 128"),
    ],
    "s05_pipelined": [
        ({"stages": 1}, "stages must be at least 2"),
        ({"stages": 4}, "bytes of shared memory exceed the 232448 of a CTA: take fewer stages"),
        ({"block_m": -64}, "block_m must be a multiple of 64"),
    ],
    "s06_warp_specialized": [
        ({"consumers": 4}, "consumers must be 1, 2 or 3, got 4"),
        ({"block_m": 64}, "block_m must be a multiple of 128 up to 256"),
        ({"block_m": 256, "consumers": 1}, "a consumer can have 64 or 128 rows, got block_m / consumers = 256"),
        ({"block_n": 24}, "block_n must be a multiple of 16"),
        ({"block_m": 256, "stages": 2}, "bytes of shared memory exceed"),
        ({"block_m": 192, "block_n": 208, "stages": 2, "consumers": 3}, "registers a thread exceed the 128"),
        ({"block_m": 128, "block_n": 240, "stages": 2, "consumers": 1}, "registers a thread exceed the 248"),
    ],
    "s07_promoted": [
        ({"block_m": 128, "block_n": 176}, "at most 128, or 144, 160 or 192, so that no tile needs three scales"),
        ({"block_m": 128, "block_n": 256, "stages": 2}, "registers a thread exceed the 232"),
        ({"stages": 4}, "bytes of shared memory exceed"),
        ({"stages": 0}, "stages must be at least 2"),
    ],
    "s08_persistent": [
        ({"ctas": -1}, "ctas must be at least 0, which is one for each SM, got -1"),
        ({"raster": 0}, "raster must be at least 1, got 0"),
        ({"block_m": 128, "block_n": 176}, "block_n must be at most 128, or 144, 160 or 192"),
        ({"stages": 4}, "bytes of shared memory exceed"),
    ],
    "s09_multicast": [
        ({"cluster_m": 4}, "cluster_m must be 1 or 2, got 4"),
        ({"cluster_n": 0}, "cluster_n must be 1 or 2, got 0"),
        ({"cluster_m": 2, "cluster_n": 2}, "cluster_m and cluster_n must not both be 2"),
        ({"ctas": 131}, "ctas must be a multiple of a cluster's 2, got 131"),
        ({"raster": 0}, "raster must be at least 1, got 0"),
        ({"stages": 4}, "bytes of shared memory exceed"),
    ],
    "s10_grouped": [
        ({"ctas": -1}, "ctas must be at least 0, which is one for each SM, got -1"),
        ({"raster": 0, "raster_m": True}, "raster must be at least 1, got 0"),
        ({"block_m": 64}, "block_m must be a multiple of 128 up to 256"),
        ({"block_m": 128, "block_n": 256, "stages": 2}, "registers a thread exceed the 232"),
        ({"consumers": 0}, "consumers must be 1, 2 or 3, got 0"),
        ({"layout": 4}, "layout must be one of 0 to 3, DENSE to MASKED, got 4"),
    ],
    "s11_overlapped": [
        ({"ctas": -1}, "ctas must be at least 0, which is one for each SM, got -1"),
        ({"raster": 0}, "raster must be at least 1, got 0"),
        ({"block_m": 64}, "block_m must be a multiple of 128 up to 256"),
        ({"block_m": 128, "block_n": 176}, "block_n must be at most 128, or 144, 160 or 192"),
        ({"stages": 4}, "bytes of shared memory exceed"),
        ({"stages": 1}, "stages must be at least 2"),
        ({"layout": -1}, "layout must be one of 0 to 3, DENSE to MASKED, got -1"),
    ],
    "s12_swapped": [
        ({}, "blocks must be 1 where k is no multiple of 128, as k = 272, got 4"),
        ({"block_m": 72}, "block_m must be a multiple of 8 up to 64, got 72"),
        ({**FEW_ROWS, "block_m": 20}, "block_m must be a multiple of 8 up to 64, got 20"),
        ({**FEW_ROWS, "block_n": 128}, r"block_n must be 64 \* consumers = 64, got 128"),
        ({**FEW_ROWS, "consumers": 3}, "consumers must be 1 or 2, got 3"),
        ({**FEW_ROWS, "blocks": 3}, "blocks must be 1, 2 or 4, got 3"),
        ({"blocks": 1}, r"blocks \* block_m must be a multiple of 32, where .*, got 1 \* 16"),
        ({**FEW_ROWS, "stages": 1}, "stages must be at least 2"),
        ({**FEW_ROWS, "stages": 32}, "bytes of shared memory exceed .* fewer stages or smaller blocks"),
        ({**FEW_ROWS, "ctas": -1}, "ctas must be at least 0, which is one for each SM, got -1"),
        ({**FEW_ROWS, "raster": 0}, "raster must be at least 1, got 0"),
        ({**FEW_ROWS, "layout": 4}, "layout must be one of 0 to 3, DENSE to MASKED, got 4"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "stage, fields, words", [(stage, *row) for stage, rows in ILLEGAL.items() for row in rows]
)
def test_illegal_configs(stage, fields, words, nothing_compiles):
    """The message says which limit is broken, and a config that is legal and near."""
    module = STAGES[stage]
    a, b = (
        Pair(data).quantized(granularity)
        for data, granularity in zip((A[0], B[0]), module.stage.granularities, strict=True)
    )
    with pytest.raises(ValueError, match="config: .*" + words) as raised:
        module.gemm(a, b, module.Config(**fields))
    near = re.search(r"; the nearest legal config is s\d\d_\w+\.(Config\(.*\))$", str(raised.value))
    assert near, raised.value
    config = eval(near[1], {"Config": module.Config})
    assert module.is_legal(config, Product(16, 16, 32))
    assert sum(vars(config)[name] != value for name, value in vars(module.Config(**fields)).items()) <= 2


def test_the_config_of_another_layout(nothing_compiles):
    """A kernel for groups would take the launch of one product for something else."""
    module = STAGES["s10_grouped"]
    a, b = (
        Pair(data).quantized(granularity)
        for data, granularity in zip((A[0], B[0]), module.stage.granularities, strict=True)
    )
    with pytest.raises(ValueError, match="config.layout: expected 0, that of the call, got 3"):
        module.gemm(a, b, module.Config(layout=3))


NEAREST = [
    ("s03_tma", {"block_k": 16}, {"block_k": 32}),
    ("s04_wgmma", {"block_m": 100}, {"block_m": 128}),
    ("s05_pipelined", {"stages": 9}, {"stages": 3}),
    ("s06_warp_specialized", {"block_n": 250, "stages": 2}, {"block_n": 256}),
    ("s07_promoted", {"block_m": 128, "block_n": 176}, {"block_n": 192}),
    ("s08_persistent", {"raster": 0}, {"raster": 1}),
    ("s09_multicast", {"cluster_n": 2}, {"cluster_m": 1}),
    ("s09_multicast", {"ctas": 1}, {"ctas": 2}),
    ("s12_swapped", {"block_m": 40, "blocks": 1}, {"block_m": 32}),
]


@pytest.mark.parametrize("stage, fields, changed", NEAREST)
def test_the_nearest_legal_config(stage, fields, changed):
    module = STAGES[stage]
    config = module.Config(**fields)
    assert nearest_legal(module.is_legal, config, Product(64, 64, 64)) == replace(config, **changed)


def test_no_legal_config_is_near():
    module = STAGES["s04_wgmma"]
    assert nearest_legal(module.is_legal, module.Config(), Product(16, 1 << 30, 16)) is None


@pytest.mark.parametrize("stage", [name for name in STAGES if not persistent(name)])
def test_too_many_columns_of_tiles(stage):
    module = STAGES[stage]
    legal = module.is_legal(module.default_config(Product(16, 16, 16)), Product(16, 1 << 30, 16))
    assert not legal and "65535" in legal.reason


@pytest.mark.parametrize("stage", [name for name in STAGES if persistent(name)])
def test_too_many_tiles(stage):
    module = STAGES[stage]
    assert module.is_legal(module.Config(), Product(16, 1 << 30, 128))
    legal = module.is_legal(module.Config(), Product(1 << 30, 1 << 30, 128))
    assert not legal and "more than 2**30" in legal.reason


def test_too_many_partial_sums():
    """A slot of s12 has as many as it has k-blocks; two consumers share the registers."""
    s12 = STAGES["s12_swapped"]
    assert s12.is_legal(s12.Config(64, 64, 2), Product(64, 128, 128))
    legal = s12.is_legal(s12.Config(64, 128, 2, 2, blocks=4), Product(64, 128, 128))
    assert not legal and "about 232 registers a thread exceed the 184" in legal.reason


@pytest.mark.parametrize("stage", STAGES)
def test_a_source_that_does_not_compile(stage, tmp_path):
    mine = tmp_path / "mine.cu"
    mine.write_text(
        STAGES[stage]
        .stage.source.read_text()
        .replace('extern "C" __global__', 'oops extern "C" __global__', 1)
    )
    a, b = (
        Pair(data).quantized(granularity)
        for data, granularity in zip((A[0], B[0]), STAGES[stage].stage.granularities, strict=True)
    )
    with pytest.raises(CompileError, match=r"mine.cu:\d+: error"):
        STAGES[stage].gemm(a, b, source=mine)


def test_a_gpu_that_is_not_hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(
        ValueError, match=r"NVIDIA A100 has compute capability 8.0, .* need a Hopper GPU .* \(\.cpu\(\)\)"
    ):
        cuda_runtime.check_device.__wrapped__(torch.device("cuda", 0))
    assert runtime.of(torch.device("cuda", 0)) is cuda_runtime


def test_a_driver_of_an_older_generation(monkeypatch):
    import cuda.bindings

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        cuda_runtime,
        "_driver",
        lambda: SimpleNamespace(
            cuDriverGetVersion=lambda: (0, 12040), CUresult=SimpleNamespace(CUDA_SUCCESS=0)
        ),
    )
    monkeypatch.setattr(cuda.bindings, "__version__", "13.4.4")
    with pytest.raises(
        ValueError,
        match=r"device: the GPU's driver knows CUDA up to 12.4, .* for CUDA 13; update the driver, .*nvrtc-cu12",
    ):
        cuda_runtime.check_device.__wrapped__(torch.device("cuda", 0))
    monkeypatch.setattr(cuda.bindings, "__version__", "12.9.1")
    cuda_runtime.check_device.__wrapped__(torch.device("cuda", 0))


def test_an_image_that_the_driver_refuses(monkeypatch):
    driver = SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        cuGetErrorName=lambda error: (0, b"CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
        cuGetErrorString=lambda error: (0, b"the provided PTX was compiled with an unsupported toolchain."),
    )
    monkeypatch.setattr(cuda_runtime, "_driver", lambda: driver)
    with pytest.raises(RuntimeError, match="loading s01: .*older than the compiler.*update the driver"):
        cuda_runtime._check((222, None), "loading s01")


@pytest.mark.parametrize("name, value", [
    ("hazards", "x"), ("hazards", 1), ("hazards", None), ("fast", "yes"), ("timeline", "x"), ("timeline", 2),
    ("requests", "x"), ("requests", -1), ("requests", True), ("requests", 1.5),
])  # fmt: skip
def test_bad_observations(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected .*, got {value!r}"), observe(**{name: value}):
        pass


# --- settings, and what else only the library has

SETTINGS = [
    (minigemm.set_num_sms, (0,), ValueError, "num_sms: expected at least 1, got 0"),
    (minigemm.set_num_sms, (1.5,), TypeError, "num_sms: expected an int, got 1.5"),
    (minigemm.set_num_sms, (np.True_,), TypeError, "num_sms: expected an int, got"),
    (minigemm.set_num_sms, (True,), TypeError, "num_sms: expected an int, got True"),
    (minigemm.set_batch_invariant, (1,), TypeError, "invariant: expected True or False, got 1"),
    (minigemm.set_pdl, (1,), TypeError, "enabled: expected True or False, got 1"),
    (minigemm.set_pdl, (None,), TypeError, "enabled: expected True or False, got None"),
    (minigemm.set_pdl, (True, "b"), TypeError, "early_weights: expected True or False, got 'b'"),
    (
        minigemm.set_pdl,
        (False, True),
        ValueError,
        "early_weights: expected False where enabled is False, got True",
    ),
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
def test_settings(call, arguments, error, words, nothing_compiles):
    with pytest.raises(error, match=words):
        call(*arguments)


PRECOMPILE = [
    ({"layout": "rows"}, ValueError, "layout: expected one of 'dense', 'contiguous', 'masked', got 'rows'"),
    ({"groups": 0}, ValueError, "groups: expected an int of at least 1, got 0"),
    ({"groups": 3}, ValueError, "groups: expected 1 in the dense layout, got 3"),
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
]


@pytest.mark.parametrize("keywords, error, words", [
    *PRECOMPILE,
    ({"processes": 0}, ValueError, "processes: expected an int of at least 1, got 0"),
])  # fmt: skip
def test_precompile(keywords, error, words, nothing_compiles):
    with pytest.raises(error, match=words):
        precompile([(128, 128)], **{"device": "cpu", "progress": False, **keywords})


@pytest.mark.parametrize("keywords, error, words", [
    *PRECOMPILE,
    ({"rounds": 0}, ValueError, "rounds: expected at least 1, got 0"),
    ({"rounds": 2.0}, TypeError, "rounds: expected an int, got 2.0"),
    ({"shapes": [(128, 128)]}, TypeError, r"shapes: expected \(m, n, k\) of ints, got \(128, 128\)"),
    ({"shapes": [(64, 128, 128), 5]}, TypeError, r"shapes: expected \(m, n, k\) of ints, got 5"),
    ({"shapes": [(64, 128, 24)]}, ValueError, "shapes: expected sizes of at least 1 and a k that is a multiple"),
    ({"shapes": [(0, 128, 128)]}, ValueError, "shapes: expected sizes of at least 1"),
    ({}, ValueError, "device: expected a Hopper GPU, which autotune needs to time kernels, got cpu"),
])  # fmt: skip
def test_autotune(keywords, error, words, nothing_compiles):
    shapes = keywords.get("shapes", [(64, 128, 128)])
    others = {name: value for name, value in keywords.items() if name != "shapes"}
    with pytest.raises(error, match=words):
        minigemm.autotune(shapes, **{"device": "cpu", "progress": False, **others})


SIZES = {"m": M, "n": N, "k": K}


@pytest.mark.parametrize("arguments, keywords, error, words", [
    *(((), {**SIZES, **keywords}, error, words) for keywords, error, words in PRECOMPILE),
    ((), {}, TypeError, "explain: expected a and b, or m, n and k, got no m, n, k"),
    ((), {"m": 1, "k": 16}, TypeError, "explain: expected a and b, or m, n and k, got no n"),
    ((A, B), {"m": 1, "layout": "dense"}, TypeError, "or m, n and k, got a and b with m, layout"),
    ((A, B), {"device": "cpu"}, TypeError, "got a and b with device"),
    ((A,), {}, TypeError, r"b: expected \(data, scales\) or a Quantized, got NoneType"),
    ((), {**SIZES, "m": 1.0}, TypeError, "m: expected an int, got 1.0"),
    ((), {**SIZES, "n": True}, TypeError, "n: expected an int, got True"),
    ((), {**SIZES, "m": 0}, ValueError, "m: expected at least 1, got 0"),
    ((), {**SIZES, "k": 24}, ValueError, "k: expected a multiple of 16, got 24"),
    ((), {**SIZES, "expected_m": 5}, ValueError, "expected_m: expected the masked layout with it, got 'dense'"),
    ((), {**SIZES, "layout": "masked", "expected_m": -1}, ValueError, "expected_m: expected at least 0, got -1"),
    ((A, (fp8(N, 256), scale(2, 2))), {}, ValueError, r"b: expected \(n, 272\), as many columns as a has"),
    ((A, (fp8(G, N, 256), torch.ones(G, 2, 2))), {}, ValueError, r"b: expected \(groups, n, 272\)"),
    ((GA, (fp8(2, N, K), torch.ones(2, 2, 3))), {}, ValueError, r"b: expected \(3, n, 272\), as many groups as"),
    ((GA, B), {}, ValueError, r"b\[0\]: expected \(groups, rows, k\), got shape \(160, 272\)"),
    ((A[0], B), {}, TypeError, r"a: expected \(data, scales\) or a Quantized, got Tensor"),
    (((A[0][0], A[1]), B), {}, ValueError, r"a\[0\]: expected \(rows, k\), got shape \(272,\)"),
    (((A[0], scale(M, 2)), B), {}, ValueError, r"a\[1\]: expected shape \(16, 3\)"),
    ((A, META_B), {}, ValueError, "expected the device of a, cpu, got meta"),
    (((fp8(0, K), scale(0, 3)), B), {}, ValueError, "m: expected at least 1, got 0"),
])  # fmt: skip
def test_explain(arguments, keywords, error, words, nothing_compiles):
    with pytest.raises(error, match=words):
        minigemm.explain(*arguments, **keywords)


def test_the_device_is_checked_first(monkeypatch, nothing_compiles):
    """Whether it is a Hopper GPU is known before anything is compiled for it."""
    seen = []
    monkeypatch.setattr(runtime.of(torch.device("cpu")), "check_device", seen.append)
    with pytest.raises(AssertionError, match="compiled or launched"):
        minigemm.fp8_gemm_nt(A, B)
    assert seen == [torch.device("cpu")]


def test_ids_may_be_anything_where_only_the_kernel_reads_them(monkeypatch, nothing_compiles):
    """On a GPU, without MINIGEMM_DEBUG, no call looks at them."""
    read = []
    monkeypatch.setattr(checks, "check_ids", lambda *arguments: read.append(arguments))
    with pytest.raises(AssertionError, match="compiled or launched"):
        minigemm.m_grouped_fp8_gemm_nt_contiguous(A, GB, None, OK)
    assert len(read) == 1  # these are CPU tensors
    monkeypatch.setenv("MINIGEMM_DEBUG", "1")
    assert api.debugging()
    monkeypatch.setenv("MINIGEMM_DEBUG", "0")
    assert not api.debugging()


def test_what_is_no_mistake():
    """Groups in any order, repeated, empty, ended by padding; sums of empty groups; scales of any stride."""
    checks.check_ids(ids(*[1] * 128, *[0] * 100, *[-1] * 28, *[1] * 7), 3, 128)
    checks.check_ids(ids(2, -1, 0, 0, 2), 3, 1)
    checks.check_ids(ids(-1, 2, 2, -1, 2), 3, 128)
    checks.check_prefix_sums(ids(0, 0, 0), 0, 128)
    checks.check_prefix_sums(ids(100, 128, 228, 228), 228, 128)
    checks.check_prefix_sums(ids(228, 256), 228, 128)  # an empty group, by its aligned start
    checks.check_counts(ids(0, 24), 24)
    checks.check_scale(("a[1]", torch.ones(16, 2)[:, :1]), fp8(16, 64), "1x128")
    checks.check_scale(("a[1]", empty_m_major(6, 3, groups=2)), fp8(2, 6, 272), "1x128")
    a, b = Pair(A[0], torch.ones(2 * M, 6)[::2, ::2]), Pair(B[0])  # every second scale: is laid out first
    s07_promoted.stage.check(a.quantized("1x128"), b.quantized("128x128"))
    memory = torch.zeros(8, 64)
    checks.check_overlap(memory[:, :32], {"c": memory[:, 32:], "other": torch.zeros(3)})
    with pytest.raises(ValueError, match="overlaps c"):
        checks.check_overlap(memory[:, :33], {"c": memory[:, 32:]})
