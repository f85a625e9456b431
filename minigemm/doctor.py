"""What this machine has, and what to do about what it lacks."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `needed`: without it nothing runs."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True


def examine() -> list[Finding]:
    """Python, torch, the compiler, the emulator, the cache, the GPU."""
    return [_python(), _torch(), _nvrtc(), _emulator(), _cache(), _gpu()]


def _python() -> Finding:
    ok = sys.version_info >= (3, 10)
    return Finding("Python", ok, f"{platform.python_version()} on {platform.system()} {platform.machine()}", "" if ok else "minigemm needs 3.10 or newer")


def _torch() -> Finding:
    import torch

    return Finding("torch", True, f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})")


def _nvrtc() -> Finding:
    from . import jit

    try:
        return Finding("NVRTC", True, jit.compiler_version())
    except ValueError as error:
        return Finding("NVRTC", False, "not found", str(error))


def _emulator() -> Finding:
    try:
        import llvmlite

        return Finding("emulator", True, f"llvmlite {llvmlite.__version__}")
    except ImportError as error:
        return Finding("emulator", False, str(error), "pip install llvmlite")


def _cache() -> Finding:
    from .emulator import cache

    place = cache.folder()
    advice = "" if place else "kernels are compiled in every process; set MINIGEMM_CACHE_DIR to a folder that only you can write"
    return Finding("cache", place is not None, str(place) if place else "none", advice, needed=False)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", False, "none that torch can use", "the emulator runs every stage on the CPU", needed=False)
    names = [f"{torch.cuda.get_device_name(i)} {torch.cuda.get_device_capability(i)}" for i in range(torch.cuda.device_count())]
    hopper = any(torch.cuda.get_device_capability(i) == (9, 0) for i in range(torch.cuda.device_count()))
    advice = "" if hopper else "these kernels need compute capability 9.0 (H100, H200, GH200); the emulator runs them on the CPU"
    return Finding("GPU", hopper, ", ".join(names), advice, needed=False)
