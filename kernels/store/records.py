"""Records: what logs and snapshots of updates are made of. Bytes to records and back.

A record is a header of 32 bytes and a payload, both little-endian, padded with zeros to a multiple
of eight so that arrays in payloads can be aligned:

    ===== ==== =====================================================================
    bytes type content
    ===== ==== =====================================================================
    0-3   4s   ``TBR`` and the version of the format, 1
    4-7   u4   kind of the payload
    8-11  u4   size of the payload with its padding, in bytes
    12-15 u4   CRC-32 of the rest of the header and of the payload
    16-23 u8   number: never less than that of the record before
    24-31 u8   how many bytes of this file were on the device when this was written
    ===== ==== =====================================================================

Where a process or a machine ends, the last record of a file may be torn. A torn one ends the file,
as far as a reader is concerned. It was never acknowledged, for nothing is before its file is
synced. Damage of what was synced looks the same at first; but where a later record is whole and
says that the bad place was on the device when it was written, that is damage and not a tear, and
nothing may be cut (``torn_or_damaged``). Of the very last record alone, nothing tells which it is.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from kernels.errors import StateError
from kernels.store.disk import Buffer

MAGIC: Final = b"TBR\x01"
HEADER_BYTES: Final = 32
PAYLOAD_MOST: Final = 256 << 20
"""More than any message may carry; bounds what a damaged size can make a reader allocate."""

_HEAD: Final = struct.Struct("<4sII")
_CRC: Final = struct.Struct("<I")
_TAIL: Final = struct.Struct("<QQ")


@attrs.frozen(eq=False)
class Record:
    """A whole record of a file.

    Attributes:
        payload: With its padding.
        start: Where it starts in its file; ``end`` is where the next one does.
    """

    kind: int
    number: int
    payload: bytes
    start: int
    end: int
    synced: int


def pack_record(
    kind: int, number: int, payload: Sequence[Buffer], synced: int = 0
) -> tuple[list[Buffer], int]:
    """Return the buffers of a record, and its size in bytes.

    Args:
        kind: Of the payload.
        number: Of the record.
        payload: Its bytes, in pieces that are not copied.
        synced: How many bytes of the file it goes to are on the device.

    Raises:
        ValueError: The payload is too large.
    """
    pieces = [memoryview(piece).cast("B") for piece in payload]
    size = sum(map(len, pieces))
    if size > PAYLOAD_MOST:
        raise ValueError(f"a payload of {size} bytes; at most {PAYLOAD_MOST}")
    padding = bytes(-size % 8)
    head = _HEAD.pack(MAGIC, kind, size + len(padding))
    tail = _TAIL.pack(number, synced)
    crc = zlib.crc32(tail, zlib.crc32(head))
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    crc = zlib.crc32(padding, crc)
    total = HEADER_BYTES + size + len(padding)
    return [b"".join((head, _CRC.pack(crc), tail)), *pieces, padding], total


def read_records(path: Path, *, end: int | None = None) -> Iterator[Record]:
    """Yield the records of a file up to the first that is not whole, one in memory at a time.

    Args:
        path: The file.
        end: Read only so many bytes of it.

    Raises:
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        at, size = 0, os.fstat(fd).st_size
        end = size if end is None else min(size, end)
        while (record := _read_record(fd, at, end)) is not None:
            yield record
            at = record.end
    finally:
        os.close(fd)


def torn_or_damaged(path: Path, at: int) -> None:
    """Look at what follows the last whole record of a file, which ends at ``at``.

    Raises:
        StateError: A later record shows that what lies there was on the device once: it is damaged.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        rest = os.pread(fd, size - at, at)
        found = rest.find(MAGIC, 1)
        while found >= 0:
            later = _read_record(fd, at + found, size)
            if later is not None and later.synced > at:
                raise StateError(
                    f"{path}: damaged at byte {at}: a record there is not whole, though update "
                    f"{later.number} after it says that it was. Restore the file, or remove this "
                    "folder and what it holds"
                )
            found = rest.find(MAGIC, found + 1)
    finally:
        os.close(fd)


def _read_record(fd: int, at: int, end: int) -> Record | None:
    """Return the record at an offset, or None if there is no whole one before ``end``."""
    if end - at < HEADER_BYTES:
        return None
    header = os.pread(fd, HEADER_BYTES, at)
    if len(header) < HEADER_BYTES:
        return None
    magic, kind, size = _HEAD.unpack_from(header)
    if magic != MAGIC or size > PAYLOAD_MOST + 8 or size > end - at - HEADER_BYTES:
        return None
    (crc,) = _CRC.unpack_from(header, 12)
    payload = os.pread(fd, size, at + HEADER_BYTES)
    found = zlib.crc32(payload, zlib.crc32(header[16:], zlib.crc32(header[:12])))
    if len(payload) != size or found != crc:
        return None
    number, synced = _TAIL.unpack_from(header, 16)
    return Record(kind, number, payload, at, at + HEADER_BYTES + size, synced)
