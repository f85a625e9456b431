"""The parts of a picture: shapes and texts in the house's sizes, legends, axes without frames, and counts in
words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .style import INK

__all__ = [
    "amount",
    "arrow",
    "at_right",
    "beside",
    "centred",
    "label",
    "legend",
    "rectangle",
    "short",
    "unframed",
]


def rectangle(axes: Any, x: float, y: float, width: float, height: float, **style: Any) -> None:
    """Draw a rectangle from its corner (x, y)."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, **style))


def centred(axes: Any, x: float, middle: float, width: float, height: float, **style: Any) -> None:
    """Draw a rectangle from x on, half of its height above `middle` and half below."""
    rectangle(axes, x, middle - height / 2, width, height, **style)


def label(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    """Write a text with its middle at (x, y), in 8 points, unless `style` says otherwise."""
    axes.text(x, y, text, **{"ha": "center", "va": "center", "size": 8, **style})


def beside(axes: Any, x: float, y: float, text: str, away: tuple[float, float], **style: Any) -> None:
    """Write a text that stands `away` from (x, y), in points to the right and upwards."""
    axes.annotate(text, (x, y), away, textcoords="offset points", **{"va": "center", "size": 8, **style})


def at_right(axes: Any, y: float, text: str, x: float = 1.01, **style: Any) -> None:
    """Write a text to the right of the axes, at the height y of the data."""
    where = axes.get_yaxis_transform()
    label(axes, x, y, text, **{"ha": "left", "transform": where, "color": INK, **style})


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str, **style: Any) -> None:
    """Draw an arrow; `style` is FancyArrowPatch's."""
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(FancyArrowPatch(start, end, **{"arrowstyle": "-|>", "color": colour, **style}))


def legend(where: Any, entries: Mapping[str, Any], others: Iterable[Any] = (), **options: Any) -> None:
    """Explain colours: below a figure in one line, or in `axes` where `options` say.

    `entries` give by label a colour or a patch's whole style; `others` are handles that stand behind them.
    """
    from matplotlib.patches import Patch

    styles = [style if isinstance(style, dict) else {"facecolor": style} for style in entries.values()]
    handles = [Patch(label=name, **style) for name, style in zip(entries, styles, strict=True)]
    handles += others
    usual = {"loc": "outside lower left", "ncols": len(handles), "fontsize": 8, "handlelength": 1.2}
    where.legend(handles=handles, **{**usual, **options})


def unframed(axes: Any) -> None:
    """Hide the lines around a picture, and the ticks' own marks."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def amount(count: int, what: str) -> str:
    """Write a count with its noun: "1 tile", "3 tiles"."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def short(value: float) -> str:
    """Write a number with three digits and without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
