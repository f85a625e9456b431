"""FP8 GEMMs for Hopper GPUs, built stage by stage, and an emulator that runs the same kernels without one.

Importing minigemm costs next to nothing: the public names below arrive when they are first used. To add
one, name it in `__all__`, import it for type checkers, and say where it lives if that is not api.py.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import compat, emulator, kernels, layout, quantize
    from .api import (
        fp8_gemm_nt,
        get_batch_invariant,
        get_mk_alignment_for_contiguous_layout,
        get_num_sms,
        get_pdl,
        get_tma_aligned_size,
        m_grouped_fp8_gemm_nt_contiguous,
        m_grouped_fp8_gemm_nt_masked,
        set_batch_invariant,
        set_mk_alignment_for_contiguous_layout,
        set_num_sms,
        set_pdl,
    )
    from .bench.autotune import autotune
    from .kernels import inspect
    from .layout import is_m_major, to_m_major
    from .plan.ahead import precompile
    from .plan.explained import explain
    from .runtime.emulated import observe

__version__ = "0.1.0"
__all__ = [
    "__version__", "autotune", "compat", "emulator", "explain", "fp8_gemm_nt", "get_batch_invariant",
    "get_mk_alignment_for_contiguous_layout", "get_num_sms", "get_pdl", "get_tma_aligned_size", "inspect",
    "is_m_major", "kernels", "layout", "m_grouped_fp8_gemm_nt_contiguous", "m_grouped_fp8_gemm_nt_masked",
    "observe", "precompile", "quantize", "set_batch_invariant", "set_mk_alignment_for_contiguous_layout",
    "set_num_sms", "set_pdl", "to_m_major",
]  # fmt: skip

_SUBMODULES = {"compat", "emulator", "kernels", "layout", "quantize"}
_HOMES = {  # of the names that are not in api.py
    "autotune": "bench.autotune",
    "explain": "plan.explained",
    "inspect": "kernels",
    "is_m_major": "layout",
    "observe": "runtime.emulated",
    "precompile": "plan.ahead",
    "to_m_major": "layout",
}


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'api')}")
    value = globals()[name] = getattr(home, name)  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
