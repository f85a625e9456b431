"""The report of a comparison: tables for the terminal, and a picture of the distances from the floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..views.style import GREY, PALE, SERIES, Picture, drawn, figure
from . import host_overhead
from .summary import BEST, OWN, median_us, name_of, opponents, ratio, size_of, summarize
from .timing import FLUSHES

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "check_plot",
    "empty_table",
    "plot",
    "say",
    "show",
    "size_of",
    "summary_table",
    "table",
    "tile_of",
    "wide_console",
]

JUDGES = (BEST, "cublaslt")  # the opponents that the summary's table shows; the others get a line
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
    after = "after a fill / after a read of L2's flush, where there are two"
    console.print(f"a copy moves {bandwidth:,.0f} GB/s; times in us, medians, {after}", highlight=False)
    if results["rows"]:
        console.print(table(results))

    # The legend: who the peers are, who is missing, and what went wrong. An empty cell shows what a peer does
    # not do.
    for name, said in results["peers"].items():
        say(console, f"{name}: {said['what']} ({said['version']})")
    for name, reason in results["skipped"].items():
        say(console, f"not timed: {name}: {reason}")
    for row in results["rows"]:
        for name, reason in row["skipped"].items():
            if ":" in reason:
                say(console, f"{name_of(row)} ({row['layout']}): {name}: {reason}")

    # The summary comes behind the long table and its legend, where it is seen.
    if opponents(results["rows"]):
        _print_summary(results["rows"], console)
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


def _print_summary(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the table of the judges, where they are worst, and a line for each other opponent."""
    summary = summarize(rows)
    made = summary_table(summary)
    if made.row_count:
        say(
            console,
            "time over minigemm's: above 1 minigemm is faster; in a mean all bands of m weigh the same",
        )
        console.print(made)
    for flush, by_name in summary.items():
        for name, by_layout in by_name.items():
            if name in JUDGES:
                worst = [f"{found['worst']:.3f} at {found['worst_at']}" for found in by_layout.values()]
                say(console, f"worst against {name} after a {flush}: {', '.join(worst)}")
            else:
                means = [f"{layout} {found['mean']:.3f}" for layout, found in by_layout.items()]
                say(console, f"time of {name} over minigemm's after a {flush}, mean: {', '.join(means)}")
            if missing := sum(found["missing"] for found in by_layout.values()):
                say(console, f"minigemm has no time where {name} has one: at {missing} points")


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return a summary as a table: a row for each layout and band of m, columns for each judge and flush."""
    # Columns of judges who were timed, and the places of rows that any of them has.
    columns = [(name, flush) for name in JUDGES for flush in FLUSHES if summary.get(flush, {}).get(name)]
    heads = [f"{name} after a {flush}\nmean (worst, >= 1)" for name, flush in columns]
    made = empty_table(("points",), heads)
    found = {column: _lines(summary[column[1]][column[0]]) for column in columns}
    places = list(dict.fromkeys(place for lines in found.values() for place in lines))

    # A place that a judge has no points at stays empty.
    for layout, band in places:
        figures = [found[column].get((layout, band)) for column in columns]
        cells = [_figures(its) if its else "" for its in figures]
        made.add_row(f"{layout}, m {band}" if band else layout, *cells, style="" if band else "bold")
    return made


def _figures(its: Mapping[str, Any]) -> str:
    return f"{its['mean']:.3f} ({its['worst']:.2f}, {its['won']:4.0%})"


def _lines(by_layout: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return the figures of a layout's bands and, under the band "", of the whole layout."""
    found = {}
    for layout, figures in by_layout.items():
        found.update({(layout, band): its for band, its in figures.get("bands", {}).items()})
        found[layout, ""] = figures
    return found


def table(results: Mapping[str, Any]) -> Table:
    """Return a table, a row per workload: the floor, minigemm, and each peer that was timed at least once."""
    # The columns depend on who was timed at all.
    rows = results["rows"]
    others = [name for name in opponents(rows) if name != BEST]
    judged = len(others) < len(opponents(rows))
    heads = ["floor", "minigemm", "TFLOPS", "of the\nfloor", *(SHORT.get(name, name) for name in others)]
    made = empty_table(("shape", "tile"), [*heads, *(["best DG over\nminigemm"] if judged else [])])

    # A line sets each layout's rows apart. Figures that minigemm has no time for stay dashes.
    layout = None
    for row in rows:
        if row["layout"] != layout and layout is not None:
            made.add_section()
        layout, own = row["layout"], row["timed"].get(OWN)
        cells = [size_of(row), tile_of(row["config"]), f"{row['floor_us']:.2f}", "-", "-", "-"]
        if own:
            times = _both(median_us(row, OWN, flush) for flush in FLUSHES)
            cells[3:] = f"[bold]{times}[/bold]", f"{own['tflops']:.0f}", f"{own['floor_share']:.0%}"

        # A peer without a time gets a mark that stands for the reason.
        for name in others:
            time = _both(median_us(row, name, flush) for flush in FLUSHES)
            cells.append(time or _mark(row["skipped"].get(name, "")))
        if judged:
            cells.append(_both((ratio(row, BEST, flush) for flush in FLUSHES), 3))
        made.add_row(*cells, style="" if own else "red")
    return made


def _both(found: Iterable[float | None], digits: int = 2) -> str:
    """Return the numbers that there are, "12.34 / 11.20"."""
    return " / ".join(f"{number:.{digits}f}" for number in found if number is not None)


def _mark(reason: str) -> str:
    return "wrong" if reason.startswith("wrong") else "failed" if ":" in reason else ""


def tile_of(config: Mapping[str, Any]) -> str:
    """Return a config's tile and stages, "256x128, 3", behind the number of its stage of the course, "s10".

    What the config does not have is left out.
    """
    if not {"BLOCK_M", "BLOCK_N"} <= config.keys():
        return ""
    stage = f"{config['STAGE'].partition('_')[0]} " if "STAGE" in config else ""
    stages = f", {config['STAGES']}" if "STAGES" in config else ""
    return f"{stage}{config['BLOCK_M']}x{config['BLOCK_N']}{stages}"


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
    said = "; ".join(f"{name_of(row)}: {_over_the_floor(row)}" for row in rows)
    return Picture(made, f"Times over the floor on {machine['gpu']}, {date}. {said}")


def _over_the_floor(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {1 / timed['floor_share']:.2f}" for name, timed in row["timed"].items())
