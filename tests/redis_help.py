"""Real Redis servers for tests, single ones and clusters, on free ports of this machine."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from actors.redis.slots import N_SLOTS

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None or shutil.which("redis-cli") is None,
    reason="there is no redis-server and redis-cli on this machine",
)

_START_S = 20.0
# A server of a cluster listens for the others this much above its port.
_BUS = 10_000


@attrs.define(eq=False)
class RedisProcess:
    """A server; ``start`` again after ``kill``, on the same port and without its data."""

    folder: Path
    port: int
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = ("--port", str(self.port), "--save", "", "--bind", "127.0.0.1")
        with (self.folder / "out.txt").open("ab") as out:
            self.process = subprocess.Popen(
                ["redis-server", *plain, "--dir", str(self.folder), *self.arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + _START_S
        while self.process.poll() is None and time.monotonic() < end:
            answer = self.cli("ping")
            if "PONG" in answer or "NOAUTH" in answer:
                return
            time.sleep(0.01)
        raise RuntimeError((self.folder / "out.txt").read_text())

    def cli(self, *words: str) -> str:
        """Run ``redis-cli`` with a command; return what it prints."""
        command = ["redis-cli", "-p", str(self.port), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_S)
        return (done.stdout + done.stderr).strip()

    def kill(self) -> None:
        """End it at once, by a signal that it cannot catch."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def redis_server(folder: Path, *arguments: str) -> Iterator[RedisProcess]:
    """Run a server of its own with further ``arguments``."""
    server = RedisProcess(folder, _free_port(), arguments)
    try:
        try:
            server.start()
        except RuntimeError as error:
            if "in use" not in str(error):
                raise
            server.port = _free_port()  # another process was faster
            server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def redis_cluster(folder: Path, n: int = 3) -> Iterator[list[RedisProcess]]:
    """Run a cluster of ``n`` primaries, each with an equal share of the slots."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                redis_server(folder / str(i), "--cluster-enabled", "yes", "--appendonly", "no")
            )
            for i in range(n)
        ]
        # As ``redis-cli --cluster create`` does it, but without its waits of whole seconds.
        for i, server in enumerate(servers):
            first, last = N_SLOTS * i // n, N_SLOTS * (i + 1) // n - 1
            assert server.cli("cluster", "addslotsrange", str(first), str(last)) == "OK"
            assert server.cli("cluster", "set-config-epoch", str(i + 1)) == "OK"
        for server in servers[1:]:
            assert servers[0].cli("cluster", "meet", "127.0.0.1", str(server.port)) == "OK"
        end = time.monotonic() + _START_S
        while not all(_knows_all(server, n) for server in servers):
            assert time.monotonic() < end, servers[0].cli("cluster", "nodes")
            time.sleep(0.01)
        yield servers


def _knows_all(server: RedisProcess, n: int) -> bool:
    told = server.cli("cluster", "info")
    return "cluster_state:ok" in told and f"cluster_size:{n}" in told


def _free_port() -> int:
    """Return a port that is free, as is the one that a cluster's servers talk over.

    Below those that the system gives to connections (32768 and up on Linux), so that a server that
    was killed finds it free again.
    """
    while True:
        port = random.SystemRandom().randrange(12_000, 22_000)
        with socket.socket() as probe, socket.socket() as bus:
            try:
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
            return port
