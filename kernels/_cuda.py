"""The one seam to CUDA's driver: typed functions over ``cuda.bindings.driver``, errors translated.

Nothing of CUDA is imported before ``available`` was asked or a function is called, so that every
module imports on a machine without a driver. Handles are opaque; whoever made one destroys it. All
functions but the few named there act on the context that is current in the calling thread. Calls
that wait (``event_synchronize``, ``stream_synchronize``) release the interpreter lock.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Final, NewType

from kernels.errors import CudaError, DeviceLost

Context = NewType("Context", object)
GreenContext = NewType("GreenContext", object)
Stream = NewType("Stream", object)
Event = NewType("Event", object)
Module = NewType("Module", object)
Function = NewType("Function", object)
Graph = NewType("Graph", object)
GraphExec = NewType("GraphExec", object)
LaunchConfig = NewType("LaunchConfig", object)
SmResource = NewType("SmResource", object)

_LIBRARY: Final = "libcuda.so.1"
# After one of these, every later call in the process fails as well (CUDA driver API, CUresult), or
# the card or the MPS server is gone.
_LOST: Final = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "DEINITIALIZED",
        "DEVICE_UNAVAILABLE",
        "ECC_UNCORRECTABLE",
        "NVLINK_UNCORRECTABLE",
        "CONTAINED",
        "ILLEGAL_ADDRESS",
        "LAUNCH_TIMEOUT",
        "CONTEXT_IS_DESTROYED",
        "ASSERT",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "TENSOR_MEMORY_LEAK",
        "MPS_CONNECTION_FAILED",
        "MPS_RPC_FAILURE",
        "MPS_CLIENT_TERMINATED",
        "EXTERNAL_DEVICE",
        "UNKNOWN",
    )
)
TENSOR_MAP_BYTES: Final = 128
_TENSOR_MAP_ALIGNMENT: Final = 64
# CU_TENSOR_MAP_DATA_TYPE_UINT8 and _FLOAT16: a copy does not look inside an element.
_ELEMENTS: Final = {1: 0, 2: 6}
_SWIZZLES: Final = {0: 0, 32: 1, 64: 2, 128: 3}  # CUtensorMapSwizzle
_L2_PROMOTION_256: Final = 3


@functools.cache
def _driver() -> Any:  # noqa: ANN401 - cuda.bindings is untyped
    from cuda.bindings import driver

    return driver


@functools.cache
def _library() -> Any:  # noqa: ANN401 - functions of a C library
    return ctypes.CDLL(_LIBRARY)


@functools.cache
def available() -> str | None:
    """Return None if there is a card to use, else why not, as one sentence without its full stop.

    Safe everywhere: looks for the driver's library before anything of cuda-python touches it.
    """
    try:
        _library()
    except OSError:
        return f"there is no NVIDIA driver on this machine ({_LIBRARY} is not found)"
    try:
        driver = _driver()
    except ImportError as error:
        return f"the package cuda-python is not installed ({error})"
    try:
        result, *_ = driver.cuInit(0)
        if not result:
            result, n_devices = driver.cuDeviceGetCount()
            if not result and n_devices:
                return None
    except (RuntimeError, ValueError) as error:
        return f"the NVIDIA driver cannot be used ({error})"
    how = result.name if result else "it shows no card"
    return f"the NVIDIA driver cannot be used ({how})"


def _check(result: Any, function: str) -> None:  # noqa: ANN401 - a CUresult
    if not result:
        return
    name = str(result.name)
    if name in _LOST:
        raise DeviceLost(f"{function}: {name}")
    raise CudaError(f"{function}: {name}")


def _call(function: str, *arguments: object) -> Any:  # noqa: ANN401 - what the function gives
    """Call a function of the driver; return its one value, a list of several, or None.

    Raises:
        CudaError: The driver refused.
        DeviceLost: CUDA cannot be used in this process any more.
    """
    result, *values = getattr(_driver(), function)(*arguments)
    _check(result, function)
    if len(values) == 1:
        return values[0]
    return values or None


# Devices and contexts


def device_name(device: int) -> str:
    """Return a card's name."""
    return bytes(_call("cuDeviceGetName", 128, device)).split(b"\0")[0].decode()


def device_attribute(device: int, name: str) -> int:
    """Return an attribute by the end of its name, such as ``MULTIPROCESSOR_COUNT``."""
    attribute = getattr(_driver().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(_call("cuDeviceGetAttribute", attribute, device))


def n_devices() -> int:
    """Return how many cards there are."""
    return int(_call("cuDeviceGetCount"))


def primary_context(device: int) -> Context:
    """Retain the primary context, which other libraries of the process use as well."""
    return Context(_call("cuDevicePrimaryCtxRetain", device))


def release_primary_context(device: int) -> None:
    """Give a retained primary context back."""
    _call("cuDevicePrimaryCtxRelease", device)


def create_context(device: int) -> Context:
    """Create a context of one's own, current in this thread from now on."""
    return Context(
        _call("cuCtxCreate", None, _driver().CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC, device)
    )


def destroy_context(context: Context) -> None:
    """Destroy what ``create_context`` made, and all memory and streams in it."""
    _call("cuCtxDestroy", context)


def set_current(context: Context) -> None:
    """Make a context current in this thread."""
    _call("cuCtxSetCurrent", context)


def synchronize() -> None:
    """Wait for everything that was queued in the current context."""
    _call("cuCtxSynchronize")


def split_sms(device: int, n_groups: int, n_sms: int) -> list[SmResource]:
    """Divide a card's multiprocessors: up to ``n_groups`` groups of at least ``n_sms`` each."""
    kind = _driver().CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = _call("cuDeviceGetDevResource", device, kind)
    groups, n_made, _ = _call("cuDevSmResourceSplitByCount", n_groups, whole, 0, n_sms)
    return [SmResource(group) for group in groups[: int(n_made)]]


def sm_count(resource: SmResource) -> int:
    """Return how many multiprocessors a group has."""
    group: Any = resource
    return int(group.sm.smCount)


def create_green_context(device: int, resource: SmResource) -> GreenContext:
    """Create a context of the primary one's address space, on a group of multiprocessors."""
    description = _call("cuDevResourceGenerateDesc", [resource], 1)
    flags = _driver().CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    return GreenContext(_call("cuGreenCtxCreate", description, device, flags))


def destroy_green_context(context: GreenContext) -> None:
    """Destroy a green context. Its streams must be destroyed before."""
    _call("cuGreenCtxDestroy", context)


# Streams and events


def create_stream() -> Stream:
    """Create a stream in the current context that waits for no other."""
    return Stream(_call("cuStreamCreate", _driver().CUstream_flags.CU_STREAM_NON_BLOCKING))


def create_green_stream(context: GreenContext) -> Stream:
    """Create a stream whose kernels run on a green context's multiprocessors only.

    It is used with the primary context current.
    """
    flags = _driver().CUstream_flags.CU_STREAM_NON_BLOCKING
    return Stream(_call("cuGreenCtxStreamCreate", context, flags, 0))


def destroy_stream(stream: Stream) -> None:
    """Destroy a stream; what is queued on it still runs."""
    _call("cuStreamDestroy", stream)


def stream_synchronize(stream: Stream) -> None:
    """Wait for everything that was queued on a stream."""
    _call("cuStreamSynchronize", stream)


def create_event(*, timing: bool = False) -> Event:
    """Create an event. Who waits for it sleeps, and does not spin."""
    flags = _driver().CUevent_flags
    chosen = int(flags.CU_EVENT_BLOCKING_SYNC)
    if not timing:
        chosen |= int(flags.CU_EVENT_DISABLE_TIMING)
    return Event(_call("cuEventCreate", chosen))


def destroy_event(event: Event) -> None:
    """Destroy an event."""
    _call("cuEventDestroy", event)


def event_record(event: Event, stream: Stream) -> None:
    """Let an event complete once everything queued on a stream so far has."""
    _call("cuEventRecord", event, stream)


def event_synchronize(event: Event) -> None:
    """Wait until an event has completed."""
    _call("cuEventSynchronize", event)


def event_done(event: Event) -> bool:
    """Return whether an event has completed."""
    driver = _driver()
    (result,) = driver.cuEventQuery(event)
    if result == driver.CUresult.CUDA_ERROR_NOT_READY:
        return False
    _check(result, "cuEventQuery")
    return True


def event_elapsed_s(start: Event, end: Event) -> float:
    """Return the seconds between two completed events that were made with ``timing``."""
    return float(_call("cuEventElapsedTime", start, end)) * 1e-3


# Memory. Addresses are integers.


def allocate(size_bytes: int) -> int:
    """Allocate memory of the card, aligned to 256 bytes; return its address."""
    return int(_call("cuMemAlloc", size_bytes))


def free(address: int) -> None:
    """Free what ``allocate`` gave. Waits for what uses it."""
    _call("cuMemFree", address)


def allocate_pinned(size_bytes: int) -> int:
    """Allocate pinned memory of the host, seen by kernels of every context at the same address."""
    driver = _driver()
    flags = driver.CU_MEMHOSTALLOC_PORTABLE | driver.CU_MEMHOSTALLOC_DEVICEMAP
    return int(_call("cuMemHostAlloc", size_bytes, flags))


def free_pinned(address: int) -> None:
    """Free what ``allocate_pinned`` gave."""
    _call("cuMemFreeHost", address)


def copy_to_device(to: int, source: int, size_bytes: int, stream: Stream) -> None:
    """Queue a copy from the host; ``source`` should be pinned, and must live until it has run."""
    _call("cuMemcpyHtoDAsync", to, source, size_bytes, stream)


def copy_to_host(to: int, source: int, size_bytes: int, stream: Stream) -> None:
    """Queue a copy to the host; ``to`` should be pinned, and must live until it has run."""
    _call("cuMemcpyDtoHAsync", to, source, size_bytes, stream)


def fill(address: int, value: int, size_bytes: int, stream: Stream) -> None:
    """Queue setting every byte of a piece of memory."""
    _call("cuMemsetD8Async", address, value, size_bytes, stream)


# Modules and launches


def load_module(cubin: bytes) -> Module:
    """Load a cubin into the current context."""
    return Module(_call("cuModuleLoadData", cubin))


def unload_module(module: Module) -> None:
    """Unload a module."""
    _call("cuModuleUnload", module)


def function(module: Module, entry: str) -> Function:
    """Return a kernel of a module by its ``extern "C"`` name."""
    return Function(_call("cuModuleGetFunction", module, entry.encode()))


def allow_shared(function: Function, size_bytes: int) -> None:
    """Let a kernel have so much dynamic shared memory."""
    name = _driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _call("cuFuncSetAttribute", function, name, size_bytes)


def allow_large_clusters(function: Function) -> None:
    """Let a kernel have clusters of more than 8 blocks."""
    name = _driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    _call("cuFuncSetAttribute", function, name, 1)


def launch_config(
    grid: tuple[int, int, int], block: int, *, shared_bytes: int, cluster: int, dependent: bool
) -> LaunchConfig:
    """Return the shape of a launch, to be used again and again.

    Args:
        grid: Blocks.
        block: Threads of a block.
        shared_bytes: Dynamic shared memory.
        cluster: Blocks of a cluster, along the grid's first axis; 1 for none.
        dependent: May start before the launch ahead of it on the stream has ended.
    """
    driver = _driver()
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
    config.sharedMemBytes = shared_bytes
    names = driver.CUlaunchAttributeID
    attributes = []
    if cluster > 1:
        shape = driver.CUlaunchAttribute()
        shape.id = names.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        value = shape.value  # what it hands out refers to the attribute's own memory
        value.clusterDim.x, value.clusterDim.y, value.clusterDim.z = cluster, 1, 1
        attributes.append(shape)
    if dependent:
        early = driver.CUlaunchAttribute()
        early.id = names.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = 1
        attributes.append(early)
    config.attrs = attributes
    config.numAttrs = len(attributes)
    return LaunchConfig(config)


def launch(config: LaunchConfig, function: Function, parameters: int, stream: Stream) -> None:
    """Queue a launch.

    Args:
        config: Used by one thread at a time.
        function: The kernel.
        parameters: Address of an array of the addresses of the arguments' values; read before this
            returns.
        stream: Orders the launch.
    """
    shape: Any = config
    shape.hStream = stream
    _call("cuLaunchKernelEx", shape, function, parameters, 0)


def max_active_clusters(config: LaunchConfig, function: Function, stream: Stream) -> int:
    """Return how many clusters of such a launch the card (or a stream's part) holds at once."""
    shape: Any = config
    shape.hStream = stream
    return int(_call("cuOccupancyMaxActiveClusters", function, shape))


def max_active_blocks(function: Function, block: int, shared_bytes: int) -> int:
    """Return how many blocks of such a launch one multiprocessor holds at once."""
    name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    return int(_call(name, function, block, shared_bytes))


def encode_tensor_map(
    address: int,
    *,
    rows: int,
    columns: int,
    row_bytes: int,
    box_rows: int,
    box_columns: int,
    swizzle_bytes: int,
    element_bytes: int = 2,
) -> bytes:
    """Return the 128 bytes of a 2-D tensor map of elements of 2 bytes, or of 1.

    Through the library itself: the binding encodes into memory that it does not align to the 64
    bytes that the driver asks for.

    Raises:
        CudaError: The driver finds sizes, strides or alignment wrong.
    """
    raw = ctypes.create_string_buffer(TENSOR_MAP_BYTES + _TENSOR_MAP_ALIGNMENT)
    start = ctypes.addressof(raw)
    aligned = start + -start % _TENSOR_MAP_ALIGNMENT
    result = _library().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned),
        ctypes.c_int(_ELEMENTS[element_bytes]),
        ctypes.c_uint32(2),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(columns, rows),
        (ctypes.c_uint64 * 1)(row_bytes),
        (ctypes.c_uint32 * 2)(box_columns, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        ctypes.c_int(0),  # not interleaved
        ctypes.c_int(_SWIZZLES[swizzle_bytes]),
        ctypes.c_int(_L2_PROMOTION_256),
        ctypes.c_int(0),  # what lies outside reads as zeros
    )
    if result:
        _check(_driver().CUresult(result), "cuTensorMapEncodeTiled")
    return ctypes.string_at(aligned, TENSOR_MAP_BYTES)


# Graphs


def begin_capture(stream: Stream) -> None:
    """Record what is queued on a stream from now on instead of running it.

    Other threads are not concerned: they may go on to launch, copy and allocate.
    """
    mode = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    _call("cuStreamBeginCapture", stream, mode)


def end_capture(stream: Stream) -> Graph:
    """Return what was recorded since ``begin_capture``."""
    return Graph(_call("cuStreamEndCapture", stream))


def instantiate(graph: Graph) -> GraphExec:
    """Make a graph ready to be launched."""
    return GraphExec(_call("cuGraphInstantiate", graph, 0))


def destroy_graph(graph: Graph) -> None:
    """Destroy a recorded graph; what was instantiated from it stays."""
    _call("cuGraphDestroy", graph)


def destroy_graph_exec(graph: GraphExec) -> None:
    """Destroy an instantiated graph, once it does not run any more."""
    _call("cuGraphExecDestroy", graph)


def upload_graph(graph: GraphExec, stream: Stream) -> None:
    """Send a graph to the card ahead of its first launch."""
    _call("cuGraphUpload", graph, stream)


def launch_graph(graph: GraphExec, stream: Stream) -> None:
    """Queue a graph. Launches of one graph run one after the other."""
    _call("cuGraphLaunch", graph, stream)
