"""A made-up model of any size, for simulation: tables, and what its requests look up.

Sizes of embedding tables spread over many orders of magnitude, so they are drawn from a lognormal
distribution; a few tables hold most of the parameters, as in the production models that Mudigere
et al. describe ("Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
Recommendation Models", ISCA 2022).
"""

from __future__ import annotations

from typing import Final

import attrs
import numpy as np

from kernels.bundle.manifest import (
    GpuSupport,
    Lookup,
    Manifest,
    SideLayout,
    SideName,
    Source,
    Table,
)

# Standard deviation of the logarithm of a table's rows.
_SPREAD: Final = 2.5
_DIMS: Final = (16, 32, 64, 128)
_SMALLEST_ROWS: Final = 1000
# No table has more than this share of all parameters.
_LARGEST_SHARE: Final = 0.2
# From so many rows on, a table's rows are found by keys.
_KEYED_ROWS: Final = 1_000_000
_SEGMENT_BYTES: Final = 64e6
# Enough to spread a small table's traffic, and to divide the largest.
_SEGMENTS: Final = (256, 4096)
# Of tables, the share that a candidate looks up, and not a user.
_CANDIDATE_SHARE: Final = 0.4
# Of tables, the share with a list of ids, and its length.
_LIST_SHARE: Final = 0.25
_LIST_LENGTHS: Final = (5, 10, 20, 50)


def synthetic_manifest(
    n_parameters: float, *, n_tables: int = 200, seed: int = 1, dtype: str = "fp16"
) -> Manifest:
    """Make a manifest up.

    Args:
        n_parameters: Numbers in all tables together, to within a few percent.
        n_tables: How many tables; at least 20, or they cannot be as alike as is asked.
        seed: Another gives another model.
        dtype: How rows are stored.
    """
    random = np.random.default_rng(seed)
    dims = random.choice(_DIMS, n_tables)
    sizes = np.exp(random.normal(0.0, _SPREAD, n_tables)) * dims
    for _ in range(20):  # the largest are cut, and all grow by what that left over
        sizes = np.minimum(sizes / sizes.sum(), _LARGEST_SHARE)
    rows = np.maximum((sizes / sizes.sum() * n_parameters / dims).astype(np.int64), _SMALLEST_ROWS)
    tables = tuple(
        _table(f"table-{i:03}", int(n), int(dim), dtype)
        for i, (n, dim) in enumerate(zip(rows, dims, strict=True))
    )
    lookups: dict[SideName, list[tuple[Table, int]]] = {"user": [], "candidate": []}
    for table in tables:
        side: SideName = "candidate" if random.random() < _CANDIDATE_SHARE else "user"
        n_ids = int(random.choice(_LIST_LENGTHS)) if random.random() < _LIST_SHARE else 1
        # Lists are the user's history; candidates have short ones.
        lookups[side].append((table, n_ids if side == "user" else min(n_ids, 5)))
    return Manifest(
        format=1,
        model=f"synthetic-{n_parameters:.0e}",
        version=f"{seed:064x}",
        tables=tables,
        user=_side("user", lookups["user"]),
        candidate=_side("candidate", lookups["candidate"]),
        outputs=(),
        kept=(),
        gpu=GpuSupport(supported=True, reason=""),
    )


def _table(name: str, rows: int, dim: int, dtype: str) -> Table:
    one = Table(name=name, rows=rows, dim=dim, dtype=dtype, file=name)
    if rows < _KEYED_ROWS:
        return one
    segments = int(np.clip(one.size_bytes / _SEGMENT_BYTES, *_SEGMENTS))
    return attrs.evolve(one, keyed=True, segments=segments)


def _side(side: SideName, looked_up: list[tuple[Table, int]]) -> SideLayout:
    lookups: list[Lookup] = []
    ids: list[Source] = []
    width = 0
    for table, n_ids in looked_up:
        lookups.append(
            Lookup(
                side=side,
                table=table.name,
                tensor=table.name,
                pooling="none" if n_ids == 1 else "sum",
                first_id=len(ids),
                n_ids=n_ids,
                first_weight=None,
                offset=width,
                width=table.dim,
            )
        )
        ids += [Source(feature=table.name, column=column) for column in range(n_ids)]
        width += table.dim
    return SideLayout(
        ids=tuple(ids), weights=(), values=(), lookups=tuple(lookups), width=width, program=None
    )
