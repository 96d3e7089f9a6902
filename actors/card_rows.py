"""Rows of cached tables in an executor that keeps their hot rows on its card.

Kernels gather and pool there what they are given the *slots* of (``kernels.arenas``). The part of a
batch that is of cached tables has slots, and rows that have none (``card_part.py``). When the batch
is joined, its ids, which count the distinct keys of each table, become slots; rows that have none
go with the launch to its lane's spare rows, and get ids there when it is staged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.card_part import CardPart, Lease
from actors.fetch import FetchLayout
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.errors import LookupFailed
from kernels.executor import Bags, Spare
from kernels.hot import copy_rows
from kernels.lookup import ShardLayout
from kernels.store.rows import RowType
from kernels.store.table import StoredTable
from transport.messages import Batch, RowsPart

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


# Rows that a card stores as they are sent: by how they are stored, numbers' dtype.
_ALIKE: Final[Mapping[RowType, str]] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@attrs.frozen(eq=False)
class CardTables:
    """Cached tables as a card has them.

    Attributes:
        names: In the order of the fetched tables.
        offsets: int64 ``[n_tables]``, where each table begins, in bytes.
        row_bytes: int64 ``[n_tables]``, of a row on the card.
        row_sizes: What different numbers these are.
        wire_bytes: int64 ``[n_tables]``, of a row as shards send it.
        capacities: Slots of each.
    """

    device: DeviceTables
    names: tuple[str, ...]
    offsets: I64
    row_bytes: I64
    row_sizes: tuple[int, ...]
    wire_bytes: I64
    capacities: tuple[int, ...]
    _kinds: tuple[StoredTable, ...]
    _kind_of: NDArray[np.intp]

    @classmethod
    def of(cls, fetch: FetchLayout, device: DeviceTables) -> CardTables:
        """Return the hot ones of a card's tables."""
        placed = {each.name: each for each in device.hot}
        fetched = [each for each in fetch.tables if each.table.name in placed]
        kinds: dict[tuple[RowType, int], int] = {}
        kind_of = [kinds.setdefault((each.dtype, each.table.dim), len(kinds)) for each in fetched]
        mine = [placed[each.table.name] for each in fetched]
        row_bytes = [each.dim * device.precision.item_bytes for each in mine]
        return cls(
            device=device,
            names=tuple(each.name for each in mine),
            offsets=np.array([each.offset for each in mine], np.int64),
            row_bytes=np.array(row_bytes, np.int64),
            row_sizes=tuple(sorted(set(row_bytes))),
            wire_bytes=np.array([each.table.row_bytes for each in fetched], np.int64),
            capacities=tuple(each.capacity or 0 for each in mine),
            kinds=tuple(StoredTable.of_rows(*kind) for kind in kinds),
            kind_of=np.array(kind_of, np.intp),
        )

    def stored(self, tables: I64, rows: U8) -> U8:
        """Return rows as the card stores them, end to end. Not by two threads at once.

        Args:
            tables: int64 ``[n]``, the table of each row.
            rows: uint8 ``[n_bytes]``, as shards send them, end to end.
        """
        kinds = self._kind_of[tables]
        if len(self._kinds) == 1:
            return self._stored(0, rows)
        out = np.empty(int(self.row_bytes[tables].sum()), np.uint8)
        sizes, to_sizes = self.wire_bytes[tables], self.row_bytes[tables]
        at, to = np.cumsum(sizes) - sizes, np.cumsum(to_sizes) - to_sizes
        for number in range(len(self._kinds)):
            chosen = np.flatnonzero(kinds == number)
            if not len(chosen):
                continue
            size, to_size = sizes[chosen], to_sizes[chosen]
            mine = np.empty(int(size.sum()), np.uint8)
            copy_rows(mine, np.cumsum(size) - size, rows, at[chosen], size)
            made = self._stored(number, mine)
            copy_rows(out, to[chosen], made, np.cumsum(to_size) - to_size, to_size)
        return out

    def _stored(self, kind: int, rows: U8) -> U8:
        table = self._kinds[kind]
        if _ALIKE.get(table.header.dtype) == self.device.precision.storage:
            return rows
        table.refill(rows.reshape(-1, table.header.row_bytes))
        floats = table.fetch(np.arange(len(rows) // table.header.row_bytes))
        return np.ascontiguousarray(self.device.stored(floats)).reshape(-1).view(np.uint8)


@attrs.frozen(eq=False)
class _Side:
    """One side's ids of cached tables, and how they are staged.

    Attributes:
        rows: intp ``[n_ids]``, of the batch's slots.
        tables: intp ``[n_ids]``, the cached table of each.
        weights: intp ``[n_weights]``, rows of the batch's weights.
        gathered: The side's block.
        kept: Which of the ids are staged, where sequences are shorter.
        kept_weights: The same of the weights.
    """

    rows: NDArray[np.intp]
    tables: NDArray[np.intp]
    weights: NDArray[np.intp]
    gathered: GatheredSide
    kept: slice | NDArray[np.intp] = slice(None)
    kept_weights: slice | NDArray[np.intp] = slice(None)

    @classmethod
    def of(cls, tables: Sequence[slice], fetched: ShardLayout, gathered: GatheredSide) -> _Side:
        rows = [np.arange(each.start, each.stop) for each in tables]
        return cls(
            rows=np.concatenate([np.empty(0, np.intp), *rows]),
            tables=gathered.hot_id_tables,
            weights=np.searchsorted(fetched.weight_rows, gathered.hot_weight_rows),
            gathered=gathered,
        )

    def shortened(self, short: GatheredSide) -> _Side:
        """Return the same with what a block of fewer steps has."""
        whole = self.gathered
        # Ids are sorted by table and row; a side has fewer than 2^32.
        known, kept = (
            (each.hot_id_tables.astype(np.int64) << 32) + each.hot_id_rows
            for each in (whole, short)
        )
        return attrs.evolve(
            self,
            gathered=short,
            kept=np.searchsorted(known, kept),
            kept_weights=np.searchsorted(whole.hot_weight_rows, short.hot_weight_rows),
        )

    def stage(self, out: Bags | None, ids: I32, weights: F32) -> None:
        """Copy ids, int32 ``[n_kept, n]``, and all weights to where they go in ``n`` rows."""
        if out is not None:
            layout = self.gathered.layout
            out.ids[:, len(layout.id_rows) :] = ids.T
            out.weights[:, len(layout.weight_rows) :] = weights[self.kept_weights].T


@attrs.frozen(eq=False)
class CardLayout:
    """How a batch's slots of cached tables are staged.

    Attributes:
        part: Which part of a batch is of cached tables.
        numbers: int64 ``[n_tables]``, of the cached tables among those that are fetched.
    """

    tables: CardTables
    part: int
    numbers: I64
    user: _Side
    candidate: _Side

    @classmethod
    def of(cls, fetch: FetchLayout, device: DeviceTables, part: int) -> CardLayout:
        """Return the layout of a model's executor."""
        tables = CardTables.of(fetch, device)
        numbers = [n for n, each in enumerate(fetch.tables) if each.table.name in tables.names]
        users = [fetch.tables[number].user for number in numbers]
        candidates = [fetch.tables[number].candidate for number in numbers]
        return cls(
            tables=tables,
            part=part,
            numbers=np.array(numbers, np.int64),
            user=_Side.of(users, fetch.user, device.user),
            candidate=_Side.of(candidates, fetch.candidate, device.candidate),
        )

    def problem(self, head: Batch, parts: Mapping[int, RowsPart]) -> str | None:
        """Say what is wrong with the part of cached tables, if anything."""
        part = parts.get(self.part)
        if isinstance(part, CardPart):
            counts, want = np.diff(part.lease.splits), head.part_rows[self.part, self.numbers]
            if (counts != want).any():
                return f"part {self.part} has {counts} rows of cached tables, not {want}"
        return None

    def rows_of(self, head: Batch, parts: Mapping[int, RowsPart]) -> CardRows:
        """Return what a batch gathers on the card: one in which there is no ``problem``.

        Raises:
            LookupFailed: A slot is none of its table's.
        """
        part = parts.get(self.part)
        lease = part.lease if isinstance(part, CardPart) else None
        rows = np.empty(0, np.uint8) if part is None else part.rows
        if lease is None:  # none are wanted, or default rows came that were made elsewhere
            counts = head.part_rows[self.part, self.numbers].astype(np.int64)
            tables = np.repeat(np.arange(len(counts)), counts)
            sizes = self.tables.row_bytes[tables]
            slots = ~np.arange(len(tables), dtype=np.int32)
            splits = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
            lease = Lease(slots, splits, tables, np.cumsum(sizes) - sizes)
            rows = self.tables.stored(tables, rows)
        return CardRows(
            lease=lease,
            rows=rows,
            user=_ids(self.user, head.user_slots, lease),
            user_weights=head.user_slot_weights[self.user.weights],
            candidate=_ids(self.candidate, head.candidate_slots, lease),
            candidate_weights=head.candidate_slot_weights[self.candidate.weights],
        )

    def shortened(self, user: GatheredSide, candidate: GatheredSide) -> CardLayout:
        """Return the layout for blocks with sequences of fewer steps, which are these."""
        return attrs.evolve(
            self, user=self.user.shortened(user), candidate=self.candidate.shortened(candidate)
        )

    def stage(
        self, found: CardRows, spare: Spare, user: Bags | None, candidate: Bags | None
    ) -> None:
        """Stage what some requests gather: rows that have no slot, ids of all, and weights.

        Args:
            found: What they gather.
            spare: The lane's spare rows; what they have already, stays.
            user: Where the requests' ids and weights go, if the side has any.
            candidate: The same of their rows.
        """
        of_user, of_rows = found.user[self.user.kept], found.candidate[self.candidate.kept]
        n = len(found.lease.tables)
        if n:
            wanted = np.zeros(n, np.bool_)
            for ids in (of_user, of_rows):
                wanted[~ids[ids < 0]] = True
            chosen = np.flatnonzero(wanted)
            ids_of = np.zeros(n, np.int32)
            ids_of[chosen] = self._copy(found, spare, chosen)
            of_user, of_rows = (
                np.where(ids < 0, ids_of[~np.minimum(ids, -1)], ids) for ids in (of_user, of_rows)
            )
        self.user.stage(user, of_user, found.user_weights)
        self.candidate.stage(candidate, of_rows, found.candidate_weights)

    def _copy(self, found: CardRows, spare: Spare, chosen: NDArray[np.intp]) -> I64:
        """Copy rows to the end of spare rows; return their ids."""
        of = self.tables
        tables = found.lease.tables[chosen]
        sizes = of.row_bytes[tables]
        to = np.empty(len(chosen), np.int64)
        for size in of.row_sizes:
            mine = sizes == size
            n = int(np.count_nonzero(mine))
            if not n:
                continue
            # A table begins at a multiple of its rows' bytes, so that its ids reach multiples.
            first = -(-(spare.at + spare.n_bytes) // size) * size - spare.at
            to[mine] = first + size * np.arange(n)
            spare.n_bytes = first + size * n
        copy_rows(spare.rows, to, found.rows, found.lease.at[chosen], sizes)
        return (spare.at + to - of.offsets[tables]) // sizes


@attrs.frozen(eq=False)
class CardRows:
    """What a joined batch gathers on the card.

    Attributes:
        rows: uint8 ``[n_bytes]``, of keys that have no slot, as the card stores them.
        user: int32 ``[n_ids, K]``, slots, or ``~i`` of the ``i``-th of these.
        user_weights: float32 ``[n_weights, K]``.
        candidate: int32 ``[n_ids, M]``.
        candidate_weights: float32 ``[n_weights, M]``.
    """

    lease: Lease
    rows: U8
    user: I32
    user_weights: NDArray[np.float32]
    candidate: I32
    candidate_weights: NDArray[np.float32]

    def part(self, requests: slice, rows: slice) -> CardRows:
        """Return what is of some requests, and of their rows."""
        return attrs.evolve(
            self,
            user=self.user[:, requests],
            user_weights=self.user_weights[:, requests],
            candidate=self.candidate[:, rows],
            candidate_weights=self.candidate_weights[:, rows],
        )


def _ids(side: _Side, slots: I32, lease: Lease) -> I32:
    """Return what a batch's slots are on the card: int32 of the shape of ``slots[side.rows]``."""
    mine = slots[side.rows]
    totals = np.diff(lease.splits)
    limits = totals[side.tables][:, np.newaxis]
    outside = (mine < 0) | (mine >= limits)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise LookupFailed(f"slot {mine[row, column]} is none of {limits[row, 0]} rows")
    found: I32 = lease.slots[mine + lease.splits[side.tables][:, np.newaxis]]
    return found
