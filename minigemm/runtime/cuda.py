"""Launches on a Hopper GPU, through the driver. torch owns memory, streams and the context.

In the order in which a launch needs them: driver, context, load, parameters, launch. At the end stands
`prepare`, which keeps a launch ready in the driver's own form; `launch` is a prepared launch that is started
once.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .. import types
from ..compiler import jit

__all__ = ["Prepared", "check_device", "driver_version", "launch", "load", "prepare", "tensor_map"]

STREAMS = 64  # whose configs a launch with attributes keeps; torch has 32 of each priority
TOO_OLD = (
    b"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    b"CUDA_ERROR_NO_BINARY_FOR_GPU",
    b"CUDA_ERROR_INVALID_IMAGE",
)


# --- driver


@functools.cache
def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise ValueError(
            f"cuda-bindings is needed to launch on a GPU and could not be imported ({error}): "
            "pip install cuda-bindings"
        ) from None
    return driver


def _check(answer: tuple, what: str) -> Any:
    """Return the result of a driver call, or raise RuntimeError that says what failed."""
    if error := answer[0]:  # success is zero
        _, name = _driver().cuGetErrorName(error)
        _, text = _driver().cuGetErrorString(error)
        hint = ""
        if name in TOO_OLD:
            hint = (
                ". The driver is older than the compiler (NVRTC): update the driver, "
                "or install nvidia-cuda-nvrtc of the driver's CUDA version"
            )
        if name.startswith(b"CUDA_ERROR_STREAM_CAPTURE"):
            hint = (
                ". A CUDA graph is being captured, and what is made here cannot be made meanwhile: "
                "call once before, or use minigemm.precompile"
            )
        raise RuntimeError(f"{what}: {name.decode()} ({text.decode()}){hint}")
    return answer[1] if len(answer) > 1 else None


@functools.cache
def check_device(device: torch.device) -> None:
    """Raise ValueError if the device is no Hopper GPU, or its driver is older than the compiler."""
    # The kernels use instructions of compute capability 9.0 that no other has.
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(
            f"device: {name} has compute capability {capability[0]}.{capability[1]}, "
            "and these kernels need a Hopper GPU (9.0: H100, H200, GH200); "
            "move the tensors to the CPU (.cpu()) to run the same kernels on the emulator"
        )

    # The driver must know the CUDA of the compiler, or else the message names both remedies.
    import cuda.bindings

    driver = driver_version()
    generation = cuda.bindings.__version__.partition(".")[0]
    if driver < 1000 * int(generation):
        knows = f"{driver // 1000}.{driver % 1000 // 10}"
        raise ValueError(
            f"device: the GPU's driver knows CUDA up to {knows}, "
            f"and kernels would be compiled for CUDA {generation}; "
            "update the driver, or take the compiler of its generation: "
            f"pip install 'cuda-bindings<{generation}' nvidia-cuda-nvrtc-cu{driver // 1000}"
        )


def driver_version() -> int:
    """Return the version of CUDA that the driver knows, such as 12040 for 12.4."""
    return _check(_driver().cuDriverGetVersion(), "the driver's version")


# --- context


@functools.cache
def _context(index: int) -> Any:
    """Return the GPU's primary context, which is torch's."""
    driver = _driver()
    device = _check(driver.cuDeviceGet(index), f"finding GPU {index}")
    return _check(driver.cuDevicePrimaryCtxRetain(device), f"the context of GPU {index}")


class _current:
    """Make a GPU's context this thread's, for a while.

    A thread whose memory all came from torch's cache has none.
    """

    def __init__(self, index: int):
        self._index = index

    def __enter__(self) -> None:
        entered = _driver().cuCtxPushCurrent(_context(self._index))
        _check(entered, f"entering the context of GPU {self._index}")

    def __exit__(self, *exception: object) -> None:
        _check(_driver().cuCtxPopCurrent(), f"leaving the context of GPU {self._index}")


@contextmanager
def _capture_allows() -> Iterator[None]:
    """Allow a module to be loaded while this thread captures a CUDA graph.

    The driver refuses that as unsafe; it is safe here, because nothing captured needs the module yet.
    """
    driver = _driver()
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _check(driver.cuThreadExchangeStreamCaptureMode(relaxed), "relaxing the capture mode")
    try:
        yield
    finally:
        _check(driver.cuThreadExchangeStreamCaptureMode(before), "restoring the capture mode")


# --- load


@dataclass(frozen=True)
class Loaded:
    """A kernel in the memory of one GPU."""

    function: Any
    device: int
    module: Any


_lock = threading.Lock()
_loaded: dict[tuple[str, int], Loaded] = {}  # (kernel's key, device)


def load(kernel: jit.Kernel, shared: int, device: torch.device) -> Loaded:
    """Load the kernel onto that GPU, allowed `shared` bytes of dynamic shared memory."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    found = _loaded.get((kernel.key, index))
    if found is not None:
        return found
    driver = _driver()
    with _lock, _current(index), _capture_allows():
        module = _check(driver.cuModuleLoadData(kernel.cubin), f"loading {kernel.name}")
        answer = driver.cuModuleGetFunction(module, kernel.symbol.encode())
        function = _check(answer, f"finding {kernel.symbol}")
        if shared > 48 * 1024:  # bytes: more than a kernel may use without opting in
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            answer = driver.cuFuncSetAttribute(function, attribute, shared)
            _check(answer, f"{shared} bytes of shared memory for {kernel.name}")
        loaded = _loaded[kernel.key, index] = Loaded(function, index, module)
    return loaded


# --- parameters


def tensor_map(description: types.TensorMap) -> Any:
    """Return the driver's 128-byte tensor map: zero fill, no interleave, 256-byte L2 promotion."""
    tensor, box, swizzle = description.tensor, description.box, description.swizzle
    return _encoded(_place(tensor), tensor.element_size(), tensor.shape, tensor.stride(), box, swizzle)


@functools.lru_cache(maxsize=4096)
def _encoded(
    address: int,
    size: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    box: tuple[int, ...],
    swizzle: int,
) -> Any:
    """Encode the map of elements of `size` bytes at an address, whatever tensor they belong to.

    Remembered, because weights keep their map when they meet another number of rows.
    """
    long, encode, kind, *others = _map_constants(size, box, swizzle)
    pitches = [long(stride * size) for stride in strides[-2::-1]]
    # a vector has no pitch, but the driver wants one
    answer = encode(kind, len(shape), address, [*map(long, reversed(shape))], pitches or [long(16)], *others)
    if answer[0]:
        _check(answer, f"a tensor map for shape {tuple(shape)}, box {box}, swizzle {swizzle}")
    return answer[1]


@functools.cache
def _map_constants(size: int, box: tuple[int, ...], swizzle: int) -> tuple[Any, ...]:
    """Return the driver's type for sizes, its encoder, the map's data type, and the encoder's last arguments.

    These are all arguments that neither address nor shape decide.
    """
    driver = _driver()
    kinds, swizzles, short = driver.CUtensorMapDataType, driver.CUtensorMapSwizzle, driver.cuuint32_t
    kind = {
        1: kinds.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        2: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        4: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }[size]
    return (
        driver.cuuint64_t,
        driver.cuTensorMapEncodeTiled,
        kind,
        [short(length) for length in box[::-1]],
        [short(1)] * len(box),
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{swizzle}B" if swizzle else "CU_TENSOR_MAP_SWIZZLE_NONE"),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )


def _parameter(arg: Any) -> Any:
    """Return the object that holds a kernel parameter's bytes: a tensor map, or a ctypes value."""
    if isinstance(arg, int):  # most are; a bool too
        return ctypes.c_int(arg)
    if isinstance(arg, types.TensorMap):
        return tensor_map(arg)
    if isinstance(arg, torch.Tensor):
        return ctypes.c_void_p(_place(arg))
    if isinstance(arg, float):
        return ctypes.c_float(arg)
    if isinstance(arg, ctypes._SimpleCData):
        return arg
    raise TypeError(f"args: no kernel parameter for a {type(arg).__name__}")


def _place(tensor: torch.Tensor) -> int:
    """Return where a tensor of a launch lies. ValueError for one that owns no memory."""
    address = tensor.data_ptr()
    if not address and tensor.numel():
        kind = type(tensor).__name__
        raise ValueError(f"args: expected tensors with memory on the GPU, got a {kind} without any")
    return address


def _address(stored: Any) -> int:
    """Return the address of a parameter's bytes."""
    return ctypes.addressof(stored) if isinstance(stored, ctypes._SimpleCData) else stored.getPtr()


# --- launch


def launch(loaded: Loaded, launch: types.Launch, variables: Mapping[str, Any] | None = None) -> None:
    """Launch on torch's current stream of the kernel's GPU, without waiting.

    Args:
        loaded: the kernel, from `load`.
        launch: the launch's description.
        variables: values of the module's variables, by name.
    """
    if variables:
        _set_variables(loaded, variables)
    prepare(loaded, launch).start()


def _set_variables(loaded: Loaded, variables: Mapping[str, Any]) -> None:
    """Set `__device__` and `__constant__` variables for later launches; wait for earlier ones."""
    driver = _driver()
    with _current(loaded.device):
        torch.cuda.synchronize(loaded.device)
        for name, value in variables.items():
            error, address, size = driver.cuModuleGetGlobal(loaded.module, name.encode())
            _check((error,), f"finding the variable {name}")
            stored = _parameter(value)
            if ctypes.sizeof(stored) != size:
                came = f"{type(value).__name__} of {ctypes.sizeof(stored)}"
                raise TypeError(f"variables[{name!r}]: the variable has {size} bytes, got {came}")
            answer = driver.cuMemcpyHtoD(address, ctypes.addressof(stored), size)
            _check(answer, f"setting the variable {name}")
        # a short copy may still be under way, and another stream would not wait for it
        torch.cuda.synchronize(loaded.device)


# --- prepared launches


class Prepared:
    """A launch whose parameters stand ready in the driver's form.

    `start()` launches on torch's current stream of that GPU, without waiting, any number of times. Nothing
    here changes after it is made, so threads may share it. It holds addresses, not tensors: it is good as
    long as the tensors live.
    """

    __slots__ = ("_addresses", "_device", "_kept", "_launch", "start")

    def __init__(self, launch: Callable[..., tuple], device: int, addresses: array[int], kept: object):
        """Make a launch.

        Args:
            launch: `launch(stream, parameters, 0)` starts the kernel.
            device: the GPU's index.
            addresses: of the kernel's parameters.
            kept: owns the parameters' memory.
        """
        self._launch, self._device, self._addresses, self._kept = launch, device, addresses, kept
        self.start = _starter(launch, device, addresses, kept)

    def replaced(self, changes: Mapping[int, Any]) -> Prepared:
        """Return the same launch with other arguments at some places."""
        addresses = self._addresses[:]
        with _current(self._device):
            stored = {place: _parameter(arg) for place, arg in changes.items()}
        for place, each in stored.items():
            addresses[place] = _address(each)
        return Prepared(self._launch, self._device, addresses, (self._kept, stored))


def prepare(loaded: Loaded, launch: types.Launch) -> Prepared:
    """Make the launch ready to be started any number of times."""
    with _current(loaded.device):
        stored = [_parameter(arg) for arg in launch.args]
    start = _attributed(loaded.function, launch)
    if start is None:
        what = (loaded.function, *launch.grid, *launch.block, launch.shared)
        start = functools.partial(_driver().cuLaunchKernel, *what)
    return Prepared(start, loaded.device, array("Q", map(_address, stored)), (loaded, stored))


def _starter(
    launch: Callable[..., tuple], device: int, addresses: array[int], kept: object
) -> Callable[[], None]:
    """Return the function that starts a prepared launch.

    It is a closure that holds all it needs, because looking up an object's attributes takes time.
    """
    parameters, _ = addresses.buffer_info()
    current_device, current_stream = torch._C._cuda_getDevice, torch._C._cuda_getCurrentRawStream

    # the default argument keeps the parameters' memory alive as long as this function
    def start(kept: object = (addresses, kept)) -> None:
        if current_device() == device and not launch(current_stream(device), parameters, 0)[0]:
            return
        # Retry in the device's context; an error with another cause recurs and is raised.
        with _current(device):
            _check(launch(current_stream(device), parameters, 0), "launch")

    return start


def _attributed(function: Any, launch: types.Launch) -> Callable[..., tuple] | None:
    """Return what does as `cuLaunchKernel`, for a launch that has attributes; None for one that has none.

    The attributes are those of a cluster and of a dependent launch. What comes back is called with a stream,
    the parameters and 0. It holds no tensor.
    """
    # The attributes are the same for all streams.
    driver = _driver()
    attributes = []
    if launch.cluster != (1, 1, 1):
        cluster = driver.CUlaunchAttribute()
        cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size = cluster.value.clusterDim
        size.x, size.y, size.z = launch.cluster
        attributes.append(cluster)
    if launch.dependent:
        follows = driver.CUlaunchAttribute()
        follows.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        follows.value.programmaticStreamSerializationAllowed = 1
        attributes.append(follows)
    if not attributes:
        return None

    # To make a config takes as long as a launch, so each stream keeps its own. Threads share them, because
    # none changes after it is made. Two threads that miss the same one make it twice.
    configured = functools.partial(_config, launch.grid, launch.block, launch.shared, attributes)
    start = driver.cuLaunchKernelEx
    configs: dict[int, Any] = {}

    def started(stream: int, parameters: Any, extra: int) -> tuple:
        config = configs.get(stream)
        if config is None:
            if len(configs) >= STREAMS:
                configs.clear()
            config = configs[stream] = configured(stream)
        return start(config, function, parameters, extra)

    return started


def _config(
    grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, attributes: list[Any], stream: int
) -> Any:
    """Return the driver's description of a launch on this stream."""
    config = _driver().CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block
    config.sharedMemBytes, config.hStream = shared, stream
    config.numAttrs, config.attrs = len(attributes), attributes
    return config
