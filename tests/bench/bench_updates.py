"""What do updates do to those who ask meanwhile? ``python -m tests.bench.bench_updates``.

A cluster of four processes (gateway and executor, two shards, an updater) serves requests of 100
candidates that arrive at random at ``--rate``, while a process of its own publishes ``--rows-s``
rows a second to two tables. Quiet periods and such with updates alternate, so both see the same
neighbours. Latency counts from when a request was due, lag from when the updater has an update to
when it has heard of a replica that it is applied, there and on disk.

Prints one JSON line: rows a second that were published and that were applied everywhere, request
p50 and p99 in ms, quiet and with updates, and their ratio; the same of the median period, which a
neighbour's burst does not move; lag p50 and p99 in ms by replica; processor seconds of each node in
a second of updates.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import trio

from runtime.bench.procs import list_processes
from tests.bench.bench_swap import N_CANDIDATES, build, weights
from tests.system.cluster_help import ROOT, free_port
from transport.client import Client
from transport.errors import RequestError, TransportError
from transport.publisher import Publisher
from transport.updates import UpdateReply, UpdateRequest

TABLES = ("users", "items")
START_S = 120.0
NODES = ("front", "shard-0", "shard-1", "updater")


@attrs.frozen(eq=False)
class Cluster:
    """A cluster that is ready."""

    gateway: str
    updater: str
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> dict[str, float]:
        """Return each node's processor seconds so far."""
        children = [each for each in list_processes() if each.parent == self.process.pid]
        return {
            node: each.cpu_s
            for node in NODES
            for each in children
            if f"--node {node} " in each.command
        }


@contextmanager
def serving(bundle: Path, folder: Path, options: argparse.Namespace) -> Iterator[Cluster]:
    gateway, updater = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    shard = 'class = "actors.shard.EmbeddingShard"\nfsync = "%s"\ncompact_bytes = %d'
    text = f"""
[cluster]
run_folder = "run"
[models.m]
bundle = "{bundle}"
shards = ["shard-0", "shard-1"]
executors = ["executor"]
[nodes.front.actors.gateway]
class = "actors.gateway.Gateway"
listen = "{gateway}"
[nodes.front.actors.executor]
class = "actors.executor.Executor"
[nodes.shard-0.actors.shard-0]
{shard % (options.fsync, options.compact_bytes)}
[nodes.shard-1.actors.shard-1]
{shard % (options.fsync, options.compact_bytes)}
[nodes.updater.actors.updater]
class = "actors.updater.Updater"
listen = "{updater}"
fsync = "{options.fsync}"
"""
    (folder / "cluster.toml").write_text(text)
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
        while "ready" not in out.read_text().splitlines():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(out.read_text())
            time.sleep(0.1)
        yield Cluster(gateway, updater, process)
    finally:
        process.terminate()
        process.wait()
        if options.verbose:
            sys.stderr.write(out.read_text())


async def publish(address: str, options: argparse.Namespace) -> None:
    """Publish at the rate that is wanted, between lines of standard input, and print counts."""
    rng = np.random.default_rng(2)
    pool = [
        UpdateRequest(
            request_id=0,
            model="m",
            table=TABLES[n % 2],
            keys=rng.integers(0, options.rows, options.batch),
            rows=0.2 * rng.standard_normal((options.batch, options.dim), np.float32),
        )
        for n in range(16)
    ]
    n_rows = 0

    def count(request: UpdateRequest, reply: UpdateReply) -> None:
        nonlocal n_rows
        n_rows += len(request.keys)

    async with Publisher.connect(address, on_reply=count) as publisher:
        while await trio.to_thread.run_sync(sys.stdin.readline):
            n_rows, begun, sent = 0, trio.current_time(), 0
            while trio.current_time() < begun + options.period_s:
                await trio.sleep_until(begun + sent * options.batch / options.rows_s)
                await publisher.publish(pool[sent % len(pool)])
                sent += 1
            await publisher.drain()
            spent_s = trio.current_time() - begun
            while True:
                reply = await publisher.ask("m")
                if reply.applied == reply.number:
                    break
                await trio.sleep(0.005)
            applied_s = trio.current_time() - begun
            line = {"rows": n_rows, "durable_s": spent_s, "applied_s": applied_s}
            sys.stdout.write(json.dumps(line | {"again": publisher.n_again}) + "\n")
            sys.stdout.flush()


async def measure(cluster: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    seconds: dict[str, list[list[float]]] = {"warm": [], "quiet": [], "updates": []}
    failed: list[str] = []
    phase = "warm"
    asked = [
        (
            {"user_id": int(rng.integers(options.rows))},
            {
                "item_id": rng.integers(0, options.rows, N_CANDIDATES),
                "price": rng.random(N_CANDIDATES, np.float32),
            },
        )
        for _ in range(64)
    ]

    async def ask(client: Client, due: float) -> None:
        mine = seconds[phase][-1]
        during = phase
        user, candidates = asked[int(rng.integers(len(asked)))]
        try:
            await client.score(model="m", user=user, candidates=candidates, budget=2.0)
        except (RequestError, TransportError) as error:
            failed.append(f"{during}: {type(error).__name__}: {error}")
        else:
            mine.append(trio.current_time() - due)

    async def load(client: Client) -> None:
        due = trio.current_time()
        async with trio.open_nursery() as nursery:
            while True:
                due += rng.exponential(1 / options.rate)
                await trio.sleep_until(due)
                nursery.start_soon(ask, client, due)

    command = [sys.executable, "-m", "tests.bench.bench_updates", *sys.argv[1:]]
    publisher = await trio.lowlevel.open_process(
        [*command, "--publish-to", cluster.updater],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert publisher.stdin is not None
    assert publisher.stdout is not None
    published: list[dict[str, float]] = []
    cpu_s = dict.fromkeys(NODES, 0.0)
    seconds["warm"].append([])
    async with Client.connect(cluster.gateway) as client, trio.open_nursery() as nursery:
        nursery.start_soon(load, client)
        for number in range(options.periods + 1):
            # The first of each warms up: deltas and logs are begun.
            phase = "quiet" if number else "warm"
            seconds[phase].append([])
            await trio.sleep(options.period_s)
            before = cluster.cpu_s()
            phase = "updates" if number else "warm"
            seconds[phase].append([])
            await publisher.stdin.send_all(b"\n")
            line = b""
            while not line.endswith(b"\n"):
                line += await publisher.stdout.receive_some()
            if number:
                published.append(json.loads(line))
                for node, spent in cluster.cpu_s().items():
                    cpu_s[node] += spent - before[node]
        nursery.cancel_scope.cancel()
    await publisher.stdin.aclose()
    await publisher.wait()
    async with Client.connect(cluster.updater) as client:
        stats = await client.stats()
    spent_s = sum(each["applied_s"] for each in published)
    result: dict[str, Any] = {
        "published_rows_s": round(
            sum(each["rows"] for each in published) / sum(each["durable_s"] for each in published)
        ),
        "applied_rows_s": round(sum(each["rows"] for each in published) / spent_s),
    }
    for name in ("quiet", "updates"):
        times = np.concatenate([np.array(each) for each in seconds[name]]) * 1e3
        p50, p99 = np.percentile(times, [50, 99])
        by_period = [np.percentile(each, 99) * 1e3 for each in seconds[name]]
        result[name] = {
            "n": len(times),
            "p50_ms": round(p50, 2),
            "p99_ms": round(p99, 2),
            "p99_ms_median_period": round(float(np.median(by_period)), 2),
        }
    for key, of in (("p99_ratio", "p99_ms"), ("p99_ratio_median_period", "p99_ms_median_period")):
        result[key] = round(result["updates"][of] / result["quiet"][of], 2)
    result["lag_ms"] = {
        name.removeprefix("lag_us."): {q: round(each[q] / 1e3, 1) for q in ("p50", "p99", "max")}
        for name, each in stats.items()
        if name.startswith("lag_us.")
    }
    result["durable_ms"] = {q: round(stats["durable_us"][q] / 1e3, 1) for q in ("p50", "p99")}
    result["sent_again"] = published[-1]["again"]
    result["failed"] = len(failed)
    result["failures"] = sorted(set(failed))[:3]
    result["cpu"] = {node: round(spent / spent_s, 2) for node, spent in cpu_s.items()}
    return result


def main() -> int:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_updates")
    parser.add_argument("--rows-s", type=float, default=100_000, help="to publish a second")
    parser.add_argument("--batch", type=int, default=2000, help="rows of an update")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--periods", type=int, default=4)
    parser.add_argument("--period-s", type=float, default=10.0)
    parser.add_argument("--rows", type=int, default=500_000, help="of each of two tables")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--fsync", choices=("batch", "never"), default="batch")
    parser.add_argument("--compact-bytes", type=int, default=256 << 20)
    parser.add_argument("--verbose", action="store_true", help="print what the nodes say")
    parser.add_argument("--publish-to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish_to:
        trio.run(publish, options.publish_to, options)
        return 0
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        bundle = build(Path(folder) / "model", weights(1, options.rows, options.dim))
        with serving(bundle, Path(folder), options) as cluster:
            line = trio.run(measure, cluster, options)
    del options.publish_to, options.verbose
    about = {"cpu": platform.processor() or platform.machine(), **vars(options)}
    sys.stdout.write(json.dumps(about | line) + "\n")
    return 0 if not line["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
