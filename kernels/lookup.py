"""Pooled lookup: ids and weights of one side of a batch to the columns of a shard's part.

One call of C does all lookups of a side (``lookup.c``), in arrays and in stored tables, whose keys
it finds and whose rows it decodes on the way; it is compiled at first use. Where there is no
compiler numpy does the same, bit for bit, 5 to 50 times slower; numpy is also the tests' oracle.
``implementation`` says which of the two it is. ``shards.py`` says which lookups a shard has, and is
imported through here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kernels._native import Native, NativeUnavailable, load
from kernels.bundle.manifest import Lookup
from kernels.errors import LookupFailed, StoreError
from kernels.shards import ShardLayout, assign_tables, shard_layout
from kernels.store import _c
from kernels.store.table import StoredTable

__all__ = ["PooledLookup", "ShardLayout", "assign_tables", "implementation", "shard_layout"]

F32: TypeAlias = NDArray[np.float32]
I64: TypeAlias = NDArray[np.int64]

_CDEF: Final = """
typedef struct {
    uintptr_t table; int64_t first_id, n_ids, first_weight, offset, pooling; float divisor;
} lookup;
int64_t tb_lookup(const lookup *lookups, int64_t n_lookups, const int64_t *ids,
                  const float *weights, int64_t n, float *out, int64_t out_stride);
"""
_INT64: Final = np.dtype(np.int64)
_FLOAT32: Final = np.dtype(np.float32)
_DONE: Final = -1
_NO_MEMORY: Final = -2
_COPY, _SUM, _WEIGHTED_SUM, _MAX, _WEIGHTED_MAX = range(5)


class PooledLookup:
    """All lookups of one side of one shard. Safe to use from several threads at once.

    Args:
        tables: Stored tables, whose keys or row numbers ids are then, or arrays: float32 or float16
            ``[rows, dim]``, C-ordered. Memory-mapped ones are read where they are. Kept. A delta
            may be attached to a table later on, while nothing is looked up.
        layout: Names the lookups and where their columns go.
        native: False to use numpy even where C is there.

    Raises:
        LookupFailed: A table is missing, or is not what the layout says of it.
    """

    def __init__(
        self,
        tables: Mapping[str, StoredTable | NDArray[Any]],
        layout: ShardLayout,
        *,
        native: bool = True,
    ) -> None:
        self.layout = layout
        self._tables = [_checked_table(tables, lookup, native) for lookup in layout.lookups]
        self._n_id_rows = len(layout.id_rows)
        self._n_weight_rows = len(layout.weight_rows)
        self._width = layout.width
        self._native = _native() if native and all(t.native for t in self._tables) else None
        if isinstance(self._native, Native):
            self._descriptors = self._native.ffi.new(
                "lookup[]",
                [_descriptor(*pair) for pair in zip(layout.lookups, self._tables, strict=True)],
            )

    def run(self, ids: I64, weights: F32, out: F32 | None = None) -> F32:
        """Look up every id of a batch.

        Args:
            ids: int64 ``[len(layout.id_rows), n]``, C-ordered.
            weights: float32 ``[len(layout.weight_rows), n]``, C-ordered.
            out: float32 ``[n, layout.width]`` to write to; its rows may lie apart, the numbers of
                one row may not. A new array by default.

        Returns:
            ``out``.

        Raises:
            LookupFailed: An id is outside its table, or a key's segment is not open. ``out`` is
                then partly written, as with the next.
            StoreError: A stored table's index is damaged.
            ValueError: An argument has another shape, dtype or memory layout.
        """
        n = ids.shape[1]
        _check("ids", ids, _INT64, (self._n_id_rows, n))
        _check("weights", weights, _FLOAT32, (self._n_weight_rows, n))
        if out is None:
            out = np.empty((n, self._width), np.float32)
        else:
            _check_out(out, (n, self._width))
        if isinstance(self._native, Native):
            self._run_native(self._native, ids, weights, out)
        else:
            with np.errstate(all="ignore"):  # infinities and NaN go through, as they do in C
                for lookup, table in zip(self.layout.lookups, self._tables, strict=True):
                    _numpy_lookup(lookup, table, ids, weights, out)
        return out

    def _run_native(self, native: Native, ids: I64, weights: F32, out: F32) -> None:
        ffi = native.ffi
        done = native.lib.tb_lookup(
            self._descriptors,
            len(self._tables),
            ffi.from_buffer("int64_t[]", ids),
            ffi.from_buffer("float[]", weights),
            len(out),
            # 0.3 us, against 1.4 for the address: it counts where batches are small.
            ffi.from_buffer("float[]", out)
            if out.flags.c_contiguous
            else ffi.cast("float *", _address(out)),
            out.strides[0] // 4,
        )
        if done == _NO_MEMORY:
            raise MemoryError("pooled lookup")
        if done != _DONE:
            lookup, table = self.layout.lookups[done], self._tables[done]
            bags = ids[lookup.first_id : lookup.first_id + lookup.n_ids]
            _check_inside(lookup, table, bags)
            table.find(bags.ravel())  # which says what is wrong
            raise AssertionError(f"{lookup.tensor}: C found no row where there is one")


def implementation() -> str:
    """Say in one line what does the lookups, compiling it if need be."""
    native = _native()
    if isinstance(native, Native):
        return f"lookups: C, compiled by {native.description}"
    return f"lookups: numpy, several times slower than C ({native})"


@functools.cache
def _native() -> Native | NativeUnavailable:
    try:
        return load(Path(__file__).with_name("lookup.c"), _CDEF)
    except NativeUnavailable as error:
        return error


def _checked_table(
    tables: Mapping[str, StoredTable | NDArray[Any]], lookup: Lookup, native: bool
) -> StoredTable:
    name = lookup.table
    if name not in tables:
        raise LookupFailed(f"table {name}: not there, but {lookup.tensor} is looked up in it")
    table = tables[name]
    if not isinstance(table, StoredTable):
        try:
            table = StoredTable.of_array(table, name=name, native=native)
        except StoreError as error:
            raise LookupFailed(str(error)) from error
    dim = lookup.width // lookup.n_ids if lookup.pooling == "none" else lookup.width
    if table.header.dim != dim:
        raise LookupFailed(f"table {name}: {table.header.dim} columns, {lookup.tensor} wants {dim}")
    return table


def _check(name: str, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name}: want C-ordered {dtype} {shape}, got {array.dtype} {array.shape}")


def _check_out(out: NDArray[Any], shape: tuple[int, int]) -> None:
    if out.dtype != _FLOAT32 or out.shape != shape or not out.flags.writeable:
        raise ValueError(f"out: want writeable float32 {shape}, got {out.dtype} {out.shape}")
    row_bytes, item_bytes = out.strides
    if out.size and (item_bytes != 4 or row_bytes < 4 * shape[1] or row_bytes % 4):
        raise ValueError(f"out: want rows apart and their numbers not, got strides {out.strides}")


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _descriptor(lookup: Lookup, table: StoredTable) -> dict[str, float]:
    weighted = lookup.first_weight is not None
    if lookup.pooling == "none" or (lookup.n_ids == 1 and not weighted):
        pooling = _COPY
    elif lookup.pooling == "max":
        pooling = _WEIGHTED_MAX if weighted else _MAX
    else:
        pooling = _WEIGHTED_SUM if weighted else _SUM
    return {
        "table": _c.address(table.pointer),
        "first_id": lookup.first_id,
        "n_ids": lookup.n_ids,
        "first_weight": lookup.first_weight or 0,
        "offset": lookup.offset,
        "pooling": pooling,
        "divisor": lookup.n_ids if lookup.pooling == "mean" else 1,
    }


def _numpy_lookup(lookup: Lookup, table: StoredTable, ids: I64, weights: F32, out: F32) -> None:
    bags = ids[lookup.first_id : lookup.first_id + lookup.n_ids]
    _check_inside(lookup, table, bags)
    to = out[:, lookup.offset : lookup.offset + lookup.width]
    if lookup.pooling == "none":
        to[...] = table.fetch(bags.T.ravel()).reshape(to.shape)
        return
    for k, bag in enumerate(bags):
        rows = table.fetch(bag)
        if lookup.first_weight is not None:
            weight = weights[lookup.first_weight + k][:, np.newaxis]
            rows = rows + weight if lookup.pooling == "max" else rows * weight
        if k == 0:
            to[...] = rows
        elif lookup.pooling == "max":
            np.maximum(to, rows, out=to)
        else:
            to += rows
    if lookup.pooling == "mean":
        to /= np.float32(lookup.n_ids)


def _check_inside(lookup: Lookup, table: StoredTable, bags: I64) -> None:
    """Check the ids of a lookup where they are row numbers, in order of position and row."""
    if table.header.keyed:
        return
    bad = np.argwhere((bags < 0) | (bags >= table.header.rows))
    if len(bad):
        k, row = bad[0]
        raise LookupFailed(
            f"{lookup.side} lookup {lookup.tensor}: id {bags[k, row]} at row {row} "
            f"is outside table {lookup.table} of {table.header.rows} rows"
        )
