"""One node's connection to another: words go out, answers come back.

While a link connects for the first time, words wait in it. From then on it is up or dead:

* A lost connection, or three heartbeat periods without an answer, make it dead: asks fail, tells
  are refused, and what still waits is thrown away, so that no stale work reaches a peer's
  replacement.
* An answer to a heartbeat brings it back. So does a heartbeat *from* the peer, which shows that it
  runs: the link connects afresh and holds words again, so that a node that was restarted gets the
  answers to what it says first.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import trio
import zmq

from runtime.liveness import Liveness
from runtime.metrics import Metrics
from transport.codec import Packet, decode, encode
from transport.errors import (
    Overloaded,
    RemoteProtocolError,
    RequestError,
    SocketClosed,
    Unavailable,
    error_of,
)
from transport.messages import ErrorReply, Message, Ping, Pong
from transport.sockets import DealerSocket, Frame, Sent, SocketOptions

log = logging.getLogger(__name__)

PERIOD_S: Final = 0.5
"""Of heartbeats: with three that may be missed, a dead peer is known within two seconds."""

# After an actor refused a tell, for how long those that follow are refused here. Long enough to
# spare it the work of refusing, short against the budgets of requests.
_PUSH_BACK_S: Final = 0.05
# Words that wait for the first connection.
_WAITING_MOST: Final = 256
# Unanswered heartbeats to a dead peer after which the connection is made anew.
_BEATS_MOST: Final = 20
_RECEIVE_MOST: Final = 256
# What was said to a peer that is given up must not reach its replacement.
_OPTIONS: Final = SocketOptions(linger_s=0.0)


def heartbeat(node: str) -> list[Frame]:
    """Return the frames of a heartbeat from ``node``."""
    return encode(Packet(f"@{node}", 0, Ping(request_id=1)))


def heartbeat_sender(packet: Packet) -> str | None:
    """Return the node that a packet is a heartbeat from; None if it is none."""
    if packet.to.startswith("@") and isinstance(packet.message, Ping):
        return packet.to[1:]
    return None


class Link:
    """The DEALER to one node, and the asks that wait for answers from there."""

    def __init__(
        self, context: zmq.Context[Any], here: str, node: str, address: str, metrics: Metrics
    ) -> None:
        """Begin to connect; ``run`` does the rest.

        Args:
            context: ZeroMQ's, of this process.
            here: The name of the node that this is.
            node: The name of the node to reach.
            address: Where that is.
            metrics: Counts ``damaged`` packets.
        """
        self._context = context
        self._heartbeat = heartbeat(here)
        self._node = node
        self._address = address
        self._metrics = metrics
        self._liveness = Liveness()
        self._is_heard = True
        self._n_beats = 0
        self._ask_ids = itertools.count(1)
        self._asks: dict[int, Callable[[Message], None]] = {}
        self._push_back: dict[str, tuple[float, RequestError]] = {}
        self._waiting: deque[list[Frame]] = deque()
        self._more_waits = trio.lowlevel.ParkingLot()
        self._tasks = trio.CancelScope()
        self._is_accused = False
        self._socket = self._open()

    def send(self, to: str, message: Message, deliver: Callable[[Message], None] | None) -> int:
        """Send a tell, or an ask whose answer goes to ``deliver``; return the ask's number.

        Raises:
            Overloaded: The way is full, or the actor's mailbox was a moment ago.
            Unavailable: The node is dead, or the actor was not there a moment ago.
        """
        if not self._liveness.is_alive:
            raise Unavailable(f"{to}: node {self._node} does not answer")
        if to in self._push_back:
            self._refuse_pushed_back(to)
        ask_id = next(self._ask_ids) if deliver is not None else 0
        frames = encode(Packet(to, ask_id, message))
        sent = self._socket.try_send(frames) if not self._waiting else Sent.GONE
        if sent is Sent.GONE and self._socket.n_lost:
            self._die("is gone")
            raise Unavailable(f"{to}: node {self._node} is gone")
        if sent is Sent.FULL or len(self._waiting) >= _WAITING_MOST:
            raise Overloaded(f"{to}: the way to node {self._node} is full")
        if sent is Sent.GONE:
            self._waiting.append(frames)
            self._more_waits.unpark_all()
        if deliver is not None:
            self._asks[ask_id] = deliver
        return ask_id

    def forget(self, ask_id: int) -> None:
        """Note that nobody waits for an answer any more."""
        self._asks.pop(ask_id, None)

    async def run(self) -> None:
        """Receive answers, over one connection after the other."""
        try:
            while True:
                async with trio.open_nursery() as nursery:
                    self._tasks = nursery.cancel_scope
                    for task in (self._receive, self._watch, self._flush):
                        nursery.start_soon(self._until_closed, task, self._socket)
                await trio.lowlevel.checkpoint()  # the end, if more than the connection ended
        finally:
            self._socket.close()

    def beat(self) -> None:
        """Note that a heartbeat period has passed; ask for the next sign of life."""
        if not self._is_heard:
            was_alive = self._liveness.is_alive
            self._liveness = self._liveness.period_passed()
            if was_alive and not self._liveness.is_alive:
                self._die("does not answer")
        self._is_heard = False
        self._n_beats += 1
        if self._n_beats > _BEATS_MOST:
            self._reopen()
        elif not self._waiting:
            self._socket.try_send(self._heartbeat)

    def hear_from_peer(self) -> None:
        """Note that the peer has sent a heartbeat of its own."""
        if not self._liveness.is_alive:
            self._liveness = Liveness()
            self._is_heard = True
            self._reopen()

    def _refuse_pushed_back(self, to: str) -> None:
        until, refusal = self._push_back[to]
        if trio.current_time() < until:
            raise type(refusal)(str(refusal))
        del self._push_back[to]

    def _open(self) -> DealerSocket:
        socket = DealerSocket(self._context, _OPTIONS)
        socket.connect(self._address)
        self._n_beats = 0
        self._waiting = deque([self._heartbeat])  # said as soon as there is a connection
        return socket

    def _reopen(self) -> None:
        self._socket.close()
        self._socket = self._open()
        self._tasks.cancel()

    def _die(self, how: str) -> None:
        """Give the peer up, until it is heard again."""
        # A peer that is gone was stopped, or has died, which whoever started it reports.
        level = logging.INFO if self._socket.n_lost else logging.WARNING
        log.log(level, "node %s %s", self._node, how)
        self._liveness = self._liveness.lost()
        self._fail_asks(how)
        self._reopen()

    def _fail_asks(self, why: str) -> None:
        asks, self._asks = self._asks, {}
        text = f"node {self._node} {why}"
        for deliver in asks.values():
            deliver(ErrorReply(request_id=0, code="unavailable", message=text))

    async def _until_closed(
        self, task: Callable[[DealerSocket], Any], socket: DealerSocket
    ) -> None:
        with suppress(SocketClosed):  # by ``_reopen``, which starts the tasks of the next one
            await task(socket)

    async def _receive(self, socket: DealerSocket) -> None:
        while True:
            for frames in await socket.receive_batch(_RECEIVE_MOST):
                self._take(frames)

    async def _watch(self, socket: DealerSocket) -> None:
        await socket.wait_lost(0)
        if self._liveness.is_alive:
            self._die("is gone")
        else:
            self._reopen()

    async def _flush(self, socket: DealerSocket) -> None:
        waiting = self._waiting
        while True:
            while waiting:
                await socket.send(waiting[0])
                waiting.popleft()
            await self._more_waits.park()

    def _take(self, frames: list[Frame]) -> None:
        try:
            packet = decode(frames)
        except RemoteProtocolError as error:
            self._metrics.count("damaged")
            if not self._is_accused:
                self._is_accused = True
                log.error("node %s sends damaged packets: %s", self._node, error)
            return
        message = packet.message
        incarnation = None
        if packet.ask_id:
            deliver = self._asks.pop(packet.ask_id, None)
            if deliver is not None:
                deliver(message)
        elif packet.to and isinstance(message, ErrorReply):
            until = trio.current_time() + _PUSH_BACK_S
            self._push_back[packet.to] = (
                until,
                error_of(message.code, message.message, message.field),
            )
        elif isinstance(message, Pong):
            incarnation = message.request_id
            self._n_beats = 0
            if self._liveness.is_reborn(incarnation):
                self._fail_asks("was restarted")
        if not self._liveness.is_alive:
            log.info("node %s answers again", self._node)
        self._is_heard = True
        self._liveness = self._liveness.heard(incarnation)
