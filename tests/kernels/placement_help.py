"""Manifests, and placements that fit them, for tests."""

from __future__ import annotations

import itertools

import attrs
import numpy as np
from hypothesis import strategies as st

from kernels.bundle.manifest import Manifest, Table
from kernels.placement import CachedTable, Piece, Placement
from tests.kernels.test_shards import make_lookup, make_manifest


def table_of(name: str, *, rows: int = 100, segments: int = 1, keyed: bool = False) -> Table:
    return Table(
        name=name, rows=rows, dim=4, dtype="fp32", file=name, keyed=keyed, segments=segments
    )


def manifest_of(*tables: Table) -> Manifest:
    """Return a manifest that looks each table up once a candidate."""
    lookups = []
    at = 0
    for number, table in enumerate(tables):
        lookups.append(make_lookup(table.name, number, 1, dim=table.dim, offset=at))
        at += table.dim
    return attrs.evolve(make_manifest(lookups, [], {}), tables=tables)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def placements(draw: st.DrawFn) -> tuple[Manifest, Placement]:
    """Draw a manifest and a placement that fits it."""
    names = draw(st.lists(NAMES, unique=True, max_size=5))
    tables = [
        table_of(name, segments=draw(st.integers(1, 9)), keyed=draw(st.booleans()))
        for name in names
    ]
    n_groups = draw(st.integers(1, 4))
    groups: list[list[Piece]] = [[] for _ in range(n_groups)]
    device, cached = [], []
    for table in tables:
        if not table.keyed and draw(st.booleans()):
            device.append(table.name)
            continue
        if draw(st.booleans()):
            stale_s = draw(st.floats(0, 1e6))
            cached.append(CachedTable(table.name, draw(st.integers(1000, 2**40)), stale_s))
        cuts = sorted(draw(st.sets(st.integers(1, table.segments), max_size=n_groups - 1)))
        edges = sorted({0, *cuts, table.segments})
        owners = draw(st.permutations(range(n_groups)))
        for owner, (first, last) in zip(owners, itertools.pairwise(edges), strict=False):
            groups[owner].append(Piece(table.name, first, last))
    placement = Placement(
        groups=tuple(map(tuple, groups)), device=tuple(device), cached=tuple(cached)
    )
    return manifest_of(*tables), placement


def owners_of(placement: Placement, table: str, n_segments: int) -> list[list[int]]:
    """Return the groups that hold each segment, slowly."""
    found: list[list[int]] = [[] for _ in range(n_segments)]
    for number, group in enumerate(placement.groups):
        for piece in group:
            for segment in np.arange(piece.first, piece.last):
                if piece.table == table:
                    found[segment].append(number)
    return found
