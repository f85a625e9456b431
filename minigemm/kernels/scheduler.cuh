// Which tiles of d a CTA computes, and in which order. A persistent kernel has fewer CTAs than tiles: each computes
// every gridDim.x-th tile, so that at any time the CTAs are at neighbouring numbers.

#pragma once

struct Tile { int m, n; };  // the tile of rows m * BLOCK_M and columns n * BLOCK_N on

// The tile of this number, of tiles_m x tiles_n. They lie in groups of RASTER columns of tiles (rows, if RASTER_M);
// within a group the numbers run across it, then down. The tiles at work together then make a block about as wide as
// high, not a row right across d, and share what they read of a and b in the L2 cache.
inline Tile raster(int number, int tiles_m, int tiles_n) {
  const int across = RASTER_M ? tiles_m : tiles_n, along = RASTER_M ? tiles_n : tiles_m;
  if (along == 1) return RASTER_M ? Tile{number, 0} : Tile{0, number};  // and spares the divisions
  const int group = number / (min(RASTER, across) * along), first = group * RASTER, width = min(RASTER, across - first);
  const int x = first + (number - first * along) % width, y = (number - first * along) / width;
  return RASTER_M ? Tile{x, y} : Tile{y, x};
}

// The tiles of one product.
struct Scheduler {
  const int tiles_m, tiles_n;
  int number = blockIdx.x;  // of the next tile
  Scheduler(int m, int n) : tiles_m((m + BLOCK_M - 1) / BLOCK_M), tiles_n((n + BLOCK_N - 1) / BLOCK_N) {}

  // The CTA's next tile; false when there are no more.
  bool next(Tile& tile) {
    if (number >= tiles_m * tiles_n) return false;
    tile = raster(number, tiles_m, tiles_n);
    number += gridDim.x;
    return true;
  }
};

// --- groups: products of one launch that have each their own rows of a and their own b

constexpr int DENSE = 0, CONTIGUOUS = 1, PREFIX_SUMS = 2, MASKED = 3;  // layouts, as in s10_grouped.py
constexpr int PADDING = -1, DONE = -2;                                 // instead of a group: nothing to multiply

// What of a tile of d belongs to one group: the rows from `first` on, those from `middle` to `last` being padding.
struct alignas(16) Part {
  int group, row0, column0;  // of b; the tile's first row and column of d
  int sfa_row;               // and its first row among the scales of a, which a masked group has to itself
  int first, middle, last;   // rows of d
  int down;                  // tiles that read the same rows of b, about

  // What lane 0 finds here, in all lanes: the same lane then says that it has read, and the compiler knows it uniform.
  Part broadcast() const {
    Part part = {};
    if (threadIdx.x % 32 == 0) part = *this;
    const auto all = [](int x) { return __shfl_sync(0xffffffff, x, 0); };
    return {all(part.group), all(part.row0),   all(part.column0), all(part.sfa_row),
            all(part.first), all(part.middle), all(part.last),    all(part.down)};
  }
};

// Parts on their way from the warp that finds them to those that load and compute: in shared memory, so many at most.
struct Parts {
  static constexpr u32 kAhead = 4;
  u64 told[kAhead];   // a part is there
  u64 heard[kAhead];  // lane 0 of each warp that listens arrives when it has read it
  Part part[kAhead];

  // For one thread.
  void init(int listeners) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) mbarrier_init(&told[i], 1), mbarrier_init(&heard[i], listeners);
  }

  // Part number i, from 0 on; for whole warps.
  void tell(u32 i, const Part& next) {
    mbarrier_wait_parity(&heard[i % kAhead], i / kAhead % 2 ^ 1);  // for the first ones at once: all places are free
    if (threadIdx.x % 32 == 0) part[i % kAhead] = next, mbarrier_arrive(&told[i % kAhead]);
  }
  Part listen(u32 i) {
    mbarrier_wait_parity(&told[i % kAhead], i / kAhead % 2);
    const Part next = part[i % kAhead].broadcast();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&heard[i % kAhead]);
    return next;
  }
};

// The parts that a CTA computes, for each layout, in the order of `raster` within a group. The host knows neither how
// many rows a group has nor where a group begins: a warp, all of whose lanes call together, finds out as it goes.
template <int kLayout>
struct GroupedScheduler {
  static constexpr bool kSearch = kLayout == PREFIX_SUMS || kLayout == MASKED;  // else all tiles are of one list
  const int m, n, groups;
  const int* index;        // CONTIGUOUS: (m,), each row's group; PREFIX_SUMS: (groups,), their ends; MASKED: their rows
  const int span;          // PREFIX_SUMS: groups begin at multiples of it; MASKED: each has so many rows, used or not
  const int zero_padding;  // whether padding is written
  int number = blockIdx.x;     // of the next tile
  int group0 = 0, tiles0 = 0;  // lane l looks at group group0 + l; there are so many tiles before group0
  int row0 = 0, row = 0, end = 0;  // the first row of this tile, and what is left of it
  static constexpr int kIds = BLOCK_M / 32;
  int ids[kIds];               // CONTIGUOUS: the groups of the tile's rows: lane l has those from l * kIds on

  // The group's first row, the end of its own rows, and the end of those that are written.
  int3 rows_of(int group) const {
    if (!kSearch) return {0, m, m};
    if (kLayout == MASKED) {
      const int last = group * span + min(max(index[group], 0), span);
      return {group * span, last, last};
    }
    const int before = group > 0 ? min(max(index[group - 1], 0), m) : 0;
    const int first = min((before + span - 1) / span * span, m);
    if (group == groups) return {first, first, zero_padding ? m : first};  // the rows behind the last group
    const int last = min(max(index[group], first), m);
    return {first, last, zero_padding ? min((last + span - 1) / span * span, m) : last};
  }

  // CONTIGUOUS: the group of this row of a.
  int group_of(int row) const {
    const int id = index[min(row, m - 1)];
    return 0 <= id && id < groups ? id : PADDING;
  }

  // Finds the tile of this number: counts the tiles of 32 groups at once.
  bool find(Part& part) {
    const int count = kLayout == MASKED ? groups : kLayout == PREFIX_SUMS ? groups + 1 : 1;
    const int lane = threadIdx.x % 32, tiles_n = (n + BLOCK_N - 1) / BLOCK_N;
    for (; group0 < count; group0 += 32) {
      const int group = kSearch ? group0 + lane : 0;
      const int3 rows = rows_of(min(group, count - 1));
      const int top = kLayout == PREFIX_SUMS ? rows.x & ~3 : rows.x;  // TMA reads scales from a multiple of 4 on
      const int tiles_m = group < count && rows.x < rows.z ? (rows.z - top + BLOCK_M - 1) / BLOCK_M : 0;
      int up_to = tiles_m * tiles_n;  // the tiles of the groups up to this lane's
#pragma unroll
      for (int i = 1; i < 32 && kSearch; i *= 2) {
        const int below = __shfl_up_sync(0xffffffff, up_to, i);
        if (lane >= i) up_to += below;
      }
      up_to += tiles0;
      if (const u32 reached = __ballot_sync(0xffffffff, number < up_to)) {
        const int from = __ffs(reached) - 1;  // the lane that has it
        const auto found = [from](int x) { return kSearch ? __shfl_sync(0xffffffff, x, from) : x; };
        const int down = found(tiles_m);
        const Tile tile = raster(number - found(up_to - tiles_m * tiles_n), down, tiles_n);
        const int first = found(rows.x), middle = found(rows.y), last = found(rows.z);
        number += gridDim.x;
        row0 = found(top) + tile.m * BLOCK_M;
        row = max(row0, first), end = min(row0 + BLOCK_M, last);
        part = {middle > row ? group0 + from : PADDING, row0, tile.n * BLOCK_N, kLayout == MASKED ? row0 - first : row0,
                row, min(max(middle, row), end), end, kLayout == CONTIGUOUS ? down / groups : down};
#pragma unroll
        for (int i = 0; i < kIds && kLayout == CONTIGUOUS; ++i) ids[i] = group_of(row0 + lane * kIds + i);
        return true;
      }
      tiles0 = __shfl_sync(0xffffffff, up_to, 31);
    }
    return false;
  }

  // The first row from `from` on that is of another group, or `end`.
  int behind(int from, int group) const {
    int found = end;
#pragma unroll
    for (int i = kIds - 1; i >= 0; --i) {
      const int row = row0 + static_cast<int>(threadIdx.x) % 32 * kIds + i;
      if (from <= row && row < end && ids[i] != group) found = row;
    }
    return __reduce_min_sync(0xffffffff, found);
  }

  // The CTA's next part; false when there are no more.
  bool next(Part& part) {
    do {
      if (row >= end && !find(part)) return false;
      if (kLayout == CONTIGUOUS) {  // the rows of one group that come together, and padding behind them
        part.group = group_of(row);
        part.first = row;
        part.middle = part.group == PADDING ? row : behind(row, part.group);
        part.last = behind(part.middle, PADDING);
      }
      row = part.last;
      if (!zero_padding) part.last = part.middle;
    } while (part.first >= part.last);
    return true;
  }
};
