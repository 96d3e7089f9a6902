"""The feature parser again, as plainly as it can be said: one request, feature and value at a time.

Shares the spec's values with the product, and nothing of how it works.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.features.blocks import RawBlock, RawRequest
from kernels.features.feature import Encoder, Feature, FeatureSpec

MASK = 2**64 - 1
EXACT = {"e": 2**11, "f": 2**24, "d": 2**53}


def murmur64a(text: bytes) -> int:
    """MurmurHash64A with seed 0, written from its definition."""
    m = 0xC6A4A7935BD1E995
    h = len(text) * m & MASK
    whole = len(text) - len(text) % 8
    for at in range(0, whole, 8):
        k = int.from_bytes(text[at : at + 8], "little") * m & MASK
        k ^= k >> 47
        h = (h ^ (k * m & MASK)) * m & MASK
    if whole < len(text):
        h = (h ^ int.from_bytes(text[whole:], "little")) * m & MASK
    h ^= h >> 47
    h = h * m & MASK
    return h ^ h >> 47


class Wrong(Exception):
    """What the request's sender did wrong, and with which feature."""

    def __init__(self, *fields: str) -> None:
        super().__init__(*fields)
        self.fields = set(fields)


class Skip(Exception):
    """This entry of a list is left out."""


@attrs.frozen
class Number:
    """A number as it was sent."""

    value: Any
    kind: str

    @property
    def missing(self) -> bool:
        return self.kind in EXACT and math.isnan(self.value)

    def integer(self) -> int:
        """Return it as an integer, if the sender's is certain to have been that."""
        if self.kind not in EXACT:
            return int(self.value)
        if not math.isfinite(self.value) or self.value != math.floor(self.value):
            raise Wrong
        if abs(self.value) >= EXACT[self.kind]:
            raise Wrong
        return int(self.value)


Entry = Number | bytes


@attrs.frozen
class Expected:
    """Feature to rows of ``width`` values each; or what is wrong."""

    columns: dict[str, list[list[Any]]]
    wrong: set[str]


class Oracle:
    """Parses one request at a time.

    Args:
        spec: The feature spec.
        vocabularies: File to its lines.
        max_candidates: The parser's limit.
    """

    def __init__(
        self, spec: FeatureSpec, vocabularies: dict[str, list[bytes]], max_candidates: int
    ) -> None:
        self.spec = spec
        self.vocabularies = vocabularies
        self.max_candidates = max_candidates

    def parse(self, request: RawRequest) -> Expected:
        """Return every feature's rows, or the fields that may be blamed."""
        if not 0 <= request.n_candidates <= self.max_candidates:
            return Expected({}, {"n_candidates"})
        wrong: set[str] = set()
        entries: dict[str, list[list[Entry]]] = {}
        for block in request.blocks:
            n = 1 if block.side == 0 else request.n_candidates
            try:
                for name, sent in self._block(block, n).items():
                    if name in entries:
                        raise Wrong(name)
                    entries[name] = sent
            except Wrong as error:
                wrong |= error.fields
        columns: dict[str, list[list[Any]]] = {}
        lists: dict[str, list[int]] = {}
        for feature in self.spec.features:
            n = 1 if feature.side == "user" else request.n_candidates
            if feature.sent:
                try:
                    rows = self._rows(feature, entries.get(feature.name), n)
                    lists[feature.name] = [len(row) for row in rows]
                    columns[feature.name] = [self._lay(feature, row) for row in rows]
                except Wrong as error:
                    wrong |= error.fields | {feature.name}
        if not wrong:
            for feature in self.spec.features:
                if not feature.sent:
                    n = 1 if feature.side == "user" else request.n_candidates
                    columns[feature.name] = self._derived(feature, entries, columns, lists, n)
        return Expected(columns, wrong)

    def _block(self, block: RawBlock, n: int) -> dict[str, list[list[Entry]]]:
        """Return each name's rows of entries as sent."""
        names, values = block.names, block.values
        fields = {*names, "blocks"}
        if block.side not in (0, 1):
            raise Wrong(*fields)
        for name in names:
            feature = self.spec.by_name.get(name)
            if feature is None or not feature.sent:
                raise Wrong(*fields)
            if feature.side != ("user", "candidate")[block.side]:
                raise Wrong(*fields)
            width = values.shape[2] if values.ndim == 3 else 1
            listed = feature.kind in ("multi", "sequence")
            if block.row_splits is None and not listed and width != feature.width:
                raise Wrong(*fields)
            encoded = feature.encoder is not None and feature.encoder.encode != "identity"
            if block.char_splits is not None and not encoded:
                raise Wrong(*fields)
        kind = values.dtype.char
        if kind not in ("B" if block.char_splits is not None else "?bBhHiIlLqQefd"):
            raise Wrong(*fields)
        if block.row_splits is None and block.char_splits is None:
            shape = values.shape
            if len(shape) not in (2, 3) or shape[0] != len(names) or shape[1] != n:
                raise Wrong(*fields)
            return {
                name: [
                    [Number(value.item(), kind) for value in np.atleast_1d(values[k][row])]
                    for row in range(n)
                ]
                for k, name in enumerate(names)
            }
        if len(names) != 1 or values.ndim != 1:
            raise Wrong(*fields)
        entries: list[Entry] = [Number(value.item(), kind) for value in values]
        if block.char_splits is not None:
            entries = [
                self._text(names[0], part.tobytes())
                for part in _split(names[0], values, block.char_splits)
            ]
        if block.row_splits is None:
            if len(entries) != n:
                raise Wrong(names[0])
            return {names[0]: [[entry] for entry in entries]}
        rows = _split(names[0], entries, block.row_splits)
        if len(rows) != n:
            raise Wrong(names[0])
        return {names[0]: [list(row) for row in rows]}

    def _text(self, name: str, text: bytes) -> bytes:
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Wrong(name) from None
        if len(text) > 1024:
            raise Wrong(name)
        return text

    def _rows(
        self, feature: Feature, sent: list[list[Entry]] | None, n: int
    ) -> list[list[float | int]]:
        """Return the encoded entries of each row, lists not yet padded."""
        listed = feature.kind in ("multi", "sequence")
        if sent is None:
            if listed:
                assert feature.encoder is not None
                if feature.encoder.missing == "error" and n:
                    raise Wrong
                return [[]] * n
            sent = [[Number(math.nan, "d")] * feature.width] * n
        rows = []
        for row in sent:
            if not listed and len(row) != feature.width:
                raise Wrong
            encoded = []
            for entry in row:
                try:
                    encoded.append(self._value(feature, entry))
                except Skip:
                    continue
            if feature.padding is not None and len(encoded) > feature.width:
                if feature.padding.keep == "error":
                    raise Wrong
                last = feature.padding.keep == "last"
                encoded = encoded[-feature.width :] if last else encoded[: feature.width]
            rows.append(encoded)
        return rows

    def _value(self, feature: Feature, entry: Entry) -> float | int:
        if feature.numeric is not None:
            return self._number(feature, entry)
        encoder = feature.encoder
        assert encoder is not None
        if encoder.encode == "identity":
            if isinstance(entry, bytes):
                raise Wrong
            if entry.missing:
                return _substitute(encoder.missing)
            try:
                value = entry.integer()
            except Wrong:
                # Surely outside, however it was rounded
                whole = math.isfinite(entry.value) and entry.value == math.floor(entry.value)
                if whole and not 0 <= entry.value < encoder.size:
                    return _substitute(encoder.unseen)
                raise
            if not 0 <= value < encoder.size:
                return _substitute(encoder.unseen)
            return encoder.first_id + value
        if encoder.encode == "key" and isinstance(entry, Number) and not entry.missing:
            return (entry.integer() + 2**63) % 2**64 - 2**63
        text = _as_text(entry)
        if text == b"":
            return _substitute(encoder.missing)
        if encoder.encode == "key":
            return (murmur64a(text) + 2**63) % 2**64 - 2**63
        if encoder.encode == "hash":
            return encoder.first_id + murmur64a(text) % encoder.size
        return self._line(encoder, text)

    def _line(self, encoder: Encoder, text: bytes) -> int:
        lines = self.vocabularies[encoder.vocabulary or ""]
        if text not in lines:
            return _substitute(encoder.unseen)
        return encoder.first_id + lines.index(text)

    def _number(self, feature: Feature, entry: Entry) -> float | int:
        numeric = feature.numeric
        assert numeric is not None
        if isinstance(entry, bytes):
            raise Wrong
        x = float(entry.value)
        if math.isnan(x):
            if numeric.missing is None:
                raise Wrong
            x = numeric.missing
        if math.isinf(x):
            raise Wrong
        if numeric.transform == "bucketise":
            return numeric.first_id + sum(b <= x for b in numeric.boundaries)
        if numeric.transform == "log":
            x = math.log(1 + max(x, 0.0)) if x > 1e-3 else math.log1p(max(x, 0.0))
        elif numeric.transform == "log_squared":
            x = math.floor(math.log(x) ** 2) if x > 2 else x
        elif numeric.transform == "standardise":
            x = (x - numeric.mean) / numeric.std
        with np.errstate(over="ignore"):
            if not np.isfinite(np.float32(x)):
                raise Wrong
        return x

    def _lay(self, feature: Feature, row: list[Any]) -> list[Any]:
        if feature.padding is None:
            return row
        pads = [feature.padding.pad] * (feature.width - len(row))
        return pads + row if feature.padding.side == "left" else row + pads

    def _derived(
        self,
        feature: Feature,
        entries: dict[str, list[list[Entry]]],
        columns: dict[str, list[list[Any]]],
        lists: dict[str, list[int]],
        n: int,
    ) -> list[list[Any]]:
        if feature.kind == "cross":
            return [[self._cross(feature, entries, columns, row)] for row in range(n)]
        parent = self.spec.by_name[feature.of[0]]
        assert parent.padding is not None
        result: list[list[Any]] = []
        for length in lists[parent.name]:
            used: list[float] = [1.0] * length
            unused: list[float] = [0.0] * (parent.width - length)
            if feature.kind == "length":
                result.append([length])
                continue
            if feature.kind == "weight" and parent.pooling == "mean":
                used = [1 / max(length, 1)] * length
            if feature.kind == "weight" and parent.pooling == "max":
                used, unused = [0.0] * length, [-math.inf if length else 0.0] * len(unused)
            result.append(unused + used if parent.padding.side == "left" else used + unused)
        return result

    def _cross(
        self,
        feature: Feature,
        entries: dict[str, list[list[Entry]]],
        columns: dict[str, list[list[Any]]],
        row: int,
    ) -> int:
        together = b""
        for name in feature.of:
            member = self.spec.by_name[name]
            at = row if member.side == "candidate" else 0
            if member.numeric is not None:
                text = str(columns[name][at][0]).encode()
            elif name in entries:
                text = _as_text(entries[name][at][0])
            else:
                text = b""
            if text == b"" and feature.missing is not None:
                return feature.missing
            together += murmur64a(text).to_bytes(8, "little") if text else bytes(8)
        return feature.first_id + murmur64a(together) % feature.buckets


def _as_text(entry: Entry) -> bytes:
    if isinstance(entry, bytes):
        return entry
    if entry.missing:
        return b""
    return str(entry.integer()).encode()


def _split(
    name: str, values: Sequence[Any] | NDArray[Any], splits: NDArray[Any] | None
) -> list[Any]:
    assert splits is not None
    if splits.ndim != 1 or splits.dtype.kind not in "iu" or not len(splits):
        raise Wrong(name)
    offsets = splits.tolist()
    if offsets[0] != 0 or offsets[-1] != len(values) or offsets != sorted(offsets):
        raise Wrong(name)
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def _substitute(substitute: int | str) -> int:
    if substitute == "error":
        raise Wrong
    if substitute == "skip":
        raise Skip
    return int(substitute)
