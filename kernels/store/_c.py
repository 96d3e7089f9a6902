"""The C of this package, compiled at first use; callers use numpy where it is not there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

from kernels._native import Native, NativeUnavailable, load

_CDEF: Final = """
int64_t tb_encode(const float *rows, int64_t n, int64_t dim, int dtype, uint8_t *out);
void tb_decode(const uint8_t *rows, int64_t n, int64_t dim, int dtype, float *out);
int64_t tb_unique(const int64_t *keys, int64_t n, int64_t n_segments, int64_t segment_rows,
                  int64_t rows, const int32_t *group_of, int64_t n_groups, uint64_t seed,
                  int64_t *found, int64_t *splits, int32_t *slots, int64_t *bad);
"""


@functools.cache
def _load() -> Native | NativeUnavailable:
    try:
        return load(Path(__file__).with_name("store.c"), _CDEF)
    except NativeUnavailable as error:
        return error


def store() -> Native | None:
    """Return the library, or None where there is no compiler."""
    native = _load()
    return native if isinstance(native, Native) else None
