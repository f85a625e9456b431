"""The emulator against outputs that a Hopper GPU recorded: bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minigemm import recordings

FILES = sorted((Path(__file__).parent / "data").glob("recording*.npz"))


def test_there_is_a_recording_of_enough_problems():
    assert FILES
    about, bits = recordings.load(FILES[-1])
    assert "H100" in about["gpu"] or "H200" in about["gpu"]
    assert about["driver"] and about["date"] and about["source_hash"]
    for stage in ("s01_naive", "s02_tiled", "s03_tma"):
        assert len({name.split(" ")[1] + name.split(" ")[-1] for name in bits if name.startswith(stage)}) >= 12
    assert len(bits) >= 30


@pytest.mark.parametrize("stage", sorted({case.stage for case in recordings.cases()}))
def test_emulator_equals_the_recorded_gpu(stage):
    _, bits = recordings.load(FILES[-1])
    chosen = [case for case in recordings.cases() if case.stage == stage]
    assert chosen
    for case in chosen:
        assert np.array_equal(recordings.output(case, "cpu"), bits[case.name]), case.name
