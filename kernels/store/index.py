"""The index of a keyed segment: which row a key has.

Buckets of one cache line each: up to seven keys, and the number of the first one's row, as rows
are stored in the order of their keys in the index. A key is in the bucket that it hashes to or,
where that was full, in one soon after; a bucket says how far the search for its keys may go on. So
a lookup reads one line of the index (rarely two) and the row, and a key costs 12 bytes.

The index is a pure function of the set of keys, built in one go by sorting: numpy is fast at that,
so there is no other way to do it. Searching it is C's work (``table.h``); ``find_in_index`` is the
fallback and the oracle.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.store.partition import U64, mix64

I64 = NDArray[np.int64]

BUCKET_KEYS: Final = 7
BUCKET: Final = np.dtype(
    [("keys", "<u8", (BUCKET_KEYS,)), ("base", "<u4"), ("count", "<u2"), ("spill", "<u2")]
)
# Of all places, so many are taken: at 3 of 4, one key in 20 is not in the bucket that it hashes to.
LOAD: Final = 0.75
_LOWER: Final = np.uint64(0xFFFFFFFF)
_MOST_SPILL: Final = 2**16 - 1


class BuiltIndex(NamedTuple):
    """An index, and the order in which its rows are to be stored.

    Attributes:
        buckets: ``BUCKET`` ``[n_buckets]``.
        home_buckets: Those that keys hash to; a few more may follow.
        order: intp ``[n_rows]``: which of the keys given each row has. Of equal keys, the last.
    """

    buckets: NDArray[np.void]
    home_buckets: int
    order: NDArray[np.intp]


def build_index(keys: I64) -> BuiltIndex:
    """Index keys. Needs about 80 bytes of memory a key.

    Args:
        keys: int64 ``[n]``, fewer than 2**32; where one occurs several times, the last counts.

    Raises:
        ValueError: So many keys share a hash that the index would be useless.
    """
    mixed = mix64(keys)
    # The lower half, which chooses the bucket, comes first; no two keys have the same.
    by_bucket = (mixed << np.uint64(32)) | (mixed >> np.uint64(32))
    order = np.argsort(by_bucket)
    by_bucket = by_bucket[order]
    if len(keys) and (by_bucket[1:] == by_bucket[:-1]).any():
        first = np.flatnonzero(np.concatenate([[True], by_bucket[1:] != by_bucket[:-1]]))
        order = np.maximum.reduceat(order, first)
        by_bucket = by_bucket[first]
    n = len(order)
    home_buckets = max(1, -int(-n // (BUCKET_KEYS * LOAD)))
    home = _home(by_bucket >> np.uint64(32), home_buckets)
    at = np.arange(n)
    # Each key takes the first free place from its bucket on, in the order of buckets.
    place = at + np.maximum.accumulate(home * BUCKET_KEYS - at)
    bucket, slot = np.divmod(place, BUCKET_KEYS)
    buckets = np.zeros(max(home_buckets, int(bucket[-1]) + 1) if n else home_buckets, BUCKET)
    buckets["keys"][bucket, slot] = keys[order].view(np.uint64)
    count = np.bincount(bucket, minlength=len(buckets))
    buckets["count"] = count
    buckets["base"] = np.cumsum(count) - count
    last = np.flatnonzero(home[1:] != home[:-1])
    last = np.append(last, n - 1) if n else last
    spill = bucket[last] - home[last]
    if spill.max(initial=0) > _MOST_SPILL:
        raise ValueError("keys have hashes so alike that an index of them would be useless")
    buckets["spill"][home[last]] = spill
    return BuiltIndex(buckets, home_buckets, order)


def find_in_index(buckets: NDArray[np.void], home_buckets: int, keys: I64) -> I64:
    """Return the row of each key in its segment, int64 ``[n]``; -1 where there is none."""
    rows = np.full(len(keys), -1, np.int64)
    left = np.arange(len(keys))
    home = _home(mix64(keys) & _LOWER, home_buckets)
    spill = buckets["spill"][home].astype(np.int64)
    step = 0
    while len(left):
        here = buckets[home[left] + step]
        match = here["keys"] == keys[left].view(np.uint64)[:, np.newaxis]
        match &= np.arange(BUCKET_KEYS) < here["count"][:, np.newaxis]
        found = match.any(axis=1)
        rows[left[found]] = here["base"][found] + match[found].argmax(axis=1)
        step += 1
        left = left[~found & (spill[left] >= step)]
    return rows


def index_keys(buckets: NDArray[np.void]) -> I64:
    """Return all keys in the order of their rows: int64 ``[n_rows]``."""
    taken = np.arange(BUCKET_KEYS) < buckets["count"][:, np.newaxis]
    return np.asarray(buckets["keys"][taken].astype(np.uint64), np.uint64).view(np.int64)


def _home(lower: U64, home_buckets: int) -> NDArray[np.int64]:
    return ((lower * np.uint64(home_buckets)) >> np.uint64(32)).astype(np.int64)
