"""A cluster of two CTAs: who loads which half for whom, and who tells whom that it may; the bytes that this saves, counted and measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..emulator.watch.report import Report
from .counts import RESULTS, _table
from .style import BLUE, GREY, INK, ORANGE, PALE, RED, Html, Picture, drawn, figure, ink_on

__all__ = ["Part", "cluster", "cluster_bytes", "counted_multicast", "parts", "recorded_multicast"]

_LOAD = re.compile(
    r"box at \(([^)]*)\) -> shared (0x[0-9a-f]+) of CTA rank (\d+), (\d+) bytes on mbarrier (0x[0-9a-f]+) of"
)
_RANK = re.compile(r"CTA rank (\d+)$")
_COLOURS = (BLUE, ORANGE)  # by the CTA that asks


@dataclass(frozen=True)
class Part:
    """A box that a CTA asked for, and the CTAs that got it, at the same shared address in each."""

    asked: int  # rank
    got: tuple[int, ...]  # ranks
    at: tuple[int, ...]  # the box's coordinates, innermost first
    to: int
    bytes: int


def parts(report: Report, step: int = 0) -> list[Part]:
    """What the first cluster's producers loaded in one k-step into one slot, in the order of shared addresses.

    Raises ValueError for a report of a kernel without clusters, and for a step that is not there.
    """
    found: dict[tuple[int, int, str, int], list[int]] = {}
    barriers: dict[int, list[str]] = {}  # by asking rank: a step's barrier, step by step
    last: dict[int, str] = {}
    for event in report.events:
        match = _LOAD.match(event.detail) if event.kind == "tma load issued" else None
        who = _RANK.search(event.agent)
        if match and who:
            rank = int(who[1])
            if last.get(rank) != match[5]:
                last[rank] = match[5]
                barriers.setdefault(rank, []).append(match[5])
            if len(barriers[rank]) == step + 1:
                found.setdefault((int(match[2], 16), rank, match[1], int(match[4])), []).append(int(match[3]))
    if not barriers:
        raise ValueError(
            "report: expected one of a kernel with clusters that loads by TMA, got one without such events"
        )
    if not found:
        raise ValueError(
            f"step: expected one of the {max(map(len, barriers.values()))} of the first cluster, got {step}"
        )
    return [
        Part(rank, tuple(sorted(got)), tuple(map(int, at.split(","))), to, size)
        for (to, rank, at, size), got in sorted(found.items())
    ]


def _by_tile(loaded: Sequence[Part]) -> list[list[Part]]:
    """Parts that lie side by side in shared memory make a tile."""
    tiles: list[list[Part]] = []
    end = -1
    for part in loaded:
        if tiles and part.to in (end, tiles[-1][-1].to):
            tiles[-1].append(part)
        else:
            tiles.append([part])
        end = part.to + part.bytes
    return tiles


@drawn
def cluster(report: Report, consumers: int, names: Sequence[str] = ("a", "b", "sfa")) -> Picture:
    """One k-step of a cluster of two: its boxes between memory and the two shared memories, and the arrivals that hand the slot back.

    Args:
        report: of a kernel with clusters of two CTAs.
        consumers: warpgroups of each CTA that release a slot, a lane of each of their warps at the barriers of both CTAs.
        names: of the tiles of a slot, in the order of shared addresses.

    Raises ValueError for a report without such clusters, and for the wrong number of names.
    """
    loaded = parts(report)
    ranks = sorted({rank for part in loaded for rank in part.got})
    if ranks != [0, 1]:
        raise ValueError(f"report: expected one of clusters of two CTAs, got loads into CTAs {ranks}")
    tiles = _by_tile(loaded)
    if len(tiles) != len(names):
        raise ValueError(
            f"names: expected one for each of the {len(tiles)} tiles of a slot, got {len(names)}"
        )
    made, axes = figure(10, 2.9 + 1.05 * len(tiles))
    width, left, middle, right = 2.7, 0.0, 4.3, 8.6
    for y, (name, tile) in enumerate(zip(names, tiles, strict=True)):
        for i, part in enumerate(tile):
            height = 0.84 / len(tile)
            top = y + 0.08 + i * height
            _block(
                axes,
                middle,
                top,
                width,
                height,
                _COLOURS[part.asked],
                f"{name}, {part.bytes:,} bytes at {part.at}",
            )
            shared = len(part.got) > 1
            own = sum(part.to == other.to for other in tile) > 1  # each CTA has another tile at this place
            for rank in part.got:
                x = left if rank == 0 else right
                share, where = (0.84, y + 0.08) if own else (height, top)
                label = f"{name}: loaded by CTA {part.asked}" + (" for both" if shared else "")
                _block(axes, x, where, width, share, _COLOURS[part.asked], label)
                start = (middle if rank == 0 else middle + width, top + height / 2)
                _arrow(
                    axes,
                    start,
                    (x + width if rank == 0 else x, where + share / 2),
                    _COLOURS[part.asked],
                    1.8 if shared else 1.0,
                )
    foot = len(tiles)
    said = []
    for rank, x in ((0, left), (1, right)):
        mine = [part for part in loaded if rank in part.got]
        total, others = (
            sum(part.bytes for part in mine),
            sum(part.bytes for part in mine if part.asked != rank),
        )
        expects = f"full: {total:,} bytes\n{others:,} of them from CTA {1 - rank}"
        _block(axes, x, foot + 0.16, width, 0.62, PALE, expects)
        _block(
            axes,
            x,
            foot + 0.94,
            width,
            0.62,
            PALE,
            f"empty: {8 * consumers} arrivals,\n{4 * consumers} from each CTA",
        )
        _block(axes, x, foot + 2.0, width, 0.44, GREY, f"{4 * consumers} warps of consumers")
        _arrow(axes, (x + width / 2, foot + 2.0), (x + width / 2, foot + 1.57), RED, 1.4)
        inner, over = (x + width, right) if rank == 0 else (x, left + width)
        _arrow(axes, (inner, foot + 2.2), (over, foot + 1.3), RED, 1.4)
        axes.text(
            x + width / 2,
            -0.1,
            f"CTA {rank}, slot 0",
            ha="center",
            va="bottom",
            fontweight="bold",
            color=_COLOURS[rank],
        )
        asked = ", ".join(f"{name} {p.bytes:,} bytes for {'both' if len(p.got) > 1 else 'itself'}" for name, tile in zip(names, tiles, strict=True) for p in tile
                          if p.asked == rank)  # fmt: skip
        said.append(f"CTA {rank} asks for {asked}; its full barrier expects {total:,} bytes, {others:,} of them from CTA {1 - rank}; its empty barrier "
                    f"{8 * consumers} arrivals, {4 * consumers} of each CTA")  # fmt: skip
    axes.text(
        middle + width / 2,
        -0.1,
        "asked of memory, through L2",
        ha="center",
        va="bottom",
        fontweight="bold",
        color=INK,
    )
    axes.text(
        middle + width / 2,
        foot + 1.28,
        "each releases\nboth slots",
        ha="center",
        va="center",
        fontsize=8,
        color=RED,
    )
    axes.set(xlim=(-0.1, right + width + 0.1), ylim=(foot + 2.6, -0.45))
    axes.axis("off")
    return Picture(made, "\n".join(said))


def _block(axes: Any, x: float, y: float, width: float, height: float, colour: str, label: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", linewidth=1.2))
    axes.text(
        x + width / 2, y + height / 2, label, ha="center", va="center", fontsize=7.5, color=ink_on(colour)
    )


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str, width: float
) -> None:
    axes.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": width,
            "shrinkA": 0,
            "shrinkB": 0,
            "alpha": 0.85,
        },
    )


@drawn
def cluster_bytes(runs: Mapping[str, Report]) -> Picture:
    """What TMA read from memory (through L2), and what it wrote to shared memory: a multicast reads once and writes to every CTA.

    Raises ValueError when there is nothing to compare.
    """
    if not runs:
        raise ValueError("runs: expected at least one report by name, got none")
    made, axes = figure(9, 0.9 + 0.62 * len(runs))
    most = max(report.counters["tma_delivered_bytes"] for report in runs.values())
    first = next(iter(runs.values())).counters["tma_load_bytes"]
    said = []
    for y, (name, report) in enumerate(runs.items()):
        for shift, counter, colour in (
            (-0.17, "tma_load_bytes", BLUE),
            (0.17, "tma_delivered_bytes", ORANGE),
        ):
            count = report.counters[counter]
            axes.barh(
                y + shift,
                count,
                0.32,
                color=colour,
                label=("read from memory", "written to shared memory")[shift > 0] if y == 0 else None,
            )
            share = f", {count / first:.0%}" if shift < 0 else ""
            axes.text(count + 0.01 * most, y + shift, f"{count:,}{share}", va="center", fontsize=8)
        read, written = report.counters["tma_load_bytes"], report.counters["tma_delivered_bytes"]
        said.append(
            f"{name}: {read:,} bytes read from memory ({read / first:.0%}), {written:,} written to shared memory"
        )
    axes.set(ylim=(len(runs) - 0.5, -0.5), xlim=(0, 1.2 * most), xlabel="bytes of TMA's loads")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    made.legend(loc="outside upper center", ncols=2, fontsize=8)
    return Picture(made, "\n".join(said))


def recorded_multicast(file: Path = RESULTS / "h100_multicast.json") -> Html:
    """s08_persistent beside s09_multicast as a Hopper GPU gave them, of `bench --multicast --json`; or the word that there is no such file."""
    if not file.is_file():
        text = "No hardware figure is recorded for clusters yet: python -m minigemm bench --multicast measures them."
        return Html(f"<p>{text}</p>", text)
    data = json.loads(file.read_text(encoding="utf-8"))
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run in data["rows"]:
        tile = f"{run['config']['BLOCK_M']} x {run['config']['BLOCK_N']}"
        lines.setdefault((f"{run['m']} x {run['n']} x {run['k']}", tile), {})[run["cluster"]] = run
    rows = []
    for (problem, tile), by_cluster in lines.items():
        gains = [
            f"{run['tflops']:,.0f} ({run['gain']:+.1%})" if (run := by_cluster.get(name)) else "-"
            for name in ("along m", "along n")
        ]
        rows.append([problem, tile, f"{by_cluster['none']['tflops']:,.0f}", *gains])
    return _table(
        ["m x n x k", "tile", "TFLOPS of s08", "clusters along m", "clusters along n"],
        rows,
        "s08 and s09, recorded on hardware",
        [_source(data, file)],
    )


def _source(data: Mapping[str, Any], file: Path) -> str:
    """What gave the figures of a file of results: the machine, the date, the protocol."""
    machine = data["machine"]
    return f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {data['date']}. docs/results/{file.name}: {data['protocol']}."


def counted_multicast(file: Path = RESULTS / "h100_counters.json") -> Html:
    """What TMA asks L2 for in s08_persistent and s09_multicast, by arithmetic, and what L2 read for the SMs as ncu counted it on a Hopper GPU, of
    `bench --ncu multicast --json`; or the word that there is no such file."""
    if not file.is_file():
        text = "No hardware counter is recorded for clusters yet: python -m minigemm bench --ncu multicast counts them."
        return Html(f"<p>{text}</p>", text)
    data = json.loads(file.read_text(encoding="utf-8"))
    runs = [run for run in data["rows"] if "cluster" in run]
    rows = []
    for run in runs:
        same = next(each for each in runs if each["cluster"] == "none" and each["config"]["BLOCK_M"] == run["config"]["BLOCK_M"]
                    and each["config"]["BLOCK_N"] == run["config"]["BLOCK_N"])  # fmt: skip
        cells = [
            f"{run[key] * size / 1e6:,.0f} MB ({run[key] / same[key]:.0%})"
            for key, size in (("asked_bytes", 1), ("l2_read_sectors", 32))
        ]
        rows.append(
            [
                f"{run['config']['BLOCK_M']} x {run['config']['BLOCK_N']}",
                run["cluster"],
                *cells,
                f"{run['sm_tma_read_bytes'] / 1e6:,.0f} MB",
            ]
        )
    note = f"{' x '.join(str(runs[0][name]) for name in 'mnk')}. {_source(data, file)}"
    return _table(
        ["tile", "clusters", "TMA asks for", "L2 reads, by ncu", "TMA brings, by ncu"],
        rows,
        "bytes of s08 and s09, counted on hardware",
        [note],
    )
