// What the kernels share that quantize to E4M3: eight neighbours of a row as a thread holds them,
// the scale of a block, and the division by it. The numbers are those of minigemm/quantize.py, bit
// for bit.
//
// The prelude says what x holds (DTYPE). With WIDE_LOADS every row of x begins at a multiple of 16
// bytes and holds a multiple of eight elements; with WIDE_STORES every row of the result begins at
// a multiple of 8 bytes and holds one. Then eight neighbours lie inside a row or outside of it.

#pragma once

#include "ptx.cuh"

constexpr int kBF16 = 0, kFP16 = 1, kFP32 = 2;  // values of DTYPE

constexpr int kBlock = 128;                // elements of a row that share a scale
constexpr int kVector = 8;                 // neighbours of a row that a thread holds
constexpr int kVectors = kBlock / kVector;  // in a block's row: half a warp has one each

template <int kDtype>
struct Stored {
  using type = u16;
};
template <>
struct Stored<kFP32> {
  using type = float;
};
using Element = Stored<DTYPE>::type;

// Eight elements as memory has them, so that BF16 takes half as many registers as floats would.
constexpr int kWords = kVector * sizeof(Element) / 4;
struct alignas(16) Vector {
  u32 words[kWords];
};

// --- memory

// The first `count` of eight elements, and zeros instead of the others.
inline Vector load(const Element* from, int count) {
  Vector x = {};
  if constexpr (WIDE_LOADS) {
    if (count > 0) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 words = reinterpret_cast<const uint4*>(from)[i];
        x.words[4 * i] = words.x;
        x.words[4 * i + 1] = words.y;
        x.words[4 * i + 2] = words.z;
        x.words[4 * i + 3] = words.w;
      }
    }
    return x;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if constexpr (DTYPE == kFP32) {
      if (i < count) x.words[i] = __float_as_uint(from[i]);
    } else {
      if (i < count) x.words[i / 2] |= static_cast<u32>(from[i]) << 16 * (i % 2);
    }
  }
  return x;
}

// Element i as a float, exactly.
inline float element(const Vector& x, int i) {
  if constexpr (DTYPE == kFP32) return __uint_as_float(x.words[i]);
  const u32 pair = x.words[i / 2];
  if constexpr (DTYPE == kBF16) return __uint_as_float(i % 2 ? pair & 0xffff0000 : pair << 16);
  return cvt_f32_f16(static_cast<u16>(i % 2 ? pair >> 16 : pair));
}

// The first `count` of eight codes.
inline void store(e4m3* to, uint2 codes, int count) {
  if constexpr (WIDE_STORES) {
    if (count > 0) *reinterpret_cast<uint2*>(to) = codes;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < count) to[i] = static_cast<e4m3>((i < 4 ? codes.x : codes.y) >> 8 * (i % 4));
  }
}

// --- scales

// The larger of amax and |x|. An infinity times 0 is NaN, and a NaN is no maximum: neither counts.
inline float larger(float amax, float x) { return fmaxf(amax, fmaf(x, 0.0f, fabsf(x))); }

// amax of 2 * kDistance neighbouring lanes, in each of them, where each brings its own.
template <int kDistance>
inline float largest_of_lanes(float amax) {
#pragma unroll
  for (int distance = kDistance; distance >= 1; distance /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xffffffff, amax, distance));
  }
  return amax;
}

// How the caller wants scales: the least amax, and whether they become powers of two.
struct Scaling {
  float floor;
  int ue8m0;
};

// amax / 448, or 1 for a block of zeros; never a subnormal, by which nothing can be divided well.
inline float scale_of(float amax, Scaling scaling) {
  amax = fmaxf(amax, scaling.floor);
  if (amax == 0.0f) return 1.0f;
  const float scale = fmaxf(amax / 448.0f, 0x1p-126f);
  if (!scaling.ue8m0) return scale;
  return __uint_as_float((__float_as_uint(scale) + 0x7fffff) & 0x7f800000);  // rounded up
}

// --- the cast

// What a division by the same scale shares.
struct Divisor {
  float up;       // 1, or for a small scale 2**64, so that no remainder becomes subnormal
  float scale;    // times up
  float inverse;  // of that
};

inline Divisor divisor(float scale) {
  const float up = scale < 0x1p-64f ? 0x1p64f : 1.0f;
  return {up, scale * up, 1.0f / (scale * up)};
}

// x / scale, for |x| up to 448 * scale: the product with the inverse, and its remainder divided in
// turn. For every scale, and every x beside a tie of E4M3, that has the bits of the division: all
// 2**23 mantissas by 16 ties by the 9 nearest x were tried. The signs are such that -0 stays -0. An
// infinity becomes NaN.
inline float divide(float x, Divisor by) {
  x *= by.up;
  const float quotient = x * by.inverse;
  return fmaf(fmaf(quotient, by.scale, -x), -by.inverse, quotient);
}

// Eight quotients in E4M3.
inline uint2 cast(const float (&x)[kVector]) {
  u32 pairs[kVector / 2];
#pragma unroll
  for (int i = 0; i < kVector / 2; ++i) {
    pairs[i] = cvt_rn_satfinite_e4m3x2_f32(x[2 * i], x[2 * i + 1]);
  }
  return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}
