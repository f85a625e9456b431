# %% [markdown]
# # 04 WGMMA: the tensor core
#
# **You will be able to**
# - say what a warpgroup is, and what one `wgmma` instruction computes;
# - read a matrix descriptor bit by bit, and find the bytes that it leads to;
# - find an element of the result: which thread, which register;
# - write the four steps of an asynchronous product, and say what each one is for;
# - predict a sum of the tensor core, bit for bit.
#
# **You need to know** lesson 03: tensor maps, mbarriers, swizzle.
#
# **Time:** 55 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 01, a thread an output; 02, tiles in shared memory and registers; 03, TMA moves
# the tiles.
# **This lesson adds** Hopper's tensor core: the FMAs of all lessons before are gone. The tiles stay
# where TMA put them.
#
# **Where it lives:** `minigemm/kernels/s04_wgmma.cu`, the kernel; `minigemm/kernels/s04_wgmma.py`,
# its launch; `minigemm/kernels/instructions.py`, the one instruction;
# `minigemm/emulator/machine/tensor_core.py`, its arithmetic.

# %%
import minigemm
import torch
from minigemm import emulator, quantize, views
from minigemm.emulator import Descriptor, tensor_core
from minigemm.kernels import s03_tma, s04_wgmma

device = views.device()

# %% [markdown]
# ## 1. One instruction
#
# A **warpgroup** is four warps in a row, 128 threads, the first warp's number a multiple of 4.
# Hopper has an instruction for all of them together: `wgmma`, in full `wgmma.mma_async.m64nNk32`
# for FP8. It adds to a 64 x N accumulator the product of 64 x 32 elements of a and N x 32 of b.
# Here is its whole use:

# %%
views.code("s04_wgmma", "compute", mark="wgmma_mma_async")

# %% [markdown]
# No loop over rows or columns, and no loads: the operands are two numbers of 64 bits. One call does
# 64 x BLOCK_N x 32 multiply-adds.
#
# **Before you run the next cell, guess:** s03 executed 6,291,456 FMAs for a product of 128 x 128
# x 384. How many `wgmma` does s04 execute with tiles of 128 x 64, on the whole grid?

# %%
a = quantize.quantize(quantize.activations(128, 384), "tensor")
b = quantize.quantize(quantize.weights(128, 384), "tensor")
config = s04_wgmma.Config(block_m=128, block_n=64)

with minigemm.observe() as seen:
    d_tma = s03_tma.gemm(a, b, s03_tma.Config(block_m=64, block_n=64, thread_m=4, thread_n=4))
    right = s04_wgmma.gemm(a, b, config)
tma, wgmma = seen
fmas = tma.counters["instructions_by_class"]["fma"]
products = wgmma.counters["wgmma"]
print(f"s03: {fmas:,} FMAs of a thread; s04: {products} wgmma of a warpgroup, "
      f"{products * 64 * 64 * 32:,} multiply-adds")
print(f"one wgmma replaces {fmas // products:,} FMAs, "
      f"{fmas // products // 128:,} for each of its 128 threads")

# %%
views.compare({"s03_tma": tma, "s04_wgmma": wgmma})

# %% [markdown]
# A hundredth of the instructions, and *no* loads from shared memory by threads: the tensor core
# reads it itself. (Fewer bytes by TMA, too: the tile is twice as high.) The whole change from s03
# to s04:

# %%
views.diff("s03_tma", "s04_wgmma", context=1)

# %% [markdown]
# And in machine code? **Guess:** how many of the instructions in the SASS multiply matrices?

# %%
inspection = minigemm.inspect(s04_wgmma, config)
for instruction in inspection.instructions:
    if instruction.opcode in ("QGMMA", "WARPGROUP", "UTMALDG", "UTMASTG"):
        print(instruction.text)
print(f"{len(inspection.instructions)} instructions in all, FFMA among them: "
      f"{inspection.opcodes['FFMA']}")

# %% [markdown]
# Four `QGMMA` (Q for quarter precision, 8 bits): the loop over k, unrolled. `gdesc` is a descriptor
# in uniform registers; R24 and those behind it are the accumulator. `WARPGROUP.ARRIVE` is the fence
# and `DEPBAR` the wait of section 4.
#
# ## 2. The descriptor: where the operands lie
#
# An operand in shared memory is named by a **matrix descriptor**. What does the kernel put into it?
# Ask the kernel. This edit makes thread 0 of each warpgroup write its descriptors into d and stop.
# (`store_by_tma` is always true here; the condition only keeps the compiler from calling the rest
# unreachable.)

# %%
ACC = "  float acc[BLOCK_N / 2] = {};"
ASK = """  if (store_by_tma) {
    u64* out = reinterpret_cast<u64*>(d) + threadIdx.x / kWarpgroup * 2;
    out[0] = wgmma_descriptor(shared.a[row]), out[1] = wgmma_descriptor(shared.b);
    return;
  }
"""
answer = s04_wgmma.gemm(a, b, config, source=views.edited("s04_wgmma", ACC, ASK + ACC))
asked = answer.view(torch.int64).flatten()[:4].tolist()
names = ("warpgroup 0, a", "warpgroup 0, b", "warpgroup 1, a", "warpgroup 1, b")
for name, bits in zip(names, asked, strict=True):
    print(f"{name}: {bits:#018x}  {Descriptor.decode(bits)}")

# %%
views.descriptor(asked[0], "warpgroup 0, operand a")

# %% [markdown]
# - **Start**, in units of 16 bytes.
# - **Stride**: from 8 rows to the next 8. Within 8 rows the distance follows from the swizzle.
# - **Leading**: for unswizzled layouts.
# - **Base offset**: 0, since the tile begins where the swizzle's pattern does, at a multiple of
#   1024 bytes.
# - **Swizzle**: 1 is 128 bytes, 2 is 64, 3 is 32, 0 is none.
#
# No size: the instruction has that. Both operands are **K-major**: k runs along a row in memory.
# FP8 has no other choice.
#
# **Guess:** how does warpgroup 1's descriptor of a differ?

# %%
one, two = (Descriptor.decode(bits) for bits in (asked[0], asked[2]))
print(f"a of warpgroup 1 starts {two.start - one.start:,} bytes further on: "
      f"{(two.start - one.start) // 128} rows of 128")
print("the same b for both:", asked[1] == asked[3])

# %% [markdown]
# The kernel takes 32 columns at a time: `a + k / 16` adds 2, 4, 6 to the start field, so 32, 64, 96
# bytes. But the tile is swizzled, and 32 bytes further on is something else in each row. **Guess**
# which two chunks of row 1 the second instruction reads, then look. A cell says row.chunk, as TMA
# laid the tile; what is read is blue, the first 16 bytes dark.

# %%
views.operand_reads({f"k = {16 * step}: descriptor + {step}": asked[0] + step
                     for step in (0, 2, 4, 6)})

# %% [markdown]
# The right ones: 1.2 and 1.3. The hardware computes row x 128 + 32 first, and swizzles the address
# afterwards, by the same XOR as TMA. And 8 rows of a chunk lie in 8 different groups of banks: that
# is why the tensor core wants it so.
#
# **Break it.** What if the descriptor names another swizzle than TMA used? `^ 3ull << 62` turns the
# 1 into a 2. **Guess** from the field list: how far apart will it take rows to be?

# %%
views.operand_reads({"as TMA wrote it": asked[1],
                     "as another swizzle reads it": asked[1] ^ 3 << 62})

# %% [markdown]
# Rows 64 bytes apart: what it takes for row 1 is half of row 0. Red cells say what lies there, and
# what it is taken for. The next cell defines `attempt`, which edits a copy of the stage, runs it
# and prints what the emulator, and the compiler, say.

# %%
import textwrap
import warnings


def attempt(old, new, schedule="late", stage="s04_wgmma", shown=1):
    with warnings.catch_warnings(record=True) as told, minigemm.observe(schedule=schedule) as seen:
        warnings.simplefilter("always")
        d = s04_wgmma.gemm(a, b, config, source=views.edited(stage, old, new))
    first = {hazard.kind: str(hazard) for hazard in reversed(seen[0].hazards)}  # one of each kind
    wrong = f"WRONG, {int(d.isnan().sum()):,} of {d.numel():,} are NaN"
    state = "right" if torch.equal(d, right) else wrong
    said = [f"schedule {schedule}: {state}; hazards: {', '.join(first) or 'none'}",
            *list(first.values())[:shown]]
    said += [line for warning in told for line in str(warning.message).splitlines()
             if "warning:" in line]
    for line in "\n".join(said).splitlines():
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))
    return d


d = attempt("b = wgmma_descriptor(shared.b);", "b = wgmma_descriptor(shared.b) ^ 3ull << 62;")

# %% [markdown]
# The emulator remembers with which swizzle each tile came. Now a bug that it cannot know to be one:
# `k` instead of `k / 16`, so that the start moves 16 times too far. **Guess:** a hazard, a fault,
# or just wrong numbers?

# %%
d = attempt("a + k / 16", "a + k")
reads = {"k = 0: descriptor + 0": asked[0], "k = 32: descriptor + 32": asked[0] + 32}
views.operand_reads(reads, rows=16, meant={"k = 32: descriptor + 32": 32})

# %% [markdown]
# It begins at row 4, chunk 0, where it should at row 0, chunk 2. The bytes are legal and in order,
# only their meaning is wrong. As with the swizzle in lesson 03, nothing but the numbers tells.
#
# ## 3. The accumulator: where the result lies
#
# The result stays in registers, N / 2 of each thread, in a fixed layout. Each warp has 16 rows.
# **Guess:** thread 37 is lane 5 of warp 1. Which of the rows 16 to 31 does it hold elements of?

# %%
views.accumulators(n=32, thread=37)

# %% [markdown]
# Lane l holds pairs of neighbours: in row l / 4 and 8 rows below, at column 2 (l % 4), again in
# every 8 columns. So the rows 17 and 25. `write` is this picture as code:

# %%
views.code("s04_wgmma", "write")

# %% [markdown]
# Do not believe a picture; ask the kernel again. Make operands whose product says where it is:
# element (i, j) is i, or is j. Then let every thread store its registers as they are, one thread
# after the other.

# %%
WRITE = "  write(shared, acc, *scale_a * *scale_b, row);\n"
RAW = "d[threadIdx.x * (BLOCK_N / 2) + i] = cvt_rn_bf16_f32(acc[i]);"
RAW = ("  if (store_by_tma) {\n"
       f"    for (int i = 0; i < BLOCK_N / 2; ++i) {RAW}\n"
       "    return;\n  }\n")
raw = views.edited("s04_wgmma", WRITE, RAW + WRITE)


def registers(of_row, n=32):
    x, y = torch.zeros(64, 128), torch.zeros(n, 128)
    numbered, ones = (x, y) if of_row else (y, x)
    number = torch.arange(len(numbered))
    # e4m3 holds both parts exactly
    numbered[:, 0], numbered[:, 1], ones[:, :2] = number // 8 * 8, number % 8, 1
    x, y = (quantize.Quantized(t.to(torch.float8_e4m3fn), torch.tensor(1.0), "tensor")
            for t in (x, y))
    d = s04_wgmma.gemm(x, y, s04_wgmma.Config(block_m=64, block_n=n), source=raw)
    return d.int().reshape(128, n // 2)


rows, columns = registers(of_row=True), registers(of_row=False)
print("thread 37:", list(zip(rows[37].tolist(), columns[37].tolist(), strict=True))[:8], "...")
agree = all(views.held_by(t, 32) == list(zip(rows[t].tolist(), columns[t].tolist(), strict=True))
            for t in range(128))
print("all 128 threads as in the picture:", agree)

# %% [markdown]
# Try other threads and widths: `views.accumulators(n=8, thread=127)`.
#
# ## 4. The life of a product
#
# `wgmma` is asynchronous: a warp issues it and goes on, while the tensor core reads shared memory
# and writes registers *of that warp*. Four steps keep that in order:
#
# 1. `wgmma.fence`: what the threads did to these registers comes first.
# 2. `wgmma.mma_async`, several.
# 3. `wgmma.commit_group`: those since the last commit are a group.
# 4. `wgmma.wait_group N`: wait until at most N groups are unfinished.
#
# This is one step along k, by warpgroup 0, as CTA 0 saw it:

# %%
for event in wgmma.events:
    of_wgmma = event.kind.startswith("wgmma") and event.agent == "warpgroup 0"
    if of_wgmma or event.kind in ("barrier", "phase"):
        line = str(event.location).split("called at ")[-1]
        print(f"{event.step:>3}  {event.agent:<16} {event.kind:<14} {event.detail:<34} {line}")
    if event.step > 15:
        break

# %% [markdown]
# Issued at steps 9 to 12, retired together at 14, when the wait asks for it. That is the schedule
# `"late"`: nothing is finished before somebody insists.
#
# `keep_in_order` in `compute` is no instruction. To the compiler an accumulator is a variable like
# any other; without the hint it may move a read of it above the wait.
#
# Now take the steps away, one at a time. **Guess** for each: right or wrong? First, **no
# `wgmma.fence`**.

# %%
d = attempt("  wgmma_fence();", "")

# %% [markdown]
# Right, and still a bug: the threads had just zeroed the accumulators, and nothing orders that
# before the product.
#
# **No wait.** The accumulators are read while products may be in flight. Until a product is
# retired, the emulator's schedule `"late"` keeps a NaN in its registers. Would it help if the
# tensor core were infinitely fast (`"early"`)?

# %%
WAIT = "    wgmma_wait_group<0>();\n"
late = attempt(WAIT, "", shown=2)
print()
early = attempt(WAIT, "", schedule="early", shown=0)

# %% [markdown]
# Two hazards: registers read too early, and the *shared memory* of a product in flight (the "slot")
# overwritten by the next tile. The compiler noticed the first and injected a wait for it: it sees
# who uses registers. The second goes through memory, which it does not follow.
#
# The registers are needed only behind the loop. So is one wait **behind the loop** enough?
# **Guess**, then run:

# %%
moved = views.edited("s04_wgmma", WAIT, "")
behind = attempt("  write(shared", "  wgmma_wait_group<0>();\n  write(shared", stage=moved)
views.mismatches({"no wait, late": late, "no wait, early": early,
                  "wait behind the loop, late": behind}, right)

# %% [markdown]
# No NaN: the registers are in order, the numbers are plausible, and wrong. The products were
# computed at the end, from what the buffer held then.
#
# **No commit**, and **no barrier** after the wait. With the second, warpgroup 0 knows only that
# *its own* products are done. **Guess** who is hurt.

# %%
d = attempt("  wgmma_commit_group();", "")
print()
d = attempt("__syncthreads();  // all threads arrive when their products", ";  //")

# %% [markdown]
# Without a commit there is no group, so the wait waits for nothing. Without the barrier thread 0,
# in warpgroup 0, loads over the tiles that warpgroup 1 still multiplies. (The "empty barrier" of
# its advice comes in lesson 06.)
#
# **No proxy fence.** The tensor core reads through the async proxy, as TMA does. Yet the kernel has
# a single `fence_proxy_async`, at the end. **Guess** why the products need none, and what its
# absence breaks.

# %%
d = attempt("  fence_proxy_async();", "")

# %% [markdown]
# Tiles that TMA wrote are already in the async proxy; only threads' own stores need the fence, and
# those are the result's.
#
# ## 5. The tensor core's arithmetic, a first look
#
# s03 and s04 got the same numbers to multiply. Are their results the same?

# %%
exact = quantize.reference(a, b)
for name, d in (("s03, FP32 FMAs", d_tma), ("s04, tensor core", right)):
    print(f"{name:<17} relative error {(d.double() - exact).norm() / exact.norm():.3e}")
print(f"{int((d_tma != right).sum()):,} of {right.numel():,} elements differ")

# %% [markdown]
# Most of both errors is the rounding of d to BF16. But the sums differ. `tensor_core.wgmma` is the
# arithmetic alone: 64 x 32 by N x 32, as a Hopper GPU does it. Make one element by hand: one large
# product, and 31 ones.
#
# **Guess** the three sums. FP32, with its 24 bits, has every one of them exactly.

# %%
def element(x, y):  # the first element of one instruction, and the same in float64
    left, other = torch.zeros(64, 32), torch.zeros(8, 32)
    left[0], other[0] = torch.tensor(x), torch.tensor(y)
    left, other = left.to(torch.float8_e4m3fn), other.to(torch.float8_e4m3fn)
    exact = left.double() @ other.double().T
    return tensor_core.wgmma(left, other)[0, 0].item(), exact[0, 0].item()


ones = [1.0] * 31
for power, large in ((12, 32.0), (13, 64.0), (14, 128.0)):
    got, true = element([128.0, *ones], [large, *ones])
    print(f"2^{power} + 31 ones: tensor core {got:>7,.0f}   float64 {true:>7,.0f}")

# %% [markdown]
# At 2^14 all of the ones are gone. The tensor core does not add one after the other. It shifts all
# 32 products, and the accumulator, to the largest exponent among them, **cuts off** what lies below
# its 14th bit, and adds the rest.

# %%
views.alignment([128.0, *ones], [64.0, *ones])

# %%
views.alignment([128.0, *ones], [128.0, *ones])

# %% [markdown]
# **Guess** before you run: 2^14 plus 31 *threes*? And which of these changes the sum: the order of
# products within one instruction, or the order of two instructions?

# %%
views.alignment([128.0, *[3.0] * 31], [128.0, *ones])

# %%
step_large = torch.zeros(64, 32)
step_large[:, 0] = 128
step_ones, both = torch.ones(64, 32), {}
both["large first"] = torch.cat([step_large, step_ones], 1)
both["ones first"] = torch.cat([step_ones, step_large], 1)
both["ones first, shuffled"] = both["ones first"].reshape(64, 2, 32).flip(2).reshape(64, 64)
for name, x in both.items():
    x = x.to(torch.float8_e4m3fn)
    print(f"{name:<21} {tensor_core.wgmma(x, x[:8])[0, 0]:>8,.0f}   float64 "
          f"{(x.double() @ x[:8].double().T)[0, 0]:>8,.0f}")

# %% [markdown]
# Order within an instruction does not matter: alignment sees them all at once. Order of
# instructions does. Small sums should meet before a large one comes.
#
# A sum of ones, then, must stop growing somewhere. **Guess** where.

# %%
for k in (4096, 8192, 16384, 16416, 32768):
    x = torch.ones(64, k).to(torch.float8_e4m3fn)
    print(f"{k:>6,} ones: {tensor_core.wgmma(x, x[:8])[0, 0]:>8,.0f}")

# %% [markdown]
# From 16,384 on each further one is below the 14th bit. Lesson 06 measures the error on real data,
# 07 repairs it. Try your own: `views.alignment([3.5, 0.25], [2.0, 0.0625], c=-1000.0)`.
#
# ## 6. How wide?
#
# N goes from 8 to 256 in steps of 8. An instruction reads (64 + N) x 32 bytes for 64 x N x 32
# products. **Guess:** from which N on does computing take longer than reading? (At the datasheet's
# 4,096 products a cycle and SM, and 128 bytes a cycle, as the emulator's model has it.)

# %%
views.wgmma_widths()

# %% [markdown]
# From 64 on. A narrow instruction starves: at N = 8 it needs 0.14 bytes a product. And s03? Divide
# its bytes from shared memory by its products. Now real kernels, with tiles of 64 x N:

# %%
print(f"s03: {tma.counters['shared_load_bytes'] / (128 * 128 * 384):.2f} bytes a product, "
      "loaded by threads\n")
x = quantize.quantize(quantize.activations(64, 512))
y = quantize.quantize(quantize.weights(256, 512))
print(f"{'N':>4} {'wgmma':>6} {'bytes a product':>16} {'bytes by TMA':>13} "
      f"{'registers a thread':>19}")
for n in (8, 32, 64, 128, 256):
    shape = s04_wgmma.Config(block_m=64, block_n=n)
    with minigemm.observe(hazards=False) as seen:
        s04_wgmma.gemm(x, y, shape)
    count = seen[0].counters["wgmma"]
    read = count * (64 + n) * 32 / (64 * 256 * 512)
    loaded = seen[0].counters["tma_load_bytes"]
    print(f"{n:>4} {count:>6,} {read:>16.3f} {loaded:>13,} "
          f"{minigemm.inspect(s04_wgmma, shape).registers:>19}")

# %% [markdown]
# Wide tiles save bytes twice: from shared memory, and through TMA. They cost registers, N / 2
# accumulators a thread. What is not legal says so:

# %%
for shape in (s04_wgmma.Config(block_m=128, block_n=100), s04_wgmma.Config(block_m=96, block_n=64)):
    try:
        s04_wgmma.gemm(x, y, shape)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## 7. What limits it
#
# The tensor core is fast. Is it busy? The emulator can run a CTA by a cycle model: stated rates for
# TMA, the tensor core and instructions. It is no measurement, but it shows who waits for whom.
#
# **Guess** the share of the time in which the tensor core works.

# %%
long_a = quantize.quantize(quantize.activations(128, 1024), "tensor")
long_b = quantize.quantize(quantize.weights(128, 1024), "tensor")
with minigemm.observe(timeline=True) as seen:
    s04_wgmma.gemm(long_a, long_b, s04_wgmma.Config(block_m=128, block_n=128))
views.timeline(seen[0], title="s04, a tile of 128 x 128, k = 1024")

# %% [markdown]
# A quarter. There is one buffer: while TMA fills it, the tensor core has nothing to multiply; while
# the tensor core reads it, TMA may not write. They take turns, and a turn begins with TMA's whole
# latency.
#
# **Guess:** which helps more, a tensor core that is twice as fast, or TMA that is?

# %%
fast = {
    "as it is": emulator.Rates(),
    "tensor core twice as fast": emulator.Rates(products=8192, shared_bandwidth=256),
    "TMA twice as fast": emulator.Rates(tma_latency=300, tma_bandwidth=96.0),
}
for name, rates in fast.items():
    with minigemm.observe(timeline=rates, hazards=False) as seen:
        s04_wgmma.gemm(long_a, long_b, s04_wgmma.Config(block_m=128, block_n=128))
    line = seen[0].timeline
    print(f"{name:<26} {line.end:>7,.0f} cycles of the model, "
          f"tensor core busy {line.share('busy', 'tensor core'):.0%}")

# %% [markdown]
# Neither can be had. A second buffer can, so that both work at once: that is lesson 05.
#
# And on a GPU? There several CTAs share an SM, and hide a part of each other's waiting. What has
# been recorded, for s03 and for s04:

# %%
views.recorded("s03_tma")

# %%
views.recorded("s04_wgmma")

# %% [markdown]
# The same call, wherever you are:

# %%
d = s04_wgmma.gemm(a.to(device), b.to(device), config)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")

# %% [markdown]
# ## Recap
#
# - A **warpgroup**, four warps, issues `wgmma.m64nNk32`: 64 x N x 32 multiply-adds, operands from
#   shared memory, sums in its registers.
# - A **descriptor** is 64 bits: start, stride from 8 rows to the next 8, swizzle. It must name the
#   swizzle that TMA used. 32 columns further on is the start field plus 2.
# - Lane l of a warp holds pairs in rows l / 4 and l / 4 + 8, at column 2 (l % 4) of every 8.
# - **Fence, issue, commit, wait.** Before the wait neither the accumulators nor the operands'
#   shared memory may be touched; after it, other warpgroups may still be at work: hence the
#   barrier.
# - Products and accumulator are aligned to the largest exponent and cut off at **14 bits**.
# - N of 64 or more keeps the tensor core from starving on shared memory; wide tiles save TMA
#   traffic too.
# - With one buffer, load and compute take turns.
#
# ## Quiz
#
# **1.** A CTA has 192 threads. How many warpgroups are in it, and what if warps 4 and 5 execute
# `wgmma`?
#
# <details><summary>Answer</summary>
# One whole warpgroup, warps 0 to 3. Warps 4 and 5 belong to no complete one: `wgmma` needs all four
# warps, with all their lanes. The emulator faults.
# </details>
#
# **2.** Where does the descriptor of warpgroup 1 for b differ from that of warpgroup 0?
#
# <details><summary>Answer</summary>
# Nowhere. Both multiply their own 64 rows of a by the same rows of b.
# </details>
#
# **3.** Thread 0 holds element (0, 0). Which thread holds (63, 7), and in which register?
#
# <details><summary>Answer</summary>
# Row 63 is row 15 of warp 3: 8 below row 7, so l / 4 = 7. Column 7 is the second of a pair, at 6: l
# % 4 = 3. Lane 31 of warp 3, thread 127, register 3.
# </details>
#
# **4.** Nothing touches the accumulators between two steps along k. Why not one `wgmma_fence()`,
# before the loop?
#
# <details><summary>Answer</summary>
# PTX asks for a fence before the first product, and wherever ordinary code has touched the
# registers since. One would do, if it really came behind the zeroing of `acc`. But the compiler
# decides where it zeroes, and may do it later: try it, and the emulator finds that it does.
# `keep_in_order(acc)` just before the fence pins the order, and a fence costs little.
# </details>
#
# **5.** 2^15 plus 31 times 7, in one instruction: what does the tensor core give?
#
# <details><summary>Answer</summary>
# The lowest bit that is kept is 2^(15 - 13) = 4. Each 7 becomes 4: 32,768 + 124 = 32,892. Exact
# would be 32,985.
# </details>
#
# ## Exercises
#
# **1. Break it.** Start a's descriptor at the wrong half: replace `shared.a[row]` by `shared.a[0]`
# with `attempt`. Which rows of d are wrong? Predict, then draw it with `views.mismatches`.
#
# <details><summary>Hint</summary>
# Both warpgroups multiply the same 64 rows of a, and each writes its own 64 rows of d.
# </details>
#
# **2. Change it.** `compute` accumulates always (its last argument is `true`) and the kernel zeroes
# `acc` first. Let the first product of the first step overwrite instead. What becomes of the fence
# hazard when you then remove the fence?
#
# <details><summary>Hint</summary>
# `wgmma_mma_async(..., k0 > 0 || k > 0)`, with `k0` handed to `compute`: three edits with
# `views.edited`, each starting from the path that the one before gave; then
# `attempt(..., stage=path)`. The bits stay the same. So does the hazard: PTX wants a fence before
# the first product, whatever happened before.
# </details>
#
# **3. Change it.** Descend along k within a tile: products of `BLOCK_K - kDepth` first, 0 last. Are
# the bits of the result the same? Compare with `right`, and explain with section 5.
#
# <details><summary>Hint</summary>
# Replace `for (int k = 0; k < BLOCK_K; k += kDepth)` by a loop that runs down. The order of
# instructions matters to the sums; BF16 hides most of it.
# </details>
#
# **4. Break it.** Change an accumulator early: put `acc[0] += 1000.0f;` between
# `compute(acc, shared, row);` and the wait. Compare the schedules `"late"` and `"early"`. What do
# the emulator and the compiler say?
#
# <details><summary>Hint</summary>
# It is a write to a register that the tensor core writes, too. Late, the product comes last and the
# 1000 are lost; early, they stay. A GPU promises neither.
# </details>
#
# **5. Measure it.** Draw the timeline of tiles of 128 x 256, and one of 64 x 256. In which is the
# tensor core busier, and why?
#
# <details><summary>Hint</summary>
# With half the rows, each byte of b that TMA brings serves half the products.
# `views.waiting_for(report)` gives the shares as numbers.
# </details>
#
# ## Further reading
#
# - PTX ISA: [Asynchronous Warpgroup Level Matrix
#   Instructions](https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions),
#   with "Register Fragments and Shared Memory Matrix Layouts", "Matrix Descriptor Format", and
#   `wgmma.fence`, `wgmma.commit_group`, `wgmma.wait_group`.
# - CUDA C++ Programming Guide: "Asynchronous Barrier" and "Asynchronous Data Copies", for the
#   copies that feed it.
# - M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh, *Numerical behavior of NVIDIA tensor cores*,
#   PeerJ Computer Science, 2021: how such units align and cut.
# - NVIDIA, *H100 Tensor Core GPU Architecture* (white paper): the rates of the fourth-generation
#   tensor core.
#
# **Next:** [05_pipelined.ipynb](05_pipelined.ipynb), a ring of buffers: TMA fills some while the
# tensor core reads another.
