# %% [markdown]
# # 09 Multicast: two CTAs that load together
#
# **You will be able to**
# - say which bytes neighbouring tiles share, and count what a cluster of two saves, along M and
#   along N;
# - let TMA write one box into the shared memory of both CTAs, and say what each of the four
#   barriers of a slot waits for;
# - arrive at a barrier in another CTA's shared memory, and which word too many makes every k-step
#   wait;
# - begin and end a cluster so that nobody reaches into a CTA that is not there;
# - decide by a measurement, not by the bytes, whether multicast pays.
#
# **You need to know** lesson 08: the scheduler, and the ring that goes on from tile to tile; from
# lesson 06, `full` and `empty`.
#
# **Time:** 45 minutes. **Runs on:** CPU (with the emulator), or a Hopper GPU.
#
# **Built so far:** 06, roles; 07, promotion; 08, a CTA for each SM. **This lesson adds** no
# arithmetic: the bits stay those of s07. It adds a neighbour.
#
# **Where it lives:** `minigemm/kernels/s09_multicast.cu`, the kernel;
# `minigemm/kernels/s09_multicast.py`, its launch.

# %%
import minigemm
import torch
from minigemm import quantize, views
from minigemm.kernels import s08_persistent, s09_multicast

device = views.device()

# %% [markdown]
# ## 1. The same bytes, twice
#
# Two tiles of d, one below the other, need **the same** tile of b; two side by side, the same of a.
# In s08 it travels from L2 to two SMs.
#
# A **cluster** is a group of CTAs that start together on neighbouring SMs. They reach each other's
# shared memory, and TMA can write one box into all: a **multicast**. Each of two CTAs loads half of
# what both need. **Guess** what is left of the bytes for tiles of 256 x 128, along M (b is shared)
# and along N (a is).

# %%
a = quantize.quantize(quantize.activations(512, 512), "1x128")
b = quantize.quantize(quantize.weights(256, 512), "128x128")
tile = {"block_m": 256, "block_n": 128, "stages": 3, "consumers": 2}
with minigemm.observe() as seen:
    expected = s08_persistent.gemm(a, b, s08_persistent.Config(**tile))
    below = s09_multicast.gemm(a, b, s09_multicast.Config(**tile, cluster_m=2, cluster_n=1))
    beside = s09_multicast.gemm(a, b, s09_multicast.Config(**tile, cluster_m=1, cluster_n=2))
print("the same bits:", torch.equal(below, expected) and torch.equal(beside, expected))
names = ("s08, no clusters", "s09, clusters along M", "s09, clusters along N")
reports = dict(zip(names, seen, strict=True))
picture = views.cluster_bytes(reports)
print(picture)
picture

# %% [markdown]
# What is *written* to shared memory is the same in all three: every CTA needs its whole tiles. What
# is *read* falls by half of the shared tile. a is the larger one here, so sharing a saves more.
#
# What does the tensor core ask for? A k-step of a 256 x 128 tile keeps it busy for 256 * 128 * 128
# / 4096 = 1024 cycles. In that time its SM must get its bytes. **Guess** which line below comes out
# lowest.

# %%
for m, n in ((128, 128), (128, 192), (256, 128)):
    cycles = m * n * 128 / 4096
    each = {"alone": m + n, "along M": m + n / 2, "along N": m / 2 + n}
    rates = [f"{name} {128 * rows / cycles:.0f} bytes a cycle" for name, rows in each.items()]
    print(f"{m} x {n}: " + ", ".join(rates))

# %% [markdown]
# A larger tile and a cluster do the same thing: more products for a byte. 256 x 128 alone asks for
# as little as 128 x 128 in a cluster. Keep that in mind for the end.
#
# ## 2. Who loads what for whom
#
# The first k-step of the run along M, from the emulator's events. **Guess** before you look: how
# many bytes does each `full` barrier wait for?

# %%
picture = views.cluster(reports["s09, clusters along M"], consumers=2)
print(picture)
picture

# %% [markdown]
# Colours say who asked. Each CTA's slot holds its own a, and a b that comes half from each. Both
# halves land at *the same shared address* in both CTAs, and the bytes complete on the barrier at
# the same address in the CTA where they land. So `full` expects whole tiles, as before. Only the
# sender is another.
#
# Along N it is a, with its scales, that is shared:

# %%
views.cluster(reports["s09, clusters along N"], consumers=2)

# %% [markdown]
# The red arrows are the price. A producer writes into *both* shared memories. So it must know that
# the slot is free in both, and the consumers of both CTAs have to tell it.
#
# ## 3. The change
#
# Look for three things: `load` asks for a part of each tile; the release of a slot goes to each
# CTA; and cluster barriers stand at the beginning and at the end.

# %%
views.diff("s08_persistent", "s09_multicast", context=1)

# %% [markdown]
# The mask `0b11` has a bit for each rank that gets the box. The rank, from `%cluster_ctarank`, also
# says which half is a CTA's to load, and which of two neighbouring tiles is its own. The scheduler
# is that of s08: it walks over *pairs* of tiles, as if they were tiles.
#
# **How to arrive elsewhere.** `mapa` turns the address of an own barrier into that of the other
# CTA's. **Guess** what the two addresses have in common.

# %%
views.code("ptx.cuh", "mapa", mark="mapa.shared")

# %% [markdown]
# Everything but the rank: on Hopper an address in a cluster's shared memory holds it in its upper
# bits, and the emulator does the same. Lane r of each warp tells the CTA of rank r, its own among
# them: two arrivals in one instruction.

# %%
import re

BARRIER = re.compile(r"mbarrier (0x\w+) of CTA rank \d")
barriers = {m[0] for event in seen[1].events
            for m in BARRIER.finditer(event.detail + " " + event.agent)}
print(*sorted(barriers), sep="\n")

# %% [markdown]
# Three slots, `full` and `empty` of each, in both CTAs: twelve barriers.
#
# **One word too many.** `mbarrier.arrive` also exists with `.release.cluster`: it makes everything
# that the thread has written visible to the other CTA first. That sounds safer. Our consumers have
# written nothing that the other producer reads: they only say "we have done with it". What the word
# costs is in the SASS:

# %%
ARRIVE = "mbarrier_arrive_cluster(mapa(&shared.empty[stage], r));"
SAFER = ('asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" '
         '::"r"(mapa(&shared.empty[stage], r)));')
config = s09_multicast.Config(**tile)
safer = views.edited("s09_multicast", ARRIVE, SAFER)
for name, source in (("s09", None), ("with .release.cluster", safer)):
    found = minigemm.inspect(s09_multicast, config, source=source)
    lines = found.source.splitlines()
    slow = {each.line for each in found.instructions if "MEMBAR.ALL.GPU" in each.text}
    print(f"{name}: a thread waits for all of its memory traffic (MEMBAR.ALL.GPU) at")
    print("\n".join(f"    line {line}: {lines[line - 1].strip()[:90]}" for line in sorted(slow)))

# %% [markdown]
# At the cluster barriers, at both ends of the kernel, nobody minds. The third place is in every
# k-step. No result shows it, and no hazard: it is found by reading SASS, as a test of ours does.
#
# ## 4. Beginning and end
#
# So far `__syncthreads()` kept a CTA's threads from barriers that are not there yet. Now the other
# CTA uses them too: it takes a barrier of the whole cluster. And no CTA may leave while the other
# may still arrive at its barriers: its shared memory may then belong to another kernel.

# %%
views.code("s09_multicast", "s09_multicast", mark="barrier_cluster")

# %% [markdown]
# **A tile that is not there.** Pairs are formed from the first tile on. With an odd number the last
# CTA has no tile.
# **Guess:** may it stay away?

# %%
from minigemm.types import Product

odd = quantize.quantize(quantize.activations(3 * 64, 256), "1x128")
even = quantize.quantize(quantize.weights(64, 256), "128x128")
for along, (cluster_m, cluster_n) in {"M": (2, 1), "N": (1, 2)}.items():
    pairs = s09_multicast.Config(64, 64, 3, 1, cluster_m=cluster_m, cluster_n=cluster_n)
    with minigemm.observe() as runs:
        s09_multicast.gemm(odd, even, pairs)
    ctas = runs[0].counters["wgmma"] // (2 * 4)  # two k-steps, four instructions each
    print(f"3 x 1 tiles, clusters along {along}: {ctas} tiles computed, hazards: "
          f"{len(runs[0].hazards)}")
for m, n in ((4096, 4096), (64, 2112), (4096, 2112)):
    chosen = s09_multicast.default_config(Product(m, n, 7168))
    print(f"{m} x {n}: {chosen.block_m} x {chosen.block_n}, cluster_m = {chosen.cluster_m}, "
          f"cluster_n = {chosen.cluster_n}")

# %% [markdown]
# It may not: half of the other's b comes from it. It computes a tile of zeros that TMA does not
# store. Along N, with a single column of tiles, *half* of all work is for nothing. `default_config`
# looks at both directions.
#
# ## 5. Break it
#
# Three pairs of tiles for one cluster, so that slots are used again.

# %%
import textwrap
import warnings

from minigemm import emulator

x = quantize.quantize(quantize.activations(2 * 64, 5 * 128), "1x128")
w = quantize.quantize(quantize.weights(3 * 64, 5 * 128), "128x128")
small = s09_multicast.Config(64, 64, 3, 1, ctas=2)
right = s09_multicast.gemm(x, w, small)


def attempt(old, new, schedule="late", shown=1, edited="s09_multicast"):
    source = views.edited(edited, old, new)
    with minigemm.observe(schedule=schedule) as runs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's; read them once without this line
        try:
            result = s09_multicast.gemm(x, w, small, source=source)
            kinds = ", ".join(dict.fromkeys(hazard.kind for hazard in runs[0].hazards)) or "none"
            word = "right" if torch.equal(result, right) else "WRONG"
            said = [f"{schedule}: result {word}; hazards: {kinds}",
                    *map(str, runs[0].hazards[:shown])]
        except emulator.EmulatorError as error:
            said = [f"{schedule}: {type(error).__name__}: {error}"]
    text = re.sub(r"(?<!s09_multicast\.)\b(ptx\.cuh|prelude):\d+, called at ", "", "\n".join(said))
    for line in text.splitlines()[:6]:
        print(textwrap.fill(line, 110, subsequent_indent=" " * 8))


# %% [markdown]
# **Tell only your own producer.** Each warp arrives in its own CTA. **Guess** who waits, and for
# how many arrivals.

# %%
attempt("r < kCluster)", "r == cluster_ctarank())")

# %% [markdown]
# A `Deadlock` that counts: half of the arrivals are missing. The tempting repair is to expect only
# half:

# %%
once = views.edited("s09_multicast", "4 * CONSUMERS * kCluster);", "4 * CONSUMERS);")
for schedule in ("late", "early"):
    attempt("r < kCluster)", "r == cluster_ctarank())",
            schedule=schedule, edited=once, shown=schedule == "late")

# %% [markdown]
# Nothing stands still any more, and the fast CTA's half of b lands in a slot that the other is
# still reading. Whether the result shows it depends on the schedule, and on a GPU on luck. The
# hazard does not.
#
# **Expect your own bytes only.** The shared half is "somebody else's", so why count it?

# %%
OWN = "sizeof(shared.a[0]) / CLUSTER_N + sizeof(shared.b[0]) / CLUSTER_M"
attempt("sizeof(shared.a[0]) + sizeof(shared.b[0])", OWN)

# %% [markdown]
# Bytes land whoever asked for them, and each barrier counts what lands in its CTA.
#
# **Send it to yourself alone**, by a mask with one bit:

# %%
attempt("full, 0b11);", "full, 1 << cluster_ctarank());")

# %% [markdown]
# **Begin without the other.** `__syncthreads()` instead of the cluster barrier. **Guess** what the
# result is.

# %%
BEGIN = "  barrier_cluster_arrive();\n  barrier_cluster_wait();  // all threads"
attempt(BEGIN, "  __syncthreads();  // all threads")

# %% [markdown]
# **Leave without the other.** No barrier at the end:

# %%
END = "  barrier_cluster_arrive();\n  barrier_cluster_wait();\n}"
attempt(END, "}")

# %% [markdown]
# The result is right, always: it was stored long before. What goes wrong, goes wrong in the *next*
# CTA on that SM, whose shared memory gets an arrival that it does not expect.
#
# ## 6. On hardware: does it pay?
#
# TMA asks L2 for 16 to 34% fewer bytes. Nsight Compute counts what L2 really reads. **Guess**: is
# it what TMA asks for?

# %%
views.counted_multicast()

# %% [markdown]
# Without clusters L2 reads *less* than TMA asks for. CTAs that compute neighbouring tiles ask for
# the same boxes at about the same time, and the hardware seems to join such requests: part of the
# saving was there already. With clusters L2 reads about what is asked for, and the SMs get the same
# bytes as ever.
#
# **Guess** the gain in TFLOPS, with its sign.

# %%
views.recorded_multicast()

# %%
views.recorded("s09_multicast")

# %% [markdown]
# Fewer bytes need not be less time, and can be more:
#
# - Bytes must be the limit. A large tile, and a raster that suits L2, may already have brought them
#   below what L2 gives.
# - Two CTAs go in step. A slot is free when the *slower* one has done with it. A longer ring would
#   hide that, and shared memory is full.
#
# `python -m minigemm bench --multicast` measures it on your GPU. The library's own kernels, from
# [lesson 10](10_grouped.ipynb) on, go on from s08, without clusters.
#
# The same call, wherever you are:

# %%
d = s09_multicast.gemm(x.to(device), w.to(device), small)
print(f"on {device}: the same bits as the emulator's: {torch.equal(d.cpu(), right)}")

# %% [markdown]
# ## Recap
#
# - The CTAs of a **cluster** run at the same time and reach each other's shared memory. Two
#   neighbouring tiles share b (along M) or a (along N).
# - With **multicast** each loads half of what is shared, for both: read once, written twice, to the
#   same address in each.
# - `full` expects the bytes that land in its CTA, whoever asked. `empty` expects the consumers of
#   every CTA into which its producer writes.
# - `mapa` and `mbarrier.arrive.shared::cluster` reach another CTA's barrier. `.release.cluster`
#   would wait for all memory traffic, in every k-step.
# - Cluster barriers: before the first use of a barrier, and before the exit.
# - Fewer bytes are not less time. Measure.
#
# ## Quiz
#
# **1.** Tiles of 128 x 192, a cluster along N. Which tile is shared, and what share of the bytes of
# a and b is left?
#
# <details><summary>Answer</summary>
# a is shared. 64 + 192 rows instead of 128 + 192: 80%.
# </details>
#
# **2.** CTA 1's half of b lands in CTA 0 before CTA 0's producer has announced its bytes. Is that a
# mistake?
#
# <details><summary>Answer</summary>
# No. The barrier still expects one arrival, its own producer's, so the phase cannot complete; bytes
# that land early are counted. CTA 1 only loads when the consumers of both have released the slot,
# so it cannot be a phase too early.
# </details>
#
# **3.** Why does the producer of s09 still return early, without waiting at the last cluster
# barrier?
#
# <details><summary>Answer</summary>
# The barrier counts threads that have ended as arrived. And what the producer asked for, consumers
# of both CTAs have waited for before they come to that barrier.
# </details>
#
# **4.** Clusters of four, 2 along M and 2 along N: what would each CTA load, and how many arrivals
# would `empty` expect?
#
# <details><summary>Answer</summary>
# Half of its a, for its neighbour along N too, and half of its b, for its neighbour along M. It
# writes into itself and both of these: the consumers of three CTAs arrive, those of the fourth need
# not.
# </details>
#
# ## Exercises
#
# **1. Break it.** Let both CTAs load the first half of b. Is a byte missing? What does the emulator
# say?
#
# <details><summary>Hint</summary>
# Replace <code>cluster_ctarank() % CLUSTER_M * kPartN</code> by <code>0</code>. The number of bytes
# stays what the barriers expect.
# </details>
#
# **2. Change it.** Let rank 0 alone load b, all of it, for both. Which barrier can now expect fewer
# arrivals?
#
# <details><summary>Hint</summary>
# The box of b's tensor map is half a tile, so rank 0 issues two loads. Rank 1 then writes into
# nobody else: its own <code>empty</code> needs its own consumers alone.
# </details>
#
# **3. Measure it.** Count the bytes of one problem for clusters along M and N with tiles of 64 x
# 128, 128 x 128 and 128 x 192. When is M the better direction?
#
# <details><summary>Hint</summary>
# <code>tma_load_bytes</code>, as in section 1. Sharing b saves BLOCK_N / 2 rows, sharing a BLOCK_M
# / 2.
# </details>
#
# **4. Look at it.** With `schedule=1`, `2` and `3`, how many steps lie between the first product of
# CTA 0 and the last product of the same k-step in CTA 1?
#
# <details><summary>Hint</summary>
# <code>report.events</code>, kind "wgmma issued", agent "warpgroup 0 of CTA rank 0". They never
# drift apart by more than the ring has slots.
# </details>
#
# **5. Think.** 132 SMs hold 66 clusters of two, and 30 of four. Why not 33?
#
# <details><summary>Hint</summary>
# A cluster must lie within one group of SMs (a GPC), and the groups have 16 or 18.
# </details>
#
# ## Further reading
#
# - CUDA C++ Programming Guide: "Thread Block Clusters", "Distributed Shared Memory".
# - PTX ISA:
#   [cp.async.bulk.tensor](https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor)
#   (`.multicast::cluster`),
#   [mapa](https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-mapa),
#   [barrier.cluster](https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-barrier-cluster).
# - CUTLASS documentation, "Efficient GEMM in CUDA": "Hopper Warp Specialization", and its pipelines
#   with clusters.
#
# **Next:** [10 grouped](10_grouped.ipynb), which goes on from s08: the experts of a layer, all in
# one launch.
