"""A recommender, end to end, on this machine: ``make demo``, or ``python -m examples.demo``.

Starts ``movielens/cluster.toml`` (a gateway, two shards and an executor, each a process), ranks all
films for a few users, compares the scores with those of the torch model that the bundle was built
from, and sends a burst of requests to see where the time goes.

Exit codes: 0; 1 if the cluster failed or its scores are not torch's; 130 on Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import trio

from examples.console import Bar, columns, fitted, heading, wrapped
from examples.movielens.catalogue import HOME, Film, read_expected, read_films, read_users
from transport.client import Client
from transport.errors import TransportError
from transport.exchange import score_request
from transport.messages import ScoreRequest

MODEL: Final = "movielens"
LISTEN: Final = "tcp://127.0.0.1:7400"  # in cluster.toml
N_ACTORS: Final = 4
TOLERANCE: Final = 1e-4  # torch and the served model add in different orders
BURST: Final = 600  # requests at once
WARM_UP: Final = 100
CANDIDATES: Final = 64  # of each request of the burst
BUDGET_S: Final = 20.0  # far more than anything here takes, on the slowest laptop
DRAIN_S: Final = 15.0
STAGES: Final = {
    "parse_us": "raw features to ids, for the requests at hand",
    "join_us": "shards look rows up, their parts meet",
    "queue_us": "waiting for a window and an idle lane",
    "compute_us": "the dense graph, many requests at a time",
    "reply_us": "between processes, and back to the client",
    "total_us": "from arrival at the gateway to the answer",
}


class DemoFailed(Exception):
    """The demo did not show what it is to show; the message is for the user."""


def main() -> int:
    """Run the demo; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="tensorbatch-demo-") as folder:
        address = f"tcp://127.0.0.1:{_free_port()}"
        file = Path(folder) / "movielens.toml"
        file.write_text(_cluster_text(address), encoding="utf-8")
        return trio.run(_run, file, address)


def _cluster_text(address: str) -> str:
    """Return the cluster file for an address of its own, so that a running cluster is no matter."""
    text = (HOME / "cluster.toml").read_text(encoding="utf-8")
    for old, new in ((LISTEN, address), ('"bundle"', json.dumps(str(HOME / "bundle")))):
        if text.count(old) != 1:
            raise DemoFailed(f"{HOME / 'cluster.toml'}: want {old} once")
        text = text.replace(old, new)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _run(file: Path, address: str) -> int:
    # Signals are caught before there is a cluster, so that there is always somebody to stop it.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        cluster = await Cluster.start(file)
        try:
            return await _run_on(cluster, address, signals)
        finally:
            with trio.CancelScope(shield=True):
                await cluster.stop()


async def _run_on(cluster: Cluster, address: str, signals: AsyncIterator[int]) -> int:
    code = 0
    try:
        async with trio.open_nursery() as nursery:

            async def obey() -> None:
                nonlocal code
                async for number in signals:
                    code = 128 + number
                    nursery.cancel_scope.cancel()

            nursery.start_soon(obey)
            nursery.start_soon(cluster.read)
            await cluster.wait_ready(address)
            async with Client.connect(address) as client:
                await _show(client)
            nursery.cancel_scope.cancel()
    except* (DemoFailed, TransportError) as failures:
        code = 1
        for failure in failures.exceptions:
            print(f"\ndemo failed: {failure}", file=sys.stderr)
    return code


@attrs.define(eq=False)
class Cluster:
    """``python -m runtime.node`` as a child process."""

    process: trio.Process
    lines: list[str] = attrs.field(factory=list)
    bar: Bar = attrs.field(factory=lambda: Bar("starting", N_ACTORS))
    settled: trio.Event = attrs.field(factory=trio.Event)

    @classmethod
    async def start(cls, file: Path) -> Cluster:
        """Start the cluster of a file. Ctrl-C does not reach it: ``stop`` ends it."""
        command = [sys.executable, "-m", "runtime.node", str(file)]
        process = await trio.lowlevel.open_process(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            cwd=HOME.parents[1],
        )
        return cls(process)

    async def read(self) -> None:
        """Read what the cluster prints, until it ends."""
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace")
                self.lines.append(text)
                if text.endswith(": ready"):
                    self.bar.step(text)
                elif text == "ready":
                    self.settled.set()
        self.settled.set()

    async def wait_ready(self, address: str) -> None:
        """Wait until clients may connect.

        Raises:
            DemoFailed: The cluster ended instead.
        """
        started = trio.current_time()
        with self.bar:
            await self.settled.wait()
        if "ready" not in self.lines:
            raise DemoFailed("the cluster did not start; it said:\n" + "\n".join(self.lines[-20:]))
        print(f"{N_ACTORS} processes (gateway, two shards, executor) at {address},", end=" ")
        print(f"ready in {trio.current_time() - started:.1f} s")
        print(next((line for line in self.lines if line.startswith("lookups:")), ""))

    async def stop(self) -> None:
        """Let it finish what it took, and end it."""
        if self.process.poll() is None:
            self.process.terminate()
        with trio.move_on_after(DRAIN_S) as patience:
            await self.process.wait()
        if patience.cancelled_caught:
            self.process.kill()
            await self.process.wait()


async def _show(client: Client) -> None:
    films = read_films()
    await _rank(client, films)
    await _burst(client, films)


async def _rank(client: Client, films: Sequence[Film]) -> None:
    """Rank all films for each user.

    Raises:
        DemoFailed: The scores are not those that torch gave.
    """
    expected = read_expected()
    title = {film.item_id: str(film) for film in films}
    worst = 0.0
    for user, want in zip(read_users(), expected, strict=True):
        features = {name: value for name, value in user.items() if name != "name"}
        answer = await client.score(
            model=MODEL, user=features, candidates=_columns(films), budget=BUDGET_S
        )
        worst = max(worst, float(np.abs(answer.scores - want).max()))
        who = ", ".join(str(features[name]) for name in ("age", "gender", "occupation"))
        heading(f"{user['name'].capitalize()} ({who})")
        liked = [title[item_id] for item_id in features["history"]]
        wrapped("  liked before   ", ", ".join(reversed(liked)) or "nothing yet")
        for place, (film, score) in enumerate(_best(films, answer.scores, set(liked)), 1):
            genres = ", ".join(film.genres)[: max(columns() - 58, 0)]
            print(f"  {place:2}   {score:.3f}   {fitted(str(film), 40)}   {genres}")
    heading("The same as in torch?")
    print(f"  max abs error {worst:.1e} over {expected.size:,} scores (at most {TOLERANCE:g})")
    if not worst <= TOLERANCE:
        raise DemoFailed(f"scores differ from torch's by up to {worst:g}")


def _columns(films: Sequence[Film]) -> dict[str, Any]:
    return {
        "item_id": [film.item_id for film in films],
        "year": [film.year for film in films],
        "genres": [film.genres for film in films],
    }


def _best(
    films: Sequence[Film], scores: np.ndarray[Any, Any], known: set[str]
) -> list[tuple[Film, float]]:
    """Return the ten best films that are not known yet; the list has some films twice."""
    best: dict[str, tuple[Film, float]] = {}
    for n in np.argsort(-scores, kind="stable"):
        if str(films[n]) not in known:
            best.setdefault(str(films[n]), (films[n], float(scores[n])))
    return list(best.values())[:10]


async def _burst(client: Client, films: Sequence[Film]) -> None:
    rng = np.random.default_rng(0)
    with Bar("building requests", WARM_UP + BURST) as bar:
        requests = []
        for _ in range(WARM_UP + BURST):
            requests.append(_random_request(films, rng))
            bar.step()
            await trio.lowlevel.checkpoint()
    with Bar("asking", WARM_UP + BURST) as bar:
        await _send(client, requests[:WARM_UP], bar)
        await client.stats(reset=True)
        latencies_ms, seconds = await _send(client, requests[WARM_UP:], bar)
    stats = await client.stats()

    heading(f"A burst of {BURST} requests at once, {CANDIDATES} films each")
    p50, p99 = np.quantile(latencies_ms, (0.5, 0.99))
    print(f"  throughput           {BURST / seconds:8,.0f} requests/s", end="")
    print(f"   {BURST * CANDIDATES / seconds:,.0f} films/s")
    print(f"  latency              {p50:8.1f} ms p50      {p99:.1f} ms p99, seen by the client")
    for actor, counted in stats.items():
        if "window_requests" in counted:
            n_windows, mean = counted["window_requests"]["n"], counted["window_requests"]["mean"]
            print(f"  requests a window    {mean:8.1f} mean of {n_windows:.0f} windows ({actor})")
    heading("Where the time went (ms a request)")
    print(f"  {'':8}{'p50':>8}{'p99':>8}{'mean':>8}")
    for name, what in STAGES.items():
        found = stats["gateway"][name]
        times = "".join(f"{found[figure] / 1e3:8.2f}" for figure in ("p50", "p99", "mean"))
        print(f"  {name.removesuffix('_us'):8}{times}   {what}")


def _random_request(films: Sequence[Film], rng: np.random.Generator) -> ScoreRequest:
    """Build a request of a known user with a random history, for random films."""
    shown = [films[n] for n in rng.choice(len(films), CANDIDATES, replace=False)]
    liked = rng.choice(len(films), rng.integers(20), replace=False)
    user = {
        "user_id": int(rng.integers(1, 944)),
        "age": int(rng.integers(15, 70)),
        "gender": str(rng.choice(["F", "M"])),
        "occupation": "student",
        "liked_share": float(rng.uniform(0.2, 0.9)),
        "history": [films[n].item_id for n in liked],
    }
    return score_request(MODEL, user, _columns(shown))


async def _send(
    client: Client, requests: Sequence[ScoreRequest], bar: Bar
) -> tuple[list[float], float]:
    """Send requests all at once; return the latency of each in ms, and the seconds of all."""
    latencies_ms: list[float] = []
    started = trio.current_time()

    async def send(request: ScoreRequest) -> None:
        sent = trio.current_time()
        await client.score_request(request, budget=BUDGET_S)
        latencies_ms.append((trio.current_time() - sent) * 1e3)
        bar.step()

    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(send, request)
    return latencies_ms, trio.current_time() - started


if __name__ == "__main__":
    sys.exit(main())
