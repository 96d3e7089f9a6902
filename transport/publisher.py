"""The client of an updater: sends updates, some ahead of the answers, in order and without a gap.

What is refused for now, or lost with a connection, is sent again, with all that came after it. A
source's positions tell the updater what it has already, so nothing is applied twice.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import attrs
import numpy as np
import trio

from transport.codec import Packet, encode
from transport.errors import RemoteProtocolError, TransportError, Unavailable, error_of
from transport.exchange import read_answer
from transport.messages import ErrorReply, Message
from transport.sockets import DealerSocket, SocketOptions, open_context
from transport.updates import UpdateReply, UpdateRequest

WINDOW: Final = 16
"""Updates that are sent ahead of their answers; the updater syncs its disk once for all of them."""

_RECEIVE_MOST: Final = 64
_AGAIN_S: Final = 0.05
OnReply: TypeAlias = Callable[[UpdateRequest, UpdateReply], None]

_FOR_NOW: Final = ("overloaded", "unavailable")


@attrs.define(eq=False)
class _Pending:
    """A request that has no answer yet, under the id that it was last sent with."""

    request: UpdateRequest
    answered: Callable[[UpdateReply], None]
    request_id: int = 0


class Publisher:
    """Publishes updates to one updater; ``connect`` makes one. One task publishes.

    Attributes:
        n_again: How many requests had to be sent again.
    """

    def __init__(
        self, socket: DealerSocket, address: str, on_reply: OnReply, patience_s: float, window: int
    ) -> None:
        self.n_again = 0
        self._socket = socket
        self._address = address
        self._on_reply = on_reply
        self._patience_s = patience_s
        self._window = window
        self._ids = itertools.count(1)
        self._pending: deque[_Pending] = deque()
        self._sending = trio.Lock()
        self._broken = trio.Event()
        self._news = trio.Event()
        self._failure: TransportError | None = None
        self._why = "no answer "

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        address: str,
        *,
        on_reply: OnReply = lambda request, reply: None,
        patience_s: float = 30.0,
        window: int = WINDOW,
    ) -> AsyncIterator[Publisher]:
        """Open a publisher; connecting goes on in the background.

        Args:
            address: Where the updater listens.
            on_reply: Called with each update and its answer, in order.
            patience_s: For how long a call may wait for an answer.
            window: Updates that are sent ahead of their answers.

        Raises:
            AddressError: ``address`` is none.
        """
        failure: Exception | None = None
        async with (
            open_context() as context,
            DealerSocket(context, SocketOptions(linger_s=0)) as socket,
        ):
            socket.connect(address)
            publisher = cls(socket, address, on_reply, patience_s, window)
            async with trio.open_nursery() as nursery:
                for task in (publisher._receive, publisher._watch, publisher._mend):
                    nursery.start_soon(task)
                try:
                    yield publisher
                except Exception as error:
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            # As the caller raised it: a nursery would have wrapped it in a group.
            raise failure

    async def publish(self, request: UpdateRequest) -> None:
        """Send an update, once there is room; its answer goes to ``on_reply``.

        Args:
            request: Its id is of no matter. Of a source, positions count from 1 without a gap.

        Raises:
            InvalidRequest: This or an earlier one cannot be applied.
            Unavailable: The updater does not answer, or refuses for too long.
            RemoteProtocolError: What answers does not speak the protocol.
        """
        await self._put(_Pending(request, functools.partial(self._on_reply, request)))

    async def drain(self) -> None:
        """Wait until all is answered.

        Raises:
            TransportError: As ``publish``.
        """
        while self._pending:
            await self._wait_news()

    async def ask(self, model: str, source: str = "") -> UpdateReply:
        """Return how far a model's updates have come, and ``position``, how far a source has.

        Raises:
            TransportError: As ``publish``.
        """
        request = UpdateRequest(
            request_id=0,
            model=model,
            table="",
            source=source,
            keys=np.empty(0, np.int64),
            rows=np.empty((0, 0), np.float32),
        )
        answers: list[UpdateReply] = []
        await self._put(_Pending(request, answers.append))
        while not answers:
            await self._wait_news()
        return answers[0]

    async def _put(self, pending: _Pending) -> None:
        while len(self._pending) >= self._window:
            await self._wait_news()
        self._check()
        with trio.move_on_after(self._patience_s) as patience:
            async with self._sending:
                self._pending.append(pending)
                if not self._broken.is_set():
                    await self._send(pending)
        if patience.cancelled_caught:
            raise Unavailable(f"{self._address}: no connection within {self._patience_s:g} s")

    async def _wait_news(self) -> None:
        self._check()
        self._news = trio.Event()
        with trio.move_on_after(self._patience_s) as patience:
            await self._news.wait()
        self._check()
        if patience.cancelled_caught:
            raise Unavailable(f"{self._address}: {self._why}within {self._patience_s:g} s")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _send(self, pending: _Pending) -> None:
        pending.request_id = next(self._ids)
        request = attrs.evolve(pending.request, request_id=pending.request_id)
        await self._socket.send(encode(Packet("", 0, request)))

    # Tasks

    async def _receive(self) -> None:
        while True:
            for frames in await self._socket.receive_batch(_RECEIVE_MOST):
                self._take(*read_answer(frames, self._address))

    def _take(self, request_id: int | None, answer: Message | TransportError) -> None:
        if not self._pending:
            return
        if isinstance(answer, UpdateReply):
            # The updater answers in order; a reply to what was sent before that again is none.
            if self._pending[0].request_id == request_id:
                self._why = "no answer "
                self._pending.popleft().answered(answer)
                self._news.set()
        elif isinstance(answer, ErrorReply) and answer.code in _FOR_NOW:
            if any(pending.request_id == request_id for pending in self._pending):
                self._why = f"{answer.message}; no better answer "
                self._broken.set()
        elif request_id is None or any(each.request_id == request_id for each in self._pending):
            self._failure = (
                error_of(answer.code, answer.message, answer.field)
                if isinstance(answer, ErrorReply)
                else answer
                if isinstance(answer, TransportError)
                else RemoteProtocolError(f"{self._address}: a {type(answer).__name__}")
            )
            self._news.set()

    async def _watch(self) -> None:
        n_lost = 0
        while True:
            n_lost = await self._socket.wait_lost(n_lost)
            self._why = "no connection "
            self._broken.set()

    async def _mend(self) -> None:
        """Send again, in order, whatever has no answer."""
        while True:
            await self._broken.wait()
            await trio.sleep(_AGAIN_S)
            async with self._sending:
                self._broken = trio.Event()
                self.n_again += len(self._pending)
                for pending in list(self._pending):
                    if pending in self._pending:
                        await self._send(pending)
