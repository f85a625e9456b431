"""The error of a cast to e4m3: by the scale, by the granularity of the scales, by the outliers among the
channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..quantize import BLOCK, E4M3_MAX, GRANULARITIES, dequantize, expanded_scale, quantize
from .formats import cast
from .shapes import beside
from .style import BLUE, GREY, INK, ORANGE, PERCENT, RED, SERIES, SKY, Picture, drawn, figure

__all__ = ["channel_errors", "error_bars", "landing", "outlier_sweep", "relative_error", "scale_sweep"]

_NAMES = {
    "tensor": "one scale a tensor",
    "1x128": "a scale for each 1x128",
    "128x128": "a scale for each 128x128",
}
_INT8_MAX = 127
OUTLIER = 8.0  # an outlier channel's rms is at least this many times the median channel's


def relative_error(x: torch.Tensor, granularity: str, columns: torch.Tensor | None = None) -> float:
    """||dequantized - x|| / ||x||, Frobenius norms, over all columns or over a mask's."""
    wrong = dequantize(quantize(x, granularity)) - x
    if columns is not None:
        wrong, x = wrong[:, columns], x[:, columns]
    return float(wrong.norm() / x.norm())


@drawn
def channel_errors(x: torch.Tensor) -> Picture:
    """Plot the size of each channel (column) of x, and the relative error with which each granularity keeps
    it."""
    x = _matrix(x)
    channels = x.shape[1]
    rms = x.square().mean(0).sqrt()
    loud, where = rms > OUTLIER * rms.median(), torch.arange(channels)
    outliers = f"{int(loud.sum())} outlier channels of {channels}"

    # Above, the size of each channel.
    made, (size, *panels) = figure(9, 6, 1 + len(GRANULARITIES), sharex=True, height_ratios=(1.3, 1, 1, 1))
    bottom = float(rms[rms > 0].min()) / 2 if (rms > 0).any() else 0.1
    size.vlines(range(channels), bottom, rms.tolist(), color=GREY, linewidth=0.8)
    size.plot(where[loud].tolist(), rms[loud].tolist(), "o", color=ORANGE, markersize=4, label=outliers)
    size.set(yscale="log", ylabel="rms", title="How large each channel is")
    if loud.any():
        size.legend(loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)

    # Below, the error of each channel, a panel for each granularity.
    errors = {}
    for granularity in GRANULARITIES:
        wrong = dequantize(quantize(x, granularity)) - x
        errors[granularity] = wrong.norm(dim=0) / x.norm(dim=0)
    top = max(float(error[~error.isnan()].max()) for error in errors.values() if (~error.isnan()).any())
    said = []
    for axes, (granularity, error) in zip(panels, errors.items(), strict=True):
        usual = float(error[~loud].nanmedian())
        axes.scatter(where[~loud].tolist(), error[~loud].tolist(), s=3, color=BLUE, linewidths=0)
        axes.plot(where[loud].tolist(), error[loud].tolist(), "o", color=ORANGE, markersize=4)
        axes.set(ylim=(0, 1.12 * top), ylabel="error")
        axes.yaxis.set_major_formatter(PERCENT)
        title = f"{_NAMES[granularity]}: {usual:.1%} in the median ordinary channel"
        axes.set_title(title, fontweight="normal")
        said.append(f"{granularity} {usual:.2%} (all channels together {relative_error(x, granularity):.2%})")
    panels[-1].set(xlabel="channel", xlim=(-0.005 * channels - 1, 1.005 * channels))
    if channels >= 256:
        panels[-1].set_xticks(range(0, channels + 1, max(1, channels // 1024) * BLOCK))
    text = f"{outliers}; relative error of the median ordinary channel: {', '.join(said)}"
    return Picture(made, text)


@drawn
def landing(x: torch.Tensor) -> Picture:
    """Plot where the scale puts the elements of x on e4m3's range: how many in each power of two, for each
    granularity."""
    # The axis reaches from e4m3's largest power of two down to where everything becomes zero.
    x = _matrix(x)
    lowest, highest = -20, 8
    powers = range(lowest, highest + 1)
    made, panels = figure(9, 4.6, len(GRANULARITIES), sharex=True, sharey=True)
    said = []
    for axes, granularity in zip(panels, GRANULARITIES, strict=True):
        # The codes tell what became of the elements: zero, subnormal or normal.
        q = quantize(x, granularity)
        codes = q.data.view(torch.uint8) & 127
        zero = float(((codes == 0) & (x != 0)).float().mean())
        subnormal = float(((codes > 0) & (codes < 8)).float().mean())

        # The bars go by the magnitudes before the cast; those beyond the axis count at its ends.
        magnitude = (x / expanded_scale(q)).abs()
        binade = magnitude[magnitude > 0].log2().floor().clamp(lowest, highest).long()
        share = torch.bincount(binade - lowest, minlength=len(powers)) / x.numel()
        colours = [RED if e < -10 else ORANGE if e < -6 else BLUE for e in powers]
        axes.bar(powers, share.tolist(), width=0.9, color=colours, align="edge")
        axes.yaxis.set_major_formatter(PERCENT)
        axes.set(ylabel="elements")
        title = f"{_NAMES[granularity]}: {subnormal:.1%} become subnormal, {zero:.1%} become zero"
        axes.set_title(title, fontweight="normal")
        said.append(f"{granularity} {subnormal:.1%} subnormal, {zero:.1%} zero")

    # The panels share their axes, so the last one explains the colours for all.
    meaning = "blue has its 4 significant bits, orange fewer (subnormal), red none (zero)"
    panels[-1].set(xlabel=f"|x / scale|: {meaning}", xlim=(lowest, highest + 1))
    panels[-1].set_xticks(powers[::2], [f"$2^{{{e}}}$" for e in powers[::2]])
    return Picture(made, f"elements by granularity: {'; '.join(said)}")


@drawn
def scale_sweep(
    x: torch.Tensor, multiples: Sequence[float] = tuple(2.0**e for e in range(-6, 21))
) -> Picture:
    """Plot the error of the cast when the one scale of a tensor is not amax / 448, with INT8 beside it.

    The scale is each of `multiples` times amax / 448 (amax / 127 for INT8). Raises ValueError for multiples
    that are not positive.
    """
    x = _matrix(x)
    if not multiples or not all(0 < multiple < float("inf") for multiple in multiples):
        raise ValueError(f"multiples: expected positive numbers, got {multiples!r}")

    # The errors at each scale: of e4m3's median channel, of all elements together, of INT8's median channel.
    amax = x.abs().amax()
    median: list[float] = []
    together: list[float] = []
    int8: list[float] = []
    for multiple in multiples:
        scale = amax / E4M3_MAX * multiple
        wrong = cast(x / scale).float() * scale - x
        median.append(float((wrong.norm(dim=0) / x.norm(dim=0)).nanmedian()))
        together.append(float(wrong.norm() / x.norm()))
        scale = amax / _INT8_MAX * multiple
        wrong = (x / scale).round().clamp(-_INT8_MAX, _INT8_MAX) * scale - x
        int8.append(float((wrong.norm(dim=0) / x.norm(dim=0)).nanmedian()))

    made, axes = figure(8, 3.6)
    axes.plot(multiples, median, "o-", color=BLUE, markersize=3.5, label="e4m3, the median channel")
    axes.plot(multiples, together, "^-", color=SKY, markersize=3.5, label="e4m3, all elements together")
    axes.plot(multiples, int8, "s--", color=GREY, markersize=3, label="INT8, the median channel")
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    _percent(axes)
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    clipped = "(below 1, the largest elements are clipped)"
    axes.set(ylabel="relative error", xlabel=f"scale, in multiples of amax / largest number {clipped}")
    axes.set_title("e4m3 forgives a scale that is too large; an integer format does not")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.12))

    worse = [max(pair) for pair in zip(median, together, strict=True)]
    good = [multiple for multiple, error in zip(multiples, worse, strict=True) if error <= 1.1 * min(worse)]
    at = min(range(len(multiples)), key=lambda i: abs(multiples[i] - 1))
    text = (
        f"at {multiples[at]:g} times amax / largest: e4m3 {median[at]:.2%} in the median channel, "
        f"{together[at]:.2%} over all, INT8 {int8[at]:.2%}; e4m3 is within a tenth of its best from {min(good):g} to "
        f"{max(good):g} times"
    )
    return Picture(made, text)


@drawn
def outlier_sweep(
    x: torch.Tensor,
    channels: torch.Tensor,
    factors: Sequence[float] = (1, 10, 100, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6),
) -> Picture:
    """Enlarge some channels more and more, and plot what happens to all the others, for each granularity.

    Args:
        x: (rows, channels).
        channels: the indices of the channels that grow.
        factors: how many times larger they become.

    Raises ValueError for channels outside x, for all of them, and for factors that are not positive.
    """
    x = _matrix(x)
    channels = torch.as_tensor(channels)
    indices = channels.dim() == 1 and not channels.is_floating_point()
    if not indices or not all(0 <= int(c) < x.shape[1] for c in channels):
        raise ValueError(f"channels: expected indices of columns below {x.shape[1]}, got {channels.tolist()}")
    if not factors or not all(0 < factor < float("inf") for factor in factors):
        raise ValueError(f"factors: expected positive numbers, got {factors!r}")
    rest = torch.ones(x.shape[1], dtype=torch.bool)
    rest[channels] = False
    if not rest.any():
        raise ValueError(
            "channels: expected some of the columns, got all of them, which leaves no others to look at"
        )

    # A line for each granularity: the error of the channels that did not grow.
    made, axes = figure(8, 3.6)
    said = []
    for granularity, colour, mark in zip(GRANULARITIES, SERIES, "o^s", strict=False):
        errors = []
        for factor in factors:
            scaled = x.clone()
            scaled[:, channels] *= factor
            errors.append(relative_error(scaled, granularity, rest))
        axes.plot(factors, errors, mark + "-", color=colour, label=_NAMES[granularity], markersize=4.5)
        said.append(f"{granularity} {errors[-1]:.1%}")
    _percent(axes)
    axes.set(xscale="log", xlabel="how many times larger the outlier channels are made")
    axes.set_ylabel("error of the others")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.minorticks_off()
    others = f"what the other {int(rest.sum())} pay for them"
    axes.set_title(f"{len(channels)} outlier channels of {x.shape[1]}: {others}")
    axes.legend(loc="upper left")
    text = f"error of the other channels with outliers {factors[-1]:g} times larger: {', '.join(said)}"
    return Picture(made, text)


@drawn
def error_bars(errors: Mapping[str, float]) -> Picture:
    """Draw relative errors by name, as bars on a logarithmic axis. Raises ValueError for errors that are not
    positive."""
    if not errors or not all(0 < error < float("inf") for error in errors.values()):
        raise ValueError(f"errors: expected positive numbers by name, got {dict(errors)!r}")
    made, axes = figure(8, 0.9 + 0.42 * len(errors))
    names, sizes, rows = list(errors), list(errors.values()), range(len(errors))
    axes.barh(rows, sizes, color=[SERIES[row % len(SERIES)] for row in rows], height=0.6)
    for row, size in enumerate(sizes):
        beside(axes, size, row, f"{size:.2%}" if size >= 1e-4 else f"{size:.1e}", (5, 0), size=9)
    axes.set(xscale="log", xlabel="relative error", xlim=(min(sizes) / 6, max(sizes) * 4))
    axes.set_yticks(rows, names)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    return Picture(
        made, "relative errors: " + ", ".join(f"{name} {size:.3g}" for name, size in errors.items())
    )


def _percent(axes: Any) -> None:
    """Make the vertical axis a logarithmic one of relative errors, from 1% to 100%."""
    axes.set(yscale="log", ylim=(0.01, 1.3))
    axes.set_yticks([0.01, 0.03, 0.1, 0.3, 1], ["1%", "3%", "10%", "30%", "100%"])


def _matrix(x: torch.Tensor) -> torch.Tensor:
    """Return x as float32 on the CPU; ValueError when there is nothing to draw."""
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or not x.numel():
        got = f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"x: expected a matrix (rows, channels), got {got}")
    x = x.detach().float().cpu()
    if not x.isfinite().all() or not x.any():
        raise ValueError("x: expected finite numbers that are not all zero")
    return x
