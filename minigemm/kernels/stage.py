"""A stage of the course, and its way from a call to a launch: check, choose a config, build, launch.

A stage's module makes one :class:`Stage`; all that is particular to it (config, legality, grid, arguments)
stands in that module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from .. import checks, runtime
from ..compiler import jit
from ..hopper import SMS
from ..layout import ceil_div
from ..quantize import Quantized
from ..types import Config, Launch, Legality, Product
from .legality import nearest_legal

__all__ = ["DEEPSEEK_LAYER", "TILES", "Stage", "ctas", "quickest", "rows"]

TOUR = Product(256, 256, 512)
DEEPSEEK_LAYER = Product(64, 2112, 7168)  # of DeepSeek-V3: the latent projections of attention, for 64 tokens
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Stage(Generic[C]):
    """A stage of the course, callable: `stage.gemm(a, b)`.

    Attributes:
        name: the stage's module and CUDA file, "s03_tma".
        title, idea: the two phrases by which tables name it.
        config: its Config class.
        is_legal: whether a config can run a product.
        default_config: a legal config for a product.
        launch: `launch(a, b, d, product, config)` describes one launch, for either runtime.
        granularities: of the scales of a and of b.
        out_dtypes: what d can be. A stage that leaves the choice has a Config field `out_fp32`.
        problem: the product that the tour runs unless it is told another one.
        sums: where the stage sums. "fp32"; "tensor core", whose short accumulator makes the error grow with
            k; "promoted", from the tensor core to FP32 every 128 along k.
        symbol: the kernel's `extern "C"` name; by default the stage's own.
    """

    name: str
    title: str
    idea: str
    config: type[C]
    is_legal: Callable[[C, Product], Legality]
    default_config: Callable[[Product], C]
    launch: Callable[[Quantized, Quantized, torch.Tensor, Product, C], Launch]
    granularities: tuple[str, str] = ("tensor", "tensor")
    out_dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    problem: Product = TOUR
    sums: str = "fp32"
    symbol: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbol", self.symbol or self.name)

    @property
    def source(self) -> Path:
        """The stage's CUDA file."""
        return Path(__file__).parent / f"{self.name}.cu"

    def gemm(
        self,
        a: Quantized,
        b: Quantized,
        config: C | None = None,
        source: str | os.PathLike[str] | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor:
        """Return `d = a @ b.T`, computed on the tensors' Hopper GPU, or for CPU tensors on the emulator.

        Args:
            a: (m, k) e4m3 with float32 scales, from `minigemm.quantize.quantize(x, granularity)`: "tensor" up
                to s06_warp_specialized, "1x128" from s07_promoted on. k is a multiple of 16. 1x128 scales
                that are not M-major are laid out first.
            b: (n, k), likewise, with "tensor" or "128x128" scales: the weights. `d[i, j]` is row i of a times
                row j of b.
            config: the stage's own Config; by default one that suits the product.
            source: the path of your own version of the stage's `.cu`, which gets the same launch.
            out_dtype: d's, bfloat16, or from s06_warp_specialized on float32. It decides the config's
                `out_fp32`.

        Returns:
            (m, n) of out_dtype on the tensors' device. An m or n of zero gives an empty result, a k of zero
            gives zeros; neither launches anything.

        Raises:
            TypeError, ValueError: an argument is wrong. Nothing has run then.
            CompileError: (a ValueError) `source` does not compile. Nothing has run then.
            minigemm.emulator.Fault, Deadlock: the emulated kernel did what a GPU would fault on or hang on.
        """
        product = self.check(a, b, config, source, out_dtype)
        config = config or self.default_config(product)
        if len(self.out_dtypes) > 1:
            config = replace(config, out_fp32=out_dtype == torch.float32)  # type: ignore[call-arg]
        if 0 in (product.m, product.n, product.k):
            return torch.zeros(product.m, product.n, dtype=out_dtype, device=a.data.device)
        d = torch.empty(product.m, product.n, dtype=out_dtype, device=a.data.device)
        self.run(self.launch(a, b, d, product, config), config, d.device, source)
        return d

    def run(
        self, launch: Launch, config: C, device: torch.device, source: str | os.PathLike[str] | None = None
    ) -> None:
        """Compile the stage's kernel, or the reader's own `source`, under `config`, and launch it."""
        path = self.source if source is None else Path(source)
        kernel = jit.build(path, config, name=self.name, symbol=self.symbol)
        runtime.run(kernel, launch, device)

    def check(
        self,
        a: Quantized,
        b: Quantized,
        config: C | None = None,
        source: str | os.PathLike[str] | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> Product:
        """Return the product that these arguments of `gemm` pose.

        Raises TypeError or ValueError that names the argument, what was expected and what came.
        """
        # the operands, each alone and both together
        for name, operand, granularity in zip("ab", (a, b), self.granularities, strict=True):
            checks.check_quantized(name, operand, granularity)
        checks.check_same("b.data", b.data, a.data.device)
        checks.check_columns(b.data, a.data)
        product = Product(a.data.shape[0], b.data.shape[0], a.data.shape[1])

        # the config
        config = self.default_config(product) if config is None else config
        checks.check_config(config, self.config, self.name)
        if not (legal := self.is_legal(config, product)):
            near = nearest_legal(self.is_legal, config, product)
            advice = f"; the nearest legal config is {self.name}.{near}" if near else ""
            raise ValueError(f"config: {legal.reason}{advice}")

        # the source, the result, the device
        if not isinstance(source, (str, os.PathLike, type(None))):
            raise TypeError(f"source: expected the path of a CUDA file, got {type(source).__name__}")
        if source is not None and not Path(source).is_file():
            came = f"{os.fspath(source)!r}, which is not a file"
            raise ValueError(f"source: expected the path of a CUDA file, got {came}")
        if out_dtype not in self.out_dtypes:
            expected = " or ".join(map(str, self.out_dtypes))
            raise TypeError(f"out_dtype: expected {expected}, got {out_dtype!r}")
        runtime.of(a.data.device).check_device(a.data.device)
        return product


# --- for launches and defaults


def rows(q: Quantized) -> torch.Tensor:
    """Return the data (m, k) as a tensor map can describe it.

    TMA wants a row stride that is a multiple of 16 bytes. A matrix of a single row may come with any stride:
    it gets k.
    """
    return q.data if q.data.shape[0] > 1 else q.data.as_strided(q.data.shape, (q.data.shape[1], 1))


#: The tiles that the stages from s07 to s11 choose among: rows, columns, stages of the ring, consumers.
TILES = ((256, 128, 3, 2), (192, 128, 4, 3), (128, 128, 5, 2), (64, 128, 6, 1), (64, 64, 8, 1))


def quickest(choices: Sequence[Any], product: Product) -> Any:
    """Return the config whose tiles take the least time on the 132 SMs of an H100, in whole waves of tiles.

    The time of a tile counts its products and, per 128 along k, the bytes of a and b that it needs: 32
    products of each row take as long as one byte.
    """

    def time(config: Any) -> int:
        tiles = ceil_div(product.m, config.block_m) * ceil_div(product.n, config.block_n)
        tile = config.block_m * config.block_n + 32 * (config.block_m + config.block_n)
        return ceil_div(tiles, SMS) * tile

    return min(choices, key=time)


def ctas(chosen: int, device: torch.device) -> int:
    """Return the number of CTAs: as chosen, or for 0 one per SM. The emulator stands for an H100."""
    if chosen or device.type != "cuda":
        return chosen or SMS
    return torch.cuda.get_device_properties(device).multi_processor_count
