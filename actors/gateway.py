"""The gateway: takes clients' requests, parses their features, scatters lookups, answers.

Requests that are at hand together travel together from here on, as one batch a model: that keeps
Python's cost a message, not a request. At low load a batch is one request and waits for nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import numpy as np
import trio
from attrs.validators import ge, instance_of, optional
from numpy.typing import NDArray

from actors.asker import Asker
from actors.inflight import InFlight, Pending
from actors.options import read_options
from actors.restore import Restorer
from actors.scatter import ModelFront, open_front
from actors.versions import QUESTIONS, Versions
from kernels.bundle.load import Bundle
from kernels.errors import LookupFailed
from kernels.features.blocks import ParsedBatch, RawRequest
from runtime.actor import Context, Reply
from runtime.admission import Admission
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from transport.codec import Packet, decode, encode
from transport.columns import decode_rows
from transport.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RemoteProtocolError,
    RequestError,
    Unavailable,
)
from transport.messages import (
    ErrorReply,
    Message,
    ModelsReply,
    ModelsRequest,
    PartsLate,
    Ping,
    Pong,
    ScoreRequest,
    ScoresBatch,
    StatsReply,
    StatsRequest,
)
from transport.sockets import Frame, RouterSocket, SocketOptions, open_context
from transport.values import ERROR_CODES, OK

# A deadline is noticed at most this much late; finer would only cost wake-ups.
_SWEEP_S = 0.002
_UNAVAILABLE = ERROR_CODES.index("unavailable")
# Messages taken at a time: bounds the time between two looks at the other source of them.
_RECEIVE_MOST = 256
# Of the number of a batch: 2 ** 32 lives, of 2 ** 28 batches each before they run into the next.
_LIFE_BITS, _SEQ_BITS = 32, 28
# An executor that does not answer a request for its statistics in this time is left out of them.
_STATS_BUDGET_S = 0.5


@attrs.frozen(kw_only=True)
class GatewayOptions:
    """The options of a gateway in a topology file.

    Attributes:
        listen: ZeroMQ address for clients, ``tcp://127.0.0.1:7400``; none for use in process only.
        max_in_flight: High-water mark: above it, requests are answered ``overloaded`` at once. So
            they are above a lower one, if more in flight would mean late answers
            (``runtime.admission``).
        max_candidates: The most candidates that a request may have.
        gather_us: While others are in flight, how long arriving requests gather before they are
            parsed together, in microseconds. A batch costs about 0.3 ms whatever its size, so this
            buys throughput; a request that finds the gateway idle never waits.
        max_batch_rows: A batch is closed once it has that many rows, so that one batch does not
            hold the others up for long.
    """

    listen: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    max_in_flight: int = attrs.field(default=4096, validator=[instance_of(int), ge(1)])
    max_candidates: int = attrs.field(default=50_000, validator=[instance_of(int), ge(1)])
    gather_us: int = attrs.field(default=2000, validator=[instance_of(int), ge(0)])
    max_batch_rows: int = attrs.field(default=8192, validator=[instance_of(int), ge(1)])


@attrs.frozen(eq=False)
class _Arrival:
    """A request that was received; ``route`` is a client's identity or an ask's reply."""

    request: ScoreRequest
    route: bytes | Reply
    at: float


class Gateway:
    """Serves clients. Answers each request once: scores, or an error that says why."""

    # Its answers come back through its mailbox: on a stop it refuses new requests, waits for the
    # answers to those under way, and only then returns.
    drains_itself = True

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = read_options(GatewayOptions, context.name, context.options)
        self._metrics = Metrics()
        self._asker = Asker(context, self._metrics, self._give_up)
        self._flight = InFlight(self._asker.forget)
        self._versions = Versions(
            context, list(context.topology.models), self._open, n_in_flight=self._flight.n_of
        )
        self._restorer = Restorer(context, self._versions)
        # From where no gateway before this one has been: what is still under way for that one
        # must not be taken for an answer to this.
        self._seq = itertools.count(secrets.randbits(_LIFE_BITS) << _SEQ_BITS)
        self._socket: RouterSocket | None = None
        self._admission = Admission(
            self._options.max_in_flight, min(16, self._options.max_in_flight)
        )
        self._entered = trio.Event()  # of a request that is due before the next look
        self._sweep_at = math.inf
        self._left = trio.Event()

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the node stops this actor and every request has its answer."""
        await self._versions.start()
        async with self._listening(), trio.open_nursery() as nursery:
            if self._socket is not None:
                nursery.start_soon(self._serve_clients, self._socket, nursery)
            self._asker.start(nursery)
            nursery.start_soon(self._serve_mailbox, mailbox, nursery)
            nursery.start_soon(self._sweep)
            nursery.start_soon(self._restorer.run)
            task_status.started()
            await self._context.stopping.wait()
            while self._flight.n_requests:
                self._left = trio.Event()
                await self._left.wait()
            mailbox.close()
            nursery.cancel_scope.cancel()

    def _open(self, model: str, bundle: Bundle, progress: Callable[[float], None]) -> ModelFront:
        """Make what this gateway needs of a bundle: in a thread, as its features may be many."""
        return open_front(self._context, model, bundle, max_candidates=self._options.max_candidates)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        """Bind the clients' socket, if there is to be one; on exit let the last replies leave."""
        if self._options.listen is None:
            yield
            return
        options = SocketOptions(high_water_mark=self._options.max_in_flight)
        async with open_context() as context, RouterSocket(context, options) as socket:
            socket.bind(self._options.listen)
            self._socket = socket
            yield

    # Arrivals

    async def _serve_clients(self, socket: RouterSocket, nursery: trio.Nursery) -> None:
        while True:
            received = await socket.receive_batch(_RECEIVE_MOST)
            now = trio.current_time()
            arrivals = []
            for identity, frames in received:
                try:
                    message = decode(frames).message
                except RemoteProtocolError as error:
                    self._metrics.count("damaged")
                    self._refuse(identity, error.request_id or 0, "invalid", str(error))
                    continue
                if type(message) is ScoreRequest:
                    arrivals.append(_Arrival(message, identity, now))
                else:
                    self._serve_other(message, identity, nursery)
            self._admit(arrivals)
            if self._flight.n_requests and self._options.gather_us:
                await trio.sleep(self._options.gather_us * 1e-6)

    async def _serve_mailbox(self, mailbox: Mailbox, nursery: trio.Nursery) -> None:
        while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
            arrivals = []
            for envelope in envelopes:
                message = envelope.message
                if type(message) is ScoresBatch:
                    self._settle(message)
                elif type(message) is PartsLate:
                    self._asker.late(message)
                    if _UNAVAILABLE in message.codes:  # another replica may do, for now
                        self._restorer.suspect()
                elif isinstance(message, QUESTIONS):
                    self._versions.serve(envelope, nursery)
                elif envelope.reply is None:
                    self._metrics.count("strays")
                elif type(message) is ScoreRequest:
                    arrivals.append(_Arrival(message, envelope.reply, envelope.received_at))
                else:
                    self._serve_other(message, envelope.reply, nursery)
            self._admit(arrivals)

    def _serve_other(self, message: Message, route: bytes | Reply, nursery: trio.Nursery) -> None:
        if isinstance(message, Ping):
            status = "draining" if self._context.stopping.is_set() else "ready"
            self._answer(route, Pong(request_id=message.request_id, status=status))
        elif isinstance(message, ModelsRequest):
            versions = self._versions
            models = json.dumps({name: versions.of(name).describe() for name in versions.current})
            self._answer(route, ModelsReply(request_id=message.request_id, models=models))
        elif isinstance(message, StatsRequest):
            nursery.start_soon(self._answer_stats, message, route)
        elif isinstance(message, ErrorReply):
            self._metrics.count("strays")  # two that answer each other's errors would never end
        else:
            request_id = getattr(message, "request_id", 0)
            problem = f"a client cannot send {type(message).__name__}"
            self._refuse(route, request_id, "invalid", problem)

    def _admit(self, arrivals: Sequence[_Arrival]) -> None:
        """Refuse what can be refused unread; send the rest on, one batch a model."""
        by_model: dict[str, list[_Arrival]] = {}
        room = self._admission.limit - self._flight.n_requests
        for arrival in arrivals:
            refusal = self._refusal(arrival.request, room)
            if refusal is not None:
                self._refuse(arrival.route, arrival.request.request_id, *refusal)
            elif arrival.request.n_candidates == 0:
                model = self._versions.of(arrival.request.model)
                self._answer(arrival.route, model.no_scores(arrival.request.request_id))
            else:
                room -= 1
                by_model.setdefault(arrival.request.model, []).append(arrival)
        for name, of_model in by_model.items():
            for chunk in _chunks(of_model, self._options.max_batch_rows):
                self._parse(self._versions.of(name), chunk)

    def _refusal(self, request: ScoreRequest, room: int) -> tuple[str, str, str] | None:
        """Return code, message and field if a request is refused unread."""
        if self._context.stopping.is_set():
            return "unavailable", "the gateway is draining", ""
        if request.model not in self._versions.current:
            known = ", ".join(sorted(self._versions.current))
            return "invalid", f"model: no model {request.model!r} here; there are {known}", "model"
        if request.n_candidates > self._options.max_candidates:
            limit = self._options.max_candidates
            problem = f"n_candidates: {request.n_candidates} is over the limit of {limit}"
            return "invalid", problem, "n_candidates"
        if request.budget_us <= 0:
            return "deadline", "the budget was spent before the request arrived", ""
        if room <= 0:
            limit = self._admission.limit
            return "overloaded", f"{limit} requests are in flight, as many as can be", ""
        return None

    def _parse(self, model: ModelFront, arrivals: Sequence[_Arrival]) -> None:
        raw: list[RawRequest] = []
        readable: list[_Arrival] = []
        for arrival in arrivals:
            try:
                raw.append(_raw_request(arrival.request))
            except InvalidRequest as error:
                request_id = arrival.request.request_id
                self._refuse(arrival.route, request_id, "invalid", str(error), error.field)
            else:
                readable.append(arrival)
        if not raw:
            return
        parsed = model.parser.parse(raw)
        for position, problem in parsed.failed.items():
            request_id = readable[position].request.request_id
            route = readable[position].route
            self._refuse(route, request_id, "invalid", str(problem), problem.field)
        if len(parsed.parsed):
            self._scatter(model, parsed, [readable[position] for position in parsed.parsed])

    def _scatter(
        self, model: ModelFront, parsed: ParsedBatch, arrivals: Sequence[_Arrival]
    ) -> None:
        try:
            wanted = model.wanted(parsed)
        except LookupFailed as error:  # the parser has let through what no table has
            for arrival in arrivals:
                self._refuse(arrival.route, arrival.request.request_id, "internal", str(error))
            return
        now = trio.current_time()
        pending = [_pending(arrival, model.version, now) for arrival in arrivals]
        budgets_us = np.array([(request.deadline - now) * 1e6 for request in pending])
        for request in pending:
            self._admission.admitted(request.deadline - request.arrived)
        self._metrics.count("batches")
        # Those that were received together have waited alike.
        self._metrics.observe("parse_us", (now - pending[0].arrived) * 1e6, len(pending))
        # One that is away has nothing in flight and comes first: then the batch is the next one's.
        for executor in sorted(model.executors, key=lambda ref: self._flight.rows_at(ref.name)):
            seq = next(self._seq)
            scattered = model.messages(
                parsed,
                wanted,
                np.maximum(budgets_us, 0).astype(np.int64),
                gateway=self._context.name,
                seq=seq,
                executor=executor.name,
            )
            self._flight.add(seq, pending, executor.name)
            try:
                executor.tell(scattered.head)
            except (Overloaded, Unavailable) as error:
                problem: RequestError = error
                refused = self._flight.fail(seq)
                continue
            if min(request.deadline for request in pending) < self._sweep_at:
                self._entered.set()
            if scattered.device is not None:
                try:
                    executor.tell(scattered.device)
                except (Overloaded, Unavailable) as error:
                    self._give_up(seq, error.code, str(error))
                    return
            deadline = max(request.deadline for request in pending)
            self._asker.begin(seq, model, scattered, deadline)
            return
        for request in refused:
            self._refuse(request.route, request.request_id, problem.code, str(problem))

    def _give_up(self, seq: int, code: str, message: str) -> None:
        """Answer all that is left of a batch with an error."""
        for request in self._flight.fail(seq):
            self._refuse(request.route, request.request_id, code, message)
        self._left.set()

    # Answers

    def _settle(self, scores: ScoresBatch) -> None:
        """Answer the requests of a batch that an executor, or a shard for it, is done with."""
        now = trio.current_time()
        start = 0
        self._asker.settled(scores)
        degraded = scores.degraded.tolist() or [0] * len(scores.requests)
        settled = self._flight.settle(scores.seq, scores.requests.tolist())
        outcomes = zip(settled, scores.codes.tolist(), degraded, strict=False)
        for (request, wanted), code, is_degraded in outcomes:
            if code != OK:
                if wanted:
                    name = ERROR_CODES[code]
                    self._refuse(request.route, request.request_id, name, scores.message)
                continue
            stop = start + request.n_rows
            if wanted:
                self._answer_scores(request, scores.scores[start:stop], bool(is_degraded))
            start = stop
        self._observe(settled, scores, now)
        self._left.set()

    def _observe(
        self, settled: list[tuple[Pending, bool]], scores: ScoresBatch, now: float
    ) -> None:
        """Count the stages' times: those of one batch arrived, and are answered, together."""
        if not settled:
            return
        n, first = len(settled), settled[0][0]
        n_wanted = sum(wanted for _, wanted in settled)
        self._admission.left(n_wanted, now - first.arrived, self._flight.n_requests, now)
        inside_us = scores.join_us + scores.queue_us + scores.compute_us
        self._metrics.count("answered", n)
        self._metrics.observe("join_us", scores.join_us, n)
        self._metrics.observe("queue_us", scores.queue_us, n)
        self._metrics.observe("compute_us", scores.compute_us, n)
        self._metrics.observe("reply_us", (now - first.parsed) * 1e6 - inside_us, n)
        self._metrics.observe("total_us", (now - first.arrived) * 1e6, n)

    async def _sweep(self) -> None:
        """Answer those whose budget ran out, whoever holds them up."""
        while True:
            deadline = self._flight.next_deadline()
            self._sweep_at = math.inf
            if deadline is not None:
                self._sweep_at = max(deadline, trio.current_time() + _SWEEP_S)
            self._entered = trio.Event()
            with trio.move_on_at(self._sweep_at):
                await self._entered.wait()
                continue
            now = trio.current_time()
            expired = self._flight.expire(now)
            for request in expired:
                self._refuse(request.route, request.request_id, "deadline", "the budget ran out")
            if expired:
                longest = max(now - request.arrived for request in expired)
                self._admission.left(len(expired), longest, self._flight.n_requests, now)
            self._left.set()

    async def _answer_stats(self, message: StatsRequest, route: bytes | Reply) -> None:
        """Answer with this actor's statistics, and those of the models' shards and executors."""
        names = {
            name
            for model in self._context.topology.models.values()
            for name in (*model.shards, *model.executors)
        }
        self._asker.count()
        stats: dict[str, Any] = {
            self._context.name: {
                **self._metrics.snapshot(),
                "replicas_away": self._asker.n_dead,
            }
        }

        async def ask(name: str) -> None:
            try:
                reply = await self._context.ref(name).ask(message, budget=_STATS_BUDGET_S)
            except (Overloaded, Unavailable, DeadlineExceeded) as error:
                stats[name] = {"error": error.code}
            else:
                if isinstance(reply, StatsReply):
                    stats[name] = json.loads(reply.stats)

        async with trio.open_nursery() as nursery:
            for name in sorted(names):
                nursery.start_soon(ask, name)
        if message.reset:
            self._metrics.reset()
        self._answer(route, StatsReply(request_id=message.request_id, stats=json.dumps(stats)))

    def _answer_scores(self, request: Pending, scores: NDArray[np.float32], degraded: bool) -> None:
        model = self._versions.ready[request.model, request.version]
        self._metrics.count("answered_rows", request.n_rows)
        if degraded:
            self._restorer.suspect()
            self._metrics.count("answered_degraded")
        request_id, route = request.request_id, request.route
        if isinstance(route, bytes):
            self._send(route, model.encoder.encode(request_id, scores, degraded=degraded))
        else:
            route(model.reply(request_id, scores, degraded=degraded))

    def _refuse(
        self, route: bytes | Reply, request_id: int, code: str, message: str, field: str = ""
    ) -> None:
        self._metrics.count(f"refused_{code}")
        if code == "unavailable":
            self._restorer.suspect()
        reply = ErrorReply(request_id=request_id, code=code, message=message, field=field)
        self._answer(route, reply)

    def _answer(self, route: bytes | Reply, message: Message) -> None:
        if isinstance(route, bytes):
            self._send(route, encode(Packet(to="", ask_id=0, message=message)))
        else:
            route(message)

    def _send(self, identity: bytes, frames: list[Frame]) -> None:
        if self._socket is not None and not self._socket.try_send(identity, frames):
            # The client is gone, or does not read what it asked for.
            self._metrics.count("undeliverable")


def _raw_request(request: ScoreRequest) -> RawRequest:
    if not request.rows:
        return RawRequest(request.n_candidates, request.blocks)
    n_candidates, blocks = decode_rows(request.rows)
    if n_candidates != request.n_candidates:
        raise InvalidRequest(
            f"n_candidates: {request.n_candidates}, but there are {n_candidates} rows",
            "n_candidates",
        )
    return RawRequest(n_candidates, blocks)


def _pending(arrival: _Arrival, version: str, now: float) -> Pending:
    return Pending(
        request_id=arrival.request.request_id,
        route=arrival.route,
        model=arrival.request.model,
        version=version,
        n_rows=arrival.request.n_candidates,
        arrived=arrival.at,
        parsed=now,
        deadline=arrival.at + arrival.request.budget_us * 1e-6,
    )


def _chunks(arrivals: Sequence[_Arrival], max_rows: int) -> Iterator[Sequence[_Arrival]]:
    """Yield runs of arrivals, each of at most ``max_rows`` rows or of a single request."""
    first, n_rows = 0, 0
    for position, arrival in enumerate(arrivals):
        n_rows += arrival.request.n_candidates
        if n_rows > max_rows and position > first:
            yield arrivals[first:position]
            first, n_rows = position, arrival.request.n_candidates
    yield arrivals[first:]
