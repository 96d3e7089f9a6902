"""Names and forms of a request's blocks, packed apart so that both sides can cache them.

Clients send the same few schemas again and again. A schema's bytes are its cache key, and equal
bytes give the same tuple objects, so that whoever reads the blocks may cache by identity.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final, TypeAlias, TypeVar

import attrs

from transport import _msgpack
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.messages import SIDES, Block
from transport.values import Array

MAX_NAME_BYTES: Final = 255
MAX_CACHED: Final = 256
MAX_CACHED_BYTES: Final = 1 << 16
"""Larger schemas are not cached: with MAX_CACHED it bounds what strangers can make us keep."""

HAS_ROWS: Final = 1
HAS_CHARS: Final = 2


@attrs.frozen
class Schema:
    """All of a request's blocks but their arrays.

    Attributes:
        blocks: Side, form (a sum of ``HAS_ROWS`` and ``HAS_CHARS``) and names of each.
        n_arrays: How many arrays they have: values, and the splits that the forms name.
    """

    blocks: tuple[tuple[int, int, tuple[str, ...]], ...]
    n_arrays: int


_K = TypeVar("_K")
_V = TypeVar("_V")
_Key: TypeAlias = tuple[tuple[int, int, tuple[str, ...]], ...]
_packed: Final[dict[_Key, bytes]] = {}
_unpacked: Final[dict[bytes, Schema]] = {}
_lock: Final = threading.Lock()


def pack_blocks(blocks: Iterable[Block]) -> tuple[bytes, list[Array]]:
    """Return the schema of blocks, and their arrays in its order.

    Raises:
        LocalProtocolError: A block's names are too long.
    """
    arrays: list[Array] = []
    key = []
    for block in blocks:
        arrays.append(block.values)
        form = 0
        if block.row_splits is not None:
            form = HAS_ROWS
            arrays.append(block.row_splits)
        if block.char_splits is not None:
            form |= HAS_CHARS
            arrays.append(block.char_splits)
        key.append((block.side, form, block.names))
    schema = _packed.get(tuple(key))
    if schema is None:
        schema = _msgpack.pack(key)
        try:
            _parse(_msgpack.unpack(schema))
        except RemoteProtocolError as error:
            raise LocalProtocolError(str(error)) from error
        if len(schema) <= MAX_CACHED_BYTES:
            _remember(_packed, tuple(key), schema)
    return schema, arrays


def unpack_schema(data: bytes) -> Schema:
    """Return the schema of a request's blocks; the same object for the same bytes, while cached.

    Raises:
        RemoteProtocolError: ``data`` is not a schema.
    """
    schema = _unpacked.get(data)
    if schema is None:
        schema = _parse(_msgpack.unpack(data))
        if len(data) <= MAX_CACHED_BYTES:
            _remember(_unpacked, data, schema)
    return schema


def _parse(value: object) -> Schema:
    if type(value) is not tuple:
        raise RemoteProtocolError("block schema: want an array of blocks")
    n_arrays = 0
    for index, item in enumerate(value):
        if type(item) is not tuple or len(item) != 3:
            raise RemoteProtocolError(f"block {index}: want [side, form, names]")
        side, form, names = item
        if type(side) is not int or not 0 <= side < len(SIDES):
            raise RemoteProtocolError(f"block {index}: side {side!r:.40} is neither 0 nor 1")
        if type(form) is not int or not 0 <= form <= HAS_ROWS | HAS_CHARS:
            raise RemoteProtocolError(f"block {index}: form {form!r:.40} is not 0 to 3")
        if type(names) is not tuple or not names:
            raise RemoteProtocolError(f"block {index}: want an array of names")
        for name in names:
            if type(name) is not str or not 0 < len(name.encode()) <= MAX_NAME_BYTES:
                raise RemoteProtocolError(
                    f"block {index}: {name!r:.40} is not a name of 1 to {MAX_NAME_BYTES} bytes"
                )
        n_arrays += (1, 2, 2, 3)[form]
    return Schema(value, n_arrays)


def _remember(cache: dict[_K, _V], key: _K, value: _V) -> None:
    with _lock:
        while len(cache) >= MAX_CACHED:
            del cache[next(iter(cache))]  # the oldest
        cache[key] = value


def make_blocks(schema: Schema, arrays: list[Array]) -> tuple[Block, ...]:
    """Return the blocks of a schema, whose arrays these are.

    Raises:
        LocalProtocolError: A block's arrays do not fit its form.
        RemoteProtocolError: There are too many or too few.
    """
    if schema.n_arrays != len(arrays):
        raise RemoteProtocolError(
            f"ScoreRequest: {len(arrays)} arrays; its schema has {schema.n_arrays}"
        )
    blocks = []
    at = 0
    for side, form, names in schema.blocks:
        values = arrays[at]
        at += 1
        if not form:
            blocks.append(Block(side=side, names=names, values=values))
            continue
        rows = chars = None
        if form & HAS_ROWS:
            rows = arrays[at]
            at += 1
        if form & HAS_CHARS:
            chars = arrays[at]
            at += 1
        blocks.append(
            Block(side=side, names=names, values=values, row_splits=rows, char_splits=chars)
        )
    return tuple(blocks)
