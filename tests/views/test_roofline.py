"""Work, bytes and the roof, against sums made by hand."""

from __future__ import annotations

import pytest

from minigemm import views

pytestmark = pytest.mark.filterwarnings("error")


def drawn(picture: views.Picture) -> str:
    assert picture._repr_png_().startswith(b"\x89PNG")
    return repr(picture)


def test_intensity():
    assert views.gemm_intensity(8, 12, 16) == 3072 / (8 * 16 + 12 * 16 + 2 * 8 * 12)
    assert views.gemm_intensity(1, 1, 10**9) == pytest.approx(1)  # two operations for the two bytes of a pair


def test_product_counts_operations_and_bytes():
    assert (
        drawn(views.product(8, 12, 16))
        == "(8, 16) times (16, 12): 3,072 operations, 512 bytes in and out, 6 operations a byte"
    )
    text = drawn(
        views.product(64, 4096, 7168)
    )  # 3,758,096,384 operations; 458,752 + 29,360,128 + 524,288 bytes
    assert "3.76 billion operations, 30.3 MB in and out, 124 operations a byte" in text
    assert "2 operations" in drawn(views.product(1, 1, 1))


def test_the_roof():
    text = drawn(views.roofline({"left": 100.0, "right": 1000.0}, views.H100))
    assert "H100 SXM: ridge at 591 operations a byte" in text  # 1979 / 3.35
    assert "left: 100 operations a byte, at most 335 TFLOPS" in text  # 100 x 3.35
    assert "right: 1,000 operations a byte, at most 1,979 TFLOPS" in text
    assert "H200 SXM: ridge at 412" in drawn(views.roofline())  # 1979 / 4.8
    assert drawn(views.roofline({"tiny": 0.01, "huge": 1e6}))


def test_allowed_below_another_peak():
    assert (
        views.H200.allowed(1.0) == 4.8e12
        and views.H200.allowed(1e6, views.H200.fp32) == 67e12
        and views.H200.allowed(5.0, 0.0) == 0
    )


@pytest.mark.parametrize("name, sizes", [("m", (0, 1, 1)), ("n", (1, -1, 1)), ("k", (1, 1, 0))])
def test_sizes_that_are_none(name, sizes):
    for function in (views.gemm_intensity, views.product):
        with pytest.raises(ValueError, match=f"^{name}: expected a positive size"):
            function(*sizes)


@pytest.mark.parametrize("intensity", [0.0, -1.0, float("inf"), float("nan")])
def test_points_that_are_none(intensity):
    with pytest.raises(ValueError, match="^points: expected positive operations a byte, got .* for 'it'"):
        views.roofline({"it": intensity})
