"""The walks of scheduler.cuh: the tiles that each CTA takes, in their order, and what the lanes of a warp
tell each other while they look for one.

Small kernels (tiles.cu, groups.cu) walk as the persistent stages do, on the emulator, and write down what
they see. So a picture of the order is a picture of the scheduler itself: nothing here knows the formula.
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
from ..kernels.grouped import GroupedConfig
from ..layout import ceil_div
from ..runtime import emulated
from ..types import Launch, Layout

__all__ = ["Batch", "Part", "Search", "group_parts", "group_search", "tile_order"]

FOLDER = Path(__file__).parent
WARP = 32
UP, FROM, BALLOT, FOUND = range(4)  # events, as in groups.cu
EVENT = 2 + 2 * WARP  # words
NOTHING = -(2**31)  # where the probe wrote no part


@dataclass(frozen=True)
class Part:
    """The rows of a tile that a CTA computes at one time, as in scheduler.cuh; group -1 is padding."""

    group: int
    row0: int
    column0: int
    first: int
    middle: int
    last: int


@dataclass(frozen=True)
class Batch:
    """32 groups that a warp looked at together, one for each lane."""

    group0: int  # the first of them
    tiles: tuple[int, ...]  # of each lane's group
    sums: dict[int, tuple[int, ...]]  # after each step of the prefix sum
    before: int  # tiles of all groups before group0
    reached: tuple[bool, ...]  # the lanes that voted for "the number lies before my sum"

    @property
    def up_to(self) -> tuple[int, ...]:
        """The tiles of all groups up to each lane's, this one included."""
        return tuple(self.before + x for x in self.sums[max(self.sums)])


@dataclass(frozen=True)
class Search:
    """The way of a CTA to the tile of a number."""

    number: int
    batches: tuple[Batch, ...]  # the groups that it looked at
    part: Part | None  # what it got; None at the end of the walk


def tile_order(
    m: int, n: int, config: types.Config, ctas: int = SMS, scheduler: str | os.PathLike[str] | None = None
) -> list[list[tuple[int, int]]]:
    """List the tiles of d (m, n) as (row, column), in the order in which each CTA takes them.

    Args:
        config: of s08_persistent: its tile and its raster order.
        ctas: how many there are.
        scheduler: the path of your own scheduler.cuh.

    Raises ValueError for sizes below 1 and for a path that is no file, and CompileError (a ValueError) where
    the file does not compile.
    """
    for name, size in (("m", m), ("n", n), ("ctas", ctas)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")
    constants = config.constants()
    count = ceil_div(m, constants["BLOCK_M"]) * ceil_div(n, constants["BLOCK_N"])
    found = torch.full((ctas, count // ctas + 2, 2), -1, dtype=torch.int32)
    with _beside(scheduler) as folder:
        kernel = jit.build(folder / "tiles.cu", config, name="probe_tiles", symbol="probe_tiles")
        emulated.launch(kernel, Launch((ctas, 1, 1), (1, 1, 1), (found, m, n, found.shape[1])))
    return [[(i, j) for i, j in cta if i >= 0] for cta in found.tolist()]


def group_parts(
    layout: int,
    index: Sequence[int],
    rows: int,
    n: int,
    config: GroupedConfig,
    groups: int,
    span: int = 1,
    zero_padding: bool = True,
    ctas: int = SMS,
) -> list[list[Part]]:
    """List the parts of each CTA in its order.

    Args:
        layout, index: CONTIGUOUS with the group of each row, PREFIX_SUMS with the ends, or MASKED with the
            counts of the groups.
        rows: the rows of d, with MASKED those of all groups together.
        config: of a grouped stage: its tile and its raster order.
        span: with PREFIX_SUMS groups start at its multiples, with MASKED it is the rows of one group's
            buffer.

    Raises ValueError for sizes below 1, and for an index of another length.
    """
    return _walk(layout, index, rows, n, config, groups, span, zero_padding, ctas)[0]


def group_search(
    layout: int,
    index: Sequence[int],
    rows: int,
    n: int,
    config: GroupedConfig,
    groups: int,
    span: int = 1,
    ctas: int = SMS,
    cta: int = 0,
) -> list[Search]:
    """Tell what one CTA's warp did to find each of its tiles, from the values that its shuffles and ballots
    carried.

    Arguments and errors are those of `group_parts`; raises ValueError also for CONTIGUOUS, and for a cta that
    is not there.
    """
    # A contiguous layout names the group of each row, so nothing is searched there.
    if layout not in (Layout.PREFIX_SUMS, Layout.MASKED):
        raise ValueError("layout: expected PREFIX_SUMS or MASKED, where groups are searched for")
    if not 0 <= cta < ctas:
        raise ValueError(f"cta: expected one of {ctas}, got {cta}")

    # The kernel's log has a fixed size, estimated from the groups and tiles.
    tiles_at_most = ceil_div(rows, 1 if rows < 64 else 64) * ceil_div(n, config.constants()["BLOCK_N"])
    events = min(12 * (len(index) + 2) * tiles_at_most, 4096)
    parts, log = _walk(layout, index, rows, n, config, groups, span, True, ctas, cta, events)

    # A search collects one batch for every 32 groups that the warp looks at.
    searches: list[Search] = []
    batches: list[Batch] = []
    tiles: tuple[int, ...] = ()
    sums: dict[int, tuple[int, ...]] = {}
    group0, before = 0, 0

    # The shuffles of a prefix sum come first, then the ballot over it; a found tile ends the search.
    for kind, operand, gave, got in log:
        if kind == UP:
            if operand == 1:  # the first step of a prefix sum
                tiles, sums = gave, {}
            pairs = enumerate(zip(gave, got, strict=True))
            sums[operand] = tuple(x + y if lane >= operand else x for lane, (x, y) in pairs)
        elif kind == BALLOT and sums:
            batches.append(Batch(group0, tiles, sums, before, tuple(map(bool, gave))))
            if not any(gave):  # on to the next 32
                group0, before = group0 + WARP, before + sums[16][-1]
            sums = {}
        elif kind == FOUND:
            searches.append(Search(cta + len(searches) * ctas, tuple(batches), parts[cta][operand]))
            batches = []

    # Batches after the last tile belong to the search that found no more.
    if batches:
        searches.append(Search(cta + len(searches) * ctas, tuple(batches), None))
    return searches


Log = list[
    tuple[int, int, tuple[int, ...], tuple[int, ...]]
]  # (kind, operand, gave, got), a number for each lane


def _walk(
    layout: int,
    index: Sequence[int],
    rows: int,
    n: int,
    config: GroupedConfig,
    groups: int,
    span: int,
    zero_padding: bool,
    ctas: int,
    watched: int = 0,
    events: int = 0,
) -> tuple[list[list[Part]], Log]:
    """Walk over all parts. Returns each CTA's parts, and the first `events` events of the CTA `watched`."""
    for name, size in (("rows", rows), ("n", n), ("groups", groups), ("span", span), ("ctas", ctas)):
        if size < 1:
            raise ValueError(f"{name}: expected a positive size, got {size}")
    contiguous = layout == Layout.CONTIGUOUS
    wanted = rows if contiguous else groups
    if len(index) != wanted:
        raise ValueError(f"index: expected {wanted} numbers, got {len(index)}")

    # A CTA has fewer than `most` parts: a walk that reaches `most` does not end.
    config = replace(config, layout=layout)
    constants = config.constants()
    down = rows if contiguous else (groups + 1) * (ceil_div(rows, constants["BLOCK_M"]) + 1)
    most = ceil_div(down * ceil_div(n, constants["BLOCK_N"]), 1 if contiguous else ctas) + 1

    found = torch.full((ctas, most, 6), NOTHING, dtype=torch.int32)
    log = torch.full((max(events, 1), EVENT), -1, dtype=torch.int32)
    numbers = torch.tensor(list(index), dtype=torch.int32)
    kernel = jit.build(FOLDER / "groups.cu", config, name="probe_groups", symbol="probe_groups")
    arguments = (found, log, events, watched, numbers, rows, n, groups, span, int(zero_padding), most)
    emulated.launch(kernel, Launch((ctas, 1, 1), (WARP, 1, 1), arguments))
    parts = [[Part(*part) for part in cta if part[0] != NOTHING] for cta in found.tolist()]
    if max(map(len, parts)) == most:
        raise RuntimeError("the walk over the groups does not end")
    told = [event for event in log.tolist() if event[0] >= 0]
    return parts, [(e[0], e[1], tuple(e[2 : 2 + WARP]), tuple(e[2 + WARP :])) for e in told]


@contextmanager
def _beside(scheduler: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder with the probe's source, and your scheduler.cuh beside it: there its #include is looked for
    first."""
    if scheduler is None:
        yield FOLDER
        return
    if not Path(scheduler).is_file():
        got = f"{os.fspath(scheduler)!r}, which is not a file"
        raise ValueError(f"scheduler: expected the path of a scheduler.cuh, got {got}")
    with tempfile.TemporaryDirectory(prefix="minigemm-") as folder:
        shutil.copy(FOLDER / "tiles.cu", folder)
        shutil.copy(scheduler, Path(folder) / "scheduler.cuh")
        yield Path(folder)
