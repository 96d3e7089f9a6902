"""One model in an executor: joins in, windows out, answers back. No event loop and no mailbox.

The life of a batch here: its head and parts join; each of its requests is offered to the window
policy; windows are staged in a lane's buffers, run by whoever calls, and their scores go back to
the gateway. Every request that a complete join brought is answered exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from actors.block_layout import BlockLayout
from actors.join import Join
from actors.joins import Joins
from kernels.executor import DenseExecutor
from kernels.program import Bucket
from runtime.metrics import Metrics
from runtime.window import Slice, Window, WindowPolicy
from transport.messages import Batch, LookupBatch, PartsLate, RowsPart, ScoresBatch
from transport.values import ERROR_CODES, OK

TellGateway: TypeAlias = Callable[[str, ScoresBatch | PartsLate], None]

# How long a part is kept whose head has not come: far above any budget that makes sense here.
_PATIENCE_S = 5.0


@attrs.frozen(eq=False)
class Work:
    """One request in the window policy's hands.

    Attributes:
        position: Of the request in its batch.
        first_row: Of its ``n_rows`` rows in the batch.
    """

    join: Join
    position: int
    first_row: int
    n_rows: int


@attrs.define(eq=False)
class _Run:
    """Consecutive rows of one batch within a window; whole requests but perhaps at the ends."""

    join: Join
    slices: list[Slice[Work]]
    start: int
    stop: int

    @property
    def first(self) -> int:
        return self.slices[0].key.position

    @property
    def last(self) -> int:
        return self.slices[-1].key.position + 1


@attrs.define(eq=False)
class _Partial:
    """A request that is larger than a window, while its slices come back."""

    scores: NDArray[np.float32]
    n_missing: int


class Engine:
    """Joins, windows and answers of one model.

    Args:
        version: Of the bundle; batches of another are refused.
        dense: Runs the dense graph. Closed by ``close``.
        layout: Of the model's blocks.
        policy: Decides when windows close.
        tell: Sends an answer to a gateway.
        metrics: Shared with the actor.
    """

    def __init__(
        self,
        *,
        version: str,
        dense: DenseExecutor,
        layout: BlockLayout,
        policy: WindowPolicy[Work],
        tell: TellGateway,
        metrics: Metrics,
    ) -> None:
        self.version = version
        self.dense = dense
        self._layout = layout
        self._policy = policy
        self._tell = tell
        self._metrics = metrics
        self._joins = Joins(layout)
        self._partial: dict[Work, _Partial] = {}
        self._n_running = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is running or waiting to."""
        return not self._n_running and not self._policy.n_requests

    # Work in

    def begin(self, head: Batch, at: float) -> None:
        """Take a batch's head."""
        if head.version != self.version:
            problem = f"this executor has version {self.version[:12]}, not {head.version[:12]}"
            refused = Join(head.gateway, head.seq, at, joined=at)
            self._refuse_of(refused, range(len(head.n_rows)), "unavailable", problem)
            return
        join = self._joins.begin(head, at)
        if join is not None:
            self._offer(join)

    def add(self, part: RowsPart | LookupBatch, at: float) -> None:
        """Take a shard's part, or the gateway's ids for the executor's own tables.

        Of a part that has failed the gateway is told: it knows whom else to ask.
        """
        if isinstance(part, RowsPart) and part.code != "ok":
            self._metrics.count("failed_parts")
            self._tell(part.gateway, _failed(part))
            return
        join = self._joins.add(part, at, _PATIENCE_S)
        if join is not None:
            self._offer(join)

    def _offer(self, join: Join) -> None:
        problem = join.problem(self._layout) or join.pool(self._layout)
        positions = range(len(join.deadlines))
        if problem is not None:
            self._refuse_of(join, positions, *problem)
            return
        join.measure(self._layout)
        refused = []
        splits, offer, now = join.row_splits, self._policy.offer, join.joined
        for position, deadline in enumerate(join.deadlines):
            first_row = splits[position]
            n_rows = splits[position + 1] - first_row
            if not offer(Work(join, position, first_row, n_rows), n_rows, deadline, now):
                refused.append(position)
        if refused:
            self._refuse_of(join, refused, "overloaded", "the executor's backlog is full")

    # Windows

    def windows(self, now: float) -> Iterator[Window[Work]]:
        """Yield each window that is to run now, staged; then answer what is too late.

        The caller runs each on its lane, then calls ``done`` or ``failed``.
        """
        while (window := self._policy.next_window(now)) is not None:
            self._stage(window)
            self._n_running += 1
            self._metrics.count(f"closed_by_{window.cause}")
            yield window
        for key in self._policy.expire(now):
            self._partial.pop(key, None)
            self._refuse_of(key.join, [key.position], "deadline", "no time left to run it")
        for join, parts in self._joins.late(now):
            self._metrics.count("late_parts", len(parts))
            n = len(parts)
            late = PartsLate(
                seq=join.seq,
                parts=np.array(parts, np.int32),
                attempts=np.zeros(n, np.int32),
                codes=np.full(n, OK, np.uint8),
            )
            self._tell(join.gateway, late)
        self._metrics.count("forgotten", self._joins.expire(now))

    def predict(self, window: Window[Work]) -> float:
        """Return the seconds that a window's launch takes on average."""
        return self._policy.predict(window.n_rows)

    def wake_at(self, now: float) -> float | None:
        """Return when ``windows`` has something to do again if nothing happens before, or None."""
        joins = self._joins
        times = (self._policy.wake_at(now), joins.next_deadline(), joins.next_late())
        return min((time for time in times if time is not None), default=None)

    def _stage(self, window: Window[Work]) -> None:
        shape = self._shape(window)
        staging = self.dense.staging(window.lane, shape)
        if shape is not None:
            self._metrics.observe("window_steps", shape.length)
            self._metrics.count("padding_steps", staging.length - shape.length)
        layout = self._layout.at(staging.length)
        if staging.spare is not None:
            staging.spare.n_bytes = 0
        row = request = 0
        for run in _runs(window.slices):
            n_rows, n_requests = run.stop - run.start, run.last - run.first
            users = staging.user[request : request + n_requests]
            run.join.copy_user(layout, users, run.first, run.last)
            rows = staging.candidate[row : row + n_rows]
            run.join.copy_candidates(layout, rows, run.start, run.stop)
            user_bags = candidate_bags = None
            if staging.user_bags is not None:
                user_bags = staging.user_bags.part(request, request + n_requests)
                run.join.copy_user_ids(layout, user_bags, run.first, run.last)
            if staging.candidate_bags is not None:
                candidate_bags = staging.candidate_bags.part(row, row + n_rows)
                run.join.copy_candidate_ids(layout, candidate_bags, run.start, run.stop)
            if layout.card is not None and staging.spare is not None:
                assert run.join.card is not None
                requests, rows_of = slice(run.first, run.last), slice(run.start, run.stop)
                found = run.join.card.part(requests, rows_of)
                layout.card.stage(found, staging.spare, user_bags, candidate_bags)
            row += n_rows
            request += n_requests
        counts = [each.stop - each.start for each in window.slices]
        staging.request_of_row[:row] = np.repeat(np.arange(request), counts)

    def _shape(self, window: Window[Work]) -> Bucket | None:
        """Return a window's shape, where its longest sequence matters."""
        if self._layout.sequences is None:
            return None
        works = (each.key for each in window.slices)
        length = max(work.join.lengths[work.position] for work in works)
        return Bucket(window.n_rows, len(window.slices), length)

    # Answers

    def done(
        self, window: Window[Work], scores: NDArray[np.float32], launched: float, now: float
    ) -> None:
        """Take a window's scores, float32 ``[n_rows, n_outputs]``; its lane is idle again."""
        self._n_running -= 1
        self._policy.finished(window, now - launched)
        self._metrics.observe("window_requests", len(window.slices))
        self._metrics.observe("window_rows", window.n_rows)
        row = 0
        for run in _runs(window.slices):
            n_rows = run.stop - run.start
            self._answer(run, scores[row : row + n_rows], launched, now)
            row += n_rows

    def failed(self, window: Window[Work], problem: str, code: str = "internal") -> None:
        """Answer the requests of a window that could not be run."""
        self._n_running -= 1
        self._policy.finished(window, None)
        for key in dict.fromkeys(each.key for each in window.slices):
            self._policy.cancel(key)
            self._partial.pop(key, None)
            self._refuse_of(key.join, [key.position], code, problem)

    def abandon(self, problem: str) -> None:
        """Answer ``unavailable`` to everything that waits. Nothing may be running."""
        for key in self._policy.expire(math.inf):
            self._partial.pop(key, None)
            self._refuse_of(key.join, [key.position], "unavailable", problem)
        for join in self._joins.drain():
            self._refuse_of(join, range(len(join.deadlines)), "unavailable", problem)

    def close(self) -> None:
        """Give the lanes back. Nothing may be running."""
        self.dense.close()

    def _answer(self, run: _Run, scores: NDArray[np.float32], launched: float, now: float) -> None:
        positions: list[int] = []
        pieces: list[NDArray[np.float32]] = []
        row = 0
        for each in run.slices:
            n_rows = each.stop - each.start
            piece: NDArray[np.float32] | None = scores[row : row + n_rows]
            row += n_rows
            if n_rows != each.key.n_rows:
                piece = self._collect(each, scores[row - n_rows : row])
            if piece is not None:
                positions.append(each.key.position)
                pieces.append(piece)
        if not positions:
            return
        join = run.join
        whole = len(positions) == len(run.slices) and row == sum(map(len, pieces))
        self._send(
            join,
            positions,
            np.zeros(len(positions), np.uint8),
            scores if whole else np.concatenate(pieces),
            queue_us=(launched - join.joined) * 1e6,
            compute_us=(now - launched) * 1e6,
        )

    def _collect(
        self, part: Slice[Work], scores: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """Keep the scores of a slice of a request; return all of them once they are complete."""
        partial = self._partial.get(part.key)
        if partial is None:
            n_rows = part.key.n_rows
            partial = _Partial(np.empty((n_rows, scores.shape[1]), np.float32), n_rows)
            self._partial[part.key] = partial
        partial.scores[part.start : part.stop] = scores
        partial.n_missing -= part.stop - part.start
        if partial.n_missing:
            return None
        del self._partial[part.key]
        return partial.scores

    def _refuse_of(self, join: Join, positions: Sequence[int], code: str, message: str) -> None:
        codes = np.full(len(positions), ERROR_CODES.index(code), np.uint8)
        self._metrics.count(f"refused_{code}", len(positions))
        self._send(join, positions, codes, _NO_SCORES, message=message)

    def _send(
        self,
        join: Join,
        positions: Sequence[int],
        codes: NDArray[np.uint8],
        scores: NDArray[np.float32],
        *,
        queue_us: float = 0.0,
        compute_us: float = 0.0,
        message: str = "",
    ) -> None:
        join.answered(positions)
        self._tell(
            join.gateway,
            ScoresBatch(
                seq=join.seq,
                requests=np.array(positions, np.int32),
                codes=codes,
                scores=scores,
                degraded=join.degraded[positions] if len(join.degraded) else join.degraded,
                part_us=join.part_us,
                part_attempts=join.part_attempts,
                join_us=int((join.joined - join.arrived) * 1e6),
                queue_us=int(queue_us),
                compute_us=int(compute_us),
                message=message,
            ),
        )


_NO_SCORES = np.empty((0, 0), np.float32)


def _failed(part: RowsPart) -> PartsLate:
    return PartsLate(
        seq=part.seq,
        parts=np.array([part.part], np.int32),
        attempts=np.array([part.attempt], np.int32),
        codes=np.array([ERROR_CODES.index(part.code)], np.uint8),
        message=part.message,
    )


def _runs(slices: Sequence[Slice[Work]]) -> Iterator[_Run]:
    """Group a window's slices into runs of adjacent rows, each of one batch."""
    run: _Run | None = None
    for each in slices:
        key = each.key
        start = key.first_row + each.start
        stop = key.first_row + each.stop
        if (
            run is not None
            and run.join is key.join
            and run.stop == start
            and run.last == key.position
        ):
            run.slices.append(each)
            run.stop = stop
            continue
        if run is not None:
            yield run
        run = _Run(key.join, [each], start, stop)
    if run is not None:
        yield run
