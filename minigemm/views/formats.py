"""e4m3: the numbers that it has, and the bits of one of them. All values come from torch's own float8."""

from __future__ import annotations

import torch

from .style import BLUE, GREEN, GREY, INK, ORANGE, RED, Picture, drawn, figure, ink_on

__all__ = ["bits", "number_line", "values"]


def values() -> torch.Tensor:
    """The 256 codes as float32, in the order of their bits; two of them are NaN."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


@drawn
def number_line() -> Picture:
    """Where the numbers of e4m3 lie: all of them from -448 to 448, and each power of two as a row of eight."""
    every = values()
    finite = every[~every.isnan()].unique()
    made, (line, rows) = figure(9, 5.2, 2, height_ratios=(1, 4.2))
    line.vlines(finite, 0, 1, color=BLUE, linewidth=0.8)
    line.set(yticks=[], xlabel="value", title=f"All {len(finite)} finite numbers of e4m3: dense near zero, 32 apart at the end")
    line.spines["left"].set_visible(False)
    positive = every[:127]
    for code, value in enumerate(positive.tolist()):
        exponent, mantissa = code >> 3, code & 7
        colour = ORANGE if exponent == 0 else BLUE
        rows.plot(mantissa, exponent, "s", color=colour, markersize=4)
        rows.annotate(f"{value:g}", (mantissa, exponent), xytext=(5, 0), textcoords="offset points", va="center", fontsize=6.5)
    rows.annotate("NaN", (7, 15), xytext=(5, 0), textcoords="offset points", va="center", fontsize=6.5, color=RED)
    rows.set(
        xlabel="mantissa bits", ylabel="exponent bits", yticks=range(0, 16, 3), xticks=range(8), xlim=(-0.3, 7.9), ylim=(-0.8, 15.8),
        title="The positive ones by exponent and mantissa; orange: subnormal, evenly spaced down to zero",
    )  # fmt: skip
    rows.set_xticklabels([f"{m:03b}" for m in range(8)])
    rows.set_yticklabels([f"{e:04b}" for e in range(0, 16, 3)])
    smallest, normal = positive[1].item(), positive[8].item()
    text = f"e4m3: {len(finite)} finite numbers from -448 to 448; smallest {smallest:g}, smallest normal {normal:g}; 1 NaN a sign, no infinity"
    return Picture(made, text)


@drawn
def bits(value: float) -> Picture:
    """The e4m3 that a number rounds to, bit by bit."""
    rounded = torch.tensor(value).clamp(-448, 448).to(torch.float8_e4m3fn)
    code, got = int(rounded.view(torch.uint8)), float(rounded)
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    made, axes = figure(7, 1.5)
    for i, bit in enumerate(f"{code:08b}"):
        colour = RED if i == 0 else GREEN if i < 5 else BLUE
        axes.add_patch(_box(i, colour))
        axes.text(i + 0.5, 0.5, bit, ha="center", va="center", fontsize=14, color=ink_on(colour))
    for x, name in ((0.5, "sign"), (3, "exponent"), (6.5, "mantissa")):
        axes.text(x, 1.12, name, ha="center", va="bottom")
    if code & 127 == 127:
        formula = "NaN"
    elif exponent:
        formula = f"{'-' if sign else ''}2^({exponent} - 7) x (1 + {mantissa}/8) = {got:g}"
    else:
        formula = f"{'-' if sign else ''}2^-6 x {mantissa}/8 = {got:g}"
    axes.text(8.4, 0.5, formula, va="center", fontsize=11, color=INK)
    axes.text(8.4, -0.1, f"asked for {value:g}", va="center", fontsize=8, color=GREY)
    axes.set(xlim=(-0.1, 14), ylim=(-0.3, 1.6))
    axes.axis("off")
    return Picture(made, f"{value:g} becomes {got:g}: {sign} {exponent:04b} {mantissa:03b}")


def _box(x: float, colour: str) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x, 0), 1, 1, facecolor=colour, edgecolor="white", linewidth=2)
