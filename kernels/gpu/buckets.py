"""Which padded shapes to have, and which of them a batch runs in. Pure.

A batch of n rows runs in the smallest bucket that holds it, and pays for the bucket's rows: its
padding is the difference. More buckets mean less padding, and more to compile and to keep.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from kernels.program import Bucket

# A kernel's tile has 16 rows at least (one mma): buckets closer together would do the same work.
_TILE: Final = 16
# Below this many rows, time hardly falls (GPU_FINDINGS: 16 rows of DeepFM take as long as 64).
_SMALLEST: Final = 64


def usual_buckets(max_rows: int, max_requests: int) -> tuple[Bucket, ...]:
    """Return the buckets to have before traffic is known: powers of two, and the largest."""
    sizes = {max_rows}
    rows = _SMALLEST
    while rows < max_rows:
        sizes.add(rows)
        rows *= 2
    return tuple(bucket_of(rows, max_requests) for rows in sorted(sizes))


def bucket_of(rows: int, max_requests: int) -> Bucket:
    """Return the bucket of so many rows: every request has a row, so it has no more requests."""
    return Bucket(rows, min(rows, max_requests))


def fit(buckets: Sequence[Bucket], n_rows: int, n_requests: int) -> Bucket | None:
    """Return the smallest bucket that holds a batch, or None.

    Args:
        buckets: In ascending order.
        n_rows: Rows of the batch.
        n_requests: Its requests.
    """
    # There are a dozen at most, and comparing buckets costs more than their rows.
    for bucket in buckets:
        if bucket.rows >= n_rows and bucket.requests >= n_requests:
            return bucket
    return None


def choose_buckets(
    traffic: Mapping[int, int], n_most: int, max_rows: int, max_requests: int
) -> tuple[Bucket, ...]:
    """Choose the buckets that pad a traffic least.

    Exact, by dynamic programming over the sizes that occur, each rounded up to a whole tile: the
    best ``k`` buckets up to a size end in one at that size, and the others are the best ``k - 1``
    up to some smaller one.

    Args:
        traffic: How many batches had so many rows; none has more than ``max_rows``.
        n_most: Buckets at most; one of them is the largest there may be.
        max_rows: Rows of the largest.
        max_requests: Requests of a bucket at most.

    Returns:
        Buckets in ascending order.
    """
    if n_most < 1:
        raise ValueError(f"want at least 1 bucket, got {n_most}")
    counts: dict[int, int] = {max_rows: 0}
    for n_rows, count in traffic.items():
        if not 0 < n_rows <= max_rows:
            raise ValueError(f"want 1 to {max_rows} rows, got {n_rows}")
        size = min(-(-n_rows // _TILE) * _TILE, max_rows)
        counts[size] = counts.get(size, 0) + count
    sizes = sorted(counts)
    # Rows run, less a constant, is padding: n_up_to[i] batches are no larger than sizes[i - 1].
    n_up_to = [0]
    for size in sizes:
        n_up_to.append(n_up_to[-1] + counts[size])
    best = [size * n_up_to[i + 1] for i, size in enumerate(sizes)]
    before: list[list[int]] = [[-1] * len(sizes)]
    for _ in range(1, min(n_most, len(sizes))):
        better = list(best)
        last = [-1] * len(sizes)
        for i, size in enumerate(sizes):
            for j in range(i):
                rows_run = best[j] + size * (n_up_to[i + 1] - n_up_to[j + 1])
                if rows_run < better[i]:
                    better[i], last[i] = rows_run, j
        best = better
        before.append(last)
    chosen: list[int] = []
    at = len(sizes) - 1
    for last in reversed(before):
        if not chosen or at != chosen[-1]:
            chosen.append(at)
        # -1 at this depth: fewer buckets were as good, so that the same size is looked up again.
        at = last[at] if last[at] >= 0 else at
    return tuple(bucket_of(sizes[i], max_requests) for i in sorted(set(chosen)))


def padding(traffic: Mapping[int, int], buckets: Iterable[Bucket]) -> float:
    """Return the share of the rows run that nobody asked for, 0 to 1.

    Args:
        traffic: How many batches had so many rows.
        buckets: Hold every batch.
    """
    sizes = sorted(bucket.rows for bucket in buckets)
    used = sum(n_rows * count for n_rows, count in traffic.items())
    run = sum(sizes[bisect_left(sizes, n_rows)] * count for n_rows, count in traffic.items())
    return 1.0 - used / run if run else 0.0
