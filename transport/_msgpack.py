"""The one seam to msgpack: packing, and unpacking of bytes that nobody vouches for.

Limits are set on every call, as an array or map header of five bytes may announce 2**32 items and
msgpack allocates for what is announced, at each of up to 1,024 levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgpack

from transport.errors import LocalProtocolError, RemoteProtocolError

MAX_ITEMS: Final = 4096
MAX_TEXT_BYTES: Final = 1 << 20
MAX_BIN_BYTES: Final = 1 << 20

# What msgpack 1.1 raises on bad input: ValueError covers truncation, trailing bytes, bad UTF-8 and
# limits; TypeError an unhashable map key; RecursionError the pure Python fallback on deep nesting.
_FAILURES: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


def pack(value: object) -> bytes:
    """Pack lists, tuples, maps, str, bytes, int, float, bool and None.

    Raises:
        LocalProtocolError: ``value`` holds something else, or an integer beyond 64 bits.
    """
    try:
        # A packer reserves 256 KiB unless told otherwise, which doubles the cost of small headers.
        packed: bytes = msgpack.Packer(buf_size=1024).pack(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"cannot pack {type(value).__name__}: {error}") from error
    return packed


def unpack(data: bytes | memoryview) -> Any:  # noqa: ANN401 - any value may come off a wire
    """Unpack one value without maps or extension types; arrays become tuples.

    Raises:
        RemoteProtocolError: ``data`` is not exactly one such value, or is beyond the limits.
    """
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            max_array_len=MAX_ITEMS,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=MAX_TEXT_BYTES,
            max_bin_len=MAX_BIN_BYTES,
        )
    except _FAILURES as error:
        raise RemoteProtocolError(f"not msgpack as the protocol has it: {error}") from error


def iterate(data: bytes, *, shape: str) -> Iterator[Any]:
    """Yield the number of candidates, then the user and each candidate of ``[user, [candidate]]``.

    The candidates come one by one, so that the limits bound each and not only their sum.

    Args:
        data: msgpack.
        shape: What ``data`` ought to be, for error messages.

    Raises:
        RemoteProtocolError: ``data`` is not two items, the second an array, and nothing else.
    """
    unpacker = msgpack.Unpacker(
        max_buffer_size=len(data) or 1,
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
        max_ext_len=0,
        max_str_len=MAX_TEXT_BYTES,
        max_bin_len=MAX_BIN_BYTES,
    )
    try:
        unpacker.feed(data)
        if unpacker.read_array_header() != 2:
            raise RemoteProtocolError(f"want {shape}")
        user = unpacker.unpack()
        n_candidates = unpacker.read_array_header()
        yield n_candidates
        yield user
        for _ in range(n_candidates):
            yield unpacker.unpack()
        if unpacker.tell() != len(data):
            raise RemoteProtocolError(f"{len(data) - unpacker.tell()} bytes follow {shape}")
    except _FAILURES as error:
        raise RemoteProtocolError(f"want {shape}: {error}") from error
