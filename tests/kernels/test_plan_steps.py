"""Steps of a tile: their order, where values lie, and which barriers stand between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.plan.steps import (
    Constants,
    Step,
    Stream,
    Value,
    allot,
    needs_barrier,
    order,
    side_steps,
)

ROWS = 16


def step(
    reads: Sequence[Value] = (),
    writes: Sequence[Value] = (),
    *,
    stream: bool = False,
    loads: bool = False,
) -> Step:
    weights = Stream(8, (), ()) if stream else None
    return Step("step", lambda: "", reads, writes, loads=loads, stream=weights)


def value(name: str, width: int = 8, *, halves: bool = True) -> Value:
    return Value(name, halves, width)


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    """Draw steps that each read what earlier ones wrote; some Linears write one value in passes."""
    made: list[Value] = []
    steps: list[Step] = []
    for index in range(draw(st.integers(1, 14))):
        held = st.sampled_from(made) if made else st.nothing()
        reads = draw(st.lists(held, max_size=3, unique=True)) if made else []
        new = value(f"v{index}", draw(st.integers(1, 80)), halves=draw(st.booleans()))
        streams = bool(reads) and draw(st.booleans())
        for _ in range(draw(st.integers(1, 3)) if streams else 1):
            loads = not reads and draw(st.booleans())
            steps += [step(reads, [new], stream=streams, loads=loads)]
        made.append(new)
    return steps


def apart(one: Value, other: Value) -> bool:
    ends = one.offset + one.size(ROWS), other.offset + other.size(ROWS)
    return one.offset >= ends[1] or other.offset >= ends[0]


def accesses(steps: Sequence[Step]) -> dict[Value, list[int]]:
    found: dict[Value, list[int]] = {}
    for index, each in enumerate(steps):
        for one in (*each.writes, *each.reads):
            found.setdefault(one, []).append(index)
    return found


@given(programs())
def test_order_keeps_all_steps_and_what_they_wait_for(steps: list[Step]) -> None:
    ordered = order(steps)
    assert sorted(map(id, ordered)) == sorted(map(id, steps))
    for index, each in enumerate(ordered):
        later = {one for other in ordered[index:] for one in other.writes}
        assert later.isdisjoint(each.reads)


@given(programs())
def test_what_is_ready_runs_ahead_of_linears(steps: list[Step]) -> None:
    ordered = order(steps)
    for index, each in enumerate(ordered):
        if each.stream is None:
            continue
        left = {one for other in ordered[index:] for one in other.writes}
        ready = [other for other in ordered[index:] if left.isdisjoint(other.reads)]
        assert all(other.stream is not None for other in ready)


@given(programs())
def test_values_that_are_in_use_at_once_lie_apart(steps: list[Step]) -> None:
    total = allot(steps, ROWS, gathers=False)
    used = accesses(steps)
    for one in used:
        assert one.offset % 128 == 0
        assert one.offset + one.size(ROWS) <= total
    for one, other in itertools.combinations(used, 2):
        if used[one][0] <= used[other][-1] and used[other][0] <= used[one][-1]:
            assert apart(one, other)


@given(programs(), st.booleans())
def test_a_gathered_value_lies_apart_from_what_a_block_behind_or_ahead_uses(
    steps: list[Step], whole: bool
) -> None:
    allot(steps, ROWS, gathers=True, whole=whole)
    ahead = 1 if whole else 2  # gathers: that were passed by all who may still read
    gathers = [index for index, each in enumerate(steps) if each.stream is not None]
    used = accesses(steps)

    def life(one: Value) -> tuple[int, int]:
        first, last = used[one][0], used[one][-1]
        for number, index in enumerate(gathers):
            if one in steps[index].writes:
                # A peer that is ahead by one gather writes it; its own copies end by the next.
                first = min(first, gathers[number - ahead] + 1 if number >= ahead else 0)
                following = gathers[number + 1] if number + 1 < len(gathers) else len(steps)
                last = max(last, following)
        return first, last

    for one, other in itertools.combinations(used, 2):
        (first, last), (begin, end) = life(one), life(other)
        if first <= end and begin <= last:
            assert apart(one, other)


@given(programs())
def test_steps_beside_the_linears_meet_nobody(steps: list[Step]) -> None:
    side = side_steps(steps)
    allot(steps, ROWS, gathers=False, beside=side)
    touched = {one for each in side for one in (*each.reads, *each.writes)}
    for one, other in itertools.product(touched, accesses(steps)):
        assert one is other or apart(one, other)
    made = {one for each in side for one in each.writes}
    loaded = {one for each in steps if each.loads for one in each.writes}
    for each in side:
        assert each.stream is None
        assert made | loaded >= set(each.reads)
    for each in steps:
        if each.stream is not None:
            assert made.isdisjoint(each.reads)


def test_what_side_steps_read_makes_room_once_they_were_waited_for() -> None:
    loaded, made, a, b, c = (value(name, 64) for name in ("loaded", "made", *"abc"))
    side = step([loaded], [made])
    steps = [
        step((), [loaded], loads=True),
        side,
        step([loaded], [a], stream=True),
        step([a], [b], stream=True),
        step([b], [c], stream=True),
    ]
    assert side_steps(steps) == [side]
    assert allot(steps, ROWS, gathers=False, beside=[side]) == 4 * a.size(ROWS)
    assert allot(steps, ROWS, gathers=False, beside=[side], joined=2) == 3 * a.size(ROWS)
    assert all(apart(made, each) for each in (a, b, c))
    assert apart(loaded, a)


def test_memory_is_used_again() -> None:
    a, b, c = (value(name, 64) for name in "abc")
    steps = [step((), [a]), step([a], [b]), step([b], [c]), step([c])]
    assert allot(steps, ROWS, gathers=False) == 2 * a.size(ROWS)
    assert a.offset == c.offset != b.offset


def test_a_value_may_be_widened_by_its_readers() -> None:
    a = value("a", 13)
    assert (a.columns, a.chunks, a.size(16)) == (16, 2, 512)
    a.reserve(32)
    assert (a.columns, a.chunks, a.size(16)) == (32, 4, 1024)
    floats = value("b", 13, halves=False)
    assert (floats.columns, floats.chunks) == (16, 4)


@pytest.mark.parametrize("first", ["reads", "writes"])
@pytest.mark.parametrize("then", ["reads", "writes"])
def test_a_barrier_stands_between_steps_that_share_memory_unless_both_read(
    first: str, then: str
) -> None:
    a, b, elsewhere = value("a"), value("b"), value("c")
    a.offset, b.offset, elsewhere.offset = 0, 128, 256
    same = value("d", 64)  # bytes 0 to 2048: over all of them
    same.offset = 0

    def touching(how: str, one: Value) -> Step:
        return step([one], ()) if how == "reads" else step((), [one])

    wanted = (first, then) != ("reads", "reads")
    assert needs_barrier(touching(then, same), [touching(first, b)], ROWS) == wanted
    elsewhere.offset = 2048
    assert not needs_barrier(touching(then, same), [touching(first, elsewhere)], ROWS)
    assert not needs_barrier(touching(then, same), [], ROWS)


def test_constants_lie_once_and_large_ones_elsewhere() -> None:
    constants = Constants(2, shared_limit=256)
    small, other = np.arange(5, dtype=np.float32), np.arange(6, dtype=np.int32)
    assert constants.add(small) == 0
    assert constants.add(other) == 32
    assert constants.add(small.copy()) == 0
    assert constants.add(np.zeros(100, np.float32)) is None
    at = constants.add_ranked((small, small * 2))
    assert at == 56 // 16 * 16 + 16
    assert constants.shared_size == at + 32
    for rank, expected in enumerate((small, small * 2)):
        block = constants.bytes(rank)
        assert block[:20].tobytes() == small.tobytes()
        assert block[32:56].tobytes() == other.tobytes()
        assert block[at : at + 20].tobytes() == expected.tobytes()
