"""The choice of a config: always legal, always the same, and sensible."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm.kernels import s10_grouped
from minigemm.plan import choose, cost, prepared
from minigemm.plan.cost import H100_RATES, Machine
from minigemm.types import Layout, Product
from tests.plan.test_cost import LEGAL, MACHINES, PRODUCTS

CPU = torch.device("cpu")


def test_every_candidate_is_legal_and_has_as_many_stages_as_fit():
    large = Product(4096, 4096, 4096)
    assert len(LEGAL) > 40
    assert len({(c.block_m, c.block_n, c.consumers, c.splits) for c in LEGAL}) == len(LEGAL)
    for config in LEGAL:
        assert s10_grouped.is_legal(config, large)
        more = config.stages + config.splits
        assert more > choose.MOST_STAGES or not s10_grouped.is_legal(replace(config, stages=more), large)


@given(PRODUCTS, MACHINES)
def test_the_choice_is_legal_and_the_same_again(product, machine):
    config = choose.cheapest(LEGAL, product, machine)
    assert s10_grouped.is_legal(config, Product(product.rows, product.n, product.k))
    assert config == choose.cheapest(LEGAL, product, machine)
    other = choose.cheapest(LEGAL[::-1], product, machine)
    assert config == other or cost.cost(product, config, machine) == cost.cost(product, other, machine)


@given(PRODUCTS, MACHINES)
def test_nothing_beats_the_choice(product, machine):
    """No other config has as few waves, as little traffic of every kind, and less time."""
    chosen = cost.cost(product, choose.cheapest(LEGAL, product, machine), machine)
    for config in LEGAL:
        other = cost.cost(product, config, machine)
        fewer = other.waves <= chosen.waves and other.l2_bytes <= chosen.l2_bytes
        assert not (fewer and other.cycles < chosen.cycles)


@pytest.mark.parametrize(
    "m, n, k, best",
    [(4096, 4096, 7168, (256, 128)), (4096, 7168, 2048, (256, 128)), (4096, 2112, 7168, (128, 192))],
)
def test_large_problems_get_a_tile_within_4_per_cent_of_the_fastest_when_timed(m, n, k, best):
    config = choose.cheapest(LEGAL, Product(m, n, k))
    assert (config.block_m, config.block_n) == best


@pytest.mark.parametrize(
    "m, n, k", [(64, 2112, 7168), (64, 4096, 7168), (64, 7168, 2048), (128, 7168, 16384)]
)
def test_few_rows_take_one_wave(m, n, k):
    config = choose.cheapest(LEGAL, Product(m, n, k))
    assert cost.cost(Product(m, n, k), config).waves == 1 and config.block_m <= 128


@pytest.mark.parametrize("sms", [1, 20, 78, 108, 132, 144])
@pytest.mark.parametrize("layout", Layout)
def test_every_number_of_sms_has_its_choice(sms, layout):
    machine = Machine(sms)
    for m in (1, 64, 500, 4096):
        product = Product(m, 4096, 2048, layout, 8)
        config = choose.cheapest(LEGAL, product, machine)
        assert cost.cost(product, config, machine).waves == -(-cost.tiles_of(product, config) // sms)


@pytest.mark.parametrize(
    "n, k",
    [
        (2112, 7168),
        (576, 7168),
        (4096, 7168),
        (7168, 2048),
        (24576, 1536),
        (32768, 512),
        (7168, 16384),
        (77, 16),
        (128, 128),
    ],
)
@pytest.mark.parametrize("layout, groups", [(Layout.DENSE, 1), (Layout.CONTIGUOUS, 8), (Layout.MASKED, 64)])
def test_any_m_compiles_few_kernels(n, k, layout, groups):
    """At most 12 for one n and k, and what the menu of them costs against the best of all configs."""
    product = Product(0, n, k, layout, groups)
    menu = choose.menu(product)
    assert 1 <= len(menu) <= choose.MENU_LIMIT
    for m in (*range(1, 300, 13), *range(300, 8193, 411)):
        with_m = product._replace(m=m)
        mine = cost.cost(with_m, choose.cheapest(menu, with_m)).cycles
        best = cost.cost(with_m, choose.cheapest(LEGAL, with_m)).cycles
        assert mine <= 1.2 * best, (m, mine, best)


def test_kernels_of_a_call_with_any_m():
    """Through the settings, with the device's SMs in the config."""
    for n, k in ((2112, 7168), (4096, 7168), (7168, 2048)):
        found = {choose.config_for(Product(m, n, k), CPU) for m in range(1, 8193, 61)}
        assert len(found) <= 12 and found <= set(choose.configs_for(Product(0, n, k), CPU))


@given(PRODUCTS, st.integers(0, 300))
def test_one_config_between_two_multiples_of_64(product, expected):
    product = product._replace(expected_m=expected)
    config = choose.config_for(product, CPU)
    assert (
        config.ctas == H100_RATES.sms
        and config.layout == product.layout
        and config.out_fp32 == product.out_fp32
    )
    for m in (product.m - (product.m - 1) % 64, product.m + -product.m % 64):
        assert choose.config_for(product._replace(m=m, zero_padding=False), CPU) == config


@pytest.mark.slow
@pytest.mark.parametrize("out_fp32, accumulate", [(False, False), (True, True)])
def test_every_candidate_compiles_without_spills_or_warnings(out_fp32, accumulate):
    # all of the plain ones, the layouts taking turns
    for number, config in enumerate(LEGAL[:: 1 + 3 * accumulate]):
        layout = Layout(number % 4)
        config = replace(config, out_fp32=out_fp32, accumulate=accumulate, layout=layout)
        log = prepared.compiled(config).log
        used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert used == [("0", "0", "0")], config
        assert not re.search("C7[0-9]{3}|warning", log), (config, log)


def test_batch_invariance_leaves_split_sums_out():
    product = Product(64, 4096, 7168)
    several, one = choose.menu(product), choose.menu(product, batch_invariant=True)
    assert any(config.splits > 1 for config in several) and all(config.splits == 1 for config in one)
    assert choose.cheapest(several, product).splits > 1


def test_no_choices():
    with pytest.raises(ValueError, match="configs: expected at least one legal config"):
        choose.cheapest([], Product(1, 1, 16))
