from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import LookupFailed
from kernels.store.partition import MAX_SEGMENTS, dense_segment, mix64, segment_of

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1


def mix64_by_hand(key: int) -> int:
    x = key & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(st.lists(INT64, max_size=20))
def test_mix64_is_splitmix64s_finaliser(keys: list[int]) -> None:
    mixed = mix64(np.array(keys, np.int64))
    assert mixed.tolist() == [mix64_by_hand(key) for key in keys]


def test_mix64_of_known_numbers() -> None:
    # The generator's first outputs from seed 0: it adds the golden ratio, then mixes.
    state = np.array([0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A], np.uint64)
    assert mix64(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.lists(INT64, min_size=1, max_size=20), st.integers(1, MAX_SEGMENTS))
def test_a_keys_segment_is_the_upper_part_of_its_hash(keys: list[int], n: int) -> None:
    got = segment_of(np.array(keys, np.int64), n_segments=n, rows=0, keyed=True)
    assert got.dtype == np.int32
    assert got.tolist() == [((mix64_by_hand(key) >> 32) * n) >> 32 for key in keys]


def test_keys_in_a_row_are_spread_evenly() -> None:
    segments = segment_of(np.arange(100_000), n_segments=50, rows=0, keyed=True)
    counts = np.bincount(segments, minlength=50)
    assert counts.min() > 1800
    assert counts.max() < 2200


@given(st.integers(0, 200), st.integers(1, 250))
def test_dense_segments_are_consecutive_ranges_of_all_rows(rows: int, n_segments: int) -> None:
    ranges = [dense_segment(i, rows=rows, n_segments=n_segments) for i in range(n_segments)]
    assert [row for each in ranges for row in each] == list(range(rows))
    segments = segment_of(np.arange(rows), n_segments=n_segments, rows=rows, keyed=False)
    assert segments.tolist() == [i for i, each in enumerate(ranges) for _ in each]


@pytest.mark.parametrize("row", [-1, 10, 2**62])
def test_a_row_outside_a_dense_table_is_an_error_that_names_it(row: int) -> None:
    with pytest.raises(LookupFailed, match=f"row {row} is outside a table of 10 rows"):
        segment_of(np.array([3, row]), n_segments=2, rows=10, keyed=False)


@pytest.mark.parametrize("n", [0, -1, 2**31])
def test_a_number_of_segments_is_checked(n: int) -> None:
    with pytest.raises(ValueError, match="n_segments"):
        segment_of(np.array([1]), n_segments=n, rows=1, keyed=True)
