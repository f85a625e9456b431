"""The picture of a timeline against intervals that are added up here, made by hand and taken from a real
kernel."""

from __future__ import annotations

import re
import warnings

import pytest

import minigemm
from minigemm import quantize, views
from minigemm.emulator import Timeline
from minigemm.emulator.watch.timeline import Interval
from minigemm.kernels import s03_tma, s06_warp_specialized

BY_HAND = Timeline(
    "ns",
    "measured",
    ["warp 0", "warp 4", "tensor core", "TMA"],
    [
        Interval("warp 0", 0, 10, "busy", "instructions"),
        Interval("warp 0", 10, 70, "waiting", "mbarrier 0x8400"),
        Interval("warp 0", 70, 100, "waiting", "WGMMA"),
        Interval("warp 4", 0, 40, "waiting", "mbarrier 0x8408"),
        Interval("tensor core", 70, 95, "busy", "warpgroup 0"),
        Interval("TMA", 0, 50, "busy", "load 128 bytes to 0x400"),
        Interval("TMA", 20, 70, "busy", "load 128 bytes to 0x480"),
    ],
)


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def report():
    a = quantize.quantize(quantize.activations(128, 512))
    b = quantize.quantize(quantize.weights(64, 512))
    with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
        s06_warp_specialized.gemm(a, b, s06_warp_specialized.Config(128, 64, stages=2))
    return seen[0]


def test_a_measured_timeline_by_hand():
    picture = views.timeline(BY_HAND, names={"mbarrier 0x8408": "a slot"})
    assert picture._repr_png_().startswith(b"\x89PNG")
    # warp 4's warpgroup multiplies nothing, so it is the producer; copies that overlap are in flight once
    assert picture.text.splitlines() == [
        "Who is busy, who waits: 100 ns",
        "  consumer, warp 0: busy 10%, waiting 90% (for an mbarrier 60%, the tensor core 30%)",
        "  producer, warp 4: busy 0%, waiting 40% (for a slot 40%)",
        "  tensor core: busy 25%",
        "  TMA: busy 70%",
    ]
    assert picture.figure.axes[0].get_xlabel() == "ns, measured"
    zoomed = views.timeline(BY_HAND, start=60, end=80, rows="warps")
    assert "warp 0: busy 0%, waiting 100% (for an mbarrier 50%, the tensor core 50%)" in zoomed.text
    assert "tensor core: busy 50%" in zoomed.text and zoomed.figure.axes[0].get_xlim() == (60, 80)


def test_the_roles_of_a_kernel(report):
    line = report.timeline
    picture = views.timeline({"two slots": report})
    assert picture._repr_png_().startswith(b"\x89PNG")
    labels = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    wanted = [
        "consumer 0\nwarps 0 to 3",
        "consumer 1\nwarps 4 to 7",
        "producer\nwarps 8 to 11",
        "tensor core",
        "TMA",
    ]
    assert labels == wanted
    assert "not a measurement" in picture.figure.axes[0].get_xlabel()
    busy = sum(i.end - i.start for i in line.intervals if i.agent == "tensor core") / line.end
    assert f"tensor core: busy {busy:.0%}" in picture.text
    waits = views.waiting_for(report, "warp 0")
    full = {
        f"mbarrier {int(address):#x}"
        for e in report.events
        for address in re.findall(r"on mbarrier (\d+)", e.detail)
    }
    tiles = sum(
        i.end - i.start
        for i in line.intervals
        if i.agent == "warp 0" and i.what in full and i.state == "waiting"
    )
    assert waits["a tile that TMA brings"] == pytest.approx(tiles / line.end) and tiles > 0
    assert sum(waits.values()) == pytest.approx(line.share("waiting", "warp 0"))
    assert "an arrival on an mbarrier" in views.waiting_for(
        report, "warp 8"
    )  # the producer waits for empty slots


def test_bad_input(report):
    with minigemm.observe() as seen:
        small = quantize.quantize(quantize.weights(16, 32))
        s03_tma.gemm(small, small)
    for bad, options, message in (
        (
            seen[0],
            {},
            "run: expected a report of minigemm.observe.timeline=True.*a report without a timeline",
        ),
        ({}, {}, "run: expected at least one"),
        (Timeline(), {}, "run: expected a timeline with intervals, got an empty one"),
        ({"a": BY_HAND, "b": report}, {}, "run: expected timelines of one unit"),
        (report, {"rows": "threads"}, 'rows: expected "roles" or "warps", got \'threads\''),
        (report, {"start": 50, "end": 20}, "end: expected more than start"),
        (report, {"start": 1e9, "end": 2e9}, "start: nothing happens from 1e[+]09"),
    ):
        with pytest.raises(ValueError, match=message):
            views.timeline(bad, **options)
    with pytest.raises(ValueError, match="agents: expected some of warp 0, .*, got 'warp 99'"):
        views.waiting_for(report, "warp 99")
