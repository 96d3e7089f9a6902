"""Memory of hot tables on the card: arenas of slots, and spare rows.

Of *hot* tables only some rows lie on the card, each in a *slot* of its table's arena, and ids are
slots; who has which, the host knows. Rows of a batch that have no slot are copied with it to its
lane's *spare rows*. These lie behind all arenas, and every hot table begins at a multiple of its
rows' bytes, so that a spare row of any table is one more slot of it, though of a high number::

    whole tables | arena of a hot table | of another | ... | spare rows of lane 0 | of lane 1 | ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from kernels.bundle.manifest import Manifest, Table
from kernels.errors import GraphError
from kernels.hot import Sizes
from kernels.shards import shard_layout

ALIGNMENT: Final = 256
"""Where tables begin: a line of the card's cache."""
MOST_ROWS: Final = 2**31 - 1
"""Ids are int32 on the card."""


@attrs.frozen
class PlacedTable:
    """A table in the card's memory: ``[rows, dim]`` back to back, ``offset`` bytes in.

    Attributes:
        capacity: Of a hot table, its slots; ids up to ``rows`` are spare rows. None of a whole one.
    """

    name: str
    rows: int
    dim: int
    offset: int
    capacity: int | None = None


@attrs.frozen(kw_only=True)
class HotPlan:
    """What to keep of hot tables, and for which batches.

    Attributes:
        max_bytes: Of each hot table's rows on the card, by name.
        max_rows: Of a batch.
        max_requests: Of a batch.
        n_lanes: That share the memory: each has spare rows.
    """

    max_bytes: Mapping[str, int]
    max_rows: int
    max_requests: int
    n_lanes: int


@attrs.frozen(kw_only=True)
class SpareRows:
    """Where lanes' spare rows lie: those of lane ``i`` begin at ``offset + i * size_bytes``.

    Attributes:
        size_bytes: Enough for any batch, none of whose rows has a slot.
    """

    offset: int = 0
    size_bytes: int = 0
    n_lanes: int = 0


def place_arenas(
    manifest: Manifest, hot: HotPlan, item_bytes: int, at: int
) -> tuple[list[PlacedTable], SpareRows]:
    """Place hot tables and their spare rows, from byte ``at`` on.

    Args:
        manifest: The model's.
        hot: Says how much.
        item_bytes: Of a stored number.
        at: See above.

    Raises:
        GraphError: There is no room for even a few rows, or too much of it.
    """
    tables = [table for table in manifest.tables if table.name in hot.max_bytes]
    arenas = _arenas(tables, item_bytes, hot, at)
    ends = [each.offset + each.rows * each.dim * item_bytes for each in arenas]
    spare = SpareRows(
        offset=round_up(max(ends, default=at), ALIGNMENT),
        size_bytes=_spare_bytes(manifest, arenas, item_bytes, hot),
        n_lanes=hot.n_lanes,
    )
    stop = spare.offset + spare.n_lanes * spare.size_bytes
    return [_with_spare(each, item_bytes, stop) for each in arenas], spare


def _arenas(tables: Sequence[Table], item: int, hot: HotPlan, at: int) -> list[PlacedTable]:
    """Place hot tables from byte ``at`` on, with as many rows as they have slots.

    Those of long rows come first: ids of the others reach as many rows, not as many bytes.
    """
    placed = {}
    for table in sorted(tables, key=lambda each: -each.dim):
        row_bytes = table.dim * item
        most_rows = None if table.keyed else table.rows
        try:
            sizes = Sizes.fitting(row_bytes, hot.max_bytes[table.name], most_rows, overhead_bytes=0)
        except ValueError as error:
            raise GraphError(f"cached: table {table.name!r}, on the card: {error}") from error
        offset = round_up(at, math.lcm(row_bytes, ALIGNMENT))
        at = offset + sizes.size_bytes
        placed[table.name] = PlacedTable(
            table.name, sizes.capacity, table.dim, offset, sizes.capacity
        )
    return [placed[table.name] for table in tables]


def _spare_bytes(manifest: Manifest, arenas: Sequence[PlacedTable], item: int, hot: HotPlan) -> int:
    """Return how much a batch needs of which no row has a slot.

    Rows are copied once for each run of a batch's requests in a launch, of which there are at most
    as many as requests; each run's rows of one size begin at a multiple of it.
    """
    size = hot.max_requests * sum({each.dim * item for each in arenas})
    tables = {table.name: table for table in manifest.tables}
    for each in arenas:
        table = tables[each.name]
        n_rows = sum(
            n * len(shard_layout(side, [each.name]).id_rows)
            for side, n in (
                (manifest.user, hot.max_requests),
                (manifest.candidate, hot.max_rows),
            )
        )
        if not table.keyed:
            n_rows = min(n_rows, hot.max_requests * table.rows)
        size += n_rows * each.dim * item
    return round_up(size, ALIGNMENT)


def _with_spare(table: PlacedTable, item: int, stop: int) -> PlacedTable:
    """Return a hot table whose ids reach up to byte ``stop``."""
    rows = (stop - table.offset) // (table.dim * item)
    if rows > MOST_ROWS:
        raise GraphError(
            f"cached: table {table.name!r}: hot rows on the card reach over {rows} of its rows, "
            f"more than {MOST_ROWS}: want a smaller max_bytes"
        )
    return attrs.evolve(table, rows=rows)


def round_up(n: int, to: int) -> int:
    """Return the least multiple of ``to`` that is no less than ``n``."""
    return -(-n // to) * to
