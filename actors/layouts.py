"""What each place that holds a model's tables is asked, as gateway, shards and executor derive it.

A batch has a *part* for each group of shards that something is looked up in. Of tables wholly
there the group pools; of those that are divided it sends rows (``fetch.py``). Rows of tables that
are cached are one more part, which the batch's executor makes itself (``hot_rows.py``).
"""

from __future__ import annotations

import attrs
import numpy as np

from actors.fetch import FetchLayout
from kernels.bundle.load import Bundle
from kernels.device_tables import GatheredSide
from kernels.errors import PlacementError
from kernels.lookup import ShardLayout, shard_layout
from kernels.placement import Placement, placement_for
from runtime.errors import StartError
from runtime.topology import ModelSpec


@attrs.frozen(kw_only=True, eq=False)
class Layouts:
    """What each place that holds a model's tables is asked.

    Attributes:
        placement: Where the tables lie.
        shards: Each group's user and candidate layout of what it pools, by the placement's order.
        nothing: The same of a group that pools nothing.
        parts: The groups that a batch has a part of, in order: what is called part 0, 1 and so on.
        hot: The part after these that has the rows of cached tables; None if there are none.
        fetch: The tables that are fetched; None if there are none.
        device: What the executors' cards are asked: the sides' blocks; None if no table lies there.
    """

    placement: Placement
    shards: tuple[tuple[ShardLayout, ShardLayout], ...]
    nothing: tuple[ShardLayout, ShardLayout]
    parts: tuple[int, ...]
    hot: int | None
    fetch: FetchLayout | None
    device: tuple[GatheredSide, GatheredSide] | None

    @property
    def device_tables(self) -> tuple[str, ...]:
        """The tables on the executors' cards."""
        return self.placement.device

    @property
    def hot_tables(self) -> dict[str, int]:
        """The cached tables that something looks up, and how many bytes are kept of each."""
        fetched = () if self.fetch is None else self.fetch.tables
        names = {each.table.name for each in fetched}
        return {each.table: each.max_bytes for each in self.placement.cached if each.table in names}

    def part_layouts(self) -> tuple[tuple[ShardLayout, ShardLayout], ...]:
        """Return what each part's group pools, by part: nothing where there is none."""
        layouts = tuple(self.shards[group] for group in self.parts)
        return layouts if self.hot is None else (*layouts, self.nothing)

    def holds(self, group: int) -> str:
        """Say what a group holds, for people."""
        pieces = [
            piece.table
            if len(self.placement.group_of(piece.table)) == piece.last - piece.first
            else f"{piece.table} (segments {piece.first} to {piece.last - 1})"
            for piece in self.placement.groups[group]
        ]
        more = f" and {len(pieces) - 3} more" if len(pieces) > 3 else ""
        return f"{'tables' if len(pieces) > 1 else 'table'} {', '.join(pieces[:3])}{more}"


def placement_of(model: ModelSpec, bundle: Bundle) -> Layouts:
    """Return what is asked of whom, by the placement of a model.

    Raises:
        StartError: The placement does not fit the model.
    """
    try:
        placement = placement_for(bundle, model.n_groups, model.placement)
    except PlacementError as error:
        raise StartError(f"model {model.name}: {error}") from error
    manifest = bundle.manifest
    sides = manifest.user, manifest.candidate
    pooled = [placement.pooled(group) for group in range(placement.n_groups)]
    shards = tuple(
        (shard_layout(sides[0], names), shard_layout(sides[1], names)) for names in pooled
    )
    looked_up = {lookup.table for side in sides for lookup in side.lookups}
    cached = [each.table for each in placement.cached if each.table in looked_up]
    looked_up.difference_update(cached)
    parts = tuple(
        group
        for group in range(placement.n_groups)
        if not looked_up.isdisjoint(placement.tables(group))
    )
    device = placement.device
    return Layouts(
        placement=placement,
        shards=shards,
        nothing=(shard_layout(sides[0], ()), shard_layout(sides[1], ())),
        parts=parts,
        hot=len(parts) if cached else None,
        fetch=_fetch(bundle, placement, parts, cached),
        device=(GatheredSide.of(sides[0], device), GatheredSide.of(sides[1], device))
        if device
        else None,
    )


def _fetch(
    bundle: Bundle, placement: Placement, parts: tuple[int, ...], cached: list[str]
) -> FetchLayout | None:
    if not placement.fetched:
        return None
    part_of_group = np.full(placement.n_groups, -1, np.int32)
    part_of_group[list(parts)] = np.arange(len(parts))
    parts_of = {name: part_of_group[placement.group_of(name)] for name in placement.fetched}
    for name in cached:
        parts_of[name] = np.full_like(parts_of[name], len(parts))
    layout = FetchLayout.of(bundle.manifest, parts_of, len(parts) + bool(cached))
    return layout if layout.tables else None
