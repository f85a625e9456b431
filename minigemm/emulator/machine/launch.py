"""The state of one launch that all of its CTAs share: the kernel, its memory, and the report's contents."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Fault, Location
from ..translate.lower import Program
from ..translate.native import Native
from ..watch.report import Event
from ..watch.timeline import Rates, Timeline

if TYPE_CHECKING:
    from ..watch.profile import Profile


@dataclass
class Memory:
    """Every buffer that a kernel may touch through global addresses."""

    ranges: list[tuple[int, int, bool, Any]] = field(default_factory=list)  # base, bytes, writable, owner

    def add(self, base: int, nbytes: int, writable: bool, owner: object) -> None:
        """Add a buffer, unless it is empty. Messages call it `str(owner)`, and `owner` keeps it alive."""
        if nbytes:
            self.ranges.append((base, nbytes, writable, owner))

    def table(self) -> np.ndarray:
        """Return the ranges as native code reads them: int64, (base, end, writable) one after the other."""
        rows = [(base, base + n, int(writable)) for base, n, writable, _ in self.ranges] or [(0, 0, 0)]
        return np.array(rows, np.int64).reshape(-1)

    def bytes(self, address: int, n: int) -> np.ndarray:
        """Return a writable uint8 view of `n` bytes. Raises Fault unless one buffer holds all of them."""
        for base, size, _, _ in self.ranges:
            if base <= address and address + n <= base + size:
                return np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(address))
        raise Fault(
            f"{n} bytes at global address {address:#x} lie outside every buffer of this launch; "
            f"{self.nearest(address)}"
        )

    def nearest(self, address: int) -> str:
        """Say where an address lies beside the nearest buffer."""
        if not self.ranges:
            return "the launch has no buffers"
        base, size, _, owner = min(self.ranges, key=lambda r: max(r[0] - address, address - (r[0] + r[1]), 0))
        if address < base:
            return f"it is {base - address} bytes before {owner}"
        if address >= base + size:
            return f"it is {address - base - size} bytes past the end of {owner} ({size} bytes)"
        return f"it begins inside {owner} ({size} bytes) at byte {address - base}"


@dataclass
class LaunchState:
    """A kernel with its launch configuration, arguments and options; and the results that its CTAs add to."""

    program: Program
    native: Native
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    explicit_cluster: bool  # was it launched, or compiled, as a cluster?
    shared: int  # bytes of dynamic shared memory
    parameters: np.ndarray  # uint8, as the kernel reads them
    symbols: np.ndarray  # int64: addresses of the module's variables
    memory: Memory
    schedule: str | int
    instruction_limit: float  # basic blocks
    hazards: bool
    fast: bool
    profile: Profile | None
    rates: Rates | None  # of the cycle model, if a timeline is wanted

    # What is counted and found while the CTAs run.
    counts: np.ndarray = field(init=False)  # uint64: how often each basic block ran, over all threads
    lengths: np.ndarray = field(init=False)  # float64: instructions of each basic block
    served: list[str] = field(default_factory=list)  # for each site: the name under which a unit serves it
    timeline: Timeline | None = None  # of CTA 0
    events: list[Event] = field(default_factory=list)
    hazard_list: list = field(default_factory=list)
    traffic: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = [length for _, length in self.program.blocks] or [0]
        self.counts = np.zeros(len(lengths), np.uint64)
        self.lengths = np.array(lengths, np.float64)

    @property
    def clusters(self) -> tuple[int, int, int]:
        """The grid, in clusters."""
        x, y, z = (n // m for n, m in zip(self.grid, self.cluster, strict=True))
        return x, y, z

    def source_of(self, index: int) -> tuple[Location | None, int]:
        """Return the source location and the PTX line of the instruction with this index."""
        code = self.program.function.code
        if index >= len(code):
            return None, 0
        return code[index].location, code[index].line

    def add_traffic(self, key: str, amount: int) -> None:
        """Add to one of the report's counters."""
        self.traffic[key] = self.traffic.get(key, 0) + amount
