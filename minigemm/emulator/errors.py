"""What the emulator raises, and the place in the source that an error names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

__all__ = ["Deadlock", "EmulatorError", "Fault", "Location", "Unsupported"]


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the CUDA source.

    `inlined_at` is the call that brought the line into its caller, and `function` the (mangled) name of the
    function that was inlined. In the kernel's own lines both are empty.
    """

    file: str
    line: int
    column: int = 0
    inlined_at: Location | None = None
    function: str = ""

    @property
    def outermost(self) -> Location:
        """The line in the kernel itself."""
        location = self
        while location.inlined_at is not None:
            location = location.inlined_at
        return location

    def __str__(self) -> str:
        """Write `tile.cuh:12, called at kernel.cu:40`: the line, then each call that led to it, without
        folders."""
        here = f"{PurePath(self.file).name}:{self.line}"
        return f"{here}, called at {self.inlined_at}" if self.inlined_at else here


class EmulatorError(RuntimeError):
    """The PTX, or what the kernel did, is not right.

    `message` says what is wrong, and `location` where (None: not known). `report` is the `Report` of a launch
    up to there, or None before a launch has begun.
    """

    def __init__(self, message: str, location: Location | None = None):
        super().__init__(message, location)
        self.message = message
        self.location = location
        self.report: Any = None

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" if self.location else self.message


class Fault(EmulatorError):
    """An access that a GPU faults on or that reads garbage: out of bounds, misaligned, never written."""


class Deadlock(EmulatorError):
    """No thread can go on."""


class Unsupported(EmulatorError):
    """PTX that the emulator does not know; the message names it."""
