"""Runs one node in this process: its actors, its bus, and obedience to signals."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from runtime.bus import Bus
from runtime.compose import FATAL, HOPELESS, factories_of
from runtime.deployed import Deployments, deployments_file
from runtime.errors import ActorDied, StartError
from runtime.host import Host
from runtime.reports import EXIT_FAILED, EXIT_LOST, EXIT_OK, EXIT_START, Failure, Report
from runtime.supervisor import Phase, describe, sole
from runtime.topology import Topology

log = logging.getLogger(__name__)

Tell = Callable[[Report | Failure], None]

_OWN: Final = 0o700
# A lane's thread needs the interpreter twice a launch, to take it and to hand the scores back, and
# a busy event loop lets go of it only this often. CPython's 5 ms would be most of a launch's time.
_SWITCH_S: Final = 0.0002
# timeout(1), for one, signals the process and then its group: that is not asking twice.
_SAME_S: Final = 0.25


def run_node(
    topology: Topology,
    name: str,
    tell: Tell,
    *,
    stop_signals: tuple[signal.Signals, ...],
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Run a node until a signal stops it; return the exit code of the process.

    Args:
        topology: The whole cluster.
        name: The node's.
        tell: Gets reports, and why the node ends if it fails.
        stop_signals: The first drains the node, the second ends it at once.
        on_ready: Called when every actor has been ready.
    """
    node = _Node(topology, name, tell, stop_signals, on_ready)
    try:
        with locked(topology.run_folder, name):
            sys.setswitchinterval(_SWITCH_S)
            return trio.run(node.run)
    except Exception as error:  # the seam at which a node's failure becomes its exit code
        failure = sole(error)
    cause = failure.__cause__ or failure if isinstance(failure, ActorDied) else failure
    if isinstance(cause, HOPELESS) and not node.was_ready:
        # What is wrong is outside, and the message names it: no traceback, no names of classes.
        actor = failure.actor if isinstance(failure, ActorDied) else name
        prefix = f"node {name}" if actor == name else f"node {name}, actor {actor}"
        tell(Failure(f"{prefix}: {' '.join(str(cause).split())}"))
        return EXIT_START
    log.error("node %s failed", name, exc_info=cause)
    tell(Failure(f"node {name}: {describe(failure)}"))
    return EXIT_LOST if isinstance(cause, FATAL) else EXIT_FAILED


class _Node:
    def __init__(
        self,
        topology: Topology,
        name: str,
        tell: Tell,
        stop_signals: tuple[signal.Signals, ...],
        on_ready: Callable[[], None],
    ) -> None:
        self.was_ready = False
        self._topology = topology
        self._name = name
        self._tell = tell
        self._stop_signals = stop_signals
        self._on_ready = on_ready
        self._code = EXIT_OK

    async def run(self) -> int:
        topology = self._topology
        bus = Bus(topology, self._name)  # of a single node too: deployments come by it
        host = Host(
            topology,
            factories_of((topology.node(self._name),)),
            remote=bus.ref,
            deployments=Deployments(topology, deployments_file(topology, self._name)),
            hopeless=HOPELESS,
            fatal=FATAL,
            report=self._report,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run, host.mailbox)
            nursery.start_soon(self._obey, host, nursery)
            async with trio.open_nursery() as actors:
                await actors.start(host.run)
                self.was_ready = True
                # What was loaded stays: without it, a full collection takes microseconds instead
                # of the tens of milliseconds that would be the tail of somebody's request.
                gc.collect()
                gc.freeze()
                self._on_ready()
            nursery.cancel_scope.cancel()
        return self._code

    def _report(self, actor: str, phase: Phase, progress: float) -> None:
        self._tell(Report(actor, phase, progress))

    async def _obey(self, host: Host, nursery: trio.Nursery) -> None:
        async for signum, is_first in stop_signals(*self._stop_signals):
            if is_first:
                nursery.start_soon(self._stop, host)
            else:
                self._code = 128 + signum
                nursery.cancel_scope.cancel()

    async def _stop(self, host: Host) -> None:
        if not await host.stop(self._topology.drain_s):
            log.error("node %s had work left after %g s", self._name, self._topology.drain_s)
            self._code = EXIT_FAILED


async def stop_signals(*wanted: signal.Signals) -> AsyncIterator[tuple[int, bool]]:
    """Yield each signal that asks to stop, and whether it is the first."""
    first_at: float | None = None
    with trio.open_signal_receiver(*wanted) as signals:
        async for signum in signals:
            now = trio.current_time()
            if first_at is None or now - first_at > _SAME_S:
                yield signum, first_at is None
            first_at = first_at or now


@contextmanager
def locked(run_folder: Path, node: str) -> Iterator[None]:
    """Make the run folder, for this user alone, and hold a node's lock in it.

    ZeroMQ takes over a socket's path from whoever has it, so nothing else keeps two clusters of one
    file apart.

    Raises:
        StartError: The folder is not ours, or the node runs already.
    """
    try:
        run_folder.mkdir(mode=_OWN, parents=True, exist_ok=True)
        status = run_folder.stat()
    except OSError as error:
        raise StartError(f"run folder: {error}") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise StartError(f"run folder {run_folder}: others may write to it, or it is theirs")
    with (run_folder / f"{node}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            who = lock.read().strip() or "unknown"
            raise StartError(f"it runs already, as process {who} (see {run_folder})") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
