"""Everyone who is timed: minigemm, and every other FP8 product that can be imported.

A peer is a class that says what it needs and what it computes. It gets the tensors of a `Case`, lays out anew
what it wants otherwise, and returns a call without arguments that returns d; what it prepares is not timed. A
peer that is missing, or that cannot compute a workload, says so in one sentence; nothing that it raises ends
a benchmark.
"""

from __future__ import annotations

from .cublas import CublasLt, CublasLtBlocks
from .cutlass import Cutlass
from .deep_gemm import DeepGemm
from .flashinfer import FlashInfer
from .minigemm import BatchInvariant, MiniGemm
from .peer import Missing, Peer
from .torchao import TorchAo
from .triton import Triton

__all__ = ["PEERS", "CublasLt", "MiniGemm", "Missing", "Peer", "named"]

#: All peers in the order of the tables; minigemm comes first.
PEERS: tuple[type[Peer], ...] = (
    MiniGemm,
    BatchInvariant,
    DeepGemm,
    CublasLt,
    CublasLtBlocks,
    Triton,
    TorchAo,
    FlashInfer,
    Cutlass,
)


def named(names: list[str] | None = None) -> list[Peer]:
    """Return the peers of these names and minigemm; all of PEERS without names. Each is new.

    Raises:
        ValueError: no peer has such a name.
    """
    known = [kind.name for kind in PEERS]
    for name in names or ():
        if name not in known:
            raise ValueError(f"peer: expected one of {', '.join(known)}, got {name!r}")
    return [kind() for kind in PEERS if not names or kind.name in names or kind is MiniGemm]
