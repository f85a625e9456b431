"""Tiles, footprints and mismatches, against counts made another way."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import pytest
import torch

import minigemm
from minigemm import quantize, views
from minigemm.emulator import Report
from minigemm.emulator.watch.report import Request
from minigemm.kernels import s02_tiled

M, N, K = 32, 64, 64
CONFIG = s02_tiled.Config(block_m=32, block_n=32, block_k=32, thread_m=4, thread_n=2)


def drawn(picture: views.Picture) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture._repr_png_().startswith(b"\x89PNG")
    return picture.text


@pytest.fixture(scope="module")
def run() -> tuple[torch.Tensor, torch.Tensor, Report]:
    """a, d and the report of a small product."""
    a, b = (
        quantize.quantize(make, "tensor") for make in (quantize.activations(M, K), quantize.weights(N, K))
    )
    with minigemm.observe(requests=1000) as seen:
        d = s02_tiled.gemm(a, b, CONFIG)
    return a.data, d, seen[0]


@pytest.mark.parametrize(
    ("m", "n", "k", "block"),
    [(44, 80, 64, (8, 32, 16)), (1, 3, 5, (4, 4, 4)), (4096, 2112, 512, (512, 480, 128))],
)
def test_tiles_counts_ctas_and_steps(m, n, k, block):
    rows, columns, steps = (len(range(0, size, part)) for size, part in zip((m, n, k), block, strict=True))
    text = drawn(views.tiles(m, n, k, *block, cta=(rows - 1, columns - 1)))
    assert f"is {rows} x {columns} tiles" in text and f"in {steps} steps of {block[2]}" in text
    assert re.search(rf"each byte of a goes to {columns} CTAs?, each byte of b to {rows}$", text)


def test_footprint_is_what_the_kernel_must_touch(run):
    """A CTA loads its 32 rows of a whole, and stores its tile of d; the first warp's first load is 16 rows of
    two vectors of 16 bytes."""
    a, d, report = run
    loads = [r for r in views.requests_at(report, "", "global") if r.cta == 0 and r.bytes == 16]
    assert f"{32 * K} of {M * K} elements in 32 rows, coloured by warp" in drawn(
        views.footprint(loads, a, "a", by="warp")
    )
    assert f"{32 * 16} of {M * K} elements in 16 rows, coloured by lane" in drawn(
        views.footprint(loads[:1], a, "a")
    )
    stores = [r for r in views.requests_at(report, "", "global", store=True) if r.cta == 0]
    assert f"{32 * 32} of {M * N} elements in 32 rows" in drawn(views.footprint(stores, d, "d", by="warp"))


def test_footprint_follows_strides():
    """Lane i touches element (i // 4, i % 4) of a matrix whose rows lie 10 elements apart."""
    matrix = torch.zeros(8, 10, dtype=torch.bfloat16)[:, :4]
    request = Request(
        0,
        None,
        "global",
        2,
        False,
        tuple(range(32)),
        tuple(matrix.data_ptr() + 20 * (i // 4) + 2 * (i % 4) for i in range(32)),
    )
    assert "32 of 32 elements in 8 rows" in drawn(views.footprint([request], matrix, "m"))
    skipped = Request(0, None, "global", 2, False, (0,), (matrix.data_ptr() + 2 * 7,))  # behind the row
    assert "32 of 32" in drawn(views.footprint([request, skipped], matrix, "m"))


def test_mismatches_counts_bits_that_differ():
    expected = torch.arange(12.0).reshape(3, 4)
    broken = expected.clone()
    broken[1, 2] += 1
    broken[2, 0] = float("nan")
    text = drawn(views.mismatches({"broken": broken, "same": expected.clone()}, expected))
    assert text == "broken: 2 of 12 elements are wrong; same: 0 of 12 elements are wrong"


def test_a_product_costs_what_the_register_tile_says(run):
    """(thread_m + thread_n) / (thread_m * thread_n) bytes; every multiply-add is an instruction, so there is
    more than one."""
    report = run[2]
    text = drawn(views.per_product({"4 x 2": report}, M * N * K))
    shared, instructions = map(float, re.findall(r"[\d.]+(?= shared| instr)", text))
    assert shared == (4 + 2) / (4 * 2)
    assert instructions == pytest.approx(report.counters["instructions"] / (M * N * K), rel=1e-3)
    assert report.counters["instructions_by_class"]["fma"] == M * N * K


def none_touches(requests: Sequence[Request] = ()) -> views.Picture:
    return views.footprint(requests, torch.zeros(2, 2), "t")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.tiles(0, 8, 8, 8, 8, 8), "m: expected a positive size, got 0"),
        (lambda: views.tiles(8, 8, 8, 8, 8, -1), "block_k: expected a positive size, got -1"),
        (
            lambda: views.tiles(8, 8, 8, 8, 8, 8, cta=(0, 1)),
            r"cta: expected one of the 1 x 1 of this grid, got \(0, 1\)",
        ),
        (lambda: views.footprint([], torch.zeros(2, 2), "t", by="cta"), 'by: expected "lane" or "warp"'),
        (lambda: views.footprint([], torch.zeros(2), "t"), "tensor: expected a matrix"),
        (none_touches, "requests: expected some that touch the tensor, got 0"),
        (lambda: views.mismatches({}, torch.zeros(2, 2)), "results: expected at least one"),
        (
            lambda: views.mismatches({"x": torch.zeros(2, 3)}, torch.zeros(2, 2)),
            r"results: expected matrices of shape \(2, 2\), got \(2, 3\) for 'x'",
        ),
        (lambda: views.per_product({}, 1), "reports: expected at least one"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_per_product_needs_products(run):
    with pytest.raises(ValueError, match="products: expected m"):
        views.per_product({"x": run[2]}, 0)
