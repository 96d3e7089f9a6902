"""Joins of parts that have replicas: when one is late, and what becomes of a second answer."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from actors.block_layout import BlockLayout
from actors.join import Join
from actors.joins import Joins
from kernels.lookup import ShardLayout
from transport.messages import Batch, RowsPart

NOTHING = np.empty(0, np.intp)


def layout(replicas: int = 2) -> BlockLayout:
    none = ShardLayout(
        tables=(), lookups=(), id_rows=NOTHING, weight_rows=NOTHING, width=0, runs=()
    )
    one = attrs.evolve(none, width=1)
    return BlockLayout([(none, one), (none, one)], (), (), replicas=replicas)


def head(seq: int = 1, budget_us: int = 50_000) -> Batch:
    return Batch(
        gateway="g",
        seq=seq,
        model="m",
        version="v",
        n_parts=2,
        n_rows=np.array([1], np.int32),
        budgets_us=np.array([budget_us]),
        user_values=np.zeros((1, 0), np.float32),
        candidate_values=np.zeros((1, 0), np.float32),
    )


def part(index: int, seq: int = 1, attempt: int = 0, value: float = 0.0) -> RowsPart:
    return RowsPart(
        gateway="g",
        seq=seq,
        version="v",
        part=index,
        attempt=attempt,
        user=np.zeros((1, 0), np.float32),
        candidate=np.full((1, 1), value, np.float32),
    )


def late(joins: Joins, now: float) -> list[list[int]]:
    return [parts for _, parts in joins.late(now)]


def test_a_part_is_late_after_its_groups_usual_time_and_again_after_twice_that() -> None:
    joins = Joins(layout())
    joins.begin(head(), 1.0)
    assert joins.next_late() == pytest.approx(1.01)
    joins.add(part(1), 1.002, 5.0)
    assert late(joins, 1.009) == []
    assert late(joins, 1.0101) == [[0]]
    assert joins.next_late() == pytest.approx(1.02)
    assert late(joins, 1.0201) == [[0]]
    assert joins.next_late() == pytest.approx(1.04)
    join = joins.add(part(0, attempt=1), 1.03, 5.0)
    assert join is not None
    assert joins.next_late() is None
    assert late(joins, 2.0) == []
    assert join.part_us.tolist() == [pytest.approx(30_000, abs=1), pytest.approx(2000, abs=1)]
    assert join.part_attempts.tolist() == [1, 0]


def test_what_is_late_is_learned_for_each_group() -> None:
    joins = Joins(layout())
    for seq in range(1, 400):
        joins.begin(head(seq), float(seq))
        joins.add(part(0, seq), seq + 0.0005, 5.0)
        joins.add(part(1, seq), seq + 0.008, 5.0)
    joins.begin(head(1000), 1000.0)
    first = joins.next_late()
    assert first is not None
    assert first - 1000.0 < 0.006
    assert late(joins, first) == [[0]]
    second = joins.next_late()
    assert second is not None
    assert 0.007 < second - 1000.0 < 0.012


def test_of_parts_without_replicas_none_is_late() -> None:
    joins = Joins(layout(replicas=1))
    joins.begin(head(), 1.0)
    assert joins.next_late() is None
    assert late(joins, 1.04) == []
    joins.add(part(0), 1.01, 5.0)
    join = joins.add(part(1), 1.02, 5.0)
    assert join is not None
    assert len(join.part_us) == len(join.part_attempts) == 0


def test_the_first_of_two_answers_counts_and_a_later_one_starts_nothing() -> None:
    joins = Joins(layout())
    joins.begin(head(), 1.0)
    joins.add(part(0, value=1.0), 1.001, 5.0)
    assert joins.add(part(0, attempt=1, value=2.0), 1.002, 5.0) is None
    join = joins.add(part(1), 1.003, 5.0)
    assert isinstance(join, Join)
    assert join.parts[0].candidate[0, 0] == 1.0
    assert joins.add(part(1, attempt=1), 1.004, 5.0) is None
    assert len(joins) == 0
    joins.expire(1.06)
    assert not joins._over  # what was needed to know that is gone, too


def test_a_batch_that_ran_out_of_time_is_late_no_more() -> None:
    joins = Joins(layout())
    joins.begin(head(budget_us=5000), 1.0)
    joins.expire(1.006)
    assert joins.next_late() is None
    assert late(joins, 1.1) == []


def test_a_part_that_comes_after_its_batch_ran_out_of_time_is_not_waited_for() -> None:
    joins = Joins(layout())
    joins.begin(head(budget_us=12_000), 1.0)
    joins.expire(1.012)
    assert joins.add(part(0), 1.013, 5.0) is None
    assert late(joins, 1.02) == []
    assert joins.next_late() is None
