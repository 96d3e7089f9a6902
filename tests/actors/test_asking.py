from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from actors.asking import Asking, Nobody, Question, Todo
from transport.messages import LookupBatch

PAIR = ("a", "b")


def lookup(seq: int = 1, part: int = 0, n: int = 4) -> LookupBatch:
    return LookupBatch(
        gateway="gateway",
        seq=seq,
        model="m",
        version="v",
        executor="executor",
        part=part,
        budget_us=50_000,
        user_ids=np.zeros((1, 1), np.int64),
        user_weights=np.zeros((0, 1), np.float32),
        candidate_ids=np.zeros((1, n), np.int64),
        candidate_weights=np.zeros((0, n), np.float32),
    )


def begin(asking: Asking, seq: int = 1, *groups: tuple[str, ...], now: float = 0.0) -> list[Todo]:
    parts = [(names, lookup(seq, part)) for part, names in enumerate(groups or (PAIR,))]
    return asking.begin(seq, parts, now + 0.05, now)


def question(todo: list[Todo]) -> Question:
    [one] = todo
    assert isinstance(one, Question)
    return one


def nobody(todo: list[Todo]) -> Nobody:
    [one] = todo
    assert isinstance(one, Nobody)
    return one


def test_each_part_is_asked_of_one_replica_of_its_group() -> None:
    asking = Asking()
    todo = begin(asking, 1, PAIR, ("c", "d"))
    assert [(each.part, each.replica) for each in todo if isinstance(each, Question)] == [
        (0, "a"),
        (1, "c"),
    ]
    assert asking.replicas.outstanding("a") > 4
    assert [each.replica for each in begin(asking, 2) if isinstance(each, Question)] == ["b"]


def test_a_late_part_is_asked_of_another_replica_with_what_is_left_of_the_budget() -> None:
    asking = Asking()
    begin(asking)
    second = question(asking.late(1, 0, 0.01))
    assert (second.replica, second.lookup.attempt, second.lookup.budget_us) == ("b", 1, 40_000)
    assert asking.asked_of(1, 0) == PAIR
    assert asking.late(1, 0, 0.02) == []  # all were asked, just now
    asking.settled(1, [1], [0.012], 0.02)
    assert (asking.n_hedges, asking.n_retries, asking.n_wins) == (1, 0, 1)
    assert asking.replicas.usual_s("b") > 0


def test_where_there_is_no_other_the_same_replica_is_asked_again_after_long() -> None:
    asking = Asking()
    asking.died("b", 0.0)
    begin(asking)
    assert asking.late(1, 0, 0.005) == []
    again = question(asking.late(1, 0, 0.02))
    assert (again.replica, again.lookup.attempt) == ("a", 1)
    assert asking.late(1, 0, 0.03) == []
    asking.settled(1, [1], [0.025], 0.04)
    assert asking.replicas.outstanding("a") == 0


def test_too_late_is_not_asked_again() -> None:
    asking = Asking()
    for _ in range(200):
        asking.replicas.won("b", 0.03)
    begin(asking)
    assert asking.late(1, 0, 0.03) == []
    assert asking.late(1, 0, 0.01) != []


def test_few_are_asked_twice_for_being_late() -> None:
    asking = Asking()
    n_asked = 0
    for seq in range(1, 101):
        begin(asking, seq)
        n_asked += len(asking.late(seq, 0, 0.01))
    assert 24 <= n_asked <= 26
    assert asking.n_hedges == n_asked


def test_a_part_that_failed_is_asked_of_the_others_and_then_of_nobody() -> None:
    asking = Asking()
    begin(asking)
    second = question(asking.failed(1, 0, 0, "unavailable", "a: no such model", 0.001))
    assert second.replica == "b"
    assert asking.failed(1, 0, 0, "unavailable", "again", 0.001) == []  # it was heard already
    last = nobody(asking.failed(1, 0, 1, "internal", "b: broken", 0.002))
    assert (last.code, last.message, last.attempt) == ("internal", "b: broken", 2)
    assert asking.failed(1, 0, 1, "internal", "b: broken", 0.002) == []
    assert asking.late(1, 0, 0.003) == []


def test_a_part_that_failed_while_another_replica_is_asked_waits_for_that() -> None:
    asking = Asking()
    begin(asking)
    asking.late(1, 0, 0.01)
    assert asking.failed(1, 0, 0, "unavailable", "", 0.011) == []
    assert asking.asked_of(1, 0) == ("b",)


def test_what_a_dead_replica_was_asked_is_asked_of_others() -> None:
    asking = Asking()
    for seq in (1, 2, 3):
        begin(asking, seq)  # a, b, a
    todo = asking.died("a", 0.001)
    assert [(each.seq, each.replica) for each in todo if isinstance(each, Question)] == [
        (1, "b"),
        (3, "b"),
    ]
    assert asking.n_retries == 2
    assert asking.replicas.outstanding("a") == 0
    assert question(begin(asking, 4)).replica == "b"
    todo = asking.died("b", 0.002)
    assert [(each.seq, type(each)) for each in todo] == [(seq, Nobody) for seq in (1, 2, 3, 4)]
    assert nobody(begin(asking, 5)).message == ""
    asking.replicas.dead.discard("a")
    assert question(begin(asking, 6)).replica == "a"


def test_a_replica_that_refuses_is_not_dead() -> None:
    asking = Asking()
    first = question(begin(asking))
    assert question(asking.refused(first, "overloaded", "full", 0.0)).replica == "b"
    assert question(begin(asking, 2)).replica == "a"


def test_after_its_deadline_nothing_is_asked() -> None:
    asking = Asking()
    begin(asking)
    assert asking.late(1, 0, 0.05) == []
    assert asking.died("a", 0.05) == []


def test_default_rows_are_nobodys_win() -> None:
    asking = Asking()
    begin(asking)
    asking.died("b", 0.0)
    assert nobody(asking.died("a", 0.0)).attempt == 1
    asking.settled(1, [1], [0.002], 0.01)
    assert (asking.n_wins, len(asking)) == (0, 0)


@pytest.mark.parametrize("attempts", [[], [0], [9], [-1], [0, 0, 0]])
def test_whatever_an_executor_says_of_a_batch_it_is_forgotten(attempts: list[int]) -> None:
    asking = Asking()
    begin(asking)
    for part in (-1, 1, 99):
        assert asking.late(1, part, 0.0) == []
        assert asking.failed(1, part, 0, "internal", "", 0.0) == []
    assert asking.failed(1, 0, 7, "internal", "", 0.0) == []
    asking.settled(1, attempts, [0.001] * len(attempts), 0.0)
    asking.settled(1, attempts, [0.001] * len(attempts), 0.0)
    assert len(asking) == 0
    assert asking.replicas.outstanding("a") == 0


class Life(RuleBasedStateMachine):
    """Whatever happens in whatever order: a live replica is never idle while a part wants one."""

    seqs = Bundle("seqs")

    def __init__(self) -> None:
        super().__init__()
        self.asking = Asking()
        self.now = 0.0
        self.n = 0
        self.asked: dict[int, list[Question]] = {}
        self.decided: set[int] = set()

    def take(self, todo: list[Todo]) -> None:
        for each in todo:
            if isinstance(each, Nobody):
                assert each.seq not in self.decided
                self.decided.add(each.seq)
                continue
            assert each.replica not in self.asking.replicas.dead
            assert each.seq not in self.decided
            assert each.lookup.attempt == len(self.asked.setdefault(each.seq, []))
            self.asked[each.seq].append(each)

    @rule(target=seqs)
    def arrives(self) -> int:
        self.n += 1
        self.asked[self.n] = []
        parts = [(("a", "b", "c"), lookup(self.n))]
        self.take(self.asking.begin(self.n, parts, self.now + 1.0, self.now))
        return self.n

    @rule(seq=seqs)
    def is_late(self, seq: int) -> None:
        self.take(self.asking.late(seq, 0, self.now))

    @rule(seq=seqs, attempt=st.integers(0, 3))
    def fails(self, seq: int, attempt: int) -> None:
        self.take(self.asking.failed(seq, 0, attempt, "internal", "", self.now))

    @rule(name=st.sampled_from("abc"))
    def dies(self, name: str) -> None:
        self.take(self.asking.died(name, self.now))

    @rule(name=st.sampled_from("abc"))
    def lives(self, name: str) -> None:
        self.asking.replicas.dead.discard(name)

    @rule(seq=consumes(seqs), attempt=st.integers(0, 3))
    def is_settled(self, seq: int, attempt: int) -> None:
        self.asking.settled(seq, [attempt], [0.001], self.now)
        del self.asked[seq]
        self.decided.discard(seq)

    @rule(seconds=st.floats(0.0, 0.1))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def outstanding_is_what_is_awaited(self) -> None:
        awaited = dict.fromkeys("abc", 0)
        for seq in self.asked:
            for name in self.asking.asked_of(seq, 0):
                assert name not in self.asking.replicas.dead
                awaited[name] += 205
        for name, work in awaited.items():
            assert self.asking.replicas.outstanding(name) == work

    @invariant()
    def nothing_is_kept_of_what_is_settled(self) -> None:
        assert len(self.asking) == len(self.asked)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=30)
