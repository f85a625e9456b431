// Copies a matrix of bytes through shared memory, a 64x128 box at a time, flipping the lowest bit of each byte on the way.
// In: TMA load, completing on an mbarrier. Out: generic stores, proxy fence, TMA store. Tests plant bugs in it by text edits.
typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;
struct alignas(64) TensorMap { u64 opaque[16]; };
constexpr int kRows = 64, kWidth = 128, kBytes = kRows * kWidth;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void init(u64* bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
__device__ __forceinline__ void expect(u64* bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void wait(u64* bar, u32 parity) {
  asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra READY;\nbra AGAIN;\nREADY:\n}"
               ::"r"(shared_address(bar)), "r"(parity) : "memory");
}
__device__ __forceinline__ void load(void* to, const TensorMap* map, int x, int y, u64* bar) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(shared_address(to)), "l"((u64)map), "r"(x), "r"(y), "r"(shared_address(bar)) : "memory");
}
__device__ __forceinline__ void store(const TensorMap* map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
               ::"l"((u64)map), "r"(x), "r"(y), "r"(shared_address(from)) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ __forceinline__ void wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

extern "C" __global__ void tma_copy(const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap out, int steps) {
  __shared__ alignas(1024) u8 tile[kBytes];   // (kRows, kWidth), 128-byte swizzle
  __shared__ alignas(1024) u8 result[kBytes]; // the same
  __shared__ alignas(8) u64 full;             // 1 arrival: thread 0, with the bytes of the box; every thread waits
  const int y = blockIdx.x * kRows;
  if (threadIdx.x == 0) {
    init(&full, 1);
    proxy_fence();
  }
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    if (threadIdx.x == 0) {
      expect(&full, kBytes);
      load(tile, &in, step * kWidth, y, &full);
    }
    wait(&full, step & 1);
    for (int i = threadIdx.x; i < kBytes / 4; i += blockDim.x) ((u32*)result)[i] = ((u32*)tile)[i] ^ 0x01010101;
    proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      store(&out, result, step * kWidth, y);
      commit();
      wait_read();
    }
    __syncthreads();
  }
}
