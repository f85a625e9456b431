"""What a launch takes and refuses, where a wild access is stopped, and where the fault of a copy is."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest
import torch

from minigemm import emulator
from minigemm.emulator.translate import cached
from tests.emulator.nvrtc import ptx

ONE = 'extern "C" __global__ void k(int* o) { %s }'


def launch(source: str, *args: object, grid: object = 1, block: object = 1, **options) -> emulator.Report:
    return emulator.launch(ptx(source), grid, block, args, **options)


def zeros(n: int = 4) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32)


# --- wild accesses

WILD = {
    "load before null": ("o[0] = ((int*)0)[-1];", "[torch.zeros(4, dtype=torch.int32)]"),
    "store before null": ("o[-1] = 5;", "[None]"),
    "wide store before null": ("((long long*)o)[-1] = 5;", "[None]"),
    "vector before null": ("((int4*)o)[-1] = make_int4(1, 2, 3, 4);", "[None]"),
    "atomic before null": ("atomicAdd(o - 1, 5);", "[None]"),
    "the last address": ("*((char*)o - 1) = 5;", "[None]"),
    "known buffer, then wild": ("o[0] = 1; int* p = (int*)(o[1] == 0 ? -4ll : 0ll); o[2] = *p;",
                                "[torch.zeros(4, dtype=torch.int32)]"),
    "half the address space": ("o[0] = *(int*)0x7ffffffffffffffcll;", "[torch.zeros(4, dtype=torch.int32)]"),
}  # fmt: skip
CODE = """
import torch
from minigemm import emulator
from tests.emulator.nvrtc import ptx
for name, source, args in {calls!r}:
    try:
        emulator.launch(ptx(source), 1, 1, eval(args))
    except emulator.Fault as fault:
        assert "out-of-bounds" in str(fault), fault
        print(name, flush=True)
"""


def test_addresses_that_wrap_are_out_of_bounds():
    """In a process of their own: each used to end with a segmentation fault."""
    code = CODE.format(calls=[(name, ONE % body, args) for name, (body, args) in WILD.items()])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()) == (0, list(WILD)), done.stderr[-500:]


# --- arguments


@pytest.mark.parametrize("kind, dtype", [("float", torch.float32), ("double", torch.float64)])
@pytest.mark.parametrize("value", [3, -7, True, np.int32(3), np.int64(5), 2.5])
def test_numbers_for_a_float_parameter(kind, dtype, value):
    o = torch.zeros(1, dtype=dtype)
    launch(f'extern "C" __global__ void k({kind}* o, {kind} x) {{ o[0] = x * 2; }}', o, value)
    assert o.item() == value * 2


@pytest.mark.parametrize("kind, value", [
    ("int", 3.0), ("unsigned", 3.5), ("long long", 3.0), ("short", 1.0), ("int", np.float32(3)),
    ("long long", np.float64(3)),
])  # fmt: skip
def test_a_float_for_an_integer_parameter(kind, value):
    with pytest.raises(
        TypeError, match=r"args\[1\]: expected an integer for a parameter of type \.[us]\d+, got the float"
    ):
        launch(f'extern "C" __global__ void k(int* o, {kind} x) {{ o[0] = x; }}', zeros(), value)


@pytest.mark.parametrize("n", [2, 32])
def test_an_array_for_a_pointer(n):
    with pytest.raises(TypeError, match=r"args\[0\]: a NumPy array .* pass a CPU tensor"):
        launch(ONE % "o[0] = 1;", np.zeros(n, np.int32))


def test_structures_are_bytes():
    class Pair(ctypes.Structure):
        _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_float))

    o = zeros()
    for value in (
        Pair(5, 2.0),
        bytes(Pair(5, 2.0)),
        np.array([(5, 2.0)], [("x", np.int32), ("y", np.float32)]),
    ):
        body = "{ o[0] += p.x; o[1] += (int)p.y; }"
        launch(f'struct P {{ int x; float y; }}; extern "C" __global__ void k(int* o, P p) {body}', o, value)
    assert o.tolist()[:2] == [15, 6]


def test_numpy_sizes():
    o = zeros(8)
    launch(ONE % "o[blockIdx.x * 4 + threadIdx.x] = 1;", o, grid=np.int64(2), block=np.int32(4))
    assert o.sum() == 8
    launch(ONE % "o[blockIdx.x * 4 + threadIdx.x] = 2;", o, grid=(np.int64(2), 1), block=[4])
    assert o.sum() == 16


@pytest.mark.parametrize("name", ["grid", "block", "cluster"])
@pytest.mark.parametrize("value", [1.5, 0, -1, "3", None, (1, 2.0), (), (1, 1, 1, 1)])
def test_bad_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected one to three positive integers"):
        launch(ONE % "o[0] = 1;", zeros(), **{name: value})


def test_ptx_is_text():
    with pytest.raises(TypeError, match=r"ptx: expected the text of a module \(str\), got bytes"):
        emulator.launch(ptx(ONE % "o[0] = 1;").encode(), 1, 1, [zeros()])


def test_a_box_is_a_sequence():
    with pytest.raises(TypeError, match="box: expected a length for each dimension"):
        emulator.TensorMap(torch.zeros(4, 8), 2)  # type: ignore[arg-type]


def test_a_cluster_of_one():
    o = zeros()
    launch('extern "C" __global__ void __cluster_dims__(1, 1, 1) k(int* o) { o[0] = 1; }', o)
    assert o[0] == 1


# --- where a translation comes from


def test_a_second_launch_takes_the_translation_from_memory():
    source = ptx(ONE % "o[0] += 7;")
    first, second, third = (emulator.launch(source, 1, 1, [zeros()]) for _ in range(3))
    assert first.origin in ("compiled", "disk") and first.translate_seconds > 0
    assert [(report.origin, report.translate_seconds) for report in (second, third)] == [("memory", 0.0)] * 2


def test_memory_keeps_the_youngest_translations(monkeypatch):
    monkeypatch.setattr(cached, "KEPT", 2)
    monkeypatch.setattr(cached, "_held", {})
    sources = [ptx(ONE % f"o[0] += {n};") for n in range(3)]
    origins = [emulator.launch(sources[n], 1, 1, [zeros()]).origin for n in (0, 1, 0, 2, 0, 1)]
    assert [origin == "memory" for origin in origins] == [False, False, True, False, True, False]


# --- NaN to integer

# PTX ISA, "cvt": NaN gives zero if the source is not .f64 and the destination is not .s64 or .u64.
# Otherwise it gives 1 << (bits of the destination - 1).
NAN = {
    ("f32", "s32"): 0, ("f32", "u32"): 0, ("f32", "s16"): 0, ("f32", "s64"): 1 << 63, ("f32", "u64"): 1 << 63,
    ("f64", "s32"): 1 << 31, ("f64", "u32"): 1 << 31, ("f64", "u16"): 1 << 15,
    ("f64", "s64"): 1 << 63, ("f64", "u64"): 1 << 63,
}  # fmt: skip


@pytest.mark.parametrize("source, to", NAN)
@pytest.mark.parametrize("mode", ["rzi", "rni"])
def test_nan_to_integer(source, to, mode):
    bits, kind, name = (
        int(to[1:]),
        {"f32": "float", "f64": "double"}[source],
        {"f32": "f", "f64": "d"}[source],
    )
    wide = {16: "unsigned short", 32: "unsigned", 64: "unsigned long long"}[bits]
    constraint = {16: "h", 32: "r", 64: "l"}[bits]
    conversion = f'asm volatile("cvt.{mode}.{to}.{source} %0, %1;" : "={constraint}"(r) : "{name}"(x));'
    body = f"{wide} r; {conversion} o[0] = r;"
    o = torch.zeros(1, dtype=torch.int64)
    launch(f'extern "C" __global__ void k(unsigned long long* o, {kind} x) {{ {body} }}', o, float("nan"))
    assert o.item() & (1 << 64) - 1 == NAN[source, to]


# --- faults of copies

BULK = r"""
#define LOAD "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
#define STORE "cp.async.bulk.global.shared::cta.bulk_group"
#define TRY_WAIT "{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], 0; selp.b32 %0, 1, 0, p; }"
extern "C" __global__ void k(int* o, const int* x, int bytes) {
  __shared__ alignas(16) int s[64];
  __shared__ unsigned long long b;
  const unsigned m = (unsigned)__cvta_generic_to_shared(&b), d = (unsigned)__cvta_generic_to_shared(s);
  if (threadIdx.x == 5) {
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(m) : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" :: "r"(m), "r"(bytes) : "memory");
    asm volatile(LOAD " [%0], [%1], %2, [%3];" :: "r"(d), "l"(x), "r"(bytes), "r"(m) : "memory");
    int ok = 0;
    while (!ok) asm volatile(TRY_WAIT : "=r"(ok) : "r"(m) : "memory");
    asm volatile(STORE " [%0], [%1], %2;" :: "l"(o), "r"(d), "r"(bytes) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  }
}
"""


@pytest.mark.parametrize("schedule", ["late", "early", 3])
@pytest.mark.parametrize("room, elements, line, name, words", [
    (64, 4, 12, "cp.async.bulk.shared", "lie outside every buffer"),
    (4, 64, 15, "cp.async.bulk.global", "lie outside every buffer"),
    (64, 1, 12, "cp.async.bulk.shared", "misaligned bulk copy"),
])  # fmt: skip
def test_a_fault_of_a_bulk_copy_has_its_place(room, elements, line, name, words, schedule):
    x = torch.zeros(64, dtype=torch.int32)[1:] if elements == 1 else zeros(elements)
    with pytest.raises(emulator.Fault, match=words) as error:
        launch(BULK, zeros(room), x, 256, block=32, schedule=schedule)
    assert error.value.location.line == line
    assert name in str(error.value) and "thread 5 of CTA" in str(error.value)
