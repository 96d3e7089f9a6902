"""Kills shards and the updater while rows change: ``python -m tests.system.update_faults``.

Question: is an update ever lost, or a row ever torn, whatever is killed (SIGKILL) and when? Two
groups of two replicas serve; updates set all rows of a table to one value that tells their number.
Every answer must be of one update as a whole, and of none before the last that was applied
everywhere when it was asked. Who is killed when follows from the seed; the next kill waits until
all serve again and have every update, so that of a group one replica always serves. One JSON line
is printed; the exit code is 1 if an answer was wrong or an update was lost.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import trio
from numpy.typing import NDArray

from kernels.bundle.build import BuildOptions, build_bundle
from tests import tiny
from tests.system.cluster_help import free_port
from tests.system.nodes import SHARDS, Nodes, cluster_text
from transport.client import Client
from transport.errors import RequestError, TransportError
from transport.exchange import RetryPolicy
from transport.publisher import Publisher
from transport.updates import UpdateReply, UpdateRequest

UPDATER = "updater"
NAMES = ("gateway", *SHARDS, "executor", UPDATER)
# Values repeat after so many updates; scores of neighbours differ by far more than float32 errs.
N_VALUES = 256
TOLERANCE = 1e-5
START_S = 120.0
USER = {"user_id": 3, "history": [1, 2, 3, 4], "age": 30.0}
CANDIDATES = {
    "item_id": list(range(tiny.N_ITEMS)),
    "genre": [0] * tiny.N_ITEMS,
    "price": [1.0] * tiny.N_ITEMS,
}
NAMED = {**CANDIDATES, "genre": [tiny.GENRES[0]] * tiny.N_ITEMS}


@attrs.define(eq=False)
class Tally:
    """What happened.

    Attributes:
        published: Positions that were handed over so far; ``acknowledged`` are durable.
        applied: The last position that all replicas have.
        offset: What a position's number in the stream is more.
        answered: Updates that answers were of, counted back from the newest.
        wrong: What was wrong with answers.
    """

    published: int = 0
    acknowledged: int = 0
    applied: int = 0
    offset: int = 0
    n_answered: int = 0
    oldest: int = 0
    failed: Counter[str] = attrs.Factory(Counter)
    wrong: list[str] = attrs.Factory(list)
    kills: Counter[str] = attrs.Factory(Counter)

    def count(self, request: UpdateRequest, reply: UpdateReply) -> None:
        """Take an update's answer: they come in order."""
        if request.position != self.acknowledged + 1:
            self.wrong.append(f"{request.position} is acknowledged after {self.acknowledged}")
        self.acknowledged = request.position
        self.heard(reply)

    def heard(self, reply: UpdateReply) -> None:
        """Take what the updater says of all replicas."""
        if reply.behind:
            self.wrong.append(f"behind: {reply.behind}")
        self.applied = max(self.applied, reply.applied - self.offset)


def items_of(position: int) -> NDArray[np.float32]:
    """Return the table as an update sets it."""
    return np.full((tiny.N_ITEMS, 6), (position % N_VALUES) / N_VALUES, np.float32)


def update(position: int) -> UpdateRequest:
    """Return an update of all rows."""
    return UpdateRequest(
        request_id=0,
        model="tiny",
        table="items",
        source="faults",
        position=position,
        keys=np.arange(tiny.N_ITEMS),
        rows=items_of(position),
    )


async def run(options: argparse.Namespace, cluster: Nodes, updater: str) -> dict[str, Any]:
    """Do it, on a cluster that is starting; return the figures."""
    tally = Tally()
    table = np.stack(
        [tiny.click(USER, CANDIDATES, changed={"items": items_of(k)}) for k in range(N_VALUES)]
    )
    with trio.fail_after(START_S):
        await cluster.wait_ready(*NAMES)
    began = trio.current_time()
    async with (
        Client.connect(cluster.address, policy=RetryPolicy(n_attempts=1)) as client,
        Publisher.connect(updater, on_reply=tally.count, patience_s=START_S) as publisher,
    ):
        await publisher.publish(update(1))
        await publisher.drain()
        tally.published = 1
        tally.offset = (await publisher.ask("tiny")).number - 1
        await _caught_up(publisher, tally)
        done, killed = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_load, client, options, tally, table, done)
            nursery.start_soon(_kill, cluster, options, tally, killed)
            while not killed.is_set():
                tally.published += 1
                await publisher.publish(update(tally.published))
                await trio.sleep(1 / options.updates_s)
            await publisher.drain()
            await _caught_up(publisher, tally)
            done.set()
        # Of both replicas of the group, whichever is asked.
        for _ in range(50):
            await _ask(client, 10.0, tally, table)
    return {
        "seed": options.seed,
        "kills": dict(tally.kills),
        "seconds": round(trio.current_time() - began, 1),
        "updates": tally.acknowledged,
        "sent_again": publisher.n_again,
        "answers": tally.n_answered,
        "oldest_behind": tally.oldest,
        "failed": dict(tally.failed),
        "wrong": len(tally.wrong),
        "wrong_answers": tally.wrong[:5],
    }


async def _caught_up(publisher: Publisher, tally: Tally) -> None:
    """Wait until all replicas have what was published when this began."""
    wanted = tally.published
    while True:
        tally.heard(await publisher.ask("tiny"))
        if tally.applied >= wanted:
            return
        await trio.sleep(0.05)


async def _kill(
    cluster: Nodes, options: argparse.Namespace, tally: Tally, killed: trio.Event
) -> None:
    rng = random.Random(options.seed)
    for _ in range(options.kills):
        await trio.sleep(rng.uniform(0.0, 1.0))
        victim = rng.choice((*SHARDS, *SHARDS, UPDATER))
        await trio.to_thread.run_sync(cluster.kill, victim)
        await trio.sleep(rng.uniform(0.0, 0.5))
        await trio.to_thread.run_sync(cluster.start, victim)
        tally.kills[victim] += 1
        with trio.fail_after(START_S):
            await cluster.wait_ready(victim)
            wanted = tally.published
            while tally.applied < wanted:  # noqa: ASYNC110 - the publisher hears of it
                await trio.sleep(0.02)
    killed.set()


async def _load(
    client: Client,
    options: argparse.Namespace,
    tally: Tally,
    table: NDArray[np.float64],
    done: trio.Event,
) -> None:
    rng = random.Random(options.seed + 1)
    async with trio.open_nursery() as nursery:
        while not done.is_set():
            await trio.sleep(rng.expovariate(options.rate))
            nursery.start_soon(_ask, client, options.budget_ms * 1e-3, tally, table)


async def _ask(client: Client, budget_s: float, tally: Tally, table: NDArray[np.float64]) -> None:
    least = tally.applied
    try:
        found = await client.score(model="tiny", user=USER, candidates=NAMED, budget=budget_s)
    except RequestError as error:
        tally.failed[error.code] += 1
        return
    except TransportError as error:
        tally.failed[type(error).__name__] += 1
        return
    window = np.arange(least, tally.published + 1)
    errors = np.abs(table[window % N_VALUES] - found.scores).max(axis=1)
    tally.n_answered += 1
    if errors.min() > TOLERANCE:
        everywhere = np.abs(table - found.scores).max(axis=1)
        tally.wrong.append(
            f"an answer of none of updates {least} to {tally.published}: off by {errors.min():.2g};"
            f" nearest value {everywhere.argmin()}, off by {everywhere.min():.2g}"
        )
    else:
        tally.oldest = max(tally.oldest, int(tally.published - window[errors <= TOLERANCE].max()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 if an answer was wrong or an update was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.update_faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--updates-s", type=float, default=40.0, help="updates a second")
    parser.add_argument("--budget-ms", type=float, default=1000.0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, features = tiny.write_model(folder)
        build_bundle(model, features, folder / "bundle", BuildOptions())
        gateway, updater = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
        text = cluster_text(folder / "bundle", gateway).replace(
            'class = "actors.shard.EmbeddingShard"',
            'class = "actors.shard.EmbeddingShard"\ncompact_bytes = 100_000',
        )
        more = f'[nodes.{UPDATER}.actors.{UPDATER}]\nclass = "actors.updater.Updater"\n'
        (folder / "cluster.toml").write_text(f'{text}{more}listen = "{updater}"\n')
        cluster = Nodes(gateway, folder)
        try:
            for node in NAMES:
                cluster.start(node)
            line = trio.run(run, options, cluster, updater)
        finally:
            cluster.stop()
    sys.stdout.write(json.dumps(line) + "\n")
    return 1 if line["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
