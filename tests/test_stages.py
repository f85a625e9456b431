"""Every stage against the float64 reference: shapes, configs, random problems, on the emulator and (marker gpu) on a Hopper GPU."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minigemm import inspect, observe, quantize
from minigemm.kernels import stage_named, stages
from minigemm.quantize import Quantized
from minigemm.tour import relative_error, tolerance
from minigemm.types import Problem

from .products import STAGES, configs, guarded_gemm, operands, random_problem

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [(1, 1, 16), (1, 77, 64), (64, 64, 128), (77, 50, 144), (100, 72, 80), (3, 136, 32)]


def config_id(value):
    return value if isinstance(value, str) else ",".join(map(str, value.constants().values()))


def check(module, m, n, k, seed, device, config=None):
    a, b = operands(m, n, k, seed, device)
    d = guarded_gemm(module, a, b, config)
    reference = quantize.reference(a, b)
    what = f"{m}x{n}x{k} seed {seed} {config}"
    error = relative_error(d, reference)
    assert error <= tolerance(reference), f"{what}: {error}"
    # one wrong element of many would hide in that: BF16's half unit in the last place, twice, and FP32's for each of the k sums
    magnitudes = quantize.reference(*(Quantized(q.data.float().abs().to(q.data.dtype), q.scale, "tensor") for q in (a, b)))
    wrong = (d.double() - reference).abs() > 2**-8 * reference.abs() + k * 2**-24 * magnitudes
    assert not wrong.any(), f"{what}: {int(wrong.sum())} wrong, the first at {wrong.nonzero()[0].tolist()}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name, config", configs(), ids=config_id)
def test_shapes_and_configs(name, config, device):
    for seed, (m, n, k) in enumerate(SHAPES):
        assert STAGES[name].is_legal(config, Problem(m, n, k))
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
def test_500_random_problems(name):
    source = random.Random(name + " many")
    for seed in range(500):
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


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("name", STAGES)
def test_schedules_give_the_same_bits_and_no_hazard(name, schedule):
    a, b = operands(70, 72, 208, 5, "cpu")
    with observe(schedule=schedule) as seen:
        d = STAGES[name].gemm(a, b)
    assert not seen[0].hazards
    assert torch.equal(d, STAGES[name].gemm(a, b))


def test_every_stage_has_the_same_bits():
    a, b = operands(66, 77, 272, 9, "cpu")
    results = [module.gemm(a, b) for module in stages()]
    assert all(torch.equal(results[0], d) for d in results[1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_nan_and_inf_stay_in_their_rows_and_columns(name, device):
    a, b = operands(20, 24, 64, 1, device)
    a.data.view(torch.uint8)[3, 5] = 0x7F
    b.data.view(torch.uint8)[7, 60] = 0xFF
    d = guarded_gemm(STAGES[name], a, b).float().cpu()
    expected = torch.zeros(20, 24, dtype=torch.bool)
    expected[3, :] = expected[:, 7] = True
    assert torch.equal(d.isnan(), expected)
    loud = Quantized(a.data, torch.tensor(float("inf"), device=device), "tensor")
    assert not STAGES[name].gemm(loud, b).isfinite().any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_row_strides(name, device):
    a, b = operands(33, 40, 96, 2, device)
    wide = [torch.zeros(q.data.shape[0], 160, dtype=torch.uint8, device=device) for q in (a, b)]
    parts = []
    for q, memory in zip((a, b), wide, strict=True):
        memory[:, 32:128] = q.data.view(torch.uint8)
        parts.append(Quantized(memory[:, 32:128].view(torch.float8_e4m3fn), q.scale, "tensor"))
    assert torch.equal(STAGES[name].gemm(*parts), STAGES[name].gemm(a, b))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_a_single_row_may_have_any_stride(name, device):
    a, b = operands(1, 24, 96, 2, device)
    memory = torch.zeros(2, 104, dtype=torch.uint8, device=device)
    memory[:1, :96] = a.data.view(torch.uint8)
    odd = Quantized(memory[:1, :96].view(torch.float8_e4m3fn), a.scale, "tensor")
    assert odd.data.stride(0) % 16
    assert torch.equal(STAGES[name].gemm(odd, b), STAGES[name].gemm(a, b))
    assert torch.equal(STAGES[name].gemm(b, odd), STAGES[name].gemm(b, a))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
def test_threads(name, device):
    """A thread that has done nothing on the GPU has no context there."""
    a, b = operands(33, 40, 96, 2, device)
    first = STAGES[name].gemm(a, b)
    with ThreadPoolExecutor(4) as pool:
        results = [*pool.map(lambda _: STAGES[name].gemm(a, b), range(8))]
    assert all(torch.equal(first, d) for d in results)


@pytest.mark.gpu
@pytest.mark.parametrize("name", STAGES)
def test_the_current_stream(name):
    """Ordered with torch's own work there: the inputs are written late on the same stream."""
    a, b = operands(256, 256, 512, 2, "cuda")
    expected = STAGES[name].gemm(a, b)
    late = Quantized(torch.zeros_like(a.data.view(torch.uint8)).view(a.data.dtype), a.scale, "tensor")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        late.data.view(torch.uint8).copy_(a.data.view(torch.uint8))
        d = STAGES[name].gemm(late, b)
        assert torch.equal(d, expected)


# what a stage claims to be, in SASS
CLAIMS = {"s01_naive": {"LDG", "FFMA"}, "s02_tiled": {"LDG", "STS", "LDS", "BAR", "FFMA"}, "s03_tma": {"UTMALDG", "UTMASTG", "SYNCS", "LDS", "FFMA"}}


@pytest.mark.parametrize("name, config", configs(), ids=config_id)
def test_what_is_compiled(name, config):
    found = inspect(STAGES[name], config)
    assert found.spills == 0 and found.stack == 0 and not found.warnings
    assert CLAIMS.get(name, set()) <= found.opcodes.keys()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("m, n, k", [(0, 8, 16), (8, 0, 16), (8, 8, 0), (0, 0, 0)])
def test_empty_problems(name, m, n, k, device):
    a, b = operands(m, n, k, 0, device)
    with observe() as seen:
        d = STAGES[name].gemm(a, b)
    assert d.shape == (m, n) and d.dtype == torch.bfloat16 and d.device.type == device
    assert not d.any() and not seen


@pytest.mark.parametrize("name", STAGES)
def test_a_reader_s_own_source(name, tmp_path):
    stage = STAGES[name].stage
    copy = tmp_path / "mine.cu"
    text = stage.source.read_text()
    a, b = operands(16, 16, 64, 4, "cpu")
    copy.write_text(text)
    assert torch.equal(stage.gemm(a, b, source=copy), stage.gemm(a, b))
    assert "* scale" in text or "acc *" in text
    copy.write_text(text.replace("cvt_rn_bf16_f32(acc[i][j] * scale)", "cvt_rn_bf16_f32(2 * acc[i][j] * scale)").replace(
        "acc * (*scale_a * *scale_b)", "2 * acc * (*scale_a * *scale_b)"))  # fmt: skip
    assert torch.equal(stage.gemm(a, b, source=str(copy)), 2 * stage.gemm(a, b))


def test_stages_are_found_by_name_and_number():
    assert [module.stage.name for module in stages()] == sorted(module.stage.name for module in stages())
    assert stage_named("s03") is stage_named("3") is stage_named("s03_tma")
    with pytest.raises(ValueError, match="stage: expected one of"):
        stage_named("s99")


def test_sizes_of_stages_and_steps(capsys):
    """A stage stays under about 300 lines, a step under about 120 changed ones; `pytest -s` shows both."""
    import difflib

    before: list[str] = []
    for module in stages():
        lines = module.stage.source.read_text().splitlines()
        changed = sum(line[0] in "+-" and line[:3] not in ("+++", "---") for line in difflib.unified_diff(before, lines, n=0)) if before else 0
        with capsys.disabled():
            print(f"\n{module.stage.name}: {len(lines)} lines, {changed} changed")
        assert len(lines) <= 300 and changed <= 150
        before = lines
