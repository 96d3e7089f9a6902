"""Manifests and blocks for tests of the feature parser."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from kernels.bundle.manifest import (
    Lookup,
    Manifest,
    Pooling,
    SideLayout,
    SideName,
    Source,
    Table,
)
from kernels.features.blocks import ParsedBatch, RawRequest
from kernels.features.faults import CANDIDATE, USER
from kernels.features.feature import FeatureSpec
from kernels.features.parser import Parser
from kernels.features.spec import parse_spec


@attrs.frozen(kw_only=True, eq=False)
class Block:
    """A ``RawBlock`` that checks nothing of itself."""

    side: int
    names: tuple[str, ...]
    values: NDArray[Any]
    row_splits: NDArray[np.int32] | None = None
    char_splits: NDArray[np.int32] | None = None


def spec_of(text: str, folder: Path = Path("/nowhere")) -> FeatureSpec:
    return parse_spec("version = 1\n" + text, folder)


def side_layout(
    side: SideName,
    *,
    ids: Sequence[Source] = (),
    weights: Sequence[Source] = (),
    values: Sequence[Source] = (),
    tables: Sequence[str] = (),
    program: str | None = None,
) -> SideLayout:
    """Return a layout in which each row of ids is looked up in its own one-column table."""
    pooling: Pooling = "none"
    lookups = tuple(
        Lookup(
            side=side,
            table=table,
            tensor=table,
            pooling=pooling,
            first_id=k,
            n_ids=1,
            first_weight=None,
            offset=k,
            width=1,
        )
        for k, table in enumerate(tables)
    )
    return SideLayout(
        ids=tuple(ids),
        weights=tuple(weights),
        values=tuple(values),
        lookups=lookups,
        width=len(lookups) + len(values),
        program=program,
    )


def manifest_of(
    user: SideLayout, candidate: SideLayout, rows: dict[str, int], keyed: Collection[str] = ()
) -> Manifest:
    return Manifest(
        format=1,
        model="test",
        version="",
        tables=tuple(
            Table(name=name, rows=n, dim=1, dtype="fp32", file=name, keyed=name in keyed)
            for name, n in rows.items()
        ),
        user=user,
        candidate=candidate,
        outputs=(),
        kept=(),
    )


def whole_manifest(spec: FeatureSpec, order: Sequence[str] | None = None) -> Manifest:
    """Return a manifest that reads every feature: lengths as ids too, masks as weights."""
    rows: dict[str, int] = {}
    keyed = {feature.name for feature in spec.features if feature.keyed}
    layouts = {}
    sides: tuple[SideName, SideName] = ("user", "candidate")
    for side in sides:
        ids, weights, values, tables = [], [], [], []
        for name in order or [feature.name for feature in spec.features]:
            feature = spec.by_name[name]
            if feature.side != side:
                continue
            sources = [Source(feature=name, column=column) for column in range(feature.width)]
            if feature.ids is not None:
                ids += sources
                tables += [name] * feature.width
                rows[name] = 1 if name in keyed else feature.ids[1] + 1
            elif feature.kind in ("mask", "weight"):
                weights += sources
            else:
                values += sources
        layouts[side] = side_layout(side, ids=ids, weights=weights, values=values, tables=tables)
    return manifest_of(layouts["user"], layouts["candidate"], rows, keyed)


def parser_of(text: str, folder: Path = Path("/nowhere"), max_candidates: int = 100) -> Parser:
    spec = spec_of(text, folder)
    return Parser(spec, whole_manifest(spec), {}, max_candidates=max_candidates)


def user(names: str | Sequence[str], values: ArrayLike, dtype: DTypeLike = np.float64) -> Block:
    """One row of numbers: a value for each name."""
    names = (names,) if isinstance(names, str) else tuple(names)
    return Block(side=USER, names=names, values=np.array(values, dtype).reshape(len(names), 1))


def candidates(
    names: str | Sequence[str], values: ArrayLike, dtype: DTypeLike = np.float64
) -> Block:
    """Rows of numbers: for each name, a value for each candidate."""
    names = (names,) if isinstance(names, str) else tuple(names)
    array = np.array(values, dtype)
    return Block(side=CANDIDATE, names=names, values=array.reshape(len(names), -1))


def texts(side: int, name: str, values: Sequence[Any]) -> Block:
    """Rows of one text each, or of lists of texts."""
    listed = any(isinstance(value, list) for value in values)
    rows = [value if isinstance(value, list) else [value] for value in values]
    flat = [t if isinstance(t, bytes) else t.encode() for row in rows for t in row]
    return Block(
        side=side,
        names=(name,),
        values=np.frombuffer(b"".join(flat), np.uint8),
        char_splits=splits([len(t) for t in flat]),
        row_splits=splits([len(row) for row in rows]) if listed else None,
    )


def ragged(
    side: int, name: str, rows: Sequence[Sequence[Any]], dtype: DTypeLike = np.float64
) -> Block:
    """Rows of lists of numbers."""
    flat = np.array([value for row in rows for value in row], dtype)
    return Block(
        side=side, names=(name,), values=flat, row_splits=splits([len(row) for row in rows])
    )


def splits(lengths: Sequence[int]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)


def parse_one(parser: Parser, n_candidates: int, *blocks: Block) -> ParsedBatch:
    return parser.parse([RawRequest(n_candidates, blocks)])


def problem(parser: Parser, n_candidates: int, *blocks: Block) -> tuple[str, str]:
    """Return the field and problem of a request that must fail."""
    parsed = parse_one(parser, n_candidates, *blocks)
    assert list(parsed.failed) == [0], parsed
    assert len(parsed.parsed) == 0
    error = parsed.failed[0]
    return error.field, error.problem
