"""How long a call keeps the host: microseconds until it returns, for known calls and for new ones."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import torch

from .. import api, quantize
from ..layout import to_m_major
from ..plan.ahead import precompile
from .programs import environment

__all__ = ["as_text", "host_time"]

CALLS = 10_000
BURST = 100  # calls between two waits: short of the launch queue's length, so that the GPU never holds the host back
SETS = 8
M, N, K = 64, 128, 256  # so small that the GPU is faster than the host
NEW_M = range(500, 700)
FRESH = ((64, 2112, 7168), (4096, 4096, 7168))  # a process's first product, and one that gets another tile
PATIENCE = 600  # seconds for a fresh process
PROCESSES = 3  # with an empty cache, and as many with a filled one: other work on the CPU changes its speed

#: Prints, as JSON, the seconds of the import and of the first call of each product. The GPU is awake before.
_FRESH_PROCESS = """
import json, sys, time
import torch
device = sys.argv[1]
torch.zeros(1, device=device).item()
start = time.perf_counter()
import minigemm
call = minigemm.fp8_gemm_nt
from minigemm import quantize
seconds = [time.perf_counter() - start]
for m, n, k in json.loads(sys.argv[2]):
    a = quantize.quantize(torch.randn(m, k, device=device), "1x128")
    b = quantize.quantize(torch.randn(n, k, device=device), "128x128")
    d = torch.empty(m, n, dtype=torch.bfloat16, device=device)
    torch.cuda.synchronize()
    start = time.perf_counter()
    call((a.data, a.scale), (b.data, b.scale), d)
    seconds.append(time.perf_counter() - start)
    torch.cuda.synchronize()
print(json.dumps(seconds))
"""


def host_time(device: torch.device, calls: int = CALLS, fresh: bool = True) -> dict[str, Any]:
    """Measure the host's time of `fp8_gemm_nt` on a Hopper GPU.

    Args:
        device: the GPU.
        calls: how many of each kind of repeated call; a multiple of 100.
        fresh: whether to start processes too: PROCESSES with an empty cache, and one after each with what it
            left.

    Returns:
        Microseconds of a call, medians over bursts of 100 calls: `same_us` (the same tensors), `rotating_us`
        (eight sets in turn). `new_m_us` is the mean of calls with a new m for a known n and k, everything
        compiled.

        Seconds, medians over processes: `import_s`; `first_call_s` and `new_shape_s`, a process's first call
        and its first call of another shape, the kernels compiled before and found on disk;
        `first_call_cold_s` and `new_shape_cold_s`, the same with empty caches, NVRTC's too. If a process
        fails, `error` says why instead.
    """
    sets = []
    for seed in range(SETS):
        a = quantize.quantize(quantize.activations(M, K, seed=seed, device=device), "1x128")
        b = quantize.quantize(quantize.weights(N, K, seed=seed + 1, device=device), "128x128")
        d = torch.empty(M, N, dtype=torch.bfloat16, device=device)
        sets.append(((a.data, a.scale), (b.data, b.scale), d))
    found: dict[str, Any] = {"m": M, "n": N, "k": K, "calls": calls}
    found["same_us"] = _repeated(sets[:1], calls, device)
    found["rotating_us"] = _repeated(sets, calls, device)
    found["new_m_us"] = _new_m(device)
    return found | (_fresh(device) if fresh else {})


def _repeated(sets: list[Any], calls: int, device: torch.device) -> float:
    """Return the microseconds of a call with these operands in turn, each called before.

    It is the median of the bursts, since other work on the host comes in between.
    """
    for a, b, d in sets:
        api.fp8_gemm_nt(a, b, d)
    seconds = []
    for _ in range(calls // BURST):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        for number in range(BURST):
            api.fp8_gemm_nt(*sets[number % len(sets)])
        seconds.append(time.perf_counter() - start)
    torch.cuda.synchronize(device)
    return median(seconds) / BURST * 1e6


def _new_m(device: torch.device) -> float:
    """Return the microseconds of a call with a new m, the mean over NEW_M."""
    precompile([(N, K)], device=device, progress=False)
    a = quantize.quantize(quantize.activations(max(NEW_M), K, device=device), "1x128")
    b = quantize.quantize(quantize.weights(N, K, device=device), "128x128")
    parts = [(a.data[:m], to_m_major(a.scale[:m])) for m in NEW_M]
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for part in parts:
        api.fp8_gemm_nt(part, b)
    seconds = time.perf_counter() - start
    torch.cuda.synchronize(device)
    return seconds / len(NEW_M) * 1e6


def _fresh(device: torch.device) -> dict[str, Any]:
    """Return the first calls' medians over fresh processes; each pair of processes has a cache of its own."""
    seconds: dict[str, list[float]] = {}
    for _ in range(PROCESSES):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            # NVRTC keeps a cache too.
            caches = {"MINIGEMM_CACHE_DIR": f"{folder}/minigemm", "CUDA_CACHE_PATH": f"{folder}/nvrtc"}
            for cold in ("_cold", ""):
                try:
                    imported, first, new = _in_a_process(device, caches)
                except (OSError, subprocess.SubprocessError, ValueError) as error:
                    said = (getattr(error, "stderr", None) or str(error)).strip().rpartition("\n")[2]
                    return {"error": f"a fresh process failed: {said[:300]}"}
                times = {f"first_call{cold}_s": first, f"new_shape{cold}_s": new, "import_s": imported}
                for name, value in times.items():
                    seconds.setdefault(name, []).append(value)
    medians = {name: median(values) for name, values in seconds.items()}
    return {"fresh_shapes": [list(shape) for shape in FRESH], "fresh_processes": PROCESSES, **medians}


def _in_a_process(device: torch.device, caches: dict[str, str]) -> list[float]:
    """Return what a fresh process prints: the seconds of its import and of its first call of each product."""
    command = [sys.executable, "-c", _FRESH_PROCESS, str(device), json.dumps(FRESH)]
    answer = subprocess.run(
        command, env=environment(**caches), capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return json.loads(answer.stdout.strip().rpartition("\n")[2])


def as_text(found: dict[str, Any]) -> str:
    """Return the times as a table for the terminal."""
    shown = [
        ("the same tensors", found.get("same_us"), "us"),
        (f"{SETS} sets of tensors in turn", found.get("rotating_us"), "us"),
        ("a new m, n and k known", found.get("new_m_us"), "us"),
        ("first call of a process, kernels on disk", found.get("first_call_s"), "s"),
        ("first call of another shape, on disk", found.get("new_shape_s"), "s"),
        ("first call of a process, empty cache", found.get("first_call_cold_s"), "s"),
        ("first call of another shape, empty cache", found.get("new_shape_cold_s"), "s"),
    ]
    calls = ""
    if "calls" in found:
        calls = f" ({found['calls']:,} calls of {found['m']} x {found['n']} x {found['k']})"
    lines = [f"host time a call, fp8_gemm_nt{calls}"]
    lines += [f"  {what:42s} {value:9.3f} {unit}" for what, value, unit in shown if value is not None]
    return "\n".join(lines + ([f"  {found['error']}"] if found.get("error") else []))
