"""What the lanes of a warp compute together: shuffles, votes, matches, reductions, elections, 8x8 matrices.

The last dimension of every array is the 32 lanes of a warp. The dimensions before it, any number of them, are
warps that execute the same instruction at once. `present` (..., 32) says which lanes take part: the lanes of
the membermask that have not exited. A result that the whole warp shares has shape (...), one for each warp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Unsupported

__all__ = [
    "Shuffled",
    "activemask",
    "ballot",
    "elect",
    "lanes_of",
    "load_matrix",
    "mask_misuse",
    "match_all",
    "match_any",
    "matrix_addresses",
    "reduce",
    "shuffle",
    "store_matrix",
    "vote",
]

Lanes = NDArray[np.bool_]
LANES = 32
_LANE = np.arange(LANES)
_BIT = np.uint32(1) << np.arange(LANES, dtype=np.uint32)


# --- masks


def activemask(present: Lanes) -> NDArray[np.uint32]:
    """`activemask`: bit i is set where lane i is present. (..., 32) -> (...) uint32. Inverse: `lanes_of`."""
    return np.bitwise_or.reduce(np.where(present, _BIT, np.uint32(0)), axis=-1)


def lanes_of(mask: ArrayLike) -> Lanes:
    """Return the lanes of a membermask. (...) -> (..., 32) bool."""
    return (np.asarray(mask, np.int64)[..., None] >> _LANE & 1).astype(bool)


def mask_misuse(opcode: str, masks: NDArray, executing: Lanes) -> str:
    """Say what is wrong with the membermasks (32,) that the `executing` lanes (32,) of a warp gave `opcode`.

    Returns "" if nothing is wrong.

    Groups of lanes may name different masks, as the tiles of a warp do, but all lanes of a mask must name the
    same one.
    """
    masks = np.asarray(masks, np.int64) & 0xFFFFFFFF
    members = lanes_of(masks)
    for lane in np.flatnonzero(executing):
        mask = int(masks[lane])
        if not members[lane, lane]:
            return (
                f"lane {lane} executes {opcode} with membermask {mask:#010x}, which does not name it: "
                "the mask must hold every lane that executes the instruction"
            )
        others = np.flatnonzero(members[lane] & executing & (masks != mask))
        if others.size:
            other = int(others[0])
            return (
                f"lane {lane} executes {opcode} with membermask {mask:#010x}, which names lane {other}, and that one "
                f"with {int(masks[other]):#010x}: compute one mask for the group, before the branch, with __ballot_sync"
            )
    return ""


# --- shuffles


class Shuffled(NamedTuple):
    """What `shuffle` gives, each (..., 32); lanes that are not present hold their own value, and False."""

    value: NDArray  # the source lane's value, in the dtype that came in; 0 where `undefined`
    predicate: Lanes  # the source lane was in range
    undefined: Lanes  # it was in range but took no part: it exited, or is not in the membermask


def shuffle(mode: str, value: NDArray, lane: ArrayLike, clamp: ArrayLike, present: Lanes) -> Shuffled:
    """`shfl.sync.mode.b32 d|p, a, b, c`. `value`, `lane` and `clamp` are a, b and c: (..., 32), or a number.

    `mode` is up, down, bfly, idx. Bits 4-0 of c clamp the source lane, bits 12-8 split the warp into
    segments. Out of range, a lane keeps its own value and its predicate is False.
    """
    # A lane reads within its own segment, and no farther than the clamp.
    b, c = np.asarray(lane, np.int64) & 31, np.asarray(clamp, np.int64)
    segment = c >> 8 & 31
    first = _LANE & segment
    last = first | (c & 31 & ~segment)  # for .up, whose c is 0, the first lane of the segment

    # For .up the limit is the lowest lane to read from, for the other modes the highest.
    if mode == "up":
        source = _LANE - b
        in_range = source >= last
    else:
        if mode == "down":
            source = _LANE + b
        elif mode == "bfly":
            source = _LANE ^ b
        elif mode == "idx":
            source = first | (b & ~segment)
        else:
            raise Unsupported(f"shfl.sync.{mode}")
        in_range = source <= last

    # Lanes out of range read themselves. A source that takes no part has no defined value.
    predicate = np.broadcast_to(in_range, value.shape) & present
    source = np.where(predicate, source, _LANE)
    undefined = predicate & ~np.take_along_axis(np.broadcast_to(present, value.shape), source, -1)
    moved = np.take_along_axis(value, source, -1)
    return Shuffled(np.where(undefined, value.dtype.type(0), moved), predicate, undefined)


# --- votes and matches


def vote(mode: str, predicate: Lanes, present: Lanes) -> Lanes:
    """`vote.sync.mode.pred`, mode all, any or uni (all alike), over the present lanes. (..., 32) -> (...)."""
    every, some = np.asarray((predicate | ~present).all(-1)), np.asarray((predicate & present).any(-1))
    if mode not in ("all", "any", "uni"):
        raise Unsupported(f"vote.sync.{mode}")
    return {"all": every, "any": some, "uni": every | ~some}[mode]


def ballot(predicate: Lanes, present: Lanes) -> NDArray[np.uint32]:
    """`vote.sync.ballot.b32`: bit i is lane i's predicate, 0 if not present. (..., 32) -> (...) uint32."""
    return activemask(predicate & present)


def match_any(value: NDArray, present: Lanes) -> NDArray[np.uint32]:
    """`match.any.sync`, b32 or b64: the present lanes that hold the lane's own value. (..., 32) uint32."""
    alike = (value[..., :, None] == value[..., None, :]) & present[..., None, :] & present[..., :, None]
    return activemask(alike)


def match_all(value: NDArray, present: Lanes) -> tuple[NDArray[np.uint32], Lanes]:
    """`match.all.sync`: (the present lanes, True) where all hold one value, else (0, False); each (...)."""
    alike = vote("all", value == np.take_along_axis(value, elect(present)[..., None], -1), present)
    return np.where(alike, activemask(present), np.uint32(0)), alike


# --- reductions and elections


def reduce(operation: str, type: str, value: NDArray, present: Lanes) -> NDArray[np.uint32]:
    """`redux.sync.operation.type`: add, min, max (s32, u32), and, or, xor (b32) over the present lanes.

    `value` (..., 32) is of any integer dtype, its low 32 bits count; the result (...) is a bit pattern.
    """
    bits = np.asarray(value).astype(np.uint32)
    numbers: NDArray = bits
    function: Callable[..., Any]
    if operation in ("min", "max") and type in ("s32", "u32"):
        numbers = bits.view(np.int32) if type == "s32" else bits
        limits = np.iinfo(numbers.dtype)
        neutral, function = (
            (limits.max, np.minimum.reduce) if operation == "min" else (limits.min, np.maximum.reduce)
        )
    elif operation == "add" and type in ("s32", "u32"):
        neutral, function = 0, np.add.reduce
    elif operation in ("and", "or", "xor") and type == "b32":
        neutral = 0xFFFFFFFF if operation == "and" else 0
        function = {"and": np.bitwise_and.reduce, "or": np.bitwise_or.reduce, "xor": np.bitwise_xor.reduce}[
            operation
        ]
    else:
        raise Unsupported(f"redux.sync.{operation}.{type}")
    chosen = np.where(present, numbers, numbers.dtype.type(neutral))
    return np.asarray(function(chosen, axis=-1, dtype=chosen.dtype)).view(np.uint32)


def elect(present: Lanes) -> NDArray[np.intp]:
    """`elect.sync`: the lane that leads, the lowest present one. (..., 32) -> (...)."""
    return np.argmax(present, axis=-1)


# --- 8x8 matrices of 16-bit elements


@cache
def _matrix_elements(count: int, transposed: bool) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the lane that gave the row's address, and the byte, of each register half: (32, count, 2)."""
    lane, matrix, half = np.ogrid[:LANES, :count, :2]
    row, column = lane // 4 + 0 * half, lane % 4 * 2 + half
    if transposed:
        row, column = column, row
    shape = (LANES, count, 2)
    return np.broadcast_to(matrix * 8 + row, shape), np.broadcast_to(column * 2, shape)


def matrix_addresses(addresses: NDArray, count: int, transposed: bool) -> NDArray[np.int64]:
    """Return where `ldmatrix` and `stmatrix` `.m8n8.xCOUNT{.trans}.b16` find what a lane's registers hold.

    `addresses` (..., 32): lane 8m + r gives the address of row r of matrix m, 16 bytes. Lanes from 8 * count
    on are ignored. The result (..., 32, count, 2) is the byte address of the low and the high half of each
    lane's registers.
    """
    source, offset = _matrix_elements(count, transposed)
    return np.asarray(addresses, np.int64)[..., source] + offset


def load_matrix(
    shared: NDArray[np.uint8], addresses: NDArray, count: int, transposed: bool
) -> NDArray[np.uint32]:
    """`ldmatrix` from bytes: each lane's registers, (..., 32, count)."""
    halves = shared.view(np.uint16)[matrix_addresses(addresses, count, transposed) // 2]
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


def store_matrix(
    shared: NDArray[np.uint8], addresses: NDArray, registers: NDArray[np.uint32], transposed: bool
) -> None:
    """`stmatrix` into bytes: `registers` (..., 32, count) hold two elements each."""
    halves = np.ascontiguousarray(registers, np.uint32)[..., None].view(np.uint16)
    shared.view(np.uint16)[matrix_addresses(addresses, registers.shape[-1], transposed) // 2] = halves
