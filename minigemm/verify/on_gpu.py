"""`python -m minigemm test-gpu`: stage tests on a Hopper GPU, compute-sanitizer over them, and recordings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .. import quantize
from ..kernels import stage_named, stages
from ..machine import best_device, identity
from ..types import Layout, Product
from . import recordings, tensor_core
from .judge import relative_error, tolerance

__all__ = ["run"]

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
#: m and n of the recorded cases with groups that the sanitizer runs too.
GROUPED = ((33, 40), (65, 63), (130, 264))
RAGGED = ((64, 64, 128), (77, 50, 144), (1, 8, 16), (130, 129, 272))


def run(
    record: Path | None = None,
    sanitizer: bool = True,
    record_tensor_core: Path | None = None,
    tests: bool = True,
) -> int:
    """Run the tests, the sanitizer and the recordings. Return 0 when everything passed.

    A part that cannot run here says so, and is no pass.
    """
    # Nothing can pass without a GPU; a status of its own tells that from a failure.
    device = best_device()
    if device.type != "cuda":
        print(
            "minigemm: test-gpu needs a Hopper GPU (compute capability 9.0), and torch sees none; "
            "`make test` runs everything else",
            file=sys.stderr,
        )
        return 2

    # The tests come with the repository only.
    failures = 0
    folder = Path(__file__).parents[2] / "tests"
    if not tests:
        print("tests: not run (--tests no)")
    elif folder.is_dir():
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(folder)]
        failures += subprocess.run(command, check=False).returncode != 0
    else:
        print("tests: not run (the tests are in the repository, not in the wheel)")

    # A failed test does not keep the sanitizer and the recordings from running.
    if sanitizer:
        failures += run_sanitizer()
    if record is not None:
        count = recordings.record(record, device, identity(device))
        print(f"recorded {count} outputs in {record}")
    if record_tensor_core is not None:
        count = tensor_core.record(record_tensor_core, device, identity(device))
        print(f"recorded {count} elements of WGMMA chains in {record_tensor_core}")
    return 1 if failures else 0


def run_sanitizer() -> int:
    """Run compute-sanitizer's tools over each stage at ragged shapes, side by side.

    Return how many runs failed.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer: not run (not installed)")
        return 0

    def one(job: tuple[str, str]) -> bool:
        tool, name = job
        # driver calls that only ask for optional entry points fail by design: they are no memory errors
        options = ["--error-exitcode", "9", *(["--report-api-errors", "no"] if tool == "memcheck" else [])]
        command = [program, "--tool", tool, *options, sys.executable, "-m", "minigemm.verify.on_gpu", name]
        # in torch's pool the bytes beside a tensor belong to another one and are not out of bounds
        exact = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=exact)
        # racecheck counts hazards where the others count errors
        said = answer.stdout.replace("RACECHECK SUMMARY: 0 hazards", "ERROR SUMMARY: 0 errors")
        clean = answer.returncode == 0 and "ERROR SUMMARY: 0 errors" in said
        print(f"compute-sanitizer {tool} {name}: {'clean' if clean else 'FAILED'}", flush=True)
        if not clean:
            print(answer.stdout[-3000:], answer.stderr[-1000:])
        return clean

    jobs = [(tool, module.stage.name) for tool in TOOLS for module in stages()]
    with ThreadPoolExecutor(8) as pool:
        return sum(not clean for clean in pool.map(one, jobs))


def exercise(name: str) -> dict[str, Any]:
    """Run one stage at ragged shapes and check its results.

    The sanitizer runs this, in a process of its own.
    """
    device = best_device()
    worst = 0.0
    stage = stage_named(name).stage
    for sizes in RAGGED:
        product = Product(*sizes)
        a = quantize.quantize(quantize.activations(product.m, product.k), stage.granularities[0])
        b = quantize.quantize(quantize.weights(product.n, product.k), stage.granularities[1])
        # initcheck does not see what TMA writes (tests/emulator/kernels/tma_store.cu shows it in 20 lines): d
        # starts as NaN, from the host
        d = torch.full((product.m, product.n), float("nan"), dtype=torch.bfloat16).to(device)
        config = stage.default_config(product)
        launch = stage.launch(a.to(device), b.to(device), d, product, config)
        stage.run(launch, config, device)

        reference = quantize.reference(a, b)
        error = relative_error(d.cpu(), reference)
        if not error <= tolerance(stage, a, b, reference):
            raise SystemExit(f"{name}: relative error {error} at {product.m}x{product.n}x{product.k}")
        worst = max(worst, error)

    for case in recordings.cases():
        grouped = case.stage == name and case.product.layout != Layout.DENSE
        if grouped and case.product[:2] in GROUPED:
            recordings.output(case, device)
    return {"stage": name, "rel_err": worst}


if __name__ == "__main__":
    print(json.dumps(exercise(sys.argv[1])))
