"""The Hopper GPU in numbers: the limits of a launch, the rates of an SM, and what the datasheets allow.

Sources: CUDA C++ Programming Guide, "Compute Capabilities" (9.0); NVIDIA H100 and H200 datasheets. The
emulator, which imports nothing of minigemm, has the limits and rates that it needs once more;
tests/house/test_hopper.py compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
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
    "of",
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
    """The rates of a GPU by its datasheet: operations a second (dense, no sparsity), bytes a second."""

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


def of(gpu: str) -> Chip:
    """Return the datasheet of a GPU by the name that its driver gives; the H100's for others."""
    return H200 if "H200" in gpu else H100
