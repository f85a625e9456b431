"""What a comparison found: a table for the terminal, and a picture of how far each is from the floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..views.style import GREY, PALE, SERIES, Picture, drawn, figure
from . import host

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["empty_table", "plot", "show", "size_of", "table", "tile_of", "wide_console"]

OWN = "minigemm"
WIDE = 200  # columns of a table that goes to no terminal
SHORT = {"cublaslt_blocks": "cublaslt\nblocks"}
MARKS = "osD^vPX*"


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print all of it; to no terminal as wide as the table is."""
    console = console or wide_console()
    machine = results["machine"]
    console.print(
        f"[bold]{machine['gpu']}[/bold], driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}, {results['date']}"
    )
    console.print(
        f"a copy moves {machine['copy_bytes_per_s'] / 1e9:,.0f} GB/s; times in us, medians", highlight=False
    )
    if results["rows"]:
        console.print(table(results))
        _print_means(results, console)
    for name, said in results["peers"].items():
        console.print(f"{name}: {said['what']} ({said['version']})", highlight=False, markup=False)
    for name, reason in results["skipped"].items():
        console.print(f"not timed: {name}: {reason}", highlight=False, markup=False)
    for row in results["rows"]:
        for name, reason in row["skipped"].items():
            if ":" in reason:  # what went wrong; what a peer does not do at all shows as a gap
                console.print(
                    f"{_name(row)} ({row['layout']}): {name}: {reason}", highlight=False, markup=False
                )
    if results["host"]:
        console.print(host.as_text(dict(results["host"])), highlight=False)
    if results["lost"]:
        console.print(f"stopped: {results['lost']}", highlight=False, markup=False)


def wide_console() -> Console:
    """The terminal; where there is none, as wide as a table is."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def empty_table(words: Iterable[str], numbers: Iterable[str]) -> Table:
    """A table of columns for words, and behind them columns for numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in words:
        made.add_column(name, no_wrap=True)
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def _print_means(results: Mapping[str, Any], console: Console) -> None:
    reference = results["reference"]
    for layout, found in results["means"].items():
        said = [f"{name} {ratio:.3f}" for name, ratio in found.items() if name != "reference"]
        if reference and "reference" in found:
            said.append(f"DG of {reference['file']} {found['reference']:.3f}")
        if said:
            console.print(
                f"time over minigemm's, geometric mean, {layout}: {', '.join(said)}",
                highlight=False,
                markup=False,
            )
    if reference and reference["factor"] is None:
        console.print(f"not compared: {reference['error']}", highlight=False, markup=False)
    elif reference:
        console.print(
            f"DG: deep_gemm_us of {reference['file']} ({reference['gpu']}) times {reference['factor']:.4f}, this run's cuBLASLt over the file's at 4096x4096x7168",
            highlight=False, markup=False,
        )  # fmt: skip


def table(results: Mapping[str, Any]) -> Table:
    """A row for each shape: the floor, minigemm, and the time of each peer that was timed at least once."""
    others = [
        name
        for name in results["peers"]
        if name != OWN and any(name in row["timed"] for row in results["rows"])
    ]
    referred = any(row.get("reference") for row in results["rows"])
    numbers = [
        "floor",
        "minigemm",
        "TFLOPS",
        "of the\nfloor",
        *(SHORT.get(name, name) for name in others),
        *(("DG", "DG over\nminigemm") if referred else ()),
    ]
    made = empty_table(("shape", "tile"), numbers)
    layout = None
    for row in results["rows"]:
        if row["layout"] != layout and layout is not None:
            made.add_section()
        layout = row["layout"]
        own = row["timed"].get(OWN)
        cells = [size_of(row), tile_of(row["config"]), f"{row['floor_us']:.2f}"]
        cells += (
            [f"[bold]{own['median_us']:.2f}[/bold]", f"{own['tflops']:.0f}", f"{own['floor_share']:.0%}"]
            if own
            else ["-", "-", "-"]
        )
        cells += [
            f"{row['timed'][name]['median_us']:.2f}"
            if name in row["timed"]
            else _mark(row["skipped"].get(name, ""))
            for name in others
        ]
        if referred:
            told = row.get("reference")
            cells += [f"{told['deep_gemm_us']:.2f}", f"{told['ratio']:.3f}"] if told else ["", ""]
        made.add_row(*cells, style="" if own else "red")
    return made


def _mark(reason: str) -> str:
    return "wrong" if reason.startswith("wrong") else "failed" if ":" in reason else ""


def _name(row: Mapping[str, Any]) -> str:
    sizes = [row["m"], row["n"], row["k"]]
    return "x".join(map(str, sizes if row["layout"] == "dense" else [row["groups"], *sizes]))


def size_of(row: Mapping[str, Any]) -> str:
    """A row's shape with its layout, if that is another than dense."""
    return _name(row) if row["layout"] == "dense" else f"{_name(row)} {row['layout']}"


def tile_of(config: Mapping[str, int]) -> str:
    """Tile, stages and whatever else a newcomer asks first: 256x128, 3."""
    return (
        f"{config['BLOCK_M']}x{config['BLOCK_N']}, {config['STAGES']}"
        if {"BLOCK_M", "BLOCK_N", "STAGES"} <= config.keys()
        else ""
    )


def check_plot() -> None:
    """ValueError where there is no matplotlib."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plot: needs matplotlib: pip install matplotlib")


@drawn
def plot(results: Mapping[str, Any]) -> Picture:
    """Times over the floor of this GPU, a line for each shape: at 1 nothing could be faster. ValueError where nothing was timed."""
    rows = [row for row in results["rows"] if row["timed"]]
    if not rows:
        raise ValueError("plot: expected results with at least one timed shape, got none")
    names = [name for name in results["peers"] if any(name in row["timed"] for row in rows)]
    made, axes = figure(8.5, 1.6 + 0.24 * len(rows))
    worst = max(1 / timed["floor_share"] for row in rows for timed in row["timed"].values())
    axes.axvspan(0.5, 1, color=PALE, linewidth=0, zorder=0)
    axes.hlines(range(len(rows)), 1, worst, color=PALE, linewidth=0.8, zorder=0)
    for number, name in reversed(list(enumerate(names))):  # minigemm's last, on top
        there = [
            (1 / row["timed"][name]["floor_share"], y) for y, row in enumerate(rows) if name in row["timed"]
        ]
        axes.plot(
            *zip(*there, strict=True),
            MARKS[number % len(MARKS)],
            color=SERIES[number % len(SERIES)],
            markersize=7 if name == OWN else 5,
            label=name,
        )
    axes.set(
        xscale="log",
        xlim=(0.9, worst * 1.1),
        ylim=(len(rows) - 0.4, -0.6),
        xlabel="time over the floor: bytes moved once, or operations at the FP8 rate",
    )
    axes.set_yticks(range(len(rows)), [size_of(row) for row in rows], fontsize=7)
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 50, 100) if tick <= worst * 1.1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    machine = results["machine"]
    axes.set_title(
        f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {results['date']}",
        fontsize=8,
        color=GREY,
    )
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4, fontsize=8)
    said = [
        f"{_name(row)}: "
        + ", ".join(f"{name} {1 / timed['floor_share']:.2f}" for name, timed in row["timed"].items())
        for row in rows
    ]
    return Picture(made, f"Times over the floor on {machine['gpu']}, {results['date']}. " + "; ".join(said))
