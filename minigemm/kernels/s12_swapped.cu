// s12_swapped: for few rows: the weights are the 64-row side of the product.
//
// WGMMA always computes 64 rows; its other side is as narrow as 8. So a tile is transposed: the
// rows of the instruction are 64 rows of b for each consumer, its columns are the tile's BLOCK_M
// rows of a. Nothing is multiplied and promoted in vain, and what is left to do is to keep memory
// busy: a slot of the ring holds BLOCKS k-blocks, which a copy brings at once, and barriers are
// passed less often.

#include "ptx.cuh"
#include "scheduler.cuh"
#include "tile.cuh"

constexpr int kWave = 64;  // rows of b that one WGMMA multiplies
constexpr int kThreads = CONSUMERS * kWarpgroup + 96;  // the consumers, then the producer's warps
constexpr int kSums = BLOCK_M / 2;                     // of a consumer's thread

struct Shared {
  alignas(kAlign) e4m3 a[STAGES][BLOCKS][BLOCK_M][BLOCK_K];  // swizzled
  alignas(kAlign) e4m3 b[STAGES][BLOCKS][BLOCK_N][BLOCK_K];  // swizzled
  alignas(kAlign) float sfa[STAGES][BLOCKS][BLOCK_M];
  alignas(kAlign) bf16 d[CONSUMERS][BLOCK_M][PANEL];  // a panel for each consumer, swizzled
  // Each tile of a slot: the loader arrives and promises the bytes of all three, TMA brings them,
  // and BLOCKS lanes that have written the scales of b arrive; the consumers wait.
  alignas(kAlign) u64 full[STAGES];
  // Lane 0 of each of the consumers' 4 * CONSUMERS warps arrives when done; the producer waits.
  u64 empty[STAGES];
  Parts parts;  // on their way from the warp that finds them to those that load and compute
  float sfb[STAGES][BLOCKS];  // a tile lies within one block of weights
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
static_assert(BLOCK_N == CONSUMERS * kWave && PANEL == kWave, "a consumer has 64 columns of d");
static_assert(32 % BLOCKS == 0 && BLOCKS <= 4, "32 scales fill slots, and wait knows four sums");

// The tiles of b in rows from `row` on, of BLOCKS k-blocks from `block` on, into a slot that awaits
// those of a, b and sfa. For one thread.
void load_b(Shared& shared, int stage, const CUtensorMap& map, int row, int block, u64 policy) {
  u64* full = &shared.full[stage];
  mbarrier_arrive_expect_tx(
      full, sizeof(shared.a[0]) + sizeof(shared.b[0]) + sizeof(shared.sfa[0]));  // the zeros too
  if (BLOCKS == 1) {  // the last one may be shorter
    cp_async_bulk_tensor_load(shared.b[stage], &map, block * BLOCK_K, row, full, policy);
  } else {
    cp_async_bulk_tensor_load(shared.b[stage], &map, 0, row, block, full, policy);
  }
}

// Those of a and sfa. A group's scales begin in row `sfa0` of sfa. For one thread.
void load_a(Shared& shared, int stage, const CUtensorMap& a_map, const CUtensorMap& sfa_map,
            const Part& part, int sfa0, int block) {
  u64* full = &shared.full[stage];
  if (BLOCKS == 1) {
    cp_async_bulk_tensor_load(shared.a[stage], &a_map, block * BLOCK_K, part.row0, full);
  } else {
    cp_async_bulk_tensor_load(shared.a[stage], &a_map, 0, part.row0, block, full);
  }
  cp_async_bulk_tensor_load(shared.sfa[stage], &sfa_map, part.sfa_row, sfa0 + block, full);
}

// partial (kWave, BLOCK_M) = the product of kWave rows of b and all of a, whose descriptors have
// these lower halves.
void compute(float (&partial)[kSums], u32 b, u32 a) {
  keep_in_order(partial);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_K / 16; k += kDepth / 16) {
    wgmma_mma_async(partial, wgmma_descriptor(b + k), wgmma_descriptor(a + k), k > 0);
  }
  wgmma_commit_group();
  keep_in_order(partial);
}

// Returns when at most `pending` products are still being computed. A constant, once inlined.
void wait(int pending) {
  switch (pending) {
    case 0: return wgmma_wait_group<0>();
    case 1: return wgmma_wait_group<1>();
    case 2: return wgmma_wait_group<2>();
    default: return wgmma_wait_group<3>();
  }
}

// acc += partial, scaled: this lane's columns, two neighbours in every 8, have the scales sfa.
void promote(float (&acc)[kSums], const float (&partial)[kSums], const float (&sfa)[BLOCK_M / 8][2],
             float sfb) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) acc[i] = fmaf(sfa[i / 4][i % 2] * sfb, partial[i], acc[i]);
}

// The consumer's panel of the tile of d, into shared memory, transposed back, with zeros from row
// `middle` on. A warp writes 16 columns, 8 rows at a time: lane l names the place of row l % 8, and
// of the columns from l / 8 % 2 * 8 on.
void write(Shared& shared, const float (&acc)[kSums], int column, int middle) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kSums; i += 4) {
    const int own = middle - 2 * i - lane % 4 * 2;  // of the two rows that this lane has sums of
    const u32 mask = own > 1 ? ~0u : own > 0 ? 0xffff : 0;
    bf16& place = at(shared.d, 2 * i + lane % 8, column + 16 * warp + lane / 8 % 2 * 8);
    stmatrix_x2_trans(&place, cvt_rn_bf16x2_f32(acc[i], acc[i + 1]) & mask,
                      cvt_rn_bf16x2_f32(acc[i + 2], acc[i + 3]) & mask);
  }
}

// The part's rows of the panel from `column` of d on, from registers; padding as zeros. Lane l of
// warp w holds columns 16 w + l / 4 and 8 further on, of two neighbouring rows in every 8.
void store(void* d, const float (&acc)[kSums], const Part& part, int n, i64 ldd, int column) {
  const int row = part.row0 + threadIdx.x % 4 * 2;
  column += threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int r = row + i / 4 * 8 + i % 2, c = column + i / 2 % 2 * 8;
    if (r < part.first || r >= part.last || c >= n) continue;
    put(d, ldd, r, c, r < part.middle ? acc[i] : 0);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) s12_swapped_fp8_gemm_nt(
    const __grid_constant__ CUtensorMap a_map,    // (k / 128, m, 128), boxes BLOCKS x BLOCK_M; as
    const __grid_constant__ CUtensorMap b_map,    // (k / 128, groups * n, 128); s11 if BLOCKS is 1
    const __grid_constant__ CUtensorMap sfa_map,  // (k / 128, m), boxes (BLOCKS, BLOCK_M)
    const __grid_constant__ CUtensorMap d_map,    // (m, n), boxes (BLOCK_M, PANEL); BF16, aligned
    void* d,                                      // (m, n) BF16 or FP32 (OUT_FP32); rows ldd apart
    const float* sfb,                             // (groups, n / 128, k / 128); see below
    const int* index, int span, int zero_padding,  // as in GroupedScheduler
    int m, int n, int k, int groups, i64 ld_sfb, i64 group_sfb, i64 ldd, int aligned, int early) {
  // Groups of sfb are group_sfb apart, rows ld_sfb. A d that is not `aligned` TMA cannot write.
  // `early`: no kernel that may still run writes b; DENSE needs no index before it.
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  // From lane 0, so that the compiler knows it to be the same in all lanes and keeps descriptors in
  // uniform registers.
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), warpgroup = warp / 4;
  const int steps = (k + BLOCK_K - 1) / BLOCK_K;
  Walk walk{shared.parts, m, n};  // each role's own
  Slot slot;
  if (warpgroup == CONSUMERS) {
    if (warp % 4 == 0) {
      if (elect_sync()) init(shared.full, shared.empty, 1 + BLOCKS, 4 * CONSUMERS, shared.parts);
      __syncwarp();  // all lanes wait until the barriers are initialised
      barrier_arrive(0, kThreads);
      // As in s11: one thread runs all of the loop, and nothing comes behind it.
      if (elect_sync()) {
        for (Part part; walk.take(part); early = 0) {
          const int b_row = part.group * n + part.column0;
          const int sfa0 = LAYOUT == MASKED ? part.group * steps : 0;
          const u64 b_policy = policy(part.down <= 1);  // no other tile reads these weights
          const int slots = (steps + BLOCKS - 1) / BLOCKS;
          const int ahead = LAYOUT == DENSE && early ? min(STAGES, slots) : 0;  // of them, with b
#pragma unroll 1
          for (int i = 0; i < ahead; ++i) load_b(shared, i, b_map, b_row, i * BLOCKS, b_policy);
          follow();  // from the second tile on it returns at once
          for (int block = 0; block < (part.group == PADDING ? 0 : steps); block += BLOCKS) {
            mbarrier_wait_parity(&shared.empty[slot.stage], slot.phase ^ 1);
            if (block >= ahead * BLOCKS) load_b(shared, slot.stage, b_map, b_row, block, b_policy);
            load_a(shared, slot.stage, a_map, sfa_map, part, sfa0, block);
            slot.advance();
          }
        }
      }
      return;
    }
    if (warp % 4 == 1) {  // finds the parts
      barrier_sync(0, kThreads);
      follow();
      GroupedScheduler<LAYOUT> scheduler{m, n, groups, index, span, zero_padding};
      if (LAYOUT != DENSE) shared.parts.tell_all(scheduler);
    }
    if (warp % 4 == 2) {  // brings the scales of b
      barrier_sync(0, kThreads);
      follow();
      for (Part part; walk.next(part);) {
        const int group = max(part.group, 0), lane = threadIdx.x % 32;  // padding never uses it
        const float* tile_sfb = sfb + group * group_sfb + part.column0 / BLOCK_K * ld_sfb;
        float scale = 0;
        for (int step = 0; step < (part.group == PADDING ? 0 : steps); step += BLOCKS) {
          if (step % 32 == 0) scale = tile_sfb[min(step + lane, steps - 1)];
          mbarrier_wait_parity(&shared.empty[slot.stage], slot.phase ^ 1);
          if (lane / BLOCKS == step % 32 / BLOCKS) {  // the lanes that have this slot's
            shared.sfb[slot.stage][lane % BLOCKS] = scale;
            mbarrier_arrive(&shared.full[slot.stage]);
          }
          slot.advance();
        }
      }
    }
    return;
  }

  barrier_sync(0, kThreads);  // all roles wait until the loader has initialised the barriers
  follow();
  const u32 a0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(shared.a[0]), 0);
  const e4m3* own_b = shared.b[0][0][warpgroup * kWave];
  const u32 b0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(own_b), 0);
  float partial[BLOCKS][kSums] = {};
  for (Part part; walk.next(part);) {
    float acc[kSums] = {};

    // Issues the product of a k-block of the slot as partial sum i.
    const auto issue = [&](int i, int block) {
      const int first = (slot.stage * BLOCKS + block) * BLOCK_K / 16;
      compute(partial[i], b0 + first * BLOCK_N, a0 + first * BLOCK_M);
    };
    // Adds partial sum i to the sums, when at most `pending` products after it are not complete.
    const auto finish = [&](int i, int block, int pending) {
      const float* ring_sfa = &shared.sfa[slot.stage][block][threadIdx.x % 4 * 2];
      const float* ring_sfb = &shared.sfb[slot.stage][block];
      float scale_a[BLOCK_M / 8][2];
#pragma unroll
      for (int j = 0; j < BLOCK_M / 4; ++j) scale_a[j / 2][j % 2] = ring_sfa[j / 2 * 8 + j % 2];
      const float scale_b = *ring_sfb;
      wait(pending);
      keep_in_order(partial[i]);
      promote(acc, partial[i], scale_a, scale_b);
    };

    const int loaded = part.group == PADDING ? 0 : steps;
    int step = 0;
#pragma unroll 1
    for (; step + BLOCKS <= loaded; step += BLOCKS) {
      mbarrier_wait_parity(&shared.full[slot.stage], slot.phase);
#pragma unroll
      for (int i = 0; i < BLOCKS; ++i) issue(i, i);
#pragma unroll
      for (int i = 0; i < BLOCKS; ++i) finish(i, i, BLOCKS - 1 - i);
      release(shared.empty, slot);
    }
    if (step < loaded) {  // the last slot is not full
      mbarrier_wait_parity(&shared.full[slot.stage], slot.phase);
#pragma unroll 1
      for (int block = 0; step + block < loaded; ++block) {
        issue(0, block);
        finish(0, block, 0);
      }
      release(shared.empty, slot);
    }

    // Whether all rows that TMA would write, which end at m, are the part's.
    const int column = warpgroup * kWave, row0 = part.row0, column0 = part.column0 + column;
    const bool own = LAYOUT == DENSE || part.first <= row0 && min(row0 + BLOCK_M, m) <= part.last;
    if (OUT_FP32 || ACCUMULATE || !aligned || !own) {
      store(d, acc, part, n, ldd, column0);
    } else {
      // The tile before must have been read.
      if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until thread 0 knows
      write(shared, acc, column, part.middle - row0);
      fence_proxy_async();                  // each thread's own writes, for the TMA that reads them
      bar_sync(1 + warpgroup, kWarpgroup);  // this consumer's threads wait until all have fenced
      if (threadIdx.x % kWarpgroup == 0) {
        cp_async_bulk_tensor_store(&d_map, column0, row0, shared.d[warpgroup]);
        cp_async_bulk_commit_group();
      }
    }
  }
  // Shared memory must last until TMA has read it.
  if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();
}
