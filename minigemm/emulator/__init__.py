"""A Hopper GPU on the CPU: runs the PTX that NVRTC emits, bit for bit, and shows what a GPU cannot.

    from minigemm import emulator
    report = emulator.launch(ptx, grid=(4, 4), block=128, args=[a, b, n], kernel="my_kernel")
    report.hazards, report.counters

It imports nothing of the rest of minigemm. docs/emulator.md says how it works and what it covers.
"""

from .errors import Deadlock, EmulatorError, Fault, Location, Unsupported
from .launching import launch
from .report import Counters, Event, Hazard, Report
from .timeline import Rates, Timeline
from .tma import TensorMap

__all__ = [
    "Counters", "Deadlock", "EmulatorError", "Event", "Fault", "Hazard", "Location", "Rates", "Report", "TensorMap", "Timeline", "Unsupported",
    "launch",
]  # fmt: skip
