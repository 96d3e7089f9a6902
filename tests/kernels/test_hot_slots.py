"""Hot rows on a card, as values: who may write to a slot, and what is found there."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.hot import LOST, Placed, Sizes, SlotSet, implementation
from kernels.hot.sizes import GROUP

HAS_C = implementation().startswith("hot rows: C")
BOTH = [
    pytest.param(True, id="C", marks=pytest.mark.skipif(not HAS_C, reason="no C compiler")),
    pytest.param(False, id="python"),
]
STALE_S = 4.0
N_TABLES = 2
Key = tuple[int, int]


def make(*, native: bool, n_groups: int = 1, period: int = 1 << 16) -> SlotSet:
    tables = []
    for row_bytes in (8, 2):
        sizes = Sizes.fitting(row_bytes, n_groups * GROUP * row_bytes, overhead_bytes=0)
        assert sizes.capacity == n_groups * GROUP
        assert sizes.size_bytes == n_groups * GROUP * row_bytes
        tables.append((attrs.evolve(sizes, period_keys=period), STALE_S))
    return SlotSet(tables, native=native, seed=3)


def splits_of(*listed: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *map(len, listed)]).astype(np.int64)


def joined(*listed: list[int]) -> NDArray[np.int64]:
    return np.array([key for keys in listed for key in keys], np.int64)


KEYS = st.lists(
    st.one_of(st.integers(0, 10), st.integers(-30, 30)), min_size=0, max_size=40, unique=True
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["lease", "lease", "release", "place", "place", "arrive", "lose", "change"]
        ),
        KEYS,
        KEYS,
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=60,
)


@attrs.define
class Leased:
    """A batch that reads slots, and the rows that it found there."""

    slots: NDArray[np.int32]
    splits: NDArray[np.int64]
    rows: dict[tuple[int, int], tuple[int, int]]


@attrs.define
class Card:
    """A card's memory: every slot has the row of a key and its number, or is being written to."""

    hot: SlotSet
    now: float = 0.0
    n_rows: int = 0
    slots: dict[tuple[int, int], tuple[int, int] | None] = attrs.field(factory=dict)
    leased: list[Leased] = attrs.field(factory=list)
    coming: list[tuple[Placed, float, list[tuple[int, int, int, int]]]] = attrs.field(factory=list)
    # Of each key's rows, those of lower numbers are out of date; and when each was asked for.
    oldest: dict[Key, int] = attrs.field(factory=dict)
    asked_at: dict[int, float] = attrs.field(factory=dict)

    def lease(self, *listed: list[int]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        keys, splits = joined(*listed), splits_of(*listed)
        slots, misses = self.hot.lease(keys, splits, self.now)
        assert (slots[misses] == ~np.arange(len(misses))).all()
        assert (np.delete(slots, misses) >= 0).all()
        rows = {}
        for table in range(N_TABLES):
            for at in range(splits[table], splits[table + 1]):
                if slots[at] < 0:
                    continue
                row = self.slots[table, int(slots[at])]
                assert row is not None, "a slot that is being written to was leased"
                key, number = row
                assert key == keys[at]
                assert number >= self.oldest.get((table, key), 0)
                assert self.now - self.asked_at[number] <= STALE_S
                rows[table, int(slots[at])] = row
        self.leased.append(Leased(slots, splits, rows))
        return slots, misses

    def release(self, which: int) -> None:
        if self.leased:
            each = self.leased.pop(which % len(self.leased))
            self.check(each)
            self.hot.release(each.slots, each.splits)

    def check(self, each: Leased) -> None:
        for at, row in each.rows.items():
            assert self.slots[at] == row, "a slot was overwritten while it was read"

    def place(self, age: float, *listed: list[int], but: int = 0) -> Placed:
        keys, splits = joined(*listed), splits_of(*listed)
        kept = np.arange(len(keys)) % 5 >= but
        placed = self.hot.place(keys, splits, kept, self.now - age)
        assert kept[placed.places].all()
        rows = []
        for table in range(N_TABLES):
            for i in range(placed.splits[table], placed.splits[table + 1]):
                slot = table, int(placed.slots[i])
                self.slots[slot] = None
                self.n_rows += 1
                self.asked_at[self.n_rows] = self.now - age
                rows.append((*slot, int(keys[placed.places[i]]), self.n_rows))
        assert len({row[:2] for row in rows}) == len(rows)
        self.coming.append((placed, self.now - age, rows))
        for each in self.leased:
            self.check(each)
        return placed

    def arrive(self, which: int, *, lost: bool = False) -> None:
        if not self.coming:
            return
        placed, read_at, rows = self.coming.pop(which % len(self.coming))
        for table, slot, key, number in rows:
            self.slots[table, slot] = None if lost else (key, number)
        self.hot.arrived(placed, LOST if lost else read_at)

    def change(self, *listed: list[int]) -> None:
        for table, keys in enumerate(listed):
            self.hot.invalidate(table, np.array(keys, np.int64))
            for key in keys:
                self.oldest[table, key] = self.n_rows + 1

    def step(self, what: str, first: list[int], second: list[int], n: int) -> object:
        self.now += n / 2
        if what == "lease":
            return [array.tolist() for array in self.lease(first, second)]
        if what == "place":
            return self.place(n, first, second, but=1).slots.tolist()
        if what == "change":
            self.change(first, second)
        elif what == "release":
            self.release(n)
        else:
            self.arrive(n, lost=what == "lose")
        return None


@pytest.mark.parametrize("native", BOTH)
@settings(deadline=None, max_examples=150)
@given(steps=STEPS, n_groups=st.integers(1, 2))
def test_a_leased_slot_has_one_row_of_its_key_until_it_is_released(
    native: bool, steps: list[tuple[str, list[int], list[int], int]], n_groups: int
) -> None:
    card = Card(make(native=native, n_groups=n_groups))
    for step in steps:
        card.step(*step)
    for each in card.leased:
        card.check(each)


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
@settings(deadline=None, max_examples=150)
@given(steps=STEPS, period=st.sampled_from([7, 100, 1 << 16]))
def test_c_decides_as_python_does(
    steps: list[tuple[str, list[int], list[int], int]], period: int
) -> None:
    native, plain = (Card(make(native=native, period=period)) for native in (True, False))
    for step in steps:
        assert native.step(*step) == plain.step(*step)
        assert native.hot.statistics() == plain.hot.statistics()


@pytest.mark.parametrize("native", BOTH)
def test_a_row_is_found_once_it_has_arrived(native: bool) -> None:
    card = Card(make(native=native))
    card.place(0.0, [1, 2], [1])
    _, misses = card.lease([1], [1])
    assert len(misses) == 2
    assert card.hot.statistics()[0].stale == 0
    card.arrive(0)
    slots, misses = card.lease([1, 2], [1])
    assert len(misses) == 0
    assert (slots >= 0).all()
    figures = card.hot.statistics()
    assert (figures[0].hits, figures[0].misses, figures[0].n_rows) == (2, 1, 2)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("how", ["changes", "is lost"])
def test_a_row_that_changes_or_is_lost_on_its_way_is_not_found(native: bool, how: str) -> None:
    card = Card(make(native=native))
    card.place(0.0, [1], [])
    if how == "changes":
        card.change([1], [])
    card.arrive(0, lost=how == "is lost")
    assert len(card.lease([1], [])[1]) == 1
    assert len(card.place(0.0, [1], []).slots) == 1  # the slot can be used on
    card.arrive(0)
    assert len(card.lease([1], [])[1]) == 0


@pytest.mark.parametrize("native", BOTH)
def test_with_all_slots_pinned_rows_are_refused(native: bool) -> None:
    card = Card(make(native=native))
    held = list(range(GROUP))
    card.place(0.0, held, [])
    card.arrive(0)
    card.lease(held, [])
    for _ in range(5):
        card.lease([100], [])
        assert len(card.place(0.0, [100], []).slots) == 0
    card.change(held[:1], [])
    assert len(card.place(0.0, held[:1], []).slots) == 0  # it is read still
    card.release(0)
    assert card.place(0.0, [100], []).slots.tolist() == [0]
    assert card.hot.statistics()[0].evicted == 1


@pytest.mark.parametrize("native", BOTH)
def test_splits_that_do_not_fit_are_refused(native: bool) -> None:
    hot = make(native=native)
    with pytest.raises(ValueError, match="splits: want those of 2 keys of 2 tables"):
        hot.lease(np.arange(2), np.array([0, 1, 1]), 0.0)
