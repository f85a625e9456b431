"""The quantizing kernels give the bits of minigemm/quantize.py, and the emulator finds no hazard in them."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from minigemm import emulator, observe
from minigemm.compiler.jit import HEADERS, build
from minigemm.kernels import quantizers
from minigemm.layout import empty_m_major
from minigemm.quantize import Quantized, activations, quantize, swiglu

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
#: Each call, and what it means.
CALLS = {
    "1x128": (quantizers.quantize_1x128, lambda x, **options: quantize(x, "1x128", **options)),
    "128x128": (quantizers.quantize_128x128, lambda x, **options: quantize(x, "128x128", **options)),
    "transposed": (quantizers.quantize_transposed, lambda x, **options: quantize(x.T, "1x128", **options)),
    "swiglu": (quantizers.quantize_swiglu, lambda x, **options: quantize(swiglu(x), "1x128", **options)),
}
OPTIONS = [{}, {"ue8m0": True}, {"floor": 1e-4}, {"ue8m0": True, "floor": 3}]
SHAPES = [(1, 2), (9, 128), (19, 302), (136, 272)]
LARGE = [(1000, 7168), (64, 7168), (500, 2050), (3, 20000)]  # for a GPU, whose torch has the same bits
BYTE = torch.uint8


def wild(rows: int, k: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Activations with every kind of block: of zeros, infinities, NaN, huge, tiny and mixed signs of zero."""
    x = activations(rows, k, seed)
    for row, change in enumerate((0.0, -0.0, 1e-5, 1e-38, 1e-43, 1e38, 3e4)):
        x[row + 2 :: 11] *= change
    x[1::7, ::5] = float("inf")
    x[5::13, 1::9] = -float("inf")
    x[3::6, ::4] = float("nan")
    x[10::11] = float("inf")
    x[7::11, ::2] = -0.0
    return x.to(dtype)


def same(result: Quantized, expected: Quantized) -> bool:
    """Whether all bits agree, and the strides of scales; on any device."""
    data = torch.equal(result.data.cpu().view(BYTE), expected.data.cpu().view(BYTE))
    return (
        data
        and torch.equal(result.scale.cpu(), expected.scale.cpu())
        and result.scale.stride() == expected.scale.stride()
    )


def ran(call, *args, schedule="late", **options) -> Quantized:
    """Return the call's result; on the emulator, without hazards."""
    with observe(schedule=schedule) as seen:
        result = call(*args, **options)
    assert not [hazard for report in seen for hazard in report.hazards]
    return result


@pytest.fixture(params=[True, False], ids=["busy", "idle"])
def rows(request, monkeypatch):
    """Both numbers of rows for which quantize_rows is compiled, whatever the shape."""
    monkeypatch.setattr(quantizers, "BUSY", 0 if request.param else 1 << 30)


# --- bits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_bits(name, dtype, device):
    call, meaning = CALLS[name]
    for number, shape in enumerate(SHAPES if device == "cpu" else SHAPES + LARGE):
        x = wild(*shape, dtype)
        for options in OPTIONS[number % 2 :: 2]:
            result = ran(call, x.to(device), **options, schedule=("late", "early")[number % 2])
            expected = meaning(x.to(device) if shape in LARGE else x, **options)
            assert same(result, expected), (shape, options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["1x128", "swiglu"])
def test_either_number_of_rows(name, device, rows):
    call, meaning = CALLS[name]
    x = wild(21, 544, torch.bfloat16)
    assert same(ran(call, x.to(device)), meaning(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["1x128", "128x128"])
def test_every_tie_of_many_scales(name, device):
    """Beside each tie of E4M3 stand the floats that a quotient with another last bit may round otherwise."""
    generator = torch.Generator().manual_seed(5)
    codes = torch.arange(127, dtype=BYTE).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    amax = torch.rand(600 if device == "cpu" else 60_000, generator=generator) + 1
    amax *= torch.exp2(torch.randint(-118, 126, amax.shape, generator=generator).float())
    scale = amax / torch.full_like(amax, 448)
    x = (ties * scale[:, None]).view(torch.int32)
    x = (x + torch.randint(-3, 4, x.shape, generator=generator)).view(torch.float32)
    x *= torch.where(torch.rand(x.shape, generator=generator) < 0.5, -1, 1)
    x = torch.cat([amax[:, None], x, torch.zeros(len(x), 1)], 1)
    if name == "128x128":
        x = torch.cat([x[row].expand(128, -1) for row in range(0, 600, 40)], 1)
    call, meaning = CALLS[name]
    assert same(ran(call, x.to(device)), meaning(x))


@pytest.mark.parametrize("device", DEVICES)
def test_every_kind_of_gate(device):
    gates = torch.cat(
        [torch.linspace(-110, 110, 4001), torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38])]
    )
    gates = torch.cat([gates, torch.tensor([float("inf"), -float("inf"), float("nan")]), -gates[:86]])
    ups = torch.tensor([1.0, -3.5, 1e-3, 0.0, float("inf")])
    x = torch.cat([gates.expand(5, -1), ups[:, None].expand(-1, len(gates))], 1)
    assert same(ran(quantizers.quantize_swiglu, x.to(device)), quantize(swiglu(x), "1x128"))


# --- groups, strides, alignment, out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_groups_lie_one_behind_the_other(name, device):
    call, meaning = CALLS[name]
    whole = wild(3 * 20, 288, torch.bfloat16).reshape(3, 20, 288).to(device)
    for x in (whole[:, :13], whole[:, ::2, 16:], whole[1:2], whole[0].expand(2, -1, -1)):
        result = ran(call, x)
        groups = [meaning(part) for part in x.cpu()]
        assert torch.equal(result.data.cpu().view(BYTE), torch.stack([g.data.view(BYTE) for g in groups]))
        assert torch.equal(result.scale.cpu(), torch.stack([g.scale for g in groups]))
        if name != "128x128":
            shape = result.scale.shape
            assert result.scale.stride() == empty_m_major(shape[1], shape[2], groups=shape[0]).stride()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_rows_of_any_stride_and_address(name, device):
    call, meaning = CALLS[name]
    whole = wild(18, 400, torch.bfloat16).to(device)
    for x in (whole[:, 8:264], whole[:, 1:257], whole[::3, :130], whole[:1].expand(5, -1)):
        assert same(ran(call, x), meaning(x.cpu()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_out_is_written_and_nothing_beside_it(name, device):
    call, meaning = CALLS[name]
    x = wild(18, 272, torch.bfloat16)
    expected = meaning(x)
    height, width = expected.data.shape
    for shift in (0, 16, 3):
        buffer = torch.full((height, width + 32), 99, dtype=BYTE, device=device)
        data = buffer[:, shift : shift + width].view(torch.float8_e4m3fn)
        scale = torch.empty_strided(expected.scale.shape, expected.scale.stride(), device=device)
        result = ran(call, x.to(device), out=(data, scale))
        assert result.data is data and result.scale is scale and same(result, expected)
        buffer[:, shift : shift + width] = 99
        assert (buffer == 99).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["1x128", "swiglu"])
def test_rows_that_are_not_in_use_stay(name, device, rows):
    call, meaning = CALLS[name]
    x = wild(4 * 21, 272, torch.bfloat16).reshape(4, 21, 272)
    counts = torch.tensor([5, 0, 21, 16], dtype=torch.int32)
    columns = meaning(x[0]).data.shape[1]
    data = torch.full((4, 21, columns), 99, dtype=BYTE, device=device).view(torch.float8_e4m3fn)
    scale = empty_m_major(21, -(-columns // 128), device, 4).fill_(-1)
    ran(call, x.to(device), masked_m=counts.to(device), out=(data, scale))
    for group, count in enumerate(counts.tolist()):
        expected = meaning(x[group, :count]) if count else None
        if expected is not None:
            assert torch.equal(data[group, :count].cpu().view(BYTE), expected.data.view(BYTE))
            assert torch.equal(scale[group, :count].cpu(), expected.scale)
        assert (data[group, count:].view(BYTE) == 99).all() and (scale[group, count:] == -1).all()


def test_each_element_is_read_once_and_rows_not_in_use_are_not():
    x = activations(2 * 24, 256).to(torch.bfloat16).reshape(2, 24, 256)
    with observe() as seen:
        quantizers.quantize_1x128(x)
        quantizers.quantize_128x128(x)
        quantizers.quantize_transposed(x)
        quantizers.quantize_swiglu(x)
        quantizers.quantize_1x128(x, masked_m=torch.tensor([3, 0], dtype=torch.int32))
    *all_rows, masked = (report.counters["global_load_bytes"] for report in seen)
    assert all_rows == 4 * [x.numel() * 2]
    assert 3 * 256 * 2 <= masked < 3 * 256 * 2 + 4 * 4096


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_to_quantize(name, device):
    call, meaning = CALLS[name]
    for shape in ((0, 16), (4, 0), (0, 0)):
        x = torch.zeros(shape, device=device)
        result, expected = call(x), meaning(x)
        assert result.data.shape == expected.data.shape and result.scale.shape == expected.scale.shape
    assert call(torch.zeros(0, 4, 16, device=device)).data.shape[0] == 0


# --- what the compiler makes of them

CONFIGS = [
    *(("quantize_rows", quantizers.RowsConfig(0, True, True, rows, swiglu))
      for rows in (1, 4) for swiglu in (False, True)),
    *(("quantize_rows", quantizers.RowsConfig(2, wide, wide, 4, swiglu))
      for wide in (False, True) for swiglu in (False, True)),
    *((f"quantize_{name}", quantizers.Config(dtype, wide, wide))
      for name in ("blocks", "transposed") for dtype in (0, 2) for wide in (False, True)),
]  # fmt: skip


@pytest.mark.parametrize("name, config", CONFIGS)
def test_no_register_is_spilled_and_accesses_are_wide(name, config):
    kernel = build(HEADERS / f"{name}.cu", config, name=name, symbol=name)
    assert "0 bytes spill stores, 0 bytes spill loads" in kernel.log
    stores = "st.global.v2" if config.wide_stores else "st.global.b8|st.global.u8"
    assert ("ld.global.nc.v4" in kernel.ptx) == config.wide_loads and re.search(stores, kernel.ptx)


# --- bugs


BUGS = {
    "blocks: no barrier after the warps' amax": (
        "128x128", "  __syncthreads();  // all threads arrive with their warp's amax", "  //", "data race",
    ),
    "transposed: no barrier after the columns' amax": (
        "transposed", "  __syncthreads();  // all threads arrive with their columns' amax", "  //", "data race",
    ),
    "transposed: no barrier after the scales": (
        "transposed", "  __syncthreads();  // all threads arrive when the scales are made", "  //", "data race",
    ),
    "rows: a row beyond the matrix": ("1x128", "row0 + i < rows ? k - column : 0);\n  }\n\n  // Lane", None, "past"),
    "transposed: a column beyond the matrix": ("transposed", "column + j < k ? m - row : 0", "m - row", "past"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug, tmp_path):
    name, right, wrong, words = BUGS[bug]
    x = activations(9, 264).to(torch.bfloat16)
    result = CALLS[name][1](x)
    describe = {
        "1x128": quantizers.describe_rows,
        "128x128": quantizers.describe_blocks,
        "transposed": quantizers.describe_transposed,
    }[name]
    described = describe(x, result)
    text = (HEADERS / f"{described.name}.cu").read_text()
    assert text.count(right) == 1
    wrong = right.replace("row0 + i < rows ? k - column : 0", "k - column") if wrong is None else wrong
    source = tmp_path / "wrong.cu"
    source.write_text(text.replace(right, wrong))
    with warnings.catch_warnings(), observe() as seen:
        warnings.simplefilter("ignore")
        try:
            quantizers.run(described, x.device, source)
        except emulator.EmulatorError as error:
            assert words in str(error)
            return
    assert any(words in str(hazard) for hazard in seen[0].hazards)


# --- bad input


X = torch.ones(4, 32)
DATA = torch.empty(4, 32, dtype=torch.float8_e4m3fn)
SCALE = empty_m_major(4, 1)


@pytest.mark.parametrize("x, options, error, words", [
    ([1.0], {}, TypeError, "x: expected a torch.Tensor, got list"),
    (X.double(), {}, TypeError, "x: expected bfloat16, float16 or float32, got torch.float64"),
    (X.to_sparse(), {}, TypeError, r"x: expected a dense \(strided\) tensor, got layout torch.sparse_coo"),
    (X[0], {}, ValueError, r"x: expected \(rows, k\) or \(groups, rows, k\), got shape \(32,\)"),
    (X.T, {}, ValueError, r"x: expected a contiguous last dimension, got strides \(1, 32\)"),
    (X.to("meta"), {}, ValueError, "device: expected tensors on a CPU .* got meta"),
    (X, {"ue8m0": 1}, TypeError, "ue8m0: expected True or False, got 1"),
    (X, {"floor": "1"}, TypeError, "floor: expected a number, .* got '1'"),
    (X, {"floor": -1.0}, ValueError, "floor: expected a finite float32 number from 0 on, got -1.0"),
    (X, {"floor": float("nan")}, ValueError, "floor: expected a finite float32 number from 0 on, got nan"),
    (X, {"masked_m": torch.ones(4, dtype=torch.int32)}, ValueError, r"x: expected \(groups, m, k\) together"),
    (X[None], {"masked_m": torch.ones(1)}, TypeError, "masked_m: expected int32, got torch.float32"),
    (X[None], {"masked_m": torch.tensor([5], dtype=torch.int32)}, ValueError, "masked_m: expected 0 to 4 rows"),
    (X, {"out": DATA}, TypeError, r"out: expected \(data, scales\) or a Quantized, got Tensor"),
    (X, {"out": Quantized(DATA, SCALE, "128x128")}, ValueError, "out.granularity: expected '1x128'"),
    (X, {"out": (X, SCALE)}, TypeError, r"out\[0\]: expected float8_e4m3fn, got torch.float32"),
    (X, {"out": (DATA[:3], SCALE)}, ValueError, r"out\[0\]: expected shape \(4, 32\), got \(3, 32\)"),
    (X, {"out": (DATA.T.contiguous().T, SCALE)}, ValueError, r"out\[0\]: expected a contiguous last dimension"),
    (X, {"out": (DATA.to("meta"), SCALE)}, ValueError, r"out\[0\]: expected the device of x, cpu, got meta"),
    (X, {"out": (DATA, SCALE.double())}, TypeError, r"out\[1\]: expected float32, got torch.float64"),
    (X, {"out": (DATA, SCALE[:3])}, ValueError, r"out\[1\]: expected shape \(4, 1\), got \(3, 1\)"),
    (X, {"out": (DATA, torch.ones(4, 1))}, ValueError, r"out\[1\]: expected M-major scales"),
    (X, {"out": (X.view(torch.float8_e4m3fn)[:, :32], SCALE)}, ValueError, r"out\[0\]: expected memory of its own"),
])  # fmt: skip
def test_bad_input(x, options, error, words):
    with pytest.raises(error, match=words):
        quantizers.quantize_1x128(x, **options)


def test_tensors_that_a_kernel_cannot_read_are_refused():
    with FakeTensorMode():
        fake = torch.ones(4, 32)
    freed = torch.ones(4, 32)
    freed.untyped_storage().resize_(0)
    for x, error, words in (
        (fake, TypeError, "x: expected a plain torch.Tensor, .* got a FakeTensor"),
        (freed, ValueError, "x: expected memory for all elements, 512 bytes, got 0"),
    ):
        with pytest.raises(error, match=words):
            quantizers.quantize_1x128(x)
    scale = empty_m_major(4, 1)
    scale.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"out\[1\]: expected a dense tensor, got torch.sparse_coo"):
        quantizers.quantize_1x128(X, out=(DATA, torch.ones(4, 1).to_sparse()))
    with pytest.raises(ValueError, match=r"out\[1\]: expected memory for all elements, 16 bytes, got 0"):
        quantizers.quantize_1x128(X, out=(DATA, scale))
    with pytest.raises(TypeError, match="x: expected a plain torch.Tensor, .* inside a transform"):
        torch.vmap(quantizers.quantize_1x128)(X[None])


def test_bad_input_of_the_others():
    with pytest.raises(ValueError, match="x: expected the columns of gate and up, an even number, got 31"):
        quantizers.quantize_swiglu(torch.ones(2, 31))
    scale = torch.ones(3, 3).T
    data = torch.empty(300, 300, dtype=torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"out\[1\]: expected contiguous scales, got strides \(1, 3\)"):
        quantizers.quantize_128x128(torch.ones(300, 300), out=(data, scale))


# --- a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_a_graph_replays_it(name):
    call, meaning = CALLS[name]
    x = wild(130, 528, torch.bfloat16).cuda()
    out = call(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(x, out=out)
    x.copy_(wild(130, 528, torch.bfloat16, seed=7))
    graph.replay()
    assert same(out, meaning(x.cpu()))
