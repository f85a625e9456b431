"""Every bad call of the stages, and what it must say. Nothing is compiled or launched for any of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minigemm import observe, quantize, runtime
from minigemm.compiler import jit
from minigemm.kernels.stage import nearest_legal
from minigemm.layout import ceil_div
from minigemm.quantize import Quantized
from minigemm.runtime import cuda as cuda_runtime
from minigemm.types import CompileError, Config, Problem
from tests.products import STAGES

ONE = torch.tensor(1.0)


def fp8(rows: int, k: int) -> torch.Tensor:
    return torch.zeros(rows, k, dtype=torch.uint8).view(torch.float8_e4m3fn)


def good(rows: int = 16, k: int = 32) -> Quantized:
    return Quantized(fp8(rows, k), ONE, "tensor")


def strided(rows: int, k: int, pitch: int, start: int = 0) -> Quantized:
    memory = torch.zeros(rows * pitch + start + 16, dtype=torch.uint8)
    return Quantized(
        memory[start : start + rows * pitch].view(rows, pitch)[:, :k].view(torch.float8_e4m3fn), ONE, "tensor"
    )


def meta(rows: int, k: int = 16) -> Quantized:
    return Quantized(
        torch.empty(rows, k, dtype=torch.float8_e4m3fn, device="meta"),
        torch.empty((), device="meta"),
        "tensor",
    )


def suited(operand: object, granularity: str) -> object:
    """An operand with one good scale, as a stage with block scales would want it; any other as it is."""
    if granularity == "tensor" or not isinstance(operand, Quantized) or operand.granularity != "tensor":
        return operand
    rows, k = (
        operand.data.shape if isinstance(operand.data, torch.Tensor) and operand.data.dim() == 2 else (1, 1)
    )
    shape = (rows if granularity == "1x128" else ceil_div(rows, 128), ceil_div(k, 128))
    return Quantized(operand.data, torch.ones(shape, device=operand.scale.device), granularity)


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
    "out_dtype": (good(), good(), {"out_dtype": torch.float16}, TypeError, "out_dtype: expected torch.bfloat16.*, got torch.float16"),
    "out_dtype is a word": (good(), good(), {"out_dtype": "float32"}, TypeError, "out_dtype: expected torch.bfloat16.*, got 'float32'"),
}  # fmt: skip
# those that are about the one scale of a tensor; BLOCK_TABLE has the others
OF_ONE_SCALE = ("scale is a number", "granularity", "scale dtype", "scale shape", "scale device")


def a_scaled(scale: object, granularity: str = "1x128") -> Quantized:
    return Quantized(fp8(16, 272), scale, granularity)


def b_scaled(scale: object, granularity: str = "128x128") -> Quantized:
    return Quantized(fp8(160, 272), scale, granularity)


A, B = a_scaled(torch.ones(16, 3)), b_scaled(torch.ones(2, 3))
BLOCK_TABLE = {
    "granularity of a": (a_scaled(ONE, "tensor"), B, ValueError, "a.granularity: expected '1x128', got 'tensor'"),
    "granularity of b": (A, Quantized(fp8(160, 272), torch.ones(160, 3), "1x128"), ValueError, "b.granularity: expected '128x128', got '1x128'"),
    "scale is a number": (a_scaled(1.0), B, TypeError, "a.scale: expected a torch.Tensor, got float"),
    "dtype": (A, b_scaled(torch.ones(2, 3).bfloat16()), TypeError, "b.scale: expected float32, got torch.bfloat16"),
    "packed exponents": (a_scaled(torch.ones(16, 3, dtype=torch.int32)), B, TypeError, "a.scale: expected float32, got torch.int32"),
    "too few": (a_scaled(torch.ones(16, 2)), B, ValueError, r"a.scale: expected shape \(16, 3\), one scale for each 1x128 block, got \(16, 2\)"),
    "transposed": (a_scaled(torch.ones(3, 16)), B, ValueError, r"a.scale: expected shape \(16, 3\), .* got \(3, 16\)"),
    "one dimension": (a_scaled(torch.ones(48)), B, ValueError, r"a.scale: expected shape \(16, 3\), .* got \(48,\)"),
    "too many": (A, b_scaled(torch.ones(160, 3)), ValueError, r"b.scale: expected shape \(2, 3\), one scale for each 128x128 block, got \(160, 3\)"),
    "expanded": (a_scaled(torch.ones(16, 1).expand(16, 3)), B, ValueError, r"a.scale: expected M-major or row-major scales .*, got strides \(1, 0\)"),
    "every second": (a_scaled(torch.ones(32, 6)[::2, ::2]), B, ValueError, r"a.scale: expected M-major or row-major scales .*, got strides \(12, 2\)"),
    "b column-major": (A, b_scaled(torch.ones(3, 2).T), ValueError, r"b.scale: expected row-major scales .*, got strides \(1, 2\)"),
    "device": (a_scaled(torch.ones(16, 3, device="meta")), B, ValueError, "a.scale: expected the data's device, cpu, got meta"),
}  # fmt: skip


@pytest.fixture
def nothing_compiles(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jit, "build", refuse)


def block_scaled(stage: str) -> bool:
    return STAGES[stage].stage.granularities != ("tensor", "tensor")


def persistent(stage: str) -> bool:
    """Whether the launch has a CTA for each tile no more."""
    return hasattr(STAGES[stage].Config(), "ctas")


def concerns(case: str, stage: str) -> bool:
    return not (case in OF_ONE_SCALE and block_scaled(stage)) and not (
        case == "too many columns of tiles" and persistent(stage)
    )


@pytest.mark.parametrize(
    "case, stage", [(case, stage) for case in TABLE for stage in STAGES if concerns(case, stage)]
)
def test_bad_calls(case, stage, nothing_compiles):
    a, b, keywords, error, words = TABLE[case]
    a, b = (
        suited(operand, granularity)
        for operand, granularity in zip((a, b), STAGES[stage].stage.granularities, strict=True)
    )
    if keywords.get("config") == "block_m":
        keywords = {"config": STAGES[stage].Config(block_m=64.0)}
    with pytest.raises(error, match=words):
        STAGES[stage].gemm(a, b, **keywords)


@pytest.mark.parametrize(
    "case, stage", [(case, stage) for case in BLOCK_TABLE for stage in STAGES if block_scaled(stage)]
)
def test_bad_block_scales(case, stage, nothing_compiles):
    a, b, error, words = BLOCK_TABLE[case]
    with pytest.raises(error, match=words):
        STAGES[stage].gemm(a, b)


@pytest.mark.parametrize("stage", sorted(STAGES)[:5])
def test_fp32_output_of_the_first_stages(stage, nothing_compiles):
    with pytest.raises(TypeError, match=r"out_dtype: expected torch.bfloat16, got torch.float32"):
        STAGES[stage].gemm(good(), good(), out_dtype=torch.float32)


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
        ({"block_m": 128, "block_n": 176}, "block_n must be at most 128, or 144, 160 or 192, so that no tile needs three scales"),
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
}  # fmt: skip


@pytest.mark.parametrize(
    "stage, fields, words", [(stage, *row) for stage, rows in ILLEGAL.items() for row in rows]
)
def test_illegal_configs(stage, fields, words, nothing_compiles):
    """The message says which limit is broken, and a config that is legal and near."""
    module = STAGES[stage]
    a, b = (suited(good(), granularity) for granularity in module.stage.granularities)
    with pytest.raises(ValueError, match="config: .*" + words) as raised:
        module.gemm(a, b, module.Config(**fields))
    near = re.search(r"; the nearest legal config is s\d\d_\w+\.(Config\(.*\))$", str(raised.value))
    assert near, raised.value
    config = eval(near[1], {"Config": module.Config})
    assert module.is_legal(config, Problem(16, 16, 32))
    assert sum(vars(config)[name] != value for name, value in vars(module.Config(**fields)).items()) <= 2


def test_the_config_of_another_layout(nothing_compiles):
    """A kernel for groups would take the launch of one product for something else."""
    module = STAGES["s10_grouped"]
    a, b = (suited(good(), granularity) for granularity in module.stage.granularities)
    with pytest.raises(ValueError, match="config.layout: expected 0, that of the call, got 3"):
        module.gemm(a, b, module.Config(layout=module.MASKED))


NEAREST = [
    ("s03_tma", {"block_k": 16}, {"block_k": 32}),
    ("s04_wgmma", {"block_m": 100}, {"block_m": 128}),
    ("s05_pipelined", {"stages": 9}, {"stages": 3}),
    ("s06_warp_specialized", {"block_n": 250, "stages": 2}, {"block_n": 256}),
    ("s07_promoted", {"block_m": 128, "block_n": 176}, {"block_n": 192}),
    ("s08_persistent", {"raster": 0}, {"raster": 1}),
    ("s09_multicast", {"cluster_n": 2}, {"cluster_m": 1}),
    ("s09_multicast", {"ctas": 1}, {"ctas": 2}),
]


@pytest.mark.parametrize("stage, fields, changed", NEAREST)
def test_the_nearest_legal_config(stage, fields, changed):
    module = STAGES[stage]
    config = module.Config(**fields)
    assert nearest_legal(module.is_legal, config, Problem(64, 64, 64)) == replace(config, **changed)


def test_no_legal_config_is_near():
    module = STAGES["s04_wgmma"]
    assert nearest_legal(module.is_legal, module.Config(), Problem(16, 1 << 30, 16)) is None


@pytest.mark.parametrize("stage", [name for name in STAGES if not persistent(name)])
def test_too_many_columns_of_tiles(stage):
    module = STAGES[stage]
    legal = module.is_legal(module.default_config(Problem(16, 16, 16)), Problem(16, 1 << 30, 16))
    assert not legal and "65535" in legal.reason


@pytest.mark.parametrize("stage", [name for name in STAGES if persistent(name)])
def test_too_many_tiles(stage):
    module = STAGES[stage]
    assert module.is_legal(module.Config(), Problem(16, 1 << 30, 16))
    legal = module.is_legal(module.Config(), Problem(1 << 30, 1 << 30, 16))
    assert not legal and "more than 2**30" in legal.reason


@pytest.mark.parametrize("stage", STAGES)
def test_a_source_that_does_not_compile(stage, tmp_path):
    mine = tmp_path / "mine.cu"
    mine.write_text(
        STAGES[stage]
        .stage.source.read_text()
        .replace('extern "C" __global__', 'oops extern "C" __global__', 1)
    )
    a, b = (suited(good(), granularity) for granularity in STAGES[stage].stage.granularities)
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
    ("hazards", "x"), ("hazards", 1), ("hazards", None), ("fast", "yes"), ("timeline", "x"), ("timeline", 2), ("requests", "x"), ("requests", -1),
    ("requests", True), ("requests", 1.5),
])  # fmt: skip
def test_bad_observations(name, value):
    with pytest.raises(TypeError, match=f"{name}: expected .*, got {value!r}"), observe(**{name: value}):
        pass
