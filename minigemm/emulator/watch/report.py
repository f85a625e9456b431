"""What a launch did, as data and as something to look at."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..errors import Location
from .timeline import Timeline

SHOWN = 12  # lines and events that a drawn report shows before it says how many more there are


@dataclass
class Hazard:
    """Something that a GPU does not promise to get right, though the emulator went on.

    Attributes:
        kind: ``"race"``, ``"proxy-fence"``, ...
        message: the cause, in words.
        location, ptx_line: the access at which it showed.
        address: shared address, bytes.
        parties: who is in conflict.
        fix: what to write instead.
        count: how often it was seen at this place.
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
        lines = [
            f"{self.kind} at {_place(self.location, self.ptx_line)}"
            + (f" (seen {self.count:,} times)" if self.count > 1 else "")
        ]
        lines += [f"  what: {self.message}"]
        lines += [f"  who:  {' and '.join(self.parties)}"] if self.parties else []
        lines += [f"  fix:  {self.fix}"] if self.fix else []
        return "\n".join(lines)


@dataclass
class Event:
    """A moment of CTA 0, or of its cluster: the scheduler's step, what happened, to whom."""

    step: int
    kind: str
    agent: str
    detail: str
    location: Location | None = None

    def __str__(self) -> str:
        return f"{self.step:>5}  {self.agent}: {self.kind}, {self.detail}" + (
            f" ({self.location})" if self.location else ""
        )


class Counters(dict[str, Any]):
    """Counts of a launch by name; one that is missing reads as 0. Bytes and requests are those of threads; TMA has its own: ``tma_load_bytes`` are those that
    it read from global memory, once for all CTAs of a multicast, and ``tma_delivered_bytes`` those that it wrote to shared memory, of each CTA.

    ``instructions`` (executed by all threads), ``instructions_by_class`` (a dict), ``global_load_bytes``, ``global_store_bytes``,
    ``shared_load_bytes``, ``shared_store_bytes``, ``tma_load_bytes``, ``tma_store_bytes``, ``tma_transactions``, ``global_requests`` (of warps),
    ``global_sectors`` (32 bytes each), ``shared_requests``, ``shared_wavefronts``, ``bank_conflicts`` (wavefronts beyond the fewest possible),
    ``barriers`` (times that a barrier opened).
    """

    NAMES = (
        "instructions", "global_load_bytes", "global_store_bytes", "shared_load_bytes", "shared_store_bytes", "tma_load_bytes", "tma_store_bytes",
        "tma_delivered_bytes", "tma_transactions", "global_requests", "global_sectors", "shared_requests", "shared_wavefronts", "bank_conflicts", "barriers",
    )  # fmt: skip

    def __missing__(self, key: str) -> Any:
        return {} if key == "instructions_by_class" else 0


@dataclass
class LineCount:
    """What one source line asked of one memory space; a line called from several places counts for each."""

    location: Location | None
    ptx_line: int
    space: str  # "global", "shared" or "const"
    store: bool
    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    worst_degree: int = (
        0  # most wavefronts that lanes which are served together took: 32 is a 32-way conflict
    )

    @property
    def sectors_per_request(self) -> float:
        """4 is perfect for 32 lanes of 4 bytes, 32 the worst. 0 where there are no sectors."""
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def wavefronts_per_request(self) -> float:
        """1 is perfect for up to 4 bytes a lane, 2 for 8, 4 for 16. 0 outside shared memory."""
        return self.wavefronts / self.requests if self.requests else 0.0

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts beyond the fewest possible."""
        return self.wavefronts - self.ideal_wavefronts

    def __str__(self) -> str:
        text = f"{_place(self.location, self.ptx_line)}  {self.space} {_verb(self.store)}: {self.requests:,} requests, {_bytes(self.bytes)}"
        return f"{text}, {cost}" if (cost := _cost(self)) else text


@dataclass(frozen=True)
class Request:
    """One access by the lanes of a warp, kept for pictures: ``addresses[i]`` is where thread ``threads[i]`` of CTA ``cta`` went."""

    site: int  # index into the kernel's code
    location: Location | None
    space: str  # "global" or "shared"
    bytes: int  # a lane
    store: bool
    threads: tuple[int, ...]
    addresses: tuple[int, ...]
    cta: int = 0


@dataclass(repr=False)
class Report:
    """What a launch did. ``print`` it, or let Jupyter draw it.

    Attributes:
        kernel, grid, cluster, block, schedule: the launch; ``looked_for_hazards`` says whether ``hazards`` can have any.
        counters: a :class:`Counters`; ``lines``: memory accesses by source line.
        events: what CTA 0 went through, in order.
        seconds, translate_seconds: wall time of the run, and of the translation; ``origin`` is ``"compiled"``, ``"disk"`` or ``"memory"``.
        requests: warp requests with their addresses, where the launch was asked to keep them.
        timeline: who was busy and who waited, where the launch was asked for it.
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
        """Everything, as what ``json.dumps`` takes."""
        return _plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def _facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs, the title first; what did not happen is left out."""
        n = self.counters
        cluster = f"cluster {_dim(self.cluster)}, " if self.cluster != (1, 1, 1) else ""
        facts = [
            (
                self.kernel,
                f"grid {_dim(self.grid)}, {cluster}block {_dim(self.block)}, schedule {self.schedule}",
            ),
            (
                "time",
                f"{_seconds(self.seconds)}, translation {_seconds(self.translate_seconds)} ({self.origin})",
            ),
            ("instructions", f"{n['instructions']:,}" + _mix(n)),
        ]
        if n["global_requests"]:
            facts.append(
                (
                    "global",
                    f"{_moved(n, 'global')}; {n['global_sectors'] / n['global_requests']:.2f} sectors a request",
                )
            )
        if n["shared_requests"]:
            ways = f"{n['shared_wavefronts'] / n['shared_requests']:.2f} wavefronts a request, {n['bank_conflicts']:,} bank conflicts"
            facts.append(("shared", f"{_moved(n, 'shared')}; {ways}"))
        if n["tma_transactions"]:
            delivered = (
                f", {_bytes(n['tma_delivered_bytes'])} delivered"
                if n["tma_delivered_bytes"] > n["tma_load_bytes"]
                else ""
            )
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
        body = f"<header><b>{escape(title[0])}</b> {escape(title[1])}</header>{_bar(self.counters)}<table>{rows}</table>"
        body += "".join(_hazard_html(h) for h in self.hazards[:SHOWN]) + _more(len(self.hazards), "hazards")
        if self.lines:
            head = "".join(f"<th>{name}</th>" for name in ("line", "access", "requests", "bytes", "cost"))
            lines = "".join(_line_html(line) for line in _costliest(self.lines)[:SHOWN])
            body += _details(
                "memory by source line",
                f"<table class=m><tr>{head}</tr>{lines}</table>{_more(len(self.lines), 'lines')}",
            )
        if self.events:
            events = "\n".join(str(e) for e in self.events[:SHOWN])
            body += _details(
                "first events of CTA 0", f"<pre>{escape(events)}</pre>{_more(len(self.events), 'events')}"
            )
        return f"<style>{_STYLE}</style><div class=minigemm-report>{body}</div>"


# ---------------------------------------------------------------------------------------------------- words


def _place(location: Location | None, ptx_line: int) -> str:
    return str(location) if location else f"PTX line {ptx_line}"


def _verb(store: bool) -> str:
    return "store" if store else "load"


def _dim(size: Sequence[int]) -> str:
    """(4, 2, 1) is 4x2."""
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
    return (
        f"loads {_bytes(counters[space + '_load_bytes'])}, stores {_bytes(counters[space + '_store_bytes'])}"
    )


def _shares(counters: Counters) -> list[tuple[str, float]]:
    """The classes with the most instructions and their shares, the rest as one."""
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
    """Sectors or wavefronts, and the conflicts where there are any."""
    if line.space == "global":
        return f"{line.sectors_per_request:.2f} sectors a request"
    if line.space == "shared":
        text = f"{line.wavefronts_per_request:.2f} wavefronts a request"
        return text + (f", up to {line.worst_degree}-way conflicts" if line.bank_conflicts else "")
    return ""


def _costliest(lines: Iterable[LineCount]) -> list[LineCount]:
    return sorted(lines, key=lambda line: -max(line.sectors, line.wavefronts))


# ---------------------------------------------------------------------------------------------------- HTML

# Colours are the page's own, thinned, so that both light and dark themes work; only the marks have colours, of middle lightness.
_STYLE = """
.minigemm-report{font-size:13px;line-height:1.45;max-width:64em;border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:.6em .9em}
.minigemm-report header{margin-bottom:.4em}.minigemm-report header b{font-family:monospace;font-size:1.1em;margin-right:.6em}
.minigemm-report table{border-collapse:collapse;margin:.2em 0;font-size:1em;color:inherit;background:none;border:none}
.minigemm-report th,.minigemm-report td{padding:.1em 1em .1em 0;text-align:left;vertical-align:top;background:none;border:none;color:inherit;
white-space:normal;max-width:none}
.minigemm-report th{font-weight:normal;opacity:.65}.minigemm-report tr{background:none}
.minigemm-report table.m td{font-variant-numeric:tabular-nums}.minigemm-report table.m td:first-child{font-family:monospace}
.minigemm-report .bar{display:flex;height:6px;border-radius:3px;overflow:hidden;margin:.3em 0}
.minigemm-report .h{border-left:3px solid #d9822b;background:rgba(217,130,43,.12);border-radius:0 4px 4px 0;padding:.3em .7em;margin:.4em 0}
.minigemm-report .h code{background:none;color:inherit}.minigemm-report .c{color:#d9822b}
.minigemm-report details{margin-top:.3em}.minigemm-report summary{cursor:pointer;opacity:.8}
.minigemm-report pre{background:none;color:inherit;margin:.2em 0;white-space:pre-wrap}.minigemm-report .more{opacity:.6}
""".replace("\n", "")

_COLOURS = ("#4c8fd6", "#3fa58c", "#d9a13b", "#a06cc4", "#d1697b", "#8a8f98")


def _bar(counters: Counters) -> str:
    """The instruction mix as one strip, a title on each part."""
    parts = "".join(
        f'<div style="width:{share:.2%};background:{colour}" title="{escape(name)} {share:.0%}"></div>'
        for (name, share), colour in zip(_shares(counters), _COLOURS, strict=False)
    )
    return f"<div class=bar>{parts}</div>" if parts else ""


def _hazard_html(hazard: Hazard) -> str:
    times = f" &times;{hazard.count:,}" if hazard.count > 1 else ""
    fix = f"<br><i>Fix:</i> {escape(hazard.fix)}" if hazard.fix else ""
    place = escape(_place(hazard.location, hazard.ptx_line))
    return f"<div class=h><b>{escape(hazard.kind)}</b> at <code>{place}</code>{times}<br>{escape(hazard.message)}{fix}</div>"


def _line_html(line: LineCount) -> str:
    cells = (
        _place(line.location, line.ptx_line),
        f"{line.space} {_verb(line.store)}",
        f"{line.requests:,}",
        _bytes(line.bytes),
    )
    style = " class=c" if line.bank_conflicts else ""
    return (
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + f"<td{style}>{escape(_cost(line))}</td></tr>"
    )


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>"


def _more(n: int, what: str) -> str:
    return f"<div class=more>and {n - SHOWN} more {what}</div>" if n > SHOWN else ""


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, NumPy numbers as Python's; a line count has its ratios too."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, LineCount):
            fields |= {
                name: getattr(value, name)
                for name in ("sectors_per_request", "wavefronts_per_request", "bank_conflicts")
            }
        return fields
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
