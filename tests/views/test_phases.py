"""The film of an mbarrier against what the problem's size says must have happened."""

from __future__ import annotations

import warnings

import pytest

import minigemm
from minigemm import quantize, views
from minigemm.kernels import s01_naive, s03_tma
from minigemm.views.phases import copies

CONFIG = s03_tma.Config(block_m=32, block_n=64, block_k=32, thread_m=4, thread_n=4)
BOX_A, BOX_B = 32 * 32, 64 * 32
AT_A, AT_B = (
    1024,
    2048,
)  # shared addresses: a at the first multiple of 1024 above 0, where the tiles begin, b behind it


def report(module, schedule="late", source=None, config=None):
    a = quantize.quantize(quantize.activations(32, 80), "tensor")
    b = quantize.quantize(quantize.weights(64, 80), "tensor")
    with minigemm.observe(schedule=schedule) as seen:
        module.gemm(a, b, config, source=source)
    return seen[0]


@pytest.mark.parametrize("schedule", ["late", "early", 3])
def test_every_step_completes_a_phase_with_both_boxes(schedule):
    seen = report(s03_tma, schedule, config=CONFIG)
    loads = copies(seen)
    assert [load.at for load in loads] == [
        (k, 0) for k in (0, 32, 64) for _ in range(2)
    ]  # 80 columns are 3 steps of 32
    assert [load.bytes for load in loads] == [BOX_A, BOX_B] * 3
    assert all(load.landed is not None and load.landed.step >= load.issued.step for load in loads)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = views.phases(seen, names={AT_A: "a", AT_B: "b"})
        assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.text.startswith("6 loads, 6 landed, 3 phases completed: ")
    for phase in range(3):
        assert f"phase {phase} (parity {phase % 2}) completed at step" in picture.text
    assert picture.text.count(f"with {BOX_A + BOX_B:,} bytes") == 3
    rows = [label.get_text() for label in picture.figure.axes[0].get_yticklabels()]
    assert rows[1:3] == ["TMA copies to a", "TMA copies to b"]


def test_too_few_bytes_show():
    source = views.edited("s03_tma", "sizeof(shared.a) + sizeof(shared.b)", "sizeof(shared.a)")
    text = views.phases(
        report(s03_tma, source=source, config=s03_tma.Config(**{**vars(CONFIG), "block_m": 64}))
    ).text
    assert (
        text.count(f"with {BOX_B:,} bytes") == 3
    )  # each of three phases completes with one of two equal boxes
    assert f"phase 3 is still open with {3 * BOX_B:,} bytes" in text


def test_a_kernel_without_tma_has_no_film():
    with pytest.raises(ValueError, match="report: expected one of a kernel whose CTA 0 loads by TMA"):
        views.phases(report(s01_naive))
