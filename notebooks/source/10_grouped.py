# %% [markdown]
# # 10 Grouped: the experts of a layer in one launch
#
# **You will be able to**
# - turn a router's choices into the two layouts that libraries use, and count what each wastes;
# - say which part of a tile is multiplied, which is written, and by whom, where a group ends inside
#   it;
# - follow a warp that finds its tile among groups whose sizes only the device knows;
# - explain why no call may read those sizes on the host, and what a CUDA graph has to do with it;
# - compute a mixture-of-experts layer with the library's calls, and check it against float64.
#
# **You need to know** lesson 08: tiles by number, the scheduler, slots that go on from tile to
# tile; from lesson 07, the scales.
#
# **Time:** 60 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 06, roles; 07, promotion; 08, a CTA for each SM. **This lesson adds** groups:
# products that each have their own rows of `a` and their own `b`. Lessons 11 and 12 make the kernel
# faster; the library's calls, such as `minigemm.fp8_gemm_nt`, run those versions, with the same
# bits.
#
# **Where it lives:** `minigemm/kernels/s10_grouped.cu`, the kernel;
# `minigemm/kernels/scheduler.cuh`, how it finds its tiles; `minigemm/kernels/grouped.py`, its
# launches; `minigemm/api.py`, the library's calls.

# %%
from dataclasses import replace

import minigemm
import torch
from minigemm import quantize, views
from minigemm.kernels import grouped, s10_grouped
from minigemm.layout import ceil_div

device = views.device()

# %% [markdown]
# ## 1. A router
#
# In a mixture-of-experts layer a small linear layer, the router, scores all experts for each token.
# Softmax, the two likeliest: these two compute the token, and their results are added with the
# router's weights. Here the logits are random, and some experts are more popular than others, as in
# real models. **Guess:** 160 tokens, 8 experts, 2 for each token. How many rows does the busiest
# get, how many the quietest?

# %%
tokens, experts, top_k = 160, 8, 2
found = views.route(tokens, experts, top_k, imbalance=1.0, seed=37)
views.routing(found)

# %% [markdown]
# Forty on average, 134 at most, and none for expert 7. In the next step of the model the counts
# will be others.
#
# Each expert is a product with its own weights: `m` rows, from 0 to 134. One launch for each would
# do, as in lesson 08.
# **Guess** what share of an H100's 132 SMs such a launch uses, for weights with 2048 rows.

# %%
for expert, m in enumerate(found.counts):
    tiles = ceil_div(m, 128) * ceil_div(2048, 128)
    print(f"expert {expert}: {m:>3} rows, {tiles:>2} tiles of 128 x 128: "
          f"{tiles / 132:.0%} of the SMs")
print(f"together: {sum(ceil_div(m, 128) for m in found.counts) * 16} tiles")

# %% [markdown]
# Eight launches, each with most SMs idle, one of them for nothing; or one launch with about one
# full wave. And a host that wants to launch by expert must first *know* the counts: it waits for
# the router. That costs more than the products.
#
# ## 2. Contiguous: one behind the other
#
# Sort the rows by expert, and tell the kernel for each row whose it is: an int32 **id**, -1 for
# padding. A choice, a token with one of its experts, becomes a row:

# %%
choices, ids, ends = found.contiguous(alignment=1)
for row in (0, 60, 61, 99):
    token, i = divmod(int(choices[row]), top_k)
    weight = float(found.weights[token, i])
    print(f"row {row:>3}: id {int(ids[row])}, token {token:>3}, its choice {i}, "
          f"weight {weight:.2f}")
print("where the experts end:", ends.tolist())

# %% [markdown]
# Many libraries want each group to begin at a multiple of 128 rows. Then a tile of 128 rows belongs
# to one group, and a kernel for dense products needs only another `b`. **Guess** how many of the
# rows are padding then, before you look.

# %%
config = s10_grouped.Config(block_m=128, block_n=128, stages=5, consumers=2)
picture = views.contiguous_layout(found, config, alignments=(128, 1))
print(picture)
picture

# %% [markdown]
# Above, 128: simple, and most of it is waste. Below, 1: no padding at all, but a tile can meet
# several groups. It is then computed **once for each**: a *part* of a tile. Parts of the same tile
# lie below each other.
#
# A tile has two consumers of 64 rows. One that has no row of the part multiplies nothing (dark
# grey). The light part of a box is multiplied in vain: the tensor core knows only 64 rows at a
# time.
#
# Now the real kernel, with both alignments. **Guess** with which one it reads fewer bytes.

# %%
hidden, inner = 256, 128
x = quantize.activations(tokens, hidden)


def stacked(n, k, seed):
    each = [quantize.quantize(quantize.weights(n, k, seed=seed + e), "128x128")
            for e in range(experts)]
    data = torch.stack([q.data.view(torch.uint8) for q in each]).view(torch.float8_e4m3fn)
    return each, (data, torch.stack([q.scale for q in each]))


up_each, up = stacked(2 * inner, hidden, seed=100)


def gathered(choices):
    rows = torch.zeros(len(choices), hidden)
    rows[choices >= 0] = x[choices[choices >= 0] // top_k]
    return quantize.quantize(rows, "1x128")


def contiguous(rows, weights, ids, tile=config, source=None):
    tile = replace(tile, layout=grouped.CONTIGUOUS)
    d = torch.zeros(len(ids), weights[0].shape[1], dtype=torch.bfloat16)
    launch = grouped.launch_contiguous(rows.data, rows.scale, *weights, d, ids, tile)
    s10_grouped.stage.run(launch, tile, d.device, source)
    return d


# %%
results, reports = {}, {}
for alignment in (128, 1):
    choices, ids, ends = found.contiguous(alignment)
    with minigemm.observe() as seen:
        d = contiguous(gathered(choices), up, ids)
    name = f"alignment {alignment}"
    results[name], reports[name] = d[choices >= 0], seen[0]
    # 4 instructions for 64 rows and a k-step; 2 steps, 2 columns of tiles
    multiplied = seen[0].counters["wgmma"] // 16 * 64
    print(f"{name}: {len(ids)} rows of d; {multiplied} rows multiplied for {int((ids >= 0).sum())}")
print("the same bits:", torch.equal(*results.values()))
views.compare(reports)

# %% [markdown]
# The rows that count have the same bits. Alignment 1 multiplies and loads a little more, since one
# of its tiles more is cut by groups. It stores much less, and everything *around* the kernel, the
# gather, the casts, the activation function, works on 320 rows instead of 1,024.
#
# **Ends instead of ids.** In the layout `PREFIX_SUMS` the kernel gets one number for each group,
# where it ends, and finds the start by itself. A tile can then begin where its group begins.
# **Guess:** is the number of parts larger or smaller?

# %%
picture = views.contiguous_layout(found, config, alignments=(1,), prefix_sums=True)
print(picture)
picture

# %% [markdown]
# Smaller: 8 parts, and no tile serves two groups. Ids describe any order of rows, even a mixed one;
# ends need them sorted. (Tiles begin at a multiple of 4 rows, at most 3 before their group: TMA
# reads the scales from there on.)
#
# ## 3. Masked: a buffer for each
#
# When tokens come from other GPUs, nobody can pack them tightly: each expert gets a buffer that is
# large enough, and a
# **count** of the rows that arrived. What lies behind the count is whatever was there before.

# %%
t = 256
views.masked_layout(found, t, config)

# %% [markdown]
# Of the tiles that the buffers could hold, 8 are taken. Nothing behind a count is read into a
# result or written. Let us fill it with NaN, in `a` and in `d`. **Guess** how many NaN there are in
# `d` afterwards:

# %%
choices_m, counts = found.masked(t)
a = gathered(choices_m.flatten())
unused = (choices_m.flatten() < 0)[:, None]
poisoned = a.data.view(torch.uint8).masked_fill(unused, 0x7F).view(torch.float8_e4m3fn)
a_masked = poisoned.view(experts, t, hidden), a.scale.reshape(experts, t, -1)
d = torch.full((experts, t, 2 * inner), float("nan"), dtype=torch.bfloat16)


def masked(counts):
    tile = replace(config, layout=grouped.MASKED)
    return grouped.launch_masked(*a_masked, *up, d, counts, tile), tile, d.device


with minigemm.observe() as seen:
    s10_grouped.stage.run(*masked(counts))
print("rows with NaN:", int(d.isnan().any(2).sum()), "of", experts * t,
      "; behind the counts:", int((choices_m < 0).sum()))
print("bits of the contiguous layout:", torch.equal(d[choices_m >= 0], results["alignment 1"]))
print("hazards:", len(seen[0].hazards))

# %% [markdown]
# ## 4. Finding a tile
#
# A CTA knows its numbers: `c`, `c + 132`, and so on. In lesson 08 a division turned a number into a
# tile. Now the tiles of group 0 come first, then those of group 1; how many each has, only the
# counts on the device say. The simple way is a loop over the groups with a running sum. DeepSeek-V3
# has 256 experts.
#
# A warp can look at 32 groups at once: a **prefix sum** in five shuffles, then a ballot. Tile
# number 8, for the counts above, and 2 columns of tiles:

# %%
from minigemm.views import walks

walk = walks.group_search(
    grouped.MASKED, counts.tolist(), experts * t, 2 * inner, config, experts,
    span=t, ctas=4, cta=0
)
for search in walk:
    print(search.number, "->", search.part)
views.search(walk[2], experts)

# %% [markdown]
# These are the scheduler's own numbers: a small kernel on the emulator includes `scheduler.cuh` and
# writes down what its shuffles and ballots carry. In each step a lane adds what the lane 1, 2, 4,
# 8, 16 below it has. Then every lane knows the tiles up to and with its group, and votes. The first
# "yes" is the group; `__ffs` finds it, and a shuffle tells everybody.
#
# **Guess** how many such rounds a layer of 40 experts needs for a late tile.

# %%
many = views.route(600, 40, top_k, imbalance=1.0, seed=3)
late = walks.group_search(
    grouped.MASKED, many.counts, 40 * 256, 256, config, 40, span=256, ctas=60)
views.search(late[1], 40)

# %% [markdown]
# Two: the first 32 groups have fewer tiles than that. Their sum is remembered, so for its next tile
# the warp begins with group 32. A CTA passes each group once in its life, and an empty group costs
# nothing.

# %%
views.code("scheduler.cuh", "GroupedScheduler", mark="__ballot_sync(0xffffffff, number")

# %% [markdown]
# ## 5. What reaches the consumers
#
# Should consumers search, too? Eight warps would do the same work, with registers that they need
# for sums. Should the warp that loads? Then nothing is loaded while it searches, and with three
# slots in the ring the consumers soon wait. So a warp of the producer only searches, up to four
# parts ahead, and tells all others what it found:

# %%
views.code("scheduler.cuh", "Part", mark="first, middle, last")

# %% [markdown]
# Until now, barriers for TMA promised bytes. `told` publishes ordinary writes: lane 0 writes the
# part, then arrives, and the arrival orders its writes before the readers' reads. `heard` is the
# other way round: only when the thread that loads and each warp that computes have read a part may
# its place be written again.

# %%
views.code("scheduler.cuh", "Parts", mark="mbarrier_arrive(&told")

# %% [markdown]
# The changes as a whole. Look for the producer's warps: one *finds the parts*, and a thread of
# another, the loader, loads. And look for what knows the layout: the warp that finds the parts, and
# the row in which the scales of a begin.

# %%
views.diff("s08_persistent", "s10_grouped", context=1)

# %% [markdown]
# ## 6. A group ends inside a tile
#
# TMA stores boxes. A box of 64 rows of which 5 belong to another group would overwrite these 5. So
# a consumer whose rows are all the group's stores by TMA, and one with a border among them lets its
# threads write from registers, as for FP32: the rows of the part and no others. Padding they write
# too, as zeros. **Guess** the shares, for both alignments.

# %%
for name, report in reports.items():
    by_tma = report.counters["tma_store_bytes"]
    by_threads = report.counters["global_store_bytes"]
    print(f"{name}: {by_tma:>9,} bytes by TMA, {by_threads:>9,} by threads")

# %% [markdown]
# Only expert 2 has enough rows to fill boxes. Nearly all else goes by threads, and with alignment
# 128 most of that is zeros for padding. Threads need more instructions for fewer bytes; but large
# groups have few borders.
#
# ## 7. Numbers that stay on the device
#
# The calls take `grouped_layout` and `masked_m` as tensors and never look into them on the host.
# What then is the grid? It must not depend on them either:

# %%
for counts_of in ([0] * experts, found.counts, [t] * experts):
    launch, *_ = masked(torch.tensor(counts_of, dtype=torch.int32))
    print(f"{sum(counts_of):>5} rows: grid {launch.grid}, {launch.shared:,} bytes of shared memory")

# %% [markdown]
# As many CTAs as the fullest buffers could need, and at most one for each SM. A CTA that finds no
# tile ends at once.
#
# That is what a **CUDA graph** asks for: a sequence of launches recorded once, with fixed grids and
# pointers, and replayed for every token without a host in between. The router's kernel writes new
# counts to the same place, and the recorded product obeys them. On a GPU this cell captures a
# graph; on a CPU it sends the same launch again.

# %%
on = [tuple(part.to(device) for part in operand) for operand in (a_masked, up)]
live, d = counts.to(device), torch.zeros(experts, t, 2 * inner, dtype=torch.bfloat16, device=device)


def product():
    minigemm.m_grouped_fp8_gemm_nt_masked(*on, d, live)


replay = product
if device.type == "cuda":
    product()  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product()
    replay = graph.replay
for values in ([0] * 8, [0, 0, 3, 0, 0, 0, 0, 0], found.counts):
    live.copy_(torch.tensor(values))
    d.zero_()
    replay()
    print(f"counts {values}: rows written {(d != 0).any(2).sum(1).tolist()}")

# %% [markdown]
# ## 8. The layer
#
# All of it: gather, two products for each expert with an activation function between them, and the
# sum of each token's two results. Now by the library's calls, which choose a kernel and a tile, and
# which want to know the alignment. **Guess** the relative error of the whole layer; one product had
# about 3.6% in lesson 07.

# %%
down_each, down = stacked(hidden, inner, seed=200)


def activated(h):
    gate, value = h.float().chunk(2, -1)
    return torch.nn.functional.silu(gate) * value


def combined(y, choices):
    rows = choices >= 0
    weight = found.weights.flatten()[choices[rows]][:, None]
    sums = torch.zeros(tokens, hidden)
    return sums.index_add_(0, choices[rows] // top_k, y[rows].float() * weight)


# %%
minigemm.set_mk_alignment_for_contiguous_layout(1)
choices, ids, _ = found.contiguous(alignment=1)
with minigemm.observe() as contiguous_runs:
    h = minigemm.m_grouped_fp8_gemm_nt_contiguous(gathered(choices), up, grouped_layout=ids)
    h8 = quantize.quantize(activated(h), "1x128")
    y = minigemm.m_grouped_fp8_gemm_nt_contiguous(h8, down, grouped_layout=ids)
contiguous_layer = combined(y, choices)
print("hazards:", sum(len(report.hazards) for report in contiguous_runs))

# %% [markdown]
# Against the same layer in float64, once with the numbers before any cast, and each product against
# what *its own* FP8 inputs give exactly:

# %%
exact = torch.zeros(tokens, hidden, dtype=torch.float64)
for token in range(tokens):
    chosen, weights = found.chosen[token].tolist(), found.weights[token].double()
    for expert, weight in zip(chosen, weights, strict=True):
        w_up = quantize.weights(2 * inner, hidden, seed=100 + expert).double()
        w_down = quantize.weights(hidden, inner, seed=200 + expert).double()
        gate, value = (w_up @ x[token].double()).chunk(2)
        exact[token] += weight * (w_down @ (torch.nn.functional.silu(gate) * value))


def relative(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


def product_error(got, q, each):
    wanted = torch.zeros(got.shape, dtype=torch.float64)
    for expert in range(experts):
        rows = ids == expert
        data = q.data.view(torch.uint8)[rows].view(q.data.dtype)
        part = quantize.Quantized(data, q.scale[rows], "1x128")
        wanted[rows] = quantize.reference(part, each[expert])
    return relative(got, wanted)


print(f"the layer:          {relative(contiguous_layer, exact):.1%}, "
      "from float32 inputs to the sum of the experts")
print(f"its first product:  {product_error(h, gathered(choices), up_each):.2%}, "
      "from its FP8 inputs to BF16")
print(f"its second product: {product_error(y, h8, down_each):.2%}")

# %% [markdown]
# The kernels add the rounding of BF16 and no more. The rest is the price of four casts to e4m3:
# tokens, both weights, and what lies between the products.
#
# The same layer with buffers. **Guess** whether the two agree to the last bit; think of the order
# in which a token's two results are added.

# %%
with minigemm.observe(hazards=False):
    h = minigemm.m_grouped_fp8_gemm_nt_masked(a_masked, up, None, counts)
    h8 = quantize.quantize(activated(h).nan_to_num(0).flatten(0, 1), "1x128")
    second = h8.data.view(experts, t, inner), h8.scale.reshape(experts, t, -1)
    y_masked = minigemm.m_grouped_fp8_gemm_nt_masked(second, down, None, counts)
masked_layer = combined(y_masked.flatten(0, 1), choices_m.flatten())
print("rows of the experts, the same bits:", torch.equal(y_masked[choices_m >= 0], y))
print("the layer, the same bits:", torch.equal(masked_layer, contiguous_layer))

# %% [markdown]
# They do. Each row is computed alone, with the same scales and in the same order along k, wherever
# it lies; and both layouts are sorted by expert. (What lay behind the counts of `h` was never
# written: it may hold anything, so it is cleared before the cast.)
#
# ## 9. Break it
#
# Three edits of one place each. The rows come in three groups, 40, 30 and 130 of them, behind each
# other.

# %%
import re
import textwrap
import warnings

from minigemm import emulator

few = [40, 30, 130]
ids3 = torch.tensor([g for g, count in enumerate(few) for _ in range(count)], dtype=torch.int32)
rows3 = quantize.quantize(quantize.activations(sum(few), hidden), "1x128")
b3 = up[0][:3, :128].contiguous(), up[1][:3, :1].contiguous()


def run(source=None):
    tile = s10_grouped.Config(128, 64, stages=2, consumers=2, ctas=1)
    return contiguous(rows3, b3, ids3, tile, source)


right = run()


def attempt(old, new, schedule="late", shown=1):
    source, result = views.edited("s10_grouped", old, new), None
    with minigemm.observe(schedule=schedule) as runs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's; read them once without this line
        try:
            result = run(source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in runs[0].hazards)) or "none"
            word = "right" if torch.equal(result, right) else "WRONG"
            said = [f"{schedule}: result {word}; hazards: {kinds}", *map(str, runs[0].hazards[:shown])]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    text = re.sub(r"(?<!s10_grouped\.)\b(ptx\.cuh|scheduler\.cuh|prelude):\d+, called at ", "", "\n".join(said))
    for line in text.splitlines():
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))
    return result


# %% [markdown]
# **Always by TMA.** A consumer stores its whole box, whoever owns the rows. **Guess** what the
# emulator says, and which rows are wrong.

# %%
broken = attempt("const bool own = ", "const bool own = true || ")
views.mismatches({"always by TMA": broken}, right)

# %% [markdown]
# The emulator finds nothing to complain of: every access is in order, and inside `d`. A part that
# comes later repairs its own rows, so what is left wrong depends on the order, and on a GPU on
# chance. Only a test with a border inside a tile, and with rows that must *not* change, finds it.
#
# **Not everybody has heard.** A place for a part is free when all have read it: the consumers'
# warps, and the thread that loads. Forget that one in the count.

# %%
broken = attempt("shared.parts.init(4 * CONSUMERS + 1);",
                 "shared.parts.init(4 * CONSUMERS);", schedule=1)

# %% [markdown]
# The loader is early, so its arrival counts for that of a consumer's warp which has not read the
# part, and the warp that finds the parts writes over it. The result is right all the same, and with
# `schedule="late"` not even the hazard shows: whoever comes last is then always the same. That is
# what several schedules are for.
#
# **Nothing to do, nothing to say.** A consumer without rows skips the products, and forgets to hand
# back its slots.

# %%
broken = attempt(
    "if (threadIdx.x % 32 == 0) mbarrier_arrive(&shared.empty[stage]);\n      if (++stage",
    "if (++stage")

# %% [markdown]
# The count on `empty` is that of all consumers' warps. Who has no work must still say that he is
# done.
#
# ## 10. On hardware
#
# What was recorded on a GPU for the dense product of this stage, with the machine that gave it:

# %%
views.recorded("s08_persistent")

# %%
views.recorded("s10_grouped")

# %% [markdown]
# The library's call for the rows of section 2, wherever you are:

# %%
q = gathered(choices)
operands = [tuple(part.to(device) for part in operand) for operand in ((q.data, q.scale), up)]
d = minigemm.m_grouped_fp8_gemm_nt_contiguous(*operands, grouped_layout=ids.to(device))
print(f"on {device}: the same bits as the emulator's: "
      f"{torch.equal(d.cpu(), results['alignment 1'])}")
minigemm.set_mk_alignment_for_contiguous_layout(128)  # as it was

# %% [markdown]
# ## Recap
#
# - Experts are **groups**: products with their own rows and weights, computed by one launch. How
#   many rows each has is known on the device alone.
# - **Contiguous**: rows sorted by group, with an id a row or an end a group. **Masked**: a buffer
#   and a count for each group.
# - Alignment 128 is simple and wastes rows in everything around the kernel. With alignment 1 a tile
#   is computed once for each group that it meets.
# - A consumer without rows of the part multiplies nothing, but hands back its slots.
# - A warp finds a tile by looking at 32 groups at once: five shuffles for a prefix sum, one ballot.
# - One warp alone searches, ahead of all. What it found is published by `told`, and may be
#   overwritten behind `heard`.
# - TMA stores whole boxes; where a group ends among a consumer's rows, threads store.
# - Grid and arguments do not depend on the counts, so a CUDA graph obeys those of its replay.
#
# ## Quiz
#
# **1.** A group has 130 rows and starts at row 0; tiles are 128 high, with two consumers. How many
# waves of 64 rows are multiplied in a column of tiles?
#
# <details><summary>Answer</summary>
# Three: two in the first tile, and of the second only that of its first consumer, for 2 rows.
# </details>
#
# **2.** Why may the masked layout not simply multiply whole buffers and ignore the rest?
#
# <details><summary>Answer</summary>
# It would be right, as far as the counted rows go, but it would compute 2,048 rows instead of 576
# here, and it would overwrite what lies behind the counts. For a decoder with a token or two for
# each expert nearly all would be waste.
# </details>
#
# **3.** What would change in the prefix sum if a warp had 64 lanes?
#
# <details><summary>Answer</summary>
# One more step, with a distance of 32; 64 groups would be looked at together.
# </details>
#
# **4.** Why does the ballot ask for `number < sum` and not for `number == something`?
#
# <details><summary>Answer</summary>
# All lanes from the wanted group on say yes, those before it no; the first yes is the group. An
# empty group has the same sum as the one before it, so it is never the first.
# </details>
#
# **5.** The producer's warp calls shuffles in `next`. Why must all of its 32 lanes search, though
# one of them tells?
#
# <details><summary>Answer</summary>
# A shuffle or ballot with a full mask needs every lane to come. In s08 one elected lane could walk
# by itself: it divided.
# </details>
#
# ## Exercises
#
# **1. Measure it.** Draw the wasted rows against the alignment: 1, 16, 64, 128, 256, for 160 and
# for 16,000 tokens. When does 128 stop to matter?
#
# <details><summary>Hint</summary>
# <code>ids = views.route(tokens, 8).contiguous(alignment)[1]</code>, then
# <code>(ids < 0).float().mean()</code>. Padding is at most alignment - 1 rows a group, whatever the
# number of tokens.
# </details>
#
# **2. Break it.** Let `tell` arrive before it writes the part. What does the emulator say?
#
# <details><summary>Hint</summary>
# Put a scheduler.cuh of your own beside your copy of the kernel, as in lesson 08, and swap what
# stands before and behind the comma. Who reads early reads the part of four parts before, or
# nothing at all.
# </details>
#
# **3. Look at it.** Use tiles of 64 rows, `Config(64, 128, 6, 1)`, in sections 2 and 3. What
# happens to the parts, to the rows multiplied in vain, and to the bytes of `b`?
#
# <details><summary>Hint</summary>
# <code>views.contiguous_layout(found, s10_grouped.Config(64, 128, 6, 1))</code>, and the counter
# tma_load_bytes. Each tile brings its columns of b again.
# </details>
#
# **4. Change it.** Write the search as a loop over groups in one lane, and count its instructions
# for 256 experts.
#
# <details><summary>Hint</summary>
# Put a scheduler.cuh of your own beside your copy of the kernel, as in lesson 08. Launch twice:
# with one row in the first group, and with one row in the last. The counter "instructions" differs
# by the search. The lanes still have to agree on the part: a shuffle from the lane that searched.
# </details>
#
# **5. Think.** Four GPUs have two experts each. Which of the two layouts would you receive the
# tokens in, and who knows the counts when?
#
# <details><summary>Hint</summary>
# A sender that does not know how much the others send can only write to a place that is its own.
# </details>
#
# ## Further reading
#
# - DeepSeek-AI, *DeepSeek-V3 Technical Report* (arXiv 2412.19437), section 3: experts over many
#   GPUs, and what is done to keep counts on the device.
# - Gale, Narayanan, Young, Zaharia, *MegaBlocks: Efficient Sparse Training with Mixture-of-Experts*
#   (arXiv 2211.15841).
# - PTX ISA:
#   [shfl.sync](https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-shfl-sync),
#   [vote.sync](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-vote-sync).
# - M. Harris et al., *Parallel Prefix Sum (Scan) with CUDA*, GPU Gems 3, chapter 39.
# - CUDA C++ Programming Guide: "CUDA Graphs".
# - DeepGEMM, whose two grouped layouts these are.
#
# **Next:** [11 overlapped](11_overlapped.ipynb), the same kernel, faster. Its consumers still wait
# where they need not.
