"""Compile before the first call: `minigemm.precompile([(2112, 7168), (7168, 2048)])`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch

from .. import checks, runtime
from ..compiler import jit
from ..kernels import s10_grouped as kernel
from ..kernels.s10_grouped import Config
from . import cost, prepared
from .prepared import Call

__all__ = ["precompile"]

KERNELS_A_PROCESS = 8  # below that, starting one more takes longer than it saves


def precompile(
    shapes: Iterable[Sequence[int]],
    *,
    layout: str = "dense",
    groups: int = 1,
    use_psum_layout: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: bool = False,
    device: torch.device | str | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> list[jit.Kernel]:
    """Compile and load what calls of these shapes need, so that none of them waits for the compiler.

    Args:
        shapes: (n, k), for any number of rows: at most 12 kernels; or (m, n, k), for exactly that m (expected_m, where the layout is masked): one.
        layout: "dense", "contiguous" or "masked", with so many `groups`; use_psum_layout: whether calls of the contiguous layout tell prefix sums, not ids.
        out_dtype: of d; accumulate: whether calls add c.
        device: by default the current GPU, or the CPU where there is none.
        processes: that compile at the same time; by default as many as are worth their start. All of them fill the cache on disk.
        progress: whether to draw a bar.

    Returns:
        The kernels, each once; `origin` says where each came from.

    Raises:
        TypeError, ValueError: what is wrong with an argument; CompileError (a ValueError) where there is no NVRTC.
    """
    where = _device(device)
    configs = _configs(shapes, layout, groups, use_psum_layout, out_dtype, accumulate, where)
    if processes is None:
        processes = min(os.cpu_count() or 1, len(configs) // KERNELS_A_PROCESS)
    elif not _is_int(processes) or processes < 1:
        raise ValueError(f"processes: expected an int of at least 1, got {processes!r}")
    with _bar(progress, len(configs)) as advance:
        if processes > 1:
            _in_processes(configs, processes, advance)
        built = []
        for config in configs:  # what a process left undone is compiled here, and says why it could not be
            built.append(_build(config))
            prepared.loaded_kernel(config, where)
            if processes <= 1:
                advance()
    return list({each.key: each for each in built}.values())


def _configs(
    shapes: Iterable[Sequence[int]],
    layout: str,
    groups: int,
    prefix_sums: bool,
    out_dtype: torch.dtype,
    accumulate: bool,
    device: torch.device,
) -> list[Config]:
    """Each config once, in order."""
    if layout not in cost.LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, cost.LAYOUTS))}, got {layout!r}")
    checks.check_flag("use_psum_layout", prefix_sums)
    if prefix_sums and layout != "contiguous":
        raise ValueError(f"use_psum_layout: expected the contiguous layout with it, got {layout!r}")
    if not _is_int(groups) or groups < 1:
        raise ValueError(f"groups: expected an int of at least 1, got {groups!r}")
    if out_dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"out_dtype: expected torch.bfloat16 or torch.float32, got {out_dtype!r}")
    found: dict[Config, None] = {}
    for shape in shapes:
        if (
            not isinstance(shape, Sequence)
            or len(shape) not in (2, 3)
            or not all(_is_int(size) for size in shape)
        ):
            raise TypeError(f"shapes: expected (n, k) or (m, n, k) of ints, got {shape!r}")
        *m, n, k = shape
        if min(shape) < 1 or k % 16:
            raise ValueError(
                f"shapes: expected sizes of at least 1 and a k that is a multiple of 16, got {shape!r}"
            )
        call = Call(
            layout, m[0] if m else 0, n, k, groups, out_fp32=out_dtype == torch.float32, accumulate=bool(accumulate), prefix_sums=prefix_sums
        )  # fmt: skip
        found.update(
            dict.fromkeys([prepared.config_for(call, device)] if m else prepared.configs_for(call, device))
        )
    return list(found)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    runtime.of(where).check_device(where)
    return where


def _build(config: Config) -> jit.Kernel:
    return jit.build(kernel.stage.source, config, name=kernel.stage.name, kernel=kernel.stage.kernel)


@contextmanager
def _bar(shown: bool, total: int) -> Any:
    """A bar that each call of what it gives moves by one."""
    if not shown:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("kernels", total=total)
        yield lambda: progress.advance(task)


def _in_processes(configs: Sequence[Config], processes: int, advance: Callable[[], None]) -> None:
    """Fill the cache on disk. A process that fails is not missed: its kernels are compiled afterwards."""

    def follow(share: Sequence[Config]) -> None:
        told = json.dumps([vars(config) for config in share])
        command = [sys.executable, "-c", "from minigemm.plan.ahead import work; work()", told]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            for _ in process.stdout or ():
                advance()

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(follow, [configs[first::processes] for first in range(processes)]))


def work() -> None:
    """What such a process does: build the configs that its argument lists, and print a line after each."""
    for fields in json.loads(sys.argv[1]):
        _build(kernel.Config(**fields))
        print(flush=True)
