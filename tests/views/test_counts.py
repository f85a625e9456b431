"""Figures side by side: counted by the emulator, and recorded on hardware."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import minigemm
from minigemm import quantize, views
from minigemm.emulator import Report
from minigemm.kernels import s01_naive

M, N, K = 32, 64, 64


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    a, b = (
        quantize.quantize(make, "tensor") for make in (quantize.activations(M, K), quantize.weights(N, K))
    )
    with minigemm.observe() as seen:
        for block_n in (32, 8):
            s01_naive.gemm(a, b, s01_naive.Config(256 // block_n, block_n))
    return {"wide": seen[0], "square": seen[1]}


def cells(text: str, row: str) -> list[int]:
    line = next(line for line in text.splitlines() if line.startswith(row))
    return [int(part.replace(",", "")) for part in line.removeprefix(row).split()]


def test_compare_counts_what_the_shapes_of_the_warps_say(reports):
    """A warp of r x c outputs loads a sector for each of its r + c rows a step, and two scales; it stores r
    runs of 2 c bytes."""
    shown = views.compare(reports)
    warps = M * N // 32
    assert shown.text.splitlines()[0].split() == ["counted", "wide", "square"]
    assert cells(shown.text, "bytes that threads load from global memory") == [M * N * (2 * K + 8)] * 2
    assert cells(shown.text, "32-byte sectors that their loads touch") == [
        warps * ((r + c) * K // 16 + 2) for r, c in ((1, 32), (4, 8))
    ]
    assert cells(shown.text, "bytes that threads store to global memory") == [2 * M * N] * 2
    assert cells(shown.text, "32-byte sectors that their stores touch") == [warps * 2, warps * 4]
    assert "shared memory" not in shown.text and "TMA" not in shown.text, "rows of zeros are left out"


def test_bars_are_shares_of_the_rows_largest(reports):
    shown = views.compare(reports).html
    row = shown[shown.index("their stores touch") :].partition("</tr>")[0]
    assert "width:50.0%" in row and "width:100.0%" in row


def test_compare_needs_something(reports):
    with pytest.raises(ValueError, match="reports: expected at least one"):
        views.compare({})


def test_recorded_reads_one_run_or_several_a_file_and_names_their_machines(tmp_path: Path):
    row = {
        "stage": "s01_naive",
        "runtime": "cuda",
        "m": 1,
        "n": 2,
        "k": 16,
        "run_s": 5e-5,
        "tflops": 1.5,
        "floor_share": 0.25,
    }
    emulated = {**row, "runtime": "emulated", "k": 4711}
    several = {
        "date": "2001-02-03",
        "driver": "1.2",
        "protocol": "by hand",
        "runs": [{"machine": {"gpu": "Chip <A>", "cuda": "9.9"}, "stages": [row, emulated]}],
    }
    alone = {
        "machine": {"gpu": "Chip B", "date": "2004-05-06"},
        "stages": [{**row, "run_s": 0.002, "tflops": None}, {**row, "stage": "s02_tiled"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(several))
    (tmp_path / "b.json").write_text(json.dumps(alone))
    (tmp_path / "other.json").write_text(json.dumps([1, 2]))
    shown = views.recorded("s01_naive", tmp_path)
    title, _, first, second, *notes = shown.text.splitlines()
    assert title == "s01_naive, recorded on hardware"
    for part in ("1 x 2 x 16", "50.0 us", "1.5", "25.0%", "Chip <A>", "1.2", "9.9", "2001-02-03"):
        assert part in first
    for part in ("2.00 ms", "Chip B", "not recorded", "2004-05-06"):
        assert part in second
    assert notes == ["docs/results/a.json: by hand.", "docs/results/b.json: protocol not recorded."]
    assert "Chip &lt;A&gt;" in shown.html and "4711" not in shown.text
    assert [run["gpu"] for run in views.recorded_runs("s01_naive", tmp_path)] == ["Chip <A>", "Chip B"]


def test_nothing_recorded_says_so(tmp_path: Path):
    assert views.recorded("s01_naive", tmp_path).text == "No hardware figure is recorded for s01_naive yet."
    assert views.recorded("s01_naive", tmp_path / "missing").text.startswith("No hardware figure")


def test_the_results_in_the_repository_are_found():
    runs = views.recorded_runs("s01_naive")
    assert runs and all(run["gpu"] and run["date"] and run["driver"] for run in runs)
    assert all(
        abs(2 * run["m"] * run["n"] * run["k"] / run["run_s"] / 1e12 / run["tflops"] - 1) < 1e-6
        for run in runs
    )


def test_what_single_ideas_gain_is_recorded_or_said_to_be_not(tmp_path: Path):
    file = tmp_path / "ideas.json"
    assert views.recorded_ideas("s11_overlapped", file=file).text.startswith("Not measured yet")
    idea = {
        "stage": "s11_overlapped", "idea": "two <sums>", "shape": "1 x 2 x 3", "without_us": 20, "with_us": 15,
    }  # fmt: skip
    lost = {"idea": "clusters", "shape": "1 x 2 x 3", "without_us": 20.0, "with_us": 21.0}
    machine = {"gpu": "Chip <A>", "driver": "1", "cuda": "2"}
    file.write_text(
        json.dumps(
            {
                "machine": machine,
                "date": "2004-05-06",
                "protocol": "by hand",
                "ideas": [idea],
                "settled": [lost],
            }
        )
    )
    shown = views.recorded_ideas("s11_overlapped", file=file)
    for word in ("two <sums>", "1 x 2 x 3", "20.0 us", "15.0 us", "-25.0%", "Chip <A>", "by hand"):
        assert word in shown.text
    assert "two &lt;sums&gt;" in shown._repr_html_()
    assert "Not measured yet" in views.recorded_ideas("s12_swapped", file=file).text
    assert "+5.0%" in views.recorded_ideas(part="settled", file=file).text
    file.write_text(json.dumps([idea]))
    assert "-25.0%" in views.recorded_ideas(file=file).text
    with pytest.raises(ValueError, match='part: expected "ideas" or "settled"'):
        views.recorded_ideas(part="others", file=file)
