"""The grouped stages over their layouts: rows have the bits that s07 gives them; nothing else is written."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from minigemm import observe, quantize
from minigemm.kernels import grouped as launches
from minigemm.kernels import inspect, s07_promoted, s08_persistent, s10_grouped, s11_overlapped, s12_swapped
from minigemm.kernels.grouped import GroupedConfig
from minigemm.kernels.library import stage_of
from minigemm.layout import round_up
from minigemm.quantize import Quantized
from minigemm.types import Layout
from tests.products import GUARD, POISON, fitting, grouped

CONTIGUOUS, PREFIX_SUMS, MASKED = Layout.CONTIGUOUS, Layout.PREFIX_SUMS, Layout.MASKED
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MODULES = [s10_grouped, s11_overlapped, s12_swapped]
FIELDS = [
    {"block_m": 64, "block_n": 32, "stages": 3, "consumers": 1, "ctas": 2},
    {"block_m": 128, "block_n": 48, "stages": 2, "consumers": 2, "ctas": 1},
    {"block_m": 256, "block_n": 32, "stages": 2, "consumers": 2, "ctas": 3, "raster": 1, "raster_m": True},
    {"block_m": 192, "block_n": 16, "stages": 3, "consumers": 3, "ctas": 3},
    {"block_m": 64, "block_n": 112, "stages": 3, "consumers": 1},
]
FEW_ROWS = [
    {"block_m": 32, "stages": 3, "blocks": 1, "ctas": 2},
    {"block_m": 16, "block_n": 128, "consumers": 2, "stages": 2, "blocks": 2, "ctas": 1},
    {"block_m": 64, "stages": 2, "ctas": 3, "raster": 1, "raster_m": True},
    {"block_m": 8, "stages": 3, "ctas": 3},
    {"block_m": 24, "block_n": 128, "consumers": 2, "stages": 2},
]
LARGE = [{"block_m": 128, "stages": 5}, {"block_m": 64, "stages": 6, "consumers": 1}]
CONFIGS = [
    [module.Config(**fields) for fields in (FEW_ROWS if module is s12_swapped else FIELDS)]
    for module in MODULES
]
NAMES = [module.stage.name for module in MODULES]
every_stage = pytest.mark.parametrize("configs", CONFIGS, ids=NAMES)
every_module = pytest.mark.parametrize("module", MODULES, ids=NAMES)


def test_one_partial_sum_and_two_are_tried():
    assert {s11_overlapped.Config(**fields).partials for fields in FIELDS} == {1, 2}


class Experts:
    """b of some groups, and the reference for rows of them."""

    def __init__(self, groups: int, n: int, k: int, device: str):
        self.parts = [
            quantize.quantize(quantize.weights(n, k, seed=g + 1, device=device), "128x128")
            for g in range(groups)
        ]
        self.b = torch.stack([q.data.view(torch.uint8) for q in self.parts]).view(torch.float8_e4m3fn)
        self.sfb = torch.stack([q.scale for q in self.parts])

    def expected(
        self, a: torch.Tensor, sfa: torch.Tensor, owner: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """(m, n): each row times its owner's b; zeros for an owner of -1."""
        d = torch.zeros(len(a), self.b.shape[1], dtype=dtype, device=a.device)
        for group, b in enumerate(self.parts):
            rows = (owner == group).nonzero()[:, 0].to(a.device)
            if len(rows):
                of_group = Quantized(a.view(torch.uint8)[rows].view(a.dtype), sfa[rows], "1x128")
                d[rows] = s07_promoted.gemm(of_group, b, s07_promoted.Config(64, 64, 3, 1), out_dtype=dtype)
        return d


def activations(m: int, k: int, device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    q = quantize.quantize(quantize.activations(m, k, seed=seed, device=device), "1x128")
    return q.data, q.scale


@lru_cache(maxsize=8)
def product(
    owner: tuple[int, ...], groups: int, n: int, k: int, device: str, dtype: torch.dtype, seed: int
) -> tuple[Experts, torch.Tensor, torch.Tensor, torch.Tensor]:
    """b of the groups, a, its scales, and what d should be."""
    experts, (a, sfa) = Experts(groups, n, k, device), activations(len(owner), k, device, seed)
    return experts, a, sfa, experts.expected(a, sfa, torch.tensor(owner), dtype)


class Output:
    """A poisoned d (rows, n) with columns to spare and a guard around it."""

    def __init__(self, m: int, n: int, dtype: torch.dtype, device: str, spare: int = 0):
        words = m * (n + spare) * dtype.itemsize // 2
        self.memory = torch.full((words + 2 * GUARD,), POISON, dtype=torch.int16, device=device)
        self.d = self.memory[GUARD : GUARD + words].view(dtype).view(m, n + spare)[:, :n]
        self.fresh = self.d.clone()

    def check(self, expected: torch.Tensor, written: torch.Tensor) -> None:
        """Rows that are written have the expected bits, and all else still its poison."""
        integer = torch.int16 if self.d.dtype == torch.bfloat16 else torch.int32
        got, wanted, before = (x.contiguous().view(integer).cpu() for x in (self.d, expected, self.fresh))
        written = written.cpu()
        wrong = (got != torch.where(written[:, None], wanted, before)).any(1)
        assert not wrong.any(), (
            f"rows {wrong.nonzero()[:, 0].tolist()} are wrong; owned: {written[wrong].tolist()}"
        )
        self.d.copy_(self.fresh)
        assert (self.memory == POISON).all(), "the kernel wrote beside d"


def check_contiguous(
    owner: list[int | None],
    layout: list[int],
    groups: int,
    n: int,
    k: int,
    config: GroupedConfig,
    device: str,
    dtype=torch.bfloat16,
    spare=0,
    seed=0,
    kind=CONTIGUOUS,
    **options,
) -> None:
    """owner: what each row should be: a group's, -1 for zeros, None for not written."""
    owners, k = tuple(-1 if group is None else group for group in owner), fitting(k, config)
    experts, a, sfa, expected = product(owners, groups, n, k, device, dtype, seed)
    out = Output(len(owner), n, dtype, device, spare)
    numbers = torch.tensor(layout, dtype=torch.int32, device=device)
    grouped(kind, (a, sfa, experts.b, experts.sfb, out.d, numbers), config, **options)
    out.check(expected, torch.tensor([group is not None for group in owner]))


def spread(*runs: tuple[int, int]) -> list[int]:
    return [group for group, count in runs for _ in range(count)]


IDS = {
    "one group": spread((0, 100)),
    "aligned, padding behind each": spread((0, 100), (-1, 28), (1, 128), (2, 1), (-1, 127)),
    "anywhere": spread((0, 37), (1, 1), (2, 90), (3, 64), (0, 8)),
    "empty groups": spread((3, 70)),
    "repeated and not sorted": spread((2, 33), (0, 20), (2, 64), (1, 10), (0, 3)),
    "every row another": [(7 * row) % 4 for row in range(25)],
    "padding everywhere": spread((-1, 5), (0, 60), (-1, 1), (1, 60), (-1, 70), (2, 10), (-1, 64)),
    "padding alone": spread((-1, 150)),
    "one row": [2],
    "out of range": spread((0, 10), (4, 20), (1, 30), (2**31 - 1, 5), (-(2**31), 7), (2, 10)),
}


@every_stage
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ids", IDS)
def test_ids(ids, device, configs):
    owner = [group if 0 <= group < 4 else -1 for group in IDS[ids]]
    for config in configs:
        check_contiguous(owner, IDS[ids], 4, 40, 272, config, device)
    check_contiguous(owner, IDS[ids], 4, 77, 272, configs[1], device)
    check_contiguous(
        [None if group < 0 else group for group in owner],
        IDS[ids],
        4,
        24,
        144,
        configs[0],
        device,
        zero_padding=False,
    )


def ends_of(counts: list[int], alignment: int, behind: int = 0) -> tuple[list[int], list[int]]:
    """The owner of each row, and the prefix sums."""
    owner: list[int] = []
    ends = []
    for group, count in enumerate(counts):
        owner += [-1] * (-len(owner) % alignment) + [group] * count
        ends.append(len(owner))
    return owner + [-1] * (-len(owner) % alignment + behind), ends


@every_stage
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("alignment", [1, 8, 128])
@pytest.mark.parametrize("counts", [[100], [1, 0, 70, 64], [0, 0, 5, 0], [0, 0], [130, 3, 3, 61]])
def test_prefix_sums(counts, alignment, device, configs):
    for behind in (9, 200):
        owner, ends = ends_of(counts, alignment, behind)
        for config in configs[: 4 if behind == 9 else 2]:
            check_contiguous(
                owner, ends, len(counts), 40, 272, config, device, kind=PREFIX_SUMS, alignment=alignment
            )
    alone = [None if group < 0 else group for group in owner]
    check_contiguous(
        alone,
        ends,
        len(counts),
        77,
        144,
        configs[1],
        device,
        kind=PREFIX_SUMS,
        alignment=alignment,
        zero_padding=False,
    )


def check_masked(
    counts: list[int],
    t: int,
    n: int,
    k: int,
    config: GroupedConfig,
    device: str,
    dtype=torch.bfloat16,
    valid=None,
    seed=0,
) -> None:
    groups, k = len(counts), fitting(k, config)
    owner = torch.tensor(
        [group if row < count else -1 for group, count in enumerate(valid or counts) for row in range(t)]
    )
    experts, a, sfa, expected = product(tuple(owner.tolist()), groups, n, k, device, dtype, seed)
    a, sfa, out = a.view(torch.uint8).clone().view(a.dtype), sfa.clone(), Output(groups * t, n, dtype, device)
    unused = (owner < 0).to(device)
    a.view(torch.uint8)[unused] = 0x7F  # NaN
    sfa[unused] = float("nan")
    numbers = torch.tensor(counts, dtype=torch.int32, device=device)
    rows = (a.view(groups, t, k), sfa.reshape(groups, t, -1))
    grouped(MASKED, (*rows, experts.b, experts.sfb, out.d.view(groups, t, n), numbers), config)
    out.check(expected, owner >= 0)


@every_stage
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "counts",
    [[0, 0, 0], [1, 1, 1], [70, 70, 70], [0, 70, 1], [64, 0, 63], [0] * 33 + [5, 0, 70], [70]],
    ids=str,
)
def test_masked(counts, device, configs):
    """Also more groups than a warp looks at at once."""
    for config in configs[: 2 if len(counts) > 3 else None]:
        check_masked(counts, 70, 40, 272, config, device)
    check_masked(counts, 72, 77, 144, configs[4], device)


@every_stage
@pytest.mark.parametrize("device", DEVICES)
def test_numbers_that_make_no_sense(device, configs):
    check_masked([-3, 1000, 2**31 - 1, -(2**31)], 40, 24, 144, configs[0], device, valid=[0, 40, 40, 0])
    experts, (a, sfa) = Experts(4, 24, 144, device), activations(100, 144, device)
    for ends in ([50, 20, 300, -7], [2**31 - 1] * 4, [-(2**31)] * 4, [100, 0, 100, 0]):
        out = Output(100, 24, torch.bfloat16, device)
        numbers = torch.tensor(ends, dtype=torch.int32, device=device)
        grouped(PREFIX_SUMS, (a, sfa, experts.b, experts.sfb, out.d, numbers), configs[0], alignment=8)
        out.d.copy_(out.fresh)
        assert (out.memory == POISON).all()


@every_stage
@pytest.mark.parametrize("device", DEVICES)
def test_fp32(device, configs):
    owner = IDS["padding everywhere"]
    for n in (40, 77):
        check_contiguous(owner, owner, 4, n, 272, configs[0], device, torch.float32)
        check_contiguous(owner, owner, 4, n, 272, configs[1], device, torch.float32, spare=1)
        check_masked([0, 70, 1], 70, n, 272, configs[0], device, torch.float32)


@every_stage
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spare", [1, 2, 8])
def test_a_row_stride_of_d(spare, device, configs):
    """By elements, by pairs and by TMA."""
    owner = IDS["anywhere"]
    check_contiguous(owner, owner, 4, 40, 272, configs[0], device, spare=spare)
    check_contiguous(owner, owner, 4, 39, 272, configs[1], device, spare=spare)


ACCUMULATING = [
    (
        s11_overlapped.Config(64, 32, 3, 1, ctas=2, accumulate=True),
        s11_overlapped.Config(128, 32, 3, 2, ctas=2, accumulate=True),
    ),
    (
        s12_swapped.Config(32, 64, 3, blocks=1, ctas=2, accumulate=True),
        s12_swapped.Config(16, 128, 2, 2, ctas=2, accumulate=True),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("config, other", ACCUMULATING, ids=["s11", "s12"])
def test_accumulation(config, other, dtype, device):
    """In FP32, then rounded; padding stays what it was. Rows of d are multiples of 16 bytes, or are not."""
    stage = stage_of(config)
    ids = IDS["padding everywhere"]
    owner, k = torch.tensor(ids), fitting(272, config, other)
    for n in (40, 77):
        experts, (a, sfa) = Experts(4, n, k, device), activations(len(ids), k, device)
        products = experts.expected(a, sfa, owner, torch.float32)
        before = torch.linspace(-3, 3, len(ids) * n, device=device).view(len(ids), n).to(dtype)
        d = before.clone()
        numbers = owner.int().to(device)
        grouped(CONTIGUOUS, (a, sfa, experts.b, experts.sfb, d, numbers), config, zero_padding=False)
        written = (owner >= 0).to(device)[:, None]
        assert torch.equal(d, torch.where(written, (before.float() + products).to(dtype), before))
        d = before.clone()
        dense = replace(other, out_fp32=dtype == torch.float32)
        launch = launches.launch_dense(a, sfa, experts.b[1], experts.sfb[1], d, dense)
        stage.run(launch, dense, d.device)
        alone = experts.expected(a, sfa, torch.ones(len(ids)), torch.float32)
        assert torch.equal(d, (before.float() + alone).to(dtype))


@every_stage
@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("place", range(3))
def test_schedules_give_the_same_bits_and_no_hazard(place, schedule, configs):
    config = configs[place]
    with observe(schedule=schedule) as seen:
        check_contiguous(IDS["padding everywhere"], IDS["padding everywhere"], 4, 40, 400, config, "cpu")
        owner, ends = ends_of([1, 0, 70, 64], 8)
        check_contiguous(owner, ends, 4, 40, 400, config, "cpu", kind=PREFIX_SUMS, alignment=8)
        check_masked([0, 70, 1], 70, 77, 400, config, "cpu")
    assert len([report for report in seen if report.kernel.startswith(("s10", "s11", "s12"))]) == 3
    assert not any(report.hazards for report in seen)


@every_module
def test_one_kernel_for_a_layout(module, monkeypatch):
    """Sizes, groups and ctas compile nothing anew."""
    from minigemm.compiler import jit

    built = []
    build = jit.build
    monkeypatch.setattr(
        jit, "build", lambda *args, **keywords: built.append(build(*args, **keywords)) or built[-1]
    )
    one = module.Config(**(FEW_ROWS if module is s12_swapped else FIELDS)[0])
    for config in (one, replace(one, ctas=7)):
        check_contiguous([0] * 20, [0] * 20, 1, 24, 144, config, "cpu")
        check_contiguous([0] * 30, [30], 1, 40, 272, config, "cpu", kind=PREFIX_SUMS)
        check_contiguous([0] * 5, [5], 1, 8, 16, config, "cpu", kind=PREFIX_SUMS)
        check_masked([3, 1], 4, 8, 16, config, "cpu")
        check_masked([2, 7, 1], 8, 40, 272, config, "cpu")
    assert len({kernel.key for kernel in built if kernel.name == module.stage.name}) == 3


@pytest.mark.parametrize("module", MODULES[:2], ids=NAMES[:2])
@pytest.mark.parametrize("layout", Layout)
def test_the_registers_of_a_layout(layout, module):
    """The warp that finds the parts has as few as 32, so that the consumers keep those that s08 has."""
    for fields in ({}, {"block_m": 192, "stages": 4, "consumers": 3}, {"block_m": 64, "consumers": 1}):
        found = inspect(module, module.Config(**fields, layout=layout))
        assert found.spills == 0 and found.stack == 0 and not found.warnings
        assert found.registers <= inspect("8", s08_persistent.Config(**fields)).registers


def test_bad_launches():
    experts, (a, sfa) = Experts(3, 8, 16, "cpu"), activations(6, 16, "cpu")
    d, counts = torch.empty(3, 2, 8, dtype=torch.bfloat16), torch.ones(3, dtype=torch.int32)
    rows = a.view(3, 2, 16), sfa.reshape(3, 2, 1)
    masked = s10_grouped.Config(64, 16, 2, 1, layout=MASKED)
    wide = torch.zeros(3, 16, 16, dtype=torch.uint8)[:, :8].view(torch.float8_e4m3fn)
    words = r"groups that follow each other, 8 rows of 16 elements each, got strides \(256, 16, 1\)"
    with pytest.raises(ValueError, match=words):
        launches.launch_masked(*rows, wide, experts.sfb, d, counts, masked)
    with pytest.raises(ValueError, match="config.layout: expected 3, that of the call, got 1"):
        launches.launch_masked(*rows, experts.b, experts.sfb, d, counts, replace(masked, layout=CONTIGUOUS))


def test_the_scheduler_knows_the_layouts_by_the_same_numbers():
    """scheduler.cuh copies the values of `types.Layout` by hand."""
    text = (s10_grouped.stage.source.parent / "scheduler.cuh").read_text()
    values = text.partition("constexpr int DENSE")[2].partition(";")[0]
    found = re.findall(r"(\w+) = (\d+)", "DENSE" + values)
    assert [(name, int(value)) for name, value in found] == [(each.name, each.value) for each in Layout]


@every_module
def test_the_parameters_have_the_kernels_names(module):
    """In its order: `refit` tells places by these names."""
    text = module.stage.source.read_text()
    header = re.sub(r"//.*", "", text.partition(module.stage.symbol + "(")[2].partition(") {")[0])
    names = tuple(re.findall(r"(\w+) *(?:,|$)", header.strip()))
    known = launches.PARAMETERS
    assert names == (known[:-1] if module is s10_grouped else known)


def random_grouped(source: random.Random, device: str, seed: int) -> None:
    """A problem of any layout, with counts even, skewed, zero or full."""
    groups, n, k = (
        source.randint(1, 9),
        source.choice((8, 40, 77, 129, source.randint(1, 200))),
        16 * source.randint(1, 20),
    )
    kind = source.random()
    counts = [
        source.choice((0, source.randint(0, 100))) if kind < 0.6 else 64 if kind < 0.8 else 0
        for _ in range(groups)
    ]
    if source.random() < 0.3:
        counts[source.randrange(groups)] = 300
    module = source.choice(MODULES)
    config = module.Config(**source.choice(FEW_ROWS if module is s12_swapped else [*LARGE, *FIELDS]))
    dtype = source.choice((torch.bfloat16, torch.float32))
    layout = source.randrange(3)
    if layout == 0:
        order = source.sample(range(-1, groups), groups + 1)
        ids = [
            group for group in order for _ in range(counts[group] if group >= 0 else source.randint(0, 80))
        ] or [-1]
        if source.random() < 0.2:
            source.shuffle(ids)
        check_contiguous(ids, ids, groups, n, k, config, device, dtype, seed=seed)
    elif layout == 1:
        alignment = source.choice((1, 16, 128))
        owner, ends = ends_of(counts, alignment, behind=source.randint(1, 100))
        check_contiguous(
            owner, ends, groups, n, k, config, device, dtype, seed=seed, kind=PREFIX_SUMS, alignment=alignment
        )
    else:
        t = max(*counts, 1, 1) + source.choice((0, 1, 50))
        check_masked(counts, round_up(t, source.choice((1, 8))), n, k, config, device, dtype, seed=seed)


def test_random_problems():
    source = random.Random("grouped")
    for seed in range(12):
        random_grouped(source, "cpu", seed)


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_500_random_problems_on_the_gpu():
    source = random.Random("grouped on a gpu")
    for seed in range(500):
        random_grouped(source, "cuda", seed)
