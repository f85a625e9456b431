"""CUDA C++ to PTX for the emulator's own tests, which use nothing else of minigemm."""

from __future__ import annotations

from functools import cache
from pathlib import Path

KERNELS = Path(__file__).parent / "kernels"


@cache
def ptx(source: str, name: str = "kernel.cu", *options: str) -> str:
    from cuda.bindings import nvrtc

    def check(answer: tuple) -> tuple:
        assert answer[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS, answer
        return answer[1:]

    (program,) = check(nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    flags = [
        b"--gpu-architecture=compute_90a",
        b"--std=c++17",
        b"-lineinfo",
        b"-default-device",
        b"-fmad=false",
    ]
    flags += [option.encode() for option in options]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        (size,) = check(nvrtc.nvrtcGetProgramLogSize(program))
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise AssertionError(log.decode())
    (size,) = check(nvrtc.nvrtcGetPTXSize(program))
    text = b" " * size
    check(nvrtc.nvrtcGetPTX(program, text))
    return text.decode().rstrip("\0")


def kernel(name: str, *edits: tuple[str, str]) -> str:
    """PTX of `kernels/NAME.cu` after text edits; each edit's first string must occur."""
    return ptx(edited(name, *edits), f"{name}.cu")


def edited(name: str, *edits: tuple[str, str]) -> str:
    text = (KERNELS / f"{name}.cu").read_text()
    for old, new in edits:
        assert old in text, f"{old!r} is not in {name}.cu"
        text = text.replace(old, new, 1)
    return text


def line_of(name: str, text: str) -> int:
    """The line of `kernels/NAME.cu` on which `text` first stands."""
    source = (KERNELS / f"{name}.cu").read_text()
    return source[: source.index(text)].count("\n") + 1
