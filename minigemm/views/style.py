"""The look of every picture: one palette that colour-blind readers can tell apart, one set of sizes, one
object that Jupyter draws.

matplotlib is imported when the first picture is made, and pyplot never: a picture belongs to nobody's window.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any, ParamSpec

__all__ = [
    "BLUE", "GREEN", "GREY", "INK", "LANES", "ORANGE", "PALE", "PERCENT", "PURPLE", "RED", "SERIES", "SKY",
    "THOUSANDS", "YELLOW", "Html", "Picture", "drawn", "figure", "ink_on", "lane_colour",
]  # fmt: skip

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
INK, GREY, PALE = "#222222", "#8a8a8a", "#ececec"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
LANES = "viridis"  # even in lightness, so that neighbours stay in order without colour too

THOUSANDS, PERCENT = "{x:,.0f}", "{x:.0%}"  # how an axis writes its numbers

_RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}

P = ParamSpec("P")


@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """A figure, and what it says in words: the words are for a screen reader, a terminal and a test."""

    figure: Any
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_png_(self) -> bytes:
        import matplotlib

        out = io.BytesIO()
        with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
            self.figure.savefig(out, format="png", dpi=100, metadata={"Software": None})
        return out.getvalue()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as PNG."""
        with open(path, "wb") as file:
            file.write(self._repr_png_())


@dataclass(frozen=True, eq=False, repr=False)
class Html:
    """A piece of HTML for Jupyter, and the same as text for a terminal."""

    html: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html

    @staticmethod
    def pre(text: str) -> str:
        """Escape a text and keep its lines."""
        return f"<pre>{escape(text)}</pre>"


def drawn(make: Callable[P, Picture]) -> Callable[P, Picture]:
    """Give the function our fonts and lines while it draws, and leave the reader's own settings alone."""

    @functools.wraps(make)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Picture:
        import matplotlib

        with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
            return make(*args, **kwargs)

    return draw


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Make a figure of this size in inches. Returns it and its axes: one, or an array of them."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, **options)


def lane_colour(lane: int) -> tuple[float, float, float, float]:
    """The colour of a lane, the same in every picture."""
    import matplotlib

    return matplotlib.colormaps[LANES](0.08 + 0.87 * (lane % 32) / 31)  # type: ignore[return-value]


def ink_on(colour: Any) -> str:
    """Black or white, whichever can be read on this colour."""
    from matplotlib.colors import to_rgb

    r, g, b = to_rgb(colour)
    return "white" if 0.299 * r + 0.587 * g + 0.114 * b < 0.55 else "black"
