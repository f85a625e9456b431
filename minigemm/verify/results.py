"""The recorded results: JSON files in the repository's docs/results/, each with its machine, its date and its
protocol.

An installed wheel has no docs/, so a reader asks whether a file is there, or hears from `path` that it is
not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "files", "load", "path"]

FOLDER = Path(__file__).parents[2] / "docs" / "results"


def path(name: str | Path) -> Path:
    """Find a recorded result by its name, such as "h100_ladder.json"; an absolute path stays as it is.

    Raises FileNotFoundError when there is no such file.
    """
    found = FOLDER / name
    if not found.is_file():
        why = (
            "" if FOLDER.is_dir() else ": the repository has recorded results, an installed package has none"
        )
        raise FileNotFoundError(f"there is no {found}{why}")
    return found


def load(name: str | Path) -> Any:
    """Read a recorded result by its name, or any other file of results by its absolute path. Raises as `path`
    does."""
    return json.loads(path(name).read_text(encoding="utf-8"))


def files(pattern: str = "*.json", folder: Path = FOLDER) -> list[Path]:
    """List the recorded results whose names fit the pattern, sorted; none where there is no such folder."""
    return sorted(folder.glob(pattern)) if folder.is_dir() else []
