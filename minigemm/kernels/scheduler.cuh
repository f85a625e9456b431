// Which tiles of d a CTA computes, and in which order. A persistent kernel has fewer CTAs than
// tiles: each computes every gridDim.x-th tile, so that at any time the CTAs are at neighbouring
// numbers.

#pragma once

// A tile of d: its rows begin at m * BLOCK_M, its columns at n * BLOCK_N.
struct Tile {
  int m, n;
};

// The tile of this number, of tiles_m x tiles_n. They lie in bands of RASTER columns of tiles
// (rows, if RASTER_M); within a band the numbers run across it, then along it. The tiles at work
// together then make a block about as wide as high, not a row right across d, and share what they
// read of a and b in the L2 cache.
inline Tile raster(int number, int tiles_m, int tiles_n) {
  const int across = RASTER_M ? tiles_m : tiles_n;
  const int along = RASTER_M ? tiles_n : tiles_m;
  if (along == 1) return RASTER_M ? Tile{number, 0} : Tile{0, number};  // without the divisions
  const int band = number / (min(RASTER, across) * along);
  const int first = band * RASTER;  // the band's first column
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

// --- groups: products of one launch, each of which has its own rows of a and its own b

constexpr int DENSE = 0, CONTIGUOUS = 1, PREFIX_SUMS = 2, MASKED = 3;  // types.Layout in Python
constexpr int PADDING = -1, DONE = -2;  // no groups: rows without a product; the end of the parts

// The rows of a tile that belong to one group: [first, middle) are multiplied, [middle, last) are
// padding.
struct alignas(16) Part {
  int group, row0, column0;  // the group of b; the tile's first row and column of d
  int sfa_start;             // the tile's first column of sfa, where a MASKED group begins at 0
  int first, middle, last;   // rows of d
  int readers;               // about how many tiles read the same rows of b, for a policy in L2

  // How many of these steps (or columns) along k the roles go through for this part.
  int loaded(int steps) const { return group == PADDING ? 0 : steps; }

  // This part in all lanes: lane 0 reads it, and shuffles hand it on. So the lane that has read it
  // is the one that arrives, and the compiler knows that all lanes have the same values.
  Part broadcast() const {
    Part part = {};
    if (threadIdx.x % 32 == 0) part = *this;
    const auto all = [](int x) { return __shfl_sync(0xffffffff, x, 0); };
    return {all(part.group), all(part.row0),   all(part.column0), all(part.sfa_start),
            all(part.first), all(part.middle), all(part.last),    all(part.readers)};
  }
};

// Parts on their way from the warp that finds them to the warps that load and compute: a ring of
// kAhead places in shared memory.
struct Parts {
  static constexpr u32 kAhead = 4;
  // Lane 0 of the finding warp arrives when it has written the part; the listeners wait.
  u64 told[kAhead];
  // Lane 0 of each listening warp, or the thread that listens alone, arrives when it has read the
  // part; the finding warp waits.
  u64 heard[kAhead];
  Part part[kAhead];

  // For one thread.
  void init(int listeners) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      mbarrier_init(&told[i], 1);
      mbarrier_init(&heard[i], listeners);
    }
  }

  // Tells part number i, from 0 on. For whole warps.
  void tell(u32 i, const Part& next) {
    mbarrier_wait_parity(&heard[i % kAhead], i / kAhead % 2 ^ 1);  // at first all places are free
    if (threadIdx.x % 32 == 0) {
      part[i % kAhead] = next;
      mbarrier_arrive(&told[i % kAhead]);
    }
  }
  // Tells all parts that the scheduler finds, then DONE. For whole warps.
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
    // The vote tells the compiler that all lanes go on together: so descriptors stay in uniform
    // registers. Without it the main loop of s11 has 4 R2UR for each WGMMA and takes 9 % longer.
    return __all_sync(0xffffffff, next.group != DONE);
  }
  // Hears part number i; false when there are no more. For one thread.
  bool take(u32 i, Part& next) {
    mbarrier_wait_parity(&told[i % kAhead], i / kAhead % 2);
    next = part[i % kAhead];
    mbarrier_arrive(&heard[i % kAhead]);
    return next.group != DONE;
  }
};

// The parts that a CTA computes, for each layout. `raster` numbers the tiles within a group. The
// host knows neither how many rows a group has nor where it begins: a warp finds out as it goes.
// All of its lanes call together.
//
// For one lane the search would be a loop over groups: subtract the tiles of each group from the
// tile's number until fewer are left than the group has. Here 32 lanes count 32 groups at once.
template <int kLayout>
struct GroupedScheduler {
  // Whether tiles are counted group by group; else all rows are one range.
  static constexpr bool kSearch = kLayout == PREFIX_SUMS || kLayout == MASKED;
  static constexpr int kIds = (BLOCK_M + 31) / 32;

  // of the launch
  const int m, n, groups;
  const int* index;        // CONTIGUOUS: each row's group; PREFIX_SUMS: ends; MASKED: counts
  const int span;          // PREFIX_SUMS: groups begin at multiples of it; MASKED: rows of a buffer
  const int zero_padding;  // whether padding is written

  // of the search
  int number = blockIdx.x;         // of the next tile
  int group0 = 0, tiles0 = 0;      // lane l looks at group group0 + l; tiles before group0
  int row0 = 0, row = 0, end = 0;  // the tile begins at row0; its rows [row, end) are still to tell
  int ids[kIds];                   // CONTIGUOUS: groups of the tile's rows l * kIds on, in lane l

  // A group's rows: [first, middle) are its own, [middle, last) are padding that is written.
  struct Rows {
    int first, middle, last;
  };
  Rows rows_of(int group) const {
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
      const Rows rows = rows_of(min(group, count - 1));
      // A box of scales must begin at a multiple of 16 bytes, or TMA faults: so tiles of a group
      // begin up to 3 rows before it. In other layouts sfa_start is a multiple of BLOCK_M.
      const int top = kLayout == PREFIX_SUMS ? rows.first & ~3 : rows.first;
      const bool any = group < count && rows.first < rows.last;
      const int tiles_m = any ? (rows.last - top + BLOCK_M - 1) / BLOCK_M : 0;
      int up_to = tiles_m * tiles_n;  // the tiles of the groups up to this lane's
#pragma unroll
      for (int i = 1; i < 32 && kSearch; i *= 2) {
        const int below = __shfl_up_sync(0xffffffff, up_to, i);
        if (lane >= i) up_to += below;
      }
      up_to += tiles0;

      if (const u32 reached = __ballot_sync(0xffffffff, number < up_to)) {
        const int from = __ffs(reached) - 1;  // the first lane whose group reaches beyond `number`
        const auto found = [from](int x) {    // that lane's x; without a search all have the same
          return kSearch ? __shfl_sync(0xffffffff, x, from) : x;
        };
        const int high = found(tiles_m), before = found(up_to - tiles_m * tiles_n);  // tiles
        const Tile tile = raster(number - before, high, tiles_n);
        const int first = found(rows.first), middle = found(rows.middle), last = found(rows.last);
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
                kLayout == CONTIGUOUS ? high / groups : high};
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
      row = part.last;  // padding is passed over, written or not
      if (!zero_padding) part.last = part.middle;
    } while (part.first >= part.last);  // nothing of it is written
    return true;
  }
};
