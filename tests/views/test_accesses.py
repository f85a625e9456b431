"""Sectors and banks, against counts made from the addresses by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

import minigemm
from minigemm import quantize, views
from minigemm.emulator import Report
from minigemm.emulator.watch.report import Request
from minigemm.kernels import s02_tiled
from minigemm.views.accesses import wavefronts

SOURCE = s02_tiled.stage.source.read_text(encoding="utf-8")


def drawn(picture: views.Picture) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture._repr_png_().startswith(b"\x89PNG")
    return picture.text


def request(space: str, size: int, at: Callable[[int], int]) -> Request:
    """One of 32 lanes, `size` bytes each, lane i at address at(i)."""
    return Request(0, None, space, size, False, tuple(range(32)), tuple(map(at, range(32))))


@pytest.fixture(scope="module", params=[0, 16], ids=["padding 0", "padding 16"])
def padded(request: pytest.FixtureRequest) -> tuple[int, Report]:
    a, b = (
        quantize.quantize(make, "tensor")
        for make in (quantize.activations(32, 128), quantize.weights(32, 128))
    )
    config = s02_tiled.Config(32, 32, 128, 2, 2, request.param)
    with minigemm.observe(requests=1000) as seen:
        s02_tiled.gemm(a, b, config)
    return request.param, seen[0]


@pytest.mark.parametrize(
    ("size", "at", "says"),
    [
        (16, lambda i: 4096, "1 sector, 32 bytes moved, 16 of them used"),
        (16, lambda i: 4096 + 128 * i, "32 sectors, 1024 bytes moved, 512 of them used"),
        (4, lambda i: 4096 + 4 * i, "4 sectors, 128 bytes moved, 128 of them used"),
        (4, lambda i: 4096 + 16 + 4 * i, "5 sectors, 160 bytes moved, 128 of them used"),
        (2, lambda i: 4096 + 2 * (31 - i), "2 sectors, 64 bytes moved, 64 of them used"),
    ],
)
def test_sectors(size, at, says):
    assert views.sectors(request("global", size, at)).text.endswith(says)


@pytest.mark.parametrize(
    ("size", "at", "waves", "verdict"),
    [
        (4, lambda i: 4 * i, 1, "no conflict"),
        (4, lambda i: 0, 1, "no conflict"),  # a broadcast
        (1, lambda i: i, 1, "no conflict"),  # four lanes a word
        (4, lambda i: 8 * i, 2, "1 more than needed"),
        (4, lambda i: 132 * i, 1, "no conflict"),
        (8, lambda i: 8 * i, 2, "no conflict"),
        (16, lambda i: 16 * i, 4, "no conflict"),
        (16, lambda i: 128 * i, 32, "28 more than needed"),
        (16, lambda i: 144 * i, 4, "no conflict"),
    ],
)
def test_banks(size, at, waves, verdict):
    text = views.banks(request("shared", size, at)).text
    assert text == f"32 lanes x {size} bytes: {waves} wavefront{'s' * (waves > 1)}, {verdict}"


def test_wavefronts_are_those_that_the_emulator_counted(padded):
    padding, report = padded
    kept = [r for r in report.requests if r.space == "shared"]
    assert len(kept) == report.counters["shared_requests"], "all were kept"
    assert sum(len(wavefronts(r)) for r in kept) == report.counters["shared_wavefronts"]
    assert (report.counters["bank_conflicts"] == 0) is (padding == 16)


def test_a_read_of_b_touches_8_rows(padded):
    """Lane i reads row i % 8: without padding 8 words of one bank, with it 8 banks."""
    padding, report = padded
    read = views.requests_at(report, "read(shared.b", "shared", source=SOURCE)[0]
    rows = {address - read.addresses[0] for address in read.addresses}
    assert rows == {row * (128 + padding) for row in range(8)}
    assert drawn(views.banks(read)).endswith(
        "8 wavefronts, 7 more than needed" if padding == 0 else "1 wavefront, no conflict"
    )


def test_requests_are_found_by_their_line(padded):
    report = padded[1]
    number = next(i for i, line in enumerate(SOURCE.splitlines(), 1) if "read(shared.a" in line)
    reads = views.requests_at(report, "read(shared.a", "shared", source=SOURCE)
    # 32 steps of 4 along k, two rows a thread, 8 warps
    assert len(reads) == 32 * 2 * 8 and reads == views.requests_at(report, f":{number}", "shared")
    stores = views.requests_at(report, "load(shared.", "shared", store=True, source=SOURCE)
    assert (
        sum(len(r.threads) * r.bytes for r in stores) == report.counters["shared_store_bytes"] == 2 * 32 * 128
    )


@pytest.mark.parametrize(
    ("row", "padding", "k"), [(128, 0, 0), (128, 16, 0), (128, 32, 5), (64, 0, 60), (64, 16, 20), (32, 4, 31)]
)
def test_bank_rows_counts_like_the_addresses(row, padding, k):
    text = views.bank_rows(row, (padding,), rows=8, k=k).text
    places = [(i * (row + padding) + k) // 4 % 32 for i in range(8)]
    worst = max(places.count(bank) for bank in places)
    verdict = f"{worst}-way conflict" if worst > 1 else "no conflict"
    several = len(set(places)) > 1
    assert (
        text
        == f"padding {padding}: byte {k} of 8 rows lies in {len(set(places))} bank{'s' * several}, {verdict}"
    )


def test_pictures_draw_without_a_warning():
    drawn(views.sectors(request("global", 16, lambda i: 4096 + 64 * (i // 8)), "a"))
    drawn(views.banks(request("shared", 16, lambda i: 80 * i), "conflicts"))
    drawn(views.bank_rows(64, (0, 16), rows=4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: views.sectors(request("shared", 4, lambda i: i)),
            "request: expected one to global memory, got one to shared",
        ),
        (
            lambda: views.banks(request("global", 4, lambda i: i)),
            "request: expected one to shared memory, got one to global",
        ),
        (lambda: views.bank_rows(30), "row_bytes: expected a positive multiple of 4, got 30"),
        (lambda: views.bank_rows(128, (3,)), r"paddings: expected multiples of 4, got \(3,\)"),
        (lambda: views.bank_rows(128, rows=0), "rows: expected 1 to 32, got 0"),
        (lambda: views.bank_rows(128, k=128), "k: expected 0 to 127"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_requests_at_says_what_is_missing(padded):
    with minigemm.observe() as seen:
        a = quantize.quantize(quantize.activations(32, 128), "tensor")
        s02_tiled.gemm(a, a, s02_tiled.Config(32, 32, 128, 2, 2))
    with pytest.raises(ValueError, match="report: expected one that kept requests"):
        views.requests_at(seen[0], "", "shared")
    with pytest.raises(ValueError, match='space: expected "global" or "shared", got \'local\''):
        views.requests_at(padded[1], "", "local")
    with pytest.raises(ValueError, match="text: the source has no line that reads 'nowhere'"):
        views.requests_at(padded[1], "nowhere", "shared", source=SOURCE)
