"""The ladder: TFLOPS of every stage as a Hopper GPU gave them, from the recorded results."""

from __future__ import annotations

from pathlib import Path

from ..hopper import chip_of
from ..verify import results
from .shapes import label
from .style import BLUE, GREY, ORANGE, PALE, Picture, drawn, figure

__all__ = ["ladder"]


@drawn
def ladder(file: Path | str = results.FOLDER / "h100_ladder.json") -> Picture:
    """Draw a bar for each stage's own config and each product, with torch's cuBLASLt as the measure.

    The file is a result of `bench --ladder --json`; raises ValueError if it is none.
    """
    data = results.load(Path(file).absolute())
    if not isinstance(data, dict) or not all(key in data for key in ("machine", "stages", "date")):
        raise ValueError(
            f"file: expected a result of `python -m minigemm bench --ladder --json`, got {Path(file).name}"
        )
    runs = [run for run in data["stages"] if run["default"]]
    products = list(dict.fromkeys((run["m"], run["n"], run["k"]) for run in runs))
    machine, chip = data["machine"], chip_of(data["machine"]["gpu"])
    roof = chip.fp8 / 1e12  # TFLOPS

    # A panel for each product, where the datasheet's rate stands behind every bar.
    height = 0.6 + 0.3 * len(runs) / len(products)
    made, every = figure(10, height, 1, len(products), sharex=True, squeeze=False)
    said = []
    for axes, product in zip(every[0], products, strict=True):
        chosen = [run for run in runs if (run["m"], run["n"], run["k"]) == product]
        names = [run["stage"].split(" ")[0] for run in chosen]
        values = [run["tflops"] for run in chosen]
        colours = [ORANGE if name.startswith("torch") else BLUE for name in names]
        axes.barh(range(len(chosen)), [roof] * len(chosen), color=PALE)
        axes.barh(range(len(chosen)), values, color=colours)
        for y, value in enumerate(values):
            label(axes, value + 15, y, f"{value:,.0f}" if value >= 100 else f"{value:,.1f}", ha="left")
        title = " x ".join(map(str, product))
        axes.set_yticks(range(len(chosen)), names, fontsize=8)
        axes.set(ylim=(len(chosen) - 0.4, -0.6), xlim=(0, 1.02 * roof), title=title)
        axes.set_xlabel("TFLOPS", color=GREY)
        said.append(
            f"{title}: "
            + ", ".join(f"{name} {value:,.1f}" for name, value in zip(names, values, strict=True))
        )
    source = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, {data['date']}"
    note = f"{source}; pale: the datasheet's {roof:,.0f} TFLOPS"
    made.suptitle(note, fontsize=8, color=GREY, x=0.01, ha="left")
    return Picture(made, f"TFLOPS on {machine['gpu']}, {data['date']}. " + "; ".join(said))
