"""The main job: every stage on one problem, with what it did and whether it is right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import torch

from . import hopper, quantize
from .bench.timing import time_on_gpu
from .compiler import jit
from .kernels import stages
from .machine import best_device
from .quantize import Quantized
from .runtime.emulated import observe
from .types import Problem
from .verify.judge import relative_error, tolerance

__all__ = ["StageResult", "run"]


@dataclass(frozen=True)
class StageResult:
    """One row of the table. Times in seconds; `error` is "" when the stage is right."""

    stage: str
    title: str
    idea: str
    m: int
    n: int
    k: int
    runtime: str  # "emulated" or "cuda"
    compile_s: float  # cold: NVRTC, both PTX and cubin
    warm_s: float  # the same from the disk cache
    translate_s: float  # PTX to native code, emulated runs only
    run_s: float
    rel_err: float
    config: dict[str, int]
    counters: dict[str, Any] = field(default_factory=dict)  # emulated runs
    hazards: list[str] = field(default_factory=list)
    tflops: float | None = None  # GPU runs
    floor_share: float | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: an error that was not measured, or is no number, is null."""
        return {**asdict(self), "rel_err": self.rel_err if math.isfinite(self.rel_err) else None}


def run(
    problem: Problem | None = None,
    chosen: tuple[ModuleType, ...] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[StageResult]:
    """Run stages on quantized LLM-like activations and weights of one problem, or each on its own; one result each. `progress` hears what is going on."""
    device = device or best_device()
    progress("quantizing")
    operands: dict[Any, tuple[Quantized, Quantized, torch.Tensor]] = {}
    results = []
    for module in chosen or stages():
        stage, size = module.stage, problem or module.stage.problem
        if (size, stage.granularities) not in operands:
            x = quantize.activations(size.m, size.k, seed=seed, device=device)
            w = quantize.weights(size.n, size.k, seed=seed + 1, device=device)
            a, b = quantize.quantize(x, stage.granularities[0]), quantize.quantize(w, stage.granularities[1])
            operands[size, stage.granularities] = a, b, quantize.reference(a, b)
        results.append(_one(module, size, *operands[size, stage.granularities], device, progress))
    return results


def _one(
    module: ModuleType,
    problem: Problem,
    a: Quantized,
    b: Quantized,
    reference: torch.Tensor,
    device: torch.device,
    progress: Callable[[str], None],
) -> StageResult:
    stage = module.stage
    config = stage.default_config(problem)
    row: dict[str, Any] = {
        "stage": stage.name, "title": stage.title, "idea": stage.idea, "m": problem.m, "n": problem.n, "k": problem.k,
        "runtime": "cuda" if device.type == "cuda" else "emulated", "config": config.constants(),
        "compile_s": 0.0, "warm_s": 0.0, "translate_s": 0.0, "run_s": 0.0, "rel_err": float("nan"), "hazards": [],
    }  # fmt: skip
    try:
        progress(f"{stage.name}: compiling")
        row["compile_s"], row["warm_s"] = jit.measure(
            stage.source, config, name=stage.name, kernel=stage.kernel
        )
        progress(f"{stage.name}: running")
        with observe() as seen:
            started = time.perf_counter()
            d = stage.gemm(a, b, config)
            row["run_s"] = time.perf_counter() - started
        if seen:
            report = seen[0]
            row.update(
                run_s=report.seconds, translate_s=report.translate_seconds, counters=dict(report.counters)
            )
            row["hazards"] = [str(hazard) for hazard in report.hazards]
        elif device.type == "cuda":
            row["run_s"] = time_on_gpu(lambda: stage.gemm(a, b, config), device)
            row["tflops"] = 2 * problem.m * problem.n * problem.k / row["run_s"] / 1e12
            row["floor_share"] = (
                hopper.of(torch.cuda.get_device_name(device)).floor(problem.m, problem.n, problem.k)
                / row["run_s"]
            )
        row["rel_err"] = relative_error(d, reference)
        if not row["rel_err"] <= (limit := tolerance(stage, a, b, reference)):
            row["error"] = f"relative error {row['rel_err']:.2e} is not below {limit:.1e}"
        elif row["hazards"]:
            row["error"] = row["hazards"][0]
    except Exception as error:  # one stage's failure is a row of the table, not the end of it
        row["error"] = f"{type(error).__name__}: {error}"
    return StageResult(**row)
