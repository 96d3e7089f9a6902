"""The updater: takes new rows from publishers, numbers and keeps them, feeds them to the shards.

An update is acknowledged once it is durable here; that all replicas have applied it is told apart
from that (``UpdateReply.applied``). Each version of a model that is loaded has a stream of its own
(``update_stream.py``), of which each replica is fed what concerns it (``update_feed.py``).

    [nodes.updater.actors.updater]
    class = "actors.updater.Updater"
    listen = "tcp://127.0.0.1:7410"
    state = "/var/lib/tensorbatch/updater"

A publisher sends ``UpdateRequest`` to ``listen`` (``python -m actors.update`` does), or publishes
the same frames on a PUB socket that the option ``subscribe`` names, where nobody answers: what a
subscriber misses is gone, and shows only as a gap in the positions of its source.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs
import trio
import zmq
from attrs.validators import deep_iterable, ge, in_, instance_of, optional

from actors.options import read_options
from actors.update_fed import FedVersion
from actors.update_intake import Arrival, Intake
from actors.update_routes import Routes, updater_of
from actors.update_stream import UpdateStream
from actors.usual import answer_usual
from actors.versions import QUESTIONS, Versions
from kernels.bundle.load import Bundle
from kernels.store.log import Fsync
from runtime.actor import Context, Envelope
from runtime.errors import StartError
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from runtime.topology import Topology
from transport.codec import Packet, decode, encode
from transport.errors import RemoteProtocolError
from transport.messages import ErrorReply, Message
from transport.sockets import RouterSocket, SubscriberSocket, open_context
from transport.updates import UpdateAck, UpdateRequest

log = logging.getLogger(__name__)

# Updates that are made durable by one fsync.
_RECEIVE_MOST: Final = 64
_TRIM_S: Final = 1.0
_REDIS: Final = "actors.redis.shard.RedisShard"
# A subscriber whose updates are refused for now tries again after this.
_HOLD_S: Final = 0.1


def _as_tuple(value: object) -> object:
    return (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    )


_TEXTS: Final = deep_iterable(instance_of(str), instance_of(tuple))


@attrs.frozen(kw_only=True)
class UpdaterOptions:
    """The options of an updater in a topology file.

    Attributes:
        listen: ZeroMQ address for publishers; none for use in process only.
        subscribe: Addresses of PUB sockets to hear.
        models: Whose updates it takes; by default those of all models.
        state: Folder for what was acknowledged; by default below the run folder, which may be on a
            disk that a restart of the machine clears. Give one that lasts.
        fsync: ``batch``: what is acknowledged survives the machine. ``never``: only the process.
        keep_bytes: More than this is not kept for replicas that do not answer. One that comes back
            too late is told to take over what another of its group has.
        max_unapplied_bytes: Above this, publishers are answered ``overloaded`` until the replicas
            that answer have caught up.
    """

    listen: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    subscribe: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_TEXTS)
    models: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_TEXTS)
    state: str | None = attrs.field(default=None, validator=optional(instance_of(str)))
    fsync: Fsync = attrs.field(default="batch", validator=in_(("batch", "never")))
    keep_bytes: int = attrs.field(default=1 << 30, validator=[instance_of(int), ge(1)])
    max_unapplied_bytes: int = attrs.field(default=128 << 20, validator=[instance_of(int), ge(1)])


class Updater:
    """Takes updates, and sees to it that every replica applies them."""

    def __init__(self, context: Context) -> None:
        options = read_options(UpdaterOptions, context.name, context.options)
        topology = context.topology
        for model in options.models:
            if model not in topology.models:
                known = ", ".join(sorted(topology.models))
                raise StartError(f"actor {context.name}: no model {model!r}; there are {known}")
        self._context = context
        self._options = options
        self._metrics = Metrics()
        models = [name for name in topology.models if updater_of(topology, name) == context.name]
        for name in models:
            _check_shards(topology, name)
        self._versions = Versions(
            context, models, self._open, on_ready=self._start, close_version=self._close
        )
        self._intake = Intake(self._versions, self._metrics, options.max_unapplied_bytes)
        self._streams: list[UpdateStream] = []
        self._heard: dict[tuple[str, str], int] = {}
        self._nursery: trio.Nursery | None = None

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed: what was acknowledged is on disk."""
        try:
            async with open_context() as context, trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._versions.start()
                if self._options.listen is not None:
                    socket = RouterSocket(context)
                    socket.bind(self._options.listen)
                    nursery.start_soon(self._serve_publishers, socket)
                for address in self._options.subscribe:
                    nursery.start_soon(self._hear, context, address)
                nursery.start_soon(self._trim)
                task_status.started()
                while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                    self._serve(envelopes, nursery)
                nursery.cancel_scope.cancel()
        finally:
            while self._streams:
                self._streams.pop().close()

    # Versions

    def _open(self, model: str, bundle: Bundle, progress: Callable[[float], None]) -> FedVersion:
        routes = Routes.of(self._context.topology.models[model], bundle)
        stream = UpdateStream(
            self._folder(routes),
            routes,
            fsync=self._options.fsync,
            keep_bytes=self._options.keep_bytes,
        )
        self._streams.append(stream)
        progress(1.0)
        return FedVersion.of(self._context, stream, self._metrics)

    def _folder(self, routes: Routes) -> Path:
        """Return where a version's stream lies; it is of one division of the tables."""
        home = self._options.state
        state = self._context.topology.run_folder / "state" / self._context.name
        if home is None:
            log.warning("%s: keeps updates in %s; `state` says where", self._context.name, state)
        folder = (state if home is None else Path(home)) / quote(routes.model, safe="")
        name = f"{routes.version[:16]}-{routes.placement.digest[:8]}"
        for other in sorted(folder.glob(f"{routes.version[:16]}-*")):
            if other.name != name:
                log.warning(
                    "%s: model %s: its tables were divided otherwise when updates were taken in "
                    "%s; where shards hold what they did not, rows are the bundle's: publish anew",
                    self._context.name,
                    routes.model,
                    other,
                )
        return folder / name

    def _start(self, fed: FedVersion) -> None:
        assert self._nursery is not None
        if fed.routes.model in self._versions.current:
            fed.stream.inherit(self._versions.of(fed.routes.model).stream.positions)
        fed.start(self._nursery)

    async def _close(self, fed: FedVersion) -> None:
        await fed.stop()
        async with self._intake.appending:
            self._streams.remove(fed.stream)
            fed.stream.close()

    async def _trim(self) -> None:
        """Drop from time to time what all have, or what is too much."""
        while True:
            await trio.sleep(_TRIM_S)
            for fed in list(self._versions.ready.values()):
                async with self._intake.appending:
                    if fed.stream in self._streams:
                        await trio.to_thread.run_sync(fed.stream.trim, fed.droppable)

    # What arrives

    async def _serve_publishers(self, socket: RouterSocket) -> None:
        async with socket:
            while True:
                arrivals = []
                for identity, frames in await socket.receive_batch(_RECEIVE_MOST):
                    answer = _Answer(socket, identity, self._metrics)
                    try:
                        message = decode(frames).message
                    except RemoteProtocolError as error:
                        self._metrics.count("damaged")
                        answer(_invalid(error.request_id or 0, str(error)))
                        continue
                    if isinstance(message, UpdateRequest):
                        arrivals.append(Arrival(message, answer))
                    else:
                        self._serve_other(message, answer)
                await self._intake.accept(arrivals)

    def _serve_other(self, message: Message, answer: _Answer) -> None:
        if isinstance(message, ErrorReply):
            self._metrics.count("strays")  # two that answer each other's errors would never end
            return
        envelope = Envelope(message, trio.current_time(), answer)
        if not answer_usual(envelope, self._metrics, self._statistics()):
            problem = f"a publisher cannot send {type(message).__name__}"
            answer(_invalid(getattr(message, "request_id", 0), problem))

    async def _hear(self, context: zmq.Context[Any], address: str) -> None:
        """Take what a publisher sends, which cannot be answered."""
        async with SubscriberSocket(context) as socket:
            socket.connect(address)
            while True:
                arrivals = []
                for frames in await socket.receive_batch(_RECEIVE_MOST):
                    try:
                        message = decode(frames).message
                    except RemoteProtocolError as error:
                        self._unheard(address, str(error))
                        continue
                    if isinstance(message, UpdateRequest):
                        self._note_gap(message)
                        arrivals.append((message, _Outcome()))
                    else:
                        self._unheard(address, f"publishes {type(message).__name__}")
                while arrivals:
                    await self._intake.accept([Arrival(*each) for each in arrivals], gaps=True)
                    for _, outcome in arrivals:
                        if isinstance(outcome.message, ErrorReply) and not outcome.is_for_later:
                            self._unheard(address, outcome.message.message)
                    arrivals = [each for each in arrivals if each[1].is_for_later]
                    if arrivals:
                        await trio.sleep(_HOLD_S)

    def _unheard(self, address: str, problem: str) -> None:
        self._metrics.count("unheard")
        log.error("%s: publisher %s: %s", self._context.name, address, problem)

    def _note_gap(self, request: UpdateRequest) -> None:
        if request.position and request.model in self._versions.current:
            positions = self._versions.of(request.model).stream.positions
            last = self._heard.get((request.model, request.source))
            if last is None:
                last = positions.get(request.source, 0)
            if last and request.position > last + 1:
                self._metrics.count("missed", request.position - last - 1)
            self._heard[request.model, request.source] = max(request.position, last)

    def _serve(self, envelopes: Sequence[Envelope], nursery: trio.Nursery) -> None:
        arrivals = []
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, UpdateAck):
                fed = self._versions.ready.get((message.model, message.version))
                feed = None if fed is None else fed.feeds.get(message.replica)
                if feed is not None:
                    feed.heard(message)
            elif isinstance(message, QUESTIONS):
                self._versions.serve(envelope, nursery)
            elif isinstance(message, UpdateRequest) and envelope.reply is not None:
                arrivals.append(Arrival(message, envelope.reply))
            else:
                answer_usual(envelope, self._metrics, self._statistics())
        if arrivals:
            nursery.start_soon(self._intake.accept, arrivals)

    def _statistics(self) -> dict[str, Any]:
        return {
            f"updates.{model}.{version[:12]}": fed.statistics()
            for (model, version), fed in self._versions.ready.items()
        }


@attrs.frozen(eq=False)
class _Answer:
    """Answers a publisher."""

    socket: RouterSocket
    identity: bytes
    metrics: Metrics

    def __call__(self, message: Message) -> None:
        packet = Packet(to="", ask_id=0, message=message)
        if not self.socket.try_send(self.identity, encode(packet)):
            self.metrics.count("undeliverable")


@attrs.define(eq=False)
class _Outcome:
    """What a publisher that cannot be answered would have been told."""

    message: Message | None = None

    def __call__(self, message: Message) -> None:
        self.message = message

    @property
    def is_for_later(self) -> bool:
        """Whether the same update may be taken later."""
        message = self.message
        return isinstance(message, ErrorReply) and message.code in ("overloaded", "unavailable")


def _check_shards(topology: Topology, model: str) -> None:
    for shard in topology.models[model].shards:
        for actor in topology.node_of(shard).actors:
            if actor.name == shard and actor.class_name == _REDIS:
                raise StartError(
                    f"model {model}: the tables of {shard} lie in Redis, which takes rows itself; "
                    "the option `models` of an updater says whose updates it takes"
                )


def _invalid(request_id: int, problem: str) -> ErrorReply:
    return ErrorReply(request_id=request_id, code="invalid", message=problem)
