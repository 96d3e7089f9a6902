"""``features.toml``: how each raw feature becomes ids or numbers.

::

    version = 1

    [features.user_id]
    side = "user"               # or "candidate"
    kind = "categorical"        # categorical, numeric, multi, sequence, cross, length, mask
    encode = "vocabulary"       # vocabulary (a file), hash (buckets), identity (size) or key
    vocabulary = "user_id.txt"  # beside features.toml; one value a line, line n is id first_id + n
    first_id = 1                # default 0
    missing = 0                 # an id, or "error" (default): NaN, "" or a column that is absent
    unseen = 0                  # an id, or "error" (default): not in the vocabulary or range
    width = 1                   # so many ids side by side (default 1)
    input = "X"                 # the graph input that it feeds (default: its own name)
    column = 3                  # and its first column there (default 0)

    [features.ad_id]
    side = "candidate"
    kind = "categorical"
    encode = "key"              # for tables of keys: an integer of 64 bits as it is, or the hash of
    missing = 0                 # a text (see hashing.py); so 17 and "17" are two keys

    [features.price]
    side = "candidate"
    kind = "numeric"
    transform = "standardise"   # raw (default), log, log_squared, standardise, bucketise
    mean = 12.5
    std = 3.0
    missing = 0.0               # a number, put in before the transform, or "error" (default)

    [features.age]
    side = "user"
    kind = "numeric"
    transform = "bucketise"     # the id is first_id + the number of boundaries <= x
    boundaries = [18, 25, 35]

    [features.genres]           # a list of ids, padded
    side = "candidate"
    kind = "multi"
    encode = "hash"
    buckets = 100               # ids first_id to first_id + 99
    first_id = 1
    max_length = 6
    pad = 0                     # default 0; of keys, one that no entry has
    keep = "first"              # of a longer list: first, last, error (default: error)
    missing = "skip"            # lists only: drop the entry
    table = "genres.npy"        # any id feature: its own table, whose rows the graph input takes;
                                # or a folder that kernels.store made
    pooling = "mean"            # none (default), sum, mean, max; over the entries, not the padding

    [features.history]          # a list in order
    side = "user"
    kind = "sequence"           # as multi, but keep is last by default
    encode = "identity"
    size = 1000                 # values 0 to 999
    max_length = 30
    pad_side = "left"           # default right

    [features.history_length]   # int64 [1]: entries of the list after keep
    kind = "length"
    of = "history"

    [features.history_mask]     # float32 [max_length]: 1 where there is an entry, else 0
    kind = "mask"
    of = "history"

    [features.age_x_user]       # the hash of its members' values; see hashing.py
    kind = "cross"
    of = ["age", "user_id"]     # categorical or bucketised, of width 1
    buckets = 1000
    missing = 0                 # an id if any member is missing; by default "" takes part

A list with ``table`` and a ``pooling`` of sum, mean or max brings a derived feature
``NAME.weight``: the weights (see ``manifest.Lookup``) that make the pooling skip the padding. An
empty list pools to zeros; under max, to the row of ``pad``.

All problems of a file are reported at once, each with its line.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from kernels.errors import SpecError
from kernels.features.derived import read_derived, weight_of
from kernels.features.feature import Encoder, Feature, FeatureSpec, Numeric, Padding
from kernels.features.section import Lines, Problems, Section
from kernels.features.sent import SpecFolder, read_sent

__all__ = [
    "Encoder",
    "Feature",
    "FeatureSpec",
    "Numeric",
    "Padding",
    "load_spec",
    "parse_spec",
]

_DERIVED: Final = ("cross", "length", "mask")
_KINDS: Final = ("categorical", "numeric", "multi", "sequence", *_DERIVED)


def load_spec(path: Path, *, tables: bool = True) -> FeatureSpec:
    """Read a feature spec and the vocabulary files that it names.

    Args:
        path: Of ``features.toml``.
        tables: Whether the features' own tables are beside it, to be checked. They are not in a
            bundle, whose manifest lists its tables.

    Raises:
        SpecError: The file cannot be read, or is wrong; names each line and feature.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8: {error}") from error
    return parse_spec(text, path.parent, path.name, tables=tables)


def parse_spec(
    text: str, folder: Path, name: str = "features.toml", *, tables: bool = True
) -> FeatureSpec:
    """Like ``load_spec``, for the text of a file named ``name`` in ``folder``.

    Raises:
        SpecError: It is wrong; names each line and feature.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{name}: {error}") from error
    problems, lines = Problems(name), Lines(text)
    sections = _sections(content, lines, problems)
    spec_folder = SpecFolder(folder, tables=tables)
    features = _read_features(sections, spec_folder)
    _refuse_overlaps(features, problems)
    problems.raise_any()
    return FeatureSpec(
        name=name,
        folder=folder,
        features=tuple(features),
        vocabularies=spec_folder.vocabularies,
    )


def _sections(content: Mapping[str, Any], lines: Lines, problems: Problems) -> list[Section]:
    for key in content.keys() - {"version", "features"}:
        problems.add(lines.of(key), f"unknown key {key!r}: want version and features")
    if content.get("version") != 1:
        problems.add(lines.of("version"), f"version: want 1, got {content.get('version')!r}")
    tables = content.get("features")
    if not isinstance(tables, dict) or not tables:
        problems.add(lines.of("features"), "want at least one [features.NAME] table")
        tables = {}
    sections = []
    for feature, values in tables.items():
        if not isinstance(values, dict):
            problems.add(lines.of("features", feature), f"features.{feature}: want a table")
        elif not feature or not feature.isprintable():
            problems.add(lines.of("features", feature), f"{feature!r} is no name for a feature")
        else:
            sections.append(Section(feature, values, lines, problems))
    return sections


def _read_features(sections: list[Section], folder: SpecFolder) -> list[Feature]:
    """Read them in the file's order, the derived ones after those that they may name."""
    kinds = {section.name: section.choice("kind", ("", *_KINDS)) for section in sections}
    sections = [section for section in sections if kinds[section.name]]  # others: noted, and enough
    read: dict[str, Feature] = {}
    for wanted, reader in _readers(folder, read):
        for section in sections:
            if (kinds[section.name] in _DERIVED) is wanted:
                read[section.name] = reader(section, kinds[section.name])
                section.refuse_others()
    features = []
    for section in sections:
        feature = read[section.name]
        features.append(feature)
        if feature.padding is not None and feature.pooling != "none":
            weight = weight_of(feature)
            if weight.name in read:
                section.problem(f"its weights would be {weight.name!r}, which is there already")
            features.append(weight)
    return features


def _readers(
    folder: SpecFolder, read: Mapping[str, Feature]
) -> list[tuple[bool, Callable[[Section, str], Feature]]]:
    def sent(section: Section, kind: str) -> Feature:
        return read_sent(section, kind, folder)

    def derived(section: Section, kind: str) -> Feature:
        return read_derived(section, kind, folder, read)

    return [(False, sent), (True, derived)]


def _refuse_overlaps(features: list[Feature], problems: Problems) -> None:
    """Two features may feed one graph input only in columns of their own."""
    by_input: dict[str, list[Feature]] = {}
    for feature in features:
        if feature.kind != "weight" and feature.graph_width is not None:
            by_input.setdefault(feature.input, []).append(feature)
    for name, sharing in by_input.items():
        sharing.sort(key=lambda feature: (feature.column, feature.line))
        for left, right in itertools.pairwise(sharing):
            end = left.column + (left.graph_width or 0)
            if right.column < end:
                problems.add(
                    max(left.line, right.line),
                    f"[features.{right.name}] column: {right.column} of input {name!r} belongs to "
                    f"{left.name!r} already ({left.column} to {end - 1})",
                )
