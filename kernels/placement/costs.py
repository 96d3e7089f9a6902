"""What it costs to have a table in one place or another, in bytes moved for a request.

A key and a row on their way count with their bytes, and so do the bytes that a shard reads of its
memory, with a line of cache on top for each row that it has to find.
"""

from __future__ import annotations

from typing import Final

import attrs

from kernels.bundle.manifest import Table
from kernels.placement.traffic import BATCH_REQUESTS, TableTraffic

KEY_BYTES: Final = 8
# What finding a row costs besides its own bytes: about the time of a cache line.
ROW_OVERHEAD_BYTES: Final = 64
# Of an index for each of its keys, see ``kernels.store.index``.
_INDEX_BYTES: Final = 12.2


def stored_bytes(table: Table) -> float:
    """Return the bytes of a table in its shards: rows, and the index of a table of keys."""
    return table.size_bytes + (_INDEX_BYTES * table.rows if table.keyed else 0.0)


def read_bytes(table: Table) -> int:
    """Return what a shard reads of its memory for a row, with a line of cache to find it."""
    return ROW_OVERHEAD_BYTES + table.row_bytes


@attrs.frozen(kw_only=True)
class Costs:
    """Of one table, a request.

    Attributes:
        pooled: Whole in one shard, which pools: keys go there, pooled rows come back.
        fetched: Divided: each distinct key goes to its shard, and its row comes back.
        distinct: Rows that are fetched then.
        row: Of fetching one row.
    """

    pooled: float
    fetched: float
    distinct: float
    row: float


def costs_of(table: Table, traffic: TableTraffic, n_requests: float = BATCH_REQUESTS) -> Costs:
    """Return what a table costs, where so many requests travel together."""
    read = read_bytes(table)
    distinct = traffic.distinct(n_requests)
    row = KEY_BYTES + read + table.row_bytes
    return Costs(
        pooled=traffic.lookups * (KEY_BYTES + read) + traffic.bag_bytes,
        fetched=distinct * row,
        distinct=distinct,
        row=row,
    )
