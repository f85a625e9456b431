"""Inputs that are the same on every machine, random problems, launches into a poisoned, guarded output."""

from __future__ import annotations

import itertools
import random
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import torch

from minigemm import quantize
from minigemm.kernels import stages
from minigemm.kernels.grouped import GroupedConfig, launch_contiguous, launch_masked
from minigemm.layout import round_up
from minigemm.quantize import Quantized
from minigemm.types import Config, Layout, Problem
from minigemm.verify.recordings import splitmix64

STAGES = {module.stage.name: module for module in stages()}
GUARD = 512  # elements before and behind d
POISON = -0x5A5B  # of int16: a NaN in BF16 that no kernel writes

CONFIGS = {
    "s01_naive": [
        {},
        {"block_m": 16, "block_n": 16},
        {"block_m": 1, "block_n": 32},
        {"block_m": 32, "block_n": 32},
        {"block_m": 3, "block_n": 5},
    ],
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
    "s04_wgmma": [
        {},
        {"block_m": 64, "block_n": 8},
        {"block_m": 64, "block_n": 40},
        {"block_m": 128, "block_n": 96},
        {"block_m": 192, "block_n": 16},
        {"block_m": 128, "block_n": 256},
    ],
    "s05_pipelined": [
        {},
        {"block_m": 64, "block_n": 24, "stages": 2},
        {"block_m": 64, "block_n": 64, "stages": 4},
        {"block_m": 128, "block_n": 48, "stages": 3},
        {"block_m": 256, "block_n": 32, "stages": 5},
    ],
    "s06_warp_specialized": [
        {},
        {"block_m": 64, "block_n": 16, "stages": 2, "consumers": 1},
        {"block_m": 128, "block_n": 48, "stages": 3, "consumers": 1},
        {"block_m": 128, "block_n": 80, "stages": 4, "consumers": 2},
        {"block_m": 256, "block_n": 32, "stages": 3, "consumers": 2},
        {"block_m": 192, "block_n": 64, "stages": 2, "consumers": 3},
        {"block_m": 64, "block_n": 64, "stages": 3, "consumers": 1, "out_fp32": True},
    ],
    "s07_promoted": [
        {},
        {"block_m": 64, "block_n": 16, "stages": 2, "consumers": 1},
        {"block_m": 64, "block_n": 112, "stages": 3, "consumers": 1},
        {"block_m": 128, "block_n": 96, "stages": 3, "consumers": 1},
        {"block_m": 128, "block_n": 160, "stages": 4, "consumers": 2},
        {"block_m": 128, "block_n": 192, "stages": 2, "consumers": 2},
        {"block_m": 256, "block_n": 48, "stages": 2, "consumers": 2},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
        {"block_m": 64, "block_n": 80, "stages": 3, "consumers": 1, "out_fp32": True},
    ],
    "s08_persistent": [
        {"ctas": 1},
        {"block_m": 128, "block_n": 128, "stages": 5},
        {"block_m": 64, "block_n": 16, "stages": 2, "consumers": 1, "ctas": 3, "raster": 2},
        {"block_m": 64, "block_n": 32, "stages": 5, "consumers": 1, "ctas": 2, "raster": 1, "raster_m": True},
        {
            "block_m": 128,
            "block_n": 48,
            "stages": 3,
            "consumers": 2,
            "ctas": 1,
            "raster": 8,
            "raster_m": True,
        },
        {"block_m": 128, "block_n": 160, "stages": 5, "consumers": 2, "ctas": 1},
        {"block_m": 128, "block_n": 192, "stages": 4, "consumers": 2},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
        {"block_m": 192, "block_n": 32, "stages": 2, "consumers": 3, "ctas": 2},
        {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "out_fp32": True, "ctas": 2},
    ],
    "s09_multicast": [
        {"ctas": 2},
        {"ctas": 2, "cluster_m": 1, "cluster_n": 2},
        {"block_m": 128, "block_n": 128, "stages": 5},
        {"block_m": 128, "block_n": 128, "stages": 5, "cluster_m": 1, "cluster_n": 2},
        {"block_m": 64, "block_n": 16, "stages": 2, "consumers": 1, "ctas": 4, "raster": 2},
        {
            "block_m": 64,
            "block_n": 32,
            "stages": 5,
            "consumers": 1,
            "ctas": 2,
            "raster": 1,
            "raster_m": True,
            "cluster_m": 1,
            "cluster_n": 2,
        },
        {
            "block_m": 128,
            "block_n": 48,
            "stages": 3,
            "consumers": 2,
            "ctas": 3,
            "raster_m": True,
            "cluster_m": 1,
        },
        {"block_m": 128, "block_n": 160, "stages": 5, "consumers": 2, "ctas": 2},
        {"block_m": 128, "block_n": 192, "stages": 4, "consumers": 2},
        {"block_m": 128, "block_n": 192, "stages": 4, "consumers": 2, "cluster_m": 1, "cluster_n": 2},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
        {
            "block_m": 192,
            "block_n": 32,
            "stages": 2,
            "consumers": 3,
            "ctas": 2,
            "cluster_m": 1,
            "cluster_n": 2,
        },
        {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "out_fp32": True, "ctas": 2},
    ],
    "s10_grouped": [
        {"ctas": 1},
        {"block_m": 128, "block_n": 128, "stages": 5},
        {"block_m": 64, "block_n": 16, "stages": 2, "consumers": 1, "ctas": 3, "raster": 2},
        {"block_m": 64, "block_n": 128, "stages": 6, "consumers": 1},
        {"block_m": 64, "block_n": 64, "stages": 8, "consumers": 1},
        {
            "block_m": 128,
            "block_n": 48,
            "stages": 3,
            "consumers": 1,
            "ctas": 1,
            "raster": 8,
            "raster_m": True,
        },
        {"block_m": 128, "block_n": 160, "stages": 5, "consumers": 2, "ctas": 1},
        {"block_m": 128, "block_n": 192, "stages": 4, "consumers": 2},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
        {"out_fp32": True},
        {"block_m": 192, "block_n": 32, "stages": 2, "consumers": 3, "ctas": 2, "out_fp32": True},
    ],
    # two partial sums, then one
    "s11_overlapped": [
        {"block_m": 128, "block_n": 128, "stages": 5},
        {"block_m": 64, "block_n": 16, "stages": 2, "consumers": 1, "ctas": 3, "raster": 2},
        {"block_m": 64, "block_n": 128, "stages": 6, "consumers": 1},
        {"block_m": 192, "block_n": 32, "stages": 2, "consumers": 3, "ctas": 2, "out_fp32": True},
        {"block_m": 64, "block_n": 112, "stages": 3, "consumers": 1, "ctas": 1, "raster_m": True},
        {"ctas": 1},
        {"block_m": 128, "block_n": 48, "stages": 3, "consumers": 1, "ctas": 1, "raster": 8},
        {"block_m": 128, "block_n": 160, "stages": 5, "consumers": 2, "ctas": 1},
        {"block_m": 128, "block_n": 192, "stages": 4, "consumers": 2},
        {"block_m": 192, "block_n": 128, "stages": 4, "consumers": 3},
        {"out_fp32": True},
    ],
    # blocks of 1 take any k, those of 2 and 4 whole k-blocks
    "s12_swapped": [
        {"ctas": 1},
        {"block_m": 8, "stages": 3, "ctas": 3, "raster": 2},
        {"block_m": 32, "stages": 8, "blocks": 1, "ctas": 2, "raster": 1, "raster_m": True},
        {"block_m": 16, "stages": 4, "blocks": 2, "out_fp32": True},
        {"block_m": 64, "stages": 2, "ctas": 1},
        {"block_m": 64, "block_n": 128, "consumers": 2, "stages": 3, "blocks": 1, "ctas": 1},
        {"block_m": 24, "block_n": 128, "consumers": 2, "stages": 2, "ctas": 2, "raster_m": True},
        {"block_m": 48, "block_n": 128, "consumers": 2, "stages": 3, "blocks": 2},
        {"block_m": 64, "stages": 5, "blocks": 1, "out_fp32": True},
    ],
}


#: Field values of the tensor-core stages, all combinations of which `many_configs` tries.
MANY = {
    "s04_wgmma": {"block_m": (64, 128, 192, 256), "block_n": (8, 56, 128, 200, 256)},
    "s05_pipelined": {"block_m": (64, 128, 256), "block_n": (16, 72, 128, 256), "stages": (2, 3, 5)},
    "s06_warp_specialized": {
        "block_m": (64, 128, 192, 256),
        "block_n": (16, 96, 128, 256),
        "stages": (2, 4),
        "consumers": (1, 2, 3),
    },
    "s07_promoted": {
        "block_m": (64, 128, 192, 256),
        "block_n": (16, 112, 128, 160, 192),
        "stages": (2, 4),
        "consumers": (1, 2, 3),
    },
    "s08_persistent": {
        "block_m": (64, 128, 192, 256),
        "block_n": (16, 112, 128, 160, 192),
        "stages": (2, 4),
        "consumers": (1, 2, 3),
        "ctas": (0, 5),
        "raster_m": (0, 1),
    },
    "s09_multicast": {
        "block_m": (64, 128, 192, 256),
        "block_n": (16, 112, 160),
        "stages": (2, 4),
        "consumers": (1, 2, 3),
        "ctas": (0, 4),
        "cluster_m": (1, 2),
        "cluster_n": (1, 2),
    },
    "s10_grouped": {
        "block_m": (64, 128, 192, 256),
        "block_n": (16, 80, 128, 160),
        "stages": (2, 4),
        "consumers": (1, 2, 3),
        "ctas": (0, 5),
        "raster_m": (0, 1),
    },
    "s11_overlapped": {
        "block_m": (64, 128, 192, 256),
        "block_n": (16, 80, 128, 160),
        "stages": (2, 4),
        "consumers": (1, 2, 3),
        "ctas": (0, 5),
        "raster_m": (0, 1),
    },
    "s12_swapped": {
        "block_m": (8, 16, 24, 32, 48, 64),
        "block_n": (64, 128),
        "stages": (2, 4),
        "consumers": (1, 2),
        "blocks": (1, 2, 4),
        "ctas": (0, 5),
        "raster_m": (0, 1),
    },
}


def many_configs(name: str) -> list[Config]:
    """The legal ones; together they are more than 60."""
    module, values = STAGES[name], MANY[name]
    every = (
        module.Config(**dict(zip(values, chosen, strict=True)))
        for chosen in itertools.product(*values.values())
    )
    return [config for config in every if module.is_legal(config, Problem(4096, 4096, 4096))]


def configs() -> list[tuple[str, Config]]:
    return [
        (name, module.Config(**fields))
        for name, module in STAGES.items()
        for fields in CONFIGS.get(name, [{}])
    ]


def fitting(k: int, *configs: Config | None) -> int:
    """k, or the next multiple of 128 where one of the configs has slots of several k-blocks."""
    whole = any(getattr(config, "blocks", 1) > 1 for config in configs)
    return round_up(k, 128) if whole else k


def matrix(rows: int, k: int, seed: int, kind: str = "activations") -> torch.Tensor:
    """Draw a float32 matrix (rows, k) from integers: every machine and every torch draws the same bits.

    torch.randn does not: its last bits depend on the processor. A test that compares bits, counts or errors
    takes its inputs from here. Every element is an integer below 2**24 times a power of two, which float32
    holds exactly.

    Args:
        kind: "activations" has heavy tails, and about one column in 100 is thirty times larger. "weights" is
            nearly normal. "positive" is like "weights", without the signs.
    """
    bits = splitmix64(seed, rows * k).reshape(rows, k)
    # the sum of four uniform numbers of 12 bits is nearly normal
    x = sum((bits >> np.uint64(12 * i) & np.uint64(0xFFF)).astype(np.int64) for i in range(4)) - 2 * 0xFFF
    if kind == "activations":
        rare = bits >> np.uint64(48) & np.uint64(0xFF)
        x = x * np.where(rare == 0, 16, np.where(rare < 16, 4, 1))
        loud = splitmix64(seed + 1, k) % np.uint64(100) == 0
        loud[seed % max(k, 1) :][:1] = True
        x = x * np.where(loud, 30, 1)
    elif kind == "positive":
        x = abs(x)
    return torch.from_numpy(x.astype(np.float32)) / 4096


def operands(
    m: int, n: int, k: int, seed: int, device: str, module: ModuleType | None = None
) -> tuple[Quantized, Quantized]:
    """Draw a and b from integers and quantize them as the stage wants; without a stage, with one scale."""
    of_a, of_b = module.stage.granularities if module else ("tensor", "tensor")
    a = quantize.quantize(matrix(m, k, 2 * seed).to(device), of_a)
    b = quantize.quantize(matrix(n, k, 2 * seed + 1, "weights").to(device), of_b)
    return a, b


def guarded_gemm(
    module: ModuleType, a: Quantized, b: Quantized, config: Config | None = None
) -> torch.Tensor:
    """Run `gemm` into a poisoned, guarded output: all of it is written, nothing beside it."""
    stage = module.stage
    dtype = torch.float32 if getattr(config, "out_fp32", False) else torch.bfloat16
    problem = stage.check(a, b, config, None, dtype)
    config = config or stage.default_config(problem)
    words = problem.m * problem.n * dtype.itemsize // 2
    memory = torch.full((words + 2 * GUARD,), POISON, dtype=torch.int16, device=a.data.device)
    d = memory[GUARD : GUARD + words].view(dtype).view(problem.m, problem.n)
    stage.run(stage.launch(a, b, d, problem, config), config, d.device)
    outside = torch.cat([memory[:GUARD], memory[GUARD + words :]])
    assert (outside == POISON).all(), "the kernel wrote beside d"
    poisoned = (
        d.view(torch.int16) == POISON
        if dtype == torch.bfloat16
        else d.view(torch.int32) == (POISON << 16 | POISON & 0xFFFF)
    )
    assert not poisoned.any(), "the kernel left elements of d unwritten"
    return d


def grouped(
    layout: Layout, tensors: tuple[torch.Tensor, ...], config: GroupedConfig, **options: object
) -> None:
    """Run the stage of this config over groups of any layout, into a d that exists; nothing is checked.

    tensors: a, sfa, b, sfb, d, and the numbers. options: those of `launch_contiguous`. What d is and the
    layout, the config gets from here.
    """
    stage = sys.modules[type(config).__module__].stage
    config = replace(config, layout=int(layout), out_fp32=tensors[4].dtype == torch.float32)
    if layout == Layout.MASKED:
        launch = launch_masked(*tensors, config)
    else:
        launch = launch_contiguous(*tensors, config, **options)
    stage.run(launch, config, tensors[4].device)


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
