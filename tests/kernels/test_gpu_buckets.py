from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.buckets import bucket_of, choose_buckets, fit, padding, usual_buckets
from kernels.program import Bucket

MOST = 160
TRAFFIC = st.dictionaries(st.integers(1, MOST), st.integers(1, 50), max_size=8)


def test_usual_buckets_are_powers_of_two_and_the_largest() -> None:
    assert [each.rows for each in usual_buckets(700, 256)] == [64, 128, 256, 512, 700]
    assert [each.requests for each in usual_buckets(700, 256)] == [64, 128, 256, 256, 256]
    assert usual_buckets(10, 4) == (Bucket(10, 4),)
    assert [each.rows for each in usual_buckets(256, 1)] == [64, 128, 256]


def test_a_batch_runs_in_the_smallest_bucket_that_holds_rows_and_requests() -> None:
    buckets = (Bucket(64, 4), Bucket(64, 16), Bucket(128, 8), Bucket(256, 32))
    assert fit(buckets, 1, 1) == Bucket(64, 4)
    assert fit(buckets, 64, 5) == Bucket(64, 16)
    assert fit(buckets, 65, 8) == Bucket(128, 8)
    assert fit(buckets, 65, 9) == Bucket(256, 32)
    assert fit(buckets, 257, 1) is None
    assert fit(buckets, 1, 33) is None


def test_buckets_follow_the_traffic() -> None:
    traffic = {100: 1000, 270: 500, 700: 10}
    assert [each.rows for each in choose_buckets(traffic, 3, 1024, 64)] == [112, 272, 1024]
    assert [each.rows for each in choose_buckets(traffic, 4, 1024, 64)] == [112, 272, 704, 1024]
    assert [each.rows for each in choose_buckets(traffic, 9, 1024, 64)] == [112, 272, 704, 1024]
    assert choose_buckets({}, 3, 1024, 64) == (Bucket(1024, 64),)


def brute_force(traffic: Mapping[int, int], n_most: int) -> float:
    """Return the least padding there is, of all choices of whole tiles."""
    sizes = [size for size in range(16, MOST, 16) if any(-(-n // 16) * 16 == size for n in traffic)]
    return min(
        padding(traffic, [Bucket(size) for size in (*some, MOST)])
        for n in range(n_most)
        for some in combinations(sizes, n)
    )


@given(TRAFFIC, st.integers(1, 4))
def test_no_other_choice_pads_less(traffic: dict[int, int], n_most: int) -> None:
    chosen = choose_buckets(traffic, n_most, MOST, 8)
    assert 1 <= len(chosen) <= n_most
    assert list(chosen) == sorted(set(chosen))
    assert chosen[-1] == bucket_of(MOST, 8)
    assert all(fit(chosen, n_rows, min(n_rows, 8)) is not None for n_rows in traffic)
    assert padding(traffic, chosen) == pytest.approx(brute_force(traffic, n_most))


@given(TRAFFIC.filter(bool))
def test_padding_is_a_share(traffic: dict[int, int]) -> None:
    assert 0 <= padding(traffic, [Bucket(MOST)]) < 1
    assert padding(traffic, [Bucket(n_rows) for n_rows in traffic]) == 0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 bucket"):
        choose_buckets({}, 0, 64, 1)
    with pytest.raises(ValueError, match="want 1 to 64 rows, got 65"):
        choose_buckets({65: 1}, 2, 64, 1)
