// Chains of WGMMA on operands that lie in shared memory wherever the host says. They record the
// tensor core's arithmetic, its matrix descriptors and its register fragments. A CTA, one
// warpgroup, computes one chain.

#include "ptx.cuh"

struct alignas(16) Chunk { u32 words[4]; };  // what swizzles and core matrices move about

extern __shared__ __align__(1024) u8 shared_memory[];

// `count` chunks to their places in shared memory.
void load(const Chunk* from, const int* places, int count) {
  for (int i = threadIdx.x; i < count; i += 128) {
    *reinterpret_cast<Chunk*>(shared_memory + places[i]) = from[i];
  }
}

extern "C" __global__ void __launch_bounds__(128) probe_wgmma(
    const Chunk* a,          // (chains, steps, 64, 2)
    const Chunk* b,          // (chains, steps, N, 2)
    const int* a_places,     // (steps, 64, 2), bytes
    const int* b_places,     // (steps, N, 2), bytes
    const u64* descriptors,  // (steps, 2): of a, of b; addresses count from shared_memory
    const float* c,          // (chains, 64, N)
    float* d,                // (chains, 64, N)
    int steps, int scale_d) {
  a += static_cast<i64>(blockIdx.x) * steps * 64 * 2;
  b += static_cast<i64>(blockIdx.x) * steps * N * 2;
  c += static_cast<i64>(blockIdx.x) * 64 * N;
  d += static_cast<i64>(blockIdx.x) * 64 * N;
  load(a, a_places, steps * 64 * 2);
  load(b, b_places, steps * N * 2);
  fence_proxy_async();
  __syncthreads();  // all threads arrive, their chunks written and fenced, and wait for the rest

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = 16 * warp + lane / 4, column = lane % 4 * 2;  // of the first accumulator
  float acc[N / 2];
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      acc[4 * j + i] = c[(row + 8 * (i / 2)) * N + 8 * j + column + i % 2];
    }
  }
  const u64 base = cvta_to_shared(shared_memory) >> 4;
  for (int step = 0; step < steps; ++step) {
    u32 a_registers[4];
    if (A_IN_REGISTERS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Chunk* chunk = a + (step * 64 + row + 8 * (i % 2)) * 2 + i / 2;
        a_registers[i] = chunk->words[lane % 4];
      }
    }
    const bool accumulate = scale_d || step > 0;
    wgmma_fence();
    wgmma_mma_async(acc, a_registers, base + descriptors[2 * step],
                    base + descriptors[2 * step + 1], accumulate);
    wgmma_commit_group();
    wgmma_wait_group<0>();
  }
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      d[(row + 8 * (i / 2)) * N + 8 * j + column + i % 2] = acc[4 * j + i];
    }
  }
}
