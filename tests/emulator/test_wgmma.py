"""Warpgroup products on the emulator: what goes wrong with descriptors, registers and proxies.

The tests edit the probe kernel, which is right as it stands.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minigemm import emulator, observe
from minigemm.emulator.machine import wgmma
from minigemm.verify import tensor_core

CASE = tensor_core.Case(tensor_core.Config(16), 64, "normal")
IN_REGISTERS = tensor_core.Case(tensor_core.Config(16, a_in_registers=True), 64, "normal")
SCHEDULES = ["late", "early", 1]


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Runs a case with text edits of the probe; (report, output)."""

    def run(*edits, case=CASE, schedule="late"):
        text = tensor_core.SOURCE.read_text()
        for old, new in edits:
            assert old in text, f"{old!r} is not in the probe any more"
            text = text.replace(old, new, 1)
        mine = tmp_path / "wgmma.cu"
        mine.write_text(text)
        with monkeypatch.context() as patch:
            patch.setattr(tensor_core, "SOURCE", mine)
            with observe(schedule=schedule) as seen:
                d = tensor_core.output(case, "cpu")
        return seen[0], d

    return run


@pytest.mark.filterwarnings("ignore:.*compiles, and the compiler warns")
class TestHazards:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("case", [CASE, IN_REGISTERS], ids=["shared", "registers"])
    def test_the_probe_is_clean(self, edited, case, schedule):
        report, d = edited(case=case, schedule=schedule)
        assert not report.hazards
        assert np.array_equal(d, tensor_core.output(case, "cpu"))

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_ordinary_stores_need_a_proxy_fence(self, edited, schedule):
        report, _ = edited(("  fence_proxy_async();\n", ""), schedule=schedule)
        (hazard,) = {h.kind: h for h in report.hazards}.values()
        assert (
            hazard.kind == "proxy-fence"
            and "missing fence.proxy.async: the WGMMA of warpgroup 0" in hazard.message
        )

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_ordinary_stores_need_a_barrier(self, edited, schedule):
        report, _ = edited(("  __syncthreads();", "  //"), schedule=schedule)
        assert any(
            h.kind == "race"
            and "WGMMA of warpgroup 0 reads" in h.message
            and "no barrier between" in h.message
            for h in report.hazards
        )

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_registers_of_a_are_written_before_the_fence(self, edited, schedule):
        report, _ = edited(("    wgmma_fence();\n", ""), case=IN_REGISTERS, schedule=schedule)
        assert [h.kind for h in report.hazards] == ["wgmma-fence"]

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_registers_of_a_stay_until_the_wait(self, edited, schedule):
        write = (
            "    wgmma_commit_group();\n",
            '    wgmma_commit_group();\n    asm volatile("mov.b32 %0, 7;" : "+r"(a_registers[1]));\n',
        )
        wait = "    wgmma_wait_group<0>();\n"
        use = (wait + "  }", wait + "    d[0] = a_registers[1];\n  }")
        zeros = ("a_registers[4];", "a_registers[4] = {};")
        report, _ = edited(write, zeros, use, case=IN_REGISTERS, schedule=schedule)
        assert "accumulator-in-flight" in {h.kind for h in report.hazards}


@pytest.mark.parametrize("edit, words", [
    (("base + descriptors[2 * step],", "base + descriptors[2 * step] + 0x3000,"),
     r"the descriptor of A .* leads to shared addresses .* outside the CTA's"),
    (("base + descriptors[2 * step + 1]", "base + descriptors[2 * step + 1] + lane"),
     "the descriptor of B differs between the threads of a warpgroup"),
])  # fmt: skip
def test_descriptors_that_cannot_be(edited, edit, words):
    with pytest.raises(emulator.Fault, match=words):
        edited(edit)


def test_a_warp_that_stays_away(edited):
    with pytest.raises(
        emulator.Deadlock,
        match=r"wgmma.fence of warpgroup 0, 96 of its 128 threads have come.*All four warps",
    ):
        edited(("  for (int step = 0;", "  if (warp == 2) return;\n  for (int step = 0;"))


def test_types_that_are_not_emulated(edited, monkeypatch):
    original = tensor_core.Config.declarations

    def half(self):
        return (
            original(self)
            .replace("k32.f32.e4m3.e4m3", "k16.f32.f16.f16")
            .replace("p, 1, 1;", "p, 1, 1, 0, 0;")
        )

    monkeypatch.setattr(tensor_core.Config, "declarations", half)
    with pytest.raises(emulator.Unsupported, match="only FP8 operands with FP32 accumulators are emulated"):
        edited()


def test_fragments_are_a_permutation():
    for n in (8, 24, 256):
        fragments = np.arange(64 * n, dtype=np.uint32).reshape(128, n // 2)
        matrix = wgmma.matrix_of(fragments)
        assert np.array_equal(wgmma.fragments_of(matrix), fragments)
        thread, register = 37, 5 % (n // 2)  # warp 1, lane 5
        row, column = 16 + 1 + 8 * (register // 2 % 2), 8 * (register // 4) + 2 + register % 2
        assert matrix[row, column] == fragments[thread, register]


def test_descriptor_fields():
    bits = (0x4400 >> 4) | (128 >> 4) << 16 | (1024 >> 4) << 32 | 3 << 49 | 1 << 62
    assert wgmma.Descriptor.decode(bits) == wgmma.Descriptor(0x4400, 128, 1024, 3, 128)
    chunks = wgmma.Descriptor(1024, 16, 1024, 0, 128).chunks(16)
    assert chunks[0].tolist() == [1024, 1040] and chunks[1].tolist() == [1024 + 128 + 16, 1024 + 128]
    assert len(np.unique(chunks)) == 32 and (chunks % 16 == 0).all()


def test_setmaxnreg_bounds(tmp_path):
    from tests.emulator.nvrtc import ptx

    source = """extern "C" __global__ void __launch_bounds__(256, 1) k(int* o) {{
      asm volatile("setmaxnreg.{}.sync.aligned.u32 {};"); o[threadIdx.x] = 1; }}"""
    o = torch.zeros(256, dtype=torch.int32)
    report = emulator.launch(ptx(source.format("dec", 40)), 1, 256, [o])
    assert o.all() and not report.hazards
    report = emulator.launch(ptx(source.format("inc", 40)), 1, 256, [o])
    assert [h.kind for h in report.hazards] == ["setmaxnreg"] and "use setmaxnreg.dec" in report.hazards[
        0
    ].fix
