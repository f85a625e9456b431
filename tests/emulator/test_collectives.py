"""Warp collectives against scalar loops written from the words of the PTX ISA, one lane at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigemm.emulator.errors import Unsupported
from minigemm.emulator.machine import collectives

WARPS = 3
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def some_lanes(rng: np.random.Generator) -> np.ndarray:
    """Every lane, one lane, or any of them, for each warp; at least one."""
    present = rng.random((WARPS, 32)) < rng.choice([0.1, 0.6, 1.0])
    present[np.arange(WARPS), rng.integers(0, 32, WARPS)] = True
    return present


def mask_of(lanes: list[int]) -> int:
    return sum(1 << lane for lane in lanes)


def scalar_shuffle(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The source lane and the predicate."""
    bval, cval, mask = b & 31, c & 31, (c >> 8) & 31
    max_lane = (lane & mask) | (cval & ~mask & 31)
    min_lane = lane & mask
    j = {"up": lane - bval, "down": lane + bval, "bfly": lane ^ bval, "idx": min_lane | (bval & ~mask & 31)}[
        mode
    ]
    in_range = j >= max_lane if mode == "up" else j <= max_lane
    return (j, True) if in_range else (lane, False)


@given(seeds, st.sampled_from(["up", "down", "bfly", "idx"]), st.booleans())
def test_shuffle(rng: np.random.Generator, mode: str, as_cuda_does: bool) -> None:
    present = some_lanes(rng)
    value = rng.integers(0, 2**32, (WARPS, 32)).astype(np.uint32)
    if as_cuda_does:  # one offset, a width that is a power of two
        b = np.full((WARPS, 32), rng.integers(0, 40))
        c = np.full((WARPS, 32), (32 - 2 ** rng.integers(0, 6)) << 8 | (0 if mode == "up" else 31))
    else:
        b, c = rng.integers(0, 2**13, (2, WARPS, 32))
    got = collectives.shuffle(mode, value, b, c, present)
    assert got.value.dtype == value.dtype
    for warp in range(WARPS):
        for lane in np.flatnonzero(present[warp]):
            source, predicate = scalar_shuffle(mode, int(lane), int(b[warp, lane]), int(c[warp, lane]))
            undefined = predicate and not present[warp, source]
            assert got.predicate[warp, lane] == predicate
            assert got.undefined[warp, lane] == undefined
            assert got.value[warp, lane] == (0 if undefined else value[warp, source])
    assert np.array_equal(got.value[~present], value[~present])
    assert not got.predicate[~present].any() and not got.undefined[~present].any()


def test_shuffle_with_numbers_sums_a_warp() -> None:
    """The butterfly that every softmax has, on one warp without a dimension of warps."""
    value = np.arange(32, dtype=np.int64)
    for offset in (16, 8, 4, 2, 1):
        value = value + collectives.shuffle("bfly", value, offset, 31, np.ones(32, bool)).value
    assert (value == 496).all()


@given(seeds)
def test_votes(rng: np.random.Generator) -> None:
    present = some_lanes(rng)
    predicate = rng.random((WARPS, 32)) < rng.choice([0, 0.5, 1])
    for warp in range(WARPS):
        lanes = [lane for lane in range(32) if present[warp, lane]]
        votes = [bool(predicate[warp, lane]) for lane in lanes]
        assert collectives.vote("all", predicate, present)[warp] == all(votes)
        assert collectives.vote("any", predicate, present)[warp] == any(votes)
        assert collectives.vote("uni", predicate, present)[warp] == (len(set(votes)) == 1)
        assert collectives.ballot(predicate, present)[warp] == mask_of(
            [i for i in lanes if predicate[warp, i]]
        )
        assert collectives.activemask(present)[warp] == mask_of(lanes)
        assert collectives.elect(present)[warp] == lanes[0]


@given(seeds, st.sampled_from([np.uint32, np.int64]))
def test_matches(rng: np.random.Generator, dtype: type) -> None:
    present = some_lanes(rng)
    value = (
        rng.integers(0, rng.choice([1, 3, 40]), (WARPS, 32)) * (2**31 if dtype is np.uint32 else 2**40)
    ).astype(dtype)
    each = collectives.match_any(value, present)
    mask, alike = collectives.match_all(value, present)
    for warp in range(WARPS):
        lanes = [lane for lane in range(32) if present[warp, lane]]
        for lane in range(32):
            same = (
                [other for other in lanes if value[warp, other] == value[warp, lane]] if lane in lanes else []
            )
            assert each[warp, lane] == mask_of(same)
        whole = len({int(value[warp, lane]) for lane in lanes}) == 1
        assert alike[warp] == whole and mask[warp] == (mask_of(lanes) if whole else 0)


@given(seeds, st.sampled_from([np.uint32, np.int64]))
def test_reductions(rng: np.random.Generator, dtype: type) -> None:
    present = some_lanes(rng)
    value = rng.integers(0, 2**32, (WARPS, 32)).astype(dtype)
    for warp in range(WARPS):
        unsigned = [int(value[warp, lane]) for lane in range(32) if present[warp, lane]]
        signed = [each - 2**32 if each >= 2**31 else each for each in unsigned]
        expected = {
            ("add", "u32"): sum(unsigned),
            ("add", "s32"): sum(signed),
            ("min", "u32"): min(unsigned),
            ("max", "u32"): max(unsigned),
            ("min", "s32"): min(signed),
            ("max", "s32"): max(signed),
            ("and", "b32"): np.bitwise_and.reduce(unsigned),
            ("or", "b32"): np.bitwise_or.reduce(unsigned),
            ("xor", "b32"): np.bitwise_xor.reduce(unsigned),
        }
        for (operation, type), result in expected.items():
            got = collectives.reduce(operation, type, value, present)
            assert got.dtype == np.uint32 and got[warp] == int(result) % 2**32


def test_one_warp_without_a_dimension_of_warps() -> None:
    present, value = np.arange(32) < 5, np.arange(32, dtype=np.uint32)
    assert collectives.activemask(present) == 31
    assert collectives.reduce("add", "u32", value, present) == 10
    assert collectives.match_all(value * 0, present) == (31, True)


def test_unknown_operations_are_named() -> None:
    present, value = np.ones(32, bool), np.zeros(32, np.uint32)
    with pytest.raises(Unsupported, match=r"redux\.sync\.min\.f32"):
        collectives.reduce("min", "f32", value, present)
    with pytest.raises(Unsupported, match=r"vote\.sync\.most"):
        collectives.vote("most", present, present)
    with pytest.raises(Unsupported, match=r"shfl\.sync\.left"):
        collectives.shuffle("left", value, 1, 31, present)


@given(st.integers(0, 2**32 - 1))
def test_lanes_of_a_mask(mask: int) -> None:
    assert collectives.lanes_of(mask).tolist() == [bool(mask >> lane & 1) for lane in range(32)]
    assert collectives.activemask(collectives.lanes_of([mask, 1]))[0] == mask


def test_mask_misuse() -> None:
    every, tiles = np.full(32, 0xFFFFFFFF), np.repeat([0xFFFF, 0xFFFF0000], 16)
    lanes = np.ones(32, bool)
    assert collectives.mask_misuse("shfl.sync.idx.b32", every, lanes) == ""
    assert collectives.mask_misuse("shfl.sync.idx.b32", tiles, lanes) == ""
    assert collectives.mask_misuse("shfl.sync.idx.b32", tiles, ~lanes) == ""
    outside = collectives.mask_misuse("vote.sync.any.pred", np.full(32, 0xFFFF), lanes)
    assert outside.startswith(
        "lane 16 executes vote.sync.any.pred with membermask 0x0000ffff, which does not name it"
    )
    mixed = collectives.mask_misuse("bar.warp.sync", np.where(np.arange(32) < 8, 0xFF, 0xFFFFFFFF), lanes)
    assert "lane 8 executes bar.warp.sync with membermask 0xffffffff, which names lane 0" in mixed


# --- 8x8 matrices


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices(count: int, transposed: bool) -> None:
    """Thread l holds row l / 4, columns 2 (l % 4) and the next, of each matrix; .trans: of its transpose."""
    rng = np.random.default_rng(count)
    shared = rng.integers(0, 256, 8192, dtype=np.uint8)
    addresses = rng.permutation(8192 // 16)[: WARPS * 32].reshape(WARPS, 32) * 16
    registers = collectives.load_matrix(shared, addresses, count, transposed)
    assert registers.shape == (WARPS, 32, count)
    halves = shared.view(np.uint16)
    for warp, lane, register in np.ndindex(WARPS, 32, count):
        matrix = np.stack([halves[addresses[warp, 8 * register + row] // 2 :][:8] for row in range(8)])
        if transposed:
            matrix = matrix.T
        low, high = (int(matrix[lane // 4, 2 * (lane % 4) + half]) for half in range(2))
        assert registers[warp, lane, register] == low | high << 16

    copy = np.zeros_like(shared)
    collectives.store_matrix(copy, addresses, registers, transposed)
    for row in addresses[:, : 8 * count].reshape(-1):
        assert np.array_equal(copy[row : row + 16], shared[row : row + 16])
        copy[row : row + 16] = 0
    assert not copy.any()  # the addresses of other lanes are ignored
