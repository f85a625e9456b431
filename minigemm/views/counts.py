"""Figures of several runs side by side: what the emulator counted, and what was recorded on hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..emulator.watch.report import Report
from ..verify import results
from .style import BLUE, Html

__all__ = ["compare", "recorded", "recorded_ideas", "recorded_runs"]


def _counter(name: str) -> Callable[[Report], int]:
    return lambda report: int(report.counters[name])


def _sectors(store: bool) -> Callable[[Report], int]:
    def count(report: Report) -> int:
        return sum(line.sectors for line in report.lines if line.space == "global" and line.store is store)

    return count


_ROWS: tuple[tuple[str, Callable[[Report], int]], ...] = (
    ("instructions of all threads", _counter("instructions")),
    ("bytes that threads load from global memory", _counter("global_load_bytes")),
    ("32-byte sectors that their loads touch", _sectors(False)),
    ("bytes that threads store to global memory", _counter("global_store_bytes")),
    ("32-byte sectors that their stores touch", _sectors(True)),
    ("bytes that threads load from shared memory", _counter("shared_load_bytes")),
    ("wavefronts of shared memory", _counter("shared_wavefronts")),
    ("bank conflicts", _counter("bank_conflicts")),
    ("bytes that TMA loads", _counter("tma_load_bytes")),
    ("bytes that TMA stores", _counter("tma_store_bytes")),
    ("TMA transactions", _counter("tma_transactions")),
    ("WGMMAs of warpgroups", _counter("wgmma")),
)


def compare(reports: Mapping[str, Report]) -> Html:
    """Tabulate counters of several launches, a column each.

    A bar shows a count's share of its row's largest; rows of zeros are left out.

    Raises ValueError when there is nothing to compare.
    """
    if not reports:
        raise ValueError("reports: expected at least one report by name, got none")
    rows = [(text, [count(report) for report in reports.values()]) for text, count in _ROWS]
    rows = [(text, counts) for text, counts in rows if any(counts)]
    shares = [[0.0, *(count / max(counts) for count in counts)] for _, counts in rows]
    cells = [[text, *(f"{count:,}" for count in counts)] for text, counts in rows]
    return table(["counted", *reports], cells, shares=shares)


def recorded_runs(stage: str, folder: Path = results.FOLDER) -> list[dict[str, Any]]:
    """List the hardware runs of a stage among the recorded results.

    Each has `m`, `n`, `k`, `run_s` (seconds), `tflops`, and of the machine `gpu`, `driver`, `cuda`, `date`.
    """
    return [run for run in _recorded(folder) if run.get("stage") == stage and run.get("runtime") == "cuda"]


def _recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Every stage's run in every file, with what its file says of the machine."""
    for file in results.files(folder=folder):
        data = results.load(file.absolute())
        if not isinstance(data, dict):
            continue
        for part in data.get("runs", [data]):
            machine = {**_known(data), **_known(part), **_known(part.get("machine", {}))}
            for run in part.get("stages", []):
                if run.get("default") is False:  # another tile, tried beside the one that the stage chooses
                    continue
                yield {**machine, **run, "file": file.name}


def _known(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("gpu", "driver", "cuda", "date", "protocol") if key in data}


def recorded(stage: str, folder: Path = results.FOLDER) -> Html:
    """Tabulate the recorded hardware runs of a stage, each with the machine that gave it; say so if there are
    none."""
    runs = recorded_runs(stage, folder)
    if not runs:
        text = f"No hardware figure is recorded for {stage} yet."
        return Html(f"<p>{text}</p>", text)

    rows = []
    notes: dict[str, dict[str, None]] = {}  # protocol -> the files that were made by it, each once
    for run in runs:
        seconds, tflops, share = run["run_s"], run.get("tflops"), run.get("floor_share")
        time = f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"
        rate, of_the_roof = f"{tflops:,.1f}" if tflops else "-", f"{share:.1%}" if share else "-"
        machine = [str(run.get(key, "not recorded")) for key in ("gpu", "driver", "cuda", "date")]
        rows.append([f"{run['m']} x {run['n']} x {run['k']}", time, rate, of_the_roof, *machine])
        files = notes.setdefault(run.get("protocol", "protocol not recorded"), {})
        files[f"docs/results/{run['file']}"] = None
    head = ["m x n x k", "time", "TFLOPS", "of the roof", "GPU", "driver", "CUDA", "date"]
    said = [f"{', '.join(files)}: {protocol}." for protocol, files in notes.items()]
    return table(head, rows, f"{stage}, recorded on hardware", said)


def recorded_ideas(stage: str = "", part: str = "ideas", file: Path | None = None) -> Html:
    """Tabulate what single ideas of a stage gain, as a Hopper GPU timed the kernel without and with each; say
    so if nothing is recorded.

    Args:
        stage: the stage's name; "" is all of them.
        part: "ideas", or "settled": what was tried and is not in any kernel.
        file: rows of `stage`, `idea`, `shape`, `without_us` and `with_us` under these two names, beside the
            `machine`, `date` and `protocol`; or a bare list of ideas. None: docs/results/h200_ideas.json or
            h200_settled.json.

    Raises ValueError for another part.
    """
    if part not in ("ideas", "settled"):
        raise ValueError(f'part: expected "ideas" or "settled", got {part!r}')
    file = file or results.FOLDER / f"h200_{part}.json"
    data = results.load(file.absolute()) if file.is_file() else {}
    data = {"ideas": data} if isinstance(data, list) else data
    runs = [run for run in data.get(part, []) if stage in ("", run.get("stage", ""))]
    if not runs:
        what, whose = ("gain" if part == "ideas" else "loss"), (f" for {stage}" if stage else "")
        text = f"Not measured yet: no {what} is recorded{whose}."
        return Html(f"<p>{text}</p>", text)

    rows = []
    for run in runs:
        without, with_it = run["without_us"], run["with_us"]
        change = f"{with_it / without - 1:+.1%}"
        rows.append([run["idea"], run["shape"], f"{without:,.1f} us", f"{with_it:,.1f} us", change])
    head = ["idea", "m x n x k", "without", "with", "time"]
    title = f"{stage or 'All stages'}, one idea at a time, recorded on hardware"
    return table(head, rows, title, [source_of(data, file)] if "machine" in data else [])


def source_of(data: Mapping[str, Any], file: Path) -> str:
    """Say where the figures of a file of results come from: the machine, the date, the protocol."""
    machine = data["machine"]
    return (
        f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {data['date']}. "
        f"docs/results/{file.name}: {data['protocol']}."
    )


def table(
    head: list[str],
    rows: list[list[str]],
    title: str = "",
    notes: Sequence[str] = (),
    shares: list[list[float]] | None = None,
) -> Html:
    """Lay out a table, the first column to the left, the others to the right.

    `shares`, a number from 0 to 1 for each cell, become bars under the numbers.
    """

    def cell(tag: str, i: int, text: str, share: float = 0.0) -> str:
        bar = f'<div style="margin-left:auto;width:{100 * share:.1f}%;height:4px;background:{BLUE}"></div>'
        style = f"padding:.15em 1em .15em 0;min-width:5em;text-align:{'right' if i else 'left'}"
        return f'<{tag} style="{style}">{escape(text)}{bar if share else ""}</{tag}>'

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    body = ""
    for y, row in enumerate(rows):
        cells = (cell("td", i, text, shares[y][i] if shares else 0.0) for i, text in enumerate(row))
        body += f"<tr>{''.join(cells)}</tr>"
    small = "".join(
        f'<p style="font-size:85%;opacity:.75;max-width:60em">{escape(note)}</p>' for note in notes
    )
    caption = f"<p><b>{escape(title)}</b></p>" if title else ""
    html = f"{caption}<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{small}"

    # The same as text, in columns that are as wide as their longest cell.
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    text = [title] if title else []
    for first, *others in [head, *rows]:
        text.append("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    return Html(html, "\n".join([*text, *notes]))
