from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.errors import LookupFailed
from kernels.store.partition import segment_of
from kernels.store.unique import UniqueKeys, unique_keys
from tests.kernels.store.helpers import BOTH, needs_c

GROUPS = np.array([2, 0, 0, 1, 2, 0, 4], np.int32)
KEYED: dict[str, Any] = {
    "n_segments": 7,
    "rows": 0,
    "keyed": True,
    "group_of": GROUPS,
    "n_groups": 5,
}
DENSE = KEYED | {"rows": 100, "keyed": False}
KEYS = st.lists(st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)), max_size=60)


def check(keys: NDArray[np.int64], got: UniqueKeys, partition: dict[str, Any]) -> None:
    assert [array.dtype.name for array in got] == ["int64", "int64", "int32"]
    np.testing.assert_array_equal(got.keys[got.slots], keys)
    assert sorted(got.keys.tolist()) == sorted(set(keys.ravel().tolist()))
    names = ("n_segments", "rows", "keyed")
    segments = segment_of(got.keys, **{name: partition[name] for name in names})
    groups = np.repeat(np.arange(partition["n_groups"]), got.splits)
    np.testing.assert_array_equal(partition["group_of"][segments], groups)
    for group in range(partition["n_groups"]):
        mine = got.keys[groups == group].tolist()
        seen = [key for key in dict.fromkeys(keys.ravel().tolist()) if key in mine]
        assert mine == seen


@pytest.mark.parametrize("native", BOTH)
@settings(deadline=None)
@given(keys=KEYS)
def test_distinct_keys_come_by_group_in_the_order_of_appearance(
    native: bool, keys: list[int]
) -> None:
    array = np.array(keys, np.int64)
    check(array, unique_keys(array, **KEYED, native=native), KEYED)
    rows = array % 100
    check(rows, unique_keys(rows, **DENSE, native=native), DENSE)


@needs_c
def test_c_and_numpy_agree_on_many_keys_of_two_dimensions() -> None:
    keys = np.random.default_rng(0).integers(0, 3000, (20, 400)) ** 5
    one = unique_keys(keys, **KEYED)
    other = unique_keys(keys, **KEYED, native=False)
    assert one.slots.shape == (20, 400)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("native", BOTH)
def test_keys_that_no_group_can_have_are_errors(native: bool) -> None:
    for row in (-1, 100):
        with pytest.raises(LookupFailed, match=f"row {row} is outside a table of 100 rows"):
            unique_keys(np.array([5, row]), **DENSE, native=native)
    for lone in (-1, 5):
        split = DENSE | {"group_of": np.where(GROUPS == 4, lone, GROUPS).astype(np.int32)}
        with pytest.raises(LookupFailed, match="segment 6 is in none of the 5 groups"):
            unique_keys(np.array([5, 99]), **split, native=native)


@pytest.mark.parametrize(
    ("keys", "change", "message"),
    [
        (np.array([1], np.int32), {}, "keys: want"),
        (np.array([1, 2, 3])[::2], {}, "keys: want"),
        (np.array([1]), {"group_of": GROUPS[:3]}, "group_of: want"),
        (np.array([1]), {"group_of": GROUPS.astype(np.int64)}, "group_of: want"),
        (np.array([1]), {"n_segments": 0}, "n_segments"),
    ],
)
def test_wrong_arguments_are_errors_that_name_them(
    keys: NDArray[Any],
    change: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        unique_keys(keys, **KEYED | change)
