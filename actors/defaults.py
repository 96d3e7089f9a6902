"""Default rows in place of rows that no shard is left to send: the way to answer at all.

A part of default rows is made by the code that shards make theirs with, of tables of one row.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from actors.fetch import FetchedTable
from actors.layouts import Layouts
from kernels.bundle.load import Bundle
from kernels.lookup import PooledLookup
from kernels.store.header import is_table, read_header
from kernels.store.rows import encode_rows
from transport.messages import LookupBatch, RowsPart


class DefaultRows:
    """Makes parts of the default rows of one version of a model; opens nothing before the first.

    Args:
        bundle: The model's.
        layouts: What each part holds.
    """

    def __init__(self, bundle: Bundle, layouts: Layouts) -> None:
        self._bundle = bundle
        self._layouts = layouts
        self._lookups: dict[int, tuple[PooledLookup, PooledLookup]] = {}

    def part(self, lookup: LookupBatch, attempt: int) -> RowsPart:
        """Return what stands for the answer to a lookup: default rows, and marked so.

        Args:
            lookup: What was asked in vain.
            attempt: How often.

        Raises:
            StoreError: A table is no longer what it was.
        """
        user, candidate = self._pooled(lookup.part)
        return RowsPart(
            gateway=lookup.gateway,
            seq=lookup.seq,
            version=lookup.version,
            part=lookup.part,
            attempt=attempt,
            degraded=True,
            user=user.run(np.zeros_like(lookup.user_ids), lookup.user_weights),
            candidate=candidate.run(np.zeros_like(lookup.candidate_ids), lookup.candidate_weights),
            rows=self._rows(np.diff(lookup.key_splits)),
        )

    def encoded(self, fetched: FetchedTable) -> NDArray[np.uint8]:
        """Return a fetched table's default row, uint8 ``[row_bytes]``, as rows are stored.

        Raises:
            StoreError: A table is no longer what it was.
        """
        row = self._default_rows[fetched.table.name].reshape(1, -1)
        return encode_rows(row, fetched.dtype).ravel()

    def _pooled(self, part: int) -> tuple[PooledLookup, PooledLookup]:
        lookups = self._lookups.get(part)
        if lookups is None:
            user, candidate = self._layouts.part_layouts()[part]
            names = {*user.tables, *candidate.tables}
            tables = {name: self._default_rows[name].reshape(1, -1) for name in names}
            lookups = self._lookups[part] = (
                PooledLookup(tables, user),
                PooledLookup(tables, candidate),
            )
        return lookups

    def _rows(self, counts: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return so many encoded default rows of each fetched table, end to end."""
        pieces = [np.empty(0, np.uint8)]
        fetch = self._layouts.fetch
        for fetched, n in zip(() if fetch is None else fetch.tables, counts.tolist(), strict=False):
            pieces.append(np.tile(self.encoded(fetched), n))
        return np.concatenate(pieces)

    @cached_property
    def _default_rows(self) -> dict[str, NDArray[np.float32]]:
        rows = {}
        for table in self._bundle.manifest.tables:
            path = self._bundle.path / "tables" / table.file
            rows[table.name] = (
                read_header(path).default_row if is_table(path) else np.zeros(table.dim, np.float32)
            )
        return rows
