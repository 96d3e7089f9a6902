"""Gateway, executor with hot rows on a card, and shards, in one process.

The card is the fake one that runs emitted kernels on the CPU; rows in fp32, so that scores are
those of the whole model to within its rounding.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from actors.hot_kept import OnCard
from actors.hot_rows import HotTables
from actors.layouts import Layouts
from kernels.gpu import model as gpu_model
from runtime.actor import Envelope
from runtime.host import Host
from tests import tiny
from tests.actors.test_cached_served import (
    ASKED,
    EVERYTHING,
    STALE_S,
    asked_shards,
    cache,
    changed,
    hot,
    shards_that_change,
)
from tests.actors.test_gateway import ask, ask_all, expected, request
from tests.actors.test_replicas_served import Mortal, WatchedExecutor, kill, serving
from tests.kernels import shim
from tests.kernels.gpu_help import FakeCuda, ShimBuilder, fake_cuda
from transport.messages import ErrorReply, Message, ScoreReply, ScoreRequest
from transport.updates import RowsChanged

__all__ = ["fake_cuda", "shards_that_change"]
pytestmark = pytest.mark.skipif(shim.available() is not None, reason=str(shim.available()))


@pytest.fixture(autouse=True)
def emitted(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Kernels are compiled for the CPU, and the fake card runs them."""
    monkeypatch.setattr(gpu_model, "Builder", ShimBuilder)
    return fake_cuda


@pytest.fixture
def mock_clock() -> trio.testing.MockClock:
    """A clock that stands still until it is told to jump."""
    return trio.testing.MockClock()


def kept() -> OnCard:
    [serving_one] = WatchedExecutor.last._versions.ready.values()
    assert serving_one.hot is not None
    tables: HotTables = serving_one.hot._tables
    assert isinstance(tables._card, OnCard)
    return tables._card


def n_pinned() -> int:
    """Return how many pins there are, once all fills that are over were noted."""
    [serving_one] = WatchedExecutor.last._versions.ready.values()
    assert serving_one.hot is not None
    serving_one.hot._look_at_fills()
    stores = kept()._slots._natives
    if not stores:
        return int(sum(store._pins.sum() for store in kept()._slots._plain))
    return int(sum(store._arrays["pins"].view(np.uint32).sum() for store in stores))


@asynccontextmanager
async def on_card(
    bundle: Path,
    mode: str = "streams",
    **changes: Any,  # noqa: ANN401
) -> AsyncIterator[Host]:
    """Serve; see at the end that every slot was given back."""
    gpu = {"precision": "fp32", "buckets": [64], "mode": mode}
    executor = {"device": "cuda", "lanes": 2, "max_rows": 64, "max_requests": 16, "gpu": gpu}
    async with serving(bundle, executor=executor, **changes) as host:
        yield host
        assert WatchedExecutor.last.n_joins > 0 or n_pinned() == 0


def agrees(answer: Message, asked: ScoreRequest) -> None:
    assert isinstance(answer, ScoreReply), answer
    np.testing.assert_allclose(answer.scores[:, 0], expected(asked), atol=1e-5)


async def serves(host: Host, n: int) -> None:
    for i in range(1, 1 + n):
        asked = request(i, 1 + i % 7)
        answer = await ask(host, asked)
        agrees(answer, asked)
        assert isinstance(answer, ScoreReply)
        assert not answer.degraded


@pytest.mark.parametrize(
    ("names", "mode"),
    [
        (("items", "users"), "streams"),
        (("items", "users"), "contexts"),
        (("genres", "users", "items"), "green"),
        (("users",), "streams"),
    ],
)
async def test_cached_tables_score_as_others(
    tiny_bundle: Path, tmp_path: Path, names: tuple[str, ...], mode: str
) -> None:
    """Of a table that is divided and not cached, rows are pooled beside the card."""
    async with on_card(cache(tiny_bundle, tmp_path, *names), mode) as host:
        for _ in range(2):
            answers = await ask_all(host, ASKED)
            for each in ASKED:
                agrees(answers[each.request_id], each)
        await serves(host, 10)
        figures = await hot(host)
        assert figures["rows_filled"] > 0
        for name in names:
            of_table = figures[f"hot.{name}"]
            assert of_table["hits"] > of_table["misses"] > 0
            assert 0 < of_table["size_bytes"] <= EVERYTHING
        assert WatchedExecutor.last.n_joins == n_pinned() == 0


async def test_what_is_hot_needs_no_shard_and_nothing_is_copied_but_ids(
    tiny_bundle: Path, tmp_path: Path, emitted: FakeCuda
) -> None:
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users", "genres")) as host:
        await serves(host, 20)
        before, copied = asked_shards(), emitted.copied_bytes
        await serves(host, 3)
        assert asked_shards() == before
        n_spare = emitted.copied_bytes - copied
        with changed(0.0):
            await tell_changed()
            copied = emitted.copied_bytes
            await serves(host, 3)
        # The same again, and their rows.
        assert emitted.copied_bytes - copied > n_spare
        await kill("shard-1", "shard-3")
        await serves(host, 3)


async def tell_changed() -> None:
    """Tell the executor that all rows of items and users changed."""
    [(model, version)] = WatchedExecutor.last._versions.ready
    for table, n in (("items", tiny.N_ITEMS), ("users", tiny.N_USERS)):
        message = RowsChanged(model=model, version=version, table=table, keys=np.arange(n))
        WatchedExecutor.last._serve(Envelope(message, trio.current_time()))


async def test_slots_for_few_rows_serve_all(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"items": 16 * 24, "users": 16 * 16}  # fewer than there may be in the host's memory
    monkeypatch.setattr(Layouts, "hot_tables", property(lambda _: few))
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        await serves(host, 40)
        figures = await hot(host)
        assert figures["hot.items"]["n_rows"] == 16 < tiny.N_ITEMS
        assert figures["hot.items"]["size_bytes"] == 16 * 24
        assert figures["hot.items"]["misses"] > tiny.N_ITEMS


async def test_rows_that_are_said_to_have_changed_are_not_used_again(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        await serves(host, 20)
        with changed(0.25):
            await tell_changed()
            await serves(host, 20)
            assert (await hot(host))["hot.users"]["invalidated"] > 0
        await tell_changed()
        await serves(host, 10)


async def test_rows_are_used_no_longer_than_the_bound(
    tiny_bundle: Path, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        await serves(host, 20)
        with changed(0.25):
            asked = request(1, 3)
            answer = await ask(host, asked)
            assert isinstance(answer, ScoreReply)
            assert np.abs(answer.scores[:, 0] - expected(asked)).min() > 1e-4  # old rows
            mock_clock.jump(STALE_S + 0.001)
            await serves(host, 10)
            assert (await hot(host))["hot.items"]["stale"] > 0
        mock_clock.jump(STALE_S + 0.001)
        await serves(host, 5)


@pytest.mark.parametrize("missing", ["fail", "default"])
async def test_with_both_replicas_gone_it_is_said_what_is_gone(
    tiny_bundle: Path, tmp_path: Path, missing: str
) -> None:
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users"), missing=missing) as host:
        await kill("shard-1", "shard-3")
        answer = await ask(host, request(2))
        if missing == "fail":
            assert isinstance(answer, ErrorReply)
            assert (answer.code, "cached tables" in answer.message) == ("unavailable", True)
        else:
            assert isinstance(answer, ScoreReply)
            assert answer.degraded


async def test_when_a_replica_dies_the_executor_asks_another(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        Mortal.alive["shard-1"].kill()
        await serves(host, 10)
        assert Mortal.alive["shard-3"].n_asked > 0


async def test_rows_that_find_no_room_on_their_way_are_fetched_again(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        [serving_one] = WatchedExecutor.last._versions.ready.values()
        assert serving_one.hot is not None
        with monkeypatch.context() as patch:
            patch.setattr(serving_one.hot._filler, "put", lambda *_: None)
            await serves(host, 10)
        figures = await hot(host)
        assert figures["hot.items"]["hits"] == 0
        assert figures["rows_not_filled"] > 0
        await serves(host, 20)
        assert (await hot(host))["hot.items"]["hits"] > 0


async def test_a_deadline_gives_slots_back(
    tiny_bundle: Path, tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    """Of batches that wait for rows that do not come."""
    async with on_card(cache(tiny_bundle, tmp_path, "items", "users")) as host:
        for number in range(1, 7):
            asked = request(number, budget_us=30_000)
            agrees(await ask(host, asked), asked)
        for name in ("shard-1", "shard-3"):
            Mortal.alive[name].is_mute = True
        answers: dict[int, Message] = {}

        async def ask_one(number: int) -> None:
            answers[number] = await ask(host, request(number, budget_us=30_000))

        async with trio.open_nursery() as nursery:
            for number in range(12, 17):
                nursery.start_soon(ask_one, number)
            await trio.testing.wait_all_tasks_blocked()
            assert n_pinned() > 0
            mock_clock.jump(0.1)
        assert {getattr(answer, "code", "ok") for answer in answers.values()} == {"deadline"}
        await trio.testing.wait_all_tasks_blocked()
        assert WatchedExecutor.last.n_joins == n_pinned() == 0
