"""What a call needs besides its tensors: settings, the config for its problem, the loaded kernel; and what makes a repeated call cheap.

Three tables, each filled where the one before has nothing:

1. `prepared`: the addresses of a call's tensors -> a launch that stands ready, tensor maps and all, with the shapes, strides, dtypes and devices under
   which it is good. A call whose tensors are where they were is a look-up, a comparison and a launch.
2. `config_for`: (layout, m, n, k, groups, ...) -> config. For one n and k a menu of at most `tuning.MENU_LIMIT` configs serves every m, so that a new m
   compiles nothing new, or one of these.
3. `jit.build` and `runtime.load`: memory, disk, compiler.

The emulator has no use for the first table: there every call is described anew.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import chips, jit, runtime, tuning
from .kernels import s10_grouped as kernel
from .kernels.s10_grouped import Config
from .layout import round_up
from .types import Launch, Problem

__all__ = [
    "Call", "Settings", "change", "clear", "config_for", "configs_for", "debugging", "execute", "facts", "key_of", "loaded_kernel", "machine_of", "ready",
    "settings", "sms_of", "suited",
]  # fmt: skip

SMS = 132  # of the GPU that the emulator stands for, an H100 SXM
CLOCK = 1_755_000_000  # Hz, at which bytes a second become bytes a cycle
MOST_STAGES = 16  # of a ring; beyond, more in flight brings nothing
SPREAD = 6  # the fullest groups, which decide, hold about a sixth more rows than expected
ROWS = 64  # which every tile has a multiple of
PREPARED_LIMIT = 4096  # launches that stand ready, some 4 KB each: a few for each weight of a large model


@dataclass(frozen=True)
class Settings:
    """What the setters of the library change, for all threads. num_sms: None for all of the device."""

    num_sms: int | None = None
    batch_invariant: bool = False
    alignment: int = 128


@dataclass(frozen=True)
class Call:
    """A call's problem: sizes in elements, and what else decides the config or reaches the kernel as a number.

    layout: "dense", "contiguous" (m rows in all) or "masked" (m rows of each of `groups`, about `expected_m` of them in use).
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


Facts = tuple[object, ...]  # what the addresses of a call's tensors do not say, see `facts`

_settings = Settings()
_lock = threading.Lock()
_prepared: dict[tuple[object, ...], tuple[Facts, Any]] = {}
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
        _settings = replace(_settings, **values)
        _prepared.clear()


def clear() -> None:
    """Forget all plans: kernels are looked up anew, as after a change of their source."""
    with _lock:
        _prepared.clear()
        _loaded.clear()
    _menu.cache_clear()
    _config_for.cache_clear()
    machine_of.cache_clear()
    _fitting.cache_clear()


# ---------------------------------------------------------------------------------------------------- choosing


@functools.cache
def machine_of(device: torch.device) -> tuning.Machine:
    """The rates of a GPU; for the CPU those of an H100."""
    if device.type != "cuda":
        return tuning.Machine(SMS)
    properties = torch.cuda.get_device_properties(device)
    rate = int(chips.of(properties.name).bandwidth * 0.9 / CLOCK)  # what a copy reaches of the datasheet's bandwidth
    return tuning.Machine(properties.multi_processor_count, memory_rate=rate)


def sms_of(device: torch.device) -> int:
    """SMs that calls on this device use: as set, but no more than it has."""
    there = machine_of(device).sms
    return there if _settings.num_sms is None else min(_settings.num_sms, there)


@functools.cache
def _fitting(tile: tuning.Tile, out_fp32: bool, accumulate: bool) -> Config | None:
    for stages in range(MOST_STAGES // tile.splits * tile.splits, 1, -tile.splits):
        config = kernel.Config(tile.block_m, tile.block_n, stages, tile.consumers, tile.splits, out_fp32=out_fp32, accumulate=accumulate)
        if kernel.is_legal(config, Problem(1, 1, 16)):
            return config
    return None


def fitting(tile: tuning.Tile, n: int, k: int, out_fp32: bool, accumulate: bool) -> Config | None:
    """The kernel's config for a tile, with as many stages as fit; None where no number of them does."""
    config = _fitting(tile, out_fp32, accumulate)
    return config if config and kernel.is_legal(config, Problem(1, n, k)) else None


@functools.lru_cache(maxsize=1024)
def _menu(call: Call, machine: tuning.Machine, batch_invariant: bool, alignment: int) -> tuple[tuning.Work, Sequence[tuple[tuning.Tile, Config]]]:
    """The work of a call whose m is 0, and the configs that it may get with any m."""
    out_bytes = 4 if call.out_fp32 else 2
    work = tuning.Work(0, call.n, call.k, call.layout, call.groups, alignment if call.layout == "contiguous" else 1, out_bytes)
    return work, tuning.menu(lambda tile: fitting(tile, call.n, call.k, call.out_fp32, call.accumulate), work, machine, batch_invariant)


@functools.lru_cache(maxsize=4096)
def _config_for(call: Call, machine: tuning.Machine, batch_invariant: bool, alignment: int) -> Config:
    work, choices = _menu(replace(call, m=0, expected_m=0), machine, batch_invariant, alignment)
    rows = min(call.expected_m + call.expected_m // SPREAD, call.m) if call.layout == "masked" and call.expected_m else call.m
    return suited(call, _on(machine, tuning.choose(choices, replace(work, m=rows), machine)[1]))


def _on(machine: tuning.Machine, config: Config) -> Config:
    """The config with a CTA for each SM that is used."""
    return replace(config, ctas=machine.sms)


def _machine(device: torch.device) -> tuning.Machine:
    there = machine_of(device)
    return there if _settings.num_sms is None else replace(there, sms=sms_of(device))


def configs_for(call: Call, device: torch.device) -> list[Config]:
    """The configs that this call may get on this device under the present settings, whatever its m."""
    machine = _machine(device)
    _, choices = _menu(replace(call, m=0, expected_m=0), machine, _settings.batch_invariant, _settings.alignment)
    return [_on(machine, config) for _, config in choices]


def config_for(call: Call, device: torch.device) -> Config:
    """The config that this call gets on this device, under the present settings: the same for all m between two multiples of 64, as tiles are counted."""
    bucket = Call(
        call.layout, round_up(call.m, ROWS), call.n, call.k, call.groups, round_up(call.expected_m, ROWS), call.out_fp32, call.accumulate
    )  # fmt: skip
    return _config_for(bucket, _machine(device), _settings.batch_invariant, _settings.alignment)


def suited(call: Call, config: Config) -> Config:
    """A config for the kernel, with what the call decides in it. TypeError or ValueError when it cannot be."""
    if not isinstance(config, kernel.Config):
        raise TypeError(f"config: expected a {kernel.stage.name}.Config, got {type(config).__module__.rpartition('.')[2]}.{type(config).__name__}")
    for field, value in vars(config).items():
        if not isinstance(value, int):
            raise TypeError(f"config.{field}: expected an int, got {value!r}")
    config = replace(config, out_fp32=call.out_fp32, accumulate=call.accumulate)
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
        a, sfa, b, sfb, d, groups[0], config, prefix_sums=call.prefix_sums, alignment=_settings.alignment,
        zero_padding=call.zero_padding and not call.accumulate,
    )  # fmt: skip


def loaded_kernel(config: Config, device: torch.device) -> Any:
    """The kernel under this config, as the device's runtime launches it: compiled where no cache holds it."""
    held = _loaded.get((config, device))
    if held is None:
        stage = kernel.stage
        built = jit.build(stage.source, config, name=stage.name, kernel=stage.kernel)
        held = _loaded[config, device] = runtime.of(device).load(built, config.shared_bytes, device)
    return held


def execute(call: Call, tensors: Sequence[torch.Tensor], config: Config | None = None, key: tuple[object, ...] | None = None) -> None:
    """Launch the kernel on checked tensors: a, sfa, b, sfb, d, and what says the groups. sfa lies M-major.

    With a `key` (see `key_of`) the launch stays prepared for the next call with it, where the runtime prepares any: the emulator does not.
    """
    device, under = tensors[0].device, _settings
    config = config or config_for(call, device)
    launch = describe(call, config, tensors)
    machine, loaded = runtime.of(device), loaded_kernel(config, device)
    if key is None or not hasattr(machine, "prepare") or not _only_points_into(launch, tensors):
        machine.launch(loaded, launch)
        return
    fire = machine.prepare(loaded, launch)
    with _lock:
        if len(_prepared) >= PREPARED_LIMIT:
            _prepared.clear()
        if _settings is under:  # another thread may have changed them meanwhile
            _prepared[key] = facts(*tensors), fire
    fire()


def facts(
    a: torch.Tensor, sfa: torch.Tensor, b: torch.Tensor, sfb: torch.Tensor, d: torch.Tensor, groups: torch.Tensor | None = None
) -> Facts:  # fmt: skip
    """Shape, strides and dtype of each tensor, written out and compared at once, because every repeated call does so.

    And the device of a (-1: the CPU): the CPU and all GPUs share one space of addresses, so that those of the others say where they are.
    """
    of_five = (
        a.shape, a.stride(), a.dtype, a.get_device(), sfa.shape, sfa.stride(), sfa.dtype, b.shape, b.stride(), b.dtype,
        sfb.shape, sfb.stride(), sfb.dtype, d.shape, d.stride(), d.dtype,
    )  # fmt: skip
    return of_five if groups is None else (*of_five, groups.shape, groups.stride(), groups.dtype)


def key_of(
    options: tuple[object, ...], a: torch.Tensor, sfa: torch.Tensor, b: torch.Tensor, sfb: torch.Tensor, d: torch.Tensor, groups: torch.Tensor | None = None
) -> tuple[object, ...]:  # fmt: skip
    """The addresses of all tensors, and the options that tell the call's launch from another's."""
    addresses = a.data_ptr(), sfa.data_ptr(), b.data_ptr(), sfb.data_ptr(), d.data_ptr()
    return (options, *addresses) if groups is None else (options, *addresses, groups.data_ptr())


def ready(
    options: tuple[object, ...], a: torch.Tensor, sfa: torch.Tensor, b: torch.Tensor, sfb: torch.Tensor, d: torch.Tensor, groups: torch.Tensor | None = None
) -> Any:  # fmt: skip
    """The prepared launch of an earlier call with these options and tensors at these addresses, if the tensors are like that call's; else None."""
    if groups is None:  # as key_of, without a call
        held = _prepared.get((options, a.data_ptr(), sfa.data_ptr(), b.data_ptr(), sfb.data_ptr(), d.data_ptr()))
    else:
        held = _prepared.get(key_of(options, a, sfa, b, sfb, d, groups))
    return held[1] if held is not None and held[0] == facts(a, sfa, b, sfb, d, groups) else None


def _only_points_into(launch: Launch, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether every address in the launch is that of one of the tensors: then the same addresses next time mean the same launch."""
    known = {tensor.data_ptr() for tensor in tensors}
    held = (getattr(arg, "tensor", arg) for arg in launch.args)
    return all(tensor.data_ptr() in known for tensor in held if isinstance(tensor, torch.Tensor))
