"""Quantization in one kernel each, on both runtimes, with the bits of `quantize.quantize`.

    from minigemm.kernels import quantizers

    a = quantizers.quantize_1x128(x)  # activations: (m, k) or (groups, m, k)
    b = quantizers.quantize_128x128(w)  # weights: (n, k) or (groups, n, k)
    a = quantizers.quantize_swiglu(gate_up)  # silu(gate) * up of (m, 2 * h), as activations
    t = quantizers.quantize_transposed(x)  # x.T, as activations: for the gradient of weights

CUDA tensors are quantized on their own Hopper GPU, on torch's current stream, without waiting; CPU tensors by
the same kernel on the emulator, which takes far longer than `quantize.quantize`. The results go into the
library's calls as they are. Each call reads x from memory once.

Arguments, common to all:

- x: bfloat16, float16 or float32, 2-D or with groups 3-D, last dimension contiguous, any other strides. Loads
  are 16 bytes wide where every row begins at a multiple of 16 bytes and has a multiple of 8 columns, else one
  element.
- ue8m0: whether each scale is rounded up to a power of two.
- floor: the least amax of a block. DeepSeek's is 1e-4; 0 leaves it to the data.
- out: where the result goes, a `Quantized` or (data, scales): float8_e4m3fn, rows contiguous (3-D: all of
  it), and float32 scales that are M-major (`layout.empty_m_major`), those of 128x128 blocks row-major. It
  shares no memory with x. With `out`, a call allocates nothing.

Errors: TypeError or ValueError that names the argument, before anything is compiled or launched.
Source of the scheme: DeepSeek-V3 Technical Report (arXiv 2412.19437), section 3.3.2.
"""

from __future__ import annotations

import os
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from .. import checks, runtime, types
from ..compiler import jit
from ..hopper import SMS
from ..layout import ceil_div, check_memory, empty_m_major, is_m_major
from ..quantize import BLOCK, Quantized, check_dense, check_scaling
from ..types import Launch

__all__ = [
    "Config",
    "Described",
    "RowsConfig",
    "describe_blocks",
    "describe_rows",
    "describe_transposed",
    "quantize_1x128",
    "quantize_128x128",
    "quantize_swiglu",
    "quantize_transposed",
    "run",
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # by their number in quantize.cuh
THREADS = 256
WARPS = THREADS // 32
VECTOR, LOAD_BYTES, STORE_BYTES = 8, 16, 8  # elements of a thread; bytes of a wide access
MOST_GROUPS = (1 << 16) - 1  # of a grid, along y
BUSY = 16 * SMS  # warps that keep a GPU's memory busy


@dataclass(frozen=True)
class Config(types.Config):
    """What the kernel knows of its tensors when it is compiled.

    Attributes:
        dtype: of x, as a number: 0 bfloat16, 1 float16, 2 float32.
        wide_loads: every row of x begins at a multiple of 16 bytes and holds a multiple of 8 elements.
        wide_stores: every row of the result begins at a multiple of 8 bytes and holds a multiple of 8.
    """

    dtype: int = 0
    wide_loads: bool = True
    wide_stores: bool = True


@dataclass(frozen=True)
class RowsConfig(Config):
    """The config of quantize_rows.

    Attributes:
        rows: of which half a warp has a block each, at the same time.
        swiglu: x holds gate and up, and their product is quantized.
    """

    rows: int = 4
    swiglu: bool = False


class Described(NamedTuple):
    """A launch of the kernel `name`, in the file of that name, compiled under `config`."""

    name: str
    config: Config
    launch: Launch


# --- the calls


def quantize_1x128(
    x: torch.Tensor,
    *,
    masked_m: torch.Tensor | None = None,
    ue8m0: bool = False,
    floor: float = 0.0,
    out: Quantized | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Quantized:
    """Quantize activations with a scale for each 1x128 block, as `quantize.quantize(x, "1x128")` does.

    Args:
        x: (m, k) or (groups, m, k).
        masked_m: int32 (groups,), the rows of each group that are in use; x is 3-D then. Other rows are
            neither read nor written.
        ue8m0, floor, out: see the module.

    Returns:
        Data like x, scales (..., m, ceil(k / 128)), M-major.
    """
    x = _checked(x, ue8m0, floor)
    counts = _counts(masked_m, x)
    result = _result(out, x.shape, "1x128", x)
    return _finish(describe_rows(x, result, counts, ue8m0, floor), result)


def quantize_swiglu(
    x: torch.Tensor,
    *,
    masked_m: torch.Tensor | None = None,
    ue8m0: bool = False,
    floor: float = 0.0,
    out: Quantized | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Quantized:
    """Quantize silu(gate) * up with a scale for each 1x128 block.

    The bits are those of `quantize.quantize(quantize.swiglu(x), "1x128")`: the product is not rounded to
    bfloat16 in between.

    Args:
        x: (m, 2 * h) or (groups, m, 2 * h): the gate's h columns, then those of up.
        masked_m, ue8m0, floor, out: as in `quantize_1x128`.

    Returns:
        Data (..., m, h), scales (..., m, ceil(h / 128)), M-major.
    """
    x = _checked(x, ue8m0, floor)
    if x.shape[-1] % 2:
        raise ValueError(f"x: expected the columns of gate and up, an even number, got {x.shape[-1]}")
    counts = _counts(masked_m, x)
    result = _result(out, (*x.shape[:-1], x.shape[-1] // 2), "1x128", x)
    return _finish(describe_rows(x, result, counts, ue8m0, floor, swiglu=True), result)


def quantize_128x128(
    x: torch.Tensor,
    *,
    ue8m0: bool = False,
    floor: float = 0.0,
    out: Quantized | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Quantized:
    """Quantize weights with a scale for each 128x128 block, as `quantize.quantize(x, "128x128")` does.

    Args:
        x: (n, k) or (groups, n, k).
        ue8m0, floor, out: see the module.

    Returns:
        Data like x, scales (..., ceil(n / 128), ceil(k / 128)), row-major.
    """
    x = _checked(x, ue8m0, floor)
    result = _result(out, x.shape, "128x128", x)
    return _finish(describe_blocks(x, result, ue8m0, floor), result)


def quantize_transposed(
    x: torch.Tensor,
    *,
    ue8m0: bool = False,
    floor: float = 0.0,
    out: Quantized | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Quantized:
    """Quantize x.T with a scale for each of its 1x128 blocks: 128 rows of x in one column.

    Args:
        x: (m, k) or (groups, m, k).
        ue8m0, floor, out: see the module.

    Returns:
        Data (..., k, m), scales (..., k, ceil(m / 128)), M-major.
    """
    x = _checked(x, ue8m0, floor)
    result = _result(out, (*x.shape[:-2], x.shape[-1], x.shape[-2]), "1x128", x)
    return _finish(describe_transposed(x, result, ue8m0, floor), result)


# --- checks


def _checked(given: object, ue8m0: object, floor: object) -> torch.Tensor:
    """Return x, without its gradient, if a kernel can read it."""
    x = checks.check_tensor("x", check_dense(given).detach())
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected bfloat16, float16 or float32, got {x.dtype}")
    if x.dim() not in (2, 3):
        raise ValueError(f"x: expected (rows, k) or (groups, rows, k), got shape {tuple(x.shape)}")
    if max(x.shape) > checks.SIZE_LIMIT or (x.dim() == 3 and x.shape[0] > MOST_GROUPS):
        expected = f"at most 2**30 rows and columns and {MOST_GROUPS} groups"
        raise ValueError(f"x: expected {expected}, got shape {tuple(x.shape)}")
    if x.stride(-1) != 1 and x.shape[-1] > 1 and x.numel():
        raise ValueError(f"x: expected a contiguous last dimension, got strides {tuple(x.stride())}")
    check_memory("x", x)
    if past := x.data_ptr() % x.element_size():
        raise ValueError(f"x: expected an address of whole elements, got one that is {past} bytes past one")
    check_scaling(ue8m0, floor)
    runtime.of(x.device).check_device(x.device)
    return x


def _counts(masked_m: object, x: torch.Tensor) -> torch.Tensor | None:
    """Return the counts of rows, checked against x; their values too where x lies on the CPU."""
    if masked_m is None:
        return None
    if x.dim() != 3:
        expected = "(groups, m, k) together with masked_m"
        raise ValueError(f"x: expected {expected}, got shape {tuple(x.shape)}")
    counts = checks.check_groups(
        "masked_m", masked_m, x.shape[0], "a count for each group of x", x.device, "x"
    )
    if x.device.type == "cpu":
        checks.check_counts(counts, x.shape[1])
    return counts


def _result(out: object, shape: tuple[int, ...], granularity: str, x: torch.Tensor) -> Quantized:
    """Return what `out` holds, checked, or new memory for data of this shape and its scales."""
    *groups, rows, columns = shape
    m_major = granularity == "1x128"
    blocks = (*groups, rows if m_major else ceil_div(rows, BLOCK), ceil_div(columns, BLOCK))
    if out is None:
        data = torch.empty(shape, dtype=torch.float8_e4m3fn, device=x.device)
        if m_major:
            scale = empty_m_major(blocks[-2], blocks[-1], x.device, groups[0] if groups else None)
        else:
            scale = torch.empty(blocks, dtype=torch.float32, device=x.device)
        return Quantized(data, scale, granularity)

    # What a caller brings must be what would have been made, but for the stride of the data's rows.
    (name, data), (scales_name, scale) = parts = checks.parts("out", out, granularity)
    for part in parts:
        checks.check_tensor(*part)
    if data.dtype != torch.float8_e4m3fn:
        raise TypeError(f"{name}: expected float8_e4m3fn, got {data.dtype}")
    checks.check_out(name, data, tuple(shape), x.device, "x")
    if scale.dtype != torch.float32:
        raise TypeError(f"{scales_name}: expected float32, got {scale.dtype}")
    if tuple(scale.shape) != blocks:
        raise ValueError(f"{scales_name}: expected shape {blocks}, got {tuple(scale.shape)}")
    checks.check_same(scales_name, scale, x.device, "x")
    check_memory(scales_name, scale)
    if scale.numel() and not (is_m_major(scale) if m_major else scale.is_contiguous()):
        expected = "M-major scales, as layout.empty_m_major makes them" if m_major else "contiguous scales"
        raise ValueError(f"{scales_name}: expected {expected}, got strides {tuple(scale.stride())}")
    checks.check_overlap(data, {"x": x, scales_name: scale}, name)
    checks.check_overlap(scale, {"x": x}, scales_name)
    return Quantized(data, scale, granularity)


# --- the launches


def describe_rows(
    x: torch.Tensor,
    result: Quantized,
    counts: torch.Tensor | None = None,
    ue8m0: bool = False,
    floor: float = 0.0,
    swiglu: bool = False,
) -> Described:
    """Describe a launch of quantize_rows, with half a warp for a block of each of `rows` rows."""
    *_, m, k = result.data.shape
    groups, blocks = _groups(x), ceil_div(k, BLOCK)
    rows = 4 if groups * ceil_div(m, 8) * blocks >= BUSY else 1
    config = RowsConfig(*_widths(x, result, 2 if swiglu else 1), rows, swiglu)
    grid = ceil_div(ceil_div(m, 2 * rows) * blocks, WARPS)
    args = (counts if counts is not None else c_void_p(None), m, k, *_strides(x, result))
    return _described("quantize_rows", config, grid, x, result, args, ue8m0, floor)


def describe_blocks(x: torch.Tensor, result: Quantized, ue8m0: bool = False, floor: float = 0.0) -> Described:
    """Describe a launch of quantize_blocks, with a CTA for each block."""
    n, k = x.shape[-2:]
    config = Config(*_widths(x, result))
    grid = ceil_div(n, BLOCK) * ceil_div(k, BLOCK)
    args = (n, k, *_strides(x, result)[:3])
    return _described("quantize_blocks", config, grid, x, result, args, ue8m0, floor)


def describe_transposed(
    x: torch.Tensor, result: Quantized, ue8m0: bool = False, floor: float = 0.0
) -> Described:
    """Describe a launch of quantize_transposed, with a CTA for 128x128 elements."""
    m, k = x.shape[-2:]
    config = Config(*_widths(x, result))
    grid = ceil_div(m, BLOCK) * ceil_div(k, BLOCK)
    args = (m, k, *_strides(x, result))
    return _described("quantize_transposed", config, grid, x, result, args, ue8m0, floor)


def run(described: Described, device: torch.device, source: str | os.PathLike[str] | None = None) -> None:
    """Compile the kernel, or a version of it in another file `source`, and launch it."""
    name, config, launch = described
    path = Path(__file__).with_name(f"{name}.cu") if source is None else Path(source)
    runtime.run(jit.build(path, config, name=name, symbol=name), launch, device)


def _finish(described: Described, result: Quantized) -> Quantized:
    """Run the launch, unless there is nothing to write, and return the result."""
    if result.data.numel():
        run(described, result.data.device)
    return result


def _described(
    name: str,
    config: Config,
    grid: int,
    x: torch.Tensor,
    result: Quantized,
    args: tuple[object, ...],
    ue8m0: bool,
    floor: float,
) -> Described:
    """Put a launch together: all kernels begin with the same arguments and end with the same two."""
    args = (x, result.data, result.scale, *args, float(floor), int(ue8m0))
    return Described(name, config, Launch((grid, _groups(x), 1), (THREADS, 1, 1), args))


def _groups(x: torch.Tensor) -> int:
    return x.shape[0] if x.dim() == 3 else 1


def _widths(x: torch.Tensor, result: Quantized, halves: int = 1) -> tuple[int, bool, bool]:
    """Return the fields of a Config: x's dtype, and whether loads and stores are wide.

    A row of x has `halves` parts, 2 for gate and up.
    """
    loads = _is_wide(x, x.shape[-1] // halves, LOAD_BYTES)
    return DTYPES.index(x.dtype), loads, _is_wide(result.data, result.data.shape[-1], STORE_BYTES)


def _is_wide(tensor: torch.Tensor, columns: int, size: int) -> bool:
    """Return whether every row begins at a multiple of `size` bytes, and columns come in whole vectors."""
    strides = [s for s, length in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True) if length > 1]
    starts = (tensor.data_ptr(), *(stride * tensor.element_size() for stride in strides))
    return not columns % VECTOR and not any(start % size for start in starts)


def _strides(x: torch.Tensor, result: Quantized) -> tuple[c_int64, c_int64, c_int64, int]:
    """Return how many elements the next group of x, row of x, row of data and column of scales is away."""
    group = x.stride(0) if x.dim() == 3 else 0
    return c_int64(group), c_int64(x.stride(-2)), c_int64(result.data.stride(-2)), result.scale.stride(-1)
