"""The emulator's speed on one core, which can be measured on any machine."""

from __future__ import annotations

import datetime
import platform
import statistics
from typing import Any

from .. import emulator, quantize
from ..compiler import jit
from ..emulator.translate import cached
from ..kernels import stages
from ..runtime import emulated
from ..types import Launch, Product, TensorMap

__all__ = ["as_text", "emulator_speed"]

REPEATS = 7
#: The emulator's modes by their name in results: (hazards, profile).
MODES = {"plain": (False, False), "hazards": (True, False), "observed": (True, True)}


def emulator_speed() -> dict[str, Any]:
    """Measure every stage on a 128x128x256 product, as medians of 7 runs.

    For each stage and mode: seconds of a run, lane-instructions/s, and the seconds of a translation. The
    modes are `plain` without hazards and counters, `hazards` with the race detector, as `gemm` runs, and
    `observed` with the counters too.
    """
    product = Product(128, 128, 256)
    x, w = quantize.activations(product.m, product.k), quantize.weights(product.n, product.k)
    return {
        "what": "emulator speed, one core, 128x128x256",
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "python": platform.python_version(),
        "protocol": f"median of {REPEATS} launches after one that warms up; translation: once without any cache, "
        f"median of {REPEATS} from the stored code",
        "stages": [_row(module.stage, product, x, w) for module in stages()],
    }


def _row(stage: Any, product: Product, x: Any, w: Any) -> dict[str, Any]:
    """Return a stage's config and its figures in each mode."""
    import torch

    config = stage.default_config(product)
    kernel = jit.build(stage.source, config, name=stage.name, symbol=stage.symbol)
    a, b = map(quantize.quantize, (x, w), stage.granularities)
    d = torch.empty(product.m, product.n, dtype=torch.bfloat16)
    launch = stage.launch(a, b, d, product, config)
    modes = {mode: _measure(kernel, launch, *asked) for mode, asked in MODES.items()}
    return {"stage": stage.name, "config": config.constants(), **modes}


def _measure(kernel: jit.Kernel, launch: Launch, hazards: bool, profile: bool) -> dict[str, float]:
    """Translate and run a launch; return its figures in one mode."""
    # The translation is timed apart from the runs: without any cache, and loaded from the store.
    cold, stored = cached.translation_seconds(kernel.ptx, kernel.symbol, hazards, profile, REPEATS)
    args = [emulated.tensor_map(arg) if isinstance(arg, TensorMap) else arg for arg in launch.args]
    runs = [
        emulator.launch(
            kernel.ptx,
            launch.grid,
            launch.block,
            args,
            kernel.symbol,
            launch.shared,
            cluster=launch.cluster,
            hazards=hazards,
            profile=profile,
        )
        for _ in range(1 + REPEATS)
    ]

    # The median keeps one slow run from deciding the time.
    seconds = statistics.median(report.seconds for report in runs[1:])  # the first one warms up
    instructions = runs[0].counters["instructions"]
    return {
        "run_s": seconds,
        "lane_instructions": instructions,
        "lane_instructions_per_s": instructions / seconds,
        "translate_cold_s": cold,
        "translate_stored_s": statistics.median(stored),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['processor']}, {results['date']}"]
    for row in results["stages"]:
        for mode in MODES:
            r = row[mode]
            run = (
                f"{r['run_s'] * 1e3:7.1f} ms  {r['lane_instructions_per_s'] / 1e6:6.0f} M lane-instructions/s"
            )
            translation = f"{r['translate_cold_s']:.2f} s, stored {r['translate_stored_s'] * 1e3:.0f} ms"
            lines.append(f"{row['stage']:10s} {mode:9s} {run}  translation {translation}")
    return "\n".join(lines)
