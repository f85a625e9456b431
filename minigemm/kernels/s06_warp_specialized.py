"""s06: warps with roles: a producer that loads, consumers that compute.

Idea: who waits for what is split up. One thread of the producer waits for empty slots and asks TMA for tiles; each consumer, a warpgroup, waits for
full slots, multiplies, and hands slots back by arriving on their empty barrier. No barrier of the CTA stands in the loop, so consumers drift apart and
one's epilogue of a step hides behind the other's products. `setmaxnreg` moves registers from the producer to the consumers. The tile of d leaves
through `stmatrix`, which writes accumulators to shared memory a matrix at a time, and TMA, each consumer for itself.

Shapes: a (m, k), b (n, k) e4m3, one scale each; d (m, n) BF16 or FP32. Any m and n, k a multiple of 16. The result has the bits of s04: with FP32
output and a long k the tensor core's short accumulator shows. FP32, and BF16 whose rows are no multiple of 16 bytes, are stored by threads.
Legal configs: consumers 1 to 3, the rows of each 64 or 128 (block_m = 64 or 128 times consumers, up to 256); block_n a multiple of 16 up to 256;
stages of at least 2; all stages and the tile of d in 227 KiB; the accumulators of a consumer's thread, block_m / consumers / 64 * block_n / 2, in the
registers that it gets.
Errors: see `Stage.gemm`.
Sources: PTX ISA, "setmaxnreg", "elect.sync", "stmatrix"; CUTLASS documentation, "Efficient GEMM in CUDA", "Warp Specialization".
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

TITLE = "warp-specialized"
IDEA = "producer and consumer warpgroups, setmaxnreg"
REGISTERS = {
    1: (40, 248),
    2: (40, 232),
    3: (32, 160),
}  # of a thread of the producer and of a consumer, by the number of consumers


@dataclass(frozen=True)
class Config(types.Config):
    """Tile of a CTA in elements, 128 along k; `stages` of them make the ring. Each of the `consumers` computes its share of the rows. `out_fp32`: what d is."""

    block_m: int = 128
    block_n: int = 256
    stages: int = 3
    consumers: int = 2
    out_fp32: bool = False

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return (self.consumers + 1) * 128

    @property
    def rows(self) -> int:
        """Rows that one consumer computes."""
        return self.block_m // self.consumers

    @property
    def accumulators(self) -> int:
        """Registers for sums of a consumer's thread."""
        return self.rows // 64 * self.block_n // 2

    @property
    def shared_bytes(self) -> int:
        """The tiles of a and b, that of d, and the barriers, each at a multiple of 1024 bytes."""
        sizes = (
            self.stages * self.block_m * BLOCK,
            self.stages * self.block_n * BLOCK,
            self.block_m * self.block_n * 2,
            16 * self.stages,
        )
        return sum(round_up(size, 1024) for size in sizes)

    def constants(self) -> dict[str, int]:
        """The fields; BLOCK_K; PANEL, the columns of d that are stored at once; the registers of both roles; SHARED_BYTES, which the kernel asserts."""
        producer, consumer = REGISTERS[self.consumers]
        return {
            **super().constants(), "BLOCK_K": BLOCK, "PANEL": panel(self.block_n), "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
            "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip

    def declarations(self) -> str:
        """The instruction."""
        return wgmma(self.block_n)


def is_legal(config: Config, problem: Problem) -> Legality:
    """Whether this config can run this problem, and if not, why."""
    if config.consumers not in REGISTERS:
        return Legality(f"consumers must be 1, 2 or 3, got {config.consumers}")
    if config.stages < 2:
        return Legality(
            f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
        )
    tile = check_tensor_core_tile(config.block_m, config.block_n, 16, 64 * config.consumers)
    if not tile and config.rows > 128:
        tile = f"a consumer can have 64 or 128 rows, got block_m / consumers = {config.rows}"
    return Legality(
        tile
        or check_shared(config.shared_bytes, "fewer stages or smaller blocks")
        or check_registers(config.accumulators + 32, config.threads, REGISTERS[config.consumers][1])
        or check_registers(
            config.block_n // 2 + 28, config.threads
        )  # what one instruction names must be there at launch
        or check_grid(problem.m, problem.n, config.block_m, config.block_n)
    )


def default_config(problem: Problem) -> Config:
    """What takes 132 SMs the least time, of a few: 128 x 256 outputs where there are many, 64 x 64 where there are few."""
    choices = (Config(), Config(128, 128, 5), Config(64, 128, 6, 1), Config(64, 64, 8, 1))
    return quickest(choices, problem)


def launch(a: Quantized, b: Quantized, d: torch.Tensor, problem: Problem, config: Config) -> Launch:
    """One CTA for each block_m x block_n outputs."""
    m, n, k = problem.m, problem.n, problem.k
    map_a = TensorMap(rows(a), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(rows(b), (config.block_n, BLOCK), swizzle=128)
    tma_store = not config.out_fp32 and d.stride(0) * d.element_size() % 16 == 0
    width = panel(config.block_n)
    # FP32, or a row pitch that no tensor map can describe: the kernel stores by threads and never looks at the third map
    map_d = TensorMap(d, (config.rows, width), swizzle=2 * width) if tma_store else map_a
    return Launch(
        grid=(ceil_div(m, config.block_m), ceil_div(n, config.block_n), 1),
        block=(config.threads, 1, 1),
        args=(map_a, map_b, map_d, d, a.scale, b.scale, m, n, k, c_int64(d.stride(0)), int(tma_store)),
        shared=config.shared_bytes,
    )


stage = Stage(
    "s06_warp_specialized", TITLE, IDEA, Config, is_legal, default_config, launch,  # type: ignore[arg-type]
    out_dtypes=(torch.bfloat16, torch.float32), sums="tensor core",
)  # fmt: skip
gemm = stage.gemm
