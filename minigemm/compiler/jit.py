"""From a CUDA C++ file and a Config to PTX and a cubin, through NVRTC.

The compiled source consists of the config's constants and declarations, a `#line` that gives the file its own
line numbers back, and the file. The result is kept under a key, in memory, then on disk (`minigemm.store`).
All that the compiler reads is part of the key: the source, headers, flags, its version. Headers go to the
compiler as text, so that the hashed text is the compiled one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import store
from ..types import CompileError, Config
from . import diagnostics

__all__ = ["FLAGS", "HEADERS", "PRELUDE", "Kernel", "build", "compiler_version", "measure"]

HEADERS = Path(__file__).parents[1] / "kernels"
FLAGS = (
    "--gpu-architecture=sm_90a",
    "--std=c++17",
    "-fmad=false",  # rounding is part of the source: a contraction is written as fmaf
    "-lineinfo",
    "-default-device",
    "--ptxas-options=-v",  # registers and spills, which `minigemm.inspect` reads from the log
)

_ENTRY_FORMAT = 2  # of the cache on disk
PRELUDE = "prelude"  # the file name of what stands above the stage's own first line
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)")
_SETTLED_NS = 2_000_000_000  # a file younger than this may change again without a change of its time stamps


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel, for both runtimes: the PTX for the emulator, the cubin (sm_90a) for a GPU.

    `name` is the stage's name and `symbol` the `extern "C"` name. `source` is the compiled text, `log` the
    log of NVRTC and ptxas. `origin` says where this build found the kernel ("compiled", "disk" or "memory").
    `compile_s` is the seconds that it took to bring it into this process, from the compiler or the disk.
    """

    name: str
    symbol: str
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    source: str = field(repr=False)
    log: str = field(repr=False)
    key: str
    compile_s: float = field(compare=False)
    origin: str = field(compare=False)


Stamp = tuple[int, ...] | None


@dataclass(frozen=True)
class _Unit:
    """The texts that one compilation reads, and the stamps of their files."""

    path: Path
    text: str
    rendered: str
    headers: dict[str, str]  # the name in the #include -> text
    stamps: dict[str, Stamp]  # None: looked for and not found, so its arrival would be a change
    settled: bool

    @property
    def sources(self) -> dict[str, str]:
        return {**self.headers, self.path.name: self.text}

    def unchanged(self) -> bool:
        return self.settled and all(_stamp(path) == stamp for path, stamp in self.stamps.items())


_built: dict[tuple[object, ...], tuple[_Unit, Kernel]] = {}  # request -> what was read for it, the kernel
_lock = threading.Lock()  # NVRTC compiles one program at a time


def build(source: Path, config: Config, *, name: str, symbol: str) -> Kernel:
    """Return the kernel in the CUDA C++ file `source` under `config`: from memory, from disk, or compiled.

    `name` is the stage's name, `symbol` the `extern "C"` name to launch. For most stages they are equal:
    `s01_naive.cu` holds `extern "C" __global__ void s01_naive(...)`, and so does a reader's own version,
    whatever the name of its file. `#include "x.cuh"` finds x.cuh beside the file that includes it, beside
    `source`, or among minigemm's kernels.

    Raises CompileError (a ValueError) when the source does not compile, holds no such kernel, or there is no
    NVRTC, and ValueError when there is no such file. The compiler's warnings about a reader's own file become
    Python warnings.
    """
    request = (os.fspath(source), config, name, symbol)
    held = _built.get(request)
    if held is not None and held[0].unchanged():
        return held[1]
    start = time.perf_counter()
    unit = _read(Path(source), config)
    key = _key(unit, name, symbol)
    with _lock:
        held = _built.get(request)
        if held is not None and held[1].key == key:
            _built[request] = unit, held[1]
            return held[1]
        built = _build(unit, key, name, symbol, start)
        _built[request] = unit, replace(built, origin="memory")
    return built


def _build(unit: _Unit, key: str, name: str, symbol: str, start: float) -> Kernel:
    entry, found = store.fetch(f"{key}.kernel", lambda: _compile(unit, key, symbol))
    kept = json.loads(entry)
    cubin = base64.b64decode(kept["cubin"])
    seconds = time.perf_counter() - start
    if unit.path.parent.absolute() != HEADERS.absolute():
        _warn(unit, kept["log"], kept["ptx"])
    origin = "disk" if found else "compiled"
    return Kernel(name, symbol, kept["ptx"], cubin, unit.rendered, kept["log"], key, seconds, origin)


def _read(source: Path, config: Config) -> _Unit:
    if not isinstance(config, Config):
        raise TypeError(f"config: expected a Config, got {type(config).__name__}")
    stamps: dict[str, Stamp] = {os.fspath(source): _stamp(source)}
    if not source.is_file():
        raise ValueError(f"source: expected a CUDA C++ file, got {str(source)!r}, which is no file")
    text = _text(source)

    # The headers, and the headers that they include.
    headers: dict[str, str] = {}
    pending = [(text, source.parent)]
    while pending:
        including, beside = pending.pop()
        for include in _INCLUDE.findall(including):
            if include in headers:
                continue
            for path in dict.fromkeys((beside / include, source.parent / include, HEADERS / include)):
                stamp = stamps[os.fspath(path)] = _stamp(path)
                if stamp is not None and path.is_file():
                    headers[include] = _text(path)
                    pending.append((headers[include], path.parent))
                    break

    constants = "".join(f"constexpr int {name} = {value};\n" for name, value in config.constants().items())
    line = f"#line 1 {json.dumps(source.name, ensure_ascii=False)}\n"
    rendered = constants + config.declarations() + line + text
    newest = max(max(stamp[:2]) for stamp in stamps.values() if stamp is not None)
    settled = time.time_ns() - newest > _SETTLED_NS
    return _Unit(source, text, rendered, headers, stamps, settled)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"source: expected UTF-8 text in {str(path)!r}: {error}") from error


def _stamp(path: str | Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def _key(unit: _Unit, name: str, symbol: str) -> str:
    parts = [
        _ENTRY_FORMAT,
        compiler_version(),
        FLAGS,
        name,
        symbol,
        unit.rendered,
        sorted(unit.headers.items()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def compiler_version() -> str:
    """Return NVRTC's version, from its wheel where there is one.

    To load NVRTC for its version would take longer than a whole warm start. Where two generations of CUDA are
    installed, cuda-bindings loads one of them: both are named, and so is cuda-bindings.
    """
    found = {}
    for wheel in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "cuda-bindings"):
        with suppress(metadata.PackageNotFoundError):
            found[wheel] = metadata.version(wheel)
    if found.keys() <= {"cuda-bindings"}:
        _, (major, minor) = _nvrtc()
        found["NVRTC"] = f"{major}.{minor}"
    return ", ".join(f"{name} {version}" for name, version in found.items())


@functools.cache
def _nvrtc() -> tuple[ModuleType, tuple[int, int]]:
    """Return NVRTC's bindings and version. Needs no driver.

    Raises CompileError that says what to install when there is no NVRTC.
    """
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:  # no bindings; no library
        raise CompileError(
            "minigemm compiles kernels with NVRTC, which is not here. On Linux and Windows `pip install cuda-bindings "
            "nvidia-cuda-nvrtc` brings it, without a GPU or a CUDA toolkit. On macOS it does not exist: "
            "minigemm.quantize and minigemm.emulator (with PTX made elsewhere) work there, the stages and `source` "
            f"need a Linux machine or container. ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        ) from error
    if (major, minor) < (12, 4):
        raise CompileError(
            f"minigemm needs NVRTC 12.4 or newer, not {major}.{minor}: pip install --upgrade nvidia-cuda-nvrtc"
        )
    return nvrtc, (major, minor)


def measure(source: Path, config: Config, *, name: str, symbol: str) -> tuple[float, float]:
    """Return the seconds of a cold compilation, and of a start from the disk cache, of such a build."""
    started = time.perf_counter()
    unit = _read(Path(source), config)
    _compile(unit, _key(unit, name, symbol), symbol)
    cold = time.perf_counter() - started
    build(source, config, name=name, symbol=symbol)
    _built.pop((os.fspath(source), config, name, symbol), None)
    started = time.perf_counter()
    build(source, config, name=name, symbol=symbol)
    return cold, time.perf_counter() - started


def _compile(unit: _Unit, key: str, symbol: str) -> bytes:
    """Return a cache entry: PTX, cubin and log in one JSON object."""
    compiled, ptx, cubin, log = _run_nvrtc(unit)
    ptx = _plain_names(ptx, [*unit.sources, PRELUDE])
    if not compiled:
        raise _error(unit, key, log, ptx)
    entries = _ENTRY.findall(ptx)
    if symbol not in entries:
        held = f"the kernels in it are {', '.join(entries)}" if entries else "there is no kernel in it"
        raise CompileError(
            f'{unit.path}: expected extern "C" __global__ void {symbol}(...); {held}', log, unit.path
        )
    return json.dumps({"ptx": ptx, "cubin": base64.b64encode(cubin).decode(), "log": log}).encode()


def _run_nvrtc(unit: _Unit) -> tuple[bool, str, bytes, str]:
    nvrtc, _ = _nvrtc()

    # Every answer of NVRTC is a tuple that begins with a status.
    def checked(answer: tuple) -> Any:
        if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"NVRTC failed: {answer[0].name}")
        return answer[1] if len(answer) > 1 else None

    def fetched(what: str) -> bytes:
        buffer = bytearray(checked(getattr(nvrtc, f"nvrtcGet{what}Size")(program)))
        checked(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
        return bytes(buffer)

    # The headers are passed along with the source, by name.
    names = [name.encode() for name in unit.headers]
    texts = [text.encode() for text in unit.headers.values()]
    options = [flag.encode() for flag in FLAGS]
    program = checked(
        nvrtc.nvrtcCreateProgram(unit.rendered.encode(), PRELUDE.encode(), len(names), texts, names)
    )

    # A source that does not compile is an answer for the caller; any other failure raises.
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = fetched("ProgramLog").replace(b"\0", b"\n").decode(errors="replace").strip()
        compiled = result == nvrtc.nvrtcResult.NVRTC_SUCCESS
        if not compiled and result != nvrtc.nvrtcResult.NVRTC_ERROR_COMPILATION:
            raise CompileError(f"NVRTC failed: {result.name}: {log}", log)
        if compiled:
            return True, fetched("PTX").rstrip(b"\0").decode(), fetched("CUBIN"), log
        with suppress(CompileError):  # the PTX is there even if ptxas refused it
            return False, fetched("PTX").rstrip(b"\0").decode(), b"", log
        return False, "", b"", log
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _plain_names(ptx: str, names: Iterable[str]) -> str:
    """Return the PTX with files named as the source names them: NVRTC puts the working directory in front."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf'(?m)^(\s*\.file\s+\d+ )".*?[/\\]({known})"', r'\1"\2"', ptx)


def _error(unit: _Unit, key: str, log: str, ptx: str) -> CompileError:
    found = [
        each for each in diagnostics.parse(log, ptx, unit.path.name) if each.severity in ("error", "note")
    ]
    count = sum(each.severity == "error" for each in found)
    head = f"{unit.path} does not compile ({count} error{'s' * (count != 1)})"
    reason = log or "the compiler gave no reason; it may have run out of memory"
    body = diagnostics.render(found, unit.sources) if found else reason
    saved = store.save(f"failed-{key[:12]}-{unit.path.name}", unit.rendered)
    foot = f"\n\nWith its constants it is saved as {saved}" if saved else ""
    return CompileError(f"{head}\n\n{body}{foot}", log, saved or unit.path)


def _warn(unit: _Unit, log: str, ptx: str) -> None:
    found = [each for each in diagnostics.parse(log, ptx, unit.path.name) if each.file != PRELUDE]
    if any(each.severity == "warning" for each in found):
        told = diagnostics.render(found, unit.sources)
        warnings.warn(f"{unit.path} compiles, and the compiler warns:\n\n{told}", stacklevel=4)
