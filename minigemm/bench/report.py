"""The report of a comparison: a table for the terminal, and a picture of the distances from the floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..views.style import GREY, PALE, SERIES, Picture, drawn, figure
from . import host_overhead

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["check_plot", "empty_table", "plot", "say", "show", "size_of", "table", "tile_of", "wide_console"]

OWN = "minigemm"
WIDE = 200  # columns of a table that goes to no terminal
SHORT = {"cublaslt_blocks": "cublaslt\nblocks"}
MARKS = "osD^vPX*"


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print all of the results, as wide as the table where there is no terminal."""
    console = console or wide_console()
    machine, date = results["machine"], results["date"]
    versions = f"driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}"
    console.print(f"[bold]{machine['gpu']}[/bold], {versions}, {date}")
    bandwidth = machine["copy_bytes_per_s"] / 1e9
    console.print(f"a copy moves {bandwidth:,.0f} GB/s; times in us, medians", highlight=False)

    if results["rows"]:
        console.print(table(results))
        _print_means(results, console)

    # The legend: who the peers are, who is missing, and what went wrong. An empty cell shows what a peer does
    # not do.
    for name, said in results["peers"].items():
        say(console, f"{name}: {said['what']} ({said['version']})")
    for name, reason in results["skipped"].items():
        say(console, f"not timed: {name}: {reason}")
    for row in results["rows"]:
        for name, reason in row["skipped"].items():
            if ":" in reason:
                say(console, f"{_name(row)} ({row['layout']}): {name}: {reason}")

    if results["host"]:
        console.print(host_overhead.as_text(dict(results["host"])), highlight=False)
    if results["lost"]:
        say(console, f"stopped: {results['lost']}")


def say(console: Console, text: str) -> None:
    """Print text as it is, without colours and markup."""
    console.print(text, highlight=False, markup=False)


def wide_console() -> Console:
    """Return the terminal, or where there is none a console as wide as the tables."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def empty_table(words: Iterable[str], numbers: Iterable[str]) -> Table:
    """Return a table with columns for words, and behind them columns for numbers."""
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
            say(console, f"time over minigemm's, geometric mean, {layout}: {', '.join(said)}")
    if reference and reference["factor"] is None:
        say(console, f"not compared: {reference['error']}")
    elif reference:
        file = f"deep_gemm_us of {reference['file']} ({reference['gpu']})"
        factor = f"times {reference['factor']:.4f}, this run's cuBLASLt over the file's at 4096x4096x7168"
        say(console, f"DG: {file} {factor}")


def table(results: Mapping[str, Any]) -> Table:
    """Return a table, a row per workload: the floor, minigemm, and each peer that was timed at least once."""
    # The columns depend on who was timed at all, and on whether there is a reference.
    rows = results["rows"]
    others = [name for name in results["peers"] if name != OWN and any(name in row["timed"] for row in rows)]
    referred = any(row.get("reference") for row in rows)
    numbers = ["floor", "minigemm", "TFLOPS", "of the\nfloor", *(SHORT.get(name, name) for name in others)]
    numbers += ["DG", "DG over\nminigemm"] if referred else []
    made = empty_table(("shape", "tile"), numbers)

    # A line sets each layout's rows apart. Figures that minigemm has no time for stay dashes.
    layout = None
    for row in rows:
        if row["layout"] != layout and layout is not None:
            made.add_section()
        layout, timed = row["layout"], row["timed"]
        own, there = timed.get(OWN), row.get("reference")
        cells = [size_of(row), tile_of(row["config"]), f"{row['floor_us']:.2f}", "-", "-", "-"]
        if own:
            cells[3:] = (
                f"[bold]{own['median_us']:.2f}[/bold]",
                f"{own['tflops']:.0f}",
                f"{own['floor_share']:.0%}",
            )

        # A peer without a time gets a mark that stands for the reason.
        for name in others:
            time = f"{timed[name]['median_us']:.2f}" if name in timed else _mark(row["skipped"].get(name, ""))
            cells.append(time)
        if referred:
            cells += [f"{there['deep_gemm_us']:.2f}", f"{there['ratio']:.3f}"] if there else ["", ""]
        made.add_row(*cells, style="" if own else "red")
    return made


def _mark(reason: str) -> str:
    return "wrong" if reason.startswith("wrong") else "failed" if ":" in reason else ""


def _name(row: Mapping[str, Any]) -> str:
    sizes = [row["m"], row["n"], row["k"]]
    return "x".join(map(str, sizes if row["layout"] == "dense" else [row["groups"], *sizes]))


def size_of(row: Mapping[str, Any]) -> str:
    """Return a row's sizes, with its layout unless that is dense."""
    return _name(row) if row["layout"] == "dense" else f"{_name(row)} {row['layout']}"


def tile_of(config: Mapping[str, int]) -> str:
    """Return a config's tile and stages, "256x128, 3"; "" if it has none."""
    if not {"BLOCK_M", "BLOCK_N", "STAGES"} <= config.keys():
        return ""
    return f"{config['BLOCK_M']}x{config['BLOCK_N']}, {config['STAGES']}"


def check_plot() -> None:
    """Raise ValueError where there is no matplotlib."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("plot: needs matplotlib: pip install matplotlib")


@drawn
def plot(results: Mapping[str, Any]) -> Picture:
    """Draw everybody's time over this GPU's floor, a line for each workload: at 1 nothing could be faster.

    Raises:
        ValueError: nothing was timed.
    """
    rows = [row for row in results["rows"] if row["timed"]]
    if not rows:
        raise ValueError("plot: expected results with at least one timed shape, got none")
    names = [name for name in results["peers"] if any(name in row["timed"] for row in rows)]
    worst = max(1 / timed["floor_share"] for row in rows for timed in row["timed"].values())

    # A grey line for each workload, from the floor to the slowest time of all.
    made, axes = figure(8.5, 1.6 + 0.24 * len(rows))
    axes.axvspan(0.5, 1, color=PALE, linewidth=0, zorder=0)
    axes.hlines(range(len(rows)), 1, worst, color=PALE, linewidth=0.8, zorder=0)

    # A series of marks for each peer; minigemm's come last, on top.
    for number, name in reversed(list(enumerate(names))):
        timed = [(row["timed"][name], y) for y, row in enumerate(rows) if name in row["timed"]]
        axes.plot(
            [1 / found["floor_share"] for found, _ in timed],
            [y for _, y in timed],
            MARKS[number % len(MARKS)],
            color=SERIES[number % len(SERIES)],
            markersize=7 if name == OWN else 5,
            label=name,
        )

    # Both axes. Time is logarithmic, with ticks at round ratios.
    axes.set(xscale="log", xlim=(0.9, worst * 1.1), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel("time over the floor: bytes moved once, or operations at the FP8 rate")
    axes.set_yticks(range(len(rows)), [size_of(row) for row in rows], fontsize=7)
    ticks = [tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 50, 100) if tick <= worst * 1.1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()

    machine, date = results["machine"], results["date"]
    title = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {date}"
    axes.set_title(title, fontsize=8, color=GREY)
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=4, fontsize=8)
    said = "; ".join(f"{_name(row)}: {_over_the_floor(row)}" for row in rows)
    return Picture(made, f"Times over the floor on {machine['gpu']}, {date}. {said}")


def _over_the_floor(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {1 / timed['floor_share']:.2f}" for name, timed in row["timed"].items())
