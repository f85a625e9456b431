"""Why a call gets its kernel: `print(minigemm.explain(m=64, n=2112, k=7168))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import checks
from ..kernels.library import Config, stage_of
from ..layout import ceil_div
from ..types import Layout, Product
from . import choose
from .ahead import device_of, product_of
from .cost import tiles_of

__all__ = ["Explanation", "explain", "show"]

SHOWN = 5  # runners-up of str()
RUNNERS_UP = "  runners-up, by prediction:"
#: Fields that the product decides, and those that the tile's size shows.
NOT_SHOWN = ("block_m", "block_n", "layout", "out_fp32", "accumulate", "ctas", "raster", "raster_m")


@dataclass(frozen=True)
class Explanation:
    """What a call gets and why. Times in microseconds. str() tells it in lines.

    Attributes:
        product: the product of the call.
        device: the GPU's name, or what the emulator stands for.
        config: the config that the call gets; its class is that of the kernel.
        tuned_us: what `autotune` measured for this config; None where the prediction decides.
        source: what the predictions were measured on, in words.
        ranked: the configs of the menu with their predicted times, the cheapest first.
        floor_us: the least time by the datasheet.
        bound: what the floor counts: "bytes", moved once, or "operations".
        sms: SMs that the call may use.
        tiles: tiles of d, by the rows that are expected.
        kernels: what calls with this n and k may compile in all, whatever m comes.
    """

    product: Product
    device: str
    config: Config
    tuned_us: float | None
    source: str
    ranked: tuple[tuple[Config, float], ...]
    floor_us: float
    bound: str
    sms: int
    tiles: int
    kernels: tuple[Config, ...]

    @property
    def kernel(self) -> str:
        """The name of the kernel's stage."""
        return _kernel(self.config)

    @property
    def predicted_us(self) -> float | None:
        """The time that is predicted; None for a winner that is not on the menu."""
        return dict(self.ranked).get(self.config)

    @property
    def us(self) -> float:
        """The time that decided: the measured one of a winner, else the predicted one."""
        return self.tuned_us if self.tuned_us is not None else dict(self.ranked)[self.config]

    @property
    def above_floor(self) -> float:
        """That time over the floor."""
        return self.us / self.floor_us

    @property
    def runners_up(self) -> tuple[tuple[Config, float], ...]:
        """The other configs of the menu with their predicted times."""
        return tuple(pair for pair in self.ranked if pair[0] != self.config)

    @property
    def waves(self) -> int:
        """Rounds in which the SMs compute the tiles."""
        return ceil_div(self.tiles, self.sms)

    @property
    def why(self) -> str:
        """The reason, in words."""
        if self.tuned_us is None:
            return "no winner of autotune is known; the cheapest of the menu by prediction"
        rank = next((place for place, pair in enumerate(self.ranked, 1) if pair[0] == self.config), None)
        predicted = "a neighbour of the menu's" if rank is None else f"number {rank} by prediction"
        return f"a winner of autotune, measured at {self.tuned_us:.1f} us; {predicted}"

    def __str__(self) -> str:
        predicted = "not on the menu" if self.predicted_us is None else f"{self.predicted_us:.1f} us"
        lines = [
            f"{_sizes(self.product)}, on {self.device}",
            f"  gets       {_named(self.config)}",
            f"  because    {self.why}",
            f"  predicted  {predicted}",
            f"  paces      {self.source}",
            f"  floor      {self.floor_us:.1f} us ({self.bound}); the call is {self.above_floor:.2f} times that",
            f"  tiles      {self.tiles} on {self.sms} SMs: {_count(self.waves, 'wave')}",
            f"  kernels    {len(self.kernels)} that calls with this n and k may compile, whatever m is",
        ]
        if self.runners_up:
            best = self.ranked[0][1]
            lines.append(RUNNERS_UP)
            for config, us in self.runners_up[:SHOWN]:
                lines.append(f"    {us:8.1f} us  {us / best:5.2f} of the best  {_named(config)}")
        return "\n".join(lines)


def explain(
    a: object = None,
    b: object = None,
    *,
    m: int | None = None,
    n: int | None = None,
    k: int | None = None,
    layout: str | None = None,
    groups: int | None = None,
    expected_m: int | None = None,
    use_psum_layout: bool = False,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: bool = False,
    device: torch.device | str | None = None,
) -> Explanation:
    """Tell which kernel and config a call gets, why, and what others would cost.

    Nothing is compiled or launched. There are two forms: `explain(a, b)` with the operands of a call, whose
    dimensions tell the layout, and `explain(m=64, n=2112, k=7168)` with sizes.

    Args:
        a, b: as in `fp8_gemm_nt`; for contiguous groups b has three dimensions, for masked ones both do.
        m: the rows of a: of all groups, or in a masked layout of each group's buffer.
        n, k: the sizes of each group's b. k is a multiple of 16.
        layout: "dense" (the default), "contiguous" or "masked".
        groups: how many weights b holds; by default 1.
        expected_m: of a masked layout, as in the call.
        use_psum_layout: the call of the contiguous layout gives prefix sums, not ids.
        out_dtype: the dtype of d.
        accumulate: the call adds c.
        device: of the sizes; by default the current GPU, or the CPU where there is none.

    Raises:
        TypeError, ValueError: an argument is wrong, or both forms are mixed.
    """
    sizes: dict[str, int | None] = {"m": m, "n": n, "k": k}
    described = {**sizes, "layout": layout, "groups": groups, "device": device}

    # The operands tell what the sizes would.
    if a is None and b is None:
        missing = [name for name, size in sizes.items() if size is None]
        if missing:
            raise TypeError(f"explain: expected a and b, or m, n and k, got no {', '.join(missing)}")
        where = device_of(device)
    else:
        given = [name for name, value in described.items() if value is not None]
        if given:
            raise TypeError(f"explain: expected a and b, or m, n and k, got a and b with {', '.join(given)}")
        layout, groups, sizes, where = _of_operands(a, b)

    layout = "dense" if layout is None else layout
    product = product_of(layout, 1 if groups is None else groups, use_psum_layout, out_dtype, accumulate)
    m, n, k = (checks.check_int(name, size, 1) for name, size in sizes.items())  # type: ignore[arg-type]
    product = product._replace(m=m, n=n, k=k)
    if k % 16:
        raise ValueError(f"k: expected a multiple of 16, got {k}")
    if expected_m is not None:
        if product.layout != Layout.MASKED:
            raise ValueError(f"expected_m: expected the masked layout with it, got {layout!r}")
        product = product._replace(expected_m=checks.check_int("expected_m", expected_m, 0))
    return _explained(product, where)


def _of_operands(a: object, b: object) -> tuple[str, int, dict[str, int | None], torch.device]:
    """Check a call's operands; return its layout, groups, sizes and device."""
    (_, data_a), _ = checks.parts("a", a, "1x128")
    (_, data_b), _ = checks.parts("b", b, "128x128")
    dims_a, dims_b = (3 if data.dim() == 3 else 2 for data in (data_a, data_b))
    checks.check_operands(a, b, dims_a, max(dims_a, dims_b))

    layout = "masked" if dims_a == 3 else "contiguous" if dims_b == 3 else "dense"
    groups = data_b.shape[0] if dims_b == 3 else 1
    sizes: dict[str, int | None] = {"m": data_a.shape[-2], "n": data_b.shape[-2], "k": data_a.shape[-1]}
    return layout, groups, sizes, device_of(data_a.device)


def _explained(product: Product, where: torch.device) -> Explanation:
    won, floor = choose.winner_for(product, where), choose.floor(product, where)
    ranked = tuple(choose.ranked(product, where))
    config, sms = choose.config_for(product, where), choose.sms_of(where)
    emulated = "the emulator, which stands for an H100 SXM"
    return Explanation(
        product,
        torch.cuda.get_device_name(where) if where.type == "cuda" else emulated,
        config,
        won.us if won is not None else None,
        choose.machine_of(where).paces.measured_on,
        ranked,
        floor,
        choose.bound(product, where),
        sms,
        tiles_of(product, config),
        tuple(choose.configs_for(product, where)),
    )


# --- in words


def _kernel(config: Config) -> str:
    return stage_of(config).name


def _rest(config: Config) -> str:
    """Return the fields of a config that neither its tile nor the product shows."""
    shown = [f"{name}={value:d}" for name, value in vars(config).items() if name not in NOT_SHOWN]
    return " ".join([*shown, f"raster={config.raster}", "rows" if config.raster_m else "columns"])


def _named(config: Config) -> str:
    return f"{_kernel(config)} {config.block_m}x{config.block_n} {_rest(config)}"


def _sizes(product: Product) -> str:
    groups = f", {product.groups} groups" if product.layout != Layout.DENSE else ""
    expected = f", {product.expected_m} rows expected" if product.expected_m else ""
    dtype = "FP32" if product.out_fp32 else "BF16"
    added = ", added to d" if product.accumulate else ""
    return f"{product.m} x {product.n} x {product.k} {product.layout}{groups}{expected}, {dtype}{added}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def show(found: Explanation) -> None:
    """Print an explanation, with the whole menu as a table."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    text, _, _ = str(found).partition(f"\n{RUNNERS_UP}")
    console.print(text, markup=False)
    table = Table("kernel", "tile", "other fields", box=None, pad_edge=False)
    for title in ("us", "of best", "of floor"):
        table.add_column(title, justify="right")
    for config, us in found.ranked:
        cells: list[Any] = [_kernel(config), f"{config.block_m}x{config.block_n}", _rest(config)]
        cells += [f"{us:.1f}", f"{us / found.ranked[0][1]:.2f}", f"{us / found.floor_us:.2f}"]
        table.add_row(*cells, style="bold" if config == found.config else None)
    console.print("\npredicted, the config that the call gets in bold:")
    console.print(table)
