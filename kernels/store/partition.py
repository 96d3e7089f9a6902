"""Which segment of a table a key is of. Segments are the unit of building, placing and opening.

A keyed table is divided by a hash of the key, so that segments are alike in size and in traffic; a
table of dense rows into contiguous ranges. ``hash.h`` computes the same in C.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels.errors import LookupFailed

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

# The hash's upper half times this must stay within 64 bits.
MAX_SEGMENTS: Final = 2**31 - 1


def mix64(keys: NDArray[Any]) -> U64:
    """Return the finaliser of splitmix64 of each key: a bijection of 64-bit numbers.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
    constants of Stafford's variant 13.

    Args:
        keys: int64 or uint64, of any shape.
    """
    x = keys.view(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def segment_of(keys: I64, *, n_segments: int, rows: int, keyed: bool) -> NDArray[np.int32]:
    """Return the segment of each key.

    Args:
        keys: int64, of any shape: keys, any number being one, or row numbers of a dense table.
        n_segments: Of the table.
        rows: Of the table; only a dense table's matter.
        keyed: Whether the table has keys.

    Raises:
        LookupFailed: A row number is outside a dense table.
        ValueError: ``n_segments`` is out of range.
    """
    check_n_segments(n_segments)
    if keyed:
        upper = mix64(keys) >> np.uint64(32)
        return ((upper * np.uint64(n_segments)) >> np.uint64(32)).astype(np.int32)
    outside = (keys < 0) | (keys >= rows)
    if outside.any():
        raise LookupFailed(f"row {keys[outside][0]} is outside a table of {rows} rows")
    return (keys // rows_per_segment(rows, n_segments)).astype(np.int32)


def rows_per_segment(rows: int, n_segments: int) -> int:
    """Return the rows of each segment of a dense table; the last ones may have fewer, or none."""
    return max(1, -(-rows // n_segments))


def dense_segment(segment: int, *, rows: int, n_segments: int) -> range:
    """Return the rows of one segment of a dense table."""
    size = rows_per_segment(rows, n_segments)
    return range(min(segment * size, rows), min((segment + 1) * size, rows))


def check_n_segments(n_segments: int) -> None:
    """Check a number of segments.

    Raises:
        ValueError: It is out of range.
    """
    if not 1 <= n_segments <= MAX_SEGMENTS:
        raise ValueError(f"n_segments: want 1 to {MAX_SEGMENTS}, got {n_segments}")
