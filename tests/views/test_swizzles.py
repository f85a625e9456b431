"""Pictures of swizzles against pycute, and of boxes against a count of elements."""

from __future__ import annotations

import warnings

import pytest
import torch

from minigemm import emulator, views
from minigemm.views.swizzles import bank_groups


def png(picture: views.Picture) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return picture._repr_png_()


@pytest.mark.parametrize(("span", "bits"), [(32, 1), (64, 2), (128, 3)])
def test_bank_groups_are_cutes(span, bits):
    swizzle = pytest.importorskip("pycute.swizzle").Swizzle(bits, 4, 3)
    for chunk in range(span // 16):
        places = [row * span + chunk * 16 for row in range(8)]
        assert bank_groups(span, True, 8, chunk) == [swizzle(place) % 128 // 16 for place in places]
        assert bank_groups(span, False, 8, chunk) == [place % 128 // 16 for place in places]


def test_swizzles_says_who_conflicts():
    picture = views.swizzles(((32, False), (64, False), (128, False), (128, True)), chunk=1)
    # 4, 2 and 1 rows lie side by side in 128 bytes, so 8 rows come back to a bank 2, 4 and 8 times
    said = picture.text.split("; ")
    assert [part.partition(", rows 0")[0] for part in said] == [
        "no swizzle, rows of 32: 2-way conflict",
        "no swizzle, rows of 64: 4-way conflict",
        "no swizzle, rows of 128: 8-way conflict",
        "128-byte swizzle: no conflict",
    ]
    assert png(picture).startswith(b"\x89PNG")


@pytest.mark.parametrize("at", [(0, 0), (16, 4), (16, 0), (0, 4), (-16, -3), (64, 64)])
def test_box_counts_what_lies_inside(at):
    matrix = torch.zeros(6, 32, dtype=torch.float8_e4m3fn)
    picture = views.box(emulator.TensorMap(matrix, (5, 32)), at)
    x, y = at
    inside = sum(0 <= y + i < 6 and 0 <= x + j < 32 for i in range(5) for j in range(32))
    assert f"{inside} elements inside, {5 * 32 - inside} filled; 160 bytes on the mbarrier" in picture.text
    png(picture)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.swizzles([]), "cases: expected pairs"),
        (lambda: views.swizzles([(48, True)]), "cases: expected rows of 32, 64 or 128 bytes, got 48"),
        (lambda: views.swizzles([(128, True), (32, True)], chunk=2), "chunk: expected 0 to 1 in rows of 32"),
        (lambda: bank_groups(16), "span: expected rows of 32, 64 or 128 bytes, got 16"),
        (
            lambda: views.box(emulator.TensorMap(torch.zeros(64), (16,)), (0, 0)),
            "tensor_map: expected one of a matrix",
        ),
        (lambda: views.box(emulator.TensorMap(torch.zeros(8, 64), (8, 16)), (0,)), "at: expected"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
