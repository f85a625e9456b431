"""`python -m minigemm tune`: times the library's tiles over a grid of products, and fits a chip's `Paces`.

The grid is fixed: layers of models in use, each with rows of every size, dense and grouped. For each product
the tiles that could win are timed together, by the clock of all benchmarks here (GPU time of the kernel, L2
flushed by a fill), and checked to give the same bits. The fit minimizes the difference of logarithms between
predicted and measured times; tiles near the best of their product count most.
"""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .. import hopper
from ..kernels import s11_overlapped
from ..kernels.library import Config, stage_of, stages_by_name
from ..machine import hopper_gpu, identity
from ..plan import ahead, choose, cost, prepared
from ..types import Product
from . import cases, workloads
from .autotune import timed_alike
from .peers.minigemm import call
from .timing import FLUSHED
from .workloads import Workload

__all__ = ["fit", "grid", "likely", "measure", "tune"]

ROUNDS = 6
WITHIN = 1.9  # times the best prediction: slower tiles are not timed
MOST = 16  # tiles of one product
LARGEST = 8e11  # operations of a dense product, and half as many of a grouped one
LARGEST_WEIGHTS = 2_200_000_000  # bytes of all groups

#: (n, k) of layers in use, and how many rows of the small, middle and large ones each is timed with.
LAYERS = (
    (2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048), (3072, 5120),
    (5120, 8192), (2048, 4096), (4096, 2048), (1536, 2048), (9216, 4096), (6144, 4096), (4096, 4096),
    (10240, 8192), (8192, 28672), (8192, 3584), (1280, 8192), (14336, 4096), (512, 7168), (7168, 256),
    (2560, 3072), (5120, 1536), (1024, 2048), (18432, 7168), (7168, 18432), (768, 2048),
)  # fmt: skip
ROWS = (
    ((4, 8, 16, 24, 32, 48, 64), 3),
    ((72, 100, 128, 192, 256, 300, 384, 512), 3),
    ((768, 1024, 1500, 2048, 3000, 4096, 8192), 2),
)
EXPERTS = ((4096, 7168), (7168, 2048), (1536, 2048), (2048, 768))
GROUPS = (8, 32, 64)
MASKED_ROWS = (8, 16, 32, 64, 128, 256, 512)
CONTIGUOUS_ROWS = (16, 64, 256, 512, 1024)


def grid() -> list[Workload]:
    """Return the products to time, the same on every machine, in an order that mixes sizes."""
    source = random.Random(5)
    found = []
    for n, k in LAYERS:
        for rows, count in ROWS:
            shapes = [workloads.dense(m, n, k) for m in source.sample(rows, count)]
            found += [each for each in shapes if each.operations <= LARGEST]
    source.shuffle(found)

    grouped = []
    for groups in GROUPS:
        for n, k in EXPERTS:
            each = [workloads.masked(groups, m, n, k) for m in MASKED_ROWS]
            each += [workloads.contiguous(groups, m, n, k) for m in CONTIGUOUS_ROWS]
            fits = groups * n * k < LARGEST_WEIGHTS
            grouped += [work for work in each if fits and work.operations <= LARGEST / 2]
    source.shuffle(grouped)
    return found + grouped


def tune(
    seconds: float = 240.0,
    *,
    progress: Callable[[str], None] = lambda text: None,
    advance: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Time the grid on the Hopper GPU at hand and return its `Paces`, as JSON holds them, with all times.

    The library uses them from then on: they are kept in the cache. Interrupted by Ctrl-C or out of time, it
    fits what it has.

    Args:
        seconds: of timing, after which the rest of the grid is left out.
        progress: is told what is going on.
        advance: is told the share of the grid that is done.

    Raises:
        ValueError: there is no Hopper GPU, or a CUDA graph is being captured, or nothing was timed.
    """
    device = hopper_gpu("tune")
    if torch.cuda.is_current_stream_capturing():
        raise ValueError("tune: expected no CUDA graph to be under capture, since timing waits for the GPU")
    torch.cuda.set_device(device)
    rows: list[dict[str, Any]] = []
    try:
        for share in measure(device, grid(), rows, seconds, progress):
            advance(share)
    except KeyboardInterrupt:
        progress("interrupted: fitting what was timed")
    if not rows:
        raise ValueError("tune: expected to time at least one product, and none was")
    progress("fitting")
    results = _results(identity(device), rows, choose.machine_of(device))
    cost.keep(results)
    prepared.clear()
    return results


def _results(
    machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], before: cost.Machine
) -> dict[str, Any]:
    """Return the paces with where they are from. Tiles that were not timed keep those of `before`."""
    chip, fitted = hopper.chip_of(machine["gpu"]), fit(rows, before.sms)
    for name in ("start", "pace", "tile"):
        fitted[name] = {**getattr(before.paces, name), **fitted[name]}
    versions = f"driver {machine['driver']}, CUDA {machine['cuda']}, torch {machine['torch']}"
    today = datetime.date.today().isoformat()
    return {
        "chip": chip.name.split()[0],
        "measured_on": f"{machine['gpu']}, {versions}, {today}",
        "machine": dict(machine),
        "date": today,
        "protocol": f"GPU time of the kernel by torch.profiler, median of {ROUNDS} rounds in which each tile is "
        f"called once; {FLUSHED}; BF16 normal random numbers, quantized beforehand",
        **fitted,
        "rows": list(rows),
    }


# --- measuring


def measure(
    device: torch.device,
    works: Sequence[Workload],
    rows: list[dict[str, Any]],
    seconds: float,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[float]:
    """Time the products and append a row for each tile; yield the share that is done after each product."""
    plans = [(work, _tiles(work.product, device)) for work in works]
    progress("compiling")
    every = dict.fromkeys(config for _, configs in plans for config in configs)
    ahead.compile_all(list(every), device, None, progress=False)
    started = time.monotonic()
    for number, (work, configs) in enumerate(plans, 1):
        if time.monotonic() - started > seconds:
            progress(f"out of time after {number - 1} of {len(plans)} products")
            return
        progress(str(work))
        rows += _timed(work, configs, device)
        yield number / len(plans)


def _tiles(product: Product, device: torch.device) -> list[Config]:
    """Return the configs that could be the quickest for the product: at most MOST, the likeliest first."""
    machine = choose.machine_of(device)
    able = [
        replace(config, ctas=machine.sms)
        for config in choose.candidates()
        if not (cost.wrong_raster(product, config) and isinstance(config, s11_overlapped.Config))
    ]
    return likely(able, product, machine, WITHIN)[:MOST]


def likely(configs: Iterable[Config], product: Product, machine: cost.Machine, within: float) -> list[Config]:
    """Return the configs that can run the product, as it needs them, the best prediction first.

    Those whose prediction is more than `within` times the best are left out.
    """
    able = []
    for config in configs:
        try:
            able.append(choose.suited(product, config))
        except ValueError:
            continue
    times = {config: cost.cost(product, config, machine).ns for config in able}
    near = [config for config in able if times[config] <= within * min(times.values())]
    return sorted(near, key=times.__getitem__)


def _timed(work: Workload, configs: Sequence[Config], device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each config. RuntimeError where two of them differ in a bit."""
    case = cases.make(work, device)
    d = case.empty()
    times = timed_alike(configs, d, float("nan"), lambda config: call(case, d, config=config), device, ROUNDS)
    product = work.product
    return [
        {
            **work.sizes(),
            "rows": work.rows,
            "stage": stage_of(config).name,
            "block_m": config.block_m,
            "block_n": config.block_n,
            "stages": config.stages,
            "tiles": cost.tiles_of(product, config),
            "us": us,
        }
        for config, us in times.items()
    ]


# --- fitting

STEPS = 60  # of the optimizer, each of at most 20 evaluations
NEAR = 4.0  # a tile that takes x times the best of its product counts x ** -NEAR
SOFT = 0.03  # differences beyond so much count less and less
USUAL_TILE = 700.0  # nanoseconds, to which little evidence pulls


def fit(rows: Sequence[Mapping[str, Any]], sms: int) -> dict[str, Any]:
    """Return the numbers of `Paces` that predict these times best, on a chip of `sms` SMs.

    Source: the soft L1 loss and its scale are those of scipy.optimize.least_squares.
    """
    names = sorted({_name(row) for row in rows})
    stages = sorted(stages_by_name())
    tensors = _columns(rows, names, stages)
    us = tensors["us"]

    # How much each row counts: by how near it is to the best of its product.
    best: dict[tuple[Any, ...], float] = {}
    keys = [tuple(row[name] for name in ("layout", "groups", "m", "n", "k")) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        best[key] = min(best.get(key, float("inf")), row["us"])
    near = torch.tensor([best[key] / row["us"] for key, row in zip(keys, rows, strict=True)]).double() ** NEAR

    # Logarithms of: each tile's pace, each tile's own time, the starts, rate, alone, mixing, outside, again.
    area = torch.tensor([float(name.split()[1].split("x")[0]) * float(name.split("x")[-1]) for name in names])
    shared = torch.tensor([3500.0] * len(stages) + [3900.0, 0.3, 0.3, 1.0, 0.3])
    guess = torch.cat([area / 50 + 60, torch.full((len(names),), USUAL_TILE), shared])
    logs = guess.double().log().requires_grad_()

    def loss() -> torch.Tensor:
        apart = (_predicted(logs.exp(), tensors, len(names), len(stages), sms).log() - us.log()) * near
        soft = 2 * SOFT**2 * ((1 + (apart / SOFT) ** 2).sqrt() - 1)
        usual = logs[len(names) : 2 * len(names)] - torch.tensor(USUAL_TILE).log()
        return soft.sum() + 1e-4 * usual.square().sum()

    optimizer = torch.optim.LBFGS([logs], max_iter=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(STEPS):
        optimizer.step(closure)  # type: ignore[arg-type]

    found = [round(value, 4) for value in logs.detach().exp().tolist()]
    pace, tile, rest = found[: len(names)], found[len(names) : 2 * len(names)], found[2 * len(names) :]
    rate, alone, mixing, outside, again = rest[len(stages) :]
    return {
        "rate": rate,
        "alone": alone,
        "mixing": mixing,
        "outside": outside,
        "again": again,
        "start": dict(zip(stages, rest, strict=False)),
        "pace": dict(zip(names, pace, strict=True)),
        "tile": dict(zip(names, tile, strict=True)),
    }


def _name(row: Mapping[str, Any]) -> str:
    """Return the name of the row's tile, as `cost.tile_name` gives it to a config."""
    return f"{row['stage']} {row['block_m']}x{row['block_n']}"


def _columns(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], stages: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return what `_predicted` needs of the rows, a tensor for each quantity."""

    def column(value: Callable[[Mapping[str, Any]], float]) -> torch.Tensor:
        return torch.tensor([float(value(row)) for row in rows], dtype=torch.float64)

    def below(row: Mapping[str, Any]) -> float:
        across = -(-row["n"] // row["block_n"])
        return 0 if row["layout"] != "masked" else max(row["tiles"] / (row["groups"] * across) - 1, 0)

    def moved(row: Mapping[str, Any]) -> float:
        in_use = row["groups"] * row["m"] if row["layout"] == "masked" else row["rows"]
        return in_use * (row["k"] + 2 * row["n"]) + row["groups"] * row["n"] * row["k"]

    return {
        "name": column(lambda row: names.index(_name(row))).long(),
        "stage": column(lambda row: stages.index(row["stage"])).long(),
        "tiles": column(lambda row: row["tiles"]),
        "steps": column(lambda row: -(-row["k"] // cost.STEP)),
        "below": column(lambda row: max(row["block_m"] - row["m"], 0) if row["layout"] == "dense" else 0),
        "beside": column(lambda row: -row["n"] % row["block_n"]),
        "moved": column(moved),
        "again": column(lambda row: below(row) * row["groups"] * row["n"] * row["k"]),
        "us": column(lambda row: row["us"]),
    }


def _predicted(
    values: torch.Tensor, rows: Mapping[str, torch.Tensor], names: int, stages: int, sms: int
) -> torch.Tensor:
    """Return the microseconds of each row, by the model of `plan.cost`, where autograd can follow."""
    pace, tile, rest = values[:names], values[names : 2 * names], values[2 * names :]
    rate, alone, mixing, outside, again = rest[stages:]
    tiles = rows["tiles"]
    full = ((tiles - 1) / sms).floor()
    last = tiles - full * sms
    one = rows["steps"] * (pace[rows["name"]] + outside * rows["below"]) + tile[rows["name"]]
    moving = (rows["moved"] + again * rows["again"]) / rate

    def overlapped(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        longer, shorter = torch.maximum(x, y), torch.minimum(x, y)
        return longer + mixing * shorter**2 / longer

    of_last = one * (1 - alone * (1 - last / sms)) + rows["steps"] * outside * rows["beside"]
    in_last = overlapped(of_last, moving * last / tiles)
    before = overlapped(full.clamp(min=1) * one, moving * full.clamp(min=1) * sms / tiles)
    return (rest[:stages][rows["stage"]] + in_last + torch.where(full > 0, before, 0.0)) / 1e3
