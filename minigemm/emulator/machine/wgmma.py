"""`wgmma.mma_async` as data: matrix descriptors, fragments of registers, and shapes.

Sources: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" (fragments, matrix descriptor, core
matrices, swizzle).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WARPGROUP = 128  # threads
SWIZZLES = {0: 0, 1: 128, 2: 64, 3: 32}  # the descriptor's layout type -> span in bytes
TYPES = {"f32", "f16", "bf16", "tf32", "e4m3", "e5m2", "s32", "s8", "u8", "b1"}


@dataclass(frozen=True)
class Descriptor:
    """A matrix descriptor.

    `start`, `leading` and `stride` are in bytes, `swizzle` is the span in bytes (0: none), `base_offset` is 0
    to 7.
    """

    start: int
    leading: int
    stride: int
    base_offset: int
    swizzle: int

    @classmethod
    def decode(cls, bits: int) -> Descriptor:
        """Read the 64 bits that `wgmma.mma_async` takes."""
        return cls(
            start=(bits & 0x3FFF) << 4,
            leading=(bits >> 16 & 0x3FFF) << 4,
            stride=(bits >> 32 & 0x3FFF) << 4,
            base_offset=bits >> 49 & 7,
            swizzle=SWIZZLES[bits >> 62 & 3],
        )

    def chunks(self, rows: int) -> np.ndarray:
        """Return the shared addresses (rows, 2) of the two 16-byte chunks of each row of 32 bytes.

        K-major, as FP8 always is.
        """
        return _chunks(self, rows)


@lru_cache(maxsize=4096)
def _chunks(descriptor: Descriptor, rows: int) -> np.ndarray:
    row = np.arange(rows)[:, None]
    chunk = np.arange(2)[None, :]
    if not descriptor.swizzle:  # core matrices: 8 rows of 16 bytes that lie one after the other
        return descriptor.start + row // 8 * descriptor.stride + row % 8 * 16 + chunk * descriptor.leading
    address = descriptor.start + row // 8 * descriptor.stride + row % 8 * descriptor.swizzle + chunk * 16
    # The base offset says where the pattern begins, if that is no multiple of its period.
    phase = (address >> 7) - descriptor.base_offset
    return address ^ (phase & (descriptor.swizzle // 16 - 1)) << 4


def matrix_of(fragments: np.ndarray) -> np.ndarray:
    """Turn accumulators (128 threads, n / 2 registers) into a matrix (64, n).

    Register 4j + 2h + i of lane l of warp w holds the element in row 16w + l / 4 + 8h
    and column 8j + 2(l % 4) + i.
    """
    n = fragments.shape[1] * 2
    pieces = fragments.reshape(4, 8, 4, n // 8, 2, 2)  # warp, l / 4, l % 4, j, h, i
    return np.ascontiguousarray(pieces.transpose(0, 4, 1, 3, 2, 5)).reshape(64, n)


def fragments_of(matrix: np.ndarray) -> np.ndarray:
    """Return the inverse of `matrix_of`."""
    n = matrix.shape[1]
    pieces = matrix.reshape(4, 2, 8, n // 8, 4, 2)  # warp, h, l / 4, j, l % 4, i
    return np.ascontiguousarray(pieces.transpose(0, 2, 4, 3, 1, 5)).reshape(WARPGROUP, n // 2)


def a_from_registers(registers: np.ndarray) -> np.ndarray:
    """Turn registers (128 threads, 4) uint32 into A (64, 32) uint8.

    Register 2c + h of lane l of warp w holds four bytes of row 16w + l / 4 + 8h, from 16c + 4(l % 4) on.
    """
    data = np.ascontiguousarray(registers).view(np.uint8)
    pieces = data.reshape(4, 8, 4, 2, 2, 4)  # warp, l / 4, l % 4, c, h, byte
    return np.ascontiguousarray(pieces.transpose(0, 4, 1, 3, 2, 5)).reshape(64, 32)


@dataclass(frozen=True)
class Shape:
    """The shape m64nNk32 with FP8 types `a` and `b`, and whether A comes from registers."""

    n: int
    a: str
    b: str
    from_registers: bool


@lru_cache(maxsize=256)
def shape_of(modifiers: tuple[str, ...], operands: int) -> Shape | None:
    """Return the shape of a `wgmma.mma_async` with these modifiers and operands; None if it is not emulated.

    FP8 operands with FP32 accumulators are emulated, without sparsity.
    """
    result, *inputs = [m for m in modifiers if m in TYPES] or [""]
    shape = next((m for m in modifiers if m.startswith("m64n")), "")
    if "sp" in modifiers or result != "f32" or not shape.endswith("k32"):
        return None
    if len(inputs) != 2 or not {*inputs} <= {"e4m3", "e5m2"}:
        return None
    a, b = inputs
    return Shape(int(shape[4:-3]), a, b, from_registers=operands > 5)
