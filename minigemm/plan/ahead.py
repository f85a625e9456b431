"""Compile before the first call: `minigemm.precompile([(2112, 7168), (7168, 2048)])`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeGuard

import torch

from .. import checks, runtime
from ..compiler import jit
from ..kernels.library import Config, stage_of, stages_by_name
from ..types import Layout, Product
from . import choose, prepared

__all__ = ["LAYOUTS", "bar", "compile_all", "device_of", "precompile", "product_of", "sizes_of"]

KERNELS_PER_PROCESS = 8  # with fewer, one more process takes longer to start than it saves
#: The layouts by the names that `precompile` and the command line give them.
LAYOUTS = {"dense": Layout.DENSE, "contiguous": Layout.CONTIGUOUS, "masked": Layout.MASKED}


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
        shapes: (n, k) for any number of rows: at most 12 kernels. Or (m, n, k) for exactly that m (in a
            masked layout that expected_m): one kernel.
        layout: "dense", "contiguous" or "masked".
        groups: how many weights b holds.
        use_psum_layout: calls of the contiguous layout give prefix sums, not ids.
        out_dtype: the dtype of d.
        accumulate: calls add c.
        device: by default the current GPU, or the CPU where there is none.
        processes: how many compile at the same time; by default as many as are worth their start. All of them
            fill the cache on disk.
        progress: whether to draw a bar.

    Returns:
        The kernels, each once; `origin` says where each came from.

    Raises:
        TypeError, ValueError: an argument is wrong.
        CompileError: (a ValueError) there is no NVRTC.
    """
    where = device_of(device)
    product = product_of(layout, groups, use_psum_layout, out_dtype, accumulate)
    configs = _configs(shapes, product, where)
    if processes is not None and (not _is_int(processes) or processes < 1):
        raise ValueError(f"processes: expected an int of at least 1, got {processes!r}")
    return compile_all(configs, where, processes, progress)


def compile_all(
    configs: Sequence[Config], where: torch.device, processes: int | None, progress: bool
) -> list[jit.Kernel]:
    """Compile and load the kernels of these configs; return each once. See `precompile`."""
    if processes is None:
        processes = min(os.cpu_count() or 1, len(configs) // KERNELS_PER_PROCESS)
    with bar(progress, len(configs), "kernels") as advance:
        if processes > 1:
            _in_processes(configs, processes, advance)
        kernels = []
        # a kernel that no process has left in the cache is compiled here, or says why not
        for config in configs:
            kernels.append(prepared.compiled(config))
            prepared.loaded(config, where)
            if processes <= 1:
                advance()
    return list({kernel.key: kernel for kernel in kernels}.values())


def product_of(
    layout: str, groups: int, prefix_sums: bool, out_dtype: torch.dtype, accumulate: bool
) -> Product:
    """Check the arguments that all shapes share, and return their product, without sizes."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    checks.check_flag("use_psum_layout", prefix_sums)
    if prefix_sums and layout != "contiguous":
        raise ValueError(f"use_psum_layout: expected the contiguous layout with it, got {layout!r}")
    if not _is_int(groups) or groups < 1:
        raise ValueError(f"groups: expected an int of at least 1, got {groups!r}")
    if layout == "dense" and groups != 1:
        raise ValueError(f"groups: expected 1 in the dense layout, got {groups}")
    if out_dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"out_dtype: expected torch.bfloat16 or torch.float32, got {out_dtype!r}")
    return Product(
        0,
        0,
        0,
        Layout.PREFIX_SUMS if prefix_sums else LAYOUTS[layout],
        groups,
        alignment=choose.settings().alignment,
        out_fp32=out_dtype == torch.float32,
        accumulate=bool(accumulate),
    )


def _configs(shapes: Iterable[Sequence[int]], product: Product, device: torch.device) -> list[Config]:
    """Return the configs that a product of these shapes may get, each once, in order."""
    found: list[Config] = []
    for shape in shapes:
        *m, n, k = sizes_of(shape)
        if m:
            found.append(choose.config_for(product._replace(m=m[0], n=n, k=k), device))
        else:
            found += choose.configs_for(product._replace(n=n, k=k), device)
    return list(dict.fromkeys(found))


def sizes_of(shape: Sequence[int], *, with_m: bool = False) -> Sequence[int]:
    """Return the sizes (n, k) or (m, n, k) that a shape names, once they are checked; `with_m` wants m."""
    of_ints = isinstance(shape, Sequence) and all(_is_int(size) for size in shape)
    if not of_ints or len(shape) not in ((3,) if with_m else (2, 3)):
        expected = "(m, n, k)" if with_m else "(n, k) or (m, n, k)"
        raise TypeError(f"shapes: expected {expected} of ints, got {shape!r}")
    if min(shape) < 1 or shape[-1] % 16:
        raise ValueError(
            f"shapes: expected sizes of at least 1 and a k that is a multiple of 16, got {shape!r}"
        )
    return shape


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def device_of(device: torch.device | str | None) -> torch.device:
    """Return the device, with its index, once the runtime has accepted it."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    runtime.of(where).check_device(where)
    return where


@contextmanager
def bar(shown: bool, total: int, what: str) -> Iterator[Callable[[], None]]:
    """Draw a bar; each call of the function that this gives moves it by one."""
    if not shown:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _in_processes(configs: Sequence[Config], processes: int, advance: Callable[[], None]) -> None:
    """Fill the cache on disk. A process may fail: its kernels are compiled afterwards."""

    def follow(share: Sequence[Config]) -> None:
        told = json.dumps([(stage_of(config).name, vars(config)) for config in share])
        command = [sys.executable, "-c", f"from {__name__} import work; work()", told]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            for _ in process.stdout or ():
                advance()

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(follow, [configs[first::processes] for first in range(processes)]))


def work() -> None:
    """Compile the configs of this process's argument, and print a line after each: see `_in_processes`."""
    for name, fields in json.loads(sys.argv[1]):
        prepared.compiled(stages_by_name()[name].config(**fields))
        print(flush=True)
