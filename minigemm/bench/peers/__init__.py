"""Who is timed: minigemm, and every other FP8 product that can be imported. One class each, which says what it needs and what it can do.

A peer gets the tensors of a `Case`, prepares what it wants laid out otherwise, and gives back a call without arguments that returns d. What it prepares
is not timed. A peer that is not there, or cannot do a shape, says so in one sentence; nothing that it raises ends a benchmark.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ... import api, store
from ...layout import round_up
from ...plan import choose
from ...plan.ahead import LAYOUTS
from ...types import Product
from ..cases import Case
from ..shapes import Shape

__all__ = ["PEERS", "Missing", "Peer", "named"]

GROUPED = ("dense", "contiguous", "masked")
NVCC_PATIENCE = 900  # seconds


class Missing(Exception):
    """A peer that cannot be had here; the message says what it lacks."""


class Peer:
    """Somebody's FP8 product.

    name: on the command line and in results. what: one line for the table's legend.
    layouts: that it computes. multiples: what a shape's n and k (and m) must be multiples of.
    scales: "block" (1x128 and 128x128), or "tensor": then it is held against the product with one scale a tensor.
    tolerance: of ||d - reference|| / ||reference||. BF16 alone costs 1.7e-3, up to 2**-8 where few elements decide; a wrong product is off by about 1.
    """

    name = ""
    what = ""
    layouts: tuple[str, ...] = ("dense",)
    multiples: dict[str, int] = {"n": 1, "k": 16}  # noqa: RUF012 - the classes are constants
    scales = "block"
    tolerance = 5e-3

    def version(self) -> str:
        """Imports what there is to import. Missing, or whatever an import raises, where it cannot be had."""
        raise NotImplementedError

    def refuses(self, shape: Shape) -> str:
        """Why it cannot compute this shape; "" if it can."""
        if shape.layout not in self.layouts:
            return f"no {shape.layout} layout"
        sizes = {"m": shape.m, "n": shape.n, "k": shape.k}
        wrong = [
            f"{name} a multiple of {multiple}"
            for name, multiple in self.multiples.items()
            if sizes[name] % multiple
        ]
        return f"needs {' and '.join(wrong)}" if wrong else ""

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        """The call to time. Whatever comes wrong may be raised, here or by the call."""
        raise NotImplementedError


class MiniGemm(Peer):
    """The public calls of `minigemm.api`, as anybody makes them."""

    name, what, layouts = "minigemm", "this library's public calls", GROUPED

    def version(self) -> str:
        from ... import __version__

        return __version__

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        a, b, d = (case.a, case.sfa), (case.b, case.sfb), case.empty()
        if case.shape.layout == "dense":
            return lambda: api.fp8_gemm_nt(a, b, d)
        if case.shape.layout == "contiguous":
            return lambda: api.m_grouped_fp8_gemm_nt_contiguous(a, b, d, case.index)
        return lambda: api.m_grouped_fp8_gemm_nt_masked(a, b, d, case.index, case.shape.m)

    def config(self, shape: Shape, device: torch.device) -> dict[str, int]:
        """The constants of the config that the call chooses."""
        m = shape.rows_per_group if shape.layout == "masked" else shape.rows
        expected = shape.m if shape.layout == "masked" else 0
        product = Product(
            m, shape.n, shape.k, LAYOUTS[shape.layout], shape.groups, expected, choose.settings().alignment
        )
        return choose.config_for(product, device).constants()


class BatchInvariant(Peer):
    """minigemm again, to see what it costs that the bits of a row depend on nothing but that row."""

    name, what, layouts = (
        "batch_invariant",
        "this library's public calls under set_batch_invariant(True)",
        GROUPED,
    )

    def version(self) -> str:
        return MiniGemm().version()

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        call = MiniGemm().prepare(case)

        def invariant() -> torch.Tensor:
            before = api.get_batch_invariant()
            api.set_batch_invariant(True)
            try:
                return call()
            finally:
                api.set_batch_invariant(before)

        return invariant


class DeepGemm(Peer):
    """DeepGEMM of either generation; never minigemm's own module of that name."""

    name, what, layouts, multiples = "deep_gemm", "DeepGEMM", GROUPED, {"n": 64, "k": 128}

    def __init__(self) -> None:
        self._calls: dict[str, Any] = {}

    def version(self) -> str:
        module = importlib.import_module("deep_gemm")
        if (
            module.__name__.startswith("minigemm")
            or "minigemm" in Path(getattr(module, "__file__", None) or "").parts
        ):
            raise Missing("the deep_gemm that is imported is minigemm.compat.deep_gemm")
        spellings = {
            "dense": ("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt"),
            "contiguous": ("m_grouped_fp8_gemm_nt_contiguous", "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous"),
            "masked": (
                "m_grouped_fp8_gemm_nt_masked",
                "fp8_m_grouped_gemm_nt_masked",
                "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
            ),
        }
        self._calls = {
            layout: found
            for layout, names in spellings.items()
            if (found := _first(module, names)) is not None
        }
        if "dense" not in self._calls:
            raise Missing("this deep_gemm has neither fp8_gemm_nt nor gemm_fp8_fp8_bf16_nt")
        return f"{getattr(module, '__version__', _installed('deep-gemm', 'deep_gemm'))}, {self._calls['dense'].__name__}"

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        call = self._calls.get(case.shape.layout)
        if call is None:
            raise Missing(f"this deep_gemm has no call for the {case.shape.layout} layout")
        d = case.empty()
        rest = {"dense": (), "contiguous": (case.index,), "masked": (case.index, case.shape.m)}[
            case.shape.layout
        ]
        return _into(d, lambda: call((case.a, case.sfa), (case.b, case.sfb), d, *rest))


class CublasLt(Peer):
    """cuBLASLt with one scale a tensor: less work than block scales are, and sums in the tensor core's short accumulator. What hardware can do."""

    name, what, scales, multiples = (
        "cublaslt",
        "cuBLASLt by torch._scaled_mm, one scale a tensor, fast accumulation",
        "tensor",
        {"n": 16, "k": 16},
    )
    tolerance = 5e-2  # the short accumulator loses what FP32 sums keep

    def version(self) -> str:
        if not hasattr(torch, "_scaled_mm"):
            raise Missing("this torch has no _scaled_mm")
        return _torch()

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        if case.tensor_scaled is None:
            raise Missing("no product with one scale a tensor")
        a, b = case.tensor_scaled
        return lambda: torch._scaled_mm(
            a.data, b.data.T, scale_a=a.scale, scale_b=b.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )


class CublasLtBlocks(Peer):
    """cuBLASLt with block scales."""

    name, what, multiples = (
        "cublaslt_blocks",
        "cuBLASLt by torch.nn.functional.scaled_mm, 1x128 and 128x128 scales",
        {"m": 4, "n": 16, "k": 128},
    )

    def version(self) -> str:
        if not hasattr(torch.nn.functional, "scaled_mm"):
            raise Missing("torch.nn.functional.scaled_mm comes with torch 2.10")
        if torch.version.cuda is None or tuple(map(int, torch.version.cuda.split(".")[:2])) < (12, 9):
            raise Missing(f"block scales come with CUDA 12.9, and torch has {torch.version.cuda or 'none'}")
        return _torch()

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        scaled_mm, kinds = torch.nn.functional.scaled_mm, torch.nn.functional.ScalingType
        blocks_n, blocks_k = case.sfb.shape
        padded = case.sfb.new_ones(
            (blocks_n, round_up(blocks_k, 4))
        )  # it wants a column's scales from a multiple of 16 bytes on
        padded[:, :blocks_k] = case.sfb
        a, sfa, b, sfb = case.a, case.sfa, case.b.T, padded.T
        return lambda: scaled_mm(
            a, b, sfa, kinds.BlockWise1x128, sfb, kinds.BlockWise128x128, output_dtype=torch.bfloat16
        )


class Triton(Peer):
    """The kernel in triton_kernel.py."""

    name, what, layouts = (
        "triton",
        "a Triton kernel of sixty lines, autotuned (minigemm/bench/peers/triton_kernel.py)",
        GROUPED,
    )

    def version(self) -> str:
        importlib.import_module(".triton_kernel", __package__)
        return _installed("triton")

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        from . import triton_kernel

        d = case.empty()
        return lambda: triton_kernel.gemm(
            case.a, case.sfa, case.b, case.sfb, d, case.shape.layout, case.index
        )


class TorchAo(Peer):
    """torchao's Triton kernel. Its tuner compiles 48 kernels for each n, k and power of two of m, which takes a minute or so a shape."""

    name, what, multiples = "torchao", "torchao's blockwise_fp8_gemm", {"n": 1, "k": 128}
    HOMES = (
        "torchao.kernel.blockwise_quantization", "torchao.prototype.blockwise_fp8_inference.blockwise_quantization",
        "torchao.prototype.blockwise_fp8.blockwise_quantization",
    )  # fmt: skip

    def __init__(self) -> None:
        self._call: Any = None

    def version(self) -> str:
        importlib.import_module("torchao")
        for home in self.HOMES:
            if (module := _imported(home)) is not None and hasattr(module, "blockwise_fp8_gemm"):
                self._call = module.blockwise_fp8_gemm
                return _installed("torchao")
        raise Missing(f"torchao {_installed('torchao')} has no blockwise_fp8_gemm in {', '.join(self.HOMES)}")

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        a, sfa, b, sfb = (
            x.contiguous() for x in (case.a, case.sfa, case.b, case.sfb)
        )  # it wants scales row-major
        return lambda: self._call(a, sfa, b, sfb)


class FlashInfer(Peer):
    """flashinfer's product for Hopper. Its gemm_fp8_nt_groupwise and the grouped ones are for Blackwell."""

    name, what, multiples = "flashinfer", "flashinfer.gemm.fp8_blockscale_gemm_sm90", {"n": 64, "k": 128}

    def __init__(self) -> None:
        self._call: Any = None

    def version(self) -> str:
        importlib.import_module("flashinfer")
        self._call = getattr(importlib.import_module("flashinfer.gemm"), "fp8_blockscale_gemm_sm90", None)
        if self._call is None:
            raise Missing(
                f"flashinfer {_installed('flashinfer-python')} has no fp8_blockscale_gemm_sm90, and its gemm_fp8_nt_groupwise is for Blackwell"
            )
        return _installed("flashinfer-python")

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        d = case.empty()
        return _into(d, lambda: self._call(case.a, case.b, case.sfa, case.sfb, out=d))


class Cutlass(Peer):
    """CUTLASS's example 67 with the tile and the cluster that it has, compiled by nvcc the first time (about a minute) and kept in minigemm's cache."""

    name, what, multiples = (
        "cutlass",
        "CUTLASS as in its example 67, 128x128x128 tiles",
        {"m": 4, "n": 8, "k": 16},
    )
    SOURCE = Path(__file__).with_name("cutlass_gemm.cu")

    def __init__(self) -> None:
        self._call: Any = None

    def version(self) -> str:
        nvcc, headers = self._nvcc(), self._headers()
        compiler = (
            subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
            .stdout.strip()
            .rpartition("\n")[2]
        )
        command = [nvcc, "-std=c++17", "-O3", "-DNDEBUG", "-shared", "-Xcompiler", "-fPIC", "-gencode", "arch=compute_90a,code=sm_90a",
                   "--expt-relaxed-constexpr", *(f"-I{folder}" for folder in headers)]  # fmt: skip
        library, _ = store.fetch(
            f"bench-cutlass-{self._key(compiler, command)}.so", lambda: self._compiled(command)
        )
        with tempfile.TemporaryDirectory() as folder:  # loaded, it needs its file no more
            file = Path(folder) / "cutlass_gemm.so"
            file.write_bytes(library)
            self._call = ctypes.CDLL(str(file)).block_scaled_gemm
        self._call.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int] * 3 + [ctypes.c_void_p]
        return f"{_installed('nvidia-cutlass')}, {compiler}"

    def prepare(self, case: Case) -> Callable[[], torch.Tensor]:
        d, shape = case.empty(), case.shape

        def call() -> torch.Tensor:
            stream = torch.cuda.current_stream(d.device).cuda_stream
            pointers = (x.data_ptr() for x in (case.a, case.sfa, case.b, case.sfb, d))
            status = self._call(*pointers, shape.m, shape.n, shape.k, stream)
            if status:
                raise RuntimeError(f"cutlass::Status {status}")
            return d

        return call

    @staticmethod
    def _nvcc() -> str:
        home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
        found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
        if found is None:
            raise Missing("needs nvcc, the compiler of the CUDA toolkit")
        return found

    @staticmethod
    def _headers() -> list[Path]:
        """Of a CUTLASS checkout that CUTLASS_PATH names, or of the wheel."""
        wheel = importlib.util.find_spec("cutlass_library")
        places = [Path(os.environ["CUTLASS_PATH"])] if "CUTLASS_PATH" in os.environ else []
        places += (
            [Path(folder) / "source" for folder in (wheel.submodule_search_locations or ())] if wheel else []
        )
        for place in places:
            if (place / "include" / "cutlass" / "cutlass.h").exists():
                return [place / "include", place / "tools" / "util" / "include"]
        raise Missing(
            "needs CUTLASS's headers: pip install nvidia-cutlass, or set CUTLASS_PATH to a checkout"
        )

    def _key(self, compiler: str, command: list[str]) -> str:
        import hashlib

        return hashlib.sha256(
            "\0".join(
                [compiler, *command, _installed("nvidia-cutlass"), self.SOURCE.read_text(encoding="utf-8")]
            ).encode()
        ).hexdigest()[:32]

    def _compiled(self, command: list[str]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "cutlass_gemm.so"
            answer = subprocess.run(
                [*command, "-o", str(made), str(self.SOURCE)],
                capture_output=True,
                text=True,
                check=False,
                timeout=NVCC_PATIENCE,
            )
            if answer.returncode or not made.exists():
                errors = [
                    line for line in (answer.stderr + answer.stdout).splitlines() if "error" in line
                ] or ["it said nothing of an error"]
                raise Missing(f"nvcc could not compile it: {errors[0][:300]}")
            return made.read_bytes()


def _into(d: torch.Tensor, call: Callable[[], object]) -> Callable[[], torch.Tensor]:
    """The call of a function that writes to d and returns something else."""

    def run() -> torch.Tensor:
        call()
        return d

    return run


def _first(module: ModuleType, names: tuple[str, ...]) -> Any:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _installed(*names: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _torch() -> str:
    return f"torch {torch.__version__}, CUDA {torch.version.cuda}"


#: In the order of the tables; minigemm first.
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
    """These peers, or all, new; minigemm is always among them. ValueError for a name that none has."""
    known = [kind.name for kind in PEERS]
    for name in names or ():
        if name not in known:
            raise ValueError(f"peer: expected one of {', '.join(known)}, got {name!r}")
    return [kind() for kind in PEERS if not names or kind.name in names or kind is MiniGemm]
