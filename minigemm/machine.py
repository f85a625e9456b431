"""This machine: its best device, its identity in recorded results, and what it lacks.

`examine` is `python -m minigemm doctor`: it looks at each thing that minigemm uses, and advises where one
is missing.
"""

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

__all__ = ["Finding", "best_device", "driver_version", "examine", "hopper_gpu", "identity", "show"]


@dataclass(frozen=True)
class Finding:
    """The result of looking at one thing. `needed`: nothing runs without it."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True


def examine() -> list[Finding]:
    """Look at Python, torch, the compiler, the emulator, the cache, the GPU and compute-sanitizer."""
    return [_python(), _torch(), _nvrtc(), _emulator(), _cache(), _gpu(), _sanitizer()]


def show(findings: list[Finding]) -> None:
    """Print what `examine` found."""
    from rich.console import Console

    console = Console(highlight=False)
    for finding in findings:
        mark = "[green]ok[/green]" if finding.ok else "[yellow]--[/yellow]"
        advice = f"\n    {finding.advice}" if finding.advice else ""
        console.print(f"{mark}  [bold]{finding.name}[/bold]: {finding.found}{advice}")


def driver_version() -> str:
    """Return the installed driver's version, as nvidia-smi names it; "" without a driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.partition("\n")[0].strip()


def best_device() -> torch.device:
    """Return the first Hopper GPU, or the CPU if there is none."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if torch.cuda.get_device_capability(index) == (9, 0):
                return torch.device("cuda", index)
    return torch.device("cpu")


def hopper_gpu(what: str) -> torch.device:
    """Return the first Hopper GPU. ValueError that names `what` needs it, if there is none."""
    device = best_device()
    if device.type != "cuda":
        raise ValueError(f"{what} needs a Hopper GPU (compute capability 9.0), and torch sees none")
    return device


def identity(device: torch.device) -> dict[str, Any]:
    """Return the names of this machine's software and GPU, for a recorded result."""
    import torch

    from .compiler import jit

    # The software and the processor can be told on every machine.
    found: dict[str, Any] = {
        "runtime": "cuda" if device.type == "cuda" else "emulated",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nvrtc": jit.compiler_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }

    # An emulated run has no GPU to name.
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
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python", ok, found, "" if ok else "minigemm needs 3.10 or newer")


def _torch() -> Finding:
    import torch

    return Finding("torch", True, f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})")


def _nvrtc() -> Finding:
    from . import store
    from .compiler import jit
    from .kernels import stages
    from .types import Product

    # An installed wheel may still not load, so let it compile.
    stage = stages()[0].stage
    config = stage.default_config(Product(256, 256, 512))
    try:
        cold, warm = jit.measure(stage.source, config, name=stage.name, symbol=stage.symbol)
    except ValueError as error:
        return Finding("NVRTC", False, "cannot compile", str(error))
    if store.folder():
        kept = f"and comes from the cache in {warm * 1e3:.1f} ms"
    else:
        kept = "in every process anew, since there is no cache"
    return Finding("NVRTC", True, f"{jit.compiler_version()}; {stage.name} compiles in {cold:.2f} s, {kept}")


def _emulator() -> Finding:
    try:
        import llvmlite
    except ImportError as error:
        return Finding("emulator", False, str(error), "pip install llvmlite")
    return Finding("emulator", True, f"llvmlite {llvmlite.__version__}")


def _cache() -> Finding:
    from . import store

    place = store.folder()
    if place is not None:
        return Finding("cache", True, str(place), needed=False)
    advice = (
        "kernels are compiled in every process; set MINIGEMM_CACHE_DIR to a folder that only you can write"
    )
    return Finding("cache", False, "none", advice, needed=False)


def _gpu() -> Finding:
    import torch

    # No GPU that torch can use, perhaps with a driver that shows that there is one.
    driver = driver_version()
    if not torch.cuda.is_available():
        advice = "the emulator runs every stage on the CPU"
        if driver:
            why = f"its CUDA {torch.version.cuda} may need a newer driver"
            if torch.version.cuda is None:
                why = "it is a CPU-only build"
            advice = f"driver {driver} is here, but this torch cannot use it ({why}); {advice}"
        return Finding("GPU", False, "none that torch can use", advice, needed=False)

    # GPUs, of which one may be a Hopper.
    gpus = range(torch.cuda.device_count())
    names = [f"{torch.cuda.get_device_name(i)} {torch.cuda.get_device_capability(i)}" for i in gpus]
    found = f"{', '.join(names)}, driver {driver or 'unknown'}"
    if best_device().type == "cuda":
        return Finding("GPU", True, found, needed=False)
    advice = (
        "these kernels need compute capability 9.0 (H100, H200, GH200); the emulator runs them on the CPU"
    )
    return Finding("GPU", False, found, advice, needed=False)


def _sanitizer() -> Finding:
    program = shutil.which("compute-sanitizer")
    advice = "" if program else "`test-gpu` leaves its checks out; it comes with the CUDA toolkit"
    return Finding("compute-sanitizer", program is not None, program or "not installed", advice, needed=False)
