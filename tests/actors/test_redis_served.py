"""A gateway, an executor, and shards whose tables lie in Redis, in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from actors.executor import Executor
from actors.gateway import Gateway
from actors.redis.shard import RedisShard
from actors.shard import EmbeddingShard
from runtime.host import Factory, Host
from runtime.topology import ActorSpec, NodeSpec, Topology, spread
from tests.actors.test_gateway import ask, ask_all, assert_error, assert_scores, request
from tests.actors.test_redis_shard import load
from tests.divided import divide
from tests.redis_help import RedisProcess, needs_redis, redis_server
from transport.messages import ScoreReply

pytestmark = needs_redis


@pytest.fixture(scope="module")
def divided(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return divide(tiny_bundle, tmp_path_factory.mktemp("divided") / "bundle")


@pytest.fixture
def one(tmp_path: Path, tiny_bundle: Path) -> Iterator[RedisProcess]:
    with redis_server(tmp_path / "server") as server:
        trio.run(load, server.url, tiny_bundle)
        yield server


def topology_of(bundle: Path, url: str, *, replicas: int) -> Topology:
    """Two groups of shards in Redis; a second replica of each has files."""
    topology = spread(
        bundle, model="tiny", listen="ipc://unused", n_shards=2 * replicas, replicas=replicas
    )

    def changed(actor: ActorSpec) -> ActorSpec:
        if actor.name == "gateway":
            return attrs.evolve(actor, options={})  # asked in process only
        if actor.name in ("shard-0", "shard-1"):
            return attrs.evolve(actor, options={"url": url, "timeout_ms": 200})
        return actor

    nodes: list[NodeSpec] = [
        attrs.evolve(node, actors=tuple(map(changed, node.actors))) for node in topology.nodes
    ]
    return attrs.evolve(topology, nodes=tuple(nodes))


@asynccontextmanager
async def serving(bundle: Path, url: str, *, replicas: int = 1) -> AsyncIterator[Host]:
    topology = topology_of(bundle, url, replicas=replicas)
    factories: dict[str, Factory] = {
        "gateway": Gateway,
        "shard-0": RedisShard,
        "shard-1": RedisShard,
        "shard-2": EmbeddingShard,
        "shard-3": EmbeddingShard,
        "executor-0": Executor,
    }
    there = {actor.name for node in topology.nodes for actor in node.actors}
    host = Host(topology, {name: each for name, each in factories.items() if name in there})
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield host
        assert await host.stop(5.0)


@pytest.mark.parametrize("kind", ["tiny_bundle", "divided"])
async def test_scores_are_those_of_the_model(
    kind: str, one: RedisProcess, tiny_bundle: Path, divided: Path
) -> None:
    """Whole tables are pooled by the shard, divided ones at the join."""
    asked = [request(i, n) for i, n in enumerate([1, 6, 3, 40, 17, 300], start=1)]
    async with serving(divided if kind == "divided" else tiny_bundle, one.url) as host:
        answers = await ask_all(host, asked)
    for each in asked:
        assert_scores(answers[each.request_id], each)


async def test_a_row_that_is_set_is_served_at_once(one: RedisProcess, divided: Path) -> None:
    asked = request(1, 4)
    async with serving(divided, one.url) as host:
        before = await ask(host, asked)
        assert_scores(before, asked)
        for item in range(17):
            one.cli("setrange", f"items:{item}", "0", "abcd")
        after = await ask(host, asked)
        assert isinstance(before, ScoreReply)
        assert isinstance(after, ScoreReply)
        assert (before.scores != after.scores).any()


async def test_without_redis_requests_are_told_why_until_it_is_back(
    one: RedisProcess, tiny_bundle: Path
) -> None:
    asked = request(1)
    async with serving(tiny_bundle, one.url) as host:
        assert_scores(await ask(host, asked), asked)
        one.kill()
        answer = await ask(host, request(2, budget_us=500_000))
        assert_error(answer, "unavailable", "", f"127.0.0.1:{one.port}", "refused")
        one.start()
        await load(one.url, tiny_bundle)
        with trio.fail_after(5):
            while not isinstance(answer, ScoreReply):
                await trio.sleep(0.02)
                answer = await ask(host, asked)
        assert_scores(answer, asked)


async def test_a_replica_with_files_stands_in_for_redis(one: RedisProcess, divided: Path) -> None:
    async with serving(divided, one.url, replicas=2) as host:
        for i in range(1, 5):
            assert_scores(await ask(host, asked := request(i)), asked)
        one.kill()
        for i in range(1, 9):
            assert_scores(await ask(host, asked := request(i, budget_us=2_000_000)), asked)
