"""Outputs of the stages as a Hopper GPU gave them, checked on every CPU.

`python -m minigemm test-gpu --record FILE` makes them.

Inputs come from an integer generator (splitmix64), the same on every machine, so that a recording holds
output bits alone. `tensor_core` has recordings of its own, of the same numbers and in the same kind of file.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import api
from ..kernels import stage_named, stages
from ..kernels.library import stages_by_name
from ..layout import ceil_div, to_m_major
from ..plan import prepared
from ..quantize import BLOCK, Quantized
from ..types import Layout, Product

__all__ = [
    "GROUPED",
    "REGIMES",
    "Case",
    "cases",
    "codes",
    "inputs",
    "keep",
    "load",
    "output",
    "record",
    "splitmix64",
]

REGIMES = ("normal", "wide", "cancelling", "subnormal", "nan")
SHAPES = (
    (1, 1, 16), (1, 77, 48), (77, 1, 16), (8, 8, 32), (16, 24, 64), (33, 40, 80), (64, 64, 128), (65, 63, 144),
    (17, 72, 256), (48, 31, 272), (96, 16, 512), (40, 56, 1040),
)  # fmt: skip
#: For the tensor-core stages besides: tiles in both directions, and more than 32 steps of 128.
LONG_SHAPES = ((130, 264, 528), (16, 24, 4224))
GROUPED_STAGES = ("s10_grouped", "s11_overlapped", "s12_swapped")
#: The configs of these stages were recorded when two more stood between them: a case's regime follows its
#: number.
NUMBERS = (0, 3)
#: s11 and s12 have the bits of s10 by design, so its recording serves them too. The fields under which it has
#: them, by the config's number.
RECORDED = "s10_grouped"
GROUPED = (Layout.CONTIGUOUS, Layout.PREFIX_SUMS, Layout.MASKED)  # its layouts, besides the dense one
GROUPS, ALIGNMENT = 3, 8


@dataclass(frozen=True)
class Case:
    """One output to record: the stage, the product, the config's fields, and the kind of numbers."""

    stage: str
    product: Product
    config: tuple[tuple[str, int], ...]
    regime: str

    @property
    def name(self) -> str:
        """The key under which the output bits are kept."""
        fields = ",".join(f"{name}={value}" for name, value in self.config)
        layout = "" if self.product.layout == Layout.DENSE else f" {self.product.layout}"
        return f"{self.stage} {self._sizes} {fields} {self.regime}{layout}"

    @property
    def recorded(self) -> str:
        """The key under which the recording has the bits: the case's own, or that of s10 for s11 and s12."""
        if self.stage not in GROUPED_STAGES:
            return self.name
        number = [tuple(sorted(fields.items())) for fields in CONFIGS[self.stage]].index(self.config)
        config = tuple(sorted(CONFIGS[RECORDED][number].items()))
        return replace(self, stage=RECORDED, config=config).name

    @property
    def seed(self) -> int:
        """A number made from sizes and regime alone: every stage and config gets the same inputs."""
        return seed_of(f"{self._sizes} {self.regime}")

    @property
    def _sizes(self) -> str:
        return "x".join(map(str, self.product[:3]))


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
        {"block_m": 192, "block_n": 96, "stages": 2, "consumers": 3},
    ),
    "s11_overlapped": (
        {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "ctas": 1},
        {"block_m": 128, "block_n": 160, "stages": 2, "consumers": 2, "ctas": 2},
    ),
    "s12_swapped": (
        {"block_m": 16, "block_n": 64, "stages": 2, "consumers": 1, "blocks": 2, "ctas": 1},
        {"block_m": 40, "block_n": 128, "stages": 2, "consumers": 2, "blocks": 4, "ctas": 3},
    ),
}


def cases() -> Iterator[Case]:
    """Every case: all shapes with all configs of each stage, the regimes taking turns.

    The grouped stages have each config with one layout of groups too, and each shape with all of them. A
    stage that has no configs above is not recorded yet.
    """
    for module in stages():
        name = module.stage.name
        for place, fields in enumerate(CONFIGS.get(name, ())):
            c = NUMBERS[place] if name in GROUPED_STAGES else place
            config = tuple(sorted(fields.items()))
            for s, sizes in enumerate(SHAPES + (LONG_SHAPES if name >= "s04" else ())):
                regime = REGIMES[(s + c) % len(REGIMES)]
                if name == "s12_swapped" and sizes[2] % BLOCK:  # which it leaves to s11
                    continue
                yield Case(name, Product(*sizes), config, regime)
                if name in GROUPED_STAGES:
                    layout = GROUPED[(s + c) % len(GROUPED)]
                    alignment = ALIGNMENT if layout == Layout.PREFIX_SUMS else 1  # ids begin and end anywhere
                    yield Case(name, Product(*sizes, layout, GROUPS, alignment=alignment), config, regime)


# --- numbers


def seed_of(text: str) -> int:
    """Return a seed of 48 bits from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")


def splitmix64(seed: int, count: int) -> np.ndarray:
    """Return `count` uint64.

    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators" (2014).
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def codes(seed: int, shape: tuple[int, ...], regime: str, e5m2: bool = False) -> np.ndarray:
    """Return uint8 bit patterns of e4m3 or e5m2 numbers of one regime; finite but for "nan" and "raw"."""
    bits = splitmix64(seed, math.prod(shape))
    sign = (bits >> np.uint64(8) & np.uint64(1)).astype(np.uint8) << 7
    low: np.ndarray = (bits & np.uint64(0x7F)).astype(np.uint8)
    largest = 0x7B if e5m2 else 0x7E  # finite
    if regime == "normal":  # four binades around 1
        low = (low & (0x0F if e5m2 else 0x1F)) + (0x34 if e5m2 else 0x28)
    elif regime == "cancelling":  # large values of both signs
        low = low | 0x60
    elif regime == "subnormal":
        low = low & (0x07 if e5m2 else 0x0F)
    elif regime == "extreme":  # the largest, the smallest, zero
        low = np.array([largest, 0x01, 0x00, 0x08], np.uint8)[low & 3]
    elif regime == "sparse":
        low = np.where(low & 3 == 0, low, 0).astype(np.uint8)
    if regime != "raw":
        low = np.minimum(low, largest).astype(np.uint8)
    if regime == "nan":
        low = np.where(bits >> np.uint64(40) & np.uint64(0x3FF) == 0, 0x7F, low).astype(np.uint8)
    return (sign | low).reshape(shape)


def inputs(case: Case, group: int = 0) -> tuple[Quantized, Quantized]:
    """Make a and b of a case, or of one of its groups: e4m3 bit patterns with their scales, on the CPU."""
    of_a, of_b = stage_named(case.stage).stage.granularities
    m, n, k = case.product[:3]
    seed = case.seed + 4 * group
    return (
        Quantized(_data(seed, (m, k), case.regime), _scales(seed + 1, m, k, of_a), of_a),
        Quantized(_data(seed + 2, (n, k), case.regime), _scales(seed + 3, n, k, of_b), of_b),
    )


def _data(seed: int, shape: tuple[int, int], regime: str) -> torch.Tensor:
    return torch.from_numpy(codes(seed, shape, regime)).view(torch.float8_e4m3fn)


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


# --- outputs


def output(case: Case, device: torch.device | str) -> np.ndarray:
    """Compute the case's d by the call that users make. Return its bits, uint16 or uint32."""
    module = stage_named(case.stage)
    config = module.Config(**dict(case.config))
    fp32 = bool(dict(case.config).get("out_fp32"))
    dtype = torch.float32 if fp32 else torch.bfloat16
    if case.product.layout != Layout.DENSE:
        d = _grouped(case, replace(config, layout=int(case.product.layout)), dtype, torch.device(device))
    else:
        a, b = (q.to(device) for q in inputs(case))
        if case.stage in stages_by_name():
            d = api.fp8_gemm_nt(a, b, out_dtype=dtype, config=config)
        else:
            d = module.gemm(a, b, config, out_dtype=dtype)
    bits = d.cpu().view(torch.int32 if fp32 else torch.int16).numpy()
    return bits.view(np.uint32 if fp32 else np.uint16)


def _grouped(case: Case, config: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return d of a grouped case, 1 where nothing is written.

    Some of the prefix sums lie before their group's start. The call would refuse them for CPU tensors; the
    kernel takes such a group for an empty one. So this goes where the call goes after its checks.
    """
    m, n, _, layout, groups = case.product[:5]

    # Each group has an a and a b of its own; in the contiguous layouts all rows are those of the first a.
    parts = [inputs(case, group) for group in range(groups)]
    (a, sfa), (b, sfb) = (
        (
            torch.stack([q.data.view(torch.uint8) for q in each]).view(torch.float8_e4m3fn).to(device),
            torch.stack([q.scale for q in each]).to(device),
        )
        for each in zip(*parts, strict=True)
    )
    shape = (groups, m, n) if layout == Layout.MASKED else (m, n)
    if layout != Layout.MASKED:
        a, sfa = a[0], sfa[0]

    # Counts, a new id every five rows with -1 among them, or ends.
    drawn = torch.from_numpy((splitmix64(case.seed + 99, m) >> np.uint64(33)).astype(np.int64))
    numbers = torch.arange(1, groups + 1)
    index = {
        Layout.MASKED: drawn[0] // numbers % (m + 1),
        Layout.CONTIGUOUS: drawn[torch.arange(m) // 5] % (groups + 1) - 1,
        Layout.PREFIX_SUMS: drawn[0] % (m + 1) * numbers // groups,
    }[layout]

    d = torch.ones(shape, dtype=dtype, device=device)
    launch = prepared.describe(case.product, (a, sfa, b, sfb, d, index.int().to(device)), config)
    stage_named(case.stage).stage.run(launch, config, device)
    return d


# --- the file


def record(path: Path, device: torch.device, run: dict[str, Any]) -> int:
    """Compute every case on a GPU and write them to a file. Return how many there are.

    Args:
        path: the file.
        device: the GPU.
        run: what identifies the GPU and its software.
    """
    sources = sorted(Path(__file__).parents[1].joinpath("kernels").glob("*.cu*"))
    bits = {case.name: output(case, device) for case in cases()}
    keep(path, run, sources, bits)
    return len(bits)


def keep(path: Path, run: dict[str, Any], sources: Iterable[Path], bits: dict[str, np.ndarray]) -> None:
    """Write one compressed file: the run, its date, a hash of the CUDA sources, the bits by case name."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    about = {**run, "date": datetime.date.today().isoformat(), "source_hash": digest.hexdigest()[:16]}
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **bits}
    np.savez_compressed(path, **arrays)


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what a recording says of its run, and the bits by case name."""
    with np.load(path) as data:
        return json.loads(str(data["about"])), {name: data[name] for name in data.files if name != "about"}
