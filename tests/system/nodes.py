"""A cluster of ``tests.divided``'s bundle: each node a process of its own, to kill and start again.

Whoever starts nodes one by one (systemd, Kubernetes) starts them for good: unlike the parent of a
cluster, which gives up a node that dies over and over.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

from kernels.bundle.build import BuildOptions, build_bundle
from kernels.placement import Placement
from tests import tiny
from tests.divided import PLACEMENT, divide

ROOT = Path(__file__).parents[2]
STOP_S = 20.0
# Replica r of group g is shard 2r + g.
SHARDS = ("shard-0", "shard-1", "shard-2", "shard-3")
NAMES = ("gateway", *SHARDS, "executor")


def double_of(shard: str) -> str:
    """Return the other replica of a shard's group."""
    return SHARDS[(SHARDS.index(shard) + 2) % 4]


def cluster_text(bundle: Path, address: str, *, lenient: bool = False) -> str:
    """Return the cluster file: two groups of two replicas, each shard in a node of its own.

    Args:
        bundle: The model's, which is called ``tiny``.
        address: Where clients connect.
        lenient: Whether it is also served as ``lenient``, with default rows for what is missing.
    """
    models = {"tiny": "fail", "lenient": "default"} if lenient else {"tiny": "fail"}
    shards = ", ".join(f'"{name}"' for name in SHARDS)
    lines = ["[cluster]", 'name = "replicated"', 'run_folder = "run"', "drain_s = 2"]
    for model, missing in models.items():
        executor = "executor" if model == "tiny" else f"executor-{model}"
        lines += [
            f"[models.{model}]",
            f'bundle = "{bundle}"',
            f"shards = [{shards}]",
            f'executors = ["{executor}"]',
            "replicas = 2",
            f'missing = "{missing}"',
            f"[nodes.executor.actors.{executor}]",
            'class = "actors.executor.Executor"',
        ]
    lines += [
        "[nodes.gateway.actors.gateway]",
        'class = "actors.gateway.Gateway"',
        f'listen = "{address}"',
    ]
    for name in SHARDS:
        lines += [f"[nodes.{name}.actors.{name}]", 'class = "actors.shard.EmbeddingShard"']
    return "\n".join([*lines, ""])


@attrs.define(eq=False)
class Nodes:
    """The cluster's processes.

    Attributes:
        address: Where clients connect.
        folder: Has the cluster file, and what each life of each node printed.
    """

    address: str
    folder: Path
    _processes: dict[str, subprocess.Popen[bytes]] = attrs.field(factory=dict, init=False)
    _lives: dict[str, int] = attrs.field(factory=dict, init=False)
    _killed: set[str] = attrs.field(factory=set, init=False)

    def start(self, name: str) -> None:
        """Start a node, for the first time or again."""
        self._lives[name] = self._lives.get(name, 0) + 1
        with self._out(name).open("wb") as sink:
            # In a session of its own, as Linux shares the processor by session: a node that starts
            # does not take from the others, which in real life are on other machines.
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "runtime.node", "cluster.toml", "--node", name],
                cwd=self.folder,
                env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._killed.discard(name)

    def kill(self, name: str) -> None:
        """End a node by SIGKILL, and wait until it is gone."""
        self._killed.add(name)
        self._processes[name].kill()
        self._processes[name].wait()

    def is_ready(self, name: str) -> bool:
        """Say whether a node serves.

        Raises:
            RuntimeError: It has ended by itself.
        """
        self.check()
        said = self._out(name).read_text(errors="replace")
        return "\nready\n" in f"\n{said}"

    def check(self) -> None:
        """Check that all nodes live that were not killed.

        Raises:
            RuntimeError: One has ended by itself; says what it printed.
        """
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None and name not in self._killed:
                said = self._out(name).read_text(errors="replace")
                raise RuntimeError(f"{name} has ended with code {code}: {said}")

    async def wait_ready(self, *names: str) -> None:
        """Wait until nodes serve."""
        for name in names or NAMES:
            while not self.is_ready(name):  # noqa: ASYNC110 - it is a file that tells
                await trio.sleep(0.02)

    def stop(self) -> dict[str, int]:
        """Stop all nodes; return the exit codes of those that live."""
        codes = {}
        for name, process in self._processes.items():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    codes[name] = process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    codes[name] = process.wait()
        return codes

    def _out(self, name: str) -> Path:
        return self.folder / f"{name}.{self._lives[name]}.txt"


@contextmanager
def nodes(
    folder: Path, *, lenient: bool = False, placement: Placement = PLACEMENT
) -> Iterator[Nodes]:
    """Build the bundle, start all nodes, and stop those that live at the end."""
    model, features = tiny.write_model(folder)
    build_bundle(model, features, folder / "whole", BuildOptions())
    bundle = divide(folder / "whole", folder / "bundle", placement)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    (folder / "cluster.toml").write_text(cluster_text(bundle, address, lenient=lenient))
    started = Nodes(address, folder)
    try:
        for name in NAMES:
            started.start(name)
        yield started
    finally:
        started.stop()
