"""How many of a batch's keys are hot rows, and what does it cost to look?

``python -m tests.bench.bench_hot`` prints one JSON line for each exponent of the key popularity's
power law and each number of rows that are held, of a table of 1,000,000. A batch asks for the
different ones of 5,000 keys that are drawn. Hit rates are of the second half of the batches, once
for each batch that asks for a key: ours, that of an LRU of as many rows, and the ideal, of whoever
knows the law and holds the most popular rows. Times are the thread's own, medians of batches, in
microseconds for 5,000 keys: to look and copy the rows that are there (64 bytes each), and to admit
the others.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from kernels.hot import HotRows, Sizes, implementation

N_KEYS = 1_000_000
N_DRAWN = 5_000
N_BATCHES = 1_200
ROW_BYTES = 64


def main() -> None:
    """Print a line for each exponent and size."""
    print(json.dumps({"implementation": implementation()}))  # noqa: T201 - a program
    for exponent in (1.05, 1.1, 1.2):
        weights = np.arange(1, N_KEYS + 1, dtype=np.float64) ** -exponent
        weights /= weights.sum()
        batches = _batches(weights)
        for n_rows in (1_000, 10_000, 100_000):
            _report(exponent, n_rows, weights, batches)


def _batches(weights: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    key_of_rank = rng.permutation(N_KEYS)
    sums = np.cumsum(weights)
    drawn = np.searchsorted(sums, rng.random((N_BATCHES, N_DRAWN)) * sums[-1])
    return [np.unique(key_of_rank[batch]) for batch in drawn]


def _report(
    exponent: float, n_rows: int, weights: NDArray[np.float64], batches: list[NDArray[np.int64]]
) -> None:
    sizes = Sizes.fitting(ROW_BYTES, 1 << 40, n_rows)
    hot = HotRows(sizes, 1e9)
    looks, admits = [], []
    for number, keys in enumerate(batches):
        if number == len(batches) // 2:
            before = hot.statistics()
        out = np.empty((len(keys), ROW_BYTES), np.uint8)
        start = time.thread_time()
        misses = hot.take(keys, 0.0, out)
        looks.append((time.thread_time() - start) / len(keys))
        missed, rows = keys[misses], out[misses]
        start = time.thread_time()
        hot.admit(missed, rows, 0.0)
        admits.append((time.thread_time() - start) / len(keys))
    after = hot.statistics()
    hits, misses_ = after.hits - before.hits, after.misses - before.misses
    # How likely a batch is to ask for each key.
    asked = 1 - (1 - weights) ** N_DRAWN
    line = {
        "exponent": exponent,
        "rows": sizes.capacity,
        "size_mb": round(sizes.size_bytes / 1e6, 2),
        "hit_rate": round(hits / (hits + misses_), 4),
        "lru": round(_lru(batches, sizes.capacity), 4),
        "ideal": round(float(asked[: sizes.capacity].sum() / asked.sum()), 4),
        "keys": round(float(np.mean([len(keys) for keys in batches]))),
        "look_us": round(5_000e6 * float(np.median(looks)), 1),
        "admit_us": round(5_000e6 * float(np.median(admits)), 1),
        "evicted_a_batch": round((after.evicted - before.evicted) / (len(batches) / 2), 1),
    }
    print(json.dumps(line))  # noqa: T201 - a program


def _lru(batches: list[NDArray[np.int64]], capacity: int) -> float:
    held: OrderedDict[int, None] = OrderedDict()
    n_hits = n_asked = 0
    for number, keys in enumerate(batches):
        counts = number >= len(batches) // 2
        for key in keys.tolist():
            if key in held:
                held.move_to_end(key)
                n_hits += counts
                continue
            held[key] = None
            if len(held) > capacity:
                held.popitem(last=False)
        n_asked += len(keys) * counts
    return n_hits / n_asked


if __name__ == "__main__":
    main()
