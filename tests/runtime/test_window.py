from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.window import Slice, Window, WindowPolicy

FOREVER = 1e9


def make_policy(
    *,
    max_rows: int = 100,
    max_requests: int = 8,
    n_lanes: int = 1,
    linger: float = 0.0,
    backlog_rows: int = 10_000,
    shed: bool = True,
    seconds: Callable[[int], float] | None = None,
) -> WindowPolicy[str]:
    """Make a policy whose buckets are exact; ``seconds`` of rows is what it has learned so far."""
    policy = WindowPolicy[str](
        max_rows=max_rows,
        max_requests=max_requests,
        n_lanes=n_lanes,
        bucket=lambda n_rows: n_rows,
        linger=linger,
        backlog_rows=backlog_rows,
        shed=shed,
    )
    if seconds is not None:
        for n_rows in {1, *range(10, max_rows, 10), max_rows}:
            for _ in range(40):  # enough for the deviation to vanish
                policy.learn(n_rows, seconds(n_rows))
    return policy


def take(policy: WindowPolicy[str], now: float = 0.0) -> Window[str]:
    window = policy.next_window(now)
    assert window is not None
    return window


def keys(window: Window[str]) -> str:
    return "".join(piece.key for piece in window.slices)


def test_an_idle_lane_takes_a_request_at_once() -> None:
    policy = make_policy()
    assert policy.offer("a", 3, deadline=1.0, now=0.0)
    window = take(policy)
    assert window.slices == [Slice("a", 0, 3)]
    assert (window.lane, window.n_rows, window.cause) == (0, 3, "idle")
    assert policy.n_rows == policy.n_requests == 0


def test_requests_that_come_while_every_lane_is_busy_share_the_next_window() -> None:
    policy = make_policy()
    policy.offer("a", 3, 1.0, 0.0)
    first = take(policy)
    for key in "bcd":
        policy.offer(key, 5, 1.0, 0.1)
    assert policy.next_window(0.1) is None
    policy.finished(first, 0.001)
    second = take(policy, 0.2)
    assert keys(second) == "bcd"
    assert (second.n_rows, second.cause) == (15, "idle")


def test_a_window_closes_on_rows_and_nobody_overtakes_the_request_that_did_not_fit() -> None:
    policy = make_policy(max_rows=100, n_lanes=2)
    for key, n_rows in (("a", 60), ("b", 30), ("c", 11), ("d", 1)):
        policy.offer(key, n_rows, FOREVER, 0.0)
    first, second = take(policy), take(policy)
    assert (keys(first), first.n_rows, first.cause) == ("ab", 90, "capacity")
    assert keys(second) == "cd"
    assert {first.lane, second.lane} == {0, 1}


def test_a_window_closes_on_requests() -> None:
    policy = make_policy(max_requests=2)
    for key in "abc":
        policy.offer(key, 1, FOREVER, 0.0)
    window = take(policy)
    assert (keys(window), window.cause) == ("ab", "capacity")


def test_a_request_that_fills_a_window_exactly_is_not_split() -> None:
    policy = make_policy(max_rows=100)
    policy.offer("a", 100, FOREVER, 0.0)
    assert take(policy).slices == [Slice("a", 0, 100)]


def test_a_large_request_is_split_and_its_tail_shares_a_window() -> None:
    policy = make_policy(max_rows=100, n_lanes=4)
    policy.offer("a", 40, FOREVER, 0.0)
    policy.offer("b", 250, FOREVER, 0.0)
    policy.offer("c", 5, FOREVER, 0.0)
    windows = [take(policy) for _ in range(3)]
    assert [window.slices for window in windows] == [
        [Slice("a", 0, 40), Slice("b", 0, 60)],
        [Slice("b", 60, 160)],
        [Slice("b", 160, 250), Slice("c", 0, 5)],
    ]
    assert [window.cause for window in windows] == ["capacity", "capacity", "idle"]
    assert policy.next_window(0.0) is None


def test_the_earliest_deadline_goes_first() -> None:
    policy = make_policy(max_requests=1, n_lanes=3)
    for key, deadline in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        policy.offer(key, 1, deadline, 0.0)
    assert [keys(take(policy)) for _ in range(3)] == ["b", "c", "a"]


def test_equal_deadlines_go_in_the_order_of_arrival() -> None:
    policy = make_policy(max_requests=1, n_lanes=3)
    for key in "bca":
        policy.offer(key, 1, 1.0, 0.0)
    assert [keys(take(policy)) for _ in range(3)] == ["b", "c", "a"]


def test_a_late_request_is_expired_and_never_launched() -> None:
    policy = make_policy()
    policy.offer("a", 1, 1.0, 0.0)
    policy.offer("b", 1, 2.0, 0.0)
    assert keys(take(policy, 1.0)) == "b"
    assert policy.expire(1.0) == ["a"]
    assert policy.expire(5.0) == []


def test_requests_expire_while_every_lane_is_busy() -> None:
    policy = make_policy()
    policy.offer("a", 1, FOREVER, 0.0)
    take(policy)
    policy.offer("b", 1, 1.0, 0.0)
    assert policy.wake_at(0.5) == 1.0
    assert policy.expire(0.999) == []
    assert policy.expire(1.0) == ["b"]
    assert policy.wake_at(1.0) is None
    assert policy.n_rows == 0


def test_what_is_left_of_a_split_request_expires_once() -> None:
    policy = make_policy(max_rows=100)
    policy.offer("a", 250, 1.0, 0.0)
    window = take(policy)
    policy.finished(window, 0.5)
    assert policy.n_rows == 150
    assert policy.expire(1.0) == ["a"]
    assert (policy.n_rows, policy.n_requests) == (0, 0)


def test_a_cancelled_request_is_not_launched() -> None:
    policy = make_policy(max_rows=100)
    for key, n_rows in (("a", 5), ("b", 250), ("c", 5)):
        policy.offer(key, n_rows, 1.0, 0.0)
    policy.finished(take(policy), 0.0)
    assert policy.cancel("b")
    assert not policy.cancel("b")
    assert not policy.cancel("a")
    assert keys(take(policy)) == "c"
    assert policy.n_rows == 0
    assert policy.expire(2.0) == []


def test_above_the_high_water_mark_requests_are_refused() -> None:
    policy = make_policy(backlog_rows=10)
    assert policy.offer("a", 8, 1.0, 0.0)
    assert not policy.offer("b", 3, 1.0, 0.0)
    assert policy.offer("c", 2, 1.0, 0.0)
    assert keys(take(policy)) == "ac"
    assert policy.offer("b", 3, 1.0, 0.0)


def test_an_empty_queue_takes_a_request_above_the_high_water_mark() -> None:
    assert make_policy(backlog_rows=10).offer("a", 50, 1.0, 0.0)


def test_a_key_that_waits_and_a_request_without_rows_are_errors() -> None:
    policy = make_policy()
    policy.offer("a", 1, 1.0, 0.0)
    with pytest.raises(ValueError, match="offered twice"):
        policy.offer("a", 1, 1.0, 0.0)
    with pytest.raises(ValueError, match="0 rows"):
        policy.offer("b", 0, 1.0, 0.0)


def test_a_lane_that_finishes_twice_is_an_error() -> None:
    policy = make_policy()
    policy.offer("a", 1, 1.0, 0.0)
    window = take(policy)
    policy.finished(window, 0.1)
    with pytest.raises(ValueError, match="finished twice"):
        policy.finished(window, 0.1)


def test_launch_times_are_learned_but_not_from_failures() -> None:
    policy = make_policy()
    for seconds in (4e-3, None):
        policy.offer("a", 7, 1.0, 0.0)
        policy.finished(take(policy), seconds)
    assert policy.predict(7) == 4e-3


def test_lingering_closes_after_its_time() -> None:
    policy = make_policy(linger=0.010)
    policy.offer("a", 1, 1.0, now=0.0)
    assert policy.next_window(0.0) is None
    policy.offer("b", 1, 1.0, now=0.004)
    assert policy.wake_at(0.004) == 0.010
    assert policy.next_window(0.009) is None
    window = take(policy, 0.010)
    assert (keys(window), window.cause) == ("ab", "idle")


def test_lingering_closes_when_the_window_is_full() -> None:
    policy = make_policy(linger=10.0, max_rows=100)
    policy.offer("a", 60, FOREVER, 0.0)
    policy.offer("b", 60, FOREVER, 0.0)
    window = take(policy)
    assert (keys(window), window.cause) == ("a", "capacity")


def test_lingering_closes_when_the_first_deadline_less_the_predicted_time_is_now() -> None:
    policy = make_policy(linger=10.0, seconds=lambda _: 0.25)
    policy.offer("a", 10, deadline=5.0, now=0.0)
    policy.offer("b", 10, deadline=1.0, now=0.0)
    wake = policy.wake_at(0.0)
    assert wake is not None
    assert wake == pytest.approx(0.75, abs=0.001)
    assert policy.next_window(0.74) is None
    window = take(policy, wake)
    assert (keys(window), window.cause) == ("ba", "deadline")


def test_a_window_is_cut_short_for_a_deadline_where_small_launches_are_as_efficient() -> None:
    policy = make_policy(seconds=lambda n_rows: n_rows / 100)
    policy.offer("a", 20, deadline=10.0, now=-9.5)  # half a second left, its window needs 0.2
    for key in "bcd":
        policy.offer(key, 20, deadline=20.0, now=0.0)
    window = take(policy, 9.5)
    assert (keys(window), window.cause) == ("ab", "deadline")


def test_a_window_is_not_cut_short_where_small_launches_take_as_long() -> None:
    policy = make_policy(seconds=lambda n_rows: 0.45 + n_rows / 1000)
    policy.offer("a", 20, deadline=10.0, now=-9.5)
    for key in "bcd":
        policy.offer(key, 20, deadline=20.0, now=0.0)
    assert keys(take(policy, 9.5)) == "abcd"


def test_a_window_takes_at_most_half_of_its_first_requests_budget() -> None:
    policy = make_policy(seconds=lambda n_rows: n_rows / 100)
    for key in "abcd":
        policy.offer(key, 20, deadline=0.9, now=0.0)
    window = take(policy)
    assert (keys(window), window.cause) == ("ab", "deadline")


def test_a_window_may_take_as_long_as_two_launches_of_one_row_whatever_the_budget() -> None:
    policy = make_policy(seconds=lambda _: 0.5)
    for key in "abcd":
        policy.offer(key, 20, deadline=0.9, now=0.0)
    assert keys(take(policy)) == "abcd"


def overloaded_policy(*, shed: bool) -> WindowPolicy[str]:
    """Make a policy with two requests that are nearly late before a full window of others."""
    policy = make_policy(max_rows=60, shed=shed, seconds=lambda _: 0.4)
    for key in "ab":
        policy.offer(key, 20, deadline=1.0, now=0.0)
    for key in "cdef":
        policy.offer(key, 20, deadline=5.0, now=0.0)
    return policy


def test_with_a_full_window_waiting_requests_that_would_be_late_are_given_up() -> None:
    policy = overloaded_policy(shed=True)
    assert keys(take(policy, 0.7)) == "cde"
    assert policy.expire(0.7) == ["a", "b"]


def test_nothing_is_given_up_early_if_so_configured() -> None:
    policy = overloaded_policy(shed=False)
    assert keys(take(policy, 0.7)) == "abc"
    assert policy.expire(0.7) == []


def test_without_a_full_window_waiting_a_request_that_is_likely_late_is_launched_all_the_same() -> (
    None
):
    policy = make_policy(seconds=lambda _: 0.4)
    policy.offer("a", 20, deadline=1.0, now=0.0)
    assert keys(take(policy, 0.9)) == "a"


def test_a_request_too_large_for_its_budget_gives_way_to_others() -> None:
    policy = make_policy(max_rows=100, seconds=lambda _: 0.4)
    policy.offer("a", 1000, deadline=2.0, now=0.0)  # needs 4 seconds
    policy.offer("b", 20, deadline=3.0, now=0.0)
    assert keys(take(policy)) == "b"
    assert policy.expire(0.0) == ["a"]


def test_a_request_too_large_for_its_budget_is_tried_if_nothing_else_waits() -> None:
    policy = make_policy(max_rows=100, seconds=lambda _: 0.4)
    policy.offer("a", 1000, deadline=2.0, now=0.0)
    assert keys(take(policy)) == "a"


@attrs.frozen
class Arrival:
    gap: float
    n_rows: int
    budget: float
    cancelled_after: float | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        gap=st.floats(0, 0.05),
        n_rows=st.integers(1, 250),
        budget=st.floats(0, 0.5),
        cancelled_after=st.none() | st.floats(0, 0.2),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(
    arrivals=ARRIVALS,
    durations=st.lists(st.floats(0, 0.2), min_size=1, max_size=10),
    n_lanes=st.integers(1, 3),
    linger=st.sampled_from([0.0, 0.02]),
    shed=st.booleans(),
    backlog_rows=st.integers(100, 1000),
)
def test_every_row_is_launched_once_or_its_request_is_refused_expired_or_cancelled(
    arrivals: list[Arrival],
    durations: list[float],
    n_lanes: int,
    linger: float,
    shed: bool,
    backlog_rows: int,
) -> None:
    policy = make_policy(
        n_lanes=n_lanes, linger=linger, shed=shed, backlog_rows=backlog_rows, max_rows=100
    )
    events: list[tuple[float, int, str, object]] = []
    now = 0.0
    n_rows, deadlines = {}, {}
    for index, arrival in enumerate(arrivals):
        now += arrival.gap
        key = str(index)
        n_rows[key], deadlines[key] = arrival.n_rows, now + arrival.budget
        heapq.heappush(events, (now, len(events), "offer", key))
        if arrival.cancelled_after is not None:
            heapq.heappush(events, (now + arrival.cancelled_after, len(events), "cancel", key))

    launched: dict[str, list[tuple[int, int]]] = {key: [] for key in n_rows}
    outcomes: Counter[str] = Counter()
    n_events, n_windows, busy = len(events), 0, set[int]()
    while events:
        now, _, kind, what = heapq.heappop(events)
        if isinstance(what, Window):
            busy.remove(what.lane)
            policy.finished(what, durations[what.n_rows % len(durations)])
        elif kind == "offer":
            outcomes[str(what)] += not policy.offer(
                str(what), n_rows[str(what)], deadlines[str(what)], now
            )
        elif kind == "cancel":
            outcomes[str(what)] += policy.cancel(str(what))
        while (window := policy.next_window(now)) is not None:
            assert window.lane not in busy
            assert 0 < window.n_rows <= 100
            assert 0 < len(window.slices) <= 8
            assert window.n_rows == sum(piece.stop - piece.start for piece in window.slices)
            for piece in window.slices:
                assert deadlines[piece.key] > now
                launched[piece.key].append((piece.start, piece.stop))
            busy.add(window.lane)
            n_events += 1
            duration = durations[n_windows % len(durations)]
            heapq.heappush(events, (now + duration, n_events, "finished", window))
            n_windows += 1
        outcomes.update(policy.expire(now))
        wake = policy.wake_at(now)
        assert (wake is None) == (policy.n_requests == 0)
        if wake is not None:
            assert wake > now
            n_events += 1
            heapq.heappush(events, (wake, n_events, "wake", None))
        if linger == 0:
            assert policy.n_idle == 0 or policy.n_requests == 0
        assert policy.n_idle == n_lanes - len(busy)

    assert (policy.n_rows, policy.n_requests) == (0, 0)
    for key, pieces in launched.items():
        starts = [0, *(stop for _, stop in pieces)]
        assert [start for start, _ in pieces] == starts[:-1]  # in order, no gap, no overlap
        assert outcomes[key] == (starts[-1] < n_rows[key])  # the rest was answered exactly once


def goodput(load: float, seconds: Callable[[int], float], budget: float, n_lanes: int = 1) -> float:
    """Simulate Poisson arrivals of lognormal sizes; return the share answered in time."""
    rng = random.Random(1)
    policy = WindowPolicy[int](
        max_rows=1024,
        max_requests=256,
        n_lanes=n_lanes,
        bucket=lambda n_rows: 1 << (n_rows - 1).bit_length(),
        backlog_rows=100_000,
    )
    mean_rows = 32 * math.exp(0.5)
    rate = load * n_lanes * 1024 / seconds(1024) / mean_rows
    n_requests = 4000
    arrive, now = [], 0.0
    for _ in range(n_requests):
        now += rng.expovariate(rate)
        arrive.append(now)
    finishing: list[tuple[float, int, Window[int]]] = []
    good = at = n_windows = 0
    while at < n_requests or finishing or policy.n_requests:
        next_finish = finishing[0][0] if finishing else math.inf
        if at < n_requests and arrive[at] <= next_finish:
            now = arrive[at]
            n_rows = min(512, max(1, int(rng.lognormvariate(math.log(32), 1))))
            policy.offer(at, n_rows, now + budget, now)
            at += 1
        else:
            now, _, done = heapq.heappop(finishing)
            policy.finished(done, seconds(done.n_rows))
            good += sum(arrive[piece.key] + budget >= now for piece in done.slices)
        while (window := policy.next_window(now)) is not None:
            n_windows += 1
            noise = max(0.5, rng.gauss(1.0, 0.1))
            ends = now + seconds(window.n_rows) * noise
            heapq.heappush(finishing, (ends, n_windows, window))
        policy.expire(now)
    return good / n_requests


@pytest.mark.parametrize("n_lanes", [1, 2])
@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(lambda n_rows: 20e-6 + 1.8e-6 * n_rows, id="time grows with the rows"),
        pytest.param(lambda n_rows: 1e-3 + 0.5e-6 * n_rows, id="time hardly depends on rows"),
    ],
)
def test_goodput_stays_near_the_lanes_capacity_under_overload(
    seconds: Callable[[int], float], n_lanes: int
) -> None:
    budget = 5 * seconds(1024)
    assert goodput(0.7, seconds, budget, n_lanes) > 0.99
    assert goodput(1.5, seconds, budget, n_lanes) > 0.62
    assert goodput(3.0, seconds, budget, n_lanes) > 0.29
