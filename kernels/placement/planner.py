"""Planning a placement by a cost model: what goes to the card, what is cached, who holds the rest.

The card takes the tables that cost the most for each byte that they fill there, as far as its
memory goes; what lies there costs shards and network nothing. Caches then take the hottest rows of
what is left (``caches.py``), and all that is left is divided over the groups (``divide.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.bundle.manifest import Manifest, Table
from kernels.placement.caches import CachePlan, choose_caches
from kernels.placement.check import check_placement
from kernels.placement.costs import Costs, costs_of, read_bytes, stored_bytes
from kernels.placement.divide import Division, Item, divide
from kernels.placement.placement import DEFAULT_STALE_S, Placement
from kernels.placement.skew import F64
from kernels.placement.traffic import Traffic

_DEVICE_ROWS_MOST: Final = 2**31 - 1
# Where tables begin on a card, see ``kernels.device_tables``.
_DEVICE_ALIGNMENT: Final = 256


@attrs.frozen(kw_only=True)
class Budget:
    """What there is to place tables in.

    Attributes:
        n_groups: How many groups.
        replicas: Of each, for what is said of a shard's load.
        gpu_bytes: Of each executor's card, for tables; 0 for no card.
        device_item_bytes: Of a number there: 2, or 4 where executors run in tf32 or fp32.
        cache_bytes: Of each executor, for hot rows; 0 for no caches.
        stale_s: For how long after an update a cached row may be used.
    """

    n_groups: int
    replicas: int = 1
    gpu_bytes: float = 0.0
    device_item_bytes: int = 2
    cache_bytes: float = 0.0
    stale_s: float = DEFAULT_STALE_S


@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """A placement, and what is to be expected of it.

    Attributes:
        caches: By table.
        size: float64 ``[n_groups]``, bytes of each group.
        rows: float64 ``[n_groups]``, rows that each looks up for a request.
        work: float64 ``[n_groups]``, the bytes that it reads for that, see ``costs.py``.
    """

    manifest: Manifest
    budget: Budget
    traffic: Traffic
    placement: Placement
    caches: Mapping[str, CachePlan]
    size: F64
    rows: F64
    work: F64


def plan(manifest: Manifest, traffic: Traffic, budget: Budget) -> Plan:
    """Plan a placement. The same arguments give the same plan.

    Raises:
        ValueError: The budget has no group.
    """
    if budget.n_groups < 1:
        raise ValueError(f"n_groups: want at least 1, got {budget.n_groups}")
    costs = {t.name: costs_of(t, traffic.tables[t.name]) for t in manifest.tables}
    device = _device(manifest, traffic, costs, budget)
    left = [table for table in manifest.tables if table.name not in device]
    caches = choose_caches(left, traffic, costs, budget.cache_bytes)
    cached = tuple(
        attrs.evolve(caches[t.name].table, stale_s=budget.stale_s) for t in left if t.name in caches
    )
    read = {t.name: caches[t.name].distinct if t.name in caches else costs[t.name].distinct
            for t in left}  # fmt: skip
    division = divide(_items(left, traffic, read), budget.n_groups)
    if whole := _whole(division, caches):
        # These are pooled: each id is looked up, not each distinct key. Divided once more with
        # that, others may be whole, but it is near enough.
        read |= {name: traffic.tables[name].lookups for name in whole}
        division = divide(_items(left, traffic, read), budget.n_groups)
    placement = Placement(groups=division.groups, device=device, cached=cached)
    check_placement(placement, manifest, budget.n_groups)
    size, rows, work = expected(placement, manifest, traffic, caches)
    return Plan(
        manifest=manifest,
        budget=budget,
        traffic=traffic,
        placement=placement,
        caches=caches,
        size=size,
        rows=rows,
        work=work,
    )


def device_bytes(table: Table, item_bytes: int = 2) -> int:
    """Return what a table fills of a card."""
    size = table.rows * table.dim * item_bytes
    return -(-size // _DEVICE_ALIGNMENT) * _DEVICE_ALIGNMENT


def _device(
    manifest: Manifest, traffic: Traffic, costs: Mapping[str, Costs], budget: Budget
) -> tuple[str, ...]:
    """Choose tables for the card, in the manifest's order."""
    fitting = [
        table
        for table in manifest.tables
        if not table.keyed
        and 0 < table.rows <= _DEVICE_ROWS_MOST
        and traffic.tables[table.name].lookups > 0
        and manifest.gpu.supported
    ]
    gains = {
        t.name: costs[t.name].pooled / device_bytes(t, budget.device_item_bytes) for t in fitting
    }
    chosen: set[str] = set()
    free = budget.gpu_bytes
    for table in sorted(fitting, key=lambda t: (-gains[t.name], t.name)):
        needed = device_bytes(table, budget.device_item_bytes)
        if needed <= free:
            chosen.add(table.name)
            free -= needed
    return tuple(table.name for table in manifest.tables if table.name in chosen)


def _items(tables: Sequence[Table], traffic: Traffic, rows: Mapping[str, float]) -> list[Item]:
    """Return tables to be divided, of which so many rows are read for a request."""
    return [
        Item(
            table=table.name,
            size=stored_bytes(table) * _row_shares(table),
            work=rows[table.name] * read_bytes(table) * traffic.tables[table.name].shares,
        )
        for table in tables
    ]


def _whole(division: Division, caches: Mapping[str, CachePlan]) -> set[str]:
    """Return the tables that lie in one group and are not cached."""
    homes = Counter(piece.table for group in division.groups for piece in group)
    return {name for name, n in homes.items() if n == 1 and name not in caches}


def _row_shares(table: Table) -> F64:
    """Return the share of a table's rows that each segment has, float64 ``[segments]``."""
    if table.keyed or not table.rows:
        return np.full(table.segments, 1 / table.segments)
    size = -(-table.rows // table.segments)
    ends = np.minimum(np.arange(1, table.segments + 1) * float(size), table.rows)
    return np.asarray(np.diff(ends, prepend=0.0) / table.rows, np.float64)


def expected(
    placement: Placement,
    manifest: Manifest,
    traffic: Traffic,
    caches: Mapping[str, CachePlan],
) -> tuple[F64, F64, F64]:
    """Return each group's bytes, and the rows and bytes that it reads for a request.

    Tables that lie whole in a group are looked up there once for each id, divided and cached ones
    once for each distinct key.
    """
    size, rows, work = np.zeros((3, placement.n_groups))
    fetched = frozenset(placement.fetched)
    for table in manifest.tables:
        if table.name in placement.device:
            continue
        asked, groups = traffic.tables[table.name], placement.group_of(table.name)
        if table.name in caches:
            wanted = caches[table.name].distinct
        else:
            wanted = asked.distinct() if table.name in fetched else asked.lookups
        for loads, of_segments in (
            (size, stored_bytes(table) * _row_shares(table)),
            (rows, wanted * asked.shares),
            (work, wanted * read_bytes(table) * asked.shares),
        ):
            loads += np.bincount(groups, of_segments, minlength=placement.n_groups)
    return size, rows, work
