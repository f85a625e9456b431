"""The library's calls: FP8 products, dense and grouped, with fine-grained scales.

    d = minigemm.fp8_gemm_nt(a, b)      # a: (data, scales) or a Quantized, (m, k); b likewise, (n, k); d (m, n) = a @ b.T

CUDA tensors run on their own Hopper GPU, on torch's current stream there, without waiting; CPU tensors run the same kernel on the emulator. What is
wrong with an argument raises TypeError or ValueError that names it, before anything is compiled or launched. No call reads device data on the host:
what only the data shows (ids out of range, counts over the buffer) is checked for CPU tensors, and on a GPU where MINIGEMM_DEBUG=1 asks for it.

Operands, common to all calls:

- data: float8_e4m3fn, last dimension contiguous, k a multiple of 16, row strides multiples of 16 bytes, 16-byte aligned.
- scales of a: float32, one for each 1x128 block, (m, ceil(k / 128)). M-major with rows padded for TMA (`to_m_major`), as they are; any other order is
  laid out first, which is one small kernel more.
- scales of b: float32, one for each 128x128 block, (ceil(n / 128), ceil(k / 128)), row-major.
- d: bfloat16 or float32, made where it is not given. Rows contiguous; any row stride that keeps them apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import checks, runtime
from .kernels.s10_grouped import Config
from .layout import tma_aligned_size, to_m_major
from .plan import prepared
from .plan.prepared import Call
from .quantize import Quantized

__all__ = [
    "fp8_gemm_nt", "get_batch_invariant", "get_mk_alignment_for_contiguous_layout", "get_num_sms", "get_tma_aligned_size",
    "m_grouped_fp8_gemm_nt_contiguous", "m_grouped_fp8_gemm_nt_masked", "set_batch_invariant", "set_mk_alignment_for_contiguous_layout", "set_num_sms",
]  # fmt: skip

Operand = Quantized | tuple[torch.Tensor, torch.Tensor]
_debug = (
    prepared.debugging()
)  # once: reading the environment takes longer than all other checks of a repeated call


def fp8_gemm_nt(
    a: Operand,
    b: Operand,
    d: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """`d = a @ b.T`, or `c + a @ b.T`.

    Args:
        a: (m, k), with 1x128 scales.
        b: (n, k), with 128x128 scales: the weights.
        d: (m, n) to write to. Shares no memory with a and b.
        c: (m, n) of d's dtype to add, in FP32 before the result is rounded: d itself, or memory apart from it.
        out_dtype: of a d that is made: bfloat16 (the default) or float32.
        config: a `kernels.s10_grouped.Config` instead of the one that is chosen.

    Returns:
        d. Where m or n is zero it is empty; where k is zero it holds c, or zeros. NaN and infinity in a scale or NaN in the data spread to their rows
        and columns of d.
    """
    options = ("dense", c is None)
    if (done := _repeat(options, a, b, d, c, out_dtype, config)) is not None:
        return done
    data_a, scale_a, data_b, scale_b = _operands(a, b, 2, 2)
    (m, k), n = data_a.shape, data_b.shape[0]
    d = _output(
        d,
        c,
        out_dtype,
        (m, n),
        {"a": data_a, "b": data_b, "the scales of a": scale_a, "the scales of b": scale_b},
    )
    call = Call("dense", m, n, k, out_fp32=d.dtype == torch.float32, accumulate=c is not None)
    return _run(call, (data_a, scale_a, data_b, scale_b, d), c, config, options)


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
    """Each row of a times the weights of its own group: `d[i] = a[i] @ b[group of i].T`; rows of no group are zeros.

    Args:
        a: (m, k), with 1x128 scales: the rows of all groups.
        b: (groups, n, k), with 128x128 scales (groups, ceil(n / 128), ceil(k / 128)), contiguous.
        d: (m, n) to write to.
        grouped_layout: int32. The group of each row, (m,), -1 for padding; groups may come in any order, and repeat. With `use_psum_layout` (groups,):
            where each group ends, which is its start + its rows; a group starts at the next multiple of the alignment behind the one before.
        c: (m, n) of d's dtype to add; rows of no group then hold c.
        use_psum_layout: which of the two.
        ensure_zero_padding: False leaves rows of no group as they are.
        out_dtype, config: as in `fp8_gemm_nt`.

    The alignment is `get_mk_alignment_for_contiguous_layout()`: groups begin at multiples of it. Set to 1, they begin and end anywhere and nothing is
    padded; a tile never writes rows of another group.
    """
    checks.check_flag("use_psum_layout", use_psum_layout)
    checks.check_flag("ensure_zero_padding", ensure_zero_padding)
    options = ("contiguous", c is None, use_psum_layout, ensure_zero_padding)
    if (done := _repeat(options, a, b, d, c, out_dtype, config, grouped_layout)) is not None:
        return done
    data_a, scale_a, data_b, scale_b = _operands(a, b, 2, 3)
    (m, k), (groups, n, _) = data_a.shape, data_b.shape
    length, what = (
        (groups, "where each group of b ends") if use_psum_layout else (m, "a group for each row of a")
    )
    layout = checks.check_groups("grouped_layout", grouped_layout, length, what, data_a.device)
    read = {
        "a": data_a,
        "b": data_b,
        "the scales of a": scale_a,
        "the scales of b": scale_b,
        "grouped_layout": layout,
    }
    d = _output(d, c, out_dtype, (m, n), read)
    if data_a.device.type == "cpu" or prepared.debugging():
        alignment = prepared.settings().alignment
        if use_psum_layout:
            checks.check_prefix_sums(layout, m, alignment)
        else:
            checks.check_ids(layout, groups, alignment)
    call = Call(
        "contiguous", m, n, k, groups, out_fp32=d.dtype == torch.float32, accumulate=c is not None, prefix_sums=use_psum_layout,
        zero_padding=ensure_zero_padding,
    )  # fmt: skip
    return _run(call, (data_a, scale_a, data_b, scale_b, d, layout), c, config, options)


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
    """A buffer of rows for each group, of which the first few count: `d[g, :masked_m[g]] = a[g, :masked_m[g]] @ b[g].T`.

    Args:
        a: (groups, rows, k), with 1x128 scales (groups, rows, ceil(k / 128)), contiguous. What lies behind a group's count may be anything.
        b: (groups, n, k), with 128x128 scales (groups, ceil(n / 128), ceil(k / 128)), contiguous.
        d: (groups, rows, n), contiguous. Rows from the count on are not written; in a d that is made they hold anything.
        masked_m: int32 (groups,) on the device: the counts, from 0 to rows. Only the kernel reads them: a captured CUDA graph obeys those of its replay.
        expected_m: about how many rows a group has; it chooses the tile and nothing else. By default all of them.
        c: (groups, rows, n) of d's dtype to add; rows from the count on then hold c.
        out_dtype, config: as in `fp8_gemm_nt`.
    """
    expected = 0 if expected_m is None else checks.check_int("expected_m", expected_m, 0)
    options = ("masked", c is None, expected)
    if (done := _repeat(options, a, b, d, c, out_dtype, config, masked_m)) is not None:
        return done
    data_a, scale_a, data_b, scale_b = _operands(a, b, 3, 3)
    (groups, rows, k), n = data_a.shape, data_b.shape[1]
    if data_b.shape[0] != groups:
        raise ValueError(
            f"b: expected ({groups}, n, {k}), as many groups as a has, got {tuple(data_b.shape)}"
        )
    counts = checks.check_groups("masked_m", masked_m, groups, "a count for each group", data_a.device)
    read = {
        "a": data_a,
        "b": data_b,
        "the scales of a": scale_a,
        "the scales of b": scale_b,
        "masked_m": counts,
    }
    d = _output(d, c, out_dtype, (groups, rows, n), read)
    if data_a.device.type == "cpu" or prepared.debugging():
        checks.check_counts(counts, rows)
    call = Call(
        "masked", rows, n, k, groups, expected, out_fp32=d.dtype == torch.float32, accumulate=c is not None
    )
    return _run(call, (data_a, scale_a, data_b, scale_b, d, counts), c, config, options)


# ---------------------------------------------------------------------------------------------------- what the three share


def _repeat(
    options: tuple[object, ...],
    a: object,
    b: object,
    d: torch.Tensor | None,
    c: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    config: Config | None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """d, from the prepared launch of an earlier call with these tensors, or with others that differ in m alone; None where there is none, and the checks
    have the word."""
    if (
        config is not None
        or _debug
        or (c is not None and c is not d)
        or (out_dtype is not None and d is not None)
    ):
        return None
    try:
        x, sfa = a if type(a) is tuple else (a.data, a.scale)  # type: ignore[attr-defined]
        y, sfb = b if type(b) is tuple else (b.data, b.scale)  # type: ignore[attr-defined]
        made = d is None
        if d is None:
            if not x.is_cuda:
                return None
            d = torch.empty(
                (*x.shape[:-1], y.shape[-2]),
                dtype=torch.bfloat16 if out_dtype is None else out_dtype,
                device=x.device,
            )
        tensors = (x, sfa, y, sfb, d) if groups is None else (x, sfa, y, sfb, d, groups)
        start = prepared.ready(options, tensors)
        if start is None and _is_labelled(a, "1x128") and _is_labelled(b, "128x128"):
            start = prepared.resized(options, tensors, apart=made)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return None
    if start is None:
        return None
    start()
    return d


def _is_labelled(operand: object, granularity: str) -> bool:
    """Whether it is (data, scales), or a Quantized of that granularity."""
    return type(operand) is tuple or (type(operand) is Quantized and operand.granularity == granularity)


def _operands(
    a: object, b: object, dims_a: int, dims_b: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Data and scales of both, checked."""
    named_a, named_b = checks.parts("a", a, "1x128"), checks.parts("b", b, "128x128")
    for (data, scale), dims, granularity in ((named_a, dims_a, "1x128"), (named_b, dims_b, "128x128")):
        checks.check_data(data, dims)
        checks.check_scale(scale, data[1], granularity)
    (_, data_a), (_, scale_a) = named_a
    (name_b, data_b), (_, scale_b) = named_b
    checks.check_same(name_b, data_b, data_a.device)
    if data_a.shape[-1] != data_b.shape[-1]:
        before = "groups, n" if dims_b == 3 else "n"
        raise ValueError(
            f"b: expected ({before}, {data_a.shape[-1]}), as many columns as a has, got {tuple(data_b.shape)}"
        )
    runtime.of(data_a.device).check_device(data_a.device)
    return data_a, scale_a, data_b, scale_b


def _output(
    d: torch.Tensor | None,
    c: object,
    out_dtype: object,
    shape: tuple[int, ...],
    read: dict[str, torch.Tensor],
) -> torch.Tensor:
    """d, checked or made. What the kernel reads must not lie in it."""
    device = read["a"].device
    dtype = checks.check_out_dtype(out_dtype, d)
    if c is not None:
        checks.check_sum(c, d, dtype, shape, device)
    if d is None:
        return torch.empty(shape, dtype=dtype, device=device)
    checks.check_out("d", d, shape, device)
    checks.check_overlap(d, read)
    return d


def _run(
    call: Call,
    tensors: Sequence[torch.Tensor],
    c: torch.Tensor | None,
    config: Config | None,
    options: tuple[object, ...],
) -> torch.Tensor:
    """Launch what was checked, and return d. tensors: a, its scales, b, its scales, d, and what says the groups."""
    a, scale_a, *others = tensors
    d = tensors[4]
    if config is not None:
        config = prepared.suited(call, config)
    if c is not None and not checks.same_memory(c, d):
        d.copy_(c)
    if not d.numel():
        return d
    if not call.k or not call.groups:
        return d if c is not None else _nothing(call, d, *tensors[5:])
    tensors = (a, to_m_major(scale_a), *others)
    if config is not None:
        prepared.execute(call, tensors, config)
        return d
    # scales that were laid out just now are often where those of the last call were
    start = prepared.ready(options, tensors) or prepared.resized(options, tensors, apart=True)
    if start is not None:
        start()
    else:
        prepared.execute(call, tensors, options=options)
    return d


def _nothing(call: Call, d: torch.Tensor, groups: torch.Tensor | None = None) -> torch.Tensor:
    """d of products of no columns, or with no weights: zeros, where a product would have been written."""
    if call.layout == "masked" and groups is not None:
        return d.masked_fill_((torch.arange(call.m, device=d.device) < groups[:, None])[..., None], 0)
    if call.layout == "contiguous" and not call.zero_padding and not call.prefix_sums and groups is not None:
        return d.masked_fill_(((groups >= 0) & (groups < call.groups))[:, None], 0)
    return d.zero_()


# ---------------------------------------------------------------------------------------------------- settings


def set_num_sms(num_sms: int | None) -> None:
    """Use at most that many SMs in every later call, and choose tiles for them; the others are free for communication. None: all of them."""
    if num_sms is not None:
        checks.check_int("num_sms", num_sms, 1)
    prepared.change(num_sms=num_sms)


def get_num_sms() -> int:
    """SMs that calls use: as set, or those of the current GPU (132 where there is none: the emulator stands for an H100)."""
    chosen = prepared.settings().num_sms
    if chosen is not None:
        return chosen
    return prepared.sms_of(
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def set_batch_invariant(invariant: bool) -> None:
    """True: only configs that sum k in one order are chosen, so that the bits of a row of d do not depend on m, nor on the other rows."""
    checks.check_flag("invariant", invariant)
    prepared.change(batch_invariant=invariant)


def get_batch_invariant() -> bool:
    """Whether `set_batch_invariant(True)` holds."""
    return prepared.settings().batch_invariant


def set_mk_alignment_for_contiguous_layout(alignment: int) -> None:
    """Rows at whose multiples groups begin in the contiguous layout: 128 unless set; 1: anywhere."""
    prepared.change(alignment=checks.check_int("alignment", alignment, 1, 1 << 20))


def get_mk_alignment_for_contiguous_layout() -> int:
    """Rows at whose multiples groups begin in the contiguous layout."""
    return prepared.settings().alignment


def get_tma_aligned_size(size: int, element_bytes: int) -> int:
    """`size` elements of `element_bytes` bytes, rounded up to a multiple of 16 bytes: the pitch of M-major scales, in elements."""
    return tma_aligned_size(
        checks.check_int("size", size, 0), checks.check_int("element_bytes", element_bytes, 1)
    )
