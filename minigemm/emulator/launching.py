"""One launch: arguments in, report out."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from .. import store
from .clusters import PORTABLE
from .context import SHARED_FIRST
from .errors import EmulatorError
from .machine import running, tensor_core
from .machine.kernel import Kernel, Memory
from .machine.tma import TensorMap
from .ptx.inlining import inline_calls
from .ptx.parse import parse
from .ptx.program import Function, Module
from .translate import native
from .translate.lower import Program, translate
from .watch import profile as profiling
from .watch.report import Counters, Hazard, LineCount, Report, Request
from .watch.timeline import Rates

Dim = int | Sequence[int]
SHARED_LIMIT = 227 * 1024  # bytes of shared memory of a CTA


@dataclass(frozen=True)
class Translated:
    """A kernel that is ready to run: its description and its machine code."""

    module: Module
    program: Program
    native: native.Native
    seconds: float
    origin: str  # "compiled", "disk" or "memory"


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
            True takes the emulator's own rates. The model is that CTA's schedule, and ``schedule`` that of
            the others. The kernel's ``%clock`` then gives the cycles of the warp that reads it.
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
    # The shape of the launch.
    if not isinstance(ptx, str):
        raise TypeError(f"ptx: expected the text of a module (str), got {type(ptx).__name__}")
    grid3, block3, cluster3 = _dim("grid", grid), _dim("block", block), _dim("cluster", cluster)
    _check_shape(grid3, block3, shared, schedule)
    _check_cluster(grid3, cluster3)

    # There are two translations, for clusters and for single CTAs. Mostly the text tells which it will be.
    several = cluster3 != (1, 1, 1) or ".reqnctapercluster" in ptx
    translated = translated_kernel(ptx, kernel, hazards, profile, several)
    cluster3 = _cluster_of(translated.program.function, cluster3)
    _check_cluster(grid3, cluster3)
    if several != (cluster3 != (1, 1, 1)):
        translated = translated_kernel(ptx, kernel, hazards, profile, not several)

    # What the kernel was compiled for.
    program = translated.program
    if program.dynamic_base - SHARED_FIRST + shared > SHARED_LIMIT:
        raise ValueError(
            f"shared: {program.static_shared} static and {shared} dynamic bytes exceed the {SHARED_LIMIT} that a "
            "CTA of a Hopper GPU can have"
        )
    _check_directives(program.function, block3)

    # Memory: the arguments, the parameters that hold them, the module's variables.
    memory = Memory()
    parameters = _parameters(program.function, args, memory)
    memory.add(parameters.ctypes.data, parameters.nbytes, False, "the kernel's parameters")
    symbols = _module_variables(translated.module, program, memory, variables or {})

    # Run it. What was seen before an error is in the error's report.
    collector = None
    if profile:
        collector = profiling.Profile(program.accesses, len(program.function.code), keep=keep_requests)
    rates = (timeline if isinstance(timeline, Rates) else Rates()) if timeline else None
    explicit = cluster3 != (1, 1, 1) or "explicitcluster" in program.function.directives
    run = Kernel(
        program=program,
        native=translated.native,
        grid=grid3,
        block=block3,
        cluster=cluster3,
        explicit_cluster=explicit,
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
    if any(site.accumulators for site in program.sites):
        tensor_core.prepare()  # its time is not the kernel's
    started = time.perf_counter()
    try:
        running.run(run)
    except EmulatorError as error:
        error.report = _report(run, translated, time.perf_counter() - started)
        raise
    return _report(run, translated, time.perf_counter() - started)


def _dim(name: str, value: Dim) -> tuple[int, int, int]:
    parts = tuple(value) if isinstance(value, Sequence) else (value,)
    if not 1 <= len(parts) <= 3 or not all(isinstance(v, (int, np.integer)) and v >= 1 for v in parts):
        raise ValueError(f"{name}: expected one to three positive integers (x, y, z), got {value!r}")
    return (*(int(v) for v in parts), 1, 1)[:3]  # type: ignore[return-value]


def _check_shape(grid: tuple, block: tuple, shared: int, schedule: str | int) -> None:
    if block[0] * block[1] * block[2] > 1024 or block[2] > 64:
        raise ValueError(f"block: expected at most 1024 threads (z at most 64), got {block}")
    if grid[0] >= 1 << 31 or grid[1] > 65535 or grid[2] > 65535:
        raise ValueError(f"grid: expected at most (2**31 - 1, 65535, 65535), got {grid}")
    if not isinstance(shared, int) or shared < 0:
        raise ValueError(f"shared: expected a number of bytes, got {shared!r}")
    if schedule not in ("late", "early") and (not isinstance(schedule, int) or isinstance(schedule, bool)):
        raise ValueError(f'schedule: expected "late", "early" or an integer seed, got {schedule!r}')


def _check_cluster(grid: tuple[int, int, int], cluster: tuple[int, int, int]) -> None:
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


def _cluster_of(function: Function, cluster: tuple[int, int, int]) -> tuple[int, int, int]:
    """The cluster of a launch. A kernel with `__cluster_dims__` brings its own, and takes no other."""
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


def _check_directives(function: Function, block: tuple[int, int, int]) -> None:
    threads = block[0] * block[1] * block[2]
    for name, exact in (("maxntid", False), ("reqntid", True)):
        if name in function.directives:
            bound = int(np.prod(function.directives[name]))
            if threads > bound or (exact and threads != bound):
                limit = f"{'exactly' if exact else 'at most'} {bound}"
                raise ValueError(f"block: {function.name} is compiled for {limit} threads, got {threads}")


# --- translation


@functools.cache
def _version() -> str:
    """A hash of the translator: a change of it makes every stored translation stale."""
    digest = hashlib.sha256()
    here = files(__package__)
    for room in (here.joinpath("ptx"), here.joinpath("translate")):
        for file in sorted(room.iterdir(), key=lambda file: file.name):
            if file.is_file():
                digest.update(file.read_bytes())
    for name in ("clusters.py", "context.py"):
        digest.update(here.joinpath(name).read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=128)
def translated_kernel(
    ptx: str, kernel: str | None, hazards: bool, profile: bool, clusters: bool = False
) -> Translated:
    """Parse, translate and compile one kernel, or take it from memory or disk.

    ``clusters``: for clusters of more than one CTA.
    """
    started = time.perf_counter()
    options = kernel or "", str(hazards), str(profile), str(clusters)
    key = native.cache_key("\0".join((_version(), ptx, *options)))
    blob, found = store.fetch(f"{key}.native", lambda: _translate(ptx, kernel, hazards, profile, clusters))
    module, program, code = pickle.loads(blob)
    loaded, seconds = native.load(code), time.perf_counter() - started
    return Translated(module, program, loaded, seconds, "disk" if found else "compiled")


def _translate(ptx: str, kernel: str | None, hazards: bool, profile: bool, clusters: bool = False) -> bytes:
    """Translate a kernel. Returns what is stored: the module's variables, the program, the object code."""
    module = parse(ptx)
    function = inline_calls(module, _entry(module, kernel))
    program = translate(module, function, hazards=hazards, profile=profile, clusters=clusters)
    # A kernel that uses the tensor core spends its time in the tensor core's arithmetic, which is compiled
    # already. Optimizing the code around it takes 1 to 5 s and saves about 5 % of a launch.
    optimize = not any(site.accumulators for site in program.sites)
    code = native.compile_ir(program.ir, optimize)
    program.ir = ""
    variables = Module(module.version, module.target, {}, module.variables, module.files)
    return pickle.dumps((variables, program, code), protocol=pickle.HIGHEST_PROTOCOL)


def translation_seconds(
    ptx: str, kernel: str, hazards: bool, profile: bool, repeats: int
) -> tuple[float, list[float]]:
    """Measure one translation without any cache (seconds), and several times the loading of its result."""
    started = time.perf_counter()
    blob = _translate(ptx, kernel, hazards, profile)
    cold, stored = time.perf_counter() - started, []
    for _ in range(repeats):
        started = time.perf_counter()
        native.load(pickle.loads(blob)[2])
        stored.append(time.perf_counter() - started)
    return cold, stored


def _entry(module: Module, kernel: str | None) -> str:
    entries = [name for name, f in module.functions.items() if f.entry]
    if kernel is None:
        if len(entries) != 1:
            names = ", ".join(entries)
            raise ValueError(f"kernel: the module has {len(entries)} entries ({names}); name one")
        return entries[0]
    if kernel not in entries:
        raise ValueError(f"kernel: the module has no entry {kernel!r}; it has {', '.join(entries) or 'none'}")
    return kernel


# --- arguments


def _parameters(function: Function, args: Sequence[Any], memory: Memory) -> np.ndarray:
    """The parameters as the kernel reads them, uint8. Tensors among the arguments are added to memory."""
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
    """The bytes of an argument for a parameter of this size and PTX type ("" for a structure).

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
    if tensor.numel():
        span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        shape = "x".join(str(n) for n in tensor.shape) or "scalar"
        owner = _Owner(f"{name} ({shape} {str(tensor.dtype).removeprefix('torch.')})", tensor)
        memory.add(tensor.data_ptr(), span * tensor.element_size(), True, owner)


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


def _report_registers(run: Kernel) -> None:
    """Add hazards of the tensor core's registers, which the translator has found, if the kernel came by
    there."""
    code = run.program.function.code
    executed = {
        first + k
        for (first, length), count in zip(run.program.blocks, run.counts.tolist(), strict=False)
        if count
        for k in range(length)
    }

    def at(index: int) -> str:
        return str(code[index].location or f"PTX line {code[index].line}")

    kept: dict[tuple[str, str], Hazard] = {}
    for misuse in run.program.register_misuse:
        if misuse.index not in executed or (misuse.other >= 0 and misuse.other not in executed):
            continue
        key = misuse.kind, at(misuse.index)
        if key in kept:
            kept[key].count += 1
            continue
        if misuse.kind == "wgmma-fence":
            before = "it is the first of the kernel"
            if misuse.other >= 0:
                before = f"an ordinary instruction touched its registers at {at(misuse.other)}"
            message = f"missing wgmma.fence: {before}, and no wgmma.fence stands between that and this WGMMA"
            parties = "ordinary instructions", "WGMMA"
            fix = "wgmma.fence.sync.aligned before the first WGMMA of each batch"
        else:
            message = (
                f"this {'writes' if misuse.writes else 'reads'} an accumulator register of the WGMMA at "
                f"{at(misuse.other)} while that WGMMA may still be in flight: no wgmma.wait_group has retired it on "
                "the way here"
            )
            parties = "ordinary instruction", "WGMMA"
            fix = "wgmma.commit_group and wgmma.wait_group before the accumulators are used"
        location, line = code[misuse.index].location, code[misuse.index].line
        kept[key] = Hazard(misuse.kind, message, location, line, 0, parties, fix)
    run.hazard_list += kept.values()


def _report(run: Kernel, translated: Translated, seconds: float) -> Report:
    """What a launch did and found, as far as it came."""
    if run.hazards:
        _report_registers(run)

    # Instructions, by class.
    code = run.program.function.code
    classes: dict[str, int] = {}
    total = 0
    for (first, length), count in zip(run.program.blocks, run.counts.tolist(), strict=False):
        for ins in code[first : first + length]:
            kind = instruction_class(ins.opcode, ins.modifiers)
            classes[kind] = classes.get(kind, 0) + count
        total += count * length

    # Counters: whoever reads them as JSON finds each name.
    counters = Counters(dict.fromkeys(Counters.NAMES, 0) | run.traffic)
    by_class = dict(sorted(classes.items(), key=lambda item: -item[1]))
    counters.update(instructions=total, instructions_by_class=by_class)

    # Memory.
    lines: Sequence[LineCount] = ()
    requests: Sequence[Request] = ()
    if run.profile is not None:
        counters, lines = run.profile.finish(counters, code)
        requests = run.profile.requests(code)

    return Report(
        kernel=run.program.function.name,
        grid=run.grid,
        block=run.block,
        cluster=run.cluster,
        schedule=run.schedule,
        hazards=run.hazard_list,
        looked_for_hazards=run.hazards,
        counters=counters,
        lines=lines,
        requests=requests,
        events=run.events,
        timeline=run.timeline,
        seconds=seconds,
        translate_seconds=translated.seconds,
        origin=translated.origin,
    )


def instruction_class(opcode: str, modifiers: tuple[str, ...]) -> str:
    """The class under which an instruction is counted."""
    if opcode in ("ld", "ldu", "st", "atom", "red"):
        spaces = (m.split("::")[0] for m in modifiers)
        known = ("global", "shared", "local", "const", "param")
        space = next((space for space in spaces if space in known), "generic")
        verb = "atomic" if opcode in ("atom", "red") else "load" if opcode.startswith("ld") else "store"
        return f"{verb} {space}"
    if opcode in ("bra", "brx", "ret", "exit", "call"):
        return "control"
    if opcode in ("bar", "barrier", "mbarrier", "fence", "membar"):
        return "synchronisation"
    if opcode in ("shfl", "vote", "match", "redux", "elect", "activemask"):
        return "warp"
    if opcode == "cp":
        return "asynchronous copy"
    if opcode == "wgmma":
        return "tensor core"
    if opcode in ("cvt", "cvta"):
        return "conversion"
    if any(m in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2") for m in modifiers):
        return "fma" if opcode in ("fma", "mad") else "floating point"
    return "move" if opcode in ("mov", "selp") else "predicate" if opcode in ("setp", "set") else "integer"
