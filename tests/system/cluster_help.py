"""A node process for tests to ask: started from a cluster file, stopped at the end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from runtime.bench.procs import list_processes

ROOT = Path(__file__).parents[2]
START_S = 60.0
STOP_S = 20.0
EMBEDDING_SHARD: tuple[str, Mapping[str, Any]] = ("shard.EmbeddingShard", {})


class NotReady(Exception):
    """The node did not start.

    Attributes:
        died: Names of the actors that died at start.
    """

    def __init__(self, message: str, died: frozenset[str]) -> None:
        super().__init__(message)
        self.died = died


@attrs.frozen(eq=False)
class Node:
    """A cluster that is ready.

    Attributes:
        address: Where clients connect.
        process: The command; the nodes are its children.
        file: The cluster file.
        out: File of all that it printed.
    """

    address: str
    process: subprocess.Popen[bytes]
    file: Path
    out: Path

    def pid(self) -> int:
        """Return the process id of the only node, which changes if it is restarted."""
        (pid,) = self.pids().values()
        return pid

    def pids(self) -> dict[str, int]:
        """Return the process ids of the nodes that run, by name."""
        return {
            each.command.split(" --node ")[1].split()[0]: each.pid
            for each in list_processes()
            if each.parent == self.process.pid and " --node " in each.command
        }

    def stop(self) -> int:
        """Ask it to drain, wait until it has, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


def cluster_text(
    models: Mapping[str, Path],
    address: str,
    *,
    n_shards: int = 2,
    replicas: int = 1,
    gateway: Mapping[str, Any] | None = None,
    executor: Mapping[str, Any] | None = None,
    apart: bool = False,
    shard: tuple[str, Mapping[str, Any]] = EMBEDDING_SHARD,
) -> str:
    """Return a cluster file: one node with a gateway, shards, and an executor for each model.

    Args:
        models: Names, of letters and digits, to bundles.
        address: Where clients connect.
        n_shards: Shards; each holds its part of every model.
        replicas: Of each of the groups that the shards are divided into.
        gateway: Options of the gateway.
        executor: Options of all executors.
        apart: Whether each actor gets a node of its own, of its name.
        shard: The shards' class, in ``actors``, and their options.
    """
    shards = [f"shard-{k}" for k in range(n_shards)]
    lines = ["[cluster]", 'name = "test"', 'run_folder = "run"']
    actors: list[tuple[str, str, Mapping[str, Any]]] = [
        ("gateway", "gateway.Gateway", {"listen": address, **(gateway or {})}),
        *((each, *shard) for each in shards),
    ]
    for name, bundle in models.items():
        lines += [
            f"[models.{name}]",
            f"bundle = {json.dumps(str(bundle.resolve()))}",
            f"shards = {json.dumps(shards)}",
            f'executors = ["executor-{name}"]',
            f"replicas = {replicas}",
        ]
        actors.append((f"executor-{name}", "executor.Executor", executor or {}))
    for name, class_name, options in actors:
        node = name if apart else "node"
        lines += [f"[nodes.{node}.actors.{name}]", f'class = "actors.{class_name}"']
        lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    return "\n".join([*lines, ""])


@contextmanager
def serving(
    models: Mapping[str, Path],
    folder: Path,
    *,
    n_shards: int = 2,
    replicas: int = 1,
    gateway: Mapping[str, Any] | None = None,
    executor: Mapping[str, Any] | None = None,
    apart: bool = False,
    shard: tuple[str, Mapping[str, Any]] = EMBEDDING_SHARD,
) -> Iterator[Node]:
    """Start ``python -m runtime.node``, wait until it is ready, and stop it at the end.

    Args:
        models: As ``cluster_text``; so are the others.
        folder: For the cluster file and what the node prints.

    Raises:
        NotReady: It ended, one of its actors died, or it took more than ``START_S``.
    """
    address = f"tcp://127.0.0.1:{free_port()}"
    text = cluster_text(
        models,
        address,
        n_shards=n_shards,
        replicas=replicas,
        gateway=gateway,
        executor=executor,
        apart=apart,
        shard=shard,
    )
    file, out = folder / "cluster.toml", folder / "out.txt"
    file.write_text(text)
    with out.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.node", str(file)],
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    node = Node(address, process, file, out)
    try:
        _wait_ready(node)
        yield node
    finally:
        if process.poll() is None:
            try:
                node.stop()
            except subprocess.TimeoutExpired:
                process.kill()  # the node ends with its parent
        process.wait()


def _wait_ready(node: Node) -> None:
    deadline = time.monotonic() + START_S
    while True:
        lines = node.out.read_text().splitlines()
        died = frozenset(line.split(":")[0] for line in lines if ": died, " in line)
        if died or node.process.poll() is not None or time.monotonic() > deadline:
            # Of a traceback, the line that says what went wrong.
            told = [line for line in lines if "rror: " in line or "Failed: " in line]
            raise NotReady(" ".join(told or lines), died)
        if "ready" in lines:
            return
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
