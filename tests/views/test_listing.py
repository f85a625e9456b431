"""Kernel text as it is shown: whose lines, which changes, and what the compiler made of them."""

from __future__ import annotations

import html.parser
import re
import warnings
from pathlib import Path

import pytest

import minigemm
from minigemm import views
from minigemm.compiler.inspection import Inspection
from minigemm.kernels import s01_naive, s02_tiled, s11_overlapped
from minigemm.views import Html

SOURCE = s01_naive.stage.source.read_text(encoding="utf-8")
STORES_ONLY = 'extern "C" __global__ void fill(int* x) { x[threadIdx.x] = 7; }\n'


class Balanced(html.parser.HTMLParser):
    """Fails on a tag that is closed in the wrong order, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(shown: Html) -> str:
    """The text of the HTML, which must be whole."""
    parser = Balanced()
    parser.feed(shown.html)
    assert not parser.open
    return parser.text


@pytest.fixture(scope="module")
def naive() -> Inspection:
    return minigemm.inspect(s01_naive)


def test_code_shows_the_files_own_lines_under_their_numbers():
    shown = views.code("s01_naive")
    title, *lines = shown.text.splitlines()
    assert title == "s01_naive.cu"
    assert [(int(line[1:4]), line[6:]) for line in lines] == [*enumerate(SOURCE.splitlines(), 1)]
    seen = read(shown)
    assert all(line in seen for line in SOURCE.splitlines())


def test_a_part_is_a_function_with_the_comment_above_it_and_marks_are_lines_that_read_so():
    shown = views.code("s01", "load").text.splitlines()
    assert (
        shown[0] == "s01_naive.cu: load"
        and shown[1].endswith("// kVector elements of a row")
        and len(shown) == 3
    )
    kernel = views.code("s01_naive", "s01_naive", mark="threadIdx.x").text.splitlines()
    assert kernel[-1].endswith("}") and [line[0] == ">" for line in kernel[1:]] == [
        "threadIdx.x" in line for line in kernel[1:]
    ]
    assert views.code("ptx.cuh", "fma_rn_f32").text.count("fmaf(") == 4, "headers are found beside the stages"


def test_a_diff_applied_to_the_old_file_gives_the_new_one():
    old, new = s01_naive.stage.source, s02_tiled.stage.source
    shown = views.diff("s01_naive", "s02_tiled", context=10**6)
    title, *lines = shown.text.splitlines()
    assert [line[2:] for line in lines if line[0] in " -"] == old.read_text(encoding="utf-8").splitlines()
    assert [line[2:] for line in lines if line[0] in " +"] == new.read_text(encoding="utf-8").splitlines()
    added, removed = sum(line[0] == "+" for line in lines), sum(line[0] == "-" for line in lines)
    assert title == f"s01_naive.cu -> s02_tiled.cu: {added} lines added, {removed} removed"
    read(shown)
    assert views.diff(old, old).text == "s01_naive.cu, edited: no line differs"


def test_lowered_counts_what_the_kernels_formula_needs(naive):
    """16 elements of a and of b a step: 32 to widen, in pairs 16 to unpack, 16 multiply-adds; PTX and SASS
    agree on that."""
    shown = views.lowered(naive, "acc = fma_rn_f32")
    head = shown.text.partition("mov.b32 {")[0]
    ptx = {"cvt.f32.f16": 32, "cvt.rn.f16x2.e4m3x2": 16, "fma.rn.f32": 16}
    sass = {"HADD2.F32": 32, "F2FP.F16.E4M3.UNPACK_B": 16, "FFMA": 16}
    for opcode, count in {**ptx, **sass}.items():
        assert re.search(rf"\b{count}  {re.escape(opcode)}(\s|$)", head), opcode
    assert "32  cvt.f32.f16" in read(shown)
    whole = views.lowered(naive, "").text
    assert whole.count("ld.global.v4.u32 {%") == naive.ptx.count("ld.global.v4.u32 \t{%") == 2


def test_the_loop_is_the_one_that_multiplies(naive):
    body = views.loop(naive)
    assert sum(each.opcode == "FFMA" for each in body) == 16 == naive.opcodes["FFMA"]
    assert body[0].label and body[0].label in body[-1].text and body[-1].opcode == "BRA"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = views.loop_mix(naive)
        assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture.text.startswith(
        f"s01_naive: {len(body)} instructions a pass, 16 of them FFMA; arithmetic 16, conversion 48, memory 2"
    )
    tiled = minigemm.inspect(s02_tiled)
    config = s02_tiled.Config()
    assert sum(each.opcode == "FFMA" for each in views.loop(tiled)) == 4 * config.thread_m * config.thread_n

    # two steps a pass, whose tile loop repeats a step behind them and whose slow waits jump back into both
    overlapped = minigemm.inspect("s11_overlapped", s11_overlapped.Config(64, 128, 6, 1))
    assert sum(each.opcode == "FFMA" for each in views.loop(overlapped)) == 2 * 128 // 2


def test_bad_input_is_named(naive, tmp_path: Path):
    with pytest.raises(ValueError, match="stage: expected one of s01_naive"):
        views.code("s99")
    with pytest.raises(ValueError, match=r"stage: .*no_such\.cu"):
        views.code(tmp_path / "no_such.cu")
    with pytest.raises(ValueError, match="part: .*'nothing'"):
        views.code("s01_naive", "nothing")
    with pytest.raises(ValueError, match="mark: .*'nothing'"):
        views.code("s01_naive", "load", mark="nothing")
    with pytest.raises(ValueError, match="new: expected one of"):
        views.diff("s01_naive", "s99")
    with pytest.raises(ValueError, match=r"line: s01_naive\.cu .*'nothing'"):
        views.lowered(naive, "nothing")
    (tmp_path / "fill.cu").write_text(STORES_ONLY)
    with pytest.raises(ValueError, match="inspection: no loop of fill"):
        views.loop(minigemm.inspect(tmp_path / "fill.cu"))
