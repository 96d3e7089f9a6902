from __future__ import annotations

import numpy as np
import pytest

from actors.replicas import Allowance, LateAfter, Replicas


def test_of_two_replicas_the_one_with_less_to_do_is_asked() -> None:
    replicas = Replicas()
    replicas.asked("a", 10)
    assert replicas.choose(("a", "b"), (), 0.0) == "b"
    replicas.asked("b", 30)
    assert replicas.choose(("a", "b"), (), 0.0) == "a"
    replicas.done("b", 30)
    assert replicas.choose(("a", "b"), (), 0.0) == "b"
    assert replicas.outstanding("a") == 10


def test_idle_replicas_take_turns() -> None:
    replicas = Replicas()
    chosen = []
    for _ in range(6):
        name = replicas.choose(("a", "b", "c"), (), 0.0)
        assert name is not None
        chosen.append(name)
        replicas.asked(name, 5)
        replicas.done(name, 5)
    assert chosen == ["a", "b", "c", "a", "b", "c"]


def test_neither_the_dead_nor_those_that_were_asked_are_asked() -> None:
    replicas = Replicas()
    replicas.dead.add("a")
    assert replicas.choose(("a", "b"), (), 0.0) == "b"
    assert replicas.choose(("a", "b"), ["b"], 0.0) is None
    assert replicas.choose(("a",), (), 0.0) is None
    replicas.dead.discard("a")
    assert replicas.choose(("a",), (), 0.0) == "a"


def test_one_that_lost_twice_in_a_row_is_passed_over_for_a_while() -> None:
    replicas = Replicas()
    replicas.asked("b", 1000)
    replicas.lost("a", 0.0)
    assert replicas.choose(("a", "b"), (), 0.001) == "a"
    replicas.lost("a", 0.0)
    assert replicas.choose(("a", "b"), (), 0.001) == "b"
    assert replicas.choose(("a", "b"), ["b"], 0.001) == "a"  # better than nobody
    assert replicas.choose(("a", "b"), (), 0.021) == "a"
    for _ in range(20):
        replicas.lost("a", 1.0)
    assert replicas.choose(("a", "b"), (), 1.9) == "b"
    assert replicas.choose(("a", "b"), (), 2.1) == "a"
    replicas.lost("a", 3.0)
    replicas.won("a", 0.001)
    assert replicas.choose(("a", "b"), (), 3.001) == "a"


@pytest.mark.parametrize("scale_s", [0.0015, 0.004])
def test_late_is_what_few_answers_are(scale_s: float) -> None:
    rng = np.random.default_rng(3)
    late = LateAfter()
    took = scale_s * rng.lognormal(0.0, 0.4, 6000)
    n_late = 0
    for i, seconds in enumerate(took.tolist()):
        n_late += i >= 1000 and seconds > late.seconds
        late.learn(seconds)
    assert 0.03 < n_late / 5000 < 0.07
    assert late.seconds == pytest.approx(float(np.quantile(took, 0.95)), rel=0.3)


def test_what_counts_as_late_has_bounds() -> None:
    late = LateAfter()
    for _ in range(3000):
        late.learn(1e-6)
    assert late.seconds == 0.001
    for _ in range(300):
        late.learn(10.0)
    assert late.seconds == 0.02


def test_second_questions_are_a_tenth_of_the_first_and_may_come_together() -> None:
    allowance = Allowance()
    assert sum(allowance.spend() for _ in range(100)) == 16
    n_spent = 0
    for _ in range(1000):
        allowance.earn(1)
        n_spent += allowance.spend()
    assert 95 <= n_spent <= 100
    allowance.earn(10_000)
    assert sum(allowance.spend() for _ in range(100)) == 16
