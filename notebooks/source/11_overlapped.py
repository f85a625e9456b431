# %% [markdown]
# # 11 Overlapped: no role waits where it could work
#
# **You will be able to**
# - find in a timeline what the tensor core waits for, and in SASS what a consumer does meanwhile;
# - let another warp bring what the consumers need, through the ring;
# - keep one product under way while the last one is promoted, where registers allow it;
# - recognize in SASS that the compiler does not know that one thread comes;
# - say which bytes may leave the L2 cache first, and what only a measurement can decide.
#
# **You need to know** lesson 06, the ring and its two barriers; lesson 07, promotion; lesson 10,
# parts, and the warp that finds them.
#
# **Time:** 45 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 08, a CTA for each SM; 10, groups. **This lesson adds** no arithmetic and no
# layout: the bits stay those of s10. It removes waiting, in four ways. The result is the library's
# kernel for many rows; lesson 12 builds the one for few.
#
# **Where it lives:** `minigemm/kernels/s11_overlapped.cu`, the kernel; `minigemm/kernels/tile.cuh`,
# its ring, and how its roles get their parts; `minigemm/kernels/s11_overlapped.py`, its config.

# %%
from collections import Counter
from dataclasses import replace

import minigemm
import torch
from minigemm import emulator, quantize, views
from minigemm.kernels import s10_grouped, s11_overlapped

device = views.device()

# %% [markdown]
# ## 1. Who waits for whom?
#
# The tensor core computes only what a consumer has issued. One tile of 64 x 128, one consumer,
# eight k-steps, s10 above and s11 below. We let the model's TMA bring bytes faster than a GPU's, so
# that nobody waits for memory. **Guess** before you look: what share of the time is the tensor core
# busy in s10?

# %%
a = quantize.quantize(quantize.activations(64, 1024), "1x128")
b = quantize.quantize(quantize.weights(128, 1024), "128x128")
tile = {"block_m": 64, "block_n": 128, "stages": 6, "consumers": 1}
quick = emulator.Rates(tma_bandwidth=128)
with minigemm.observe(timeline=quick, hazards=False) as seen:
    before = s10_grouped.gemm(a, b, s10_grouped.Config(**tile))
    after = s11_overlapped.gemm(a, b, s11_overlapped.Config(**tile))
print("the same bits:", torch.equal(before, after))
s10, s11 = seen
views.timeline({"s10_grouped": s10, "s11_overlapped": s11})

# %% [markdown]
# In s10 every product (green) is followed by a hole: the consumer promotes, reads scales, looks at
# the next barrier, builds descriptors. Then it issues the next product, and waits for it (pale
# green). The two never work at the same time.
#
# Two more things differ: how soon the first load is asked for, and how much the consumer itself
# does.

# %%
for name, report in (("s10", s10), ("s11", s11)):
    line = report.timeline
    first = {who: min(i.start for i in line.intervals if i.agent == who)
             for who in ("TMA", "tensor core")}
    waits = views.waiting_for(report, "warp 0").get("the tensor core", 0)
    print(f"{name}: {line.end:,.0f} cycles; first load at {first['TMA']:.0f}, first product at "
          f"{first['tensor core']:,.0f}; tensor core busy {line.share('busy', 'tensor core'):.0%}; "
          f"warp 0 waits for it {waits:.0%}")

# %% [markdown]
# The cycles are the model's: they say in which order things happen and who waits, not how fast a
# GPU is.
#
# ## 2. The scales of b come through the ring
#
# In s10 each consumer fetches 32 scales of b at a time, one in each lane, and in each k-step a
# shuffle hands one to all lanes. **Guess** how many of a step's instructions that costs. What stood
# in the loop, and what stands there now:

# %%
views.diff(
    views.excerpt("s10_grouped", "scale_b[i] = __shfl_sync(", "promote(acc[i]"),
    views.excerpt("s11_overlapped", "const auto issue = ", "promote(acc[wave]"),
    context=1)

# %% [markdown]
# The shuffle, the fetch and the question "is this the 32nd step?" are gone. The scale lies in the
# slot, as the scales of a do, and is read while the product is computed. A warp of the producer,
# which had nothing to do, writes it there:

# %%
views.code(views.excerpt("s11_overlapped", "if (warp % 4 == 2)", "mbarrier_arrive(&shared.full["),
           mark="mbarrier_arrive")

# %% [markdown]
# `full` now expects two arrivals: that of the loader, who also promises bytes, and that of the lane
# that has written the scale. The arrival orders its write before the consumers' reads, as `told`
# does in lesson 10. `wait_together` keeps the lanes in the same round. `follow` waits for the
# kernel before, where the launch has not (`minigemm.set_pdl`).
#
# Another saving hides in `compute`: it gets the lower half of a descriptor, kept in a register that
# all lanes share, and adds to it. s10 builds the descriptor anew. The SASS of a k-step, 64 rows and
# 128 columns:

# %%
OPCODES = ("QGMMA", "FFMA", "LDG", "SHFL", "LDS", "ULOP3", "ULEA", "UIADD3", "ISETP", "BRA")
for module in (s10_grouped, s11_overlapped):
    loop = views.loop(minigemm.inspect(module, module.Config(**tile)))
    counts = Counter(instruction.opcode for instruction in loop)
    steps = counts["QGMMA"] // 4  # in a pass: s11 does two
    shown = ", ".join(f"{counts[opcode] / steps:g} {opcode}" for opcode in OPCODES)
    print(f"{module.stage.name}: {len(loop) / steps:g} instructions a step\n    {shown}")

# %% [markdown]
# Half of them are the multiply-adds of the promotion, which nobody can save. What is saved is saved
# in the hole, where the tensor core waits. And the scales come from global memory once, for both
# consumers here. **Guess:** do all threads together execute fewer instructions now?

# %%
two = {"block_m": 128, "block_n": 128, "stages": 4, "consumers": 2}
rows = quantize.quantize(quantize.activations(128, 1024), "1x128")
with minigemm.observe(hazards=False, fast=True) as seen:
    s10_grouped.gemm(rows, b, s10_grouped.Config(**two))
    s11_overlapped.gemm(rows, b, s11_overlapped.Config(**two))
views.compare({"s10, two consumers": seen[0], "s11, two consumers": seen[1]})

# %% [markdown]
# They execute more: a warp that had nothing to do is at work, and the consumers read a scale from
# shared memory in each step. What counts is *who* works, and when.
#
# ## 3. Two partial sums
#
# The promotion of step k needs the product of step k, and nothing of step k + 1. So issue k + 1
# first, into *other registers*, then wait until at most **one** product is under way: then k is
# complete.

# %%
views.code(views.excerpt("s11_overlapped", "} else if (multiplied > 0) {", "finish(1, 0);"),
           mark="wait_group<1>")

# %% [markdown]
# The two sums have names, 0 and 1, and the loop makes two steps a pass: an index that changes at
# run time would push an array out of the registers.
#
# The same file compiles either way. One line takes the second sum away, and nothing else. **Guess**
# which share of the time it costs.

# %%
single = views.edited("s11_overlapped", '#include "ptx.cuh"',
                      '#define PARTIALS 1\n#include "ptx.cuh"')
with minigemm.observe(timeline=quick, hazards=False) as seen:
    alone = s11_overlapped.gemm(a, b, s11_overlapped.Config(**tile), source=single)
print("the same bits:", torch.equal(alone, after))
views.timeline({"one partial sum": seen[0], "two partial sums": s11})

# %% [markdown]
# Below, the green bars touch: while one product is computed, the last one is promoted. The order of
# the additions is the old one, so the bits are.
#
# With two consumers this is less urgent: while one promotes, the other's product is computed. That
# is why one consumer's tile gains most. And it needs registers: the sums, and two partial sums.

# %%
tiles = ((64, 64, 1), (64, 128, 1), (128, 128, 2), (128, 192, 2), (192, 128, 3), (256, 128, 2))
for m, n, consumers in tiles:
    config = s11_overlapped.Config(m, n, 3, consumers)
    sums, has = config.rows // 64 * n // 2, config.registers[1]
    print(f"{m:>3} x {n:<3} by {consumers}: {sums:>3} registers of sums, "
          f"{config.partials} x {n // 2} of partial sums, {has} in all")

# %% [markdown]
# ## 4. The thread that loads
#
# `cp.async.bulk.tensor` is an instruction for one thread. In SASS it takes its operands from
# registers that all lanes of a warp share. If the compiler does not *know* that one thread comes,
# it makes a loop that runs once for each lane that is there. `elect.sync` tells it. `threadIdx.x %
# 32 == 0` says the same to us, and not to the compiler. **Guess** the difference.

# %%
config = s11_overlapped.Config(**tile)
ROLE = "if (elect_sync()) {"
LANE_0 = "threadIdx.x % 32 == 0"
by_number = views.edited("s11_overlapped", ROLE, ROLE.replace("elect_sync()", LANE_0))
for name, source in (("elect_sync()", None), (LANE_0, by_number)):
    code = minigemm.inspect(s11_overlapped, config, source=source).instructions
    places = [i for i, each in enumerate(code) if each.opcode == "UTMALDG"]
    loops = sum("BRA.U.ANY" in each.text for each in code)
    print(f"{name}: {len(places)} loads, {loops} loops over lanes")
start = max(i for i in range(places[0]) if code[i].label)
end = next(i for i in range(start, len(code)) if "BRA.U.ANY" in code[i].text)
print(*(f"  {each.label:7} {each.text}" for each in code[start:end + 1]), sep="\n")

# %% [markdown]
# The last lines are such a loop: elect a lane, load for it, is another one there? It is right, and
# it costs time in front of every load. So the whole loop stands in one branch of an elected thread.
#
# The branch helps twice if the warp *returns* behind it, for then all that it computes may stay in
# the registers that lanes share. Otherwise it lies in ordinary ones, and `R2UR` copies it from
# there. The kernel without that `return` is still right. **Guess** how many copies it has.

# %%
RETURN = "      }\n      return;\n    }\n    if (warp % 4 == 1)"
goes_on = views.edited("s11_overlapped", RETURN, RETURN.replace("      return;\n", ""))
for name, source in (("the warp returns", None), ("the warp goes on", goes_on)):
    found = minigemm.inspect(s11_overlapped, config, source=source)
    print(f"{name}: {found.opcodes['R2UR']} R2UR in the kernel")

# %% [markdown]
# Most of them are executed in each k-step, by the one thread that all others wait for.
#
# That thread does more now. It initialises the barriers, **arrives** at a barrier of all roles
# without waiting there, and loads. And for one dense product it counts its tiles itself, where s10
# waited for the warp that finds parts:

# %%
views.code("tile.cuh", "Walk", mark="LAYOUT == DENSE")

# %% [markdown]
# In section 1 the first load is asked for sooner. That is worth most for a short product. Here the
# loader arrives; all other roles wait, with `barrier_sync`:

# %%
views.code(views.excerpt("s11_overlapped", "if (warp % 4 == 0) {", "barrier_arrive(0"),
           mark="barrier_arrive")

# %% [markdown]
# ## 5. Weights that leave first
#
# The L2 cache of an H100 holds 50 MB. A line that comes in pushes another one out. Which one, a
# copy can say beforehand, by a **policy**: `evict_first` lines leave before all others.
#
# Whose lines will nobody read again? Weights that one tile reads, and weights whose tiles all run
# at the same time. So for few rows the tiles of the same weights get neighbouring numbers:
# `raster_m`, lesson 08. **Guess** in which order fewer weights are read by two waves.

# %%
small = s11_overlapped.Config(64, 128, 6, 1)
orders = {
    "raster = 16: columns first": small,
    "raster = 8, raster_m: rows first": replace(small, raster=8, raster_m=True),
}
picture = views.raster(512, 12288, 4096, orders, wave=1)
print(picture)
picture

# %% [markdown]
# Columns first, a wave ends in the midst of 16 columns, and the next one reads their weights again.
# Rows first, it ends in the midst of one. So all readers of a weight are at work together, and the
# line may go. `Part.readers` says how many there are, and the loader makes the policy of it.
# In groups, readers need not run together: there only a single reader counts.

# %%
found = minigemm.inspect(s11_overlapped, small)
views.lowered(found, "row, full, policy);")  # in the loop; and early, with minigemm.set_pdl

# %% [markdown]
# A copy with a policy has one more operand (`desc`). The emulator checks that it was made by
# `createpolicy`, and has no L2: no count of ours shows the gain.
#
# ## 6. What was tried, and lost
#
# These were built, gave the right results, and were slower:
#
# - **clusters** of two CTAs with multicast, lesson 09: fewer bytes, but two CTAs in step;
# - **stream-K**: the last wave cut into equal runs of k-steps. Parts are added up through memory,
#   and CTAs at different k share no loads;
# - **a reduction through distributed shared memory**: a cluster splits k.

# %%
views.recorded_ideas(part="settled")

# %% [markdown]
# None of them is in the kernel. So no part of it splits k, every config adds up in the same order,
# and the bits of a row depend on nothing but that row and b.
#
# ## 7. Break it
#
# Six k-steps, a ring of three slots, one CTA with two tiles.

# %%
import re
import textwrap
import warnings

x = quantize.quantize(quantize.activations(64, 6 * 128), "1x128")
w = quantize.quantize(quantize.weights(2 * 64, 6 * 128), "128x128")
little = s11_overlapped.Config(64, 64, 3, 1, ctas=1)
right = s11_overlapped.gemm(x, w, little)


def attempt(old, new, schedule="late", kind=""):
    source = views.edited("s11_overlapped", old, new)
    with minigemm.observe(schedule=schedule) as runs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's; read them once without this line
        try:
            result = s11_overlapped.gemm(x, w, little, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in runs[0].hazards)) or "none"
            word = "right" if torch.equal(result, right) else "WRONG"
            said = [f"{schedule}: result {word}; hazards: {kinds}",
                    *[str(hazard) for hazard in runs[0].hazards if hazard.kind == kind][:1]]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    text = re.sub(r"(?<!s11_overlapped\.)\b(ptx\.cuh|prelude|tile\.cuh):\d+, called at ", "",
                  "\n".join(said))
    for line in text.splitlines()[:6]:
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))


# %% [markdown]
# **Forget the wait.** The second product is issued, and the first promoted at once. **Guess:** is
# the result wrong under both schedules?

# %%
ISSUED = "        issue(1, 0);\n        wgmma_wait_group<1>();"
attempt(ISSUED, "        issue(1, 0);", "late", "accumulator-in-flight")
attempt(ISSUED, "        issue(1, 0);", "early")

# %% [markdown]
# On a GPU it depends on who is quicker. The hazard names the line that reads the sum too early.
#
# **Count one arrival too few.** The loader arrives, and the slot's bytes are there. Are the scales
# of b?

# %%
TWO = "init(shared.full, shared.empty, 2,"
attempt(TWO, TWO.replace("2", "1"), kind="mbarrier")

# %% [markdown]
# **Announce before you write.** The lane arrives, then writes its scale.

# %%
WRITE = "for (int i = 0; i < kScales; ++i) shared.sfb[slot.stage][i] = scales[i];"
ARRIVE = "mbarrier_arrive(&shared.full[slot.stage]);"
attempt(f"{WRITE}\n            {ARRIVE}", f"{ARRIVE}\n            {WRITE}", kind="race")

# %% [markdown]
# ## 8. On hardware
#
# What each idea gains by itself, timed without it and with it:

# %%
views.recorded_ideas("s11_overlapped")

# %%
views.recorded("s11_overlapped")

# %% [markdown]
# The same call, wherever you are:

# %%
d = s11_overlapped.gemm(x.to(device), w.to(device), little)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")

# %% [markdown]
# ## Recap
#
# - The tensor core waits while its consumer does anything but issue products. Look at the hole
#   between two products, then make it short or fill it.
# - Scales of b come **through the ring**: a warp of the producer writes them, `full` expects one
#   arrival more, and consumers read them from shared memory.
# - **Two partial sums**: issue the next product, wait until one is left, promote the last. It takes
#   registers, and helps a CTA with one consumer most.
# - One **elected** thread runs the whole loop of the loads, and its warp returns behind it. It also
#   initialises the barriers, and arrives without waiting.
# - A **policy** lets weights leave L2 first that few tiles read, all at the same time.
# - Nothing splits k, so the bits are those of s10, whatever the config.
#
# ## Quiz
#
# **1.** Why does `full` expect two arrivals and not one more for each scale?
#
# <details><summary>Answer</summary>
# One lane writes all scales of a slot, at most two, and arrives once behind them. The arrival of
# the loader, which promises the bytes, is the other.
# </details>
#
# **2.** With two partial sums, `wgmma_wait_group<1>` stands behind `issue`. What would
# `wgmma_wait_group<0>` do?
#
# <details><summary>Answer</summary>
# The result would be right, and the second sum useless: the consumer would wait for the product
# that it has just issued, and promote while the tensor core has nothing to do.
# </details>
#
# **3.** Why has a tile of 256 x 128 with two consumers no second partial sum?
#
# <details><summary>Answer</summary>
# Each thread holds 128 registers of sums and 64 of partial sums. 64 more do not fit into 232 with
# addresses and scales. Its consumers have two waves of 64 rows a step, and each other.
# </details>
#
# **4.** May a tile of a layer of experts mark its weights `evict_first`?
#
# <details><summary>Answer</summary>
# If it is the only one of its group in that column of tiles: nobody else reads them. With two, the
# second may come much later, and would fetch them from memory again.
# </details>
#
# ## Exercises
#
# **1. Measure it.** Take the second sum away from 128 x 128 with two consumers, with the model's
# own rates (`timeline=True`). Who fills the hole now?
#
# <details><summary>Hint</summary>
# <code>single</code> and <code>two</code> from above. Look at the colours of the green bars: they
# say which warpgroup a product is of.
# </details>
#
# **2. Break it.** Read the scales of a in `finish`, behind `release`, where they are needed. Which
# hazard is it, and does the result show it?
#
# <details><summary>Hint</summary> They lie in <code>shared.sfa[slot.stage]</code>, and
# <code>release</code> goes on to the next slot: keep the address first. The loader may fill the
# slot at once.
# </details>
#
# **3. Look at it.** Elect in each step: take `if (elect_sync())` away from around the loop, and put
# it in front of the loads. Does the compiler still see one thread? Count `BRA.U.ANY`. Then elect
# once, keep the value, and use it together with another condition and an `else`.
#
# <details><summary>Hint</summary>
# Two calls of <code>views.edited</code>, then <code>minigemm.inspect</code> as in section 4. It
# depends on what the compiler can still connect with <code>elect.sync</code>, which is why the
# kernel does not rely on it.
# </details>
#
# ## Further reading
#
# - PTX ISA:
#   [wgmma.wait_group](https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-wait-group),
#   [elect.sync](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-elect-sync),
#   [createpolicy](https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-createpolicy).
# - Osama, Merrill, Cecka, Garland, Owens, *Stream-K: Work-centric Parallel Decomposition for Dense
#   Matrix-Matrix Multiplication on the GPU* (PPoPP 2023, arXiv 2301.03598).
# - Shah, Bikshandi, Zhang, Thakkar, Ramani, Dao, *FlashAttention-3* (arXiv 2407.08608): the same
#   overlap of products with what follows them, for attention.
#
# **Next:** [12 swapped](12_swapped.ipynb): few rows, and weights that fill the tensor core.
