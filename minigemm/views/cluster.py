"""A cluster of two CTAs: which half each loads, whose barriers it signals, and how many bytes that saves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..emulator.watch.report import Report
from ..verify import results
from .counts import source_of, table
from .shapes import arrow, label, rectangle
from .style import BLUE, GREY, INK, ORANGE, PALE, RED, THOUSANDS, Html, Picture, drawn, figure, ink_on

__all__ = ["Part", "cluster", "cluster_bytes", "counted_multicast", "parts", "recorded_multicast"]

_LOAD = re.compile(
    r"box at \(([^)]*)\) -> shared (0x[0-9a-f]+) of CTA rank (\d+), (\d+) bytes on mbarrier (0x[0-9a-f]+) of"
)
_RANK = re.compile(r"CTA rank (\d+)$")
_COLOURS = (BLUE, ORANGE)  # by the CTA that asks
_WIDTH, _MEMORY, _SHARED = 2.7, 4.3, (0.0, 8.6)  # of a box; where memory and the two shared memories begin


@dataclass(frozen=True)
class Part:
    """A box that a CTA asked for, and the CTAs that got it, at the same shared address in each."""

    asked: int  # rank
    got: tuple[int, ...]  # ranks
    at: tuple[int, ...]  # the box's coordinates, innermost first
    to: int
    bytes: int


def parts(report: Report, step: int = 0) -> list[Part]:
    """List what the first cluster's producers loaded in one k-step into one slot, in the order of shared
    addresses.

    Raises ValueError for a report of a kernel without clusters, and for a step that is not there.
    """
    # A rank's next step begins where its loads go to another barrier than before.
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

    # No load at all and a step too far are different mistakes.
    if not barriers:
        raise ValueError(
            "report: expected one of a kernel with clusters that loads by TMA, got one without such events"
        )
    if not found:
        steps = max(map(len, barriers.values()))
        raise ValueError(f"step: expected one of the {steps} of the first cluster, got {step}")

    # The keys begin with the shared address, so sorting them gives the order.
    loaded = []
    for (to, rank, at, size), got in sorted(found.items()):
        loaded.append(Part(rank, tuple(sorted(got)), tuple(map(int, at.split(","))), to, size))
    return loaded


def _by_tile(loaded: Sequence[Part]) -> list[list[Part]]:
    """Group parts into tiles: parts that lie side by side in shared memory make one."""
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
    """Draw one k-step of a cluster of two: its boxes between memory and the two shared memories, and the
    arrivals that hand the slot back.

    Args:
        report: a run of a kernel with clusters of two CTAs.
        consumers: warpgroups of each CTA that release a slot; one lane of each of their warps arrives at the
            barriers of both CTAs.
        names: the tiles of a slot, in the order of shared addresses.

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

    # From above: a row for each tile of the slot, then the barriers of both CTAs and their consumers.
    made, axes = figure(10, 2.9 + 1.05 * len(tiles))
    for y, (name, tile) in enumerate(zip(names, tiles, strict=True)):
        _draw_tile(axes, y, name, tile)
    foot, title = len(tiles), {"va": "bottom", "size": 9, "fontweight": "bold"}
    said = []
    for rank, x in enumerate(_SHARED):
        total = sum(part.bytes for part in loaded if rank in part.got)
        others = sum(part.bytes for part in loaded if rank in part.got and part.asked != rank)
        _draw_barriers(
            axes, foot, rank, consumers, f"full: {total:,} bytes\n{others:,} of them from CTA {1 - rank}"
        )
        label(axes, x + _WIDTH / 2, -0.1, f"CTA {rank}, slot 0", color=_COLOURS[rank], **title)
        own = [(name, p) for name, tile in zip(names, tiles, strict=True) for p in tile if p.asked == rank]
        asked = ", ".join(
            f"{name} {p.bytes:,} bytes for {'both' if len(p.got) > 1 else 'itself'}" for name, p in own
        )
        said.append(
            f"CTA {rank} asks for {asked}; its full barrier expects {total:,} bytes, {others:,} of them from "
            f"CTA {1 - rank}; its empty barrier {8 * consumers} arrivals, {4 * consumers} of each CTA"
        )
    label(axes, _MEMORY + _WIDTH / 2, -0.1, "asked of memory, through L2", color=INK, **title)
    label(axes, _MEMORY + _WIDTH / 2, foot + 1.28, "each releases\nboth slots", color=RED)
    axes.set(xlim=(-0.1, _SHARED[1] + _WIDTH + 0.1), ylim=(foot + 2.6, -0.45))
    axes.axis("off")
    return Picture(made, "\n".join(said))


def _draw_tile(axes: Any, y: int, name: str, tile: Sequence[Part]) -> None:
    """Draw the boxes of a tile in memory, and where each goes."""
    height = 0.84 / len(tile)
    for i, part in enumerate(tile):
        top, colour = y + 0.08 + i * height, _COLOURS[part.asked]
        _block(axes, _MEMORY, top, height, colour, f"{name}, {part.bytes:,} bytes at {part.at}")
        shared = len(part.got) > 1
        own = sum(part.to == other.to for other in tile) > 1  # each CTA has another tile at this place
        for rank in part.got:
            share, where = (0.84, y + 0.08) if own else (height, top)
            text = f"{name}: loaded by CTA {part.asked}" + (" for both" if shared else "")
            _block(axes, _SHARED[rank], where, share, colour, text)
            # from the box's edge to the shared memory's, which faces it
            start = _MEMORY if rank == 0 else _MEMORY + _WIDTH
            end = _SHARED[0] + _WIDTH if rank == 0 else _SHARED[1]
            _arrow(axes, (start, top + height / 2), (end, where + share / 2), colour, 1.8 if shared else 1.0)


def _draw_barriers(axes: Any, foot: int, rank: int, consumers: int, full: str) -> None:
    """Draw a CTA's two barriers, and its consumers with their arrivals at the empty barriers of both CTAs."""
    x = _SHARED[rank]
    _block(axes, x, foot + 0.16, 0.62, PALE, full)
    _block(
        axes, x, foot + 0.94, 0.62, PALE, f"empty: {8 * consumers} arrivals,\n{4 * consumers} from each CTA"
    )
    _block(axes, x, foot + 2.0, 0.44, GREY, f"{4 * consumers} warps of consumers")
    _arrow(axes, (x + _WIDTH / 2, foot + 2.0), (x + _WIDTH / 2, foot + 1.57), RED, 1.4)
    inner, over = (x + _WIDTH, _SHARED[1]) if rank == 0 else (x, _SHARED[0] + _WIDTH)
    _arrow(axes, (inner, foot + 2.2), (over, foot + 1.3), RED, 1.4)


def _block(axes: Any, x: float, y: float, height: float, colour: str, text: str) -> None:
    rectangle(axes, x, y, _WIDTH, height, facecolor=colour, edgecolor="white", linewidth=1.2)
    label(axes, x + _WIDTH / 2, y + height / 2, text, size=7.5, color=ink_on(colour))


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str, width: float
) -> None:
    style = {"mutation_scale": 9, "shrinkA": 0, "shrinkB": 0, "alpha": 0.85, "zorder": 3}
    arrow(axes, start, end, colour, linewidth=width, **style)


@drawn
def cluster_bytes(runs: Mapping[str, Report]) -> Picture:
    """Draw what TMA read from memory (through L2) and what it wrote to shared memory: a multicast reads once
    and writes to every CTA.

    Raises ValueError when there is nothing to compare.
    """
    if not runs:
        raise ValueError("runs: expected at least one report by name, got none")
    made, axes = figure(9, 0.9 + 0.62 * len(runs))
    most = max(report.counters["tma_delivered_bytes"] for report in runs.values())
    first = next(iter(runs.values())).counters["tma_load_bytes"]
    said = []
    for y, (name, report) in enumerate(runs.items()):
        read, written = report.counters["tma_load_bytes"], report.counters["tma_delivered_bytes"]
        # the words of the legend once
        axes.barh(y - 0.17, read, 0.32, color=BLUE, label=None if y else "read from memory")
        axes.barh(y + 0.17, written, 0.32, color=ORANGE, label=None if y else "written to shared memory")
        label(axes, read + 0.01 * most, y - 0.17, f"{read:,}, {read / first:.0%}", ha="left")
        label(axes, written + 0.01 * most, y + 0.17, f"{written:,}", ha="left")
        said.append(
            f"{name}: {read:,} bytes read from memory ({read / first:.0%}), {written:,} written to shared memory"
        )
    axes.set(ylim=(len(runs) - 0.5, -0.5), xlim=(0, 1.2 * most), xlabel="bytes of TMA's loads")
    axes.set_yticks(range(len(runs)), list(runs))
    axes.xaxis.set_major_formatter(THOUSANDS)
    made.legend(loc="outside upper center", ncols=2, fontsize=8)
    return Picture(made, "\n".join(said))


def recorded_multicast(file: Path = results.FOLDER / "h100_multicast.json") -> Html:
    """Tabulate s08_persistent beside s09_multicast as a Hopper GPU gave them; say so if there is no such
    file.

    The file is a result of `bench --multicast --json`.
    """
    if not file.is_file():
        text = "No hardware figure is recorded for clusters yet: python -m minigemm bench --multicast measures them."
        return Html(f"<p>{text}</p>", text)
    data = results.load(file.absolute())
    lines: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # by product and tile, then by cluster
    for run in data["rows"]:
        lines.setdefault((f"{run['m']} x {run['n']} x {run['k']}", _tile(run)), {})[run["cluster"]] = run
    rows = []
    for (product, tile), by_cluster in lines.items():
        gains = [
            f"{run['tflops']:,.0f} ({run['gain']:+.1%})" if (run := by_cluster.get(name)) else "-"
            for name in ("along m", "along n")
        ]
        rows.append([product, tile, f"{by_cluster['none']['tflops']:,.0f}", *gains])
    head = ["m x n x k", "tile", "TFLOPS of s08", "clusters along m", "clusters along n"]
    return table(head, rows, "s08 and s09, recorded on hardware", [source_of(data, file)])


def counted_multicast(file: Path = results.FOLDER / "h100_counters.json") -> Html:
    """Tabulate what TMA asks L2 for in s08_persistent and s09_multicast, by arithmetic, and what L2 read for
    the SMs as ncu counted it on a Hopper GPU; say so if there is no such file.

    The file is a result of `bench --ncu multicast --json`.
    """
    if not file.is_file():
        text = "No hardware counter is recorded for clusters yet: python -m minigemm bench --ncu multicast counts them."
        return Html(f"<p>{text}</p>", text)
    data = results.load(file.absolute())
    runs = [run for run in data["rows"] if "cluster" in run]
    alone = {_tile(run): run for run in runs if run["cluster"] == "none"}
    rows = []
    for run in runs:
        same = alone[_tile(run)]
        asked, read = (
            f"{run[key] * size / 1e6:,.0f} MB ({run[key] / same[key]:.0%})"
            for key, size in (("asked_bytes", 1), ("l2_read_sectors", 32))
        )
        rows.append([_tile(run), run["cluster"], asked, read, f"{run['sm_tma_read_bytes'] / 1e6:,.0f} MB"])
    note = f"{' x '.join(str(runs[0][name]) for name in 'mnk')}. {source_of(data, file)}"
    head = ["tile", "clusters", "TMA asks for", "L2 reads, by ncu", "TMA brings, by ncu"]
    return table(head, rows, "bytes of s08 and s09, counted on hardware", [note])


def _tile(run: Mapping[str, Any]) -> str:
    return f"{run['config']['BLOCK_M']} x {run['config']['BLOCK_N']}"
