"""What torch sees of a call that it traces: the operators `torch.ops.minigemm`.

torch.compile, torch.export and make_fx cannot look into a launch. To them a call is one opaque operator. Its
schema says what it writes, and its fake says what comes out. Each call has two operators: `fp8_gemm_nt`
returns a d that it makes, and `fp8_gemm_nt_out` writes to d and returns nothing. They take data and scales as
four tensors, and the rest under the names of the call.

The library's calls take this way only where torch traces, so any other call costs the host as little as
before. The operators exist from the import of `minigemm.api` on, which the first use of a call brings.
`torch.ops.import_module("minigemm.api")` brings it too.

On tensors with memory an operator is its call, with all checks. Its fake looks at dtypes and sizes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["NO_GRADIENT", "OUT_DTYPES", "dynamo_traces", "modes", "register"]

NO_GRADIENT = (
    "expected a tensor that needs no gradient, which this call does not compute; call under torch.no_grad(), "
    "or pass .detach()"
)
OUT_DTYPES = (torch.bfloat16, torch.float32)

# Each call asks both, which takes less than 0.1 us.
#: Whether torch.compile traces: false whenever it runs, since torch.compile replaces it by true.
dynamo_traces = torch.compiler.is_dynamo_compiling
#: How many modes see each operator: those of make_fx, of FakeTensorMode, of a user.
modes: Callable[[], int] = torch._C._len_torch_dispatch_stack

_OPERANDS = "Tensor a, Tensor scale_a, Tensor b, Tensor scale_b"
_CONTIGUOUS = f"{_OPERANDS}, Tensor grouped_layout"
_MASKED = f"{_OPERANDS}, Tensor masked_m"
_PADDING = "bool use_psum_layout=False, bool ensure_zero_padding=True"
_EXPECTED = "SymInt? expected_m=None"
_MADE = "ScalarType? out_dtype=None) -> Tensor"
SCHEMAS = {
    "fp8_gemm_nt": f"({_OPERANDS}, Tensor? c=None, *, {_MADE}",
    "fp8_gemm_nt_out": f"({_OPERANDS}, Tensor(d!) d, Tensor? c=None) -> ()",
    "m_grouped_fp8_gemm_nt_contiguous": f"({_CONTIGUOUS}, Tensor? c=None, *, {_PADDING}, {_MADE}",
    "m_grouped_fp8_gemm_nt_contiguous_out": (
        f"({_CONTIGUOUS}, Tensor(d!) d, Tensor? c=None, *, {_PADDING}) -> ()"
    ),
    "m_grouped_fp8_gemm_nt_masked": f"({_MASKED}, Tensor? c=None, *, {_EXPECTED}, {_MADE}",
    "m_grouped_fp8_gemm_nt_masked_out": f"({_MASKED}, Tensor(d!) d, Tensor? c=None, *, {_EXPECTED}) -> ()",
}
_library: torch.library.Library | None = None


def register(calls: Mapping[str, Callable[..., torch.Tensor]]) -> None:
    """Define the operators of the library's calls, which come by name. A second time changes nothing."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("minigemm", "DEF")
    # the strides of a traced graph are kept, since the kernel cannot read any
    strides = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
    for name, schema in SCHEMAS.items():
        _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, strides))
        operator = getattr(torch.ops.minigemm, name).default
        names = tuple(argument.name for argument in operator._schema.arguments)
        _library.impl(name, _running(calls[name.removesuffix("_out")], names), "CompositeExplicitAutograd")
        _library.impl(name, _without_gradient(operator, names), "Autograd")
        _library.impl(name, _no_vmap(name), "FuncTorchBatched")
        torch.library.register_fake(f"minigemm::{name}", _fake(names), lib=_library)


def _running(call: Callable[..., torch.Tensor], names: tuple[str, ...]) -> Callable[..., Any]:
    """Return an operator on tensors with memory: the call itself."""

    def run(*args: Any, **options: Any) -> torch.Tensor | None:
        given = dict(zip(names, args, strict=False)) | options
        a, b = ((given.pop(name), given.pop(f"scale_{name}")) for name in "ab")
        d = call(a, b, **given)
        return None if "d" in given else d

    return run


def _without_gradient(operator: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """Return an operator on tensors that autograd sees: an error instead of a gradient that is lost."""

    def run(*args: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():
            for name, value in (*zip(names, args, strict=False), *options.items()):
                if isinstance(value, torch.Tensor) and value.requires_grad:
                    raise ValueError(f"{name}: {NO_GRADIENT}")
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args, **options)

    return run


def _no_vmap(name: str) -> Callable[..., Any]:
    """Return an operator on tensors of torch.vmap: an error."""

    def run(*args: Any, **options: Any) -> Any:
        raise TypeError(
            f"{name}: expected plain tensors, got one of torch.vmap; a grouped call takes many products"
        )

    return run


def _fake(names: tuple[str, ...]) -> Callable[..., Any]:
    """Return an operator on tensors without memory: it checks dtypes and sizes, and makes d without data."""

    def run(*args: Any, **options: Any) -> torch.Tensor | None:
        given = dict(zip(names, args, strict=False)) | options
        a, b, d = given["a"], given["b"], given.get("d")
        grouped, masked = "grouped_layout" in given, "masked_m" in given
        dims_a, dims_b = 2 + masked, 2 + (masked or grouped)

        # The operands, as checks.py words it. All else is checked when there is memory.
        for name, tensor, dims in (("a", a, dims_a), ("b", b, dims_b)):
            if tensor.dtype != torch.float8_e4m3fn:
                raise TypeError(f"{name}: expected float8_e4m3fn, got {tensor.dtype}")
            if tensor.dim() != dims:
                raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(tensor.shape)}")
        torch._check(a.shape[-1] == b.shape[-1], lambda: "b: expected as many columns as a has")
        shape = (*a.shape[:-1], b.shape[-2])

        # The result.
        dtype = given.get("out_dtype") or (torch.bfloat16 if d is None else d.dtype)
        if dtype not in OUT_DTYPES:
            raise TypeError(f"{'out_dtype' if d is None else 'd'}: expected bfloat16 or float32, got {dtype}")
        for name, tensor in (("d", d), ("c", given.get("c"))):
            if tensor is not None:
                _check_like(name, tensor, dtype, shape)
        return a.new_empty(shape, dtype=dtype) if d is None else None

    return run


def _check_like(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[Any, ...]) -> None:
    """Check the dtype and the sizes of d or c."""
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected the dtype of d, {dtype}, got {tensor.dtype}")
    if tensor.dim() != len(shape):
        raise ValueError(f"{name}: expected {len(shape)} dimensions, got shape {tuple(tensor.shape)}")
    for found, wanted in zip(tensor.shape, shape, strict=True):
        torch._check(found == wanted, lambda: f"{name}: expected d's shape, that of a @ b.T")
