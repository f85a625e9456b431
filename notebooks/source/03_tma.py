# %% [markdown]
# # 03 TMA: the copy engine moves the tiles
#
# **You will be able to**
# - say what a tensor map holds, and why one thread is enough to move a tile;
# - follow an mbarrier through arrivals, bytes, phases and parities, and write a correct wait;
# - predict where a swizzle puts a byte, and what that does to bank conflicts;
# - send a result out through TMA with the one fence that it needs;
# - read what the emulator says when any of this is missing.
#
# **You need to know** lesson 02: shared-memory tiles, register tiles, banks.
#
# **Time:** 50 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 01, a thread an output; 02, tiles in shared memory and registers. **This lesson
# adds** Hopper's tensor memory accelerator (TMA), its barrier and its swizzle. The arithmetic stays
# as it is, bit for bit.
#
# **Where it lives:** `minigemm/kernels/s03_tma.cu`, the kernel; `minigemm/kernels/s03_tma.py`, its
# launch; `minigemm/kernels/ptx.cuh`, the PTX instructions.

# %%
import minigemm
import torch
from minigemm import emulator, quantize, views
from minigemm.kernels import s02_tiled, s03_tma
from minigemm.types import Product

device = views.device()

# %% [markdown]
# ## 1. Who moves the bytes?
#
# In s02 every thread moves bytes: it computes an address, checks the bounds, loads 16 bytes and
# stores them. Here is the whole of the new way in.

# %%
views.code("s03_tma", "load")

# %% [markdown]
# "For one thread", says its comment. That thread states how many bytes will come, then asks for two
# boxes and goes on. No address, no bounds, no data in a register.
#
# **Before you run the next cell, guess:** s02 and s03 with the same tiles. Which of these counts
# fall to almost nothing: loads from global memory, stores to shared memory, loads from shared
# memory, multiplications?

# %%
a = quantize.quantize(quantize.activations(128, 384), "tensor")
b = quantize.quantize(quantize.weights(128, 384), "tensor")
tile = {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4}
config = s03_tma.Config(**tile)

with minigemm.observe(requests=4) as seen:
    d_tiled = s02_tiled.gemm(a, b, s02_tiled.Config(**tile))
    right = s03_tma.gemm(a, b, config)
tiled, tma = seen
print("the same bits:", torch.equal(d_tiled, right))
for kind in ("load global", "store shared", "load shared", "fma", "integer", "asynchronous copy"):
    counts = [report.counters["instructions_by_class"].get(kind, 0) for report in seen]
    print(f"{kind:<18} s02 {counts[0]:>10,}   s03 {counts[1]:>10,}")

# %% [markdown]
# The loads from global memory that remain are the two scales. Stores to shared memory do *not*
# fall: those of the copies are gone, but the result now passes through shared memory too, 2 bytes
# at a time (section 5). Integer work rises: each read of a tile computes a swizzled address
# (section 4). And 36 asynchronous instructions do the rest: 24 loads, 4 stores and 8 prefetches of
# tensor maps. The bytes have moved to another row of the table:

# %%
views.compare({"s02_tiled": tiled, "s03_tma": tma})

# %% [markdown]
# The whole change from s02 to s03. Look first at what went away: the loop of 16-byte copies, the
# bounds checks, the padding. `compute` is the same but for the address within `read`.

# %%
views.diff("s02_tiled", "s03_tma", context=2)

# %% [markdown]
# ## 2. The tensor map
#
# TMA needs no pointer arithmetic because the host described the matrix once. A **tensor map** holds
# the base address, the size of each dimension, the strides, the **box** (what one instruction
# moves) and the swizzle. `cuTensorMapEncodeTiled` packs it into 128 bytes; the kernel gets it as a
# `__grid_constant__` parameter. These are the three that the stage really builds for this problem:

# %%
launch = s03_tma.launch(a, b, torch.empty_like(right), Product(128, 128, 384), config)
print("(innermost dimension first, as the hardware counts)")
for name, described in zip("abd", launch.args[:3], strict=True):
    fields = emulator.TensorMap(described.tensor, described.box, described.swizzle).descriptor
    print(f"{name}: {fields.type} at {fields.address:#x}; "
          f"dims {fields.dims}, strides {fields.strides} bytes; "
          f"box {fields.box}, {fields.box_bytes:,} bytes; swizzle {fields.swizzle}")

# %% [markdown]
# FP8 travels as bytes (`u8`): TMA moves, it does not compute. The box of `a` is 128 wide and 64
# high, one tile. The instruction then needs only a coordinate: the column and row where the box
# begins. Real problems do not end where a tile ends:

# %%
ragged_a = quantize.quantize(quantize.activations(70, 320), "tensor")
ragged_b = quantize.quantize(quantize.weights(72, 320), "tensor")
map_a = emulator.TensorMap(ragged_a.data, (config.block_m, config.block_k), 128)
views.box(map_a, at=(256, 64))

# %% [markdown]
# What lies outside the tensor arrives as zeros, and zeros add nothing to a sum. So the kernel has
# no bounds check for its tiles.
#
# **Guess:** this box has 384 bytes inside the matrix and 7,808 outside. How many bytes does the
# mbarrier see? Then compare the count of the whole launch: 2 x 2 tiles of `d`, 3 steps along k, two
# boxes of 8 KiB each.

# %%
with minigemm.observe() as seen:
    ragged = s03_tma.gemm(ragged_a, ragged_b, config)
exact = quantize.reference(ragged_a, ragged_b)
error = (ragged.double() - exact).norm() / exact.norm()
print(f"bytes that TMA loaded:  {seen[0].counters['tma_load_bytes']:,}; whole boxes: "
      f"{2 * 2 * 3 * 2 * 8192:,}")
print(f"bytes of a and b, once: {ragged_a.data.numel() + ragged_b.data.numel():,}")
print(f"relative error {error:.2e}, hazards: {len(seen[0].hazards)}")

# %% [markdown]
# The barrier counts **whole boxes**, zeros included. That is why `load` may promise a constant.
#
# ## 3. The mbarrier
#
# An asynchronous copy needs a way to say "done". An mbarrier is 8 bytes of shared memory that hold
# a phase, the arrivals still missing and the bytes still missing. When both reach zero the phase
# completes, and the next begins by itself. Here is one to play with:

# %%
from minigemm.emulator import MBarrier

barrier = MBarrier(1)  # mbarrier.init: one arrival a phase
steps = {
    "init": lambda: None,
    "arrive.expect_tx 16384": lambda: barrier.arrive_expect_tx(16384),
    "the box of a lands": lambda: barrier.complete_tx(8192),
    "the box of b lands": lambda: barrier.complete_tx(8192),
}
for what, act in steps.items():
    act()
    passing = [parity for parity in (0, 1) if barrier.test_wait_parity(parity)]
    print(f"{what:<23} {barrier.describe()}\n{'':<23} wait(parity) returns for {passing}")

# %% [markdown]
# A wait asks: "has the phase of *this parity* completed?" One bit is enough, because a waiter is
# never more than one phase behind. Note the first line: on a fresh barrier, parity 1 passes at
# once; it stands for the phase before the first. That detail causes one of the bugs of section 6.
#
# In the kernel below, find three places: the initialisation by thread 0, the loop in which it
# arrives once a step while all 256 threads wait, and `phase ^= 1`, which follows the barrier from
# phase to phase.

# %%
views.code("s03_tma", "s03_tma")

# %% [markdown]
# Now the film of what CTA 0 did in the run above. Read a column from top to bottom. The emulator's
# schedule `"late"` lets a copy land only when no thread can go on without it; here, when all of
# them wait.

# %%
names = {0x400: "a", 0x2400: "b"}  # where the tiles lie in shared memory
views.phases(tma, 'schedule "late": copies land as late as they may', names)

# %% [markdown]
# **Guess before you run:** in a random order (`schedule=3`), which of these may change: the order
# in which `a` and `b` land, the bytes with which a phase completes, the place of the green barriers
# relative to the next request?

# %%
with minigemm.observe(schedule=3) as seen:
    again = s03_tma.gemm(a, b, config)
print("the same bits:", torch.equal(again, right))
views.phases(seen[0], "schedule 3: a random order", names)

# %% [markdown]
# Only the landings move. Every phase completes with both boxes, and every next request comes after
# the meeting of all threads: the two promises that make the kernel right. Everything else is free,
# and a GPU uses that freedom.
#
# ## 4. Swizzle
#
# s02 padded each row by 16 bytes to keep 8 rows out of the same banks. TMA writes rows densely, so
# there is no room for padding. Instead it permutes the 16-byte chunks within a row. A cell reads
# row.chunk; chunk 0 of rows 0 to 7 is framed.

# %%
views.swizzles(chunk=0)

# %% [markdown]
# Follow the framed cells: with a swizzle they never share a column, so 8 rows come at once. Try
# `chunk=1` (every case has it).
#
# The rule is an XOR of address bits: the number of the chunk (bits 4 to 6) with the number of the
# 128-byte line (bits 7 to 9), as many bits as the span has. CuTe writes it `Swizzle<3, 4, 3>` for
# 128 bytes. The kernel works with row and byte instead. Both ways, and the emulator's TMA, byte by
# byte:

# %%
from minigemm.emulator import swizzle_offsets


def by_row(span, row, byte):  # as in the kernel
    return row * span + (byte ^ row * span // 128 % (span // 16) * 16)


def by_bits(span, address):  # as in the definition: 1, 2 or 3 bits
    return address ^ (address >> 7 & span // 16 - 1) << 4


for span in (32, 64, 128):
    size, start = 64 * span, 1024
    # where TMA puts byte i of a tile that starts at 1024
    landed = swizzle_offsets(start, size, span).tolist()
    agree = all(landed[i] == by_bits(span, start + i) == start + by_row(span, *divmod(i, span))
                for i in range(size))
    print(f"{span:>3}-byte swizzle: {size:,} bytes, all three agree: {agree}")

# %% [markdown]
# The tile starts at a multiple of 1024. The hardware swizzles by *absolute* address; only where the
# pattern begins anew does the row number say which line it is. Hence `alignas(kAlign)` in the
# kernel.
#
# Now the addresses that the kernel really used. A warp is 4 x 8 threads, so a read of `b` touches 8
# rows. **Guess** the number of wavefronts without a swizzle.

# %%
source = s03_tma.stage.source.read_text()
with minigemm.observe(requests=4) as seen:
    s03_tma.gemm(a, b, s03_tma.Config(**tile, swizzle=False))
plain = seen[0]
request = views.requests_at(plain, "read(shared.b", "shared", source=source)[0]
views.banks(request, "a read of b, no swizzle")

# %%
request = views.requests_at(tma, "read(shared.b", "shared", source=source)[0]
views.banks(request, "a read of b, 128-byte swizzle")

# %%
with minigemm.observe() as seen:
    s03_tma.gemm(a, b, s03_tma.Config(**tile, block_k=32))
views.compare({"no swizzle": plain, "swizzle, block_k=128": tma, "swizzle, block_k=32": seen[0]})

# %% [markdown]
# The swizzle removes every conflict, at each span. A narrower tile takes more transactions for the
# same bytes.
#
# What if kernel and map disagree? The next edit lets `read` ignore the swizzle, while TMA still
# applies it. **Guess:** a fault, a hazard, or just wrong numbers? Are *all* elements wrong?

# %%
unaware = views.edited("s03_tma", "swizzle<BLOCK_K>(row, k)", "k")
with minigemm.observe() as seen:
    d = s03_tma.gemm(a, b, config, source=unaware)
print("hazards:", len(seen[0].hazards))
print("right elements of the first 8 rows and 16 columns:")
for row in torch.isclose(d, right, rtol=0.02, atol=0)[:8, :16].int().tolist():
    print("   ", *("x" if element else "." for element in row))

# %% [markdown]
# No hazard: every access is legal and in order, only its meaning is wrong. An element is right
# where the rows of `a` and `b` were permuted alike: then each product still meets its partner. The
# lesson: layout errors are found by comparing numbers, never by a sanitizer.
#
# ## 5. The way out
#
# The result leaves by TMA too. First `write` puts it into shared memory, with ordinary stores.
# Then:

# %%
views.code("s03_tma", "store")

# %% [markdown]
# Ordinary stores and TMA reach shared memory by different paths, called **proxies**: generic and
# async. A barrier orders threads, not proxies. So each writing thread executes `fence.proxy.async`
# on its own writes, *then* all meet, *then* one thread asks for the store.
#
# A store completes no mbarrier. It joins a **bulk group** of its thread: commit closes the group,
# `wait_group.read 0` returns when the groups have read their shared memory. Without it the CTA
# could exit, and its memory go to another one.
#
# Some matrices no tensor map can describe:

# %%
try:
    emulator.TensorMap(torch.empty(70, 77, dtype=torch.bfloat16), (64, 64), 128)
except ValueError as error:
    print(error)

# %% [markdown]
# Rows of 77 BF16 are 154 bytes; a stride must be a multiple of 16. For such an n the threads store
# by themselves, with bounds checks. **Guess:** who stores for n = 72, 77 and 80?

# %%
print(f"{'n':>3}  {'by TMA, bytes':>14}  {'by threads, bytes':>18}")
for n in (72, 77, 80):
    weight = quantize.quantize(quantize.weights(n, 320), "tensor")
    with minigemm.observe() as seen:
        s03_tma.gemm(ragged_a, weight, config)
    counters = seen[0].counters
    print(f"{n:>3}  {counters['tma_store_bytes']:>14,}  {counters['global_store_bytes']:>18,}")

# %% [markdown]
# TMA's count is of whole boxes; what hangs over the edge of `d` is not written.
#
# ## 6. Break it
#
# Now five edits, each of one place. For each: say what will happen, then run. `attempt` edits a
# copy of the stage, runs it and prints what the emulator says, the first hazard in full.

# %%
import textwrap


def attempt(old, new, schedule="late", shown=1):
    with minigemm.observe(schedule=schedule) as seen:
        try:
            d = s03_tma.gemm(a, b, config, source=views.edited("s03_tma", old, new))
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in seen[0].hazards)) or "none"
            result = "right" if torch.equal(d, right) else "WRONG"
            said = [f"result: {result}; hazards: {kinds}", *map(str, seen[0].hazards[:shown])]
        except emulator.EmulatorError as error:
            said = [f"{type(error).__name__}: {error}"]
    for line in "\n".join(said).splitlines():
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))
    return seen[0] if seen else None


# %% [markdown]
# **No wait.** The threads compute as soon as they can. Would it help if TMA were infinitely fast
# (`schedule="early"`)?

# %%
WAIT = "mbarrier_wait_parity(&shared.full, phase);"
report = attempt(WAIT, "")
print()
report = attempt(WAIT, "", schedule="early")

# %% [markdown]
# Even then it is wrong: the other warps need not wait for thread 0 to *ask*.
#
# **Inverted parity.** `phase ^ 1`: remember what parity 1 means on a fresh barrier. Run it with
# both schedules. One ends in a `Deadlock`; read who waits for what.

# %%
report = attempt(WAIT, "mbarrier_wait_parity(&shared.full, phase ^ 1);")
print()
report = attempt(WAIT, "mbarrier_wait_parity(&shared.full, phase ^ 1);", schedule="early")

# %% [markdown]
# Late: the first wait passes at once, before anything landed. Early: 255 threads pass on the fresh
# barrier and compute garbage before thread 0 has asked. Its copies then land at once and complete
# phase 0, so that its own wait means phase 1, whose bytes nobody has asked for. One bug, two faces.
#
# **Too few bytes.** Thread 0 promises only the bytes of `a`. **Guess** from the film when phase 0
# will complete.

# %%
report = attempt("sizeof(shared.a) + sizeof(shared.b)", "sizeof(shared.a)")
views.phases(report, "expect_tx of one box, copies of two", names)

# %% [markdown]
# Address 9216 is 0x2400, the tile of `b`: the wait ends when `a` has landed. (Darker bars: two
# copies on their way to the same place.) The box of `b` lands in a later phase, and the books never
# balance again. With too *many* bytes the story is shorter:

# %%
report = attempt("sizeof(shared.a) + sizeof(shared.b)", "sizeof(shared.a) + sizeof(shared.b) + 16")

# %% [markdown]
# **No proxy fence**, and **no barrier before the next load**. **Guess** whether the result will be
# right.

# %%
report = attempt("  fence_proxy_async();", "  ")
print()
report = attempt("__syncthreads();  // all threads arrive when they have read", ";  //")

# %% [markdown]
# Both results are right, and both kernels are wrong. Nothing *made* the order, it happened. On a
# GPU such a kernel passes its tests, until another driver, size or clock changes the timing. The
# emulator reports the missing order, not the unlucky outcome; that is why it is worth running a
# kernel on it that "works".
#
# ## 7. Was it worth it?
#
# The copies cost next to no instructions now. **Guess:** how much faster is s03 than s02 on a GPU
# at 4096 x 4096 x 4096?

# %%
views.recorded("s02_tiled")

# %%
views.recorded("s03_tma")

# %% [markdown]
# Not faster at all, within a few per cent. (The small problem is a few microseconds of latency; it
# says little.) The time goes into the same conversions and FMAs as before, and a step still waits
# for its copy before it computes. The copy was made *asynchronous*, and nothing uses that yet.
#
# Everything later stands on it, though. The tensor core reads its operands from shared memory in
# just these swizzled layouts. A ring of tiles needs copies that announce themselves on mbarriers. A
# single producer thread can feed a whole CTA. The same call, wherever you are:

# %%
d = s03_tma.gemm(a.to(device), b.to(device), config)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")

# %% [markdown]
# ## Recap
#
# - A **tensor map** describes a matrix once: base, dims, strides, box, swizzle. A copy then needs
#   one thread and one coordinate.
# - Outside the tensor a load brings zeros, and they count as bytes. Tiles need no bounds checks.
# - An **mbarrier** completes a phase when its arrivals *and* its bytes have come. Waiters name the
#   phase by its parity and flip it each time.
# - A **swizzle** permutes 16-byte chunks by address bits, so that a column of 8 rows covers all
#   banks without padding. Kernel and map must agree; nothing else will tell.
# - On the way out: generic writes, `fence.proxy.async` by each writer, a barrier, a TMA store,
#   commit, wait.
# - Rows that are no multiple of 16 bytes have no tensor map; threads store them.
#
# ## Quiz
#
# **1.** `mbarrier_init(&shared.full, 1)`: why 1, though 256 threads wait on it?
#
# <details><summary>Answer</summary>
# The count is that of arrivals. Only thread 0 arrives, once a phase. Waiting is not arriving. With
# a count of 256 the barrier would wait for 255 arrivals that never come.
# </details>
#
# **2.** Why does the loop need both the mbarrier and `__syncthreads`?
#
# <details><summary>Answer</summary>
# They guard opposite directions. The mbarrier says "the tile is full": readers wait for the copy.
# `__syncthreads` says "the tile is free": the next copy waits for the readers.
# </details>
#
# **3.** Why may `load` promise `sizeof(shared.a) + sizeof(shared.b)` even at the edge of the
# matrix?
#
# <details><summary>Answer</summary>
# A load always completes with the bytes of its whole box. The part outside is filled with zeros,
# and counts.
# </details>
#
# **4.** A tile starts 512 bytes after a multiple of 1024, with the 128-byte swizzle. What does the
# kernel's formula get wrong?
#
# <details><summary>Answer</summary>
# It takes the number of the 128-byte line from the row, as if the tile began with line 0 of the
# pattern. The hardware uses the absolute address: the tile begins with line 4. Every chunk's number
# is off by an XOR with 4.
# </details>
#
# **5.** Why is one `fence.proxy.async` by thread 0, just before its store, not enough?
#
# <details><summary>Answer</summary>
# The fence orders the executing thread's own writes before its later async operations. The other
# threads' writes need a fence of their own, before the barrier at which thread 0 learns that they
# are done.
# </details>
#
# ## Exercises
#
# **1. Break it.** Remove `cp_async_bulk_wait_group_read<0>();` with `attempt`. What does the
# emulator name, and why is the result still right here?
#
# <details><summary>Hint</summary>
# The CTA ends, and the emulator lets the store finish. On a GPU the next CTA on that SM may already
# write to the same shared memory.
# </details>
#
# **2. Break it.** Change the count: `mbarrier_init(&shared.full, 2)`. Read the deadlock. Then
# repair it without changing the count back: who could arrive a second time?
#
# <details><summary>Hint</summary>
# Let thread 0 arrive twice: `mbarrier_arrive_expect_tx(&shared.full, sizeof(shared.a))` before the
# copy of `a`, and the same with `shared.b` before the copy of `b`. Pass a file edited twice:
# `views.edited` takes the path that it gave.
# </details>
#
# **3. Change it.** The mbarrier's phase is tracked in a variable. Remove `phase ^= 1` and compute
# the parity from `k0` instead.
#
# <details><summary>Hint</summary>
# `k0 / BLOCK_K & 1` is the parity of the step. If you leave the declaration of `phase`, the
# compiler warns that nobody uses it.
# </details>
#
# **4. Measure it.** With `block_n=128` the rows of `d` are 256 bytes, wider than any swizzle. Find
# the bank conflicts of the `write` with `views.requests_at(..., store=True)` and `views.banks`.
#
# <details><summary>Hint</summary>
# `Config(block_m=64, block_n=128, thread_m=4, thread_n=8)`; look for `"at(shared.d"` among the
# stores.
# </details>
#
# **5. Predict it.** For which rows and columns is the map of section 4 right with `block_k=64`?
# Reason first, then run.
#
# <details><summary>Hint</summary>
# With rows of 64 bytes two rows share a 128-byte line and 4 chunks a row: the permutation depends
# on `row / 2 % 4`.
# </details>
#
# ## Further reading
#
# - PTX ISA:
#   [cp.async.bulk.tensor](https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor),
#   [mbarrier](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier),
#   "Tensors" with its swizzle modes, and "Async proxy".
# - CUDA C++ Programming Guide: "Asynchronous Data Copies using the Tensor Memory Accelerator
#   (TMA)".
# - CUDA Driver API: "Tensor Map Object Management", for every rule that a tensor map must keep.
# - NVIDIA, *H100 Tensor Core GPU Architecture* (white paper): TMA and the asynchronous transaction
#   barrier.
#
# **Next:** the tensor core. `wgmma` reads both operands straight from the swizzled tiles that TMA
# brings, by a descriptor of 64 bits, and the FMAs of this lesson disappear.
