from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.hot import HotRows, HotSet, Sizes

ROW_BYTES = (3, 16, 70)


def make(*, native: bool) -> HotSet:
    return HotSet(
        [HotRows(Sizes.fitting(size, 3000), 5.0, native=native, seed=7) for size in ROW_BYTES]
    )


def splits_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def test_several_tables_are_served_as_each_alone() -> None:
    """In one call of C, and of Python one by one: the same rows, misses and figures."""
    rng = np.random.default_rng(0)
    together, alone = make(native=True), make(native=False)
    for now in range(60):
        counts = rng.integers(0, 30, len(ROW_BYTES)) * rng.integers(0, 2, len(ROW_BYTES))
        keys = np.concatenate(
            [rng.choice(80, n, replace=False) for n in counts] + [np.empty(0, np.int64)]
        ).astype(np.int64)
        splits = splits_of(counts)
        n_bytes = int(counts @ ROW_BYTES)
        outs = [np.zeros(n_bytes, np.uint8) for _ in range(2)]
        misses = [
            each.take(keys, splits, 0.1 * now, out)
            for each, out in zip((together, alone), outs, strict=True)
        ]
        np.testing.assert_array_equal(misses[0], misses[1])
        np.testing.assert_array_equal(outs[0], outs[1])
        rows = rng.integers(0, 256, n_bytes).astype(np.uint8)
        kept = rng.random(len(keys)) < 0.7
        for each in (together, alone):
            each.admit(keys, splits, rows, kept, 0.1 * now)
        for one, other in zip(together.tables, alone.tables, strict=True):
            assert one.statistics() == other.statistics()
    assert min(table.statistics().hits for table in together.tables) > 10


@pytest.mark.parametrize("native", [True, False])
def test_what_does_not_fit_is_refused(native: bool) -> None:
    hot = make(native=native)
    keys, kept = np.arange(4), np.ones(4, np.bool_)
    splits = splits_of(np.array([2, 0, 2]))
    rows = np.zeros(146, np.uint8)
    hot.admit(keys, splits, rows, kept, 0.0)
    assert not len(hot.take(keys, splits, 0.0, rows))
    with pytest.raises(ValueError, match="splits: want those of 4 keys of 3 tables"):
        hot.take(keys, splits_of(np.array([2, 0, 1])), 0.0, rows)
    with pytest.raises(ValueError, match="splits: want those of 4 keys of 3 tables"):
        hot.take(keys, splits_of(np.array([5, -3, 2])), 0.0, rows)
    with pytest.raises(ValueError, match=r"rows: want C-ordered uint8 \(146,\), got"):
        hot.take(keys, splits, 0.0, rows[:-1])
    with pytest.raises(ValueError, match=r"keys: want int64 \[n\], got int32"):
        hot.take(keys.astype(np.int32), splits, 0.0, rows)
    with pytest.raises(ValueError, match=r"kept: want bool \(4,\), got bool \(3,\)"):
        hot.admit(keys, splits, rows, kept[1:], 0.0)
