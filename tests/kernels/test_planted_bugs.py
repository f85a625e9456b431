"""Bugs planted in the shipped stages, at two tile sizes, under every schedule: found, with cause and line."""

from __future__ import annotations

import re
import warnings
from functools import partial

import pytest
import torch

from minigemm import emulator, observe
from minigemm.kernels.grouped import launch_contiguous
from minigemm.types import Layout
from tests.products import STAGES, operands

TILES = {
    "s02_tiled": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 32, "thread_m": 2, "thread_n": 4},
    ),
    "s03_tma": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 64, "thread_m": 4, "thread_n": 4},
    ),
    "s04_wgmma": ({"block_m": 128, "block_n": 64}, {"block_m": 128, "block_n": 40}),
    "s05_pipelined": (
        {"block_m": 128, "block_n": 64, "stages": 3},
        {"block_m": 64, "block_n": 32, "stages": 4},
    ),
    "s06_warp_specialized": (
        {"block_m": 128, "block_n": 64, "stages": 3, "consumers": 2},
        {"block_m": 128, "block_n": 80, "stages": 2, "consumers": 2},
    ),
    "s07_promoted": (
        {"block_m": 128, "block_n": 64, "stages": 3, "consumers": 2},
        {"block_m": 64, "block_n": 48, "stages": 2, "consumers": 1},
    ),
    "s08_persistent": (
        {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "ctas": 1},
        {"block_m": 128, "block_n": 16, "stages": 5, "consumers": 2, "ctas": 2},
    ),
    "s09_multicast": (
        {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "ctas": 2},
        {
            "block_m": 128,
            "block_n": 16,
            "stages": 5,
            "consumers": 2,
            "ctas": 2,
            "cluster_m": 1,
            "cluster_n": 2,
        },
    ),
    "s10_grouped": (
        {"block_m": 192, "block_n": 32, "stages": 4, "consumers": 3, "ctas": 1},
        {"block_m": 256, "block_n": 16, "stages": 2, "consumers": 2, "ctas": 2},
    ),
    "s11_overlapped": (
        {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "ctas": 1},
        {"block_m": 128, "block_n": 16, "stages": 2, "consumers": 2, "ctas": 2},
    ),
    "s12_swapped": (
        {"block_m": 16, "stages": 3, "blocks": 2, "ctas": 1},
        {"block_m": 8, "block_n": 128, "consumers": 2, "stages": 2, "blocks": 4, "ctas": 2},
    ),
}
TILE_READY = "    __syncthreads();  // all threads arrive with their part of the tiles written"
TILE_READ = "    __syncthreads();  // all threads arrive when they have read"
INCLUDE = '#include "scheduler.cuh"'
WRITE, TELL = "      part[i % kAhead] = next;\n", "      mbarrier_arrive(&told[i % kAhead]);\n"
LISTEN = "  bool listen(u32 i, Part& next) {\n"
TOLD = "    mbarrier_wait_parity(&told[i % kAhead], i / kAhead % 2);\n"
HEARD = "mbarrier_wait_parity(&heard[i % kAhead], i / kAhead % 2 ^ 1);"

# of s11 and s12: how the scales of b come into the ring; how s12 finishes a slot
SCALES_11 = "            for (int i = 0; i < kScales; ++i) shared.sfb[slot.stage][i] = scales[i];\n"
SCALES_12 = "            shared.sfb[slot.stage][lane % BLOCKS] = scale;\n"
ANNOUNCE = "            mbarrier_arrive(&shared.full[slot.stage]);\n"
FINISH_12 = "#pragma unroll\n      for (int i = 0; i < BLOCKS; ++i) finish(i, i, BLOCKS - 1 - i);\n"
BEGIN_INIT = "      if (elect_sync()) init("
BEGIN_11 = "      barrier_arrive(0, kThreads - 32);  // lets all but the idle warp begin; does not wait\n"
BEGIN_12 = "      barrier_arrive(0, kThreads);  // lets all others begin; does not wait\n"
RELEASE_12 = "      release(shared.empty, slot);\n"


def scheduler(*edits: tuple[str, str]) -> str:
    """The text of scheduler.cuh, edited, to stand instead of the include."""
    text = (
        (STAGES["s10_grouped"].stage.source.parent / "scheduler.cuh").read_text().replace("#pragma once", "")
    )
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


# stage, text that goes (or texts), what comes instead, what is found, words of it, text on the line it names
BUGS = {
    "s02: no barrier after the load": ("s02_tiled", TILE_READY, "    //", ("race",), "data race", None),
    "s02: no barrier after the reads": ("s02_tiled", TILE_READ, "    //", ("race",), "data race", None),
    "s02: row beyond the matrix": (
        "s02_tiled", "row0 + row < rows && ", "", ("Fault",), "past the end of args",
        "vector = *reinterpret_cast",
    ),
    "s03: no wait for the tiles": (
        "s03_tma", "mbarrier_wait_parity(&shared.full, phase);", ";", ("tma-not-complete",), "does not wait",
        "read(",
    ),
    "s03: inverted parity": (
        "s03_tma", "mbarrier_wait_parity(&shared.full, phase);",
        "mbarrier_wait_parity(&shared.full, phase ^ 1);", ("tma-not-complete", "Deadlock"), "parity", None,
    ),
    "s03: phase never flips": (
        "s03_tma", "phase ^= 1", "phase ^= 0", ("tma-not-complete", "mbarrier", "Deadlock"), "", None,
    ),
    "s03: too few bytes": (
        "s03_tma", "sizeof(shared.a) + sizeof(shared.b)", "sizeof(shared.a)",
        ("Deadlock", "mbarrier-bytes", "tma-not-complete"), "", None,
    ),
    "s03: no barrier before the next load": (
        "s03_tma", TILE_READ, "    //", ("tile-overwritten", "tma-load-overwrites"), "overwrites", None,
    ),
    "s03: no proxy fence": (
        "s03_tma", "  fence_proxy_async();", "  //", ("proxy-fence",), "missing fence.proxy.async",
        "cp_async_bulk_tensor_store(",
    ),
    "s03: no barrier before the store": (
        "s03_tma", "  __syncthreads();      // all threads arrive with their part of d fenced", "  //",
        ("tma-store-too-early", "tma-store-overwritten"), "barrier", None,
    ),
    "s03: store not awaited": (
        "s03_tma", "cp_async_bulk_wait_group_read<0>();", ";", ("tma-store-not-awaited",), "never waited",
        None,
    ),
    "s03: no barrier after init": (
        "s03_tma", "  __syncthreads();  // all threads wait until thread 0 has initialised", "  //",
        ("mbarrier-init", "Fault"), "mbarrier", None,
    ),
    "s03: barrier never initialised": (
        "s03_tma", "    mbarrier_init(&shared.full, 1);", "    ;", ("Fault",),
        "nobody executed mbarrier.init", None,
    ),
    "s04: no wait for the tiles": (
        "s04_wgmma", "mbarrier_wait_parity(&shared.full, phase);", ";", ("tma-not-complete",),
        "does not wait", "compute(",
    ),
    "s04: no wgmma.fence": (
        "s04_wgmma", "  wgmma_fence();", "  //", ("wgmma-fence",), "missing wgmma.fence", "wgmma_mma_async(",
    ),
    "s04: no wait for the products": (
        "s04_wgmma", "    wgmma_wait_group<0>();", "    ;", ("accumulator-in-flight",), "no wgmma.wait_group",
        "cvt_rn_bf16x2_f32(",
    ),
    "s04: no commit": (
        "s04_wgmma", "  wgmma_commit_group();", "  ;", ("accumulator-in-flight",), "no wgmma.wait_group",
        "cvt_rn_bf16x2_f32(",
    ),
    "s04: accumulator written in flight": (
        "s04_wgmma", "    wgmma_wait_group<0>();", "    acc[3] += 1.0f; wgmma_wait_group<0>();",
        ("accumulator-in-flight",), "this writes an accumulator", "acc[3] += 1.0f",
    ),
    "s04: no barrier before the next load": (
        "s04_wgmma", "    __syncthreads();  // all threads arrive when their products", "    //",
        ("slot-overwritten",), "WGMMA of warpgroup 1", "load(shared, a_map",
    ),
    "s04: descriptor of another swizzle": (
        "s04_wgmma", "b = wgmma_descriptor(shared.b);", "b = wgmma_descriptor(shared.b) ^ 3ull << 62;",
        ("swizzle-mismatch",), "names the 64-byte swizzle, and the TMA load", "wgmma_mma_async(",
    ),
    "s04: no proxy fence": (
        "s04_wgmma", "  fence_proxy_async();", "  //", ("proxy-fence",), "missing fence.proxy.async",
        "cp_async_bulk_tensor_store(",
    ),
    "s05: loads into the slot that is read": (
        "s05_pipelined", "load(shared, before, a_map", "load(shared, stage, a_map",
        ("slot-overwritten", "Deadlock"), "released the slot before a wgmma.wait_group", "load(shared, stage",
    ),
    "s05: products of the step before not awaited": (
        "s05_pipelined", "    wgmma_wait_group<1>();", "    //", ("slot-overwritten",),
        "released the slot before a wgmma.wait_group", "load(shared, before",
    ),
    "s05: one product too many in flight": (
        "s05_pipelined", "wgmma_wait_group<1>", "wgmma_wait_group<2>", ("slot-overwritten",),
        "released the slot before a wgmma.wait_group", "load(shared, before",
    ),
    "s05: last products not awaited": (
        "s05_pipelined", "  wgmma_wait_group<0>();\n  keep", "  keep", ("accumulator-in-flight",),
        "no wgmma.wait_group", "cvt_rn_bf16x2_f32(",
    ),
    "s05: loads beyond k": (
        "s05_pipelined", "if (threadIdx.x == 0 && ahead < k)", "if (threadIdx.x == 0)",
        ("tma-load-not-awaited",), "nobody waited for", "load(shared, before",
    ),
    "s05: phase never flips": (
        "s05_pipelined", "      phase ^= 1;", "      ;", ("tma-not-complete", "Deadlock"), "parity",
        "mbarrier_wait_parity|compute(",
    ),
    "s06: producer does not wait for an empty slot": (
        "s06_warp_specialized", "mbarrier_wait_parity(&shared.empty[stage], phase ^ 1);", ";",
        ("slot-overwritten", "Deadlock"),
        "does not wait until the slot is free|must wait until a buffer is empty",
        "load(shared, stage|mbarrier_wait_parity(&shared.full",
    ),
    "s06: inverted parity of empty": (
        "s06_warp_specialized", "mbarrier_wait_parity(&shared.empty[stage], phase ^ 1);",
        "mbarrier_wait_parity(&shared.empty[stage], phase);", ("Deadlock",),
        "should start with the other parity", "mbarrier_wait_parity(&shared.",
    ),
    "s06: slot released while it is read": (
        "s06_warp_specialized",
        "if (k0 > 0 && threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[before]);",
        "if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);", ("slot-overwritten",),
        "released the slot before a wgmma.wait_group", "load(shared, stage",
    ),
    "s06: products not awaited before the release": (
        "s06_warp_specialized", "    wgmma_wait_group<1>();", "    //", ("slot-overwritten",),
        "released the slot before a wgmma.wait_group", "load(shared, stage",
    ),
    "s06: one arrival too many expected": (
        "s06_warp_specialized", "empty[i], 4 * CONSUMERS)", "empty[i], 4 * CONSUMERS + 1)", ("Deadlock",),
        "1 arrival missing", "mbarrier_wait_parity(&shared.",
    ),
    "s06: every lane arrives": (
        "s06_warp_specialized", "k0 > 0 && threadIdx.x % 32 == 0", "k0 > 0", ("mbarrier",),
        "is smaller than the number of threads that arrive", "mbarrier_arrive(",
    ),
    "s06: bytes of b not announced": (
        "s06_warp_specialized", "sizeof(shared.a[0]) + sizeof(shared.b[0])", "sizeof(shared.a[0])",
        ("Deadlock", "mbarrier-bytes"), "landed unannounced", None,
    ),
    "s06: bytes that never come": (
        "s06_warp_specialized", "sizeof(shared.a[0]) + sizeof(shared.b[0])",
        "sizeof(shared.a[0]) + 2 * sizeof(shared.b[0])", ("Deadlock",), "never landed",
        "mbarrier_wait_parity(&shared.",
    ),
    "s06: registers that nobody gave back": (
        "s06_warp_specialized", "setmaxnreg_dec<PRODUCER_REGISTERS>();", ";", ("Deadlock",),
        "the CTA's pool has 0 left", "setmaxnreg_inc",
    ),
    "s06: too few registers": (
        "s06_warp_specialized", "setmaxnreg_inc<CONSUMER_REGISTERS>();", "setmaxnreg_dec<24>();",
        ("setmaxnreg",), "setmaxnreg left it 24", "wgmma_mma_async(",
    ),
    "s06: store not awaited": (
        "s06_warp_specialized", "cp_async_bulk_wait_group_read<0>();", ";", ("tma-store-not-awaited",),
        "never waited", None,
    ),
    "s06: no barrier before the store": (
        "s06_warp_specialized", "    bar_sync(1 + warpgroup, kWarpgroup);", "    //",
        ("tma-store-too-early",), "barrier", "cp_async_bulk_tensor_store(",
    ),
    "s07: promoted before the product is done": (
        "s07_promoted", "      wgmma_wait_group<0>();", "      ;", ("accumulator-in-flight",),
        "no wgmma.wait_group", "partial[i], acc[i]",
    ),
    "s07: released before every lane has its scales": (
        "s07_promoted", "        __syncwarp();", "        //", ("tile-overwritten",), "may still read it",
        "load(shared, stage",
    ),
    "s07: bytes of the scales not announced": (
        "s07_promoted", " + sizeof(shared.sfa[0])", "", ("Deadlock", "mbarrier-bytes", "tma-not-complete"),
        "", None,
    ),
    "s08: d overwritten while the tile before is stored": (
        "s08_persistent", "      if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();",
        "      //", ("tma-store-overwritten",), "while the TMA store", "stmatrix_x4(|store(d_map",
    ),
    "s08: only one thread knows that d is read": (
        "s08_persistent", "      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until",
        "      //", ("tma-store-overwritten",), "while the TMA store", "stmatrix_x4(|store(d_map",
    ),
    "s08: last store not awaited": (
        "s08_persistent", "\n  if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();",
        "\n  ;", ("tma-store-not-awaited",), "never waited", None,
    ),
    "s08: the consumers begin each tile in slot 0": (
        "s08_persistent", "    float acc[kWaves][BLOCK_N / 2] = {};",
        "    float acc[kWaves][BLOCK_N / 2] = {}; stage = 0, phase = 0;",
        ("Deadlock", "tma-not-complete", "slot-overwritten", "mbarrier", "tile-overwritten"), "", None,
    ),
    "s08: the producer begins each tile in slot 0": (
        "s08_persistent", "        for (int k0 = 0; k0 < k;",
        "        stage = 0, phase = 0;\n        for (int k0 = 0; k0 < k;",
        ("Deadlock", "tma-not-complete", "slot-overwritten", "mbarrier"), "", None,
    ),
    "s08: the consumers skip a tile": (
        "s08_persistent", "    const int row0 = tile.m * BLOCK_M, column0",
        "    scheduler.next(tile); const int row0 = tile.m * BLOCK_M, column0",
        ("Deadlock", "mbarrier", "tma-load-not-awaited"), "", None,
    ),
    "s09: the other CTA is not told that a slot is free": (
        "s09_multicast", "r < kCluster)", "r == cluster_ctarank())", ("Deadlock",), "arrivals? missing",
        "mbarrier_wait_parity(&shared.",
    ),
    "s09: a slot is free when the own consumers say so": (
        "s09_multicast", "4 * CONSUMERS * kCluster);", "4 * CONSUMERS);",
        ("slot-overwritten", "mbarrier", "Deadlock", "tma-not-complete"), "", None,
    ),
    "s09: nobody asks the other CTA": (
        "s09_multicast", ("4 * CONSUMERS * kCluster);", "r < kCluster)"),
        ("4 * CONSUMERS);", "r == cluster_ctarank())"), ("slot-overwritten",),
        "does not wait until the slot is free", "load_part<",
    ),
    "s09: the other CTA's barriers may not be there yet": (
        "s09_multicast", "  barrier_cluster_arrive();\n  barrier_cluster_wait();  // all threads",
        "  __syncthreads();  // all threads", ("mbarrier-init", "cta-not-started", "Fault"), "cluster", None,
    ),
    "s09: no wait at the first cluster barrier": (
        "s09_multicast", "  barrier_cluster_wait();  // all threads", "  //",
        ("mbarrier-init", "cta-not-started", "Fault", "cluster-barrier", "Deadlock"), "", None,
    ),
    "s09: a CTA ends while the other may arrive at its barriers": (
        "s09_multicast", "  barrier_cluster_arrive();\n  barrier_cluster_wait();\n}", "}", ("cta-exited",),
        "CTA rank", None,
    ),
    "s09: the other half is not expected": (
        "s09_multicast", "sizeof(shared.a[0]) + sizeof(shared.b[0])",
        "sizeof(shared.a[0]) / CLUSTER_N + sizeof(shared.b[0]) / CLUSTER_M",
        ("Deadlock", "mbarrier-bytes", "tma-not-complete"), "", None,
    ),
    "s09: the half goes to this CTA alone": (
        "s09_multicast", "full, 0b11);", "full, 1 << cluster_ctarank());", ("Deadlock",), "never landed",
        "mbarrier_wait_parity(&shared.",
    ),
    "s09: the half goes to the other CTA alone": (
        "s09_multicast", "full, 0b11);", "full, 2 >> cluster_ctarank());", ("Deadlock",), "never landed",
        "mbarrier_wait_parity(&shared.",
    ),
    "s09: a mask for three": (
        "s09_multicast", "full, 0b11);", "full, 0b111);", ("Fault",), "names CTA rank 2", "multicast(",
    ),
    "s09: both load the first half": (
        "s09_multicast",
        ("row = cluster_ctarank() % CLUSTER_N * kPartM;", "column = cluster_ctarank() % CLUSTER_M * kPartN;"),
        ("row = 0;", "column = 0;"),
        ("slot-overwritten", "race", "tma-load-overwrites", "uninitialized", "tma-not-complete", "Fault"), "",
        None,
    ),
    "s09: released before every lane has its scales": (
        "s09_multicast", "          __syncwarp();", "          //", ("tile-overwritten",),
        "may still read it", "load(shared, stage",
    ),
    "s10: a consumer without rows keeps its slots": (
        "s10_grouped",
        "      if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);\n      if (++stage",
        "      if (++stage", ("Deadlock",), "arrivals", "mbarrier_wait_parity(&shared.",
    ),
    "s10: released before every lane has its scales": (
        "s10_grouped", "          __syncwarp();", "          //", ("tile-overwritten",),
        "may still read it", "load(shared, stage",
    ),
    "s10: a part is told before it is written": (
        "s10_grouped", INCLUDE,
        scheduler((WRITE, ""), (TELL + "    }", TELL + WRITE + "    }")),
        ("race",), "data race", None,
    ),
    "s10: a part is read before it is told": (
        "s10_grouped", INCLUDE,
        scheduler((LISTEN + TOLD, LISTEN)), ("race", "Fault"), "data race|never written", None,
    ),
    "s10: a part is overwritten before it is read": (
        "s10_grouped", INCLUDE,
        scheduler(("kAhead = 4", "kAhead = 1"), (f"    {HEARD}", "//")),
        ("race",), "data race", None,
    ),
    "s11: the scales of b are announced before they are written": (
        "s11_overlapped", SCALES_11 + ANNOUNCE, ANNOUNCE + SCALES_11, ("race", "uninitialized"),
        "data race|never written", "= scales[i]|scale_b[i][j] =",
    ),
    "s11: a slot is full without the scales of b": (
        "s11_overlapped", "init(shared.full, shared.empty, 2,", "init(shared.full, shared.empty, 1,",
        ("mbarrier", "Deadlock"), "", None,
    ),
    "s11: scales are read from a slot that went back": (
        "s11_overlapped", "      if (wave == kWaves - 1) release(shared.empty, slot);",
        """\
      const volatile float* late = &shared.sfa[slot.stage][lane_row];
      release(shared.empty, slot);
      scale_a[i][0] = late[0];
      scale_a[i][1] = late[8];""",
        ("tile-overwritten",), "may still read it", "load_a(shared, slot.stage",
    ),
    "s11: a partial sum is promoted while it is computed": (
        "s11_overlapped", "        issue(1, 0);\n        wgmma_wait_group<1>();", "        issue(1, 0);",
        ("accumulator-in-flight",), "no wgmma.wait_group", "promote(",
    ),
    "s11: one product too many in flight": (
        "s11_overlapped", "        issue(1, 0);\n        wgmma_wait_group<1>();",
        "        issue(1, 0);\n        wgmma_wait_group<2>();", ("accumulator-in-flight",),
        "no wgmma.wait_group", "promote(",
    ),
    "s11: the last product is not awaited": (
        "s11_overlapped", "        wgmma_wait_group<0>();\n        finish(1, 0);", "        finish(1, 0);",
        ("accumulator-in-flight",), "no wgmma.wait_group", "promote(",
    ),
    "s11: the loader arrives before it initialises the barriers": (
        "s11_overlapped", (BEGIN_11, BEGIN_INIT),
        ("", BEGIN_11 + BEGIN_INIT), ("mbarrier-init", "Fault"), "mbarrier", None,
    ),
    "s11: no proxy fence": (
        "s11_overlapped", "    fence_proxy_async();", "    //", ("proxy-fence",),
        "missing fence.proxy.async", "cp_async_bulk_tensor_store(",
    ),
    "s11: a cache policy of its own": (
        "s11_overlapped", "const u64 b_policy = policy(part.readers <= kReaders);",
        "const u64 b_policy = part.readers;", ("Fault",), "was not made by createpolicy", "cp_async_bulk_tensor_load(",
    ),
    "s12: the scales of b are announced before they are written": (
        "s12_swapped", SCALES_12 + ANNOUNCE, ANNOUNCE + SCALES_12, ("race", "uninitialized"),
        "data race|never written", "= scale;|= *ring_sfb;",
    ),
    "s12: a slot is full without one of the scales of b": (
        "s12_swapped", "init(shared.full, shared.empty, 1 + BLOCKS,", "init(shared.full, shared.empty, BLOCKS,",
        ("mbarrier", "Deadlock", "tma-not-complete"), "", None,
    ),
    "s12: scales are read from a slot that went back": (
        "s12_swapped", (FINISH_12, RELEASE_12),
        ("      wait(0);\n      Slot next = slot;\n      release(shared.empty, next);\n",
         FINISH_12 + "      slot = next;\n"), ("tile-overwritten",), "may still read it", "load_a(shared, slot.stage",
    ),
    "s12: a slot goes back while it is multiplied": (
        "s12_swapped", (FINISH_12, RELEASE_12),
        ("      Slot next = slot;\n      release(shared.empty, next);\n", FINISH_12 + "      slot = next;\n"),
        ("slot-overwritten",), "released the slot before a wgmma.wait_group", "load_b(shared, slot.stage",
    ),
    "s12: a partial sum is promoted while it is computed": (
        "s12_swapped", "      wait(pending);", "      wait(pending + 1);", ("accumulator-in-flight",),
        "no wgmma.wait_group", "promote(",
    ),
    "s12: the loader arrives before it initialises the barriers": (
        "s12_swapped", (BEGIN_12, BEGIN_INIT),
        ("", BEGIN_12 + BEGIN_INIT), ("mbarrier-init", "Fault"), "mbarrier", None,
    ),
    "s12: no proxy fence": (
        "s12_swapped", "      fence_proxy_async();", "      //", ("proxy-fence",), "missing fence.proxy.async",
        "cp_async_bulk_tensor_store(",
    ),
    "s12: no barrier before the store": (
        "s12_swapped", "      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until all",
        "      //", ("tma-store-too-early",), "barrier", "cp_async_bulk_tensor_store(",
    ),
    "s12: d overwritten while the tile before is stored": (
        "s12_swapped", "      if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();",
        "      //", ("tma-store-overwritten",), "while the TMA store",
        "stmatrix_x2_trans(|cp_async_bulk_tensor_store(",
    ),
    "s03: two arrivals expected": (
        "s03_tma", "mbarrier_init(&shared.full, 1);", "mbarrier_init(&shared.full, 2);", ("Deadlock",),
        "1 of 2 arrivals", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tile", [0, 1])
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug(bug, tile, tmp_path):
    name, old, new, kinds, words, line = BUGS[bug]
    stage = STAGES[name].stage
    text = stage.source.read_text()
    for gone, instead in [(old, new)] if isinstance(old, str) else zip(old, new, strict=True):
        assert gone in text, f"{gone!r} is not in {name}.cu any more"
        text = text.replace(gone, instead, 1)
    mine = tmp_path / f"{name}.cu"
    mine.write_text(text)
    config = STAGES[name].Config(**TILES[name][tile])
    # two tiles each way, and more steps along k than the ring has slots twice over, if the ring goes from
    # tile to tile with all of a CTA's tiles
    steps = 3 if name < "s05" else 4 if name > "s08" else min(2 * config.stages + 1, 8)
    a, b = operands(70, 72, 192 if name < "s04" else 128 * steps, 0, "cpu", STAGES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, where it sees the bug too
        for schedule in ("late", "early", 1, 2):
            run = partial(stage.gemm, a, b, config, source=mine)
            check_found(run, mine, schedule, kinds, words, line)


@pytest.mark.parametrize("tile", [0, 1])
@pytest.mark.parametrize("name", ["s11_overlapped", "s12_swapped"])
def test_planted_bug_of_the_warp_that_finds(name, tile, tmp_path):
    """It tells the first part before the barriers are initialised."""
    stage = STAGES[name].stage
    text, mine = stage.source.read_text(), tmp_path / f"{name}.cu"
    early = re.compile(r"barrier_sync\((0, [\w -]+\);\n      follow\(\);\n      GroupedScheduler)")
    assert len(early.findall(text)) == 1
    mine.write_text(early.sub(r"barrier_arrive(\1", text))
    config = stage.config(**TILES[name][tile], layout=int(Layout.CONTIGUOUS))
    a, b = operands(70, 72, 512, 0, "cpu", STAGES[name])
    d, ids = torch.empty(70, 72, dtype=torch.bfloat16), torch.zeros(70, dtype=torch.int32)
    launch = launch_contiguous(a.data, a.scale, b.data[None], b.scale[None], d, ids, config)
    for schedule in ("late", "early", 1, 2):
        run = partial(stage.run, launch, config, d.device, mine)
        check_found(run, mine, schedule, ("mbarrier-init", "Fault"), "mbarrier", None)


def check_found(run, mine, schedule, kinds, words, line):
    with observe(schedule=schedule) as seen:
        found = []
        try:
            run()
        except emulator.EmulatorError as error:
            found = [(type(error).__name__, str(error), error.location)]
    found += [(h.kind, h.message, h.location) for h in seen[0].hazards]
    hits = [f for f in found if f[0] in kinds]
    assert hits, (schedule, found)
    assert any(re.search(words, message) for _, message, _ in hits), (schedule, hits)
    for _, _, location in hits:
        assert location is not None
    if line:
        lines = mine.read_text().splitlines()
        named = {place.line for _, _, location in hits for place in callers(location)}
        assert any(part in lines[number - 1] for number in named for part in line.split("|")), (
            schedule,
            named,
            found,
        )


def callers(location):
    """The line itself and those that led to it, in the stage's own file."""
    while location is not None:
        if location.file.endswith(".cu"):
            yield location
        location = location.inlined_at
