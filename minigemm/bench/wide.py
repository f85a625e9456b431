"""The wide set: layers of eight models for one token to 8192, and groups of experts.

It has far more shapes than anybody tunes a kernel to by hand, and so shows what the library's own choices are
worth. `BANDS` says how many rows count as alike in a mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..types import Layout
from .workloads import EVEN, SKEWED, Workload, contiguous, dense, masked

__all__ = ["BANDS", "LAYERS", "ROWS", "WIDE", "Layer", "band_of", "layer_of", "part", "units"]


class Layer(NamedTuple):
    """A linear layer of a published model, as one GPU of `tp` holds it: b is (n, k)."""

    model: str
    name: str
    tp: int
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.model} {self.name}, TP {self.tp}"


# n and k come from the models' published configs. With heads h, kv heads v, head dimension e, hidden size d,
# (dense) intermediate size i, and t GPUs:
#   qkv      n = (h / t + 2 max(v / t, 1)) e   k = d         o     n = d   k = h e / t
#   gate_up  n = 2 i / t                       k = d         down  n = d   k = i / t
# Multi-head latent attention (DeepSeek-V3, Kimi-K2) has the ranks q 1536 and kv 512, and the head dimensions
# 128 without and 64 with positions, 128 of values; its first layer is the same on each GPU:
#   qkv_a    n = 1536 + 512 + 64               k = d         q_b   n = h (128 + 64) / t   k = 1536
# fmt: off
LAYERS = (
    # d 7168, h 128, i 18432
    Layer("DeepSeek-V3", "qkv_a", 1, 2112, 7168),
    Layer("DeepSeek-V3", "q_b", 1, 24576, 1536),
    Layer("DeepSeek-V3", "o", 1, 7168, 16384),
    Layer("DeepSeek-V3", "gate_up", 1, 36864, 7168),
    Layer("DeepSeek-V3", "gate_up", 8, 4608, 7168),
    Layer("DeepSeek-V3", "down", 8, 7168, 2304),
    # d 7168, h 64
    Layer("Kimi-K2", "q_b", 1, 12288, 1536),
    Layer("Kimi-K2", "o", 1, 7168, 8192),
    Layer("Kimi-K2", "o", 8, 7168, 1024),
    # d 2048, h 32, v 4, e 128
    Layer("Qwen3-30B-A3B", "qkv", 1, 5120, 2048),
    Layer("Qwen3-30B-A3B", "o", 1, 2048, 4096),
    Layer("Qwen3-30B-A3B", "qkv", 8, 768, 2048),
    # d 4096, h 64, v 4, e 128
    Layer("Qwen3-235B-A22B", "qkv", 1, 9216, 4096),
    Layer("Qwen3-235B-A22B", "o", 1, 4096, 8192),
    Layer("Qwen3-235B-A22B", "qkv", 8, 1280, 4096),
    # d 6144, h 96, v 8, e 128
    Layer("Qwen3-Coder-480B-A35B", "qkv", 1, 14336, 6144),
    Layer("Qwen3-Coder-480B-A35B", "o", 8, 6144, 1536),
    # d 5120, h 96, v 8, e 128, i 12288
    Layer("GLM-4.5", "gate_up", 1, 24576, 5120),
    Layer("GLM-4.5", "down", 1, 5120, 12288),
    Layer("GLM-4.5", "gate_up", 8, 3072, 5120),
    # d 8192, h 64, v 8, e 128, i 28672
    Layer("Llama 3 70B", "o", 1, 8192, 8192),
    Layer("Llama 3 70B", "gate_up", 1, 57344, 8192),
    Layer("Llama 3 70B", "qkv", 8, 1280, 8192),
    Layer("Llama 3 70B", "down", 8, 8192, 3584),
    # d 16384, h 128, v 8, e 128, i 53248
    Layer("Llama 3 405B", "o", 1, 16384, 16384),
    Layer("Llama 3 405B", "qkv", 8, 2304, 16384),
    Layer("Llama 3 405B", "gate_up", 8, 13312, 16384),
    Layer("Llama 3 405B", "down", 8, 16384, 6656),
)
# fmt: on

ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 100, 128, 256, 300, 512, 1024, 1500, 2048, 3000, 4096, 8192)
#: The last m of each band. All bands weigh the same in a mean.
BANDS = (8, 32, 128, 512, 2048, 8192)

#: Experts, which tensor parallelism leaves whole: gate_up is (2 x expert size, d), down is (d, expert size).
#: Expert sizes: DeepSeek-V3 2048, Qwen3 768 (30B), 1536 (235B) and 2560 (Coder), GLM-4.5 1536.
_PREFILL = (  # (groups, rows for each): the experts of one GPU
    ((8, 1024), ("DeepSeek-V3", 4096, 7168), ("DeepSeek-V3", 7168, 2048)),
    ((32, 512), ("Qwen3-235B-A22B", 3072, 4096), ("Qwen3-235B-A22B", 4096, 1536)),
    ((64, 256), ("Qwen3-30B-A3B", 1536, 2048), ("Qwen3-30B-A3B", 2048, 768)),
)
_DECODE = (
    ((8, 256), ("Qwen3-Coder-480B-A35B", 5120, 6144), ("Qwen3-Coder-480B-A35B", 6144, 2560)),
    ((32, 64), ("GLM-4.5", 3072, 5120), ("GLM-4.5", 5120, 1536)),
    ((64, 16), ("DeepSeek-V3", 4096, 7168), ("DeepSeek-V3", 7168, 2048)),
)
WIDE = (
    *(dense(m, layer.n, layer.k) for layer in LAYERS for m in ROWS),
    *(
        make(*groups, n, k, spread)
        for make, table in ((contiguous, _PREFILL), (masked, _DECODE))
        for groups, *layers in table
        for _, n, k in layers
        for spread in (EVEN, SKEWED)
    ),
)


def layer_of(layout: Layout, n: int, k: int) -> str:
    """Return the layer of the wide set with this n and k, "" where there is none."""
    if layout is Layout.DENSE:
        return next((str(layer) for layer in LAYERS if (layer.n, layer.k) == (n, k)), "")
    table = _PREFILL if layout is Layout.CONTIGUOUS else _DECODE
    experts = (expert for _, *layers in table for expert in layers)
    return next((f"{model} experts" for model, *sizes in experts if sizes == [n, k]), "")


def band_of(m: int) -> str:
    """Return the band of BANDS that m belongs to, "9-32"; "from 8193" above all of them."""
    first = 1
    for last in BANDS:
        if m <= last:
            return f"{first}-{last}"
        first = last + 1
    return f"from {first}"


def units(workloads: Iterable[Workload]) -> list[list[Workload]]:
    """Return the workloads in units that are measured together: a dense (n, k) with all its m is one."""
    found: dict[object, list[Workload]] = {}
    for workload in workloads:
        _, n, k, layout, *_ = workload.product
        key = (n, k) if layout is Layout.DENSE else workload
        found.setdefault(key, []).append(workload)
    return list(found.values())


def part(workloads: Iterable[Workload], text: str) -> list[Workload]:
    """Return part i of p of the workloads, in whole units; the text is "i/p".

    Raises:
        ValueError: the text does not name a part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= parts:
        raise ValueError(f"part: expected I/P with 1 <= I <= P, such as 1/3, got {text!r}")
    return [workload for unit in units(workloads)[number - 1 :: parts] for workload in unit]
