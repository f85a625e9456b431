"""A measured timeline: where the warps of a CTA waited on a GPU, in the schema of the emulator's model.

    timeline = tracing.trace("s06_warp_specialized", a, b)  # tensors of a GPU, or of the CPU: then emulated
    views.timeline(timeline)  # the picture, as of the model

The kernel is the stage's own file, compiled against a ptx.cuh that has `tracing.cuh` behind it
(`trace_build`). Calls that wait or start something take the clock (`%clock` of the SM) before and behind, and
one lane of each warp writes that down. One CTA is traced. Every CTA stores `%globaltimer` and the clock at
its begin and its end, which say how long a cycle was and when the CTA began. `trace_records` reads all this
back. On the emulator the same build reads the clocks of the cycle model, and its timeline can be held against
the emulator's own.

What a measured interval is:

- A warp's waiting lasts from before the instruction that may wait until behind it. A wait that is over at
  once counts too (some 10 to 40 cycles).
- A load of TMA lasts from its issue until the first warp has seen it landed, a store until its thread has
  seen it read. Nobody looks earlier, so where no warp was waiting for the copy this is an upper bound.
- The tensor core's work is a group of products, from `wgmma.fence` until its first warp has seen it retired.
  A group that must have been done before anyone asked ends when the datasheet's rate would have it done. As
  in the model there is one group at a time: where groups of two warpgroups overlap, the later one counts from
  the end of the earlier.

What it costs: every event about 20 instructions of its warp and 16 bytes written, a few instructions in the
CTAs that are not traced, 8 bytes of shared memory per warp, and a few registers. d has the same bits;
`overhead` compares them and measures the time.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import runtime
from ..compiler import jit
from ..emulator import Rates, Report
from ..emulator.watch.timeline import Timeline
from ..hopper import CLOCK_HZ, SHARED_LIMIT
from ..kernels import stage_named
from ..kernels.stage import Stage
from ..layout import round_up
from ..machine import identity
from ..quantize import BLOCK, Quantized
from ..runtime.emulated import observe
from ..types import Config, Launch, Product, TensorMap
from .timing import time_on_gpu
from .trace_build import build, files
from .trace_records import decode

__all__ = ["Overhead", "Traced", "overhead", "run", "show", "trace"]

RECORDS = 1 << 14  # a warp's room: 256 KiB
LAUNCHES = 10  # on a GPU; the last one counts


@dataclass(frozen=True)
class Traced:
    """A traced call: d, its timeline, and on the emulator the run's report, with the model's own timeline."""

    d: torch.Tensor
    timeline: Timeline
    report: Report | None


@dataclass(frozen=True)
class Overhead:
    """A stage's time without and with the trace, in `unit` ("s" of a GPU, "cycles" of the model)."""

    plain: float
    traced: float
    unit: str
    same_bits: bool  # of d

    @property
    def slowdown(self) -> float:
        """The traced time over the plain one: 1.05 is 5 % slower."""
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
    """Return the timeline of one CTA of `stage.gemm(a, b, config, source)`.

    It is measured on the GPU that holds the tensors, or computed by the emulator's model for CPU tensors. On
    a GPU the last of ten launches counts: the caches then hold a, b and the instructions. Times begin with
    the CTA's first warp. `about` holds the machine, the product, the config, `start_ns` (when this CTA began,
    after the first of the launch), `clock_ghz`, the events by kind, and the mbarriers that TMA fills.

    Args:
        stage: a stage from s03_tma on, or its name.
        a, b, config, source, out_dtype: as `Stage.gemm` takes them; a and b with elements.
        cta: the CTA's number, x first. On the emulator it is 0, whose clocks the model has.
        rates: the model's rates, on the emulator.

    Raises:
        ValueError: the stage, the config or the CTA cannot be traced; besides, what `Stage.gemm` raises.
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
    """Trace as `trace` does, and return d too.

    records: the events that a warp has room for. Later ones are lost, and counted in `about["lost"]`.
    """
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
    """Measure what tracing costs: the time of both builds.

    On the GPU it is the median of ten launches, on the emulator the model's cycles of CTA 0.
    """
    made = _Run.of(stage, a, b, config, source, 0, out_dtype, RECORDS)
    device = a.data.device
    times: list[float] = []
    outputs: list[torch.Tensor] = []
    for each in (made.plain(), made):
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


# --- the run


@dataclass
class _Run:
    """A launch with the tensors that it writes to."""

    stage: Stage
    source: Path
    product: Product
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
        """Check the arguments, compile the trace build and describe its launch."""
        # The launch of the stage itself.
        stage = stage_named(stage).stage if isinstance(stage, str) else stage
        product = stage.check(a, b, config, source, out_dtype)
        m, n, k, *_ = product
        if not (m and n and k):
            raise ValueError(f"a, b: expected a product with elements to trace, got m={m} n={n} k={k}")
        config = config or stage.default_config(product)
        if len(stage.out_dtypes) > 1:
            config = replace(config, out_fp32=out_dtype == torch.float32)  # type: ignore[call-arg]
        device = a.data.device
        d = torch.empty(m, n, dtype=out_dtype, device=device)
        launch = stage.launch(a, b, d, product, config)

        # Room for the trace: two words of shared memory per warp, behind the stage's own.
        _check_traceable(stage, config, launch)
        ctas = launch.grid[0] * launch.grid[1] * launch.grid[2]
        _check_cta(cta, ctas, device)
        if records < 8:
            raise ValueError(f"records: expected room for at least 8 events of a warp, got {records}")
        warps = launch.block[0] // 32
        room = round_up(8 * warps, 16)
        if launch.shared + room > SHARED_LIMIT:
            beside = f"beside its {launch.shared}, of {SHARED_LIMIT}"
            raise ValueError(
                f"config: a trace needs {room} bytes of shared memory {beside}: take fewer stages"
            )

        # A reader's own version is compiled as it is first, so that its errors are of the reader's file.
        path = stage.source if source is None else Path(source)
        if source is not None:
            jit.build(path, config, name=stage.name, symbol=stage.symbol)
        kernel = build(stage, config, path)
        written = torch.zeros(warps, records, 4, dtype=torch.int32, device=device)
        times = torch.zeros(ctas, 4, dtype=torch.int64, device=device)
        traced = replace(launch, shared=launch.shared + room)
        return cls(stage, path, product, config, kernel, traced, d, cta, written, times)

    def plain(self) -> _Run:
        """Return the same launch without a trace, with a d of its own."""
        d = torch.empty_like(self.d)
        args = tuple(_redirected(arg, self.d, d) for arg in self.description.args)
        launch = replace(self.description, args=args, shared=self.config.constants()["SHARED_BYTES"])
        kernel = jit.build(self.source, self.config, name=self.stage.name, symbol=self.stage.symbol)
        return replace(self, kernel=kernel, description=launch, d=d, records=None, ctas=None, loaded=None)

    def launch(self) -> None:
        """Launch into clean records."""
        variables: dict[str, Any] = {}
        if self.records is not None and self.ctas is not None:
            self.records.zero_()
            variables = {
                "minigemm_trace": self.records,
                "minigemm_trace_ctas": self.ctas,
                "minigemm_trace_cta": self.cta,
                "minigemm_trace_records": self.records.shape[1],
            }
        machine = runtime.of(self.d.device)
        self.loaded = self.loaded or machine.load(self.kernel, self.description.shared, self.d.device)
        machine.launch(self.loaded, self.description, variables)

    def again(self) -> None:
        """Launch once more over the records that are there: nothing but the kernel, for its time."""
        runtime.of(self.d.device).launch(self.loaded, self.description)

    def timeline(self, report: Report | None) -> Timeline:
        """Return the timeline in the records. report: of the emulator's run; None on a GPU."""
        assert self.records is not None and self.ctas is not None
        times = self.ctas.cpu().numpy()
        m, n, k, *_ = self.product
        about: dict[str, Any] = {
            "stage": self.stage.name,
            "m": m,
            "n": n,
            "k": k,
            "config": asdict(self.config),
            "cta": self.cta,
            "ctas": len(times),
            "date": datetime.date.today().isoformat(),
            "runtime": "emulated" if report else "cuda",
        }

        # On a GPU: the machine, and its cycles in nanoseconds.
        scale = 1.0
        if report is None:
            machine = identity(self.d.device)
            about |= {key: machine[key] for key in ("gpu", "driver", "cuda", "nvrtc")}
            scale = _ns_a_cycle(times, torch.cuda.get_device_properties(self.d.device))
            about["clock_ghz"] = round(1 / scale, 4)
            about["start_ns"] = int(times[self.cta, 0] - times[:, 0].min())

        # Two facts beside the records: the bytes of a store to d, and the products of a slot of the ring.
        maps = [arg for arg in self.description.args if isinstance(arg, TensorMap)]
        boxes = [arg.box for arg in maps if arg.tensor.data_ptr() == self.d.data_ptr()]
        store_bytes = int(np.prod(boxes[0])) * self.d.element_size() if boxes else 0
        fields = vars(self.config)
        products = fields["block_m"] * fields["block_n"] * BLOCK * fields.get("blocks", 1)
        records = self.records.cpu().numpy().view(np.uint32)
        line = decode(records, files(self.source), store_bytes, scale, products)

        modelled = report.timeline if report else None
        return replace(
            line,
            unit="cycles" if report else "ns",
            source="model" if report else "measured",
            about={**about, **line.about},
            rates=dict(modelled.rates) if modelled else {},
        )


def _check_traceable(stage: Stage, config: Config, launch: Launch) -> None:
    """Raise ValueError for a stage whose CTAs a trace cannot follow."""
    threads = launch.block[0]
    if launch.shared != config.constants().get("SHARED_BYTES") or launch.block != (threads, 1, 1):
        wanted = "one whose warps wait for each other, from s03_tma on"
        raise ValueError(f"stage: expected {wanted}, got {stage.name}")
    if launch.cluster != (1, 1, 1):
        wanted = "one without clusters, whose CTAs copy for each other"
        raise ValueError(f"stage: expected {wanted}, got {stage.name}: a trace follows one CTA")


def _check_cta(cta: int, ctas: int, device: torch.device) -> None:
    """Raise ValueError for a CTA that is not in the launch; on the emulator, for any but the first."""
    on_gpu = device.type == "cuda"
    if not isinstance(cta, int) or not 0 <= cta < (ctas if on_gpu else 1):
        there = f"0 to {ctas - 1}" if on_gpu else "0, whose clocks the emulator's model has"
        raise ValueError(f"cta: expected {there}, got {cta!r}")


def _redirected(arg: object, d: torch.Tensor, other: torch.Tensor) -> object:
    """Return a launch's argument, with another tensor in place of d."""
    if isinstance(arg, TensorMap) and arg.tensor.data_ptr() == d.data_ptr():
        return replace(arg, tensor=other)
    return other if isinstance(arg, torch.Tensor) and arg.data_ptr() == d.data_ptr() else arg


def _ns_a_cycle(times: np.ndarray, properties: Any) -> float:
    """Return the nanoseconds of a cycle, from the begins and ends (CTAs, 4) of all CTAs.

    It takes them together, since `%globaltimer` goes in steps. Where the launch was too short for it, it
    takes the device's nominal clock.
    """
    spans = times[:, 2:] - times[:, :2]
    good = (spans > 0).all(1)
    ns, cycles = spans[good].sum(0) if good.any() else (0, 0)
    if ns > 0 and 0.2 < cycles / ns < 4:
        return float(ns / cycles)
    return 1e6 / float(getattr(properties, "clock_rate", 0) or CLOCK_HZ / 1e3)  # clock_rate is in kHz


def show(timeline: Timeline) -> None:
    """Print a traced timeline: what was traced and where, how busy its units were, and what tracing cost."""
    about = timeline.about
    where = "by the emulator's model, not a measurement (no Hopper GPU here)"
    if timeline.source == "measured":
        where = f"measured on {about['gpu']}"
    what = f"{about['stage']}, {about['m']} x {about['n']} x {about['k']}, CTA {about['cta']}"
    print(f"{what}: {timeline.end:,.0f} {timeline.unit}, {where}")

    products, copies = timeline.share("busy", "tensor core"), timeline.share("busy", "TMA")
    print(f"  the tensor core is busy {products:.0%}; TMA has {copies:.1f} copies in flight on average")
    print("  " + ", ".join(f"{what} {count}" for what, count in about["events"].items()))
    if about["lost"]:
        print(f"  {about['lost']} events found no room and are not shown")
    if cost := about.get("overhead"):
        bits = "the same bits" if cost["same_bits"] else "OTHER BITS"
        print(f"  the trace build takes {cost['slowdown']:.3f} of the plain one's time and gives {bits}")
