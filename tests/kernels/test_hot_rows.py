from __future__ import annotations

import math

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.hot._c import implementation
from kernels.hot.plain import PlainRows
from kernels.hot.rows import HotRows
from kernels.hot.sizes import GROUP, HotStatistics, Sizes

HAS_C = implementation().startswith("hot rows: C")
BOTH = [
    pytest.param(True, id="C", marks=pytest.mark.skipif(not HAS_C, reason="no C compiler")),
    pytest.param(False, id="python"),
]
ROW_BYTES = 12


def make(
    n_groups: int = 1, *, stale_s: float = 10.0, period: int = 1 << 16, native: bool = True
) -> HotRows:
    sizes = Sizes.fitting(ROW_BYTES, 1 << 30, n_groups * GROUP)
    assert sizes.capacity == n_groups * GROUP
    return HotRows(attrs.evolve(sizes, period_keys=period), stale_s, native=native, seed=5)


def keys_of(*keys: int) -> NDArray[np.int64]:
    return np.array(keys, np.int64)


def rows_of(keys: NDArray[np.int64], version: float) -> NDArray[np.uint8]:
    """Rows that tell key and version."""
    rows = np.empty((len(keys), ROW_BYTES), np.uint8)
    rows[:, :8] = keys[:, np.newaxis].view(np.uint8)
    rows[:, 8:] = np.full((len(keys), 1), version, np.float32).view(np.uint8)
    return rows


def versions_in(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[:, 8:]).view(np.float32).ravel()


def serve(hot: HotRows, keys: NDArray[np.int64], now: float) -> NDArray[np.int64]:
    """Ask for keys, and admit what missed at once; return that."""
    out = np.zeros((len(keys), ROW_BYTES), np.uint8)
    missed = keys[hot.take(keys, now, out)]
    held = ~np.isin(keys, missed)
    assert (out[held, :8] == rows_of(keys[held], 0)[:, :8]).all()
    assert (now - versions_in(out[held]) <= hot.stale_s).all()
    assert (out[~held] == 0).all()
    hot.admit(missed, rows_of(missed, now), now)
    return missed


# Batches of keys of which some are frequent: 40 make a cache of one or two groups full.
KEYS = st.lists(
    st.one_of(st.integers(0, 12), st.integers(-60, 60)), min_size=0, max_size=80, unique=True
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "admit", "invalidate"]), KEYS, st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
@settings(deadline=None, max_examples=120)
@given(steps=STEPS, n_groups=st.integers(1, 3), period=st.sampled_from([7, 100, 1 << 16]))
def test_c_decides_as_python_does(
    steps: list[tuple[str, list[int], int]], n_groups: int, period: int
) -> None:
    native, plain = (
        make(n_groups, stale_s=4, period=period, native=native) for native in (True, False)
    )
    now = 0.0
    for what, listed, passed in steps:
        now += passed
        keys = keys_of(*listed)
        if what == "invalidate":
            native.invalidate(keys)
            plain.invalidate(keys)
        elif what == "admit":
            native.admit(keys, rows_of(keys, now - 2), now - 2)
            plain.admit(keys, rows_of(keys, now - 2), now - 2)
        else:
            outs = [np.zeros((len(keys), ROW_BYTES), np.uint8) for _ in range(2)]
            misses = [
                each.take(keys, now, out) for each, out in zip((native, plain), outs, strict=True)
            ]
            np.testing.assert_array_equal(misses[0], misses[1])
            np.testing.assert_array_equal(outs[0], outs[1])
        assert native.statistics() == plain.statistics()


@pytest.mark.parametrize("native", BOTH)
@settings(deadline=None, max_examples=60)
@given(steps=STEPS, n_groups=st.integers(1, 2))
def test_what_is_taken_was_admitted_and_is_within_the_bound(
    native: bool, steps: list[tuple[str, list[int], int]], n_groups: int
) -> None:
    """Against a dictionary that never forgets: what a hit may be."""
    hot = make(n_groups, stale_s=4, native=native)
    newest: dict[int, float] = {}
    now = 0.0
    for what, listed, passed in steps:
        now += passed
        keys = keys_of(*listed)
        if what == "invalidate":
            hot.invalidate(keys)
            for key in listed:
                newest.pop(key, None)
        elif what == "admit":
            read_at = now - 2 * (passed % 2)
            hot.admit(keys, rows_of(keys, read_at), read_at)
            for key in listed:
                newest[key] = max(newest.get(key, -math.inf), read_at)
        else:
            out = np.full((len(keys), ROW_BYTES), 255, np.uint8)
            misses = hot.take(keys, now, out)
            hits = np.delete(np.arange(len(keys)), misses)
            want = [newest[listed[hit]] for hit in hits]
            assert (now - versions_in(out[hits]) <= 4).all()
            np.testing.assert_array_equal(out[hits, :8], rows_of(keys[hits], 0)[:, :8])
            # An older one may be held: a newer that came after it was evicted was perhaps refused.
            assert (versions_in(out[hits]) <= want).all()
            assert (out[misses] == 255).all()
    figures = hot.statistics()
    assert figures.n_rows <= hot.sizes.capacity
    assert figures.admitted - figures.evicted == figures.n_rows


@pytest.mark.parametrize("native", BOTH)
def test_a_row_is_taken_until_its_bound_and_not_longer(native: bool) -> None:
    hot = make(stale_s=5, native=native)
    keys, out = keys_of(1, 2), np.zeros((2, ROW_BYTES), np.uint8)
    hot.admit(keys, rows_of(keys, 1), 100.0)
    assert not len(hot.take(keys, 105.0, out))
    np.testing.assert_array_equal(hot.take(keys, 105.001, out), [0, 1])
    assert hot.statistics().stale == 2
    hot.admit(keys_of(2), rows_of(keys_of(2), 2), 106.0)
    hot.admit(keys_of(2), rows_of(keys_of(2), 1), 101.0)  # an older fetch that took longer
    np.testing.assert_array_equal(hot.take(keys, 110.0, out), [0])
    np.testing.assert_array_equal(versions_in(out[1:]), [2])
    figures = hot.statistics()
    assert (figures.n_rows, figures.admitted, figures.refreshed) == (2, 2, 1)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("stale_s", [5.0, math.inf])
def test_what_changed_is_a_miss_until_it_is_fetched_again(stale_s: float, native: bool) -> None:
    hot = make(stale_s=stale_s, native=native)
    keys, out = keys_of(1, 2, 3), np.zeros((3, ROW_BYTES), np.uint8)
    hot.admit(keys, rows_of(keys, 1), 0.0)
    hot.invalidate(keys_of(2, 77))
    hot.invalidate(keys_of(2))
    np.testing.assert_array_equal(hot.take(keys, 1.0, out), [1])
    hot.admit(keys_of(2), rows_of(keys_of(2), 2), 1.0)
    assert not len(hot.take(keys, 2.0, out))
    np.testing.assert_array_equal(versions_in(out), [1, 2, 1])
    assert hot.statistics().invalidated == 1


@pytest.mark.parametrize("native", BOTH)
def test_what_is_asked_for_once_evicts_nothing_that_is_asked_for_often(native: bool) -> None:
    hot = make(2, native=native)
    frequent = np.arange(2 * GROUP)
    for _ in range(3):
        serve(hot, frequent, 0.0)
    for key in range(1000, 3000, 50):
        assert len(serve(hot, np.arange(key, key + 50), 0.0)) == 50
        assert not len(serve(hot, frequent, 0.0))
    assert hot.statistics().evicted == 0
    assert hot.statistics().refused == 2000


@pytest.mark.parametrize("native", BOTH)
def test_what_is_no_longer_asked_for_makes_room(native: bool) -> None:
    hot = make(1, period=100, native=native)
    for _ in range(20):
        serve(hot, np.arange(GROUP), 0.0)
    missed = [len(serve(hot, np.arange(100, 100 + GROUP), 0.0)) for _ in range(100)]
    assert missed[0] == GROUP
    assert missed[-1] == 0
    assert hot.statistics().evicted == GROUP


@pytest.mark.parametrize("native", BOTH)
def test_keys_of_all_bits_are_told_apart(native: bool) -> None:
    hot = make(64, native=native)
    rng = np.random.default_rng(3)
    edges = [0, -1, 1, -(2**63), 2**63 - 1]
    keys = np.unique([*edges, *rng.integers(-(2**63), 2**63 - 1, 64 * GROUP - 5)])
    assert len(serve(hot, keys, 0.0)) == len(keys)
    out = np.zeros((len(keys), ROW_BYTES), np.uint8)
    assert not len(hot.take(keys, 1.0, out))
    np.testing.assert_array_equal(out, rows_of(keys, 0))
    assert len(hot.take(keys ^ 1 << 40, 1.0, out)) == len(keys)


@pytest.mark.parametrize("row_bytes", [1, 20, 128, 4096])
def test_memory_is_within_the_bound(row_bytes: int) -> None:
    sizes = Sizes.fitting(row_bytes, 1 << 20)
    assert 0.9 * 2**20 < sizes.size_bytes <= 2**20
    if HAS_C:
        rows = HotRows(sizes, 1.0).store
        assert not isinstance(rows, PlainRows)
        assert sum(array.nbytes for array in rows._arrays.values()) == sizes.size_bytes
    assert Sizes.fitting(row_bytes, 1 << 20, 100).capacity == min(112, sizes.capacity)


def test_sizes_that_hold_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes: want at least 2716, for 16 rows of 128 bytes"):
        Sizes.fitting(128, 2000)
    with pytest.raises(ValueError, match="row_bytes: want at least 1"):
        Sizes.fitting(0, 2000)
    with pytest.raises(ValueError, match="stale_s: want at least 0"):
        HotRows(Sizes.fitting(1, 2000), -1.0)


def test_arrays_of_another_form_are_refused() -> None:
    hot, out = make(), np.zeros((2, ROW_BYTES), np.uint8)
    with pytest.raises(ValueError, match=r"keys: want int64 \[n\], got int32 \(2,\)"):
        hot.take(np.zeros(2, np.int32), 0.0, out)
    with pytest.raises(ValueError, match=r"rows: want C-ordered uint8 \(3, 12\), got uint8"):
        hot.admit(keys_of(1, 2, 3), out, 0.0)
    with pytest.raises(ValueError, match="rows: want C-ordered"):
        hot.take(keys_of(1, 2), 0.0, np.zeros((2, 2 * ROW_BYTES), np.uint8)[:, ::2])


def test_the_hit_rate_of_nothing_is_nothing() -> None:
    figures = make().statistics()
    assert isinstance(figures, HotStatistics)
    assert figures.hit_rate == 0
