"""How many requests to have in flight: a limit that is learned from how long they take.

Above its capacity, a server that takes everything works on requests that will be late, and answers
hardly any in time. Little's law ties the time in the system to the requests in it, so the number
in flight is what keeps the time within budgets: it is cut by a share when requests take longer than
half of the usual budget, and grows by a smaller one while it is used up and they do not (congestion
avoidance with multiplicative decrease, Jacobson and Karels 1988; here the growth is a share as
well, as servers differ by orders of magnitude). What exceeds it is refused at once, unparsed.

The usual budget is a moving average over requests, so a few clients with budgets that nobody could
meet do not bring the limit down for the others. Pure: times come in as arguments.
"""

from __future__ import annotations

from typing import Final

import attrs

_TARGET_SHARE: Final = 0.5
_CUT: Final = 0.85
_GROWTH: Final = 0.05  # for as many answers as the limit, which is about a round trip
# Of the limit that must be in use before it grows: else an idle server's limit means nothing.
_IN_USE: Final = 0.75
# Below the target there is a band in which the limit stays.
_COMFORT: Final = 0.7
_BUDGET_GAIN: Final = 1 / 256
_SECONDS_GAIN: Final = 1 / 8


@attrs.define
class Admission:
    """A limit on requests in flight.

    Attributes:
        most: It never grows beyond this, where it starts.
        least: It is never cut below this.
    """

    most: int
    least: int = 16
    _limit: float = attrs.field(init=False)
    _budget: float = attrs.field(default=0.0, init=False)
    _n_admitted: int = attrs.field(default=0, init=False)
    _seconds: float = attrs.field(default=0.0, init=False)
    _next_cut: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._limit = float(self.most)

    @property
    def limit(self) -> int:
        """Requests that may be in flight."""
        return int(self._limit)

    def admitted(self, budget: float) -> None:
        """Note the budget of a request that was taken, in seconds."""
        self._n_admitted += 1
        gain = max(_BUDGET_GAIN, 1 / self._n_admitted)  # at first the plain mean
        self._budget += gain * (budget - self._budget)

    def left(self, n: int, seconds: float, n_in_flight: int, now: float) -> None:
        """Note that requests left, answered or expired.

        Args:
            n: How many.
            seconds: How long they were in the system; the longest, if they differ.
            n_in_flight: How many are still there.
            now: The time, of any one clock.
        """
        target = _TARGET_SHARE * self._budget
        before = n + n_in_flight
        # A noisy machine is late now and then; only requests that are late in a row say anything.
        self._seconds += _SECONDS_GAIN * (seconds - self._seconds)
        if self._seconds > target:
            if now >= self._next_cut:
                self._limit = max(_CUT * min(self._limit, before), self.least)
                # What is in flight now was let in under the old limit: see it out first.
                self._next_cut = now + self._seconds
        elif self._seconds < _COMFORT * target and before >= _IN_USE * self._limit:
            self._limit = min(self._limit + _GROWTH * n, self.most)
