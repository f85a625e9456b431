// The tiles that each CTA takes, one after the other. One thread per CTA.

#include "ptx.cuh"
#include "scheduler.cuh"

extern "C" __global__ void probe_tiles(int* found,  // (gridDim.x, most, 2): tile.m, tile.n
                                       int m, int n, int most) {
  Scheduler scheduler(m, n);
  int i = blockIdx.x * most;
  for (Tile tile; scheduler.next(tile); ++i) {
    found[2 * i] = tile.m;
    found[2 * i + 1] = tile.n;
  }
}
