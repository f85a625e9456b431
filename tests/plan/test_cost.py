"""The cost model: what it counts, and how it ranks."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from minigemm.plan import choose, cost
from minigemm.plan.cost import H100_RATES, Cost, Machine
from minigemm.types import Layout, Product

MACHINES = st.builds(Machine, st.integers(1, 200), st.integers(1000, 10000), st.integers(200, 4000))
PRODUCTS = st.builds(
    Product,
    st.integers(1, 20000),
    st.integers(1, 40000),
    st.integers(1, 1100).map(lambda k: 16 * k),
    st.sampled_from(Layout),
    st.integers(1, 300),
    expected_m=st.just(0),
    alignment=st.sampled_from((1, 64, 128)),
    out_fp32=st.booleans(),
)
LEGAL = choose.candidates()


@given(PRODUCTS, MACHINES)
def test_more_waves_need_a_reason(product, machine):
    """Of tiles of one size and one traffic, the one with fewer waves is taken."""
    config = choose.cheapest(LEGAL, product, machine)
    chosen = cost.cost(product, config, machine)
    for other in LEGAL:
        same_area = other.block_m * other.block_n == config.block_m * config.block_n
        same_warps = (other.consumers, other.splits) == (config.consumers, config.splits)
        there = cost.cost(product, other, machine)
        same_traffic = there.l2_bytes == chosen.l2_bytes and there.shared_bytes == chosen.shared_bytes
        if same_area and same_warps and same_traffic:
            assert chosen.waves <= there.waves


@given(PRODUCTS, MACHINES, st.sampled_from(LEGAL))
def test_more_work_never_costs_less(product, machine, config):
    base = cost.cost(product, config, machine)
    for field in ("m", "n", "k"):
        larger = product._replace(**{field: getattr(product, field) + 256})
        more = cost.cost(larger, config, machine)
        assert more.cycles >= base.cycles and more.waves >= base.waves and more.l2_bytes >= base.l2_bytes


@given(PRODUCTS, MACHINES, st.sampled_from(LEGAL))
def test_a_better_machine_is_never_slower(product, machine, config):
    base = cost.cost(product, config, machine).cycles
    for better in (
        replace(machine, memory_rate=2 * machine.memory_rate),
        replace(machine, l2_rate=2 * machine.l2_rate),
    ):
        assert cost.cost(product, config, better).cycles <= base


@given(PRODUCTS, MACHINES)
def test_integers_only(product, machine):
    assert all(isinstance(value, int) for value in cost.cost(product, LEGAL[0], machine))


@given(PRODUCTS)
def test_tiles_are_counted(product):
    groups = product.groups
    for config in LEGAL[::9]:
        across = -(-product.n // config.block_n)
        full = -(-product.m // config.block_m)
        tiles = cost.tiles_of(product, config)
        if product.layout == Layout.DENSE:
            assert tiles == full * across
        elif product.layout == Layout.MASKED:
            fuller = -(-(product.m + product.m // 6) // config.block_m)  # half of the groups, or the only one
            assert tiles == (groups // 2 * full + (groups - groups // 2) * fuller) * across
        else:
            assert full * across <= tiles <= (full + groups) * across


@given(PRODUCTS, st.integers(1, 30000), MACHINES)
def test_a_masked_layout_costs_what_its_expected_rows_do(product, expected, machine):
    product = product._replace(layout=Layout.MASKED)
    alone = product._replace(m=min(expected, product.m))
    assert cost.cost(product._replace(expected_m=expected), LEGAL[0], machine) == cost.cost(
        alone, LEGAL[0], machine
    )


def test_nothing_to_do_costs_nothing():
    assert cost.cost(Product(0, 128, 128), LEGAL[0]) == Cost(0, 0, 0, 0)
    assert cost.cost(Product(128, 128, 0), LEGAL[0]) == Cost(0, 0, 0, 0)


def test_the_defaults_are_an_h100():
    assert (H100_RATES.sms, H100_RATES.l2_rate, H100_RATES.memory_rate) == (132, 9100, 1720)
