"""The kinds of feature that clients send: categorical, numeric, multi and sequence."""

from __future__ import annotations

import itertools
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import numpy as np

from kernels.bundle.manifest import Pooling, SideName
from kernels.errors import SpecError, StoreError
from kernels.features.feature import (
    KEYS,
    Encoder,
    Encoding,
    Feature,
    Kind,
    Numeric,
    Padding,
    Substitute,
    Transform,
)
from kernels.features.hashing import U64
from kernels.features.section import Section
from kernels.features.vocabulary import read_vocabulary
from kernels.npy import map_npy
from kernels.store.header import is_table, read_header

MAX_WIDTH: Final = 100_000  # columns of one feature: keeps a slip from allocating gigabytes


class SpecFolder:
    """The files beside a spec. Reads a vocabulary once, however many features share it."""

    def __init__(self, folder: Path, *, tables: bool) -> None:
        self.folder = folder
        self.tables = tables
        self.vocabularies: dict[str, U64] = {}

    def vocabulary(self, section: Section, key: str) -> tuple[str, int]:
        """Return the name of the file that ``key`` gives, and its number of lines."""
        name = self._name(section, key)
        if name and name not in self.vocabularies:
            try:
                self.vocabularies[name] = read_vocabulary(self.folder / name)
            except SpecError as error:
                section.problem(str(error), key)
                return name, 1
        return name, len(self.vocabularies[name]) if name else 1

    def table(self, section: Section, n_ids: int, *, keyed: bool) -> tuple[str | None, int | None]:
        """Return the name of the section's table and its dim, each None if there is none.

        Args:
            section: Names the table: a ``.npy`` file, or a folder of the table store.
            n_ids: One more than the highest id.
            keyed: Whether ids are keys.
        """
        if not section.has("table"):
            return None, None
        name = self._name(section, "table")
        if not name or not self.tables:
            return name, None
        if is_table(self.folder / name):
            return name, self._stored(section, name, n_ids, keyed=keyed)
        if keyed:
            section.problem(f"{name}: keys want a folder of a table of keys", "table")
            return name, None
        try:
            table = map_npy(self.folder / name)
        except (OSError, ValueError) as error:
            section.problem(f"cannot read {name}: {error}", "table")
            return name, None
        if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f":
            section.problem(f"{name}: want a float array [rows, dim]", "table")
            return name, None
        if len(table) < n_ids:
            section.problem(f"{name} has {len(table)} rows, ids go up to {n_ids - 1}", "table")
        return name, int(table.shape[1])

    def _stored(self, section: Section, name: str, n_ids: int, *, keyed: bool) -> int | None:
        try:
            header = read_header(self.folder / name)
        except StoreError as error:
            section.problem(str(error), "table")
            return None
        if header.keyed != keyed:
            what = ("keys", "row numbers") if header.keyed else ("row numbers", "keys")
            section.problem(f"{name} is found by {what[0]}, the feature gives {what[1]}", "table")
        elif not keyed and header.rows < n_ids:
            section.problem(f"{name} has {header.rows} rows, ids go up to {n_ids - 1}", "table")
        return header.dim

    def _name(self, section: Section, key: str) -> str:
        name = section.text(key)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            section.problem(f"want a file in the spec's folder, got {name!r}", key)
            return ""
        return name


def read_sent(section: Section, kind: str, folder: SpecFolder) -> Feature:
    """Read a categorical, numeric, multi or sequence feature; notes problems in ``section``."""
    side = cast("SideName", section.choice("side", ("user", "candidate")))
    if kind == "numeric":
        numeric = _numeric(section)
        ids = None
        if numeric.transform == "bucketise":
            ids = (numeric.first_id, numeric.first_id + len(numeric.boundaries))
        width = section.integer("width", 1, low=1, high=MAX_WIDTH)
        return finish(
            section, folder, kind="numeric", side=side, width=width, ids=ids, numeric=numeric
        )
    encoder = _encoder(section, folder, lists=kind != "categorical")
    keyed = encoder.encode == "key"
    padding = None if kind == "categorical" else _padding(section, kind, keyed=keyed)
    width_key = "width" if padding is None else "max_length"
    default = 1 if padding is None else None
    width = section.integer(width_key, default, low=1, high=MAX_WIDTH)
    return finish(
        section,
        folder,
        kind=cast("Kind", kind),
        side=side,
        width=width,
        ids=_id_range(encoder, padding),
        encoder=encoder,
        padding=padding,
    )


def finish(
    section: Section,
    folder: SpecFolder,
    *,
    kind: Kind,
    ids: tuple[int, int] | None,
    **rest: Any,  # noqa: ANN401 - Feature's other fields, as they are
) -> Feature:
    """Make the feature after reading what all kinds share: input, column, table, pooling."""
    table, dim, pooling = None, None, "none"
    if ids is not None and kind != "length":
        keyed = rest.get("encoder") is not None and rest["encoder"].encode == "key"
        table, dim = folder.table(section, ids[1] + 1, keyed=keyed)
        if table is not None:
            pooling = section.choice("pooling", ("none", "sum", "mean", "max"), "none")
        elif section.has("pooling"):
            section.choice("pooling", ("none", "sum", "mean", "max"), "none")
            section.problem("wants a table: without one the graph takes ids", "pooling")
    return Feature(
        name=section.name,
        kind=kind,
        dtype="float32" if ids is None else "int64",
        input=section.text("input", section.name),
        column=section.integer("column", 0),
        line=section.line,
        ids=ids,
        table=table,
        dim=dim,
        pooling=cast("Pooling", pooling),
        **rest,
    )


def _encoder(section: Section, folder: SpecFolder, *, lists: bool) -> Encoder:
    encode = section.choice("encode", ("vocabulary", "hash", "identity", "key"))
    if encode == "key":
        missing = _substitute(section, "missing", lists=lists, keyed=True)
        return Encoder(encode="key", size=0, missing=missing)
    vocabulary, size = None, 1
    if encode == "vocabulary":
        vocabulary, size = folder.vocabulary(section, "vocabulary")
    else:
        size = section.integer("buckets" if encode == "hash" else "size", low=1)
    return Encoder(
        encode=cast("Encoding", encode),
        size=size,
        first_id=section.integer("first_id", 0),
        missing=_substitute(section, "missing", lists=lists),
        unseen="error" if encode == "hash" else _substitute(section, "unseen", lists=lists),
        vocabulary=vocabulary,
    )


def _substitute(section: Section, key: str, *, lists: bool, keyed: bool = False) -> Substitute:
    value = section.word(key, ("error", "skip") if lists else ("error",))
    if value is not None:
        return cast("Substitute", value)
    return _id(section, key, keyed=keyed) if section.has(key) else "error"


def _id(section: Section, key: str, default: int | None = None, *, keyed: bool) -> int:
    """Return an id; any int64 is a key."""
    if keyed:
        return section.integer(key, default, low=KEYS[0], high=KEYS[1])
    return section.integer(key, default)


def _id_range(encoder: Encoder, padding: Padding | None) -> tuple[int, int]:
    if encoder.encode == "key":
        return KEYS
    ids = [encoder.first_id, encoder.first_id + encoder.size - 1]
    ids += [value for value in (encoder.missing, encoder.unseen) if isinstance(value, int)]
    if padding is not None:
        ids.append(padding.pad)
    return min(ids), max(ids)


def _padding(section: Section, kind: str, *, keyed: bool) -> Padding:
    keep = section.choice(
        "keep", ("error", "first", "last"), "last" if kind == "sequence" else "error"
    )
    return Padding(
        pad=_id(section, "pad", 0, keyed=keyed),
        side=cast("Any", section.choice("pad_side", ("left", "right"), "right")),
        keep=cast("Any", keep),
    )


def _numeric(section: Section) -> Numeric:
    transforms = ("raw", "log", "log_squared", "standardise", "bucketise")
    transform = cast("Transform", section.choice("transform", transforms, "raw"))
    missing = None if section.word("missing", ("error",)) else section.number("missing")
    if transform == "standardise":
        mean, std = section.number("mean"), section.number("std")
        if mean is None or std is None or std <= 0:
            section.problem("standardise wants mean and a std over 0", "transform")
            return Numeric(transform=transform)
        return Numeric(transform=transform, missing=missing, mean=mean, std=std)
    if transform == "bucketise":
        boundaries = section.numbers("boundaries")
        if any(b <= a for a, b in itertools.pairwise(boundaries)):
            section.problem("want numbers that increase", "boundaries")
        return Numeric(
            transform=transform,
            missing=missing,
            boundaries=boundaries,
            first_id=section.integer("first_id", 0),
        )
    return Numeric(transform=transform, missing=missing)
