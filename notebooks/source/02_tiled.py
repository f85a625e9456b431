# %% [markdown]
# # 02: tiles in shared memory and in registers
#
# **Runs on:** CPU (emulator) or Hopper GPU · **Time:** 50 minutes
#
# **You will be able to**
#
# - count how often each byte is moved, for any tile, and predict a kernel's traffic before you run
#   it;
# - say which of the 32 banks an address lies in, and remove a bank conflict with padding;
# - choose a register tile, and say what it saves and what it costs;
# - explain both barriers of the loop, remove either, and read the race that the emulator then
#   reports;
# - say what limits this kernel now that memory no longer does.
#
# **You need to know** CTAs, warps, sectors and arithmetic intensity, from
# [01_naive](01_naive.ipynb).
#
# **Built so far:** the formula itself, a thread for each output. Every thread loads and converts
# every element for itself.
# **This lesson adds** two levels of reuse: a tile in shared memory that a whole CTA reads, and a
# tile of sums in the registers of each thread.
#
# **Where it lives:** `minigemm/kernels/s02_tiled.cu` (the kernel), `minigemm/kernels/s02_tiled.py`
# (its config and launch).

# %%
import textwrap

import minigemm
import torch
from IPython.display import display
from minigemm import quantize, views
from minigemm.kernels import s01_naive, s02_tiled

device = views.device()

# %% [markdown]
# ## Who needs the same bytes?
#
# In s01, a byte of `a` was loaded by each of the `n` threads that need it. Now a CTA computes a
# larger tile of `d`, and fetches what the tile needs *once*: 64 rows of `a`, 64 rows of `b`, in
# steps of 128 along `k`. The first step is drawn darker.

# %%
m, n, k = 128, 128, 384
a = quantize.quantize(quantize.activations(m, k), "tensor")
b = quantize.quantize(quantize.weights(n, k), "tensor")
config = s02_tiled.Config(block_m=64, block_n=64, block_k=128, thread_m=4, thread_n=4)
views.tiles(m, n, k, config.block_m, config.block_n, config.block_k, cta=(0, 1))

# %% [markdown]
# A byte of `a` is needed by every CTA in its row of tiles: `n / block_n` of them. A byte of `b`:
# `m / block_m`.
#
# **Before you run the next cell, guess:** s01 loaded each byte of `a` 128 times. How often does
# s02, and by what factor does the total fall? Then change `config` above to other tiles and see
# what happens to the factor.

# %%
ctas = (m // config.block_m) * (n // config.block_n)
scales = 8 * ctas * config.threads  # each thread loads two FP32 scales
by_s01 = m * n * (2 * k + 8)
by_s02 = ctas * (config.block_m + config.block_n) * k + scales
print(f"s01: m n (2 k + 8) = {by_s01:,} bytes")
print(f"s02: {ctas} CTAs x ({config.block_m} + {config.block_n}) rows x {k} + {scales:,} for "
      f"scales = {by_s02:,} bytes")
print(f"a factor of {by_s01 / by_s02:.1f}; each byte of a is loaded {n // config.block_n} times, "
      f"of b {m // config.block_m} times")

# %% [markdown]
# ## The kernel
#
# What changed from s01 is nearly everything. Scroll to the end first: the loop along `k` now has
# four parts, `load`, a barrier, `compute`, a barrier.

# %%
# Removed lines have a minus, added ones a plus; line numbers are those of s02_tiled.cu.
views.diff("s01_naive", "s02_tiled")

# %% [markdown]
# **Guess** from the formula, then run both: which rows of this table fall, which rise, and which
# stay?

# %%
with minigemm.observe(requests=2000) as seen:
    expected = s01_naive.gemm(a, b)
    d = s02_tiled.gemm(a, b, config)
naive, tiled = seen
print("the same bits:", torch.equal(d, expected))
print(f"predicted bytes from global memory: s01 {by_s01:,}, s02 {by_s02:,}")
views.compare({"s01_naive": naive, "s02_tiled": tiled})

# %% [markdown]
# The bytes are those of the formula. The sums run in the same order of `k`, so even the bits are
# the same.
#
# Some rows rise. Stores touch more sectors, because a warp is now 4 by 8 outputs, not 1 by 32. And
# shared memory hands out many bytes: cheap ones, not free ones.
#
# ## The copy
#
# All threads of the CTA copy, 16 bytes at a time, in the order in which the bytes lie. `load` does
# not care who will need what.

# %%
views.code("s02_tiled", "load", mark="vector =")

# %% [markdown]
# Below, from the addresses of the run: what CTA 0 loads of `a`, each warp in its colour; then the
# first request alone.
#
# **Guess:** a warp loads 32 x 16 = 512 bytes. How many sectors is that here, and how many were
# there for the strided `b` of s01?

# %%
source = s02_tiled.stage.source.read_text()
copies = views.requests_at(tiled, "load(shared.a", "global", source=source)
of_cta_0 = [r for r in copies if r.cta == 0]
display(views.footprint(of_cta_0, a.data, "a: what CTA 0 loads, by warp", by="warp"))
views.sectors(copies[0], "a")

# %% [markdown]
# Perfectly coalesced: every byte of 16 sectors is used. In s01 a load of `b` touched 32 sectors for
# the same 512 bytes.
#
# ## Shared memory has 32 banks
#
# The word (4 bytes) at `address` of shared memory lies in bank `address / 4 % 32`. In one cycle
# each bank delivers one word, to every lane that wants it. Two *different* words of one bank take
# two such rounds, called wavefronts: a **bank conflict**.
#
# In `compute`, a warp's lanes read the same `k` of 4 rows of `a` and of 8 rows of `b`.

# %%
views.code("s02_tiled", "read")

# %% [markdown]
# A tile's row has `block_k = 128` bytes: exactly all 32 banks, once. **Guess:** in which banks do
# the words at `k = 0` of 8 rows lie? What if each row were 16 bytes longer?

# %%
views.bank_rows(config.block_k, paddings=(0, 16), rows=8, k=0)

# %% [markdown]
# Without padding, every row begins in bank 0. Sixteen bytes behind each row move the next one four
# banks on, and 8 rows x 4 banks is all 32. Nothing is ever stored there: the price is memory.
# Change `k`, or try a padding of 32, 48 or 64.
#
# That was arithmetic. Now the addresses of real runs: one read of `b`, without and with padding.

# %%
plain = s02_tiled.Config(block_m=64, block_n=64, block_k=128, thread_m=4, thread_n=4, padding=0)
with minigemm.observe(requests=100) as seen:
    print("the same bits without padding:", torch.equal(s02_tiled.gemm(a, b, plain), expected))
unpadded = seen[0]
for report, name in ((unpadded, "b, padding = 0"), (tiled, "b, padding = 16")):
    reads = views.requests_at(report, "read(shared.b", "shared", source=source)
    display(views.banks(reads[0], name))

# %% [markdown]
# Lanes 0, 8, 16 and 24 share a column of `d`, so they want the same word of `b` and share it: that
# is the plus sign.
#
# **Guess:** a read of `a` touches 4 rows, one for every 8 lanes. How many wavefronts does it take
# without padding?

# %%
reads = views.requests_at(unpadded, "read(shared.a", "shared", source=source)
display(views.banks(reads[0], "a, padding = 0"))
views.compare({"padding = 0": unpadded, "padding = 16": tiled})

# %% [markdown]
# Same bytes, same result, more than five times the wavefronts. Does it matter? By the CUDA
# programming guide, an SM of a Hopper GPU can start 128 FP32 multiply-adds a cycle, and its shared
# memory serves a wavefront a cycle. So the counts give the fewest cycles that each part needs.

# %%
for name, report in {"padding = 0": unpadded, "padding = 16": tiled}.items():
    arithmetic = report.counters["instructions_by_class"]["fma"] / 128
    shared = report.counters["shared_wavefronts"]
    print(f"{name:>12}: at least {arithmetic:,.0f} cycles of multiply-adds, "
          f"{shared:,} of shared memory")
    print(f"{'':>12}  {'shared memory' if shared > arithmetic else 'arithmetic'} would be the "
          "limit of the two")

# %% [markdown]
# These are bounds from counts, not a measurement. But they say enough: conflicts would make shared
# memory the bottleneck.
#
# ## The register tile
#
# A word read from shared memory should serve more than one product. So each thread computes
# `thread_m` x `thread_n` outputs: it reads and converts `thread_m` rows and `thread_n` rows, and
# multiplies each with each.

# %%
views.code("s02_tiled", "compute", mark="read(")

# %% [markdown]
# The rows of a thread are not neighbours: they lie `kThreadsM` apart. That keeps neighbouring
# *lanes* on neighbouring rows, which the padding relies on. Here is what warp 0 stores: 16 blocks,
# each of them one store of its 4 by 8 lanes. Lane 0 has the upper left corner of every block.

# %%
stores = views.requests_at(tiled, "", "global", store=True)
stores = [r for r in stores if r.cta == 0 and r.threads[0] < 32]
print(f"warp 0 stores {len(stores)} times {len(stores[0].threads)} outputs")
apart = config.block_m // config.thread_m
print("lane 0: rows and columns", [i * apart for i in range(config.thread_m)])
views.footprint(stores, d, "d: what warp 0 of CTA 0 stores, by lane", by="lane")

# %% [markdown]
# Four elements along `k` take `thread_m + thread_n` words of 4 bytes and give
# `4 * thread_m * thread_n` products. **Guess:** how many bytes of shared memory does a product cost
# with 1x1, 2x2, 4x4 and 8x8? And how many instructions, of which one is the multiply-add itself?

# %%
by_tile = {}
for side in (1, 2, 4, 8):
    block = 32 if side == 1 else 64  # 1 x 1 with blocks of 64 would be 4096 threads
    square = s02_tiled.Config(block_m=block, block_n=block, thread_m=side, thread_n=side)
    with minigemm.observe(hazards=False) as seen:
        assert torch.equal(s02_tiled.gemm(a, b, square), expected)
    by_tile[f"{side} x {side}"] = seen[0]
views.per_product(by_tile, products=m * n * k)

# %% [markdown]
# `(thread_m + thread_n) / (thread_m * thread_n)` bytes a product: 2, 1, 0.5, 0.25. Conversions fall
# in the same way, for a converted element stays in a register while it is used 8 times. (The
# *moves* cut a register into halves. They are PTX only, and cost nothing on the GPU.)
#
# **Guess:** then why not 16x16?

# %%
for side in (2, 4, 8):
    tile = s02_tiled.Config(thread_m=side, thread_n=side, block_m=64, block_n=64)
    made = minigemm.inspect(s02_tiled, tile)
    print(f"{side} x {side}: {made.registers} registers a thread, {made.spills} bytes spilled")
too_large = s02_tiled.Config(block_m=256, block_n=256, thread_m=16, thread_n=16)
try:
    s02_tiled.gemm(a, b, too_large)
except ValueError as error:
    print(f"16 x 16: {error}")

# %% [markdown]
# Every sum is a register, and a thread has 255 at most. What does not fit would *spill* into
# memory, which is what we wanted to avoid.
#
# ## Why two barriers?
#
# `__syncthreads()` lets nobody pass until all threads of the CTA have arrived; what they wrote
# before is then visible to all.

# %%
views.code("s02_tiled", "s02_tiled", mark="__syncthreads")

# %% [markdown]
# The two guard opposite directions:
#
# - the first: nobody *reads* the tile before everybody has *written* it;
# - the second: nobody *overwrites* it for the next step before everybody has *read* it.
#
# Remove the first. **Guess:** is the result wrong in every element, in some, or in none?

# %%
no_first = views.edited("s02_tiled", "__syncthreads();", "", occurrence=1)


def attempt(edit, x=a, y=b, right=expected, schedule="late"):
    with minigemm.observe(schedule=schedule) as seen:
        broken = s02_tiled.gemm(x, y, config, source=edit)
    kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in seen[0].hazards)) or "none"
    print(f"schedule {schedule!r}, k = {x.data.shape[1]}: "
          f"{int((broken != right).sum()):,} elements wrong; hazards: {kinds}")
    return broken, seen[0].hazards


display(views.diff("s02_tiled", no_first, context=2))
_, hazards = attempt(no_first)
for line in str(hazards[0]).splitlines():
    print(textwrap.fill(line, 110, subsequent_indent=" " * 8))

# %% [markdown]
# A *data race*: two accesses to one address, at least one of them a write, and nothing that orders
# them. The message names both, with their lines and callers.
#
# Address 0x400 is the start of the tile of `a`; 16 bytes on is what lane 1 copies. Lane 0 read it
# before it was there, and the write came too late. (The emulator runs even the lanes of a warp one
# by one. On a GPU they mostly go together, but CUDA does not promise it.)
#
# Now remove only the second barrier.

# %%
no_second = views.edited("s02_tiled", "__syncthreads();", "", occurrence=2)
results = {}
for schedule in ("late", "early", 1, 2):
    results[f"schedule {schedule!r}"], hazards = attempt(no_second, schedule=schedule)
for line in str(hazards[0]).splitlines():
    print(textwrap.fill(line, 110, subsequent_indent=" " * 8))
views.mismatches(results, expected)

# %% [markdown]
# This time the *write* came first: lane 0, a step ahead, had overwritten what lane 1 still wanted
# to read.
#
# "late" and "early" say when *asynchronous* work completes. This kernel has none, so they agree. A
# number is a seed: it shuffles the order in which threads run. Other elements are wrong each time,
# but the race is always found.
#
# A wrong result is the lucky case. **Guess** what these two tests of the same broken kernel say:
# one with `k = 128`, one with matrices of ones.

# %%
short_a = quantize.quantize(quantize.activations(128, 128), "tensor")
short_b = quantize.quantize(quantize.weights(128, 128), "tensor")
attempt(no_second, short_a, short_b, s01_naive.gemm(short_a, short_b))
ones = quantize.quantize(torch.ones(128, k), "tensor")
_, hazards = attempt(no_second, ones, ones, s01_naive.gemm(ones, ones))
print(f"places where the second test raced: {len(hazards)}")

# %% [markdown]
# With `k = 128` there is one step: nothing is overwritten, and nothing races. With ones, each tile
# is overwritten by its equal: the result is right, and the race is there. A test of results passes
# both.
#
# A GPU can be a third such test. The next tile comes from far away; when it is written, slower
# warps may all have read the old one. Such a kernel can pass for years.
#
# ## What limits it now?
#
# For each `k`, a 128 x 128 tile loads 256 bytes and computes 128 x 128 products.

# %%
large = s02_tiled.Config()  # 128 x 128 x 128 tiles, 8 x 8 a thread: the default for large products
operations = 2 * m * n * k
points = {
    "s01, sectors as counted": operations / (32 * naive.counters["global_sectors"]),
    "s02, 64 x 64, sectors as counted": operations / (32 * tiled.counters["global_sectors"]),
    "s02, 128 x 128, loads of a large product":
        2 * large.block_m * large.block_n / (large.block_m + large.block_n),
}
views.roofline(points)

# %% [markdown]
# s02 is far to the right of where the dashed line begins: even if every byte came from device
# memory, memory would allow more than the FP32 units can compute. The dashed line is the limit now.
# How near can this kernel come to it? Look at its inner loop, in SASS.
#
# **Guess** the share of `FFMA`. In s01 it was less than a quarter.

# %%
made = minigemm.inspect(s02_tiled, large)
body = views.loop(made)
share = sum(each.opcode == "FFMA" for each in body) / len(body)
print(f"{share:.0%} of the loop is FFMA; {made.registers} registers a thread, "
      f"{made.spills} bytes spilled")
views.loop_mix(made)

# %% [markdown]
# An SM can start 128 multiply-adds a cycle only if it starts nothing else: the FP32 rate of the
# datasheet *is* all slots filled with `FFMA`. Each conversion and each load takes a slot. So this
# loop's share is a bound:

# %%
chip = views.H200
print(f"{chip.name}, FP32 by its datasheet: {chip.fp32 / 1e12:.0f} TFLOPS")
print(f"times {share:.0%}, the share of FFMA: "
      f"at most {share * chip.fp32 / 1e12:.0f} TFLOPS for this loop")
print(f"FP8 tensor cores by the datasheet: {chip.fp8 / 1e12:,.0f} TFLOPS")

# %% [markdown]
# ## On hardware
#
# **Guess:** how much of that bound does a GPU reach on a large product? And is s02 always faster
# than s01?

# %%
views.recorded("s02_tiled")

# %%
before = {(run["gpu"], run["m"], run["n"], run["k"]): run["run_s"]
          for run in views.recorded_runs("s01_naive")}
for run in views.recorded_runs("s02_tiled"):
    place = (run["gpu"], run["m"], run["n"], run["k"])
    tiles = -(-run["m"] // run["config"]["BLOCK_M"]) * -(-run["n"] // run["config"]["BLOCK_N"])
    faster = "s01 not recorded"
    if place in before:
        faster = f"{before[place] / run['run_s']:.2f} times as fast as s01"
    of_fp32 = run["tflops"] * 1e12 / chip.fp32
    print(f"{run['gpu']}, {run['m']} x {run['n']} x {run['k']}: {faster}, {of_fp32:.0%} of FP32, "
          f"{tiles:,} CTAs")

# %% [markdown]
# On the large product, tiles pay. What is missing to the bound, counts cannot tell: waiting for
# memory at every step, because no thread computes while its CTA copies; conversions that may start
# at a lower rate than `FFMA`.
#
# On the small one s02 is *slower*. It has 16 CTAs, and these GPUs have 132 SMs: most stand idle.
# s01 has 256 CTAs. A tile trades parallelism for reuse; there must be enough of both. The same
# call, wherever you are:

# %%
here = s02_tiled.gemm(a.to(device), b.to(device), config).cpu()
print(f"on {device}: the same bits as s01 on the emulator: {torch.equal(here, expected)}")

# %% [markdown]
# ## Recap
#
# - A tile of `block_m` x `block_n` outputs loads each byte of `a` `n / block_n` times and each of
#   `b` `m / block_m` times. Traffic is predicted by a formula and counted by the emulator.
# - Shared memory has 32 banks of 4 bytes. Different words of one bank take one wavefront each;
#   equal words are shared.
# - Rows of 128 bytes put a column into one bank. 16 bytes of padding spread 8 rows over all banks.
# - A register tile divides shared-memory reads and conversions by its side. Registers are its
#   limit.
# - Two barriers: written before read, read before overwritten. A missing one is a race, whatever
#   the result says.
# - Now the FP32 units and the conversions limit the kernel. Tensor cores would need neither.
#
# ## Quiz
#
# **1.** A tile of 256 x 64 outputs or one of 128 x 128: both have the same number of outputs. Which
# loads fewer bytes?
#
# <details><summary>Answer</summary>
# 128 x 128. For each k it loads 256 bytes, the other 320, for the same 16,384 products. The square
# has the smallest sum of sides.
# </details>
#
# **2.** Does a larger <code>block_k</code> reduce the bytes from global memory?
#
# <details><summary>Answer</summary>
# No: block_k does not appear in the formula. It makes fewer, larger steps, so fewer barriers, and
# takes more shared memory.
# </details>
#
# **3.** All 32 lanes of a warp read the same word of shared memory. How many wavefronts?
#
# <details><summary>Answer</summary>
# One. A bank delivers its word to every lane that wants it. A conflict needs different words of the
# same bank.
# </details>
#
# **4.** A register tile of 16 x 1 and one of 4 x 4 hold as many sums. Why is the second much
# better?
#
# <details><summary>Answer</summary>
# A product costs (thread_m + thread_n) / (thread_m * thread_n) bytes of shared memory: 17/16 for 16
# x 1, 1/2 for 4 x 4. In 16 x 1 each element of a that was read and converted serves one product
# only.
# </details>
#
# **5.** A colleague removes the second barrier and says: "All our tests pass on the GPU." What do
# you answer?
#
# <details><summary>Answer</summary>
# That a test sees one order of events. Nothing makes a fast warp wait for a slow one that still
# reads the tile. With one step, or with equal tiles, not even a wrong order shows.
# </details>
#
# ## Exercises
#
# **1. Break it: a barrier too early.** Move the first `__syncthreads()` up, between the two calls
# of `load`. Which line does the emulator name now, and which of the two tiles is read too early?
#
# <details><summary>Hint</summary>
# Edit twice; <code>views.edited</code> also takes the path that it returned. First remove
# occurrence 1, then replace <code>load(shared.b, b, n, k, ldb, column0, k0);</code> with
# <code>__syncthreads();</code> and that same call.
# </details>
#
# **2. Change it: the shape of a warp.** Make a warp 2 by 16 threads: edit `kWarpM = 4, kWarpN = 8`.
# Predict the wavefronts of a read of `b` with 16 bytes of padding. Check with `views.banks`, then
# find a padding that helps, or show that none does.
#
# <details><summary>Hint</summary>
# 16 rows, 4 banks apart, come back to bank 0 after 8 rows. Every multiple of 16 bytes moves a row
# by a multiple of 4 banks, and there are only 8 of those.
# </details>
#
# **3. Change it: neighbouring rows.** In `compute`, read rows `n * THREAD_N + j` of `b` where it
# reads `n + j * kThreadsN`. Count the bank conflicts. Why is `d` wrong, and which other line needs
# the same change?
#
# <details><summary>Hint</summary>
# Lanes now read rows 4 apart, which is 4 x 144 bytes. <code>store</code> still believes that a
# thread's columns lie kThreadsN apart: the kernel passes it <code>column0 + thread_n</code>, and it
# adds <code>j * kThreadsN</code>.
# </details>
#
# **4. Find it.** With `block_k=64` and a padding of 16 the emulator counts some conflicts, though
# the reads have none. Where are they?
#
# <details><summary>Hint</summary>
# Look at the stores: <code>views.requests_at(report, "load(shared.a", "shared", store=True,
# source=source)</code>, then <code>views.banks</code>. Lanes that store 16 bytes are served 8 at a
# time, and 8 of them now write two rows.
# </details>
#
# **5. Only with a Hopper GPU.** Run the kernel without its second barrier 100 times on the GPU and
# count the wrong results. Then the one without the first. Explain the difference, if there is one.
#
# <details><summary>Hint</summary>
# <code>s02_tiled.gemm(a.to(device), b.to(device), config, source=no_second)</code>; compare with
# <code>expected</code>. How long after the last read of a tile can the first write to it come?
# </details>
#
# ## Further reading
#
# - CUDA C++ Programming Guide, "Shared Memory", "Synchronization Functions", and the table of
#   arithmetic throughput.
# - CUDA C++ Best Practices Guide, "Shared Memory in Matrix Multiplication".
# - PTX ISA, "bar, barrier" and "Memory Consistency Model": what a race is, exactly.
# - V. Volkov, "Better Performance at Lower Occupancy", GTC 2010: why the register tile is the level
#   that matters most.
#
# **Next:** [03_tma](03_tma.ipynb): Hopper's copy engine moves the tiles, and a swizzle replaces the
# padding.
