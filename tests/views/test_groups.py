"""A router's layouts, and the pictures of their parts against what the real kernel counted."""

from __future__ import annotations

import itertools
import re
import warnings

import pytest
import torch

import minigemm
from minigemm import quantize, views
from minigemm.kernels.grouped import CONTIGUOUS, MASKED, PREFIX_SUMS
from minigemm.kernels.s10_grouped import Config
from minigemm.views import walks
from tests.products import grouped

FOUND = views.route(160, 8, 2, imbalance=1.0, seed=37)
N, K = 64, 128
CONFIGS = [Config(128, 64, 2, 2), Config(64, 64, 2, 1), Config(192, 64, 2, 3)]


def drawn(picture: views.Picture) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture._repr_png_().startswith(b"\x89PNG")
    return picture.text


def test_a_router_is_fair_to_its_definition():
    assert torch.equal(FOUND.chosen, views.route(160, 8, 2, 1.0, 37).chosen)
    assert all(len(set(row)) == 2 for row in FOUND.chosen.tolist())
    torch.testing.assert_close(FOUND.weights.sum(1), torch.ones(160))
    assert (FOUND.weights[:, 0] >= FOUND.weights[:, 1]).all() and sum(FOUND.counts) == 320
    flat = views.route(4000, 4, 1, imbalance=0.0).counts
    assert max(flat) < 1.15 * min(flat) and max(FOUND.counts) > 4 * min(FOUND.counts)
    assert f"rows of the experts: {FOUND.counts}" in drawn(views.routing(FOUND))


@pytest.mark.parametrize("alignment", [1, 16, 128])
def test_contiguous_has_every_choice_once(alignment):
    choices, ids, ends = FOUND.contiguous(alignment)
    assert sorted(choices[choices >= 0].tolist()) == list(range(320)) and torch.equal(choices >= 0, ids >= 0)
    assert torch.equal(FOUND.chosen.flatten()[choices[choices >= 0]].int(), ids[ids >= 0])
    starts = [0, *(-(-end // alignment) * alignment for end in ends.tolist()[:-1])]
    assert [end - start for start, end in zip(starts, ends.tolist(), strict=True)] == FOUND.counts
    assert all(
        (ids[start:end] == g).all() for g, (start, end) in enumerate(zip(starts, ends.tolist(), strict=True))
    )
    assert len(ids) % alignment == 0


def test_masked_has_every_choice_once():
    choices, counts = FOUND.masked(150)
    assert sorted(choices[choices >= 0].tolist()) == list(range(320)) and counts.tolist() == FOUND.counts
    for group in range(8):
        assert (FOUND.chosen.flatten()[choices[group, : FOUND.counts[group]]] == group).all() and (
            choices[group, FOUND.counts[group] :] < 0
        ).all()


def multiplied(text: str) -> int:
    """Consumers that multiply, as the picture counts them."""
    return int(re.search(r"(\d+) consumers multiply", text)[1])


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("layout", [CONTIGUOUS, PREFIX_SUMS, MASKED])
def test_what_multiplies_is_what_the_kernel_multiplied(layout, config):
    """One column of tiles and one k-step: 4 WGMMAs for each 64 rows of a consumer."""
    if layout == MASKED:
        texts = {1: drawn(views.masked_layout(FOUND, 144, config))}
    else:
        lines = drawn(views.contiguous_layout(FOUND, config, (1, 128), layout == PREFIX_SUMS)).splitlines()
        texts = dict(zip((1, 128), lines, strict=True))
    for alignment, text in texts.items():
        _, ids, ends = FOUND.contiguous(alignment)
        rows = 8 * 144 if layout == MASKED else len(ids)
        a = quantize.quantize(torch.randn(rows, K), "1x128")
        b, sfb = torch.ones(8, N, K).to(torch.float8_e4m3fn), torch.ones(8, 1, 1)
        with minigemm.observe(hazards=False, fast=True) as seen:
            if layout == MASKED:
                numbers = torch.tensor(FOUND.counts, dtype=torch.int32)
                x, sfa = a.data.view(8, 144, K), a.scale.reshape(8, 144, 1)
            else:
                numbers, x, sfa = ends if layout == PREFIX_SUMS else ids, a.data, a.scale
            d = torch.empty(*x.shape[:-1], N, dtype=torch.bfloat16)
            options = {} if layout == MASKED else {"alignment": alignment}
            grouped(layout, (x, sfa, b, sfb, d, numbers), config, **options)
        assert 4 * multiplied(text) * config.rows // 64 == seen[0].counters["wgmma"]
        assert layout == MASKED or f"{len(ids)} rows, {int((ids < 0).sum())} of them padding" in text


def test_a_layout_says_where_groups_end():
    text = drawn(views.contiguous_layout(FOUND, CONFIGS[0], (128,)))
    ends = FOUND.contiguous(128)[2].tolist()
    assert f"ends {ends}" in text and ends[0] == FOUND.counts[0] and ends[1] == 128 + FOUND.counts[1]
    taken = sum(-(-count // 128) for count in FOUND.counts)
    assert f"{taken} of 16 tiles are taken" in drawn(views.masked_layout(FOUND, 256, CONFIGS[0]))


@pytest.mark.parametrize(("groups", "ctas", "cta"), [(8, 4, 1), (40, 7, 3), (70, 50, 20)])
@pytest.mark.parametrize("layout", [MASKED, PREFIX_SUMS])
def test_a_search_is_the_prefix_sum(groups, ctas, cta, layout):
    """Each search ends in the group whose share of the running sum holds its number; the lanes' sums are
    those of itertools."""
    generator = torch.Generator().manual_seed(groups)
    counts = torch.randint(0, 300, (groups,), generator=generator) * (
        torch.rand(groups, generator=generator) > 0.3
    )
    counts = counts.tolist()
    config, n = CONFIGS[0], 128
    if layout == MASKED:
        index, rows, span = counts, groups * 300, 300
    else:
        padded = [-(-count // 128) * 128 for count in counts]
        starts = [0, *itertools.accumulate(padded)]
        index, rows, span = (
            [start + count for start, count in zip(starts, counts, strict=False)],
            starts[-1],
            128,
        )
    walk = walks.group_search(layout, index, rows, n, config, groups, span, ctas, cta)
    total = [-(-count // 128) * 2 for count in counts]
    up_to = list(itertools.accumulate(total))
    assert [s.number for s in walk] == list(range(cta, max(up_to[-1], cta) + ctas, ctas))[
        : len(walk)
    ] and walk[-1].part is None
    for search in walk[:-1]:
        group = next(g for g, end in enumerate(up_to) if search.number < end)
        assert search.part is not None and search.part.group == group
        last = search.batches[-1]
        assert last.group0 == group // 32 * 32 and last.reached.index(True) == group - last.group0
        for batch in search.batches:
            lanes = min(32, groups - batch.group0)
            assert list(batch.tiles[:lanes]) == total[batch.group0 : batch.group0 + lanes]
            assert list(batch.up_to[:lanes]) == up_to[batch.group0 : batch.group0 + lanes]
            assert list(batch.sums[1][1:lanes]) == [x + y for x, y in itertools.pairwise(batch.tiles[:lanes])]
            assert [search.number < x for x in batch.up_to] == list(batch.reached)
        tile = search.number - up_to[group] + total[group]
        place = f"number {search.number} is in group {group}: tile {tile} of its {total[group]}"
        if search is walk[0] or search is walk[-2]:  # a picture takes longer than all the rest
            assert drawn(views.search(search, groups)).splitlines()[-1] == place


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: views.route(4, 2, 3), "top_k: expected 1 to 2 experts for at least one token, got 3 for 4"),
        (lambda: views.route(0, 2, 1), "top_k: expected 1 to 2"),
        (
            lambda: FOUND.masked(max(FOUND.counts) - 1),
            f"rows: expected at least {max(FOUND.counts)}, those of the busiest expert, got {max(FOUND.counts) - 1}",
        ),
        (lambda: views.contiguous_layout(FOUND, CONFIGS[0], ()), "alignments: expected at least one"),
        (
            lambda: views.contiguous_layout(FOUND, CONFIGS[0], (0,)),
            r"alignments: expected at least one, from 1 on, got \(0,\)",
        ),
        (
            lambda: views.masked_layout(FOUND, 1, CONFIGS[0]),
            f"rows: expected at least {max(FOUND.counts)}",
        ),
        (lambda: views.search(walks.Search(0, (), None), 8), "one: expected a search that looked at groups"),
        (
            lambda: walks.group_search(CONTIGUOUS, [0], 1, 8, CONFIGS[0], 1),
            "layout: expected PREFIX_SUMS or MASKED",
        ),
        (
            lambda: walks.group_search(MASKED, [0], 1, 8, CONFIGS[0], 1, ctas=2, cta=2),
            "cta: expected one of 2, got 2",
        ),
        (lambda: walks.group_parts(MASKED, [0, 1], 1, 8, CONFIGS[0], 1), "index: expected 1 numbers, got 2"),
        (
            lambda: walks.group_parts(MASKED, [], 1, 8, CONFIGS[0], 0),
            "groups: expected a positive size, got 0",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
