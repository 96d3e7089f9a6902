"""The client for trio: many requests at a time over one connection to each gateway."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs
import trio

from transport.codec import Packet, encode
from transport.columns import Columns
from transport.errors import (
    Overloaded,
    TransportError,
    Unavailable,
)
from transport.exchange import (
    Attempts,
    Candidates,
    Question,
    RetryPolicy,
    Scores,
    expect,
    read_answer,
    read_json,
    read_scores,
    score_request,
)
from transport.messages import (
    Message,
    ModelsReply,
    ModelsRequest,
    Ping,
    Pong,
    ScoreReply,
    ScoreRequest,
    StatsReply,
    StatsRequest,
)
from transport.sockets import DealerSocket, Frame, SocketOptions, open_context

_RECEIVE_MOST = 64
_Answer = TypeVar("_Answer")


@attrs.define(eq=False)
class _Waiting:
    """A request in flight: its task sleeps until there is an answer or a failure."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    outcome: Message | TransportError | None = None


@attrs.define(eq=False)
class _Endpoint:
    """One gateway: the connection to it and what waits for its answers, by request id."""

    address: str
    socket: DealerSocket
    in_flight: dict[int, _Waiting] = attrs.field(factory=dict)

    async def receive(self) -> None:
        """Hand answers to those who wait for them; late ones find nobody."""
        while True:
            for frames in await self.socket.receive_batch(_RECEIVE_MOST):
                self._take(frames)

    async def watch(self, connected: trio.lowlevel.ParkingLot) -> None:
        """Wake those who look for a connection; fail what was in flight on one that is lost."""
        is_connected, n_lost = False, 0
        while True:
            before = n_lost
            is_connected, n_lost = await self.socket.wait_changed(is_connected, n_lost)
            if n_lost != before:
                self._fail_all(Unavailable(f"lost the connection to {self.address}"))
            if is_connected:
                connected.unpark_all()

    def _take(self, frames: Sequence[Frame]) -> None:
        request_id, outcome = read_answer(frames, self.address)
        if request_id is None:
            self._fail_all(outcome)
        elif (waiting := self.in_flight.get(request_id)) is not None:
            waiting.outcome = outcome
            waiting.answered.set()

    def _fail_all(self, failure: Message | TransportError) -> None:
        for waiting in self.in_flight.values():
            waiting.outcome = failure
            waiting.answered.set()


class Client:
    """Asks gateways for scores. ``connect`` makes one; any task may use it, many at a time.

    A request goes to the connected gateways in turn. If one refuses it as overloaded or
    unavailable, or is lost while it has the request, it is tried again, on the next, for as long as
    its budget lasts. Connections are made again in the background.
    """

    def __init__(self, endpoints: Sequence[_Endpoint], policy: RetryPolicy) -> None:
        self._endpoints = endpoints
        self._policy = policy
        self._turn = 0
        self._request_ids = itertools.count(1)
        self._connected = trio.lowlevel.ParkingLot()

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        *addresses: str,
        options: SocketOptions | None = None,
        policy: RetryPolicy | None = None,
    ) -> AsyncIterator[Client]:
        """Open a client of one or more gateways; connecting goes on in the background.

        Args:
            addresses: Such as ``tcp://127.0.0.1:7300``.
            options: Of the sockets.
            policy: When and how often requests are tried again.

        Raises:
            AddressError: One of ``addresses`` is none.
        """
        if not addresses:
            raise ValueError("want at least one address")
        failure: Exception | None = None
        # Nobody waits for requests that are still to leave when the client is closed.
        options = attrs.evolve(options or SocketOptions(), linger_s=0)
        async with open_context() as context:
            endpoints = [_Endpoint(each, DealerSocket(context, options)) for each in addresses]
            for endpoint in endpoints:
                endpoint.socket.connect(endpoint.address)
            client = cls(endpoints, policy or RetryPolicy())
            async with trio.open_nursery() as nursery:
                for endpoint in endpoints:
                    nursery.start_soon(endpoint.receive)
                    nursery.start_soon(endpoint.watch, client._connected)
                try:
                    yield client
                except Exception as error:
                    failure = error
                nursery.cancel_scope.cancel()
            for endpoint in endpoints:
                endpoint.socket.close()
        if failure is not None:
            # As the caller raised it: a nursery would have wrapped it in a group.
            raise failure

    async def score(
        self, *, model: str, user: Columns, candidates: Candidates, budget: float = 1.0
    ) -> Scores:
        """Return the scores of one user's candidates.

        Args:
            model: Its name; ``models`` tells which there are.
            user: Feature names to values.
            candidates: Feature names to columns, which is fastest as numpy arrays; or a sequence
                with one mapping of feature names to values for each candidate.
            budget: Seconds in which the answer is of use.

        Raises:
            InvalidRequest: The request is wrong; ``field`` names the feature.
            Overloaded: All gateways refused until the budget could bear no further attempt.
            Unavailable: There is no gateway, or none that can answer.
            DeadlineExceeded: The budget ran out.
            InternalError: The server failed.
            RemoteProtocolError: What answers does not speak the protocol.
        """
        return await self.score_request(score_request(model, user, candidates), budget=budget)

    async def score_request(self, request: ScoreRequest, *, budget: float = 1.0) -> Scores:
        """Send a request as it is but for its id and budget; for who has blocks at hand.

        Raises:
            TransportError: As ``score``.
        """
        return read_scores(await self._ask(request, ScoreReply, budget), request)

    async def models(self, *, budget: float = 5.0) -> dict[str, Any]:
        """Return the models that are served: name to version, features and outputs.

        Raises:
            TransportError: As ``score``.
        """
        return read_json((await self._ask(ModelsRequest(request_id=0), ModelsReply, budget)).models)

    async def ping(self, *, budget: float = 5.0) -> str:
        """Return a gateway's status: ``ready``, ``starting`` or ``draining``.

        Raises:
            TransportError: As ``score``.
        """
        return (await self._ask(Ping(request_id=0), Pong, budget)).status

    async def stats(self, *, reset: bool = False, budget: float = 5.0) -> dict[str, Any]:
        """Return a gateway's counters, times in microseconds; ``reset`` starts them anew.

        Raises:
            TransportError: As ``score``.
        """
        question = StatsRequest(request_id=0, reset=reset)
        return read_json((await self._ask(question, StatsReply, budget)).stats)

    async def _ask(self, question: Question, kind: type[_Answer], budget: float) -> _Answer:
        attempts = Attempts(budget, trio.current_time(), self._policy)
        while True:
            try:
                return await self._attempt(question, kind, attempts)
            except TransportError as error:
                wait_s = attempts.wait_s(error, trio.current_time())
            await trio.sleep(wait_s)

    async def _attempt(
        self, question: Question, kind: type[_Answer], attempts: Attempts
    ) -> _Answer:
        endpoint = await self._next_connected(attempts.deadline)
        request_id = next(self._request_ids)
        message = attempts.prepare(question, request_id, trio.current_time())
        if not endpoint.socket.try_send(encode(Packet("", 0, message))):
            raise Overloaded(f"{endpoint.address} takes no more requests")
        waiting = endpoint.in_flight[request_id] = _Waiting()
        try:
            with trio.move_on_at(attempts.deadline):
                await waiting.answered.wait()
        finally:
            del endpoint.in_flight[request_id]
        if waiting.outcome is None:
            raise attempts.time_out()
        return expect(waiting.outcome, kind)

    async def _next_connected(self, deadline: float) -> _Endpoint:
        while True:
            for _ in self._endpoints:
                endpoint = self._endpoints[self._turn]
                self._turn = (self._turn + 1) % len(self._endpoints)
                if endpoint.socket.connected:
                    return endpoint
            with trio.move_on_at(deadline) as scope:
                await self._connected.park()
            if scope.cancelled_caught:
                addresses = ", ".join(endpoint.address for endpoint in self._endpoints)
                raise Unavailable(f"no connection to {addresses}")
