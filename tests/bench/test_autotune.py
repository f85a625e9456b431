"""autotune: what is timed, who wins, what stays when it ends early. The clock is made up without a GPU."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import minigemm
from minigemm import checks, quantize, store
from minigemm.bench import autotune as module
from minigemm.plan import ahead, choose, prepared, tuned
from minigemm.types import Layout, Product
from minigemm.verify.judge import relative_error

CPU = torch.device("cpu")
PLACE = {"gpu": "NVIDIA H100 80GB HBM3", "sms": 132, "driver": "580.1", "kernels": "of the test", "format": 1}
SHAPE = (64, 2112, 7168)
PRODUCT = Product(*SHAPE)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(store, "_given_up", set())
    prepared.clear()
    yield
    prepared.clear()


@pytest.fixture
def clock(monkeypatch, tmp_path):
    """The emulator's device plays a GPU. Nothing compiles or runs; a config takes what `us` says of it."""
    seen = SimpleNamespace(us=lambda config: 10.0, timed=[], called=[], compiled=[], bits=lambda config: 0.0)
    d = torch.zeros(2, 8)

    def gpu_seconds(calls, device, rounds):
        seen.timed.append(list(calls))
        return {config: [seen.us(config) * 1e-6] * rounds for config in calls}

    def call(config):
        seen.called.append(config)
        d.fill_(seen.bits(config))

    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned, "about", lambda device: PLACE)
    monkeypatch.setattr(module, "_refuse", lambda where: None)
    monkeypatch.setattr(module, "gpu_seconds", gpu_seconds)
    monkeypatch.setattr(module, "_call_of", lambda product, where: (d, call))
    monkeypatch.setattr(ahead, "compile_all", lambda configs, *rest: seen.compiled.extend(configs))
    prepared.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield seen


def tune(*shapes, **keywords):
    return minigemm.autotune(shapes or [SHAPE], **{"device": "cpu", "progress": False, **keywords})


def test_the_fastest_wins_and_calls_get_it(clock):
    ranked = [config for config, _ in choose.ranked(PRODUCT, CPU)]
    clock.us = lambda config: 7.0 if config == ranked[2] else 10.0
    (found,) = tune()
    assert (found.config, found.us) == (ranked[2], pytest.approx(7.0))
    assert (found.predicted, found.predicted_us) == (ranked[0], pytest.approx(10.0))
    assert found.product == PRODUCT and found.gain == pytest.approx(10 / 7)
    assert choose.config_for(PRODUCT, CPU) == ranked[2]
    prepared.clear()  # a new process
    assert choose.config_for(PRODUCT, CPU) == ranked[2]


def test_what_is_timed(clock):
    """Those whose prediction is near the best, four at least; then the neighbours of the fastest."""
    ranked = choose.ranked(PRODUCT, CPU)
    near = [config for config, us in ranked if us <= module.NEAR * ranked[0][1]]
    expected = max(near, [config for config, _ in ranked[: module.LEAST]], key=len)
    clock.us = lambda config: 7.0 if config == ranked[1][0] else 10.0
    (found,) = tune()
    first, second = clock.timed
    assert first == expected == clock.compiled
    assert second[:2] == [ranked[0][0], ranked[1][0]] and 2 < len(second) <= 6
    for other in second[2:]:
        assert replace(other, raster=1, raster_m=False, stages=2) == replace(
            ranked[1][0], raster=1, raster_m=False, stages=2
        )
        assert other not in first
    assert set(found.timed) == {*first, *second} and clock.called == first + second


def test_a_neighbour_may_win(clock):
    clock.us = lambda config: 7.0 if config.raster_m else 10.0
    (found,) = tune()
    assert found.config.raster_m and choose.config_for(PRODUCT, CPU) == found.config
    assert found.config in choose.configs_for(PRODUCT._replace(m=0), CPU)


def test_of_equals_the_prediction_wins(clock):
    """Up to the noise of the clock."""
    ranked = [config for config, _ in choose.ranked(PRODUCT, CPU)]
    clock.us = lambda config: 10.0 if config == ranked[0] else 9.95
    (found,) = tune()
    assert found.config == ranked[0] and choose.winner_for(PRODUCT, CPU) is not None


def test_only_times_of_one_run_are_compared(clock):
    """The clock of the second run is faster; who was fast in the first alone wins nothing."""
    ranked = [config for config, _ in choose.ranked(PRODUCT, CPU)]
    clock.us = lambda config: {ranked[1]: 9.0, ranked[2]: 9.5}.get(config, 10.0) + 5 * (len(clock.timed) > 1)
    (found,) = tune()
    assert found.config == ranked[1] and found.us == pytest.approx(14.0)


def test_different_bits_end_it_without_a_winner(clock):
    tune((64, 576, 512))
    wrong = choose.ranked(PRODUCT, CPU)[1][0]
    clock.bits = lambda config: float(config == wrong)
    with pytest.raises(RuntimeError, match=r"two configs give different bits, s1._\w+.Config\(.* and s1._"):
        tune()
    assert choose.winner_for(PRODUCT, CPU) is None
    assert choose.winner_for(Product(64, 576, 512), CPU) is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.cuda.OutOfMemoryError()])
def test_a_run_that_is_cut_off_keeps_what_it_has(clock, error):
    def us(config):
        if len(clock.timed) > 4:
            raise error
        return 7.0 if config.raster_m else 10.0

    clock.us = us
    shapes = [(64, n, 512) for n in (512, 1024, 2048)]
    with pytest.raises(type(error)):
        tune(*shapes)
    prepared.clear()
    kept = [choose.winner_for(Product(*shape), CPU) is not None for shape in shapes]
    assert kept == [True, True, False]


def test_each_shape_once_in_order(clock, capsys):
    found = tune((64, 512, 512), (128, 512, 512), (64, 512, 512))
    assert [each.product.m for each in found] == [64, 128]
    assert tune((64, 512, 512), progress=True) and "1/1" in capsys.readouterr().out
    assert minigemm.autotune([], device="cpu", progress=False) == []


@pytest.mark.parametrize("keywords, changes", [
    ({}, {}),
    ({"out_dtype": torch.float32, "accumulate": True}, {"out_fp32": True, "accumulate": True}),
    ({"layout": "contiguous", "groups": 4}, {"layout": Layout.CONTIGUOUS, "groups": 4}),
    ({"layout": "contiguous", "groups": 4, "use_psum_layout": True}, {"layout": Layout.PREFIX_SUMS, "groups": 4}),
    ({"layout": "masked", "groups": 4}, {"layout": Layout.MASKED, "groups": 4, "m": 4096, "expected_m": 500}),
])  # fmt: skip
def test_winners_are_for_the_calls_product(clock, keywords, changes):
    clock.us = lambda config: 7.0 if config.raster_m else 10.0
    (found,) = tune((500, 512, 512), **keywords)
    called = Product(500, 512, 512)._replace(**changes)
    assert choose.config_for(called, CPU) == found.config


def test_a_captured_stream_is_refused(monkeypatch, clock):
    monkeypatch.undo()
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda where: warnings.catch_warnings())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: entered.append(1) or True)
    with pytest.raises(RuntimeError, match="autotune: a CUDA graph is being captured"):
        module._refuse(torch.device("cuda", 0))
    assert entered


def test_importing_plan_needs_no_bench():
    code = "import sys, minigemm.api, minigemm.plan.explained; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in run.stdout.split() if name.startswith(("minigemm.bench", "rich"))]


# --- the operands


@pytest.mark.parametrize("m", [1, 64, 127, 128, 500, 1000, 4096])
@pytest.mark.parametrize("groups", [1, 3, 8, 64])
@pytest.mark.parametrize("alignment", [1, 64, 128])
def test_rows_of_contiguous_groups(m, groups, alignment):
    """Ids and prefix sums that the call itself accepts, and that say the same."""
    ids = Product(m, 64, 64, Layout.CONTIGUOUS, groups, alignment=alignment)
    sums = ids._replace(layout=Layout.PREFIX_SUMS)
    counts = module._workload(ids).counts
    assert counts == module._workload(sums).counts and len(counts) == groups
    index, ends = module._index(ids, counts), module._index(sums, counts)
    checks.check_ids(index, groups, alignment)
    checks.check_prefix_sums(ends, m, alignment)
    assert [int((index == group).sum()) for group in range(groups)] == list(counts)
    assert sum(counts) > 0 and (groups > 1 or counts == (m,))
    for group, count in enumerate(counts):
        if count:
            assert int((index == group).nonzero()[-1]) + 1 == ends[group]


@pytest.mark.parametrize("layout, groups, prefix_sums", [
    ("dense", 1, False), ("contiguous", 2, False), ("contiguous", 2, True), ("masked", 2, False),
])  # fmt: skip
def test_what_runs_is_the_product(monkeypatch, layout, groups, prefix_sums):
    """On the emulator, with two configs."""
    monkeypatch.setattr(module.workloads, "MASKED_ROWS", 128)
    product = ahead.product_of(layout, groups, prefix_sums, torch.bfloat16, False)
    product = product._replace(m=130 if layout != "masked" else 20, n=24, k=144)
    seen = []

    def gpu_seconds(calls, device, rounds):
        for call in calls.values():
            call()
        return {config: [1e-6] * rounds for config in calls}

    monkeypatch.setattr(module, "gpu_seconds", gpu_seconds)
    d, call = module._call_of(product, CPU)
    configs = [config for config, _ in choose.ranked(product, CPU)[:2]]
    times = module.timed_alike(
        configs, d, float("nan"), lambda config: seen.append(config) or call(config), CPU, 3
    )
    assert times == dict.fromkeys(configs, pytest.approx(1.0)) and seen == configs * 2
    written = d.float().isfinite()
    assert written.all() if layout != "masked" else written.any() and not written.all()


# --- on a GPU


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch, tmp_path):
    """Two shapes are tuned. Their calls get the winners, from memory and from disk, and are right."""
    device = torch.device("cuda", torch.cuda.current_device())
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    prepared.clear()
    for m, n, k in (64, 512, 1024), (256, 384, 512):
        a = quantize.quantize(quantize.activations(m, k, device=device), "1x128")
        b = quantize.quantize(quantize.weights(n, k, device=device), "128x128")
        reference = quantize.reference(a, b)
        d = torch.empty(m, n, dtype=torch.bfloat16, device=device)
        minigemm.fp8_gemm_nt(a, b, d)  # is prepared under the prediction
        (found,) = minigemm.autotune([(m, n, k)], progress=False, rounds=5)
        product = Product(m, n, k)
        assert min(found.timed.values()) > 0 and found.gain > 0.98 and len(found.timed) >= module.LEAST
        for _ in range(2):
            assert choose.config_for(product, device) == found.config
            d.fill_(float("nan"))
            minigemm.fp8_gemm_nt(a, b, d)
            assert relative_error(d, reference) < 3e-3
            assert minigemm.explain(a, b).config == found.config
            prepared.clear()  # and once more from disk
    assert len(list((tmp_path / "cache").glob("*.tuned"))) == 1


@pytest.mark.gpu
def test_groups_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    prepared.clear()
    device = torch.device("cuda", torch.cuda.current_device())
    for layout, sums in (("contiguous", False), ("contiguous", True), ("masked", False)):
        options = {"layout": layout, "groups": 4, "use_psum_layout": sums}
        (found,) = minigemm.autotune([(256, 512, 512)], progress=False, rounds=3, **options)
        product = ahead.product_of(layout, 4, sums, torch.bfloat16, False)._replace(m=256, n=512, k=512)
        assert choose.config_for(product, device) == found.config
    (found,) = minigemm.autotune([(64, 512, 512)], progress=False, out_dtype=torch.float32, accumulate=True)
    assert found.config.out_fp32 and found.config.accumulate


@pytest.mark.gpu
def test_a_capture_on_a_gpu_is_refused():
    graph = torch.cuda.CUDAGraph()
    x = torch.zeros(4, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        with pytest.raises(RuntimeError, match="a CUDA graph is being captured"):
            minigemm.autotune([SHAPE], progress=False)
        x += 1
    graph.replay()
    assert x[0] == 1
