"""Processes that a benchmark starts."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["environment"]


def environment(**more: str) -> dict[str, str]:
    """This process's variables and `more`, with this minigemm in front of whatever else Python would import, installed or not."""
    above = str(Path(__file__).parents[2])
    return {
        **os.environ,
        **more,
        "PYTHONPATH": os.pathsep.join(filter(None, (above, os.environ.get("PYTHONPATH")))),
    }
