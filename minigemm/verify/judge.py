"""Whether a result is right: its error against the float64 product, and the error that is allowed.

The bound knows how a stage sums: in FP32, in the tensor core's short accumulator, or promoted to FP32 every
128 along k.
"""

from __future__ import annotations

import numpy as np
import torch

from ..emulator import tensor_core
from ..kernels.stage import Stage
from ..layout import ceil_div
from ..quantize import BLOCK, Quantized

__all__ = ["TOLERANCE", "relative_error", "tensor_core_result", "tolerance"]

TOLERANCE = 3e-3  # of ||d - ref||_F / ||ref||_F: BF16 rounds to 1.7e-3 on average
SAMPLE = (64, 256)  # rows and columns of d for which the tensor core's own error is computed


def relative_error(d: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ||d - ref||_F / ||ref||_F in float64; 0 where both are empty or zero."""
    norm = reference.norm().item()
    distance = (d.double() - reference).norm().item()
    return distance / norm if norm else distance


def tolerance(stage: Stage, a: Quantized, b: Quantized, reference: torch.Tensor) -> float:
    """Return the relative error below which a stage's result is right.

    3e-3, or what BF16's rounding alone costs where a few elements decide (up to 2**-8). Where the tensor core
    sums all of k: 2e-3 plus the error that its rule has for these inputs, on a sample of rows and columns. An
        error before the
    rounding can add up to twice itself behind it.
    """
    rounding = 1.01 * relative_error(reference.bfloat16(), reference)
    if stage.sums == "fp32" or not reference.numel():
        return max(TOLERANCE, rounding)
    rows, columns = SAMPLE
    result = tensor_core_result(stage, _first(a, rows), _first(b, columns))
    own = relative_error(result, reference[:rows, :columns].cpu())
    return max(TOLERANCE if stage.sums == "promoted" else 2e-3 + own, rounding + 2 * own)


def _first(q: Quantized, rows: int) -> Quantized:
    """Return the first rows (a multiple of 128, or fewer than 128) with their scales, on the CPU."""
    blocks = {"tensor": None, "1x128": rows, "128x128": ceil_div(rows, BLOCK)}[q.granularity]
    scale = q.scale if blocks is None else q.scale[:blocks]
    return Quantized(q.data[:rows].cpu(), scale.cpu(), q.granularity)


def tensor_core_result(stage: Stage, a: Quantized, b: Quantized) -> torch.Tensor:
    """Compute what a stage with WGMMA computes before it rounds to the dtype of d, every bit of it.

    Args:
        stage, a, b: as in `Stage.gemm`.

    Returns:
        float32 (m, n) on the CPU.
    """
    a, b = a.to("cpu"), b.to("cpu")
    if stage.sums == "tensor core":
        return _sums(a.data, b.data) * (a.scale * b.scale)
    acc = np.zeros((a.data.shape[0], b.data.shape[0]), np.float32)
    scale_b = b.scale.repeat_interleave(BLOCK, 0)[: b.data.shape[0]]
    for step in range(a.scale.shape[1]):
        columns = slice(step * BLOCK, (step + 1) * BLOCK)
        partial = _sums(a.data[:, columns], b.data[:, columns])
        scale = (a.scale[:, step, None] * scale_b[None, :, step]).numpy()
        # a long double holds the product exactly and the sum nearly so: what a fused multiply-add rounds once
        exact = scale.astype(np.longdouble) * partial.numpy() + acc
        acc = exact.astype(np.float32)
    return torch.from_numpy(acc)


def _sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the tensor core's sums of all of k in one accumulator, unscaled: float32 (m, n)."""
    (m, k), n = a.shape, b.shape[0]

    def padded(x: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.nn.functional.pad(x.view(torch.uint8), (0, -k % tensor_core.STEP, 0, rows))

    left, right = padded(a, -m % tensor_core.ROWS), padded(b, 0)
    tiles = [
        tensor_core.wgmma(left[row : row + tensor_core.ROWS], right) for row in range(0, m, tensor_core.ROWS)
    ]
    return torch.cat(tiles)[:m] if tiles else torch.zeros(m, n)
