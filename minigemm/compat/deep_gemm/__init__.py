"""The names of DeepGEMM, both generations, over minigemm.

    sys.modules["deep_gemm"] = minigemm.compat.deep_gemm

and code that says `import deep_gemm` or `from deep_gemm.utils.layout import ...` runs here. What works: FP8
(e4m3) with 1x128 activation scales and 128x128 weight scales in float32, as Hopper has them, dense and
grouped. What does not says so: NotImplementedError for products grouped along k, packed UE8M0 scales and FP4;
ValueError or TypeError for arguments that are wrong.

On CPU tensors the same calls run on the emulator. Submodules: `utils`, `utils.layout`, `utils.math`,
`testing`.
"""

from __future__ import annotations

# Absolute imports throughout: under the name deep_gemm, a relative one would look for minigemm inside this
# package.
from minigemm.api import (
    get_mk_alignment_for_contiguous_layout,
    get_num_sms,
    set_mk_alignment_for_contiguous_layout,
    set_num_sms,
)
from minigemm.compat.deep_gemm import testing, utils
from minigemm.compat.deep_gemm.calls import (
    cell_div,
    fp8_fp4_gemm_nt,
    fp8_gemm_nt,
    fp8_m_grouped_gemm_nt_masked,
    gemm_fp8_fp8_bf16_nt,
    get_m_alignment_for_contiguous_layout,
    get_pdl,
    k_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_fp4_gemm_nt_contiguous,
    m_grouped_fp8_fp4_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
    m_grouped_gemm_fp8_fp8_bf16_nt_contiguous,
    m_grouped_gemm_fp8_fp8_bf16_nt_masked,
    set_pdl,
)
from minigemm.compat.deep_gemm.testing import bench_kineto, calc_diff
from minigemm.compat.deep_gemm.utils.layout import (
    get_col_major_tma_aligned_tensor,
    get_mn_major_tma_aligned_packed_ue8m0_tensor,
    get_mn_major_tma_aligned_tensor,
    get_theoretical_mk_alignment_for_contiguous_layout,
    get_tma_aligned_size,
    transform_sf_into_required_layout,
)
from minigemm.compat.deep_gemm.utils.math import (
    align,
    ceil_div,
    per_block_cast_to_fp8,
    per_channel_cast_to_fp8,
    per_token_cast_to_fp8,
)

__version__ = "2.6.1"  # whose calls these are

__all__ = [
    "align",
    "bench_kineto",
    "calc_diff",
    "ceil_div",
    "cell_div",
    "fp8_fp4_gemm_nt",
    "fp8_gemm_nt",
    "fp8_m_grouped_gemm_nt_masked",
    "gemm_fp8_fp8_bf16_nt",
    "get_col_major_tma_aligned_tensor",
    "get_m_alignment_for_contiguous_layout",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "get_mn_major_tma_aligned_tensor",
    "get_num_sms",
    "get_pdl",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "k_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_contiguous",
    "m_grouped_fp8_fp4_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_gemm_fp8_fp8_bf16_nt_contiguous",
    "m_grouped_gemm_fp8_fp8_bf16_nt_masked",
    "per_block_cast_to_fp8",
    "per_channel_cast_to_fp8",
    "per_token_cast_to_fp8",
    "set_mk_alignment_for_contiguous_layout",
    "set_num_sms",
    "set_pdl",
    "testing",
    "transform_sf_into_required_layout",
    "utils",
]

# Parts of the names that DeepGEMM has beside these.
_LEFT_OUT = (
    "bf16",
    "cublaslt",
    "einsum",
    "mega_moe",
    "mqa_logits",
    "prenorm",
    "skip_head_mid",
    "_nn",
    "_tn",
    "_tt",
)


def __getattr__(name: str) -> object:
    message = f"module {__name__!r} has no attribute {name!r}"
    if any(part in name for part in _LEFT_OUT):
        message += ": minigemm covers DeepGEMM's FP8 products of K-major operands, dense and grouped along m"
    raise AttributeError(message)
