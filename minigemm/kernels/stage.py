"""What every stage does on the host: check the tensors, choose a config, build, launch.

A stage's module makes one :class:`Stage`; everything that is particular to it (config, legality, grid, arguments) stands in that module.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import jit, runtime
from ..quantize import Quantized
from ..types import Config, Launch, Legality, Problem

__all__ = ["SHARED_LIMIT", "Stage", "check_fp8_operand", "check_grid", "check_tiles", "rows"]

SHARED_LIMIT = 227 * 1024  # bytes of shared memory that one CTA of a Hopper GPU can have
THREAD_LIMIT = 1024
SIZE_LIMIT = 1 << 30  # rows or columns: the tile that hangs over the edge stays below 2**31 too


@dataclass(frozen=True)
class Stage:
    """A stage of the course, callable: `stage.gemm(a, b)`.

    `launch(a, b, d, problem, config)` describes one launch for either runtime. `default_config(problem)` is a legal config for that problem.
    """

    name: str
    title: str
    idea: str
    config: type[Config]
    is_legal: Callable[[Config, Problem], Legality]
    default_config: Callable[[Problem], Config]
    launch: Callable[[Quantized, Quantized, torch.Tensor, Problem, Config], Launch]

    @property
    def source(self) -> Path:
        """The stage's CUDA file."""
        return Path(__file__).parent / f"{self.name}.cu"

    def gemm(self, a: Quantized, b: Quantized, config: Config | None = None, source: str | os.PathLike[str] | None = None) -> torch.Tensor:
        """`d = a @ b.T` in BF16, by this stage's kernel: on the Hopper GPU that holds the tensors, or on the emulator for CPU tensors.

        Args:
            a: (m, k) e4m3 with one float32 scale, from `minigemm.quantize.quantize(x, "tensor")`. k is a multiple of 16.
            b: (n, k), likewise; the "weights", so that `d[i, j]` is row i of a times row j of b.
            config: this stage's Config; by default one that suits the problem.
            source: path of your own version of the stage's `.cu`, run by the same launch description.

        Returns:
            (m, n) bfloat16 on the tensors' device. An m or n of zero gives an empty result, a k of zero gives zeros; neither launches anything.

        Raises:
            TypeError, ValueError: what is wrong with an argument; CompileError (a ValueError) when `source` does not compile. Nothing has run then.
            minigemm.emulator.Fault, Deadlock: on the CPU, what a GPU would fault on or hang on.
        """
        problem = self.check(a, b, config, source)
        config = config or self.default_config(problem)
        device = a.data.device
        if problem.m == 0 or problem.n == 0 or problem.k == 0:
            return torch.zeros(problem.m, problem.n, dtype=torch.bfloat16, device=device)
        kernel = jit.build(self.source if source is None else Path(source), config, name=self.name, kernel=self.name)
        d = torch.empty(problem.m, problem.n, dtype=torch.bfloat16, device=device)
        launch = self.launch(a, b, d, problem, config)
        machine = runtime.of(device)
        machine.launch(machine.load(kernel, launch.shared, device), launch)
        return d

    def check(self, a: Quantized, b: Quantized, config: Config | None = None, source: str | os.PathLike[str] | None = None) -> Problem:
        """The problem that these arguments pose. Raises TypeError or ValueError that names the argument, what was expected and what came."""
        for name, operand in (("a", a), ("b", b)):
            check_fp8_operand(name, operand, "tensor")
        if a.data.device != b.data.device:
            raise ValueError(f"b: expected the device of a, {a.data.device}, got {b.data.device}")
        if a.data.shape[1] != b.data.shape[1]:
            raise ValueError(f"b: expected (n, {a.data.shape[1]}), as many columns as a has, got {tuple(b.data.shape)}")
        problem = Problem(a.data.shape[0], b.data.shape[0], a.data.shape[1])
        config = self.default_config(problem) if config is None else config
        if not isinstance(config, self.config):
            raise TypeError(f"config: expected a {self.name}.Config, got {type(config).__module__.rpartition('.')[2]}.{type(config).__name__}")
        for field, value in vars(config).items():
            if not isinstance(value, int):
                raise TypeError(f"config.{field}: expected an int, got {value!r}")
        if not (legal := self.is_legal(config, problem)):
            raise ValueError(f"config: {legal.reason}")
        if not isinstance(source, (str, os.PathLike, type(None))):
            raise TypeError(f"source: expected the path of a CUDA file, got {type(source).__name__}")
        if source is not None and not Path(source).is_file():
            raise ValueError(f"source: expected the path of a CUDA file, got {os.fspath(source)!r}, which is not a file")
        runtime.of(a.data.device).check_device(a.data.device)
        return problem


def check_fp8_operand(name: str, operand: Quantized, granularity: str) -> None:
    """Dtype, shape, strides, alignment and scale of one quantized matrix."""
    if not isinstance(operand, Quantized):
        raise TypeError(f"{name}: expected a Quantized (from minigemm.quantize.quantize), got {type(operand).__name__}")
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
        raise ValueError(f"{name}.data: expected a row stride that is a multiple of 16 bytes and at least k = {k}, got {data.stride(0)}")
    if data.data_ptr() % 16:
        raise ValueError(f"{name}.data: expected a 16-byte aligned start, got an address that is {data.data_ptr() % 16} bytes past one")
    if max(m, k) > SIZE_LIMIT:
        raise ValueError(f"{name}.data: expected at most 2**30 rows and columns, got {tuple(data.shape)}")


def rows(q: Quantized) -> torch.Tensor:
    """The data (m, k), with a row stride that is a multiple of 16 bytes also where a single row came with another one."""
    return q.data if q.data.shape[0] > 1 else q.data.as_strided(q.data.shape, (q.data.shape[1], 1))


def check_tiles(block: tuple[int, int], thread: tuple[int, int], shared: int, registers: int) -> str:
    """Why a tile of (block m, block n) with a register tile (thread m, thread n) cannot run; "" when it can."""
    for value, name in ((block[0], "block_m"), (block[1], "block_n"), (thread[0], "thread_m"), (thread[1], "thread_n")):
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
    if shared > SHARED_LIMIT:
        return f"{shared} bytes of shared memory exceed the {SHARED_LIMIT} of a CTA: take smaller blocks"
    limit = min(255, 65536 // (-(-threads // 128) * 128))
    if registers > limit:
        return f"about {registers} registers a thread exceed the {limit} that {threads} threads can have: take a smaller thread_m or thread_n"
    return ""


def check_grid(m: int, n: int, block_m: int, block_n: int) -> str:
    """Why a grid of tiles cannot be launched; "" when it can."""
    if -(-n // block_n) > 65535:
        return f"n = {n} needs {-(-n // block_n)} columns of tiles, more than the 65535 of a grid: take a larger block_n"
    return ""
