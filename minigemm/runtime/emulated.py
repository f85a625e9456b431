"""Launches on the Hopper emulator, for CPU tensors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import emulator, types
from ..compiler import jit

__all__ = ["check_device", "launch", "load", "observe", "prepare", "tensor_map"]

PACKAGE = __name__.partition(".")[0]
#: No launch is kept ready here: the emulator takes far longer than a description, and each call checks its
#: data.
prepare = None


@dataclass
class _Observation:
    schedule: str | int = "late"
    hazards: bool = True
    requests: int = 0
    timeline: bool | emulator.Rates = False
    fast: bool = False
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
        schedule: when asynchronous work completes: "late" (only when no thread can go on), "early" (at once),
            or an integer seed for a random order.
        hazards: whether to look for races and misuse. False is about twice as fast.
        requests: warp requests of each memory access to keep with their addresses, for pictures.
        timeline: True, or an `emulator.Rates`, to run the first CTA by a cycle model and keep who was busy
            and who waited (`report.timeline`).
        fast: True for products of the tensor core with plain FP32 sums, where the hardware's bits do not
            matter.

    Outside the `with` a hazard warns once for each place (HazardWarning). A fault or deadlock raises inside
    and outside; inside, the report up to there is collected too.
    """
    if schedule not in ("late", "early") and (not isinstance(schedule, int) or isinstance(schedule, bool)):
        raise ValueError(f'schedule: expected "late", "early" or an integer seed, got {schedule!r}')
    if not isinstance(timeline, (bool, emulator.Rates)):
        raise TypeError(f"timeline: expected True, False or an emulator.Rates, got {timeline!r}")
    for name, value in (("hazards", hazards), ("fast", fast)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}")
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
    """Accept any CPU."""


def load(kernel: jit.Kernel, shared: int, device: torch.device) -> jit.Kernel:
    """Return the kernel itself: the emulator translates its PTX at the first launch and keeps the result."""
    return kernel


def tensor_map(description: types.TensorMap) -> emulator.TensorMap:
    """Return the emulator's tensor map."""
    return emulator.TensorMap(description.tensor, description.box, description.swizzle)


def launch(kernel: jit.Kernel, launch: types.Launch, variables: Mapping[str, Any] | None = None) -> None:
    """Run the launch to its end.

    Args:
        kernel: the compiled kernel.
        launch: the launch's description.
        variables: values of the module's variables, by name.
    """
    # Outside of an observation the defaults hold.
    observation = _observing.get()
    chosen = observation or _Observation()
    args = [tensor_map(arg) if isinstance(arg, types.TensorMap) else arg for arg in launch.args]

    # An observation keeps the report of a failed run, too: it shows what went wrong.
    try:
        report = emulator.launch(
            kernel.ptx,
            launch.grid,
            launch.block,
            args,
            kernel=kernel.symbol,
            shared=launch.shared,
            cluster=launch.cluster,
            schedule=chosen.schedule,
            hazards=chosen.hazards,
            profile=observation is not None,
            keep_requests=chosen.requests,
            timeline=chosen.timeline,
            fast=chosen.fast,
            variables=variables,
        )
    except emulator.EmulatorError as error:
        if observation is not None and error.report is not None:
            observation.reports.append(error.report)
        raise

    # Who observes finds the hazards in the report, so no warning is needed.
    if observation is not None:
        observation.reports.append(report)
        return

    # Everybody else is warned once for each kernel and place.
    for hazard in report.hazards:
        place = (kernel.key, f"{hazard.kind} {hazard.location}")
        if place not in _warned:
            _warned.add(place)
            message = f"{kernel.name}: {hazard}"
            warnings.warn(message, types.HazardWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """Return the `stacklevel` at which a warning of our caller shows the line outside the library."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    return level
