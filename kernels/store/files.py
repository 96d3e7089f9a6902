"""The files of a table's segments: mapping, reading ahead, checking their sums."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.errors import StoreError
from kernels.store.header import BUCKET_BYTES, TableHeader, read_header
from kernels.store.index import BUCKET

U8 = NDArray[np.uint8]

_READ_BYTES: Final = 4 << 20


def map_segments(
    path: Path, header: TableHeader, segments: range
) -> tuple[dict[int, U8], dict[int, NDArray[np.void]]]:
    """Map segments' rows, uint8 ``[rows, row_bytes]``, and buckets, ``BUCKET [buckets]``.

    Raises:
        StoreError: A file is missing, cannot be read, or has another size.
    """
    rows, buckets = {}, {}
    for i in segments:
        segment = header.segments[i]
        data = _map(path / header.rows_file(i), segment.rows * header.row_bytes)
        rows[i] = data.reshape(segment.rows, header.row_bytes)
        if header.keyed:
            data = _map(path / header.index_file(i), segment.buckets * BUCKET_BYTES)
            buckets[i] = data.view(BUCKET)
    return rows, buckets


def _map(file: Path, size_bytes: int) -> U8:
    """Map a file: uint8 ``[size_bytes]``, read-only."""
    try:
        with file.open("rb") as opened:
            there = opened.seek(0, 2)
            if there != size_bytes:
                raise StoreError(f"{file} is damaged: {there} bytes, {size_bytes} are wanted")
            if not size_bytes:  # which cannot be mapped
                return np.empty(0, np.uint8)
            return np.frombuffer(
                mmap.mmap(opened.fileno(), size_bytes, access=mmap.ACCESS_READ), np.uint8
            )
    except FileNotFoundError as error:
        raise StoreError(f"{file} is missing") from error
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error}") from error


def read_ahead(piece: NDArray[Any]) -> None:
    """Ask the system to read a piece of a mapped file from disk: otherwise that is page by page."""
    owner: Any = piece
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
        whole = np.frombuffer(owner, np.uint8)
        start = _address(piece) - _address(whole)
        page = start - start % mmap.PAGESIZE
        owner.madvise(mmap.MADV_WILLNEED, page, start - page + piece.nbytes)


def check_table(path: Path) -> TableHeader:
    """Read every file of the table in a folder, and compare it with what the header says.

    Raises:
        StoreError: A file is missing or damaged; the message names it.
    """
    header = read_header(path)
    for i, segment in enumerate(header.segments):
        _check_sum(path / header.rows_file(i), segment.rows_sha256)
        if header.keyed:
            _check_sum(path / header.index_file(i), segment.index_sha256)
    return header


def _check_sum(file: Path, want: str) -> None:
    sum_ = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while data := opened.read(_READ_BYTES):
                sum_.update(data)
    except FileNotFoundError as error:
        raise StoreError(f"{file} is missing") from error
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
    if sum_.hexdigest() != want:
        raise StoreError(f"{file} is damaged: its SHA-256 is not the header's")


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
