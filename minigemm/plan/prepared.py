"""What a call needs besides its tensors: settings, the config for its problem, the loaded kernel; and what makes a repeated call cheap.

Four tables, each filled where the one before has nothing:

1. `prepared`: the addresses of a call's tensors -> a launch that stands ready, tensor maps and all, with a guard that knows under which shapes, strides,
   dtypes and devices it is good. A call whose tensors are where they were is a look-up, a comparison and a launch.
2. `patterns`: a dense call's weights and its m in steps of 64 -> such a launch, and what in it follows m. A call with a new m that is like a checked one
   in all else replaces that in the launch.
3. `config_for`: (layout, m, n, k, groups, ...) -> config. For one n and k a menu of at most `cost.MENU_LIMIT` configs serves every m, so that a new m
   compiles nothing new, or one of these.
4. `jit.build` and `runtime.load`: memory, disk, compiler.

The emulator has no use for the first two: there every call is described anew.
"""

from __future__ import annotations

import functools
import os
import threading
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from .. import checks, hopper, runtime
from ..compiler import jit
from ..kernels import s10_grouped as kernel
from ..kernels.s10_grouped import Config
from ..layout import ceil_div, is_m_major, round_up
from ..types import Launch, Problem, TensorMap
from . import cost

try:
    from torch._C._dynamo.guards import TensorGuards
except ImportError:  # not a public name
    TensorGuards = None  # type: ignore[assignment, misc]

__all__ = [
    "Call", "Settings", "change", "clear", "config_for", "configs_for", "debugging", "execute", "loaded_kernel", "machine_of", "ready", "resized", "settings",
    "sms_of", "suited",
]  # fmt: skip

SMS = 132  # of the GPU that the emulator stands for, an H100 SXM
CLOCK = 1_755_000_000  # Hz, at which bytes a second become bytes a cycle
MOST_STAGES = 16  # of a ring; beyond, more in flight brings nothing
ROWS = 64  # which every tile has a multiple of
_LAYOUTS = {  # of the kernel, by that of the call and whether it tells prefix sums
    ("dense", False): kernel.DENSE, ("contiguous", False): kernel.CONTIGUOUS, ("contiguous", True): kernel.PREFIX_SUMS, ("masked", False): kernel.MASKED,
}  # fmt: skip
PREPARED_LIMIT = 4096  # launches that stand ready, some 4 KB each: a few for each weight of a large model


class Settings(NamedTuple):
    """What the setters of the library change, for all threads. num_sms: None for all of the device."""

    num_sms: int | None = None
    batch_invariant: bool = False
    alignment: int = 128


class Call(NamedTuple):
    """A call's problem: sizes in elements, and what else decides the config or reaches the kernel as a number.

    layout: "dense", "contiguous" (m rows in all) or "masked" (m rows of each of `groups`, about `expected_m` of them in use). A tuple, like the
    settings: made and hashed by each call with a new m, which a dataclass does several times slower.
    """

    layout: str
    m: int
    n: int
    k: int
    groups: int = 1
    expected_m: int = 0
    out_fp32: bool = False
    accumulate: bool = False
    prefix_sums: bool = False
    zero_padding: bool = True


Guard = Callable[
    ..., bool
]  # of a call's tensors: whether they have the shapes, strides, dtypes and devices of those that it was made from


class Pattern(NamedTuple):
    """A prepared dense launch, for calls that are like it in all but m, with m between the same multiples of 64: config and grid are theirs too.

    guard: of a call's tensors, whether they are like the launch's in all but m. rows: the place of m among the parameters. following: the places of those that
    tell where a, sfa or d (0, 1, 2) is, and for a tensor map its box and swizzle.
    """

    guard: Guard
    launch: Any
    rows: int
    following: Sequence[tuple[int, int, tuple[tuple[int, ...], int] | None]]


_data_ptr = torch.Tensor.data_ptr
_settings = Settings()
_lock = threading.Lock()
_prepared: dict[tuple[object, ...], tuple[Guard, Callable[[], None]]] = {}
_patterns: dict[tuple[object, ...], Pattern] = {}
_loaded: dict[tuple[Config, torch.device], Any] = {}


def debugging() -> bool:
    """Whether MINIGEMM_DEBUG asks for checks of what only the data shows, on a GPU too; they wait for the GPU."""
    return os.environ.get("MINIGEMM_DEBUG", "0") not in ("", "0")


def settings() -> Settings:
    """The present ones."""
    return _settings


def change(**values: Any) -> None:
    """Other settings, from the next call on."""
    global _settings
    with _lock:
        _settings = _settings._replace(**values)
        _prepared.clear()
        _patterns.clear()


def clear() -> None:
    """Forget all plans: kernels are looked up anew, as after a change of their source."""
    with _lock:
        _prepared.clear()
        _patterns.clear()
        _loaded.clear()
    _menu.cache_clear()
    _config_for.cache_clear()
    machine_of.cache_clear()
    _fitting.cache_clear()


# ---------------------------------------------------------------------------------------------------- choosing


@functools.cache
def machine_of(device: torch.device) -> cost.Machine:
    """The rates of a GPU; for the CPU those of an H100."""
    if device.type != "cuda":
        return cost.Machine(SMS)
    properties = torch.cuda.get_device_properties(device)
    rate = int(
        hopper.of(properties.name).bandwidth * 0.9 / CLOCK
    )  # what a copy reaches of the datasheet's bandwidth
    return cost.Machine(properties.multi_processor_count, memory_rate=rate)


def sms_of(device: torch.device) -> int:
    """SMs that calls on this device use: as set, but no more than it has."""
    return _machine(device, _settings).sms


@functools.cache
def _fitting(tile: cost.Tile, out_fp32: bool, accumulate: bool) -> Config | None:
    def config(stages: int) -> Config:
        return kernel.Config(
            tile.block_m,
            tile.block_n,
            stages,
            tile.consumers,
            tile.splits,
            out_fp32=out_fp32,
            accumulate=accumulate,
        )

    def illegal(stages: int) -> bool:
        return not kernel.is_legal(config(stages), Problem(1, 1, 16))

    counts = range(max(tile.splits, 2), MOST_STAGES + 1, tile.splits)
    if illegal(counts[0]):
        return None
    return config(
        counts[bisect(counts, False, key=illegal) - 1]
    )  # what so many stages exceed, more exceed too


def fitting(tile: cost.Tile, n: int, k: int, out_fp32: bool, accumulate: bool) -> Config | None:
    """The kernel's config for a tile, with as many stages as fit; None where no number of them does."""
    config = _fitting(tile, out_fp32, accumulate)
    return config if config and kernel.is_legal(config, Problem(1, n, k)) else None


@functools.lru_cache(maxsize=1024)
def _menu(
    call: Call, machine: cost.Machine, batch_invariant: bool, alignment: int
) -> tuple[cost.Work, Sequence[tuple[cost.Tile, Config]]]:
    """The work of a call whose m is 0, and the configs that it may get with any m."""
    out_bytes = 4 if call.out_fp32 else 2
    work = cost.Work(
        0,
        call.n,
        call.k,
        call.layout,
        call.groups,
        alignment if call.layout == "contiguous" else 1,
        out_bytes,
    )
    return work, cost.menu(
        lambda tile: fitting(tile, call.n, call.k, call.out_fp32, call.accumulate),
        work,
        machine,
        batch_invariant,
    )


@functools.lru_cache(maxsize=4096)
def _config_for(call: Call, device: torch.device, under: Settings) -> Config:
    machine = _machine(device, under)
    work, choices = _choices(call, machine, under)
    rows = min(call.expected_m, call.m) if call.layout == "masked" and call.expected_m else call.m
    return suited(call, _on(machine, cost.choose(choices, replace(work, m=rows), machine)[1]))


def _choices(
    call: Call, machine: cost.Machine, under: Settings
) -> tuple[cost.Work, Sequence[tuple[cost.Tile, Config]]]:
    return _menu(
        call._replace(m=0, expected_m=0, prefix_sums=False), machine, under.batch_invariant, under.alignment
    )


def _on(machine: cost.Machine, config: Config) -> Config:
    """The config with a CTA for each SM that is used."""
    return replace(config, ctas=machine.sms)


def _machine(device: torch.device, under: Settings) -> cost.Machine:
    there = machine_of(device)
    return there if under.num_sms is None else replace(there, sms=min(under.num_sms, there.sms))


def configs_for(call: Call, device: torch.device) -> list[Config]:
    """The configs that this call may get on this device under the present settings, whatever its m."""
    machine = _machine(device, _settings)
    return [suited(call, _on(machine, config)) for _, config in _choices(call, machine, _settings)[1]]


def config_for(call: Call, device: torch.device) -> Config:
    """The config that this call gets on this device, under the present settings: the same for all m between two multiples of 64, as tiles are counted."""
    bucket = Call(
        call.layout, round_up(call.m, ROWS), call.n, call.k, call.groups, round_up(call.expected_m, ROWS), call.out_fp32, call.accumulate, call.prefix_sums
    )  # fmt: skip
    return _config_for(bucket, device, _settings)


def suited(call: Call, config: Config) -> Config:
    """A config for the kernel, with what the call decides in it. TypeError or ValueError when it cannot be."""
    if not isinstance(config, kernel.Config):
        raise TypeError(
            f"config: expected a {kernel.stage.name}.Config, got {type(config).__module__.rpartition('.')[2]}.{type(config).__name__}"
        )
    for field, value in vars(config).items():
        if not isinstance(value, int):
            raise TypeError(f"config.{field}: expected an int, got {value!r}")
    config = replace(
        config,
        out_fp32=call.out_fp32,
        accumulate=call.accumulate,
        layout=_LAYOUTS[call.layout, call.prefix_sums],
    )
    rows = call.m * call.groups if call.layout == "masked" else call.m
    if not (legal := kernel.is_legal(config, Problem(rows, call.n, call.k))):
        raise ValueError(f"config: {legal.reason}")
    return config


# ---------------------------------------------------------------------------------------------------- launching


def describe(call: Call, config: Config, tensors: Sequence[torch.Tensor]) -> Launch:
    """The launch. tensors: a, sfa, b, sfb, d, and what says the groups."""
    a, sfa, b, sfb, d, *groups = tensors
    if call.layout == "dense":
        return kernel.launch_dense(a, sfa, b, sfb, d, config)
    if call.layout == "masked":
        return kernel.launch_masked(a, sfa, b, sfb, d, groups[0], config)
    return kernel.launch_contiguous(
        a,
        sfa,
        b,
        sfb,
        d,
        groups[0],
        config,
        alignment=_settings.alignment,
        zero_padding=call.zero_padding and not call.accumulate,
    )


def loaded_kernel(config: Config, device: torch.device) -> Any:
    """The kernel under this config, as the device's runtime launches it: compiled where no cache holds it."""
    held = _loaded.get((config, device))
    if held is None:
        stage = kernel.stage
        built = jit.build(stage.source, config, name=stage.name, kernel=stage.kernel)
        held = _loaded[config, device] = runtime.of(device).load(built, config.shared_bytes, device)
    return held


def execute(
    call: Call,
    tensors: Sequence[torch.Tensor],
    config: Config | None = None,
    options: tuple[object, ...] | None = None,
) -> None:
    """Launch the kernel on checked tensors: a, sfa, b, sfb, d, and what says the groups. sfa lies M-major, so that the launch points into these alone.

    With `options`, which tell the call's launch from others on the same tensors, it stays prepared for the next call, where the runtime prepares any: the
    emulator does not.
    """
    device, under = tensors[0].device, _settings
    config = config or config_for(call, device)
    launch = describe(call, config, tensors)
    machine, loaded = runtime.of(device), loaded_kernel(config, device)
    if options is None or not hasattr(machine, "prepare"):
        machine.launch(loaded, launch)
        return
    prepared = machine.prepare(loaded, launch)
    pattern = _pattern(call, launch, tensors, prepared)
    if pattern is not None:
        _keep(_patterns, _rows_key(options, tensors), pattern, under)
    _keep(_prepared, _key(options, tensors), (_guard(tensors), prepared.start), under)
    prepared.start()


def _keep(table: dict[Any, Any], key: tuple[object, ...], value: object, under: Settings) -> None:
    """Put into a table what was made under these settings."""
    with _lock:
        if len(table) >= PREPARED_LIMIT:
            table.clear()
        if _settings is under:  # another thread may have changed them meanwhile
            table[key] = value


def _guard(
    tensors: Sequence[torch.Tensor], sizes: list[Any] | None = None, strides: list[Any] | None = None
) -> Guard:
    """Whether other tensors are like these in all that addresses do not say; a size or stride of None may be any.

    Every call asks, so torch's own comparison is taken, that of torch.compile's guards, where this torch has it: in Python it takes three times as long.
    """
    if TensorGuards is not None:
        return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    sizes, strides = sizes or [x.shape for x in tensors], strides or [x.stride() for x in tensors]
    kinds = [(x.dtype, x.device) for x in tensors]

    def alike(*others: torch.Tensor) -> bool:
        return kinds == [(x.dtype, x.device) for x in others] and all(
            len(wanted) == len(found) and all(w is None or w == f for w, f in zip(wanted, found, strict=True))
            for x, *both in zip(others, sizes, strides, strict=True)
            for wanted, found in zip(both, (x.shape, x.stride()), strict=True)
        )

    return alike


def ready(options: tuple[object, ...], tensors: Sequence[torch.Tensor]) -> Callable[[], None] | None:
    """What starts the launch of an earlier call with these options and tensors at these addresses, if the tensors are like that call's; else None."""
    held = _prepared.get((options, *map(_data_ptr, tensors)))  # as _key, spelt out for its time
    return held[1] if held is not None and held[0](*tensors) else None


def _key(options: tuple[object, ...], tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    return options, *map(_data_ptr, tensors)


def resized(
    options: tuple[object, ...], tensors: Sequence[torch.Tensor], apart: bool
) -> Callable[[], None] | None:
    """What starts the launch of a dense call that is like an earlier one in all but m; None where there is no such call, or where this one needs all of its checks.

    apart: whether d is known to share no memory with the others. ValueError where it does.
    """
    under, pattern = _settings, _patterns.get(_rows_key(options, tensors))
    if pattern is None or not pattern.guard(*tensors):
        return None
    a, sfa, b, sfb, d = tensors
    m = a.shape[0]
    if (
        m < 2
        or sfa.shape[0] != m
        or d.shape[0] != m
        or (a.data_ptr() | d.data_ptr()) % 16
        or not is_m_major(sfa)
    ):
        return None
    if not apart:
        checks.check_overlap(d, {"a": a, "b": b, "the scales of a": sfa, "the scales of b": sfb})
    moved = a, sfa.T, d
    changes: dict[int, Any] = {pattern.rows: m}
    for place, which, form in pattern.following:
        changes[place] = TensorMap(moved[which], *form) if form else moved[which]
    start: Callable[[], None] = pattern.launch.replaced(changes).start
    _keep(_prepared, _key(options, tensors), (_guard(tensors), start), under)
    return start


def _pattern(call: Call, launch: Launch, tensors: Sequence[torch.Tensor], prepared: Any) -> Pattern | None:
    """What in a launch follows the rows, as the tensors' addresses and the value of m tell; None where they leave a doubt."""
    if call.layout != "dense" or call.m < 2:  # a single row may have any stride
        return None
    a, sfa, b, sfb, d = tensors
    moved, fixed = (
        {x.data_ptr(): which for which, x in enumerate((a, sfa, d))},
        {b.data_ptr(), sfb.data_ptr()},
    )
    rows = [place for place, arg in enumerate(launch.args) if type(arg) is int and arg == call.m]
    if len(rows) != 1 or len(moved.keys() | fixed) != 5 or d.data_ptr() % 16:
        return None
    following = []
    for place, arg in enumerate(launch.args):
        tensor = arg.tensor if isinstance(arg, TensorMap) else arg
        if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in fixed:
            following.append(
                (
                    place,
                    moved[tensor.data_ptr()],
                    (arg.box, arg.swizzle) if isinstance(arg, TensorMap) else None,
                )
            )
    sizes = [[None, *a.shape[1:]], [None, *sfa.shape[1:]], [*b.shape], [*sfb.shape], [None, *d.shape[1:]]]
    strides = [[*a.stride()], [1, None], [*b.stride()], [*sfb.stride()], [*d.stride()]]
    return Pattern(_guard(tensors, sizes, strides), prepared, rows[0], following)


def _rows_key(options: tuple[object, ...], tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    a, _, b, sfb = tensors[:4]
    return options, b.data_ptr(), sfb.data_ptr(), ceil_div(a.shape[0], ROWS)
