"""Probes of the tensor core: chains of WGMMAs that show its arithmetic, descriptors and fragments.

The same kernel (wgmma.cu) runs on a Hopper GPU, where `python -m minigemm test-gpu --record-tensor-core FILE`
keeps its results, and on the emulator, which must give the same bits. Inputs come from the generator of
`recordings`, so that a recording holds outputs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import runtime, types
from ..compiler import jit
from ..types import Launch
from .recordings import codes, keep, load, seed_of, splitmix64

__all__ = ["LAYOUTS", "REGIMES", "Case", "cases", "inputs", "load", "output", "record"]

SOURCE = Path(__file__).parent / "wgmma.cu"
REGIMES = ("normal", "wide", "cancelling", "subnormal", "nan", "extreme", "sparse", "raw")
LAYOUTS = (
    "swizzle 128",
    "swizzle 64",
    "swizzle 32",
    "interleaved",
    "interleaved by column",
    "swizzle 128, base offset 3",
    "swizzle 64, base offset 5",
)
ALIGN = 1024


@dataclass(frozen=True)
class Config(types.Config):
    """The instruction: n, where A comes from, the operands' types (0: e4m3, 1: e5m2) and signs."""

    n: int = 64
    a_in_registers: bool = False
    a_e5m2: bool = False
    b_e5m2: bool = False
    a_negated: bool = False
    b_negated: bool = False

    def declarations(self) -> str:
        """Return the one function that issues the instruction."""
        count = self.n // 2
        registers = ", ".join(f"%{i}" for i in range(count))
        outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
        kinds = ".".join("e5m2" if e5m2 else "e4m3" for e5m2 in (self.a_e5m2, self.b_e5m2))
        signs = ", ".join("-1" if negated else "1" for negated in (self.a_negated, self.b_negated))
        if self.a_in_registers:
            first = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}"
            inputs = ", ".join(f'"r"(a_registers[{i}])' for i in range(4)) + ', "l"(b)'
            rest = count + 4
        else:
            first, inputs, rest = f"%{count}", '"l"(a), "l"(b)', count + 1
        opcode = f"wgmma.mma_async.sync.aligned.m64n{self.n}k32.f32.{kinds}"
        return (
            f"inline void wgmma_mma_async(float (&d)[{count}], const unsigned (&a_registers)[4], "
            "unsigned long long a, unsigned long long b, bool accumulate) {\n"
            f'  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{rest + 1}, 0;\\n"\n'
            f'    "{opcode} {{{registers}}}, {first}, %{rest}, p, {signs};\\n}}"\n'
            f'    : {outputs} : {inputs}, "r"(static_cast<int>(accumulate)));\n}}\n'
        )


@dataclass(frozen=True)
class Case:
    """`chains` chains of `k / 32` instructions, all with numbers of one regime and operands in one layout."""

    config: Config
    k: int
    regime: str
    layout: str = "swizzle 128"
    scale_d: bool = True
    chains: int = 1

    @property
    def name(self) -> str:
        """The key under which the output bits are kept."""
        c = self.config
        of_a = "-" * c.a_negated + ("e4m3", "e5m2")[c.a_e5m2]
        of_b = "-" * c.b_negated + ("e4m3", "e5m2")[c.b_e5m2]
        place = "registers" if c.a_in_registers else "shared"
        return (
            f"n{c.n} k{self.k} {of_a} x {of_b}, a in {place}, {self.layout}, {self.regime}, "
            f"scale_d {int(self.scale_d)}, {self.chains} chains"
        )


def cases() -> Iterator[Case]:
    """Every regime at two widths, every layout, and variants.

    These are wide tiles of raw bytes, e5m2 and mixed types, negated operands, and A from registers.
    """
    for regime in REGIMES:
        for n, k, chains in ((8, 32, 4), (16, 128, 4)):
            yield Case(Config(n), k, regime, chains=chains)
            yield Case(Config(n, a_e5m2=True, b_e5m2=True), k, regime, chains=chains)
        yield Case(Config(8, b_e5m2=True), 64, regime, chains=2)
        yield Case(Config(8), 64, regime, scale_d=False, chains=2)
    for n in (64, 128, 256):
        yield Case(Config(n), 128, "raw")
    for regime in ("normal", "raw"):
        for layout in LAYOUTS:
            yield Case(Config(24), 256, regime, layout)
        yield Case(Config(24, a_in_registers=True), 128, regime)
        yield Case(Config(8, a_in_registers=True, a_e5m2=True, b_e5m2=True), 64, regime)
        yield Case(Config(8, a_negated=True), 64, regime)
        yield Case(Config(8, a_in_registers=True, b_negated=True), 64, regime)


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make a uint8 (chains, 64, k), b uint8 (chains, n, k), and c, float32 bits as uint32 (chains, 64, n)."""
    seed, n = seed_of(case.name), case.config.n
    a = codes(seed, (case.chains, 64, case.k), case.regime, case.config.a_e5m2)
    b = codes(seed + 1, (case.chains, n, case.k), case.regime, case.config.b_e5m2)
    bits = splitmix64(seed + 2, case.chains * 64 * n)
    if case.regime == "raw":  # any FP32, infinities and NaNs among them
        c = (bits >> np.uint64(16)).astype(np.uint32)
    else:  # around the sums: exponents 2^-20 to 2^11; in an eighth of the elements zero
        exponent = (bits >> np.uint64(32)) % np.uint64(32) + np.uint64(107)
        c = ((bits & np.uint64(0x807FFFFF)) | exponent << np.uint64(23)).astype(np.uint32)
        c = np.where(bits >> np.uint64(40) & np.uint64(7) == 0, np.uint32(0), c)
    return a, b, c.reshape(case.chains, 64, n)


def placed(layout: str, rows: int, steps: int, start: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Place an operand in shared memory from the byte `start` on.

    Returns:
        The place of each chunk of 16 bytes (steps, rows, 2), the operand's descriptors (steps,), and where it
        ends.
    """
    step, row, chunk = np.ogrid[:steps, :rows, :2]
    if layout.startswith("interleaved"):
        # core matrices, 8 rows of 16 bytes: the two of a step side by side, or all of the first column before
        # the second
        leading, stride = (128, 256) if layout == "interleaved" else (rows * 16, 128)
        begin = start + step * rows * 32
        places = begin + row // 8 * stride + row % 8 * 16 + chunk * leading
        fields = begin[:, 0, 0] >> 4 | leading >> 4 << 16 | stride >> 4 << 32
        return places, fields.astype(np.int64), start + steps * rows * 32
    span = int(layout.split()[1].rstrip(","))
    base = int(layout.split()[-1]) if "base" in layout else 0
    shift = base * 128  # the pattern begins there, off its period
    panel = -(-rows * span // ALIGN) * ALIGN + (ALIGN if base else 0)
    begin = start + shift + step * 32 // span * panel
    within = step * 32 % span
    linear = row * span + within + chunk * 16
    places = begin + (linear ^ (linear >> 7 & (span // 16 - 1)) << 4)
    kind = {128: 1, 64: 2, 32: 3}[span]
    field = ((begin + within)[:, 0, 0] >> 4).astype(np.uint64) | np.uint64(
        1 << 16 | (8 * span >> 4) << 32 | (base & 7) << 49 | kind << 62
    )
    return places, field.astype(np.uint64).view(np.int64), start + -(-steps * 32 // span) * panel


def output(case: Case, device: torch.device | str) -> np.ndarray:
    """Compute the case's d on a device; return its bits, uint32 (chains, 64, n)."""
    a, b, c = inputs(case)
    device = torch.device(device)
    steps, n = case.k // 32, case.config.n

    # a and b lie behind each other in shared memory; the kernel gets their chunks by steps, and where each
    # goes.
    a_places, a_fields, end = placed(case.layout, 64, steps, 0)
    b_places, b_fields, end = placed(case.layout, n, steps, -(-end // ALIGN) * ALIGN)
    by_steps = [x.reshape(case.chains, -1, steps, 32).transpose(0, 2, 1, 3) for x in (a, b)]
    places = [x.astype(np.int32) for x in (a_places, b_places)]
    arrays = (*by_steps, *places, np.stack([a_fields, b_fields], 1), c.view(np.int32))
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    d = torch.full((case.chains, 64, n), 0x7FC0BEEF, dtype=torch.int32, device=device)  # a NaN of our own

    launch = Launch(
        grid=(case.chains, 1, 1),
        block=(128, 1, 1),
        args=(*tensors, d, steps, int(case.scale_d)),
        shared=-(-end // ALIGN) * ALIGN,
    )
    kernel = jit.build(SOURCE, case.config, name="probe_wgmma", symbol="probe_wgmma")
    runtime.run(kernel, launch, device)
    return d.cpu().numpy().view(np.uint32)


def record(path: Path, device: torch.device, run: dict[str, Any]) -> int:
    """Compute every case on a GPU and write them to a file. Return how many elements it holds."""
    bits = {case.name: output(case, device) for case in cases()}
    keep(path, run, [SOURCE], bits)
    return sum(array.size for array in bits.values())
