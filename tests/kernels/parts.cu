// The parts that each CTA takes, one after the other. One warp a CTA.

#include "ptx.cuh"
#include "scheduler.cuh"

extern "C" __global__ void parts(int* found,        // (gridDim.x, most, 6)
                                 const int* index,  // as in GroupedScheduler
                                 int layout, int m, int n, int groups, int span, int zero_padding, int most) {
  GroupedScheduler scheduler{layout, m, n, groups, index, span, zero_padding};
  int* row = found + 6 * blockIdx.x * most;
  for (Part part; scheduler.next(part); row += 6) {
    if (threadIdx.x != 0) continue;
    row[0] = part.group, row[1] = part.row0, row[2] = part.column0;
    row[3] = part.first, row[4] = part.middle, row[5] = part.last;
  }
}
