"""What every stage does on the host: check the tensors, choose a config, build, launch.

A stage's module makes one :class:`Stage`; everything that is particular to it (config, legality, grid, arguments) stands in that module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations, product
from math import gcd
from pathlib import Path
from typing import Any

import torch

from .. import runtime
from ..compiler import jit
from ..layout import ceil_div
from ..quantize import BLOCK, Quantized
from ..types import Config, Launch, Legality, Problem

__all__ = [
    "SHARED_LIMIT", "Stage", "check_block_scale", "check_fp8_operand", "check_grid", "check_promoted", "check_registers", "check_schedule", "check_shared",
    "check_tensor_core_tile", "check_tiles", "ctas", "nearest_legal", "panel", "quickest", "rows",
]  # fmt: skip

SHARED_LIMIT = 227 * 1024  # bytes of shared memory that one CTA of a Hopper GPU can have
THREAD_LIMIT = 1024
REGISTER_LIMIT = 65536  # of an SM
SMS = 132  # of an H100 or H200 SXM
TOUR = Problem(256, 256, 512)
TILE_LIMIT = 1 << 30  # of a persistent kernel: the number after a CTA's last tile stays below 2**31 too
SIZE_LIMIT = 1 << 30  # rows or columns: the tile that hangs over the edge stays below 2**31 too


@dataclass(frozen=True)
class Stage:
    """A stage of the course, callable: `stage.gemm(a, b)`.

    `launch(a, b, d, problem, config)` describes one launch for either runtime. `default_config(problem)` is a legal config for that problem.
    `granularities` are those of a's and b's scales, `out_dtypes` those that d can have; a stage that has the choice has a Config field `out_fp32`.
    `problem` is what the tour runs unless it is told another one. `sums` says where it sums: in "fp32"; in the "tensor core", whose short
    accumulator makes the error grow with k; "promoted", from it to FP32 every 128. `kernel` is the `extern "C"` symbol, if not the name.
    """

    name: str
    title: str
    idea: str
    config: type[Config]
    is_legal: Callable[[Config, Problem], Legality]
    default_config: Callable[[Problem], Config]
    launch: Callable[[Quantized, Quantized, torch.Tensor, Problem, Config], Launch]
    granularities: tuple[str, str] = ("tensor", "tensor")
    out_dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)
    problem: Problem = TOUR
    sums: str = "fp32"
    kernel: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", self.kernel or self.name)

    @property
    def source(self) -> Path:
        """The stage's CUDA file."""
        return Path(__file__).parent / f"{self.name}.cu"

    def gemm(
        self,
        a: Quantized,
        b: Quantized,
        config: Config | None = None,
        source: str | os.PathLike[str] | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> torch.Tensor:
        """`d = a @ b.T`, by this stage's kernel: on the Hopper GPU that holds the tensors, or on the emulator for CPU tensors.

        Args:
            a: (m, k) e4m3 with float32 scales, from `minigemm.quantize.quantize(x, granularity)`: "tensor" up to s06_warp_specialized, "1x128" from
                s07_promoted on. k is a multiple of 16. Row-major 1x128 scales are laid out M-major first.
            b: (n, k), likewise, its scales "tensor" or "128x128"; the "weights", so that `d[i, j]` is row i of a times row j of b.
            config: this stage's Config; by default one that suits the problem.
            source: path of your own version of the stage's `.cu`, run by the same launch description.
            out_dtype: of d: bfloat16, or from s06_warp_specialized on float32. It decides the config's `out_fp32`.

        Returns:
            (m, n) of out_dtype on the tensors' device. An m or n of zero gives an empty result, a k of zero gives zeros; neither launches anything.

        Raises:
            TypeError, ValueError: what is wrong with an argument; CompileError (a ValueError) when `source` does not compile. Nothing has run then.
            minigemm.emulator.Fault, Deadlock: on the CPU, what a GPU would fault on or hang on.
        """
        problem = self.check(a, b, config, source, out_dtype)
        config = config or self.default_config(problem)
        if len(self.out_dtypes) > 1:
            config = replace(config, out_fp32=out_dtype == torch.float32)  # type: ignore[call-arg]
        device = a.data.device
        if problem.m == 0 or problem.n == 0 or problem.k == 0:
            return torch.zeros(problem.m, problem.n, dtype=out_dtype, device=device)
        d = torch.empty(problem.m, problem.n, dtype=out_dtype, device=device)
        self.run(self.launch(a, b, d, problem, config), config, device, source)
        return d

    def run(
        self,
        launch: Launch,
        config: Config,
        device: torch.device,
        source: str | os.PathLike[str] | None = None,
    ) -> None:
        """Compile the stage's kernel, or the reader's own `source`, under `config`, and launch it as described."""
        path = self.source if source is None else Path(source)
        runtime.run(jit.build(path, config, name=self.name, kernel=self.kernel), launch, device)

    def check(
        self,
        a: Quantized,
        b: Quantized,
        config: Config | None = None,
        source: str | os.PathLike[str] | None = None,
        out_dtype: torch.dtype = torch.bfloat16,
    ) -> Problem:
        """The problem that these arguments pose. Raises TypeError or ValueError that names the argument, what was expected and what came."""
        for name, operand, granularity in zip("ab", (a, b), self.granularities, strict=True):
            check_fp8_operand(name, operand, granularity)
        if a.data.device != b.data.device:
            raise ValueError(f"b: expected the device of a, {a.data.device}, got {b.data.device}")
        if a.data.shape[1] != b.data.shape[1]:
            raise ValueError(
                f"b: expected (n, {a.data.shape[1]}), as many columns as a has, got {tuple(b.data.shape)}"
            )
        problem = Problem(a.data.shape[0], b.data.shape[0], a.data.shape[1])
        config = self.default_config(problem) if config is None else config
        if not isinstance(config, self.config):
            raise TypeError(
                f"config: expected a {self.name}.Config, got {type(config).__module__.rpartition('.')[2]}.{type(config).__name__}"
            )
        for field, value in vars(config).items():
            if not isinstance(value, int):
                raise TypeError(f"config.{field}: expected an int, got {value!r}")
        if not (legal := self.is_legal(config, problem)):
            near = nearest_legal(self.is_legal, config, problem)
            raise ValueError(
                f"config: {legal.reason}"
                + (f"; the nearest legal config is {self.name}.{near}" if near else "")
            )
        if not isinstance(source, (str, os.PathLike, type(None))):
            raise TypeError(f"source: expected the path of a CUDA file, got {type(source).__name__}")
        if source is not None and not Path(source).is_file():
            raise ValueError(
                f"source: expected the path of a CUDA file, got {os.fspath(source)!r}, which is not a file"
            )
        if out_dtype not in self.out_dtypes:
            raise TypeError(
                f"out_dtype: expected {' or '.join(map(str, self.out_dtypes))}, got {out_dtype!r}"
            )
        runtime.of(a.data.device).check_device(a.data.device)
        return problem


def nearest_legal(
    is_legal: Callable[[Config, Problem], Legality], config: Config, problem: Problem
) -> Config | None:
    """The legal config that differs from this one in the fewest fields, and in them least; None where two fields are not enough."""
    names = [field.name for field in fields(config)]
    for count in (1, 2):
        near = [
            (
                sum(
                    _distance(getattr(config, name), value)
                    for name, value in zip(chosen, values, strict=True)
                ),
                candidate,
            )
            for chosen in combinations(names, count)
            for values in product(*(_neighbours(getattr(config, name)) for name in chosen))
            if is_legal(candidate := replace(config, **dict(zip(chosen, values, strict=True))), problem)
        ]
        if near:
            return min(near, key=lambda pair: pair[0])[1]
    return None


def _neighbours(value: int) -> Iterator[int]:
    """Other values that a field could have."""
    if isinstance(value, bool):
        return iter((not value,))
    return (other for other in (*range(1, 8), *range(8, 257, 8)) if other != value)


def _distance(value: int, other: int) -> float:
    """How far apart two values are, as a share of the larger."""
    return abs(value - other) / max(abs(value), abs(other), 1)


def check_fp8_operand(name: str, operand: Quantized, granularity: str) -> None:
    """Dtype, shape, strides, alignment and scale of one quantized matrix."""
    if not isinstance(operand, Quantized):
        raise TypeError(
            f"{name}: expected a Quantized (from minigemm.quantize.quantize), got {type(operand).__name__}"
        )
    data, scale = operand.data, operand.scale
    for part, value in (("data", data), ("scale", scale)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}.{part}: expected a torch.Tensor, got {type(value).__name__}")
    if data.dtype != torch.float8_e4m3fn:
        raise TypeError(f"{name}.data: expected float8_e4m3fn, got {data.dtype}")
    if data.dim() != 2:
        raise ValueError(f"{name}.data: expected a matrix, got shape {tuple(data.shape)}")
    if operand.granularity != granularity:
        raise ValueError(f"{name}.granularity: expected {granularity!r}, got {operand.granularity!r}")
    if scale.dtype != torch.float32:
        raise TypeError(f"{name}.scale: expected float32, got {scale.dtype}")
    if granularity == "tensor" and scale.dim() != 0:
        raise ValueError(f"{name}.scale: expected one number (0-d), got shape {tuple(scale.shape)}")
    if granularity != "tensor":
        check_block_scale(name, scale, data.shape[0], data.shape[1], granularity)
    if scale.device != data.device:
        raise ValueError(f"{name}.scale: expected the data's device, {data.device}, got {scale.device}")
    m, k = data.shape
    if k % 16:
        raise ValueError(f"{name}.data: expected a k (columns) that is a multiple of 16, got {k}")
    if not data.numel():
        return
    if data.stride(1) != 1 and k > 1:
        raise ValueError(f"{name}.data: expected a contiguous last dimension, got strides {data.stride()}")
    if m > 1 and (data.stride(0) % 16 or data.stride(0) < k):
        raise ValueError(
            f"{name}.data: expected a row stride that is a multiple of 16 bytes and at least k = {k}, got {data.stride(0)}"
        )
    if data.data_ptr() % 16:
        raise ValueError(
            f"{name}.data: expected a 16-byte aligned start, got an address that is {data.data_ptr() % 16} bytes past one"
        )
    if max(m, k) > SIZE_LIMIT:
        raise ValueError(f"{name}.data: expected at most 2**30 rows and columns, got {tuple(data.shape)}")


def check_block_scale(name: str, scale: torch.Tensor, m: int, k: int, granularity: str) -> None:
    """Shape and strides of the scales, one for each 1x128 or 128x128 block of an (m, k) matrix."""
    down, across = (m if granularity == "1x128" else ceil_div(m, BLOCK)), ceil_div(k, BLOCK)
    if tuple(scale.shape) != (down, across):
        raise ValueError(
            f"{name}.scale: expected shape {(down, across)}, one scale for each {granularity} block, got {tuple(scale.shape)}"
        )
    row, column = scale.stride()
    row_major = (across <= 1 or column == 1) and (down <= 1 or row >= across)
    m_major = (down <= 1 or row == 1) and (across <= 1 or column >= down)
    if not row_major and not (m_major and granularity == "1x128"):
        orders = "M-major or row-major" if granularity == "1x128" else "row-major"
        raise ValueError(
            f"{name}.scale: expected {orders} scales that do not overlap, got strides {tuple(scale.stride())}"
        )


def rows(q: Quantized) -> torch.Tensor:
    """The data (m, k), with a row stride that is a multiple of 16 bytes also where a single row came with another one."""
    return q.data if q.data.shape[0] > 1 else q.data.as_strided(q.data.shape, (q.data.shape[1], 1))


def quickest(choices: Sequence[Any], problem: Problem) -> Any:
    """Of some configs, the one whose tiles take least time on the 132 SMs of an H100, in whole waves of a tile on each.

    A tile's time is counted as its products and, per 128 along k, the bytes of a and b that it needs: 32 products of each row take as long as one byte.
    """

    def time(config: Any) -> int:
        tiles = ceil_div(problem.m, config.block_m) * ceil_div(problem.n, config.block_n)
        return ceil_div(tiles, SMS) * (
            config.block_m * config.block_n + 32 * (config.block_m + config.block_n)
        )

    return min(choices, key=time)


def check_tiles(block: tuple[int, int], thread: tuple[int, int], shared: int, registers: int) -> str:
    """Why a tile of (block m, block n) with a register tile (thread m, thread n) cannot run; "" when it can."""
    for value, name in (
        (block[0], "block_m"),
        (block[1], "block_n"),
        (thread[0], "thread_m"),
        (thread[1], "thread_n"),
    ):
        if value < 1:
            return f"{name} must be at least 1, got {value}"
    for size, part, axis in ((block[0], thread[0], "m"), (block[1], thread[1], "n")):
        if size % part:
            return f"block_{axis} = {size} must be a multiple of thread_{axis} = {part}"
    across, down = block[1] // thread[1], block[0] // thread[0]
    if thread != (1, 1) and (down % 4 or across % 8):
        return f"{down} x {across} threads do not make whole warps of 4 x 8: block_m must be a multiple of 4 * thread_m, block_n of 8 * thread_n"
    threads = across * down
    if threads > THREAD_LIMIT:
        return f"{threads} threads exceed the {THREAD_LIMIT} of a CTA: take larger thread_m or thread_n, or smaller blocks"
    if too_much := check_shared(shared, "smaller blocks"):
        return too_much
    limit = min(255, REGISTER_LIMIT // (-(-threads // 128) * 128))
    if registers > limit:
        return f"about {registers} registers a thread exceed the {limit} that {threads} threads can have: take a smaller thread_m or thread_n"
    return ""


def panel(block_n: int) -> int:
    """Columns of BF16 whose rows a swizzle spans (32, 64 or 128 bytes), of the tile of d; 8, which need none, where block_n is an odd multiple of 8."""
    return next(width for width in (64, 32, 16, 8) if block_n % width == 0)


def check_tensor_core_tile(block_m: int, block_n: int, step_n: int, step_m: int = 64) -> str:
    """Why the tensor core cannot compute a (block_m, block_n) tile in instructions of 64 rows; "" when it can."""
    if not (0 < block_m <= 256) or block_m % step_m:
        return f"block_m must be a multiple of {step_m} up to 256 (the side of a TMA box), got {block_m}"
    if not (0 < block_n <= 256) or block_n % step_n:
        return f"block_n must be a multiple of {step_n} from {step_n} to 256, got {block_n}"
    return ""


def check_promoted(config: Any, registers: int) -> str:
    """Why consumers cannot compute this tile and promote its sums in so many registers a thread; "" when they can. config: of a stage from s07_promoted on."""
    tile = check_tensor_core_tile(config.block_m, config.block_n, 16, 64 * config.consumers)
    if not tile and config.rows > 128:
        tile = f"a consumer can have 64 or 128 rows, got block_m / consumers = {config.rows}"
    if not tile and config.block_n > BLOCK + gcd(config.block_n, BLOCK):
        tile = f"block_n must be at most 128, or 144, 160 or 192, so that no tile needs three scales of b, got {config.block_n}"
    return (
        tile
        or check_shared(config.shared_bytes, "fewer stages or smaller blocks")
        or check_registers(config.accumulators + 32, config.threads, registers)
        or check_registers(
            config.block_n // 2 + 28, config.threads
        )  # what one instruction names must be there at launch
    )


def check_registers(registers: int, threads: int, limit: int | None = None) -> str:
    """Why so many registers a thread are too many for a CTA of so many threads, or for the limit that the kernel sets itself."""
    limit = limit or min(255, REGISTER_LIMIT // threads // 8 * 8)
    if registers > limit:
        return f"about {registers} registers a thread exceed the {limit} that they can have: take smaller blocks, or more warpgroups"
    return ""


def check_shared(shared: int, advice: str) -> str:
    """Why a CTA cannot have so many bytes of shared memory; "" when it can."""
    return (
        f"{shared} bytes of shared memory exceed the {SHARED_LIMIT} of a CTA: take {advice}"
        if shared > SHARED_LIMIT
        else ""
    )


def check_grid(m: int, n: int, block_m: int, block_n: int) -> str:
    """Why a grid of tiles cannot be launched; "" when it can."""
    if -(-n // block_n) > 65535:
        return f"n = {n} needs {-(-n // block_n)} columns of tiles, more than the 65535 of a grid: take a larger block_n"
    return ""


def check_schedule(m: int, n: int, block_m: int, block_n: int, ctas: int, raster: int) -> str:
    """Why a persistent kernel cannot walk over the tiles of (m, n) so; "" when it can."""
    if ctas < 0:
        return f"ctas must be at least 0, which is one for each SM, got {ctas}"
    if raster < 1:
        return f"raster must be at least 1, got {raster}"
    if (tiles := ceil_div(m, block_m) * ceil_div(n, block_n)) > TILE_LIMIT:
        return f"m = {m} and n = {n} make {tiles} tiles, more than 2**30: take larger blocks"
    return ""


def ctas(chosen: int, device: torch.device) -> int:
    """CTAs of a persistent kernel, as chosen, or one for each SM; the emulator is taken for an H100."""
    return chosen or (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else SMS
    )
