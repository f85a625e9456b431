"""Registers and barriers of roles against the stage's own figures."""

from __future__ import annotations

import warnings

import pytest

from minigemm import views
from minigemm.kernels import s06_warp_specialized
from minigemm.kernels.tile import RingConfig


@pytest.mark.parametrize("consumers", sorted(RingConfig.REGISTERS))
def test_every_budget_of_the_stage_stays_within_its_pool(consumers):
    producer, consumer = RingConfig.REGISTERS[consumers]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = views.registers(consumers, producer, consumer, needed=96)
        assert picture._repr_png_().startswith(b"\x89PNG")
    before, after = picture.text.splitlines()
    assert before.endswith("all of the pool") and "too many" not in after
    assert f"= {128 * (producer + consumers * consumer):,}, " in after


def test_too_many_registers():
    # 384 threads get 168 at most: 64,512; 128 x (56 + 2 x 232) are 66,560
    assert views.registers(2, producer=56, consumer=232).text.endswith("= 66,560, 2,048 too many")


def test_who_arrives_on_a_slot():
    picture = views.handshake(s06_warp_specialized.Config(128, 64, consumers=1, stages=2).constants())
    assert picture._repr_png_().startswith(b"\x89PNG")
    full, empty = picture.text.splitlines()
    assert (
        full == "full[i]: 1 arrival and 24,576 bytes a phase; all 128 threads of the consumers wait"
    )  # (128 + 64) x 128
    assert empty.startswith("empty[i]: 4 arrivals a phase")


def test_bad_input():
    for options, message in (
        ({"consumers": 0}, "consumers: expected 1 to 7, got 0"),
        ({"producer": 44}, "producer: expected a multiple of 8 from 24 to 256, got 44"),
        ({"consumer": 264}, "consumer: expected a multiple of 8 from 24 to 256, got 264"),
        ({"needed": 300}, "needed: expected 0 to 255, got 300"),
    ):
        with pytest.raises(ValueError, match=message):
            views.registers(**options)
    with pytest.raises(
        ValueError,
        match="constants: expected those of a stage with producer and consumers, got none named CONSUMERS",
    ):
        views.handshake({"BLOCK_M": 128})
