"""The order of tiles: waves over the SMs, the tail, and the bytes that a wave brings through L2. The order
comes from the scheduler itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..emulator.watch.report import Report
from ..emulator.watch.timeline import Timeline
from ..hopper import PRODUCTS_PER_CYCLE, SMS
from ..layout import ceil_div
from ..types import Config
from .shapes import label, rectangle, unframed
from .style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PERCENT,
    SERIES,
    SKY,
    THOUSANDS,
    Picture,
    drawn,
    figure,
)
from .walks import tile_order

__all__ = ["in_turn", "raster", "raster_traffic", "tail", "waves"]

_WAVES = (GREEN, BLUE, ORANGE, SKY)  # neighbours in time differ


def in_turn(run: Report, times: int) -> Report:
    """Return the report of `times` identical CTAs, run one after the other on one SM that has room for one.

    The next CTA begins when the last has ended; what starting a CTA costs is not in the timeline. Raises
    ValueError for a report without a timeline.
    """
    if run.timeline is None:
        raise ValueError(
            "run: expected a report of minigemm.observe(timeline=True), got one without a timeline"
        )
    if times < 1:
        raise ValueError(f"times: expected at least 1, got {times}")
    line = run.timeline
    intervals = []
    for number in range(times):
        later = number * line.end
        intervals += [replace(i, start=i.start + later, end=i.end + later) for i in line.intervals]
    return replace(
        run, timeline=Timeline(line.unit, line.source, list(line.agents), intervals, dict(line.rates))
    )


@drawn
def waves(m: int, n: int, k: int, configs: Mapping[str, Config], ctas: int = SMS) -> Picture:
    """Draw every SM's tiles in their order, a panel for each config: where the last wave is not full, SMs
    have nothing left to do.

    The axis is the tensor core's cycles for the products of a tile and nothing else. Raises ValueError for
    sizes below 1 and where there is no config.
    """
    _check(m, n, k, configs)
    walks = {name: tile_order(m, n, config, ctas) for name, config in configs.items()}
    cycles = {name: _area(config) * k / PRODUCTS_PER_CYCLE for name, config in configs.items()}
    last = max(max(map(len, walk)) * cycles[name] for name, walk in walks.items())

    made, panels = figure(9.5, 0.7 + 1.15 * len(walks), len(walks), squeeze=False, sharex=True)
    made.get_layout_engine().set(h_pad=0.07)
    said = []
    for axes, (name, walk) in zip(panels[:, 0], walks.items(), strict=True):
        rounds = max(map(len, walk))
        for wave in range(rounds):
            working = sum(wave < len(tiles) for tiles in walk)
            style = {"facecolor": _WAVES[wave % len(_WAVES)], "edgecolor": "white", "linewidth": 1.2}
            axes.broken_barh([(wave * cycles[name], cycles[name])], (0, working), **style)
            # a low bar has its number above it
            y, ink = (
                (working / 2, {"color": "white"})
                if working >= 0.25 * ctas
                else (working + 3, {"va": "bottom"})
            )
            label(
                axes,
                (wave + 0.5) * cycles[name],
                y,
                str(working) if rounds <= 12 else "",
                **{"color": INK, **ink},
            )
        count, end = sum(map(len, walk)), rounds * cycles[name]
        used = m * n / (rounds * ctas * _area(configs[name]))
        heading = (
            f"{name}: {count:,} tiles in {count / ctas:.2f} waves of {ctas}, {end:,.0f} cycles; {used:.0%} of them "
            "compute d"
        )
        axes.set(ylim=(0, ctas), yticks=[0, ctas], xlim=(0, last * 1.005), title=heading)
        axes.axvline(end, color=INK, linewidth=0.8)
        said.append(heading)
    panels[len(walks) // 2, 0].set_ylabel("SMs")
    panels[-1, 0].set_xlabel(
        "cycles of the tensor core, for the products alone; a number says how many SMs have a tile in that wave"
    )
    panels[-1, 0].xaxis.set_major_formatter(THOUSANDS)
    return Picture(made, "\n".join(said))


@drawn
def tail(n: int, configs: Mapping[str, Config], ms: Sequence[int], ctas: int = SMS) -> Picture:
    """Plot the share of the SMs' tensor cores that computes elements of d (m, n) against m. Last waves and
    tiles over the edge take the rest.

    Raises ValueError for sizes below 1 and fewer than two m.
    """
    # A curve needs two points, and every point a positive size.
    if len(ms) < 2:
        raise ValueError(f"ms: expected at least two sizes, got {list(ms)}")
    _check(min(ms), n, 1, configs)

    # Each config is one curve and one line of text.
    made, axes = figure(9.5, 3.0)
    said = []
    for number, (name, config) in enumerate(configs.items()):
        shares = []
        for m in ms:
            # A wave counts in full for every CTA, and a tile over the edge with its whole area.
            down, across = _grid(m, n, config)
            rounds = ceil_div(down * across, ctas)
            shares.append(m * n / (rounds * ctas * _area(config)))
        axes.plot(ms, shares, color=SERIES[number % len(SERIES)], linewidth=1.5, label=name)

        # The text names the m where the most is lost.
        low = min(range(len(ms)), key=lambda i: shares[i])
        mean = sum(shares) / len(shares)
        said.append(
            f"{name}: from {shares[low]:.0%} at m = {ms[low]} to {max(shares):.0%}, on average {mean:.0%}"
        )

    # The axis always reaches from 0 to 1, so that pictures can be compared.
    title = f"How much of {ctas} SMs computes elements of d, n = {n:,}"
    axes.set(xlim=(min(ms), max(ms)), ylim=(0, 1), xlabel="rows of d, m", title=title)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.grid(color=GREY, alpha=0.2)
    axes.legend(loc="lower right", fontsize=8)
    return Picture(made, "\n".join(said))


@drawn
def raster(
    m: int,
    n: int,
    k: int,
    configs: Mapping[str, Config],
    wave: int = 0,
    ctas: int = SMS,
    scheduler: str | os.PathLike[str] | None = None,
) -> Picture:
    """Draw the tiles of one wave on d, and the rows of a (left) and of b (above) that it reads, a panel for
    each config. The order of the tiles is the scheduler's own.

    Args:
        m, n, k: the product.
        configs: by name, of s08_persistent; what differs is usually `raster` and `raster_m`.
        wave: which tile of every CTA is shown in green.
        ctas: how many there are.
        scheduler: the path of your own scheduler.cuh, walked instead.

    Raises ValueError for sizes below 1, no config, and a wave that does not exist.
    """
    # A panel's height follows the shape of its grid of tiles, within bounds.
    _check(m, n, k, configs)
    grids = {name: _grid(m, n, config) for name, config in configs.items()}
    heights = [min(3.2, max(0.55, 8.2 * down / across)) for down, across in grids.values()]
    height = 0.4 + sum(heights) + 0.5 * len(configs)
    made, panels = figure(9.5, height, len(configs), squeeze=False, height_ratios=[h + 0.2 for h in heights])
    said = []
    for axes, (name, config) in zip(panels[:, 0], configs.items(), strict=True):
        # CTAs that have no tile left in this wave are left out; some CTA must have one.
        walk = tile_order(m, n, config, ctas, scheduler)
        at_once = [tiles[wave] for tiles in walk if wave < len(tiles)]
        if not at_once:
            raise ValueError(f"wave: expected one of the {max(map(len, walk))} of {name!r}, got {wave}")
        _draw_wave(axes, walk, wave, *grids[name])

        # The heading counts what several tiles share only once.
        of_a, of_b = _needed(at_once, m, n, k, config)
        down, across = len({i for i, _ in at_once}), len({j for _, j in at_once})
        heading = (
            f"{name}: wave {wave}, {len(at_once)} tiles, needs {down} x {across} blocks: "
            f"{of_a / 1e6:.1f} MB of a + {of_b / 1e6:.1f} MB of b = {(of_a + of_b) / 1e6:.1f} MB"
        )
        axes.set_title(heading, pad=6)

        # Each CTA asks L2 for all that its own tile needs, so this sum counts shared bytes again.
        asked = sum(_asked(tile, m, n, k, config) for tile in at_once)
        said.append(f"{heading}; the CTAs ask L2 for {asked / 1e6:.1f} MB")

    # One legend below the last panel serves all of them.
    down, across = grids[name]
    colours = "Green: this wave; grey: before it. Blue: its rows of a; orange: its rows of b"
    panels[-1, 0].set_xlabel(f"d: {down} x {across} tiles. {colours}", fontsize=9)
    return Picture(made, "\n".join(said))


def _draw_wave(
    axes: Any, walk: Sequence[Sequence[tuple[int, int]]], wave: int, down: int, across: int
) -> None:
    """Draw the tiles of d with one wave in green, and beside them its rows of a and of b."""
    from matplotlib.colors import to_rgb

    image = [[to_rgb(PALE)] * across for _ in range(down)]
    for tiles in walk:
        for number, (i, j) in enumerate(tiles[: wave + 1]):
            image[i][j] = to_rgb(GREEN) if number == wave else (0.78, 0.78, 0.78)
    axes.imshow(image, interpolation="nearest", aspect="auto", extent=(0, across, down, 0))
    side, top = 0.012 * across, 0.1 * down if down < 40 else 0.04 * down
    at_once = [tiles[wave] for tiles in walk if wave < len(tiles)]
    for i in {i for i, _ in at_once}:
        rectangle(axes, -2 * side, i, side, 1, facecolor=BLUE, linewidth=0, clip_on=False)
    for j in {j for _, j in at_once}:
        rectangle(axes, j, -2 * top, 1, top, facecolor=ORANGE, linewidth=0, clip_on=False)
    axes.set(xlim=(-2.2 * side, across), ylim=(down, -2.2 * top), xticks=[], yticks=[])
    unframed(axes)


@drawn
def raster_traffic(m: int, n: int, k: int, config: Config, widths: Sequence[int], ctas: int = SMS) -> Picture:
    """Plot the bytes of a and b that a wave needs, on average over all waves, against the width of the
    raster's bands, for bands of columns and of rows.

    Raises ValueError for sizes below 1 and where there is no width.
    """
    # Each average is over the waves of one width, so there must be one.
    _check(m, n, k, {"": config})
    if not widths:
        raise ValueError("widths: expected at least one width of a band, got none")

    # There is one curve for bands of columns and one for bands of rows.
    made, axes = figure(8.6, 3.2)
    said = []
    asked = 0.0
    for of_rows, colour, mark in ((False, ORANGE, "o"), (True, BLUE, "s")):
        means = []
        for width in widths:
            # A wave is one tile of every CTA that has one left.
            walk = tile_order(m, n, replace(config, raster=width, raster_m=of_rows), ctas)  # type: ignore[call-arg]
            rounds = max(map(len, walk))
            each = [[tiles[wave] for tiles in walk if wave < len(tiles)] for wave in range(rounds)]
            means.append(sum(sum(_needed(tiles, m, n, k, config)) for tiles in each) / rounds / 1e6)

            # The order changes nothing in what the CTAs ask for, so the last value serves for all.
            asked = sum(_asked(tile, m, n, k, config) for tiles in walk for tile in tiles) / rounds / 1e6

        # The text lists the values and names the best width.
        name = f"bands of {'rows' if of_rows else 'columns'} of tiles"
        axes.plot(widths, means, color=colour, marker=mark, markersize=5, linewidth=1.5, label=name)
        best = min(range(len(widths)), key=lambda i: means[i])
        values = ", ".join(f"{mean:.1f} MB at {width}" for width, mean in zip(widths, means, strict=True))
        said.append(f"{name}: {values}; least at {widths[best]}")

    # The ticks are exactly the widths that were asked for.
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(widths), [str(width) for width in widths])
    axes.minorticks_off()
    axes.set(xlabel="width of a band: raster", ylabel="MB a wave")
    axes.set_title(f"Different bytes that a wave needs; its {ctas} CTAs ask for {asked:.0f} MB")
    axes.set_ylim(bottom=0)
    axes.grid(color=GREY, alpha=0.2)
    axes.legend(fontsize=8)
    return Picture(made, "\n".join([*said, f"the CTAs of a wave ask for {asked:.1f} MB"]))


def _check(m: int, n: int, k: int, configs: Mapping[str, Config]) -> None:
    for name, size in (("m", m), ("n", n), ("k", k)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")
    if not configs:
        raise ValueError("configs: expected at least one by name, got none")


def _area(config: Config) -> int:
    constants = config.constants()
    return constants["BLOCK_M"] * constants["BLOCK_N"]


def _grid(m: int, n: int, config: Config) -> tuple[int, int]:
    """The tiles of d, down and across."""
    constants = config.constants()
    return ceil_div(m, constants["BLOCK_M"]), ceil_div(n, constants["BLOCK_N"])


def _needed(tiles: Sequence[tuple[int, int]], m: int, n: int, k: int, config: Config) -> tuple[int, int]:
    """The bytes of a and of b that these tiles need, each byte counted once; an element is one byte."""
    constants = config.constants()
    block_m, block_n = constants["BLOCK_M"], constants["BLOCK_N"]
    rows = sum(min(block_m, m - i * block_m) for i in {i for i, _ in tiles})
    columns = sum(min(block_n, n - j * block_n) for j in {j for _, j in tiles})
    return rows * k, columns * k


def _asked(tile: tuple[int, int], m: int, n: int, k: int, config: Config) -> int:
    """The bytes of a and b that one tile needs."""
    return sum(_needed([tile], m, n, k, config))
