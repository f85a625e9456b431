// quantize_rows: E4M3 with a scale for each 1x128 block, of x, or of silu(gate) * up.
//
// Half a warp has a block of ROWS neighbouring rows: each lane holds eight elements of each, and
// the largest magnitude is found by shuffles. So x is read once, all rows of a warp at the same
// time, and no thread waits for another warp. The scales of a warp's rows are neighbours in memory.

#include "quantize.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpRows = 2 * ROWS;

// silu(gate) * up, where silu(g) = g / (1 + exp(-g)) and exp(t) = 2**n * e**r. The hardware's ex2
// is not defined to the bit; these operations are. See quantize.swiglu for the error.
inline float swiglu(float gate, float up) {
  const float t = fminf(fmaxf(-gate, -60.0f), 89.0f);  // beyond, 1 + exp(t) is 1, or infinite
  const float shifted = fmaf(t, 0x1.715476p0f, 0x1.8p23f);  // its last bits hold n
  const float n = shifted - 0x1.8p23f;
  const float r = fmaf(n, 0x1.05c61p-29f, fmaf(n, -0x1.62e43p-1f, t));
  float p = 0x1.6a2434p-10f;
  p = fmaf(p, r, 0x1.1239e2p-7f);
  p = fmaf(p, r, 0x1.5558f2p-5f);
  p = fmaf(p, r, 0x1.555492p-3f);
  p = fmaf(p, r, 0x1.fffffcp-2f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  const u32 power = (__float_as_uint(shifted) << 23) + (126 << 23);  // 2**(n - 1), finite
  return gate / fmaf(p * __uint_as_float(power), 2.0f, 1.0f) * up;
}

// A lane's elements of one row, as far as they lie inside it: of x, or of the gate and of up.
struct Values {
  Vector parts[1 + SWIGLU];
};

inline Values load_values(const Element* row, int k, int count) {
  Values values;
#pragma unroll
  for (int i = 0; i < 1 + SWIGLU; ++i) values.parts[i] = load(row + i * k, count);
  return values;
}

inline float value(const Values& values, int i) {
  const float x = element(values.parts[0], i);
  if constexpr (!SWIGLU) return x;
  return swiglu(x, element(values.parts[SWIGLU], i));
}

// What a lane of this half warp has.
inline Divisor of_lane(Divisor by, int lane) {
  return {__shfl_sync(0xffffffff, by.up, lane, kVectors),
          __shfl_sync(0xffffffff, by.scale, lane, kVectors),
          __shfl_sync(0xffffffff, by.inverse, lane, kVectors)};
}

extern "C" __global__ void __launch_bounds__(kThreads) quantize_rows(
    const Element* __restrict__ x,     // (groups, m, k), or with SWIGLU (groups, m, 2 * k)
    e4m3* __restrict__ data,           // (groups, m, k), groups one behind the other
    float* __restrict__ scale,         // (groups, m, ceil(k / 128)), M-major
    const int* __restrict__ counts,    // (groups): rows in use; or null, and all are
    int m, int k, i64 group_x, i64 ldx, i64 ldd,  // elements from a group or row to the next
    int lds,                                      // from a column of scales to the next
    float floor, int ue8m0) {
  const int lane = threadIdx.x % 32, half = lane / kVectors;
  const int blocks = (k + kBlock - 1) / kBlock;
  const int warp = blockIdx.x * kWarps + threadIdx.x / 32;  // neighbours lie along a row
  const int block = warp % blocks, warp_row = warp / blocks * kWarpRows;
  const i64 group = blockIdx.y;

  // Rows that are not in use are neither read nor written.
  const int rows = counts == nullptr ? m : min(m, counts[group]);
  if (warp_row >= rows) return;

  // All loads are under way before the first is waited for.
  const int row0 = warp_row + half * ROWS, column = block * kBlock + lane % kVectors * kVector;
  x += group * group_x + row0 * ldx + column;
  Values values[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    values[i] = load_values(x + i * ldx, k, row0 + i < rows ? k - column : 0);
  }

  // Lane i of each half keeps what belongs to its row i.
  float y[ROWS][kVector];
  float my_amax = 0.0f;
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    float amax = 0.0f;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      y[i][j] = value(values[i], j);
      amax = larger(amax, y[i][j]);
    }
    amax = largest_of_lanes<kVectors / 2>(amax);
    if (lane % kVectors == i) my_amax = amax;
  }
  const float my_scale = scale_of(my_amax, {floor, ue8m0});
  const Divisor my_divisor = divisor(my_scale);
  const int my_row = row0 + lane % kVectors;
  if (lane % kVectors < ROWS && my_row < rows) {
    scale[(group * blocks + block) * lds + my_row] = my_scale;
  }

  data += (group * m + row0) * ldd + column;
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    const Divisor by = of_lane(my_divisor, i);
#pragma unroll
    for (int j = 0; j < kVector; ++j) y[i][j] = divide(y[i][j], by);
    store(data + i * ldd, cast(y[i]), row0 + i < rows ? k - column : 0);
  }
}
