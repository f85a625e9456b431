// s12_swapped: the weights are the 64-row side of the product; minigemm's kernel for few rows.
//
// WGMMA always computes 64 rows; its other side is as narrow as 8. So the tile of d is transposed:
// the rows of the instruction are 64 rows of b for each consumer, its columns are the tile's
// BLOCK_M rows of a. Few rows are multiplied in vain; what is left to do is to keep memory busy. So
// a slot of the ring holds BLOCKS k-blocks: one copy brings them, roles wait at barriers less,
// and BLOCKS products are under way at once.

#include "ptx.cuh"
#include "scheduler.cuh"
#include "tile.cuh"

// The consumers, then three warps: no warpgroup, and no registers that it could give back.
constexpr int kThreads = CONSUMERS * kWarpgroup + 96;
constexpr int kSums = BLOCK_M / 2;  // of a consumer's thread

struct Shared {
  alignas(kAlign) e4m3 a[STAGES][BLOCKS][BLOCK_M][BLOCK_K];  // as declared, swizzled
  alignas(kAlign) e4m3 b[STAGES][BLOCKS][BLOCK_N][BLOCK_K];  // as declared, swizzled
  alignas(kAlign) float sfa[STAGES][BLOCKS][BLOCK_M];        // (STAGES, BLOCKS, BLOCK_M)
  alignas(kAlign) bf16 d[CONSUMERS][BLOCK_M][PANEL];  // (BLOCK_M, BLOCK_N) in panels, swizzled
  // In each round of a slot the loader arrives and promises the bytes of a, b and sfa, TMA brings
  // them, and the BLOCKS lanes that have written the scales of b arrive; the consumers wait.
  alignas(kAlign) u64 full[STAGES];
  // In each round lane 0 of each of the consumers' 4 * CONSUMERS warps arrives when its warp has
  // read the slot; the loader and the warp that brings the scales of b wait.
  u64 empty[STAGES];
  Parts parts;  // on their way from the warp that finds them to those that load and compute
  float sfb[STAGES][BLOCKS];  // (STAGES, BLOCKS)
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
static_assert(BLOCK_N == CONSUMERS * kWave && PANEL == kWave, "a consumer has 64 columns of d");
static_assert(BLOCK_K % BLOCK_N == 0, "a tile's columns lie within one block of weights");
static_assert(32 % BLOCKS == 0, "the scales that a warp fetches at once fill whole slots");
static_assert(BLOCKS <= 4, "wait() counts up to three products");
static_assert(BLOCK_M % 8 == 0, "each k-block of a begins where the swizzle's pattern does");
static_assert(BLOCKS * BLOCK_M % 32 == 0, "a slot's scales of a fill multiples of 128 bytes");

// Promises a slot's bytes, and brings the tiles of b in BLOCKS k-blocks from `block` on: rows from
// `row` on. Those behind the group's n rows are the next group's; their columns are never stored.
// For one thread.
void load_b(Shared& shared, int stage, const CUtensorMap& map, int row, int block, u64 policy) {
  u64* full = &shared.full[stage];
  mbarrier_arrive_expect_tx(
      full, sizeof(shared.a[0]) + sizeof(shared.b[0]) + sizeof(shared.sfa[0]));  // the zeros too
  if (BLOCKS == 1) {  // maps (rows, k) as in s11: the last k-block may have fewer than 128 columns
    cp_async_bulk_tensor_load(shared.b[stage], &map, block * BLOCK_K, row, full, policy);
  } else {
    cp_async_bulk_tensor_load(shared.b[stage], &map, 0, row, block, full, policy);
  }
}

// Brings those of a and sfa; a MASKED group's rows of sfa begin at `sfa0`. For one thread.
void load_a(Shared& shared, int stage, const CUtensorMap& a_map, const CUtensorMap& sfa_map,
            const Part& part, int sfa0, int block) {
  u64* full = &shared.full[stage];
  if (BLOCKS == 1) {
    cp_async_bulk_tensor_load(shared.a[stage], &a_map, block * BLOCK_K, part.row0, full);
  } else {
    cp_async_bulk_tensor_load(shared.a[stage], &a_map, 0, part.row0, block, full);
  }
  cp_async_bulk_tensor_load(shared.sfa[stage], &sfa_map, part.sfa_start, sfa0 + block, full);
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

// Returns when at most `pending` products are still being computed. Where it is inlined, `pending`
// is a constant, and one instruction is left.
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
    const int left = middle - 2 * i - lane % 4 * 2;  // rows before `middle` from this lane's two on
    const u32 mask = left > 1 ? ~0u : left > 0 ? 0xffff : 0;
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
    const __grid_constant__ CUtensorMap a_map,    // (k / 128, m, 128), boxes (BLOCKS, BLOCK_M, 128)
    const __grid_constant__ CUtensorMap b_map,    // (k / 128, groups * n, 128); see below
    const __grid_constant__ CUtensorMap sfa_map,  // (k / 128, m); MASKED: (groups * k / 128, span)
    const __grid_constant__ CUtensorMap d_map,    // (m, n), boxes (BLOCK_M, PANEL); BF16, aligned
    void* d,                                      // (m, n) BF16 or FP32 (OUT_FP32); rows ldd apart
    const float* sfb,                             // (groups, n / 128, k / 128); see below
    const int* index, int span, int zero_padding,  // see GroupedScheduler
    int m, int n, int k, int groups, i64 ld_sfb, i64 group_sfb, i64 ldd, int aligned, int early) {
  // Boxes of b are (BLOCKS, BLOCK_N, 128), of sfa (BLOCKS, BLOCK_M). If BLOCKS is 1, the maps of a
  // and b are those of s11. If MASKED, m counts the rows of all groups' buffers, `span` rows each.
  // Groups of sfb are group_sfb apart, rows ld_sfb. Aligned: 16 bytes divide d's start, ldd and n.
  // Early: no kernel that may still run writes b, so a DENSE product loads it before `follow`.
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), warpgroup = warp / 4;  // uniform
  const int steps = (k + BLOCK_K - 1) / BLOCK_K;
  Walk walk{shared.parts, m, n};  // each role's own
  Slot slot;
  if (warpgroup == CONSUMERS) {
    if (warp % 4 == 0) {
      if (elect_sync()) init(shared.full, shared.empty, 1 + BLOCKS, 4 * CONSUMERS, shared.parts);
      __syncwarp();  // all lanes wait until the barriers are initialised
      barrier_arrive(0, kThreads);  // lets all others begin; does not wait
      // One thread runs the loop, and its warp returns behind it: so the loop keeps to uniform
      // registers, if DENSE.
      if (elect_sync()) {
        for (Part part; walk.take(part); early = 0) {
          const int b_row = part.group * n + part.column0;
          const int sfa0 = LAYOUT == MASKED ? part.group * steps : 0;
          const u64 b_policy = policy(part.readers <= 1);  // no other tile reads these weights
          const int slots = (steps + BLOCKS - 1) / BLOCKS;
          const int ahead = LAYOUT == DENSE && early ? min(STAGES, slots) : 0;  // of them, with b
#pragma unroll 1
          for (int i = 0; i < ahead; ++i) load_b(shared, i, b_map, b_row, i * BLOCKS, b_policy);
          follow();  // from the second tile on it returns at once
          for (int block = 0; block < part.loaded(steps); block += BLOCKS) {
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
        for (int step = 0; step < part.loaded(steps); step += BLOCKS) {
          if (step % 32 == 0) scale = tile_sfb[min(step + lane, steps - 1)];
          wait_together(&shared.empty[slot.stage], slot.phase ^ 1);
          if (lane / BLOCKS == step % 32 / BLOCKS) {  // the lanes that have this slot's scales
            shared.sfb[slot.stage][lane % BLOCKS] = scale;
            mbarrier_arrive(&shared.full[slot.stage]);
          }
          slot.advance();
        }
      }
    }
    return;
  }

  barrier_sync(0, kThreads);  // all other warps wait until the loader's has arrived
  follow();
  const u32 a0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(shared.a[0]), 0);
  const e4m3* first_b = shared.b[0][0][warpgroup * kWave];  // of this consumer's rows
  const u32 b0 = __shfl_sync(0xffffffff, wgmma_descriptor_low(first_b), 0);
  float partial[BLOCKS][kSums] = {};
  for (Part part; walk.next(part);) {
    float acc[kSums] = {};

    // Issues the product of a k-block of the full slot as partial sum i.
    const auto issue = [&](int i, int block) {
      const int index = slot.stage * BLOCKS + block;  // the k-block's, among all of the ring
      compute(partial[i], b0 + index * BLOCK_N * BLOCK_K / 16, a0 + index * BLOCK_M * BLOCK_K / 16);
    };
    // Reads the k-block's scales, waits until at most `pending` products are still being computed,
    // and promotes partial sum i.
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

    const int loaded = part.loaded(steps);
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
    if (step < loaded) {  // the last slot holds fewer than BLOCKS k-blocks
      mbarrier_wait_parity(&shared.full[slot.stage], slot.phase);
#pragma unroll 1
      for (int block = 0; step + block < loaded; ++block) {
        issue(0, block);
        finish(0, block, 0);
      }
      release(shared.empty, slot);
    }

    // Whether all rows that TMA would store, those of the box that lie inside d, are the part's.
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
