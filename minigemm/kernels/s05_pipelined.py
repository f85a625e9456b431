"""s05: a ring of stages; loads run ahead and products stay in flight.

Idea: shared memory holds `stages` tiles of a and b. Thread 0 asks for the tile that will be needed stages - 1 steps later, so that memory has that long
to answer. Every slot has its own mbarrier; it completes a phase each time round the ring, so the parity that a thread waits for flips when it comes
back to slot 0. `wgmma.wait_group 1` leaves the newest group of products in flight: the tensor core has work while threads wait for the next tile. A
slot may be filled again when every warpgroup has done with it, which one barrier of the CTA in each step sees to.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16. Any m and n, k a multiple of 16. The result has the bits of s04.
Legal configs: as s04, and stages of at least 2; all stages and the tile of d in 227 KiB.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "mbarrier", "wgmma.wait_group"; CUTLASS documentation, "Efficient GEMM in CUDA", "Pipelining".
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass

import torch

from .. import types
from ..layout import ceil_div, round_up
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Problem, TensorMap
from .instructions import wgmma
from .stage import (
    Stage,
    check_grid,
    check_registers,
    check_shared,
    check_tensor_core_tile,
    panel,
    quickest,
    rows,
)

TITLE = "pipelined"
IDEA = "a ring of stages, phase bits"


@dataclass(frozen=True)
class Config(types.Config):
    """Tile of a CTA in elements; a warpgroup computes 64 rows of it. Along k a tile has 128, what the swizzle spans. `stages` of them make the ring."""

    block_m: int = 128
    block_n: int = 256
    stages: int = 3

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return self.block_m // 64 * 128

    @property
    def shared_bytes(self) -> int:
        """The tiles of a and b, that of d, and the barriers, each at a multiple of 1024 bytes."""
        sizes = (
            self.stages * self.block_m * BLOCK,
            self.stages * self.block_n * BLOCK,
            self.block_m * self.block_n * 2,
            8 * self.stages,
        )
        return sum(round_up(size, 1024) for size in sizes)

    def constants(self) -> dict[str, int]:
        """The fields, BLOCK_K, PANEL (the columns of d that are stored at once), and SHARED_BYTES, which the kernel asserts."""
        return {
            **super().constants(),
            "BLOCK_K": BLOCK,
            "PANEL": panel(self.block_n),
            "SHARED_BYTES": self.shared_bytes,
        }

    def declarations(self) -> str:
        """The instruction."""
        return wgmma(self.block_n)


def is_legal(config: Config, problem: Problem) -> Legality:
    """Whether this config can run this problem, and if not, why."""
    if config.stages < 2:
        return Legality(
            f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
        )
    return Legality(
        check_tensor_core_tile(config.block_m, config.block_n, 8)
        or check_shared(config.shared_bytes, "fewer stages or smaller blocks")
        or check_registers(config.block_n // 2 + 32, config.threads)
        or check_grid(problem.m, problem.n, config.block_m, config.block_n)
    )


def default_config(problem: Problem) -> Config:
    """What takes 132 SMs the least time, of a few: 128 x 256 outputs where there are many, 64 x 64 where there are few."""
    return quickest((Config(), Config(128, 128, 4), Config(64, 64, 4)), problem)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, problem: Problem, config: Config) -> Launch:
    """One CTA for each block_m x block_n outputs."""
    m, n, k = problem.m, problem.n, problem.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    tma_store = d.stride(0) * d.element_size() % 16 == 0
    width = panel(config.block_n)
    # a row pitch that no tensor map can describe: the kernel stores by threads and never looks at the third map
    map_d = (
        TensorMap(d, (config.block_m, width), swizzle=2 * width if width > 8 else 0) if tma_store else map_a
    )
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_d, d, a.scale, b.scale, m, n, k, c_int64(d.stride(0)), int(tma_store)),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s05_pipelined", TITLE, IDEA, Config, is_legal, default_config, launch, sums="tensor core",  # type: ignore[arg-type]
)  # fmt: skip
gemm = stage.gemm
