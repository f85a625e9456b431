"""The tensor core's arithmetic: against a Hopper GPU's results, and against the rule written a second time,
slowly and exactly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm.emulator.machine import tensor_core
from minigemm.emulator.machine.tensor_core import wgmma
from minigemm.verify import tensor_core as chains

RECORDING = Path(__file__).parents[1] / "data" / "tensor_core_h100.npz"


@pytest.fixture(scope="module")
def recorded():
    return chains.load(RECORDING)


def test_the_recording_names_its_run_and_is_large(recorded):
    about, bits = recorded
    assert "H100" in about["gpu"] or "H200" in about["gpu"]
    assert about["driver"] and about["date"] and about["source_hash"]
    assert {case.name for case in chains.cases()} == bits.keys()
    assert sum(array.size for array in bits.values()) >= 100_000


@pytest.mark.parametrize("regime", chains.REGIMES)
def test_arithmetic_equals_the_gpu(regime, recorded):
    """The plain function: no kernel, no memory."""
    _, bits = recorded
    chosen = [case for case in chains.cases() if case.regime == regime]
    assert chosen
    for case in chosen:
        a, b, c = chains.inputs(case)
        config = case.config
        a, b = a ^ np.uint8(0x80 * config.a_negated), b ^ np.uint8(0x80 * config.b_negated)
        d = c.copy() if case.scale_d else np.zeros_like(c)
        for chain in range(case.chains):
            tensor_core.accumulate(
                a[chain],
                b[chain],
                d[chain],
                *(tensor_core.KINDS[e5m2] for e5m2 in (config.a_e5m2, config.b_e5m2)),
            )
        assert np.array_equal(d, bits[case.name]), case.name


@pytest.mark.parametrize("layout", [*chains.LAYOUTS, "registers"])
def test_kernels_on_the_emulator_equal_the_gpu(layout, recorded):
    """The probe kernel: descriptors, swizzles, core matrices, fragments."""
    _, bits = recorded
    chosen = [
        case
        for case in chains.cases()
        if case.layout == layout or (layout == "registers" and case.config.a_in_registers)
    ]
    assert chosen
    for case in chosen:
        assert np.array_equal(chains.output(case, "cpu"), bits[case.name]), case.name


# ---- the rule again, with exact rationals


def value(code: int, kind: str) -> tuple[Fraction, int] | None:
    """An FP8 number and the exponent that it is stored with; None for NaN (no infinities are tried here)."""
    bits, bias = (3, 7) if kind == "e4m3" else (2, 15)
    stored, fraction = code >> bits & ((1 << 7 - bits) - 1), code & ((1 << bits) - 1)
    if (kind == "e4m3" and code & 0x7F == 0x7F) or (kind == "e5m2" and stored == 31):
        return None
    exponent = max(stored, 1) - bias
    magnitude = Fraction(fraction + ((1 << bits) if stored else 0), 1 << bits) * Fraction(2) ** exponent
    return (-magnitude if code >> 7 else magnitude), exponent


def truncated(x: Fraction, unit: Fraction) -> Fraction:
    return (x // unit if x >= 0 else -(-x // unit)) * unit


def slow_step(a, b, c: float, kind: str) -> float:
    """One element of one k32 step."""
    left, right = ([value(int(code), kind) for code in row] for row in (a, b))
    if None in left or None in right or c != c:
        return float("nan")
    products = [(x * y, ex + ey) for (x, ex), (y, ey) in zip(left, right, strict=True)]
    exponents = [e for product, e in products if product]
    exact = Fraction(c)
    if exact:
        exponents.append(int(np.frexp(c)[1]) - 1)
    if not exponents:
        return 0.0
    unit = Fraction(2) ** (max(exponents) - 13)
    total = sum((truncated(product, unit) for product, _ in products), truncated(exact, unit))
    if total == 0:
        return 0.0
    size = abs(total)
    top = size.numerator.bit_length() - size.denominator.bit_length()
    top -= size < Fraction(2) ** top
    return float(truncated(total, Fraction(2) ** (top - 13)))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["e4m3", "e5m2"]), st.sampled_from([32, 64]))
def test_the_rule_written_twice(seed, kind, k):
    source = np.random.default_rng(seed)
    spread = source.integers(1, 128)
    a, b = (
        source.integers(0, spread, (64, k)).astype(np.uint8)
        | source.integers(0, 2, (64, k)).astype(np.uint8) << 7
        for _ in range(2)
    )
    a, b = (np.where((x & 0x7F) >= (0x7C if kind == "e5m2" else 0x80), x & 0x80, x) for x in (a, b))
    b, c = (
        b[:2],
        source.standard_normal((64, 2)).astype(np.float32) * np.float32(2.0 ** source.integers(-20, 12)),
    )
    d = wgmma(*(torch.from_numpy(x) for x in (a, b, c)), kind=kind).numpy()
    for i, j in ((0, 0), (17, 1), (63, 0)):
        expected = float(c[i, j])
        for k0 in range(0, k, 32):
            expected = slow_step(a[i, k0 : k0 + 32], b[j, k0 : k0 + 32], expected, kind)
        assert np.array_equal(np.float32(expected), d[i, j], equal_nan=True)


# ---- what follows from it


def test_fourteen_bits_are_kept():
    """Beside 2^13 a one is the last bit that counts; beside 2^14 it is gone, however many ones there are."""
    ones = torch.ones(64, 320).to(torch.float8_e4m3fn)
    assert (wgmma(ones, ones[:8], torch.full((64, 8), 2.0**13)) == 2**13 + 320).all()
    assert (wgmma(ones, ones[:8], torch.full((64, 8), 2.0**14)) == 2**14).all()


def test_column_and_order_do_not_matter():
    source = torch.Generator().manual_seed(3)
    a, b = (torch.randn(n, 96, generator=source).to(torch.float8_e4m3fn) for n in (64, 24))
    d = wgmma(a, b)
    assert torch.equal(wgmma(a, b[5:6])[:, 0], d[:, 5])
    order = torch.randperm(32, generator=source)
    order = torch.cat([order, 32 + order, 64 + order])
    shuffled = (x.view(torch.uint8)[:, order].contiguous().view(torch.float8_e4m3fn) for x in (a, b))
    assert torch.equal(wgmma(*shuffled), d)


def test_close_to_the_product():
    source = torch.Generator().manual_seed(4)
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        a, b = (torch.randn(n, 512, generator=source).to(kind) for n in (64, 16))
        exact = a.double() @ b.double().T
        assert (wgmma(a, b) - exact).norm() / exact.norm() < 1e-3


@pytest.mark.parametrize("arguments, error, words", [
    ({"a": torch.zeros(64, 32)}, TypeError, "a: expected float8_e4m3fn, float8_e5m2 or uint8, got torch.float32"),
    ({"a": "x"}, TypeError, "a: expected a torch.Tensor, got str"),
    ({"a": torch.zeros(32, 32, dtype=torch.uint8)}, ValueError,
     r"a: expected \(64, K\) with K a multiple of 32, got \(32, 32\)"),
    ({"a": torch.zeros(64, 33, dtype=torch.uint8)}, ValueError, "K a multiple of 32"),
    ({"b": torch.zeros(8, 64, dtype=torch.uint8)}, ValueError, r"b: expected \(N, 32\), got \(8, 64\)"),
    ({"b": torch.zeros(8, 32).to(torch.float8_e4m3fn)}, TypeError,
     "b: expected the dtype of a, torch.uint8, got torch.float8_e4m3fn"),
    ({"c": torch.zeros(64, 9)}, ValueError, r"c: expected \(64, 8\), got \(64, 9\)"),
    ({"c": torch.zeros(64, 8).double()}, TypeError, "c: expected a float32 tensor or None, got torch.float64"),
    ({"kind": "e3m4"}, ValueError, 'kind: expected "e4m3" or "e5m2", got \'e3m4\''),
    ({"a": torch.zeros(64, 32).to(torch.float8_e5m2), "kind": "e4m3"}, ValueError,
     "kind: a is torch.float8_e5m2, got kind='e4m3'"),
])  # fmt: skip
def test_bad_arguments(arguments, error, words):
    good = {"a": torch.zeros(64, 32, dtype=torch.uint8), "b": torch.zeros(8, 32, dtype=torch.uint8)}
    with pytest.raises(error, match=words):
        wgmma(**{**good, **arguments})
