"""Who was busy and who waited, in cycles of a stated model.

The emulator knows what must come before what. With a few rates it can say when: each warp has a clock that advances with the instructions it
executes, TMA and the tensor core have one each, and a wait ends when what it waits for has happened. The warp whose clock is behind runs first and
a copy lands when the clocks have reached its time, so the schedule itself is that of the model. It is a model, never a measurement: no caches, no
contention of other CTAs, one instruction a cycle for each warp.

A timeline is data: `Timeline.to_dict()` gives

    {"unit": "cycles", "source": "model", "rates": {...}, "agents": ["warp 0", ..., "tensor core", "TMA"],
     "intervals": [{"agent": "warp 0", "start": 0, "end": 96, "state": "busy" | "waiting", "what": "...", "line": "s06.cu:71"}, ...]}

and a measured run (`minigemm.bench.tracing`) fills the same with "unit": "ns", "source": "measured" and no rates; its "about" names the GPU and what ran there.
Intervals of one agent do not overlap, except those of TMA, which has many copies in flight.

Source of the rates: NVIDIA H100 datasheet (4096 FP8 products a cycle and SM); latencies and bandwidth are round figures for one SM of a busy GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Interval", "Model", "Rates", "Timeline"]


@dataclass(frozen=True)
class Rates:
    """The model's figures, in cycles and bytes.

    issue: cycles of one instruction of a warp. products: FP8 products a cycle of the tensor core. shared_bandwidth: bytes a cycle that it can read of
    shared memory. wgmma_latency: from the end of a product to its retirement. tma_latency: from a copy's issue to its first bytes.
    tma_bandwidth: bytes a cycle of one SM. barrier_latency: of a barrier, or from a phase's completion to its waiters.
    """

    issue: float = 1.0
    products: int = 4096
    shared_bandwidth: int = 128
    wgmma_latency: int = 32
    tma_latency: int = 600
    tma_bandwidth: float = 48.0
    barrier_latency: int = 20

    def wgmma(self, n: int) -> float:
        """Cycles of one m64nNk32: its products, or the bytes of both operands where those take longer."""
        return max(64 * n * 32 / self.products, (64 + n) * 32 / self.shared_bandwidth)


@dataclass(frozen=True)
class Interval:
    """One agent's time from `start` to `end`: "busy" or "waiting", with what, and the source line that made it so."""

    agent: str
    start: float
    end: float
    state: str
    what: str = ""
    line: str = ""


@dataclass
class Timeline:
    """The intervals of one CTA. `unit` is "cycles" of a model or "ns" of a measurement, as `source` says. `about`: what is known of the run besides."""

    unit: str = "cycles"
    source: str = "model"
    agents: list[str] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> float:
        """When the last agent was done."""
        return max((interval.end for interval in self.intervals), default=0.0)

    def share(self, state: str, *agents: str) -> float:
        """The part of the whole time that these agents, on average, spent in "busy" or "waiting"."""
        named = set(agents)
        spent = sum(i.end - i.start for i in self.intervals if i.agent in named and i.state == state)
        return spent / (self.end * len(named)) if self.end and named else 0.0

    def to_dict(self) -> dict[str, Any]:
        """What `json.dumps` takes, in the schema above."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Timeline:
        """The inverse of `to_dict`; also for measured runs."""
        intervals = [Interval(**interval) for interval in data["intervals"]]
        return cls(
            data["unit"],
            data["source"],
            list(data["agents"]),
            intervals,
            dict(data.get("rates", {})),
            dict(data.get("about", {})),
        )


class Model:
    """The clocks of one CTA while it runs, and of those of its cluster, each on an SM of its own; the intervals of the first one are kept."""

    def __init__(self, warps: int, rates: Rates, ctas: int = 1, stride: int = 0) -> None:
        """``warps`` of a CTA; those of the next begin ``stride`` on."""
        self.rates, self.warps, self.stride = rates, warps, stride or warps
        self.now = [0.0] * (self.stride * ctas)
        self.tensor_core = [0.0] * ctas  # when it is free
        self.copies = [0.0] * ctas  # when TMA can begin the next one
        self.products: dict[int, float] = {}  # warpgroup -> when its last product is done
        self.timeline = Timeline(
            agents=[f"warp {w}" for w in range(warps)] + ["tensor core", "TMA"], rates=asdict(rates)
        )

    def add(self, agent: str, start: float, end: float, state: str, what: str, line: str) -> None:
        """One interval; what goes on where it left off is one with the one before."""
        if end <= start:
            return
        kept = self.timeline.intervals
        if (
            kept
            and kept[-1].agent == agent
            and kept[-1].end == start
            and (kept[-1].state, kept[-1].what) == (state, what)
        ):
            kept[-1] = Interval(agent, kept[-1].start, end, state, what, kept[-1].line)
        else:
            kept.append(Interval(agent, start, end, state, what, line))

    def executed(self, warp: int, instructions: float, line: str) -> None:
        """A warp issued so many instructions."""
        start = self.now[warp]
        self.now[warp] = start + instructions * self.rates.issue
        self._add(warp, f"warp {warp}", start, self.now[warp], "busy", "instructions", line)

    def _add(self, warp: int, agent: str, start: float, end: float, state: str, what: str, line: str) -> None:
        """Of the first CTA."""
        if warp < self.stride:
            self.add(agent, start, end, state, what, line)

    def at(self, warps: list[int]) -> float:
        """When the last of these warps came."""
        return max(self.now[w] for w in warps)

    def until(self, warps: list[int], time: float, what: str, line: str) -> None:
        """These warps wait until that time, if it is not past."""
        for w in warps:
            if time > self.now[w]:
                self._add(w, f"warp {w}", self.now[w], time, "waiting", what, line)
                self.now[w] = time

    def product(self, warpgroup: int, warps: list[int], n: int, line: str) -> None:
        """A WGMMA: in order, and one at a time on the SM's tensor cores."""
        self.until(warps, self.at(warps), "the other warps of the warpgroup", line)
        cta = warps[0] // self.stride
        start = max(self.now[warps[0]], self.tensor_core[cta])
        self.tensor_core[cta] = start + self.rates.wgmma(n)
        self.products[warpgroup] = self.tensor_core[cta] + self.rates.wgmma_latency
        self._add(
            warps[0], "tensor core", start, self.tensor_core[cta], "busy", f"warpgroup {warpgroup}", line
        )

    def copy(self, warp: int, nbytes: int, what: str, line: str) -> float:
        """A TMA copy: when it will have landed."""
        cta = warp // self.stride
        start = max(self.now[warp], self.copies[cta])
        self.copies[cta] = start + nbytes / self.rates.tma_bandwidth
        landed = self.copies[cta] + self.rates.tma_latency
        self._add(warp, "TMA", start, landed, "busy", what, line)
        return landed
