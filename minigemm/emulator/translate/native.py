"""LLVM IR to machine code."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from dataclasses import dataclass

import llvmlite
import llvmlite.binding as llvm

_lock = threading.Lock()  # llvmlite is not thread-safe
_ready = False


@dataclass(frozen=True)
class Native:
    """Machine code of one kernel. ``step(contexts, stride, n, ids, block_record)`` runs n threads."""

    step: object
    engine: object  # owns the code


def _machine(level: int) -> llvm.TargetMachine:
    """Return a new target machine: an execution engine takes over the one that it is given."""
    global _ready
    if not _ready:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _ready = True
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=level
    )


def cache_key(text: str) -> str:
    """Return the key of the machine code of ``text`` (whatever determines the IR) on this processor."""
    parts = (text, llvmlite.__version__, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def compile_ir(ir: str, optimize: bool = True) -> bytes:
    """Compile LLVM IR to an object file with the function ``step``.

    Without ``optimize`` the compilation is about ten times shorter, and the code runs up to 1.6 times as
    long. That pays where the code around the machine's calls does little work itself.
    """
    level = 2 if optimize else 0
    with _lock:
        machine = _machine(level)
        module = llvm.parse_assembly(ir)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=level)
        # NVRTC has unrolled what is worth it, and threads run one at a time.
        options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        return machine.emit_object(module)


def load(code: bytes) -> Native:
    """Make object code ready to be called."""
    with _lock:
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(2))
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        step = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(engine.get_function_address("step"))
    return Native(step, engine)
