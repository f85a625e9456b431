"""The pictures of e4m3 say the numbers that its definition gives."""

from __future__ import annotations

import itertools
import math

import pytest

from minigemm import views
from minigemm.views import formats

pytestmark = pytest.mark.filterwarnings("error")


def by_definition(code: int) -> float:
    """What a code stands for, from the format's definition."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 127 == 127:
        return math.nan
    magnitude = mantissa / 512 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -magnitude if code & 128 else magnitude


def nearest(value: float) -> int:
    """The code of the nearest finite number, of two equally near ones the even one; by search."""
    codes = range(128 if math.copysign(1, value) < 0 else 0, 255 if math.copysign(1, value) < 0 else 127)
    return min(codes, key=lambda code: (abs(by_definition(code) - value), code & 1))


def drawn(picture: views.Picture) -> str:
    assert picture._repr_png_().startswith(b"\x89PNG")
    return repr(picture)


def test_values_are_the_format_s():
    for code, value in enumerate(formats.values().tolist()):
        assert value == by_definition(code) or (math.isnan(value) and math.isnan(by_definition(code)))


def test_the_number_line_counts_them():
    finite = {by_definition(code) for code in range(256) if not math.isnan(by_definition(code))}
    text = drawn(views.number_line())
    assert (
        f"{len(finite)} finite numbers from {min(finite):g} to {max(finite):g}" in text
        and "smallest 0.001953125" in text
        and "no infinity" in text
    )


@pytest.mark.parametrize(
    "value", [0.3, 17, 19, 25, 1000, -0.001, 0.0009, 2.0**-10, 2.0**-10 * 1.001, -448, 464, 0, -0.0, 1e-30]
)
def test_bits_are_the_nearest_number_s(value):
    code = nearest(value)
    bits = f"{code:08b}"
    kind = "zero" if not code & 127 else "normal" if code >> 3 & 15 else "subnormal"
    assert drawn(views.bits(value)).endswith(
        f"becomes {by_definition(code):.10g}: {bits[0]} {bits[1:5]} {bits[5:]}, {kind}"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bits_of_what_is_no_number(value):
    assert drawn(views.bits(value)).endswith("1111 111, no number")


@pytest.mark.parametrize("value", ["0.3", None, True])
def test_bits_refuse_what_is_not_a_number(value):
    with pytest.raises(ValueError, match="value: expected a number"):
        views.bits(value)


def test_the_worst_cast_is_a_seventeenth():
    normal = [by_definition(code) for code in range(8, 127)]
    worst = max(
        (high - low) / (high + low) for low, high in itertools.pairwise(normal)
    )  # from the middle to either side
    assert worst == pytest.approx(1 / 17)
    assert f"a normal number is off by at most {worst:.2%}" in drawn(views.spacing())
