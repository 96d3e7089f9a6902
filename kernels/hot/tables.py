"""The hot rows of several tables, in one call for all: most tables have few keys of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.hot.rows import HotRows, NativeRows

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


class HotSet:
    """The hot rows of some tables, which keys are given for table by table.

    The keys of table ``t`` are ``keys[splits[t]:splits[t + 1]]``; rows lie end to end in the order
    of their keys, each of as many bytes as its table's have.

    Args:
        tables: In order. They may be used on their own as well.
    """

    def __init__(self, tables: Sequence[HotRows]) -> None:
        self.tables = tuple(tables)
        self.row_bytes: I64 = np.array([each.sizes.row_bytes for each in tables], np.int64)
        self._native: Any = None
        stores = [each.store for each in tables]
        natives = [store for store in stores if isinstance(store, NativeRows)]
        if natives and len(natives) == len(stores):
            self._native = natives[0].native
            self._states = self._native.ffi.new("hot *[]", [store.state for store in natives])

    def take(self, keys: I64, splits: I64, now: float, out: U8) -> I64:
        """As ``HotRows.take``; ``out`` is uint8 ``[n_bytes]``.

        Returns:
            int64, positions in ``keys`` of those that missed, ascending.

        Raises:
            ValueError: An argument does not fit the others.
        """
        self._check(keys, splits, out)
        if self._native is None:
            return self._take_one_by_one(keys, splits, now, out)
        from_buffer = self._native.ffi.from_buffer
        misses = np.empty(len(keys), np.int64)
        n_misses = self._native.lib.tb_hot_take_all(
            self._states,
            len(self.tables),
            from_buffer("int64_t[]", keys),
            from_buffer("int64_t[]", splits),
            now,
            from_buffer("uint8_t[]", out, require_writable=True),
            from_buffer("int64_t[]", misses),
        )
        return misses[:n_misses]

    def admit(
        self, keys: I64, splits: I64, rows: U8, kept: NDArray[np.bool_], read_at: float
    ) -> None:
        """As ``HotRows.admit``, of those keys that ``kept``, bool ``[n]``, says.

        Raises:
            ValueError: An argument does not fit the others.
        """
        self._check(keys, splits, rows)
        if kept.dtype != np.bool_ or kept.shape != keys.shape or not kept.flags.c_contiguous:
            raise ValueError(f"kept: want bool {keys.shape}, got {kept.dtype} {kept.shape}")
        if self._native is None:
            self._admit_one_by_one(keys, splits, rows, kept, read_at)
            return
        from_buffer = self._native.ffi.from_buffer
        self._native.lib.tb_hot_admit_all(
            self._states,
            len(self.tables),
            from_buffer("int64_t[]", keys),
            from_buffer("int64_t[]", splits),
            from_buffer("uint8_t[]", rows),
            from_buffer("uint8_t[]", kept),
            read_at,
        )

    def _check(self, keys: I64, splits: I64, rows: U8) -> None:
        if keys.dtype != np.int64 or keys.ndim != 1 or not keys.flags.c_contiguous:
            raise ValueError(f"keys: want int64 [n], got {keys.dtype} {keys.shape}")
        counts = np.diff(splits)
        if (
            splits.dtype != np.int64
            or splits.shape != (len(self.tables) + 1,)
            or not splits.flags.c_contiguous
            or splits[0] != 0
            or splits[-1] != len(keys)
            or counts.min(initial=0) < 0
        ):
            raise ValueError(
                f"splits: want those of {len(keys)} keys of {len(self.tables)} tables, got {splits}"
            )
        want = (int(counts @ self.row_bytes),)
        if rows.dtype != np.uint8 or rows.shape != want or not rows.flags.c_contiguous:
            raise ValueError(f"rows: want C-ordered uint8 {want}, got {rows.dtype} {rows.shape}")

    def _take_one_by_one(self, keys: I64, splits: I64, now: float, out: U8) -> I64:
        misses = [np.empty(0, np.int64)]
        at = 0
        for table, first, last in zip(self.tables, splits[:-1], splits[1:], strict=True):
            n, size = int(last - first), table.sizes.row_bytes
            of_table = out[at : at + n * size].reshape(n, size)
            misses.append(table.take(keys[first:last], now, of_table) + first)
            at += n * size
        return np.concatenate(misses)

    def _admit_one_by_one(
        self, keys: I64, splits: I64, rows: U8, kept: NDArray[np.bool_], read_at: float
    ) -> None:
        at = 0
        for table, first, last in zip(self.tables, splits[:-1], splits[1:], strict=True):
            n, size = int(last - first), table.sizes.row_bytes
            mine = kept[first:last]
            of_table = rows[at : at + n * size].reshape(n, size)
            table.admit(keys[first:last][mine], of_table[mine], read_at)
            at += n * size
