"""The ladder: TFLOPS of every stage on a Hopper GPU, beside torch's cuBLASLt."""

from __future__ import annotations

import datetime
import functools
import statistics
from typing import Any

from .. import hopper, quantize
from ..kernels import stages
from ..machine import best_device, identity
from ..types import Problem
from .timing import FLUSHED, gpu_seconds

__all__ = ["ladder", "ladder_as_text"]

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

    device = best_device()
    if device.type != "cuda":
        raise ValueError("bench --ladder needs a Hopper GPU (compute capability 9.0), and torch sees none")
    machine = identity(device)
    chip = hopper.of(machine["gpu"])
    runs = []
    for problem in LADDER:
        x, w = (
            quantize.activations(problem.m, problem.k, device=device),
            quantize.weights(problem.n, problem.k, device=device),
        )
        operands = {granularity: quantize.quantize(matrix, granularity) for matrix, granularity in
                    ((x, "1x128"), (w, "128x128"))}  # fmt: skip
        per_tensor = quantize.quantize(x, "tensor"), quantize.quantize(w, "tensor")
        calls: dict[tuple[str, Any], Any] = {}
        defaults = set()
        for module in stages():
            stage = module.stage
            a, b = (
                per_tensor if stage.granularities[0] == "tensor" else (operands["1x128"], operands["128x128"])
            )
            configs = [
                stage.default_config(problem),
                *(stage.config(**fields) for fields in VARIANTS.get(stage.name, ())),
            ]
            defaults.add((stage.name, configs[0]))
            for config in dict.fromkeys(configs):
                calls[stage.name, config] = functools.partial(stage.gemm, a, b, config)
        a, b = per_tensor
        calls["torch._scaled_mm (cuBLASLt, fast accumulation)", None] = functools.partial(
            torch._scaled_mm,
            a.data,
            b.data.T,
            scale_a=a.scale,
            scale_b=b.scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
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
        f"{FLUSHED}; LLM-like activations and normal weights; floor: the {chip.source}'s rates",
        "stages": runs,
    }


def ladder_as_text(results: dict[str, Any]) -> str:
    """A table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for run in results["stages"]:
        tile = " ".join(
            f"{name.lower()}={run['config'][name]}"
            for name in ("BLOCK_M", "BLOCK_N", "STAGES")
            if name in run["config"]
        )
        lines.append(f"{run['m']}x{run['n']}x{run['k']}  {run['stage']:22.22s} {tile:36s} {run['run_s'] * 1e6:9.1f} us  {run['tflops']:7.1f} TFLOPS"
                     f"  {run['floor_share']:6.1%}{'' if run['default'] else '  (not the default)'}")  # fmt: skip
    return "\n".join(lines)
