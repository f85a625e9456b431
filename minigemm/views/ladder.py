"""The ladder: TFLOPS of every stage as a Hopper GPU gave them, from the recorded results."""

from __future__ import annotations

import json
from pathlib import Path

from ..hopper import of
from .counts import RESULTS
from .style import BLUE, GREY, ORANGE, PALE, Picture, drawn, figure

__all__ = ["ladder"]


@drawn
def ladder(file: Path | str = RESULTS / "h100_ladder.json") -> Picture:
    """A bar for each stage's own config and each problem, with torch's cuBLASLt as the measure; a `bench --ladder --json` result. ValueError if it is none."""
    data = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not all(key in data for key in ("machine", "stages", "date")):
        raise ValueError(
            f"file: expected a result of `python -m minigemm bench --ladder --json`, got {Path(file).name}"
        )
    runs = [run for run in data["stages"] if run["default"]]
    problems = list(dict.fromkeys((run["m"], run["n"], run["k"]) for run in runs))
    machine, chip = data["machine"], of(data["machine"]["gpu"])
    made, every = figure(10, 0.6 + 0.3 * len(runs) / len(problems), 1, len(problems), sharex=True)
    said = []
    for axes, problem in zip(every if len(problems) > 1 else [every], problems, strict=True):
        chosen = [run for run in runs if (run["m"], run["n"], run["k"]) == problem]
        names = [run["stage"].split(" ")[0] for run in chosen]
        values = [run["tflops"] for run in chosen]
        axes.barh(range(len(chosen)), [chip.fp8 / 1e12] * len(chosen), color=PALE)
        axes.barh(
            range(len(chosen)), values, color=[ORANGE if name.startswith("torch") else BLUE for name in names]
        )
        for y, value in enumerate(values):
            axes.text(
                value + 15, y, f"{value:,.0f}" if value >= 100 else f"{value:,.1f}", va="center", fontsize=8
            )
        axes.set(
            yticks=range(len(chosen)),
            ylim=(len(chosen) - 0.4, -0.6),
            xlim=(0, chip.fp8 / 1e12 * 1.02),
            title=" x ".join(map(str, problem)),
        )
        axes.set_yticklabels(names, fontsize=8)
        axes.set_xlabel("TFLOPS", color=GREY)
        said.append(
            f"{' x '.join(map(str, problem))}: "
            + ", ".join(f"{name} {value:,.1f}" for name, value in zip(names, values, strict=True))
        )
    made.suptitle(f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {data['date']}; pale: the datasheet's {chip.fp8 / 1e12:,.0f} TFLOPS",
                  fontsize=8, color=GREY, x=0.01, ha="left")  # fmt: skip
    return Picture(made, f"TFLOPS on {machine['gpu']}, {data['date']}. " + "; ".join(said))
