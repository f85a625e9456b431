// The types of the kernels and the PTX instructions that CUDA C++ has no word for: a function each,
// named after the instruction. Compiled by NVRTC with -default-device, so that every function here
// is a device function; no headers.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

typedef u8 e4m3;  // FP8: sign, 4 bits of exponent, 3 of mantissa
typedef u16 bf16;

typedef u32 e4m3x4;  // four elements of a row, the first in the lowest byte

// Sixteen elements: as much as a thread loads at once.
struct alignas(16) e4m3x16 {
  e4m3x4 words[4];
};

// As in cuda.h.
struct alignas(64) CUtensorMap {
  u64 opaque[16];
};

// --- arithmetic

// The four elements as floats, exactly.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
inline float4 cvt_rn_f32_e4m3x4(e4m3x4 packed) {
  float4 x;
  asm("{\n"
      ".reg .b16 low, high, h0, h1, h2, h3;\n"
      ".reg .b32 p, q;\n"
      "mov.b32 {low, high}, %4;\n"
      "cvt.rn.f16x2.e4m3x2 p, low;\n"
      "cvt.rn.f16x2.e4m3x2 q, high;\n"
      "mov.b32 {h0, h1}, p;\n"
      "mov.b32 {h2, h3}, q;\n"
      "cvt.f32.f16 %0, h0;\n"
      "cvt.f32.f16 %1, h1;\n"
      "cvt.f32.f16 %2, h2;\n"
      "cvt.f32.f16 %3, h3;\n"
      "}"
      : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
      : "r"(packed));
  return x;
}

// The nearest BF16, ties to even; every NaN becomes 0x7fff.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
inline bf16 cvt_rn_bf16_f32(float x) {
  bf16 rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
  return rounded;
}

// Both rounded so; `low` in the lower half, where memory has the first.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
inline u32 cvt_rn_bf16x2_f32(float low, float high) {
  u32 rounded;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(rounded) : "f"(high), "f"(low));
  return rounded;
}

// An FP16 as a float, exactly.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
inline float cvt_f32_f16(u16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
  return wide;
}

// The nearest E4M3, ties to even, at most 448 in magnitude; every NaN becomes 0x7f. `low` in the
// lower half, where memory has the first.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
inline u16 cvt_rn_satfinite_e4m3x2_f32(float low, float high) {
  u16 rounded;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(rounded) : "f"(high), "f"(low));
  return rounded;
}

// acc plus four products, one after the other, each rounded as it is added.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-fma
inline float fma_rn_f32(float4 x, float4 y, float acc) {
  acc = fmaf(x.x, y.x, acc);
  acc = fmaf(x.y, y.y, acc);
  acc = fmaf(x.z, y.z, acc);
  return fmaf(x.w, y.w, acc);
}

// --- kernels of a stream that overlap, where the launch allows it: programmatic dependent launch

// Returns when the kernel before has ended and what it wrote is visible. Returns at once where the
// launch waited for that.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-griddepcontrol
inline void griddepcontrol_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the kernel behind start when every CTA of this one has said so, or has ended.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-griddepcontrol
inline void griddepcontrol_launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;");
}

// --- addresses

// The 32-bit address within shared memory that the instructions below take.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvta
inline u32 cvta_to_shared(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// --- mbarriers: a phase completes when its arrivals and bytes have all come; the next one begins

// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-init
inline void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(cvta_to_shared(barrier)), "r"(arrivals)
               : "memory");
}

// Makes initialised barriers visible to the asynchronous copies that complete on them.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar-fence
inline void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival, and the promise that this many bytes will come.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-arrive
inline void mbarrier_arrive_expect_tx(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(cvta_to_shared(barrier)), "r"(bytes)
               : "memory");
}

// One arrival. What this thread did before is visible to those who wait for the phase.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-arrive
inline void mbarrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];"
               :
               : "r"(cvta_to_shared(barrier))
               : "memory");
}

// Whether the phase of this parity is complete; the hardware may let the thread sleep a while
// before it says no.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-test-wait-try-wait
inline bool mbarrier_try_wait_parity(u64* barrier, u32 parity) {
  u32 complete;
  asm volatile("{\n"
               ".reg .pred p;\n"
               "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
               "selp.u32 %0, 1, 0, p;\n"
               "}"
               : "=r"(complete)
               : "r"(cvta_to_shared(barrier)), "r"(parity)
               : "memory");
  return complete;
}

// Returns when the phase of this parity is complete. What arrived before is visible then.
inline void mbarrier_wait_parity(u64* barrier, u32 parity) {
  while (!mbarrier_try_wait_parity(barrier, parity)) {
  }
}

// --- TMA: boxes of a tensor, copied by hardware; coordinates in elements, innermost first

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-prefetch-prefetchu
inline void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Global to shared: the box's bytes complete on the barrier. Outside the tensor it is zeros.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
inline void cp_async_bulk_tensor_load(void* to, const CUtensorMap* map, int inner, int outer,
                                      u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];"
      :
      : "r"(cvta_to_shared(to)), "l"(map), "r"(inner), "r"(outer), "r"(cvta_to_shared(barrier))
      : "memory");
}

// Shared to global: joins the thread's next bulk group. What lies outside the tensor is not
// written.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
inline void cp_async_bulk_tensor_store(const CUtensorMap* map, int inner, int outer,
                                       const void* from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
               :
               : "l"(map), "r"(inner), "r"(outer), "r"(cvta_to_shared(from))
               : "memory");
}

// The same two under a policy: which lines the L2 cache gives up first when it needs room.
inline void cp_async_bulk_tensor_load(void* to, const CUtensorMap* map, int inner, int outer,
                                      u64* barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;"
      :
      : "r"(cvta_to_shared(to)), "l"(map), "r"(inner), "r"(outer), "r"(cvta_to_shared(barrier)),
        "l"(policy)
      : "memory");
}
inline void cp_async_bulk_tensor_store(const CUtensorMap* map, int inner, int outer,
                                       const void* from, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint "
      "[%0, {%1, %2}], [%3], %4;"
      :
      : "l"(map), "r"(inner), "r"(outer), "r"(cvta_to_shared(from)), "l"(policy)
      : "memory");
}

// The load for a tensor of three dimensions: without and with a policy.
inline void cp_async_bulk_tensor_load(void* to, const CUtensorMap* map, int inner, int middle,
                                      int outer, u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];"
      :
      : "r"(cvta_to_shared(to)), "l"(map), "r"(inner), "r"(middle), "r"(outer),
        "r"(cvta_to_shared(barrier))
      : "memory");
}
inline void cp_async_bulk_tensor_load(void* to, const CUtensorMap* map, int inner, int middle,
                                      int outer, u64* barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;"
      :
      : "r"(cvta_to_shared(to)), "l"(map), "r"(inner), "r"(middle), "r"(outer),
        "r"(cvta_to_shared(barrier)), "l"(policy)
      : "memory");
}

// Policies for all lines: before others, and as if there were none.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-createpolicy
inline u64 createpolicy_evict_first() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
inline u64 createpolicy_evict_normal() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-commit-group
inline void cp_async_bulk_commit_group() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Returns when at most kPending of the thread's groups have still to read their shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-wait-group
template <int kPending>
inline void cp_async_bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// What this thread wrote to shared memory becomes visible to asynchronous copies that are issued
// after it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar-fence
inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- warpgroup matrix products (WGMMA): issued by 128 threads together, computed beside them

// Where a tile of 128-byte rows begins that TMA wrote with the 128-byte swizzle, as the tensor core
// wants to be told. The swizzle's pattern repeats every 8 rows, and the tile, or the 8 rows from
// which on it is read, begins where the pattern does: at a multiple of 1024 bytes. k columns
// further on is the descriptor plus k / 16, since the hardware swizzles the address that it has
// computed; r rows further down, for an r that is a multiple of 8, plus 8 * r.
//   bits  0 to 13: the address / 16
//   bits 16 to 29: the leading byte offset / 16, unused by a swizzled tile with k innermost
//   bits 32 to 45: the stride byte offset / 16: from 8 rows to the next 8, 1024 bytes
//   bits 49 to 51: the base offset: 0, because of that alignment
//   bits 62 to 63: 1, the 128-byte swizzle
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout-matrix-descriptor
inline u64 wgmma_descriptor(const void* tile) {
  const u64 address = cvta_to_shared(tile) & 0x3ffff;
  return address >> 4 | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}

// The same in two steps. Only the lower half depends on the tile: a kernel adds to it in 32 bits,
// and makes the whole of it right before it is used.
inline u32 wgmma_descriptor_low(const void* tile) {
  return static_cast<u32>(wgmma_descriptor(tile));
}
inline u64 wgmma_descriptor(u32 low) { return low | (1024ull >> 4) << 32 | 1ull << 62; }

// What the warpgroup did to its accumulators comes before what the products issued after this do.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-fence
inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// The products issued since the last commit become a group.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-commit-group
inline void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Returns when at most kPending of the latest groups are still being computed.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-wait-group
template <int kPending>
inline void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No instruction: for the compiler, to which an accumulator is a variable like any other. It sees
// that a product is issued, not that its result comes later, and could move a read of x above the
// wait, or a write below the fence. This claims to read and write every x, in an order with the
// memory clobbers around it.
template <int kCount>
inline void keep_in_order(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kWaves, int kCount>
inline void keep_in_order(float (&x)[kWaves][kCount]) {
#pragma unroll
  for (int wave = 0; wave < kWaves; ++wave) keep_in_order(x[wave]);
}

// Four 8x8 matrices of BF16: lane l gives the address of row l % 8 of matrix l / 8, and two
// neighbours of row l / 4 of each: the way in which accumulators lie.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix
inline void stmatrix_x4(void* row, u32 x0, u32 x1, u32 x2, u32 x3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(cvta_to_shared(row)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}

// The same for two matrices, each of which is transposed on its way: lanes 0 to 15 give the
// addresses of the rows that memory has, which are the columns of what the lanes hold.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix
inline void stmatrix_x2_trans(void* row, u32 x0, u32 x1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};"
               :
               : "r"(cvta_to_shared(row)), "r"(x0), "r"(x1)
               : "memory");
}

// --- clusters: CTAs that run at the same time and reach each other's shared memory

// The CTA's number in its cluster.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-cluster-ctarank
inline u32 cluster_ctarank() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Where the CTA of this rank has what this one has at `pointer`.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-mapa
inline u32 mapa(const void* pointer, u32 rank) {
  u32 address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(cvta_to_shared(pointer)), "r"(rank));
  return address;
}

// One arrival at a barrier of any CTA of the cluster. What this thread's products and reads did is
// done then. To order its writes for the other CTA would take .release.cluster, for which it waits
// until all its memory traffic is over.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-arrive
inline void mbarrier_arrive_cluster(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// All threads of the cluster arrive, and wait until all have, or have ended. What they did before
// is visible then.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-barrier-cluster
inline void barrier_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
inline void barrier_cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Global to shared, of each CTA that has a bit in `ranks`: to the same place there, completing on
// its own barrier.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
inline void cp_async_bulk_tensor_load_multicast(void* to, const CUtensorMap* map, int inner,
                                                int outer, u64* barrier, u16 ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
      :
      : "r"(cvta_to_shared(to)), "l"(map), "r"(inner), "r"(outer), "r"(cvta_to_shared(barrier)),
        "h"(ranks)
      : "memory");
}

// --- roles: warps that do different things

// True in one lane of the warp. All lanes must come here together.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-elect-sync
inline bool elect_sync() {
  u32 elected;
  asm volatile("{\n"
               ".reg .pred p;\n"
               "elect.sync _|p, 0xffffffff;\n"
               "selp.u32 %0, 1, 0, p;\n"
               "}"
               : "=r"(elected));
  return elected;
}

// Registers that a warpgroup gives back, and those that another then takes; a multiple of 8 a
// thread.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-setmaxnreg
template <int kCount>
inline void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
inline void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// __syncthreads() for some of the warps: `threads` of them meet at barrier `id`, 1 to 15.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
inline void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same for threads that come from different places of the program.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
inline void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A thread's arrival at that barrier, without the wait: for those who have nothing to wait for.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
inline void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
