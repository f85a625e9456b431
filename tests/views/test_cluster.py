"""The cluster's picture against what the launch says, its bytes against the counters, and the recorded table
against a file made here."""

from __future__ import annotations

import json
import re
import warnings

import pytest

import minigemm
from minigemm import quantize, views
from minigemm.kernels import s08_persistent, s09_multicast
from minigemm.views.cluster import Part, parts

TILE = {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1}


def run(cluster: tuple[int, int] | None, k: int = 384):
    a, b = (
        quantize.quantize(quantize.activations(128, k), "1x128"),
        quantize.quantize(quantize.weights(64, k), "128x128"),
    )
    with minigemm.observe() as seen:
        if cluster is None:
            s08_persistent.gemm(a, b, s08_persistent.Config(**TILE, ctas=2))
        else:
            s09_multicast.gemm(
                a, b, s09_multicast.Config(**TILE, ctas=2, cluster_m=cluster[0], cluster_n=cluster[1])
            )
    return seen[0]


@pytest.fixture(scope="module")
def reports():
    return {"s08": run(None), "along M": run((2, 1)), "along N": run((1, 2))}


def drawn(picture: views.Picture) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture._repr_png_().startswith(b"\x89PNG")
    return picture.text


def test_parts_by_hand(reports):
    """b, 32 rows, half from each CTA to both; a and its scales to the own one. The third k-step is in slot 0
    again."""
    first, third = parts(reports["along M"]), parts(reports["along M"], 2)
    start = first[0].to
    assert first == [
        Part(0, (0,), (0, 0), start, 8192),
        Part(1, (1,), (0, 64), start, 8192),
        Part(0, (0, 1), (0, 0), start + 2 * 8192, 2048),
        Part(1, (0, 1), (0, 16), start + 2 * 8192 + 2048, 2048),
        Part(0, (0,), (0, 0), start + 2 * 8192 + 2 * 4096, 256),
        Part(1, (1,), (64, 0), start + 2 * 8192 + 2 * 4096, 256),
    ]
    assert [part.to for part in third] == [part.to for part in first] and third[0].at == (256, 0)


@pytest.mark.parametrize("name, others", [("along M", 2048), ("along N", 4096 + 128)])
def test_the_picture_says_what_each_barrier_expects(reports, name, others):
    text = drawn(views.cluster(reports[name], consumers=1))
    assert (
        text.count(f"its full barrier expects {8192 + 4096 + 256:,} bytes, {others:,} of them from CTA") == 2
    )
    assert text.count("its empty barrier 8 arrivals, 4 of each CTA") == 2
    assert ("b 2,048 bytes for both" in text) is (name == "along M") and (
        "a 4,096 bytes for both" in text
    ) is (name == "along N")


def test_bytes_of_runs(reports):
    alone, below, beside = drawn(views.cluster_bytes(reports)).splitlines()
    written = 4 * 3 * (8192 + 4096 + 256)  # four tiles, three steps
    assert alone == f"s08: {written:,} bytes read from memory (100%), {written:,} written to shared memory"
    assert (
        f"{written - 12 * 2048:,} bytes read" in below
        and f"{written - 12 * (4096 + 128):,} bytes read" in beside
    )
    assert all(f"{written:,} written" in line for line in (below, beside))


SOURCE = {"machine": {"gpu": "G", "driver": "D", "cuda": "C"}, "date": "today", "protocol": "P"}


def test_recorded(tmp_path):
    """Rows of one product and tile make a line; a missing file says so."""
    assert "No hardware figure is recorded" in views.recorded_multicast(tmp_path / "none.json").text
    size = {"m": 1, "n": 2, "k": 3, "config": s09_multicast.Config().constants()}
    gains = {"none": 0, "along m": -20, "along n": 31}
    rows = [
        {**size, "cluster": name, "tflops": 1000 + gain, "gain": gain / 1000} for name, gain in gains.items()
    ]
    file = tmp_path / "h100_multicast.json"
    file.write_text(json.dumps({**SOURCE, "rows": rows}))
    text = views.recorded_multicast(file).text
    for shown in ("1 x 2 x 3", "256 x 128", "1,000", "980 (-2.0%)", "1,031 (+3.1%)"):
        assert shown in text
    assert "G, driver D, CUDA C, today. docs/results/h100_multicast.json: P." in text


def test_counted_multicast(tmp_path):
    """Each cluster's share is of the same tile without clusters."""
    assert "No hardware counter is recorded" in views.counted_multicast(tmp_path / "none.json").text
    counts = (
        (64, "none", 4e6, 1e5),
        (128, "none", 2e6, 5e4),
        (64, "along m", 3e6, 9e4),
        (128, "along m", 1e6, 1e5),
    )
    rows = []
    for tile, cluster, asked, sectors in counts:
        run = {"m": 1, "n": 2, "k": 3, "cluster": cluster, "config": {"BLOCK_M": tile, "BLOCK_N": 64}}
        rows.append({**run, "asked_bytes": asked, "l2_read_sectors": sectors, "sm_tma_read_bytes": 7e6})
    file = tmp_path / "h100_counters.json"
    file.write_text(
        json.dumps(
            {
                "machine": {"gpu": "G", "driver": "D", "cuda": "C"},
                "date": "today",
                "protocol": "P",
                "rows": [{"who": "x"}, *rows],
            }
        )
    )
    lines = [re.sub(r"  +", " | ", line.strip()) for line in views.counted_multicast(file).text.splitlines()]
    assert (
        "64 x 64 | along m | 3 MB (75%) | 3 MB (90%) | 7 MB" in lines
        and "128 x 64 | along m | 1 MB (50%) | 3 MB (200%) | 7 MB" in lines
    )
    assert any(
        line.startswith("1 x 2 x 3. G, driver D, CUDA C, today. docs/results/h100_counters.json: P.")
        for line in lines
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: views.cluster(r["s08"], 1), "report: expected one of a kernel with clusters"),
        (
            lambda r: views.cluster(r["along M"], 1, names=("a", "b")),
            "names: expected one for each of the 3 tiles of a slot, got 2",
        ),
        (lambda r: parts(r["along M"], 99), "step: expected one of the 6 of the first cluster, got 99"),
        (lambda r: views.cluster_bytes({}), "runs: expected at least one"),
    ],
)
def test_bad_input_is_named(make, message, reports):
    with pytest.raises(ValueError, match=message):
        make(reports)
