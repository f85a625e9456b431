"""What limits each stage, by Nsight Compute: `python -m minigemm.limits` on a Hopper GPU with ncu prints one JSON object.

ncu runs this module again with a stage's name, and counts that stage's kernel: time, clock, cycles, bytes of L2 and of device memory. From them
follows how busy the tensor cores were: 4096 FP8 products a cycle and SM are their most.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import shutil
import subprocess
import sys
from typing import Any

from . import quantize, tour
from .kernels import stage_named, stages
from .types import Problem

__all__ = ["measure"]

PROBLEM = Problem(4096, 4096, 4096)
PRODUCTS = 4096  # of FP8 a cycle and SM
METRICS = {
    "time_us": "gpu__time_duration.sum",
    "sm_cycles_elapsed": "sm__cycles_elapsed.max",
    "sm_cycles_active": "sm__cycles_active.avg",
    "l2_bytes": "lts__t_bytes.sum",
    "dram_bytes": "dram__bytes.sum",
    "issue_active_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
}
SCALE = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def measure() -> dict[str, Any]:
    """ncu's figures of every stage at 4096 x 4096 x 4096. ValueError where there is no ncu."""
    ncu = shutil.which("ncu")
    if ncu is None:
        raise ValueError("ncu (Nsight Compute) is not installed")
    machine = tour.machine(tour.best_device())
    found = []
    for module in stages():
        name = module.stage.name
        command = [ncu, "--csv", "--clock-control", "none", "--kernel-name", name, "--launch-skip", "2", "--launch-count", "1",
                   "--metrics", ",".join(METRICS.values()), sys.executable, "-m", "minigemm.limits", name]  # fmt: skip
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = list(csv.DictReader(io.StringIO("\n".join(line for line in answer.stdout.splitlines() if line.startswith('"')))))
        if not rows:
            raise ValueError(f"ncu gave nothing for {name}: {answer.stdout[-500:]} {answer.stderr[-500:]}")
        by_metric = {row["Metric Name"]: float(row["Metric Value"].replace(",", "")) * SCALE.get(row["Metric Unit"], 1.0) for row in rows}
        figures = {key: by_metric[metric] for key, metric in METRICS.items()}
        least = PROBLEM.m * PROBLEM.n * PROBLEM.k / PRODUCTS / machine["sms"]
        found.append({
            "stage": name, "config": module.stage.default_config(PROBLEM).constants(), **figures,
            "clock_ghz": figures["sm_cycles_elapsed"] / figures["time_us"] / 1e3, "tensor_busy": least / figures["sm_cycles_elapsed"],
        })  # fmt: skip
    return {
        "what": "Nsight Compute on each stage at 4096 x 4096 x 4096, python -m minigemm.limits",
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "protocol": "ncu --clock-control none, the third launch; tensor_busy: the fewest SM cycles that the tensor cores need, over those elapsed "
        "(the first three stages do not use them)",
        "figures": found,
    }


def _run(name: str) -> None:
    stage, device = stage_named(name).stage, tour.best_device()
    a = quantize.quantize(quantize.activations(PROBLEM.m, PROBLEM.k, device=device), stage.granularities[0])
    b = quantize.quantize(quantize.weights(PROBLEM.n, PROBLEM.k, device=device), stage.granularities[1])
    for _ in range(3):
        stage.gemm(a, b)


if __name__ == "__main__":
    _run(sys.argv[1]) if len(sys.argv) > 1 else print(json.dumps(measure(), indent=1))
