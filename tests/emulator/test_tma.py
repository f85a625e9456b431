"""TMA: copies against loops over single elements, swizzles against pycute, reductions against torch and
Fractions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm.emulator.errors import Fault, Unsupported
from minigemm.emulator.machine import tma

DTYPES = [torch.uint8, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.int64]


@dataclass
class Flat:
    """Global memory that holds one tensor's storage, and nothing else."""

    tensor: torch.Tensor

    def bytes(self, address: int, size: int) -> np.ndarray:
        data = torch.empty(0, dtype=torch.uint8).set_(self.tensor.untyped_storage()).numpy()
        start = address - self.tensor.untyped_storage().data_ptr()
        if start < 0 or start + size > data.size:
            raise Fault(f"wild access to {size} bytes at offset {start}")
        return data[start : start + size]


def tensor_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bytes in a tensor whose rows are padded to 16 bytes and somewhat more."""
    size = torch.empty(0, dtype=dtype).element_size()
    row = -(-shape[-1] * size // 16) * 16 + 32
    raw = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape[:-1], row), dtype=np.uint8))
    return raw.view(dtype)[..., : shape[-1]]


@st.composite
def maps(draw: st.DrawFn) -> tuple[tma.TensorMap, tuple[int, ...]]:
    """A map of 1 to 5 dimensions, and coordinates (innermost first) anywhere around the tensor."""
    dtype = draw(st.sampled_from(DTYPES))
    size = torch.empty(0, dtype=dtype).element_size()
    rank = draw(st.integers(1, 5))
    shape = (*(draw(st.integers(1, 9)) for _ in range(rank - 1)), draw(st.integers(1, 70)))
    swizzle = draw(st.sampled_from([0, 32, 64, 128]))
    inner = 16 * draw(st.integers(1, (swizzle or 128) // 16))
    box = (*(draw(st.integers(1, 6)) for _ in range(rank - 1)), inner // size)
    steps = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    fill = draw(st.sampled_from(["zero", "nan"])) if dtype.is_floating_point and size > 1 else "zero"
    aligned = 16 // size * draw(st.integers(-6, 5))
    coordinates = (aligned, *(draw(st.integers(-2 * each - 2, each + 2)) for each in shape[-2::-1]))
    return tma.TensorMap(tensor_of(shape, dtype), box, swizzle, element_strides=steps, fill=fill), coordinates


def elements_of_box(
    tensor_map: tma.TensorMap, coordinates: tuple[int, ...], shape: tuple[int, ...]
) -> list[tuple[int, ...] | None]:
    """For every element of the box, in order, its index into a tensor of `shape`, or None outside."""
    start = coordinates[::-1]
    steps = (*(tensor_map.element_strides or (1,) * len(shape))[:-1], 1)
    counts = [range(0, size, step) for size, step in zip(tensor_map.box, steps, strict=True)]
    indices = [
        tuple(s + i for s, i in zip(start, offsets, strict=True)) for offsets in itertools.product(*counts)
    ]
    return [each if all(0 <= i < n for i, n in zip(each, shape, strict=True)) else None for each in indices]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@given(maps())
def test_gather_is_a_loop_over_elements(case: tuple[tma.TensorMap, tuple[int, ...]]) -> None:
    tensor_map, coordinates = case
    descriptor = tma.decode(tensor_map.encode())
    assert descriptor == tensor_map.descriptor
    size = tensor_map.tensor.element_size()
    outside = b"\xf7\x7f" * (size // 2) if tensor_map.fill == "nan" else bytes(size)
    expected = b"".join(
        outside if index is None else raw(tensor_map.tensor[index])
        for index in elements_of_box(tensor_map, coordinates, tensor_map.tensor.shape)
    )
    assert descriptor.box_bytes == len(expected)
    assert tma.gather(descriptor, coordinates, Flat(tensor_map.tensor)).tobytes() == expected


@given(maps())
def test_scatter_is_a_loop_over_elements(case: tuple[tma.TensorMap, tuple[int, ...]]) -> None:
    """Rows end with a whole 16-byte chunk, which an H200 writes too: as if the tensor were that wide."""
    tensor_map, coordinates = case
    coordinates = tuple(abs(each) for each in coordinates)
    tensor, size = tensor_map.tensor, tensor_map.tensor.element_size()
    wide = (*tensor.shape[:-1], -(-tensor.shape[-1] * size // 16) * 16 // size)
    box = np.random.default_rng(1).integers(0, 256, tensor_map.descriptor.box_bytes, dtype=np.uint8)
    bytes_of = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    expected = bytes_of.clone()
    for i, index in enumerate(elements_of_box(tensor_map, coordinates, wide)):
        if index is not None:
            start = sum(each * stride for each, stride in zip(index, tensor.stride(), strict=True)) * size
            expected[start : start + size] = torch.from_numpy(box[i * size : (i + 1) * size])
    tma.scatter(tensor_map.descriptor, coordinates, box, Flat(tensor))
    assert torch.equal(bytes_of, expected)


def test_gather_copies() -> None:
    tensor = torch.zeros(64, dtype=torch.uint8)
    box = tma.gather(tma.TensorMap(tensor, (64,)).descriptor, (0,), Flat(tensor))
    box[:] = 1
    assert not tensor.any()


def test_a_wild_map_raises_what_memory_raises() -> None:
    tensor = torch.zeros(4, 64, dtype=torch.uint8)
    moved = replace(tma.TensorMap(tensor, (4, 64)).descriptor, address=tensor.data_ptr() + 64)
    with pytest.raises(Fault, match="wild access"):
        tma.gather(moved, (0, 0), Flat(tensor))


def test_number_of_coordinates() -> None:
    tensor = torch.zeros(4, 64, dtype=torch.uint8)
    with pytest.raises(Fault, match="1 coordinates for a tensor map of 2 dimensions"):
        tma.gather(tma.TensorMap(tensor, (4, 64)).descriptor, (0,), Flat(tensor))


def test_what_a_gpu_stops_at() -> None:
    """Every one an illegal instruction on an H200."""
    tensor = torch.zeros(4, 64, dtype=torch.bfloat16)
    descriptor, memory, data = (
        tma.TensorMap(tensor, (4, 64)).descriptor,
        Flat(tensor),
        np.zeros(512, np.uint8),
    )
    tma.gather(descriptor, (-8, -1), memory)
    with pytest.raises(Fault, match="the first coordinate, -4, is -8 bytes into a row"):
        tma.gather(descriptor, (-4, 1), memory)
    for coordinates, message in (
        ((4, 1), "misaligned box"),
        ((-8, 1), "negative coor"),
        ((0, -1), "negative coor"),
    ):
        with pytest.raises(Fault, match=message):
            tma.scatter(descriptor, coordinates, data, memory)
        with pytest.raises(Fault, match=message):
            tma.reduce(descriptor, coordinates, data, memory, "add")


def test_a_store_over_the_end_of_ragged_rows_is_told() -> None:
    def check(width: int, x: int) -> str:
        tensor = torch.zeros(4, 64, dtype=torch.bfloat16)[:, :width]
        return tma.check_box(tma.TensorMap(tensor, (4, 16)).descriptor, (x, 0), store=True)

    assert check(48, 40) == check(45, 16) == ""
    assert "rows of 90 bytes" in check(45, 32) and "6 bytes after each row are overwritten" in check(45, 32)


# --- swizzles


@pytest.mark.parametrize(("swizzle", "bits"), [(0, 0), (32, 1), (64, 2), (128, 3)])
def test_swizzle_is_cutes(swizzle: int, bits: int) -> None:
    pycute = pytest.importorskip("pycute.swizzle")
    oracle = pycute.Swizzle(bits, 4, 3)
    for address in (0, 128, 1024, 2048 + 384, 65536 - 256):
        expected = [oracle(address + i) for i in range(2048)]
        assert tma.swizzle_offsets(address, 2048, swizzle).tolist() == expected


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_swizzle_frees_columns_of_bank_conflicts(swizzle: int) -> None:
    """The purpose: 16-byte chunks of 8 rows of a column lie in as many bank groups as the span allows."""
    span = swizzle or 128
    rows = tma.swizzle_offsets(0, 8 * span, swizzle).reshape(8, span)
    assert len({int(row[0]) % 128 for row in rows}) == {0: 1, 32: 8, 64: 8, 128: 8}[swizzle]


def test_swizzle_offsets_are_shared_and_read_only() -> None:
    assert tma.swizzle_offsets(0, 128, 128) is tma.swizzle_offsets(0, 128, 128)
    with pytest.raises(ValueError, match="read-only"):
        tma.swizzle_offsets(0, 128, 128)[0] = 1


def test_a_narrow_box_takes_whole_swizzle_spans() -> None:
    descriptor = tma.TensorMap(torch.zeros(16, 64, dtype=torch.uint8), (16, 32), 128).descriptor
    assert (descriptor.box_bytes, descriptor.smem_bytes) == (512, 2048)
    offsets = descriptor.offsets(1024).reshape(16, 32)
    assert [int(row[0]) for row in offsets] == [1024 + r * 128 + (r % 8) * 16 for r in range(16)]


def test_shared_alignment() -> None:
    assert (
        tma.shared_alignment(1024, 128)
        == tma.shared_alignment(512, 64)
        == tma.shared_alignment(256, 32)
        == ""
    )
    assert tma.shared_alignment(128, 0) == ""
    for swizzle in (32, 64, 128):
        assert f"no multiple of {8 * swizzle}" in tma.shared_alignment(8 * swizzle - 128, swizzle)
    with pytest.raises(Fault, match="multiple of 128 bytes, not at 0x40"):
        tma.shared_alignment(64, 0)


# --- what cuTensorMapEncodeTiled refuses

GOOD: dict[str, Any] = {"tensor": torch.zeros(64, 128, dtype=torch.bfloat16), "box": (64, 64), "swizzle": 128}
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no tensor": ({"tensor": np.zeros((4, 4))}, TypeError, "tensor: expected a torch.Tensor, got ndarray"),
    "complex": (
        {"tensor": torch.zeros(4, 4, dtype=torch.complex64)},
        TypeError,
        "tensor: expected a dtype .*complex64",
    ),
    "elsewhere": (
        {"tensor": torch.zeros(64, 64, device="meta")},
        ValueError,
        "a CPU tensor, got one on meta",
    ),
    "scalar": ({"tensor": torch.zeros(())}, ValueError, "tensor: expected 1 to 5 dimensions, got 0"),
    "six dimensions": ({"tensor": torch.zeros(1, 1, 1, 1, 1, 4)}, ValueError, "1 to 5 dimensions, got 6"),
    "empty": ({"tensor": torch.zeros(0, 16)}, ValueError, r"elements a dimension, got shape \(0, 16\)"),
    "transposed": ({"tensor": torch.zeros(16, 16).t()}, ValueError, "a contiguous last dimension"),
    "row stride": ({"tensor": torch.zeros(4, 9)}, ValueError, r"multiples of 16 bytes .* got \(36,\) bytes"),
    "base": (
        {"tensor": torch.zeros(64, dtype=torch.uint8)[8:]},
        ValueError,
        "first element at a 16-byte boundary",
    ),
    "box rank": (
        {"box": (64,)},
        ValueError,
        r"box: expected one size for each of the 2 dimensions, got \(64,\)",
    ),
    "box too large": ({"box": (257, 64)}, ValueError, "box: expected 1 to 256 elements a dimension"),
    "box of zero": ({"box": (0, 64)}, ValueError, "box: expected 1 to 256"),
    "inner box": ({"box": (64, 12), "swizzle": 0}, ValueError, "multiple of 16 bytes, got 24 bytes"),
    "beyond the span": (
        {"box": (64, 128)},
        ValueError,
        "at most 128 bytes, the swizzle's span, got 256 bytes",
    ),
    "beyond 32": ({"box": (64, 64), "swizzle": 32}, ValueError, "at most 32 bytes"),
    "swizzle": ({"swizzle": 96}, ValueError, "swizzle: expected 0, 32, 64 or 128 bytes, got 96"),
    "steps": ({"element_strides": (9, 1)}, ValueError, r"element_strides: expected 1 to 8 .*\(9, 1\)"),
    "step rank": ({"element_strides": (1,)}, ValueError, "element_strides: expected one step"),
    "fill": ({"fill": "inf"}, ValueError, r"fill: expected .zero. or .nan., got 'inf'"),
    "nan bytes": (
        {"tensor": torch.zeros(64, 128, dtype=torch.float8_e4m3fn), "fill": "nan"},
        ValueError,
        "fill: .*FP8 travels as bytes",
    ),
    "beyond an SM": (
        {"box": (229, 256), "swizzle": 0, "tensor": torch.zeros(64, 512)},
        ValueError,
        "at most 233472 b",
    ),
    "interleave": ({"interleave": 8}, ValueError, "interleave: expected 0, 16 or 32, got 8"),
    "interleaved": ({"interleave": 16}, Unsupported, "interleave=16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_maps(name: str) -> None:
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        tma.TensorMap(**{**GOOD, **changes})


def test_the_stride_of_a_single_row_means_nothing() -> None:
    tensor = torch.zeros(2, 7)[1:, :4].clone().as_strided((1, 4), (7, 1))
    assert tma.TensorMap(tensor, (1, 4)).descriptor.strides == (4, 16)


def test_the_map_keeps_its_tensor_alive() -> None:
    assert tma.TensorMap(**GOOD).tensor is GOOD["tensor"]


@pytest.mark.parametrize("data", [bytes(128), b"TMAtile1", b"x" * 128])
def test_not_a_tensor_map(data: bytes) -> None:
    with pytest.raises(Fault, match="^not a tensor map"):
        tma.decode(data)


@pytest.mark.parametrize("mode", ["im2col", "im2col::w", "im2col_no_offs", "tile::gather4", "tile::scatter4"])
def test_other_modes_are_named(mode: str) -> None:
    tma.require_tile_mode(("async", "bulk", "tensor", "2d", "tile"))
    with pytest.raises(Unsupported, match=mode):
        tma.require_tile_mode(("async", "bulk", "tensor", "2d", mode))


# --- bulk copies


def test_bulk_copies() -> None:
    tensor = torch.arange(256, dtype=torch.uint8)
    memory, base = Flat(tensor), tensor.data_ptr()
    data = tma.bulk_load(base + 32, 16, 64, memory)
    assert data.tolist() == list(range(32, 96))
    tma.bulk_store(base, 16, data, memory)
    assert tensor[:64].tolist() == list(range(32, 96)) and tensor[64:96].tolist() == list(range(64, 96))
    assert tma.bulk_load(base, 0, 0, memory).size == 0
    for address, shared, size, message in (
        (base + 8, 0, 16, "global address must be a multiple of 16"),
        (base, 8, 16, "shared address must be a multiple of 16 bytes, not 0x8"),
        (base, 0, 20, "size must be a multiple of 16 bytes, not 20"),
    ):
        with pytest.raises(Fault, match=message):
            tma.bulk_load(address, shared, size, memory)
        with pytest.raises(Fault, match=message):
            tma.bulk_store(address, shared, np.zeros(size, np.uint8), memory)


# --- reductions


def bulk_reduce(old: torch.Tensor, new: torch.Tensor, operation: str, type: str) -> torch.Tensor:
    result = old.clone()
    tma.bulk_reduce(result.data_ptr(), 0, new.view(torch.uint8).numpy(), Flat(result), operation, type)
    return result


@pytest.mark.parametrize("type", ["u32", "s32", "u64", "s64", "b32", "b64"])
@pytest.mark.parametrize("operation", ["add", "min", "max", "inc", "dec", "and", "or", "xor"])
def test_integer_reductions(type: str, operation: str) -> None:
    if (operation in ("inc", "dec") and type not in ("u32", "b32")) or (operation, type) == ("add", "s64"):
        with pytest.raises(Fault, match=rf"\.{operation} of "):
            bulk_reduce(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), operation, type)
        return
    bits, signed = int(type[1:]), type[0] == "s"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    rng = np.random.default_rng(bits)
    edges = [low, high - 1, 0, 1, 3, 3]
    old = [
        *edges,
        *(int(each) for each in rng.integers(low, high, 64, dtype=f"{'i' if signed else 'u'}{bits // 8}")),
    ]
    new = [*old[1:6], *old[10:], *old[:1], *old[6:10]]
    scalar = {
        "add": lambda a, b: a + b,
        "min": min,
        "max": max,
        "inc": lambda a, b: 0 if a >= b else a + 1,
        "dec": lambda a, b: b if a == 0 or a > b else a - 1,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
    }[operation]
    expected = [(scalar(a, b) - low) % 2**bits + low for a, b in zip(old, new, strict=True)]
    numpy_type = f"{'i' if signed else 'u'}{bits // 8}"
    length = len(old) // 4 * 4
    a, b = (torch.from_numpy(np.array(each[:length], numpy_type)) for each in (old, new))
    assert bulk_reduce(a, b, operation, type).numpy().tolist() == expected[:length]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("operation", ["add", "min", "max"])
def test_16_bit_float_reductions(dtype: torch.dtype, operation: str) -> None:
    patterns = torch.from_numpy(
        np.random.default_rng(0).integers(-(2**15), 2**15, 2 * 65536).astype(np.int16)
    )
    special = torch.tensor([0, -0x8000, 0x7C00, 0x7F80, 0x7FFF, 0x7E01, 1, -0x7FFF], dtype=torch.int16)
    pairs = torch.cartesian_prod(special, special)
    a = torch.cat([patterns[:65536], pairs[:, 0]]).view(dtype)
    b = torch.cat([patterns[65536:], pairs[:, 1]]).view(dtype)
    got = bulk_reduce(a, b, operation, {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype])
    wide = {"add": torch.add, "min": torch.fmin, "max": torch.fmax}[operation](a.double(), b.double())
    expected = wide.to(dtype)
    is_nan = wide.isnan()
    assert torch.equal(got[~is_nan], expected[~is_nan])
    assert (got.view(torch.int16)[is_nan] == 0x7FFF).all()
    zeros = (a == 0) & (b == 0) & (a.signbit() != b.signbit())
    assert zeros.any()
    assert (got[zeros].signbit() == (operation == "min")).all()


def test_f32_and_f64_add() -> None:
    """FP32 gives its one NaN; FP64 hands a NaN on, the new one first, and makes a negative one."""
    a = torch.tensor([1.0, 1e30, float("inf"), -0.0], dtype=torch.float32)
    b = torch.tensor([2**-24, 1e30, float("-inf"), 0.0], dtype=torch.float32)
    got = bulk_reduce(a, b, "add", "f32")
    assert got[:2].tolist() == (a + b)[:2].tolist() and got.view(torch.int32)[2:].tolist() == [0x7FFFFFFF, 0]
    assert bulk_reduce(a.double(), b.double(), "add", "f64")[0] == 1 + 2**-24
    nan, signalling, inf, one = 0x7FF8 << 48 | 1, 0x7FF0 << 48 | 2, 0x7FF0 << 48, 0x3FF0 << 48
    old, new = (torch.tensor(each) for each in ([nan, nan, inf, one], [one, signalling, inf | -(2**63), nan]))
    got = bulk_reduce(old.view(torch.float64), new.view(torch.float64), "add", "f64").view(torch.int64)
    assert got.tolist() == [nan, signalling, -(8 << 48), nan]
    with pytest.raises(Fault, match=r"\.max of f32 .* There are add for this type"):
        bulk_reduce(a, b, "max", "f32")
    with pytest.raises(Unsupported, match=r"type \.f8"):
        bulk_reduce(a, b, "add", "f8")


@pytest.mark.parametrize("coordinates", [(0, 0), (8, 30), (56, 3), (64, 0)])
def test_tensor_reduce_adds_inside_only(coordinates: tuple[int, int]) -> None:
    tensor = torch.randn(33, 64, dtype=torch.bfloat16)
    box = torch.randn(16, 32, dtype=torch.bfloat16)
    expected = tensor.clone()
    x, y = coordinates
    for i, j in itertools.product(range(16), range(32)):
        if 0 <= y + i < 33 and 0 <= x + j < 64:
            expected[y + i, x + j] += box[i, j]
    data = box.view(torch.uint8).numpy().reshape(-1)
    tma.reduce(tma.TensorMap(tensor, (16, 32)).descriptor, coordinates, data, Flat(tensor), "add")
    assert torch.equal(tensor, expected)
