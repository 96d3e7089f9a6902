"""Blocks that stand for what a bundle's model will be sent, drawn from its own tables.

What scales of small floats are found from. Each lookup pools rows of its table, chosen evenly, with
the weights that count for most; numbers are drawn as if they had been standardised.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kernels.bundle.load import SIDES, Bundle
from kernels.bundle.manifest import SideLayout
from kernels.fp8 import Fp8, Scales
from kernels.lookup import PooledLookup, ShardLayout, shard_layout
from kernels.store.table import StoredTable

_N_ROWS, _N_REQUESTS = 128, 16
_SEED = 20241127


def fp8_of(bundle: Bundle, scales: Scales) -> Fp8:
    """Return the compiler's choice of floats of eight bits, for a bundle.

    Raises:
        BundleError: A table's rows are not here.
    """
    random = np.random.default_rng(_SEED)
    sizes = {"user": _N_REQUESTS, "candidate": _N_ROWS}
    tables = {table.name: bundle.open_table(table.name) for table in bundle.manifest.tables}
    blocks: dict[str, NDArray[np.float32]] = {
        side: _block(bundle.manifest.side(side), tables, sizes[side], random) for side in SIDES
    }
    return Fp8(blocks, np.arange(_N_ROWS) * _N_REQUESTS // _N_ROWS, scales)


def _block(
    layout: SideLayout,
    tables: Mapping[str, StoredTable],
    n: int,
    random: np.random.Generator,
) -> NDArray[np.float32]:
    """Return float32 ``[n, layout.width]``."""
    block = np.empty((n, layout.width), np.float32)
    pooled = layout.width - len(layout.values)
    if pooled:
        shard = shard_layout(layout, tables)
        weights = np.ones((len(shard.weight_rows), n), np.float32)
        for lookup in shard.lookups:
            if (
                lookup.pooling == "max" and lookup.first_weight is not None
            ):  # is added, not multiplied
                weights[lookup.first_weight : lookup.first_weight + lookup.n_ids] = 0
        lookups = PooledLookup(tables, shard)
        lookups.run(_ids(shard, tables, n, random), weights, block[:, :pooled])
    block[:, pooled:] = random.standard_normal((n, len(layout.values)))
    return block


def _ids(
    shard: ShardLayout, tables: Mapping[str, StoredTable], n: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return int64 ``[n_ids, n]``: rows or keys of the tables that each is looked up in."""
    ids = np.zeros((len(shard.id_rows), n), np.int64)
    bounds: dict[int, int] = {}
    for lookup in shard.lookups:
        table = tables[lookup.table]
        for at in range(lookup.first_id, lookup.first_id + lookup.n_ids):
            if table.header.keyed:  # where another table has not such a key, its default row counts
                ids[at] = random.choice(_keys(table), n)
            else:
                bounds[at] = min(bounds.get(at, table.header.rows), table.header.rows)
    for at, bound in bounds.items():
        ids[at] = random.integers(0, bound, n)
    return ids


def _keys(table: StoredTable) -> NDArray[np.int64]:
    """Return some keys of a table: those of its smallest segment that has any."""
    sizes = {i: table.header.segments[i].rows for i in table.segments}
    filled = [i for i, rows in sizes.items() if rows]
    return table.keys_of(min(filled, key=sizes.__getitem__)) if filled else np.zeros(1, np.int64)
