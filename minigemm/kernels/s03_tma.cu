// s03_tma: tensor maps, mbarriers and swizzles; the same math.
//
// One thread asks the tensor memory accelerator for both tiles; the hardware computes the addresses, fills with zeros
// what lies outside, and counts the bytes that have come on an mbarrier, where all threads wait. It writes rows without
// padding, so a swizzle keeps the banks apart. The finished tile of d leaves by TMA too.

#include "ptx.cuh"

constexpr int kThreadsM = BLOCK_M / THREAD_M;
constexpr int kThreadsN = BLOCK_N / THREAD_N;
constexpr int kThreads = kThreadsM * kThreadsN;
constexpr int kWarpM = 4, kWarpN = 8;         // a warp's threads: nearly square, so that together they read few rows
constexpr int kVector = 16;                   // bytes that a swizzle moves together
constexpr int kVectors = BLOCK_K / kVector;   // in a tile's row
constexpr int kPeriod = 8 * BLOCK_K;          // bytes after which a swizzle repeats itself: tiles are aligned to it

struct Shared {
  alignas(kPeriod) e4m3 a[BLOCK_M][BLOCK_K];  // (BLOCK_M, BLOCK_K), swizzled
  alignas(kPeriod) e4m3 b[BLOCK_N][BLOCK_K];  // (BLOCK_N, BLOCK_K), swizzled
  alignas(128) bf16 d[BLOCK_M][BLOCK_N];      // (BLOCK_M, BLOCK_N)
  // Thread 0 arrives, once a k-step, and promises the bytes of both tiles; TMA delivers them; all threads wait.
  u64 full;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
extern __shared__ __align__(1024) u8 shared_memory[];

// Both tiles of the k-step, by one thread.
void load(Shared& shared, const CUtensorMap& a_map, const CUtensorMap& b_map, int row0, int column0, int k0) {
  mbarrier_arrive_expect_tx(&shared.full, sizeof(shared.a) + sizeof(shared.b));
  cp_async_bulk_tensor_load(shared.a, &a_map, k0, row0, &shared.full);
  cp_async_bulk_tensor_load(shared.b, &b_map, k0, column0, &shared.full);
}

// Four elements of a tile's row. In the swizzle, rows that share 128 bytes of all banks... 
template <int kRows>
float4 read(const e4m3 (&tile)[kRows][BLOCK_K], int row, int k) {
  const int vector = SWIZZLE ? k / kVector ^ row * BLOCK_K / 128 % kVectors : k / kVector;
  return cvt_rn_f32_e4m3x4(*reinterpret_cast<const e4m3x4*>(&tile[row][vector * kVector + k % kVector]));
}

// acc (THREAD_M, THREAD_N) += the tiles' product, for the rows m + i * kThreadsM and n + j * kThreadsN.
void compute(float (&acc)[THREAD_M][THREAD_N], const Shared& shared, int m, int n) {
#pragma unroll 1
  for (int k = 0; k < BLOCK_K; k += 4) {
    float4 a[THREAD_M], b[THREAD_N];
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i) a[i] = read(shared.a, m + i * kThreadsM, k);
#pragma unroll
    for (int j = 0; j < THREAD_N; ++j) b[j] = read(shared.b, n + j * kThreadsN, k);
#pragma unroll
    for (int i = 0; i < THREAD_M; ++i) {
#pragma unroll
      for (int j = 0; j < THREAD_N; ++j) acc[i][j] = fma_rn_f32(a[i], b[j], acc[i][j]);
    }
  }
}

// The tile of d that begins at (row0, column0), as far as it lies inside d: through shared memory and TMA where
// by_tma, else by guarded thread stores.
void store(const CUtensorMap& d_map, Shared& shared, const float (&acc)[THREAD_M][THREAD_N], float scale, int row0, int column0, int m, int n) {
#pragma unroll
  for (int i = 0; i < THREAD_M; ++i) {
#pragma unroll
    for (int j = 0; j < THREAD_N; ++j) {
      shared.d[m + i * kThreadsM][n + j * kThreadsN] = cvt_rn_bf16_f32(acc[i][j] * scale);
    }
  }
  fence_proxy_async();  // the writes above, before the TMA reads them
  __syncthreads();      // all threads arrive with their part of the tile written and fenced; thread 0 needs them all
  if (threadIdx.x == 0) {
    cp_async_bulk_tensor_store(&d_map, column0, row0, shared.d);
    cp_async_bulk_commit_group();
    cp_async_bulk_wait_group_read<0>();  // shared memory must outlive the copy's reads
  }
}

// The same, by each thread: for a d whose rows TMA cannot address.
void store(bf16* d, const float (&acc)[THREAD_M][THREAD_N], float scale, int rows, int columns, i64 ldd, int row0, int column0) {
#pragma unroll
  for (int i = 0; i < THREAD_M; ++i) {
#pragma unroll
    for (int j = 0; j < THREAD_N; ++j) {
      const int row = row0 + i * kThreadsM, column = column0 + j * kThreadsN;
      if (row < rows && column < columns) d[row * ldd + column] = cvt_rn_bf16_f32(acc[i][j] * scale);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) s03_tma(
    const __grid_constant__ CUtensorMap a_map,  // (m, k), boxes (BLOCK_M, BLOCK_K)
    const __grid_constant__ CUtensorMap b_map,  // (n, k), boxes (BLOCK_N, BLOCK_K)
    const __grid_constant__ CUtensorMap d_map,  // (m, n), boxes (BLOCK_M, BLOCK_N); not used unless store_by_tma
    bf16* d,                                    // (m, n), rows ldd elements apart
    const float* scale_a,                       // ()
    const float* scale_b,                       // ()
    int m, int n, int k, i64 ldd, int store_by_tma) {
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  const int row0 = blockIdx.x * BLOCK_M, column0 = blockIdx.y * BLOCK_N;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int thread_m = warp / (kThreadsN / kWarpN) * kWarpM + lane / kWarpN;
  const int thread_n = warp % (kThreadsN / kWarpN) * kWarpN + lane % kWarpN;

  if (threadIdx.x == 0) {
    prefetch_tensormap(&a_map);
    prefetch_tensormap(&b_map);
    mbarrier_init(&shared.full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();  // all threads wait until thread 0 has initialised the barrier

  float acc[THREAD_M][THREAD_N] = {};
  u32 phase = 0;  // the parity of the barrier's phase that this k-step completes
  for (int k0 = 0; k0 < k; k0 += BLOCK_K, phase ^= 1) {
    if (threadIdx.x == 0) load(shared, a_map, b_map, row0, column0, k0);
    mbarrier_wait_parity(&shared.full, phase);
    compute(acc, shared, thread_m, thread_n);
    __syncthreads();  // all threads arrive when they have read, and thread 0 waits before the tiles are overwritten
  }
  const float scale = *scale_a * *scale_b;
  if (store_by_tma) {
    store(d_map, shared, acc, scale, row0, column0, thread_m, thread_n);
  } else {
    store(d, acc, scale, m, n, ldd, row0 + thread_m, column0 + thread_n);
  }
}
