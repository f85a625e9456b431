"""Measurements that anyone can repeat: the emulator's speed on one core."""

from __future__ import annotations

import datetime
import functools
import platform
import re
import statistics
from collections.abc import Callable
from typing import Any

from . import chips, emulator, jit, quantize, tour
from .emulator import launching
from .kernels import stages
from .runtime import emulated
from .types import Problem

__all__ = ["as_text", "emulator_speed", "gpu_seconds", "ladder", "ladder_as_text"]

REPEATS = 7


def emulator_speed() -> dict[str, Any]:
    """Lane-instructions a second, translation times, and the seconds of a 128x128x256 problem, for every stage. Medians of 7 runs.

    `plain`: without hazards and counters. `hazards`: with the race detector, as `gemm` runs. `observed`: with the counters too.
    """
    problem = Problem(128, 128, 256)
    x, w = quantize.activations(problem.m, problem.k), quantize.weights(problem.n, problem.k)
    rows = []
    for module in stages():
        stage = module.stage
        a, b = (quantize.quantize(matrix, granularity) for matrix, granularity in zip((x, w), stage.granularities, strict=True))
        config = stage.default_config(problem)
        kernel = jit.build(stage.source, config, name=stage.name, kernel=stage.name)
        row: dict[str, Any] = {"stage": stage.name, "config": config.constants()}
        for mode, hazards, profile in (("plain", False, False), ("hazards", True, False), ("observed", True, True)):
            row[mode] = _measure(stage, kernel, config, problem, a, b, hazards, profile)
        rows.append(row)
    return {
        "what": "emulator speed, one core, 128x128x256",
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "python": platform.python_version(),
        "protocol": f"median of {REPEATS} launches after one that warms up; translation: once without any cache, median of {REPEATS} from the stored code",
        "stages": rows,
    }


def _measure(stage: Any, kernel: jit.Kernel, config: Any, problem: Problem, a: Any, b: Any, hazards: bool, profile: bool) -> dict[str, float]:
    import torch

    cold, warm = launching.translation_seconds(kernel.ptx, kernel.kernel, hazards, profile, REPEATS)
    d = torch.empty(problem.m, problem.n, dtype=torch.bfloat16)
    launch = stage.launch(a, b, d, problem, config)
    args = [emulated.tensor_map(arg) if hasattr(arg, "box") else arg for arg in launch.args]
    reports = [
        emulator.launch(kernel.ptx, launch.grid, launch.block, args, kernel.kernel, launch.shared, hazards=hazards, profile=profile)
        for _ in range(REPEATS + 1)
    ][1:]
    seconds = statistics.median(report.seconds for report in reports)
    return {
        "run_s": seconds,
        "lane_instructions": reports[0].counters["instructions"],
        "lane_instructions_per_s": reports[0].counters["instructions"] / seconds,
        "translate_cold_s": cold,
        "translate_stored_s": statistics.median(warm),
    }


# ---------------------------------------------------------------------------------------------------- the ladder

LADDER = (Problem(4096, 4096, 4096), Problem(4096, 7168, 2048))
ROUNDS = 12
#: Configs besides each stage's default: the same tiles for neighbouring stages, so that a step can be told from a tile.
VARIANTS: dict[str, tuple[dict[str, int], ...]] = {
    "s05_pipelined": ({"block_m": 128, "block_n": 128, "stages": 4},),
    "s06_warp_specialized": (
        {"block_m": 128, "block_n": 128, "stages": 5}, {"block_m": 128, "block_n": 192, "stages": 4}, {"block_m": 256, "block_n": 128, "stages": 3},
    ),
    "s07_promoted": (
        {"block_m": 128, "block_n": 128, "stages": 5}, {"block_m": 128, "block_n": 160, "stages": 4}, {"block_m": 128, "block_n": 192, "stages": 4},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
    ),
}  # fmt: skip


def ladder(rounds: int = ROUNDS) -> dict[str, Any]:
    """TFLOPS of every stage on the Hopper GPU at hand, beside torch's cuBLASLt, at the problems of LADDER. ValueError where there is no Hopper GPU."""
    import torch

    device = tour.best_device()
    if device.type != "cuda":
        raise ValueError("bench --ladder needs a Hopper GPU (compute capability 9.0), and torch sees none")
    machine = tour.machine(device)
    chip = chips.of(machine["gpu"])
    runs = []
    for problem in LADDER:
        x, w = quantize.activations(problem.m, problem.k, device=device), quantize.weights(problem.n, problem.k, device=device)
        operands = {granularity: quantize.quantize(matrix, granularity) for matrix, granularity in
                    ((x, "1x128"), (w, "128x128"))}  # fmt: skip
        per_tensor = quantize.quantize(x, "tensor"), quantize.quantize(w, "tensor")
        calls: dict[tuple[str, Any], Any] = {}
        defaults = set()
        for module in stages():
            stage = module.stage
            a, b = per_tensor if stage.granularities[0] == "tensor" else (operands["1x128"], operands["128x128"])
            configs = [stage.default_config(problem), *(stage.config(**fields) for fields in VARIANTS.get(stage.name, ()))]
            defaults.add((stage.name, configs[0]))
            for config in dict.fromkeys(configs):
                calls[stage.name, config] = functools.partial(stage.gemm, a, b, config)
        a, b = per_tensor
        calls["torch._scaled_mm (cuBLASLt, fast accumulation)", None] = functools.partial(
            torch._scaled_mm, a.data, b.data.T, scale_a=a.scale, scale_b=b.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        seconds = gpu_seconds(calls, device, rounds)
        for (name, config), times in seconds.items():
            median = statistics.median(times)
            runs.append({
                "stage": name, "m": problem.m, "n": problem.n, "k": problem.k, "runtime": "cuda", "config": config.constants() if config else {},
                "default": config is None or (name, config) in defaults, "run_s": median, "fastest_s": min(times),
                "slowest_s": max(times), "tflops": 2 * problem.m * problem.n * problem.k / median / 1e12,
                "floor_share": chip.floor(problem.m, problem.n, problem.k) / median,
            })  # fmt: skip
    return {
        "what": "TFLOPS by stage, python -m minigemm bench --ladder",
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "protocol": f"GPU time of all kernels of a call by torch.profiler, median of {rounds} rounds interleaved over all of them after 2 that warm up; "
        f"{tour.FLUSH_BYTES >> 20} MiB zeroed before each call; LLM-like activations and normal weights; floor: the {chip.source}'s rates",
        "stages": runs,
    }


def gpu_seconds(calls: dict[Any, Any], device: Any, rounds: int) -> dict[Any, list[float]]:
    """GPU seconds of all kernels of each call, once a round, the calls taking turns; the L2 cache is flushed before each."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    flush = torch.empty(tour.FLUSH_BYTES, dtype=torch.uint8, device=device)

    def kernels(run: Callable[[], None]) -> list[tuple[str, float]]:
        """(name, seconds) of the kernels that it launches, in order, the flushes left out."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize(device)
        work = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA and e.time_range.elapsed_us() > 0]
        work.sort(key=lambda e: e.time_range.start)
        return [(e.name, e.time_range.elapsed_us() / 1e6) for e in work if not re.search("Fill|fill|Memset|Memcpy|Sync|aten::|cuda[A-Z]", e.name)]

    counts = {}
    for key, call in calls.items():
        call()  # compiles, loads, chooses
        torch.cuda.synchronize(device)
        counts[key] = len(kernels(call))  # type: ignore[arg-type]

    def rounds_of_all() -> None:
        for _ in range(rounds):
            for call in calls.values():
                flush.zero_()
                call()

    found = kernels(rounds_of_all)
    if len(found) != rounds * sum(counts.values()):
        names = sorted({name for name, _ in found})
        raise RuntimeError(f"the profiler saw {len(found)} kernels of {rounds} x {sum(counts.values())}: {names}")
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    rest = iter(found)
    for _ in range(rounds):
        for key, count in counts.items():
            seconds[key].append(sum(next(rest)[1] for _ in range(count)))
    return seconds


def ladder_as_text(results: dict[str, Any]) -> str:
    """A table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for run in results["stages"]:
        tile = " ".join(f"{name.lower()}={run['config'][name]}" for name in ("BLOCK_M", "BLOCK_N", "STAGES") if name in run["config"])
        lines.append(f"{run['m']}x{run['n']}x{run['k']}  {run['stage']:22.22s} {tile:36s} {run['run_s'] * 1e6:9.1f} us  {run['tflops']:7.1f} TFLOPS"
                     f"  {run['floor_share']:6.1%}{'' if run['default'] else '  (not the default)'}")  # fmt: skip
    return "\n".join(lines)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_text(results: dict[str, Any]) -> str:
    """A table for the terminal."""
    lines = [f"{results['what']}; {results['processor']}, {results['date']}"]
    for row in results["stages"]:
        for mode in ("plain", "hazards", "observed"):
            r = row[mode]
            lines.append(
                f"{row['stage']:10s} {mode:9s} {r['run_s'] * 1e3:7.1f} ms  {r['lane_instructions_per_s'] / 1e6:6.0f} M lane-instructions/s"
                f"  translation {r['translate_cold_s']:.2f} s, stored {r['translate_stored_s'] * 1e3:.0f} ms"
            )
    return "\n".join(lines)
