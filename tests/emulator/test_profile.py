"""Requests, sectors and wavefronts: by brute force on random logs, and on kernels whose cost is known."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigemm import emulator
from minigemm.emulator.watch.profile import Profile
from minigemm.emulator.watch.report import Counters
from tests.emulator.nvrtc import ptx


@dataclass(frozen=True)
class Access:
    space: str
    bytes: int
    store: bool


@dataclass(frozen=True)
class Code:
    location: None = None
    line: int = 0
    modifiers: tuple[str, ...] = ()


def profiled(
    accesses: dict[int, Access], logs: dict[int, list[tuple[int, int]]], threads: int, keep: int = 0
) -> tuple[Profile, list[Code]]:
    """A profile that has taken one step, in which thread ``t`` logged ``logs[t]``: (site, address) pairs."""
    code = [Code(line=i) for i in range(max(accesses) + 1)]
    profile = Profile(accesses, len(code), keep=keep)
    log = np.full(
        (threads, 1 + max((len(entries) for entries in logs.values()), default=0)), 2**64 - 1, np.uint64
    )
    context = np.full((threads, 5), 99, np.int64)  # what is not in ids must not be read
    for t, entries in logs.items():
        log[t, : len(entries)] = [site << 48 | address for site, address in entries]
        context[t, 2] = len(entries)
    profile.take(log, context[:, 2], np.array(sorted(logs), np.int32), 7)
    return profile, code


def merged(logs: dict[int, list[tuple[int, int]]]) -> list[tuple[int, dict[int, int]]]:
    """(site, {thread: address}) of every warp request."""
    requests = []
    for warp in sorted({t // 32 for t in logs}):
        left = {t: list(entries) for t, entries in logs.items() if t // 32 == warp}
        while any(left.values()):
            site = min(entries[0][0] for entries in left.values() if entries)
            requests.append(
                (
                    site,
                    {
                        t: entries.pop(0)[1]
                        for t, entries in sorted(left.items())
                        if entries and entries[0][0] == site
                    },
                )
            )
    return requests


def wavefronts(lanes: dict[int, int], size: int) -> tuple[int, int]:
    """(wavefronts, the fewest possible) of one shared request by the rule that report.py states."""
    lanes_together = {8: 16, 16: 8}.get(size, 32)
    groups: dict[int, set[int]] = {}
    for t, address in lanes.items():
        groups.setdefault(t % 32 // lanes_together, set()).update((address + i) // 4 for i in range(size))
    return sum(
        max(sum(w % 32 == bank for w in words) for bank in range(32)) for words in groups.values()
    ), len(groups)


def expected(accesses: dict[int, Access], logs: dict[int, list[tuple[int, int]]]) -> dict[str, int]:
    counts: dict[str, int] = {}

    def add(key: str, amount: int) -> None:
        counts[key] = counts.get(key, 0) + amount

    for site, lanes in merged(logs):
        access = accesses[site]
        for space in ("global", "shared"):
            part = {
                t: a
                for t, a in lanes.items()
                if access.space == space or (access.space == "generic" and (a < 2**32) == (space == "shared"))
            }
            if part:
                add(f"{space}_requests", 1)
                add(f"{space}_{'store' if access.store else 'load'}_bytes", len(part) * access.bytes)
            if part and space == "global":
                add(
                    "global_sectors", len({(a + i) // 32 for a in part.values() for i in range(access.bytes)})
                )
            if part and space == "shared":
                cycles, ideal = wavefronts(part, access.bytes)
                add("shared_wavefronts", cycles)
                add("bank_conflicts", cycles - ideal)
    return counts


@st.composite
def steps(draw):
    """Draw access sites, and logs of some threads: strided, broadcast, random addresses, with divergence."""
    accesses = {
        site: Access(
            draw(st.sampled_from(["global", "shared", "generic"])),
            draw(st.sampled_from([1, 2, 4, 8, 16])),
            draw(st.booleans()),
        )
        for site in draw(
            st.sets(st.integers(0, 65535 if draw(st.integers(0, 9)) == 0 else 40), min_size=1, max_size=4)
        )
    }
    random = draw(st.randoms(use_true_random=False))
    threads = draw(st.integers(1, 80))
    ids = [t for t in range(threads) if random.random() < draw(st.sampled_from([1.0, 0.6]))]
    path = [random.choice(list(accesses)) for _ in range(draw(st.integers(0, 6)))]
    shapes = {
        site: (random.choice([0, 1, 2, 4, 32, 33, None]), random.randrange(64), random.random() < 0.3)
        for site in accesses
    }
    diverge = draw(st.sampled_from([0.0, 0.2]))
    logs: dict[int, list[tuple[int, int]]] = {}
    for t in ids:
        logs[t] = []
        for site in path:
            access, (stride, start, mixed) = accesses[site], shapes[site]
            near = access.space == "shared" or (
                access.space == "generic" and (random.random() < 0.5 if mixed else site % 2 == 0)
            )
            index = random.randrange(512) if stride is None else start + stride * t
            if random.random() >= diverge:
                logs[t].append((site, (1024 if near else 0x7F12_3456_7000) + index * access.bytes))
    return accesses, logs, threads


@settings(max_examples=300, deadline=None)
@given(steps())
def test_against_brute_force(step):
    accesses, logs, threads = step
    profile, code = profiled(accesses, logs, threads, keep=2)
    counters, lines = profile.finish(Counters(barriers=3), code)
    want = expected(accesses, logs)
    assert {key: n for key, n in counters.items() if n} == {key: n for key, n in want.items() if n} | {
        "barriers": 3
    }
    assert sum(line.requests for line in lines) == counters["global_requests"] + counters["shared_requests"]
    assert sum(line.bank_conflicts for line in lines) == counters["bank_conflicts"]
    kept = [(r.site, dict(zip(r.threads, r.addresses, strict=True))) for r in profile.requests(code)]
    every = merged(logs)
    assert kept == [
        request for site in sorted(accesses) for request in [r for r in every if r[0] == site][:2]
    ]
    assert all(r.cta == 7 for r in profile.requests(code))


def test_steps_add_up():
    accesses = {3: Access("shared", 4, False)}
    profile, code = profiled(accesses, {t: [(3, 1024 + 4 * t)] for t in range(32)}, 32)
    log = np.array([[3 << 48 | 1024 + 128 * t] for t in range(32)], np.uint64)
    profile.take(log, np.ones(32, np.int64), np.arange(32, dtype=np.int32), 0)
    profile.take(log, np.zeros(32, np.int64), np.arange(32, dtype=np.int32), 0)
    counters, (line,) = profile.finish(Counters(), code)
    assert (
        counters["shared_requests"],
        counters["shared_wavefronts"],
        counters["bank_conflicts"],
        line.worst_degree,
    ) == (2, 33, 31, 32)


# --- real kernels


def launched(body: str, threads: int = 32, **options) -> emulator.Report:
    text = ptx(f'extern "C" __global__ void probe(float* x, int n) {{ int t = threadIdx.x;\n{body}\n}}')
    return emulator.launch(text, 1, threads, [torch.zeros(1 << 16), 0], **options)


def shared_read(kind: str, index: str, size: int) -> emulator.LineCount:
    """Read a ``kind`` at ``index`` of an array; the fill and the read are on lines of their own."""
    report = launched(f"""
    __shared__ __align__(16) {kind} s[{size}];
    for (int i = t; i < {size}; i += 32) s[i] = {kind}();
    __syncthreads();
    {kind} v = ((volatile {kind}*)s)[{index}];
    x[t] = (float)v;""")
    (line,) = [line for line in report.lines if line.space == "shared" and not line.store]
    return line


@pytest.mark.parametrize("kind, index, wavefronts, degree", [
    ("float", "t", 1, 1), ("float", "5", 1, 1), ("float", "31 - t", 1, 1), ("float", "t * 2", 2, 2),
    ("float", "t * 16", 16, 16), ("float", "t * 32", 32, 32), ("float", "t * 33", 1, 1),
    ("char", "t", 1, 1), ("char", "t * 128", 32, 32), ("short", "t * 2", 1, 1),
    ("double", "t", 2, 1), ("double", "t * 2", 4, 2), ("double", "t * 16", 32, 16),
])  # fmt: skip
def test_bank_conflicts(kind, index, wavefronts, degree):
    line = shared_read(kind, index, 4096 if kind == "char" else 1088)
    assert line.requests == 1
    assert (line.wavefronts, line.worst_degree) == (wavefronts, degree)


@pytest.mark.parametrize(
    "index, wavefronts, conflicts", [("t", 4, 0), ("t * 2", 8, 4), ("t * 8", 32, 28), ("0", 4, 0)]
)
def test_vectors_of_16_bytes(index, wavefronts, conflicts):
    report = launched(f"""
    struct alignas(16) Four {{ float x, y, z, w; }};
    __shared__ Four s[256];
    for (int i = t; i < 256; i += 32) s[i] = Four{{1, 2, 3, 4}};
    __syncthreads();
    Four v = s[{index}];
    x[t] = v.x + v.y + v.z + v.w;""")
    (line,) = [line for line in report.lines if line.space == "shared" and not line.store]
    assert (line.requests, line.bytes, line.wavefronts, line.bank_conflicts) == (
        1,
        512,
        wavefronts,
        conflicts,
    )


@pytest.mark.parametrize("width, conflicts", [(32, 31), (33, 0)])
def test_a_column_of_a_tile(width, conflicts):
    report = launched(f"""
    __shared__ float tile[32][{width}];
    for (int i = 0; i < 32; i++) tile[i][t] = x[i * 32 + t];
    __syncthreads();
    x[t] = tile[t][n];""")
    assert (report.counters["bank_conflicts"], report.counters["shared_requests"]) == (conflicts, 33)
    assert report.counters["global_sectors"] == 33 * 4


@pytest.mark.parametrize(
    "index, sectors",
    [("t", 4), ("t + 1", 5), ("t * 2", 8), ("t * 8", 32), ("0", 1), ("t * 512", 32), ("31 - t", 4)],
)
def test_sectors(index, sectors):
    report = launched(f"x[40000 + t] = x[{index}];", keep_requests=1)
    load, store = report.lines
    assert (load.sectors_per_request, store.sectors_per_request) == (sectors, 4)
    assert report.counters["global_load_bytes"] == report.counters["global_store_bytes"] == 128
    assert (load.location.line, load.store, store.store) == (2, False, True)
    first, _ = report.requests
    offsets = [4 * (eval(index, {"t": t}) - eval(index, {"t": 0})) for t in range(32)]
    assert first.threads == tuple(range(32)) and [a - first.addresses[0] for a in first.addresses] == offsets


def test_generic_addresses_go_where_they_point():
    report = launched("""
    __shared__ float s[64];
    s[t] = 1; s[t + 32] = 2;
    __syncthreads();
    float* p = t + n < 16 ? s + t : x + t;
    asm volatile("ld.f32 %0, [%1];" : "=f"(x[64 + t]) : "l"(p));""")
    loads = {line.space: (line.requests, line.bytes) for line in report.lines if not line.store}
    assert loads == {"shared": (1, 64), "global": (1, 64)}


def test_divergent_lanes_make_requests_of_their_own():
    report = launched("if (t & 1) x[t] = 1; else *(short*)(x + t) = 2;", threads=64)
    assert report.counters["global_requests"] == 2 * 2
    assert report.counters["global_sectors"] == 4 * 4
    assert report.counters["global_store_bytes"] == 32 * 4 + 32 * 2


def test_long_loops_are_logged_in_parts():
    report = launched("for (int i = 0; i < 3000; i++) ((volatile float*)x)[t + i % 8 * 32] = i;", threads=96)
    assert report.counters["global_requests"] == 3 * 3000
    assert report.counters["global_sectors"] == 4 * 3 * 3000


@pytest.mark.parametrize("schedule", ["early", 1, 2])
def test_schedules_count_alike(schedule):
    body = """
    __shared__ float s[128];
    for (int i = 0; i < 4; i++) { s[t] = x[t * i]; __syncthreads(); x[t] += s[127 - t]; __syncthreads(); }"""
    assert launched(body, 128, schedule=schedule).counters == launched(body, 128).counters


def test_constants_are_not_global_traffic():
    text = ptx("""
    __constant__ float table[32];
    extern "C" __global__ void probe(float* x) { x[threadIdx.x] = table[threadIdx.x]; }""")
    report = emulator.launch(text, 1, 32, [torch.zeros(32)])
    assert report.counters["global_requests"] == 1 and report.counters["global_load_bytes"] == 0
    assert [line.space for line in report.lines] == ["const", "global"]


def test_without_profile_nothing_is_counted():
    report = launched("x[t] = 1;", profile=False)
    assert report.counters["global_requests"] == 0 and not report.lines and report.counters["instructions"]


@pytest.mark.slow
def test_speed():
    accesses = {0: Access("global", 4, False), 1: Access("shared", 4, False), 2: Access("shared", 16, True)}
    profile = Profile(accesses, 3)
    t, n = np.arange(256)[:, None], np.arange(510)[None]
    sites, address = (
        n % 3,
        np.where(n % 3 == 0, 0x7F00_0000_0000, 0) + t * np.where(n % 3 == 2, 16, 4) + n * 128,
    )
    log = (sites.astype(np.uint64) << np.uint64(48)) | address.astype(np.uint64)
    ids, logged = np.arange(256, dtype=np.int32), np.full(256, 510)
    profile.take(log, logged, ids, 0)
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        profile.take(log, logged, ids, 0)
        best = max(best, log.size / (time.process_time() - started))
    assert best > 5e6, (
        f"{best / 1e6:.1f} million lane accesses a second"
    )  # tens of millions; in plain Python, one
