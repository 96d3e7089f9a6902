from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.errors import BundleError, LookupFailed, StoreError
from kernels.store.build import build_dense, build_keyed
from kernels.store.delta import Delta
from kernels.store.files import check_table
from kernels.store.header import read_header
from kernels.store.partition import segment_of
from kernels.store.rows import ROW_TYPES, RowType, decode_rows, encode_rows
from kernels.store.table import StoredTable
from tests.kernels.store.helpers import BOTH, needs_c

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
DIM = 6


def some_rows(n: int, dim: int = DIM) -> F32:
    return np.random.default_rng(n).standard_normal((n, dim), np.float32)


def keyed_table(path: Path, keys: I64, dtype: RowType = "fp16", **options: Any) -> F32:  # noqa: ANN401
    """Build a table of random rows, and return them as they come out of it."""
    rows = some_rows(len(keys))
    build_keyed(path, [(keys, rows)], dim=DIM, dtype=dtype, **options)
    return decode_rows(encode_rows(rows, dtype), dtype, DIM)


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("dtype", ROW_TYPES)
def test_rows_are_found_by_key_and_unseen_keys_take_the_default(
    dtype: RowType, native: bool, tmp_path: Path
) -> None:
    keys = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 500)
    default = np.arange(DIM, dtype=np.float32)
    rows = keyed_table(tmp_path, keys, dtype, n_segments=5, default=default)
    table = StoredTable.open(tmp_path, native=native)
    assert (table.header.rows, table.header.keyed, table.header.n_segments) == (500, True, 5)
    asked = np.concatenate([keys[::-1], [3, -4, keys[7], 5]])
    stored = decode_rows(encode_rows(default[np.newaxis], dtype), dtype, DIM)
    want = np.concatenate([rows[::-1], stored, stored, rows[7:8], stored])
    np.testing.assert_array_equal(table.fetch(asked), want)
    assert table.unseen == 3
    encoded = table.fetch_encoded(asked)
    np.testing.assert_array_equal(decode_rows(encoded, dtype, DIM), want)
    positions = table.find(asked)
    assert (positions < 0).nonzero()[0].tolist() == [500, 501, 503]
    assert sorted(positions[:500].tolist()) == list(range(500))
    assert table.unseen == 6


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("dtype", ROW_TYPES)
@pytest.mark.parametrize("n_segments", [1, 4, 30])
def test_dense_rows_are_found_by_number(
    n_segments: int, dtype: RowType, native: bool, tmp_path: Path
) -> None:
    rows = some_rows(25)
    build_dense(
        tmp_path, [rows[:9], rows[9:]], rows=25, dim=DIM, dtype=dtype, n_segments=n_segments
    )
    table = StoredTable.open(tmp_path, native=native)
    asked = np.array([24, 0, 7, 7, 8, 13])
    want = decode_rows(encode_rows(rows, dtype), dtype, DIM)[asked]
    np.testing.assert_array_equal(table.fetch(asked), want)
    np.testing.assert_array_equal(table.find(asked), asked)
    for bad in (-1, 25, 2**62):
        with pytest.raises(LookupFailed, match=f"row {bad} is outside .* of 25 rows"):
            table.fetch(np.array([3, bad]))


@needs_c
@settings(deadline=None, max_examples=40)
@given(
    keys=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60),
    others=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30),
    changed=st.lists(st.integers(0, 89), max_size=20),
    n_segments=st.integers(1, 9),
    keyed=st.booleans(),
)
def test_c_and_numpy_agree_on_any_table_with_any_changes(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[int],
    others: list[int],
    changed: list[int],
    n_segments: int,
    keyed: bool,
) -> None:
    path = tmp_path_factory.mktemp("table")
    if keyed:
        keyed_table(path, np.array(keys, np.int64), "int8", n_segments=n_segments)
        asked = np.array(keys + others, np.int64)
    else:
        rows = some_rows(40)
        build_dense(path, [rows], rows=40, dim=DIM, dtype="int8", n_segments=n_segments)
        asked = np.array(keys + others, np.int64) % 40
    answers = []
    for native in (True, False):
        table = StoredTable.open(path, native=native)
        delta = Delta(DIM, "int8", native=native)
        some = np.array([asked[i] for i in changed if i < len(asked)], np.int64)
        delta.put(some, encode_rows(some_rows(len(some)) + 9, "int8"))
        table.attach(delta)
        answers.append((table.fetch(asked), table.fetch_encoded(asked), table.find(asked)))
        assert (answers[-1][0] == decode_rows(answers[-1][1], "int8", DIM)).all()
        assert table.unseen == 2 * ((table.find(asked) < 0) & (delta.find(asked) < 0)).sum()
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("native", BOTH)
def test_changes_are_seen_once_a_delta_is_attached_and_no_more_once_it_is_not(
    native: bool, tmp_path: Path
) -> None:
    keys = np.arange(100)
    rows = keyed_table(tmp_path, keys)
    table = StoredTable.open(tmp_path, native=native)
    delta = Delta(DIM, "fp16", native=native)
    table.attach(delta)
    np.testing.assert_array_equal(table.fetch(keys), rows)
    new = np.full((2, DIM), 3, np.float32)
    delta.put(np.array([7, 1000]), encode_rows(new, "fp16"))
    np.testing.assert_array_equal(table.fetch(np.array([7, 1000, 8])), [*new, rows[8]])
    assert table.unseen == 0
    assert table.find(np.array([1000])).tolist() == [-1]
    table.attach(None)
    np.testing.assert_array_equal(table.fetch(np.array([7, 1000])), [rows[7], np.zeros(DIM)])
    with pytest.raises(ValueError, match="but a delta of"):
        table.attach(Delta(DIM, "fp32", native=native))


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("keyed", [True, False])
def test_some_segments_are_opened_without_the_others_files(
    keyed: bool, native: bool, tmp_path: Path
) -> None:
    keys = np.arange(200)
    if keyed:
        rows = keyed_table(tmp_path, keys, "fp32", n_segments=8)
    else:
        rows = some_rows(200)
        build_dense(tmp_path, [rows], rows=200, dim=DIM, dtype="fp32", n_segments=8)
    header = read_header(tmp_path)
    for i in (0, 1, 2, 6, 7):
        (tmp_path / header.rows_file(i)).unlink()
        (tmp_path / header.index_file(i)).unlink(missing_ok=True)
    with pytest.raises(StoreError, match=r"000000\.rows is missing"):
        StoredTable.open(tmp_path, native=native)
    table = StoredTable.open(tmp_path, range(3, 6), native=native)
    segments = segment_of(keys, n_segments=8, rows=200, keyed=keyed)
    mine = keys[(segments >= 3) & (segments < 6)]
    np.testing.assert_array_equal(table.fetch(mine), rows[mine])
    lost = int(keys[segments == 6][0])
    with pytest.raises(LookupFailed, match=f"key {lost} is in segment 6 .* not open here"):
        table.fetch(np.array([mine[0], lost]))
    with pytest.raises(StoreError, match="has 8 segments"):
        StoredTable.open(tmp_path, range(7, 9))
    got = np.concatenate([table.keys_of(i) for i in table.segments])
    assert sorted(got.tolist()) == sorted(mine.tolist())
    stored = np.concatenate([table.rows_of(i) for i in table.segments])
    np.testing.assert_array_equal(decode_rows(stored, "fp32", DIM), rows[got])


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_array_is_a_dense_table(dtype: type, native: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", some_rows(50).astype(dtype))
    array = np.load(tmp_path / "t.npy", mmap_mode="r")
    table = StoredTable.of_array(array, name="t", n_segments=4, segments=range(1, 4), native=native)
    assert table.header.dtype == ("fp32" if dtype is np.float32 else "fp16")
    asked = np.array([49, 13, 13])
    np.testing.assert_array_equal(table.fetch(asked), array[asked].astype(np.float32))
    with pytest.raises(LookupFailed, match="not open here"):
        table.fetch(np.array([12]))
    table.warm()


@pytest.mark.parametrize("native", BOTH)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_table_of_rows_in_memory_is_filled_again_and_again(dtype: RowType, native: bool) -> None:
    table = StoredTable.of_rows(dtype, 4, name="t", native=native)
    with pytest.raises(LookupFailed):
        table.fetch(np.array([0]))
    for n in (3, 50, 0, 7):
        rows = encode_rows(np.random.default_rng(n).standard_normal((n, 4), np.float32), dtype)
        table.refill(rows)
        asked = np.arange(n)[::-1].copy()
        np.testing.assert_array_equal(table.fetch_encoded(asked), rows[asked])
        with pytest.raises(LookupFailed, match=rf"row {n} is outside .*of {n} rows"):
            table.fetch(np.array([n]))
    with pytest.raises(ValueError, match="rows: want"):
        table.refill(np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    "array", [np.zeros((3, 4)), np.zeros(3, np.float32), np.zeros((4, 3), np.float32).T]
)
def test_an_array_that_is_no_table_is_an_error(array: NDArray[Any]) -> None:
    with pytest.raises(StoreError, match="table t: want"):
        StoredTable.of_array(array, name="t")


def test_warming_reports_how_far_it_is(tmp_path: Path) -> None:
    keyed_table(tmp_path, np.arange(300), n_segments=3)
    table = StoredTable.open(tmp_path)
    seen: list[tuple[int, int]] = []
    table.warm(lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, table.size_bytes)
    assert seen[-1] == (table.size_bytes, table.size_bytes)
    assert len(seen) == 7
    assert table.size_bytes == read_header(tmp_path).size_bytes


def damage(change: Callable[[bytes], bytes], file: Path) -> None:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("kind", ["rows", "index"])
def test_a_damaged_file_is_an_error_that_names_it(kind: str, tmp_path: Path) -> None:
    keyed_table(tmp_path, np.arange(300), n_segments=3)
    file = tmp_path / read_header(tmp_path).version[:16] / f"000001.{kind}"
    whole = file.read_bytes()
    check_table(tmp_path)
    for changed in (b"", whole[:-1], whole + b"\0"):
        file.write_bytes(changed)
        with pytest.raises(BundleError, match=rf"000001\.{kind} is damaged: {len(changed)} bytes"):
            StoredTable.open(tmp_path)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    StoredTable.open(tmp_path)
    with pytest.raises(StoreError, match=rf"000001\.{kind} is damaged: its SHA-256"):
        check_table(tmp_path)
    file.unlink()
    with pytest.raises(StoreError, match=rf"000001\.{kind} is missing"):
        StoredTable.open(tmp_path)
    with pytest.raises(StoreError, match=rf"000001\.{kind} is missing"):
        check_table(tmp_path)


@pytest.mark.parametrize("native", BOTH)
def test_no_index_however_damaged_is_followed_out_of_its_files(
    native: bool, tmp_path: Path
) -> None:
    keys = np.arange(300)
    keyed_table(tmp_path, keys, n_segments=2)
    header = read_header(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(2):
        file = tmp_path / header.index_file(i)
        file.write_bytes(rng.bytes(file.stat().st_size))
    table = StoredTable.open(tmp_path, native=native)
    with pytest.raises(StoreError, match=r"index is damaged: it sends key \d+ to a row that is"):
        table.fetch(keys)
    with pytest.raises(StoreError, match="index is damaged"):
        table.find(keys)


def test_a_table_keeps_its_version_while_a_new_one_takes_its_place(tmp_path: Path) -> None:
    keys = np.arange(50)
    old = keyed_table(tmp_path, keys)
    table = StoredTable.open(tmp_path)
    build_keyed(tmp_path, [(keys, old + 1)], dim=DIM, dtype="fp32")
    np.testing.assert_array_equal(table.fetch(keys), old)
    np.testing.assert_array_equal(StoredTable.open(tmp_path).fetch(keys), old + 1)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
def test_memory_is_given_back_with_the_last_reference(tmp_path: Path) -> None:
    keyed_table(tmp_path, np.arange(50))
    table = StoredTable.open(tmp_path)
    table.attach(Delta(DIM, "fp16"))
    assert os.fspath(tmp_path) in Path("/proc/self/maps").read_text()
    del table
    gc.collect()
    assert os.fspath(tmp_path) not in Path("/proc/self/maps").read_text()


def test_threads_share_a_table(tmp_path: Path) -> None:
    keys = np.arange(2000)
    rows = keyed_table(tmp_path, keys, n_segments=3)
    table = StoredTable.open(tmp_path)
    asked = np.concatenate([keys, [-1]])
    want = np.concatenate([rows, np.zeros((1, DIM), np.float32)])
    right: list[bool] = []

    def work() -> None:
        right.extend(np.array_equal(table.fetch(asked), want) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80
    if table.native is not None:
        assert table.unseen == 80


def test_wrong_arguments_are_errors_that_name_them(tmp_path: Path) -> None:
    keyed_table(tmp_path, np.arange(50))
    table = StoredTable.open(tmp_path)
    with pytest.raises(ValueError, match="keys: want C-ordered int64"):
        table.fetch(np.array([1], np.int32))
    with pytest.raises(ValueError, match="keys: want C-ordered int64"):
        table.find(np.arange(10)[::2])
    with pytest.raises(ValueError, match="out: want"):
        table.fetch(np.array([1]), np.empty((2, DIM), np.float32))
