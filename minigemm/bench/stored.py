"""Results of a comparison on disk: they are read, joined where a run had several parts, and resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .summary import summarize
from .wide import WIDE
from .workloads import Workload

__all__ = ["join", "read", "remaining", "write"]


def write(path: Path, document: Any) -> None:
    """Write a document as JSON. Whoever ends the process meanwhile leaves the earlier file as it was."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def read(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Return the results of `compare` that these files hold, joined.

    Raises:
        ValueError: a file holds none, or the files' runs cannot be compared.
    """
    found = []
    for path in paths:
        # A file of several measurements is a list, in which the others are passed over.
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            documents = stored if isinstance(stored, list) else [stored]
            results = [each for each in documents if {"rows", "peers", "machine", "protocol"} <= each.keys()]
        except (OSError, ValueError, AttributeError) as error:
            got = f"{path} ({type(error).__name__}: {error})"
            raise ValueError(f"results: expected the JSON of a comparison, got {got}") from error
        if not results:
            raise ValueError(f"results: expected the JSON of a comparison, got {path}, which holds none")
        found += results
    return join(found)


def join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parts of one comparison as one: all rows, the later of two of the same workload.

    Rows of the wide set come in its order, and others behind them.

    Raises:
        ValueError: there are no parts, or they are of different GPUs or protocols.
    """
    if not parts:
        raise ValueError("results: expected at least one comparison, got none")
    first = parts[0]
    for part in parts[1:]:
        for what, there, here in (
            ("GPU", first["machine"]["gpu"], part["machine"]["gpu"]),
            ("protocol", first["protocol"], part["protocol"]),
        ):
            if there != here:
                raise ValueError(f"results: expected parts of one {what}, got {there!r} and {here!r}")
    if len(parts) == 1:
        return dict(first)

    # Times of different days stay comparable, since a ratio is of one row. The dates and drivers are kept.
    found = {_key(row): row for part in parts for row in part["rows"]}
    order = {_key_of(workload): number for number, workload in enumerate(WIDE)}
    rows = [found[key] for key in sorted(found, key=lambda key: order.get(key, len(order)))]
    peers = {name: said for part in parts for name, said in part["peers"].items()}
    missing = {name: why for part in parts for name, why in part["skipped"].items() if name not in peers}
    runs = [run for part in parts for run in part.get("runs") or [_run(part)]]
    return {
        **first,
        "runs": runs,
        "peers": peers,
        "skipped": missing,
        "rows": rows,
        "lost": "; ".join(part["lost"] for part in parts if part["lost"]),
        "host": next((part["host"] for part in parts if part["host"]), None),
        "summary": summarize(rows),
    }


def _run(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a part's run from others."""
    return {"date": part["date"], "machine": part["machine"], "rows": len(part["rows"])}


def remaining(workloads: Iterable[Workload], results: Mapping[str, Any]) -> list[Workload]:
    """Return the workloads that the results have no row of."""
    there = {_key(row) for row in results["rows"]}
    return [workload for workload in workloads if _key_of(workload) not in there]


def _key_of(workload: Workload) -> tuple[Any, ...]:
    return _key({**workload.sizes(), "counts": workload.counts})


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what makes two rows rows of the same workload."""
    return row["layout"], row["n"], row["k"], row["m"], *row["counts"]
