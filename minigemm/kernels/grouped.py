"""Launches of the grouped kernels, s10 to s12: which tensors, maps and numbers a call of each layout becomes.

The three kernels have the same parameters (`PARAMETERS`; s10 has no `early`) and the same layouts of a and d:

- DENSE: one product. a (m, k), b (n, k), d (m, n).
- CONTIGUOUS: a (m, k), b (groups, n, k), d (m, n), and an int32 id for each row: its group. Rows of any other
  id (-1) are padding: zeros in d. Ids come in any order, and groups begin and end anywhere; a tile that meets
  several groups is computed once for each.
- PREFIX_SUMS: the same with an int32 for each group: its start + its rows. The group starts at the first
  multiple of `alignment` that is not below the entry before. The rows between and behind the groups are
  padding.
- MASKED: a (groups, t, k), b (groups, n, k), d (groups, t, n), and an int32 for each group: how many of its t
  rows count. The others may hold anything, in a and d, and stay what they are.

Numbers on the device that make no sense never lead outside the tensors. Ids out of range are padding, counts
below 0 or over t and sums over m are taken for the nearest limit. Where sums fall, groups overlap, and their
rows of d may come from either.

`launch_dense`, `launch_contiguous` and `launch_masked` describe a launch into a d that exists, for a caller
that has checked its tensors. `refit` tells which arguments another m changes. None of them reads the device's
numbers on the host.

`dependent` lets a launch of s11 or s12 begin while the kernel before it still runs.
"""

from __future__ import annotations

from ctypes import c_int64
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..checks import SIZE_LIMIT
from ..layout import ceil_div, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Layout, Product, TensorMap
from .stage import ctas
from .tile import PromotedConfig, panel

__all__ = [
    "CONTIGUOUS",
    "DENSE",
    "MASKED",
    "PREFIX_SUMS",
    "Forms",
    "GroupedConfig",
    "LibraryConfig",
    "dependent",
    "forms",
    "launch",
    "launch_contiguous",
    "launch_dense",
    "launch_masked",
    "refit",
]

DENSE, CONTIGUOUS, PREFIX_SUMS, MASKED = Layout
PARTS_BYTES = 4 * (16 + 32)  # of Parts, as in scheduler.cuh
#: The kernels' parameters, in their order.
PARAMETERS = (
    "a_map", "b_map", "sfa_map", "d_map", "d", "sfb", "index", "span", "zero_padding", "m", "n", "k", "groups",
    "ld_sfb", "group_sfb", "ldd", "aligned", "early",
)  # fmt: skip
#: The places of the parameters that follow the rows of a and d.
A_MAP, SFA_MAP, D_MAP, D, M = map(PARAMETERS.index, ("a_map", "sfa_map", "d_map", "d", "m"))
EARLY = PARAMETERS.index("early")


@dataclass(frozen=True)
class GroupedConfig(PromotedConfig):
    """What the launch of a grouped kernel asks of its config, besides the tile."""

    out_fp32: bool = False
    ctas: int = 0
    raster: int = 16
    raster_m: bool = False
    layout: int = int(DENSE)  # so that a config in a message can be pasted into code

    @property
    def copied_blocks(self) -> int:
        """How many k-blocks of 128 one copy of a or b brings; 0: one, which may be shorter."""
        return 0

    @property
    def stored_by_threads(self) -> bool:
        """Whether threads store d from registers, where TMA could."""
        return self.out_fp32

    @property
    def buffers(self) -> tuple[int, ...]:
        """Bytes of the tiles of a and b, the scales of a, the tile of d, and the barriers with the parts."""
        *tiles, barriers = super().buffers
        return (*tiles, barriers + PARTS_BYTES)


@dataclass(frozen=True)
class LibraryConfig(GroupedConfig):
    """The config of a kernel that can add the product to what d holds: `accumulate`."""

    accumulate: bool = False

    @property
    def stored_by_threads(self) -> bool:
        """Whether threads store d from registers, where TMA could."""
        return self.out_fp32 or self.accumulate


def launch(a: Quantized, b: Quantized, d: torch.Tensor, product: Product, config: GroupedConfig) -> Launch:
    """Describe one dense product, as `Stage.launch`."""
    return launch_dense(a.data, a.scale, b.data, b.scale, d, config)


def launch_dense(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    config: GroupedConfig,
) -> Launch:
    """Describe d (m, n) = a (m, k) @ b (n, k).T.

    Args:
        sfa: (m, ceil(k / 128)), M-major as `layout.to_m_major` makes it; others are laid out first.
        sfb: (ceil(n / 128), ceil(k / 128)), row-major.
    """
    tiles = ceil_div(d.shape[0], config.block_m)
    return _launch(a, to_m_major(sfa).T, b[None], sfb[None], d, None, config, DENSE, tiles)


def launch_contiguous(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    index: torch.Tensor,
    config: GroupedConfig,
    *,
    alignment: int = BLOCK,
    zero_padding: bool = True,
) -> Launch:
    """Describe the product of each row of a (m, k) and its group's b (groups, n, k), into d (m, n).

    The layout is CONTIGUOUS or PREFIX_SUMS, as the config says.

    Args:
        sfa: (m, ceil(k / 128)), M-major as `layout.to_m_major` makes it; others are laid out first.
        sfb: (groups, ceil(n / 128), ceil(k / 128)), each group's row-major.
        index: int32. CONTIGUOUS: (m,), each row's group. PREFIX_SUMS: (groups,), each group's end.
        alignment: groups start at multiples of it, with PREFIX_SUMS. Ids say themselves where groups start.
        zero_padding: True writes padding as zeros, False leaves it as it is.
    """
    tiles, layout, span = ceil_div(d.shape[0], config.block_m), CONTIGUOUS, 1
    if config.layout == PREFIX_SUMS:
        tiles += b.shape[0] + 1  # each group and the last padding may begin a tile
        layout, span = PREFIX_SUMS, alignment
    return _launch(a, to_m_major(sfa).T, b, sfb, d, index, config, layout, tiles, span, zero_padding)


def launch_masked(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    index: torch.Tensor,
    config: GroupedConfig,
) -> Launch:
    """Describe the product of the first index[g] rows of each group of a (groups, t, k) and its b.

    b (groups, n, k), d (groups, t, n).

    Args:
        sfa: (groups, t, ceil(k / 128)), each group's M-major as `layout.to_m_major` makes it; others are laid
            out first.
        sfb: (groups, ceil(n / 128), ceil(k / 128)), each group's row-major.
        index: int32 (groups,), each group's count.
    """
    groups, t = a.shape[:2]
    tiles = groups * ceil_div(t, config.block_m)
    return _launch(_merged(a), _side_by_side(sfa), b, sfb, _merged(d), index, config, MASKED, tiles, t)


def dependent(launch: Launch, early_weights: bool) -> Launch:
    """Return the launch of a library's kernel that may begin while the kernel before it still runs.

    The kernel waits for that one's end before it touches any memory. With `early_weights` it does not wait to
    load the first weights of a DENSE product; other layouts read the index first.
    """
    args = (*launch.args[:EARLY], int(early_weights), *launch.args[EARLY + 1 :])
    return replace(launch, args=args, dependent=True)


class Forms(NamedTuple):
    """The forms of a dense launch's tensor maps, each (box, swizzle) of a `TensorMap`, without its tensors.

    Attributes:
        blocks: k-blocks that a box of a holds, as `GroupedConfig.copied_blocks`.
        a, sfa, d: of the map of a, of its scales, of d. None for a d that TMA does not write.
    """

    blocks: int
    a: tuple[tuple[int, ...], int]
    sfa: tuple[tuple[int, ...], int]
    d: tuple[tuple[int, ...], int] | None


def forms(launch: Launch) -> Forms:
    """Return what `refit` needs to know of a dense launch. It keeps no tensor of the launch alive."""
    maps = [launch.args[place] for place in (A_MAP, SFA_MAP, D_MAP)]
    a, sfa, d = ((each.box, each.swizzle) for each in maps)  # type: ignore[attr-defined]
    blocks = a[0][0] if len(a[0]) == 3 else 0
    # where d is not written by TMA, a's map stands for its own
    return Forms(blocks, a, sfa, None if maps[2] is maps[0] else d)


def refit(forms: Forms, a: torch.Tensor, sfa: torch.Tensor, d: torch.Tensor) -> dict[int, object]:
    """Return the arguments, by their place, that a dense launch gets for other rows; all others stay.

    So does the grid, as long as the number of tiles stays.

    Args:
        forms: of the launch.
        a: (m, k), of at least two rows: a single row may have any stride, which TMA might not take.
        sfa: (m, ceil(k / 128)), M-major.
        d: (m, n), with the row stride of the launch's own d. Both begin at multiples of 16 bytes.
    """
    a_map, sfa_map = TensorMap(_blocks(a, forms.blocks), *forms.a), TensorMap(sfa.T, *forms.sfa)
    d_map = a_map if forms.d is None else TensorMap(d, *forms.d)
    return {A_MAP: a_map, SFA_MAP: sfa_map, D_MAP: d_map, D: d, M: a.shape[0]}


def _launch(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    index: torch.Tensor | None,
    config: GroupedConfig,
    layout: Layout,
    tiles_m: int,
    span: int = 1,
    zero_padding: bool = True,
) -> Launch:
    """Describe a launch of any layout, under a config that is legal for it.

    Args:
        a: (m, k), the rows of all groups.
        sfa: (rows of scales, m), as TMA reads them; MASKED: (rows of scales of all groups, t).
        b: (groups, n, k).
        sfb: (groups, ceil(n / 128), ceil(k / 128)).
        d: (m, n).
        index: ids, ends or counts; None when DENSE.
        tiles_m: rows of tiles, at most.
        span: PREFIX_SUMS: groups begin at multiples of it. MASKED: rows of each buffer. Else unused.
        zero_padding: whether padding is written as zeros.
    """
    (m, k), (groups, n, _) = a.shape, b.shape
    # `checks.check_data` has found the same for a call of the library.
    for name, rows in (("a", m), ("b", groups * n), ("sfa", groups * ceil_div(k, BLOCK))):
        if rows > SIZE_LIMIT:
            raise ValueError(f"{name}: expected at most 2**30 rows of all groups together, got {rows}")
    if config.layout != layout:
        raise ValueError(f"config.layout: expected {layout:d}, that of the call, got {config.layout:d}")

    width, size, ldd = panel(config.block_n), d.element_size(), d.stride(0)
    # TMA writes whole 16 bytes, and would write more than n columns of a wider d
    aligned = (ldd * size | n * size | d.data_ptr()) % 16 == 0
    by_tma = aligned and not config.stored_by_threads
    blocks = config.copied_blocks
    box = (blocks,) if blocks else ()
    a_map = TensorMap(_blocks(_merged(a[None]), blocks), (*box, config.block_m, BLOCK), swizzle=128)
    arguments = {
        "a_map": a_map,
        "b_map": TensorMap(_blocks(_merged(b), blocks), (*box, config.block_n, BLOCK), swizzle=128),
        "sfa_map": TensorMap(sfa, (max(blocks, 1), config.block_m)),
        # where d is not written by TMA, the kernel never looks at its map
        "d_map": TensorMap(d, (config.rows, width), swizzle=2 * width) if by_tma else a_map,
        "d": d,
        "sfb": sfb,
        "index": sfb if index is None else index,  # a dense kernel never looks at it
        "span": span,
        "zero_padding": int(zero_padding),
        "m": m,
        "n": n,
        "k": k,
        "groups": groups,
        "ld_sfb": c_int64(sfb.stride(1)),
        "group_sfb": c_int64(sfb.stride(0)),
        "ldd": c_int64(ldd),
        "aligned": int(aligned),
        "early": 0,
    }
    parameters = PARAMETERS if isinstance(config, LibraryConfig) else PARAMETERS[:EARLY]

    # Elsewhere than in a DENSE product the number of tiles is known on the device alone.
    tiles, most = tiles_m * ceil_div(n, config.block_n), ctas(config.ctas, d.device)
    count = _even(tiles, most) if layout == DENSE else most
    return Launch(
        grid=(min(count, tiles), 1, 1),
        block=(config.threads, 1, 1),
        args=tuple(arguments[name] for name in parameters),
        shared=config.shared_bytes,
    )


def _even(tiles: int, most: int) -> int:
    """Return how many CTAs share the tiles, `most` or a few less.

    Where all of them then have equally many tiles, an H100 is 1 to 2 % faster.
    """
    rounds = ceil_div(tiles, most)
    even = ceil_div(tiles, rounds)
    return even if rounds <= 8 and 16 * even >= 15 * most else most


def _merged(x: torch.Tensor) -> torch.Tensor:
    """View (groups, rows, columns) as (groups * rows, columns), which a tensor map can describe.

    ValueError where the strides do not allow it.
    """
    groups, count, columns = x.shape
    if groups > 1 and count > 1 and x.stride(0) != count * x.stride(1):
        raise ValueError(
            f"expected groups that follow each other, {count} rows of {x.stride(1)} elements each, "
            f"got strides {tuple(x.stride())}"
        )
    # a single row may have any stride
    pitch = x.stride(1) if count > 1 else x.stride(0) if groups > 1 else columns
    return x.as_strided((groups * count, columns), (pitch, 1))


def _blocks(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """View (rows, k) as (k / 128, rows, 128), so that a box can hold several k-blocks. 0 blocks: x itself."""
    if not blocks:
        return x
    rows, k = x.shape
    return x.as_strided((k // BLOCK, rows, BLOCK), (BLOCK, x.stride(0), 1))


def _side_by_side(sfa: torch.Tensor) -> torch.Tensor:
    """View scales (groups, t, columns) as (groups * columns, t), whose rows TMA can read."""
    groups, t, columns = sfa.shape
    sfa = to_m_major(sfa)
    return sfa.as_strided((groups * columns, t), (sfa.stride(2), 1))
