// s10_grouped: groups, which are products with their own rows of a and their own b, in one launch.
//
// Only the device knows where groups end, and to find out takes time. So one warp finds the parts
// of d, ahead of the others, and tells them: a part is the rows of a tile that belong to one group.
// Where a group ends among a consumer's rows, TMA would store too many: threads store the part's.

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
constexpr int kPanels = BLOCK_N / PANEL;  // of d: PANEL columns wide, as many as a swizzle spans
constexpr int kAlign = 1024;              // every swizzle's pattern begins anew here

struct Shared {
  alignas(kAlign) e4m3 a[STAGES][BLOCK_M][BLOCK_K];  // (STAGES, BLOCK_M, BLOCK_K), swizzled
  alignas(kAlign) e4m3 b[STAGES][BLOCK_N][BLOCK_K];  // (STAGES, BLOCK_N, BLOCK_K), swizzled
  alignas(kAlign) float sfa[STAGES][BLOCK_M];        // (STAGES, BLOCK_M)
  alignas(kAlign) bf16 d[kPanels][BLOCK_M][PANEL];   // (BLOCK_M, BLOCK_N) in panels, swizzled
  // In each round of a slot the loader arrives and promises the bytes of a, b and sfa, TMA brings
  // them; the consumers wait.
  alignas(kAlign) u64 full[STAGES];
  // In each round lane 0 of each of the consumers' 4 * CONSUMERS warps arrives when its warp has
  // read the slot; the loader waits.
  u64 empty[STAGES];
  Parts parts;  // on their way from the warp that finds them to those that load and compute
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
static_assert(BLOCK_K == 128, "the 128-byte swizzle spans a row of a or b, as the descriptors say");
extern __shared__ __align__(1024) u8 shared_memory[];

// Where TMA puts this byte of a row of kSpan bytes. Rows lie densely; where they are 32, 64 or 128
// bytes wide, the 16-byte vectors within each trade places: which with which depends on how many
// times 128 bytes lie before the row.
template <int kSpan>
int swizzle(int row, int byte) {
  constexpr bool kSwizzled = kSpan == 32 || kSpan == 64 || kSpan == 128;
  return kSwizzled ? byte ^ row * kSpan / 128 % (kSpan / 16) * 16 : byte;
}

// The place of d's element (row, column) in its tile.
bf16& at(bf16 (&tile)[kPanels][BLOCK_M][PANEL], int row, int column) {
  constexpr int kSpan = PANEL * sizeof(bf16);
  const int byte = swizzle<kSpan>(row, column % PANEL * sizeof(bf16));
  return tile[column / PANEL][row][byte / sizeof(bf16)];
}

// The tiles of a, b and sfa that the part needs from column k0 on, into slot `stage`. A group has n
// rows of b; a MASKED one also has its own rows of sfa, from `sfa0` on. For one thread.
void load(Shared& shared, int stage, const CUtensorMap& a_map, const CUtensorMap& b_map,
          const CUtensorMap& sfa_map, const Part& part, int n, int sfa0, int k0) {
  u64* full = &shared.full[stage];
  mbarrier_arrive_expect_tx(
      full, sizeof(shared.a[0]) + sizeof(shared.b[0]) + sizeof(shared.sfa[0]));  // the zeros too
  cp_async_bulk_tensor_load(shared.a[stage], &a_map, k0, part.row0, full);
  cp_async_bulk_tensor_load(shared.b[stage], &b_map, k0, part.group * n + part.column0, full);
  cp_async_bulk_tensor_load(shared.sfa[stage], &sfa_map, part.sfa_start, sfa0 + k0 / BLOCK_K, full);
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

// partial (kWave, BLOCK_N) = the product of the tiles in slot `stage`: kWave rows of a from `row`
// on, all of b.
void compute(float (&partial)[BLOCK_N / 2], const Shared& shared, int stage, int row) {
  const u64 a = wgmma_descriptor(shared.a[stage][row]), b = wgmma_descriptor(shared.b[stage]);
  keep_in_order(partial);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_K; k += kDepth) wgmma_mma_async(partial, a + k / 16, b + k / 16, k > 0);
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

// The kWave rows from `row` on of the tile of d, into shared memory. A warp writes 16 of them, 16
// columns at a time: lane l names the place of row l % 16, and of the columns from l / 16 * 8 on.
void write(Shared& shared, const float (&acc)[BLOCK_N / 2], int row) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i += 8) {
    u32 pairs[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) pairs[j] = cvt_rn_bf16x2_f32(acc[i + 2 * j], acc[i + 2 * j + 1]);
    bf16& place = at(shared.d, row + 16 * warp + lane % 16, 2 * i + lane / 16 * 8);
    stmatrix_x4(&place, pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// The kRows rows from `row` on of the tile of d, from shared memory to (row0 + row, column0), as
// far as they lie inside d. For one thread.
void store(const CUtensorMap& d_map, const Shared& shared, int row0, int column0, int row) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    cp_async_bulk_tensor_store(&d_map, column0 + i * PANEL, row0 + row, shared.d[i][row]);
  }
  cp_async_bulk_commit_group();
}

// The part's rows of the kWave from `row` of d on, from registers; padding as zeros. Lane l of
// warp w holds two neighbours each of rows 16 w + l / 4 and 8 further down, in every 8 columns.
void store(void* d, const float (&acc)[BLOCK_N / 2], const Part& part, int n, i64 ldd, int row) {
  row += threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const int column = part.column0 + threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; ++i) {
    const int r = row + i / 2 % 2 * 8, c = column + i / 4 * 8 + i % 2;
    if (r < part.first || r >= part.last || c >= n) continue;
    const float sum = r < part.middle ? acc[i] : 0;
    if (OUT_FP32) {
      static_cast<float*>(d)[r * ldd + c] = sum;
    } else {
      static_cast<bf16*>(d)[r * ldd + c] = cvt_rn_bf16_f32(sum);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) s10_grouped(
    const __grid_constant__ CUtensorMap a_map,    // (m, k), boxes (BLOCK_M, BLOCK_K)
    const __grid_constant__ CUtensorMap b_map,    // (groups * n, k), boxes (BLOCK_N, BLOCK_K)
    const __grid_constant__ CUtensorMap sfa_map,  // (k / 128, m); MASKED: (groups * k / 128, span)
    const __grid_constant__ CUtensorMap d_map,    // (m, n), boxes (kRows, PANEL), if BF16, aligned
    void* d,                                      // (m, n) BF16 or FP32 (OUT_FP32); rows ldd apart
    const float* sfb,                             // (groups, n / 128, k / 128); see below
    const int* index,  // CONTIGUOUS: each row's group; PREFIX_SUMS: groups' ends; MASKED: counts
    int span, int zero_padding,  // see GroupedScheduler
    int m, int n, int k, int groups, i64 ld_sfb, i64 group_sfb, i64 ldd, int aligned) {
  // Groups of sfb are group_sfb apart, rows ld_sfb. Aligned: 16 bytes divide d's start, ldd and n.
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  // From lane 0, so that the compiler knows it to be the same in all lanes and keeps descriptors in
  // uniform registers.
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), warpgroup = warp / 4;

  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(&shared.full[i], 1);
      mbarrier_init(&shared.empty[i], 4 * CONSUMERS);
    }
    shared.parts.init(4 * CONSUMERS + 1);  // the consumers' warps listen, and the loader
    fence_mbarrier_init();
  }
  __syncthreads();  // all threads wait until thread 0 has initialised the barriers

  // Each role walks the same parts; slots and phases go on from one to the next.
  u32 heard = 0;              // parts that this role has heard of: the number of its next one
  int stage = 0;              // this k-step's slot
  u32 phase = 0;              // parity of the phase that the slot's full barrier completes now
  const int sfb_rows = (n + BLOCK_K - 1) / BLOCK_K, steps = (k + BLOCK_K - 1) / BLOCK_K;
  if (warpgroup == CONSUMERS) {
    setmaxnreg_dec<PRODUCER_REGISTERS>();
    if (warp % 4 == 1) {  // finds the parts
      GroupedScheduler<LAYOUT> scheduler{m, n, groups, index, span, zero_padding};
      shared.parts.tell_all(scheduler);
    }
    if (warp % 4 == 0 && elect_sync()) {  // the loader
      prefetch_tensormap(&a_map);
      prefetch_tensormap(&b_map);
      prefetch_tensormap(&sfa_map);
      for (Part part; shared.parts.take(heard, part); ++heard) {
        const int sfa0 = LAYOUT == MASKED ? part.group * steps : 0;
        for (int k0 = 0; k0 < part.loaded(k); k0 += BLOCK_K) {
          mbarrier_wait_parity(&shared.empty[stage], phase ^ 1);  // at first all slots are empty
          load(shared, stage, a_map, b_map, sfa_map, part, n, sfa0, k0);
          if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
          }
        }
      }
    }
    return;
  }

  setmaxnreg_inc<CONSUMER_REGISTERS>();
  // Rows of the tile: the first of this consumer, and of this lane, whose second is 8 further on.
  const int row = warpgroup * kRows;
  const int lane_row = row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  float partial[BLOCK_N / 2] = {}, lane_sfb[kScales], scale_b[kScales];
  for (Part part; shared.parts.listen(heard, part); ++heard) {
    const int row0 = part.row0, column0 = part.column0;
    const int split = BLOCK_K - column0 % BLOCK_K;  // from this column on, the second scale of b
    float acc[kWaves][BLOCK_N / 2] = {};
    const float* part_sfb = sfb + max(part.group, 0) * group_sfb;  // padding never uses it
    fetch(lane_sfb, part_sfb, sfb_rows, steps, ld_sfb, column0, 0);
    // A consumer without rows of the group skips all steps: a test in each step would take longer.
    const bool any = part.first < row0 + row + kRows && row0 + row < part.middle;
    const int loaded = part.loaded(steps), multiplied = any ? loaded : 0;
    for (int step = 0; step < multiplied; ++step) {
#pragma unroll
      for (int i = 0; i < kScales; ++i) {
        scale_b[i] = __shfl_sync(0xffffffff, lane_sfb[i], step % 32);
      }
      // In time for the next step.
      if (step % 32 == 31) fetch(lane_sfb, part_sfb, sfb_rows, steps, ld_sfb, column0, step + 1);
      mbarrier_wait_parity(&shared.full[stage], phase);
#pragma unroll
      for (int i = 0; i < kWaves; ++i) {
        compute(partial, shared, stage, row + i * kWave);
        const float* sfa = &shared.sfa[stage][lane_row + i * kWave];
        const float scale_a[2] = {sfa[0], sfa[8]};
        wgmma_wait_group<0>();
        keep_in_order(partial);
        if (i == kWaves - 1) {
          __syncwarp();  // all lanes arrive with their scales read, and lane 0 waits for them
          if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);
        }
        promote(acc[i], partial, scale_a, scale_b, split);
      }
      if (++stage == STAGES) {
        stage = 0;
        phase ^= 1;
      }
    }
    for (int step = multiplied; step < loaded; ++step) {  // slots that it skips, but gives back
      mbarrier_wait_parity(&shared.full[stage], phase);  // to arrive once in each phase
      __syncwarp();  // all lanes arrive with their wait over, and lane 0 waits for them
      if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);
      if (++stage == STAGES) {
        stage = 0;
        phase ^= 1;
      }
    }

    // Whether all rows that TMA would store, those of the box that lie inside d, are the group's.
    const bool own = part.first <= row0 + row && min(row0 + row + kRows, m) <= part.middle;
    if (OUT_FP32 || !aligned || !own) {
#pragma unroll
      for (int i = 0; i < kWaves; ++i) store(d, acc[i], part, n, ldd, row0 + row + i * kWave);
    } else {
      // The tile before must have been read.
      if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until thread 0 knows
#pragma unroll
      for (int i = 0; i < kWaves; ++i) write(shared, acc[i], row + i * kWave);
      fence_proxy_async();                  // each thread's own writes, for the TMA that reads them
      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until all have fenced
      if (threadIdx.x % kWarpgroup == 0) store(d_map, shared, row0, column0, row);
    }
  }
  // Shared memory must last until TMA has read it.
  if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
}
