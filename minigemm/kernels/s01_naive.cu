// s01_naive: a thread an output.
//
// d = a @ b.T, scaled: d[row][column] is the sum over k of a[row][k] * b[column][k], in FP32 and in
// the order of k, times scale_a * scale_b, rounded to BF16. Each thread walks along one row of a
// and one row of b and asks for every byte by itself: a row of a is read by all threads of that row
// of d, a row of b by all threads of that column.

#include "ptx.cuh"

constexpr int kThreads = BLOCK_M * BLOCK_N;  // a thread an output
constexpr int kVector = 16;                  // elements that a thread loads at once

// kVector elements of a row
e4m3x16 load(const e4m3* x) { return *reinterpret_cast<const e4m3x16*>(x); }

// acc + the product of two rows' kVector elements
float compute(float acc, e4m3x16 a, e4m3x16 b) {
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    acc = fma_rn_f32(cvt_rn_f32_e4m3x4(a.words[w]), cvt_rn_f32_e4m3x4(b.words[w]), acc);
  }
  return acc;
}

void store(bf16* d, float value) { *d = cvt_rn_bf16_f32(value); }

extern "C" __global__ void __launch_bounds__(kThreads) s01_naive(
    const e4m3* a,         // (m, k), rows lda elements apart
    const e4m3* b,         // (n, k), rows ldb apart
    bf16* d,               // (m, n), rows ldd apart
    const float* scale_a,  // ()
    const float* scale_b,  // ()
    int m, int n, int k, i64 lda, i64 ldb, i64 ldd) {
  // Neighbouring threads take neighbouring columns. Tiles of M are in the grid's x, which alone
  // holds 2^31 of them.
  const int row = blockIdx.x * BLOCK_M + threadIdx.x / BLOCK_N;
  const int column = blockIdx.y * BLOCK_N + threadIdx.x % BLOCK_N;
  if (row >= m || column >= n) return;  // the tiles at the edge hang over it

  float acc = 0.0f;
  for (int k0 = 0; k0 < k; k0 += kVector) {
    acc = compute(acc, load(a + row * lda + k0), load(b + column * ldb + k0));
  }
  store(d + row * ldd + column, acc * (*scale_a * *scale_b));
}
