"""The pipeline lab: from s04, which loads a tile, multiplies it and only then loads the next, to s05 and its
ring of stages.

A submission is a version of s05_pipelined.cu. It runs with two configs, whole and ragged shapes, and copies
that complete as late or as early as its barriers allow; every run is searched for hazards and its bytes are
counted. The cycle model then says how busy the tensor core is.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import emulator, quantize
from ..compiler import jit
from ..emulator import Report
from ..emulator.watch.timeline import Timeline
from ..kernels import inspect, s04_wgmma, s05_pipelined
from ..kernels.stage import Stage
from ..layout import ceil_div
from ..quantize import BLOCK, Quantized
from ..runtime import emulated
from ..types import CompileError, Config, Product, TensorMap
from ..verify.judge import relative_error, tolerance
from .grading import Criterion, Lab, Outcome
from .skeleton import Task

__all__ = ["MARGIN", "PIPELINE", "baseline", "overlap", "timeline_of"]

MAIN = s05_pipelined.Config(block_m=128, block_n=64, stages=4)
SMALL = s05_pipelined.Config(block_m=64, block_n=32, stages=2)
TIMED = Product(128, 64, 1024)  # one CTA: what the cycle model looks at
CASES = (
    (MAIN, Product(128, 64, 1024)),  # whole tiles
    (MAIN, Product(200, 72, 656)),  # ragged, several CTAs
    (MAIN, Product(70, 77, 320)),  # a d that no tensor map can describe
    (MAIN, Product(40, 24, 128)),  # one k-step
    (SMALL, Product(100, 40, 1168)),  # many rounds of the smallest ring
)
SCHEDULES = ("late", "early", 1)
MARGIN = 1.5  # how many times as busy as in s04 the tensor core must be; a full ring of four gives 2.1
ENDLESS = 4e5  # basic blocks of a launch; the longest case needs a tenth
PATIENCE = 2  # after this many runs that do not end, no other is tried
SHOWN = 2  # hazards told in full

TASKS = (
    Task("a ring: STAGES tiles of a, STAGES tiles of b, and a barrier for each slot", "a[STAGES][BLOCK_M]"),
    Task(
        "load into slot `stage`: its tiles, its barrier, the bytes of one slot",
        "int stage, const CUtensorMap& a_map",
    ),
    Task("multiply the tiles of slot `stage`", "const Shared& shared, int stage, int row"),
    Task("initialise the barrier of every slot", "mbarrier_init(&shared.full[i]"),
    Task("ask for the first STAGES - 1 tiles, or for fewer where k has fewer", "i < STAGES - 1"),
    Task(
        "each step: its slot and parity; leave a group in flight; load STAGES - 1 steps ahead",
        "int stage = 0, before",
    ),
    Task("the last group of products is still in flight", "  wgmma_wait_group<0>();\n  keep_in_order(acc);"),
)
GIVEN = (
    "// s05_pipelined:",
    "// Shared memory holds STAGES",
    "s05_pipelined(",
    "thread 0 has initialised the barriers",
)

CRITERIA = (
    Criterion("compiles", 10, "The file compiles for both configs, with the shared memory that they say."),
    Criterion(
        "result",
        30,
        "The product is right in every case: whole and ragged shapes, one k-step and many, copies that land late, "
        "early or at random.",
    ),
    Criterion("hazards", 20, "The emulator finds no hazard in any of these runs."),
    Criterion(
        "structure",
        10,
        "The SASS holds UTMALDG, QGMMA and a wait that leaves one group of products in flight; loads complete on "
        "several mbarriers.",
    ),
    Criterion(
        "overlap",
        20,
        "In the cycle model a load is in flight while the tensor core works, which is busy at least "
        f"{MARGIN:g} times as much as in s04.",
    ),
    Criterion("bytes", 10, "TMA loads each tile once for each CTA that needs it, and no other."),
)


@dataclass
class _Runs:
    """The findings of all cases in words. Each list begins with what the learner should look at first."""

    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # faults and deadlocks
    hazards: dict[str, str] = field(default_factory=dict)  # kind and place -> in full
    excess: list[str] = field(default_factory=list)
    ended: int = 0  # runs that came to their end
    barriers: int = 0  # mbarriers on which loads of one CTA complete, at most


def judge(path: Path) -> Iterator[Outcome]:
    """Yield an outcome for each criterion, the cheap ones first: they stay known when a later one never
    ends."""
    # Without a compiled kernel nothing else can be judged.
    try:
        for config in (MAIN, SMALL):
            _built(path, config)
    except CompileError as error:
        yield Outcome("compiles", False, str(error).partition("\n\nWith its constants")[0])
        yield from (Outcome(name, False) for name in ("result", "hazards", "structure", "overlap", "bytes"))
        return
    yield Outcome("compiles", True)

    # A run that fails can take long, so the cases end after some of them.
    runs = _Runs()
    for config, product in CASES:
        for schedule in SCHEDULES:
            if len(runs.failed) < PATIENCE:
                _try(path, config, product, schedule, runs)

    # A failed run tells nothing for sure about hazards and bytes, so they cannot count as met.
    endless = "the kernel does not come to its end in every case: repair that first, then this can be judged"
    first = [endless] if runs.failed else []
    yield _outcome("result", [*runs.failed, *runs.wrong])
    yield _outcome("hazards", [*first, *runs.hazards.values()])
    yield _outcome("bytes", [*first, *runs.excess])
    yield _outcome("structure", list(_structure(path, runs)) if runs.ended else [endless])
    yield _outcome("overlap", list(_overlap(path)) if runs.ended else [endless])


def _outcome(criterion: str, told: list[str]) -> Outcome:
    """The criterion is met when there is nothing to tell; otherwise the outcome tells the first things."""
    more = [f"... and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
    return Outcome(criterion, not told, "\n".join([*told[:SHOWN], *more]))


# --- runs


def _built(path: Path, config: Config) -> jit.Kernel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's: no points depend on them
        return jit.build(path, config, name="s05_pipelined", symbol="s05_pipelined")


@functools.cache
def _operands(product: Product) -> tuple[Quantized, Quantized]:
    a = quantize.activations(product.m, product.k, seed=5)
    b = quantize.weights(product.n, product.k, seed=6)
    return quantize.quantize(a), quantize.quantize(b)


@functools.cache
def _expected(product: Product) -> tuple[torch.Tensor, float]:
    """The exact product, and the relative error below which a result is right."""
    a, b = _operands(product)
    exact = quantize.reference(a, b)
    return exact, tolerance(s05_pipelined.stage, a, b, exact)


def _run(
    stage: Stage, path: Path, config: Config, product: Product, schedule: str | int, timeline: bool = False
) -> tuple[torch.Tensor, Report]:
    """Launch once, into a d of NaN. An endless loop is named after a fraction of a second, not after
    minutes."""
    a, b = _operands(product)
    d = torch.full((product.m, product.n), float("nan"), dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = jit.build(path, config, name=stage.name, symbol=stage.symbol)
    launch = stage.launch(a, b, d, product, config)
    args = [emulated.tensor_map(arg) if isinstance(arg, TensorMap) else arg for arg in launch.args]
    report = emulator.launch(
        kernel.ptx,
        launch.grid,
        launch.block,
        args,
        kernel=kernel.symbol,
        shared=launch.shared,
        schedule=schedule,
        profile=False,
        instruction_limit=ENDLESS,
        timeline=timeline,
    )
    return d, report


def _try(
    path: Path, config: s05_pipelined.Config, product: Product, schedule: str | int, runs: _Runs
) -> None:
    """Run one case and add what it shows to `runs`."""
    m, n, k = product.m, product.n, product.k
    tiles = f"{config.block_m}x{config.block_n} tiles"
    case = f"m={m}, n={n}, k={k}, {tiles}, {config.stages} stages, schedule {schedule}"
    try:
        d, report = _run(s05_pipelined.stage, path, config, product, schedule)
    except emulator.EmulatorError as error:
        runs.failed.append(f"{case}: {type(error).__name__}: {error}")
        return
    runs.ended += 1

    exact, tolerance = _expected(product)
    distance = relative_error(d, exact)
    if not distance < tolerance:
        runs.wrong.append(f"{case}: the relative error is {distance:.2g}, and below {tolerance:.2g} is right")

    # A kernel that multiplies nothing has no hazard either.
    for hazard in report.hazards:
        runs.hazards.setdefault(f"{hazard.kind} {hazard.location}", f"{case}:\n{hazard}")
    steps = ceil_div(k, BLOCK)
    needed = steps * (config.block_m // 64) * BLOCK // 32
    if sum(event.kind == "wgmma issued" for event in report.events) < needed:
        nothing = "the tensor core has not multiplied every tile, so that there is nothing to judge"
        runs.hazards.setdefault("nothing", f"{case}: {nothing}")

    ctas = ceil_div(m, config.block_m) * ceil_div(n, config.block_n)
    size = ctas * steps * (config.block_m + config.block_n) * BLOCK
    loaded = report.counters["tma_load_bytes"]
    if loaded != size:
        advice = "a tile is loaded twice, or one beyond k" if loaded > size else "tiles are missing"
        runs.excess.append(f"{case}: TMA loads {loaded:,} bytes where the tiles have {size:,}: {advice}")
    runs.barriers = max(runs.barriers, len({event.agent for event in report.events if event.kind == "phase"}))


# --- structure and overlap


def _structure(path: Path, runs: _Runs) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = inspect(s05_pipelined, MAIN, source=path)
    for opcode, what in (("UTMALDG", "a TMA load"), ("QGMMA", "a product of the tensor core in FP8")):
        if not compiled.opcodes[opcode]:
            yield f"the SASS has no {opcode}, {what}"
    waits = [each.text for each in compiled.instructions if each.text.startswith("WARPGROUP.DEPBAR")]
    if not any(text.endswith("0x1") for text in waits):
        yield (
            "no wait leaves a group of products in flight: in the loop, wgmma_wait_group<1> waits for the step "
            "before only, and the tensor core has work while the threads go on"
        )
    if runs.barriers < 2:
        barriers = "1 mbarrier" if runs.barriers else "no mbarriers"
        yield f"loads complete on {barriers}: each of the STAGES slots has its own, shared.full[stage]"


def timeline_of(path: Path | None = None) -> Report:
    """Run one CTA of the timed product under the cycle model: s05's version in `path`, or s04 with the same
    tiles."""
    if path is None:
        before = s04_wgmma.Config(MAIN.block_m, MAIN.block_n)
        return _run(s04_wgmma.stage, s04_wgmma.stage.source, before, TIMED, "late", timeline=True)[1]
    return _run(s05_pipelined.stage, path, MAIN, TIMED, "late", timeline=True)[1]


def overlap(timeline: Timeline) -> tuple[float, float]:
    """Compute two shares of the time: the tensor core is busy; it is busy while a load is in flight."""
    busy = [i for i in timeline.intervals if i.agent == "tensor core" and i.state == "busy"]
    products = [(i.start, i.end) for i in busy]
    loading = [i for i in timeline.intervals if i.agent == "TMA" and i.what.startswith("load")]
    loads = sorted((i.start, i.end) for i in loading)
    both = 0.0
    for start, end in products:
        # Loads overlap each other: what one has covered, the next does not count again.
        reached = start
        for begin, landed in loads:
            both += max(0.0, min(end, landed) - max(reached, begin))
            reached = max(reached, min(end, landed))
    length = timeline.end or 1.0
    return sum(end - start for start, end in products) / length, both / length


@functools.cache
def baseline() -> float:
    """The share of the time in which s04 keeps the tensor core busy."""
    timeline = timeline_of().timeline
    assert timeline is not None
    return timeline.share("busy", "tensor core")


def _overlap(path: Path) -> Iterator[str]:
    try:
        timeline = timeline_of(path).timeline
    except emulator.EmulatorError as error:
        yield f"the kernel does not come to its end under the cycle model: {type(error).__name__}: {error}"
        return
    assert timeline is not None
    busy, both = overlap(timeline)
    if not both:
        yield (
            "no load is in flight while the tensor core works: ask for the tile STAGES - 1 steps ahead before you "
            "wait for the next one"
        )
    if busy < MARGIN * baseline():
        ahead = MAIN.stages - 1
        yield (
            f"the tensor core is busy {busy:.0%} of the time in the cycle model, and {baseline():.0%} in s04; "
            f"{MARGIN:g} times as much is asked for. With {MAIN.stages} stages {ahead} tiles can be on their way: "
            f"does each step ask for the one that is {ahead} steps ahead?"
        )


def _prepare() -> None:
    """Compute what no submission decides, once for all of them."""
    for _, product in CASES:
        _expected(product)
    baseline()


PIPELINE = Lab(
    name="pipeline",
    title="From one buffer to a ring of stages",
    before="s04_wgmma",
    after="s05_pipelined",
    tasks=TASKS,
    given=GIVEN,
    criteria=CRITERIA,
    judge=judge,
    prepare=_prepare,
)
