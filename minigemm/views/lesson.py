"""The beginning of every lesson: where it runs, and a copy of a stage to change."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import torch

from ..kernels import stage_named
from ..machine import best_device

__all__ = ["device", "edited", "excerpt"]


def device() -> torch.device:
    """Choose the first Hopper GPU, else the CPU with the emulator, and print in one sentence which it is and
    why."""
    found = best_device()
    if found.type == "cuda":
        name = torch.cuda.get_device_name(found)
        print(f"Found {name}: kernels run on it, and on the emulator wherever you look inside them.")
    elif torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        print(f"Found {name}, and these kernels need a Hopper GPU: they run on the CPU with the emulator.")
    else:
        print("Found no GPU: the Hopper kernels run on the CPU with the emulator.")
    return found


def edited(stage: str | Path, old: str, new: str, occurrence: int = 1) -> Path:
    """Copy a stage's file to a scratch folder with one place changed, for `gemm(a, b, source=...)`.

    Args:
        stage: its name, or the path of a copy that was edited before.
        old, new: the text that goes, and the text that comes instead.
        occurrence: which of the places that contain `old`, counted from 1.

    Raises ValueError when there is no such stage or file, or when the file has no such place.
    """
    path = _file(stage)
    if not old:
        raise ValueError("old: expected the text that goes, got an empty one")
    parts = path.read_text(encoding="utf-8").split(old)
    found = len(parts) - 1
    if not found:
        raise ValueError(f"old: {path.name} has no place that reads {old!r}")
    if not 1 <= occurrence <= found:
        places = "1 place that reads" if found == 1 else f"{found} places that read"
        raise ValueError(f"occurrence: {path.name} has {places} {old!r}, got {occurrence}")

    return _scratch(path.name, old.join(parts[:occurrence]) + new + old.join(parts[occurrence:]))


def excerpt(stage: str | Path, first: str, last: str) -> Path:
    """Copy some lines of a stage's file to a scratch folder, for `views.code` and `views.diff`.

    Args:
        stage: its name, or the path of a CUDA file.
        first: the first line that contains this text is the first that is copied.
        last: the next line that contains this text is the last one.

    Raises ValueError when there is no such stage or file, or when the file has no such lines.
    """
    path = _file(stage)
    lines = path.read_text(encoding="utf-8").splitlines()
    begin = next((i for i, line in enumerate(lines) if first in line), None)
    if begin is None:
        raise ValueError(f"first: {path.name} has no line that reads {first!r}")
    end = next((i for i in range(begin, len(lines)) if last in lines[i]), None)
    if end is None:
        raise ValueError(f"last: behind line {begin + 1}, {path.name} has no line that reads {last!r}")
    kept = lines[begin : end + 1]

    # They move to the left together, except pragmas, which stand there already.
    margin = min(len(line) - len(line.lstrip()) for line in kept if line and not line.startswith("#"))
    return _scratch(
        path.name, "".join(f"{line if line.startswith('#') else line[margin:]}\n" for line in kept)
    )


def _file(stage: str | Path) -> Path:
    path = Path(stage) if str(stage).endswith(".cu") else Path(stage_named(str(stage)).stage.source)
    if not path.is_file():
        got = f"{str(stage)!r}, which is not a file"
        raise ValueError(f"stage: expected the name of a stage or a CUDA file, got {got}")
    return path


def _scratch(name: str, text: str) -> Path:
    """Write a file into a folder of its own, which lives as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="minigemm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / name
    copy.write_text(text, encoding="utf-8")
    return copy
