"""A side of a bundle's manifest, and the tables on the card, with shorter sequences."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import attrs

from kernels.bundle.manifest import Lookup, Manifest, SideLayout, SideName
from kernels.device_tables import DeviceTables, GatheredSide
from kernels.lengths.columns import Shortened
from kernels.lengths.find import InputFacts


def shorten_side(side: SideLayout, name: SideName, sequences: Shortened, length: int) -> SideLayout:
    """Return a side whose block has the columns of a length alone.

    Ids, weights and their order stay: lookups read fewer of them.

    Raises:
        ValueError: A step is less than a looked-up row, or some of a pooled one.
    """
    kept = sequences.kept(name, side.width, length)
    lookups: list[Lookup] = []
    at = 0
    for lookup in side.lookups:
        for part in _parts(lookup, kept):
            lookups.append(attrs.evolve(part, offset=at))
            at += part.width
    first = side.width - len(side.values)
    values = tuple(
        value
        for column, value in enumerate(side.values, first)
        if any(start <= column < stop for start, stop in kept)
    )
    return attrs.evolve(side, lookups=tuple(lookups), values=values, width=at + len(values))


def _parts(lookup: Lookup, kept: list[tuple[int, int]]) -> Iterator[Lookup]:
    """Yield what is left of a lookup: itself, or those of its rows that are kept."""
    begin, end = lookup.offset, lookup.offset + lookup.width
    for start, stop in kept:
        low, high = max(start, begin), min(stop, end)
        if (low, high) == (begin, end):
            yield lookup
        elif low < high:
            dim = lookup.width // lookup.n_ids
            if lookup.pooling != "none" or (low - begin) % dim or (high - begin) % dim:
                raise ValueError(f"steps of {lookup.tensor} are no rows of {lookup.table}")
            first, n_ids = (low - begin) // dim, (high - low) // dim
            yield attrs.evolve(
                lookup,
                first_id=lookup.first_id + first,
                n_ids=n_ids,
                first_weight=None if lookup.first_weight is None else lookup.first_weight + first,
                width=high - low,
            )


def input_facts(manifest: Manifest, spec_text: str) -> InputFacts:
    """Return what a bundle tells of its dense graph's inputs, for ``find_sequences``.

    Args:
        manifest: The bundle's.
        spec_text: Of its feature spec; no more of that is read, vocabularies least of all.
    """
    features = tomllib.loads(spec_text).get("features", {})
    left = {name for name, section in features.items() if section.get("pad_side") == "left"}
    padded_left: set[tuple[str, int]] = set()
    first_values: dict[str, int] = {}
    names: tuple[SideName, ...] = ("user", "candidate")
    for name in names:
        side = manifest.side(name)
        first_values[name] = side.width - len(side.values)
        for lookup in side.lookups:
            source = side.ids[lookup.first_id]
            if lookup.pooling == "none" and not source.program and source.feature in left:
                padded_left.add((name, lookup.offset))
    return InputFacts(first_values=first_values, padded_left=frozenset(padded_left))


def shorten_tables(
    tables: DeviceTables, manifest: Manifest, sequences: Shortened, length: int
) -> DeviceTables:
    """Return the tables on the card with what is gathered of them at a length.

    Raises:
        ValueError: See ``shorten_side``.
    """
    hot = [table.name for table in tables.hot]
    whole = {table.name for table in tables.tables}.difference(hot)
    user = shorten_side(manifest.user, "user", sequences, length)
    candidate = shorten_side(manifest.candidate, "candidate", sequences, length)
    return attrs.evolve(
        tables,
        user=GatheredSide.of(user, whole, hot),
        candidate=GatheredSide.of(candidate, whole, hot),
    )
