from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.buckets import (
    Cost,
    Work,
    bucket_of,
    choose_buckets,
    fit,
    spent,
    usual_buckets,
)
from kernels.program import Bucket

LARGEST = Bucket(96, 64)
ROWS = Cost()
COSTS = st.sampled_from([ROWS, Cost(1.0, 1.0), Cost(1.0, 20.0), Cost(0.0, 1.0)])
SHAPES = st.builds(Bucket, st.integers(1, LARGEST.rows), st.integers(1, LARGEST.requests))
TRAFFIC = st.dictionaries(SHAPES, st.integers(1, 50), max_size=6)


def test_usual_buckets_are_powers_of_two_and_the_largest() -> None:
    assert [each.rows for each in usual_buckets(700, 256)] == [64, 128, 256, 512, 700]
    assert [each.requests for each in usual_buckets(700, 256)] == [64, 128, 256, 256, 256]
    assert usual_buckets(10, 4) == (Bucket(10, 4),)
    assert [each.rows for each in usual_buckets(256, 1)] == [64, 128, 256]


def test_a_batch_runs_in_the_first_bucket_that_holds_rows_and_requests() -> None:
    buckets = (Bucket(64, 4), Bucket(64, 16), Bucket(128, 8), Bucket(256, 32))
    assert fit(buckets, 1, 1) == Bucket(64, 4)
    assert fit(buckets, 64, 5) == Bucket(64, 16)
    assert fit(buckets, 65, 8) == Bucket(128, 8)
    assert fit(buckets, 65, 9) == Bucket(256, 32)
    assert fit(buckets, 257, 1) is None
    assert fit(buckets, 1, 33) is None


def test_buckets_follow_the_rows_of_a_traffic() -> None:
    traffic = {Bucket(100): 1000, Bucket(270): 500, Bucket(700): 10}
    most = Bucket(1024, 64)
    for n, want in ((3, [112, 272, 1024]), (4, [112, 272, 704, 1024]), (9, [112, 272, 704, 1024])):
        chosen = choose_buckets(traffic, n, most, ROWS)
        assert [each.rows for each in chosen] == want
        assert chosen[-1] == most
    assert choose_buckets({}, 3, most, ROWS) == (most,)


def test_buckets_follow_the_requests_of_a_traffic_where_these_cost() -> None:
    few, many = Bucket(512, 1), Bucket(500, 200)
    most = Bucket(512, 256)
    assert choose_buckets({few: 9, many: 1}, 2, most, Cost(1.0, 1.0)) == (Bucket(512, 16), most)
    chosen = choose_buckets({few: 9, many: 1}, 3, most, Cost(1.0, 1.0))
    assert chosen == (Bucket(512, 16), Bucket(512, 208), most)


def test_buckets_need_not_hold_each_other() -> None:
    """Long requests by themselves, and many short ones: neither shape holds the other."""
    alone, together = Bucket(1000, 1), Bucket(200, 100)
    most = Bucket(1024, 256)
    chosen = choose_buckets({alone: 10, together: 10}, 3, most, Cost(1.0, 10.0))
    assert set(chosen) == {Bucket(1008, 16), Bucket(208, 112), most}


def brute_force(traffic: Mapping[Bucket, int], n_most: int, cost: Cost) -> tuple[float, float]:
    """Return the least cost of all choices, and of those of buckets of which each holds another."""

    def sizes(found: Sequence[int], most: int) -> list[int]:
        return sorted({min(-(-each // 16) * 16, most) for each in found} | {most})

    rows = sizes([each.rows for each in traffic], LARGEST.rows)
    requests = sizes([each.requests for each in traffic], LARGEST.requests)
    shapes = [Bucket(*each) for each in product(rows, requests)]
    best = nested = float("inf")
    for some in combinations([each for each in shapes if each != LARGEST], min(n_most, 3) - 1):
        found = spent(traffic, [*some, LARGEST], cost)
        best = min(best, found)
        if all(a.rows <= b.rows and a.requests <= b.requests for a, b in combinations(some, 2)):
            nested = min(nested, found)
    if n_most > 1:
        alone = brute_force(traffic, n_most - 1, cost)
        best, nested = min(best, alone[0]), min(nested, alone[1])
    return best, nested


@given(TRAFFIC, st.integers(1, 3), COSTS)
def test_no_nested_choice_costs_less_and_none_at_all_saves_twice_as_much(
    traffic: dict[Bucket, int], n_most: int, cost: Cost
) -> None:
    chosen = choose_buckets(traffic, n_most, LARGEST, cost)
    assert 1 <= len(chosen) <= n_most
    assert list(chosen) == sorted(set(chosen), key=cost.order)
    assert LARGEST in chosen
    assert all(fit(chosen, each.rows, each.requests) is not None for each in traffic)
    best, nested = brute_force(traffic, n_most, cost)
    found, alone = spent(traffic, chosen, cost), spent(traffic, [LARGEST], cost)
    assert best <= found + 1e-9
    assert found <= nested * (1 + 1e-12)
    assert alone - found >= 0.5 * (alone - best) - 1e-9


@given(TRAFFIC.filter(bool), COSTS)
def test_what_is_spent_is_what_each_batch_takes(traffic: dict[Bucket, int], cost: Cost) -> None:
    exact = sum(cost.of(shape) * count for shape, count in traffic.items())
    assert spent(traffic, [*traffic, LARGEST], cost) == pytest.approx(exact)
    assert spent(traffic, [LARGEST], cost) == cost.of(LARGEST) * sum(traffic.values())


def test_many_shapes_are_chosen_among_a_few_hundred() -> None:
    traffic = {Bucket(rows, 1 + rows * 7 % 256): rows for rows in range(1, 2049)}
    chosen = choose_buckets(traffic, 6, Bucket(2048, 256), Cost(1.0, 2.0))
    assert len(chosen) == 6
    even = [bucket_of(rows, 256) for rows in (64, 128, 256, 512, 1024, 2048)]
    cost = Cost(1.0, 2.0)
    assert spent(traffic, chosen, cost) < spent(traffic, even, cost)


def test_work_takes_seconds_for_bytes_and_products() -> None:
    assert Work(3_000_000, 800_000_000).seconds == pytest.approx(2e-6)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 bucket"):
        choose_buckets({}, 0, Bucket(64), ROWS)
    with pytest.raises(ValueError, match="65 rows of 1 requests is none of 64 rows of 1 requests"):
        choose_buckets({Bucket(65): 1}, 2, Bucket(64), ROWS)
