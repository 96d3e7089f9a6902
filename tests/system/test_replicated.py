"""Groups of shards with replicas, as processes: what becomes of requests when some are killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trio

from kernels.placement import Placement
from tests import tiny
from tests.divided import CACHED, PLACEMENT
from tests.system import faults
from tests.system.nodes import Nodes, nodes
from transport.client import Client
from transport.errors import Unavailable
from transport.exchange import RetryPolicy

ONCE = RetryPolicy(n_attempts=1)
SOON = 60.0


@pytest.mark.parametrize(
    ("placement", "n_kills"), [(PLACEMENT, 5), (CACHED, 4)], ids=["divided", "cached"]
)
def test_shards_that_are_killed_cost_no_request_and_no_right_score(
    tmp_path: Path, placement: Placement, n_kills: int
) -> None:
    # A budget that a busy machine keeps as well: what is asked of it takes some milliseconds.
    plan = faults.Plan(seed=3, n_kills=n_kills, rate=40.0, budget_s=5.0, pause_s=0.3, calm_s=0.1)
    with nodes(tmp_path, placement=placement) as cluster:
        line = trio.run(faults.run, plan, cluster)
    assert line["wrong_scores"] == []
    assert line["failed"] == {}
    assert line["requests"] > 50
    assert line["dead_replicas"] >= n_kills - 1  # one that was not asked anything died unnoticed


USER = {"user_id": 3, "age": 40.0, "history": [1, 9]}
CANDIDATES = {"item_id": np.array([2, 12]), "price": np.zeros(2, np.float32)}
GENRES = ["drama", "crime"]


async def score(cluster: Nodes) -> tuple[bool, float]:
    """Return whether an answer is degraded, and how far off its scores are."""
    async with Client.connect(cluster.address, policy=ONCE) as client:
        scores = await client.score(
            model="tiny", user=USER, candidates={**CANDIDATES, "genre": GENRES}, budget=SOON
        )
    want = tiny.click(USER, {**CANDIDATES, "genre": np.array([0, 2])})
    return scores.degraded, float(np.abs(scores.scores - want).max())


@pytest.mark.parametrize("missing", ["fail", "default"])
def test_with_all_replicas_gone_requests_get_what_the_user_wants(
    tmp_path: Path, missing: str
) -> None:
    async def test(cluster: Nodes) -> None:
        with trio.fail_after(SOON):
            await cluster.wait_ready()
            degraded, off = await score(cluster)
            assert not degraded
            assert off < 1e-5
            for name in ("shard-1", "shard-3"):
                cluster.kill(name)
            if missing == "fail":
                with pytest.raises(Unavailable, match=r"no replica is left of .*users"):
                    await score(cluster)
            else:
                degraded, off = await score(cluster)
                assert degraded
                assert off > 1e-4
            cluster.start("shard-3")
            await cluster.wait_ready("shard-3")
            while True:
                try:
                    degraded, off = await score(cluster)
                except Unavailable:
                    degraded = True
                if not degraded:
                    break
                await trio.sleep(0.05)
            assert off < 1e-5

    with nodes(tmp_path, missing=missing) as cluster:
        trio.run(test, cluster)
        assert cluster.stop() == dict.fromkeys(
            ["gateway", "shard-0", "shard-2", "shard-3", "executor"], 0
        )
