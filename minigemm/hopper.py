"""The Hopper GPU in numbers: the limits of a launch, the rates of an SM, and what the datasheets allow.

Sources: CUDA C++ Programming Guide, "Compute Capabilities" (9.0); NVIDIA H100 and H200 datasheets. The
emulator imports nothing of minigemm but the store, so it states the limits and rates that it needs itself;
tests/house/test_hopper.py compares the two.

Another Hopper GPU (H20, GH200, H100 PCIe) needs a `Chip` in CHIPS; SMS and CLOCK_HZ stay those of an H100
SXM, for which the emulator stands, and so do the fitted rates of `plan/cost.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "CHIPS",
    "CLOCK_HZ",
    "FLUSH_BYTES",
    "GRID_LIMIT",
    "H100",
    "H200",
    "PRODUCTS_PER_CYCLE",
    "REGISTER_LIMIT",
    "SHARED_LIMIT",
    "SMS",
    "SM_REGISTERS",
    "THREAD_LIMIT",
    "Chip",
    "chip_of",
]

SMS = 132  # of an H100 or H200 SXM; the emulator stands for one of these
CLOCK_HZ = 1_755_000_000  # an H100 SXM under load: turns bytes a second into bytes a cycle
PRODUCTS_PER_CYCLE = 4096  # FP8 products of an SM's tensor core
FLUSH_BYTES = 256 << 20  # zeroed before a timed call: more than the L2 cache holds

SHARED_LIMIT = 227 * 1024  # bytes of shared memory that a CTA can have
SM_REGISTERS = 65_536  # 32-bit registers of an SM
REGISTER_LIMIT = 255  # registers of a thread
THREAD_LIMIT = 1024  # threads of a CTA
GRID_LIMIT = 65_535  # CTAs of a grid along y, and along z


@dataclass(frozen=True)
class Chip:
    """The rates of a GPU by its datasheet: operations a second (dense, no sparsity), bytes a second.

    The name begins with the word by which the driver's name is recognized.
    """

    name: str
    fp8: float
    fp32: float  # of the ordinary cores, where the first stages compute
    bandwidth: float
    source: str

    def allowed(self, intensity: float, peak: float | None = None) -> float:
        """Return the operations a second that `intensity` operations a byte allow: the roofline.

        `peak` replaces the FP8 rate as the roof.
        """
        return min(self.fp8 if peak is None else peak, intensity * self.bandwidth)

    def floor(self, m: int, n: int, k: int) -> float:
        """Return the least seconds of an FP8 product with BF16 output: for its operations, or its bytes."""
        return max(2 * m * n * k / self.fp8, (k * (m + n) + 2 * m * n) / self.bandwidth)


H100 = Chip("H100 SXM", 1979e12, 67e12, 3.35e12, "NVIDIA H100 datasheet")
H200 = Chip("H200 SXM", 1979e12, 67e12, 4.8e12, "NVIDIA H200 datasheet")


CHIPS = (H100, H200)


def chip_of(gpu: str) -> Chip:
    """Return the datasheet of a GPU by its driver's name.

    A GPU that is not in CHIPS gets the H100's; its floors and rooflines are then those of an H100.
    """
    words = re.findall(r"\w+", gpu)
    return next((chip for chip in CHIPS if chip.name.split()[0] in words), H100)
