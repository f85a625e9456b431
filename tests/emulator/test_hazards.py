"""Bugs planted by text edits in two small kernels.

Each bug is found under every schedule, with its cause and line, and the right kernels are clean.
"""

from __future__ import annotations

import pytest
import torch

from minigemm import emulator
from tests.emulator.nvrtc import kernel, line_of

SCHEDULES = ("late", "early", 1, 2, 3)


def run_copy(
    *edits: tuple[str, str], schedule: str | int = "late", threads: int = 128, width: int = 592
) -> tuple[emulator.Report, bool]:
    generator = torch.Generator().manual_seed(7)
    a = torch.randint(0, 256, (100, width), dtype=torch.uint8, generator=generator)
    d = torch.zeros_like(a)
    maps = [emulator.TensorMap(t, (64, 128), 128) for t in (a, d)]
    report = emulator.launch(
        kernel("tma_copy", *edits), 2, threads, [*maps, -(-width // 128)], schedule=schedule
    )
    return report, torch.equal(d, a ^ 1)


def run_sum(
    *edits: tuple[str, str], schedule: str | int = "late", k: int = 64
) -> tuple[emulator.Report, bool]:
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randint(-8, 8, (128, k), generator=generator).float() for _ in range(2))
    d = torch.full((128, 128), float("nan"))
    report = emulator.launch(kernel("tiled_sum", *edits), (2, 2), 256, [a, b, d, 128, k], schedule=schedule)
    return report, torch.equal(d, a @ b.T)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("threads", [32, 96, 128, 256])
def test_right_copy_is_clean(schedule, threads):
    report, right = run_copy(schedule=schedule, threads=threads)
    assert right and not report.hazards


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("k", [16, 64, 160])
def test_right_sum_is_clean(schedule, k):
    report, right = run_sum(schedule=schedule, k=k)
    assert right and not report.hazards


SYNC_BEFORE_STORE = "    proxy_fence();\n    __syncthreads();"
SYNC_AT_INIT = "    proxy_fence();\n  }\n  __syncthreads();"
WAIT = "    wait(&full, step & 1);\n"
READ = "((u32*)tile)[i]"
# name: an edit, the kind of the hazard, words of its message, text whose line it must name
COPY_BUGS = {
    "no proxy fence": (
        (SYNC_BEFORE_STORE, "    __syncthreads();"),
        "proxy-fence", "missing fence.proxy.async", None,
    ),
    "no barrier before the store": (
        (SYNC_BEFORE_STORE, "    proxy_fence();"),
        "tma-store-too-early", "no barrier between", None,
    ),
    "no wait for the tile": (
        (WAIT, "\n"),
        "tma-not-complete", "does not wait", READ,
    ),
    "one thread waits for all": (
        (WAIT, "    if (threadIdx.x == 0) wait(&full, step & 1);\n"),
        "tma-not-complete", "does not wait", READ,
    ),
    "no barrier after init": (
        (SYNC_AT_INIT, "    proxy_fence();\n  }\n"),
        "mbarrier-init", "", None,
    ),
    "store never awaited": (
        ("      wait_read();\n", "\n"),
        "tma-store-not-awaited", "never waited", None,
    ),
    "no commit": (
        ("      commit();\n", "\n"),
        "tma-store-not-awaited", "never waited", None,
    ),
    "barrier word overwritten": (
        (WAIT, WAIT + "    if (threadIdx.x == 1) *(volatile u32*)&full = 5;\n"),
        "mbarrier-access", "live mbarrier", None,
    ),
    "initialised twice": (
        ("    init(&full, 1);\n", "    init(&full, 1); init(&full, 1);\n"),
        "mbarrier", "live mbarrier", None,
    ),
}  # fmt: skip
COPY_HANGS = {
    "inverted parity": (("wait(&full, step & 1)", "wait(&full, ~step & 1)"), "parity"),
    "too few bytes expected": (("expect(&full, kBytes)", "expect(&full, kBytes / 2)"), "unannounced"),
    "too many bytes expected": (("expect(&full, kBytes)", "expect(&full, kBytes + 16)"), "never landed"),
    "count too large": (("init(&full, 1)", "init(&full, 2)"), "arrival"),
    "parity never flips": (("wait(&full, step & 1)", "wait(&full, 0)"), ""),
    "load left out": (("      load(tile, &in, step * kWidth, y, &full);\n", "\n"), "never landed"),
}


def findings(run, *edits, **options) -> list[tuple[str, str, int]]:
    """Return (kind, message, outermost line) of everything that was found, errors included."""
    try:
        report, _ = run(*edits, **options)
    except emulator.EmulatorError as error:
        return [(type(error).__name__, str(error), error.location.outermost.line if error.location else 0)]
    return [(h.kind, h.message, h.location.outermost.line) for h in report.hazards]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("threads", [64, 128])
@pytest.mark.parametrize("name", COPY_BUGS)
def test_copy_bugs(name, threads, schedule):
    edit, kind, words, line = COPY_BUGS[name]
    found = findings(run_copy, edit, schedule=schedule, threads=threads)
    # A later warp may meet the barrier before it is there.
    if name == "no barrier after init" and found[0][0] == "Fault":
        assert "nobody executed mbarrier.init" in found[0][1]
        return
    assert kind in [f[0] for f in found], found
    assert any(words in f[1] for f in found if f[0] == kind)
    if line:
        assert any(f[2] == line_of("tma_copy", line) for f in found if f[0] == kind)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", COPY_HANGS)
def test_copy_hangs_and_says_why(name, schedule):
    edit, words = COPY_HANGS[name]
    found = findings(run_copy, edit, schedule=schedule)
    assert found, "nothing was found"
    assert any(words in message for _, message, _ in found), found


SUM_BUGS = {
    "no barrier after the load": ("    __syncthreads();  // the tile is there\n", "\n"),
    "no barrier before the next load": ("    __syncthreads();  // everybody has read it\n", "\n"),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("k", [32, 96])
@pytest.mark.parametrize("name", SUM_BUGS)
def test_sum_races(name, k, schedule):
    found = findings(run_sum, SUM_BUGS[name], schedule=schedule, k=k)
    reading = line_of("tiled_sum", "sum[i][j] = fmaf")
    writing = {line_of("tiled_sum", "sa[i % kStep]"), line_of("tiled_sum", "sb[i % kStep]")}
    races = [f for f in found if f[0] == "race"]
    assert races, found
    assert all(line in writing | {reading} for _, _, line in races)
    assert any(f"tiled_sum.cu:{line}" in message for _, message, _ in races for line in writing | {reading})


def test_wrong_barrier_count():
    found = findings(run_sum, ("__syncthreads();  // the tile is there", 'asm volatile("bar.sync 0, 128;");'))
    assert "barrier-count" in [f[0] for f in found], found


def test_barrier_in_divergent_code():
    edit = (
        "__syncthreads();  // the tile is there",
        'if (t & 1) asm volatile("bar.sync 0;"); else asm volatile("bar.sync 0; //");',
    )
    found = findings(run_sum, edit)
    assert any("divergent" in message for _, message, _ in found), found


def test_warps_at_different_barriers():
    """Warps of one CTA take two __syncthreads() for one: a hazard.

    They may come to barrier.sync from different instructions, and so to a barrier of some warps.
    """
    apart = "if (t < 64) {{ {0} }} else {{ sum[0][0] += 0 * t; {0} }}\n"
    there = "__syncthreads();  // the tile is there"

    def twice(barrier: str) -> tuple[str, str]:
        return there, apart.format(f"\n{barrier}\n")

    found = findings(run_sum, twice("__syncthreads();"))
    (message,) = [message for kind, message, _ in found if kind == "barrier-divergence"]
    assert "warps arrived at barrier 0 from different instructions (tiled_sum.cu:" in message
    found = findings(run_sum, twice('asm volatile("bar.sync 1, 256;" ::: "memory");'))
    assert [kind for kind, _, _ in found] == ["barrier-divergence"]
    some = """__syncthreads();
    if (t < 64) {
      asm volatile("bar.sync 1, 128;" ::: "memory");
    } else if (t < 128) {
      asm volatile("bar.sync 1, 128;" ::: "memory");
    }
"""
    for edit in (twice('asm volatile("barrier.sync 1, 256;" ::: "memory");'), (there, some)):
        report, right = run_sum(edit)
        assert right and not report.hazards


def test_race_within_a_warp():
    edit = (
        "  float sum[4][4] = {};",
        "  float sum[4][4] = {}; __shared__ int w[256]; w[threadIdx.x] = threadIdx.x; "
        "sum[0][0] = w[threadIdx.x ^ 1] > 999;",
    )
    found = findings(run_sum, edit)
    assert any("__syncwarp" in h.fix for h in run_sum(edit)[0].hazards), found
    fixed = (edit[0], edit[1].replace("= threadIdx.x; sum", "= threadIdx.x; __syncwarp(); sum"))
    report, right = run_sum(fixed)
    assert right and not report.hazards


def test_same_value_by_everybody_is_no_race():
    report, right = run_sum(
        ("  float sum[4][4] = {};", "  float sum[4][4] = {}; __shared__ int flag; flag = 1;")
    )
    assert right and not report.hazards


def test_bytes_of_one_word_are_apart():
    code = "  float sum[4][4] = {}; __shared__ unsigned char c[256]; c[t] = t; sum[0][0] = c[t] > 999;"
    moved = ("  float sum[4][4] = {};\n  const int t = threadIdx.x", "  const int t = threadIdx.x")
    report, right = run_sum(moved, ("  for (int k0", code + "\n  for (int k0"))
    assert right and not report.hazards


@pytest.mark.parametrize("where, words", [
    ("a[(blockIdx.y * kTile + i / kStep) * k + k0 + i % kStep + 128 * k]", "past the end of args[0]"),
    ("(a - 4)[(blockIdx.y * kTile + i / kStep) * k + k0 + i % kStep]", "16 bytes before args[0]"),
    ("*(const float*)((const char*)a + 1 + 4 * i)", "misaligned"),
    ("*(const float*)(long long)(k - 64)", "global address 0x0"),
])  # fmt: skip
def test_wild_reads(where, words):
    with pytest.raises(emulator.Fault, match="tiled_sum.cu:") as error:
        run_sum(("a[(blockIdx.y * kTile + i / kStep) * k + k0 + i % kStep]", where))
    assert words in str(error.value)
    assert error.value.location.line == line_of("tiled_sum", "sa[i % kStep]")


def test_shared_out_of_bounds():
    with pytest.raises(emulator.Fault, match=r"shared address .*shared memory is"):
        run_sum(("sa[i % kStep][i / kStep] =", "sa[i % kStep][i / kStep + 100000] ="))


def test_never_written():
    ghost = "  __shared__ volatile float ghost[4]; float sum[4][4] = {}; if (ghost[1] > 7) return;"
    with pytest.raises(emulator.Fault, match="never written"):
        run_sum(("  float sum[4][4] = {};", ghost))


@pytest.mark.parametrize(
    "loop",
    [
        "while (true) {}",
        "volatile float* v = d; while (*v != 3.0f) {}",
        "volatile int i = 0; while (i == 0) {}",
    ],
)
def test_endless_loops_end(loop):
    with pytest.raises(emulator.EmulatorError, match="spin|no end"):
        run_sum(("  float sum[4][4] = {};", f"  float sum[4][4] = {{}}; {loop}"))


def test_without_hazards_nothing_is_looked_for():
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randint(-8, 8, (128, 32), generator=generator).float() for _ in range(2))
    d = torch.empty(128, 128)
    text = kernel("tiled_sum", ("    __syncthreads();  // everybody has read it\n", "\n"))
    assert not emulator.launch(text, (2, 2), 256, [a, b, d, 128, 32], hazards=False).hazards
