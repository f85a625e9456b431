"""Grading the files of others: each in a process of its own, with limits on time, memory, file size and open
files, and in a folder that is thrown away.

A CUDA kernel has no system calls, and the emulator keeps its memory accesses inside the launch's own buffers.
Three dangers remain. A file may #include others: `refused` catches that. It may never end, or fill the
memory, while it is compiled or while it runs: the process has limits. It may do what nobody thought of: the
process again.

It is a fence for a class, no sandbox for strangers: for those, use a container as well. The processes are
forked from a server that has imported torch once, and has made once what all submissions are compared with;
the server runs no submission itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import stat
import tempfile
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from . import skeleton
from .grading import SIZE_LIMIT, Grade, Lab, Outcome, gathered, untouched

__all__ = ["Limits", "grade", "refused", "submissions"]

SHOWN = 4000  # characters of a message
# A directive that reads a file, however it is written; only #include "ptx.cuh" may.
_READS = re.compile(
    r"(?:#|%:|\?\?=)(?:\s|/\*.*?\*/)*(?:include_next|import|embed|include(?!\s*\"ptx\.cuh\"\s))"
    r"|__has_(?:include|embed)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Limits:
    """The limits of one submission."""

    seconds: float = 60.0  # of wall time
    memory: int = 1 << 30  # bytes, beyond what the imports take
    file_size: int = 64 << 20  # bytes
    open_files: int = 64


def submissions(folder: Path) -> list[Path]:
    """List the `.cu` files of a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".cu")


def grade(
    paths: list[Path],
    lab: Lab,
    limits: Limits | None = None,
    jobs: int = 2,
    heard: Callable[[Grade], None] = lambda grade: None,
) -> list[Grade]:
    """Grade the files; returns the grades in their order, and gives each to `heard` as it comes.

    At most `jobs` submissions run at a time. Raises nothing that a submission could cause.
    """
    limits = limits or Limits()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, f"{__package__}.prepared"])
    server = _Server(context)

    def one(path: Path) -> Grade:
        grade = _graded(path, lab, limits, server)
        heard(grade)
        return grade

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, paths))


def refused(path: Path) -> tuple[str, str]:
    """Read a submission. Returns its text, and why it is not even compiled; "" when it may be."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return "", "this is no plain file (a link, a folder or a device): hand in the .cu itself"
    if status.st_size > SIZE_LIMIT:
        return "", f"the file has {status.st_size:,} bytes; at most {SIZE_LIMIT:,} are read"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return "", f"the file is no UTF-8 text: {error}"
    # A backslash joins lines before the compiler looks for directives.
    if match := _READS.search(re.sub(r"\\[ \t]*\r?\n", "", text) + "\n"):
        line = text[: text.find(match[0])].count("\n") + 1 if match[0] in text else 1
        return text, f'line {line}: a submission may read no file but ptx.cuh, by #include "ptx.cuh"'
    return text, ""


# --- the parent's side


class _Server:
    """The server of processes, started when the first submission needs it."""

    def __init__(self, context: multiprocessing.context.ForkServerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._ready = False

    def ready(self) -> multiprocessing.context.ForkServerContext:
        """Return the server's context, once its imports are done: they cost no submission its seconds."""
        with self._lock:
            if not self._ready:
                first = self._context.Process(target=_nothing)
                first.start()
                first.join()
                self._ready = True
        return self._context


def _graded(path: Path, lab: Lab, limits: Limits, server: _Server) -> Grade:
    # Some files need no process: those that are refused, and the one that the learner started from.
    text, reason = refused(path)
    left = skeleton.todos(text)
    outcomes = untouched(lab, text) if not reason else []
    if reason or outcomes:
        return gathered(lab, path.name, outcomes, 0.0, left, reason)

    context = server.ready()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="minigemm-submission-") as folder:
        copy = Path(folder) / (re.sub(r"[^\w.-]", "_", path.stem)[:80] + ".cu")
        copy.write_text(text, encoding="utf-8")
        ours, theirs = context.Pipe(duplex=False)
        child = (theirs, lab.name, copy.name, folder, limits)
        process = context.Process(target=_child, args=child, daemon=True)
        process.start()
        theirs.close()
        stopped = _collect(ours, process, outcomes, started + limits.seconds, limits)
        ours.close()
    return gathered(lab, path.name, outcomes, time.perf_counter() - started, left, stopped)


def _collect(
    ours: Connection,
    process: multiprocessing.context.ForkServerProcess,
    outcomes: list[Outcome],
    end: float,
    limits: Limits,
) -> str:
    """Add the child's outcomes to the list. Returns why it stopped before its end; "" when it did not."""
    # This reason stands unless the child says that it is done, or fails in another way.
    stopped = (
        f"no answer after {limits.seconds:g} seconds, and the submission was stopped: does a loop never end, "
        "in the kernel or while it is compiled?"
    )

    # The child runs a stranger's code, so its messages are limited in size and checked.
    try:
        while ours.poll(max(0.0, end - time.perf_counter())):
            told = json.loads(ours.recv_bytes(1 << 20))
            if told is None:
                stopped = ""
                break
            message = _plain(str(told["message"]))
            outcomes.append(Outcome(str(told["criterion"]), told["met"] is True, message))
    except EOFError:  # the child is gone
        process.join(5)
        code = process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"status {code}"
        stopped = (
            f"the process ended with {how}: it ran out of its {limits.memory >> 20} MiB of memory or "
            f"{limits.seconds:g} seconds, or the compiler failed"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        stopped = f"the process gave no proper answer ({type(error).__name__})"

    # A child that is done gets a moment to leave; any other is ended.
    if not stopped:
        process.join(5)
    if stopped or process.is_alive():
        _end(process)
    return stopped


def _end(process: multiprocessing.context.ForkServerProcess) -> None:
    """End the child and the processes that it has started: they are one group."""
    if process.pid is not None:
        for kill in (os.killpg, os.kill):  # the group is there a moment after the process
            try:
                kill(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
    process.join()


def _plain(text: str) -> str:
    """Replace control and format characters, which could steer a terminal, and cut a text that is too
    long."""

    def shown(sign: str) -> str:
        steers = unicodedata.category(sign)[0] == "C" and sign not in "\n\t"
        return "\N{REPLACEMENT CHARACTER}" if steers else sign

    return "".join(map(shown, text[:SHOWN])) + (" ..." if len(text) > SHOWN else "")


# --- the child's side


def _nothing() -> None:
    """Do nothing: a process with this target ends at once."""


def _child(answers: Connection, name: str, file: str, folder: str, limits: Limits) -> None:
    """Grade `file` in `folder` and send each outcome, then null."""
    os.setsid()  # a group of its own, which ends as one
    from . import LABS

    lab = LABS[name]
    torch.set_num_threads(1)
    os.chdir(folder)
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    lab.prepare()  # made already, unless the server could not

    # From here on the process lives in its folder, without a GPU and within its limits.
    os.environ.update(HOME=folder, TMPDIR=folder, CUDA_VISIBLE_DEVICES="")
    os.environ["MINIGEMM_CACHE_DIR"] = os.path.join(folder, "cache")
    tempfile.tempdir = None
    warnings.simplefilter("ignore")
    _limit(limits)
    for outcome in _judged(lab, Path(file)):
        answers.send_bytes(json.dumps(asdict(outcome)).encode()[: 1 << 20])
    answers.send_bytes(b"null")
    shutil.rmtree("cache", ignore_errors=True)


def _limit(limits: Limits) -> None:
    """Limit this process from here on; the memory that it has already does not count."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    wanted = {
        resource.RLIMIT_AS: used + limits.memory,
        resource.RLIMIT_CPU: int(limits.seconds) + 2,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
    }
    for what, value in wanted.items():
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def _judged(lab: Lab, path: Path) -> Iterator[Outcome]:
    """Yield the lab's outcomes. An error that the lab does not expect costs the criteria that are left."""
    done = set()
    try:
        for outcome in lab.judge(path):
            done.add(outcome.criterion)
            yield outcome
        return
    except MemoryError:
        reason = "it asks for more memory than a submission may have"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    for criterion in lab.criteria:
        if criterion.name not in done:
            yield Outcome(criterion.name, False, reason)
