"""Saying what a plan is and what to expect of it: for people, and before a placement's file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from kernels.bundle.manifest import Table
from kernels.placement.planner import Plan, device_bytes
from kernels.placement.skew import F64

# Groups are told one by one up to so many; of more, the least and the most loaded.
_EACH: Final = 32
_ENDS: Final = 3
_FAN_OUT_REQUESTS: Final = (1, 16, 64)
# A segment that is more than this of a table's traffic is told, and cannot be divided.
_HOT_SEGMENT: Final = 0.5
# A segment that is larger than this, and than what a shard should have, is told.
_LARGE_BYTES: Final = 1e8


def fan_out(plan: Plan, n_requests: float) -> float:
    """Return how many groups a batch of requests asks, on average, draws being independent."""
    draws = np.zeros(plan.placement.n_groups)
    for group, pieces in enumerate(plan.placement.groups):
        for piece in pieces:
            asked = plan.traffic.tables[piece.table]
            cache = plan.caches.get(piece.table)
            missed = 1.0 if cache is None else 1.0 - cache.hit_rate
            share = float(asked.shares[piece.first : piece.last].sum())
            draws[group] += asked.lookups * missed * share * n_requests
    return float((1 - np.exp(-draws)).sum())


def summary(plan: Plan) -> str:
    """Return some lines: the head of a placement's file."""
    return "\n".join(_summary(plan))


def describe(plan: Plan) -> str:
    """Return all of it: tables, groups, and what to expect."""
    lines = [*_summary(plan), "", *_columns(_tables(plan)), "", *_columns(_groups(plan))]
    if notes := [*_notes(plan)]:
        lines += ["", *notes]
    return "\n".join(lines) + "\n"


def _summary(plan: Plan) -> Iterator[str]:
    placement, budget = plan.placement, plan.budget
    n_shards = placement.n_groups * budget.replicas
    yield (
        f"{plan.manifest.model}: {len(plan.manifest.tables)} tables over {placement.n_groups} "
        f"groups of {budget.replicas} replicas, {n_shards} shards"
    )
    yield f"traffic {plan.traffic.source}"
    on_card = [t for t in plan.manifest.tables if t.name in placement.device]
    filled = sum(device_bytes(table, budget.device_item_bytes) for table in on_card)
    cached = sum(each.max_bytes for each in placement.cached)
    yield (
        f"device {len(on_card)} tables, {size_text(filled)}; cached {len(placement.cached)}, "
        f"{size_text(cached)}; divided {len(_divided(plan))}"
    )
    yield (
        f"a shard has {size_text(plan.size.mean())}, the fullest {_over(plan.size)} of that; "
        f"reads {size_text(plan.work.mean() / budget.replicas)} a request, the busiest "
        f"{_over(plan.work)} of that"
    )
    asked = ", ".join(f"{n}: {fan_out(plan, n):.1f}" for n in _FAN_OUT_REQUESTS)
    yield f"groups that a batch of so many requests asks: {asked}"


def _divided(plan: Plan) -> list[str]:
    homes: dict[str, int] = {}
    for group in plan.placement.groups:
        for piece in group:
            homes[piece.table] = homes.get(piece.table, 0) + 1
    return [name for name, n in homes.items() if n > 1]


def _tables(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield "table", "rows", "dim", "bytes", "lookups", "place", "groups", "cache", "hits"
    homes: dict[str, list[int]] = {}
    for number, group in enumerate(plan.placement.groups):
        for piece in group:
            homes.setdefault(piece.table, []).append(number)
    for table in plan.manifest.tables:
        cache = plan.caches.get(table.name)
        found = homes.get(table.name, [])
        place = "shard" if cache is None else "cached"
        yield (
            table.name,
            f"{table.rows:,}" + (" keys" if table.keyed else ""),
            f"{table.dim} {table.dtype}",
            size_text(table.size_bytes),
            f"{plan.traffic.tables[table.name].lookups:.4g}",
            "device" if table.name in plan.placement.device else place,
            _few(found),
            "" if cache is None else size_text(cache.table.max_bytes),
            "" if cache is None else f"{cache.hit_rate:.1%}",
        )


def _few(groups: list[int]) -> str:
    if len(groups) <= 4:
        return ", ".join(map(str, sorted(groups)))
    return f"{len(groups)} of them"


def _groups(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield "group", "bytes", "rows", "reads", "of all", "whole", "pieces"
    total = max(float(plan.work.sum()), 1e-300)
    segments = {table.name: table.segments for table in plan.manifest.tables}
    order = np.argsort(-plan.work, kind="stable").tolist()
    each = plan.placement.n_groups <= _EACH
    shown = sorted(order) if each else [*order[:_ENDS], *order[-_ENDS:]]
    for number in shown:
        pieces = plan.placement.groups[number]
        whole = sum(segments[p.table] == p.last - p.first for p in pieces)
        yield (
            str(number),
            size_text(plan.size[number]),
            f"{plan.rows[number]:.4g}",
            size_text(plan.work[number]),
            f"{plan.work[number] / total:.2%}",
            str(whole),
            str(len(pieces) - whole),
        )


def _notes(plan: Plan) -> Iterator[str]:
    """Say what no placement can mend."""
    divided = set(_divided(plan))
    for table in plan.manifest.tables:
        shares = plan.traffic.tables[table.name].shares
        if table.name in divided and shares.max() > _HOT_SEGMENT:
            yield (
                f"segment {int(shares.argmax())} of {table.segments} of table {table.name} has "
                f"{shares.max():.0%} of its traffic: cache it, or build it by keys, whose hash "
                "spreads the hot ones"
            )
        if _is_stuck(plan, table):
            yield (
                f"table {table.name} has {table.segments} segments and more than a shard's share "
                "of the bytes: build it with more"
            )


def _is_stuck(plan: Plan, table: Table) -> bool:
    mean = float(plan.size.mean())
    largest = table.size_bytes / table.segments
    return table.name not in plan.placement.device and largest > max(1.5 * mean, _LARGE_BYTES)


def _over(loads: F64) -> str:
    mean = float(loads.mean())
    return f"{loads.max() / mean:.2f}" if mean else "1.00"


def size_text(size: float) -> str:
    """Return bytes as one would say them, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def _columns(rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Lay rows out in columns; long cells end in dots."""
    cells = [[cell if len(cell) <= 40 else cell[:37] + "..." for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
