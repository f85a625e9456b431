// s10_grouped: groups: the library's kernel.
//
// The experts of a layer are products that each have their own rows of a and their own b, in one
// launch, and the host does not know how many rows. A warp of the producer finds out: it alone
// walks the tiles, ahead of all, and tells the others, which know no layout, what part of d comes
// next. A consumer writes the rows of the part: by TMA where all of its own are, by threads where a
// group ends among them. Where d has few tiles, SPLITS warpgroups take turns along k for the same
// rows, and the first adds up their sums.

#include "ptx.cuh"
#include "scheduler.cuh"

constexpr int kWave = 64;        // rows of d that one WGMMA computes
constexpr int kDepth = 32;       // columns of a and b that it reads
constexpr int kWarpgroup = 128;  // threads
constexpr int kConsumers = CONSUMERS * SPLITS;  // warpgroups that compute; first the first split's
constexpr int kThreads = (kConsumers + 1) * kWarpgroup;  // the consumers, then the producer
constexpr int kLoaders = SPLITS > 1 ? 2 : 1;  // warps that load; one more finds tiles
constexpr int kRows = BLOCK_M / CONSUMERS;    // of the tile, that a consumer computes
constexpr int kWaves = kRows / kWave;
// Scales of b that a tile can need: two where its columns cross a block, at a multiple of kGrain.
constexpr int kScales = BLOCK_K % BLOCK_N == 0 ? 1 : 2;
constexpr int kGrain = BLOCK_N % BLOCK_K == 0 ? BLOCK_K : BLOCK_N & -BLOCK_N;
constexpr bool kPadding = LAYOUT == CONTIGUOUS || LAYOUT == PREFIX_SUMS;  // is written, as zeros
constexpr int kSums = kWaves * BLOCK_N / 2;  // accumulators of a thread
constexpr int kPanels = BLOCK_N / PANEL;  // of d: PANEL columns wide, as many as a swizzle spans
constexpr int kAlign = 1024;              // every swizzle's pattern begins anew here

struct Shared {
  alignas(kAlign) e4m3 a[STAGES][BLOCK_M][BLOCK_K];  // (STAGES, BLOCK_M, BLOCK_K), swizzled
  alignas(kAlign) e4m3 b[STAGES][BLOCK_N][BLOCK_K];  // (STAGES, BLOCK_N, BLOCK_K), swizzled
  alignas(kAlign) float sfa[STAGES][BLOCK_M];        // (STAGES, BLOCK_M)
  alignas(kAlign) bf16 d[kPanels][BLOCK_M][PANEL];   // (BLOCK_M, BLOCK_N) in panels, swizzled
  // Each tile of a slot: a loader arrives and promises the bytes of a, b and sfa, TMA brings them;
  // the consumers of the slot's split wait.
  alignas(kAlign) u64 full[STAGES];
  // Each of the split's 4 * CONSUMERS warps arrives when it has done with the tile; a loader waits.
  u64 empty[STAGES];
  Parts parts;  // on their way from the scheduler's warp to all others
  // Each thread of the other splits arrives when its sums lie in `sums`; the first split waits.
  u64 sent[CONSUMERS];
  // Each thread of the first split arrives when it has added them up; the other splits wait.
  u64 taken[CONSUMERS];
  // (other splits, CONSUMERS, kSums, threads)
  float sums[SPLITS > 1 ? SPLITS - 1 : 1][CONSUMERS][SPLITS > 1 ? kSums : 1][kWarpgroup];
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
static_assert(STAGES % SPLITS == 0, "a slot belongs to one split, which alone knows its phase");
static_assert(BLOCK_K == 128, "the 128-byte swizzle spans a row of a or b, as the descriptors say");
extern __shared__ __align__(1024) u8 shared_memory[];

// A place in a ring of which every kStep-th slot is this role's, and the parity of the phase that
// completes there next.
template <int kSlots, int kStep>
struct Ring {
  int slot;
  u32 phase = 0;
  void advance() {
    slot += kStep;
    if (slot >= kSlots) {
      slot -= kSlots;
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

// The slot goes back to the producer. For whole warps.
void release(Shared& shared, int stage) {
  __syncwarp();  // all lanes arrive when they have read scales and part, and lane 0 waits for them
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

// acc of the first split += the sums of the other splits, in their order. For all threads of
// `consumer`, one tile after another.
void sum(Shared& shared, float (&acc)[kWaves][BLOCK_N / 2], int split, int consumer, u32 tile) {
  if (split > 0) mbarrier_wait_parity(&shared.taken[consumer], tile % 2 ^ 1);  // of the tile before
#pragma unroll
  for (int other = 0; other < SPLITS; ++other) {
    if (other == 1 && split == 0) mbarrier_wait_parity(&shared.sent[consumer], tile % 2);
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int thread = threadIdx.x % kWarpgroup;
      float& x = acc[i / (BLOCK_N / 2)][i % (BLOCK_N / 2)];
      if (other == 0 && split > 0) shared.sums[split - 1][consumer][i][thread] = x;
      if (other > 0 && split == 0) x += shared.sums[other - 1][consumer][i][thread];
    }
  }
  mbarrier_arrive(split > 0 ? &shared.sent[consumer] : &shared.taken[consumer]);
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
    for (int j = 0; j < 8; j += 2) {
      pairs[j / 2] = cvt_rn_bf16x2_f32(acc[i + j], acc[i + j + 1]) & masks[j / 2 % 2];
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
    const int r = row + i / BLOCK_N, c = i % BLOCK_N;      // in the tile
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

extern "C" __global__ void __launch_bounds__(kThreads, 1) s10_grouped_fp8_gemm_nt(
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
      mbarrier_init(&shared.full[i], 1);
      mbarrier_init(&shared.empty[i], 4 * CONSUMERS);
    }
    shared.parts.init(4 * kConsumers + kLoaders);
    for (u64& sent : shared.sent) mbarrier_init(&sent, max(SPLITS - 1, 1) * kWarpgroup);
    for (u64& taken : shared.taken) mbarrier_init(&taken, kWarpgroup);
    fence_mbarrier_init();
  }
  // Each role waits at barrier 0 until thread 0 has initialised the mbarriers, as late as it can.
  const int sfb_rows = (n + BLOCK_K - 1) / BLOCK_K, steps = (k + BLOCK_K - 1) / BLOCK_K;
  int count = 0;     // number of parts told or heard so far
  bool more = true;  // more parts will come
  if (warpgroup == kConsumers) {
    setmaxnreg_dec<PRODUCER_REGISTERS>();
    const int warp = __shfl_sync(0xffffffff, threadIdx.x % kWarpgroup / 32, 0);
    const bool elected = elect_sync();
    if (warp == kLoaders) {
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
    if (elected) {
      prefetch_tensormap(&a_map);
      prefetch_tensormap(&b_map);
      prefetch_tensormap(&sfa_map);
      prefetch_tensormap(&d_map);
    }
    barrier_sync(0, kThreads);
    if (warp > kLoaders) return;
    Ring<STAGES, kLoaders> ring{warp};
    while (more) {
      const Part part = shared.parts.listen(count++);
      more = __all_sync(0xffffffff, part.group != DONE);
      const int group = part.group, b_row = group * n + part.column0;
      const int sfa0 = LAYOUT == MASKED ? group * steps : 0;
      // Rows of b that few tiles read need not stay in L2.
      const bool few = part.down <= 2;
      const u64 b_policy = few ? createpolicy_evict_first() : createpolicy_evict_normal();
      // As many slots for each split.
      const int end = group < 0 ? 0 : (steps + SPLITS - 1) / SPLITS * SPLITS;
      for (int step = warp; step < end; step += kLoaders) {
        u64* full = &shared.full[ring.slot];
        mbarrier_wait_parity(&shared.empty[ring.slot], ring.phase ^ 1);
        if (elected && step < steps) {
          mbarrier_arrive_expect_tx(
              full, sizeof(shared.a[0]) + sizeof(shared.b[0]) + sizeof(shared.sfa[0]));
          cp_async_bulk_tensor_load(shared.a[ring.slot], &a_map, step * BLOCK_K, part.row0, full);
          cp_async_bulk_tensor_load(
              shared.b[ring.slot], &b_map, step * BLOCK_K, b_row, full, b_policy);
          cp_async_bulk_tensor_load(
              shared.sfa[ring.slot], &sfa_map, part.sfa_row, sfa0 + step, full);
        } else if (elected) {
          mbarrier_arrive(full);  // a split without a step of its own: the slot stays as it is
        }
        ring.advance();
      }
    }
    return;
  }

  barrier_sync(0, kThreads);
  setmaxnreg_inc<CONSUMER_REGISTERS>();
  const int consumer = warpgroup % CONSUMERS, k_split = warpgroup / CONSUMERS;
  // Rows of the tile: the first of this consumer, and of this lane, whose second is 8 further on.
  const int row = consumer * kRows;
  const int lane_row = row + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  float partial[BLOCK_N / 2] = {}, lane_sfb[kScales], next_sfb[kScales], scale_b[kScales];
  // A d that is larger than L2 leaves room for a and b there.
  const bool large = static_cast<i64>(m) * n * sizeof(bf16) > 50 << 20;
  const u64 d_policy = large ? createpolicy_evict_first() : createpolicy_evict_normal();
  Ring<STAGES, SPLITS> ring{k_split};
  for (Part part{DONE}, next; more; part = next) {  // at first none, which has no rows
    const int row0 = part.row0 + row, column0 = part.column0;
    // Whether this consumer has rows to compute. To ask inside the loop would cost a tenth of the
    // time.
    const bool any = part.group >= 0 && part.first < row0 + kRows && row0 < part.middle;
    const int split = BLOCK_K - column0 % BLOCK_K;  // from this column on, the second scale of b
    float acc[kWaves][BLOCK_N / 2] = {};
    int step = k_split;
    for (const int end = __shfl_sync(0xffffffff, any ? steps : 0, 0); step < end; step += SPLITS) {
      if (step >= 32 && step % 32 < SPLITS) {  // 32 scales are used up: take the next, fetch ahead
        for (int i = 0; i < kScales; ++i) lane_sfb[i] = next_sfb[i];
        const float* part_sfb = sfb + part.group * group_sfb;
        fetch(next_sfb, part_sfb, sfb_rows, steps, ld_sfb, column0, step / 32 * 32 + 32);
      }
      for (int i = 0; i < kScales; ++i) {
        scale_b[i] = __shfl_sync(0xffffffff, lane_sfb[i], step % 32);
      }
      mbarrier_wait_parity(&shared.full[ring.slot], ring.phase);
#pragma unroll
      for (int i = 0; i < kWaves; ++i) {
        const float* sfa = &shared.sfa[ring.slot][lane_row + i * kWave];
        // One wave: load the scales first, or ptxas may hold back the last WGMMA.
        float scale_a[2];
        if (kWaves == 1) {
          scale_a[0] = sfa[0];
          scale_a[1] = sfa[8];
        }
        compute(partial, shared, ring.slot, row + i * kWave);
        if (kWaves > 1) {
          scale_a[0] = sfa[0];
          scale_a[1] = sfa[8];
        }
        wgmma_wait_group<0>();
        keep_in_order(partial);
        if (i == kWaves - 1) release(shared, ring.slot);
        promote(acc[i], partial, scale_a, scale_b, split);
      }
      ring.advance();
    }
    // Slots with none of this consumer's rows.
    const int slots = part.group < 0 ? 0 : (steps + SPLITS - 1) / SPLITS * SPLITS;
    for (; step < slots; step += SPLITS) {
      mbarrier_wait_parity(&shared.full[ring.slot], ring.phase);
      release(shared, ring.slot);
      ring.advance();
    }
    // Before the epilogue, which takes as long as it takes to fetch the scales of b.
    next = shared.parts.listen(count++);
    more = __all_sync(0xffffffff, next.group != DONE);
    const float* next_b = sfb + max(next.group, 0) * group_sfb;
    fetch(lane_sfb, next_b, sfb_rows, steps, ld_sfb, next.column0, 0);
    fetch(next_sfb, next_b, sfb_rows, steps, ld_sfb, next.column0, 32);

    if (part.group == DONE) continue;
    if (SPLITS > 1) sum(shared, acc, k_split, consumer, count);
    if (k_split > 0) continue;
    if (OUT_FP32 || ACCUMULATE) {
#pragma unroll
      for (int i = 0; i < kWaves; ++i) store(d, acc[i], part, row + i * kWave, n, ldd, aligned);
      continue;
    }
    // The tile before must have been read.
    if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
    bar_sync(1 + consumer, kWarpgroup);  // this consumer's threads wait until thread 0 knows
#pragma unroll
    for (int i = 0; i < kWaves; ++i) {
      write(shared, acc[i], row + i * kWave, part.middle - part.row0);
    }
    fence_proxy_async();                 // each thread's own writes, for the TMA that reads them
    bar_sync(1 + consumer, kWarpgroup);  // this consumer's threads wait until all have fenced
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
