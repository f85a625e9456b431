"""The error of the short accumulator against sums that are made here, one product after the other."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from minigemm import quantize, views


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_errors_of_both_accumulators():
    short, long = (views.accumulation_errors(k, "positive", promote=128) for k in (128, 2048))
    assert short["promoted every 128"] == short["tensor core"]  # a single part
    # 14 bits, cut off 4 times at most: each time less than 2^-13 of the sum by its own, and as much by its 32
    # products
    assert 2**-14 < short["tensor core"] < 33 * 4 * 2**-13
    assert long["tensor core"] > 20 * short["tensor core"]
    assert long["promoted every 128"] < 1.5 * short["tensor core"]
    assert long["FP32 sums"] < 2048 / 32 * 2**-24
    zero_mean = views.accumulation_errors(2048, "zero-mean")
    assert (
        set(zero_mean) == {"tensor core", "FP32 sums"} and zero_mean["tensor core"] < long["tensor core"] / 10
    )


def test_the_error_against_k():
    picture = views.accumulation(ks=(128, 512), promote=128)
    assert picture._repr_png_().startswith(b"\x89PNG")
    for kind in views.accumulation_errors.__globals__["INPUTS"]:
        for k in (128, 512):
            for name, error in views.accumulation_errors(k, kind, 128).items():
                line = next(
                    line for line in picture.text.splitlines() if line.startswith(f"{name}, {kind} inputs: ")
                )
                assert f"{error:.2e} at K = {k}" in line
    axes = picture.figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_ones_stop_at_two_to_the_fourteenth():
    ones = torch.ones(64, 17408).to(torch.float8_e4m3fn)
    picture = views.running_sum(ones, ones[:1])
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.text.startswith(
        "element (0, 0) after 17,408 products: 16,384 of 17,408, 5.88% lost; the last bit is worth 2,"
    )


def test_a_growing_sum_keeps_fourteen_bits():
    a, b = (
        quantize.quantize(torch.rand(rows, 256, generator=torch.Generator().manual_seed(rows))).data
        for rows in (64, 8)
    )
    picture = views.running_sum(a, b, row=5, column=3)
    exact = math.fsum((a[5].double() * b[3].double()).tolist())
    drawn = {line.get_label(): line.get_ydata()[-1] for line in picture.figure.axes[0].get_lines()}
    assert drawn["exact"] == pytest.approx(exact) and drawn["tensor core"] < exact
    unit = 2.0 ** (math.floor(math.log2(drawn["tensor core"])) - 13)
    assert drawn["tensor core"] % unit == 0 and f"the last bit is worth {unit:g}" in picture.text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: views.accumulation_errors(100), "k: expected a positive multiple of 32, got 100"),
        (
            lambda: views.accumulation_errors(128, "negative"),
            'inputs: expected "zero-mean" or "positive", got \'negative\'',
        ),
        (
            lambda: views.accumulation_errors(128, promote=48),
            "promote: expected 0 or a multiple of 32, got 48",
        ),
        (lambda: views.accumulation(ks=(128,)), "ks: expected at least two"),
        (lambda: views.accumulation(inputs=()), "inputs: expected at least one"),
        (
            lambda: views.running_sum(torch.zeros(64, 32), torch.zeros(8, 32), row=64),
            "row: expected 0 to 63, got 64",
        ),
        (
            lambda: views.running_sum(torch.zeros(64, 32), torch.zeros(8, 32), column=8),
            "column: expected 0 to 7, got 8",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
