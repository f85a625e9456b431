"""explain: it tells what a call gets, from operands and from sizes, and launches nothing."""

from __future__ import annotations

import pytest
import torch

import minigemm
from minigemm import hopper, quantize
from minigemm.compiler import jit
from minigemm.plan import choose
from minigemm.plan.cost import tiles_of
from minigemm.types import Layout, Product

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(jit, "build", refuse)
    yield
    minigemm.set_num_sms(None)


def operands(*rows, n=24, k=256, groups=None):
    a = torch.zeros(*rows, k, dtype=torch.uint8).view(torch.float8_e4m3fn)
    b = torch.zeros(*([groups] if groups else []), n, k, dtype=torch.uint8).view(torch.float8_e4m3fn)
    of_b = torch.ones(*b.shape[:-2], -(-n // 128), -(-k // 128))
    return (a, torch.ones(*rows, -(-k // 128))), (b, of_b)


@pytest.mark.parametrize("rows, groups, options, product", [
    ((20,), None, {}, Product(20, 24, 256)),
    ((20,), None, {"out_dtype": torch.float32, "accumulate": True},
        Product(20, 24, 256, out_fp32=True, accumulate=True)),
    ((20,), 3, {}, Product(20, 24, 256, Layout.CONTIGUOUS, 3)),
    ((20,), 3, {"use_psum_layout": True}, Product(20, 24, 256, Layout.PREFIX_SUMS, 3)),
    ((3, 20), 3, {}, Product(20, 24, 256, Layout.MASKED, 3)),
    ((3, 20), 3, {"expected_m": 5}, Product(20, 24, 256, Layout.MASKED, 3, 5)),
])  # fmt: skip
def test_operands_and_sizes_say_the_same(rows, groups, options, product):
    found = minigemm.explain(*operands(*rows, groups=groups), **options)
    assert found.product == product and found.config == choose.config_for(product, CPU)
    layout = {Layout.DENSE: "dense", Layout.MASKED: "masked"}.get(product.layout, "contiguous")
    sizes = {"m": product.m, "n": 24, "k": 256, "layout": layout, "groups": groups}
    assert found == minigemm.explain(**sizes, **options, device="cpu")


def test_quantized_operands():
    a = quantize.quantize(torch.ones(20, 256), "1x128")
    b = quantize.quantize(torch.ones(24, 256), "128x128")
    assert minigemm.explain(a, b).product == Product(20, 24, 256)


@pytest.mark.parametrize("m", [1, 64, 200, 4096])
def test_what_is_told(m):
    product = Product(m, 2112, 7168)
    found = minigemm.explain(m=m, n=2112, k=7168, device="cpu")
    assert found.ranked == tuple(choose.ranked(product, CPU)) and found.config == found.ranked[0][0]
    assert found.predicted_us == found.us == found.ranked[0][1] and found.tuned_us is None
    assert found.kernels == tuple(choose.configs_for(product, CPU)) and found.config in found.kernels
    assert len(found.runners_up) == len(found.ranked) - 1
    assert found.floor_us == pytest.approx(1e6 * hopper.H100.floor(m, 2112, 7168))
    assert found.above_floor == pytest.approx(found.us / found.floor_us)
    assert found.bound == ("operations" if m == 4096 else "bytes")
    assert found.tiles == tiles_of(product, found.config) and found.sms == 132
    assert 132 * (found.waves - 1) < found.tiles <= 132 * found.waves
    text = str(found)
    assert text.startswith(f"{m} x 2112 x 7168 dense, BF16, on the emulator, which stands for an H100 SXM\n")
    assert f"gets       {found.kernel} {found.config.block_m}x{found.config.block_n} " in text
    assert f"{found.us:.1f} us\n  paces      {found.source}\n" in text and "runners-up" in text
    assert "with the memory of NVIDIA H100" in found.source
    assert f"({found.bound}); the call is {found.above_floor:.2f} times that" in text


def test_the_floor_of_groups_and_outputs():
    dense, chip = Product(64, 256, 512), hopper.H100
    bytes_ = 512 * (64 + 256) + 64 * 256 * 2
    assert choose.floor(dense, CPU) == pytest.approx(1e6 * bytes_ / chip.bandwidth)
    more = dense._replace(out_fp32=True, accumulate=True)
    assert choose.floor(more, CPU) == pytest.approx(1e6 * (bytes_ + 6 * 64 * 256) / chip.bandwidth)
    masked = Product(4096, 256, 512, Layout.MASKED, 8, 64)
    assert choose.floor(masked, CPU) == pytest.approx(8 * choose.floor(dense, CPU))
    contiguous = Product(64, 256, 512, Layout.CONTIGUOUS, 8)
    assert choose.floor(contiguous, CPU) == pytest.approx(1e6 * (bytes_ + 7 * 256 * 512) / chip.bandwidth)


def test_settings_count():
    minigemm.set_num_sms(20)
    found = minigemm.explain(m=64, n=2112, k=7168, device="cpu")
    assert found.sms == found.config.ctas == 20 and found.waves == -(-found.tiles // 20)
