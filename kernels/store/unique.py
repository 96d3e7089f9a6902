"""The distinct keys of a batch, divided by the group of shards that has them.

A key that a batch looks up many times is fetched once: what is pooled later is *slots*, numbers of
rows among those fetched. One pass of C (``store.c``), with numpy as fallback and oracle.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.errors import LookupFailed
from kernels.store import _c
from kernels.store.partition import check_n_segments, rows_per_segment, segment_of

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

# Keys come from clients, who must not know which of them collide.
_SEED: Final = int.from_bytes(os.urandom(8))
_OUTSIDE: Final = -1
_NO_GROUP: Final = -2
_NO_MEMORY: Final = -3


class UniqueKeys(NamedTuple):
    """The distinct keys of a batch.

    Attributes:
        keys: int64 ``[n_unique]``: those of group 0, then of group 1, and so on; within a group in
            the order of their first appearance.
        splits: int64 ``[n_groups]``: how many are of each group.
        slots: int32, of the shape of the batch: each key's place in ``keys``.
    """

    keys: I64
    splits: I64
    slots: I32


def unique_keys(
    keys: I64,
    *,
    n_segments: int,
    rows: int,
    keyed: bool,
    group_of: I32,
    n_groups: int,
    native: bool = True,
) -> UniqueKeys:
    """Find the distinct keys of a batch and order them by group.

    Args:
        keys: int64, C-ordered, of any shape and fewer than 2**31: keys of one table.
        n_segments: Of the table, as are ``rows`` and ``keyed`` (see ``segment_of``).
        rows: Only a dense table's matter.
        keyed: Whether the table has keys.
        group_of: int32 ``[n_segments]``, the group of each segment; negative if none has it.
        n_groups: Groups are numbered below this.
        native: False to use numpy even where C is there.

    Raises:
        LookupFailed: A row number is outside a dense table, or a key's segment is in no group.
        ValueError: An argument has another shape, dtype or memory layout.
    """
    check_n_segments(n_segments)
    if keys.dtype != np.int64 or not keys.flags.c_contiguous or keys.size >= 2**31:
        raise ValueError(f"keys: want C-ordered int64, got {keys.dtype} {keys.shape}")
    if (
        group_of.dtype != np.int32
        or group_of.shape != (n_segments,)
        or not group_of.flags.c_contiguous
    ):
        raise ValueError(
            f"group_of: want int32 {(n_segments,)}, got {group_of.dtype} {group_of.shape}"
        )
    native_code = _c.store() if native else None
    if native_code is None:
        return _numpy_unique(keys, n_segments, rows, keyed, group_of, n_groups)
    found = np.empty(keys.size, np.int64)
    splits = np.zeros(n_groups, np.int64)
    slots = np.empty(keys.shape, np.int32)
    ffi = native_code.ffi
    bad = ffi.new("int64_t *")
    n = native_code.lib.tb_unique(
        ffi.from_buffer("int64_t[]", keys),
        keys.size,
        n_segments,
        0 if keyed else rows_per_segment(rows, n_segments),
        rows,
        ffi.from_buffer("int32_t[]", group_of),
        n_groups,
        _SEED,
        ffi.from_buffer("int64_t[]", found),
        ffi.from_buffer("int64_t[]", splits),
        ffi.from_buffer("int32_t[]", slots),
        bad,
    )
    if n == _NO_MEMORY:
        raise MemoryError("unique keys")
    if n == _OUTSIDE:
        raise LookupFailed(f"row {bad[0]} is outside a table of {rows} rows")
    if n == _NO_GROUP:
        raise _no_group(bad[0], n_groups)
    return UniqueKeys(found[:n], splits, slots)


def _no_group(segment: int, n_groups: int) -> LookupFailed:
    return LookupFailed(f"segment {segment} is in none of the {n_groups} groups")


def _numpy_unique(
    keys: I64, n_segments: int, rows: int, keyed: bool, group_of: I32, n_groups: int
) -> UniqueKeys:
    found, first, inverse = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    appearance = np.argsort(first)
    segments = segment_of(found[appearance], n_segments=n_segments, rows=rows, keyed=keyed)
    groups = group_of[segments]
    if len(bad := np.flatnonzero((groups < 0) | (groups >= n_groups))):
        raise _no_group(int(segments[bad[0]]), n_groups)
    order = appearance[np.argsort(groups, kind="stable")]
    slot_of = np.empty(len(order), np.int32)
    slot_of[order] = np.arange(len(order), dtype=np.int32)
    return UniqueKeys(
        found[order],
        np.bincount(groups, minlength=n_groups).astype(np.int64),
        slot_of[inverse].reshape(keys.shape),
    )
