"""Outputs of the stages as a Hopper GPU gave them: made by `python -m minigemm test-gpu --record FILE`, checked on every CPU.

Inputs come from an integer generator (splitmix64), the same on every machine, so that a recording holds output bits alone.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..kernels import stage_named, stages
from ..layout import ceil_div, to_m_major
from ..quantize import BLOCK, Quantized

__all__ = ["REGIMES", "Case", "cases", "inputs", "load", "record", "save", "splitmix64"]

REGIMES = ("normal", "wide", "cancelling", "subnormal", "nan")
SHAPES = (
    (1, 1, 16), (1, 77, 48), (77, 1, 16), (8, 8, 32), (16, 24, 64), (33, 40, 80), (64, 64, 128), (65, 63, 144), (17, 72, 256), (48, 31, 272), (96, 16, 512),
    (40, 56, 1040),
)  # fmt: skip
LAYOUTS = ("contiguous", "prefix sums", "masked")  # of s10_grouped, besides the dense one
GROUPS, ALIGNMENT = 3, 8
LONG_SHAPES = (
    (130, 264, 528),
    (16, 24, 4224),
)  # of the tensor-core stages besides: tiles in both directions, and more than 32 steps of 128


@dataclass(frozen=True)
class Case:
    """One product: the stage, the problem, the config's fields, the kind of numbers, and how groups lie (m rows in all; of each group, if masked)."""

    stage: str
    m: int
    n: int
    k: int
    config: tuple[tuple[str, int], ...]
    regime: str
    layout: str = "dense"

    @property
    def name(self) -> str:
        """The key under which the output bits are kept."""
        fields = ",".join(f"{name}={value}" for name, value in self.config)
        return f"{self.stage} {self.m}x{self.n}x{self.k} {fields} {self.regime}" + f" {self.layout}" * (
            self.layout != "dense"
        )

    @property
    def seed(self) -> int:
        """From the problem alone: every stage and config gets the same numbers."""
        return int.from_bytes(
            hashlib.sha256(f"{self.m}x{self.n}x{self.k} {self.regime}".encode()).digest()[:6], "little"
        )


CONFIGS: dict[str, tuple[dict[str, int], ...]] = {
    "s01_naive": ({}, {"block_m": 16, "block_n": 16}),
    "s02_tiled": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 32, "thread_m": 2, "thread_n": 4},
    ),
    "s03_tma": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 32, "block_k": 32, "thread_m": 2, "thread_n": 2},
    ),
    "s04_wgmma": (
        {"block_m": 64, "block_n": 64},
        {"block_m": 128, "block_n": 24},
        {"block_m": 64, "block_n": 200},
    ),
    "s05_pipelined": (
        {"block_m": 64, "block_n": 64, "stages": 2},
        {"block_m": 128, "block_n": 40, "stages": 4},
        {"block_m": 64, "block_n": 128, "stages": 3},
    ),
    "s06_warp_specialized": (
        {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1},
        {"block_m": 128, "block_n": 64, "stages": 4, "consumers": 2},
        {"block_m": 256, "block_n": 48, "stages": 3, "consumers": 2},
        {"block_m": 192, "block_n": 80, "stages": 2, "consumers": 3},
        {"block_m": 128, "block_n": 64, "stages": 3, "consumers": 1, "out_fp32": 1},
    ),
    "s07_promoted": (
        {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1},
        {"block_m": 128, "block_n": 112, "stages": 4, "consumers": 2},
        {"block_m": 256, "block_n": 48, "stages": 3, "consumers": 2},
        {"block_m": 128, "block_n": 160, "stages": 3, "consumers": 2},
        {"block_m": 192, "block_n": 96, "stages": 2, "consumers": 3},
        {"block_m": 64, "block_n": 192, "stages": 3, "consumers": 1, "out_fp32": 1},
    ),
    "s08_persistent": (
        {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1, "ctas": 1},
        {"block_m": 128, "block_n": 112, "stages": 4, "consumers": 2, "ctas": 3, "raster": 2},
        {"block_m": 256, "block_n": 48, "stages": 3, "consumers": 2, "raster_m": 1},
        {"block_m": 64, "block_n": 80, "stages": 3, "consumers": 1, "out_fp32": 1, "ctas": 2},
    ),
    "s09_multicast": (
        {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1, "ctas": 2},
        {"block_m": 128, "block_n": 112, "stages": 4, "consumers": 2, "cluster_m": 1, "cluster_n": 2},
        {"block_m": 256, "block_n": 48, "stages": 3, "consumers": 2, "ctas": 4, "out_fp32": 1},
    ),
    "s10_grouped": (
        {"block_m": 64, "block_n": 32, "stages": 2, "consumers": 1, "ctas": 1},
        {"block_m": 128, "block_n": 80, "stages": 4, "consumers": 2, "splits": 2, "ctas": 3},
        {"block_m": 64, "block_n": 48, "stages": 4, "consumers": 1, "splits": 4, "out_fp32": 1},
        {"block_m": 192, "block_n": 96, "stages": 2, "consumers": 3},
    ),
}


def cases() -> Iterator[Case]:
    """Every case: all shapes with all configs of each stage, the regimes taking turns. A stage that has no configs above is not recorded yet."""
    for module in stages():
        name = module.stage.name
        for c, config in enumerate(CONFIGS.get(name, ())):
            for s, (m, n, k) in enumerate(SHAPES + (LONG_SHAPES if name >= "s04" else ())):
                yield Case(name, m, n, k, tuple(sorted(config.items())), REGIMES[(s + c) % len(REGIMES)])
                if (
                    name == "s10_grouped"
                ):  # each config with one layout of groups too, and each shape with all of them
                    yield Case(
                        name,
                        m,
                        n,
                        k,
                        tuple(sorted(config.items())),
                        REGIMES[(s + c) % len(REGIMES)],
                        LAYOUTS[(s + c) % len(LAYOUTS)],
                    )


def splitmix64(seed: int, count: int) -> np.ndarray:
    """`count` uint64. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def inputs(case: Case, group: int = 0) -> tuple[Quantized, Quantized]:
    """a and b of a case, or of one of its groups, as e4m3 bit patterns with their scales, on the CPU."""
    of_a, of_b = stage_named(case.stage).stage.granularities
    seed = case.seed + 4 * group
    return (
        Quantized(_bytes(case, seed, case.m), _scales(seed + 1, case.m, case.k, of_a), of_a),
        Quantized(_bytes(case, seed + 2, case.n), _scales(seed + 3, case.n, case.k, of_b), of_b),
    )


def _bytes(case: Case, seed: int, rows: int) -> torch.Tensor:
    bits = splitmix64(seed, rows * case.k)
    sign = (bits >> np.uint64(8) & np.uint64(1)).astype(np.uint8) << 7
    low: np.ndarray = (bits & np.uint64(0x7F)).astype(np.uint8)
    if case.regime == "normal":  # exponents near 1
        low = (low & 0x1F) + 0x28
    elif case.regime == "subnormal":
        low = low & 0x0F
    elif case.regime == "cancelling":  # large values of both signs
        low = low | 0x60
    low = np.where(low == 0x7F, 0x7E, low).astype(np.uint8)
    if case.regime == "nan":
        low = np.where(bits >> np.uint64(40) & np.uint64(0x3FF) == 0, 0x7F, low).astype(np.uint8)
    return torch.from_numpy((sign | low).reshape(rows, case.k)).view(torch.float8_e4m3fn)


def _scales(seed: int, rows: int, k: int, granularity: str) -> torch.Tensor:
    """Numbers from 1/64 to 1/32, one for each block of the granularity."""
    shape = {
        "tensor": (),
        "1x128": (rows, ceil_div(k, BLOCK)),
        "128x128": (ceil_div(rows, BLOCK), ceil_div(k, BLOCK)),
    }[granularity]
    fractions = (splitmix64(seed, math.prod(shape)) >> np.uint64(41)).astype(np.float64)
    scales = torch.from_numpy((1 + fractions / 2**23) / 64).float().reshape(shape)
    return to_m_major(scales) if granularity == "1x128" else scales


def output(case: Case, device: torch.device | str) -> np.ndarray:
    """The case's d as the bits of its elements, uint16 or uint32, computed on a device."""
    module = stage_named(case.stage)
    config = module.Config(**dict(case.config))
    fp32 = bool(dict(case.config).get("out_fp32"))
    dtype = torch.float32 if fp32 else torch.bfloat16
    if case.layout != "dense":
        d = _grouped(case, config, dtype, device)
    else:
        a, b = (q.to(device) for q in inputs(case))
        d = module.gemm(a, b, config, out_dtype=dtype) if fp32 else module.gemm(a, b, config)
    return (
        d.cpu().view(torch.int32).numpy().view(np.uint32)
        if fp32
        else d.cpu().view(torch.int16).numpy().view(np.uint16)
    )


def _grouped(case: Case, config: Any, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """d of a grouped case, 1 where nothing is written."""
    module = stage_named(case.stage)
    parts = [inputs(case, group) for group in range(GROUPS)]
    (a, sfa), (b, sfb) = (
        (
            torch.stack([q.data.view(torch.uint8) for q in each]).view(torch.float8_e4m3fn).to(device),
            torch.stack([q.scale for q in each]).to(device),
        )
        for each in zip(*parts, strict=True)
    )
    drawn = torch.from_numpy((splitmix64(case.seed + 99, case.m) >> np.uint64(33)).astype(np.int64))
    if case.layout == "masked":
        d = torch.ones(GROUPS, case.m, case.n, dtype=dtype, device=device)
        module.grouped_masked(
            a,
            sfa,
            b,
            sfb,
            d,
            (drawn[:1].repeat(GROUPS) // torch.arange(1, GROUPS + 1) % (case.m + 1)).int().to(device),
            config,
        )
        return d
    d = torch.ones(case.m, case.n, dtype=dtype, device=device)
    if case.layout == "contiguous":  # a new id every five rows, -1 among them
        index = (drawn[torch.arange(case.m) // 5] % (GROUPS + 1) - 1).int().to(device)
    else:
        index = (drawn[0] % (case.m + 1) * torch.arange(1, GROUPS + 1) // GROUPS).int().to(device)
    module.grouped_contiguous(
        a[0], sfa[0], b, sfb, d, index, config, prefix_sums=case.layout == "prefix sums", alignment=ALIGNMENT
    )
    return d


def source_hash() -> str:
    """Of every stage's CUDA file and header: what a recording was made from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].joinpath("kernels").glob("*.cu*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def record(path: Path, device: torch.device, run: dict[str, Any]) -> int:
    """Compute every case on a GPU and write one compressed file; how many there are."""
    about = {**run, "date": datetime.date.today().isoformat(), "source_hash": source_hash()}
    bits = {case.name: output(case, device) for case in cases()}
    save(path, about, bits)
    return len(bits)


def save(path: Path, about: dict[str, Any], bits: dict[str, np.ndarray]) -> None:
    """One compressed file: what is to be said of the run, and the bits by case name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **bits}
    np.savez_compressed(path, **arrays)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the recording says of its run, and the bits by case name."""
    with np.load(path) as data:
        return json.loads(str(data["about"])), {name: data[name] for name in data.files if name != "about"}
