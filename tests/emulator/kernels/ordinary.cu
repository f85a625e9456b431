// Ordinary CUDA C++ that is no stage of ours: what any course's kernels compile to.
typedef unsigned u32;
typedef unsigned long long u64;
typedef unsigned char u8;
typedef unsigned short u16;

__device__ float warp_max(float v) {
  for (int o = 16; o; o /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}
__device__ float warp_sum(float v) {
  for (int o = 16; o; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

// A warp a row; n columns.
extern "C" __global__ void softmax(const float* x, float* y, int rows, int n) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  float largest = -3.402823466e38f;
  for (int i = lane; i < n; i += 32) largest = fmaxf(largest, x[row * n + i]);
  largest = warp_max(largest);
  float sum = 0;
  for (int i = lane; i < n; i += 32) sum += exp2f((x[row * n + i] - largest) * 1.44269504f);
  sum = warp_sum(sum);
  for (int i = lane; i < n; i += 32) y[row * n + i] = exp2f((x[row * n + i] - largest) * 1.44269504f) / sum;
}

extern "C" __global__ void transpose(const float* x, float* y, int rows, int columns) {
  __shared__ float tile[32][33];
  const int x0 = blockIdx.x * 32, y0 = blockIdx.y * 32;
  for (int i = threadIdx.y; i < 32; i += blockDim.y)
    if (y0 + i < rows && x0 + threadIdx.x < columns) tile[i][threadIdx.x] = x[(y0 + i) * columns + x0 + threadIdx.x];
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += blockDim.y)
    if (x0 + i < columns && y0 + threadIdx.x < rows) y[(x0 + i) * rows + y0 + threadIdx.x] = tile[threadIdx.x][i];
}

extern "C" __global__ void histogram(const u8* x, u32* counts, int n) {
  __shared__ u32 own[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) own[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&own[x[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x)
    if (own[i]) atomicAdd(&counts[i], own[i]);
}

extern "C" __global__ void collatz(const u32* x, u32* steps, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  u64 v = x[i];
  u32 count = 0;
  while (v > 1) {
    v = v & 1 ? 3 * v + 1 : v / 2;
    ++count;
  }
  steps[i] = count;
}

// Inclusive prefix sum of one block (Hillis and Steele), two buffers.
extern "C" __global__ void scan(const int* x, int* y, int n) {
  extern __shared__ int buffer[];
  int *from = buffer, *to = buffer + blockDim.x;
  const int t = threadIdx.x;
  from[t] = t < n ? x[t] : 0;
  __syncthreads();
  for (int step = 1; step < blockDim.x; step *= 2) {
    to[t] = from[t] + (t >= step ? from[t - step] : 0);
    __syncthreads();
    int* swap = from;
    from = to;
    to = swap;
  }
  if (t < n) y[t] = from[t];
}

// The last block to finish adds up what the blocks left: threadfence and an atomic ticket.
__device__ u32 ticket = 0;
extern "C" __global__ void last_block_sum(const int* x, volatile int* partial, int* total, int n) {
  __shared__ int sums[32];
  __shared__ bool last;
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = __reduce_add_sync(~0u, sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    int block = 0;
    for (int i = 0; i < blockDim.x / 32; ++i) block += sums[i];
    partial[blockIdx.x] = block;
    __threadfence();
    last = atomicInc(&ticket, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    __threadfence();
    int all = 0;
    for (int i = 0; i < gridDim.x; ++i) all += partial[i];
    *total = all;
  }
}

extern "C" __global__ void wide_division(const long long* x, const long long* y, long long* q, u64* r, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  q[i] = x[i] / y[i];
  r[i] = (u64)x[i] % (u64)y[i];
  q[i] ^= (long long)__umul64hi((u64)x[i], (u64)y[i]) + __mul64hi(x[i], y[i]);
}

extern "C" __global__ void exact_math(const float* x, const float* y, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i], b = y[i];
  float* o = out + i * 12;
  o[0] = __fdiv_rn(a, b);
  o[1] = __fsqrt_rn(fabsf(a));
  o[2] = __frcp_rn(b);
  o[3] = __fadd_rz(a, b);
  o[4] = __fmul_ru(a, b);
  o[5] = __fmaf_rd(a, b, a);
  o[6] = fmaf(a, b, -a);
  o[7] = rintf(a) + truncf(b) + floorf(a) + ceilf(b);
  o[8] = fminf(a, b) - fmaxf(a, b);
  o[9] = (float)(int)(a * 100) + (float)__float2uint_rn(fabsf(b));
  o[10] = copysignf(a, b);
  o[11] = __fsub_rz(a, b) / 3.0f;
}

extern "C" __global__ void approximate_math(const float* x, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[i];
  out[i * 6] = __expf(a);
  out[i * 6 + 1] = __logf(fabsf(a) + 1);
  out[i * 6 + 2] = __sinf(a);
  out[i * 6 + 3] = rsqrtf(fabsf(a) + 0.5f);
  out[i * 6 + 4] = tanhf(a);
  out[i * 6 + 5] = powf(fabsf(a) + 0.5f, 1.5f);
}

extern "C" __global__ void local_array(const int* x, int* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int stack[16];
  for (int j = 0; j < 16; ++j) stack[j] = x[i] * j ^ j;
  int at = x[i] & 15;
  for (int j = 0; j < 40; ++j) {
    const int other = stack[at] & 15;
    const int held = stack[at];
    stack[at] = stack[other] + j;
    stack[other] = held;
    at = (other + j) & 15;
  }
  int sum = 0;
  for (int j = 0; j < 16; ++j) sum = sum * 31 + stack[j];
  y[i] = sum;
}

__device__ __noinline__ int twice(int x) { return 2 * x; }
__device__ __noinline__ int mix(int x, int y) { return twice(x) - (y ^ twice(y)); }
extern "C" __global__ void calls(const int* x, int* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int v = x[i];
  switch (v & 7) {
    case 0: v = mix(v, 3); break;
    case 1: v = twice(v); break;
    case 2: v += 100; break;
    case 3: v = mix(v, mix(v, 1)); break;
    case 4: v = -v; break;
    case 5: v ^= 0x55; break;
    default: v = mix(2, v);
  }
  y[i] = v;
}

__constant__ int primes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__constant__ double factors[3] = {0.5, -1.25, 3.0};
extern "C" __global__ void tables(const int* x, double* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = fma((double)primes[x[i] & 7], factors[(x[i] >> 3 & 255) % 3], (double)x[i] / 7.0);
}

extern "C" __global__ void warp_votes(const u32* x, u32* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const u32 v = x[i];
  u32 r = __ballot_sync(~0u, v & 1);
  r ^= __match_any_sync(~0u, v & 3) * 3;
  r += __any_sync(~0u, v > 4000000000u) ? 7 : 1;
  r += __all_sync(~0u, v > 5) ? 64 : 32;
  r += __shfl_up_sync(~0u, v, 3) + __shfl_down_sync(~0u, v, 5, 16) + __shfl_sync(~0u, v, v & 31);
  if (v & 2) r += __popc(__activemask()) > 0;
  r ^= __reduce_xor_sync(~0u, v) + __reduce_min_sync(~0u, v);
  y[i] = r;
}

extern "C" __global__ void bits(const u32* x, const u32* y, u32* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const u32 a = x[i], b = y[i];
  u32 r = __byte_perm(a, b, b & 0x7777);
  r ^= __brev(a) + __clz(b) * 3 + __popc(a) * 5 + __ffs(b) * 7;
  r += __funnelshift_l(a, b, a & 63) ^ __funnelshift_rc(a, b, b & 63);
  r ^= (a >> (b & 31)) + (b << (a & 31)) + (u32)((int)a >> (b & 31));
  r += __umulhi(a, b) ^ (u32)__mulhi((int)a, (int)b);
  r ^= __dp4a(a, b, r);
  r += __vadd2(a, b) ^ __sad((int)a, (int)b, r) ^ ((a & b) | (~a & r));
  out[i] = r;
}

extern "C" __global__ void small_floats(const float* x, u32* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = x[2 * i], b = x[2 * i + 1];
  u32 bf, h, back, product, wide;
  u16 fp8, fp8b;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bf) : "f"(a), "f"(b));
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(a), "f"(b));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(fp8) : "f"(a), "f"(b));
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(fp8b) : "f"(a), "f"(b));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(back) : "h"(fp8));
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(h), "r"(back), "r"(h));
  asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(wide) : "h"(fp8b));
  u32* o = out + 6 * i;
  o[0] = bf;
  o[1] = h;
  o[2] = fp8 | (u32)fp8b << 16;
  o[3] = back;
  o[4] = product;
  o[5] = wide;
}

extern "C" __global__ void compare_and_swap(const float* x, float* largest, u64* sum, float* total, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int* at = (int*)largest;
  int seen = *(volatile int*)at;
  while (x[i] > __int_as_float(seen)) {
    const int held = atomicCAS(at, seen, __float_as_int(x[i]));
    if (held == seen) break;
    seen = held;
  }
  atomicAdd(sum, (u64)(x[i] * 1000));
  atomicAdd(total, (float)(int)x[i]);
}

// Threads of one warp take a lock in turn.
extern "C" __global__ void spin_lock(int* lock, int* value, int rounds) {
  for (int r = 0; r < rounds; ++r) {
    bool done = false;
    while (!done) {
      if (atomicCAS(lock, 0, 1) == 0) {
        __threadfence();
        *(volatile int*)value += 1;
        __threadfence();
        atomicExch(lock, 0);
        done = true;
      }
    }
  }
}

// Generic pointers, a struct by value, printf.
struct Pair { int first; float second; char name; };
extern "C" __global__ void generic_pointers(Pair pair, int* out, int which) {
  __shared__ int here[4];
  int mine[4] = {pair.first, 2, 3, 4};
  here[threadIdx.x & 3] = threadIdx.x;
  __syncthreads();
  int* p = which == 0 ? here : which == 1 ? mine : out;
  const int v = p[1] + (int)(pair.second * 2) + pair.name;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = v;
  if (threadIdx.x == 0 && which == 3) printf("first %d second %.2f name %c %s\n", pair.first, pair.second, pair.name, "end");
}

// ---- three that are wrong

extern "C" __global__ void race(const int* x, int* y) {
  __shared__ int s[256];
  s[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = s[255 - threadIdx.x];
}

extern "C" __global__ void wild(const int* x, int* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];  // no guard
}

extern "C" __global__ void deadlock(int* x) {
  __shared__ volatile int turn;
  if (threadIdx.x == 0) turn = 0;
  __syncthreads();
  if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;");
  x[threadIdx.x] = turn;
}
