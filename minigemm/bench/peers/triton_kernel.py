"""A block-scaled FP8 product in Triton, as one writes it there: a tile of d a program, `tl.dot` over 128 columns of k, and its scale on the way into FP32.

A peer to be timed against, no part of the library; importing it needs triton. Scales and layouts are minigemm's: those of a M-major, 1x128; those of b
row-major, 128x128. Rows of contiguous groups begin at multiples of 128.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["gemm"]

DENSE, CONTIGUOUS, MASKED = range(3)
# Scales of b are one a tile, and groups begin at multiples of 128: so no tile is higher or wider than that.
_CONFIGS = [
    triton.Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=warps, num_stages=stages)
    for block_m, block_n, warps, stages in (
        (128, 128, 8, 3), (128, 128, 8, 4), (128, 128, 4, 4), (128, 64, 4, 5), (64, 128, 4, 4), (64, 64, 4, 6), (64, 32, 4, 8),
    )
]  # fmt: skip


@triton.autotune(configs=_CONFIGS, key=["size", "N", "K", "LAYOUT"])
@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    a,
    sfa,
    b,
    sfb,
    d,
    groups,
    size,
    M,
    N,
    K,
    pitch,
    LAYOUT: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """a (M, K), or M rows of each group where masked. `groups`: ids of rows, or counts. `pitch`: floats between the columns of sfa. `size`: for the tuner."""
    steps, blocks_n = tl.cdiv(K, 128), tl.cdiv(N, 128)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    panel = 8 * tiles_n  # eight rows of tiles at a time, so that b comes from L2
    first = tl.program_id(0) // panel * 8
    height = tl.minimum(tiles_m - first, 8)
    row = (first + tl.program_id(0) % panel % height) * BLOCK_M
    column = tl.program_id(0) % panel // height * BLOCK_N
    group, rows, count = tl.program_id(1).to(tl.int64), M, steps
    if LAYOUT == 1:
        group = tl.load(groups + row).to(tl.int64)
        count = tl.where(group < 0, 0, steps)  # padding: zeros
        group = tl.maximum(group, 0)
    if LAYOUT == 2:
        rows = tl.load(groups + group)
        a += group * M * K
        sfa += group * pitch * steps
        d += group * M * N
        if row >= rows:
            return
    m, n, k = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N), tl.arange(0, 128)
    m_there, n_there = (
        tl.minimum(m, rows - 1),
        tl.minimum(n, N - 1),
    )  # what lies behind the end is computed, and not stored
    a_at = a + m_there.to(tl.int64)[:, None] * K + k[None, :]
    b_at = b + (group * N + n_there)[None, :] * K + k[:, None]
    sfa_at, sfb_at = sfa + m_there, sfb + (group * blocks_n + column // 128) * steps
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(count):
        if WHOLE_K:
            x, y = tl.load(a_at), tl.load(b_at)
        else:
            x = tl.load(a_at, mask=(step * 128 + k < K)[None, :], other=0.0)
            y = tl.load(b_at, mask=(step * 128 + k < K)[:, None], other=0.0)
        sums += tl.dot(x, y) * (tl.load(sfa_at) * tl.load(sfb_at + step))[:, None]
        a_at += 128
        b_at += 128
        sfa_at += pitch
    inside = (m < rows)[:, None] & (n < N)[None, :]
    tl.store(d + m.to(tl.int64)[:, None] * N + n[None, :], sums.to(tl.bfloat16), mask=inside)


def gemm(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    layout: str = "dense",
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """d = a @ b.T, and d. Tensors as `minigemm.api` has them, contiguous; `groups`: ids or counts. Nothing is checked."""
    m, k = a.shape[-2:]
    n = b.shape[-2]
    count = a.shape[0] if layout == "masked" else 1

    def grid(config: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"]), count

    kind = {"dense": DENSE, "contiguous": CONTIGUOUS, "masked": MASKED}[layout]
    _kernel[grid](
        a,
        sfa,
        b,
        sfb,
        d,
        d if groups is None else groups,
        triton.next_power_of_2(m),
        m,
        n,
        k,
        sfa.stride(-1),
        kind,
        k % 128 == 0,
    )
    return d
