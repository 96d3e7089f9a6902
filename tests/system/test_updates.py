"""Rows are updated in a cluster of processes while it serves, and while shards are killed."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import numpy as np
import pytest
import trio
from numpy.typing import NDArray

from actors.update import main
from kernels.bundle.build import BuildOptions, build_bundle
from kernels.placement import PLACEMENT_FILE, CachedTable, derive, write_placement
from runtime.bench.procs import list_processes
from tests import tiny
from tests.system.cluster_help import free_port
from transport.client import Client
from transport.errors import RequestError
from transport.publisher import Publisher
from transport.updates import UpdateReply, UpdateRequest

ROOT = Path(__file__).parents[2]
START_S = 60.0
STOP_S = 20.0

USER = {"user_id": 3, "history": [1, 2, 3, 4], "age": 30.0}
CANDIDATES = {
    "item_id": list(range(tiny.N_ITEMS)),
    "genre": ["drama"] * tiny.N_ITEMS,
    "price": [1.0] * tiny.N_ITEMS,
}
IDS = {**CANDIDATES, "genre": [0] * tiny.N_ITEMS}


@attrs.frozen(eq=False)
class Cluster:
    """A gateway with its executor, two shards and an updater, each a process.

    Attributes:
        gateway: Where clients connect.
        updater: Where publishers do.
        process: The command, whose children the nodes are.
    """

    folder: Path
    gateway: str
    updater: str
    process: subprocess.Popen[bytes]

    @property
    def file(self) -> Path:
        return self.folder / "cluster.toml"

    def kill(self, node: str) -> None:
        """Kill a node as it stands; it is started again."""
        for each in list_processes():
            if each.parent == self.process.pid and f"--node {node} " in each.command:
                os.kill(each.pid, signal.SIGKILL)

    def command(self, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run ``python -m actors.update`` on it."""
        return subprocess.run(
            [sys.executable, "-m", "actors.update", str(self.file), *arguments],
            cwd=ROOT,
            input=given,
            capture_output=True,
            timeout=60,
            check=False,
        )


def cluster_text(bundle: Path, gateway: str, updater: str) -> str:
    return f"""
[cluster]
run_folder = "run"
[models.tiny]
bundle = "{bundle}"
shards = ["shard-0", "shard-1"]
executors = ["executor"]
[nodes.front.actors.gateway]
class = "actors.gateway.Gateway"
listen = "{gateway}"
[nodes.front.actors.executor]
class = "actors.executor.Executor"
[nodes.shard-0.actors.shard-0]
class = "actors.shard.EmbeddingShard"
state = "{bundle.parent}/state-0"
compact_bytes = 20000
[nodes.shard-1.actors.shard-1]
class = "actors.shard.EmbeddingShard"
compact_bytes = 20000
[nodes.updater.actors.updater]
class = "actors.updater.Updater"
listen = "{updater}"
"""


@contextmanager
def serving(folder: Path, cached: tuple[CachedTable, ...] = ()) -> Iterator[Cluster]:
    model, features = tiny.write_model(folder)
    manifest = build_bundle(model, features, folder / "bundle", BuildOptions())
    if cached:
        write_placement(derive(manifest, 2, cached=cached), folder / "bundle" / PLACEMENT_FILE)
    gateway, updater = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    (folder / "cluster.toml").write_text(cluster_text(folder / "bundle", gateway, updater))
    out = folder / "out.txt"
    with out.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.node", str(folder / "cluster.toml")],
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        while "ready\n" not in out.read_text().splitlines(keepends=True):
            assert process.poll() is None, out.read_text()
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(0.05)
        yield Cluster(folder, gateway, updater, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serving(tmp_path_factory.mktemp("updates")) as cluster:
        yield cluster


def items_of(value: float) -> NDArray[np.float32]:
    """Return the whole table of items as one update sets it."""
    return np.full((tiny.N_ITEMS, 6), value, np.float32)


def expected(value: float, seed: int = 20) -> NDArray[np.float64]:
    return tiny.click(USER, IDS, seed, changed={"items": items_of(value)})


async def scores(client: Client) -> NDArray[np.float32]:
    answer = await client.score(model="tiny", user=USER, candidates=CANDIDATES, budget=10.0)
    return answer.scores


def value_of(number: int) -> float:
    """Return what update ``number`` sets: scores of neighbours differ by more than their error."""
    return (number % 64) / 64


async def applied(publisher: Publisher, number: int) -> None:
    """Wait until all replicas have applied an update."""
    while True:
        reply = await publisher.ask("tiny")
        assert reply.behind == ()
        if reply.applied >= number:
            return
        await trio.sleep(0.1)


def test_rows_from_a_file_are_served_and_the_file_is_not_taken_twice(cluster: Cluster) -> None:
    file = cluster.folder / "items.npz"
    np.savez(file, keys=np.arange(tiny.N_ITEMS), rows=items_of(0.25))
    table = ("--model", "tiny", "--table", "items", "--wait", "30")
    done = cluster.command(*table, "--file", str(file), "--batch", "5")
    assert done.returncode == 0, done.stderr
    assert b"acknowledged: 4 updates of 17 rows" in done.stdout
    again = cluster.command(*table, "--file", str(file), "--batch", "5")
    assert again.returncode == 0, again.stderr
    assert b"goes on after 4 updates" in again.stdout
    assert b"acknowledged: 0 updates of 0 rows" in again.stdout

    async def served() -> None:
        async with Client.connect(cluster.gateway) as client:
            np.testing.assert_allclose(await scores(client), expected(0.25), atol=1e-6)

    trio.run(served)


def test_lines_of_json_are_taken_from_standard_input(cluster: Cluster) -> None:
    lines = "".join(
        f'{{"key": {key}, "row": {[float("nan") if key == 16 else 0.5] * 6}}}\n'
        for key in range(tiny.N_ITEMS)
    ).replace("nan", "NaN")
    table = ("--model", "tiny", "--table", "items")
    done = cluster.command(*table, "--wait", "30", given=lines.encode())
    assert done.returncode == 0, done.stderr
    assert b"1 rows hold NaN, which is taken as it is" in done.stdout

    async def served() -> None:
        async with Client.connect(cluster.gateway) as client:
            found = await scores(client)
        np.testing.assert_allclose(found[:16], expected(0.5)[:16], atol=1e-6)
        assert np.isnan(found[16])

    trio.run(served)


@pytest.mark.parametrize(
    ("arguments", "given", "code", "problem"),
    [
        (("--model", "huge", "--table", "items"), "", 2, "no model 'huge'; there are tiny"),
        (("--model", "tiny"), "", 2, "--table: which one?"),
        (("--model", "tiny", "--table", "films"), '{"key": 1, "row": [1]}', 1, "no table 'films'"),
        (("--model", "tiny", "--table", "items"), '{"key": 1, "row": [1]}', 1, "items has 6"),
        (("--model", "tiny", "--table", "items"), "x", 1, "standard input, line 1: is no JSON"),
        (("--model", "tiny", "--table", "items", "--file", "gone"), "", 2, "--file: "),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    cluster: Cluster,
    arguments: tuple[str, ...],
    given: str,
    code: int,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    try:
        found = main([str(cluster.file), *arguments])
    except SystemExit as usage:
        found = int(usage.code or 0)
    assert found == code
    assert problem in capsys.readouterr().err


def test_nothing_acknowledged_is_lost_and_no_row_is_torn_while_shards_are_killed(
    cluster: Cluster,
) -> None:
    n_updates = 200
    rng = random.Random(3)
    table = np.stack([expected(value_of(number)) for number in range(64)])
    acknowledged: list[int] = []
    answered: list[int] = []

    def on_reply(request: UpdateRequest, reply: UpdateReply) -> None:
        acknowledged.append(request.position)

    async def ask(client: Client, done: trio.Event) -> None:
        """Each answer is of one update as a whole: all rows of the same."""
        while not done.is_set():
            try:
                found = await scores(client)
            except RequestError:
                await trio.sleep(0.02)  # there is one replica, and it was killed
                continue
            error = np.abs(table - found).max(axis=1)
            assert error.min() < 1e-5, (error.argmin(), found)
            answered.append(int(error.argmin()))

    async def kill(done: trio.Event) -> None:
        for _ in range(2):
            for node in ("shard-0", "shard-1", "updater"):
                await trio.sleep(rng.uniform(0.2, 0.8))
                cluster.kill(node)
        done.set()

    async def served() -> None:
        first = UpdateRequest(
            request_id=0,
            model="tiny",
            table="items",
            keys=np.arange(tiny.N_ITEMS),
            rows=items_of(0.0),
        )
        killed, done = trio.Event(), trio.Event()
        async with (
            Client.connect(cluster.gateway) as client,
            Publisher.connect(cluster.updater, on_reply=on_reply) as publisher,
            trio.open_nursery() as nursery,
        ):
            await publisher.publish(first)
            await publisher.drain()
            number = (await publisher.ask("tiny")).number
            await applied(publisher, number)
            nursery.start_soon(ask, client, done)
            nursery.start_soon(kill, killed)
            position = 0
            while position < n_updates or not killed.is_set():
                position += 1
                rows = items_of(value_of(position))
                await publisher.publish(
                    attrs.evolve(first, source="t", position=position, rows=rows)
                )
                await trio.sleep(0.01)
            await publisher.drain()
            assert acknowledged[1:] == list(range(1, position + 1))
            await applied(publisher, number + position)
            done.set()
            np.testing.assert_allclose(await scores(client), table[position % 64], atol=1e-5)
            assert len(set(answered)) > 3  # what it served did change meanwhile

    trio.run(served)


def test_a_new_version_is_updated_from_when_it_is_loaded(cluster: Cluster) -> None:
    """Last in this file, as the others know the scores of the first version."""
    model, features = tiny.write_model(cluster.folder / "second", seed=21)
    bundle = cluster.folder / "second" / "bundle"
    build_bundle(model, features, bundle, BuildOptions())
    update = UpdateRequest(
        request_id=0,
        model="tiny",
        table="items",
        source="steady",
        keys=np.arange(tiny.N_ITEMS),
        rows=items_of(0.0),
    )

    async def deploy(done: trio.Event) -> None:
        command = [sys.executable, "-m", "actors.deploy", str(cluster.file), "tiny", str(bundle)]
        process = await trio.run_process(command, cwd=ROOT, check=False, capture_stderr=True)
        assert process.returncode == 0, process.stderr
        done.set()

    async def served() -> None:
        done = trio.Event()
        async with (
            Client.connect(cluster.gateway) as client,
            Publisher.connect(cluster.updater) as publisher,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(deploy, done)
            position = 0
            # The source goes on as if nothing had happened; half a second after, all of it is new.
            while not done.is_set() or position % 10:
                position += 1
                rows = items_of(value_of(position))
                await publisher.publish(attrs.evolve(update, position=position, rows=rows))
                await trio.sleep(0.02)
            await publisher.drain()
            await applied(publisher, (await publisher.ask("tiny")).number)
            reply = await publisher.ask("tiny", "steady")
            assert reply.position == position
            want = expected(value_of(position), seed=21)
            np.testing.assert_allclose(await scores(client), want, atol=1e-5)

    trio.run(served)
