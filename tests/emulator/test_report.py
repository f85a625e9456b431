"""Reports as text, as HTML and as data."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from minigemm import emulator
from minigemm.emulator.watch.report import Counters, Event, Hazard, LineCount, Report, Request
from tests.emulator.nvrtc import kernel

PLACE = emulator.Location("/somewhere/tile.cuh", 12, 3, emulator.Location("/somewhere/kernel.cu", 40))


def report(**changes) -> Report:
    counters = Counters(
        instructions=1000, instructions_by_class={"fma": 600, "load shared": 300, "control": 100},
        global_load_bytes=4096, global_requests=32, global_sectors=128,
        shared_load_bytes=2048, shared_requests=16, shared_wavefronts=48, bank_conflicts=32,
        tma_transactions=2, tma_load_bytes=8192, barriers=4,
    )  # fmt: skip
    what, parties = "thread 1 reads <what> thread 2 writes", ("thread 1", "thread 2")
    fields = {
        "kernel": "gemm<8>", "grid": (4, 2, 1), "block": (128, 1, 1), "schedule": "late",
        "hazards": [Hazard("race", what, PLACE, 77, 1028, parties, "put a barrier", 5)],
        "counters": counters,
        "lines": [
            LineCount(PLACE, 9, "shared", False, 16, 2048, 0, 48, 16, 3),
            LineCount(None, 21, "global", True, 32, 4096, 128),
        ],
        "events": [Event(3, "barrier", "cta", "barrier 0: 4 threads met", PLACE)],
        "seconds": 0.25, "translate_seconds": 1.5, "origin": "compiled",
        "requests": [Request(4, PLACE, "shared", 4, False, (0, 1), (1024, 1028))],
    }  # fmt: skip
    return Report(**(fields | changes))


def test_text():
    text = str(report())
    for words in (
        "gemm<8>  grid 4x2, block 128, schedule late",
        "250.0 ms, translation 1.50 s (compiled)",
        "1,000 (fma 60%, load shared 30%, control 10%)",
        "loads 4.0 KiB, stores 0 B; 4.00 sectors a request",
        "3.00 wavefronts a request, 32 bank conflicts",
        "8.0 KiB",
        "2 transactions",
        "race at tile.cuh:12, called at kernel.cu:40 (seen 5 times)",
        "fix:  put a barrier",
    ):
        assert words in text
    assert all(len(line) < 160 for line in text.splitlines())


def test_what_did_not_happen_is_left_out():
    text = str(report(hazards=[], counters=Counters(), lines=(), events=[]))
    assert "none found" in text
    assert not any(word in text for word in ("TMA", "shared", "global", "barriers"))
    assert "not looked for" in str(report(hazards=[], looked_for_hazards=False))


def test_hazard_text():
    assert str(report().hazards[0]).splitlines() == [
        "race at tile.cuh:12, called at kernel.cu:40 (seen 5 times)",
        "  what: thread 1 reads <what> thread 2 writes",
        "  who:  thread 1 and thread 2",
        "  fix:  put a barrier",
    ]
    assert str(Hazard("race", "m", None, 7, 0, (), "")).splitlines() == ["race at PTX line 7", "  what: m"]


def test_line_text():
    conflicts, stores = report().lines
    assert str(conflicts).endswith(
        "shared load: 16 requests, 2.0 KiB, 3.00 wavefronts a request, up to 3-way conflicts"
    )
    assert str(stores) == "PTX line 21  global store: 32 requests, 4.0 KiB, 4.00 sectors a request"
    assert LineCount(None, 1, "global", False).sectors_per_request == 0


def test_missing_counters_are_zero():
    counters = Counters(instructions=3)
    assert (
        counters["tma_load_bytes"] == 0
        and counters["instructions_by_class"] == {}
        and dict(counters) == {"instructions": 3}
    )


class Balanced(HTMLParser):
    """Every tag is closed in order; collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html():
    html = report()._repr_html_()
    page = Balanced(html)
    assert {tag for tag, _ in page.seen} <= {
        "style",
        "div",
        "header",
        "b",
        "table",
        "tr",
        "th",
        "td",
        "br",
        "i",
        "code",
        "details",
        "summary",
        "pre",
    }
    assert "http" not in html and "url(" not in html
    for words in (
        "gemm<8>",
        "thread 1 reads <what> thread 2 writes",
        "up to 3-way conflicts",
        "PTX line 21",
        "barrier 0: 4 threads met",
    ):
        assert words in page.text


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x>', "a & b <b>"])
def test_html_escapes(evil):
    place = emulator.Location(evil, 1)
    html = report(
        kernel=evil,
        schedule=evil,
        origin=evil,
        hazards=[Hazard(evil, evil, place, 1, 0, (evil,), evil)],
        events=[Event(1, evil, evil, evil, place)],
        lines=[LineCount(place, 1, evil, True, 1, 4, 1)],
        counters=Counters(instructions=1, instructions_by_class={evil: 1}),
    )._repr_html_()
    page = Balanced(html)
    assert not {"script", "img"} & {tag for tag, _ in page.seen}
    assert all(set(attrs) <= {"class", "style", "title"} for _, attrs in page.seen)
    assert evil in page.text


def test_long_reports_are_cut():
    many = report(
        lines=[LineCount(None, i, "global", True, 1, 4, 1) for i in range(500)],
        events=[Event(i, "k", "a", "d") for i in range(4000)],
    )
    assert "488 more lines" in many._repr_html_() and "3988 more events" in many._repr_html_()
    assert len(many._repr_html_()) < 20_000


def test_data():
    data = json.loads(json.dumps(report(schedule=np.int64(3)).to_dict()))
    assert data["schedule"] == 3 and data["grid"] == [4, 2, 1] and data["counters"]["bank_conflicts"] == 32
    assert data["hazards"][0]["location"]["inlined_at"]["line"] == 40
    assert data["lines"][0]["bank_conflicts"] == 32 and data["lines"][0]["wavefronts_per_request"] == 3
    assert data["requests"][0]["addresses"] == [1024, 1028]


def test_of_a_launch():
    a, b = torch.ones(128, 32), torch.ones(128, 32)
    seen = emulator.launch(
        kernel("tiled_sum", ("    __syncthreads();  // everybody has read it\n", "\n")),
        (2, 2),
        256,
        [a, b, torch.empty(128, 128), 128, 32],
    )
    json.dumps(seen.to_dict())
    page = Balanced(seen._repr_html_())
    assert "race" in page.text and "race at tiled_sum.cu:" in str(seen)
    assert seen.counters["shared_load_bytes"] == 4 * 256 * 32 * 8 * 4
    clean = emulator.launch(
        kernel("tiled_sum"), (2, 2), 256, [a, b, torch.empty(128, 128), 128, 32], hazards=False
    )
    assert "not looked for" in str(clean)
