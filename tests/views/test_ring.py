"""The ring of slots against what the number of tiles and slots says must have happened."""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings

import pytest

import minigemm
from minigemm import emulator, quantize, views
from minigemm.kernels import s01_naive, s04_wgmma, s05_pipelined, s06_warp_specialized
from minigemm.views.moments import BOTH, FILLING, FREE, FULL, READ, moments

TILES, SLOTS = 7, 3
CONFIG = s05_pipelined.Config(block_m=64, block_n=8, stages=SLOTS)


def report(module, config=None, source=None, k=TILES * 128, **how):
    """CTA 0 of a 64 x 8 product of so many tiles along k; what it went through up to a deadlock, where it
    comes to one."""
    a = quantize.quantize(quantize.activations(64, k), "tensor")
    b = quantize.quantize(quantize.weights(8, k), "tensor")
    with minigemm.observe(**how) as seen, contextlib.suppress(emulator.Deadlock):
        module.gemm(a, b, config, source=source)
    return seen[0]


@pytest.mark.parametrize(
    "how", [{"schedule": "late"}, {"schedule": "early"}, {"schedule": 3}, {"timeline": True}], ids=str
)
def test_every_tile_goes_through_its_slot_once(how):
    film = moments(report(s05_pipelined, CONFIG, **how))
    for tile in range(TILES):
        places = {number for moment in film for number, slot in enumerate(moment.slots) if tile in slot.tiles}
        assert places == {tile % SLOTS}
        states = [slot.state for moment in film for slot in moment.slots if tile in slot.tiles]
        assert list(dict.fromkeys(states)) == [FILLING, FULL, READ]
        assert states == sorted(states, key=[FILLING, FULL, READ].index)  # never back
        asked = next(i for i, moment in enumerate(film) if f"asks TMA for tile {tile}," in moment.what)
        if tile >= SLOTS:  # the slot was free, and all had met since
            assert film[asked - 1].meet and film[asked - 1].slots[tile % SLOTS].state == FREE
    assert [slot.full for slot in film[-1].slots] == [3, 2, 2]  # a phase each time round
    assert max(sum(slot.state == READ for slot in moment.slots) for moment in film) == 2  # wait_group 1
    assert (
        sum("threads meet" in moment.what for moment in film) == TILES + 2
    )  # before the loop, in each step, before the store


def test_the_strip_says_and_shows_it():
    seen = report(s05_pipelined, CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strip = views.ring(seen)
        assert strip._repr_png_().startswith(b"\x89PNG")
    assert strip.text.splitlines()[0] == "7 tiles through 3 slots, at most 2 read at once"
    assert strip.text.splitlines()[1] == "slot 0: tiles 0, 3, 6; 3 phases of its full barrier completed"
    assert [label.get_text() for label in strip.figure.axes[0].get_yticklabels()] == [
        "slot 0",
        "slot 1",
        "slot 2",
    ]
    assert views.ring(report(s04_wgmma, s04_wgmma.Config(64, 8))).text.startswith(
        "7 tiles through 1 slot, at most 1 read at once\n"
    )
    assert views.ring(report(s05_pipelined, CONFIG, k=64)).text.startswith(
        "1 tile through 1 slot, at most 1 read at once\n"
    )


def test_a_slot_that_is_filled_while_it_is_read_is_red():
    source = views.edited("s05_pipelined", "wgmma_wait_group<1>();", "wgmma_wait_group<2>();")
    seen = report(s05_pipelined, CONFIG, source, timeline=True)
    assert {hazard.kind for hazard in seen.hazards} == {"slot-overwritten"}
    clashes = {slot.tiles for moment in moments(seen) for slot in moment.slots if slot.state == BOTH}
    assert clashes == {(tile, tile + SLOTS) for tile in range(TILES - SLOTS)}
    text = views.ring(seen).text
    assert text.startswith(
        "7 tiles through 3 slots, at most 3 read at once; 4 times a slot is filled and read at once"
    )


def test_empty_barriers_are_paired_with_their_slots():
    film = moments(
        report(
            s06_warp_specialized,
            s06_warp_specialized.Config(block_m=64, block_n=16, stages=SLOTS, consumers=1),
        )
    )
    handed = [moment for moment in film if "handed back" in moment.what]
    for moment in handed[: TILES - SLOTS]:  # as many as are filled again
        slot = int(re.search(r"slot (\d+)", moment.what)[1])
        assert moment.slots[slot].empty == moment.slots[slot].full > 0
    assert [slot.full for slot in film[-1].slots] == [3, 2, 2]


def test_the_film_has_a_frame_a_moment_with_and_without_widgets(monkeypatch):
    film = views.ring_film(report(s05_pipelined, CONFIG))
    assert len(film.frames) == len(film.moments) and film.text.count("asks TMA for tile") == TILES
    last = film.frames[-1]
    assert [
        re.search(rf"slot {i}: free</text>.*?full: phase (\d), parity (\d)", last).groups() for i in range(3)
    ] == [("3", "1"), ("2", "0"), ("2", "0")]
    assert film._repr_png_().startswith(b"\x89PNG")
    pytest.importorskip("ipywidgets", "8")
    widget = film.widget()
    _, controls, frames = widget.children
    assert len(frames.children) == len(film.frames) and controls.children[1].max == len(film.frames) - 1

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(type(film), "widget", lambda _: widget)
    assert film._repr_mimebundle_().keys() == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    monkeypatch.undo()
    monkeypatch.setattr(importlib, "import_module", missing)
    assert film._repr_mimebundle_() == {"text/plain": repr(film)}


def test_what_has_no_ring_says_so():
    with pytest.raises(
        ValueError, match="report: expected one of a kernel whose CTA 0 loads by TMA and multiplies by WGMMA"
    ):
        views.ring(report(s01_naive))
    with pytest.raises(
        ValueError, match="products: expected the number of WGMMAs of a warpgroup for each tile, got -1"
    ):
        views.ring(report(s05_pipelined, CONFIG), products=-1)


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # the compiler's, about a variable that nobody reads any more
def test_a_run_that_ends_in_a_deadlock_has_a_film_too():
    seen = report(
        s05_pipelined, CONFIG, views.edited("s05_pipelined", "load(shared, before,", "load(shared, stage,")
    )
    film = moments(seen)  # the third tile goes into slot 0, the fourth into slot 1, and all wait for slot 2
    assert views.ring(seen).text.startswith("4 tiles through 2 slots")
    assert {slot.tiles for moment in film for slot in moment.slots if slot.state == BOTH} == {(0, 2), (1, 3)}


# 227 KiB; a slot of (m + n) * 128 bytes; rates of 600 cycles, 48 bytes a cycle, 4096 products a cycle
@pytest.mark.parametrize(
    "tile, fit, need",
    [
        ((64, 64), 13, 4),  # (227 - 9) / 16; 600 + 341 over 341
        ((128, 128), 6, 3),  # (227 - 33) / 32; 600 + 683 over 683
        ((128, 256), 3, 3),  # (227 - 65) / 48; 600 + 1024 over 1024
        ((256, 256), 1, 2),  # (227 - 129) / 64; 600 + 1365 over 2048, the products
    ],
)
def test_slots_that_fit_and_slots_that_are_needed(tile, fit, need):
    assert f"{tile[0]} x {tile[1]}: {fit} slot" in (
        text := views.ring_budget([s05_pipelined.Config(*tile)]).text
    )
    assert f" fit, the model needs {need}:" in text


def test_the_model_agrees_with_littles_law():
    """One slot fewer than needed costs much, one more gains nothing, at another latency than the default."""
    rates = emulator.Rates(tma_latency=300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = views.ring_budget([CONFIG], rates)
        picture._repr_png_()
    need = int(re.search(r"needs (\d+)", picture.text)[1])
    assert need == 1 + 3  # a load of 300 + 192 cycles, a copy of 192: 9216 bytes
    ends = {
        stages: report(
            s05_pipelined,
            s05_pipelined.Config(64, 8, stages),
            k=4096,
            timeline=rates,
            fast=True,
            hazards=False,
        ).timeline.end
        for stages in (need - 1, need, need + 1)
    }
    assert ends[need] < 0.9 * ends[need - 1] and ends[need + 1] > 0.97 * ends[need]


def test_a_budget_needs_configs_with_a_ring():
    with pytest.raises(ValueError, match="configs: expected at least one"):
        views.ring_budget([])
    with pytest.raises(ValueError, match="configs: expected those of a stage with a ring"):
        views.ring_budget([s04_wgmma.Config()])
