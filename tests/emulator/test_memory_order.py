"""Memory order between threads: right idioms are clean, near misses are reported, under every schedule."""

from __future__ import annotations

import pytest
import torch

from minigemm import emulator
from tests.emulator.nvrtc import ptx

SCHEDULES = ("late", "early", 1, 2, 3)
ASM = r"""
__device__ __forceinline__ unsigned sa(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ int load_acquire(const int* p) {
  int v; asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(v) : "r"(sa(p)) : "memory"); return v; }
__device__ __forceinline__ int load_relaxed(const int* p) {
  int v; asm volatile("ld.relaxed.cta.shared.u32 %0, [%1];" : "=r"(v) : "r"(sa(p)) : "memory"); return v; }
__device__ __forceinline__ void store_release(int* p, int v) {
  asm volatile("st.release.cta.shared.u32 [%0], %1;" :: "r"(sa(p)), "r"(v) : "memory"); }
__device__ __forceinline__ void store_relaxed(int* p, int v) {
  asm volatile("st.relaxed.cta.shared.u32 [%0], %1;" :: "r"(sa(p)), "r"(v) : "memory"); }
__device__ __forceinline__ int lock_acquire(int* p) {
  int v; asm volatile("atom.acquire.cta.shared.cas.b32 %0, [%1], 0, 1;" : "=r"(v) : "r"(sa(p)) : "memory");
  return v; }
__device__ __forceinline__ int lock_relaxed(int* p) {
  int v; asm volatile("atom.relaxed.cta.shared.cas.b32 %0, [%1], 0, 1;" : "=r"(v) : "r"(sa(p)) : "memory"); return v; }
__device__ __forceinline__ void init(unsigned long long* b, int n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(sa(b)), "r"(n) : "memory"); }
__device__ __forceinline__ void wait(unsigned long long* b, int parity) {
  int ok = 0;
  while (!ok) asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
                        " selp.b32 %0, 1, 0, p; }" : "=r"(ok) : "r"(sa(b)), "r"(parity) : "memory"); }
__device__ __forceinline__ void copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(sa(to)), "l"(from) : "memory"); }
#define COMMIT asm volatile("cp.async.commit_group;" ::: "memory")
#define WAIT(n) asm volatile("cp.async.wait_group " #n ";" ::: "memory")
"""
LINES = ASM.count("\n")


def launch(
    body: str,
    block: int,
    *args: torch.Tensor,
    schedule: str | int = "late",
    parameters: str = "int* o",
    grid: int = 1,
) -> emulator.Report:
    source = f'{ASM}extern "C" __global__ void k({parameters}) {{ const int t = threadIdx.x;\n{body}\n}}'
    return emulator.launch(ptx(source), grid, block, args, schedule=schedule)


def zeros(n: int = 64) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32)


def kinds(body: str, block: int, schedule: str | int = "late", **options) -> list[str]:
    return [h.kind for h in launch(body, block, zeros(1024), schedule=schedule, **options).hazards]


FLAG = """
    __shared__ int flag; __shared__ int d;
    if (t == 0) flag = 0;
    __syncthreads();
    if (t == 32) { d = o[5] + t; %s }
    if (t == 0) { %s o[0] = d; }
"""
LOCK = """
    __shared__ int lock; __shared__ int d;
    if (t == 0) { lock = 0; d = 0; }
    __syncthreads();
    if ((t & 31) == 0) for (int i = 0; i < 3; ++i) { %s d += 1; %s }
    __syncthreads();
    o[t] = d;
"""
VOLATILE = "*(volatile int*)&flag"
WARP_SUM = """
    __shared__ volatile int s[64];
    s[t] = t;
    SYNC
    for (int n = 16; n; n >>= 1) { int v = 0; if (t < n) v = s[t + n]; SYNC if (t < n) s[t] += v; SYNC }
    o[t] = s[0];
"""
FENCE = "__threadfence_block();"
DEVICE_FENCE = "__threadfence();"
SET = "store_relaxed(&flag, 1);"
AWAIT = "while (!load_relaxed(&flag)) {}"
AWAIT_VOLATILE = f"while (!{VOLATILE})"
ACQUIRE = "while (!load_acquire(&flag)) {}"
RELEASE = "store_release(&flag, 1);"
GLOBAL = "*(volatile int*)(o + 9)"
TAKE = "while (atomicCAS(&lock, 0, 1)) {}"
RIGHT = {
    "flag: volatile and fences": FLAG % (f"{FENCE} {VOLATILE} = 1;", f"{AWAIT_VOLATILE} {{}} {FENCE}"),
    "flag: volatile, fences, sleep": FLAG
    % (f"{DEVICE_FENCE} {VOLATILE} = 1;", f"{AWAIT_VOLATILE} __nanosleep(20); {DEVICE_FENCE}"),
    "flag: atomics and fences": FLAG
    % (f"{FENCE} atomicExch(&flag, 1);", f"while (!atomicAdd(&flag, 0)) {{}} {FENCE}"),
    "flag: relaxed and fences": FLAG % (f"{FENCE} {SET}", f"{AWAIT} {FENCE}"),
    "flag: release and acquire": FLAG % (RELEASE, ACQUIRE),
    "flag: release, relaxed and fence": FLAG % (RELEASE, f"{AWAIT} {FENCE}"),
    "flag: fence and relaxed, acquire": FLAG % (f"{FENCE} {SET}", ACQUIRE),
    "flag: in global memory": FLAG
    % (f"{DEVICE_FENCE} {GLOBAL} = 1;", f"while (!{GLOBAL}) {{}} {DEVICE_FENCE}"),
    "lock: fences": LOCK % (f"{TAKE} {FENCE}", f"{FENCE} atomicExch(&lock, 0);"),
    "lock: volatile release": LOCK % (f"{TAKE} {FENCE}", f"{FENCE} *(volatile int*)&lock = 0;"),
    "lock: acquire and release": LOCK % ("while (lock_acquire(&lock)) {}", "store_release(&lock, 0);"),
    "lock: in global memory": LOCK
    % (
        f"while (atomicCAS(o + 900, 0, 1)) {{}} {DEVICE_FENCE}",
        f"{DEVICE_FENCE} atomicExch(o + 900, 0);",
    ),
    "chain of flags": """
    __shared__ int flag[4]; __shared__ int d;
    if (t < 4) flag[t] = 0;
    __syncthreads();
    const int w = t >> 5;
    if ((t & 31) == 0) {
      if (w == 0) d = 7; else { while (!load_relaxed(&flag[w - 1])) {} __threadfence_block(); d += 1; }
      __threadfence_block(); store_relaxed(&flag[w], 1);
      if (w == 3) o[0] = d;
    }""",
    "volatile sums of a warp": WARP_SUM.replace("SYNC", "__syncwarp();"),
    "volatile data and barriers": "__shared__ volatile int s[64]; s[t] = t; __syncthreads(); o[t] = s[63 - t];",
    "counter": "__shared__ int s; if (t == 0) s = 0; __syncthreads(); atomicAdd(&s, 1); __syncthreads(); o[t] = s;",
    "histogram, fence between": """
    __shared__ int h[16]; if (t < 16) h[t] = 0; __syncthreads();
    for (int i = 0; i < 40; ++i) atomicAdd(&h[(t * 7 + i) & 15], 1);
    __threadfence(); atomicAdd(o + 99, 1); __syncthreads(); if (t < 16) o[t] = h[t];""",
    "histogram after a fence": """
    __shared__ int h[16]; if (t < 16) h[t] = 0; __syncthreads(); __threadfence();
    for (int i = 0; i < 400; ++i) atomicAdd(&h[(t * 7 + i) & 15], 1);
    __syncthreads(); if (t < 16) o[t] = h[t];""",
    "plain, atomics, plain": """
    __shared__ int s;
    for (int i = 0; i < 3; ++i) {
      if (t == 0) s = i;
      __syncthreads(); atomicAdd(&s, 1); __syncthreads(); o[t] += s; __syncthreads();
    }""",
    "shuffle, then a warp barrier": """
    __shared__ int s[64]; s[t] = t;
    int v = __shfl_xor_sync(~0u, t, 1); __syncwarp(); o[t] = s[t ^ 1] + v;""",
}
WRITE = "__shared__ int s[64]; s[t] = t;"
READ = "o[t] = s[t ^ 1] + v;"
ZERO = "__shared__ int s; if (t == 0) s = 0;"
COUNT = f"{ZERO} __syncthreads(); atomicAdd(&s, 1);"
WRONG = {
    "flag: no fence before it": FLAG % (SET, f"{AWAIT} {FENCE}"),
    "flag: no fence after it": FLAG % (f"{FENCE} {SET}", AWAIT),
    "flag: fence before the data": FLAG.replace("d = o[5] + t; %s", "%s")
    % (f"{FENCE} d = o[5] + t; {SET}", f"{AWAIT} {FENCE}"),
    "flag: release, relaxed without fence": FLAG % (RELEASE, AWAIT),
    "flag: volatile without fences": FLAG % (f"{VOLATILE} = 1;", f"{AWAIT_VOLATILE} {{}}"),
    "lock: relaxed, released without fence": LOCK
    % ("while (lock_relaxed(&lock)) {}", "store_relaxed(&lock, 0);"),
    "fence instead of a barrier": f"{WRITE} {FENCE} o[t] = s[63 - t];",
    "device fence instead of a barrier": f"{WRITE} {DEVICE_FENCE} o[t] = s[63 - t];",
    "shuffle instead of a barrier": f"{WRITE} int v = __shfl_xor_sync(~0u, t, 1); {READ}",
    "vote instead of a barrier": f"{WRITE} int v = __ballot_sync(~0u, t & 1); {READ}",
    "reduction instead of a barrier": f"{WRITE} int v = __reduce_add_sync(~0u, t); {READ}",
    "match instead of a barrier": f"{WRITE} int v = __match_any_sync(~0u, t & 1); {READ}",
    "ldmatrix without a barrier": """__shared__ alignas(16) int s[64]; s[t] = t; unsigned v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(v) : "r"(sa(s + 32 * (t >> 5) + 4 * (t & 7))) : "memory");
    o[t] = v;""",
    "atomics, not waiting for the initialisation": f"{ZERO} atomicAdd(&s, 1); __syncthreads(); o[t] = s;",
    "atomics, only a warp barrier after the initialisation": (
        f"{ZERO} __syncwarp(); atomicAdd(&s, 1); __syncthreads(); o[t] = s;"
    ),
    "atomics, then the last thread reads": f"{COUNT} if (t == blockDim.x - 1) o[0] = s;",
    "atomics, then the first thread reads": f"{COUNT} if (t == 0) o[0] = s;",
    "atomics, then the last thread writes": f"{COUNT} if (t == blockDim.x - 1) s = 0;",
    "volatile data": "__shared__ volatile int s[64]; s[t] = 0; __syncthreads(); s[t] = t; o[t] = s[63 - t];",
    "volatile data, first written": "__shared__ volatile int s[64]; s[t] = t; o[t] = s[63 - t];",
    "volatile data in a warp": (
        "__shared__ volatile int s[64]; s[t] = 0; __syncthreads(); s[t] = t; o[t] = s[t ^ 1];"
    ),
    "volatile sums of a warp": WARP_SUM.replace("SYNC", ""),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_idioms_are_clean(name, schedule):
    block = {"chain of flags": 128, "volatile sums of a warp": 32}.get(name, 64)
    report = launch(RIGHT[name], block, zeros(1024), schedule=schedule)
    assert not report.hazards, report.hazards[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WRONG)
def test_near_misses_are_races(name, schedule):
    assert "race" in kinds(WRONG[name], 64 if "volatile sums" not in name else 32, schedule)


def test_a_lock_by_many_warps():
    o = zeros(1024)
    body = LOCK % (
        "while (atomicCAS(&lock, 0, 1)) {} __threadfence_block();",
        "__threadfence_block(); atomicExch(&lock, 0);",
    )
    assert not launch(body, 1024, o).hazards
    assert set(o.tolist()) == {96}


def test_the_line_of_each_party():
    body = "__shared__ int s;\nif (t == 0) s = 0;\natomicAdd(&s, 1);\n__syncthreads();\no[t] = s;"
    (race,) = launch(body, 64, zeros()).hazards
    assert race.location.line == LINES + 4
    expected = f"updates atomically address 0x400 that warp 0 (lane 0) wrote at kernel.cu:{LINES + 3}"
    assert expected in race.message

    body = (
        "__shared__ int s;\nif (t == 0) s = 0;\n__syncthreads();\natomicAdd(&s, 1);\nif (t == 63) o[t] = s;"
    )
    (race,) = launch(body, 64, zeros()).hazards
    assert race.location.line == LINES + 6
    assert f"reads address 0x400 that warp 0 (lane 31) wrote at kernel.cu:{LINES + 5}" in race.message


@pytest.mark.parametrize("rounds", [1, 2, 3, 50])
def test_many_races_are_no_fault(rounds):
    """Records of races that do not fit must not turn the rest into reads that nothing explains."""
    body = f"__shared__ int s[1024]; for (int i = 0; i < {rounds}; ++i) {{ s[t] = i; o[t] += s[1023 - t]; }}"
    assert "race" in kinds(body, 1024)


# --- asynchronous copies

COPY = """
    __shared__ __align__(16) int s[64];
    if (t < 16) copy16(s + 4 * t, x + 4 * t);
    COMMIT;
    %s
    o[t] = s[63 - t];
"""


def copy(after: str, schedule: str | int) -> tuple[list[str], torch.Tensor]:
    x, o = torch.arange(64, dtype=torch.int32), zeros()
    report = launch(COPY % after, 64, x, o, parameters="const int* x, int* o", schedule=schedule)
    return [h.kind for h in report.hazards], o


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cp_async(schedule):
    found, o = copy("WAIT(0); __syncthreads();", schedule)
    assert not found and o.tolist() == list(range(63, -1, -1))
    assert "copy-not-complete" in copy("__syncthreads();", schedule)[0]
    assert "copy-not-complete" in copy("WAIT(1); __syncthreads();", schedule)[0]
    assert set(copy("WAIT(0);", schedule)[0]) & {"copy-not-complete", "race"}
    assert "race" in copy("__syncthreads(); WAIT(0);", schedule)[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cp_async_groups(schedule):
    """Two buffers, one copy ahead; then the copy into the buffer that is still being read."""
    body = """
    __shared__ __align__(16) int s[2][64];
    if (t < 16) copy16(s[0] + 4 * t, x + 4 * t);
    COMMIT;
    for (int i = 0; i < 4; ++i) {
      if (i < 3 && t < 16) copy16(s[(i + 1) & 1] + 4 * t, x + 64 * (i + 1) + 4 * t);
      COMMIT;
      WAIT(1);
      __syncthreads();
      o[t] += s[i & 1][63 - t];
      SYNC
    }"""
    x = torch.arange(256, dtype=torch.int32)
    o = zeros()
    right = launch(
        body.replace("SYNC", "__syncthreads();"),
        64,
        x,
        o,
        parameters="const int* x, int* o",
        schedule=schedule,
    )
    assert not right.hazards and torch.equal(o, x.view(4, 64).sum(0, dtype=torch.int32).flip(0))
    assert launch(
        body.replace("SYNC", ""), 64, x, zeros(), parameters="const int* x, int* o", schedule=schedule
    ).hazards


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind, count", [(".noinc", 128), ("", 64)])
def test_cp_async_that_arrives_on_an_mbarrier(kind, count, schedule):
    body = """
    __shared__ __align__(16) int s[256]; __shared__ unsigned long long b;
    if (t == 0) init(&b, COUNT);
    __syncthreads();
    copy16(s + 4 * t, x + 4 * t);
    asm volatile("cp.async.mbarrier.arriveKIND.shared.b64 [%0];" :: "r"(sa(&b)) : "memory");
    asm volatile("{ .reg .b64 r; mbarrier.arrive.shared.b64 r, [%0]; }" :: "r"(sa(&b)) : "memory");
    WAITS
    for (int i = t; i < 256; i += 64) o[i] = s[255 - i];""".replace("COUNT", str(count)).replace("KIND", kind)
    x, o = torch.arange(256, dtype=torch.int32), zeros(256)
    report = launch(
        body.replace("WAITS", "wait(&b, 0);"), 64, x, o, parameters="const int* x, int* o", schedule=schedule
    )
    assert not report.hazards and torch.equal(o, x.flip(0))
    report = launch(body.replace("WAITS", ""), 64, x, o, parameters="const int* x, int* o", schedule=schedule)
    assert {h.kind for h in report.hazards} & {"copy-not-complete", "race"}


BULK_STORE = """
    __shared__ alignas(128) int s[256];
    for (int i = t; i < 256; i += 64) s[i] = i;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (t == 0) {
      asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], 1024;" :: "l"(o), "r"(sa(s)) : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
      BEFORE
      asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
      AFTER
    }
    OTHERS
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("place", ["BEFORE", "AFTER", "OTHERS"])
@pytest.mark.parametrize("write", ["s[3] = 77;", "atomicAdd(s + 3, 77);", "*(volatile short*)(s + 3) = 7;"])
def test_the_source_of_a_bulk_store_is_left_alone(write, place, schedule):
    others = {"OTHERS": "if (t == 40) {" + write + "}"}
    body = BULK_STORE
    for name in ("BEFORE", "AFTER", "OTHERS"):
        body = body.replace(name, others.get(name, write) if name == place else "")
    o = zeros(256)
    report = launch(body, 64, o, schedule=schedule)
    found = [h.kind for h in report.hazards]
    if place == "OTHERS":  # which of the two comes first is open
        assert found in (["tma-store-overwritten"], ["tma-store-too-early"])
    elif place == "BEFORE":
        assert found == ["tma-store-overwritten"]
    else:
        assert not found
        assert o.tolist() == list(range(256))
