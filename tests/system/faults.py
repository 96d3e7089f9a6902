"""Kills shards at random under load, and checks every answer: ``python -m tests.system.faults``.

Question: what do clients see of ``kill -9`` of shards that have a double? Requests come at a given
rate and each has a budget; every score is compared with numpy's. One JSON line is printed; the
exit code is 1 if a score was wrong.

Who is killed when follows from the seed. Of a group's two replicas one always serves: the next kill
waits until the gateway, and the executor for its cached tables, ask all replicas again. Now and
then one of either group is killed at once.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import trio

from tests import tiny
from tests.divided import CACHED, PLACEMENT
from tests.system.nodes import SHARDS, Nodes, nodes
from transport.client import Client
from transport.errors import DeadlineExceeded, RequestError, TransportError
from transport.exchange import RetryPolicy

# Scores are float32; they come of sums of some ten numbers.
_TOLERANCE = 1e-5
# What a kill can have to do with: the death itself, and its replacement's start.
_AFTER_KILL_S = 1.0
_START_S = 120.0
# Statistics take each node some milliseconds, in which it serves nobody.
_LOOK_EVERY_S = 0.25
_BOTH_SHARE = 0.25
WHEN = CALM, NEAR, BETWEEN = "calm", "near_a_kill", "between_kills"


@attrs.frozen
class Plan:
    """What is done.

    Attributes:
        seed: Of the kills and the requests.
        n_kills: How many shards are killed.
        rate: Requests a second.
        budget_s: Of each.
        pause_s: Between kills at most, besides the time that a shard takes to come back.
        calm_s: Before the first: what the machine does of itself.
    """

    seed: int = 1
    n_kills: int = 200
    rate: float = 100.0
    budget_s: float = 0.05
    pause_s: float = 0.5
    calm_s: float = 10.0


@attrs.define
class Tally:
    """What became of the requests, by when they came: before all kills, near one, between them.

    Attributes:
        seconds: How long answers took.
        failures: By error code.
        wrong: What was wrong with scores.
        kill_times: When shards were killed.
        reasons: What failures other than the budget's end said, numbers left out.
    """

    seconds: dict[str, list[float]] = attrs.Factory(lambda: {when: [] for when in WHEN})
    failures: dict[str, Counter[str]] = attrs.Factory(lambda: {when: Counter() for when in WHEN})
    wrong: list[str] = attrs.Factory(list)
    kill_times: list[float] = attrs.Factory(list)
    reasons: Counter[str] = attrs.Factory(Counter)

    def when(self, start: float, end: float) -> str:
        """Return when a request came; near a kill is one during which, or before, a shard died."""
        if not self.kill_times or end <= self.kill_times[0]:
            return CALM
        near = any(start - _AFTER_KILL_S < at < end for at in self.kill_times[-4:])
        return NEAR if near else BETWEEN

    def line(self) -> dict[str, Any]:
        """Return the figures, ready for JSON."""
        failed = sum(self.failures.values(), Counter())
        n_answered = sum(map(len, self.seconds.values()))
        return {
            "requests": n_answered + failed.total(),
            "wrong": len(self.wrong),
            "failed": dict(failed),
            "reasons": dict(self.reasons.most_common(5)),
            **{when: self._figures(when) for when in WHEN},
        }

    def _figures(self, when: str) -> dict[str, Any]:
        seconds, failed = self.seconds[when], self.failures[when]
        figures: dict[str, Any] = {
            "requests": len(seconds) + failed.total(),
            "failed": dict(failed),
        }
        if seconds:
            p50, p99, most = (np.quantile(seconds, [0.5, 0.99, 1.0]) * 1e3).round(2).tolist()
            figures |= {"p50_ms": p50, "p99_ms": p99, "max_ms": most}
        return figures


async def run(plan: Plan, cluster: Nodes) -> dict[str, Any]:
    """Do it, on a cluster that is starting; return the figures."""
    tally = Tally()
    with trio.fail_after(_START_S):
        await cluster.wait_ready()
    policy = RetryPolicy(n_attempts=1)
    async with Client.connect(cluster.address, policy=policy) as client:
        await _warm_up(client, plan)
        done = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_load, client, plan, tally, done)
            await trio.sleep(plan.calm_s)
            await _kill_all(client, cluster, plan, tally)
            await trio.sleep(_AFTER_KILL_S)
            done.set()
        counted = (await client.stats())["gateway"]
    names = ("hedges", "hedge_wins", "retries", "dead_replicas")
    return {
        **attrs.asdict(plan),
        **tally.line(),
        **{name: counted.get(name, 0) for name in names},
        "wrong_scores": tally.wrong[:5],
    }


async def _kill_all(client: Client, cluster: Nodes, plan: Plan, tally: Tally) -> None:
    rng = random.Random(plan.seed)
    left = plan.n_kills
    while left:
        await trio.sleep(rng.uniform(0.1, plan.pause_s))
        victims = [rng.choice(SHARDS[0::2]), rng.choice(SHARDS[1::2])]
        if left == 1 or rng.random() >= _BOTH_SHARE:
            victims = [rng.choice(victims)]
        for victim in victims:
            tally.kill_times.append(trio.current_time())
            await trio.to_thread.run_sync(cluster.kill, victim)
        for victim in victims:
            await trio.to_thread.run_sync(cluster.start, victim)
        left -= len(victims)
        with trio.fail_after(_START_S):
            await cluster.wait_ready(*victims)
            await _until_all_are_asked(client, cluster)


async def _until_all_are_asked(client: Client, cluster: Nodes) -> None:
    while True:
        cluster.check()
        try:
            stats = await client.stats()
            if not any(actor.get("replicas_away") for actor in stats.values()):
                return
        except TransportError:
            pass
        await trio.sleep(_LOOK_EVERY_S)


async def _warm_up(client: Client, plan: Plan) -> None:
    tally = Tally()
    for number in range(50):
        await _ask(client, attrs.evolve(plan, budget_s=10.0), tally, number)
    assert not tally.wrong, tally.wrong
    assert not tally.failures[CALM], tally.failures


async def _load(client: Client, plan: Plan, tally: Tally, done: trio.Event) -> None:
    """Ask at random times, however long answers take."""
    rng = random.Random(plan.seed + 1)
    due = trio.current_time()
    async with trio.open_nursery() as nursery:
        number = 0
        while not done.is_set():
            due += rng.expovariate(plan.rate)
            await trio.sleep_until(due)
            nursery.start_soon(_ask, client, plan, tally, number)
            number += 1


async def _ask(client: Client, plan: Plan, tally: Tally, number: int) -> None:
    rng = np.random.default_rng([plan.seed, number])
    n = int(rng.integers(1, 20))
    user = {
        "user_id": int(rng.integers(tiny.N_USERS)),
        "age": float(rng.integers(18, 80)),
        "history": rng.integers(0, tiny.N_ITEMS, int(rng.integers(0, tiny.HISTORY + 1))).tolist(),
    }
    genres = rng.integers(0, tiny.N_GENRES, n)
    candidates = {
        "item_id": rng.integers(0, tiny.N_ITEMS, n),
        "price": rng.standard_normal(n).astype(np.float32),
    }
    named = {**candidates, "genre": [tiny.GENRES[genre] for genre in genres]}
    start = trio.current_time()
    try:
        scores = await client.score(model="tiny", user=user, candidates=named, budget=plan.budget_s)
    except RequestError as error:
        code = error.code
        if not isinstance(error, DeadlineExceeded):
            tally.reasons[re.sub(r"[\d.]+", "#", str(error))] += 1
    except TransportError as error:
        code = type(error).__name__
    else:
        end = trio.current_time()
        tally.seconds[tally.when(start, end)].append(end - start)
        want = tiny.click(user, {**candidates, "genre": genres})
        worst = float(np.abs(scores.scores - want).max())
        if worst > _TOLERANCE or scores.degraded:
            tally.wrong.append(f"request {number}: off by {worst}, degraded {scores.degraded}")
        return
    tally.failures[tally.when(start, trio.current_time())][code] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 if a score was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults", description=__doc__)
    plan = Plan()
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument("--kills", type=int, default=plan.n_kills)
    parser.add_argument("--rate", type=float, default=plan.rate, help="requests a second")
    parser.add_argument("--cached", action="store_true", help="items and users are cached tables")
    parser.add_argument("--budget-ms", type=float, default=plan.budget_s * 1e3)
    options = parser.parse_args(arguments)
    plan = Plan(
        seed=options.seed,
        n_kills=options.kills,
        rate=options.rate,
        budget_s=options.budget_ms * 1e-3,
    )
    placement = CACHED if options.cached else PLACEMENT
    with (
        tempfile.TemporaryDirectory() as folder,
        nodes(Path(folder), placement=placement) as cluster,
    ):
        line = trio.run(run, plan, cluster)
    sys.stdout.write(json.dumps(line) + "\n")
    return 1 if line["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
