"""Is this call right? One set of checks, for the stages and for the library's calls.

Each check raises TypeError or ValueError that names the argument, what was expected and what came. None reads
a tensor's data, except `check_ids`, `check_prefix_sums` and `check_counts`, which are for CPU tensors and for
debugging.
"""

from __future__ import annotations

import operator
from itertools import pairwise

import torch

from .layout import ceil_div, check_memory, is_wrapped, round_up
from .quantize import BLOCK, Quantized
from .torch_ops import NO_GRADIENT, OUT_DTYPES
from .types import Config

__all__ = [
    "OUT_DTYPES",
    "SIZE_LIMIT",
    "check_columns",
    "check_config",
    "check_counts",
    "check_data",
    "check_flag",
    "check_groups",
    "check_ids",
    "check_int",
    "check_out",
    "check_out_dtype",
    "check_overlap",
    "check_prefix_sums",
    "check_quantized",
    "check_same",
    "check_scale",
    "check_sum",
    "check_tensor",
    "parts",
    "same_memory",
]

SIZE_LIMIT = 1 << 30  # rows or columns: the tile that hangs over the edge stays below 2**31 too
Named = tuple[str, torch.Tensor]
_READABLE = "a plain torch.Tensor, whose memory a kernel can read"


# --- operands


def check_quantized(name: str, operand: object, granularity: str) -> None:
    """Check a stage's operand: a Quantized (rows, k) with scales of this granularity."""
    if not isinstance(operand, Quantized):
        came = type(operand).__name__
        raise TypeError(f"{name}: expected a Quantized (from minigemm.quantize.quantize), got {came}")
    data, scale = parts(name, operand, granularity)
    for part in (data, scale):
        check_tensor(*part)
    check_data(data, 2)
    check_scale(scale, data[1], granularity)


def parts(name: str, operand: object, granularity: str) -> tuple[Named, Named]:
    """Return the data and the scales of a call's operand, each with the name that messages give it."""
    if isinstance(operand, Quantized):
        if operand.granularity != granularity:
            raise ValueError(f"{name}.granularity: expected {granularity!r}, got {operand.granularity!r}")
        named = (f"{name}.data", operand.data), (f"{name}.scale", operand.scale)
    elif isinstance(operand, (tuple, list)) and len(operand) == 2:
        named = (f"{name}[0]", operand[0]), (f"{name}[1]", operand[1])
    else:
        came = type(operand).__name__
        if isinstance(operand, (tuple, list)):
            came += f" of {len(operand)}"
        raise TypeError(f"{name}: expected (data, scales) or a Quantized, got {came}")
    for part, tensor in named:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{part}: expected a torch.Tensor, got {type(tensor).__name__}")
    return named


def check_tensor(name: str, tensor: object) -> torch.Tensor:
    """Check that the argument is a plain dense torch.Tensor, which a kernel can read; return it.

    A kernel gets addresses. So a tensor is refused that stands for others, or whose elements are not what its
    memory holds: a FakeTensor, a DTensor, a tensor inside `torch.func` or `torch.vmap`, a nested one. A
    tensor that needs a gradient is refused where autograd is on.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    kind = type(tensor)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        advice = "; pass its local tensor" if hasattr(kind, "to_local") else ""
        raise TypeError(f"{name}: expected {_READABLE}, got a {kind.__name__}{advice}")
    if tensor.layout != torch.strided or tensor.is_nested:
        came = "a nested tensor" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name}: expected a dense tensor, got {came}")
    if is_wrapped(tensor):
        raise TypeError(
            f"{name}: expected {_READABLE}, got one inside a transform (torch.vmap, torch.func.grad, functionalize); "
            "call outside of it"
        )
    if tensor.is_neg():
        raise TypeError(f"{name}: expected a plain torch.Tensor, got a negated view; pass .resolve_neg()")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: {NO_GRADIENT}")
    return tensor


def check_data(named: Named, dims: int) -> None:
    """Check FP8 data, (rows, k) or (groups, rows, k): its dtype and shape, and whether TMA can read it."""
    name, data = named
    if data.dtype != torch.float8_e4m3fn:
        raise TypeError(f"{name}: expected float8_e4m3fn, got {data.dtype}")
    if data.dim() != dims:
        expected = "(rows, k)" if dims == 2 else "(groups, rows, k)"
        raise ValueError(f"{name}: expected {expected}, got shape {tuple(data.shape)}")
    rows, k = data.shape[-2:]
    if k % 16:
        raise ValueError(f"{name}: expected a k (columns) that is a multiple of 16, got {k}")
    if max(data.shape) > SIZE_LIMIT or (dims == 3 and data.shape[0] * rows > SIZE_LIMIT):
        raise ValueError(f"{name}: expected at most 2**30 rows and columns, got {tuple(data.shape)}")
    if not data.numel():
        return
    if dims == 3 and data.shape[0] * ceil_div(k, BLOCK) > SIZE_LIMIT:
        blocks = f"{data.shape[0]} * {ceil_div(k, BLOCK)}"
        raise ValueError(f"{name}: expected at most 2**30 blocks of 128 columns in all groups, got {blocks}")

    # A tensor map describes rows of contiguous bytes at a pitch of 16 bytes, from an address that is a
    # multiple of 16.
    if data.stride(-1) != 1 and k > 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {data.stride()}")
    pitch = data.stride(-2)
    if rows > 1 and (pitch % 16 or pitch < k):
        expected = f"a row stride that is a multiple of 16 bytes and at least k = {k}"
        raise ValueError(f"{name}: expected {expected}, got {pitch}")
    if dims == 3 and not data.is_contiguous():
        expected = "groups that lie one behind the other (contiguous)"
        raise ValueError(f"{name}: expected {expected}, got strides {data.stride()}")
    _check_start(name, data, 16)


def check_scale(named: Named, data: torch.Tensor, granularity: str) -> None:
    """Check FP32 scales: one for all of the data ("tensor"), or one for each of its 1x128 or 128x128 blocks.

    Scales of 1x128 blocks may have any strides without overlap; the call copies them to M-major if they are
    not.
    """
    name, scale = named
    *groups, rows, k = data.shape
    down, across = (rows if granularity == "1x128" else ceil_div(rows, BLOCK)), ceil_div(k, BLOCK)
    shape = (*groups, down, across)
    if scale.dtype != torch.float32:
        raise TypeError(f"{name}: expected float32, got {scale.dtype}")
    if granularity == "tensor" and scale.dim():
        raise ValueError(f"{name}: expected one number (0-d), got shape {tuple(scale.shape)}")
    if granularity != "tensor" and tuple(scale.shape) != shape:
        expected = f"shape {shape}, one scale for each {granularity} block"
        raise ValueError(f"{name}: expected {expected}, got {tuple(scale.shape)}")
    if scale.device != data.device:
        raise ValueError(f"{name}: expected the data's device, {data.device}, got {scale.device}")
    if not scale.numel():
        return

    _check_start(name, scale, 4)
    if granularity == "tensor":
        return
    came = f"strides {tuple(scale.stride())} for shape {shape}"
    if granularity == "1x128":
        if not _elements_are_distinct(scale):
            raise ValueError(f"{name}: expected scales that do not overlap, got {came}")
    elif groups:
        if not scale.is_contiguous():
            raise ValueError(f"{name}: expected contiguous scales, got {came}")
    elif (across > 1 and scale.stride(-1) != 1) or (down > 1 and scale.stride(-2) < across):
        raise ValueError(f"{name}: expected row-major scales that do not overlap, got {came}")


def _check_start(name: str, tensor: torch.Tensor, alignment: int) -> None:
    """Check that the tensor has its memory, and begins at a multiple of `alignment` bytes."""
    check_memory(name, tensor)
    if past := tensor.data_ptr() % alignment:
        expected = f"a {alignment}-byte aligned start"
        raise ValueError(f"{name}: expected {expected}, got an address that is {past} bytes past one")


def _elements_are_distinct(tensor: torch.Tensor) -> bool:
    """Return whether each element has a place of its own.

    It has if, in the order of the strides, each dimension steps over all elements of the dimensions before
    it.
    """
    behind = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < behind:
                return False
            behind += (size - 1) * stride
    return True


def check_columns(b: torch.Tensor, a: torch.Tensor) -> None:
    """Check that b, (n, k) or (groups, n, k), has as many columns as a."""
    k = a.shape[-1]
    if b.shape[-1] != k:
        expected = f"(n, {k})" if b.dim() == 2 else f"(groups, n, {k})"
        raise ValueError(f"b: expected {expected}, as many columns as a has, got {tuple(b.shape)}")


def check_same(name: str, tensor: torch.Tensor, device: torch.device, of: str = "a") -> None:
    """Check that the tensor lies on `device`, which is that of the argument `of`."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected the device of {of}, {device}, got {tensor.device}")


# --- results


def check_out_dtype(out_dtype: object, d: torch.Tensor | None) -> torch.dtype:
    """Return the dtype of the result: d's, or of a d still to be made `out_dtype`, by default bfloat16."""
    if out_dtype is not None and out_dtype not in OUT_DTYPES:
        raise TypeError(f"out_dtype: expected torch.bfloat16 or torch.float32, got {out_dtype!r}")
    if d is None:
        return torch.bfloat16 if out_dtype is None else out_dtype  # type: ignore[return-value]
    check_tensor("d", d)
    if d.dtype not in OUT_DTYPES:
        raise TypeError(f"d: expected bfloat16 or float32, got {d.dtype}")
    if out_dtype is not None and out_dtype != d.dtype:
        raise ValueError(f"out_dtype: expected the dtype of d, {d.dtype}, got {out_dtype}")
    return d.dtype


def check_out(
    name: str, d: torch.Tensor, shape: tuple[int, ...], device: torch.device, of: str = "a"
) -> None:
    """Check the shape and device of a result or of an addend, and whether the kernel can address its rows."""
    if tuple(d.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(d.shape)}")
    check_same(name, d, device, of)
    if not d.numel():
        return

    strides = tuple(d.stride())
    n = d.shape[-1]
    if strides[-1] != 1 and n > 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {strides}")
    if d.shape[-2] > 1 and strides[-2] < n:
        expected = f"rows that do not overlap, a row stride of at least n = {n}"
        raise ValueError(f"{name}: expected {expected}, got {strides[-2]}")
    if len(shape) == 3 and not d.is_contiguous():
        expected = "groups that lie one behind the other (contiguous)"
        raise ValueError(f"{name}: expected {expected}, got strides {strides}")
    check_memory(name, d)
    if d.data_ptr() % d.element_size():
        expected = f"an address that is a multiple of its {d.element_size()} bytes an element"
        raise ValueError(f"{name}: expected {expected}, got {d.data_ptr():#x}")


def check_sum(
    c: object, d: torch.Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """Check c, which is added to the product: it is like d, and is d itself or shares no memory with it."""
    added = check_tensor("c", c)
    if added.dtype != dtype:
        raise TypeError(f"c: expected the dtype of d, {dtype}, got {added.dtype}")
    if tuple(added.shape) != shape:
        raise ValueError(f"c: expected shape {shape}, got {tuple(added.shape)}")
    check_same("c", added, device)
    check_memory("c", added)
    if d is not None and not same_memory(added, d):
        check_overlap(d, {"c": added})


def same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether both are the same elements in the same order."""
    return one is other or (
        one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.shape == other.shape
    )


def check_overlap(d: torch.Tensor, others: dict[str, torch.Tensor], name: str = "d") -> None:
    """Check that d shares no memory with the tensors that the kernel reads while it writes d.

    `name` is what messages call d.
    """
    if not d.numel():
        return
    first, behind = _span(d)
    for other, tensor in others.items():
        if tensor.numel():
            start, end = _span(tensor)
            if start < behind and first < end and not _interleaved(d, tensor):
                raise ValueError(f"{name}: expected memory of its own, got a tensor that overlaps {other}")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and of the byte behind its last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _interleaved(d: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether both are column ranges of one matrix that share no column.

    Then their rows lie equally far apart, and within a row they do not meet.
    """
    if d.dim() != 2 or other.dim() != 2:
        return False
    pitch = d.stride(0) * d.element_size()
    if other.stride(1) != 1 or other.stride(0) * other.element_size() != pitch or not pitch:
        return False
    width, other_width = d.shape[1] * d.element_size(), other.shape[1] * other.element_size()
    behind = (other.data_ptr() - d.data_ptr()) % pitch
    return width <= behind and behind + other_width <= pitch


# --- other arguments


def check_operands(
    a: object, b: object, dims_a: int, dims_b: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Check a call's a and b, each (data, scales) or a Quantized; return data and scales of both."""
    named_a, named_b = parts("a", a, "1x128"), parts("b", b, "128x128")
    for (data, scale), dims, granularity in ((named_a, dims_a, "1x128"), (named_b, dims_b, "128x128")):
        check_tensor(*data)
        check_tensor(*scale)
        check_data(data, dims)
        check_scale(scale, data[1], granularity)

    (_, data_a), (_, scale_a) = named_a
    (name_b, data_b), (_, scale_b) = named_b
    check_same(name_b, data_b, data_a.device)
    check_columns(data_b, data_a)
    if dims_a == 3 and data_b.shape[0] != data_a.shape[0]:
        expected = f"({data_a.shape[0]}, n, {data_a.shape[-1]}), as many groups as a has"
        raise ValueError(f"b: expected {expected}, got {tuple(data_b.shape)}")
    return data_a, scale_a, data_b, scale_b


def check_groups(
    name: str, groups: object, length: int, what: str, device: torch.device, of: str = "a"
) -> torch.Tensor:
    """Return row ids, prefix sums or counts: a contiguous int32 (length,) on `device`, that of `of`.

    `what` explains the length in the message.
    """
    layout = check_tensor(name, groups)
    if layout.dtype != torch.int32:
        raise TypeError(f"{name}: expected int32, got {layout.dtype}")
    if tuple(layout.shape) != (length,):
        raise ValueError(f"{name}: expected shape ({length},), {what}, got {tuple(layout.shape)}")
    check_same(name, layout, device, of)
    if length > 1 and layout.stride(0) != 1:
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tuple(layout.stride())}")
    if length:
        _check_start(name, layout, 4)
    return layout


def check_flag(name: str, value: object) -> None:
    """Check that the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_int(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return the value, an integer from `least` to `most`, of NumPy too, as a Python integer.

    A tensor is refused, since a GPU's would have to be waited for.
    """
    try:
        if isinstance(value, (bool, torch.Tensor)):
            raise TypeError
        value = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {bound}, got {value}")
    return value


def check_config(config: object, kinds: type[Config] | tuple[type[Config], ...], stage: str) -> None:
    """Check that a config is of the stage's own kind, and that all of its fields are integers."""
    if not isinstance(config, kinds):
        came = f"{type(config).__module__.rpartition('.')[2]}.{type(config).__name__}"
        raise TypeError(f"config: expected a {stage}.Config, got {came}")
    for field, value in vars(config).items():
        if not isinstance(value, int):
            raise TypeError(f"config.{field}: expected an int, got {value!r}")


# --- what only the data shows


def check_ids(index: torch.Tensor, groups: int, alignment: int) -> None:
    """Check row ids: each is -1 or a group's; no two groups lie between two multiples of the alignment."""
    values = index.detach().cpu()
    outside = ((values < -1) | (values >= groups)).nonzero()
    if outside.numel():
        row = int(outside[0])
        expected = f"ids from -1 to {groups - 1}"
        raise ValueError(f"grouped_layout: expected {expected}, got {int(values[row])} for row {row}")
    if alignment == 1 or not values.numel():
        return

    # One row of `padded` for each block of rows between two multiples: its ids but -1 have to be the same.
    padded = torch.nn.functional.pad(values, (0, -len(values) % alignment), value=-1).reshape(-1, alignment)
    highest = padded.amax(1)
    lowest = torch.where(padded < 0, highest[:, None], padded).amin(1)
    mixed = (highest != lowest).nonzero()
    if mixed.numel():
        block = int(mixed[0])
        first, last = block * alignment, min((block + 1) * alignment, len(values)) - 1
        raise ValueError(
            f"grouped_layout: expected groups that begin at multiples of {alignment} rows, "
            f"got groups {int(lowest[block])} and {int(highest[block])} among rows {first} to {last}; "
            "set_mk_alignment_for_contiguous_layout(1) allows that"
        )


def check_prefix_sums(index: torch.Tensor, rows: int, alignment: int) -> None:
    """Check that each group ends behind its aligned start, and inside a."""
    values = index.detach().cpu().tolist()
    for group, (before, end) in enumerate(pairwise([0, *values])):
        start = round_up(before, alignment)
        empty = end in (start, before)
        if not empty and not start < end <= rows:
            raise ValueError(
                f"grouped_layout: expected group {group} to end between its start, row {start}, "
                f"and the {rows} rows of a, got {end}"
            )


def check_counts(index: torch.Tensor, rows: int) -> None:
    """Check that the rows of each group fit its buffer."""
    values = index.detach().cpu()
    outside = ((values < 0) | (values > rows)).nonzero()
    if outside.numel():
        group = int(outside[0])
        expected = f"0 to {rows} rows, what the buffer holds"
        raise ValueError(f"masked_m: expected {expected}, got {int(values[group])} for group {group}")
