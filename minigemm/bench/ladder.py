"""The ladder: TFLOPS of every stage on a Hopper GPU, beside torch's cuBLASLt."""

from __future__ import annotations

import datetime
import functools
import statistics
from collections.abc import Callable
from typing import Any

from .. import hopper, quantize
from ..kernels import stages
from ..machine import hopper_gpu, identity
from ..types import Config, Product
from .timing import FLUSHED, gpu_seconds

__all__ = ["ladder", "ladder_as_text"]

PRODUCTS = (Product(4096, 4096, 4096), Product(4096, 7168, 2048))
ROUNDS = 12
CUBLASLT = "torch._scaled_mm (cuBLASLt, fast accumulation)"
#: Configs besides each stage's default: neighbouring stages get the same tiles, so that a step can be told
#: from a tile.
VARIANTS: dict[str, tuple[dict[str, int], ...]] = {
    "s05_pipelined": ({"block_m": 128, "block_n": 128, "stages": 4},),
    "s06_warp_specialized": (
        {"block_m": 128, "block_n": 128, "stages": 5},
        {"block_m": 128, "block_n": 192, "stages": 4},
        {"block_m": 256, "block_n": 128, "stages": 3},
    ),
    "s07_promoted": (
        {"block_m": 128, "block_n": 128, "stages": 5},
        {"block_m": 128, "block_n": 160, "stages": 4},
        {"block_m": 128, "block_n": 192, "stages": 4},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
    ),
}

Calls = dict[tuple[str, Config | None], Callable[[], Any]]


def ladder(rounds: int = ROUNDS) -> dict[str, Any]:
    """Time every stage on the Hopper GPU at hand, beside torch's cuBLASLt, at PRODUCTS.

    Raises:
        ValueError: there is no Hopper GPU.
    """
    device = hopper_gpu("bench --ladder")
    machine = identity(device)
    chip = hopper.chip_of(machine["gpu"])
    return {
        "what": "TFLOPS by stage, python -m minigemm bench --ladder",
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "protocol": f"GPU time of all kernels of a call by torch.profiler, median of {rounds} rounds interleaved over "
        f"all of them after 2 that warm up; {FLUSHED}; LLM-like activations and normal weights; floor: the "
        f"{chip.source}'s rates",
        "stages": [run for product in PRODUCTS for run in _runs(product, chip, device, rounds)],
    }


def _runs(product: Product, chip: hopper.Chip, device: Any, rounds: int) -> list[dict[str, Any]]:
    """Return a run of each stage and config, and of cuBLASLt."""
    m, n, k, *_ = product
    calls, defaults = _calls(product, device)
    runs = []
    for (name, config), times in gpu_seconds(calls, device, rounds).items():
        median = statistics.median(times)
        runs.append(
            {
                "stage": name,
                "m": m,
                "n": n,
                "k": k,
                "runtime": "cuda",
                "config": config.constants() if config else {},
                "default": config is None or config == defaults[name],
                "run_s": median,
                "fastest_s": min(times),
                "slowest_s": max(times),
                "tflops": 2 * m * n * k / median / 1e12,
                "floor_share": chip.floor(m, n, k) / median,
            }
        )
    return runs


def _calls(product: Product, device: Any) -> tuple[Calls, dict[str, Config]]:
    """Return the calls by stage and config, and each stage's default config."""
    import torch

    # Every stage gets the same numbers, quantized as it wants them.
    x = quantize.activations(product.m, product.k, device=device)
    w = quantize.weights(product.n, product.k, device=device)
    fine = quantize.quantize(x, "1x128"), quantize.quantize(w, "128x128")
    per_tensor = quantize.quantize(x, "tensor"), quantize.quantize(w, "tensor")

    calls: Calls = {}
    defaults = {}
    for module in stages():
        stage = module.stage
        a, b = per_tensor if stage.granularities[0] == "tensor" else fine
        default = defaults[stage.name] = stage.default_config(product)
        variants = (stage.config(**fields) for fields in VARIANTS.get(stage.name, ()))
        for config in (default, *variants):
            calls[stage.name, config] = functools.partial(stage.gemm, a, b, config)

    a, b = per_tensor
    options = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    cublaslt = functools.partial(torch._scaled_mm, scale_a=a.scale, scale_b=b.scale, **options)
    calls[CUBLASLT, None] = functools.partial(cublaslt, a.data, b.data.T)
    return calls, defaults


def ladder_as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for run in results["stages"]:
        config = run["config"]
        shown = [name for name in ("BLOCK_M", "BLOCK_N", "STAGES") if name in config]
        tile = " ".join(f"{name.lower()}={config[name]}" for name in shown)
        size = f"{run['m']}x{run['n']}x{run['k']}"
        time = f"{run['run_s'] * 1e6:9.1f} us  {run['tflops']:7.1f} TFLOPS  {run['floor_share']:6.1%}"
        note = "" if run["default"] else "  (not the default)"
        lines.append(f"{size}  {run['stage']:22.22s} {tile:36s} {time}{note}")
    return "\n".join(lines)
