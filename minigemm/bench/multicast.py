"""What multicast pays: s08_persistent beside s09_multicast with clusters along m and along n, at the same tiles, on a Hopper GPU."""

from __future__ import annotations

import datetime
import functools
import statistics
from typing import Any

from .. import quantize
from ..kernels import s08_persistent, s09_multicast
from ..machine import best_device, identity
from ..types import Problem
from .timing import FLUSHED, gpu_seconds

__all__ = ["multicast_as_text", "multicast_gain", "staged"]

PROBLEMS = (Problem(4096, 4096, 7168), Problem(4096, 7168, 2048), Problem(4096, 24576, 1536))
TILES: tuple[dict[str, Any], ...] = (
    {"block_m": 256, "block_n": 128, "stages": 3}, {"block_m": 128, "block_n": 128, "stages": 5}, {"block_m": 128, "block_n": 192, "stages": 4},
)  # fmt: skip
CLUSTERS = {"none": (1, 1), "along m": (2, 1), "along n": (1, 2)}  # "none" is s08_persistent
ROUNDS = 30


def multicast_gain(rounds: int = ROUNDS) -> dict[str, Any]:
    """Times of every tile of TILES at every problem of PROBLEMS, without clusters and with both kinds of them. ValueError where there is no Hopper GPU.

    RuntimeError where a cluster changes a bit of the result: then there is nothing to compare.
    """
    import torch

    device = best_device()
    if device.type != "cuda":
        raise ValueError("bench --multicast needs a Hopper GPU (compute capability 9.0), and torch sees none")
    rows = []
    for problem in PROBLEMS:
        a = quantize.quantize(quantize.activations(problem.m, problem.k, device=device), "1x128")
        b = quantize.quantize(quantize.weights(problem.n, problem.k, device=device), "128x128")
        configs = {
            (cluster, number): staged(cluster, tile)
            for number, tile in enumerate(TILES)
            for cluster in CLUSTERS
        }
        calls = {key: functools.partial(stage.gemm, a, b, config) for key, (stage, config) in configs.items()}
        for cluster, number in calls:
            if not torch.equal(calls[cluster, number](), calls["none", number]()):
                raise RuntimeError(f"{cluster}, {TILES[number]}, {problem}: not the bits of s08_persistent")
        seconds = gpu_seconds(calls, device, rounds)
        without = {number: statistics.median(seconds["none", number]) for number in range(len(TILES))}
        for (cluster, number), times in seconds.items():
            stage, config = configs[cluster, number]
            median = statistics.median(times)
            rows.append({
                "stage": stage.name, "cluster": cluster, "m": problem.m, "n": problem.n, "k": problem.k, "config": config.constants(), "run_s": median,
                "fastest_s": min(times), "slowest_s": max(times), "tflops": 2 * problem.m * problem.n * problem.k / median / 1e12,
                "gain": without[number] / median - 1,
            })  # fmt: skip
    return {
        "what": "s08_persistent beside s09_multicast, python -m minigemm bench --multicast",
        "date": datetime.date.today().isoformat(),
        "machine": identity(device),
        "protocol": f"GPU time by torch.profiler, median of {rounds} rounds interleaved over all of a problem after 2 that warm up; {FLUSHED}; LLM-like "
        "activations and normal weights; gain: of TFLOPS over s08_persistent with the same tile, whose bits each result has",
        "rows": rows,
    }


def staged(cluster: str, tile: dict[str, Any]) -> tuple[Any, Any]:
    """The stage that runs this kind of CLUSTERS with this tile, and its config."""
    if cluster == "none":
        return s08_persistent.stage, s08_persistent.Config(**tile)
    cluster_m, cluster_n = CLUSTERS[cluster]
    return s09_multicast.stage, s09_multicast.Config(**tile, cluster_m=cluster_m, cluster_n=cluster_n)


def multicast_as_text(results: dict[str, Any]) -> str:
    """A table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for run in results["rows"]:
        tile = f"{run['config']['BLOCK_M']}x{run['config']['BLOCK_N']}, {run['config']['STAGES']} stages"
        size = f"{run['m']}x{run['n']}x{run['k']}"
        lines.append(
            f"{size:16} {tile:19} {run['cluster']:8} {run['run_s'] * 1e6:9.1f} us  {run['tflops']:7.1f} TFLOPS  {run['gain']:+7.1%}"
        )
    return "\n".join(lines)
