"""Cached tables in a cluster of processes: the scores of others, and updates within the bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from kernels.placement import CachedTable
from tests import tiny
from tests.system.test_updates import Cluster, serving
from transport.client import Client
from transport.publisher import Publisher
from transport.updates import UpdateRequest

STALE_S = 0.25
N_UPDATES = 40
# Item 0 pads histories: it stays as it is, so that a score is of one changing row.
ITEMS = np.arange(1, tiny.N_ITEMS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cached = tuple(CachedTable(name, 1 << 16, STALE_S) for name in ("items", "users"))
    with serving(tmp_path_factory.mktemp("cached"), cached) as cluster:
        yield cluster


async def ask(client: Client, user: int, items: NDArray[np.int64]) -> NDArray[np.float32]:
    answer = await client.score(
        model="tiny",
        user={"user_id": user, "history": [], "age": 30.0},
        candidates={
            "item_id": items,
            "genre": ["drama"] * len(items),
            "price": np.ones(len(items)),
        },
        budget=10.0,
    )
    return answer.scores


def expected(
    user: int, items: NDArray[np.int64], changed: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    return tiny.click(
        {"user_id": user, "history": [], "age": 30.0},
        {"item_id": items, "genre": np.zeros(len(items), int), "price": np.ones(len(items))},
        changed=None if changed is None else {"items": changed},
    )


def items_at(version: int) -> NDArray[np.float32]:
    """Return the table of items after so many updates, each of which changes all but item 0."""
    rows = tiny.weights()["items"]
    if version:
        rows[1:] = version / 32
    return rows


async def test_scores_are_those_of_the_tables(cluster: Cluster) -> None:
    rng = np.random.default_rng(0)
    async with Client.connect(cluster.gateway) as client:
        for n in range(1, 30):
            items = rng.integers(0, tiny.N_ITEMS, n)
            found = await ask(client, n % tiny.N_USERS, items)
            np.testing.assert_allclose(found, expected(n % tiny.N_USERS, items), rtol=1e-5)
        figures = (await client.stats())["executor"]
    for name in ("items", "users"):
        assert figures[f"hot.{name}"]["hits"] > 0
        assert figures[f"hot.{name}"]["size_bytes"] <= 1 << 16


async def test_no_answer_is_of_a_row_that_was_replaced_before_the_bound(cluster: Cluster) -> None:
    """Of each candidate's score it is known which update its row is of."""
    table = np.stack([expected(2, ITEMS, items_at(version)) for version in range(N_UPDATES + 1)])
    assert np.abs(np.diff(table, axis=0)).min() > 1e-4
    applied_at = [-np.inf]  # by version
    answers: list[tuple[float, NDArray[np.intp]]] = []

    async def ask_on(client: Client) -> None:
        while True:
            asked_at = trio.current_time()
            found = await ask(client, 2, ITEMS)
            error = np.abs(table - found)
            assert error.min(axis=0).max() < 1e-5
            answers.append((asked_at, error.argmin(axis=0)))

    async with (
        Client.connect(cluster.gateway) as client,
        Publisher.connect(cluster.updater) as publisher,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(ask_on, client)
        for version in range(1, N_UPDATES + 1):
            await publisher.publish(
                UpdateRequest(
                    request_id=0,
                    model="tiny",
                    table="items",
                    keys=ITEMS,
                    rows=items_at(version)[1:],
                )
            )
            await publisher.drain()
            while True:
                reply = await publisher.ask("tiny")
                if reply.applied >= version:
                    break
                await trio.sleep(0.005)
            applied_at.append(trio.current_time())
        with trio.fail_after(10):
            while True:
                n = len(answers)
                await trio.sleep(0.05)
                if len(answers) > n and (answers[-1][1] == N_UPDATES).all():
                    break
        nursery.cancel_scope.cancel()
    for asked_at, versions in answers:
        due = np.searchsorted(applied_at, asked_at - STALE_S, side="right") - 1
        assert (versions >= due).all()
    # The shards say what has changed, so most of it is seen before the bound.
    async with Client.connect(cluster.gateway) as client:
        figures = await client.stats()
    assert figures["executor"]["changed_rows"] == N_UPDATES * len(ITEMS)
    assert figures["executor"]["hot.items"]["invalidated"] > 0
