"""The gateway's books: which requests of which batches still want an answer, and until when.

Pure: no clock, no sockets. Each request leaves the books exactly once, through ``settle``,
``fail`` or ``expire``, and whoever takes it out answers it. What comes for it later is told so and
is dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

import attrs

from runtime.actor import Reply


@attrs.frozen(eq=False)
class Pending:
    """A request that wants an answer.

    Attributes:
        route: Identity of the client's connection, or the reply of an ask.
        version: Of the model: the one that serves the request's whole batch.
        arrived: When it arrived, in seconds of the clock that all times here are of.
        parsed: When its features were parsed and its lookups sent off.
        deadline: When its budget runs out.
    """

    request_id: int
    route: bytes | Reply
    model: str
    version: str
    n_rows: int
    arrived: float
    parsed: float
    deadline: float


@attrs.define(eq=False)
class _Entry:
    executor: str
    requests: list[Pending]
    waiting: list[bool]
    n_waiting: int

    def first_deadline(self) -> float:
        pairs = zip(self.requests, self.waiting, strict=True)
        return min(request.deadline for request, waiting in pairs if waiting)


@attrs.define
class InFlight:
    """Requests handed on, by batch and position in it.

    Attributes:
        gone: Called with the number of each batch that has left the books, once.
        n_requests: How many want an answer.
    """

    gone: Callable[[int], None] = lambda seq: None
    n_requests: int = 0
    _batches: dict[int, _Entry] = attrs.field(factory=dict, init=False)
    _deadlines: list[tuple[float, int]] = attrs.field(factory=list, init=False)
    _rows: dict[str, int] = attrs.field(factory=dict, init=False)
    _versions: dict[tuple[str, str], int] = attrs.field(factory=dict, init=False)

    def add(self, seq: int, requests: Iterable[Pending], executor: str) -> None:
        """Enter a batch of at least one request, whose ``seq`` was never used before."""
        held = list(requests)
        entry = _Entry(executor, held, [True] * len(held), len(held))
        self._batches[seq] = entry
        self.n_requests += len(held)
        for request in held:
            key = request.model, request.version
            self._versions[key] = self._versions.get(key, 0) + 1
        n_rows = sum(request.n_rows for request in held)
        self._rows[executor] = self._rows.get(executor, 0) + n_rows
        heapq.heappush(self._deadlines, (entry.first_deadline(), seq))

    def rows_at(self, executor: str) -> int:
        """Return the rows that an executor has been given and has not answered."""
        return self._rows.get(executor, 0)

    def n_of(self, model: str, version: str) -> int:
        """Return how many requests that a version of a model serves want an answer."""
        return self._versions.get((model, version), 0)

    def settle(self, seq: int, positions: Iterable[int]) -> list[tuple[Pending, bool]]:
        """Take requests of a batch out.

        Returns:
            Each request, and whether it still wanted an answer; nothing for a batch all of whose
            requests have left before.

        Raises:
            IndexError: The batch never had a request at that position.
        """
        entry = self._batches.get(seq)
        if entry is None:
            return []
        return [
            (entry.requests[position], self._take(seq, entry, position)) for position in positions
        ]

    def fail(self, seq: int) -> list[Pending]:
        """Take out all that is left of a batch."""
        entry = self._batches.get(seq)
        n_held = len(entry.requests) if entry is not None else 0
        return [request for request, wanted in self.settle(seq, range(n_held)) if wanted]

    def expire(self, now: float) -> list[Pending]:
        """Take out every request whose deadline is not after ``now``."""
        expired: list[Pending] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, seq = heapq.heappop(self._deadlines)
            entry = self._batches.get(seq)
            if entry is None:
                continue
            for position, request in enumerate(entry.requests):
                if request.deadline <= now and self._take(seq, entry, position):
                    expired.append(request)
            if entry.n_waiting:
                heapq.heappush(self._deadlines, (entry.first_deadline(), seq))
        return expired

    def next_deadline(self) -> float | None:
        """Return the first deadline of a batch that has requests waiting, or None.

        One of its requests may have left: then ``expire`` finds nothing at that time.
        """
        while self._deadlines and self._deadlines[0][1] not in self._batches:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _take(self, seq: int, entry: _Entry, position: int) -> bool:
        if not entry.waiting[position]:
            return False
        entry.waiting[position] = False
        entry.n_waiting -= 1
        self.n_requests -= 1
        request = entry.requests[position]
        self._rows[entry.executor] -= request.n_rows
        self._versions[request.model, request.version] -= 1
        if not self._versions[request.model, request.version]:
            del self._versions[request.model, request.version]
        if not entry.n_waiting:
            del self._batches[seq]
            self.gone(seq)
        return True
