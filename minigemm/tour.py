"""The main job: every stage on one problem, with what it did and whether it is right."""

from __future__ import annotations

import functools
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch

from . import chips, doctor, jit, quantize
from .emulator import tensor_core
from .kernels import stages
from .kernels.stage import Stage
from .layout import ceil_div
from .quantize import BLOCK, Quantized
from .runtime.emulated import observe
from .types import Problem

__all__ = ["TOLERANCE", "StageResult", "best_device", "machine", "relative_error", "run", "tensor_core_result", "tolerance"]

TOLERANCE = 3e-3  # of ||d - ref||_F / ||ref||_F: BF16 rounds to 1.7e-3 on average
SAMPLE = (64, 256)  # rows and columns of d for which the tensor core's own error is computed
FLUSH_BYTES = 256 << 20  # zeroed before each timed call: more than the L2 cache holds


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


def best_device() -> torch.device:
    """The first Hopper GPU, or the CPU."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if torch.cuda.get_device_capability(index) == (9, 0):
                return torch.device("cuda", index)
    return torch.device("cpu")


def machine(device: torch.device) -> dict[str, Any]:
    """What the results were made on."""
    found: dict[str, Any] = {
        "runtime": "cuda" if device.type == "cuda" else "emulated",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nvrtc": jit.compiler_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.update(gpu=properties.name, driver=doctor.driver_version(), sms=properties.multi_processor_count, cuda=torch.version.cuda)
    return found


def run(
    problem: Problem | None = None, chosen: tuple[ModuleType, ...] | None = None, seed: int = 0, device: torch.device | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[StageResult]:  # fmt: skip
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
    module: ModuleType, problem: Problem, a: Quantized, b: Quantized, reference: torch.Tensor, device: torch.device,
    progress: Callable[[str], None],
) -> StageResult:  # fmt: skip
    stage = module.stage
    config = stage.default_config(problem)
    row: dict[str, Any] = {
        "stage": stage.name, "title": stage.title, "idea": stage.idea, "m": problem.m, "n": problem.n, "k": problem.k,
        "runtime": "cuda" if device.type == "cuda" else "emulated", "config": config.constants(),
        "compile_s": 0.0, "warm_s": 0.0, "translate_s": 0.0, "run_s": 0.0, "rel_err": float("nan"), "hazards": [],
    }  # fmt: skip
    try:
        progress(f"{stage.name}: compiling")
        row["compile_s"], row["warm_s"] = jit.measure(stage.source, config, name=stage.name, kernel=stage.kernel)
        progress(f"{stage.name}: running")
        with observe() as seen:
            started = time.perf_counter()
            d = stage.gemm(a, b, config)
            row["run_s"] = time.perf_counter() - started
        if seen:
            report = seen[0]
            row.update(run_s=report.seconds, translate_s=report.translate_seconds, counters=dict(report.counters))
            row["hazards"] = [str(hazard) for hazard in report.hazards]
        elif device.type == "cuda":
            row["run_s"] = time_on_gpu(lambda: stage.gemm(a, b, config), device)
            row["tflops"] = 2 * problem.m * problem.n * problem.k / row["run_s"] / 1e12
            row["floor_share"] = chips.of(torch.cuda.get_device_name(device)).floor(problem.m, problem.n, problem.k) / row["run_s"]
        row["rel_err"] = relative_error(d, reference)
        if not row["rel_err"] <= (limit := tolerance(stage, a, b, reference)):
            row["error"] = f"relative error {row['rel_err']:.2e} is not below {limit:.1e}"
        elif row["hazards"]:
            row["error"] = row["hazards"][0]
    except Exception as error:  # one stage's failure is a row of the table, not the end of it
        row["error"] = f"{type(error).__name__}: {error}"
    return StageResult(**row)


def relative_error(d: torch.Tensor, reference: torch.Tensor) -> float:
    """||d - ref||_F / ||ref||_F in float64; 0 where both are empty or zero."""
    norm = reference.norm().item()
    distance = (d.double() - reference).norm().item()
    return distance / norm if norm else distance


def tolerance(stage: Stage, a: Quantized, b: Quantized, reference: torch.Tensor) -> float:
    """The relative error below which a stage's result is right.

    3e-3, or what BF16's rounding alone costs where a few elements decide (up to 2**-8). Where all of k is summed in the tensor core: 2e-3 plus the
    error that its rule has for these inputs, on a sample of rows and columns. An error before the rounding can add up to twice itself behind it.
    """
    rounding = 1.01 * relative_error(reference.bfloat16(), reference)
    if stage.sums == "fp32" or not reference.numel():
        return max(TOLERANCE, rounding)
    rows, columns = SAMPLE
    result = tensor_core_result(stage, _first(a, rows), _first(b, columns))
    own = relative_error(result, reference[:rows, :columns].cpu())
    return max(TOLERANCE if stage.sums == "promoted" else 2e-3 + own, rounding + 2 * own)


def _first(q: Quantized, rows: int) -> Quantized:
    """The first rows (a multiple of 128, or fewer than 128) with their scales, on the CPU."""
    blocks = {"tensor": None, "1x128": rows, "128x128": ceil_div(rows, BLOCK)}[q.granularity]
    return Quantized(q.data[:rows].cpu(), q.scale.cpu() if blocks is None else q.scale[:blocks].cpu(), q.granularity)


def tensor_core_result(stage: Stage, a: Quantized, b: Quantized, splits: int = 1) -> torch.Tensor:
    """float32 (m, n) on the CPU: what a stage computes, every bit of it, before it rounds to the dtype of d. For the stages with WGMMA.

    splits: of the config; that many sums take every so-manieth 128 of k, and are added up in order.
    """
    a, b = a.to("cpu"), b.to("cpu")
    if stage.sums == "tensor core":
        return _sums(a.data, b.data) * (a.scale * b.scale)
    accs = [np.zeros((a.data.shape[0], b.data.shape[0]), np.float32) for _ in range(splits)]
    scale_b = b.scale.repeat_interleave(BLOCK, 0)[: b.data.shape[0]]
    for step in range(a.scale.shape[1]):
        columns = slice(step * BLOCK, (step + 1) * BLOCK)
        partial = _sums(a.data[:, columns], b.data[:, columns])
        scale = (a.scale[:, step, None] * scale_b[None, :, step]).numpy()
        # a long double holds the product exactly and the sum nearly so: what a fused multiply-add rounds once
        exact = scale.astype(np.longdouble) * partial.numpy() + accs[step % splits]
        accs[step % splits] = exact.astype(np.float32)
    return torch.from_numpy(functools.reduce(np.add, accs))


def _sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """float32 (m, n): the tensor core's sums of all of k in one accumulator, unscaled."""
    (m, k), n = a.shape, b.shape[0]

    def padded(x: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.nn.functional.pad(x.view(torch.uint8), (0, -k % tensor_core.STEP, 0, rows))

    left, right = padded(a, -m % tensor_core.ROWS), padded(b, 0)
    tiles = [tensor_core.wgmma(left[row : row + tensor_core.ROWS], right) for row in range(0, m, tensor_core.ROWS)]
    return torch.cat(tiles)[:m] if tiles else torch.zeros(m, n)


def time_on_gpu(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median seconds of one call by events, L2 flushed before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times = []
    for _ in range(repeats + 2):
        for _ in range(8):  # half a millisecond, in which the host prepares the call: the events then see the GPU's work alone
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(torch.cuda.current_stream(device))
        call()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times[2:])[repeats // 2]
