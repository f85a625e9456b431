"""The words that every layer shares: a product, a config, whether the two agree, and the parts of a launch.

Nothing here imports the rest of minigemm, and it holds no logic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = [
    "CompileError",
    "Config",
    "HazardWarning",
    "Launch",
    "Layout",
    "Legality",
    "Problem",
    "Product",
    "TensorMap",
]


class Layout(IntEnum):
    """How the rows of a and d belong to groups.

    The values are those that the kernel knows (scheduler.cuh).
    """

    DENSE = 0
    """One product: all rows of a meet the same b."""
    CONTIGUOUS = 1
    """The rows of all groups lie in one a; an int32 for each row names its group, -1 padding."""
    PREFIX_SUMS = 2
    """The rows of all groups lie in one a; an int32 for each group says where the group ends."""
    MASKED = 3
    """Each group has a buffer of m rows; an int32 for each group counts the rows that are in use."""

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")

    def __repr__(self) -> str:
        return f"Layout.{self.name}"


class Product(NamedTuple):
    """One product `d = a @ b.T`, or the products of several groups in one call. Sizes count elements.

    Attributes:
        m: rows of a and d: of all groups together, or in a MASKED layout of each group's buffer.
        n: rows of each group's b, which are columns of d.
        k: columns of a and b.
        layout: how rows belong to groups.
        groups: how many weights b holds; 1 for a DENSE product.
        expected_m: the rows that a MASKED group is expected to use; 0 stands for all m. It chooses the tile.
        alignment: groups begin at multiples of that many rows; 1 where they begin anywhere.
        out_fp32: d is float32 instead of bfloat16.
        accumulate: the product is added to what d holds.
        zero_padding: rows of no group are written as zeros.

    A tuple, not a dataclass, because every call on the long way makes and hashes one.
    """

    m: int
    n: int
    k: int
    layout: Layout = Layout.DENSE
    groups: int = 1
    expected_m: int = 0
    alignment: int = 128
    out_fp32: bool = False
    accumulate: bool = False
    zero_padding: bool = True

    @property
    def rows(self) -> int:
        """Rows of a and d of all groups together."""
        return self.m * self.groups if self.layout == Layout.MASKED else self.m


#: Former name of Product, kept for users.
Problem = Product


@dataclass(frozen=True)
class Config:
    """The compile-time choices of a stage. Each stage subclasses it; every field is an int or a bool."""

    def constants(self) -> dict[str, int]:
        """Return the prelude's constants: field names in upper case, `{"BLOCK_M": 64, ...}`.

        A bool becomes 0 or 1.
        """
        return {field.name.upper(): int(getattr(self, field.name)) for field in fields(self)}

    def declarations(self) -> str:
        """Return the CUDA C++ that the prelude holds after the constants.

        A stage generates here what it cannot write once for every config.
        """
        return ""


@dataclass(frozen=True)
class Legality:
    """The answer of a stage's `is_legal`: true, or false with one sentence that says why.

    Reads as `if not (ok := stage.is_legal(config, problem)): raise ValueError(ok.reason)`.
    """

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A tensor that the kernel reads or writes through TMA, one `box` at a time.

    `box` counts elements, innermost dimension last, as in `tensor.shape`. `swizzle` is the span in bytes of
    the shared-memory swizzle: 0, 32, 64 or 128.
    """

    tensor: torch.Tensor
    box: tuple[int, ...]
    swizzle: int = 0


@dataclass(frozen=True, eq=False)
class Launch:
    """One kernel launch, the same for both runtimes.

    Each of `args` becomes a parameter of the kernel: a `torch.Tensor` its pointer, a `TensorMap` a 128-byte
    `__grid_constant__` tensor map, an `int` a 32-bit int, a `float` a float. ctypes scalars stay as they are.
    On the emulator NumPy scalars are taken too. `shared` is the dynamic shared memory in bytes. A `dependent`
    launch may begin while the kernel before it in the stream still runs, and waits for that one's end itself.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    args: tuple[object, ...]
    shared: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)
    dependent: bool = False


class CompileError(ValueError):
    """The compiler refused a source: `log` is what it said, `source_path` the file that holds the code."""

    def __init__(self, message: str, log: str = "", source_path: Path | None = None):
        super().__init__(message)
        self.log = log
        self.source_path = source_path


class HazardWarning(UserWarning):
    """The emulator saw a kernel rely on what a GPU does not promise: a race, a missing fence."""
