"""Outputs of the stages as a Hopper GPU gave them: made by `python -m minigemm test-gpu --record FILE`, checked on every CPU.

Inputs come from an integer generator (splitmix64), the same on every machine, so that a recording holds output bits alone.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .kernels import stage_named, stages
from .quantize import Quantized

__all__ = ["REGIMES", "Case", "cases", "inputs", "load", "record"]

REGIMES = ("normal", "wide", "cancelling", "subnormal", "nan")
SHAPES = (
    (1, 1, 16), (1, 77, 48), (77, 1, 16), (8, 8, 32), (16, 24, 64), (33, 40, 80), (64, 64, 128), (65, 63, 144), (17, 72, 256), (48, 31, 272), (96, 16, 512),
    (40, 56, 1040),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One product: the stage, the problem, the config's fields and the kind of numbers."""

    stage: str
    m: int
    n: int
    k: int
    config: tuple[tuple[str, int], ...]
    regime: str

    @property
    def name(self) -> str:
        """The key under which the output bits are kept."""
        fields = ",".join(f"{name}={value}" for name, value in self.config)
        return f"{self.stage} {self.m}x{self.n}x{self.k} {fields} {self.regime}"

    @property
    def seed(self) -> int:
        """From the problem alone: every stage and config gets the same numbers."""
        return int.from_bytes(hashlib.sha256(f"{self.m}x{self.n}x{self.k} {self.regime}".encode()).digest()[:6], "little")


CONFIGS: dict[str, tuple[dict[str, int], ...]] = {
    "s01_naive": ({}, {"block_m": 16, "block_n": 16}),
    "s02_tiled": ({"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4}, {"block_m": 32, "block_n": 64, "block_k": 32, "thread_m": 2, "thread_n": 4}),
    "s03_tma": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 32, "block_k": 32, "thread_m": 2, "thread_n": 2},
    ),
}


def cases() -> Iterator[Case]:
    """Every case: all shapes with all configs of each stage, the regimes taking turns."""
    for module in stages():
        name = module.stage.name
        for c, config in enumerate(CONFIGS.get(name, ({},))):
            for s, (m, n, k) in enumerate(SHAPES):
                yield Case(name, m, n, k, tuple(sorted(config.items())), REGIMES[(s + c) % len(REGIMES)])


def splitmix64(seed: int, count: int) -> np.ndarray:
    """`count` uint64. Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def inputs(case: Case) -> tuple[Quantized, Quantized]:
    """a and b of a case, as e4m3 bit patterns with one scale each, on the CPU."""
    return (
        Quantized(_bytes(case, case.seed, case.m), _scale(case.seed + 1), "tensor"),
        Quantized(_bytes(case, case.seed + 2, case.n), _scale(case.seed + 3), "tensor"),
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


def _scale(seed: int) -> torch.Tensor:
    fraction = int(splitmix64(seed, 1)[0] >> np.uint64(41))
    return torch.tensor((1 + fraction / 2**23) / 64, dtype=torch.float32)


def output(case: Case, device: torch.device | str) -> np.ndarray:
    """The case's d as uint16 bits, computed on a device."""
    module = stage_named(case.stage)
    config = module.Config(**dict(case.config))
    a, b = (q.to(device) for q in inputs(case))
    return module.gemm(a, b, config).cpu().view(torch.int16).numpy().view(np.uint16)


def source_hash() -> str:
    """Of every stage's CUDA file and header: what a recording was made from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.joinpath("kernels").glob("*.cu*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def record(path: Path, device: torch.device, run: dict[str, Any]) -> int:
    """Compute every case on a GPU and write one compressed file; how many there are."""
    about = {**run, "date": datetime.date.today().isoformat(), "source_hash": source_hash()}
    bits = {case.name: output(case, device) for case in cases()}
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **bits}
    np.savez_compressed(path, **arrays)
    return len(bits)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the recording says of its run, and the bits by case name."""
    with np.load(path) as data:
        return json.loads(str(data["about"])), {name: data[name] for name in data.files if name != "about"}
