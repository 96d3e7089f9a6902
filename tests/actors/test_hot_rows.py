"""Cached tables in an executor, as values: what is asked of shards, and what batches get."""

from __future__ import annotations

import random
from typing import Any

import attrs
import numpy as np
import pytest
from numpy.typing import NDArray

from actors.asking import Question
from actors.hot_rows import Doubt, HotTables, Todo
from actors.hot_table import Group, HotTable
from actors.parts import failed_part
from kernels.bundle.manifest import Table
from kernels.shards import ShardLayout
from kernels.store.partition import segment_of
from tests.actors.shard_help import rows_part
from transport.messages import LookupBatch, RowsPart

LAYOUT = ShardLayout(
    tables=(),
    lookups=(),
    id_rows=np.arange(3),
    weight_rows=np.arange(1),
    width=0,
    runs=(),
)
# Fetched tables 0 and 2 are cached, the one between is not.
TABLES = {
    0: Table(name="items", rows=1000, dim=4, dtype="fp32", file="items", keyed=True, segments=8),
    2: Table(name="users", rows=100, dim=16, dtype="int8", file="users", segments=5),
}
N_TABLES = 3
GROUP_OF = {0: np.arange(8, dtype=np.int32) % 2, 2: np.array([1, 1, 1, 0, 0], np.int32)}


def make(
    *,
    max_bytes: int = 1 << 20,
    stale_s: float = 10.0,
    replicas: tuple[tuple[str, ...], ...] = (("a",), ("b",)),
    default: int | None = None,
) -> HotTables:
    return HotTables(
        name="executor",
        model="m",
        version="v",
        n_tables=N_TABLES,
        tables=[
            HotTable(
                number=number,
                table=table,
                max_bytes=max_bytes,
                stale_s=stale_s,
                group_of=GROUP_OF[number],
                default_row=None
                if default is None
                else np.full(table.row_bytes, default + number, np.uint8),
            )
            for number, table in TABLES.items()
        ],
        groups={number: Group(names, LAYOUT, LAYOUT) for number, names in enumerate(replicas)},
    )


def lookup(seq: int, items: list[int], users: list[int], budget_s: float = 1.0) -> LookupBatch:
    return LookupBatch(
        gateway="gateway",
        seq=seq,
        model="m",
        version="v",
        executor="executor",
        part=7,
        budget_us=int(budget_s * 1e6),
        user_ids=np.empty((0, 2), np.int64),
        user_weights=np.empty((0, 2), np.float32),
        candidate_ids=np.empty((0, 3), np.int64),
        candidate_weights=np.empty((0, 3), np.float32),
        keys=np.array([*items, *users], np.int64),
        key_splits=np.array([0, len(items), len(items), len(items) + len(users)], np.int32),
    )


@attrs.define
class World:
    """What the shards have: a row tells its table, its key and how often it was updated."""

    versions: dict[tuple[int, int], int] = attrs.field(factory=dict)

    def row(self, table: int, key: int) -> NDArray[np.uint8]:
        numbers = np.array([table, key, self.versions.get((table, key), 0)], np.int32)
        row = np.zeros(TABLES[table].row_bytes, np.uint8)
        row[:12] = numbers.view(np.uint8)
        return row

    def rows(self, asked: LookupBatch) -> NDArray[np.uint8]:
        pieces = [np.empty(0, np.uint8)]
        for table in range(N_TABLES):
            keys = asked.keys[asked.key_splits[table] : asked.key_splits[table + 1]]
            pieces += [self.row(table, key) for key in keys.tolist()]
        return np.concatenate(pieces)

    def answer(self, question: Question) -> RowsPart:
        """What a shard sends, of what it has now."""
        asked = question.lookup
        assert asked.user_ids.shape == asked.candidate_ids.shape == (3, 0)
        assert asked.user_weights.shape == asked.candidate_weights.shape == (1, 0)
        return rows_part(asked, self.rows(asked))


def failure(question: Question, code: str = "unavailable") -> RowsPart:
    return failed_part(question.lookup, "no luck", code)


def questions(todo: list[Todo]) -> list[Question]:
    assert all(isinstance(each, Question) for each in todo)
    return [each for each in todo if isinstance(each, Question)]


def parts(todo: list[Todo]) -> list[RowsPart]:
    assert all(isinstance(each, RowsPart) for each in todo)
    return [each for each in todo if isinstance(each, RowsPart)]


def check(part: RowsPart, asked: LookupBatch, world: World) -> None:
    assert (part.gateway, part.seq, part.part, part.code) == ("gateway", asked.seq, 7, "ok")
    assert part.user.shape == (2, 0)
    assert part.candidate.shape == (3, 0)
    np.testing.assert_array_equal(part.rows, world.rows(asked))


def test_what_is_not_held_is_asked_of_each_group_and_then_held() -> None:
    hot, world = make(), World()
    asked = lookup(1, [5, -7, 1 << 30, 6], [99, 3])
    todo = questions(hot.ask(asked, 0.0))
    assert {each.replica for each in todo} == {"a", "b"}
    for each in todo:
        group = "ab".index(each.replica)
        for table, keyed in ((0, True), (2, False)):
            splits = each.lookup.key_splits
            keys = each.lookup.keys[splits[table] : splits[table + 1]]
            segments = segment_of(
                keys, n_segments=TABLES[table].segments, rows=TABLES[table].rows, keyed=keyed
            )
            assert (GROUP_OF[table][segments] == group).all()
        assert each.lookup.key_splits.tolist()[1] == each.lookup.key_splits.tolist()[2]
        assert (each.lookup.gateway, each.lookup.executor) == ("executor", "executor")
        assert each.lookup.budget_us == 2_000_000
    assert not hot.answered(world.answer(todo[1]), 0.1)
    [part] = parts(hot.answered(world.answer(todo[0]), 0.2))
    check(part, asked, world)
    again = lookup(2, [6, 5], [3])
    [part] = parts(hot.ask(again, 0.3))
    check(part, again, world)
    figures = hot.statistics()
    assert (figures["items"].hits, figures["items"].misses) == (2, 4)
    assert (figures["users"].hits, figures["users"].n_rows) == (1, 2)
    [part] = parts(hot.ask(lookup(3, [], []), 0.3))
    assert part.rows.size == 0


def test_what_is_under_way_is_not_asked_for_again() -> None:
    hot, world = make(), World()
    first, second = lookup(1, [1, 2, 3], []), lookup(2, [4, 3, 2], [8])
    todo = questions(hot.ask(first, 0.0))
    more = questions(hot.ask(second, 0.5))
    assert sorted(key for each in more for key in each.lookup.keys.tolist()) == [4, 8]
    done: list[RowsPart] = []
    for each in (*more, *todo):
        done += parts(hot.answered(world.answer(each), 0.6))
    assert {part.seq for part in done} == {1, 2}
    for part in done:
        check(part, first if part.seq == 1 else second, world)
    assert hot.n_shared == 2
    assert hot.wake_at() is None


def test_a_batch_that_lives_longer_than_what_is_under_way_asks_itself() -> None:
    hot, world = make(), World()
    [old] = questions(hot.ask(lookup(1, [1], [], budget_s=1.0), 0.0))
    patient = lookup(2, [1], [], budget_s=1.6)
    [new] = questions(hot.ask(patient, 0.5))
    assert not hot.ask(lookup(3, [1], [], budget_s=1.0), 0.6)  # waits for the newer
    assert hot.tick(2.0) == [Doubt(new.replica)]
    assert not hot.answered(world.answer(old), 2.0)  # nobody waits any more
    done = parts(hot.answered(world.answer(new), 2.0))
    assert [part.seq for part in done] == [2, 3]
    check(done[0], patient, world)


def test_a_row_is_asked_for_again_when_it_is_too_old() -> None:
    hot, world = make(stale_s=2.0), World()
    [question] = questions(hot.ask(lookup(1, [1], [], budget_s=9), 10.0))
    world.versions[0, 1] = 1
    [again] = questions(hot.ask(lookup(2, [1], [], budget_s=9), 12.1))  # what is under way is older
    assert parts(hot.answered(world.answer(question), 12.2))
    # The row that came counts from when it was asked for, not from when it came.
    [part] = parts(hot.answered(world.answer(again), 12.3))
    check(part, lookup(2, [1], []), world)
    assert parts(hot.ask(lookup(3, [1], []), 14.1))
    assert questions(hot.ask(lookup(4, [1], []), 14.2))
    assert hot.statistics()["items"].stale == 1


def test_a_change_wins_over_what_is_under_way() -> None:
    hot, world = make(), World()
    [question] = questions(hot.ask(lookup(1, [1], []), 0.0))
    old = world.answer(question)
    world.versions[0, 1] = 1
    hot.changed("items", np.array([1, 77]))
    hot.changed("elsewhere", np.array([1]))
    second = lookup(2, [1], [])
    [again] = questions(hot.ask(second, 0.1))  # does not wait for the old one
    assert [part.seq for part in parts(hot.answered(old, 0.2))] == [1]
    third = lookup(3, [1], [])
    assert not hot.ask(third, 0.3)  # the old one was not kept; waits for the new one
    done = parts(hot.answered(world.answer(again), 0.4))
    assert [part.seq for part in done] == [2, 3]
    check(done[1], third, world)
    world.versions[0, 1] = 2
    hot.changed("items", np.array([1]))
    [last] = questions(hot.ask(lookup(4, [1], []), 0.5))
    [part] = parts(hot.answered(world.answer(last), 0.5))
    check(part, lookup(4, [1], []), world)


def test_what_was_overtaken_is_not_kept() -> None:
    hot, world = make(), World()
    [old] = questions(hot.ask(lookup(1, [1], [], budget_s=1.0), 0.0))
    old_rows = world.answer(old)
    [new] = questions(hot.ask(lookup(2, [1], [], budget_s=3.0), 0.1))
    world.versions[0, 1] = 1
    hot.changed("items", np.array([1]))
    assert [part.seq for part in parts(hot.answered(old_rows, 0.2))] == [1]
    assert questions(hot.ask(lookup(3, [1], []), 0.3))
    assert [part.seq for part in parts(hot.answered(world.answer(new), 0.4))] == [2]


def test_another_replica_is_asked_when_one_fails_or_is_late() -> None:
    hot, world = make(replicas=(("a", "a2"), ("b", "b2"))), World()
    batch = lookup(1, [], [99])
    [first] = questions(hot.ask(batch, 0.0))
    [second] = questions(hot.answered(failure(first), 0.01))
    assert {first.replica, second.replica} == {"a", "a2"}
    assert second.lookup.attempt == 1
    [part] = parts(hot.answered(world.answer(second), 0.02))
    check(part, batch, world)

    [first] = questions(hot.ask(lookup(2, [], [98]), 1.0))
    due = hot.wake_at()
    assert due is not None
    assert not hot.tick(due - 0.001)
    [doubt, *todo] = hot.tick(due)
    assert doubt == Doubt(first.replica)
    [second] = questions(todo)
    assert {first.replica, second.replica} == {"a", "a2"}
    assert not hot.tick(due + 0.001)
    assert parts(hot.answered(world.answer(first), due + 0.002))
    assert not hot.answered(world.answer(second), due + 0.003)

    [first] = questions(hot.ask(lookup(3, [], [97]), 2.0))
    [second] = questions(hot.died(first.replica, "gone", 2.1))
    assert second.replica != first.replica
    [third] = questions(hot.ask(lookup(4, [], [96]), 2.2))
    assert third.replica == second.replica
    hot.dead.discard(first.replica)
    [fourth] = questions(hot.ask(lookup(5, [], [95]), 2.3))
    assert fourth.replica == first.replica


def test_a_part_fails_once_when_nobody_is_left_to_ask() -> None:
    hot, world = make(), World()
    [one, other] = questions(hot.ask(lookup(1, [], [99, 3]), 0.0))
    assert not hot.ask(lookup(2, [], [99]), 0.1)
    failed = parts(hot.answered(failure(one, "overloaded"), 0.2))
    assert {part.seq for part in failed} == ({1, 2} if one.replica == "a" else {1})
    assert {(part.code, part.message) for part in failed} == {("overloaded", "no luck")}
    assert not [
        part for part in parts(hot.answered(failure(other), 0.3)) if part.seq == 1
    ]  # it has failed before
    [question] = questions(hot.ask(lookup(3, [], [99]), 0.4))
    [part] = parts(hot.refused(question, "unavailable", "not there", 0.4))
    assert (part.seq, part.code, part.message) == (3, "unavailable", "not there")
    hot.died("a", "gone", 0.5)
    [part] = parts(hot.ask(lookup(4, [], [99]), 0.6))
    assert (part.code, part.message) == ("unavailable", "no shard answers: a")
    hot.dead.discard("a")
    [question] = questions(hot.ask(lookup(5, [], [99]), 0.7))
    short = attrs.evolve(world.answer(question), rows=np.zeros(3, np.uint8))
    [part] = parts(hot.answered(short, 0.8))
    assert (part.code, part.message) == ("internal", "3 bytes came, not 20")


def test_default_rows_stand_for_those_that_nobody_has_and_for_no_others() -> None:
    hot, world = make(default=50), World()
    [one, other] = questions(hot.ask(lookup(1, [], [99, 3]), 0.0))
    for each in (one, other):
        assert parts(hot.answered(world.answer(each), 0.0)) or each is one
    batch = lookup(2, [], [98, 3, 97])
    hot.dead.add("a")
    [part] = parts(hot.ask(batch, 1.0))
    assert (part.code, part.degraded) == ("ok", True)
    rows = part.rows.reshape(3, 20)
    np.testing.assert_array_equal(rows[[0, 2]], 52)
    np.testing.assert_array_equal(rows[1], world.row(2, 3))
    # They are not kept.
    hot.dead.discard("a")
    [question] = questions(hot.ask(batch, 2.0))
    [part] = parts(hot.answered(world.answer(question), 2.0))
    check(part, batch, world)
    assert not part.degraded
    # What is busy is not gone.
    [question] = questions(hot.ask(lookup(3, [], [96]), 3.0))
    [part] = parts(hot.refused(question, "overloaded", "full", 3.0))
    assert (part.code, part.degraded) == ("overloaded", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_splits": np.array([0, 1, 2, 3], np.int32)}, "1 keys came of tables not cached here"),
        ({"key_splits": np.array([0, 3], np.int32)}, "key_splits: do not divide keys of 3"),
        ({"key_splits": np.array([0, 2, 2, 1], np.int32)}, "key_splits: do not divide keys of 3"),
        ({"keys": np.array([1, 1, 5])}, "a key came twice"),
        ({"keys": np.array([1, 2, 100])}, "table users: row 100 is outside a table of 100 rows"),
    ],
)
def test_what_no_gateway_sends_is_answered(changes: dict[str, Any], message: str) -> None:
    hot = make()
    good = lookup(1, [1, 2], [5])
    [part] = parts(hot.ask(attrs.evolve(good, **changes), 0.0))
    assert part.code == "internal"
    assert part.message.startswith(message)
    assert hot.wake_at() is None
    assert questions(hot.ask(good, 0.0))


def test_a_place_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="cached: table 'items': max_bytes: want at least"):
        make(max_bytes=100)


@pytest.mark.parametrize("seed", range(20))
def test_every_batch_gets_rows_as_fresh_as_is_promised(seed: int) -> None:
    """Batches, answers in any order, failures, updates that are told and others that are not."""
    rng = random.Random(seed)
    stale_s = rng.choice([0.5, 3.0])
    hot = make(
        max_bytes=rng.choice([1 << 20, 2000]),
        stale_s=stale_s,
        replicas=(("a", "a2"), ("b", "b2")) if rng.random() < 0.5 else (("a",), ("b",)),
    )
    world = World()
    now = 0.0
    waiting: dict[int, tuple[LookupBatch, float]] = {}
    under_way: list[tuple[Question, RowsPart]] = []
    changed_at: dict[tuple[int, int, int], float] = {}  # when a version was replaced
    told_at: dict[tuple[int, int], int] = {}
    n_done = n_failed = 0

    def take(todo: list[Todo]) -> None:
        nonlocal n_done, n_failed
        for each in todo:
            if isinstance(each, Question):
                under_way.append((each, world.answer(each)))
                continue
            if not isinstance(each, RowsPart):
                continue
            batch, began = waiting.pop(each.seq)
            if each.code != "ok":
                n_failed += 1
                continue
            n_done += 1
            at = 0
            for table, described in TABLES.items():
                splits = batch.key_splits
                for key in batch.keys[splits[table] : splits[table + 1]].tolist():
                    row = each.rows[at : at + described.row_bytes]
                    at += described.row_bytes
                    numbers = row[:12].view(np.int32).tolist()
                    assert numbers[:2] == [table, key]
                    replaced = changed_at.get((table, key, numbers[2]), np.inf)
                    assert began - replaced <= stale_s + 1e-9
                    assert numbers[2] >= batch_told[batch.seq].get((table, key), 0)
            assert at == len(each.rows)

    batch_told: dict[int, dict[tuple[int, int], int]] = {}
    for seq in range(1, 600):
        now += rng.expovariate(30)
        take(hot.tick(now))
        what = rng.random()
        if what < 0.2:
            items = rng.sample(range(12), rng.randint(0, 6)) + rng.sample(range(20, 300), 3)
            users = rng.sample(range(100), rng.randint(0, 5))
            batch = lookup(seq, items, users, budget_s=rng.choice([0.3, 2.0]))
            waiting[seq] = batch, now
            batch_told[seq] = dict(told_at)
            take(hot.ask(batch, now))
        elif what < 0.3:
            table = rng.choice([0, 2])
            keys = rng.sample(range(20), 4)
            for key in keys:
                version = world.versions.get((table, key), 0)
                changed_at[table, key, version] = now
                world.versions[table, key] = version + 1
                if what < 0.25:
                    told_at[table, key] = version + 1
            if what < 0.25:
                hot.changed(TABLES[table].name, np.array(keys))
        elif under_way:
            question, answer = under_way.pop(rng.randrange(len(under_way)))
            if rng.random() < 0.1:
                take(hot.answered(failure(question), now))
            elif rng.random() < 0.1:
                take(hot.refused(question, "overloaded", "full", now))
            else:
                take(hot.answered(answer, now))
    now += 100
    take(hot.tick(now))
    for batch, began in waiting.values():
        assert began + batch.budget_us * 1e-6 < now
    assert hot.wake_at() is None
    assert n_done > 30
    assert not hot._asking
    assert not hot._flights
    assert not len(hot._flights._claims)
