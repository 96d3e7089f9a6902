"""When a TensorBatch closes, and what is in it: a pure policy, without clock or event loop.

Requests that are ready to run are *offered*; the policy answers with *windows*, each of which is
one launch on one idle lane. Events go in with the time at which they happen; after any of them its
user calls ``next_window`` until there is none, then ``expire``, and comes back at ``wake_at``.

A window closes on

* **capacity**: it is full, or the next request does not fit;
* **deadline**: growing on, or waiting on, its first request would miss its deadline by the learned
  times of a launch;
* an **idle lane**: neither, but there is a lane with nothing to do. Waiting for more requests would
  lengthen every answer and shorten no launch. ``linger`` makes it wait all the same, for launches
  whose time hardly depends on their rows.

*Order.* Earliest deadline first: optimal on one lane if all deadlines can be met (Liu and Layland,
1973, section 7). No request starves, large or small: of what arrives after it, only what has less
time goes first. A request that does not fit into what is left of a window closes it, and nobody
overtakes. A request larger than a whole window is split: it fills what is left, then goes on in the
next one.

*Overload.* By itself that order collapses: every window begins with requests that are nearly late,
and ends too late for them. Three rules keep goodput near the lane's capacity, after Nexus (Shen and
others, SOSP 2019, sections 4.1 and 6.3). At 1.5 times the load that a lane can carry and budgets of
3 to 20 full windows, a simulation (``tests/runtime/test_window.py``) answers 60 to 89 % of requests
in time; the mere order, about 10 %.

* A window takes at most half of its first request's budget (the other half may pass while the lane
  runs the window before), unless even so it takes no longer than two launches of one row.
* While more than one such window waits, requests that would miss their deadline in it are given up.
* Otherwise a window is cut short for its first request's sake, if rows per second stay at 80 %.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable
from itertools import islice, takewhile
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import attrs

from runtime.launch_time import LaunchTimes

K = TypeVar("K", bound=Hashable)

Cause = Literal["capacity", "deadline", "idle"]

_BUDGET_SHARE: Final = 0.5
_FIXED_COST_LAUNCHES: Final = 2
_WORTHWHILE_EFFICIENCY: Final = 0.8


class Slice(NamedTuple, Generic[K]):
    """Rows ``start`` to ``stop`` (exclusive) of a request; all of them, unless it was split."""

    key: K
    start: int
    stop: int


@attrs.frozen(kw_only=True, eq=False)
class Window(Generic[K]):
    """One launch.

    Attributes:
        lane: Where it runs; the lane is busy until ``finished``.
        slices: What it holds, in order; each is one row of the user side.
        n_rows: Rows of all slices.
        cause: Why it closed.
    """

    lane: int
    slices: list[Slice[K]]
    n_rows: int
    cause: Cause


# A request in the queue, in its order: deadline, number, key, start, stop, budget. No two
# share a number. A plain tuple, as there is one for each request.
_Waiting: TypeAlias = tuple[float, int, K, int, int, float]


class WindowPolicy(Generic[K]):
    """Collects requests into windows. Times are seconds of any one clock.

    Args:
        max_rows: The most rows of a window.
        max_requests: The most slices of a window.
        n_lanes: Windows that may run at once.
        bucket: The rows that a launch of so many rows counts as; see ``DenseExecutor.bucket``.
        linger: How long an idle lane waits for a fuller window.
        backlog_rows: The high-water mark: rows that may wait.
        shed: Whether requests that cannot make it are given up before their deadline, in favour of
            others that can.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_requests: int,
        n_lanes: int,
        bucket: Callable[[int], int],
        linger: float = 0.0,
        backlog_rows: int,
        shed: bool = True,
    ) -> None:
        self._max_rows = max_rows
        self._max_requests = max_requests
        self._n_lanes = n_lanes
        self._bucket = bucket
        self._linger = linger
        self._backlog_rows = backlog_rows
        self._shed = shed
        self._times = LaunchTimes()
        self._idle = list(range(n_lanes - 1, -1, -1))  # the last used is first: its caches are warm
        self._queue: list[_Waiting[K]] = []  # ascending
        self._waiting: dict[K, _Waiting[K]] = {}
        self._n_rows = 0
        self._n_offered = 0
        self._given_up: list[K] = []
        self._opened = 0.0  # when the queue last began to fill

    @property
    def n_requests(self) -> int:
        """Requests that wait, wholly or in part."""
        return len(self._queue)

    @property
    def n_rows(self) -> int:
        """Rows that wait."""
        return self._n_rows

    @property
    def n_idle(self) -> int:
        """Lanes with nothing to do."""
        return len(self._idle)

    def predict(self, n_rows: int) -> float:
        """Return the seconds that a launch of so many rows takes on average."""
        return self._times.mean(self._bucket(n_rows))

    def learn(self, n_rows: int, seconds: float) -> None:
        """Enter a launch that was measured elsewhere, while warming up."""
        self._times.learn(self._bucket(n_rows), seconds)

    def offer(self, key: K, n_rows: int, deadline: float, now: float) -> bool:
        """Queue a request that is ready to run.

        Returns:
            False if it was refused, as too many rows wait. An empty queue refuses nothing.

        Raises:
            ValueError: It has no rows, or its key is waiting already.
        """
        if n_rows < 1 or key in self._waiting:
            raise ValueError(f"request {key}: {n_rows} rows, or offered twice")
        queue = self._queue
        if not queue:
            self._opened = now
        elif self._n_rows + n_rows > self._backlog_rows:
            return False
        self._n_offered += 1
        waiting = (deadline, self._n_offered, key, 0, n_rows, deadline - now)
        if not queue or queue[-1] < waiting:
            queue.append(waiting)
        else:
            insort(queue, waiting)
        self._waiting[key] = waiting
        self._n_rows += n_rows
        return True

    def cancel(self, key: K) -> bool:
        """Take a request, or what has not been launched of it, out of the queue, if it is there."""
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            return False
        del self._queue[bisect_left(self._queue, waiting)]
        _, _, _, start, stop, _ = waiting
        self._n_rows -= stop - start
        return True

    def expire(self, now: float) -> list[K]:
        """Return each request that left the queue unlaunched, late or given up, exactly once.

        Slices of it may have been launched before; nobody waits for their scores any more.
        """
        self._drop_late(now)
        given_up, self._given_up = self._given_up, []
        return given_up

    def next_window(self, now: float) -> Window[K] | None:
        """Return a window to launch now, or None if every lane is busy or nothing is to be done."""
        if not self._idle:
            return None
        self._drop_late(now)
        cause = self._why_closed(now) if self._queue else None
        if cause is None:
            return None
        most_rows = self._most_rows()
        if self._shed and self._drop_hopeless(now, most_rows):
            most_rows = self._most_rows()
        sums, cause = self._fit(now, most_rows, cause)
        return Window(lane=self._idle.pop(), slices=self._take(sums), n_rows=sums[-1], cause=cause)

    def finished(self, window: Window[K], seconds: float | None) -> None:
        """Give a lane back, and learn from its launch; ``seconds`` is None if that failed.

        Raises:
            ValueError: The lane was idle.
        """
        if window.lane in self._idle:
            raise ValueError(f"lane {window.lane}: finished twice")
        self._idle.append(window.lane)
        if seconds is not None:
            self._times.learn(self._bucket(window.n_rows), seconds)

    def wake_at(self, now: float) -> float | None:
        """Return when to call again if nothing happens before, or None: there is nothing to do."""
        if not self._queue:
            return None
        first_deadline = self._queue[0][0]
        if not self._idle:
            return first_deadline
        return min(first_deadline, self._opened + self._linger, self._latest_start())

    def _bound(self, n_rows: int) -> float:
        return self._times.bound(self._bucket(n_rows))

    def _latest_start(self) -> float:
        """Return when what waits must be launched for the first deadline to be met."""
        return self._queue[0][0] - self._bound(min(self._n_rows, self._max_rows))

    def _why_closed(self, now: float) -> Cause | None:
        if self._n_rows >= self._max_rows or len(self._queue) >= self._max_requests:
            return "capacity"
        if self._linger == 0 or now >= self._opened + self._linger:
            return "idle"
        return "deadline" if now >= self._latest_start() else None

    def _most_rows(self) -> int:
        """Return how many rows a window may have, by its first request's budget."""
        rows = min(self._n_rows, self._max_rows)
        _, _, _, _, _, budget = self._queue[0]
        limit = _BUDGET_SHARE * budget
        longest = self._bound(rows)
        if longest <= limit:
            return self._max_rows
        limit = max(limit, _FIXED_COST_LAUNCHES * self._bound(1))
        if longest <= limit:
            return self._max_rows
        return max(bisect_right(range(1, rows + 1), limit, key=self._bound), 1)

    def _fit(self, now: float, most_rows: int, cause: Cause) -> tuple[list[int], Cause]:
        """Choose the slices of a window: the running sum of their rows, and why it closed.

        At least one slice. Only the last may be less than all that is left of its request.
        """
        sums: list[int] = []
        total = 0
        for _, _, _, start, stop, _ in islice(self._queue, self._max_requests):
            n_rows = stop - start
            if total + n_rows <= most_rows:
                total += n_rows
                sums.append(total)
                continue
            cause = "capacity" if most_rows == self._max_rows else "deadline"
            if n_rows > self._max_rows:
                n_rows = most_rows - total
            elif sums:
                break
            if n_rows:
                sums.append(total + n_rows)
            break
        return self._cut_short(now, sums) or (sums, cause)

    def _cut_short(self, now: float, sums: list[int]) -> tuple[list[int], Cause] | None:
        """Return fewer slices, if so the first one's deadline can be met and the lane used well."""
        left = self._queue[0][0] - now
        seconds = self._bound(sums[-1])
        if seconds <= left or len(sums) == 1:
            return None
        n_slices = bisect_right(sums, left, key=self._bound)
        if n_slices == 0:
            return None
        rows = sums[n_slices - 1]
        if rows * seconds < _WORTHWHILE_EFFICIENCY * sums[-1] * self._bound(rows):
            return None
        return sums[:n_slices], "deadline"

    def _take(self, sums: list[int]) -> list[Slice[K]]:
        """Take slices off the queue."""
        slices = []
        taken = 0
        n_whole = 0
        for (deadline, number, key, start, stop, budget), rows in zip(
            self._queue, sums, strict=False
        ):
            n_left = stop - start - (rows - taken)
            slices.append(Slice(key, start, stop - n_left))
            if n_left:
                rest = (deadline, number, key, stop - n_left, stop, budget)
                self._waiting[key] = self._queue[n_whole] = rest
            else:
                del self._waiting[key]
                n_whole += 1
            taken = rows
        del self._queue[:n_whole]
        self._n_rows -= taken
        return slices

    def _drop_late(self, now: float) -> None:
        if self._queue and self._queue[0][0] <= now:
            self._give_up(sum(1 for _ in takewhile(lambda w: w[0] <= now, self._queue)))

    def _drop_hopeless(self, now: float, most_rows: int) -> int:
        """Give up the first requests as the rules for overload say; return how many.

        The last request is never given up: its launch, if nothing else, shows whether the times
        that were predicted are still right.
        """
        _, _, _, start, stop, _ = self._queue[0]
        if self._n_rows <= most_rows and stop - start <= self._max_rows:
            return 0
        if len(self._queue) > self._max_requests:
            firsts = islice(self._queue, self._max_requests)
            most_rows = min(most_rows, sum(stop - start for _, _, _, start, stop, _ in firsts))
        window_ends = now + self._bound(most_rows)
        seconds_a_row = self.predict(self._max_rows) / (self._max_rows * self._n_lanes)
        n_hopeless = 0
        rows_left = self._n_rows
        for deadline, _, _, start, stop, _ in islice(self._queue, len(self._queue) - 1):
            n_rows = stop - start
            late = deadline < window_ends and rows_left - n_rows >= most_rows
            too_large = n_rows > self._max_rows and deadline < now + n_rows * seconds_a_row
            if not late and not too_large:
                break
            n_hopeless += 1
            rows_left -= n_rows
        self._give_up(n_hopeless)
        return n_hopeless

    def _give_up(self, n_requests: int) -> None:
        """Take the first requests off the queue, for ``expire`` to return."""
        for _, _, key, start, stop, _ in self._queue[:n_requests]:
            del self._waiting[key]
            self._n_rows -= stop - start
            self._given_up.append(key)
        del self._queue[:n_requests]
