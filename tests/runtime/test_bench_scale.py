"""The scale benchmark on a small table: its oracle, and a run from bundle to answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernels.store.build import build_keyed
from kernels.store.header import read_header
from kernels.store.scale import made_keys, made_rows
from runtime.bench.scale import HISTORY, expected_scores, made_requests, main
from runtime.bench.traffic import parse_sizes

ROWS, DIM = 2000, 8


@pytest.fixture
def table(tmp_path: Path) -> Path:
    keys = made_keys(np.arange(ROWS))
    batches = [(keys, made_rows(keys, DIM))]
    build_keyed(tmp_path / "items", batches, dim=DIM, dtype="fp16", n_segments=4)
    return tmp_path / "items"


def test_scores_are_those_of_each_candidate_alone() -> None:
    history, items = made_keys(np.arange(5)), made_keys(np.arange(5, 8))
    prices = np.array([0.1, 0.5, 0.9], np.float32)
    together = expected_scores(history, items, prices, DIM)
    alone = [expected_scores(history, items[[k]], prices[[k]], DIM) for k in range(3)]
    assert together.shape == (3, 1)
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6)
    assert np.ptp(together) > 0.01


def test_requests_are_repeatable_and_their_keys_the_tables(table: Path) -> None:
    header = read_header(table)
    pools = [
        made_requests(header, 20, sizes=parse_sizes("7"), skew=1.1, budget_us=1000, seed=3)
        for _ in range(2)
    ]
    known = set(made_keys(np.arange(ROWS)).tolist())
    for one, other in zip(pools[0][0].requests, pools[1][0].requests, strict=True):
        history, items, _ = one.blocks
        assert 1 <= history.values.size <= HISTORY
        assert items.values.shape == (1, 7)
        assert set(items.values.ravel().tolist()) | set(history.values.tolist()) <= known
        np.testing.assert_array_equal(items.values, other.blocks[1].values)


def test_a_made_table_is_served_and_its_scores_are_right(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--rate",
        "40",
        "--duration",
        "2",
        "--warmup",
        "0.5",
        "--distinct",
        "30",
        "--budget-ms",
        "5000",
    ]
    assert main([str(table), *options]) == 0
    line = json.loads(capfd.readouterr().out)
    assert line["parameters"] == ROWS * DIM
    assert line["checked"]["answers"]
    assert not line["checked"]["wrong"]
    assert line["loaded_mb"]["shard-0"]["files"] > 0
    assert not [left for left in table.parent.iterdir() if left.name.startswith(".scale-")]


def test_what_is_no_table_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capfd.readouterr().err
