// The parts that each CTA takes, one after the other, and what the lanes of one CTA tell each other
// on the way. One warp per CTA. Between the scheduler and the warp's shuffles and ballots stands a
// spy that writes down what passes.

#include "ptx.cuh"

constexpr int kUp = 0, kFrom = 1, kBallot = 2, kFound = 3;  // events, as in walks.py

struct Event {
  int kind, operand;
  int gave[32], got[32];  // by lane
};

__shared__ Event* spy_log;  // null: nothing is written down
__shared__ int spy_count, spy_most;

void note(int kind, int operand, int gave, int got) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
  const int event = spy_count;
  if (spy_log && event < spy_most) {
    if (lane == 0) {
      spy_log[event].kind = kind;
      spy_log[event].operand = operand;
    }
    spy_log[event].gave[lane] = gave;
    spy_log[event].got[lane] = got;
  }
  __syncwarp();
  if (lane == 0) spy_count = event + 1;
  __syncwarp();
}

int spied_up(int value, int by) {
  const int got = __shfl_up_sync(0xffffffff, value, by);
  note(kUp, by, value, got);
  return got;
}

int spied_from(int value, int lane) {
  const int got = __shfl_sync(0xffffffff, value, lane);
  note(kFrom, lane, value, got);
  return got;
}

u32 spied_ballot(bool yes) {
  const u32 got = __ballot_sync(0xffffffff, yes);
  note(kBallot, 0, yes, got);
  return got;
}

#define __shfl_up_sync(mask, value, by) spied_up(value, by)
#define __shfl_sync(mask, value, lane) spied_from(value, lane)
#define __ballot_sync(mask, yes) spied_ballot(yes)
#include "scheduler.cuh"

extern "C" __global__ void probe_groups(int* found,              // (gridDim.x, most, 6)
                                        Event* log, int events,  // (events,), of the CTA `watched`
                                        int watched,
                                        const int* index,  // as in GroupedScheduler
                                        int m, int n, int groups, int span, int zero_padding,
                                        int most) {
  if (threadIdx.x == 0) {
    spy_log = blockIdx.x == watched ? log : nullptr;
    spy_count = 0;
    spy_most = events;
  }
  __syncthreads();
  GroupedScheduler<LAYOUT> scheduler{m, n, groups, index, span, zero_padding};
  int* row = found + 6 * blockIdx.x * most;
  int i = 0;
  for (Part part; i < most && scheduler.next(part); ++i, row += 6) {
    note(kFound, i, part.group, part.group);
    if (threadIdx.x != 0) continue;
    row[0] = part.group;
    row[1] = part.row0;
    row[2] = part.column0;
    row[3] = part.first;
    row[4] = part.middle;
    row[5] = part.last;
  }
}
