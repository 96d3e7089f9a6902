from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.metrics import Histogram, Metrics

values = st.lists(st.floats(0, 1e10), min_size=1, max_size=200)


@given(values, st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_off_by_a_64th_or_half_a_unit_at_most(
    observed: list[float], q: float
) -> None:
    histogram = Histogram()
    for value in observed:
        histogram.observe(value)
    exact = sorted(observed)[max(math.ceil(q * len(observed)), 1) - 1]
    assert abs(histogram.quantile(q) - exact) <= max(exact / 64, 1.0)


@given(values)
def test_many_at_once_count_as_one_by_one(observed: list[float]) -> None:
    one, many = Histogram(), Histogram()
    for value in observed:
        one.observe(value)
    many.observe_many(np.array(observed * 2))
    one.observe_many(observed)
    assert one.summary() == pytest.approx(many.summary())
    assert one._counts == many._counts


def test_whole_numbers_up_to_64_are_exact() -> None:
    for value in range(64):
        histogram = Histogram()
        histogram.observe_many([0, value, 100])
        assert histogram.quantile(0.5) == value


def test_what_is_out_of_range_counts_at_its_edge() -> None:
    histogram = Histogram()
    histogram.observe_many([-5.0, 1e300])
    assert histogram.quantile(0.5) == 0
    assert histogram.greatest == 1e300
    histogram.observe_many(np.full(100, -1.0))
    histogram.observe_many(np.full(1000, 1e300))
    assert histogram.quantile(0.05) == 0
    assert histogram.n == 1102


def test_a_snapshot_is_json_with_counters_and_summaries() -> None:
    metrics = Metrics()
    metrics.count("answered")
    metrics.count("answered", 4)
    metrics.observe("total_us", 10)
    metrics.observe_many("total_us", [20, 30])
    assert json.loads(json.dumps(metrics.snapshot())) == {
        "answered": 5,
        "total_us": {
            "n": 3,
            "mean": 20.0,
            "min": 10.0,
            "p50": 20.0,
            "p95": 30.0,
            "p99": 30.0,
            "max": 30.0,
        },
    }


def test_a_reset_starts_new_histograms_and_keeps_counters() -> None:
    metrics = Metrics()
    metrics.count("answered")
    metrics.observe("total_us", 10)
    metrics.reset()
    assert metrics.snapshot() == {"answered": 1}
    metrics.observe_many("total_us", [])
    assert metrics.snapshot() == {"answered": 1, "total_us": {"n": 0}}
