"""What tests and benchmarks of other projects use: differences, bytes, kernel times by torch's profiler."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from minigemm.hopper import FLUSH_BYTES

__all__ = ["bench_kineto", "calc_diff", "count_bytes", "get_arch_major"]


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 <x, y> / (<x, x> + <y, y>), in FP64: 0 for equal tensors, and for two of zeros."""
    one, other = x.double(), y.double()
    both = (one * one + other * other).sum()
    return 0.0 if both == 0 else float(1 - 2 * (one * other).sum() / both)


def count_bytes(*tensors: Any) -> int:
    """Bytes of all tensors, in tuples and lists too; None counts nothing."""
    total = 0
    for each in tensors:
        if isinstance(each, (tuple, list)):
            total += count_bytes(*each)
        elif each is not None:
            total += each.numel() * each.element_size()
    return total


def get_arch_major() -> int:
    """Return the major compute capability of the current GPU.

    Where there is none it is 9, Hopper's, which the emulator stands for.
    """
    return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 9


def bench_kineto(
    fn: Callable[[], Any],
    kernel_names: str | Sequence[str],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    flush_l2: bool = True,
    with_multiple_kernels: bool = False,
) -> float | tuple[float, ...]:
    """Return the mean seconds that kernels take in a call of `fn`, by torch's profiler on a GPU.

    Args:
        fn: what to time, called once more than num_tests times.
        kernel_names: part of a kernel's name, or several, for a tuple of times.
        suppress_kineto_output: silence what the profiler prints to stderr.
        trace_path: where to store a Chrome trace.
        flush_l2: overwrite the L2 cache before each call.
        with_multiple_kernels: add the times of all kernels that a name finds; otherwise each may find one
            kernel only.

    Raises:
        RuntimeError: there is no CUDA device. ValueError: a name finds no kernel, or several.
    """
    # A CPU has no kernels to time, so the message names what can be observed there.
    if not torch.cuda.is_available():
        raise RuntimeError(
            "bench_kineto times kernels on a CUDA device, and there is none; "
            "minigemm.observe() counts what a call on CPU tensors does"
        )

    # The profile also sees the kernels that overwrite L2; the search by name below leaves them out.
    names = (kernel_names,) if isinstance(kernel_names, str) else tuple(kernel_names)
    fn()  # compiled, before anything is timed
    with (
        _quiet(suppress_kineto_output),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen,
    ):
        for _ in range(num_tests):
            if flush_l2:
                torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda").zero_()
            fn()
        torch.cuda.synchronize()

    # The trace is stored before the names are looked up: it shows what a wrong name should have been.
    if trace_path is not None:
        seen.export_chrome_trace(trace_path)

    # Several kernels under one name are added up only where the caller allows it.
    times = []
    for name in names:
        found = [event for event in seen.key_averages() if name in event.key]
        if not found or (len(found) > 1 and not with_multiple_kernels):
            came = ", ".join(event.key for event in (found or seen.key_averages()))
            raise ValueError(
                f"kernel_names: expected {'at least ' if with_multiple_kernels else ''}one kernel "
                f"with {name!r} in its name, got: {came}"
            )
        times.append(sum(event.device_time_total for event in found) * 1e-6 / num_tests)
    return times[0] if isinstance(kernel_names, str) else tuple(times)


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """Nothing on the process's stderr, where the profiler's own library writes."""
    if not wanted:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
