"""The places in a kernel where a thread stops or touches memory, and which instructions these are."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..ptx.module import Instruction, Operand, Vector

__all__ = ["IGNORED", "Access", "Site", "Strength", "results_of_stop", "space_of"]

#: Instructions at which a thread stops, with the number of leading operands that are results.
STOPS = (
    (re.compile(r"(bar|barrier)(\.cta)?\.red\b"), 1),
    (re.compile(r"bar\.|barrier\."), 0),
    (re.compile(r"(shfl|vote|match|redux|elect|activemask|ldmatrix|movmatrix)\b"), 1),
    (re.compile(r"mbarrier\.(arrive|arrive_drop|test_wait|try_wait|pending_count)\b"), 1),
    (re.compile(r"(mbarrier|cp\.async|cp\.reduce|st\.async|red\.async|wgmma|stmatrix)\b"), 0),
    (re.compile(r"(fence|membar|nanosleep|call|setmaxnreg|griddepcontrol)\b"), 0),
)
#: Instructions without effect on results here.
IGNORED = re.compile(r"(prefetch|prefetchu|discard|applypriority|pragma|wgmma\.fence_nothing)\b")

_SPACES = {
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "shared",
    "global": "global",
    "const": "const",
    "local": "local",
    "param": "param",
    "param::entry": "param",
    "param::func": "param",
}


@dataclass(frozen=True)
class Site:
    """An instruction at which threads stop.

    Before a thread goes on, the machine writes ``results`` to the result slots. A WGMMA has ``accumulators``,
    the byte offsets of its registers in the context, and ``pressure``, the number of live FP32 registers.
    """

    index: int  # in the function's code
    instruction: Instruction
    arguments: tuple[Operand, ...]  # what the argument slots hold, in order
    results: tuple[Operand, ...]
    accumulators: tuple[int, ...] = ()
    pressure: int = 0


@dataclass(frozen=True)
class Access:
    """An instruction that accesses memory, for the logs and the messages."""

    space: str  # "global", "shared" or "generic"
    bytes: int
    store: bool


@dataclass(frozen=True)
class Strength:
    """What a memory access promises to other threads."""

    volatile: bool = False
    strong: bool = False  # atomics; relaxed, acquire, release
    atomic: bool = False
    acquire: bool = False
    release: bool = False

    @property
    def any(self) -> bool:
        """Whether it is volatile or strong."""
        return self.volatile or self.strong

    @classmethod
    def of(cls, ins: Instruction) -> Strength:
        """Read the strength of an instruction from its modifiers."""
        if ins.opcode not in ("ld", "ldu", "st", "atom", "red"):
            return cls()
        words = {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"} & set(ins.modifiers)
        atomic = ins.opcode in ("atom", "red")
        return cls(
            volatile="volatile" in words,
            strong=atomic or bool(words - {"volatile"}),
            atomic=atomic,
            acquire=bool(words & {"acquire", "acq_rel"}),
            release=bool(words & {"release", "acq_rel"}),
        )


def results_of_stop(ins: Instruction) -> int | None:
    """Return how many leading operands are results where a thread stops, None where it does not stop."""
    name = ins.name
    for pattern, results in STOPS:
        if pattern.match(name):
            if ins.opcode == "call":
                return 1 if len(ins.operands) > 1 and isinstance(ins.operands[0], Vector) else 0
            return results
    return None


def space_of(ins: Instruction) -> str:
    """Return the state space that an instruction names, "generic" where it names none."""
    return next((_SPACES[m] for m in ins.modifiers if m in _SPACES), "generic")
