from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, get_args

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import lookup as lookup_module
from kernels._native import NativeUnavailable
from kernels.bundle.manifest import Pooling
from kernels.errors import LookupFailed
from kernels.lookup import PooledLookup, implementation, shard_layout
from kernels.shards import ShardLayout
from kernels.store.build import build_dense, build_keyed
from kernels.store.delta import Delta
from kernels.store.rows import ROW_TYPES, RowType, decode_rows, encode_rows
from kernels.store.table import StoredTable
from tests.kernels.test_shards import make_lookup, make_side

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

HAS_C = implementation().startswith("lookups: C")
BOTH = [
    pytest.param(True, id="C", marks=pytest.mark.skipif(not HAS_C, reason="no C compiler")),
    pytest.param(False, id="numpy"),
]


@attrs.frozen(eq=False)
class Case:
    tables: dict[str, F32]
    layout: ShardLayout
    ids: I64
    weights: F32

    def run(self, *, native: bool, out: F32 | None = None) -> F32:
        return PooledLookup(self.tables, self.layout, native=native).run(
            self.ids, self.weights, out
        )


def make_case(
    shapes: list[tuple[int, int, Pooling, bool]], *, n: int, n_table_rows: int = 50, seed: int = 0
) -> Case:
    """Make a lookup of each (dim, n_ids, pooling, weighted), each with a table of its own."""
    rng = np.random.default_rng(seed)
    tables, lookups = {}, []
    first_id = first_weight = offset = 0
    for i, (dim, n_ids, pooling, weighted) in enumerate(shapes):
        name = f"t{i}"
        tables[name] = rng.standard_normal((n_table_rows, dim), np.float32)
        lookups.append(
            make_lookup(
                name,
                first_id,
                n_ids,
                dim=dim,
                offset=offset,
                pooling=pooling,
                first_weight=first_weight if weighted else None,
            )
        )
        first_id += n_ids
        first_weight += n_ids * weighted
        offset += lookups[-1].width
    ids = rng.integers(0, n_table_rows, (first_id, n))
    weights = rng.standard_normal((first_weight, n), np.float32)
    weights[rng.random(weights.shape) < 0.3] = 0
    return Case(tables, shard_layout(make_side(lookups), tables), ids, weights)


SHAPES = st.lists(
    st.tuples(
        st.integers(1, 300), st.integers(1, 6), st.sampled_from(get_args(Pooling)), st.booleans()
    ).map(lambda shape: (*shape[:3], shape[3] and shape[2] != "none")),
    max_size=5,
)


def by_hand(case: Case) -> F32:
    """The manifest's definition of each pooling, in float64 and one bag at a time."""
    n = case.ids.shape[1]
    out = np.empty((n, case.layout.width), np.float64)
    for x in case.layout.lookups:
        table = case.tables[x.table].astype(np.float64)
        for row in range(n):
            rows = table[case.ids[x.first_id : x.first_id + x.n_ids, row]]
            if x.first_weight is not None:
                weight = case.weights[x.first_weight : x.first_weight + x.n_ids, row, np.newaxis]
                rows = rows + weight if x.pooling == "max" else rows * weight
            pooled = {
                "none": rows.reshape(-1),
                "sum": rows.sum(axis=0),
                "mean": rows.sum(axis=0) / x.n_ids,
                "max": rows.max(axis=0),
            }[x.pooling]
            out[row, x.offset : x.offset + x.width] = pooled
    return out.astype(np.float32)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize(
    ("pooling", "weighted"),
    [("none", False)] + [(p, w) for p in ("sum", "mean", "max") for w in (False, True)],
)
@pytest.mark.parametrize("n_ids", [1, 2, 20])
def test_every_pooling_is_what_the_manifest_says(
    pooling: Pooling, weighted: bool, n_ids: int, native: bool
) -> None:
    case = make_case([(dim, n_ids, pooling, weighted) for dim in (1, 4, 10, 64)], n=13)
    np.testing.assert_allclose(case.run(native=native), by_hand(case), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
@settings(deadline=None, max_examples=60)
@given(shapes=SHAPES, n=st.integers(0, 70), seed=st.integers(0, 1000))
def test_c_and_numpy_agree_bit_for_bit(
    shapes: list[tuple[int, int, Pooling, bool]], n: int, seed: int
) -> None:
    case = make_case(shapes, n=n, seed=seed)
    np.testing.assert_array_equal(case.run(native=True), case.run(native=False))


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [0.0, -0.0, -1e9, -np.inf, np.inf, np.nan, 2.5])
def test_bags_filled_up_with_one_id_agree_bit_for_bit(pooling: Pooling, padding: float) -> None:
    """Whatever the weight of what fills them up, and whatever the numbers in its row."""
    case = make_case([(37, 9, pooling, True)] * 2, n=400)
    rng = np.random.default_rng(1)
    case.ids[:] = rng.integers(0, 8, case.ids.shape)
    absent = np.arange(18)[:, np.newaxis] % 9 >= rng.integers(0, 10, 400)
    case.ids[absent] = 3
    case.weights[absent] = padding
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38], np.float32)
    for table in case.tables.values():
        table[:8] = rng.choice(special, (8, 37))
        table[5] = -0.0
    got, want = case.run(native=True), case.run(native=False)
    np.testing.assert_array_equal(got, want)
    if pooling != "max":  # of two zeros, numpy's maximum is now the one and now the other
        np.testing.assert_array_equal(np.signbit(got)[got == 0], np.signbit(want)[got == 0])


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
@pytest.mark.parametrize(
    ("dim", "n_ids", "n"), [(16, 7, 1000), (4, 3000, 30), (40_000, 2, 5), (1, 1, 5000)]
)
def test_batches_of_more_than_one_unit_of_work_agree_bit_for_bit(
    dim: int, n_ids: int, n: int, pooling: Pooling
) -> None:
    """A unit is 2,048 ids or 128 KB, so one bag may be larger than that."""
    case = make_case([(dim, n_ids, pooling, True), (5, 3, "none", False)], n=n, n_table_rows=5)
    np.testing.assert_array_equal(case.run(native=True), case.run(native=False))


@pytest.mark.skipif(not HAS_C, reason="no C compiler")
def test_tables_large_enough_to_be_prefetched_agree_bit_for_bit() -> None:
    case = make_case([(64, 5, "sum", False), (100, 1, "none", False)], n=99, n_table_rows=5000)
    np.testing.assert_array_equal(case.run(native=True), case.run(native=False))


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
def test_nan_and_infinity_go_through_pooling(pooling: Pooling, native: bool) -> None:
    case = make_case([(6, 3, pooling, False)], n=3)
    case.ids[:] = [[0, 0, 3], [1, 1, 4], [2, 3, 5]]
    table = case.tables["t0"]
    table[0, 0], table[1, 1], table[2, 2] = np.nan, np.nan, np.nan
    table[0, 3], table[3, 3] = np.inf, -np.inf
    got = case.run(native=native)
    assert np.isnan(got[0]).tolist() == [True, True, True, False, False, False]
    assert got[0, 3] == np.inf
    assert np.isnan(got[1, 3]) == (pooling != "max")
    assert got[2, 3] == (-np.inf if pooling != "max" else max(table[4, 3], table[5, 3]))


@pytest.mark.parametrize("native", BOTH)
def test_rows_of_out_may_lie_apart_and_nothing_else_is_written(native: bool) -> None:
    case = make_case([(3, 1, "none", False), (8, 4, "sum", True)], n=9)
    block = np.full((9, 20), 7, np.float32)
    out = block[:, 4:15]
    assert case.run(native=native, out=out) is out
    np.testing.assert_array_equal(out, case.run(native=False))
    assert (block[:, :4] == 7).all()
    assert (block[:, 15:] == 7).all()


@pytest.mark.parametrize("native", BOTH)
def test_memory_mapped_read_only_tables_are_used_where_they_are(
    tmp_path: Path, native: bool
) -> None:
    case = make_case([(5, 2, "sum", False)], n=4)
    np.save(tmp_path / "t0.npy", case.tables["t0"])
    mapped = np.load(tmp_path / "t0.npy", mmap_mode="r")
    got = PooledLookup({"t0": mapped}, case.layout, native=native).run(case.ids, case.weights)
    np.testing.assert_array_equal(got, case.run(native=False))


@pytest.mark.parametrize("native", BOTH)
def test_a_side_without_lookups_and_a_batch_without_rows_give_empty_parts(native: bool) -> None:
    assert make_case([], n=5).run(native=native).shape == (5, 0)
    assert make_case([(4, 2, "sum", True)], n=0).run(native=native).shape == (0, 4)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("bad", [-1, 50, 2**62, -(2**62)])
@pytest.mark.parametrize("pooling", ["none", "sum"])
def test_an_id_outside_its_table_is_an_error_that_names_it(
    bad: int, pooling: Pooling, native: bool
) -> None:
    case = make_case([(4, 2, pooling, False), (16, 3, pooling, False)], n=30)
    case.ids[3, 17] = bad
    with pytest.raises(LookupFailed, match=rf"t1\[2\]: id {bad} at row 17 .* t1 of 50 rows"):
        case.run(native=native)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: attrs.evolve(case, ids=case.ids[:1]), r"ids: want .* \(3, 6\)"),
        (lambda case: attrs.evolve(case, ids=case.ids.astype(np.int32)), "got int32"),
        (lambda case: attrs.evolve(case, ids=np.asfortranarray(case.ids)), "ids: want C-ordered"),
        (lambda case: attrs.evolve(case, weights=case.weights[:, :5]), r"weights: .* \(3, 6\)"),
        (lambda case: attrs.evolve(case, weights=case.weights * 1.0j), "weights: want"),
    ],
)
def test_wrong_arguments_are_errors_that_name_them(
    change: object, message: str, native: bool
) -> None:
    case = make_case([(4, 3, "sum", True)], n=6)
    with pytest.raises(ValueError, match=message):
        change(case).run(native=native)  # type: ignore[operator]


@pytest.mark.parametrize("native", BOTH)
def test_an_out_that_does_not_fit_is_an_error(native: bool) -> None:
    case = make_case([(4, 3, "sum", True)], n=6)
    read_only = np.zeros((6, 4), np.float32)
    read_only.flags.writeable = False
    for out in (np.zeros((6, 5), np.float32), np.zeros((6, 4)), read_only):
        with pytest.raises(ValueError, match=r"out: want writeable float32 \(6, 4\)"):
            case.run(native=native, out=out)  # type: ignore[arg-type]
    overlapping = np.lib.stride_tricks.as_strided(np.zeros(50, np.float32), (6, 4), (8, 4))
    for out in (np.zeros((6, 8), np.float32)[:, ::2], overlapping):
        with pytest.raises(ValueError, match="rows apart"):
            case.run(native=native, out=out)


def test_tables_that_do_not_fit_the_layout_are_errors_that_name_them() -> None:
    case = make_case([(4, 3, "sum", True)], n=6)
    table = case.tables["t0"]
    for tables, message in (
        ({}, "table t0: not there"),
        ({"t0": table.astype(np.float64)}, "table t0: want .* got float64"),
        ({"t0": table[:, :3].copy()}, r"table t0: 3 columns, t0\[0\] wants 4"),
        ({"t0": np.asfortranarray(table)}, "table t0: want C-ordered"),
    ):
        with pytest.raises(LookupFailed, match=message):
            PooledLookup(tables, case.layout)


@attrs.frozen(eq=False)
class StoredCase:
    """The same lookups twice: in stored tables, and in arrays of what these hold."""

    stored: dict[str, StoredTable]
    keys: I64
    arrays: Case


def make_stored_case(
    path: Path,
    shapes: list[tuple[int, int, Pooling, bool]],
    dtypes: list[RowType],
    *,
    n: int,
    keyed: bool,
    n_segments: int,
    changed: int,
    native: bool,
) -> StoredCase:
    """Store the tables of a case, some rows of each only in a delta, and some not at all."""
    case = make_case(shapes, n=n, n_table_rows=60)
    n_stored, n_rows = (50, 60) if keyed else (60, 60)
    rng = np.random.default_rng(1)
    stored: dict[str, StoredTable] = {}
    all_keys = np.arange(60)
    if keyed:
        all_keys = rng.integers(-(2**63), 2**63 - 1, n_rows)
    for (name, table), dtype in zip(case.tables.items(), dtypes, strict=True):
        dim = table.shape[1]
        options: dict[str, Any] = {"dim": dim, "dtype": dtype, "n_segments": n_segments}
        if keyed:
            default = rng.standard_normal((dim,), np.float32)
            rows = table[:n_stored]
            build_keyed(path / name, [(all_keys[:n_stored], rows)], default=default, **options)
            table[n_stored:] = default
        else:
            build_dense(path / name, [table], rows=n_stored, **options)
        stored[name] = StoredTable.open(path / name, native=native)
        if changed:
            some = rng.integers(0, n_rows, changed)
            table[some] = rng.standard_normal((1, dim), np.float32)
            delta = Delta(dim, dtype, native=native)
            delta.put(all_keys[some], encode_rows(table[some], dtype))
            stored[name].attach(delta)
        table[...] = decode_rows(encode_rows(table, dtype), dtype, dim)
    return StoredCase(stored, all_keys[case.ids], case)


@pytest.mark.parametrize("native", BOTH)
@settings(deadline=None, max_examples=25)
@given(
    shapes=SHAPES,
    n=st.integers(0, 40),
    keyed=st.booleans(),
    n_segments=st.integers(1, 5),
    changed=st.sampled_from([0, 9]),
    data=st.data(),
)
def test_stored_tables_give_bit_for_bit_what_arrays_of_their_rows_give(
    tmp_path_factory: pytest.TempPathFactory,
    native: bool,
    shapes: list[tuple[int, int, Pooling, bool]],
    n: int,
    keyed: bool,
    n_segments: int,
    changed: int,
    data: st.DataObject,
) -> None:
    dtypes = [data.draw(st.sampled_from(ROW_TYPES)) for _ in shapes]
    case = make_stored_case(
        tmp_path_factory.mktemp("tables"),
        shapes,
        dtypes,
        n=n,
        keyed=keyed,
        n_segments=n_segments,
        changed=changed,
        native=native,
    )
    lookup = PooledLookup(case.stored, case.arrays.layout, native=native)
    got = lookup.run(case.keys, case.arrays.weights)
    np.testing.assert_array_equal(got, case.arrays.run(native=False))


@pytest.mark.parametrize("native", BOTH)
def test_a_unit_of_many_keys_and_tables_of_several_kinds_agree(
    native: bool, tmp_path: Path
) -> None:
    shapes: list[tuple[int, int, Pooling, bool]] = [
        (64, 20, "sum", True),
        (128, 7, "mean", False),
        (16, 3, "none", False),
        (33, 5, "max", True),
    ]
    case = make_stored_case(
        tmp_path, shapes, list(ROW_TYPES), n=500, keyed=True, n_segments=3, changed=5, native=native
    )
    case.stored["t2"] = StoredTable.of_array(case.arrays.tables["t2"], native=native)
    ids = case.keys.copy()
    ids[27:30] = case.arrays.ids[27:30]
    got = PooledLookup(case.stored, case.arrays.layout, native=native).run(ids, case.arrays.weights)
    np.testing.assert_array_equal(got, case.arrays.run(native=False))
    assert case.stored["t0"].unseen > 0


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("bad", [-1, 60, 2**62])
def test_an_id_outside_a_stored_dense_table_is_an_error_that_names_it(
    bad: int, native: bool, tmp_path: Path
) -> None:
    case = make_stored_case(
        tmp_path,
        [(4, 3, "sum", False)],
        ["fp16"],
        n=30,
        keyed=False,
        n_segments=3,
        changed=0,
        native=native,
    )
    case.keys[1, 17] = bad
    lookup = PooledLookup(case.stored, case.arrays.layout, native=native)
    with pytest.raises(LookupFailed, match=rf"t0\[0\]: id {bad} at row 17 .* t0 of 60 rows"):
        lookup.run(case.keys, case.arrays.weights)


@pytest.mark.parametrize("native", BOTH)
def test_a_key_of_a_segment_that_is_not_open_is_an_error_that_names_it(
    native: bool, tmp_path: Path
) -> None:
    case = make_stored_case(
        tmp_path,
        [(4, 3, "sum", False)],
        ["fp16"],
        n=30,
        keyed=True,
        n_segments=3,
        changed=0,
        native=native,
    )
    case.stored["t0"] = StoredTable.open(tmp_path / "t0", range(1, 3), native=native)
    lookup = PooledLookup(case.stored, case.arrays.layout, native=native)
    with pytest.raises(LookupFailed, match=r"key -?\d+ is in segment 0 of table t0, not open here"):
        lookup.run(case.keys, case.arrays.weights)


@pytest.mark.parametrize("native", BOTH)
def test_threads_share_a_lookup(native: bool) -> None:
    case = make_case([(16, 10, "sum", True), (3, 1, "none", False)], n=200)
    lookup = PooledLookup(case.tables, case.layout, native=native)
    want = case.run(native=False)
    right: list[bool] = []

    def work() -> None:
        right.extend(np.array_equal(lookup.run(case.ids, case.weights), want) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80


def test_without_a_compiler_numpy_does_the_work_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup_module, "_native", lambda: NativeUnavailable("no C compiler"))
    assert implementation() == "lookups: numpy, several times slower than C (no C compiler)"
    case = make_case([(4, 3, "sum", True)], n=6)
    np.testing.assert_array_equal(case.run(native=True), case.run(native=False))
