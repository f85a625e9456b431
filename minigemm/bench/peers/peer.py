"""The interface of a peer, and what several peers need."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...types import Layout

if TYPE_CHECKING:
    import torch

    from ..cases import Case
    from ..workloads import Workload

__all__ = ["ALL_LAYOUTS", "Missing", "Peer", "installed", "returning", "torch_version"]

ALL_LAYOUTS = (Layout.DENSE, Layout.CONTIGUOUS, Layout.MASKED)


class Missing(Exception):
    """A peer that cannot be had here; the message says what it lacks."""


class Peer:
    """Somebody's FP8 product.

    Attributes:
        name: the peer's name on the command line and in results.
        what: one line for the table's legend.
        layouts: the layouts that it computes.
        multiples: what n and k (and m) of a workload must be multiples of.
        scales: "block" for 1x128 and 128x128 scales; "tensor" for one scale per tensor, when the result is
            held against the product with such scales.
        tolerance: the largest ||d - reference|| / ||reference|| of a right result. BF16 alone costs 1.7e-3,
            up to 2**-8 where few elements decide; a wrong product is off by about 1.
    """

    name = ""
    what = ""
    layouts: tuple[Layout, ...] = (Layout.DENSE,)
    multiples: dict[str, int] = {"n": 1, "k": 16}  # noqa: RUF012 - the classes are constants
    scales = "block"
    tolerance = 5e-3

    def version(self) -> str:
        """Import what the peer needs and return its version.

        Raises:
            Missing: it cannot be had here. An import may raise anything else.
        """
        raise NotImplementedError

    def refuses(self, workload: Workload) -> str:
        """Return why the peer cannot compute this workload; "" if it can."""
        product = workload.product
        if product.layout not in self.layouts:
            return f"no {product.layout} layout"
        sizes = {"m": workload.expected_m, "n": product.n, "k": product.k}
        wrong = [
            f"{name} a multiple of {step}" for name, step in self.multiples.items() if sizes[name] % step
        ]
        return f"needs {' and '.join(wrong)}" if wrong else ""

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        """Return the call to time, which returns d. Both may raise whatever goes wrong."""
        raise NotImplementedError


def returning(d: torch.Tensor, call: Callable[[], object]) -> Callable[[], torch.Tensor]:
    """Return a call that runs `call`, which writes to d, and returns d."""

    def run() -> torch.Tensor:
        call()
        return d

    return run


def installed(*names: str) -> str:
    """Return the version of the first of these distributions that is installed, or "unknown"."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def torch_version() -> str:
    """Return the version of torch and of its CUDA."""
    import torch

    return f"torch {torch.__version__}, CUDA {torch.version.cuda}"
