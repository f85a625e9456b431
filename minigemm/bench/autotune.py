"""The best config of a product on this GPU, by measuring: `minigemm.autotune([(64, 2112, 7168)])`.

The library predicts which config is the fastest. Here the configs with the best predictions run, by the clock
of every benchmark (`timing`), and the fastest becomes the product's winner (`plan.tuned`). They are compared
with one another too: all have to give the same bits.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from .. import checks
from ..kernels.library import Config, stage_of
from ..layout import ceil_div
from ..plan import ahead, choose, prepared, tuned
from ..types import Layout, Product
from . import cases, workloads
from .peers.minigemm import call as library_call
from .timing import gpu_seconds
from .workloads import Workload

__all__ = ["Tuned", "autotune", "fastest_of", "near", "timed_alike"]

ROUNDS = 20
NEAR = 1.6  # times the best prediction: whatever is predicted to take longer is not timed
LEAST = 4  # configs that are timed, whatever their predictions
TIE = 1.01  # times the fastest: among those, the best prediction wins
ROWS_OF_PADDING = 37  # for each further group, modulo the alignment: an uneven share


@dataclass(frozen=True)
class Tuned:
    """What autotune found for one product. Times in microseconds, medians of the rounds.

    Attributes:
        product: the product; its m is that of the shape.
        config: the winner.
        us: its time.
        predicted: the config that the prediction takes.
        predicted_us: the time of that config.
        timed: every config that was timed, with its time.
    """

    product: Product
    config: Config
    us: float
    predicted: Config
    predicted_us: float
    timed: dict[Config, float]

    @property
    def gain(self) -> float:
        """How many times faster the winner is than the predicted config, 1.0 or more."""
        return self.predicted_us / self.us


def autotune(
    shapes: Iterable[Sequence[int]],
    *,
    layout: str = "dense",
    groups: int = 1,
    use_psum_layout: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: bool = False,
    device: torch.device | str | None = None,
    rounds: int = ROUNDS,
    progress: bool = True,
) -> list[Tuned]:
    """Time the configs that products of these shapes may get, and let later calls have the fastest.

    A winner is stored as soon as it is found, in the cache on disk. Later calls and processes on the same
    kind of GPU get it, as long as driver, kernels and settings stay. All m of one step (`choose.m_step`)
    share a winner; the last one stays. Data is random, and L2 is flushed before each timed call.

    Args:
        shapes: (m, n, k). In a masked layout m is the `expected_m` of the calls.
        layout: "dense", "contiguous" or "masked".
        groups: how many weights b holds.
        use_psum_layout: calls of the contiguous layout give prefix sums, not ids.
        out_dtype: the dtype of d.
        accumulate: calls add c.
        device: a Hopper GPU; by default the current one.
        rounds: how often each config is timed.
        progress: whether to draw a bar.

    Returns:
        What was found for each shape, each once, in order.

    Raises:
        TypeError, ValueError: an argument is wrong, or the device is no Hopper GPU.
        RuntimeError: a CUDA graph is being captured; or two configs gave different bits, and that product has
            no winner.
    """
    where = ahead.device_of(device)
    product = ahead.product_of(layout, groups, use_psum_layout, out_dtype, accumulate)
    checks.check_int("rounds", rounds, 1)
    sizes = [ahead.sizes_of(shape, with_m=True) for shape in shapes]
    products = list(dict.fromkeys(product._replace(m=m, n=n, k=k) for m, n, k in sizes))
    _refuse(where)

    # Everything compiles first, in several processes where that pays.
    tried = {each: near(choose.ranked(each, where)) for each in products}
    configs = list(dict.fromkeys(config for some in tried.values() for config in some))
    ahead.compile_all(configs, where, None, progress)

    # Launches that stand ready were made under earlier choices, so each winner renews the settings.
    found = []
    with ahead.bar(progress, len(products), "products") as advance:
        for each in products:
            result = tune(each, tried[each], where, rounds)
            tuned.keep(where, choose.key_of(each, where), tuned.Winner(result.config, result.us))
            prepared.change(tuned=tuned.number())
            found.append(result)
            advance()
    return found


def _refuse(where: torch.device) -> None:
    """Refuse a device that has no time of its own, and a stream that only records."""
    if where.type != "cuda":
        raise ValueError(f"device: expected a Hopper GPU, which autotune needs to time kernels, got {where}")
    with torch.cuda.device(where):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("autotune: a CUDA graph is being captured, and nothing can be timed meanwhile")


def near(ranked: Sequence[tuple[Config, float]]) -> list[Config]:
    """Return the configs whose prediction is near the best, and a few in any case."""
    best = ranked[0][1]
    return [config for place, (config, us) in enumerate(ranked) if place < LEAST or us <= NEAR * best]


def tune(product: Product, configs: Sequence[Config], where: torch.device, rounds: int) -> Tuned:
    """Time these configs, the best prediction first, and the neighbours of the fastest."""
    d, call = _call_of(product, where)
    held = 1.0 if product.accumulate else float("nan")
    timed = timed_alike(configs, d, held, call, where, rounds)
    fastest = min(timed, key=lambda config: timed[config])

    # The neighbours run beside the one that they are neighbours of, and beside the prediction: only times of
    # one run are compared.
    finalists = timed
    others = [config for config in _neighbours(fastest, product) if config not in timed]
    if others:
        again = list(dict.fromkeys([configs[0], fastest, *others]))
        finalists = timed_alike(again, d, held, call, where, rounds)

    # The prediction comes first, then the menu.
    winner = fastest_of(finalists)
    return Tuned(product, winner, finalists[winner], configs[0], finalists[configs[0]], timed | finalists)


def fastest_of(times: Mapping[Config, float]) -> Config:
    """Return the fastest config; of equals, up to the noise of the clock, the first."""
    least = min(times.values())
    return next(config for config, us in times.items() if us <= TIE * least)


def _neighbours(config: Config, product: Product) -> Iterator[Config]:
    """Return the same tile with other rasters, and with fewer stages."""
    changed = [
        replace(config, raster_m=not config.raster_m),
        replace(config, raster=max(1, config.raster // 2)),
        replace(config, raster=2 * config.raster),
        replace(config, stages=config.stages - 1),
    ]
    for each in changed:
        try:
            yield choose.suited(product, each)
        except ValueError:
            continue  # no such config


# --- one product


def timed_alike(
    configs: Sequence[Config],
    d: torch.Tensor,
    held: float,
    call: Callable[[Config], object],
    where: torch.device,
    rounds: int,
) -> dict[Config, float]:
    """Return the median microseconds of each config, once all have given the bits of the first.

    d holds `held` before each of the calls that are compared.
    """
    bits = d.view(torch.int16 if d.element_size() == 2 else torch.int32)
    expected = None
    for config in configs:
        d.fill_(held)
        call(config)
        if expected is None:
            expected = bits.clone()
        elif not torch.equal(bits, expected):
            one, other = (f"{stage_of(each).name}.{each}" for each in (configs[0], config))
            raise RuntimeError(f"two configs give different bits, {one} and {other}")

    calls = {config: functools.partial(call, config) for config in configs}
    seconds = gpu_seconds(calls, where, rounds)
    return {config: 1e6 * statistics.median(times) for config, times in seconds.items()}


def _call_of(product: Product, where: torch.device) -> tuple[torch.Tensor, Callable[[Config], object]]:
    """Return d, and what calls the product of random operands into it under a config."""
    workload = _workload(product)
    case = cases.make(workload, where)
    dtype = torch.float32 if product.out_fp32 else torch.bfloat16
    d = torch.empty((*case.a.shape[:-1], product.n), dtype=dtype, device=where)
    options: dict[str, Any] = {"c": d if product.accumulate else None}
    if product.layout in (Layout.CONTIGUOUS, Layout.PREFIX_SUMS):
        options["index"] = _index(product, workload.counts).to(where)
        options["use_psum_layout"] = product.layout == Layout.PREFIX_SUMS
    return d, lambda config: library_call(case, d, config=config, **options)


def _workload(product: Product) -> Workload:
    """Return the product with rows for each of its groups, uneven ones."""
    m, n, k, layout, groups, *_ = product
    if layout == Layout.DENSE:
        return workloads.dense(m, n, k)
    if layout == Layout.MASKED:
        return workloads.masked(groups, m, n, k)

    # Every group gets its share of the blocks that the alignment makes of the rows.
    counts = []
    for group, (start, end) in enumerate(_shares(product)):
        padding = ROWS_OF_PADDING * group % product.alignment
        counts.append(max(min(1, end - start), end - start - padding))
    return Workload(Product(m, n, k, Layout.CONTIGUOUS, groups), ceil_div(m, groups), tuple(counts))


def _shares(product: Product) -> list[tuple[int, int]]:
    """Return where the rows of each group of a contiguous layout begin, and where the next ones' do."""
    m, groups, alignment = product.m, product.groups, product.alignment
    blocks = ceil_div(m, alignment)
    edges = [min(m, alignment * (group * blocks // groups)) for group in range(groups + 1)]
    return list(pairwise(edges))


def _index(product: Product, counts: Sequence[int]) -> torch.Tensor:
    """Return the int32 that tells a contiguous layout's groups: each row's id, or where each group ends."""
    spans = [(start, start + count) for (start, _), count in zip(_shares(product), counts, strict=True)]
    if product.layout == Layout.PREFIX_SUMS:
        return torch.tensor([end for _, end in spans], dtype=torch.int32)
    ids = torch.full((product.m,), -1, dtype=torch.int32)
    for group, (start, end) in enumerate(spans):
        ids[start:end] = group
    return ids
