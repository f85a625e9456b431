"""What every lesson begins with: where it runs, and a copy of a stage to change."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import torch

from ..kernels import stage_named
from ..machine import best_device

__all__ = ["device", "edited"]


def device() -> torch.device:
    """The first Hopper GPU, else the CPU with the emulator; prints in one sentence which it is, and why."""
    found = best_device()
    if found.type == "cuda":
        print(
            f"Found {torch.cuda.get_device_name(found)}: kernels run on it, and on the emulator wherever you look inside them."
        )
    elif torch.cuda.is_available():
        print(
            f"Found {torch.cuda.get_device_name(0)}, and these kernels need a Hopper GPU: they run on the CPU with the emulator."
        )
    else:
        print("Found no GPU: the Hopper kernels run on the CPU with the emulator.")
    return found


def edited(stage: str | Path, old: str, new: str, occurrence: int = 1) -> Path:
    """A copy of a stage's file in a scratch folder with one place changed, for `gemm(a, b, source=...)`.

    Args:
        stage: its name, or the path of a copy that was edited before.
        old: the text that goes; new: what comes instead.
        occurrence: which of the places that read so, counted from 1.

    Raises ValueError when there is no such stage or file, or when the file has no such place.
    """
    path = Path(stage) if str(stage).endswith(".cu") else Path(stage_named(str(stage)).stage.source)
    if not path.is_file():
        raise ValueError(
            f"stage: expected the name of a stage or a CUDA file, got {str(stage)!r}, which is not a file"
        )
    if not old:
        raise ValueError("old: expected the text that goes, got an empty one")
    parts = path.read_text(encoding="utf-8").split(old)
    found = len(parts) - 1
    if not found:
        raise ValueError(f"old: {path.name} has no place that reads {old!r}")
    if not 1 <= occurrence <= found:
        raise ValueError(
            f"occurrence: {path.name} has {found} place{'' if found == 1 else 's'} that read{'s' if found == 1 else ''} {old!r}, got {occurrence}"
        )
    folder = Path(tempfile.mkdtemp(prefix="minigemm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / path.name
    copy.write_text(old.join(parts[:occurrence]) + new + old.join(parts[occurrence:]), encoding="utf-8")
    return copy
