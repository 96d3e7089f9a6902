from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.store.delta import Delta
from tests.kernels.store.helpers import BOTH

KEY = st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1))
BATCHES = st.lists(st.lists(KEY, max_size=30), max_size=6)


def rows_for(keys: list[int], batch: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Bytes that tell key, batch and position in it apart."""
    text = [f"{key} {batch} {i}".encode().ljust(28, b".") for i, key in enumerate(keys)]
    return np.frombuffer(b"".join(text), np.uint8).reshape(len(keys), 28)


@pytest.mark.parametrize("native", BOTH)
@settings(deadline=None)
@given(batches=BATCHES, others=st.lists(KEY))
def test_a_key_has_the_row_that_was_put_last(
    native: bool, batches: list[list[int]], others: list[int]
) -> None:
    delta = Delta(14, "fp16", native=native)
    want: dict[int, bytes] = {}
    for i, keys in enumerate(batches):
        rows = rows_for(keys, i)
        delta.put(np.array(keys, np.int64), rows)
        want |= {key: row.tobytes() for key, row in zip(keys, rows, strict=True)}
        assert len(delta) == len(want)
    order = list(want)
    asked = order + others
    found = delta.find(np.array(asked, np.int64))
    assert found.tolist() == [order.index(key) if key in want else -1 for key in asked]
    got = {
        key: row.tobytes()
        for keys, rows in delta.items()
        for key, row in zip(keys.tolist(), rows, strict=True)
    }
    assert got == want


@pytest.mark.parametrize("native", BOTH)
def test_many_rows_are_kept_through_all_growth(native: bool) -> None:
    delta = Delta(3, "int8", native=native)
    keys = np.random.default_rng(0).permutation(100_000) * 7
    rows = np.ascontiguousarray(keys.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :7])
    empty = delta.size_bytes
    for start in range(0, len(keys), 9_999):
        delta.put(keys[start : start + 9_999], rows[start : start + 9_999])
    assert len(delta) == len(keys)
    np.testing.assert_array_equal(delta.find(keys), np.arange(len(keys)))
    got = list(delta.items())
    assert len(got) == 2
    np.testing.assert_array_equal(np.concatenate([each[0] for each in got]), keys)
    np.testing.assert_array_equal(np.concatenate([each[1] for each in got]), rows)
    assert empty + rows.nbytes + keys.nbytes < delta.size_bytes < 120 * len(keys)


@pytest.mark.parametrize("native", BOTH)
def test_wrong_arguments_are_errors_that_name_them(native: bool) -> None:
    delta = Delta(4, "bf16", native=native)
    row = np.zeros((1, 8), np.uint8)
    with pytest.raises(ValueError, match="keys: want C-ordered int64"):
        delta.put(np.array([1], np.int32), row)
    with pytest.raises(ValueError, match="encoded: want C-ordered rows of 8 bytes"):
        delta.put(np.array([1]), row[:, :7].copy())
    with pytest.raises(ValueError, match="2 keys, but 1 rows"):
        delta.put(np.array([1, 2]), row)
    with pytest.raises(IndexError, match="rows 0 to 1 of 0"):
        delta.copy(0, 1)
    assert len(delta) == 0
