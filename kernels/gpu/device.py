"""Cards and contexts: what memory, modules and streams live in."""

from __future__ import annotations

import contextlib
import enum
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels import _cuda
from kernels.errors import CudaError, KernelsError
from kernels.gpu.memory import DeviceMemory
from kernels.program import Target

# Groups of a split hold a multiple of so many multiprocessors, by compute capability; before 9.0
# of 2 (cuDevSmResourceSplitByCount).
_SM_STEPS: Final = {9: 8, 10: 8}
# Clusters of up to 8 blocks run on every card that has clusters (CUDA programming guide).
_PORTABLE_CLUSTER: Final = 8


class Isolation(enum.StrEnum):
    """How the lanes of a process are kept apart.

    STREAMS: they share one context. CONTEXTS: each has one of its own, with its own copy of the
    weights (0.5 GiB more a lane). GREEN: each has multiprocessors of its own in one context.
    """

    STREAMS = "streams"
    CONTEXTS = "contexts"
    GREEN = "green"


@attrs.frozen
class Device:
    """A card.

    Attributes:
        n_sms: Multiprocessors that this process may use: under MPS, its share.
    """

    index: int
    name: str
    capability: tuple[int, int]
    n_sms: int
    shared_bytes: int

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """Look at a card.

        Raises:
            CudaError: There is no driver, or no such card; says so in a sentence.
        """
        problem = _cuda.available()
        if problem is not None:
            raise CudaError(problem)
        n_devices = _cuda.n_devices()
        if not 0 <= index < n_devices:
            raise CudaError(f"there is no card {index}: this machine shows {n_devices}")

        def attribute(name: str) -> int:
            return _cuda.device_attribute(index, name)

        return cls(
            index=index,
            name=_cuda.device_name(index),
            capability=(
                attribute("COMPUTE_CAPABILITY_MAJOR"),
                attribute("COMPUTE_CAPABILITY_MINOR"),
            ),
            n_sms=attribute("MULTIPROCESSOR_COUNT"),
            shared_bytes=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
        )

    def target(self, n_sms: int | None = None) -> Target:
        """Return what to compile for, on all multiprocessors or on a part of them.

        Raises:
            CudaError: Kernels are not made for such a card.
        """
        arch = {8: "sm_80", 9: "sm_90a", 10: "sm_100"}.get(self.capability[0])
        if arch is None:
            major, minor = self.capability
            raise CudaError(
                f"{self.name} has compute capability {major}.{minor}; "
                f"kernels are made for 8.x, 9.0 and 10.x"
            )
        return Target(arch, n_sms or self.n_sms, self.shared_bytes)


@attrs.define(eq=False)
class _Kernel:
    """A kernel, and how much dynamic shared memory it is allowed."""

    function: _cuda.Function
    shared_bytes: int = 0


class Context:
    """A context, and what all lanes in it share: modules and weights, by content.

    Current in a thread only inside ``with context.use()``. May be used from several threads.

    Args:
        device: The card.
        own: A context of its own instead of the primary one.
    """

    def __init__(self, device: Device, *, own: bool = False) -> None:
        self.device = device
        self._own = own
        self._lock = threading.Lock()
        self._modules: dict[bytes, _cuda.Module] = {}
        self._kernels: dict[tuple[bytes, str], _Kernel] = {}
        self._weights: dict[bytes, DeviceMemory] = {}
        self._owned: list[DeviceMemory] = []
        self._partitions: list[_cuda.GreenContext] = []
        make = _cuda.create_context if own else _cuda.primary_context
        self._handle: _cuda.Context | None = make(device.index)

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Make the context current in this thread; it stays so until another is made current."""
        self.make_current()
        yield

    def make_current(self) -> None:
        """Make the context current in this thread.

        Raises:
            KernelsError: The context is closed.
        """
        if self._handle is None:
            raise KernelsError("the CUDA context is closed")
        _cuda.set_current(self._handle)

    def stream(self) -> _cuda.Stream:
        """Create a stream; destroyed by the caller before the context is closed."""
        self.make_current()
        return _cuda.create_stream()

    def partition(self, n_parts: int) -> list[Partition]:
        """Divide the card's multiprocessors.

        Raises:
            CudaError: The card has too few multiprocessors for so many parts.
        """
        self.make_current()
        step = _SM_STEPS.get(self.device.capability[0], 2)
        n_sms = self.device.n_sms // n_parts // step * step
        groups = _cuda.split_sms(self.device.index, n_parts, n_sms) if n_sms else []
        if len(groups) < n_parts:
            raise CudaError(
                f"{self.device.name} has {self.device.n_sms} multiprocessors, too few for "
                f"{n_parts} parts of at least {max(n_sms, step)}"
            )
        parts = []
        for group in groups:
            green = _cuda.create_green_context(self.device.index, group)
            self._partitions.append(green)
            parts.append(Partition(self, green, _cuda.sm_count(group)))
        return parts

    def kernel(
        self, cubin: bytes, entry: str, *, shared_bytes: int, cluster: int
    ) -> _cuda.Function:
        """Return a kernel of a cubin, allowed to be launched so.

        The cubin is loaded once, and kept until the context is closed.

        Raises:
            CudaError: The cubin is for another card, has no such kernel, or asks for too much.
        """
        key = hashlib.sha256(cubin).digest()
        with self._lock:
            self.make_current()
            if key not in self._modules:
                self._modules[key] = _cuda.load_module(cubin)
            kernel = self._kernels.get((key, entry))
            if kernel is None:
                kernel = _Kernel(_cuda.function(self._modules[key], entry))
                self._kernels[key, entry] = kernel
            # What one program was allowed, another that shares the kernel must not lower.
            if shared_bytes > kernel.shared_bytes:
                _cuda.allow_shared(kernel.function, shared_bytes)
                kernel.shared_bytes = shared_bytes
            if cluster > _PORTABLE_CLUSTER:
                _cuda.allow_large_clusters(kernel.function)
            return kernel.function

    def weights(self, blob: NDArray[np.uint8]) -> DeviceMemory:
        """Return a blob's copy on the card, written once and kept until the context is closed."""
        key = hashlib.sha256(np.ascontiguousarray(blob).data).digest()
        with self._lock:
            if key not in self._weights:
                self.make_current()
                self._weights[key] = DeviceMemory.of(blob)
            return self._weights[key]

    def allocate(self, size_bytes: int) -> DeviceMemory:
        """Allocate zeros that belong to the context until it is closed.

        Raises:
            CudaError: The card's memory is full.
        """
        self.make_current()
        memory = DeviceMemory.allocate(size_bytes)
        self._owned.append(memory)
        return memory

    def synchronize(self) -> None:
        """Wait for everything that was queued in the context."""
        self.make_current()
        _cuda.synchronize()

    def close(self) -> None:
        """Free everything in the context, once nothing runs in it. Can be called twice."""
        if self._handle is None:
            return
        self.make_current()
        _cuda.synchronize()
        for module in self._modules.values():
            _cuda.unload_module(module)
        for memory in (*self._weights.values(), *self._owned):
            memory.free()
        for green in self._partitions:
            _cuda.destroy_green_context(green)
        handle, self._handle = self._handle, None
        if self._own:
            _cuda.destroy_context(handle)
        else:
            _cuda.release_primary_context(self.device.index)


@attrs.frozen(eq=False)
class Partition:
    """A part of the card's multiprocessors, in a context's address space.

    Lives as long as the context.
    """

    context: Context
    green: _cuda.GreenContext
    n_sms: int

    def stream(self) -> _cuda.Stream:
        """Create a stream whose kernels run on this part; destroyed before the context closes."""
        self.context.make_current()
        return _cuda.create_green_stream(self.green)


def time_launches(
    context: Context,
    stream: _cuda.Stream,
    queue: Callable[[], None],
    *,
    n_repeats: int,
    before: Callable[[], None] | None = None,
) -> list[float]:
    """Return the device time of each of ``n_repeats`` calls of ``queue``, in seconds.

    Args:
        context: The stream's.
        stream: What ``queue`` queues its work on.
        queue: Queues the work to be timed.
        n_repeats: How often.
        before: Queues work on the stream that is not timed, such as overwriting the cache.
    """
    with context.use(), contextlib.ExitStack() as cleanup:
        events = [_cuda.create_event(timing=True) for _ in range(2 * n_repeats)]
        for event in events:
            cleanup.callback(_cuda.destroy_event, event)
        pairs = list(zip(events[::2], events[1::2], strict=True))
        for start, end in pairs:
            if before is not None:
                before()
            _cuda.event_record(start, stream)
            queue()
            _cuda.event_record(end, stream)
        _cuda.stream_synchronize(stream)
        return [_cuda.event_elapsed_s(start, end) for start, end in pairs]
