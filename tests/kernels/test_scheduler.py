"""The order of tiles, from scheduler.cuh itself: a small kernel writes down which CTA takes which tile."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from minigemm import types
from minigemm.kernels.grouped import CONTIGUOUS, DENSE, MASKED, PREFIX_SUMS
from minigemm.layout import ceil_div
from minigemm.views.walks import group_parts, tile_order


@dataclass(frozen=True)
class Walk(types.Config):
    block_m: int = 64
    block_n: int = 16
    raster: int = 16
    raster_m: bool = False
    layout: int = DENSE


CONFIGS = st.sampled_from([Walk(), Walk(64, 16, 1), Walk(64, 16, 3, True), Walk(64, 16, 8, True)])


@settings(max_examples=60)
@given(m=st.integers(1, 900), n=st.integers(1, 900), ctas=st.integers(1, 140), config=CONFIGS)
def test_every_tile_once(m, n, ctas, config):
    walked = tile_order(m, n, config, ctas)
    flat = [tile for cta in walked for tile in cta]
    assert len(set(flat)) == len(flat)
    assert set(flat) == {
        (i, j) for i in range(ceil_div(m, config.block_m)) for j in range(ceil_div(n, config.block_n))
    }
    assert max(map(len, walked)) - min(map(len, walked)) <= 1


def test_raster_order():
    """Groups of RASTER columns, row by row within a group; the last group is narrower."""
    (order,) = tile_order(3 * 64, 5 * 16, Walk(raster=2), 1)
    assert order[:6] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert order[-3:] == [(0, 4), (1, 4), (2, 4)]
    (order,) = tile_order(3 * 64, 5 * 16, Walk(raster=2, raster_m=True), 1)
    assert order[:4] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert order[-5:] == [(2, j) for j in range(5)]


def test_raster_saves_what_is_read_at_once():
    """Tiles that 132 CTAs compute at once need fewer rows of a and b than whole rows of tiles do."""

    def read(raster: int) -> int:
        at_once = [cta[0] for cta in tile_order(64 * 64, 64 * 16, Walk(raster=raster), 132)]
        return len({i for i, _ in at_once}) + len({j for _, j in at_once})

    assert read(16) == 9 + 16
    assert read(16) < read(64) == 3 + 64


def parts(
    layout: int,
    m: int,
    n: int,
    groups: int,
    index: list[int],
    span: int,
    zero_padding: bool,
    ctas: int,
    config: Walk,
) -> list[list[int]]:
    """(group, row0, column0, first, middle, last) of every part, of all CTAs."""
    return [
        list(astuple(part))
        for cta in group_parts(layout, index or [0], m, n, config, groups, span, zero_padding, ctas)
        for part in cta
    ]


def check_parts(layout: int, found: list[list[int]], owner: list[int | None], n: int, config: Walk) -> None:
    """Each row of each column of tiles, once, by the group that owns it; -1 is padding, None stays."""
    for column in range(0, n, config.block_n):
        seen: dict[int, int] = {}
        for group, row0, column0, first, middle, last in found:
            assert column0 % config.block_n == 0 and 0 <= column0 < n
            assert row0 <= first <= middle <= last <= row0 + config.block_m and first < last
            assert (group >= 0) == (middle > first)
            assert layout not in (CONTIGUOUS, PREFIX_SUMS) or row0 % 4 == 0  # else TMA cannot read the scales
            if column0 == column:
                rows = {
                    **dict.fromkeys(range(first, middle), group),
                    **dict.fromkeys(range(middle, last), -1),
                }
                assert not seen.keys() & rows.keys()
                seen |= rows
        assert seen == {row: group for row, group in enumerate(owner) if group is not None}


SIZES = {"n": st.integers(1, 70), "ctas": st.integers(1, 9), "config": CONFIGS}


@settings(max_examples=60)
@given(m=st.integers(1, 300), **SIZES)
def test_dense_parts(m, n, ctas, config):
    check_parts(DENSE, parts(DENSE, m, n, 1, [], 1, True, ctas, config), [0] * m, n, config)


@settings(max_examples=60)
@given(
    runs=st.lists(
        st.tuples(st.integers(-2, 5), st.sampled_from([1, 2, 31, 64, 100, 128])), min_size=1, max_size=6
    ),
    zero_padding=st.booleans(),
    **SIZES,
)
def test_contiguous_parts(runs, zero_padding, n, ctas, config):
    """Ids in any order; those below 0 and, of 4 groups, above 3 are padding."""
    ids = [group for group, count in runs for _ in range(count)]
    owner = [group if 0 <= group < 4 else -1 if zero_padding else None for group in ids]
    check_parts(
        CONTIGUOUS,
        parts(CONTIGUOUS, len(ids), n, 4, ids, 1, zero_padding, ctas, config),
        owner,
        n,
        config,
    )


COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 90)), min_size=1, max_size=70)


@settings(max_examples=60)
@given(
    counts=COUNTS,
    span=st.sampled_from([1, 16, 128]),
    behind=st.integers(0, 70),
    zero_padding=st.booleans(),
    **SIZES,
)
def test_prefix_sums_parts(counts, span, behind, zero_padding, n, ctas, config):
    owner: list[int | None] = []
    ends = []
    nobody = -1 if zero_padding else None
    for group, count in enumerate(counts):
        owner += [nobody] * (-len(owner) % span) + [group] * count
        ends.append(len(owner))
    owner += [nobody] * (-len(owner) % span + behind)
    if owner:
        check_parts(
            PREFIX_SUMS,
            parts(PREFIX_SUMS, len(owner), n, len(counts), ends, span, zero_padding, ctas, config),
            owner,
            n,
            config,
        )


@settings(max_examples=60)
@given(counts=COUNTS, spare=st.integers(0, 40), **SIZES)
def test_masked_parts(counts, spare, n, ctas, config):
    t = max(*counts, 1) + spare
    owner = [group if row < count else None for group, count in enumerate(counts) for row in range(t)]
    check_parts(
        MASKED,
        parts(MASKED, len(owner), n, len(counts), counts, t, True, ctas, config),
        owner,
        n,
        config,
    )


NUMBERS = st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 300), min_size=1, max_size=40)


@settings(max_examples=60)
@given(
    numbers=NUMBERS,
    layout=st.sampled_from([PREFIX_SUMS, MASKED]),
    rows=st.integers(1, 200),
)
def test_numbers_that_make_no_sense(numbers, layout, rows):
    """Whatever lies on the device: the walk ends, inside d and b."""
    groups = len(numbers)
    m, span = (rows, 16) if layout == PREFIX_SUMS else (rows * groups, rows)
    for group, row0, column0, first, middle, last in parts(
        layout, m, 40, groups, numbers, span, True, 3, Walk()
    ):
        assert -1 <= group < groups and 0 <= column0 < 40
        assert 0 <= row0 <= first <= middle <= last <= m
