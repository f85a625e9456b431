"""One launch: check its arguments, give the kernel its memory, run it, and report."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .clusters import PORTABLE
from .context import SHARED_FIRST
from .errors import EmulatorError
from .machine import running, tensor_core
from .machine.launch import LaunchState, Memory
from .machine.tma import TensorMap
from .ptx.module import Function, Module
from .translate.cached import Translated, translated_kernel
from .translate.lower import Program
from .watch import findings
from .watch import profile as profiling
from .watch.report import Counters, Hazard, LineCount, Report, Request, location_in_words
from .watch.timeline import Rates

Dim = int | Sequence[int]
Dim3 = tuple[int, int, int]
SHARED_LIMIT = 227 * 1024  # bytes of shared memory of a CTA
GRID_LIMIT = 65535  # CTAs along y, and along z
LARGE = 1 << 13  # threads: a smaller launch is over before LLVM would have optimized its code


def launch(
    ptx: str,
    grid: Dim,
    block: Dim,
    args: Sequence[Any],
    kernel: str | None = None,
    shared: int = 0,
    cluster: Dim = (1, 1, 1),
    *,
    schedule: str | int = "late",
    hazards: bool = True,
    profile: bool = True,
    instruction_limit: float = 2e10,
    keep_requests: int = 0,
    fast: bool = False,
    timeline: bool | Rates = False,
    variables: Mapping[str, Any] | None = None,
) -> Report:
    """Run a kernel of a PTX module on the CPU, as a Hopper GPU would.

    Args:
        ptx: the text of a module for ``sm_90a`` (or older), as NVRTC or nvcc emits it. With ``-lineinfo``,
            messages name CUDA source lines.
        grid: CTAs, one to three dimensions (x, y, z).
        block: threads of a CTA, likewise.
        args: one for each kernel parameter, in order: CPU tensors (a pointer to their first element),
            :class:`TensorMap`, Python numbers (as wide as the parameter; a float for an f32 or f64
            parameter), NumPy scalars, ``ctypes`` structures or ``bytes``.
        kernel: the entry's name; may be left out when the module has one entry.
        shared: bytes of dynamic shared memory.
        cluster: CTAs per cluster, at most 8 in all; the grid is a multiple of it. A kernel with
            ``__cluster_dims__`` brings its own.
        schedule: when asynchronous work completes. ``"late"``: only when no thread can go on; ``"early"``: at
            once; an int: in a random order with this seed.
        hazards: look for races, for misuse of barriers and proxies (``report.hazards``), and for reads of
            shared memory that nobody wrote.
        profile: count memory requests, sectors and bank conflicts.
        instruction_limit: basic blocks after which a loop is called endless.
        keep_requests: warp requests of each access to keep with their addresses, for pictures.
        fast: compute products of the tensor core with plain FP32 sums instead of the hardware's bits.
        timeline: run CTA 0 by a cycle model and keep who was busy and who waited, in ``report.timeline``.
            True takes the emulator's own rates. The model decides when that CTA's work completes;
            ``schedule`` decides it for the other CTAs. The kernel's ``%clock`` then gives the cycles of
            the warp that reads it.
        variables: values of ``__device__`` and ``__constant__`` variables at the start of the kernel, by
            name. Each value is given like one of ``args``, for a parameter of the variable's size. Other
            variables hold their initial values at each launch.

    Returns:
        a :class:`Report`; tensors among the arguments hold what the kernel wrote.

    Raises:
        ValueError, TypeError: an argument is wrong; nothing has run.
        Fault: a GPU would fault.
        Deadlock: a GPU would hang.
        Unsupported: an instruction that is not emulated, by name.
    """
    if not isinstance(ptx, str):
        raise TypeError(f"ptx: expected the text of a module (str), got {type(ptx).__name__}")
    grid3, block3, cluster3 = _dim("grid", grid), _dim("block", block), _dim("cluster", cluster)
    _check_shape(grid3, block3, shared, schedule)
    _check_cluster(grid3, cluster3)

    # Check the launch against what the kernel was compiled for.
    large = math.prod(grid3) * math.prod(block3) >= LARGE
    translated, cluster3 = _translated_for(ptx, kernel, hazards, profile, grid3, cluster3, large)
    program = translated.program
    _check_shared(program, shared)
    _check_directives(program.function, block3)

    # Memory: the arguments, the parameters that hold them, the module's variables.
    memory = Memory()
    parameters = _parameters(program.function, args, memory)
    memory.add(parameters.ctypes.data, parameters.nbytes, False, "the kernel's parameters")
    symbols = _module_variables(translated.module, program, memory, variables or {})

    # The state that all CTAs share.
    collector = None
    if profile:
        collector = profiling.Profile(program.accesses, len(program.function.code), keep=keep_requests)
    rates = (timeline if isinstance(timeline, Rates) else Rates()) if timeline else None
    state = LaunchState(
        program=program,
        native=translated.native,
        grid=grid3,
        block=block3,
        cluster=cluster3,
        explicit_cluster=cluster3 != (1, 1, 1) or "explicitcluster" in program.function.directives,
        shared=shared,
        parameters=parameters,
        symbols=symbols,
        memory=memory,
        schedule=schedule,
        instruction_limit=instruction_limit,
        hazards=hazards,
        fast=fast,
        profile=collector,
        rates=rates,
    )
    return _run(state, translated)


def _translated_for(
    ptx: str, kernel: str | None, hazards: bool, profile: bool, grid: Dim3, cluster: Dim3, large: bool
) -> tuple[Translated, Dim3]:
    """Translate a kernel for clusters or for single CTAs. Returns the launch's cluster too."""
    # Guess from the arguments and the text; translate again if the kernel's directives say otherwise.
    several = cluster != (1, 1, 1) or ".reqnctapercluster" in ptx
    translated = translated_kernel(ptx, kernel, hazards, profile, several, large)
    cluster = _cluster_of(translated.program.function, cluster)
    _check_cluster(grid, cluster)
    if several != (cluster != (1, 1, 1)):
        translated = translated_kernel(ptx, kernel, hazards, profile, not several, large)
    return translated, cluster


def _run(state: LaunchState, translated: Translated) -> Report:
    """Run a launch and report on it. An error brings the report of what was seen before it."""
    if any(site.accumulators for site in state.program.sites):
        tensor_core.prepare()  # its time is not the kernel's
    started = time.perf_counter()
    try:
        running.run(state)
    except EmulatorError as error:
        error.report = _report(state, translated, time.perf_counter() - started)
        raise
    return _report(state, translated, time.perf_counter() - started)


# --- checks


def _dim(name: str, value: Dim) -> Dim3:
    parts = tuple(value) if isinstance(value, Sequence) else (value,)
    if not 1 <= len(parts) <= 3 or not all(isinstance(v, (int, np.integer)) and v >= 1 for v in parts):
        raise ValueError(f"{name}: expected one to three positive integers (x, y, z), got {value!r}")
    return (*(int(v) for v in parts), 1, 1)[:3]  # type: ignore[return-value]


def _check_shape(grid: Dim3, block: Dim3, shared: int, schedule: str | int) -> None:
    if block[0] * block[1] * block[2] > 1024 or block[2] > 64:
        raise ValueError(f"block: expected at most 1024 threads (z at most 64), got {block}")
    if grid[0] >= 1 << 31 or grid[1] > GRID_LIMIT or grid[2] > GRID_LIMIT:
        raise ValueError(f"grid: expected at most (2**31 - 1, {GRID_LIMIT}, {GRID_LIMIT}), got {grid}")
    if not isinstance(shared, int) or shared < 0:
        raise ValueError(f"shared: expected a number of bytes, got {shared!r}")
    if schedule not in ("late", "early") and (not isinstance(schedule, int) or isinstance(schedule, bool)):
        raise ValueError(f'schedule: expected "late", "early" or an integer seed, got {schedule!r}')


def _check_cluster(grid: Dim3, cluster: Dim3) -> None:
    if math.prod(cluster) > PORTABLE:
        raise ValueError(
            f"cluster: expected at most {PORTABLE} CTAs, which every GPU with clusters can run, got {cluster}"
        )
    for name, n, m in zip("xyz", grid, cluster, strict=True):
        if n % m:
            raise ValueError(
                f"grid: expected a multiple of the cluster {cluster} in each dimension, got {grid}: "
                f"{name} is {n}, no multiple of {m}"
            )


def _cluster_of(function: Function, cluster: Dim3) -> Dim3:
    """Return the cluster of a launch. A kernel with `__cluster_dims__` brings its own, and takes no other."""
    compiled = function.directives.get("reqnctapercluster", ())
    own = (*compiled, 1, 1, 1)[:3]
    if compiled and cluster not in ((1, 1, 1), own):
        raise ValueError(
            f"cluster: {function.name} is compiled for clusters of {own} CTAs (__cluster_dims__), got {cluster}"
        )
    found = own if compiled else cluster
    bound = function.directives.get("maxclusterrank", (PORTABLE,))[0]
    if math.prod(found) > bound:
        raise ValueError(
            f"cluster: {function.name} is compiled for at most {bound} CTAs a cluster, got {found}"
        )
    return found[0], found[1], found[2]


def _check_shared(program: Program, shared: int) -> None:
    if program.dynamic_base - SHARED_FIRST + shared > SHARED_LIMIT:
        raise ValueError(
            f"shared: {program.static_shared} static and {shared} dynamic bytes exceed the {SHARED_LIMIT} that a "
            "CTA of a Hopper GPU can have"
        )


def _check_directives(function: Function, block: Dim3) -> None:
    threads = block[0] * block[1] * block[2]
    for name, exact in (("maxntid", False), ("reqntid", True)):
        if name in function.directives:
            bound = int(np.prod(function.directives[name]))
            if threads > bound or (exact and threads != bound):
                limit = f"{'exactly' if exact else 'at most'} {bound}"
                raise ValueError(f"block: {function.name} is compiled for {limit} threads, got {threads}")


# --- arguments


def _parameters(function: Function, args: Sequence[Any], memory: Memory) -> np.ndarray:
    """Return the parameters as the kernel reads them, uint8; add tensors among the arguments to memory."""
    if len(args) != len(function.parameters):
        raise ValueError(
            f"args: {function.name} takes {len(function.parameters)} parameters, got {len(args)} arguments"
        )

    size = max((p.offset + p.size for p in function.parameters), default=0)
    raw = np.zeros(size + 128, np.uint8)
    skip = -raw.ctypes.data % 64  # tensor maps are 64-byte aligned
    buffer = raw[skip : skip + size]

    for index, (parameter, value) in enumerate(zip(function.parameters, args, strict=True)):
        data = _argument(f"args[{index}]", parameter.size, parameter.kind, value, memory)
        if len(data) != parameter.size:
            got = f"{type(value).__name__} of {len(data)}"
            raise TypeError(f"args[{index}]: the parameter has {parameter.size} bytes, got {got}")
        buffer[parameter.offset : parameter.offset + parameter.size] = np.frombuffer(data, np.uint8)
    return buffer


def _argument(name: str, size: int, kind: str, value: Any, memory: Memory) -> bytes:
    """Return the bytes of an argument for a parameter of this size and PTX type ("" for a structure).

    Messages call it ``name``. A tensor is added to memory.
    """
    # A float parameter takes an integer, but an integer parameter takes no float.
    if kind in ("f32", "f64") and isinstance(value, (bool, int, np.integer)):
        value = float(value)
    if kind[:1] in ("u", "s") and isinstance(value, (float, np.floating)):
        raise TypeError(
            f"{name}: expected an integer for a parameter of type .{kind}, got the float {value!r}"
        )

    # Memory.
    if isinstance(value, torch.Tensor):
        _add_tensor(name, value, memory)
        return int(value.data_ptr()).to_bytes(8, "little")
    if isinstance(value, TensorMap):
        _add_tensor(name, value.tensor, memory)
        return value.encode()
    if isinstance(value, np.ndarray) and kind:
        raise TypeError(
            f"{name}: a NumPy array for a parameter of type .{kind}; pass a CPU tensor, as "
            "torch.from_numpy(array) makes one without a copy"
        )

    # Values.
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tobytes()
    if isinstance(value, bytes):
        return value
    if isinstance(value, (ctypes.Structure, ctypes.Array, ctypes._SimpleCData)):
        return bytes(value)
    if isinstance(value, (bool, int)):
        if not -(1 << (8 * size - 1)) <= value < 1 << (8 * size):
            raise ValueError(f"{name}: {value} does not fit a parameter of {size} bytes")
        return (int(value) & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
    if isinstance(value, float):
        if size not in (4, 8):
            raise TypeError(f"{name}: a float for a parameter of {size} bytes")
        return (np.float32(value) if size == 4 else np.float64(value)).tobytes()
    if value is None and size == 8:
        return bytes(8)
    raise TypeError(
        f"{name}: expected a CPU tensor, a TensorMap, a number, a ctypes object or bytes, got "
        f"{type(value).__name__}"
    )


def _add_tensor(name: str, tensor: torch.Tensor, memory: Memory) -> None:
    """Add a tensor's bytes, from its first element to its last, to memory."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: the emulator takes CPU tensors, got one on {tensor.device}")
    _check_plain(name, tensor)
    if tensor.numel():
        span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        _check_memory(name, tensor, span * tensor.element_size())
        shape = "x".join(str(n) for n in tensor.shape) or "scalar"
        owner = _Owner(f"{name} ({shape} {str(tensor.dtype).removeprefix('torch.')})", tensor)
        memory.add(tensor.data_ptr(), span * tensor.element_size(), True, owner)


def _check_plain(name: str, tensor: torch.Tensor) -> None:
    """Check that a kernel can read the tensor's memory as it is: none that stands for another tensor."""
    kind, came = type(tensor), ""
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        came = f"a {kind.__name__}"
    elif tensor.layout != torch.strided or tensor.is_nested:
        came = "one that is sparse or nested"
    elif torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor):
        came = "one inside a transform (torch.vmap, torch.func)"
    if came:
        raise TypeError(f"{name}: expected a plain CPU tensor, whose memory a kernel can read, got {came}")


def _check_memory(name: str, tensor: torch.Tensor, size: int) -> None:
    """Check that the storage holds the `size` bytes from the first element to the last."""
    storage = tensor.untyped_storage()
    held = storage.nbytes() - tensor.storage_offset() * tensor.element_size() if storage.data_ptr() else 0
    if held < size:
        raise ValueError(f"{name}: expected memory for all elements, {size} bytes, got {max(held, 0)}")


@dataclass(frozen=True)
class _Owner:
    """Names a buffer in messages, and keeps it alive."""

    text: str
    tensor: Any

    def __str__(self) -> str:
        return self.text


def _module_variables(
    module: Module, program: Program, memory: Memory, given: Mapping[str, Any]
) -> np.ndarray:
    """Make memory for ``__device__`` and ``__constant__`` variables, fresh for each launch.

    Returns their addresses in the program's order. Variables among ``given`` hold these values.
    """
    every = {
        v.name: v for v in [*module.variables, *program.function.variables] if v.space in ("global", "const")
    }
    if unknown := given.keys() - every:
        known = ", ".join(sorted(every)) or "none"
        raise ValueError(f"variables: the module has {known}, got {', '.join(sorted(unknown))}")

    # The variables that the program names, and those that their initial values point to.
    wanted, queue = {}, list(program.symbols)
    while queue:
        name = queue.pop()
        if name not in wanted:
            v = every.get(name)
            if v is None:
                raise EmulatorError(f"the module refers to {name}, which it does not define")
            raw = np.zeros(v.size + 256, np.uint8)
            skip = -raw.ctypes.data % max(v.align, 16)
            wanted[name] = raw[skip : skip + max(v.size, 1)]
            queue += [symbol for _, symbol, _ in v.relocations]

    # Their values.
    for name, data in wanted.items():
        v = every[name]
        if v.init is not None:
            data[: len(v.init)] = np.frombuffer(v.init, np.uint8)
        if name in given:
            value = _argument(f"variables[{name!r}]", v.size, "", given[name], memory)
            if len(value) != v.size:
                got = f"{type(given[name]).__name__} of {len(value)}"
                raise TypeError(f"variables[{name!r}]: the variable has {v.size} bytes, got {got}")
            data[: len(value)] = np.frombuffer(value, np.uint8)
        for offset, symbol, addend in v.relocations:
            data[offset : offset + 8].view(np.int64)[0] = wanted[symbol].ctypes.data + addend
        memory.add(data.ctypes.data, data.nbytes, v.space == "global", _Owner(f"variable {name}", data))
    return np.array([wanted[name].ctypes.data for name in program.symbols] or [0], np.int64)


# --- report


def _report(state: LaunchState, translated: Translated, seconds: float) -> Report:
    """Report what a launch did and found, as far as it came."""
    if state.hazards:
        _add_register_misuse(state)

    # Counters. Every name is present, with 0 if nothing was counted.
    code = state.program.function.code
    total, by_class = profiling.executed(code, state.program.blocks, state.counts.tolist())
    counters = Counters(dict.fromkeys(Counters.NAMES, 0) | state.traffic)
    counters.update(instructions=total, instructions_by_class=by_class)

    # The profile adds those of memory.
    lines: Sequence[LineCount] = ()
    requests: Sequence[Request] = ()
    if state.profile is not None:
        counters, lines = state.profile.finish(counters, code)
        requests = state.profile.requests(code)

    return Report(
        kernel=state.program.function.name,
        grid=state.grid,
        block=state.block,
        cluster=state.cluster,
        schedule=state.schedule,
        hazards=state.hazard_list,
        looked_for_hazards=state.hazards,
        counters=counters,
        lines=lines,
        requests=requests,
        events=state.events,
        timeline=state.timeline,
        seconds=seconds,
        translate_seconds=translated.seconds,
        origin=translated.origin,
    )


def _add_register_misuse(state: LaunchState) -> None:
    """Add the misuse of tensor-core registers that the translator found, where the kernel executed those
    instructions.
    """
    executed = {
        first + k
        for (first, length), count in zip(state.program.blocks, state.counts.tolist(), strict=False)
        if count
        for k in range(length)
    }

    # One hazard for each kind and source line; more of the same are counted.
    kept: dict[tuple[str, str], Hazard] = {}
    for misuse in state.program.register_misuse:
        if misuse.index not in executed or (misuse.other >= 0 and misuse.other not in executed):
            continue
        location, line = state.source_of(misuse.index)
        here = location_in_words(location, line)
        if (misuse.kind, here) in kept:
            kept[misuse.kind, here].count += 1
            continue
        other = location_in_words(*state.source_of(misuse.other)) if misuse.other >= 0 else ""
        scene = findings.Scene(location, line, address=0, spot="", here=here, other=other)
        if misuse.kind == "wgmma-fence":
            kept[misuse.kind, here] = findings.registers_without_fence(scene)
        else:
            kept[misuse.kind, here] = findings.accumulator_in_flight(scene, misuse.writes)
    state.hazard_list += kept.values()
