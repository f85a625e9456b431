"""Launches on the Hopper emulator, for CPU tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import emulator, types
from ..compiler import jit

__all__ = ["check_device", "launch", "load", "observe", "tensor_map"]


@dataclass
class _Observation:
    schedule: str | int
    hazards: bool
    requests: int
    timeline: bool | emulator.Rates
    fast: bool
    reports: list[emulator.Report] = field(default_factory=list)


_observing: ContextVar[_Observation | None] = ContextVar("minigemm_observation", default=None)
_warned: set[tuple[str, str]] = set()


@contextmanager
def observe(
    schedule: str | int = "late",
    hazards: bool = True,
    requests: int = 0,
    timeline: bool | emulator.Rates = False,
    fast: bool = False,
) -> Iterator[list[emulator.Report]]:
    """Collect the emulator's reports of every call on CPU tensors inside the `with`.

        with minigemm.observe() as seen:
            d = s03_tma.gemm(a, b)
        seen[0]                     # draws itself in Jupyter; seen[0].hazards, seen[0].counters

    Args:
        schedule: when asynchronous work completes: "late" (only when no thread can go on), "early" (at once), or an integer seed for a random order.
        hazards: whether to look for races and misuse. False is about twice as fast.
        requests: warp requests of each memory access to keep with their addresses, for pictures.
        timeline: True, or an `emulator.Rates`, to run the first CTA by a cycle model and keep who was busy and who waited (`report.timeline`).
        fast: True for products of the tensor core with plain FP32 sums, where the hardware's bits do not matter.

    Outside of it a hazard warns once for each place (HazardWarning). A fault or deadlock raises in both; inside, what was seen up to there is collected too.
    """
    if schedule not in ("late", "early") and (not isinstance(schedule, int) or isinstance(schedule, bool)):
        raise ValueError(f'schedule: expected "late", "early" or an integer seed, got {schedule!r}')
    for name, value, kinds in (
        ("hazards", hazards, bool),
        ("timeline", timeline, (bool, emulator.Rates)),
        ("fast", fast, bool),
    ):
        if not isinstance(value, kinds):
            expected = "True, False or an emulator.Rates" if name == "timeline" else "True or False"
            raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if not isinstance(requests, int) or isinstance(requests, bool) or requests < 0:
        raise TypeError(
            f"requests: expected how many to keep of each access, an integer from 0 on, got {requests!r}"
        )
    observation = _Observation(schedule, hazards, requests, timeline, fast)
    token = _observing.set(observation)
    try:
        yield observation.reports
    finally:
        _observing.reset(token)


def check_device(device: torch.device) -> None:
    """Any CPU will do."""


def load(kernel: jit.Kernel, shared: int, device: torch.device) -> jit.Kernel:
    """The PTX is what the emulator runs; it translates it at the first launch and keeps the result."""
    return kernel


def tensor_map(description: types.TensorMap) -> emulator.TensorMap:
    """The emulator's tensor map."""
    return emulator.TensorMap(description.tensor, description.box, description.swizzle)


def launch(kernel: jit.Kernel, launch: types.Launch, variables: Mapping[str, Any] | None = None) -> None:
    """Run the launch to its end. `variables`: what the module's variables hold, by name."""
    observation = _observing.get()
    chosen = observation or _Observation("late", True, 0, False, False)
    args = [tensor_map(arg) if isinstance(arg, types.TensorMap) else arg for arg in launch.args]
    try:
        report = emulator.launch(
            kernel.ptx, launch.grid, launch.block, args, kernel=kernel.kernel, shared=launch.shared, cluster=launch.cluster,
            schedule=chosen.schedule, hazards=chosen.hazards, profile=observation is not None, keep_requests=chosen.requests,
            timeline=chosen.timeline, fast=chosen.fast, variables=variables,
        )  # fmt: skip
    except emulator.EmulatorError as error:
        if observation is not None and error.report is not None:
            observation.reports.append(error.report)
        raise
    if observation is not None:
        observation.reports.append(report)
        return
    for hazard in report.hazards:
        place = (kernel.key, f"{hazard.kind} {hazard.location}")
        if place not in _warned:
            _warned.add(place)
            warnings.warn(f"{kernel.name}: {hazard}", types.HazardWarning, stacklevel=4)
