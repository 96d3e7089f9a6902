from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.store import sources as sources_module
from kernels.store.__main__ import main
from kernels.store.table import StoredTable

ROWS = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float16).astype(np.float32)
KEYS = np.arange(90)[::-1] * 7


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", ROWS)
    np.save(tmp_path / "keys.npy", KEYS)
    np.save(tmp_path / "default.npy", np.arange(4))
    return tmp_path


def run(line: str, folder: Path) -> int:
    return main(line.replace("@", f"{folder}/").split())


def test_a_table_by_number_is_built_and_shown(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build @rows.npy -o @t --segments 4", source) == 0
    assert run("show @t --check --key 3", source) == 0
    shown = capsys.readouterr().out
    assert "90 by number, 4 numbers each in fp16, 0.0 MiB" in shown
    assert "all sums are right" in shown
    assert "segments  4, of 21 to 23 rows" in shown
    assert f"3  {ROWS[3, 0]:.6g} " in shown
    np.testing.assert_array_equal(StoredTable.open(source / "t").fetch(np.arange(90)), ROWS)


@pytest.mark.parametrize("block_bytes", [16 << 20, 160])
def test_a_table_with_keys_is_built_of_pieces_of_any_size(
    block_bytes: int, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_BLOCK_BYTES", block_bytes)
    line = "build @rows.npy -o @t --keys @keys.npy --default @default.npy --segments 3 --name t9"
    assert run(line, source) == 0
    table = StoredTable.open(source / "t")
    assert table.header.name == "t9"
    np.testing.assert_array_equal(table.fetch(KEYS), ROWS)
    np.testing.assert_array_equal(table.fetch(np.array([1])), [[0, 1, 2, 3]])


def test_of_two_sources_the_later_ones_rows_count(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(source / "more.npy", ROWS[:2] + 1)
    np.save(source / "newer.npy", np.array([7, 1], np.uint64))
    line = "build @rows.npy @more.npy -o @t --keys @keys.npy @newer.npy --default 0.5 --dtype fp32"
    assert run(line, source) == 0
    got = StoredTable.open(source / "t").fetch(np.array([0, 7, 1, 2]))
    np.testing.assert_array_equal(got, [ROWS[89], ROWS[0] + 1, ROWS[1] + 1, np.full(4, 0.5)])
    assert run("show @t --key 2", source) == 0
    assert "unseen    0.5 0.5 0.5 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build @none.npy -o @t", "none.npy: there is no such file"),
        ("build @keys.npy -o @t", "want floats [rows, dim], got int64"),
        ("build @rows.npy -o @t --keys @keys.npy @keys.npy", "1 sources of rows, but 2 of keys"),
        ("build @rows.npy -o @t --keys @default.npy", "want integers [90]"),
        ("build @rows.npy -o @t --default 1", "there are no keys"),
        ("build @rows.npy -o @t --segments 0", "n_segments: want 1"),
        ("build @rows.npy -o @t --keys @keys.npy --default @keys.npy", "want 4 finite numbers"),
        ("build @rows.npy @t8.npy -o @t", "rows of 4 and 8 numbers in one table"),
        ("show @t", "not a table, it has no table.json"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_why(
    line: str, message: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(source / "t8.npy", np.zeros((3, 8), np.float32))
    assert run(line, source) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
