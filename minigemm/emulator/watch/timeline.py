"""The timeline of a launch: who was busy and who waited, in cycles of a stated model.

The emulator knows what must come before what. With a few rates it can say when: each warp has a clock that
advances with the instructions it executes, TMA and the tensor core have one each, and a wait ends when the
awaited event has happened. The warp whose clock is behind runs first and a copy lands when the clocks have
reached its time, so the schedule itself is that of the model. It is a model, never a measurement: no
caches, no contention of other CTAs, one instruction a cycle for each warp.

A timeline is data: `Timeline.to_dict()` gives

    {"unit": "cycles", "source": "model", "rates": {...},
     "agents": ["warp 0", ..., "tensor core", "TMA"],
     "intervals": [{"agent": "warp 0", "start": 0, "end": 96, "state": "busy" | "waiting",
                    "what": "...", "line": "s06.cu:71"}, ...]}

and a measured run (`minigemm.bench.tracing`) fills the same with "unit": "ns", "source": "measured" and no
rates; its "about" names the GPU and the kernel. Intervals of one agent do not overlap, except those of TMA,
which has many copies in flight.

Source of the rates: NVIDIA H100 datasheet (4096 FP8 products a cycle and SM); latencies and bandwidth are
round figures for one SM of a busy GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Interval", "Model", "Rates", "Timeline"]


@dataclass(frozen=True)
class Rates:
    """The model's figures, in cycles and bytes.

    Attributes:
        issue: cycles per instruction of a warp.
        products: FP8 products per cycle of the tensor core.
        shared_bandwidth: bytes per cycle that the tensor core reads from shared memory.
        wgmma_latency: cycles from the end of a product to its retirement.
        tma_latency: cycles from a copy's issue to its first bytes.
        tma_bandwidth: bytes per cycle of one SM.
        barrier_latency: cycles of a barrier, or from a phase's completion to its waiters.
    """

    issue: float = 1.0
    products: int = 4096
    shared_bandwidth: int = 128
    wgmma_latency: int = 32
    tma_latency: int = 600
    tma_bandwidth: float = 48.0
    barrier_latency: int = 20

    def wgmma(self, n: int) -> float:
        """Return the cycles of one m64nNk32: of its products, or its operands' bytes if they take longer."""
        return max(64 * n * 32 / self.products, (64 + n) * 32 / self.shared_bandwidth)


@dataclass(frozen=True)
class Interval:
    """One agent's time from `start` to `end`.

    Attributes:
        state: "busy" or "waiting".
        what: the work, or the event that the agent waits for.
        line: the source line that started the work or the wait.
    """

    agent: str
    start: float
    end: float
    state: str
    what: str = ""
    line: str = ""


@dataclass
class Timeline:
    """The intervals of one CTA.

    Attributes:
        unit, source: "cycles" and "model", or "ns" and "measured".
        agents: the names of all agents, in the order in which to draw them.
        rates: the figures of the model.
        about: other facts about the run.
    """

    unit: str = "cycles"
    source: str = "model"
    agents: list[str] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> float:
        """The time at which the last agent was done."""
        return max((interval.end for interval in self.intervals), default=0.0)

    def share(self, state: str, *agents: str) -> float:
        """Return the part of the whole time that these agents, on average, spent "busy" or "waiting"."""
        named = set(agents)
        spent = sum(i.end - i.start for i in self.intervals if i.agent in named and i.state == state)
        return spent / (self.end * len(named)) if self.end and named else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the timeline in a form that `json.dumps` takes, in the schema above."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Timeline:
        """Return the timeline that `to_dict` described; also for measured runs."""
        intervals = [Interval(**interval) for interval in data["intervals"]]
        rates, about = dict(data.get("rates", {})), dict(data.get("about", {}))
        return cls(data["unit"], data["source"], list(data["agents"]), intervals, rates, about)


class Model:
    """The clocks of a CTA, or of the CTAs of a cluster, each on an SM of its own.

    Only the first CTA's intervals are kept.

    Attributes:
        now: the time of each warp.
        tensor_core: the time at which each CTA's tensor core is free.
        copies: the time at which each CTA's TMA can begin the next copy.
        products: warpgroup -> the time at which its last product is done.
    """

    def __init__(self, warps: int, rates: Rates, ctas: int = 1, stride: int = 0) -> None:
        """A CTA has `warps` warps. The numbers of the next CTA's warps are `stride` higher."""
        self.rates, self.warps, self.stride = rates, warps, stride or warps
        self.now = [0.0] * (self.stride * ctas)
        self.tensor_core = [0.0] * ctas
        self.copies = [0.0] * ctas
        self.products: dict[int, float] = {}
        agents = [*(f"warp {w}" for w in range(warps)), "tensor core", "TMA"]
        self.timeline = Timeline(agents=agents, rates=asdict(rates))

    def add(self, agent: str, start: float, end: float, state: str, what: str, line: str) -> None:
        """Keep an interval; one that goes on where the last one ended makes that one longer."""
        if end <= start:
            return
        kept = self.timeline.intervals
        last = kept[-1] if kept else None
        if last and (last.agent, last.end, last.state, last.what) == (agent, start, state, what):
            kept[-1] = Interval(agent, last.start, end, state, what, last.line)
        else:
            kept.append(Interval(agent, start, end, state, what, line))

    def executed(self, warp: int, instructions: float, line: str) -> None:
        """Let a warp issue this many instructions."""
        start = self.now[warp]
        self.now[warp] = start + instructions * self.rates.issue
        self._add(warp, f"warp {warp}", start, self.now[warp], "busy", "instructions", line)

    def _add(self, warp: int, agent: str, start: float, end: float, state: str, what: str, line: str) -> None:
        """Keep an interval if the warp belongs to the first CTA."""
        if warp < self.stride:
            self.add(agent, start, end, state, what, line)

    def at(self, warps: list[int]) -> float:
        """Return the time at which the last of these warps came."""
        return max(self.now[w] for w in warps)

    def until(self, warps: list[int], time: float, what: str, line: str) -> None:
        """Let these warps wait until `time`, if it is not past."""
        for w in warps:
            if time > self.now[w]:
                self._add(w, f"warp {w}", self.now[w], time, "waiting", what, line)
                self.now[w] = time

    def product(self, warpgroup: int, warps: list[int], n: int, line: str) -> None:
        """Execute a WGMMA: in order, and one at a time on the SM's tensor cores."""
        self.until(warps, self.at(warps), "the other warps of the warpgroup", line)
        cta = warps[0] // self.stride
        start = max(self.now[warps[0]], self.tensor_core[cta])
        self.tensor_core[cta] = start + self.rates.wgmma(n)
        self.products[warpgroup] = self.tensor_core[cta] + self.rates.wgmma_latency
        what = f"warpgroup {warpgroup}"
        self._add(warps[0], "tensor core", start, self.tensor_core[cta], "busy", what, line)

    def copy(self, warp: int, nbytes: int, what: str, line: str) -> float:
        """Issue a TMA copy; returns the time at which it will have landed."""
        cta = warp // self.stride
        start = max(self.now[warp], self.copies[cta])
        self.copies[cta] = start + nbytes / self.rates.tma_bandwidth
        landed = self.copies[cta] + self.rates.tma_latency
        self._add(warp, "TMA", start, landed, "busy", what, line)
        return landed
