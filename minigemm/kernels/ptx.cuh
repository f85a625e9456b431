// The types of the kernels and the PTX instructions that CUDA C++ has no word for: a function each, named after the
// instruction. Compiled by NVRTC with -default-device, so that every function here is a device function; no headers.

#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

typedef u8 e4m3;  // FP8: sign, 4 bits of exponent, 3 of mantissa
typedef u16 bf16;

typedef u32 e4m3x4;                               // four elements of a row, the first in the lowest byte
struct alignas(16) e4m3x16 { e4m3x4 words[4]; };  // sixteen: as much as a thread loads at once

struct alignas(64) CUtensorMap { u64 opaque[16]; };  // as in cuda.h

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

// acc plus four products, one after the other, each rounded as it is added.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-fma
inline float fma_rn_f32(float4 x, float4 y, float acc) {
  acc = fmaf(x.x, y.x, acc);
  acc = fmaf(x.y, y.y, acc);
  acc = fmaf(x.z, y.z, acc);
  return fmaf(x.w, y.w, acc);
}

// --- addresses

// The 32-bit address within shared memory that the instructions below take.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvta
inline u32 cvta_to_shared(const void* pointer) { return static_cast<u32>(__cvta_generic_to_shared(pointer)); }

// --- mbarriers: a phase completes when its arrivals and its bytes have all come, and the next one begins

// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-init
inline void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(cvta_to_shared(barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the asynchronous copies that complete on them.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar-fence
inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One arrival, and the promise that this many bytes will come.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier-arrive
inline void mbarrier_arrive_expect_tx(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(cvta_to_shared(barrier)), "r"(bytes)
               : "memory");
}

// Whether the phase of this parity is complete; the hardware may let the thread sleep a while before it says no.
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
inline void cp_async_bulk_tensor_load(void* to, const CUtensorMap* map, int inner, int outer, u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          cvta_to_shared(to)),
      "l"(map), "r"(inner), "r"(outer), "r"(cvta_to_shared(barrier))
      : "memory");
}

// Shared to global: joins the thread's next bulk group. What lies outside the tensor is not written.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
inline void cp_async_bulk_tensor_store(const CUtensorMap* map, int inner, int outer, const void* from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(inner),
               "r"(outer), "r"(cvta_to_shared(from))
               : "memory");
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-commit-group
inline void cp_async_bulk_commit_group() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Returns when at most kPending of the thread's groups have still to read their shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-wait-group
template <int kPending>
inline void cp_async_bulk_wait_group_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// What this thread wrote to shared memory becomes visible to asynchronous copies that are issued after it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar-fence
inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
