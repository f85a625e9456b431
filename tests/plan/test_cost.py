"""The choice of a tile: always legal, always the same, and sensible."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm.compiler import jit
from minigemm.kernels import s10_grouped
from minigemm.plan import cost, prepared
from minigemm.plan.cost import Machine, Tile, Work
from minigemm.types import Problem

H100, H200 = Machine(), Machine(memory_rate=2430)
MACHINES = st.builds(Machine, st.integers(1, 200), st.integers(1000, 10000), st.integers(200, 4000))
WORKS = st.builds(
    Work, st.integers(1, 20000), st.integers(1, 40000), st.integers(1, 1100).map(lambda k: 16 * k), st.sampled_from(cost.LAYOUTS), st.integers(1, 300),
    st.sampled_from((1, 64, 128)), st.sampled_from((2, 4)),
)  # fmt: skip


def fit(tile):
    return prepared.fitting(tile, 4096, 4096, False, False)


LEGAL = list(cost.candidates(fit))


def test_every_candidate_is_legal_and_has_as_many_stages_as_fit():
    assert len(LEGAL) > 40
    for tile, config in LEGAL:
        assert tile == tile_of(config)
        assert s10_grouped.is_legal(config, Problem(4096, 4096, 4096))
        more = config.stages + config.splits
        assert more > prepared.MOST_STAGES or not s10_grouped.is_legal(
            replace(config, stages=more), Problem(4096, 4096, 4096)
        )


@given(WORKS, MACHINES)
def test_the_choice_is_legal_and_the_same_again(work, machine):
    config = cost.choose_config(work, machine.sms, fit, machine)
    assert s10_grouped.is_legal(config, Problem(work.m, work.n, work.k))
    assert config == cost.choose_config(work, machine.sms, fit, machine)
    assert config == cost.choose(reversed(LEGAL), work, machine)[1] or cost.cost(
        work, tile_of(config), machine
    ) == cost.cost(work, cost.choose(reversed(LEGAL), work, machine)[0], machine)


def tile_of(config):
    return Tile(config.block_m, config.block_n, config.consumers, config.splits)


@given(WORKS, MACHINES)
def test_nothing_beats_the_choice(work, machine):
    """No other tile has as few waves, as little traffic of every kind, and less time."""
    chosen = cost.cost(work, cost.choose(LEGAL, work, machine)[0], machine)
    for tile, _ in LEGAL:
        other = cost.cost(work, tile, machine)
        assert not (
            other.waves <= chosen.waves and other.l2_bytes <= chosen.l2_bytes and other.cycles < chosen.cycles
        )


@given(WORKS, MACHINES)
def test_more_waves_need_a_reason(work, machine):
    """Of tiles of one size and one traffic, the one with fewer waves is taken."""
    tile = cost.choose(LEGAL, work, machine)[0]
    chosen = cost.cost(work, tile, machine)
    for other, _ in LEGAL:
        same_size = other.block_m * other.block_n == tile.block_m * tile.block_n and (
            other.consumers,
            other.splits,
        ) == (tile.consumers, tile.splits)
        there = cost.cost(work, other, machine)
        if same_size and there.l2_bytes == chosen.l2_bytes and there.shared_bytes == chosen.shared_bytes:
            assert chosen.waves <= there.waves


@given(WORKS, MACHINES, st.sampled_from(LEGAL))
def test_more_work_never_costs_less(work, machine, choice):
    tile = choice[0]
    base = cost.cost(work, tile, machine)
    for field in ("m", "n", "k"):
        more = cost.cost(replace(work, **{field: getattr(work, field) + 256}), tile, machine)
        assert more.cycles >= base.cycles and more.waves >= base.waves and more.l2_bytes >= base.l2_bytes


@given(WORKS, MACHINES, st.sampled_from(LEGAL))
def test_a_better_machine_is_never_slower(work, machine, choice):
    base = cost.cost(work, choice[0], machine).cycles
    for better in (
        replace(machine, memory_rate=2 * machine.memory_rate),
        replace(machine, l2_rate=2 * machine.l2_rate),
    ):
        assert cost.cost(work, choice[0], better).cycles <= base


@given(WORKS, MACHINES)
def test_integers_only(work, machine):
    assert all(isinstance(value, int) for value in vars(cost.cost(work, LEGAL[0][0], machine)).values())


@given(WORKS)
def test_tiles_are_counted(work):
    for tile, _ in LEGAL[::9]:
        across = -(-work.n // tile.block_n)
        full = -(-work.m // tile.block_m)
        tiles = cost.tiles_of(work, tile)
        if work.layout == "dense":
            assert tiles == full * across
        elif work.layout == "masked":
            fuller = -(-(work.m + work.m // 6) // tile.block_m)  # half of the groups, or the only one
            assert tiles == (work.groups // 2 * full + (work.groups - work.groups // 2) * fuller) * across
        else:
            assert full * across <= tiles <= (full + work.groups) * across


@pytest.mark.parametrize(
    "m, n, k, best",
    [(4096, 4096, 7168, (256, 128)), (4096, 7168, 2048, (256, 128)), (4096, 2112, 7168, (128, 192))],
)
def test_large_problems_get_a_tile_within_4_per_cent_of_the_fastest_when_timed(m, n, k, best):
    tile, _ = cost.choose(LEGAL, Work(m, n, k), H100)
    assert (tile.block_m, tile.block_n) == best


@pytest.mark.parametrize(
    "m, n, k", [(64, 2112, 7168), (64, 4096, 7168), (64, 7168, 2048), (128, 7168, 16384)]
)
def test_few_rows_take_one_wave(m, n, k):
    tile, _ = cost.choose(LEGAL, Work(m, n, k), H100)
    assert cost.cost(Work(m, n, k), tile, H100).waves == 1 and tile.block_m <= 128


@pytest.mark.parametrize("sms", [1, 20, 78, 108, 132, 144])
@pytest.mark.parametrize("layout", cost.LAYOUTS)
def test_every_number_of_sms_has_its_choice(sms, layout):
    for m in (1, 64, 500, 4096):
        work = Work(m, 4096, 2048, layout, groups=8)
        tile = tile_of(cost.choose_config(work, sms, fit, H100))
        assert cost.cost(work, tile, Machine(sms)).waves == -(-cost.tiles_of(work, tile) // sms)


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
@pytest.mark.parametrize("layout, groups", [("dense", 1), ("contiguous", 8), ("masked", 64)])
def test_any_m_compiles_few_kernels(n, k, layout, groups):
    """At most 12 for one n and k, and what the menu of them costs against the best of all tiles."""
    work = Work(0, n, k, layout, groups)
    menu = cost.menu(fit, work, H100)
    assert 1 <= len(menu) <= cost.MENU_LIMIT
    for m in (*range(1, 300, 13), *range(300, 8193, 411)):
        there = replace(work, m=m)
        mine = cost.cost(there, cost.choose(menu, there, H100)[0], H100).cycles
        best = cost.cost(there, cost.choose(LEGAL, there, H100)[0], H100).cycles
        assert mine <= 1.2 * best, (m, mine, best)


def test_kernels_of_a_call_with_any_m():
    """Through the plan, with the device's SMs in the config."""
    device = torch.device("cpu")
    for n, k in ((2112, 7168), (4096, 7168), (7168, 2048)):
        found = {prepared.config_for(prepared.Call("dense", m, n, k), device) for m in range(1, 8193, 61)}
        assert len(found) <= 12 and found <= set(
            prepared.configs_for(prepared.Call("dense", 0, n, k), device)
        )


@pytest.mark.slow
@pytest.mark.parametrize("out_fp32, accumulate", [(False, False), (True, True)])
def test_every_candidate_compiles_without_spills_or_warnings(out_fp32, accumulate):
    every = list(cost.candidates(lambda tile: prepared.fitting(tile, 4096, 4096, out_fp32, accumulate)))
    for number, (tile, config) in enumerate(
        every[:: 1 + 3 * accumulate]
    ):  # all of the plain ones, the layouts taking turns
        config = replace(config, layout=number % 4)
        log = jit.build(
            s10_grouped.stage.source, config, name="s10_grouped", kernel=s10_grouped.stage.kernel
        ).log
        assert re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
        ) == [("0", "0", "0")], tile
        assert not re.search("C7[0-9]{3}|warning", log), (tile, log)


def test_batch_invariance_leaves_split_sums_out():
    work = Work(0, 4096, 7168)
    assert any(tile.splits > 1 for tile, _ in cost.menu(fit, work, H100))
    assert all(tile.splits == 1 for tile, _ in cost.menu(fit, work, H100, batch_invariant=True))
    assert cost.choose_config(replace(work, m=64), 132, fit).splits > 1
    assert cost.choose_config(replace(work, m=64), 132, fit, batch_invariant=True).splits == 1


def test_no_choices():
    with pytest.raises(ValueError, match="choices: expected at least one legal config"):
        cost.choose_config(Work(1, 1, 16), 132, lambda tile: None)


def test_nothing_to_do_costs_nothing():
    assert cost.cost(Work(0, 128, 128), LEGAL[0][0]) == cost.Cost(0, 0, 0, 0)


def test_no_torch():
    tree = ast.parse(Path(cost.__file__).read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "collections.abc", "dataclasses", "typing"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
