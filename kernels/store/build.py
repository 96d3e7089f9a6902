"""Building tables in bounded memory.

Dense rows are written as they come. Rows with keys come in any order: each is first appended to a
file of its segment, and then the segments are built one at a time: their keys are sorted into the
index's order, and their rows gathered in that order. What is in memory is a batch or one segment's
keys (some 80 bytes each), so a table of any size is built with enough segments.

Everything is written beside the version in use, and the header replaced at the end, in one step: a
writer that stops at any moment leaves the old version whole. What it leaves behind is removed by
the next one. A lock keeps two writers apart. Those who have the old version open keep it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.errors import StoreError
from kernels.store.header import (
    HEADER_NAME,
    MAX_SEGMENT_ROWS,
    Segment,
    TableHeader,
    header_text,
)
from kernels.store.index import build_index
from kernels.store.partition import check_n_segments, dense_segment, segment_of
from kernels.store.rows import RowType, check_encoded, encode_rows, row_bytes

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

# Rows are collected up to so many bytes before they are divided among segments' files, and are
# written in pieces of so many.
_BATCH_BYTES: Final = 32 << 20
_WRITE_BYTES: Final = 4 << 20
_BUILDING: Final = ".building-"
# Names in a table's folder: what a writer has begun, versions, and the header.
_OURS: Final = re.compile(rf"{re.escape(_BUILDING)}.*|[0-9a-f]{{16}}|{re.escape(HEADER_NAME)}")

Progress = Callable[[str, int, int], object]


def no_progress(step: str, done: int, total: int) -> None:
    """Show nothing. What is called instead gets a step's name, rows done, and rows of all."""


def build_dense(
    path: Path,
    blocks: Iterable[NDArray[Any]],
    *,
    rows: int,
    dim: int,
    dtype: RowType,
    name: str = "",
    n_segments: int = 1,
    progress: Progress = no_progress,
) -> TableHeader:
    """Write a table of dense rows, and make it the one in its folder.

    Args:
        path: The table's folder, made if need be.
        blocks: Rows in order: float32 ``[n, dim]`` each, or already stored, uint8
            ``[n, row_bytes]``. ``n`` may differ.
        rows: Of all blocks.
        dim: Numbers a row.
        dtype: How to store them.
        name: Of the table; by default its folder's.
        n_segments: To divide it into.
        progress: Called now and then.

    Raises:
        StoreError: There are more or fewer rows, or another writer is at work.
        ValueError: Rows are not as wide as said, or cannot be stored so.
    """
    check_n_segments(n_segments)
    width = row_bytes(dtype, dim)
    with _staging(path) as folder:
        pieces = _pieces(blocks, dtype, dim)
        pending = np.empty((0, width), np.uint8)
        segments = []
        for i in range(n_segments):
            left = len(dense_segment(i, rows=rows, n_segments=n_segments))
            with _Written(folder / f"{i:06}.rows") as file:
                segment_rows = left
                while left:
                    if not len(pending):
                        pending = next(pieces, pending)
                    if not len(pending):
                        raise StoreError(f"{path}: the source has fewer than {rows} rows")
                    file.write(pending[:left])
                    left, pending = left - len(pending[:left]), pending[left:]
            progress("writing rows", min((i + 1) * segment_rows, rows), rows)
            segments.append(_segment(segment_rows, file.sha256))
        if len(pending) or len(next(pieces, pending)):
            raise StoreError(f"{path}: the source has more than {rows} rows")
        return _commit(path, folder, name, dim, dtype, keyed=False, default=(), segments=segments)


def build_keyed(
    path: Path,
    batches: Iterable[tuple[I64, NDArray[Any]]],
    *,
    dim: int,
    dtype: RowType,
    name: str = "",
    n_segments: int = 1,
    default: F32 | None = None,
    progress: Progress = no_progress,
) -> TableHeader:
    """Write a table of rows with keys, and make it the one in its folder.

    Needs as much disk again as the table takes, for rows on their way to their segments.

    Args:
        path: The table's folder, made if need be.
        batches: Keys, int64 ``[n]``, and their rows, as in ``build_dense``; in any order and of
            any size. Where a key comes several times, its last row counts.
        dim: Numbers a row.
        dtype: How to store them.
        name: Of the table; by default its folder's.
        n_segments: To divide it into. A segment's index is built in memory.
        default: float32 ``[dim]``: the row of keys that are not there; zeros by default.
        progress: Called now and then.

    Raises:
        StoreError: A segment has more than 2**32 rows, or another writer is at work.
        ValueError: Keys and rows are not as said, or rows cannot be stored so.
    """
    check_n_segments(n_segments)
    width = row_bytes(dtype, dim)
    if default is not None and (default.shape != (dim,) or not np.isfinite(default).all()):
        raise ValueError(f"default: want {dim} finite numbers")
    with _staging(path) as folder:
        sizes = np.zeros(n_segments, np.int64)
        for keys, rows in _batches(batches, dtype, dim):
            sizes += _spill(folder, keys, rows, n_segments)
            progress("dividing rows", int(sizes.sum()), 0)
        segments = []
        for i in range(n_segments):
            if sizes[i] > MAX_SEGMENT_ROWS:
                raise StoreError(f"{path}: segment {i} has {sizes[i]} rows: take more segments")
            segments.append(_build_segment(folder, i, width))
            progress("building segments", int(sizes[: i + 1].sum()), int(sizes.sum()))
        numbers = () if default is None or not default.any() else tuple(map(float, default))
        return _commit(
            path, folder, name, dim, dtype, keyed=True, default=numbers, segments=segments
        )


def _spill(folder: Path, keys: I64, rows: U8, n_segments: int) -> I64:
    """Append keys and rows to their segments' files; return how many each got."""
    segments = segment_of(keys, n_segments=n_segments, rows=0, keyed=True)
    order = np.argsort(segments, kind="stable")
    keys, rows = keys[order], rows[order]
    sizes = np.bincount(segments, minlength=n_segments)
    ends = np.cumsum(sizes)
    for i in np.flatnonzero(sizes):
        part = slice(ends[i] - sizes[i], ends[i])
        for data, kind in ((keys, "keys"), (rows, "spill")):
            # Opened each time, since there may be more segments than files that can be open.
            with (folder / f"{i:06}.{kind}").open("ab") as file:
                file.write(data[part].data)
    return sizes


def _build_segment(folder: Path, i: int, width: int) -> Segment:
    """Make a segment's files of what was appended for it, which is removed."""
    keys_file, spill_file = folder / f"{i:06}.keys", folder / f"{i:06}.spill"
    keys = np.fromfile(keys_file, np.int64) if keys_file.exists() else np.empty(0, np.int64)
    built = build_index(keys)
    with _Written(folder / f"{i:06}.index") as index:
        index.write(built.buckets)
    with _Written(folder / f"{i:06}.rows") as file:
        if len(keys):
            spilled: U8 = np.memmap(spill_file, np.uint8, "r", shape=(len(keys), width))
            for start in range(0, len(built.order), max(1, _WRITE_BYTES // width)):
                file.write(spilled[built.order[start : start + max(1, _WRITE_BYTES // width)]])
    keys_file.unlink(missing_ok=True)
    spill_file.unlink(missing_ok=True)
    return _segment(
        len(built.order), file.sha256, built.home_buckets, len(built.buckets), index.sha256
    )


def _segment(
    rows: int, rows_sha256: str, home_buckets: int = 0, buckets: int = 0, index_sha256: str = ""
) -> Segment:
    return Segment(
        rows=rows,
        home_buckets=home_buckets,
        buckets=buckets,
        rows_sha256=rows_sha256,
        index_sha256=index_sha256,
    )


class _Written:
    """A new file, summed as it is written, and on disk when it is closed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._sum = hashlib.sha256()

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def write(self, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._sum.update(data)
        while len(data):  # a raw write may write less
            data = data[self._file.write(data) :]

    @property
    def sha256(self) -> str:
        return self._sum.hexdigest()


def _pieces(blocks: Iterable[NDArray[Any]], dtype: RowType, dim: int) -> Iterator[U8]:
    """Give all rows as they are to be stored, in pieces that are neither empty nor large."""
    size = max(1, _BATCH_BYTES // (4 * dim))
    for block in blocks:
        for start in range(0, len(block), size):
            yield _stored(block[start : start + size], dtype, dim)


def _batches(
    batches: Iterable[tuple[I64, NDArray[Any]]], dtype: RowType, dim: int
) -> Iterator[tuple[I64, U8]]:
    """Give all keys and rows as they are to be stored, in batches neither large nor small."""
    size = max(1, _BATCH_BYTES // (4 * dim))
    some_keys: list[I64] = []
    some_rows: list[U8] = []
    waiting = 0
    for keys, rows in batches:
        if keys.dtype != np.int64 or keys.ndim != 1 or len(keys) != len(rows):
            raise ValueError(
                f"keys: want int64 [{len(rows)}], one a row; got {keys.dtype} {keys.shape}"
            )
        for start in range(0, len(keys), size):
            # Copies: whoever gives the batches may use their memory again.
            some_keys.append(keys[start : start + size].copy())
            some_rows.append(_stored(rows[start : start + size], dtype, dim).copy())
            waiting += len(some_keys[-1])
            if waiting >= size:
                yield np.concatenate(some_keys), np.concatenate(some_rows)
                some_keys, some_rows, waiting = [], [], 0
    if waiting:
        yield np.concatenate(some_keys), np.concatenate(some_rows)


def _stored(rows: NDArray[Any], dtype: RowType, dim: int) -> U8:
    if rows.dtype == np.uint8:
        rows = np.ascontiguousarray(rows)
        check_encoded("rows", rows, row_bytes(dtype, dim))
        return rows
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"rows: want [n, {dim}], got {rows.shape}")
    return encode_rows(rows, dtype)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Give a new folder in a table's own, which is locked meanwhile.

    Raises:
        StoreError: Another writer is at work, or the folder is of something else.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _opened(path) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"{path}: another writer is at work") from error
        for entry in path.iterdir():
            if not _OURS.fullmatch(entry.name):
                raise StoreError(f"{path}: holds {entry.name}, so it is no table's folder")
            if entry.name.startswith(_BUILDING):  # of a writer that stopped
                _remove(entry)
        folder = path / f"{_BUILDING}{os.getpid()}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _commit(
    path: Path,
    folder: Path,
    name: str,
    dim: int,
    dtype: RowType,
    *,
    keyed: bool,
    default: tuple[float, ...],
    segments: list[Segment],
) -> TableHeader:
    """Make what is in the staging folder the table's version in use, and remove the old one."""
    header = TableHeader(
        name=name or path.resolve().name,
        version="",
        rows=sum(segment.rows for segment in segments),
        dim=dim,
        dtype=dtype,
        keyed=keyed,
        default=default,
        segments=tuple(segments),
    )
    version = hashlib.sha256(header_text(header).encode()).hexdigest()
    header = attrs.evolve(header, version=version)
    place = path / version[:16]
    text = header_text(header)
    if _text(path / HEADER_NAME) == text:  # the same again: perhaps a file of it was damaged
        for fresh in folder.iterdir():
            os.replace(fresh, place / fresh.name)
        return header
    if place.exists():  # of a writer that stopped just before its end
        shutil.rmtree(place)
    folder.rename(place)
    written = path / f"{_BUILDING}{HEADER_NAME}"
    with written.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(written, path / HEADER_NAME)
    with _opened(path) as handle:
        os.fsync(handle)
    for entry in path.iterdir():
        if entry not in (place, path / HEADER_NAME):
            _remove(entry)
    return header


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _remove(entry: Path) -> None:
    if entry.is_dir():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Give a handle of a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
