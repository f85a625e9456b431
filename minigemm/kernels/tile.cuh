// What s11 and s12 have in common: how they follow the kernel before, how their roles get their
// parts, the ring of slots, and the places of d's elements in shared memory and in device memory.

#pragma once

constexpr int kWave = 64;        // rows that one WGMMA computes: of d in s11, of b in s12
constexpr int kDepth = 32;       // columns of a and b that it reads
constexpr int kWarpgroup = 128;  // threads
constexpr int kAlign = 1024;     // every swizzle's pattern begins anew here
static_assert(BLOCK_K == 128, "the 128-byte swizzle spans a row of a or b, as the descriptors say");
extern __shared__ __align__(1024) u8 shared_memory[];

// Waits for the kernel before, then lets the one behind start. Every thread that reads or writes
// global memory calls it first; only what a launch with `early` may read is read before.
//
// In this order, because a kernel then never starts before the last but one has ended: what is read
// early is safe from all kernels but the one before. At once, because it takes nothing from this
// kernel: all of its CTAs have started by then, each fills an SM's shared memory, and a CTA of the
// kernel behind starts where one of them has ended.
inline void follow() {
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
}

// The policy of a copy: its lines leave L2 before all others, or when their turn comes.
inline u64 policy(bool leaves_first) {
  return leaves_first ? createpolicy_evict_first() : createpolicy_evict_normal();
}

// How a role gets its parts, one after the other. It can count the tiles of a DENSE product itself:
// then its first load waits for no other warp. Or it hears them from the warp that finds the parts.
// The consumers of s11 hear them in all layouts, because counting costs each of them divisions.
struct Walk {
  Parts& parts;
  const int m;
  Scheduler scheduler;
  u32 heard = 0;  // parts
  Walk(Parts& parts, int m, int n) : parts(parts), m(m), scheduler(m, n) {}

  // The next part; false when there are no more. For whole warps: `listen` hears it, `next` counts
  // if DENSE, and hears it otherwise.
  bool listen(Part& part) { return parts.listen(heard++, part); }
  bool next(Part& part) { return LAYOUT == DENSE ? count(part) : listen(part); }
  // As `next`, for one thread.
  bool take(Part& part) { return LAYOUT == DENSE ? count(part) : parts.take(heard++, part); }

  // The next part of a DENSE product: a whole tile.
  bool count(Part& part) {
    Tile tile;
    if (!scheduler.next(tile)) return false;
    const int first = tile.m * BLOCK_M, last = min(first + BLOCK_M, m);
    // A box takes longer to load, the more of its rows lie outside a. So the last row of tiles ends
    // at m, if a has as many rows as a tile: it computes rows of the tile before once more, with
    // the same bits. A box of scales must begin at a multiple of 16 bytes, which is every 4th row.
    const int row0 = max(0, min(first, (m - BLOCK_M + 3) / 4 * 4));
    part = {0, row0, tile.n * BLOCK_N, row0, first, last, last, scheduler.tiles_m};
    return true;
  }
};

// A role's place in the ring: the slot, and the parity of the phase that the slot's full barrier
// completes in this round. Who fills the slot waits for the other parity of its empty barrier: that
// phase counts as complete at first, when all slots are empty.
struct Slot {
  int stage = 0;
  u32 phase = 0;
  void advance() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Initialises the barriers of the ring and of the parts: `fills` arrivals make a slot full, `reads`
// make it empty. For one thread.
inline void init(u64 (&full)[STAGES], u64 (&empty)[STAGES], int fills, int reads, Parts& parts) {
#pragma unroll
  for (int i = 0; i < STAGES; ++i) {
    mbarrier_init(&full[i], fills);
    mbarrier_init(&empty[i], reads);
  }
  // The consumers' warps and the one that brings the scales of b listen; for groups, so does the
  // loader.
  parts.init(4 * CONSUMERS + 1 + (LAYOUT != DENSE));
  fence_mbarrier_init();
}

// Waits for this phase of the barrier. For whole warps: no lane goes on alone, for one that stays
// behind could miss the phase that it waits for.
inline void wait_together(u64* barrier, u32 parity) {
  mbarrier_wait_parity(barrier, parity);
  __syncwarp();
}

// Gives the slot back to those who fill it, and goes on to the next. For whole warps.
inline void release(u64 (&empty)[STAGES], Slot& slot) {
  __syncwarp();  // all lanes arrive when they have read the slot, and lane 0 waits for them
  if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[slot.stage]);
  slot.advance();
}

// The place of d's element (row, column) in its tile of BLOCK_M rows, which lies in panels of PANEL
// columns. Rows of a panel lie densely; where they are 32, 64 or 128 bytes wide, TMA lets the
// 16-byte vectors in each trade places: which with which depends on how many times 128 bytes lie
// before the row.
template <int kPanels>
bf16& at(bf16 (&tile)[kPanels][BLOCK_M][PANEL], int row, int column) {
  constexpr int kSpan = PANEL * sizeof(bf16);  // 16, 32, 64 or 128
  const int swizzle = kSpan % 32 == 0 ? row * kSpan / 128 % (kSpan / 16) * 8 : 0;
  return tile[column / PANEL][row][column % PANEL ^ swizzle];
}

// Stores one sum in the element (row, column) of d, whose rows are ldd elements apart: rounded, or
// as it is where OUT_FP32; with ACCUMULATE added to what is there.
inline void put(void* d, i64 ldd, int row, int column, float sum) {
  if (OUT_FP32) {
    float& place = static_cast<float*>(d)[row * ldd + column];
    place = ACCUMULATE ? sum + place : sum;
  } else {
    bf16& place = static_cast<bf16*>(d)[row * ldd + column];
    place = cvt_rn_bf16_f32(ACCUMULATE ? sum + __uint_as_float(place << 16) : sum);
  }
}

// The same for two neighbours of a row, an even column of d's n and the next; with one access where
// d is `aligned`: its n columns then fill whole 16 bytes, so that no pair crosses their end.
inline void put(void* d, i64 ldd, int n, int row, int column, float x, float y, bool aligned) {
  if (column >= n) return;
  if (!aligned) {
    put(d, ldd, row, column, x);
    if (column + 1 < n) put(d, ldd, row, column + 1, y);
  } else if (OUT_FP32) {
    float2& place = *reinterpret_cast<float2*>(static_cast<float*>(d) + row * ldd + column);
    place = ACCUMULATE ? float2{x + place.x, y + place.y} : float2{x, y};
  } else {
    u32& place = *reinterpret_cast<u32*>(static_cast<bf16*>(d) + row * ldd + column);
    if (ACCUMULATE) {
      x += __uint_as_float(place << 16);
      y += __uint_as_float(place & 0xffff0000);
    }
    place = cvt_rn_bf16x2_f32(x, y);
  }
}
