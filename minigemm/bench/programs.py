"""The programs that a benchmark starts: where the CUDA toolkit has them, and their environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = ["environment", "find", "toolkit"]


def environment(**more: str) -> dict[str, str]:
    """Return this process's variables and `more`, with this minigemm, installed or not, first to import."""
    above = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (above, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **more, "PYTHONPATH": path}


def toolkit() -> str:
    """Return the folder in which the CUDA toolkit keeps its programs."""
    return f"{os.environ.get('CUDA_HOME') or '/usr/local/cuda'}/bin"


def find(program: str, folders: Iterable[str] = ()) -> str | None:
    """Return a program's path: on the PATH, else in the CUDA toolkit, else in `folders`; None if nowhere."""
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join((toolkit(), *folders)))
