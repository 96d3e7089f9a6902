from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.store.index import (
    BUCKET,
    BUCKET_KEYS,
    LOAD,
    build_index,
    find_in_index,
    index_keys,
)
from kernels.store.partition import mix64

KEYS = st.lists(st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)), max_size=80)


def unmix64(hashes: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> list[int]:
    """Invert mix64, so that a test can choose hashes."""
    mask, keys = 2**64 - 1, []
    for h in hashes.tolist():
        x = h ^ (h >> 31) ^ (h >> 62)
        x = x * pow(0x94D049BB133111EB, -1, 2**64) & mask
        x = x ^ (x >> 27) ^ (x >> 54)
        x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
        x = x ^ (x >> 30) ^ (x >> 60)
        keys.append(x - 2**64 if x >= 2**63 else x)
    return keys


def test_a_bucket_is_a_cache_line() -> None:
    assert BUCKET.itemsize == 64


@settings(deadline=None)
@given(KEYS, KEYS)
def test_every_key_is_found_at_its_row_and_no_other_key_is(
    keys: list[int], others: list[int]
) -> None:
    array = np.array(keys, np.int64)
    built = build_index(array)
    last = {key: i for i, key in enumerate(keys)}
    assert sorted(built.order.tolist()) == sorted(last.values())
    np.testing.assert_array_equal(index_keys(built.buckets), array[built.order])
    asked = np.array(keys + others, np.int64)
    row_of = {key: row for row, key in enumerate(array[built.order].tolist())}
    found = find_in_index(built.buckets, built.home_buckets, asked)
    assert found.tolist() == [row_of.get(key, -1) for key in asked.tolist()]


def test_an_index_is_the_same_in_whatever_order_keys_come() -> None:
    keys = np.random.default_rng(0).integers(-(2**60), 2**60, 10_000)
    a, b = build_index(keys), build_index(keys[::-1].copy())
    np.testing.assert_array_equal(a.buckets, b.buckets)
    np.testing.assert_array_equal(keys[a.order], keys[::-1][b.order])


def test_few_keys_are_far_from_home() -> None:
    built = build_index(np.arange(100_000))
    assert len(built.buckets) * BUCKET_KEYS * LOAD == pytest.approx(100_000, rel=0.001)
    home = (mix64(np.arange(100_000)) & np.uint64(2**32 - 1)) * np.uint64(built.home_buckets)
    rows = find_in_index(built.buckets, built.home_buckets, np.arange(100_000))
    bucket = np.searchsorted(built.buckets["base"], rows, side="right") - 1
    away = bucket - (home >> np.uint64(32)).astype(np.int64)
    assert (away > 0).mean() < 0.12
    assert away.max() < 20


def test_keys_of_one_hash_fill_one_bucket_after_the_other_even_past_the_last() -> None:
    # Lower halves all ones: the last bucket, whatever their number.
    keys = np.array(
        unmix64(np.arange(100, dtype=np.uint64) << np.uint64(32) | np.uint64(2**32 - 1))
    )
    built = build_index(keys)
    assert len(built.buckets) > built.home_buckets
    assert built.buckets["spill"][built.home_buckets - 1] == 14
    found = find_in_index(built.buckets, built.home_buckets, keys)
    np.testing.assert_array_equal(keys[built.order][found], keys)


def test_an_index_of_nothing_finds_nothing() -> None:
    built = build_index(np.empty(0, np.int64))
    assert built.home_buckets == len(built.buckets) == 1
    assert find_in_index(built.buckets, 1, np.array([0, 5])).tolist() == [-1, -1]
