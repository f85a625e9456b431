# %% [markdown]
# # 08 Persistent: a CTA for each SM, and tiles in an order of our own
#
# **You will be able to**
# - say what an SM does between two tiles, and what of it a persistent kernel hides;
# - carry slots and phases from one tile to the next, and let TMA store a tile behind the next one's
#   products;
# - count waves, and see from a problem and a tile how many SMs are left without work at the end;
# - choose the order of the tiles, and count the bytes that a wave brings through L2;
# - find the mistakes that only a second tile shows.
#
# **You need to know** lessons 06 and 07: the producer, the consumers, the ring of slots and its two
# barriers, promotion.
#
# **Time:** 50 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 05, a ring of slots; 06, roles; 07, FP32 sums and fine scales. **This lesson
# adds** no arithmetic: the bits stay those of s07. It adds a life beyond the first tile.
#
# **Where it lives:** `minigemm/kernels/s08_persistent.cu`, the kernel;
# `minigemm/kernels/scheduler.cuh`, the order of the tiles; `minigemm/kernels/s08_persistent.py`,
# its launch.

# %%
import minigemm
import torch
from minigemm import quantize, views
from minigemm.kernels import s07_promoted, s08_persistent

device = views.device()

# %% [markdown]
# ## 1. Between two tiles
#
# A CTA of s07 computes one tile and ends. With 227 KiB of shared memory an SM has room for one such
# CTA, so the next one starts when it has ended. Here an SM has three tiles of 256 x 128 to compute,
# by s07 with three CTAs, by s08 with one. **Guess** before you look: K is 768. What part of the
# time is the tensor core busy?

# %%
a = quantize.quantize(quantize.activations(256, 768), "1x128")
b = quantize.quantize(quantize.weights(3 * 128, 768), "128x128")
three = s08_persistent.Config(256, 128, stages=3, consumers=2, ctas=1)
with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
    s07_promoted.gemm(a, b, s07_promoted.Config(256, 128, stages=3, consumers=2))
    s08_persistent.gemm(a, b, three)
one_by_one, persistent = views.in_turn(seen[0], 3), seen[1]
views.timeline({"s07, three CTAs in turn": one_by_one, "s08, one CTA": persistent})

# %% [markdown]
# Look at the row of the tensor core. In s07 two things stand between the last product of a tile and
# the first of the next: the way out (convert, write, store, wait until TMA has read) and the way in
# (barriers, the first bytes' latency).
#
# In s08 both are still there, once: at the beginning and at the end of the kernel. Between tiles
# the producer has fetched the next tile's first steps while the consumers were still writing, and
# the brown bars of the store lie *under* green ones. In numbers:

# %%
from itertools import pairwise

for name, report in (("s07", one_by_one), ("s08", persistent)):
    line = report.timeline
    products = sorted((i.start, i.end) for i in line.intervals if i.agent == "tensor core")
    gaps = [after[0] - before[1] for before, after in pairwise(products)]
    stores = views.waiting_for(report, "warp 0").get("a TMA store", 0) * line.end
    print(f"{name}: {line.end:,.0f} cycles, "
          f"tensor core busy {line.share('busy', 'tensor core'):.0%}, its largest gaps")
    print(f"     {', '.join(f'{gap:,.0f}' for gap in sorted(gaps)[-2:])}; "
          f"warp 0 waits {stores:,.0f} for stores")

# %% [markdown]
# Some gap is left: while the consumers convert their sums and write them to shared memory, nobody
# multiplies. The model is kind to s07, too: it charges nothing for ending a CTA and starting
# another.
#
# And measured, by `python -m minigemm trace s08_persistent`: one CTA's two tiles, in a real launch.

# %%
views.recorded_timeline("s08_persistent")

# %% [markdown]
# The trace sees a store end when somebody waits for it: these brown bars are the longest that they
# can be. The build with clocks took half as long again as the plain one here, where products are
# short, so read order, not speed.
#
# ## 2. The change
#
# It is small. A loop over tiles in each role; `stage` and `phase` outside of it; the wait for the
# store moved to where its shared memory is needed again.

# %%
views.diff("s07_promoted", "s08_persistent", context=1)

# %% [markdown]
# Producer and consumers never tell each other which tile they are at. Each has a `Scheduler` of its
# own, and both walk over the same numbers:

# %%
views.code("scheduler.cuh", "Scheduler", mark="gridDim")

# %% [markdown]
# CTA `c` of 132 computes the tiles `c`, `c + 132`, `c + 264` and so on: as fair as can be, and
# nobody has to ask. The launch has as many CTAs as the GPU has SMs, and never more than there are
# tiles. **Guess** the four grids:

# %%
from minigemm.types import Product


def grid(m, n, config):
    x, w = (torch.empty(rows, 128, dtype=torch.float8_e4m3fn) for rows in (m, n))
    x = quantize.Quantized(x, torch.ones(1, m).T, "1x128")
    w = quantize.Quantized(w, torch.ones((n + 127) // 128, 1), "128x128")
    d = torch.empty(m, n, dtype=torch.bfloat16)
    return s08_persistent.launch(x, w, d, Product(m, n, 128), config).grid[0]


for m, n, ctas in ((4096, 4096, 0), (4096, 2112, 0), (256, 2112, 0), (4096, 4096, 100)):
    tiles = -(-m // 256) * -(-n // 128)
    print(f"{m} x {n}, ctas = {ctas:>3}: {tiles} tiles, "
          f"{grid(m, n, s08_persistent.Config(ctas=ctas))} CTAs")

# %% [markdown]
# With `ctas=100`, 32 SMs stay free for other kernels, for communication between GPUs for example.
#
# **Slots and phases go on.** A tile of 5 steps on a ring of 3 slots ends in slot 1. **Guess:**
# where does the second tile begin, and which parity do the consumers wait for there?

# %%
import re

small = s08_persistent.Config(block_m=64, block_n=64, stages=3, consumers=1, ctas=1)
x = quantize.quantize(quantize.activations(64, 5 * 128), "1x128")
w = quantize.quantize(quantize.weights(3 * 64, 5 * 128), "128x128")
with minigemm.observe() as seen:
    right = s08_persistent.gemm(x, w, small)
loads = [int(re.search(r"on mbarrier (\d+)", e.detail)[1])
         for e in seen[0].events if e.kind == "tma load issued"]
# three loads a step: a, b, and the scales of a
slots = [(barrier - min(loads)) // 8 for barrier in loads[::3]]
for tile in range(3):
    steps = range(5 * tile, 5 * tile + 5)
    print(f"tile {tile}:", "  ".join(f"slot {slots[i]} parity {i // 3 % 2}" for i in steps))

# %% [markdown]
# In slot 2, with parity 1, for that slot is in its second round. The ring knows nothing of tiles.
# If each tile began anew in slot 0, with phase 0, the barriers would be in some other phase;
# section 6 tries it.
#
# ## 3. The store behind the next tile
#
# The tile of d has 64 KiB of shared memory to itself. TMA reads it while the next tile is computed.
# Only when the next one has to be *written* there must it have been read:

# %%
views.code("s08_persistent", "s08_persistent", mark="cp_async_bulk_wait_group_read")

# %% [markdown]
# One thread has issued the store, so only that thread can wait for it; the others learn of it at
# `bar_sync`. Two barriers, two messages: "the place is free", and "everything is written".
#
# What would it cost to wait at once? We put the wait right behind the store. **Guess** how much
# longer three tiles take.

# %%
STORE = "if (threadIdx.x % kWarpgroup == 0) store(d_map, shared, row0, column0, row);"
PATIENT = STORE.replace("row);", "row), cp_async_bulk_wait_group_read<0>();")
patient = views.edited("s08_persistent", STORE, PATIENT)
with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
    s08_persistent.gemm(a, b, three, source=patient)
views.timeline({"waits when it must": persistent, "waits at once": seen[0]})

# %% [markdown]
# In the second picture the whole warpgroup stands still (grey) until its thread 0 has seen the tile
# leave. No test of results would complain. The price of hiding the store: d has its own shared
# memory; a kernel of one tile could have laid it over the ring.
#
# ## 4. Waves, and the last one
#
# 132 SMs compute 132 tiles at a time: a **wave**. If the last one is not full, SMs stand idle.
# **Guess** which of these tiles is the quickest for 4096 x 2112, a layer of DeepSeek-V3; 256 x 128
# needs the fewest bytes.

# %%
blocks = {
    "256 x 128": s08_persistent.Config(256, 128, 3, 2),
    "192 x 128": s08_persistent.Config(192, 128, 4, 3),
    "128 x 192": s08_persistent.Config(128, 192, 4, 2),
    "128 x 128": s08_persistent.Config(128, 128, 5, 2),
}
views.waves(4096, 2112, 7168, blocks)

# %% [markdown]
# The picture is drawn from the walk of `scheduler.cuh`: a small kernel on the emulator wrote down
# every CTA's tiles. 272 tiles are two waves and 8 tiles. For these 8, 124 SMs wait as long as a
# whole wave takes. The smaller tile wins.
#
# Against the number of rows, this gives a saw. Each tooth is a wave that has just been filled.

# %%
views.tail(2112, {name: blocks[name] for name in ("256 x 128", "192 x 128", "128 x 128")},
           range(64, 8193, 64))

# %% [markdown]
# No tile is the best for all m. `default_config` counts the waves of a few tiles, with a rough
# price for bytes. The library's own choice, in `minigemm/plan/cost.py`, knows more tiles, and for
# each a pace that was measured on a GPU.

# %%
for m in (64, 512, 2048, 4096, 8192):
    chosen = s08_persistent.default_config(Product(m, 2112, 7168))
    tiles = -(-m // chosen.block_m) * -(-2112 // chosen.block_n)
    print(f"m = {m:>5,}: {chosen.block_m:>3} x {chosen.block_n}, {tiles:>3} tiles, "
          f"{tiles / 132:.2f} waves")

# %% [markdown]
# ## 5. The order of the tiles
#
# At any time the SMs work on about 132 tiles with neighbouring numbers. Tiles in a row of d share
# their rows of a, those in a column their rows of b. What one SM has just brought into the L2
# cache, another finds there. So: which shape should a wave have on d? **Guess**, for 16 x 192
# tiles.

# %%
wide = (4096, 24576, 1536)
orders = {
    "raster = 192, row by row": s08_persistent.Config(raster=192),
    "raster = 1, column by column": s08_persistent.Config(raster=1),
    "raster = 16, the default": s08_persistent.Config(),
    "raster = 8, raster_m": s08_persistent.Config(raster=8, raster_m=True),
}
picture = views.raster(*wide, orders, wave=4)
print(picture)
picture

# %% [markdown]
# Whatever the order, the CTAs *ask* for the same bytes, those of 132 tiles. How many of them are
# *different* depends on the shape: a block about as wide as high, in elements, needs the fewest.
# Row by row, a wave needs most of b, and the next row needs it again.
#
# The formula that does it, and its cost: a few integer divisions a tile.

# %%
views.code("scheduler.cuh", "raster", mark="width")

# %% [markdown]
# Which width is the best? **Guess** the two ends of each line first: what is a band of one column,
# and of one row?

# %%
picture = views.raster_traffic(*wide, s08_persistent.Config(),
                               widths=(1, 2, 4, 8, 16, 32, 64, 128, 192))
print(picture)
picture

# %% [markdown]
# A band of one row is the row-by-row order, a band of one column the other. Wider than d is high,
# bands of rows are just columns. Between them many widths are nearly as good. What this is worth
# in time depends on the L2 cache (50 MB on an H100), which the emulator does not model: only a
# measurement can say. The order changes no bit of d:

# %%
with minigemm.observe(hazards=False):
    results = [
        s08_persistent.gemm(
            x, w, s08_persistent.Config(64, 64, 3, 1, ctas=2, raster=raster, raster_m=raster_m))
        for raster, raster_m in ((1, False), (2, False), (16, False), (2, True))
    ]
print("the same bits:", all(torch.equal(result, right) for result in results))

# %% [markdown]
# **An order of your own.** `#include "scheduler.cuh"` takes the file beside the kernel, if there is
# one. Here every other row of a band runs backwards. **Guess** for which of the four orders that
# saves bytes.

# %%
from pathlib import Path

import minigemm.kernels

text = (Path(minigemm.kernels.__file__).parent / "scheduler.cuh").read_text()
STRAIGHT = "return RASTER_M ? Tile{x, y} : Tile{y, x};"
SNAKE = ("const int s = y % 2 ? 2 * first + width - 1 - x : x;\n"
         "  return RASTER_M ? Tile{s, y} : Tile{y, s};")
assert STRAIGHT in text
# a copy, in a folder of its own
kernel = views.edited("s08_persistent", "#pragma unroll", "#pragma unroll")
mine = kernel.with_name("scheduler.cuh")
mine.write_text(text.replace(STRAIGHT, SNAKE))
print("the same bits:", torch.equal(s08_persistent.gemm(x, w, small, source=kernel), right))
views.raster(*wide, {name: orders[name] for name in list(orders)[:3]}, wave=4, scheduler=mine)

# %% [markdown]
# Only for the first, and only where a wave turns: its two rows now share columns. Within a compact
# block there is no long way back that one could save.
#
# ## 6. Break it
#
# What is new is what happens *between* tiles. So all of these kernels are right when a CTA has one
# tile. `attempt` edits a copy of the stage and runs it with three tiles for one CTA.

# %%
import textwrap
import warnings

from minigemm import emulator


def attempt(old, new, schedule="late", shown=1, ctas=1):
    config = s08_persistent.Config(64, 64, 3, 1, ctas=ctas)
    source = views.edited("s08_persistent", old, new)
    with minigemm.observe(schedule=schedule) as runs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's; read them once without this line
        try:
            result = s08_persistent.gemm(x, w, config, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in runs[0].hazards)) or "none"
            word = "right" if torch.equal(result, right) else "WRONG"
            said = [f"{schedule}: result {word}; hazards: {kinds}",
                    *map(str, runs[0].hazards[:shown])]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    text = re.sub(r"(?<!s08_persistent\.)\b(ptx\.cuh|prelude):\d+, called at ", "", "\n".join(said))
    for line in text.splitlines():
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))


# %% [markdown]
# **Forget the wait** before d is overwritten. **Guess:** does the result show it? In which
# schedule?

# %%
FREE = "      if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();\n"
for schedule in ("late", "early"):
    attempt(FREE, "", schedule=schedule, shown=schedule == "late")
attempt(FREE, "", shown=0, ctas=3)

# %% [markdown]
# "late" lets TMA read as late as it may, and tile 0 gets the numbers of a later tile. "early" hides
# it, as a quiet GPU would. The last run has a CTA for each tile: nothing to overwrite, nothing to
# find.
#
# **Keep the wait, forget to tell.** Thread 0 waits, but the barrier behind it is gone.

# %%
attempt("      bar_sync(1 + warpgroup, kWarpgroup);"
        "  // this consumer's threads wait until thread 0 knows\n", "")

# %% [markdown]
# A wait binds the thread that waits. The other three warps write when they like.
#
# **Begin each tile in slot 0** in the consumers, while the producer goes on.

# %%
attempt("    float acc[kWaves][BLOCK_N / 2] = {};",
        "    stage = 0, phase = 0; float acc[kWaves][BLOCK_N / 2] = {};")

# %% [markdown]
# With 6 steps a tile it would pass: two rounds bring the ring back to slot 0 and parity 0. A test
# with such a K would not find it.
#
# **Walk apart.** The consumers take every other tile. **Guess** the symptom: wrong numbers, or
# silence?

# %%
attempt("    const int row0 = tile.m * BLOCK_M, column0",
        "    scheduler.next(tile);\n    const int row0 = tile.m * BLOCK_M, column0")

# %% [markdown]
# Silence. The consumers have multiplied tile 0's slots, stored them as tile 1, found no further
# tile and gone. The producer still waits for slots that nobody hands back. The roles agree on
# nothing but the order of slots.
#
# **Leave early**, without the wait at the very end. Shared memory then goes to the next CTA while
# TMA still reads it.

# %%
LAST = "\n  if (threadIdx.x % kWarpgroup == 0) cp_async_bulk_wait_group_read<0>();"
attempt(LAST, "")

# %% [markdown]
# ## 7. On hardware
#
# What was recorded on a GPU, with the machine that gave it. Compare rows of the same size.

# %%
views.recorded("s07_promoted")

# %%
views.recorded("s08_persistent")

# %% [markdown]
# The same call, wherever you are:

# %%
d = s08_persistent.gemm(x.to(device), w.to(device), s08_persistent.Config(64, 64, 3, 1))
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")
before = s07_promoted.gemm(x, w, s07_promoted.Config(64, 64, 3, 1))
print("and those of s07:", torch.equal(before, right))

# %% [markdown]
# ## Recap
#
# - A **persistent** kernel has a CTA for each SM, and each computes every 132nd tile. Starting,
#   waiting for the first bytes and the last store happen once a kernel, not once a tile.
# - Slots and phases go on from tile to tile. Both roles walk over the same tiles, each by itself.
# - TMA stores d behind the next tile's main loop. The wait stands where its shared memory is needed
#   again, and a barrier tells the threads that did not wait.
# - The last **wave** is seldom full. Smaller tiles leave less idle, and cost more bytes.
# - The order of the tiles is free, and changes no bit. A wave that is about as wide as high needs
#   the fewest different bytes of a and b.
# - Give a test several tiles for each CTA, and a K that does not end with the ring.
#
# ## Quiz
#
# **1.** The grid has 132 CTAs and d has 272 tiles. How many tiles does CTA 5 compute, and how many
# CTA 100?
#
# <details><summary>Answer</summary>
# Tiles 5, 137 and 269 for CTA 5: three. Tiles 100 and 232 for CTA 100: two; 364 does not exist.
# </details>
#
# **2.** Why may the producer return while the consumers still work, and why must thread 0 of a
# consumer not?
#
# <details><summary>Answer</summary>
# The consumers wait on barriers for what the producer has asked for, and need nothing else from it.
# A store that TMA has not read yet needs the CTA's shared memory, which ends with its last thread;
# only the thread that issued it can wait.
# </details>
#
# **3.** `wait_group.read` instead of `wait_group`: what has happened when it returns, and why is
# that enough here?
#
# <details><summary>Answer</summary>
# TMA has read shared memory; the bytes need not be visible in d yet. The place may be overwritten,
# and that is all the next tile asks. At the end of the kernel everything becomes visible anyway.
# </details>
#
# **4.** 4096 x 7168 with tiles of 256 x 128: how many waves? Would 132 x 7 tiles be better or
# worse?
#
# <details><summary>Answer</summary>
# 16 x 56 = 896 tiles, 6.79 waves, so 7. With 924 tiles the seventh would be full: the same time for
# 3% more work.
# </details>
#
# **5.** With `raster = 16`, tiles of 256 x 128 and 132 SMs, how high and wide is a wave, in
# elements of d?
#
# <details><summary>Answer</summary>
# 16 columns of tiles are 2048 wide; 132 / 16 = 8.25 rows of tiles are 2112 high. That is why 16 is
# the default.
# </details>
#
# ## Exercises
#
# **1. Break it.** Swap the two lines in front of `write`: first `bar_sync`, then the wait. What
# does the emulator say, and why is it the same bug as one in section 6?
#
# <details><summary>Hint</summary>
# Edit with both lines in `old`. After the barrier only thread 0 goes on to wait.
# </details>
#
# **2. Change it.** Give d two places in shared memory and use them in turn, so that a store may
# last two tiles. Which wait do you need now?
#
# <details><summary>Hint</summary>
# <code>cp_async_bulk_wait_group_read&lt;1&gt;</code> leaves the newest store in flight. Make room
# first: a ring of <code>kStages = STAGES - 1</code> slots, and <code>&lt;=</code> in the
# static_assert on the size of Shared.
# </details>
#
# **3. Change it.** Write an order in which CTA c computes neighbouring tiles, <code>c * each</code>
# to <code>c * each + each - 1</code>. Draw a wave with `views.raster(..., scheduler=mine)`. What
# happens to the bytes, and why?
#
# <details><summary>Hint</summary>
# Only `Scheduler` changes, not `raster`. At one time the CTAs are now spread over all of d. What is
# reused is reused by the CTA itself, one tile later, when shared memory has long forgotten it.
# </details>
#
# **4. Measure it.** For which K is the time between two tiles a tenth of s07's? Run section 1 with
# K = 256, 512, 1024, 2048 and plot `timeline.end` of both.
#
# <details><summary>Hint</summary>
# The way in and out does not depend on K. Two runs of s07 give its size: the end at K = 0, by a
# straight line.
# </details>
#
# **5. Think.** Eight tiles of the third wave in section 4 keep 8 SMs busy, with K = 7168. How could
# the other 124 help with these eight?
#
# <details><summary>Hint</summary>
# A tile can also be cut along k. The parts must then be added up, in a fixed order if the bits are
# to stay the same from run to run. Lesson 11 says what became of it.
# </details>
#
# ## Further reading
#
# - CUTLASS documentation, "Efficient GEMM in CUDA": "Persistent kernels", "Threadblock
#   rasterization".
# - PTX ISA:
#   [cp.async.bulk.wait_group](https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-wait-group),
#   and `.read`.
# - M. Osama, D. Merrill et al., *Stream-K: Work-centric Parallel Decomposition for Dense
#   Matrix-Matrix Multiplication on the GPU* (PPoPP 2023, arXiv 2301.03598): what to do about the
#   last wave.
#
# **Next:** [09 multicast](09_multicast.ipynb): clusters, where two CTAs share what TMA brings.
