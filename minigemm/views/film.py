"""The ring of slots as a film: the strip with a slider that steps through its moments."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from html import escape
from typing import Any

from ..emulator.watch.report import Report
from .moments import Moment, Slot, moments
from .ring import COLOURS, ring
from .style import GREY, INK, Picture, ink_on

__all__ = ["Film", "ring_film"]


@dataclass(frozen=True, eq=False, repr=False)
class Film:
    """The strip, and where ipywidgets is there a slider under it that shows the ring at each moment.

    The slider works in the browser alone: a notebook that keeps its widgets' state shows the film without a
    kernel, any other reader shows the strip.
    """

    strip: Picture
    moments: list[Moment]
    frames: list[str]  # SVG, one for each moment

    @property
    def text(self) -> str:
        """The strip in words, then every moment."""
        each = [f"{i:>3}  {moment.what}" for i, moment in enumerate(self.moments)]
        return "\n".join([self.strip.text, *each])

    def __repr__(self) -> str:
        return self.strip.text

    def _repr_png_(self) -> bytes:
        return self.strip._repr_png_()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        widget = self.widget()
        bundle: dict[str, Any] = {} if widget is None else dict(widget._repr_mimebundle_())
        return {**bundle, "text/plain": repr(self)}

    def widget(self) -> Any:
        """Make the slider with its frames; None without ipywidgets 8."""
        try:
            widgets = importlib.import_module("ipywidgets")
        except ImportError:
            return None
        if not hasattr(widgets, "Stack"):
            return None

        # One layout and one style for all frames: less for a notebook to keep.
        first = widgets.HTML(self.frames[0])
        looks = {"layout": first.layout, "style": first.style}
        others = [widgets.HTML(frame, **looks) for frame in self.frames[1:]]
        frames = widgets.Stack([first, *others], selected_index=0)

        last = len(self.frames) - 1
        slider = widgets.IntSlider(0, 0, last, description="moment", layout={"width": "620px"})
        play = widgets.Play(value=0, min=0, max=last, interval=700)
        widgets.jslink((slider, "value"), (frames, "selected_index"))
        widgets.jslink((play, "value"), (slider, "value"))
        fits = {"max_width": "100%", "object_fit": "contain"}
        strip = widgets.Image(value=self._repr_png_(), format="png", layout=fits)
        return widgets.VBox([strip, widgets.HBox([play, slider]), frames])


def ring_film(report: Report, title: str = "", products: int = 0) -> Film:
    """Make the strip of `ring` with a slider that steps through its moments: who owns which slot, and the
    phases of the barriers.

    Arguments and errors are those of `moments`.
    """
    film = moments(report, products)
    frames = [_frame(number, moment) for number, moment in enumerate(film)]
    return Film(ring(report, title, products), film, frames)


def _frame(number: int, moment: Moment) -> str:
    """Draw the ring at one moment as SVG: a sector for each slot, clockwise from the top."""
    # The picture grows with the ring, since each slot has a line of text.
    count = len(moment.slots)
    height = max(230, 56 + 26 * count)
    font = f'font-family="sans-serif" font-size="13" fill="{INK}"'
    box = f'viewBox="0 0 880 {height}" width="880"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font}><rect width="880" height="{height}" fill="white"/>'
    ]

    # Each slot gets a sector, the tiles that it holds, and its line of text.
    for i, slot in enumerate(moment.slots):
        colour = COLOURS[slot.state]
        around = 'stroke="white" stroke-width="3" fill-rule="evenodd"'
        parts.append(f'<path d="{_sector(i, count, height / 2)}" fill="{colour}" {around}/>')
        angle = 2 * math.pi * (i + 0.5) / count
        x, y = 115 + 76 * math.sin(angle), height / 2 - 76 * math.cos(angle)
        look = f'text-anchor="middle" font-weight="bold" fill="{ink_on(colour)}"'
        tile = "+".join(map(str, slot.tiles)) or "-"
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" {look}>{tile}</text>')
        parts.append(_line(i, slot))

    # The heading tells what happened, and the ring's middle what its numbers are.
    parts.append(f'<text x="240" y="24" font-weight="bold">{number}. {escape(moment.what)}</text>')
    parts.append(
        f'<text x="115" y="{height / 2 + 5:.0f}" text-anchor="middle" fill="{GREY}">tile</text></svg>'
    )
    return "".join(parts)


def _line(number: int, slot: Slot) -> str:
    """Write a slot's line beside the ring: its tiles, its state, and its barriers."""
    y = 58 + 26 * number
    tiles = f"tile{'s' * (len(slot.tiles) > 1)} {' and '.join(map(str, slot.tiles))}, " if slot.tiles else ""
    full = f"full: phase {slot.full}, parity {slot.full % 2}"
    empty = "" if slot.empty is None else f"; empty: phase {slot.empty}, parity {slot.empty % 2}"
    return (
        f'<rect x="240" y="{y - 11}" width="13" height="13" fill="{COLOURS[slot.state]}"/>'
        f'<text x="262" y="{y}">slot {number}: {tiles}{slot.state}</text>'
        f'<text x="520" y="{y}" font-size="12">{full}{empty}</text>'
    )


def _sector(number: int, count: int, middle: float, outer: float = 100, inner: float = 52) -> str:
    """The path of one of `count` sectors of a ring."""
    if count == 1:
        circles = (f"M115 {middle - r:.1f} A{r} {r} 0 1 1 114.9 {middle - r:.1f} Z" for r in (outer, inner))
        return " ".join(circles)

    def at(radius: float, edge: int) -> str:
        angle = 2 * math.pi * (number + edge) / count
        return f"{115 + radius * math.sin(angle):.1f} {middle - radius * math.cos(angle):.1f}"

    there = f"M{at(outer, 0)} A{outer} {outer} 0 0 1 {at(outer, 1)}"
    back = f"L{at(inner, 1)} A{inner} {inner} 0 0 0 {at(inner, 0)} Z"
    return f"{there} {back}"
