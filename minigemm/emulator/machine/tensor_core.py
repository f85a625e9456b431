"""The arithmetic of Hopper's FP8 tensor core, bit for bit.

    from minigemm.emulator import tensor_core
    d = tensor_core.wgmma(a, b)  # a (64, K), b (N, K) FP8 -> float32 (64, N), one k32 step after the other

The rule for one step of 32 products and one element, found by comparing with a GPU's results:

1. A NaN among the operands or in the accumulator C gives NaN (0x7fffffff). An infinite C stays.
2. A product is an integer, ma * mb, times 2^(ea + eb - 6). Subnormals keep e = -6 (e5m2: -14) and are not
   normalised first.
3. E is the largest exponent ea + eb of the products that are not zero, and of C when it is not zero.
4. Every magnitude is truncated toward zero at 2^(E - 13), C too; then the signs are applied and the integers
   added, exactly.
5. The sum's magnitude is truncated to 14 significant bits. A sum of zero is +0.

So an accumulator holds 14 bits, not the 24 of FP32, and the order inside a step does not matter.

Sources: recorded results of Hopper GPUs (tests/data/tensor_core_*.npz). That such units align and truncate:
Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ CS, 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit

__all__ = ["KINDS", "STEP", "Format", "accumulate", "accumulate_fast", "format_of", "prepare", "wgmma"]

KINDS = ("e4m3", "e5m2")
STEP = 32  # products of one element that one instruction adds
ROWS = 64  # of a, and of the result
NAN = 0x7FFFFFFF

_ZERO = -1000  # the exponent of a zero: never the largest
_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
_FINITE, _INF, _NAN = 0, 1, 2


@dataclass(frozen=True, eq=False)
class Format:
    """The 256 codes of an FP8 format. Unless special, a code is `significand * 2^(exponent - 3)`."""

    significand: np.ndarray  # int32 (256,)
    exponent: np.ndarray  # int32 (256,)
    special: np.ndarray  # int32 (256,): finite, infinite or NaN
    value: np.ndarray  # float32 (256,)


@cache
def format_of(kind: str) -> Format:
    """Return the tables of "e4m3" or "e5m2"."""
    if kind not in KINDS:
        raise ValueError(f'kind: expected "e4m3" or "e5m2", got {kind!r}')

    # Both formats get significands with three fraction bits, so that one rule multiplies them.
    fraction_bits = 3 if kind == "e4m3" else 2
    bias, exponent_bits = (7, 4) if kind == "e4m3" else (15, 5)
    codes = np.arange(256)
    fraction = codes & ((1 << fraction_bits) - 1)
    stored = codes >> fraction_bits & ((1 << exponent_bits) - 1)
    magnitude = (
        np.where(stored > 0, (1 << fraction_bits) + fraction, fraction) << (3 - fraction_bits)
    ).astype(np.int32)

    # e4m3 has no infinities, and one NaN of each sign; e5m2 has the special codes of IEEE 754.
    special = np.full(256, _FINITE, np.int32)
    if kind == "e4m3":
        special[codes & 0x7F == 0x7F] = _NAN
    else:
        special[codes & 0x7F == 0x7C] = _INF
        special[codes & 0x7F > 0x7C] = _NAN
    magnitude[special == _INF] = 8  # only the sign of an infinity counts
    magnitude[special == _NAN] = 0

    # A zero must never have the largest exponent. A subnormal has the exponent of the smallest normal number.
    exponent = np.where(magnitude == 0, _ZERO, np.maximum(stored, 1) - bias).astype(np.int32)
    value = torch.arange(256, dtype=torch.uint8).view(_DTYPES[kind]).float().numpy()
    return Format(np.where(codes >> 7, -magnitude, magnitude).astype(np.int32), exponent, special, value)


@njit(cache=True, nogil=True)
def _chain(
    a: Any, b: Any, c: Any, a_sig: Any, a_exp: Any, a_special: Any, b_sig: Any, b_exp: Any, b_special: Any
) -> None:
    """Add the steps of a (rows, k) and b (n, k), uint8, to c (rows, n) uint32, in place.

    The innermost loops run over n, so that they become vector code.
    """
    rows, n = a.shape[0], b.shape[0]
    bs, be = np.empty((32, n), np.int32), np.empty((32, n), np.int32)
    b_nan, b_inf = np.empty(n, np.int32), np.empty(n, np.int32)
    largest, total = np.empty(n, np.int32), np.empty(n, np.int32)
    for k0 in range(0, a.shape[1], 32):
        b_nan[:] = 0
        b_inf[:] = 0
        for j in range(n):
            for k in range(32):
                code = b[j, k0 + k]
                bs[k, j], be[k, j] = b_sig[code], b_exp[code]
                b_nan[j] |= b_special[code] & 2
                b_inf[j] |= b_special[code] & 1
        for i in range(rows):
            a_nan = a_inf = np.int32(0)
            for k in range(32):
                a_nan |= a_special[a[i, k0 + k]] & 2
                a_inf |= a_special[a[i, k0 + k]] & 1
            for j in range(n):
                exponent: Any = np.int32(c[i, j] >> np.uint32(23) & np.uint32(255))
                fraction = np.int32(c[i, j] & np.uint32(0x7FFFFF))
                largest[j] = -5000 if exponent == 0 and fraction == 0 else max(exponent, 1) - 127
            for k in range(32):
                ea = a_exp[a[i, k0 + k]]
                if ea > -1000:
                    for j in range(n):
                        largest[j] = max(largest[j], ea + be[k, j])
            for j in range(n):
                exponent = np.int32(c[i, j] >> np.uint32(23) & np.uint32(255))
                fraction = np.int32(c[i, j] & np.uint32(0x7FFFFF))
                if exponent > 0:
                    fraction |= np.int32(1 << 23)
                kept = fraction >> min(np.int32(10) + largest[j] - (max(exponent, 1) - 127), np.int32(31))
                total[j] = -kept if c[i, j] >> np.uint32(31) else kept
            for k in range(32):
                sa, ea = a_sig[a[i, k0 + k]], a_exp[a[i, k0 + k]]
                if sa != 0:
                    for j in range(n):
                        product = sa * bs[k, j]
                        sign = product >> np.int32(31)
                        kept = (
                            ((product ^ sign) - sign)
                            << np.int32(7)
                            >> min(largest[j] - ea - be[k, j], np.int32(31))
                        )
                        total[j] += (kept ^ sign) - sign
            for j in range(n):
                sign = total[j] >> np.int32(31)
                magnitude = (total[j] ^ sign) - sign
                bits = np.uint32(0)
                if magnitude != 0:
                    # below 2^24, so exact as a float, whose upper 13 bits of fraction are significant
                    as_float = np.float32(magnitude).view(np.uint32) & np.uint32(0xFFFFFC00)
                    exponent = np.int32(as_float >> np.uint32(23)) + largest[j] - np.int32(13)
                    if exponent > 0:
                        bits = as_float & np.uint32(0x7FFFFF) | np.uint32(exponent) << np.uint32(23)
                    else:  # C alone, and subnormal: E is -126, and a unit of the sum 2^-139
                        bits = np.uint32(magnitude) << np.uint32(10)
                    bits |= np.uint32(sign & np.int32(1)) << np.uint32(31)
                exponent = np.int32(c[i, j] >> np.uint32(23) & np.uint32(255))
                fraction = np.int32(c[i, j] & np.uint32(0x7FFFFF))
                infinite = exponent == 255 and fraction == 0
                nan = a_nan | b_nan[j] != 0 or (exponent == 255 and fraction != 0)
                if infinite:
                    bits = c[i, j]
                if not nan and a_inf | b_inf[j] != 0:
                    bits, nan = _infinities(
                        a[i, k0 : k0 + 32],
                        b[j, k0 : k0 + 32],
                        c[i, j],
                        infinite,
                        bits,
                        a_sig,
                        a_special,
                        b_sig,
                        b_special,
                    )
                c[i, j] = np.uint32(0x7FFFFFFF) if nan else bits


@njit(cache=True, nogil=True)
def _infinities(
    a: Any, b: Any, c: Any, infinite: Any, bits: Any, a_sig: Any, a_special: Any, b_sig: Any, b_special: Any
) -> Any:
    """Return the sum with infinite operands (e5m2), as (bits, is it NaN?).

    Infinity times zero and infinities of both signs are NaN; else the sum is the infinity.
    """
    positive, negative = infinite and c >> np.uint32(31) == 0, infinite and c >> np.uint32(31) == 1
    for k in range(32):
        if a_special[a[k]] == 1 or b_special[b[k]] == 1:
            product = a_sig[a[k]] * b_sig[b[k]]
            if product == 0:
                return np.uint32(0), True
            positive |= product > 0
            negative |= product < 0
    if positive and negative:
        return np.uint32(0), True
    if positive:
        return np.uint32(0x7F800000), False
    if negative:
        return np.uint32(0xFF800000), False
    return bits, False


def accumulate(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, a_kind: str = "e4m3", b_kind: str = "e4m3"
) -> None:
    """Compute `c += a @ b.T` as the tensor core does, in place.

    a is uint8 (rows, k), b uint8 (n, k), and c the bits of float32 as uint32 (rows, n), contiguous.
    """
    left, right = format_of(a_kind), format_of(b_kind)
    _chain(
        a,
        b,
        c,
        left.significand,
        left.exponent,
        left.special,
        right.significand,
        right.exponent,
        right.special,
    )


def accumulate_fast(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, a_kind: str = "e4m3", b_kind: str = "e4m3"
) -> None:
    """Compute the same with plain FP32 sums: much faster for wide tiles, and not the hardware's bits."""
    c[:] = (c.view(np.float32) + format_of(a_kind).value[a] @ format_of(b_kind).value[b].T).view(np.uint32)


@cache
def prepare() -> None:
    """Compile (or load) the arithmetic now."""
    accumulate(
        np.zeros((ROWS, STEP), np.uint8), np.zeros((8, STEP), np.uint8), np.zeros((ROWS, 8), np.uint32)
    )


def wgmma(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None, kind: str | None = None
) -> torch.Tensor:
    """Compute `d = a @ b.T + c` by a chain of `wgmma.mma_async.m64nNk32`, every bit as a Hopper GPU gives it.

    Args:
        a: (64, K) torch.float8_e4m3fn, torch.float8_e5m2, or uint8 bit patterns; on the CPU. K is a multiple
            of 32.
        b: (N, K), with the dtype of a. N is 1 or more: the instruction has multiples of 8 up to 256, but a
            column does not depend on the others.
        c: (64, N) float32, or None for accumulators that begin at zero.
        kind: "e4m3" or "e5m2": what uint8 patterns mean, "e4m3" unless said.

    Returns:
        float32 (64, N).

    Raises:
        TypeError, ValueError: a dtype, shape or kind that is none of these.
    """
    # The dtype says the format; uint8 patterns have the format that the caller names.
    kinds = []
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
        found = next((k for k, dtype in _DTYPES.items() if x.dtype == dtype), None)
        if found is None and x.dtype != torch.uint8:
            raise TypeError(f"{name}: expected float8_e4m3fn, float8_e5m2 or uint8, got {x.dtype}")
        if found and kind and found != kind:
            raise ValueError(f"kind: {name} is {x.dtype}, got kind={kind!r}")
        if x.device.type != "cpu":
            raise ValueError(f"{name}: expected a tensor on the CPU, got one on {x.device}")
        kinds.append(found or kind or "e4m3")

    # These are the shapes that a chain of m64nNk32 instructions takes.
    if a.dim() != 2 or a.shape[0] != ROWS or a.shape[1] % STEP:
        raise ValueError(f"a: expected ({ROWS}, K) with K a multiple of {STEP}, got {tuple(a.shape)}")
    if b.dim() != 2 or b.shape[1] != a.shape[1]:
        raise ValueError(f"b: expected (N, {a.shape[1]}), got {tuple(b.shape)}")
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected the dtype of a, {a.dtype}, got {b.dtype}")

    # The caller's accumulators stay as they are.
    if c is None:
        d = torch.zeros(ROWS, b.shape[0])
    else:
        if not isinstance(c, torch.Tensor) or c.dtype != torch.float32:
            raise TypeError(
                f"c: expected a float32 tensor or None, got {getattr(c, 'dtype', type(c).__name__)}"
            )
        if tuple(c.shape) != (ROWS, b.shape[0]):
            raise ValueError(f"c: expected ({ROWS}, {b.shape[0]}), got {tuple(c.shape)}")
        d = c.clone(memory_format=torch.contiguous_format)

    # The sums are written into d through a view of its bits.
    left, right = (x.contiguous().view(torch.uint8).numpy() for x in (a, b))
    accumulate(left, right, d.view(torch.int32).numpy().view(np.uint32), *kinds)
    return d
