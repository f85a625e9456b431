"""Every stage against the float64 reference: shapes, configs, random problems; emulated, or on a GPU."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
import torch

from minigemm import inspect, observe, quantize
from minigemm.kernels import stage_named, stages
from minigemm.quantize import Quantized
from minigemm.types import Problem
from minigemm.verify.judge import relative_error, tensor_core_result, tolerance
from tests.products import (
    MANY,
    STAGES,
    configs,
    fitting,
    guarded_gemm,
    many_configs,
    matrix,
    operands,
    random_problem,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [(1, 1, 16), (1, 77, 64), (64, 64, 128), (77, 50, 144), (100, 72, 80), (3, 136, 32)]


def config_id(value):
    return value if isinstance(value, str) else ",".join(str(int(field)) for field in vars(value).values())


def another(name, **fields):
    """A config of the stage that any k suits, and another than its default one."""
    if name == "s12_swapped":
        return STAGES[name].Config(32, 64, 3, blocks=1, **fields)
    return STAGES[name].Config(64, 112, 3, 1, **fields)


def check(module, m, n, k, seed, device, config=None):
    k = fitting(k, config)
    a, b = operands(m, n, k, seed, device, module)
    d = guarded_gemm(module, a, b, config)
    reference = quantize.reference(a, b)
    what = f"{m}x{n}x{k} seed {seed} {config}"
    error = relative_error(d, reference)
    assert error <= tolerance(module.stage, a, b, reference), f"{what}: {error}"
    # one wrong element of many would hide in that
    if module.stage.sums != "fp32":  # the tensor core's rule says every bit
        different = d.cpu() != tensor_core_result(module.stage, a, b).to(d.dtype)
        assert not different.any(), (
            f"{what}: {int(different.sum())} bits are not the tensor core's, "
            f"the first at {different.nonzero()[0].tolist()}"
        )
        return
    # BF16's half unit in the last place, twice, and FP32's for each of the k sums
    magnitudes = quantize.reference(
        *(Quantized(q.data.float().abs().to(q.data.dtype), q.scale, "tensor") for q in (a, b))
    )
    wrong = (d.double() - reference).abs() > 2**-8 * reference.abs() + k * 2**-24 * magnitudes
    assert not wrong.any(), f"{what}: {int(wrong.sum())} wrong, the first at {wrong.nonzero()[0].tolist()}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name, config", configs(), ids=config_id)
def test_shapes_and_configs(name, config, device):
    for seed, (m, n, k) in enumerate(SHAPES):
        assert STAGES[name].is_legal(config, Problem(m, n, fitting(k, config)))
        check(STAGES[name], m, n, k, seed, device, config)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_wide_n(name, device):
    check(STAGES[name], 5, 2112, 32, 3, device)


@pytest.mark.parametrize("name", STAGES)
def test_random_problems(name):
    source = random.Random(name)
    for seed in range(12):
        check(STAGES[name], *random_problem(source, "cpu"), seed, "cpu")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STAGES)
def test_many_random_problems(name):
    """500 problems for each stage of ordinary arithmetic, fewer for slower stages.

    MINIGEMM_RANDOM_PROBLEMS sets another number for each.
    """
    source = random.Random(name + " many")
    for seed in range(int(os.environ.get("MINIGEMM_RANDOM_PROBLEMS") or (500 if name < "s04" else 50))):
        config = source.choice([None] + [c for stage, c in configs() if stage == name])
        check(STAGES[name], *random_problem(source, "cpu"), seed, "cpu", config)


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STAGES)
def test_500_random_problems_on_the_gpu(name):
    source = random.Random(name + " gpu")
    for seed in range(500):
        config = source.choice([None] + [c for stage, c in configs() if stage == name])
        check(STAGES[name], *random_problem(source, "cuda"), seed, "cuda", config)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MANY)
def test_many_configs_on_the_gpu(name):
    """Every tile of a coarse grid that is legal, at a ragged shape and at one of several tiles."""
    for seed, config in enumerate(many_configs(name)):
        check(STAGES[name], 77, 200, 400, seed, "cuda", config)
        check(STAGES[name], 515, 776, 1040, seed, "cuda", config)


@cache
def promoted_product(m, n, k=528):
    """a, b and what s07 makes of them: operands for many schedules, with five steps along k."""
    a, b = operands(m, n, k, 5, "cpu", STAGES["s07_promoted"])
    return a, b, STAGES["s07_promoted"].gemm(a, b)


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("ctas", [1, 4])
@pytest.mark.parametrize("name", ["s08_persistent", "s10_grouped", "s11_overlapped", "s12_swapped"])
def test_schedules_of_several_tiles_a_cta(name, ctas, schedule):
    """Ring, phases and the tile of d go from tile to tile; the k-steps are no multiple of the stages.

    Nor are they of the k-blocks in a slot.
    """
    config = STAGES[name].Config
    cases = [
        (200, 100, config(64, 48, 3, 1, ctas=ctas)),
        (300, 75, config(128, 32, 2, 2, ctas=ctas, raster_m=True)),
    ]
    if name == "s12_swapped":
        cases = [
            (70, 200, config(32, 64, 3, blocks=1, ctas=ctas)),
            (40, 300, config(16, 128, 2, 2, blocks=2, ctas=ctas, raster_m=True)),
            (30, 136, config(8, 64, 2, blocks=4, ctas=ctas)),
        ]
    for m, n, config in cases:
        a, b, expected = promoted_product(m, n, fitting(528, config))
        with observe(schedule=schedule) as seen:
            d = guarded_gemm(STAGES[name], a, b, config)
        assert not seen[0].hazards
        assert torch.equal(d, expected)


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("ctas", [2, 4])
@pytest.mark.parametrize("cluster", [(2, 1), (1, 2)])
def test_schedules_of_clusters(cluster, ctas, schedule):
    """An odd number of tiles each way: one CTA has a tile outside d. Clusters have several pairs of tiles."""
    s09 = STAGES["s09_multicast"]
    for m, n, config in (
        (180, 132, s09.Config(64, 48, 3, 1)),
        (300, 72, s09.Config(128, 32, 2, 2, raster_m=True, raster=1)),
    ):
        a, b, expected = promoted_product(m, n)
        with observe(schedule=schedule) as seen:
            d = guarded_gemm(
                s09, a, b, replace(config, ctas=ctas, cluster_m=cluster[0], cluster_n=cluster[1])
            )
        assert not seen[0].hazards
        assert torch.equal(d, expected)


@pytest.mark.parametrize("tile", [(64, 32, 3, 1), (128, 16, 4, 2), (128, 64, 3, 1)])
def test_bytes_that_a_multicast_saves(tile):
    """Read from global memory once for both CTAs of a cluster, delivered to each of them."""
    m, n, k = 256, 128, 512
    a, b = operands(m, n, k, 5, "cpu", STAGES["s09_multicast"])
    with observe() as seen:
        STAGES["s08_persistent"].gemm(a, b, STAGES["s08_persistent"].Config(*tile))
        for cluster in ((1, 1), (2, 1), (1, 2)):
            STAGES["s09_multicast"].gemm(
                a, b, STAGES["s09_multicast"].Config(*tile, cluster_m=cluster[0], cluster_n=cluster[1])
            )
    s08, alone, below, beside = (report.counters for report in seen)
    steps = m // tile[0] * (n // tile[1]) * (k // 128)  # tiles of all CTAs
    of_a, of_b, of_sfa = tile[0] * 128, tile[1] * 128, tile[0] * 4
    assert s08["tma_load_bytes"] == alone["tma_load_bytes"] == steps * (of_a + of_b + of_sfa)
    assert below["tma_load_bytes"] == steps * (of_a + of_b // 2 + of_sfa)
    assert beside["tma_load_bytes"] == steps * (of_a // 2 + of_b + of_sfa // 2)
    assert len({report["tma_delivered_bytes"] for report in (s08, alone, below, beside)}) == 1


def test_default_clusters():
    """Side by side where there is a single row of tiles."""
    s09 = STAGES["s09_multicast"]
    for m, n, cluster in (
        (4096, 4096, (2, 1)),
        (64, 2112, (1, 2)),
        (64, 64, (2, 1)),
        (256, 1024, (2, 1)),
        (4096, 128, (2, 1)),
    ):
        config = s09.default_config(Problem(m, n, 7168))
        assert (config.cluster_m, config.cluster_n) == cluster and s09.is_legal(config, Problem(m, n, 7168))


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("name", STAGES)
def test_schedules_give_the_same_bits_and_no_hazard(name, schedule):
    a, b = operands(70, 72, 208, 5, "cpu", STAGES[name])
    with observe(schedule=schedule) as seen:
        d = STAGES[name].gemm(a, b)
    assert not seen[0].hazards
    assert torch.equal(d, STAGES[name].gemm(a, b))


@pytest.mark.parametrize("device", DEVICES)
def test_stages_with_the_same_sums_have_the_same_bits(device):
    """The first three add in order of k in FP32, the next three in the tensor core."""
    a, b = operands(66, 77, 272, 9, device)
    results = [module.gemm(a, b) for module in stages()[:6]]
    assert all(torch.equal(results[0], d) for d in results[1:3])
    assert all(torch.equal(results[3], d) for d in results[4:])


CHOOSE_OUT_DTYPE = [name for name, module in STAGES.items() if len(module.stage.out_dtypes) > 1]


@pytest.mark.parametrize("name", CHOOSE_OUT_DTYPE)
def test_every_config_has_the_same_bits(name):
    own = [config for stage, config in configs() if stage == name]
    a, b = operands(90, 200, fitting(400, *own), 9, "cpu", STAGES[name])
    results = [STAGES[name].gemm(a, b, config) for config in own]
    assert all(torch.equal(results[0], d) for d in results[1:])
    reference = quantize.reference(a, b)
    assert relative_error(results[0], reference) <= tolerance(STAGES[name].stage, a, b, reference)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CHOOSE_OUT_DTYPE)
def test_fp32_output(name, device):
    """Ragged or not; `out_dtype` decides whatever the config says."""
    module = STAGES[name]
    for m, n in ((20, 24), (33, 77)):
        a, b = operands(m, n, 528, 3, device, module)
        d = module.gemm(a, b, out_dtype=torch.float32)
        assert d.dtype == torch.float32
        assert torch.equal(d.cpu(), tensor_core_result(module.stage, a, b))
        assert torch.equal(d.bfloat16(), module.gemm(a, b, another(name, out_fp32=True)))


PROMOTED = [name for name, module in STAGES.items() if module.stage.sums == "promoted"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PROMOTED)
def test_more_than_32_steps(name, device):
    """A warp holds 32 scales of b at once."""
    check(STAGES[name], 16, 24, 4224, 0, device)
    check(STAGES[name], 30, 150, 4128, 1, device, another(name))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PROMOTED)
def test_promoted_stages_have_the_same_bits(name, device):
    a, b = operands(300, 200, 656, 9, device, STAGES[name])
    assert torch.equal(STAGES[name].gemm(a, b), STAGES["s07_promoted"].gemm(a, b))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PROMOTED)
def test_row_major_activation_scales(name, device):
    module = STAGES[name]
    for m, k in ((33, 400), (1, 400), (33, 96)):
        a, b = operands(m, 40, k, 2, device, module)
        plain = Quantized(a.data, a.scale.contiguous(), a.granularity)
        padded = torch.zeros(m, 9, device=device)
        padded[:, 2 : 2 + a.scale.shape[1]] = a.scale
        odd = Quantized(a.data, padded[:, 2 : 2 + a.scale.shape[1]], a.granularity)
        assert torch.equal(module.gemm(plain, b), module.gemm(a, b)) and torch.equal(
            module.gemm(odd, b), module.gemm(a, b)
        )


@pytest.mark.parametrize("name", ["s06_warp_specialized", "s07_promoted"])
def test_error_against_k(name):
    """In FP32, on positive inputs: the tensor core's accumulator loses with k, promoted sums do not."""
    module, errors = STAGES[name], []
    for k in (128, 4096):
        a = quantize.quantize(matrix(16, k, 1, "positive"), module.stage.granularities[0])
        b = quantize.quantize(matrix(16, k, 2, "positive"), module.stage.granularities[1])
        errors.append(relative_error(module.gemm(a, b, out_dtype=torch.float32), quantize.reference(a, b)))
    assert errors[1] > 4 * errors[0] if name == "s06_warp_specialized" else errors[1] < 2 * errors[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_nan_and_inf_stay_in_their_rows_and_columns(name, device):
    a, b = operands(20, 24, 64, 1, device, STAGES[name])
    a.data.view(torch.uint8)[3, 5] = 0x7F
    b.data.view(torch.uint8)[7, 60] = 0xFF
    d = guarded_gemm(STAGES[name], a, b).float().cpu()
    expected = torch.zeros(20, 24, dtype=torch.bool)
    expected[3, :] = expected[:, 7] = True
    assert torch.equal(d.isnan(), expected)
    loud = Quantized(a.data, a.scale * float("inf"), a.granularity)
    assert not STAGES[name].gemm(loud, b).isfinite().any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_row_strides(name, device):
    a, b = operands(33, 40, 96, 2, device, STAGES[name])
    wide = [torch.zeros(q.data.shape[0], 160, dtype=torch.uint8, device=device) for q in (a, b)]
    parts = []
    for q, memory in zip((a, b), wide, strict=True):
        memory[:, 32:128] = q.data.view(torch.uint8)
        parts.append(Quantized(memory[:, 32:128].view(torch.float8_e4m3fn), q.scale, q.granularity))
    assert torch.equal(STAGES[name].gemm(*parts), STAGES[name].gemm(a, b))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_a_single_row_may_have_any_stride(name, device):
    for m, n in ((1, 24), (24, 1)):
        plain = operands(m, n, 96, 2, device, STAGES[name])
        odd = list(plain)
        which = 0 if m == 1 else 1
        memory = torch.zeros(2, 104, dtype=torch.uint8, device=device)
        memory[:1, :96] = plain[which].data.view(torch.uint8)
        odd[which] = Quantized(
            memory[:1, :96].view(torch.float8_e4m3fn), plain[which].scale, plain[which].granularity
        )
        assert odd[which].data.stride(0) % 16
        assert torch.equal(STAGES[name].gemm(*odd), STAGES[name].gemm(*plain))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_threads(name, device):
    """A thread that has done nothing on the GPU has no context there."""
    a, b = operands(33, 40, 96, 2, device, STAGES[name])
    first = STAGES[name].gemm(a, b)
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: STAGES[name].gemm(a, b), range(8))]
    assert all(torch.equal(first, d) for d in results)


@pytest.mark.gpu
@pytest.mark.parametrize("name", STAGES)
def test_the_current_stream(name):
    """Ordered with torch's own work there: the inputs are written late on the same stream."""
    a, b = operands(256, 256, 512, 2, "cuda", STAGES[name])
    expected = STAGES[name].gemm(a, b)
    late = Quantized(torch.zeros_like(a.data.view(torch.uint8)).view(a.data.dtype), a.scale, a.granularity)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        late.data.view(torch.uint8).copy_(a.data.view(torch.uint8))
        d = STAGES[name].gemm(late, b)
        assert torch.equal(d, expected)


# what a stage claims to be, in SASS
CLAIMS = {
    "s01_naive": {"LDG", "FFMA"},
    "s02_tiled": {"LDG", "STS", "LDS", "BAR", "FFMA"},
    "s03_tma": {"UTMALDG", "UTMASTG", "SYNCS", "LDS", "FFMA"},
    "s04_wgmma": {"UTMALDG", "UTMASTG", "SYNCS", "QGMMA", "WARPGROUP"},
    "s05_pipelined": {"UTMALDG", "UTMASTG", "SYNCS", "QGMMA", "WARPGROUP"},
    "s06_warp_specialized": {
        "UTMALDG",
        "UTMASTG",
        "SYNCS",
        "QGMMA",
        "WARPGROUP",
        "USETMAXREG",
        "STSM",
        "ELECT",
    },
    "s07_promoted": {
        "UTMALDG",
        "UTMASTG",
        "SYNCS",
        "QGMMA",
        "WARPGROUP",
        "USETMAXREG",
        "STSM",
        "ELECT",
        "FFMA",
        "SHFL",
    },
    "s08_persistent": {
        "UTMALDG",
        "UTMASTG",
        "UTMACMDFLUSH",
        "SYNCS",
        "QGMMA",
        "WARPGROUP",
        "USETMAXREG",
        "STSM",
        "ELECT",
        "FFMA",
        "SHFL",
    },
    "s09_multicast": {
        "UTMALDG",
        "UTMASTG",
        "UTMACMDFLUSH",
        "SYNCS",
        "QGMMA",
        "WARPGROUP",
        "USETMAXREG",
        "STSM",
        "ELECT",
        "FFMA",
        "SHFL",
        "UCGABAR_ARV",
        "UCGABAR_WAIT",
    },
}
CLAIMS["s10_grouped"] = CLAIMS["s11_overlapped"] = CLAIMS["s08_persistent"]
CLAIMS["s12_swapped"] = CLAIMS["s08_persistent"] - {"USETMAXREG"}  # all its warps need few
BF16_ONLY = {"UTMASTG", "UTMACMDFLUSH", "STSM"}  # FP32 is stored by threads


@pytest.mark.parametrize("name, config", configs(), ids=config_id)
def test_what_is_compiled(name, config):
    found = inspect(STAGES[name], config)
    assert found.spills == 0 and found.stack == 0 and not found.warnings
    claims = CLAIMS[name] - (BF16_ONLY if getattr(config, "out_fp32", False) else set())
    assert claims <= found.opcodes.keys()


MULTICASTS = [config for name, config in configs() if name == "s09_multicast"]


@pytest.mark.parametrize("config", MULTICASTS, ids=config_id)
def test_what_multicast_compiles_to(config):
    """TMA multicasts what is shared, and the products begin as soon as in s08.

    Nothing in the loops waits for memory, as `.release.cluster` would.
    """
    found = inspect("s09_multicast", config)
    multicasts = [
        each for each in found.instructions if each.text.startswith("UTMALDG") and "MULTICAST" in each.text
    ]
    assert (
        len(multicasts) == {(2, 1): 1, (1, 2): 2, (1, 1): 0}[config.cluster_m, config.cluster_n]
    )  # b; a and its scales
    assert slow_lines(found) == {"  barrier_cluster_arrive();"}
    fields = {name: value for name, value in vars(config).items() if not name.startswith("cluster")}
    assert (
        to_first_product(found)
        <= to_first_product(inspect("s08_persistent", STAGES["s08_persistent"].Config(**fields))) + 3
    )


def test_a_release_for_the_cluster_would_show(tmp_path):
    source = tmp_path / "s09_multicast.cu"
    text = STAGES["s09_multicast"].stage.source.read_text()
    arrive = '"mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];"'
    slow = f'asm volatile({arrive} ::"r"(mapa(&shared.empty[stage], r)));'
    source.write_text(text.replace("mbarrier_arrive_cluster(mapa(&shared.empty[stage], r));", slow))
    assert any(slow in line for line in slow_lines(inspect("s09_multicast", source=source)))


def slow_lines(found):
    """The lines for which a thread waits until the whole GPU sees what it did."""
    return {
        found.source.splitlines()[each.line - 1]
        for each in found.instructions
        if each.opcode == "ERRBAR" or "MEMBAR.ALL.GPU" in each.text
    }


def to_first_product(found):
    """Instructions from the wait for a slot to the first product in it."""
    first = next(i for i, each in enumerate(found.instructions) if each.opcode == "QGMMA")
    return first - max(i for i, each in enumerate(found.instructions[:first]) if each.opcode == "SYNCS")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("m, n, k", [(0, 8, 16), (8, 0, 16), (8, 8, 0), (0, 0, 0)])
def test_empty_problems(name, m, n, k, device):
    a, b = operands(m, n, k, 0, device, STAGES[name])
    with observe() as seen:
        d = STAGES[name].gemm(a, b)
    assert d.shape == (m, n) and d.dtype == torch.bfloat16 and d.device.type == device
    assert not d.any() and not seen


@pytest.mark.parametrize("name", STAGES)
def test_a_reader_s_own_source(name, tmp_path):
    stage = STAGES[name].stage
    copy = tmp_path / "mine.cu"
    text = stage.source.read_text()
    a, b = operands(16, 16, 64, 4, "cpu", STAGES[name])
    copy.write_text(text)
    assert torch.equal(stage.gemm(a, b, source=copy), stage.gemm(a, b))
    doubled = {
        "*scale_a * *scale_b": "2 * *scale_a * *scale_b",
        "{sfa[0], sfa[8]}": "{2 * sfa[0], 2 * sfa[8]}",
        "scale_a[i][0] = sfa[0];": "scale_a[i][0] = 2 * sfa[0];",
        "scale_a[i][1] = sfa[8];": "scale_a[i][1] = 2 * sfa[8];",
        "scale_b = *ring_sfb;": "scale_b = 2 * *ring_sfb;",
    }
    for scales, twice in doubled.items():
        text = text.replace(scales, twice)
    copy.write_text(text)
    assert torch.equal(stage.gemm(a, b, source=str(copy)), 2 * stage.gemm(a, b))


def test_stages_are_found_by_name_and_number():
    assert [module.stage.name for module in stages()] == sorted(module.stage.name for module in stages())
    assert stage_named("s03") is stage_named("3") is stage_named("s03_tma")
    with pytest.raises(ValueError, match="stage: expected one of"):
        stage_named("s99")
