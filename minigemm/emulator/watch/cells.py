"""The arrays of the shadow, and its cells as Python reads them.

The bits are described in translate/shadow.py. Native code checks and stamps the accesses of threads in the
same arrays.
"""

from __future__ import annotations

import numpy as np

from .. import context as c
from ..translate import shadow as s

__all__ = [
    "SEVERAL_LANES",
    "Shadow",
    "column_of",
    "generic",
    "lane_of",
    "late_writes",
    "unwritten",
    "write_cell",
    "writers",
]

_WHOLE = s.MARK_BYTES.mask | c.MARK_READ  # in a read cell: an ordinary read of all four bytes
# In a write cell: all four bytes have been written, by the last write too.
_EVERY_BYTE = s.CELL_BYTES_EVER.mask | s.CELL_BYTES_LAST.mask
SEVERAL_LANES = s.MARK_LANE.mask  # in a read cell, instead of a lane; also the mask of the lane
_BELOW_CLOCK = s.MARK_BELOW_CLOCK.mask
# The shifts and masks of a write cell, as plain numbers: they are needed for every access.
_COLUMN, _COLUMN_LOW = s.CELL_COLUMN.shift, s.CELL_COLUMN.low
_LANE, _LANE_LOW = s.CELL_LANE.shift, s.CELL_LANE.low
_EVER, _EVER_LOW = s.CELL_BYTES_EVER.shift, s.CELL_BYTES_EVER.low


def column_of(cell: int) -> int:
    return cell >> _COLUMN & _COLUMN_LOW


def lane_of(cell: int) -> int:
    return cell >> _LANE & _LANE_LOW


def write_cell(clock: int, column: int, lane: int = 0, flags: int = c.CELL_GENERIC) -> int:
    """Return the cell of a write of all four bytes, by default an ordinary one."""
    return clock | column << _COLUMN | lane << _LANE | flags | _EVERY_BYTE


def writers(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the column and the clock of the write in each cell."""
    column = (cells >> np.uint64(_COLUMN)) & np.uint64(_COLUMN_LOW)
    return column.astype(np.int64), cells.astype(np.uint32)


def late_writes(cells: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the mask of writes that this row of clocks does not cover."""
    column, clock = writers(cells)
    late: np.ndarray = clock > row[column]
    return late


def unwritten(cells: np.ndarray) -> np.ndarray:
    """Return the mask of cells with a byte that nobody has ever written."""
    mask: np.ndarray = (cells >> np.uint64(_EVER)) & np.uint64(_EVER_LOW) != _EVER_LOW
    return mask


def generic(cells: np.ndarray) -> np.ndarray:
    """Return the mask of writes by ordinary stores; the others are asynchronous copies."""
    mask: np.ndarray = (cells & np.uint64(c.CELL_GENERIC)) != 0
    return mask


class Shadow:
    """The cells of all words. `words` is a slice or an array of indices; a mask has an entry for each.

    Attributes:
        cells: uint64 (words), the last ordinary or asynchronous write.
        sites: uint32 (words, 2), the instructions that wrote and that read the word last. A strong write
            counts as a read here.
        reads: uint32 (words, columns), the last read by each column, or its last strong write.
    """

    def __init__(self, words: int, columns: int) -> None:
        self.cells = np.zeros(words, np.uint64)
        self.sites = np.zeros((words, 2), np.uint32)
        self.reads = np.zeros((words, columns), np.uint32)
        self.used = False  # zeros that nobody has touched cost no memory: with many CTAs the arrays are large

    def clear(self) -> None:
        """Forget all accesses."""
        if self.used:
            self.cells[:] = 0
            self.reads[:] = 0
        self.used = True

    def late_reads(self, words: np.ndarray | slice, row: np.ndarray) -> np.ndarray:
        """Return (words, columns): the last reads that this row of clocks does not cover."""
        late: np.ndarray = self.reads[words] > (row[: self.reads.shape[1]] | _BELOW_CLOCK)
        return late

    def late_strong_writes(
        self, words: np.ndarray | slice, cells: np.ndarray, row: np.ndarray
    ) -> np.ndarray | None:
        """Return for each word a column of a strong write that this row of clocks does not cover, or -1.

        None stands for no strong write at all. `cells` are the write cells of the words.
        """
        if not (cells & np.uint64(c.CELL_ATOMIC)).any():
            return None
        found = ((self.reads[words] & c.MARK_WRITE) != 0) & self.late_reads(words, row)
        return np.where(found.any(1), found.argmax(1), -1)

    def strong_write(self, word: int, column: int) -> int:
        """Return the strong write of a column in the form of an ordinary write's cell."""
        mark = int(self.reads[word, column])
        lane = mark & _LANE_LOW
        return mark & ~_BELOW_CLOCK | column << _COLUMN | lane << _LANE | c.CELL_GENERIC | c.CELL_ATOMIC

    def wrote(self, words: np.ndarray | slice, cell: int, site: int) -> None:
        """Stamp a write."""
        self.cells[words] = np.uint64(cell)
        self.sites[words, 0] = site

    def read(self, words: np.ndarray | slice, column: int, clock: int, site: int, lane: int = 0) -> None:
        """Stamp an ordinary read of whole words."""
        self.reads[words, column] = np.uint32(clock | _WHOLE | lane)
        self.sites[words, 1] = site

    def postpone(self, warp: int, old: int, new: int, lanes: np.ndarray) -> None:
        """Give what a warp's other lanes did at the clock `old` the clock `new`."""
        read = self.reads[:, warp]
        recent = np.flatnonzero(read >= old)
        others = recent[~np.isin(read[recent] & SEVERAL_LANES, lanes)]
        self.reads[others, warp] += np.uint32(new - old)

        recent = np.flatnonzero(self.cells.astype(np.uint32) == old)
        written = recent[writers(self.cells[recent])[0] == warp]
        others = written[~np.isin(self.cells[written] >> np.uint64(_LANE) & np.uint64(_LANE_LOW), lanes)]
        self.cells[others] += np.uint64(new - old)
