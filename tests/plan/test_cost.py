"""The cost model: what it counts, how it ranks, and the tables that it reads."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigemm import hopper
from minigemm.plan import choose, cost
from minigemm.plan.cost import Cost, Machine
from minigemm.types import Layout, Product

RESULTS = Path(__file__).parents[2] / "docs" / "results"
H200 = cost.paces_of("NVIDIA H200")
MACHINES = st.builds(Machine, st.sampled_from((H200, cost.emulated().paces)), st.integers(1, 200))
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


@given(PRODUCTS, MACHINES, st.sampled_from(LEGAL))
def test_more_work_never_costs_less(product, machine, config):
    base = cost.cost(product, config, machine)
    longer = cost.cost(product._replace(k=product.k + 256), config, machine)
    assert longer.ns >= base.ns and longer.moving >= base.moving and longer.tiles == base.tiles


@given(PRODUCTS, st.sampled_from(LEGAL), st.integers(1, 200))
def test_a_faster_memory_is_never_slower(product, config, sms):
    fields = {name: getattr(H200, name) for name in cost.Paces.__dataclass_fields__}
    faster = cost.Paces(**{**fields, "rate": 2 * H200.rate})
    there = cost.cost(product, config, Machine(faster, sms)).ns
    assert there <= cost.cost(product, config, Machine(H200, sms)).ns


@given(PRODUCTS, st.sampled_from(LEGAL), MACHINES)
def test_waves_are_counted(product, config, machine):
    found = cost.cost(product, config, machine)
    assert found.waves == -(-found.tiles // machine.sms)


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
    there = cost.cost(product._replace(expected_m=expected), LEGAL[0], machine)
    assert there == cost.cost(alone, LEGAL[0], machine)


def test_nothing_to_do_costs_nothing():
    assert cost.cost(Product(0, 128, 128), LEGAL[0], cost.emulated()) == Cost(0, 0, 0, 0, 0)
    assert cost.cost(Product(128, 128, 0), LEGAL[0], cost.emulated()) == Cost(0, 0, 0, 0, 0)


def test_every_candidate_was_measured():
    for config in LEGAL:
        assert H200.pace[cost.tile_name(config)] > 0 and H200.tile[cost.tile_name(config)] >= 0


def test_the_shipped_table_predicts_its_own_times():
    """Of the tile that is chosen among those timed: at most 3 % more than the best, on average."""
    held = json.loads((RESULTS / "h200_tune.json").read_text(encoding="utf-8"))
    by_product: dict[tuple, dict[str, float]] = {}
    for values in held["rows"]:
        row = dict(zip(held["columns"], values, strict=True))
        name = f"{row['stage']} {row['block_m']}x{row['block_n']}"
        key = tuple(row[field] for field in ("layout", "m", "n", "k"))
        if row["layout"] == "dense":
            by_product.setdefault(key, {})[name] = row["us"]
    lost = []
    for (_, m, n, k), times in by_product.items():
        predicted = {}
        for config in LEGAL:
            name = cost.tile_name(config)
            ns = cost.cost(Product(m, n, k), config, Machine(H200)).ns
            if name in times:
                predicted[name] = min(ns, predicted.get(name, ns))
        chosen = min(predicted, key=predicted.__getitem__)
        lost.append(times[chosen] / min(times.values()))
    assert len(lost) > 150
    assert sum(lost) / len(lost) < 1.03 and sorted(lost)[-len(lost) // 10] < 1.06


def test_a_chip_without_a_table_gets_the_nearest_and_the_log_says_so(caplog):
    cost.paces_of.cache_clear()
    with caplog.at_level(logging.INFO, "minigemm"):
        paces = cost.paces_of("NVIDIA H100 80GB HBM3")
    assert paces.rate == pytest.approx(H200.rate * hopper.H100.bandwidth / hopper.H200.bandwidth)
    assert paces.pace == H200.pace
    assert "no paces were measured on NVIDIA H100 80GB HBM3" in caplog.text


def test_a_wrong_raster_costs_more():
    first, rows_first = (c for c in LEGAL if cost.tile_name(c) == "s11_overlapped 64x128")
    assert rows_first == replace(first, raster=8, raster_m=True)
    machine = cost.emulated()
    for m, better, worse in ((256, rows_first, first), (4096, first, rows_first)):
        product = Product(m, 4096, 7168)
        assert cost.cost(product, better, machine) < cost.cost(product, worse, machine)
