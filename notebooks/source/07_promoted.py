# %% [markdown]
# # 07 Promoted accumulation: FP32 sums and a scale for every block
#
# **You will be able to**
# - explain why sums leave the tensor core every 128 products, and what that costs;
# - say which scales an element of `d` needs at each step, where they lie in memory, and why there;
# - find the tiles that need two scales of `b`, and know which widths are legal;
# - show with the real kernels that the error no longer grows with K, and what block scales do about
#   outliers;
# - tell a bug that the emulator can name from one that only a test of the right shape can find.
#
# **You need to know** lesson 06: the producer, the consumers, their barriers, and the tensor core's
# short accumulator; from lesson 00, what a scale is.
#
# **Time:** 60 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 03, tiles by TMA; 04, the tensor core; 05, a ring of slots; 06, roles. **This
# lesson adds** the arithmetic of a kernel that one can train with: promotion to FP32, 1x128 scales
# for activations, 128x128 scales for weights. It is the scheme of DeepSeek-V3.
#
# **Where it lives:** `minigemm/kernels/s07_promoted.cu`, the kernel;
# `minigemm/kernels/s07_promoted.py`, its launch; `minigemm/layout.py`, how scales lie;
# `minigemm/quantize.py`, how they are made.

# %%
import minigemm
import torch
from minigemm import emulator, layout, quantize, views
from minigemm.emulator import tensor_core
from minigemm.kernels import s06_warp_specialized, s07_promoted
from minigemm.types import Product

device = views.device()

# %% [markdown]
# ## 1. Two problems
#
# **The accumulator is short.** It holds 14 bits (lesson 06). But the loss comes late: while the sum
# is small, so is its last bit. One element, positive inputs. **Before you run the next cell,
# guess:** K = 16,384 lost about 22%. How much do the first 128 products lose?

# %%
generator = torch.Generator().manual_seed(0)
positive = [quantize.quantize(torch.randn(rows, 2048, generator=generator).abs()).data
            for rows in (64, 16)]
for k in (128, 512, 2048):
    short = tensor_core.wgmma(*(x[:, :k] for x in positive))
    exact = positive[0][:, :k].double() @ positive[1][:, :k].double().T
    print(f"K = {k:>5,}: {1 - (short.double() / exact).mean():.2%} lost on average")
views.running_sum(*positive)

# %% [markdown]
# So: take the sum out while it is short, add it to an FP32 register, begin anew at zero.
#
# **One scale serves all.** It follows the largest element of the tensor. Large language models have
# a few *massive activations*, up to 100,000 times the usual size (see "Further reading"). Here one
# of 65,536 elements is so large.
# **Guess** what share of the others keeps its 4 significant bits.

# %%
x = torch.randn(64, 1024, generator=generator)
x[3, 40] = 1e5
views.landing(x)

# %% [markdown]
# With one scale, nearly everything becomes subnormal or zero: one element has spoiled 65,535
# others. With a scale for each 1 x 128 it spoils its own 127 neighbours. A 128 x 128 block would be
# too coarse here: all 64 rows share it.
#
# ## 2. The change
#
# Both problems have the same solution. A scale that holds for 128 columns can be applied only while
# the sum of those 128 is still alone. Look for `promote`, and for what became of `scale`.

# %%
views.diff("s06_warp_specialized", "s07_promoted", context=1)

# %% [markdown]
# The core of it. `partial` comes from the tensor core, `acc` lives in ordinary registers:

# %%
views.code("s07_promoted", "promote", mark="fmaf")

# %% [markdown]
# One FMA an element does three things: it scales, it adds, and it rounds once, in FP32. In
# `compute`, `k > 0` says "accumulate": the first product of a block begins at zero.
#
# The whole stage in PyTorch, for 64 rows. The inputs differ in size from block to block of `b`, as
# real weights do.
# **Guess:** do kernel and loop agree to a few digits, or to the last bit?

# %%
w = quantize.weights(320, 640)
w[128:256] *= 4
a, b = quantize.quantize(quantize.activations(64, 640), "1x128"), quantize.quantize(w, "128x128")

acc = torch.zeros(64, 320)
for step in range(640 // 128):
    part = slice(128 * step, 128 * step + 128)
    partial = tensor_core.wgmma(a.data[:, part], b.data[:, part])
    factor = a.scale[:, step, None] * b.scale[:, step].repeat_interleave(128)[:320]
    acc = (factor.double() * partial + acc).float()  # an FMA: rounded once

config = s07_promoted.Config(block_m=64, block_n=160, stages=2, consumers=1)
with minigemm.observe() as seen:
    d = s07_promoted.gemm(a, b, config, out_dtype=torch.float32)
print("the same bits:", torch.equal(acc, d), "; hazards:", len(seen[0].hazards))

# %% [markdown]
# ## 3. Where the scales lie
#
# The scales of `b` are few: one or two floats a step for a whole tile. The scales of `a` are many:
# one for each row of the tile, new ones at every step. TMA should bring them with the tile.
# **Guess** the strides of `a.scale` for 70 rows and 5 blocks, and what TMA says to scales that lie
# row by row.

# %%
ragged_a = quantize.quantize(quantize.activations(70, 640), "1x128")
print("a.scale:", tuple(ragged_a.scale.shape), "strides", ragged_a.scale.stride(), end="; ")
print("M-major:", layout.is_m_major(ragged_a.scale))
print("b.scale:", tuple(b.scale.shape), "strides", b.scale.stride())
for m in (22, 70, 128):
    print(f"    {m} rows: the next block's scales begin {layout.empty_m_major(m, 5).stride(1)} "
          "floats further on")
for row_major in (ragged_a.scale.contiguous(), torch.ones(64, 4)):
    try:
        emulator.TensorMap(row_major, (64, 1))
    except ValueError as error:
        print(f"row-major {tuple(row_major.shape)}: {error}")

# %% [markdown]
# A tensor map wants strides of whole 16 bytes, and a box at least 16 bytes wide. Both fail for a
# column of floats. So the scales are stored **M-major**: all rows of one block of k lie next to
# each other, and each block begins at a multiple of 16 bytes. The tile's scales are then one piece
# of memory:

# %%
small = quantize.quantize(quantize.activations(22, 512), "1x128").scale
views.scale_layout({"M-major": small, "row-major": small.contiguous()}, rows=(0, 16), block=1)

# %% [markdown]
# The box is one block high and BLOCK_M wide, of the transposed view `(k / 128, m)`. The kernel
# promises its bytes on the same mbarrier as the two tiles, so consumers wait once for all three.

# %%
empty = torch.empty(64, 320, dtype=torch.bfloat16)
launch = s07_promoted.launch(a, b, empty, Product(64, 320, 640), config)
for name, described in zip(("a", "b", "sfa"), launch.args[:3], strict=True):
    fields = emulator.TensorMap(described.tensor, described.box, described.swizzle).descriptor
    print(f"{name:<4} dims {fields.dims}, strides {fields.strides} bytes, box {fields.box}: "
          f"{fields.box_bytes:,} bytes")
views.code("s07_promoted", "load")

# %% [markdown]
# The scales of `b` take another way: each lane fetches the scale of one future step, 32 steps with
# one load of 128 bytes, and `__shfl_sync` deals it out when its step comes.

# %%
views.code("s07_promoted", "fetch")

# %% [markdown]
# Which scale serves which element? The factors of one tile, from the real scales:

# %%
views.scale_map(a, b, config.block_m, config.block_n, tile=(0, 0), step=1)

# %% [markdown]
# Rows differ because each has its own `sfa`. At column 128 the block of `b` ends, in the middle of
# the tile: from there on the second scale is live. Try `tile=(0, 1)`, and guess first where the
# border lies.
#
# ## 4. A tile that crosses
#
# Why not keep to tiles of 128? Because the best width is whatever divides the problem well, and a
# matrix of 2112 columns is 11 tiles of 192. **Guess** which of these widths need two scales, and
# which would need three.

# %%
views.scale_columns(1280, (64, 96, 112, 128, 160, 192, 176))

# %% [markdown]
# Tiles begin at multiples of gcd(BLOCK_N, 128) within a block: 32 for 160, 16 for 176. The latest
# start before a border leaves that many columns in the first block; with more than 128 behind it, a
# third block begins. Hence the rule: BLOCK_N at most 128, or exactly 128 + gcd.

# %%
for block_n in (112, 144, 160, 176, 192, 256):
    legal = s07_promoted.is_legal(s07_promoted.Config(64, block_n, 2, 1), Product(64, 1280, 640))
    print(f"block_n = {block_n}: {'legal' if legal else legal.reason}")

# %% [markdown]
# (256 keeps the rule; its sums do not fit into registers.) In `promote`, `column` is rounded down
# to `kGrain`, the only places where a border can be. The compiler then needs one select for each
# such group and row, instead of one an element. **Guess** how many for 160 columns, in groups
# of 32.

# %%
from collections import Counter

for tile in ((128, 128), (128, 160), (256, 128)):
    loop = views.loop(minigemm.inspect("s07_promoted", s07_promoted.Config(*tile)))
    counts = Counter(instruction.opcode for instruction in loop)
    shown = ", ".join(f"{counts[opcode]} {opcode}"
                      for opcode in ("QGMMA", "FFMA", "FSEL", "FMUL", "LDS", "SHFL"))
    print(f"{tile[0]} x {tile[1]}: of {len(loop)} SASS instructions a step, {shown}")

# %% [markdown]
# 5 groups of 32 columns and 2 rows a lane: 10 selects beside 80 FMAs. The other instructions, about
# 90 a thread, are addresses, barriers and the loop.
#
# ## 5. What it costs
#
# Promotion runs on the FP32 units, 128 FMAs a cycle and SM. The tensor core does 4096 FP8 products
# a cycle (datasheet).
# **Guess:** the time of the FMAs as a share of the products' time. Does a larger tile help?

# %%
print("tile, consumers   FMAs a thread and step   cycles of FMAs   cycles of products   share")
for block_m, block_n, consumers in ((64, 64, 1), (128, 128, 2), (128, 160, 2), (256, 128, 2)):
    each = block_m * block_n // (128 * consumers)
    fmas, products = block_m * block_n / 128, block_m * block_n * 128 / 4096
    print(f"{block_m:>3} x {block_n:>3}, {consumers}{each:>28}"
          f"{fmas:>17.0f}{products:>21.0f}{fmas / products:>8.0%}")
counted = seen[0].counters["instructions_by_class"]["fma"]
print(f"\nthe emulator counted {counted:,} FMAs; m * n * k / 128 = {64 * 320 * 640 // 128:,}")

# %% [markdown]
# A quarter, for every tile: both counts grow with the tile's area. A quarter more time would be a
# bad bargain, unless it is *hidden*. A consumer cannot promote sums that are still being computed.
# But while it promotes, the other consumer's products can run.
#
# **Guess** the tensor core's share of time with one consumer and with two, for the same tile. (The
# model's TMA is made faster here, so that the tensor core is the limit, as it is with large tiles.)

# %%
tensor_a = quantize.quantize(quantize.activations(128, 2048))
tensor_b = quantize.quantize(quantize.weights(128, 2048))
block_a = quantize.quantize(quantize.activations(128, 2048), "1x128")
block_b = quantize.quantize(quantize.weights(128, 2048), "128x128")
modelled = {}
for consumers in (1, 2):
    rates = emulator.Rates(tma_bandwidth=128)
    with minigemm.observe(timeline=rates, hazards=False, fast=True) as runs:
        before = s06_warp_specialized.Config(128, 128, 4, consumers)
        s06_warp_specialized.gemm(tensor_a, tensor_b, before)
        s07_promoted.gemm(block_a, block_b, s07_promoted.Config(128, 128, 4, consumers))
    for stage, run in zip(("s06", "s07"), runs, strict=True):
        modelled[f"{stage}, consumers: {consumers}"] = run
for name, run in modelled.items():
    print(f"{name}: {run.timeline.end:>7,.0f} cycles, "
          f"tensor core busy {run.timeline.share('busy', 'tensor core'):.0%}")

# %%
views.timeline({name: run for name, run in modelled.items() if name.startswith("s07")},
               start=4000, end=7000)

# %% [markdown]
# One consumer: the tensor core stops whenever there is something to promote. Two: one promotes
# (blue) while the other's products run, in turns that nobody arranged. In s06 the second consumer
# hardly mattered; here it pays for promotion.
#
# ## 6. The error against K, once more
#
# Now the real kernels, FP32 output, a tile of 64 x 16 so that it takes moments. Each is measured
# against the exact product of *its own* FP8 inputs, so that the cast is no part of the error.
# **Guess** the slope of s07's lines.

# %%
stages = (("s06", s06_warp_specialized, ("tensor", "tensor")),
          ("s07", s07_promoted, ("1x128", "128x128")))
ks = (128, 512, 2048, 8192, 16384)
errors = {f"{name}, {kind}": [] for kind in ("positive", "zero-mean") for name, *_ in stages}
for kind, k in ((kind, k) for kind in ("positive", "zero-mean") for k in ks):
    inputs = [torch.randn(rows, k, generator=generator) for rows in (64, 16)]
    inputs = [x.abs() for x in inputs] if kind == "positive" else inputs
    for name, stage, granularities in stages:
        left, right = (quantize.quantize(x, g) for x, g in zip(inputs, granularities, strict=True))
        with minigemm.observe(hazards=False):
            result = stage.gemm(left, right, stage.Config(64, 16, 4, 1), out_dtype=torch.float32)
        exact = quantize.reference(left, right)
        errors[f"{name}, {kind}"].append(float((result.double() - exact).norm() / exact.norm()))
views.error_curves(ks, errors, "K", "FP32 output against float64", base=2)

# %% [markdown]
# s07 is flat: every block of 128 has its own error, the same for all, and FP32 adds next to none.
# For positive inputs at K = 16,384 that is a factor of several hundred. What remains lies below one
# rounding to BF16, 2 to the -9th, or about 0.002.
#
# Why 128, and not 64 or 512? Here is the tensor core's arithmetic alone, positive inputs, K =
# 2,048. Change the list.

# %%
INTERVALS = (32, 64, 128, 256, 512, 1024)

found = [views.accumulation_errors(2048, "positive", promote=every)[f"promoted every {every}"]
         for every in INTERVALS]
for every, error in zip(INTERVALS, found, strict=True):
    print(f"every {every:>5,}: error {error:.1e}, "
          f"FMAs take {4096 / 128 / every:.0%} of the products' time")
views.error_curves(INTERVALS, {"promoted": found}, "products between promotions",
                   "How often is often enough?", base=2)

# %% [markdown]
# Every 32 would be more exact and take as long as the products themselves. Every 256 would be
# cheaper and no better than BF16's rounding. At 128 the other consumer can hide the FMAs, and a row
# of the tile is just what a 128-byte swizzle spans.
#
# ## 7. Outliers
#
# The second problem. One element of row 3 becomes larger and larger. We measure all the *other*
# rows, from the numbers before the cast to the kernel's result. **Guess** from which factor on s06
# suffers: e4m3 spans 18 powers of two.

# %%
factors = (1, 100, 1e4, 3e4, 1e5, 3e5, 1e6)
x, w = torch.randn(64, 1024, generator=generator), quantize.weights(16, 1024)
others = [row for row in range(64) if row != 3]
errors = {name: [] for name, *_ in stages}
for factor in factors:
    x[3, 40] = factor
    exact = x.double() @ w.double().T
    for name, stage, granularities in stages:
        left, right = (quantize.quantize(x, g) for x, g in zip((x, w), granularities, strict=True))
        with minigemm.observe(hazards=False):
            result = stage.gemm(left, right, stage.Config(64, 16, 4, 1), out_dtype=torch.float32)
        wrong = (result.double() - exact)[others]
        errors[name].append(float(wrong.norm() / exact[others].norm()))
views.error_curves(factors, errors, "size of one element of row 3",
                   "What 63 other rows pay for it", percent=True)

# %% [markdown]
# Up to a size of 10,000 there is hardly a difference: e4m3 is a floating-point format and forgives
# a poor scale. Then s06 collapses, and s07 does not notice. What remains, 3.6%, is the price of
# three bits of mantissa; no scale lowers it.
#
# ## 8. Whatever comes
#
# Other libraries store 1x128 scales row-major. The stage takes them and lays them out. Sizes need
# not fit either. Here are 70 rows, 330 columns, and a K of 4 blocks and 16 columns. **Guess** the
# number of scales of `a` and `b`.

# %%
ragged_a = quantize.quantize(quantize.activations(70, 528), "1x128")
ragged_b = quantize.quantize(quantize.weights(330, 528), "128x128")
row_major = quantize.Quantized(ragged_a.data, ragged_a.scale.contiguous(), "1x128")
print("scales of a:", tuple(ragged_a.scale.shape), " of b:", tuple(ragged_b.scale.shape))
with minigemm.observe() as runs:
    result = s07_promoted.gemm(ragged_a, ragged_b, config)
    again = s07_promoted.gemm(row_major, ragged_b, config)
exact = quantize.reference(ragged_a, ragged_b)
error = (result.double() - exact).norm() / exact.norm()
print(f"relative error {error:.1e} (BF16 output); hazards: {len(runs[0].hazards)}")
print("strides", row_major.scale.stride(), "give the same bits:", torch.equal(result, again))

# %% [markdown]
# Nothing in the loop asks about edges but `fetch`, which must not read outside `sfb`. The tail of k
# is zeros times a scale. Rows outside `a` get the scale 0 from TMA. Scales of the wrong shape or
# kind are refused before anything runs:

# %%
for wrong in (quantize.Quantized(a.data, a.scale[:, :4], "1x128"),
              quantize.quantize(torch.randn(64, 640))):
    try:
        s07_promoted.gemm(wrong, b, config)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## 9. Break it
#
# `attempt` edits a copy of the stage, runs it and prints what the emulator and the compiler say.

# %%
import re
import textwrap
import warnings

right = s07_promoted.gemm(a, b, config)


def attempt(*edits, schedule="late", shown=1):
    source = "s07_promoted"
    for old, new in edits:
        source = views.edited(source, old, new)
    with (minigemm.observe(schedule=schedule) as runs,
          warnings.catch_warnings(record=True) as warned):
        warnings.simplefilter("always")
        try:
            result = s07_promoted.gemm(a, b, config, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in runs[0].hazards)) or "none"
            word = "right" if torch.equal(result, right) else "WRONG"
            said = [f"{schedule}: result {word}; hazards: {kinds}",
                    *map(str, runs[0].hazards[:shown])]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    text = re.sub(r"(?<!s07_promoted\.)\b(ptx\.cuh|prelude):\d+, called at ", "", "\n".join(said))
    lines = [line for each in warned for line in str(each.message).splitlines() if "ptxas" in line]
    compiler = [f"the compiler: {line.partition(') ')[2]}" for line in lines]
    for line in [*text.splitlines(), *compiler]:
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))


# %% [markdown]
# **Promote before the wait.** The two lines change places. **Guess:** which schedule gives the
# right result?

# %%
PROMOTE = "      promote(acc[i], partial, scale_a, scale_b, split);\n"
WAIT = "      wgmma_wait_group<0>();\n      keep_in_order(partial);\n"
for schedule in ("late", "early"):
    attempt((PROMOTE, ""), (WAIT, PROMOTE + WAIT), schedule=schedule, shown=schedule == "late")

# %% [markdown]
# The accumulators of a product in flight hold nothing that can be used. The assembler sees it, too:
# it puts a wait of its own in front, so that the GPU's code may even be right. The emulator runs
# the PTX, as written. Never ignore this warning: where you meant products and FMAs to overlap, they
# no longer do.
#
# **Hand the slot back too early.** The slot holds *three* things now. Here a consumer reads its
# scales only after it has arrived on `empty`; everything about `a` and `b` is in order.

# %%
LATE = "      const float late[2] = {sfa[0], sfa[8]};\n" + PROMOTE.replace("scale_a", "late")
for schedule in ("late", "early", 3):
    attempt((PROMOTE, LATE), schedule=schedule, shown=schedule == "late")

# %% [markdown]
# The result is right each time. Still, TMA may overwrite the scales with those of a later step
# while they are read: a few rows get the wrong factor for one step in hundreds, now and then. In
# the random order 3 the next copy is already on its way when the scales are read. Few tests would
# notice.
#
# **Forget the bytes** of the scales in `expect_tx`. **Guess:** a race, a deadlock, or luck?

# %%
attempt((" + sizeof(shared.sfa[0])", ""))

# %% [markdown]
# The books do not balance: in every step 256 bytes land that nobody announced. The report counts
# them, and names the read that no wait protects.
#
# **Forget the second scale.** Every column is promoted with the first scale of the tile. **Guess**
# what the emulator finds, and which columns are wrong. There are two tiles: columns 0 to 159, and
# 160 to 319.

# %%
forgetful = ("column < split ? before[row] : behind[row]", "before[row]")
attempt(forgetful)

# %%
source = views.edited("s07_promoted", *forgetful)
tiles = {f"block_n = {n}": s07_promoted.Config(64, n, 2, 1) for n in (160, 128, 64)}
with minigemm.observe(hazards=False), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a variable that nobody uses now
    results = {name: s07_promoted.gemm(a, b, tile, source=source) for name, tile in tiles.items()}
views.mismatches(results, right)

# %% [markdown]
# No hazard: every access is in order, the arithmetic is wrong. And with tiles of 128 or 64 columns
# the broken kernel is *right to the last bit*. A test suite with round sizes would ship it.
#
# **Guess:** would the test have caught it at 160 columns, had all weights been alike?

# %%
alike = quantize.quantize(quantize.weights(320, 640), "128x128")
for name, q in (("blocks alike", alike), ("one block larger", b)):
    exact = quantize.reference(a, q)
    with minigemm.observe(hazards=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        broken = s07_promoted.gemm(a, q, config, source=source)
    print(f"{name:<17} relative error {(broken.double() - exact).norm() / exact.norm():.1%}")

# %% [markdown]
# With alike blocks the error hides among the others of FP8. The lesson for tests: widths that
# cross, blocks of different size, and a comparison with the exact product of the *quantized*
# inputs, whose tolerance can be tight.
#
# ## 10. A real layer
#
# The attention of DeepSeek-V3 begins with a projection of 7168 channels to 2112. With 64 tokens,
# and inputs made like a model's, it runs here to the last bit:

# %%
tokens = quantize.quantize(quantize.activations(64, 7168), "1x128")
layer = quantize.quantize(quantize.weights(2112, 7168), "128x128")
print(s07_promoted.default_config(Product(64, 2112, 7168)))
with minigemm.observe(hazards=False) as runs:
    result = s07_promoted.gemm(tokens, layer)
exact = quantize.reference(tokens, layer)
print(f"{runs[0].grid[1]} CTAs, {runs[0].seconds:.1f} s on this CPU")
for name, x in (("the kernel", result), ("a rounding to BF16 alone", exact.bfloat16())):
    print(f"relative error of {name}: {(x.double() - exact).norm() / exact.norm():.2e}")

# %% [markdown]
# Nothing but the output's rounding is left. 33 CTAs on the 132 SMs of an H100, though: a small M
# leaves a GPU idle. Lesson 12 has a kernel for it.
#
# **Guess** before you look: which part of s06's speed does s07 keep on a GPU? If there are figures,
# compare rows of the same size and the same GPU.

# %%
views.recorded("s06_warp_specialized")

# %%
views.recorded("s07_promoted")

# %% [markdown]
# The same call, wherever you are:

# %%
d = s07_promoted.gemm(a.to(device), b.to(device), config)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")

# %% [markdown]
# ## Recap
#
# - Every 128 products the tensor core's sum is **promoted**: `acc = fma(sfa * sfb, partial, acc)`,
#   in FP32 registers. The error no longer depends on K.
# - The same FMA applies a scale for each row and 128 columns of `a`, and for each 128 x 128 block
#   of `b`. An outlier spoils its own block only.
# - Scales of `a` lie **M-major**, padded to 16 bytes, so that TMA brings a tile's scales as one
#   box, on the tile's mbarrier. Scales of `b` are fetched by lanes, 32 steps at once.
# - A tile whose columns cross a multiple of 128 has **two** live scales of `b`. BLOCK_N is at most
#   128, or 128 plus gcd(BLOCK_N, 128).
# - The FMAs take a quarter of the products' time. The other consumer's products hide them.
# - Order can be checked by the emulator, arithmetic only by tests whose shapes and numbers tell
#   right from wrong.
#
# ## Quiz
#
# **1.** Why can a 1x128 scale of `a` not be applied once at the end, as s06 applies its scale?
#
# <details><summary>Answer</summary>
# Each block of 128 along k has another scale. Once the sums of two blocks are added, no single
# factor can scale both.
# </details>
#
# **2.** A lane holds accumulators of how many rows, and how many scales does it need at a step for
# a 64 x 160 tile?
#
# <details><summary>Answer</summary>
# Two rows, 8 apart: two scales of `a`. With two of `b` that makes four factors, `before` and
# `behind` for each row.
# </details>
#
# **3.** Why does `m = 70` need a stride of 72 between the blocks of scales, but `m = 128` one of
# 128?
#
# <details><summary>Answer</summary>
# TMA wants strides of whole 16 bytes, 4 floats. 70 is rounded up to 72; 128 is a multiple of 4
# already.
# </details>
#
# **4.** `compute` waits for its products before the next step's are issued. Why is the tensor core
# busy all the same?
#
# <details><summary>Answer</summary>
# The other consumer's products run in the meantime. Each consumer alone leaves a gap; two fill each
# other's.
# </details>
#
# **5.** With `block_n = 192` and `n = 2112`, how many of the 11 tiles cross a border, and where?
#
# <details><summary>Answer</summary>
# All 11. Even ones (0, 384, 768, ...) begin at a border and cross after 128 columns; odd ones (192,
# 576, ...) begin 64 columns before one. The last is whole: columns 1920 to 2111, with a border
# at 2048.
# </details>
#
# **6.** Promotion every 128 leaves an error of about 6e-4 for positive inputs. Why is it not worth
# lowering?
#
# <details><summary>Answer</summary>
# The output is BF16, whose rounding alone is about three times as large, and the casts to e4m3 cost
# a few per cent.
# </details>
#
# ## Exercises
#
# **1. Break it.** Let the next scales of `b` be fetched one step early: `step % 32 == 31` becomes
# `step % 32 == 30`. For which K does the result stay right? Predict, then find the smallest K that
# fails.
#
# <details><summary>Hint</summary>
# The lanes hold 32 steps, a K of 4096. `column` is clamped to the last step, so at K = 4096 the
# lane that matters still gets the right scale. Use `Config(64, 16, 4, 1)` and weights whose blocks
# along k differ.
# </details>
#
# **2. Break it.** Remove `__syncwarp();` in front of the arrival. What does the emulator say? Who
# could still be reading?
#
# <details><summary>Hint</summary>
# Lane 0 arrives for 32 lanes. Its arrival publishes what *it* has done; the others' reads of their
# scales must be ordered before it by something.
# </details>
#
# **3. Change it.** Make the accumulator run on over two blocks: `k > 0` becomes `true`. Explain the
# result.
#
# <details><summary>Hint</summary>
# `partial` then holds the sum of all blocks so far, and `promote` adds it again at every step, with
# another scale each time. Is there a hazard? Should there be?
# </details>
#
# **4. Change it.** Scales that are powers of two cost a single byte (UE8M0), and multiplying with
# them is exact. Round the scales of `a` and `b` up to powers of two, cast the data anew, and
# compare the errors with those of section 7.
#
# <details><summary>Hint</summary>
# On the host: `scale.log2().ceil().exp2()`. Then divide the original numbers by the expanded scale
# and cast with `.to(torch.float8_e4m3fn)`. The kernel stays as it is.
# </details>
#
# **5. Measure it.** With `emulator.Rates()` as it is, draw the timeline of `Config(256, 128, 3, 2)`
# and of `Config(192, 128, 4, 3)`, K = 2048. Does a third consumer help? What limits each?
#
# <details><summary>Hint</summary>
# Make `a` with 256 and with 192 rows. Divide the products' cycles, `block_m * block_n * k / 4096`,
# by the timeline's end, and look at TMA's row.
# </details>
#
# ## Further reading
#
# - DeepSeek-AI, *DeepSeek-V3 Technical Report* (arXiv 2412.19437), section 3.3: fine-grained
#   quantization, and promotion with the interval of 128.
# - Sun, Chen, Kolter, Liu, *Massive Activations in Large Language Models* (COLM 2024, arXiv
#   2402.17762).
# - Micikevicius et al., *FP8 Formats for Deep Learning* (arXiv 2209.05433).
# - PTX ISA:
# [wgmma.mma_async](https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma),
# `scale-d` and the accumulator's fragments; [tensor
# maps](https://docs.nvidia.com/cuda/parallel-thread-execution/#tensor-tensormap) and their
# alignment.
# - DeepGEMM, a library of FP8 GEMMs with this scheme, from the authors of DeepSeek-V3.
#
# **Next:** [08 persistent](08_persistent.ipynb). One CTA an SM works through many tiles, in an
# order that keeps operands in the L2 cache, and the epilogue of a tile hides behind the products of
# the next.
