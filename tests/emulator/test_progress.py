"""Loops that wait: for what is in flight, for another CTA, for memory. Loops that wait in vain must end."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from minigemm import emulator
from minigemm.emulator.machine import progress
from tests.emulator.nvrtc import ptx

SCHEDULES = ("late", "early", 1, 2)
VOTE = "__ballot_sync(~0u, t & 1)"
ACQUIRE = 'asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(f) : "memory");'


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """A hang is a failure."""

    def give_up(*_: object) -> None:
        raise TimeoutError("the launch does not end")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def launch(
    body: str, grid: int, block: int, *args: torch.Tensor | int, parameters: str = "int* o", **options
) -> emulator.Report:
    return emulator.launch(
        ptx(f'extern "C" __global__ void k({parameters}) {{ const int t = threadIdx.x; {body} }}'),
        grid,
        block,
        args,
        **options,
    )


def zeros(n: int = 4) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int32)


TEST_WAIT = """
    __shared__ alignas(16) int s[4];
    __shared__ unsigned long long b;
    const unsigned m = (unsigned)__cvta_generic_to_shared(&b), d = (unsigned)__cvta_generic_to_shared(s);
    if (t == 0) asm volatile("mbarrier.init.shared.b64 [%0], 1;" :: "r"(m) : "memory");
    __syncthreads();
    for (int round = 0; round < 3; ++round) {
      if (t == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], 16;" :: "r"(m) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], 16, [%2];"
                     :: "r"(d), "l"(x + 4 * round), "r"(m) : "memory");
      }
      int ok = 0;
      while (!ok) {
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.b32 %0, 1, 0, p; }"
                     : "=r"(ok) : "r"(m), "r"(round & 1) : "memory");
        BODY
      }
      o[t] += s[t & 3];
      __syncthreads();
    }
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "body",
    [
        "",
        "__nanosleep(20);",
        "if (!ok) __nanosleep(20);",
        "__syncwarp(1u << (t & 31));",
        "__threadfence_block();",
    ],
)
def test_a_loop_of_test_wait_gets_its_load(body, schedule):
    o, x = zeros(64), torch.arange(1, 13, dtype=torch.int32)
    report = launch(
        TEST_WAIT.replace("BODY", body), 1, 64, o, x, parameters="int* o, const int* x", schedule=schedule
    )
    assert not report.hazards
    assert torch.equal(o, x.view(3, 4).sum(0, dtype=torch.int32).repeat(16))


def test_a_loop_of_test_wait_under_the_cycle_model():
    o, x = zeros(64), torch.arange(1, 13, dtype=torch.int32)
    assert launch(
        TEST_WAIT.replace("BODY", "__nanosleep(20);"),
        1,
        64,
        o,
        x,
        parameters="int* o, const int* x",
        timeline=True,
    ).timeline
    assert torch.equal(o, x.view(3, 4).sum(0, dtype=torch.int32).repeat(16))


SPINS = {
    "nothing": "while (f[0] == 0) {}",
    "sleep": "while (f[0] == 0) __nanosleep(100);",
    "fence": "while (f[0] == 0) __threadfence();",
    "warp barrier": "while (f[0] == 0) __syncwarp();",
    "vote": f"while (f[0] == 0) if ({VOTE} == 7) break;",
    "barrier": "while (!__syncthreads_or(f[0])) {}",
    "atomic": "while (atomicAdd((int*)f, 0) == 0) {}",
    "acquire": f"for (int v = 0; !v;) {ACQUIRE}",
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spin", SPINS)
def test_one_cta_waits_for_the_next(spin, schedule):
    f, o = zeros(), zeros()
    body = f"if (blockIdx.x == 0) {{ {SPINS[spin]} o[0] = 1; }} else {{ f[0] = 1; }}"
    launch(body, 2, 32, f, o, parameters="volatile int* f, int* o", schedule=schedule)
    assert o[0] == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spin", SPINS)
@pytest.mark.parametrize("ctas", [1, 2])
def test_what_nobody_sets_is_a_deadlock(spin, ctas, schedule):
    with pytest.raises(emulator.Deadlock, match=r"kernel\.cu:1.*nothing can change"):
        launch(
            f"{SPINS[spin]} o[0] = 1;",
            ctas,
            32,
            zeros(),
            zeros(),
            parameters="volatile int* f, int* o",
            schedule=schedule,
        )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_spinning_warps_see_the_flag_of_their_own_cta(schedule):
    o = zeros()
    launch(
        "if (t == 32) o[0] = 1; if (t < 32) { while (o[0] == 0) __nanosleep(32); o[1] = 1; }",
        1,
        64,
        o,
        parameters="volatile int* o",
        schedule=schedule,
    )
    assert o.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("body, start, end", [
    ("while (atomicAdd((int*)o, 1) < 1000000) {} o[1] = 1;", 0, 1000001),
    ("while (o[0] > 0) o[0] = o[0] - 1; o[1] = 1;", 1000000, 0),
    ("while (o[0] < 3000) { o[0] = o[0] + 1; __nanosleep(1); } o[1] = 1;", 0, 3000),
])  # fmt: skip
def test_progress_in_memory_alone_is_progress(body, start, end):
    o = zeros()
    o[0] = start
    launch(body, 1, 1, o, parameters="volatile int* o")
    assert o.tolist()[:2] == [end, 1]


def test_a_queue_that_is_emptied_by_all():
    q, h = zeros(1), zeros(64)
    launch(
        "for (int i; (i = atomicAdd(q, 1)) < 200000;) atomicAdd(h + (i & 63), 1);",
        3,
        32,
        q,
        h,
        parameters="int* q, int* h",
    )
    assert h.sum() == 200000


def test_a_loop_that_only_counts_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr(progress, "MANY_ROUNDS", 1000)
    with pytest.raises(emulator.EmulatorError, match="no end after"):
        launch(
            "int n = 0; while (f[0] == 0) { ++n; __nanosleep(1); } o[0] = n;", 1, 1, zeros(), zeros(),
            parameters="volatile int* f, int* o", instruction_limit=2e7,
        )  # fmt: skip


@pytest.mark.parametrize("one, other, names", [
    ("__ballot_sync(~0u, t & 1)", "__any_sync(~0u, t & 1)", ("vote.sync.ballot", "vote.sync.any")),
    ("__shfl_xor_sync(~0u, t, 1)", "__shfl_down_sync(~0u, t, 2)", ("shfl.sync.bfly", "shfl.sync.down")),
    ("__shfl_xor_sync(~0u, t, 1)", "__all_sync(~0u, t)", ("shfl.sync.bfly", "vote.sync.all")),
])  # fmt: skip
def test_collectives_of_different_kinds_do_not_meet(one, other, names):
    with pytest.raises(emulator.Deadlock) as error:
        launch(f"int v; if (t < 16) v = {one}; else v = {other}; o[t] = v;", 1, 32, zeros(32))
    assert all(f"{name}" in str(error.value) for name in names)
    assert "16 of 32 lanes have come" in str(error.value)


def test_the_same_collective_meets_from_two_branches():
    o = zeros(32)
    shuffle = "v = __shfl_xor_sync(~0u, t, 16);"
    body = f"int v; if (t < 16) {{ {shuffle} v += 100; }} else {{ {shuffle} v += 200; }} o[t] = v;"
    launch(body, 1, 32, o)
    assert o.tolist() == [(t ^ 16) + (100 if t < 16 else 200) for t in range(32)]


def test_the_lane_that_is_not_in_the_mask_is_named():
    with pytest.raises(emulator.Fault, match=r"lane 16 executes .* thread 16 of CTA"):
        launch("if (t < 20) o[t] = __shfl_sync(0xffff, t, 2);", 1, 32, zeros(32))
