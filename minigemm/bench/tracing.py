"""A measured timeline: where the warps of a CTA waited on a GPU, in the schema and the picture of the emulator's model.

    timeline = tracing.trace("s06_warp_specialized", a, b)   # on the GPU that holds a and b, or on the emulator for CPU tensors
    views.timeline(timeline)

The kernel is the stage's own file, compiled against a ptx.cuh that has `tracing.cuh` behind it: calls that wait or start something take the clock (`%clock`
of the SM) before and behind, and one lane of each warp writes that down. One CTA is traced; of every CTA, `%globaltimer` and the clock at its begin and its
end say how long a cycle was and when it began. On the emulator the same build reads the clocks of the cycle model, and its timeline can be held against the
emulator's own.

What a measured interval is:
- a warp's waiting: from before the instruction that may wait until behind it, a wait that is over at once included (some 10 to 40 cycles);
- a copy of TMA: from its issue until the first warp has seen it landed, a store's until its thread has seen it read. Nobody looks earlier, so where no warp was
  waiting for it this is an upper bound;
- the tensor core's: a group of products, from `wgmma.fence` until its first warp has seen it retired; a group that must have been done before anyone asked
  ends when the datasheet's rate would have it done. As in the model, one group at a time: where those of two warpgroups overlap, the later one counts
  from the end of the earlier.

What it costs: every event about 20 instructions of its warp and 16 bytes written, a few instructions in the CTAs that are not traced, 8 bytes of shared memory
a warp, and a few registers. d has the same bits; `overhead` compares them and measures the time.
"""

from __future__ import annotations

import datetime
import math
import re
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import runtime
from ..bench.timing import time_on_gpu
from ..compiler import jit
from ..emulator import Rates, Report
from ..emulator.watch.timeline import Interval, Timeline
from ..hopper import CLOCK_HZ, SHARED_LIMIT
from ..kernels import stage_named
from ..kernels.stage import Stage
from ..layout import round_up
from ..machine import identity
from ..quantize import BLOCK, Quantized
from ..runtime.emulated import observe
from ..types import Config, Launch, Problem, TensorMap

__all__ = ["Overhead", "Traced", "build", "overhead", "run", "trace"]

HEADER = Path(__file__).with_name("tracing.cuh")
RECORDS = 1 << 14  # a warp's room: 256 KiB
LAUNCHES = 10  # on a GPU; the last one counts
# Kinds of records, as in tracing.cuh.
(
    START,
    END,
    MBARRIER,
    ISSUE,
    COMMIT,
    PRODUCTS,
    LOAD,
    STORE,
    STORE_COMMIT,
    STORES,
    BARRIER,
    REGISTERS,
    ARRIVE,
    EXPECT,
) = range(1, 15)
_NAMES = {
    MBARRIER: "mbarrier waits", COMMIT: "product groups", PRODUCTS: "product waits", LOAD: "loads", STORE: "stores", STORES: "store waits",
    BARRIER: "barriers", REGISTERS: "setmaxnreg", ARRIVE: "arrivals", EXPECT: "expect_tx",
}  # fmt: skip
_HIDDEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.DOTALL)


@dataclass(frozen=True)
class Traced:
    """A traced call: its d, its timeline, and on the emulator the report of the same run, with the model's own timeline."""

    d: torch.Tensor
    timeline: Timeline
    report: Report | None


@dataclass(frozen=True)
class Overhead:
    """A stage with and without the trace: time in `unit` ("s" of a GPU, "cycles" of the model), and whether d has the same bits."""

    plain: float
    traced: float
    unit: str
    same_bits: bool

    @property
    def slowdown(self) -> float:
        """Of the traced build: 1.05 is 5 % slower."""
        return self.traced / self.plain


def trace(
    stage: Stage | str,
    a: Quantized,
    b: Quantized,
    config: Config | None = None,
    source: str | Path | None = None,
    cta: int = 0,
    out_dtype: torch.dtype = torch.bfloat16,
    rates: Rates | None = None,
) -> Timeline:
    """The timeline of one CTA of `stage.gemm(a, b, config, source)`: measured on the GPU that holds the tensors, or by the model on the emulator.

    Args:
        stage: a stage from s03_tma on, or its name.
        a, b, config, source, out_dtype: as `Stage.gemm` takes them; a and b with elements.
        cta: its number, x first. On the emulator it is 0, whose clocks the model has.
        rates: of the model, on the emulator.

    On a GPU the last of ten launches counts, whose a, b and instructions the caches hold. Times begin with the CTA's first warp; `about` holds the machine, the
    problem, the config, `start_ns` (when this CTA began, behind the first of the launch), `clock_ghz`, the events by kind, and the mbarriers that TMA
    fills. Raises what `Stage.gemm` raises, and ValueError for a stage, a config or a CTA that cannot be traced.
    """
    return run(stage, a, b, config, source, cta, out_dtype, rates).timeline


def run(
    stage: Stage | str,
    a: Quantized,
    b: Quantized,
    config: Config | None = None,
    source: str | Path | None = None,
    cta: int = 0,
    out_dtype: torch.dtype = torch.bfloat16,
    rates: Rates | None = None,
    records: int = RECORDS,
) -> Traced:
    """The same with its d. `records`: events that a warp has room for; later ones are lost, and counted in `about["lost"]`."""
    made = _Run.of(stage, a, b, config, source, cta, out_dtype, records)
    device = a.data.device
    report = None
    if device.type == "cuda":
        for _ in range(LAUNCHES):
            made.launch()
        torch.cuda.synchronize(device)
    else:
        with observe(timeline=rates or True, hazards=False) as seen:
            made.launch()
        report = seen[0]
    return Traced(made.d, made.timeline(report), report)


def overhead(
    stage: Stage | str,
    a: Quantized,
    b: Quantized,
    config: Config | None = None,
    source: str | Path | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Overhead:
    """What tracing costs: the time of both builds, on the GPU the median of ten launches, on the emulator the model's cycles of CTA 0."""
    made = _Run.of(stage, a, b, config, source, 0, out_dtype, RECORDS)
    plain = made.plain()
    device = a.data.device
    times: list[float] = []
    outputs: list[torch.Tensor] = []
    for each in (plain, made):
        if device.type == "cuda":
            each.launch()
            times.append(time_on_gpu(each.again, device))
        else:
            with observe(timeline=True, hazards=False) as seen:
                each.launch()
            line = seen[0].timeline
            times.append(line.end if line else 0.0)
        outputs.append(each.d.view(torch.uint8).clone())
    return Overhead(times[0], times[1], "s" if device.type == "cuda" else "cycles", torch.equal(*outputs))


# ---------------------------------------------------------------------------------------------------- the build


def build(stage: Stage, config: Config, source: Path | None = None) -> jit.Kernel:
    """The trace build of a stage, or of a reader's own version: the same lines, the same symbol. Raises ValueError where it has no `ptx.cuh` to extend."""
    path = stage.source if source is None else Path(source)
    with TemporaryDirectory(prefix="minigemm-trace-") as folder:
        for name, text in _sources(path, stage.kernel).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        return jit.build(Path(folder, path.name), config, name=stage.name, kernel=stage.kernel)


def _sources(path: Path, kernel: str) -> dict[str, str]:
    """The files of a trace build by name: the stage, what lies beside it, and ptx.cuh with the trace behind it."""
    text = path.read_text(encoding="utf-8-sig")
    if not re.search(r'^\s*#\s*include\s*"ptx\.cuh"', text, re.MULTILINE):
        raise ValueError(
            f"source: expected a kernel that includes ptx.cuh, whose functions a trace follows; {path.name} does not"
        )
    headers = {name: file.read_text(encoding="utf-8-sig") for name, file in _headers(path).items()}
    numbered = {name: _numbered(headers[name], number) for number, name in enumerate(_files(path)) if number}
    return {
        **numbered,
        "ptx.cuh": f"{headers['ptx.cuh']}\n{HEADER.read_text(encoding='utf-8')}",
        path.name: _guarded(text, kernel, path),
    }


def _headers(path: Path) -> dict[str, Path]:
    """By name: the package's own, and in their place those beside the stage."""
    return {
        header.name: header
        for folder in (jit.HEADERS, path.parent)
        for header in sorted(folder.glob("*.cuh"))
    }


def _files(path: Path) -> list[str]:
    """The files that a record can name, by their number: the stage, and the headers but for ptx.cuh."""
    return [path.name, *sorted(_headers(path).keys() - {"ptx.cuh"})]


def _numbered(text: str, number: int) -> str:
    """A header whose lines are known to be those of this file."""
    return f"#undef TRACE_FILE\n#define TRACE_FILE {number}\n#line 1\n{text}\n#undef TRACE_FILE\n#define TRACE_FILE 0\n"


def _guarded(text: str, kernel: str, path: Path) -> str:
    """The stage with a `TraceWarp` first in the kernel's body, on the line of its brace: it sees each warp come, and go by whichever return."""
    plain = _HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    head = re.search(rf"__global__[^;{{}}]*?\b{re.escape(kernel)}\s*\(", plain)
    at, depth = (head.end(), 1) if head else (0, 0)
    while head and depth and at < len(plain):
        depth += {"(": 1, ")": -1}.get(plain[at], 0)
        at += 1
    brace = plain.find("{", at)
    if not head or brace < 0:
        raise ValueError(f'source: expected extern "C" __global__ void {kernel}(...) {{...}} in {path.name}')
    return f"{text[: brace + 1]} TraceWarp trace_warp;{text[brace + 1 :]}"


# ---------------------------------------------------------------------------------------------------- the run


@dataclass
class _Run:
    """A launch with what it writes to."""

    stage: Stage
    source: Path
    problem: Problem
    config: Config
    kernel: jit.Kernel
    description: Launch
    d: torch.Tensor
    cta: int
    records: torch.Tensor | None  # (warps, records, 4) int32; None: not traced
    ctas: torch.Tensor | None  # (CTAs, 4) int64
    loaded: Any = None

    @classmethod
    def of(
        cls,
        stage: Stage | str,
        a: Quantized,
        b: Quantized,
        config: Config | None,
        source: str | Path | None,
        cta: int,
        out_dtype: torch.dtype,
        records: int,
    ) -> _Run:
        stage = stage_named(stage).stage if isinstance(stage, str) else stage
        problem = stage.check(a, b, config, source, out_dtype)
        if not (problem.m and problem.n and problem.k):
            raise ValueError(
                f"a, b: expected a product with elements to trace, got m={problem.m} n={problem.n} k={problem.k}"
            )
        config = config or stage.default_config(problem)
        if len(stage.out_dtypes) > 1:
            config = replace(config, out_fp32=out_dtype == torch.float32)  # type: ignore[call-arg]
        device = a.data.device
        d = torch.empty(problem.m, problem.n, dtype=out_dtype, device=device)
        launch = stage.launch(a, b, d, problem, config)
        threads, grid = launch.block[0], launch.grid[0] * launch.grid[1] * launch.grid[2]
        if launch.shared != config.constants().get("SHARED_BYTES") or launch.block != (threads, 1, 1):
            raise ValueError(
                f"stage: expected one whose warps wait for each other, from s03_tma on, got {stage.name}"
            )
        if launch.cluster != (1, 1, 1):
            raise ValueError(
                f"stage: expected one without clusters, whose CTAs copy for each other, got {stage.name}: a trace follows one CTA"
            )
        if not isinstance(cta, int) or not 0 <= cta < (grid if device.type == "cuda" else 1):
            there = (
                f"0 to {grid - 1}" if device.type == "cuda" else "0, whose clocks the emulator's model has"
            )
            raise ValueError(f"cta: expected {there}, got {cta!r}")
        if records < 8:
            raise ValueError(f"records: expected room for at least 8 events of a warp, got {records}")
        warps = threads // 32
        shared = launch.shared + round_up(8 * warps, 16)
        if shared > SHARED_LIMIT:
            raise ValueError(f"config: a trace needs {shared - launch.shared} bytes of shared memory beside its {launch.shared}, of {SHARED_LIMIT}: take fewer "
                             "stages")  # fmt: skip
        path = stage.source if source is None else Path(source)
        if source is not None:  # what is wrong with it is said of the reader's own file
            jit.build(path, config, name=stage.name, kernel=stage.kernel)
        kernel = build(stage, config, path)
        written = torch.zeros(warps, records, 4, dtype=torch.int32, device=device)
        times = torch.zeros(grid, 4, dtype=torch.int64, device=device)
        return cls(
            stage, path, problem, config, kernel, replace(launch, shared=shared), d, cta, written, times
        )

    def plain(self) -> _Run:
        """The same without a trace, with a d of its own."""
        d = torch.empty_like(self.d)
        args = tuple(_redirected(arg, self.d, d) for arg in self.description.args)
        launch = replace(self.description, args=args, shared=self.config.constants()["SHARED_BYTES"])
        kernel = jit.build(self.source, self.config, name=self.stage.name, kernel=self.stage.kernel)
        return replace(self, kernel=kernel, description=launch, d=d, records=None, ctas=None, loaded=None)

    def launch(self) -> None:
        """Launch into clean records."""
        variables: dict[str, Any] = {}
        if self.records is not None and self.ctas is not None:
            self.records.zero_()
            variables = {"minigemm_trace": self.records, "minigemm_trace_ctas": self.ctas, "minigemm_trace_cta": self.cta,
                         "minigemm_trace_records": self.records.shape[1]}  # fmt: skip
        machine = runtime.of(self.d.device)
        self.loaded = self.loaded or machine.load(self.kernel, self.description.shared, self.d.device)
        machine.launch(self.loaded, self.description, variables)

    def again(self) -> None:
        """Launch once more over what is there: nothing but the kernel, for its time."""
        runtime.of(self.d.device).launch(self.loaded, self.description)

    def timeline(self, report: Report | None) -> Timeline:
        """What the records say."""
        assert self.records is not None and self.ctas is not None
        device = self.d.device
        records = self.records.cpu().numpy().view(np.uint32)
        times = self.ctas.cpu().numpy()
        about: dict[str, Any] = {
            "stage": self.stage.name, "m": self.problem.m, "n": self.problem.n, "k": self.problem.k, "config": asdict(self.config), "cta": self.cta,
            "ctas": len(times), "date": datetime.date.today().isoformat(), "runtime": "emulated" if report else "cuda",
        }  # fmt: skip
        scale = 1.0
        if report is None:
            machine = identity(device)
            about |= {key: machine[key] for key in ("gpu", "driver", "cuda", "nvrtc")}
            scale = _ns_a_cycle(times, torch.cuda.get_device_properties(device))
            about |= {
                "clock_ghz": round(1 / scale, 4),
                "start_ns": int(times[self.cta, 0] - times[:, 0].min()),
            }
        stored = next(
            (
                arg
                for arg in self.description.args
                if isinstance(arg, TensorMap) and arg.tensor.data_ptr() == self.d.data_ptr()
            ),
            None,
        )
        store_bytes = int(np.prod(stored.box)) * self.d.element_size() if stored else 0
        products = vars(self.config)["block_m"] * vars(self.config)["block_n"] * BLOCK
        line = decode(records, _files(self.source), store_bytes, scale, products)
        modelled = report.timeline if report else None
        return replace(line, unit="cycles" if report else "ns", source="model" if report else "measured", about={**about, **line.about},
                       rates=dict(modelled.rates) if modelled else {})  # fmt: skip


def _redirected(arg: object, d: torch.Tensor, other: torch.Tensor) -> object:
    """A launch's argument, with another tensor in place of d."""
    if isinstance(arg, TensorMap) and arg.tensor.data_ptr() == d.data_ptr():
        return replace(arg, tensor=other)
    return other if isinstance(arg, torch.Tensor) and arg.data_ptr() == d.data_ptr() else arg


def _ns_a_cycle(times: np.ndarray, properties: Any) -> float:
    """Of all CTAs together, since `%globaltimer` goes in steps; the device's nominal clock where the launch was too short for it."""
    spans = times[:, 2:] - times[:, :2]
    good = (spans > 0).all(1)
    ns, cycles = spans[good].sum(0) if good.any() else (0, 0)
    if ns > 0 and 0.2 < cycles / ns < 4:
        return float(ns / cycles)
    return 1e6 / float(getattr(properties, "clock_rate", 0) or CLOCK_HZ / 1000)


# ---------------------------------------------------------------------------------------------------- the records


class _Event(NamedTuple):
    kind: int
    line: str
    begin: float  # cycles from the CTA's first record on
    end: float
    value: int  # the second word as a number
    argument: int


def _events(rows: np.ndarray, base: int, files: Sequence[str]) -> tuple[list[_Event], _Event | None]:
    """A warp's events in its order, and its end, from its records (n, 4) uint32. Clocks are halves: differences count, modulo 2**32."""
    found = []
    for begin, second, word, argument in rows[:-1].tolist():
        if word & 0xFF == 0:
            break
        found.append(_event(begin, second, word, argument, base, files))
    begin, second, word, argument = rows[-1].tolist()
    return found, _event(begin, second, word, argument, base, files) if word & 0xFF == END else None


def _event(begin: int, second: int, word: int, argument: int, base: int, files: Sequence[str]) -> _Event:
    start = _signed(begin - base)
    return _Event(
        word & 0xFF,
        f"{files[word >> 24]}:{word >> 8 & 0xFFFF}",
        start,
        start + _signed(second - begin),
        second,
        argument,
    )


def _signed(cycles: int) -> int:
    return (cycles + (1 << 31)) % (1 << 32) - (1 << 31)


def decode(
    records: np.ndarray, files: Sequence[str], store_bytes: int = 0, scale: float = 1.0, products: int = 0
) -> Timeline:
    """The timeline of the records (warps, room, 4) uint32 of one CTA. `files`: of the code by their number, the stage first; `scale`: of the times;
    `store_bytes`: of a TMA store; `products`: of a step along k, for which the producer arrives once; without it nothing is known of the time that a group
    takes.

    Times are in cycles times `scale`. ValueError where there is no record: the kernel did not run, or it ran another CTA.
    """
    first = int(records[0, 0, 0])
    if records[0, 0, 2] & 0xFF != START:
        raise ValueError("records: expected the begin of warp 0 first; the traced CTA did not run")
    early = min(
        (_signed(int(begin) - first) for begin, _, word, _ in records[:, 0].tolist() if word & 0xFF == START),
        default=0,
    )
    warps = [_events(rows, first + early, files) for rows in records]
    lost = sum(max(0, end.argument - (records.shape[1] - 1)) for _, end in warps if end)
    over = max(
        [end.begin for _, end in warps if end]
        + [e.end if e.kind in _WAITS else e.begin for events, _ in warps for e in events]
    )
    intervals: list[Interval] = []
    for w, (events, end) in enumerate(warps):
        intervals += _waits(w, events, end.begin if end else over)
    intervals += _copies(warps, over, store_bytes)
    counts = Counter(_NAMES[event.kind] for events, _ in warps for event in events if event.kind in _NAMES)
    least = (
        products * counts[_NAMES[EXPECT]] / counts[_NAMES[COMMIT]] / Rates.products
        if counts[_NAMES[COMMIT]] and products
        else math.inf
    )
    intervals += _products(warps, over, least)
    scaled = [
        replace(i, start=round(i.start * scale, 1), end=round(i.end * scale, 1))
        for i in sorted(intervals, key=lambda i: (i.start, i.agent))
    ]
    filled = sorted({_place(event)[1] for events, _ in warps for event in events if event.kind == LOAD})
    about = {
        "sm": warps[0][0][0].value,
        "events": dict(sorted(counts.items())),
        "filled": [f"mbarrier {at:#x}" for at in filled],
        "lost": lost,
    }
    return Timeline(
        agents=[f"warp {w}" for w in range(len(warps))] + ["tensor core", "TMA"],
        intervals=scaled,
        about=about,
    )


_WAITS = {
    MBARRIER: lambda e: f"mbarrier {e.argument:#x}", PRODUCTS: lambda e: "WGMMA", STORES: lambda e: "TMA store", BARRIER: lambda e: f"barrier {e.argument}",
    REGISTERS: lambda e: "setmaxnreg",
}  # fmt: skip


def _waits(warp: int, events: list[_Event], over: float) -> Iterator[Interval]:
    """A warp: waiting where it waited, busy between."""
    agent, at = f"warp {warp}", events[0].begin if events else 0.0
    for event in events:
        if event.kind in _WAITS:
            if event.begin > at:
                yield Interval(agent, at, event.begin, "busy", "instructions", event.line)
            yield Interval(agent, event.begin, event.end, "waiting", _WAITS[event.kind](event), event.line)
            at = event.end
    if events and over > at:
        yield Interval(agent, at, over, "busy", "instructions", "")


def _products(
    warps: list[tuple[list[_Event], _Event | None]], over: float, least: float
) -> Iterator[Interval]:
    """The tensor core: groups of products in the order of their retirement, one at a time. `least`: cycles of a group."""
    groups: list[
        tuple[float, float, int, str, float]
    ] = []  # retired, issued, warpgroup, line, when it was asked for
    for w, (events, end) in enumerate(warps):
        issued: _Event | None = None
        flight: deque[_Event] = deque()
        for event in events:
            if event.kind == ISSUE:
                issued = issued or event
            elif event.kind == COMMIT and issued:
                flight.append(issued)
                issued = None
            while event.kind == PRODUCTS and len(flight) > event.argument:
                begun = flight.popleft()
                groups.append((event.end, begun.begin, w // 4, begun.line, event.begin))
        last = end.begin if end else over
        groups += [(last, begun.begin, w // 4, begun.line, last) for begun in flight]
    free = -math.inf
    for retired, began, warpgroup, line, asked in sorted(groups):
        start = max(began, free)
        done = start + least if start + least < asked else retired
        if done > start:
            yield Interval("tensor core", start, done, "busy", f"warpgroup {warpgroup}", line)
        free = max(free, done)


def _place(load: _Event) -> tuple[int, int]:
    """Where in shared memory a load goes, and its mbarrier: two halves of its argument."""
    return (load.argument & 0xFFFF) << 4, load.argument >> 16 << 3


def _copies(
    warps: list[tuple[list[_Event], _Event | None]], over: float, store_bytes: int
) -> Iterator[Interval]:
    """TMA: a load until a warp has passed its mbarrier, a store until its thread has seen it read.

    Whoever passes the mbarrier once the load is issued has waited for that phase: the one before was over when the slot was given back.
    """
    passed: dict[int, list[float]] = {}
    for events, _ in warps:
        for event in events:
            if event.kind == MBARRIER:
                passed.setdefault(event.argument, []).append(event.end)
    for ends in passed.values():
        ends.sort()
    for events, _ in warps:
        joined: list[_Event] = []
        flight: deque[list[_Event]] = deque()
        for event in events:
            if event.kind == LOAD:
                to, barrier = _place(event)
                ends = passed.get(barrier, [])
                at = bisect_right(ends, event.begin)
                size = f" {event.value} bytes" if event.value else ""
                yield Interval(
                    "TMA",
                    event.begin,
                    ends[at] if at < len(ends) else over,
                    "busy",
                    f"load{size} to {to:#x}",
                    event.line,
                )
            elif event.kind == STORE:
                joined.append(event)
            elif event.kind == STORE_COMMIT:
                flight.append(joined)
                joined = []
            while event.kind == STORES and len(flight) > event.argument:
                yield from (_store(store, event.end, store_bytes) for store in flight.popleft())
        yield from (_store(store, over, store_bytes) for group in flight for store in group)


def _store(store: _Event, end: float, nbytes: int) -> Interval:
    size = f" {nbytes} bytes" if nbytes else ""
    return Interval("TMA", store.begin, end, "busy", f"store{size} from {store.argument:#x}", store.line)
