"""The buckets of one executor: those to have at first, those that are ready, those missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from kernels.gpu.buckets import Cost, bucket_of, choose_buckets, fit, spent, usual_buckets
from kernels.program import Bucket

# After so many launches of a lane, and again each time that they have doubled, comes a look at
# whether other buckets would suit the traffic better: it takes up to a tenth of a second.
_LOOK_AFTER: Final = 1024
# What other buckets must save to be worth their compilation.
_WORTHWHILE: Final = 0.02
# Buckets of the past are kept as well, up to so many times as many as are wanted at once.
_KEEP: Final = 3


@attrs.define(eq=False)
class BucketStock:
    """What launches choose their bucket from. One thread may add to it while any reads.

    Attributes:
        largest: Holds every batch.
        cost: What buckets are ordered, and chosen, by.
        wanted: To have at first, the largest last.
        adapts: Whether there are to be others, as the traffic says.
        ready: The cheapest first; never changed, but replaced.
    """

    largest: Bucket
    cost: Cost
    wanted: tuple[Bucket, ...]
    adapts: bool
    ready: tuple[Bucket, ...] = ()

    @classmethod
    def of(
        cls, largest: Bucket, cost: Cost, given: Iterable[int | Bucket] | None = None
    ) -> BucketStock:
        """Return a stock in which no bucket is ready.

        Args:
            largest: The largest there may be.
            cost: Of buckets.
            given: As ``GpuExecutor`` takes them.

        Raises:
            ValueError: A bucket that was given is none, or larger than the largest.
        """
        if given is None:
            usual = usual_buckets(largest.rows, largest.requests, largest.length)
            return cls(largest, cost, usual, adapts=True)
        found = {largest}
        for each in given:
            bucket = bucket_of(each, largest.requests) if isinstance(each, int) else each
            fits = fit([largest], *attrs.astuple(bucket)) is not None
            if not fits or min(bucket.rows, bucket.requests) < 1:
                raise ValueError(
                    f"want buckets of 1 to {largest.rows} rows and 1 to {largest.requests} "
                    f"requests, and of sequences of up to {largest.length} steps, got {bucket}"
                )
            found.add(attrs.evolve(bucket, length=bucket.length or largest.length))
        return cls(largest, cost, tuple(sorted(found, key=cost.order)), adapts=False)

    @property
    def share(self) -> float:
        """How much of what was wanted at first is ready, 0 to 1."""
        return min(len(self.ready) / len(self.wanted), 1.0)

    def add(self, bucket: Bucket) -> None:
        """Let launches choose a bucket."""
        self.ready = tuple(sorted({*self.ready, bucket}, key=self.cost.order))

    def fit(self, n_rows: int, n_requests: int, length: int = 0) -> Bucket | None:
        """Return the cheapest bucket that is ready and holds a batch, or None."""
        return fit(self.ready, n_rows, n_requests, length)

    def of_length(self, length: int, n_rows: int, n_requests: int) -> Bucket | None:
        """As ``fit``, of buckets of one length alone."""
        same = [bucket for bucket in self.ready if bucket.length == length]
        return fit(same, n_rows, n_requests, length)

    def is_look(self, n_launches: int) -> bool:
        """Whether it is time to ask for what is missing, after so many launches of a lane."""
        n_looks, rest = divmod(n_launches, _LOOK_AFTER)
        return self.adapts and rest == 0 and n_looks & (n_looks - 1) == 0

    def missing(self, traffic: Mapping[Bucket, int]) -> list[Bucket]:
        """Return the buckets to compile for a traffic, the largest first; none if few gain by it.

        Args:
            traffic: How many batches there were of each shape.
        """
        n_most = len(self.wanted) * (2 if self.largest.length else 1)
        if len(self.ready) >= _KEEP * n_most:
            return []
        chosen = choose_buckets(traffic, n_most, self.largest, self.cost)
        worthwhile = (1 - _WORTHWHILE) * spent(traffic, self.ready, self.cost)
        if spent(traffic, chosen, self.cost) >= worthwhile:
            return []
        return [bucket for bucket in reversed(chosen) if bucket not in self.ready]
