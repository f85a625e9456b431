"""The program that ncu runs for `bench --ncu`: it makes each call, checks it, and shows ncu its second run.

    ncu ... python -m minigemm.bench._counted FILE SHAPE...

FILE says, after each call, what was called so far. Nothing imports this module: Python warns if a module that
it runs with -m is loaded already.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import quantize
from ..kernels import stages
from ..layout import ceil_div
from ..machine import best_device
from ..quantize import BLOCK
from ..types import Product
from ..verify.judge import relative_error, tolerance
from . import cases
from .counters import MULTICAST, STAGES, workload_of
from .failures import reason
from .multicast import CLUSTERS, PRODUCTS, TILES, staged
from .ncu import LABEL
from .peers import CublasLt, MiniGemm, Peer
from .workloads import Workload, dense

__all__ = ["asked_bytes", "main"]

LADDER = Product(4096, 4096, 4096)  # at which the stages are counted

#: The description of a call, and a function that compiles it, checks it and returns it.
Prepared = tuple[dict[str, Any], Callable[[], Callable[[], Any]]]


def main(file: Path, wanted: Iterable[str]) -> None:
    """Run each wanted call once under ncu's eyes, and store in `file` which were run and which failed."""
    device = best_device()
    torch.cuda.set_device(device)
    done: dict[str, Any] = {"calls": [], "skipped": []}
    calls = (call for text in wanted for call in _calls(text, device))
    for number, (about, prepare) in enumerate(calls):
        about["number"] = number
        try:
            _profile(number, prepare(), device)
            done["calls"].append(about)
        except Exception as error:  # a call that fails is a line in the results and does not end the run
            done["skipped"].append({**about, "reason": reason(error)})
        file.write_text(json.dumps(done), encoding="utf-8")


def _calls(text: str, device: torch.device) -> Iterator[Prepared]:
    if text == MULTICAST:
        return _cluster_calls(device)
    return _ladder_calls(device) if text == STAGES else _library_calls(workload_of(text), device)


def _profile(number: int, call: Callable[[], Any], device: torch.device) -> None:
    """Run the call, with all that it launches, between ncu's start and stop."""
    torch.cuda.empty_cache()  # ncu may save what is allocated before it replays a kernel
    torch.cuda.synchronize(device)
    torch.cuda.profiler.start()
    torch.cuda.nvtx.range_push(f"{LABEL}{number}")
    try:
        call()
        torch.cuda.synchronize(device)
    finally:
        torch.cuda.nvtx.range_pop()
        torch.cuda.profiler.stop()


def _about(who: str, workload: Workload, config: Mapping[str, int]) -> dict[str, Any]:
    """Return what a row of the results says of a call."""
    work = {"operations": workload.operations, "least_bytes": workload.bytes}
    return {"who": who, **workload.sizes(), **work, "config": dict(config)}


# --- the library


def _library_calls(workload: Workload, device: torch.device) -> Iterator[Prepared]:
    """Yield minigemm's call and, of a dense product, cuBLASLt's."""
    case = cases.make(workload, device)
    for peer in (MiniGemm(), CublasLt()):
        if not peer.refuses(workload):
            config = peer.config(workload, device) if isinstance(peer, MiniGemm) else {}
            yield _about(peer.name, workload, config), functools.partial(_checked, peer, case)


def _checked(peer: Peer, case: cases.Case) -> Callable[[], Any]:
    call = peer.prepare(case)
    _require(case.error(call(), peer.scales), peer.tolerance)
    return call


def _require(error: float, limit: float) -> None:
    if not error <= limit:  # NaN too
        raise ValueError(f"wrong: relative error {error:.1e}, above {limit:.0e}")


# --- the stages


def _ladder_calls(device: torch.device) -> Iterator[Prepared]:
    """Yield every stage with its default config, at LADDER."""
    m, n, k, *_ = LADDER
    x, w = quantize.activations(m, k, device=device), quantize.weights(n, k, device=device)

    def prepared(stage: Any, config: Any) -> Callable[[], Any]:
        a, b = map(quantize.quantize, (x, w), stage.granularities)
        call = functools.partial(stage.gemm, a, b, config)
        reference = quantize.reference(a, b)
        _require(relative_error(call(), reference), tolerance(stage, a, b, reference))
        return call

    for module in stages():
        stage = module.stage
        config = stage.default_config(LADDER)
        about = _about(stage.name, dense(m, n, k), config.constants())
        yield about, functools.partial(prepared, stage, config)


def _cluster_calls(device: torch.device) -> Iterator[Prepared]:
    """Yield s08_persistent, and s09_multicast with clusters along m and along n.

    They come at every tile of `bench --multicast`, for the first of its products.
    """
    product = PRODUCTS[0]
    m, n, k, *_ = product
    a = quantize.quantize(quantize.activations(m, k, device=device), "1x128")
    b = quantize.quantize(quantize.weights(n, k, device=device), "128x128")

    def prepared(stage: Any, config: Any, expected: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        call = functools.partial(stage.gemm, a, b, config)
        if not torch.equal(call(), expected()):
            raise ValueError("not the bits of s08_persistent")
        return call

    for tile in TILES:
        plain, plain_config = staged("none", tile)
        expected = functools.partial(plain.gemm, a, b, plain_config)
        for cluster in CLUSTERS:
            stage, config = staged(cluster, tile)
            about = _about(stage.name, dense(m, n, k), config.constants())
            about.update(cluster=cluster, asked_bytes=asked_bytes(product, config))
            yield about, functools.partial(prepared, stage, config, expected)


def asked_bytes(product: Product, config: Any) -> int:
    """Return the bytes of a, its scales and b that TMA reads: `tma_load_bytes` of the emulator.

    Every column of tiles reads all of a, and every row of tiles all of b. CTAs of a cluster that lie side by
    side read a once, and CTAs that lie below each other read b once.

    config: of s08_persistent or s09_multicast.
    """
    m, n, k, *_ = product
    columns = ceil_div(n, config.block_n * getattr(config, "cluster_n", 1))
    rows = ceil_div(m, config.block_m * getattr(config, "cluster_m", 1))
    return columns * m * (k + 4 * ceil_div(k, BLOCK)) + rows * n * k


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
