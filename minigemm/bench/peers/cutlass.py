"""NVIDIA's CUTLASS, as one of its examples puts it together."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ... import store
from ..cases import Case
from ..programs import find
from .peer import Missing, Peer, installed

__all__ = ["Cutlass"]

SOURCE = Path(__file__).with_name("cutlass_gemm.cu")
NVCC_PATIENCE = 900  # seconds
OPTIONS = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-shared",
    "-Xcompiler",
    "-fPIC",
    "-gencode",
    "arch=compute_90a,code=sm_90a",
    "--expt-relaxed-constexpr",
)


class Cutlass(Peer):
    """CUTLASS's example 67 with the tile and the cluster that it has.

    nvcc compiles it the first time, which takes about a minute; minigemm's store keeps it.
    """

    name = "cutlass"
    what = "CUTLASS as in its example 67, 128x128x128 tiles"
    multiples = {"m": 4, "n": 8, "k": 16}  # noqa: RUF012

    def __init__(self) -> None:
        self._call: Any = None

    def version(self) -> str:
        nvcc, headers = _nvcc(), _headers()
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        compiler = said.strip().rpartition("\n")[2]
        command = [nvcc, *OPTIONS, *(f"-I{folder}" for folder in headers)]
        name = f"bench-cutlass-{_key(compiler, command)}.so"
        library, _ = store.fetch(name, lambda: _compiled(command))
        self._call = _loaded(library).block_scaled_gemm
        self._call.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int] * 3 + [ctypes.c_void_p]
        return f"{installed('nvidia-cutlass')}, {compiler}"

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        d = case.empty()
        m, n, k, *_ = case.workload.product

        def call() -> torch.Tensor:
            stream = torch.cuda.current_stream(d.device).cuda_stream
            pointers = (x.data_ptr() for x in (case.a, case.sfa, case.b, case.sfb, d))
            status = self._call(*pointers, m, n, k, stream)
            if status:
                raise RuntimeError(f"cutlass::Status {status}")
            return d

        return call


def _nvcc() -> str:
    found = find("nvcc")
    if found is None:
        raise Missing("needs nvcc, the compiler of the CUDA toolkit")
    return found


def _headers() -> list[Path]:
    """Return the include folders of the checkout that CUTLASS_PATH names, or of the wheel."""
    places = [Path(os.environ["CUTLASS_PATH"])] if "CUTLASS_PATH" in os.environ else []
    wheel = importlib.util.find_spec("cutlass_library")
    if wheel:
        places += [Path(folder) / "source" for folder in wheel.submodule_search_locations or ()]
    for place in places:
        if (place / "include" / "cutlass" / "cutlass.h").exists():
            return [place / "include", place / "tools" / "util" / "include"]
    raise Missing("needs CUTLASS's headers: pip install nvidia-cutlass, or set CUTLASS_PATH to a checkout")


def _key(compiler: str, command: list[str]) -> str:
    """Return a hash of everything that the compiled library depends on."""
    parts = [compiler, *command, installed("nvidia-cutlass"), SOURCE.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compiled(command: list[str]) -> bytes:
    """Return the shared library that this nvcc command makes of SOURCE."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "cutlass_gemm.so"
        command = [*command, "-o", str(made), str(SOURCE)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=NVCC_PATIENCE)
        if answer.returncode or not made.exists():
            errors = [line for line in (answer.stderr + answer.stdout).splitlines() if "error" in line]
            raise Missing(
                f"nvcc could not compile it: {(errors or ['it said nothing of an error'])[0][:300]}"
            )
        return made.read_bytes()


def _loaded(library: bytes) -> ctypes.CDLL:
    """Return the loaded library. Once it is loaded its file is not needed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cutlass_gemm.so"
        file.write_bytes(library)
        return ctypes.CDLL(str(file))
