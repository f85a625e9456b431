"""The trace build of a stage: its own file, compiled against a ptx.cuh that has `tracing.cuh` behind it."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from ..compiler import jit
from ..kernels.stage import Stage
from ..types import Config
from .trace_records import Record

__all__ = ["build", "files"]

HEADER = Path(__file__).with_name("tracing.cuh")
#: Comments and literals, in which no brace counts.
_HIDDEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.DOTALL)


def build(stage: Stage, config: Config, source: Path | None = None) -> jit.Kernel:
    """Compile the trace build of a stage, or of a reader's own version: the same lines, the same symbol.

    Raises:
        ValueError: the source does not include `ptx.cuh`, or holds no such kernel.
    """
    path = stage.source if source is None else Path(source)
    with TemporaryDirectory(prefix="minigemm-trace-") as folder:
        for name, text in _sources(path, stage.symbol).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        return jit.build(Path(folder, path.name), config, name=stage.name, symbol=stage.symbol)


def files(path: Path) -> list[str]:
    """Return the files that a record names by their number: the stage, then the headers except ptx.cuh."""
    return [path.name, *sorted(_headers(path).keys() - {"ptx.cuh"})]


def _sources(path: Path, symbol: str) -> dict[str, str]:
    """Return a trace build's texts by file name: the stage, its headers, and ptx.cuh with the trace."""
    text = path.read_text(encoding="utf-8-sig")
    if not re.search(r'^\s*#\s*include\s*"ptx\.cuh"', text, re.MULTILINE):
        wanted = "a kernel that includes ptx.cuh, whose functions a trace follows"
        raise ValueError(f"source: expected {wanted}; {path.name} does not")
    headers = {name: file.read_text(encoding="utf-8-sig") for name, file in _headers(path).items()}
    numbered = {name: _numbered(headers[name], number) for number, name in enumerate(files(path)) if number}
    trace = f"{headers['ptx.cuh']}\n{_kinds()}\n{HEADER.read_text(encoding='utf-8')}"
    return {**numbered, "ptx.cuh": trace, path.name: _guarded(text, symbol, path)}


def _kinds() -> str:
    """Return the kinds of records as constants of CUDA C++: STORE_COMMIT is kTraceStoreCommit."""
    names = {kind: kind.name.title().replace("_", "") for kind in Record}
    return "\n".join(f"constexpr u32 kTrace{name} = {kind.value};" for kind, name in names.items())


def _headers(path: Path) -> dict[str, Path]:
    """Return the headers by name: the package's own, replaced by those beside the stage."""
    folders = (jit.HEADERS, path.parent)
    return {header.name: header for folder in folders for header in sorted(folder.glob("*.cuh"))}


def _numbered(text: str, number: int) -> str:
    """Return a header whose records name this file."""
    before = f"#undef TRACE_FILE\n#define TRACE_FILE {number}\n#line 1\n"
    return f"{before}{text}\n#undef TRACE_FILE\n#define TRACE_FILE 0\n"


def _guarded(text: str, symbol: str, path: Path) -> str:
    """Return the stage with a `TraceWarp` first in the kernel's body, on the line of its brace.

    It sees each warp begin, and leave by any return.
    """
    # Find the kernel's name, then the end of its parameter list, then the brace.
    plain = _HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    head = re.search(rf"__global__[^;{{}}]*?\b{re.escape(symbol)}\s*\(", plain)
    at, depth = (head.end(), 1) if head else (0, 0)
    while head and depth and at < len(plain):
        depth += {"(": 1, ")": -1}.get(plain[at], 0)
        at += 1
    brace = plain.find("{", at)
    if not head or brace < 0:
        raise ValueError(f'source: expected extern "C" __global__ void {symbol}(...) {{...}} in {path.name}')
    return f"{text[: brace + 1]} TraceWarp trace_warp;{text[brace + 1 :]}"
