"""How much fits: the numbers that both implementations of the hot rows are made of."""

from __future__ import annotations

from typing import Final

import attrs

GROUP: Final = 16
"""Rows that one search for a victim looks at."""

# Cells twice the rows: a miss then looks at 2.5 of them on average (Knuth 6.4, linear probing).
_CELLS: Final = 2
# Rows that share a block of the sketch, which has 128 counters: 16 a row, as in Caffeine.
_ROWS_A_BLOCK: Final = 8
OVERHEAD_BYTES: Final = 41.75
"""Of a row: cells 2 x 8, key and time 16, uses 1 1/4, and 1/8 of a block of 68 bytes."""

# A count is of about ten times as many keys as there are rows (TinyLFU, 3.4.1); where there are
# few rows, of so many keys that several batches are among them.
_PERIOD_ROWS: Final = 10
_PERIOD_LEAST: Final = 1 << 16
_MOST_ROWS: Final = 1 << 30  # slots and their cells are counted in 32 bits


@attrs.frozen(kw_only=True)
class Sizes:
    """Of what is kept for one table.

    Attributes:
        row_bytes: Of an encoded row.
        capacity: Rows; a multiple of ``GROUP``.
        n_cells: Cells of the index.
        n_blocks: Blocks of the sketch.
        period_keys: Keys that are asked for between two halvings of all counts.
        overhead_bytes: Of a row, beside its own, in ``size_bytes``.
    """

    row_bytes: int
    capacity: int
    n_cells: int
    n_blocks: int
    period_keys: int
    overhead_bytes: float = OVERHEAD_BYTES

    @classmethod
    def fitting(
        cls,
        row_bytes: int,
        max_bytes: int,
        most_rows: int | None = None,
        *,
        overhead_bytes: float = OVERHEAD_BYTES,
    ) -> Sizes:
        """Return the largest that take at most ``max_bytes``, all in all.

        Args:
            row_bytes: Of a row as it is kept.
            max_bytes: The bound.
            most_rows: Of the table: room for more would stay empty.
            overhead_bytes: What else of a row the bound is of: nothing, where rows lie on a card.

        Raises:
            ValueError: There is no room for even a few rows.
        """
        if row_bytes < 1:
            raise ValueError(f"row_bytes: want at least 1, got {row_bytes}")
        rows = min(int(max_bytes / (row_bytes + overhead_bytes)), _MOST_ROWS)
        if most_rows is not None:
            rows = min(rows, -(-most_rows // GROUP) * GROUP)
        capacity = rows // GROUP * GROUP
        if capacity < GROUP:
            least = int(GROUP * (row_bytes + overhead_bytes))
            raise ValueError(
                f"max_bytes: want at least {least}, for {GROUP} rows of {row_bytes} bytes, "
                f"got {max_bytes}"
            )
        return cls(
            row_bytes=row_bytes,
            capacity=capacity,
            n_cells=_CELLS * capacity,
            n_blocks=capacity // _ROWS_A_BLOCK,
            period_keys=max(_PERIOD_ROWS * capacity, _PERIOD_LEAST),
            overhead_bytes=overhead_bytes,
        )

    @property
    def size_bytes(self) -> int:
        """What all takes."""
        return int(self.capacity * (self.row_bytes + self.overhead_bytes))


@attrs.frozen(kw_only=True)
class HotStatistics:
    """What the hot rows of a table did since they were made.

    Attributes:
        n_rows: That are held.
        size_bytes: Of all memory that is used at most, or, where rows lie on a card, of theirs; the
            host's is taken as rows come in.
        hits: Keys whose row was there, once for each batch that asked.
        misses: All others.
        stale: Of the misses, those whose row was there, but was too old or had changed.
        admitted: Rows that were given a place.
        refreshed: Rows that replaced an older one of the same key.
        refused: Rows that were not worth a place.
        evicted: Rows that lost theirs.
        invalidated: Rows that were said to have changed.
    """

    n_rows: int
    size_bytes: int
    hits: int
    misses: int
    stale: int
    admitted: int
    refreshed: int
    refused: int
    evicted: int
    invalidated: int

    @property
    def hit_rate(self) -> float:
        """Hits among all keys that were asked for; 0 if there were none."""
        return self.hits / max(self.hits + self.misses, 1)
