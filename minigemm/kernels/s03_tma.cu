// s03_tma: tensor maps, mbarriers, swizzles; the same math.
//
// One thread asks the tensor memory accelerator (TMA) for both tiles. The hardware computes the
// addresses, fills in zeros where a tile hangs over the edge, and counts the bytes that have come
// on an mbarrier, where all threads wait. It writes rows without padding, so a swizzle keeps the
// banks apart. The tile of d leaves by TMA too.

#include "ptx.cuh"

constexpr int kThreadsM = BLOCK_M / THREAD_M;
constexpr int kThreadsN = BLOCK_N / THREAD_N;
constexpr int kThreads = kThreadsM * kThreadsN;
constexpr int kWarpM = 4, kWarpN = 8;  // a warp's threads: nearly square, to read few rows
constexpr int kAlign = 1024;           // every swizzle's pattern begins anew here

struct Shared {
  alignas(kAlign) e4m3 a[BLOCK_M][BLOCK_K];  // (BLOCK_M, BLOCK_K), swizzled
  alignas(kAlign) e4m3 b[BLOCK_N][BLOCK_K];  // (BLOCK_N, BLOCK_K), swizzled
  alignas(kAlign) bf16 d[BLOCK_M][BLOCK_N];  // (BLOCK_M, BLOCK_N), swizzled
  // Each k-step: thread 0 arrives and promises the bytes of a and b, TMA brings them; all threads
  // wait.
  alignas(kAlign) u64 full;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
extern __shared__ __align__(1024) u8 shared_memory[];

// Where TMA puts this byte of a row of kSpan bytes. Rows lie densely; where they are 32, 64 or 128
// bytes wide, the 16-byte vectors within each trade places: which with which depends on how many
// times 128 bytes lie before the row.
template <int kSpan>
int swizzle(int row, int byte) {
  constexpr bool kSwizzled = SWIZZLE && (kSpan == 32 || kSpan == 64 || kSpan == 128);
  return kSwizzled ? byte ^ row * kSpan / 128 % (kSpan / 16) * 16 : byte;
}

// The place of d's element (row, column) in its tile.
bf16& at(bf16 (&tile)[BLOCK_M][BLOCK_N], int row, int column) {
  return tile[row][swizzle<sizeof(tile[row])>(row, column * sizeof(bf16)) / sizeof(bf16)];
}

// The tiles of a and b that begin at (row0, k0) and (column0, k0). For one thread.
void load(Shared& shared, const CUtensorMap& a_map, const CUtensorMap& b_map, int row0, int column0,
          int k0) {
  mbarrier_arrive_expect_tx(&shared.full, sizeof(shared.a) + sizeof(shared.b));  // the zeros too
  cp_async_bulk_tensor_load(shared.a, &a_map, k0, row0, &shared.full);
  cp_async_bulk_tensor_load(shared.b, &b_map, k0, column0, &shared.full);
}

// Four elements of a tile's row, from k on.
template <int kRows>
float4 read(const e4m3 (&tile)[kRows][BLOCK_K], int row, int k) {
  return cvt_rn_f32_e4m3x4(*reinterpret_cast<const e4m3x4*>(&tile[row][swizzle<BLOCK_K>(row, k)]));
}

// acc (THREAD_M, THREAD_N) += the product of the tiles' rows m + i * kThreadsM and n + j *
// kThreadsN.
void compute(float (&acc)[THREAD_M][THREAD_N], const Shared& shared, int m, int n) {
#pragma unroll 1  // the body is long enough
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

// The rows m + i * kThreadsM and columns n + j * kThreadsN of the tile of d, into shared memory.
void write(Shared& shared, const float (&acc)[THREAD_M][THREAD_N], float scale, int m, int n) {
#pragma unroll
  for (int i = 0; i < THREAD_M; ++i) {
#pragma unroll
    for (int j = 0; j < THREAD_N; ++j) {
      at(shared.d, m + i * kThreadsM, n + j * kThreadsN) = cvt_rn_bf16_f32(acc[i][j] * scale);
    }
  }
}

// The tile of d, from shared memory to (row0, column0), as far as it lies inside d. For one thread.
void store(const CUtensorMap& d_map, const Shared& shared, int row0, int column0) {
  cp_async_bulk_tensor_store(&d_map, column0, row0, shared.d);
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

extern "C" __global__ void __launch_bounds__(kThreads) s03_tma(
    const __grid_constant__ CUtensorMap a_map,  // (m, k), boxes (BLOCK_M, BLOCK_K)
    const __grid_constant__ CUtensorMap b_map,  // (n, k), boxes (BLOCK_N, BLOCK_K)
    const __grid_constant__ CUtensorMap d_map,  // (m, n), boxes (BLOCK_M, BLOCK_N), if store_by_tma
    bf16* d,                                    // (m, n), rows ldd apart
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
    __syncthreads();  // all threads arrive when they have read; then TMA may overwrite
  }
  write(shared, acc, *scale_a * *scale_b, thread_m, thread_n);
  fence_proxy_async();  // each thread's own writes, for the TMA that reads them
  __syncthreads();      // all threads arrive with their part of d fenced, and wait for the rest
  if (!store_by_tma) {
    store(d, shared, m, n, ldd, row0, column0);
  } else if (threadIdx.x == 0) {
    store(d_map, shared, row0, column0);
  }
}
