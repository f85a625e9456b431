"""python -m minigemm tour | doctor | inspect | trace | bench | precompile | test-gpu"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .machine import best_device, identity

__all__ = ["main"]

DEFAULT = {"m": 256, "n": 256, "k": 512}  # of the tour, where only some of the sizes are given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 when all went well."""
    parser = argparse.ArgumentParser(
        prog="minigemm", description="FP8 GEMMs for Hopper, stage by stage, on a GPU or on an emulator."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    tour = commands.add_parser("tour", help="run every stage on one problem and show what it did")
    for name, default in DEFAULT.items():
        tour.add_argument(
            f"--{name}",
            type=int,
            help=f"default {default}; without any of the three, each stage's own problem",
        )
    tour.add_argument("--seed", type=int, default=0)
    tour.add_argument("--stage", action="append", help="s01_naive, or 1; may be repeated; default: all")
    tour.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    doctor = commands.add_parser("doctor", help="what this machine has, and what is missing")
    doctor.add_argument("--json", action="store_true")
    inspect = commands.add_parser("inspect", help="source, PTX, SASS and resources of a stage")
    inspect.add_argument("stage")
    inspect.add_argument("--show", choices=("summary", "source", "ptx", "sass"), default="summary")
    trace = commands.add_parser(
        "trace",
        help="who was busy and who waited in one CTA: measured on a Hopper GPU, else by the emulator's model",
    )
    trace.add_argument("stage", help="from s03_tma on, without clusters; s06_warp_specialized, or 6")
    trace.add_argument(
        "--problem", metavar="MxNxK", help="default: 4096x4096x2048 on a GPU, 256x256x512 on the emulator"
    )
    trace.add_argument("--cta", type=int, default=0, help="which one, on a GPU; default: 0")
    trace.add_argument("--source", metavar="FILE", type=Path, help="your own version of the stage's .cu")
    trace.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="store the timeline, as docs/results has it; without FILE print it instead",
    )
    trace.add_argument("--plot", metavar="FILE", type=Path, help="store the picture as PNG; needs matplotlib")
    trace.add_argument(
        "--overhead", action="store_true", help="measure too what tracing costs, and compare the bits of d"
    )
    bench = commands.add_parser(
        "bench", help="measure; by default minigemm's calls beside every peer, on a Hopper GPU"
    )
    bench.add_argument("--emulator", action="store_true", help="the emulator's speed on one core")
    bench.add_argument("--ladder", action="store_true", help="TFLOPS of every stage on a Hopper GPU")
    bench.add_argument(
        "--multicast",
        action="store_true",
        help="s09_multicast beside s08_persistent at the same tiles, on a Hopper GPU",
    )
    bench.add_argument(
        "--ncu", nargs="*", metavar="SHAPE",
        help="hardware counters by Nsight Compute, on a Hopper GPU: MxNxK, contiguous:GROUPSxMxNxK, masked:GROUPSxMxNxK or multicast; default: 7 shapes and it",
    )  # fmt: skip
    bench.add_argument("--host", action="store_true", help="the host's time a call, on a Hopper GPU")
    bench.add_argument(
        "--peers",
        action="store_true",
        help="minigemm beside its peers: the default, to be said beside --host",
    )
    bench.add_argument(
        "--shape",
        action="append",
        metavar="MxNxK",
        help="GROUPSxMxNxK with --layout contiguous or masked; may be repeated; default: 28 shapes",
    )
    bench.add_argument(
        "--layout",
        choices=("dense", "contiguous", "masked"),
        help="of --shape (default: dense), or which of the 28 shapes",
    )
    bench.add_argument(
        "--peer",
        action="append",
        metavar="NAME",
        help="only this one, beside minigemm; may be repeated; default: all that can be imported",
    )
    bench.add_argument("--rounds", type=int, default=30, help="calls that count of each; default: 30")
    bench.add_argument(
        "--reference",
        metavar="FILE",
        type=Path,
        help="times on another machine, to compare with (docs/benchmarking.md)",
    )
    bench.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="store everything; without FILE print it instead of the table",
    )
    bench.add_argument("--plot", metavar="FILE", type=Path, help="store a picture as PNG; needs matplotlib")
    precompile = commands.add_parser(
        "precompile", help="compile what library calls of some shapes need, before the first of them"
    )
    precompile.add_argument(
        "shapes",
        nargs="+",
        metavar="N,K or M,N,K",
        help="2112,7168 for any number of rows; 64,2112,7168 for 64",
    )
    precompile.add_argument("--layout", default="dense", help="dense, contiguous or masked; default: dense")
    precompile.add_argument("--groups", type=int, default=1)
    precompile.add_argument(
        "--psum", action="store_true", help="the contiguous layout with prefix sums instead of ids"
    )
    precompile.add_argument("--fp32", action="store_true", help="FP32 output instead of BF16")
    gpu = commands.add_parser(
        "test-gpu", help="the tests on a Hopper GPU, and compute-sanitizer where it is installed"
    )
    gpu.add_argument(
        "--record", metavar="FILE", type=Path, help="store the GPU's results as data for the CPU's tests"
    )
    gpu.add_argument(
        "--record-tensor-core", metavar="FILE", type=Path, help="the same for chains of single WGMMAs"
    )
    gpu.add_argument("--tests", choices=("yes", "no"), default="yes")
    gpu.add_argument("--sanitizer", choices=("yes", "no"), default="yes")
    options = parser.parse_args(arguments)
    run = {
        "tour": _tour,
        "doctor": _doctor,
        "inspect": _inspect,
        "trace": _trace,
        "bench": _bench,
        "precompile": _precompile,
        "test-gpu": _test_gpu,
    }
    return run[options.command](options)


def _fail(message: str) -> int:
    print(f"minigemm: {message}", file=sys.stderr)
    return 2


# ---------------------------------------------------------------------------------------------------- tour


def _tour(options: argparse.Namespace) -> int:
    from . import tour
    from .kernels import stage_named
    from .types import Problem

    sizes = {name: getattr(options, name) for name in DEFAULT}
    problem = (
        Problem(**{name: DEFAULT[name] if size is None else size for name, size in sizes.items()})
        if any(v is not None for v in sizes.values())
        else None
    )
    if problem and (min(problem.m, problem.n, problem.k) < 1 or problem.k % 16):
        return _fail(
            f"expected m, n, k of at least 1 and k a multiple of 16, got m={problem.m} n={problem.n} k={problem.k}"
        )
    try:
        chosen = tuple(stage_named(name) for name in options.stage or ()) or None
    except ValueError as error:
        return _fail(str(error))
    device = best_device()
    if options.json:
        results = tour.run(problem, chosen, options.seed, device)
        print(json.dumps({"machine": identity(device), "stages": [result.to_dict() for result in results]}))
    else:
        results = _with_progress(problem, chosen, options.seed, device)
        _show(results, identity(device))
    return 1 if any(result.error for result in results) else 0


def _with_progress(problem: Any, chosen: Any, seed: int, device: Any) -> list[Any]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from . import tour
    from .kernels import stages

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("starting", total=2 * len(chosen or stages()) + 1)

        def heard(text: str) -> None:
            progress.update(task, description=text, advance=1)

        return tour.run(problem, chosen, seed, device, heard)


def _show(results: list[Any], machine: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = results[0]
    where = machine.get("gpu") or "the Hopper emulator (no Hopper GPU here)"
    console.print(
        f"d ({first.m} x {first.n}) = a ({first.m} x {first.k}) @ b ({first.n} x {first.k}).T in FP8, on [bold]{where}[/bold]"
    )
    on_gpu = first.runtime == "cuda"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("stage", width=20)  # 80 columns hold the table
    last = (
        ("TFLOPS", "of the\nfloor")
        if on_gpu
        else ("instr.", "global\nshared", "TMA\ncopies", "bank\nconflicts")
    )
    for name in ("compile\nwarm", "run", "error", *last):
        table.add_column(name, justify="right", no_wrap=True)
    for r in results:
        own = "" if (r.m, r.n, r.k) == (first.m, first.n, first.k) else f"\n{r.m} x {r.n} x {r.k}"
        cells = [
            f"[bold]{r.stage}[/bold]\n{r.idea}{own}",
            f"{r.compile_s:.2f} s\n{r.warm_s * 1e3:.1f} ms",
            _seconds(r.run_s),
            f"{r.rel_err:.1e}",
        ]
        if on_gpu:
            cells += [f"{r.tflops or 0:.1f}", f"{(r.floor_share or 0):.1%}"]
        else:
            count = r.counters.get
            moved = (
                count("global_load_bytes", 0)
                + count("global_store_bytes", 0)
                + count("tma_load_bytes", 0)
                + count("tma_store_bytes", 0)
            )
            shared = count("shared_load_bytes", 0) + count("shared_store_bytes", 0)
            cells += [_short(count("instructions", 0)), f"{_short(moved)}B\n{_short(shared)}B", str(count("tma_transactions", 0)),
                      _short(count("bank_conflicts", 0))]  # fmt: skip
        table.add_row(*cells, style="red" if r.error else "", end_section=r is not results[-1])
    console.print(table)
    for r in results:
        if r.error:
            console.print(f"[red]{r.stage} is wrong:[/red] {r.error}", markup=True, highlight=False)
    if not any(r.error for r in results):
        console.print(
            f"Every stage is right: against float64 its error is what BF16 and its sums allow ({machine['runtime']})."
        )


def _seconds(value: float) -> str:
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1e3:.3g} ms"
        if value >= 1e-3
        else f"{value * 1e6:.3g} us"
    )


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} "


# ---------------------------------------------------------------------------------------------------- doctor


def _doctor(options: argparse.Namespace) -> int:
    from . import machine

    findings = machine.examine()
    if options.json:
        print(
            json.dumps([{"name": f.name, "ok": f.ok, "found": f.found, "advice": f.advice} for f in findings])
        )
    else:
        from rich.console import Console

        console = Console(highlight=False)
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[yellow]--[/yellow]"
            console.print(
                f"{mark}  [bold]{finding.name}[/bold]: {finding.found}"
                + (f"\n    {finding.advice}" if finding.advice else "")
            )
    return 0 if all(f.ok for f in findings if f.needed) else 1


def _inspect(options: argparse.Namespace) -> int:
    from .kernels import inspect

    try:
        found = inspect(options.stage)
    except ValueError as error:
        return _fail(str(error))
    print(found if options.show == "summary" else getattr(found, options.show))
    return 0


def _trace(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from . import quantize
    from .bench import tracing
    from .kernels import stage_named

    for file in (options.plot, None if options.json in (None, "-") else Path(options.json)):
        if file is not None and not file.parent.is_dir():
            return _fail(f"trace: there is no folder {file.parent} for {file.name}")
    device = best_device()
    size = options.problem or ("4096x4096x2048" if device.type == "cuda" else "256x256x512")
    try:
        m, n, k = (int(part) for part in size.lower().split("x"))
        if min(m, n, k) < 1:
            raise ValueError
    except ValueError:
        return _fail(f"problem: expected MxNxK, such as 4096x4096x2048, got {size!r}")
    try:
        stage = stage_named(options.stage).stage
        a = quantize.quantize(quantize.activations(m, k, device=device), stage.granularities[0])
        b = quantize.quantize(quantize.weights(n, k, seed=1, device=device), stage.granularities[1])
        timeline = tracing.trace(stage, a, b, source=options.source, cta=options.cta)
        cost = tracing.overhead(stage, a, b, source=options.source) if options.overhead else None
    except (TypeError, ValueError) as error:
        return _fail(str(error))
    if cost is not None:
        timeline.about["overhead"] = {**asdict(cost), "slowdown": round(cost.slowdown, 4)}
    text = json.dumps(timeline.to_dict())
    if options.json == "-":
        print(text)
    else:
        if options.json is not None:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
        _show_trace(timeline)
    if options.plot is not None:
        from . import views

        try:
            views.timeline(timeline, title=f"{stage.name}, {m} x {n} x {k}").save(options.plot)
        except ImportError as error:
            return _fail(f"plot: {error}; pip install matplotlib")
    return 0 if cost is None or cost.same_bits else 1


def _show_trace(timeline: Any) -> None:
    about = timeline.about
    where = (
        f"measured on {about['gpu']}"
        if timeline.source == "measured"
        else "by the emulator's model, not a measurement (no Hopper GPU here)"
    )
    print(
        f"{about['stage']}, {about['m']} x {about['n']} x {about['k']}, CTA {about['cta']}: {timeline.end:,.0f} {timeline.unit}, {where}"
    )
    print(
        f"  the tensor core is busy {timeline.share('busy', 'tensor core'):.0%}; TMA has {timeline.share('busy', 'TMA'):.1f} copies in flight on average"
    )
    print("  " + ", ".join(f"{what} {count}" for what, count in about["events"].items()))
    if about["lost"]:
        print(f"  {about['lost']} events found no room and are not shown")
    if cost := about.get("overhead"):
        bits = "the same bits" if cost["same_bits"] else "OTHER BITS"
        print(f"  the trace build takes {cost['slowdown']:.3f} of the plain one's time and gives {bits}")


def _bench(options: argparse.Namespace) -> int:
    from . import bench

    for file in (options.plot, None if options.json in (None, "-") else Path(options.json)):
        if file is not None and not file.parent.is_dir():
            return _fail(f"bench: there is no folder {file.parent} for {file.name}")
    documents: list[dict[str, Any]] = []

    def store(document: dict[str, Any]) -> None:
        """Keep all that was measured so far: a run that is cut off leaves what it had."""
        if options.json not in (None, "-"):
            kept = [*documents, document]
            Path(options.json).write_text(
                json.dumps(kept[0] if len(kept) == 1 else kept, indent=1) + "\n", encoding="utf-8"
            )

    status = 0
    try:
        for wanted, measure, as_text in (
            (options.emulator, bench.emulator_speed, bench.as_text),
            (options.ladder, bench.ladder, bench.ladder_as_text),
            (options.multicast, bench.multicast_gain, bench.multicast_as_text),
        ):
            if wanted:
                results = measure()
                store(results)
                documents.append(results)
                if options.json != "-":
                    print(as_text(results))
        if options.ncu is not None:
            from .bench import counters

            results = counters.count(options.ncu)
            store(results)
            documents.append(results)
            if options.json != "-":
                counters.show(results)
            status = 1 if results["lost"] or results["skipped"] else 0
        if options.peers or options.host or not documents:
            results = _compared(options, store)
            store(results)
            documents.append(results)
            if options.json != "-":
                bench.show(results)
            if options.plot is not None and any(row["timed"] for row in results["rows"]):
                bench.plot(results).save(options.plot)
            if results["lost"] or any("minigemm" not in row["timed"] for row in results["rows"]):
                status = 1
    except (ValueError, OSError) as error:
        return _fail(str(error))
    if options.json == "-":
        for document in documents:
            print(json.dumps(document, indent=1))
    return status


def _compared(options: argparse.Namespace, store: Any) -> dict[str, Any]:
    """What `bench --peers` and `--host` measure. ValueError for what is wrong with the options, before anything is measured."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from . import bench
    from .bench import report, shapes

    if options.rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {options.rounds}")
    if options.plot is not None:
        report.check_plot()
    chosen = [shapes.parse(text, options.layout) for text in options.shape or ()]
    if not chosen and (options.peers or not options.host):
        chosen = [shape for shape in shapes.DEFAULT if options.layout in (None, shape.layout)]
    peers = bench.named(options.peer)
    reference = bench.Reference.read(options.reference) if options.reference is not None else None
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        transient=True,
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task("starting")

        def heard(text: str) -> None:
            progress.update(task, description=text)

        return bench.compare(
            chosen, peers, options.rounds, reference, with_host=options.host, progress=heard, store=store
        )


def _precompile(options: argparse.Namespace) -> int:
    import torch

    from .plan.ahead import precompile

    try:
        shapes = [tuple(int(size) for size in shape.split(",")) for shape in options.shapes]
    except ValueError:
        return _fail(
            f"precompile: expected shapes like 2112,7168 or 64,2112,7168, got {' '.join(options.shapes)}"
        )
    try:
        out_dtype = torch.float32 if options.fp32 else torch.bfloat16
        kernels = precompile(
            shapes,
            layout=options.layout,
            groups=options.groups,
            use_psum_layout=options.psum,
            out_dtype=out_dtype,
        )
    except (TypeError, ValueError) as error:
        return _fail(str(error))
    print(
        f"{len(kernels)} kernels, {sum(kernel.origin == 'compiled' for kernel in kernels)} of them compiled now"
    )
    return 0


def _test_gpu(options: argparse.Namespace) -> int:
    from .verify import on_gpu

    return on_gpu.run(
        options.record, options.sanitizer == "yes", options.record_tensor_core, options.tests == "yes"
    )
