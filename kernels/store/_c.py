"""The C of this package, compiled at first use; callers use numpy where it is not there."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any, Final

from kernels._native import Native, NativeUnavailable, load

# What table.h defines, for whoever passes it to C.
STRUCTURES: Final = """
typedef struct {
    uintptr_t rows, buckets; int64_t n_rows, first_row, home_buckets, n_buckets;
} segment;
typedef struct delta delta;
typedef struct {
    const segment *segments;
    int64_t n_segments, segment_rows, rows, dim, row_bytes, dtype;
    uintptr_t default_row;
    const delta *changes;
    int64_t unseen;
} table;
"""
_CDEF: Final = """
int64_t tb_encode(const float *rows, int64_t n, int64_t dim, int dtype, uint8_t *out);
void tb_decode(const uint8_t *rows, int64_t n, int64_t dim, int dtype, float *out);
int64_t tb_unique(const int64_t *keys, int64_t n, int64_t n_segments, int64_t segment_rows,
                  int64_t rows, const int32_t *group_of, int64_t n_groups, uint64_t seed,
                  int64_t *found, int64_t *splits, int32_t *slots, int64_t *bad);
int64_t tb_find(const table *t, const int64_t *keys, int64_t n, int64_t *positions, int64_t *bad);
int64_t tb_fetch(table *t, const int64_t *keys, int64_t n, uint8_t *encoded, float *decoded,
                 int64_t *bad);
delta *tb_delta_new(int64_t row_bytes);
void tb_delta_free(delta *d);
int64_t tb_delta_put(delta *d, const int64_t *keys, const uint8_t *rows, int64_t n);
void tb_delta_find(const delta *d, const int64_t *keys, int64_t n, int64_t *rows);
void tb_delta_copy(const delta *d, int64_t first, int64_t n, int64_t *keys, uint8_t *rows);
int64_t tb_delta_len(const delta *d);
int64_t tb_delta_bytes(const delta *d);
"""


_loading: Final = threading.Lock()


def _load() -> Native | NativeUnavailable:
    # Of two threads at once, both would load it, and their structures would not mix.
    with _loading:
        return _load_once()


@functools.cache
def _load_once() -> Native | NativeUnavailable:
    try:
        return load(Path(__file__).with_name("store.c"), STRUCTURES + _CDEF)
    except NativeUnavailable as error:
        return error


def store() -> Native | None:
    """Return the library, or None where there is no compiler."""
    native = _load()
    return native if isinstance(native, Native) else None


def address(pointer: Any) -> int:  # noqa: ANN401 - cffi is untyped
    """Return the address of a structure, for another library."""
    native = _load()
    assert isinstance(native, Native)
    return int(native.ffi.cast("uintptr_t", pointer))
