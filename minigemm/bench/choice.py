"""How good the choice of a config is: the chosen one and autotune's, beside every config that could win."""

from __future__ import annotations

import datetime
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..kernels.library import Config, stage_of
from ..machine import hopper_gpu, identity
from ..plan import ahead, choose
from ..types import Product
from . import autotune, cases, tune, workloads
from .peers.minigemm import call
from .timing import FLUSHED
from .workloads import Workload

__all__ = ["choice_as_text", "choice_quality", "shapes"]

DENSE, MASKED, CONTIGUOUS = 30, 5, 5  # products of each layout
ROUNDS = 9
WITHIN = 3.0  # times the best prediction: slower configs are not timed


def shapes() -> list[Workload]:
    """Return products whose (n, k) `tune` does not time, the same on every machine."""
    source = random.Random(11)

    def layer() -> tuple[int, int]:
        while (found := (64 * source.randint(8, 256), 128 * source.randint(4, 96))) in tune.LAYERS:
            pass
        return found

    def rows(most: int) -> int:
        return round(2 ** source.uniform(0, most))

    dense = [workloads.dense(rows(13), *layer()) for _ in range(DENSE)]
    masked = [workloads.masked(source.choice((4, 16, 48)), rows(9), *layer()) for _ in range(MASKED)]
    contiguous = [
        workloads.contiguous(source.choice((4, 16, 48)), 16 * rows(6), *layer()) for _ in range(CONTIGUOUS)
    ]
    return [*dense, *masked, *contiguous]


def choice_quality(rounds: int = ROUNDS) -> dict[str, Any]:
    """Time the chosen config, autotune's, and all others, of each of `shapes`.

    Raises:
        ValueError: there is no Hopper GPU.
        RuntimeError: two configs gave different bits.
    """
    device = hopper_gpu("bench --choice")
    works = shapes()
    plans = [_able(work.product, device) for work in works]
    ahead.compile_all(list(dict.fromkeys(config for plan in plans for config in plan)), device, None, False)
    rows = [_row(work, plan, device, rounds) for work, plan in zip(works, plans, strict=True)]
    return {
        "what": "the chosen config beside all others, python -m minigemm bench --choice",
        "date": datetime.date.today().isoformat(),
        "machine": identity(device),
        "protocol": "40 products whose (n, k) tune does not time; GPU time of the kernel by torch.profiler, median of "
        f"{rounds} rounds in which each config is called once; {FLUSHED}; every tile of both kernels whose prediction "
        f"is within {WITHIN:g} times the best; ratio: of a config's time to the least",
        "summary": {
            name: {
                "mean": statistics.fmean(row[name]["ratio"] for row in rows),
                "worst": max(row[name]["ratio"] for row in rows),
            }
            for name in ("chosen", "autotuned")
        },
        "rows": rows,
    }


def _able(product: Product, device: Any) -> list[Config]:
    """Return the chosen config, what autotune tries first, and all others that might be the fastest."""
    machine = choose.machine_of(device)
    found = [choose.config_for(product, device)]
    found += autotune.near(choose.ranked(product, device))
    others = [
        replace(config, raster_m=raster_m, ctas=found[0].ctas)
        for config in choose.candidates()
        for raster_m in (False, True)
    ]
    found += tune.likely(others, product, machine, WITHIN)
    return list(dict.fromkeys(found))


def _row(work: Workload, configs: Sequence[Config], device: Any, rounds: int) -> dict[str, Any]:
    case = cases.make(work, device)
    d = case.empty()
    times = autotune.timed_alike(
        configs, d, float("nan"), lambda config: call(case, d, config=config), device, rounds
    )
    # autotune times those with the best predictions, and takes a tie's best prediction.
    tried = autotune.near(choose.ranked(work.product, device))
    won = autotune.fastest_of({config: times[config] for config in tried})
    best = min(times, key=times.__getitem__)

    def told(config: Config) -> dict[str, Any]:
        tile = f"{stage_of(config).name} {config.block_m}x{config.block_n}"
        return {"tile": tile, "us": times[config], "ratio": times[config] / times[best]}

    return {
        **work.sizes(),
        "configs": len(configs),
        "best": told(best),
        "chosen": told(configs[0]),
        "autotuned": told(won),
    }


def choice_as_text(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{results['what']}; {results['machine']['gpu']}, {results['date']}"]
    for row in results["rows"]:
        groups = "" if row["layout"] == "dense" else f"{row['groups']}x"
        shape = f"{row['layout']} {groups}{row['m']}x{row['n']}x{row['k']}"
        told = [
            f"{name} {row[name]['us']:.1f} us {row[name]['tile']}" for name in ("best", "chosen", "autotuned")
        ]
        lines.append(
            f"{shape:34} {row['chosen']['ratio']:.3f} {row['autotuned']['ratio']:.3f}  {'; '.join(told)}"
        )
    for name, each in results["summary"].items():
        lines.append(f"{name}: {each['mean']:.3f} of the least time on average, {each['worst']:.3f} at worst")
    return "\n".join(lines)
