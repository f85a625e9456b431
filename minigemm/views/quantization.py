"""What a cast to e4m3 loses, by the granularity of the scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..quantize import GRANULARITIES, dequantize, quantize
from .style import GREY, SERIES, Picture, drawn, figure

__all__ = ["channel_errors", "outlier_sweep", "relative_error"]


def relative_error(x: torch.Tensor, granularity: str, columns: torch.Tensor | None = None) -> float:
    """||dequantized - x|| / ||x||, Frobenius norms, over all columns or over those in a mask."""
    wrong = dequantize(quantize(x, granularity)) - x
    if columns is not None:
        wrong, x = wrong[:, columns], x[:, columns]
    return float(wrong.norm() / x.norm())


@drawn
def channel_errors(x: torch.Tensor) -> Picture:
    """The size of each channel (column) of x, and the relative error with which each granularity keeps it."""
    made, (size, error) = figure(9, 4.6, 2, sharex=True)
    rms = x.square().mean(0).sqrt()
    size.semilogy(rms, color=GREY, linewidth=0.8)
    size.set(ylabel="rms", title=f"A few of the {x.shape[1]} channels are far larger than the rest")
    said = []
    for granularity, colour in zip(GRANULARITIES, SERIES, strict=False):
        wrong = dequantize(quantize(x, granularity)) - x
        by_channel = wrong.norm(dim=0) / x.norm(dim=0)
        total = relative_error(x, granularity)
        error.plot(by_channel, color=colour, linewidth=0.9, label=f"{granularity}: {total:.2%} over all")
        said.append(f"{granularity} {total:.2%}")
    error.set(xlabel="channel", ylabel="relative error", ylim=(0, None), title="What the cast loses, channel by channel")
    error.legend(ncols=3, loc="lower right")
    return Picture(made, f"relative error of the cast: {', '.join(said)}")


@drawn
def outlier_sweep(x: torch.Tensor, channels: torch.Tensor, factors: Sequence[float] = (1, 10, 100, 1e3, 3e3, 1e4, 3e4, 1e5)) -> Picture:
    """Enlarge some channels (indices) more and more: what happens to all the others, for each granularity."""
    rest = torch.ones(x.shape[1], dtype=torch.bool)
    rest[channels] = False
    made, axes = figure(7.5, 3.6)
    said = []
    for granularity, colour in zip(GRANULARITIES, SERIES, strict=False):
        errors = []
        for factor in factors:
            scaled = x.clone()
            scaled[:, channels] *= factor
            errors.append(relative_error(scaled, granularity, rest))
        axes.loglog(factors, errors, "o-", color=colour, label=granularity, markersize=4)
        said.append(f"{granularity} {errors[-1]:.1%}")
    axes.set(xlabel="how much larger the outlier channels are made", ylabel="relative error of the others")
    axes.set_title(f"{len(channels)} outlier channels of {x.shape[1]}: who pays for them")
    axes.legend()
    return Picture(made, f"error of the other channels with outliers {factors[-1]:g} times larger: {', '.join(said)}")
