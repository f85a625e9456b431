"""Pictures for the course: what numbers, tiles and memories look like, drawn from what a kernel really did.

Every function gives a :class:`Picture` or :class:`Html`: Jupyter draws it, `print` says it in words, `Picture.save` writes a PNG.
"""

from __future__ import annotations

from .accesses import bank_rows, banks, requests_at, sectors
from .accumulation import accumulation, accumulation_errors, running_sum
from .accumulators import accumulators, alignment, held_by
from .cluster import cluster, cluster_bytes, counted_multicast, recorded_multicast
from .counts import compare, recorded, recorded_runs
from .descriptors import descriptor, operand_reads, wgmma_widths
from .formats import bits, number_line, spacing
from .groups import Routing, contiguous_layout, masked_layout, route, routing, search
from .ladder import ladder
from .lesson import device, edited
from .listing import code, diff, loop, loop_mix, lowered
from .phases import phases
from .quantization import channel_errors, error_bars, landing, outlier_sweep, scale_sweep
from .ring import Film, ring, ring_budget, ring_film
from .roles import handshake, registers
from .roofline import H100, H200, gemm_intensity, product, roofline
from .scales import error_curves, scale_columns, scale_layout, scale_map
from .schedule import in_turn, raster, raster_traffic, tail, waves
from .style import Html, Picture
from .swizzles import box, swizzles
from .tiles import footprint, mismatches, per_product, tiles
from .timeline import recorded_timeline, timeline, waiting_for

__all__ = [
    "H100",
    "H200",
    "Film",
    "Html",
    "Picture",
    "Routing",
    "accumulation",
    "accumulation_errors",
    "accumulators",
    "alignment",
    "bank_rows",
    "banks",
    "bits",
    "box",
    "channel_errors",
    "cluster",
    "cluster_bytes",
    "code",
    "compare",
    "contiguous_layout",
    "counted_multicast",
    "descriptor",
    "device",
    "diff",
    "edited",
    "error_bars",
    "error_curves",
    "footprint",
    "gemm_intensity",
    "handshake",
    "held_by",
    "in_turn",
    "ladder",
    "landing",
    "loop",
    "loop_mix",
    "lowered",
    "masked_layout",
    "mismatches",
    "number_line",
    "operand_reads",
    "outlier_sweep",
    "per_product",
    "phases",
    "product",
    "raster",
    "raster_traffic",
    "recorded",
    "recorded_multicast",
    "recorded_runs",
    "recorded_timeline",
    "registers",
    "requests_at",
    "ring",
    "ring_budget",
    "ring_film",
    "roofline",
    "route",
    "routing",
    "running_sum",
    "scale_columns",
    "scale_layout",
    "scale_map",
    "scale_sweep",
    "search",
    "sectors",
    "spacing",
    "swizzles",
    "tail",
    "tiles",
    "timeline",
    "waiting_for",
    "waves",
    "wgmma_widths",
]
