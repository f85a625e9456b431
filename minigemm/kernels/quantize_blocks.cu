// quantize_blocks: E4M3 with a scale for each 128x128 block, as weights have it.
//
// A CTA has a block. Each thread holds eight neighbours of every sixteenth row while the CTA finds
// the largest magnitude, so that x is read once.

#include "quantize.cuh"

constexpr int kThreads = 256;
constexpr int kCtas = DTYPE == kFP32 ? 2 : 3;  // on an SM: as many as have registers for their part
constexpr int kWarps = kThreads / 32;
constexpr int kRows = kThreads / kVectors;  // that the CTA loads at once
constexpr int kSteps = kBlock / kRows;

extern "C" __global__ void __launch_bounds__(kThreads, kCtas) quantize_blocks(
    const Element* __restrict__ x,  // (groups, n, k)
    e4m3* __restrict__ data,        // (groups, n, k), groups one behind the other
    float* __restrict__ scale,      // (groups, ceil(n / 128), ceil(k / 128)), contiguous
    int n, int k, i64 group_x, i64 ldx, i64 ldd,  // elements from a group or row to the next
    float floor, int ue8m0) {
  __shared__ float warps_amax[kWarps];
  const int blocks_n = (n + kBlock - 1) / kBlock, blocks_k = (k + kBlock - 1) / kBlock;
  const int block_n = blockIdx.x / blocks_k, block_k = blockIdx.x % blocks_k;
  const i64 group = blockIdx.y;

  // All loads are under way before the first is waited for.
  const int row = block_n * kBlock + threadIdx.x / kVectors;
  const int column = block_k * kBlock + threadIdx.x % kVectors * kVector;
  x += group * group_x + row * ldx + column;
  Vector values[kSteps];
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    values[i] = load(x + i * kRows * ldx, row + i * kRows < n ? k - column : 0);
  }

  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) amax = larger(amax, element(values[i], j));
  }
  amax = largest_of_lanes<16>(amax);
  if (threadIdx.x % 32 == 0) warps_amax[threadIdx.x / 32] = amax;
  __syncthreads();  // all threads arrive with their warp's amax written, and wait for all
#pragma unroll
  for (int i = 0; i < kWarps; ++i) amax = fmaxf(amax, warps_amax[i]);

  const float block_scale = scale_of(amax, {floor, ue8m0});
  const Divisor by = divisor(block_scale);
  data += (group * n + row) * ldd + column;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    float y[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) y[j] = divide(element(values[i], j), by);
    store(data + i * kRows * ldd, cast(y), row + i * kRows < n ? k - column : 0);
  }
  if (threadIdx.x == 0) scale[group * blocks_n * blocks_k + blockIdx.x] = block_scale;
}
