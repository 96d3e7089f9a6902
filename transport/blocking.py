"""The client for threads: plain ZeroMQ polling, no event loop of any kind."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, TypeVar

import attrs
import zmq

from transport import _zmq
from transport._monitor import Monitor
from transport._zmq import SocketOptions
from transport.codec import Packet, encode
from transport.columns import Columns
from transport.errors import AddressError, Overloaded, SocketClosed, TransportError, Unavailable
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

_IN: Final = int(zmq.POLLIN)
_EVENTS: Final = int(zmq.EVENTS)
_Answer = TypeVar("_Answer")


class BlockingClient:
    """Asks gateways for scores, from any number of threads at a time.

    It opens one connection to each gateway for each thread that is asking at one time, and keeps
    them for the next. Otherwise as ``transport.client.Client``. Make it after forking: a child
    cannot use what its parent opened.
    """

    def __init__(
        self,
        *addresses: str,
        options: SocketOptions | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        """Open a client of one or more gateways.

        Args:
            addresses: Such as ``tcp://127.0.0.1:7300``.
            options: Of the sockets.
            policy: When and how often requests are tried again.

        Raises:
            AddressError: One of ``addresses`` is none.
        """
        if not addresses:
            raise ValueError("want at least one address")
        # Nobody waits for requests that are still to leave when the client is closed.
        self._options = attrs.evolve(options or SocketOptions(), linger_s=0)
        self._addresses = addresses
        self._policy = policy or RetryPolicy()
        self._request_ids = itertools.count(1)
        self._lock = threading.Lock()
        self._closed = False
        self._n_busy = 0
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            self._idle = [_Channel(self._context, self._addresses, self._options)]
        except AddressError:
            self._context.term()
            raise

    def close(self) -> None:
        """Close; requests that other threads wait for are finished."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for channel in idle:
                channel.close()
            if not self._n_busy:
                self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(
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
            SocketClosed: The client is closed.
        """
        return self.score_request(score_request(model, user, candidates), budget=budget)

    def score_request(self, request: ScoreRequest, *, budget: float = 1.0) -> Scores:
        """Send a request as it is but for its id and budget; for who has blocks at hand.

        Raises:
            TransportError: As ``score``.
        """
        return read_scores(self._ask(request, ScoreReply, budget), request)

    def models(self, *, budget: float = 5.0) -> dict[str, Any]:
        """Return the models that are served: name to version, features and outputs.

        Raises:
            TransportError: As ``score``.
        """
        return read_json(self._ask(ModelsRequest(request_id=0), ModelsReply, budget).models)

    def ping(self, *, budget: float = 5.0) -> str:
        """Return a gateway's status: ``ready``, ``starting`` or ``draining``.

        Raises:
            TransportError: As ``score``.
        """
        return self._ask(Ping(request_id=0), Pong, budget).status

    def stats(self, *, reset: bool = False, budget: float = 5.0) -> dict[str, Any]:
        """Return a gateway's counters, times in microseconds; ``reset`` starts them anew.

        Raises:
            TransportError: As ``score``.
        """
        question = StatsRequest(request_id=0, reset=reset)
        return read_json(self._ask(question, StatsReply, budget).stats)

    def _ask(self, question: Question, kind: type[_Answer], budget: float) -> _Answer:
        attempts = Attempts(budget, time.monotonic(), self._policy)
        with self._channel() as channel:
            while True:
                request_id = next(self._request_ids)
                try:
                    return expect(channel.ask(question, request_id, attempts), kind)
                except TransportError as error:
                    wait_s = attempts.wait_s(error, time.monotonic())
                time.sleep(wait_s)

    @contextmanager
    def _channel(self) -> Iterator[_Channel]:
        """Lend a channel to this thread alone."""
        with self._lock:
            if self._closed:
                raise SocketClosed("the client is closed")
            self._n_busy += 1
            channel = self._idle.pop() if self._idle else None
        try:
            if channel is None:
                channel = _Channel(self._context, self._addresses, self._options)
            yield channel
        except TransportError:
            raise
        except BaseException:  # in the midst of a message, perhaps
            if channel is not None:
                channel.close()
                channel = None
            raise
        finally:
            with self._lock:
                self._n_busy -= 1
                if channel is not None and self._closed:
                    channel.close()
                elif channel is not None:
                    self._idle.append(channel)
                if self._closed and not self._n_busy:
                    self._context.term()


@attrs.frozen(eq=False)
class _Endpoint:
    address: str
    socket: zmq.Socket[Any]
    monitor: Monitor


class _Channel:
    """A connection to each gateway, for one request at a time."""

    def __init__(
        self, context: zmq.Context[Any], addresses: Sequence[str], options: SocketOptions
    ) -> None:
        self._endpoints: list[_Endpoint] = []
        self._turn = 0
        try:
            for address in addresses:
                socket = _zmq.make_socket(context, zmq.DEALER, options)
                self._endpoints.append(_Endpoint(address, socket, Monitor(socket)))
                _zmq.connect(socket, address)
        except AddressError:
            self.close()
            raise

    def close(self) -> None:
        for endpoint in self._endpoints:
            endpoint.socket.close()
            endpoint.monitor.close()

    def ask(self, question: Question, request_id: int, attempts: Attempts) -> _Outcome:
        """Send a question to the next gateway and wait for what becomes of it."""
        endpoint = self._next_connected(attempts.deadline)
        n_lost = endpoint.monitor.n_lost
        message = attempts.prepare(question, request_id, time.monotonic())
        if not _zmq.send_nowait(endpoint.socket, encode(Packet("", 0, message))):
            raise Overloaded(f"{endpoint.address} takes no more requests")
        while True:
            outcome = _find_answer(endpoint, request_id)
            if outcome is not None:
                return outcome
            endpoint.monitor.refresh()
            if endpoint.monitor.n_lost != n_lost:
                raise Unavailable(f"lost the connection to {endpoint.address}")
            sockets = [endpoint.socket, endpoint.monitor.pair]
            if not _poll(sockets, attempts.deadline):
                raise attempts.time_out()

    def _next_connected(self, deadline: float) -> _Endpoint:
        while True:
            for _ in self._endpoints:
                endpoint = self._endpoints[self._turn]
                self._turn = (self._turn + 1) % len(self._endpoints)
                endpoint.monitor.refresh()
                # Lets go of a connection that is lost, which a send would still feed.
                _zmq.get(endpoint.socket, _EVENTS)
                if endpoint.monitor.connected:
                    return endpoint
            if not _poll([endpoint.monitor.pair for endpoint in self._endpoints], deadline):
                raise Unavailable(
                    f"no connection to {', '.join(e.address for e in self._endpoints)}"
                )


_Outcome = Message | TransportError


def _find_answer(endpoint: _Endpoint, request_id: int) -> _Outcome | None:
    """Return the answer to a request if it is at hand, passing over late ones to others."""
    while _zmq.get(endpoint.socket, _EVENTS) & _IN:
        concerned, outcome = read_answer(_zmq.receive_nowait(endpoint.socket), endpoint.address)
        if concerned is None or concerned == request_id:
            return outcome
    return None


def _poll(sockets: Sequence[zmq.Socket[Any]], deadline: float) -> bool:
    """Wait until one of the sockets has a message; false once the deadline has come."""
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket, zmq.POLLIN)
    left_s = deadline - time.monotonic()
    return left_s > 0 and bool(poller.poll(math.ceil(left_s * 1000)))
