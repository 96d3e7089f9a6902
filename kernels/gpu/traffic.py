"""What was launched: how many batches of each shape, and how much of it was padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import attrs

from kernels.program import Bucket

K = TypeVar("K", bound=Hashable)

# Shapes are counted by so many rows and requests, a kernel's tile, and steps of sequences, so that
# there are no more of them than some thousands.
_ROWS: Final = 16
_STEPS: Final = 8


@attrs.frozen(kw_only=True)
class Statistics:
    """What an executor did since it was opened.

    Attributes:
        rows, requests: Asked for.
        rows_run, requests_run: The same with padding.
        padding: Share of ``rows_run`` that was padding.
        padding_requests: Share of ``requests_run`` that was.
        padding_steps: Of sequences that may be shorter: share of the steps of buckets that the
            longest sequence of a batch did not have.
        buckets: Those that are ready, the cheapest first.
        launches_by_bucket: Launches in each bucket.
    """

    launches: int
    requests: int
    requests_run: int
    rows: int
    rows_run: int
    padding: float
    padding_requests: float
    padding_steps: float
    buckets: tuple[Bucket, ...]
    launches_by_bucket: dict[Bucket, int]


@attrs.define
class _Counts:
    """What one lane launched. Shapes are tuples: attrs classes hash several times slower."""

    by_shape: Counter[tuple[int, int, int]] = attrs.field(factory=Counter)
    by_bucket: Counter[Bucket] = attrs.field(factory=Counter)
    rows: int = 0
    requests: int = 0
    steps: int = 0
    launches: int = 0


class Traffic:
    """Counts launches. Each lane is noted by one thread at a time; read by any."""

    def __init__(self, n_lanes: int) -> None:
        # Kept a lane, so that no two threads write to one.
        self._lanes = [_Counts() for _ in range(n_lanes)]

    def note(self, lane: int, rows: int, requests: int, length: int, bucket: Bucket) -> int:
        """Count a launch of a batch of a shape; return how many there were on its lane."""
        counts = self._lanes[lane]
        places = (rows - 1) // _ROWS, (requests - 1) // _ROWS, (length + _STEPS - 1) // _STEPS
        counts.by_shape[places] += 1
        counts.by_bucket[bucket] += 1
        counts.rows += rows
        counts.requests += requests
        counts.steps += length
        counts.launches += 1
        return counts.launches

    def forget(self, lane: int) -> None:
        """Forget a lane's launches."""
        self._lanes[lane] = _Counts()

    def by_shape(self, largest: Bucket) -> dict[Bucket, int]:
        """Return how many batches had so many rows, requests and steps, up to a tile more.

        Args:
            largest: Holds every batch.
        """
        found: Counter[Bucket] = Counter()
        for (rows, requests, steps), count in _sum(each.by_shape for each in self._lanes).items():
            shape = Bucket(
                min((rows + 1) * _ROWS, largest.rows),
                min((requests + 1) * _ROWS, largest.requests),
                min(steps * _STEPS, largest.length),
            )
            found[shape] += count
        return dict(found)

    def statistics(self, buckets: Sequence[Bucket]) -> Statistics:
        """Return the sums.

        Args:
            buckets: Those that are ready.
        """
        by_bucket = _sum(each.by_bucket for each in self._lanes)
        rows = sum(each.rows for each in self._lanes)
        requests = sum(each.requests for each in self._lanes)
        rows_run = sum(bucket.rows * count for bucket, count in by_bucket.items())
        steps = sum(each.steps for each in self._lanes)
        steps_run = sum(bucket.length * count for bucket, count in by_bucket.items())
        requests_run = sum(bucket.requests * count for bucket, count in by_bucket.items())
        return Statistics(
            launches=sum(by_bucket.values()),
            requests=requests,
            requests_run=requests_run,
            rows=rows,
            rows_run=rows_run,
            padding=_share(rows, rows_run),
            padding_requests=_share(requests, requests_run),
            padding_steps=_share(steps, steps_run),
            buckets=tuple(buckets),
            launches_by_bucket=dict(sorted(by_bucket.items())),
        )


def _share(used: int, run: int) -> float:
    return 1.0 - used / run if run else 0.0


def _sum(counters: Iterable[Mapping[K, int]]) -> Counter[K]:
    total: Counter[K] = Counter()
    for counter in counters:
        # Copied first, in one step of the interpreter: its lane's thread may add to it.
        total.update(dict(counter))
    return total
