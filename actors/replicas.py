"""What is known of shards' replicas: which are dead, which are slow, how much each has to do.

Also when an answer is late, and how many may be asked for twice. Pure: no clock, no mailbox.

*Which one to ask.* Of those not known to be dead, the one with the least work outstanding; of
several, the one that was not asked for the longest time. One that lost to another replica, asked
later, twice in a row is passed over for a while, if there is another.

*When to ask another as well.* After the time that 95 % of a group's answers take: so at most one
lookup in twenty is done twice, and the slowest answers are as fast as usual ones (Dean and Barroso,
"The Tail at Scale", CACM 2013). Where more are late than that, the replicas are not slow but busy,
and asking twice would make it worse: an allowance keeps the second questions to a tenth.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import attrs

_QUANTILE: Final = 0.95
# Of the quantile, a step for each answer: after 100 answers it is in the right region, and one
# slow answer moves it by a twentieth.
_GAIN: Final = 0.05
# Below a millisecond a second question costs more than it can save.
_LATE_LEAST_S: Final = 0.001
# What a group's replicas take while one has died must not put off the next second question for
# long: budgets are 50 ms and more.
_LATE_MOST_S: Final = 0.02
_FIRST_GUESS_S: Final = 0.01

_SHARE: Final = 0.1
_BURST: Final = 16.0

_PASSED_OVER_S: Final = 0.02
_PASSED_OVER_MOST_S: Final = 1.0
_LOSSES: Final = 2
_SECONDS_GAIN: Final = 1 / 16


@attrs.define
class LateAfter:
    """Learns after how many seconds an answer is late: the 95th percentile, within bounds.

    By stochastic approximation (Robbins and Monro, 1951) with steps in proportion, as answers may
    take a tenth of a millisecond or ten.
    """

    seconds: float = _FIRST_GUESS_S

    def learn(self, seconds: float) -> None:
        """Note how long an answer took."""
        if seconds > self.seconds:
            self.seconds = min(self.seconds * (1 + _GAIN * _QUANTILE), _LATE_MOST_S)
        else:
            self.seconds = max(self.seconds * (1 - _GAIN * (1 - _QUANTILE)), _LATE_LEAST_S)


@attrs.define
class Allowance:
    """How many second questions may be asked: a share of the first ones, saved up to a burst."""

    _saved: float = _BURST

    def earn(self, n_questions: int) -> None:
        """Note first questions."""
        self._saved = min(self._saved + _SHARE * n_questions, _BURST)

    def spend(self) -> bool:
        """Take one second question out of it; False if there is none."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


@attrs.define
class _Replica:
    outstanding: int = 0
    n_losses: int = 0
    passed_over_until: float = 0.0
    seconds: float = 0.0
    turn: int = 0


@attrs.define
class Replicas:
    """All replicas of all groups, by their actors' names.

    Attributes:
        dead: Those that are known to be dead, which ``choose`` does not return.
    """

    dead: set[str] = attrs.field(factory=set, init=False)
    _known: dict[str, _Replica] = attrs.field(factory=dict, init=False)
    _turn: int = attrs.field(default=0, init=False)

    def choose(self, replicas: Sequence[str], asked: Collection[str], now: float) -> str | None:
        """Return which of a group's replicas to ask, other than those that were asked already.

        Args:
            replicas: The group's.
            asked: Those that are out of the question.
            now: The time, of any one clock.
        """
        if len(replicas) == 1:  # as where there is no choice; the check is made for each lookup
            [only] = replicas
            return None if only in self.dead or only in asked else only
        left = [name for name in replicas if name not in self.dead and name not in asked]
        return min(left, key=lambda name: self._burden(name, now), default=None)

    def asked(self, name: str, work: int) -> None:
        """Note that a replica has so much more to do, in any unit."""
        replica = self._replica(name)
        replica.outstanding += work
        self._turn += 1
        replica.turn = self._turn

    def done(self, name: str, work: int) -> None:
        """Note that it has so much less to do, or that nobody waits for it."""
        self._replica(name).outstanding -= work

    def won(self, name: str, seconds: float) -> None:
        """Note that a replica's answer was the first, and how long it took."""
        replica = self._replica(name)
        replica.n_losses = 0
        replica.passed_over_until = 0.0
        replica.seconds += _SECONDS_GAIN * (seconds - replica.seconds)

    def lost(self, name: str, now: float) -> None:
        """Note that another one was asked later and answered first."""
        replica = self._replica(name)
        replica.n_losses += 1
        if replica.n_losses >= _LOSSES:
            wait_s = min(_PASSED_OVER_S * 2.0 ** (replica.n_losses - _LOSSES), _PASSED_OVER_MOST_S)
            replica.passed_over_until = now + wait_s

    def usual_s(self, name: str) -> float:
        """Return how many seconds a replica's answer takes as a rule; 0 before the first."""
        return self._replica(name).seconds

    def outstanding(self, name: str) -> int:
        """Return how much a replica has to do."""
        return self._replica(name).outstanding

    def _burden(self, name: str, now: float) -> tuple[bool, int, int]:
        replica = self._replica(name)
        return replica.passed_over_until > now, replica.outstanding, replica.turn

    def _replica(self, name: str) -> _Replica:
        replica = self._known.get(name)
        if replica is None:
            replica = self._known[name] = _Replica()
        return replica
