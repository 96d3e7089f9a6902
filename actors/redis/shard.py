"""The embedding shard whose tables lie in Redis; named in place of an ``EmbeddingShard``.

    [nodes.shard-0.actors.shard-0]
    class = "actors.redis.shard.RedisShard"
    url = "redis://10.0.0.5:6379"     # rediss:// encrypts; of a cluster, HOST:PORT,HOST:PORT...
    password_file = "/run/redis.key"  # optional: takes the place of a password in the URL
    prefix = "{table}:"               # optional: of keys, with {table}, {model}, {version}
    timeout_ms = 1000                 # optional: silence after which a server is taken for dead
    in_flight = 256                   # optional: lookups that wait for Redis at most

Rows are in Redis as ``rows.py`` says, of the bundle's dtype. A row that is missing is the default
row in a table with keys, and an error in one without. Whoever writes rows to Redis updates the
tables, of all shards at once; so a shard takes no live updates of its own.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from actors.layouts import placement_of
from actors.options import read_options
from actors.parts import failed_part, part_not_held, part_of, send_part
from actors.redis.client import Client, open_client
from actors.redis.errors import BadRow, LinkDown, RedisError, Refused
from actors.redis.load import read_about
from actors.redis.lookup import ModelLookup
from actors.redis.rows import PREFIX, RedisTable, prefix_of
from actors.redis.server import Server, parse
from actors.update_shard import UPDATE_QUESTIONS
from actors.usual import answer_usual
from actors.versions import QUESTIONS, Progress, Versions
from kernels.bundle.load import Bundle
from kernels.errors import LookupFailed
from runtime.actor import Context, Envelope, Reply
from runtime.errors import StartError
from runtime.mailbox import Mailbox
from runtime.metrics import Metrics
from transport.errors import Overloaded, Unavailable
from transport.messages import ErrorReply, LookupBatch, RowsPart
from transport.updates import SeedOrder, SeedRequest, UpdateAck, UpdateBatch

log = logging.getLogger(__name__)

_RECEIVE_MOST: Final = 64
# Servers that are started with the nodes get as long before the shard gives up.
_START_S: Final = 10.0
_START_AGAIN_S: Final = 0.2
# Of a lookup's budget, kept for saying in time that Redis used up the rest: a share, and at most.
_KEPT: Final = 0.1
_KEPT_MOST_S: Final = 0.005


def _check_positive(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{attribute.name}: want a whole number from 1 on, got {value!r}")


def _check_text(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if type(value) is not str and not (value is None and attribute.default is None):
        raise ValueError(f"{attribute.name}: want a text, got {value!r}")


@attrs.frozen(kw_only=True)
class RedisShardOptions:
    """What a topology says of one.

    Attributes:
        url: See ``server.parse``.
        password_file: Holds the password; spaces and line ends around it do not count.
        certificates: File of the certificates to trust, with ``rediss://``.
        prefix: See ``rows.prefix_of``.
        timeout_ms: For connecting, and of silence.
        in_flight: More lookups than these are refused as too much.
    """

    url: str = attrs.field(validator=_check_text)
    password_file: str | None = attrs.field(default=None, validator=_check_text)
    certificates: str | None = attrs.field(default=None, validator=_check_text)
    prefix: str = attrs.field(default=PREFIX, validator=_check_text)
    timeout_ms: int = attrs.field(default=1000, validator=_check_positive)
    in_flight: int = attrs.field(default=256, validator=_check_positive)

    def server(self) -> Server:
        """Return where Redis is.

        Raises:
            ValueError: The URL is none.
            OSError: A file cannot be read.
        """
        password = ""
        if self.password_file is not None:
            password = Path(self.password_file).read_text(encoding="utf-8").strip()
        server = parse(self.url, password=password, certificates=self.certificates)
        server.encryption()  # reads the certificates
        return server


class RedisShard:
    """Answers each ``LookupBatch`` with one ``RowsPart`` to the executor that the batch names.

    Many at a time, in any order. A lookup that Redis does not answer within its budget, or cannot,
    is answered with ``unavailable`` and why. A batch whose budget is spent is dropped: the gateway
    has answered it.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = read_options(RedisShardOptions, context.name, context.options)
        try:
            self._server = self._options.server()
            prefix_of(self._options.prefix, table="t", model="m", version="v")
        except (ValueError, OSError) as error:
            raise StartError(f"actor {context.name}: {error}") from error
        models = context.topology.models.values()
        own = [model.name for model in models if context.name in model.shards]
        self._versions = Versions(context, own, self._open)
        self._client: Client | None = None
        self._metrics = Metrics()
        self._n_in_flight = 0

    async def run(
        self, mailbox: Mailbox, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until the mailbox is closed and empty, and all that was taken is answered."""
        self._client = await self._connect()
        async with trio.open_nursery() as background:
            await background.start(self._client.run)
            await self._versions.start()
            task_status.started()
            async with trio.open_nursery() as lookups:
                while envelopes := await mailbox.receive_batch(_RECEIVE_MOST):
                    for envelope in envelopes:
                        if isinstance(envelope.message, QUESTIONS):
                            self._versions.serve(envelope, background)
                        else:
                            self._serve(envelope, lookups)
            background.cancel_scope.cancel()

    async def _connect(self) -> Client:
        """Find out what Redis is there.

        Raises:
            StartError: It refuses us, or cannot be reached for ``_START_S``.
        """
        timeout_s = self._options.timeout_ms / 1000
        give_up = trio.current_time() + _START_S
        while True:
            try:
                return await open_client(self._server, timeout_s=timeout_s)
            except RedisError as error:
                is_lost = isinstance(error, LinkDown) and not isinstance(error, Refused)
                if not is_lost or trio.current_time() > give_up:
                    raise StartError(f"actor {self._context.name}: Redis at {error}") from error
                log.warning("%s: waiting for Redis at %s", self._context.name, error)
            await trio.sleep(_START_AGAIN_S)

    def _open(self, model: str, bundle: Bundle, progress: Progress) -> ModelLookup:
        """Check that Redis holds what this shard is to serve of a bundle: in a thread.

        Raises:
            StartError: It holds something else, or not all of it yet, or cannot be asked.
        """
        assert self._client is not None
        spec = self._context.topology.models[model]
        layouts, group = placement_of(spec, bundle), spec.group_of(self._context.name)
        manifest, names = bundle.manifest, layouts.placement.tables(group)
        tables: dict[str, RedisTable] = {}
        for name in names:
            prefix = prefix_of(
                self._options.prefix, table=name, model=model, version=manifest.version
            )
            tables[name] = RedisTable.of(bundle, name, prefix)
            try:
                trio.from_thread.run(self._check_table, tables[name])
            except RedisError as error:
                where = f"table {name} in Redis"
                raise StartError(f"actor {self._context.name}: {where}: {error}") from error
            progress(len(tables) / len(names))
        fetched = () if layouts.fetch is None else layouts.fetch.tables
        return ModelLookup(
            self._client,
            manifest,
            tables,
            *layouts.shards[group],
            [each.table.name for each in fetched],
        )

    async def _check_table(self, table: RedisTable) -> None:
        """Check what a table in Redis says about itself.

        Raises:
            RedisError: It is another, or is not all there yet.
        """
        assert self._client is not None
        about, of = await read_about(self._client, table), table.table
        if about is None:
            key = table.about.decode()
            text = "%s: table %s: no key %s, so rows are taken to be %s of dim %d"
            log.info(text, self._context.name, of.name, key, of.dtype, of.dim)
        elif problem := about.problem(of):
            raise BadRow(f"under {table.prefix.decode()}*: {problem}")

    def _serve(self, envelope: Envelope, lookups: trio.Nursery) -> None:
        message = envelope.message
        if isinstance(message, UPDATE_QUESTIONS):
            self._refuse_update(message, envelope.reply)
        elif not isinstance(message, LookupBatch):
            answer_usual(envelope, self._metrics)
        elif envelope.received_at + message.budget_us * 1e-6 <= trio.current_time():
            self._metrics.count("expired")
        elif self._n_in_flight >= self._options.in_flight:
            self._metrics.count("overloaded")
            text = f"{self._context.name}: {self._n_in_flight} lookups wait for Redis"
            self._send(message, failed_part(message, text, "overloaded"))
        else:
            self._n_in_flight += 1
            lookups.start_soon(self._answer, message, envelope.received_at)

    def _refuse_update(
        self, message: UpdateBatch | SeedOrder | SeedRequest, reply: Reply | None
    ) -> None:
        self._metrics.count("refused_updates")
        text = f"tables of {self._context.name} lie in Redis: set their rows there"
        if isinstance(message, SeedRequest):
            if reply is not None:
                reply(ErrorReply(request_id=0, code="invalid", message=text))
            return
        ack = UpdateAck(
            replica=self._context.name,
            model=message.model,
            version=message.version,
            stream=0,
            applied=0,
            code="invalid",
            message=text,
        )
        try:
            self._context.ref(message.updater).tell(ack)
        except (Overloaded, Unavailable, KeyError) as error:
            log.warning("%s: an update from %s: %s", self._context.name, message.updater, error)

    async def _answer(self, batch: LookupBatch, received_at: float) -> None:
        try:
            part = await self._look_up(batch, received_at)
        except RedisError as error:
            self._metrics.count("bad_rows" if isinstance(error, BadRow) else "redis_failed")
            part = failed_part(batch, f"{self._context.name}: Redis at {error}")
        except (LookupFailed, ValueError) as error:
            self._metrics.count("refused")
            part = failed_part(batch, f"{self._context.name}: {error}", "internal")
        finally:
            self._n_in_flight -= 1
        self._send(batch, part)

    async def _look_up(self, batch: LookupBatch, received_at: float) -> RowsPart:
        held = self._versions.ready.get((batch.model, batch.version))
        if held is None:
            return part_not_held(self._context.name, batch, self._versions.ready)
        budget_s = batch.budget_us * 1e-6
        kept_s = min(_KEPT * budget_s, _KEPT_MOST_S)
        with trio.move_on_at(received_at + budget_s - kept_s) as scope:
            looked = await held.look_up(batch)
        if scope.cancelled_caught:
            self._metrics.count("redis_late")
            text = f"no answer within the lookup's budget of {batch.budget_us / 1000:.0f} ms"
            raise RedisError(f"{self._server}: {text}")
        self._metrics.count("distinct_rows", looked.n_rows)
        return part_of(
            batch, looked.user, looked.candidate, looked.rows, received_at, self._metrics
        )

    def _send(self, batch: LookupBatch, part: RowsPart) -> None:
        send_part(self._context, self._metrics, batch, part)
