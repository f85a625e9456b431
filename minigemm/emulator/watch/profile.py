"""What a launch executed, and its memory profile: requests, sectors, wavefronts, bank conflicts.

The memory profile is made from the addresses that the kernel really used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .report import Counters, LineCount, Request

if TYPE_CHECKING:
    from ..errors import Location
    from ..ptx.module import Instruction
    from ..translate.lower import Access

SPACES = ("global", "shared", "generic")  # in the order of their numbers in requests.py


class Profile:
    """The sum of the access logs of a launch.

    Args:
        accesses: the kernel's access sites by instruction index.
        instructions: the length of the kernel's code.
        keep: how many warp requests of each site to keep with their addresses.
    """

    def __init__(self, accesses: Mapping[int, Access], instructions: int, keep: int = 0) -> None:
        from . import requests  # Numba takes a while to import

        if instructions > 1 << 16:
            raise ValueError(
                f"profile: logs number at most {1 << 16} instructions, the kernel has {instructions}; launch with "
                "profile=False"
            )
        self._requests = requests

        # One row for each access site, in the order of the code: its space, bytes per lane and totals.
        self._accesses = dict(sorted(accesses.items()))
        n = len(self._accesses)
        self._rows = np.zeros(instructions, np.int32)
        self._rows[list(self._accesses)] = np.arange(n)
        self._spaces = np.array([SPACES.index(a.space) for a in self._accesses.values()], np.int64)
        self._sizes = np.array([a.bytes for a in self._accesses.values()], np.int64)
        self._totals = np.zeros((n, requests.COLUMNS), np.int64)

        # The first `keep` requests of each site; -1 stands for a lane that has no part in a request.
        self._kept = np.zeros(n, np.int64)
        self._ctas = np.zeros((n, keep), np.int64)
        self._threads = np.full((n, keep, 32), -1, np.int64)
        self._addresses = np.full((n, keep, 32), -1, np.int64)

    def take(self, log: np.ndarray, logged: np.ndarray, ids: np.ndarray, cta: int) -> None:
        """Add the entries that threads logged since they were last set going.

        Args:
            log: uint64 (threads, capacity); an entry is ``site << 48 | address``.
            logged: int64 (threads), the number of entries of each thread; read only at ``ids``.
            ids: int32, the threads that ran, ascending.
            cta: linear index of their CTA.
        """
        entries = logged[ids]
        if not entries.any():
            return
        sites = self._rows, self._spaces, self._sizes
        kept = self._kept, self._ctas, self._threads, self._addresses
        self._requests.count(log.view(np.int64), entries, ids, *sites, self._totals, *kept, cta)

    def finish(self, counters: Counters, code: Sequence[Instruction]) -> tuple[Counters, list[LineCount]]:
        """Return ``counters`` with those of memory, and the accesses by source line, in the code's order."""
        r = self._requests
        result = Counters(counters)
        lines: dict[tuple, LineCount] = {}
        for (site, access), total in zip(self._accesses.items(), self._totals.tolist(), strict=True):
            ins = code[site]
            # A generic access may have met both spaces.
            parts = [
                ("shared", total[r.SHARED_REQUESTS], total[r.SHARED_LANES]),
                ("global", total[r.GLOBAL_REQUESTS], total[r.GLOBAL_LANES]),
            ]
            for space, requests, lanes in parts:
                if not requests:
                    continue
                if space == "global" and "const" in ins.modifiers:
                    space = "const"  # served by a cache of its own, which has no sectors

                # Several sites may lie on one line.
                key = (*_lines_of(ins.location), None if ins.location else ins.line, space, access.store)
                line = lines.setdefault(key, LineCount(ins.location, ins.line, space, access.store))
                line.requests += requests
                line.bytes += lanes * access.bytes
                if space == "const":
                    continue

                # The counters of the launch.
                result[f"{space}_requests"] += requests
                result[f"{space}_{'store' if access.store else 'load'}_bytes"] += lanes * access.bytes
                if space == "global":
                    line.sectors += total[r.SECTORS]
                    result["global_sectors"] += total[r.SECTORS]
                else:
                    line.wavefronts += total[r.WAVEFRONTS]
                    line.ideal_wavefronts += total[r.IDEAL]
                    line.worst_degree = max(line.worst_degree, total[r.DEGREE])
                    result["shared_wavefronts"] += total[r.WAVEFRONTS]
                    result["bank_conflicts"] += total[r.WAVEFRONTS] - total[r.IDEAL]
        return result, list(lines.values())

    def requests(self, code: Sequence[Instruction]) -> list[Request]:
        """Return the kept requests, in the order of the code."""
        found = []
        for row, (site, access) in enumerate(self._accesses.items()):
            for k in range(int(self._kept[row])):
                n = int((self._threads[row, k] >= 0).sum())
                threads, addresses = self._threads[row, k, :n].tolist(), self._addresses[row, k, :n].tolist()
                space = access.space
                if space == "generic":
                    space = "global" if addresses[0] >> 32 else "shared"
                cta, location = int(self._ctas[row, k]), code[site].location
                lanes = tuple(threads), tuple(addresses)
                found.append(Request(site, location, space, access.bytes, access.store, *lanes, cta))
        return found


def executed(
    code: Sequence[Instruction], blocks: Sequence[tuple[int, int]], counts: Sequence[int]
) -> tuple[int, dict[str, int]]:
    """Return how many instructions all threads executed, and how many of each class, the most first.

    Block k of the code has ``blocks[k]`` = (first instruction, number of them) and ran ``counts[k]`` times.
    """
    classes: dict[str, int] = {}
    total = 0
    for (first, length), count in zip(blocks, counts, strict=False):
        for ins in code[first : first + length]:
            kind = instruction_class(ins.opcode, ins.modifiers)
            classes[kind] = classes.get(kind, 0) + count
        total += count * length
    return total, dict(sorted(classes.items(), key=lambda item: -item[1]))


def instruction_class(opcode: str, modifiers: tuple[str, ...]) -> str:
    """Return the class under which an instruction is counted."""
    # Accesses are told apart by their state space, too.
    if opcode in ("ld", "ldu", "st", "atom", "red"):
        spaces = (m.split("::")[0] for m in modifiers)
        known = ("global", "shared", "local", "const", "param")
        space = next((space for space in spaces if space in known), "generic")
        verb = "atomic" if opcode in ("atom", "red") else "load" if opcode.startswith("ld") else "store"
        return f"{verb} {space}"

    # The opcode alone tells these classes.
    if opcode in ("bra", "brx", "ret", "exit", "call"):
        return "control"
    if opcode in ("bar", "barrier", "mbarrier", "fence", "membar"):
        return "synchronisation"
    if opcode in ("shfl", "vote", "match", "redux", "elect", "activemask"):
        return "warp"
    if opcode == "cp":
        return "asynchronous copy"
    if opcode == "wgmma":
        return "tensor core"
    if opcode in ("cvt", "cvta"):
        return "conversion"

    # The types tell floating-point arithmetic from integer arithmetic.
    if any(m in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2") for m in modifiers):
        return "fma" if opcode in ("fma", "mad") else "floating point"
    return "move" if opcode in ("mov", "selp") else "predicate" if opcode in ("setp", "set") else "integer"


def _lines_of(location: Location | None) -> Iterable[tuple[str, int]]:
    """Yield a source line and the calls that led to it, without columns."""
    while location is not None:
        yield location.file, location.line
        location = location.inlined_at
