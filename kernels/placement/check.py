"""Whether a placement fits a manifest: every segment of every table lies in exactly one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from kernels.bundle.manifest import Manifest, Table
from kernels.errors import PlacementError
from kernels.hot.sizes import Sizes
from kernels.placement.placement import CachedTable, Placement

# A card's kernels take rows' numbers as int32.
_DEVICE_ROWS_MOST: Final = 2**31 - 1


def check_placement(placement: Placement, manifest: Manifest, n_groups: int | None = None) -> None:
    """Check a placement against a model's manifest.

    Args:
        placement: What to check.
        manifest: The model's.
        n_groups: How many groups serve it, where that is known.

    Raises:
        PlacementError: It does not fit; names table, segments and groups.
    """
    if n_groups is not None and placement.n_groups != n_groups:
        raise PlacementError(
            f"it divides over {placement.n_groups} groups, but {n_groups} serve the model"
        )
    tables = {table.name: table for table in manifest.tables}
    for where, names in (
        ("device", placement.device),
        ("cached", tuple(each.table for each in placement.cached)),
    ):
        for name in names:
            _known(tables, name, where)
            if names.count(name) > 1:
                raise PlacementError(f"{where}: table {name!r} is named twice")
    for name in placement.device:
        _check_device(tables[name])
    for each in placement.cached:
        _check_cached(each, placement, tables[each.table])
    _check_pieces(placement, tables)
    for name, table in tables.items():
        if name not in placement.device:
            _check_whole(placement, table)


def _known(tables: Mapping[str, Table], name: str, where: str) -> None:
    if name not in tables:
        there_are = ", ".join(sorted(tables)) or "none"
        raise PlacementError(f"{where}: the model has no table {name!r}; there are {there_are}")


def _check_device(table: Table) -> None:
    if table.keyed:
        raise PlacementError(
            f"device: table {table.name!r} is found by keys; a card's kernels take row numbers"
        )
    if not 0 < table.rows <= _DEVICE_ROWS_MOST:
        raise PlacementError(
            f"device: table {table.name!r} of {table.rows} rows cannot lie on a card, which takes "
            f"1 to {_DEVICE_ROWS_MOST}"
        )


def _check_cached(each: CachedTable, placement: Placement, table: Table) -> None:
    if each.table in placement.device:
        raise PlacementError(f"cached: table {each.table!r} lies on the device already")
    try:
        Sizes.fitting(table.row_bytes, each.max_bytes)
    except ValueError as error:
        raise PlacementError(f"cached: table {each.table!r}: {error}") from error
    if not (math.isfinite(each.stale_s) and each.stale_s >= 0):
        raise PlacementError(
            f"cached: table {each.table!r}: stale_s: want seconds, got {each.stale_s}"
        )


def _check_pieces(placement: Placement, tables: Mapping[str, Table]) -> None:
    """Check each piece by itself, and that no two hold the same segment."""
    device = frozenset(placement.device)
    owners = {name: np.full(table.segments, -1, np.int32) for name, table in tables.items()}
    for number, group in enumerate(placement.groups):
        seen: set[str] = set()
        for piece in group:
            where = f"group {number}"
            _known(tables, piece.table, where)
            where = f"{where}: table {piece.table!r}"
            n_segments = tables[piece.table].segments
            if piece.table in device:
                raise PlacementError(f"{where} lies on the device already")
            if not 0 <= piece.first < piece.last <= n_segments:
                raise PlacementError(
                    f"{where}: want segments of 0 to {n_segments}, exclusive, got {piece.first} "
                    f"to {piece.last}"
                )
            if piece.table in seen:
                raise PlacementError(f"{where} has two pieces: a group holds one stretch of it")
            seen.add(piece.table)
            owner = owners[piece.table][piece.first : piece.last]
            if (taken := np.flatnonzero(owner >= 0)).size:
                at = int(taken[0])
                raise PlacementError(
                    f"{where}: segment {piece.first + at} is in group {owner[at]} as well"
                )
            owner[:] = number


def _check_whole(placement: Placement, table: Table) -> None:
    try:
        groups = placement.group_of(table.name)
    except KeyError:
        raise PlacementError(
            f"table {table.name!r} is placed nowhere: neither device nor a group has it"
        ) from None
    missing = [*np.flatnonzero(groups < 0).tolist(), *range(len(groups), table.segments)]
    if missing:
        raise PlacementError(
            f"table {table.name!r}: segment {missing[0]} of {table.segments} is in no group"
            + (f", nor are {len(missing) - 1} others" if len(missing) > 1 else "")
        )
