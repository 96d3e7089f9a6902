"""Clusters as processes: what ``python -m runtime.node`` starts, and how that ends."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio
import zmq

from runtime import cluster_file
from runtime.bench.procs import list_processes
from runtime.launch import Cluster
from runtime.node import main
from runtime.reports import Console
from runtime.supervisor import RestartPolicy
from transport.codec import Packet, decode, encode
from transport.messages import ErrorReply, Message, Ping, Pong

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0

CLUSTER = """\
[cluster]
name = "echo"
drain_s = 5
run_folder = "run"
[nodes.gateway.actors.gateway]
class = "tests.system.echo_actor.Echo"
listen = "tcp://127.0.0.1:{port}"
via = "worker"
[nodes.worker.actors.worker]
class = "tests.system.echo_actor.Echo"
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@attrs.define(eq=False)
class Running:
    """A cluster that runs, and a client of it."""

    process: subprocess.Popen[str]
    port: int
    out: Path
    client: zmq.Socket[bytes]

    def says(self, line: str) -> bool:
        return f"\n{line}" in f"\n{self.out.read_text()}"

    def ask(self, number: int) -> Message:
        self.client.send_multipart(encode(Packet("", 0, Ping(request_id=number))))
        return self.answer()

    def answer(self) -> Message:
        assert self.client.poll(int(PATIENCE_S * 1000)), self.out.read_text()
        return decode(self.client.recv_multipart()).message

    def serves(self) -> bool:
        return isinstance(self.ask(1), Pong)

    def worker(self) -> int:
        answer = self.ask(1)
        assert isinstance(answer, Pong), answer
        return int(answer.status)

    def node_pids(self) -> dict[str, int]:
        """Process ids of the nodes, by name."""
        return {
            each.command.split(" --node ")[1].split()[0]: each.pid
            for each in list_processes()
            if each.parent == self.process.pid and " --node " in each.command
        }


@contextmanager
def running(folder: Path, text: str = CLUSTER) -> Iterator[Running]:
    """Start a cluster, wait until it is ready, and kill what is left of it at the end."""
    port = free_port()
    (folder / "cluster.toml").write_text(text.format(port=port))
    out = folder / "out.txt"
    with out.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.node", str(folder / "cluster.toml")],
            cwd=ROOT,
            stdout=sink,
            stderr=subprocess.STDOUT,
            text=True,
        )
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.connect(f"tcp://127.0.0.1:{port}")
        cluster = Running(process, port, out, client)
        try:
            until(lambda: cluster.says("ready") or process.poll() is not None)
            assert process.poll() is None, out.read_text()
            yield cluster
        finally:
            if process.poll() is None:
                process.kill()  # the nodes end with their parent
            process.wait()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and ") Z " in stat.read_text()  # ended, and init has not noticed yet


def test_a_cluster_says_where_clients_connect_and_answers_them(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        assert cluster.says("echo: starting gateway, worker")
        assert cluster.says(f"clients connect to tcp://127.0.0.1:{cluster.port}")
        assert cluster.worker() == cluster.node_pids()["worker"]
        check_a_dead_node_is_replaced(cluster)
        check_draining_finishes_what_was_taken(cluster)


def check_a_dead_node_is_replaced(cluster: Running) -> None:
    """Parts of the test above: a cluster takes seconds to start, so it is used for all three."""
    before = cluster.worker()
    os.kill(before, signal.SIGKILL)
    until(cluster.serves)
    assert cluster.worker() != before
    assert cluster.says("worker: was ended by SIGKILL, restart in 0.1 s")
    assert isinstance(cluster.ask(1000), ErrorReply)  # ends the worker from within
    until(cluster.serves)
    assert cluster.says("worker: ended with code 9, restart in 0.2 s")
    assert isinstance(cluster.ask(1003), ErrorReply)  # loses its card
    until(cluster.serves)
    assert cluster.says("worker: ended with code 3, restart in 0.4 s")


def check_draining_finishes_what_was_taken(cluster: Running) -> None:
    cluster.client.send_multipart(encode(Packet("", 0, Ping(request_id=1002))))  # takes a while
    assert isinstance(cluster.ask(1), Pong)
    cluster.process.send_signal(signal.SIGINT)
    until(lambda: cluster.says("draining"))
    refused = cluster.ask(3)
    while isinstance(refused, Pong) and refused.request_id == 3:  # the gateway did not know yet
        refused = cluster.ask(3)
    assert refused == ErrorReply(request_id=3, code="unavailable", message="gateway")
    finished = cluster.answer()
    assert isinstance(finished, Pong)
    assert finished.request_id == 1002
    assert cluster.process.wait(PATIENCE_S) == 0


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_nodes_that_share_a_card_are_clients_of_a_daemon_that_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "bin" / "nvidia-cuda-mps-control"
    control.parent.mkdir()
    shutil.copy(ROOT / "tests" / "kernels" / "fake_mps.py", control)
    monkeypatch.setenv("PATH", f"{control.parent}{os.pathsep}{os.environ['PATH']}")
    text = CLUSTER.replace("[nodes.worker.actors", "[nodes.worker]\nmps = 40\n[nodes.worker.actors")
    daemon = tmp_path / "run" / "mps" / "pipe" / "daemon"
    with running(tmp_path, text) as cluster:
        assert daemon.exists()
        environment = {
            name: Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            for name, pid in cluster.node_pids().items()
        }
        assert b"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=40" in environment["worker"]
        assert f"CUDA_MPS_PIPE_DIRECTORY={daemon.parent}".encode() in environment["worker"]
        assert not any(each.startswith(b"CUDA_MPS") for each in environment["gateway"])
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.wait(PATIENCE_S) == 0
    assert not daemon.exists()


def test_nodes_end_with_their_parent_even_if_it_is_killed(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        nodes = cluster.node_pids()
        assert set(nodes) == {"gateway", "worker"}
        cluster.process.kill()
        until(lambda: all(map(is_gone, nodes.values())))


def test_a_second_signal_kills_what_does_not_end(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        nodes = cluster.node_pids()
        os.kill(nodes["gateway"], signal.SIGSTOP)
        cluster.process.send_signal(signal.SIGTERM)
        until(lambda: cluster.says("draining"))
        time.sleep(0.3)  # two signals at once count as one
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.process.wait(PATIENCE_S) == 128 + signal.SIGTERM
        assert all(map(is_gone, nodes.values()))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[cluster]", "[cluster", "no TOML"),
        ("drain_s = 5", "drain_s = 'x'", "[cluster] drain_s: want a number"),
        ("echo_actor.Echo", "echo_actor.Ecco", "module 'tests.system.echo_actor' has no 'Ecco'"),
        ("tests.system", "tests.sistem", "there is no module 'tests.sistem'"),
        ("tests.system.echo_actor.Echo", "Echo", "want a dotted name"),
        ("tests.system.echo_actor.Echo", "os.path.join", "no class with a run method"),
        (
            "[cluster]",
            '[models.m]\nbundle = "absent"\nshards = ["worker"]\nexecutors = ["worker"]\n[cluster]',
            "model m: there is no bundle",
        ),
    ],
)
def test_a_cluster_that_cannot_start_says_why_in_one_line(
    old: str, new: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER.replace(old, new, 1))
    assert main([str(path)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_node_is_told_with_those_that_there_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER)
    assert main([str(path), "--node", "nobody"]) == 2
    assert "no node 'nobody'; there are gateway, worker" in capfd.readouterr().err


def test_a_port_in_use_is_told_by_the_node_that_wants_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        path.write_text(CLUSTER.format(port=other.getsockname()[1]))
        assert main([str(path)]) == 2
    err = capfd.readouterr().err
    assert "error: node gateway: cannot bind tcp://127.0.0.1:" in err
    assert "Address already in use" in err
    assert "Traceback" not in err


def test_a_cluster_ends_when_a_node_cannot_be_kept_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(CLUSTER.format(port=free_port()).replace('via = "worker"', 'die = "soon"'))
    printed = io.StringIO()
    cluster = Cluster(cluster_file.load(path), path, Console(printed), RestartPolicy(most=1))
    assert trio.run(cluster.run) == 1
    assert "gateway: ended with code 9, restart in 0.1 s" in printed.getvalue()
    assert "error: node gateway keeps dying: it ended with code 9" in capfd.readouterr().err
