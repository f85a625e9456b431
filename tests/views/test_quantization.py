"""The pictures of what a cast loses: their figures against casts made here, with scales taken block by
block."""

from __future__ import annotations

import re

import pytest
import torch

from minigemm import quantize, views
from tests.products import matrix

pytestmark = pytest.mark.filterwarnings("error")

BLOCKS = {"tensor": (10**6, 10**6), "1x128": (1, 128), "128x128": (128, 128)}


def cast(x: torch.Tensor, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x after a cast to e4m3 and back, and the elements divided by their scale; written plainly, a block at a
    time."""
    height, width = BLOCKS[granularity]
    back, divided = torch.empty_like(x), torch.empty_like(x)
    for i in range(0, x.shape[0], height):
        for j in range(0, x.shape[1], width):
            block = (slice(i, i + height), slice(j, j + width))
            scale = x[block].abs().max() / 448
            divided[block] = x[block] / scale
            back[block] = divided[block].to(torch.float8_e4m3fn).float() * scale
    return back, divided


def drawn(picture: views.Picture) -> str:
    assert picture._repr_png_().startswith(b"\x89PNG")
    return repr(picture)


def percents(text: str, granularity: str) -> list[float]:
    """The percentages that a text says of a granularity."""
    part = re.search(rf"(?<![\dx]){granularity} ([^;:]*?)(?=(?:, |; )(?:1x128|128x128) |$)", text)
    assert part, text
    return [float(number) for number in re.findall(r"([\d.]+)%", part[1])]


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """Two outlier channels in one of three blocks of columns."""
    made = matrix(130, 384, 3, "weights")
    made[:, [130, 200]] *= 2e4
    return made


def test_channel_errors(x):
    ordinary = torch.ones(384, dtype=torch.bool)
    ordinary[[130, 200]] = False
    text = drawn(views.channel_errors(x))
    assert "2 outlier channels of 384" in text
    for granularity in BLOCKS:
        wrong = cast(x, granularity)[0] - x
        by_channel = (wrong.norm(dim=0) / x.norm(dim=0))[ordinary]
        wanted = [100 * float(by_channel.median()), 100 * float(wrong.norm() / x.norm())]
        assert percents(text, granularity) == pytest.approx(wanted, abs=0.006)


def test_landing(x):
    text = drawn(views.landing(x))
    for granularity in BLOCKS:
        size = cast(x, granularity)[1].abs()
        zero = (size <= 2.0**-10) & (x != 0)  # the tie goes to zero
        subnormal = (size > 2.0**-10) & (
            size < 2.0**-6 - 2.0**-10
        )  # from there on it is rounded up to the smallest normal number
        wanted = [100 * float(part.float().mean()) for part in (subnormal, zero)]
        assert percents(text, granularity) == pytest.approx(wanted, abs=0.06)


def test_outlier_sweep():
    calm = matrix(32, 256, 4, "weights")
    loud = calm.clone()
    loud[:, 5] *= 1e5
    rest = [channel for channel in range(256) if channel != 5]
    text = drawn(views.outlier_sweep(calm, torch.tensor([5]), factors=(1, 1e5)))
    for granularity in BLOCKS:
        wrong = cast(loud, granularity)[0] - loud
        assert percents(text, granularity) == pytest.approx(
            [100 * float(wrong[:, rest].norm() / loud[:, rest].norm())], abs=0.06
        )


def test_scale_sweep(x):
    unit = x.abs().max() / 448
    wrong = (x / (4 * unit)).to(torch.float8_e4m3fn).float() * 4 * unit - x
    eight = (x / (4 * x.abs().max() / 127)).round() * (4 * x.abs().max() / 127) - x
    median, integer = (float((w.norm(dim=0) / x.norm(dim=0)).median()) for w in (wrong, eight))
    text = drawn(views.scale_sweep(x, multiples=(4.0,)))
    assert (
        f"{median:.2%} in the median channel, {wrong.norm() / x.norm():.2%} over all, INT8 {integer:.2%}"
        in text
    )


def test_floating_point_forgives_a_large_scale():
    """What the lesson says: nothing is lost until the data reach the subnormals, and a scale that is too
    small clips."""
    text = repr(views.scale_sweep(quantize.activations(64, 512)))
    low, high = re.search(r"from ([\d.]+) to ([\d.]+) times", text).groups()  # type: ignore[union-attr]
    assert float(low) == 1 and float(high) >= 16


def test_error_bars():
    assert (
        drawn(views.error_bars({"cast": 0.037, "rounding": 1e-6}))
        == "relative errors: cast 0.037, rounding 1e-06"
    )


@pytest.mark.parametrize(
    "argument, call",
    [
        ("x", lambda: views.channel_errors(torch.zeros(3))),
        ("x", lambda: views.landing(torch.zeros(3, 4))),
        ("x", lambda: views.scale_sweep(torch.tensor([[1.0, float("inf")]]))),
        ("multiples", lambda: views.scale_sweep(torch.ones(2, 2), multiples=())),
        ("multiples", lambda: views.scale_sweep(torch.ones(2, 2), multiples=(1.0, 0.0))),
        ("channels", lambda: views.outlier_sweep(torch.ones(2, 2), torch.tensor([2]))),
        ("channels", lambda: views.outlier_sweep(torch.ones(2, 2), torch.tensor([0, 1]))),
        ("channels", lambda: views.outlier_sweep(torch.ones(2, 2), torch.tensor([0.5]))),
        ("factors", lambda: views.outlier_sweep(torch.ones(2, 2), torch.tensor([0]), factors=(-1,))),
        ("errors", lambda: views.error_bars({})),
        ("errors", lambda: views.error_bars({"none": 0.0})),
    ],
)
def test_bad_input_names_the_argument(argument, call):
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        call()
