"""The library's calls: FP8 products, dense and grouped, with fine-grained scales.

    # a is (m, k), b is (n, k); each is (data, scales) or a Quantized
    d = minigemm.fp8_gemm_nt(a, b)      # (m, n) = a @ b.T

CUDA tensors run on their own Hopper GPU, on torch's current stream there, without waiting; CPU tensors run
the same kernel on the emulator. A wrong argument raises TypeError or ValueError that names it, before
anything is compiled or launched. No call reads a GPU tensor's data on the host, unless MINIGEMM_DEBUG=1 asks
for it. What only the data shows (ids out of range, counts over the buffer) is checked for CPU tensors, and
with that variable on a GPU too.

Operands, common to all calls:

- data: float8_e4m3fn, last dimension contiguous, k a multiple of 16, row strides multiples of 16 bytes,
  16-byte aligned.
- scales of a: float32, one for each 1x128 block, (m, ceil(k / 128)). M-major with rows padded for TMA
  (`to_m_major`), as they are; any other order is laid out first, which is one small kernel more.
- scales of b: float32, one for each 128x128 block, (ceil(n / 128), ceil(k / 128)), row-major.
- d: bfloat16 or float32, made where it is not given; each row contiguous; any row stride of at least n.

A call takes one of two ways. The short way, `_repeat`, starts a launch that an earlier call left prepared. It
is open when the tensors lie at the same addresses with the same shapes, or, for a dense product, when only m
differs and stays in its step of 64 rows (of 8, up to 64 rows). Otherwise the call takes the long way: check,
choose a config, describe, compile or load, launch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from . import checks, runtime, torch_ops
from .kernels.grouped import CONTIGUOUS, DENSE, MASKED, PREFIX_SUMS
from .kernels.library import Config
from .layout import tma_aligned_size, to_m_major
from .plan import choose, prepared
from .quantize import Quantized
from .torch_ops import dynamo_traces, modes
from .types import Product

__all__ = [
    "fp8_gemm_nt",
    "get_batch_invariant",
    "get_mk_alignment_for_contiguous_layout",
    "get_num_sms",
    "get_pdl",
    "get_tma_aligned_size",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "set_batch_invariant",
    "set_mk_alignment_for_contiguous_layout",
    "set_num_sms",
    "set_pdl",
]

Operand = Quantized | tuple[torch.Tensor, torch.Tensor]
READ = ("a", "b", "the scales of a", "the scales of b")  # as messages name what the kernel reads


def fp8_gemm_nt(
    a: Operand,
    b: Operand,
    d: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """Compute `d = a @ b.T`, or `c + a @ b.T`.

    Args:
        a: (m, k), with 1x128 scales.
        b: (n, k), with 128x128 scales: the weights.
        d: (m, n) to write to. Shares no memory with a and b.
        c: (m, n) of d's dtype to add, in FP32 before the result is rounded: d itself, or memory apart from
            it.
        out_dtype: the dtype of a d that is made: bfloat16 (the default) or float32.
        config: a `kernels.s11_overlapped.Config` or `kernels.s12_swapped.Config` instead of the one that is
            chosen. Such calls are checked and described each time.

    Returns:
        d. Where m or n is zero it is empty; where k is zero it holds c, or zeros. NaN and infinity in a scale
        or NaN in the data spread to their rows and columns of d.
    """
    if dynamo_traces() or modes():
        return _traced("fp8_gemm_nt", a, b, d, out_dtype, config, c=c)
    options = (DENSE, c is None)
    if (done := _repeat(options, a, b, d, c, out_dtype, config)) is not None:
        return done

    data_a, scale_a, data_b, scale_b = _operands(a, b, 2, 2)
    (m, k), n = data_a.shape, data_b.shape[0]
    d = _output(d, c, out_dtype, (m, n), (data_a, data_b, scale_a, scale_b))

    product = Product(m, n, k, out_fp32=d.dtype == torch.float32, accumulate=c is not None)
    return _launch(product, (data_a, scale_a, data_b, scale_b, d), c, config, options)


def m_grouped_fp8_gemm_nt_contiguous(
    a: Operand,
    b: Operand,
    d: torch.Tensor | None = None,
    grouped_layout: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    out_dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """Multiply each row of a by the weights of its own group: `d[i] = a[i] @ b[group of i].T`.

    Rows of no group are zeros.

    Args:
        a: (m, k), with 1x128 scales: the rows of all groups.
        b: (groups, n, k), with 128x128 scales (groups, ceil(n / 128), ceil(k / 128)), contiguous.
        d: (m, n) to write to.
        grouped_layout: int32. The group of each row, (m,), -1 for padding; groups may come in any order, and
            repeat. With `use_psum_layout` (groups,): where each group ends, which is its start + its rows; a
            group starts at the next multiple of the alignment behind the one before.
        c: (m, n) of d's dtype to add; rows of no group then hold c.
        use_psum_layout: grouped_layout says where groups end.
        ensure_zero_padding: False leaves rows of no group as they are.
        out_dtype, config: as in `fp8_gemm_nt`.

    The alignment is `get_mk_alignment_for_contiguous_layout()`: groups begin at multiples of it. Set to 1,
    they begin and end anywhere and nothing is padded; a tile never writes rows of another group.
    """
    checks.check_flag("use_psum_layout", use_psum_layout)
    checks.check_flag("ensure_zero_padding", ensure_zero_padding)
    layout = PREFIX_SUMS if use_psum_layout else CONTIGUOUS
    if dynamo_traces() or modes():
        name = "m_grouped_fp8_gemm_nt_contiguous"
        more = {"use_psum_layout": use_psum_layout, "ensure_zero_padding": ensure_zero_padding}
        return _traced(name, a, b, d, out_dtype, config, c=c, grouped_layout=grouped_layout, **more)
    options = (layout, c is None, ensure_zero_padding)
    if (done := _repeat(options, a, b, d, c, out_dtype, config, grouped_layout)) is not None:
        return done

    data_a, scale_a, data_b, scale_b = _operands(a, b, 2, 3)
    (m, k), (groups, n, _) = data_a.shape, data_b.shape
    length, what = m, "a group for each row of a"
    if use_psum_layout:
        length, what = groups, "where each group of b ends"
    index = checks.check_groups("grouped_layout", grouped_layout, length, what, data_a.device)
    d = _output(d, c, out_dtype, (m, n), (data_a, data_b, scale_a, scale_b), grouped_layout=index)
    alignment = choose.settings().alignment
    if data_a.device.type == "cpu" or debugging():
        if use_psum_layout:
            checks.check_prefix_sums(index, m, alignment)
        else:
            checks.check_ids(index, groups, alignment)

    product = Product(
        m,
        n,
        k,
        layout,
        groups,
        alignment=alignment,
        out_fp32=d.dtype == torch.float32,
        accumulate=c is not None,
        zero_padding=ensure_zero_padding,
    )
    return _launch(product, (data_a, scale_a, data_b, scale_b, d, index), c, config, options)


def m_grouped_fp8_gemm_nt_masked(
    a: Operand,
    b: Operand,
    d: torch.Tensor | None = None,
    masked_m: torch.Tensor | None = None,
    expected_m: int | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """Multiply the first rows of each group's buffer: `d[g, :masked_m[g]] = a[g, :masked_m[g]] @ b[g].T`.

    Args:
        a: (groups, rows, k), with 1x128 scales (groups, rows, ceil(k / 128)), contiguous. What lies behind a
            group's count may be anything.
        b: (groups, n, k), with 128x128 scales (groups, ceil(n / 128), ceil(k / 128)), contiguous.
        d: (groups, rows, n), contiguous. Rows from the count on are not written; in a d that is made they
            hold anything.
        masked_m: int32 (groups,) on the device: the counts, from 0 to rows. Only the kernel reads them: a
            captured CUDA graph obeys those of its replay.
        expected_m: about how many rows a group has; it chooses the tile and nothing else. By default all of
            them.
        c: (groups, rows, n) of d's dtype to add; rows from the count on then hold c.
        out_dtype, config: as in `fp8_gemm_nt`.
    """
    if dynamo_traces() or modes():
        name = "m_grouped_fp8_gemm_nt_masked"
        return _traced(name, a, b, d, out_dtype, config, c=c, masked_m=masked_m, expected_m=expected_m)
    expected = 0 if expected_m is None else checks.check_int("expected_m", expected_m, 0)
    options = (MASKED, c is None, expected)
    if (done := _repeat(options, a, b, d, c, out_dtype, config, masked_m)) is not None:
        return done

    data_a, scale_a, data_b, scale_b = _operands(a, b, 3, 3)
    (groups, rows, k), n = data_a.shape, data_b.shape[1]
    index = checks.check_groups("masked_m", masked_m, groups, "a count for each group", data_a.device)
    d = _output(d, c, out_dtype, (groups, rows, n), (data_a, data_b, scale_a, scale_b), masked_m=index)
    if data_a.device.type == "cpu" or debugging():
        checks.check_counts(index, rows)

    fp32 = d.dtype == torch.float32
    product = Product(rows, n, k, MASKED, groups, expected, out_fp32=fp32, accumulate=c is not None)
    return _launch(product, (data_a, scale_a, data_b, scale_b, d, index), c, config, options)


# --- a repeated call

# os.environ.get encodes the name and, when the variable is unset, raises and catches KeyError: 0.5 us. Its
# private dictionary answers in 20 ns.
_environment: Mapping[Any, Any] = os.environ
_DEBUG: Any = "MINIGEMM_DEBUG"
_OFF: tuple[Any, ...] = ("", "0")
if hasattr(os.environ, "_data"):
    _environment, _DEBUG = os.environ._data, os.environ.encodekey(_DEBUG)
    _OFF = tuple(map(os.environ.encodevalue, _OFF))


def debugging() -> bool:
    """Return whether MINIGEMM_DEBUG asks, now, for checks of what only the data shows, on a GPU too.

    Such checks wait for the GPU.
    """
    return _environment.get(_DEBUG, _OFF[0]) not in _OFF


def _repeat(
    options: tuple[object, ...],
    a: Any,
    b: Any,
    d: torch.Tensor | None,
    c: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    config: Config | None,
    index: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Run a prepared launch, if an earlier call left one that fits.

    Return d, or None: then the call must be checked. Errors of the launch itself pass through.
    """
    if config is not None or (c is not None and c is not d) or (_DEBUG in _environment and debugging()):
        return None
    try:
        x, sfa = (a.data, a.scale) if type(a) is Quantized else a
        y, sfb = (b.data, b.scale) if type(b) is Quantized else b
        made = d is None
        if d is None:
            if not x.is_cuda:  # the emulator prepares nothing
                return None
            dtype = torch.bfloat16 if out_dtype is None else out_dtype
            d = torch.empty((*x.shape[:-1], y.shape[-2]), dtype=dtype, device=x.device)
        elif out_dtype is not None and out_dtype is not d.dtype:
            return None
        tensors = (x, sfa, y, sfb, d) if index is None else (x, sfa, y, sfb, d, index)

        # `ready` does not ask for the labels: it knows these shapes of scales, and where two granularities
        # have the same shape, they mean the same.
        start = prepared.ready(options, tensors)
        if start is None and _labelled(a, "1x128") and _labelled(b, "128x128"):
            start = prepared.resized(options, tensors, overlap_checked=made)
    except torch.cuda.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, TypeError, ValueError, RuntimeError):
        # Operands are not checked yet; whatever is wrong with them, the long way says so by name.
        return None
    if start is None:
        return None
    start()
    if not made and torch.is_grad_enabled():
        _count_write(d)
    return d


def _labelled(operand: object, granularity: str) -> bool:
    """Return whether the operand's granularity, if it states one, is the expected one."""
    return type(operand) is not Quantized or operand.granularity == granularity


_increment = torch.autograd.graph.increment_version


def _count_write(d: torch.Tensor) -> None:
    """Tell autograd that d has changed: a backward pass that saved d then raises instead of using it.

    The short way does so only where autograd is on, because it takes a few tenths of a microsecond.
    """
    try:
        _increment(d)
    except RuntimeError:  # a tensor of inference mode, which has no count: older torch raises
        if not d.is_inference():
            raise


# --- a call that torch traces


def _traced(
    name: str,
    a: object,
    b: object,
    d: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    config: Config | None,
    **rest: Any,
) -> torch.Tensor:
    """Call the operator of this name, which a graph holds as one node; return d."""
    if config is not None:
        raise TypeError(f"config: expected None in a call that torch traces, got {config!r}")
    (_, x), (_, sfa) = checks.parts("a", a, "1x128")
    (_, y), (_, sfb) = checks.parts("b", b, "128x128")
    for index in ("grouped_layout", "masked_m"):
        if index in rest and not isinstance(rest[index], torch.Tensor):
            raise TypeError(f"{index}: expected a torch.Tensor, got {type(rest[index]).__name__}")
    if d is None:
        made: torch.Tensor = getattr(torch.ops.minigemm, name)(x, sfa, y, sfb, out_dtype=out_dtype, **rest)
        return made
    if out_dtype is not None and out_dtype != d.dtype:
        raise ValueError(f"out_dtype: expected the dtype of d, {d.dtype}, got {out_dtype}")
    getattr(torch.ops.minigemm, f"{name}_out")(x, sfa, y, sfb, d=d, **rest)
    return d


# --- any other call


def _operands(
    a: object, b: object, dims_a: int, dims_b: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Check data and scales of a and b, and return them."""
    if torch.jit.is_tracing():
        raise TypeError(
            "a: expected a call outside of torch.jit.trace, which loses the product; use torch.export"
        )
    checked = checks.check_operands(a, b, dims_a, dims_b)
    device = checked[0].device
    runtime.of(device).check_device(device)
    return checked


def _output(
    d: torch.Tensor | None,
    c: object,
    out_dtype: object,
    shape: tuple[int, ...],
    read: tuple[torch.Tensor, ...],
    **index: torch.Tensor,
) -> torch.Tensor:
    """Check d, or make it.

    It must not share memory with what the kernel reads: `read` (see READ), and for groups `index`, under the
    name of the call's argument.
    """
    device = read[0].device
    dtype = checks.check_out_dtype(out_dtype, d)
    if c is not None:
        checks.check_sum(c, d, dtype, shape, device)
    if d is None:
        return checks.check_tensor("d", torch.empty(shape, dtype=dtype, device=device))
    checks.check_out("d", d, shape, device)
    checks.check_overlap(d, dict(zip(READ, read, strict=True)) | index)
    return d


def _launch(
    product: Product,
    tensors: tuple[torch.Tensor, ...],
    c: torch.Tensor | None,
    config: Config | None,
    options: tuple[object, ...],
) -> torch.Tensor:
    """Launch what was checked, and return d.

    Args:
        product: of the tensors.
        tensors: a, its scales, b, its scales, d, and for groups `index`: int32; each row's group, each
            group's end, or each group's count, by layout.
        c: what is added, if anything is.
        config: the caller's own, if there is one.
        options: as in `prepared.execute`.
    """
    a, scale_a, b, scale_b, d, *index = tensors
    if config is not None:
        config = choose.suited(product, config)

    # What is added lies in d, where the kernel finds it.
    c_is_separate = c is not None and c is not d
    if c is not None and not checks.same_memory(c, d):
        d.copy_(c)

    # Nothing to do, or nothing to sum.
    if not d.numel():
        return d
    if not product.k or not product.groups:
        return d if product.accumulate else _zeros(product, d, *index)

    # `_repeat` looked up the caller's own scales, or skipped a call whose c is not d. Now that the scales are
    # M-major and c is in d, look again: torch's allocator often gives the new scales the address they had
    # last time.
    sfa = to_m_major(scale_a)
    tensors = (a, sfa, b, scale_b, d, *index)
    if config is None and (c_is_separate or sfa is not scale_a):
        start = prepared.ready(options, tensors) or prepared.resized(options, tensors, overlap_checked=True)
        if start is not None:
            start()
            _count_write(d)
            return d

    prepared.execute(product, tensors, config, options if config is None else None)
    _count_write(d)
    return d


def _zeros(product: Product, d: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    """Write zeros where a product of no columns, or with no weights, would have been written; return d."""
    if index is not None and product.layout == MASKED:
        return d.masked_fill_((torch.arange(product.m, device=d.device) < index[:, None])[..., None], 0)
    if index is not None and product.layout == CONTIGUOUS and not product.zero_padding:
        return d.masked_fill_(((index >= 0) & (index < product.groups))[:, None], 0)
    return d.zero_()


# --- settings


def set_num_sms(num_sms: int | None) -> None:
    """Use at most that many SMs in every later call, and choose tiles for them. None: all of them.

    The others are free for communication.
    """
    if num_sms is not None:
        num_sms = checks.check_int("num_sms", num_sms, 1)
    prepared.change(num_sms=num_sms)


def get_num_sms() -> int:
    """Return the SMs that calls use: as set, or those of the current GPU.

    Where there is no GPU they are 132: the emulator stands for an H100.
    """
    chosen = choose.settings().num_sms
    if chosen is not None:
        return chosen
    index = torch.cuda.current_device() if torch.cuda.is_available() else None
    return choose.sms_of(torch.device("cpu") if index is None else torch.device("cuda", index))


def set_batch_invariant(invariant: bool) -> None:
    """Promise that the bits of a row of d do not depend on m, nor on the other rows.

    They never do: both kernels sum k in one order, whatever the config. The setting is kept for callers who
    ask for it, and changes nothing.
    """
    checks.check_flag("invariant", invariant)
    prepared.change(batch_invariant=invariant)


def get_batch_invariant() -> bool:
    """Return whether `set_batch_invariant(True)` holds."""
    return choose.settings().batch_invariant


def set_pdl(enabled: bool, early_weights: bool = False) -> None:
    """Let kernels begin before the one before them in the stream has ended (programmatic dependent launch).

    A later call's kernel then starts as SMs become free, sets itself up, and waits for the kernel before it.
    It reads and writes memory only when that kernel has ended. So results stay the same, in a CUDA graph too.
    A kernel that waits already holds its SMs. Off unless set.

    Args:
        enabled: whether kernels may begin so.
        early_weights: promises for all later calls: no earlier kernel that may still run writes b or its
            scales. `fp8_gemm_nt` then loads the first weights while it waits, as many as the kernel's ring
            holds. Grouped calls wait, because they first read which rows belong to which group. Weights that
            the kernel just before writes break the promise, and d is wrong: quantize or copy them earlier.

    Raises:
        TypeError: an argument is no bool.
        ValueError: `early_weights` without `enabled`.
    """
    checks.check_flag("enabled", enabled)
    checks.check_flag("early_weights", early_weights)
    if early_weights and not enabled:
        raise ValueError("early_weights: expected False where enabled is False, got True")
    prepared.change(pdl=enabled, early_weights=early_weights)


def get_pdl() -> bool:
    """Return whether `set_pdl(True)` holds, with early weights or without."""
    return choose.settings().pdl


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    """Let groups of the contiguous layout begin at multiples of so many rows: 128 unless set; 1: anywhere."""
    prepared.change(alignment=checks.check_int("alignment", alignment, 1, 1 << 20))


def get_mk_alignment_for_contiguous_layout() -> int:
    """Return the rows at whose multiples groups begin in the contiguous layout."""
    return choose.settings().alignment


def get_tma_aligned_size(size: int, element_bytes: int) -> int:
    """Round `size` elements of `element_bytes` bytes up to a multiple of 16 bytes.

    That is the pitch of M-major scales, in elements.
    """
    size = checks.check_int("size", size, 0)
    return tma_aligned_size(size, checks.check_int("element_bytes", element_bytes, 1))


torch_ops.register(
    {
        call.__name__: call
        for call in (fp8_gemm_nt, m_grouped_fp8_gemm_nt_contiguous, m_grouped_fp8_gemm_nt_masked)
    }
)
