"""Values to ids, for many columns at once: the four encoders of ``spec.py``.

A column is one place of one feature; its parameters are an element of each vector here, so that
the cost of a batch is a few numpy calls, whatever its number of features. What is rare (missing
and unseen values, errors) is looked at only after one check over everything has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.features.faults import Mask
from kernels.features.feature import Encoder, Substitute
from kernels.features.hashing import I64, U64, hash_integers
from kernels.features.vocabulary import VocabularyIndex

Report = Callable[[Mask, Callable[[int, int], str]], None]

# Integers from these on are no longer told apart by the type: 2 to the bits of its significand.
_EXACT: Final = {"e": 1 << 11, "f": 1 << 24, "d": 1 << 53}
_ERROR: Final = -1
_SKIP: Final = -2


class Ids:
    """The encoders of some columns.

    Args:
        encoders: Of each column; all identities, or none.
        index: The spec's vocabularies, and ``which`` of them each column uses (hash: any).
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        index: VocabularyIndex | None = None,
        which: Sequence[int] = (),
    ) -> None:
        self._sizes = _column([e.size for e in encoders], np.uint64)
        self._first = _column([e.first_id for e in encoders], np.int64)
        self._missing = _column([_code(e.missing) for e in encoders], np.int64)
        self._unseen = _column([_code(e.unseen) for e in encoders], np.int64)
        self._always = bool((self._missing >= 0).all())  # what is missing has an id, always
        self._shifted = bool(self._first.any())
        self._limits = {kind: np.minimum(self._sizes, limit) for kind, limit in _EXACT.items()}
        self._index = index
        self._which = _column(which, np.int64)
        self._hashed = np.array([e.encode == "hash" for e in encoders])

    def identity(self, raw: NDArray[Any], report: Report) -> tuple[I64, Mask | None]:
        """Take numbers for ids.

        Args:
            raw: ``[n_columns, n]`` of any integer, float or bool type.
            report: Told of wrong values, whose ids are then arbitrary.

        Returns:
            int64 ids, and which entries to drop, or None.
        """
        ids = raw.astype(np.int64)
        kind = raw.dtype.char
        if kind in _EXACT:
            good = ids.view(np.uint64) < self._limits[kind]
            good &= np.trunc(raw) == raw
        else:
            good = ids.view(np.uint64) < self._sizes
        if self._shifted:
            ids += self._first
        if good.all():
            return ids, None
        return self._repair_identity(raw, ids, ~good, report)

    def _repair_identity(
        self, raw: NDArray[Any], ids: I64, odd: Mask, report: Report
    ) -> tuple[I64, Mask | None]:
        kind = raw.dtype.char
        if kind in _EXACT and self._always:  # the common case: NaN, which has an id, and no more
            missing = np.isnan(raw)
            if not (odd ^ missing).any():
                return np.where(missing, self._missing, ids), None
        missing, wrong = _not_integers(raw, odd, report)
        if kind in _EXACT:
            rounded = odd & ~missing & ~wrong & (raw >= _EXACT[kind]) & (raw < self._sizes)
            if rounded.any():
                report(rounded, lambda c, n: _maybe_rounded(raw[c, n]))
                wrong |= rounded
        unseen = odd & ~missing & ~wrong

        def outside(c: int, n: int) -> str:
            return f"{number_text(raw[c, n])} is outside 0 to {int(self._sizes[c, 0]) - 1}"

        return self._substitute(ids, missing, unseen, report, outside)

    def texts(
        self, hashes: U64, report: Report, show: Callable[[int, int], str]
    ) -> tuple[I64, Mask | None]:
        """Look hashes up in vocabularies, or take them modulo the buckets.

        Args:
            hashes: uint64 ``[n_columns, n]``; zero, the hash of the empty text, means missing.
            report: Told of wrong values.
            show: Returns the value at (column, position), for a person.
        """
        if self._hashed.all():
            ids = (hashes % self._sizes).view(np.int64)
            unseen = None
        else:
            assert self._index is not None
            ids = self._index.find(hashes, self._which)
            unseen = ids < 0
            if self._hashed.any():
                ids[self._hashed] = (hashes[self._hashed] % self._sizes[self._hashed]).view(
                    np.int64
                )
                unseen[self._hashed] = False
        if self._shifted:
            ids += self._first
        missing = hashes == 0
        if unseen is None:
            unseen = np.zeros_like(missing)
        unseen &= ~missing
        if not missing.any() and not unseen.any():
            return ids, None

        def unknown(c: int, n: int) -> str:
            return f"{show(c, n)} is not in the vocabulary"

        return self._substitute(ids, missing, unseen, report, unknown)

    def _substitute(
        self,
        ids: I64,
        missing: Mask,
        unseen: Mask,
        report: Report,
        describe_unseen: Callable[[int, int], str],
    ) -> tuple[I64, Mask | None]:
        ids = np.where(missing, self._missing, np.where(unseen, self._unseen, ids))
        wrong = missing & (self._missing == _ERROR)
        if wrong.any():
            report(wrong, lambda c, n: "is missing, and has no default")
        wrong = unseen & (self._unseen == _ERROR)
        if wrong.any():
            report(wrong, describe_unseen)
        drop = (missing & (self._missing == _SKIP)) | (unseen & (self._unseen == _SKIP))
        return ids, drop if drop.any() else None


class Keys:
    """Encoders of some columns to 64-bit keys: numbers as they are, texts by their hash.

    Has the methods of ``Ids``, but for columns of keys any int64 is an id.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        given = [e.missing if isinstance(e.missing, int) else 0 for e in encoders]
        self._missing = _column(given, np.int64)
        self._required = _column([e.missing == "error" for e in encoders], np.bool_)
        self._skipped = _column([e.missing == "skip" for e in encoders], np.bool_)

    def identity(self, raw: NDArray[Any], report: Report) -> tuple[I64, Mask | None]:
        """Take numbers for keys; uint64 from 2**63 on for the int64 of the same bits.

        Arguments and result are as in ``Ids``.
        """
        keys, missing = _integers(raw, report)
        return (keys, None) if missing is None else self._substitute(keys, missing, report)

    def texts(
        self,
        hashes: U64,
        report: Report,
        show: Callable[[int, int], str],
    ) -> tuple[I64, Mask | None]:
        """Take hashes for keys. Arguments and result are as in ``Ids``."""
        missing = hashes == 0
        keys = hashes.view(np.int64)
        return self._substitute(keys, missing, report) if missing.any() else (keys, None)

    def _substitute(self, keys: I64, missing: Mask, report: Report) -> tuple[I64, Mask | None]:
        wrong = missing & self._required
        if wrong.any():
            report(wrong, lambda c, n: "is missing, and has no default")
        drop = missing & self._skipped
        return np.where(missing, self._missing, keys), drop if drop.any() else None


def hash_numbers(raw: NDArray[Any], report: Report) -> U64:
    """Return the hashes of the decimal texts of integers of any type; of NaN, zero (missing)."""
    if raw.dtype.kind in "iu":
        return hash_integers(raw)
    numbers, missing = _integers(raw, report)
    hashes = hash_integers(numbers)
    if missing is not None:
        hashes[missing] = 0
    return hashes


def _integers(raw: NDArray[Any], report: Report) -> tuple[I64, Mask | None]:
    """Return numbers of any type as int64, and which are NaN (None: none), others reported."""
    kind = raw.dtype.char
    if kind not in _EXACT:
        return raw.astype(np.int64), None
    odd = ~((np.trunc(raw) == raw) & (np.abs(raw) < _EXACT[kind]))
    if not odd.any():
        return raw.astype(np.int64), None
    missing, wrong = _not_integers(raw, odd, report)
    rounded = odd & ~missing & ~wrong
    if rounded.any():
        report(rounded, lambda c, n: _maybe_rounded(raw[c, n]))
    return np.where(odd, 0, raw).astype(np.int64), missing


def _not_integers(raw: NDArray[Any], odd: Mask, report: Report) -> tuple[Mask, Mask]:
    """Return which values are NaN, and which are no integers otherwise, after reporting these."""
    if raw.dtype.kind != "f":
        return np.zeros_like(odd), np.zeros_like(odd)
    missing = np.isnan(raw)
    wrong = odd & ~missing & ((np.trunc(raw) != raw) | np.isinf(raw))
    if wrong.any():
        report(wrong, lambda c, n: f"{number_text(raw[c, n])} is not an integer")
    return missing, wrong


def _maybe_rounded(value: np.generic) -> str:
    limit = _EXACT[value.dtype.char]
    return (
        f"{number_text(value)} may have been rounded: {value.dtype} holds all integers only below "
        f"{limit}; send integers"
    )


def number_text(value: np.generic) -> str:
    """Return a number as one would write it, integral floats as integers."""
    number = value.item()
    if isinstance(number, float) and number.is_integer() and abs(number) < 1 << 63:
        number = int(number)
    return str(int(number) if isinstance(number, bool) else number)


def _code(substitute: Substitute) -> int:
    if isinstance(substitute, int):
        return substitute
    return _ERROR if substitute == "error" else _SKIP


def _column(values: Sequence[int], dtype: type[np.generic]) -> NDArray[Any]:
    return np.array(values, dtype).reshape(-1, 1)
