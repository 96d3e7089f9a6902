"""The steps that turn gathered blocks into a side's columns: what a layout is compiled to.

Each step serves all columns that can be treated alike, and writes its own places of the side's two
matrices, ids and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.features.encode import Ids, Keys, Report, hash_numbers, number_text
from kernels.features.faults import Faults, Mask
from kernels.features.feature import Feature
from kernels.features.gather import Gathered
from kernels.features.hashing import I64, U64, combine_hashes, hash_integers
from kernels.features.lists import F32, pad, rows_of
from kernels.features.numbers import Numbers

Index: TypeAlias = slice | NDArray[np.intp]


def index_of(positions: Sequence[int]) -> Index:
    """Return what selects these positions; a slice, which copies nothing, if they are a run."""
    if positions and list(positions) == list(range(positions[0], positions[-1] + 1)):
        return slice(positions[0], positions[-1] + 1)
    return np.array(positions, np.intp)


@attrs.define(eq=False)
class SideColumns:
    """One side of a batch while its steps run.

    Attributes:
        ids: int64 ``[n_ids, n]``.
        numbers: float32 ``[n_numbers, n]``.
        hashes: uint64 ``[n]`` of each feature that a cross reads.
    """

    n: int
    ids: I64
    numbers: F32
    hashes: dict[str, U64] = attrs.field(factory=dict)

    @classmethod
    def empty(cls, n: int, n_ids: int, n_numbers: int) -> SideColumns:
        """Return matrices to be written."""
        return cls(n, np.empty((n_ids, n), np.int64), np.empty((n_numbers, n), np.float32))

    @classmethod
    def join(cls, parts: Sequence[SideColumns]) -> SideColumns:
        """Return finished columns end to end."""
        return cls(
            sum(part.n for part in parts),
            np.concatenate([part.ids for part in parts], axis=1),
            np.concatenate([part.numbers for part in parts], axis=1),
        )

    def take(self, rows: I64) -> SideColumns:
        """Return some rows of finished columns."""
        # np.take gives C order, which a[:, rows] does not.
        return SideColumns(len(rows), self.ids.take(rows, axis=1), self.numbers.take(rows, axis=1))

    def put_ids(self, at: Index, ids: I64) -> None:
        """Write some rows; all of them without a copy."""
        if isinstance(at, slice) and ids.shape == self.ids.shape:
            self.ids = ids
        else:
            self.ids[at] = ids

    def put_numbers(self, at: Index, numbers: F32) -> None:
        """Write some rows; all of them without a copy."""
        if isinstance(at, slice) and numbers.shape == self.numbers.shape:
            self.numbers = numbers
        else:
            self.numbers[at] = numbers


class Step(Protocol):
    """Writes some columns of one side."""

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Read ``blocks``, write ``out``, tell ``faults`` of wrong values."""


@attrs.frozen(kw_only=True, eq=False)
class FixedStep:
    """Columns of one block of numbers: identities, or numbers of one transform.

    Attributes:
        block: Which of the layout's blocks.
        source: Rows of its matrix.
        places: Rows of the output.
        fields: Feature of each row.
    """

    side: int
    block: int
    source: Index
    places: Index
    fields: Sequence[str]
    encoder: Ids | Keys | Numbers
    buckets: bool = False

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Encode the rows of one block; see ``Step``."""
        matrix = blocks[self.block].matrix
        assert matrix is not None
        raw = matrix[self.source]
        report = _reporter(faults, self.side, self.fields)
        if not isinstance(self.encoder, Numbers):
            out.put_ids(self.places, self.encoder.identity(raw, report)[0])
        elif self.buckets:
            out.put_ids(self.places, self.encoder.buckets(raw, report))
        else:
            out.put_numbers(self.places, self.encoder.floats(raw, report))


@attrs.frozen(kw_only=True, eq=False)
class HashSource:
    """Where hashes of some columns come from.

    Attributes:
        source: Rows of a block of numbers; None for a block of texts.
        width: Columns.
    """

    block: int
    source: Index | None
    width: int
    fields: Sequence[str]


@attrs.frozen(kw_only=True, eq=False)
class TextStep:
    """All columns of one side that are found by hash: vocabularies and buckets, in one search.

    Or all whose keys are the hashes themselves.
    """

    side: int
    sources: Sequence[HashSource]
    places: Index
    encoder: Ids | Keys
    members: Sequence[tuple[str, int]] = ()

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Hash all columns, then find all ids; see ``Step``."""
        fields = [field for source in self.sources for field in source.fields]
        hashes = np.empty((len(fields), out.n), np.uint64)
        at = 0
        for source in self.sources:
            hashes[at : at + source.width] = _hashes(source, blocks, out.n, self.side, faults)
            at += source.width
        owners = [(s, c) for s in self.sources for c in range(s.width)]

        def show(column: int, row: int) -> str:
            source, c = owners[column]
            block = blocks[source.block]
            if source.source is None:
                return block.show(row * source.width + c)
            assert block.matrix is not None
            return number_text(block.matrix[source.source][c, row])

        report = _reporter(faults, self.side, fields)
        out.put_ids(self.places, self.encoder.texts(hashes, report, show)[0])
        for name, column in self.members:
            out.hashes[name] = hashes[column]


def _hashes(
    source: HashSource, blocks: Sequence[Gathered], n: int, side: int, faults: Faults
) -> U64:
    block = blocks[source.block]
    if source.source is None:
        assert block.hashes is not None
        return block.hashes.reshape(n, source.width).T
    assert block.matrix is not None
    return hash_numbers(block.matrix[source.source], _reporter(faults, side, source.fields))


@attrs.frozen(kw_only=True, eq=False)
class ListStep:
    """One list feature, with the length, mask and weights that are derived from it.

    Attributes:
        block: The layout's block, or None where the feature was not sent: all lists are empty.
        source: Rows of its matrix, where it has fixed numbers.
    """

    side: int
    feature: Feature
    block: int | None
    source: Index | None
    encoder: Ids | Keys
    places: Index
    derived: Sequence[tuple[Feature, Index]]

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Encode the entries, then pad; see ``Step``."""
        feature = self.feature
        rows, ids, drop = self._entries(blocks, out.n, faults)
        padded = pad(feature, ids, rows, out.n, drop)
        assert feature.padding is not None
        if feature.padding.keep == "error" and padded.too_long.any():
            problem = f"has more than {feature.width} entries"
            report = _reporter(faults, self.side, (feature.name,))
            report(padded.too_long[None], lambda c, n: problem)
        out.put_ids(self.places, padded.ids)
        for each, places in self.derived:
            if each.kind == "length":
                out.put_ids(places, padded.lengths[None])
            elif each.kind == "mask":
                out.put_numbers(places, padded.mask())
            else:
                out.put_numbers(places, padded.weights(feature.pooling))

    def _entries(
        self, blocks: Sequence[Gathered], n: int, faults: Faults
    ) -> tuple[I64, I64, Mask | None]:
        """Return the row and id of each entry, and which to drop."""
        if self.block is None:
            none = np.empty(0, np.int64)
            return none, none, None
        block = blocks[self.block]
        raw = block.entries
        if self.source is not None:
            assert block.matrix is not None
            matrix = block.matrix[self.source]
            raw = matrix.T.reshape(-1)
            rows = np.repeat(np.arange(n), len(matrix))
        elif block.lengths is not None:
            rows = rows_of(block.lengths)
        else:
            rows = np.arange(n)
        report = _reporter(faults, self.side, (self.feature.name,), rows)
        encode = self.feature.encoder
        assert encode is not None
        if raw is not None and encode.encode in ("identity", "key"):
            ids, drop = self.encoder.identity(raw[None], report)
        else:
            if raw is not None:
                hashes = hash_numbers(raw[None], report)
            else:
                assert block.hashes is not None
                hashes = block.hashes[None]

            def show(c: int, k: int) -> str:
                return block.show(k) if raw is None else number_text(raw[k])

            ids, drop = self.encoder.texts(hashes, report, show)
        return rows, ids[0], None if drop is None else drop[0]


@attrs.frozen(kw_only=True, eq=False)
class MemberStep:
    """Hashes of columns of numbers that a cross reads; their own step reports what is wrong."""

    block: int
    source: Index
    name: str

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Hash the raw numbers; see ``Step``."""
        matrix = blocks[self.block].matrix
        assert matrix is not None
        out.hashes[self.name] = hash_numbers(matrix[self.source], _unheard)[0]


@attrs.frozen(kw_only=True, eq=False)
class BucketMemberStep:
    """Hashes of a bucketised member's ids, read where their own step wrote them."""

    place: int
    name: str

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Hash the ids; see ``Step``."""
        out.hashes[self.name] = hash_integers(out.ids[self.place])


@attrs.frozen(kw_only=True, eq=False)
class FillStep:
    """Columns of features that were not sent and have defaults."""

    ids: NDArray[np.int64]
    id_places: Index
    numbers: NDArray[np.float32]
    number_places: Index
    members: Sequence[str]

    def run(self, blocks: Sequence[Gathered], out: SideColumns, faults: Faults) -> None:
        """Write the defaults; see ``Step``."""
        out.ids[self.id_places] = self.ids[:, None]
        out.numbers[self.number_places] = self.numbers[:, None]
        for name in self.members:
            out.hashes[name] = np.zeros(out.n, np.uint64)


@attrs.frozen(kw_only=True, eq=False)
class CrossStep:
    """One cross. Runs after all other steps of both sides."""

    feature: Feature
    place: Index

    def run(self, hashes: Sequence[U64], out: SideColumns) -> None:
        """Write its column from its members' hashes, uint64 ``[n]`` each, over ``out``'s rows."""
        feature = self.feature
        ids = (combine_hashes(hashes) % np.uint64(feature.buckets)).astype(np.int64)
        ids += feature.first_id
        if feature.missing is not None:
            for each in hashes:
                ids[each == 0] = feature.missing
        out.put_ids(self.place, ids[None])


def _reporter(faults: Faults, side: int, fields: Sequence[str], rows: I64 | None = None) -> Report:
    def report(wrong: Mask, problem: Any) -> None:  # noqa: ANN401 - Report's second argument
        faults.add_mask(side, wrong, fields, problem, rows)

    return report


def _unheard(wrong: Mask, problem: Any) -> None:  # noqa: ANN401 - Report's second argument
    """Report nothing: another step looks at the same values."""
