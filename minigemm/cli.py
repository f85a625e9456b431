"""python -m minigemm tour | doctor | inspect | trace | bench | explain | precompile | tune | test-gpu | grade

This module reads the commands' options and calls the rest of minigemm. Tables are drawn beside the results
that they
show: in tour.py, machine.py, bench/ and labs/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .machine import best_device, identity

__all__ = ["main"]

DEFAULT = {"m": 256, "n": 256, "k": 512}  # of the tour, where only some of the sizes are given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0 when all went well."""
    # The labs read their own options, so their words are handed on unread.
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["grade"]:  # has a parser of its own
        from .labs.commands import main as labs

        return labs(words)

    # All other commands share one parser, and `run` has the function of each.
    parser = argparse.ArgumentParser(
        prog="minigemm", description="FP8 GEMMs for Hopper, stage by stage, on a GPU or on an emulator."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run: dict[str, Callable[[argparse.Namespace], int]] = {
        "tour": _tour,
        "doctor": _doctor,
        "inspect": _inspect,
        "trace": _trace,
        "bench": _bench,
        "explain": _explain,
        "precompile": _precompile,
        "tune": _tune,
        "test-gpu": _test_gpu,
    }

    # The help lists the commands in the order in which they are added here.
    _add_tour(commands)
    doctor = commands.add_parser("doctor", help="what this machine has, and what is missing")
    doctor.add_argument("--json", action="store_true")
    inspect = commands.add_parser("inspect", help="source, PTX, SASS and resources of a stage")
    inspect.add_argument("stage")
    inspect.add_argument("--show", choices=("summary", "source", "ptx", "sass"), default="summary")
    _add_trace(commands)
    _add_bench(commands)
    _add_explain(commands)
    _add_precompile(commands)
    _add_tune(commands)
    _add_test_gpu(commands)

    # This entry is for the help only: `grade` was handled above.
    commands.add_parser("grade", help="grade a class's submissions to a lab: python -m minigemm.labs")
    options = parser.parse_args(words)
    return run[options.command](options)


def _fail(message: str) -> int:
    print(f"minigemm: {message}", file=sys.stderr)
    return 2


def _refuse_folder(command: str, options: argparse.Namespace) -> str:
    """Return why a result could not be stored in the end, or ""."""
    for file in (options.plot, None if options.json in (None, "-") else Path(options.json)):
        if file is not None and not file.parent.is_dir():
            return f"{command}: there is no folder {file.parent} for {file.name}"
    return ""


# --- tour


def _add_tour(commands: Any) -> None:
    tour = commands.add_parser("tour", help="run every stage on one problem and show what it did")
    for name, default in DEFAULT.items():
        help = f"default {default}; without any of the three, each stage's own problem"
        tour.add_argument(f"--{name}", type=int, help=help)
    tour.add_argument("--seed", type=int, default=0)
    tour.add_argument("--stage", action="append", help="s01_naive, or 1; may be repeated; default: all")
    tour.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def _tour(options: argparse.Namespace) -> int:
    from . import tour
    from .kernels import stage_named
    from .types import Product

    # Sizes that are not given have defaults, unless none is given: then each stage has its own.
    problem, given = None, (options.m, options.n, options.k)
    if any(size is not None for size in given):
        m, n, k = (
            default if size is None else size for size, default in zip(given, DEFAULT.values(), strict=True)
        )
        if min(m, n, k) < 1 or k % 16:
            return _fail(f"expected m, n, k of at least 1 and k a multiple of 16, got m={m} n={n} k={k}")
        problem = Product(m, n, k)
    try:
        chosen = tuple(stage_named(name) for name in options.stage or ()) or None
    except ValueError as error:
        return _fail(str(error))

    device = best_device()
    if options.json:
        results = tour.run(problem, chosen, options.seed, device)
        rows = [result.to_dict() for result in results]
        print(json.dumps({"machine": identity(device), "stages": rows}))
    else:
        results = tour.run_with_progress(problem, chosen, options.seed, device)
        tour.show(results, identity(device))
    return 1 if any(result.error for result in results) else 0


# --- doctor and inspect


def _doctor(options: argparse.Namespace) -> int:
    from . import machine

    findings = machine.examine()
    if options.json:
        rows = [{"name": f.name, "ok": f.ok, "found": f.found, "advice": f.advice} for f in findings]
        print(json.dumps(rows))
    else:
        machine.show(findings)
    return 0 if all(f.ok for f in findings if f.needed) else 1


def _inspect(options: argparse.Namespace) -> int:
    from .kernels import inspect

    try:
        found = inspect(options.stage)
    except ValueError as error:
        return _fail(str(error))
    print(found if options.show == "summary" else getattr(found, options.show))
    return 0


# --- trace


def _add_trace(commands: Any) -> None:
    what = "who was busy and who waited in one CTA: measured on a Hopper GPU, else by the emulator's model"
    trace = commands.add_parser("trace", help=what)
    trace.add_argument("stage", help="from s03_tma on, without clusters; s06_warp_specialized, or 6")
    trace.add_argument(
        "--problem", metavar="MxNxK", help="default: 4096x4096x2048 on a GPU, 256x256x512 on the emulator"
    )
    trace.add_argument("--cta", type=int, default=0, help="which one, on a GPU; default: 0")
    trace.add_argument("--source", metavar="FILE", type=Path, help="your own version of the stage's .cu")
    store = "store the timeline, as docs/results has it; without FILE print it instead"
    trace.add_argument("--json", metavar="FILE", nargs="?", const="-", help=store)
    trace.add_argument("--plot", metavar="FILE", type=Path, help="store the picture as PNG; needs matplotlib")
    trace.add_argument(
        "--overhead", action="store_true", help="measure too what tracing costs, and compare the bits of d"
    )


def _trace(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from . import quantize
    from .bench import tracing
    from .kernels import stage_named

    # The product: MxNxK.
    if refused := _refuse_folder("trace", options):
        return _fail(refused)
    device = best_device()
    size = options.problem or ("4096x4096x2048" if device.type == "cuda" else "256x256x512")
    try:
        m, n, k = (int(part) for part in size.lower().split("x"))
        if min(m, n, k) < 1:
            raise ValueError
    except ValueError:
        return _fail(f"problem: expected MxNxK, such as 4096x4096x2048, got {size!r}")

    # Trace it.
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

    # Print, store and draw it.
    text = json.dumps(timeline.to_dict())
    if options.json == "-":
        print(text)
    else:
        if options.json is not None:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
        tracing.show(timeline)
    if options.plot is not None:
        from . import views

        try:
            views.timeline(timeline, title=f"{stage.name}, {m} x {n} x {k}").save(options.plot)
        except ImportError as error:
            return _fail(f"plot: {error}; pip install matplotlib")
    return 0 if cost is None or cost.same_bits else 1


# --- bench


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="measure; by default minigemm's calls beside every peer, on a Hopper GPU"
    )

    # What to measure.
    def measurement(name: str, help: str) -> None:
        bench.add_argument(name, action="store_true", help=help)

    measurement("--emulator", "the emulator's speed on one core")
    measurement("--ladder", "TFLOPS of every stage on a Hopper GPU")
    measurement("--multicast", "s09_multicast beside s08_persistent at the same tiles, on a Hopper GPU")
    measurement("--pdl", "chains of products with set_pdl and without, on a Hopper GPU")
    measurement("--ideas", "what single ideas of the kernels gain, on a Hopper GPU")
    measurement("--choice", "the chosen config beside all others, on a Hopper GPU")
    measurement("--quantize", "the kernels that quantize beside a copy, on a Hopper GPU")
    ncu = (
        "hardware counters by Nsight Compute, on a Hopper GPU: MxNxK, contiguous:GROUPSxMxNxK, "
        "masked:GROUPSxMxNxK, multicast or stages; default: 7 shapes and multicast"
    )
    bench.add_argument("--ncu", nargs="*", metavar="SHAPE", help=ncu)
    measurement("--host", "the host's time a call, on a Hopper GPU")
    measurement("--peers", "minigemm beside its peers: the default, to be said beside --host")

    # On which shapes, beside whom.
    which = bench.add_mutually_exclusive_group()
    wide = "layers of eight models at 19 numbers of rows, and groups of experts: the default"
    which.add_argument("--wide", action="store_true", help=wide)
    quick = "28 shapes of DeepSeek-V3 instead"
    which.add_argument("--quick", action="store_true", help=quick)
    shape = "GROUPSxMxNxK with --layout contiguous or masked; may be repeated"
    which.add_argument("--shape", action="append", metavar="MxNxK", help=shape)
    stored = "measure nothing: show results that were stored, joined if there are several"
    which.add_argument("--results", nargs="+", metavar="FILE", type=Path, help=stored)
    layout = "of --shape (default: dense), or which shapes of a set"
    bench.add_argument("--layout", choices=("dense", "contiguous", "masked"), help=layout)
    part = "only part I of P of the shapes, in whole layers"
    bench.add_argument("--part", metavar="I/P", help=part)
    peer = "only this one, beside minigemm; may be repeated; default: all that can be imported"
    bench.add_argument("--peer", action="append", metavar="NAME", help=peer)
    deep_gemm = (
        "a folder that holds a package deep_gemm, to be timed as deep_gemm@LABEL; may be repeated; the label is the "
        "folder's name unless one is given; MINIGEMM_DEEP_GEMM names folders too, separated as in PATH"
    )
    bench.add_argument("--deep-gemm", action="append", metavar="[LABEL=]FOLDER", help=deep_gemm)
    rounds = "calls that count of each after each flush; default: 30, or fewer where a call takes long"
    bench.add_argument("--rounds", type=int, help=rounds)

    # Where the results go.
    store = "store everything; without FILE print it instead of the table"
    bench.add_argument("--json", metavar="FILE", nargs="?", const="-", help=store)
    resume = "keep the rows that the --json FILE has, if it is there, and measure the others"
    bench.add_argument("--resume", action="store_true", help=resume)
    bench.add_argument("--plot", metavar="FILE", type=Path, help="store a picture as PNG; needs matplotlib")


def _bench(options: argparse.Namespace) -> int:
    from . import bench
    from .bench import stored

    # Results that could not be stored in the end are refused before time goes into measuring them.
    if refused := _refuse_folder("bench", options):
        return _fail(refused)
    documents: list[dict[str, Any]] = []

    def store(document: dict[str, Any]) -> None:
        """Keep all that was measured so far: a run that is cut off leaves its results."""
        if options.json not in (None, "-"):
            kept = [*documents, document]
            stored.write(Path(options.json), kept[0] if len(kept) == 1 else kept)

    def done(results: dict[str, Any]) -> bool:
        """Keep results; should they be shown as a table?"""
        store(results)
        documents.append(results)
        return options.json != "-"

    # Each of these measurements adds one document, if it was asked for.
    status = 0
    try:
        for wanted, measure, as_text in (
            (options.emulator, bench.emulator_speed, bench.as_text),
            (options.ladder, bench.ladder, bench.ladder_as_text),
            (options.multicast, bench.multicast_gain, bench.multicast_as_text),
            (options.pdl, bench.pdl_gain, bench.pdl_as_text),
            (options.ideas, bench.ideas_gain, bench.ideas_as_text),
            (options.choice, bench.choice_quality, bench.choice_as_text),
            (options.quantize, bench.quantize_speed, bench.quantize_as_text),
        ):
            if wanted and done(results := measure()):
                print(as_text(results))

        # Whatever ncu could not count makes the command fail.
        if options.ncu is not None:
            from .bench import counters

            if done(results := counters.count(options.ncu)):
                counters.show(results)
            status = 1 if results["lost"] or results["skipped"] else 0

        # The comparison is also what runs when nothing was chosen.
        if options.peers or options.host or not documents:
            if done(results := _compared(options, store)):
                bench.show(results)
            if options.plot is not None and any(row["timed"] for row in results["rows"]):
                bench.picture(results).save(options.plot)
            if results["lost"] or any("minigemm" not in row["timed"] for row in results["rows"]):
                status = 1
    except (ValueError, OSError) as error:
        return _fail(str(error))

    # With JSON on stdout nothing else is printed there.
    if options.json == "-":
        for document in documents:
            print(json.dumps(document, indent=1))
    return status


def _compared(options: argparse.Namespace, store: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure `bench --peers` and `--host`. Wrong options raise ValueError before anything is measured."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from . import bench
    from .bench import report, stored

    # All options are read before the first measurement, so that a wrong one costs no time.
    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {options.rounds}")
    if options.plot is not None:
        report.check_plot()
    if options.results:
        return stored.read(options.results)
    chosen = _workloads(options)
    peers = bench.named(options.peer, options.deep_gemm or ())

    # Rows of an earlier run stay, and whatever is stored from now on has them too.
    earlier = []
    if options.resume:
        if options.json in (None, "-"):
            raise ValueError("resume: expected --json FILE, the file to resume, got none")
        if Path(options.json).is_file():
            earlier = [stored.read([options.json])]
            chosen = stored.remaining(chosen, earlier[0])

    # The progress is shown on stderr, since stdout may hold JSON.
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting")

        def heard(text: str) -> None:
            progress.update(task, description=text)

        def keep(results: dict[str, Any]) -> None:
            store(stored.join([*earlier, results]))

        found = bench.compare(
            chosen, peers, options.rounds, with_host=options.host, progress=heard, store=keep
        )
    return stored.join([*earlier, found])


def _workloads(options: argparse.Namespace) -> list[Any]:
    """Return the workloads that the options ask for; none if only the host's time is wanted."""
    from .bench import wide, workloads

    chosen = [workloads.parse(text, options.layout) for text in options.shape or ()]
    if not chosen and (options.peers or options.quick or options.wide or not options.host):
        whole = workloads.QUICK if options.quick else wide.WIDE
        chosen = [each for each in whole if options.layout in (None, str(each.product.layout))]
    return wide.part(chosen, options.part) if options.part is not None else chosen


# --- explain, precompile, tune and test-gpu


def _add_call(command: Any) -> None:
    """Add the options that tell a library call's layout and output."""
    command.add_argument("--layout", default="dense", help="dense, contiguous or masked; default: dense")
    command.add_argument("--groups", type=int, default=1)
    psum = "the contiguous layout with prefix sums instead of ids"
    command.add_argument("--psum", action="store_true", help=psum)
    command.add_argument("--fp32", action="store_true", help="FP32 output instead of BF16")


def _add_explain(commands: Any) -> None:
    what = "which kernel and config a library call gets, why, and what others would cost"
    explain = commands.add_parser("explain", help=what)
    explain.add_argument(
        "shape", metavar="MxNxK", help="such as 64x2112x7168; in a masked layout M is the rows of a buffer"
    )
    _add_call(explain)
    explain.add_argument("--expected-m", type=int, metavar="M", help="of a masked layout, as in the call")
    explain.add_argument("--accumulate", action="store_true", help="the call adds to d")


def _explain(options: argparse.Namespace) -> int:
    import torch

    from .plan import explained

    try:
        m, n, k = (int(size) for size in options.shape.lower().split("x"))
    except ValueError:
        return _fail(f"explain: expected MxNxK, such as 64x2112x7168, got {options.shape!r}")
    try:
        found = explained.explain(
            m=m,
            n=n,
            k=k,
            layout=options.layout,
            groups=options.groups,
            expected_m=options.expected_m,
            use_psum_layout=options.psum,
            out_dtype=torch.float32 if options.fp32 else torch.bfloat16,
            accumulate=options.accumulate,
            device=best_device(),
        )
    except (TypeError, ValueError) as error:
        return _fail(str(error))
    explained.show(found)
    return 0


def _add_precompile(commands: Any) -> None:
    what = "compile what library calls of some shapes need, before the first of them"
    precompile = commands.add_parser("precompile", help=what)
    shapes = "2112,7168 for any number of rows; 64,2112,7168 for 64"
    precompile.add_argument("shapes", nargs="+", metavar="N,K or M,N,K", help=shapes)
    _add_call(precompile)


def _precompile(options: argparse.Namespace) -> int:
    import torch

    from .plan.ahead import precompile

    # A shape that is no row of numbers gets a message, not a traceback.
    try:
        shapes = [tuple(int(size) for size in shape.split(",")) for shape in options.shapes]
    except ValueError:
        return _fail(
            f"precompile: expected shapes like 2112,7168 or 64,2112,7168, got {' '.join(options.shapes)}"
        )

    # So does a shape or an option that no kernel fits.
    try:
        kernels = precompile(
            shapes,
            layout=options.layout,
            groups=options.groups,
            use_psum_layout=options.psum,
            out_dtype=torch.float32 if options.fp32 else torch.bfloat16,
        )
    except (TypeError, ValueError) as error:
        return _fail(str(error))

    # Kernels that were there already cost no time, so the new ones are counted apart.
    compiled = sum(kernel.origin == "compiled" for kernel in kernels)
    print(f"{len(kernels)} kernels, {compiled} of them compiled now")
    return 0


def _add_tune(commands: Any) -> None:
    what = "time the library's tiles on this Hopper GPU, and choose by the result from then on"
    tune = commands.add_parser("tune", help=what)
    seconds = "of timing, after which it fits what it has; default: 240"
    tune.add_argument("--seconds", type=float, default=240.0, help=seconds)
    tune.add_argument("--json", metavar="FILE", type=Path, help="store the result with all times here too")


def _tune(options: argparse.Namespace) -> int:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from .bench import stored, tune

    if not options.seconds > 0:
        return _fail(f"tune: expected --seconds above 0, got {options.seconds}")
    if options.json is not None and not options.json.parent.is_dir():
        return _fail(f"tune: there is no folder {options.json.parent} for {options.json.name}")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("tune", total=1.0)
            results = tune.tune(
                options.seconds,
                progress=lambda text: progress.update(task, description=text),
                advance=lambda share: progress.update(task, completed=share),
            )
    except ValueError as error:
        return _fail(str(error))
    if options.json is not None:
        stored.write(options.json, results)
    print(f"{len(results['rows'])} times on {results['measured_on']}")
    return 0


def _add_test_gpu(commands: Any) -> None:
    what = "the tests on a Hopper GPU, and compute-sanitizer where it is installed"
    gpu = commands.add_parser("test-gpu", help=what)
    record = "store the GPU's results as data for the CPU's tests"
    gpu.add_argument("--record", metavar="FILE", type=Path, help=record)
    chains = "the same for chains of single WGMMAs"
    gpu.add_argument("--record-tensor-core", metavar="FILE", type=Path, help=chains)
    gpu.add_argument("--tests", choices=("yes", "no"), default="yes")
    gpu.add_argument("--sanitizer", choices=("yes", "no"), default="yes")


def _test_gpu(options: argparse.Namespace) -> int:
    from .verify import on_gpu

    return on_gpu.run(
        options.record, options.sanitizer == "yes", options.record_tensor_core, options.tests == "yes"
    )
