"""What the stage tests share: random problems, and a launch into a poisoned, guarded output."""

from __future__ import annotations

import random
from types import ModuleType

import torch

from minigemm import jit, quantize, runtime
from minigemm.kernels import stages
from minigemm.quantize import Quantized
from minigemm.types import Config

STAGES = {module.stage.name: module for module in stages()}
GUARD = 512  # elements before and behind d
POISON = -0x5A5B  # of int16: a NaN in BF16 that no kernel writes

CONFIGS = {
    "s01_naive": [{}, {"block_m": 16, "block_n": 16}, {"block_m": 1, "block_n": 32}, {"block_m": 32, "block_n": 32}, {"block_m": 3, "block_n": 5}],
    "s02_tiled": [
        {},
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 16, "block_n": 16, "block_k": 16, "thread_m": 2, "thread_n": 2},
        {"block_m": 32, "block_n": 64, "block_k": 48, "thread_m": 1, "thread_n": 8},
        {"block_m": 64, "block_n": 32, "block_k": 32, "thread_m": 8, "thread_n": 4, "padding": 0},
        {"block_m": 24, "block_n": 40, "block_k": 128, "thread_m": 3, "thread_n": 5},
    ],
    "s03_tma": [
        {},
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 64, "block_n": 32, "block_k": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 32, "block_k": 32, "thread_m": 2, "thread_n": 2},
        {"block_m": 32, "block_n": 64, "block_k": 128, "thread_m": 4, "thread_n": 4, "swizzle": False},
        {"block_m": 24, "block_n": 40, "block_k": 64, "thread_m": 3, "thread_n": 5},
    ],
}


def configs() -> list[tuple[str, Config]]:
    return [(name, module.Config(**fields)) for name, module in STAGES.items() for fields in CONFIGS.get(name, [{}])]


def operands(m: int, n: int, k: int, seed: int, device: str) -> tuple[Quantized, Quantized]:
    a = quantize.quantize(quantize.activations(m, k, seed=seed, device=device), "tensor")
    b = quantize.quantize(quantize.weights(n, k, seed=seed + 1, device=device), "tensor")
    return a, b


def guarded_gemm(module: ModuleType, a: Quantized, b: Quantized, config: Config | None = None) -> torch.Tensor:
    """`gemm` into an output that is poisoned before and guarded on both sides: every element must be written, nothing beside it."""
    stage = module.stage
    problem = stage.check(a, b, config)
    config = config or stage.default_config(problem)
    device = a.data.device
    size = problem.m * problem.n
    memory = torch.full((size + 2 * GUARD,), POISON, dtype=torch.int16, device=device)
    d = memory[GUARD : GUARD + size].view(torch.bfloat16).view(problem.m, problem.n)
    kernel = jit.build(stage.source, config, name=stage.name, kernel=stage.name)
    launch = stage.launch(a, b, d, problem, config)
    machine = runtime.of(device)
    machine.launch(machine.load(kernel, launch.shared, device), launch)
    outside = torch.cat([memory[:GUARD], memory[GUARD + size :]])
    assert (outside == POISON).all(), "the kernel wrote beside d"
    assert not (memory[GUARD : GUARD + size] == POISON).any(), "the kernel left elements of d unwritten"
    return d


def random_problem(source: random.Random, device: str) -> tuple[int, int, int]:
    """Tiny, ragged and tail shapes; larger ones where a GPU runs them."""
    largest = 600 if device == "cuda" else 90
    kind = source.random()
    if kind < 0.25:
        m, n = source.randint(1, 9), source.randint(1, 9)
    elif kind < 0.5:
        m, n = source.randint(1, largest), source.choice((1, 8, 64, 77, 80))
    else:
        m, n = source.randint(1, largest), source.randint(1, largest)
    return m, n, 16 * source.randint(1, 12 if device == "cpu" else 80)
