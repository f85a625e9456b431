"""Clusters: ranks, distributed shared memory, cluster barriers, remote mbarriers, multicast.

What goes wrong between CTAs is tested too, each bug with a right twin.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from minigemm import emulator
from tests.emulator.nvrtc import kernel, line_of, ptx

SCHEDULES = ("late", "early", 1, 2)
SHAPES = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (4, 1, 1), (2, 2, 2), (8, 1, 1)]
ASM = r"""
typedef unsigned u32;
typedef unsigned long long u64;
__device__ __forceinline__ u32 sa(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ u32 rank() { u32 r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ u32 ranks() { u32 r; asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r)); return r; }
__device__ __forceinline__ u32 mapa(const void* p, u32 r) {
  u32 a; asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(a) : "r"(sa(p)), "r"(r)); return a; }
__device__ __forceinline__ int* far(const void* p, u32 r) {
  u64 a; asm volatile("mapa.u64 %0, %1, %2;" : "=l"(a) : "l"(p), "r"(r)); return (int*)a; }
__device__ __forceinline__ int load(u32 a) {
  int v; asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(a) : "memory"); return v; }
__device__ __forceinline__ void store(u32 a, int v) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" :: "r"(a), "r"(v) : "memory"); }
__device__ __forceinline__ void arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void await() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void sync() { arrive(); await(); }
__device__ __forceinline__ void init(u64* b, int n) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(sa(b)), "r"(n) : "memory"); }
__device__ __forceinline__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void expect(u64* b, int n) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(sa(b)), "r"(n) : "memory"); }
__device__ __forceinline__ void signal(u32 b) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" :: "r"(b) : "memory"); }
__device__ __forceinline__ void wait(u64* b, int parity) {
  int ok = 0;
  while (!ok) asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
                           "selp.b32 %0, 1, 0, p; }" : "=r"(ok) : "r"(sa(b)), "r"(parity) : "memory"); }
"""
LINES = ASM.count("\n")


def source(body: str, attributes: str = "") -> str:
    head = f'extern "C" __global__ void {attributes} k(int* o, const int* x)'
    return f"{ASM}{head} {{ const int t = threadIdx.x;\n{body}\n}}"


def launch(
    body: str,
    cluster: object = 2,
    block: int = 32,
    grid: object = None,
    o: torch.Tensor | None = None,
    x: torch.Tensor | None = None,
    **options,
) -> tuple[emulator.Report, torch.Tensor]:
    attributes = options.pop("attributes", "")
    o = torch.zeros(1024, dtype=torch.int32) if o is None else o
    x = torch.arange(1024, dtype=torch.int32) if x is None else x
    report = emulator.launch(
        ptx(source(body, attributes)),
        cluster if grid is None else grid,
        block,
        [o, x],
        cluster=cluster,
        **options,
    )
    return report, o


def found(body: str, **options) -> list[emulator.Hazard]:
    return launch(body, **options)[0].hazards


# --- ranks

REGISTERS = [
    "cluster_ctaid.x", "cluster_ctaid.y", "cluster_ctaid.z", "cluster_nctaid.x", "cluster_nctaid.y",
    "cluster_nctaid.z", "cluster_ctarank", "cluster_nctarank", "clusterid.x", "clusterid.y", "clusterid.z",
    "nclusterid.x", "nclusterid.y", "nclusterid.z",
]  # fmt: skip
RANKS = "".join(f'asm volatile("mov.u32 %0, %%{name};" : "=r"(r[{i}]));' for i, name in enumerate(REGISTERS))
RANKS = f"""
    u32 r[14]; {RANKS}
    const int cta = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    for (int i = 0; i < 14; ++i) o[cta * 16 + i] = r[i];
    o[cta * 16 + 14] = __clusterDimIsSpecified();
    o[cta * 16 + 15] = t;
"""


@pytest.mark.parametrize("schedule", ["late", 3])
@pytest.mark.parametrize("cluster", [(1, 1, 1), *SHAPES])
def test_special_registers(cluster, schedule):
    grid = tuple(n * m for n, m in zip(cluster, (2, 3, 2), strict=True))
    o = torch.zeros(math.prod(grid) * 16, dtype=torch.int32)
    launch(RANKS, cluster, 1, grid, o, schedule=schedule)
    for cta, row in enumerate(o.view(-1, 16).tolist()):
        index = (cta % grid[0], cta // grid[0] % grid[1], cta // (grid[0] * grid[1]))
        inside = [i % n for i, n in zip(index, cluster, strict=True)]
        rank = inside[0] + cluster[0] * (inside[1] + cluster[1] * inside[2])
        outside = [i // n for i, n in zip(index, cluster, strict=True)]
        assert row == [
            *inside,
            *cluster,
            rank,
            math.prod(cluster),
            *outside,
            2,
            3,
            2,
            cluster != (1, 1, 1),
            0,
        ]


@pytest.mark.parametrize("given", [(1, 1, 1), (2, 2, 1)])
def test_cluster_dims_of_the_kernel(given):
    """As a driver does: a launch that names no cluster gets the kernel's own."""
    o = torch.zeros(16 * 16, dtype=torch.int32)
    launch(RANKS, given, 1, (4, 4), o, attributes="__cluster_dims__(2, 2, 1)")
    assert o.view(-1, 16)[:, 3:6].tolist() == [[2, 2, 1]] * 16
    assert o.view(-1, 16)[:, 6].tolist() == [0, 1, 0, 1, 2, 3, 2, 3] * 2


OWN = "__cluster_dims__(2, 1, 1)"
NO_MULTIPLE = r"grid: expected a multiple of the cluster \(2, 1, 1\)"
BAD = {
    "not a multiple": ("", {"cluster": 2, "grid": 3}, NO_MULTIPLE + r" .* got \(3, 1, 1\): x is 3, no multiple of 2"),
    "not a multiple in y": ("", {"cluster": (1, 4), "grid": (4, 6)}, "y is 6, no multiple of 4"),
    "sixteen": ("", {"cluster": 16, "grid": 16}, r"cluster: expected at most 8 CTAs.* got \(16, 1, 1\)"),
    "4 by 4": ("", {"cluster": (4, 4), "grid": (4, 4)}, "cluster: expected at most 8 CTAs"),
    "another than the kernel's": (
        OWN, {"cluster": 4, "grid": 4},
        r"cluster: k is compiled for clusters of \(2, 1, 1\) CTAs \(__cluster_dims__\), got \(4, 1, 1\)",
    ),
    "the kernel's and the grid": (OWN, {"cluster": 1, "grid": 3}, NO_MULTIPLE),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_launches_that_cannot_be(name):
    attributes, options, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        launch("o[0] = t;", attributes=attributes, **options)


def test_more_warps_than_the_race_detector_follows():
    words = (
        "the race detector follows at most 240 .* 8 CTAs of 1024 threads have 256. Launch with hazards=False"
    )
    with pytest.raises(ValueError, match=f"hazards: {words}"):
        launch("o[0] = t;", 8, 1024)
    launch("sync(); o[0] = t;", 8, 1024, hazards=False)


# --- distributed shared memory


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cluster", [1, 2, (2, 2), 8])
def test_addresses(cluster, schedule):
    """The same byte by every address that it has."""
    report, o = launch("""
    __shared__ int s[32], w[32];
    s[t] = 100 * rank() + t; w[t] = 0;
    sync();
    const u32 next = (rank() + 1) % ranks(), low = mapa(s, next), n = ranks();
    int* const high = far(s, next);
    u32 owner, owner64; u64 wide; int inside, within, own, own_low, nearby;
    asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(owner) : "r"(low + 4));
    asm volatile("getctarank.u64 %0, %1;" : "=r"(owner64) : "l"(high));
    asm volatile("cvta.shared::cluster.u64 %0, %1;" : "=l"(wide) : "l"((u64)low));
    asm volatile("{ .reg .pred p; isspacep.shared::cluster p, %1; selp.b32 %0, 1, 0, p; }" : "=r"(inside) : "l"(high));
    asm volatile("{ .reg .pred p; isspacep.shared::cta p, %1; selp.b32 %0, 1, 0, p; }" : "=r"(within) : "l"(high));
    asm volatile("{ .reg .pred p; isspacep.shared p, %1; selp.b32 %0, 1, 0, p; }" : "=r"(nearby) : "l"(s));
    own = far(s, rank()) == s; own_low = mapa(s, rank()) == sa(s);
    int* const mine = o + (blockIdx.x + gridDim.x * blockIdx.y) * 64;
    mine[t] = load(low + 4 * t) - high[t] + ((int*)wide)[t] - 100 * next - t + (load(sa(s) + 4 * t) - s[t]);
    store(mapa(w, next) + 4 * t, 7 * t);
    sync();
    atomicAdd(far(w, next) + t, 1);
    asm volatile("red.shared::cluster.add.u32 [%0], 2;" :: "r"(mapa(w, next) + 4 * t) : "memory");
    sync();
    mine[t] += w[t] - 7 * t - 3;
    if (t == 0) {
      mine[32] = owner == next; mine[33] = owner64 == next; mine[34] = (u64)high == wide;
      mine[35] = inside; mine[36] = within == (n == 1);
      mine[37] = own; mine[38] = own_low; mine[39] = nearby;
    }
    sync();
    """, cluster, schedule=schedule)  # fmt: skip
    ctas = math.prod(cluster) if isinstance(cluster, tuple) else cluster
    assert o.view(-1, 64)[:ctas, :32].eq(0).all() and o.view(-1, 64)[:ctas, 32:40].eq(1).all()
    assert not report.hazards


RING = """
    __shared__ int sum[2][64];
    sum[0][t] = x[64 * rank() + t];
    int total = sum[0][t];
    FIRST
    for (int step = 1; step < ranks(); ++step) {
      store(mapa(&sum[step & 1][t], (rank() + 1) % ranks()), sum[(step & 1) ^ 1][t]);
      EACH
      total += sum[step & 1][t];
    }
    o[64 * rank() + t] = total;
    LAST
"""


def ring(first: str = "sync();", each: str = "sync();", last: str = "") -> str:
    return RING.replace("FIRST", first).replace("EACH", each).replace("LAST", last)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cluster", [2, 4, 8])
def test_a_ring_sums_over_all_ctas(cluster, schedule):
    report, o = launch(ring(), cluster, 64, schedule=schedule)
    expected = torch.arange(1024, dtype=torch.int32).view(-1, 64)[:cluster].sum(0, dtype=torch.int32)
    assert o.view(-1, 64)[:cluster].eq(expected).all() and not report.hazards
    assert report.counters["barriers"] == cluster


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("block", [32, 96, 160])
def test_a_histogram_by_remote_atomics(block, schedule):
    report, o = launch("""
    __shared__ int bins[16];
    if (t < 16) bins[t] = 0;
    sync();
    for (int i = t; i < 1024; i += blockDim.x)
      if (i % ranks() == rank()) atomicAdd(far(&bins[x[i] % 16], x[i] / 16 % ranks()), 1);
    sync();
    if (t < 16) o[16 * rank() + t] = bins[t];
    """, 4, block, schedule=schedule)  # fmt: skip
    assert o[:64].eq(16).all() and not report.hazards


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_flag_in_distributed_shared_memory_carries_order(schedule):
    body = """
    __shared__ int data, flag;
    if (t == 0) flag = data = 0;
    sync();
    if (t == 0 && rank() == 0) {
      store(mapa(&data, 1), 5);
      asm volatile("st.release.cluster.shared::cluster.u32 [%0], 1;" :: "r"(mapa(&flag, 1)) : "memory");
    }
    if (t == 0 && rank() == 1) {
      int v = 0;
      while (!v) asm volatile("ld.acquire.cluster.shared::cta.u32 %0, [%1];" : "=r"(v) : "r"(sa(&flag)) : "memory");
      o[0] = data;
    }
    sync();
    """
    report, o = launch(body, schedule=schedule)
    assert o[0] == 5 and not report.hazards
    report, _ = launch(body.replace("st.release.cluster", "st.relaxed.cluster"), schedule=schedule)
    assert {h.kind for h in report.hazards} == {"race"}


def test_a_kernel_that_knows_nothing_of_clusters():
    """The same bits and the same hazards in any cluster: shared memory, barriers, TMA loads and stores."""
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randint(-8, 8, (128, 64), generator=generator).float() for _ in range(2))
    image = torch.randint(0, 256, (256, 592), dtype=torch.uint8, generator=generator)
    racy = ("    __syncthreads();  // everybody has read it\n", "\n")
    for cluster in (1, (1, 2), (2, 2)):
        d, copy = torch.full((128, 128), float("nan")), torch.zeros_like(image)
        report = emulator.launch(kernel("tiled_sum"), (2, 2), 256, [a, b, d, 128, 64], cluster=cluster)
        assert torch.equal(d, a @ b.T) and not report.hazards
        hazards = emulator.launch(
            kernel("tiled_sum", racy), (2, 2), 256, [a, b, d, 128, 64], cluster=cluster
        ).hazards
        assert {h.kind for h in hazards} == {"race"} and all("__syncthreads()" in h.fix for h in hazards)
        maps = [emulator.TensorMap(each, (64, 128), 128) for each in (image, copy)]
        report = emulator.launch(kernel("tma_copy"), (4, 2), 96, [*maps, 5], cluster=cluster)
        assert torch.equal(copy, image ^ 1) and not report.hazards


# --- cluster barriers


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_arrive_and_wait_apart(schedule):
    """Many phases: work without order between arrival and wait, and exited threads that do not count."""
    report, o = launch("""
    __shared__ int s[96];
    if (t >= 64 && rank() == 1) return;
    s[t] = 0;
    int sum = 0;
    sync();
    for (int i = 0; i < 6; ++i) {
      if (t < 64) store(mapa(&s[t], rank() ^ 1), i + 1);
      arrive();
      sum += i;
      await();
      if (t < 64) sum += s[t];
      sync();
    }
    o[96 * rank() + t] = sum;
    """, 2, 96, schedule=schedule)  # fmt: skip
    assert not report.hazards
    assert (
        o[:64].eq(15 + 21).all()
        and o[64:96].eq(15).all()
        and o[96:160].eq(15 + 21).all()
        and o[160:192].eq(0).all()
    )


STUCK = "if (rank() == 1 && t < 32) { __shared__ u64 b; if (t == 0) init(&b, 1); __syncwarp(); wait(&b, 0); } sync();"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_deadlock_names_warps_with_their_rank(schedule):
    with pytest.raises(emulator.Deadlock) as error:
        launch(STUCK, 2, 96, schedule=schedule)
    text = str(error.value)
    assert (
        "deadlock in the cluster of CTAs (0, 0, 0) to (1, 0, 0): no thread can go on, 192 of 192 have not finished"
        in text
    )
    assert "warps 0-2 of CTA rank 0, warps 1-2 of CTA rank 1 at kernel.cu" in text
    assert "the cluster barrier, 160 of 192 threads have arrived; missing: warp 0 of CTA rank 1" in text
    assert (
        "  warp 0 of CTA rank 1 at kernel.cu" in text and "of CTA rank 1, parity 0; it is in phase 0" in text
    )


def test_a_wait_without_an_arrival():
    words = r"0 of 64 threads have arrived \(they have not arrived themselves.*"
    with pytest.raises(emulator.Deadlock, match=words + "missing: warp 0 of CTA rank 0, warp 0 of CTA"):
        launch("await();")


def test_two_arrivals_without_a_wait():
    hazards = found("arrive(); arrive(); await();")
    assert [h.kind for h in hazards] == [
        "cluster-barrier"
    ] and "arrives at the cluster barrier again, and has not waited" in hazards[0].message
    assert not found("arrive(); await(); arrive(); await();")


def test_a_cluster_barrier_in_divergent_code():
    arrive = "barrier.cluster.arrive.aligned;"
    body = f'if (t & 1) asm volatile("{arrive}"); else asm volatile("{arrive} //"); await();'
    (hazard,) = found(body, cluster=2)
    assert (
        hazard.kind == "barrier-divergence"
        and "arrived at the cluster barrier from different instructions" in hazard.message
    )
    assert not found(body.replace(".aligned", ""), cluster=2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_relaxed_arrival_publishes_what_a_fence_covers(schedule):
    body = "__shared__ int s; if (t == 0) s = rank(); FENCE relaxed(); await(); "
    body += "if (t == 0) o[rank()] = load(mapa(&s, rank() ^ 1)); sync();"
    fenced, bare = (
        body.replace("FENCE", f) for f in ('asm volatile("fence.acq_rel.cluster;" ::: "memory");', "")
    )
    report, o = launch(fenced, schedule=schedule)
    assert o[:2].tolist() == [1, 0] and not report.hazards
    assert [h.kind for h in found(bare, schedule=schedule)] == ["race"]


# --- mbarriers of other CTAs

EXCHANGE = """
    __shared__ int s[32]; __shared__ u64 b;
    if (t == 0) { init(&b, 32); fence_init(); }
    START
    for (int i = 0; i < 3; ++i) {
      store(mapa(&s[t], rank() ^ 1), 10 * i + rank());
      ARRIVE
      wait(&b, i & 1);
      o[64 * i + 32 * rank() + t] = s[t];
      sync();
    }
"""


def exchange(start: str = "sync();", arrive: str = "signal(mapa(&b, rank() ^ 1));") -> str:
    return EXCHANGE.replace("START", start).replace("ARRIVE", arrive)


def at_other(instruction: str) -> str:
    """An instruction on the mbarrier b of the other CTA, which it calls %0."""
    return f'asm volatile("{instruction};" :: "r"(mapa(&b, rank() ^ 1)) : "memory");'


ARRIVALS = {
    "release.cluster": "signal(mapa(&b, rank() ^ 1));",
    "as CUTLASS has it": at_other("mbarrier.arrive.shared::cluster.b64 _, [%0]"),
    "with a count": f"if (t == 0) {at_other('mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0], 31')}"
    " __syncwarp(); if (t == 1) signal(mapa(&b, rank() ^ 1));",
    "with bytes that come": f"""if (t) signal(mapa(&b, rank() ^ 1)); else {{
        {at_other("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], 8")}
        {at_other("mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [%0], 8")} }}""",
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("how", ARRIVALS)
def test_remote_arrivals(how, schedule):
    report, o = launch(exchange(arrive=ARRIVALS[how]), schedule=schedule)
    expected = torch.tensor([[10 * i + (r ^ 1)] * 32 for i in range(3) for r in range(2)], dtype=torch.int32)
    assert torch.equal(o[:192].view(6, 32), expected)
    if how != "with a count":  # there lane 0 arrives for the others before they have stored
        assert not report.hazards


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_relaxed_remote_arrival_publishes_nothing(schedule):
    arrival = at_other("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0]")
    assert {h.kind for h in found(exchange(arrive=arrival), schedule=schedule)} == {"race"}
    fenced = 'asm volatile("fence.acq_rel.cluster;" ::: "memory"); ' + arrival
    assert not found(exchange(arrive=fenced), schedule=schedule)


def test_too_many_arrivals_from_another_cta():
    body = """
    __shared__ u64 b;
    if (t == 0) { init(&b, 1); fence_init(); }
    sync();
    if (t == 0 && rank() == 0) expect(&b, 16);
    sync();
    if (t == 0 && rank() == 1) { ARRIVE }
    sync();
    if (t == 0 && rank() == 0) {
      asm volatile("mbarrier.complete_tx.shared::cta.b64 [%0], 16;" :: "r"(sa(&b)) : "memory");
      wait(&b, 0); }
    sync();
    """
    (hazard,) = found(body.replace("ARRIVE", "\nsignal(mapa(&b, 0));"))
    assert (
        hazard.kind == "mbarrier" and "with none pending: all 1 arrival of the phase came" in hazard.message
    )
    assert (
        hazard.parties[0] == "thread 0 of CTA rank 1"
        and "of CTA rank 0" in hazard.parties[1]
        and hazard.location.outermost.line == LINES + 9
    )
    assert not found(body.replace("ARRIVE", ""))


REMOTE = {
    "wait": ("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; }", "mbarrier.try_wait"),
    "init": ("mbarrier.init.shared::cta.b64 [%0], 1;", "mbarrier.init"),
    "arrive without ::cluster": ("mbarrier.arrive.shared::cta.b64 _, [%0];", "mbarrier.arrive"),
}


@pytest.mark.parametrize("name", REMOTE)
def test_what_reaches_only_the_own_cta(name):
    text, instruction = REMOTE[name]
    code = f'asm volatile("{text}" :: "r"(mapa(&b, 1)) : "memory");'
    body = "__shared__ u64 b; if (t == 0) { init(&b, 1); fence_init(); } sync(); "
    with pytest.raises(
        emulator.Fault,
        match="is in CTA rank 1, and this instruction reaches only the shared memory of its own CTA",
    ) as error:
        launch(f"{body} if (t == 0 && rank() == 0) {code}\n sync();")
    assert instruction in str(error.value) and "thread 0 of CTA (0, 0, 0), rank 0 of its cluster" in str(
        error.value
    )


# --- multicast and copies between CTAs


def multicast(
    ranks: int,
    *edits: tuple[str, str],
    products: bool = False,
    schedule: str | int = "late",
    clusters: int = 2,
    steps: int = 5,
    **options,
) -> tuple[emulator.Report, bool]:
    generator = torch.Generator().manual_seed(1)
    values = (
        torch.randint(-2, 3, (clusters * steps * 64, 128), generator=generator)
        .float()
        .to(torch.float8_e4m3fn)
    )
    data = values.view(torch.uint8)
    out = torch.zeros(clusters, ranks, 64 if products else 2, 8 if products else 64, dtype=torch.int32)
    edits = (*edits, ("#define PRODUCTS 0", "#define PRODUCTS 1")) if products else edits
    arguments = [emulator.TensorMap(data, (64 // ranks, 128), 128), out, steps]
    options |= {"cluster": ranks, "schedule": schedule}
    report = emulator.launch(kernel("multicast", *edits), clusters * ranks, 160, arguments, **options)
    tiles = values.view(clusters, steps, 64, 128)
    if products:
        expected = (tiles.float() @ tiles.float()[:, :, :8].mT).sum(1).view(clusters, 1, 64, 8)
        return report, bool((out.view(torch.float32) == expected).all())
    rows = tiles.view(torch.int32).sum((1, 3)).to(torch.int32).view(clusters, 1, 1, 64)
    return report, bool((out == rows).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("products", [False, True], ids=["sums", "products"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_ring_filled_by_multicast(ranks, products, schedule):
    report, right = multicast(ranks, products=products, schedule=schedule)
    assert right and not report.hazards
    tiles = 2 * 5 * 64 * 128
    assert report.counters["tma_load_bytes"] == tiles  # each byte once, whatever the number of CTAs
    assert report.counters["tma_delivered_bytes"] == ranks * tiles
    assert report.counters["tma_transactions"] == 2 * 5 * ranks


def test_multicast_under_the_cycle_model():
    report, right = multicast(2, products=True, timeline=True)
    assert right and not report.hazards and report.timeline
    assert {i.agent for i in report.timeline.intervals} == {f"warp {w}" for w in range(5)} | {
        "tensor core",
        "TMA",
    }


def test_the_report_tells_the_cluster_and_what_a_multicast_delivered():
    one, two = (multicast(ranks)[0] for ranks in (1, 2))
    assert (
        two.cluster == (2, 1, 1)
        and "grid 4, cluster 2, block 160" in str(two)
        and "loads 80.0 KiB, stores 0 B, 160.0 KiB delivered" in str(two)
    )
    assert (
        one.cluster == (1, 1, 1) and "cluster" not in str(one).split("\n")[0] and "delivered" not in str(one)
    )


COPIES = """
    __shared__ alignas(128) int s[64]; __shared__ alignas(128) int d[64]; __shared__ u64 b;
    s[t] = 100 * rank() + t; s[t + 32] = -1; d[t] = d[t + 32] = -1;
    if (t == 0) { init(&b, 1); fence_init(); }
    asm volatile("fence.proxy.async;" ::: "memory");
    sync();
    const u32 next = (rank() + 1) % ranks(), before = (rank() + ranks() - 1) % ranks();
    if (t == 0) { EXPECT ISSUE }
    __syncwarp();
    WAIT
    o[64 * rank() + t] = d[t]; o[64 * rank() + t + 32] = d[t + 32];
    sync();  // the end
"""
BULK = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
BETWEEN = f"""asm volatile("{BULK.replace("global", "shared::cta")} [%0], [%1], 128, [%2];"
    :: "r"(mapa(d, next)), "r"(sa(s)), "r"(mapa(&b, next)) : "memory");"""
FROM_GLOBAL = f"""asm volatile("{BULK} [%0], [%1], 256, [%2];"
    :: "r"(mapa(d, next)), "l"(x + 64 * rank()), "r"(mapa(&b, next)) : "memory");"""
ST_ASYNC = """for (int i = 0; i < 2; ++i)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%2, %2, 3, 4}, [%1];"
                 :: "r"(mapa(d + 4 * i, next)), "r"(mapa(&b, next)), "r"(rank()) : "memory");"""
ISSUES = {
    "between shared memories": (BETWEEN, 128, lambda rank: [100 * rank + i for i in range(32)] + [-1] * 32),
    "from global to another": (FROM_GLOBAL, 256, lambda rank: [64 * rank + i for i in range(64)]),
    "st.async": (ST_ASYNC, 32, lambda rank: [rank, rank, 3, 4] * 2 + [-1] * 56),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("how", ISSUES)
@pytest.mark.parametrize("cluster", [2, 4])
def test_copies_to_another_cta(cluster, how, schedule):
    issue, size, expected = ISSUES[how]
    body = (
        COPIES.replace("EXPECT", f"expect(&b, {size});")
        .replace("ISSUE", issue)
        .replace("WAIT", "wait(&b, 0);")
    )
    report, o = launch(body, cluster, schedule=schedule)
    assert [row.tolist() for row in o.view(-1, 64)[:cluster]] == [
        expected((rank - 1) % cluster) for rank in range(cluster)
    ]
    assert not report.hazards
    read = 0 if "shared::cta.mbarrier" in issue or "st.async" in issue else size * cluster
    assert (report.counters["tma_load_bytes"], report.counters["tma_delivered_bytes"]) == (
        read,
        size * cluster,
    )


@pytest.mark.parametrize("hint", [False, True], ids=["", "cache hint"])
@pytest.mark.parametrize("mask, receivers", [("3", {0, 1}), ("10", {1, 3}), ("15", {0, 1, 2, 3})])
def test_a_bulk_multicast_goes_to_the_ctas_of_its_mask(mask, receivers, hint):
    more, last = (".L2::cache_hint", ", %4") if hint else ("", "")
    issue = (
        f'if (rank() == 2) asm volatile("{BULK}.multicast::cluster{more} [%0], [%1], 256, [%2], %3{last};" '
    )
    issue += f':: "r"(sa(d)), "l"(x), "r"(sa(&b)), "h"((unsigned short){mask}), "l"(0x12f0000000000000ull) : "memory");'
    body = COPIES.replace("EXPECT", f"if ({mask} >> rank() & 1) expect(&b, 256);").replace("ISSUE", issue)
    report, o = launch(body.replace("WAIT", f"if ({mask} >> rank() & 1) wait(&b, 0);"), 4)
    for rank in range(4):
        assert o[64 * rank : 64 * rank + 64].tolist() == (list(range(64)) if rank in receivers else [-1] * 64)
    assert (
        not report.hazards
        and report.counters["tma_load_bytes"] == 256
        and report.counters["tma_delivered_bytes"] == 256 * len(receivers)
    )


def test_the_source_of_a_copy_between_ctas_stays_until_it_is_read():
    """Its own CTA learns that the copy is over only from the other one."""
    body = (
        COPIES.replace("EXPECT", "expect(&b, 128);")
        .replace("ISSUE", BETWEEN)
        .replace("WAIT", "LATER wait(&b, 0);")
    )
    hazards = found(body.replace("LATER", "s[t] = 5;"))
    assert "tma-store-overwritten" in {h.kind for h in hazards} and any(
        "the bulk copies of thread 0 of CTA rank" in h.message for h in hazards
    )
    assert not found(body.replace("LATER", "").replace("sync();  // the end", "sync(); s[t] = 5;"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cta_exits_while_a_copy_reads_its_shared_memory(schedule):
    body = (
        COPIES.replace("EXPECT", "if (rank()) expect(&b, 128);")
        .replace("ISSUE", "\nif (!rank()) " + BETWEEN)
        .replace("WAIT", "if (rank()) wait(&b, 0);")
    )
    line = source(body)[: source(body).index(BETWEEN)].count("\n") + 1
    hazards = found(body.replace("sync();  // the end", ""), schedule=schedule)
    assert [h.kind for h in hazards] == ["cta-exited"]
    assert 0 <= hazards[0].location.line - line <= BETWEEN.count("\n")
    assert (
        "CTA rank 0 exits while the bulk copies of thread 0 of CTA rank 0 may still read its shared memory"
        in hazards[0].message
    )
    assert not found(body, schedule=schedule)


def test_griddepcontrol_does_nothing():
    depends = 'asm volatile("griddepcontrol.launch_dependents;"); asm volatile("griddepcontrol.wait;" ::: "memory");'
    report, o = launch(f"{depends} o[32 * rank() + t] = t;")
    assert o[:64].tolist() == list(range(32)) * 2 and not report.hazards


# --- hazards, and the right twins above

END = "  __syncwarp();\n  cluster_arrive();\n  cluster_wait();\n}"
START = "  cluster_arrive();\n  cluster_wait();\n  if (warp == kConsumers)"
ARRIVE = "if (lane < ranks) arrive(remote(&empty[s], lane));"
RELAXED = START.replace(
    "cluster_arrive();", 'asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");'
)
# name: edits, kinds of which one must be there, words of its message, text in the line that it must name
# (or in the line that this is called from)
BUGS = {
    "no cluster barrier at the end": ([(END, "}")], "cta-exited", "may still arrive at its mbarrier", ARRIVE),
    "no cluster barrier at the start": (
        [(START, "  __syncthreads();\n  if (warp == kConsumers)")],
        "mbarrier-init", "but no cluster barrier stands", None,
    ),
    "a relaxed one without a fence": (
        [(START, RELAXED), ("    fence_init();\n", "")],
        "mbarrier-init", "barrier stands between", None,
    ),
    "waits for the own consumers only": (
        [("kConsumers * ranks", "kConsumers"), (ARRIVE, "if (lane == 0) arrive(remote(&empty[s], rank));")],
        "slot-overwritten|tile-overwritten", "whoever copies into it must wait for the readers there too",
        "load(tile[s]",
    ),
    "does not wait": (
        [("        wait(&empty[s], ~round & 1);\n", "")], "slot-overwritten|tile-overwritten|mbarrier", "", None,
    ),
    "released before it is read": (
        [(ARRIVE, ""), ("      wait(&full[s], round & 1);\n", f"      wait(&full[s], round & 1);\n      {ARRIVE}\n")],
        "slot-overwritten|tile-overwritten", "may still read it", "load(tile[s]",
    ),
    "counts one CTA": ([("kConsumers * ranks", "kConsumers")], "mbarrier|slot-overwritten|tile-overwritten", "", None),
    "reads before the other half": (
        [("expect(&full[s], kBytes)", "expect(&full[s], kBytes / 2)")],
        "tma-not-complete", "before that load has completed", None,
    ),
}  # fmt: skip
HANGS = {
    "expects too many": (
        [("kConsumers * ranks", "kConsumers * ranks + 1")],
        "8 of 9 arrivals came. 1 arrival missing",
    ),
    "copies to itself": (
        [("(1 << ranks) - 1", "1 << rank")],
        "4096 of 8192 expected bytes landed. 4096 bytes never landed",
    ),
    "the other has left": (
        [(START, START.replace("  if (warp", "  if (rank == 1) return;\n  if (warp"))],
        "exited|CTA rank 1 exits",
    ),
}
FAULTS = {
    "a mask of nobody": ([("(1 << ranks) - 1", "0")], "a multicast with the mask 0 names no CTA", "load(tile[s]"),
    "a mask beyond the cluster": (
        [("(1 << ranks) - 1", "0x11")],
        "a multicast with the mask 0x0011 names CTA rank 4: the cluster has 2 CTAs, ranks 0 to 1", "load(tile[s]",
    ),
    "a rank beyond the cluster": (
        [("remote(&empty[s], lane)", "remote(&empty[s], lane + 1)")],
        "mapa names CTA rank 2: the cluster has ranks 0 to 1", "arrive(remote(&empty",
    ),
    "no barrier at all": (
        [("init(&full[s], 1);", "if (!rank) init(&full[s], 1);")],
        "holds no mbarrier: nobody executed mbarrier.init there", None,
    ),
}  # fmt: skip


def findings(*edits: tuple[str, str], **options) -> list[tuple[str, str, int]]:
    """(kind, message, outermost line) of everything that was found, errors included."""
    try:
        report, _ = multicast(2, *edits, clusters=1, **options)
    except emulator.EmulatorError as error:
        own = [(type(error).__name__, str(error), error.location.outermost.line if error.location else 0)]
        return own + [(h.kind, h.message, h.location.outermost.line) for h in error.report.hazards]
    return [(h.kind, h.message, h.location.outermost.line) for h in report.hazards]


def edited_line(text: str, *edits: tuple[str, str]) -> int:
    """The line of a text after edits that may move it."""
    from tests.emulator.nvrtc import edited

    whole = edited("multicast", *edits)
    return whole[: whole.index(text)].count("\n") + 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("products", [False, True], ids=["sums", "products"])
@pytest.mark.parametrize("name", BUGS)
def test_bugs_of_a_multicast_ring(name, products, schedule):
    edits, kinds, words, line = BUGS[name]
    seen = [f for f in findings(*edits, products=products, schedule=schedule) if f[0] in kinds.split("|")]
    assert seen, findings(*edits, products=products, schedule=schedule)
    assert any(words in message for _, message, _ in seen), seen
    if line:
        assert any(at == edited_line(line, *edits) for _, _, at in seen), seen


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", HANGS)
def test_a_multicast_ring_that_hangs_says_why(name, schedule):
    edits, words = HANGS[name]
    seen = findings(*edits, schedule=schedule)
    assert seen[0][0] == "Deadlock" and any(word in seen[0][1] for word in words.split("|")), seen


@pytest.mark.parametrize("name", FAULTS)
def test_a_multicast_ring_that_faults(name):
    edits, words, line = FAULTS[name]
    with pytest.raises(emulator.Fault, match=words) as error:
        multicast(2, *edits, clusters=1)
    if line:
        assert error.value.location.outermost.line == edited_line(line, *edits)


RACES = {
    "read before it is written": (ring(each=""), "reads"),
    "written while it is read": (
        ring().replace("[step & 1]", "[0]").replace("[(step & 1) ^ 1]", "[0]"),
        "writes",
    ),
    "__syncthreads() is not enough": (ring(each="__syncthreads();"), "reads"),
    "a relaxed arrival is none": (ring(each="relaxed(); await();"), "reads"),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", RACES)
def test_races_between_ctas(name, schedule):
    body, verb = RACES[name]
    hazards = [h for h in found(body, cluster=4, block=64, schedule=schedule) if h.kind == "race"]
    assert hazards, "nothing was found"
    assert all(
        h.message.startswith("data race on shared memory: thread ") and h.location.outermost.line > LINES
        for h in hazards
    )
    assert any(f"{verb} address" in h.message for h in hazards) and "of CTA rank" in hazards[0].message
    assert any("cluster barrier between" in h.fix for h in hazards)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shared_memory_that_no_cta_wrote(schedule):
    body = "__shared__ int s[32]; if (WHO) s[t] = t; sync(); "
    body += "o[32 * rank() + t] = load(mapa(s, rank() ^ 1) + 4 * t); sync();"
    with pytest.raises(
        emulator.Fault,
        match=r"read of shared address 0x\w+ of CTA rank 1, which was never written .* of CTA \(0, 0, 0\), rank 0",
    ):
        launch(body.replace("WHO", "rank() == 0"), schedule=schedule)
    report, o = launch(body.replace("WHO", "true"), schedule=schedule)
    assert o[:64].tolist() == list(range(32)) * 2 and not report.hazards
    report, o = launch(
        "__shared__ int s[32]; sync(); store(mapa(&s[t], rank() ^ 1), t); sync(); o[32 * rank() + t] = s[t];",
        schedule=schedule,
    )
    assert o[:64].tolist() == list(range(32)) * 2 and not report.hazards


EXITS = {
    "reads": "o[t] = load(mapa(&s[t], 1));",
    "writes": "store(mapa(&s[t], 1), 3);",
    "updates": "atomicAdd(far(&s[t], 1), 3);",
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("late", [False, True], ids=["", "after the exit"])
@pytest.mark.parametrize("name", EXITS)
def test_a_cta_exits_while_another_uses_its_shared_memory(name, late, schedule):
    wait = "for (int i = 0; i < 20; ++i) __nanosleep(20);" if late else ""
    body = f"__shared__ int s[32]; s[t] = 0; sync();\nif (rank() == 0) {{ {wait} {EXITS[name]} }}\n"
    hazards = found(body, schedule=schedule)
    assert [h.kind for h in hazards] == ["cta-exited"] and hazards[0].location.outermost.line == LINES + 3
    assert (
        "CTA rank 1 exits while warp 0 of CTA rank 0 may still" in hazards[0].message
        or "of CTA rank 1, and that CTA has exited" in hazards[0].message
    )
    assert "end the kernel with a cluster barrier" in hazards[0].fix
    assert [h.kind for h in found(body + "arrive();", schedule=schedule)] == [
        "cta-exited"
    ]  # to arrive is not to wait
    assert not found(body + "sync();", schedule=schedule)
    assert not found(body + "relaxed(); await();", schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cta_exits_before_an_arrival(schedule):
    body = "__shared__ u64 b; if (t == 0) { init(&b, 1); fence_init(); } sync();\n"
    body += "if (rank() == 0 && t == 0) { SLEEP signal(mapa(&b, 1)); }\nEND"
    for sleep in ("", "for (int i = 0; i < 20; ++i) __nanosleep(20);"):
        one = body.replace("SLEEP", sleep)
        hazards = found(one.replace("END", ""), schedule=schedule)
        assert [h.kind for h in hazards] == ["cta-exited"] and "mbarrier at" in hazards[0].message
        assert hazards[0].location.outermost.line == LINES + 3
        assert not found(one.replace("END", "__syncwarp(); sync();"), schedule=schedule)
        assert not found(one.replace("END", "if (rank() == 1) wait(&b, 0);"), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cta_exits_before_a_copy_lands(schedule):
    issue = f'if (rank() == 0) asm volatile("{BULK}.multicast::cluster [%0], [%1], 256, [%2], %3;"'
    issue += ' :: "r"(sa(d)), "l"(x), "r"(sa(&b)), "h"((unsigned short)3) : "memory");'
    body = COPIES.replace("EXPECT", "expect(&b, 256);").replace("ISSUE", issue)
    leaves = body.replace("WAIT", "if (rank() == 1) return; wait(&b, 0);").replace(
        "    sync();  // the end\n", ""
    )
    hazards = found(leaves, schedule=schedule)
    assert {h.kind for h in hazards} <= {
        "cta-exited",
        "mbarrier-bytes",
        "tma-not-complete",
    } and "cta-exited" in {h.kind for h in hazards}
    words = (
        "nobody in it has waited for a copy that thread 0 of CTA rank 0 issued",
        "starts a copy to shared address",
    )
    assert any(w in h.message for h in hazards for w in words)
    assert not found(body.replace("WAIT", "wait(&b, 0);"), schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cta_that_may_not_have_begun(schedule):
    body = (
        "__shared__ int s[32]; START store(mapa(&s[t], rank() ^ 1), t);\nsync(); o[32 * rank() + t] = s[t];"
    )
    hazards = found(body.replace("START", ""), schedule=schedule)
    assert [h.kind for h in hazards] == [
        "cta-not-started"
    ] and "begin the kernel with a cluster barrier" in hazards[0].fix
    assert not found(body.replace("START", "sync();"), schedule=schedule)
    assert not found(body.replace("START", "relaxed(); await();"), schedule=schedule)


WILD = {
    "beyond the shared memory": (
        "load(mapa(s, 1) + 100000);",
        r"out-of-bounds read of 4 bytes at shared address 0x1\w+; the CTA's shared memory is \[0x400",
    ),
    "of the other by .shared": (
        'asm volatile("st.shared.u32 [%0], 1;" :: "r"(mapa(s, 1)) : "memory");',
        "the address is in that of CTA rank 1, which only .shared::cluster and generic addresses reach",
    ),
    "of nobody": ("load(mapa(s, 1) + (5 << 24));", "in CTA rank 6: the cluster has ranks 0 to 1"),
    "misaligned": ("load(mapa(s, 1) + 2);", "misaligned read"),
    "generic, beyond": ("far(s, 1)[100000] = 1;", "out-of-bounds write of 4 bytes at shared address"),
}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_wild_accesses(name):
    code, words = WILD[name]
    with pytest.raises(emulator.Fault, match=words) as error:
        launch(f"__shared__ int s[32]; s[t] = 0; sync();\nif (rank() == 0 && t == 3) {code}\nsync();")
    assert (
        error.value.location.outermost.line == LINES + 3
        and "thread (3, 0, 0) of CTA (0, 0, 0), rank 0 of its cluster" in str(error.value)
    )


def test_nothing_is_looked_for_without_hazards():
    body = ring(each="__syncthreads();")
    assert not launch(body, 4, 64, hazards=False)[0].hazards


def test_both_ctas_count_their_accesses():
    report, _ = launch(
        "__shared__ int s[32]; s[t] = t; sync(); o[32 * rank() + t] = load(mapa(&s[t], rank() ^ 1)); sync();",
        keep_requests=4,
    )
    assert report.counters["shared_store_bytes"] == report.counters["shared_load_bytes"] == 2 * 128
    assert report.counters["bank_conflicts"] == 0
    kept = [r for r in report.requests if r.space == "shared" and r.store]
    assert [r.cta for r in kept] == [0, 1] and all(r.threads == tuple(range(32)) for r in kept)


def test_line_of_the_kernel_file():
    """The file that the bugs above edit is there as they expect it."""
    assert line_of("multicast", ARRIVE) and line_of("multicast", "load(tile[s]") and np.prod(SHAPES[-1]) == 8
