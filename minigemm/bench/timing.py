"""The clock of every benchmark here: the GPU time of calls, and the bandwidth of a copy.

Before each call that is timed, the L2 cache is flushed in one of two ways. Both push everything out that an
earlier call left there, and they differ in what they leave:

- "fill" zeroes 256 MiB. L2 is then full of lines that must be written to memory before another takes their
  place, so a call's loads push out other people's stores.
- "read" reads 256 MiB. L2 is then full of lines that can simply be dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import runtime
from ..compiler import jit
from ..hopper import FLUSH_BYTES, SMS
from ..types import Config, Launch

__all__ = [
    "FILL",
    "FLUSHED",
    "FLUSHED_BOTH",
    "FLUSHES",
    "FLUSH_BYTES",
    "READ",
    "copy_bandwidth",
    "gpu_seconds",
    "seconds_by_flush",
    "time_on_gpu",
]

FILL, READ = FLUSHES = ("fill", "read")
READER = "minigemm_read_flush"  # the kernel's name
READER_CTAS, READER_THREADS, VECTOR_BYTES = 8 * SMS, 256, 16
WARM_UP = 2  # rounds that do not count
COPIED = 1 << 30  # bytes: far more than L2 holds
LEAST_FLUSH = 25e-6  # seconds: no GPU fills FLUSH_BYTES faster, and no call clears as much
FILLS_AHEAD = 8  # half a millisecond of the GPU's time
#: The words of a protocol about the cache.
FLUSHED = f"{FLUSH_BYTES >> 20} MiB zeroed before each call, so that nothing is in L2"
FLUSHED_BOTH = (
    f"before each call {FLUSH_BYTES >> 20} MiB are zeroed (fill: L2 is left full of lines to be written back), or read "
    "(read: L2 is left full of lines to be dropped); each has its own figures"
)

Key = TypeVar("Key", bound=Hashable)


def gpu_seconds(calls: Mapping[Key, Callable[[], Any]], device: Any, rounds: int) -> dict[Key, list[float]]:
    """Return the GPU seconds of all kernels of each call after a fill, one sum per round.

    See `seconds_by_flush`, which raises the same errors.
    """
    return seconds_by_flush(calls, device, rounds, (FILL,))[FILL]


def seconds_by_flush(
    calls: Mapping[Key, Callable[[], Any]], device: Any, rounds: int, flushes: Sequence[str] = FLUSHES
) -> dict[str, dict[Key, list[float]]]:
    """Return for each flush the GPU seconds of all kernels of each call, one sum per round.

    In each round every call runs once after each flush. Flushes, other fills, memsets and copies are not
    counted. Two rounds more come first, to warm up.

    Args:
        calls: the calls by name.
        device: the GPU.
        rounds: how many rounds count.
        flushes: some of FLUSHES.

    Raises:
        RuntimeError: a call launched no kernel.
    """
    from torch.profiler import ProfilerActivity, profile

    # The first call compiles and loads its kernel and chooses a config.
    before = {flush: _flush(flush, device) for flush in flushes}
    for call in calls.values():
        call()
    torch.cuda.synchronize(device)

    # What the host does is not recorded: reading so many events would take longer than the calls.
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(rounds + WARM_UP):
            for call in calls.values():
                for flush in before.values():
                    flush()
                    call()
        torch.cuda.synchronize(device)

    cuda = torch.autograd.DeviceType.CUDA
    events = [event for event in seen.events() if event.device_type == cuda]
    events.sort(key=lambda event: event.time_range.start)
    work = [(event.name, event.time_range.elapsed_us() / 1e6) for event in events]
    work = [(name, seconds) for name, seconds in work if seconds > 0]

    # The keys of a round in its order, as an error would name them.
    names = {(flush, key): f"{key} after a {flush}" for key in calls for flush in before}
    found = shared_out(work, list(names.values()), rounds)
    return {flush: {key: found[names[flush, key]] for key in calls} for flush in before}


def _flush(kind: str, device: Any) -> Callable[[], Any]:
    """Return what flushes L2. Each kind has a buffer of its own, because a fill's lines are not clean."""
    if kind == FILL:
        return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device).zero_
    buffer = torch.zeros(FLUSH_BYTES, dtype=torch.uint8, device=device)
    return reader(buffer, torch.zeros(1, dtype=torch.int32, device=device))


def reader(buffer: torch.Tensor, seen: torch.Tensor) -> Callable[[], Any]:
    """Return a call that reads all of a buffer, whose bytes are a multiple of 16.

    `seen`, one int32, is written only if a byte of the buffer is not zero.
    """
    kernel = jit.build(Path(__file__).with_name("flush.cu"), Config(), name=READER, symbol=READER)
    vectors = buffer.numel() * buffer.element_size() // VECTOR_BYTES
    launch = Launch((READER_CTAS, 1, 1), (READER_THREADS, 1, 1), (buffer, vectors, seen))
    return lambda: runtime.run(kernel, launch, buffer.device)


def shared_out(work: list[tuple[str, float]], keys: list[Key], rounds: int) -> dict[Key, list[float]]:
    """Return the seconds of each key's kernels, one sum per round.

    work: (name, seconds) of everything that ran on the GPU, in order. A flush begins each call.
    """
    # The reader's kernel and a long fill are flushes, and each begins a sum. Short fills, copies and the
    # profiler's own entries count for nothing.
    sums: list[float] = []
    for name, seconds in work:
        filled = re.search("Fill|fill|Memset", name)
        if READER in name or (filled and seconds >= LEAST_FLUSH):
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
