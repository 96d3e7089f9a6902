from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.bundle.manifest import Lookup, Manifest, Pooling, SideLayout, Source, Table
from kernels.shards import Run, assign_tables, shard_layout


def make_lookup(
    table: str,
    first_id: int,
    n_ids: int,
    *,
    dim: int = 4,
    offset: int = 0,
    pooling: Pooling = "none",
    first_weight: int | None = None,
    side: Literal["user", "candidate"] = "candidate",
) -> Lookup:
    return Lookup(
        side=side,
        table=table,
        tensor=f"{table}[{first_id}]",
        pooling=pooling,
        first_id=first_id,
        n_ids=n_ids,
        first_weight=first_weight,
        offset=offset,
        width=n_ids * dim if pooling == "none" else dim,
    )


def make_side(lookups: list[Lookup], n_values: int = 0) -> SideLayout:
    n_ids = max((lookup.first_id + lookup.n_ids for lookup in lookups), default=0)
    n_weights = max(
        (
            lookup.first_weight + lookup.n_ids
            for lookup in lookups
            if lookup.first_weight is not None
        ),
        default=0,
    )
    return SideLayout(
        ids=tuple(Source(feature=f"id{i}") for i in range(n_ids)),
        weights=tuple(Source(feature=f"w{i}") for i in range(n_weights)),
        values=tuple(Source(feature=f"v{i}") for i in range(n_values)),
        lookups=tuple(lookups),
        width=sum(lookup.width for lookup in lookups) + n_values,
        program=None,
    )


def make_manifest(candidate: list[Lookup], user: list[Lookup], rows: dict[str, int]) -> Manifest:
    return Manifest(
        format=1,
        model="m",
        version="v",
        tables=tuple(
            Table(name=name, rows=n, dim=4, dtype="float32", file=f"{name}.npy")
            for name, n in rows.items()
        ),
        user=make_side(user),
        candidate=make_side(candidate),
        outputs=(),
        kept=(),
    )


def test_a_shards_ids_weights_and_columns_are_counted_within_the_shard() -> None:
    side = make_side(
        [
            make_lookup("a", 0, 2, offset=0),
            make_lookup("b", 2, 3, offset=8, pooling="sum", first_weight=0),
            make_lookup("c", 5, 1, offset=12),
            make_lookup("d", 6, 2, offset=16, pooling="max", first_weight=3),
        ],
        n_values=2,
    )
    layout = shard_layout(side, {"b", "d", "elsewhere"})
    assert layout.tables == ("b", "d")
    assert layout.id_rows.tolist() == [2, 3, 4, 6, 7]
    assert layout.weight_rows.tolist() == [0, 1, 2, 3, 4]
    assert [(x.first_id, x.first_weight, x.offset) for x in layout.lookups] == [
        (0, 0, 0),
        (3, 3, 4),
    ]
    assert layout.width == 8
    assert layout.runs == (Run(0, 8, 4), Run(4, 16, 4))


def test_adjoining_lookups_are_one_run() -> None:
    side = make_side([make_lookup(name, i, 1, offset=4 * i) for i, name in enumerate("abcd")])
    assert shard_layout(side, "abd").runs == (Run(0, 0, 8), Run(8, 12, 4))
    assert shard_layout(side, "abcd").runs == (Run(0, 0, 16),)


def test_ids_that_several_lookups_read_are_sent_once() -> None:
    side = make_side(
        [
            make_lookup("a", 1, 3, offset=0, pooling="mean"),
            make_lookup("b", 2, 4, offset=4),
            make_lookup("a", 2, 1, offset=20),
        ]
    )
    layout = shard_layout(side, {"a"})
    assert layout.id_rows.tolist() == [1, 2, 3]
    assert [lookup.first_id for lookup in layout.lookups] == [0, 1]
    assert shard_layout(side, {"a", "b"}).id_rows.tolist() == [1, 2, 3, 4, 5]


def test_a_shard_without_lookups_on_a_side_has_an_empty_part() -> None:
    layout = shard_layout(make_side([make_lookup("a", 0, 2)]), {"b"})
    assert (layout.width, layout.lookups, layout.runs) == (0, (), ())
    assert layout.id_rows.tolist() == layout.weight_rows.tolist() == []
    assert layout == shard_layout(make_side([]), ())


def test_runs_of_all_shards_cover_the_lookups_columns_once() -> None:
    lookups = [make_lookup("abcdefg"[i % 7], i, 1, offset=4 * i) for i in range(20)]
    side = make_side(lookups, n_values=3)
    covered = np.zeros(side.width, int)
    for tables in ("ag", "bcd", "ef"):
        layout = shard_layout(side, tables)
        assert sum(run.width for run in layout.runs) == layout.width
        for run in layout.runs:
            covered[run.block : run.block + run.width] += 1
    assert covered.tolist() == [1] * 80 + [0] * 3


def test_equal_tables_are_divided_evenly_and_in_block_order() -> None:
    lookups = [make_lookup(name, i, 1, offset=4 * i) for i, name in enumerate("abcdef")]
    manifest = make_manifest(lookups, [], dict.fromkeys("fedcba", 100))
    assert assign_tables(manifest, 1) == [tuple("abcdef")]
    assert assign_tables(manifest, 2) == [tuple("abc"), tuple("def")]
    assert assign_tables(manifest, 3) == [tuple("ab"), tuple("cd"), tuple("ef")]


def test_a_huge_table_is_alone_in_its_shard() -> None:
    lookups = [make_lookup(name, i, 1, offset=4 * i) for i, name in enumerate("abcd")]
    manifest = make_manifest(lookups, [], {"a": 10, "b": 10, "c": 10**6, "d": 10})
    assert assign_tables(manifest, 3) == [("a", "b"), ("c",), ("d",)]


def test_user_tables_follow_and_count_for_less_traffic() -> None:
    candidate = [make_lookup("a", 0, 1), make_lookup("b", 1, 1, offset=4)]
    user = [make_lookup(name, i, 1, offset=4 * i, side="user") for i, name in enumerate("ucd")]
    manifest = make_manifest(candidate, user, dict.fromkeys("abcdu", 1))
    assert assign_tables(manifest, 2) == [("a",), ("b", "u", "c", "d")]


def test_shards_without_a_table_are_empty() -> None:
    manifest = make_manifest([make_lookup("a", 0, 1)], [], {"a": 1})
    assert assign_tables(manifest, 3) == [("a",), (), ()]
    assert assign_tables(make_manifest([], [], {}), 2) == [(), ()]


def test_a_table_that_nothing_looks_up_is_assigned_all_the_same() -> None:
    manifest = make_manifest([make_lookup("a", 0, 1)], [], {"a": 1, "unused": 5})
    assert sorted(itertools.chain(*assign_tables(manifest, 2))) == ["a", "unused"]


def test_no_shards_is_an_error() -> None:
    with pytest.raises(ValueError, match="n_shards: want at least 1, got 0"):
        assign_tables(make_manifest([], [], {}), 0)


@given(rows=st.lists(st.integers(1, 10**6), min_size=1, max_size=7), n_shards=st.integers(1, 4))
def test_no_other_contiguous_cut_is_better(rows: list[int], n_shards: int) -> None:
    names = "abcdefg"[: len(rows)]
    lookups = [make_lookup(name, i, 1 + i % 3, offset=i) for i, name in enumerate(names)]
    manifest = make_manifest(lookups, [], dict(zip(names, rows, strict=True)))
    share = {
        name: (n / sum(rows), (1 + i % 3) / sum(1 + j % 3 for j in range(len(rows))))
        for i, (name, n) in enumerate(zip(names, rows, strict=True))
    }

    def cost(shards: list[tuple[str, ...]]) -> float:
        return sum(
            sum(share[name][kind] for name in shard) ** 2 for shard in shards for kind in (0, 1)
        )

    got = assign_tables(manifest, n_shards)
    assert len(got) == n_shards
    assert "".join(itertools.chain(*got)) == names
    others = [
        [tuple(names[a:b]) for a, b in itertools.pairwise((0, *cuts, len(names)))]
        for cuts in itertools.combinations_with_replacement(range(len(names) + 1), n_shards - 1)
    ]
    assert cost(got) <= min(map(cost, others)) * (1 + 1e-9)
