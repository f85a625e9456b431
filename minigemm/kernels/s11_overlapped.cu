// s11_overlapped: no role waits where it could work; minigemm's kernel for many rows.
//
// The tensor core idles while its consumer does anything but issue products. So the scales of b
// come through the ring like those of a: a warp of the producer brings them. A consumer that has
// registers for two partial sums issues the next product before it promotes the last one. The
// loader begins before all other roles, and weights that few tiles read leave L2 first.

#include "ptx.cuh"
#include "scheduler.cuh"
#include "tile.cuh"

constexpr int kThreads = (CONSUMERS + 1) * kWarpgroup;  // the consumers, then the producer
constexpr int kRows = BLOCK_M / CONSUMERS;              // of the tile, that a consumer computes
constexpr int kWaves = kRows / kWave;
// Scales of b that a tile can need: two where its columns cross a block, at a multiple of kGrain.
constexpr int kScales = BLOCK_K % BLOCK_N == 0 ? 1 : 2;
constexpr int kGrain = BLOCK_N % BLOCK_K == 0 ? BLOCK_K : BLOCK_N & -BLOCK_N;
constexpr int kPanels = BLOCK_N / PANEL;  // of d: PANEL columns wide, as many as a swizzle spans
// Weights leave L2 first where at most so many tiles read them, all of which run at the same time.
constexpr int kReaders = LAYOUT == DENSE && RASTER_M ? (RASTER < 8 ? RASTER : 8) : 1;

struct Shared {
  alignas(kAlign) e4m3 a[STAGES][BLOCK_M][BLOCK_K];  // (STAGES, BLOCK_M, BLOCK_K), swizzled
  alignas(kAlign) e4m3 b[STAGES][BLOCK_N][BLOCK_K];  // (STAGES, BLOCK_N, BLOCK_K), swizzled
  alignas(kAlign) float sfa[STAGES][BLOCK_M];        // (STAGES, BLOCK_M)
  alignas(kAlign) bf16 d[kPanels][BLOCK_M][PANEL];   // (BLOCK_M, BLOCK_N) in panels, swizzled
  // In each round of a slot the loader arrives and promises the bytes of a, b and sfa, TMA brings
  // them, and the lane that has written the scales of b arrives; the consumers wait.
  alignas(kAlign) u64 full[STAGES];
  // In each round lane 0 of each of the consumers' 4 * CONSUMERS warps arrives when its warp has
  // read the slot; the loader and the warp that brings the scales of b wait.
  u64 empty[STAGES];
  Parts parts;  // on their way from the warp that finds them to those that load and compute
  float sfb[STAGES][2];  // (STAGES, 2), of which the first kScales are used
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
static_assert(kWaves == 1 || kWaves == 2 && PARTIALS == 1, "64 rows, or 128 with one partial sum");

// Promises a slot's bytes, and brings the tile of b in k-block `step`. For one thread.
void load_b(Shared& shared, int stage, const CUtensorMap& map, int row, int step, u64 policy) {
  u64* full = &shared.full[stage];
  mbarrier_arrive_expect_tx(
      full, sizeof(shared.a[0]) + sizeof(shared.b[0]) + sizeof(shared.sfa[0]));  // the zeros too
  cp_async_bulk_tensor_load(shared.b[stage], &map, step * BLOCK_K, row, full, policy);
}

// Brings those of a and sfa; a MASKED group's rows of sfa begin at `sfa0`. For one thread.
void load_a(Shared& shared, int stage, const CUtensorMap& a_map, const CUtensorMap& sfa_map,
            const Part& part, int sfa0, int step) {
  u64* full = &shared.full[stage];
  cp_async_bulk_tensor_load(shared.a[stage], &a_map, step * BLOCK_K, part.row0, full);
  cp_async_bulk_tensor_load(shared.sfa[stage], &sfa_map, part.sfa_start, sfa0 + step, full);
}

// The scales of b for 32 k-steps from `step` on, one in each lane: for the tile's first column, and
// for the next block of columns. What lies outside sfb (rows, columns) is never used.
void fetch(float (&scales)[kScales], const float* sfb, int rows, int columns, i64 ld_sfb,
           int column0, int step) {
  const int column = min(step + static_cast<int>(threadIdx.x) % 32, columns - 1);
#pragma unroll
  for (int i = 0; i < kScales; ++i) {
    scales[i] = sfb[min(column0 / BLOCK_K + i, rows - 1) * ld_sfb + column];
  }
}

// partial (kWave, BLOCK_N) = the product of kWave rows of a and all of b, whose descriptors have
// these lower halves.
void compute(float (&partial)[BLOCK_N / 2], u32 a, u32 b) {
  keep_in_order(partial);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_K / 16; k += kDepth / 16) {
    wgmma_mma_async(partial, wgmma_descriptor(a + k), wgmma_descriptor(b + k), k > 0);
  }
  wgmma_commit_group();
  keep_in_order(partial);
}

// acc += partial, scaled: this lane's rows have the scales sfa, columns before `split` the first of
// sfb.
void promote(float (&acc)[BLOCK_N / 2], const float (&partial)[BLOCK_N / 2], const float (&sfa)[2],
             const float (&sfb)[kScales], int split) {
  const float before[2] = {sfa[0] * sfb[0], sfa[1] * sfb[0]};
  const float behind[2] = {sfa[0] * sfb[kScales - 1], sfa[1] * sfb[kScales - 1]};
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; ++i) {
    const int column = i / 4 * 8 / kGrain * kGrain, row = i / 2 % 2;
    acc[i] = fmaf(column < split ? before[row] : behind[row], partial[i], acc[i]);
  }
}

// The kWave rows from `row` on go to shared.d, zeros from `middle` on. A warp writes 16 of them, 16
// columns at a time: lane l names the place of row l % 16, and of the columns from l / 16 * 8 on.
void write(Shared& shared, const float (&acc)[BLOCK_N / 2], int row, int middle) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const int first = row + 16 * warp + lane / 4;  // of the two rows that this lane has sums of
  const u32 masks[2] = {first < middle ? ~0u : 0, first + 8 < middle ? ~0u : 0};
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i += 8) {
    u32 pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pairs[j] = cvt_rn_bf16x2_f32(acc[i + 2 * j], acc[i + 2 * j + 1]) & masks[j % 2];
    }
    bf16& place = at(shared.d, row + 16 * warp + lane % 16, 2 * i + lane / 16 * 8);
    stmatrix_x4(&place, pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// The kRows rows from `row` on of the tile of d, from shared memory to (row0 + row, column0), as
// far as they lie inside d. For one thread.
void store(const CUtensorMap& d_map, const Shared& shared, int row0, int column0, int row,
           u64 policy) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    cp_async_bulk_tensor_store(&d_map, column0 + i * PANEL, row0 + row, shared.d[i][row], policy);
  }
  cp_async_bulk_commit_group();
}

// The part's rows of the kWave from `row` of the tile on; padding as zeros. Uses acc up. Lane l of
// warp w holds two neighbours each of rows 16 w + l / 4 and 8 further down, in every 8 columns.
void store(void* d, float (&acc)[BLOCK_N / 2], const Part& part, int n, i64 ldd, int row,
           bool aligned) {
  row += part.row0 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  int column = part.column0 + threadIdx.x % 4 * 2;
#pragma unroll 1
  for (const int end = column + BLOCK_N; column < end; column += 16) {  // short: it runs rarely
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const int r = row + i / 2 % 2 * 8;
      if (r < part.first || r >= part.last) continue;
      const float x = r < part.middle ? acc[i] : 0, y = r < part.middle ? acc[i + 1] : 0;
      put(d, ldd, n, r, column + i / 4 * 8, x, y, aligned);
    }
#pragma unroll
    for (int i = 8; i < BLOCK_N / 2; ++i) acc[i - 8] = acc[i];  // registers have no index: all move
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) s11_overlapped_fp8_gemm_nt(
    const __grid_constant__ CUtensorMap a_map,    // (m, k), boxes (BLOCK_M, BLOCK_K)
    const __grid_constant__ CUtensorMap b_map,    // (groups * n, k), boxes (BLOCK_N, BLOCK_K)
    const __grid_constant__ CUtensorMap sfa_map,  // (k / 128, m); MASKED: (groups * k / 128, span)
    const __grid_constant__ CUtensorMap d_map,    // (m, n), boxes (kRows, PANEL), if BF16, aligned
    void* d,                                      // (m, n) BF16 or FP32 (OUT_FP32); rows ldd apart
    const float* sfb,                             // (groups, n / 128, k / 128); see below
    const int* index, int span, int zero_padding,  // see GroupedScheduler
    int m, int n, int k, int groups, i64 ld_sfb, i64 group_sfb, i64 ldd, int aligned, int early) {
  // Groups of sfb are group_sfb apart, rows ld_sfb. Aligned: 16 bytes divide d's start, ldd and n.
  // Early: no kernel that may still run writes b, so a DENSE product loads it before `follow`.
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), warpgroup = warp / 4;  // uniform
  const int sfb_rows = (n + BLOCK_K - 1) / BLOCK_K, steps = (k + BLOCK_K - 1) / BLOCK_K;
  Walk walk{shared.parts, m, n};  // each role's own
  Slot slot;
  if (warpgroup == CONSUMERS) {
    setmaxnreg_dec<PRODUCER_REGISTERS>();
    if (warp % 4 == 0) {
      if (elect_sync()) init(shared.full, shared.empty, 2, 4 * CONSUMERS, shared.parts);
      __syncwarp();  // all lanes wait until the barriers are initialised
      barrier_arrive(0, kThreads - 32);  // lets all but the idle warp begin; does not wait
      // One thread runs the loop, and its warp returns behind it: so the loop keeps to uniform
      // registers, if DENSE. Else a step would need 13 R2UR more: 3 % of the time at 256 x 128.
      if (elect_sync()) {
        for (Part part; walk.take(part); early = 0) {
          const int b_row = part.group * n + part.column0;
          const int sfa0 = LAYOUT == MASKED ? part.group * steps : 0;
          const u64 b_policy = policy(part.readers <= kReaders);
          const int ahead = LAYOUT == DENSE && early ? min(STAGES, steps) : 0;  // tiles of b
#pragma unroll 1
          for (int i = 0; i < ahead; ++i) load_b(shared, i, b_map, b_row, i, b_policy);
          follow();  // from the second tile on it returns at once
          for (int step = 0; step < part.loaded(steps); ++step) {
            mbarrier_wait_parity(&shared.empty[slot.stage], slot.phase ^ 1);
            if (step >= ahead) load_b(shared, slot.stage, b_map, b_row, step, b_policy);
            load_a(shared, slot.stage, a_map, sfa_map, part, sfa0, step);
            slot.advance();
          }
        }
      }
      return;
    }
    if (warp % 4 == 1) {  // finds the parts
      barrier_sync(0, kThreads - 32);
      follow();
      GroupedScheduler<LAYOUT> scheduler{m, n, groups, index, span, zero_padding};
      LAYOUT == DENSE ? shared.parts.tell_all(walk) : shared.parts.tell_all(scheduler);
    }
    if (warp % 4 == 2) {  // brings the scales of b
      barrier_sync(0, kThreads - 32);
      follow();
      for (Part part; walk.listen(part);) {
        const float* part_sfb = sfb + max(part.group, 0) * group_sfb;  // padding never uses it
        float scales[kScales];
        for (int step = 0; step < part.loaded(steps); ++step) {
          const int source = step % 32;  // the lane that has this step's scales
          if (source == 0) fetch(scales, part_sfb, sfb_rows, steps, ld_sfb, part.column0, step);
          wait_together(&shared.empty[slot.stage], slot.phase ^ 1);
          if (static_cast<int>(threadIdx.x) % 32 == source) {
            for (int i = 0; i < kScales; ++i) shared.sfb[slot.stage][i] = scales[i];
            mbarrier_arrive(&shared.full[slot.stage]);
          }
          slot.advance();
        }
      }
    }
    return;
  }

  setmaxnreg_inc<CONSUMER_REGISTERS>();
  barrier_sync(0, kThreads - 32);  // all but the idle warp wait until the loader's has arrived
  follow();
  // Rows of the tile: the first of this consumer, and of this lane, whose second is 8 further on.
  const int row = warpgroup * kRows;
  const int lane_row = row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const u32 a0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(shared.a[0][row]), 0);
  const u32 b0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(shared.b[0]), 0);
  const u64 d_policy = policy(static_cast<i64>(m) * n * sizeof(bf16) > 50 << 20);  // fills L2
  float partial[PARTIALS][BLOCK_N / 2] = {}, scale_a[PARTIALS][2], scale_b[PARTIALS][kScales];
  Slot ahead;  // of the next product to issue; `slot` is of the next to promote and give back
  for (Part part; walk.listen(part);) {
    const int row0 = part.row0, split = BLOCK_K - part.column0 % BLOCK_K;  // see promote
    float acc[kWaves][BLOCK_N / 2] = {};
    // Waits for the slot, issues the product of a wave's rows as partial sum i, reads their scales.
    const auto issue = [&](int i, int wave) {
      if (wave == 0) mbarrier_wait_parity(&shared.full[ahead.stage], ahead.phase);
      compute(partial[i], a0 + (ahead.stage * BLOCK_M + wave * kWave) * BLOCK_K / 16,
              b0 + ahead.stage * BLOCK_N * BLOCK_K / 16);
      const float* sfa = &shared.sfa[ahead.stage][lane_row + wave * kWave];
      for (int j = 0; j < 2; ++j) scale_a[i][j] = sfa[8 * j];
      for (int j = 0; j < kScales; ++j) scale_b[i][j] = shared.sfb[ahead.stage][j];
      if (wave == kWaves - 1) ahead.advance();
    };
    // Gives the slot back, now that partial sum i is complete, and promotes it into its wave's.
    const auto finish = [&](int i, int wave) {
      keep_in_order(partial[i]);
      if (wave == kWaves - 1) release(shared.empty, slot);
      promote(acc[wave], partial[i], scale_a[i], scale_b[i], split);
    };
    // A consumer without rows of the group skips all steps: a test in each step would take longer.
    const bool any = part.first < row0 + row + kRows && row0 + row < part.middle;
    const int loaded = part.loaded(steps), multiplied = any ? loaded : 0;
    if (PARTIALS == 1) {
#pragma unroll kWaves  // of two, the second's wait moves among the multiply-adds of the first
      for (int step = 0; step < multiplied; ++step) {
#pragma unroll
        for (int wave = 0; wave < kWaves; ++wave) {
          issue(0, wave);
          wgmma_wait_group<0>();
          finish(0, wave);
        }
      }
    } else if (multiplied > 0) {
      issue(0, 0);
#pragma unroll 1
      for (int step = 2; step < multiplied; step += 2) {  // product step - 2 is under way
        issue(1, 0);
        wgmma_wait_group<1>();
        finish(0, 0);
        issue(0, 0);
        wgmma_wait_group<1>();
        finish(1, 0);
      }
      if (multiplied % 2 == 0) {  // one more is left to issue
        issue(1, 0);
        wgmma_wait_group<1>();
        finish(0, 0);
        wgmma_wait_group<0>();
        finish(1, 0);
      } else {
        wgmma_wait_group<0>();
        finish(0, 0);
      }
    }
    for (int step = multiplied; step < loaded; ++step) {  // slots that it skips, but gives back
      mbarrier_wait_parity(&shared.full[slot.stage], slot.phase);  // to arrive once in each phase
      release(shared.empty, slot);
      ahead.advance();
    }
    // Whether all rows that TMA would store, those of the box that lie inside d, are the part's.
    const bool whole = part.first <= row0 + row && min(row0 + row + kRows, m) <= part.last;
    const bool own = LAYOUT == DENSE ? any : whole;  // the tile before's rows get the same bits
    if (OUT_FP32 || ACCUMULATE || !aligned || !own) {
      store(d, acc[0], part, n, ldd, row, aligned);
      if (kWaves > 1) store(d, acc[kWaves - 1], part, n, ldd, row + kWave, aligned);
    } else {
      // The tile before must have been read.
      if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until thread 0 knows
#pragma unroll
      for (int i = 0; i < kWaves; ++i) write(shared, acc[i], row + i * kWave, part.middle - row0);
      fence_proxy_async();                  // each thread's own writes, for the TMA that reads them
      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until all have fenced
      if (threadIdx.x % kWarpgroup == 0) store(d_map, shared, row0, part.column0, row, d_policy);
    }
  }
  // Shared memory must last until TMA has read it.
  if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
}
