# %% [markdown]
# # 12 Swapped: for few rows, the weights are the 64-row side
#
# **You will be able to**
# - count what a tile of 64 rows does in vain for eight tokens;
# - turn a tile on its side: which operand is whose, which thread holds what, whose scale is where;
# - say why the bits stay the same, from the tensor core's rule;
# - write a transposed tile back with `stmatrix.trans`;
# - say what limits a product of few rows, and from the datasheet how far one can come.
#
# **You need to know** lesson 04, WGMMA and its accumulators; lesson 06, the tensor core's own sums;
# lesson 11, the kernel for many rows.
#
# **Time:** 40 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 10, groups; 11, the library's kernel for many rows. **This lesson adds** the one
# for few, as when a model writes its answer token by token: the same parameters, layouts and bits,
# another shape of tile.
#
# **Where it lives:** `minigemm/kernels/s12_swapped.cu`, the kernel;
# `minigemm/kernels/s12_swapped.py`, its config; `minigemm/plan/choose.py`, which kernel a call
# gets.

# %%
from dataclasses import replace

import minigemm
import torch
from minigemm import emulator, quantize, views
from minigemm.hopper import H200
from minigemm.kernels import s11_overlapped, s12_swapped

device = views.device()

# %% [markdown]
# ## 1. 64 rows for eight tokens
#
# A WGMMA computes 64 rows, whatever you give it. With eight tokens, 56 rows of a tile of a are
# zeros that TMA fills in. Their products are computed, promoted, converted, and thrown away. Its
# *other* side may be as narrow as 8. So s12 makes the weights the 64 rows, and the tokens the 8
# columns.
#
# Eight tokens, 64 rows of weights, 1024 columns. **Guess** which counts fall to an eighth.

# %%
tokens = quantize.quantize(quantize.activations(8, 1024), "1x128")
w = quantize.quantize(quantize.weights(64, 1024), "128x128")
upright = s11_overlapped.Config(64, 64, 8, 1)
swapped = s12_swapped.Config(8, 64, 4, 1, blocks=4)
with minigemm.observe(timeline=True, hazards=False) as seen:
    expected = s11_overlapped.gemm(tokens, w, upright)
    found = s12_swapped.gemm(tokens, w, swapped)
print("the same bits:", torch.equal(found, expected))
reports = {"s11, 64 x 64": seen[0], "s12, 8 x 64": seen[1]}
views.compare(reports)

# %% [markdown]
# As many WGMMAs, each with an eighth of the products. What is stored falls to an eighth, too, and
# so does what is promoted. (The bytes that TMA loads count the zeros.)

# %%
for name, report in reports.items():
    width = 64 if name.startswith("s11") else 8
    products = report.counters["wgmma"] * 64 * width * 32
    adds = report.counters["instructions_by_class"]["fma"]
    print(f"{name}: {products:>9,} products, {adds:>6,} multiply-adds of the promotion, for "
          f"{8 * 64 * 1024:,} products that count")

# %% [markdown]
# No product is in vain now. With 32 or 64 tokens the gain is smaller. **Guess** how many cycles the
# narrow instruction takes of those of the wide one: an eighth?

# %%
picture = views.wgmma_widths(marked=(8, 16, 32, 64))
print(picture)
picture

# %% [markdown]
# It still reads 64 rows of weights from shared memory, and that is what takes its time. So the
# tensor core wins little. The consumers win, who promote:

# %%
views.timeline(reports)

# %% [markdown]
# Take the order from it and not the speed: in the model s11 waits for the zeros, too, as if they
# came from memory.
#
# ## 2. A tile on its side
#
# d = a bᵀ, so dᵀ = b aᵀ. Both operands lie in shared memory with k along their rows, and WGMMA
# wants both so. Nothing has to be transposed on the way in: the two descriptors change places.

# %%
views.diff(
    views.excerpt("s11_overlapped", "// partial (kWave, BLOCK_N)", "wgmma_commit_group"),
    views.excerpt("s12_swapped", "// partial (kWave, BLOCK_M)", "wgmma_commit_group"))

# %% [markdown]
# On its way out it is another matter. The accumulators hold a tile of dᵀ. Here is the picture of
# lesson 04 for 16 tokens: rows are now *columns* of d, columns are tokens. **Guess:** in s11 a lane
# needs two scales of a. How many now?

# %%
views.accumulators(n=16, thread=37)

# %% [markdown]
# A lane's sums belong to two tokens in every eight: 4 tokens of 16, and 16 of 64. In return the 64
# weights lie in one block, so that b has one scale, with no border inside the tile.

# %%
views.diff(
    views.excerpt("s11_overlapped", "// acc += partial", "fmaf("),
    views.excerpt("s12_swapped", "// acc += partial", "fmaf("))

# %% [markdown]
# ## 3. The same bits
#
# A caller must not notice which kernel computed a row. **Guess** what could differ: the products,
# the order of their sum, the rounding?

# %%
rows = quantize.quantize(quantize.activations(40, 7 * 128), "1x128")
weights = quantize.quantize(quantize.weights(200, 7 * 128), "128x128")
with minigemm.observe() as seen:
    reference = s11_overlapped.gemm(rows, weights, s11_overlapped.Config(128, 64, 3, 2))
    for block_m, blocks in ((8, 4), (16, 2), (40, 4), (64, 1)):
        config = s12_swapped.Config(block_m, 64, 2, 1, blocks=blocks)
        d = s12_swapped.gemm(rows, weights, config)
        print(f"{block_m:>2} x 64, BLOCKS = {blocks}: {torch.equal(d, reference)}")
print("hazards:", sum(len(report.hazards) for report in seen))

# %% [markdown]
# The rule of the tensor core, from lesson 06: within a step of 32 products it aligns all of them to
# the largest, cuts them off, and adds. A product is the same number whichever factor is whose. The
# order inside a step does not matter. And the steps come in the same order along k. So the rule is
# **symmetric**:

# %%
numbers = torch.Generator().manual_seed(1)
left, right = (torch.randn(64, 256, generator=numbers).to(torch.float8_e4m3fn) for _ in range(2))
one = emulator.tensor_core.wgmma(left, right)
other = emulator.tensor_core.wgmma(right, left)
print("b a^T is the transpose of a b^T, bit for bit:", torch.equal(one, other.T))
factors = [8.0, 1.125, 0.0625, 0.03125], [3.5, 1.25, 0.109375, 0.0625]
views.alignment(*factors, title="swap the factors: the same bits are cut off")

# %% [markdown]
# The promotion multiplies `sfa * sfb` first, in both kernels, and adds k-block by k-block. Had it
# been `(sfb * partial) * sfa` in one of them, the last bit of a sum would often differ. And nothing
# splits k. So "batch invariant", a row's bits depend on that row alone, costs nothing: it is always
# so.
#
# ## 4. Back again
#
# d wants rows of tokens. `stmatrix.trans` transposes 8 x 8 matrices while it writes them: a lane
# still hands over two neighbours in a register, but they land below each other.

# %%
views.code("s12_swapped", "write", mark="stmatrix_x2_trans")

# %% [markdown]
# **Guess** what d looks like without `.trans`, and what the emulator says. The header beside the
# kernel is taken instead of the package's, as in lesson 08.

# %%
from pathlib import Path

import minigemm.kernels

copy = views.edited("s12_swapped", "#pragma unroll", "#pragma unroll")  # in a folder of its own
header = (Path(minigemm.kernels.__file__).parent / "ptx.cuh").read_text()
copy.with_name("ptx.cuh").write_text(header.replace(".x2.trans.", ".x2."))
sixteen = s12_swapped.Config(16, 64, 2, 1, blocks=2)
with minigemm.observe() as seen:
    plain = s12_swapped.gemm(rows, weights, sixteen, source=copy)
print("hazards:", len(seen[0].hazards))
views.mismatches({"without .trans": plain}, reference)

# %% [markdown]
# No hazard: every access is in order. In each 8 x 8 matrix only the diagonal is right.
#
# ## 5. Several k-blocks in a slot
#
# A k-block of 64 rows of weights is 8 KiB. To keep memory busy, many must be under way, and each
# costs barriers, waits and a few instructions. So a slot holds `BLOCKS` of them, that **one copy**
# brings: the map sees k as 128 columns in blocks, and a box has three sides.

# %%
from minigemm.kernels import grouped

d = torch.empty(40, 200, dtype=torch.bfloat16)
for blocks in (1, 4):
    config = s12_swapped.Config(40 if blocks == 4 else 64, 64, 2, 1, blocks=blocks)
    launch = grouped.launch_dense(rows.data, rows.scale, weights.data, weights.scale, d, config)
    b_map = launch.args[grouped.PARAMETERS.index("b_map")]
    print(f"BLOCKS = {blocks}: b as {tuple(b_map.tensor.shape)}, box {b_map.box}")

# %% [markdown]
# Its consumers issue four products at once and promote them one after the other. Here is what one
# pass does:

# %%
views.code(views.excerpt("s12_swapped", "for (; step + BLOCKS <= loaded", "release(shared.empty"),
           mark="BLOCKS - 1 - i")

# %% [markdown]
# **Guess** which of the counts fall with more blocks a slot: bytes, copies, waits, instructions?

# %%
long = quantize.quantize(quantize.activations(32, 4096), "1x128")
wide = quantize.quantize(quantize.weights(64, 4096), "128x128")
counted = {}
for blocks in (1, 2, 4):
    config = s12_swapped.Config(32, 64, 16 // blocks, 1, blocks=blocks)
    with minigemm.observe(hazards=False, fast=True) as seen:
        s12_swapped.gemm(long, wide, config)
    counted[f"{blocks} a slot"] = seen[0]
    sync = seen[0].counters["instructions_by_class"]["synchronisation"]
    print(f"{blocks} a slot: {sync:,} instructions that synchronise")
views.compare(counted)

# %% [markdown]
# The bytes stay: all three hold 16 k-blocks in their rings. What falls is the number of times that
# somebody has to be asked.
#
# ## 6. What is left: memory
#
# Each weight is read once, and used for few tokens. The floor of a product is the longer of two
# times, by an H200's datasheet: operations, and bytes. **Guess** from how many tokens on the tensor
# core is the limit, for 4096 x 7168 weights.

# %%
n, k = 4096, 7168
for m in (1, 8, 32, 64, 128, 256, 512):
    floor, products = H200.floor(m, n, k), 2 * m * n * k / H200.fp8
    moved = k * (m + n) + 2 * m * n
    limit = "memory" if floor > products else "the tensor core"
    print(f"m = {m:>3}: {moved / 1e6:5.1f} MB, of which {n * k / moved:4.0%} weights; "
          f"floor {floor * 1e6:5.2f} us: {limit}")

# %% [markdown]
# Up to 64 tokens a product costs about as much as for one. The weights have to come, and that is
# all. So three things count: loads that begin at once, many bytes under way, and no line of L2
# wasted on weights that nobody reads again (`evict_first`, lesson 11: a single tile reads them).
#
# More bytes under way need more SMs, one would think. 4096 rows of weights make 64 tiles for 132
# SMs. Is it worth splitting k over two CTAs? It was tried:

# %%
views.recorded_ideas(part="settled")

# %% [markdown]
# ## 7. Which kernel does a call get?
#
# The library has measured every tile of both kernels on a GPU, and predicts the time of each for
# the product at hand. **Guess** where it changes from one to the other.

# %%
from minigemm.plan import choose
from minigemm.types import Product

for m in (1, 8, 32, 64, 128, 256, 1024, 4096):
    chosen = choose.config_for(Product(m, n, k), torch.device("cpu"))
    stage = "s12" if isinstance(chosen, s12_swapped.Config) else "s11"
    print(f"m = {m:>5,}: {stage}, {chosen.block_m:>3} x {chosen.block_n}, {chosen.stages} slots")

# %% [markdown]
# You may choose yourself: `config=` of the library's calls takes a config of either stage.
# **Guess** what differs in the result.

# %%
operands = (tokens.data, tokens.scale), (w.data, w.scale)
results = [minigemm.fp8_gemm_nt(*operands, config=config)
           for config in (None, upright, swapped, replace(swapped, block_m=16))]
print("the same bits:", all(torch.equal(result, expected) for result in results))

# %% [markdown]
# ## 8. Break it
#
# Sixteen tokens, five k-blocks, two in a slot: the last slot is half full.

# %%
import re
import textwrap
import warnings

x = quantize.quantize(quantize.activations(16, 5 * 128), "1x128")
y = quantize.quantize(quantize.weights(2 * 64, 5 * 128), "128x128")
little = replace(sixteen, ctas=1)
good = s12_swapped.gemm(x, y, little)


def attempt(old, new, schedule="late", kind=""):
    source = views.edited("s12_swapped", old, new)
    with minigemm.observe(schedule=schedule) as runs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's; read them once without this line
        try:
            result = s12_swapped.gemm(x, y, little, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in runs[0].hazards)) or "none"
            word = "right" if torch.equal(result, good) else "WRONG"
            said = [f"{schedule}: result {word}; hazards: {kinds}",
                    *[str(hazard) for hazard in runs[0].hazards if hazard.kind == kind][:1]]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    text = re.sub(r"(?<!s12_swapped\.)\b(ptx\.cuh|prelude|tile\.cuh):\d+, called at ", "",
                  "\n".join(said))
    for line in text.splitlines()[:6]:
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))


# %% [markdown]
# **Wait for one less.** After two products are issued, the first is complete when *one* is left,
# the last when none is. Off by one:

# %%
attempt("finish(i, i, BLOCKS - 1 - i);", "finish(i, i, BLOCKS - i);", "late", "slot-overwritten")
attempt("finish(i, i, BLOCKS - 1 - i);", "finish(i, i, BLOCKS - i);", "early")

# %% [markdown]
# The sums are read too early, and the slot goes back while its last product may still read it.
#
# **Forget who arrives.** `full` expects the loader, and a lane for each scale of b. **Guess** what
# happens if we count as in s11, two arrivals.

# %%
attempt("1 + BLOCKS, 4 * CONSUMERS", "2, 4 * CONSUMERS", "late", "mbarrier")
attempt("1 + BLOCKS, 4 * CONSUMERS", "2, 4 * CONSUMERS", 1, "mbarrier")

# %% [markdown]
# Two lanes have written their scales, and the slot counts as full before its bytes are even asked
# for.
#
# **Forget the rest.** Five k-blocks are two slots and a half. Without the pass for the half slot:

# %%
attempt("if (step < loaded) {", "if (false) {", "late", "tma-load-not-awaited")

# %% [markdown]
# ## 9. On hardware
#
# What each idea gains by itself, timed without it and with it:

# %%
views.recorded_ideas("s12_swapped")

# %%
views.recorded("s12_swapped")

# %% [markdown]
# The same call, wherever you are:

# %%
d = s12_swapped.gemm(x.to(device), y.to(device), little)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), good)}")

# %% [markdown]
# ## Recap
#
# - WGMMA computes 64 rows, and 8 columns at the least. For few tokens the **weights** fill the
#   rows.
# - The descriptors change places; the accumulators hold dᵀ; a lane needs the scales of two tokens
#   in every eight, and one scale of b.
# - The tensor core's rule is **symmetric**, the steps come in the same order, and nothing splits k:
#   the bits are those of s11.
# - `stmatrix.trans` turns 8 x 8 matrices on their way to shared memory.
# - A slot holds several k-blocks, which one copy with a **box of three sides** brings.
# - What is left is memory: the weights have to come, once.
#
# ## Quiz
#
# **1.** 24 tokens. Which `block_m` wastes nothing, and what does s11 waste at best?
#
# <details><summary>Answer</summary>
# 24, a multiple of 8. s11 computes 64 rows, so 40 of 64 are in vain.
# </details>
#
# **2.** Why does s12 stop at 64 rows?
#
# <details><summary>Answer</summary>
# From there on s11 fills its 64 rows too, and promotes with fewer scales for each lane. With 64
# rows a tile of 64 x 64 is as good on either side; the measured paces decide.
# </details>
#
# **3.** `blocks * block_m` must be a multiple of 32. Why?
#
# <details><summary>Answer</summary>
# A slot's scales of a are 4 * block_m * blocks bytes, and TMA writes to addresses that are
# multiples of 128 bytes. With 32 floats the next slot begins at such an address.
# </details>
#
# **4.** Would the transposed tile have the same bits if the tensor core added its 32 products one
# after the other, with rounding?
#
# <details><summary>Answer</summary>
# Yes, if it went along k in both cases: factors may change places, the order would be the same. It
# would differ if the order depended on which operand is whose.
# </details>
#
# ## Exercises
#
# **1. Measure it.** For m = 8, 16, ..., 64, count the instructions of all threads in s11 with 64 x
# 64 and in s12. Where do they meet?
#
# <details><summary>Hint</summary>
# <code>seen[0].counters["instructions"]</code>, with <code>hazards=False, fast=True</code>.
# </details>
#
# **2. Break it.** In `issue`, compute `index` with `i` for `block`. The product of section 8 stays
# right. Which number of k-blocks shows the mistake?
#
# <details><summary>Hint</summary>
# In a full slot the two are equal. In the last one <code>i</code> is always 0: it must hold two
# k-blocks at least, so take <code>blocks=4</code>.
# </details>
#
# **3. Change it.** In `promote`, multiply by `sfb` first and by `sfa` then. In how many elements
# does d differ from s11's, as BF16 and with `out_dtype=torch.float32`?
#
# <details><summary>Hint</summary>
# <code>fmaf(sfa[i / 4][i % 2], sfb * partial[i], acc[i])</code>. Rounding to BF16
# hides what happens in the last bits.
# </details>
#
# ## Further reading
#
# - PTX ISA:
#   [wgmma.mma_async](https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma),
#   [stmatrix](https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix).
# - Williams, Waterman, Patterson, *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures* (CACM 2009).
# - Pope et al., *Efficiently Scaling Transformer Inference* (arXiv 2211.05102): why decoding is a
#   matter of bytes.
#
# **Next:** a stage of your own. [Writing a stage](../docs/stage.md) says what belongs to it.
