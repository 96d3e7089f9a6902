"""Which shard holds which tables, and what a shard's part of a block looks like.

Pure functions of the manifest: gateway, shards and executor each derive the same answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.bundle.manifest import Lookup, Manifest, SideLayout

# Rows of the candidate side for each row of the user side, where traffic is weighed: MLPerf's
# recommendation load has 270 samples a query, small web traffic some tens.
_ROWS_PER_REQUEST = 100
# What fetching a row costs besides its own bytes, in bytes: about one cache line's time.
_ROW_OVERHEAD_BYTES = 64


class Run(NamedTuple):
    """Adjoining columns: ``width`` of them, from ``part`` on in a part, ``block`` in its block."""

    part: int
    block: int
    width: int


_SAME_ARRAY = attrs.cmp_using(eq=np.array_equal)


@attrs.frozen(kw_only=True)
class ShardLayout:
    """One side of one shard: which ids it needs and how its *part* of the block is laid out.

    Attributes:
        tables: The shard's tables that this side looks up, in block order.
        lookups: The shard's lookups, with ids, weights and columns counted within the shard: what
            comes over the wire and goes into the part.
        id_rows: intp, the rows of the side's ids matrix that the shard needs, ascending.
        weight_rows: The same of its weights matrix.
        width: Columns of the part.
        runs: As few as possible; copying them puts a part, float32 ``[n, width]``, into its block.
    """

    tables: tuple[str, ...]
    lookups: tuple[Lookup, ...]
    id_rows: NDArray[np.intp] = attrs.field(eq=_SAME_ARRAY)
    weight_rows: NDArray[np.intp] = attrs.field(eq=_SAME_ARRAY)
    width: int
    runs: tuple[Run, ...]


def shard_layout(side: SideLayout, tables: Collection[str]) -> ShardLayout:
    """Return the layout of the shard that holds ``tables`` (which may name more than exist here).

    Ids that several lookups read are sent once.
    """
    mine = [lookup for lookup in side.lookups if lookup.table in tables]
    id_rows = sorted({row for lookup in mine for row in _span(lookup.first_id, lookup)})
    weight_rows = sorted({row for lookup in mine for row in _span(lookup.first_weight, lookup)})
    # Ascending, so consecutive rows of the side's matrix stay consecutive in the shard's.
    id_at = {row: position for position, row in enumerate(id_rows)}
    weight_at = {row: position for position, row in enumerate(weight_rows)}
    lookups: list[Lookup] = []
    runs: list[Run] = []
    width = 0
    for lookup in mine:
        first_weight = lookup.first_weight
        lookups.append(
            attrs.evolve(
                lookup,
                first_id=id_at[lookup.first_id],
                first_weight=None if first_weight is None else weight_at[first_weight],
                offset=width,
            )
        )
        if runs and runs[-1].block + runs[-1].width == lookup.offset:
            last = runs.pop()
            runs.append(Run(last.part, last.block, last.width + lookup.width))
        else:
            runs.append(Run(width, lookup.offset, lookup.width))
        width += lookup.width
    return ShardLayout(
        tables=tuple(dict.fromkeys(lookup.table for lookup in mine)),
        lookups=tuple(lookups),
        id_rows=np.array(id_rows, np.intp),
        weight_rows=np.array(weight_rows, np.intp),
        width=width,
        runs=tuple(runs),
    )


def assign_tables(manifest: Manifest, n_shards: int) -> list[tuple[str, ...]]:
    """Divide a bundle's tables among shards.

    Tables are taken in the order of the candidate block, then of the user block, and cut into
    contiguous stretches, so that a part is copied into the block in few runs. Of all such cuts this
    is the one with the least sum, over shards, of the squares of their share of all bytes and of
    their share of the traffic (bytes read for a typical request). Some shards get nothing where
    there are fewer tables than shards.

    Raises:
        ValueError: ``n_shards`` is not positive.
    """
    if n_shards < 1:
        raise ValueError(f"n_shards: want at least 1, got {n_shards}")
    lookups = [*manifest.candidate.lookups, *manifest.user.lookups]
    used = dict.fromkeys(lookup.table for lookup in lookups)
    names = [*used, *(table.name for table in manifest.tables if table.name not in used)]
    size = dict.fromkeys(names, 0.0)
    traffic = dict.fromkeys(names, 0.0)
    row_bytes = {table.name: table.row_bytes for table in manifest.tables}
    for table in manifest.tables:
        size[table.name] = float(table.size_bytes)
    for lookup in lookups:
        rows = lookup.n_ids * (_ROWS_PER_REQUEST if lookup.side == "candidate" else 1)
        traffic[lookup.table] += rows * (row_bytes[lookup.table] + _ROW_OVERHEAD_BYTES)
    cuts = _best_cuts(
        np.array([_shares(size), _shares(traffic)]), min(n_shards, max(len(names), 1))
    )
    stretches = [tuple(names[a:b]) for a, b in itertools.pairwise(cuts)]
    return stretches + [()] * (n_shards - len(stretches))


def _span(first: int | None, lookup: Lookup) -> range:
    return range(0) if first is None else range(first, first + lookup.n_ids)


def _shares(weights: dict[str, float]) -> NDArray[np.float64]:
    shares = np.array(list(weights.values()), np.float64)
    return shares / max(float(shares.sum()), 1.0)


def _best_cuts(shares: NDArray[np.float64], n_parts: int) -> list[int]:
    """Cut a sequence into ``n_parts`` stretches, none empty if there are enough items.

    Dynamic programming over the end of each stretch: ``best[j]`` is the least cost of the first
    ``j`` items in as many stretches as were made so far.

    Args:
        shares: float64 ``[n_kinds, n_items]``; a stretch costs the sum of its squared sums.
        n_parts: At most the number of items, or 1.

    Returns:
        ``n_parts + 1`` ascending positions, from 0 to the number of items.
    """
    n_items = shares.shape[1]
    sums = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
    best = (sums**2).sum(axis=0)
    starts = []
    for part in range(2, n_parts + 1):
        start = np.zeros(n_items + 1, np.intp)
        cost = np.full(n_items + 1, np.inf)
        for end in range(part, n_items + 1):
            begins = np.arange(part - 1, end)
            costs = best[begins] + ((sums[:, [end]] - sums[:, begins]) ** 2).sum(axis=0)
            start[end] = begins[np.argmin(costs)]
            cost[end] = costs.min()
        best = cost
        starts.append(start)
    cuts = [n_items]
    for start in reversed(starts):
        cuts.append(int(start[cuts[-1]]))
    return [0, *reversed(cuts)]
