"""NVIDIA's Nsight Compute: where ncu is, its metrics, how to call it, and the kernels that it prints."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .programs import find, toolkit

__all__ = ["LABEL", "Kernel", "command_of", "find_ncu", "known_metrics", "parse", "said", "version_of"]

NSIGHT = Path("/opt/nvidia/nsight-compute")  # where the toolkit puts it, a folder for each version
SURE = "gpu__time_duration"  # a list of metrics that lacks it is not understood
LABEL = "minigemm-call-"  # of the NVTX ranges; the call's number follows
BASES = ("second", "s", "byte", "hz", "cycle", "inst", "sector", "request")
PREFIXES = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS = {prefix + base: factor for prefix, factor in PREFIXES.items() for base in BASES}


def find_ncu() -> str:
    """Return the path of ncu. ValueError, with the places that were searched, where there is none."""
    found = find("ncu", map(str, sorted(NSIGHT.glob("*"), reverse=True)))
    if found is None:
        places = f"the PATH, {toolkit()} and {NSIGHT}/*"
        raise ValueError(
            f"bench --ncu needs ncu, the command of NVIDIA Nsight Compute; it is not in {places}"
        )
    return found


def known_metrics(ncu: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the (known, unknown) of these metrics; an unknown one would end a run of this ncu.

    All of them are known if ncu cannot list its metrics for Hopper.
    """
    names = list(names)
    command = [ncu, "--query-metrics", "--chips", "gh100"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return names, []
    listed = set(re.findall(r'^\s*"?(\w+__\w+)', answer.stdout, re.MULTILINE))
    if SURE not in listed:
        return names, []
    known = [name for name in names if name.partition(".")[0] in listed]
    return known, [name for name in names if name not in known]


def command_of(ncu: str, metrics: Iterable[str], module: str, arguments: Iterable[str]) -> list[str]:
    """Return the command that runs a Python module under ncu and prints its kernels' metrics as CSV.

    Only what runs between cudaProfilerStart and cudaProfilerStop is counted, each kernel replayed with empty
    caches and the clock as it comes.
    """
    options = {
        "--page": "raw",
        "--print-units": "base",
        "--metrics": ",".join(metrics),
        "--cache-control": "all",
        "--clock-control": "none",
        "--target-processes": "all",
        "--profile-from-start": "off",
    }
    pairs = [word for pair in options.items() for word in pair]
    return [ncu, "--csv", *pairs, "--nvtx", sys.executable, "-m", module, *arguments]


def version_of(ncu: str) -> str:
    """Return the version of this ncu, or "unknown"."""
    answer = subprocess.run([ncu, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"Version (\S+)", answer.stdout)
    return found[1] if found else "unknown"


def said(output: str, errors: str) -> str:
    """Return the end of what ncu and its program printed, in one line."""
    text = f"{output[-1000:]}\n{errors[-1500:]}"
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class Kernel:
    """A kernel that was counted.

    Attributes:
        name, grid, block: as ncu prints them.
        call: the number of the call that launched it; None if ncu shows no NVTX ranges.
        values: metrics by ncu's names, in seconds, bytes, Hz and per cent.
    """

    name: str
    grid: str
    block: str
    call: int | None
    values: dict[str, float] = field(default_factory=dict)


def parse(text: str) -> list[Kernel]:
    """Return the kernels that `ncu --csv --page raw` printed, in order.

    Lines before the CSV are skipped, and so are values that are no numbers ("n/a").
    """
    start = text.find('"ID"')
    header: list[str] = []
    units: dict[str, str] = {}
    found = []
    for row in csv.reader(io.StringIO(text[start:] if start >= 0 else "")):
        if row[:1] == ["ID"]:
            header, units = row, {}
        elif len(row) != len(header):
            continue  # a line of ncu's own
        elif row[0] == "":
            units = dict(zip(header, row, strict=True))
        else:
            found.append(_kernel(dict(zip(header, row, strict=True)), units))
    return found


def _kernel(cells: Mapping[str, str], units: Mapping[str, str]) -> Kernel:
    """Return the kernel in a line of the CSV, from its cells by column."""
    values = {}
    for name, cell in cells.items():
        if "__" in name and (number := _number(cell)) is not None:
            values[name] = number * _factor(units.get(name, ""))
    label = next((hit for cell in cells.values() if (hit := re.search(rf"{LABEL}(\d+)", cell))), None)
    name, grid, block = (cells.get(column, "") for column in ("Kernel Name", "Grid Size", "Block Size"))
    return Kernel(name, grid, block, int(label[1]) if label else None, values)


def _number(cell: str) -> float | None:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return None


def _factor(unit: str) -> float:
    """Return the factor from a unit to s, bytes or Hz: 1e-9 for ns, 1e9 for cycle/ns, 1 for counts and %."""
    top, _, bottom = unit.partition("/")
    return UNITS.get(top, 1.0) / UNITS.get(bottom, 1.0)
