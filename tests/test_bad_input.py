"""Every bad call of the stages, and what it must say. Nothing is compiled or launched for any of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minigemm import jit, quantize, runtime
from minigemm.quantize import Quantized
from minigemm.runtime import cuda as cuda_runtime
from minigemm.types import CompileError, Config

from .products import STAGES

ONE = torch.tensor(1.0)


def fp8(rows: int, k: int) -> torch.Tensor:
    return torch.zeros(rows, k, dtype=torch.uint8).view(torch.float8_e4m3fn)


def good(rows: int = 16, k: int = 32) -> Quantized:
    return Quantized(fp8(rows, k), ONE, "tensor")


def strided(rows: int, k: int, pitch: int, start: int = 0) -> Quantized:
    memory = torch.zeros(rows * pitch + start + 16, dtype=torch.uint8)
    return Quantized(memory[start : start + rows * pitch].view(rows, pitch)[:, :k].view(torch.float8_e4m3fn), ONE, "tensor")


def meta(rows: int, k: int = 16) -> Quantized:
    return Quantized(torch.empty(rows, k, dtype=torch.float8_e4m3fn, device="meta"), torch.empty((), device="meta"), "tensor")


META = meta(16, 32)
# what comes as (a, b, keywords), the error, its words
TABLE = {
    "a is a tensor": (torch.ones(4, 16), good(), {}, TypeError, r"a: expected a Quantized \(from minigemm.quantize.quantize\), got Tensor"),
    "b is a tuple": (good(), (1, 2), {}, TypeError, "b: expected a Quantized .* got tuple"),
    "data is an array": (Quantized(fp8(16, 32).view(torch.uint8).numpy(), ONE, "tensor"), good(), {}, TypeError, "a.data: expected a torch.Tensor, got ndarray"),
    "scale is a number": (good(), Quantized(fp8(16, 32), 1.0, "tensor"), {}, TypeError, "b.scale: expected a torch.Tensor, got float"),
    "dtype": (Quantized(torch.ones(16, 32), ONE, "tensor"), good(), {}, TypeError, "a.data: expected float8_e4m3fn, got torch.float32"),
    "e5m2": (good(), Quantized(fp8(16, 32).view(torch.float8_e5m2), ONE, "tensor"), {}, TypeError, "b.data: expected float8_e4m3fn, got torch.float8_e5m2"),
    "one dimension": (Quantized(fp8(1, 32)[0], ONE, "tensor"), good(), {}, ValueError, r"a.data: expected a matrix, got shape \(32,\)"),
    "three dimensions": (good(), Quantized(fp8(16, 32)[None], ONE, "tensor"), {}, ValueError, r"b.data: expected a matrix, got shape \(1, 16, 32\)"),
    "granularity": (quantize.quantize(torch.ones(16, 128), "1x128"), good(16, 128), {}, ValueError, "a.granularity: expected 'tensor', got '1x128'"),
    "scale dtype": (Quantized(fp8(16, 32), ONE.double(), "tensor"), good(), {}, TypeError, "a.scale: expected float32, got torch.float64"),
    "scale shape": (good(), Quantized(fp8(16, 32), torch.ones(1), "tensor"), {}, ValueError, r"b.scale: expected one number \(0-d\), got shape \(1,\)"),
    "k mismatch": (good(16, 32), good(16, 48), {}, ValueError, r"b: expected \(n, 32\), as many columns as a has, got \(16, 48\)"),
    "k not 16": (strided(16, 24, 32), strided(16, 24, 32), {}, ValueError, r"a.data: expected a k \(columns\) that is a multiple of 16, got 24"),
    "not contiguous": (Quantized(fp8(32, 16).T, ONE, "tensor"), good(), {}, ValueError, r"a.data: expected a contiguous last dimension, got strides \(1, 16\)"),
    "row stride": (good(), strided(16, 32, 40), {}, ValueError, "b.data: expected a row stride that is a multiple of 16 bytes .* got 40"),
    "expanded": (Quantized(fp8(1, 32).expand(16, 32), ONE, "tensor"), good(), {}, ValueError, "a.data: expected a row stride .* got 0"),
    "start": (good(), strided(16, 32, 32, start=8), {}, ValueError, "b.data: expected a 16-byte aligned start, got an address that is 8 bytes past one"),
    "device": (META, META, {}, ValueError, "device: expected tensors on a CPU .* got meta"),
    "device mix": (good(), META, {}, ValueError, "b: expected the device of a, cpu, got meta"),
    "scale device": (Quantized(fp8(16, 32), META.scale, "tensor"), good(), {}, ValueError, "a.scale: expected the data's device, cpu, got meta"),
    "config type": (good(), good(), {"config": {"block_m": 64}}, TypeError, r"config: expected a s\d\d_\w+.Config, got \w*.?dict"),
    "config of nobody": (good(), good(), {"config": Config()}, TypeError, r"config: expected a s\d\d_\w+.Config, got types.Config"),
    "too many rows": (meta(2**30 + 1), meta(16), {}, ValueError, r"a.data: expected at most 2\*\*30 rows and columns, got \(1073741825, 16\)"),
    "too many columns of tiles": (meta(16), meta(2**30), {}, ValueError, "config: n = 1073741824 needs .* more than the 65535 of a grid"),
    "config field": (good(), good(), {"config": "block_m"}, TypeError, r"config.block_m: expected an int, got 64.0"),
    "source type": (good(), good(), {"source": 3}, TypeError, "source: expected the path of a CUDA file, got int"),
    "source": (good(), good(), {"source": "/nowhere/mine.cu"}, ValueError, "source: expected the path of a CUDA file, got '/nowhere/mine.cu'"),
    "source is a folder": (good(), good(), {"source": Path(__file__).parent}, ValueError, "source: expected the path of a CUDA file"),
}  # fmt: skip


@pytest.fixture
def nothing_compiles(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jit, "build", refuse)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", TABLE)
def test_bad_calls(case, stage, nothing_compiles):
    a, b, keywords, error, words = TABLE[case]
    if keywords.get("config") == "block_m":
        keywords = {"config": STAGES[stage].Config(block_m=64.0)}
    with pytest.raises(error, match=words):
        STAGES[stage].gemm(a, b, **keywords)


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
}  # fmt: skip


@pytest.mark.parametrize("stage, fields, words", [(stage, *row) for stage, rows in ILLEGAL.items() for row in rows])
def test_illegal_configs(stage, fields, words, nothing_compiles):
    module = STAGES[stage]
    with pytest.raises(ValueError, match="config: .*" + words):
        module.gemm(good(), good(), module.Config(**fields))


@pytest.mark.parametrize("stage", STAGES)
def test_too_many_columns_of_tiles(stage):
    from minigemm.types import Problem

    module = STAGES[stage]
    legal = module.is_legal(module.default_config(Problem(16, 16, 16)), Problem(16, 1 << 30, 16))
    assert not legal and "65535" in legal.reason


@pytest.mark.parametrize("stage", STAGES)
def test_a_source_that_does_not_compile(stage, tmp_path):
    mine = tmp_path / "mine.cu"
    mine.write_text(STAGES[stage].stage.source.read_text().replace("extern \"C\" __global__", "oops extern \"C\" __global__", 1))
    with pytest.raises(CompileError, match=r"mine.cu:\d+: error"):
        STAGES[stage].gemm(good(), good(), source=mine)


def test_a_gpu_that_is_not_hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ValueError, match=r"NVIDIA A100 has compute capability 8.0, .* need a Hopper GPU .* \(\.cpu\(\)\)"):
        cuda_runtime.check_device.__wrapped__(torch.device("cuda", 0))
    assert runtime.of(torch.device("cuda", 0)) is cuda_runtime


def test_a_driver_of_an_older_generation(monkeypatch):
    import cuda.bindings

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_runtime, "_driver", lambda: SimpleNamespace(cuDriverGetVersion=lambda: (0, 12040), CUresult=SimpleNamespace(CUDA_SUCCESS=0)))
    monkeypatch.setattr(cuda.bindings, "__version__", "13.4.4")
    with pytest.raises(ValueError, match=r"device: the GPU's driver knows CUDA up to 12.4, .* for CUDA 13; update the driver, .*nvrtc-cu12"):
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
