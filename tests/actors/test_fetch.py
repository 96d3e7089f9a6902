from __future__ import annotations

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actors.fetch import FetchLayout, Wanted
from kernels.bundle.manifest import Lookup, Manifest, Pooling, SideLayout, SideName, Source, Table
from kernels.errors import LookupFailed
from kernels.lookup import PooledLookup, shard_layout
from kernels.store.rows import RowType, decode_rows, encode_rows
from transport.messages import Batch, RowsPart

POOLINGS: tuple[Pooling, ...] = ("none", "sum", "mean", "max")
DTYPES: dict[str, RowType] = {"a": "fp32", "b": "fp16", "c": "int8"}
ROWS = {"a": 40, "b": 23, "c": 7}
DIMS = {"a": 4, "b": 3, "c": 5}
SEGMENTS = {"a": 6, "b": 3, "c": 1}


def side(name: SideName, shape: list[tuple[str, int, bool, bool]]) -> SideLayout:
    """Make a side of lookups: table, ids of a bag, whether weighted, whether ids are shared."""
    lookups, n_ids, n_weights, offset = [], 0, 0, 0
    for number, (table, n, weighted, shares) in enumerate(shape):
        pooling = POOLINGS[number % 4]
        first = 0 if shares and n_ids >= n else n_ids
        width = DIMS[table] * (n if pooling == "none" else 1)
        lookups.append(
            Lookup(
                side=name,
                table=table,
                tensor=f"{table}{number}",
                pooling=pooling,
                first_id=first,
                n_ids=n,
                first_weight=n_weights if weighted and pooling != "none" else None,
                offset=offset,
                width=width,
            )
        )
        n_ids = max(n_ids, first + n)
        n_weights += n if weighted and pooling != "none" else 0
        offset += width
    sources = tuple(Source(feature=f"f{i}") for i in range(n_ids))
    weights = tuple(Source(feature=f"w{i}") for i in range(n_weights))
    return SideLayout(
        ids=sources, weights=weights, values=(), lookups=tuple(lookups), width=offset, program=None
    )


def manifest(user: SideLayout, candidate: SideLayout) -> Manifest:
    tables = tuple(
        Table(
            name=name, rows=ROWS[name], dim=DIMS[name], dtype=DTYPES[name], file=name,
            segments=SEGMENTS[name],
        )
        for name in ROWS
    )  # fmt: skip
    return Manifest(
        format=1,
        model="m",
        version="v",
        tables=tables,
        user=user,
        candidate=candidate,
        outputs=(),
        kept=(),
    )


def stored() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(5)
    return {
        name: encode_rows(rng.standard_normal((ROWS[name], DIMS[name]), np.float32), DTYPES[name])
        for name in ROWS
    }


def decoded() -> dict[str, NDArray[np.float32]]:
    return {name: decode_rows(rows, DTYPES[name], DIMS[name]) for name, rows in stored().items()}


shapes = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans(), st.booleans()), max_size=5
)


@attrs.frozen
class Case:
    """A batch of a model whose tables are divided over parts."""

    model: Manifest
    layout: FetchLayout
    user_ids: NDArray[np.int64]
    candidate_ids: NDArray[np.int64]
    user_weights: NDArray[np.float32]
    candidate_weights: NDArray[np.float32]
    n_rows: NDArray[np.int32]
    wanted: Wanted

    def head(self) -> Batch:
        layout, wanted = self.layout, self.wanted
        return Batch(
            gateway="g",
            seq=1,
            model="m",
            version="v",
            n_parts=layout.n_parts,
            n_rows=self.n_rows,
            budgets_us=np.zeros(len(self.n_rows), np.int64),
            user_values=np.zeros((len(self.n_rows), 0), np.float32),
            candidate_values=np.zeros((int(self.n_rows.sum()), 0), np.float32),
            user_slots=wanted.user_slots,
            user_slot_weights=self.user_weights[layout.user.weight_rows],
            candidate_slots=wanted.candidate_slots,
            candidate_slot_weights=self.candidate_weights[layout.candidate.weight_rows],
            part_rows=wanted.part_rows,
        )

    def parts(self) -> dict[int, RowsPart]:
        """Answer as shards do."""
        tables = stored()
        parts = {}
        for index in range(self.layout.n_parts):
            keys = self.wanted.keys.get(index, np.empty(0, np.int64))
            splits = self.wanted.key_splits[index].tolist()
            pieces = [np.empty(0, np.uint8)]
            for number, fetched in enumerate(self.layout.tables):
                chosen = keys[splits[number] : splits[number + 1]]
                pieces.append(tables[fetched.table.name][chosen].ravel())
            parts[index] = RowsPart(
                gateway="g",
                seq=1,
                version="v",
                part=index,
                user=np.zeros((0, 0), np.float32),
                candidate=np.zeros((0, 0), np.float32),
                rows=np.concatenate(pieces),
            )
        return parts


@st.composite
def cases(draw: st.DrawFn) -> Case:
    model = manifest(side("user", draw(shapes)), side("candidate", draw(shapes)))
    n_parts = draw(st.integers(1, 3))
    parts_of = {
        name: np.array(
            draw(st.lists(st.integers(0, n_parts - 1), min_size=n, max_size=n)), np.int32
        )
        for name, n in SEGMENTS.items()
    }
    layout = FetchLayout.of(model, parts_of, n_parts)
    n_rows = np.array(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)), np.int32)
    rng = np.random.default_rng(draw(st.integers(0, 9)))

    def ids(of: SideLayout, n: int) -> NDArray[np.int64]:
        made = np.zeros((len(of.ids), n), np.int64)
        for row in range(len(of.ids)):
            readers = [
                ROWS[lookup.table]
                for lookup in of.lookups
                if lookup.first_id <= row < lookup.first_id + lookup.n_ids
            ]
            made[row] = rng.integers(0, min(readers, default=1), n)
        return made

    user_ids = ids(model.user, len(n_rows))
    candidate_ids = ids(model.candidate, int(n_rows.sum()))
    return Case(
        model=model,
        layout=layout,
        user_ids=user_ids,
        candidate_ids=candidate_ids,
        user_weights=rng.random((len(model.user.weights), len(n_rows)), np.float32),
        candidate_weights=rng.random((len(model.candidate.weights), int(n_rows.sum())), np.float32),
        n_rows=n_rows,
        wanted=layout.split(user_ids, candidate_ids),
    )


@settings(deadline=None)  # the first one may compile the lookups
@given(cases())
def test_rows_that_were_fetched_pool_to_what_whole_tables_pool_to(case: Case) -> None:
    head, parts = case.head(), case.parts()
    assert case.layout.problem(head, parts) is None
    got = case.layout.pool(head, parts)
    sides = (
        (case.model.user, case.user_ids, case.user_weights),
        (case.model.candidate, case.candidate_ids, case.candidate_weights),
    )
    for (of, ids, weights), rows in zip(sides, got, strict=True):
        want = PooledLookup(decoded(), shard_layout(of, list(ROWS))).run(ids, weights)
        np.testing.assert_array_equal(rows, want)


@settings(deadline=None)  # the first one may compile the lookups
@given(cases())
def test_each_key_is_asked_for_once_and_of_the_part_that_has_it(case: Case) -> None:
    for number, fetched in enumerate(case.layout.tables):
        seen: list[int] = []
        for part, keys in case.wanted.keys.items():
            start, stop = case.wanted.key_splits[part][number : number + 2]
            of_part = keys[start:stop].tolist()
            size = -(-fetched.table.rows // fetched.table.segments)
            assert all(fetched.part_of[key // size] == part for key in of_part)
            seen += of_part
        assert len(seen) == len(set(seen)) == int(case.wanted.part_rows[:, number].sum())


@settings(deadline=None)  # the first one may compile the lookups
@given(cases(), st.data())
def test_those_are_degraded_who_look_up_rows_of_a_lost_part(
    case: Case, data: st.DataObject
) -> None:
    lost = data.draw(st.integers(0, case.layout.n_parts - 1))
    parts = case.parts()
    whole = case.layout.pool(case.head(), parts)
    parts[lost] = attrs.evolve(parts[lost], rows=np.zeros_like(parts[lost].rows))
    holed = case.layout.pool(case.head(), parts)
    marks = case.layout.degraded(case.head(), [lost])
    of_row = np.repeat(marks, case.n_rows)
    np.testing.assert_array_equal(whole[0][~marks], holed[0][~marks])
    np.testing.assert_array_equal(whole[1][~of_row], holed[1][~of_row])
    if lost not in case.wanted.keys:
        assert not marks.any()


def simple() -> Case:
    model = manifest(side("user", [("a", 2, False, False)]), side("candidate", []))
    layout = FetchLayout.of(model, {"a": np.array([0, 0, 1, 1, 1, 1], np.int32)}, 2)
    ids = np.array([[1, 30], [39, 1]])
    none = np.zeros((0, 2), np.float32)
    rows = np.array([1, 1], np.int32)
    wanted = layout.split(ids, np.zeros((0, 2), np.int64))
    return Case(
        model=model, layout=layout, user_ids=ids, candidate_ids=np.zeros((0, 2), np.int64),
        user_weights=none, candidate_weights=none, n_rows=rows, wanted=wanted,
    )  # fmt: skip


def test_a_layout_has_only_tables_that_are_looked_up() -> None:
    model = manifest(side("user", [("a", 2, False, False)]), side("candidate", []))
    layout = FetchLayout.of(model, {name: np.zeros(n, np.int32) for name, n in SEGMENTS.items()}, 1)
    assert [fetched.table.name for fetched in layout.tables] == ["a"]


def test_slots_and_rows_that_do_not_fit_are_told() -> None:
    case = simple()
    head, parts = case.head(), case.parts()
    layout = case.layout
    short = {**parts, 1: attrs.evolve(parts[1], rows=parts[1].rows[:-1].copy())}
    assert layout.problem(head, short) == "part 1 has rows of 31 bytes, not 32"
    assert layout.problem(head, {1: parts[1]}) == "part 0 has rows of 0 bytes, not 16"
    fewer = attrs.evolve(head, user_slots=head.user_slots[:1].copy())
    assert str(layout.problem(fewer, parts)).startswith("slots have shapes ((1, 2)")
    negative = attrs.evolve(head, part_rows=np.array([[3], [-1]], np.int32))
    assert layout.problem(negative, parts) is not None
    outside = attrs.evolve(head, user_slots=np.full_like(head.user_slots, 3))
    assert layout.problem(outside, parts) is None
    with pytest.raises(LookupFailed, match="slot 3 is none of 3 rows"):
        layout.pool(outside, parts)


def test_an_id_outside_its_table_is_told_by_the_tables_name() -> None:
    with pytest.raises(LookupFailed, match="table a: row 40 is outside a table of 40 rows"):
        simple().layout.split(np.array([[40, 0], [0, 0]]), np.zeros((0, 2), np.int64))
