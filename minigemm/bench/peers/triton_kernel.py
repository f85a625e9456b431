"""A block-scaled FP8 product in Triton, as one writes it there.

A program computes a tile of d: `tl.dot` over 128 columns of k, multiplied by its scale on the way into FP32.
The kernel is a peer to be timed against and no part of the library; importing it needs triton. Scales and
layouts are minigemm's: 1x128 scales of a, M-major; 128x128 scales of b, row-major. Contiguous groups begin at
multiples of 128.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...types import Layout

__all__ = ["gemm"]

# A tile has one scale of b, and groups begin at multiples of 128: so no tile is higher or wider than 128.
_TILES = (  # BLOCK_M, BLOCK_N, warps, stages
    (128, 128, 8, 3),
    (128, 128, 8, 4),
    (128, 128, 4, 4),
    (128, 64, 4, 5),
    (64, 128, 4, 4),
    (64, 64, 4, 6),
    (64, 32, 4, 8),
)
_CONFIGS = [
    triton.Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=warps, num_stages=stages)
    for block_m, block_n, warps, stages in _TILES
]


@triton.autotune(configs=_CONFIGS, key=["size", "N", "K", "CONTIGUOUS", "MASKED"])
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
    CONTIGUOUS: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute a tile of d.

    a: (M, K), or (groups, M, K) if MASKED. groups: the group of each row, or the rows in use of each group.
    pitch: floats between the columns of sfa. size: M rounded up to a power of two, for the tuner.
    """
    # The tile of this program: eight rows of tiles at a time, so that b comes from L2.
    steps, blocks_n = tl.cdiv(K, 128), tl.cdiv(N, 128)
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    panel = 8 * tiles_n
    first = tl.program_id(0) // panel * 8
    height = tl.minimum(tiles_m - first, 8)
    row = (first + tl.program_id(0) % panel % height) * BLOCK_M
    column = tl.program_id(0) % panel // height * BLOCK_N

    # The tile's group. A tile of padding has no steps, which makes it zeros.
    group, rows, count = tl.program_id(1).to(tl.int64), M, steps
    if CONTIGUOUS:
        group = tl.load(groups + row).to(tl.int64)
        count = tl.where(group < 0, 0, steps)
        group = tl.maximum(group, 0)
    if MASKED:
        rows = tl.load(groups + group)
        a += group * M * K
        sfa += group * pitch * steps
        d += group * M * N
        if row >= rows:
            return

    # Rows and columns behind the end are computed from the last one, and not stored.
    m, n, k = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N), tl.arange(0, 128)
    m_there, n_there = tl.minimum(m, rows - 1), tl.minimum(n, N - 1)
    a_at = a + m_there.to(tl.int64)[:, None] * K + k[None, :]
    b_at = b + (group * N + n_there)[None, :] * K + k[:, None]
    sfa_at, sfb_at = sfa + m_there, sfb + (group * blocks_n + column // 128) * steps

    # The products, 128 columns of k at a time.
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
    layout: Layout = Layout.DENSE,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute d = a @ b.T and return d. Nothing is checked.

    The tensors are contiguous and as `minigemm.api` has them. groups: int32; the group of each row of a
    CONTIGUOUS layout, or the rows in use of each group of a MASKED one.
    """
    m, k = a.shape[-2:]
    n = b.shape[-2]
    contiguous, masked = layout is Layout.CONTIGUOUS, layout is Layout.MASKED
    buffers = a.shape[0] if masked else 1

    def grid(config: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"]), buffers

    tensors = a, sfa, b, sfb, d, d if groups is None else groups
    size, pitch = triton.next_power_of_2(m), sfa.stride(-1)
    _kernel[grid](*tensors, size, m, n, k, pitch, contiguous, masked, k % 128 == 0)
    return d
