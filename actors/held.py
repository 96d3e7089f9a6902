"""What a shard holds of one version of a model, and what it answers of it.

It holds the tables of its group (``layouts.py``): those that lie wholly there it pools, of the
others it sends rows by their keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.fetch import FetchedTable
from actors.layouts import Layouts
from actors.parts import keys_by_table
from kernels.bundle.load import Bundle
from kernels.errors import LookupFailed
from kernels.lookup import PooledLookup
from kernels.store.table import StoredTable
from transport.messages import LookupBatch

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@attrs.frozen(kw_only=True, eq=False)
class HeldPart:
    """One group's part of one version of a model. Lookups may run in several threads at once.

    Attributes:
        user: Pools the user side's lookups in tables that are wholly here.
        candidate: The same of candidates.
        fetched: The model's fetched tables, in the order of ``LookupBatch.key_splits``.
        tables: Those that this group has a piece of, by name.
    """

    user: PooledLookup
    candidate: PooledLookup
    fetched: tuple[FetchedTable, ...]
    tables: dict[str, StoredTable]

    @classmethod
    def open(
        cls, bundle: Bundle, layouts: Layouts, group: int, progress: Callable[[float], None]
    ) -> HeldPart:
        """Open a group's tables and read them, so that the first lookups find them in memory.

        Args:
            bundle: The model's.
            layouts: What each group is asked.
            group: Which one this is.
            progress: Told what share has been read, 0 to 1.

        Raises:
            BundleError: A table is missing or damaged.
        """
        placement = layouts.placement
        tables = {
            name: bundle.open_table(name, placement.segments(group, name))
            for name in placement.tables(group)
        }
        for read, table in enumerate(tables.values()):
            table.warm(functools.partial(_tell, progress, read, len(tables)))
        user, candidate = layouts.shards[group]
        return cls(
            user=PooledLookup(tables, user),
            candidate=PooledLookup(tables, candidate),
            fetched=() if layouts.fetch is None else layouts.fetch.tables,
            tables=tables,
        )

    def look_up(self, batch: LookupBatch) -> tuple[F32, F32, U8]:
        """Return what a lookup wants: the pooled columns of both sides, and rows as stored.

        Raises:
            LookupFailed: An id or a key is of no row that is here.
            ValueError: The batch is not laid out for this group.
        """
        return (
            self.user.run(batch.user_ids, batch.user_weights),
            self.candidate.run(batch.candidate_ids, batch.candidate_weights),
            self._rows(batch),
        )

    def _rows(self, batch: LookupBatch) -> U8:
        if not len(batch.keys):
            return _NO_ROWS
        pieces = []
        by_table = keys_by_table(batch, len(self.fetched))
        for each, keys in zip(self.fetched, by_table, strict=True):
            if not len(keys):
                continue
            table = self.tables.get(each.table.name)
            if table is None:
                raise LookupFailed(f"table {each.table.name}: no piece of it is here")
            pieces.append(table.fetch_encoded(keys).reshape(-1))
        return np.concatenate(pieces)


_NO_ROWS = np.empty(0, np.uint8)


def _tell(progress: Callable[[float], None], before: int, n: int, done: int, total: int) -> None:
    progress((before + (done / total if total else 1.0)) / n)
