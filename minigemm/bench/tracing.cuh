// What a trace build adds behind ptx.cuh: warps write down when they wait and what they start.
//
// The stage is compiled from its own file. The macros at the end lead its calls of ptx.cuh's
// functions to the ones of TraceAt, which know the line of the call, and a TraceWarp stands first
// in the kernel. In the CTA that is traced, one lane of each warp writes a record of 16 bytes for
// each event: begin, end (or a value), kind and line, and an argument. It is the first lane, or the
// one that elect.sync chose. Clocks are the lower half of clock64, which the warps of a CTA share.
//
// The kinds of records, kTraceStart and so on, stand above: trace_build.py writes them.

__constant__ uint4* minigemm_trace;       // (warps of a CTA, minigemm_trace_records)
__constant__ u64* minigemm_trace_ctas;    // (CTAs, 4): globaltimer, clock64 at begin and end
__constant__ int minigemm_trace_records;  // a warp's room; the last record is its end
__constant__ int minigemm_trace_cta;      // the CTA that is traced

// The stage's shared memory, and behind it two words per warp.
extern __shared__ __align__(1024) u8 trace_shared[];

// The emulator's clock moves on where it serves an instruction, and activemask is one; on a GPU it
// takes an issue slot.
inline u32 trace_clock() {
  u32 now;
  asm volatile("{\n"
               ".reg .b32 active;\n"
               "activemask.b32 active;\n"
               "mov.u32 %0, %%clock;\n"
               "}"
               : "=r"(now)::"memory");
  return now;
}

inline int trace_cta() {
  return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

// A warp's records so far, and the lane that writes them.
struct TraceState {
  u32 count, lane;
};

inline volatile TraceState& trace_state() {
  return reinterpret_cast<volatile TraceState*>(trace_shared + SHARED_BYTES)[threadIdx.x / 32];
}

// True in the lane that writes the warp's events, in the CTA that is traced.
inline bool trace_leads() {
  return trace_state().lane == threadIdx.x % 32 && trace_cta() == minigemm_trace_cta;
}

inline void trace_put(u32 kind, u32 line, u32 begin, u32 second, u32 argument) {
  const u32 at = trace_state().count;
  trace_state().count = at + 1;
  if (at + 1 >= minigemm_trace_records) return;
  const int place = threadIdx.x / 32 * minigemm_trace_records + at;
  minigemm_trace[place] = {begin, second, kind | line << 8, argument};
}

// Record something that takes no time of the warp.
inline void trace_mark(u32 kind, u32 line, u32 value, u32 argument) {
  const bool leads = trace_leads();
  const u32 now = trace_clock();
  if (leads) trace_put(kind, line, now, value, argument);
}

// Make a call that may keep the warp waiting, and record it.
template <class Call>
__forceinline__ void trace_span(u32 kind, u32 line, u32 argument, Call call) {
  const bool leads = trace_leads();
  const u32 begin = trace_clock();
  call();
  const u32 end = trace_clock();
  if (leads) trace_put(kind, line, begin, end, argument);
}

// Lives from a warp's first instruction to the last one of the lane that writes.
struct TraceWarp {
  TraceWarp() {
    if (threadIdx.x % 32 == 0) {
      trace_state().count = 0;
      trace_state().lane = 0;
    }
    __syncwarp();
    if (threadIdx.x == 0) stamp(0);
    u32 sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    trace_mark(kTraceStart, 0, sm, 0);
  }
  ~TraceWarp() {
    const bool leads = trace_leads();
    const u32 now = trace_clock();
    if (leads) {
      const int last = (threadIdx.x / 32 + 1) * minigemm_trace_records - 1;
      minigemm_trace[last] = {now, 0, kTraceEnd, trace_state().count};
    }
    if (threadIdx.x == 0) stamp(2);
  }
  static void stamp(int at) {
    u64 ns, clock;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(clock)::"memory");
    minigemm_trace_ctas[4 * trace_cta() + at] = ns;
    minigemm_trace_ctas[4 * trace_cta() + at + 1] = clock;
  }
};

// ptx.cuh's functions, called from kLine: the line in the lower 16 bits, the file's number above.
template <u32 kLine>
struct TraceAt {
  static void mbarrier_wait_parity(u64* barrier, u32 parity) {
    trace_span(kTraceMbarrier, kLine, cvta_to_shared(barrier),
               [&] { ::mbarrier_wait_parity(barrier, parity); });
  }
  static void mbarrier_arrive(u64* barrier) {
    trace_mark(kTraceArrive, kLine, 0, cvta_to_shared(barrier));
    ::mbarrier_arrive(barrier);
  }
  static void mbarrier_arrive_expect_tx(u64* barrier, u32 bytes) {
    trace_mark(kTraceExpect, kLine, bytes, cvta_to_shared(barrier));
    ::mbarrier_arrive_expect_tx(barrier, bytes);
  }

  // A load's barrier, behind the coordinates.
  template <class... More>
  static u64* barrier_of(u64* barrier, More...) {
    return barrier;
  }
  template <class... More>
  static u64* barrier_of(int, More... more) {
    return barrier_of(more...);
  }
  // The place is a multiple of 16 and the barrier's a multiple of 8, both below 256 KiB: an
  // argument holds the two.
  template <class... More>
  static void load(void* to, u32 bytes, const CUtensorMap* map, More... more) {
    const u32 place = (cvta_to_shared(to) & 0x3ffff) >> 4;
    const u32 arrives = (cvta_to_shared(barrier_of(more...)) & 0x3ffff) >> 3;
    trace_mark(kTraceLoad, kLine, bytes, place | arrives << 16);
    ::cp_async_bulk_tensor_load(to, map, more...);
  }
  // Into an array that the box fills, whose size is the copy's.
  template <class T, int kCount, class... More>
  static void cp_async_bulk_tensor_load(T (&to)[kCount], const CUtensorMap* map, More... more) {
    load(to, sizeof(to), map, more...);
  }
  template <class... More>
  static void cp_async_bulk_tensor_load(void* to, const CUtensorMap* map, More... more) {
    load(to, 0, map, more...);
  }
  template <class... Policy>
  static void cp_async_bulk_tensor_store(const CUtensorMap* map, int inner, int outer,
                                         const void* from, Policy... policy) {
    trace_mark(kTraceStore, kLine, 0, cvta_to_shared(from));
    ::cp_async_bulk_tensor_store(map, inner, outer, from, policy...);
  }
  static void cp_async_bulk_commit_group() {
    ::cp_async_bulk_commit_group();
    trace_mark(kTraceStoreCommit, kLine, 0, 0);
  }
  template <int kPending>
  static void cp_async_bulk_wait_group_read() {
    trace_span(kTraceStores, kLine, kPending, [] { ::cp_async_bulk_wait_group_read<kPending>(); });
  }

  // The first warp of a warpgroup tells of the products of all four.
  static void wgmma_fence() {
    if (threadIdx.x / 32 % 4 == 0) trace_mark(kTraceIssue, kLine, 0, 0);
    ::wgmma_fence();
  }
  static void wgmma_commit_group() {
    ::wgmma_commit_group();
    if (threadIdx.x / 32 % 4 == 0) trace_mark(kTraceCommit, kLine, 0, 0);
  }
  template <int kPending>
  static void wgmma_wait_group() {
    trace_span(kTraceProducts, kLine, kPending, [] { ::wgmma_wait_group<kPending>(); });
  }

  // All lanes are here, and so they agree on who writes from now on.
  static bool elect_sync() {
    const bool elected = ::elect_sync();
    if (elected) trace_state().lane = threadIdx.x % 32;
    __syncwarp();
    return elected;
  }

  static void bar_sync(int id, int threads) {
    trace_span(kTraceBarrier, kLine, id, [&] { ::bar_sync(id, threads); });
  }
  static void barrier_sync(int id, int threads) {
    trace_span(kTraceBarrier, kLine, id, [&] { ::barrier_sync(id, threads); });
  }
  static void syncthreads() {
    trace_span(kTraceBarrier, kLine, 0, [] { __syncthreads(); });
  }
  template <int kCount>
  static void setmaxnreg_dec() {
    trace_span(kTraceRegisters, kLine, kCount, [] { ::setmaxnreg_dec<kCount>(); });
  }
  template <int kCount>
  static void setmaxnreg_inc() {
    trace_span(kTraceRegisters, kLine, kCount, [] { ::setmaxnreg_inc<kCount>(); });
  }
};

// Each header beside the stage says before its first line and after its last which file this is.
#define TRACE_FILE 0
#define TRACE_AT TraceAt<TRACE_FILE << 16 | __LINE__>
#define mbarrier_wait_parity TRACE_AT::mbarrier_wait_parity
#define mbarrier_arrive TRACE_AT::mbarrier_arrive
#define mbarrier_arrive_expect_tx TRACE_AT::mbarrier_arrive_expect_tx
#define cp_async_bulk_tensor_load TRACE_AT::cp_async_bulk_tensor_load
#define cp_async_bulk_tensor_store TRACE_AT::cp_async_bulk_tensor_store
#define cp_async_bulk_commit_group TRACE_AT::cp_async_bulk_commit_group
#define cp_async_bulk_wait_group_read TRACE_AT::cp_async_bulk_wait_group_read
#define wgmma_fence TRACE_AT::wgmma_fence
#define wgmma_commit_group TRACE_AT::wgmma_commit_group
#define wgmma_wait_group TRACE_AT::wgmma_wait_group
#define elect_sync TRACE_AT::elect_sync
#define bar_sync TRACE_AT::bar_sync
#define barrier_sync TRACE_AT::barrier_sync
#define __syncthreads TRACE_AT::syncthreads
#define setmaxnreg_dec TRACE_AT::setmaxnreg_dec
#define setmaxnreg_inc TRACE_AT::setmaxnreg_inc
