"""What a lesson begins with: the device, and a copy of a stage to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigemm import views
from minigemm.kernels import s01_naive, s11_overlapped
from minigemm.views import lesson

CHECK = "if (row >= m || column >= n) return;"


def test_edited_changes_one_place_of_a_copy_and_copies_can_be_edited_again():
    shipped = s01_naive.stage.source.read_text(encoding="utf-8")
    once = views.edited("s01_naive", CHECK, "")
    assert once.name == "s01_naive.cu" and once.read_text(encoding="utf-8") == shipped.replace(CHECK, "")
    twice = views.edited(once, "float acc = 0.0f", "float acc = 1.0f")
    assert twice != once and twice.read_text(encoding="utf-8") == shipped.replace(CHECK, "").replace(
        "acc = 0.0f", "acc = 1.0f"
    )
    assert s01_naive.stage.source.read_text(encoding="utf-8") == shipped


def test_occurrence_chooses_among_equal_places():
    lines = s01_naive.stage.source.read_text(encoding="utf-8").splitlines()
    places = [i for i, line in enumerate(lines) if "threadIdx.x" in line]
    changed = (
        views.edited("s01_naive", "threadIdx.x", "0", occurrence=2).read_text(encoding="utf-8").splitlines()
    )
    assert [i for i, (a, b) in enumerate(zip(lines, changed, strict=True)) if a != b] == [places[1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("s99", "a", "b"), "stage: expected one of s01_naive"),
        (("missing.cu", "a", "b"), r"stage: .*missing\.cu"),
        (("s01_naive", "", "b"), "old: .*empty"),
        (("s01_naive", "no such text", "b"), r"old: s01_naive\.cu has no place that reads 'no such text'"),
        (("s01_naive", CHECK, "", 2), "occurrence: .* has 1 place that reads .*, got 2"),
        (("s01_naive", CHECK, "", 0), "occurrence: .*got 0"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        views.edited(*arguments)


@pytest.mark.parametrize(
    ("found", "available", "said"),
    [
        (torch.device("cpu"), False, "Found no GPU"),
        (torch.device("cpu"), True, "Found Some GPU, and these kernels need a Hopper GPU"),
        (torch.device("cuda", 0), True, "Found Some GPU: kernels run on it"),
    ],
)
def test_device_says_what_it_found(monkeypatch, capsys, found, available, said):
    monkeypatch.setattr(lesson, "best_device", lambda: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert views.device() == found
    out = capsys.readouterr().out
    assert out.startswith(said) and out.count("\n") == 1


def test_scratch_copies_lie_apart_from_the_package(tmp_path: Path):
    copy = views.edited("s01_naive", CHECK, "")
    assert s01_naive.stage.source.parent not in copy.parents


def test_an_excerpt_is_whole_lines_from_one_text_to_the_next():
    shown = views.excerpt("s11_overlapped", "if (warp % 4 == 2)", "return;")
    lines = shown.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("if (warp % 4 == 2) {") and lines[-1].strip() == "return;"
    assert "\n".join(line.strip() for line in lines) in "\n".join(
        line.strip() for line in s11_overlapped.stage.source.read_text(encoding="utf-8").splitlines()
    )
    with pytest.raises(ValueError, match=r"first: s11_overlapped\.cu has no line that reads 'no such text'"):
        views.excerpt("s11_overlapped", "no such text", "return;")
    with pytest.raises(ValueError, match=r"last: behind line \d+, s11_overlapped\.cu has no line"):
        views.excerpt("s11_overlapped", "if (warp % 4 == 2)", "no such text")
    with pytest.raises(ValueError, match=r"stage: .*'gone\.cu', which is not a file"):
        views.excerpt("gone.cu", "a", "b")
