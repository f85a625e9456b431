"""Where a kernel runs: on a Hopper GPU (`cuda`) or on the emulator (`emulated`). The tensors' device decides.

Both have the same verbs: see `Runtime`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import torch

from ..compiler import jit
from ..types import Launch, TensorMap

__all__ = ["Runtime", "of", "run"]

if torch.cuda.is_available():
    with suppress(ImportError):  # a tenth of a second, which is better spent here than in the first call
        importlib.import_module("cuda.bindings.driver")


class Runtime(Protocol):
    """The verbs of both modules. What `load` returns is the module's own."""

    def check_device(self, device: torch.device, /) -> None:
        """Raise ValueError if kernels cannot run there."""

    def load(self, kernel: jit.Kernel, shared: int, device: torch.device, /) -> Any:
        """Return the kernel as `launch` takes it, allowed `shared` bytes of dynamic shared memory."""

    def tensor_map(self, description: TensorMap, /) -> Any:
        """Return the runtime's own tensor map."""

    def launch(self, loaded: Any, launch: Launch, variables: Mapping[str, Any] | None = None) -> None:
        """Launch a loaded kernel as described."""

    @property
    def prepare(self) -> Callable[[Any, Launch], Any] | None:
        """What makes a launch that can be started again at little cost to the host.

        None on the emulator: there a launch takes far longer than its description, and every call checks its
        data.
        """


def of(device: torch.device) -> Runtime:
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
