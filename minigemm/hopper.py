"""What the datasheets of Hopper GPUs allow."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLOCK_HZ", "FLUSH_BYTES", "H100", "H200", "PRODUCTS_PER_CYCLE", "SHARED_LIMIT", "Chip", "of"]

CLOCK_HZ = 1_755_000_000  # of the SMs of an H100 SXM
PRODUCTS_PER_CYCLE = 4096  # FP8 products of an SM's tensor core
SHARED_LIMIT = 227 * 1024  # bytes of shared memory that a CTA can have
FLUSH_BYTES = 256 << 20  # zeroed before a timed call: more than the L2 cache holds


@dataclass(frozen=True)
class Chip:
    """Rates of a GPU as its datasheet gives them: operations a second (dense, no sparsity), bytes a second."""

    name: str
    fp8: float
    fp32: float  # of the ordinary cores, where the first stages compute
    bandwidth: float
    source: str

    def allowed(self, intensity: float, peak: float | None = None) -> float:
        """Operations a second at that many operations a byte."""
        return min(self.fp8 if peak is None else peak, intensity * self.bandwidth)

    def floor(self, m: int, n: int, k: int) -> float:
        """Seconds below which no FP8 product with BF16 output can be: its operations, or its bytes moved once."""
        return max(2 * m * n * k / self.fp8, (k * (m + n) + 2 * m * n) / self.bandwidth)


H100 = Chip("H100 SXM", 1979e12, 67e12, 3.35e12, "NVIDIA H100 datasheet")
H200 = Chip("H200 SXM", 1979e12, 67e12, 4.8e12, "NVIDIA H200 datasheet")


def of(gpu: str) -> Chip:
    """The datasheet of a GPU by the name that its driver gives; the H100's for others."""
    return H200 if "H200" in gpu else H100
