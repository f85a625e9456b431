"""Repeated calls, prepared launches and precompilation.

The driver is played by a stand-in where there is none.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import weakref
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cuda.bindings import driver as bindings

import minigemm
from minigemm import api, cli, quantize, runtime, types
from minigemm.compiler import jit
from minigemm.kernels import grouped
from minigemm.kernels.library import stages_by_name
from minigemm.plan import ahead, choose
from minigemm.plan import prepared as plan
from minigemm.plan.ahead import precompile
from minigemm.runtime import cuda as cuda_runtime
from minigemm.types import Layout, Product

CPU = torch.device("cpu")


@pytest.fixture
def prepared(monkeypatch):
    """Let the emulator prepare launches as a GPU does; count what is made, replaced and fired."""
    seen = SimpleNamespace(made=0, replaced=[], fired=0)
    emulated = runtime.of(CPU)

    class Fire:
        def __init__(self, loaded, launch):
            self.loaded, self.launch = loaded, launch

        def start(self):
            seen.fired += 1
            emulated.launch(self.loaded, self.launch)

        def replaced(self, changes):
            args = tuple(changes.get(place, arg) for place, arg in enumerate(self.launch.args))
            seen.replaced.append(Fire(self.loaded, replace(self.launch, args=args)))
            return seen.replaced[-1]

    def prepare(loaded, launch):
        seen.made += 1
        return Fire(loaded, launch)

    monkeypatch.setattr(emulated, "prepare", prepare)
    plan.clear()
    yield seen
    plan.clear()


@pytest.fixture
def checked(monkeypatch):
    """How often a call was checked in full."""
    counts = []
    real = api._operands
    monkeypatch.setattr(api, "_operands", lambda *arguments: counts.append(arguments) or real(*arguments))
    return counts


def operands(m=20, n=24, k=256):
    a, b = (
        quantize.quantize(quantize.activations(m, k), "1x128"),
        quantize.quantize(quantize.weights(n, k), "128x128"),
    )
    return (a.data, a.scale), (b.data, b.scale)


def test_a_repeated_call_is_a_look_up(prepared, checked):
    a, b = operands()
    d, other = torch.zeros(20, 24).bfloat16(), torch.zeros(20, 24).bfloat16()
    expected = minigemm.fp8_gemm_nt(a, b).clone()
    checked.clear()
    for out in (d, other, d, other, d):
        out.zero_()
        assert minigemm.fp8_gemm_nt(a, b, out) is out and torch.equal(out, expected)
    assert (
        not checked and prepared.made == 1 and len(prepared.replaced) == 2 and prepared.fired == 6
    )  # the first call with each replaces addresses
    held = quantize.Quantized(*a, "1x128"), quantize.Quantized(*b, "128x128")
    minigemm.fp8_gemm_nt(*held, d)
    assert not checked and len(prepared.replaced) == 2


def test_what_an_address_does_not_say(prepared, checked):
    """The same memory with other sizes, strides or dtypes is another call, and may be a bad one."""
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    minigemm.fp8_gemm_nt(a, b, d)
    expected = d.clone()
    with pytest.raises(TypeError, match=r"a\[1\]: expected float32, got torch.int32"):
        minigemm.fp8_gemm_nt((a[0], a[1].view(torch.int32)), b, d)
    with pytest.raises(TypeError, match=r"b\[0\]: expected float8_e4m3fn, got torch.uint8"):
        minigemm.fp8_gemm_nt(a, (b[0].view(torch.uint8), b[1]), d)
    with pytest.raises(ValueError, match=r"a\[1\]: expected shape \(20, 2\)"):
        minigemm.fp8_gemm_nt((a[0], a[1][:19]), b, d)
    with pytest.raises(ValueError, match=r"d: expected shape \(20, 24\), got \(24, 20\)"):
        minigemm.fp8_gemm_nt(a, b, d.view(24, 20))
    with pytest.raises(ValueError, match="row-major scales that do not overlap"):
        minigemm.fp8_gemm_nt(a, (b[0].expand(24, 256), torch.ones(1).expand(1, 2)), d)
    short = d[:7]
    assert torch.equal(minigemm.fp8_gemm_nt((a[0][:7], a[1][:7]), b, short), expected[:7])
    assert torch.equal(minigemm.fp8_gemm_nt((a[0][:7], a[1][:7].contiguous()), b), expected[:7])


def test_scales_that_are_laid_out_each_time(prepared):
    """The copy's address repeats, for torch caches memory; a launch is prepared for where it lies."""
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    expected = minigemm.fp8_gemm_nt(a, b)
    row_major = a[1].contiguous()
    for _ in range(3):
        assert torch.equal(minigemm.fp8_gemm_nt((a[0], row_major), b, d), expected)
    row_major.mul_(2)
    assert torch.equal(minigemm.fp8_gemm_nt((a[0], row_major), b, d), 2 * expected)


def test_new_values_in_the_same_place(prepared, checked):
    """Nothing of the data is remembered."""
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    first = minigemm.fp8_gemm_nt(a, b, d).clone()
    a[1].mul_(2)
    assert torch.equal(minigemm.fp8_gemm_nt(a, b, d), 2 * first) and len(checked) == 1


def test_settings_make_new_plans(prepared):
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    minigemm.fp8_gemm_nt(a, b, d)
    minigemm.set_num_sms(1)
    try:
        minigemm.fp8_gemm_nt(a, b, d)
        assert prepared.made == 2
    finally:
        minigemm.set_num_sms(None)


@pytest.fixture
def batch_invariant():
    """All layouts sum alike."""
    minigemm.set_batch_invariant(True)
    yield
    minigemm.set_batch_invariant(False)


def test_calls_that_differ_in_an_option(prepared, batch_invariant):
    a, b = operands()
    d = torch.zeros(20, 24)
    product = minigemm.fp8_gemm_nt(a, b, d).clone()
    assert torch.equal(minigemm.fp8_gemm_nt(a, b, d, d), product + product)
    assert torch.equal(minigemm.fp8_gemm_nt(a, b, d), product)
    assert (
        torch.equal(minigemm.fp8_gemm_nt(a, b, d, d), product + product)
        and prepared.made == 2
        and prepared.fired == 4
    )
    stacked = (b[0][None], b[1][None])
    ids = torch.tensor([0] * 12 + [-1] * 8, dtype=torch.int32)
    for padding, expected in ((True, 0.0), (False, 5.0), (True, 0.0), (False, 5.0)):
        d.fill_(5)
        minigemm.m_grouped_fp8_gemm_nt_contiguous(a, stacked, d, ids, ensure_zero_padding=padding)
        assert torch.equal(d[:12], product[:12]) and (d[12:] == expected).all()
    assert prepared.made == 4
    counts = torch.tensor([3], dtype=torch.int32)
    grouped, out = ((a[0][None], a[1][None]), torch.zeros(1, 20, 24))
    for count in (3, 0, 20):  # read by the kernel, not by the call
        counts.fill_(count)
        out.fill_(5)
        minigemm.m_grouped_fp8_gemm_nt_masked(grouped, stacked, out, counts, 8)
        assert torch.equal(out[0, :count], product[:count]) and (out[0, count:] == 5).all()


def test_there_is_an_end_to_what_is_kept(prepared, monkeypatch):
    monkeypatch.setattr(plan, "LIMIT", 3)
    a, b = operands(4, 8, 32)
    outs = [torch.zeros(4, 8, dtype=torch.bfloat16) for _ in range(8)]
    for d in outs:
        minigemm.fp8_gemm_nt(a, b, d)
    assert len(plan._ready) <= 3 and all(torch.equal(d, outs[0]) for d in outs)


def test_an_error_of_a_launch_is_not_swallowed(prepared):
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    minigemm.fp8_gemm_nt(a, b, d)
    (key,) = plan._ready

    def broken():
        raise RuntimeError("launch: CUDA_ERROR_UNKNOWN")

    plan._ready[key] = plan._ready[key][0], broken
    with pytest.raises(RuntimeError, match="CUDA_ERROR_UNKNOWN"):
        minigemm.fp8_gemm_nt(a, b, d)


@pytest.mark.parametrize("error", [RuntimeError("a tensor map: CUDA_ERROR_X"), torch.cuda.OutOfMemoryError()])
def test_an_error_of_a_resized_launch_is_not_swallowed(prepared, checked, monkeypatch, error):
    a, b = operands()
    minigemm.fp8_gemm_nt(a, b, torch.zeros(20, 24, dtype=torch.bfloat16))
    (entry,) = plan._other_m.values()

    def broken(changes):
        raise error

    monkeypatch.setattr(type(entry.prepared), "replaced", lambda self, changes: broken(changes))
    with pytest.raises(type(error)):
        x = a[0][:18], minigemm.to_m_major(a[1][:18])
        minigemm.fp8_gemm_nt(x, b, torch.zeros(18, 24, dtype=torch.bfloat16))
    assert len(checked) == 1


def test_operands_of_no_dimensions_are_named(prepared):
    """The short way meets them before any check."""
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    minigemm.fp8_gemm_nt(a, b, d)
    nothing = torch.zeros(1, dtype=torch.uint8).view(torch.float8_e4m3fn)[0]
    with pytest.raises(ValueError, match=r"a\[0\]: expected \(rows, k\), got shape \(\)"):
        minigemm.fp8_gemm_nt((nothing, a[1]), b, d)


def test_what_a_repeated_call_refuses(prepared):
    """The same addresses, and yet not the same tensors."""
    (x, scale), b = operands(10)
    d = torch.zeros(10, 24)
    minigemm.fp8_gemm_nt((x, scale), b, d)
    with pytest.raises(ValueError, match=r"a\[1\]: expected a tensor that needs no gradient"):
        minigemm.fp8_gemm_nt((x, scale.detach().requires_grad_()), b, d)
    weights = (b[0], b[1].detach().requires_grad_())
    with torch.no_grad():
        minigemm.fp8_gemm_nt((x, scale), weights, d)
        assert prepared.made == 2
        minigemm.fp8_gemm_nt((x, scale), weights, d)
    assert (prepared.made, prepared.fired) == (2, 3)
    with pytest.raises(ValueError, match=r"b\[1\]: expected a tensor that needs no gradient"):
        minigemm.fp8_gemm_nt((x, scale), weights, d)

    version = d._version
    minigemm.fp8_gemm_nt((x, scale), b, d)
    assert d._version > version


def test_debugging_is_read_at_each_call(prepared, checked, monkeypatch):
    """Set after the import, MINIGEMM_DEBUG checks first calls and repeated ones alike."""
    a, b = operands()
    d = torch.zeros(20, 24, dtype=torch.bfloat16)
    for value, checks in ((None, 1), ("1", 3), ("0", 3), ("", 3), ("yes", 5)):
        if value is not None:
            monkeypatch.setenv("MINIGEMM_DEBUG", value)
        assert api.debugging() == (value in ("1", "yes"))
        for _ in range(2):
            minigemm.fp8_gemm_nt(a, b, d)
        assert len(checked) == checks
    monkeypatch.delenv("MINIGEMM_DEBUG")
    assert not api.debugging()


def test_a_sum_apart_and_a_dtype_that_is_told(prepared, checked):
    """c is copied to d before the launch that stands ready; out_dtype may say what d is."""
    a, b = operands()
    d, c = torch.zeros(20, 24, dtype=torch.bfloat16), torch.ones(20, 24, dtype=torch.bfloat16)
    expected = minigemm.fp8_gemm_nt(a, b, c.clone(), c).clone()
    for _ in range(3):
        assert torch.equal(minigemm.fp8_gemm_nt(a, b, d, c), expected)
    assert prepared.made + len(prepared.replaced) == 2
    checked.clear()
    minigemm.fp8_gemm_nt(a, b, d)
    minigemm.fp8_gemm_nt(list(a), list(b), d, out_dtype=torch.bfloat16)
    assert len(checked) == 1


# --- another m


def told(arg):
    """A parameter as it can be compared."""
    if isinstance(arg, types.TensorMap):
        return told(arg.tensor), arg.tensor.shape, arg.tensor.stride(), arg.box, arg.swizzle
    if isinstance(arg, torch.Tensor):
        return arg.data_ptr()
    return arg.value if isinstance(arg, ctypes._SimpleCData) else arg


def same_launch(one, other):
    assert replace(one, args=()).__dict__ == replace(other, args=()).__dict__
    assert [told(arg) for arg in one.args] == [told(arg) for arg in other.args]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("add", [False, True])
def test_another_m_changes_in_a_launch_what_its_description_would(prepared, checked, monkeypatch, dtype, add):
    """Whatever the kernel's parameters are, and in whatever order. Nothing is checked or described again."""
    monkeypatch.setattr(runtime.of(CPU), "launch", lambda loaded, launch: None)
    a, b = operands(200, 40, 272)
    out = torch.zeros(200, 48, dtype=dtype)[:, :40]
    for first, others in ((100, (65, 66, 127, 128)), (61, (57, 63, 64)), (129, (192, 130))):
        for m in (first, *others):
            x, d = (a[0][:m], minigemm.to_m_major(a[1][:m])), out[:m]
            minigemm.fp8_gemm_nt(x, b, d, d if add else None)
            if m != first:
                product = Product(m, 40, 272, out_fp32=dtype == torch.float32, accumulate=add)
                expected = plan.describe(product, (*x, *b, d), choose.config_for(product, CPU))
                same_launch(prepared.replaced[-1].launch, expected)
    assert len(checked) == prepared.made == 3 and len(prepared.replaced) == 9 and prepared.fired == 12


def test_another_m_gives_its_own_result(prepared, checked):
    a, b = operands(124)
    expected = minigemm.fp8_gemm_nt(a, b)
    minigemm.fp8_gemm_nt(a, b, torch.zeros(124, 24, dtype=torch.bfloat16))
    checked.clear()
    for m in (123, 66, 97):
        for scale in (
            minigemm.to_m_major(a[1][:m]),
            a[1][:m].contiguous(),
        ):  # the second is laid out first, behind the checks
            d = torch.zeros(m, 24, dtype=torch.bfloat16)
            for _ in range(2):
                assert torch.equal(minigemm.fp8_gemm_nt((a[0][:m], scale), b, d), expected[:m])
    held = (
        quantize.Quantized(a[0][:104], minigemm.to_m_major(a[1][:104]), "1x128"),
        quantize.Quantized(*b, "128x128"),
    )
    d = torch.zeros(104, 24, dtype=torch.bfloat16)
    assert torch.equal(minigemm.fp8_gemm_nt(*held, d), expected[:104])
    assert prepared.made <= 2 and len(checked) <= 6


def freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def test_another_m_that_is_wrong(prepared):
    a, b = operands(124)
    memory = torch.zeros(64 * 1024, dtype=torch.uint8)
    d = torch.zeros(124, 24, dtype=torch.bfloat16)
    minigemm.fp8_gemm_nt(a, b, d)
    x, scale, out = a[0][:114], minigemm.to_m_major(a[1][:114]), d[:114]
    inside = memory[: 114 * 256].view(torch.float8_e4m3fn).view(114, 256)
    for message, arguments in (
        (r"a\[1\]: expected shape \(114, 2\)", ((x, a[1]), b, out)),
        (r"d: expected shape \(114, 24\), got \(115, 24\)", ((x, scale), b, d[:115])),
        (
            r"a\[0\]: expected a 16-byte aligned start",
            ((memory[8 : 8 + 114 * 256].view(torch.float8_e4m3fn).view(114, 256), scale), b, out),
        ),
        (
            "d: expected memory of its own, got a tensor that overlaps a",
            ((inside, scale), b, memory[: 114 * 48].view(torch.bfloat16).view(114, 24)),
        ),
        (r"a\[0\]: expected memory for all", ((freed(x), scale), b, out)),
        (r"a\[1\]: expected memory for all", ((x, freed(scale)), b, out)),
        ("d: expected memory for all", ((x, scale), b, freed(out))),
        (r"a\[0\]: expected a row stride", ((x.expand(114, 256)[:1].expand(114, 256), scale), b, out)),
        ("a.granularity: expected '1x128', got '128x128'", (quantize.Quantized(x, scale, "128x128"), b, out)),
        (
            "b.granularity: expected '128x128', got 'tensor'",
            ((x, scale), quantize.Quantized(*b, "tensor"), out),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            minigemm.fp8_gemm_nt(*arguments)
    with pytest.raises(TypeError, match=r"a\[0\]: expected float8_e4m3fn"):
        minigemm.fp8_gemm_nt((x.view(torch.uint8), scale), b, out)
    assert not prepared.replaced


@pytest.mark.parametrize("n, k", [(128, 256), (56, 128), (128, 128)])
@pytest.mark.parametrize("first, others", [(128, (124, 66)), (124, (128, 66))])
def test_another_m_where_m_is_also_n_or_k(prepared, checked, monkeypatch, n, k, first, others):
    """The kernel's module says which argument is m; its value does not."""
    monkeypatch.setattr(runtime.of(CPU), "launch", lambda loaded, launch: None)
    a, b = operands(128, n, k)
    out = torch.zeros(128, n, dtype=torch.bfloat16)
    for m in (first, *others):
        x, d = (a[0][:m], minigemm.to_m_major(a[1][:m])), out[:m]
        minigemm.fp8_gemm_nt(x, b, d)
        if m != first:
            expected = plan.describe(Product(m, n, k), (*x, *b, d), choose.config_for(Product(m, n, k), CPU))
            same_launch(prepared.replaced[-1].launch, expected)
    assert prepared.made == len(checked) == 1 and len(prepared.replaced) == 2


def test_another_m_where_operands_share_memory(prepared, checked):
    """a is b, with scales of its own: each argument follows its own tensor."""
    (_, scale), b = operands(24, 24)
    data = b[0]
    expected = minigemm.fp8_gemm_nt((data, scale), b)
    checked.clear()
    for m in (24, 20, 17):
        d = torch.zeros(m, 24, dtype=torch.bfloat16)
        minigemm.fp8_gemm_nt((data[:m], minigemm.to_m_major(scale[:m])), b, d)
        assert torch.equal(d, expected[:m])
    assert prepared.made == 1 and not checked and len(prepared.replaced) == 3


def test_another_m_of_a_d_that_tma_can_or_cannot_write(prepared, checked):
    """A d beside a multiple of 16 bytes is stored by threads: it neither lends a launch nor borrows one."""
    a, b = operands(124)
    expected = minigemm.fp8_gemm_nt(a, b)
    memory = torch.zeros(125 * 24, dtype=torch.bfloat16)
    plan.clear()
    for start, m, checks in ((1, 124, 1), (0, 114, 2), (0, 104, 2), (1, 94, 3)):
        d = memory[start : start + m * 24].view(m, 24)
        minigemm.fp8_gemm_nt((a[0][:m], minigemm.to_m_major(a[1][:m])), b, d)
        assert torch.equal(d, expected[:m]) and len(checked) == checks + 1


def test_another_m_under_other_settings(prepared):
    a, b = operands(124)
    try:
        for number in (None, 1):
            minigemm.set_num_sms(number)
            minigemm.fp8_gemm_nt(a, b, torch.zeros(124, 24, dtype=torch.bfloat16))
        minigemm.fp8_gemm_nt(
            (a[0][:114], minigemm.to_m_major(a[1][:114])), b, torch.zeros(114, 24, dtype=torch.bfloat16)
        )
        assert prepared.made == 2 and prepared.replaced[0].launch.grid == (1, 1, 1)
    finally:
        minigemm.set_num_sms(None)


# --- the GPU's prepared launch


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it is told, and reads parameters through their addresses."""
    told = SimpleNamespace(launches=[], contexts=[], errors=[], capture=[], maps=[], counts=(), device=1)
    told.configs, told.stream = [], 7000

    class Map:
        def __init__(self, tensor):
            self.buffer = ctypes.create_string_buffer(128)
            self.buffer[:8] = tensor.data_ptr().to_bytes(8, "little")

        def getPtr(self):
            return ctypes.addressof(self.buffer)

    def launch(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        addresses = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        values = [ctypes.cast(addresses[i], ctypes.POINTER(kind))[0] for i, kind in enumerate(told.counts)]
        told.launches.append(((gx, gy, gz), (bx, by, bz), shared, stream, values))
        return (told.errors.pop(0) if told.errors else 0,)

    def launch_by(config, function, parameters, extra):
        told.configs.append(config)
        grid, block = ([getattr(config, f"{kind}Dim{axis}") for axis in "XYZ"] for kind in ("grid", "block"))
        return launch(function, *grid, *block, config.sharedMemBytes, int(config.hStream), parameters, extra)

    fake = SimpleNamespace(
        cuLaunchKernel=launch,
        cuLaunchKernelEx=launch_by,
        CUlaunchConfig=bindings.CUlaunchConfig,
        CUlaunchAttribute=bindings.CUlaunchAttribute,
        CUlaunchAttributeID=bindings.CUlaunchAttributeID,
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        cuGetErrorName=lambda error: (0, b"CUDA_ERROR_X"),
        cuGetErrorString=lambda error: (0, b"x"),
    )

    def current(index):
        told.contexts.append(index)
        return nullcontext()

    monkeypatch.setattr(cuda_runtime, "_driver", lambda: fake)
    monkeypatch.setattr(cuda_runtime, "_current", current)
    monkeypatch.setattr(cuda_runtime, "tensor_map", lambda description: Map(description.tensor))
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: told.stream + index, raising=False
    )
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: told.device, raising=False)
    return told


def description(tensor):
    args = (types.TensorMap(tensor, (8,)), tensor, 5, ctypes.c_int64(1 << 40), 0.5)
    return types.Launch((3, 2, 1), (128, 1, 1), args, 4096)


def test_a_prepared_launch_tells_the_driver_what_a_launch_does(driver):
    tensor = torch.zeros(64)
    driver.counts = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_float)
    fire = cuda_runtime.prepare(cuda_runtime.Loaded("function", 1, None), description(tensor))
    driver.contexts.clear()
    for _ in range(3):
        fire.start()
    expected = ((3, 2, 1), (128, 1, 1), 4096, 7001, [tensor.data_ptr(), tensor.data_ptr(), 5, 1 << 40, 0.5])
    assert driver.launches == [expected] * 3
    assert not driver.contexts  # the device is the current one: its context was not entered


def test_a_prepared_launch_of_another_one(driver):
    tensor, other = torch.zeros(64), torch.zeros(64)
    driver.counts = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_float)
    fire = cuda_runtime.prepare(cuda_runtime.Loaded("function", 1, None), description(tensor))
    changed = fire.replaced({0: types.TensorMap(other, (8,)), 2: 7})
    del tensor
    for each in (fire, changed, fire):
        each.start()
    before, after, again = (values for *_, values in driver.launches)
    assert before == again and after == [other.data_ptr(), before[1], 7, *before[3:]]
    assert driver.launches[0][:4] == driver.launches[1][:4]


def test_another_current_device_or_a_thread_without_context(driver):
    fire = cuda_runtime.prepare(cuda_runtime.Loaded("function", 0, None), description(torch.zeros(64)))
    driver.contexts.clear()
    fire.start()
    assert driver.contexts == [0] and len(driver.launches) == 1
    driver.device = 0
    driver.errors[:] = [201]  # invalid context: launched again, inside the right one
    fire.start()
    assert driver.contexts == [0, 0] and len(driver.launches) == 3
    driver.errors[:] = [719, 719]
    with pytest.raises(RuntimeError, match=r"launch: CUDA_ERROR_X \(x\)"):
        fire.start()


def attributes(config):
    """What a launch asks for besides its grid: the cluster, and whether it may begin early."""
    ids = bindings.CUlaunchAttributeID
    held = {each.id: each.value for each in config.attrs}
    assert len(held) == config.numAttrs
    cluster = held.pop(ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, None)
    follows = held.pop(ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, None)
    assert not held
    size = cluster and cluster.clusterDim
    return size and (size.x, size.y, size.z), bool(follows and follows.programmaticStreamSerializationAllowed)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("cluster", [(1, 1, 1), (2, 1, 1)])
def test_a_launch_with_attributes(driver, cluster, dependent):
    launch = types.Launch((4, 1, 1), (128, 1, 1), (3,), 64, cluster=cluster, dependent=dependent)
    driver.counts = (ctypes.c_int,)
    cuda_runtime.prepare(cuda_runtime.Loaded("function", 1, None), launch).start()
    assert driver.launches == [((4, 1, 1), (128, 1, 1), 64, 7001, [3])]
    expected = [(cluster if cluster[0] > 1 else None, dependent)]
    assert [attributes(config) for config in driver.configs] == (expected if any(expected[0]) else [])


def test_streams_and_other_arguments_share_attributes(driver, monkeypatch):
    """Each stream has its description, which is made once, and not for ever more of them."""
    monkeypatch.setattr(cuda_runtime, "STREAMS", 2)
    launch = replace(description(torch.zeros(64)), dependent=True)
    driver.counts = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
    fire = cuda_runtime.prepare(cuda_runtime.Loaded("function", 1, None), launch)
    other = fire.replaced({2: 7})
    for stream in (10, 20, 10, 20, 30, 30):
        driver.stream = stream
        fire.start()
        other.start()
    assert [stream for *_, stream, _ in driver.launches] == [
        s + 1 for s in (10, 20, 10, 20, 30, 30) for _ in "ab"
    ]
    assert [values[2] for *_, values in driver.launches] == [5, 7] * 6
    assert len({id(config) for config in driver.configs}) == 3
    assert all(attributes(config) == (None, True) for config in driver.configs)


def test_other_rows_of_a_dependent_launch(prepared):
    a, b = operands(20)
    for early in (False, True):
        minigemm.set_pdl(True, early)
        try:
            for m in (20, 18):
                x = a[0][:m], minigemm.to_m_major(a[1][:m])
                minigemm.fp8_gemm_nt(x, b, torch.zeros(m, 24, dtype=torch.bfloat16))
        finally:
            minigemm.set_pdl(False)
        changed = prepared.replaced[-1].launch
        assert changed.dependent and changed.args[grouped.EARLY] == early
    assert prepared.made == len(prepared.replaced) == 2


@pytest.mark.parametrize("dependent", [False, True])
def test_threads_share_a_prepared_launch(driver, dependent):
    launch = replace(description(torch.zeros(64)), dependent=dependent)
    fire = cuda_runtime.prepare(cuda_runtime.Loaded("function", 1, None), launch)
    threads = [threading.Thread(target=lambda: [fire.start() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.launches) == 200


@pytest.mark.parametrize("dependent", [False, True])
def test_no_tensor_outlives_its_call(driver, monkeypatch, dependent):
    """What stays prepared holds addresses and forms: activations and results are freed with their owners."""
    loaded = cuda_runtime.Loaded("function", 1, None)
    monkeypatch.setattr(runtime.of(CPU), "prepare", lambda _, launch: cuda_runtime.prepare(loaded, launch))
    plan.clear()
    tensors = []

    def call(m):
        (data, scale), b = operands(m)
        d = torch.zeros(m, 24, dtype=torch.bfloat16)
        minigemm.fp8_gemm_nt((data, scale), weights, d)
        tensors.extend(map(weakref.ref, (data, scale, d, *b)))

    _, weights = operands()
    minigemm.set_pdl(dependent)
    try:
        for m in (20, 18, 24):  # the long way, then twice the launch of another m
            call(m)
    finally:
        choose.change(pdl=False)  # forgets no launch
    gc.collect()
    assert len(plan._other_m) == 1 and len(plan._ready) == len(driver.launches) == 3
    assert not any(tensor() is not None for tensor in tensors)
    plan.clear()


# --- precompilation


def test_precompile(tmp_path, monkeypatch, capsys):
    """Into an empty cache, then out of it; one m needs one kernel, any m a few."""
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_built", {})
    plan.clear()
    (kernel,) = precompile([(20, 24, 256)], device="cpu")
    assert kernel.name in stages_by_name() and kernel.cubin and kernel.origin == "compiled"
    assert "1/1" in capsys.readouterr().out
    compiled = []
    monkeypatch.setattr(jit, "_compile", lambda *arguments: compiled.append(arguments))
    a, b = operands()
    minigemm.fp8_gemm_nt(a, b)
    assert not compiled
    again = precompile([(20, 24, 256), (20, 24, 256)], device="cpu", progress=False)
    assert [each.key for each in again] == [kernel.key]
    assert capsys.readouterr().out == ""
    plan.clear()


def test_precompile_as_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_built", {})
    plan.clear()
    assert cli.main(["precompile", "20,24,256"]) == 0
    assert "1 kernels, 1 of them compiled now" in capsys.readouterr().out
    assert cli.main(["precompile", "20,24,256", "--layout", "contiguous", "--groups", "2", "--psum"]) == 0
    assert "1 kernels, 1 of them compiled now" in capsys.readouterr().out
    assert (
        cli.main(["precompile", "20x24"]) == 2 and "expected shapes like 2112,7168" in capsys.readouterr().err
    )
    assert cli.main(["precompile", "20,24"]) == 2 and "k that is a multiple of 16" in capsys.readouterr().err
    plan.clear()


def configs(shapes, layout="dense", groups=1, prefix_sums=False, out_dtype=torch.bfloat16, accumulate=False):
    product = ahead.product_of(layout, groups, prefix_sums, out_dtype, accumulate)
    return ahead._configs(shapes, product, CPU)


def test_what_is_precompiled():
    assert len(configs([(64, 2112, 7168), (64, 2112, 7168)])) == 1
    every = configs([(2112, 7168)])
    assert 1 < len(every) <= 12
    for m in (1, 100, 5000):
        assert set(configs([(m, 2112, 7168)])) <= set(every)
    (masked,) = configs([(64, 512, 512)], "masked", 8, False, torch.float32, True)
    assert masked.out_fp32 and masked.accumulate
    product = Product(64, 512, 512, Layout.MASKED, 8, out_fp32=True, accumulate=True)
    assert masked == choose.config_for(product, CPU)
    for sums, layout in ((False, Layout.CONTIGUOUS), (True, Layout.PREFIX_SUMS)):
        every = configs([(512, 512)], "contiguous", 8, sums)
        assert {config.layout for config in every} == {layout}
        assert choose.config_for(Product(3000, 512, 512, layout, 8), CPU) in every


@pytest.mark.slow
def test_precompile_in_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_built", {})
    plan.clear()
    kernels = precompile([(64, 512, 512), (64, 4096, 512)], device="cpu", processes=2, progress=False)
    assert {kernel.origin for kernel in kernels} <= {"disk", "memory"} and len(kernels) == 2
    plan.clear()


def test_a_process_that_fails_is_not_missed(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(jit, "_built", {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    plan.clear()
    (kernel,) = precompile([(64, 512, 512)], device="cpu", processes=2, progress=False)
    assert kernel.cubin
    plan.clear()


@pytest.mark.slow
def test_a_process_that_works():
    code = "from minigemm.plan.ahead import work; work()"
    told = '[["s11_overlapped", {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1}]]'
    run = subprocess.run(
        [sys.executable, "-c", code, told], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert run.stdout == "\n"
