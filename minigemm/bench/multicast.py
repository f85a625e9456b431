"""The gain of multicast: s09_multicast, with clusters along m or n, beside s08_persistent at equal tiles."""

from __future__ import annotations

import datetime
import functools
import statistics
from typing import Any

from .. import quantize
from ..kernels import s08_persistent, s09_multicast
from ..machine import hopper_gpu, identity
from ..types import Product
from .timing import FLUSHED, gpu_seconds

__all__ = ["multicast_as_text", "multicast_gain", "staged"]

PRODUCTS = (Product(4096, 4096, 7168), Product(4096, 7168, 2048), Product(4096, 24576, 1536))
TILES: tuple[dict[str, Any], ...] = (
    {"block_m": 256, "block_n": 128, "stages": 3},
    {"block_m": 128, "block_n": 128, "stages": 5},
    {"block_m": 128, "block_n": 192, "stages": 4},
)
CLUSTERS = {"none": (1, 1), "along m": (2, 1), "along n": (1, 2)}  # "none" is s08_persistent
ROUNDS = 30


def multicast_gain(rounds: int = ROUNDS) -> dict[str, Any]:
    """Time every tile of TILES at every product of PRODUCTS, without clusters and with both kinds of them.

    Raises:
        ValueError: there is no Hopper GPU.
        RuntimeError: a cluster changes a bit of the result, so that the times cannot be compared.
    """
    device = hopper_gpu("bench --multicast")
    return {
        "what": "s08_persistent beside s09_multicast, python -m minigemm bench --multicast",
        "date": datetime.date.today().isoformat(),
        "machine": identity(device),
        "protocol": f"GPU time by torch.profiler, median of {rounds} rounds interleaved over all of a problem after "
        f"2 that warm up; {FLUSHED}; LLM-like activations and normal weights; gain: of TFLOPS over s08_persistent "
        "with the same tile, whose bits each result has",
        "rows": [row for product in PRODUCTS for row in _rows(product, device, rounds)],
    }


def _rows(product: Product, device: Any, rounds: int) -> list[dict[str, Any]]:
    """Return a row of results for each kind of cluster and each tile."""
    import torch

    # One call for each kind of cluster and each tile; all of them give the same bits.
    m, n, k, *_ = product
    a = quantize.quantize(quantize.activations(m, k, device=device), "1x128")
    b = quantize.quantize(quantize.weights(n, k, device=device), "128x128")
    configs = {(cluster, i): staged(cluster, tile) for i, tile in enumerate(TILES) for cluster in CLUSTERS}
    calls = {key: functools.partial(stage.gemm, a, b, config) for key, (stage, config) in configs.items()}
    for (cluster, i), call in calls.items():
        if not torch.equal(call(), calls["none", i]()):
            raise RuntimeError(f"{cluster}, {TILES[i]}, {m} x {n} x {k}: not the bits of s08_persistent")

    seconds = gpu_seconds(calls, device, rounds)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    rows = []
    for (cluster, i), times in seconds.items():
        stage, config = configs[cluster, i]
        median = medians[cluster, i]
        rows.append(
            {
                "stage": stage.name,
                "cluster": cluster,
                "m": m,
                "n": n,
                "k": k,
                "config": config.constants(),
                "run_s": median,
                "fastest_s": min(times),
                "slowest_s": max(times),
                "tflops": 2 * m * n * k / median / 1e12,
                "gain": medians["none", i] / median - 1,
            }
        )
    return rows


def staged(cluster: str, tile: dict[str, Any]) -> tuple[Any, Any]:
    """Return the stage that runs this kind of CLUSTERS with this tile, and its config."""
    if cluster == "none":
        return s08_persistent.stage, s08_persistent.Config(**tile)
    cluster_m, cluster_n = CLUSTERS[cluster]
    return s09_multicast.stage, s09_multicast.Config(**tile, cluster_m=cluster_m, cluster_n=cluster_n)


def multicast_as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for run in results["rows"]:
        size = f"{run['m']}x{run['n']}x{run['k']}"
        tile = f"{run['config']['BLOCK_M']}x{run['config']['BLOCK_N']}, {run['config']['STAGES']} stages"
        time = f"{run['run_s'] * 1e6:9.1f} us  {run['tflops']:7.1f} TFLOPS  {run['gain']:+7.1%}"
        lines.append(f"{size:16} {tile:19} {run['cluster']:8} {time}")
    return "\n".join(lines)
