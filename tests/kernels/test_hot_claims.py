from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.hot._c import implementation
from kernels.hot.claims import Claims
from kernels.hot.copying import copy_rows

HAS_C = implementation().startswith("hot rows: C")
BOTH = [
    pytest.param(True, id="C", marks=pytest.mark.skipif(not HAS_C, reason="no C compiler")),
    pytest.param(False, id="python"),
]


def i64(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


@pytest.mark.parametrize("native", BOTH)
def test_a_key_is_claimed_once(native: bool) -> None:
    claims = Claims(native=native)
    np.testing.assert_array_equal(claims.take(i64(0, 0, 1), i64(5, 6, 5), 0), [0, 1, 2])
    np.testing.assert_array_equal(claims.take(i64(1, 0, 0), i64(7, 6, 8), 0), [3, 1, 4])
    assert (len(claims), claims.next_number) == (5, 5)
    # What is too old to wait for is claimed anew, and the old number is no claim any more.
    np.testing.assert_array_equal(claims.take(i64(0, 1), i64(6, 7), 2), [5, 3])
    np.testing.assert_array_equal(claims.drop(i64(0, 0, 1), i64(5, 6, 5), 0, 3), [0, -1, 2])
    np.testing.assert_array_equal(claims.drop(i64(0, 0), i64(6, 99)), [5, -1])
    assert len(claims) == 2


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_c_claims_as_python_does(data: st.DataObject) -> None:
    both = [Claims(native=native) for native in (True, False)]
    some = st.lists(
        st.tuples(st.integers(0, 2), st.integers(-4, 4)), min_size=1, max_size=20, unique=True
    )
    for _ in range(data.draw(st.integers(1, 12))):
        pairs = np.array(data.draw(some), np.int64)
        tables, keys = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]) << 40
        bounds = sorted(data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40))))
        if data.draw(st.booleans()):
            answers = [claims.take(tables, keys, bounds[0]) for claims in both]
        else:
            answers = [claims.drop(tables, keys, *bounds) for claims in both]
        np.testing.assert_array_equal(answers[0], answers[1])
        assert len(both[0]) == len(both[1])
        assert both[0].next_number == both[1].next_number


@pytest.mark.parametrize("native", BOTH)
def test_there_is_room_for_any_number_of_claims(native: bool) -> None:
    claims = Claims(native=native)
    keys = np.random.default_rng(0).permutation(20_000) - 7
    tables = keys % 3
    for part in np.array_split(np.arange(len(keys)), 9):
        first = claims.next_number
        numbers = claims.take(tables[part], keys[part], 0)
        np.testing.assert_array_equal(numbers, np.arange(first, first + len(part)))
    np.testing.assert_array_equal(claims.take(tables, keys, 0), np.arange(len(keys)))
    half = slice(None, None, 2)
    dropped = claims.drop(
        np.ascontiguousarray(tables[half]), np.ascontiguousarray(keys[half]), 0, 20_000
    )
    np.testing.assert_array_equal(dropped, np.arange(len(keys))[half])
    assert len(claims) == 10_000
    numbers = claims.take(tables, keys, 0)
    np.testing.assert_array_equal(numbers[1::2], np.arange(len(keys))[1::2])
    assert numbers[half].min() == 20_000


@pytest.mark.parametrize("native", BOTH)
def test_rows_of_any_size_are_copied(native: bool) -> None:
    rows = np.arange(40, dtype=np.uint8)
    out = np.zeros(20, np.uint8)
    copy_rows(out, i64(10, 0, 5), rows, i64(0, 30, 8), i64(4, 3, 4), native=native)
    want = np.zeros(20, np.uint8)
    want[10:14], want[0:3], want[5:9] = rows[:4], rows[30:33], rows[8:12]
    np.testing.assert_array_equal(out, want)
    copy_rows(out, i64(), rows, i64(), i64(), native=native)
    with pytest.raises(ValueError, match="out: rows lie outside of 20 bytes"):
        copy_rows(out, i64(18), rows, i64(0), i64(3), native=native)
    with pytest.raises(ValueError, match="rows: rows lie outside of 40 bytes"):
        copy_rows(out, i64(0), rows, i64(-1), i64(3), native=native)
