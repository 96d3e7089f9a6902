"""Fetched rows to pooled columns, at the executor: the rows of a batch's parts, pooled by slots.

Rows stay as they were stored: those of tables whose rows are alike are laid end to end, and are one
table to the code that shards pool with. Its lookups are set up once, as that takes as long as a
batch does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Table
from kernels.errors import LookupFailed
from kernels.lookup import PooledLookup, ShardLayout
from kernels.store.rows import RowType
from kernels.store.table import StoredTable
from transport.messages import Batch, RowsPart

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@attrs.frozen(eq=False)
class _Kind:
    """Tables whose rows are alike, as one table.

    Attributes:
        members: Their numbers, ascending: in this order their rows are laid end to end.
    """

    table: StoredTable
    members: list[int]


class RowPool:
    """Pools what a model's fetched tables bring. One batch at a time, in one thread.

    Args:
        tables: The fetched tables, with how each is stored.
        user: Their lookups of the user side, ids being slots, table by table. Tables that no lookup
            is in are passed over.
        candidate: The same of candidates.
        user_table: The number of the table of each row of the user side's slots.
        candidate_table: The same of candidates.
    """

    def __init__(
        self,
        tables: Sequence[tuple[Table, RowType]],
        user: ShardLayout,
        candidate: ShardLayout,
        user_table: NDArray[np.intp],
        candidate_table: NDArray[np.intp],
    ) -> None:
        self._row_bytes = np.array([table.row_bytes for table, _ in tables], np.int64)
        pooled = {*user.tables, *candidate.tables}
        kinds: dict[tuple[RowType, int], _Kind] = {}
        of_table: dict[str, StoredTable] = {}
        for number, (table, dtype) in enumerate(tables):
            if table.name not in pooled:
                continue
            kind = kinds.get((dtype, table.dim))
            if kind is None:
                kind = kinds[dtype, table.dim] = _Kind(StoredTable.of_rows(dtype, table.dim), [])
            kind.members.append(number)
            of_table[table.name] = kind.table
        self._kinds = list(kinds.values())
        self._user = PooledLookup(of_table, user)
        self._candidate = PooledLookup(of_table, candidate)
        self._user_table = user_table
        self._candidate_table = candidate_table

    def run(self, head: Batch, parts: Mapping[int, RowsPart]) -> tuple[F32, F32]:
        """Return what ``FetchLayout.pool`` does."""
        counts = head.part_rows.astype(np.int64)
        totals = counts.sum(axis=0)
        sizes = counts * self._row_bytes
        stops = sizes.cumsum(axis=1)
        starts = (stops - sizes).tolist()
        ends = stops.tolist()
        bases = np.zeros(len(totals), np.int64)
        for kind in self._kinds:
            pieces: list[U8] = []
            base = 0
            for number in kind.members:
                bases[number] = base
                base += int(totals[number])
                for index in np.flatnonzero(counts[:, number]).tolist():
                    rows = parts[index].rows
                    pieces.append(rows[starts[index][number] : ends[index][number]])
            width = kind.table.header.row_bytes
            together = pieces[0] if len(pieces) == 1 else np.concatenate([_NO_BYTES, *pieces])
            kind.table.refill(together.reshape(-1, width))
        sides = (
            (self._user, head.user_slots, head.user_slot_weights, self._user_table),
            (
                self._candidate,
                head.candidate_slots,
                head.candidate_slot_weights,
                self._candidate_table,
            ),
        )
        user, candidate = (
            pooled.run(_rows_of(slots, of_row, bases, totals), weights)
            for pooled, slots, weights, of_row in sides
        )
        return user, candidate


_NO_BYTES = np.empty(0, np.uint8)


def _rows_of(slots: I32, table_of: NDArray[np.intp], bases: I64, totals: I64) -> I64:
    """Return the row that each slot is, among those of all tables of a kind.

    Raises:
        LookupFailed: A slot is none of its table's.
    """
    limits = totals[table_of][:, np.newaxis]
    outside = (slots < 0) | (slots >= limits)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise LookupFailed(f"slot {slots[row, column]} is none of {limits[row, 0]} rows")
    return slots + bases[table_of][:, np.newaxis]
