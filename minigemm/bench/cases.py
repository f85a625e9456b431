"""The tensors of a workload, the same for everyone who is timed, and the float64 product that checks them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import quantize
from ..layout import round_up, to_m_major
from ..quantize import BLOCK, Quantized
from ..types import Layout
from .workloads import Workload

__all__ = ["Case", "make"]


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
    """

    workload: Workload
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    index: torch.Tensor | None = None
    tensor_scaled: tuple[Quantized, Quantized] | None = None
    _kept: dict[str, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def empty(self) -> torch.Tensor:
        """Return a BF16 d that holds NaN, so that elements which a call leaves out show."""
        shape = (*self.a.shape[:-1], self.workload.product.n)
        return torch.full(shape, float("nan"), dtype=torch.bfloat16, device=self.a.device)

    def error(self, d: torch.Tensor, scales: str = "block") -> float:
        """Return ||d - reference||_F / ||reference||_F over the rows that count; NaN in d gives NaN.

        scales: "block" for the product of a and b, "tensor" for the product of `tensor_scaled`.
        """
        # Computed once: several peers are held against the same reference.
        if scales not in self._kept:
            block = scales == "block"
            self._kept[scales] = self._references() if block else [quantize.reference(*self._of_tensors())]
        references = self._kept[scales]

        # Sums of squares over all groups, of the distance and of the reference.
        distance = norm = 0.0
        for rows, reference in zip(self._groups(d), references, strict=True):
            distance += float((rows.double() - reference).square().sum())
            norm += float(reference.square().sum())
        return (distance / norm) ** 0.5

    def _of_tensors(self) -> tuple[Quantized, Quantized]:
        if self.tensor_scaled is None:
            layout = self.workload.product.layout
            raise ValueError(f"there is no product with one scale a tensor of {layout} shapes")
        return self.tensor_scaled

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
            quantize.reference(Quantized(a, sfa, "1x128"), Quantized(b, sfb, "128x128"))
            for a, sfa, (b, sfb) in parts
        ]


def _starts(counts: tuple[int, ...]) -> list[int]:
    """Return the first row of each contiguous group."""
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + round_up(count, BLOCK))
    return starts[:-1]


def make(workload: Workload, device: torch.device | str, seed: int = 0) -> Case:
    """Make a case of normal random numbers in BF16, quantized. A seed gives the same on a kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    m, n, k, layout, *_ = workload.product
    counts = workload.counts

    def random(rows: int) -> torch.Tensor:
        return torch.randn((rows, k), generator=generator, dtype=torch.bfloat16, device=device)

    if layout is Layout.DENSE:
        x, w = random(m), random(n)
        a, b = quantize.quantize(x, "1x128"), quantize.quantize(w, "128x128")
        one_scale = quantize.quantize(x), quantize.quantize(w)
        return Case(workload, a.data, a.scale, b.data, b.scale, tensor_scaled=one_scale)

    # Both grouped layouts have a weight for each group, which is made before the activations.
    weights = [quantize.quantize(random(n), "128x128") for _ in counts]
    b_data, sfb = _stacked([w.data for w in weights]), torch.stack([w.scale for w in weights])
    if layout is Layout.MASKED:
        buffers = [quantize.quantize(random(m), "1x128") for _ in counts]
        a_data, sfa = _stacked([x.data for x in buffers]), torch.stack([x.scale for x in buffers])
        in_use = torch.tensor(counts, dtype=torch.int32, device=device)
        return Case(workload, a_data, to_m_major(sfa), b_data, sfb, in_use)

    # CONTIGUOUS: -1 marks the padding behind each group.
    ids = torch.full((m,), -1, dtype=torch.int32, device=device)
    for group, (start, count) in enumerate(zip(_starts(counts), counts, strict=True)):
        ids[start : start + count] = group
    a = quantize.quantize(random(m), "1x128")
    return Case(workload, a.data, a.scale, b_data, sfb, ids)


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return torch.stack of FP8 tensors, which not every torch can stack as they are."""
    return torch.stack([part.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
