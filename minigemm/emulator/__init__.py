"""A Hopper GPU on the CPU: runs the PTX that NVRTC emits, bit for bit, and shows what a GPU cannot.

    from minigemm import emulator
    report = emulator.launch(ptx, grid=(4, 4), block=128, args=[a, b, n], kernel="my_kernel")
    report.hazards, report.counters

Of the rest of minigemm it imports only the store. docs/emulator.md says how it works and what it covers.
"""

from .errors import Deadlock, EmulatorError, Fault, Location, Unsupported
from .launching import launch
from .machine import tensor_core
from .machine.mbarrier import MBarrier
from .machine.tma import TensorMap, swizzle_offsets
from .machine.wgmma import Descriptor
from .watch.report import Counters, Event, Hazard, Report, Request
from .watch.timeline import Rates, Timeline

__all__ = [
    "Counters", "Deadlock", "Descriptor", "EmulatorError", "Event", "Fault", "Hazard", "Location", "MBarrier",
    "Rates", "Report", "Request", "TensorMap", "Timeline", "Unsupported", "launch", "swizzle_offsets",
    "tensor_core",
]  # fmt: skip
