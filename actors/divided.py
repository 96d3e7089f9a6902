"""Which group of shards has each key, of keys of several tables at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Table
from kernels.errors import LookupFailed
from kernels.store.partition import mix64, rows_per_segment

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


class Division:
    """How some tables are divided over groups.

    Args:
        tables: Each with the group that has each of its segments, int32 ``[segments]``.
    """

    def __init__(self, tables: Sequence[tuple[Table, I32]]) -> None:
        described = [table for table, _ in tables]
        self._names = [table.name for table in described]
        self._keyed = np.array([table.keyed for table in described], np.bool_)
        self._rows = np.array([table.rows for table in described], np.int64)
        self._segments = np.array([table.segments for table in described], np.uint64)
        self._rows_per_segment = np.array(
            [rows_per_segment(table.rows, table.segments) for table in described], np.int64
        )
        self._groups = np.concatenate([np.empty(0, np.int32), *(groups for _, groups in tables)])
        counts = [len(groups) for _, groups in tables]
        self._first = np.cumsum([0, *counts])[:-1].astype(np.int64)

    def groups_of(self, tables: I64, keys: I64) -> I64:
        """Return the group of each key.

        Args:
            tables: int64 ``[n]``, the number of each key's table.
            keys: int64 ``[n]``.

        Raises:
            LookupFailed: A row number is outside its table.
        """
        keyed = self._keyed[tables]
        outside = ~keyed & ((keys < 0) | (keys >= self._rows[tables]))
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            table = int(tables[at])
            raise LookupFailed(
                f"table {self._names[table]}: row {keys[at]} is outside a table of "
                f"{self._rows[table]} rows"
            )
        # As segment_of has it, of one table.
        half = np.uint64(32)
        hashed = ((mix64(keys) >> half) * self._segments[tables]) >> half
        ranged = keys // self._rows_per_segment[tables]
        segments = np.where(keyed, hashed.astype(np.int64), ranged)
        groups: I64 = self._groups[self._first[tables] + segments].astype(np.int64)
        return groups
