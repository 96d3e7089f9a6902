"""The hot rows in Python: what ``hot.c`` does, decision for decision.

The oracle of the tests, and what serves where there is no C compiler, at some microseconds a key.
"""

from __future__ import annotations

import math
import sys
from typing import Final

import attrs
import numpy as np
from numpy.typing import NDArray

from kernels.hot.sizes import GROUP, Sizes

_COUNTERS: Final = 128
_PROBES: Final = 4
_MOST_COUNT: Final = 15
_MOST_USES: Final = 255
_WORD: Final = (1 << 64) - 1
INVALID: Final = -math.inf
"""Stands for the time at which a row was asked for, if it changed since."""
COMING: Final = -sys.float_info.max
"""Stands for it as long as the row is on its way to its slot."""


def mix64(key: int) -> int:
    """Return a key's hash: the finaliser of splitmix64 (Steele and others, OOPSLA 2014)."""
    x = key & _WORD
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _WORD
    return x ^ (x >> 31)


@attrs.define(eq=False)
class Sketch:
    """Counts of keys that are not held, of four counters a key, which others may share.

    A count-min sketch (Cormode and Muthukrishnan 2005) in blocks, so that a key's counters lie side
    by side. Blocks are halved when they are next looked at, for all periods that have passed.
    """

    n_blocks: int
    seed: int
    _counts: NDArray[np.uint8] = attrs.field(init=False)
    _periods: list[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._counts = np.zeros((self.n_blocks, _COUNTERS), np.uint8)
        self._periods = [0] * self.n_blocks

    def _counters(self, key: int, period: int) -> tuple[NDArray[np.uint8], list[int]]:
        hashed = mix64(key ^ self.seed)
        block = (hashed & 0xFFFFFFFF) * self.n_blocks >> 32
        self._counts[block] >>= min(period - self._periods[block], 7)
        self._periods[block] = period
        bits = (hashed * 0x9E3779B97F4A7C15 & _WORD) >> 44
        return self._counts[block], [32 * i + (bits >> 5 * i & 31) for i in range(_PROBES)]

    def estimate(self, key: int, period: int) -> int:
        """Return how often a key was counted lately; too much, if at all wrong."""
        counts, at = self._counters(key, period)
        return int(counts[at].min())

    def count(self, key: int, period: int) -> None:
        """Count a key once."""
        counts, at = self._counters(key, period)
        counts[at] = np.minimum(counts[at] + 1, _MOST_COUNT)

    def count_at_least(self, key: int, least: int, period: int) -> None:
        """Let a key's estimate be at least so much, if a counter can hold it."""
        counts, at = self._counters(key, period)
        counts[at] = np.maximum(counts[at], min(least, _MOST_COUNT))


@attrs.define(eq=False)
class PlainIndex:
    """Which slot each key's row has: the policy, without the rows."""

    sizes: Sizes
    stale_s: float
    seed: int
    n_rows: int = 0
    hits: int = 0
    misses: int = 0
    stale: int = 0
    admitted: int = 0
    refreshed: int = 0
    refused: int = 0
    evicted: int = 0
    invalidated: int = 0
    _slots: dict[int, int] = attrs.field(factory=dict, init=False)
    _keys: list[int] = attrs.field(factory=list, init=False)
    _read_at: list[float] = attrs.field(factory=list, init=False)
    _pins: NDArray[np.uint32] = attrs.field(init=False)
    _uses: NDArray[np.uint8] = attrs.field(init=False)
    _periods: list[int] = attrs.field(init=False)
    _sketch: Sketch = attrs.field(init=False)
    _hand: int = 0
    _period: int = 0
    _n_asked: int = 0

    def __attrs_post_init__(self) -> None:
        n = self.sizes.capacity
        self._pins = np.zeros(n, np.uint32)
        self._uses = np.zeros((n // GROUP, GROUP), np.uint8)
        self._periods = [0] * (n // GROUP)
        self._sketch = Sketch(self.sizes.n_blocks, self.seed)

    def look(self, keys: NDArray[np.int64], now: float) -> list[int]:
        """Return the slots of keys' rows, -1 for those that are not there or too old."""
        found = []
        for key in keys.tolist():
            slot = self._slots.get(key, -1)
            if slot < 0:
                self._sketch.count(key, self._period)
            else:
                uses = self._uses_of(slot // GROUP)
                uses[slot % GROUP] = min(int(uses[slot % GROUP]) + 1, _MOST_USES)
                read_at = self._read_at[slot]
                if not (read_at > COMING and now - read_at <= self.stale_s):
                    self.stale += read_at != COMING
                    slot = -1
            found.append(slot)
        n_misses = found.count(-1)
        self.hits += len(keys) - n_misses
        self.misses += n_misses
        self._n_asked += len(keys)
        self._period += self._n_asked // self.sizes.period_keys
        self._n_asked %= self.sizes.period_keys
        return found

    def admit_key(self, key: int, read_at: float) -> int:
        """Return a slot for a row that comes in, -1 if it gets none; its time is for the caller."""
        slot = self._slots.get(key, -1)
        if slot >= 0:
            if self._read_at[slot] > read_at:
                return -1
            if self._pins[slot]:
                self.refused += 1
                return -1
            self.refreshed += 1
            return slot
        uses = self._sketch.estimate(key, self._period)
        slot = self._make_room(uses)
        if slot < 0:
            self.refused += 1
            return -1
        self._slots[key] = slot
        self._keys[slot] = key
        self._uses_of(slot // GROUP)[slot % GROUP] = uses
        self.admitted += 1
        return slot

    def invalidate(self, keys: NDArray[np.int64]) -> None:
        """As ``HotRows.invalidate``."""
        for key in keys.tolist():
            slot = self._slots.get(key, -1)
            if slot >= 0:
                self.invalidated += self._read_at[slot] > INVALID
                self._read_at[slot] = INVALID

    def _make_room(self, uses: int) -> int:
        if self.n_rows < self.sizes.capacity:
            self._keys.append(0)
            self._read_at.append(INVALID)
            self.n_rows += 1
            return self.n_rows - 1
        group = self._hand
        self._hand = (group + 1) % len(self._uses)
        of_group = self._uses_of(group).astype(np.int64)
        of_group[self._pins[group * GROUP : (group + 1) * GROUP] > 0] = _MOST_USES + 1
        least = int(of_group.argmin())
        if uses <= of_group[least]:
            return -1
        slot = group * GROUP + least
        key = self._keys[slot]
        self._sketch.count_at_least(key, int(of_group[least]), self._period)
        del self._slots[key]
        self.evicted += 1
        return slot

    def _uses_of(self, group: int) -> NDArray[np.uint8]:
        uses: NDArray[np.uint8] = self._uses[group]
        uses >>= min(self._period - self._periods[group], 7)
        if self._period - self._periods[group] > 7:
            uses[:] = 0
        self._periods[group] = self._period
        return uses


@attrs.define(eq=False)
class PlainRows(PlainIndex):
    """Implements what ``HotRows`` is made of."""

    _rows: NDArray[np.uint8] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._rows = np.empty((self.sizes.capacity, self.sizes.row_bytes), np.uint8)

    def take(
        self, keys: NDArray[np.int64], now: float, out: NDArray[np.uint8]
    ) -> NDArray[np.int64]:
        """As ``HotRows.take``."""
        slots = np.array(self.look(keys, now), np.int64)
        out[slots >= 0] = self._rows[slots[slots >= 0]]
        return np.flatnonzero(slots < 0)

    def admit(self, keys: NDArray[np.int64], rows: NDArray[np.uint8], read_at: float) -> None:
        """As ``HotRows.admit``."""
        for key, row in zip(keys.tolist(), rows, strict=True):
            slot = self.admit_key(key, read_at)
            if slot >= 0:
                self._read_at[slot] = read_at
                self._rows[slot] = row


@attrs.define(eq=False)
class PlainSlots(PlainIndex):
    """Implements what ``SlotSet`` is made of, for one table."""

    def lease(self, keys: NDArray[np.int64], now: float) -> NDArray[np.int64]:
        """Return slots, int64 ``[n]``, which are pinned; -1 for misses."""
        slots = np.array(self.look(keys, now), np.int64)
        self.pin(slots[slots >= 0], 1)
        return slots

    def place(self, keys: NDArray[np.int64], read_at: float) -> NDArray[np.int64]:
        """Return slots for rows that come in, int64 ``[n]``, which are pinned; -1 for none."""
        slots = []
        for key in keys.tolist():
            slot = self.admit_key(key, read_at)
            if slot >= 0:
                self._read_at[slot] = COMING
                self._pins[slot] = 1
            slots.append(slot)
        return np.array(slots, np.int64)

    def arrived(self, slots: NDArray[np.int64], read_at: float) -> None:
        """As ``SlotSet.arrived``."""
        for slot in slots.tolist():
            if self._read_at[slot] == COMING:
                self._read_at[slot] = read_at
        self.pin(slots, -1)

    def pin(self, slots: NDArray[np.int64], by: int) -> None:
        """Pin slots once more, or once less."""
        np.add.at(self._pins, slots, np.array(by).astype(np.uint32))
