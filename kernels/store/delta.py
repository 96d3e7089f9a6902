"""Rows that change while a table is served: a hash index and its rows, in memory.

A table's files are never written. What an update brings goes into a *delta*, which the table looks
at first once it is attached (``StoredTable.attach``). Keys are those of the table: row numbers
where it is dense.

The index has 256 parts that grow one by one, and rows never move, so that a put costs at most the
rehashing of one part: no pause grows with the size of the delta by more than 1/256 of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.store import _c
from kernels.store.rows import RowType, check_encoded, row_bytes

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

# Rows in a piece of a snapshot.
_PIECE: Final = 65536


class Delta:
    """Rows by key, in C's memory; in numpy's where there is no compiler, which is slower.

    Threads: any number may look up, directly or through tables and pooled lookups, while none puts.
    A put must have the delta to itself. Neither is checked.

    Args:
        dim: Numbers a row.
        dtype: How rows are stored.
        native: False to use numpy even where C is there.
    """

    def __init__(self, dim: int, dtype: RowType, *, native: bool = True) -> None:
        self.dim = dim
        self.dtype: RowType = dtype
        self.row_bytes = row_bytes(dtype, dim)
        self._n = 0
        self._native = _c.store() if native else None
        # Of numpy's way: where each key's row is; keys and rows, of which the first n are in use.
        self._row_of: dict[int, int] = {}
        self._keys = np.empty(0, np.int64)
        self._rows = np.empty((0, self.row_bytes), np.uint8)
        if self._native is not None:
            made = self._native.lib.tb_delta_new(self.row_bytes)
            if made == self._native.ffi.NULL:
                raise MemoryError("delta")
            self._c = self._native.ffi.gc(made, self._native.lib.tb_delta_free)

    def __len__(self) -> int:
        return self._n

    @property
    def native(self) -> bool:
        """Whether it is C's."""
        return self._native is not None

    @property
    def pointer(self) -> Any:  # noqa: ANN401 - cffi is untyped
        """The C structure, which lives as long as this does; only where it is ``native``."""
        return self._c

    @property
    def size_bytes(self) -> int:
        """Bytes of memory in use."""
        if self._native is not None:
            return int(self._native.lib.tb_delta_bytes(self._c))
        return self._keys.nbytes + self._rows.nbytes

    def put(self, keys: I64, encoded: U8) -> None:
        """Insert rows, or overwrite them; of equal keys in a batch, the last counts.

        Args:
            keys: int64 ``[n]``, C-ordered.
            encoded: uint8 ``[n, row_bytes]``, C-ordered, as ``encode_rows`` gives them.

        Raises:
            ValueError: An argument has another shape, dtype or memory layout.
            MemoryError: There is no memory, or the delta has 2**32 rows. Some rows were put then.
        """
        _check_keys(keys)
        check_encoded("encoded", encoded, self.row_bytes)
        if len(keys) != len(encoded):
            raise ValueError(f"{len(keys)} keys, but {len(encoded)} rows")
        if self._native is None:
            self._put_numpy(keys, encoded)
            return
        ffi, lib = self._native.ffi, self._native.lib
        put = lib.tb_delta_put(
            self._c,
            ffi.from_buffer("int64_t[]", keys),
            ffi.from_buffer("uint8_t[]", encoded),
            len(keys),
        )
        self._n = int(lib.tb_delta_len(self._c))
        if put != len(keys):
            raise MemoryError(f"delta of {self._n} rows")

    def find(self, keys: I64) -> I64:
        """Return the number of each key's row, in the order in which keys came; -1 for none.

        Raises:
            ValueError: ``keys`` is not C-ordered int64 ``[n]``.
        """
        _check_keys(keys)
        rows = np.empty(len(keys), np.int64)
        if self._native is None:
            rows[:] = [self._row_of.get(key, -1) for key in keys.tolist()]
        else:
            ffi = self._native.ffi
            self._native.lib.tb_delta_find(
                self._c,
                ffi.from_buffer("int64_t[]", keys),
                len(keys),
                ffi.from_buffer("int64_t[]", rows),
            )
        return rows

    def copy(self, first: int, n: int) -> tuple[I64, U8]:
        """Return keys, int64 ``[n]``, and rows, uint8 ``[n, row_bytes]``, from row ``first`` on.

        Raises:
            IndexError: There are not so many rows.
        """
        if not 0 <= first <= first + n <= self._n:
            raise IndexError(f"rows {first} to {first + n} of {self._n}")
        if self._native is None:
            return self._keys[first : first + n].copy(), self._rows[first : first + n].copy()
        keys, rows = np.empty(n, np.int64), np.empty((n, self.row_bytes), np.uint8)
        ffi = self._native.ffi
        self._native.lib.tb_delta_copy(
            self._c,
            first,
            n,
            ffi.from_buffer("int64_t[]", keys),
            ffi.from_buffer("uint8_t[]", rows),
        )
        return keys, rows

    def items(self) -> Iterator[tuple[I64, U8]]:
        """Give all keys and rows, in pieces: copies, each as of when it is given.

        Rows put meanwhile are given too if they are new; what is overwritten may come as it was. A
        snapshot of one moment needs that nothing is put until the last piece was given.
        """
        first = 0
        while first < self._n:
            n = min(_PIECE, self._n - first)
            yield self.copy(first, n)
            first += n

    def _put_numpy(self, keys: I64, encoded: U8) -> None:
        rows = np.array(
            [self._row_of.setdefault(key, len(self._row_of)) for key in keys.tolist()], np.int64
        )
        self._n = len(self._row_of)
        if self._n > len(self._keys):
            room = max(2 * len(self._keys), self._n)
            self._keys = np.resize(self._keys, room)
            grown = np.empty((room, self.row_bytes), np.uint8)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._keys[rows] = keys
        self._rows[rows] = encoded  # of equal numbers numpy stores the last


def _check_keys(keys: NDArray[Any]) -> None:
    if keys.dtype != np.int64 or keys.ndim != 1 or not keys.flags.c_contiguous:
        raise ValueError(f"keys: want C-ordered int64 [n], got {keys.dtype} {keys.shape}")
