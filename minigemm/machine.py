"""This machine: its best device, what results say of it, and what it lacks and what to do about that."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Finding", "best_device", "driver_version", "examine", "identity"]


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
    return [_python(), _torch(), _nvrtc(), _emulator(), _cache(), _gpu(), _sanitizer()]


def driver_version() -> str:
    """The installed driver, as nvidia-smi names it; "" where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.partition("\n")[0].strip()


def best_device() -> torch.device:
    """The first Hopper GPU, or the CPU."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if torch.cuda.get_device_capability(index) == (9, 0):
                return torch.device("cuda", index)
    return torch.device("cpu")


def identity(device: torch.device) -> dict[str, Any]:
    """The software and the GPU of this machine, as a recorded result names them."""
    import torch

    from .compiler import jit

    found: dict[str, Any] = {
        "runtime": "cuda" if device.type == "cuda" else "emulated",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nvrtc": jit.compiler_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.update(
            gpu=properties.name,
            driver=driver_version(),
            sms=properties.multi_processor_count,
            cuda=torch.version.cuda,
        )
    return found


def _python() -> Finding:
    ok = sys.version_info >= (3, 10)
    return Finding(
        "Python",
        ok,
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if ok else "minigemm needs 3.10 or newer",
    )


def _torch() -> Finding:
    import torch

    return Finding("torch", True, f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})")


def _nvrtc() -> Finding:
    from . import store
    from .compiler import jit
    from .kernels import stages
    from .types import Problem

    stage = stages()[0].stage
    try:  # a wheel that is installed may still not load: let it compile
        cold, warm = jit.measure(
            stage.source, stage.default_config(Problem(256, 256, 512)), name=stage.name, kernel=stage.kernel
        )
    except ValueError as error:
        return Finding("NVRTC", False, "cannot compile", str(error))
    kept = (
        f"and comes from the cache in {warm * 1e3:.1f} ms"
        if store.folder()
        else "in every process anew, since there is no cache"
    )
    return Finding("NVRTC", True, f"{jit.compiler_version()}; {stage.name} compiles in {cold:.2f} s, {kept}")


def _emulator() -> Finding:
    try:
        import llvmlite

        return Finding("emulator", True, f"llvmlite {llvmlite.__version__}")
    except ImportError as error:
        return Finding("emulator", False, str(error), "pip install llvmlite")


def _cache() -> Finding:
    from . import store

    place = store.folder()
    advice = (
        ""
        if place
        else "kernels are compiled in every process; set MINIGEMM_CACHE_DIR to a folder that only you can write"
    )
    return Finding("cache", place is not None, str(place) if place else "none", advice, needed=False)


def _gpu() -> Finding:
    import torch

    driver = driver_version()
    if not torch.cuda.is_available():
        advice = "the emulator runs every stage on the CPU"
        if driver:
            why = (
                "it is a CPU-only build"
                if torch.version.cuda is None
                else f"its CUDA {torch.version.cuda} may need a newer driver"
            )
            advice = f"driver {driver} is here, but this torch cannot use it ({why}); {advice}"
        return Finding("GPU", False, "none that torch can use", advice, needed=False)
    names = [
        f"{torch.cuda.get_device_name(i)} {torch.cuda.get_device_capability(i)}"
        for i in range(torch.cuda.device_count())
    ]
    hopper = any(torch.cuda.get_device_capability(i) == (9, 0) for i in range(torch.cuda.device_count()))
    advice = (
        ""
        if hopper
        else "these kernels need compute capability 9.0 (H100, H200, GH200); the emulator runs them on the CPU"
    )
    return Finding("GPU", hopper, f"{', '.join(names)}, driver {driver or 'unknown'}", advice, needed=False)


def _sanitizer() -> Finding:
    program = shutil.which("compute-sanitizer")
    advice = "" if program else "`test-gpu` leaves its checks out; it comes with the CUDA toolkit"
    return Finding("compute-sanitizer", program is not None, program or "not installed", advice, needed=False)
