"""The reader of the recorded results: by name, by path, and where there are none."""

from __future__ import annotations

import json

import pytest

from minigemm.verify import results


def test_by_name():
    assert results.path("h100_ladder.json") in results.files("*_ladder.json")
    assert results.load("h100_ladder.json")["machine"]["gpu"]


def test_by_path(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"a": 1}))
    assert results.load(tmp_path / "mine.json") == {"a": 1}
    assert results.files(folder=tmp_path) == [tmp_path / "mine.json"]


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"there is no .*nothing\.json$"):
        results.load("nothing.json")
    monkeypatch.setattr(results, "FOLDER", tmp_path / "installed")
    with pytest.raises(FileNotFoundError, match="an installed package has none"):
        results.path("h100_ladder.json")
    assert results.files(folder=tmp_path / "installed") == []
