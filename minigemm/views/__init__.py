"""Pictures for the course: numbers, tiles and memories, drawn from what a kernel really did.

Every function returns a :class:`Picture` or :class:`Html`: Jupyter draws it, `print` says it in words,
`Picture.save` writes a PNG. Below, a line for each public name gives its home; `as` makes the name public for
type checkers and ruff.
"""

from __future__ import annotations

from .accesses import bank_rows as bank_rows
from .accesses import banks as banks
from .accesses import requests_at as requests_at
from .accesses import sectors as sectors
from .accumulation import accumulation as accumulation
from .accumulation import accumulation_errors as accumulation_errors
from .accumulation import running_sum as running_sum
from .accumulators import accumulators as accumulators
from .accumulators import alignment as alignment
from .accumulators import held_by as held_by
from .cluster import cluster as cluster
from .cluster import cluster_bytes as cluster_bytes
from .cluster import counted_multicast as counted_multicast
from .cluster import recorded_multicast as recorded_multicast
from .counts import compare as compare
from .counts import recorded as recorded
from .counts import recorded_ideas as recorded_ideas
from .counts import recorded_runs as recorded_runs
from .descriptors import descriptor as descriptor
from .descriptors import operand_reads as operand_reads
from .descriptors import wgmma_widths as wgmma_widths
from .film import Film as Film
from .film import ring_film as ring_film
from .formats import bits as bits
from .formats import number_line as number_line
from .formats import spacing as spacing
from .groups import Routing as Routing
from .groups import contiguous_layout as contiguous_layout
from .groups import masked_layout as masked_layout
from .groups import route as route
from .groups import routing as routing
from .groups import search as search
from .ladder import ladder as ladder
from .lesson import device as device
from .lesson import edited as edited
from .lesson import excerpt as excerpt
from .listing import code as code
from .listing import diff as diff
from .listing import loop as loop
from .listing import loop_mix as loop_mix
from .listing import lowered as lowered
from .phases import phases as phases
from .quantization import channel_errors as channel_errors
from .quantization import error_bars as error_bars
from .quantization import landing as landing
from .quantization import outlier_sweep as outlier_sweep
from .quantization import scale_sweep as scale_sweep
from .ring import ring as ring
from .ring import ring_budget as ring_budget
from .roles import handshake as handshake
from .roles import registers as registers
from .roofline import H100 as H100
from .roofline import H200 as H200
from .roofline import gemm_intensity as gemm_intensity
from .roofline import product as product
from .roofline import roofline as roofline
from .scales import error_curves as error_curves
from .scales import scale_columns as scale_columns
from .scales import scale_layout as scale_layout
from .scales import scale_map as scale_map
from .schedule import in_turn as in_turn
from .schedule import raster as raster
from .schedule import raster_traffic as raster_traffic
from .schedule import tail as tail
from .schedule import waves as waves
from .style import Html as Html
from .style import Picture as Picture
from .swizzles import box as box
from .swizzles import swizzles as swizzles
from .tiles import footprint as footprint
from .tiles import mismatches as mismatches
from .tiles import per_product as per_product
from .tiles import tiles as tiles
from .timeline import recorded_timeline as recorded_timeline
from .timeline import timeline as timeline
from .timeline import waiting_for as waiting_for
