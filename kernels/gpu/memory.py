"""Memory of the card, and pinned memory of the host as arrays. Both belong to a context."""

from __future__ import annotations

import ctypes
from typing import Any, TypeVar

import attrs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels import _cuda

Element = TypeVar("Element", bound=np.generic)


@attrs.define(eq=False)
class DeviceMemory:
    """A piece of the card's memory, aligned to 256 bytes. Freed by ``free``, not by Python."""

    address: int
    size_bytes: int

    @classmethod
    def allocate(cls, size_bytes: int) -> DeviceMemory:
        """Allocate zeros in the current context; at least one byte, so that there is an address."""
        memory = cls(_cuda.allocate(max(size_bytes, 1)), size_bytes)
        memory.fill(0)
        return memory

    @classmethod
    def of(cls, array: NDArray[Any]) -> DeviceMemory:
        """Allocate a copy of an array in the current context."""
        memory = cls(_cuda.allocate(max(array.nbytes, 1)), array.nbytes)
        memory.write(array)
        return memory

    def write(self, array: NDArray[Any], offset: int = 0) -> None:
        """Copy an array in, ``offset`` bytes from the start; done when this returns."""
        held = np.ascontiguousarray(array)
        if offset + held.nbytes > self.size_bytes:
            raise ValueError(f"{held.nbytes} bytes at {offset} do not fit {self.size_bytes}")
        if held.nbytes:
            stream = _cuda.create_stream()
            _cuda.copy_to_device(self.address + offset, held.ctypes.data, held.nbytes, stream)
            _finish(stream)

    def read(self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> NDArray[Any]:
        """Return a copy of what lies there as an array of one's own."""
        array: NDArray[Any] = np.empty(shape, dtype)
        if offset + array.nbytes > self.size_bytes:
            raise ValueError(f"{array.nbytes} bytes at {offset} do not fit {self.size_bytes}")
        if array.nbytes:
            stream = _cuda.create_stream()
            _cuda.copy_to_host(array.ctypes.data, self.address + offset, array.nbytes, stream)
            _finish(stream)
        return array

    def fill(self, byte: int) -> None:
        """Set every byte; done when this returns."""
        if self.size_bytes:
            stream = _cuda.create_stream()
            _cuda.fill(self.address, byte, self.size_bytes, stream)
            _finish(stream)

    def free(self) -> None:
        """Free it, once nothing uses it. Can be called twice."""
        if self.address:
            _cuda.free(self.address)
            self.address = 0


class PinnedMemory:
    """A piece of pinned memory of the host, zeroed. Kernels reach it at the same address.

    Arrays of it must not be used after ``free``.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.address = _cuda.allocate_pinned(max(size_bytes, 1))
        ctypes.memset(self.address, 0, size_bytes)

    def array(
        self, shape: tuple[int, ...], dtype: type[Element] | np.dtype[Element], offset: int = 0
    ) -> NDArray[Element]:
        """Return an array that lies ``offset`` bytes from the start."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if offset + size > self.size_bytes:
            raise ValueError(f"{size} bytes at {offset} do not fit {self.size_bytes}")
        raw = (ctypes.c_uint8 * size).from_address(self.address + offset)
        return np.ndarray(shape, dtype, memoryview(raw))

    def free(self) -> None:
        """Free it, once no copy uses it. Can be called twice."""
        if self.address:
            _cuda.free_pinned(self.address)
            self.address = 0


def _finish(stream: _cuda.Stream) -> None:
    """Wait for a stream, and destroy it."""
    try:
        _cuda.stream_synchronize(stream)
    finally:
        _cuda.destroy_stream(stream)
