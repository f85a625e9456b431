"""The failure of a peer: a word in the table, or a GPU that is lost to this process."""

from __future__ import annotations

from typing import Any

from .peers import Missing

__all__ = ["Lost", "check_alive", "reason"]


class Lost(Exception):
    """The GPU does not answer this process any more: a kernel failed so that CUDA does not recover."""


def reason(error: BaseException) -> str:
    """Return the error as one line of at most 300 characters."""
    if isinstance(error, Missing):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name} is not installed"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def check_alive(device: Any, what: str, error: BaseException) -> None:
    """Raise Lost if the GPU does not answer after that error."""
    import torch

    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).item()
    except Exception as fault:
        lost = f"{what} left the GPU unusable for this process: {reason(error)}"
        raise Lost(f"{lost}; --peer leaves others out") from fault
