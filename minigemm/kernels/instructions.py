"""Instructions whose text depends on a config: the prelude gets the one shape that a kernel needs."""

from __future__ import annotations

__all__ = ["wgmma"]


def wgmma(n: int) -> str:
    """CUDA C++ of `wgmma_mma_async(d, a, b, accumulate)`: d (64, n) = a (64, 32) b (n, 32)^T, plus d where `accumulate`.

    a and b are e4m3 tiles in shared memory, named by descriptors; d is FP32, each thread of the warpgroup holding n / 2 elements. n is a
    multiple of 8 up to 256. The instruction lists every one of these registers, which is why its text cannot be written for all n at once.
    Source: https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma
    """
    count = n // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    a, b, accumulate = count, count + 1, count + 2
    return f"""\
inline void wgmma_mma_async(float (&d)[{count}], unsigned long long a, unsigned long long b, bool accumulate) {{
  asm volatile("{{\\n"
               ".reg .pred p;\\n"
               "setp.ne.b32 p, %{accumulate}, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{n}k32.f32.e4m3.e4m3 {{{registers}}}, %{a}, %{b}, p, 1, 1;\\n"
               "}}"
               : {operands}
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
}}
"""
