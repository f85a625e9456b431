"""Measurements that anyone can repeat: `python -m minigemm bench`, described in docs/benchmarking.md.

- `comparison` times the library's calls beside everyone in `peers`: it takes the products of `workloads` or
  of the `wide` set, makes their tensors (`cases`), checks the results, and times them (`timing`). `summary`
  says who is faster, `report` prints all of it, `field` draws it, and `stored` reads and joins results.
- `ladder` times every stage, and `multicast` two of them. `dependent` times chains of products whose kernels
  may overlap, `choice` the config that a call gets beside all others, `ideas` the kernels with one idea taken
  out, and `quantizing` the kernels that quantize.
- `host_overhead` measures how long a call keeps the host.
- `counters` counts what the hardware did, through NVIDIA's Nsight Compute (`ncu`). It is imported when it is
  asked for.
- `tracing` records when the warps of a kernel wait and draws that as a timeline.
- `emulator_speed` measures the emulator on the CPU.
"""

from __future__ import annotations

from .choice import choice_as_text, choice_quality
from .comparison import compare
from .dependent import pdl_as_text, pdl_gain
from .emulator_speed import as_text, emulator_speed
from .field import field, picture
from .host_overhead import host_time
from .ideas import ideas_as_text, ideas_gain
from .ladder import ladder, ladder_as_text
from .multicast import multicast_as_text, multicast_gain
from .peers import PEERS, Peer, named
from .quantizing import quantize_as_text, quantize_speed
from .report import plot, show, table
from .summary import summarize
from .timing import gpu_seconds, seconds_by_flush
from .wide import WIDE
from .workloads import QUICK, Workload, contiguous, dense, masked

__all__ = [
    "PEERS",
    "QUICK",
    "WIDE",
    "Peer",
    "Workload",
    "as_text",
    "choice_as_text",
    "choice_quality",
    "compare",
    "contiguous",
    "dense",
    "emulator_speed",
    "field",
    "gpu_seconds",
    "host_time",
    "ideas_as_text",
    "ideas_gain",
    "ladder",
    "ladder_as_text",
    "masked",
    "multicast_as_text",
    "multicast_gain",
    "named",
    "pdl_as_text",
    "pdl_gain",
    "picture",
    "plot",
    "quantize_as_text",
    "quantize_speed",
    "seconds_by_flush",
    "show",
    "summarize",
    "table",
]
