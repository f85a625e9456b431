"""Figures of several runs side by side: what the emulator counted, and what was recorded on hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..emulator.report import Report
from .style import Html

__all__ = ["compare", "recorded"]

RESULTS = Path(__file__).parents[2] / "docs" / "results"
_ROWS = (
    ("instructions", "instructions of all threads"),
    ("global_load_bytes", "bytes that threads load from global memory"),
    ("global_sectors", "32-byte sectors of global memory"),
    ("shared_load_bytes", "bytes that threads load from shared memory"),
    ("shared_wavefronts", "wavefronts of shared memory"),
    ("bank_conflicts", "bank conflicts"),
    ("tma_load_bytes", "bytes that TMA loads"),
    ("tma_transactions", "TMA transactions"),
)


def compare(reports: Mapping[str, Report]) -> Html:
    """Counters of several launches, a column each; rows in which nobody counted anything are left out."""
    rows = [(text, [report.counters[name] for report in reports.values()]) for name, text in _ROWS]
    rows = [(text, counts) for text, counts in rows if any(counts)]
    return _table(["counted", *reports], [[text, *(f"{count:,}" for count in counts)] for text, counts in rows])


def recorded(stage: str, folder: Path = RESULTS) -> Html:
    """Hardware runs of a stage among the recorded results, each with the machine that gave it; or the word that there are none."""
    rows = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or "stages" not in data:
            continue
        machine: dict[str, Any] = {**data, **data.get("machine", {})}
        for run in data["stages"]:
            if run.get("stage") != stage or run.get("runtime") != "cuda":
                continue
            figures = [f"{run['m']} x {run['n']} x {run['k']}", f"{run['run_s'] * 1e6:,.1f} us", f"{run['tflops']:,.1f}" if run.get("tflops") else "-"]
            rows.append(figures + [str(machine.get(key, "not recorded")) for key in ("gpu", "driver", "cuda", "date")])
    if not rows:
        text = f"No hardware figure is recorded for {stage} yet."
        return Html(f"<p>{text}</p>", text)
    return _table(["m x n x k", "time", "TFLOPS", "GPU", "driver", "CUDA", "date"], rows)


def _table(head: list[str], rows: list[list[str]]) -> Html:
    cell = "padding:.15em 1em .15em 0;text-align:{}"
    top = "".join(f'<th style="{cell.format("left" if i == 0 else "right")}">{escape(name)}</th>' for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell.format("left" if i == 0 else "right")}">{escape(text)}</td>' for i, text in enumerate(row)) + "</tr>" for row in rows
    )
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    text = "\n".join("  ".join(part.ljust(w) if i == 0 else part.rjust(w) for i, (part, w) in enumerate(zip(line, widths, strict=True))) for line in [head, *rows])
    return Html(f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>", text)
