"""Launches on a Hopper GPU, through the driver. torch owns memory, streams and the context."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .. import jit, types

__all__ = ["Prepared", "check_device", "launch", "load", "prepare", "tensor_map"]

_lock = threading.Lock()
_loaded: dict[tuple[str, int], Loaded] = {}  # (kernel's key, device)


@dataclass(frozen=True)
class Loaded:
    """A kernel in the memory of one GPU."""

    function: Any
    device: int
    module: Any


@functools.cache
def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise ValueError(f"cuda-bindings is needed to launch on a GPU and could not be imported ({error}): pip install cuda-bindings") from None
    return driver


def _check(answer: tuple, what: str) -> Any:
    """The result of a driver call, or an exception that says what failed."""
    error, *results = answer
    if error != _driver().CUresult.CUDA_SUCCESS:
        _, name = _driver().cuGetErrorName(error)
        _, text = _driver().cuGetErrorString(error)
        hint = ""
        if name in (b"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", b"CUDA_ERROR_NO_BINARY_FOR_GPU", b"CUDA_ERROR_INVALID_IMAGE"):
            hint = ". The driver is older than the compiler (NVRTC): update the driver, or install nvidia-cuda-nvrtc of the driver's CUDA version"
        if name.startswith(b"CUDA_ERROR_STREAM_CAPTURE"):
            hint = ". A CUDA graph is being captured, and what is made here cannot be made meanwhile: call once before, or use minigemm.precompile"
        raise RuntimeError(f"{what}: {name.decode()} ({text.decode()}){hint}")
    return results[0] if results else None


@functools.cache
def _context(index: int) -> Any:
    """The GPU's primary context, which is torch's."""
    driver = _driver()
    return _check(driver.cuDevicePrimaryCtxRetain(_check(driver.cuDeviceGet(index), f"finding GPU {index}")), f"the context of GPU {index}")


@contextmanager
def _current(index: int) -> Iterator[None]:
    """Makes the context this thread's for a while: a thread whose memory all came from torch's cache has none."""
    driver = _driver()
    _check(driver.cuCtxPushCurrent(_context(index)), f"entering the context of GPU {index}")
    try:
        yield
    finally:
        _check(driver.cuCtxPopCurrent(), f"leaving the context of GPU {index}")


@functools.cache
def check_device(device: torch.device) -> None:
    """ValueError, in one sentence, when the device is no Hopper GPU or its driver is older than the compiler."""
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(
            f"device: {name} has compute capability {capability[0]}.{capability[1]}, and these kernels need a Hopper GPU (9.0: H100, H200, GH200); "
            "move the tensors to the CPU (.cpu()) to run the same kernels on the emulator"
        )
    import cuda.bindings

    driver, generation = _check(_driver().cuDriverGetVersion(), "the driver's version"), cuda.bindings.__version__.partition(".")[0]
    if driver < 1000 * int(generation):
        raise ValueError(
            f"device: the GPU's driver knows CUDA up to {driver // 1000}.{driver % 1000 // 10}, and kernels would be compiled for CUDA {generation}; "
            f"update the driver, or take the compiler of its generation: pip install 'cuda-bindings<{generation}' nvidia-cuda-nvrtc-cu{driver // 1000}"
        )


def load(kernel: jit.Kernel, shared: int, device: torch.device) -> Loaded:
    """The kernel on that GPU, allowed `shared` bytes of dynamic shared memory."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    found = _loaded.get((kernel.key, index))
    if found is not None:
        return found
    driver = _driver()
    with _lock, _current(index), _capture_allows():
        module = _check(driver.cuModuleLoadData(kernel.cubin), f"loading {kernel.name}")
        function = _check(driver.cuModuleGetFunction(module, kernel.kernel.encode()), f"finding {kernel.kernel}")
        if shared > 48 * 1024:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _check(driver.cuFuncSetAttribute(function, attribute, shared), f"{shared} bytes of shared memory for {kernel.name}")
        loaded = _loaded[kernel.key, index] = Loaded(function, index, module)
    return loaded


@contextmanager
def _capture_allows() -> Iterator[None]:
    """While this thread captures a CUDA graph, loading a module is refused as unsafe; it is safe here, because nothing captured needs it yet."""
    driver = _driver()
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _check(driver.cuThreadExchangeStreamCaptureMode(relaxed), "relaxing the capture mode")
    try:
        yield
    finally:
        _check(driver.cuThreadExchangeStreamCaptureMode(before), "restoring the capture mode")


def tensor_map(description: types.TensorMap) -> Any:
    """The driver's 128-byte tensor map: zero fill, no interleave, 256-byte L2 promotion."""
    tensor = description.tensor
    return _encoded(tensor.data_ptr(), tensor.element_size(), tuple(tensor.shape), tensor.stride(), tuple(description.box), description.swizzle)


@functools.lru_cache(maxsize=4096)
def _encoded(address: int, size: int, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], swizzle: int) -> Any:
    """The map of what lies at an address, whatever tensor it is: the same again where weights meet a new number of rows."""
    driver, (kinds, swizzles, interleave, promotion, fill) = _driver(), _map_constants()
    pitches = [stride * size for stride in strides[-2::-1]] or [16]  # a vector has none, but the driver wants one
    answer = driver.cuTensorMapEncodeTiled(
        kinds[size], len(shape), address, [driver.cuuint64_t(v) for v in shape[::-1]], [driver.cuuint64_t(v) for v in pitches],
        [driver.cuuint32_t(v) for v in box[::-1]], [driver.cuuint32_t(1)] * len(shape), interleave, swizzles[swizzle], promotion, fill,
    )  # fmt: skip
    return _check(answer, f"a tensor map for shape {shape}, box {box}, swizzle {swizzle}")


@functools.cache
def _map_constants() -> tuple[dict[int, Any], dict[int, Any], Any, Any, Any]:
    """The driver's names: data type by bytes of an element, swizzle by its span, and what all maps have in common."""
    driver = _driver()
    kinds, swizzles = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle
    return (
        {1: kinds.CU_TENSOR_MAP_DATA_TYPE_UINT8, 2: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32},
        {
            0: swizzles.CU_TENSOR_MAP_SWIZZLE_NONE, 32: swizzles.CU_TENSOR_MAP_SWIZZLE_32B, 64: swizzles.CU_TENSOR_MAP_SWIZZLE_64B,
            128: swizzles.CU_TENSOR_MAP_SWIZZLE_128B,
        },
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip


def _parameter(arg: Any) -> tuple[Any, Any]:
    """Value and type as cuLaunchKernel takes them; a type of None marks an object that gives its own address."""
    if isinstance(arg, torch.Tensor):
        return arg.data_ptr(), ctypes.c_void_p
    if isinstance(arg, types.TensorMap):
        return tensor_map(arg), None
    if isinstance(arg, (bool, int)):
        return int(arg), ctypes.c_int
    if isinstance(arg, float):
        return arg, ctypes.c_float
    if isinstance(arg, ctypes._SimpleCData):
        return arg.value, type(arg)
    raise TypeError(f"args: no kernel parameter for a {type(arg).__name__}")


class Prepared:
    """A launch whose parameters stand ready in the driver's form: calling it launches once more, on torch's current stream of that GPU.

    Nothing in it changes after it is made, so threads may share it. It holds addresses, not tensors: it is good as long as what lies there is.
    """

    __slots__ = ("_cluster", "_device", "_kept", "_launch", "_parameters", "_what")

    def __init__(self, loaded: Loaded, launch: types.Launch):
        self._kept: list[Any] = [loaded]  # what the addresses point into
        addresses = []
        for arg in launch.args:
            value, kind = _parameter(arg)
            stored = value if kind is None else kind(value)
            self._kept.append(stored)
            addresses.append(int(stored.getPtr()) if kind is None else ctypes.addressof(stored))
        parameters = (ctypes.c_void_p * len(addresses))(*addresses)
        self._kept.append(parameters)
        self._parameters = ctypes.addressof(parameters)
        self._what = (loaded.function, *launch.grid, *launch.block, launch.shared)
        self._device, self._cluster = loaded.device, launch.cluster
        self._launch = _driver().cuLaunchKernel if launch.cluster == (1, 1, 1) else self._launch_clusters

    def __call__(self) -> None:
        """Launch, without waiting. The context is entered only where it is not this thread's current one."""
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        if torch._C._cuda_getDevice() == self._device and not self._launch(*self._what, stream, self._parameters, 0)[0]:
            return
        with _current(self._device):  # another device is the current one, or this thread has no context yet; any other error comes again
            _check(self._launch(*self._what, stream, self._parameters, 0), "launch")

    def _launch_clusters(self, *arguments: Any) -> tuple:
        *what, stream, parameters, _ = arguments
        return _launch_clusters(tuple(what), self._cluster, stream, parameters)


def prepare(loaded: Loaded, launch: types.Launch) -> Prepared:
    """The launch, ready to be started any number of times."""
    with _current(loaded.device):
        return Prepared(loaded, launch)


def _launch_clusters(what: tuple, cluster: tuple[int, int, int], stream: int, parameters: Any) -> tuple:
    """`cuLaunchKernel` for a grid of clusters. what: the function, its grid, block and bytes of shared memory."""
    driver = _driver()
    attribute = driver.CUlaunchAttribute()
    attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = cluster
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ, config.blockDimX, config.blockDimY, config.blockDimZ, config.sharedMemBytes = what[1:]
    config.hStream, config.numAttrs, config.attrs = stream, 1, [attribute]
    return driver.cuLaunchKernelEx(config, what[0], parameters, 0)


def set_variables(loaded: Loaded, variables: Mapping[str, Any]) -> None:
    """Give the module's `__device__` and `__constant__` variables these values, for every launch from now on; waits for those before."""
    driver = _driver()
    with _current(loaded.device):
        torch.cuda.synchronize(loaded.device)
        for name, value in variables.items():
            error, address, size = driver.cuModuleGetGlobal(loaded.module, name.encode())
            _check((error,), f"finding the variable {name}")
            number, kind = _parameter(value)
            stored = kind(number)
            if ctypes.sizeof(stored) != size:
                raise TypeError(f"variables[{name!r}]: the variable has {size} bytes, got {type(value).__name__} of {ctypes.sizeof(stored)}")
            _check(driver.cuMemcpyHtoD(address, ctypes.addressof(stored), size), f"setting the variable {name}")
        torch.cuda.synchronize(loaded.device)  # a short copy may still be under way, and another stream would not wait for it


def launch(loaded: Loaded, launch: types.Launch, variables: Mapping[str, Any] | None = None) -> None:
    """Launch on torch's current stream of the kernel's GPU; returns without waiting. `variables`: what the module's variables hold, by name."""
    driver = _driver()
    if variables:
        set_variables(loaded, variables)
    with _current(loaded.device):
        pairs = [_parameter(arg) for arg in launch.args]
        parameters = (tuple(value for value, _ in pairs), tuple(kind for _, kind in pairs))
        stream = torch.cuda.current_stream(loaded.device).cuda_stream
        before = (loaded.function, *launch.grid, *launch.block, launch.shared)
        if launch.cluster == (1, 1, 1):
            answer = driver.cuLaunchKernel(*before, stream, parameters, 0)
        else:
            answer = _launch_clusters(before, launch.cluster, stream, parameters)
    _check(answer, "launch")
