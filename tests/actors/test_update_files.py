from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.update_files import FileError, Rows, kind_of, read_batches


def npz(**arrays: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read(data: bytes, name: str, size: int = 3) -> list[Rows]:
    return list(read_batches(io.BytesIO(data), name, kind_of(Path(name)), size))


def test_an_npz_file_is_read_in_batches() -> None:
    rows = np.arange(14, dtype=np.float64).reshape(7, 2)
    batches = read(npz(keys=np.arange(7, dtype=np.uint32), rows=rows), "a.npz")
    assert [len(batch.keys) for batch in batches] == [3, 3, 1]
    assert all(b.keys.dtype == np.int64 and b.rows.dtype == np.float32 for b in batches)
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), rows)


def test_an_npz_file_may_come_through_a_pipe() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    pipe = Pipe(npz(keys=[1], rows=[[2.0]]))
    (batch,) = read_batches(pipe, "-", "npz", 5)
    assert batch.keys.tolist() == [1]


def test_lines_are_read_in_batches_and_empty_ones_passed_over() -> None:
    lines = b'{"key": -5, "row": [1, 2.5]}\n\n{"row": [NaN, 0], "key": 9223372036854775807}\n'
    (batch,) = read(lines, "a.jsonl")
    assert batch.keys.tolist() == [-5, 2**63 - 1]
    np.testing.assert_array_equal(batch.rows, np.array([[1, 2.5], [np.nan, 0]], np.float32))
    assert read(b"", "a.jsonl") == []


def test_batches_before_a_mistake_are_given() -> None:
    lines = b'{"key": 1, "row": [1]}\n' * 4 + b"x\n"
    batches = read_batches(io.BytesIO(lines), "a", "jsonl", 2)
    assert [len(next(batches).keys) for _ in range(2)] == [2, 2]
    with pytest.raises(FileError, match="a, line 5: is no JSON"):
        next(batches)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"[1]", 'want {"key": ..., "row": [...]}'),
        (b'{"key": 1}', "want"),
        (b'{"key": 1, "row": [1], "table": "a"}', "want"),
        (b'{"key": 1.5, "row": [1]}', "key: want an integer of 64 bits, got 1.5"),
        (b'{"key": true, "row": [1]}', "key: want an integer"),
        (b'{"key": 9223372036854775808, "row": [1]}', "key: want an integer"),
        (b'{"key": 1, "row": 1}', "row: want an array of numbers"),
        (b'{"key": 1, "row": ["1"]}', "row: want an array of numbers"),
        (
            b'{"key": 0, "row": [1, 2]}\n{"key": 1, "row": [1]}',
            "line 2: a row of 1 numbers after 2",
        ),
    ],
)
def test_a_line_that_is_wrong_is_told(line: bytes, problem: str) -> None:
    with pytest.raises(FileError) as told:
        read(line, "a.jsonl")
    assert problem in str(told.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no npz file"),
        (b"PK\x03\x04 and no more", "is no npz file"),
        (npz(keys=[1]), "wants arrays keys and rows"),
        (npz(keys=[1.5], rows=[[1.0]]), "keys: want integers"),
        (npz(keys=[1, 2], rows=[[1.0]]), "rows: want numbers [2, dim]"),
        (npz(keys=[1], rows=[1.0]), "rows: want numbers"),
        (npz(keys=np.array([2**63], np.uint64), rows=[[1.0]]), "is over 2**63 - 1"),
    ],
)
def test_an_npz_file_that_is_wrong_is_told(data: bytes, problem: str) -> None:
    with pytest.raises(FileError) as told:
        read(data, "a.npz")
    assert problem in str(told.value)
