"""The placement that a manifest alone gives: whole tables, divided over the groups."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from kernels.bundle.manifest import Manifest, SideLayout
from kernels.placement.placement import CachedTable, Piece, Placement
from kernels.shards import assign_tables


def derive(
    manifest: Manifest,
    n_groups: int,
    *,
    device: Collection[str] = (),
    cached: tuple[CachedTable, ...] = (),
) -> Placement:
    """Divide whole tables over groups, as ``assign_tables`` does.

    Args:
        manifest: The model's.
        n_groups: How many groups.
        device: Tables on the card, which no group gets. Names that the manifest does not know are
            left for ``check_placement``.
        cached: Tables that are cached as well.

    Raises:
        ValueError: ``n_groups`` is not positive.
    """
    others = attrs.evolve(
        manifest,
        tables=tuple(table for table in manifest.tables if table.name not in device),
        user=_without(manifest.user, device),
        candidate=_without(manifest.candidate, device),
    )
    segments = {table.name: table.segments for table in manifest.tables}
    return Placement(
        groups=tuple(
            tuple(Piece(name, 0, segments[name]) for name in tables)
            for tables in assign_tables(others, n_groups)
        ),
        device=tuple(device),
        cached=cached,
    )


def _without(side: SideLayout, tables: Collection[str]) -> SideLayout:
    kept = tuple(lookup for lookup in side.lookups if lookup.table not in tables)
    return attrs.evolve(side, lookups=kept)
