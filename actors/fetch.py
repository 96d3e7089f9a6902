"""Fetched tables: a batch's ids to distinct keys and slots, and at the executor rows to a block.

A table that lies in several groups of shards, or whose hot rows are cached, cannot be pooled by one
shard. The gateway finds the batch's distinct keys, sends each group its own, and sends the executor
*slots*: for each position of a bag, which of the rows that come it is. The executor puts the rows
of all parts together and pools them, in the same order as a shard would.

Pure, and the same on all sides: what is where follows from the manifest and the placement.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import cast

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.card_part import CardPart
from actors.pooling import RowPool
from kernels.bundle.manifest import Manifest, SideLayout, Table
from kernels.errors import LookupFailed
from kernels.lookup import ShardLayout, shard_layout
from kernels.store.rows import RowType
from kernels.store.unique import unique_keys
from transport.messages import Batch, RowsPart

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@attrs.frozen(kw_only=True, eq=False)
class FetchedTable:
    """One fetched table.

    Attributes:
        part_of: int32 ``[segments]``: which part of a batch brings the rows of each segment.
        user: Its rows of the user side's slots.
        candidate: The same of candidates.
    """

    table: Table
    part_of: I32
    user: slice
    candidate: slice

    @property
    def dtype(self) -> RowType:
        """How its rows are stored."""
        return cast("RowType", self.table.dtype)


@attrs.frozen(kw_only=True, eq=False)
class Wanted:
    """What a batch wants of fetched tables.

    Attributes:
        user_slots: As in ``Batch``, and so are the next two.
        candidate_slots: See ``user_slots``.
        part_rows: See ``user_slots``.
        keys: For each part that has any, what its ``LookupBatch.keys`` are.
        key_splits: int32 ``[n_parts, T + 1]``, what its ``LookupBatch.key_splits`` are.
    """

    user_slots: I32
    candidate_slots: I32
    part_rows: I32
    keys: dict[int, I64]
    key_splits: I32


@attrs.frozen(kw_only=True, eq=False)
class FetchLayout:
    """The fetched tables of a model, and what is made of them.

    Attributes:
        tables: In the order of the columns of ``Batch.part_rows``.
        user: Of the fetched lookups, as if one more shard had them; ``id_rows`` are rows of the
            side's ids, a row as often as tables read it, table by table.
        candidate: The same of candidates.
        n_parts: How many parts a batch has at most.
        pooled: The same as ``user`` and ``candidate``, of the lookups that are pooled here: of all,
            but where some tables' rows are gathered on the executor's card.
    """

    tables: tuple[FetchedTable, ...]
    user: ShardLayout
    candidate: ShardLayout
    n_parts: int
    pooled: tuple[ShardLayout, ShardLayout]

    @classmethod
    def of(cls, manifest: Manifest, parts_of: Mapping[str, I32], n_parts: int) -> FetchLayout:
        """Return the layout of a model.

        Args:
            manifest: The model's.
            parts_of: The fetched tables, and ``FetchedTable.part_of`` of each; those that nothing
                looks up are left out.
            n_parts: How many parts a batch has at most.
        """
        tables = [
            table
            for table in manifest.tables
            if table.name in parts_of
            and any(
                lookup.table == table.name
                for side in (manifest.user, manifest.candidate)
                for lookup in side.lookups
            )
        ]
        user, user_slots = _slot_layout(manifest.user, tables)
        candidate, candidate_slots = _slot_layout(manifest.candidate, tables)
        return cls(
            tables=tuple(
                FetchedTable(
                    table=table,
                    part_of=np.ascontiguousarray(parts_of[table.name], np.int32),
                    user=user_slots[table.name],
                    candidate=candidate_slots[table.name],
                )
                for table in tables
            ),
            user=user,
            candidate=candidate,
            n_parts=n_parts,
            pooled=(user, candidate),
        )

    def without(self, manifest: Manifest, names: Collection[str]) -> FetchLayout:
        """Return the same with some tables' rows left for the card, which pools them."""
        others = [each.table.name for each in self.tables if each.table.name not in names]
        sides = (manifest.user, self.user), (manifest.candidate, self.candidate)
        user, candidate = (_only(shard_layout(side, others), layout) for side, layout in sides)
        return attrs.evolve(self, pooled=(user, candidate))

    def split(self, user_ids: I64, candidate_ids: I64) -> Wanted:
        """Find a batch's distinct keys, and whom to ask for them.

        Args:
            user_ids: int64 ``[n, K]``, the user side's ids.
            candidate_ids: int64 ``[n, M]``.

        Raises:
            LookupFailed: An id is outside its table.
        """
        n_users, n_rows = user_ids.shape[1], candidate_ids.shape[1]
        user_slots = np.empty((len(self.user.id_rows), n_users), np.int32)
        candidate_slots = np.empty((len(self.candidate.id_rows), n_rows), np.int32)
        part_rows = np.empty((self.n_parts, len(self.tables)), np.int32)
        keys: dict[int, list[I64]] = {}
        all_of_users, all_of_rows = (
            user_ids[self.user.id_rows],
            candidate_ids[self.candidate.id_rows],
        )
        for number, fetched in enumerate(self.tables):
            table = fetched.table
            of_users, of_rows = all_of_users[fetched.user], all_of_rows[fetched.candidate]
            try:
                found = unique_keys(
                    np.concatenate([of_users.reshape(-1), of_rows.reshape(-1)]),
                    n_segments=table.segments,
                    rows=table.rows,
                    keyed=table.keyed,
                    group_of=fetched.part_of,
                    n_groups=self.n_parts,
                )
            except LookupFailed as error:
                raise LookupFailed(f"table {table.name}: {error}") from error
            user_slots[fetched.user] = found.slots[: of_users.size].reshape(of_users.shape)
            candidate_slots[fetched.candidate] = found.slots[of_users.size :].reshape(of_rows.shape)
            part_rows[:, number] = found.splits
            start = 0
            for part in np.flatnonzero(found.splits).tolist():
                stop = start + int(found.splits[part])
                keys.setdefault(part, []).append(found.keys[start:stop])
                start = stop
        splits = np.zeros((self.n_parts, len(self.tables) + 1), np.int32)
        np.cumsum(part_rows, axis=1, out=splits[:, 1:])
        return Wanted(
            user_slots=user_slots,
            candidate_slots=candidate_slots,
            part_rows=part_rows,
            keys={part: np.concatenate(pieces) for part, pieces in sorted(keys.items())},
            key_splits=splits,
        )

    def problem(self, head: Batch, parts: Mapping[int, RowsPart]) -> str | None:
        """Say what is wrong with a batch's slots and its parts' rows, if anything."""
        n_requests, n_rows = len(head.n_rows), len(head.candidate_values)
        want = (
            (len(self.user.id_rows), n_requests),
            (len(self.user.weight_rows), n_requests),
            (len(self.candidate.id_rows), n_rows),
            (len(self.candidate.weight_rows), n_rows),
            (self.n_parts, len(self.tables)),
        )
        arrays = (
            head.user_slots,
            head.user_slot_weights,
            head.candidate_slots,
            head.candidate_slot_weights,
            head.part_rows,
        )
        got = tuple(array.shape for array in arrays)
        if got != want or head.part_rows.min(initial=0) < 0:
            return f"slots have shapes {got}, not {want}"
        sizes = head.part_rows.astype(np.int64) @ self._row_bytes()
        for index, size in enumerate(sizes.tolist()):
            part = parts.get(index)
            n_bytes = 0 if part is None else part.rows.size
            if n_bytes != size and not isinstance(part, CardPart):
                return f"part {index} has rows of {n_bytes} bytes, not {size}"
        return None

    def pool(self, head: Batch, parts: Mapping[int, RowsPart]) -> tuple[F32, F32]:
        """Put the rows of a batch's parts together and pool them.

        Args:
            head: The batch, and
            parts: its parts, in which ``problem`` finds none.

        Returns:
            float32 ``[K, width]`` and ``[M, width]``, of what is ``pooled``.

        Not by two threads at once.

        Raises:
            LookupFailed: A slot is none.
        """
        if not any(layout.lookups for layout in self.pooled):
            n_requests, n_rows = len(head.n_rows), len(head.candidate_values)
            return np.empty((n_requests, 0), np.float32), np.empty((n_rows, 0), np.float32)
        return self._pool.run(head, parts)

    def degraded(self, head: Batch, parts: Sequence[int]) -> NDArray[np.bool_]:
        """Return which requests look up rows of some parts: bool ``[K]``."""
        ends = np.cumsum(head.part_rows, axis=0)
        of_users = np.zeros(len(head.n_rows), np.bool_)
        of_rows = np.zeros(len(head.candidate_values), np.bool_)
        for number, fetched in enumerate(self.tables):
            for part in parts:
                stop = ends[part, number]
                start = stop - head.part_rows[part, number]
                for slots, marks in (
                    (head.user_slots[fetched.user], of_users),
                    (head.candidate_slots[fetched.candidate], of_rows),
                ):
                    marks |= ((slots >= start) & (slots < stop)).any(axis=0)
        request_of_row = np.repeat(np.arange(len(of_users)), head.n_rows)
        of_users[request_of_row[of_rows]] = True
        return of_users

    @cached_property
    def _pool(self) -> RowPool:
        user = np.empty(len(self.user.id_rows), np.intp)
        candidate = np.empty(len(self.candidate.id_rows), np.intp)
        for number, fetched in enumerate(self.tables):
            user[fetched.user] = candidate[fetched.candidate] = number
        tables = [(fetched.table, fetched.dtype) for fetched in self.tables]
        return RowPool(tables, *self.pooled, user, candidate)

    def _row_bytes(self) -> I64:
        return np.array([fetched.table.row_bytes for fetched in self.tables], np.int64)


def _only(mine: ShardLayout, layout: ShardLayout) -> ShardLayout:
    """Return a layout with only the lookups of another, and the columns of these alone."""
    kept = [each for each in layout.lookups if each.table in mine.tables]
    lookups = tuple(
        attrs.evolve(each, offset=own.offset) for each, own in zip(kept, mine.lookups, strict=True)
    )
    return attrs.evolve(
        layout, tables=mine.tables, lookups=lookups, width=mine.width, runs=mine.runs
    )


def _slot_layout(side: SideLayout, tables: Sequence[Table]) -> tuple[ShardLayout, dict[str, slice]]:
    """Return the layout of the lookups in some tables, with ids of their own for each table."""
    layout = shard_layout(side, [table.name for table in tables])
    id_rows: list[NDArray[np.intp]] = []
    slots: dict[str, slice] = {}
    at = 0
    for table in tables:
        rows = shard_layout(side, [table.name]).id_rows
        slots[table.name] = slice(at, at + len(rows))
        id_rows.append(rows)
        at += len(rows)
    all_rows = np.concatenate([np.empty(0, np.intp), *id_rows])
    lookups = []
    for lookup in layout.lookups:
        mine = slots[lookup.table]
        row = layout.id_rows[lookup.first_id]
        first = mine.start + int(np.searchsorted(all_rows[mine], row))
        lookups.append(attrs.evolve(lookup, first_id=first))
    return (
        attrs.evolve(
            layout,
            lookups=tuple(lookups),
            id_rows=all_rows,
        ),
        slots,
    )
