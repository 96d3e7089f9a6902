"""The way to one server, for good: commands in, replies out, connected again whenever it is lost.

Everybody's commands go over one connection, one after the other, without waiting for each other's
replies, which come in the same order. Whoever gives up waiting leaves a place in the queue, so that
replies still find their owners.

A server that has something to answer and sends nothing for ``timeout_s`` is taken for dead: the
connection is dropped. While connecting fails, commands are refused at once; so a server that hangs
costs each of its askers their time only for the first ``timeout_s``.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import attrs
import trio

from actors.redis.connection import Connection, open_connection
from actors.redis.errors import LinkDown
from actors.redis.server import Address, Server
from actors.redis.wire import Reply

# Before connecting again, doubled for each failure in a row.
_FIRST_DELAY_S: Final = 0.02
_LONGEST_DELAY_S: Final = 1.0


@attrs.define(eq=False)
class Exchange:
    """Commands that were sent together, and their replies.

    Attributes:
        n: How many replies there will be.
        replies: Those that are there, in order.
        failure: Why there will be no more, or None.
    """

    n: int
    replies: list[Reply] = attrs.field(factory=list)
    failure: LinkDown | None = None
    done: trio.Event = attrs.field(factory=trio.Event)

    async def wait(self) -> list[Reply]:
        """Wait for all replies.

        Raises:
            LinkDown: The connection was lost before.
        """
        await self.done.wait()
        if self.failure is not None:
            raise self.failure
        return self.replies


class Link:
    """One server. ``run`` must be running for anything to happen."""

    def __init__(self, server: Server, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._server = server
        self._timeout_s = timeout_s
        self._down: LinkDown | None = None
        self._unsent: list[bytes] = []
        self._waiting: deque[Exchange] = deque()
        self._to_send = trio.Event()
        self._patience = trio.CancelScope()

    @property
    def is_down(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._down is not None

    def begin(self, packed: bytes, n: int) -> Exchange:
        """Send commands, as soon as there is a connection; never waits.

        Args:
            packed: ``n`` commands, one after the other.
            n: How many.

        Raises:
            LinkDown: There is no connection, and the last attempt to make one failed.
        """
        if self._down is not None:
            raise self._down
        exchange = Exchange(n)
        self._waiting.append(exchange)
        if len(self._waiting) == 1:
            self._be_patient()
        self._unsent.append(packed)
        self._to_send.set()
        return exchange

    async def run(self) -> None:
        """Connect, serve, and connect again, until cancelled; then nobody is left waiting."""
        delay_s = _FIRST_DELAY_S
        try:
            while True:
                try:
                    connection = await open_connection(
                        self._server, self.address, timeout_s=self._timeout_s
                    )
                except LinkDown as error:
                    self._down = error
                    self._fail(error)
                    await trio.sleep(delay_s)
                    delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
                    continue
                self._down = None
                since = trio.current_time()
                self._fail(await self._serve(connection))
                if trio.current_time() - since > _LONGEST_DELAY_S:
                    delay_s = _FIRST_DELAY_S
                await trio.sleep(delay_s)
        finally:
            self._down = LinkDown(f"{self.address}: nobody keeps this connection any more")
            self._fail(self._down)

    async def _serve(self, connection: Connection) -> LinkDown:
        """Serve one connection until it is lost; return how."""
        problem: LinkDown | None = None
        self._patience = trio.CancelScope()
        self._be_patient()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, connection)
                with self._patience:
                    try:
                        await self._receive(connection)
                    except LinkDown as error:
                        problem = error
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(connection.stream)
        return problem or LinkDown(
            f"{self.address}: no answer within {self._timeout_s * 1e3:.0f} ms"
        )

    async def _send(self, connection: Connection) -> None:
        while True:
            await self._to_send.wait()
            self._to_send = trio.Event()
            unsent, self._unsent = self._unsent, []
            try:
                await connection.send(b"".join(unsent))
            except LinkDown:
                return  # who receives learns of it, too

    async def _receive(self, connection: Connection) -> None:
        waiting = self._waiting
        while True:
            replies = await connection.receive()
            at = 0
            while at < len(replies):
                if not waiting:
                    raise LinkDown(f"{self.address}: a reply to nothing: {replies[at]!r:.60}")
                exchange = waiting[0]
                n_missing = exchange.n - len(exchange.replies)
                exchange.replies += replies[at : at + n_missing]
                at += n_missing
                if len(exchange.replies) == exchange.n:
                    waiting.popleft()
                    exchange.done.set()
            self._be_patient()

    def _be_patient(self) -> None:
        """Give the server its time anew, if there is something to answer."""
        now = trio.current_time()
        self._patience.deadline = now + self._timeout_s if self._waiting else math.inf

    def _fail(self, why: LinkDown) -> None:
        """Tell everybody who waits that no reply will come."""
        self._unsent.clear()
        self._to_send = trio.Event()
        waiting = list(self._waiting)
        self._waiting.clear()
        for exchange in waiting:
            exchange.failure = why
            exchange.done.set()
