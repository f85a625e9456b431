// Twenty lines: TMA writes 128 bytes of d. compute-sanitizer's initcheck then calls a read of d uninitialised, though every byte was written.
struct alignas(64) TensorMap { unsigned long long opaque[16]; };

extern "C" __global__ void tma_store(const __grid_constant__ TensorMap map) {
  __shared__ alignas(128) unsigned char tile[128];
  tile[threadIdx.x] = threadIdx.x;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned from = __cvta_generic_to_shared(tile);
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %1}], [%2];"
                 ::"l"(&map), "r"(0), "r"(from) : "memory");
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
  }
}
