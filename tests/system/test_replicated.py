"""Groups of shards with replicas, as processes: what becomes of requests when some are killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from tests import tiny
from tests.divided import CACHED
from tests.system import faults
from tests.system.nodes import Nodes, nodes
from transport.client import Client
from transport.errors import Unavailable
from transport.exchange import RetryPolicy

ONCE = RetryPolicy(n_attempts=1)
SOON = 60.0


async def kill_some(cluster: Nodes, n_kills: int) -> None:
    # A budget that a busy machine keeps as well: what is asked of it takes some milliseconds.
    plan = faults.Plan(seed=3, n_kills=n_kills, rate=40.0, budget_s=5.0, pause_s=0.3, calm_s=0.1)
    line = await faults.run(plan, cluster)
    assert line["wrong_scores"] == []
    assert line["failed"] == {}
    assert line["requests"] > 50
    assert line["dead_replicas"] >= n_kills - 1  # one that was not asked anything died unnoticed


USER = {"user_id": 3, "age": 40.0, "history": [1, 9]}
CANDIDATES = {"item_id": np.array([2, 12]), "price": np.zeros(2, np.float32)}
GENRES = ["drama", "crime"]


async def score(cluster: Nodes, model: str) -> tuple[bool, float]:
    """Return whether an answer is degraded, and how far off its scores are."""
    async with Client.connect(cluster.address, policy=ONCE) as client:
        scores = await client.score(
            model=model, user=USER, candidates={**CANDIDATES, "genre": GENRES}, budget=SOON
        )
    want = tiny.click(USER, {**CANDIDATES, "genre": np.array([0, 2])})
    return scores.degraded, float(np.abs(scores.scores - want).max())


async def kill_all_of_a_group(cluster: Nodes) -> None:
    for model in ("tiny", "lenient"):
        degraded, off = await score(cluster, model)
        assert not degraded
        assert off < 1e-5
    for name in ("shard-1", "shard-3"):
        cluster.kill(name)
    with pytest.raises(Unavailable, match=r"no replica is left of .*users"):
        await score(cluster, "tiny")
    degraded, off = await score(cluster, "lenient")
    assert degraded
    assert off > 1e-4
    cluster.start("shard-3")
    await cluster.wait_ready("shard-3")
    while True:
        degraded, off = await score(cluster, "lenient")
        if not degraded:
            break
        await trio.sleep(0.05)
    assert off < 1e-5
    assert await score(cluster, "tiny") == (False, off)


def test_shards_that_are_killed_cost_no_request_unless_none_is_left(tmp_path: Path) -> None:
    async def test(cluster: Nodes) -> None:
        await kill_some(cluster, 4)
        with trio.fail_after(SOON):
            await kill_all_of_a_group(cluster)

    with nodes(tmp_path, lenient=True) as cluster:
        trio.run(test, cluster)
        assert cluster.stop() == dict.fromkeys(
            ["gateway", "shard-0", "shard-2", "shard-3", "executor"], 0
        )


def test_the_same_goes_for_tables_whose_hot_rows_are_cached(tmp_path: Path) -> None:
    with nodes(tmp_path, placement=CACHED) as cluster:
        trio.run(kill_some, cluster, 4)
