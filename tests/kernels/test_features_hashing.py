from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.features.hashing import combine_hashes, hash_integers, hash_texts
from tests.kernels.features_oracle import murmur64a


def hash_all(texts: list[bytes]) -> list[int]:
    lengths = np.array([len(text) for text in texts], np.int64)
    data = np.frombuffer(b"".join(texts), np.uint8)
    hashes: list[int] = hash_texts(data, np.cumsum(lengths) - lengths, lengths).tolist()
    return hashes


def test_documented_hashes_never_change() -> None:
    # Models were trained on these: a change breaks every bundle with a hashed feature.
    assert hash_all([b"", b"17", b"tensorbatch", "Größe, ✓ and more".encode()]) == [
        0,
        0x7777C5CF4CE97DE8,
        0x2F91CEFBB0048F3F,
        murmur64a("Größe, ✓ and more".encode()),
    ]


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"", b"12345678", b"x" * 300])))
def test_texts_of_any_lengths_hash_as_murmurhash64a(texts: list[bytes]) -> None:
    assert hash_all(texts) == [murmur64a(text) for text in texts]


@given(
    st.lists(
        st.integers(-(2**63), 2**63 - 1)
        | st.integers(0, 10**9)
        | st.sampled_from([10**k + d for k in range(18) for d in (-1, 0)])
    )
)
def test_a_number_hashes_as_its_decimal_text(numbers: list[int]) -> None:
    hashes = hash_integers(np.array(numbers, np.int64)).tolist()
    assert hashes == [murmur64a(str(number).encode()) for number in numbers]
    for number, each in zip(numbers, hashes, strict=True):
        assert hash_integers(np.array([number], np.int64)).tolist() == [each]  # whatever is beside


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "u8", ">i4"])
def test_the_type_of_an_integer_does_not_change_its_hash(dtype: str) -> None:
    numbers = np.array([[0, 7], [100, 99]], dtype)
    assert hash_integers(numbers).tolist() == hash_integers(numbers.astype(np.int64)).tolist()


def test_the_largest_unsigned_integer_hashes_as_its_text() -> None:
    assert hash_integers(np.array([2**64 - 1], np.uint64)).tolist() == [
        murmur64a(b"18446744073709551615")
    ]


def test_a_tuple_hashes_as_its_members_hashes_end_to_end() -> None:
    members = [np.array([murmur64a(text)], np.uint64) for text in (b"a", b"b", b"")]
    together = b"".join(int(each[0]).to_bytes(8, "little") for each in members)
    assert combine_hashes(members).tolist() == [murmur64a(together)]
