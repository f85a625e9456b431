# %% [markdown]
# # Lab 05: from one buffer to a ring
#
# **You will be able to**
# - turn a kernel in which TMA and the tensor core take turns into one in which both are busy;
# - give every tile its slot, and every wait its parity;
# - say when a slot may be filled again, and prove it with the emulator.
#
# **You need to know** lessons 03 and 04: TMA, mbarriers and phases; WGMMA, its fence, commit and
# wait. Do this lab before lesson 05, which shows one solution.
#
# **Time:** 90 minutes. **Runs on:** CPU (with the emulator). **Points:** 10 for the plan, 100 for
# the kernel.
#
# **Hand in** `pipeline.cu` and this notebook. Your kernel is graded by the file alone, without a
# GPU.
#
# **Where it lives:** `minigemm/kernels/s04_wgmma.cu`, where you start; `minigemm/labs/`, the
# grader.

# %%
import minigemm
import torch
from minigemm import labs, quantize, views
from minigemm.kernels import s04_wgmma, s05_pipelined

device = views.device()
lab = labs.PIPELINE

# %% [markdown]
# ## 1. What is to be gained
#
# One CTA of s04, by the emulator's cycle model: a model, never a measurement.

# %%
a = quantize.quantize(quantize.activations(128, 1024), "tensor")
b = quantize.quantize(quantize.weights(64, 1024), "tensor")
with minigemm.observe(timeline=True) as seen:
    right = s04_wgmma.gemm(a, b, s04_wgmma.Config(128, 64))
single = seen[0]
views.timeline(single, title="s04, one buffer")

# %% [markdown]
# TMA and the tensor core take turns, because they share one buffer. With `STAGES` buffers, the
# **slots** of a ring, TMA can fill one while the tensor core reads another.
#
# Here is the loop to change, and what it calls.

# %%
views.code("s04_wgmma", "s04_wgmma")

# %% [markdown]
# ## 2. The plan, in Python
#
# Number the steps along k from 0. Tile `step` goes into slot `step % stages`, and each slot has its
# own mbarrier, which completes a phase each time that the slot is filled: parity 0 the first time,
# 1 the second, 0 the third.

# %% answer="parity"
def slot(step, stages):
    """The slot that the tile of this step goes into."""
    # BEGIN SOLUTION the slot of a step
    return step % stages
    # END SOLUTION


def parity(step, stages):
    """The parity to wait for before the tile of this step is read."""
    # BEGIN SOLUTION the parity of a step
    return step // stages % 2
    # END SOLUTION


# %% test="parity" points=4
assert [slot(step, 3) for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]
assert [parity(step, 3) for step in range(7)] == [0, 0, 0, 1, 1, 1, 0]
### BEGIN HIDDEN TESTS
for stages in (2, 4, 5, 7):
    completed = [0] * stages  # phases of each slot
    for step in range(40):
        place = slot(step, stages)
        assert place == step % stages, (step, stages)
        assert parity(step, stages) == completed[place] % 2, (step, stages)
        completed[place] += 1
### END HIDDEN TESTS

# %% [markdown]
# Which tile may thread 0 ask for in step `step`? The products of this step have just been issued,
# those of the step before are done, and all threads have met. So just one slot is free: that of the
# step before. Its next tile comes one round later.
#
# Before the loop, nothing is in use, and thread 0 asks for the first `stages - 1` tiles at once.

# %% answer="ahead"
def ahead(step, steps, stages):
    """The tile to ask for in this step, of `steps` in all; None where there is none left."""
    # BEGIN SOLUTION the tile to ask for
    tile = step + stages - 1
    return tile if tile < steps else None
    # END SOLUTION


# %% test="ahead" points=6
assert [ahead(step, 8, 4) for step in range(8)] == [3, 4, 5, 6, 7, None, None, None]
### BEGIN HIDDEN TESTS
for steps in range(1, 12):
    for stages in (2, 3, 4):
        asked = [*range(min(stages - 1, steps)),
                 *(ahead(step, steps, stages) for step in range(steps))]
        assert [tile for tile in asked if tile is not None] == list(range(steps)), (steps, stages)
        for step in range(steps):
            tile = ahead(step, steps, stages)
            free = slot(step - 1, stages)
            assert tile is None or slot(tile, stages) == free, (step, steps, stages)
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The kernel
#
# The next cell writes `pipeline.cu` beside this notebook: s04, with a `TODO` wherever it must
# change. Its shared memory is not yet as large as s05's config says, so that it does not compile
# until the first TODO is done.

# %%
path = labs.start("pipeline.cu", lab)

# %% solution_only=true
labs.solve(path, lab)

# %% [markdown]
# Open the file in the editor and work through it from top to bottom. Take a `TODO` out when it is
# done. `STAGES` is a constant of the config, like `BLOCK_M`.
#
# <details><summary>Hint: the struct (1)</summary>
#
# `a`, `b` and `full` become arrays of `STAGES`. `d` stays as it is. The slot comes first, so that
# every slot is as aligned as the buffer was: `shared.a[stage]` is what `shared.a` used to be.
# </details>
#
# <details><summary>Hint: load and compute (2, 3)</summary>
#
# Both take one parameter more, `int stage`. `sizeof(shared.a)` is now the whole ring; a barrier
# must be promised the bytes of one slot.
# </details>
#
# <details><summary>Hint: before the loop (4, 5)</summary>
#
# Initialise all the barriers, then fence, then load: `STAGES - 1` tiles, unless k has fewer.
# </details>
#
# <details><summary>Hint: the loop (6)</summary>
#
# Keep the order of section 2: wait for the slot with its parity; compute; `wgmma_wait_group<1>`,
# which leaves the newest group in flight; `__syncthreads`; load. Instead of dividing, keep the
# slot, the slot before it and the parity in variables, and flip the parity when the slot comes back
# to 0.
# </details>
#
# <details><summary>Hint: behind the loop (7)</summary>
#
# The newest group is still in flight. What did s04 do before it touched the accumulators?
# </details>

# %%
path = labs.require("pipeline.cu")
config = s05_pipelined.Config(block_m=128, block_n=64, stages=4)
with minigemm.observe(timeline=True) as seen:
    d = s05_pipelined.gemm(a, b, config, source=path)
ringed = seen[0]
print("the bits of s04:", torch.equal(d, right))
for hazard in ringed.hazards:
    print(hazard)
views.timeline({"s04": single, "your kernel": ringed})

# %% [markdown]
# Does the tensor core still wait for TMA? It must: in this model the tiles of a 128 x 64 output
# take longer to arrive than to multiply. What has gone is the waiting for the *latency* of each.
#
# The life of your slots:

# %%
labs.require("pipeline.cu")
views.ring(ringed, "your ring")

# %% [markdown]
# ## 4. Points
#
# The grader runs your kernel with two configs, on whole and ragged shapes, with copies that land as
# late or as early as your barriers allow. It says what to do next wherever points are missing.

# %%
grade = labs.check(labs.require("pipeline.cu"), lab)
grade

# %% test="result" points=40
grade = labs.check(labs.require("pipeline.cu"), lab)
assert grade.points["compiles"] and grade.points["result"], grade

# %% test="hazards" points=20
assert labs.check(labs.require("pipeline.cu"), lab).points["hazards"], "see the table above"

# %% test="structure" points=10
assert labs.check(labs.require("pipeline.cu"), lab).points["structure"], "see the table above"

# %% test="overlap" points=20
assert labs.check(labs.require("pipeline.cu"), lab).points["overlap"], "see the table above"

# %% test="bytes" points=10
assert labs.check(labs.require("pipeline.cu"), lab).points["bytes"], "see the table above"

# %% [markdown]
# ## Recap
#
# - A ring of slots lets TMA run ahead of the tensor core.
# - Each slot has its own mbarrier. The parity to wait for flips once a round, not once a step.
# - A slot is free when the products that read it are done *and* all threads know it.
# - One group of products in flight keeps the tensor core busy while the threads wait.
#
# ## Quiz
#
# **1.** With 4 slots, how many tiles can be on their way at once? Why not 4?
#
# <details><summary>Answer</summary>
# Three. When a step asks for a tile, the products of that step still read their own slot.
# </details>
#
# **2.** Your kernel with `wgmma_wait_group<0>` in the loop gives the same bits. What is lost?
#
# <details><summary>Answer</summary>
# Between two steps the tensor core has nothing to do until the threads have waited, met and issued
# again.
# </details>
#
# ## Exercises
#
# **1. Break it.** Leave the parity at 0, run with `schedule="early"`, and read the `Deadlock`.
#
# **2. Measure it.** Draw the timeline for 2, 3 and 4 stages. From which number on does nothing
# change, and why?
#
# <details><summary>Hint</summary>
# Compare the latency of a copy with the time that the bytes of a tile take:
# `minigemm.emulator.Rates()`.
# </details>
#
# ## Further reading
#
# - PTX ISA:
#   [wgmma.wait_group](https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-wait-group),
#   [mbarrier](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier).
# - CUTLASS documentation, "Efficient GEMM in CUDA", "Pipelining".
#
# **Next:** lesson 05 takes this kernel apart.
