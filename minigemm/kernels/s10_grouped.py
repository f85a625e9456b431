"""s10: groups: dense, contiguous and masked products under one scheduler; the library's kernel.

Idea: the experts of a layer are products that each have their own rows of a and their own b, and how many rows is known on the device alone. One launch
computes them all: a warp of the producer walks ahead, finds the CTA's next tile by counting the tiles of 32 groups at once, and tells the warps that load and
those that compute what part of d comes next; they know no layout. A consumer writes the rows of a group and no others: by TMA where all of its own are the
group's, by threads where the group ends among them. One that has none of the group's rows multiplies nothing.

Layouts, of d and of a:
- DENSE: one product. a (m, k), b (n, k), d (m, n).
- CONTIGUOUS: a (m, k), b (groups, n, k), d (m, n), and an int32 id for each row: its group. Rows of any other id (-1) are padding: zeros in d. Ids come in
  any order, and groups begin and end anywhere; a tile that meets several groups is computed once for each.
- PREFIX_SUMS: the same with an int32 for each group: its start + its rows. It starts at the first multiple of `alignment` that is not below the entry
  before. What lies between and behind the groups is padding.
- MASKED: a (groups, t, k), b (groups, n, k), d (groups, t, n), and an int32 for each group: how many of its t rows count. The others may hold anything,
  in a and d, and stay what they are.
Numbers on the device that make no sense (ids out of range, counts below 0 or over t, sums that fall or exceed m) are taken for the nearest that do:
nothing is read or written outside the tensors.

The functions, for a caller that has checked its tensors: `dense`, `grouped_contiguous`, `grouped_masked` launch into a d that is there, on the current
stream; `launch_dense`, `launch_contiguous`, `launch_masked` describe the same launch, for a config with their layout; `gemm` is the stage as a function,
like those before it. None reads the device's numbers on the host.

Shapes, scales and bits: as s07, for each group: scales of a (m, ceil(k / 128)) or (groups, t, ceil(k / 128)), those of b (groups, ceil(n / 128),
ceil(k / 128)). d BF16 or FP32; with `accumulate` the product is added to what d holds, in FP32, and rounded once.
Legal configs: as s08. m, n, k, the number of groups and `ctas` are arguments of the launch: they compile nothing anew. The layout is compiled in, because a
kernel that knows it starts sooner; it is the call that decides it.
Errors: see `Stage.gemm`; the functions below take plain tensors, which their caller (`minigemm.api`) has checked.
Sources: DeepSeek-V3 Technical Report (arXiv 2412.19437), section 3; PTX ISA, "shfl.sync", "vote.sync".
"""

from __future__ import annotations

import os
from ctypes import c_int64
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import runtime
from ..checks import SIZE_LIMIT
from ..compiler import jit
from ..layout import ceil_div, round_up, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Launch, Legality, Problem, TensorMap
from .legality import check_promoted, check_schedule
from .stage import Stage, ctas, quickest
from .tile import PromotedConfig, panel, wgmma

TITLE = "grouped"
IDEA = "dense, contiguous and masked groups under one scheduler"
REGISTERS = {
    1: (64, 248),
    2: (40, 232),
    3: (32, 160),
    4: (32, 112),
}  # of a thread of the producer and of a consumer, by the number of consumers in all
DENSE, CONTIGUOUS, PREFIX_SUMS, MASKED = range(4)  # layouts, as in scheduler.cuh
PARTS_BYTES = 4 * (16 + 32)  # of Parts, as in scheduler.cuh


@dataclass(frozen=True)
class Config(PromotedConfig):
    """Tile of a CTA in elements, 128 along k; `stages` of them make the ring. Each of the `consumers` computes its share of the rows. `out_fp32`: what d is.

    `splits`: so many times as many consumers, which take turns along k for the same rows; their sums are added up in one order, another one for each number.
    `ctas`: how many there are, 0 for one an SM. `raster`: columns of tiles that are computed before the next ones; rows of tiles with `raster_m`.
    `accumulate`: d += the product. `layout`: DENSE, CONTIGUOUS, PREFIX_SUMS or MASKED.
    """

    block_m: int = 256
    block_n: int = 128
    stages: int = 3
    consumers: int = 2
    splits: int = 1
    out_fp32: bool = False
    ctas: int = 0
    raster: int = 16
    raster_m: bool = False
    accumulate: bool = False
    layout: int = DENSE

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return (self.consumers * self.splits + 1) * 128

    @property
    def rows(self) -> int:
        """Rows that one consumer computes."""
        return self.block_m // self.consumers

    @property
    def accumulators(self) -> int:
        """Registers for sums of a consumer's thread, the partial ones of 64 rows too."""
        return (self.rows // 64 + 1) * self.block_n // 2

    @property
    def _sums(self) -> int:
        """Rows of 128 sums."""
        return max(self.consumers, (self.splits - 1) * self.block_m // 64 * self.block_n // 2)

    @property
    def shared_bytes(self) -> int:
        """The tiles of a and b, the scales of a, the tile of d, and barriers, parts and sums of the splits, each at a multiple of 1024 bytes."""
        a, b, sfa = (
            self.stages * size for size in (self.block_m * BLOCK, self.block_n * BLOCK, self.block_m * 4)
        )
        sizes = (
            a,
            b,
            sfa,
            self.block_m * self.block_n * 2,
            self.stages * 16 + PARTS_BYTES + self.consumers * 16 + self._sums * 512,
        )
        return sum(round_up(size, 1024) for size in sizes)

    def constants(self) -> dict[str, int]:
        """The fields but for `ctas`, which the launch decides; BLOCK_K; PANEL, the columns of d that are stored at once; the registers of both roles;
        SHARED_BYTES, which the kernel asserts."""
        producer, consumer = REGISTERS[self.consumers * self.splits]
        fields = {name: value for name, value in super().constants().items() if name != "CTAS"}
        return {
            **fields, "BLOCK_K": BLOCK, "PANEL": panel(self.block_n), "PRODUCER_REGISTERS": producer, "CONSUMER_REGISTERS": consumer,
            "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip

    def declarations(self) -> str:
        """The instruction."""
        return wgmma(self.block_n)


def is_legal(config: Config, problem: Problem) -> Legality:
    """Whether this config can run this problem, and if not, why. For groups, m is the rows of a, groups * t if masked."""
    if config.consumers not in (1, 2, 3):
        return Legality(f"consumers must be 1, 2 or 3, got {config.consumers}")
    if config.splits not in (1, 2, 4) or config.consumers * config.splits > 4:
        return Legality(
            f"splits must be 1, 2 or 4, and splits * consumers at most 4, got {config.splits} with {config.consumers} consumers"
        )
    if config.stages % config.splits:
        return Legality(
            f"stages must be a multiple of splits = {config.splits}, so that each slot belongs to one split, got {config.stages}"
        )
    if config.layout not in (DENSE, CONTIGUOUS, PREFIX_SUMS, MASKED):
        return Legality(f"layout must be one of 0 to 3, DENSE to MASKED, got {config.layout}")
    if config.stages < 2:
        return Legality(
            f"stages must be at least 2, one that is filled while another is read, got {config.stages}"
        )
    return Legality(
        check_promoted(config, REGISTERS[config.consumers * config.splits][1])
        or check_schedule(problem.m, problem.n, config.block_m, config.block_n, config.ctas, config.raster)
    )


def default_config(problem: Problem) -> Config:
    """What takes 132 SMs the least time, of a few: 256 x 128 outputs where there are many, 64 x 64 where there are few."""
    choices = (
        Config(),
        Config(192, 128, 4, 3),
        Config(128, 128, 5),
        Config(64, 128, 6, 1),
        Config(64, 64, 8, 1),
    )
    return quickest(choices, problem)


def grouped_config(m: int, n: int, k: int, groups: int) -> Config:
    """The same for groups of about m / groups rows each: tiles no higher than that asks for."""
    rows = ceil_div(m, max(groups, 1))
    choices = tuple(
        c for c in (Config(128, 128, 5), Config(64, 128, 6, 1)) if c.block_m <= max(64, round_up(rows, 64))
    )
    return quickest(choices, Problem(m, n, k))


def launch(a: Quantized, b: Quantized, d: torch.Tensor, problem: Problem, config: Config) -> Launch:
    """One dense product."""
    return launch_dense(a.data, a.scale, b.data, b.scale, d, config)


def launch_dense(
    a: torch.Tensor, sfa: torch.Tensor, b: torch.Tensor, sfb: torch.Tensor, d: torch.Tensor, config: Config
) -> Launch:
    """d (m, n) = a (m, k) @ b (n, k).T; sfa (m, ceil(k / 128)), sfb (ceil(n / 128), ceil(k / 128)) row-major."""
    tiles = ceil_div(d.shape[0], config.block_m)
    return _launch(a, to_m_major(sfa).T, b[None], sfb[None], d, None, config, DENSE, tiles)


def launch_contiguous(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    config: Config,
    *,
    alignment: int = BLOCK,
    zero_padding: bool = True,
) -> Launch:
    """Rows of d (m, n) = those of a (m, k), each times the b (groups, n, k) of its group. The config's layout is CONTIGUOUS or PREFIX_SUMS.

    Args:
        sfa: (m, ceil(k / 128)), M-major as `layout.to_m_major` makes it; others are laid out first.
        sfb: (groups, ceil(n / 128), ceil(k / 128)), each group's row-major.
        grouped_layout: int32 (m,), the ids, or with PREFIX_SUMS (groups,), the ends.
        alignment: what groups start at multiples of, with PREFIX_SUMS. Ids say themselves where groups start.
        zero_padding: whether padding is written as zeros; otherwise it stays what it is.
    """
    tiles, layout, span = ceil_div(d.shape[0], config.block_m), CONTIGUOUS, 1
    if config.layout == PREFIX_SUMS:
        tiles, layout, span = (
            tiles + b.shape[0] + 1,
            PREFIX_SUMS,
            alignment,
        )  # each group and the last padding may begin a tile
    return _launch(a, to_m_major(sfa).T, b, sfb, d, grouped_layout, config, layout, tiles, span, zero_padding)


def launch_masked(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    counts: torch.Tensor,
    config: Config,
) -> Launch:
    """The first counts[g] rows of d (groups, t, n), for each group g, = those of a (groups, t, k) times b (groups, n, k).

    Args:
        sfa: (groups, t, ceil(k / 128)), each group's M-major as `layout.to_m_major` makes it; others are laid out first.
        sfb: (groups, ceil(n / 128), ceil(k / 128)), each group's row-major.
        counts: int32 (groups,).
    """
    groups, t = a.shape[:2]
    tiles = groups * ceil_div(t, config.block_m)
    return _launch(_merged(a), _side_by_side(sfa), b, sfb, _merged(d), counts, config, MASKED, tiles, t)


def dense(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    config: Config | None = None,
    *,
    accumulate: bool = False,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Launch what `launch_dense` describes. `accumulate`: d += the product."""
    config = config or default_config(Problem(d.shape[0], d.shape[1], a.shape[1]))
    if d.numel() and a.shape[1]:
        config = _suited(config, d, accumulate, DENSE)
        _run(launch_dense(a, sfa, b, sfb, d, config), config, d.device, source)
    elif not accumulate:
        d.zero_()


def grouped_contiguous(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    grouped_layout: torch.Tensor,
    config: Config | None = None,
    *,
    prefix_sums: bool = False,
    alignment: int = BLOCK,
    zero_padding: bool = True,
    accumulate: bool = False,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Launch what `launch_contiguous` describes. `accumulate`: d += the product, padding stays what it is. A k of zero gives zeros everywhere."""
    groups, n, k = b.shape
    config = config or grouped_config(d.shape[0], n, k, groups)
    if d.numel() and k and groups:
        config = _suited(config, d, accumulate, PREFIX_SUMS if prefix_sums else CONTIGUOUS)
        described = launch_contiguous(
            a,
            sfa,
            b,
            sfb,
            d,
            grouped_layout,
            config,
            alignment=alignment,
            zero_padding=zero_padding and not accumulate,
        )
        _run(described, config, d.device, source)
    elif not accumulate:
        d.zero_()


def grouped_masked(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    counts: torch.Tensor,
    config: Config | None = None,
    *,
    accumulate: bool = False,
    source: str | os.PathLike[str] | None = None,
) -> None:
    """Launch what `launch_masked` describes. `accumulate`: d += the product."""
    groups, t, k = a.shape
    config = config or grouped_config(groups * t, b.shape[1], k, groups)
    if d.numel() and k:
        config = _suited(config, d, accumulate, MASKED)
        _run(launch_masked(a, sfa, b, sfb, d, counts, config), config, d.device, source)
    elif d.numel() and not accumulate:
        d.masked_fill_((torch.arange(t, device=d.device) < counts[:, None])[..., None], 0)


def _suited(config: Config, d: torch.Tensor, accumulate: bool, layout: int) -> Config:
    """The config for such a d, in such a layout."""
    return replace(config, out_fp32=d.dtype == torch.float32, accumulate=accumulate, layout=layout)


def _run(
    described: Launch, config: Config, device: torch.device, source: str | os.PathLike[str] | None
) -> None:
    kernel = jit.build(
        stage.source if source is None else Path(source), config, name=stage.name, kernel=stage.kernel
    )
    machine = runtime.of(device)
    machine.launch(machine.load(kernel, described.shared, device), described)


def _launch(
    a: torch.Tensor,
    sfa: torch.Tensor,
    b: torch.Tensor,
    sfb: torch.Tensor,
    d: torch.Tensor,
    index: torch.Tensor | None,
    config: Config,
    layout: int,
    tiles_m: int,
    span: int = 1,
    zero_padding: bool = True,
) -> Launch:
    """a (m, k), sfa (rows of scales, m) as TMA reads them, b (groups, n, k), d (m, n)."""
    (m, k), (groups, n, _) = a.shape, b.shape
    if max(m, groups * n, groups * ceil_div(k, BLOCK)) > SIZE_LIMIT:
        raise ValueError(
            f"expected at most 2**30 rows of all groups together, got {m} of a and {groups * n} of b"
        )
    if config.layout != layout:
        raise ValueError(f"config.layout: expected {layout}, that of the call, got {config.layout}")
    if not (legal := is_legal(config, Problem(m, n, k))):
        raise ValueError(f"config: {legal.reason}")
    map_a = TensorMap(_merged(a[None]), (config.block_m, BLOCK), swizzle=128)
    map_b = TensorMap(_merged(b), (config.block_n, BLOCK), swizzle=128)
    map_sfa = TensorMap(sfa, (1, config.block_m))
    width, size, ldd = panel(config.block_n), d.element_size(), d.stride(0)
    # TMA writes whole 16 bytes, and would write more than n columns of a wider d
    aligned = (ldd * size | n * size | d.data_ptr()) % 16 == 0
    by_tma = (
        aligned and not config.out_fp32 and not config.accumulate
    )  # where not, the kernel never looks at the last map
    map_d = TensorMap(d, (config.rows, width), swizzle=2 * width) if by_tma else map_a
    tiles, most = tiles_m * ceil_div(n, config.block_n), ctas(config.ctas, d.device)
    return Launch(
        grid=(min(_even(tiles, most) if layout == DENSE else most, tiles), 1, 1),
        block=(config.threads, 1, 1),
        args=(
            map_a, map_b, map_sfa, map_d, d, sfb, d if index is None else index, span, int(zero_padding),
            m, n, k, groups, c_int64(sfb.stride(1)), c_int64(sfb.stride(0)), c_int64(ldd), int(aligned),
        ),
        shared=config.shared_bytes,
    )  # fmt: skip


def _even(tiles: int, most: int) -> int:
    """CTAs for so many tiles, `most` or a few less: where all of them then have equally many tiles, an H100 is 1 to 2 % faster."""
    rounds = ceil_div(tiles, most)
    even = ceil_div(tiles, rounds)
    return even if rounds <= 8 and 16 * even >= 15 * most else most


def _merged(x: torch.Tensor) -> torch.Tensor:
    """(groups, rows, columns) as (groups * rows, columns), which a tensor map can describe. ValueError where the strides do not allow it."""
    groups, count, columns = x.shape
    if groups > 1 and count > 1 and x.stride(0) != count * x.stride(1):
        raise ValueError(
            f"expected groups that follow each other, {count} rows of {x.stride(1)} elements each, got strides {tuple(x.stride())}"
        )
    pitch = (
        x.stride(1) if count > 1 else x.stride(0) if groups > 1 else columns
    )  # a single row may have any stride
    return x.as_strided((groups * count, columns), (pitch, 1))


def _side_by_side(sfa: torch.Tensor) -> torch.Tensor:
    """Scales (groups, t, columns) as (groups * columns, t), the t of a group and a column in a row that TMA can read."""
    groups, t, columns = sfa.shape
    sfa = to_m_major(sfa)
    return sfa.as_strided((groups * columns, t), (sfa.stride(2), 1))


stage = Stage(
    "s10_grouped", TITLE, IDEA, Config, is_legal, default_config, launch,
    granularities=("1x128", "128x128"), out_dtypes=(torch.bfloat16, torch.float32), sums="promoted",
    problem=Problem(64, 2112, 7168),  # a layer of DeepSeek-V3: the latent projections of attention, for 64 tokens
    symbol="s10_grouped_fp8_gemm_nt",  # profilers and benchmarks look for "fp8_gemm"
)  # fmt: skip
gemm = stage.gemm
