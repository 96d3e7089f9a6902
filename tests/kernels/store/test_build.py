from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.errors import StoreError
from kernels.store import build as build_module
from kernels.store.build import build_dense, build_keyed
from kernels.store.files import check_table
from kernels.store.header import read_header
from kernels.store.rows import encode_rows
from kernels.store.table import StoredTable

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
DIM = 4


def rows_of(keys: I64) -> F32:
    return np.repeat(keys.astype(np.float32)[:, np.newaxis], DIM, axis=1)


def files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_the_last_row_of_a_key_counts_in_a_batch_and_through_batches(tmp_path: Path) -> None:
    keys = np.array([5, 7, 5, 9])
    rows = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM)
    build_keyed(tmp_path, [(keys, rows), (np.array([7]), rows[:1] + 100)], dim=DIM, dtype="fp32")
    table = StoredTable.open(tmp_path)
    assert table.header.rows == 3
    np.testing.assert_array_equal(
        table.fetch(np.array([5, 7, 9])), [rows[2], rows[0] + 100, rows[3]]
    )


def test_batches_of_every_size_make_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = np.random.default_rng(0).permutation(3000)

    def build(name: str, sizes: list[int]) -> dict[str, bytes]:
        ends = np.cumsum(sizes)
        batches = [(part, rows_of(part)) for part in np.split(keys, ends)]
        build_keyed(tmp_path / name, batches, dim=DIM, dtype="fp16", n_segments=7, name="t")
        check_table(tmp_path / name)
        return files(tmp_path / name)

    one = build("one", [])
    monkeypatch.setattr(build_module, "_BATCH_BYTES", 1000)
    monkeypatch.setattr(build_module, "_WRITE_BYTES", 100)
    assert build("other", [1, 0, 2000, 3, 0]) == one
    header = read_header(tmp_path / "one")
    assert set(one) == {"table.json"} | {
        name(i) for name in (header.rows_file, header.index_file) for i in range(7)
    }


def test_rows_already_stored_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, DIM), np.float32)
    encoded = encode_rows(rows, "int8")
    keys = np.arange(20)
    build_keyed(tmp_path / "keyed", [(keys, encoded)], dim=DIM, dtype="int8")
    build_dense(tmp_path / "dense", [encoded], rows=20, dim=DIM, dtype="int8")
    for name in ("keyed", "dense"):
        table = StoredTable.open(tmp_path / name)
        assert table.header.name == name
        np.testing.assert_array_equal(table.fetch_encoded(keys), encoded)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_table_without_rows_is_a_table(keyed: bool, tmp_path: Path) -> None:
    if keyed:
        build_keyed(tmp_path, [], dim=DIM, dtype="bf16", n_segments=3)
        table = StoredTable.open(tmp_path)
        np.testing.assert_array_equal(table.fetch(np.array([1, 2])), np.zeros((2, DIM)))
    else:
        build_dense(tmp_path, [], rows=0, dim=DIM, dtype="bf16", n_segments=3)
        table = StoredTable.open(tmp_path)
    assert table.fetch(np.empty(0, np.int64)).shape == (0, DIM)
    table.warm()


@pytest.mark.parametrize(("rows", "message"), [(19, "more than 19"), (21, "fewer than 21")])
def test_a_source_of_another_size_is_an_error(rows: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=message):
        build_dense(
            tmp_path, [rows_of(np.arange(20))], rows=rows, dim=DIM, dtype="fp32", n_segments=3
        )
    assert files(tmp_path) == {}


def test_wrong_batches_are_errors_and_leave_the_old_version(tmp_path: Path) -> None:
    keys = np.arange(20)
    build_keyed(tmp_path, [(keys, rows_of(keys))], dim=DIM, dtype="int8", n_segments=2)
    before = files(tmp_path)
    for batch, message in (
        ((keys[:5], rows_of(keys)), r"keys: want int64 \[20\]"),
        ((keys.astype(np.float64), rows_of(keys)), "got float64"),
        ((keys, rows_of(keys)[:, :3]), r"rows: want \[n, 4\]"),
        ((keys, np.full((20, DIM), np.nan, np.float32)), "row 0 is not finite"),
        ((keys, np.zeros((20, 3), np.uint8)), "want C-ordered rows of 8 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            build_keyed(tmp_path, [batch], dim=DIM, dtype="int8")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="default: want 4 finite numbers"):
        build_keyed(tmp_path, [], dim=DIM, dtype="int8", default=np.ones(3, np.float32))
    assert files(tmp_path) == before


def test_a_source_that_breaks_off_leaves_the_old_version(tmp_path: Path) -> None:
    keys = np.arange(20)
    build_keyed(tmp_path, [(keys, rows_of(keys))], dim=DIM, dtype="fp32")
    before = files(tmp_path)

    def breaks() -> Iterator[tuple[I64, F32]]:
        yield keys, rows_of(keys)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        build_keyed(tmp_path, breaks(), dim=DIM, dtype="fp32", n_segments=2)
    assert files(tmp_path) == before


# Ends its process, as a crash does, when a certain file is about to be put in its place.
CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from kernels.store import build
n, left = int(sys.argv[2]), [int(sys.argv[3])]
def counted(function):
    def call(*args):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return function(*args)
    return call
for name in ("replace", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
Path.rename = counted(Path.rename)
build._remove = counted(build._remove)
keys = np.arange(n)
rows = np.repeat(keys.astype(np.float32)[:, None], 4, axis=1)
build.build_keyed(Path(sys.argv[1]), [(keys, rows)], dim=4, dtype="fp32", n_segments=2)
"""


def test_a_writer_that_ends_at_any_moment_leaves_a_whole_version(tmp_path: Path) -> None:
    """And the next writer succeeds, and leaves nothing of the one before."""
    keys = np.arange(20)
    root = Path(__file__).parents[3]
    moment, done = 0, False
    while not done:
        table = tmp_path / str(moment)
        build_keyed(table, [(keys, rows_of(keys))], dim=DIM, dtype="fp32")
        command = [sys.executable, "-c", CRASH, str(table), "30", str(moment)]
        done = subprocess.run(command, cwd=root, check=False).returncode == 0
        header = check_table(table)
        assert header.rows in (20, 30)
        assert header.rows == 30 or not done
        found = StoredTable.open(table).fetch(keys)
        np.testing.assert_array_equal(found, rows_of(keys))
        build_keyed(table, [(keys, rows_of(keys) + 1)], dim=DIM, dtype="fp32")
        np.testing.assert_array_equal(StoredTable.open(table).fetch(keys), rows_of(keys) + 1)
        assert len(files(table)) == 3
        moment += 1
    assert moment > 7


def test_two_writers_are_kept_apart(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another writer is at work"):
            build_keyed(tmp_path, [], dim=DIM, dtype="fp32")
    finally:
        os.close(handle)
    build_keyed(tmp_path, [], dim=DIM, dtype="fp32")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(StoreError, match=r"holds thesis\.txt, so it is no table's folder"):
        build_keyed(tmp_path, [], dim=DIM, dtype="fp32")
    assert files(tmp_path) == {"thesis.txt": b"chapter 1"}


def test_building_the_same_again_mends_a_damaged_file(tmp_path: Path) -> None:
    keys = np.arange(20)
    build_keyed(tmp_path, [(keys, rows_of(keys))], dim=DIM, dtype="fp32")
    before = files(tmp_path)
    (tmp_path / read_header(tmp_path).rows_file(0)).write_bytes(b"?")
    build_keyed(tmp_path, [(keys, rows_of(keys))], dim=DIM, dtype="fp32")
    assert files(tmp_path) == before
    (tmp_path / "table.json").write_text("?")
    build_keyed(tmp_path, [(keys, rows_of(keys))], dim=DIM, dtype="fp32")
    assert files(tmp_path) == before
