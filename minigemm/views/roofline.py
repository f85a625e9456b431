"""The roofline of Hopper: what its datasheet allows, by how much work a byte brings. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .style import BLUE, GREY, ORANGE, RED, SERIES, Picture, drawn, figure

__all__ = ["H100", "H200", "Chip", "gemm_intensity", "roofline"]


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
        return min(peak or self.fp8, intensity * self.bandwidth)


H100 = Chip("H100 SXM", 1979e12, 67e12, 3.35e12, "NVIDIA H100 datasheet")
H200 = Chip("H200 SXM", 1979e12, 67e12, 4.8e12, "NVIDIA H200 datasheet")


def gemm_intensity(m: int, n: int, k: int) -> float:
    """Operations a byte of an FP8 product with BF16 output when every byte moves once."""
    return 2 * m * n * k / (k * (m + n) + 2 * m * n)


@drawn
def roofline(points: Mapping[str, float] | None = None, chip: Chip = H200) -> Picture:
    """The roof, and where some problems or kernels stand under it.

    `points`: operations a byte by name. They are drawn on the roof: the most that the datasheet allows there.
    """
    made, axes = figure(8, 4)
    low, high = 0.125, 16384.0
    ridge = chip.fp8 / chip.bandwidth
    axes.loglog([low, ridge, high], [chip.allowed(x) / 1e12 for x in (low, ridge, high)], color=BLUE, linewidth=2)
    axes.axhline(chip.fp32 / 1e12, color=ORANGE, linewidth=1.2, linestyle="--")
    axes.text(high, chip.fp32 / 1e12 * 1.12, f"FP32 cores, {chip.fp32 / 1e12:.0f} TFLOPS", ha="right", va="bottom", color=RED, fontsize=8)
    axes.text(high, chip.fp8 / 1e12 * 1.12, f"FP8 tensor cores, {chip.fp8 / 1e12:.0f} TFLOPS", ha="right", va="bottom", color=BLUE, fontsize=8)
    axes.axvline(ridge, color=GREY, linewidth=0.8, linestyle=":")
    axes.text(ridge * 1.06, 0.4, f"ridge: {ridge:.0f} operations a byte", color=GREY, fontsize=8)
    said = [f"{chip.name}: ridge at {ridge:.0f} operations a byte"]
    for (name, intensity), colour in zip((points or {}).items(), (SERIES * 3)[1:], strict=False):
        allowed = chip.allowed(intensity) / 1e12
        axes.plot(intensity, allowed, "o", color=colour, markersize=7, label=f"{name}: {intensity:.3g} a byte, at most {allowed:.3g} TFLOPS")
        said.append(f"{name} {intensity:.3g} operations a byte, at most {allowed:.3g} TFLOPS")
    axes.set(xlabel="operations a byte from device memory", ylabel="TFLOPS allowed", xlim=(low, high), ylim=(0.3, 6000))
    axes.set_title(f"{chip.name}, from its datasheet: {chip.fp8 / 1e12:.0f} TFLOPS dense FP8, {chip.bandwidth / 1e12:g} TB/s")
    if points:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.08), fontsize=8)
    return Picture(made, "; ".join(said))
