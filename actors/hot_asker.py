"""An executor's way to the shards, for rows of cached tables that it lacks (``hot_rows.py``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attrs
import numpy as np
import trio
from numpy.typing import NDArray

from actors.hot_kept import Fill
from actors.hot_rows import Doubt, HotTables, Todo
from actors.probing import Prober
from kernels.errors import DeviceLost
from runtime.actor import Context
from runtime.metrics import Metrics
from transport.errors import Overloaded, Unavailable
from transport.messages import LookupBatch, RowsPart
from transport.updates import RowsChanged

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]


class Filler(Protocol):
    """Puts rows on a card: ``kernels.gpu.filler.RowFiller``, which says how."""

    def put(self, to: I64, rows: U8, at: I64, sizes: I64) -> int | None:
        """Queue the writing of rows; return the put's number, or None if it has to be left."""

    def n_done(self) -> int:
        """Return how many puts are over."""


class HotAsker:
    """Does what the books of cached tables say. Used from one event loop.

    Args:
        tables: The books.
        part: Which part of a batch is this executor's own.
        context: The executor's.
        metrics: Shared with the executor.
        give: Takes a part of a batch, as if a shard had sent it.
        filler: Puts rows on the executor's card, if they are kept there.
    """

    def __init__(
        self,
        tables: HotTables,
        part: int,
        context: Context,
        metrics: Metrics,
        give: Callable[[RowsPart, float], None],
        filler: Filler | None = None,
    ) -> None:
        self.part = part
        self._tables = tables
        self._context = context
        self._metrics = metrics
        self._give = give
        self._filler = filler
        self._filling: deque[tuple[int, Fill]] = deque()
        self._lost: DeviceLost | None = None
        self._prober = Prober(context, tables.dead, self._died)

    def start(self, nursery: trio.Nursery) -> None:
        """Find out which replicas serve; a nursery runs what takes time."""
        self._prober.start(nursery)
        for name in self._tables.replicas:
            self._prober.probe(name)

    def ask(self, lookup: LookupBatch, at: float) -> None:
        """Take what a batch wants of cached tables, which came at ``at``."""
        now = trio.current_time()
        if at + lookup.budget_us * 1e-6 <= now:
            self._metrics.count("expired")
            return
        self._look_at_fills()
        shared = self._tables.n_shared
        self._do(self._tables.ask(lookup, now), now)
        self._metrics.count("shared_fetches", self._tables.n_shared - shared)

    def answered(self, answer: RowsPart) -> None:
        """Take what a shard has answered."""
        self._look_at_fills()
        now = trio.current_time()
        self._do(self._tables.answered(answer, now), now)

    def changed(self, message: RowsChanged) -> None:
        """Take a shard's word that rows have changed."""
        self._tables.changed(message.table, message.keys)
        self._metrics.count("changed_rows", len(message.keys))

    def tick(self, now: float) -> None:
        """Do what is due; ``wake_at`` says when something is.

        Raises:
            DeviceLost: The card is lost, as was seen when rows were sent there.
        """
        if self._lost is not None:
            raise self._lost
        self._do(self._tables.tick(now), now)

    def wake_at(self) -> float | None:
        """Return when ``tick`` has something to do if nothing happens before, or None."""
        return self._tables.wake_at()

    def statistics(self) -> dict[str, Any]:
        """Return what is told of each cached table, as ``hot.`` and its name, and of replicas."""
        tables = {
            f"hot.{table}": {"hit_rate": round(figures.hit_rate, 4), **attrs.asdict(figures)}
            for table, figures in self._tables.statistics().items()
        }
        return {**tables, "replicas_away": len(self._tables.dead)}

    def _do(self, todo: Iterable[Todo], now: float) -> None:
        queue = deque(todo)
        while queue:
            each = queue.popleft()
            if isinstance(each, RowsPart):
                self._metrics.count("default_parts", each.degraded)
                self._give(each, now)
                continue
            if isinstance(each, Doubt):
                self._prober.probe(each.replica)
                continue
            if isinstance(each, Fill):
                self._fill(each)
                continue
            try:
                self._context.ref(each.replica).tell(each.lookup)
            except Unavailable as error:
                queue.extend(self._tables.died(each.replica, str(error), now))
                self._prober.probe(each.replica)
            except Overloaded as error:
                queue.extend(self._tables.refused(each, error.code, str(error), now))

    def _fill(self, fill: Fill) -> None:
        """Send rows to their slots; those for which there is no room are fetched again."""
        assert self._filler is not None
        number = None
        if self._lost is None:
            try:
                number = self._filler.put(fill.to, fill.rows, fill.at, fill.sizes)
            except DeviceLost as error:  # what is at hand is taken in first, then ``tick`` tells
                self._lost = error
        if number is None:
            self._tables.lost(fill)
        else:
            self._filling.append((number, fill))
        self._metrics.count("rows_not_filled" if number is None else "rows_filled", len(fill.to))

    def _look_at_fills(self) -> None:
        """Note which rows have come to their slots."""
        if self._filling and self._filler is not None and self._lost is None:
            try:
                n_done = self._filler.n_done()
            except DeviceLost as error:
                self._lost = error
                return
            while self._filling and self._filling[0][0] < n_done:
                self._tables.filled(self._filling.popleft()[1])

    def _died(self, name: str, how: str) -> None:
        now = trio.current_time()
        self._do(self._tables.died(name, how, now), now)
