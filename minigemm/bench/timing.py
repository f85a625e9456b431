"""GPU time of calls as a profiler sees their kernels, and the bandwidth of a copy: the clock of every benchmark here."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

__all__ = ["FLUSHED", "FLUSH_BYTES", "copy_bandwidth", "gpu_seconds", "time_on_gpu"]

FLUSH_BYTES = 256 << 20  # zeroed before each timed call: more than the L2 cache holds
WARM_UP = 2  # rounds whose times do not count
COPIED = 1 << 30  # bytes: far more than L2 holds
LEAST_FLUSH = 25e-6  # seconds: no GPU fills FLUSH_BYTES faster, and no call clears so much
#: What a protocol says about the cache.
FLUSHED = f"{FLUSH_BYTES >> 20} MiB zeroed before each call, so that nothing is in L2"

Key = TypeVar("Key", bound=Hashable)


def gpu_seconds(calls: Mapping[Key, Callable[[], Any]], device: Any, rounds: int) -> dict[Key, list[float]]:
    """GPU seconds of all kernels of each call, once a round, the calls taking turns; the L2 cache is flushed before each.

    Fills, memsets and copies count for nothing. Two rounds more come first, and warm up. RuntimeError where a call launched no kernel.
    """
    from torch.profiler import ProfilerActivity, profile

    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    for call in calls.values():
        call()  # compiles, loads, chooses
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(rounds + WARM_UP):
            for call in calls.values():
                flush.zero_()
                call()
        torch.cuda.synchronize(device)
    work = [
        event
        for event in seen.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and event.time_range.elapsed_us() > 0
    ]
    work.sort(key=lambda event: event.time_range.start)
    return shared_out(
        [(event.name, event.time_range.elapsed_us() / 1e6) for event in work], list(calls), rounds
    )


def shared_out(work: list[tuple[str, float]], keys: list[Key], rounds: int) -> dict[Key, list[float]]:
    """The seconds of each key's kernels, a sum a round, from (name, seconds) of all that ran on the GPU, in order: a flush begins each call."""
    sums: list[float] = []
    for name, seconds in work:
        filled = re.search("Fill|fill|Memset", name)
        if filled and seconds >= LEAST_FLUSH:
            sums.append(0.0)
        elif sums and not filled and not re.search("Memcpy|Sync|aten::|cuda[A-Z]", name):
            sums[-1] += seconds
    if len(sums) != (rounds + WARM_UP) * len(keys):
        raise RuntimeError(
            f"the profiler saw {len(sums)} flushes of {rounds + WARM_UP} x {len(keys)}: {sorted({name for name, _ in work})}"
        )
    times = {key: sums[first :: len(keys)][WARM_UP:] for first, key in enumerate(keys)}
    idle = [str(key) for key, found in times.items() if not all(found)]
    if idle:
        raise RuntimeError(
            f"the profiler saw no kernel of {', '.join(idle)}: {sorted({name for name, _ in work})}"
        )
    return times


def copy_bandwidth(device: Any) -> float:
    """Bytes a second, read and written, of a copy inside the GPU's memory: what a kernel can hope for."""
    import torch

    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / time_on_gpu(lambda: target.copy_(source), device)


def time_on_gpu(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median seconds of one call by events, L2 flushed before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times = []
    for _ in range(repeats + 2):
        for _ in range(
            8
        ):  # half a millisecond, in which the host prepares the call: the events then see the GPU's work alone
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(torch.cuda.current_stream(device))
        call()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times[2:])[repeats // 2]
