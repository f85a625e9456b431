# %% [markdown]
# # 06 Warp specialization: one loads, the others multiply
#
# **You will be able to**
# - split a kernel into a producer and consumers, and say who arrives, how often, and who waits on
#   each barrier;
# - explain why the first wait for an empty slot asks for parity 1;
# - move registers between warpgroups with `setmaxnreg`, and keep the sum within the CTA's pool;
# - read a timeline of roles, and find in it what the tensor core waits for;
# - show that the tensor core sums with 14 bits, and predict which data suffers.
#
# **You need to know** lessons 04 and 05: `wgmma` and its groups, the ring of slots, phases and
# parities.
#
# **Time:** 60 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 03, tiles by TMA; 04, the tensor core; 05, a ring of slots. **This lesson adds**
# roles: a warpgroup that only loads, and warpgroups that only compute. The result keeps its bits,
# and they are not all right: at the end the tensor core's short accumulator shows itself.
#
# **Where it lives:** `minigemm/kernels/s06_warp_specialized.cu`, the kernel;
# `minigemm/kernels/s06_warp_specialized.py`, its launch;
# `minigemm/emulator/machine/tensor_core.py`, the arithmetic.

# %%
import minigemm
import torch
from minigemm import emulator, quantize, views
from minigemm.emulator import tensor_core
from minigemm.kernels import s05_pipelined, s06_warp_specialized

device = views.device()

# %% [markdown]
# ## 1. Roles
#
# In s05 every thread does everything. Thread 0 asks for the next tile, but only after it has waited
# for its own products and for all other threads: `__syncthreads` stands in the loop. A slow warp
# delays the load, and the load delays everybody.
#
# s06 gives each job to a warpgroup of its own. Look for what went away: `__syncthreads` in the
# loop.

# %%
views.diff("s05_pipelined", "s06_warp_specialized", context=1)

# %% [markdown]
# **Before you run the next cell, guess:** the CTA has three warpgroups, 384 threads. How many of
# them issue a TMA load, and how many arrive on a barrier in each step?

# %%
a = quantize.quantize(quantize.activations(128, 1024))
b = quantize.quantize(quantize.weights(256, 1024))
config = s06_warp_specialized.Config(block_m=128, block_n=256, stages=3, consumers=2)

with minigemm.observe() as seen:
    d_pipelined = s05_pipelined.gemm(a, b, s05_pipelined.Config(128, 256, 3))
    right = s06_warp_specialized.gemm(a, b, config)
pipelined, specialized = seen
print("the same bits:", torch.equal(d_pipelined, right), "; hazards:", len(specialized.hazards))
for name, report in (("s05", pipelined), ("s06", specialized)):
    meetings = sum(event.kind == "barrier" for event in report.events)
    loaders = {event.agent for event in report.events if event.kind == "tma load issued"}
    print(f"{name}: {report.block[0]} threads; loads are issued by {loaders}; "
          f"bar.sync opened {meetings} times")

# %% [markdown]
# One thread loads, thread 256, the first of warp 8. The other 127 threads of its warpgroup do
# nothing at all; they are there because registers move by the warpgroup (section 3). Barriers of
# many threads open only at the beginning and in the epilogue.
#
# The kernel, with the lines marked that make the roles meet. The producer leaves early, by
# `return`; the consumers never see it again.

# %%
views.code("s06_warp_specialized", "s06_warp_specialized", mark="mbarrier_")

# %% [markdown]
# `elect_sync()` is true in exactly one lane of a warp. `threadIdx.x == 256` would choose the same
# lane; after `elect.sync` the compiler *knows* that it is one lane, and need not loop over the
# lanes that might want to load.
#
# ## 2. Two barriers for each slot
#
# s05 had a barrier for "the tile is here"; "the slot is free" was the work of `__syncthreads`. Now
# the second message has a barrier too. The comments in `Shared` are its contract:

# %%
views.code("s06_warp_specialized", "Shared", mark="arrives")

# %%
views.handshake(config.constants())

# %% [markdown]
# The count of `full` is 1: one thread arrives. TMA does the rest with bytes. The count of `empty`
# is one for each consumer warp, for lane 0 arrives on behalf of its warp. Would a single arrival
# per warpgroup do? No: the four warps of a warpgroup leave `wait_group` one by one, and each can
# speak only for itself.
#
# Who goes first? At the start all slots are free, yet nobody has arrived on `empty`. **Guess**
# which parity passes on a fresh barrier:

# %%
from minigemm.emulator import MBarrier

empty = MBarrier(8)
passing = [parity for parity in (0, 1) if empty.test_wait_parity(parity)]
print(f"fresh:            {empty.describe()}; wait passes for parity {passing}")
for _ in range(8):
    empty.arrive()
passing = [parity for parity in (0, 1) if empty.test_wait_parity(parity)]
print(f"after 8 arrivals: {empty.describe()}; wait passes for parity {passing}")

# %% [markdown]
# A wait for parity 1 on a fresh barrier passes: it means the phase *before* the first, which counts
# as complete. So the producer waits for `phase ^ 1`: 1 in the first round, which passes at once, 0
# in the second, which needs the first 8 arrivals, and so on. The consumers wait for `phase`: 0
# first. Both flip when they come back to slot 0. No special case, no arrivals in advance.
#
# Watch both bits of each slot:

# %%
views.ring(specialized)

# %% [markdown]
# Full and empty take turns: a slot is filled only after the flip of *empty*, and read only after
# the flip of *full*. Slots 0 and 1 are filled three times, slot 2 only twice.
#
# ## 3. Registers
#
# An SM has 65,536 registers. At a launch every thread gets the same number, a multiple of 8; what
# the CTA got is its pool. The producer needs a handful; a consumer's thread needs 128 for its sums
# alone, plus addresses and counters. `setmaxnreg` moves registers within the pool:

# %%
constants = config.constants()
producer, consumer = constants["PRODUCER_REGISTERS"], constants["CONSUMER_REGISTERS"]
picture = views.registers(config.consumers, producer, consumer, needed=config.accumulators)
print(picture)
picture

# %% [markdown]
# `.dec` gives back, `.inc` waits until the pool has enough. What is the room good for? Larger
# tiles. With 256 x 192 outputs each consumer computes two waves of 64 rows: 192 sums a thread, more
# than the 168 of the launch.
#
# **Guess:** what will the compiler do with this tile if both `setmaxnreg` are taken out?

# %%
import warnings

large = s06_warp_specialized.Config(256, 192, stages=2, consumers=2)
without = views.edited("s06_warp_specialized", "setmaxnreg_inc<CONSUMER_REGISTERS>();", "")
without = views.edited(without, "setmaxnreg_dec<PRODUCER_REGISTERS>();", "")
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for name, source in (("as it is", None), ("without setmaxnreg", without)):
        found = minigemm.inspect("s06_warp_specialized", large, source=source)
        print(f"{name:<19} {found.registers} registers at launch, "
              f"{found.spills:,} bytes of spill code")
line = next(line for line in str(warned[0].message).splitlines() if "ptxas" in line)
print("the compiler:", line.partition(") ")[2])

# %% [markdown]
# The sums no longer fit. They go to local memory and back, and the tensor core's products run one
# after the other.
#
# Now two mistakes with the budget. The helper edits a copy of the stage, runs it with a smaller
# tile and prints what the emulator says.

# %%
import re
import textwrap

small_b = quantize.Quantized(b.data[:64], b.scale, "tensor")
small = s06_warp_specialized.Config(128, 64, stages=3)
expected = s06_warp_specialized.gemm(a, small_b, small)


def attempt(*edits, schedule="late", shown=1):
    source = s06_warp_specialized.stage.source
    for old, new in edits:
        source = views.edited(source, old, new)
    with minigemm.observe(schedule=schedule) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's; read them once without this line
        try:
            d = s06_warp_specialized.gemm(a, small_b, small, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in seen[0].hazards)) or "none"
            result = "right" if torch.equal(d, expected) else "WRONG"
            said = [f"{schedule}: result {result}; hazards: {kinds}",
                    *map(str, seen[0].hazards[:shown])]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    # lines of the stage only
    text = re.sub(r"(ptx\.cuh|prelude):\d+, called at ", "", "\n".join(said))
    for line in text.splitlines():
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))
    return seen[0] if seen else None


# %% [markdown]
# **Guess:** the producer keeps 56 registers instead of 40. How many are missing, and who notices?

# %%
INCREASE, DECREASE = "setmaxnreg_inc<CONSUMER_REGISTERS>", "setmaxnreg_dec<PRODUCER_REGISTERS>"
report = attempt((DECREASE, "setmaxnreg_dec<56>"))
views.registers(config.consumers, producer=56, consumer=consumer)

# %% [markdown]
# The first consumer takes its 8,192 more; for the second, 6,144 are left. It waits forever, and
# with it everybody: its arrivals on `empty` are missing. Read the deadlock from its first line: the
# other waits are consequences.
#
# The other way round: the consumers keep too few. This tile, 128 x 64, has 32 sums a thread.

# %%
report = attempt((INCREASE, "setmaxnreg_dec<24>"))

# %% [markdown]
# The emulator counts the values that are alive at the product. `ptxas` warns that it ignores this
# `setmaxnreg`: the kernel then works, and its budget is a fiction.
#
# ## 4. The way out
#
# Accumulators lie scattered: a lane holds two neighbours in every 8 columns. s05 stores them 4
# bytes at a time. `stmatrix` stores four 8 x 8 matrices at once: each lane *names* the place of one
# row of 16 bytes, and the warp's registers are dealt out to them.

# %%
views.code("s06_warp_specialized", "write")

# %%
for name, stage, tile in (
    ("s05", "s05_pipelined", s05_pipelined.Config(128, 256, 3)),
    ("s06", "s06_warp_specialized", config),
):
    opcodes = [instruction.opcode for instruction in minigemm.inspect(stage, tile).instructions]
    print(name, {opcode: opcodes.count(opcode)
                 for opcode in ("STS", "STSM", "UTMASTG", "QGMMA", "USETMAXREG")})

# %% [markdown]
# In SASS: 64 `STS` become 16 `STSM`. The rows that the lanes name are those of the swizzled tile of
# `d`. Here they are by the kernel's formula, for warp 0 and columns 0 to 15 of a panel that is 128
# bytes wide. **Guess** the wavefronts without the swizzle.

# %%
from minigemm.emulator import Request
from minigemm.views.accesses import wavefronts


def rows_named(swizzled):
    places = []
    for lane in range(32):
        row, byte = lane % 16, lane // 16 * 16
        places.append(row * 128 + (byte ^ row % 8 * 16 if swizzled else byte))
    return Request(0, None, "shared", 16, True, tuple(range(32)), tuple(places))


print("wavefronts without the swizzle:", len(wavefronts(rows_named(False))))
views.banks(rows_named(True), "stmatrix, 128-byte swizzle")

# %% [markdown]
# Four wavefronts, one for each matrix: 512 bytes cannot take fewer.
#
# Each consumer stores its own rows. It need not wait for the other one, so the meeting is
# `bar_sync(1 + warpgroup, 128)`: a named barrier for 128 threads.
#
# From this stage on `d` may be FP32. Then each thread stores its sums straight from registers;
# **guess** what happens to the bytes of TMA's stores.

# %%
with minigemm.observe() as seen:
    exact_output = s06_warp_specialized.gemm(a, b, config, out_dtype=torch.float32)
print("rounded to BF16 it is the same:", torch.equal(exact_output.bfloat16(), right))
print("bytes that TMA stores:", *(f"{report.counters['tma_store_bytes']:,}"
                                  for report in (specialized, seen[0])))
views.compare({"BF16": specialized, "FP32": seen[0]})

# %% [markdown]
# ## 5. A timeline of roles
#
# Who waits for whom? The emulator can run the first CTA by a cycle model: a rate for the tensor
# core, a latency and a bandwidth for TMA. It is a model, never a measurement, and it follows from
# the kernel.
#
# Tall bars are busy, pale ones wait, in the colour of what they wait for.

# %%
with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
    s05_pipelined.gemm(a, b, s05_pipelined.Config(128, 256, 3))
    s06_warp_specialized.gemm(a, b, config)
modelled = dict(zip(("s05_pipelined", "s06_warp_specialized"), seen, strict=True))
views.timeline(modelled)

# %% [markdown]
# Yellow is welcome here: the consumers wait for tiles while the tensor core is never idle between
# its first product and its last. Its row is the one to watch. Now closer:

# %%
views.timeline(modelled, start=2500, end=5000)

# %%
for name, report in modelled.items():
    waits = views.waiting_for(report, *(f"warp {warp}" for warp in range(8)))
    print(f"{name}: {report.timeline.end:,.0f} cycles; warps 0 to 7 wait for")
    for cause, share in waits.items():
        print(f"    {cause:<30} {share:6.1%}")

# %% [markdown]
# In s05 each step has a red part, the meeting of all threads, and its loads start behind it. In s06
# the producer asks as soon as the last consumer warp has arrived, and the red is gone. The epilogue
# is shorter, too, and each consumer has its own.
#
# That was the model. Here is one CTA of a real launch:
# `python -m minigemm trace s06_warp_specialized` builds the same file with a clock read around
# every wait, and the picture is made by the same code.

# %%
views.recorded_timeline("s06_warp_specialized")

# %% [markdown]
# CTAs on all the other SMs want their bytes at the same time, so the first loads take longer than
# the model's. The rhythm is the same: the two consumers' products alternate, and the producer waits
# for them, not they for it.
#
# The totals are close: the model charges a barrier little and lets every warp issue without a
# rival. What roles give on hardware, a measurement must say (section 8).
#
# **Guess:** halve the ring, from 4 slots to 2. What happens to the tensor core's share?

# %%
half_b = quantize.Quantized(b.data[:128], b.scale, "tensor")
by_stages = {}
for stages in (4, 2):
    with minigemm.observe(timeline=True, hazards=False, fast=True) as seen:
        s06_warp_specialized.gemm(a, half_b, s06_warp_specialized.Config(128, 128, stages))
    by_stages[f"{stages} slots"] = seen[0]
views.timeline(by_stages)

# %% [markdown]
# With 2 slots the producer waits for a slot before it may ask, then the latency passes with nobody
# else at work. The ring was too short to cover it.
#
# How many slots are enough? Change the latency and run it again; what does the rule seem to be?

# %%
LATENCY = 600  # cycles from a request to its first bytes; try 300 and 1200

for stages in (2, 3, 4, 5):
    rates = emulator.Rates(tma_latency=LATENCY)
    with minigemm.observe(timeline=rates, hazards=False, fast=True) as seen:
        s06_warp_specialized.gemm(a, half_b, s06_warp_specialized.Config(128, 128, stages))
    timeline = seen[0].timeline
    waits = views.waiting_for(seen[0], "warp 0").get("a tile that TMA brings", 0)
    busy = timeline.share("busy", "tensor core")
    print(f"{stages} slots: tensor core busy {busy:.0%}, a consumer waits for tiles {waits:.0%}")

# %% [markdown]
# A slot is occupied while its tile is asked for, comes and is read. The ring must be as long as
# that time divided by the time of a step. More slots than that change nothing: then TMA's bandwidth
# is the limit, for this tile needs more bytes a step than it brings in that time.
#
# ## 6. Break it
#
# Four edits of one place each. Say what will happen, then run.
#
# **No wait for empty.** The producer loads as fast as it can.

# %%
EMPTY = "mbarrier_wait_parity(&shared.empty[stage], phase ^ 1);"
report = attempt((EMPTY, ""))

# %% [markdown]
# It laps the consumers: it arrives again on a `full` whose phase is still open. The line "a likely
# cause" names it.
#
# **Arrive before `wait_group`.** The consumer hands the slot back when it has *issued* the next
# products. **Guess** whether the result is right under any schedule.

# %%
ARRIVE = "    if (k0 > 0 && threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[before]);\n"
WAIT = "    wgmma_wait_group<1>();  // the products of the step before are done\n"
for schedule in ("late", "early", 3):
    report = attempt((WAIT, ""), (ARRIVE, ARRIVE + WAIT),
                     schedule=schedule, shown=schedule == "late")

# %% [markdown]
# Right every time, and wrong: the products of the step before may still read the slot that TMA now
# overwrites. On a GPU it would show on a busy day. An order that merely happened is no order.
#
# **A count too large.** Somebody counts the producer as an arriver, too.

# %%
COUNT = "mbarrier_init(&shared.empty[i], 4 * CONSUMERS)"
report = attempt((COUNT, "mbarrier_init(&shared.empty[i], 4 * CONSUMERS + 1)"))

# %% [markdown]
# The first round works, since no arrival is needed for it. Then 8 of 9 arrivals have come. A kernel
# with this bug passes every test with K up to 3 tiles.
#
# **Parity inverted**: `phase` instead of `phase ^ 1` in the producer.

# %%
report = attempt((EMPTY, "mbarrier_wait_parity(&shared.empty[stage], phase);"))

# %% [markdown]
# Nothing ever starts: the producer waits for a slot to be handed back that nobody has filled. The
# emulator even says which parity a first wait for an empty buffer needs.
#
# ## 7. What the tensor core adds up
#
# s04, s05 and s06 give the same bits. How good are they? Let us add ones: 1 x 1, K times. **Guess**
# the three sums.

# %%
for k in (8192, 16384, 32768):
    ones = torch.ones(64, k).to(torch.float8_e4m3fn)
    print(f"{k:,} ones: {tensor_core.wgmma(ones, ones[:8])[0, 0]:,.0f}")

# %% [markdown]
# FP32 could count to 16,777,216. This accumulator stops at 16,384, which is 2 to the 14th: it keeps
# **14 significant bits**, not 24. Every product is first aligned to the largest term, and what lies
# below the sum's last bit is cut off, *before* the 32 products of a step are added to each other.
# At 16,384 the last bit is worth 2, and each 1 is cut to 0.
#
# Real data fades instead of stopping. One element, positive inputs:

# %%
generator = torch.Generator().manual_seed(0)
positive = [quantize.quantize(torch.randn(rows, 16384, generator=generator).abs()).data
            for rows in (64, 16)]
views.running_sum(*positive)

# %% [markdown]
# Below: each time that the sum doubles, its last bit is worth twice as much. Near the end it is
# worth more than a typical product. What is cut off is always a loss, so the losses add up.
#
# With zero-mean inputs the sum stays small, and what is cut off has either sign. **Guess:** when K
# grows 16-fold, how much does each error grow?

# %%
for inputs in ("zero-mean", "positive"):
    few, many = (views.accumulation_errors(k, inputs)["tensor core"] for k in (1024, 16384))
    print(f"{inputs:<10} {few:.1e} at K = 1,024, {many:.1e} at K = 16,384: {many / few:.1f} times")

# %%
views.accumulation()

# %% [markdown]
# Both axes are logarithmic. Positive data: the error grows like K. Zero-mean data: between the root
# of K and K. The dotted lines add the same products with FP32's 24 bits; nothing else differs, the
# inputs are the same FP8 numbers.
#
# The kernel has exactly these bits. It runs here with FP32 output, on CPU tensors:

# %%
left, right_side = (quantize.quantize(torch.randn(rows, 4096, generator=generator).abs())
                    for rows in (64, 16))
tile = s06_warp_specialized.Config(64, 16, stages=4, consumers=1)
d = s06_warp_specialized.gemm(left, right_side, tile, out_dtype=torch.float32)
alone = tensor_core.wgmma(left.data, right_side.data) * (left.scale * right_side.scale)
exact = quantize.reference(left, right_side)
print("the kernel and the arithmetic alone, the same bits:", torch.equal(d, alone))
print(f"elements that are too small: {(d < exact).float().mean():.0%}, "
      f"by {1 - (d / exact).mean():.1%} on average")

# %% [markdown]
# Trained weights are nearly zero-mean, one reason why models survive it. Probabilities after a
# softmax and activations after a ReLU are positive; where the weights lean to one side as well, the
# loss shows.
#
# ## 8. Was it worth it?
#
# **Guess** before you look: how much faster than s05 is s06? If there are figures, compare rows of
# the same size and the same GPU.

# %%
views.recorded("s05_pipelined")

# %%
views.recorded("s06_warp_specialized")

# %% [markdown]
# On the recorded H100 the two are level: at this size the loop runs at the tensor core's rate in
# both, and what is left is each CTA's beginning and end, one after the other on an SM, which roles
# alone do not shorten. What they give is room: registers for the promoted sums of s07, and a
# producer that can run ahead into the next tile when CTAs stay.
#
# The same call, wherever you are:

# %%
d = s06_warp_specialized.gemm(a.to(device), b.to(device), config)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")

# %% [markdown]
# ## Recap
#
# - One elected **producer** thread waits for empty slots and asks TMA; **consumer** warpgroups wait
#   for full slots, multiply and hand back. No barrier of all threads stands in the loop.
# - `full`: 1 arrival and the tile's bytes. `empty`: one arrival for each consumer warp, after
#   `wait_group`.
# - The producer's first wait asks for parity 1, the phase before the first, and passes.
# - `setmaxnreg` moves registers by the warpgroup, within the CTA's pool. Ask for more, and an
#   `.inc` waits forever.
# - `stmatrix` stores accumulators a matrix at a time, without conflicts in the swizzled tile; each
#   consumer meets and stores by itself.
# - A timeline shows who waits. The ring must cover the time that a slot is occupied.
# - The tensor core sums with 14 bits and cuts off. Positive data loses in proportion to K.
#
# ## Quiz
#
# **1.** Why does the producer keep a whole warpgroup, when one thread works?
#
# <details><summary>Answer</summary>
# `setmaxnreg` is an instruction of a warpgroup: all its four warps execute it. A producer of one
# warp could not give its registers away.
# </details>
#
# **2.** With three slots and K of three tiles: how often does the producer really wait for an empty
# slot?
#
# <details><summary>Answer</summary>
# Never. Three waits for parity 1 pass on fresh barriers.
# </details>
#
# **3.** A consumer arrives for slot `before`, not for slot `stage`. Why?
#
# <details><summary>Answer</summary>
# `wait_group<1>` leaves the newest group in flight, which still reads slot `stage`. Only the group
# before it is done.
# </details>
#
# **4.** The last slots are never handed back. Is that a bug?
#
# <details><summary>Answer</summary>
# No. Nobody waits for them: the producer has asked for its last tile. It would be one in a kernel
# that goes on to another tile of `d`.
# </details>
#
# **5.** Three consumers with 160 registers each and a producer with 32: is the budget kept? How
# much is left?
#
# <details><summary>Answer</summary>
# Four warpgroups get 128 registers a thread at launch: a pool of 65,536. 128 x (3 x 160 + 32) is
# 65,536 as well: kept, and nothing is left.
# </details>
#
# **6.** You sum 4,096 positive products on the tensor core. Would it help to sort them?
#
# <details><summary>Answer</summary>
# From small to large, somewhat: the small ones would meet a small sum. It is not practical for a
# matrix, whose columns all want another order. Shorter sums help: that is the next lesson.
# </details>
#
# ## Exercises
#
# **1. Break it.** Let both consumers use the same named barrier: `bar_sync(1, kWarpgroup)`. What
# does the emulator say?
#
# <details><summary>Hint</summary>
# `attempt(("bar_sync(1 + warpgroup, kWarpgroup)", "bar_sync(1, kWarpgroup)"))`. The result may well
# be right: which threads made the barrier open?
# </details>
#
# **2. Break it.** A count too *small*: `mbarrier_init(&shared.empty[i], 4)`. Run it under `"late"`,
# `"early"` and 3. Explain why the three differ.
#
# <details><summary>Hint</summary>
# The eight arrivals of a step complete two phases, so that `empty` runs ahead. Then a wait may pass
# too early, or wait for a parity that has come and gone.
# </details>
#
# **3. Change it.** Let every consumer thread arrive on `empty`, not only lane 0. Which count must
# change? Compare the instructions of the class `synchronisation` in the reports.
#
# <details><summary>Hint</summary>
# Two edits: `4 * CONSUMERS` to `kWarpgroup * CONSUMERS` in the init, and
# `k0 > 0 && threadIdx.x % 32 == 0` to `k0 > 0`. Each report has
# `counters["instructions_by_class"]`.
# </details>
#
# **4. Change it.** Keep no products in flight: `wgmma_wait_group<0>` in the loop, and hand back
# `shared.empty[stage]` in every step. Draw the timeline of the edited stage with 2 slots. Who
# gains, who loses?
#
# <details><summary>Hint</summary>
# Edit `wgmma_wait_group<1>();` and the line `ARRIVE`. With two slots the slot comes back one step
# earlier, which is worth more than the overlap; with four it hardly matters, since the other
# consumer keeps the tensor core busy.
# </details>
#
# **5. Predict it.** `views.accumulation(promote=128)` adds lines for sums that leave the tensor
# core every 128 products. Draw them on paper first: where do they begin, how steep are they?
#
# <details><summary>Hint</summary>
# At K = 128 there is one part only: they begin where the tensor core's line begins. Afterwards each
# part has that same error, and FP32 adds next to none.
# </details>
#
# ## Further reading
#
# - PTX ISA:
#   [setmaxnreg](https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-setmaxnreg),
#   [elect.sync](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-elect-sync),
#   [stmatrix](https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix),
#   and "mbarrier".
# - CUTLASS documentation: "Efficient GEMM in CUDA", section "Warp Specialization".
# - Bauer, Cook, Khailany, *CudaDMA: Optimizing GPU Memory Bandwidth via Warp Specialization* (SC
#   2011), where the idea comes from.
# - Fasi, Higham, Mikaitis, Pranesh, *Numerical behavior of NVIDIA tensor cores* (PeerJ Computer
#   Science, 2021).
# - DeepSeek-AI, *DeepSeek-V3 Technical Report* (arXiv 2412.19437), section 3.3.2, which reports the
#   same short accumulator in training.
#
# **Next:** [07 Promoted accumulation](07_promoted.ipynb): the sums leave the tensor core every 128
# products, and a scale for every block comes with them.
