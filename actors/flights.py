"""Rows that are being fetched for an executor's cached tables, and who waits for them.

A *flight* is what one group of shards was asked for on behalf of one batch. A key that is under way
is not asked for again: later batches wait for its flight too. Pure: no clock, no mailbox.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.card_part import Lease
from kernels.hot import Claims, copy_rows
from transport.messages import LookupBatch

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


@attrs.define(eq=False)
class Part:
    """A part of a batch that waits for rows.

    Attributes:
        rows: uint8 ``[n_bytes]``; those that need not be fetched are there.
        n_flights: How many it waits for; negative once it has failed.
        degraded: Whether default rows stand for some of its rows.
        lease: The others' slots, where rows are kept on a card; ``rows`` are then those fetched.
    """

    lookup: LookupBatch
    rows: U8
    n_flights: int = 0
    degraded: bool = False
    lease: Lease | None = None


@attrs.frozen(eq=False)
class Waiting:
    """Rows of a flight that a part waits for.

    Attributes:
        positions: int64 ``[n]``, which of the flight's rows.
        to: int64 ``[n]``, where each goes among the part's bytes.
    """

    part: Part
    positions: I64
    to: I64


@attrs.define(eq=False, kw_only=True)
class Flight:
    """Rows of some tables that one group was asked for.

    Attributes:
        first: Number of the claim on its first key; those on the others follow.
        tables: int64 ``[n]``, numbers of the keys' tables, ascending.
        sizes: int64 ``[n]``, bytes of each row as it is kept.
        at: int64 ``[n]``, where each begins among the rows, end to end.
        n_bytes: Of the answer.
        until: When nobody waits for it any more.
        late_at: When it is late.
    """

    first: int
    group: int
    tables: I64
    keys: I64
    sizes: I64
    at: I64
    n_bytes: int
    sent: float
    until: float
    late_at: float
    waiting: list[Waiting] = attrs.Factory(list)

    @property
    def last(self) -> int:
        """The number after that of its last claim."""
        return self.first + len(self.keys)

    def land(self, rows: U8, *, degraded: bool = False) -> list[Part]:
        """Give those who wait their rows; return the parts that are complete now.

        Args:
            rows: uint8 ``[sum(sizes)]``, as they are kept.
            degraded: Whether these are default rows in place of the real ones.
        """
        complete = []
        for waiting in self.waiting:
            part, positions = waiting.part, waiting.positions
            part.degraded = part.degraded or degraded
            copy_rows(part.rows, waiting.to, rows, self.at[positions], self.sizes[positions])
            part.n_flights -= 1
            if not part.n_flights:
                complete.append(part)
        return complete

    def fail(self) -> list[Part]:
        """Let those who wait fail; return the parts that had not failed before."""
        failed = []
        for waiting in self.waiting:
            if waiting.part.n_flights > 0:
                waiting.part.n_flights = -1
                failed.append(waiting.part)
        return failed


@attrs.define(eq=False)
class Flights:
    """All flights under way."""

    _claims: Claims = attrs.Factory(Claims)
    _flights: dict[int, Flight] = attrs.Factory(dict)  # by their first numbers, which ascend

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._flights.values()))

    def get(self, first: int) -> Flight | None:
        """Return a flight that is under way, by its first number."""
        return self._flights.get(first)

    @property
    def next_number(self) -> int:
        """The first number that no claim has had yet."""
        return self._claims.next_number

    def claim(self, tables: I64, keys: I64, deadline: float, since: float) -> I64:
        """Claim the keys that no flight brings in time.

        Args:
            tables: int64 ``[n]``, numbers of the keys' tables.
            keys: int64 ``[n]``.
            deadline: Flights that may end before it do not count.
            since: Nor do those that were sent before it.

        Returns:
            int64 ``[n]``, the claims' numbers, from ``next_number`` on where they are new.
        """
        oldest = 0
        for flight in self._flights.values():
            if flight.until < deadline or flight.sent < since:
                oldest = flight.last
        return self._claims.take(tables, keys, oldest)

    def give_up(self, tables: I64, keys: I64, first: int) -> None:
        """Give claims up that are numbered from ``first`` on, and that no flight has."""
        self._claims.drop(tables, keys, first)

    def add(self, flight: Flight) -> None:
        """Enter a flight, of claims after those of all that are there."""
        self._flights[flight.first] = flight

    def wait(self, part: Part, numbers: I64, to: I64) -> None:
        """Let a part wait for claimed rows.

        Args:
            part: The part.
            numbers: int64 ``[n]``, of claims that flights have.
            to: int64 ``[n]``, where each row goes among the part's bytes.
        """
        firsts = np.fromiter(self._flights, np.int64, len(self._flights))
        of = np.searchsorted(firsts, numbers, side="right") - 1
        for index in np.unique(of).tolist():
            flight = self._flights[int(firsts[index])]
            mine = of == index
            flight.waiting.append(Waiting(part, numbers[mine] - flight.first, to[mine]))
            part.n_flights += 1

    def changed(self, table: int, keys: I64) -> None:
        """Note that rows changed: those under way are not waited for from now on, nor kept."""
        self._claims.drop(np.full(len(keys), table, np.int64), keys)

    def end(self, flight: Flight) -> NDArray[np.bool_]:
        """Take a flight out.

        Returns:
            bool ``[n]``, which of its rows may be kept: those that have not changed since it was
            sent, and that no later flight brings.
        """
        del self._flights[flight.first]
        numbers = self._claims.drop(flight.tables, flight.keys, flight.first, flight.last)
        return numbers >= 0
