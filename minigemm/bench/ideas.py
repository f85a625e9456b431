"""What single ideas of s11 and s12 gain: the kernel as it is beside the same kernel without one of them."""

from __future__ import annotations

import datetime
import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..compiler.jit import HEADERS
from ..kernels import grouped, s11_overlapped, s12_swapped
from ..kernels.library import Config, stage_of
from ..machine import hopper_gpu, identity
from . import cases, workloads
from .cases import Case
from .timing import FLUSHED, gpu_seconds

__all__ = ["IDEAS", "Idea", "ideas_as_text", "ideas_gain", "undone"]

ROUNDS = 15
S11, S12 = s11_overlapped.Config, s12_swapped.Config
#: A slot's scales of b as a consumer reads them, and from device memory instead.
FROM_RING = "scale_b[i][j] = shared.sfb[ahead.stage][j];"
FROM_MEMORY = (
    "scale_b[i][j] = sfb[part.group * group_sfb + min(part.column0 / BLOCK_K + j, sfb_rows - 1) * ld_sfb "
    "+ issued / kWaves % steps];"
)


@dataclass(frozen=True)
class Idea:
    """An idea, and how to take it out of a kernel.

    Attributes:
        text: the idea in a few words.
        shape: m, n, k of the dense product that shows it.
        config: with the idea.
        changes: what is replaced without it, each (file, old, new); each old text occurs in its file.
        without: another config without it.
    """

    text: str
    shape: tuple[int, int, int]
    config: Config
    changes: tuple[tuple[str, str, str], ...] = ()
    without: Config | None = None

    @property
    def file(self) -> str:
        """The name of the source without the idea."""
        return stage_of(self.without or self.config).source.name


_LARGE, _FEW = S11(256, 128, 3, 2), S11(64, 128, 8, 1, raster=8, raster_m=True)
_KERNEL, _TILE = "s11_overlapped.cu", "tile.cuh"
IDEAS = (
    Idea(
        "the loader's state in uniform registers", (4096, 4096, 7168), _LARGE,
        ((_KERNEL, "      return;\n    }\n    if (warp % 4 == 1)", "    }\n    if (warp % 4 == 1)"),),
    ),
    Idea(
        "consumers hear their parts, and do not count", (4096, 4096, 7168), _LARGE,
        (
            (_KERNEL, "walk.listen(part)", "walk.next(part)"),
            (_KERNEL, "LAYOUT == DENSE ? shared.parts.tell_all(walk) : ", "if (LAYOUT != DENSE) "),
        ),
    ),
    Idea(
        "scales of b through the ring", (4096, 4096, 7168), _LARGE,
        (
            (_KERNEL, "  Slot ahead;", "  int issued = 0;  // products\n  Slot ahead;"),
            (_KERNEL, FROM_RING, FROM_MEMORY),
            (_KERNEL, "if (wave == kWaves - 1) ahead", "++issued;\n      if (wave == kWaves - 1) ahead"),
        ),
    ),
    Idea(
        "two partial sums", (256, 4096, 7168), _FEW,
        ((_KERNEL, '#include "ptx.cuh"', '#define PARTIALS 1\n#include "ptx.cuh"'),),
    ),
    Idea(
        "weights that few tiles read leave L2 first", (256, 4096, 7168), _FEW,
        ((_KERNEL, "policy(part.readers <= kReaders)", "policy(false)"),),
    ),
    Idea(
        "tiles that share weights are numbered one after the other", (256, 4096, 7168), _FEW,
        without=S11(64, 128, 8, 1),
    ),
    Idea(
        "no rows outside: the last tile begins early", (300, 4096, 8192),
        S11(128, 96, 7, 2, raster=8, raster_m=True),
        ((_TILE, "max(0, min(first, (m - BLOCK_M + 3) / 4 * 4))", "first"),),
    ),
    Idea("weights as the 64-row side", (16, 4096, 7168), S12(16, 64, 5), without=S11(64, 32, 16, 1)),
    Idea("four k-blocks in a slot", (32, 4096, 7168), S12(32, 64, 4), without=S12(32, 64, 16, blocks=1)),
)  # fmt: skip


def undone(idea: Idea, folder: Path) -> Path:
    """Write the idea's kernel without it, with its headers, into a folder. Returns the source's path.

    Raises:
        ValueError: a text that would be replaced is not there.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in HEADERS.glob("*.cuh")}
    texts[idea.file] = (HEADERS / idea.file).read_text(encoding="utf-8")
    for file, old, new in idea.changes:
        if old not in texts[file]:
            raise ValueError(f"idea {idea.text!r}: {old!r} is not in {file} any more")
        texts[file] = texts[file].replace(old, new)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / idea.file


def launched(source: Path, config: Config, case: Case, d: torch.Tensor) -> Callable[[], Any]:
    """Return a call that launches this source under a config, from a dense case into d."""
    launch = grouped.launch_dense(case.a, case.sfa, case.b, case.sfb, d, config)
    return functools.partial(stage_of(config).run, launch, config, d.device, source)


def compared(idea: Idea, case: Case, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the calls without and with the idea. RuntimeError if their bits differ."""
    with_it, without = case.empty(), case.empty()
    calls = {
        "without_us": launched(undone(idea, folder), idea.without or idea.config, case, without),
        "with_us": launched(stage_of(idea.config).source, idea.config, case, with_it),
    }
    for call in calls.values():
        call()
    if not torch.equal(with_it.view(torch.int16), without.view(torch.int16)):
        raise RuntimeError(f"idea {idea.text!r}: the kernel without it gives other bits")
    return calls


def ideas_gain(rounds: int = ROUNDS) -> dict[str, Any]:
    """Time the kernels without and with each of IDEAS.

    Raises:
        ValueError: there is no Hopper GPU.
        RuntimeError: a kernel without an idea gives other bits.
    """
    device = hopper_gpu("bench --ideas")
    rows = []
    for idea in IDEAS:
        with tempfile.TemporaryDirectory() as folder:
            calls = compared(idea, cases.make(workloads.dense(*idea.shape), device), Path(folder))
            seconds = gpu_seconds(calls, device, rounds)
        medians = {name: 1e6 * statistics.median(times) for name, times in seconds.items()}
        shape = "x".join(map(str, idea.shape))
        rows.append({"stage": stage_of(idea.config).name, "idea": idea.text, "shape": shape, **medians})
    return {
        "what": "what single ideas gain, python -m minigemm bench --ideas",
        "date": datetime.date.today().isoformat(),
        "machine": identity(device),
        "protocol": f"GPU time of the kernel by torch.profiler, median of {rounds} rounds interleaved; {FLUSHED}; the "
        "kernel as it is, and without the one idea; both with the same bits",
        "ideas": rows,
    }


def ideas_as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for row in results["ideas"]:
        change = row["with_us"] / row["without_us"] - 1
        times = f"{row['without_us']:8.2f} us -> {row['with_us']:8.2f} us {change:+.1%}"
        lines.append(f"{row['stage']:15} {row['shape']:16} {times}  {row['idea']}")
    return "\n".join(lines)
