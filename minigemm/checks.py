"""What is wrong with a call: each check raises TypeError or ValueError that names the argument, what was expected and what came.

Nothing here reads a tensor's data, except `check_ids`, `check_prefix_sums` and `check_counts`, which are for CPU tensors and for debugging.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from .layout import ceil_div, round_up
from .quantize import BLOCK, Quantized

__all__ = [
    "check_counts", "check_data", "check_flag", "check_groups", "check_ids", "check_int", "check_out", "check_out_dtype", "check_overlap",
    "check_prefix_sums", "check_scale", "check_sum", "parts",
]  # fmt: skip

SIZE_LIMIT = 1 << 30  # rows or columns
OUT_DTYPES = (torch.bfloat16, torch.float32)
Named = tuple[str, torch.Tensor]


def parts(name: str, operand: object, granularity: str) -> tuple[Named, Named]:
    """Data and scales of an operand, each with the name that messages give it."""
    if isinstance(operand, Quantized):
        if operand.granularity != granularity:
            raise ValueError(f"{name}.granularity: expected {granularity!r}, got {operand.granularity!r}")
        named = (f"{name}.data", operand.data), (f"{name}.scale", operand.scale)
    elif isinstance(operand, (tuple, list)) and len(operand) == 2:
        named = (f"{name}[0]", operand[0]), (f"{name}[1]", operand[1])
    else:
        came = (
            f"{type(operand).__name__} of {len(operand)}"
            if isinstance(operand, (tuple, list))
            else type(operand).__name__
        )
        raise TypeError(f"{name}: expected (data, scales) or a Quantized, got {came}")
    for part, tensor in named:
        _tensor(part, tensor)
    return named


def _tensor(name: str, tensor: object) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {tensor.layout}")
    return tensor


def check_data(named: Named, dims: int) -> None:
    """FP8, (rows, k) or (groups, rows, k), as TMA can read it."""
    name, data = named
    if data.dtype != torch.float8_e4m3fn:
        raise TypeError(f"{name}: expected float8_e4m3fn, got {data.dtype}")
    if data.dim() != dims:
        raise ValueError(
            f"{name}: expected {'(rows, k)' if dims == 2 else '(groups, rows, k)'}, got shape {tuple(data.shape)}"
        )
    rows, k = data.shape[-2:]
    if k % 16:
        raise ValueError(f"{name}: expected a k (columns) that is a multiple of 16, got {k}")
    if max(data.shape) > SIZE_LIMIT or (dims == 3 and data.shape[0] * rows > SIZE_LIMIT):
        raise ValueError(f"{name}: expected at most 2**30 rows and columns, got {tuple(data.shape)}")
    if not data.numel():
        return
    if data.stride(-1) != 1 and k > 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {data.stride()}")
    if rows > 1 and (data.stride(-2) % 16 or data.stride(-2) < k):
        raise ValueError(
            f"{name}: expected a row stride that is a multiple of 16 bytes and at least k = {k}, got {data.stride(-2)}"
        )
    if dims == 3 and not data.is_contiguous():
        raise ValueError(
            f"{name}: expected groups that lie one behind the other (contiguous), got strides {data.stride()}"
        )
    if data.data_ptr() % 16:
        raise ValueError(
            f"{name}: expected a 16-byte aligned start, got an address that is {data.data_ptr() % 16} bytes past one"
        )


def check_scale(named: Named, data: torch.Tensor, granularity: str) -> None:
    """FP32, one for each 1x128 or 128x128 block of the data, in an order that the kernel reads or that can be laid out for it."""
    name, scale = named
    *groups, rows, k = data.shape
    down, across = (rows if granularity == "1x128" else ceil_div(rows, BLOCK)), ceil_div(k, BLOCK)
    shape = (*groups, down, across)
    if scale.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {scale.dtype}")
    if tuple(scale.shape) != shape:
        raise ValueError(
            f"{name}: expected shape {shape}, one scale for each {granularity} block, got {tuple(scale.shape)}"
        )
    if scale.device != data.device:
        raise ValueError(f"{name}: expected the data's device, {data.device}, got {scale.device}")
    if not scale.numel():
        return
    if scale.data_ptr() % 4:
        raise ValueError(
            f"{name}: expected a 4-byte aligned start, got an address that is {scale.data_ptr() % 4} bytes past one"
        )
    if granularity == "1x128":
        if not _apart(scale):
            raise ValueError(
                f"{name}: expected scales that do not overlap, got strides {tuple(scale.stride())} for shape {shape}"
            )
    elif groups and not scale.is_contiguous():
        raise ValueError(
            f"{name}: expected contiguous scales, got strides {tuple(scale.stride())} for shape {shape}"
        )
    elif (across > 1 and scale.stride(-1) != 1) or (down > 1 and scale.stride(-2) < across):
        raise ValueError(
            f"{name}: expected row-major scales that do not overlap, got strides {tuple(scale.stride())} for shape {shape}"
        )


def _apart(tensor: torch.Tensor) -> bool:
    """Whether each element has a place of its own: in order of their strides, each dimension steps over all of those before it."""
    behind = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < behind:
                return False
            behind += (size - 1) * stride
    return True


def check_same(name: str, tensor: torch.Tensor, device: torch.device, of: str = "a") -> None:
    """One device for all."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected the device of {of}, {device}, got {tensor.device}")


def check_out_dtype(out_dtype: object, d: torch.Tensor | None) -> torch.dtype:
    """The dtype of the result."""
    if out_dtype is not None and out_dtype not in OUT_DTYPES:
        raise TypeError(f"out_dtype: expected torch.bfloat16 or torch.float32, got {out_dtype!r}")
    if d is None:
        return torch.bfloat16 if out_dtype is None else out_dtype  # type: ignore[return-value]
    _tensor("d", d)
    if d.dtype not in OUT_DTYPES:
        raise TypeError(f"d: expected bfloat16 or float32, got {d.dtype}")
    if out_dtype is not None and out_dtype != d.dtype:
        raise ValueError(f"out_dtype: expected the dtype of d, {d.dtype}, got {out_dtype}")
    return d.dtype


def check_out(name: str, d: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """An output (or what is added to it) of that shape, whose rows the kernel can address."""
    if tuple(d.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(d.shape)}")
    check_same(name, d, device)
    if not d.numel():
        return
    if d.stride(-1) != 1 and d.shape[-1] > 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {tuple(d.stride())}")
    if d.shape[-2] > 1 and d.stride(-2) < d.shape[-1]:
        raise ValueError(
            f"{name}: expected rows that do not overlap, a row stride of at least n = {d.shape[-1]}, got {d.stride(-2)}"
        )
    if len(shape) == 3 and not d.is_contiguous():
        raise ValueError(
            f"{name}: expected groups that lie one behind the other (contiguous), got strides {tuple(d.stride())}"
        )
    if d.data_ptr() % d.element_size():
        raise ValueError(
            f"{name}: expected an address that is a multiple of its {d.element_size()} bytes an element, got {d.data_ptr():#x}"
        )
    if d.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name}: expected a tensor that needs no gradient, which this call does not compute"
        )


def check_sum(
    c: object, d: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """What is added to the product: like d, and d itself or apart from it."""
    added = _tensor("c", c)
    if added.dtype != dtype:
        raise TypeError(f"c: expected the dtype of d, {dtype}, got {added.dtype}")
    if tuple(added.shape) != shape:
        raise ValueError(f"c: expected shape {shape}, got {tuple(added.shape)}")
    check_same("c", added, device)
    if d is not None and not same_memory(added, d):
        check_overlap(d, {"c": added})


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are the same elements in the same order."""
    return one is other or (
        one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.shape == other.shape
    )


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses from its first byte to behind its last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def check_overlap(d: torch.Tensor, others: dict[str, torch.Tensor]) -> None:
    """d shares no memory with what the kernel reads while it writes d."""
    if not d.numel():
        return
    first, behind = _span(d)
    for name, tensor in others.items():
        if tensor.numel():
            start, end = _span(tensor)
            if start < behind and first < end and not _interleaved(d, tensor):
                raise ValueError(f"d: expected memory of its own, got a tensor that overlaps {name}")


def _interleaved(d: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are column ranges of one matrix that share no column: rows equally far apart, and apart within them."""
    if d.dim() != 2 or other.dim() != 2:
        return False
    pitch = d.stride(0) * d.element_size()
    if other.stride(1) != 1 or other.stride(0) * other.element_size() != pitch or not pitch:
        return False
    width, other_width = d.shape[1] * d.element_size(), other.shape[1] * other.element_size()
    behind = (other.data_ptr() - d.data_ptr()) % pitch
    return width <= behind and behind + other_width <= pitch


def check_groups(name: str, groups: object, length: int, what: str, device: torch.device) -> torch.Tensor:
    """int32 (length,), contiguous: row ids, prefix sums or counts."""
    layout = _tensor(name, groups)
    if layout.dtype != torch.int32:
        raise TypeError(f"{name}: expected int32, got {layout.dtype}")
    if tuple(layout.shape) != (length,):
        raise ValueError(f"{name}: expected shape ({length},), {what}, got {tuple(layout.shape)}")
    check_same(name, layout, device)
    if length > 1 and layout.stride(0) != 1:
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tuple(layout.stride())}")
    if length and layout.data_ptr() % 4:
        raise ValueError(
            f"{name}: expected a 4-byte aligned start, got an address that is {layout.data_ptr() % 4} bytes past one"
        )
    return layout


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """A Python integer from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {bound}, got {value}")
    return value


# ---------------------------------------------------------------------------------------------------- what only the data shows


def check_ids(ids: torch.Tensor, groups: int, alignment: int) -> None:
    """Row ids: -1 or a group's; and where groups begin at multiples of the alignment, one group between two of these."""
    values = ids.detach().cpu()
    outside = ((values < -1) | (values >= groups)).nonzero()
    if outside.numel():
        row = int(outside[0])
        raise ValueError(
            f"grouped_layout: expected ids from -1 to {groups - 1}, got {int(values[row])} for row {row}"
        )
    if alignment == 1 or not values.numel():
        return
    padded = torch.nn.functional.pad(values, (0, -len(values) % alignment), value=-1).reshape(-1, alignment)
    highest = padded.amax(1)
    lowest = torch.where(padded < 0, highest[:, None], padded).amin(1)
    mixed = (highest != lowest).nonzero()
    if mixed.numel():
        block = int(mixed[0])
        raise ValueError(
            f"grouped_layout: expected groups that begin at multiples of {alignment} rows, got groups {int(lowest[block])} and {int(highest[block])} "
            f"among rows {block * alignment} to {min((block + 1) * alignment, len(values)) - 1}; set_mk_alignment_for_contiguous_layout(1) allows that"
        )


def check_prefix_sums(ends: torch.Tensor, rows: int, alignment: int) -> None:
    """Each group ends behind its aligned start, and inside a."""
    values = ends.detach().cpu().tolist()
    for group, (before, end) in enumerate(pairwise([0, *values])):
        start = round_up(before, alignment)
        if end not in (start, before) and not start < end <= rows:  # the first two: an empty group
            raise ValueError(
                f"grouped_layout: expected group {group} to end between its start, row {start}, and the {rows} rows of a, got {end}"
            )


def check_counts(counts: torch.Tensor, rows: int) -> None:
    """Each group fits its buffer."""
    values = counts.detach().cpu()
    outside = ((values < 0) | (values > rows)).nonzero()
    if outside.numel():
        group = int(outside[0])
        raise ValueError(
            f"masked_m: expected 0 to {rows} rows, what the buffer holds, got {int(values[group])} for group {group}"
        )
