"""The tensors of a workload, the same for everyone who is timed, and the float64 product that checks them.

All m of a dense (n, k) share their weights, and their activations are the first rows of the same ones. A
product of more than `CHECKED_WHOLE` operations is checked in all its rows and some of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from .. import quantize
from ..layout import ceil_div, round_up, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Layout
from .workloads import Workload

__all__ = ["CHECKED", "Case", "Cases", "make"]

CHECKED_WHOLE = 1 << 36  # operations: float64 does them in some milliseconds
LEAST_COLUMNS, STRIDE = 256, 64  # so every 128 neighbouring columns have at least one that is checked
#: The words of a protocol about the check.
CHECKED = (
    f"each result checked against float64, in all rows; where a product has more than {CHECKED_WHOLE:.1e} operations, "
    f"in one random column of each {STRIDE}, or {LEAST_COLUMNS} columns if those are more"
)


@dataclass(frozen=True, eq=False)
class Case:
    """Random operands, quantized and laid out beforehand.

    Attributes:
        workload: the product and the rows of its groups.
        a, sfa: FP8 (m, k), or (groups, m, k) of a MASKED layout, and its float32 1x128 scales, M-major.
        b, sfb: FP8 (n, k), or (groups, n, k) of both grouped layouts, and its float32 128x128 scales,
            row-major.
        index: int32. CONTIGUOUS: the group of each row of a, -1 for padding. MASKED: the rows in use of each
            group.
        tensor_scaled: a and b of the same random numbers with one scale per tensor; of a DENSE product only.
        columns: int64, the columns of d that are checked; None for all.
    """

    workload: Workload
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    index: torch.Tensor | None = None
    tensor_scaled: tuple[Quantized, Quantized] | None = None
    columns: torch.Tensor | None = None
    _kept: dict[str, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def empty(self) -> torch.Tensor:
        """Return a BF16 d that holds NaN, so that elements which a call leaves out show."""
        shape = (*self.a.shape[:-1], self.workload.product.n)
        return torch.full(shape, float("nan"), dtype=torch.bfloat16, device=self.a.device)

    def error(self, d: torch.Tensor, scales: str = "block") -> float:
        """Return ||d - reference||_F / ||reference||_F over the rows and columns that are checked.

        NaN in d gives NaN.

        scales: "block" for the product of a and b, "tensor" for the product of `tensor_scaled`.
        """
        # Computed once: several peers are held against the same reference.
        if scales not in self._kept:
            self._kept[scales] = self._references() if scales == "block" else [self._of_tensors()]
        references = self._kept[scales]

        # Sums of squares over all groups, of the distance and of the reference.
        distance = norm = 0.0
        for rows, reference in zip(self._groups(d), references, strict=True):
            checked = rows if self.columns is None else rows[:, self.columns]
            distance += float((checked.double() - reference).square().sum())
            norm += float(reference.square().sum())
        return (distance / norm) ** 0.5

    def _of_tensors(self) -> torch.Tensor:
        """Return the float64 product of `tensor_scaled`."""
        if self.tensor_scaled is None:
            layout = self.workload.product.layout
            raise ValueError(f"there is no product with one scale a tensor of {layout} shapes")
        a, b = self.tensor_scaled
        return quantize.reference(a, self._picked(b))

    def _groups(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return each group's rows that count. x is a, sfa or d: its rows are a's."""
        layout, counts = self.workload.product.layout, self.workload.counts
        if layout is Layout.DENSE:
            return [x]
        if layout is Layout.MASKED:
            return [x[group, :count] for group, count in enumerate(counts)]
        return [x[start : start + count] for start, count in zip(_starts(counts), counts, strict=True)]

    def _references(self) -> list[torch.Tensor]:
        """Return the float64 product of each group."""
        grouped = self.workload.product.layout is not Layout.DENSE
        weights = list(zip(self.b, self.sfb, strict=True)) if grouped else [(self.b, self.sfb)]
        parts = zip(self._groups(self.a), self._groups(self.sfa), weights, strict=True)
        return [
            quantize.reference(Quantized(a, sfa, "1x128"), self._picked(Quantized(b, sfb, "128x128")))
            for a, sfa, (b, sfb) in parts
        ]

    def _picked(self, b: Quantized) -> Quantized:
        """Return the rows of b that make the checked columns of d. Each has its block's scales."""
        if self.columns is None:
            return b
        data = b.data.view(torch.uint8)[self.columns].view(torch.float8_e4m3fn)
        if b.granularity == "tensor":
            return Quantized(data, b.scale, "tensor")
        return Quantized(data, b.scale[self.columns // BLOCK], "1x128")


def _checked_columns(workload: Workload, device: torch.device | str, seed: int) -> torch.Tensor | None:
    """Return the columns of d to check, one at random from each of many equal spans; None for all."""
    n = workload.product.n
    count = max(LEAST_COLUMNS, ceil_div(n, STRIDE))
    if workload.operations <= CHECKED_WHOLE or count >= n:
        return None
    edges = torch.arange(count + 1) * n // count
    spans = edges.diff()
    somewhere = torch.randint(1 << 30, (count,), generator=torch.Generator().manual_seed(seed))
    return (edges[:-1] + somewhere % spans).to(device)


def _starts(counts: tuple[int, ...]) -> list[int]:
    """Return the first row of each contiguous group."""
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + round_up(count, BLOCK))
    return starts[:-1]


class Cases:
    """Makes the cases of some workloads from normal random numbers in BF16, quantized.

    A seed gives the same on a kind of device. The tensors of the last dense (n, k) are kept for its next m.
    """

    def __init__(self, workloads: Iterable[Workload], device: torch.device | str, seed: int = 0):
        self._device, self._seed = device, seed
        self._key: tuple[int, int] | None = None
        self._kept: tuple[Quantized, ...] = ()

        # Activations are made for the largest m of each n and k.
        self._rows: dict[tuple[int, int], int] = {}
        for workload in workloads:
            m, n, k, layout, *_ = workload.product
            if layout is Layout.DENSE:
                self._rows[n, k] = max(m, self._rows.get((n, k), 0))

    def make(self, workload: Workload) -> Case:
        """Make the case of one of the workloads."""
        columns = _checked_columns(workload, self._device, self._seed)
        if workload.product.layout is not Layout.DENSE:
            self.forget()
            return _grouped(workload, self._device, self._random(workload.product.k), columns)

        # The first m rows of the activations, with scales laid out for that m.
        m, n, k, *_ = workload.product
        if self._key != (n, k):
            self.forget()
            self._kept, self._key = self._operands(n, k), (n, k)
        a, b, a_tensor, b_tensor = self._kept
        tensor_scaled = Quantized(a_tensor.data[:m], a_tensor.scale, "tensor"), b_tensor
        sfa = to_m_major(a.scale[:m])
        return Case(workload, a.data[:m], sfa, b.data, b.scale, None, tensor_scaled, columns)

    def forget(self) -> None:
        """Let go of the tensors that are kept."""
        self._key, self._kept = None, ()

    def _operands(self, n: int, k: int) -> tuple[Quantized, ...]:
        random = self._random(k)
        x, w = random(self._rows[n, k]), random(n)
        blocks = quantize.quantize(x, "1x128"), quantize.quantize(w, "128x128")
        return (*blocks, quantize.quantize(x), quantize.quantize(w))

    def _random(self, k: int) -> Callable[[int], torch.Tensor]:
        """Return what makes (rows, k) random numbers, the same sequence each time."""
        generator, device = torch.Generator(self._device).manual_seed(self._seed), self._device
        return lambda rows: torch.randn((rows, k), generator=generator, dtype=torch.bfloat16, device=device)


def make(workload: Workload, device: torch.device | str, seed: int = 0) -> Case:
    """Make the case of one workload alone."""
    return Cases([workload], device, seed).make(workload)


def _grouped(
    workload: Workload,
    device: torch.device | str,
    random: Callable[[int], torch.Tensor],
    columns: torch.Tensor | None,
) -> Case:
    """Make the case of a grouped workload."""
    m, n, _, layout, *_ = workload.product
    counts = workload.counts

    # Both grouped layouts have a weight for each group, which is made before the activations.
    weights = [quantize.quantize(random(n), "128x128") for _ in counts]
    b_data, sfb = _stacked([w.data for w in weights]), torch.stack([w.scale for w in weights])
    if layout is Layout.MASKED:
        buffers = [quantize.quantize(random(m), "1x128") for _ in counts]
        a_data, sfa = _stacked([x.data for x in buffers]), torch.stack([x.scale for x in buffers])
        in_use = torch.tensor(counts, dtype=torch.int32, device=device)
        return Case(workload, a_data, to_m_major(sfa), b_data, sfb, in_use, columns=columns)

    # CONTIGUOUS: -1 marks the padding behind each group.
    ids = torch.full((m,), -1, dtype=torch.int32, device=device)
    for group, (start, count) in enumerate(zip(_starts(counts), counts, strict=True)):
        ids[start : start + count] = group
    a = quantize.quantize(random(m), "1x128")
    return Case(workload, a.data, a.scale, b_data, sfb, ids, columns=columns)


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return torch.stack of FP8 tensors, which not every torch can stack as they are."""
    return torch.stack([part.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
