"""The kernels that quantize, beside a copy that moves as many bytes and beside the operations of torch."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch

from .. import quantize
from ..kernels import quantizers
from ..machine import hopper_gpu, identity
from .timing import FLUSH_BYTES, time_on_gpu

__all__ = ["quantize_as_text", "quantize_speed"]

SHAPES = ((4096, 7168), (64, 7168))
REPEATS = 30
#: Each kernel's call, and the same in operations of torch.
KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "1x128": (quantizers.quantize_1x128, lambda x: quantize.quantize(x, "1x128")),
    "128x128": (quantizers.quantize_128x128, lambda x: quantize.quantize(x, "128x128")),
    "transposed": (quantizers.quantize_transposed, lambda x: quantize.quantize(x.T, "1x128")),
    "swiglu": (quantizers.quantize_swiglu, lambda x: quantize.quantize(quantize.swiglu(x), "1x128")),
}


def quantize_speed(repeats: int = REPEATS) -> dict[str, Any]:
    """Time each of KINDS at each of SHAPES, the result's, from BF16.

    Raises:
        ValueError: there is no Hopper GPU.
        RuntimeError: a kernel's bits are not those of `quantize.quantize`, so that the times mean nothing.
    """
    device = hopper_gpu("bench --quantize")
    return {
        "what": "kernels that quantize BF16 to E4M3, python -m minigemm bench --quantize",
        "date": datetime.date.today().isoformat(),
        "machine": identity(device),
        "protocol": f"time by events, median of {repeats} calls after 2 that warm up, {FLUSH_BYTES >> 20} MiB zeroed "
        "before each; out is given; copy: torch's copy_ of half the bytes that the kernel reads and writes, which "
        "moves as many; torch: quantize.quantize, whose bits each result has",
        "rows": [_row(kind, m, k, device, repeats) for m, k in SHAPES for kind in KINDS],
    }


def _row(kind: str, m: int, k: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return the row of results of one kernel. Its x has (m, k) elements, or of gate and up (m, 2 * k)."""
    call, meaning = KINDS[kind]
    x = quantize.activations(m, 2 * k if kind == "swiglu" else k, device=device).to(torch.bfloat16)
    out, right = call(x), meaning(x)
    codes = [each.data.view(torch.uint8) for each in (out, right)]
    if not (torch.equal(*codes) and torch.equal(out.scale, right.scale)):
        raise RuntimeError(f"{kind}, {m} x {k}: not the bits of quantize.quantize")

    # A copy reads half of the bytes that it moves, and writes the other half.
    moved = sum(each.numel() * each.element_size() for each in (x, out.data, out.scale))
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = {
        "kernel": time_on_gpu(lambda: call(x, out=out), device, repeats),
        "copy": time_on_gpu(lambda: target.copy_(source), device, repeats),
        "torch": time_on_gpu(lambda: meaning(x), device, repeats),
    }
    return {"kind": kind, "m": m, "k": k, "bytes": moved, "run_s": seconds}


def quantize_as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for row in results["rows"]:
        seconds = row["run_s"]
        times = "  ".join(f"{name} {each * 1e6:8.2f} us" for name, each in seconds.items())
        share = f"{seconds['copy'] / seconds['kernel']:6.1%} of the copy's bandwidth"
        rate = f"{row['bytes'] / seconds['kernel'] / 1e12:5.2f} TB/s"
        lines.append(f"{row['kind']:10s} {row['m']:5d} x {row['k']}  {times}  {rate}  {share}")
    return "\n".join(lines)
