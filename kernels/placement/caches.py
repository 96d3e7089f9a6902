"""Sharing the cache's memory out among tables: to the rows that save the most for their bytes.

A row of rank ``k`` is in a batch of ``d`` lookups with probability ``1 - exp(-d p(k))``, and then
saves fetching it. All rows that save more for each of their bytes than some threshold are cached;
the threshold is where the memory is full. As the hottest rows of a table come first, that is a
number of rows of each table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import numpy as np

from kernels.bundle.manifest import Table
from kernels.hot.sizes import GROUP, OVERHEAD_BYTES
from kernels.placement.costs import Costs
from kernels.placement.placement import CachedTable
from kernels.placement.traffic import BATCH_REQUESTS, Traffic

# A cache is more to run: it has to save so much of what the table costs without it.
_LEAST_GAIN: Final = 0.2
# Halvings of the threshold's logarithm, over 30 orders of magnitude.
_STEPS: Final = 60


@attrs.frozen(kw_only=True)
class CachePlan:
    """A table that is cached.

    Attributes:
        rows: That the cache holds.
        hit_rate: Share of the lookups that it answers, as frequency admits rows.
        distinct: Rows that are still fetched from shards, a request.
    """

    table: CachedTable
    rows: float
    hit_rate: float
    distinct: float


def choose_caches(
    tables: Sequence[Table],
    traffic: Traffic,
    costs: Mapping[str, Costs],
    cache_bytes: float,
) -> dict[str, CachePlan]:
    """Decide which tables are cached, and in how many bytes.

    Args:
        tables: Those that may be.
        traffic: Of the model.
        costs: Of each table.
        cache_bytes: For all caches together; in each executor.
    """
    candidates = [t for t in tables if traffic.tables[t.name].lookups > 0 and t.rows]
    while candidates and cache_bytes >= 1:
        rows = _fill(candidates, traffic, costs, cache_bytes)
        plans = {
            table.name: _plan(table, traffic, costs[table.name], float(n))
            for table, n in zip(candidates, rows, strict=True)
            if n >= 1
        }
        kept = [t for t in candidates if t.name in plans and _pays(plans[t.name], costs[t.name])]
        if len(kept) == len(candidates):
            return plans
        candidates = kept  # what the others would have had is for these
    return {}


def _fill(
    tables: Sequence[Table], traffic: Traffic, costs: Mapping[str, Costs], cache_bytes: float
) -> list[float]:
    """Return how many rows of each table fit."""

    def rows(threshold: float) -> list[float]:
        found = []
        for table in tables:
            asked = traffic.tables[table.name]
            share = threshold * _kept_bytes(table) / costs[table.name].row
            if share >= 1:
                found.append(0.0)
                continue
            chance = -np.log1p(-share) / (asked.lookups * BATCH_REQUESTS)
            found.append(float(asked.keys.hotter_than(chance)) // GROUP * GROUP)
        return found

    def size(threshold: float) -> float:
        counted = zip(tables, rows(threshold), strict=True)
        return float(sum(np.ceil(_kept_bytes(table) * n) for table, n in counted))

    low, high = -60.0, 10.0  # logarithms of thresholds: at high, nothing fits any more
    if size(np.exp(low)) <= cache_bytes:
        return rows(np.exp(low))
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if size(np.exp(middle)) > cache_bytes:
            low = middle
        else:
            high = middle
    return rows(np.exp(high))


def _kept_bytes(table: Table) -> float:
    """Return what a cached row takes, see ``kernels.hot``."""
    return table.row_bytes + OVERHEAD_BYTES


def _plan(table: Table, traffic: Traffic, costs: Costs, rows: float) -> CachePlan:
    asked = traffic.tables[table.name]
    draws = asked.lookups * BATCH_REQUESTS
    hits = asked.keys.distinct(draws, rows) / BATCH_REQUESTS
    return CachePlan(
        table=CachedTable(table.name, math.ceil(rows * _kept_bytes(table))),
        rows=rows,
        hit_rate=float(asked.keys.head(rows)),
        distinct=max(costs.distinct - hits, 0.0),
    )


def _pays(plan: CachePlan, costs: Costs) -> bool:
    """Whether a cache saves enough, also of what pooling in one shard would have cost."""
    return plan.distinct * costs.row <= (1 - _LEAST_GAIN) * min(costs.pooled, costs.fetched)
