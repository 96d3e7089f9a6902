"""Rows of several tables to their places: each as many bytes as its table's rows have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.hot._c import hot


def copy_rows(
    out: NDArray[np.uint8],
    to: NDArray[np.int64],
    rows: NDArray[np.uint8],
    at: NDArray[np.int64],
    sizes: NDArray[np.int64],
    *,
    native: bool = True,
) -> None:
    """Copy ``sizes[i]`` bytes from ``rows[at[i]:]`` to ``out[to[i]:]``, for each ``i``.

    Args:
        out: uint8 ``[n_bytes]``, C-ordered.
        to: int64 ``[n]``.
        rows: uint8 ``[n_bytes]``, C-ordered.
        at: int64 ``[n]``.
        sizes: int64 ``[n]``; a few different numbers.
        native: False to use numpy even where C is there.

    Raises:
        ValueError: A place is outside of its array.
    """
    for name, array, places in (("out", out, to), ("rows", rows, at)):
        if len(places) and (places.min() < 0 or (places + sizes).max() > len(array)):
            raise ValueError(f"{name}: rows lie outside of {len(array)} bytes")
    library = hot() if native else None
    if library is None:
        for size in np.unique(sizes).tolist():
            chosen = sizes == size
            span = np.arange(size)
            out[to[chosen, np.newaxis] + span] = rows[at[chosen, np.newaxis] + span]
        return
    from_buffer = library.ffi.from_buffer
    library.lib.tb_copy_rows(
        from_buffer("uint8_t[]", out, require_writable=True),
        from_buffer("int64_t[]", np.ascontiguousarray(to)),
        from_buffer("uint8_t[]", rows),
        from_buffer("int64_t[]", np.ascontiguousarray(at)),
        from_buffer("int64_t[]", np.ascontiguousarray(sizes)),
        len(to),
    )
