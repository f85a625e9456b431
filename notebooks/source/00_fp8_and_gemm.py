# %% [markdown]
# # 00 · FP8 and the matrix product
#
# **You will be able to**
#
# - read and write an e4m3 number, and say how wrong a cast to it can be;
# - choose a scale for a matrix, and say when one scale is enough and when it is not;
# - judge the result of a matrix product by its relative error;
# - count the operations and the bytes of a product, and read from a roofline which of the two is
#   the limit;
# - run a Hopper kernel on this machine.
#
# **You need to know** Python, a little PyTorch, what a matrix product is, and what binary floating
# point is roughly about. No CUDA yet.
#
# **Time:** 40 minutes. **Runs on:** `CPU` (no GPU needed) · `Hopper` (H100 and H200, the same
# cells)
#
# **Built so far:** nothing. **New here:** the numbers, the task and the limits. The ladder of
# kernels begins in the next lesson.
#
# **Where it lives:** `minigemm/quantize.py` (casts, scales, the reference product),
# `minigemm/kernels/s01_naive.cu` (the kernel at the end), `minigemm/views/` (the pictures).

# %%
import torch
from minigemm import quantize, views
from minigemm.kernels import s01_naive, stages

device = views.device()

# %% [markdown]
# ## A number in eight bits
#
# FP8 comes in two formats. This course uses **e4m3**: one sign bit, four exponent bits, three
# mantissa bits. With exponent bits $E$ and mantissa bits $M$ it stands for
#
# $$(-1)^{s} \cdot 2^{E-7} \cdot (1 + M/8), \qquad\text{or, where } E = 0, \qquad (-1)^{s} \cdot
# 2^{-6} \cdot M/8.$$
#
# Eight bits make 256 codes, few enough to look at all of them.

# %%
views.number_line()

# %% [markdown]
# Each row is one power of two, cut into eight equal steps. The lowest row is different: its numbers
# are
# **subnormal**. They have no leading 1, so they keep the step of the row above and lose significant
# bits on the way down to zero.
#
# The corner at the top right holds the only NaN (one for each sign). There is **no infinity**: the
# largest number is 448, and NVIDIA's casts *saturate*, so what is larger becomes 448.
#
# **Guess first:** which bits does 0.3 get, and which value do they stand for?

# %%
views.bits(0.3)

# %%
for value in (17, 25, 1000, -0.001, 0.0009):
    # change the values; `views.bits(...)` as the last line of a cell draws the bits
    print(views.bits(value))

# %% [markdown]
# 17 lies halfway between 16 and 18. Halves go to the even code, the one whose last bit is 0, as in
# every IEEE format.
#
# ## How wrong is a cast?
#
# What matters in a product is the *relative* error of a factor.
#
# **Guess first:** which is worse off relative to its size, a number near 400, where the steps are
# 32 wide, or one near 0.02?

# %%
views.spacing()

# %% [markdown]
# From $2^{-6}$ to 448 the sawtooth looks the same everywhere: a cast is wrong by 1/17 at worst, by
# about 2.6% in the root mean square. Numbers near 400 and near 0.02 fare equally well: in
# *floating* point the error does not depend on the size. Below $2^{-6}$ this ends: subnormal
# numbers have ever fewer bits, and at $2^{-10}$ nothing is left.
#
# ## A scale
#
# So we bring a matrix into the good range before the cast. `quantize` divides by
# `scale = amax / 448`: the largest magnitude becomes 448. What an element stands for is
# `data * scale`.

# %%
# made up, but shaped like a language model's: heavy tails, some large channels
x = quantize.activations(256, 1024)
q = quantize.quantize(x, "tensor")
print(f"data  {tuple(q.data.shape)} {q.data.dtype}, largest {q.data.float().abs().max():g}")
print(f"scale {q.scale:.6f}; amax / 448 = {x.abs().max() / 448:.6f}")
wrong = quantize.dequantize(q) - x
print(f"relative error {wrong.norm() / x.norm():.2%}")

# %% [markdown]
# The relative error of a matrix is $\lVert \text{got} - \text{wanted} \rVert / \lVert \text{wanted}
# \rVert$ with Frobenius norms: root mean square error over root mean square size. The course
# measures everything with it. A column of activations is called a *channel*.
#
# **Guess first:** what does it cost to take a scale that is twice too large, or a thousand times?
# And one that is half as large? What would the same do to INT8, whose 255 numbers are evenly
# spaced?

# %%
views.scale_sweep(x)

# %% [markdown]
# Too small a scale clips the largest elements at once. One that is too large costs **nothing** over
# a factor of 32: the data slide down e4m3's range, until they reach the subnormals. INT8 has no
# such plateau: a few large channels set the step for all.
#
# ## Outliers, and finer scales
#
# In a language model, a few channels are much larger than the rest; here 30 times. Three
# granularities: a scale for the **tensor**; for each **1x128** in a row (activations); for each
# **128x128** square (weights).
#
# **Guess first:** which keeps the ordinary channels best?

# %%
views.channel_errors(x)

# %% [markdown]
# None does! Outliers 30 times larger push the others five powers of two down, and e4m3 has fifteen.
# One scale a tensor hurts only when the outliers are so large that the others land among the
# subnormals. 448 is 28,672 times the smallest normal number, so this takes outliers *thousands* of
# times larger. Such activations exist (see Further reading).
#
# (The outliers profit from 1x128: the largest of 128 becomes exactly 448 and keeps its value. Do
# not read that as a gain for everyone.)
#
# Let us enlarge two channels and watch the others.

# %%
calm = x.clone()
rms = x.square().mean(0).sqrt()
calm[:, rms > 8 * rms.median()] /= 30  # the natural outliers, put back in line
channels = torch.tensor([200, 700])
views.outlier_sweep(calm, channels)

# %% [markdown]
# Up to a thousand times, all three lines are flat. Then the coarse scales go first. The next
# picture shows why, for outliers 30,000 times larger: where do the scaled elements lie in e4m3's
# range?

# %%
loud = calm.clone()
loud[:, channels] *= 3e4  # change me: 30, 1000, 1e6
views.landing(loud)

# %% [markdown]
# With one scale, nearly everything has been pushed below $2^{-6}$. Finer scales confine the damage
# to the blocks that hold an outlier.
#
# **Guess first:** channels 200 and 700 are the loud ones. Which channels suffer under 1x128 scales?

# %%
views.channel_errors(loud)

# %% [markdown]
# Blocks 128–255 and 640–767 suffer, and nobody else. 1x128 is milder than 128x128, because a row
# whose outlier happens to be small keeps its own small scale.
#
# ## The product
#
# Every kernel of this course computes `d = a @ b.T`: a is (m, k), the activations; b is (n, k), the
# weights; d is (m, n) in BF16. Both have k as their last dimension, so an element of d is the dot
# product of two *rows* that lie in memory as they are read. It is the only order in which Hopper's
# tensor cores take FP8.

# %%
views.product(8, 12, 16)

# %% [markdown]
# An element of d takes k multiplications and k additions: $2mnk$ operations in all. Each matrix
# must cross the wires to device memory at least once: $mk + nk$ bytes of FP8 in, $2mn$ bytes of
# BF16 out.
#
# Both counts matter, and their ratio is the number to remember: **operations a byte**. Here is a
# layer of a large model, with a batch of 64 tokens, as in *decoding* (one new token for each of 64
# users).

# %%
n, k = 4096, 7168
views.product(64, n, k)

# %% [markdown]
# The drawing is to scale: nearly all bytes are weights, and each of them serves only 64 rows. Now
# the same layer reading a prompt of 4096 tokens, *prefill*.

# %%
views.product(4096, n, k)

# %% [markdown]
# ## The roofline
#
# A GPU multiplies so many operations a second and moves so many bytes a second. Whichever takes
# longer decides. With $I$ operations a byte:
#
# $$\text{rate} \le \min(\text{peak},\; I \cdot \text{bandwidth}).$$
#
# **Guess first:** an H200's datasheet gives 1,979 TFLOPS (dense FP8) and 4.8 TB/s. Is decoding with
# 64 rows limited by arithmetic or by memory?

# %%
points = {f"m = {m}": views.gemm_intensity(m, n, k) for m in (1, 64, 256, 4096)}  # change the sizes
views.roofline(points, views.H200)  # or views.H100

# %% [markdown]
# Decoding is memory-bound: its best kernel streams the weights at full speed, and most of the
# arithmetic units wait. Prefill is compute-bound: its best kernel keeps the tensor cores busy. Two
# different kernels, and we shall build both.
#
# Mind the dashed line. The datasheet gives the ordinary cores 67 TFLOPS in FP32, a thirtieth of the
# tensor cores. The first three stages stay below it, whatever they do about memory.
#
# In time, the bounds are:

# %%
print(f"{'m':>5}  {'arithmetic':>11}  {'memory':>11}   at least (datasheet of the "
      f"{views.H200.name})")
for m in (1, 64, 256, 4096):
    arithmetic = 2 * m * n * k / views.H200.fp8 * 1e6
    memory = ((m + n) * k + 2 * m * n) / views.H200.bandwidth * 1e6
    print(f"{m:5}  {arithmetic:8.2f} us  {memory:8.2f} us   {max(arithmetic, memory):6.2f} us")

# %% [markdown]
# ## A real run
#
# Enough bounds. `s01_naive.gemm` runs a CUDA kernel: on a Hopper GPU if there is one, otherwise
# instruction by instruction on the emulator.
#
# To judge it we need the right answer: `quantize.reference` multiplies the very same FP8 numbers
# and scales in float64.

# %%
x, w = quantize.activations(128, 512), quantize.weights(96, 512)
a, b = quantize.quantize(x, "tensor"), quantize.quantize(w, "tensor")

d = s01_naive.gemm(a.to(device), b.to(device)).cpu()

exact = quantize.reference(a, b)
print(tuple(d.shape), d.dtype)
print(f"relative error {(d.double() - exact).norm() / exact.norm():.3%}")

# %% [markdown]
# Is that good? d is BF16, which has 8 significant bits: *any* result, even a perfect one, is
# rounded when it is stored.
#
# **Guess first:** order these three errors by size: the kernel's against the reference; BF16's own
# rounding of the reference; that of the quantization, that is, the reference against the product of
# the matrices before the cast.

# %%
def error(got, wanted):
    return float((got.double() - wanted).norm() / wanted.norm())


original = x.double() @ w.double().T
views.error_bars({
    "quantization of a and b": error(exact, original),
    "the kernel, against the reference": error(d, exact),
    "BF16 rounding alone": error(exact.bfloat16(), exact),
})  # fmt: skip

# %% [markdown]
# The kernel is as good as BF16 can say. The price of FP8 was paid in the cast, twenty times more,
# and no kernel can win it back. From here on a stage is right when its error is about 0.17%; when a
# stage makes a mistake you will see it.
#
# ## Break it
#
# This is the kernel, from the package's file. Its last line applies the scales.

# %%
views.code("s01_naive", "s01_naive")

# %% [markdown]
# `views.edited` makes a copy of the file with one place changed, and `gemm(..., source=...)`
# compiles and runs it.
#
# **Guess first:** we forget the scale of b. By which factor will every element be wrong?

# %%
forgetful = views.edited("s01_naive", "(*scale_a * *scale_b)", "*scale_a")
broken = s01_naive.gemm(a.to(device), b.to(device), source=forgetful).cpu()
print(f"relative error {error(broken, exact):,.0f} (all zeros would give 1)")
print(f"broken / right {(broken.float() / d.float()).nanmedian():,.1f}; "
      f"1 / scale of b {1 / b.scale:,.1f}")

# %% [markdown]
# ## The ladder
#
# - **s01–s03** use the ordinary cores: first as the formula says, then with tiles, then with
#   Hopper's copy engine.
# - **s04–s06** hand the arithmetic to the tensor cores, and keep them fed.
# - **s07** brings the fine scales, and repairs the tensor core's short accumulator.
# - **s08–s09** make one kernel fill the whole GPU.
# - **s10** serves mixture-of-experts layers.
# - **s11–s12** are the library's kernels: nothing waits needlessly, for many rows and for few.
#
# These stages are in your copy:

# %%
for module in stages():
    stage = module.stage
    print(f"{stage.name:10}  {stage.idea}")

# %% [markdown]
# And here is where we start: the kernel you just ran, timed on a GPU. **Guess first:** which share
# of the roof does it reach?

# %%
views.recorded("s01_naive")

# %% [markdown]
# ## Recap
#
# - e4m3 has 253 finite numbers, from $2^{-9}$ to 448 in magnitude, and zero. No infinity; casts
#   saturate.
# - A normal number is wrong by at most 1/17 (5.9%) after a cast, about 2.6% on average, whatever
#   its size. A subnormal one can lose everything.
# - `scale = amax / 448`. Too large a scale costs nothing until data reach the subnormals; too small
#   a scale clips at once.
# - One scale a tensor is fine until outliers are thousands of times larger than the rest. Finer
#   scales confine the damage to a block.
# - `d = a @ b.T` takes $2mnk$ operations and at least $k(m + n) + 2mn$ bytes. Below the ridge of
#   the roofline memory decides, above it arithmetic.
# - A kernel is judged against the float64 product of the *quantized* matrices; BF16's rounding
#   alone is about 0.17%.
#
# ## Quiz
#
# **1.** Why is there no step from 448 to 480 in e4m3, though the top row has room for an eighth
# number?
#
# <details><summary>Answer</summary>
#
# That code, 1111 111, is NaN. The format gives up the infinities and all NaNs but this one a sign,
# to gain the row from 256 to 448.
#
# </details>
#
# **2.** All elements of a matrix are between 1 and 100. Does 1x128 scaling help over one scale a
# tensor?
#
# <details><summary>Answer</summary>
#
# Hardly. With one scale they land between 4.48 and 448, all of them normal: the relative error is
# that of any normal number already.
#
# </details>
#
# **3.** You double m in a decode-size product (m = 64). What happens to the best possible time?
#
# <details><summary>Answer</summary>
#
# Almost nothing: the weights dominate the bytes, and they are read once either way. The second half
# of the rows is nearly free. At m = 4096 the time would double.
#
# </details>
#
# **4.** A kernel shows a relative error of 0.17% against the reference, and 3.7% against the
# product of the matrices before the cast. Is there a bug?
#
# <details><summary>Answer</summary>
#
# No. 0.17% is BF16's rounding; the rest is the quantization, which happened before the kernel saw
# the data.
#
# </details>
#
# ## Exercises
#
# **1. Weights.** Draw `views.channel_errors` and `views.landing` of `quantize.weights(256, 1024)`.
# Why do all granularities look alike?
#
# <details><summary>Hint</summary>
#
# They are normally distributed, all channels alike: the largest of a quarter of a million is about
# 4.7 standard deviations, not even twice the largest of 128.
#
# </details>
#
# **2. The ridge in rows.** For n = 4096 and k = 7168, from which m on is the product compute-bound
# on an H200? And on an H100? Find it with `views.gemm_intensity`.
#
# <details><summary>Hint</summary>
#
# Compare with `chip.fp8 / chip.bandwidth`. For small m the intensity is about 2m, so begin to look
# at half the ridge; the output's bytes push it a little higher.
#
# </details>
#
# **3. Break it: half of k.** With `views.edited`, let the loop of s01 run only to `k / 2`. Guess
# the relative error first, then measure. Is it 50%?
#
# <details><summary>Hint</summary>
#
# Replace `k0 < k;` by `k0 < k / 2;`. The missing half of a sum of independent terms has about the
# same norm as the half that you kept: each is $1/\sqrt{2}$ of the whole. Outlier channels tip the
# balance: look at which half holds them.
#
# </details>
#
# **4. Change it: truncate.** What if the kernel cut off the result instead of rounding it to BF16?
# Change `store` in a copy, and compare with the error bars.
#
# <details><summary>Hint</summary>
#
# Keep the upper 16 bits: replace `cvt_rn_bf16_f32(value)` by
# `cvt_rn_bf16_f32(__uint_as_float(__float_as_uint(value) & 0xffff0000u))`. The lower bits are zero
# then, and the cast has nothing left to round. The error doubles.
#
# </details>
#
# **5. Powers of two.** Some formats restrict scales to powers of two. Round `amax / 448` up to the
# next power of two and measure the cast again. Use `views.scale_sweep` to foresee the answer.
#
# <details><summary>Hint</summary>
#
# `scale = 2 ** (amax / 448).log2().ceil()`. It is at most twice as large as needed: one step to the
# right on the plateau.
#
# </details>
#
# ## Further reading
#
# - P. Micikevicius et al., *FP8 Formats for Deep Learning*, arXiv 2209.05433: e4m3 and e5m2, and
#   why e4m3 has no infinity.
# - DeepSeek-AI, *DeepSeek-V3 Technical Report*, arXiv 2412.19437, section 3.3: training with 1x128
#   and 128x128 scales.
# - T. Dettmers et al., *LLM.int8()*, arXiv 2208.07339: outlier channels, and what they do to
#   integers.
# - M. Sun et al., *Massive Activations in Large Language Models*, arXiv 2402.17762: activations
#   tens of thousands of times larger than the rest.
# - S. Williams, A. Waterman, D. Patterson, *Roofline: An Insightful Visual Performance Model*,
#   Communications of the ACM 52(4), 2009.
# - PTX ISA, "Alternate Floating-Point Data Formats" and the instruction `cvt` (`.satfinite`,
#   `.e4m3x2`).
# - NVIDIA H100 and H200 datasheets: the rates of the roofline. They list FP8 with sparsity; dense
#   is half of that.
#
# Next: [01 · A thread an output](01_naive.ipynb), where we look inside the kernel that you just
# ran.
