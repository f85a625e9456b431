"""`minigemm.inspect`: a stage's source, PTX, SASS and resources, without a GPU."""

from __future__ import annotations

import html.parser
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

from minigemm.compiler import inspection, jit
from minigemm.compiler.inspection import Inspection, Instruction
from minigemm.kernels import inspect
from minigemm.types import CompileError, Config, Problem


@dataclass(frozen=True)
class Rows(Config):
    rows: int = 4


SOURCE = """\
#include "part.cuh"

extern "C" __global__ void s99_test(float* a)
{
  __shared__ float tile[ROWS * 32];
  float sum = 0;
  tile[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  for (int i = 0; i < ROWS; i++)
    sum = fmaf(tile[i * 32 + (31 - threadIdx.x)], 2.0f, sum);
  a[threadIdx.x] = halved(sum);
}
"""
PART = "__device__ inline float halved(float x)\n{\n  return rsqrtf(x);\n}\n"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "part.cuh").write_text(PART)
    (tmp_path / "s99_test.cu").write_text(SOURCE)
    return tmp_path / "s99_test.cu"


@pytest.fixture
def stage(path: Path) -> types.ModuleType:
    """A stage module as the contract has it, its .cu beside it."""
    module = types.ModuleType("minigemm.kernels.s99_test")
    module.__file__ = str(path.with_suffix(".py"))
    module.default_config = lambda problem: Rows(problem.m // 512)  # type: ignore[attr-defined]
    return module


def test_a_stage_by_its_module(stage: types.ModuleType) -> None:
    found = inspect(stage, Rows(2))
    assert isinstance(found, Inspection)
    assert found.source == SOURCE and ".entry s99_test(" in found.ptx
    assert 8 <= found.registers <= 64
    assert (found.spills, found.stack, found.shared_memory) == (0, 0, 2 * 32 * 4)
    assert "ptxas info" in found.log
    assert found.kernel.name == found.kernel.symbol == "s99_test"
    assert found.warnings == ""


def test_the_default_config_is_that_of_a_large_square_problem(stage: types.ModuleType) -> None:
    assert inspect(stage).config == Rows(8) == stage.default_config(Problem(4096, 4096, 4096))


def test_a_readers_own_version_of_a_stage(stage: types.ModuleType, tmp_path: Path) -> None:
    mine = tmp_path / "mine.cu"
    mine.write_text(SOURCE.replace("[ROWS * 32]", "[ROWS * 64]"))
    found = inspect(stage, Rows(2), source=mine)
    assert found.shared_memory == 2 * 64 * 4
    assert "// mine.cu:10" in found.sass


def test_a_bare_file(path: Path, tmp_path: Path) -> None:
    assert inspect(path, Rows(4)).shared_memory == inspect(str(path), Rows(4)).shared_memory == 512
    other = tmp_path / "other.cu"
    other.write_text(SOURCE.replace("ROWS", "3"))
    assert inspect(other, kernel="s99_test").shared_memory == 3 * 32 * 4
    with pytest.raises(CompileError, match="void other"):
        inspect(other)


def test_sass_is_mapped_to_the_lines_of_the_source(path: Path) -> None:
    found = inspect(path, Rows(4))
    opcodes = {line: [each.opcode for each in found.at(line)] for line in range(1, 13)}
    assert "BAR" in opcodes[8]
    assert opcodes[10].count("FFMA") == 4 and "LDS" in opcodes[10]
    assert "MUFU" in opcodes[11]  # from a wrapper in a header: the line that called it
    assert found.opcodes["BAR"] == 1
    assert "// s99_test.cu:8  __syncthreads();" in found.sass
    addresses = [each.address for each in found.instructions]
    assert addresses == sorted(set(addresses)) and addresses[0] == 0
    assert all(each.text in found.sass for each in found.instructions)
    assert found.instructions[-1].text != "NOP"


@pytest.mark.parametrize(
    ("text", "opcode"),
    [
        ("@!P0 LDG.E R0, desc[UR4][R2.64]", "LDG"),
        ("EXIT", "EXIT"),
        ("@P0 EXIT", "EXIT"),
        ("UTMALDG.2D [UR8], [UR4]", "UTMALDG"),
    ],
)
def test_opcodes(text: str, opcode: str) -> None:
    assert Instruction(0, text, 0).opcode == opcode


def test_only_the_kernel_itself_is_shown(path: Path) -> None:
    path.write_text(
        SOURCE
        + 'extern "C" __global__ void other(int* a) { __shared__ int b[99]; b[*a] = 1; *a = b[a[1]]; }\n'
    )
    found = inspect(path, Rows(4))
    assert found.shared_memory == 512
    assert all(each.line < 13 for each in found.instructions)


def test_spills_and_stack_are_counted(tmp_path: Path, path: Path) -> None:
    greedy = tmp_path / "greedy.cu"
    greedy.write_text("""\
extern "C" __global__ void __launch_bounds__(1024, 2) greedy(float* a, int n)
{
  float held[100];
  for (int i = 0; i < 100; i++) held[i] = a[i * n + threadIdx.x];
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 100; i++) sum += held[i] * held[99 - i];
  a[n] = sum;
}
""")
    found = inspect(greedy)
    assert found.registers == 32 and found.spills > 100 and found.stack > 100
    assert found.opcodes["STL"] and found.opcodes["LDL"]


def test_usage_as_older_ptxas_reports_it() -> None:
    log = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'other' for 'sm_90a'
ptxas info    : Used 99 registers, 400 bytes cmem[0]
ptxas info    : Compiling entry function 's99_test' for 'sm_90a'
ptxas info    : Function properties for s99_test
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 32 bytes cumulative stack size, 1024 bytes smem, 544 bytes cmem[0]
"""
    assert inspection._usage(log, "s99_test") == (40, 12, 32, 1024)


def test_what_the_compiler_warns_of_is_there_to_read(path: Path) -> None:
    path.write_text(SOURCE.replace("  float sum", "  int unused;\n  float sum"))
    with pytest.warns(UserWarning, match="unused"):
        found = inspect(path, Rows(4))
    assert "s99_test.cu:6: warning: variable" in found.warnings
    assert found.warnings in str(found)


def test_text_and_html(path: Path) -> None:
    found = inspect(path, Rows(4))
    assert repr(found) == str(found)
    lines = str(found).splitlines()
    assert lines[0] == "s99_test  ROWS=4"
    figures = {line[:22].strip(): line[22:].strip() for line in lines[1:]}
    assert figures["registers"] == str(found.registers)
    assert figures["static shared memory"] == "512 bytes"
    assert "FFMA 4" in figures["opcodes"] or len(found.opcodes) > 8

    class Checked(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.depth: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "br":
                self.depth.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.depth.pop() == tag

        def handle_data(self, data: str) -> None:
            self.text += data

    page = Checked()
    page.feed(found._repr_html_())
    assert page.depth == []
    assert "i < ROWS" in page.text and "512 bytes" in page.text and "FFMA 4" in page.text
    assert len(found._repr_html_()) < 20_000


@pytest.mark.parametrize(
    ("stage", "kind", "message"),
    [
        ("s77_nothing", ValueError, "stage: expected one of .* or the path of a .cu file, got 's77_nothing'"),
        ("nowhere.cu", ValueError, "source: expected a CUDA C.. file, got 'nowhere.cu'"),
        (Path("nowhere.cu"), ValueError, "source: expected a CUDA C.. file, got 'nowhere.cu'"),
        (7, TypeError, "stage: expected a stage's module, its name or a path, got int"),
    ],
)
def test_bad_stages(stage: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        inspect(stage)  # type: ignore[arg-type]


def test_without_nvdisasm_only_the_sass_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection.sys, "path", [])
    monkeypatch.setattr(inspection.shutil, "which", lambda *names: None)
    found = inspect(path, Rows(4))
    assert found.registers and found.ptx
    with pytest.raises(ValueError, match="pip install nvidia-cuda-nvdisasm"):
        _ = found.sass


@pytest.mark.parametrize("name", sorted(file.stem for file in jit.HEADERS.glob("s[0-9][0-9]_*.cu")))
def test_every_stage_by_its_name(name: str) -> None:
    """No spills and no warnings in what is shipped."""
    found = inspect(name)
    assert inspect(name[:3]).kernel.key == inspect(str(int(name[1:3]))).kernel.key == found.kernel.key
    assert found.spills == 0 and found.warnings == ""
    assert {each.line for each in found.instructions} - {0}
