// s02_tiled: shared-memory and register tiles.
//
// A CTA computes a BLOCK_M x BLOCK_N tile of d. It walks along K by BLOCK_K: its threads copy a
// tile of a and a tile of b into shared memory, then each computes THREAD_M x THREAD_N outputs from
// there. What comes from global memory now serves a whole tile of products, and what comes from
// shared memory THREAD_M or THREAD_N of them.

#include "ptx.cuh"

constexpr int kThreadsM = BLOCK_M / THREAD_M;
constexpr int kThreadsN = BLOCK_N / THREAD_N;
constexpr int kThreads = kThreadsM * kThreadsN;
constexpr int kWarpM = 4, kWarpN = 8;        // a warp's threads: nearly square, to read few rows
constexpr int kVector = 16;                  // elements that a thread loads at once
constexpr int kVectors = BLOCK_K / kVector;  // in a tile's row
constexpr int kPitch = BLOCK_K + PADDING;    // padding: the same k of 8 rows in different banks

struct Shared {
  alignas(16) e4m3 a[BLOCK_M][kPitch];  // (BLOCK_M, BLOCK_K), rows kPitch apart
  alignas(16) e4m3 b[BLOCK_N][kPitch];  // (BLOCK_N, BLOCK_K), rows kPitch apart
};
static_assert(sizeof(Shared) == SHARED_BYTES, "Shared is not as large as Config.shared_bytes says");
extern __shared__ __align__(1024) u8 shared_memory[];

// The tile of x (rows, k) that begins at (row0, k0); zeros where it hangs over the edge.
template <int kRows>
void load(e4m3 (&tile)[kRows][kPitch], const e4m3* x, int rows, int k, i64 ldx, int row0, int k0) {
#pragma unroll  // a count that the compiler knows: the copies wait for memory together
  for (int i0 = 0; i0 < kRows * kVectors; i0 += kThreads) {
    const int i = i0 + threadIdx.x;
    if (i >= kRows * kVectors) break;
    const int row = i / kVectors, column = i % kVectors * kVector;
    e4m3x16 vector = {};
    if (row0 + row < rows && k0 + column < k) {
      vector = *reinterpret_cast<const e4m3x16*>(x + (row0 + row) * ldx + k0 + column);
    }
    *reinterpret_cast<e4m3x16*>(&tile[row][column]) = vector;
  }
}

// Four elements of a tile's row, from k on.
template <int kRows>
float4 read(const e4m3 (&tile)[kRows][kPitch], int row, int k) {
  return cvt_rn_f32_e4m3x4(*reinterpret_cast<const e4m3x4*>(&tile[row][k]));
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

// d (rows, columns) at (row + i * kThreadsM, column + j * kThreadsN), as far as that lies inside.
void store(bf16* d, const float (&acc)[THREAD_M][THREAD_N], float scale, int rows, int columns,
           i64 ldd, int row, int column) {
#pragma unroll
  for (int i = 0; i < THREAD_M; ++i, row += kThreadsM) {
#pragma unroll
    for (int j = 0; j < THREAD_N; ++j) {
      const bool inside = row < rows && column + j * kThreadsN < columns;
      if (inside) d[row * ldd + column + j * kThreadsN] = cvt_rn_bf16_f32(acc[i][j] * scale);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) s02_tiled(
    const e4m3* a,         // (m, k), rows lda elements apart
    const e4m3* b,         // (n, k), rows ldb apart
    bf16* d,               // (m, n), rows ldd apart
    const float* scale_a,  // ()
    const float* scale_b,  // ()
    int m, int n, int k, i64 lda, i64 ldb, i64 ldd) {
  Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
  const int row0 = blockIdx.x * BLOCK_M, column0 = blockIdx.y * BLOCK_N;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int thread_m = warp / (kThreadsN / kWarpN) * kWarpM + lane / kWarpN;
  const int thread_n = warp % (kThreadsN / kWarpN) * kWarpN + lane % kWarpN;

  float acc[THREAD_M][THREAD_N] = {};
  for (int k0 = 0; k0 < k; k0 += BLOCK_K) {
    load(shared.a, a, m, k, lda, row0, k0);
    load(shared.b, b, n, k, ldb, column0, k0);
    __syncthreads();  // all threads arrive with their part of the tiles written, and wait for all
    compute(acc, shared, thread_m, thread_n);
    __syncthreads();  // all threads arrive when they have read, and wait before they overwrite
  }
  store(d, acc, *scale_a * *scale_b, m, n, ldd, row0 + thread_m, column0 + thread_n);
}
