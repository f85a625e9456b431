// The CTAs of a cluster read one matrix of bytes together: each copies its share of a tile from global memory, to all of them. A ring of stages, one
// producer warp and four consumer warps; these add up the words of each row, or (PRODUCTS) multiply each tile with its own first eight rows on the
// tensor core. Tests plant bugs in it by text edits.
#define PRODUCTS 0
typedef unsigned char u8;
typedef unsigned u32;
typedef unsigned long long u64;
struct alignas(64) TensorMap { u64 opaque[16]; };
constexpr int kRows = 64, kWidth = 128, kBytes = kRows * kWidth, kStages = 2, kConsumers = 4;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ u32 remote(const void* p, u32 rank) {
  u32 address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
  return address;
}
__device__ __forceinline__ void init(u64* bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(count) : "memory");
}
__device__ __forceinline__ void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void expect(u64* bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory"); }
__device__ __forceinline__ void wait(u64* bar, u32 parity) {
  asm volatile("{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra READY;\nbra AGAIN;\nREADY:\n}"
               ::"r"(shared_address(bar)), "r"(parity) : "memory");
}
__device__ __forceinline__ void load(void* to, const TensorMap* map, int x, int y, u64* bar, unsigned short mask) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
               ::"r"(shared_address(to)), "l"((u64)map), "r"(x), "r"(y), "r"(shared_address(bar)), "h"(mask) : "memory");
}
#if PRODUCTS
__device__ __forceinline__ u64 descriptor(const void* p) {  // 128-byte swizzle, 1024 bytes from eight rows to the next
  return (u64)(shared_address(p) >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
__device__ __forceinline__ void product(float (&d)[4], u64 a, u64 b) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {%0, %1, %2, %3}, %4, %5, p, 1, 1;\n}"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b));
}
#endif

extern "C" __global__ void multicast(const __grid_constant__ TensorMap in, u32* out, int steps) {
  __shared__ alignas(1024) u8 tile[kStages][kBytes];  // (kRows, kWidth), 128-byte swizzle
  __shared__ alignas(8) u64 full[kStages];            // 1 arrival: the producer, with the bytes of the whole tile; the consumers wait
  __shared__ alignas(8) u64 empty[kStages];           // an arrival of each consumer warp of every CTA; the producer waits
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u32 rank, ranks;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(ranks));
  const int share = kRows / ranks, first = blockIdx.x / ranks * steps * kRows;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      init(&full[s], 1);
      init(&empty[s], kConsumers * ranks);
    }
    fence_init();
  }
  cluster_arrive();
  cluster_wait();
  if (warp == kConsumers) {
    if (lane == 0) {
      for (int step = 0; step < steps; ++step) {
        const int s = step % kStages, round = step / kStages;
        wait(&empty[s], ~round & 1);
        expect(&full[s], kBytes);
        load(tile[s] + rank * share * kWidth, &in, 0, first + step * kRows + rank * share, &full[s], (1 << ranks) - 1);
      }
    }
  } else {
    u32 sum = 0;
    float d[4] = {};
    for (int step = 0; step < steps; ++step) {
      const int s = step % kStages, round = step / kStages;
      wait(&full[s], round & 1);
#if PRODUCTS
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
      for (int k = 0; k < kWidth / 32; ++k) product(d, descriptor(tile[s] + 32 * k), descriptor(tile[s] + 32 * k));
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])::"memory");
#else
      for (int i = 0; i < kWidth / 4; ++i) sum += ((const u32*)tile[s])[threadIdx.x % kRows * (kWidth / 4) + i];
      __syncwarp();
#endif
      if (lane < ranks) arrive(remote(&empty[s], lane));
    }
#if PRODUCTS
    for (int i = 0; i < 4; ++i) out[blockIdx.x * kRows * 8 + (16 * warp + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = __float_as_uint(d[i]);
#else
    out[blockIdx.x * 128 + threadIdx.x] = sum;
#endif
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}
