"""Descriptors and what they read against PTX's bit fields and pycute's swizzle, and widths against
arithmetic."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from minigemm import quantize, views
from minigemm.kernels import s04_wgmma


def png(picture: views.Picture) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return picture._repr_png_()


def made(start: int, stride: int, swizzle: int, leading: int = 16, base: int = 0) -> int:
    """A descriptor from its fields, as PTX ISA lists them."""
    code = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | base << 49 | code << 62


@pytest.mark.parametrize(
    ("start", "stride", "swizzle"), [(0x12340, 1024, 128), (0x3FC00, 256, 32), (0x800, 128, 0)]
)
def test_descriptor_says_each_field(start, stride, swizzle):
    bits = made(start, stride, swizzle, leading=2048)
    for pattern in (bits, bits if bits < 1 << 63 else bits - (1 << 64)):  # as an int64 tensor has it
        picture = views.descriptor(pattern)
        assert (
            f"{bits:#018x}" in picture.text
            and f"shared address {start:#x};" in picture.text
            and f"8 rows are {stride} bytes" in picture.text
        )
        assert (f"{swizzle}-byte swizzle" if swizzle else "no swizzle") in picture.text
        assert ("2048 bytes" in picture.text) is (swizzle == 0)  # the leading offset
    drawn = [text.get_text() for text in picture.figure.axes[0].texts]
    assert (
        "".join(text for text in drawn if text in ("0", "1"))[:64][::-1] == f"{bits:064b}"
    )  # drawn from bit 0 on
    assert png(picture).startswith(b"\x89PNG")


def addresses(text: str, name: str) -> list[list[int]]:
    part = next(line for line in text.splitlines() if line.startswith(f"{name}: "))
    return [[int(a, 16) for a in re.findall("0x[0-9a-f]+", row)] for row in part.split("; row ")[1:]]


@pytest.mark.parametrize(("span", "bits"), [(32, 1), (64, 2), (128, 3)])
def test_what_is_read_is_what_tma_wrote(span, bits):
    swizzle = pytest.importorskip("pycute.swizzle").Swizzle(bits, 4, 3)
    base, rows = 0x2400, 16
    cases = {f"k = {k}": made(base + k, 8 * span, span) for k in {0, span - 32}}
    picture = views.operand_reads(cases, rows=rows, written=span)
    for name in cases:
        k = int(name.split()[-1])
        assert addresses(picture.text, name) == [
            [base + swizzle(row * span + k + chunk) for chunk in (0, 16)] for row in range(rows)
        ]
    assert picture.text.count("every chunk is what it is taken for") == len(cases)


def test_another_swizzle_reads_other_chunks():
    right = made(0x400, 1024, 128)
    picture = views.operand_reads(
        {"right": right, "wrong": right ^ 3 << 62, "too far": right + 32}, meant={"too far": 32}
    )
    right_said, wrong_said, far_said = picture.text.splitlines()
    # with rows taken to be 64 bytes apart, row 0 alone is where it should be: 7 of 8 rows, two chunks each
    assert "every chunk" in right_said and wrong_said.startswith("wrong: 14 chunks taken for others")
    # 512 bytes are four rows: rows 4 to 7 are shown and taken for 0 to 3, the others lie below
    assert far_said.startswith("too far: 8 chunks taken for others, 8 outside of what is shown")
    texts = [text.get_text() for text in picture.figure.axes[2].texts]
    assert "4.0\nas 0.2" in texts
    png(picture)


def test_the_kernels_own_descriptors():
    ask = "if (store_by_tma) { reinterpret_cast<u64*>(d)[0] = wgmma_descriptor(shared.b); return; }"
    ask += "\n  float acc[BLOCK_N / 2] = {};"
    a, b = (quantize.quantize(make(64, 128)) for make in (quantize.activations, quantize.weights))
    source = views.edited("s04_wgmma", "float acc[BLOCK_N / 2] = {};", ask)
    answer = s04_wgmma.gemm(a, b, s04_wgmma.Config(64, 64), source=source).view(torch.int64)[0, 0].item()
    assert answer == made(1024 + 64 * 128, 1024, 128)  # b behind the 64 x 128 bytes of a


def test_widths_are_products_and_bytes():
    text = views.wgmma_widths((8, 256)).text
    assert (
        "n = 8: 16,384 products, 2,304 bytes, 0.1406 bytes a product; 4 cycles of products, 18 of reading"
        in text
    )
    assert (
        "n = 256: 524,288 products, 10,240 bytes, 0.0195 bytes a product; 128 cycles of products, 80 of reading"
        in text
    )
    png(views.wgmma_widths())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.descriptor(1 << 64), "bits: expected the 64 bits"),
        (lambda: views.descriptor(1.5), "bits: expected the 64 bits"),
        (lambda: views.operand_reads({}), "descriptors: expected at least one"),
        (lambda: views.operand_reads({"x": "y"}), r"descriptors\['x'\]: expected the 64 bits"),
        (lambda: views.operand_reads({"x": 0}, rows=9), "rows: expected 8, 16, 24 or 32, got 9"),
        (
            lambda: views.operand_reads({"x": 0}, written=16),
            "written: expected a swizzle of 32, 64 or 128 bytes, got 16",
        ),
        (lambda: views.operand_reads({"x": 0}, meant={"y": 0}), "meant: expected names .* got 'y'"),
        (
            lambda: views.operand_reads({"x": 0}, meant={"x": 5}),
            "meant: expected multiples of 32 below 128, got 5",
        ),
        (lambda: views.wgmma_widths((12,)), "marked: expected multiples of 8 from 8 to 256, got 12"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
