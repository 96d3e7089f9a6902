"""Where an executor keeps the hot rows of its cached tables: in the host's memory, or on its card.

In the host's memory rows are kept as they are stored, and a batch gets a copy of all its rows. On
a card they are kept as it stores them; a batch gets slots, and a copy of what has none. Rows that
come in are sent to their slots by *fills*, which somebody else carries out and tells the end of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.card_part import CardPart, Lease
from actors.card_rows import CardTables
from actors.flights import Flight, Part
from kernels.hot import LOST, HotRows, HotSet, HotStatistics, Placed, Sizes, SlotSet
from transport.messages import LookupBatch, RowsPart

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@attrs.frozen(eq=False)
class Fill:
    """Something to do: send rows to their slots.

    Attributes:
        to: int64 ``[n]``, where each goes: byte in the card's tables.
        rows: uint8 ``[n_bytes]``, in which
        at: int64 ``[n]``, is where each begins, and
        sizes: int64 ``[n]``, its bytes.
        placed: Their slots.
        read_at: When they were asked for.
    """

    to: I64
    rows: U8
    at: I64
    sizes: I64
    placed: Placed
    read_at: float


class Kept(Protocol):
    """The rows that are kept of some tables.

    Attributes:
        row_bytes: int64 ``[n_tables]``, of a row as it is kept.
    """

    row_bytes: I64

    def begin(self, lookup: LookupBatch, splits: I64, now: float) -> tuple[Part, I64, I64]:
        """Begin a part of a batch, with the rows that are there.

        Args:
            lookup: What it wants; its keys are
            splits: int64 ``[n_tables + 1]``, of the tables so.
            now: In seconds.

        Returns:
            The part, the positions of the keys whose rows it lacks, ascending, and where among the
            part's bytes these rows go: int64 ``[n_misses]`` each.
        """

    def stored(self, tables: I64, rows: U8) -> U8:
        """Return rows that a shard sent, int64 ``[n]`` telling their tables, as they are kept."""

    def admit(self, flight: Flight, splits: I64, rows: U8, kept: NDArray[np.bool_]) -> list[Fill]:
        """Take in rows of a flight, as ``stored`` gave them: those that ``kept`` says.

        Returns:
            What is to be done before they are there.
        """

    def invalidate(self, table: int, keys: I64) -> None:
        """Let no batch find rows of these keys that were asked for before."""

    def complete(self, part: Part) -> RowsPart:
        """Return what the batch gets, which has all its rows now."""

    def release(self, part: Part) -> None:
        """Note that a part is given up."""

    def statistics(self) -> list[HotStatistics]:
        """Return what was done so far, of each table."""


class OnHost:
    """Rows in the host's memory. Implements ``Kept``."""

    def __init__(self, tables: Sequence[HotRows]) -> None:
        self._held = HotSet(tables)
        self.row_bytes = self._held.row_bytes

    def begin(self, lookup: LookupBatch, splits: I64, now: float) -> tuple[Part, I64, I64]:
        """See ``Kept``."""
        ends = np.cumsum(np.diff(splits) * self.row_bytes)
        part = Part(lookup, np.empty(int(ends[-1]) if len(ends) else 0, np.uint8))
        misses = self._held.take(lookup.keys, splits, now, part.rows)
        tables = np.searchsorted(splits, misses, side="right") - 1
        starts = ends - np.diff(splits) * self.row_bytes
        return part, misses, starts[tables] + (misses - splits[tables]) * self.row_bytes[tables]

    def stored(self, tables: I64, rows: U8) -> U8:
        """See ``Kept``."""
        return rows

    def admit(self, flight: Flight, splits: I64, rows: U8, kept: NDArray[np.bool_]) -> list[Fill]:
        """See ``Kept``."""
        self._held.admit(flight.keys, splits, rows, kept, flight.sent)
        return []

    def invalidate(self, table: int, keys: I64) -> None:
        """See ``Kept``."""
        self._held.tables[table].invalidate(keys)

    def complete(self, part: Part) -> RowsPart:
        """See ``Kept``: what a shard would have sent that has all these rows, and pools nothing."""
        return RowsPart(**_fields(part))

    def release(self, part: Part) -> None:
        """See ``Kept``."""

    def statistics(self) -> list[HotStatistics]:
        """See ``Kept``."""
        return [rows.statistics() for rows in self._held.tables]


class OnCard:
    """Rows on the executor's card. Implements ``Kept``.

    Args:
        tables: As the card has them.
        stale_s: How old a row of each may be.
        most_rows: Of a fill.
    """

    def __init__(self, tables: CardTables, stale_s: Sequence[float], most_rows: int) -> None:
        self._tables = tables
        self._most_rows = most_rows
        self.row_bytes = tables.row_bytes
        sizes = [
            Sizes.fitting(row_bytes, capacity * row_bytes, overhead_bytes=0)
            for row_bytes, capacity in zip(
                tables.row_bytes.tolist(), tables.capacities, strict=True
            )
        ]
        self._slots = SlotSet(list(zip(sizes, stale_s, strict=True)))

    def begin(self, lookup: LookupBatch, splits: I64, now: float) -> tuple[Part, I64, I64]:
        """See ``Kept``: the slots that are found are the part's until it is released."""
        slots, misses = self._slots.lease(lookup.keys, splits, now)
        tables = np.searchsorted(splits, misses, side="right") - 1
        sizes = self.row_bytes[tables]
        ends = np.cumsum(sizes)
        part = Part(
            lookup,
            np.empty(int(ends[-1]) if len(ends) else 0, np.uint8),
            lease=Lease(slots, splits, tables, ends - sizes, self._slots),
        )
        return part, misses, ends - sizes

    def stored(self, tables: I64, rows: U8) -> U8:
        """See ``Kept``."""
        return self._tables.stored(tables, rows)

    def admit(self, flight: Flight, splits: I64, rows: U8, kept: NDArray[np.bool_]) -> list[Fill]:
        """See ``Kept``: rows are found once ``arrived`` is told so."""
        placed = self._slots.place(flight.keys, splits, kept, flight.sent)
        fills = []
        for first in range(0, len(placed.slots), self._most_rows):
            some = placed.part(first, min(first + self._most_rows, len(placed.slots)))
            tables = flight.tables[some.places]
            sizes = self.row_bytes[tables]
            to = self._tables.offsets[tables] + some.slots * sizes
            fills.append(Fill(to, rows, flight.at[some.places], sizes, some, flight.sent))
        return fills

    def arrived(self, fill: Fill, *, lost: bool = False) -> None:
        """Note that a fill is over, or, if it is lost, that it will never be."""
        self._slots.arrived(fill.placed, LOST if lost else fill.read_at)

    def invalidate(self, table: int, keys: I64) -> None:
        """See ``Kept``."""
        self._slots.invalidate(table, keys)

    def complete(self, part: Part) -> RowsPart:
        """See ``Kept``."""
        assert part.lease is not None
        return CardPart(lease=part.lease, **_fields(part))

    def release(self, part: Part) -> None:
        """See ``Kept``."""
        assert part.lease is not None
        part.lease.release()

    def statistics(self) -> list[HotStatistics]:
        """See ``Kept``: bytes are the card's."""
        return self._slots.statistics()


def _fields(part: Part) -> dict[str, Any]:
    lookup = part.lookup
    return {
        "gateway": lookup.gateway,
        "seq": lookup.seq,
        "version": lookup.version,
        "part": lookup.part,
        "attempt": lookup.attempt,
        "degraded": part.degraded,
        "user": np.empty((lookup.user_ids.shape[1], 0), np.float32),
        "candidate": np.empty((lookup.candidate_ids.shape[1], 0), np.float32),
        "rows": part.rows,
    }
