from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.placement.skew import Zipf, fit_exponent


def chances(n: int, s: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.arange(1, n + 1, dtype=np.float64) ** -s
    return np.asarray(found / found.sum(), np.float64)


@pytest.mark.parametrize("s", [0.0, 0.7, 1.0, 1.1, 1.5])
@pytest.mark.parametrize("n", [1, 7, 4096, 4097, 200_000])
def test_sums_are_those_of_each_rank(n: int, s: float) -> None:
    zipf, exact = Zipf(n, s), chances(n, s)
    ks = np.unique(np.geomspace(1, n, 20).astype(int))
    np.testing.assert_allclose(zipf.head(ks), np.cumsum(exact)[ks - 1], rtol=1e-6)
    for draws in (1.0, 100.0, 1e5):
        want = -np.expm1(draws * np.log1p(-np.minimum(exact, 1 - 1e-12)))
        assert zipf.distinct(draws) == pytest.approx(want.sum(), rel=0.02, abs=0.6)
        half = want[: n // 2].sum()
        assert zipf.distinct(draws, n // 2) == pytest.approx(half, rel=0.02, abs=0.6)
    assert zipf.head(n) == pytest.approx(1.0)
    assert zipf.head(2 * n) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.integers(1, 10**11), st.floats(0, 2), st.floats(1, 1e7))
def test_distinct_keys_are_at_most_all_and_at_most_the_draws(n: int, s: float, d: float) -> None:
    zipf = Zipf(n, s)
    distinct = zipf.distinct(d)
    assert 0 < distinct <= min(n, d) * (1 + 1e-6)
    assert zipf.distinct(d, 0) == 0
    assert zipf.distinct(d, n) == pytest.approx(distinct)


@settings(deadline=None)
@given(st.integers(2, 10**6), st.floats(0.1, 2), st.data())
def test_keys_hotter_than_the_kth_are_the_first_k(n: int, s: float, data: st.DataObject) -> None:
    zipf = Zipf(n, s)
    k = data.draw(st.integers(1, n - 1))
    total = float(zipf._total)
    between = (k + 0.5) ** -s / total
    assert zipf.hotter_than(between) == k
    assert zipf.hotter_than(0) == n
    assert zipf.hotter_than(1.1) == 0


def test_of_keys_that_are_alike_all_or_none_are_hotter() -> None:
    zipf = Zipf(10, 0.0)
    assert zipf.hotter_than(0.1) == 10
    assert zipf.hotter_than(0.11) == 0
    assert zipf.head(3) == pytest.approx(0.3)


def test_a_table_without_rows_has_no_traffic() -> None:
    zipf = Zipf(0, 1.1)
    assert zipf.head(5) == 0
    assert zipf.distinct(100) == 0


@pytest.mark.parametrize("s", [0.0, 1.05, 1.2])
def test_draws_follow_the_law(s: float) -> None:
    n = 50_000
    ranks = Zipf(n, s).draw(200_000, np.random.default_rng(1))
    assert ranks.min() >= 0
    assert ranks.max() < n
    ks = np.array([1, 10, 100, 5000, 20_000])
    seen = np.array([(ranks < k).mean() for k in ks])
    np.testing.assert_allclose(seen, Zipf(n, s).head(ks), atol=0.005)


@pytest.mark.parametrize("s", [0.5, 1.05, 1.2])
def test_the_exponent_is_found_again(s: float) -> None:
    ranks = Zipf(100_000, s).draw(100_000, np.random.default_rng(2))
    counts = np.sort(np.bincount(ranks)[np.bincount(ranks) > 0])[::-1]
    assert fit_exponent(counts, 100_000) == pytest.approx(s, abs=0.12)
