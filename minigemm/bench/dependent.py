"""The gain of dependent launches: chains of products under `set_pdl` off, on, and on with early weights."""

from __future__ import annotations

import contextlib
import datetime
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .. import api, quantize
from ..hopper import FLUSH_BYTES
from ..layout import ceil_div
from ..machine import hopper_gpu, identity
from ..plan import choose, prepared

__all__ = ["pdl_as_text", "pdl_gain"]

ROWS = (1, 8, 64, 128)
#: Two layers each, (n, k): the second has the shape that turns the first's d into a's again.
LAYERS = (((2048, 7168), (7168, 2048)), ((4096, 7168), (7168, 4096)))
#: The arguments of `set_pdl`.
SETTINGS = {"off": (False, False), "on": (True, False), "early weights": (True, True)}
ROUNDS = 30
REPLAYS = 10  # of a chain's graph in a round
WEIGHTS = FLUSH_BYTES  # bytes of a chain's weights: more than L2 holds, so each is read from memory


def pdl_gain(rounds: int = ROUNDS) -> dict[str, Any]:
    """Time chains of two layers in turn at each number of ROWS, under each of SETTINGS.

    Raises:
        ValueError: there is no Hopper GPU.
        RuntimeError: a setting changes a bit of a result, so that the times cannot be compared.
    """
    device = hopper_gpu("bench --pdl")
    before = choose.settings()
    try:
        rows = [_row(m, layers, device, rounds) for layers in LAYERS for m in ROWS]
    finally:
        prepared.change(pdl=before.pdl, early_weights=before.early_weights)
    return {
        "what": "chains of dependent products under minigemm.set_pdl, python -m minigemm bench --pdl",
        "date": datetime.date.today().isoformat(),
        "machine": identity(device),
        "protocol": f"a CUDA graph holds a chain: two layers in turn, with new weights each time, {WEIGHTS >> 20} MiB "
        f"or more in all; time by events around {REPLAYS} replays after one that warms up, divided by the products; "
        f"median of {rounds} rounds, settings interleaved; no flush, since kernels overlap; a is quantized before, "
        "so nothing runs between products; gain: of speed over off, whose bits each result has",
        "rows": rows,
    }


def _row(m: int, layers: tuple[tuple[int, int], ...], device: torch.device, rounds: int) -> dict[str, Any]:
    """Return the row of results of one kind of chain."""
    # As many pairs of layers as fill the memory; each product has its own weights and its own d.
    links = ceil_div(WEIGHTS, sum(n * k for n, k in layers))
    inputs = [quantize.quantize(quantize.activations(m, k, device=device), "1x128") for _, k in layers]
    chain = []
    for seed in range(links):
        for a, (n, k) in zip(inputs, layers, strict=True):
            b = quantize.quantize(quantize.weights(n, k, seed=seed, device=device), "128x128")
            chain.append((a, b, torch.empty(m, n, dtype=torch.bfloat16, device=device)))

    # The setting holds while the chain is captured.
    replays = {}
    right: list[torch.Tensor] = []
    for name, setting in SETTINGS.items():
        api.set_pdl(*setting)
        replays[name] = _captured(chain, device)
        for *_, d in chain:
            d.fill_(float("nan"))
        replays[name]()
        right = right or [d.clone() for *_, d in chain]
        if not all(torch.equal(d, wanted) for (*_, d), wanted in zip(chain, right, strict=True)):
            raise RuntimeError(f"set_pdl{setting}, m = {m}, layers {layers}: not the bits of set_pdl(False)")

    seconds = _timed(replays, device, rounds, len(chain))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "m": m,
        "layers": [list(layer) for layer in layers],
        "products": len(chain),
        "run_s": medians,
        "range_s": {name: [min(times), max(times)] for name, times in seconds.items()},
        "gain": {name: medians["off"] / median - 1 for name, median in medians.items()},
    }


def _captured(chain: list[Any], device: torch.device) -> Callable[[], Any]:
    """Return what replays the graph of a chain. Its products run once before, which loads the kernels."""
    graph = torch.cuda.CUDAGraph()
    for place in (contextlib.nullcontext(), torch.cuda.graph(graph)):
        with place:
            for a, b, d in chain:
                api.fp8_gemm_nt(a, b, d)
        torch.cuda.synchronize(device)
    return graph.replay


def _timed(
    replays: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int, products: int
) -> dict[str, list[float]]:
    """Return the GPU seconds of a product of each chain, one mean per round."""
    seconds: dict[str, list[float]] = {name: [] for name in replays}
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(rounds):
        for name, replay in replays.items():
            replay()
            start.record()
            for _ in range(REPLAYS):
                replay()
            end.record()
            torch.cuda.synchronize(device)
            seconds[name].append(start.elapsed_time(end) / 1e3 / REPLAYS / products)
    return seconds


def pdl_as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    lines += ["microseconds a product; in brackets the gain of speed over off"]
    for run in results["rows"]:
        layers = " -> ".join(f"{run['m']}x{n}x{k}" for n, k in run["layers"])
        times = [
            f"{name} {each * 1e6:.2f} us ({run['gain'][name]:+.1%})" for name, each in run["run_s"].items()
        ]
        lines.append(f"{layers:33} {'  '.join(times)}")
    return "\n".join(lines)
