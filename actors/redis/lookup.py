"""What a lookup asks of a model's tables in Redis: distinct keys there, rows back, pooled or not.

What a shard pools from its files is pooled here by the code that executors pool fetched rows with:
a batch's distinct keys and slots (``actors.fetch``), then a table of the rows that came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import attrs
import numpy as np
import trio
from numpy.typing import NDArray

from actors.fetch import FetchLayout, Wanted
from actors.parts import keys_by_table
from actors.redis.client import Client
from actors.redis.keys import get
from actors.redis.rows import RedisTable
from kernels.bundle.manifest import Manifest, Table
from kernels.errors import LookupFailed
from kernels.lookup import PooledLookup, ShardLayout
from kernels.store.header import Segment, TableHeader
from kernels.store.table import StoredTable
from transport.messages import LookupBatch

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# Above this many positions of bags, finding keys and pooling runs in a thread, as a shard's lookup.
_THREAD_POSITIONS = 20_000
_NO_KEYS = np.empty(0, np.int64)


class Looked(NamedTuple):
    """What ``RowsPart`` is to hold, and how many rows were asked of Redis for it."""

    user: F32
    candidate: F32
    rows: U8
    n_rows: int


class ModelLookup:
    """One version of a model, as far as a group of shards holds it.

    Args:
        client: Running.
        manifest: The model's.
        tables: The group's.
        user: What the group pools of the user side.
        candidate: The same of candidates.
        fetched: The model's fetched tables, in the order of ``LookupBatch.key_splits``; the group
            need not hold any of them.
    """

    def __init__(
        self,
        client: Client,
        manifest: Manifest,
        tables: Mapping[str, RedisTable],
        user: ShardLayout,
        candidate: ShardLayout,
        fetched: Sequence[str] = (),
    ) -> None:
        self._client = client
        self._user, self._candidate = user, candidate
        self._tables = tables
        self._fetched = fetched
        here = attrs.evolve(
            manifest,
            user=attrs.evolve(manifest.user, lookups=user.lookups),
            candidate=attrs.evolve(manifest.candidate, lookups=candidate.lookups),
        )
        pooled = {*user.tables, *candidate.tables}
        one_part = {
            table.name: np.zeros(table.segments, np.int32)
            for table in manifest.tables
            if table.name in pooled
        }
        self._pooled = FetchLayout.of(here, one_part, 1)
        self._came = _CameRows(self._pooled)

    async def look_up(self, batch: LookupBatch) -> Looked:
        """Return what a batch asks for. The caller limits the time, by cancelling.

        Raises:
            LookupFailed: An id is outside its table, or a table is not here.
            ValueError: The batch is not laid out for this group.
            RedisError: Redis cannot be asked, or holds something else than rows; says where.
        """
        self._check(batch)
        n = batch.user_ids.size + batch.candidate_ids.size
        in_thread = n > _THREAD_POSITIONS
        if in_thread:
            wanted = await trio.to_thread.run_sync(self._split, batch)
        else:
            wanted = self._split(batch)
        asked = self._asked(wanted, batch)
        names = [name for table, keys in asked for name in table.keys_of(keys)]
        values = await get(self._client, names)
        pieces: list[bytes] = []
        at = 0
        for table, keys in asked:
            pieces.append(table.rows_of(keys, values[at : at + len(keys)]))
            at += len(keys)
        n_pooled = len(self._pooled.tables)
        if in_thread:
            came = _CameRows(self._pooled)
            user, candidate = await trio.to_thread.run_sync(
                self._pool, batch, wanted, pieces[:n_pooled], came
            )
        else:
            user, candidate = self._pool(batch, wanted, pieces[:n_pooled], self._came)
        rows = np.frombuffer(b"".join(pieces[n_pooled:]), np.uint8)
        return Looked(user, candidate, rows, len(names))

    def _check(self, batch: LookupBatch) -> None:
        layouts = self._user, self._candidate
        want = [len(rows) for each in layouts for rows in (each.id_rows, each.weight_rows)]
        arrays = batch.user_ids, batch.user_weights, batch.candidate_ids, batch.candidate_weights
        if (got := [len(array) for array in arrays]) != want:
            raise ValueError(f"ids and weights have {got} rows, not {want}")

    def _split(self, batch: LookupBatch) -> Wanted:
        return self._pooled.split(batch.user_ids, batch.candidate_ids)

    def _asked(
        self, wanted: Wanted, batch: LookupBatch
    ) -> list[tuple[RedisTable, NDArray[np.int64]]]:
        """Return tables and the keys wanted of each: first the pooled, then the fetched ones."""
        keys, splits = wanted.keys.get(0, _NO_KEYS), wanted.key_splits[0].tolist()
        asked = [
            (self._tables[fetched.table.name], keys[splits[i] : splits[i + 1]])
            for i, fetched in enumerate(self._pooled.tables)
        ]
        for name, some in zip(self._fetched, keys_by_table(batch, len(self._fetched)), strict=True):
            if len(some):
                if name not in self._tables:
                    raise LookupFailed(f"table {name}: no piece of it is here")
                asked.append((self._tables[name], some))
        return asked

    def _pool(
        self, batch: LookupBatch, wanted: Wanted, pieces: Sequence[bytes], came: _CameRows
    ) -> tuple[F32, F32]:
        came.put(pieces)
        return (
            came.user.run(wanted.user_slots.astype(np.int64), batch.user_weights),
            came.candidate.run(wanted.candidate_slots.astype(np.int64), batch.candidate_weights),
        )


class _CameRows:
    """The rows that came for a batch, as tables to pool in. Made once: batches take turns.

    Attributes:
        user: Pools in them what the user side looks up.
        candidate: The same of candidates.
    """

    user: PooledLookup
    candidate: PooledLookup

    def __init__(self, layout: FetchLayout) -> None:
        self._layout = layout
        self._rows = [np.zeros((0, each.table.row_bytes), np.uint8) for each in layout.tables]
        self._make()

    def put(self, pieces: Sequence[bytes]) -> None:
        """Take the rows of each table, end to end, in place of the last ones."""
        whole = [
            np.frombuffer(piece, np.uint8).reshape(-1, rows.shape[1])
            for piece, rows in zip(pieces, self._rows, strict=True)
        ]
        if any(len(new) > len(rows) for new, rows in zip(whole, self._rows, strict=True)):
            self._rows = [
                np.zeros((_capacity(len(new), len(rows)), rows.shape[1]), np.uint8)
                for new, rows in zip(whole, self._rows, strict=True)
            ]
            self._make()
        for new, rows in zip(whole, self._rows, strict=True):
            rows[: len(new)] = new

    def _make(self) -> None:
        tables = {
            each.table.name: _stored(each.table, rows)
            for each, rows in zip(self._layout.tables, self._rows, strict=True)
        }
        self.user = PooledLookup(tables, self._layout.user)
        self.candidate = PooledLookup(tables, self._layout.candidate)


def _capacity(n: int, now: int) -> int:
    """Return how many rows there is to be room for: twice as many as came, if more than before."""
    return now if n <= now else 2 * n


def _stored(table: Table, rows: U8) -> StoredTable:
    """Return rows, as they are stored, as a table in which they are found by their numbers."""
    n = len(rows)
    segment = Segment(rows=n, home_buckets=0, buckets=0, rows_sha256="", index_sha256="")
    header = TableHeader(
        name=table.name,
        version="",
        rows=n,
        dim=table.dim,
        dtype=table.row_type,
        keyed=False,
        segments=(segment,),
    )
    return StoredTable(header, range(1), {0: rows}, {})
