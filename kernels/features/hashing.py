"""One 64-bit hash of text, vectorised: what ``hash``, ``vocabulary`` and ``cross`` are built on.

The hash is MurmurHash64A (Austin Appleby, 2008, public domain; ``MurmurHash2.cpp``) of a value's
UTF-8 bytes with seed 0, so that training code in any language can compute it. A number hashes as
its decimal text (``17``, ``-3``; no sign for zero, no leading zeros), so 17 and "17" are one value.
A ``hash`` feature's id is ``first_id + hash mod buckets``, on the hash as an unsigned integer. A
cross hashes its members' hashes, laid end to end as 8 little-endian bytes each. The empty text, and
the hash 0 with it, means a missing value.

Known vectors: "" is 0x0, "17" is 0x7777c5cf4ce97de8, "tensorbatch" is 0x2f91cefbb0048f3f.

The word loop runs over all texts at once, longest first, so a batch costs numpy calls by its
longest text (8 bytes a step), never by its number of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

MAX_TEXT_BYTES: Final = 1024  # 128 steps: a hostile text costs well under a millisecond

_M: Final = np.uint64(0xC6A4A7935BD1E995)
_R: Final = np.uint64(47)
_TAIL_MASKS: Final = np.array([(1 << 8 * n) - 1 for n in range(8)], np.uint64)
_LITTLE: Final = np.dtype("<u8")
_FOUR_DIGITS: Final = np.array(
    [int.from_bytes(b"%04d" % n, "little") for n in range(10_000)], np.uint64
)


def hash_texts(data: U8, starts: I64, lengths: I64) -> U64:
    """Hash ``data[start:start + length]`` for each start and length.

    Args:
        data: The bytes of all texts.
        starts: int64 ``[n]``.
        lengths: int64 ``[n]``.
    """
    if not len(starts):
        return np.empty(0, np.uint64)
    words = _unaligned_words(data)
    longest = int(lengths.max())
    if longest < 8:
        return _finish(_begin(lengths), words[starts], lengths)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[order], lengths[order]
    fewer = -(lengths >> 3)
    state = _begin(lengths)
    at = starts.copy()
    for step in range(longest >> 3):
        n = int(np.searchsorted(fewer, -step))  # texts with a further full word come first
        state[:n] = _step(state[:n], words[at[:n]])
        at[:n] += 8
    hashed = np.empty_like(state)
    hashed[order] = _finish(state, words[at], lengths)
    return hashed


def hash_integers(numbers: NDArray[Any]) -> U64:
    """Hash the decimal text of each number, whatever the array's integer type and shape."""
    flat = numbers.reshape(-1)
    if not len(flat):
        return np.empty(numbers.shape, np.uint64)
    if flat.min() >= 0 and flat.max() < 10**8:
        hashed = _hash_short_integers(flat.astype(np.int64, copy=False))
    else:
        text = flat.astype("S24")  # int64 has at most 20 characters
        data = text.view(np.uint8)
        lengths = np.char.str_len(text).astype(np.int64)
        hashed = hash_texts(data, np.arange(len(flat), dtype=np.int64) * 24, lengths)
    return hashed.reshape(numbers.shape)


def _hash_short_integers(numbers: I64) -> U64:
    """Hash numbers of one to eight digits: their text is built in one word, no byte is moved."""
    high, low = np.divmod(numbers.astype(np.uint32), np.uint32(10_000))
    word = _FOUR_DIGITS[high] | _FOUR_DIGITS[low] << np.uint64(32)
    n_digits = np.searchsorted(_POWERS, numbers, side="right") + 1
    word >>= ((8 - n_digits) * 8).astype(np.uint64)
    state = _begin(n_digits)
    whole = n_digits == 8
    if not whole.any():
        return _finish(state, word, n_digits)
    full = _finish(_step(state, word), word, np.zeros_like(n_digits))
    return np.where(whole, full, _finish(state, word, n_digits))


_POWERS: Final = 10 ** np.arange(1, 8, dtype=np.int64)


def _begin(lengths: NDArray[Any]) -> U64:
    return lengths.astype(np.uint64) * _M


def _step(state: U64, words: U64) -> U64:
    """Mix in 8 bytes."""
    k = words * _M
    k ^= k >> _R
    k *= _M
    k ^= state
    k *= _M
    return k


def _finish(state: U64, words: U64, lengths: NDArray[Any]) -> U64:
    """Mix in the last ``length mod 8`` bytes, then MurmurHash64A's avalanche."""
    n_tail = lengths & 7
    state = np.where(n_tail > 0, (state ^ (words & _TAIL_MASKS[n_tail])) * _M, state)
    state ^= state >> _R
    state *= _M
    state ^= state >> _R
    return state


def _unaligned_words(data: U8) -> U64:
    """Return a view of a padded copy: element ``i`` is the 8 bytes from ``i`` on, little-endian."""
    padded = np.empty(len(data) + 8, np.uint8)
    padded[: len(data)] = data
    padded[len(data) :] = 0
    return np.ndarray((len(data) + 1,), _LITTLE, padded, 0, (1,))


def combine_hashes(hashes: Sequence[U64]) -> U64:
    """Hash tuples: the hash of their members' hashes, as 8 little-endian bytes each.

    Args:
        hashes: One uint64 ``[n]`` for each member.
    """
    n = len(hashes[0])
    state = np.full(n, 8 * len(hashes), np.uint64) * _M
    for each in hashes:
        state = _step(state, each)
    return _finish(state, state, np.zeros(n, np.int64))
