"""Pictures of scales against layouts, borders and factors counted another way."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from minigemm import quantize, views
from minigemm.kernels import s07_promoted
from minigemm.types import Product


def drawn(picture: views.Picture) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture._repr_png_().startswith(b"\x89PNG")
    return picture.text


def test_m_major_scales_of_a_tile_are_one_piece():
    """Addresses counted one by one: element (i, j) of 22 rows lies at i + 24 j, row-major at 4 i + j."""
    scale = quantize.quantize(quantize.activations(22, 512), "1x128").scale
    m_major, row_major = drawn(
        views.scale_layout({"M-major": scale, "row-major": scale.contiguous()}, (4, 20), 2)
    ).splitlines()
    assert "strides (1, 24)" in m_major and "rows 4 to 19 at step 2 are 64 bytes in one piece" in m_major
    assert "strides (4, 1)" in row_major and "16 pieces of 4 bytes" in row_major
    picture = views.scale_layout({"M-major": scale}, (4, 20), 2)
    framed = {(p.get_x(), p.get_y()) for p in picture.figure.axes[0].patches if not p.get_fill()}
    assert framed == {(address % 32, address // 32) for address in range(2 * 24 + 4, 2 * 24 + 20)}
    shown = [text.get_text() for text in picture.figure.axes[0].texts]
    assert shown == [str(row) for _ in range(4) for row in range(22)]  # padding has no number


@pytest.mark.parametrize("n", [2112, 100])
def test_scales_a_tile_needs_are_those_its_columns_have(n):
    widths = (16, 96, 112, 128, 144, 160, 176, 192, 224)
    for block_n, line in zip(widths, drawn(views.scale_columns(n, widths)).splitlines(), strict=True):
        needs = [
            len({column // 128 for column in range(start, min(start + block_n, n))})
            for start in range(0, n, block_n)
        ]
        crossing = sum(need > 1 for need in needs)
        wanted = (
            f"{crossing} of {len(needs)} tiles cross, at most {max(needs)} scales"
            if crossing
            else f"{len(needs)} tiles, one scale each"
        )
        assert line.startswith(f"block_n = {block_n}: {wanted}")


def test_legal_widths_never_need_three():
    """The stage's rule against the picture's count over 2048 columns."""
    widths = range(16, 225, 16)
    for block_n, line in zip(widths, views.scale_columns(2048, widths).text.splitlines(), strict=True):
        legal = bool(s07_promoted.is_legal(s07_promoted.Config(64, block_n, 2, 1), Product(64, 2048, 128)))
        assert legal == ("at most 3" not in line), line


def test_factors_of_a_tile_are_its_scales():
    """sfa times sfb of single elements, from the dequantized numbers: a stands for data * sfa."""
    w = quantize.weights(300, 384)
    w[128:256] *= 8
    a, b = quantize.quantize(quantize.activations(100, 384), "1x128"), quantize.quantize(w, "128x128")
    picture = views.scale_map(a, b, 64, 160, tile=(1, 1), step=2)
    text = drawn(picture)
    assert (
        "tile 1,1 at step 2: 36 x 140 elements, 36 scales of a, 2 of b; columns from 256 on have sfb[2]"
        in text
    )
    per_element = [
        quantize.expanded_scale(q)[:, 2 * 128] for q in (a, b)
    ]  # column 256 of a and b lies in step 2
    expected = per_element[0][64:, None] * per_element[1][None, 160:]
    image = next(ax.images[0].get_array() for ax in picture.figure.axes if ax.get_xlabel() == "column of d")
    torch.testing.assert_close(torch.tensor(image.data).exp2(), expected)
    low, high = map(float, re.findall(r"[\d.]+(?:e[-+]\d+)?", text.partition("factors")[2]))
    assert (low, high) == pytest.approx((float(expected.min()), float(expected.max())), rel=5e-3)


def test_error_curves_say_every_number():
    text = drawn(
        views.error_curves((128, 1024), {"grows": (1e-3, 0.25), "flat": (0.001, 0.001)}, "K", "t", base=2)
    )
    assert text == "grows: 0.001 at 128, 0.25 at 1024\nflat: 0.001 at 128, 0.001 at 1024"
    assert (
        drawn(views.error_curves((1, 2), {"x": (0.5, 0.036)}, "K", percent=True))
        == "x: 50.0% at 1, 3.6% at 2"
    )


A, B = quantize.quantize(torch.ones(8, 256), "1x128"), quantize.quantize(torch.ones(8, 256), "128x128")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.scale_layout({}, (0, 1)), "scales: expected at least one"),
        (
            lambda: views.scale_layout({"x": torch.ones(3)}, (0, 1)),
            r"scales: expected matrices .* got shape \(3,\) for 'x'",
        ),
        (
            lambda: views.scale_layout({"x": A.scale}, (0, 9)),
            r"rows: expected some of the 8 rows of 'x', got \(0, 9\)",
        ),
        (
            lambda: views.scale_layout({"x": A.scale}, (0, 8), 2),
            "block: expected one of the 2 columns of 'x', got 2",
        ),
        (lambda: views.scale_columns(0, (64,)), "n: expected positive sizes, got 0"),
        (lambda: views.scale_columns(64, (0,)), "block_ns: expected positive sizes, got 0"),
        (lambda: views.scale_columns(64, ()), "block_ns: expected at least one width"),
        (lambda: views.scale_map(B, B, 8, 8), "a: expected granularity '1x128', got '128x128'"),
        (lambda: views.scale_map(A, A, 8, 8), "b: expected granularity '128x128', got '1x128'"),
        (lambda: views.scale_map(A, B, 0, 8), "block_m: expected a positive size, got 0"),
        (
            lambda: views.scale_map(A, B, 8, 8, (0, 1)),
            r"tile: expected one of the 1 x 1 of this product, got \(0, 1\)",
        ),
        (
            lambda: views.scale_map(A, B, 8, 8, step=2),
            "step: expected one of the 2 blocks of 128 along k, got 2",
        ),
        (lambda: views.error_curves((1,), {"x": (1,)}, "K"), "x: expected at least two positive numbers"),
        (lambda: views.error_curves((1, 2), {}, "K"), "errors: expected at least one line"),
        (
            lambda: views.error_curves((1, 2), {"x": (0.1,)}, "K"),
            r"errors: expected 2 positive numbers a line, got \(0.1,\) for 'x'",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
