"""Tables on the card: which columns of a block kernels gather there, and what is staged instead.

The columns of a block that come of tables placed on the card are neither looked up by a shard nor
staged: the ids are, and a kernel gathers and pools. What is staged of a side is then a row of

    staged columns | zeros up to a multiple of 8 elements | ids, int32 | weights, float32 | zeros

where the staged columns are those of the block that are left, in their order. Ids and weights are
those of ``kernels.shards.shard_layout`` for these tables, so that to whoever sends them the card is
one more shard. Where no lookup of a side is on the card, its staged row is the block's.

Of *hot* tables only some rows lie on the card, and ids are slots (``kernels.arenas``). They follow
the ids of the others, as do their weights those of the others; each table has ids of its own, even
where its lookups read the same ids as another table's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.arenas import (
    ALIGNMENT,
    MOST_ROWS,
    HotPlan,
    PlacedTable,
    SpareRows,
    place_arenas,
    round_up,
)
from kernels.bundle.manifest import Lookup, Manifest, SideLayout, SideName
from kernels.bundle.stores import fetch_rows
from kernels.errors import GraphError
from kernels.plan.pack import to_storage
from kernels.program import Precision, leading_dimension
from kernels.shards import Run, ShardLayout, shard_layout
from kernels.store.table import StoredTable

ALL: Final = "all"
"""Stands for every table that a lookup names."""

# Rows are converted and copied so many bytes at a time, to spare the host's memory.
_PIECE_BYTES: Final = 1 << 26

_SAME_ARRAY: Final = attrs.cmp_using(eq=np.array_equal)
_NO_ROWS: Final = np.empty(0, np.intp)


@attrs.frozen(kw_only=True)
class GatheredSide:
    """One side's block.

    Attributes:
        layout: Of the card as one more shard: which ids and weights it is sent, in which order; of
            tables that are whole there.
        lookups: With ids and weights counted as staged, and ``offset`` in the block.
        width: Columns of the block.
        staged: Which of them are staged; ``Run.part`` is the staged column.
        hot_id_rows: intp, the rows of the side's ids that hot tables' lookups read, table by table,
            of each ascending; staged after those of ``layout``.
        hot_id_tables: intp, the hot table of each of these.
        hot_weight_rows: intp, the rows of the side's weights that hot tables' lookups read,
            ascending; staged after those of ``layout``.
    """

    layout: ShardLayout
    lookups: tuple[Lookup, ...]
    width: int
    staged: tuple[Run, ...]
    hot_id_rows: NDArray[np.intp] = attrs.field(default=_NO_ROWS, eq=_SAME_ARRAY)
    hot_id_tables: NDArray[np.intp] = attrs.field(default=_NO_ROWS, eq=_SAME_ARRAY)
    hot_weight_rows: NDArray[np.intp] = attrs.field(default=_NO_ROWS, eq=_SAME_ARRAY)

    @classmethod
    def of(cls, side: SideLayout, tables: Collection[str], hot: Sequence[str] = ()) -> GatheredSide:
        """Return one side's, with the lookups in ``tables`` on the card, and those in hot ones."""
        layout = shard_layout(side, tables)
        n_ids, n_weights = len(layout.id_rows), len(layout.weight_rows)
        placed = _in_block(side, layout, tables, 0)
        hot_weight_rows = shard_layout(side, hot).weight_rows
        id_rows: list[NDArray[np.intp]] = []
        for name in hot:
            one = shard_layout(side, [name])
            weights = np.searchsorted(hot_weight_rows, one.weight_rows)
            placed += [
                attrs.evolve(lookup, first_weight=n_weights + int(weights[lookup.first_weight]))
                if lookup.first_weight is not None
                else lookup
                for lookup in _in_block(side, one, [name], n_ids)
            ]
            n_ids += len(one.id_rows)
            id_rows.append(one.id_rows)
        placed.sort(key=lambda lookup: lookup.offset)
        staged: list[Run] = []
        at = column = 0
        for lookup in (*placed, None):
            stop = side.width if lookup is None else lookup.offset
            if stop > column:
                staged.append(Run(at, column, stop - column))
                at += stop - column
            if lookup is not None:
                column = lookup.offset + lookup.width
        return cls(
            layout=layout,
            lookups=tuple(placed),
            width=side.width,
            staged=tuple(staged),
            hot_id_rows=np.concatenate([_NO_ROWS, *id_rows]),
            hot_id_tables=np.repeat(np.arange(len(hot)), [len(rows) for rows in id_rows]),
            hot_weight_rows=hot_weight_rows,
        )

    @property
    def n_ids(self) -> int:
        """Ids of a row."""
        return len(self.layout.id_rows) + len(self.hot_id_rows)

    @property
    def n_weights(self) -> int:
        """Weights of a row."""
        return len(self.layout.weight_rows) + len(self.hot_weight_rows)

    @property
    def staged_width(self) -> int:
        """Columns that are staged."""
        return sum(run.width for run in self.staged)

    @property
    def ids_at(self) -> int:
        """Element of a staged row where its ids begin."""
        return leading_dimension(self.staged_width)

    def row_width(self, item_bytes: int) -> int:
        """Return the elements of a staged row that are in use, of ``item_bytes`` each."""
        if not self.lookups:
            return self.width
        tail = (self.n_ids + self.n_weights) * 4 // item_bytes
        return self.ids_at + tail

    def staged_column(self, column: int) -> int:
        """Return the staged column that a column of the block is, which no table gives."""
        for run in self.staged:
            if run.block <= column < run.block + run.width:
                return run.part + column - run.block
        raise ValueError(f"column {column} is gathered")


@attrs.frozen(kw_only=True)
class DeviceTables:
    """The tables of a model that lie on the card.

    Attributes:
        precision: What they are stored as: fp16, bf16, or fp32 for TF32 too.
        tables: Whole ones, then hot ones.
        size_bytes: Of all, in one piece of memory.
        spare: Of hot tables.
    """

    user: GatheredSide
    candidate: GatheredSide
    precision: Precision
    tables: tuple[PlacedTable, ...]
    size_bytes: int
    spare: SpareRows = attrs.Factory(SpareRows)

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        names: Collection[str] | str,
        precision: Precision = Precision.FP16,
        hot: HotPlan | None = None,
    ) -> DeviceTables:
        """Place tables.

        Args:
            manifest: The model's.
            names: The tables that lie there whole, or ``ALL``.
            precision: What they are stored as.
            hot: Those of which hot rows lie there.

        Raises:
            GraphError: The model has no such table, one has no rows or too many, or no room is
                left for hot ones.
        """
        chosen = table_names(manifest, names)
        hot_names = () if hot is None else table_names(manifest, hot.max_bytes)
        item = precision.item_bytes
        placed, at = [], 0
        for table in manifest.tables:
            if table.name not in chosen:
                continue
            if not 0 < table.rows <= MOST_ROWS:
                raise GraphError(
                    f"{manifest.model}: table {table.name!r} of {table.rows} rows cannot lie on a "
                    f"card, which takes 1 to {MOST_ROWS}"
                )
            placed.append(PlacedTable(table.name, table.rows, table.dim, at))
            at = round_up(at + table.rows * table.dim * item, ALIGNMENT)
        spare = SpareRows()
        if hot is not None:
            arenas, spare = place_arenas(manifest, hot, item, at)
            placed += arenas
            at = spare.offset + spare.n_lanes * spare.size_bytes
        return cls(
            user=GatheredSide.of(manifest.user, chosen, hot_names),
            candidate=GatheredSide.of(manifest.candidate, chosen, hot_names),
            precision=precision,
            tables=tuple(placed),
            size_bytes=at,
            spare=spare,
        )

    @property
    def hot(self) -> tuple[PlacedTable, ...]:
        """Those of which hot rows lie there, in the manifest's order."""
        return tuple(table for table in self.tables if table.capacity is not None)

    def side(self, name: SideName) -> GatheredSide:
        """Return one side's block."""
        return self.user if name == "user" else self.candidate

    def table(self, name: str) -> PlacedTable:
        """Return where a table lies."""
        return next(table for table in self.tables if table.name == name)

    def pieces(
        self, read: Callable[[str], StoredTable | NDArray[np.float32]]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield what to write where: offsets in bytes, and whole tables' rows as they are stored.

        Args:
            read: Returns a table: float32 ``[rows, dim]``, or a dense one of the store.
        """
        for placed in self.tables:
            if placed.capacity is not None:
                continue
            table = read(placed.name)
            step = max(_PIECE_BYTES // (4 * placed.dim), 1)
            at = placed.offset
            for first in range(0, placed.rows, step):
                numbers = np.arange(first, min(first + step, placed.rows))
                rows = self.stored(fetch_rows(table, numbers))
                yield at, rows
                at += rows.nbytes

    def stored(self, rows: NDArray[np.float32]) -> NDArray[Any]:
        """Return rows as they are stored: float32, or the bits of halves, of the same shape."""
        return to_storage(rows, self.precision) if self.precision.has_halves else rows


def table_names(manifest: Manifest, names: Collection[str] | str) -> tuple[str, ...]:
    """Return the tables that ``names`` means, in the manifest's order.

    Raises:
        GraphError: The model has no such table.
    """
    known = [table.name for table in manifest.tables]
    if isinstance(names, str):
        if names != ALL:
            raise GraphError(f"{manifest.model}: want {ALL!r} or a list of tables, got {names!r}")
        return tuple(known)
    for name in names:
        if name not in known:
            there_are = ", ".join(sorted(known)) or "none"
            raise GraphError(f"{manifest.model}: no table {name!r}; there are {there_are}")
    return tuple(name for name in known if name in names)


def _in_block(
    side: SideLayout, layout: ShardLayout, tables: Collection[str], first_id: int
) -> list[Lookup]:
    """Return a layout's lookups at their places in the block, with ids from ``first_id`` on."""
    mine = [lookup for lookup in side.lookups if lookup.table in tables]
    return [
        attrs.evolve(sent, offset=lookup.offset, first_id=first_id + sent.first_id)
        for sent, lookup in zip(layout.lookups, mine, strict=True)
    ]
