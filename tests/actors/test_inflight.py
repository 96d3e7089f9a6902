from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.inflight import InFlight, Pending


def pending(request_id: int, deadline: float, n_rows: int = 1) -> Pending:
    return Pending(
        request_id=request_id,
        route=b"client",
        model="m",
        version="v",
        n_rows=n_rows,
        arrived=0.0,
        parsed=0.0,
        deadline=deadline,
    )


def test_a_settled_request_is_wanted_once() -> None:
    flight = InFlight()
    flight.add(1, [pending(7, 1.0), pending(8, 1.0)], "executor")
    assert [(r.request_id, w) for r, w in flight.settle(1, [0])] == [(7, True)]
    assert [(r.request_id, w) for r, w in flight.settle(1, [0, 1])] == [(7, False), (8, True)]
    assert flight.n_requests == 0


def test_a_batch_that_nobody_waits_for_is_forgotten() -> None:
    flight = InFlight()
    flight.add(1, [pending(7, 1.0)], "executor")
    flight.settle(1, [0])
    assert flight.settle(1, [0]) == []
    assert flight.settle(2, [0]) == []


def test_only_those_past_their_deadline_expire_and_the_rest_stay() -> None:
    flight = InFlight()
    flight.add(1, [pending(1, 3.0), pending(2, 1.0), pending(3, 2.0)], "executor")
    assert [r.request_id for r in flight.expire(0.999)] == []
    assert [r.request_id for r in flight.expire(1.0)] == [2]
    assert [r.request_id for r in flight.expire(2.5)] == [3]
    assert [r.request_id for r in flight.fail(1)] == [1]
    assert flight.expire(10.0) == []


def test_an_executor_is_charged_the_rows_it_has_not_answered() -> None:
    flight = InFlight()
    flight.add(1, [pending(1, 1.0, 5), pending(2, 2.0, 7)], "a")
    flight.add(2, [pending(3, 1.0, 11)], "b")
    assert (flight.rows_at("a"), flight.rows_at("b"), flight.rows_at("c")) == (12, 11, 0)
    flight.settle(1, [1])
    flight.expire(1.0)
    assert (flight.rows_at("a"), flight.rows_at("b")) == (0, 0)


@given(
    st.lists(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=5), max_size=6),
    st.lists(
        st.one_of(
            st.tuples(st.just("settle"), st.integers(0, 6), st.integers(0, 4)),
            st.tuples(st.just("fail"), st.integers(0, 6), st.just(0)),
            st.tuples(st.just("expire"), st.integers(0, 12), st.just(0)),
        ),
        max_size=30,
    ),
)
def test_each_request_leaves_exactly_once(
    batches: list[list[float]], events: list[tuple[str, int, int]]
) -> None:
    flight = InFlight()
    left: list[int] = []
    for seq, deadlines in enumerate(batches):
        requests = [pending(seq * 10 + i, deadline) for i, deadline in enumerate(deadlines)]
        flight.add(seq, requests, "executor")
    for kind, a, b in events:
        if kind == "settle" and a < len(batches) and b < len(batches[a]):
            left += [r.request_id for r, wanted in flight.settle(a, [b]) if wanted]
        elif kind == "fail":
            left += [r.request_id for r in flight.fail(a)]
        elif kind == "expire":
            left += [r.request_id for r in flight.expire(float(a))]
    for seq in range(len(batches)):
        left += [r.request_id for r in flight.fail(seq)]
    assert sorted(left) == [s * 10 + i for s, d in enumerate(batches) for i in range(len(d))]
    assert flight.n_requests == 0
    assert flight.rows_at("executor") == 0
