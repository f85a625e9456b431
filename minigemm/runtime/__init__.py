"""Where a kernel runs. Both runtimes have the same verbs: `check_device`, `load`, `launch`; the tensors' device decides which one serves."""

from __future__ import annotations

import importlib
from contextlib import suppress
from types import ModuleType

import torch

__all__ = ["of"]

if torch.cuda.is_available():
    with suppress(ImportError):  # a tenth of a second, which is better spent here than in the first call
        importlib.import_module("cuda.bindings.driver")


def of(device: torch.device) -> ModuleType:
    """`runtime.cuda` for tensors on a GPU, `runtime.emulated` for CPU tensors. ValueError for other devices."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected tensors on a CPU (emulated) or on a CUDA device, got {device}")
    return importlib.import_module(f"{__name__}.{'cuda' if device.type == 'cuda' else 'emulated'}")
