"""The choice of a config: always legal, always the same, and sensible."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm.kernels import s11_overlapped, s12_swapped
from minigemm.kernels.library import is_legal
from minigemm.plan import choose, cost, prepared
from minigemm.plan.cost import Machine
from minigemm.types import Layout, Product
from tests.plan.test_cost import H200, LEGAL, MACHINES, PRODUCTS

CPU = torch.device("cpu")
EMULATED = cost.emulated()


def able(product: Product) -> list:
    return [config for config in LEGAL if is_legal(config, Product(product.rows, product.n, product.k))]


def test_every_candidate_is_legal_and_has_as_many_stages_as_fit():
    large = Product(4096, 4096, 4096)
    assert len(LEGAL) > 40 and len(set(LEGAL)) == len(LEGAL)
    for config in LEGAL:
        assert is_legal(config, large)
        more = replace(config, stages=config.stages + 1)
        assert more.stages > choose.MOST_STAGES or not is_legal(more, large)


@given(PRODUCTS, MACHINES)
def test_the_choice_is_legal_and_the_same_again(product, machine):
    config = choose.cheapest(able(product), product, machine)
    assert is_legal(config, Product(product.rows, product.n, product.k))
    assert config == choose.cheapest(able(product), product, machine)
    other = choose.cheapest(able(product)[::-1], product, machine)
    assert config == other or cost.cost(product, config, machine) == cost.cost(product, other, machine)


@pytest.mark.parametrize(
    "m, n, k, kernel",
    [
        (1, 4096, 7168, s12_swapped),
        (8, 2112, 7168, s12_swapped),
        (16, 7168, 2048, s12_swapped),
        (4096, 4096, 7168, s11_overlapped),
        (256, 4096, 7168, s11_overlapped),
        (8, 2112, 7184, s11_overlapped),  # s12 takes whole k-blocks only, several at once
    ],
)
def test_few_rows_take_the_swapped_kernel(m, n, k, kernel):
    product = Product(m, n, k)
    for machine in (EMULATED, Machine(H200)):
        assert isinstance(choose.cheapest(able(product), product, machine), kernel.Config)


@pytest.mark.parametrize("sms", [1, 20, 78, 108, 132, 144])
@pytest.mark.parametrize("layout", Layout)
def test_every_number_of_sms_has_its_choice(sms, layout):
    machine = Machine(H200, sms)
    for m in (1, 64, 500, 4096):
        product = Product(m, 4096, 2048, layout, 8)
        config = choose.cheapest(choose.menu(product, machine), product, machine)
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
    menu = choose.menu(product, EMULATED)
    assert 1 <= len(menu) <= choose.MENU_LIMIT
    for m in (*range(1, 300, 13), *range(300, 8193, 411)):
        with_m = product._replace(m=m)
        mine = cost.cost(with_m, choose.cheapest(menu, with_m, EMULATED), EMULATED).ns
        best = cost.cost(with_m, choose.cheapest(able(with_m), with_m, EMULATED), EMULATED).ns
        assert mine <= 1.15 * best, (m, mine, best)


def test_kernels_of_a_call_with_any_m():
    """Through the settings, with the device's SMs in the config."""
    for n, k in ((2112, 7168), (4096, 7168), (7168, 2048)):
        found = {choose.config_for(Product(m, n, k), CPU) for m in range(1, 8193, 61)}
        assert len(found) <= 12 and found <= set(choose.configs_for(Product(0, n, k), CPU))


@given(PRODUCTS, st.integers(0, 300))
def test_one_config_in_a_step_of_rows(product, expected):
    product = product._replace(expected_m=expected)
    config = choose.config_for(product, CPU)
    assert (
        config.ctas == EMULATED.sms
        and config.layout == product.layout
        and config.out_fp32 == product.out_fp32
    )
    step = choose.m_step(product.m)
    for m in (product.m - (product.m - 1) % step, product.m + -product.m % step):
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


def test_no_choices():
    with pytest.raises(ValueError, match="configs: expected at least one legal config"):
        choose.cheapest([], Product(1, 1, 16), EMULATED)
