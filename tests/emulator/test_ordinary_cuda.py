"""Ordinary CUDA on the emulator: against NumPy, and (marker gpu) against a Hopper GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from minigemm import emulator, observe, runtime
from minigemm.compiler import jit
from minigemm.types import Config, Launch
from tests.emulator.nvrtc import KERNELS, line_of

SOURCE = KERNELS / "ordinary.cu"


@dataclass
class Run:
    """One launch: `args` in order, its outputs, and NumPy's results (None: only that runs agree)."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: list[Any]
    outputs: list[int]
    expected: list[np.ndarray | None] = field(default_factory=list)
    shared: int = 0
    tolerance: float = 0.0


def launch(run: Run, device: str) -> list[np.ndarray]:
    args = [arg.clone().to(device) if isinstance(arg, torch.Tensor) else arg for arg in run.args]
    kernel = jit.build(SOURCE, Config(), name="ordinary", symbol=run.kernel)
    machine = runtime.of(torch.device(device))
    machine.launch(
        machine.load(kernel, run.shared, torch.device(device)),
        Launch(run.grid, run.block, tuple(args), run.shared),
    )
    return [args[i].cpu().numpy() for i in run.outputs]


def numbers(*shape: int, seed: int = 0, kind: str = "float") -> torch.Tensor:
    source = np.random.default_rng(seed)
    if kind == "float":
        return torch.from_numpy(
            (source.standard_normal(shape) * np.exp2(source.integers(-8, 8, shape))).astype(np.float32)
        )
    if kind == "int":
        return torch.from_numpy(source.integers(-(2**31), 2**31, shape).astype(np.int32))
    if kind == "long":
        return torch.from_numpy(source.integers(-(2**62), 2**62, shape))
    return torch.from_numpy(source.integers(0, 256, shape).astype(np.uint8))


def special_floats(n: int) -> torch.Tensor:
    values = numbers(n, seed=4)
    special = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-40,
        -1e-42,
        3.4e38,
        448.0,
        464.0,
        480.0,
        -57344.0,
        65504.0,
        65520.0,
        2.0**-10,
        2.0**-17,
        1.5,
        2.5,
    ]
    values[: len(special)] = torch.tensor(special, dtype=torch.float32)
    return values


def wrap(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64).astype(np.int32)


def collatz_steps(x: int) -> int:
    count = 0
    while x > 1:
        x, count = (3 * x + 1 if x & 1 else x // 2), count + 1
    return count


def runs() -> dict[str, Run]:
    x = numbers(37, 100)
    e = np.exp2((x.double().numpy() - x.double().numpy().max(1, keepdims=True)) * 1.44269504)
    t = numbers(70, 45)
    h = numbers(5000, kind="byte")
    c = torch.from_numpy(np.random.default_rng(1).integers(1, 5000, 300).astype(np.int32))
    s = torch.from_numpy(np.random.default_rng(2).integers(-100, 100, 200).astype(np.int32))
    w, v = numbers(200, kind="long"), numbers(200, seed=9, kind="long") >> 20
    v[v == 0] = 1
    big = numbers(1000, seed=3)
    i32 = numbers(200, seed=5, kind="int")
    prime, factor = np.array([2, 3, 5, 7, 11, 13, 17, 19]), np.array([0.5, -1.25, 3.0])
    index = i32.numpy()
    table = (prime[index & 7] * factor[(index >> 3 & 255) % 3]) + index / 7.0
    positive = torch.from_numpy(np.random.default_rng(6).integers(1, 5000, 300).astype(np.float32))
    one = torch.zeros(1, dtype=torch.int32)
    floats = [special_floats(256), special_floats(256).flip(0).contiguous()]
    ints = partial(torch.zeros, dtype=torch.int32)
    softmax = (e / e.sum(1, keepdims=True)).astype(np.float32)
    remainder = (w.numpy().view(np.uint64) % v.numpy().view(np.uint64)).view(np.int64)
    total, exact = positive.sum().numpy()[None], np.array([int(positive.double().sum()) * 1000])
    runs = (
        Run("softmax", (10, 1, 1), (128, 1, 1), [x, torch.full_like(x, 9), 37, 100], [1], [softmax], tolerance=2e-6),
        Run("transpose", (2, 3, 1), (32, 8, 1), [t, torch.zeros(45, 70), 70, 45], [1], [t.numpy().T.copy()]),
        Run("histogram", (4, 1, 1), (96, 1, 1), [h, ints(256), 5000], [1],
            [np.bincount(h.numpy(), minlength=256).astype(np.int32)]),
        Run("collatz", (3, 1, 1), (128, 1, 1), [c, ints(300), 300], [1],
            [np.array([collatz_steps(int(n)) for n in c], np.int32)]),
        Run("scan", (1, 1, 1), (256, 1, 1), [s, ints(200), 200], [1], [np.cumsum(s.numpy()).astype(np.int32)],
            shared=2048),
        Run("last_block_sum", (7, 1, 1), (64, 1, 1), [i32, ints(7), one, 200], [2],
            [wrap(i32.numpy().astype(np.int64).sum())[None]]),
        Run("wide_division", (2, 1, 1), (128, 1, 1), [w, v, torch.zeros_like(w), torch.zeros_like(w), 200], [2, 3],
            [None, remainder]),
        Run("exact_math", (2, 1, 1), (128, 1, 1), [*floats, torch.zeros(256, 12), 256], [2], [None]),
        Run("approximate_math", (2, 1, 1), (128, 1, 1), [numbers(256).clamp(-20, 20), torch.zeros(256, 6), 256], [1],
            [None], tolerance=3e-5),
        Run("local_array", (2, 1, 1), (128, 1, 1), [i32, ints(200), 200], [1], [None]),
        Run("calls", (2, 1, 1), (128, 1, 1), [i32, ints(200), 200], [1], [calls_expected(index)]),
        Run("tables", (2, 1, 1), (128, 1, 1), [i32, torch.zeros(200, dtype=torch.float64), 200], [1], [table],
            tolerance=1e-15),
        Run("warp_votes", (2, 1, 1), (96, 1, 1), [numbers(192, seed=8, kind="int"), ints(192)], [1], [None]),
        Run("bits", (2, 1, 1), (128, 1, 1), [i32, numbers(200, seed=11, kind="int"), ints(200), 200], [2], [None]),
        Run("small_floats", (1, 1, 1), (128, 1, 1), [floats[0], ints(128, 6), 128], [1], [None]),
        Run("compare_and_swap", (3, 1, 1), (128, 1, 1),
            [positive, torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1), 300], [1, 2, 3],
            [positive.max().numpy()[None], exact, total]),
        Run("spin_lock", (2, 1, 1), (64, 1, 1), [one, one.clone(), 3], [1], [np.array([384], np.int32)]),
    )  # fmt: skip
    wide = [big[None].contiguous(), torch.zeros(1, 1000), 1, 1000]
    big_softmax = Run("softmax", (1, 1, 1), (32, 1, 1), wide, [1], [None], tolerance=1e-6)
    return {run.kernel: run for run in runs} | {"big softmax": big_softmax}


def calls_expected(x: np.ndarray) -> np.ndarray:
    def mix(a: int, b: int) -> int:
        return c32(c32(2 * a) - (b ^ c32(2 * b)))

    def c32(v: int) -> int:
        return (v + 2**31) % 2**32 - 2**31

    cases = {
        0: lambda v: mix(v, 3),
        1: lambda v: 2 * v,
        2: lambda v: v + 100,
        3: lambda v: mix(v, mix(v, 1)),
        4: lambda v: -v,
        5: lambda v: v ^ 0x55,
    }
    return np.array([c32(cases.get(v & 7, lambda v: mix(2, v))(v)) for v in x.tolist()], np.int32)


RUNS = runs()


@pytest.mark.parametrize("schedule", ["late", 5])
@pytest.mark.parametrize("name", RUNS)
def test_on_the_emulator(name, schedule):
    run = RUNS[name]
    with observe(schedule=schedule) as seen:
        results = launch(run, "cpu")
    assert not seen[0].hazards, seen[0].hazards[0]
    for result, expected in zip(results, run.expected, strict=True):
        if expected is not None:
            assert np.allclose(result, expected, rtol=run.tolerance, atol=run.tolerance)


def test_exact_math_against_float64():
    run = RUNS["exact_math"]
    (result,) = launch(run, "cpu")
    a, b = (arg.numpy().astype(np.float64) for arg in run.args[:2])
    with np.errstate(all="ignore"):
        assert np.array_equal(result[:, 0], (a / b).astype(np.float32), equal_nan=True)
        assert np.array_equal(result[:, 1], np.sqrt(np.abs(run.args[0].numpy())), equal_nan=True)
    for x, y, rounded in zip(a.tolist(), b.tolist(), result[:, 3], strict=True):
        if np.isfinite(rounded) and np.isfinite(x) and np.isfinite(y):
            exact, got = Fraction(x) + Fraction(y), Fraction(float(rounded))
            beyond = Fraction(float(np.nextafter(rounded, np.float32(np.inf if exact > 0 else -np.inf))))
            assert abs(got) <= abs(exact) < abs(beyond) or exact == got == 0
    computed = np.delete(result, 10, axis=1)  # copysign keeps the bits of the NaN that came
    assert set(computed.view(np.uint32)[np.isnan(computed)].tolist()) == {0x7FFFFFFF}, (
        "a NaN is not the GPU's"
    )


@pytest.mark.parametrize("which, expected", [(0, 1), (1, 2), (2, 50)])
def test_generic_pointers(which, expected):
    class Pair(ctypes.Structure):
        _fields_ = [("first", ctypes.c_int), ("second", ctypes.c_float), ("name", ctypes.c_char)]

    out = torch.full((4,), 50, dtype=torch.int32)
    text = jit.build(SOURCE, Config(), name="ordinary", symbol="generic_pointers").ptx
    report = emulator.launch(text, 1, 4, [Pair(7, 1.5, b"A"), out, which], kernel="generic_pointers")
    assert out[0] == expected + 3 + 65 and not report.hazards


def test_printf(capsys):
    class Pair(ctypes.Structure):
        _fields_ = [("first", ctypes.c_int), ("second", ctypes.c_float), ("name", ctypes.c_char)]

    text = jit.build(SOURCE, Config(), name="ordinary", symbol="generic_pointers").ptx
    emulator.launch(
        text, 1, 32, [Pair(7, 1.5, b"A"), torch.zeros(4, dtype=torch.int32), 3], kernel="generic_pointers"
    )
    assert capsys.readouterr().out == "first 7 second 1.50 name A end\n"


def test_race():
    with observe() as seen:
        launch(
            Run(
                "race",
                (1, 1, 1),
                (256, 1, 1),
                [numbers(256, kind="int"), torch.zeros(256, dtype=torch.int32)],
                [1],
            ),
            "cpu",
        )
    assert {h.kind for h in seen[0].hazards} == {"race"}
    lines = {h.location.line for h in seen[0].hazards}
    assert lines <= {line_of("ordinary", "s[threadIdx.x] = x"), line_of("ordinary", "s[255 - threadIdx.x]")}


def test_wild_access():
    with pytest.raises(
        emulator.Fault, match=r"ordinary.cu:\d+: out-of-bounds .*past the end of args\["
    ) as error:
        launch(
            Run(
                "wild",
                (2, 1, 1),
                (128, 1, 1),
                [numbers(200, kind="int"), torch.zeros(200, dtype=torch.int32), 200],
                [1],
            ),
            "cpu",
        )
    assert error.value.location.line == line_of("ordinary", "y[i] = x[i];  // no guard")


def test_deadlock():
    with pytest.raises(
        emulator.Deadlock, match=r"warp 0 at ordinary.cu:\d+: barrier 1, 32 of 64 threads have arrived"
    ):
        launch(Run("deadlock", (1, 1, 1), (64, 1, 1), [torch.zeros(64, dtype=torch.int32)], [0]), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNS)
def test_emulator_equals_the_gpu(name):
    run = RUNS[name]
    for here, there in zip(launch(run, "cpu"), launch(run, "cuda"), strict=True):
        if run.tolerance:
            assert np.allclose(here, there, rtol=run.tolerance, atol=run.tolerance, equal_nan=True)
        else:
            width = {4: np.uint32, 8: np.uint64, 1: np.uint8}[here.itemsize]
            differ = np.argwhere(here.view(width) != there.view(width))
            assert not len(differ), [(at.tolist(), here[tuple(at)], there[tuple(at)]) for at in differ[:20]]
