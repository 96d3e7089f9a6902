"""A node process whose shards have their tables in Redis, which dies and hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.bundle.build import BuildOptions, build_bundle
from tests import tiny
from tests.redis_help import RedisProcess, needs_redis, redis_cluster, redis_server
from tests.system.cluster_help import ROOT, Node, NotReady, serving
from transport.blocking import BlockingClient
from transport.errors import DeadlineExceeded, RequestError, Unavailable

pytestmark = needs_redis

PATIENCE_S = 20.0
USER: dict[str, Any] = {"user_id": 3, "history": [1, 2, 3], "age": 33.0}
CANDIDATES: dict[str, Any] = {
    "item_id": [0, 16, 5],
    "genre": ["crime", "été", "drama"],
    "price": [1.5, -0.25, 4.0],
}
CLICKS = tiny.click(USER, {**CANDIDATES, "genre": [2, 4, 0]})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build_bundle(*tiny.write_model(folder), folder / "bundle", BuildOptions())
    return folder / "bundle"


@pytest.fixture
def one(tmp_path: Path) -> Iterator[RedisProcess]:
    with redis_server(tmp_path / "redis", "--appendonly", "yes") as server:
        yield server


def load(bundle: Path, url: str) -> str:
    command = [sys.executable, "-m", "actors.redis", "load", str(bundle), "--url", url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ask(client: BlockingClient, budget: float = PATIENCE_S) -> None:
    """Ask, and check what comes; raises what a client gets instead."""
    scores = client.score(model="tiny", user=USER, candidates=CANDIDATES, budget=budget)
    np.testing.assert_allclose(scores.scores, CLICKS, rtol=1e-4, atol=1e-6)


def serves(client: BlockingClient) -> bool:
    try:
        ask(client)
    except (Unavailable, DeadlineExceeded):
        return False
    return True


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Load:
    """Clients that ask all the time, in threads."""

    def __init__(self, node: Node, budget_s: float, n: int = 3) -> None:
        self.n_right = 0
        self.refusals: list[RequestError] = []
        self.wrong: list[Exception] = []
        self.slowest_s = 0.0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(node, budget_s)) for _ in range(n)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, node: Node, budget_s: float) -> None:
        with BlockingClient(node.address) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    ask(client, budget_s)
                    self.n_right += 1
                except (Unavailable, DeadlineExceeded) as error:
                    self.refusals.append(error)
                except Exception as error:
                    self.wrong.append(error)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)


def test_a_cluster_serves_a_node(bundle: Path, tmp_path: Path) -> None:
    with redis_cluster(tmp_path) as servers:
        assert "17 rows of 24 bytes" in load(bundle, servers[0].url)
        shard = ("redis.shard.RedisShard", {"url": servers[1].url})
        with serving({"tiny": bundle}, tmp_path, shard=shard) as node:
            with BlockingClient(node.address) as client:
                for _ in range(20):
                    ask(client)
            assert node.stop() == 0


def test_redis_that_dies_or_hangs_gives_no_wrong_score_and_holds_nobody_up(
    bundle: Path, one: RedisProcess, tmp_path: Path
) -> None:
    load(bundle, one.url)
    shard = ("redis.shard.RedisShard", {"url": one.url, "timeout_ms": 200})
    with serving({"tiny": bundle}, tmp_path, shard=shard) as node:
        pid = node.pid()
        with Load(node, budget_s=1.0) as asked:
            for _ in range(2):
                right, refused = asked.n_right, len(asked.refusals)
                until(lambda right=right: asked.n_right > right + 5)  # type: ignore[misc]
                one.kill()
                until(lambda n=refused: len(asked.refusals) > n + 5)  # type: ignore[misc]
                one.start()
            right = asked.n_right
            until(lambda: asked.n_right > right + 5)
        assert not asked.wrong
        assert any(f"127.0.0.1:{one.port}" in str(error) for error in asked.refusals)
        assert asked.slowest_s < 5.0
        with BlockingClient(node.address) as client:
            one.cli("client", "pause", "500", "all")
            with pytest.raises((Unavailable, DeadlineExceeded)):
                ask(client, 0.2)
            until(lambda: serves(client))
        assert node.pid() == pid


def test_a_node_that_redis_refuses_says_why_and_ends(bundle: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis", "--requirepass", "right") as server:
        url = f"redis://:wrong@127.0.0.1:{server.port}"
        with (
            pytest.raises(NotReady, match=f"Redis at 127.0.0.1:{server.port}: WRONGPASS"),
            serving({"tiny": bundle}, tmp_path, shard=("redis.shard.RedisShard", {"url": url})),
        ):
            pass
        assert "wrong@" not in (tmp_path / "out.txt").read_text()
