"""The emulator against outputs that a Hopper GPU recorded: bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minigemm.types import Layout
from minigemm.verify import recordings

RECORDING = Path(__file__).parents[1] / "data" / "recording_h100.npz"
TENSOR_CORE = ("s04_wgmma", "s05_pipelined", "s06_warp_specialized", "s07_promoted")


def test_there_is_a_recording_of_enough_problems():
    about, bits = recordings.load(RECORDING)
    assert "H100" in about["gpu"] or "H200" in about["gpu"]
    assert about["driver"] and about["date"] and about["source_hash"]
    for stage in ("s01_naive", "s02_tiled", "s03_tma"):
        assert (
            len({name.split(" ")[1] + name.split(" ")[-1] for name in bits if name.startswith(stage)}) >= 12
        )
    assert bits.keys() == {case.recorded for case in recordings.cases()}, (
        "a new stage or case is recorded by: python -m minigemm test-gpu --record FILE"
    )
    chosen = [case for case in recordings.cases() if case.stage in TENSOR_CORE]
    assert len({(case.stage, case.product, case.regime) for case in chosen}) >= 60
    assert len({(case.stage, case.config) for case in chosen}) >= 12
    for stage, least in (("s10_grouped", 50), ("s11_overlapped", 50), ("s12_swapped", 14)):
        chosen = [case for case in recordings.cases() if case.stage == stage]
        assert len(chosen) >= least and {case.product.layout for case in chosen} == set(Layout)


@pytest.mark.parametrize("stage", sorted({case.stage for case in recordings.cases()}))
def test_emulator_equals_the_recorded_gpu(stage):
    _, bits = recordings.load(RECORDING)
    chosen = [case for case in recordings.cases() if case.stage == stage]
    assert chosen
    for case in chosen:
        assert np.array_equal(recordings.output(case, "cpu"), bits[case.recorded]), case.name
