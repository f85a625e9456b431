// s04_wgmma: the tensor core.
//
// A warpgroup, four warps that act together, multiplies 64 rows of a by BLOCK_N rows of b, 32
// columns deep, with one instruction (WGMMA). It reads both from shared memory, just as TMA left
// them: a descriptor says where they begin and how they are swizzled. Its sums stay in the
// warpgroup's registers. It is asynchronous: the warps issue products, commit them as a group and
// wait for it.

#include "ptx.cuh"

constexpr int kWave = 64;        // rows of d that one WGMMA computes
constexpr int kDepth = 32;       // columns of a and b that it reads
constexpr int kWarpgroup = 128;  // threads
constexpr int kThreads = BLOCK_M / kWave * kWarpgroup;
constexpr int kPanels = BLOCK_N / PANEL;  // of d: PANEL columns wide, as many as a swizzle spans
constexpr int kAlign = 1024;              // every swizzle's pattern begins anew here

struct Shared {
  alignas(kAlign) e4m3 a[BLOCK_M][BLOCK_K];        // (BLOCK_M, BLOCK_K), swizzled
  alignas(kAlign) e4m3 b[BLOCK_N][BLOCK_K];        // (BLOCK_N, BLOCK_K), swizzled
  alignas(kAlign) bf16 d[kPanels][BLOCK_M][PANEL];  // (BLOCK_M, BLOCK_N) in panels, swizzled
  // Each k-step: thread 0 arrives and promises the bytes of a and b, TMA brings them; all threads
  // wait.
  alignas(kAlign) u64 full;
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

// The tiles of a and b that begin at (row0, k0) and (column0, k0). For one thread.
void load(Shared& shared, const CUtensorMap& a_map, const CUtensorMap& b_map, int row0, int column0,
          int k0) {
  mbarrier_arrive_expect_tx(&shared.full, sizeof(shared.a) + sizeof(shared.b));  // the zeros too
  cp_async_bulk_tensor_load(shared.a, &a_map, k0, row0, &shared.full);
  cp_async_bulk_tensor_load(shared.b, &b_map, k0, column0, &shared.full);
}

// acc (kWave, BLOCK_N) += the product of the tiles' rows `row` to `row + kWave` of a, and all of b.
void compute(float (&acc)[BLOCK_N / 2], const Shared& shared, int row) {
  const u64 a = wgmma_descriptor(shared.a[row]), b = wgmma_descriptor(shared.b);
  keep_in_order(acc);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < BLOCK_K; k += kDepth) wgmma_mma_async(acc, a + k / 16, b + k / 16, true);
  wgmma_commit_group();
  keep_in_order(acc);
}

// The kWave rows from `row` on of the tile of d, into shared memory. Lane l of warp w holds two
// neighbours each of rows 16 w + l / 4 and 8 further down, in every 8 columns.
void write(Shared& shared, const float (&acc)[BLOCK_N / 2], float scale, int row) {
  const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < BLOCK_N / 2; i += 2) {
    bf16& pair = at(shared.d, row + 16 * warp + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2);
    reinterpret_cast<u32&>(pair) = cvt_rn_bf16x2_f32(acc[i] * scale, acc[i + 1] * scale);
  }
}

// The tile of d, from shared memory to (row0, column0), as far as it lies inside d. For one thread.
void store(const CUtensorMap& d_map, const Shared& shared, int row0, int column0) {
#pragma unroll
  for (int i = 0; i < kPanels; ++i) {
    cp_async_bulk_tensor_store(&d_map, column0 + i * PANEL, row0, shared.d[i]);
  }
  cp_async_bulk_commit_group();
  cp_async_bulk_wait_group_read<0>();  // the CTA's shared memory must last until it is read
}

// The same by all threads, for a d (rows, columns) that no tensor map can describe.
void store(bf16* d, Shared& shared, int rows, int columns, i64 ldd, int row0, int column0) {
  for (int i = threadIdx.x; i < BLOCK_M * BLOCK_N; i += kThreads) {
    const int row = i / BLOCK_N, column = i % BLOCK_N;
    const bool inside = row0 + row < rows && column0 + column < columns;
    if (inside) d[(row0 + row) * ldd + column0 + column] = at(shared.d, row, column);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) s04_wgmma(
    const __grid_constant__ CUtensorMap a_map,  // (m, k), boxes (BLOCK_M, BLOCK_K)
    const __grid_constant__ CUtensorMap b_map,  // (n, k), boxes (BLOCK_N, BLOCK_K)
    const __grid_constant__ CUtensorMap d_map,  // (m, n), boxes (BLOCK_M, PANEL), if store_by_tma
    bf16* d,                                    // (m, n), rows ldd apart
    const float* scale_a,                       // ()
    const float* scale_b,                       // ()
    int m, int n, int k, i64 ldd, int store_by_tma) {
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  const int row0 = blockIdx.x * BLOCK_M, column0 = blockIdx.y * BLOCK_N;
  const int row = threadIdx.x / kWarpgroup * kWave;  // of the tile: the first of this warpgroup's

  if (threadIdx.x == 0) {
    prefetch_tensormap(&a_map);
    prefetch_tensormap(&b_map);
    mbarrier_init(&shared.full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();  // all threads wait until thread 0 has initialised the barrier

  float acc[BLOCK_N / 2] = {};
  u32 phase = 0;  // the parity of the barrier's phase that this k-step completes
  for (int k0 = 0; k0 < k; k0 += BLOCK_K, phase ^= 1) {
    if (threadIdx.x == 0) load(shared, a_map, b_map, row0, column0, k0);
    mbarrier_wait_parity(&shared.full, phase);
    compute(acc, shared, row);
    wgmma_wait_group<0>();
    keep_in_order(acc);
    __syncthreads();  // all threads arrive when their products have read; then TMA may overwrite
  }
  write(shared, acc, *scale_a * *scale_b, row);
  fence_proxy_async();  // each thread's own writes, for the TMA that reads them
  __syncthreads();      // all threads arrive with their part of d fenced, and wait for the rest
  if (!store_by_tma) {
    store(d, shared, m, n, ldd, row0, column0);
  } else if (threadIdx.x == 0) {
    store(d_map, shared, row0, column0);
  }
}
