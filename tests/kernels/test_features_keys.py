"""Ids that are keys: any integer of 64 bits as it is, and the hash of a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.errors import SpecError
from kernels.features.faults import CANDIDATE, USER
from kernels.features.spec import parse_spec
from tests.kernels.features_help import (
    candidates,
    parse_one,
    parser_of,
    problem,
    ragged,
    spec_of,
    texts,
    user,
)
from tests.kernels.features_oracle import murmur64a

AD = """
[features.ad]
side = "candidate"
kind = "categorical"
encode = "key"
"""
PAST = """
[features.past]
side = "user"
kind = "sequence"
encode = "key"
max_length = 4
pad = -1
missing = "skip"
[features.past_mask]
kind = "mask"
of = "past"
"""
ENDS = [0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1]


def signed(hashed: int) -> int:
    return (hashed + 2**63) % 2**64 - 2**63


def test_an_integer_is_its_own_key() -> None:
    parser = parser_of(AD)
    parsed = parse_one(parser, 6, candidates("ad", ENDS, np.int64))
    assert parsed.candidate.ids.tolist() == [ENDS]
    parsed = parse_one(parser, 2, candidates("ad", [2**64 - 1, 2**63], np.uint64))
    assert parsed.candidate.ids.tolist() == [[-1, -(2**63)]]
    parsed = parse_one(parser, 2, candidates("ad", [True, False], np.bool_))
    assert parsed.candidate.ids.tolist() == [[1, 0]]
    parsed = parse_one(parser, 2, candidates("ad", [-3, 2**53 - 1]))
    assert parsed.candidate.ids.tolist() == [[-3, 2**53 - 1]]


def test_a_texts_key_is_its_hash() -> None:
    parsed = parse_one(parser_of(AD), 2, texts(CANDIDATE, "ad", ["17", "été"]))
    want = [signed(murmur64a(text.encode())) for text in ("17", "été")]
    assert parsed.candidate.ids.tolist() == [want]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ([0.5, 1], "0.5 is not an integer"),
        ([np.inf, 1], "inf is not an integer"),
        ([2.0**53, 1], "9007199254740992 may have been rounded"),
        ([np.nan, 1], "is missing, and has no default"),
    ],
)
def test_what_is_no_key_is_told(values: list[float], fault: str) -> None:
    field, text = problem(parser_of(AD), 2, candidates("ad", values))
    assert field == "ad"
    assert fault in text


@pytest.mark.parametrize("missing", [-5, -(2**63), 2**63 - 1])
def test_a_missing_key_may_be_any_other(missing: int) -> None:
    parser = parser_of(f"{AD}missing = {missing}\n")
    parsed = parse_one(parser, 2, candidates("ad", [np.nan, 7]))
    assert parsed.candidate.ids.tolist() == [[missing, 7]]
    parsed = parse_one(parser, 1, texts(CANDIDATE, "ad", [""]))
    assert parsed.candidate.ids.tolist() == [[missing]]
    assert parse_one(parser, 2).candidate.ids.tolist() == [[missing, missing]]


def test_lists_of_keys_are_padded_with_a_key() -> None:
    parser = parser_of(PAST)
    parsed = parse_one(parser, 1, ragged(USER, "past", [[5, 2**62, -7]], np.int64))
    assert parsed.user.ids.T.tolist() == [[5, 2**62, -7, -1]]
    assert parsed.user.weights.T.tolist() == [[1, 1, 1, 0]]
    parsed = parse_one(parser, 1, texts(USER, "past", [["a", "", "b"]]))
    want = [signed(murmur64a(text)) for text in (b"a", b"b")]
    assert parsed.user.ids.T.tolist() == [[*want, -1, -1]]
    assert parsed.user.weights.T.tolist() == [[1, 1, 0, 0]]
    parsed = parse_one(parser, 1)
    assert parsed.user.ids.T.tolist() == [[-1] * 4]


def test_a_cross_takes_keys_as_texts() -> None:
    spec = """
[features.who]
side = "user"
kind = "categorical"
encode = "key"
[features.both]
kind = "cross"
of = ["who", "ad"]
buckets = 1000
"""
    parser = parser_of(spec + AD)
    numbers = parse_one(parser, 1, user("who", [17], np.int64), candidates("ad", [-3], np.int64))
    words = parse_one(parser, 1, texts(USER, "who", ["17"]), texts(CANDIDATE, "ad", ["-3"]))
    assert numbers.candidate.ids[0] == words.candidate.ids[0]
    parts = b"".join(murmur64a(text).to_bytes(8, "little") for text in (b"17", b"-3"))
    assert numbers.candidate.ids[0, 0] == murmur64a(parts) % 1000


def test_a_spec_says_no_more_of_keys_than_there_is_to_say() -> None:
    (feature,) = spec_of(AD).features
    assert feature.keyed
    assert feature.ids == (-(2**63), 2**63 - 1)
    assert feature.describe()["type"] == "text or integer"
    assert "size" not in feature.describe()
    for line, fault in (
        ("size = 3", "unknown key"),
        ("first_id = 1", "unknown key"),
        ("unseen = 1", "unknown key"),
        (f"missing = {2**63}", "missing: want an integer of -9223372036854775808 to"),
        ('missing = "skip"', "want a number or error"),
    ):
        with pytest.raises(SpecError, match=fault):
            spec_of(AD + line)


def test_keys_want_a_table_of_keys(tmp_path: Path) -> None:
    np.save(tmp_path / "ads.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(SpecError, match=r"ads\.npy: keys want a folder of a table of keys"):
        parse_spec(f'version = 1\n{AD}table = "ads.npy"', tmp_path)
