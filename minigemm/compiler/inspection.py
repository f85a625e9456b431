"""A compiled kernel, taken apart without a GPU: source, PTX, SASS, registers, spills, shared memory.

`minigemm.inspect`, which knows the stages, stands above this: in `minigemm.kernels`.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..types import Config
from . import diagnostics, jit

__all__ = ["Inspection", "Instruction", "take_apart"]

_WHERE = re.compile(r'\s*//## File "(.*?)", line (\d+)')
_LABEL = re.compile(r"(\.L_x_\d+|\$[\w$]+):")
_CODE = re.compile(r"\s*/\*([0-9a-f]+)\*/\s*(.*?)\s*;")


@dataclass(frozen=True)
class Instruction:
    """One SASS instruction. `line` is the line of the stage's file that it comes from, 0 for none."""

    address: int
    text: str
    line: int
    label: str = ""  # the branch target in front of it

    @property
    def opcode(self) -> str:
        """The bare opcode: "LDG" of `@!P0 LDG.E R0, desc[UR4][R2.64]`."""
        return self.text.removeprefix("@").split()[self.text.startswith("@")].partition(".")[0]


@dataclass(frozen=True, repr=False)
class Inspection:
    """A compiled kernel, taken apart. `spills` and `stack` are bytes of a thread, `shared_memory` of a CTA.

    `spills` counts the bytes of spill stores and loads in the code. `shared_memory` is the static part; the
    stage's `launch` knows what a launch adds. `sass`, `instructions`, `opcodes` and `at` need nvdisasm (from
    PyPI).
    """

    kernel: jit.Kernel
    config: Config
    path: Path
    source: str
    registers: int
    spills: int
    stack: int
    shared_memory: int

    @property
    def ptx(self) -> str:
        """The PTX that both runtimes get."""
        return self.kernel.ptx

    @property
    def log(self) -> str:
        """The log of NVRTC and ptxas, unabridged."""
        return self.kernel.log

    @property
    def warnings(self) -> str:
        """The warnings in the log, with the source lines at fault; empty when there are none."""
        found = diagnostics.parse(self.log, self.ptx, self.path.name)
        return diagnostics.render(
            [each for each in found if each.file != jit.PRELUDE], {self.path.name: self.source}
        )

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """The kernel's SASS in program order, without the padding at its end."""
        return _instructions(_disassembled(self.kernel.cubin), self.kernel.symbol, self.path.name)

    @cached_property
    def sass(self) -> str:
        """The SASS as text, each run of instructions under the source line that it comes from."""
        lines = self.source.splitlines()
        out, before = [], 0
        for each in self.instructions:
            if each.line != before and 0 < each.line <= len(lines):
                out.append(f"// {self.path.name}:{each.line}  {lines[each.line - 1].strip()}")
                before = each.line
            if each.label:
                out.append(f"{each.label}:")
            out.append(f"    /*{each.address:04x}*/  {each.text} ;")
        return "\n".join(out)

    @property
    def opcodes(self) -> Counter[str]:
        """How often each opcode stands in the code: `inspection.opcodes["FFMA"]`."""
        return Counter(each.opcode for each in self.instructions)

    def at(self, line: int) -> tuple[Instruction, ...]:
        """Return the instructions that come from one line of the stage's file."""
        return tuple(each for each in self.instructions if each.line == line)

    def _figures(self) -> dict[str, str]:
        return {
            "registers": str(self.registers),
            "spills": f"{self.spills} bytes",
            "stack": f"{self.stack} bytes",
            "static shared memory": f"{self.shared_memory} bytes",
            "instructions": str(len(self.instructions)),
        }

    def __str__(self) -> str:
        out = [f"{self.kernel.name}  {_constants(self.config)}".rstrip()]
        out += [f"  {name:<20}  {value}" for name, value in self._figures().items()]
        out.append(f"  {'opcodes':<20}  {_counts(self.opcodes, 8)}")
        return "\n".join([*out, *(["", self.warnings] if self.warnings else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        # The figures stand side by side, each above its name.
        tile = "display:inline-block;margin:0 1.6em .4em 0"
        tiles = "".join(
            f'<span style="{tile}"><b style="font-size:1.25em">{value}</b><br>'
            f'<span style="opacity:.65">{name}</span></span>'
            for name, value in self._figures().items()
        )

        # The busiest line sets the scale of the bars beside the source.
        by_line: dict[int, Counter[str]] = {}
        for each in self.instructions:
            by_line.setdefault(each.line, Counter())[each.opcode] += 1
        most = max((sum(opcodes.values()) for opcodes in by_line.values()), default=1)
        rows = "".join(
            _row(number, text, by_line.get(number, Counter()), most)
            for number, text in enumerate(self.source.splitlines(), 1)
        )

        # Warnings stay visible above the source, which is folded away.
        told = (
            f'<pre style="border-left:3px solid #d97706;padding-left:.8em">{html.escape(self.warnings)}</pre>'
        )
        return (
            '<div style="border:1px solid #8886;border-radius:8px;padding:.8em 1em;max-width:70em">'
            f'<div style="margin-bottom:.7em"><b>{html.escape(self.kernel.name)}</b> '
            f'<code style="opacity:.75">{html.escape(_constants(self.config))}</code></div>{tiles}'
            f"{told if self.warnings else ''}"
            "<details><summary>Each line of the source, and what it became</summary>"
            '<div style="overflow:auto;max-height:32em;margin-top:.5em">'
            '<table style="border-collapse:collapse;font:.85em/1.35 monospace;text-align:left">'
            f"{rows}</table></div></details></div>"
        )


def take_apart(path: Path, config: Config, *, name: str, symbol: str) -> Inspection:
    """Compile the CUDA C++ file at `path` under `config`, and take the result apart. Needs no GPU.

    `name` and `symbol` go to `jit.build`. Raises ValueError when there is no such file, and CompileError (a
    ValueError) when it does not compile.
    """
    built = jit.build(path, config, name=name, symbol=symbol)
    usage = _usage(built.log, built.symbol)
    return Inspection(built, config, path, path.read_text(encoding="utf-8-sig"), *usage)


def _usage(log: str, symbol: str) -> tuple[int, int, int, int]:
    """Return registers, spilled bytes, stack and static shared memory, as `ptxas -v` reported them."""
    _, _, told = log.partition(f"Compiling entry function '{symbol}'")
    told = told.partition("Compiling entry function")[0]

    def figures(pattern: str) -> list[int]:
        return [int(figure) for figure in re.findall(pattern, told)]

    registers = figures(r"Used (\d+) registers")
    if not registers:
        raise ValueError(f"ptxas reported no registers for {symbol}; its log:\n{log}")
    spills = figures(r"(\d+) bytes spill stores") + figures(r"(\d+) bytes spill loads")
    stack = figures(r"(\d+) bytes cumulative stack size") or figures(r"(\d+) bytes stack frame")
    return registers[0], sum(spills), max(stack, default=0), sum(figures(r"(\d+) bytes smem"))


def _disassembled(cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [_nvdisasm(), "--print-code", "--print-line-info-inline", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _nvdisasm() -> str:
    """Return the path of nvdisasm: from a wheel, else from a toolkit."""
    for place in sys.path:
        for found in sorted(Path(place).glob("nvidia/*/bin/nvdisasm*"), reverse=True):
            return str(found)
    if installed := shutil.which("nvdisasm") or shutil.which("/usr/local/cuda/bin/nvdisasm"):
        return installed
    raise ValueError("SASS is read with nvdisasm, which is not here: pip install nvidia-cuda-nvdisasm")


def _instructions(listing: str, symbol: str, home: str) -> tuple[Instruction, ...]:
    """Return the instructions of `symbol` in nvdisasm's listing.

    Where calls are inlined, the innermost line in the file `home` counts.
    """
    _, _, code = listing.partition(f".text.{symbol}:\n")
    code = code.partition("//-----")[0]
    found: list[Instruction] = []
    frames: list[tuple[str, int]] = []  # innermost first
    line, label = 0, ""
    for text in code.splitlines():
        if match := _WHERE.match(text):
            frames.append((Path(match[1]).name, int(match[2])))
        elif match := _LABEL.fullmatch(text):
            label = match[1]
        elif match := _CODE.match(text):
            if frames:
                line = next((number for file, number in frames if file == home), 0)
            found.append(Instruction(int(match[1], 16), match[2], line, label))
            frames, label = [], ""
    while found and found[-1].text == "NOP":
        found.pop()
    return tuple(found)


def _constants(config: Config) -> str:
    return ", ".join(f"{name}={value}" for name, value in config.constants().items())


def _counts(opcodes: Counter[str], limit: int) -> str:
    shown = ", ".join(f"{opcode} {count}" for opcode, count in opcodes.most_common(limit))
    return shown + (", ..." if len(opcodes) > limit else "")


def _row(number: int, text: str, opcodes: Counter[str], most: int) -> str:
    """Return a source line as HTML, with a bar for its share of the instructions, and their opcodes."""
    count = sum(opcodes.values())
    bar = (
        f'<div style="width:{max(2, 60 * count // most)}px;height:.6em;background:#76b900"></div>'
        if count
        else ""
    )
    cell = '<td style="padding:0 .7em;white-space:pre;text-align:left'
    return (
        f'<tr>{cell};opacity:.5;text-align:right">{number}</td>{cell}">{html.escape(text)}</td>{cell}">{bar}</td>'
        f'{cell};opacity:.75">{html.escape(_counts(opcodes, 4))}</td></tr>'
    )
