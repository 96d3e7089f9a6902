"""The C of this package, compiled at first use; callers use Python where it is not there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from kernels._native import Native, NativeUnavailable, load

_CDEF: Final = """
typedef struct {
    uint64_t seed;
    int64_t capacity, n_cells, n_blocks, row_bytes, period_keys;
    double stale_s;
    uintptr_t cells, entries, rows, uses, use_periods, pins, counts, count_periods;
    int64_t n_rows, hand, n_asked;
    uint32_t period;
    int64_t hits, misses, stale, admitted, refreshed, refused, evicted, invalidated;
} hot;
int64_t tb_hot_take(hot *h, const int64_t *keys, int64_t n, double now, uint8_t *out,
                    int64_t *misses);
void tb_hot_admit(hot *h, const int64_t *keys, int64_t n, const uint8_t *rows, double read_at);
int64_t tb_hot_take_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                        double now, uint8_t *out, int64_t *misses);
void tb_hot_admit_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                      const uint8_t *rows, const uint8_t *kept, double read_at);
void tb_hot_invalidate(hot *h, const int64_t *keys, int64_t n);
int64_t tb_hot_lease_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                         double now, int32_t *slots, int64_t *misses);
int64_t tb_hot_place_all(hot **tables, int64_t n_tables, const int64_t *keys, const int64_t *splits,
                         const uint8_t *kept, double read_at, int64_t *places, int32_t *slots,
                         int64_t *counts);
void tb_hot_arrived_all(hot **tables, int64_t n_tables, const int32_t *slots, const int64_t *splits,
                        double read_at);
void tb_hot_release_all(hot **tables, int64_t n_tables, const int32_t *slots,
                        const int64_t *splits);
typedef struct { uint64_t seed; uintptr_t cells; int64_t n_cells, n_used; } claims;
int64_t tb_claims_take(claims *c, const int64_t *tables, const int64_t *keys, int64_t n,
                       int64_t oldest, int64_t next, int64_t *numbers);
void tb_claims_drop(claims *c, const int64_t *tables, const int64_t *keys, int64_t n,
                    int64_t first, int64_t last, int64_t *numbers);
void tb_claims_move(claims *to, const claims *from);
void tb_copy_rows(uint8_t *out, const int64_t *to, const uint8_t *rows, const int64_t *from,
                  const int64_t *sizes, int64_t n);
"""


@functools.cache
def _load() -> Native | NativeUnavailable:
    try:
        return load(Path(__file__).with_name("hot.c"), _CDEF)
    except NativeUnavailable as error:
        return error


def hot() -> Native | None:
    """Return the library, or None where there is no compiler."""
    native = _load()
    return native if isinstance(native, Native) else None


def implementation() -> str:
    """Say in one line what serves hot rows, compiling it if need be."""
    native = _load()
    if isinstance(native, Native):
        return f"hot rows: C, compiled by {native.description}"
    return f"hot rows: Python, some microseconds a key ({native})"
