"""What memory makes of one request of a warp: sectors of global memory, banks of shared memory. From the addresses that were used."""

from __future__ import annotations

from collections.abc import Iterable

from ..emulator.report import Report, Request
from .style import GREY, PALE, RED, Picture, drawn, figure, ink_on, lane_colour

__all__ = ["banks", "requests_at", "sectors", "wavefronts"]

SECTOR = 32  # bytes
BANKS = 32
WORD = 4  # bytes of a bank


def requests_at(report: Report, text: str, space: str, store: bool = False, source: str = "") -> list[Request]:
    """The kept requests of a report to a space, of those lines whose place reads like `text` (such as ":40" or "" for all).

    With `source`, the text of the kernel's file, `text` is looked for in the lines themselves, callers included.
    """
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
    """0, 1, 2, 5 reads 0-2, 5."""
    out: list[list[int]] = []
    for lane in sorted(set(lanes)):
        if out and lane == out[-1][1] + 1:
            out[-1][1] = lane
        else:
            out.append([lane, lane])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


@drawn
def sectors(request: Request, title: str = "") -> Picture:
    """A request to global memory: every 32-byte sector that it touches is a row, every byte that a lane wanted is coloured by the lane."""
    wanted: dict[int, dict[int, set[int]]] = {}
    for thread, address in zip(request.threads, request.addresses, strict=True):
        for byte in range(address, address + request.bytes):
            wanted.setdefault(byte // SECTOR, {}).setdefault(byte % SECTOR, set()).add(thread % 32)
    touched = sorted(wanted)
    made, axes = figure(8, 1.1 + 0.19 * len(touched))
    for y, sector in enumerate(touched):
        for x in range(SECTOR):
            lanes = wanted[sector].get(x)
            axes.add_patch(_cell(x, y, lane_colour(min(lanes)) if lanes else PALE))
        every = set().union(*wanted[sector].values())
        axes.text(SECTOR + 0.4, y + 0.5, f"lane{'s' if len(every) > 1 else ''} {_ranges(every)}", va="center", fontsize=7)
        axes.text(-0.4, y + 0.5, f"+{(sector - touched[0]) * SECTOR:,}", va="center", ha="right", fontsize=7, color=GREY)
    used = sum(len(v) for v in wanted.values())
    axes.set(xlim=(-4, SECTOR + 6), ylim=(len(touched), 0))
    axes.axis("off")
    n, moved = len(touched), len(touched) * SECTOR
    what = f"{len(request.threads)} lanes x {request.bytes} bytes: {n} sector{'s' if n > 1 else ''}, {moved} bytes moved, {used} of them used"
    axes.set_title(f"{title}: {what}" if title else what)
    return Picture(made, what)


def wavefronts(request: Request) -> list[dict[int, tuple[int, list[int]]]]:
    """A request to shared memory as the wavefronts that it takes: each a dict of bank -> (word, lanes).

    32 lanes are served together, 16 for 8 bytes a lane and 8 for 16. Lanes that want the same word share it; another word of the same bank comes later.
    """
    together = 32 if request.bytes <= WORD else 32 * WORD // request.bytes
    found: list[dict[int, tuple[int, list[int]]]] = []
    groups: dict[int, list[tuple[int, int]]] = {}
    for thread, address in zip(request.threads, request.addresses, strict=True):
        groups.setdefault(thread % 32 // together, []).append((thread % 32, address))
    for group in groups.values():
        words: dict[int, list[int]] = {}
        for lane, address in group:
            for word in range(address // WORD, (address + request.bytes + WORD - 1) // WORD):
                words.setdefault(word, []).append(lane)
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
    """A request to shared memory: the 32 banks across, a row for each wavefront; a cell's number is the lane, a second row of one group is a conflict."""
    waves = wavefronts(request)
    together = 32 if request.bytes <= WORD else 32 * WORD // request.bytes
    groups = len({thread % 32 // together for thread in request.threads})
    extra = len(waves) - groups
    made, axes = figure(9, 1.25 + 0.34 * len(waves))
    seen: set[int] = set()
    for y, wave in enumerate(waves):
        group = min(lanes[0] for _, lanes in wave.values()) // together
        late = group in seen
        seen.add(group)
        for bank in range(BANKS):
            _, lanes = wave.get(bank, (0, []))
            colour = lane_colour(min(lanes)) if lanes else PALE
            axes.add_patch(_cell(bank, y, colour, RED if late and lanes else "white", 1.6 if late and lanes else 0.6))
            if lanes:
                many = len(set(lanes)) > 1
                label = f"{min(lanes)}+" if many else str(lanes[0])
                axes.text(bank + 0.5, y + 0.5, label, ha="center", va="center", fontsize=7, color=ink_on(colour))
        axes.text(BANKS + 0.3, y + 0.5, "conflict" if late else "", va="center", fontsize=8, color=RED)
    axes.set(xlim=(0, BANKS + 3.2), ylim=(len(waves), 0), xticks=[b + 0.5 for b in range(0, BANKS, 4)], yticks=[y + 0.5 for y in range(len(waves))])
    axes.set_xticklabels([str(b) for b in range(0, BANKS, 4)])
    axes.set_yticklabels([str(y) for y in range(len(waves))])
    axes.set(xlabel="bank (the number in a cell is the lane; + means that others share the word)", ylabel="wavefront")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)
    verdict = f"{extra} more than needed" if extra else "no conflict"
    what = f"{len(request.threads)} lanes x {request.bytes} bytes: {len(waves)} wavefront{'s' if len(waves) > 1 else ''}, {verdict}"
    axes.set_title(f"{title}: {what}" if title else what)
    return Picture(made, what)


def _cell(x: float, y: float, colour: object, edge: str = "white", line: float = 0.6) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.06), 0.94, 0.88, facecolor=colour, edgecolor=edge, linewidth=line)
