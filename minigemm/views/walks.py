"""Probes of scheduler.cuh: which CTA takes which tile, and when; and what the lanes of a warp tell each other while they look for it.

Small kernels (tiles.cu, groups.cu) walk as the persistent stages do, on the emulator, and write down what they see. So a picture of the order is one of
the scheduler itself: nothing here knows the formula.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import types
from ..compiler import jit
from ..hopper import SMS
from ..kernels import s10_grouped
from ..layout import ceil_div
from ..runtime import emulated
from ..types import Launch

__all__ = ["Batch", "Part", "Search", "group_parts", "group_search", "tile_order"]

FOLDER = Path(__file__).parent
WARP = 32
UP, FROM, BALLOT, FOUND = range(4)  # events, as in groups.cu
EVENT = 2 + 2 * WARP  # words
NOTHING = -(2**31)  # where the probe wrote no part


@dataclass(frozen=True)
class Part:
    """What a CTA computes at one time, as in scheduler.cuh; group -1: padding."""

    group: int
    row0: int
    column0: int
    first: int
    middle: int
    last: int


@dataclass(frozen=True)
class Batch:
    """32 groups that a warp looked at together. `tiles`: of each lane's group. `sums`: after each step of the prefix sum, the last one with all tiles of
    the groups before `group0`. `reached`: the lanes that voted for "the number lies before my sum"."""

    group0: int
    tiles: tuple[int, ...]
    sums: dict[int, tuple[int, ...]]
    before: int
    reached: tuple[bool, ...]

    @property
    def up_to(self) -> tuple[int, ...]:
        """The tiles of all groups up to each lane's, this one's too."""
        return tuple(self.before + x for x in self.sums[max(self.sums)])


@dataclass(frozen=True)
class Search:
    """How a CTA found the tile of this number: the batches that it looked at, and what it got, None at the end of the walk."""

    number: int
    batches: tuple[Batch, ...]
    part: Part | None


def tile_order(
    m: int, n: int, config: types.Config, ctas: int = SMS, scheduler: str | os.PathLike[str] | None = None
) -> list[list[tuple[int, int]]]:
    """(row, column) of the tiles of d (m, n), in the order in which each CTA takes them.

    Args:
        config: of s08_persistent: its tile and its raster order.
        ctas: how many there are.
        scheduler: the path of your own scheduler.cuh.

    Raises ValueError for sizes below 1, a file that is none, and CompileError (a ValueError) where it does not compile.
    """
    for name, size in (("m", m), ("n", n), ("ctas", ctas)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")
    constants = config.constants()
    count = ceil_div(m, constants["BLOCK_M"]) * ceil_div(n, constants["BLOCK_N"])
    found = torch.full((ctas, count // ctas + 2, 2), -1, dtype=torch.int32)
    with _beside(scheduler) as folder:
        kernel = jit.build(folder / "tiles.cu", config, name="probe_tiles", kernel="probe_tiles")
        emulated.launch(kernel, Launch((ctas, 1, 1), (1, 1, 1), (found, m, n, found.shape[1])))
    return [[(i, j) for i, j in cta if i >= 0] for cta in found.tolist()]


def group_parts(
    layout: int,
    index: Sequence[int],
    rows: int,
    n: int,
    config: s10_grouped.Config,
    groups: int,
    span: int = 1,
    zero_padding: bool = True,
    ctas: int = SMS,
) -> list[list[Part]]:
    """The parts of each CTA in its order.

    Args:
        layout, index: of s10_grouped: CONTIGUOUS with the group of each row, PREFIX_SUMS with the ends, MASKED with the counts of the groups.
        rows: of d in all, with MASKED those of all groups together.
        config: of s10_grouped.
        span: with PREFIX_SUMS what groups start at multiples of, with MASKED the rows of one group's buffer.
    """
    return [
        [Part(*part) for part in cta]
        for cta in _walk(layout, index, rows, n, config, groups, span, zero_padding, ctas, 0, 0)[0]
    ]


def group_search(
    layout: int,
    index: Sequence[int],
    rows: int,
    n: int,
    config: s10_grouped.Config,
    groups: int,
    span: int = 1,
    ctas: int = SMS,
    cta: int = 0,
) -> list[Search]:
    """What one CTA's warp did to find each of its tiles, from the values that its shuffles and ballots carried. Arguments as for `group_parts`."""
    if layout not in (s10_grouped.PREFIX_SUMS, s10_grouped.MASKED):
        raise ValueError("layout: expected PREFIX_SUMS or MASKED, where groups are searched for")
    if not 0 <= cta < ctas:
        raise ValueError(f"cta: expected one of {ctas}, got {cta}")
    events = (
        12
        * (len(index) + 2)
        * ceil_div(rows, 1 if rows < 64 else 64)
        * ceil_div(n, config.constants()["BLOCK_N"])
    )
    parts, log = _walk(layout, index, rows, n, config, groups, span, True, ctas, cta, min(events, 4096))
    searches: list[Search] = []
    batches: list[Batch] = []
    tiles: tuple[int, ...] = ()
    sums: dict[int, tuple[int, ...]] = {}
    group0, before = 0, 0
    for kind, operand, gave, got in log:
        if kind == UP:
            tiles = gave if operand == 1 else tiles
            sums = {} if operand == 1 else sums
            sums[operand] = tuple(
                x + (y if lane >= operand else 0) for lane, (x, y) in enumerate(zip(gave, got, strict=True))
            )
        elif kind == BALLOT and sums:
            batches.append(Batch(group0, tiles, sums, before, tuple(map(bool, gave))))
            if not any(gave):  # on to the next 32
                group0, before = group0 + WARP, before + sums[16][-1]
            sums = {}
        elif kind == FOUND:
            searches.append(Search(cta + len(searches) * ctas, tuple(batches), Part(*parts[cta][operand])))
            batches = []
    return [*searches, *([Search(cta + len(searches) * ctas, tuple(batches), None)] if batches else [])]


Log = list[tuple[int, int, tuple[int, ...], tuple[int, ...]]]


def _walk(
    layout: int,
    index: Sequence[int],
    rows: int,
    n: int,
    config: s10_grouped.Config,
    groups: int,
    span: int,
    zero_padding: bool,
    ctas: int,
    watched: int,
    events: int,
) -> tuple[list[list[list[int]]], Log]:
    for name, size in (("rows", rows), ("n", n), ("groups", groups), ("span", span), ("ctas", ctas)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")
    wanted = rows if layout == s10_grouped.CONTIGUOUS else groups
    if len(index) != wanted:
        raise ValueError(f"index: expected {wanted} numbers, got {len(index)}")
    config = replace(config, layout=layout)
    constants = config.constants()
    down = (
        rows
        if layout == s10_grouped.CONTIGUOUS
        else (groups + 1) * (ceil_div(rows, constants["BLOCK_M"]) + 1)
    )
    most = (
        ceil_div(down * ceil_div(n, constants["BLOCK_N"]), 1 if layout == s10_grouped.CONTIGUOUS else ctas)
        + 1
    )
    found = torch.full((ctas, most, 6), NOTHING, dtype=torch.int32)
    log = torch.full((max(events, 1), EVENT), -1, dtype=torch.int32)
    numbers = torch.tensor(list(index), dtype=torch.int32)
    kernel = jit.build(FOLDER / "groups.cu", config, name="probe_groups", kernel="probe_groups")
    arguments = (found, log, events, watched, numbers, rows, n, groups, span, int(zero_padding), most)
    emulated.launch(kernel, Launch((ctas, 1, 1), (WARP, 1, 1), arguments))
    parts = [[part for part in cta if part[0] != NOTHING] for cta in found.tolist()]
    if max(map(len, parts)) == most:  # one more than there can be
        raise RuntimeError("the walk over the groups does not end")
    return parts, [
        (e[0], e[1], tuple(e[2 : 2 + WARP]), tuple(e[2 + WARP :])) for e in log.tolist() if e[0] >= 0
    ]


@contextmanager
def _beside(scheduler: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder with the probe's source, and your scheduler.cuh beside it: there its #include is looked for first."""
    if scheduler is None:
        yield FOLDER
        return
    if not Path(scheduler).is_file():
        raise ValueError(
            f"scheduler: expected the path of a scheduler.cuh, got {os.fspath(scheduler)!r}, which is not a file"
        )
    with tempfile.TemporaryDirectory(prefix="minigemm-") as folder:
        shutil.copy(FOLDER / "tiles.cu", folder)
        shutil.copy(scheduler, Path(folder) / "scheduler.cuh")
        yield Path(folder)
