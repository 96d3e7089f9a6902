"""Gateway, executor with hot rows, and shards, in one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest
import trio
import trio.testing
from numpy.typing import NDArray

from actors.layouts import placement_of
from kernels.bundle.load import load_bundle
from kernels.placement import CachedTable
from runtime.actor import Envelope
from runtime.errors import StartError
from runtime.host import Host
from tests import tiny
from tests.actors import test_replicas_served as replicated
from tests.actors.test_gateway import ask, ask_all, assert_scores, expected, request
from tests.actors.test_replicas_served import (
    SHARDS,
    Mortal,
    WatchedExecutor,
    kill,
    serves,
    serving,
    topology_of,
)
from tests.divided import PLACEMENT, divide
from transport.messages import (
    ErrorReply,
    LookupBatch,
    RowsPart,
    ScoreReply,
    StatsReply,
    StatsRequest,
)
from transport.updates import RowsChanged

STALE_S = 5.0
EVERYTHING = 1 << 20


class Changing(Mortal):
    """A shard whose fetched rows can be changed, all at once."""

    added: ClassVar[float] = 0.0

    async def _look_up(self, batch: LookupBatch, received_at: float) -> RowsPart:
        part = await super()._look_up(batch, received_at)
        rows = part.rows.view(np.float32) + np.float32(self.added)
        return attrs.evolve(part, rows=rows.view(np.uint8))


@contextmanager
def changed(added: float) -> Iterator[None]:
    """Let rows of items and users be other ones, in what is expected as well."""
    whole = tiny.weights

    def weights(seed: int = 20) -> dict[str, NDArray[np.float32]]:
        return {
            name: each + np.float32(added) if name in ("items", "users") else each
            for name, each in whole(seed).items()
        }

    tiny.weights = weights
    Changing.added = added
    try:
        yield
    finally:
        tiny.weights = whole
        Changing.added = 0.0


def cache(bundle: Path, to: Path, *names: str, max_bytes: int = EVERYTHING) -> Path:
    cached = tuple(CachedTable(name, max_bytes, STALE_S) for name in names)
    return divide(bundle, to / "bundle", attrs.evolve(PLACEMENT, cached=cached))


@pytest.fixture(autouse=True)
def shards_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicated, "Mortal", Changing)


async def hot(host: Host) -> dict[str, Any]:
    """Return the executor's figures."""
    answer = await ask(host, StatsRequest(request_id=1))
    assert isinstance(answer, StatsReply)
    figures: dict[str, Any] = json.loads(answer.stats)["executor-0"]
    return figures


def asked_shards() -> dict[str, int]:
    return {name: Mortal.alive[name].n_asked for name in SHARDS}


ASKED = [request(i, n) for i, n in enumerate([1, 6, 3, 40, 17, 300, 2, 2], start=1)]


@pytest.mark.parametrize("names", [("items", "users"), ("users",), ("genres", "items")])
async def test_cached_tables_score_as_others(
    tiny_bundle: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    async with serving(cache(tiny_bundle, tmp_path, *names)) as host:
        for _ in range(2):
            answers = await ask_all(host, ASKED)
            for each in ASKED:
                assert_scores(answers[each.request_id], each)
        await serves(host, 20)
        figures = await hot(host)
        for name in names:
            of_table = figures[f"hot.{name}"]
            assert of_table["hits"] > of_table["misses"] > 0
            assert 0.5 < of_table["hit_rate"] < 1
            assert 0 < of_table["size_bytes"] <= EVERYTHING
        assert WatchedExecutor.last.n_joins == 0


async def test_what_is_hot_needs_no_shard(tiny_bundle: Path, tmp_path: Path) -> None:
    async with serving(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        await serves(host, 30)
        before = asked_shards()
        await serves(host, 5)
        after = asked_shards()
        # Group 1 has nothing else; group 0 pools genres.
        assert [after[name] - before[name] for name in ("shard-1", "shard-3")] == [0, 0]
        await kill("shard-1", "shard-3")
        await serves(host, 5)


async def test_a_place_for_few_rows_serves_all(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = cache(tiny_bundle, tmp_path, "items", "users", max_bytes=1100)
    async with serving(bundle) as host:
        await serves(host, 60)
        figures = await hot(host)
        assert figures["hot.items"]["n_rows"] == 16 < tiny.N_ITEMS
        assert figures["hot.items"]["misses"] > tiny.N_ITEMS


def test_a_place_for_no_row_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = cache(tiny_bundle, tmp_path, "users", max_bytes=100)
    model = topology_of(bundle).models["tiny"]
    with pytest.raises(StartError, match=r"model tiny: .* cached: table 'users': max_bytes: want"):
        placement_of(model, load_bundle(bundle))


async def test_rows_that_changed_are_used_no_longer_than_the_bound(
    tiny_bundle: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        await serves(host, 30)
        with changed(0.25):
            asked = request(1, 3)
            new = expected(asked)
            answer = await ask(host, asked)
            assert isinstance(answer, ScoreReply)
            assert np.abs(answer.scores[:, 0] - new).min() > 1e-4  # old rows
            await trio.sleep(STALE_S + 0.001)
            await serves(host, 10)
            assert (await hot(host))["hot.items"]["stale"] > 0
        await trio.sleep(STALE_S + 0.001)
        await serves(host, 10)


async def test_rows_that_are_said_to_have_changed_are_not_used_again(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = cache(tiny_bundle, tmp_path, "items", "users")
    async with serving(bundle) as host:
        await serves(host, 30)
        with changed(0.25):
            executor = host.mailbox("executor-0")
            assert executor is not None
            for table, n in (("items", tiny.N_ITEMS), ("users", tiny.N_USERS)):
                [(model, version)] = WatchedExecutor.last._versions.ready
                message = RowsChanged(model=model, version=version, table=table, keys=np.arange(n))
                executor.put_nowait(Envelope(message, trio.current_time()))
            await serves(host, 30)
            figures = await hot(host)
            assert figures["changed_rows"] == tiny.N_ITEMS + tiny.N_USERS
            assert figures["hot.users"]["invalidated"] > 0


async def test_when_a_replica_dies_the_executor_asks_another(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async with serving(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        Mortal.alive["shard-1"].kill()
        await serves(host, 20, budget_us=1_000_000)
        assert Mortal.alive["shard-3"].n_asked > 0
        assert WatchedExecutor.last.n_joins == 0


async def test_a_silent_replica_is_doubted(
    tiny_bundle: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        mute = Mortal.alive["shard-1"]
        mute.is_mute = True
        before = trio.current_time()
        await serves(host, 6, budget_us=50_000)
        assert trio.current_time() - before < 6 * 0.03
        assert mute.held_back
        await mute.speak()
        await trio.testing.wait_all_tasks_blocked()
        await serves(host, 6, first=10)
        assert WatchedExecutor.last.n_joins == 0


@pytest.mark.parametrize("missing", ["fail", "default"])
async def test_with_both_replicas_gone_it_is_said_what_is_gone(
    tiny_bundle: Path, tmp_path: Path, missing: str
) -> None:
    async with serving(cache(tiny_bundle, tmp_path, "items", "users"), missing=missing) as host:
        await kill("shard-1", "shard-3")
        asked = request(2)
        answer = await ask(host, asked)
        if missing == "fail":
            assert isinstance(answer, ErrorReply)
            assert answer.code == "unavailable"
            assert "shard-" in answer.message
            assert "cached tables" in answer.message
        else:
            assert isinstance(answer, ScoreReply)
            assert answer.degraded
            assert WatchedExecutor.last.n_joins == 0


async def test_what_nobody_answers_is_forgotten(
    tiny_bundle: Path, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        for name in ("shard-1", "shard-3"):
            Mortal.alive[name].is_mute = True
        answers = await ask_all(host, [request(i, budget_us=30_000) for i in range(2, 6)])
        assert {getattr(answer, "code", "ok") for answer in answers.values()} == {"deadline"}
        await trio.sleep(0.1)
        assert WatchedExecutor.last.n_joins == 0
        [(_, serving_one)] = WatchedExecutor.last._versions.ready.items()
        assert serving_one.hot is not None
        assert serving_one.hot.wake_at() is None
        for name in ("shard-1", "shard-3"):
            await Mortal.alive[name].speak()
        await serves(host, 6)
