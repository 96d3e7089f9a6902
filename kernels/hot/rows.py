"""The hot rows of one table: bounded memory, admission by frequency, and no row past its bound."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kernels._native import Native
from kernels.hot._c import hot
from kernels.hot.plain import PlainIndex, PlainRows
from kernels.hot.sizes import GROUP, HotStatistics, Sizes

_ALIGNMENT: Final = 64


class HotRows:
    """A table's hot rows, encoded. Not to be used from two threads at once.

    Times are of one clock, the caller's, in seconds. ``store`` is for this package alone.

    Args:
        sizes: How much is kept.
        stale_s: How old a row may be, counted from when it was asked for.
        native: False to use Python even where C is there.
        seed: Of the hash, 64 bits; without it, any. Keys come from clients, who must not know which
            of them collide.
    """

    def __init__(
        self, sizes: Sizes, stale_s: float, *, native: bool = True, seed: int | None = None
    ) -> None:
        if not stale_s >= 0:
            raise ValueError(f"stale_s: want at least 0, got {stale_s}")
        self.sizes = sizes
        self.stale_s = stale_s
        library = hot() if native else None
        seed = int.from_bytes(os.urandom(8)) if seed is None else seed
        self.store: NativeRows | PlainRows
        if library is None:
            self.store = PlainRows(sizes, stale_s, seed)
        else:
            self.store = NativeRows(library, sizes, stale_s, seed)

    def take(
        self, keys: NDArray[np.int64], now: float, out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """Copy the rows that are held, and not older than the bound, into ``out``.

        Args:
            keys: int64 ``[n]``, of one batch, each once: a key counts as asked for once a batch.
            now: In seconds.
            out: uint8 ``[n, row_bytes]``, C-ordered; the rows of misses stay as they are.

        Returns:
            int64, the positions in ``keys`` of those that missed, ascending.

        Raises:
            ValueError: An argument has another shape, dtype or memory layout.
        """
        self._check(keys, out)
        return self.store.take(keys, now, out)

    def admit(self, keys: NDArray[np.int64], rows: NDArray[np.uint8], read_at: float) -> None:
        """Take rows in that were fetched, those that are worth a place.

        Args:
            keys: int64 ``[n]``.
            rows: uint8 ``[n, row_bytes]``, C-ordered; copied.
            read_at: When the fetch was *sent*, from which their age counts. A row that is held
                already is replaced, unless it was asked for later than that.

        Raises:
            ValueError: As ``take``.
        """
        self._check(keys, rows)
        self.store.admit(keys, rows, read_at)

    def invalidate(self, keys: NDArray[np.int64]) -> None:
        """Let no row of these keys, int64 ``[n]``, be taken that was admitted before.

        Rows that are being fetched are for whoever fetches them to leave out (``Flights``).
        """
        self._check(keys, None)
        self.store.invalidate(keys)

    def statistics(self) -> HotStatistics:
        """Return what was done so far."""
        return statistics_of(self.store, self.sizes)

    def _check(self, keys: NDArray[np.int64], rows: NDArray[np.uint8] | None) -> None:
        if keys.dtype != np.int64 or keys.ndim != 1 or not keys.flags.c_contiguous:
            raise ValueError(f"keys: want int64 [n], got {keys.dtype} {keys.shape}")
        if rows is None:
            return
        want = (len(keys), self.sizes.row_bytes)
        if rows.dtype != np.uint8 or rows.shape != want or not rows.flags.c_contiguous:
            raise ValueError(f"rows: want C-ordered uint8 {want}, got {rows.dtype} {rows.shape}")


def statistics_of(store: NativeIndex | PlainIndex, sizes: Sizes) -> HotStatistics:
    """Return what was done with a table's hot rows."""
    counters = {
        name: int(getattr(store, name))
        for name in HotStatistics.__annotations__
        if name != "size_bytes"
    }
    return HotStatistics(size_bytes=sizes.size_bytes, **counters)


class NativeIndex:
    """State of the C, on arrays that belong to this: with places for rows, or with pins."""

    def __init__(
        self, native: Native, sizes: Sizes, stale_s: float, seed: int, *, with_rows: bool
    ) -> None:
        self.native = native
        n, n_groups = sizes.capacity, sizes.capacity // GROUP
        arrays = {
            "cells": _zeros(8 * sizes.n_cells),
            "entries": _zeros(16 * n),
            "uses": _zeros(n),
            "use_periods": _zeros(4 * n_groups),
            "counts": _zeros(64 * sizes.n_blocks),
            "count_periods": _zeros(4 * sizes.n_blocks),
        }
        if with_rows:
            arrays["rows"] = _zeros(n * sizes.row_bytes)
        else:
            arrays["pins"] = _zeros(4 * n)
        self._arrays = arrays
        self.state: Any = native.ffi.new("hot *")
        for name in ("capacity", "n_cells", "n_blocks", "row_bytes", "period_keys"):
            setattr(self.state, name, getattr(sizes, name))
        self.state.stale_s = stale_s
        self.state.seed = seed
        for name, array in arrays.items():
            setattr(self.state, name, array.__array_interface__["data"][0])

    def __getattr__(self, name: str) -> int:
        counter: int = getattr(self.state, name)
        return counter

    def invalidate(self, keys: NDArray[np.int64]) -> None:
        """As ``HotRows.invalidate``."""
        buffer = self.native.ffi.from_buffer("int64_t[]", keys)
        self.native.lib.tb_hot_invalidate(self.state, buffer, len(keys))


class NativeRows(NativeIndex):
    """The same as ``PlainRows`` in C."""

    def __init__(self, native: Native, sizes: Sizes, stale_s: float, seed: int) -> None:
        super().__init__(native, sizes, stale_s, seed, with_rows=True)

    def take(
        self, keys: NDArray[np.int64], now: float, out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """As ``HotRows.take``."""
        ffi, n = self.native.ffi, len(keys)
        misses = np.empty(n, np.int64)
        n_misses = self.native.lib.tb_hot_take(
            self.state,
            ffi.from_buffer("int64_t[]", keys),
            n,
            now,
            ffi.from_buffer("uint8_t[]", out, require_writable=True),
            ffi.from_buffer("int64_t[]", misses),
        )
        return misses[:n_misses]

    def admit(self, keys: NDArray[np.int64], rows: NDArray[np.uint8], read_at: float) -> None:
        """As ``HotRows.admit``."""
        from_buffer = self.native.ffi.from_buffer
        self.native.lib.tb_hot_admit(
            self.state,
            from_buffer("int64_t[]", keys),
            len(keys),
            from_buffer("uint8_t[]", rows),
            read_at,
        )


def _zeros(size: int) -> NDArray[np.uint8]:
    """Return zeros that begin with a line of memory, which is taken once it is written to."""
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[start : start + size]
