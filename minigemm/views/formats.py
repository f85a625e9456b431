"""e4m3: the numbers that it has, the bits of one of them, how far apart they lie. All values come from
torch's float8."""

from __future__ import annotations

import torch

from ..quantize import E4M3_MAX
from .shapes import beside, label, rectangle
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, Picture, drawn, figure, ink_on

__all__ = ["SMALLEST", "SMALLEST_NORMAL", "bits", "cast", "number_line", "spacing", "values"]

SMALLEST, SMALLEST_NORMAL = 2.0**-9, 2.0**-6


def values() -> torch.Tensor:
    """Return the 256 codes as float32, in the order of their bits; two of them are NaN."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def cast(x: torch.Tensor) -> torch.Tensor:
    """Cast to e4m3 as `quantize` does, without a scale: saturating at 448, and an infinity becomes NaN."""
    x = x.detach().float()
    finite = torch.where(x.isinf(), torch.full_like(x, float("nan")), x.clamp(-E4M3_MAX, E4M3_MAX))
    return finite.to(torch.float8_e4m3fn)


@drawn
def number_line() -> Picture:
    """Draw where the numbers of e4m3 lie: all of them from -448 to 448, and the positive ones as a table of
    exponent and mantissa."""
    every = values()
    finite = every[~every.isnan()].unique()
    made, (line, rows) = figure(9.5, 5.8, 2, height_ratios=(1, 5))

    # Above, all numbers on one line.
    line.vlines(finite.tolist(), 0, 1, color=BLUE, linewidth=0.7)
    line.set(yticks=[], xlim=(-465, 465), xticks=(-448, -256, -128, 0, 128, 256, 448), xlabel="value")
    apart = f"{finite[-1] - finite[-2]:g} apart at the ends, dense near zero"
    line.set_title(f"All {len(finite)} finite numbers of e4m3: {apart}")
    line.spines["left"].set_visible(False)

    # Below, those without a sign, each with its value.
    positive = every[:127]
    for code, value in enumerate(positive.tolist()):
        exponent, mantissa = code >> 3, code & 7
        rows.plot(mantissa, exponent, "s", color=BLUE if exponent else ORANGE, markersize=4)
        beside(rows, mantissa, exponent, f"{value:.10g}", (6, 0), size=7)
    rows.plot(7, 15, "x", color=RED, markersize=5)
    beside(rows, 7, 15, "NaN", (6, 0), size=7, color=RED)
    rows.set(xlabel="mantissa bits", ylabel="factor and exponent bits", xlim=(-0.3, 7.9), ylim=(-0.8, 15.8))
    rows.set_title(
        "Those without a sign, a row for each exponent. Orange: subnormal, as far apart as the row above"
    )
    rows.set_xticks(range(8), [f"{m:03b}" for m in range(8)])
    factors = [rf"$2^{{{max(e, 1) - 7}}}$   {e:04b}" for e in range(16)]
    rows.set_yticks(range(16), factors, fontsize=8)

    smallest, normal = positive[1].item(), positive[8].item()
    text = (
        f"e4m3: {len(finite)} finite numbers from -448 to 448; smallest {smallest:.10g}, smallest normal {normal:g}; "
        "1 NaN a sign, no infinity"
    )
    return Picture(made, text)


@drawn
def bits(value: float) -> Picture:
    """Draw the e4m3 that a number rounds to, bit by bit."""
    # A bool is an int in Python, so it is refused by name.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"value: expected a number, got {value!r}")
    rounded = cast(torch.tensor(float(value)))
    code, got = int(rounded.view(torch.uint8)), float(rounded)
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7

    # The colours tell the three fields apart.
    made, axes = figure(7.5, 1.5)
    for i, bit in enumerate(f"{code:08b}"):
        colour = RED if i == 0 else GREEN if i < 5 else BLUE
        rectangle(axes, i, 0, 1, 1, facecolor=colour, edgecolor="white", linewidth=2)
        label(axes, i + 0.5, 0.5, bit, size=14, color=ink_on(colour))
    for x, name in ((0.5, "sign"), (3, "exponent"), (6.5, "mantissa")):
        label(axes, x, 1.1, name, va="bottom", size=9)

    # NaN has no formula, and a subnormal number has no leading 1.
    minus = "-" if sign else ""
    if code & 127 == 127:
        formula = "NaN"
    elif exponent:
        formula = rf"{minus}$2^{{{exponent} - 7}}$ × (1 + {mantissa}/8) = {got:.10g}"
    else:
        formula = rf"{minus}$2^{{-6}}$ × {mantissa}/8 = {got:.10g}"
    kind = "no number" if got != got else "zero" if not code & 127 else "normal" if exponent else "subnormal"
    label(axes, 8.4, 0.72, formula, ha="left", size=11, color=INK)
    label(axes, 8.4, 0.18, f"{kind}; asked for {value:.10g}", ha="left", color=GREY)
    axes.set(xlim=(-0.1, 15), ylim=(-0.1, 1.6))
    axes.axis("off")
    return Picture(made, f"{value:.10g} becomes {got:.10g}: {sign} {exponent:04b} {mantissa:03b}, {kind}")


@drawn
def spacing() -> Picture:
    """Plot how far apart neighbours lie, and how wrong a cast can be, both against the size of the number."""
    grid = values()[:127].double()
    step = grid[1:] - grid[:-1]
    made, (absolute, relative) = figure(9, 5, 2, sharex=True, height_ratios=(1, 1.25))

    edges = [SMALLEST / 4, *grid[1:].tolist()]
    absolute.stairs(step.tolist(), edges, color=BLUE, baseline=None, linewidth=1.6)
    absolute.set(xscale="log", yscale="log", ylabel="distance to the next")
    absolute.set_yticks([2.0**-9, 2.0**-6, 2.0**-3, 1, 8, 32], ["1/512", "1/64", "1/8", "1", "8", "32"])
    absolute.set_title("The step doubles with every power of two, and stays the same among the subnormals")

    # The worst of every interval between two neighbours is its middle.
    x = torch.exp2(torch.linspace(-11, 10.5, 40001)).float()
    wrong = ((cast(x).float() - x).abs() / x).double()
    middle = ((grid[1:] + grid[:-1]) / 2).float()
    worst = ((cast(middle).float() - middle).abs() / middle).double()
    normal = float(worst[grid[:-1] >= SMALLEST_NORMAL].max())
    relative.fill_between(x.tolist(), 1e-4, wrong.tolist(), color=BLUE, alpha=0.35, linewidth=0)
    peaks = "worst between two neighbours"
    relative.plot(middle.tolist(), worst.tolist(), color=BLUE, linewidth=1.6, label=peaks)
    relative.axhline(normal, color=GREY, linewidth=0.8, linestyle="--")
    relative.set(yscale="log", ylim=(2e-3, 1.6), xlim=(2.0**-11, 2.0**10.5))
    relative.set(ylabel="relative error", xlabel="value that is cast")
    relative.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3, 1], ["0.3%", "1%", "3%", "10%", "30%", "100%"])
    relative.set_title(
        f"So every normal number is off by at most {normal:.1%}; below and above, the error can reach 100%"
    )
    ticks = [2.0**-10, SMALLEST, SMALLEST_NORMAL, 2.0**-3, 1, 8, 64, E4M3_MAX]
    relative.set_xticks(ticks, ["$2^{-10}$", "$2^{-9}$", "$2^{-6}$", "1/8", "1", "8", "64", "448"])
    for axes in (absolute, relative):
        axes.minorticks_off()
        axes.axvspan(2.0**-11, SMALLEST_NORMAL, color=ORANGE, alpha=0.13, linewidth=0)
        axes.axvspan(E4M3_MAX, 2.0**10.5, color=PALE, linewidth=0, zorder=0)
    absolute.text(2.0**-8.5, 4, "subnormal", ha="center", color=INK, fontsize=8)
    absolute.text(2.0**9.65, 2.0**-5, "becomes\n448", ha="center", color=INK, fontsize=8)
    relative.text(2.0**-10.9, 0.0026, "becomes 0", color=INK, fontsize=8)
    text = (
        f"step from {step[0]:.10g} to {step[-1]:g}; a normal number is off by at most {normal:.2%}, "
        "a subnormal one by up to 100%"
    )
    return Picture(made, text)
