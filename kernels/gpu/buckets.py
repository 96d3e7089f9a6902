"""Which padded shapes to have, and which of them a batch runs in. Pure.

A batch of so many rows, requests (users) and steps of its longest sequence runs in the cheapest
bucket that holds it, and pays for all of the bucket: its padding is the difference. More buckets
mean less padding, and more to compile and to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.program import Bucket

# A kernel's tile has 16 rows at least (one mma), of candidates as of requests: buckets closer
# together would do the same work. Steps are copied one by one, and computed by 8 or 16.
_TILES: Final = (16, 16, 8)
# Sizes of each dimension that buckets are chosen among, so that choosing takes a fraction of a
# second: 32 x 6 x 6 shapes take 0.07 s.
_SIZES_MOST: Final = (32, 6, 6)
# Below this many rows, time hardly falls (GPU_FINDINGS: 16 rows of DeepFM take as long as 64).
_SMALLEST: Final = 64
# Of exchanging one bucket for another; two or three leave nothing to gain.
_ROUNDS: Final = 8
# What an H100 was measured to reach: a copy within its memory, and library products in fp16.
_BYTES_PER_S: Final = 3.0e12
_FLOPS_PER_S: Final = 8e14

_Shapes = NDArray[np.int64]
_Floats = NDArray[np.float64]


@attrs.frozen
class Work:
    """What is moved and computed for one row, or for one request.

    Attributes:
        n_bytes: Through the card's memory: what is staged, and scores.
        n_flops: In products of matrices.
    """

    n_bytes: int
    n_flops: int

    @property
    def seconds(self) -> float:
        """At an H100's rates, one after the other."""
        return self.n_bytes / _BYTES_PER_S + self.n_flops / _FLOPS_PER_S


@attrs.frozen
class Cost:
    """What a bucket takes, in seconds or any other unit.

    Attributes:
        row, request: For each.
        row_step, request_step: For each of these and each step of the bucket's length.
    """

    row: float = 1.0
    request: float = 0.0
    row_step: float = 0.0
    request_step: float = 0.0

    def of(self, bucket: Bucket) -> float:
        """Return what a bucket takes."""
        row = self.row + self.row_step * bucket.length
        request = self.request + self.request_step * bucket.length
        return bucket.rows * row + bucket.requests * request

    def of_all(self, shapes: _Shapes) -> _Floats:
        """Return what shapes ``[n, 3]`` take, ``[n]``."""
        rows, requests, lengths = shapes.T.astype(np.float64)
        row = self.row + self.row_step * lengths
        return np.asarray(rows * row + requests * (self.request + self.request_step * lengths))

    def order(self, bucket: Bucket) -> tuple[float, Bucket]:
        """Return what sorts buckets by what they take."""
        return self.of(bucket), bucket


def usual_buckets(max_rows: int, max_requests: int, length: int = 0) -> tuple[Bucket, ...]:
    """Return the buckets to have before traffic is known: powers of two, and the largest.

    All of one length, the whole: which others are worth their compilation, traffic will tell.
    """
    sizes = {max_rows}
    rows = _SMALLEST
    while rows < max_rows:
        sizes.add(rows)
        rows *= 2
    return tuple(bucket_of(rows, max_requests, length) for rows in sorted(sizes))


def bucket_of(rows: int, max_requests: int, length: int = 0) -> Bucket:
    """Return the bucket of so many rows: every request has a row, so it has no more requests."""
    return Bucket(rows, min(rows, max_requests), length)


def fit(buckets: Sequence[Bucket], n_rows: int, n_requests: int, length: int = 0) -> Bucket | None:
    """Return the cheapest bucket that holds a batch, or None.

    Args:
        buckets: From the cheapest to the dearest: see ``Cost.order``.
        n_rows: Rows of the batch.
        n_requests: Its requests.
        length: Steps of its longest sequence; 0 where buckets have no length.
    """
    # There are a dozen or two: 0.2 us. Comparing buckets costs more than their fields.
    for bucket in buckets:
        if bucket.rows >= n_rows and bucket.requests >= n_requests and bucket.length >= length:
            return bucket
    return None


def choose_buckets(
    traffic: Mapping[Bucket, int], n_most: int, largest: Bucket, cost: Cost
) -> tuple[Bucket, ...]:
    """Choose the buckets in which a traffic costs least.

    Of buckets each of which holds the one before, the choice is exact, by dynamic programming: the
    best ``k`` up to a shape end in one of that shape, and the others are the best ``k - 1`` up to
    some smaller one. From there, single buckets are exchanged for whichever helps most while that
    helps: a batch of many rows of few requests, and one of few rows of many, may each get a bucket
    that does not hold the other.

    Args:
        traffic: How many batches had so many rows, requests and steps; ``largest`` holds each.
        n_most: Buckets at most; one of them is ``largest``.
        largest: The largest there may be, in each dimension.
        cost: What is to be least.

    Returns:
        Buckets, the cheapest first.
    """
    if n_most < 1:
        raise ValueError(f"want at least 1 bucket, got {n_most}")
    for shape in traffic:
        if fit([largest], *attrs.astuple(shape)) is None or min(shape.rows, shape.requests) < 1:
            raise ValueError(f"{shape} is none of {largest}")
    grid = _Grid.of(traffic, largest, cost)
    chosen = _exchanged(grid, _nested(grid, n_most), n_most)
    found = (Bucket(*map(int, grid.shapes[index])) for index in chosen)
    return tuple(sorted(found, key=cost.order))


def spent(traffic: Mapping[Bucket, int], buckets: Sequence[Bucket], cost: Cost) -> float:
    """Return what a traffic takes in buckets, of which the dearest holds every batch."""
    ordered = sorted(buckets, key=cost.order)
    total = 0.0
    for shape, count in traffic.items():
        bucket = fit(ordered, *attrs.astuple(shape))
        assert bucket is not None, f"{shape} fits no bucket"
        total += count * cost.of(bucket)
    return total


@attrs.frozen(eq=False)
class _Grid:
    """The shapes that a bucket may have: all sizes of one dimension with all of the others.

    Attributes:
        dims: How many sizes each dimension has.
        shapes: int64 ``[n, 3]``, in C order; the last is the largest.
        counts: Batches of each shape, float64 ``[n]``: those that it holds and no smaller one.
        costs: Of each shape, float64 ``[n]``.
    """

    dims: tuple[int, ...]
    shapes: _Shapes
    counts: _Floats
    costs: _Floats

    @classmethod
    def of(cls, traffic: Mapping[Bucket, int], largest: Bucket, cost: Cost) -> _Grid:
        most = attrs.astuple(largest)
        batches = np.array([attrs.astuple(shape) for shape in traffic] or [most], np.int64)
        weights = np.array(list(traffic.values()) or [0], np.float64)
        axes = [
            _sizes(batches[:, axis], weights, _TILES[axis], _SIZES_MOST[axis], most[axis])
            for axis in range(len(most))
        ]
        places = tuple(np.searchsorted(each, batches[:, axis]) for axis, each in enumerate(axes))
        counts = np.zeros([len(each) for each in axes])
        np.add.at(counts, places, weights)
        shapes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(most))
        return cls(counts.shape, shapes, counts.ravel(), cost.of_all(shapes))

    def held(self) -> _Floats:
        """Return how many batches each shape holds, as ``counts``."""
        total = self.counts.reshape(self.dims)
        for axis in range(total.ndim):
            total = total.cumsum(axis)
        return total.ravel()


def _sizes(sizes: _Shapes, weights: _Floats, tile: int, n_most: int, most: int) -> _Shapes:
    """Return the sizes of one dimension to choose among, ascending; the last is ``most``.

    Those that occur, in whole tiles; of too many, those that part the batches evenly.
    """
    whole = np.minimum(-(-sizes // tile) * tile, most)
    found, places = np.unique(np.append(whole, most), return_inverse=True)
    if len(found) <= n_most:
        return found
    share = np.bincount(places[:-1].ravel(), weights, len(found)).cumsum()
    ends = np.searchsorted(share, np.linspace(0, share[-1], n_most)[1:])
    return np.unique(np.append(found[ends], most))


def _nested(grid: _Grid, n_most: int) -> list[int]:
    """Return the best buckets of which each holds the one before, by index; the largest is last."""
    held, costs = grid.held(), grid.costs
    last = len(costs) - 1
    best = costs * held
    steps: list[NDArray[np.intp]] = []
    places = list(np.ndindex(grid.dims))
    below = [tuple(slice(0, at + 1) for at in place) for place in places]
    numbers = np.arange(len(costs)).reshape(grid.dims)
    for _ in range(n_most - 1):
        reached, all_held = best.reshape(grid.dims), held.reshape(grid.dims)
        step = np.empty(len(costs), np.intp)
        better = np.empty_like(best)
        for index, part in enumerate(below):
            # With itself among them: fewer buckets may be as good.
            totals = reached[part] - costs[index] * all_held[part]
            at = int(totals.argmin())
            better[index] = totals.flat[at] + costs[index] * held[index]
            step[index] = numbers[part].flat[at]
        if better[last] >= best[last]:
            break
        best = better
        steps.append(step)
    chosen = [last]
    for step in reversed(steps):
        chosen.append(int(step[chosen[-1]]))
    return sorted(set(chosen))


def _exchanged(grid: _Grid, chosen: list[int], n_most: int) -> list[int]:
    """Add or exchange single buckets while that lowers what all batches take; the last one stays.

    So much is saved at last as at least half of the best choice (Fisher, Nemhauser and Wolsey,
    1978, on interchanges).
    """
    used = np.flatnonzero(grid.counts)
    counts, shapes = grid.counts[used], grid.shapes
    holds = (shapes[:, None, :] >= shapes[None, used, :]).all(-1)
    prices: _Floats = np.where(holds, grid.costs[:, None], np.inf)
    others, last = chosen[:-1], chosen[-1]

    def best_with(kept: list[int]) -> tuple[float, int]:
        least = prices[[*kept, last]].min(0)
        totals: _Floats = np.minimum(prices, least) @ counts
        at = int(totals.argmin())
        return float(totals[at]), at

    total = float(prices[chosen].min(0) @ counts)
    for _ in range(_ROUNDS):
        before = total
        for place in range(min(len(others) + 1, n_most - 1)):
            kept = others[:place] + others[place + 1 :]
            found, at = best_with(kept)
            if found < total * (1 - 1e-12):
                total, others = found, [*kept, at]
        if total == before:
            break
    return sorted({*others, last})
