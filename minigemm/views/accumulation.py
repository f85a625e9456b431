"""The tensor core's short accumulator and long sums: the error against K, and one sum as it grows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .. import quantize
from ..emulator.machine import tensor_core
from .shapes import beside
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, THOUSANDS, Picture, drawn, figure

__all__ = ["INPUTS", "accumulation", "accumulation_errors", "running_sum"]

INPUTS = ("zero-mean", "positive")
ROWS, COLUMNS = 64, 16  # of the product that is computed
KS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SHORT, FULL = "tensor core", "FP32 sums"
_COLOURS = {"zero-mean": BLUE, "positive": RED}
_STYLES = (
    {"marker": "o"},
    {"marker": "s", "linestyle": ":"},
    {"marker": "^", "linestyle": "--"},
)  # by who adds


def accumulation_errors(
    k: int, inputs: str = "positive", promote: int = 0, seed: int = 0
) -> dict[str, float]:
    """Compute a 64 x 16 product with FP32 output in several ways of adding its K products.

    Args:
        k: K, a multiple of 32.
        inputs: "zero-mean", normal numbers, or "positive", their magnitudes. The exact product is computed
            from the numbers after their cast to e4m3, so that the cast is no part of the error.
        promote: if not 0, the tensor core's sums over `promote` products each are also added in FP32 outside
            of it.

    Returns:
        The relative error against float64 of each way: "tensor core" is the accumulator of `wgmma`; "FP32
        sums" adds exact steps of 32 in FP32; "promoted every N" is there if `promote` is not 0.

    Raises ValueError for a k or promote that is no multiple of 32, and for other inputs.
    """
    if k < tensor_core.STEP or k % tensor_core.STEP:
        raise ValueError(f"k: expected a positive multiple of {tensor_core.STEP}, got {k}")
    if promote < 0 or promote % tensor_core.STEP:
        raise ValueError(f"promote: expected 0 or a multiple of {tensor_core.STEP}, got {promote}")
    if inputs not in INPUTS:
        raise ValueError(f'inputs: expected "zero-mean" or "positive", got {inputs!r}')

    # The exact product begins with the cast numbers, so that the cast is no part of the error.
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn((rows, k), generator=generator) for rows in (ROWS, COLUMNS))
    if inputs == "positive":
        a, b = a.abs(), b.abs()
    left, right = quantize.quantize(a).data, quantize.quantize(b).data
    exact = left.double() @ right.double().T

    # Within a step of 32, float64 adds the products; FP32 adds the steps.
    plain, promoted = torch.zeros(ROWS, COLUMNS), torch.zeros(ROWS, COLUMNS)
    for at in range(0, k, tensor_core.STEP):
        part = slice(at, at + tensor_core.STEP)
        plain += (left[:, part].double() @ right[:, part].double().T).float()
    sums = {SHORT: tensor_core.wgmma(left, right), FULL: plain}

    # With promotion the tensor core adds up short stretches of K, and FP32 adds those.
    if promote:
        for at in range(0, k, promote):
            promoted += tensor_core.wgmma(left[:, at : at + promote], right[:, at : at + promote])
        sums[f"promoted every {promote}"] = promoted
    return {name: float((d.double() - exact).norm() / exact.norm()) for name, d in sums.items()}


@drawn
def accumulation(
    ks: Sequence[int] = KS, inputs: Sequence[str] = INPUTS, promote: int = 0, seed: int = 0
) -> Picture:
    """Plot the errors that `accumulation_errors` returns against K, both axes logarithmic.

    Raises ValueError when there are fewer than two K or no inputs, and as `accumulation_errors` does.
    """
    # A curve needs two points, and the plot needs a curve.
    if len(ks) < 2:
        raise ValueError(f"ks: expected at least two, got {tuple(ks)}")
    if not inputs:
        raise ValueError("inputs: expected at least one of " + ", ".join(INPUTS) + ", got none")

    # A colour stands for the inputs and a line style for the way of adding.
    made, axes = figure(8.4, 5)
    said, smallest = [], 1.0
    for kind in inputs:
        found = [accumulation_errors(k, kind, promote, seed) for k in ks]
        for name, style in zip(found[0], _STYLES, strict=False):
            errors = [each[name] for each in found]
            smallest = min(smallest, *errors)
            way = f"{name}, {kind} inputs"
            axes.plot(ks, errors, color=_COLOURS[kind], markersize=5, linewidth=1.6, label=way, **style)
            beside(axes, ks[-1], errors[-1], f"{errors[-1]:.2g}", (8, 0), color=INK)
            values = ", ".join(f"{error:.2e} at K = {k:,}" for k, error in zip(ks, errors, strict=True))
            said.append(f"{way}: {values}")

    # The result loses up to 2**-9 by its rounding to BF16; a larger error is worse than that.
    axes.axhspan(2.0**-9, 1, color=PALE, alpha=0.5, linewidth=0, zorder=0)
    note = "grey: worse than one rounding to BF16"
    axes.text(0.01, 0.985, note, transform=axes.transAxes, fontsize=8, va="top")

    # The lowest error sets the lower end of the logarithmic axis.
    axes.set(xscale="log", yscale="log", ylim=(max(smallest, 1e-12) / 2, 1))
    axes.set(xlabel="K, products in each sum", ylabel="relative error against float64")
    axes.set_xticks(ks, [f"{k:,}" for k in ks], fontsize=8)
    axes.minorticks_off()
    axes.grid(color=GREY, alpha=0.2)
    axes.set_title("The error of a sum by who adds it up")
    made.legend(loc="outside lower left", ncols=len(inputs), fontsize=8)
    return Picture(made, "\n".join(said))


@drawn
def running_sum(a: torch.Tensor, b: torch.Tensor, row: int = 0, column: int = 0) -> Picture:
    """Plot one element of `a @ b.T` as its sum grows, exactly and in the tensor core; below, the worth of its
    last bit.

    Args:
        a, b: e4m3 (64, K) and (N, K), as `tensor_core.wgmma` takes them.
        row, column: the element.

    Raises ValueError for an element outside the product.
    """
    for name, index, size in (("row", row, a.shape[0]), ("column", column, b.shape[0])):
        if not 0 <= index < size:
            raise ValueError(f"{name}: expected 0 to {size - 1}, got {index}")

    # The sum after every step of 32 products, in both ways.
    step, k = tensor_core.STEP, a.shape[1]
    products = a[row].double() * b[column].double()
    ends = list(range(step, k + 1, step))
    exact = products.reshape(-1, step).sum(1).cumsum(0).tolist()
    c, sums = torch.zeros(a.shape[0], 1), []
    for at in range(0, k, step):
        c = tensor_core.wgmma(a[:, at : at + step], b[column : column + 1, at : at + step], c)
        sums.append(float(c[row]))
    # A sum below 2^e has 14 bits, which end at 2^(e - 14).
    units = [math.ldexp(1, math.frexp(total)[1] - 14) if total else 0.0 for total in sums]
    typical = float(products.abs().median())

    made, (above, below) = figure(9, 4.8, 2, 1, sharex=True, height_ratios=[2, 1])
    above.plot(ends, exact, color=GREEN, label="exact")
    above.plot(ends, sums, color=RED, label="tensor core")
    above.fill_between(ends, exact, sums, color=ORANGE, alpha=0.2, linewidth=0, label="lost")
    got = f"{_number(sums[-1])} of {_number(exact[-1])}"
    above.set(ylabel="sum so far", title=f"Element ({row}, {column}): {got}")
    above.yaxis.set_major_formatter(lambda value, _: _number(value))
    above.legend(loc="upper left", fontsize=8)
    below.step(ends, units, where="pre", color=RED, label="worth of the accumulator's last bit")
    below.axhline(typical, color=BLUE, linestyle="--", label=f"median product: {typical:g}")
    below.set(xlabel="products added", yscale="log", xlim=(0, k))
    below.yaxis.set_major_formatter("{x:g}")
    below.xaxis.set_major_formatter(THOUSANDS)
    below.legend(loc="lower right", fontsize=8)
    for axes in (above, below):
        axes.grid(color=GREY, alpha=0.2)

    lost = 1 - sums[-1] / exact[-1] if exact[-1] else 0.0
    text = f"element ({row}, {column}) after {k:,} products: {got}, {lost:.2%} lost; "
    return Picture(made, text + f"the last bit is worth {units[-1]:g}, the median product {typical:g}")


def _number(value: float) -> str:
    """A large number is written whole."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.4g}"
