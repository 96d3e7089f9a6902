"""Python values to blocks: columns as people have them, or one mapping for each candidate.

What a feature may hold, for the user and for each candidate alike: a number, a bool, a string, None
(missing), or a list of numbers or of strings. Numbers of a column become bool, int64 (uint64 where
they need it), or float64 as soon as one is a fraction or missing; numpy arrays keep their dtype.
Fixed numbers of one dtype share a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np

from transport import _msgpack
from transport.errors import InvalidRequest, RemoteProtocolError
from transport.messages import CANDIDATE, SIDES, USER, Block
from transport.values import Array

Columns: TypeAlias = Mapping[str, Any]
"""Feature names to values: of the user one, of the candidates a sequence, or one for all."""

_NUMBERS: Final[frozenset[type]] = frozenset((bool, int, float, type(None)))
_STRINGS: Final[frozenset[type]] = frozenset((str, type(None)))
_LISTS: Final[frozenset[type]] = frozenset((list, tuple, type(None)))
_KINDS: Final[tuple[type[Any], ...]] = (bool, int, float, str, list, tuple)
_EXACT: Final = 1 << 53  # integers up to here are float64 values
_MOST: Final = (1 << 31) - 1  # splits are int32

_SHAPE: Final = "[user, [candidate, ...]], each a map of features"


def blocks_from_columns(side: int, columns: Columns, n: int) -> tuple[Block, ...]:
    """Turn one side's columns into blocks.

    Args:
        side: ``USER``: each value is the user's. ``CANDIDATE``: each is a sequence of ``n`` values
            or an array ``[n]`` or ``[n, width]``; a number, string or None holds for all.
        columns: Feature names to values.
        n: Number of candidates; 1 for the user.

    Raises:
        InvalidRequest: A value has no such form; names the feature and the candidate.
    """
    blocks: list[Block] = []
    fractions: dict[str, float] = {}  # of the user: 0.2 us each here, 5 us as a column
    fixed: dict[tuple[np.dtype[Any], int], tuple[list[str], list[Array]]] = {}
    for name, value in columns.items():
        if type(name) is not str or not name:
            raise InvalidRequest(f"{SIDES[side]}: {name!r:.40} is not a feature name", "")
        if side == USER and type(value) is float:
            fractions[name] = value
            continue
        column = _Column(side, name, n).read(value)
        if isinstance(column, Block):
            blocks.append(column)
        else:
            width = column.shape[1] if column.ndim == 2 else 0
            names, arrays = fixed.setdefault((column.dtype, width), ([], []))
            names.append(name)
            arrays.append(column)
    if fractions:
        values = np.array([*fractions.values()], np.float64)[:, np.newaxis]
        blocks.append(Block(side=side, names=tuple(fractions), values=values))
    for names, arrays in fixed.values():
        values = np.stack(arrays) if len(arrays) > 1 else arrays[0][np.newaxis]
        blocks.append(Block(side=side, names=tuple(names), values=values))
    return tuple(blocks)


def count_candidates(columns: Columns) -> int:
    """Return how many candidates columns are of: the length of the first that has one.

    Raises:
        InvalidRequest: None has.
    """
    for value in columns.values():
        if hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
            return len(value)
    raise InvalidRequest(
        "candidates: want at least one column, with a value for each candidate", "candidates"
    )


def blocks_from_rows(user: Columns, candidates: Sequence[Columns]) -> tuple[Block, ...]:
    """Turn the user's features and those of each candidate into blocks.

    A feature that some candidates lack is missing there.

    Raises:
        InvalidRequest: A value has no such form; names the feature and the candidate.
    """
    if not isinstance(user, Mapping):
        raise InvalidRequest(f"user: want a map of features, got {_describe(user)}", "user")
    names: dict[str, None] = {}
    for i, candidate in enumerate(candidates):
        if not isinstance(candidate, Mapping):
            raise InvalidRequest(
                f"candidate {i}: want a map of features, got {_describe(candidate)}", "candidates"
            )
        names.update(dict.fromkeys(candidate))
    columns = {name: [candidate.get(name) for candidate in candidates] for name in names}
    return (
        *blocks_from_columns(USER, user, 1),
        *blocks_from_columns(CANDIDATE, columns, len(candidates)),
    )


def decode_rows(rows: bytes) -> tuple[int, tuple[Block, ...]]:
    """Return the number of candidates and the blocks of ``ScoreRequest.rows``.

    Raises:
        InvalidRequest: They are not what the protocol says, or a value has no such form.
    """
    items = _msgpack.iterate(rows, shape=_SHAPE)
    try:
        next(items)
        user, *candidates = items
    except RemoteProtocolError as error:
        raise InvalidRequest(f"rows: {error}", "rows") from error
    return len(candidates), blocks_from_rows(user, candidates)


class _Column:
    """Reads one feature; ``read`` gives an array [n] or [n, width], or a block with splits."""

    def __init__(self, side: int, name: str, n: int) -> None:
        self._side = side
        self._name = name
        self._n = n

    def read(self, value: Any) -> Array | Block:  # noqa: ANN401 - as users have them
        if isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__"):
            value = np.asarray(value)
            if value.dtype.kind in "fiub" and value.ndim:
                return self._array(value)
            value = value.tolist()  # text, objects, and a number alone
        if self._side == USER:
            values: Sequence[Any] = (value,)
        elif type(value) in (list, tuple):
            values = value
        elif type(value) in _NUMBERS or type(value) is str:
            values = (value,) * self._n
        elif isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
            values = list(value)
        else:
            self._fail(f"want a sequence of {self._n} values, got {_describe(value)}")
        self._check_length(len(values))
        return self._values(values)

    def _array(self, value: Array) -> Array | Block:
        if self._side == USER:
            if value.ndim != 1:
                self._fail(f"want one value or a list of them, got an array {value.shape}")
            splits = np.array([0, len(value)], np.int32)
            return self._block(value, row_splits=splits)
        if value.ndim > 2:
            self._fail(f"want [n] or [n, width], got an array {value.shape}")
        self._check_length(len(value))
        return value

    def _values(self, values: Sequence[Any]) -> Array | Block:
        types = set(map(type, values))
        if types <= _NUMBERS:
            return self._numbers(values, types)
        if types <= _STRINGS:
            data, splits = self._strings(values)
            return self._block(data, char_splits=splits)
        if types <= _LISTS:
            return self._lists(values)
        plain = [_plain(value) for value in values]
        if {type(value) for value in plain} != types:
            return self._values(plain)
        self._fail_at_odd_one(values)

    def _lists(self, values: Sequence[Sequence[Any] | None]) -> Block:
        lists = [value or () for value in values]
        splits = _splits([len(value) for value in lists])
        flat = [_plain(item) for item in chain.from_iterable(lists)]
        types = set(map(type, flat))
        if types <= _NUMBERS:
            return self._block(self._numbers(flat, types), row_splits=splits)
        if types <= _STRINGS:
            data, char_splits = self._strings(flat)
            return self._block(data, row_splits=splits, char_splits=char_splits)
        for i, inner in enumerate(lists):
            inner_types = {type(_plain(item)) for item in inner}
            if not (inner_types <= _NUMBERS or inner_types <= _STRINGS):
                self._fail(f"want a list of numbers or of strings, got {_describe(inner)}", i)
        self._fail("want lists of numbers or lists of strings, got both")

    def _numbers(self, values: Sequence[Any], types: set[type]) -> Array:
        if types == {bool}:
            return np.array(values, np.bool_)
        if types and types <= {bool, int}:
            try:
                return np.array(values, np.int64)
            except OverflowError:
                pass
            try:
                return np.array(values, np.uint64)
            except OverflowError:
                self._fail("an integer does not fit 64 bits, or 64-bit ones of both signs meet")
        try:
            numbers = np.array(values, np.float64)
        except OverflowError:
            self._fail("an integer does not fit 64 bits")
        if int in types and np.nanmax(np.abs(numbers)) >= _EXACT:
            big = (v for v in values if type(v) is int and abs(v) > _EXACT)
            if (value := next(big, None)) is not None:
                self._fail(f"{value} is beyond 2**53, in a column with missing values or fractions")
        return numbers

    def _strings(self, values: Sequence[str | None]) -> tuple[Array, Array]:
        texts = [value or "" for value in values]
        try:
            data = "".join(texts).encode()
        except UnicodeEncodeError:
            self._fail("text that is not Unicode")
        lengths = list(map(len, texts))
        if len(data) != sum(lengths):
            lengths = [len(text.encode()) for text in texts]
        if len(data) > _MOST:
            self._fail(f"{len(data)} bytes of text")
        return np.frombuffer(data, np.uint8), _splits(lengths)

    def _block(
        self, values: Array, row_splits: Array | None = None, char_splits: Array | None = None
    ) -> Block:
        return Block(
            side=self._side,
            names=(self._name,),
            values=values,
            row_splits=row_splits,
            char_splits=char_splits,
        )

    def _check_length(self, length: int) -> None:
        if length != self._n:
            self._fail(f"{length} values for {self._n} candidates")

    def _fail_at_odd_one(self, values: Sequence[Any]) -> NoReturn:
        families = [_NUMBERS, _STRINGS, _LISTS]
        for i, value in enumerate(values):
            fitting = [family for family in families if type(_plain(value)) in family]
            if not fitting:
                allowed = "a number, a string, or a list of one of them"
                if len(families) == 1:
                    allowed = f"{_FAMILY_NAMES[families[0]]}, as before it"
                self._fail(f"want {allowed}, got {_describe(value)}", i)
            families = fitting
        raise AssertionError("values of one family were refused")

    def _fail(self, what: str, i: int | None = None) -> NoReturn:
        where = f"{SIDES[self._side]} feature {self._name!r:.80}"
        if i is not None and self._side == CANDIDATE:
            where = f"candidate {i}, feature {self._name!r:.80}"
        raise InvalidRequest(f"{where}: {what}", self._name)


_FAMILY_NAMES: Final = {_NUMBERS: "a number", _STRINGS: "a string", _LISTS: "a list"}


def _plain(value: Any) -> Any:  # noqa: ANN401 - as users have them
    """Return numpy's scalars and arrays, and subclasses, as Python's own; others as they are."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    for kind in _KINDS:
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    return value


def _splits(lengths: list[int]) -> Array:
    splits = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=splits[1:])
    if splits[-1] > _MOST:
        raise InvalidRequest(f"{splits[-1]} values in one feature; at most {_MOST}")
    return splits.astype(np.int32)


def _describe(value: object) -> str:
    return f"{type(value).__name__} {value!r:.40}"
