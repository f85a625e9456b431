"""The report of a launch, as data and as something to look at."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..errors import Location
from .timeline import Timeline

SHOWN = 12  # of a drawn report's lines, events and hazards; it says how many more there are


@dataclass
class Hazard:
    """A finding: a GPU does not promise to get this right, though the emulator went on.

    Attributes:
        kind: ``"race"``, ``"proxy-fence"``, ...
        message: the cause, in words.
        location, ptx_line: the access at which the hazard showed.
        address: a shared address, bytes.
        parties: the threads, copies or CTAs that are in conflict.
        fix: the code to write instead.
        count: how often the hazard was seen at this place.
    """

    kind: str
    message: str
    location: Location | None
    ptx_line: int
    address: int
    parties: tuple[str, ...]
    fix: str
    count: int = 1

    def __str__(self) -> str:
        times = f" (seen {self.count:,} times)" if self.count > 1 else ""
        lines = [f"{self.kind} at {location_in_words(self.location, self.ptx_line)}{times}"]
        lines += [f"  what: {self.message}"]
        lines += [f"  who:  {' and '.join(self.parties)}"] if self.parties else []
        lines += [f"  fix:  {self.fix}"] if self.fix else []
        return "\n".join(lines)


@dataclass
class Event:
    """A moment of CTA 0, or of its cluster.

    Attributes:
        step: the scheduler's step, counted from the start of the CTA.
        kind, detail: the event, in words.
        agent: the warp, the copy or the mbarrier that it happened to.
        location: the source line, where there is one.
    """

    step: int
    kind: str
    agent: str
    detail: str
    location: Location | None = None

    def __str__(self) -> str:
        where = f" ({self.location})" if self.location else ""
        return f"{self.step:>5}  {self.agent}: {self.kind}, {self.detail}{where}"


class Counters(dict[str, Any]):
    """The counts of a launch by name; a missing one reads as 0.

    ``instructions`` were executed by all threads together; ``instructions_by_class`` is a dict of them.

    Threads moved ``global_load_bytes``, ``global_store_bytes``, ``shared_load_bytes`` and
    ``shared_store_bytes``. Their warps made ``global_requests``, which touched ``global_sectors`` of 32
    bytes, and ``shared_requests``, which took ``shared_wavefronts``; ``bank_conflicts`` are wavefronts
    beyond the fewest possible.

    TMA counts for itself. It made ``tma_transactions``, read ``tma_load_bytes`` from global memory (once
    for all CTAs of a multicast), wrote ``tma_delivered_bytes`` to the shared memory of all CTAs, and stored
    ``tma_store_bytes``.

    ``barriers`` is how often a barrier opened.
    """

    NAMES = (
        "instructions", "global_load_bytes", "global_store_bytes", "shared_load_bytes", "shared_store_bytes",
        "tma_load_bytes", "tma_store_bytes", "tma_delivered_bytes", "tma_transactions",
        "global_requests", "global_sectors", "shared_requests", "shared_wavefronts", "bank_conflicts", "barriers",
    )  # fmt: skip

    def __missing__(self, key: str) -> Any:
        return {} if key == "instructions_by_class" else 0


@dataclass
class LineCount:
    """The accesses of one source line to one memory space; a line called from several places counts for each.

    Attributes:
        location, ptx_line: the source line.
        space: ``"global"``, ``"shared"`` or ``"const"``.
        requests: of warps.
        bytes: of all lanes.
        sectors: of 32 bytes, in global memory.
        wavefronts, ideal_wavefronts: in shared memory, and the fewest possible.
        worst_degree: most wavefronts of one group of lanes that is served together; 32 is a 32-way conflict.
    """

    location: Location | None
    ptx_line: int
    space: str
    store: bool
    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    worst_degree: int = 0

    @property
    def sectors_per_request(self) -> float:
        """Sectors of a request: 4 is perfect for 32 lanes of 4 bytes, 32 the worst; 0 elsewhere."""
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def wavefronts_per_request(self) -> float:
        """Wavefronts of a request: 1 is perfect for 4 bytes per lane, 2 for 8, 4 for 16; 0 elsewhere."""
        return self.wavefronts / self.requests if self.requests else 0.0

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts beyond the fewest possible."""
        return self.wavefronts - self.ideal_wavefronts

    def __str__(self) -> str:
        where, cost = location_in_words(self.location, self.ptx_line), _cost(self)
        access = f"{self.space} {_verb(self.store)}: {self.requests:,} requests, {_bytes(self.bytes)}"
        return f"{where}  {access}, {cost}" if cost else f"{where}  {access}"


@dataclass(frozen=True)
class Request:
    """One access by the lanes of a warp, kept for pictures.

    Attributes:
        site: index into the kernel's code.
        location: the source line.
        space: ``"global"`` or ``"shared"``.
        bytes: per lane.
        threads, addresses: ``threads[i]`` of CTA ``cta`` accessed ``addresses[i]``.
    """

    site: int
    location: Location | None
    space: str
    bytes: int
    store: bool
    threads: tuple[int, ...]
    addresses: tuple[int, ...]
    cta: int = 0


@dataclass(repr=False)
class Report:
    """The report of a launch. ``print`` it, or let Jupyter draw it.

    Attributes:
        kernel, grid, cluster, block, schedule: the launch.
        hazards: empty too if the launch did not look for any; ``looked_for_hazards`` says whether it did.
        counters: a :class:`Counters`.
        lines: memory accesses by source line.
        events: what happened to CTA 0, in order.
        seconds, translate_seconds: wall time of the run, and of the translation.
        origin: where the translation came from, ``"compiled"``, ``"disk"`` or ``"memory"``.
        requests: warp requests with their addresses, if the launch was asked to keep them.
        timeline: who was busy and who waited, if the launch was asked for it.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    schedule: str | int
    hazards: list[Hazard]
    counters: Counters
    lines: Sequence[LineCount]
    events: list[Event]
    seconds: float
    translate_seconds: float
    origin: str
    requests: Sequence[Request] = ()
    looked_for_hazards: bool = True
    timeline: Timeline | None = None
    cluster: tuple[int, int, int] = (1, 1, 1)

    def __str__(self) -> str:
        title, *facts = self._facts()
        width = max(len(name) for name, _ in facts)
        text = [f"{title[0]}  {title[1]}", *(f"  {name:<{width}}  {value}" for name, value in facts)]
        text += ["  " + line for hazard in self.hazards for line in str(hazard).splitlines()]
        return "\n".join(text)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Return everything in a form that ``json.dumps`` takes."""
        return _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def _facts(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs, the title first; kinds of accesses that did not happen are left out."""
        # Every launch has these.
        n = self.counters
        cluster = f"cluster {_dim(self.cluster)}, " if self.cluster != (1, 1, 1) else ""
        launch = f"grid {_dim(self.grid)}, {cluster}block {_dim(self.block)}, schedule {self.schedule}"
        time = f"{_seconds(self.seconds)}, translation {_seconds(self.translate_seconds)} ({self.origin})"
        facts = [(self.kernel, launch), ("time", time), ("instructions", f"{n['instructions']:,}" + _mix(n))]

        # The rest says what the kernel used, and how well.
        if n["global_requests"]:
            sectors = n["global_sectors"] / n["global_requests"]
            facts.append(("global", f"{_moved(n, 'global')}; {sectors:.2f} sectors a request"))
        if n["shared_requests"]:
            wavefronts = n["shared_wavefronts"] / n["shared_requests"]
            conflicts = f"{wavefronts:.2f} wavefronts a request, {n['bank_conflicts']:,} bank conflicts"
            facts.append(("shared", f"{_moved(n, 'shared')}; {conflicts}"))
        if n["tma_transactions"]:
            more = n["tma_delivered_bytes"] > n["tma_load_bytes"]
            delivered = f", {_bytes(n['tma_delivered_bytes'])} delivered" if more else ""
            facts.append(("TMA", f"{_moved(n, 'tma')}{delivered}; {n['tma_transactions']:,} transactions"))
        if n["barriers"]:
            facts.append(("barriers", f"{n['barriers']:,}"))
        facts.append(("hazards", self._hazard_summary()))
        return facts

    def _hazard_summary(self) -> str:
        kinds = Counter(h.kind for h in self.hazards)
        found = ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
        return found or ("none found" if self.looked_for_hazards else "not looked for")

    def _repr_html_(self) -> str:
        title, *facts = self._facts()
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts)
        body = f"<header><b>{escape(title[0])}</b> {escape(title[1])}</header>{_bar(self.counters)}"
        body += f"<table>{rows}</table>"
        body += "".join(_hazard_html(h) for h in self.hazards[:SHOWN]) + _more(len(self.hazards), "hazards")

        if self.lines:
            head = "".join(f"<th>{name}</th>" for name in ("line", "access", "requests", "bytes", "cost"))
            lines = "".join(_line_html(line) for line in _costliest(self.lines)[:SHOWN])
            table = f"<table class=m><tr>{head}</tr>{lines}</table>{_more(len(self.lines), 'lines')}"
            body += _details("memory by source line", table)
        if self.events:
            events = escape("\n".join(str(e) for e in self.events[:SHOWN]))
            text = f"<pre>{events}</pre>{_more(len(self.events), 'events')}"
            body += _details("first events of CTA 0", text)
        return f"<style>{_STYLE}</style><div class=minigemm-report>{body}</div>"


# --- words


def location_in_words(location: Location | None, ptx_line: int) -> str:
    """Return the source line, or the line of the PTX where that has none."""
    return str(location) if location else f"PTX line {ptx_line}"


def _verb(store: bool) -> str:
    return "store" if store else "load"


def _dim(size: Sequence[int]) -> str:
    """Return (4, 2, 1) as 4x2."""
    used = 3 if size[2] > 1 else 2 if size[1] > 1 else 1
    return "x".join(str(n) for n in size[:used])


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _bytes(n: int) -> str:
    size, unit = float(n), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{n} B" if unit == "B" else f"{size:.1f} {unit}"


def _moved(counters: Counters, space: str) -> str:
    loads, stores = counters[f"{space}_load_bytes"], counters[f"{space}_store_bytes"]
    return f"loads {_bytes(loads)}, stores {_bytes(stores)}"


def _shares(counters: Counters) -> list[tuple[str, float]]:
    """Return the five classes with the most instructions and their shares, the rest as "other"."""
    total = counters["instructions"]
    if not total:
        return []
    ranked = sorted(counters["instructions_by_class"].items(), key=lambda item: -item[1])
    shares = [(name, count / total) for name, count in ranked[:5] if count]
    rest = sum(count for _, count in ranked[5:]) / total
    return shares + ([("other", rest)] if rest else [])


def _mix(counters: Counters) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in _shares(counters))
    return f" ({shares})" if shares else ""


def _cost(line: LineCount) -> str:
    """Return the sectors or wavefronts of a request, and the conflicts where there are any."""
    if line.space == "global":
        return f"{line.sectors_per_request:.2f} sectors a request"
    if line.space == "shared":
        text = f"{line.wavefronts_per_request:.2f} wavefronts a request"
        return text + (f", up to {line.worst_degree}-way conflicts" if line.bank_conflicts else "")
    return ""


def _costliest(lines: Iterable[LineCount]) -> list[LineCount]:
    return sorted(lines, key=lambda line: -max(line.sectors, line.wavefronts))


# --- HTML

# Colours are the page's own, thinned, so that both light and dark themes work. Only the marks have colours,
# of middle lightness.
_STYLE = """
.minigemm-report{font-size:13px;line-height:1.45;max-width:64em;
border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:.6em .9em}
.minigemm-report header{margin-bottom:.4em}
.minigemm-report header b{font-family:monospace;font-size:1.1em;margin-right:.6em}
.minigemm-report table{border-collapse:collapse;margin:.2em 0;font-size:1em;color:inherit;
background:none;border:none}
.minigemm-report th,.minigemm-report td{padding:.1em 1em .1em 0;text-align:left;vertical-align:top;
background:none;border:none;color:inherit;white-space:normal;max-width:none}
.minigemm-report th{font-weight:normal;opacity:.65}.minigemm-report tr{background:none}
.minigemm-report table.m td{font-variant-numeric:tabular-nums}
.minigemm-report table.m td:first-child{font-family:monospace}
.minigemm-report .bar{display:flex;height:6px;border-radius:3px;overflow:hidden;margin:.3em 0}
.minigemm-report .h{border-left:3px solid #d9822b;background:rgba(217,130,43,.12);
border-radius:0 4px 4px 0;padding:.3em .7em;margin:.4em 0}
.minigemm-report .h code{background:none;color:inherit}.minigemm-report .c{color:#d9822b}
.minigemm-report details{margin-top:.3em}.minigemm-report summary{cursor:pointer;opacity:.8}
.minigemm-report pre{background:none;color:inherit;margin:.2em 0;white-space:pre-wrap}.minigemm-report .more{opacity:.6}
""".replace("\n", "")

_COLOURS = ("#4c8fd6", "#3fa58c", "#d9a13b", "#a06cc4", "#d1697b", "#8a8f98")


def _bar(counters: Counters) -> str:
    """Return the instruction mix as one strip, with a title on each part."""
    parts = "".join(
        f'<div style="width:{share:.2%};background:{colour}" title="{escape(name)} {share:.0%}"></div>'
        for (name, share), colour in zip(_shares(counters), _COLOURS, strict=False)
    )
    return f"<div class=bar>{parts}</div>" if parts else ""


def _hazard_html(hazard: Hazard) -> str:
    times = f" &times;{hazard.count:,}" if hazard.count > 1 else ""
    fix = f"<br><i>Fix:</i> {escape(hazard.fix)}" if hazard.fix else ""
    where = escape(location_in_words(hazard.location, hazard.ptx_line))
    title = f"<b>{escape(hazard.kind)}</b> at <code>{where}</code>{times}"
    return f"<div class=h>{title}<br>{escape(hazard.message)}{fix}</div>"


def _line_html(line: LineCount) -> str:
    cells = (
        location_in_words(line.location, line.ptx_line),
        f"{line.space} {_verb(line.store)}",
        f"{line.requests:,}",
        _bytes(line.bytes),
    )
    style = " class=c" if line.bank_conflicts else ""
    plain = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr>{plain}<td{style}>{escape(_cost(line))}</td></tr>"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _more(n: int, what: str) -> str:
    return f"<div class=more>and {n - SHOWN} more {what}</div>" if n > SHOWN else ""


def _plain(value: Any) -> Any:
    """Return dataclasses as dicts (with the ratios of a line count), tuples as lists, numbers as Python's."""
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value)]
        if isinstance(value, LineCount):
            names += ["sectors_per_request", "wavefronts_per_request", "bank_conflicts"]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
