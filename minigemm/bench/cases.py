"""The tensors of a shape that is timed, alike for all who are timed, and the float64 product that every result is held against."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import quantize
from ..layout import round_up, to_m_major
from ..quantize import BLOCK, Quantized
from .shapes import Shape

__all__ = ["Case", "make"]


@dataclass(frozen=True, eq=False)
class Case:
    """Random operands, quantized and laid out beforehand.

    a, sfa: FP8 (m, k) or, masked, (groups, rows, k), and float32 1x128 scales, M-major.
    b, sfb: FP8 (n, k) or, of groups, (groups, n, k), and float32 128x128 scales, row-major.
    index: int32; the group of each row of a, -1 for padding (contiguous), or rows of each group that count (masked).
    tensor_scaled: a and b with one scale each, of the same random numbers; dense only.
    """

    shape: Shape
    a: torch.Tensor
    sfa: torch.Tensor
    b: torch.Tensor
    sfb: torch.Tensor
    index: torch.Tensor | None = None
    tensor_scaled: tuple[Quantized, Quantized] | None = None
    _kept: dict[str, list[torch.Tensor]] = field(default_factory=dict, repr=False)

    def empty(self) -> torch.Tensor:
        """A BF16 d, of NaN: what a call leaves out shows."""
        return torch.full(
            (*self.a.shape[:-1], self.shape.n), float("nan"), dtype=torch.bfloat16, device=self.a.device
        )

    def error(self, d: torch.Tensor, scales: str = "block") -> float:
        """||d - reference||_F / ||reference||_F over the rows that count; NaN counts as wrong. scales: "block", or "tensor" for `tensor_scaled`."""
        if scales not in self._kept:
            self._kept[scales] = (
                self._references() if scales == "block" else [quantize.reference(*self._tensor_scaled())]
            )
        squares = [((rows.double() - reference).square().sum(), reference.square().sum())
                   for rows, reference in zip(self._groups(d), self._kept[scales], strict=True)]  # fmt: skip
        return float((sum(off for off, _ in squares) / sum(norm for _, norm in squares)) ** 0.5)

    def _tensor_scaled(self) -> tuple[Quantized, Quantized]:
        if self.tensor_scaled is None:
            raise ValueError(f"there is no product with one scale a tensor of {self.shape.layout} shapes")
        return self.tensor_scaled

    def _groups(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The rows of x, which has rows as a has them, that count: a part for each group."""
        if self.shape.layout == "dense":
            return [x]
        if self.shape.layout == "masked":
            return [x[group, :count] for group, count in enumerate(self.shape.counts)]
        return [
            x[start : start + count]
            for start, count in zip(_starts(self.shape), self.shape.counts, strict=True)
        ]

    def _references(self) -> list[torch.Tensor]:
        weights = (
            [(self.b, self.sfb)] if self.shape.layout == "dense" else list(zip(self.b, self.sfb, strict=True))
        )
        parts = zip(self._groups(self.a), self._groups(self.sfa), weights, strict=True)
        return [
            quantize.reference(Quantized(a, sfa, "1x128"), Quantized(b, sfb, "128x128"))
            for a, sfa, (b, sfb) in parts
        ]


def _starts(shape: Shape) -> list[int]:
    """The first row of each contiguous group."""
    starts = [0]
    for count in shape.counts:
        starts.append(starts[-1] + round_up(count, BLOCK))
    return starts[:-1]


def make(shape: Shape, device: torch.device | str, seed: int = 0) -> Case:
    """Normal random numbers in BF16, quantized. The same seed gives the same on the same kind of device."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(rows: int) -> torch.Tensor:
        return torch.randn((rows, shape.k), generator=generator, dtype=torch.bfloat16, device=device)

    if shape.layout == "dense":
        x, w = random(shape.m), random(shape.n)
        a, b = quantize.quantize(x, "1x128"), quantize.quantize(w, "128x128")
        return Case(
            shape,
            a.data,
            a.scale,
            b.data,
            b.scale,
            tensor_scaled=(quantize.quantize(x), quantize.quantize(w)),
        )
    weights = [quantize.quantize(random(shape.n), "128x128") for _ in shape.counts]
    data_b, sfb = _stacked([w.data for w in weights]), torch.stack([w.scale for w in weights])
    if shape.layout == "masked":
        buffers = [quantize.quantize(random(shape.rows_per_group), "1x128") for _ in shape.counts]
        counts = torch.tensor(shape.counts, dtype=torch.int32, device=device)
        return Case(
            shape,
            _stacked([x.data for x in buffers]),
            to_m_major(torch.stack([x.scale for x in buffers])),
            data_b,
            sfb,
            counts,
        )
    ids = torch.full((shape.rows,), -1, dtype=torch.int32, device=device)
    for group, (start, count) in enumerate(zip(_starts(shape), shape.counts, strict=True)):
        ids[start : start + count] = group
    a = quantize.quantize(random(shape.rows), "1x128")
    return Case(shape, a.data, a.scale, data_b, sfb, ids)


def _stacked(parts: list[torch.Tensor]) -> torch.Tensor:
    """torch.stack of FP8, which not every torch can."""
    return torch.stack([part.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
