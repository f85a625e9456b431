"""The loaders of the library's kernels, in SASS: one thread loads, and no load is a loop over lanes."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

import pytest

from minigemm.compiler.inspection import Inspection
from minigemm.kernels import inspect
from minigemm.kernels.library import Config, stage_of
from minigemm.kernels.s11_overlapped import Config as ManyRows
from minigemm.kernels.s12_swapped import Config as FewRows
from minigemm.types import Layout

CONFIGS = {
    "64x64": ManyRows(64, 64, 8, 1),
    "64x128": ManyRows(64, 128, 6, 1),
    "128x128": ManyRows(128, 128, 5),
    "192x128": ManyRows(192, 128, 4, 3),
    "256x128": ManyRows(256, 128, 3),
    "swapped 16x64": FewRows(16, 64, 5),
    "swapped 64x64": FewRows(64, 64, 2),
    "swapped 64x64, a block at a time": FewRows(64, 64, 5, blocks=1),
    "swapped 16x128": FewRows(16, 128, 2, 2),
}
ELECTED = "      if (elect_sync()) {\n        for (Part"


def loops(found: Inspection) -> int:
    """How many loads the compiler repeats for each lane: the branch behind them is BRA.U.ANY."""
    dense = found.config.layout == Layout.DENSE
    opcodes = [each.opcode for each in found.instructions]
    behind = [
        len([*takewhile(lambda opcode: opcode != "BRA", opcodes[place:])]) + place
        for place, opcode in enumerate(opcodes)
        if opcode == "UTMALDG"
    ]
    assert len(behind) == 3 + dense  # of a, of b, of the scales of a, and of b before the others
    return sum(found.instructions[place].text.count("BRA.U.ANY") for place in behind)


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=list(CONFIGS))
def test_a_load_is_one_instruction(number: int) -> None:
    """In a DENSE kernel, and in one of the others, which take turns."""
    config = list(CONFIGS.values())[number]
    for layout in (Layout.DENSE, list(Layout)[1 + number % 3]):
        check_loads(config, layout)


def check_loads(config: Config, layout: Layout) -> None:
    found = inspect(stage_of(config).name, replace(config, layout=int(layout)))
    assert found.spills == 0 and found.stack == 0 and not found.warnings
    assert loops(found) == 0


@pytest.mark.parametrize("config", [CONFIGS["64x128"], CONFIGS["swapped 16x64"]], ids=["s11", "s12"])
def test_a_thread_that_is_not_elected_would_show(config: Config, tmp_path) -> None:
    """That one lane alone passes `threadIdx.x % 128 == 0` the compiler does not know."""
    stage = stage_of(config)
    text = stage.source.read_text()
    assert text.count(ELECTED) == 1
    source = tmp_path / stage.source.name
    source.write_text(text.replace(ELECTED, ELECTED.replace("elect_sync()", "threadIdx.x % 128 == 0")))
    assert loops(inspect(stage.name, config, source=source)) >= 2
