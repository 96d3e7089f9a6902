"""A stored table, open: rows by key or by number, read where they lie in its files.

Files are memory-mapped: opening reads none of them, a row is read from disk when it is first looked
up, and processes that open the same table share its memory. ``warm`` reads all ahead of need.
Looking up is C's work (``table.h``); numpy does the same where there is no compiler, more slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels._native import Native
from kernels.errors import LookupFailed, StoreError
from kernels.store import _c
from kernels.store.delta import Delta
from kernels.store.files import map_segments, read_ahead
from kernels.store.header import Segment, TableHeader, read_header
from kernels.store.index import find_in_index, index_keys
from kernels.store.partition import dense_segment, rows_per_segment, segment_of
from kernels.store.rows import (
    RowType,
    check_encoded,
    decode_rows,
    encode_rows,
    row_bytes,
    type_code,
)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

# What table.h returns of a lookup.
FOUND: Final = -1
_OUTSIDE: Final = -2
_NOT_OPEN: Final = -3
_DAMAGED: Final = -4
# Read ahead, and then touched, in pieces of so many bytes.
_WARM_BYTES: Final = 16 << 20
_PAGE_BYTES: Final = 4096
# A new version may take the old one's place between reading the header and opening its files.
_OPEN_TRIES: Final = 5
_ARRAY_TYPES: Final[Mapping[str, RowType]] = {"<f4": "fp32", "<f2": "fp16"}
_NO_VERSION: Final = "0" * 64


class StoredTable:
    """A table whose rows stay where they are. Made by ``open`` or ``of_array``.

    Lookups may run in several threads at once; ``Delta`` says what an attached one asks for. Memory
    and files are given back when the last reference is gone.

    Attributes:
        header: What the table's folder says of it.
        segments: Which of its segments are open.
        path: Its folder; empty for an array.
    """

    def __init__(
        self,
        header: TableHeader,
        segments: range,
        rows: Mapping[int, U8],
        buckets: Mapping[int, NDArray[np.void]],
        *,
        path: Path = Path(),
        native: bool = True,
    ) -> None:
        self.header = header
        self.segments = segments
        self.path = path
        self.default_row: F32 = header.default_row
        self._rows = rows
        self._buckets = buckets
        self._default = encode_rows(self.default_row[np.newaxis], header.dtype)
        sizes = [segment.rows for segment in header.segments]
        self._first_rows = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._delta: Delta | None = None
        self._unseen = 0
        self._native = _c.store() if native else None
        if self._native is not None:
            self._make_c(self._native)

    @classmethod
    def open(cls, path: Path, segments: range | None = None, *, native: bool = True) -> StoredTable:
        """Open the table in a folder, or some of its segments; the others' files may be missing.

        Raises:
            StoreError: A file is missing or damaged; the message names it. Sizes are checked, and
                contents not (``files.check_table`` does that).
        """
        for _ in range(_OPEN_TRIES):
            header = read_header(path)
            chosen = _chosen(segments, header)
            try:
                return cls(
                    header, chosen, *map_segments(path, header, chosen), path=path, native=native
                )
            except StoreError:
                if read_header(path).version == header.version:
                    raise
        raise StoreError(f"{path}: is being replaced faster than it can be opened")

    @classmethod
    def of_array(
        cls,
        array: NDArray[Any],
        *,
        name: str = "",
        n_segments: int = 1,
        segments: range | None = None,
        native: bool = True,
    ) -> StoredTable:
        """Take an array as a dense table.

        Args:
            array: float32 or float16 ``[rows, dim]``, C-ordered, memory-mapped perhaps. Kept.
            name: Of the table.
            n_segments: That it is divided into.
            segments: Those that count as open; by default all.
            native: False to use numpy even where C is there.

        Raises:
            StoreError: The array is something else.
        """
        dtype = _ARRAY_TYPES.get(array.dtype.newbyteorder("=").str)
        if dtype is None or array.ndim != 2 or not array.flags.c_contiguous or not array.shape[1]:
            raise StoreError(
                f"table {name}: want C-ordered float32 or float16 [rows, dim], "
                f"got {array.dtype} {array.shape}"
            )
        n, dim = array.shape
        parts = [dense_segment(i, rows=n, n_segments=n_segments) for i in range(n_segments)]
        header = _dense_header(name, dtype, dim, [len(part) for part in parts])
        chosen = _chosen(segments, header)
        encoded = array.view(np.uint8).reshape(n, row_bytes(dtype, dim))
        rows = {i: encoded[parts[i].start : parts[i].stop] for i in chosen}
        return cls(header, chosen, rows, {}, native=native)

    @classmethod
    def of_rows(
        cls, dtype: RowType, dim: int, *, name: str = "", native: bool = True
    ) -> StoredTable:
        """Make a dense table of no rows, in memory, which ``refill`` gives others."""
        nothing = np.empty((0, row_bytes(dtype, dim)), np.uint8)
        header = _dense_header(name, dtype, dim, [0])
        return cls(header, range(1), {0: nothing}, {}, native=native)

    def refill(self, rows: U8) -> None:
        """Take other rows in place of all; only of a table that ``of_rows`` made.

        Args:
            rows: uint8 ``[n, row_bytes]``, C-ordered. Kept. No lookup may run meanwhile.
        """
        check_encoded("rows", rows, self.header.row_bytes)
        n = len(rows)
        header = self.header
        self.header = _dense_header(header.name, header.dtype, header.dim, [n])
        self._rows = {0: rows}
        self._first_rows = np.array([0, n])
        if self._native is not None:
            self._c_segments[0].rows = _address(rows) if n else self._c.default_row
            self._c_segments[0].n_rows = self._c.rows = n
            self._c.segment_rows = rows_per_segment(n, 1)

    @property
    def unseen(self) -> int:
        """How many keys were looked up so far that there is no row of: they took the default."""
        return self._unseen if self._native is None else int(self._c.unseen)

    @property
    def size_bytes(self) -> int:
        """Bytes of the open segments' files."""
        return sum(part.nbytes for parts in (self._rows, self._buckets) for part in parts.values())

    @property
    def native(self) -> Native | None:
        """The library that looks up; None where numpy does."""
        return self._native

    @property
    def pointer(self) -> Any:  # noqa: ANN401 - cffi is untyped
        """The C ``table``, which lives as long as this does; only where there is C."""
        return self._c

    def attach(self, delta: Delta | None) -> None:
        """Look into a delta before the files; None for no more. No lookup may run meanwhile.

        Raises:
            ValueError: The delta's rows are not like the table's, or only one of both uses C.
        """
        if delta is not None:
            mine, other = (self.header.dim, self.header.dtype), (delta.dim, delta.dtype)
            if mine != other:
                raise ValueError(f"table {self.header.name} of {mine}, but a delta of {other}")
            if delta.native != (self._native is not None):
                raise ValueError(f"table {self.header.name}: table and delta do not both use C")
        if self._native is not None:
            self._c.changes = self._native.ffi.NULL if delta is None else delta.pointer
        self._delta = delta

    def find(self, keys: I64) -> I64:
        """Return where each key's row is in the files, counted through all segments.

        A delta is not looked at. Of a dense table, keys are positions.

        Args:
            keys: int64 ``[n]``, C-ordered.

        Returns:
            int64 ``[n]``; -1 for unseen keys.

        Raises:
            LookupFailed: A key's segment is not open, or a row number is outside a dense table.
            StoreError: An index is damaged.
            ValueError: ``keys`` has another shape, dtype or memory layout.
        """
        _check_keys(keys)
        if self._native is None:
            return self._find_numpy(keys)
        positions = np.empty(len(keys), np.int64)
        ffi = self._native.ffi
        bad = ffi.new("int64_t *")
        result = self._native.lib.tb_find(
            self._c,
            ffi.from_buffer("int64_t[]", keys),
            len(keys),
            ffi.from_buffer("int64_t[]", positions),
            bad,
        )
        if result != FOUND:
            raise self.problem(result, int(keys[bad[0]]))
        return positions

    def fetch_encoded(self, keys: I64, out: U8 | None = None) -> U8:
        """Return keys' rows as they are stored; unseen keys' are the default row.

        Args:
            keys: int64 ``[n]``, C-ordered.
            out: uint8 ``[n, row_bytes]`` to write to, C-ordered. A new array by default.

        Raises:
            LookupFailed: A key's segment is not open, or a row number is outside a dense table.
            StoreError: An index is damaged.
            ValueError: An argument has another shape, dtype or memory layout.
        """
        shape = (len(keys), self.header.row_bytes)
        out = _made(out, shape, np.dtype(np.uint8))
        if self._native is None:
            _check_keys(keys)
            out[...] = self._fetch_numpy(keys)
        else:
            self._fetch(self._native, keys, out, None)
        return out

    def fetch(self, keys: I64, out: F32 | None = None) -> F32:
        """Return keys' rows as float32 ``[n, dim]``, to ``out`` if given. See ``fetch_encoded``."""
        out = _made(out, (len(keys), self.header.dim), np.dtype(np.float32))
        if self._native is None:
            _check_keys(keys)
            encoded = self._fetch_numpy(keys)
            decode_rows(encoded, self.header.dtype, self.header.dim, out, native=False)
        else:
            self._fetch(self._native, keys, None, out)
        return out

    def keys_of(self, segment: int) -> I64:
        """Return the keys of an open segment in the order of its rows."""
        if self.header.keyed:
            return index_keys(self._buckets[segment])
        first = int(self._first_rows[segment])
        return np.arange(first, first + self.header.segments[segment].rows)

    def rows_of(self, segment: int) -> U8:
        """Return the stored rows of an open segment: uint8 ``[rows, row_bytes]``, not copied."""
        return self._rows[segment]

    def warm(self, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Read all open segments, so that the first lookups need no disk.

        What does not fit into memory beside what else is in use is dropped again by the system.

        Args:
            progress: Called with the bytes read so far and those of all, at the start, after
                each 16 MiB, and at the end. An exception of it ends the reading.
        """
        total = self.size_bytes
        done = 0
        progress(done, total)
        for i in self.segments:
            for part in (self._buckets.get(i), self._rows.get(i)):
                flat = np.empty(0, np.uint8) if part is None else part.reshape(-1).view(np.uint8)
                for start in range(0, len(flat), _WARM_BYTES):
                    piece = flat[start : start + _WARM_BYTES]
                    read_ahead(piece)
                    int(piece[::_PAGE_BYTES].sum()) + int(piece[-1])
                    done += len(piece)
                    progress(done, total)

    def problem(self, result: int, key: int) -> Exception:
        """Return the error for what C said of a key."""
        name = self.header.name
        if result == _OUTSIDE:
            return LookupFailed(f"row {key} is outside table {name} of {self.header.rows} rows")
        segment = int(self._segment_of(np.array([key]))[0])
        if result == _NOT_OPEN:
            return LookupFailed(f"key {key} is in segment {segment} of table {name}, not open here")
        file = self.path / self.header.index_file(segment)
        return StoreError(f"{file} is damaged: it sends key {key} to a row that is not there")

    def _fetch(self, native: Native, keys: I64, encoded: U8 | None, decoded: F32 | None) -> None:
        _check_keys(keys)
        ffi = native.ffi
        bad = ffi.new("int64_t *")
        result = native.lib.tb_fetch(
            self._c,
            ffi.from_buffer("int64_t[]", keys),
            len(keys),
            ffi.NULL if encoded is None else ffi.from_buffer("uint8_t[]", encoded),
            ffi.NULL if decoded is None else ffi.from_buffer("float[]", decoded),
            bad,
        )
        if result != FOUND:
            raise self.problem(result, int(keys[bad[0]]))

    def _segment_of(self, keys: I64) -> NDArray[np.int32]:
        header = self.header
        try:
            return segment_of(
                keys, n_segments=header.n_segments, rows=header.rows, keyed=header.keyed
            )
        except LookupFailed as error:
            raise LookupFailed(f"table {header.name}: {error}") from error

    def _find_numpy(self, keys: I64) -> I64:
        segments = self._segment_of(keys)
        positions = np.empty(len(keys), np.int64)
        for segment in np.unique(segments):
            at = np.flatnonzero(segments == segment)
            if segment not in self.segments:
                raise self.problem(_NOT_OPEN, int(keys[at[0]]))
            if self.header.keyed:
                part = self.header.segments[segment]
                try:
                    found = find_in_index(self._buckets[segment], part.home_buckets, keys[at])
                except IndexError:
                    raise self.problem(_DAMAGED, int(keys[at[0]])) from None
                if len(bad := np.flatnonzero(found >= part.rows)):
                    raise self.problem(_DAMAGED, int(keys[at[bad[0]]]))
                positions[at] = np.where(found < 0, -1, found + self._first_rows[segment])
            else:
                positions[at] = keys[at]
        return positions

    def _fetch_numpy(self, keys: I64) -> U8:
        if not self.header.keyed and len(self._rows) == self.header.n_segments == 1:
            self._segment_of(keys)  # checks them
            if self._delta is None:
                return self._rows[0][keys]
        positions = self._find_numpy(keys)
        out = np.repeat(self._default, len(keys), axis=0)
        changed = np.full(len(keys), -1) if self._delta is None else self._delta.find(keys)
        self._unseen += int(((positions < 0) & (changed < 0)).sum())
        for segment in self.segments:
            first, end = self._first_rows[segment : segment + 2]
            at = np.flatnonzero((positions >= first) & (positions < end) & (changed < 0))
            out[at] = self._rows[segment][positions[at] - first]
        for i in np.flatnonzero(changed >= 0):
            assert self._delta is not None
            out[i] = self._delta.copy(int(changed[i]), 1)[1][0]
        return out

    def _make_c(self, native: Native) -> None:
        header, ffi = self.header, native.ffi
        default = ffi.from_buffer("uint8_t[]", self._default)
        nowhere = int(ffi.cast("uintptr_t", default))  # of segments that are open and have no rows
        self._c_segments = ffi.new("segment[]", header.n_segments)
        for i in self.segments:
            segment, c = header.segments[i], self._c_segments[i]
            c.rows = _address(self._rows[i]) if segment.rows else nowhere
            c.buckets = _address(self._buckets[i]) if header.keyed else 0
            c.n_rows, c.first_row = segment.rows, int(self._first_rows[i])
            c.home_buckets, c.n_buckets = segment.home_buckets, segment.buckets
        self._c = ffi.new("table *")
        self._c.segments = self._c_segments
        self._c.n_segments = header.n_segments
        self._c.segment_rows = (
            0 if header.keyed else rows_per_segment(header.rows, header.n_segments)
        )
        self._c.rows, self._c.dim = header.rows, header.dim
        self._c.row_bytes, self._c.dtype = header.row_bytes, type_code(header.dtype)
        self._c.default_row = nowhere


def _dense_header(name: str, dtype: RowType, dim: int, sizes: list[int]) -> TableHeader:
    """Return the header of a dense table that lies in no files, by its segments' sizes."""
    return TableHeader(
        name=name,
        version=_NO_VERSION,
        rows=sum(sizes),
        dim=dim,
        dtype=dtype,
        keyed=False,
        segments=tuple(
            Segment(rows=n, home_buckets=0, buckets=0, rows_sha256="", index_sha256="")
            for n in sizes
        ),
    )


def _chosen(segments: range | None, header: TableHeader) -> range:
    if segments is None:
        return range(header.n_segments)
    if len(segments) and (segments[0] < 0 or segments[-1] >= header.n_segments):
        raise StoreError(
            f"table {header.name} has {header.n_segments} segments, and not all of {segments}"
        )
    return segments


def _made(out: NDArray[Any] | None, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    if out is None:
        return np.empty(shape, dtype)
    if out.dtype != dtype or out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(f"out: want C-ordered {dtype} {shape}, got {out.dtype} {out.shape}")
    return out


def _check_keys(keys: NDArray[Any]) -> None:
    if keys.dtype != np.int64 or keys.ndim != 1 or not keys.flags.c_contiguous:
        raise ValueError(f"keys: want C-ordered int64 [n], got {keys.dtype} {keys.shape}")


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
