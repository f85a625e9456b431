"""The shadow of shared memory: who wrote and who read each word, and is this access ordered after them?

A word has 4 bytes. How it works (Flanagan and Freund, FastTrack, PLDI 2009; the code is in shadow.ll):

1. Every warp, mbarrier and asynchronous reader is a *column* with a clock. A thread's *stamp* is the clock of
   its warp, the warp's column and the lane. A thread has a vector clock: for each column the clock up to
   which it knows what that column did. An access is ordered after another when the thread's vector clock has
   reached that access's clock in that access's column. Two lanes of one warp are told apart inside one clock
   interval by the lane.
2. A *write cell* (i64) for each word holds the stamp of the last ordinary write, which bytes it wrote, which
   bytes were ever written, flags, and the version of the word as a flag. The fields are CELL_* below.
3. A *read cell*, or mark (u32), for each word and column holds the last clock at which the column read it,
   the bytes, the kinds of access and the lane: MARK_* below.
4. A load looks at the write cell. A store looks at the write cell and at all marks, eight columns at once.
   If that finds something, the *slow path* compares byte masks. It only leaves a record; watch/order.py turns
   records into findings.
5. *Strong* accesses (atomics, relaxed, acquire, release) race with ordinary ones, not with each other. A
   strong write therefore leaves the cell of the last ordinary write as it is, sets CELL_ATOMIC in it, and
   marks its read cell. A volatile load is strong. A volatile store is strong when its thread has executed a
   fence, as one does before a flag is set, and an ordinary store otherwise.
6. Strong accesses carry order. A strong write by a thread that has executed a fence (or a release) raises the
   version of its word; who reads it by a strong read leaves a record.

The trade-off: a write cell remembers the last write only, and a mark the last interval of its column. That
keeps the fast path at a few instructions. In exchange a record names the last writer and one reader, where
several may have been in the way.
"""

from __future__ import annotations

from typing import NamedTuple

from .. import context as c

__all__ = ["NAMES", "THREAD"]


class Field(NamedTuple):
    """Bits of a word: `width` of them, from bit `shift` on."""

    shift: int
    width: int

    @property
    def low(self) -> int:
        """The mask of the field shifted down to bit 0."""
        return (1 << self.width) - 1

    @property
    def mask(self) -> int:
        return self.low << self.shift

    def of(self, word: int) -> int:
        """Return the field of a word."""
        return word >> self.shift & self.low


# A write cell. Its low bits are a stamp; CELL_GENERIC, CELL_BARRIER and CELL_ATOMIC of context.py are bits 45
# to 47.
CELL_CLOCK = Field(0, 32)
CELL_COLUMN = Field(32, 8)
CELL_LANE = Field(40, 5)
CELL_BYTES_EVER = Field(48, 4)
CELL_BYTES_LAST = Field(52, 4)
CELL_VERSION = Field(56, 8)
# Neighbours that are compared or kept as one.
CELL_INTERVAL = Field(0, 40)  # clock and column
CELL_AUTHOR = Field(0, 45)  # and lane
CELL_STRONG_AND_EVER = Field(47, 5)  # CELL_ATOMIC and CELL_BYTES_EVER
CELL_BELOW_VERSION = Field(0, 56)

# A read cell. Clocks count in steps of CLOCK_STEP, so the rest has room below the clock.
MARK_LANE = Field(0, 6)  # all ones: several lanes
MARK_BYTES = Field(6, 4)
MARK_KINDS = Field(10, 2)  # MARK_READ and MARK_WRITE of context.py
MARK_CLOCK = Field(c.CLOCK_STEP.bit_length() - 1, 20)  # counted in steps
MARK_WHAT = Field(6, 6)  # bytes and kinds
MARK_BELOW_CLOCK = Field(0, 12)

# The reader in a record: a column and what its mark says. READER_ATOMIC: the access that found it is an
# atomic.
READER_COLUMN = Field(0, 8)
READER_LANE = Field(8, 6)
READER_KINDS = Field(16, 2)
READER_ATOMIC = Field(18, 1)
READER_INTERVAL = Field(20, 20)

# What a thread remembers of the last flag that it read, or wrote, to leave no record twice. The clock is
# below.
SEEN_VERSION = Field(32, 8)
SEEN_WORD = Field(40, 24)
WROTE_WORD = Field(32, 32)

#: What every check needs of the thread, and in shadow.ll of the access too.
THREAD = "ptr %ctx, ptr %rt, ptr %shared, ptr %cells, ptr %reads, i64 %columns, ptr %row, i64 %stamp"
_ACCESS = f"{THREAD}, i64 %word, i32 %mask, i64 %site"


def _names() -> dict[str, int | str]:
    """Return what the names in shadow.ll stand for."""
    names: dict[str, int | str] = {
        "ACCESS": _ACCESS,
        "EVERY_7_BITS": sum(1 << 7 * k for k in range(4)),
        "EVERY_8_BITS": sum(1 << 8 * k for k in range(4)),
    }
    for name, field in list(globals().items()):
        if isinstance(field, Field):
            names |= {name: field.mask, f"{name}_SHIFT": field.shift, f"{name}_LOW": field.low}
    return names


NAMES = _names()
