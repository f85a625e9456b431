"""The clock of every benchmark here: the GPU time of calls, and the bandwidth of a copy."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

from ..hopper import FLUSH_BYTES

__all__ = ["FLUSHED", "FLUSH_BYTES", "copy_bandwidth", "gpu_seconds", "time_on_gpu"]

WARM_UP = 2  # rounds that do not count
COPIED = 1 << 30  # bytes: far more than L2 holds
LEAST_FLUSH = 25e-6  # seconds: no GPU fills FLUSH_BYTES faster, and no call clears as much
FILLS_AHEAD = 8  # half a millisecond of the GPU's time
#: The words of a protocol about the cache.
FLUSHED = f"{FLUSH_BYTES >> 20} MiB zeroed before each call, so that nothing is in L2"

Key = TypeVar("Key", bound=Hashable)


def gpu_seconds(calls: Mapping[Key, Callable[[], Any]], device: Any, rounds: int) -> dict[Key, list[float]]:
    """Return the GPU seconds of all kernels of each call, one sum per round.

    In each round every call runs once, the L2 cache flushed before it. Fills, memsets and copies are not
    counted. Two rounds more come first, to warm up.

    Raises:
        RuntimeError: a call launched no kernel.
    """
    from torch.profiler import ProfilerActivity, profile

    # The first call compiles and loads its kernel and chooses a config.
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    for call in calls.values():
        call()
    torch.cuda.synchronize(device)

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(rounds + WARM_UP):
            for call in calls.values():
                flush.zero_()
                call()
        torch.cuda.synchronize(device)

    cuda = torch.autograd.DeviceType.CUDA
    events = [event for event in seen.events() if event.device_type == cuda]
    events.sort(key=lambda event: event.time_range.start)
    work = [(event.name, event.time_range.elapsed_us() / 1e6) for event in events]
    return shared_out([(name, seconds) for name, seconds in work if seconds > 0], list(calls), rounds)


def shared_out(work: list[tuple[str, float]], keys: list[Key], rounds: int) -> dict[Key, list[float]]:
    """Return the seconds of each key's kernels, one sum per round.

    work: (name, seconds) of everything that ran on the GPU, in order. A flush begins each call.
    """
    # A long fill is a flush and begins a sum; short fills, copies and the profiler's own entries count for
    # nothing.
    sums: list[float] = []
    for name, seconds in work:
        filled = re.search("Fill|fill|Memset", name)
        if filled and seconds >= LEAST_FLUSH:
            sums.append(0.0)
        elif sums and not filled and not re.search("Memcpy|Sync|aten::|cuda[A-Z]", name):
            sums[-1] += seconds

    names = sorted({name for name, _ in work})
    if len(sums) != (rounds + WARM_UP) * len(keys):
        expected = f"{rounds + WARM_UP} x {len(keys)}"
        raise RuntimeError(f"the profiler saw {len(sums)} flushes of {expected}: {names}")

    times = {key: sums[first :: len(keys)][WARM_UP:] for first, key in enumerate(keys)}
    idle = [str(key) for key, found in times.items() if not all(found)]
    if idle:
        raise RuntimeError(f"the profiler saw no kernel of {', '.join(idle)}: {names}")
    return times


def copy_bandwidth(device: Any) -> float:
    """Return the bytes/s, read and written, of a copy on the GPU: the most that a kernel can hope for."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / time_on_gpu(lambda: target.copy_(source), device)


def time_on_gpu(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Return the median seconds of one call by CUDA events, the L2 cache flushed before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device)
    times = []
    for _ in range(repeats + WARM_UP):
        # While the GPU fills, the host prepares the call: the events then see the GPU's work alone.
        for _ in range(FILLS_AHEAD):
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        call()
        end.record(stream)
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times[WARM_UP:])[repeats // 2]
