"""Tables on the card: which columns of a block kernels gather there, and what is staged instead.

The columns of a block that come of tables placed on the card are neither looked up by a shard nor
staged: the ids are, and a kernel gathers and pools. What is staged of a side is then a row of

    staged columns | zeros up to a multiple of 8 elements | ids, int32 | weights, float32 | zeros

where the staged columns are those of the block that are left, in their order. Ids and weights are
those of ``kernels.shards.shard_layout`` for these tables, so that to whoever sends them the card is
one more shard. Where no lookup of a side is on the card, its staged row is the block's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup, Manifest, SideLayout, SideName
from kernels.bundle.stores import fetch_rows
from kernels.errors import GraphError
from kernels.plan.pack import to_storage
from kernels.program import Precision, leading_dimension
from kernels.shards import Run, ShardLayout, shard_layout
from kernels.store.table import StoredTable

ALL: Final = "all"
"""Stands for every table that a lookup names."""

# Where tables begin: a line of the card's cache.
_ALIGNMENT: Final = 256
# Rows are converted and copied so many bytes at a time, to spare the host's memory.
_PIECE_BYTES: Final = 1 << 26
_MOST_ROWS: Final = 2**31 - 1  # ids are int32 on the card


@attrs.frozen
class PlacedTable:
    """A table in the card's memory: ``[rows, dim]`` back to back, ``offset`` bytes in."""

    name: str
    rows: int
    dim: int
    offset: int


@attrs.frozen(kw_only=True)
class GatheredSide:
    """One side's block.

    Attributes:
        layout: Of the card as one more shard: which ids and weights it is sent, in which order.
        lookups: With ids and weights counted as sent, and ``offset`` in the block.
        width: Columns of the block.
        staged: Which of them are staged; ``Run.part`` is the staged column.
    """

    layout: ShardLayout
    lookups: tuple[Lookup, ...]
    width: int
    staged: tuple[Run, ...]

    @classmethod
    def of(cls, side: SideLayout, tables: Collection[str]) -> GatheredSide:
        """Return one side's, with the lookups in ``tables`` on the card."""
        layout = shard_layout(side, tables)
        mine = [lookup for lookup in side.lookups if lookup.table in tables]
        placed = tuple(
            attrs.evolve(sent, offset=lookup.offset)
            for sent, lookup in zip(layout.lookups, mine, strict=True)
        )
        staged: list[Run] = []
        at = column = 0
        for lookup in (*placed, None):
            stop = side.width if lookup is None else lookup.offset
            if stop > column:
                staged.append(Run(at, column, stop - column))
                at += stop - column
            if lookup is not None:
                column = lookup.offset + lookup.width
        return cls(layout=layout, lookups=placed, width=side.width, staged=tuple(staged))

    @property
    def n_ids(self) -> int:
        """Ids of a row."""
        return len(self.layout.id_rows)

    @property
    def n_weights(self) -> int:
        """Weights of a row."""
        return len(self.layout.weight_rows)

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
        size_bytes: Of all, in one piece of memory.
    """

    user: GatheredSide
    candidate: GatheredSide
    precision: Precision
    tables: tuple[PlacedTable, ...]
    size_bytes: int

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        names: Collection[str] | str,
        precision: Precision = Precision.FP16,
    ) -> DeviceTables:
        """Place tables.

        Args:
            manifest: The model's.
            names: The tables, or ``ALL``.
            precision: What they are stored as.

        Raises:
            GraphError: The model has no such table, or one has no rows or too many.
        """
        chosen = table_names(manifest, names)
        item = precision.item_bytes
        placed, at = [], 0
        for table in manifest.tables:
            if table.name not in chosen:
                continue
            if not 0 < table.rows <= _MOST_ROWS:
                raise GraphError(
                    f"{manifest.model}: table {table.name!r} of {table.rows} rows cannot lie on a "
                    f"card, which takes 1 to {_MOST_ROWS}"
                )
            placed.append(PlacedTable(table.name, table.rows, table.dim, at))
            at += -(-table.rows * table.dim * item // _ALIGNMENT) * _ALIGNMENT
        return cls(
            user=GatheredSide.of(manifest.user, chosen),
            candidate=GatheredSide.of(manifest.candidate, chosen),
            precision=precision,
            tables=tuple(placed),
            size_bytes=at,
        )

    def side(self, name: SideName) -> GatheredSide:
        """Return one side's block."""
        return self.user if name == "user" else self.candidate

    def table(self, name: str) -> PlacedTable:
        """Return where a table lies."""
        return next(table for table in self.tables if table.name == name)

    def pieces(
        self, read: Callable[[str], StoredTable | NDArray[np.float32]]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield what to write where: offsets in bytes, and tables' rows as they are stored.

        Args:
            read: Returns a table: float32 ``[rows, dim]``, or a dense one of the store.
        """
        for placed in self.tables:
            table = read(placed.name)
            step = max(_PIECE_BYTES // (4 * placed.dim), 1)
            at = placed.offset
            for first in range(0, placed.rows, step):
                numbers = np.arange(first, min(first + step, placed.rows))
                rows: NDArray[Any] = fetch_rows(table, numbers)
                if self.precision.has_halves:
                    rows = to_storage(rows, self.precision)
                yield at, rows
                at += rows.nbytes


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
