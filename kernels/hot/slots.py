"""The hot rows of several tables that lie elsewhere, on a card: here is only who has which slot.

A slot's row is read by batches that *leased* it, and overwritten only while none does: a slot is
pinned from a batch's lease until its release, and from the moment a row is sent to it until that
has arrived, which is also when batches first find it. So whoever reads a slot reads one row, that
of its key, whatever comes in meanwhile. A row that is not worth a slot, or for which none is free,
is refused; nobody waits.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.hot._c import hot
from kernels.hot.plain import INVALID, PlainSlots
from kernels.hot.rows import NativeIndex, statistics_of
from kernels.hot.sizes import HotStatistics, Sizes

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

LOST = INVALID
"""``read_at`` of rows that did not get to their slots."""


@attrs.frozen(eq=False)
class Placed:
    """Slots for rows that come in.

    Attributes:
        places: int64 ``[n]``, of the rows among those that were offered, ascending.
        slots: int32 ``[n]``, in their tables.
        splits: int64 ``[n_tables + 1]``: table ``t`` has ``slots[splits[t]:splits[t + 1]]``.
    """

    places: I64
    slots: I32
    splits: I64

    def part(self, first: int, last: int) -> Placed:
        """Return those from ``first`` on, and before ``last``."""
        splits = self.splits.clip(first, last) - first
        return Placed(self.places[first:last], self.slots[first:last], splits)


class SlotSet:
    """Which keys of some tables have which slots. Not to be used from two threads at once.

    The keys of table ``t`` are ``keys[splits[t]:splits[t + 1]]``; arrays are C-ordered.

    Args:
        tables: Of each, how much is kept, and how old a row may be in seconds, counted from when
            it was asked for.
        native: False to use Python even where C is there.
        seed: As ``HotRows``.
    """

    def __init__(
        self,
        tables: Sequence[tuple[Sizes, float]],
        *,
        native: bool = True,
        seed: int | None = None,
    ) -> None:
        self.sizes = tuple(sizes for sizes, _ in tables)
        library = hot() if native else None
        seed = int.from_bytes(os.urandom(8)) if seed is None else seed
        self._library: Any = None
        self._plain: list[PlainSlots] = []
        self._natives: list[NativeIndex] = []
        if library is None:
            self._plain = [PlainSlots(sizes, stale_s, seed) for sizes, stale_s in tables]
            return
        self._natives = [
            NativeIndex(library, sizes, stale_s, seed, with_rows=False) for sizes, stale_s in tables
        ]
        self._library = library
        self._states = library.ffi.new("hot *[]", [each.state for each in self._natives])

    def lease(self, keys: I64, splits: I64, now: float) -> tuple[I32, I64]:
        """Find the slots of rows that are there and not too old, and pin them until ``release``.

        Args:
            keys: int64 ``[n]``, of one batch, each once.
            splits: int64 ``[n_tables + 1]``.
            now: In seconds.

        Returns:
            int32 ``[n]``, the slots, ``~i`` where the ``i``-th miss is; and int64 ``[n_misses]``,
            the misses' positions in ``keys``, ascending.
        """
        self._check(len(keys), splits)
        if self._library is None:
            return self._lease_plain(keys, splits, now)
        slots, misses = np.empty(len(keys), np.int32), np.empty(len(keys), np.int64)
        n_misses = self._library.lib.tb_hot_lease_all(
            self._states,
            len(self._natives),
            self._i64(keys),
            self._i64(splits),
            now,
            self._i32(slots),
            self._i64(misses),
        )
        return slots, misses[:n_misses]

    def release(self, slots: I32, splits: I64) -> None:
        """Give back what ``lease`` returned: nothing reads these slots for it any more."""
        self._check(len(slots), splits)
        if self._library is None:
            for table, first, last in self._each(splits):
                mine = slots[first:last]
                table.pin(mine[mine >= 0].astype(np.int64), -1)
            return
        self._library.lib.tb_hot_release_all(
            self._states, len(self._natives), self._i32(slots), self._i64(splits)
        )

    def place(self, keys: I64, splits: I64, kept: NDArray[np.bool_], read_at: float) -> Placed:
        """Give slots to rows that were fetched, to those that are worth one.

        They are pinned, and found by nobody, until ``arrived``.

        Args:
            keys: int64 ``[n]``.
            splits: int64 ``[n_tables + 1]``.
            kept: bool ``[n]``, which keys it is about.
            read_at: When the fetch was *sent*.
        """
        self._check(len(keys), splits)
        if self._library is None:
            return self._place_plain(keys, splits, kept, read_at)
        n_tables = len(self._natives)
        places, slots = np.empty(len(keys), np.int64), np.empty(len(keys), np.int32)
        counts = np.empty(n_tables, np.int64)
        n = self._library.lib.tb_hot_place_all(
            self._states,
            n_tables,
            self._i64(keys),
            self._i64(splits),
            self._library.ffi.from_buffer("uint8_t[]", kept),
            read_at,
            self._i64(places),
            self._i32(slots),
            self._i64(counts),
        )
        return Placed(places[:n], slots[:n], _splits(counts))

    def arrived(self, placed: Placed, read_at: float) -> None:
        """Note that rows are in their slots; those that did not change meanwhile are found now.

        Args:
            placed: The rows.
            read_at: As in ``place``; or ``LOST``.
        """
        if self._library is None:
            for table, first, last in self._each(placed.splits):
                table.arrived(placed.slots[first:last].astype(np.int64), read_at)
            return
        slots = np.ascontiguousarray(placed.slots)
        self._library.lib.tb_hot_arrived_all(
            self._states,
            len(self._natives),
            self._i32(slots),
            self._i64(placed.splits),
            read_at,
        )

    def invalidate(self, table: int, keys: I64) -> None:
        """Let no row of these keys, int64 ``[n]``, be leased that was placed before."""
        (self._plain or self._natives)[table].invalidate(keys)

    def statistics(self) -> list[HotStatistics]:
        """Return what was done so far, of each table."""
        stores: Sequence[NativeIndex | PlainSlots] = self._plain or self._natives
        return [statistics_of(*pair) for pair in zip(stores, self.sizes, strict=True)]

    def _check(self, n: int, splits: I64) -> None:
        if (
            splits.dtype != np.int64
            or splits.shape != (len(self.sizes) + 1,)
            or splits[0] != 0
            or splits[-1] != n
            or np.diff(splits).min(initial=0) < 0
        ):
            raise ValueError(
                f"splits: want those of {n} keys of {len(self.sizes)} tables, got {splits}"
            )

    def _i64(self, array: I64) -> Any:  # noqa: ANN401 - cffi is untyped
        return self._library.ffi.from_buffer("int64_t[]", array)

    def _i32(self, array: I32) -> Any:  # noqa: ANN401 - cffi is untyped
        return self._library.ffi.from_buffer("int32_t[]", array)

    # In Python

    def _each(self, splits: I64) -> list[tuple[PlainSlots, int, int]]:
        pairs = itertools.pairwise(splits.tolist())
        return [(table, *pair) for table, pair in zip(self._plain, pairs, strict=True)]

    def _lease_plain(self, keys: I64, splits: I64, now: float) -> tuple[I32, I64]:
        slots = np.empty(len(keys), np.int64)
        for table, first, last in self._each(splits):
            slots[first:last] = table.lease(keys[first:last], now)
        misses = np.flatnonzero(slots < 0)
        slots[misses] = ~np.arange(len(misses))
        return slots.astype(np.int32), misses

    def _place_plain(
        self, keys: I64, splits: I64, kept: NDArray[np.bool_], read_at: float
    ) -> Placed:
        slots = np.full(len(keys), -1, np.int64)
        counts = []
        for table, first, last in self._each(splits):
            chosen = first + np.flatnonzero(kept[first:last])
            slots[chosen] = table.place(keys[chosen], read_at)
            counts.append(int(np.count_nonzero(slots[first:last] >= 0)))
        places = np.flatnonzero(slots >= 0)
        return Placed(places, slots[places].astype(np.int32), _splits(np.array(counts, np.int64)))


def _splits(counts: I64) -> I64:
    splits = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=splits[1:])
    return splits
