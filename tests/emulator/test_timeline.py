"""The cycle model: what follows from a kernel, not from the picture of it."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from minigemm import emulator, observe, quantize
from minigemm.emulator import Rates, Timeline
from minigemm.kernels import s04_wgmma, s05_pipelined, s06_warp_specialized


def run(module, config, k=1536, timeline=True):
    a = quantize.quantize(quantize.activations(128, k), "tensor")
    b = quantize.quantize(quantize.weights(128, k), "tensor")
    with observe(timeline=timeline) as seen:
        d = module.gemm(a, b, config)
    return d, seen[0]


def consumers(warps):
    return [f"warp {w}" for w in range(warps)]


def test_half_the_ring_makes_the_consumers_wait_more():
    shares = []
    for stages in (2, 4):
        _, report = run(s06_warp_specialized, s06_warp_specialized.Config(128, 128, stages, 2))
        assert not report.hazards
        shares.append(report.timeline.share("waiting", *consumers(8)))
    assert shares[0] > shares[1] + 0.05


def test_a_ring_keeps_the_tensor_core_busier():
    _, single = run(s04_wgmma, s04_wgmma.Config(128, 128))
    _, ring = run(s05_pipelined, s05_pipelined.Config(128, 128, 3))
    assert ring.timeline.share("busy", "tensor core") > 1.3 * single.timeline.share("busy", "tensor core")
    assert ring.timeline.end < single.timeline.end


def test_slower_memory_takes_longer_and_the_bits_stay():
    config = s05_pipelined.Config(128, 128, 3)
    d, fast = run(s05_pipelined, config)
    e, slow = run(s05_pipelined, config, timeline=Rates(tma_bandwidth=12.0))
    assert torch.equal(d, e)
    assert slow.timeline.end > 2 * fast.timeline.end
    assert slow.timeline.rates["tma_bandwidth"] == 12.0


def test_what_a_timeline_holds():
    _, report = run(s06_warp_specialized, s06_warp_specialized.Config(128, 128, 3, 2), k=512)
    timeline = report.timeline
    assert timeline.unit == "cycles" and timeline.source == "model"
    assert timeline.agents == [*consumers(12), "tensor core", "TMA"]
    busy = [i for i in timeline.intervals if i.agent == "tensor core"]
    # 4 k-steps, 4 products each, 2 consumers: 64 cycles a product of 128 columns
    assert sum(i.end - i.start for i in busy) == pytest.approx(4 * 4 * 2 * 64)
    loads = [i for i in timeline.intervals if i.agent == "TMA" and i.what.startswith("load")]
    assert len(loads) == 4 * 2 and all(i.end - i.start >= 600 for i in loads)
    for agent in (*consumers(12), "tensor core"):
        mine = sorted((i for i in timeline.intervals if i.agent == agent), key=lambda i: i.start)
        assert all(x.end <= y.start + 1e-9 for x, y in pairwise(mine)), agent
    waits = {i.what.split(" ")[0] for i in timeline.intervals if i.agent == "warp 0" and i.state == "waiting"}
    assert {"mbarrier", "WGMMA"} <= waits
    assert all(".cu" in i.line for i in timeline.intervals if i.state == "waiting")


def test_it_is_data():
    _, report = run(s05_pipelined, s05_pipelined.Config(64, 64, 2), k=256)
    told = json.loads(json.dumps(report.timeline.to_dict()))
    assert Timeline.from_dict(told).to_dict() == report.timeline.to_dict()
    intervals = [
        {"agent": "warp 0", "start": 0.0, "end": 30.0, "state": "busy"},
        {"agent": "warp 0", "start": 30.0, "end": 40.0, "state": "waiting", "what": "mbarrier"},
    ]
    told = {"unit": "ns", "source": "measured", "agents": ["warp 0"], "intervals": intervals}
    measured = Timeline.from_dict(told)
    assert measured.share("waiting", "warp 0") == 0.25 and measured.end == 40


def test_only_who_asks_gets_one():
    a = quantize.quantize(torch.ones(64, 128), "tensor")
    with observe() as seen:
        s05_pipelined.gemm(a, a)
    assert seen[0].timeline is None


def test_wgmma_s_rate_by_shape():
    rates = Rates()
    assert rates.wgmma(256) == 128 and rates.wgmma(128) == 64
    assert rates.wgmma(8) == (64 + 8) * 32 / 128  # narrow tiles: the bytes of a take longer than the products


def test_fast_sums_are_close_and_not_the_hardware_s():
    a = quantize.quantize(quantize.activations(64, 2048), "tensor")
    b = quantize.quantize(quantize.weights(64, 2048), "tensor")
    with observe(fast=True, hazards=False):
        fast = s06_warp_specialized.gemm(a, b, out_dtype=torch.float32)
    exact = s06_warp_specialized.gemm(a, b, out_dtype=torch.float32)
    reference = quantize.reference(a, b)
    assert (fast - reference).norm() < 1e-5 * reference.norm()
    assert 1e-4 * reference.norm() < (exact - reference).norm() < 5e-3 * reference.norm()


def test_a_deadlock_leaves_its_report(tmp_path):
    text = s06_warp_specialized.stage.source.read_text().replace("4 * CONSUMERS);", "4 * CONSUMERS + 1);")
    a = quantize.quantize(torch.ones(64, 1024), "tensor")
    mine = tmp_path / "mine.cu"
    mine.write_text(text)
    with observe(timeline=True) as seen, pytest.raises(emulator.Deadlock) as error:
        s06_warp_specialized.gemm(a, a, s06_warp_specialized.Config(64, 64, 2, 1), source=mine)
    assert seen[0] is error.value.report and seen[0].events and seen[0].counters["instructions"] > 0
    assert any(i.state == "busy" for i in seen[0].timeline.intervals)
