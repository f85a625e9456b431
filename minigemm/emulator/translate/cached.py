"""Translations of kernels, kept in memory and on disk."""

from __future__ import annotations

import functools
import hashlib
import pickle
import threading
import time
from dataclasses import dataclass, replace
from importlib.resources import files

from ... import store
from ..ptx.inlining import inline_calls
from ..ptx.module import Module
from ..ptx.parse import parse
from . import native
from .lower import translate
from .program import Program

__all__ = ["Translated", "translated_kernel", "translation_seconds"]

KEPT = 128  # translations in memory; the oldest goes first

Request = tuple[str, str | None, bool, bool, bool, bool]
_held: dict[Request, Translated] = {}
_lock = threading.Lock()  # around `_held`


@dataclass(frozen=True)
class Translated:
    """A kernel that is ready to run: its description and its machine code.

    `origin` says where it was found ("compiled", "disk" or "memory"), and `seconds` how long that took.
    """

    module: Module
    program: Program
    native: native.Native
    seconds: float
    origin: str


@functools.cache
def _version() -> str:
    """Hash the translator: a change of it makes every stored translation stale."""
    digest = hashlib.sha256()
    here = files(__package__.rpartition(".")[0])
    for room in (here.joinpath("ptx"), here.joinpath("translate")):
        for file in sorted(room.iterdir(), key=lambda file: file.name):
            if file.is_file():
                digest.update(file.read_bytes())
    # A stored instruction holds a Location of errors.py.
    for name in ("clusters.py", "context.py", "errors.py"):
        digest.update(here.joinpath(name).read_bytes())
    return digest.hexdigest()


def translated_kernel(
    ptx: str, kernel: str | None, hazards: bool, profile: bool, clusters: bool = False, large: bool = True
) -> Translated:
    """Parse, translate and compile one kernel, or take it from memory or disk.

    ``clusters``: for clusters of more than one CTA. ``large``: the launch has so many threads that optimized
    code pays for the time that LLVM takes to optimize it.
    """
    request = ptx, kernel, hazards, profile, clusters, large
    with _lock:
        held = _held.pop(request, None)
        if held is not None:
            _held[request] = held  # now the youngest
            return held

    built = _load(*request)
    with _lock:
        _held[request] = replace(built, seconds=0.0, origin="memory")
        if len(_held) > KEPT:
            del _held[next(iter(_held))]
    return built


def _load(
    ptx: str, kernel: str | None, hazards: bool, profile: bool, clusters: bool, large: bool
) -> Translated:
    """Take a kernel's translation from disk, or make it and keep it there."""
    started = time.perf_counter()
    options = kernel or "", str(hazards), str(profile), str(clusters), str(large)
    key = native.cache_key("\0".join((_version(), ptx, *options)))
    blob, found = store.fetch(
        f"{key}.native", lambda: _translate(ptx, kernel, hazards, profile, clusters, large)
    )
    module, program, code = pickle.loads(blob)
    loaded, seconds = native.load(code), time.perf_counter() - started
    return Translated(module, program, loaded, seconds, "disk" if found else "compiled")


def _translate(
    ptx: str, kernel: str | None, hazards: bool, profile: bool, clusters: bool = False, large: bool = True
) -> bytes:
    """Translate a kernel and pickle what is stored: the module's variables, the program, the object code."""
    module = parse(ptx)
    function = inline_calls(module, _entry(module, kernel))
    program = translate(module, function, hazards=hazards, profile=profile, clusters=clusters)
    # A kernel that uses the tensor core spends its time in the tensor core's arithmetic, which is compiled
    # already. Optimizing the code around it takes 1 to 5 s and saves about 5 % of a launch.
    optimize = large and not any(site.accumulators for site in program.sites)
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
    """Return the name of the entry to translate. Raises ValueError for a name that the module lacks."""
    entries = [name for name, f in module.functions.items() if f.entry]
    if kernel is None:
        if len(entries) != 1:
            names = ", ".join(entries)
            raise ValueError(f"kernel: the module has {len(entries)} entries ({names}); name one")
        return entries[0]
    if kernel not in entries:
        raise ValueError(f"kernel: the module has no entry {kernel!r}; it has {', '.join(entries) or 'none'}")
    return kernel
