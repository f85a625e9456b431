"""Everyone who is timed: minigemm, and every other FP8 product that can be imported.

A peer is a class that says what it needs and what it computes. It gets the tensors of a `Case`, lays out anew
what it wants otherwise, and returns a call without arguments that returns d; what it prepares is not timed. A
peer that is missing, or that cannot compute a workload, says so in one sentence; nothing that it raises ends
a benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable

from .cublas import CublasLt, CublasLtBlocks
from .cutlass import Cutlass
from .deep_gemm import DeepGemm, packages
from .flashinfer import FlashInfer
from .minigemm import BatchInvariant, MiniGemm
from .peer import Missing, Peer
from .torchao import TorchAo
from .triton import Triton

__all__ = ["PEERS", "CublasLt", "DeepGemm", "MiniGemm", "Missing", "Peer", "named"]

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


def named(names: list[str] | None = None, deep_gemm: Iterable[str] = ()) -> list[Peer]:
    """Return the peers of these names and minigemm; all of PEERS without names. Each is new.

    Args:
        names: names of peers.
        deep_gemm: folders with a DeepGEMM each, FOLDER or LABEL=FOLDER, beside those that the environment
            names; see `peers.deep_gemm`. They come whatever names are given.

    Raises:
        ValueError: no peer has such a name, or no DeepGEMM is in such a folder.
    """
    known = [kind.name for kind in PEERS]
    for name in names or ():
        if name not in known:
            raise ValueError(f"peer: expected one of {', '.join(known)}, got {name!r}")

    # The folders' generations stand beside the installed one.
    found: list[Peer] = []
    for kind in PEERS:
        if not names or kind.name in names or kind is MiniGemm:
            found.append(kind())
        if kind is DeepGemm:
            found += [DeepGemm(package) for package in packages(deep_gemm)]
    return found
