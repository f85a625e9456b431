"""Measurements that anyone can repeat: `python -m minigemm bench`, described in docs/benchmarking.md.

- `comparison` times the library's calls beside everyone in `peers`: it takes `workloads`, makes their tensors
  (`cases`), checks the results, and times them (`timing`); `report` prints and draws what came out.
- `ladder` times every stage, and `multicast` two of them.
- `host_overhead` measures how long a call keeps the host.
- `counters` counts what the hardware did, through NVIDIA's Nsight Compute (`ncu`). It is imported when it is
  asked for.
- `tracing` records when the warps of a kernel wait and draws that as a timeline.
- `emulator_speed` measures the emulator on the CPU.
"""

from __future__ import annotations

from .comparison import Reference, compare, means
from .emulator_speed import as_text, emulator_speed
from .host_overhead import host_time
from .ladder import ladder, ladder_as_text
from .multicast import multicast_as_text, multicast_gain
from .peers import PEERS, Peer, named
from .report import plot, show, table
from .timing import gpu_seconds
from .workloads import DEFAULT, Workload, contiguous, dense, masked

__all__ = [
    "DEFAULT",
    "PEERS",
    "Peer",
    "Reference",
    "Workload",
    "as_text",
    "compare",
    "contiguous",
    "dense",
    "emulator_speed",
    "gpu_seconds",
    "host_time",
    "ladder",
    "ladder_as_text",
    "masked",
    "means",
    "multicast_as_text",
    "multicast_gain",
    "named",
    "plot",
    "show",
    "table",
]
