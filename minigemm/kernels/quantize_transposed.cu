// quantize_transposed: E4M3 of x.T, with a scale for each 1x128 block of x.T: 128 rows of x in one
// column. The weight gradient reads it.
//
// A CTA has a block of 128x128. A thread holds 8x8 elements of it and turns them in registers: it
// loads eight neighbours of eight rows, and stores eight neighbours of eight columns. The threads
// of a warp are 8 along the rows by 4 along the columns, so that both loads and stores fill
// sectors of 32 bytes.

#include "quantize.cuh"

constexpr int kThreads = 256;
constexpr int kCtas = DTYPE == kFP32 ? 2 : 3;  // on an SM: as many as have registers for their part
constexpr int kWarpRows = 8, kWarpColumns = 4;                        // threads
constexpr int kHalves = kBlock / (kWarpRows * kVector);               // warps along the rows
constexpr int kColumns = kThreads / 32 / kHalves * kWarpColumns * kVector;  // of a CTA
static_assert(kColumns == kBlock, "a CTA has a block");

extern "C" __global__ void __launch_bounds__(kThreads, kCtas) quantize_transposed(
    const Element* __restrict__ x,  // (groups, m, k)
    e4m3* __restrict__ data,        // (groups, k, m), groups one behind the other
    float* __restrict__ scale,      // (groups, k, ceil(m / 128)), M-major
    int m, int k, i64 group_x, i64 ldx, i64 ldd,  // elements from a group or row to the next
    int lds,                                      // from a column of scales to the next
    float floor, int ue8m0) {
  __shared__ float halves_amax[kHalves][kColumns];
  __shared__ Divisor divisors[kColumns];
  const int blocks_m = (m + kBlock - 1) / kBlock, blocks_k = (k + kColumns - 1) / kColumns;
  const int block_m = blockIdx.x / blocks_k, block_k = blockIdx.x % blocks_k;
  const i64 group = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // All loads are under way before the first is waited for.
  const int half = warp % kHalves, row_in_half = lane / kWarpColumns * kVector;
  const int first = (warp / kHalves * kWarpColumns + lane % kWarpColumns) * kVector;
  const int row = block_m * kBlock + half * kWarpRows * kVector + row_in_half;
  const int column = block_k * kColumns + first;
  x += group * group_x + row * ldx + column;
  Vector values[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    values[i] = load(x + i * ldx, row + i < m ? k - column : 0);
  }

  // The largest magnitude of each column: in the thread, in the warp, then over both halves.
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) amax = larger(amax, element(values[i], j));
#pragma unroll
    for (int distance = 16; distance >= kWarpColumns; distance /= 2) {
      amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, distance));
    }
    if (lane < kWarpColumns) halves_amax[half][first + j] = amax;
  }
  __syncthreads();  // all threads arrive with their columns' amax written, and wait for all

  // A thread for each column makes its scale.
  if (threadIdx.x < kColumns) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < kHalves; ++i) amax = fmaxf(amax, halves_amax[i][threadIdx.x]);
    const float block_scale = scale_of(amax, {floor, ue8m0});
    divisors[threadIdx.x] = divisor(block_scale);
    const int at = block_k * kColumns + threadIdx.x;
    if (at < k) scale[(group * blocks_m + block_m) * lds + at] = block_scale;
  }
  __syncthreads();  // all threads arrive when the scales are made, and wait for all

  data += (group * k + column) * ldd + row;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const Divisor by = divisors[first + j];
    float y[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) y[i] = divide(element(values[i], j), by);
    store(data + j * ldd, cast(y), column + j < k ? m - row : 0);
  }
}
