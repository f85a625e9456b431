"""Where a kernel runs: on a Hopper GPU (`cuda`) or on the emulator (`emulated`). The tensors' device decides.

Both have the same verbs: `check_device`, `load`, `tensor_map`, `launch`. `cuda` also has `prepare`, which
makes a launch that can be started again at little cost to the host. `emulated.prepare` is None: there a
launch takes far longer than its description, and every call checks its data.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from types import ModuleType

import torch

from ..compiler import jit
from ..types import Launch

__all__ = ["of", "run"]

if torch.cuda.is_available():
    with suppress(ImportError):  # a tenth of a second, which is better spent here than in the first call
        importlib.import_module("cuda.bindings.driver")


def of(device: torch.device) -> ModuleType:
    """Return `runtime.cuda` for a GPU, `runtime.emulated` for the CPU. ValueError for other devices."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected tensors on a CPU (emulated) or on a CUDA device, got {device}")
    if device.type == "cuda":
        from . import cuda

        return cuda
    from . import emulated

    return emulated


def run(kernel: jit.Kernel, launch: Launch, device: torch.device) -> None:
    """Load a compiled kernel onto the device, and launch it as described."""
    device_runtime = of(device)
    device_runtime.launch(device_runtime.load(kernel, launch.shared, device), launch)
