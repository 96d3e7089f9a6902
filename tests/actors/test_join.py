from __future__ import annotations

import itertools

import attrs
import numpy as np
import pytest

from actors.block_layout import BlockLayout
from actors.join import Join
from actors.joins import Joins
from kernels.bundle.manifest import Lookup, SideLayout, SideName, Source
from kernels.lookup import ShardLayout, shard_layout
from kernels.shards import Run
from transport.messages import Batch, RowsPart

N_ROWS = [2, 0, 3]


def side(name: SideName) -> SideLayout:
    """Three tables of dims 2, 1 and 3, and two values: a block of 8 columns."""
    offsets = {"a": (0, 2), "b": (2, 1), "c": (3, 3)}
    lookups = tuple(
        Lookup(
            side=name,
            table=table,
            tensor=table,
            pooling="none",
            first_id=index,
            n_ids=1,
            first_weight=None,
            offset=offset,
            width=width,
        )
        for index, (table, (offset, width)) in enumerate(offsets.items())
    )
    return SideLayout(
        ids=tuple(Source(feature=f"f{i}") for i in range(3)),
        weights=(),
        values=(Source(feature="x"), Source(feature="y")),
        lookups=lookups,
        width=8,
        program=None,
    )


def layouts() -> list[tuple[ShardLayout, ShardLayout]]:
    """Shard 0 holds a and c, whose columns are apart; shard 1 holds b."""
    return [
        (shard_layout(side("user"), tables), shard_layout(side("candidate"), tables))
        for tables in (("a", "c"), ("b",))
    ]


VALUES = (Run(0, 6, 2),)
LAYOUT = BlockLayout(layouts(), user_values=VALUES, candidate_values=VALUES)
RNG = np.random.default_rng(7)
USER = RNG.standard_normal((len(N_ROWS), 8)).astype(np.float32)
CANDIDATE = RNG.standard_normal((sum(N_ROWS), 8)).astype(np.float32)


def head(budget_us: int = 50_000) -> Batch:
    return Batch(
        gateway="gateway",
        seq=3,
        model="m",
        version="v",
        n_parts=2,
        n_rows=np.array(N_ROWS, np.int32),
        budgets_us=np.full(len(N_ROWS), budget_us, np.int64),
        user_values=USER[:, 6:].copy(),
        candidate_values=CANDIDATE[:, 6:].copy(),
    )


def parts() -> list[RowsPart]:
    columns = ([0, 1, 3, 4, 5], [2])
    return [
        RowsPart(
            gateway="gateway",
            seq=3,
            version="v",
            part=index,
            user=USER[:, chosen].copy(),
            candidate=CANDIDATE[:, chosen].copy(),
        )
        for index, chosen in enumerate(columns)
    ]


def joined(first: RowsPart | None = None) -> Join:
    joins = Joins()
    assert joins.begin(head(), 1.0) is None
    zero, one = parts()
    assert joins.add(first or zero, 1.1, 5.0) is None
    join = joins.add(one, 1.2, 5.0)
    assert join is not None
    return join


@pytest.mark.parametrize("order", list(itertools.permutations(["head", 0, 1])))
def test_a_batch_joins_in_any_order(order: tuple[str | int, ...]) -> None:
    joins = Joins()
    results = [
        joins.begin(head(), 1.0 + i)
        if what == "head"
        else joins.add(parts()[int(what)], 1.0 + i, 5.0)
        for i, what in enumerate(order)
    ]
    assert results[:2] == [None, None]
    join = results[2]
    assert join is not None
    assert (join.arrived, join.joined) == (1.0, 3.0)
    assert join.problem(LAYOUT) is None
    assert len(joins) == 0


def test_parts_and_values_land_in_their_columns() -> None:
    join = joined()
    user = np.full((2, 8), np.nan, np.float32)
    join.copy_user(LAYOUT, user, 1, 3)
    np.testing.assert_array_equal(user, USER[1:3])
    rows = np.full((3, 8), np.nan, np.float32)
    join.copy_candidates(LAYOUT, rows, 1, 4)
    np.testing.assert_array_equal(rows, CANDIDATE[1:4])


def test_a_failed_part_fails_the_join_with_its_words() -> None:
    failed = attrs.evolve(parts()[0], code="unavailable", message="shard-0 has no such model")
    assert joined(failed).problem(LAYOUT) == ("unavailable", "shard-0 has no such model")


def test_a_part_of_the_wrong_shape_is_refused() -> None:
    wrong = attrs.evolve(parts()[0], candidate=np.zeros((4, 5), np.float32))
    problem = joined(wrong).problem(LAYOUT)
    assert problem is not None
    assert problem[0] == "internal"
    assert "(4, 5)" in problem[1]


def test_a_join_is_forgotten_when_its_last_budget_is_spent() -> None:
    joins = Joins()
    joins.begin(head(budget_us=50_000), 1.0)
    assert joins.next_deadline() == pytest.approx(1.05)
    assert joins.expire(1.04) == 0
    assert joins.expire(1.06) == 1
    assert len(joins) == 0
    # What comes late starts nothing that lasts.
    assert joins.add(parts()[0], 1.07, 5.0) is None
    assert joins.expire(10.0) == 1
    assert joins.next_deadline() is None


def test_a_part_before_its_head_waits_for_it() -> None:
    joins = Joins()
    joins.add(parts()[0], 1.0, 0.5)
    joins.begin(head(budget_us=2_000_000), 1.1)
    assert joins.expire(1.6) == 0
    assert joins.add(parts()[1], 1.7, 0.5) is not None
