"""Kernels that may begin before the one before has ended: what they touch before its end, and their bits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from minigemm import observe, quantize
from minigemm.compiler.inspection import Inspection
from minigemm.kernels import grouped, inspect
from minigemm.kernels.library import Config, stage_of
from minigemm.kernels.s11_overlapped import Config as ManyRows
from minigemm.kernels.s12_swapped import Config as FewRows
from minigemm.types import Layout
from tests.calls.test_api import bits

CONFIGS = {
    "s11": ManyRows(64, 32, 3, 1, ctas=2),
    "s11, two consumers": ManyRows(128, 48, 2, 2, ctas=1),
    "s12": FewRows(16, 64, 3, blocks=2, ctas=2),
    "s12, a block at a time": FewRows(32, 64, 2, blocks=1, ctas=1),
    "s12, two consumers": FewRows(8, 128, 2, 2, ctas=2),
}
WAIT, LET = "ACQBULK", "PREEXIT"  # griddepcontrol.wait and .launch_dependents in SASS
GLOBAL = {"LD", "LDG", "ST", "STG", "ATOM", "ATOMG", "RED", "UTMALDG", "UTMASTG", "UBLKCP", "LDGSTS"}
JUMPS = {"BRA", "BRX", "CALL", "JMP", "WARPSYNC"}
ENDS = {"BRA", "EXIT", "RET", "JMP"}


def before(found: Inspection) -> list[str]:
    """Return the opcodes that some thread may execute before it has waited for the kernel before."""
    code = found.instructions
    places = {each.label: place for place, each in enumerate(code) if each.label}
    reached: set[int] = set()
    waiting = [0]
    while waiting:
        place = waiting.pop()
        if place in reached or place >= len(code) or code[place].opcode == WAIT:
            continue
        reached.add(place)
        text, opcode = code[place].text, code[place].opcode
        if opcode in JUMPS:
            waiting += [places[label] for label in re.findall(r"`\((\.L\w+)\)", text)]
        # a guarded or uniform branch may also go on
        if opcode not in ENDS or text.startswith("@") or re.search(r"BRA\.\w+|BRA U?P", text):
            waiting.append(place + 1)
    return [code[place].opcode for place in sorted(reached)]


def inspected(config: Config, layout: Layout, **options) -> Inspection:
    return inspect(stage_of(config).name, replace(config, layout=int(layout)), **options)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("config", [CONFIGS["s11"], CONFIGS["s12"]], ids=["s11", "s12"])
def test_what_comes_before_the_wait(config, layout):
    """No access to global memory, but the early load of b; and no kernel behind is let in."""
    found = inspected(config, layout)
    opcodes = before(found)
    loads = [opcode for opcode in opcodes if opcode in GLOBAL]
    assert loads == ["UTMALDG"] * (layout == Layout.DENSE)
    assert "SYNCS" in opcodes and LET not in opcodes  # barriers are initialised before
    every = [each.opcode for each in found.instructions]
    assert every.count(WAIT) == every.count(LET) == 4  # the consumers, and three roles of the producer


@pytest.mark.parametrize("layout", [Layout.DENSE, Layout.MASKED])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("config", [CONFIGS["s11"], CONFIGS["s12"]], ids=["s11", "s12"])
def test_a_wait_that_is_missing_would_show(config, number, layout, tmp_path):
    parts = stage_of(config).source.read_text().split("follow();")
    assert len(parts) == 5
    source = tmp_path / stage_of(config).source.name
    source.write_text("follow();".join(parts[: number + 1]) + ";" + "follow();".join(parts[number + 1 :]))
    loads = [each for each in before(inspected(config, layout, source=source)) if each in GLOBAL]

    # The warp that finds the parts reads the index, and of a dense product nothing.
    dense = layout == Layout.DENSE
    reads = not (dense and parts[number + 1].lstrip().startswith("GroupedScheduler"))
    assert len(loads) > 1 if dense and reads else len(loads) == 1 if dense else loads


def run(launch, config, schedule="late"):
    """Run a launch, and return what the emulator found."""
    with observe(schedule=schedule) as seen:
        stage_of(config).run(launch, config, torch.device("cpu"))
    return seen[0].hazards


def operands(m, n, k):
    a = quantize.quantize(quantize.activations(m, k), "1x128")
    b = quantize.quantize(quantize.weights(n, k), "128x128")
    return a.data, a.scale, b.data, b.scale


@pytest.mark.parametrize("k, early", [(128, True), (256, False), (272, True), (1280, True)])
@pytest.mark.parametrize("name", CONFIGS)
def test_dense_bits(name, k, early):
    """Several tiles a CTA; k shorter than the ring, as long, ragged, and longer."""
    config = CONFIGS[name]
    if k % 128 and getattr(config, "blocks", 1) > 1:
        pytest.skip("such a ring has no ragged k")
    m, n = 70, 136
    d = torch.full((2, m, n), -7.0, dtype=torch.bfloat16)
    given = operands(m, n, k)
    assert not run(grouped.launch_dense(*given, d[0], config), config)
    launch = grouped.dependent(grouped.launch_dense(*given, d[1], config), early)
    assert launch.dependent and launch.args[grouped.EARLY] == early
    for schedule in ("late", "early", 1):
        d[1] = -7
        assert not run(launch, config, schedule)
        assert torch.equal(bits(d[0]), bits(d[1])), schedule


@pytest.mark.parametrize("layout", [Layout.CONTIGUOUS, Layout.PREFIX_SUMS, Layout.MASKED])
@pytest.mark.parametrize("name", ["s11", "s12"])
def test_grouped_bits(name, layout):
    """Early weights change nothing where an index comes first."""
    config = replace(CONFIGS[name], layout=int(layout))
    a, sfa, b, sfb = operands(140, 2 * 128, 512)
    b, sfb = b.view(2, 128, 512), sfb.view(2, 1, 4)
    if layout == Layout.MASKED:
        a, sfa = a.view(2, 70, 512), torch.stack([sfa[:70], sfa[70:]])
    index = {
        Layout.CONTIGUOUS: [1] * 50 + [-1] * 20 + [0] * 70,
        Layout.PREFIX_SUMS: [40, 130],
        Layout.MASKED: [70, 3],
    }[layout]
    numbers = torch.tensor(index, dtype=torch.int32)
    d = torch.full((2, *a.shape[:-1], 128), -7.0, dtype=torch.bfloat16)
    describe = grouped.launch_masked if layout == Layout.MASKED else grouped.launch_contiguous
    assert not run(describe(a, sfa, b, sfb, d[0], numbers, config), config)
    assert not run(grouped.dependent(describe(a, sfa, b, sfb, d[1], numbers, config), True), config)
    assert torch.equal(bits(d[0]), bits(d[1])) and (d[0] != -7).any()
