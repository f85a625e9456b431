"""Experts: from a router's choices to the two layouts of rows, the parts that the kernel makes of them, and
how a warp finds its tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.grouped import GroupedConfig
from ..layout import ceil_div, round_up
from ..types import Layout
from .shapes import label, legend, rectangle, unframed
from .style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    SKY,
    YELLOW,
    Picture,
    drawn,
    figure,
    ink_on,
)
from .walks import Batch, Part, Search, group_parts

__all__ = ["Routing", "contiguous_layout", "masked_layout", "route", "routing", "search"]

_GROUPS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW, "#5B4B8A")  # neighbours differ
_SKIPPED: dict[str, Any] = {"facecolor": "#BDBDBD", "edgecolor": "none"}
_PADDING: dict[str, Any] = {"facecolor": "none", "edgecolor": GREY, "hatch": "////", "linewidth": 0.5}


@dataclass(frozen=True)
class Routing:
    """The experts that each token goes to. A *choice* is a token and one of its experts, number `token *
    top_k + i`."""

    experts: int  # how many there are
    chosen: torch.Tensor  # int64 (tokens, top_k)
    weights: torch.Tensor  # float32 (tokens, top_k), 1 in all for each token

    @property
    def counts(self) -> list[int]:
        """The rows of each expert."""
        return torch.bincount(self.chosen.flatten(), minlength=self.experts).tolist()

    def contiguous(self, alignment: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Put experts one behind the other, each from a multiple of `alignment` on.

        Returns:
            choices: int64 (m,), the choice that each row is for, -1 for padding.
            ids: int32 (m,), the expert of each row, -1 for padding.
            ends: int32 (experts,), the row behind each expert's last.
        """
        starts, ends, at = [], [], 0
        for count in self.counts:
            starts.append(round_up(at, alignment))
            ends.append(at := starts[-1] + count)
        choices = torch.full((round_up(at, alignment),), -1)
        ids = torch.full((len(choices),), -1, dtype=torch.int32)
        for expert, (start, end) in enumerate(zip(starts, ends, strict=True)):
            choices[start:end] = (self.chosen.flatten() == expert).nonzero()[:, 0]
            ids[start:end] = expert
        return choices, ids, torch.tensor(ends, dtype=torch.int32)

    def masked(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each expert a buffer of `rows` rows.

        Returns:
            choices: int64 (experts, rows), -1 behind an expert's count.
            counts: int32 (experts,).

        Raises ValueError when an expert has more rows.
        """
        if (most := max(self.counts)) > rows:
            raise ValueError(f"rows: expected at least {most}, those of the busiest expert, got {rows}")
        choices = torch.full((self.experts, rows), -1)
        for expert, count in enumerate(self.counts):
            choices[expert, :count] = (self.chosen.flatten() == expert).nonzero()[:, 0]
        return choices, torch.tensor(self.counts, dtype=torch.int32)


def route(tokens: int, experts: int, top_k: int = 2, imbalance: float = 1.0, seed: int = 0) -> Routing:
    """Route tokens as a model does, with random logits: softmax, the `top_k` likeliest experts, their weights
    normalised.

    imbalance is the standard deviation of an expert's popularity, the same with all tokens; with 0 only
    chance is at work. Raises ValueError for sizes that do not fit.
    """
    if tokens < 1 or not 1 <= top_k <= experts:
        raise ValueError(
            f"top_k: expected 1 to {experts} experts for at least one token, got {top_k} for {tokens}"
        )
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator)
    logits += imbalance * torch.randn(experts, generator=generator)
    weights, chosen = logits.softmax(1).topk(top_k)
    return Routing(experts, chosen, weights / weights.sum(1, keepdim=True))


@drawn
def routing(found: Routing) -> Picture:
    """Draw tokens over experts: a mark for each choice, darker where its weight is larger, and the rows of
    each expert."""
    tokens, top_k = found.chosen.shape
    made, (left, right) = figure(9.5, 0.9 + 0.25 * found.experts, 1, 2, width_ratios=(5, 1.4), sharey=True)
    for token in range(tokens):
        for expert, weight in zip(found.chosen[token].tolist(), found.weights[token].tolist(), strict=True):
            style = {"facecolor": _colour(expert), "alpha": 0.25 + 0.75 * weight}
            rectangle(left, token, expert - 0.42, 1, 0.84, edgecolor="white", linewidth=0.4, **style)
    left.set(xlim=(0, tokens), ylim=(found.experts - 0.4, -0.6), yticks=range(found.experts))
    said = f"{tokens} tokens, {top_k} of {found.experts} experts each"
    left.set(xlabel="token", ylabel="expert", title=said)

    counts = found.counts
    right.barh(range(found.experts), counts, color=[_colour(i) for i in range(found.experts)], height=0.84)
    for expert, count in enumerate(counts):
        label(right, count + 0.02 * max(counts), expert, str(count), ha="left")
    right.set(xlim=(0, 1.2 * max(counts)), xticks=[], title="rows")
    right.spines["bottom"].set_visible(False)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    return Picture(made, f"{said}; rows of the experts: {counts}")


@drawn
def contiguous_layout(
    found: Routing,
    config: GroupedConfig,
    alignments: Sequence[int] = (128, 1),
    prefix_sums: bool = False,
) -> Picture:
    """Draw the contiguous layout, a panel for each alignment: the rows with their ids or ends, and below them
    the parts of the kernel's tiles.

    A tile is as high (here: wide) as `config.block_m`, and each of its consumers has a share of it. The rows
    that a consumer multiplies have their group's colour; a consumer without rows of the part is skipped.
    Tiles and parts come from the scheduler, for one column of tiles. Raises ValueError for an alignment below
    1.
    """
    if not alignments or min(alignments) < 1:
        raise ValueError(f"alignments: expected at least one, from 1 on, got {tuple(alignments)}")

    # Let the scheduler walk over each layout.
    walks = {}
    for alignment in alignments:
        _, ids, ends = found.contiguous(alignment)
        layout, index = (Layout.PREFIX_SUMS, ends) if prefix_sums else (Layout.CONTIGUOUS, ids)
        walk = group_parts(layout, index.tolist(), len(ids), config.block_n, config, found.experts, alignment)
        parts = sorted((part for cta in walk for part in cta), key=lambda part: (part.row0, part.first))
        walks[alignment] = ids, ends, parts, _lanes(parts, config.block_m)
    most = max(
        max(len(ids), *(part.row0 + config.block_m for part in parts)) for ids, _, parts, _ in walks.values()
    )

    heights = [2.0 + 1.0 * (1 + max(lanes)) for *_, lanes in walks.values()]
    height = 0.8 + 0.42 * sum(heights) + 0.3 * len(heights)
    made, panels = figure(9.8, height, len(walks), squeeze=False, sharex=True, height_ratios=heights)
    made.get_layout_engine().set(h_pad=0.06)
    said = []
    for axes, walk_height, (alignment, (ids, ends, parts, lanes)) in zip(
        panels[:, 0], heights, walks.items(), strict=True
    ):
        _draw_rows(axes, ids.tolist(), ends.tolist(), most)
        for part, lane in zip(parts, lanes, strict=True):
            _draw_part(axes, part, config, 1.75 + lane, most)
        used = int((ids >= 0).sum())
        padding = len(ids) - used
        multiplied, skipped = _consumers(parts, config)
        heading = (
            f"alignment {alignment}: {len(ids)} rows, {padding} of them padding ({padding / max(len(ids), 1):.0%}); "
            f"{len(parts)} parts, {multiplied} consumers multiply, {skipped} are skipped"
        )
        axes.set(xlim=(-0.002 * most, most * 1.002), ylim=(walk_height - 0.2, 0), title=heading)
        axes.set_yticks(
            [0.55, 2.25], ["ends and rows" if prefix_sums else "ids and rows", "tiles"], fontsize=8
        )
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        said.append(
            f"{heading}; {multiplied * config.rows} rows are multiplied for {used}; ends {ends.tolist()}"
        )
    panels[-1, 0].set_xlabel(f"row of a and d; {_tiles(config)}")
    entries = {
        "the group's rows, multiplied": {"facecolor": GREY, "edgecolor": INK},
        "padding: written as zeros": _PADDING,
        "a consumer skipped": _SKIPPED,
    }
    legend(made, entries, handlelength=1.6)
    return Picture(made, "\n".join(said))


def _draw_rows(axes: Any, ids: Sequence[int], ends: Sequence[int], most: int) -> None:
    """Draw the rows of a contiguous layout, with their groups and the groups' ends."""
    for group, start, end in _runs(ids):
        style = (
            {"facecolor": _colour(group), "edgecolor": "white", "linewidth": 0.6} if group >= 0 else _PADDING
        )
        rectangle(axes, start, 0.15, end - start, 0.8, **style)
        if end - start > most / 60:
            # on the hatching of padding, a number needs a ground of its own
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if group < 0 else None
            ink = INK if group < 0 else ink_on(_colour(group))
            label(axes, (start + end) / 2, 0.55, str(group), color=ink, bbox=ground)
    last = 0
    for end in ends:
        if end - last > most / 40 or not last:
            label(axes, end, 1.0, str(end), va="top", size=7, color=INK)
            axes.plot([end, end], [0.1, 1.02], color=INK, linewidth=0.7)
            last = end


@drawn
def masked_layout(found: Routing, rows: int, config: GroupedConfig) -> Picture:
    """Draw the masked layout: a buffer of `rows` for each group, the rows that count in colour, and the tiles
    that the kernel takes; the other tiles are dashed.

    Raises ValueError when an expert has more rows.
    """
    counts = found.masked(rows)[1].tolist()
    total = found.experts * rows
    walk = group_parts(Layout.MASKED, counts, total, config.block_n, config, found.experts, rows)
    parts = sorted((part for cta in walk for part in cta), key=lambda part: part.row0)
    possible = ceil_div(rows, config.block_m)

    # Each group's buffer with all tiles that it could have, and over them the tiles that are taken.
    made, axes = figure(9.8, 1.1 + 0.42 * found.experts)
    dashed = {"fill": False, "edgecolor": GREY, "linestyle": ":", "linewidth": 0.7}
    for group in range(found.experts):
        rectangle(axes, 0, group + 0.12, rows, 0.76, facecolor=PALE, edgecolor="none")
        for tile in range(possible):
            rectangle(axes, tile * config.block_m, group + 0.12, config.block_m, 0.76, **dashed)
    for part in parts:
        _draw_part(axes, _moved(part, -part.group * rows), config, part.group + 0.12, rows, 0.76)
    right = max(rows, possible * config.block_m)
    for group, count in enumerate(counts):
        label(axes, 1.01 * right, group + 0.5, f"{count} rows", ha="left")

    multiplied, skipped = _consumers(parts, config)
    heading = (
        f"{found.experts} x {rows} rows, {sum(counts)} count: {len(parts)} of {found.experts * possible} tiles are "
        f"taken, {multiplied} consumers multiply, {skipped} are skipped"
    )
    axes.set(xlim=(-0.002 * right, 1.002 * right), ylim=(found.experts, 0))
    groups = range(found.experts)
    axes.set_yticks([i + 0.5 for i in groups], [f"expert {i}" for i in groups], fontsize=8)
    axes.set(xlabel=f"row of a group's buffer; {_tiles(config)}", title=heading)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    entries = {
        "rows that count, multiplied": {"facecolor": GREY, "edgecolor": INK},
        "a consumer skipped": _SKIPPED,
        "anything; never written": {"facecolor": PALE, "edgecolor": "none"},
    }
    legend(made, entries, handlelength=1.6)
    return Picture(made, f"{heading}; counts {counts}")


@drawn
def search(one: Search, groups: int) -> Picture:
    """Draw how a warp found a tile: the tiles of 32 groups, a lane for each, their prefix sums in five steps,
    and the ballot. Each 32 groups have a panel.

    Args:
        one: a search from `walks.group_search`, with the values that the warp's shuffles and ballots carried.
        groups: how many groups there are; the lanes beyond are left out.

    Raises ValueError when nothing was searched.
    """
    if not one.batches:
        raise ValueError("one: expected a search that looked at groups, got none")

    # The figure grows with the most lanes of a panel and with the steps of the prefix sum.
    shown = [min(32, max(1, groups - batch.group0)) for batch in one.batches]
    steps = len(one.batches[0].sums)
    width, height = max(6.5, 1.9 + 0.3 * max(shown)), 0.55 + len(shown) * (0.75 + 0.27 * (steps + 3))
    made, panels = figure(width, height, len(shown), squeeze=False)
    made.get_layout_engine().set(h_pad=0.08)

    # A panel's heading says in words what the 32 groups told the warp.
    said = []
    for axes, batch, lanes in zip(panels[:, 0], one.batches, shown, strict=True):
        winner = batch.reached.index(True) if any(batch.reached) else -1
        _draw_batch(axes, batch, one.number, lanes, winner)
        axes.set_xlim(0, max(shown))
        if winner >= 0:
            within = one.number - (batch.up_to[winner] - batch.tiles[winner])
            group = batch.group0 + winner
            said.append(
                f"number {one.number} is in group {group}: tile {within} of its {batch.tiles[winner]}"
            )
        else:
            total, last = batch.up_to[-1], batch.group0 + lanes - 1
            said.append(f"number {one.number} is not among the {total} tiles of groups 0 to {last}")
        axes.set_title(said[-1])

    # One label below the last panel serves all of them.
    panels[-1, 0].set_xlabel("lane; blue: changed by the step", loc="left")
    return Picture(made, "\n".join(said))


def _draw_batch(axes: Any, batch: Batch, number: int, lanes: int, winner: int) -> None:
    """Draw what a warp's lanes held while it looked at 32 groups, a row for each step."""
    # Groups before these 32 get a row only when they have tiles to add.
    rows: list[tuple[str, Sequence[int | str]]] = [
        ("group", range(batch.group0, batch.group0 + lanes)),
        ("its tiles", batch.tiles),
        *((f"+ the sum of lane - {step}", sums) for step, sums in batch.sums.items()),
    ]
    if batch.before:
        rows.append((f"+ {batch.before} of groups before", batch.up_to))
    rows.append((f"{number} < sum?", ["yes" if yes else "no" for yes in batch.reached]))

    # Blue marks values that a step changed; in the ballot green marks the lanes that say yes.
    earlier: Sequence[int | str] = ()
    for y, (_, values) in enumerate(rows):
        ballot = y == len(rows) - 1
        for lane, value in enumerate(list(values)[:lanes]):
            changed = y >= 2 and value != earlier[lane]
            face = PALE if y == 0 else SKY if changed else "white"
            if ballot:
                face = GREEN if lane == winner else "#BFE3D5" if value == "yes" else "white"
            rectangle(axes, lane, y, 1, 1, facecolor=face, edgecolor=GREY, linewidth=0.4)
            ink = ink_on(face) if face in (SKY, GREEN) else INK
            label(axes, lane + 0.5, y + 0.52, str(value), size=7.5, color=ink)
        earlier = list(values)[:lanes]

    # A frame joins the lane that won to everything that it held.
    if winner >= 0:
        rectangle(axes, winner, 0, 1, len(rows), fill=False, edgecolor=GREEN, linewidth=2, zorder=4)

    # The first step is at the top.
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [name for name, _ in rows], fontsize=8)
    axes.set_xticks([lane + 0.5 for lane in range(lanes)], [str(lane) for lane in range(lanes)], fontsize=7)
    unframed(axes)


# --- parts


def _tiles(config: GroupedConfig) -> str:
    return f"tiles of {config.block_m} rows, {config.consumers} consumers of {config.rows} each"


def _working(part: Part, config: GroupedConfig) -> list[bool]:
    """Whether each consumer has rows of the part to multiply."""
    tops = [part.row0 + number * config.rows for number in range(config.consumers)]
    return [part.group >= 0 and part.first < top + config.rows and top < part.middle for top in tops]


def _consumers(parts: Sequence[Part], config: GroupedConfig) -> tuple[int, int]:
    """Count the consumers that multiply, and those that are skipped."""
    working = [one for part in parts for one in _working(part, config)]
    return sum(working), len(working) - sum(working)


def _runs(ids: Sequence[int]) -> list[tuple[int, int, int]]:
    """(id, first row, row behind the last) of rows that follow each other."""
    found: list[tuple[int, int, int]] = []
    for row, group in enumerate(ids):
        if found and found[-1][0] == group:
            found[-1] = (group, found[-1][1], row + 1)
        else:
            found.append((group, row, row + 1))
    return found


def _lanes(parts: Sequence[Part], block_m: int) -> list[int]:
    """Choose a line of the picture for each part, so that boxes do not overlap."""
    ends: list[int] = []
    chosen = []
    for part in parts:
        lane = next((i for i, end in enumerate(ends) if end <= part.row0), len(ends))
        ends[lane : lane + 1] = [part.row0 + block_m]
        chosen.append(lane)
    return chosen


def _moved(part: Part, by: int) -> Part:
    return Part(part.group, part.row0 + by, part.column0, part.first + by, part.middle + by, part.last + by)


def _draw_part(
    axes: Any, part: Part, config: GroupedConfig, top: float, most: int, height: float = 0.8
) -> None:
    """Draw a tile's box, its consumers, and the part's rows: those that are multiplied and those that are
    zeros."""
    colour = _colour(part.group)
    for number, works in enumerate(_working(part, config)):
        style = {"facecolor": colour, "alpha": 0.22, "linewidth": 0} if works else _SKIPPED
        rectangle(axes, part.row0 + number * config.rows, top, config.rows, height, **style)
    zeros, count = part.last - part.middle, part.middle - part.first
    if zeros > 0:
        rectangle(axes, part.middle, top + 0.1 * height, zeros, 0.8 * height, **_PADDING)
    if count > 0:
        rectangle(axes, part.first, top + 0.1 * height, count, 0.8 * height, facecolor=colour, linewidth=0)
        if count > most / 60:
            middle = (part.first + part.middle) / 2
            label(axes, middle, top + 0.52 * height, str(part.group), color=ink_on(colour))
    for number in range(1, config.consumers):
        x = part.row0 + number * config.rows
        axes.plot([x] * 2, [top, top + height], color=INK, linewidth=0.6, linestyle=":")
    rectangle(
        axes, part.row0, top, config.block_m, height, fill=False, edgecolor=INK, linewidth=1.0, zorder=3
    )


def _colour(group: int) -> str:
    return _GROUPS[group % len(_GROUPS)]
