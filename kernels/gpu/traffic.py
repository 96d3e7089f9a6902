"""What was launched: how many batches of each size, and how much of it was padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs


@attrs.frozen(kw_only=True)
class Statistics:
    """What an executor did since it was opened.

    Attributes:
        rows: Asked for.
        rows_run: The same with padding.
        padding: Share of ``rows_run`` that was padding.
        buckets: Rows of the buckets that are ready.
        launches_by_bucket: Launches in each bucket, by its rows.
    """

    launches: int
    requests: int
    rows: int
    rows_run: int
    padding: float
    buckets: tuple[int, ...]
    launches_by_bucket: dict[int, int]


class Traffic:
    """Counts launches. Each lane is noted by one thread at a time; read by any."""

    def __init__(self, n_lanes: int) -> None:
        # Kept a lane, so that no two threads write to one: batches by their rows, and by those of
        # their bucket; requests; launches.
        self._by_rows: list[Counter[int]] = [Counter() for _ in range(n_lanes)]
        self._by_bucket: list[Counter[int]] = [Counter() for _ in range(n_lanes)]
        self._n_requests = [0] * n_lanes
        self._n_launches = [0] * n_lanes

    def note(self, lane: int, n_requests: int, n_rows: int, bucket_rows: int) -> int:
        """Count a launch; return how many there were on its lane."""
        self._by_rows[lane][n_rows] += 1
        self._by_bucket[lane][bucket_rows] += 1
        self._n_requests[lane] += n_requests
        self._n_launches[lane] += 1
        return self._n_launches[lane]

    def forget(self, lane: int) -> None:
        """Forget a lane's launches."""
        self._by_rows[lane].clear()
        self._by_bucket[lane].clear()
        self._n_requests[lane] = self._n_launches[lane] = 0

    def by_rows(self) -> Counter[int]:
        """Return how many batches had so many rows."""
        return _sum(self._by_rows)

    def statistics(self, buckets: tuple[int, ...]) -> Statistics:
        """Return the sums.

        Args:
            buckets: Rows of those that are ready.
        """
        by_bucket = _sum(self._by_bucket)
        rows = sum(n_rows * count for n_rows, count in self.by_rows().items())
        rows_run = sum(size * count for size, count in by_bucket.items())
        return Statistics(
            launches=sum(by_bucket.values()),
            requests=sum(self._n_requests),
            rows=rows,
            rows_run=rows_run,
            padding=1.0 - rows / rows_run if rows_run else 0.0,
            buckets=buckets,
            launches_by_bucket=dict(sorted(by_bucket.items())),
        )


def _sum(counters: Iterable[Counter[int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for counter in counters:
        # Copied first, in one step of the interpreter: its lane's thread may add to it.
        total.update(dict(counter))
    return total
