"""Kills processes in the middle of deployments, and looks whether the cluster comes through.

``python -m tests.system.deploy_faults --rounds 40 --seed 1``: each round deploys the other bundle
under load; the command, the gateway, a shard or the executor is killed (SIGKILL) as a line of the
command's output appears, so in the midst of each of its steps. Then the command is run until it
ends well, which it must within a minute. Every answer must be one version's; requests may fail only
in rounds that kill a node, and no shard's death may cost one with ``--replicas 2``. At the end of
each round all actors must hold the same version, alone.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from runtime import cluster_file
from runtime.bus import Bus, RemoteRef
from runtime.topology import ActorSpec, NodeSpec
from tests.swaps import SEEDS, asked, build, seed_of, version
from tests.system.cluster_help import ROOT, Node, serving
from transport.client import Client
from transport.errors import DeadlineExceeded, RequestError, TransportError, Unavailable
from transport.exchange import RetryPolicy
from transport.versions import VersionRequest, VersionState

ONCE = RetryPolicy(n_attempts=1)
PATIENCE_S = 60.0
COMMAND = "the command"
VICTIMS = (COMMAND, "gateway", "shard-0", "executor-m")
STEPS = (b"is loaded by", b": loaded", b"is taken into use", b"is given back")


@attrs.define
class Load:
    """What clients that ask all the time were answered.

    Attributes:
        seeds: Whose answers, in order.
        failed: Why not.
    """

    seeds: list[int] = attrs.field(factory=list)
    failed: list[str] = attrs.field(factory=list)


@asynccontextmanager
async def under_load(node: Node, n_clients: int = 3) -> AsyncIterator[Load]:
    """Ask all the time; each answer is checked, and one that is a mix raises."""
    load = Load()
    async with trio.open_nursery() as nursery:
        for first in range(n_clients):
            nursery.start_soon(_ask_on, node, load, 1000 * first)
        yield load
        nursery.cancel_scope.cancel()


async def _ask_on(node: Node, load: Load, number: int) -> None:
    async with Client.connect(node.address, policy=ONCE) as client:
        while True:
            user, rows = asked(number)
            try:
                scores = await client.score(model="m", user=user, candidates=rows, budget=5)
            except (RequestError, TransportError) as error:
                load.failed.append(f"{type(error).__name__}: {error}")
                await trio.sleep(0.01)
            else:
                load.seeds.append(seed_of(number, scores))
            number += 1


async def deploy(node: Node, bundle: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return await trio.run_process(
        _command(node, bundle, *options),
        cwd=ROOT,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )


async def deploy_and_kill(node: Node, bundle: Path, victim: str, step: bytes) -> int:
    """Run the command, kill somebody when it says ``step``; return its exit code."""
    process = await trio.lowlevel.open_process(
        _command(node, bundle), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    said, is_done = b"", False
    async for chunk in process.stdout:
        said += chunk
        if step in said and not is_done:
            is_done = True
            os.kill(process.pid if victim == COMMAND else node.pids()[victim], signal.SIGKILL)
    return await process.wait()


async def deploy_until_done(node: Node, bundle: Path) -> int:
    """Run the command until it ends well; return how often it was run."""
    with trio.fail_after(PATIENCE_S):
        for n_runs in range(1, 1000):
            done = await deploy(node, bundle)
            if done.returncode == 0:
                return n_runs
            await trio.sleep(0.2)
    raise AssertionError


async def states(node: Node, asked_version: str) -> dict[str, VersionState]:
    """Ask all actors how they stand with a version."""
    topology = cluster_file.load(node.file)
    with tempfile.TemporaryDirectory() as folder:
        own = NodeSpec(
            name="look",
            actors=(ActorSpec(name="look", class_name="tests"),),
            bind=f"ipc://{folder}/node",
        )
        bus = Bus(attrs.evolve(topology, nodes=(*topology.nodes, own)), "look")
        found = {}
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run, lambda name: None)
            for each in topology.nodes:
                for actor in each.actors:
                    question = VersionRequest(deployment=0, model="m", version=asked_version)
                    found[actor.name] = await _ask(bus.ref(actor.name), question)
            nursery.cancel_scope.cancel()
    return found


async def _ask(ref: RemoteRef, question: VersionRequest) -> VersionState:
    with trio.fail_after(PATIENCE_S):
        while True:
            with suppress(Unavailable, DeadlineExceeded):
                answer = await ref.ask(question, budget=1)
                assert isinstance(answer, VersionState)
                return answer
            await trio.sleep(0.1)


async def all_serve(node: Node, bundle: Path) -> None:
    """Check that all actors hold one version alone, and that it answers."""
    wanted = version(bundle)
    for actor, state in (await states(node, wanted)).items():
        assert (state.current, state.held) == (wanted, (wanted,)), (actor, state)


def _command(node: Node, bundle: Path, *options: str) -> list[str]:
    arguments = [str(node.file), "m", str(bundle), *options]
    return [sys.executable, "-m", "actors.deploy", *arguments]


async def play(
    node: Node, bundles: Sequence[Path], at: int, victim: str, step: bytes
) -> dict[str, int]:
    """Deploy ``bundles[1 - at]`` where ``at`` serves, with a death on the way."""
    async with under_load(node) as load:
        while not load.seeds:  # noqa: ASYNC110 - what changes is in other processes
            await trio.sleep(0.01)
        code = await deploy_and_kill(node, bundles[1 - at], victim, step)
        n_runs = await deploy_until_done(node, bundles[1 - at])
        await all_serve(node, bundles[1 - at])
        n_before = len(load.seeds)
        with trio.fail_after(PATIENCE_S):
            while len(load.seeds) < n_before + 30:  # noqa: ASYNC110
                await trio.sleep(0.01)
    if victim == COMMAND:
        assert not load.failed, load.failed[:3]
    # The clients' requests in flight may be answered in any order.
    assert set(load.seeds[n_before + 3 :]) == {SEEDS[1 - at]}
    return {
        "first_run_ended_well": int(code == 0),
        "more_runs": n_runs,
        "answered": len(load.seeds),
        "failed": len(load.failed),
    }


def main() -> int:
    """Play the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.deploy_faults")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1, help="of each of two groups of shards")
    parser.add_argument("--victims", type=lambda text: text.split(","), default=VICTIMS)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    cases = [(victim, step) for victim in arguments.victims for step in STEPS]
    rng.shuffle(cases)
    totals: dict[str, Counter[str]] = {victim: Counter() for victim in arguments.victims}
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        bundles = build(Path(folder))
        with serving(
            {"m": bundles[0]},
            Path(folder),
            n_shards=2 * arguments.replicas,
            replicas=arguments.replicas,
            apart=True,
        ) as node:
            for number in range(arguments.rounds):
                victim, step = cases[number % len(cases)]
                told = trio.run(play, node, bundles, number % 2, victim, step)
                totals[victim].update(told, rounds=1)
                if arguments.replicas > 1 and victim.startswith("shard"):
                    assert not told["failed"], told
                sys.stderr.write(f"{number}: {victim} at {step.decode()!r}: {told}\n")
    sys.stdout.write(
        json.dumps(
            {"rounds": arguments.rounds, "seed": arguments.seed, "replicas": arguments.replicas}
            | {"by_victim": totals}
        )
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
