"""How long a launch will take, learned from those that were."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

# The gains of RFC 6298 (2.3), which predicts round trips: of the same kind, mostly steady with a
# tail. Its bound, mean + 4 * deviation, is about the 99.9th percentile of a normal distribution.
_GAIN: Final = 1 / 8
_DEVIATION_GAIN: Final = 1 / 4
_DEVIATIONS: Final = 4


class LaunchTimes:
    """Predicts seconds for each bucket (rows that a launch is padded to, or counted as).

    Keeps a smoothed mean and mean deviation for each bucket that was seen. A larger bucket takes no
    less than a smaller one: where a new measurement contradicts an older one of another bucket, the
    new one is right. Between two buckets that were seen, time is interpolated; below them it is
    that of the smallest; above them it grows with the rows. Before any it is zero.
    """

    def __init__(self) -> None:
        self._buckets: list[int] = []
        self._means: list[float] = []
        self._deviations: list[float] = []
        self._bounds: list[float] = []

    def learn(self, bucket: int, seconds: float) -> None:
        """Enter one measurement."""
        at = bisect_left(self._buckets, bucket)
        if at == len(self._buckets) or self._buckets[at] != bucket:
            self._buckets.insert(at, bucket)
            self._means.insert(at, seconds)
            self._deviations.insert(at, seconds / 2)  # RFC 6298 (2.2)
            self._bounds.insert(at, 0.0)
        else:
            error = seconds - self._means[at]
            self._means[at] += _GAIN * error
            self._deviations[at] += _DEVIATION_GAIN * (abs(error) - self._deviations[at])
        mean = self._means[at]
        self._bounds[at] = mean + _DEVIATIONS * self._deviations[at]
        for other in range(at - 1, -1, -1):
            if self._means[other] <= mean:
                break
            self._correct(other, mean)
        for other in range(at + 1, len(self._means)):
            if self._means[other] >= mean:
                break
            self._correct(other, mean)

    def mean(self, bucket: int) -> float:
        """Return the seconds that a launch takes on average."""
        return _interpolate(self._buckets, self._means, bucket)

    def bound(self, bucket: int) -> float:
        """Return the seconds that nearly every launch stays within."""
        return _interpolate(self._buckets, self._bounds, bucket)

    def _correct(self, at: int, mean: float) -> None:
        self._means[at] = mean
        self._bounds[at] = mean + _DEVIATIONS * self._deviations[at]


def _interpolate(xs: list[int], ys: list[float], x: int) -> float:
    at = bisect_left(xs, x)
    if at == len(xs):
        return ys[-1] * x / xs[-1] if xs else 0.0
    if at == 0 or xs[at] == x:
        return ys[at]
    share = (x - xs[at - 1]) / (xs[at] - xs[at - 1])
    return ys[at - 1] + share * (ys[at] - ys[at - 1])
