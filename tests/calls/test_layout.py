"""How scales lie in memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigemm import layout


@given(st.integers(0, 70), st.integers(0, 9))
def test_m_major(m, k):
    scale = torch.rand(m, k)
    laid = layout.to_m_major(scale)
    assert torch.equal(laid, scale) and laid.stride() == (1, max(4, -(-m // 4) * 4))
    assert layout.to_m_major(laid) is laid


@given(st.integers(1, 4), st.integers(0, 40), st.integers(0, 5))
def test_m_major_in_groups(groups, m, k):
    scale = torch.rand(groups, m, k)
    laid = layout.to_m_major(scale)
    pitch = max(4, -(-m // 4) * 4)
    assert torch.equal(laid, scale) and laid.stride() == (pitch * k, 1, pitch)
    assert layout.to_m_major(laid) is laid
    assert layout.empty_m_major(m, k, groups=groups).stride() == laid.stride()


def test_one_column_and_one_row_are_laid_out_too():
    """Where a dimension is 1, torch calls nearly any strides contiguous; the kernels read the real ones."""
    assert layout.to_m_major(torch.ones(5, 1)).stride() == (1, 8)
    assert layout.to_m_major(torch.ones(1, 5)).stride() == (1, 4)


def test_an_address_that_tma_cannot_start_at_is_copied():
    memory = layout.empty_m_major(9, 3).fill_(2)
    inner = memory[1:9].as_strided((8, 2), (1, 8))
    assert not layout.is_m_major(inner)
    laid = layout.to_m_major(inner)
    assert laid.data_ptr() % 16 == 0 and torch.equal(laid, inner)


@given(st.integers(0, 1000), st.sampled_from([1, 2, 4, 8, 16]))
def test_tma_aligned_size(size, element_bytes):
    aligned = layout.tma_aligned_size(size, element_bytes)
    assert aligned * element_bytes % 16 == 0 and 0 <= (aligned - size) * element_bytes < 16


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_rounding(value, multiple):
    assert layout.ceil_div(value, multiple) * multiple == layout.round_up(value, multiple)
    assert 0 <= layout.round_up(value, multiple) - value < multiple


@pytest.mark.parametrize(
    "scale, got", [(torch.ones(3), "1-D torch.float32"), (torch.ones(3, 3).double(), "2-D torch.float64")]
)
def test_a_bad_scale(scale, got):
    with pytest.raises(ValueError, match=f"scale: expected a 2-D or 3-D float32 tensor, got {got}"):
        layout.to_m_major(scale)


def test_a_bad_element_size():
    with pytest.raises(ValueError, match="element_bytes: expected a divisor of 16, got 5"):
        layout.tma_aligned_size(3, 5)
