from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from kernels.errors import BundleError, StoreError
from kernels.store.header import Segment, TableHeader, header_text, is_table, read_header


def segment(rows: int = 0, home_buckets: int = 0, buckets: int = 0) -> Segment:
    return Segment(
        rows=rows,
        home_buckets=home_buckets,
        buckets=buckets,
        rows_sha256="0" * 64,
        index_sha256="",
    )


DENSE = TableHeader(
    name="items",
    version="ab" * 32,
    rows=5,
    dim=3,
    dtype="int8",
    keyed=False,
    segments=(segment(3), segment(2)),
)
KEYED = attrs.evolve(
    DENSE, keyed=True, default=(0.5, 0.0, -1.0), segments=(segment(1, 1, 1), segment(4, 2, 3))
)


@pytest.mark.parametrize("header", [DENSE, KEYED])
def test_a_header_read_is_the_one_written(header: TableHeader, tmp_path: Path) -> None:
    assert not is_table(tmp_path)
    (tmp_path / "table.json").write_text(header_text(header))
    assert is_table(tmp_path)
    assert read_header(tmp_path) == header


def test_what_follows_from_a_header() -> None:
    assert KEYED.n_segments == 2
    assert KEYED.row_bytes == 7
    assert KEYED.size_bytes == 5 * 7 + 4 * 64
    assert KEYED.default_row.tolist() == [0.5, 0.0, -1.0]
    assert DENSE.default_row.tolist() == [0.0, 0.0, 0.0]
    assert KEYED.rows_file(1) == "abababababababab/000001.rows"
    assert KEYED.index_file(0) == "abababababababab/000000.index"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"version": "../../etc"}, "no SHA-256"),
        ({"dim": 0}, "dim is 0"),
        ({"rows": 6}, "6 rows"),
        ({"rows": "5"}, "want int"),
        ({"dtype": "fp8"}, "'fp8' is none of"),
        ({"segments": []}, "0 segments"),
        ({"default": [1.0]}, "default row has 1 numbers"),
        ({"default": [1.0, 2.0, float("nan")]}, "not finite"),
        ({"keyed": False}, "no keys"),
        ({"extra": 1}, "unknown fields"),
    ],
)
def test_a_header_that_is_wrong_is_an_error_that_says_how(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    raw = json.loads(header_text(KEYED)) | change
    (tmp_path / "table.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match=message) as raised:
        read_header(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (attrs.evolve(KEYED, segments=(segment(5), segment(0))), "segment 0 has 0 of 0 buckets"),
        (attrs.evolve(DENSE, segments=(segment(2), segment(3))), "which is not its share"),
        (attrs.evolve(DENSE, segments=(segment(3, 1, 1), segment(2))), "but the table no keys"),
    ],
)
def test_segments_that_contradict_their_table_are_errors(
    header: TableHeader, message: str, tmp_path: Path
) -> None:
    (tmp_path / "table.json").write_text(header_text(header))
    with pytest.raises(StoreError, match=message):
        read_header(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\ud800", "[" * 100_000])
def test_a_file_that_is_no_header_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(StoreError, match=r"table\.json"):
        read_header(tmp_path)


def test_a_folder_without_a_header_is_an_error_that_bundles_understand(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a table, it has no table\.json"):
        read_header(tmp_path / "missing")
