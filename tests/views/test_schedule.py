"""Pictures of waves and raster orders against counts made another way; the walk itself is tested in
test_scheduler.py."""

from __future__ import annotations

import re
import warnings

import pytest

import minigemm
from minigemm import quantize, views
from minigemm.kernels import s07_promoted, s08_persistent
from minigemm.kernels.s08_persistent import Config
from minigemm.views.walks import tile_order

SMALL = Config(64, 16, 2, 1, raster=2)


def drawn(picture: views.Picture) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture._repr_png_().startswith(b"\x89PNG")
    return picture.text


def test_a_wave_by_hand():
    """3 x 5 tiles in groups of two columns, 4 CTAs: the first wave is a block of 2 x 2, the second row 2 of
    it and two tiles of the next group."""
    first, second = (
        drawn(views.raster(3 * 64, 5 * 16, 1000, {"x": SMALL}, wave=wave, ctas=4)) for wave in (0, 1)
    )
    assert "wave 0, 4 tiles, needs 2 x 2 blocks: 0.1 MB of a + 0.0 MB of b = 0.2 MB" in first
    assert (
        "wave 1, 4 tiles, needs 2 x 4 blocks" in second and "the CTAs ask L2 for 0.3 MB" in second
    )  # 4 * 80 rows of 1000
    image = (
        views.raster(3 * 64, 5 * 16, 1000, {"x": SMALL}, wave=1, ctas=4).figure.axes[0].images[0].get_array()
    )
    shade = {(i, j): tuple(image[i, j]) for i in range(3) for j in range(5)}
    wave = [shade[2, 0], shade[2, 1], shade[0, 2], shade[0, 3]]
    before = [shade[0, 0], shade[0, 1], shade[1, 0], shade[1, 1]]
    assert len(set(wave)) == len(set(before)) == 1 and wave[0] != before[0] and len(set(shade.values())) == 3


def test_bytes_of_a_wave_at_the_edge():
    """70 rows and 20 columns: tiles over the edge count as what lies inside."""
    text = drawn(views.raster(70, 20, 10**6, {"all": SMALL}, ctas=9))
    assert (
        "4 tiles, needs 2 x 2 blocks: 70.0 MB of a + 20.0 MB of b = 90.0 MB" in text
        and "ask L2 for 180.0 MB" in text
    )


@pytest.mark.parametrize("of_rows", [False, True])
def test_traffic_is_the_mean_over_the_waves(of_rows):
    m, n, k, ctas = 700, 300, 1000, 7
    line = drawn(views.raster_traffic(m, n, k, Config(64, 16, 2, 1), (1, 3), ctas)).splitlines()[of_rows]
    for width in (1, 3):
        walk = tile_order(m, n, Config(64, 16, 2, 1, raster=width, raster_m=of_rows), ctas)
        total, rounds = 0, max(map(len, walk))
        for wave in range(rounds):
            rows = {
                r
                for tiles in walk
                if wave < len(tiles)
                for r in range(64 * tiles[wave][0], min(m, 64 * tiles[wave][0] + 64))
            }
            columns = {
                c
                for tiles in walk
                if wave < len(tiles)
                for c in range(16 * tiles[wave][1], min(n, 16 * tiles[wave][1] + 16))
            }
            total += k * (len(rows) + len(columns))
        assert f"{total / rounds / 1e6:.1f} MB at {width}" in line


def test_waves_and_what_computes():
    """16 x 17 tiles of 256 x 128 for 4096 x 2112: two waves and 8 tiles; three waves in time."""
    large, small = drawn(
        views.waves(4096, 2112, 1024, {"large": Config(), "small": Config(192, 128, 4, 3)})
    ).splitlines()
    cycles, used = 3 * 256 * 128 // 4, 4096 * 2112 / (3 * 132 * 256 * 128)
    walk = f"272 tiles in {272 / 132:.2f} waves of 132, {cycles:,} cycles"
    assert large == f"large: {walk}; {used:.0%} of them compute d"
    assert small.startswith("small: 374 tiles in 2.83 waves")
    picture = views.waves(4096, 2112, 1024, {"large": Config()})
    assert [text.get_text() for text in picture.figure.axes[0].texts] == ["132", "132", "8"]


def test_tail_is_one_where_everything_fits():
    """4 SMs and tiles of 64 x 16: 128 rows and 32 columns are one whole wave, 64 rows half of it."""
    assert (
        drawn(views.tail(32, {"x": SMALL}, (64, 128), ctas=4))
        == "x: from 50% at m = 64 to 100%, on average 75%"
    )


def test_in_turn_repeats_a_timeline():
    a, b = (
        quantize.quantize(quantize.activations(64, 256), "1x128"),
        quantize.quantize(quantize.weights(64, 256), "128x128"),
    )
    with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
        s07_promoted.gemm(a, b, s07_promoted.Config(64, 64, 2, 1))
    once, thrice = seen[0], views.in_turn(seen[0], 3)
    assert thrice.timeline.end == 3 * once.timeline.end and len(thrice.timeline.intervals) == 3 * len(
        once.timeline.intervals
    )
    assert thrice.timeline.share("busy", "tensor core") == pytest.approx(
        once.timeline.share("busy", "tensor core")
    )
    assert views.waiting_for(thrice, "warp 0") == pytest.approx(views.waiting_for(once, "warp 0"))
    assert "3 times" in drawn(views.timeline({"3 times": thrice, "once": once}))


def test_your_own_order(tmp_path):
    """Rows that run backwards every other time: the same tiles, another order, for the picture and for the
    kernel."""
    text = (s08_persistent.stage.source.parent / "scheduler.cuh").read_text()
    old = "return RASTER_M ? Tile{x, y} : Tile{y, x};"
    assert old in text
    mine = tmp_path / "scheduler.cuh"
    mine.write_text(
        text.replace(old, "const int s = y % 2 ? 2 * first + width - 1 - x : x;\n  return Tile{y, s};")
    )
    (order,) = tile_order(3 * 64, 2 * 16, SMALL, 1, mine)
    assert order == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]
    assert (
        re.search(
            "needs 2 x 1 blocks",
            drawn(views.raster(2 * 64, 2 * 16, 10, {"x": SMALL}, wave=1, ctas=2, scheduler=mine)),
        )
        is None
    )
    assert "needs 2 x 1 blocks" in drawn(
        views.raster(4 * 64, 2 * 16, 10, {"x": Config(64, 16, 2, 1, raster=1)}, ctas=2)
    )


RUN = {"configs": {"x": SMALL}}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.raster(0, 8, 8, **RUN), "m: expected a positive size, got 0"),
        (lambda: views.raster(8, 8, 8, {}), "configs: expected at least one"),
        (lambda: views.raster(8, 8, 8, **RUN, wave=1), "wave: expected one of the 1 of 'x', got 1"),
        (lambda: views.raster(8, 8, 8, **RUN, ctas=0), "ctas: expected a positive size, got 0"),
        (
            lambda: views.raster(8, 8, 8, **RUN, scheduler="nowhere.cuh"),
            "scheduler: expected the path of a scheduler.cuh, got 'nowhere.cuh'",
        ),
        (lambda: views.raster_traffic(8, 8, 8, SMALL, ()), "widths: expected at least one"),
        (lambda: views.waves(8, -1, 8, **RUN), "n: expected a positive size, got -1"),
        (lambda: views.tail(8, {"x": SMALL}, (8,)), "ms: expected at least two"),
        (lambda: views.tail(8, {"x": SMALL}, (0, 8)), "m: expected a positive size, got 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_in_turn_needs_a_timeline():
    a, b = (
        quantize.quantize(quantize.activations(64, 128), "1x128"),
        quantize.quantize(quantize.weights(64, 128), "128x128"),
    )
    with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
        s07_promoted.gemm(a, b, s07_promoted.Config(64, 64, 2, 1))
    with pytest.raises(ValueError, match="times: expected at least 1, got 0"):
        views.in_turn(seen[0], 0)
    seen[0].timeline = None
    with pytest.raises(ValueError, match="run: expected a report of"):
        views.in_turn(seen[0], 2)
