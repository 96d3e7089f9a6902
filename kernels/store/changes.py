"""Changes of rows, as they are kept: the payload of a record, and what else a log says.

A payload of kind ``CHANGE``, little-endian:

    ===== ==== =====================================================================
    bytes type content
    ===== ==== =====================================================================
    0-7   u8   stream
    8-15  u8   number
    16-23 i8   time, in microseconds of the Unix epoch
    24-31 u8   position
    32-35 u4   n, how many rows
    36-39 u4   bytes of a row
    40-43 u4   type of the rows, as its place in ``ROW_TYPES``
    44-45 u2   bytes of the table's name, which follows at 48
    46-47 u2   bytes of the source's name, which follows that
    ...   i8   keys ``[n]``, at the next multiple of eight
    ...   u1   rows ``[n, bytes of a row]``
    ===== ==== =====================================================================

A payload of kind ``NOTE`` is JSON.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import StateError
from kernels.store.disk import Buffer
from kernels.store.rows import ROW_TYPES, RowType

CHANGE: Final = 1
NOTE: Final = 2

_HEAD: Final = struct.Struct("<QQqQIIIHH")


@attrs.frozen(kw_only=True, eq=False)
class Change:
    """New rows of one table, which take effect together.

    Attributes:
        stream: Tells apart what counts its updates from 1; 0 for none.
        number: Of the update, in its stream.
        at_us: When it was taken, in microseconds of the Unix epoch.
        table: The table's name.
        dtype: Of its rows.
        keys: int64 ``[n]``. Where one is there twice, the last row counts.
        rows: uint8 ``[n, bytes of a row]``, as the table stores them, C-ordered.
        source: Who published it, if it said so, and ``position``, where in what it publishes.
    """

    stream: int
    number: int
    at_us: int
    table: str
    dtype: RowType
    keys: NDArray[np.int64]
    rows: NDArray[np.uint8]
    source: str = ""
    position: int = 0

    @property
    def size_bytes(self) -> int:
        """Of keys and rows."""
        return self.keys.nbytes + self.rows.nbytes

    def pack(self) -> list[Buffer]:
        """Return the payload, in pieces; keys and rows are not copied."""
        table, source = self.table.encode(), self.source.encode()
        head = _HEAD.pack(
            self.stream,
            self.number,
            self.at_us,
            self.position,
            len(self.keys),
            self.rows.shape[1],
            ROW_TYPES.index(self.dtype),
            len(table),
            len(source),
        )
        names = table + source
        keys = np.ascontiguousarray(self.keys, "<i8")
        rows = np.ascontiguousarray(self.rows)
        return [
            b"".join((head, names, bytes(-len(names) % 8))),
            keys.view(np.uint8).data,
            rows.reshape(-1).data,
        ]

    @classmethod
    def unpack(cls, payload: bytes) -> Change:
        """Return the change of a payload; its arrays are read-only views of that.

        Raises:
            StateError: It is none, though its checksum was right: another version wrote it.
        """
        try:
            stream, number, at_us, position, n, width, dtype, n_table, n_source = _HEAD.unpack_from(
                payload
            )
            at = _HEAD.size
            table = payload[at : at + n_table].decode()
            source = payload[at + n_table : at + n_table + n_source].decode()
            at += n_table + n_source
            at += -at % 8
            keys = np.frombuffer(payload, np.int64, n, at)
            rows = np.frombuffer(payload, np.uint8, n * width, at + 8 * n).reshape(n, width)
            return cls(
                stream=stream,
                number=number,
                at_us=at_us,
                table=table,
                dtype=ROW_TYPES[dtype],
                keys=keys,
                rows=rows,
                source=source,
                position=position,
            )
        except (struct.error, ValueError, IndexError) as error:
            raise StateError(f"a record holds no change of rows: {error}") from error


def pack_note(note: Mapping[str, Any]) -> list[Buffer]:
    """Return the payload of a note."""
    return [json.dumps(note).encode()]


def unpack_note(payload: bytes) -> dict[str, Any]:
    """Return the note of a payload.

    Raises:
        StateError: It is none.
    """
    try:
        note: dict[str, Any] = json.loads(payload.rstrip(b"\0"))
    except ValueError as error:
        raise StateError(f"a record holds no note: {error}") from error
    return note
