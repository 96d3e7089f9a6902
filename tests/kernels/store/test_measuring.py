"""The programs that measure: they run, on next to nothing, and their lines have what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.store import bench, scale
from kernels.store.rows import ROW_TYPES, encode_rows


def test_the_benchmark_measures_every_kind_of_table_and_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "N_TABLES", 3)
    monkeypatch.setattr(bench, "N_BAGS", 4)
    monkeypatch.setattr(bench, "_COPY_BYTES", 1000)
    bench.main(["--dims", "5", "--rows", "20", "--repeats", "2", "--folder", str(tmp_path)])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    cases = [(case["kind"], case["dtype"]) for case in line["cases"]]
    assert cases == [
        ("memory", "fp32"),
        ("ragged", "fp32"),
        *(("dense", dtype) for dtype in ROW_TYPES),
        *(("keyed", dtype) for dtype in ROW_TYPES),
    ]
    assert all(case["c"]["gb_s"] > 0 for case in line["cases"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_the_scale_test_builds_a_table_and_finds_every_row_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(line: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["scale", *line.split()])
        scale.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    built = run(f"build {tmp_path}/t --rows 3000 --dim 8 --segments 3")
    assert built["parameters"] == 24_000
    opened = run(f"open {tmp_path}/t --warm --batches 2")
    assert opened["unseen"] == 0


def test_made_rows_are_spread_and_exact_in_fp16() -> None:
    keys = scale.made_keys(np.arange(1000))
    rows = scale.made_rows(keys, 64)
    assert len(np.unique(keys)) == 1000
    assert np.abs(rows).max() <= 1
    assert abs(float(rows.mean())) < 0.02
    assert 0.5 < rows.std() < 0.65
    np.testing.assert_array_equal(encode_rows(rows, "fp16").view(np.float16), rows)
