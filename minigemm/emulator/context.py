"""Byte offsets of the structures that translated code and the machine share.

A *thread context* is a row of a NumPy byte matrix, one for each thread. It holds what a thread keeps between
two runs: where to go on, the operands and results of the instruction that it stopped at, saved registers,
local memory. The *block record* is an int64 vector, one for each CTA. It holds what all threads of the CTA
see: base addresses, sizes, grid indices. Native code leaves faults and hazard records in it.
"""

from __future__ import annotations

# ---- thread context (bytes)
PC = 0  # i32: 0 at the start, otherwise where to go on
CODE = 4  # i32: why the thread stopped: a site number, or one of the codes below
TID = 8  # 3 x i32
LANE = 20  # i32
WARP = 24  # i32
THREAD = 28  # i32: number in the cluster
ROW = 32  # address of the thread's vector clock, u32[columns]
STAMP = 40  # i64: clock | column << 32 | lane << 40
LOG = 48  # address of the thread's access log
LOGGED = 56  # i64: entries in it
ARGUMENTS = 64  # 16 x i64: operands of the instruction that the thread stopped at
ARGUMENT_SLOTS = 16
RESULTS = ARGUMENTS + 8 * ARGUMENT_SLOTS  # 8 x i64
RESULT_SLOTS = 8
TOUCHED = RESULTS + 8 * RESULT_SLOTS  # i64: the stamp that the thread had at its last access to shared memory
FENCED = TOUCHED + 8  # i64: has the thread executed a fence?
SYNC_SEEN = FENCED + 8  # i64: the last flag that the thread read and for which there is a record
SYNC_WROTE = SYNC_SEEN + 8  # i64: the last such flag that it wrote
REGISTERS = SYNC_WROTE + 8  # saved registers, 8 bytes each; local memory follows

# ---- codes besides site numbers (which start at 1)
DONE, FAULT, BUDGET = -1, -2, -3

# ---- block record (i64 fields)
RANGES, RANGE_COUNT = 0, 1  # table of (base, end, writable), entries
SHARED, SHARED_END = 2, 3  # address of shared byte 0, first byte past the end
CELLS, ACCESS_SITES, READS, READ_COLUMNS = 4, 5, 6, 7  # the shadow of shared memory (translate/shadow.py)
PARAMETERS, SYMBOLS = 8, 9  # parameter buffer; addresses of module variables
COUNTS = 10  # u64 for each basic block
CTAID, NCTAID, NTID = 11, 14, 17  # three each
BUDGET_LIMIT = 20  # loop iterations before a thread gives way
LOG_LIMIT = 21  # log entries before a thread gives way
FAULT_KIND, FAULT_SITE, FAULT_ADDRESS, FAULT_THREAD, FAULT_SIZE = 22, 23, 24, 25, 26
RECORDS, RECORD_COUNT = 27, 28  # hazard records: RECORD_WORDS x i64 each
SITE_RANGES = 29  # (base, end) that each access site last hit
CLOCK = 30
DYNAMIC_SHARED = 31
GRID_CTA = 32  # linear CTA index
UNWRITTEN = 33  # a byte for each site: has a read of unwritten memory been recorded there?
RECORDS_LOST = 34  # bits: 1, records of hazards; 2, of flags
GLOBAL_FLAG = 35  # how often flags in global memory were written
CLUSTER_CTAID, CLUSTER_NCTAID, CLUSTERID, NCLUSTERID = 36, 39, 42, 45  # three each
CTARANK, NCTARANK, EXPLICIT_CLUSTER = 48, 49, 50
SHARED_BASE = 51  # the CTA's first shared address
WINDOW = 52  # bytes from one CTA's shared memory to the next one's
GONE = 53  # a bit for each CTA of the cluster that has exited
CTA_WARPS = 54  # columns from a CTA's first warp to the next one's
BLOCK_FIELDS = 56

RECORD_LIMIT, RECORD_ROOM = 1024, 8192  # records of hazards; of all
RECORD_WORDS = 7  # kind, site, address, thread, cell, reader column, other sites

# ---- faults
SHARED_BOUNDS, GLOBAL_BOUNDS, MISALIGNED, READ_ONLY, TRAP, LOCAL_BOUNDS, BAD_INDEX, BAD_RANK, MAPA_RANK = (
    range(1, 10)
)

# ---- hazard records
(
    LOAD_AFTER_WRITE,
    STORE_AFTER_WRITE,
    STORE_AFTER_READ,
    ATOMIC_AFTER_ACCESS,
    LOAD_UNWRITTEN,
    CTA_GONE,
    CTA_NOT_STARTED,
) = range(1, 8)
FLAG_READ, FLAG_WRITTEN = 8, 9  # no hazards: flags carry order from thread to thread (watch/order.py)

# ---- addresses
# The first KiB of shared memory is the system's, as on a Hopper GPU, and address 0 is never valid. A generic
# address in the shared window is GENERIC_SHARED plus the shared address, with the CTA's rank (clusters.py).
SHARED_FIRST = 1024
GENERIC_SHARED = 1 << 56

# ---- clocks
# They count in steps of CLOCK_STEP. The low bits of a read cell hold the lane (bits 0-5; 63: several lanes),
# the byte mask (bits 6-9), and marks of an ordinary read and of a strong write (an atomic, or a store that
# other threads may look at). A cell with neither mark is a strong read only.
CLOCK_STEP = 4096
MARK_READ, MARK_WRITE = 1 << 10, 1 << 11
CELL_GENERIC, CELL_BARRIER, CELL_ATOMIC = 1 << 45, 1 << 46, 1 << 47
