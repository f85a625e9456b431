# %% [markdown]
# # 01 · A thread an output
#
# **Runs on:** CPU (emulator) or Hopper GPU · **Time:** 45 minutes
#
# **You will be able to**
#
# - say which thread of a grid computes which output, and which threads have nothing to do;
# - predict how many 32-byte sectors a warp's load or store touches, and check it on the addresses
#   that were used;
# - compute a kernel's arithmetic intensity from counters and place it under the roofline;
# - read what the compiler made of an inner loop: PTX, SASS, registers;
# - remove a bounds check and understand the fault that follows.
#
# **You need to know** C++ pointers and loops, what a matrix product is, and e4m3 with its scale
# from [00_fp8_and_gemm](00_fp8_and_gemm.ipynb).
#
# **Built so far:** quantized matrices and an exact reference product. **This lesson adds** the
# first kernel: the formula itself, a thread for each output. It is right, and slow. Every later
# stage repairs something that you will measure here.
#
# **Where it lives:** `minigemm/kernels/s01_naive.cu` (the kernel), `minigemm/kernels/s01_naive.py`
# (its launch).

# %%
import minigemm
import torch
from IPython.display import display
from minigemm import quantize, views
from minigemm.kernels import s01_naive

device = views.device()

# %% [markdown]
# ## The work and the workers
#
# `d = a @ b.T`, scaled: output `d[i, j]` is row `i` of `a` times row `j` of `b`. No output needs
# another, so each can have a thread of its own.
#
# Threads start in blocks, called CTAs (cooperative thread arrays), and the CTAs of a launch form a
# grid. Here a CTA covers 8 rows by 32 columns of `d`. The picture shows the grid over `d`, and what
# one CTA reads: blue rows of `a`, orange rows of `b` (columns of `b.T`), 16 elements of `k` at a
# step.

# %%
m, n, k = 44, 80, 64  # small, and ragged: the tiles do not fit
a = quantize.quantize(quantize.activations(m, k), "tensor")
b = quantize.quantize(quantize.weights(n, k), "tensor")
config = s01_naive.Config()  # block_m = 8 rows by block_n = 32 columns
views.tiles(m, n, k, config.block_m, config.block_n, block_k=16, cta=(1, 1))

# %% [markdown]
# Tiles hang over the lower and the right edge of `d`. A grid is made of whole CTAs, so some threads
# get no output.
#
# **Before you run the next cell, guess:** how many threads does this launch start, and how many of
# them have nothing to do?

# %%
down, across = -(-m // config.block_m), -(-n // config.block_n)
per_cta = config.block_m * config.block_n
threads = down * across * per_cta
print(f"{down} x {across} CTAs of {per_cta} threads: {threads:,} threads, in warps of 32: "
      f"{threads // 32}")
print(f"{m * n:,} outputs, so {threads - m * n:,} threads have nothing to do")

# %% [markdown]
# ## The kernel
#
# This is all of it. Every thread runs the same text; only `blockIdx` (which CTA) and `threadIdx`
# (which thread of it) differ. The two marked lines turn them into a row and a column: neighbouring
# threads take neighbouring columns. `BLOCK_M` and `BLOCK_N` are the fields of `Config`, put in
# front of the file as constants.

# %%
# The text comes from the package's own file, with its line numbers.
source = s01_naive.stage.source
print(source.name, "is", len(source.read_text().splitlines()), "lines long")
views.code("s01_naive", "s01_naive", mark="threadIdx.x")

# %% [markdown]
# The same arithmetic in Python, for one thread. Change `cta` and `thread`, and find a thread of the
# last CTA, `(5, 2)`, that does have an output.

# %%
cta, thread = (1, 1), 70
row = cta[0] * config.block_m + thread // config.block_n
column = cta[1] * config.block_n + thread % config.block_n
warp, lane = divmod(thread, 32)
print(f"thread {thread} of CTA {cta}: warp {warp}, lane {lane}, output d[{row}, {column}]")
print("it returns at once" if row >= m or column >= n else f"it sums {k} products")

# %% [markdown]
# The loop calls three short functions. `load` fetches 16 elements in one instruction, because e4m3
# is one byte and 16 bytes are the most that a thread can load at once. `compute` multiplies and
# adds them in FP32, one after the other. `store` rounds to BF16.

# %%
for part in ("load", "compute", "store"):
    display(views.code("s01_naive", part))

# %% [markdown]
# The ordinary cores cannot multiply e4m3. PTX, the instruction language below CUDA C++, has a
# conversion to FP16 pairs, and from there each half widens to FP32. Both steps are exact: every
# e4m3 number is an FP16 number. Only the sum rounds.

# %%
for part in ("cvt_rn_f32_e4m3x4", "fma_rn_f32"):
    display(views.code("ptx.cuh", part, mark="cvt." if part.startswith("cvt") else "fmaf"))

# %% [markdown]
# ## Is it right?
#
# The reference multiplies the same e4m3 numbers in float64. What may differ: the FP32 sums, and the
# rounding of `d` to BF16. The second is by far the larger, so a right kernel errs as much as
# rounding alone does.

# %%
d = s01_naive.gemm(a.to(device), b.to(device)).cpu()
exact = quantize.reference(a, b)
error = (d.double() - exact).norm() / exact.norm()
rounding = (exact.bfloat16().double() - exact).norm() / exact.norm()
print(f"{tuple(d.shape)} {d.dtype}, relative error {error:.3e}")
print(f"rounding the exact product to BF16 costs {rounding:.3e}")

# %% [markdown]
# ## What did it do?
#
# Inside `minigemm.observe` the emulator keeps a report of each call on CPU tensors. `requests=1000`
# also keeps the addresses of up to 1000 warp requests of each memory instruction, for the pictures
# below.
#
# **Guess first:** each thread with an output loads `k` bytes of `a`, `k` bytes of `b`, and two FP32
# scales. How many bytes is that for all of them? And which takes more instructions, arithmetic or
# conversion?

# %%
with minigemm.observe(requests=1000) as seen:
    emulated = s01_naive.gemm(a, b)
report = seen[0]
assert torch.equal(emulated, d)  # the same bits, wherever d was computed
report

# %%
asked = report.counters["global_load_bytes"]
print(f"by the formula: m n (2 k + 8) = {m * n * (2 * k + 8):,} bytes; counted: {asked:,}")
print(f"a and b are {(m + n) * k:,} bytes: each byte of a was loaded n = {n} times, "
      f"each of b m = {m} times")
by_class = report.counters["instructions_by_class"]
for name, count in sorted(by_class.items(), key=lambda item: -item[1])[:4]:
    print(f"{name:>12}: {count:>9,} instructions of all threads")

# %% [markdown]
# ## Warps
#
# A GPU places each CTA on one of its streaming multiprocessors (SMs). There threads run 32 at a
# time: a *warp*. Its threads, the *lanes*, execute an instruction together. A CTA of 256 threads is
# 8 warps, and with `block_n = 32` each takes one row of the tile. Below, from the addresses that
# were stored: CTA 0's eight warps, then warp 0 alone, coloured by lane.

# %%
stores = views.requests_at(report, "", "global", store=True)
first = [request for request in stores if request.cta == 0]
all_warps = f"d: what CTA 0 stores, its {len(first)} warps in colours"
display(views.footprint(first, emulated, all_warps, by="warp"))
one_warp = "d: what warp 0 of CTA 0 stores, its 32 lanes in colours"
views.footprint(first[:1], emulated, one_warp, by="lane")

# %% [markdown]
# ## Coalescing
#
# When a warp loads, memory sees one *request* with up to 32 addresses. It moves whole *sectors* of
# 32 aligned bytes, each once a request, however many lanes want it. Few sectors, all of them used,
# is what *coalesced* means.
#
# **Guess:** the lanes of warp 0 work on the same row and on 32 neighbouring columns. How many
# sectors does its first load of `a` touch, and how many its first load of `b`?

# %%
source = s01_naive.stage.source.read_text()
loads = views.requests_at(report, "load(a + row", "global", source=source)
in_a = range(a.data.data_ptr(), a.data.data_ptr() + a.data.numel())
of_a = [request for request in loads if request.addresses[0] in in_a]
of_b = [request for request in loads if request.addresses[0] not in in_a]
display(views.sectors(of_a[0], "a"))
views.sectors(of_b[0], "b")

# %% [markdown]
# `a` is a *broadcast*: all lanes want the same 16 bytes, one sector serves them. `b` is *strided*:
# lane `j` walks along row `j`, and rows lie `k` bytes apart, so every lane needs a sector of its
# own and uses half of it. The other half is what the next step along `k` wants; it comes again
# unless the L1 cache still holds it.
#
# The store is different. Neighbouring lanes write neighbouring BF16 numbers:

# %%
store = stores[0]
print(f"warp {store.threads[0] // 32} of CTA {store.cta}: "
      f"{len(store.threads)} lanes store {store.bytes} bytes each")
print("the first address is a multiple of 32:", store.addresses[0] % 32 == 0)
views.sectors(store, "d")

# %% [markdown]
# ## Change the shape of a warp
#
# Threads are numbered along a row of the tile first. So with `block_n = 8`, a warp is 4 rows by 8
# columns of `d`.

# %%
square = s01_naive.Config(block_m=32, block_n=8)
with minigemm.observe(requests=1) as seen:
    emulated = s01_naive.gemm(a, b, square)
warp = views.requests_at(seen[0], "", "global", store=True)
views.footprint(warp, emulated, "d: what warp 0 of CTA 0 stores, with block_n = 8", by="lane")

# %% [markdown]
# It needs 4 rows of `a` and 8 of `b`: 12 sectors a step, where 1 by 32 needs 33.
#
# **Guess before you run:** of six shapes, which touches the fewest sectors with its loads? Which
# with its stores?

# %%
m, n, k = 256, 32, 128  # whole tiles, whatever their shape
a = quantize.quantize(quantize.activations(m, k), "tensor")
b = quantize.quantize(quantize.weights(n, k), "tensor")
shapes = {}
for block_n in (32, 16, 8, 4, 2, 1):
    with minigemm.observe() as seen:
        s01_naive.gemm(a, b, s01_naive.Config(block_m=256 // block_n, block_n=block_n))
    shapes[f"{32 // block_n} x {block_n}"] = seen[0]  # rows by columns of a warp
views.compare(shapes)

# %% [markdown]
# The bytes that threads ask for never change. The sectors do: loads prefer a warp that is nearly
# square, because it spans the fewest rows of `a` and `b` together; stores prefer a warp that is
# wide. A 2 by 16 warp still fills every sector that it stores. The loads are far more, so the next
# stages use 4 by 8.

# %% [markdown]
# ## Change the kernel
#
# `views.edited` copies the stage's file and changes one place; `gemm(..., source=...)` runs your
# copy. Here the roles are swapped: neighbouring threads take neighbouring *rows*.

# %%
swapped = views.edited("s01_naive", "threadIdx.x / BLOCK_N", "threadIdx.x % BLOCK_M")
swapped = views.edited(swapped, "threadIdx.x % BLOCK_N", "threadIdx.x / BLOCK_M")
views.diff("s01_naive", swapped, context=1)

# %% [markdown]
# **Guess:** the result, the sectors of the loads, the sectors of the stores: which of the three
# change?

# %%
with minigemm.observe(requests=1000) as seen:
    as_shipped = s01_naive.gemm(a, b)
    as_swapped = s01_naive.gemm(a, b, square, source=swapped)  # 32 rows: a warp is one column
print("same bits in d:", torch.equal(as_shipped, as_swapped))
views.compare({"columns first (shipped)": seen[0], "rows first (edited)": seen[1]})

# %% [markdown]
# The bits are the same: every output is summed in the same order, only by another thread. The loads
# mirror each other: now `b` is the broadcast and `a` the stride. But the stores are uncoalesced: 32
# lanes write 32 rows of `d`, a sector each for two bytes.

# %%
uncoalesced = views.requests_at(seen[1], "", "global", store=True)
stored = seen[1].counters["global_store_bytes"]
print(f"{len(uncoalesced)} warps store {stored:,} bytes; the first of them:")
views.sectors(uncoalesced[0], "d, rows first")

# %% [markdown]
# ## Arithmetic intensity
#
# Intensity is operations by bytes moved; a multiply-add counts as two operations. Which bytes?
# Below: those of the sectors, as counted, for the shipped warp and for a 4 by 8 one; and those that
# a perfect kernel would move, each byte of `a`, `b` and `d` once.

# %%
m = n = k = 256
a = quantize.quantize(quantize.activations(256, 256), "tensor")
b = quantize.quantize(quantize.weights(256, 256), "tensor")
with minigemm.observe() as seen:
    s01_naive.gemm(a, b)
    s01_naive.gemm(a, b, square)
one_row, four_rows = (2 * m * n * k / (32 * report.counters["global_sectors"]) for report in seen)
points = {"1 x 32 a warp, sectors": one_row, "4 x 8 a warp, sectors": four_rows}
points[f"{m}^3, every byte once"] = views.gemm_intensity(m, n, k)
views.roofline(points)

# %% [markdown]
# A step of the shipped warp is 1024 operations for 33 sectors, 1056 bytes: about one operation a
# byte, whatever the size of the product. If every sector came from device memory, the roof over
# that point would be all that this kernel could reach. Each point sits on the roof: it is what the
# datasheet allows, not a measurement.
#
# ## What the compiler made of it
#
# `minigemm.inspect` compiles a stage and takes the result apart; it needs no GPU. PTX is what the
# emulator runs. SASS is the machine code that ptxas makes of it for the GPU.

# %%
made = minigemm.inspect(s01_naive)
print(made)
display(views.lowered(made, "load(const e4m3"))
views.lowered(made, "acc = fma_rn_f32")

# %% [markdown]
# The line of `compute` stands in a loop of four that the compiler unrolled: 16 elements of `a`, 16
# of `b`.
#
# - `F2FP.F16.E4M3.UNPACK_B` makes two FP16 numbers of two e4m3.
# - `HADD2.F32` widens one of them to FP32: it adds it to minus zero.
# - `FFMA` is the multiply-add that all of this is for.
#
# PTX's `mov.b32` has vanished: cutting a register into halves needs no instruction. *Spilled*
# registers, ones that had to live in memory, there are none. **Guess:** of all instructions in one
# pass of the loop, what share is `FFMA`?

# %%
body = views.loop(made)
share = sum(each.opcode == "FFMA" for each in body) / len(body)
print(f"one pass: {len(body)} instructions, {share:.0%} of them FFMA")
print(f"{made.registers} registers a thread, {made.spills} bytes spilled")
views.loop_mix(made)

# %% [markdown]
# So even if memory were infinitely fast, most of what the cores issue is not arithmetic. Each
# element is converted again by every thread that uses it. The next stage keeps converted elements
# in registers and uses each several times.
#
# ## On hardware
#
# Figures that were recorded on a GPU, each with its machine. "The roof" is the shortest time that
# the datasheet allows.

# %%
runs = views.recorded_runs("s01_naive")
print(f"{len(runs)} runs are recorded")
views.recorded("s01_naive")

# %% [markdown]
# The sectors hold about a byte for each operation. So the recorded rate tells how many bytes a
# second the loads moved. **Guess:** is that more or less than device memory can deliver?

# %%
for run in runs:
    chip = views.H200 if "H200" in run["gpu"] else views.H100
    moved = run["tflops"] / one_row  # operations a second by operations a byte
    size = f"{run['m']} x {run['n']} x {run['k']}"
    memory = f"device memory: {chip.bandwidth / 1e12:g} TB/s (datasheet)"
    print(f"{run['gpu']}, {size}: {moved:.1f} TB/s in sectors; {memory}")

# %% [markdown]
# Where more moved than device memory can deliver, caches answered the rest: the L1 of each SM, or
# the L2 that all share. That depends on which CTAs happen to run together. The next stage makes
# reuse certain: it copies tiles into shared memory.
#
# ## Break it
#
# `if (row >= m || column >= n) return;` costs almost nothing. Remove it. **Guess:** what happens on
# a product whose tiles fit, and what on the ragged one from the beginning?

# %%
careless = views.edited("s01_naive", "if (row >= m || column >= n) return;", "")
for m, n in ((48, 96), (44, 80)):
    a = quantize.quantize(quantize.activations(m, 64), "tensor")
    b = quantize.quantize(quantize.weights(n, 64), "tensor")
    try:
        right = torch.equal(s01_naive.gemm(a, b, source=careless), s01_naive.gemm(a, b))
        print(f"{m} x {n}: no fault, and the result is {'right' if right else 'wrong'}")
    except minigemm.emulator.Fault as fault:
        print(f"{m} x {n}: {fault}")

# %% [markdown]
# Read the message from left to right: the line that loaded and the line that called it, what was
# wrong with the address, which argument it ran out of (`args[0]` is `a`), and which thread of which
# CTA did it. Where the tiles fit, the bug does not show at all.
#
# A GPU may not fault here. Beyond the end of `a` there is often other memory of your process, and
# the load returns whatever it holds. The store then writes past the end of `d`, over somebody
# else's numbers. The emulator knows where each tensor ends.

# %%
thread, (cta_row, cta_column) = 128, (5, 0)  # put in what the message says
row = cta_row * config.block_m + thread // config.block_n
column = cta_column * config.block_n + thread % config.block_n
print(f"that thread wanted d[{row}, {column}], and d is {m} x {n}")

# %% [markdown]
# ## Recap
#
# - A grid of CTAs covers `d`; a thread computes its row and column from `blockIdx` and `threadIdx`,
#   and returns when they lie outside.
# - A warp's 32 addresses are one request. It moves the distinct 32-byte sectors: one for a
#   broadcast, 32 for a stride.
# - The shape of a warp over `d` decides the sectors. Square suits the loads, wide suits the stores.
# - The kernel moves about a byte an operation, at any size; a perfect kernel's intensity grows with
#   the size.
# - Fewer than a quarter of the loop's instructions are `FFMA`; most convert e4m3 to FP32.
#
# ## Quiz
#
# **1.** Why does a warp's load of `a` touch one sector only?
#
# <details><summary>Answer</summary>
# With <code>block_n = 32</code> all its lanes have the same row and the same <code>k0</code>, so
# the same 16 bytes. A request moves each sector once, however many lanes want it.
# </details>
#
# **2.** A warp is 8 rows by 4 columns of <code>d</code>. How many sectors does one step along
# <code>k</code> load, and how many does the store touch?
#
# <details><summary>Answer</summary>
# 8 rows of a and 4 rows of b, a sector each: 12. The store touches 8 rows, with 4 x 2 = 8 bytes in
# each: 8 sectors.
# </details>
#
# **3.** Does a larger product give this kernel a higher intensity, counted in sectors?
#
# <details><summary>Answer</summary>
# No. A step of a warp moves the same 33 sectors for the same 1024 operations, and a larger product
# only has more of these steps. Nothing that one warp loads serves another, unless a cache happens
# to keep it.
# </details>
#
# **4.** The swapped kernel gave the same bits. Why is that certain, not luck?
#
# <details><summary>Answer</summary>
# FP32 addition depends on the order. The swap changes which thread computes an output, but each
# output is still summed by one thread in the order of k, with the same instructions.
# </details>
#
# ## Exercises
#
# **1. Backwards (change it).** Let the columns of a warp run from right to left: edit
# `threadIdx.x % BLOCK_N` with `views.edited`. Guess the sectors of the stores, then compare with
# the shipped kernel. Is the reversed store still coalesced?
#
# <details><summary>Hint</summary>
# <code>BLOCK_N - 1 - threadIdx.x % BLOCK_N</code>. A sector counts once, in whatever order the
# lanes want its bytes.
# </details>
#
# **2. Half a check (break it).** Replace the condition by `column >= n` alone, and run 44 x 80 x 64
# again. Then by `row >= m` alone. Predict for both: which argument does the fault name, and which
# CTA?
#
# <details><summary>Hint</summary>
# Rows belong to a, columns to b. CTAs run in the order of blockIdx.x first, so the first one that
# hangs over that edge speaks up.
# </details>
#
# **3. A short accumulator (change it).** Round the running sum to BF16 after every step along `k`,
# and plot the relative error for k = 64, 256 and 1024 against that of the shipped kernel.
#
# <details><summary>Hint</summary>
# Replace <code>acc = compute(acc, load(a + row * lda + k0), load(b + column * ldb + k0));</code>
# with the same call inside <code>__uint_as_float(u32(cvt_rn_bf16_f32(...)) &lt;&lt; 16)</code>:
# BF16 is the upper half of an FP32.
# </details>
#
# **4. Short rows (change it).** Run `k = 16` and `k = 32` with one warp shape. For which of them
# does a load of `b` use whole sectors, and why?
#
# <details><summary>Hint</summary>
# Rows are k bytes apart. Draw <code>views.sectors</code> of a load of b: at k = 16, two rows share
# a sector.
# </details>
#
# ## Further reading
#
# - CUDA C++ Programming Guide, "Programming Model" and "Device Memory Accesses".
# - PTX ISA, "cvt", "fma" and "ld".
# - NVIDIA, "CUDA Binary Utilities": the SASS opcodes of Hopper.
# - S. Williams, A. Waterman, D. Patterson, "Roofline: An Insightful Visual Performance Model for
#   Multicore Architectures", Communications of the ACM, 2009.
#
# **Next:** [02_tiled](02_tiled.ipynb): shared-memory and register tiles, so that what is loaded and
# converted once serves many outputs.
