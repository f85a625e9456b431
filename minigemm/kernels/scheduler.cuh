// Which tiles of d a CTA computes, and in which order. A persistent kernel has fewer CTAs than
// tiles: each computes every gridDim.x-th tile, so that at any time the CTAs are at neighbouring
// numbers.

#pragma once

// A tile of d: its rows begin at m * BLOCK_M, its columns at n * BLOCK_N.
struct Tile {
  int m, n;
};

// The tile of this number, of tiles_m x tiles_n. They lie in groups of RASTER columns of tiles
// (rows, if RASTER_M); within a group the numbers run across it, then down. The tiles at work
// together then make a block about as wide as high, not a row right across d, and share what they
// read of a and b in the L2 cache.
inline Tile raster(int number, int tiles_m, int tiles_n) {
  const int across = RASTER_M ? tiles_m : tiles_n;
  const int along = RASTER_M ? tiles_n : tiles_m;
  if (along == 1) return RASTER_M ? Tile{number, 0} : Tile{0, number};  // without the divisions
  const int group = number / (min(RASTER, across) * along);
  const int first = group * RASTER;  // the group's first column
  const int width = min(RASTER, across - first);
  const int x = first + (number - first * along) % width;
  const int y = (number - first * along) / width;
  return RASTER_M ? Tile{x, y} : Tile{y, x};
}

// The tiles of one product.
struct Scheduler {
  const int tiles_m, tiles_n;
  int number = blockIdx.x;  // of the next tile
  Scheduler(int m, int n)
      : tiles_m((m + BLOCK_M - 1) / BLOCK_M), tiles_n((n + BLOCK_N - 1) / BLOCK_N) {}

  // The CTA's next tile; false when there are no more.
  bool next(Tile& tile) {
    if (number >= tiles_m * tiles_n) return false;
    tile = raster(number, tiles_m, tiles_n);
    number += gridDim.x;
    return true;
  }
};

// --- groups: products of one launch that have each their own rows of a and their own b

constexpr int DENSE = 0, CONTIGUOUS = 1, PREFIX_SUMS = 2, MASKED = 3;  // types.Layout in Python
constexpr int PADDING = -1, DONE = -2;  // instead of a group: there is nothing to multiply

// The rows of a tile that belong to one group: [first, middle) are multiplied, [middle, last) are
// padding.
struct alignas(16) Part {
  int group, row0, column0;  // the group of b; the tile's first row and column of d
  int sfa_row;               // the tile's first row in sfa, where a masked group begins at 0
  int first, middle, last;   // rows of d
  int down;                  // about how many tiles read the same rows of b

  // Lane 0 reads, shuffles hand it to all lanes. One lane reads and arrives, and the compiler sees
  // uniform values.
  Part broadcast() const {
    Part part = {};
    if (threadIdx.x % 32 == 0) part = *this;
    const auto all = [](int x) { return __shfl_sync(0xffffffff, x, 0); };
    return {all(part.group), all(part.row0),   all(part.column0), all(part.sfa_row),
            all(part.first), all(part.middle), all(part.last),    all(part.down)};
  }
};

// Parts on their way from the warp that finds them to the warps that load and compute: a ring of
// kAhead places in shared memory.
struct Parts {
  static constexpr u32 kAhead = 4;
  u64 told[kAhead];   // lane 0 of the finding warp arrives when it has written the part
  u64 heard[kAhead];  // lane 0 of each listening warp arrives when it has read the part
  Part part[kAhead];

  // For one thread.
  void init(int listeners) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      mbarrier_init(&told[i], 1);
      mbarrier_init(&heard[i], listeners);
    }
  }

  // Part number i, from 0 on; for whole warps.
  void tell(u32 i, const Part& next) {
    mbarrier_wait_parity(&heard[i % kAhead], i / kAhead % 2 ^ 1);  // at first all places are free
    if (threadIdx.x % 32 == 0) {
      part[i % kAhead] = next;
      mbarrier_arrive(&told[i % kAhead]);
    }
  }
  // All parts that a scheduler finds, and DONE.
  template <typename Finder>
  void tell_all(Finder& scheduler) {
    u32 i = 0;
    for (Part part; scheduler.next(part); ++i) tell(i, part);
    tell(i, {DONE});
  }
  // Hears part number i; false when there are no more. For whole warps.
  bool listen(u32 i, Part& next) {
    mbarrier_wait_parity(&told[i % kAhead], i / kAhead % 2);
    next = part[i % kAhead].broadcast();
    if (threadIdx.x % 32 == 0) mbarrier_arrive(&heard[i % kAhead]);
    // A vote shows the compiler that no lane stays behind.
    return __all_sync(0xffffffff, next.group != DONE);
  }
  // The same for one thread.
  bool take(u32 i, Part& next) {
    mbarrier_wait_parity(&told[i % kAhead], i / kAhead % 2);
    next = part[i % kAhead];
    mbarrier_arrive(&heard[i % kAhead]);
    return next.group != DONE;
  }
};

// The parts that a CTA computes, for each layout, in the order of `raster` within a group. The host
// knows neither how many rows a group has nor where it begins: a warp finds out as it goes. All of
// its lanes call together.
//
// For one lane the search would be a loop over groups: subtract the tiles of each group from the
// tile's number until fewer are left than the group has. Here 32 lanes count 32 groups at once.
template <int kLayout>
struct GroupedScheduler {
  static constexpr bool kSearch = kLayout == PREFIX_SUMS || kLayout == MASKED;  // else one list
  static constexpr int kIds = (BLOCK_M + 31) / 32;

  // the launch's
  const int m, n, groups;
  const int* index;        // CONTIGUOUS: each row's group; PREFIX_SUMS: ends; MASKED: counts
  const int span;          // PREFIX_SUMS: groups begin at multiples of it; MASKED: rows of a buffer
  const int zero_padding;  // whether padding is written

  // the walk's
  int number = blockIdx.x;         // of the next tile
  int group0 = 0, tiles0 = 0;      // lane l looks at group group0 + l; tiles before group0
  int row0 = 0, row = 0, end = 0;  // the first row of this tile, and the rows that are left of it
  int ids[kIds];                   // CONTIGUOUS: groups of the tile's rows l * kIds on, in lane l

  // The group's first row, the end of its own rows, and the end of those that are written.
  int3 rows_of(int group) const {
    if (!kSearch) return {0, m, m};
    if (kLayout == MASKED) {
      const int last = group * span + min(max(index[group], 0), span);
      return {group * span, last, last};
    }
    const int before = group > 0 ? min(max(index[group - 1], 0), m) : 0;
    const int first = min((before + span - 1) / span * span, m);
    if (group == groups) return {first, first, zero_padding ? m : first};  // rows behind all groups
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
      const int top = kLayout == PREFIX_SUMS ? rows.x & ~3 : rows.x;  // TMA reads scales by fours
      const bool any = group < count && rows.x < rows.z;
      const int tiles_m = any ? (rows.z - top + BLOCK_M - 1) / BLOCK_M : 0;
      int up_to = tiles_m * tiles_n;  // the tiles of the groups up to this lane's
#pragma unroll
      for (int i = 1; i < 32 && kSearch; i *= 2) {
        const int below = __shfl_up_sync(0xffffffff, up_to, i);
        if (lane >= i) up_to += below;
      }
      up_to += tiles0;

      if (const u32 reached = __ballot_sync(0xffffffff, number < up_to)) {
        const int from = __ffs(reached) - 1;  // the lane that has it
        const auto found = [from](int x) {
          return kSearch ? __shfl_sync(0xffffffff, x, from) : x;
        };
        const int down = found(tiles_m);
        const Tile tile = raster(number - found(up_to - tiles_m * tiles_n), down, tiles_n);
        const int first = found(rows.x), middle = found(rows.y), last = found(rows.z);
        number += gridDim.x;
        row0 = found(top) + tile.m * BLOCK_M;
        row = max(row0, first);
        end = min(row0 + BLOCK_M, last);
        part = {middle > row ? group0 + from : PADDING,
                row0,
                tile.n * BLOCK_N,
                kLayout == MASKED ? row0 - first : row0,
                row,
                min(max(middle, row), end),
                end,
                kLayout == CONTIGUOUS ? down / groups : down};
#pragma unroll
        for (int i = 0; i < kIds && kLayout == CONTIGUOUS; ++i) {
          ids[i] = group_of(row0 + lane * kIds + i);
        }
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
      if (kLayout == CONTIGUOUS) {  // the next rows of one group, and padding behind them
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
