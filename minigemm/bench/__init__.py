"""Measurements that anyone can repeat: minigemm beside its peers, the ladder of stages, what multicast pays, hardware counters, the host's time a call, and the
emulator's speed.

`python -m minigemm bench` is the way in; see docs/benchmarking.md. Of the modules here, `comparison` runs the show: it takes a `shapes.Shape`, makes its
tensors (`cases`), lets each of `peers` call, checks the results, and times them by `timing`; `report` prints and draws. `counters` is a program too, which
Nsight Compute runs, and is not imported here: Python warns of a module that it is to run and that is there already.
"""

from __future__ import annotations

from .comparison import Reference, compare, means
from .host import host_time
from .multicast import multicast_as_text, multicast_gain
from .peers import PEERS, Peer, named
from .report import plot, show, table
from .rungs import ladder, ladder_as_text
from .shapes import DEFAULT, Shape, contiguous, dense, masked
from .speed import as_text, emulator_speed
from .timing import gpu_seconds

__all__ = [
    "DEFAULT", "PEERS", "Peer", "Reference", "Shape", "as_text", "compare", "contiguous", "dense", "emulator_speed", "gpu_seconds", "host_time", "ladder",
    "ladder_as_text", "masked", "means", "multicast_as_text", "multicast_gain", "named", "plot", "show", "table",
]  # fmt: skip
