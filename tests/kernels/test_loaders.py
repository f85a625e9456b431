"""The loops of the library's kernels, in SASS: one thread loads, no load is a loop over lanes, and what TMA
and the tensor core are told stays in uniform registers."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

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
RETURNS = "      }\n      return;\n    }\n    if (warp % 4 == 1)"
VOTE = "__all_sync(0xffffffff, next.group != DONE)"
MAIN, LOADS = ("QGMMA", 1), ("UTMALDG", 3)  # what the main loop holds, and the loader's


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


def copies(found: Inspection, held: tuple[str, int]) -> int:
    """Count R2UR, which copies to a uniform register, in the shortest loop that holds so many of an opcode.

    Longer loops hold them too: slow paths stand behind the last loop and jump back into it.
    """
    code = found.instructions
    places = {each.label: place for place, each in enumerate(code) if each.label}
    jumps = [(place, re.search(r"BRA(?:\.\w+)*\s.*`\((.+?)\)", each.text)) for place, each in enumerate(code)]
    loops = [
        [each.opcode for each in code[places[jump[1]] : place + 1]]
        for place, jump in jumps
        if jump and places.get(jump[1], place + 1) <= place
    ]
    opcode, least = held
    return min((loop for loop in loops if loop.count(opcode) >= least), key=len).count("R2UR")


def with_text(config: Config, name: str, old: str, new: str, folder: Path) -> Path:
    """Copy the kernel's source to a folder, and edit it or a header beside it."""
    source = stage_of(config).source
    text = source.with_name(name).read_text()
    assert text.count(old) == 1
    (folder / source.name).write_text(source.read_text())
    (folder / name).write_text(text.replace(old, new))
    return folder / source.name


@pytest.mark.parametrize("layout", [Layout.DENSE, Layout.MASKED])
@pytest.mark.parametrize("name", ["64x64", "128x128", "256x128", "192x128"])
def test_the_main_loop_copies_nothing_to_uniform_registers(name: str, layout: Layout) -> None:
    config = replace(CONFIGS[name], layout=int(layout))
    assert copies(inspect(stage_of(config).name, config), MAIN) == 0


@pytest.mark.parametrize("layout", [Layout.DENSE, Layout.MASKED])
def test_consumers_that_do_not_vote_would_show(layout: Layout, tmp_path) -> None:
    """Then each WGMMA has its descriptors copied."""
    config = replace(CONFIGS["128x128"], layout=int(layout))
    source = with_text(config, "scheduler.cuh", VOTE, "next.group != DONE", tmp_path)
    assert copies(inspect(stage_of(config).name, config, source=source), MAIN) >= 16


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loader_of_a_dense_product_copies_nothing_to_uniform_registers(name: str) -> None:
    config = CONFIGS[name]
    assert config.layout == Layout.DENSE
    assert copies(inspect(stage_of(config).name, config), LOADS) == 0


@pytest.mark.parametrize("config", [CONFIGS["256x128"], CONFIGS["swapped 16x64"]], ids=["s11", "s12"])
def test_a_loader_that_goes_on_would_show(config: Config, tmp_path) -> None:
    """Its warp does not return behind the loop."""
    kernel = stage_of(config).source.name
    source = with_text(config, kernel, RETURNS, RETURNS.replace("      return;\n", ""), tmp_path)
    assert copies(inspect(stage_of(config).name, config, source=source), LOADS) >= 8
