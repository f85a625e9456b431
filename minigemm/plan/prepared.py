"""Launches that stand ready: what makes a repeated call cheap.

A model calls the same products step after step. The first call of a product takes the long way: checks, a
config, a loaded kernel, a description, tensor maps. The calls after it take one of two short ways, each a
table. In all of this module sfa and sfb are the scale factors of a and b.

1. **The same tensors.** `_ready` goes from the addresses of a call's tensors to a launch with all its
   parameters. An address does not say shape, stride, dtype or device, so a guard compares these. The call is
   then a look-up, a comparison and a launch: 6.3 us of host time (docs/results/h100_bench.json).
2. **The same weights, another m.** `_other_m` goes from the weights' addresses and m in steps to a dense
   launch. Config and grid stay within a step (`choose.m_step`), so the kernels' module can say which
   arguments change: `grouped.refit`. All else stays, and nothing is checked or described again but what m
   could spoil.

Below lie the caches of the long way: `choose` (the menu, and the config of each product), `_loaded` here,
`compiler.jit` (memory, disk), and `runtime.cuda` (loaded modules, tensor maps).

No tensor is kept alive, and nothing of a tensor's data is ever remembered. The emulator has no use for the
short ways (`runtime`): there every call is checked and described anew.

Threads share the tables. An entry never changes after it is made; the lock guards against settings that
change between the making of an entry and its keeping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import checks, runtime
from ..compiler import jit
from ..kernels import grouped
from ..kernels.library import Config, stage_of
from ..layout import ceil_div, is_m_major
from ..types import Launch, Layout, Product
from . import choose

try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # not a public name
    TensorGuards = None  # type: ignore[assignment, misc]

__all__ = ["change", "clear", "compiled", "describe", "execute", "loaded", "ready", "resized"]

LIMIT = 4096  # launches that stand ready, some 4 KB each: a few for each weight of a large model

Start = Callable[[], None]
#: Compares a call's tensors with those that it was made from: shapes, strides, dtypes, devices.
Guard = Callable[..., bool]


class OtherM(NamedTuple):
    """A prepared dense launch that serves every m of one step. It holds no tensor.

    Attributes:
        guard: whether a call's tensors match in all but m.
        forms: the forms of the launch's tensor maps, for `grouped.refit`.
        prepared: the launch as the device's runtime prepared it, a `runtime.cuda.Prepared`.
    """

    guard: Guard
    forms: grouped.Forms
    prepared: Any


_lock = threading.Lock()
_ready: dict[tuple[object, ...], tuple[Guard, Start]] = {}
_other_m: dict[tuple[object, ...], OtherM] = {}
_loaded: dict[tuple[Config, torch.device], Any] = {}
_data_ptr = torch.Tensor.data_ptr


def change(**values: Any) -> None:
    """Change settings, from the next call on, and forget the launches that were made under the old ones."""
    with _lock:
        choose.change(**values)
        _ready.clear()
        _other_m.clear()


def clear() -> None:
    """Forget all launches, kernels and choices.

    Kernels are then looked up anew, as after a change of their source.
    """
    with _lock:
        _ready.clear()
        _other_m.clear()
        _loaded.clear()
    choose.clear()


# --- the long way


def compiled(config: Config) -> jit.Kernel:
    """Return the kernel that this config is of, compiled where no cache holds it."""
    stage = stage_of(config)
    return jit.build(stage.source, config, name=stage.name, symbol=stage.symbol)


def loaded(config: Config, device: torch.device) -> Any:
    """Return the kernel under this config as the device's runtime launches it."""
    held = _loaded.get((config, device))
    if held is None:
        held = runtime.of(device).load(compiled(config), config.shared_bytes, device)
        _loaded[config, device] = held
    return held


def describe(product: Product, tensors: Sequence[torch.Tensor], config: Config) -> Launch:
    """Describe the launch on a, sfa, b, sfb, d, and for groups `index` (see `execute`)."""
    a, sfa, b, sfb, d = tensors[:5]
    if product.layout == Layout.DENSE:
        return grouped.launch_dense(a, sfa, b, sfb, d, config)
    index = tensors[5]
    if product.layout == Layout.MASKED:
        return grouped.launch_masked(a, sfa, b, sfb, d, index, config)
    zeros = product.zero_padding and not product.accumulate
    alignment = product.alignment
    return grouped.launch_contiguous(
        a, sfa, b, sfb, d, index, config, alignment=alignment, zero_padding=zeros
    )


def execute(
    product: Product,
    tensors: Sequence[torch.Tensor],
    config: Config | None = None,
    options: tuple[object, ...] | None = None,
) -> None:
    """Launch the kernel on checked tensors.

    Args:
        tensors: a, sfa, b, sfb, d, and for groups `index`: int32; each row's group, each group's end, or
            each group's count, by layout. sfa lies M-major, so that the launch points into these tensors
            alone.
        config: by default the one that suits the product.
        options: what tells this call's launch from others on the same tensors. With it the launch stays
            prepared for the next call, where the runtime prepares any.
    """
    device, under = tensors[0].device, choose.settings()
    config = config or choose.config_for(product, device)
    launch = describe(product, tensors, config)
    if under.pdl:
        launch = grouped.dependent(launch, under.early_weights)
    device_runtime, function = runtime.of(device), loaded(config, device)
    if options is None or device_runtime.prepare is None:
        device_runtime.launch(function, launch)
        return

    prepared = device_runtime.prepare(function, launch)
    _keep(_ready, _key(options, tensors), (_guard(tensors), prepared.start), under)
    # Not for m = 1, whose tensors may have any stride, nor for a d that is not 16-byte aligned, which threads
    # store instead of TMA: neither launch can be refitted.
    if product.layout == Layout.DENSE and product.m > 1 and tensors[4].data_ptr() % 16 == 0:
        other_m = OtherM(_guard_but_m(tensors), grouped.forms(launch), prepared)
        _keep(_other_m, _key_but_m(options, tensors), other_m, under)
    prepared.start()


# --- the short ways


def ready(options: tuple[object, ...], tensors: Sequence[torch.Tensor]) -> Start | None:
    """Return what starts an earlier call's launch, if its options and tensors were the same; else None."""
    held = _ready.get((options, *map(_data_ptr, tensors)))  # as _key, without the time of a call
    return held[1] if held is not None and held[0](*tensors) else None


def resized(
    options: tuple[object, ...], tensors: Sequence[torch.Tensor], overlap_checked: bool
) -> Start | None:
    """Return what refits an earlier dense launch to another m, keeps the result, and starts it.

    Args:
        options, tensors: as in `execute`.
        overlap_checked: d is known to share no memory with the others.

    Returns:
        None if the call must be checked. Errors of the driver come when the result is called.

    Raises:
        ValueError: `overlap_checked` is false, and d shares memory with the others.
    """
    under, other = choose.settings(), _other_m.get(_key_but_m(options, tensors))
    if other is None or not other.guard(*tensors):
        return None

    # The guard has compared all but m: the rows of a, sfa and d, and where they lie.
    a, sfa, b, sfb, d = tensors  # `_other_m` holds dense launches only (execute).
    m = a.shape[0]
    if m < 2 or sfa.shape[0] != m or d.shape[0] != m or not is_m_major(sfa):
        return None
    places = a.data_ptr(), sfa.data_ptr(), d.data_ptr()
    if not all(places) or (places[0] | places[2]) % 16:  # freed memory; bytes, as TMA wants them
        return None
    if not overlap_checked:
        checks.check_overlap(d, {"a": a, "b": b, "the scales of a": sfa, "the scales of b": sfb})

    def start() -> None:
        launch = other.prepared.replaced(grouped.refit(other.forms, a, sfa, d))
        _keep(_ready, _key(options, tensors), (_guard(tensors), launch.start), under)
        launch.start()

    return start


def _key(options: tuple[object, ...], tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    return options, *map(_data_ptr, tensors)


def _key_but_m(options: tuple[object, ...], tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    a, _, b, sfb = tensors[:4]
    m = a.shape[0]
    step = choose.m_step(m)
    return options, b.data_ptr(), sfb.data_ptr(), step, ceil_div(m, step)


def _keep(table: dict[Any, Any], key: tuple[object, ...], value: object, under: choose.Settings) -> None:
    """Put an entry that was made under these settings into a table."""
    with _lock:
        if len(table) >= LIMIT:
            table.clear()
        if choose.settings() is under:  # another thread may have changed them meanwhile
            table[key] = value


def _guard_but_m(tensors: Sequence[torch.Tensor]) -> Guard:
    """Make the guard of a dense call for any m. sfa lies M-major: its pitch follows m."""
    a, sfa, b, sfb, d = tensors
    sizes = [[None, *a.shape[1:]], [None, *sfa.shape[1:]], [*b.shape], [*sfb.shape], [None, *d.shape[1:]]]
    strides = [[*a.stride()], [1, None], [*b.stride()], [*sfb.stride()], [*d.stride()]]
    return _guard(tensors, sizes, strides)


def _guard(
    tensors: Sequence[torch.Tensor], sizes: list[Any] | None = None, strides: list[Any] | None = None
) -> Guard:
    """Make the comparison of other tensors with these; a size or stride of None may be any.

    Every call asks, so the guards of torch.compile compare where this torch has them: Python takes three
    times as long. They also compare type, need of a gradient, and dispatch keys, those of modes and
    transforms included. So no tensor passes that `checks.check_tensor` would refuse: the long way says why.
    """
    if any(x.requires_grad for x in tensors):  # made where autograd was off
        same = _same(tensors, sizes, strides)
        return lambda *others: not torch.is_grad_enabled() and same(*others)
    return _same(tensors, sizes, strides)


def _same(tensors: Sequence[torch.Tensor], sizes: list[Any] | None, strides: list[Any] | None) -> Guard:
    """Make the comparison of `_guard`, which does not ask whether autograd is on."""
    if TensorGuards is not None:
        return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    sizes, strides = sizes or [x.shape for x in tensors], strides or [x.stride() for x in tensors]
    kinds = [_kind(x) for x in tensors]

    def alike(*others: torch.Tensor) -> bool:
        return kinds == [_kind(x) for x in others] and all(
            len(wanted) == len(found) and all(w is None or w == f for w, f in zip(wanted, found, strict=True))
            for x, *both in zip(others, sizes, strides, strict=True)
            for wanted, found in zip(both, (x.shape, x.stride()), strict=True)
        )

    return alike


def _kind(x: torch.Tensor) -> tuple[object, ...]:
    return type(x), x.dtype, x.device, x.requires_grad, x.is_neg()
