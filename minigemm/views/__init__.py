"""Pictures for the course: what numbers, tiles and memories look like, drawn from what a kernel really did.

Every function gives a :class:`Picture` or :class:`Html`: Jupyter draws it, `print` says it in words, `Picture.save` writes a PNG.
"""

from __future__ import annotations

from .accesses import banks, requests_at, sectors
from .counts import compare, recorded
from .formats import bits, number_line
from .lesson import device, edited
from .listing import code, diff
from .phases import phases
from .quantization import channel_errors, outlier_sweep
from .roofline import H100, H200, gemm_intensity, roofline
from .style import Html, Picture
from .swizzles import swizzles
from .tiles import footprint, tiles

__all__ = [
    "H100",
    "H200",
    "Html",
    "Picture",
    "banks",
    "bits",
    "channel_errors",
    "code",
    "compare",
    "device",
    "diff",
    "edited",
    "footprint",
    "gemm_intensity",
    "number_line",
    "outlier_sweep",
    "phases",
    "recorded",
    "requests_at",
    "roofline",
    "sectors",
    "swizzles",
    "tiles",
]
