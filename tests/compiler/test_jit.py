"""The JIT: what is compiled, how often, and what a reader is told when it does not work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from minigemm import store
from minigemm.compiler import diagnostics, jit
from minigemm.types import CompileError, Config

ROOT = Path(jit.__file__).parents[2]


@dataclass(frozen=True)
class Tile(Config):
    block_m: int = 64
    fast: bool = True


KERNEL = """\
extern "C" __global__ void s99_test(int* out)
{
  out[threadIdx.x] = BLOCK_M + FAST;
}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, on disk and in memory."""
    monkeypatch.setenv("MINIGEMM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_given_up", set())
    monkeypatch.setattr(jit, "_built", {})
    return tmp_path


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch):
    """What a new process would not know."""
    return lambda: monkeypatch.setattr(jit, "_built", {})


def build(path: Path, config: Config | None = None) -> jit.Kernel:
    return jit.build(path, config or Tile(), name="s99_test", symbol="s99_test")


def written(folder: Path, text: str = KERNEL, name: str = "mine.cu") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path, config: Config | None = None) -> CompileError:
    with pytest.raises(CompileError) as caught:
        build(path, config)
    assert isinstance(caught.value, ValueError)
    return caught.value


# What a kernel is


def test_a_kernel_has_everything_for_both_runtimes(place: Path) -> None:
    kernel = build(written(place), Tile(block_m=96))
    assert (kernel.name, kernel.symbol, kernel.origin) == ("s99_test", "s99_test", "compiled")
    assert ".target sm_90a" in kernel.ptx and ".entry s99_test(" in kernel.ptx
    assert "\0" not in kernel.ptx + kernel.log
    assert kernel.cubin.startswith(b"\x7fELF")
    assert (
        kernel.source == f'constexpr int BLOCK_M = 96;\nconstexpr int FAST = 1;\n#line 1 "mine.cu"\n{KERNEL}'
    )
    assert "registers" in kernel.log
    assert 0 < kernel.compile_s < 30
    assert "97" in kernel.ptx  # 96 + true


def test_line_info_names_the_file_as_the_source_does(place: Path) -> None:
    written(place, "__device__ inline int two(int x) { return x * 2 + BLOCK_M; }\n", "part.cuh")
    text = '#include "part.cuh"\nextern "C" __global__ void s99_test(int* a)\n{\n  a[0] = two(a[1]);\n}\n'
    kernel = build(written(place, text))
    files = [
        line.split(maxsplit=2)[2] for line in kernel.ptx.splitlines() if line.strip().startswith(".file")
    ]
    assert files == ['"mine.cu"', '"part.cuh"']


def test_multiply_and_add_are_not_contracted(place: Path) -> None:
    text = 'extern "C" __global__ void s99_test(float* a) { a[0] = a[1] * a[2] + a[3]; }\n'
    kernel = build(written(place, text))
    assert "fma" not in kernel.ptx


def test_a_config_without_fields_gives_no_constants(place: Path) -> None:
    text = 'extern "C" __global__ void s99_test(int* a) { a[0] = 1; }\n'
    assert build(written(place, text), Config()).source.startswith("#line 1")


@dataclass(frozen=True)
class Declaring(Tile):
    def declarations(self) -> str:
        return f"inline int added(int x) {{\n  return x + {self.block_m};\n}}\n"


def test_declarations_stand_between_the_constants_and_the_file(place: Path) -> None:
    """The file keeps its own line numbers; declarations have the prelude's name in the PTX, in any folder."""
    path = written(place, 'extern "C" __global__ void s99_test(int* a) {\n  a[0] = added(a[1]);\n}\n')
    kernel = build(path, Declaring(block_m=40))
    constants, _, rest = kernel.source.partition("inline int added")
    assert (
        constants == "constexpr int BLOCK_M = 40;\nconstexpr int FAST = 1;\n"
        and '}\n#line 1 "mine.cu"\nextern' in rest
    )
    files = {
        line.split(maxsplit=2)[2] for line in kernel.ptx.splitlines() if line.strip().startswith(".file")
    }
    assert files == {'"mine.cu"', f'"{jit.PRELUDE}"'}
    assert kernel.key != build(path, Declaring(block_m=48)).key
    path.write_text("int oops = added;\n" + path.read_text(), encoding="utf-8")
    assert "mine.cu:1: error" in str(refused(path, Declaring()))


# What makes it a new kernel


def test_memory_then_disk(place: Path, forget) -> None:
    path = written(place)
    first, second = build(path), build(path)
    forget()
    third = build(path)
    assert [kernel.origin for kernel in (first, second, third)] == ["compiled", "memory", "disk"]
    assert first == second == third
    assert build(path) is build(path)


def test_an_equal_config_is_the_same_kernel(place: Path) -> None:
    path = written(place)
    assert build(path, Tile(block_m=32)).key == build(path, Tile(block_m=32)).key
    assert build(path, Tile(block_m=32)).key != build(path, Tile(block_m=64)).key
    assert build(path, Tile(fast=False)).key != build(path, Tile(fast=True)).key


@pytest.mark.parametrize("age", ["just written", "old"])
def test_an_edited_file_is_compiled_again(place: Path, age: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when neither the size nor, on a coarse clock, the time of the file shows the edit."""
    if age == "old":
        monkeypatch.setattr(jit, "_SETTLED_NS", -(10**18))
    header = written(place, "constexpr int kOne = 1;\n", "one.cuh")
    path = written(place, '#include "one.cuh"\n' + KERNEL.replace("FAST", "kOne"))
    before = build(path)
    if age == "old":
        time.sleep(0.02)  # the clock of the file system ticks
    header.write_text("constexpr int kOne = 2;\n")
    after = build(path)
    assert after.origin == "compiled" and after.key != before.key and "66" in after.ptx
    path.write_text(path.read_text().replace("kOne;", "kOne * 0;"))
    assert build(path).key not in (before.key, after.key)


def test_a_settled_file_is_not_read_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(place)
    monkeypatch.setattr(jit, "_SETTLED_NS", -(10**18))
    build(path)
    monkeypatch.setattr(jit, "_read", None)
    assert build(path).origin == "memory"


def test_headers_come_from_beside_the_file_then_from_the_kernels(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = place / "kernels"
    (library / "deep").mkdir(parents=True)
    monkeypatch.setattr(jit, "HEADERS", library)
    monkeypatch.setattr(jit, "_SETTLED_NS", -(10**18))
    written(library, '#include "deep/three.cuh"\nconstexpr int kTwo = kThree - 1;\n', "two.cuh")
    written(library / "deep", '#include "four.cuh"\nconstexpr int kThree = kFour - 1;\n', "three.cuh")
    written(library / "deep", "constexpr int kFour = 4;\n", "four.cuh")
    path = written(place, '#include "two.cuh"\n' + KERNEL.replace("FAST", "kTwo"))
    before = build(path)
    assert "66" in before.ptx
    written(
        place, "constexpr int kTwo = 20;\n", "two.cuh"
    )  # the reader's own version of a header, added later
    after = build(path)
    assert "84" in after.ptx and after.key != before.key


def test_the_working_directory_is_not_searched(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    written(elsewhere, "#error from the working directory\n", "one.cuh")
    written(place, "constexpr int kOne = 1;\n", "one.cuh")
    monkeypatch.chdir(elsewhere)
    assert build(written(place, '#include "one.cuh"\n' + KERNEL)).origin == "compiled"


@pytest.mark.parametrize("part", ["flags", "compiler"])
def test_flags_and_compiler_are_part_of_the_key(
    place: Path, forget, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(place)
    before = build(path)
    forget()
    if part == "flags":
        monkeypatch.setattr(jit, "FLAGS", (*jit.FLAGS, "--extra-device-vectorization"))
    else:
        monkeypatch.setattr(jit, "compiler_version", lambda: "NVRTC 99.0")
    after = build(path)
    assert after.origin == "compiled" and after.key != before.key


def test_a_damaged_entry_is_compiled_again(place: Path, forget) -> None:
    path = written(place)
    kernel = build(path)
    forget()
    (entry,) = (place / "cache").glob("*.kernel")
    entry.write_bytes(entry.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="damaged"):
        again = build(path)
    assert again.origin == "compiled" and again.ptx == kernel.ptx


def test_without_a_disk_kernels_stay_in_memory(place: Path) -> None:
    (place / "cache").write_text("a file where the folder should be")
    path = written(place)
    with pytest.warns(UserWarning, match="memory only"):
        assert build(path).origin == "compiled"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(path).origin == "memory"


def test_threads_compile_a_kernel_once(place: Path) -> None:
    path = written(place)
    origins: list[str] = []
    threads = [threading.Thread(target=lambda: origins.append(build(path).origin)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(origins) == ["compiled", *["memory"] * 7]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_eight_processes_compile_a_kernel_once(place: Path) -> None:
    code = f"""
        import os, time
        from pathlib import Path
        from minigemm.compiler import jit
        from minigemm.types import Config

        begin = time.time() + 0.5
        for _ in range(8):
            if os.fork() == 0:
                time.sleep(max(0, begin - time.time()))
                kernel = jit.build(Path({str(written(place))!r}), Config(), name="s99_test", symbol="s99_test")
                os.write(1, f"{{kernel.origin}}\\n".encode())
                os._exit(0)
        for _ in range(8):
            assert os.wait()[1] == 0
        """
    (place / "mine.cu").write_text(KERNEL.replace("BLOCK_M + FAST", "7"))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert sorted(run.stdout.split()) == ["compiled", *["disk"] * 7]


# What a reader is told


def test_an_error_shows_the_readers_line_with_a_caret(place: Path) -> None:
    path = written(
        place, 'extern "C" __global__ void s99_test(int* a)\n{\n  int x = 1;\n\ta[0] = x + later;\n}\n'
    )
    error = refused(path)
    assert str(error).startswith(
        f"{path} does not compile (1 error)\n\n"
        'mine.cu:4: error: identifier "later" is undefined\n'
        "  3 |   int x = 1;\n"
        "  4 | \ta[0] = x + later;\n"
        "    | \t           ^\n"
    )
    assert 'identifier "later"' in error.log
    assert error.source_path is not None and str(error.source_path) in str(error)
    assert error.source_path.read_text().startswith(
        'constexpr int BLOCK_M = 64;\nconstexpr int FAST = 1;\n#line 1 "mine'
    )


def test_a_caret_stands_right_after_signs_of_several_bytes(place: Path) -> None:
    error = refused(written(place, 'extern "C" __global__ void s99_test(int* a) { /* é */ a[0] = gone; }\n'))
    line, caret = str(error).splitlines()[3:5]
    assert line.index("gone") == caret.index("^")


def test_an_error_in_a_header_names_it_and_the_line_that_led_there(place: Path) -> None:
    header = 'template <int N> __device__ int tile() {\n  static_assert(N % 16 == 0, "sixteen rows");\n  return N;\n}\n'
    written(place, header, "part.cuh")
    text = (
        '#include "part.cuh"\nextern "C" __global__ void s99_test(int* a) {\n  a[0] = tile<BLOCK_M>();\n}\n'
    )
    told = str(refused(written(place, text), Tile(block_m=40)))
    assert 'part.cuh:2: error: static assertion failed with "sixteen rows"' in told
    assert "static_assert(N % 16 == 0" in told
    assert "at line 3 of mine.cu" in told


def test_an_assembly_error_shows_the_line_of_the_source(place: Path) -> None:
    """ptxas speaks of lines of the PTX; the reader's line is the one that called the wrapper."""
    written(place, '__device__ inline void wait() {\n  asm volatile("mbarrier.nap;");\n}\n', "part.cuh")
    text = '#include "part.cuh"\nextern "C" __global__ void s99_test(int* a) {\n  a[0] = 1;\n  wait();\n}\n'
    told = str(refused(written(place, text)))
    assert "mine.cu:4: error: ptxas: Unknown modifier '.nap'" in told
    assert "  4 |   wait();" in told and "PTX: mbarrier.nap;" in told


def test_only_the_first_errors_are_shown(place: Path) -> None:
    body = "\n".join(f"  a[{number}] = gone{number};" for number in range(20))
    error = refused(written(place, f'extern "C" __global__ void s99_test(int* a)\n{{\n{body}\n}}\n'))
    assert "20 errors" in str(error) and "... and 15 more" in str(error)
    assert len(str(error).splitlines()) < 40
    assert "gone19" not in str(error) and "gone19" in error.log


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('#include "gone.cuh"\n' + KERNEL, r'mine.cu:1: error: cannot open source file "gone.cuh"'),
        ("#include <cuda_fp8.h>\n" + KERNEL, r'mine.cu:1: error: could not open source file "cuda_fp8.h"'),
        (
            KERNEL.replace("s99_test", "other"),
            r'expected extern "C" __global__ void s99_test.*in it are other',
        ),
        (
            KERNEL.replace('extern "C" ', ""),
            r'expected extern "C" __global__ void s99_test.*in it are _Z8s99_testPi',
        ),
        ("", "there is no kernel in it"),
        (KERNEL.rstrip("}\n"), r'error: expected a "}"'),
        (KERNEL.replace("BLOCK_M", "BLOCK_Q"), "BLOCK_Q"),
        ("__device__ int f(int);\n" + KERNEL.replace("FAST", "f(3)"), "Unresolved extern function"),
        (
            KERNEL.replace("{", "{ __shared__ int s[99999]; s[out[0]] = out[1]; out[2] = s[out[3]];"),
            "too much shared data",
        ),
    ],
)
def test_every_refusal_is_one_clear_message(place: Path, text: str, message: str) -> None:
    error = refused(written(place, text))
    assert error.source_path is not None and error.source_path.is_file()
    with pytest.raises(CompileError, match=message):
        raise error


def test_without_a_disk_an_error_still_names_the_source(place: Path) -> None:
    (place / "cache").write_text("a file where the folder should be")
    path = written(place, "oops")
    with pytest.warns(UserWarning, match="memory only"):
        error = refused(path)
    assert error.source_path == path and "saved" not in str(error)


def test_a_failed_compile_is_not_kept(place: Path) -> None:
    path = written(place, KERNEL.replace("FAST", "gone"))
    refused(path)
    path.write_text(KERNEL)
    assert build(path).origin == "compiled"


@pytest.mark.parametrize(
    ("make", "config", "kind", "message"),
    [
        (
            lambda folder: folder / "none.cu",
            Tile(),
            ValueError,
            "source: expected a CUDA C.. file, got .*none.cu",
        ),
        (lambda folder: folder, Tile(), ValueError, "source: expected a CUDA C.. file"),
        (lambda folder: written(folder), None, TypeError, "config: expected a Config, got NoneType"),
        (lambda folder: latin(folder), Tile(), ValueError, "source: expected UTF-8 text"),
    ],
)
def test_bad_arguments(place: Path, make, config, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        jit.build(make(place), config, name="s99_test", symbol="s99_test")


def latin(folder: Path) -> Path:
    path = folder / "latin.cu"
    path.write_bytes(KERNEL.encode() + b"// caf\xe9\n")
    return path


WGMMA = """\
extern "C" __global__ void s99_test(float* out, long long a, long long b, int n)
{
  float d[4] = {};
  for (int i = 0; i < n; i++) {
    asm volatile("wgmma.fence.sync.aligned;");
    asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, %4, %5, 1, 1, 1;"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b + i));
    d[0] += 1;
    asm volatile("wgmma.commit_group.sync.aligned;");
  }
  out[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}
"""


def test_ptxas_warnings_reach_the_reader_once(place: Path, forget) -> None:
    path = written(place, WGMMA)
    with pytest.warns(UserWarning, match=r"warning: ptxas: \(C\d+\).*serialized") as seen:
        kernel = build(path)
        build(path)
    assert len(seen) == 1
    assert "serialized" in kernel.log
    forget()
    with pytest.warns(UserWarning, match="serialized"):  # a new process, from the disk
        assert build(path).origin == "disk"


LISTING = """\
.visible .entry s99_test(
{
	.loc	1 2 0
	ld.param.u64 	%rd1, [s99_test_param_0];
	.loc	1 4 2
	.loc	2 3 32, function_name $L__info_string0, inlined_at 1 4 2
	.loc	2 2 16, function_name $L__info_string1, inlined_at 2 3 32
	// begin inline asm
	wgmma.fence.sync.aligned;
	.loc	1 5 3
	ret;
}
	.file	1 "mine.cu"
	.file	2 "part.cuh"
"""


def test_a_line_of_the_ptx_is_taken_back_to_the_source() -> None:
    assert diagnostics.locate(LISTING, 4, "mine.cu") == ("mine.cu", 2, 0)
    assert diagnostics.locate(LISTING, 9, "mine.cu") == ("mine.cu", 4, 2)  # through two inlined calls
    assert diagnostics.locate(LISTING, 9, "part.cuh") == ("part.cuh", 2, 16)  # home: the innermost
    assert diagnostics.locate(LISTING, 11, "mine.cu") == ("mine.cu", 5, 3)
    assert diagnostics.locate(LISTING, 2, "mine.cu") == ("", 0, 0)


def test_what_ptxas_says_of_unrolled_code_is_told_once() -> None:
    text = "ptxas info    : (C7517) wgmma.wait_group is injected in around line {} by compiler in function 's99_test'\n"
    log = (
        "ptxas info    : 0 bytes gmem\n"
        + text.format(9)
        + text.format(9)
        + "ptxas warning : Stack size unknown\n"
    )
    told = diagnostics.render(
        diagnostics.parse(log, LISTING, "mine.cu"), {"mine.cu": "1\n2\n3\n  fence();\n"}
    )
    assert told == (
        "mine.cu:4: warning: ptxas: (C7517) wgmma.wait_group is injected by compiler in function 's99_test'\n"
        "  3 | 3\n"
        "  4 |   fence();\n"
        "    |  ^\n"
        "    PTX: wgmma.fence.sync.aligned;\n\n"
        "warning: ptxas: Stack size unknown"
    )


def test_the_compilers_warnings_reach_the_reader(place: Path) -> None:
    with pytest.warns(UserWarning, match=r"mine.cu:3: warning: variable .unused. was declared"):
        build(written(place, KERNEL.replace("  out", "  int unused; out")))


def test_an_unused_constant_is_no_warning_and_a_stage_of_ours_is_silent(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(written(place, KERNEL.replace("BLOCK_M", "1")))
        monkeypatch.setattr(jit, "HEADERS", place)
        build(written(place, WGMMA, "s98_ours.cu"))


@pytest.mark.parametrize("missing", ["bindings", "library"])
def test_without_nvrtc_one_message_says_what_works(
    place: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jit._nvrtc.cache_clear()
    if missing == "bindings":
        monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    else:
        from cuda.bindings import nvrtc

        def absent():
            raise RuntimeError("Failed to find libnvrtc\nand where it was looked for")

        monkeypatch.setattr(nvrtc, "nvrtcVersion", absent)
    error = refused(written(place))
    assert "pip install cuda-bindings nvidia-cuda-nvrtc" in str(error) and "macOS" in str(error)
    assert "\n" not in str(error)


def test_an_old_nvrtc_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    jit._nvrtc.cache_clear()
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, 12, 3))
    assert "12.4 or newer, not 12.3" in str(refused(written(place)))


def test_a_warm_start_does_not_load_nvrtc(place: Path, forget, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(place)
    build(path)
    forget()
    jit._nvrtc.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert build(path).origin == "disk"


def test_without_wheels_nvrtc_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise jit.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(jit.metadata, "version", absent)
    assert re.fullmatch(r"NVRTC \d+\.\d+", jit.compiler_version.__wrapped__())


# What it costs


def test_a_warm_start_and_a_repeated_call_are_cheap(
    place: Path, forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits leave a slow, busy machine room; what is measured is in the results' documents."""
    path = written(place, KERNEL + "// a line of comment\n" * 300)
    monkeypatch.setattr(jit, "_SETTLED_NS", -(10**18))
    build(path)

    def best(repeats: int, prepare) -> float:
        seconds = []
        for _ in range(repeats):
            prepare()
            begin = time.perf_counter()
            build(path)
            seconds.append(time.perf_counter() - begin)
        return min(seconds)

    assert best(10, forget) < 5e-3
    assert best(200, lambda: None) < 50e-6
