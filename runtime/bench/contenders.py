"""What can be measured: a TensorBatch cluster, ours to start or running, and the peers.

Each is a context manager that gives a ``Contender`` which is ready to answer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import attrs
import numpy as np
import zmq
from numpy.typing import NDArray

from runtime.bench import wires
from runtime.bench.http_link import HttpLink
from runtime.bench.links import Prepared, ReadReply, ZmqLink
from runtime.bench.load import Link, closed_loop
from runtime.bench.pool import Pool
from runtime.bench.procs import running
from runtime.bench.topologies import Deployment, cluster_text
from runtime.bench.whole import WholeModel
from transport.errors import Unavailable

# A cluster maps its tables and opens its sessions in this time, or something is wrong.
START_S: Final = 60.0
# All buckets are compiled before an executor is ready; with an empty cache, that takes longer.
_START_CUDA_S: Final = 240.0
Order = Sequence[int]


class OpenLink(Link, Protocol):
    """A link that a run owns, with the answers that it kept for checking."""

    @property
    def kept(self) -> Mapping[int, Any]:
        """Index of a request to its answer, as ``Contender.scores`` takes it."""

    def close(self) -> None:
        """Close its connections."""


@attrs.frozen(kw_only=True, eq=False)
class Contender:
    """A server that is ready.

    Attributes:
        connect: Takes the order of requests, and how many answers lie between two that are kept.
        scores: Takes a kept answer, returns float32 ``[n_candidates, n_outputs]``.
        pid: Root of its processes, or None if they are not ours.
        stats: Returns the statistics of its actors since the last call, and starts new ones.
            Counters go on.
        largest_error: How far scores may be from the whole model's, beside a share of 1e-3.
    """

    name: str
    connect: Callable[[Order, int], OpenLink]
    scores: Callable[[Any], NDArray[np.float32]]
    pid: int | None = None
    stats: Callable[[], dict[str, Any]] = dict
    largest_error: float = 1e-5


@contextmanager
def running_cluster(address: str, pool: Pool) -> Iterator[Contender]:
    """Measure a cluster that somebody started."""
    with zmq.Context() as context:
        yield _tensorbatch(context, address, pool, None)


@contextmanager
def own_cluster(
    bundle: Path,
    topology: str,
    n_shards: int,
    make_pool: Callable[[str], Pool],
    deployment: Deployment | None = None,
    *,
    patience_s: float | None = None,
) -> Iterator[tuple[Contender, Pool]]:
    """Start a cluster with ``python -m runtime.node``, and stop it after.

    Args:
        bundle: Of the model, which has the name of the folder.
        topology: ``all-in-one`` or ``spread``.
        n_shards: Embedding shards, if it is spread.
        make_pool: Takes the cluster's address, returns the requests.
        deployment: How executors run; None for one on the host.
        patience_s: Time to be ready in; None for what tables of some gigabytes at most need.

    Raises:
        Unavailable: It was not ready in that time, or its processes ended.
    """
    deployment = deployment or Deployment()
    usual_s = START_S if deployment.device == "host" else _START_CUDA_S
    with tempfile.TemporaryDirectory(prefix="tb-bench-") as folder, zmq.Context() as context:
        address = f"tcp://127.0.0.1:{_free_port()}"
        file = Path(folder, "cluster.toml")
        text = cluster_text(bundle, topology, n_shards, address, Path(folder, "run"), deployment)
        file.write_text(text)
        with running(["-m", "runtime.node", str(file)]) as process:
            wires.wait_ready(
                address, within_s=patience_s or usual_s, alive=lambda: process.poll() is None
            )
            pool = make_pool(address)
            ours = _tensorbatch(context, address, pool, process.pid)
            yield attrs.evolve(ours, largest_error=deployment.largest_error), pool


def _tensorbatch(
    context: zmq.Context[zmq.Socket[bytes]], address: str, pool: Pool, pid: int | None
) -> Contender:
    def stats() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(wires.ask_stats(address, reset=True))
        return found

    connect = _zmq_connect(context, [address], wires.prepare(pool.requests), wires.read_reply)
    return Contender(
        name="TensorBatch", connect=connect, scores=wires.read_scores, pid=pid, stats=stats
    )


def _zmq_connect(
    context: zmq.Context[zmq.Socket[bytes]],
    addresses: Sequence[str],
    prepared: Sequence[Prepared],
    read: ReadReply,
) -> Callable[[Order, int], OpenLink]:
    def connect(order: Order, keep_every: int) -> OpenLink:
        return ZmqLink.connect(context, addresses, prepared, order, read, keep_every=keep_every)

    return connect


@contextmanager
def zeromq_loop(
    onnx: Path, whole: WholeModel, n_user: int, pool: Pool, *, most: int
) -> Iterator[Contender]:
    """Start ``peer_loop``, which runs up to ``most`` requests together."""
    rows = pool.rows.tolist()
    blobs = [whole.blob(request, n_user) for request in pool.requests]
    prepared = wires.prepare_loop(blobs, rows)
    address = f"tcp://127.0.0.1:{_free_port()}"
    command = ["-m", "runtime.bench.peer_loop", str(onnx), address, str(n_user), str(most)]
    with zmq.Context() as context, running(command) as process:
        connect = _zmq_connect(context, [address], prepared, wires.read_loop_reply)
        _await_answer(connect)
        name = "ZeroMQ loop, one by one" if most == 1 else f"ZeroMQ loop, 1 to {most}"
        yield Contender(name=name, connect=connect, scores=_loop_scores, pid=process.pid)


def _loop_scores(frames: Sequence[bytes]) -> NDArray[np.float32]:
    scores = np.frombuffer(frames[1], np.float32)
    return scores.reshape(-1, 1)


def mosec_installed() -> bool:
    """Return whether MOSEC can be measured. It is no dependency of ours: ``pip install mosec``."""
    return importlib.util.find_spec("mosec") is not None


@contextmanager
def mosec(
    onnx: Path, whole: WholeModel, n_user: int, pool: Pool, *, most: int, n_workers: int
) -> Iterator[Contender]:
    """Start MOSEC with ``n_workers`` processes that run up to ``most`` requests together."""
    port = _free_port()
    environment = {
        "PEER_MODEL": str(onnx),
        "PEER_USER_COLUMNS": str(n_user),
        "PEER_WORKERS": str(n_workers),
        "PEER_MOST": str(most),
    }
    command = ["-m", "runtime.bench.peer_mosec", "--address", "127.0.0.1", "--port", str(port)]
    bodies = [whole.blob(request, n_user) for request in pool.requests]

    def connect(order: Order, keep_every: int) -> OpenLink:
        path = "/inference"
        return HttpLink.connect("127.0.0.1", port, path, bodies, order, keep_every=keep_every)

    with running(command, {**os.environ, **environment}) as process:
        _await_port(port)
        _await_answer(connect)
        yield Contender(
            name=f"MOSEC, {n_workers} worker{'s' * (n_workers > 1)}",
            connect=connect,
            scores=lambda body: np.frombuffer(body, np.float32).reshape(-1, 1),
            pid=process.pid,
        )


def _await_port(port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise Unavailable(f"nothing listens on port {port}") from None
            time.sleep(0.05)
        else:
            return


def _await_answer(connect: Callable[[Order, int], OpenLink]) -> None:
    """Return once a server has answered one request.

    Raises:
        Unavailable: It did not within ``START_S``.
    """
    link = connect([0], 0)
    try:
        record = closed_loop(link, 1, most=1, duration_s=START_S, drain_s=0)
    finally:
        link.close()
    if record.codes[0] != 0:
        raise Unavailable(f"the server did not score its first request: code {record.codes[0]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
