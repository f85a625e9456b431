"""The tensor memory accelerator (TMA): tensor maps, boxes, swizzles, bulk copies, reductions.

Pure functions over bytes: when a copy lands, and who may see it, is the machine's business. A box travels
*dense*: the elements in row-major order, as one uint8 array, unswizzled; `Descriptor.offsets` says where in
shared memory each byte of it lives.

A tensor map is 128 bytes of our own making, so that maps in parameters, structs, `__constant__` and global
memory all work. `TensorMap` makes them and refuses what `cuTensorMapEncodeTiled` refuses.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import Fault, Unsupported

__all__ = [
    "Descriptor",
    "ElementType",
    "Memory",
    "TensorMap",
    "bulk_load",
    "bulk_reduce",
    "bulk_store",
    "check_box",
    "decode",
    "gather",
    "reduce",
    "require_tile_mode",
    "scatter",
    "shared_alignment",
    "swizzle_offsets",
]

Bytes = NDArray[np.uint8]

CHUNK = 16  # bytes: the unit that swizzles permute, and that every bulk copy is a multiple of
BOX_MAX = 228 * 1024  # bytes: the shared memory of an SM


class Memory(Protocol):
    """Global memory as the TMA sees it."""

    def bytes(self, address: int, size: int) -> Bytes:
        """Return a view of the `size` bytes at `address`. Raises Fault unless one allocation holds them."""
        ...


# --- element types


@dataclass(frozen=True, slots=True)
class ElementType:
    """An element's type for the TMA. `kind` is "u", "s", "f" or "bf", as in PTX; `size` is in bytes."""

    kind: str
    size: int

    @property
    def is_float(self) -> bool:
        return self.kind in ("f", "bf")

    @property
    def integer(self) -> np.dtype[np.unsignedinteger]:
        """The unsigned NumPy type of the same size, which holds the bit pattern."""
        return np.dtype(f"u{self.size}")

    def __str__(self) -> str:
        return f"{self.kind}{8 * self.size}"


# In the order of the codes inside an encoded map. One-byte elements, FP8 among them, are bytes to the TMA.
_TYPES = (
    ElementType("u", 1),
    ElementType("u", 2),
    ElementType("u", 4),
    ElementType("s", 4),
    ElementType("u", 8),
    ElementType("s", 8),
    ElementType("f", 2),
    ElementType("f", 4),
    ElementType("f", 8),
    ElementType("bf", 2),
)
_BY_NAME = {str(each): each for each in _TYPES}
_DTYPES = {
    "bool": "u8",
    "int8": "u8",
    "uint8": "u8",
    "float8_e4m3fn": "u8",
    "float8_e5m2": "u8",
    "int16": "u16",
    "uint16": "u16",
    "uint32": "u32",
    "int32": "s32",
    "uint64": "u64",
    "int64": "s64",
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
}
_FILLS = ("zero", "nan")
_SPANS = (0, 32, 64, 128)  # bytes that a swizzle permutes within; 0 is no swizzle


# --- tensor maps

_MAGIC = b"TMAtile1"
# magic; address; dims; outer strides; box; element strides; rank, type, swizzle, fill, interleave
_LAYOUT = struct.Struct("<8s Q 5Q 4Q 5H 5B 5B 20x")
assert _LAYOUT.size == 128


@dataclass(frozen=True)
class Descriptor:
    """A tensor map as the hardware reads it. Every tuple is innermost first, like PTX coordinates.

    `address` and `strides` are in bytes (`strides[0]` is the element's size), `dims` and `box` in elements;
    `element_strides` are steps within the box, `swizzle` is the span in bytes, `fill` is "zero" or "nan".
    """

    address: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    type: ElementType
    swizzle: int = 0
    fill: str = "zero"
    interleave: int = 0

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Elements of the box that travel: its size over the element strides, rounded up."""
        return tuple(-(-size // step) for size, step in zip(self.box, self.element_strides, strict=True))

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one innermost row of the box."""
        return self.extents[0] * self.type.size

    @cached_property
    def box_bytes(self) -> int:
        """Bytes of one box.

        A load completes as many on its mbarrier, even if the box hangs over the tensor's edge.
        """
        return math.prod(self.extents) * self.type.size

    @cached_property
    def smem_bytes(self) -> int:
        """Bytes of shared memory that a box spans: a swizzled row takes a whole swizzle span."""
        return self.box_bytes // self.row_bytes * max(self.row_bytes, self.swizzle)

    def offsets(self, address: int) -> NDArray[np.int64]:
        """Return the shared address of each byte of a dense box at `address`: (box_bytes,), read-only."""
        placed = swizzle_offsets(address, self.smem_bytes, self.swizzle)
        if self.smem_bytes == self.box_bytes:
            return placed
        return placed.reshape(-1, self.swizzle)[:, : self.row_bytes].reshape(-1)

    def encode(self) -> bytes:
        """Return the 128 bytes that a kernel is given; `decode` reads them back."""
        rank = len(self.dims)

        def padded(values: Sequence[int], count: int) -> tuple[int, ...]:
            return (*values, *[0] * (count - len(values)))

        return _LAYOUT.pack(
            _MAGIC,
            self.address,
            *padded(self.dims, 5),
            *padded(self.strides[1:], 4),
            *padded(self.box, 5),
            *padded(self.element_strides, 5),
            rank,
            _TYPES.index(self.type),
            self.swizzle,
            _FILLS.index(self.fill),
            self.interleave,
        )


@lru_cache(maxsize=256)
def decode(data: bytes) -> Descriptor:
    """Return the descriptor in the 128 bytes that `encode` made. Raises Fault if they hold no tensor map."""
    if len(data) != _LAYOUT.size or not data.startswith(_MAGIC):
        raise Fault(
            "not a tensor map: the 128 bytes at this address hold something else. Pass the map as "
            "`const __grid_constant__ CUtensorMap` and give the instruction the address of that parameter"
        )
    _, address, *fields, rank, code, swizzle, fill, interleave = _LAYOUT.unpack(data)
    dims, strides, box, element_strides = fields[:5], fields[5:9], fields[9:14], fields[14:19]
    element = _TYPES[code]
    return Descriptor(
        address,
        tuple(dims[:rank]),
        (element.size, *strides[: rank - 1]),
        tuple(box[:rank]),
        tuple(element_strides[:rank]),
        element,
        swizzle,
        _FILLS[fill],
        interleave,
    )


@dataclass(frozen=True, eq=False)
class TensorMap:
    """A CPU tensor that a kernel reads or writes through TMA, one `box` at a time.

    `box` and `element_strides` are in `tensor.shape`'s order, innermost last. `swizzle` is the span in bytes
    (0, 32, 64, 128), `fill` ("zero" or "nan") what a load finds outside the tensor. The map keeps the tensor
    alive. What `cuTensorMapEncodeTiled` refuses is a ValueError that names the argument, what was expected
    and what came; a dtype that no map can describe is a TypeError.
    """

    tensor: torch.Tensor
    box: tuple[int, ...]
    swizzle: int = 0
    element_strides: tuple[int, ...] | None = field(default=None, kw_only=True)
    fill: str = field(default="zero", kw_only=True)
    interleave: int = field(default=0, kw_only=True)
    descriptor: Descriptor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "descriptor", _describe(self))

    def encode(self) -> bytes:
        """Return the map's 128 bytes."""
        return self.descriptor.encode()


def _describe(tensor_map: TensorMap) -> Descriptor:
    """Return the checked descriptor of a map."""
    tensor, box, swizzle = tensor_map.tensor, tensor_map.box, tensor_map.swizzle
    if not isinstance(box, Sequence):
        raise TypeError(f"box: expected a length for each dimension of the tensor, got {box!r}")
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor: expected a torch.Tensor, got {type(tensor).__name__}")
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise TypeError(f"tensor: expected a dtype that TMA can move ({', '.join(_DTYPES)}), got {name}")
    element, box, rank = _BY_NAME[_DTYPES[name]], tuple(box), tensor.dim()

    # The stride of a dimension of one element means nothing, but the driver checks it: any good one will do.
    strides = tuple(
        element.size * stride if size > 1 or i == rank - 1 else CHUNK
        for i, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    )
    _check_tensor(tensor, strides, element, name)

    steps = (1,) * rank if tensor_map.element_strides is None else tuple(tensor_map.element_strides)
    _expect(len(box) == rank, "box", f"one size for each of the {rank} dimensions", box)
    _expect(all(1 <= each <= 256 for each in box), "box", "1 to 256 elements a dimension", box)
    _expect(len(steps) == rank, "element_strides", f"one step for each of the {rank} dimensions", steps)
    _expect(all(1 <= each <= 8 for each in steps), "element_strides", "1 to 8 in each dimension", steps)
    _expect(tensor_map.interleave in (0, 16, 32), "interleave", "0, 16 or 32", tensor_map.interleave)
    if tensor_map.interleave:
        raise Unsupported(f"tensor maps with interleave={tensor_map.interleave}")
    _expect(swizzle in _SPANS, "swizzle", "0, 32, 64 or 128 bytes", swizzle)

    # The bytes of the box: of a row, and of all that moves.
    inner = box[-1] * element.size
    moved = element.size * math.prod(-(-size // step) for size, step in zip(box, steps, strict=True))
    row, whole = f"{inner} bytes ({box}, {name})", f"{moved} bytes ({box}, {name})"
    limit = f"a last dimension of at most {swizzle} bytes, the swizzle's span"
    _expect(inner % 16 == 0, "box", "a last dimension that is a multiple of 16 bytes", row)
    _expect(not swizzle or inner <= swizzle, "box", limit, row)
    _expect(moved <= BOX_MAX, "box", f"at most {BOX_MAX} bytes", whole)

    fill = tensor_map.fill
    floats = 'a floating-point dtype with "nan" (FP8 travels as bytes)'
    _expect(fill in _FILLS, "fill", '"zero" or "nan"', repr(fill))
    _expect(fill == "zero" or element.is_float, "fill", floats, name)
    return Descriptor(
        address=tensor.data_ptr(),
        dims=tuple(tensor.shape)[::-1],
        strides=(element.size, *strides[-2::-1]),
        box=box[::-1],
        element_strides=(1, *steps[-2::-1]),  # the driver ignores the innermost one
        type=element,
        swizzle=swizzle,
        fill=fill,
        interleave=tensor_map.interleave,
    )


def _check_tensor(tensor: torch.Tensor, strides: tuple[int, ...], element: ElementType, name: str) -> None:
    """Raise ValueError unless a map can describe the tensor. `strides` are in bytes, `name` is its dtype."""
    shape, rank = tuple(tensor.shape), tensor.dim()
    _expect(tensor.device.type == "cpu", "tensor", "a CPU tensor", f"one on {tensor.device}")
    _expect(1 <= rank <= 5, "tensor", "1 to 5 dimensions", rank)
    sizes = "1 to 2**32 elements a dimension"
    _expect(all(1 <= each <= 2**32 for each in shape), "tensor", sizes, f"shape {shape}")
    contiguous = strides[-1] == element.size or shape[-1] == 1
    _expect(contiguous, "tensor", "a contiguous last dimension", f"strides {tuple(tensor.stride())}")
    good = all(each % 16 == 0 and each < 2**40 for each in strides[:-1])
    expected = "strides that are multiples of 16 bytes and less than 2**40"
    _expect(good, "tensor", expected, f"{strides[:-1]} bytes for shape {shape}, dtype {name}")
    address = tensor.data_ptr()
    _expect(address % 16 == 0, "tensor", "a first element at a 16-byte boundary", hex(address))


def _expect(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ValueError for an argument that is not as expected."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got}")


def require_tile_mode(modifiers: Iterable[str]) -> None:
    """Raise Unsupported, by name, when an instruction's modifiers ask for another mode than `.tile`."""
    for modifier in modifiers:
        if modifier.startswith("im2col") or modifier in ("tile::gather4", "tile::scatter4"):
            raise Unsupported(f"bulk tensor copies in .{modifier} mode")


# --- boxes in global memory


def check_box(descriptor: Descriptor, coordinates: Sequence[int], *, store: bool) -> str:
    """Check where a box lies, when its copy is issued.

    `coordinates` are innermost first, signed. `store`: the box is written or reduced into the tensor. Raises
    Fault where a GPU faults. Returns a warning, or "".
    """
    # The instruction says how many coordinates it gives, the map how many it needs.
    if len(coordinates) != len(descriptor.dims):
        raise Fault(
            f"{len(coordinates)} coordinates for a tensor map of {len(descriptor.dims)} dimensions: the .1d to .5d "
            "of the instruction must be the map's"
        )

    # Every row of a box must begin at a whole 16-byte chunk.
    size = descriptor.type.size
    if coordinates[0] * size % CHUNK:
        raise Fault(
            f"misaligned box: the first coordinate, {coordinates[0]}, is {coordinates[0] * size} bytes into a row, "
            "no multiple of 16. A GPU stops at such a copy with an illegal instruction"
        )

    # A load may lie outside the tensor on any side, a store only beyond the far end.
    if not store:
        return ""
    if min(coordinates) < 0:
        raise Fault(
            f"a TMA store to negative coordinates, {tuple(coordinates)}: a GPU stops at it with an illegal "
            "instruction. Loads fill what lies before the tensor; stores may hang over its far end only"
        )

    # A store that a GPU accepts can still write more than the tensor.
    width, right = descriptor.dims[0] * size, (coordinates[0] + descriptor.extents[0]) * size
    if width % CHUNK and right > width:
        return (
            f"a TMA store over the end of rows of {width} bytes, no multiple of 16: it writes whole 16-byte chunks, so "
            f"{-width % CHUNK} bytes after each row are overwritten. Store the last columns with guarded thread stores"
        )
    return ""


def gather(descriptor: Descriptor, coordinates: Sequence[int], memory: Memory) -> Bytes:
    """Read the box at `coordinates` (innermost first, signed): dense (box_bytes,), filled outside."""
    inside = _Clipped(descriptor, coordinates)
    if inside.whole:
        return inside.view(memory).flatten()
    box = np.zeros(inside.shape, np.uint8)
    if descriptor.fill == "nan":
        box.view(np.uint16)[...] = 0x7FF7  # as recorded on an H200, for every type
    if not inside.empty:
        box[inside.part] = inside.view(memory)
    return box.reshape(-1)


def scatter(descriptor: Descriptor, coordinates: Sequence[int], data: Bytes, memory: Memory) -> None:
    """Write the dense box `data` (box_bytes,) at `coordinates`.

    Bytes outside the tensor are dropped, except that rows end with a whole 16-byte chunk, as on the hardware.
    """
    inside = _Clipped(descriptor, coordinates, store=True)
    if not inside.empty:
        inside.view(memory)[...] = data.reshape(inside.shape)[inside.part]


def reduce(
    descriptor: Descriptor, coordinates: Sequence[int], data: Bytes, memory: Memory, operation: str
) -> None:
    """`cp.reduce.async.bulk.tensor`: combine global memory with the box `data`, which `scatter` would write.

    `operation` is add, min, max, inc, dec, and, or, xor. Raises Fault if the TMA has it not for the type.
    """
    inside = _Clipped(descriptor, coordinates, store=True)
    if not inside.empty:
        target = inside.view(memory)
        source = np.ascontiguousarray(data.reshape(inside.shape)[inside.part])
        target[...] = _combine(operation, descriptor.type, np.ascontiguousarray(target), source)


class _Clipped:
    """The part of a box inside the tensor. Its byte arrays are (..., rows, row_bytes), outermost first."""

    __slots__ = ("_address", "_shape", "_span", "_strides", "empty", "part", "shape", "whole")

    def __init__(self, descriptor: Descriptor, coordinates: Sequence[int], *, store: bool = False):
        # The loop below adds one dimension after the other, from the innermost outward.
        check_box(descriptor, coordinates, store=store)
        size = descriptor.type.size
        self._address, self._span = descriptor.address, size
        self.empty, self.whole = False, True
        self.shape: tuple[int, ...] = ()
        self.part: tuple[slice, ...] = ()
        self._shape: tuple[int, ...] = ()
        self._strides: tuple[int, ...] = ()
        for i, extent in enumerate(descriptor.extents):
            # Elements low to high of the box lie inside the tensor in this dimension.
            step, start = descriptor.element_strides[i], int(coordinates[i])
            low = max(0, -(start // step))
            end = descriptor.dims[i]
            if store and not i:
                end += -end % (CHUNK // size)  # a store ends with a whole chunk
            high = min(extent, -((start - end) // step))

            # One dimension without elements makes the whole box empty.
            if high <= low:
                self.empty, self.whole = True, False
            elif low > 0 or high < extent:
                self.whole = False

            # The span reaches from the first byte that is touched in global memory to the last.
            stride = descriptor.strides[i]
            self._address += (start + low * step) * stride
            self._span += (high - low - 1) * step * stride

            # Arrays are indexed from the outermost dimension, so each new one goes in front.
            unit = 1 if i else size  # the innermost dimension is counted in bytes
            self.shape = (extent * unit, *self.shape)
            self.part = (slice(low * unit, high * unit), *self.part)
            self._shape = ((high - low) * unit, *self._shape)
            self._strides = (step * stride if i else 1, *self._strides)

    def view(self, memory: Memory) -> Bytes:
        """Return the bytes in global memory; rows and their strides in bytes."""
        return np.ndarray(
            self._shape, np.uint8, memory.bytes(self._address, self._span), strides=self._strides
        )


# --- boxes in shared memory


@lru_cache(maxsize=256)
def swizzle_offsets(address: int, nbytes: int, swizzle: int) -> NDArray[np.int64]:
    """Return the offset of each byte of a swizzled region: `shared[offsets[i]] = dense[i]`.

    Shape (nbytes,), read-only.

    The hardware permutes 16-byte chunks by absolute address: bits 4-6 ^= bits 7-9 (128-byte swizzle), bits
    4-5 ^= bits 7-8 (64), bit 4 ^= bit 7 (32). `address` and `nbytes` are multiples of 16.
    """
    chunks = np.arange(address // CHUNK, (address + nbytes) // CHUNK, dtype=np.int64)
    chunks ^= (chunks >> 3) & max(swizzle // CHUNK - 1, 0)
    offsets = (chunks[:, None] * CHUNK + np.arange(CHUNK)).reshape(-1)
    offsets.flags.writeable = False
    return offsets


def shared_alignment(address: int, swizzle: int) -> str:
    """Check the shared address of a tensor copy. Raises Fault where a GPU faults. Returns a warning, or "".

    Any multiple of 128 works. But the swizzle goes by absolute address: a kernel that computes it from the
    start of its tile finds other bytes unless the tile starts where the pattern does, every 8 spans.
    """
    if address % 128:
        raise Fault(
            f"misaligned shared memory: a TMA box must start at a multiple of 128 bytes, not at {address:#x}. "
            "Declare the buffer with __align__(128), or 1024 with the 128-byte swizzle"
        )
    period = 8 * swizzle
    if swizzle and address % period:
        return (
            f"a box with the {swizzle}-byte swizzle starts at {address:#x}, no multiple of {period}: the hardware "
            f"swizzles by absolute address, so a swizzle computed from the start of the box finds other bytes. "
            f"Declare the buffer with __align__({period})"
        )
    return ""


# --- bulk copies without a tensor map


def bulk_load(address: int, shared: int, size: int, memory: Memory) -> Bytes:
    """`cp.async.bulk` from global memory: a copy of the `size` bytes at `address`, meant for `shared`."""
    _check_bulk(address, shared, size)
    return memory.bytes(address, size).copy() if size else np.zeros(0, np.uint8)


def bulk_store(address: int, shared: int, data: Bytes, memory: Memory) -> None:
    """`cp.async.bulk` to global memory: write `data`, which came from `shared`, at `address`."""
    _check_bulk(address, shared, data.size)
    if data.size:
        memory.bytes(address, data.size)[...] = data


def bulk_reduce(address: int, shared: int, data: Bytes, memory: Memory, operation: str, type: str) -> None:
    """`cp.reduce.async.bulk` to global memory: as `reduce`, for a PTX type ("u32", "b64", "bf16"...)."""
    _check_bulk(address, shared, data.size)
    element = _BY_NAME.get(type.replace("b", "u", 1) if type in ("b32", "b64") else type)
    if element is None:
        raise Unsupported(f"cp.reduce.async.bulk of type .{type}")
    if data.size:
        target = memory.bytes(address, data.size)
        target[...] = _combine(operation, element, target.copy(), np.ascontiguousarray(data))


def _check_bulk(address: int, shared: int, size: int) -> None:
    for what, value in (("global address", address), ("shared address", shared), ("size", size)):
        if value % CHUNK:
            shown = value if what == "size" else hex(value)
            raise Fault(f"misaligned bulk copy: its {what} must be a multiple of 16 bytes, not {shown}")


# --- reductions

_BITWISE: dict[str, Callable[..., NDArray]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
_OPERATIONS = {
    "u32": ("add", "min", "max", "inc", "dec", "and", "or", "xor"),
    "s32": ("add", "min", "max", "and", "or", "xor"),
    "u64": ("add", "min", "max", "and", "or", "xor"),
    "s64": ("min", "max", "and", "or", "xor"),
    "f16": ("add", "min", "max"),
    "bf16": ("add", "min", "max"),
    "f32": ("add",),
    "f64": ("add",),
}


def _combine(operation: str, element: ElementType, old: Bytes, new: Bytes) -> Bytes:
    """Compute `old OP new` for elements of one type; both are contiguous arrays of bytes of one shape."""
    if operation not in _OPERATIONS.get(str(element), ()):
        raise Fault(
            f"bulk reduction .{operation} of {element} elements: the TMA has none, and a GPU stops at it with an "
            f"illegal instruction. There are {', '.join(_OPERATIONS.get(str(element), ())) or 'none'} for this type"
        )
    if element.is_float:
        return _combine_floats(operation, element, old, new)
    a, b = (each.view(f"{'i' if element.kind == 's' else 'u'}{element.size}") for each in (old, new))
    result: NDArray
    if operation in _BITWISE:
        result = _BITWISE[operation](a, b)
    elif operation == "inc":  # counts up to b, then starts again at 0
        result = np.where(a >= b, 0, a + np.uint32(1)).astype(a.dtype)
    elif operation == "dec":  # counts down to 0, then starts again at b
        result = np.where((a == 0) | (a > b), b, a - np.uint32(1)).astype(a.dtype)
    else:
        result = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation](a, b)
    return np.ascontiguousarray(result).view(np.uint8)


def _combine_floats(operation: str, element: ElementType, old: Bytes, new: Bytes) -> Bytes:
    """Combine floats. Sums round to nearest even; min and max prefer numbers to NaN and put -0 before +0.

    Compared with an H200.
    """
    bits_a, bits_b = old.view(element.integer), new.view(element.integer)
    # FP32 holds the sum of two 16-bit floats so precisely that rounding it again rounds the exact sum.
    a, b = _widen(element, bits_a), _widen(element, bits_b)
    if operation == "add":
        with np.errstate(over="ignore", invalid="ignore"):
            total = a + b
            bits = _narrow(element, total)
        bits[np.isnan(total)] = _canonical_nan(element)
        if (
            element.size == 8
        ):  # FP64 keeps NaNs as they are, the new one first, and inf - inf is the negative one
            bits = np.where(np.isnan(b), bits_b, np.where(np.isnan(a), bits_a, bits))
    else:
        sign = element.integer.type(1 << (8 * element.size - 1))
        prefer_a = (a < b) | ((a == b) & ((bits_a & sign) != 0))
        if operation == "max":
            prefer_a = (a > b) | ((a == b) & ((bits_a & sign) == 0))
        bits = np.where((prefer_a & ~np.isnan(a)) | np.isnan(b), bits_a, bits_b)
        bits[np.isnan(a) & np.isnan(b)] = _canonical_nan(element)
    return np.ascontiguousarray(bits).view(np.uint8)


def _canonical_nan(element: ElementType) -> int:
    """Return the bit pattern of the NaN that the hardware makes."""
    return 0xFFF8000000000000 if element.size == 8 else (1 << (8 * element.size - 1)) - 1


def _widen(element: ElementType, bits: NDArray) -> NDArray:
    """Bit patterns to floats that hold them exactly."""
    if element.kind == "bf":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(f"f{element.size}").astype(
        np.float32 if element.size == 2 else f"f{element.size}", copy=False
    )


def _narrow(element: ElementType, values: NDArray) -> NDArray:
    """Floats to bit patterns of the type, rounded to nearest even; NaNs are for the caller."""
    if element.kind == "bf":
        bits = values.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return values.astype(f"f{element.size}").view(element.integer)
