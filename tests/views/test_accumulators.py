"""The accumulator layout against PTX ISA's formula, and the picture of a sum against exact arithmetic."""

from __future__ import annotations

import warnings
from fractions import Fraction

import pytest
import torch

from minigemm import views
from minigemm.emulator.machine import tensor_core
from minigemm.views.accumulators import _lowest


def png(picture: views.Picture) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return picture._repr_png_()


@pytest.mark.parametrize("n", [8, 40, 256])
def test_layout_is_that_of_ptx(n):
    every = set()
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        # PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk32", accumulator D
        rows = [16 * warp + lane // 4 + 8 * (i % 4 >= 2) for i in range(n // 2)]
        columns = [8 * (i // 4) + 2 * (lane % 4) + (i & 1) for i in range(n // 2)]
        assert views.held_by(thread, n) == list(zip(rows, columns, strict=True))
        every |= set(zip(rows, columns, strict=True))
    assert len(every) == 64 * n


@pytest.mark.parametrize(("n", "thread"), [(8, 0), (256, 127)])
def test_accumulators_frames_the_thread(n, thread):
    picture = views.accumulators(n, thread)
    first = ", ".join(f"r{i} {place}" for i, place in enumerate(views.held_by(thread, n)[:4]))
    assert (
        f"thread {thread} (warp {thread // 32}, lane {thread % 32})" in picture.text and first in picture.text
    )
    assert f"{n // 2} registers each" in picture.text
    lanes = [text for text in picture.figure.axes[1].texts if text.get_fontweight() == "bold"]
    assert {text.get_text() for text in lanes} == {str(thread % 32)} and len(lanes) == min(n, 16) // 2
    if n == 8:
        assert png(picture).startswith(b"\x89PNG")


def test_alignment_cuts_what_lies_below_the_14th_bit():
    ones = [1.0] * 31
    said = {power: views.alignment([128.0, *ones], [2.0 ** (power - 7), *ones]).text for power in (13, 14)}
    assert "31 x 1 each kept as 1; sum 8223, exact 8223" in said[13] and "below 2^0 are cut off" in said[13]
    assert "31 x 1 each kept as 0; sum 16384, exact 16415" in said[14] and "below 2^1 are cut off" in said[14]
    # 2^14 + 31 threes: each loses its lowest bit
    threes = views.alignment([128.0, *[3.0] * 31], [128.0, *ones])
    assert f"sum {16384 + 31 * 2}, exact {16384 + 31 * 3}" in threes.text
    png(threes)


@pytest.mark.parametrize("seed", range(4))
def test_alignment_is_the_tensor_cores_sum(seed):
    """Truncation, recomputed in exact fractions, and the bits drawn of each row, whatever the numbers."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (
        (torch.randn(6, generator=generator) * 8 ** (seed % 3)).to(torch.float8_e4m3fn),
        torch.randn(6, generator=generator).to(torch.float8_e4m3fn),
    )
    c = round(float(torch.randn((), generator=generator)) * 4 ** (seed + 1) * 16) / 16
    picture = views.alignment(x.tolist(), y.tolist(), c)
    a, b, start = torch.zeros(64, 32), torch.zeros(8, 32), torch.zeros(64, 8)
    a[0, :6], b[0, :6], start[0, 0] = x.float(), y.float(), c
    got = tensor_core.wgmma(a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), start)[0, 0].item()
    exact = sum(Fraction(p) * Fraction(q) for p, q in zip(x.tolist(), y.tolist(), strict=True)) + Fraction(c)
    assert picture.text.endswith(f"sum {got:g}, exact {float(exact):g}")
    cut = int(picture.text.split("bits below 2^")[1].split(" ")[0])
    kept = [Fraction(p) * Fraction(q) for p, q in zip(x.tolist(), y.tolist(), strict=True)] + [Fraction(c)]
    unit = Fraction(2) ** cut
    total = sum((abs(v) // unit * unit) * (1 if v > 0 else -1) for v in kept)
    top = Fraction(2) ** max(0, abs(total // unit).numerator.bit_length() - 14) * unit
    assert abs(total) // top * top == abs(Fraction(got))


def test_lowest_bit():
    assert [_lowest(x) for x in (1.0, 6.0, -0.375, 2.0**-9, 448.0)] == [0, 1, -3, -9, 6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.accumulators(12), "n: expected a multiple of 8 from 8 to 256, got 12"),
        (lambda: views.held_by(128, 8), "thread: expected one of a warpgroup, 0 to 127, got 128"),
        (lambda: views.alignment([], []), "a: expected 1 to 32 numbers, got 0"),
        (lambda: views.alignment([1.1], [1.0]), "a: expected finite numbers that e4m3 can hold, got 1.1"),
        (lambda: views.alignment([1.0], [float("inf")]), "b: expected finite numbers"),
        (lambda: views.alignment([1.0], [1.0, 2.0]), "b: expected as many numbers as a has, 1, got 2"),
        (lambda: views.alignment([1.0], [1.0], 0.1), "c: expected a finite float32"),
        (lambda: views.alignment([0.0], [1.0]), "a: expected a product or a c that is not zero"),
        (
            lambda: views.alignment([1.0, 2, 3, 4, 5, 6, 7, 8, 9], [1.0] * 9),
            "a: expected at most 8 different products, got 9",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
