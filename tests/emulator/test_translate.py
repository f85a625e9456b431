"""The translator's parts: which registers are live where, how a cell's bits are divided, and the whole IR."""

from __future__ import annotations

import re

import pytest

from minigemm.emulator import context as c
from minigemm.emulator.ptx.module import Function, Module
from minigemm.emulator.ptx.parse import parse
from minigemm.emulator.translate import shadow
from minigemm.emulator.translate.liveness import Liveness, block_starts, successors
from minigemm.emulator.translate.lower import translate

LOOP = """.version 8.4
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 k_param_0) {
.reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %rd<3>;
ld.param.u64 %rd1, [k_param_0];
mov.u32 %r1, 0;
mov.u32 %r2, %tid.x;
again:
add.u32 %r1, %r1, %r2;
setp.lt.u32 %p1, %r1, 100;
@%p1 mov.u32 %r3, 7;
@%p1 bra again;
st.global.u32 [%rd1], %r3;
ret;
}
"""


def loop() -> tuple[Module, Function]:
    module = parse(LOOP)
    return module, module.functions["k"]


def test_live_registers_of_a_loop():
    _, function = loop()
    starts = block_starts(function)
    assert starts == [0, 3, 7, 9]
    assert successors(function)[6:] == [[3, 7], [8], []]
    live = Liveness(function, successors(function), starts)
    assert set(live.at_start(3)) == {"%rd1", "%r1", "%r2", "%r3"}  # the guarded mov may keep the old %r3
    assert set(live.at_start(7)) == {"%rd1", "%r3"}
    assert set(live.after(1)) == {"%rd1", "%r1", "%r3"}
    assert live.after(7) == []
    assert set(live.read_by(3)) == {"%r1", "%r2"}


def fields(prefix: str) -> list[shadow.Field]:
    """The fields of a word without those that are made of others."""
    joined = {"CELL_INTERVAL", "CELL_AUTHOR", "CELL_STRONG_AND_EVER", "CELL_BELOW_VERSION", "MARK_WHAT"}
    joined |= {"MARK_BELOW_CLOCK"}
    every = vars(shadow).items()
    return [field for name, field in every if name.startswith(prefix) and name not in joined]


@pytest.mark.parametrize(
    ("prefix", "flags", "bits"),
    [("CELL_", c.CELL_GENERIC | c.CELL_BARRIER | c.CELL_ATOMIC, 64), ("MARK_", 0, 32)],
)
def test_fields_divide_the_word(prefix, flags, bits):
    masks = [field.mask for field in fields(prefix)] + [flags]
    assert sum(masks) == (1 << bits) - 1
    for k, mask in enumerate(masks):
        assert not any(mask & other for other in masks[k + 1 :])


def test_joined_fields():
    assert shadow.CELL_INTERVAL.mask == shadow.CELL_CLOCK.mask | shadow.CELL_COLUMN.mask
    assert shadow.CELL_AUTHOR.mask == shadow.CELL_INTERVAL.mask | shadow.CELL_LANE.mask
    assert shadow.CELL_STRONG_AND_EVER.mask == c.CELL_ATOMIC | shadow.CELL_BYTES_EVER.mask
    assert shadow.CELL_BELOW_VERSION.mask == (1 << 64) - 1 - shadow.CELL_VERSION.mask
    assert shadow.MARK_WHAT.mask == shadow.MARK_BYTES.mask | shadow.MARK_KINDS.mask
    assert shadow.MARK_KINDS.mask == c.MARK_READ | c.MARK_WRITE
    assert shadow.MARK_BELOW_CLOCK.mask == c.CLOCK_STEP - 1 == shadow.MARK_WHAT.mask | shadow.MARK_LANE.mask


@pytest.mark.parametrize("hazards", [True, False])
def test_no_name_is_left_in_the_text(hazards):
    program = translate(*loop(), hazards=hazards)
    assert not re.search(r"\$[A-Z]", program.ir)
    assert program.loops == {1: 3} and program.blocks == [(0, 3), (3, 4), (7, 2)]
