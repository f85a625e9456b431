# %% [markdown]
# # 05 pipelined: a ring of tiles keeps both engines busy
#
# **You will be able to**
# - say why a single buffer makes TMA and the tensor core take turns, and what a ring of slots
#   changes;
# - give the parity that a thread waits for, for any tile and any ring;
# - say which products are in flight, and which slot may be filled again, at each line of the loop;
# - compute how many slots a tile needs and how many fit;
# - read what the emulator says when a slot, a phase or a byte count is wrong.
#
# **You need to know** lessons 03 and 04: TMA, mbarriers and phases; WGMMA, its fence, commit and
# wait.
#
# **Time:** 45 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 01, a thread an output; 02, tiles; 03, TMA moves them; 04, the tensor core
# multiplies them. **This lesson adds** no new hardware. It lets the two engines work at the same
# time.
#
# **Where it lives:** `minigemm/kernels/s05_pipelined.cu`, the kernel;
# `minigemm/kernels/s05_pipelined.py`, its launch.

# %%
import minigemm
import torch
from minigemm import emulator, quantize, views
from minigemm.kernels import s04_wgmma, s05_pipelined

device = views.device()

# %% [markdown]
# ## 1. Two engines that take turns
#
# The emulator can run a CTA by a **cycle model**: a clock for each warp, for TMA and for the tensor
# core, and a few round rates. It is a model, never a measurement, but who waits for whom follows
# from the kernel. Its rates are those of one SM: latencies in cycles, bandwidths in bytes a cycle,
# and the datasheet's 4096 FP8 products a cycle.
#
# **Before you run the second cell, guess:** in s04, which share of the time is the tensor core
# busy?

# %%
def run(stage, config, k=1024, rates=True, source=None):
    """One CTA with all of k, by the cycle model; the sums are plain FP32 here, which is quicker."""
    a = quantize.quantize(quantize.activations(config.block_m, k), "tensor")
    b = quantize.quantize(quantize.weights(config.block_n, k), "tensor")
    with minigemm.observe(timeline=rates, fast=True, hazards=False) as seen:
        stage.gemm(a, b, config, source=source)
    return seen[0]


print(emulator.Rates())

# %%
single = run(s04_wgmma, s04_wgmma.Config(128, 256))
views.timeline(single, title="s04, one buffer")

# %% [markdown]
# The tensor core and TMA are never busy together. They cannot be: there is one buffer, and either
# TMA writes it or the tensor core reads it. The same run, seen from the buffer:

# %%
views.ring(single, "s04: the life of its only buffer")

# %% [markdown]
# The numbers are tiles, the 128 columns of `a` and `b` that one step along k takes. The strip below
# shows the phase of the mbarrier, black where its parity is 1.
#
# ## 2. A ring of slots
#
# The cure is more buffers. Shared memory holds `STAGES` of them, the **slots** of a ring: tile t
# goes to slot `t % STAGES`. While the tensor core reads one slot, TMA fills the others. Here is all
# that changes:

# %%
views.diff("s04_wgmma", "s05_pipelined", context=1)

# %% [markdown]
# Three things to find in it:
# - the **prologue**: thread 0 asks for the first `STAGES - 1` tiles;
# - the **order** of the loop: wait for a tile, issue its products, wait for the products *before*
#   them, meet, ask for a new tile;
# - **`before`**: the new tile goes into the slot of the step before, the only free one.
#
# **Guess:** of 3 slots, how many does TMA fill at one time at most, and how many do products in
# flight read? Then step through the film (a slider where Jupyter shows widgets, else the strip).

# %%
config = s05_pipelined.Config(block_m=64, block_n=64, stages=3)
ringed = run(s05_pipelined, config, k=7 * 128)
views.ring_film(ringed, "s05: 7 tiles through 3 slots")

# %% [markdown]
# Follow one slot from left to right: TMA fills it, it is full, products read it, it is free. Follow
# one dotted line from top to bottom: all threads meet, and behind it a grey slot turns blue. That
# is the rule of the ring: **a slot is filled again only after all threads have met behind the wait
# for its products.**
#
# At most two slots are blue, as many as the prologue asked for. Two are green for a moment only: a
# step's products are issued, then those of the step before are waited for. As a list:

# %%
from minigemm.views.moments import moments

for number, moment in enumerate(moments(ringed)[:17]):
    print(f"{number:>3}  {moment.what}")

# %% [markdown]
# ## 3. Which parity?
#
# Every slot has an mbarrier of its own. It completes one phase each time round the ring. In s04 the
# parity flipped at each step; does it still?
#
# **Guess:** write the parity that a thread must wait for, for a tile and a number of slots. The
# first try is s04's rule.

# %%
def parity(tile, stages):
    return tile % 2  # change this until all are right


# as they completed in the film
phases = [event for event in ringed.events if event.kind == "phase"]
print("tile  slot  completes phase  parity  guess")
for tile, event in enumerate(phases):
    phase = int(event.detail.split()[1])
    guess = parity(tile, config.stages)
    print(f"{tile:>4}  {tile % 3:>4}  {phase:>15}  {phase % 2:>6}  {guess:>5}  "
          f"{'' if guess == phase % 2 else 'wrong'}")

# %% [markdown]
# <details><summary>The rule</summary>
#
# Tile t is in round `t // stages` of the ring, and each round completes one phase of each barrier:
# the parity is `t // stages % 2`. The kernel divides nothing. It counts `stage` up, and where that
# wraps around to 0 it flips `phase`.
#
# </details>
#
# One bit is still enough: the tile of the next round is not asked for before this round's has been
# read, so nobody can be two phases behind. What a wrong parity does, section 7 tries.
#
# ## 4. More slots, less waiting
#
# Now to scale, in the model's cycles: one buffer above, three slots below.

# %%
triple = run(s05_pipelined, s05_pipelined.Config(128, 256, stages=3))
views.timeline({"s04, one buffer": single, "s05, 3 slots": triple})

# %% [markdown]
# The tensor core has a gap only at the beginning, until the first tile comes. **Guess** the next
# table's column of the tensor core first: 128 x 128 tiles with 2, 3 and 4 slots.

# %%
def row(name, report):
    line = report.timeline
    warps = [agent for agent in line.agents if agent.startswith("warp")]
    waiting, busy = line.share("waiting", *warps), line.share("busy", "tensor core")
    print(f"{name:<16} {line.end:>7,.0f} cycles   warps wait {waiting:>4.0%}   tensor core busy "
          f"{busy:>4.0%}")


row("s04, one buffer", run(s04_wgmma, s04_wgmma.Config(128, 128), k=2048))
for stages in (2, 3, 4):
    row(f"s05, {stages} slots", run(s05_pipelined, s05_pipelined.Config(128, 128, stages), k=2048))

# %% [markdown]
# Two slots help a little, the third much, the fourth hardly: section 6 says why. The warps wait
# most of the time in every row, and that is no loss; they have little to do. What must not wait is
# the tensor core. With this tile it cannot exceed 75%: a step has 683 cycles of copy (32 KiB at 48
# bytes a cycle), 512 of products.
#
# ## 5. What is in flight
#
# `wgmma_wait_group<1>` leaves *one* group in flight, the newest. Let us wait for all, as s04 does.
# **Guess** what happens to the green row.

# %%
patient = views.edited("s05_pipelined", "wgmma_wait_group<1>();", "wgmma_wait_group<0>();")
everything = run(s05_pipelined, s05_pipelined.Config(128, 256, stages=3), source=patient)
views.timeline({"wait_group 1": triple, "wait_group 0": everything}, end=11000)

# %% [markdown]
# With 0, the tensor core is idle while the warps end a step: meet, ask for a tile, issue. The loads
# are asked for later too. With 1, a group is queued behind the one that is computed, and the gaps
# are gone.
#
# What does a product in flight forbid? To write its slot, and to touch its accumulators. The loop
# touches none, so it waits for the slot's sake only; behind the loop `wait_group 0` collects the
# last group.
#
# **Guess** from the kernel: what do `stage`, `before` and `ahead` hold in the first pass, with 3
# slots?

# %%
views.code("s05_pipelined", "s05_pipelined", mark="ahead")

# %% [markdown]
# `stage` is 0, `before` is 2, `ahead` is 2 tiles: tile 2 goes into slot 2, which nobody has used
# yet. So the first pass needs no special case. But what if k has fewer tiles than the ring has
# slots? Two conditions are there for that: `ahead < k`, and `i * BLOCK_K < k` in the prologue.
#
# **Guess** the number of tiles loaded for each k, with 4 slots.

# %%
tile = s05_pipelined.Config(64, 64, stages=4)
for k in (64, 128, 384, 400, 1024):
    x = quantize.quantize(quantize.activations(64, k), "tensor")
    w = quantize.quantize(quantize.weights(64, k), "tensor")
    with minigemm.observe() as seen:
        d = s05_pipelined.gemm(x, w, tile)
    same = torch.equal(d, s04_wgmma.gemm(x, w, s04_wgmma.Config(64, 64)))
    loaded = seen[0].counters["tma_load_bytes"] // (2 * 64 * 128)
    print(f"k = {k:>4}: {loaded} tiles, hazards: {len(seen[0].hazards)}, the bits of s04: {same}")

# %% [markdown]
# One load for each tile, none too many: a load that nobody waits for could land when the CTA has
# ended, in the memory of another one.
#
# ## 6. How many slots?
#
# A load takes latency + bytes / bandwidth. A step takes the longer of its copy and its products. If
# a tile is needed every step, and each is a load on its way, `load / step` tiles must be on their
# way: **Little's law**, in flight = time x rate. One more slot is being read, so
#
# slots = 1 + ceil(load / step)

# %%
tiles = [s05_pipelined.Config(*mn) for mn in ((64, 64), (128, 64), (128, 128), (128, 256))]
budget = views.ring_budget(tiles)
print(budget.text)
budget

# %% [markdown]
# Small tiles need more slots, since a step is short; they also fit more. Large tiles need fewer,
# and fewer fit. For 128 x 128 the law says 3, and the table of section 4 agreed.
#
# **Now change it.** Let memory answer in 1,200 cycles instead of 600. **Guess** the number of
# slots, then see from which one on the cycles stay the same.

# %%
slow = emulator.Rates(tma_latency=1200)
print(views.ring_budget([s05_pipelined.Config(128, 128)], slow).text)
for stages in (2, 3, 4, 5):
    slots = s05_pipelined.Config(128, 128, stages)
    row(f"s05, {stages} slots", run(s05_pipelined, slots, k=2048, rates=slow))

# %% [markdown]
# More slots than that buy nothing. A ring hides latency; it does not make bandwidth.
#
# ## 7. Break it
#
# Six edits, each of one place. Say what will happen, then run. `attempt` edits a copy of the stage,
# runs it with hazards on and the hardware's bits, and prints what the emulator says.

# %%
import textwrap
import warnings

small = s05_pipelined.Config(block_m=128, block_n=64, stages=3)  # two warpgroups
a = quantize.quantize(quantize.activations(128, 7 * 128), "tensor")
b = quantize.quantize(quantize.weights(64, 7 * 128), "tensor")
right = s05_pipelined.gemm(a, b, small)


def attempt(old, new, shown=1, **how):
    source = views.edited("s05_pipelined", old, new)
    with warnings.catch_warnings(), minigemm.observe(**how) as seen:
        # the compiler's, about a variable that nobody reads any more
        warnings.simplefilter("ignore")
        try:
            d = s05_pipelined.gemm(a, b, small, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in seen[0].hazards)) or "none"
            said = [f"result: {'right' if torch.equal(d, right) else 'WRONG'}; hazards: {kinds}"]
            said += map(str, seen[0].hazards[:shown])
        except emulator.EmulatorError as error:
            said = [f"{type(error).__name__}: {error}"]
    for line in "\n".join(said).splitlines():
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))
    return seen[0]


# %% [markdown]
# **Waiting for one group too few.** `wait_group 2` leaves two groups in flight. **Guess:** is the
# result right?

# %%
WAIT = "wgmma_wait_group<1>();"
report = attempt(WAIT, "wgmma_wait_group<2>();", timeline=True)
views.ring(report, "wait_group 2: red is where TMA may write "
                   "what products in flight may still read")

# %%
report = attempt(WAIT, "", shown=0, timeline=True)

# %% [markdown]
# With 2 the products had always read before TMA wrote, and the result is right. Without any wait
# they had not. Both kernels are wrong, for the same reason, and the emulator gives the same cause.
#
# **The wrong slot.** The new tile goes into `stage`, which has just been issued, instead of
# `before`.

# %%
report = attempt("load(shared, before,", "load(shared, stage,")

# %% [markdown]
# A deadlock: slot 2 is never filled, and all threads wait for its phase 0. The last lines name the
# deeper cause: a load that overwrites a slot whose products are in flight.
#
# **No meeting.** Take `__syncthreads` out of the loop. Every warpgroup still waits for its own
# products. **Guess** whose products are in danger.

# %%
report = attempt("__syncthreads();        // all threads arrive when they are", ";  //")

# %% [markdown]
# Those of warpgroup 1: thread 0 belongs to warpgroup 0 and knows only about its own. The "empty
# barrier" of the advice is the finer tool for the same job; the next lesson builds it.
#
# **A phase that is not flipped**, in both schedules: copies as late as they may land, and at once.

# %%
FLIP = "if (++stage == STAGES) {\n      stage = 0;\n      phase ^= 1;\n    }"
NEVER = "if (++stage == STAGES) stage = 0;"
report = attempt(FLIP, NEVER)
print()
report = attempt(FLIP, NEVER, schedule="early")

# %% [markdown]
# Late: in round 1 the wait for parity 0 passes at once, for the phase of round 0, and the products
# read a tile that is not there. Early: the copy is so quick that phase 1 is complete too, and the
# wait for parity 0 means phase 2, which never comes. One bug, two faces, as in lesson 03.
#
# **A phase that flips at each step**, s04's rule. **Guess** which tile goes wrong first.

# %%
report = attempt(FLIP, "phase ^= 1; if (++stage == STAGES) stage = 0;")

# %% [markdown]
# Tile 1: slot 1 is in its phase 0, and a wait for parity 1 passes on a fresh barrier. The result is
# right by luck: the schedule "late" also computes the products as late as it may, and by then the
# tile was there.
#
# **One tile's bytes.** `expect_tx` promises those of `a` alone, and TMA brings those of `b` too.

# %%
report = attempt("sizeof(shared.a[0]) + sizeof(shared.b[0])", "sizeof(shared.a[0])")

# %% [markdown]
# A phase completes when the bytes that were promised have come, whichever they are. The others
# count for a later phase, the books never balance, and in the end all wait.
#
# ## 8. On hardware
#
# What was measured on a GPU, with the machine that gave it:

# %%
views.recorded("s04_wgmma")

# %%
views.recorded("s05_pipelined")

# %% [markdown]
# The same call, wherever you are. The bits of s04, of the emulator and of a Hopper GPU are the
# same:

# %%
d = s05_pipelined.gemm(a.to(device), b.to(device), small)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")
exact = quantize.reference(a, b)
print(f"relative error: {(d.cpu().double() - exact).norm() / exact.norm():.2e}")

# %% [markdown]
# ## Recap
#
# - With one buffer TMA and the tensor core take turns. A **ring** of slots lets TMA fill some while
#   products read another.
# - A slot goes round: asked for, filled, full, read, free. Its full barrier completes **one phase a
#   round**; the parity to wait for is `tile // stages % 2`.
# - `wait_group 1` leaves the newest group in flight, so that the tensor core always has one queued.
#   What it retires is the group of the step before, and that group's slot is the one to fill.
# - One thread fills for all, so all must have met behind their waits before it does.
# - Slots needed: 1 + ceil(load / step), by **Little's law**. Slots that fit: what 227 KiB leave
#   beside the tile of `d`.
#
# ## Quiz
#
# **1.** Why is a ring of one slot not legal for s05?
#
# <details><summary>Answer</summary>
# Thread 0 asks <code>STAGES - 1</code> tiles ahead: none. With one slot there is nothing to fill
# while the other is read, and nothing would ever be asked for.
# </details>
#
# **2.** A ring has 4 slots. Which slot has tile 13, and which parity does its wait name?
#
# <details><summary>Answer</summary>
# Slot 13 % 4 = 1, round 13 // 4 = 3: parity 1.
# </details>
#
# **3.** Why does the load come *after* the products of this step are issued, not before?
#
# <details><summary>Answer</summary>
# The slot to fill is free when the products of the step before are done. If the kernel waited for
# those before it issued the new ones, nothing would be queued behind them and the tensor core would
# run dry, as with <code>wait_group 0</code>.
# </details>
#
# **4.** The accumulators are read and written by every group. Why does a group not have to wait for
# the one before it is issued?
#
# <details><summary>Answer</summary>
# Products of one warpgroup with the same shape on the same accumulators are computed in order by
# the hardware. Only the threads' own accesses to the registers need a fence or a wait.
# </details>
#
# **5.** The bandwidth of memory doubles, its latency stays. Does a tile need more slots or fewer?
#
# <details><summary>Answer</summary>
# Where the copy was the longer part of a step: more. A load is little shorter, since most of it is
# latency, but a step takes less, so more loads must be in flight. Where the products were the
# longer part, no more than before.
# </details>
#
# ## Exercises
#
# **1. Break it.** Let the prologue fill all slots: `i < STAGES - 1 &&` becomes `i < STAGES &&`.
# Read all that `attempt` says with `shown=8`. Then repair it without changing the prologue back:
# what must `ahead` be, and which slot is then the one to fill?
#
# <details><summary>Hint</summary>
# Tile k + STAGES belongs into the slot of tile k, so into <code>stage</code>. It is free only when
# the products of this very step are done: <code>wgmma_wait_group&lt;0&gt;</code>. Edit the edited
# file: <code>views.edited</code> takes the path that it gave. What does the timeline say, for 64 x
# 64 and for 128 x 256?
# </details>
#
# **2. Change it.** Leave two groups in flight, correctly: `wgmma_wait_group<2>()`. Which slot may
# then be filled, and how far ahead can the loads run?
#
# <details><summary>Hint</summary>
# What is retired is the group of two steps before, so its slot is
# <code>(stage + STAGES - 2) % STAGES</code>, and the tile that belongs there is STAGES - 2 steps
# ahead. The prologue asks for as many. It needs 3 slots or more; what does the timeline say?
# </details>
#
# **3. Change it.** Remove `phase` and compute the parity from `k0`.
#
# <details><summary>Hint</summary>
# The tile is <code>k0 / BLOCK_K</code>, its round that divided by <code>STAGES</code>; take the
# lowest bit. The compiler will tell you what is left over.
# </details>
#
# **4. Measure it.** For which latency does a 128 x 256 tile need a fourth slot? Use
# `views.ring_budget` with your own `emulator.Rates`. What could the kernel give up to make room for
# it?
#
# <details><summary>Hint</summary>
# Four slots of 48 KiB are 192 KiB. The tile of <code>d</code> takes 64 KiB, and is needed only when
# the ring is not.
# </details>
#
# **5. Look at it.** Run section 2 with `schedule="early"` and with `schedule=1` instead of the
# model, and compare the strips. What stays the same in all three?
#
# <details><summary>Hint</summary>
# <code>with minigemm.observe(schedule=1) as seen: ...</code>, then
# <code>views.ring(seen[0])</code>. The order along each slot is what the barriers promise; between
# slots there is more freedom.
# </details>
#
# ## Further reading
#
# - PTX ISA:
#   [mbarrier](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier),
#   with "Phase of the mbarrier object"; "wgmma.wait_group" and "Asynchronous Warpgroup Level Matrix
#   Instructions" for what is in order by itself.
# - CUTLASS documentation: "Efficient GEMM in CUDA", the section on pipelining, and "CUTLASS
#   pipelines".
# - J. D. C. Little, *A Proof for the Queuing Formula: L = λW*, Operations Research 9 (1961).
# - CUDA C++ Programming Guide: "Asynchronous Data Copies".
#
# **Next:** [06 warp-specialized](06_warp_specialized.ipynb). Here all threads meet at each step,
# and one of them loads beside its other work. There the loading gets a warp of its own, and empty
# barriers take the place of the meeting.
