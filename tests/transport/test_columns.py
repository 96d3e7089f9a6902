from __future__ import annotations

import enum
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.columns import (
    blocks_from_columns,
    blocks_from_rows,
    count_candidates,
    decode_rows,
)
from transport.errors import InvalidRequest
from transport.messages import CANDIDATE, USER, Block

NAN = float("nan")


def values_of(block: Block) -> dict[str, list[Any]]:
    """Read a block back as Python values, by the definition of its forms."""

    def strings(data: Any, splits: Any) -> list[str]:  # noqa: ANN401
        return [bytes(data[a:b]).decode() for a, b in pairwise(splits)]

    rows, chars = block.row_splits, block.char_splits
    if rows is None and chars is None:
        return dict(zip(block.names, block.values.tolist(), strict=True))
    flat = block.values.tolist() if chars is None else strings(block.values, chars)
    if rows is not None:
        flat = [flat[a:b] for a, b in pairwise(rows)]
    return {block.names[0]: flat}


def read(blocks: tuple[Block, ...]) -> dict[str, list[Any]]:
    return {name: values for block in blocks for name, values in values_of(block).items()}


@pytest.mark.parametrize(
    ("column", "want", "dtype"),
    [
        ([1, 2, 3], [1, 2, 3], "int64"),
        ((1, 2.5, 3), [1.0, 2.5, 3.0], "float64"),
        ([True, False, True], [True, False, True], "bool"),
        ([True, 2, 3], [1, 2, 3], "int64"),
        ([2**63, 1, 2], [2**63, 1, 2], "uint64"),
        ([1, None, 3], [1.0, NAN, 3.0], "float64"),
        ([None, None, None], [NAN, NAN, NAN], "float64"),
        ([NAN, 1.0, 2.0], [NAN, 1.0, 2.0], "float64"),
        (["a", "", "ü€"], ["a", "", "ü€"], "uint8"),
        (["a", None, "b"], ["a", "", "b"], "uint8"),
        ([[1], [], [2, 3]], [[1], [], [2, 3]], "int64"),
        ([[1.5], None, (2,)], [[1.5], [], [2.0]], "float64"),
        ([["a", "bb"], [], ["c"]], [["a", "bb"], [], ["c"]], "uint8"),
        ([[], [], []], [[], [], []], "float64"),
        (np.array([1, 2, 3], np.int16), [1, 2, 3], "int16"),
        (np.array([1, 2, 3], np.float32)[::-1], [3, 2, 1], "float32"),
        (np.array(["a", "b", "c"]), ["a", "b", "c"], "uint8"),
        (np.array([1, None, 2.5], object), [1.0, NAN, 2.5], "float64"),
        ([np.float32(1.5), 2, 3], [1.5, 2, 3], "float64"),
        ([np.arange(2), np.arange(0), np.arange(1)], [[0, 1], [], [0]], "int64"),
        (np.arange(6, dtype=np.uint8).reshape(3, 2), [[0, 1], [2, 3], [4, 5]], "uint8"),
        (range(3), [0, 1, 2], "int64"),
        (7, [7, 7, 7], "int64"),
        ("x", ["x", "x", "x"], "uint8"),
        (None, [NAN, NAN, NAN], "float64"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_candidate_column_keeps_its_values(column: Any, want: list[Any], dtype: str) -> None:  # noqa: ANN401
    (block,) = blocks_from_columns(CANDIDATE, {"f": column}, 3)
    assert block.side == CANDIDATE
    assert str(block.values.dtype) == dtype
    np.testing.assert_equal(values_of(block), {"f": want})


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (3, [3]),
        (np.float32(1.5), [1.5]),
        (np.array(4), [4]),
        ("ab", ["ab"]),
        (None, [NAN]),
        ([1, 2], [[1, 2]]),
        ((), [[]]),
        (["a", "b"], [["a", "b"]]),
        (np.array([1.5, 2.5]), [[1.5, 2.5]]),
        (np.array(["a", "b"]), [["a", "b"]]),
    ],
    ids=repr,
)
def test_a_user_column_is_one_value(value: Any, want: list[Any]) -> None:  # noqa: ANN401
    (block,) = blocks_from_columns(USER, {"f": value}, 1)
    np.testing.assert_equal(values_of(block), {"f": want})


def test_numbers_of_one_dtype_and_width_share_a_block() -> None:
    blocks = blocks_from_columns(
        CANDIDATE,
        {
            "a": np.ones(2, np.float32),
            "b": [1, 2],
            "c": np.zeros(2, np.float32),
            "d": np.ones((2, 3), np.float32),
            "e": [3, 4],
        },
        2,
    )
    assert [block.names for block in blocks] == [("a", "c"), ("b", "e"), ("d",)]
    assert [block.values.shape for block in blocks] == [(2, 2), (2, 2), (1, 2, 3)]


def test_enumerations_count_as_what_they_are_made_of() -> None:
    class Genre(enum.StrEnum):
        COMEDY = "comedy"

    class Level(enum.IntEnum):
        HIGH = 3

    columns = {"g": [Genre.COMEDY], "l": [Level.HIGH]}
    assert read(blocks_from_columns(CANDIDATE, columns, 1)) == {"g": ["comedy"], "l": [3]}


def test_absent_features_of_a_row_are_missing() -> None:
    rows: list[dict[str, Any]] = [
        {"price": 1.5, "tags": ["x"]},
        {"genre": "b"},
        {"price": 2, "genre": "c", "tags": None},
    ]
    blocks = blocks_from_rows({"age": 30}, rows)
    assert [block.side for block in blocks].count(USER) == 1
    np.testing.assert_equal(
        read(blocks),
        {
            "age": [30],
            "price": [1.5, NAN, 2.0],
            "tags": [["x"], [], []],
            "genre": ["", "b", "c"],
        },
    )


def test_no_candidates_give_the_user_alone() -> None:
    assert read(blocks_from_rows({"age": 30}, [])) == {"age": [30]}
    assert read(blocks_from_columns(CANDIDATE, {"price": [], "name": np.zeros(0)}, 0)) == {
        "price": [],
        "name": [],
    }


def test_candidates_are_counted_by_their_first_sequence() -> None:
    assert count_candidates({"a": "text", "b": [1, 2, 3]}) == 3
    assert count_candidates({"b": np.zeros((2, 5))}) == 2
    with pytest.raises(InvalidRequest, match="at least one column") as caught:
        count_candidates({"a": 7})
    assert caught.value.field == "candidates"


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"f": [1, 2]}, "candidate feature 'f': 2 values for 3 candidates"),
        ({"f": np.zeros(4)}, "'f': 4 values for 3 candidates"),
        ({"f": [1, "a", 2]}, "candidate 1, feature 'f': want a number, as before it, got str 'a'"),
        ({"f": ["a", None, 2]}, "candidate 2, .* want a string, .* got int 2"),
        ({"f": [None, [1], 2.5]}, "candidate 2, .* want a list, .* got float"),
        ({"f": [1, 2, {"a": 1}]}, "candidate 2, .* want a number, .* got dict"),
        ({"f": [{}, 2, 3]}, "candidate 0, .* want a number, a string, or a list"),
        ({"f": [b"a", b"b", b"c"]}, "candidate 0, .* got bytes"),
        ({"f": [[1], ["a", 2], [3]]}, "candidate 1, .* list of numbers or of strings, got list"),
        ({"f": [[1], ["a"], [3]]}, "got both"),
        ({"f": [[1], [[2]], [3]]}, "candidate 1"),
        ({"f": [[1], [b"x"], [3]]}, "candidate 1"),
        ({"f": [1, 2**70, 3]}, "does not fit 64 bits"),
        ({"f": [-1, 2**63, 3]}, "does not fit 64 bits"),
        ({"f": [1.5, 10**400, 3]}, "does not fit 64 bits"),
        ({"f": [None, 2**53 + 1, 3]}, "9007199254740993 is beyond 2"),
        ({"f": ["a", "\ud800", "b"]}, "not Unicode"),
        ({"f": {"a": 1}}, "want a sequence of 3 values, got dict"),
        ({"f": b"abc"}, "want a sequence of 3 values, got bytes"),
        ({"f": 1j}, "want a sequence of 3 values, got complex"),
        ({"f": np.zeros((3, 2, 2))}, r"got an array \(3, 2, 2\)"),
        ({"f": np.zeros(3, complex)}, "candidate 0, .* got complex"),
        ({"": [1, 2, 3]}, "'' is not a feature name"),
        ({7: [1, 2, 3]}, "7 is not a feature name"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_candidate_column_is_named(columns: Any, match: str) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequest, match=match) as caught:
        blocks_from_columns(CANDIDATE, columns, 3)
    assert caught.value.field == ("f" if "f" in columns else "")


@pytest.mark.parametrize("value", [{"a": 1}, b"x", [[1], [2]], [1, "a"], np.zeros((2, 2)), 1j])
def test_what_is_no_user_value_is_named(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidRequest, match="user feature 'f'") as caught:
        blocks_from_columns(USER, {"f": value}, 1)
    assert caught.value.field == "f"


scalars = st.one_of(st.integers(-(2**40), 2**40), st.text(max_size=5), st.none())


@given(
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers()),
    st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(-(2**40), 2**40)), max_size=5),
)
def test_decode_rows_is_blocks_from_rows(user: Any, candidates: Any) -> None:  # noqa: ANN401
    user = {name: value % 2**40 for name, value in user.items()}
    n, blocks = decode_rows(msgpack.packb([user, candidates]))
    want = blocks_from_rows(user, candidates)
    assert n == len(candidates)
    assert [b.side for b in blocks] == [b.side for b in want]
    np.testing.assert_equal(read(blocks), read(want))


@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            scalars | st.binary(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
            ),
            max_leaves=8,
        ).map(lambda value: bytes(msgpack.packb([{"u": value}, [{"c": value}, {"c": 1}]]))),
    )
)
def test_hostile_rows_are_invalid_requests_and_nothing_else(data: bytes) -> None:
    try:
        n, blocks = decode_rows(data)
    except InvalidRequest:
        return
    for block in blocks:
        splits = block.row_splits if block.row_splits is not None else block.char_splits
        length = len(splits) - 1 if splits is not None else block.values.shape[1]
        assert length == (n if block.side == CANDIDATE else 1)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "rows: want"),
        (msgpack.packb({}), "rows: want"),
        (msgpack.packb([{}]), "rows: want"),
        (msgpack.packb([{}, {}]), "rows: want"),
        (msgpack.packb([{}, [], 1]), "rows: want"),
        (msgpack.packb([{}, []]) + b"x", "rows: 1 bytes follow"),
        (msgpack.packb([{}, [{"a": 1}]])[:-1], "rows: want"),
        (msgpack.packb([3, []]), "user: want a map of features, got int 3"),
        (msgpack.packb([{}, [{}, 4]]), "candidate 1: want a map of features, got int 4"),
        (msgpack.packb([{"a": b"x"}, []]), "user feature 'a'"),
        (b"\x92\x80" + b"\xdd\xff\xff\xff\xff" * 300, "rows: want"),
        (b"\x92\x80\xdd\xff\xff\xff\xff", "rows: want"),
        (b"\x92\x81\xa1a" + b"\xdd\x00\x10\x00\x00" * 300, "rows: want"),
        (b"\x92\x81\xa1a" + b"\x91" * 5000, "rows: want"),
        (b"\x92\x81\xa1\xff\x01\x90", "rows: want"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_rows_that_are_none_are_named(data: bytes, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        decode_rows(data)
