"""Figures of several runs side by side: what the emulator counted, and what was recorded on hardware."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..emulator.watch.report import Report
from .style import BLUE, Html

__all__ = ["compare", "recorded", "recorded_runs"]

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def _counter(name: str) -> Callable[[Report], int]:
    return lambda report: int(report.counters[name])


def _sectors(store: bool) -> Callable[[Report], int]:
    return lambda report: sum(
        line.sectors for line in report.lines if line.space == "global" and line.store is store
    )


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
    """Counters of several launches, a column each, with a bar that shows a count's share of its row's largest; rows of zeros are left out.

    Raises ValueError when there is nothing to compare.
    """
    if not reports:
        raise ValueError("reports: expected at least one report by name, got none")
    rows = [(text, [count(report) for report in reports.values()]) for text, count in _ROWS]
    rows = [(text, counts) for text, counts in rows if any(counts)]
    shares = [[0.0, *(count / max(counts) for count in counts)] for _, counts in rows]
    return _table(
        ["counted", *reports],
        [[text, *(f"{count:,}" for count in counts)] for text, counts in rows],
        shares=shares,
    )


def recorded_runs(stage: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Hardware runs of a stage among the recorded results: `m`, `n`, `k`, `run_s` (seconds), `tflops`, and of the machine `gpu`, `driver`, `cuda`, `date`."""
    return [run for run in _recorded(folder) if run.get("stage") == stage and run.get("runtime") == "cuda"]


def _recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Every stage's run in every file, with what its file says of the machine."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            continue
        for part in data.get("runs", [data]):
            machine = {**_known(data), **_known(part), **_known(part.get("machine", {}))}
            for run in part.get("stages", []):
                if run.get("default") is False:  # another tile, tried beside the one that the stage chooses
                    continue
                yield {**machine, **run, "file": path.name}


def _known(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("gpu", "driver", "cuda", "date", "protocol") if key in data}


def recorded(stage: str, folder: Path = RESULTS) -> Html:
    """Hardware runs of a stage among the recorded results, each with the machine that gave it; or the word that there are none."""
    runs = recorded_runs(stage, folder)
    if not runs:
        text = f"No hardware figure is recorded for {stage} yet."
        return Html(f"<p>{text}</p>", text)
    rows = []
    for run in runs:
        seconds, tflops, share = run["run_s"], run.get("tflops"), run.get("floor_share")
        time = f"{seconds * 1e3:,.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:,.1f} us"
        figures = [
            f"{run['m']} x {run['n']} x {run['k']}",
            time,
            f"{tflops:,.1f}" if tflops else "-",
            f"{share:.1%}" if share else "-",
        ]
        rows.append(
            figures + [str(run.get(key, "not recorded")) for key in ("gpu", "driver", "cuda", "date")]
        )
    files: dict[str, dict[str, None]] = {}  # by what they say of how they were made
    for run in runs:
        files.setdefault(run.get("protocol", "protocol not recorded"), {})[f"docs/results/{run['file']}"] = (
            None
        )
    notes = [f"{', '.join(names)}: {protocol}." for protocol, names in files.items()]
    head = ["m x n x k", "time", "TFLOPS", "of the roof", "GPU", "driver", "CUDA", "date"]
    return _table(head, rows, title=f"{stage}, recorded on hardware", notes=notes)


def _table(
    head: list[str],
    rows: list[list[str]],
    title: str = "",
    notes: list[str] | None = None,
    shares: list[list[float]] | None = None,
) -> Html:
    """The first column to the left, the others to the right; `shares` (0 to 1, a number a cell) become bars under the numbers."""

    def cell(tag: str, i: int, text: str, share: float = 0.0) -> str:
        bar = (
            f'<div style="margin-left:auto;width:{100 * share:.1f}%;height:4px;background:{BLUE}"></div>'
            if share
            else ""
        )
        return f'<{tag} style="padding:.15em 1em .15em 0;min-width:5em;text-align:{"left" if i == 0 else "right"}">{escape(text)}{bar}</{tag}>'

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(cell("td", i, text, shares[y][i] if shares else 0.0) for i, text in enumerate(row))
        + "</tr>"
        for y, row in enumerate(rows)
    )
    small = "".join(
        f'<p style="font-size:85%;opacity:.75;max-width:60em">{escape(note)}</p>' for note in notes or []
    )
    caption = f"<p><b>{escape(title)}</b></p>" if title else ""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    text = [
        "  ".join(
            part.ljust(w) if i == 0 else part.rjust(w)
            for i, (part, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *rows]
    ]
    html = f"{caption}<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{small}"
    return Html(html, "\n".join([*([title] if title else []), *text, *(notes or [])]))
