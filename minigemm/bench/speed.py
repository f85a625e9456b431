"""The emulator's speed on one core, which anyone can measure."""

from __future__ import annotations

import datetime
import platform
import statistics
from typing import Any

from .. import emulator, quantize
from ..compiler import jit
from ..emulator import launching
from ..kernels import stages
from ..runtime import emulated
from ..types import Problem

__all__ = ["as_text", "emulator_speed"]

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
        a, b = (
            quantize.quantize(matrix, granularity)
            for matrix, granularity in zip((x, w), stage.granularities, strict=True)
        )
        config = stage.default_config(problem)
        kernel = jit.build(stage.source, config, name=stage.name, kernel=stage.kernel)
        row: dict[str, Any] = {"stage": stage.name, "config": config.constants()}
        for mode, hazards, profile in (
            ("plain", False, False),
            ("hazards", True, False),
            ("observed", True, True),
        ):
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


def _measure(
    stage: Any,
    kernel: jit.Kernel,
    config: Any,
    problem: Problem,
    a: Any,
    b: Any,
    hazards: bool,
    profile: bool,
) -> dict[str, float]:
    import torch

    cold, warm = launching.translation_seconds(kernel.ptx, kernel.kernel, hazards, profile, REPEATS)
    d = torch.empty(problem.m, problem.n, dtype=torch.bfloat16)
    launch = stage.launch(a, b, d, problem, config)
    args = [emulated.tensor_map(arg) if hasattr(arg, "box") else arg for arg in launch.args]
    reports = [
        emulator.launch(
            kernel.ptx, launch.grid, launch.block, args, kernel.kernel, launch.shared, cluster=launch.cluster, hazards=hazards, profile=profile,
        )
        for _ in range(REPEATS + 1)
    ][1:]  # fmt: skip
    seconds = statistics.median(report.seconds for report in reports)
    return {
        "run_s": seconds,
        "lane_instructions": reports[0].counters["instructions"],
        "lane_instructions_per_s": reports[0].counters["instructions"] / seconds,
        "translate_cold_s": cold,
        "translate_stored_s": statistics.median(warm),
    }


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
