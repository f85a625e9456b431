"""One request of a warp as memory serves it: sectors of global memory, banks of shared memory. The addresses
are those that the kernel used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..emulator.watch.report import Report, Request
from ..layout import ceil_div
from .shapes import amount, label, rectangle, unframed
from .style import GREY, INK, PALE, RED, Picture, drawn, figure, ink_on, lane_colour

__all__ = ["bank_rows", "banks", "requests_at", "sectors", "wavefronts"]

SECTOR = 32  # bytes
BANKS = 32
WORD = 4  # bytes of a bank


def requests_at(
    report: Report, text: str, space: str, store: bool = False, source: str = ""
) -> list[Request]:
    """Find the kept requests of a report: those to a space, "global" or "shared", from lines whose place
    contains `text`.

    Args:
        text: part of a place, such as ":40", or "" for all. With `source`, the text of the kernel's file,
            part of the line itself; a line in a function counts for the lines that call the function, too.
        store: whether stores are wanted, or loads.

    Raises ValueError when the report kept no requests at all, when `space` has another name, or when `source`
    has no such line.
    """
    # A question that nothing can answer is an error, since an empty list would look like an answer.
    if space not in ("global", "shared"):
        raise ValueError(f'space: expected "global" or "shared", got {space!r}')
    if not report.requests:
        raise ValueError(
            "report: expected one that kept requests, as in minigemm.observe(requests=100), got one without"
        )
    if source and text not in source:
        raise ValueError(f"text: the source has no line that reads {text!r}")

    # A line in a function counts for its callers, so the whole chain of inlined places is searched.
    lines = source.splitlines()

    def fits(request: Request) -> bool:
        place = request.location
        if not source:
            return text in str(place)
        while place is not None:
            if place.line <= len(lines) and text in lines[place.line - 1]:
                return True
            place = place.inlined_at
        return False

    return [r for r in report.requests if r.space == space and r.store is store and fits(r)]


def _ranges(lanes: Iterable[int]) -> str:
    """Write lanes as ranges: 0, 1, 2, 5 is 0-2, 5."""
    out: list[list[int]] = []
    for lane in sorted(set(lanes)):
        if out and lane == out[-1][1] + 1:
            out[-1][1] = lane
        else:
            out.append([lane, lane])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


@drawn
def sectors(request: Request, title: str = "") -> Picture:
    """Draw a request to global memory: a row for each 32-byte sector that it touches, and each byte that a
    lane wanted in the lane's colour.

    Raises ValueError for a request to shared memory.
    """
    if request.space != "global":
        raise ValueError(f"request: expected one to global memory, got one to {request.space} memory")
    # sector -> byte of it -> lanes that want the byte
    wanted: dict[int, dict[int, set[int]]] = {}
    for thread, address in zip(request.threads, request.addresses, strict=True):
        for byte in range(address, address + request.bytes):
            wanted.setdefault(byte // SECTOR, {}).setdefault(byte % SECTOR, set()).add(thread % 32)
    touched = sorted(wanted)

    made, axes = figure(8, 1.1 + 0.19 * len(touched))
    for y, sector in enumerate(touched):
        for x in range(SECTOR):
            lanes = wanted[sector].get(x)
            _cell(axes, x, y, lane_colour(min(lanes)) if lanes else PALE)
        every = set().union(*wanted[sector].values())
        who = f"lane{'s' if len(every) > 1 else ''} {_ranges(every)}"
        label(axes, SECTOR + 0.4, y + 0.5, who, ha="left", size=7)
        label(axes, -0.4, y + 0.5, f"+{(sector - touched[0]) * SECTOR:,}", ha="right", size=7, color=GREY)
    axes.set(xlim=(-4, SECTOR + 6), ylim=(len(touched), 0))
    axes.axis("off")

    used = sum(len(v) for v in wanted.values())
    moved = f"{len(touched) * SECTOR} bytes moved, {used} of them used"
    what = f"{_lanes(request)}: {amount(len(touched), 'sector')}, {moved}"
    axes.set_title(f"{title}: {what}" if title else what)
    return Picture(made, what)


def _together(request: Request) -> int:
    """Count the lanes that shared memory serves at once: 32, or 16 for 8 bytes a lane and 8 for 16."""
    return 32 if request.bytes <= WORD else 32 * WORD // request.bytes


def wavefronts(request: Request) -> list[dict[int, tuple[int, list[int]]]]:
    """Divide a request to shared memory into the wavefronts that it takes, each a dict of bank -> (word,
    lanes).

    32 lanes are served together, 16 for 8 bytes a lane and 8 for 16. Lanes that want the same word share it;
    another word of the same bank comes later.
    """
    groups: dict[int, list[tuple[int, int]]] = {}
    for thread, address in zip(request.threads, request.addresses, strict=True):
        groups.setdefault(thread % 32 // _together(request), []).append((thread % 32, address))

    found: list[dict[int, tuple[int, list[int]]]] = []
    for group in groups.values():
        words: dict[int, list[int]] = {}
        for lane, address in group:
            for word in range(address // WORD, (address + request.bytes + WORD - 1) // WORD):
                words.setdefault(word, []).append(lane)
        # Each word goes into the first wavefront that has not read its bank yet.
        waves: list[dict[int, tuple[int, list[int]]]] = []
        for word, lanes in words.items():
            bank = word % BANKS
            wave = next((wave for wave in waves if bank not in wave), None)
            if wave is None:
                waves.append(wave := {})
            wave[bank] = (word, lanes)
        found += waves
    return found


@drawn
def banks(request: Request, title: str = "") -> Picture:
    """Draw a request to shared memory: the 32 banks across, a row for each wavefront; a cell's number is the
    lane.

    A second row for lanes that are served together is a conflict. Raises ValueError for a request to global
    memory.
    """
    if request.space != "shared":
        raise ValueError(f"request: expected one to shared memory, got one to {request.space} memory")
    waves, together = wavefronts(request), _together(request)
    groups = len({thread % 32 // together for thread in request.threads})
    extra = len(waves) - groups

    # A row for each wavefront; a second one of the same lanes is late.
    made, axes = figure(9, 1.0 + 0.3 * len(waves))
    seen: set[int] = set()
    for y, wave in enumerate(waves):
        group = min(lanes[0] for _, lanes in wave.values()) // together
        late = group in seen
        seen.add(group)
        for bank in range(BANKS):
            _, lanes = wave.get(bank, (0, []))
            colour = lane_colour(min(lanes)) if lanes else PALE
            edge: tuple[str, float] = (RED, 1.6) if late and lanes else ("white", 0.6)
            _cell(axes, bank, y, colour, *edge)
            if lanes:
                number = f"{min(lanes)}+" if len(set(lanes)) > 1 else str(lanes[0])
                label(axes, bank + 0.5, y + 0.5, number, size=7, color=ink_on(colour))
        served = f"lanes {group * together}-{(group + 1) * together - 1}" if together < 32 else ""
        label(axes, BANKS + 0.3, y + 0.5, served, ha="left", color=GREY)
        if late:
            label(axes, BANKS + (3.7 if served else 0.3), y + 0.5, "conflict", ha="left", color=RED)

    right = BANKS + (6.4 if together < 32 else 3.2)
    axes.set(xlim=(-0.1, right), ylim=(len(waves), 0))
    axes.set_yticks(
        [y + 0.5 for y in range(len(waves))], [f"wavefront {y}" for y in range(len(waves))], fontsize=8
    )
    _bank_axis(axes)
    axes.set_xlabel("bank (the number in a cell is the lane; + means that other lanes want the same word)")
    verdict = f"{extra} more than needed" if extra else "no conflict"
    what = f"{_lanes(request)}: {amount(len(waves), 'wavefront')}, {verdict}"
    axes.set_title(f"{title}: {what}" if title else what)
    return Picture(made, what)


@drawn
def bank_rows(row_bytes: int, paddings: Sequence[int] = (0, 16), rows: int = 8, k: int = 0) -> Picture:
    """Draw rows of a tile as they lie over the 32 banks, a panel for each padding; the word that holds byte k
    of each row is marked.

    Args:
        row_bytes: bytes of a row, without its padding.
        paddings: bytes behind each row.
        rows: how many rows, as many as a warp reads at once.
        k: which byte of the rows.

    Raises ValueError for sizes that are no multiples of a bank's 4 bytes, and for a k outside the row.
    """
    if row_bytes < WORD or row_bytes % WORD:
        raise ValueError(f"row_bytes: expected a positive multiple of {WORD}, got {row_bytes}")
    if not paddings or any(padding < 0 or padding % WORD for padding in paddings):
        raise ValueError(f"paddings: expected multiples of {WORD}, got {tuple(paddings)}")
    if not 1 <= rows <= 32:
        raise ValueError(f"rows: expected 1 to 32, got {rows}")
    if not 0 <= k < row_bytes:
        raise ValueError(f"k: expected 0 to {row_bytes - 1}, a byte of the row, got {k}")

    # A panel has the lines of 128 bytes that its rows take.
    lines = [ceil_div(rows * (row_bytes + padding), BANKS * WORD) for padding in paddings]
    heights = [n + 1.5 for n in lines]
    height = sum(0.62 + 0.21 * n for n in lines) + 0.3
    made, panels = figure(8.4, height, len(paddings), squeeze=False, height_ratios=heights)
    said = []
    for axes, padding, n in zip(panels[:, 0], paddings, lines, strict=True):
        ways, banks = _padded_rows(axes, row_bytes, padding, rows, k, n)
        verdict = f"{ways}-way conflict" if ways > 1 else "no conflict"
        axes.set_title(f"padding = {padding}: rows {row_bytes + padding} bytes apart, {verdict}")
        said.append(f"padding {padding}: byte {k} of {rows} rows lies in {amount(banks, 'bank')}, {verdict}")
    panels[-1, 0].set_xlabel(
        f"bank (a colour is a row of the tile, its number marks the word that holds k = {k}; "
        "outlined cells are padding)"
    )
    return Picture(made, "; ".join(said))


def _padded_rows(axes: Any, row_bytes: int, padding: int, rows: int, k: int, lines: int) -> tuple[int, int]:
    """Draw one panel of `bank_rows`. Returns the most marked words of one bank, and how many banks have
    any."""
    # Each word is a cell under its bank, whichever row of the tile it belongs to.
    words = (row_bytes + padding) // WORD
    marked: Counter[int] = Counter()  # by bank
    for word in range(lines * BANKS):
        row, place = divmod(word, words)
        y, bank = divmod(word, BANKS)
        inside = row < rows and place < row_bytes // WORD
        mine = inside and place == k // WORD
        colour = lane_colour(round(31 * row / max(1, rows - 1)))
        if inside:
            _cell(axes, bank, y, colour, alpha=1.0 if mine else 0.3)
        elif row < rows:
            _cell(axes, bank, y, "white", GREY, 0.5)

        # The words that hold k are counted by bank: several in one bank conflict.
        if mine:
            marked[bank] += 1
            _cell(axes, bank, y, "none", INK, 1.6)
            label(axes, bank + 0.5, y + 0.5, str(row), color=ink_on(colour))

    # The addresses at the left are in bytes, like the distance of the rows.
    axes.set(xlim=(-0.1, BANKS + 0.1), ylim=(lines, -0.05))
    axes.set_yticks(
        [y + 0.5 for y in range(lines)], [str(y * BANKS * WORD) for y in range(lines)], fontsize=7
    )
    axes.set_ylabel("address", fontsize=8)
    _bank_axis(axes)
    return max(marked.values()), len(marked)


def _lanes(request: Request) -> str:
    return f"{len(request.threads)} lanes x {request.bytes} bytes"


def _bank_axis(axes: Any) -> None:
    axes.set_xticks([bank + 0.5 for bank in range(0, BANKS, 4)], [str(bank) for bank in range(0, BANKS, 4)])
    unframed(axes)


def _cell(
    axes: Any, x: float, y: float, colour: object, edge: str = "white", line: float = 0.6, alpha: float = 1.0
) -> None:
    style = {"facecolor": colour, "edgecolor": edge, "linewidth": line, "alpha": alpha}
    rectangle(axes, x + 0.03, y + 0.06, 0.94, 0.88, **style)
