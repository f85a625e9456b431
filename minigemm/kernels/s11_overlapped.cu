// s11_overlapped: nothing waits for what could be done meanwhile: the library's kernel for many
// rows.
//
// The tensor core idles while a consumer does anything but issue products. So the scales of b come
// through the ring like those of a: a warp of the producer writes them into the slot. Where a
// consumer has registers for two partial sums, it issues a product before it promotes the one
// before. One thread runs the whole loop of the loads, for which the compiler then needs no vote in
// each step. And weights that only tiles at work together read leave L2 before all else.

#include "ptx.cuh"
#include "scheduler.cuh"

constexpr int kWave = 64;        // rows of d that one WGMMA computes
constexpr int kDepth = 32;       // columns of a and b that it reads
constexpr int kWarpgroup = 128;  // threads
constexpr int kThreads = (CONSUMERS + 1) * kWarpgroup;  // the consumers, then the producer
constexpr int kRows = BLOCK_M / CONSUMERS;              // of the tile, that a consumer computes
constexpr int kWaves = kRows / kWave;
// Scales of b that a tile can need: two where its columns cross a block, at a multiple of kGrain.
constexpr int kScales = BLOCK_K % BLOCK_N == 0 ? 1 : 2;
constexpr int kGrain = BLOCK_N % BLOCK_K == 0 ? BLOCK_K : BLOCK_N & -BLOCK_N;
constexpr bool kPadding = LAYOUT == CONTIGUOUS || LAYOUT == PREFIX_SUMS;  // is written, as zeros
constexpr int kPanels = BLOCK_N / PANEL;  // of d: PANEL columns wide, as many as a swizzle spans
constexpr int kAlign = 1024;              // every swizzle's pattern begins anew here
// Weights leave L2 first if at most so many tiles read them. The tiles of one dense column run
// together where rows are numbered first; those of a group need not.
constexpr int kReaders = LAYOUT == DENSE && RASTER_M ? 8 : 1;

struct Shared {
  alignas(kAlign) e4m3 a[STAGES][BLOCK_M][BLOCK_K];  // (STAGES, BLOCK_M, BLOCK_K), swizzled
  alignas(kAlign) e4m3 b[STAGES][BLOCK_N][BLOCK_K];  // (STAGES, BLOCK_N, BLOCK_K), swizzled
  alignas(kAlign) float sfa[STAGES][BLOCK_M];        // (STAGES, BLOCK_M)
  alignas(kAlign) bf16 d[kPanels][BLOCK_M][PANEL];   // (BLOCK_M, BLOCK_N) in panels, swizzled
  // Each tile of a slot: the loader arrives and promises the bytes of a, b and sfa, TMA brings
  // them, a lane of the scales' warp arrives when it has written sfb; the consumers wait.
  alignas(kAlign) u64 full[STAGES];
  // Each of the consumers' 4 * CONSUMERS warps arrives when it has done with the tile; the loader
  // and the scales' warp wait.
  u64 empty[STAGES];
  Parts parts;                // on their way from the scheduler's warp to all others
  float sfb[STAGES][2];       // (STAGES, kScales)
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
static_assert(BLOCK_K == 128, "the 128-byte swizzle spans a row of a or b, as the descriptors say");
static_assert(PARTIALS == 1 || kWaves == 1, "a second partial sum is for consumers of 64 rows");
extern __shared__ __align__(1024) u8 shared_memory[];

// A role's place in the ring, and the parity of the phase that completes there next.
struct Slot {
  int stage = 0;
  u32 phase = 0;
  void advance() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// The place of d's element (row, column) in its tile. Rows of a panel lie densely; where they are
// 32, 64 or 128 bytes wide, TMA swaps the 16-byte vectors in each: which with which depends on how
// many times 128 bytes lie before the row.
bf16& at(bf16 (&tile)[kPanels][BLOCK_M][PANEL], int row, int column) {
  constexpr int kSpan = PANEL * sizeof(bf16);
  const int swizzle = kSpan % 32 == 0 ? row * kSpan / 128 % (kSpan / 16) * 8 : 0;
  return tile[column / PANEL][row][column % PANEL ^ swizzle];
}

// The scales of b for 32 k-steps from `step` on, one in each lane of the warp: for the tile's first
// column, and for the block of columns after that one's. What lies outside sfb (rows, columns) is
// never used.
void fetch(float (&scales)[kScales], const float* sfb, int rows, int columns, i64 ld_sfb,
           int column0, int step) {
  const int column = min(step + static_cast<int>(threadIdx.x) % 32, columns - 1);
#pragma unroll
  for (int i = 0; i < kScales; ++i) {
    scales[i] = sfb[min(column0 / BLOCK_K + i, rows - 1) * ld_sfb + column];
  }
}

// partial (kWave, BLOCK_N) = the product of the tiles with these descriptors.
void compute(float (&partial)[BLOCK_N / 2], u64 a, u64 b) {
  keep_in_order(partial);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_K; k += kDepth) wgmma_mma_async(partial, a + k / 16, b + k / 16, k > 0);
  wgmma_commit_group();
  keep_in_order(partial);
}

// The slot goes back to the producer. For whole warps.
void release(Shared& shared, int stage) {
  __syncwarp();  // all lanes arrive when they have read their scales, and lane 0 waits for them
  if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);
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

// The kWave rows from `row` on of the tile of d, into shared memory; zeros from its row `middle`
// on. A warp writes 16 of them, 16 columns at a time: lane l names the place of row l % 16, and of
// the columns from l / 16 * 8 on.
void write(Shared& shared, const float (&acc)[BLOCK_N / 2], int row, int middle) {
  const int first = row + threadIdx.x / 32 % 4 * 16, lane = threadIdx.x % 32;
  const int own = middle - first - lane / 4;  // rows from this lane's first on that are the group's
  const u32 masks[2] = {own > 0 || !kPadding ? ~0u : 0, own > 8 || !kPadding ? ~0u : 0};
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i += 8) {
    u32 pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pairs[j] = cvt_rn_bf16x2_f32(acc[i + 2 * j], acc[i + 2 * j + 1]) & masks[j % 2];
    }
    bf16& place = at(shared.d, first + lane % 16, 2 * i + lane / 16 * 8);
    stmatrix_x4(&place, pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// The part's rows of d, of the kRows from `row` of the tile on, from shared memory. `aligned`: 16
// bytes at once.
void copy(bf16* d, Shared& shared, const Part& part, int row, int columns, i64 ldd, bool aligned) {
  const int width = aligned ? 8 : 1;
#pragma unroll 1
  for (int i = threadIdx.x % kWarpgroup * width; i < kRows * BLOCK_N; i += kWarpgroup * width) {
    const int r = row + i / BLOCK_N, c = i % BLOCK_N;   // in the tile
    const int y = part.row0 + r, x = part.column0 + c;  // in d
    if (y < part.first || y >= part.last || x >= columns) continue;
    bf16* from = &at(shared.d, r, c);
    bf16* to = d + y * ldd + x;
    if (aligned) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<uint4*>(from);
    } else {
      *to = *from;
    }
  }
}

// The same from registers, in FP32 or added to what d holds, for kWave rows. Lane l of warp w holds
// two neighbours each of rows 16 w + l / 4 and 8 further down, in every 8 columns. The loop moves
// the sums down: it is quick to compile.
void store(void* d, float (&acc)[BLOCK_N / 2], const Part& part, int row, int columns, i64 ldd,
           bool aligned) {
  const int lane_row = part.row0 + row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const int end = part.column0 + BLOCK_N;
#pragma unroll 1
  for (int column = part.column0 + threadIdx.x % 4 * 2; column < end; column += 16) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int y = lane_row + i / 2 % 2 * 8, x = column + i / 4 * 8 + i % 2;
      if (y < part.first || y >= part.last || x >= columns) continue;
      float* place = static_cast<float*>(d) + y * ldd + x;
      bf16* half = static_cast<bf16*>(d) + y * ldd + x;
      if (y >= part.middle) acc[i] = 0;
      if (ACCUMULATE) acc[i] += OUT_FP32 ? *place : __uint_as_float(*half << 16);
      if (!OUT_FP32) *half = cvt_rn_bf16_f32(acc[i]);
      if (OUT_FP32 && !aligned) *place = acc[i];
      if (OUT_FP32 && aligned && i % 2) {  // both neighbours at once
        *reinterpret_cast<float2*>(place - 1) = {acc[i - 1], acc[i]};
      }
    }
#pragma unroll
    for (int i = 8; i < BLOCK_N / 2; ++i) acc[i - 8] = acc[i];
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) s11_overlapped_fp8_gemm_nt(
    const __grid_constant__ CUtensorMap a_map,    // (m, k), boxes (BLOCK_M, BLOCK_K)
    const __grid_constant__ CUtensorMap b_map,    // (groups * n, k), boxes (BLOCK_N, BLOCK_K)
    const __grid_constant__ CUtensorMap sfa_map,  // (k / 128, m), boxes (1, BLOCK_M); see below
    const __grid_constant__ CUtensorMap d_map,    // (m, n), boxes (kRows, PANEL), if BF16, aligned
    void* d,                                      // (m, n) BF16 or FP32 (OUT_FP32); rows ldd apart
    const float* sfb,                             // (groups, n / 128, k / 128)
    const int* index, int span, int zero_padding,  // as in GroupedScheduler
    int m, int n, int k, int groups, i64 ld_sfb, i64 group_sfb, i64 ldd, int aligned) {
  // A MASKED sfa is (groups * k / 128, span). Rows of sfb are ld_sfb apart, its groups group_sfb.
  // `aligned`: the address of d, the bytes of its rows and their distance are multiples of 16.
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  // From lane 0, so that the compiler knows it to be the same in all lanes and keeps descriptors in
  // uniform registers.
  const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / kWarpgroup, 0);
  // One thread alone: addresses that differ between lanes are served one after the other.
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(&shared.full[i], 2);
      mbarrier_init(&shared.empty[i], 4 * CONSUMERS);
    }
    shared.parts.init(4 * CONSUMERS + 2);
    fence_mbarrier_init();
  }
  // Each role waits at barrier 0 until thread 0 has initialised the mbarriers, as late as it can.
  const int sfb_rows = (n + BLOCK_K - 1) / BLOCK_K, steps = (k + BLOCK_K - 1) / BLOCK_K;
  int count = 0;     // number of parts told or heard so far
  bool more = true;  // more parts will come
  Slot slot;         // of this role's next tile
  if (warpgroup == CONSUMERS) {
    setmaxnreg_dec<PRODUCER_REGISTERS>();
    const int warp = __shfl_sync(0xffffffff, threadIdx.x % kWarpgroup / 32, 0);
    if (warp == 1) {  // finds the parts
      GroupedScheduler<LAYOUT> scheduler{m, n, groups, index, span, zero_padding};
      Part part = {};
      for (; more; shared.parts.tell(count++, part)) {
        // A vote shows the compiler that no lane stays behind.
        more = __all_sync(0xffffffff, scheduler.next(part));
        if (!more) part.group = DONE;
        if (count == 0) barrier_sync(0, kThreads);
      }
      return;
    }
    barrier_sync(0, kThreads);
    if (warp == 2) {  // brings the scales of b
      while (more) {
        const Part part = shared.parts.listen(count++);
        more = __all_sync(0xffffffff, part.group != DONE);
        if (part.group < 0) continue;
        const float* from = sfb + part.group * group_sfb;
        float scales[kScales], next[kScales];
        fetch(next, from, sfb_rows, steps, ld_sfb, part.column0, 0);
        for (int step = 0; step < steps; ++step) {
          if (step % 32 == 0) {  // 32 scales are used up: take the next, fetch ahead
#pragma unroll
            for (int i = 0; i < kScales; ++i) scales[i] = next[i];
            fetch(next, from, sfb_rows, steps, ld_sfb, part.column0, step + 32);
          }
          mbarrier_wait_parity(&shared.empty[slot.stage], slot.phase ^ 1);
          if (static_cast<int>(threadIdx.x) % 32 == step % 32) {  // the lane that has them
#pragma unroll
            for (int i = 0; i < kScales; ++i) shared.sfb[slot.stage][i] = scales[i];
            mbarrier_arrive(&shared.full[slot.stage]);
          }
          slot.advance();
        }
      }
    }
    // One thread runs the whole loop: where it is elected in each step, the compiler makes a loop
    // over lanes of each load.
    if (warp == 0 && elect_sync()) {
      prefetch_tensormap(&d_map);
      for (;; ++count) {
        const Part part = shared.parts.take(count);
        if (part.group == DONE) break;
        const int b_row = part.group * n + part.column0;
        const int sfa0 = LAYOUT == MASKED ? part.group * steps : 0;
        const bool few = part.down <= kReaders;
        const u64 b_policy = few ? createpolicy_evict_first() : createpolicy_evict_normal();
        for (int step = 0; step < (part.group < 0 ? 0 : steps); ++step) {
          u64* full = &shared.full[slot.stage];
          mbarrier_wait_parity(&shared.empty[slot.stage], slot.phase ^ 1);
          mbarrier_arrive_expect_tx(
              full, sizeof(shared.a[0]) + sizeof(shared.b[0]) + sizeof(shared.sfa[0]));
          cp_async_bulk_tensor_load(shared.a[slot.stage], &a_map, step * BLOCK_K, part.row0, full);
          cp_async_bulk_tensor_load(
              shared.b[slot.stage], &b_map, step * BLOCK_K, b_row, full, b_policy);
          cp_async_bulk_tensor_load(
              shared.sfa[slot.stage], &sfa_map, part.sfa_row, sfa0 + step, full);
          slot.advance();
        }
      }
    }
    return;
  }

  barrier_sync(0, kThreads);
  setmaxnreg_inc<CONSUMER_REGISTERS>();
  // Rows of the tile: the first of this consumer, and of this lane, whose second is 8 further on.
  const int row = warpgroup * kRows;
  const int lane_row = row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const u32 a0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(shared.a[0][row]), 0);
  const u32 b0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(shared.b[0]), 0);
  // A d that is larger than L2 leaves room for a and b there.
  const bool large = static_cast<i64>(m) * n * sizeof(bf16) > 50 << 20;
  const u64 d_policy = large ? createpolicy_evict_first() : createpolicy_evict_normal();
  float acc[kWaves][BLOCK_N / 2], partial[PARTIALS][BLOCK_N / 2] = {};
  float sfa[PARTIALS][2], scale_b[PARTIALS][kScales];
  Slot ahead;  // of the next product to issue; `slot` is that of the next to promote
  for (Part part{DONE}, next; more; part = next) {  // at first none, which has no rows
    const int row0 = part.row0 + row, column0 = part.column0;
    const int split = BLOCK_K - column0 % BLOCK_K;  // from this column on, the second scale of b
#pragma unroll
    for (int i = 0; i < kWaves; ++i) {
#pragma unroll
      for (int j = 0; j < BLOCK_N / 2; ++j) acc[i][j] = 0;
    }

    // Issues partial sum i, and reads its scales meanwhile.
    const auto issue = [&](int i, int wave) {
      if (wave == 0) mbarrier_wait_parity(&shared.full[ahead.stage], ahead.phase);
      compute(partial[i],
              wgmma_descriptor(a0 + (ahead.stage * BLOCK_M + wave * kWave) * (BLOCK_K / 16)),
              wgmma_descriptor(b0 + ahead.stage * BLOCK_N * (BLOCK_K / 16)));
      const volatile float* scale_a = &shared.sfa[ahead.stage][lane_row + wave * kWave];
      const volatile float* of_b = shared.sfb[ahead.stage];
      sfa[i][0] = scale_a[0];
      sfa[i][1] = scale_a[8];
#pragma unroll
      for (int j = 0; j < kScales; ++j) scale_b[i][j] = of_b[j];
      if (wave == kWaves - 1) ahead.advance();
    };
    // Adds partial sum i once at most kPending younger ones are still being computed.
    const auto finish = [&](int i, int wave) {
      keep_in_order(partial[i]);
      if (wave == kWaves - 1) {
        release(shared, slot.stage);
        slot.advance();
      }
      promote(acc[wave], partial[i], sfa[i], scale_b[i], split);
    };

    // Whether this consumer has rows to compute. To ask inside the loop would cost a tenth of the
    // time.
    const bool any = part.group >= 0 && part.first < row0 + kRows && row0 < part.middle;
    const int own = __shfl_sync(0xffffffff, any ? steps : 0, 0);
    if (PARTIALS == 1) {
      for (int step = 0; step < own; ++step) {
#pragma unroll
        for (int wave = 0; wave < kWaves; ++wave) {
          issue(0, wave);
          wgmma_wait_group<0>();
          finish(0, wave);
        }
      }
    } else if (own > 0) {
      issue(0, 0);
#pragma unroll 1
      for (int step = 2; step < own; step += 2) {
        issue(1, 0);
        wgmma_wait_group<1>();
        finish(0, 0);
        issue(0, 0);
        wgmma_wait_group<1>();
        finish(1, 0);
      }
      if (own % 2 == 0) {
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
    // Slots with none of this consumer's rows.
    for (int step = own; step < (part.group < 0 ? 0 : steps); ++step) {
      mbarrier_wait_parity(&shared.full[slot.stage], slot.phase);
      release(shared, slot.stage);
      slot.advance();
      ahead.advance();
    }
    // Before the epilogue, so that the next part is known when it ends.
    next = shared.parts.listen(count++);
    more = __all_sync(0xffffffff, next.group != DONE);

    if (part.group == DONE) continue;
    if (OUT_FP32 || ACCUMULATE) {
#pragma unroll
      for (int i = 0; i < kWaves; ++i) store(d, acc[i], part, row + i * kWave, n, ldd, aligned);
      continue;
    }
    // The tile before must have been read.
    if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
    bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until thread 0 knows
#pragma unroll
    for (int i = 0; i < kWaves; ++i) {
      write(shared, acc[i], row + i * kWave, part.middle - part.row0);
    }
    fence_proxy_async();                  // each thread's own writes, for the TMA that reads them
    bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until all have fenced
    // Whether all rows that TMA would write are the part's.
    const bool whole = part.first <= row0 && (row0 + kRows <= part.last || part.last == m);
    if (!aligned || !whole) {
      copy(static_cast<bf16*>(d), shared, part, row, n, ldd, aligned);
    } else if (threadIdx.x % kWarpgroup == 0) {
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        cp_async_bulk_tensor_store(&d_map, column0 + i * PANEL, row0, shared.d[i][row], d_policy);
      }
      cp_async_bulk_commit_group();
    }
  }
  // Shared memory must last until TMA has read it.
  if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
}
