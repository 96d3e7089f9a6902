"""Arrays to frames and back: placement, alignment, and the checks on what a peer announces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.values import Array

Frame: TypeAlias = bytes | memoryview
Descriptor: TypeAlias = tuple[Any, ...]

BLOB: Final = 2
"""The frame that holds the small arrays."""

ALIGNMENT: Final = 64
"""Of arrays in the blob: a cache line, and enough for any vector load or bulk copy."""

LARGE_BYTES: Final = 1 << 16
"""Arrays above this have a frame of their own: from there on a copy costs more than a frame."""

MAX_ARRAYS: Final = 1024
MAX_DIMENSIONS: Final = 3
MAX_ARRAY_BYTES: Final = 1 << 30

DTYPES: Final = {
    code: np.dtype(f"<{code}")
    for code in ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
}
_CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
_BOOL: Final = DTYPES["b1"]
_PADDING: Final = [bytes(n) for n in range(ALIGNMENT)]


def pack_arrays(arrays: Sequence[Array]) -> tuple[list[Descriptor], list[Frame]]:
    """Place arrays in frames.

    Returns:
        A descriptor of each array, and the frames from the blob on. Frames of large arrays are
        views: the arrays must not change until they are sent.

    Raises:
        LocalProtocolError: The wire has no such dtype, or it is too much for one message.
    """
    if not arrays:
        return [], []
    if len(arrays) > MAX_ARRAYS:
        raise LocalProtocolError(f"{len(arrays)} arrays in one message; at most {MAX_ARRAYS}")
    descriptors: list[Descriptor] = []
    parts: list[Any] = []  # arrays and padding: type checkers see no buffer in an array
    frames: list[Frame] = [b""]
    end = 0
    for array in arrays:
        code = _CODES.get(array.dtype)
        if code is None:
            array, code = _little_endian(array)
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        size = array.nbytes
        if size > LARGE_BYTES:
            if size > MAX_ARRAY_BYTES:
                raise LocalProtocolError(f"array of {size} bytes; at most {MAX_ARRAY_BYTES}")
            descriptors.append((code, BLOB + len(frames), 0, *array.shape))
            frames.append(array.reshape(-1).view(np.uint8).data)
            continue
        padding = -end % ALIGNMENT
        if padding:
            parts.append(_PADDING[padding])
            end += padding
        descriptors.append((code, BLOB, end, *array.shape))
        parts.append(array)
        end += size
    if parts:
        frames[0] = b"".join(parts)
    return descriptors, frames


def view_arrays(descriptors: object, frames: Sequence[Frame]) -> list[Array]:
    """Return the arrays as read-only views of ``frames``, which are all of the message's.

    Raises:
        RemoteProtocolError: The descriptors and the frames do not fit each other exactly.
    """
    if type(descriptors) is not tuple or len(descriptors) > MAX_ARRAYS:
        raise RemoteProtocolError(f"want an array of at most {MAX_ARRAYS} array descriptors")
    arrays: list[Array] = []
    blob_end = 0
    n_frames = BLOB + 1 if descriptors else BLOB
    for index, descriptor in enumerate(descriptors):
        dtype, place, offset, shape, size = _parse(index, descriptor)
        if place == BLOB:
            if offset % ALIGNMENT:
                raise RemoteProtocolError(f"array {index}: offset {offset} is not aligned")
            blob_end = max(blob_end, offset + size)
        elif place == n_frames and offset == 0:
            n_frames += 1
        else:
            raise RemoteProtocolError(f"array {index}: frame {place} offset {offset} is not next")
        if place >= len(frames):
            raise RemoteProtocolError(f"array {index}: there is no frame {place}")
        frame = frames[place]
        if offset + size > len(frame) or (place != BLOB and size != len(frame)):
            raise RemoteProtocolError(
                f"array {index}: bytes {offset} to {offset + size} of frame {place}, "
                f"which has {len(frame)}"
            )
        arrays.append(_view(index, dtype, shape, frame, offset))
    if n_frames != len(frames):
        raise RemoteProtocolError(f"{len(frames)} frames, of which the header knows {n_frames}")
    if descriptors and blob_end != len(frames[BLOB]):
        raise RemoteProtocolError(f"frame {BLOB} has {len(frames[BLOB])} bytes, not {blob_end}")
    return arrays


def _parse(index: int, descriptor: object) -> tuple[np.dtype[Any], int, int, tuple[int, ...], int]:
    """Return dtype, frame, offset, shape and size in bytes of one descriptor."""
    if type(descriptor) is not tuple or not 3 < len(descriptor) <= 3 + MAX_DIMENSIONS:
        raise RemoteProtocolError(f"array {index}: want [dtype, frame, offset, 1 to 3 dimensions]")
    code, place, offset, *shape = descriptor
    dtype = DTYPES.get(code) if type(code) is str else None
    if dtype is None:
        raise RemoteProtocolError(f"array {index}: the protocol has no dtype {code!r:.40}")
    if type(place) is not int or type(offset) is not int or place < BLOB or offset < 0:
        raise RemoteProtocolError(f"array {index}: bad frame or offset")
    size = dtype.itemsize
    for n in shape:
        if type(n) is not int or not 0 <= n <= MAX_ARRAY_BYTES:
            raise RemoteProtocolError(f"array {index}: dimension {n!r:.40} is not a size")
        size *= n
    # numpy multiplies the other dimensions even where one is 0.
    if size > MAX_ARRAY_BYTES or (not size and math.prod(n or 1 for n in shape) > MAX_ARRAY_BYTES):
        raise RemoteProtocolError(f"array {index}: more than {MAX_ARRAY_BYTES} bytes")
    return dtype, place, offset, tuple(shape), size


def _view(
    index: int, dtype: np.dtype[Any], shape: tuple[int, ...], frame: Frame, offset: int
) -> Array:
    array: Array = np.ndarray(shape, dtype, frame, offset)
    if dtype is _BOOL and array.size and array.view(np.uint8).max() > 1:
        raise RemoteProtocolError(f"array {index}: a bool that is neither 0 nor 1")
    if type(frame) is not bytes and not array.flags.aligned:
        # A frame that lies inside a socket's receive buffer starts anywhere.
        array = array.copy()
        array.flags.writeable = False
    return array


def _little_endian(array: Array) -> tuple[Array, str]:
    if not isinstance(array, np.ndarray):
        raise LocalProtocolError(f"want a numpy array, got {type(array).__name__}")
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _CODES:
        raise LocalProtocolError(f"arrays of {array.dtype} do not travel; have {list(DTYPES)}")
    return array.astype(dtype), _CODES[dtype]
