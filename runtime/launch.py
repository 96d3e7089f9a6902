"""Runs a cluster's nodes as child processes: starts them, restarts those that die, drains them.

A child is ``python -m runtime.node FILE --node NAME --report FD``, tied to its parent by:

* a pipe that it writes reports to (``reports.py``);
* its standard input, which nobody writes to: its end is the parent's end, however that came, and
  then the child ends too, so that there are no orphans;
* its output, which the parent prints with the node's name in front;
* SIGTERM, on which it drains. It has a process group of its own, so a terminal's Ctrl-C reaches the
  parent alone, which then stops the nodes one after the other, in the order of the file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import attrs
import trio

from kernels.gpu.mps import Mps
from runtime.compose import addresses
from runtime.foreground import stop_signals
from runtime.mps import client_environment
from runtime.reports import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_START,
    Console,
    Failure,
    unpack,
)
from runtime.supervisor import RestartPolicy, Restarts
from runtime.topology import NodeSpec, Topology

# A node drains by its own clock; this is for what comes after, the end of its process.
_EXIT_GRACE_S: Final = 2.0
# What a child that has ended left in its pipes is read at once, unless a grandchild holds them.
_PIPE_GRACE_S: Final = 0.5
_LINE_MOST: Final = 1 << 16

POLICY: Final = RestartPolicy(most=8, within_s=60.0, first_delay_s=0.1, longest_delay_s=5.0)


@attrs.define(eq=False)
class _Child:
    """A node's process, over all its lives."""

    spec: NodeSpec
    restarts: Restarts
    process: trio.Process | None = None
    ready: set[str] = attrs.field(factory=set)
    failure: str = ""
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def is_ready(self) -> bool:
        return len(self.ready) == len(self.spec.actors)


class Cluster:
    """The nodes of a topology as processes of this machine."""

    def __init__(
        self,
        topology: Topology,
        path: Path,
        console: Console,
        policy: RestartPolicy = POLICY,
        mps: Mps | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            topology: What ``path`` says.
            path: The cluster file, for the children to read.
            console: For progress, and the output of the children.
            policy: When to restart a node.
            mps: What nodes share a card through; it runs for as long as the nodes do.
        """
        self._topology = topology
        self._mps = mps
        self._path = path
        self._console = console
        self._children = [_Child(node, Restarts(policy)) for node in topology.nodes]
        self._stopping = trio.Event()
        self._was_ready = False
        self._code = EXIT_OK

    async def run(self) -> int:
        """Run the nodes until a signal stops them or one cannot be kept up; return an exit code."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey, nursery)
            async with trio.open_nursery() as keepers:
                for child in self._children:
                    keepers.start_soon(self._keep, child)
                keepers.start_soon(self._stop)
            nursery.cancel_scope.cancel()
        return self._code

    async def _obey(self, nursery: trio.Nursery) -> None:
        async for signum, is_first in stop_signals(signal.SIGINT, signal.SIGTERM):
            if is_first and not self._stopping.is_set():
                self._console.say("draining; once more to kill")
                self._stopping.set()
            else:
                self._console.say("killing what still runs")
                self._code = 128 + signum
                nursery.cancel_scope.cancel()

    async def _stop(self) -> None:
        """Once that is asked for, stop the nodes one after the other."""
        await self._stopping.wait()
        for child in self._children:
            if child.process is not None:
                child.process.terminate()
            with trio.move_on_after(self._topology.drain_s + _EXIT_GRACE_S) as patience:
                await child.ended.wait()
            if patience.cancelled_caught and child.process is not None:
                self._console.say(f"{child.spec.name}: does not end, is killed")
                child.process.kill()
                self._code = self._code or EXIT_FAILED
            await child.ended.wait()

    def _give_up(self, code: int, why: str) -> None:
        if not self._stopping.is_set():
            sys.stderr.write(f"error: {why}\n")
            self._code = code
            self._stopping.set()

    async def _keep(self, child: _Child) -> None:
        """Run a node, again and again, until the cluster stops."""
        name = child.spec.name
        while not self._stopping.is_set():
            was_ready, code = await self._live(child)
            how = f"ended with code {code}" if code >= 0 else _signal_name(-code)
            if self._stopping.is_set():
                # Before it is ready, a process may not know yet how to obey SIGTERM.
                if code != EXIT_OK and (was_ready or code != -signal.SIGTERM):
                    self._console.say(f"{name}: {how}")
                    self._code = self._code or EXIT_FAILED
                break
            if code == EXIT_START and not self._was_ready:
                self._give_up(EXIT_START, child.failure or f"node {name} {how}")
                break
            child.restarts, delay = child.restarts.died(trio.current_time())
            if delay is None:
                self._give_up(EXIT_FAILED, f"node {name} keeps dying: it {how}")
                break
            self._console.say(f"{name}: {how}, restart in {delay:.1f} s")
            with trio.move_on_after(delay):
                await self._stopping.wait()
        child.ended.set()

    async def _live(self, child: _Child) -> tuple[bool, int]:
        """Run a node's process; return whether it was ready, and its exit code."""
        child.ready.clear()
        child.failure = ""
        reading, writing = os.pipe()
        reports = trio.lowlevel.FdStream(reading)
        try:
            process = await self._spawn(child.spec, writing)
        finally:
            os.close(writing)
        child.process = process
        was_ready = False
        try:
            async with trio.open_nursery() as nursery:
                assert process.stdout is not None
                nursery.start_soon(self._print, child.spec.name, process.stdout)
                nursery.start_soon(self._listen, child, reports)
                if self._stopping.is_set():
                    process.terminate()
                code = await process.wait()
                was_ready = child.is_ready
                nursery.cancel_scope.deadline = trio.current_time() + _PIPE_GRACE_S
        finally:
            child.process = None
            with trio.CancelScope(shield=True):
                if process.returncode is None:
                    process.kill()
                await process.wait()
                for stream in (process.stdin, process.stdout, reports):
                    if stream is not None:
                        await stream.aclose()
        return was_ready, code

    async def _spawn(self, node: NodeSpec, report_fd: int) -> trio.Process:
        module = "runtime.node"
        arguments = [str(self._path), "--node", node.name, "--report", str(report_fd)]
        return await trio.lowlevel.open_process(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **client_environment(self._mps, node)},
            pass_fds=(report_fd,),
            process_group=0,
        )

    async def _print(self, name: str, stream: trio.abc.ReceiveStream) -> None:
        async for line in _lines(stream):
            sys.stderr.write(f"{name}| {line.decode(errors='replace')}\n")
            sys.stderr.flush()

    async def _listen(self, child: _Child, stream: trio.abc.ReceiveStream) -> None:
        async for line in _lines(stream):
            report = unpack(line)
            if isinstance(report, Failure):
                child.failure = report.message
                continue
            (child.ready.add if report.phase == "ready" else child.ready.discard)(report.actor)
            self._console.tell(report)
            if not self._was_ready and all(each.is_ready for each in self._children):
                self._was_ready = True
                say_ready(self._console, self._topology, self._topology.nodes)


def say_ready(console: Console, topology: Topology, nodes: tuple[NodeSpec, ...]) -> None:
    """Print where clients connect to these nodes, and that they may."""
    models = ", ".join(topology.models) or "none"
    for address in addresses(nodes).values():
        console.say(f"clients connect to {address} (models: {models})")
    console.say("ready")


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Yield a stream's lines, without their ends; one that is far too long, in pieces."""
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > _LINE_MOST:
            yield rest
            rest = b""
    if rest:
        yield rest


def _signal_name(number: int) -> str:
    return f"was ended by {signal.Signals(number).name}"
