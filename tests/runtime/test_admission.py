from __future__ import annotations

from collections import deque

import pytest

from runtime.admission import Admission


def goodput(
    admission: Admission | None, *, arrivals: float, capacity: float = 1000.0, budget: float = 0.1
) -> float:
    """Simulate 20 s of a first-come server; return the answers in time a second, of the last 10."""
    now, in_time = 0.0, 0
    queue: deque[float] = deque()
    service = 1.0 / capacity
    next_arrival, free_at = 0.0, service
    while now < 20.0:
        now = min(next_arrival, free_at)
        if now == next_arrival:
            next_arrival += 1.0 / arrivals
            if admission is None or len(queue) < admission.limit:
                queue.append(now)
                if admission is not None:
                    admission.admitted(budget)
            continue
        free_at = now + service
        if queue:
            took = now - queue.popleft()
            if admission is not None:
                admission.left(1, took, len(queue), now)
            in_time += took <= budget and now > 10.0
    return in_time / 10.0


def test_without_a_limit_an_overloaded_server_answers_nothing_in_time() -> None:
    assert goodput(None, arrivals=1500.0) == 0.0


@pytest.mark.parametrize("arrivals", [1100.0, 1500.0, 3000.0, 10_000.0])
def test_with_it_goodput_stays_at_capacity(arrivals: float) -> None:
    assert goodput(Admission(most=4096), arrivals=arrivals) > 950.0


def test_below_capacity_nothing_is_refused() -> None:
    assert goodput(Admission(most=4096), arrivals=900.0) == pytest.approx(900.0, abs=1.0)


def test_a_limit_that_was_cut_grows_again() -> None:
    admission = Admission(most=1000)
    admission.admitted(0.1)
    for step in range(40):
        admission.left(10, 0.09, 90, now=float(step))
    assert admission.limit < 120
    cut = admission.limit
    for step in range(400):
        admission.left(10, 0.01, admission.limit, now=100.0 + step)
    assert admission.limit > 2 * cut


def test_it_is_cut_once_for_the_requests_that_were_let_in_together() -> None:
    admission = Admission(most=1000)
    admission.admitted(0.1)
    for _ in range(50):
        admission.left(10, 0.09, 490, now=1.0)
    assert admission.limit == int(0.85 * 500)


def test_a_burst_within_its_budgets_is_taken_whole() -> None:
    admission = Admission(most=4096)
    for _ in range(500):
        admission.admitted(2.0)
    for left in range(500, 0, -10):
        admission.left(10, (500 - left) * 1e-3, left - 10, now=(500 - left) * 1e-3)
    assert admission.limit == 4096


def test_a_few_impossible_budgets_do_not_bring_it_down() -> None:
    admission = Admission(most=1000)
    for number in range(5000):
        hopeless = number % 10 == 5
        admission.admitted(0.001 if hopeless else 0.1)
        admission.left(1, 0.001 if hopeless else 0.02, 50, now=number * 1e-3)
    assert admission.limit == 1000


def test_it_stays_above_its_least() -> None:
    admission = Admission(most=1000, least=8)
    admission.admitted(0.1)
    for step in range(100):
        admission.left(1, 1.0, 1, now=10.0 * step)
    assert admission.limit == 8
