from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.launch_time import LaunchTimes

MEASUREMENTS = st.lists(
    st.tuples(st.integers(1, 50), st.floats(1e-6, 1.0)), min_size=1, max_size=40
)


def test_before_any_launch_the_prediction_is_zero() -> None:
    times = LaunchTimes()
    assert times.mean(64) == times.bound(64) == 0.0


def test_a_bucket_that_was_seen_once_takes_that_long() -> None:
    times = LaunchTimes()
    times.learn(64, 2e-3)
    assert times.mean(64) == 2e-3
    assert times.bound(64) == pytest.approx(6e-3)  # RFC 6298 (2.2): R + 4 * R/2


def test_the_mean_follows_a_change_and_the_bound_comes_near_it_when_times_are_steady() -> None:
    times = LaunchTimes()
    times.learn(64, 10e-3)
    for _ in range(60):
        times.learn(64, 2e-3)
    assert times.mean(64) == pytest.approx(2e-3, rel=0.01)
    assert times.mean(64) <= times.bound(64) < 2.1e-3


def test_the_bound_covers_times_that_vary() -> None:
    times = LaunchTimes()
    for seconds in [1e-3, 3e-3] * 50:
        times.learn(64, seconds)
    assert times.mean(64) == pytest.approx(2e-3, rel=0.1)
    assert times.bound(64) > 3e-3


def test_unseen_buckets_are_interpolated_between_neighbours_and_extended_beyond_them() -> None:
    times = LaunchTimes()
    times.learn(100, 1e-3)
    times.learn(200, 2e-3)
    assert times.mean(150) == pytest.approx(1.5e-3)
    assert times.mean(10) == pytest.approx(1e-3)
    assert times.mean(400) == pytest.approx(4e-3)


def test_a_slow_first_launch_of_a_small_bucket_is_forgotten_once_larger_ones_are_fast() -> None:
    times = LaunchTimes()
    times.learn(8, 1.0)
    times.learn(64, 1e-3)
    assert times.mean(8) <= 1e-3


@given(MEASUREMENTS)
def test_a_larger_bucket_never_takes_less_on_average(measurements: list[tuple[int, float]]) -> None:
    times = LaunchTimes()
    for bucket, seconds in measurements:
        times.learn(bucket, seconds)
    means = [times.mean(bucket) for bucket in range(1, 61)]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(means))
    seconds_seen = [seconds for _, seconds in measurements]
    assert min(seconds_seen) * 0.999 <= means[0]
    assert all(times.bound(bucket) >= times.mean(bucket) * 0.999 for bucket in range(1, 61))
