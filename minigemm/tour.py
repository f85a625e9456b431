"""The tour: every stage on one problem, with its counts, its times, and whether its result is right."""

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
from .types import Product
from .verify.judge import relative_error, tolerance

__all__ = ["StageResult", "run", "run_with_progress", "show"]


@dataclass(frozen=True)
class StageResult:
    """One row of the table. Times in seconds.

    Attributes:
        runtime: "emulated" or "cuda".
        compile_s: NVRTC's time, for both PTX and cubin.
        warm_s: the time to get the same from the disk cache.
        translate_s: the time from PTX to native code, in emulated runs.
        counters, hazards: what the emulator saw; empty in runs on a GPU.
        tflops, floor_share: of runs on a GPU. The floor is the least possible time; `floor_share` is its
            part of the measured one.
        error: why the stage is wrong, "" if it is right.
    """

    stage: str
    title: str
    idea: str
    m: int
    n: int
    k: int
    runtime: str
    compile_s: float
    warm_s: float
    translate_s: float
    run_s: float
    rel_err: float
    config: dict[str, int]
    counters: dict[str, Any] = field(default_factory=dict)
    hazards: list[str] = field(default_factory=list)
    tflops: float | None = None
    floor_share: float | None = None
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row in a form that JSON takes: a relative error that is no finite number is null."""
        return {**asdict(self), "rel_err": self.rel_err if math.isfinite(self.rel_err) else None}


def run(
    problem: Product | None = None,
    chosen: tuple[ModuleType, ...] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[StageResult]:
    """Run stages on quantized activations and weights like a language model's; return one result for each.

    Args:
        problem: the size of the product; None: each stage's own.
        chosen: the modules of the stages, by default all.
        seed: of the inputs.
        device: a Hopper GPU, or the CPU for the emulator; by default the best of this machine.
        progress: called with a text at each step, one at the start and two for each stage.
    """
    device = device or best_device()
    progress("quantizing")
    operands: dict[Any, tuple[Quantized, Quantized, torch.Tensor]] = {}
    results = []
    for module in chosen or stages():
        stage, size = module.stage, problem or module.stage.problem
        key = size, stage.granularities
        if key not in operands:  # stages with the same inputs share them
            x = quantize.activations(size.m, size.k, seed=seed, device=device)
            w = quantize.weights(size.n, size.k, seed=seed + 1, device=device)
            a, b = quantize.quantize(x, stage.granularities[0]), quantize.quantize(w, stage.granularities[1])
            operands[key] = a, b, quantize.reference(a, b)
        results.append(_one(module, size, *operands[key], device, progress))
    return results


def _one(
    module: ModuleType,
    problem: Product,
    a: Quantized,
    b: Quantized,
    reference: torch.Tensor,
    device: torch.device,
    progress: Callable[[str], None],
) -> StageResult:
    stage = module.stage
    config = stage.default_config(problem)
    row: dict[str, Any] = {
        "stage": stage.name, "title": stage.title, "idea": stage.idea,
        "m": problem.m, "n": problem.n, "k": problem.k,
        "runtime": "cuda" if device.type == "cuda" else "emulated", "config": config.constants(),
        "compile_s": 0.0, "warm_s": 0.0, "translate_s": 0.0, "run_s": 0.0, "rel_err": float("nan"), "hazards": [],
    }  # fmt: skip
    try:
        # Compile it, and run it once.
        progress(f"{stage.name}: compiling")
        row["compile_s"], row["warm_s"] = jit.measure(
            stage.source, config, name=stage.name, symbol=stage.symbol
        )
        progress(f"{stage.name}: running")
        with observe() as seen:
            started = time.perf_counter()
            d = stage.gemm(a, b, config)
            row["run_s"] = time.perf_counter() - started

        # The emulator has a report; a GPU is timed.
        if seen:
            report = seen[0]
            row["run_s"], row["translate_s"] = report.seconds, report.translate_seconds
            row["counters"] = dict(report.counters)
            row["hazards"] = [str(hazard) for hazard in report.hazards]
        elif device.type == "cuda":
            m, n, k = problem.m, problem.n, problem.k
            row["run_s"] = time_on_gpu(lambda: stage.gemm(a, b, config), device)
            row["tflops"] = 2 * m * n * k / row["run_s"] / 1e12
            gpu = hopper.chip_of(torch.cuda.get_device_name(device))
            row["floor_share"] = gpu.floor(m, n, k) / row["run_s"]

        # Judge the result.
        row["rel_err"] = relative_error(d, reference)
        if not row["rel_err"] <= (limit := tolerance(stage, a, b, reference)):
            row["error"] = f"relative error {row['rel_err']:.2e} is not below {limit:.1e}"
        elif row["hazards"]:
            row["error"] = row["hazards"][0]
    except Exception as error:  # one stage's failure is a row of the table, not the end of it
        row["error"] = f"{type(error).__name__}: {error}"
    return StageResult(**row)


def run_with_progress(
    problem: Product | None, chosen: tuple[ModuleType, ...] | None, seed: int, device: torch.device
) -> list[StageResult]:
    """`run`, with a bar in the terminal that shows how far it is."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("starting", total=2 * len(chosen or stages()) + 1)

        def heard(text: str) -> None:
            progress.update(task, description=text, advance=1)

        return run(problem, chosen, seed, device, heard)


def show(results: list[StageResult], machine: dict[str, Any]) -> None:
    """Print the results as a table of at most 80 columns. `machine` is its `identity`."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # The product, and where it ran.
    console, first = Console(), results[0]
    m, n, k = first.m, first.n, first.k
    where = machine.get("gpu") or "the Hopper emulator (no Hopper GPU here)"
    console.print(f"d ({m} x {n}) = a ({m} x {k}) @ b ({n} x {k}).T in FP8, on [bold]{where}[/bold]")

    # A row for each stage; its own size where that is another one.
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("stage", width=20)
    on_gpu = first.runtime == "cuda"
    costs = ("TFLOPS", "of the\nfloor") if on_gpu else _COUNTS
    for name in ("compile\nwarm", "run", "error", *costs):
        table.add_column(name, justify="right", no_wrap=True)
    for r in results:
        own = "" if (r.m, r.n, r.k) == (m, n, k) else f"\n{r.m} x {r.n} x {r.k}"
        table.add_row(
            f"[bold]{r.stage}[/bold]\n{r.idea}{own}",
            f"{r.compile_s:.2f} s\n{r.warm_s * 1e3:.1f} ms",
            _seconds(r.run_s),
            f"{r.rel_err:.1e}",
            *([f"{r.tflops or 0:.1f}", f"{r.floor_share or 0:.1%}"] if on_gpu else _counts(r.counters)),
            style="red" if r.error else "",
            end_section=r is not results[-1],
        )
    console.print(table)

    # The verdict.
    for r in results:
        if r.error:
            console.print(f"[red]{r.stage} is wrong:[/red] {r.error}", markup=True, highlight=False)
    if not any(r.error for r in results):
        judged = "Every stage is right: against float64 its error is what BF16 and its sums allow"
        console.print(f"{judged} ({machine['runtime']}).")


_COUNTS = ("instr.", "global\nshared", "TMA\ncopies", "bank\nconflicts")


def _counts(counters: dict[str, Any]) -> list[str]:
    """Return the cells of the columns _COUNTS."""

    def total(*names: str) -> int:
        return sum(counters.get(name, 0) for name in names)

    moved = total("global_load_bytes", "global_store_bytes", "tma_load_bytes", "tma_store_bytes")
    shared = total("shared_load_bytes", "shared_store_bytes")
    return [
        _short(total("instructions")),
        f"{_short(moved)}B\n{_short(shared)}B",
        str(total("tma_transactions")),
        _short(total("bank_conflicts")),
    ]


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} "
