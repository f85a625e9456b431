"""Experts: from a router's choices to the two layouts of rows, the parts that the kernel makes of them, and how a warp finds its tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels import s10_grouped
from ..layout import ceil_div, round_up
from .style import BLUE, GREEN, GREY, INK, ORANGE, PALE, PURPLE, RED, SKY, Picture, drawn, figure, ink_on
from .walks import Part, Search, group_parts

__all__ = ["Routing", "contiguous_layout", "masked_layout", "route", "routing", "search"]

_GROUPS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, "#F0E442", "#5B4B8A")  # neighbours differ
_SKIPPED: dict[str, Any] = {"facecolor": "#BDBDBD", "edgecolor": "none"}
_PADDING: dict[str, Any] = {"facecolor": "none", "edgecolor": GREY, "hatch": "////", "linewidth": 0.5}


@dataclass(frozen=True)
class Routing:
    """Which experts each token goes to. A *choice* is a token and one of its experts, number `token * top_k + i`.

    experts: how many there are. chosen: int64 (tokens, top_k). weights: float32 (tokens, top_k), of each token 1 in all.
    """

    experts: int
    chosen: torch.Tensor
    weights: torch.Tensor

    @property
    def counts(self) -> list[int]:
        """Rows of each expert."""
        return torch.bincount(self.chosen.flatten(), minlength=self.experts).tolist()

    def contiguous(self, alignment: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Experts one behind the other, each from a multiple of `alignment` on.

        Returns:
            choices: int64 (m,), the choice that each row is for, -1 for padding; ids: int32 (m,), its expert, -1 for padding; ends: int32 (experts,).
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
        """A buffer of so many rows for each expert.

        Returns:
            choices: int64 (experts, rows), -1 behind an expert's count; counts: int32 (experts,).

        Raises ValueError when an expert has more rows.
        """
        if max(self.counts) > rows:
            raise ValueError(
                f"rows: expected at least {max(self.counts)}, those of the busiest expert, got {rows}"
            )
        choices = torch.full((self.experts, rows), -1)
        for expert, count in enumerate(self.counts):
            choices[expert, :count] = (self.chosen.flatten() == expert).nonzero()[:, 0]
        return choices, torch.tensor(self.counts, dtype=torch.int32)


def route(tokens: int, experts: int, top_k: int = 2, imbalance: float = 1.0, seed: int = 0) -> Routing:
    """A router as a model has it, with random logits: softmax, the `top_k` likeliest experts, their weights normalised.

    imbalance: the standard deviation of what makes an expert popular with all tokens; 0: only chance is at work. Raises ValueError for sizes that do not fit.
    """
    if tokens < 1 or not 1 <= top_k <= experts:
        raise ValueError(
            f"top_k: expected 1 to {experts} experts for at least one token, got {top_k} for {tokens}"
        )
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, experts, generator=generator) + imbalance * torch.randn(
        experts, generator=generator
    )
    weights, chosen = logits.softmax(1).topk(top_k)
    return Routing(experts, chosen, weights / weights.sum(1, keepdim=True))


@drawn
def routing(found: Routing) -> Picture:
    """Tokens over experts: a mark for each choice, darker where its weight is larger; and how many rows each expert gets."""
    tokens, top_k = found.chosen.shape
    made, (left, right) = figure(9.5, 0.9 + 0.25 * found.experts, 1, 2, width_ratios=(5, 1.4), sharey=True)
    for token in range(tokens):
        for expert, weight in zip(found.chosen[token].tolist(), found.weights[token].tolist(), strict=True):
            left.add_patch(
                _box(
                    token,
                    expert - 0.42,
                    1,
                    0.84,
                    facecolor=_colour(expert),
                    alpha=0.25 + 0.75 * weight,
                    edgecolor="white",
                    linewidth=0.4,
                )
            )
    counts = found.counts
    left.set(
        xlim=(0, tokens),
        ylim=(found.experts - 0.4, -0.6),
        yticks=range(found.experts),
        xlabel="token",
        ylabel="expert",
    )
    left.set_title(f"{tokens} tokens, {top_k} of {found.experts} experts each")
    right.barh(
        range(found.experts), counts, color=[_colour(expert) for expert in range(found.experts)], height=0.84
    )
    for expert, count in enumerate(counts):
        right.text(count + 0.02 * max(counts), expert, str(count), va="center", fontsize=8)
    right.set(xlim=(0, 1.2 * max(counts)), xticks=[], title="rows")
    right.spines["bottom"].set_visible(False)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    return Picture(
        made, f"{tokens} tokens, {top_k} of {found.experts} experts each; rows of the experts: {counts}"
    )


@drawn
def contiguous_layout(
    found: Routing,
    config: s10_grouped.Config,
    alignments: Sequence[int] = (128, 1),
    prefix_sums: bool = False,
) -> Picture:
    """The contiguous layout, a panel for each alignment: the rows with their ids or ends, and below them what the kernel's tiles are parts of.

    A tile is as high (here: wide) as `config.block_m`, and each of its consumers has a share of it. What a consumer multiplies has its group's colour;
    one without rows of the part is skipped. Tiles and parts come from the scheduler, for one column of tiles. Raises ValueError for an alignment below 1.
    """
    if not alignments or min(alignments) < 1:
        raise ValueError(f"alignments: expected at least one, from 1 on, got {tuple(alignments)}")
    walks = {}
    for alignment in alignments:
        _, ids, ends = found.contiguous(alignment)
        layout, index = (s10_grouped.PREFIX_SUMS, ends) if prefix_sums else (s10_grouped.CONTIGUOUS, ids)
        walk = group_parts(layout, index.tolist(), len(ids), config.block_n, config, found.experts, alignment)
        parts = sorted((part for cta in walk for part in cta), key=lambda part: (part.row0, part.first))
        walks[alignment] = ids, ends, parts, _lanes(parts, config.block_m)
    most = max(
        max(len(ids), *(part.row0 + config.block_m for part in parts)) for ids, _, parts, _ in walks.values()
    )
    heights = [2.0 + 1.0 * (1 + max(lanes)) for *_, lanes in walks.values()]
    made, panels = figure(
        9.8,
        0.8 + 0.42 * sum(heights) + 0.3 * len(heights),
        len(walks),
        1,
        squeeze=False,
        sharex=True,
        height_ratios=heights,
    )
    made.get_layout_engine().set(h_pad=0.06)
    said = []
    for axes, (alignment, (ids, ends, parts, lanes)), height in zip(
        panels[:, 0], walks.items(), heights, strict=True
    ):
        last = 0
        for group, start, end in _runs(ids.tolist()):
            style = (
                _PADDING
                if group < 0
                else {"facecolor": _colour(group), "edgecolor": "white", "linewidth": 0.6}
            )
            axes.add_patch(_box(start, 0.15, end - start, 0.8, **style))
            if end - start > most / 60:
                axes.text((start + end) / 2, 0.55, str(group), ha="center", va="center", fontsize=8, color=INK if group < 0 else ink_on(_colour(group)),
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if group < 0 else None)  # fmt: skip
        for end in ends.tolist():
            if end - last > most / 40 or not last:
                axes.text(end, 1.0, str(end), ha="center", va="top", fontsize=7, color=INK)
                axes.plot([end, end], [0.1, 1.02], color=INK, linewidth=0.7)
                last = end
        for part, lane in zip(parts, lanes, strict=True):
            _draw_part(axes, part, config, 1.75 + lane, most)
        used = int((ids >= 0).sum())
        multiplied, skipped = _consumers(parts, config)
        rows = (
            f"{len(ids)} rows, {len(ids) - used} of them padding ({(len(ids) - used) / max(len(ids), 1):.0%})"
        )
        heading = f"alignment {alignment}: {rows}; {len(parts)} parts, {multiplied} consumers multiply, {skipped} are skipped"
        axes.set_title(heading)
        axes.set(xlim=(-0.002 * most, most * 1.002), ylim=(height - 0.2, 0), yticks=[0.55, 2.25])
        axes.set_yticklabels(["ends and rows" if prefix_sums else "ids and rows", "tiles"], fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        said.append(
            f"{heading}; {multiplied * config.rows} rows are multiplied for {used}; ends {ends.tolist()}"
        )
    panels[-1, 0].set_xlabel(
        f"row of a and d; tiles of {config.block_m} rows, {config.consumers} consumers of {config.rows} each"
    )
    _legend(
        made,
        [
            ("the group's rows, multiplied", {"facecolor": GREY, "edgecolor": INK}),
            ("padding: written as zeros", _PADDING),
            ("a consumer skipped", _SKIPPED),
        ],
    )
    return Picture(made, "\n".join(said))


@drawn
def masked_layout(found: Routing, rows: int, config: s10_grouped.Config) -> Picture:
    """The masked layout: a buffer of `rows` for each group, the rows that count in colour, and the tiles that the kernel takes; the others are dashed.

    Raises ValueError when an expert has more rows.
    """
    _, counts = found.masked(rows)
    walk = group_parts(
        s10_grouped.MASKED, counts.tolist(), found.experts * rows, config.block_n, config, found.experts, rows
    )
    parts = sorted((part for cta in walk for part in cta), key=lambda part: part.row0)
    made, axes = figure(9.8, 1.1 + 0.42 * found.experts)
    possible = ceil_div(rows, config.block_m)
    for group in range(found.experts):
        axes.add_patch(_box(0, group + 0.12, rows, 0.76, facecolor=PALE, edgecolor="none"))
        for tile in range(possible):
            axes.add_patch(
                _box(
                    tile * config.block_m,
                    group + 0.12,
                    config.block_m,
                    0.76,
                    fill=False,
                    edgecolor=GREY,
                    linestyle=":",
                    linewidth=0.7,
                )
            )
    for part in parts:
        base = part.group * rows
        _draw_part(axes, _moved(part, -base), config, part.group + 0.12, rows, 0.76)
    right = max(rows, possible * config.block_m)
    for group, count in enumerate(counts.tolist()):
        axes.text(1.01 * right, group + 0.5, f"{count} rows", va="center", fontsize=8)
    multiplied, skipped = _consumers(parts, config)
    taken = f"{len(parts)} of {found.experts * possible} tiles are taken"
    heading = f"{found.experts} x {rows} rows, {sum(counts.tolist())} count: {taken}, {multiplied} consumers multiply, {skipped} are skipped"
    axes.set(
        xlim=(-0.002 * right, 1.002 * right),
        ylim=(found.experts, 0),
        yticks=[i + 0.5 for i in range(found.experts)],
    )
    axes.set_yticklabels([f"expert {i}" for i in range(found.experts)], fontsize=8)
    axes.set(
        xlabel=f"row of a group's buffer; tiles of {config.block_m} rows, {config.consumers} consumers of {config.rows} each",
        title=heading,
    )
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    boxes = [
        ("rows that count, multiplied", {"facecolor": GREY, "edgecolor": INK}),
        ("a consumer skipped", _SKIPPED),
        ("anything; never written", {"facecolor": PALE, "edgecolor": "none"}),
    ]
    _legend(made, boxes)
    return Picture(made, f"{heading}; counts {counts.tolist()}")


@drawn
def search(one: Search, groups: int) -> Picture:
    """How a warp found a tile: the tiles of 32 groups, a lane for each, their prefix sums in five steps, and the ballot. One panel for each 32 groups.

    `one`: of `probes.scheduling.group_search`; the values are those that the warp's shuffles and ballots carried. `groups`: how many lanes have one.
    Raises ValueError when nothing was searched.
    """
    if not one.batches:
        raise ValueError("one: expected a search that looked at groups, got none")
    shown = [min(32, max(1, groups - batch.group0)) for batch in one.batches]
    steps = len(one.batches[0].sums)
    made, panels = figure(
        max(6.5, 1.9 + 0.3 * max(shown)),
        0.55 + len(shown) * (0.75 + 0.27 * (steps + 3)),
        len(shown),
        1,
        squeeze=False,
    )
    made.get_layout_engine().set(h_pad=0.08)
    said = []
    for axes, batch, lanes in zip(panels[:, 0], one.batches, shown, strict=True):
        rows: list[tuple[str, Sequence[int | str]]] = [
            ("group", range(batch.group0, batch.group0 + lanes)),
            ("its tiles", batch.tiles),
        ]
        rows += [(f"+ the sum of lane - {step}", sums) for step, sums in batch.sums.items()]
        if batch.before:
            rows.append((f"+ {batch.before} of groups before", batch.up_to))
        rows.append((f"{one.number} < sum?", ["yes" if yes else "no" for yes in batch.reached]))
        winner = batch.reached.index(True) if any(batch.reached) else -1
        earlier: Sequence[int | str] = ()
        for y, (_, values) in enumerate(rows):
            for lane, value in enumerate(list(values)[:lanes]):
                changed = 2 <= y < len(rows) - 1 and value != earlier[lane]
                face = PALE if y == 0 else SKY if changed else "white"
                if y == len(rows) - 1:
                    face = GREEN if lane == winner else "#BFE3D5" if value == "yes" else "white"
                axes.add_patch(_box(lane, y, 1, 1, facecolor=face, edgecolor=GREY, linewidth=0.4))
                axes.text(
                    lane + 0.5,
                    y + 0.52,
                    str(value),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color=ink_on(face) if face in (SKY, GREEN) else INK,
                )
            earlier = list(values)[:lanes]
        if winner >= 0:
            axes.add_patch(_box(winner, 0, 1, len(rows), fill=False, edgecolor=GREEN, linewidth=2, zorder=4))
        axes.set(
            xlim=(0, max(shown)),
            ylim=(len(rows), 0),
            yticks=[y + 0.5 for y in range(len(rows))],
            xticks=[lane + 0.5 for lane in range(lanes)],
        )
        axes.set_yticklabels([name for name, _ in rows], fontsize=8)
        axes.set_xticklabels([str(lane) for lane in range(lanes)], fontsize=7)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        total = batch.up_to[-1]
        if winner >= 0:
            within = one.number - (batch.up_to[winner] - batch.tiles[winner])
            said.append(
                f"number {one.number} is in group {batch.group0 + winner}: tile {within} of its {batch.tiles[winner]}"
            )
        else:
            said.append(
                f"number {one.number} is not among the {total} tiles of groups 0 to {batch.group0 + lanes - 1}"
            )
        axes.set_title(said[-1])
    panels[-1, 0].set_xlabel("lane; blue: changed by the step", loc="left")
    return Picture(made, "\n".join(said))


# ---------------------------------------------------------------------------------------------------- parts


def _working(part: Part, config: s10_grouped.Config) -> list[bool]:
    """Whether each consumer has rows of the part to multiply."""
    tops = [part.row0 + number * config.rows for number in range(config.consumers)]
    return [part.group >= 0 and part.first < top + config.rows and top < part.middle for top in tops]


def _consumers(parts: Sequence[Part], config: s10_grouped.Config) -> tuple[int, int]:
    """How many multiply, and how many are skipped."""
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
    """A line of the picture for each part, so that boxes do not overlap."""
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
    axes: Any, part: Part, config: s10_grouped.Config, top: float, most: int, height: float = 0.8
) -> None:
    """The tile's box, its consumers, and of the part the rows that are multiplied and those that are zeros."""
    for number, works in enumerate(_working(part, config)):
        left = part.row0 + number * config.rows
        if not works:
            axes.add_patch(_box(left, top, config.rows, height, **_SKIPPED))
        else:
            axes.add_patch(
                _box(left, top, config.rows, height, facecolor=_colour(part.group), alpha=0.22, linewidth=0)
            )
    if part.last > part.middle:
        axes.add_patch(
            _box(part.middle, top + 0.1 * height, part.last - part.middle, 0.8 * height, **_PADDING)
        )
    if part.middle > part.first:
        colour = _colour(part.group)
        axes.add_patch(
            _box(
                part.first,
                top + 0.1 * height,
                part.middle - part.first,
                0.8 * height,
                facecolor=colour,
                linewidth=0,
            )
        )
        if part.middle - part.first > most / 60:
            axes.text(
                (part.first + part.middle) / 2,
                top + 0.52 * height,
                str(part.group),
                ha="center",
                va="center",
                fontsize=8,
                color=ink_on(colour),
            )
    for number in range(1, config.consumers):
        axes.plot(
            [part.row0 + number * config.rows] * 2,
            [top, top + height],
            color=INK,
            linewidth=0.6,
            linestyle=":",
        )
    axes.add_patch(
        _box(part.row0, top, config.block_m, height, fill=False, edgecolor=INK, linewidth=1.0, zorder=3)
    )


def _colour(group: int) -> str:
    return _GROUPS[group % len(_GROUPS)]


def _box(x: float, y: float, width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, **style)


def _legend(made: Any, boxes: Sequence[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.patches import Patch

    made.legend(
        handles=[Patch(label=label, **style) for label, style in boxes],
        loc="outside lower left",
        ncols=len(boxes),
        fontsize=8,
        handlelength=1.6,
    )
