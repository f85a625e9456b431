"""tune: what it times and fits, and what is kept of it. The times are made up without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from minigemm import cli, store
from minigemm.bench import tune, workloads
from minigemm.plan import choose, cost
from minigemm.plan.cost import Machine

H200 = cost.paces_of("NVIDIA H200")
GPU = "NVIDIA H20"
FIELDS = {name: getattr(H200, name) for name in H200.__dataclass_fields__}
RESULTS = {**FIELDS, "rate": 1234.5, "machine": {"gpu": GPU}, "rows": [{"us": 1.0}]}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(store, "_given_up", set())
    cost.paces_of.cache_clear()
    yield tmp_path
    cost.paces_of.cache_clear()


def rows_of(machine: Machine) -> list[dict]:
    """Return the rows that a chip would give whose times are the model's own."""
    found = []
    for work in tune.grid()[::4]:
        for config in choose.candidates()[::3]:
            if cost.wrong_raster(work.product, config):
                continue
            sizes = {**work.sizes(), "rows": work.rows, "tiles": cost.tiles_of(work.product, config)}
            stage, _, tile = cost.tile_name(config).partition(" ")
            block_m, block_n = map(int, tile.split("x"))
            us = cost.cost(work.product, config, machine).ns / 1e3
            found.append({**sizes, "stage": stage, "block_m": block_m, "block_n": block_n, "us": us})
    return found


@pytest.mark.parametrize("sms", [78, 132])
def test_the_fit_predicts_the_times_that_it_was_given(sms):
    """On a chip with any number of SMs. Masked counts are those of a workload, not those expected."""
    machine = Machine(H200, sms)
    rows = [row for row in rows_of(machine) if row["layout"] == "dense"]
    fitted = tune.fit(rows, sms)
    assert fitted["rate"] == pytest.approx(H200.rate, rel=0.05)
    assert set(fitted["pace"]) == set(fitted["tile"]) == {tune._name(row) for row in rows}
    paces = cost.Paces.of({**FIELDS, **fitted})
    apart = []
    for m, n, k in ((64, 4096, 7168), (512, 7168, 2048), (4096, 4096, 4096)):
        product = workloads.dense(m, n, k).product
        able = [config for config in choose.candidates()[::3] if cost.tile_name(config) in fitted["pace"]]
        able = [config for config in able if not cost.wrong_raster(product, config)]
        wanted = [cost.cost(product, config, machine).ns for config in able]
        # A tile that never comes near the best of a product counts for little.
        near = [config for config, ns in zip(able, wanted, strict=True) if ns < 3 * min(wanted)]
        for config in near:
            found = cost.cost(product, config, Machine(paces, sms)).ns
            apart.append(abs(found / cost.cost(product, config, machine).ns - 1))
    assert len(apart) > 15 and sum(each < 0.02 for each in apart) > 0.9 * len(apart)


def test_the_grid_is_the_same_each_time():
    grid = tune.grid()
    assert grid == tune.grid() and len(grid) > 300
    assert all(work.operations <= tune.LARGEST for work in grid)


def test_what_was_measured_on_a_gpu_is_used_there_from_then_on():
    assert cost.paces_of(GPU).rate != 1234.5
    cost.keep(RESULTS)
    assert cost.paces_of(GPU).rate == 1234.5 and cost.paces_of("NVIDIA H200").rate == H200.rate
    cost.paces_of.cache_clear()  # another process
    assert cost.paces_of(GPU).rate == 1234.5


@pytest.mark.parametrize(
    "change",
    [
        {"format": 0},
        {"machine": {"gpu": "NVIDIA H200"}},
        {"machine": None},
        {"rate": "fast"},
        {"rate": 0},
        {"pace": {}},
        {"tile": 3},
        {"start": {"s11_overlapped": 1.0}},
        {"alone": float("nan")},
    ],
    ids=str,
)
def test_an_entry_that_is_of_no_use_is_passed_over(change):
    held = {"format": cost.FORMAT, **{name: value for name, value in RESULTS.items() if name != "rows"}}
    store.update(cost._entry(GPU), lambda earlier: json.dumps({**held, **change}).encode())
    with pytest.warns(UserWarning, match="is passed over: .*; tune makes it anew"):
        paces = cost.paces_of(GPU)
    assert paces.pace == H200.pace and paces.rate != 1234.5


def test_a_damaged_entry_is_passed_over(cache):
    cost.keep(RESULTS)
    path = cache / cost._entry(GPU)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged"):
        assert cost.paces_of(GPU).pace == H200.pace


def test_tiles_that_were_not_timed_keep_their_paces():
    rows = [row for row in rows_of(Machine(H200)) if row["stage"] == "s12_swapped"][:40]
    identity = {"gpu": GPU, "driver": "580", "cuda": "13.0", "torch": "2.11"}
    results = tune._results(identity, rows, Machine(H200))
    timed = {tune._name(row) for row in rows}
    assert all(results["pace"][name] == H200.pace[name] for name in H200.pace if name not in timed)
    assert cost.Paces.of(results).measured_on.startswith("NVIDIA H20, driver 580")


def test_paces_of_fewer_tiles_leave_the_others_out():
    few = {name: value for name, value in H200.pace.items() if name.startswith("s11")}
    paces = replace(H200, pace=few, tile={name: H200.tile[name] for name in few})
    menu = choose.menu(workloads.dense(8, 2112, 7168).product, Machine(paces))
    assert menu and all(cost.tile_name(config) in few for config in menu)


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["tune"]) != 0
    assert "tune needs a Hopper GPU" in capsys.readouterr().err
    assert cli.main(["tune", "--seconds", "0"]) != 0
    assert "expected --seconds above 0" in capsys.readouterr().err
    assert cli.main(["tune", "--json", "/nowhere/at/all.json"]) != 0
    assert "there is no folder /nowhere/at" in capsys.readouterr().err
